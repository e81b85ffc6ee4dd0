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

#endif
