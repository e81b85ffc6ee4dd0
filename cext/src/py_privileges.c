/* What a process gives up for good before it touches bytes from outside.
 *
 * drop_privileges() leaves a process that can compute, use the descriptors it has, take more over its sockets, and make
 * threads: an allow list of system calls, no capabilities, uid and gid 65534. The one thing it may open are files of
 * the proc file system behind one descriptor (to see whether the reader of a parked page is being killed); the caller
 * has changed its root to that same proc, so that no path leads elsewhere. With a local store it may also write to what
 * it has open, and make and delete files in the store's directory. Call it while there is one thread: all that come
 * later inherit it. */
#define _GNU_SOURCE
#include "os_filter.h"
#include "os_network_filter.h"
#include "py_common.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Allowed whatever the arguments. */
static const int ALLOWED[] = {
    SYS_read,         SYS_write,           SYS_readv,
    SYS_writev,       SYS_pread64,         SYS_close,
    SYS_fstat,        SYS_lseek,           SYS_munmap,
    SYS_mremap,       SYS_madvise,         SYS_brk,
    SYS_rt_sigaction, SYS_rt_sigprocmask,  SYS_rt_sigreturn,
    SYS_sigaltstack,  SYS_futex,           SYS_eventfd2,
    SYS_nanosleep,    SYS_clock_nanosleep, SYS_clock_gettime,
    SYS_ppoll,        SYS_accept4,         SYS_recvmsg,
    SYS_sendmsg,      SYS_getsockopt,      SYS_getsockname,
    SYS_shutdown,     SYS_sched_yield,     SYS_getrandom,
    SYS_exit,         SYS_exit_group,      SYS_gettid,
    SYS_getpid,       SYS_getuid,          SYS_set_robust_list,
    SYS_rseq,         SYS_restart_syscall, SYS_sched_getaffinity,
    SYS_dup,          SYS_fcntl,           SYS_set_tid_address,
#ifdef SYS_poll
    SYS_poll,
#endif
};

#define ALLOWED_COUNT (sizeof ALLOWED / sizeof *ALLOWED)

