/* Threads.
 *
 * Any number of callers, and one writer thread, which alone appends, syncs, changes the map, and adds and drops
 * segments. A put is hashed, compressed and copied by its caller, then queued; the writer takes everything that is
 * queued as one batch: append all, sync each segment it touched (and the directory, if it made one), commit all rows in
 * one LMDB transaction. So the map is never ahead of the data, and a crash loses whole batches, never parts of a chunk.
 *
 * A reader looks up the row (LMDB's readers wait for nobody), takes a reference to the segment, reads into the buffer
 * that it returns, and verifies there. It never waits for the writer: what it finds damaged is queued as a request to
 * forget it.
 *
 * What goes wrong:
 *   append fails      the rest of the batch is lost, the segment is closed; what it has committed stays.
 *   sync fails        never tried again: the kernel has marked the pages clean. The segment is dropped, with all its
 *                     chunks, also those of earlier batches.
 *   commit fails      the batch is lost and the segments it wrote to are closed. If it was not for want of room in the
 *                     map, LMDB's file cannot be trusted any more: it is deleted, puts are refused, and the next open
 * makes it again from the segments. None of these reaches a reader as anything but OS_MISSING; flush and the log tell
 * the writer's side.
 *
 * Locks, in the order in which they are taken; none is held during I/O on segments:
 *   closing        read-held by calls, so that close waits for them
 *   segments_lock  the list of segments; write-held by the writer for a moment
 *   queue_lock     the queue and its counters
 *   scratch_lock   idle buffers
 * LMDB's own locks are below all of them.
 *
 * Segment descriptors stay open: a reader needs no path, and a dropped segment lives as long as somebody reads it. */
#include "os_store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "os_frame.h"
#include "os_hash.h"
#include "os_sha256.h"
#include "os_store_parts.h"

/* ---------------------------------------------------------------- shared with the other files */

os_code os_store_enter(os_store *store, os_failure *failure) {
    if (store->pid != getpid())
        return os_fail(failure, OS_CLOSED, "store: opened before a fork, want it opened after");
    pthread_rwlock_rdlock(&store->closing);
    if (!store->closed)
        return OS_OK;
    pthread_rwlock_unlock(&store->closing);
    return os_fail(failure, OS_CLOSED, "store: closed");
}

void os_store_leave(os_store *store) {
    pthread_rwlock_unlock(&store->closing);
}

void os_store_release_segment(os_store *store, segment *it) {
    if (atomic_fetch_sub(&it->references, 1) != 1)
        return;
    store->env->close(store->env->context, it->fd);
    store->env->release(store->env->context, it);
}

segment *os_store_find_segment(os_store *store, uint32_t number) {
    segment *found = NULL;
    pthread_rwlock_rdlock(&store->segments_lock);
    for (size_t low = 0, high = store->segment_count; low < high && found == NULL;) {
        size_t middle = low + (high - low) / 2;
        segment *it = store->segments[middle];
        if (it->number == number)
            found = it;
        else if (it->number < number)
            low = middle + 1;
        else
            high = middle;
    }
    if (found != NULL)
        atomic_fetch_add(&found->references, 1);
    pthread_rwlock_unlock(&store->segments_lock);
    return found;
}

static void scratch_free(os_store *store, scratch *it) {
    ZSTD_freeDCtx(it->decoder);
    ZSTD_freeCCtx(it->encoder);
    store->env->release(store->env->context, it);
}

scratch *os_store_scratch(os_store *store) {
    pthread_mutex_lock(&store->scratch_lock);
    scratch *it = store->idle;
    if (it != NULL)
        store->idle = it->next;
    pthread_mutex_unlock(&store->scratch_lock);
    if (it != NULL)
        return it;
    it = store->env->allocate(store->env->context, sizeof *it);
    if (it == NULL)
        return NULL;
    it->decoder = ZSTD_createDCtx();
    it->encoder = ZSTD_createCCtx();
    if (it->decoder != NULL && it->encoder != NULL)
        return it;
    scratch_free(store, it);
    return NULL;
}

void os_store_scratch_back(os_store *store, scratch *it) {
    pthread_mutex_lock(&store->scratch_lock);
    it->next = store->idle;
    store->idle = it;
    pthread_mutex_unlock(&store->scratch_lock);
}

