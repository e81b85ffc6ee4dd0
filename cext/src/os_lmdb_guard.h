/* LMDB trusts the pages of its file, which it reads through a mapping. A page that the disk cannot give, or a file that
 * somebody cut short, is a SIGBUS; a page that rotted after it was checked is an assertion or a wild read. Inside a
 * guard these end the call instead of the process. */
#ifndef OS_LMDB_GUARD_H
#define OS_LMDB_GUARD_H

#include <lmdb.h>
#include <stdbool.h>

/* Before the first guard; may be called again. The handlers that were there before get every signal that is not ours.
 */
void os_lmdb_guard_install(void);
/* For mdb_env_set_assert. */
void os_lmdb_guard_assert(MDB_env *environment, const char *words);

/* Runs what. false: it was ended half-way, and whatever it had in hand (but this thread's stack) is as it was then. */
bool os_lmdb_guarded(void (*what)(void *context), void *context);

#endif
