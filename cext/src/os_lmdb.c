/* Threads. Any thread may read; LMDB lets one thread of one process write. Two locks, taken in this order:
 *
 *   registry       guards the list of open maps and their counts; held while a map is opened and checked, so that two
 *                  threads never open one file twice. Taken around fork, so that a child never inherits it locked.
 *   map->resizing  read-held around every transaction, write-held to change the map's size: LMDB may move the map then.
 *
 * Below both are LMDB's own: the writer mutex (shared between processes, robust: a killed writer frees it) and the
 * reader table in lock.mdb.
 *
 * A child after fork must not even close its parent's environment: that would free the parent's reader slots. It leaks
 * the mapping and leaves the list to its parent (pid tells whose an entry is). */
#define _GNU_SOURCE
#include "os_lmdb.h"

#include <errno.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "os_lmdb_check.h"
#include "os_lmdb_guard.h"
#include "os_lmdb_parts.h"

os_code os_lmdb_fail(os_failure *failure, int code, const char *what) {
    if (code == MDB_NOTFOUND)
        return OS_MISSING;
    if (code == ENOMEM)
        return os_fail(failure, OS_MEMORY, "%s: no memory", what);
    if (code > 0)
        return os_fail_errno(failure, code, "%s: %s", what, strerror(code));
    if (code == MDB_MAP_FULL)
        return os_fail(failure, OS_LIMIT, "%s: full at %llu bytes", what, (unsigned long long)OS_LMDB_MAP_MAX);
    if (code == MDB_PANIC)
        return os_fail(failure, OS_CORRUPT, "%s: a page of its file could not be read or written", what);
    if (code == MDB_READERS_FULL || code == MDB_TXN_FULL)
        return os_fail(failure, OS_LIMIT, "%s: %s", what, mdb_strerror(code));
    return os_fail(failure, OS_CORRUPT, "%s: %s", what, mdb_strerror(code));
}

unsigned os_lmdb_table_count(const os_lmdb_kind *kind) {
    unsigned count = 0;
    while (count < OS_LMDB_DATABASES && kind->tables[count] != NULL)
        count++;
    return count;
}

/* Changes the size of the map: to size, or, for 0, to what the file says. */
static int resize(os_lmdb *map, size_t size) {
    pthread_rwlock_wrlock(&map->resizing);
    int code = mdb_env_set_mapsize(map->environment, size);
    pthread_rwlock_unlock(&map->resizing);
    return code;
}

static size_t map_size(os_lmdb *map) {
    MDB_envinfo about;
    mdb_env_info(map->environment, &about);
    return about.me_mapsize;
}

/* One transaction, as far as it came. */
typedef struct attempt {
    os_lmdb *map;
    unsigned flags; /* of mdb_txn_begin */
    int (*work)(void *context, MDB_txn *transaction);
    void *context;
    MDB_txn *transaction; /* NULL: not begun, or ended */
    int code;
} attempt;

static void run_attempt(void *context) {
    attempt *it = context;
    it->code = mdb_txn_begin(it->map->environment, NULL, it->flags, &it->transaction);
    if (it->code == MDB_READERS_FULL &&
        mdb_reader_check(it->map->environment, NULL) == 0) /* slots of killed processes */
        it->code = mdb_txn_begin(it->map->environment, NULL, it->flags, &it->transaction);
    if (it->code != 0) {
        it->transaction = NULL;
        return;
    }
    it->code = it->work(it->context, it->transaction);
    MDB_txn *transaction = it->transaction;
    if (it->code == 0) {
        it->transaction = NULL;                 /* commit frees it whatever it returns */
        it->code = mdb_txn_commit(transaction); /* a reading one too: table handles stay only then */
    } else {
        mdb_txn_abort(transaction);
        it->transaction = NULL;
    }
}

/* A commit that failed half-way through its meta page makes LMDB refuse everything after, also reading: then the map
 * has failed for good, whatever the errno was. */
static void probe(void *context) {
    attempt *it = context;
    if (mdb_txn_begin(it->map->environment, NULL, MDB_RDONLY, &it->transaction) == MDB_PANIC)
        it->code = MDB_PANIC;
    else
        mdb_txn_abort(it->transaction);
    it->transaction = NULL;
}

static void abort_attempt(void *context) {
    mdb_txn_abort(((attempt *)context)->transaction);
}

