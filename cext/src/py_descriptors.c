/* Descriptors that came from Python: both sides close their own. */
#define _GNU_SOURCE
#include "py_common.h"

#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

int os_py_duplicate(int fd) {
    return fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

void os_py_close_if(int fd) {
    if (fd >= 0)
        close(fd);
}

int os_py_duplicate_all(PyObject *sequence, int **out, Py_ssize_t *count, const char *what) {
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
        fds[done] = os_py_duplicate((int)fd);
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
        os_py_close_if(fds[--done]);
    PyMem_Free(fds);
    Py_DECREF(fast);
    return -1;
}
