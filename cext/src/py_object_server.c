/* cext.ObjectServer: fuse_server.h for Python. Descriptors are duplicated, so that both sides close their own. */
#define _GNU_SOURCE
#include "py_common.h"

#include <errno.h>
#include <fcntl.h>
#include <structmember.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuse_server.h"
#include "os_link.h"
#include "os_pack_files.h"
#include "os_remote.h"
#include "os_tables.h"
#include "py_store.h"

/* The packs of an image, to hand in descriptors later. */
typedef struct added_image {
    struct added_image *next; /* owned */
    uint64_t id;
    uint32_t blobs;
    uint8_t (*digest)[OS_ID_SIZE]; /* owned */
    os_pack_files *files;          /* borrowed from the server, which keeps it until the image is removed */
} added_image;

typedef struct object_server {
    PyObject_HEAD os_fuse_server *server; /* owned; NULL: closed */
    added_image *images;                  /* owned; guarded by the GIL */
    int proc, log, hangup;                /* owned, or -1 */
    PyObject *store;                      /* owned, or NULL; outlives the server's threads */
} object_server;

static int duplicate(int fd) {
    return fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

static void close_if(int fd) {
    if (fd >= 0)
        close(fd);
}

static void unmap_tables(void *mapping, size_t size) {
    munmap(mapping, size);
}

static void free_added(added_image *added) {
    PyMem_Free(added->digest);
    PyMem_Free(added);
}

static int is_closed(object_server *self) {
    if (self->server != NULL)
        return 0;
    os_failure failure;
    os_fail(&failure, OS_CLOSED, "object server: closed");
    os_py_raise(&failure);
    return 1;
}

/* ---------------------------------------------------------------------- descriptors from Python */

/* Duplicates of a sequence of descriptors (-1 stays -1). *out is owned, with everything in it. 0, or -1 with an
 * exception. */
static int duplicate_all(PyObject *sequence, int **out, Py_ssize_t *count, const char *what) {
    PyObject *fast = PySequence_Tuple(sequence);
    int *fds = NULL;
    Py_ssize_t done = 0;
    if (fast == NULL)
        return -1;
    *count = PyTuple_GET_SIZE(fast);
    fds = PyMem_Calloc((size_t)*count + 1, sizeof *fds);
    if (fds == NULL) {
        PyErr_NoMemory();
        goto failed;
    }
    for (; done < *count; done++) {
        long fd = PyLong_AsLong(PyTuple_GET_ITEM(fast, done));
        if (fd == -1 && PyErr_Occurred())
            goto failed;
        if (fd < -1 || fd > INT_MAX) {
            PyErr_Format(PyExc_ValueError, "%s: got descriptor %ld", what, fd);
            goto failed;
        }
        fds[done] = duplicate((int)fd);
        if (fd >= 0 && fds[done] < 0) {
            PyErr_SetFromErrno(PyExc_OSError);
            goto failed;
        }
    }
    Py_DECREF(fast);
    *out = fds;
    return 0;
failed:
    while (done > 0)
        close_if(fds[--done]);
    PyMem_Free(fds);
    Py_DECREF(fast);
    return -1;
}

/* ---------------------------------------------------------------------- life */

static int init(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"fds",       "secret", "proc",    "log",    "hangup", "deadline",
                            "fail_fast", "store",  "profile", "memory", NULL};
    object_server *self = (object_server *)object;
    PyObject *sequence, *store = Py_None;
    Py_buffer secret = {0};
    int proc = -1, log = -1, hangup = -1, memory = -1;
    double deadline = 120, fail_fast = 5;
    int profile = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$y*iiiddOpi", names, &sequence, &secret, &proc, &log, &hangup,
                                     &deadline, &fail_fast, &store, &profile, &memory))
        return -1;
    int *fds = NULL, result = -1;
    Py_ssize_t count = 0;
    os_failure failure = {0};
    os_fuse_options options = {.env = &os_env_system, .unmap = unmap_tables};
    if (self->server != NULL) {
        PyErr_SetString(PyExc_TypeError, "ObjectServer: initialised before");
        goto done;
    }
    if (secret.buf == NULL || secret.len != sizeof options.secret) {
        PyErr_Format(PyExc_ValueError, "secret: got %zd bytes, want %zu", secret.buf == NULL ? 0 : secret.len,
                     sizeof options.secret);
        goto done;
    }
    if (!(deadline >= 0 && deadline < 1e9 && fail_fast >= 0 && fail_fast < 1e9)) {
        PyErr_SetString(PyExc_ValueError, "deadline, fail_fast: want seconds");
        goto done;
    }
    if (store != Py_None && (options.store = os_py_store_of(store)) == NULL)
        goto done;
    if (duplicate_all(sequence, &fds, &count, "fds") < 0)
        goto done;
    self->store = store == Py_None ? NULL : Py_NewRef(store);
    memcpy(options.secret, secret.buf, sizeof options.secret);
    options.profile = profile;
    options.fds = fds;
    options.fd_count = count > UINT_MAX ? UINT_MAX : (unsigned)count;
    options.proc = self->proc = duplicate(proc);
    options.log = self->log = duplicate(log);
    options.hangup = self->hangup = duplicate(hangup);
    options.memory = memory; /* mapped now, not needed later */
    options.deadline_ns = (uint64_t)(deadline * 1e9);
    options.fail_fast_ns = (uint64_t)(fail_fast * 1e9);
    if (os_fuse_server_make(&options, &self->server, &failure) != OS_OK) {
        os_py_raise(&failure);
        while (count > 0)
            close_if(fds[--count]);
        goto done;
    }
    result = 0;
