/* IngestEngine: os_ingest for Python. cext/ingest.py is the face that users see. */
#include "py_ingest.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "os_ingest.h"
#include "os_limits.h"
#include "os_pack.h"
#include "os_sha256.h"

PyObject *os_py_ingest_refuse(const os_py_ingest *self) {
    os_failure failure;
    os_fail(&failure, OS_CLOSED, self->ingest ? "ingest: another call is running" : "ingest: it is closed");
    return os_py_raise(&failure);
}

bool os_py_ingest_enter(os_py_ingest *self) {
    if (!self->ingest || self->busy) {
        os_py_ingest_refuse(self);
        return false;
    }
    self->busy = true;
    return true;
}

static int engine_init(PyObject *object, PyObject *arguments, PyObject *names) {
    static char *keywords[] = {"directory", "known", "level", "threads", "pack_size", "digests", NULL};
    os_py_ingest *self = (os_py_ingest *)object;
    int directory, level = 3, threads = 0, digests = -1;
    unsigned long long pack_size = OS_PACK_MAX;
    PyObject *known = Py_None, *capsule = NULL;
    const os_known *found = NULL;
    os_failure failure;
    if (!PyArg_ParseTupleAndKeywords(arguments, names, "i|$OiiKi", keywords, &directory, &known, &level, &threads,
                                     &pack_size, &digests))
        return -1;
    if (self->ingest) {
        PyErr_SetString(PyExc_RuntimeError, "already made");
        return -1;
    }
    if (level < 1 || level > 19 || threads < 0) {
        PyErr_Format(PyExc_ValueError, "level: got %d, want 1 to 19; threads: got %d, want 0 or more", level, threads);
        return -1;
    }
    if (known != Py_None) {
        capsule = PyObject_GetAttrString(known, "_known");
        if (!capsule)
            return -1;
        found = PyCapsule_GetPointer(capsule, "cext.os_known");
        if (!found) {
            Py_DECREF(capsule);
            return -1;
        }
    }
    self->known = capsule;
    self->directory = dup(directory);
    if (self->directory < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (threads == 0)
        threads = cores > 0 && cores < 64 ? (int)cores : 1;
    os_ingest_options options = {&os_env_system,
                                 found,
                                 self->directory,
                                 level,
                                 (unsigned)threads,
                                 pack_size,
                                 digests < 0 ? os_sha256_is_fast() : digests > 0};
    self->digests = options.digests;
    if (os_ingest_make(&options, &self->ingest, &failure) != OS_OK) {
        os_py_raise(&failure);
        return -1;
    }
    return 0;
}

static PyObject *engine_close(PyObject *object, PyObject *ignored) {
    os_py_ingest *self = (os_py_ingest *)object;
    (void)ignored;
    if (self->busy)
        return os_py_ingest_refuse(self);
    os_ingest *ingest = self->ingest;
    self->ingest = NULL;
    if (ingest) {
        Py_BEGIN_ALLOW_THREADS os_ingest_free(ingest);
        Py_END_ALLOW_THREADS
    }
    if (self->directory >= 0)
        close(self->directory);
    self->directory = -1;
    Py_CLEAR(self->known);
    Py_RETURN_NONE;
}

static void engine_free(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(engine_close(object, NULL));
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *engine_new(PyTypeObject *type, PyObject *arguments, PyObject *names) {
    (void)arguments, (void)names;
    os_py_ingest *self = (os_py_ingest *)type->tp_alloc(type, 0);
    if (self)
        self->directory = -1;
    return (PyObject *)self;
}

static PyObject *engine_begin(PyObject *object, PyObject *arguments) {
    os_py_ingest *self = (os_py_ingest *)object;
    os_failure failure;
    uint32_t ticket;
    long long size = -1;
    if (!PyArg_ParseTuple(arguments, "|L", &size) || !os_py_ingest_enter(self))
        return NULL;
    os_code code = os_ingest_begin(self->ingest, size < 0 ? UINT64_MAX : (uint64_t)size, &ticket, &failure);
    self->busy = false;
    return code == OS_OK ? PyLong_FromUnsignedLong(ticket) : os_py_raise(&failure);
}

static PyObject *engine_update(PyObject *object, PyObject *data) {
    os_py_ingest *self = (os_py_ingest *)object;
    os_failure failure;
    os_code code = OS_OK;
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    if (!os_py_ingest_enter(self)) {
        PyBuffer_Release(&view);
        return NULL;
    }
    OS_WITHOUT_GIL(code, os_ingest_update(self->ingest, view.buf, (size_t)view.len, &failure));
    self->busy = false;
    PyBuffer_Release(&view);
    if (code != OS_OK)
        return os_py_raise(&failure);
    Py_RETURN_NONE;
}

static PyObject *engine_zeros(PyObject *object, PyObject *argument) {
    os_py_ingest *self = (os_py_ingest *)object;
    os_failure failure;
    os_code code;
    unsigned long long size = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred() || !os_py_ingest_enter(self))
        return NULL;
    OS_WITHOUT_GIL(code, os_ingest_zeros(self->ingest, size, &failure));
    self->busy = false;
    if (code != OS_OK)
        return os_py_raise(&failure);
    Py_RETURN_NONE;
}

static PyObject *engine_end(PyObject *object, PyObject *ignored) {
    os_py_ingest *self = (os_py_ingest *)object;
    os_failure failure;
    os_code code;
    (void)ignored;
    if (!os_py_ingest_enter(self))
        return NULL;
    OS_WITHOUT_GIL(code, os_ingest_end(self->ingest, &failure));
    self->busy = false;
    if (code != OS_OK)
        return os_py_raise(&failure);
    Py_RETURN_NONE;
}

static PyObject *engine_add_file(PyObject *object, PyObject *arguments) {
    os_py_ingest *self = (os_py_ingest *)object;
    os_failure failure;
    uint32_t ticket;
    uint64_t offset = 0;
    unsigned long long size;
    int fd;
    bool interrupted = false;
    struct stat now;
    if (!PyArg_ParseTuple(arguments, "iK", &fd, &size) || !os_py_ingest_enter(self))
        return NULL;
    os_code code = os_ingest_begin(self->ingest, size, &ticket, &failure);
    while (code == OS_OK && offset < size && !interrupted) {
        OS_WITHOUT_GIL(code, os_ingest_file_step(self->ingest, fd, size, &offset, &failure));
        interrupted = code == OS_OK && PyErr_CheckSignals() < 0;
    }
    if (code == OS_OK && !interrupted) {
        if (fstat(fd, &now) < 0)
            code = os_fail_errno(&failure, errno, "content: cannot stat");
        else if ((uint64_t)now.st_size != size)
            code =
                os_fail(&failure, OS_CORRUPT, "content: the file changed its size from %llu to %lld while it was read",
                        size, (long long)now.st_size);
        else
            OS_WITHOUT_GIL(code, os_ingest_end(self->ingest, &failure));
    }
    self->busy = false;
    if (interrupted)
        return NULL;
    return code == OS_OK ? PyLong_FromUnsignedLong(ticket) : os_py_raise(&failure);
}

static PyObject *engine_parts(PyObject *object, PyObject *argument) {
    os_py_ingest *self = (os_py_ingest *)object;
    os_failure failure;
    uint64_t size;
    const uint8_t *parts;
    size_t parts_size;
    unsigned long ticket = PyLong_AsUnsignedLong(argument);
    if (PyErr_Occurred() || !os_py_ingest_enter(self))
        return NULL;
    if (ticket > UINT32_MAX)
        ticket = UINT32_MAX;
    os_code code = os_ingest_parts(self->ingest, (uint32_t)ticket, &size, &parts, &parts_size, &failure);
    self->busy = false;
    if (code != OS_OK)
        return os_py_raise(&failure);
    return Py_BuildValue("Ky#", (unsigned long long)size, parts_size ? (const char *)parts : "",
                         (Py_ssize_t)parts_size);
}

static PyObject *packs_of(const os_ingest *ingest, bool digests) {
    PyObject *list = PyList_New(0);
    for (uint32_t row = 0; list && row < os_ingest_pack_count(ingest); row++) {
        const char *name;
        const uint8_t *table, *digest;
        uint64_t size;
        size_t table_size;
        os_ingest_pack(ingest, row, &name, &size, &table, &table_size, &digest);
        PyObject *one = Py_BuildValue("sKy#y#", name, (unsigned long long)size, table, (Py_ssize_t)table_size,
                                      digests ? digest : NULL, (Py_ssize_t)OS_ID_SIZE);
        if (!one || PyList_Append(list, one) < 0)
            Py_CLEAR(list);
        Py_XDECREF(one);
    }
    return list;
}

static PyObject *known_of(const os_ingest *ingest) {
    const uint8_t *digests;
    uint32_t count;
    os_ingest_known_packs(ingest, &digests, &count);
    PyObject *list = PyList_New(count);
    for (uint32_t row = 0; list && row < count; row++) {
        PyObject *digest = PyBytes_FromStringAndSize((const char *)digests + row * OS_ID_SIZE, OS_ID_SIZE);
        if (!digest)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, row, digest);
    }
    return list;
}

