/* Opening a map, and the list of those that are open; os_lmdb.c has the essay. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "os_lmdb_check.h"
#include "os_lmdb_guard.h"
#include "os_lmdb_parts.h"

enum { READERS_MAX = 512, LOCK_SIZE = READERS_MAX * 64 + 4096 };
#define MAP_DEFAULT ((size_t)64 << 20)
#define KIND_KEY "onesec kind"

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
    for (int attempt = 0; attempt < OS_LMDB_ATTEMPTS; attempt++) {
        int code = os_lmdb_transact(map, MDB_RDONLY, check_snapshot, &it);
        if (code != 0)
            return os_lmdb_fail(failure, code, map->kind->name);
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
    for (unsigned row = 0; code == 0 && row < os_lmdb_table_count(map->kind); row++)
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
    for (unsigned row = 0; code == 0 && row < os_lmdb_table_count(map->kind); row++)
        code = mdb_dbi_open(transaction, map->kind->tables[row], 0, &map->tables[row]);
    return code == MDB_NOTFOUND ? MDB_INCOMPATIBLE : code;
}

static os_code prepare(os_lmdb *map, os_failure *failure) {
    os_code checked = check_pages(map, failure);
    if (checked != OS_OK)
        return checked;
    mdb_reader_check(map->environment, NULL);
    int code = os_lmdb_transact(map, MDB_RDONLY, open_tables, map);
    if (code == MDB_NOTFOUND) {
        code = os_lmdb_write_growing(map, fill_new, map);
        if (code == 0)
            code = os_lmdb_transact(map, MDB_RDONLY, open_tables, map);
    }
    if (code == MDB_INCOMPATIBLE || code == MDB_NOTFOUND)
        return os_fail(failure, OS_CORRUPT, "%s: the map holds something else", map->kind->name);
    return code == 0 ? OS_OK : os_lmdb_fail(failure, code, map->kind->name);
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
        code = os_lmdb_honest(mdb_env_open(map->environment, path, MDB_NOTLS | MDB_NORDAHEAD, 0600), fd);
    os_code done = code == 0 ? prepare(map, failure) : os_lmdb_fail(failure, code, kind->name);
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
            return os_lmdb_fail(failure, MDB_PANIC, kind->name);
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
