/* cext._native: one line for each py_<type>.c. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "os_hash.h"
#include "os_limits.h"

int os_py_add_boot(PyObject *module);
int os_py_add_chunk_map(PyObject *module);
int os_py_add_frame(PyObject *module);
int os_py_add_gear(PyObject *module);
int os_py_add_hash(PyObject *module);
int os_py_add_image(PyObject *module);
int os_py_add_ingest(PyObject *module);
int os_py_add_launch(PyObject *module);
int os_py_add_mount(PyObject *module);
int os_py_add_object_server(PyObject *module);
int os_py_add_pack(PyObject *module);
int os_py_add_privileges(PyObject *module);
int os_py_add_store(PyObject *module);

/* One line each, so that adding one touches no other. */
/* clang-format off */
static int (*const PARTS[])(PyObject *) = {
    os_py_add_boot,
    os_py_add_chunk_map,
    os_py_add_frame,
    os_py_add_gear,
    os_py_add_hash,
    os_py_add_image,
    os_py_add_ingest,
    os_py_add_launch,
    os_py_add_mount,
    os_py_add_object_server,
    os_py_add_pack,
    os_py_add_privileges,
    os_py_add_store,
};
/* clang-format on */

static int execute(PyObject *module) {
    uint8_t digest[OS_ID_SIZE];
    os_blake3("", 0,
              digest); /* BLAKE3 looks at the processor at its first call, and keeps what it saw without a lock */
    for (size_t at = 0; at < sizeof PARTS / sizeof *PARTS; at++)
        if (PARTS[at](module) < 0)
            return -1;
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "cext._native",
    .m_doc = "The C hot path. See cext/__init__.py.",
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void) {
    return PyModuleDef_Init(&definition);
}
