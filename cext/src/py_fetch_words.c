/* Words of a server, as the engine reads them: functions of cext._fetch. */
#include "py_fetch_parts.h"

#include "os_fetch_http.h"

PyObject *os_py_fetch_content_range(PyObject *module, PyObject *arguments) {
    Py_buffer text;
    os_http_range range;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*:content_range", &text))
        return NULL;
    bool sound = os_http_content_range(text.buf, (size_t)text.len, &range);
    PyBuffer_Release(&text);
    if (!sound)
        Py_RETURN_NONE;
    return Py_BuildValue("(KKK)", range.first, range.last, range.total);
}

PyObject *os_py_fetch_retry_after(PyObject *module, PyObject *arguments) {
    Py_buffer text;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*:retry_after", &text))
        return NULL;
    uint64_t seconds = os_http_retry_after(text.buf, (size_t)text.len);
    PyBuffer_Release(&text);
    return PyLong_FromUnsignedLongLong(seconds);
}

PyObject *os_py_fetch_redirect(PyObject *module, PyObject *arguments) {
    const char *from, *location;
    char to[OS_FETCH_URL_MAX];
    bool same;
    os_failure failure = {0};
    (void)module;
    if (!PyArg_ParseTuple(arguments, "ss:redirect", &from, &location))
        return NULL;
    if (os_http_redirect(from, location, to, sizeof to, &same, &failure) != OS_OK)
        return os_py_raise(&failure);
    return Py_BuildValue("(sN)", to, PyBool_FromLong(same));
}
