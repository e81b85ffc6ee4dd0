/* What every py_<type>.c shares: failures become exceptions in one place. */
#ifndef OS_PY_COMMON_H
#define OS_PY_COMMON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "os_result.h"

/* Sets the exception of cext.errors (or OSError, MemoryError) that stands for the failure. Always returns NULL. */
PyObject *os_py_raise(const os_failure *failure);

/* An instance of a struct sequence type from count values of type uint64_t. */
PyObject *os_py_record(PyTypeObject *type, int count, ...);

/* A duplicate that is the caller's; -1 stays -1. */
int os_py_duplicate(int fd);
void os_py_close_if(int fd); /* it is one */
/* Duplicates of a sequence of descriptors. *out is owned, with everything in it. 0, or -1 with an exception. */
int os_py_duplicate_all(PyObject *sequence, int **out, Py_ssize_t *count, const char *what);

#endif
