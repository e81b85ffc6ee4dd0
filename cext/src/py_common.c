#include "py_common.h"

#include <string.h>

static const char *class_name(os_code code) {
    switch (code) {
    case OS_LIMIT:
        return "LimitError";
    case OS_MISSING:
        return "MissingError";
    case OS_CLOSED:
        return "ClosedError";
    default:
        return "CorruptError";
    }
}

PyObject *os_py_raise(const os_failure *failure) {
    if (failure->code == OS_MEMORY)
        return PyErr_NoMemory();
    PyObject *value = NULL, *type = NULL;
    /* Names from outside may be in it, in any encoding. */
    PyObject *words = PyUnicode_DecodeUTF8(failure->message, (Py_ssize_t)strlen(failure->message), "backslashreplace");
    if (words == NULL)
        return NULL;
    if (failure->code == OS_SYSTEM) {
        /* OSError picks its subclass (FileNotFoundError, …) only when it is called. */
        value = PyObject_CallFunction(PyExc_OSError, "iO", failure->error, words);
        if (value != NULL)
            PyErr_SetObject((PyObject *)Py_TYPE(value), value);
        Py_XDECREF(value);
        Py_DECREF(words);
        return NULL;
    }
    PyObject *errors = PyImport_ImportModule("cext.errors");
    if (errors != NULL)
        type = PyObject_GetAttrString(errors, class_name(failure->code));
    if (type != NULL)
        PyErr_SetObject(type, words);
    Py_DECREF(words);
    Py_XDECREF(type);
    Py_XDECREF(errors);
    return NULL;
}

PyObject *os_py_record(PyTypeObject *type, int count, ...) {
    va_list values;
    PyObject *record = PyStructSequence_New(type);
    va_start(values, count);
    for (int at = 0; record != NULL && at < count; at++) {
        PyObject *value = PyLong_FromUnsignedLongLong(va_arg(values, uint64_t));
        if (value == NULL)
            Py_CLEAR(record);
        else
            PyStructSequence_SET_ITEM(record, at, value);
    }
    va_end(values);
    return record;
}
