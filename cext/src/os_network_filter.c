/* An allow list: old calls (open, rename, unlink, mkdir of x86-64) and new ones (io_uring, openat2, userfaultfd) have
 * many names for what a list of forbidden ones forgets. What is here is what libcurl, its TLS, the resolver of the C
 * library and Python's poll loop were seen to use, and their relatives on the other architecture. */
#define _GNU_SOURCE
#include "os_network_filter.h"

#include "os_filter.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#define WRITES (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC | O_APPEND)

static const int ALLOWED[] = {
    /* memory, time, threads, signals to oneself */
    SYS_munmap,
    SYS_mremap,
    SYS_madvise,
    SYS_brk,
    SYS_futex,
    SYS_nanosleep,
    SYS_clock_nanosleep,
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_gettimeofday,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_set_robust_list,
    SYS_rseq,
    SYS_set_tid_address,
    SYS_gettid,
    SYS_getpid,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_getrandom,
    SYS_uname,
    SYS_sysinfo,
    SYS_exit,
    SYS_exit_group,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sigaltstack,
    SYS_restart_syscall,
    /* what is open */
    SYS_read,
    SYS_write,
    SYS_readv,
    SYS_writev,
    SYS_pread64,
    SYS_close,
    SYS_lseek,
    SYS_fstat,
    SYS_fstatfs,
    SYS_dup,
    SYS_fcntl,
    SYS_fadvise64,
    SYS_ppoll,
    SYS_pselect6,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_eventfd2,
    SYS_pipe2,
    /* the network: outwards, nobody is accepted */
    SYS_connect,
    SYS_bind,
    SYS_getsockname,
    SYS_getpeername,
    SYS_sendto,
    SYS_recvfrom,
    SYS_sendmsg,
    SYS_recvmsg,
    SYS_sendmmsg,
    SYS_recvmmsg,
    SYS_setsockopt,
    SYS_getsockopt,
    SYS_shutdown,
    SYS_socketpair,
    /* looking at names: resolv.conf, certificates */
    SYS_newfstatat,
    SYS_statx,
    SYS_faccessat,
    SYS_readlinkat,
    SYS_getdents64,
#ifdef SYS_faccessat2
    SYS_faccessat2,
#endif
#ifdef __x86_64__
    SYS_poll,
    SYS_select,
    SYS_epoll_wait,
    SYS_pipe,
    SYS_stat,
    SYS_lstat,
    SYS_access,
    SYS_readlink,
    SYS_time,
#endif
};

enum { ALLOWED_COUNT = sizeof ALLOWED / sizeof *ALLOWED };

int os_keep_to_network(unsigned process) {
    const struct sock_filter checks[] = {
        /* Without its arguments in registers clone3 cannot be judged; without it libc uses clone. */
        IF(SYS_clone3, 0, 1),
        RETURN(SECCOMP_RET_ERRNO | ENOSYS),
        IF(SYS_clone, 0, 4),
        LOW(0),
        IF_BITS(CLONE_THREAD, 0, 1),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(DENY),
        /* Nothing that came over the network becomes code. */
        IF(SYS_mmap, 1, 0),
        IF(SYS_mprotect, 0, 4),
        LOW(2),
        IF_BITS(PROT_EXEC, 1, 0),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(DENY),
        /* openat(…) to read */
        IF(SYS_openat, 0, 4),
        LOW(2),
        IF_BITS(WRITES, 1, 0),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(DENY),
#ifdef SYS_open
        IF(SYS_open, 0, 4),
        LOW(1),
        IF_BITS(WRITES, 1, 0),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(DENY),
#endif
        /* Sockets of the Internet, and the kernel's list of addresses. Name services that are asked over a local
         * socket are missing, as on a host where they do not run, and the C library goes on to DNS: a local socket
         * would reach every service of the host that listens to everybody. */
        IF(SYS_socket, 0, 6),
        LOW(0),
        IF(AF_INET, 2, 0),
        IF(AF_INET6, 1, 0),
        IF(AF_NETLINK, 0, 1),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(DENY),
        /* Its own limits, to read. */
        IF(SYS_prlimit64, 0, 6),
        LOW(2),
        IF(0, 0, 3),
        HIGH(2),
        IF(0, 0, 1),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(DENY),
        /* Signals to itself, to abort. */
        IF(SYS_tgkill, 0, 4),
        LOW(0),
        IF(process, 0, 1),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(DENY),
        IF(SYS_prctl, 0, 4),
        LOW(0),
        IF(PR_SET_NAME, 0, 1),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(DENY),
        IF(SYS_ioctl, 0, 6),
        LOW(1),
        IF(FIONBIO, 2, 0),
        IF(FIONREAD, 1, 0),
        IF(FIOCLEX, 0, 1),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(DENY),
    };
    struct sock_filter program[ALLOWED_COUNT + sizeof checks / sizeof *checks + 8];
    unsigned short at = 0;
    program[at++] = (struct sock_filter)FIELD(arch);
    program[at++] = (struct sock_filter)IF(ARCHITECTURE, 1, 0);
    program[at++] = (struct sock_filter)RETURN(SECCOMP_RET_KILL_PROCESS);
    program[at++] = (struct sock_filter)FIELD(nr);
    for (int row = 0; row < ALLOWED_COUNT; row++) /* the jump leads to the RETURN behind the table */
        program[at++] = (struct sock_filter)IF(ALLOWED[row], ALLOWED_COUNT - row, 0);
    program[at++] = (struct sock_filter)BPF_STMT(BPF_JMP | BPF_JA, 1);
    program[at++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
    memcpy(program + at, checks, sizeof checks);
    at += sizeof checks / sizeof *checks;
    program[at++] = (struct sock_filter)RETURN(DENY);
    struct sock_fprog filter = {.len = at, .filter = program};
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
}
