/* What the files of cext._fetch share. */
#ifndef OS_PY_FETCH_PARTS_H
#define OS_PY_FETCH_PARTS_H

#include "py_common.h"

#include "os_fetch.h"

typedef struct os_py_fetcher {
    PyObject_HEAD os_fetch *fetch; /* owned; NULL: closed. Changed and used to submit under the GIL alone */
    os_log log;
    bool logs;        /* log is made */
    unsigned serving; /* calls of serve under way; guarded by the GIL */
} os_py_fetcher;

/* The engine of a Fetcher; NULL and an exception: it is closed. */
os_fetch *os_py_fetch_opened(PyObject *object);

/* Methods of Fetcher. */
PyObject *os_py_fetch_read(PyObject *object, PyObject *arguments, PyObject *keywords);
PyObject *os_py_fetch_ping(PyObject *object, PyObject *arguments);
PyObject *os_py_fetch_serve(PyObject *object, PyObject *arguments);
PyObject *os_py_fetch_statistics(PyObject *object, PyObject *unused);

extern PyType_Spec os_py_getter_spec;
PyObject *os_py_fetch_park(PyObject *module, PyObject *unused);
PyObject *os_py_fetch_unpark(PyObject *module, PyObject *unused);

/* Functions of the module. */
PyObject *os_py_fetch_content_range(PyObject *module, PyObject *arguments);
PyObject *os_py_fetch_retry_after(PyObject *module, PyObject *arguments);
PyObject *os_py_fetch_redirect(PyObject *module, PyObject *arguments);

#endif
