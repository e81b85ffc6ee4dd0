/* A store's life, and what is asked about the whole of it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "os_store_parts.h"

/* ---------------------------------------------------------------- segments, statistics */

int os_store_directory(const os_store *store) {
    return store->directory;
}

os_code os_store_segments(os_store *store, os_store_segment **out, size_t *count, os_failure *failure) {
    os_code code = os_store_enter(store, failure);
    if (code != OS_OK)
        return code;
    pthread_rwlock_rdlock(&store->segments_lock);
    *count = store->segment_count;
    *out = malloc(*count * sizeof **out + 1);
    for (size_t at = 0; *out != NULL && at < *count; at++) {
        const segment *it = store->segments[at];
        (*out)[at] = (os_store_segment){it->number, it->bytes, atomic_load(&it->used), it->pinned};
    }
    pthread_rwlock_unlock(&store->segments_lock);
    os_store_leave(store);
    return *out != NULL ? OS_OK : os_fail(failure, OS_MEMORY, "store: no memory");
}

static os_code drop(os_store *store, uint32_t number, os_failure *failure) {
    segment *there = os_store_find_segment(store, number);
    if (there == NULL)
        return os_fail(failure, OS_MISSING, "store: there is no segment %08x", number);
    os_store_release_segment(store, there);
    job *it = os_store_job(store, JOB_DROP, 0);
    if (it == NULL)
        return os_fail(failure, OS_MEMORY, "store: no memory");
    uint64_t ticket;
    it->entry.segment = number;
    os_code code = os_store_enqueue(store, it, false, &ticket, failure);
    if (code != OS_OK)
        return code;
    os_store_wait(store, ticket);
    if ((there = os_store_find_segment(store, number)) == NULL)
        return OS_OK;
    os_store_release_segment(store, there);
    return os_fail_errno(failure, EIO, "store: segment %08x could not be dropped", number);
}

os_code os_store_drop(os_store *store, uint32_t number, os_failure *failure) {
    os_code code = os_store_enter(store, failure);
    if (code != OS_OK)
        return code;
    code = drop(store, number, failure);
    os_store_leave(store);
    return code;
}

os_code os_store_statistics_of(os_store *store, os_store_statistics *out, os_failure *failure) {
    os_lmdb_statistics map = {0};
    os_code code = os_store_enter(store, failure);
    if (code != OS_OK)
        return code;
    if (!atomic_load(&store->broken))
        code = os_lmdb_statistics_of(store->map, &map, failure);
    *out = (os_store_statistics){.chunks = map.rows[TABLE_CHUNKS],
                                 .hits = atomic_load(&store->hits),
                                 .misses = atomic_load(&store->misses),
                                 .puts = atomic_load(&store->puts),
                                 .known = atomic_load(&store->known),
                                 .damaged = atomic_load(&store->damaged),
                                 .damaged_rows = atomic_load(&store->damaged_rows),
                                 .lost = atomic_load(&store->lost),
                                 .evicted = atomic_load(&store->evicted),
                                 .rebuilt = store->rebuilt,
                                 .broken = atomic_load(&store->broken)};
    pthread_rwlock_rdlock(&store->segments_lock);
    out->segments = store->segment_count;
    for (size_t at = 0; at < store->segment_count; at++)
        out->bytes += store->segments[at]->bytes;
    pthread_rwlock_unlock(&store->segments_lock);
    pthread_mutex_lock(&store->queue_lock);
    out->queued = store->queued_bytes;
    pthread_mutex_unlock(&store->queue_lock);
    os_store_leave(store);
    return code;
}

/* ---------------------------------------------------------------- open and close */

/* Everything but the locks themselves; the writer is not running. */
static void let_go(os_store *store) {
    for (size_t at = 0; at < store->segment_count; at++)
        os_store_release_segment(store, store->segments[at]);
    free(store->segments);
    store->segments = NULL;
    store->segment_count = 0;
    os_store_scratch_end(store);
    os_store_seen_close(store);
    os_lmdb_close(store->map);
    store->map = NULL;
    if (store->lock >= 0) {
        flock(store->lock, LOCK_UN); /* a child that was forked meanwhile has a copy of the descriptor */
        store->env->close(store->env->context, store->lock);
    }
    if (store->directory >= 0)
        store->env->close(store->env->context, store->directory);
    store->lock = store->directory = -1;
}

