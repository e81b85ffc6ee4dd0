/* confined NAME: runs one attempt in a confined process (cext/src/os_confine.c) and prints "code message". What it may
 * use beyond memory is handed to it from before: an open file, the number of its caller. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "os_confine.h"

static int spare; /* open in the caller */

static void try_open(void) {
    open("/etc/passwd", O_RDONLY | O_CLOEXEC);
}
static void try_stat(void) {
    struct stat found;
    stat("/", &found);
}
static void try_read(void) {
    char byte;
    if (read(spare, &byte, 1) < 0)
        return;
}
static void try_write_elsewhere(void) {
    if (write(spare, "x", 1) < 0)
        return;
}
static void try_exec(void) {
    execl("/bin/true", "true", (char *)NULL);
}
static void try_fork(void) {
    if (fork() == 0)
        _exit(0);
}
static void try_socket(void) {
    socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
}
static void try_kill(void) {
    kill(getppid(), 0);
}
static void try_signal_number(void) {
    syscall(SYS_kill, 1, 0);
}
static void try_ptrace(void) {
    ptrace(PTRACE_ATTACH, 1, NULL, NULL);
}
static void try_mount(void) {
    mount("a", "/b", "tmpfs", 0, NULL);
}
static void try_root(void) {
    syscall(SYS_setuid, 0);
}
static void try_prctl(void) {
    syscall(SYS_prctl, 15, "name", 0, 0, 0);
}
static void try_unlink(void) {
    unlink("/tmp/nothing");
}
static void try_bpf(void) {
    syscall(SYS_bpf, 0, NULL, 0);
}
static void try_io_uring(void) {
    syscall(SYS_io_uring_setup, 1, NULL);
}
static void try_executable_memory(void) {
    syscall(SYS_mmap, NULL, 4096ul, (unsigned long)(PROT_READ | PROT_EXEC), MAP_PRIVATE | MAP_ANONYMOUS, -1, 0ul);
}
static void try_make_executable(void) {
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(page, 4096, PROT_READ | PROT_EXEC);
}
static void try_crash(void) {
    *(volatile int *)8 = 1;
}
static void try_abort(void) {
    abort();
}

/* What a parser needs. */
static void use_memory(void) {
    char *all[64];
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned at = 0; at < 64; at++) {
            all[at] = calloc(1, 1000u << (at % 14));
            all[at] = realloc(all[at], 3000u << (at % 14));
            memset(all[at], 1, 3000u << (at % 14));
        }
        for (unsigned at = 0; at < 64; at++)
            free(all[at]);
    }
}

static void spin(void) {
    for (volatile unsigned long at = 0; at < 20000000000ul; at++)
        ;
}

static const struct {
    const char *name;
    void (*attempt)(void);
} ATTEMPTS[] = {
    {"open", try_open},
    {"stat", try_stat},
    {"read", try_read},
    {"write elsewhere", try_write_elsewhere},
    {"exec", try_exec},
    {"fork", try_fork},
    {"socket", try_socket},
    {"kill", try_kill},
    {"kill by number", try_signal_number},
    {"ptrace", try_ptrace},
    {"mount", try_mount},
    {"become root", try_root},
    {"prctl", try_prctl},
    {"unlink", try_unlink},
    {"bpf", try_bpf},
    {"io_uring", try_io_uring},
    {"executable memory", try_executable_memory},
    {"memory made executable", try_make_executable},
    {"crash", try_crash},
    {"abort", try_abort},
    {"memory", use_memory},
    {"spin", spin},
};

static os_code run(const void *context, os_failure *failure) {
    for (size_t row = 0; row < sizeof ATTEMPTS / sizeof *ATTEMPTS; row++)
        if (!strcmp(ATTEMPTS[row].name, context)) {
            ATTEMPTS[row].attempt();
            return OS_OK;
        }
    return os_fail(failure, OS_LIMIT, "no attempt of this name: %s", (const char *)context);
}

int main(int count, char **words) {
    os_failure failure = {OS_OK, 0, ""};
    if (count != 2)
        return 2;
    spare = open("/dev/null", O_RDWR | O_CLOEXEC);
    os_code code = os_run_confined(run, words[1], &failure);
    printf("%d %s\n", (int)code, code == OS_OK ? "" : failure.message);
    return 0;
}
