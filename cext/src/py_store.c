/* Store: os_store for Python. cache/store.py is what programs use. */
#include "py_store.h"

#include "py_common.h"

#include <stdlib.h>

typedef struct py_store {
    PyObject_HEAD os_store *store; /* owned; NULL until initialised */
    os_log log;                    /* lives as long as the store */
} py_store;

static PyTypeObject *segment_type, *report_type, *statistics_type; /* immutable once the module is made */

static int store_init(PyObject *object, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"", "segment_size", "queue_size", "level", "log", "quota", "floor", NULL};
    py_store *self = (py_store *)object;
    PyObject *path;
    unsigned segment_size = 0, queue_size = 0;
    int level = 3, log = -1;
    unsigned long long quota = 0, floor = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&|$IIiiKK:Store", names, PyUnicode_FSConverter, &path,
                                     &segment_size, &queue_size, &level, &log, &quota, &floor))
        return -1;
    if (self->store != NULL) {
        PyErr_SetString(PyExc_ValueError, "Store: made already");
        Py_DECREF(path);
        return -1;
    }
    os_failure failure = {0};
    os_store *store;
    os_log_init(&self->log, &os_env_system, log);
    os_store_options options = {.log = &self->log,
                                .segment_size = segment_size,
                                .queue_size = queue_size,
                                .level = level,
                                .quota = quota,
                                .floor = floor};
    const char *name = PyBytes_AS_STRING(path);
    os_code code;
    Py_BEGIN_ALLOW_THREADS;
    code = os_store_open(name, &options, &store, &failure);
    Py_END_ALLOW_THREADS;
    Py_DECREF(path);
    if (code != OS_OK) {
        os_log_destroy(&self->log);
        os_py_raise(&failure);
        return -1;
    }
    self->store = store;
    return 0;
}

static void store_dealloc(PyObject *object) {
    py_store *self = (py_store *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->store != NULL) {
        Py_BEGIN_ALLOW_THREADS;
        os_store_free(self->store);
        Py_END_ALLOW_THREADS;
        os_log_destroy(&self->log);
    }
    type->tp_free(object);
    Py_DECREF(type);
}

os_store *os_py_store_of(PyObject *object) {
    if (Py_TYPE(object)->tp_dealloc == store_dealloc && ((py_store *)object)->store != NULL)
        return ((py_store *)object)->store;
    PyErr_SetString(PyExc_TypeError, "store: want a Store");
    return NULL;
}

static os_store *made(PyObject *object) {
    os_store *store = ((py_store *)object)->store;
    if (store == NULL)
        PyErr_SetString(PyExc_ValueError, "Store: not made");
    return store;
}

static PyObject *result(os_code code, const os_failure *failure) {
    if (code != OS_OK)
        return os_py_raise(failure);
    Py_RETURN_NONE;
}

static PyObject *store_put(PyObject *object, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"", "", "algorithm", "compress", "pinned", "wait", NULL};
    Py_buffer id, data;
    unsigned algorithm = OS_ALGORITHM_BLAKE3;
    int compress = 1, pinned = 0, wait = 1;
    os_store *store = made(object);
    if (store == NULL || !PyArg_ParseTupleAndKeywords(arguments, keywords, "y*y*|$Ippp:put", names, &id, &data,
                                                      &algorithm, &compress, &pinned, &wait))
        return NULL;
    os_failure failure = {0};
    unsigned flags = (compress ? OS_STORE_ZSTD : 0) | (pinned ? OS_STORE_PINNED : 0) | (wait ? 0 : OS_STORE_NO_WAIT);
    os_code code;
    if (id.len != OS_ID_SIZE)
        code = os_fail(&failure, OS_CORRUPT, "chunk id: got %zd bytes, want 32", id.len);
    else {
        Py_BEGIN_ALLOW_THREADS;
        code = os_store_put(store, id.buf, algorithm, data.buf, (size_t)data.len, flags, &failure);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&id);
    PyBuffer_Release(&data);
    return result(code, &failure);
}