static void destroy(os_store *store) {
    pthread_rwlock_destroy(&store->closing);
    pthread_rwlock_destroy(&store->segments_lock);
    pthread_mutex_destroy(&store->queue_lock);
    pthread_mutex_destroy(&store->scratch_lock);
    pthread_cond_destroy(&store->work);
    pthread_cond_destroy(&store->room);
    pthread_cond_destroy(&store->settled);
    free(store->path);
    free(store);
}

static os_code take_lock(os_store *store, os_failure *failure) {
    const os_env *env = store->env;
    store->directory = env->openat(env->context, AT_FDCWD, store->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (store->directory < 0)
        return os_fail_errno(failure, errno, "store: %s: %s", store->path, strerror(errno));
    store->lock = env->openat(env->context, store->directory, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (store->lock < 0)
        return os_fail_errno(failure, errno, "store: %s/lock: %s", store->path, strerror(errno));
    char holder[24] = "";
    if (flock(store->lock, LOCK_EX | LOCK_NB) < 0) {
        int error = errno;
        ssize_t got = env->pread(env->context, store->lock, holder, sizeof holder - 1, 0);
        holder[strspn(holder, "0123456789")] = '\0';
        if (error == EWOULDBLOCK && got > 0 && holder[0] != '\0')
            return os_fail_errno(failure, error, "store: in use by process %s", holder);
        return os_fail_errno(failure, error, "store: its lock: %s", strerror(error));
    }
    int length = snprintf(holder, sizeof holder, "%-12ld", (long)getpid());
    if (env->pwrite(env->context, store->lock, holder, (size_t)length, 0) < 0)
        return os_fail_errno(failure, errno, "store: %s/lock: %s", store->path, strerror(errno));
    return OS_OK;
}

/* A sixteenth of the quota goes at once when there is no room. */
static uint32_t segment_size(const os_store_options *options) {
    if (options->segment_size > 0)
        return options->segment_size;
    uint64_t size = options->quota / 16;
    return options->quota == 0 || size > OS_STORE_SEGMENT ? OS_STORE_SEGMENT
           : size < OS_STORE_SEGMENT_MIN                  ? OS_STORE_SEGMENT_MIN
                                                          : (uint32_t)size;
}

os_code os_store_open(const char *path, const os_store_options *options, os_store **out, os_failure *failure) {
    os_store *store = calloc(1, sizeof *store);
    *out = NULL;
    if (store == NULL || (store->path = strdup(path)) == NULL) {
        free(store);
        return os_fail(failure, OS_MEMORY, "store: no memory");
    }
    store->env = options->env != NULL ? options->env : &os_env_system;
    store->log = options->log;
    store->segment_size = segment_size(options);
    store->queue_size = options->queue_size > 0 ? options->queue_size : OS_STORE_QUEUE;
    store->quota = options->quota;
    store->floor = options->floor;
    store->level = options->level != 0 ? options->level : 3;
    store->pid = getpid();
    store->directory = store->lock = store->seen_file = -1;
    pthread_rwlock_init(&store->closing, NULL);
    pthread_rwlock_init(&store->segments_lock, NULL);
    pthread_mutex_init(&store->queue_lock, NULL);
    pthread_mutex_init(&store->scratch_lock, NULL);
    pthread_cond_init(&store->work, NULL);
    pthread_cond_init(&store->room, NULL);
    pthread_cond_init(&store->settled, NULL);
    os_code code = take_lock(store, failure);
    if (code == OS_OK)
        code = os_store_load(store, failure);
    if (code != OS_OK) {
        let_go(store);
        destroy(store);
        return code;
    }
    os_store_seen_open(store);
    *out = store;
    return OS_OK;
}

os_code os_store_close(os_store *store, os_failure *failure) {
    if (store->pid != getpid())
        return OS_OK; /* the parent's; nothing of it works here */
    pthread_mutex_lock(&store->queue_lock);
    store->stopping = true; /* first, so that callers who wait for room leave */
    pthread_cond_broadcast(&store->work);
    pthread_cond_broadcast(&store->room);
    pthread_mutex_unlock(&store->queue_lock);
    pthread_rwlock_wrlock(&store->closing);
    bool first = !store->closed;
    store->closed = true;
    pthread_rwlock_unlock(&store->closing);
    if (!first)
        return OS_OK;
    if (store->writing)
        pthread_join(store->writer, NULL);
    os_store_commit_use(store);
    let_go(store);
    return os_store_take_trouble(store, failure);
}

void os_store_free(os_store *store) {
    if (store == NULL || store->pid != getpid())
        return;
    os_store_close(store, NULL);
    destroy(store);
}
