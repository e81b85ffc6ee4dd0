/* blake3(data, *, context=None), sha256(data). */
#include "os_hash.h"
#include "os_limits.h"
#include "os_sha256.h"
#include "py_common.h"

static PyObject *py_blake3(PyObject *module, PyObject *arguments, PyObject *keywords) {
    (void)module;
    static char *names[] = {"", "context", NULL};
    Py_buffer data;
    const char *context = NULL;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "y*|$z:blake3", names, &data, &context))
        return NULL;
    uint8_t id[32];
    Py_BEGIN_ALLOW_THREADS;
    if (context == NULL)
        os_blake3(data.buf, (size_t)data.len, id);
    else
        os_blake3_derive(context, data.buf, (size_t)data.len, id);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&data);
    return PyBytes_FromStringAndSize((const char *)id, sizeof id);
}

static PyObject *py_sha256(PyObject *module, PyObject *argument) {
    (void)module;
    Py_buffer data;
    if (PyObject_GetBuffer(argument, &data, PyBUF_SIMPLE) < 0)
        return NULL;
    uint8_t digest[32];
    Py_BEGIN_ALLOW_THREADS;
    os_sha256(data.buf, (size_t)data.len, digest);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&data);
    return PyBytes_FromStringAndSize((const char *)digest, sizeof digest);
}

static PyMethodDef methods[] = {
    {"blake3", (PyCFunction)(void (*)(void))py_blake3, METH_VARARGS | METH_KEYWORDS,
     "The 32 bytes of BLAKE3, in derive-key mode where a context is given."},
    {"sha256", py_sha256, METH_O,
     "The 32 bytes of SHA-256. For documents: hashlib is faster on blobs, and takes 2 ms to import."},
    {NULL, NULL, 0, NULL},
};

int os_py_add_hash(PyObject *module) {
    uint8_t id[OS_ID_SIZE];
    os_blake3("", 0, id); /* BLAKE3 notes what the processor can at its first call, without a lock: before any thread */
    return PyModule_AddFunctions(module, methods);
}
