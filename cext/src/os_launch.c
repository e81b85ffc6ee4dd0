#define _GNU_SOURCE
#include "os_launch.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_move_mount
#define SYS_move_mount 429
#endif
#define OS_MOVE_MOUNT_F_EMPTY_PATH 0x4u

/* What the child was doing when it failed; goes through the pipe with its errno. */
enum step {
    STEP_PARENT,
    STEP_STREAMS,
    STEP_GROUP,
    STEP_NAMESPACE,
    STEP_ROOT,
    STEP_PROC,
    STEP_UNMOUNT,
    STEP_SIGNALS,
    STEP_EXECUTE
};

static const char *const STEP_NAMES[] = {
    "watch the parent",           "have its streams",  "make a process group",
    "make the mounts private",    "attach its mounts", "mount /proc",
    "unmount a host file system", "reset signals",     "execute",
};

typedef struct report {
    int step;
    int error;
} report;

static _Noreturn void child_fail(int pipe_fd, int step) {
    report sent = {step, errno};
    ssize_t written = write(pipe_fd, &sent, sizeof sent);
    _exit(written == (ssize_t)sizeof sent ? 125 : 124);
}

/* Only system calls from here to execve: the parent's other threads may have held any lock. */
static _Noreturn void child(const os_launch *launch, const int alive[2], int pipe_fd) {
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0)
        child_fail(pipe_fd, STEP_PARENT);
    /* The parent may have died before prctl; then the only other write end is closed. getppid() is 0 in here. */
    close(alive[1]);
    struct pollfd watch = {.fd = alive[0], .events = POLLIN};
    if (poll(&watch, 1, 0) != 0)
        _exit(125);
    for (int fd = 0; fd < 3; fd++)
        if (launch->streams[fd] >= 0 && dup2(launch->streams[fd], fd) < 0)
            child_fail(pipe_fd, STEP_STREAMS);
    if (launch->own_group && setpgid(0, 0) != 0)
        child_fail(pipe_fd, STEP_GROUP);
    /* Slave, not private: what the host unmounts later does not stay busy because of us. */
    if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) != 0)
        child_fail(pipe_fd, STEP_NAMESPACE);
    for (size_t at = 0; at < launch->mount_count; at++)
        if (syscall(SYS_move_mount, launch->mounts[at].tree, "", AT_FDCWD, launch->mounts[at].target,
                    OS_MOVE_MOUNT_F_EMPTY_PATH) != 0)
            child_fail(pipe_fd, STEP_ROOT);
    if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) != 0)
        child_fail(pipe_fd, STEP_PROC);
    for (const char *const *path = launch->unmount; *path != NULL; path++)
        if (umount2(*path, MNT_DETACH) != 0 && errno != EINVAL && errno != ENOENT)
            child_fail(pipe_fd, STEP_UNMOUNT);
    /* Python ignores SIGPIPE and SIGXFSZ, and what is ignored stays ignored in the container. */
    for (int number = 1; number < NSIG; number++)
        if (number != SIGKILL && number != SIGSTOP)
            signal(number, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    if (sigprocmask(SIG_SETMASK, &none, NULL) != 0)
        child_fail(pipe_fd, STEP_SIGNALS);
    execve(launch->program, launch->arguments, launch->environment);
    child_fail(pipe_fd, STEP_EXECUTE);
}

static ssize_t read_report(int fd, report *received) {
    ssize_t size;
    do {
        size = read(fd, received, sizeof *received);
    } while (size < 0 && errno == EINTR);
    return size;
}

static void reap(pid_t pid) {
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        continue;
}

os_code os_launch_start(const os_launch *launch, pid_t *pid, os_failure *failure) {
    os_code code = OS_OK;
    int alive[2] = {-1, -1}, reports[2] = {-1, -1};
    sigset_t all, before;
    if (pipe2(alive, O_CLOEXEC) != 0 || pipe2(reports, O_CLOEXEC) != 0) {
        code = os_fail_errno(failure, errno, "%s: cannot make a pipe", launch->program);
        goto done;
    }
    /* A handler of the parent's must not run in the child. */
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    long made = syscall(SYS_clone, (unsigned long)(CLONE_NEWPID | CLONE_NEWNS | SIGCHLD), 0, 0, 0, 0);
    if (made == 0)
        child(launch, alive, reports[1]);
    int error = errno;
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (made < 0) {
        code = os_fail_errno(failure, error, "%s: cannot make its namespaces", launch->program);
        goto done;
    }
    close(reports[1]);
    reports[1] = -1;
    report received;
    ssize_t size = read_report(reports[0], &received);
    if (size != 0) {
        kill((pid_t)made, SIGKILL);
        reap((pid_t)made);
        if (size != (ssize_t)sizeof received || received.step < 0 || received.step > STEP_EXECUTE)
            code = os_fail(failure, OS_CORRUPT, "%s: got a broken report of its start", launch->program);
        else
            code = os_fail_errno(failure, received.error, "%s: cannot %s", launch->program, STEP_NAMES[received.step]);
        goto done;
    }
    *pid = (pid_t)made;
done:
    for (int end = 0; end < 2; end++) {
        if (alive[end] >= 0)
            close(alive[end]);
        if (reports[end] >= 0)
            close(reports[end]);
    }
    return code;
}
