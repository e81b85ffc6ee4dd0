/* What a cext.ObjectServer is asked while it runs: a link to a fetcher, pages, and what it has done. */
#include "py_object_server.h"

#include "os_spans.h"

PyObject *os_py_object_link(PyObject *object, PyObject *argument) {
    object_server *self = (object_server *)object;
    long fd = PyLong_AsLong(argument);
    if ((fd == -1 && PyErr_Occurred()) || os_py_object_is_closed(self))
        return NULL;
    int copy = os_py_duplicate((int)fd);
    if (copy < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyBool_FromLong(os_fuse_server_link(self->server, copy));
}

PyObject *os_py_object_linked(PyObject *object, PyObject *unused) {
    object_server *self = (object_server *)object;
    (void)unused;
    if (os_py_object_is_closed(self))
        return NULL;
    os_spans *spans = os_fuse_server_spans(self->server);
    return PyBool_FromLong(spans != NULL && os_spans_linked(spans));
}

PyObject *os_py_object_add_boot(PyObject *object, PyObject *args) {
    object_server *self = (object_server *)object;
    int fd;
    unsigned long long head_size;
    uint64_t id;
    const char *digest;
    Py_ssize_t size;
    os_failure failure = {0};
    os_code code;
    if (!PyArg_ParseTuple(args, "iKy#", &fd, &head_size, &digest, &size) || os_py_object_is_closed(self))
        return NULL;
    if (size != OS_ID_SIZE)
        return PyErr_Format(PyExc_ValueError, "head: got a digest of %zd bytes, want %d", size, OS_ID_SIZE);
    int copy = os_py_duplicate(fd);
    if (copy < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    uint8_t head[OS_ID_SIZE];
    memcpy(head, digest, sizeof head);
    os_fuse_server *server = self->server;
    OS_PY_OBJECT_BEGIN(self);
    code = os_fuse_server_add_boot(server, copy, (size_t)head_size, head, &id, &failure);
    OS_PY_OBJECT_END(self);
    if (code == OS_OK)
        return PyLong_FromUnsignedLongLong(id);
    os_py_close_if(copy);
    return os_py_raise(&failure);
}

PyObject *os_py_object_remove_boot(PyObject *object, PyObject *argument) {
    object_server *self = (object_server *)object;
    unsigned long long id = PyLong_AsUnsignedLongLong(argument);
    if ((id == (unsigned long long)-1 && PyErr_Occurred()) || os_py_object_is_closed(self))
        return NULL;
    os_fuse_server_remove_boot(self->server, id);
    Py_RETURN_NONE;
}

PyObject *os_py_object_store_page(PyObject *object, PyObject *args) {
    object_server *self = (object_server *)object;
    Py_buffer id, data;
    unsigned long long offset;
    size_t stored = 0;
    os_failure failure = {0};
    os_code code = OS_MISSING;
    if (!PyArg_ParseTuple(args, "y*Ky*", &id, &offset, &data))
        return NULL;
    if (!os_py_object_is_closed(self)) {
        if (id.len != OS_ID_SIZE) {
            PyErr_Format(PyExc_ValueError, "object: got %zd bytes, want %d", id.len, OS_ID_SIZE);
        } else {
            os_fuse_server *server = self->server;
            OS_PY_OBJECT_BEGIN(self);
            code = os_fuse_server_store(server, id.buf, offset, data.buf, (size_t)data.len, &stored, &failure);
            OS_PY_OBJECT_END(self);
            if (code != OS_OK)
                os_py_raise(&failure);
        }
    }
    PyBuffer_Release(&id);
    PyBuffer_Release(&data);
    return PyErr_Occurred() ? NULL : PyLong_FromSize_t(stored);
}

PyObject *os_py_object_prefetch(PyObject *object, PyObject *args) {
    object_server *self = (object_server *)object;
    unsigned long long id, budget;
    double wait = 0;
    Py_buffer runs;
    os_failure failure = {0};
    if (!PyArg_ParseTuple(args, "Ky*K|d:prefetch", &id, &runs, &budget, &wait))
        return NULL;
    size_t count = (size_t)runs.len / sizeof(os_warm_run);
    if (os_py_object_is_closed(self)) {
        /* it has raised */
    } else if (count * sizeof(os_warm_run) != (size_t)runs.len) {
        PyErr_Format(PyExc_ValueError, "runs: got %zd bytes, want %zu for each", runs.len, sizeof(os_warm_run));
    } else if (!(wait >= 0 && wait <= 86400)) {
        PyErr_SetString(PyExc_ValueError, "wait: want seconds, 0 to 86400");
    } else if (os_fuse_server_prefetch(self->server, id, runs.buf, count, budget, (uint64_t)(wait * 1e9), &failure) !=
               OS_OK) {
        os_py_raise(&failure);
    }
    PyBuffer_Release(&runs);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

PyObject *os_py_object_learn(PyObject *object, PyObject *argument) {
    object_server *self = (object_server *)object;
    int on = PyObject_IsTrue(argument);
    if (on < 0 || os_py_object_is_closed(self))
        return NULL;
    os_fuse_server_learn(self->server, on);
    Py_RETURN_NONE;
}

PyObject *os_py_object_learned(PyObject *object, PyObject *argument) {
    object_server *self = (object_server *)object;
    unsigned long long id = PyLong_AsUnsignedLongLong(argument);
    if ((id == (unsigned long long)-1 && PyErr_Occurred()) || os_py_object_is_closed(self))
        return NULL;
    os_warm_run *runs = PyMem_Malloc(OS_FUSE_LEARNED_MAX * sizeof *runs);
    if (runs == NULL)
        return PyErr_NoMemory();
    os_fuse_server *server = self->server;
    size_t next = 0, count;
    OS_PY_OBJECT_BEGIN(self);
    count = os_fuse_server_learned(server, id, &next, runs, OS_FUSE_LEARNED_MAX);
    OS_PY_OBJECT_END(self);
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)runs, (Py_ssize_t)(count * sizeof *runs));
    PyMem_Free(runs);
    return bytes;
}

PyObject *os_py_object_node(PyObject *object, PyObject *argument) {
    object_server *self = (object_server *)object;
    char *id;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(argument, &id, &size) < 0 || os_py_object_is_closed(self))
        return NULL;
    if (size != OS_ID_SIZE)
        return PyErr_Format(PyExc_ValueError, "object: got %zd bytes, want %d", size, OS_ID_SIZE);
    return PyLong_FromUnsignedLongLong(os_fuse_server_node(self->server, (const uint8_t *)id));
}

