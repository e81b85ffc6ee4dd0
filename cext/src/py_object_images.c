/* The images of a cext.ObjectServer: their tables, mapped; their packs, as descriptors or from far away. */
#include "py_object_server.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "os_remote.h"
#include "os_tables.h"

void os_py_object_unmap(void *mapping, size_t size) {
    munmap(mapping, size);
}

static void free_added(added_image *added) {
    PyMem_Free(added->digest);
    PyMem_Free(added);
}

void os_py_object_forget_images(object_server *self) {
    while (self->images != NULL) {
        added_image *added = self->images;
        self->images = added->next;
        free_added(added);
    }
}

static void *map_tables(int fd, size_t *size) {
    struct stat found;
    if (fstat(fd, &found) < 0)
        return NULL;
    if (found.st_size < (off_t)OS_TABLES_HEADER || (uint64_t)found.st_size > OS_INDEX_MAX) {
        errno = EINVAL;
        return NULL;
    }
    *size = (size_t)found.st_size;
    void *mapping = mmap(NULL, *size, PROT_READ, MAP_SHARED, fd, 0);
    return mapping == MAP_FAILED ? NULL : mapping;
}

static added_image *make_added(const void *mapping, size_t size, Py_ssize_t packs) {
    const uint8_t *data = mapping;
    uint32_t blobs;
    memcpy(&blobs, data + 8, sizeof blobs);
    if (blobs != packs || blobs > (size - OS_TABLES_HEADER) / sizeof(os_tables_blob)) {
        os_failure failure;
        os_fail(&failure, OS_CORRUPT, "tables: got %u packs, want the %zd that came with them", blobs, packs);
        os_py_raise(&failure);
        return NULL;
    }
    added_image *added = PyMem_Calloc(1, sizeof *added);
    if (added != NULL)
        added->digest = PyMem_Malloc((size_t)blobs * OS_ID_SIZE + 1);
    if (added == NULL || added->digest == NULL) {
        PyMem_Free(added);
        PyErr_NoMemory();
        return NULL;
    }
    added->blobs = blobs;
    for (uint32_t row = 0; row < blobs; row++)
        memcpy(added->digest[row], data + OS_TABLES_HEADER + row * sizeof(os_tables_blob), OS_ID_SIZE);
    return added;
}

/* The source takes the files. context NULL and an exception: nothing is taken. */
static os_source source_of(object_server *self, added_image *added, const uint8_t *tables, uint32_t origin) {
    if (origin == 0)
        return os_pack_files_source(added->files);
    os_source none = {0}, source;
    os_spans *spans = os_fuse_server_spans(self->server);
    os_blob *blobs = PyMem_Calloc((size_t)added->blobs + 1, sizeof *blobs);
    if (spans == NULL || blobs == NULL) {
        PyMem_Free(blobs);
        if (spans == NULL)
            PyErr_SetString(PyExc_ValueError, "origin: the server was made without memory for a fetcher");
        else
            PyErr_NoMemory();
        return none;
    }
    for (uint32_t row = 0; row < added->blobs; row++) {
        os_tables_blob blob;
        memcpy(&blob, tables + OS_TABLES_HEADER + row * sizeof blob, sizeof blob);
        memcpy(blobs[row].digest, blob.digest, OS_ID_SIZE);
        blobs[row].size = blob.size;
        blobs[row].origin = origin;
    }
    source = os_remote_source(&os_env_system, added->files, spans, blobs, added->blobs);
    PyMem_Free(blobs);
    if (source.context == NULL)
        PyErr_NoMemory();
    return source;
}