static PyObject *store_get(PyObject *object, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"", "algorithm", NULL};
    Py_buffer id;
    unsigned algorithm = OS_ALGORITHM_BLAKE3;
    os_store *store = made(object);
    if (store == NULL || !PyArg_ParseTupleAndKeywords(arguments, keywords, "y*|$I:get", names, &id, &algorithm))
        return NULL;
    os_failure failure = {0};
    size_t length = 0;
    os_code code;
    uint8_t *buffer = malloc(OS_CHUNK_MAX);
    if (buffer == NULL)
        code = os_fail(&failure, OS_MEMORY, "store: no memory");
    else if (id.len != OS_ID_SIZE)
        code = os_fail(&failure, OS_CORRUPT, "chunk id: got %zd bytes, want 32", id.len);
    else {
        Py_BEGIN_ALLOW_THREADS;
        code = os_store_get(store, id.buf, algorithm, buffer, OS_CHUNK_MAX, &length, &failure);
        Py_END_ALLOW_THREADS;
    }
    PyObject *out = code == OS_OK        ? PyBytes_FromStringAndSize((char *)buffer, (Py_ssize_t)length)
                    : code == OS_MISSING ? Py_NewRef(Py_None)
                                         : os_py_raise(&failure);
    PyBuffer_Release(&id);
    free(buffer);
    return out;
}

static PyObject *store_flush(PyObject *object, PyObject *ignored) {
    (void)ignored;
    os_store *store = made(object);
    if (store == NULL)
        return NULL;
    os_failure failure = {0};
    os_code code;
    Py_BEGIN_ALLOW_THREADS;
    code = os_store_flush(store, &failure);
    Py_END_ALLOW_THREADS;
    return result(code, &failure);
}

static PyObject *store_segments(PyObject *object, PyObject *ignored) {
    (void)ignored;
    os_store *store = made(object);
    if (store == NULL)
        return NULL;
    os_failure failure = {0};
    os_store_segment *list;
    size_t count = 0;
    if (os_store_segments(store, &list, &count, &failure) != OS_OK)
        return os_py_raise(&failure);
    PyObject *out = PyList_New((Py_ssize_t)count);
    for (size_t at = 0; out != NULL && at < count; at++) {
        PyObject *one = os_py_record(segment_type, 4, (uint64_t)list[at].number, (uint64_t)list[at].bytes,
                                     list[at].used, (uint64_t)list[at].pinned);
        if (one == NULL)
            Py_CLEAR(out);
        else
            PyList_SET_ITEM(out, (Py_ssize_t)at, one);
    }
    free(list);
    return out;
}

static PyObject *store_seen(PyObject *object, PyObject *argument) {
    os_store *store = made(object);
    Py_buffer id;
    if (store == NULL || PyObject_GetBuffer(argument, &id, PyBUF_SIMPLE) < 0)
        return NULL;
    os_failure failure = {0};
    bool sound = id.len == OS_ID_SIZE, seen = sound && os_store_seen(store, id.buf);
    if (!sound)
        os_fail(&failure, OS_CORRUPT, "chunk id: got %zd bytes, want 32", id.len);
    PyBuffer_Release(&id);
    return sound ? PyBool_FromLong(seen) : os_py_raise(&failure);
}

static PyObject *store_drop(PyObject *object, PyObject *argument) {
    os_store *store = made(object);
    unsigned long number = store == NULL ? 0 : PyLong_AsUnsignedLong(argument);
    if (store == NULL || PyErr_Occurred())
        return NULL;
    os_failure failure = {0};
    os_code code;
    if (number > UINT32_MAX)
        code = os_fail(&failure, OS_MISSING, "store: there is no segment %lu", number);
    else {
        Py_BEGIN_ALLOW_THREADS;
        code = os_store_drop(store, (uint32_t)number, &failure);
        Py_END_ALLOW_THREADS;
    }
    return result(code, &failure);
}

static PyObject *store_check(PyObject *object, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"repair", NULL};
    int repair = 0;
    os_store *store = made(object);
    if (store == NULL || !PyArg_ParseTupleAndKeywords(arguments, keywords, "|$p:check", names, &repair))
        return NULL;
    os_failure failure = {0};
    os_store_report report;
    os_code code;
    Py_BEGIN_ALLOW_THREADS;
    code = os_store_check(store, repair, &report, &failure);
    Py_END_ALLOW_THREADS;
    return code == OS_OK ? os_py_record(report_type, 5, report.chunks, report.bytes, report.damaged,
                                        report.damaged_rows, report.damaged_headers)
                         : os_py_raise(&failure);
}

static PyObject *store_statistics(PyObject *object, PyObject *ignored) {
    (void)ignored;
    os_store *store = made(object);
    if (store == NULL)
        return NULL;
    os_failure failure = {0};
    os_store_statistics about;
    if (os_store_statistics_of(store, &about, &failure) != OS_OK)
        return os_py_raise(&failure);
    return os_py_record(statistics_type, 14, about.chunks, about.segments, about.bytes, about.hits, about.misses,
                        about.puts, about.known, about.damaged, about.damaged_rows, about.lost, about.evicted,
                        about.queued, about.rebuilt, about.broken);
}

