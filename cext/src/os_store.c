/* Threads.
 *
 * Any number of callers, and one writer thread, which alone appends, syncs, changes the map, and adds and drops
 * segments. A put is hashed, compressed and copied by its caller, then queued; the writer takes everything that is
 * queued as one batch: append all, sync each segment it touched (and the directory, if it made one), commit all rows in
 * one LMDB transaction. So the map is never ahead of the data, and a crash loses whole batches, never parts of a chunk.
 * The thread starts with the first job: a process may open the store, give up its privileges, and only then write.
 *
 * A reader looks up the row (LMDB's readers wait for nobody), takes a reference to the segment, reads into the buffer
 * that it returns, and verifies there. It never waits for the writer: what it finds damaged is queued as a request to
 * forget it. While such a request waits, a put does not ask whether the chunk is there, so it heals at once.
 *
 * What goes wrong:
 *
 * - An append fails: the batch's puts from there on are lost, the segment is closed (but for want of space); what it
 * has committed stays.
 * - A sync fails: never tried again, since the kernel has marked the pages clean. The segment is dropped, with all its
 *   chunks, also those of earlier batches.
 * - A commit fails: the batch is lost and the segments it wrote to are closed. If it was not for want of memory or
 * room, LMDB's file cannot be trusted any more. Neither can it when a page of it cannot be read. Then the map is
 * deleted, nothing is found and nothing taken (OS_CLOSED), and the next open makes it again from the segments.
 * - No room under the quota, or above the floor: segments go, least recently used first, pinned ones last.
 *
 * None of these reaches a reader as anything but OS_MISSING; flush and the log tell the writer's side.
 *
 * Locks, in the order in which they are taken; none is held during I/O on segments:
 *
 * - closing: read-held by calls, so that close waits for them
 * - segments_lock: the list of segments; write-held by the writer for a moment
 * - queue_lock: the queue and its counters
 * - scratch_lock: idle buffers
 *
 * LMDB's own locks are below all of them.
 *
 * Segment descriptors stay open: a reader needs no path, and a dropped segment lives as long as somebody reads it. */
#include "os_store.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "os_frame.h"
#include "os_hash.h"
#include "os_sha256.h"
#include "os_store_parts.h"

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

static bool id_matches(const uint8_t id[OS_ID_SIZE], unsigned algorithm, const void *data, size_t size) {
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
    if (code == OS_OK && !id_matches(entry->id, entry->algorithm, out, entry->length))
        code = os_fail(failure, OS_CORRUPT, "store: the content is not what its id says");
    return code;
}

/* ---------------------------------------------------------------- get */

enum { AHEAD = 2 << 20 }; /* bytes */

typedef struct looking {
    os_store *store;
    const uint8_t *id;
    os_entry *out;
} looking;

static int look_up(void *context, MDB_txn *transaction) {
    const looking *it = context;
    return os_store_row_get(it->store, transaction, it->id, it->out);
}

/* The map failed under a reader: the writer is told, once. */
static void give_up(os_store *store, const os_failure *why) {
    if (atomic_exchange(&store->broken, true))
        return;
    os_store_note(store, "%s", why->message);
    uint64_t ticket;
    job *it = os_store_job(store, JOB_GIVE_UP, 0);
    if (it != NULL)
        os_store_enqueue(store, it, false, &ticket, NULL);
}

static os_code find_row(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm, os_entry *out,
                        os_failure *failure) {
    looking it = {store, id, out};
    os_failure why = {0};
    if (atomic_load(&store->broken))
        return OS_MISSING;
    os_code code = os_lmdb_read(store->map, look_up, &it, &why);
    if (code == OS_OK)
        return out->algorithm == algorithm ? OS_OK : OS_MISSING;
    if (code == OS_CORRUPT) {
        give_up(store, &why);
        return OS_MISSING;
    }
    if (code != OS_MISSING && failure != NULL)
        *failure = why;
    return code;
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
    job *it = os_store_queue_is_short(store) ? os_store_job(store, JOB_FORGET, 0) : NULL;
    if (it == NULL)
        return;
    memcpy(it->entry.id, entry->id, OS_ID_SIZE);
    it->entry.segment = entry->segment;
    it->entry.offset = entry->offset;
    uint64_t ticket;
    os_store_enqueue(store, it, false, &ticket, NULL);
}