done:
    PyMem_Free(fds);
    PyBuffer_Release(&secret);
    return result;
}

static PyObject *make(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)args;
    (void)kwargs;
    object_server *self = (object_server *)type->tp_alloc(type, 0);
    if (self != NULL)
        self->proc = self->log = self->hangup = -1;
    return (PyObject *)self;
}

static void shut(object_server *self) {
    os_fuse_server *server = self->server;
    self->server = NULL;
    Py_BEGIN_ALLOW_THREADS;
    os_fuse_server_free(server);
    Py_END_ALLOW_THREADS;
    while (self->images != NULL) {
        added_image *added = self->images;
        self->images = added->next;
        free_added(added);
    }
    Py_CLEAR(self->store);
    close_if(self->proc);
    close_if(self->log);
    close_if(self->hangup);
    self->proc = self->log = self->hangup = -1;
}

static void finalize(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    shut((object_server *)object);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *py_close(PyObject *object, PyObject *unused) {
    (void)unused;
    shut((object_server *)object);
    Py_RETURN_NONE;
}

static PyObject *py_enter(PyObject *object, PyObject *unused) {
    (void)unused;
    return Py_NewRef(object);
}

static PyObject *py_exit(PyObject *object, PyObject *args) {
    (void)args;
    return py_close(object, NULL);
}

static PyObject *py_start(PyObject *object, PyObject *unused) {
    object_server *self = (object_server *)object;
    os_failure failure = {0};
    (void)unused;
    if (is_closed(self))
        return NULL;
    if (os_fuse_server_start(self->server, &failure) != OS_OK)
        return os_py_raise(&failure);
    Py_RETURN_NONE;
}

/* ---------------------------------------------------------------------- images */

static void *map_tables(int fd, size_t *size) {
    struct stat found;
    if (fstat(fd, &found) < 0)
        return NULL;
    if (found.st_size < (off_t)OS_TABLES_HEADER || (uint64_t)found.st_size > OS_INDEX_MAX) {
        errno = EINVAL;
        return NULL;
    }
    *size = (size_t)found.st_size;
    void *mapping = mmap(NULL, *size, PROT_READ, MAP_SHARED, fd, 0);
    return mapping == MAP_FAILED ? NULL : mapping;
}

static added_image *make_added(const void *mapping, size_t size, Py_ssize_t packs) {
    const uint8_t *data = mapping;
    uint32_t blobs;
    memcpy(&blobs, data + 8, sizeof blobs);
    if (blobs != packs || blobs > (size - OS_TABLES_HEADER) / sizeof(os_tables_blob)) {
        os_failure failure;
        os_fail(&failure, OS_CORRUPT, "tables: got %u packs, want the %zd that came with them", blobs, packs);
        os_py_raise(&failure);
        return NULL;
    }
    added_image *added = PyMem_Calloc(1, sizeof *added);
    if (added != NULL)
        added->digest = PyMem_Malloc((size_t)blobs * OS_ID_SIZE + 1);
    if (added == NULL || added->digest == NULL) {
        PyMem_Free(added);
        PyErr_NoMemory();
        return NULL;
    }
    added->blobs = blobs;
    for (uint32_t row = 0; row < blobs; row++)
        memcpy(added->digest[row], data + OS_TABLES_HEADER + row * sizeof(os_tables_blob), OS_ID_SIZE);
    return added;
}

/* The source takes the files. context NULL and an exception: nothing is taken. */
static os_source source_of(object_server *self, added_image *added, const uint8_t *tables, uint32_t origin) {
    if (origin == 0)
        return os_pack_files_source(added->files);
    os_source none = {0}, source;
    os_spans *spans = os_fuse_server_spans(self->server);
    os_blob *blobs = PyMem_Calloc((size_t)added->blobs + 1, sizeof *blobs);
    if (spans == NULL || blobs == NULL) {
        PyMem_Free(blobs);
        if (spans == NULL)
            PyErr_SetString(PyExc_ValueError, "origin: the server was made without memory for a fetcher");
        else
            PyErr_NoMemory();
        return none;
    }
    for (uint32_t row = 0; row < added->blobs; row++) {
        os_tables_blob blob;
        memcpy(&blob, tables + OS_TABLES_HEADER + row * sizeof blob, sizeof blob);
        memcpy(blobs[row].digest, blob.digest, OS_ID_SIZE);
        blobs[row].size = blob.size;
        blobs[row].origin = origin;
    }
    source = os_remote_source(&os_env_system, added->files, spans, blobs, added->blobs);
    PyMem_Free(blobs);
    if (source.context == NULL)
        PyErr_NoMemory();
    return source;
}

static PyObject *add_image(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"tables", "packs", "label", "lazy", "expected", "origin", NULL};
    object_server *self = (object_server *)object;
    PyObject *sequence;
    const char *label = "image";
    int tables, lazy = 0, expected = 0;
    unsigned origin = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iO|$sppI", names, &tables, &sequence, &label, &lazy, &expected,
                                     &origin))
        return NULL;
    if (is_closed(self))
        return NULL;
    int *fds = NULL;
    Py_ssize_t count = 0;
    size_t size = 0;
    added_image *added = NULL;
    os_failure failure = {0};
    os_code code;
    if (duplicate_all(sequence, &fds, &count, "packs") < 0)
        return NULL;
    void *mapping = map_tables(tables, &size);
    if (mapping == NULL) {
        PyErr_SetFromErrno(PyExc_OSError);
        goto failed;
    }
    added = make_added(mapping, size, count);
    if (added == NULL)
        goto failed;
    added->files = os_pack_files_make(&os_env_system, added->blobs, lazy);
    if (added->files == NULL) {
        PyErr_NoMemory();
        goto failed;
    }
    for (Py_ssize_t at = 0; at < count; at++)
        if (fds[at] >= 0)
            os_pack_files_set(added->files, (uint32_t)at, fds[at]);
    count = 0; /* the source has them now */
    os_fuse_server *server = self->server;
    os_source source = source_of(self, added, mapping, origin);
    if (source.context == NULL)
        goto failed;
    Py_BEGIN_ALLOW_THREADS;
    code = os_fuse_server_add(server, mapping, size, source, label, expected, &added->id, &failure);
    Py_END_ALLOW_THREADS;
    if (code != OS_OK) {
        source.release(source.context);
        added->files = NULL;
        os_py_raise(&failure);
        goto failed;
    }
    PyMem_Free(fds);
    added->next = self->images;
    self->images = added;
    return PyLong_FromUnsignedLongLong(added->id);
