#define _GNU_SOURCE
/* An image's index for Python: encode_image, check_image, check_image_sandboxed. */
#include "py_common.h"

#include <errno.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os_erofs.h"
#include "os_layer.h"
#include "os_tables.h"
#include "os_tables_build.h"

#define NOBODY 65534

static os_code encode(const uint8_t *layer, size_t layer_size, const os_pack_input *packs, size_t count,
                      uint8_t **erofs, size_t *erofs_size, uint8_t **tables, size_t *tables_size, os_failure *failure) {
    os_tree tree = {0};
    os_code code = os_layer_decode(layer, layer_size, &tree, failure);
    if (code == OS_OK)
        code = os_erofs_encode(&tree, erofs, erofs_size, failure);
    if (code == OS_OK)
        code = os_tables_build(&tree, packs, count, tables, tables_size, failure);
    os_tree_free(&tree);
    return code;
}

static PyObject *encode_image(PyObject *module, PyObject *arguments) {
    Py_buffer layer;
    PyObject *given, *packs = NULL, *result = NULL;
    os_pack_input *inputs = NULL;
    uint8_t *erofs = NULL, *tables = NULL;
    size_t erofs_size = 0, tables_size = 0;
    os_failure failure;
    os_code code;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*O", &layer, &given))
        return NULL;
    packs = PySequence_Fast(given, "packs: want a sequence");
    if (!packs)
        goto done;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(packs);
    inputs = calloc((size_t)count + 1, sizeof *inputs);
    if (!inputs) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t at = 0; at < count; at++) { /* bytes objects, which packs keeps alive */
        Py_ssize_t digest_size, table_size;
        unsigned long long size;
        if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(packs, at), "y#Ky#", &inputs[at].digest, &digest_size, &size,
                              &inputs[at].table, &table_size))
            goto done;
        if (digest_size != OS_ID_SIZE) {
            PyErr_Format(PyExc_ValueError, "digest: got %zd bytes, want 32", digest_size);
            goto done;
        }
        inputs[at].size = size;
        inputs[at].table_size = (size_t)table_size;
    }
    Py_BEGIN_ALLOW_THREADS code = encode(layer.buf, (size_t)layer.len, inputs, (size_t)count, &erofs, &erofs_size,
                                         &tables, &tables_size, &failure);
    Py_END_ALLOW_THREADS if (code != OS_OK) os_py_raise(&failure);
    else result = Py_BuildValue("y#y#", erofs, (Py_ssize_t)erofs_size, tables, (Py_ssize_t)tables_size);
done:
    free(erofs);
    free(tables);
    free(inputs);
    Py_XDECREF(packs);
    PyBuffer_Release(&layer);
    return result;
}

/* Every file's object is in the tables with the file's size, and every object's id is the id of its parts. */
static os_code check(const uint8_t *erofs, size_t erofs_size, const uint8_t *data, size_t size, os_failure *failure) {
    os_tree tree = {0};
    os_tables tables;
    os_code code = os_tables_open(data, size, &tables, failure);
    if (code == OS_OK)
        code = os_tables_check_objects(&tables, failure);
    if (code == OS_OK)
        code = os_erofs_check(erofs, erofs_size, &tree, failure);
    for (uint32_t number = 0; code == OS_OK && number < tree.inode_count; number++) {
        const os_inode *inode = &tree.inodes[number];
        uint32_t row;
        if (!inode->has_object)
            continue;
        if (os_tables_find(&tables, inode->object, &row) != OS_OK)
            code = os_fail(failure, OS_CORRUPT, "image: inode %u has an object that the tables lack", number + 1);
        else if (tables.object_size[row] != inode->size)
            code = os_fail(failure, OS_CORRUPT, "image: inode %u: got size %llu, want %llu", number + 1,
                           (unsigned long long)inode->size, (unsigned long long)tables.object_size[row]);
    }
    os_tree_free(&tree);
    return code;
}

static PyObject *check_image(PyObject *module, PyObject *arguments) {
    Py_buffer erofs, tables;
    os_failure failure;
    os_code code;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*y*", &erofs, &tables))
        return NULL;
    Py_BEGIN_ALLOW_THREADS code = check(erofs.buf, (size_t)erofs.len, tables.buf, (size_t)tables.len, &failure);
    Py_END_ALLOW_THREADS PyBuffer_Release(&erofs);
    PyBuffer_Release(&tables);
    if (code != OS_OK)
        return os_py_raise(&failure);
    Py_RETURN_NONE;
}

/* ---- the same in a process that can do nothing else ---- */

#if defined(__x86_64__)
#define OUR_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define OUR_ARCH AUDIT_ARCH_AARCH64
#else
#error "no seccomp architecture for this machine"
#endif

