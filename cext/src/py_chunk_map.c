/* ChunkMap: os_chunk_map for Python. Its attribute _known is a capsule with the os_known that an Ingest asks; the
 * capsule keeps the map's memory alive, so that a map closed too early answers "failed" and not garbage. */
#include "os_chunk_map.h"
#include "os_pack.h"
#include "py_common.h"

#include <string.h>

typedef struct py_chunk_map {
    PyObject_HEAD os_chunk_map *map; /* owned; NULL until initialised */
} py_chunk_map;

static PyTypeObject *statistics_type; /* immutable once the module is made */

static int map_init(PyObject *object, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"", "map_size", NULL};
    py_chunk_map *self = (py_chunk_map *)object;
    PyObject *path;
    Py_ssize_t size = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&|$n:ChunkMap", names, PyUnicode_FSConverter, &path, &size))
        return -1;
    os_failure failure = {0};
    os_code code = OS_OK;
    if (self->map != NULL || size < 0) {
        PyErr_SetString(PyExc_ValueError, size < 0 ? "map_size: got less than 0" : "ChunkMap: made already");
        Py_DECREF(path);
        return -1;
    }
    const char *name = PyBytes_AS_STRING(path);
    os_chunk_map *map;
    Py_BEGIN_ALLOW_THREADS;
    code = os_chunk_map_open(name, (size_t)size, &map, &failure);
    Py_END_ALLOW_THREADS;
    Py_DECREF(path);
    if (code != OS_OK) {
        os_py_raise(&failure);
        return -1;
    }
    self->map = map;
    return 0;
}

static void map_free(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    os_chunk_map_free(((py_chunk_map *)object)->map);
    type->tp_free(object);
    Py_DECREF(type);
}

static os_chunk_map *made(PyObject *object) {
    os_chunk_map *map = ((py_chunk_map *)object)->map;
    if (map == NULL)
        PyErr_SetString(PyExc_ValueError, "ChunkMap: not made");
    return map;
}

/* A pack's size, as its table has it; parsing compares nothing with it then but the sum of the frames. */
static uint64_t pack_size(const uint8_t *payload, size_t size) {
    uint32_t frames;
    memcpy(&frames, payload + 8, sizeof frames);
    uint64_t sum = 8 + (uint64_t)size;
    if (frames <= (size - OS_PACK_HEADER) / 4)
        for (uint32_t row = 0; row < frames; row++)
            sum += os_pack_u32(payload + OS_PACK_HEADER, row);
    return sum;
}

/* The chunk ids of a pack's table. */
static os_code table_ids(const Py_buffer *table, const uint8_t **ids, uint32_t *count, os_failure *failure) {
    os_pack_table parsed;
    size_t size = (size_t)table->len;
    if (size < OS_PACK_HEADER + OS_PACK_FOOTER)
        return os_fail(failure, OS_CORRUPT, "pack table: got %zu bytes", size);
    os_code code = os_pack_table_parse(table->buf, size, pack_size(table->buf, size), &parsed, failure);
    if (code == OS_OK) {
        *ids = parsed.chunk_id;
        *count = parsed.chunk_count;
    }
    return code;
}

typedef os_code (*change)(os_chunk_map *, const uint8_t *, const uint8_t *, uint32_t, bool *, os_failure *);

static PyObject *run_change(PyObject *object, PyObject *arguments, change what) {
    Py_buffer digest, table;
    os_chunk_map *map = made(object);
    if (map == NULL || !PyArg_ParseTuple(arguments, "y*y*", &digest, &table))
        return NULL;
    os_failure failure = {0};
    const uint8_t *ids = NULL;
    uint32_t count = 0;
    bool changed = false;
    os_code code = digest.len == 32 ? table_ids(&table, &ids, &count, &failure)
                                    : os_fail(&failure, OS_CORRUPT, "digest: got %zd bytes, want 32", digest.len);
    if (code == OS_OK) {
        Py_BEGIN_ALLOW_THREADS;
        code = what(map, digest.buf, ids, count, &changed, &failure);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&digest);
    PyBuffer_Release(&table);
    return code == OS_OK ? PyBool_FromLong(changed) : os_py_raise(&failure);
}

static PyObject *map_add(PyObject *object, PyObject *arguments) {
    return run_change(object, arguments, os_chunk_map_add);
}

static PyObject *map_remove(PyObject *object, PyObject *arguments) {
    return run_change(object, arguments, os_chunk_map_remove);
}

static PyObject *map_lookup(PyObject *object, PyObject *argument) {
    Py_buffer id;
    os_chunk_map *map = made(object);
    if (map == NULL || PyObject_GetBuffer(argument, &id, PyBUF_SIMPLE) < 0)
        return NULL;
    os_failure failure = {0};
    uint8_t pack[32];
    os_code code;
    if (id.len != 32)
        code = os_fail(&failure, OS_CORRUPT, "chunk id: got %zd bytes, want 32", id.len);
    else {
        Py_BEGIN_ALLOW_THREADS;
        code = os_chunk_map_lookup(map, id.buf, pack, &failure);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&id);
    if (code == OS_MISSING)
        Py_RETURN_NONE;
    return code == OS_OK ? PyBytes_FromStringAndSize((char *)pack, 32) : os_py_raise(&failure);
}

