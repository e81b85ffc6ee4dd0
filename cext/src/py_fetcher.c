/* cext._fetch: the fetch engine for Python, a module of its own, because what loads it loads libcurl and TLS: 8 ms that
 * `run` and `mount` need not spend. */
#include "py_fetch_parts.h"

#include <curl/curl.h>
#include <string.h>

os_fetch *os_py_fetch_opened(PyObject *object) {
    os_fetch *fetch = ((os_py_fetcher *)object)->fetch;
    if (fetch == NULL) {
        os_failure failure;
        os_fail(&failure, OS_CLOSED, "fetcher: closed");
        os_py_raise(&failure);
    }
    return fetch;
}

/* ---------------------------------------------------------------------- life */

static bool to_ms(double seconds, uint32_t *out) {
    if (!(seconds >= 0 && seconds <= 1e6)) {
        PyErr_SetString(PyExc_ValueError, "fetcher: want seconds");
        return false;
    }
    *out = (uint32_t)(seconds * 1000);
    return true;
}

static int init(PyObject *object, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"authorities",   "log",     "news",        "flights",     "connect_timeout",
                            "stall_timeout", "backoff", "backoff_max", "hedge_floor", NULL};
    os_py_fetcher *self = (os_py_fetcher *)object;
    double connect_timeout = 0, stall_timeout = 0, backoff = 0, backoff_max = 0, hedge_floor = 0;
    int log = -1;
    os_fetch_options options = {.env = &os_env_system, .news = -1};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "|$ziiIddddd:Fetcher", names, &options.authorities, &log,
                                     &options.news, &options.flights, &connect_timeout, &stall_timeout, &backoff,
                                     &backoff_max, &hedge_floor) ||
        !to_ms(connect_timeout, &options.connect_timeout_ms) || !to_ms(stall_timeout, &options.stall_timeout_ms) ||
        !to_ms(backoff, &options.backoff_ms) || !to_ms(backoff_max, &options.backoff_max_ms) ||
        !to_ms(hedge_floor, &options.hedge_floor_ms))
        return -1;
    if (self->logs) {
        PyErr_SetString(PyExc_TypeError, "Fetcher: initialised before");
        return -1;
    }
    os_failure failure = {0};
    os_log_init(&self->log, &os_env_system, log);
    self->logs = true;
    options.log = &self->log;
    if (os_fetch_make(&options, &self->fetch, &failure) == OS_OK)
        return 0;
    os_py_raise(&failure);
    return -1;
}

static void shut(os_py_fetcher *self) {
    os_fetch *fetch = self->fetch;
    self->fetch = NULL;
    Py_BEGIN_ALLOW_THREADS;
    os_fetch_free(fetch);
    Py_END_ALLOW_THREADS;
}

static void finalize(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    os_py_fetcher *self = (os_py_fetcher *)object;
    shut(self);
    if (self->logs)
        os_log_destroy(&self->log);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *py_close(PyObject *object, PyObject *unused) {
    (void)unused;
    if (((os_py_fetcher *)object)->serving > 0)
        return PyErr_Format(PyExc_ValueError, "fetcher: it serves; close its socket first");
    shut((os_py_fetcher *)object);
    Py_RETURN_NONE;
}

static PyObject *py_enter(PyObject *object, PyObject *unused) {
    (void)unused;
    return Py_NewRef(object);
}

/* ---------------------------------------------------------------------- sources */

static PyObject *set_source(PyObject *object, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"", "", "headers", "lifetime", "authorities", "proxy", "no_proxy", NULL};
    unsigned number;
    os_fetch_place place = {0};
    PyObject *sequence = NULL, *lines = NULL;
    const char *line[OS_FETCH_HEADERS_MAX + 1];
    double lifetime = 0;
    os_fetch *fetch = os_py_fetch_opened(object);
    if (fetch == NULL ||
        !PyArg_ParseTupleAndKeywords(arguments, keywords, "Is|$Odzzz:set_source", names, &number, &place.url, &sequence,
                                     &lifetime, &place.authorities, &place.proxy, &place.no_proxy))
        return NULL;
    if (!(lifetime >= 0 && lifetime < 1e9))
        return PyErr_Format(PyExc_ValueError, "lifetime: want seconds");
    lines = sequence == NULL ? PyTuple_New(0) : PySequence_Tuple(sequence);
    if (lines == NULL)
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(lines);
    os_failure failure = {0};
    if (count > (Py_ssize_t)OS_FETCH_HEADERS_MAX) {
        os_fail(&failure, OS_LIMIT, "source: got %zd headers, want at most %u", count, OS_FETCH_HEADERS_MAX);
        os_py_raise(&failure);
        goto done;
    }
    for (Py_ssize_t at = 0; at < count; at++) {
        Py_ssize_t length;
        line[at] = PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(lines, at), &length);
        if (line[at] == NULL)
            goto done;
        if ((size_t)length != strlen(line[at])) {
            PyErr_SetString(PyExc_ValueError, "source: got a header with a NUL in it");
            goto done;
        }
    }
    place.headers = line;
    place.header_count = (unsigned)count;
    place.lifetime_ns = (uint64_t)(lifetime * 1e9);
    if (os_fetch_set_source(fetch, number, &place, &failure) != OS_OK)
        os_py_raise(&failure);
