/* A fault is synchronous: it hits the thread that read, in the middle of LMDB's code or of a memcpy from its pages,
 * never inside malloc or a lock of the C library. So jumping out leaves nothing locked but what LMDB itself holds.
 *
 * SA_NODEFER: the handler is left by a jump, which then has no signal mask to put back (a system call for each read).
 */
#define _GNU_SOURCE
#include "os_lmdb_guard.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>

/* initial-exec: its address is known without a call that may allocate, which a handler must not do. */
static _Thread_local sigjmp_buf *volatile place __attribute__((tls_model("initial-exec")));
static struct sigaction before_bus, before_segv; /* immutable once installed */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void on_fault(int number, siginfo_t *about, void *context) {
    const struct sigaction *before = number == SIGBUS ? &before_bus : &before_segv;
    if (place != NULL && about->si_code > 0) /* not sent by somebody */
        siglongjmp(*place, 1);
    if (before->sa_flags & SA_SIGINFO) {
        before->sa_sigaction(number, about, context);
    } else if (before->sa_handler != SIG_DFL && before->sa_handler != SIG_IGN) {
        before->sa_handler(number);
    } else {
        struct sigaction plain = {.sa_handler = SIG_DFL};
        sigaction(number, &plain, NULL);
        if (about->si_code <= 0)
            raise(number); /* else the access is made again, and ends the process */
    }
}

static void install(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    sigaction(SIGBUS, &action, &before_bus);
    sigaction(SIGSEGV, &action, &before_segv);
}

void os_lmdb_guard_install(void) {
    pthread_once(&once, install);
}

void os_lmdb_guard_assert(MDB_env *environment, const char *words) {
    (void)environment;
    (void)words;
    if (place != NULL)
        siglongjmp(*place, 1);
}

bool os_lmdb_guarded(void (*what)(void *context), void *context) {
    sigjmp_buf here;
    sigjmp_buf *const outer = place;
    if (sigsetjmp(here, 0) != 0) {
        place = outer;
        return false;
    }
    place = &here;
    what(context);
    place = outer;
    return true;
}