static int install_filter(int proc, int store, unsigned process) {
    /* Writes to what is open, and whole files in the store's directory, made and deleted. Its parent lets nobody pass,
     * so no name leads out of it, and no link can be made in it. */
    struct sock_filter writes[] = {
        IF(SYS_openat, 0, 6),
        LOW(0),
        IF(store, 0, 3),
        LOW(2),
        IF(O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0, 1),
        RETURN(SECCOMP_RET_ALLOW),
        FIELD(nr),
        IF(SYS_unlinkat, 0, 6),
        LOW(0),
        IF(store, 0, 3),
        LOW(2),
        IF(0, 0, 1),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(DENY),
        IF(SYS_pwrite64, 4, 0),
        IF(SYS_fadvise64, 3, 0),
        IF(SYS_fdatasync, 2, 0),
        IF(SYS_fsync, 1, 0),
        IF(SYS_fstatfs, 0, 1),
        RETURN(SECCOMP_RET_ALLOW),
    };
    struct sock_filter checks[] = {
        /* Without its arguments in registers clone3 cannot be judged; without it libc uses clone. */
        FIELD(nr),
        IF(SYS_clone3, 0, 1),
        RETURN(SECCOMP_RET_ERRNO | ENOSYS),
        IF(SYS_clone, 0, 4),
        LOW(0),
        IF_BITS(CLONE_THREAD, 0, 1),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(DENY),
        /* Nothing that was written becomes code. */
        IF(SYS_mmap, 1, 0),
        IF(SYS_mprotect, 0, 4),
        LOW(2),
        IF_BITS(PROT_EXEC, 1, 0),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(DENY),
        /* openat(proc, …) to read. The root is that proc too. */
        IF(SYS_openat, 0, 6),
        LOW(0),
        IF(proc, 0, 3),
        LOW(2),
        IF(O_RDONLY | O_CLOEXEC, 0, 1),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(DENY),
        /* fstat of newer C libraries */
        IF(SYS_newfstatat, 0, 4),
        LOW(3),
        IF(AT_EMPTY_PATH, 0, 1),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(DENY),
        /* Signals to itself, to wake its threads. */
        IF(SYS_tgkill, 0, 4),
        LOW(0),
        IF(process, 0, 1),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(DENY),
        /* What Python does to sockets. */
        IF(SYS_ioctl, 0, 5),
        LOW(1),
        IF(FIONBIO, 1, 0),
        IF(FIOCLEX, 0, 1),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(DENY),
    };
    struct sock_filter program[ALLOWED_COUNT + (sizeof writes + sizeof checks) / sizeof *checks + 8];
    unsigned short at = 0;
    program[at++] = (struct sock_filter)FIELD(arch);
    program[at++] = (struct sock_filter)IF(ARCHITECTURE, 1, 0);
    program[at++] = (struct sock_filter)RETURN(SECCOMP_RET_KILL_PROCESS);
    program[at++] = (struct sock_filter)FIELD(nr);
    for (size_t row = 0; row < ALLOWED_COUNT; row++) /* the jump leads to the RETURN behind the table */
        program[at++] = (struct sock_filter)IF(ALLOWED[row], ALLOWED_COUNT - row, 0);
    program[at++] = (struct sock_filter)BPF_STMT(BPF_JMP | BPF_JA, 1);
    program[at++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
    if (store >= 0) {
        memcpy(program + at, writes, sizeof writes);
        at += sizeof writes / sizeof *writes;
    }
    memcpy(program + at, checks, sizeof checks);
    at += sizeof checks / sizeof *checks;
    program[at++] = (struct sock_filter)RETURN(DENY);
    struct sock_fprog filter = {.len = at, .filter = program};
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
}

static int become(int user) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}};
    struct rlimit no_core = {0, 0};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || setrlimit(RLIMIT_CORE, &no_core) < 0)
        return -1;
    for (int cap = 0; cap < 64; cap++)
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno != EINVAL) /* EINVAL: past the last one */
            return -1;
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
        return -1;
    if (setgroups(0, NULL) < 0 || setresgid((gid_t)user, (gid_t)user, (gid_t)user) < 0 ||
        setresuid((uid_t)user, (uid_t)user, (uid_t)user) < 0 || syscall(SYS_capset, &head, none) < 0)
        return -1;
    return 0;
}

