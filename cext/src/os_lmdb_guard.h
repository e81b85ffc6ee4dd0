/* LMDB reads its file through a mapping: a page that the disk cannot give, or a file that somebody cut short, is a
 * SIGBUS. Inside a guard that ends the call instead of the process. */
#ifndef OS_LMDB_GUARD_H
#define OS_LMDB_GUARD_H

#include <stdbool.h>

/* Before the first guard; may be called again. The handler that was there before gets every SIGBUS that is not ours. */
void os_lmdb_guard_install(void);

/* Runs what. false: a SIGBUS ended it half-way, and whatever it had in hand (but this thread's stack) is as it was
 * then. May not be nested in itself through what's own callees that hold locks. */
bool os_lmdb_guarded(void (*what)(void *context), void *context);

#endif
