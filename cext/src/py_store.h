/* The engine behind a Store, for other types. */
#ifndef OS_PY_STORE_H
#define OS_PY_STORE_H

#include "py_common.h"

#include "os_store.h"

/* Borrowed from the object, which the caller keeps. NULL with a TypeError: it is none. */
os_store *os_py_store_of(PyObject *object);

#endif