static PyObject *engine_finish(PyObject *object, PyObject *ignored) {
    os_py_ingest *self = (os_py_ingest *)object;
    os_failure failure;
    os_code code;
    os_ingest_statistics done;
    (void)ignored;
    if (!os_py_ingest_enter(self))
        return NULL;
    OS_WITHOUT_GIL(code, os_ingest_finish(self->ingest, &failure));
    self->busy = false;
    if (code != OS_OK)
        return os_py_raise(&failure);
    os_ingest_statistics_of(self->ingest, &done);
    PyObject *packs = packs_of(self->ingest, self->digests), *known = packs ? known_of(self->ingest) : NULL;
    if (!known) {
        Py_XDECREF(packs);
        return NULL;
    }
    return Py_BuildValue("NN(KKKKK)", packs, known, (unsigned long long)done.bytes, (unsigned long long)done.chunks,
                         (unsigned long long)done.known_chunks, (unsigned long long)done.same_chunks,
                         (unsigned long long)done.written);
}

static PyMethodDef methods[] = {
    {"begin", engine_begin, METH_VARARGS, NULL},
    {"update", engine_update, METH_O, NULL},
    {"zeros", engine_zeros, METH_O, NULL},
    {"end", engine_end, METH_NOARGS, NULL},
    {"add_file", engine_add_file, METH_VARARGS, NULL},
    {"add_tree", os_py_ingest_add_tree, METH_O, NULL},
    {"parts", engine_parts, METH_O, NULL},
    {"finish", engine_finish, METH_NOARGS, NULL},
    {"close", engine_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, engine_new},
    {Py_tp_init, engine_init},
    {Py_tp_dealloc, engine_free},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "cext._native.IngestEngine",
    .basicsize = sizeof(os_py_ingest),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

int os_py_add_ingest(PyObject *module) {
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (!type)
        return -1;
    int result = PyModule_AddObjectRef(module, "IngestEngine", type);
    Py_DECREF(type);
    return result;
}