done:
    Py_DECREF(lines);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *set_origin(PyObject *object, PyObject *arguments) {
    unsigned number;
    PyObject *sequence;
    uint32_t sources[OS_FETCH_ORIGIN_SOURCES_MAX + 1];
    os_fetch *fetch = os_py_fetch_opened(object);
    if (fetch == NULL || !PyArg_ParseTuple(arguments, "IO:set_origin", &number, &sequence))
        return NULL;
    PyObject *list = PySequence_Tuple(sequence);
    if (list == NULL)
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(list);
    for (Py_ssize_t at = 0; at < count && at <= (Py_ssize_t)OS_FETCH_ORIGIN_SOURCES_MAX; at++)
        sources[at] = (uint32_t)PyLong_AsUnsignedLong(PyTuple_GET_ITEM(list, at));
    Py_DECREF(list);
    if (PyErr_Occurred())
        return NULL;
    os_failure failure = {0};
    if (os_fetch_set_origin(fetch, number, sources, (unsigned)count, &failure) != OS_OK)
        return os_py_raise(&failure);
    Py_RETURN_NONE;
}

static PyObject *news(PyObject *object, PyObject *unused) {
    os_fetch *fetch = os_py_fetch_opened(object);
    os_fetch_news_item item;
    (void)unused;
    if (fetch == NULL)
        return NULL;
    PyObject *list = PyList_New(0);
    while (list != NULL && os_fetch_news(fetch, &item)) {
        PyObject *one = Py_BuildValue("(II)", item.source, item.status);
        if (one == NULL || PyList_Append(list, one) < 0)
            Py_CLEAR(list);
        Py_XDECREF(one);
    }
    return list;
}

#define KEYWORDS(function) (PyCFunction)(void (*)(void)) function, METH_VARARGS | METH_KEYWORDS

static PyMethodDef methods[] = {
    {"set_source", KEYWORDS(set_source),
     "set_source(number, url, *, headers=(), lifetime=0, authorities=None, proxy=None, no_proxy=None): url may have "
     "\"{digest}\" in it. Replaces "
     "it, and ends its "
     "being stale. lifetime: seconds, 0 for ever. authorities: PEM."},
    {"set_origin", set_origin, METH_VARARGS, "set_origin(number, sources): the first choice first."},
    {"news", news, METH_NOARGS, "news() -> [(source, status)]: sources that went stale; status 0: their time passed."},
    {"read", KEYWORDS(os_py_fetch_read),
     "read(origin, digest, blob_size, offset, length, *, timeout=120, prefetch=False, rejected=0, avoid=0) -> (bytes, "
     "source, tries): asks in aligned spans, all at once. Bytes are not hashed."},
    {"ping", os_py_fetch_ping, METH_VARARGS,
     "ping(timeout) -> whether the engine's thread comes round within so many seconds."},
    {"serve", os_py_fetch_serve, METH_VARARGS,
     "serve(sock, memory): fetches what an object server asks for, until it closes its end."},
    {"statistics", os_py_fetch_statistics, METH_NOARGS,
     "Counts since the start, the sources', and the slowest ranges."},
    {"close", py_close, METH_NOARGS, "Ends the thread and what waits. May be called again."},
    {"__enter__", py_enter, METH_NOARGS, NULL},
    {"__exit__", py_close, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc,
     "Fetcher(*, authorities=None, log=-1, news=-1, flights=0, connect_timeout=0, stall_timeout=0, backoff=0, "
     "backoff_max=0, hedge_floor=0): the fetch engine. Seconds; 0: as os_fetch.h says."},
    {Py_tp_init, init},
    {Py_tp_dealloc, finalize},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {"cext._fetch.Fetcher", sizeof(os_py_fetcher), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, slots};

static PyMethodDef functions[] = {
    {"content_range", os_py_fetch_content_range, METH_VARARGS,
     "content_range(value) -> (first, last, total), or None."},
    {"retry_after", os_py_fetch_retry_after, METH_VARARGS,
     "retry_after(value) -> seconds from now, 0 if it makes no sense."},
    {"redirect", os_py_fetch_redirect, METH_VARARGS, "redirect(url, location) -> (url, credentials may go along)."},
    {"park_getters", os_py_fetch_park, METH_NOARGS,
     "Before a fork: no getter's thread holds a lock until unpark_getters."},
    {"unpark_getters", os_py_fetch_unpark, METH_NOARGS, "After it, in the parent. The child may not use the getters."},
    {NULL, NULL, 0, NULL},
};

static int add_type(PyObject *module, const char *name, PyType_Spec *made_of) {
    PyObject *type = PyType_FromModuleAndSpec(module, made_of, NULL);
    int result = type == NULL ? -1 : PyModule_AddObjectRef(module, name, type);
    Py_XDECREF(type);
    return result;
}

static int execute(PyObject *module) {
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        PyErr_SetString(PyExc_ImportError, "libcurl would not start");
        return -1;
    }
    if (add_type(module, "Fetcher", &spec) < 0 || add_type(module, "Getter", &os_py_getter_spec) < 0)
        return -1;
    return PyModule_AddIntConstant(module, "SPAN", OS_FETCH_SPAN);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, execute},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,  .m_name = "cext._fetch", .m_doc = "The fetch engine. See cext/fetch.py.",
    .m_methods = functions, .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__fetch(void) {
    return PyModuleDef_Init(&definition);
}
