/* cext._fetch: the fetch engine for Python, a module of its own, because what loads it loads libcurl and TLS: 8 ms that
 * `run` and `mount` need not spend. */
#include "py_common.h"

#include <curl/curl.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "os_fetch.h"
#include "os_fetch_http.h"
#include "os_fetch_link.h"

typedef struct fetcher {
    PyObject_HEAD os_fetch *fetch; /* owned; NULL: closed. Changed and used to submit under the GIL alone */
    os_log log;
    bool logs;        /* log is made */
    unsigned serving; /* calls of serve under way; guarded by the GIL */
} fetcher;

static os_fetch *opened(PyObject *object) {
    os_fetch *fetch = ((fetcher *)object)->fetch;
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
    fetcher *self = (fetcher *)object;
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

static void shut(fetcher *self) {
    os_fetch *fetch = self->fetch;
    self->fetch = NULL;
    Py_BEGIN_ALLOW_THREADS;
    os_fetch_free(fetch);
    Py_END_ALLOW_THREADS;
}

static void finalize(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    fetcher *self = (fetcher *)object;
    shut(self);
    if (self->logs)
        os_log_destroy(&self->log);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *py_close(PyObject *object, PyObject *unused) {
    (void)unused;
    if (((fetcher *)object)->serving > 0)
        return PyErr_Format(PyExc_ValueError, "fetcher: it serves; close its socket first");
    shut((fetcher *)object);
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
    os_fetch *fetch = opened(object);
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
    os_fetch *fetch = opened(object);
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
    os_fetch *fetch = opened(object);
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

/* ---------------------------------------------------------------------- reading */

/* What one read waits for. Whoever lets go of it last frees it: a read that was interrupted leaves the engine alone
 * with it. */
typedef struct call {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t left;            /* ranges not done; guarded by lock */
    unsigned owners;        /* guarded by lock */
    os_fetch_result result; /* of the range that failed first, else of the last one; guarded by lock */
    uint8_t data[];         /* the engine's until left is 0 */
} call;

static void let_go(call *it) {
    pthread_mutex_lock(&it->lock);
    unsigned left = --it->owners;
    pthread_mutex_unlock(&it->lock);
    if (left > 0)
        return;
    pthread_cond_destroy(&it->changed);
    pthread_mutex_destroy(&it->lock);
    PyMem_RawFree(it);
}

static void on_done(void *context, uint64_t ticket, const os_fetch_result *result) {
    call *it = context;
    (void)ticket;
    pthread_mutex_lock(&it->lock);
    if (it->result.code == OS_OK)
        it->result = *result;
    it->left--;
    pthread_cond_signal(&it->changed);
    pthread_mutex_unlock(&it->lock);
    let_go(it);
}

/* Waits; false with an exception if a signal ended it. */
static bool wait_for(call *it) {
    for (;;) {
        bool done;
        Py_BEGIN_ALLOW_THREADS;
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += 1;
        pthread_mutex_lock(&it->lock);
        int error = 0;
        while (it->left > 0 && error == 0)
            error = pthread_cond_timedwait(&it->changed, &it->lock, &until);
        done = it->left == 0;
        pthread_mutex_unlock(&it->lock);
        Py_END_ALLOW_THREADS;
        if (done)
            return true;
        if (PyErr_CheckSignals() < 0)
            return false;
    }
}

static void submit_spans(os_fetch *fetch, call *it, os_fetch_want want, size_t size) {
    os_failure failure = {0};
    uint64_t end = want.offset + size;
    while (want.offset < end) {
        uint64_t stop = (want.offset / OS_FETCH_SPAN + 1) * OS_FETCH_SPAN;
        want.length = (uint32_t)((stop < end ? stop : end) - want.offset);
        pthread_mutex_lock(&it->lock);
        it->left++;
        it->owners++;
        pthread_mutex_unlock(&it->lock);
        if (os_fetch_submit(fetch, &want, &failure) != OS_OK) {
            os_fetch_result result = {.code = failure.code};
            snprintf(result.cause, sizeof result.cause, "%.*s", (int)sizeof result.cause - 1, failure.message);
            on_done(it, 0, &result);
            return;
        }
        want.buffer += want.length;
        want.offset += want.length;
    }
}

static PyObject *py_read(PyObject *object, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"", "", "", "", "", "timeout", "prefetch", "rejected", "avoid", NULL};
    os_fetch_want want = {.done = on_done};
    Py_buffer digest;
    unsigned long long size, offset;
    Py_ssize_t length;
    double timeout = 120;
    int prefetch = 0;
    os_fetch *fetch = opened(object);
    if (fetch == NULL ||
        !PyArg_ParseTupleAndKeywords(arguments, keywords, "Iy*KKn|$dpII:read", names, &want.origin, &digest, &size,
                                     &offset, &length, &timeout, &prefetch, &want.rejected, &want.avoid))
        return NULL;
    bool sound = digest.len == OS_ID_SIZE && length > 0 && (unsigned long long)length <= size &&
                 offset <= size - (unsigned long long)length && timeout >= 0 && timeout < 1e9;
    if (sound)
        memcpy(want.digest, digest.buf, OS_ID_SIZE);
    PyBuffer_Release(&digest);
    if (!sound)
        return PyErr_Format(PyExc_ValueError, "read: want a digest of 32 bytes, a range inside the blob, and seconds");
    call *it = PyMem_RawCalloc(1, sizeof *it + (size_t)length);
    if (it == NULL)
        return PyErr_NoMemory();
    pthread_mutex_init(&it->lock, NULL);
    pthread_cond_init(&it->changed, NULL);
    it->owners = 1;
    want.blob_size = size;
    want.offset = offset;
    want.prefetch = prefetch != 0;
    want.deadline = os_env_system.monotonic_ns(NULL) + (uint64_t)(timeout * 1e9);
    want.buffer = it->data;
    want.context = it;
    submit_spans(fetch, it, want, (size_t)length);
    PyObject *out = NULL;
    if (wait_for(it)) {
        os_failure failure = {0};
        if (it->result.code == OS_OK) {
            out = Py_BuildValue("(y#II)", (char *)it->data, length, it->result.source, it->result.tries);
        } else {
            const char *what = it->result.code == OS_MISSING ? "did not come before the deadline" : "not fetched";
            os_fail(&failure, it->result.code, "blob: %s: %s", what, it->result.cause);
            os_py_raise(&failure);
        }
    }
    let_go(it);
    return out;
}

static PyObject *serve(PyObject *object, PyObject *arguments) {
    int sock, memory;
    fetcher *self = (fetcher *)object;
    os_fetch *fetch = opened(object);
    if (fetch == NULL || !PyArg_ParseTuple(arguments, "ii:serve", &sock, &memory))
        return NULL;
    os_failure failure = {0};
    os_code code;
    self->serving++;
    Py_BEGIN_ALLOW_THREADS;
    code = os_fetch_serve(fetch, sock, memory, &failure);
    Py_END_ALLOW_THREADS;
    self->serving--;
    if (code != OS_OK)
        return os_py_raise(&failure);
    Py_RETURN_NONE;
}

/* ---------------------------------------------------------------------- statistics */

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

static PyObject *statistics(PyObject *object, PyObject *unused) {
    os_fetch *fetch = opened(object);
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

/* ---------------------------------------------------------------------- words of a server */

static PyObject *content_range(PyObject *module, PyObject *arguments) {
    Py_buffer text;
    os_http_range range;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*:content_range", &text))
        return NULL;
    bool sound = os_http_content_range(text.buf, (size_t)text.len, &range);
    PyBuffer_Release(&text);
    if (!sound)
        Py_RETURN_NONE;
    return Py_BuildValue("(KKK)", range.first, range.last, range.total);
}

static PyObject *retry_after(PyObject *module, PyObject *arguments) {
    Py_buffer text;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*:retry_after", &text))
        return NULL;
    uint64_t seconds = os_http_retry_after(text.buf, (size_t)text.len);
    PyBuffer_Release(&text);
    return PyLong_FromUnsignedLongLong(seconds);
}

static PyObject *redirect(PyObject *module, PyObject *arguments) {
    const char *from, *location;
    char to[OS_FETCH_URL_MAX];
    bool same;
    os_failure failure = {0};
    (void)module;
    if (!PyArg_ParseTuple(arguments, "ss:redirect", &from, &location))
        return NULL;
    if (os_http_redirect(from, location, to, sizeof to, &same, &failure) != OS_OK)
        return os_py_raise(&failure);
    return Py_BuildValue("(sN)", to, PyBool_FromLong(same));
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
    {"read", KEYWORDS(py_read),
     "read(origin, digest, blob_size, offset, length, *, timeout=120, prefetch=False, rejected=0, avoid=0) -> (bytes, "
     "source, tries): asks in aligned spans, all at once. Bytes are not hashed."},
    {"serve", serve, METH_VARARGS,
     "serve(sock, memory): fetches what an object server asks for, until it closes its end."},
    {"statistics", statistics, METH_NOARGS, "Counts since the start, the sources', and the slowest ranges."},
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

static PyType_Spec spec = {"cext._fetch.Fetcher", sizeof(fetcher), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
                           slots};

static PyMethodDef functions[] = {
    {"content_range", content_range, METH_VARARGS, "content_range(value) -> (first, last, total), or None."},
    {"retry_after", retry_after, METH_VARARGS, "retry_after(value) -> seconds from now, 0 if it makes no sense."},
    {"redirect", redirect, METH_VARARGS, "redirect(url, location) -> (url, credentials may go along)."},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module) {
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        PyErr_SetString(PyExc_ImportError, "libcurl would not start");
        return -1;
    }
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    int result = type == NULL ? -1 : PyModule_AddObjectRef(module, "Fetcher", type);
    Py_XDECREF(type);
    return result < 0 ? -1 : PyModule_AddIntConstant(module, "SPAN", OS_FETCH_SPAN);
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
