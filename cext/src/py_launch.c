/* cext.launch(): os_launch.h for Python. */
#include "os_launch.h"
#include "py_common.h"

typedef struct words {
    PyObject *fast;     /* owned: the sequence that keeps the bytes alive */
    const char **items; /* owned: NULL-terminated, into fast */
} words;

static void words_clear(words *list) {
    PyMem_Free(list->items);
    Py_CLEAR(list->fast);
}

/* A sequence of bytes without NUL as a C vector. Returns 0, or -1 with an exception. */
static int words_read(PyObject *object, words *list, const char *what) {
    list->items = NULL;
    list->fast = PySequence_Tuple(object);
    if (list->fast == NULL)
        return -1;
    Py_ssize_t count = PyTuple_GET_SIZE(list->fast);
    list->items = PyMem_Calloc((size_t)count + 1, sizeof *list->items);
    if (list->items == NULL) {
        PyErr_NoMemory();
        goto failed;
    }
    for (Py_ssize_t at = 0; at < count; at++) {
        char *text;
        /* With a NULL length this refuses embedded NULs. */
        if (PyBytes_AsStringAndSize(PyTuple_GET_ITEM(list->fast, at), &text, NULL) < 0)
            goto failed;
        list->items[at] = text;
    }
    return 0;
failed:
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_TypeError, "%s: want a sequence of bytes", what);
    words_clear(list);
    return -1;
}

typedef struct mounts {
    PyObject *fast;         /* owned: the sequence that keeps the targets alive */
    os_launch_mount *items; /* owned: into fast */
    size_t count;
} mounts;

static void mounts_clear(mounts *list) {
    PyMem_Free(list->items);
    Py_CLEAR(list->fast);
}

/* A sequence of (descriptor, bytes). Returns 0, or -1 with an exception. */
static int mounts_read(PyObject *object, mounts *list) {
    list->fast = PySequence_Tuple(object);
    if (list->fast == NULL)
        return -1;
    list->count = (size_t)PyTuple_GET_SIZE(list->fast);
    list->items = PyMem_Calloc(list->count + 1, sizeof *list->items);
    if (list->items == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t at = 0; at < list->count; at++) {
        PyObject *item = PyTuple_GET_ITEM(list->fast, (Py_ssize_t)at);
        if (!PyTuple_Check(item)) {
            PyErr_SetString(PyExc_TypeError, "mounts: want a sequence of (descriptor, bytes)");
            return -1;
        }
        if (!PyArg_ParseTuple(item, "iy;mounts: want a sequence of (descriptor, bytes)", &list->items[at].tree,
                              &list->items[at].target))
            return -1;
    }
    return 0;
}

static PyObject *launch(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"program", "arguments", "environment", "mounts", "streams", "unmount", "own_group", NULL};
    (void)module;
    const char *program;
    PyObject *arguments, *environment, *mounted, *unmount;
    os_launch request = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "yOO$O(iii)Op", names, &program, &arguments, &environment, &mounted,
                                     &request.streams[0], &request.streams[1], &request.streams[2], &unmount,
                                     &request.own_group))
        return NULL;
    words argv = {0}, envp = {0}, unmounted = {0};
    mounts attached = {0};
    PyObject *result = NULL;
    if (words_read(arguments, &argv, "arguments") < 0 || words_read(environment, &envp, "environment") < 0 ||
        words_read(unmount, &unmounted, "unmount") < 0 || mounts_read(mounted, &attached) < 0)
        goto done;
    request.program = program;
    request.mounts = attached.items;
    request.mount_count = attached.count;
    request.arguments = (char *const *)argv.items;
    request.environment = (char *const *)envp.items;
    request.unmount = unmounted.items;
    pid_t pid = -1;
    os_failure failure;
    os_code code;
    Py_BEGIN_ALLOW_THREADS;
    code = os_launch_start(&request, &pid, &failure);
    Py_END_ALLOW_THREADS;
    result = code == OS_OK ? PyLong_FromLong(pid) : os_py_raise(&failure);
done:
    words_clear(&argv);
    words_clear(&envp);
    words_clear(&unmounted);
    mounts_clear(&attached);
    return result;
}

PyDoc_STRVAR(launch_doc, "launch(program, arguments, environment, *, mounts, streams, unmount, own_group) -> int\n\n"
                         "Start a program as pid 1 of new pid and mount namespaces; it dies with this thread.");

static PyMethodDef functions[] = {
    {"launch", (PyCFunction)(void (*)(void))launch, METH_VARARGS | METH_KEYWORDS, launch_doc},
    {NULL, NULL, 0, NULL},
};

int os_py_add_launch(PyObject *module) {
    return PyModule_AddFunctions(module, functions);
}