static PyObject *store_close(PyObject *object, PyObject *ignored) {
    (void)ignored;
    os_store *store = made(object);
    if (store == NULL)
        return NULL;
    os_failure failure = {0};
    os_code code;
    Py_BEGIN_ALLOW_THREADS;
    code = os_store_close(store, &failure);
    Py_END_ALLOW_THREADS;
    return result(code, &failure);
}

static PyObject *store_fileno(PyObject *object, PyObject *ignored) {
    (void)ignored;
    os_store *store = made(object);
    return store == NULL ? NULL : PyLong_FromLong(os_store_directory(store));
}

static PyObject *store_enter(PyObject *object, PyObject *ignored) {
    (void)ignored;
    return Py_NewRef(object);
}

#define KEYWORDS(function) (PyCFunction)(void (*)(void)) function, METH_VARARGS | METH_KEYWORDS

static PyMethodDef methods[] = {
    {"put", KEYWORDS(store_put),
     "put(id, data, *, algorithm=1, compress=True, pinned=False, wait=True): verified, then queued."},
    {"get", KEYWORDS(store_get), "get(id, *, algorithm=1) -> verified bytes, or None."},
    {"flush", store_flush, METH_NOARGS, "Waits until what was put is durable; raises what went wrong since the last."},
    {"seen", store_seen, METH_O, "seen(id) -> whether it was asked about before, roughly."},
    {"segments", store_segments, METH_NOARGS, "A list of StoreSegment, ascending by number."},
    {"drop", store_drop, METH_O, "drop(number): deletes a segment and forgets its chunks."},
    {"check", KEYWORDS(store_check), "check(*, repair=False) -> StoreReport, after everything was read and hashed."},
    {"statistics", store_statistics, METH_NOARGS, "A StoreStatistics."},
    {"close", store_close, METH_NOARGS, "Flushes and gives the directory free; raises what the flush would."},
    {"fileno", store_fileno, METH_NOARGS, "The descriptor of its directory."},
    {"__enter__", store_enter, METH_NOARGS, NULL},
    {"__exit__", store_close, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Store(path, *, segment_size=0, queue_size=0, level=3, log=-1, quota=0, floor=0): the chunk store in a "
                "directory."},
    {Py_tp_init, store_init},
    {Py_tp_dealloc, store_dealloc},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {"cext._native.Store", sizeof(py_store), 0, Py_TPFLAGS_DEFAULT, slots};

static PyStructSequence_Field segment_fields[] = {
    {"number", NULL}, {"bytes", NULL}, {"used", NULL}, {"pinned", NULL}, {NULL, NULL}};
static PyStructSequence_Field report_fields[] = {{"chunks", NULL},       {"bytes", NULL},           {"damaged", NULL},
                                                 {"damaged_rows", NULL}, {"damaged_headers", NULL}, {NULL, NULL}};
static PyStructSequence_Field statistics_fields[] = {
    {"chunks", NULL},  {"segments", NULL}, {"bytes", NULL},   {"hits", NULL},         {"misses", NULL},
    {"puts", NULL},    {"known", NULL},    {"damaged", NULL}, {"damaged_rows", NULL}, {"lost", NULL},
    {"evicted", NULL}, {"queued", NULL},   {"rebuilt", NULL}, {"broken", NULL},       {NULL, NULL}};

static PyStructSequence_Desc segment_record = {"cext._native.StoreSegment", NULL, segment_fields, 4};
static PyStructSequence_Desc report_record = {"cext._native.StoreReport", NULL, report_fields, 5};
static PyStructSequence_Desc statistics_record = {"cext._native.StoreStatistics", NULL, statistics_fields, 14};

static int add_record(PyObject *module, PyTypeObject **type, PyStructSequence_Desc *record, const char *name) {
    if (*type == NULL)
        *type = PyStructSequence_NewType(record);
    return *type == NULL ? -1 : PyModule_AddObjectRef(module, name, (PyObject *)*type);
}

int os_py_add_store(PyObject *module) {
    if (add_record(module, &segment_type, &segment_record, "StoreSegment") < 0 ||
        add_record(module, &report_type, &report_record, "StoreReport") < 0 ||
        add_record(module, &statistics_type, &statistics_record, "StoreStatistics") < 0)
        return -1;
    PyObject *type = PyType_FromSpec(&spec);
    int code = type == NULL ? -1 : PyModule_AddObjectRef(module, "Store", type);
    Py_XDECREF(type);
    return code;
}
