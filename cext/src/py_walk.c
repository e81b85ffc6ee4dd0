/* IngestEngine.add_tree(fd) -> (layer index, notes): os_walk for Python. */
#include "py_ingest.h"

#include <string.h>

#include "os_walk.h"

#define STEPS 256 /* between two looks for Ctrl-C; a step is a name, or 16 MiB */

static os_code some_steps(os_walk *walk, bool *done, os_failure *failure) {
    os_code code = OS_OK;
    for (int step = 0; step < STEPS && code == OS_OK && !*done; step++)
        code = os_walk_step(walk, done, failure);
    return code;
}

static PyObject *notes_of(const os_walk *walk) {
    size_t size;
    const char *notes = os_walk_notes(walk, &size);
    PyObject *list = PyList_New(0);
    for (size_t at = 0; list && at < size; at += strlen(notes + at) + 1) {
        PyObject *note = PyUnicode_DecodeUTF8(notes + at, (Py_ssize_t)strlen(notes + at), "surrogateescape");
        if (!note || PyList_Append(list, note) < 0)
            Py_CLEAR(list);
        Py_XDECREF(note);
    }
    return list;
}

static PyObject *result_of(os_walk *walk) {
    os_failure failure;
    os_code code;
    const uint8_t *index = NULL;
    size_t size = 0;
    OS_WITHOUT_GIL(code, os_walk_encode(walk, &index, &size, &failure));
    if (code != OS_OK)
        return os_py_raise(&failure);
    PyObject *notes = notes_of(walk);
    return notes ? Py_BuildValue("y#N", (const char *)index, (Py_ssize_t)size, notes) : NULL;
}

PyObject *os_py_ingest_add_tree(PyObject *engine, PyObject *root) {
    os_py_ingest *self = (os_py_ingest *)engine;
    os_failure failure;
    os_walk *walk = NULL;
    PyObject *result = NULL;
    bool done = false;
    int fd = PyObject_AsFileDescriptor(root);
    if (fd < 0 || !os_py_ingest_enter(self))
        return NULL;
    os_code code = os_walk_make(&os_env_system, self->ingest, fd, &walk, &failure);
    while (code == OS_OK && !done) {
        OS_WITHOUT_GIL(code, some_steps(walk, &done, &failure));
        if (code == OS_OK && PyErr_CheckSignals() < 0)
            break;
    }
    if (code != OS_OK)
        os_py_raise(&failure);
    else if (done && !PyErr_Occurred())
        result = result_of(walk);
    os_walk_free(walk);
    self->busy = false;
    return result;
}