int os_lmdb_transact(os_lmdb *map, unsigned flags, int (*work)(void *context, MDB_txn *transaction), void *context) {
    for (int tries = 0;; tries++) {
        attempt it = {.map = map, .flags = flags, .work = work, .context = context};
        if (atomic_load(&map->failed))
            return MDB_PANIC;
        pthread_rwlock_rdlock(&map->resizing);
        if (!os_lmdb_guarded(run_attempt, &it)) {
            atomic_store(&map->failed, true);
            if (!(flags & MDB_RDONLY))
                atomic_store(&map->stuck, true);
            else if (it.transaction != NULL) /* gives the reader's slot back */
                os_lmdb_guarded(abort_attempt, &it);
            it.code = MDB_PANIC;
        }
        if (it.code > 0 && !(flags & MDB_RDONLY)) {
            it.transaction = NULL;
            os_lmdb_guarded(probe, &it);
        }
        if (it.code == MDB_PANIC)
            atomic_store(&map->failed, true);
        pthread_rwlock_unlock(&map->resizing);
        if (it.code != MDB_MAP_RESIZED || tries == OS_LMDB_ATTEMPTS)
            return it.code;
        if (resize(map, 0) != 0) { /* a size that nobody can have */
            atomic_store(&map->failed, true);
            return MDB_PANIC;
        }
    }
}

static os_code usable(const os_lmdb *map, os_failure *failure) {
    return map->pid == getpid()
               ? OS_OK
               : os_fail(failure, OS_CLOSED, "%s: opened before a fork, want it opened after", map->kind->name);
}

os_code os_lmdb_read(os_lmdb *map, int (*look)(void *context, MDB_txn *transaction), void *context,
                     os_failure *failure) {
    if (usable(map, failure) != OS_OK)
        return OS_CLOSED;
    int code = os_lmdb_transact(map, MDB_RDONLY, look, context);
    return code == 0 ? OS_OK : os_lmdb_fail(failure, code, map->kind->name);
}

int os_lmdb_honest(int code, int fd) {
    struct statvfs about;
    return code == EIO && fstatvfs(fd, &about) == 0 && about.f_bavail == 0 ? ENOSPC : code;
}

int os_lmdb_write_growing(os_lmdb *map, int (*change)(void *context, MDB_txn *transaction), void *context) {
    for (;;) {
        size_t size = map_size(map);
        int fd, code = os_lmdb_transact(map, 0, change, context);
        if (code == EIO && mdb_env_get_fd(map->environment, &fd) == 0)
            code = os_lmdb_honest(code, fd);
        if (code != MDB_MAP_FULL || size >= OS_LMDB_MAP_MAX)
            return code;
        code = map_size(map) > size ? 0 : resize(map, size * 2);
        if (code != 0)
            return code;
    }
}

typedef struct checked_change {
    os_lmdb *map;
    int (*change)(void *context, MDB_txn *transaction);
    void *context;
} checked_change;

/* LMDB copies pages into memory of its own to change them, by the bounds that stand in them: with a page that rotted
 * since it was checked it writes anywhere. So all are checked again, 1 ms for each 2 MB, while nobody else may write.
 */
static int check_and_change(void *context, MDB_txn *transaction) {
    checked_change *it = context;
    int fd;
    int code = mdb_env_get_fd(it->map->environment, &fd);
    if (code != 0)
        return code;
    os_code sound = os_lmdb_check_pages(fd, mdb_txn_id(transaction) - 1, NULL);
    if (sound == OS_MEMORY)
        return ENOMEM;
    return sound == OS_OK ? it->change(it->context, transaction) : MDB_PANIC;
}

os_code os_lmdb_write(os_lmdb *map, int (*change)(void *context, MDB_txn *transaction), void *context,
                      os_failure *failure) {
    checked_change it = {map, change, context};
    if (usable(map, failure) != OS_OK)
        return OS_CLOSED;
    int code = os_lmdb_write_growing(map, check_and_change, &it);
    return code == 0 ? OS_OK : os_lmdb_fail(failure, code, map->kind->name);
}

MDB_dbi os_lmdb_table(const os_lmdb *map, unsigned row) {
    return map->tables[row];
}

typedef struct counting {
    const os_lmdb *map;
    os_lmdb_statistics *out;
} counting;

static int count_rows(void *context, MDB_txn *transaction) {
    const counting *it = context;
    MDB_envinfo about;
    MDB_stat table;
    *it->out = (os_lmdb_statistics){0};
    mdb_env_info(it->map->environment, &about);
    for (unsigned row = 0; row < os_lmdb_table_count(it->map->kind); row++) {
        mdb_stat(transaction, it->map->tables[row], &table);
        it->out->rows[row] = table.ms_entries;
        it->out->used = (about.me_last_pgno + 1) * table.ms_psize;
    }
    it->out->map_size = about.me_mapsize;
    return 0;
}

os_code os_lmdb_statistics_of(os_lmdb *map, os_lmdb_statistics *out, os_failure *failure) {
    counting it = {map, out};
    return os_lmdb_read(map, count_rows, &it, failure);
}
