/* pack_table(fd), pack_columns(table, size): the tables that close packs. */
#include "py_common.h"

#include <sys/stat.h>
#include <unistd.h>

#include "os_limits.h"
#include "os_pack.h"

static PyObject *read_pack_table(PyObject *module, PyObject *argument) {
    os_failure failure;
    os_pack_table table;
    uint8_t tail[16];
    uint32_t size;
    struct stat now;
    int fd = PyObject_AsFileDescriptor(argument);
    (void)module;
    if (fd < 0)
        return NULL;
    if (fstat(fd, &now) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    uint64_t blob = (uint64_t)now.st_size;
    if (blob < sizeof tail || pread(fd, tail, sizeof tail, now.st_size - (off_t)sizeof tail) != (ssize_t)sizeof tail) {
        os_fail(&failure, OS_CORRUPT, "pack: it does not end with a table");
        return os_py_raise(&failure);
    }
    if (os_pack_footer(tail, blob, &size, &failure) != OS_OK)
        return os_py_raise(&failure);
    PyObject *payload = PyBytes_FromStringAndSize(NULL, size);
    if (!payload)
        return NULL;
    uint8_t *data = (uint8_t *)PyBytes_AS_STRING(payload);
    os_code code = OS_OK;
    if (pread(fd, data, size, (off_t)(blob - size)) != (ssize_t)size)
        code = os_fail(&failure, OS_CORRUPT, "pack: it changed while it was read");
    if (code == OS_OK)
        code = os_pack_table_parse(data, size, blob, &table, &failure);
    if (code == OS_OK)
        return payload;
    Py_DECREF(payload);
    return os_py_raise(&failure);
}

static PyObject *column_of(const uint8_t *column, uint32_t count) {
    PyObject *tuple = PyTuple_New(count);
    for (uint32_t row = 0; tuple && row < count; row++) {
        PyObject *value = PyLong_FromUnsignedLong(os_pack_u32(column, row));
        if (!value)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, row, value);
    }
    return tuple;
}

static PyObject *pack_columns(PyObject *module, PyObject *arguments) {
    os_failure failure;
    os_pack_table table;
    Py_buffer view;
    unsigned long long blob;
    PyObject *result = NULL;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*K", &view, &blob))
        return NULL;
    if (os_pack_table_parse(view.buf, (size_t)view.len, blob, &table, &failure) != OS_OK) {
        os_py_raise(&failure);
    } else {
        PyObject *clen = column_of(table.frame_clen, table.frame_count);
        PyObject *ulen = clen ? column_of(table.frame_ulen, table.frame_count) : NULL;
        PyObject *counts = ulen ? column_of(table.frame_chunks, table.frame_count) : NULL;
        PyObject *lengths = counts ? column_of(table.chunk_length, table.chunk_count) : NULL;
        PyObject *ids = lengths ? PyBytes_FromStringAndSize((const char *)table.chunk_id,
                                                            (Py_ssize_t)table.chunk_count * OS_ID_SIZE)
                                : NULL;
        if (ids)
            result = Py_BuildValue("NNNNN", clen, ulen, counts, lengths, ids);
        if (!result) {
            Py_XDECREF(clen);
            Py_XDECREF(ulen);
            Py_XDECREF(counts);
            Py_XDECREF(lengths);
            Py_XDECREF(ids);
        }
    }
    PyBuffer_Release(&view);
    return result;
}

static PyMethodDef functions[] = {
    {"pack_table", read_pack_table, METH_O, NULL},
    {"pack_columns", pack_columns, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int os_py_add_pack(PyObject *module) {
    return PyModule_AddFunctions(module, functions);
}