static PyObject *keep_to_network(PyObject *module, PyObject *argument) {
    long user = PyLong_AsLong(argument);
    (void)module;
    if (user == -1 && PyErr_Occurred())
        return NULL;
    if (user <= 0)
        return PyErr_Format(PyExc_ValueError, "keep_to_network: want a user that is not root");
    /* The C library loads it when a thread is cancelled, and aborts if it cannot. */
    dlopen("libgcc_s.so.1", RTLD_NOW);
    if ((geteuid() == 0 && become((int)user) < 0) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || os_keep_to_network((unsigned)getpid()) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

/* opened: called once the process is nobody, before it is confined; returns the descriptor of the store's directory, or
 * -1. NULL: there is no store. */
static int drop(int user, int proc, PyObject *opened) {
    int store = -1;
    if (become(user) < 0)
        return -1;
    if (opened != NULL) {
        PyObject *answer = PyObject_CallNoArgs(opened);
        store = answer == NULL ? -1 : (int)PyLong_AsLong(answer);
        Py_XDECREF(answer);
        if (PyErr_Occurred())
            return -1;
    }
    return install_filter(proc, store, (unsigned)getpid());
}

static PyObject *drop_privileges(PyObject *module, PyObject *args) {
    int user, proc;
    PyObject *opened = Py_None;
    (void)module;
    if (!PyArg_ParseTuple(args, "ii|O", &user, &proc, &opened))
        return NULL;
    if (user <= 0 || proc < 0) {
        PyErr_SetString(PyExc_ValueError, "drop_privileges: want a user that is not root, and a descriptor");
        return NULL;
    }
    if (drop(user, proc, opened == Py_None ? NULL : opened) < 0)
        return PyErr_Occurred() ? NULL : PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

/* The device number of a file without asking the file system (AT_STATX_DONT_SYNC): a FUSE mount's server may be the
 * one who asks. */
static PyObject *device_of(PyObject *module, PyObject *args) {
    int fd, result;
    struct statx found;
    (void)module;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    result = statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &found);
    Py_END_ALLOW_THREADS;
    if (result < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return Py_BuildValue("II", found.stx_dev_major, found.stx_dev_minor);
}

static PyObject *filesystem_of(PyObject *module, PyObject *args) {
    int fd, result;
    struct statfs found;
    (void)module;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    result = fstatfs(fd, &found);
    Py_END_ALLOW_THREADS;
    return result < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromUnsignedLong((unsigned long)found.f_type);
}

static PyObject *set_process_name(PyObject *module, PyObject *args) {
    const char *name;
    (void)module;
    if (!PyArg_ParseTuple(args, "s", &name))
        return NULL;
    if (prctl(PR_SET_NAME, name, 0, 0, 0) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

/* Bounds of the strings that the kernel put on the stack at the start: fields 48 to 51 of /proc/self/stat. */
static int find_start_strings(unsigned long bounds[4]) {
    char text[2048];
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    if (size <= 0)
        return -1;
    text[size] = '\0';
    char *at = strrchr(text, ')'); /* the name in front of it may have anything in it */
    for (int field = 2; at != NULL && field < 48; field++)
        at = strchr(at + 1, ' ');
    if (at == NULL || sscanf(at, " %lu %lu %lu %lu", bounds, bounds + 1, bounds + 2, bounds + 3) != 4)
        return -1;
    return bounds[0] != 0 && bounds[0] < bounds[1] && bounds[1] <= bounds[2] && bounds[2] <= bounds[3] ? 0 : -1;
}

/* The caller has emptied its environment, so that nothing points into it any more. */
static PyObject *forget_caller(PyObject *module, PyObject *args) {
    const char *name;
    unsigned long bounds[4];
    (void)module;
    if (!PyArg_ParseTuple(args, "s", &name))
        return NULL;
    if (find_start_strings(bounds) == 0) {
        memset((void *)bounds[2], 0, bounds[3] - bounds[2]);
        memset((void *)bounds[0], 0, bounds[1] - bounds[0]);
        strncpy((char *)bounds[0], name, bounds[1] - bounds[0] - 1);
    }
    if (prctl(PR_SET_NAME, name, 0, 0, 0) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"drop_privileges", drop_privileges, METH_VARARGS,
     "drop_privileges(user, proc, opened=None): for good. proc: descriptor of the proc file system that is this "
     "process's "
     "root. opened: opens the store as that user, and returns the descriptor of its directory, or -1."},
    {"keep_to_network", keep_to_network, METH_O,
     "keep_to_network(user): for good. What is left is reading what everybody may read, and talking to the network. "
     "The "
     "process ends with its parent."},
    {"device_of", device_of, METH_VARARGS, "device_of(fd) -> (major, minor): without asking the file system."},
    {"filesystem_of", filesystem_of, METH_VARARGS, "filesystem_of(fd) -> int: the magic number of statfs(2)."},
    {"set_process_name", set_process_name, METH_VARARGS, "set_process_name(name): at most 15 bytes of it count."},
    {"forget_caller", forget_caller, METH_VARARGS,
     "forget_caller(name): what /proc shows of this process's arguments and environment is name and nothing. Empty "
     "os.environ before."},
    {NULL, NULL, 0, NULL},
};

int os_py_add_privileges(PyObject *module) {
    return PyModule_AddFunctions(module, functions);
}
