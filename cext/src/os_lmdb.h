/* An LMDB environment that can be trusted after a crash, a fork, or rot: the one door to lmdb.h for chunk map and
 * store.
 *
 * - Checked before use (os_lmdb_check.h), and marked with what it is for, so that a stranger's environment is refused.
 * - Open once per process: a second open of the same file shares it (LMDB's locks would be lost by closing the other).
 * - Never used after a fork: every call in the child is OS_CLOSED. The child opens its own.
 * - Grows: a full map is doubled up to OS_LMDB_MAP_MAX and the transaction run again; growth by others is followed.
 * - A page that cannot be read (SIGBUS) ends the call, and the map: everything after is OS_CORRUPT. Who keeps what can
 * be made again deletes the files and makes it again.
 *
 * All functions may be called from any thread. */
#ifndef OS_LMDB_H
#define OS_LMDB_H

#include <lmdb.h>
#include <stddef.h>
#include <stdint.h>

#include "os_result.h"

#define OS_LMDB_DATABASES 4
#define OS_LMDB_MAP_MAX (UINT64_C(1) << 36) /* address space, not memory */

typedef struct os_lmdb os_lmdb;

typedef struct os_lmdb_kind {
    const char *name;                      /* immutable; stored in the environment, with a version */
    const char *tables[OS_LMDB_DATABASES]; /* ends with NULL if fewer */
} os_lmdb_kind;

typedef struct os_lmdb_statistics {
    uint64_t rows[OS_LMDB_DATABASES]; /* by table */
    uint64_t used, map_size;          /* bytes */
} os_lmdb_statistics;

/* path: an existing directory. map_size: first size of the map, bytes; 0 is a default. OS_CORRUPT: damaged or foreign.
 */
os_code os_lmdb_open(const char *path, const os_lmdb_kind *kind, size_t map_size, os_lmdb **out, os_failure *failure);
void os_lmdb_close(os_lmdb *map); /* may be NULL */

MDB_dbi os_lmdb_table(const os_lmdb *map, unsigned row);

/* Runs look in a read transaction; keep it short. look returns an LMDB code; MDB_NOTFOUND becomes OS_MISSING, without
 * words. What it allocates is lost if the map fails under it. */
os_code os_lmdb_read(os_lmdb *map, int (*look)(void *context, MDB_txn *transaction), void *context,
                     os_failure *failure);

/* Runs change in a write transaction and commits: durable when it returns OS_OK, without effect otherwise. change
 * returns an LMDB code; it may run more than once, each time on the state before the first. */
os_code os_lmdb_write(os_lmdb *map, int (*change)(void *context, MDB_txn *transaction), void *context,
                      os_failure *failure);

os_code os_lmdb_statistics_of(os_lmdb *map, os_lmdb_statistics *out, os_failure *failure);

#endif