bool os_store_id_matches(const uint8_t id[OS_ID_SIZE], unsigned algorithm, const void *data, size_t size) {
    uint8_t hash[OS_ID_SIZE];
    if (algorithm == OS_ALGORITHM_SHA256)
        os_sha256(data, size, hash);
    else
        os_blake3(data, size, hash);
    return memcmp(hash, id, OS_ID_SIZE) == 0;
}

os_code os_store_decode(os_store *store, const os_entry *entry, const void *stored, void *out, os_failure *failure) {
    os_code code = OS_OK;
    if (entry->codec == OS_CODEC_ZSTD) {
        scratch *own = os_store_scratch(store);
        if (own == NULL)
            return os_fail(failure, OS_MEMORY, "store: no memory");
        code = os_frame_decompress(own->decoder, stored, entry->stored, out, entry->length, failure);
        os_store_scratch_back(store, own);
    } else if (stored != out)
        memcpy(out, stored, entry->stored);
    if (code == OS_OK && !os_store_id_matches(entry->id, entry->algorithm, out, entry->length))
        code = os_fail(failure, OS_CORRUPT, "store: the content is not what its id says");
    return code;
}

/* ---------------------------------------------------------------- the queue */

job *os_store_job(os_store *store, job_kind kind, size_t size) {
    job *it = store->env->allocate(store->env->context, sizeof *it + size);
    if (it != NULL) {
        memset(it, 0, sizeof *it);
        it->kind = kind;
    }
    return it;
}

os_code os_store_enqueue(os_store *store, job *it, uint64_t *ticket, os_failure *failure) {
    pthread_mutex_lock(&store->queue_lock);
    while (it->kind == JOB_PUT && store->queued_bytes >= store->queue_size && !store->stopping)
        pthread_cond_wait(&store->room, &store->queue_lock);
    bool stopping = store->stopping;
    if (!stopping) {
        *(store->last == NULL ? &store->first : &store->last->next) = it;
        store->last = it;
        store->queued_bytes += sizeof *it + it->entry.stored;
        *ticket = ++store->queued_jobs;
        pthread_cond_signal(&store->work);
    }
    pthread_mutex_unlock(&store->queue_lock);
    if (!stopping)
        return OS_OK;
    store->env->release(store->env->context, it);
    return os_fail(failure, OS_CLOSED, "store: closed");
}

static os_code take_trouble(os_store *store, os_failure *failure) {
    os_code code = store->trouble.code;
    if (code != OS_OK && failure != NULL)
        *failure = store->trouble;
    store->trouble.code = OS_OK;
    return code;
}

void os_store_wait(os_store *store, uint64_t ticket) {
    pthread_mutex_lock(&store->queue_lock);
    while (store->settled_jobs < ticket)
        pthread_cond_wait(&store->settled, &store->queue_lock);
    pthread_mutex_unlock(&store->queue_lock);
}

/* A row that led to nothing is to go. Never waits; a full queue loses the request, the next reader makes it again. */
static void report_damage(os_store *store, const os_entry *entry, const os_failure *why) {
    char hex[2 * OS_ID_SIZE + 1];
    for (size_t at = 0; at < OS_ID_SIZE; at++) {
        hex[2 * at] = "0123456789abcdef"[entry->id[at] >> 4];
        hex[2 * at + 1] = "0123456789abcdef"[entry->id[at] & 15];
    }
    hex[2 * OS_ID_SIZE] = '\0';
    atomic_fetch_add(&store->damaged, 1);
    os_store_note(store, "chunk %s in segment %08x at %u is damaged and forgotten: %s", hex, entry->segment,
                  entry->offset, why->message);
    pthread_mutex_lock(&store->queue_lock);
    bool full = store->queued_bytes >= store->queue_size;
    pthread_mutex_unlock(&store->queue_lock);
    job *it = full ? NULL : os_store_job(store, JOB_FORGET, 0);
    if (it == NULL)
        return;
    memcpy(it->entry.id, entry->id, OS_ID_SIZE);
    it->entry.segment = entry->segment;
    it->entry.offset = entry->offset;
    uint64_t ticket;
    os_store_enqueue(store, it, &ticket, NULL);
}

/* ---------------------------------------------------------------- get */

