/* cext.ObjectServer: fuse_server.h for Python. Descriptors are duplicated, so that both sides close their own. */
#include "py_object_server.h"

#include "os_link.h"
#include "py_store.h"

bool os_py_object_is_closed(const object_server *self) {
    if (self->server != NULL)
        return false;
    os_failure failure;
    os_fail(&failure, OS_CLOSED, "object server: closed");
    os_py_raise(&failure);
    return true;
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
    os_fuse_options options = {.env = &os_env_system, .unmap = os_py_object_unmap};
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
    if (os_py_duplicate_all(sequence, &fds, &count, "fds") < 0)
        goto done;
    self->store = store == Py_None ? NULL : Py_NewRef(store);
    memcpy(options.secret, secret.buf, sizeof options.secret);
    options.profile = profile;
    options.fds = fds;
    options.fd_count = count > UINT_MAX ? UINT_MAX : (unsigned)count;
    options.proc = self->proc = os_py_duplicate(proc);
    options.log = self->log = os_py_duplicate(log);
    options.hangup = self->hangup = os_py_duplicate(hangup);
    options.memory = memory; /* mapped now, not needed later */
    options.deadline_ns = (uint64_t)(deadline * 1e9);
    options.fail_fast_ns = (uint64_t)(fail_fast * 1e9);
    if (os_fuse_server_make(&options, &self->server, &failure) != OS_OK) {
        os_py_raise(&failure);
        while (count > 0)
            os_py_close_if(fds[--count]);
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
    if (self->shut)
        return;
    self->shut = true;
    self->server = NULL;
    Py_BEGIN_ALLOW_THREADS;
    os_fuse_server_free(server);
    Py_END_ALLOW_THREADS;
    os_py_object_forget_images(self);
    Py_CLEAR(self->store);
    os_py_close_if(self->proc);
    os_py_close_if(self->log);
    os_py_close_if(self->hangup);
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
    if (((object_server *)object)->calls > 0)
        return PyErr_Format(PyExc_ValueError, "object server: got close() beside a call, want it after all calls");
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
    if (os_py_object_is_closed(self))
        return NULL;
    if (os_fuse_server_start(self->server, &failure) != OS_OK)
        return os_py_raise(&failure);
    Py_RETURN_NONE;
}

/* ---------------------------------------------------------------------- the type */

static PyMethodDef methods[] = {
    {"touches", os_py_object_touches, METH_NOARGS,
     "Each READ that was recorded, in order: `id[32], u64 offset, u32 size, u32 from, u64 began, u64 ended`. from: 0 "
     "memory, 1 store, 2 pack, 3 it had to wait; times: monotonic nanoseconds."},
    {"record", os_py_object_record, METH_O, "record(on): reads are recorded, or no more and what was is forgotten."},
    {"start", py_start, METH_NOARGS, "Starts the threads, once."},
    {"close", py_close, METH_NOARGS, "Ends the threads and answers what is parked with EIO. May be called again."},
    {"__enter__", py_enter, METH_NOARGS, NULL},
    {"__exit__", py_exit, METH_VARARGS, NULL},
    {"add_image", (PyCFunction)(void (*)(void))os_py_object_add_image, METH_VARARGS | METH_KEYWORDS,
     "add_image(tables, packs, *, label, lazy=False, expected=False, origin=0) -> int: packs are descriptors in blob "
     "row "
     "order, -1 where there is none (yet). origin: the fetcher's number for where the others come from; 0: nowhere."},
    {"remove_image", os_py_object_remove_image, METH_O,
     "remove_image(id): objects that only it had are EIO from now on."},
    {"link", os_py_object_link, METH_O,
     "link(sock) -> bool: a fetcher's socket, duplicated; False: there is a fetcher already."},
    {"linked", os_py_object_linked, METH_NOARGS, "Whether there is a fetcher."},
    {"add_pack", os_py_object_add_pack, METH_VARARGS,
     "add_pack(image, digest, fd): a pack that was missing; wakes who waits."},
    {"expect_image", os_py_object_expect_image, METH_NOARGS,
     "Look-ups of unknown objects wait from now on, until it is added."},
    {"unexpect_image", os_py_object_unexpect_image, METH_NOARGS, "An expected image will not come."},
    {"add_boot", os_py_object_add_boot, METH_VARARGS,
     "add_boot(fd, head_size, head_digest) -> int: a boot pack of this domain, whose file may still grow, answers "
     "reads "
     "before another host is asked. head_digest: of a manifest; fd is duplicated."},
    {"remove_boot", os_py_object_remove_boot, METH_O, "remove_boot(id): it answers nothing more."},
    {"store_page", os_py_object_store_page, METH_VARARGS,
     "store_page(object, offset, data) -> int: verified bytes into the page cache, clipped to the object's size."},
    {"prefetch", os_py_object_prefetch, METH_VARARGS,
     "prefetch(image, runs, budget): chunks under the runs (object, offset, length: 48 bytes each) and of their "
     "objects "
     "into the store, while nobody waits. budget: bytes of packs."},
    {"learn", os_py_object_learn, METH_O, "learn(on): keep in mind what is read, or forget it."},
    {"learned", os_py_object_learned, METH_O,
     "learned(image) -> bytes: runs of its objects in the order in which they were read, 48 bytes each."},
    {"node", os_py_object_node, METH_O, "node(object) -> int: the inode number of an object."},
    {"statistics", os_py_object_statistics, METH_NOARGS, "Counts since the start."},
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