failed:
    while (count > 0)
        close_if(fds[--count]);
    PyMem_Free(fds);
    if (mapping != NULL)
        munmap(mapping, size);
    if (added != NULL) {
        os_pack_files_free(added->files);
        free_added(added);
    }
    return NULL;
}

static PyObject *remove_image(PyObject *object, PyObject *argument) {
    object_server *self = (object_server *)object;
    unsigned long long id = PyLong_AsUnsignedLongLong(argument);
    os_failure failure = {0};
    os_code code;
    if ((id == (unsigned long long)-1 && PyErr_Occurred()) || is_closed(self))
        return NULL;
    for (added_image **place = &self->images; *place != NULL; place = &(*place)->next) {
        added_image *added = *place;
        if (added->id != id)
            continue;
        *place = added->next;
        free_added(added);
        break;
    }
    os_fuse_server *server = self->server;
    Py_BEGIN_ALLOW_THREADS;
    code = os_fuse_server_remove(server, id, &failure);
    Py_END_ALLOW_THREADS;
    if (code != OS_OK)
        return os_py_raise(&failure);
    Py_RETURN_NONE;
}

static PyObject *py_link(PyObject *object, PyObject *argument) {
    object_server *self = (object_server *)object;
    long fd = PyLong_AsLong(argument);
    if ((fd == -1 && PyErr_Occurred()) || is_closed(self))
        return NULL;
    int copy = duplicate((int)fd);
    if (copy < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyBool_FromLong(os_fuse_server_link(self->server, copy));
}

static PyObject *py_linked(PyObject *object, PyObject *unused) {
    object_server *self = (object_server *)object;
    (void)unused;
    if (is_closed(self))
        return NULL;
    os_spans *spans = os_fuse_server_spans(self->server);
    return PyBool_FromLong(spans != NULL && os_spans_linked(spans));
}

static PyObject *add_pack(PyObject *object, PyObject *args) {
    object_server *self = (object_server *)object;
    unsigned long long id;
    const char *digest;
    Py_ssize_t size;
    int fd;
    if (!PyArg_ParseTuple(args, "Ky#i", &id, &digest, &size, &fd) || is_closed(self))
        return NULL;
    for (added_image *added = self->images; size == OS_ID_SIZE && added != NULL; added = added->next) {
        for (uint32_t row = 0; added->id == id && row < added->blobs; row++) {
            if (memcmp(added->digest[row], digest, OS_ID_SIZE) != 0)
                continue;
            int copy = duplicate(fd);
            if (copy < 0)
                return PyErr_SetFromErrno(PyExc_OSError);
            os_pack_files_set(added->files, row, copy);
            os_fuse_server_wake(self->server, (const uint8_t *)digest, 0, UINT64_MAX);
            Py_RETURN_NONE;
        }
    }
    os_failure failure;
    os_fail(&failure, OS_MISSING, "object server: got a pack that image %llu does not have", id);
    return os_py_raise(&failure);
}

static PyObject *expect_image(PyObject *object, PyObject *unused) {
    object_server *self = (object_server *)object;
    (void)unused;
    if (is_closed(self))
        return NULL;
    os_fuse_server_expect(self->server, 1);
    Py_RETURN_NONE;
}

static PyObject *unexpect_image(PyObject *object, PyObject *unused) {
    object_server *self = (object_server *)object;
    (void)unused;
    if (is_closed(self))
        return NULL;
    os_fuse_server_expect(self->server, -1);
    Py_RETURN_NONE;
}

static PyObject *store_page(PyObject *object, PyObject *args) {
    object_server *self = (object_server *)object;
    Py_buffer id, data;
    unsigned long long offset;
    size_t stored = 0;
    os_failure failure = {0};
    os_code code = OS_MISSING;
    if (!PyArg_ParseTuple(args, "y*Ky*", &id, &offset, &data))
        return NULL;
    if (!is_closed(self)) {
        if (id.len != OS_ID_SIZE) {
            PyErr_Format(PyExc_ValueError, "object: got %zd bytes, want %d", id.len, OS_ID_SIZE);
        } else {
            os_fuse_server *server = self->server;
            Py_BEGIN_ALLOW_THREADS;
            code = os_fuse_server_store(server, id.buf, offset, data.buf, (size_t)data.len, &stored, &failure);
            Py_END_ALLOW_THREADS;
            if (code != OS_OK)
                os_py_raise(&failure);
        }
    }
    PyBuffer_Release(&id);
    PyBuffer_Release(&data);
    return PyErr_Occurred() ? NULL : PyLong_FromSize_t(stored);
}

static PyObject *node(PyObject *object, PyObject *argument) {
    object_server *self = (object_server *)object;
    char *id;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(argument, &id, &size) < 0 || is_closed(self))
        return NULL;
    if (size != OS_ID_SIZE)
        return PyErr_Format(PyExc_ValueError, "object: got %zd bytes, want %d", size, OS_ID_SIZE);
    return PyLong_FromUnsignedLongLong(os_fuse_server_node(self->server, (const uint8_t *)id));
}

