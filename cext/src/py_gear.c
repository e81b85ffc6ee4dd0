/* cut_points(data): the ends of the chunks of one data segment. */
#include "os_gear.h"
#include "py_common.h"

static PyObject *py_cut_points(PyObject *module, PyObject *object) {
    (void)module;
    Py_buffer data;
    if (PyObject_GetBuffer(object, &data, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *points = PyList_New(0);
    for (size_t at = 0, size = (size_t)data.len; points != NULL && at < size;) {
        at += os_gear_cut((const uint8_t *)data.buf + at, size - at);
        PyObject *point = PyLong_FromSize_t(at);
        if (point == NULL || PyList_Append(points, point) < 0)
            Py_CLEAR(points);
        Py_XDECREF(point);
    }
    PyBuffer_Release(&data);
    return points;
}

static PyMethodDef methods[] = {
    {"cut_points", py_cut_points, METH_O, "Where the chunks of one data segment end."},
    {NULL, NULL, 0, NULL},
};

int os_py_add_gear(PyObject *module) {
    return PyModule_AddFunctions(module, methods);
}
