/* What os_lmdb.c (transactions) and os_lmdb_open.c share. Private to them. */
#ifndef OS_LMDB_PARTS_H
#define OS_LMDB_PARTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>

#include "os_lmdb.h"

enum { OS_LMDB_ATTEMPTS = 100 };

struct os_lmdb {
    os_lmdb *next;                     /* guarded by registry */
    unsigned users;                    /* guarded by registry */
    dev_t device;                      /* immutable, with inode: of data.mdb */
    ino_t inode;                       /* immutable */
    pid_t pid;                         /* immutable */
    int fd;                            /* owned, read-only, of data.mdb; used while opening, -1 after */
    MDB_env *environment;              /* owned; its size guarded by resizing */
    const os_lmdb_kind *kind;          /* borrowed, static */
    pthread_rwlock_t resizing;         /* see above */
    MDB_dbi tables[OS_LMDB_DATABASES]; /* immutable once open */
    atomic_bool failed;                /* a page could not be read: of no use any more */
    atomic_bool stuck;                 /* so inside a writing call: LMDB's memory is not to be touched again */
};

/* ---- os_lmdb.c */

/* The failure that stands for an LMDB code. */
os_code os_lmdb_fail(os_failure *failure, int code, const char *what);
/* LMDB calls a write that was cut short EIO, and so says nothing of a full disk: ENOSPC then. fd: on that disk. */
int os_lmdb_honest(int code, int fd);
unsigned os_lmdb_table_count(const os_lmdb_kind *kind);
/* work in a transaction with these flags of mdb_txn_begin, then its commit. An LMDB code; MDB_PANIC: the map has
 * failed. */
int os_lmdb_transact(os_lmdb *map, unsigned flags, int (*work)(void *context, MDB_txn *transaction), void *context);
/* The same to write, again with a larger map while it is full. */
int os_lmdb_write_growing(os_lmdb *map, int (*change)(void *context, MDB_txn *transaction), void *context);

#endif
