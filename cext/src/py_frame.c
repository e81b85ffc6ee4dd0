/* compress_frame(data, level=3), decompress_frame(frame, size). For tests and tools: a context is made for each call.
 */
#include "os_frame.h"
#include "os_limits.h"
#include "py_common.h"

static PyObject *py_compress(PyObject *module, PyObject *arguments, PyObject *keywords) {
    (void)module;
    static char *names[] = {"", "level", NULL};
    Py_buffer data;
    int level = 3;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "y*|i:compress_frame", names, &data, &level))
        return NULL;
    os_failure failure = {0};
    size_t size = (size_t)data.len, length = 0;
    size_t capacity = OS_FRAME_BOUND(size > OS_FRAME_MAX ? 0 : size);
    PyObject *out = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)capacity);
    ZSTD_CCtx *zstd = ZSTD_createCCtx();
    os_code code = OS_OK;
    if (out == NULL || zstd == NULL)
        code = os_fail(&failure, OS_MEMORY, "frame: no memory");
    else {
        void *place = PyBytes_AS_STRING(out);
        Py_BEGIN_ALLOW_THREADS;
        code = os_frame_compress(zstd, level, data.buf, size, place, capacity, &length, &failure);
        Py_END_ALLOW_THREADS;
    }
    ZSTD_freeCCtx(zstd);
    PyBuffer_Release(&data);
    if (code == OS_OK)
        _PyBytes_Resize(&out, (Py_ssize_t)length);
    else {
        Py_CLEAR(out);
        os_py_raise(&failure);
    }
    return out;
}

static PyObject *py_decompress(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer frame;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(arguments, "y*n:decompress_frame", &frame, &size))
        return NULL;
    os_failure failure = {0};
    PyObject *out = NULL;
    ZSTD_DCtx *zstd = NULL;
    os_code code = OS_OK;
    if (size < 0 || size > (Py_ssize_t)OS_FRAME_MAX)
        code = os_fail(&failure, OS_LIMIT, "frame: got %zd bytes, want at most %u", size, OS_FRAME_MAX);
    else if ((out = PyBytes_FromStringAndSize(NULL, size)) == NULL || (zstd = ZSTD_createDCtx()) == NULL)
        code = os_fail(&failure, OS_MEMORY, "frame: no memory");
    else {
        void *place = PyBytes_AS_STRING(out);
        Py_BEGIN_ALLOW_THREADS;
        code = os_frame_decompress(zstd, frame.buf, (size_t)frame.len, place, (size_t)size, &failure);
        Py_END_ALLOW_THREADS;
    }
    ZSTD_freeDCtx(zstd);
    PyBuffer_Release(&frame);
    if (code != OS_OK) {
        Py_CLEAR(out);
        os_py_raise(&failure);
    }
    return out;
}

static PyMethodDef methods[] = {
    {"compress_frame", (PyCFunction)(void (*)(void))py_compress, METH_VARARGS | METH_KEYWORDS, "One zstd frame."},
    {"decompress_frame", py_decompress, METH_VARARGS, "The exact bytes of one zstd frame."},
    {NULL, NULL, 0, NULL},
};

int os_py_add_frame(PyObject *module) {
    return PyModule_AddFunctions(module, methods);
}