PyObject *os_py_object_touches(PyObject *object, PyObject *unused) {
    object_server *self = (object_server *)object;
    (void)unused;
    if (os_py_object_is_closed(self))
        return NULL;
    size_t count = os_fuse_server_touches(self->server, 0, NULL, 0);
    PyObject *out = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * sizeof(os_fuse_touch)));
    if (out != NULL)
        os_fuse_server_touches(self->server, 0, (os_fuse_touch *)PyBytes_AS_STRING(out), count);
    return out;
}

PyObject *os_py_object_record(PyObject *object, PyObject *argument) {
    object_server *self = (object_server *)object;
    int on = PyObject_IsTrue(argument);
    if (on < 0 || os_py_object_is_closed(self))
        return NULL;
    os_fuse_server_record(self->server, on);
    Py_RETURN_NONE;
}

PyObject *os_py_object_statistics(PyObject *object, PyObject *unused) {
    object_server *self = (object_server *)object;
    os_fuse_statistics s;
    (void)unused;
    if (os_py_object_is_closed(self))
        return NULL;
    os_fuse_server_statistics(self->server, &s);
    return Py_BuildValue(
        "{sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK}", "lookups",
        s.lookups, "reads", s.reads, "read_bytes", s.read_bytes, "other", s.other, "errors", s.errors, "parked",
        s.parked, "parked_now", s.parked_now, "expired", s.expired, "killed", s.killed, "interrupts", s.interrupts,
        "pack_bytes", s.pack_bytes, "decoded_bytes", s.decoded_bytes, "cache_hits", s.cache_hits, "kept_bytes",
        s.kept_bytes, "keeps", s.keeps, "images", s.images, "objects", s.objects, "stores", s.stores, "stored_bytes",
        s.stored_bytes, "boot_reads", s.boot_reads, "boot_bytes", s.boot_bytes, "unmounted", s.unmounted, "fetched",
        s.spans.fetched, "fetched_bytes", s.spans.fetched_bytes, "rejected", s.spans.rejected, "evicted",
        s.spans.evicted, "flying", s.spans.flying, "queued", s.spans.queued, "links", s.spans.links,
        "prefetched_chunks", s.warm.chunks, "prefetched_bytes", s.warm.fetched, "prefetching", s.warm.orders);
}
