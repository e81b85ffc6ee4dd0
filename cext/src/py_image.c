/* An image's index for Python: encode_image, check_image, check_image_sandboxed. */
#include "py_common.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "os_confine.h"
#include "os_index.h"
#include "os_limits.h"
#include "os_tables.h"

/* One (digest, size, table); the row borrows from the tuple's bytes. */
static int take_pack(PyObject *given, os_pack_input *row) {
    const char *digest, *table;
    Py_ssize_t digest_size, table_size;
    PyObject *size;
    if (!PyTuple_Check(given)) {
        PyErr_SetString(PyExc_TypeError, "packs: want tuples of digest, size and table");
        return -1;
    }
    if (!PyArg_ParseTuple(given, "y#O!y#", &digest, &digest_size, &PyLong_Type, &size, &table, &table_size))
        return -1;
    if (digest_size != OS_ID_SIZE) {
        PyErr_Format(PyExc_ValueError, "digest: got %zd bytes, want %d", digest_size, OS_ID_SIZE);
        return -1;
    }
    *row = (os_pack_input){(const uint8_t *)digest, (const uint8_t *)table, (size_t)table_size,
                           PyLong_AsUnsignedLongLong(size)};
    return PyErr_Occurred() ? -1 : 0;
}

/* A tuple of our own, so that nobody takes packs out of it while the GIL is not held. */
static PyObject *take_packs(PyObject *given, os_pack_input **rows) {
    PyObject *packs = PySequence_Tuple(given);
    if (!packs)
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(packs);
    *rows = PyMem_Calloc((size_t)count + 1, sizeof **rows);
    if (!*rows) {
        Py_DECREF(packs);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t at = 0; at < count; at++)
        if (take_pack(PyTuple_GET_ITEM(packs, at), *rows + at) < 0) {
            PyMem_Free(*rows);
            Py_DECREF(packs);
            return NULL;
        }
    return packs;
}

static PyObject *encode_image(PyObject *module, PyObject *arguments) {
    Py_buffer tree;
    PyObject *given, *packs, *result = NULL;
    os_pack_input *rows;
    os_index index = {0};
    os_failure failure;
    os_code code;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*O:encode_image", &tree, &given))
        return NULL;
    packs = take_packs(given, &rows);
    if (packs) {
        size_t count = (size_t)PyTuple_GET_SIZE(packs);
        Py_BEGIN_ALLOW_THREADS;
        code = os_index_encode(tree.buf, (size_t)tree.len, rows, count, &index, &failure);
        Py_END_ALLOW_THREADS;
        if (code == OS_OK)
            result = Py_BuildValue("y#y#", index.erofs, (Py_ssize_t)index.erofs_size, index.tables,
                                   (Py_ssize_t)index.tables_size);
        else
            os_py_raise(&failure);
        free(index.erofs);
        free(index.tables);
        PyMem_Free(rows);
        Py_DECREF(packs);
    }
    PyBuffer_Release(&tree);
    return result;
}

typedef struct blobs {
    const void *erofs, *tables;
    size_t erofs_size, tables_size;
} blobs;

static os_code check(const void *context, os_failure *failure) {
    const blobs *both = context;
    return os_index_check(both->erofs, both->erofs_size, both->tables, both->tables_size, failure);
}

/* Columns are read where they lie; a buffer that starts anywhere else is copied. */
static os_code check_aligned(blobs both, os_failure *failure) {
    if ((uintptr_t)both.tables % 8 == 0)
        return check(&both, failure);
    void *copy = malloc(both.tables_size + 1);
    if (!copy)
        return os_fail(failure, OS_MEMORY, "image: out of memory");
    memcpy(copy, both.tables, both.tables_size);
    both.tables = copy;
    os_code code = check(&both, failure);
    free(copy);
    return code;
}

static PyObject *check_image(PyObject *module, PyObject *arguments) {
    Py_buffer erofs, tables;
    os_failure failure;
    os_code code;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*y*:check_image", &erofs, &tables))
        return NULL;
    blobs both = {erofs.buf, tables.buf, (size_t)erofs.len, (size_t)tables.len};
    Py_BEGIN_ALLOW_THREADS;
    code = check_aligned(both, &failure);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&erofs);
    PyBuffer_Release(&tables);
    if (code != OS_OK)
        return os_py_raise(&failure);
    Py_RETURN_NONE;
}

/* A private mapping of a whole file. */
static os_code map_file(int fd, const char *what, const void **data, size_t *size, os_failure *failure) {
    struct stat now;
    if (fstat(fd, &now) < 0)
        return os_fail_errno(failure, errno, "%s: cannot be read", what);
    if (now.st_size <= 0 || (uint64_t)now.st_size > OS_INDEX_MAX)
        return os_fail(failure, OS_CORRUPT, "%s: got %lld bytes, want 1 to %llu", what, (long long)now.st_size,
                       OS_INDEX_MAX);
    void *mapped = mmap(NULL, (size_t)now.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapped == MAP_FAILED)
        return os_fail_errno(failure, errno, "%s: cannot be mapped", what);
    *data = mapped;
    *size = (size_t)now.st_size;
    return OS_OK;
}

static void unmap(const void *data, size_t size) {
    if (data)
        munmap((void *)(uintptr_t)data, size);
}

static PyObject *check_image_sandboxed(PyObject *module, PyObject *arguments) {
    int erofs_fd, tables_fd;
    blobs both = {0};
    os_failure failure;
    os_code code;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "ii:check_image_sandboxed", &erofs_fd, &tables_fd))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    code = map_file(erofs_fd, "fs.erofs", &both.erofs, &both.erofs_size, &failure);
    if (code == OS_OK)
        code = map_file(tables_fd, "tables", &both.tables, &both.tables_size, &failure);
    if (code == OS_OK)
        code = os_run_confined(check, &both, &failure);
    unmap(both.erofs, both.erofs_size);
    unmap(both.tables, both.tables_size);
    Py_END_ALLOW_THREADS;
    if (code != OS_OK)
        return os_py_raise(&failure);
    Py_RETURN_NONE;
}

static PyObject *change_ids(PyObject *argument, os_code (*change)(uint8_t *, size_t, os_failure *)) {
    Py_buffer tables;
    os_failure failure;
    os_code code;
    if (PyObject_GetBuffer(argument, &tables, PyBUF_WRITABLE) < 0)
        return NULL;
    if ((uintptr_t)tables.buf % 8) {
        PyBuffer_Release(&tables);
        PyErr_SetString(PyExc_ValueError, "tables: want a buffer that starts at a multiple of 8");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    code = change(tables.buf, (size_t)tables.len, &failure);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&tables);
    if (code != OS_OK)
        return os_py_raise(&failure);
    Py_RETURN_NONE;
}

static PyObject *clear_object_ids(PyObject *module, PyObject *tables) {
    (void)module;
    return change_ids(tables, os_tables_clear_ids);
}

static PyObject *fill_object_ids(PyObject *module, PyObject *tables) {
    (void)module;
    return change_ids(tables, os_tables_fill_ids);
}

static PyMethodDef functions[] = {
    {"clear_object_ids", clear_object_ids, METH_O, NULL},
    {"fill_object_ids", fill_object_ids, METH_O, NULL},
    {"encode_image", encode_image, METH_VARARGS, NULL},
    {"check_image", check_image, METH_VARARGS, NULL},
    {"check_image_sandboxed", check_image_sandboxed, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int os_py_add_image(PyObject *module) {
    return PyModule_AddFunctions(module, functions);
}