static os_code find_row(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm, os_entry *out,
                        os_failure *failure) {
    MDB_txn *transaction;
    os_code code = os_lmdb_read_begin(store->map, &transaction, failure);
    if (code != OS_OK)
        return code;
    int found = os_store_row_get(store, transaction, id, out);
    os_lmdb_read_end(store->map, transaction);
    if (found == MDB_NOTFOUND || (found == 0 && out->algorithm != algorithm))
        return OS_MISSING;
    return found == 0 ? OS_OK : os_lmdb_fail(failure, found, os_store_kind.name);
}

static os_code read_entry(os_store *store, const segment *from, const os_entry *entry, void *out, os_failure *failure) {
    scratch *own = NULL;
    void *place = out;
    if (entry->codec == OS_CODEC_ZSTD) {
        own = os_store_scratch(store);
        if (own == NULL)
            return os_fail(failure, OS_MEMORY, "store: no memory");
        place = own->buffer;
    }
    uint64_t offset = (uint64_t)entry->offset + OS_ENTRY_HEADER;
    os_code code = os_segment_pread(store->env, from->fd, place, entry->stored, offset, failure);
    if (code == OS_OK)
        code = os_store_decode(store, entry, place, out, failure);
    if (own != NULL)
        os_store_scratch_back(store, own);
    return code;
}

static os_code get(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm, void *buffer, size_t capacity,
                   size_t *length, os_failure *failure) {
    os_entry entry;
    os_failure why = {0};
    os_code code = find_row(store, id, algorithm, &entry, failure);
    if (code != OS_OK)
        return code;
    if (entry.length > capacity)
        return os_fail(failure, OS_LIMIT, "store: got a buffer of %zu bytes, want %u", capacity, entry.length);
    segment *from = os_store_find_segment(store, entry.segment);
    if (from == NULL)
        return OS_MISSING; /* dropped since */
    code = read_entry(store, from, &entry, buffer, &why);
    atomic_store(&from->used, atomic_fetch_add(&store->clock, 1) + 1);
    os_store_release_segment(store, from);
    if (code == OS_CORRUPT || (code == OS_SYSTEM && why.error == EIO)) {
        report_damage(store, &entry, &why);
        return OS_MISSING;
    }
    if (code != OS_OK && failure != NULL)
        *failure = why;
    *length = entry.length;
    return code;
}

os_code os_store_get(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm, void *buffer, size_t capacity,
                     size_t *length, os_failure *failure) {
    os_code code = os_store_enter(store, failure);
    if (code != OS_OK)
        return code;
    code = get(store, id, algorithm, buffer, capacity, length, failure);
    if (code == OS_OK)
        atomic_fetch_add(&store->hits, 1);
    else if (code == OS_MISSING) {
        atomic_fetch_add(&store->misses, 1);
        os_fail(failure, OS_MISSING, "store: it has no such chunk");
    }
    os_store_leave(store);
    return code;
}

/* ---------------------------------------------------------------- put */

static bool is_known(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm) {
    os_entry entry;
    segment *in = NULL;
    if (find_row(store, id, algorithm, &entry, NULL) == OS_OK)
        in = os_store_find_segment(store, entry.segment);
    if (in == NULL)
        return false;
    atomic_store(&in->used, atomic_fetch_add(&store->clock, 1) + 1);
    os_store_release_segment(store, in);
    return true;
}

/* A job with the entry's stored bytes, or NULL: no memory. */
static job *make_put(os_store *store, const os_entry *about, const void *data, unsigned flags) {
    scratch *own = NULL;
    os_entry entry = *about;
    bool good = true;
    if (flags & OS_STORE_ZSTD) {
        size_t made = 0;
        own = os_store_scratch(store);
        good = own != NULL && os_frame_compress(own->encoder, store->level, data, entry.length, own->buffer,
                                                sizeof own->buffer, &made, NULL) == OS_OK;
        if (good && made < entry.length) {
            entry.codec = OS_CODEC_ZSTD;
            entry.stored = (uint32_t)made;
            data = own->buffer;
        }
    }
    job *it = good ? os_store_job(store, JOB_PUT, OS_ENTRY_HEADER + (size_t)entry.stored) : NULL;
    if (it != NULL) {
        os_entry_check(data, entry.stored, entry.check);
        it->entry = entry;
        it->pinned = flags & OS_STORE_PINNED;
        memcpy(it->data + OS_ENTRY_HEADER, data, entry.stored);
    }
    if (own != NULL)
        os_store_scratch_back(store, own);
    return it;
}