static PyObject *touches(PyObject *object, PyObject *unused) {
    object_server *self = (object_server *)object;
    (void)unused;
    if (is_closed(self))
        return NULL;
    size_t count = os_fuse_server_touches(self->server, 0, NULL, 0);
    PyObject *out = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * sizeof(os_fuse_touch)));
    if (out != NULL)
        os_fuse_server_touches(self->server, 0, (os_fuse_touch *)PyBytes_AS_STRING(out), count);
    return out;
}

static PyObject *record(PyObject *object, PyObject *argument) {
    object_server *self = (object_server *)object;
    int on = PyObject_IsTrue(argument);
    if (on < 0 || is_closed(self))
        return NULL;
    os_fuse_server_record(self->server, on);
    Py_RETURN_NONE;
}

static PyObject *statistics(PyObject *object, PyObject *unused) {
    object_server *self = (object_server *)object;
    os_fuse_statistics s;
    (void)unused;
    if (is_closed(self))
        return NULL;
    os_fuse_server_statistics(self->server, &s);
    return Py_BuildValue("{sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK}",
                         "lookups", s.lookups, "reads", s.reads, "read_bytes", s.read_bytes, "other", s.other, "errors",
                         s.errors, "parked", s.parked, "parked_now", s.parked_now, "expired", s.expired, "killed",
                         s.killed, "interrupts", s.interrupts, "pack_bytes", s.pack_bytes, "decoded_bytes",
                         s.decoded_bytes, "cache_hits", s.cache_hits, "kept_bytes", s.kept_bytes, "keeps", s.keeps,
                         "images", s.images, "objects", s.objects, "stores", s.stores, "stored_bytes", s.stored_bytes,
                         "unmounted", s.unmounted, "fetched", s.spans.fetched, "fetched_bytes", s.spans.fetched_bytes,
                         "rejected", s.spans.rejected, "evicted", s.spans.evicted, "flying", s.spans.flying, "queued",
                         s.spans.queued, "links", s.spans.links);
}

