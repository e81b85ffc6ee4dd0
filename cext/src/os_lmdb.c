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
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "os_lmdb_check.h"
#include "os_lmdb_guard.h"

enum { READERS_MAX = 512, ATTEMPTS = 100, LOCK_SIZE = READERS_MAX * 64 + 4096 };
#define MAP_DEFAULT ((size_t)64 << 20)
#define KIND_KEY "onesec kind"

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

static pthread_mutex_t registry = PTHREAD_MUTEX_INITIALIZER;
static os_lmdb *opened; /* guarded by registry */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void before_fork(void) {
    pthread_mutex_lock(&registry);
}

static void after_fork(void) {
    pthread_mutex_unlock(&registry);
}

static void prepare_process(void) {
    pthread_atfork(before_fork, after_fork, after_fork);
    os_lmdb_guard_install();
}

/* The failure that stands for an LMDB code. */
static os_code fail(os_failure *failure, int code, const char *what) {
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

static unsigned table_count(const os_lmdb_kind *kind) {
    unsigned count = 0;
    while (count < OS_LMDB_DATABASES && kind->tables[count] != NULL)
        count++;
    return count;
}

/* ---------------------------------------------------------------- transactions */

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

/* An LMDB code. MDB_PANIC: the map has failed. */
static int transact(os_lmdb *map, unsigned flags, int (*work)(void *context, MDB_txn *transaction), void *context) {
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
        if (it.code != MDB_MAP_RESIZED || tries == ATTEMPTS)
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
    int code = transact(map, MDB_RDONLY, look, context);
    return code == 0 ? OS_OK : fail(failure, code, map->kind->name);
}

/* LMDB calls a write that was cut short EIO, and so says nothing of a full disk. */
static int honest(int code, int fd) {
    struct statvfs about;
    return code == EIO && fstatvfs(fd, &about) == 0 && about.f_bavail == 0 ? ENOSPC : code;
}

static int write_growing(os_lmdb *map, int (*change)(void *context, MDB_txn *transaction), void *context) {
    for (;;) {
        size_t size = map_size(map);
        int fd, code = transact(map, 0, change, context);
        if (code == EIO && mdb_env_get_fd(map->environment, &fd) == 0)
            code = honest(code, fd);
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
    int code = write_growing(map, check_and_change, &it);
    return code == 0 ? OS_OK : fail(failure, code, map->kind->name);
}

/* ---------------------------------------------------------------- opening */

typedef struct page_check {
    os_lmdb *map;
    os_failure *failure;
    os_code code;
} page_check;

static int check_snapshot(void *context, MDB_txn *transaction) {
    page_check *it = context;
    it->code = os_lmdb_check_pages(it->map->fd, mdb_txn_id(transaction), it->failure);
    return 0;
}

static os_code check_pages(os_lmdb *map, os_failure *failure) {
    page_check it = {map, failure, OS_OK};
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        int code = transact(map, MDB_RDONLY, check_snapshot, &it);
        if (code != 0)
            return fail(failure, code, map->kind->name);
        if (it.code != OS_MISSING)
            return it.code;
    }
    return os_fail_errno(failure, EBUSY, "%s: others commit faster than it can be checked", map->kind->name);
}

static int fill_new(void *context, MDB_txn *transaction) {
    os_lmdb *map = context;
    MDB_dbi main;
    MDB_stat about;
    int code = mdb_dbi_open(transaction, NULL, 0, &main);
    if (code == 0)
        code = mdb_stat(transaction, main, &about);
    if (code != 0 || about.ms_entries > 0)
        return code; /* somebody else was faster */
    MDB_val key = {strlen(KIND_KEY), (void *)KIND_KEY};
    MDB_val value = {strlen(map->kind->name), (void *)map->kind->name};
    code = mdb_put(transaction, main, &key, &value, 0);
    for (unsigned row = 0; code == 0 && row < table_count(map->kind); row++)
        code = mdb_dbi_open(transaction, map->kind->tables[row], MDB_CREATE, &map->tables[row]);
    return code;
}

/* 0; MDB_NOTFOUND: nothing in it; MDB_INCOMPATIBLE: it is not ours. Opens the tables. */
static int open_tables(void *context, MDB_txn *transaction) {
    os_lmdb *map = context;
    MDB_dbi main;
    MDB_stat about;
    MDB_val value, key = {strlen(KIND_KEY), (void *)KIND_KEY};
    int code = mdb_dbi_open(transaction, NULL, 0, &main);
    if (code == 0)
        code = mdb_stat(transaction, main, &about);
    if (code != 0)
        return code;
    if (about.ms_entries == 0)
        return MDB_NOTFOUND;
    code = mdb_get(transaction, main, &key, &value);
    if (code != 0)
        return code == MDB_NOTFOUND ? MDB_INCOMPATIBLE : code;
    if (value.mv_size != strlen(map->kind->name) || memcmp(value.mv_data, map->kind->name, value.mv_size) != 0)
        return MDB_INCOMPATIBLE;
    for (unsigned row = 0; code == 0 && row < table_count(map->kind); row++)
        code = mdb_dbi_open(transaction, map->kind->tables[row], 0, &map->tables[row]);
    return code == MDB_NOTFOUND ? MDB_INCOMPATIBLE : code;
}

static os_code prepare(os_lmdb *map, os_failure *failure) {
    os_code checked = check_pages(map, failure);
    if (checked != OS_OK)
        return checked;
    mdb_reader_check(map->environment, NULL);
    int code = transact(map, MDB_RDONLY, open_tables, map);
    if (code == MDB_NOTFOUND) {
        code = write_growing(map, fill_new, map);
        if (code == 0)
            code = transact(map, MDB_RDONLY, open_tables, map);
    }
    if (code == MDB_INCOMPATIBLE || code == MDB_NOTFOUND)
        return os_fail(failure, OS_CORRUPT, "%s: the map holds something else", map->kind->name);
    return code == 0 ? OS_OK : fail(failure, code, map->kind->name);
}

static void close_environment(void *context) {
    mdb_env_close(context);
}

static void discard(os_lmdb *map) {
    if (map->fd >= 0)
        close(map->fd);
    if (map->environment != NULL &&
        !atomic_load(&map->stuck)) /* else it stays, with LMDB's lock, until the process ends */
        os_lmdb_guarded(close_environment, map->environment); /* lock.mdb is mapped too */
    pthread_rwlock_destroy(&map->resizing);
    free(map);
}

/* LMDB writes to lock.mdb through a mapping, and where the disk is full that is a SIGBUS: the room comes first. Its
 * size stays: others that have it open go by it. An errno. */
static int reserve_lock(const char *path) {
    char file[PATH_MAX];
    if (snprintf(file, sizeof file, "%s/lock.mdb", path) >= (int)sizeof file)
        return ENAMETOOLONG;
    int fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno;
    int code = fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, LOCK_SIZE) == 0 ? 0 : errno;
    close(fd); /* gives up this process's locks on it, and it has none: open_new is the first */
    return code == ENOSPC || code == EDQUOT ? code : 0;
}