os_code os_store_put(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm, const void *data, size_t size,
                     unsigned flags, os_failure *failure) {
    if (size < 1 || size > OS_CHUNK_MAX)
        return os_fail(failure, OS_LIMIT, "store: got a chunk of %zu bytes, want 1 to %u", size, OS_CHUNK_MAX);
    if (algorithm != OS_ALGORITHM_BLAKE3 && algorithm != OS_ALGORITHM_SHA256)
        return os_fail(failure, OS_CORRUPT, "store: got algorithm %u, want 1 or 2", algorithm);
    if (!os_store_id_matches(id, algorithm, data, size))
        return os_fail(failure, OS_CORRUPT, "store: the content is not what its id says");
    os_code code = os_store_enter(store, failure);
    if (code != OS_OK)
        return code;
    uint64_t ticket;
    os_entry entry = {.algorithm = (uint8_t)algorithm, .length = (uint32_t)size, .stored = (uint32_t)size};
    memcpy(entry.id, id, OS_ID_SIZE);
    if (is_known(store, id, algorithm))
        atomic_fetch_add(&store->known, 1);
    else {
        job *it = make_put(store, &entry, data, flags);
        code = it == NULL ? os_fail(failure, OS_MEMORY, "store: no memory")
                          : os_store_enqueue(store, it, &ticket, failure);
        if (code == OS_OK)
            atomic_fetch_add(&store->puts, 1);
    }
    os_store_leave(store);
    return code;
}

os_code os_store_flush(os_store *store, os_failure *failure) {
    os_code code = os_store_enter(store, failure);
    if (code != OS_OK)
        return code;
    pthread_mutex_lock(&store->queue_lock);
    uint64_t ticket = store->queued_jobs;
    pthread_mutex_unlock(&store->queue_lock);
    os_store_wait(store, ticket);
    pthread_mutex_lock(&store->queue_lock);
    code = take_trouble(store, failure);
    pthread_mutex_unlock(&store->queue_lock);
    os_store_leave(store);
    return code;
}

/* ---------------------------------------------------------------- segments, statistics */

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
    os_code code = os_store_enqueue(store, it, &ticket, failure);
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
    os_lmdb_statistics map;
    os_code code = os_store_enter(store, failure);
    if (code != OS_OK)
        return code;
    code = os_lmdb_statistics_of(store->map, &map, failure);
    *out = (os_store_statistics){.chunks = map.rows[TABLE_CHUNKS],
                                 .hits = atomic_load(&store->hits),
                                 .misses = atomic_load(&store->misses),
                                 .puts = atomic_load(&store->puts),
                                 .known = atomic_load(&store->known),
                                 .damaged = atomic_load(&store->damaged),
                                 .damaged_rows = atomic_load(&store->damaged_rows),
                                 .lost = atomic_load(&store->lost),
                                 .rebuilt = store->rebuilt};
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
    while (store->idle != NULL) {
        scratch *it = store->idle;
        store->idle = it->next;
        scratch_free(store, it);
    }
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
            return os_fail_errno(failure, error, "store: %s is in use by process %s", store->path, holder);
        return os_fail_errno(failure, error, "store: %s is in use: %s", store->path, strerror(error));
    }
    int length = snprintf(holder, sizeof holder, "%-12ld", (long)getpid());
    if (env->pwrite(env->context, store->lock, holder, (size_t)length, 0) < 0)
        return os_fail_errno(failure, errno, "store: %s/lock: %s", store->path, strerror(errno));
    return OS_OK;
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
    store->segment_size = options->segment_size > 0 ? options->segment_size : OS_STORE_SEGMENT;
    store->queue_size = options->queue_size > 0 ? options->queue_size : OS_STORE_QUEUE;
    store->level = options->level != 0 ? options->level : 3;
    store->pid = getpid();
    store->directory = store->lock = -1;
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
    if (code == OS_OK) {
        int error = pthread_create(&store->writer, NULL, os_store_writer_main, store);
        if (error != 0)
            code = os_fail_errno(failure, error, "store: no thread: %s", strerror(error));
    }
    if (code != OS_OK) {
        let_go(store);
        destroy(store);
        return code;
    }
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
    pthread_join(store->writer, NULL);
    let_go(store);
    return take_trouble(store, failure);
}

void os_store_free(os_store *store) {
    if (store == NULL || store->pid != getpid())
        return;
    os_store_close(store, NULL);
    destroy(store);
}