static PyMethodDef methods[] = {
    {"touches", touches, METH_NOARGS,
     "Each READ that was recorded, in order: `id[32], u64 offset, u32 size, u32 from, u64 began, u64 ended`. from: 0 "
     "memory, 1 store, 2 pack, 3 it had to wait; times: monotonic nanoseconds."},
    {"record", record, METH_O, "record(on): reads are recorded, or no more and what was is forgotten."},
    {"start", py_start, METH_NOARGS, "Starts the threads, once."},
    {"close", py_close, METH_NOARGS, "Ends the threads and answers what is parked with EIO. May be called again."},
    {"__enter__", py_enter, METH_NOARGS, NULL},
    {"__exit__", py_exit, METH_VARARGS, NULL},
    {"add_image", (PyCFunction)(void (*)(void))add_image, METH_VARARGS | METH_KEYWORDS,
     "add_image(tables, packs, *, label, lazy=False, expected=False, origin=0) -> int: packs are descriptors in blob "
     "row "
     "order, -1 where there is none (yet). origin: the fetcher's number for where the others come from; 0: nowhere."},
    {"remove_image", remove_image, METH_O, "remove_image(id): objects that only it had are EIO from now on."},
    {"link", py_link, METH_O, "link(sock) -> bool: a fetcher's socket, duplicated; False: there is a fetcher already."},
    {"linked", py_linked, METH_NOARGS, "Whether there is a fetcher."},
    {"add_pack", add_pack, METH_VARARGS, "add_pack(image, digest, fd): a pack that was missing; wakes who waits."},
    {"expect_image", expect_image, METH_NOARGS, "Look-ups of unknown objects wait from now on, until it is added."},
    {"unexpect_image", unexpect_image, METH_NOARGS, "An expected image will not come."},
    {"store_page", store_page, METH_VARARGS,
     "store_page(object, offset, data) -> int: verified bytes into the page cache, clipped to the object's size."},
    {"node", node, METH_O, "node(object) -> int: the inode number of an object."},
    {"statistics", statistics, METH_NOARGS, "Counts since the start."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, make},
    {Py_tp_init, init},
    {Py_tp_dealloc, finalize},
    {Py_tp_methods, methods},
    {Py_tp_doc,
     "ObjectServer(fds, *, secret, proc=-1, log=-1, hangup=-1, deadline=120.0, fail_fast=5.0, store=None, "
     "profile=False, memory=-1): the object server of one FUSE mount, a thread for each descriptor. Descriptors "
     "are duplicated. memory: what a fetcher puts bytes into, sealed, of cext.SLOTS_SIZE bytes."},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "cext._native.ObjectServer",
    .basicsize = sizeof(object_server),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

int os_py_add_object_server(PyObject *module) {
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (type == NULL)
        return -1;
    int result = PyModule_AddObjectRef(module, "ObjectServer", type);
    Py_DECREF(type);
    return result < 0 ? -1 : PyModule_AddIntConstant(module, "SLOTS_SIZE", (long)OS_SLOTS_SIZE);
}
