/* The mount system calls that Python lacks, as they are: numbers in, a descriptor or None out, OSError when refused. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

static PyObject *number(long result) {
    return result < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(result);
}

static PyObject *nothing(long result) {
    if (result < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *py_fsopen(PyObject *module, PyObject *args) {
    const char *kind;
    unsigned int flags;
    long result;
    (void)module;
    if (!PyArg_ParseTuple(args, "sI", &kind, &flags))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    result = syscall(SYS_fsopen, kind, flags);
    Py_END_ALLOW_THREADS;
    return number(result);
}

static PyObject *py_fsconfig(PyObject *module, PyObject *args) {
    int context, extra;
    unsigned int command;
    const char *key, *value;
    long result;
    (void)module;
    if (!PyArg_ParseTuple(args, "iIzzi", &context, &command, &key, &value, &extra))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    result = syscall(SYS_fsconfig, context, command, key, value, extra);
    Py_END_ALLOW_THREADS;
    return nothing(result);
}

static PyObject *py_fsmount(PyObject *module, PyObject *args) {
    int context;
    unsigned int flags, attributes;
    long result;
    (void)module;
    if (!PyArg_ParseTuple(args, "iII", &context, &flags, &attributes))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    result = syscall(SYS_fsmount, context, flags, attributes);
    Py_END_ALLOW_THREADS;
    return number(result);
}

static PyObject *py_move_mount(PyObject *module, PyObject *args) {
    int from, to;
    PyObject *from_path = NULL, *to_path = NULL;
    unsigned int flags;
    long result;
    (void)module;
    if (!PyArg_ParseTuple(args, "iO&iO&I", &from, PyUnicode_FSConverter, &from_path, &to, PyUnicode_FSConverter,
                          &to_path, &flags)) {
        Py_XDECREF(from_path);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    result = syscall(SYS_move_mount, from, PyBytes_AS_STRING(from_path), to, PyBytes_AS_STRING(to_path), flags);
    Py_END_ALLOW_THREADS;
    PyObject *answer = nothing(result);
    Py_DECREF(from_path);
    Py_DECREF(to_path);
    return answer;
}

static PyObject *py_open_tree(PyObject *module, PyObject *args) {
    int directory;
    PyObject *path = NULL;
    unsigned int flags;
    long result;
    (void)module;
    if (!PyArg_ParseTuple(args, "iO&I", &directory, PyUnicode_FSConverter, &path, &flags))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    result = syscall(SYS_open_tree, directory, PyBytes_AS_STRING(path), flags);
    Py_END_ALLOW_THREADS;
    PyObject *answer = number(result);
    Py_DECREF(path);
    return answer;
}

static PyObject *py_mount(PyObject *module, PyObject *args) {
    PyObject *target = NULL;
    const char *source, *kind, *data;
    unsigned long flags;
    int result;
    (void)module;
    if (!PyArg_ParseTuple(args, "zO&zkz", &source, PyUnicode_FSConverter, &target, &kind, &flags, &data))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    result = mount(source, PyBytes_AS_STRING(target), kind, flags, data);
    Py_END_ALLOW_THREADS;
    PyObject *answer = nothing(result);
    Py_DECREF(target);
    return answer;
}

static PyObject *py_umount2(PyObject *module, PyObject *args) {
    PyObject *target = NULL;
    int flags, result;
    (void)module;
    if (!PyArg_ParseTuple(args, "O&i", PyUnicode_FSConverter, &target, &flags))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    result = umount2(PyBytes_AS_STRING(target), flags);
    Py_END_ALLOW_THREADS;
    PyObject *answer = nothing(result);
    Py_DECREF(target);
    return answer;
}

static PyObject *py_unshare(PyObject *module, PyObject *args) {
    int flags;
    (void)module;
    if (!PyArg_ParseTuple(args, "i", &flags))
        return NULL;
    return nothing(unshare(flags));
}

static PyMethodDef functions[] = {
    {"fsopen", py_fsopen, METH_VARARGS, "fsopen(kind, flags) -> int: fsopen(2)."},
    {"fsconfig", py_fsconfig, METH_VARARGS,
     "fsconfig(context, command, key, value, extra): fsconfig(2), strings only."},
    {"fsmount", py_fsmount, METH_VARARGS, "fsmount(context, flags, attributes) -> int: fsmount(2)."},
    {"move_mount", py_move_mount, METH_VARARGS, "move_mount(from, from_path, to, to_path, flags): move_mount(2)."},
    {"open_tree", py_open_tree, METH_VARARGS, "open_tree(directory, path, flags) -> int: open_tree(2)."},
    {"mount", py_mount, METH_VARARGS, "mount(source, target, kind, flags, data): mount(2)."},
    {"umount2", py_umount2, METH_VARARGS, "umount2(target, flags): umount2(2)."},
    {"unshare", py_unshare, METH_VARARGS, "unshare(flags): unshare(2)."},
    {NULL, NULL, 0, NULL},
};

int os_py_add_mount(PyObject *module) {
    return PyModule_AddFunctions(module, functions);
}