PyObject *os_py_object_add_image(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"tables", "packs", "label", "lazy", "expected", "origin", NULL};
    object_server *self = (object_server *)object;
    PyObject *sequence;
    const char *label = "image";
    int tables, lazy = 0, expected = 0;
    unsigned origin = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iO|$sppI", names, &tables, &sequence, &label, &lazy, &expected,
                                     &origin))
        return NULL;
    if (os_py_object_is_closed(self))
        return NULL;
    int *fds = NULL;
    Py_ssize_t count = 0;
    size_t size = 0;
    added_image *added = NULL;
    os_failure failure = {0};
    os_code code;
    if (os_py_duplicate_all(sequence, &fds, &count, "packs") < 0)
        return NULL;
    void *mapping = map_tables(tables, &size);
    if (mapping == NULL) {
        PyErr_SetFromErrno(PyExc_OSError);
        goto failed;
    }
    added = make_added(mapping, size, count);
    if (added == NULL)
        goto failed;
    added->files = os_pack_files_make(&os_env_system, added->blobs, lazy);
    if (added->files == NULL) {
        PyErr_NoMemory();
        goto failed;
    }
    for (Py_ssize_t at = 0; at < count; at++)
        if (fds[at] >= 0)
            os_pack_files_set(added->files, (uint32_t)at, fds[at]);
    count = 0; /* the source has them now */
    os_fuse_server *server = self->server;
    os_source source = source_of(self, added, mapping, origin);
    if (source.context == NULL)
        goto failed;
    OS_PY_OBJECT_BEGIN(self);
    code = os_fuse_server_add(server, mapping, size, source, label, expected, &added->id, &failure);
    OS_PY_OBJECT_END(self);
    if (code != OS_OK) {
        source.release(source.context);
        added->files = NULL;
        os_py_raise(&failure);
        goto failed;
    }
    PyMem_Free(fds);
    added->next = self->images;
    self->images = added;
    return PyLong_FromUnsignedLongLong(added->id);
failed:
    while (count > 0)
        os_py_close_if(fds[--count]);
    PyMem_Free(fds);
    if (mapping != NULL)
        munmap(mapping, size);
    if (added != NULL) {
        os_pack_files_free(added->files);
        free_added(added);
    }
    return NULL;
}

PyObject *os_py_object_remove_image(PyObject *object, PyObject *argument) {
    object_server *self = (object_server *)object;
    unsigned long long id = PyLong_AsUnsignedLongLong(argument);
    os_failure failure = {0};
    os_code code;
    if ((id == (unsigned long long)-1 && PyErr_Occurred()) || os_py_object_is_closed(self))
        return NULL;
    for (added_image **place = &self->images; *place != NULL; place = &(*place)->next) {
        added_image *added = *place;
        if (added->id != id)
            continue;
        *place = added->next;
        free_added(added);
        break;
    }
    os_fuse_server *server = self->server;
    OS_PY_OBJECT_BEGIN(self);
    code = os_fuse_server_remove(server, id, &failure);
    OS_PY_OBJECT_END(self);
    if (code != OS_OK)
        return os_py_raise(&failure);
    Py_RETURN_NONE;
}

PyObject *os_py_object_add_pack(PyObject *object, PyObject *args) {
    object_server *self = (object_server *)object;
    unsigned long long id;
    const char *digest;
    Py_ssize_t size;
    int fd;
    if (!PyArg_ParseTuple(args, "Ky#i", &id, &digest, &size, &fd) || os_py_object_is_closed(self))
        return NULL;
    for (added_image *added = self->images; size == OS_ID_SIZE && added != NULL; added = added->next) {
        for (uint32_t row = 0; added->id == id && row < added->blobs; row++) {
            if (memcmp(added->digest[row], digest, OS_ID_SIZE) != 0)
                continue;
            int copy = os_py_duplicate(fd);
            if (copy < 0)
                return PyErr_SetFromErrno(PyExc_OSError);
            os_pack_files_set(added->files, row, copy);
            os_fuse_server_wake(self->server, (const uint8_t *)digest, 0, UINT64_MAX);
            Py_RETURN_NONE;
        }
    }
    os_failure failure;
    os_fail(&failure, OS_MISSING, "object server: got a pack that image %llu does not have", id);
    return os_py_raise(&failure);
}

PyObject *os_py_object_expect_image(PyObject *object, PyObject *unused) {
    object_server *self = (object_server *)object;
    (void)unused;
    if (os_py_object_is_closed(self))
        return NULL;
    os_fuse_server_expect(self->server, 1);
    Py_RETURN_NONE;
}

PyObject *os_py_object_unexpect_image(PyObject *object, PyObject *unused) {
    object_server *self = (object_server *)object;
    (void)unused;
    if (os_py_object_is_closed(self))
        return NULL;
    os_fuse_server_expect(self->server, -1);
    Py_RETURN_NONE;
}
