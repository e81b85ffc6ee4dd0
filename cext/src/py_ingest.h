/* IngestEngine, for the files that make it up. */
#ifndef OS_PY_INGEST_H
#define OS_PY_INGEST_H

#include "py_common.h"

#include <stdbool.h>

#include "os_ingest.h"

typedef struct os_py_ingest {
    PyObject_HEAD os_ingest *ingest; /* owned; NULL: closed */
    PyObject *known;                 /* owned capsule, or NULL */
    int directory;                   /* owned */
    bool digests;                    /* the engine makes them; immutable */
    bool busy;                       /* a call runs without the GIL; guarded by the GIL */
} os_py_ingest;

/* Marks the engine busy; false with an exception if it is, or closed. Whoever entered sets busy to false. */
bool os_py_ingest_enter(os_py_ingest *self);
PyObject *os_py_ingest_refuse(const os_py_ingest *self); /* always NULL */

/* Runs one call of an engine without the GIL. */
#define OS_WITHOUT_GIL(code, call)                                                                                     \
    do {                                                                                                               \
        Py_BEGIN_ALLOW_THREADS(code) = (call);                                                                         \
        Py_END_ALLOW_THREADS                                                                                           \
    } while (0)

PyObject *os_py_ingest_add_tree(PyObject *engine, PyObject *root); /* py_walk.c */

#endif