/* Chunks stand in the order in which they were read once, so what stands behind one is likely to be next. The kernel's
 * own read-ahead is lost on it: several threads read one descriptor, each a different part. */
static void read_ahead(os_store *store, segment *from, const os_entry *entry) {
    uint32_t end = entry->offset + OS_ENTRY_HEADER + entry->stored, ahead = atomic_load(&from->ahead);
    if (end + AHEAD / 2 <= ahead &&
        ahead <= end + 2 * AHEAD) /* both below 4 GiB by a segment's size, or a wasted hint */
        return;
    uint32_t start = ahead > end && ahead < end + AHEAD ? ahead : end;
    atomic_store(&from->ahead, end + AHEAD);
    store->env->read_ahead(store->env->context, from->fd, start, end + AHEAD - start);
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
    read_ahead(store, from, &entry);
    code = read_entry(store, from, &entry, buffer, &why);
    os_store_use_segment(store, from);
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

/* Whether it is there as it is to be kept: raw in place of a frame is worth another copy, and so is a place from which
 * it is dropped last. */
static bool is_known(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm, unsigned flags) {
    os_entry entry;
    segment *in = NULL;
    if (atomic_load(&store->forgetting) > 0)
        return false; /* perhaps this one */
    if (find_row(store, id, algorithm, &entry, NULL) == OS_OK &&
        (entry.codec == OS_CODEC_RAW || (flags & OS_STORE_ZSTD)))
        in = os_store_find_segment(store, entry.segment);
    if (in == NULL)
        return false;
    bool good = in->pinned || !(flags & OS_STORE_PINNED);
    os_store_use_segment(store, in);
    os_store_release_segment(store, in);
    return good;
}

bool os_store_has(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm) {
    if (os_store_enter(store, NULL) != OS_OK)
        return false;
    bool has = is_known(store, id, algorithm, OS_STORE_ZSTD);
    os_store_leave(store);
    return has;
}

bool os_store_keeps(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm, unsigned flags) {
    if (os_store_enter(store, NULL) != OS_OK)
        return false;
    bool keeps = is_known(store, id, algorithm, flags);
    os_store_leave(store);
    return keeps;
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

static os_code put(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm, const void *data, size_t size,
                   unsigned flags, os_failure *failure) {
    uint64_t ticket;
    os_entry entry = {.algorithm = (uint8_t)algorithm, .length = (uint32_t)size, .stored = (uint32_t)size};
    memcpy(entry.id, id, OS_ID_SIZE);
    if (atomic_load(&store->broken))
        return os_fail(failure, OS_CLOSED, "store: its map failed, want the store opened again");
    if (is_known(store, id, algorithm, flags)) {
        atomic_fetch_add(&store->known, 1);
        return OS_OK;
    }
    if ((flags & OS_STORE_NO_WAIT) && !os_store_queue_is_short(store))
        return os_fail(failure, OS_LIMIT, "store: its queue is full");
    job *it = make_put(store, &entry, data, flags);
    if (it == NULL)
        return os_fail(failure, OS_MEMORY, "store: no memory");
    os_code code = os_store_enqueue(store, it, !(flags & OS_STORE_NO_WAIT), &ticket, failure);
    if (code == OS_OK)
        atomic_fetch_add(&store->puts, 1);
    return code;
}

os_code os_store_put(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm, const void *data, size_t size,
                     unsigned flags, os_failure *failure) {
    if (size < 1 || size > OS_CHUNK_MAX)
        return os_fail(failure, OS_LIMIT, "store: got a chunk of %zu bytes, want 1 to %u", size, OS_CHUNK_MAX);
    if (algorithm != OS_ALGORITHM_BLAKE3 && algorithm != OS_ALGORITHM_SHA256)
        return os_fail(failure, OS_CORRUPT, "store: got algorithm %u, want 1 or 2", algorithm);
    if (!(flags & OS_STORE_VERIFIED) && !id_matches(id, algorithm, data, size))
        return os_fail(failure, OS_CORRUPT, "store: the content is not what its id says");
    os_code code = os_store_enter(store, failure);
    if (code != OS_OK)
        return code;
    code = put(store, id, algorithm, data, size, flags, failure);
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
    code = os_store_take_trouble(store, failure);
    os_store_leave(store);
    return code;
}
