/* What the fetch engine counts, as Python values. */
#include "py_fetch_parts.h"

static int put(PyObject *dictionary, const char *name, PyObject *value) {
    int result = value == NULL ? -1 : PyDict_SetItemString(dictionary, name, value);
    Py_XDECREF(value);
    return result;
}

static PyObject *source_list(os_fetch *fetch) {
    unsigned room = os_fetch_sources_of(fetch, NULL, 0);
    os_fetch_source_statistics *found = PyMem_Calloc(room + 1, sizeof *found);
    if (found == NULL)
        return PyErr_NoMemory();
    unsigned count = os_fetch_sources_of(fetch, found, room);
    PyObject *list = PyList_New(0);
    for (unsigned at = 0; at < count && at < room && list != NULL; at++) {
        PyObject *one =
            Py_BuildValue("{sI sN sK sK sK}", "source", found[at].source, "stale", PyBool_FromLong(found[at].stale),
                          "flights", found[at].flights, "bytes", found[at].bytes, "failures", found[at].failures);
        if (one == NULL || PyList_Append(list, one) < 0)
            Py_CLEAR(list);
        Py_XDECREF(one);
    }
    PyMem_Free(found);
    return list;
}

static PyObject *slow_list(os_fetch *fetch) {
    os_fetch_slow slow[OS_FETCH_SLOWEST];
    unsigned count = os_fetch_slowest(fetch, slow);
    PyObject *list = PyList_New(0);
    for (unsigned at = 0; at < count && list != NULL; at++) {
        PyObject *one = Py_BuildValue("{sy# sK sI sd sI sI}", "digest", (char *)slow[at].digest, (Py_ssize_t)OS_ID_SIZE,
                                      "offset", slow[at].offset, "length", slow[at].length, "seconds",
                                      (double)slow[at].ns / 1e9, "tries", slow[at].tries, "source", slow[at].source);
        if (one == NULL || PyList_Append(list, one) < 0)
            Py_CLEAR(list);
        Py_XDECREF(one);
    }
    return list;
}

PyObject *os_py_fetch_statistics(PyObject *object, PyObject *unused) {
    os_fetch *fetch = os_py_fetch_opened(object);
    os_fetch_statistics s;
    (void)unused;
    if (fetch == NULL)
        return NULL;
    os_fetch_statistics_of(fetch, &s);
    const struct {
        const char *name;
        uint64_t value;
    } counts[] = {
        {"wants", s.wants},         {"joined", s.joined},       {"flights", s.flights},
        {"bytes", s.bytes},         {"hedges", s.hedges},       {"hedges_won", s.hedges_won},
        {"retries", s.retries},     {"redirects", s.redirects}, {"raised", s.raised},
        {"expired", s.expired},     {"rejected", s.rejected},   {"stale", s.stale},
        {"transport", s.transport}, {"timeouts", s.timeouts},   {"status", s.status},
        {"range", s.range},         {"length", s.length},       {"encoding", s.encoding},
        {"redirect", s.redirect},   {"active", s.active},       {"waiting", s.waiting},
        {"p50_ns", s.p50_ns},       {"p95_ns", s.p95_ns},       {"connections", s.connections},
    };
    PyObject *out = PyDict_New();
    int bad = out == NULL ? -1 : 0;
    for (size_t at = 0; at < sizeof counts / sizeof *counts && bad == 0; at++)
        bad = put(out, counts[at].name, PyLong_FromUnsignedLongLong(counts[at].value));
    if (bad == 0)
        bad = put(out, "sources", source_list(fetch));
    if (bad == 0)
        bad = put(out, "slowest", slow_list(fetch));
    if (bad < 0)
        Py_CLEAR(out);
    return out;
}
