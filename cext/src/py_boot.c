/* cext.BootPack: os_boot.h for Python. decode() and store() may be called from several threads: each call brings its
 * own buffers. */
#define _GNU_SOURCE
#include "py_common.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "os_boot.h"
#include "os_frame.h"

#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

typedef struct boot_pack {
    PyObject_HEAD uint8_t *head; /* owned */
    os_boot boot;                /* views head */
    uint32_t *first_run;         /* owned: of each frame */
    uint32_t *reach;             /* owned: of each frame, the objects that it and those before it need */
    os_boot_place *places;       /* owned: of each object; written before the frames that it is part of are stored */
} boot_pack;

static void finalize(PyObject *object) {
    boot_pack *self = (boot_pack *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyMem_RawFree(self->head);
    PyMem_RawFree(self->first_run);
    PyMem_RawFree(self->reach);
    PyMem_RawFree(self->places);
    type->tp_free(object);
    Py_DECREF(type);
}

static os_code open_head(boot_pack *self, const void *packed, size_t packed_size, os_failure *failure) {
    unsigned long long size = ZSTD_getFrameContentSize(packed, packed_size);
    if (size > OS_BOOT_HEAD_MAX) /* unknown and error are the largest numbers */
        return os_fail(failure, OS_CORRUPT, "boot pack: got a head that does not say its size, or over %u bytes",
                       OS_BOOT_HEAD_MAX);
    self->head = PyMem_RawMalloc((size_t)size + 1);
    ZSTD_DCtx *zstd = ZSTD_createDCtx();
    os_code code = OS_OK;
    if (self->head == NULL || zstd == NULL)
        code = os_fail(failure, OS_MEMORY, "boot pack: no memory");
    else
        code = os_frame_decompress_large(zstd, packed, packed_size, self->head, (size_t)size, failure);
    ZSTD_freeDCtx(zstd);
    if (code == OS_OK)
        code = os_boot_open(self->head, (size_t)size, &self->boot, failure);
    if (code != OS_OK)
        return code;
    self->first_run = PyMem_RawCalloc((size_t)self->boot.frame_count + 1, sizeof *self->first_run);
    self->reach = PyMem_RawCalloc((size_t)self->boot.frame_count + 1, sizeof *self->reach);
    self->places = PyMem_RawCalloc((size_t)self->boot.object_count + 1, sizeof *self->places);
    if (self->first_run == NULL || self->reach == NULL || self->places == NULL)
        return os_fail(failure, OS_MEMORY, "boot pack: no memory");
    for (uint32_t frame = 0, run = 0, reach = 0; frame < self->boot.frame_count; frame++) {
        self->first_run[frame] = run;
        for (uint32_t end = run + self->boot.frame_runs[frame]; run < end; run++)
            reach = self->boot.run_object[run] >= reach ? self->boot.run_object[run] + 1 : reach;
        self->reach[frame] = reach;
    }
    return OS_OK;
}

static PyObject *make(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", NULL};
    Py_buffer packed;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*", names, &packed))
        return NULL;
    os_failure failure = {0};
    os_code code = OS_MEMORY;
    boot_pack *self = (boot_pack *)type->tp_alloc(type, 0);
    if (self != NULL) {
        Py_BEGIN_ALLOW_THREADS;
        code = open_head(self, packed.buf, (size_t)packed.len, &failure);
        Py_END_ALLOW_THREADS;
        if (code != OS_OK) {
            Py_CLEAR(self);
            os_py_raise(&failure);
        }
    }
    PyBuffer_Release(&packed);
    return (PyObject *)self;
}

/* ---------------------------------------------------------------------- what the head says */

static PyObject *objects(PyObject *object, void *unused) {
    const os_boot *boot = &((boot_pack *)object)->boot;
    (void)unused;
    PyObject *out = PyTuple_New(boot->object_count);
    for (uint32_t row = 0; out != NULL && row < boot->object_count; row++) {
        const char *id = (const char *)boot->object_id + (size_t)row * OS_ID_SIZE;
        PyObject *one = PyBytes_FromStringAndSize(id, OS_ID_SIZE);
        if (one == NULL)
            Py_CLEAR(out);
        else
            PyTuple_SET_ITEM(out, row, one);
    }
    return out;
}

static PyObject *frames(PyObject *object, void *unused) {
    const boot_pack *self = (boot_pack *)object;
    (void)unused;
    PyObject *out = PyTuple_New(self->boot.frame_count);
    for (uint32_t frame = 0; out != NULL && frame < self->boot.frame_count; frame++) {
        PyObject *one = Py_BuildValue("II", self->boot.frame_packed[frame], self->reach[frame]);
        if (one == NULL)
            Py_CLEAR(out);
        else
            PyTuple_SET_ITEM(out, frame, one);
    }
    return out;
}

static PyObject *run_counts(PyObject *object, void *unused) {
    const os_boot *boot = &((boot_pack *)object)->boot;
    (void)unused;
    PyObject *out = PyTuple_New(boot->frame_count);
    for (uint32_t frame = 0; out != NULL && frame < boot->frame_count; frame++) {
        PyObject *one = PyLong_FromUnsignedLong(boot->frame_runs[frame]);
        if (one == NULL)
            Py_CLEAR(out);
        else
            PyTuple_SET_ITEM(out, frame, one);
    }
    return out;
}

static PyObject *runs(PyObject *object, void *unused) {
    const os_boot *boot = &((boot_pack *)object)->boot;
    (void)unused;
    PyObject *out = PyTuple_New(boot->run_count);
    for (uint32_t run = 0; out != NULL && run < boot->run_count; run++) {
        PyObject *one = Py_BuildValue("IKI", boot->run_object[run], (unsigned long long)boot->run_offset[run],
                                      boot->run_length[run]);
        if (one == NULL)
            Py_CLEAR(out);
        else
            PyTuple_SET_ITEM(out, run, one);
    }
    return out;
}

static PyObject *total(PyObject *object, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(((boot_pack *)object)->boot.total);
}

/* ---------------------------------------------------------------------- pushing */

/* Opens objects by their names below directory and notes where their pages go. Returns how many there are. */
static uint32_t open_objects(boot_pack *self, int directory, uint32_t first, uint32_t end, int *fds) {
    static const char digits[] = "0123456789abcdef";
    uint32_t count = 0;
    for (uint32_t row = first; row < end; row++) {
        const uint8_t *id = self->boot.object_id + (size_t)row * OS_ID_SIZE;
        char name[2 * OS_ID_SIZE + 2], *to = name;
        struct stat found;
        for (unsigned at = 0; at < OS_ID_SIZE; at++) {
            if (at == 1)
                *to++ = '/';
            *to++ = digits[id[at] >> 4];
            *to++ = digits[id[at] & 15];
        }
        *to = '\0';
        int fd = openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
            continue; /* its readers will learn why */
        fds[count++] = fd;
        if (fstat(fd, &found) == 0)
            self->places[row] = (os_boot_place){.node = found.st_ino, .size = (uint64_t)found.st_size};
    }
    return count;
}

static PyObject *place(PyObject *object, PyObject *args) {
    boot_pack *self = (boot_pack *)object;
    int directory;
    unsigned long long first, end;
    if (!PyArg_ParseTuple(args, "iKK", &directory, &first, &end))
        return NULL;
    if (first > end || end > self->boot.object_count)
        return PyErr_Format(PyExc_IndexError, "boot pack: got objects %llu to %llu, want them below %u", first, end,
                            self->boot.object_count);
    int *fds = PyMem_RawMalloc((size_t)(end - first + 1) * sizeof *fds);
    if (fds == NULL)
        return PyErr_NoMemory();
    uint32_t count, taken = 0;
    Py_BEGIN_ALLOW_THREADS;
    count = open_objects(self, directory, (uint32_t)first, (uint32_t)end, fds);
    Py_END_ALLOW_THREADS;
    PyObject *out = PyList_New(count);
    for (; out != NULL && taken < count; taken++) {
        PyObject *one = PyLong_FromLong(fds[taken]);
        if (one == NULL) {
            Py_CLEAR(out);
            break;
        }
        PyList_SET_ITEM(out, taken, one);
    }
    for (uint32_t at = 0; out == NULL && at < count; at++)
        close(fds[at]);
    PyMem_RawFree(fds);
    return out;
}

/* The frame's row, or an exception. */
static int row_of(const boot_pack *self, unsigned long long frame, uint32_t *row) {
    if (frame >= self->boot.frame_count) {
        PyErr_Format(PyExc_IndexError, "boot pack: got frame %llu, want below %u", frame, self->boot.frame_count);
        return -1;
    }
    *row = (uint32_t)frame;
    return 0;
}

static PyObject *reach(PyObject *object, PyObject *argument) {
    const boot_pack *self = (boot_pack *)object;
    unsigned long long frame = PyLong_AsUnsignedLongLong(argument);
    uint32_t row = 0;
    if ((frame == (unsigned long long)-1 && PyErr_Occurred()) || row_of(self, frame, &row) < 0)
        return NULL;
    return PyLong_FromUnsignedLong(self->reach[row]);
}

static PyObject *decode(PyObject *object, PyObject *args) {
    boot_pack *self = (boot_pack *)object;
    unsigned long long frame;
    uint32_t row = 0;
    Py_buffer data, plain;
    os_failure failure = {0};
    os_code code = OS_OK;
    if (!PyArg_ParseTuple(args, "Ky*w*", &frame, &data, &plain))
        return NULL;
    if (row_of(self, frame, &row) == 0 && (size_t)plain.len < self->boot.frame_plain[row]) {
        PyErr_Format(PyExc_ValueError, "boot pack: got room for %zd bytes, want %u", plain.len,
                     self->boot.frame_plain[row]);
    } else if (!PyErr_Occurred()) {
        Py_BEGIN_ALLOW_THREADS;
        ZSTD_DCtx *zstd = ZSTD_createDCtx();
        if (zstd == NULL)
            code = os_fail(&failure, OS_MEMORY, "boot pack: no memory");
        else
            code = os_boot_decode(&self->boot, row, data.buf, (size_t)data.len, zstd, plain.buf, &failure);
        ZSTD_freeDCtx(zstd);
        Py_END_ALLOW_THREADS;
        if (code != OS_OK)
            os_py_raise(&failure);
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&plain);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *store(PyObject *object, PyObject *args) {
    boot_pack *self = (boot_pack *)object;
    int fuse;
    unsigned long long frame;
    uint32_t row = 0;
    uint64_t stored = 0;
    Py_buffer plain;
    os_failure failure = {0};
    os_code code = OS_OK;
    if (!PyArg_ParseTuple(args, "iKy*", &fuse, &frame, &plain))
        return NULL;
    if (row_of(self, frame, &row) == 0 && (size_t)plain.len < self->boot.frame_plain[row]) {
        PyErr_Format(PyExc_ValueError, "boot pack: got %zd bytes, want %u", plain.len, self->boot.frame_plain[row]);
    } else if (!PyErr_Occurred()) {
        Py_BEGIN_ALLOW_THREADS;
        code = os_boot_store(&self->boot, row, self->first_run[row], plain.buf, self->places, fuse, &os_env_system,
                             &stored, &failure);
        Py_END_ALLOW_THREADS;
        if (code != OS_OK)
            os_py_raise(&failure);
    }
    PyBuffer_Release(&plain);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLongLong(stored);
}

/* cached(fd, offset, length): bytes of a file that are in the page cache; None where the kernel (before 6.5) cannot
 * say, or does not, as of files of others. fd is on the object mount itself: on an overlay the call sees nothing. */
static PyObject *cached(PyObject *module, PyObject *args) {
    int fd;
    unsigned long long offset, length;
    struct {
        uint64_t cache, dirty, writeback, evicted, recently_evicted;
    } found = {0};
    (void)module;
    if (!PyArg_ParseTuple(args, "iKK", &fd, &offset, &length))
        return NULL;
    struct {
        uint64_t offset, length;
    } range = {offset, length};
    if (syscall(SYS_cachestat, fd, &range, &found, 0) == 0)
        return PyLong_FromUnsignedLongLong(found.cache * (unsigned long long)sysconf(_SC_PAGESIZE));
    if (errno == ENOSYS || errno == EOPNOTSUPP || errno == EPERM)
        Py_RETURN_NONE;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyMethodDef methods[] = {
    {"place", place, METH_VARARGS,
     "place(directory, first, end) -> O_PATH descriptors: opens these objects in an object mount, whose pages go there "
     "from now on. What cannot be opened is left out."},
    {"reach", reach, METH_O, "reach(frame) -> the number of objects that have to be placed before it is stored."},
    {"decode", decode, METH_VARARGS,
     "decode(frame, data, plain): verifies a frame's bytes and decodes them into plain. Any thread."},
    {"store", store, METH_VARARGS,
     "store(fuse, frame, plain) -> bytes pushed: the pages of a decoded frame. Any thread."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getters[] = {
    {"objects", objects, NULL, "Ids of the objects in the order of their first page.", NULL},
    {"frames", frames, NULL,
     "(compressed length, number of objects that have to be placed before) of each frame; they follow the head.", NULL},
    {"run_counts", run_counts, NULL, "Of each frame.", NULL},
    {"runs", runs, NULL, "(row of the object, offset, length) in the order of the start.", NULL},
    {"total", total, NULL, "Bytes of all runs.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, make},
    {Py_tp_dealloc, finalize},
    {Py_tp_methods, methods},
    {Py_tp_getset, getters},
    {Py_tp_doc, "BootPack(head): a boot pack by its head's compressed bytes, which the caller has verified."},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "cext.BootPack",
    .basicsize = sizeof(boot_pack),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

static PyMethodDef functions[] = {
    {"cached", cached, METH_VARARGS, "cached(fd, offset, length) -> bytes of it in the page cache, or None."},
    {NULL, NULL, 0, NULL},
};

int os_py_add_boot(PyObject *module) {
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (type == NULL || PyModule_AddType(module, (PyTypeObject *)type) < 0) {
        Py_XDECREF(type);
        return -1;
    }
    Py_DECREF(type);
    return PyModule_AddFunctions(module, functions);
}