static PyObject *map_packs(PyObject *object, PyObject *ignored) {
    (void)ignored;
    os_chunk_map *map = made(object);
    if (map == NULL)
        return NULL;
    os_failure failure = {0};
    uint8_t *packs;
    size_t count = 0;
    os_code code;
    Py_BEGIN_ALLOW_THREADS;
    code = os_chunk_map_packs(map, &packs, &count, &failure);
    Py_END_ALLOW_THREADS;
    if (code != OS_OK)
        return os_py_raise(&failure);
    PyObject *set = PySet_New(NULL);
    for (size_t at = 0; set != NULL && at < count; at++) {
        PyObject *pack = PyBytes_FromStringAndSize((char *)packs + 32 * at, 32);
        if (pack == NULL || PySet_Add(set, pack) < 0)
            Py_CLEAR(set);
        Py_XDECREF(pack);
    }
    free(packs);
    return set;
}

static PyObject *map_statistics(PyObject *object, PyObject *ignored) {
    (void)ignored;
    os_chunk_map *map = made(object);
    if (map == NULL)
        return NULL;
    os_failure failure = {0};
    os_chunk_map_statistics about;
    os_code code;
    Py_BEGIN_ALLOW_THREADS;
    code = os_chunk_map_statistics_of(map, &about, &failure);
    Py_END_ALLOW_THREADS;
    return code == OS_OK
               ? os_py_record(statistics_type, 5, about.packs, about.chunks, about.used, about.map_size, about.damaged)
               : os_py_raise(&failure);
}

static PyObject *map_close(PyObject *object, PyObject *ignored) {
    (void)ignored;
    os_chunk_map *map = made(object);
    if (map == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    os_chunk_map_close(map);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyObject *map_enter(PyObject *object, PyObject *ignored) {
    (void)ignored;
    return Py_NewRef(object);
}

static void release_owner(PyObject *capsule) {
    Py_XDECREF((PyObject *)PyCapsule_GetContext(capsule));
}

static PyObject *map_known(PyObject *object, void *ignored) {
    (void)ignored;
    os_chunk_map *map = made(object);
    if (map == NULL)
        return NULL;
    PyObject *capsule = PyCapsule_New((void *)os_chunk_map_known(map), "cext.os_known", release_owner);
    if (capsule != NULL && PyCapsule_SetContext(capsule, object) == 0)
        Py_INCREF(object);
    return capsule;
}

static PyMethodDef methods[] = {
    {"add_pack", map_add, METH_VARARGS, "add_pack(digest, table) -> whether it was new. Durable on return."},
    {"remove_pack", map_remove, METH_VARARGS, "remove_pack(digest, table) -> whether it was there. Durable on return."},
    {"lookup", map_lookup, METH_O, "lookup(id) -> digest of the first pack that has the chunk, or None."},
    {"packs", map_packs, METH_NOARGS, "The digests of all packs."},
    {"statistics", map_statistics, METH_NOARGS, "A ChunkMapStatistics."},
    {"close", map_close, METH_NOARGS, "Waits for running calls; later ones raise ClosedError."},
    {"__enter__", map_enter, METH_NOARGS, NULL},
    {"__exit__", map_close, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"_known", map_known, NULL, "A capsule \"cext.os_known\" for Ingest.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "ChunkMap(path, *, map_size=0): chunk id -> digest of a pack that has it, in an LMDB directory."},
    {Py_tp_init, map_init},
    {Py_tp_dealloc, map_free},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {0, NULL},
};

static PyType_Spec spec = {"cext._native.ChunkMap", sizeof(py_chunk_map), 0, Py_TPFLAGS_DEFAULT, slots};

static PyStructSequence_Field fields[] = {
    {"packs", NULL},
    {"chunks", "rows, those of removed packs included until they are overwritten"},
    {"used", "bytes of the file in use"},
    {"map_size", "bytes of address space"},
    {"damaged", "rows refused since the map was opened"},
    {NULL, NULL},
};

static PyStructSequence_Desc record = {"cext._native.ChunkMapStatistics", NULL, fields, 5};

int os_py_add_chunk_map(PyObject *module) {
    PyObject *type = PyType_FromSpec(&spec);
    if (statistics_type == NULL)
        statistics_type = PyStructSequence_NewType(&record);
    int code = type == NULL || statistics_type == NULL ? -1 : PyModule_AddObjectRef(module, "ChunkMap", type);
    if (code == 0)
        code = PyModule_AddObjectRef(module, "ChunkMapStatistics", (PyObject *)statistics_type);
    Py_XDECREF(type);
    return code;
}
