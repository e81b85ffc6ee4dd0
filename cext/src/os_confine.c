#define _GNU_SOURCE
/* The order in the child matters. Signals are blocked before the fork, so that no handler of the parent (Python's
 * writes into a descriptor) runs in it. Descriptors go first, then privileges, then the death signal, which a change of
 * user would have cleared, and last the filter, which allows none of these calls. */
#include "os_confine.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOBODY 65534

#if defined(__x86_64__)
#define OUR_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define OUR_ARCH AUDIT_ARCH_AARCH64
#else
#error "no seccomp architecture for this machine"
#endif

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define KILL BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
#define CALL(call) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_##call, 0, 1), ALLOW
/* Both are 4 statements behind their comparison, and none returns to the list: args are little-endian u64. */
#define CALL_WITHOUT(call, argument, bits)                                                                             \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_##call, 0, 4), LOAD(args[argument]),                                      \
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, 0, 1), KILL, ALLOW
#define CALL_WITH(call, argument, value)                                                                               \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_##call, 0, 4), LOAD(args[argument]),                                      \
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 1, 0), KILL, ALLOW

static int filter_calls(int answer) {
    struct sock_filter rules[] = {
        LOAD(arch),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OUR_ARCH, 1, 0),
        KILL,
        LOAD(nr),
        CALL_WITH(write, 0, (uint32_t)answer),
        CALL_WITHOUT(mmap, 2, PROT_EXEC),
        CALL_WITHOUT(mprotect, 2, PROT_EXEC), /* malloc, in an arena that is not the main one */
        CALL(munmap),
        CALL(mremap),
        CALL(brk),
        CALL(madvise),
        CALL(getrandom), /* malloc, when it is used for the first time */
        CALL(futex),
        CALL(sched_yield),
        CALL(exit_group),
        KILL,
    };
    struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    (void)program; /* sanitizers make system calls of their own */
    return 0;
#else
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
#endif
}

static int close_others(int answer) {
    if (answer > 0 && syscall(__NR_close_range, 0u, (unsigned)answer - 1, 0u) < 0)
        return -1;
    return (int)syscall(__NR_close_range, (unsigned)answer + 1, ~0u, 0u);
}

static int drop_privileges(void) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
    if (geteuid() == 0 &&
        (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0))
        return -1;
    return (int)syscall(__NR_capset, &head, none);
}

static int confine(int answer, pid_t parent) {
    struct rlimit nothing = {0, 0};
    if (close_others(answer) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        setrlimit(RLIMIT_CORE, &nothing) < 0 || drop_privileges() < 0 || prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        return -1;
    if (getppid() != parent) { /* it died before the death signal was set */
        errno = ESRCH;
        return -1;
    }
    return filter_calls(answer);
}

_Noreturn static void child_main(os_task task, const void *context, int answer, pid_t parent) {
    os_failure said;
    memset(&said, 0, sizeof said); /* all of it is written */
    if (confine(answer, parent) < 0)
        os_fail_errno(&said, errno, "checker: cannot give up privileges");
    else if (task(context, &said) == OS_OK)
        said.code = OS_OK;
    ssize_t written = write(answer, &said, sizeof said); /* at most PIPE_BUF: all or nothing */
    _exit(written == sizeof said ? 0 : 1);
}

_Static_assert(sizeof(os_failure) <= 4096, "an answer is one atomic write");

/* What the child said, or how it died. */
static os_code wait_for(pid_t child, int answer, os_failure *failure) {
    os_failure said;
    size_t got = 0;
    int status;
    while (got < sizeof said) {
        ssize_t count = read(answer, (char *)&said + got, sizeof said - got);
        if (count > 0)
            got += (size_t)count;
        else if (count == 0 || errno != EINTR)
            break;
    }
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return os_fail_errno(failure, errno, "checker: cannot wait for it");
    if (WIFSIGNALED(status))
        return os_fail(failure, OS_CORRUPT, "checker: it was killed by signal %d", WTERMSIG(status));
    if (got < sizeof said || WEXITSTATUS(status) != 0 || said.code > OS_CLOSED)
        return os_fail(failure, OS_CORRUPT, "checker: it ended without an answer");
    said.message[sizeof said.message - 1] = '\0';
    if (said.code != OS_OK && failure)
        *failure = said;
    return said.code;
}

os_code os_run_confined(os_task task, const void *context, os_failure *failure) {
    int ends[2];
    sigset_t all, before;
    pid_t self = getpid();
    if (pipe2(ends, O_CLOEXEC) < 0)
        return os_fail_errno(failure, errno, "checker: cannot make a pipe");
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    pid_t child = fork();
    if (child == 0)
        child_main(task, context, ends[1], self);
    int error = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    close(ends[1]);
    os_code code =
        child < 0 ? os_fail_errno(failure, error, "checker: cannot start it") : wait_for(child, ends[0], failure);
    close(ends[0]);
    return code;
}