#define ALLOW(call) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_##call, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

/* Only memory, the answer's pipe and the end. */
static int confine(void) {
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OUR_ARCH, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(write),
        ALLOW(mmap),
        ALLOW(munmap),
        ALLOW(mremap),
        ALLOW(brk),
        ALLOW(madvise),
        ALLOW(futex),
        ALLOW(sched_yield),
        ALLOW(rt_sigreturn),
        ALLOW(exit_group),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    if (geteuid() == 0 &&
        (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0))
        return -1;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    (void)program; /* sanitizers make system calls of their own */
    return 0;
#else
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
#endif
}

_Noreturn static void checker(const void *erofs, size_t erofs_size, const void *tables, size_t tables_size,
                              int answer) {
    os_failure failure = {0};
    if (confine() < 0)
        os_fail_errno(&failure, errno, "image: cannot give up privileges");
    else if (check(erofs, erofs_size, tables, tables_size, &failure) == OS_OK)
        failure.code = OS_OK;
    ssize_t ignored = write(answer, &failure, sizeof failure); /* under PIPE_BUF: all or nothing */
    (void)ignored;
    _exit(0);
}

/* What the child said, or how it died. */
static os_code wait_for(pid_t child, int answer, os_failure *failure) {
    os_failure said;
    size_t got = 0;
    int status;
    for (;;) {
        ssize_t count = read(answer, (char *)&said + got, sizeof said - got);
        if (count > 0)
            got += (size_t)count;
        else if (count == 0 || errno != EINTR)
            break;
    }
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return os_fail_errno(failure, errno, "image: cannot wait for the checker");
    if (got == sizeof said && WIFEXITED(status)) {
        said.message[sizeof said.message - 1] = 0;
        if (said.code > OS_CLOSED)
            said.code = OS_CORRUPT;
        *failure = said;
        return said.code;
    }
    if (WIFSIGNALED(status))
        return os_fail(failure, OS_CORRUPT, "image: its checker died with signal %d", WTERMSIG(status));
    return os_fail(failure, OS_CORRUPT, "image: its checker ended without an answer");
}

static os_code check_in_child(const void *erofs, size_t erofs_size, const void *tables, size_t tables_size,
                              os_failure *failure) {
    int ends[2];
    if (pipe2(ends, 02000000 /* O_CLOEXEC */) < 0)
        return os_fail_errno(failure, errno, "image: cannot make a pipe");
    pid_t child = fork();
    if (child == 0)
        checker(erofs, erofs_size, tables, tables_size, ends[1]);
    int error = errno;
    close(ends[1]);
    os_code code = child < 0 ? os_fail_errno(failure, error, "image: cannot start its checker")
                             : wait_for(child, ends[0], failure);
    close(ends[0]);
    return code;
}

/* A private mapping of a whole file; size 0 is refused. */
static void *map_file(int fd, size_t *size, os_failure *failure) {
    struct stat now;
    void *data = MAP_FAILED;
    if (fstat(fd, &now) == 0 && now.st_size > 0 && (uint64_t)now.st_size <= OS_INDEX_MAX) {
        *size = (size_t)now.st_size;
        data = mmap(NULL, *size, PROT_READ, MAP_PRIVATE, fd, 0);
    }
    if (data == MAP_FAILED)
        os_fail(failure, OS_CORRUPT, "image: an index blob is empty, too large or cannot be mapped");
    return data;
}

static PyObject *check_image_sandboxed(PyObject *module, PyObject *arguments) {
    int erofs_fd, tables_fd;
    size_t erofs_size = 0, tables_size = 0;
    os_failure failure = {0};
    os_code code = OS_CORRUPT;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "ii", &erofs_fd, &tables_fd))
        return NULL;
    void *erofs = map_file(erofs_fd, &erofs_size, &failure), *tables = map_file(tables_fd, &tables_size, &failure);
    if (erofs != MAP_FAILED && tables != MAP_FAILED) {
        Py_BEGIN_ALLOW_THREADS code = check_in_child(erofs, erofs_size, tables, tables_size, &failure);
        Py_END_ALLOW_THREADS
    }
    if (erofs != MAP_FAILED)
        munmap(erofs, erofs_size);
    if (tables != MAP_FAILED)
        munmap(tables, tables_size);
    if (code != OS_OK)
        return os_py_raise(&failure);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"encode_image", encode_image, METH_VARARGS, NULL},
    {"check_image", check_image, METH_VARARGS, NULL},
    {"check_image_sandboxed", check_image_sandboxed, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int os_py_add_image(PyObject *module) {
    return PyModule_AddFunctions(module, functions);
}
