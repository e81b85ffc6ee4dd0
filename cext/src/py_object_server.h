/* What the files of cext.ObjectServer share. py_object_server.c has its life, py_object_images.c the images that come
 * and go, py_object_asks.c what is asked of it while it runs. */
#ifndef OS_PY_OBJECT_SERVER_H
#define OS_PY_OBJECT_SERVER_H

#include "py_common.h"

#include "fuse_server.h"
#include "os_pack_files.h"

/* The packs of an image, to hand in descriptors later. */
typedef struct added_image {
    struct added_image *next; /* owned */
    uint64_t id;
    uint32_t blobs;
    uint8_t (*digest)[OS_ID_SIZE]; /* owned */
    os_pack_files *files;          /* borrowed from the server, which keeps it until the image is removed */
} added_image;

typedef struct object_server {
    PyObject_HEAD os_fuse_server *server; /* owned; NULL: closed */
    added_image *images;                  /* owned; guarded by the GIL */
    int proc, log, hangup;                /* owned, or -1 */
    PyObject *store;                      /* owned, or NULL; outlives the server's threads */
    unsigned calls;                       /* of other threads, that are in the server; guarded by the GIL */
    bool shut;                            /* guarded by the GIL; nothing of it is touched a second time */
} object_server;

/* Around a call into the server that gives up the GIL: nobody frees it meanwhile. */
#define OS_PY_OBJECT_BEGIN(self)                                                                                       \
    (self)->calls++;                                                                                                   \
    Py_BEGIN_ALLOW_THREADS
#define OS_PY_OBJECT_END(self) Py_END_ALLOW_THREADS(self)->calls--

/* Whether it is, with an exception. */
bool os_py_object_is_closed(const object_server *self);

/* py_object_images.c */
void os_py_object_forget_images(object_server *self);
void os_py_object_unmap(void *mapping, size_t size); /* what add_image mapped */
PyObject *os_py_object_add_image(PyObject *object, PyObject *args, PyObject *kwargs);
PyObject *os_py_object_remove_image(PyObject *object, PyObject *argument);
PyObject *os_py_object_add_pack(PyObject *object, PyObject *args);
PyObject *os_py_object_expect_image(PyObject *object, PyObject *unused);
PyObject *os_py_object_unexpect_image(PyObject *object, PyObject *unused);

/* py_object_asks.c */
PyObject *os_py_object_link(PyObject *object, PyObject *argument);
PyObject *os_py_object_linked(PyObject *object, PyObject *unused);
PyObject *os_py_object_add_boot(PyObject *object, PyObject *args);
PyObject *os_py_object_remove_boot(PyObject *object, PyObject *argument);
PyObject *os_py_object_store_page(PyObject *object, PyObject *args);
PyObject *os_py_object_prefetch(PyObject *object, PyObject *args);
PyObject *os_py_object_learn(PyObject *object, PyObject *argument);
PyObject *os_py_object_learned(PyObject *object, PyObject *argument);
PyObject *os_py_object_node(PyObject *object, PyObject *argument);
PyObject *os_py_object_touches(PyObject *object, PyObject *unused);
PyObject *os_py_object_record(PyObject *object, PyObject *argument);
PyObject *os_py_object_statistics(PyObject *object, PyObject *unused);

#endif