/* An LMDB environment on path whose file fd is checked; registry is held. */
static os_code open_new(const char *path, const os_lmdb_kind *kind, size_t size, int fd, os_lmdb **out,
                        os_failure *failure) {
    os_lmdb *map = calloc(1, sizeof *map);
    if (map == NULL) {
        close(fd);
        return os_fail(failure, OS_MEMORY, "%s: no memory", kind->name);
    }
    *map = (os_lmdb){.users = 1, .pid = getpid(), .fd = fd, .kind = kind};
    pthread_rwlock_init(&map->resizing, NULL);
    int code = mdb_env_create(&map->environment);
    if (code == 0)
        code = mdb_env_set_mapsize(map->environment, size > 0 ? size : MAP_DEFAULT);
    if (code == 0)
        code = mdb_env_set_assert(map->environment, os_lmdb_guard_assert);
    if (code == 0)
        code = mdb_env_set_maxdbs(map->environment, OS_LMDB_DATABASES);
    if (code == 0)
        code = mdb_env_set_maxreaders(map->environment, READERS_MAX);
    if (code == 0)
        code = reserve_lock(path);
    if (code == 0)
        code = honest(mdb_env_open(map->environment, path, MDB_NOTLS | MDB_NORDAHEAD, 0600), fd);
    os_code done = code == 0 ? prepare(map, failure) : fail(failure, code, kind->name);
    if (done != OS_OK) {
        discard(map);
        return done;
    }
    struct stat about;
    fstat(fd, &about);
    map->device = about.st_dev;
    map->inode = about.st_ino;
    close(map->fd);
    map->fd = -1;
    *out = map;
    return OS_OK;
}

static os_lmdb *find(int fd) {
    struct stat about;
    if (fstat(fd, &about) < 0)
        return NULL;
    for (os_lmdb *map = opened; map != NULL; map = map->next)
        if (map->pid == getpid() && map->device == about.st_dev && map->inode == about.st_ino)
            return map;
    return NULL;
}

static os_code open_file(const char *path, const os_lmdb_kind *kind, size_t size, int fd, os_lmdb **out,
                         os_failure *failure) {
    os_lmdb *shared = find(fd);
    if (shared != NULL) {
        close(fd);
        if (atomic_load(&shared->failed))
            return fail(failure, MDB_PANIC, kind->name);
        if (shared->kind != kind)
            return os_fail(failure, OS_CORRUPT, "%s: the map holds something else", kind->name);
        shared->users++;
        *out = shared;
        return OS_OK;
    }
    os_code code = os_lmdb_check_meta(fd, failure);
    if (code != OS_OK && code != OS_MISSING) {
        close(fd);
        return code;
    }
    code = open_new(path, kind, size, fd, out, failure);
    if (code == OS_OK) {
        (*out)->next = opened;
        opened = *out;
    }
    return code;
}

os_code os_lmdb_open(const char *path, const os_lmdb_kind *kind, size_t size, os_lmdb **out, os_failure *failure) {
    char file[4096];
    *out = NULL;
    if (snprintf(file, sizeof file, "%s/data.mdb", path) >= (int)sizeof file)
        return os_fail_errno(failure, ENAMETOOLONG, "%s: path", kind->name);
    pthread_once(&once, prepare_process);
    pthread_mutex_lock(&registry);
    int fd = open(file, O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    os_code code = fd < 0 ? os_fail_errno(failure, errno, "%s: %s: %s", kind->name, file, strerror(errno))
                          : open_file(path, kind, size, fd, out, failure);
    pthread_mutex_unlock(&registry);
    return code;
}

void os_lmdb_close(os_lmdb *map) {
    if (map == NULL || map->pid != getpid())
        return;
    pthread_mutex_lock(&registry);
    bool last = --map->users == 0;
    if (last) {
        os_lmdb **link = &opened;
        while (*link != map)
            link = &(*link)->next;
        *link = map->next;
        discard(map); /* under registry: an open of the same file waits until its locks are free */
    }
    pthread_mutex_unlock(&registry);
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
    for (unsigned row = 0; row < table_count(it->map->kind); row++) {
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
