/* Threads. The caller's thread cuts, hashes, looks chunks up and writes packs; `threads` workers only compress. Between
 * them stands a ring of jobs, one frame each, in pack order.
 *
 *   caller:  fills job[tail], state WAITING          worker: takes the oldest WAITING job: BUSY, compresses, DONE
 *   caller:  writes job[head] once it is DONE, frees the slot
 *
 * `lock` guards the states of jobs, `next` and `stop`; everything else belongs to the caller. A job's buffers belong to
 * the caller while it is FREE or DONE, to its worker while it is BUSY. `work` wakes workers, `done` the caller. The
 * caller never holds the lock while it reads, writes or hashes. Because frames leave in ring order and their content is
 * fixed before they enter, the number of workers cannot change a byte.
 *
 * Memory: RING frames, plain and compressed, and one window of content: about 30 MiB for
 * chunks of the average size, 70 MiB if all are of the largest, and the tables of 1 M chunks.
 *
 * Durability: the disk begins with a pack while it is written, and the pack is waited for only when the next one
 * closes, or at the end. A caller that waited for 64 MiB to reach the disk let the workers run dry. */
#define _GNU_SOURCE
#define ZSTD_STATIC_LINKING_ONLY /* contexts whose memory comes from the environment */
#include "os_ingest.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "os_frame.h"
#include "os_gear.h"
#include "os_hash.h"
#include "os_limits.h"
#include "os_pack.h"

#define RING 128u /* lets workers go on while the caller is busy with small files, and the other way round */
#define WRITEBACK_STEP (8u << 20) /* of a pack, after which the disk is asked to begin */
#define PART_SIZE 40u
#define WINDOW (4u << 20) /* of a data segment, before its chunks are cut */
#define READ_STEP (1u << 20)
#define THREADS_MAX 64u

typedef enum job_state { FREE, WAITING, BUSY, DONE } job_state;

typedef struct chunk_row {
    uint8_t id[OS_ID_SIZE];
    uint32_t length;
} chunk_row;

typedef struct job {
    job_state state;   /* guarded by lock */
    uint8_t *plain;    /* owned, OS_FRAME_MAX */
    uint8_t *packed;   /* owned, OS_FRAME_BOUND(OS_FRAME_MAX) */
    chunk_row *chunks; /* owned */
    uint32_t size, chunk_count, chunk_room;
    size_t packed_size; /* with failure: written by the worker while BUSY */
    os_failure failure;
} job;

typedef struct content {
    uint64_t size;
    size_t parts, parts_size; /* place in parts */
} content;

typedef struct pack {
    char name[48];
    uint64_t size;
    uint8_t *table; /* owned */
    size_t table_size;
} pack;

/* A growing column. */
typedef struct column {
    uint8_t *data; /* owned */
    size_t size, room;
} column;

struct os_ingest {
    os_ingest_options options; /* immutable */
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    pthread_t workers[THREADS_MAX];
    unsigned worker_count; /* started */
    bool stop;             /* guarded by lock */
    uint64_t next;         /* guarded by lock: job that the next worker looks at */
    uint64_t head, tail;   /* caller's: jobs written, jobs filled */
    job jobs[RING];
    job shared; /* caller's: the shared frame that is open; only plain and chunks are used */

    column seen; /* hash set of ids: slots of 32 bytes, all zero is empty */
    size_t seen_count;
    column known;    /* digests of older packs */
    column parts;    /* of all contents */
    column contents; /* of content */
    column packs;    /* of pack */

    /* the content that is open */
    bool open, large;
    uint64_t expected, taken, zero_run;
    uint8_t *block; /* owned, OS_HOLE_BLOCK: a block that is not complete */
    size_t block_size;
    uint8_t *window; /* owned, WINDOW: the data segment, as far as it is not cut */
    size_t window_start, window_end;
    uint8_t *read_buffer; /* owned, READ_STEP, made by the first read: a mapping each time would cost its page faults */

    /* the pack that is open */
    int fd;                /* owned; -1: none */
    int closing_fd;        /* owned; -1: none. The pack before it, complete but not yet known to be on the disk */
    uint64_t written_back; /* of offset: the disk was asked to begin */
    uint64_t offset;
    column clen, ulen, counts, lengths, ids;

    bool finished;
    os_failure failure; /* the first one; stays */
    os_ingest_statistics statistics;
};

/* ---- columns ---- */

static os_code no_memory(os_failure *failure) {
    return os_fail(failure, OS_MEMORY, "ingest: out of memory");
}

static void *allocate(const os_ingest *ingest, size_t size) {
    return ingest->options.env->allocate(ingest->options.env->context, size);
}

static void *reallocate(const os_ingest *ingest, void *memory, size_t size) {
    return ingest->options.env->reallocate(ingest->options.env->context, memory, size);
}

static void release(const os_ingest *ingest, void *memory) {
    if (memory)
        ingest->options.env->release(ingest->options.env->context, memory);
}

static os_code grow(const os_ingest *ingest, column *to, size_t more, os_failure *failure) {
    if (to->room - to->size >= more)
        return OS_OK;
    size_t room = to->room ? to->room : 4096;
    while (room - to->size < more) {
        if (room > SIZE_MAX / 2)
            return no_memory(failure);
        room *= 2;
    }
    uint8_t *data = reallocate(ingest, to->data, room);
    if (!data)
        return no_memory(failure);
    to->data = data;
    to->room = room;
    return OS_OK;
}

static os_code append(const os_ingest *ingest, column *to, const void *data, size_t size, os_failure *failure) {
    os_code code = grow(ingest, to, size, failure);
    if (code == OS_OK) {
        memcpy(to->data + to->size, data, size);
        to->size += size;
    }
    return code;
}

static os_code append_u32(const os_ingest *ingest, column *to, uint32_t value, os_failure *failure) {
    return append(ingest, to, &value, sizeof value, failure);
}

/* ---- the set of ids met in this ingest: open addressing, ids are uniform ---- */

static uint8_t *seen_slot(uint8_t *slots, size_t count, const uint8_t *id) {
    static const uint8_t EMPTY[OS_ID_SIZE];
    uint64_t at;
    memcpy(&at, id, sizeof at);
    for (;; at++) {
        uint8_t *slot = slots + (at & (count - 1)) * OS_ID_SIZE;
        if (!memcmp(slot, id, OS_ID_SIZE) || !memcmp(slot, EMPTY, OS_ID_SIZE))
            return slot;
    }
}

/* *fresh: the id was not in the set, and is now. An id of 32 zero bytes is the id of no content that can be found. */
static os_code seen_add(os_ingest *ingest, const uint8_t *id, bool *fresh, os_failure *failure) {
    size_t count = ingest->seen.room / OS_ID_SIZE;
    if (2 * (ingest->seen_count + 1) > count) {
        size_t bigger = count ? 2 * count : 4096;
        uint8_t *slots = allocate(ingest, bigger * OS_ID_SIZE);
        if (!slots)
            return no_memory(failure);
        memset(slots, 0, bigger * OS_ID_SIZE);
        for (size_t at = 0; at < count; at++) {
            const uint8_t *old = ingest->seen.data + at * OS_ID_SIZE;
            memcpy(seen_slot(slots, bigger, old), old, OS_ID_SIZE);
        }
        release(ingest, ingest->seen.data);
        ingest->seen.data = slots;
        ingest->seen.room = bigger * OS_ID_SIZE;
        count = bigger;
    }
    uint8_t *slot = seen_slot(ingest->seen.data, count, id);
    *fresh = memcmp(slot, id, OS_ID_SIZE) != 0;
    if (*fresh) {
        memcpy(slot, id, OS_ID_SIZE);
        ingest->seen_count++;
    }
    return OS_OK;
}

/* ---- workers ---- */

static void *compress_frames(void *argument) {
    os_ingest *ingest = argument;
    const os_env *env = ingest->options.env;
    ZSTD_CCtx *zstd = ZSTD_createCCtx_advanced((ZSTD_customMem){env->allocate, env->release, env->context});
    pthread_mutex_lock(&ingest->lock);
    for (;;) {
        job *mine = &ingest->jobs[ingest->next % RING];
        if (ingest->stop)
            break;
        if (mine->state != WAITING) {
            pthread_cond_wait(&ingest->work, &ingest->lock);
            continue;
        }
        mine->state = BUSY;
        ingest->next++;
        pthread_mutex_unlock(&ingest->lock);
        mine->failure.code = OS_OK;
        if (!zstd)
            no_memory(&mine->failure);
        else
            os_frame_compress(zstd, ingest->options.level, mine->plain, mine->size, mine->packed,
                              OS_FRAME_BOUND(OS_FRAME_MAX), &mine->packed_size, &mine->failure);
        pthread_mutex_lock(&ingest->lock);
        mine->state = DONE;
        pthread_cond_signal(&ingest->done);
    }
    pthread_mutex_unlock(&ingest->lock);
    ZSTD_freeCCtx(zstd);
    return NULL;
}

/* ---- packs ---- */

static os_code write_all(os_ingest *ingest, const uint8_t *data, size_t size, os_failure *failure) {
    const os_env *env = ingest->options.env;
    while (size) {
        ssize_t count = env->write(env->context, ingest->fd, data, size);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return os_fail_errno(failure, count ? errno : EIO, "pack: cannot write");
        data += count;
        size -= (size_t)count;
        ingest->offset += (size_t)count;
        ingest->statistics.written += (size_t)count;
    }
    return OS_OK;
}

static os_code open_pack(os_ingest *ingest, os_failure *failure) {
    const os_env *env = ingest->options.env;
    pack made = {0};
    snprintf(made.name, sizeof made.name, "pack-%ld-%zu.tmp", (long)getpid(), ingest->packs.size / sizeof(pack));
    os_code code = append(ingest, &ingest->packs, &made, sizeof made, failure);
    if (code != OS_OK)
        return code;
    ingest->fd = env->openat(env->context, ingest->options.directory, made.name,
                             O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (ingest->fd < 0) {
        ingest->packs.size -= sizeof made; /* a file of that name is somebody else's */
        return os_fail_errno(failure, errno, "pack: cannot make %s", made.name);
    }
    ingest->offset = ingest->written_back = 0;
    return OS_OK;
}

/* Waits until the pack before this one is on the disk. */
static os_code sync_closing(os_ingest *ingest, os_failure *failure) {
    const os_env *env = ingest->options.env;
    int fd = ingest->closing_fd;
    if (fd < 0)
        return OS_OK;
    if (env->fdatasync(env->context, fd) < 0)
        return os_fail_errno(failure, errno, "pack: cannot sync");
    ingest->closing_fd = -1;
    if (env->close(env->context, fd) < 0 && errno != EINTR)
        return os_fail_errno(failure, errno, "pack: cannot close");
    return OS_OK;
}

static os_code close_pack(os_ingest *ingest, os_failure *failure) {
    const os_env *env = ingest->options.env;
    pack *made = (pack *)(ingest->packs.data + ingest->packs.size) - 1;
    uint32_t frames = (uint32_t)(ingest->clen.size / 4), chunks = (uint32_t)(ingest->lengths.size / 4);
    made->table_size = os_pack_table_size(frames, chunks);
    if (!made->table_size)
        return os_fail(failure, OS_LIMIT, "pack table: too many chunks in one pack: %u", chunks);
    made->table = allocate(ingest, made->table_size);
    if (!made->table)
        return no_memory(failure);
    os_pack_table_write(made->table, frames, chunks, (uint32_t *)ingest->clen.data, (uint32_t *)ingest->ulen.data,
                        (uint32_t *)ingest->counts.data, (uint32_t *)ingest->lengths.data, ingest->ids.data);
    uint32_t head[2] = {htole32(OS_PACK_MAGIC_FRAME), htole32((uint32_t)made->table_size)};
    os_code code = write_all(ingest, (uint8_t *)head, sizeof head, failure);
    if (code == OS_OK)
        code = write_all(ingest, made->table, made->table_size, failure);
    if (code != OS_OK)
        return code;
    code = sync_closing(ingest, failure);
    if (code != OS_OK)
        return code;
    env->start_writeback(env->context, ingest->fd);
    ingest->closing_fd = ingest->fd;
    ingest->fd = -1;
    made->size = ingest->offset;
    ingest->clen.size = ingest->ulen.size = ingest->counts.size = ingest->lengths.size = ingest->ids.size = 0;
    return OS_OK;
}

static os_code write_frame(os_ingest *ingest, const job *from, os_failure *failure) {
    os_code code = OS_OK;
    if (from->failure.code != OS_OK) {
        *failure = from->failure;
        return failure->code;
    }
    if (ingest->fd >= 0 && ingest->offset + from->packed_size > ingest->options.pack_size)
        code = close_pack(ingest, failure);
    if (code == OS_OK && ingest->fd < 0)
        code = open_pack(ingest, failure);
    if (code == OS_OK)
        code = write_all(ingest, from->packed, from->packed_size, failure);
    if (code == OS_OK && ingest->offset - ingest->written_back >= WRITEBACK_STEP) {
        ingest->options.env->start_writeback(ingest->options.env->context, ingest->fd);
        ingest->written_back = ingest->offset;
    }
    if (code == OS_OK)
        code = append_u32(ingest, &ingest->clen, (uint32_t)from->packed_size, failure);
    if (code == OS_OK)
        code = append_u32(ingest, &ingest->ulen, from->size, failure);
    if (code == OS_OK)
        code = append_u32(ingest, &ingest->counts, from->chunk_count, failure);
    for (uint32_t row = 0; code == OS_OK && row < from->chunk_count; row++) {
        code = append_u32(ingest, &ingest->lengths, from->chunks[row].length, failure);
        if (code == OS_OK)
            code = append(ingest, &ingest->ids, from->chunks[row].id, OS_ID_SIZE, failure);
    }
    return code;
}

/* Writes frames that are compressed; waits until at most `left` are in the ring. */
static os_code drain(os_ingest *ingest, uint64_t left, os_failure *failure) {
    os_code code = OS_OK;
    while (code == OS_OK && ingest->head < ingest->tail) {
        job *oldest = &ingest->jobs[ingest->head % RING];
        pthread_mutex_lock(&ingest->lock);
        while (oldest->state != DONE && ingest->tail - ingest->head > left)
            pthread_cond_wait(&ingest->done, &ingest->lock);
        bool ready = oldest->state == DONE;
        pthread_mutex_unlock(&ingest->lock);
        if (!ready)
            break;
        code = write_frame(ingest, oldest, failure);
        pthread_mutex_lock(&ingest->lock);
        oldest->state = FREE;
        pthread_mutex_unlock(&ingest->lock);
        oldest->size = oldest->chunk_count = 0;
        ingest->head++;
    }
    return code;
}

/* ---- frames ---- */

static os_code add_row(const os_ingest *ingest, job *to, const uint8_t *id, const uint8_t *data, uint32_t size,
                       os_failure *failure) {
    if (to->chunk_count == to->chunk_room) {
        uint32_t room = to->chunk_room ? 2 * to->chunk_room : 16;
        chunk_row *rows = reallocate(ingest, to->chunks, room * sizeof *rows);
        if (!rows)
            return no_memory(failure);
        to->chunks = rows;
        to->chunk_room = room;
    }
    memcpy(to->chunks[to->chunk_count].id, id, OS_ID_SIZE);
    to->chunks[to->chunk_count++].length = size;
    memcpy(to->plain + to->size, data, size);
    to->size += size;
    return OS_OK;
}

/* A free slot of the ring, not yet the workers'. */
static os_code free_job(os_ingest *ingest, job **out, os_failure *failure) {
    os_code code = drain(ingest, RING - 1, failure);
    *out = &ingest->jobs[ingest->tail % RING];
    return code;
}

static void submit(os_ingest *ingest, job *filled) {
    pthread_mutex_lock(&ingest->lock);
    filled->state = WAITING;
    pthread_cond_signal(&ingest->work);
    pthread_mutex_unlock(&ingest->lock);
    ingest->tail++;
}

static os_code close_shared(os_ingest *ingest, os_failure *failure) {
    job *slot, *shared = &ingest->shared;
    if (shared->size == 0)
        return OS_OK;
    os_code code = free_job(ingest, &slot, failure);
    if (code != OS_OK)
        return code;
    /* the buffers change places, so that nothing is copied */
    uint8_t *plain = slot->plain;
    chunk_row *chunks = slot->chunks;
    uint32_t room = slot->chunk_room;
    slot->plain = shared->plain, slot->chunks = shared->chunks, slot->chunk_room = shared->chunk_room;
    slot->size = shared->size, slot->chunk_count = shared->chunk_count;
    shared->plain = plain, shared->chunks = chunks, shared->chunk_room = room;
    shared->size = shared->chunk_count = 0;
    submit(ingest, slot);
    return OS_OK;
}

static os_code put_chunk(os_ingest *ingest, const uint8_t *id, const uint8_t *data, uint32_t size,
                         os_failure *failure) {
    if (!ingest->large) {
        os_code code = OS_OK;
        if (ingest->shared.size && ingest->shared.size + size > OS_FRAME_SHARED)
            code = close_shared(ingest, failure);
        return code == OS_OK ? add_row(ingest, &ingest->shared, id, data, size, failure) : code;
    }
    job *slot;
    os_code code = free_job(ingest, &slot, failure);
    if (code == OS_OK)
        code = add_row(ingest, slot, id, data, size, failure);
    if (code == OS_OK)
        submit(ingest, slot);
    return code;
}

/* ---- chunks ---- */

static os_code note_known(os_ingest *ingest, const uint8_t *digest, os_failure *failure) {
    for (size_t at = 0; at < ingest->known.size; at += OS_ID_SIZE)
        if (!memcmp(ingest->known.data + at, digest, OS_ID_SIZE))
            return OS_OK;
    return append(ingest, &ingest->known, digest, OS_ID_SIZE, failure);
}

static os_code add_part(os_ingest *ingest, uint64_t length, const uint8_t *id, os_failure *failure) {
    uint8_t part[PART_SIZE];
    uint64_t stored = htole64(length);
    memcpy(part, &stored, sizeof stored);
    memcpy(part + sizeof stored, id, OS_ID_SIZE);
    return append(ingest, &ingest->parts, part, sizeof part, failure);
}

static os_code take_chunk(os_ingest *ingest, const uint8_t *data, uint32_t size, os_failure *failure) {
    uint8_t id[OS_ID_SIZE], digest[OS_ID_SIZE];
    bool fresh = false;
    os_blake3(data, size, id);
    ingest->statistics.chunks++;
    os_code code = add_part(ingest, size, id, failure);
    if (code == OS_OK)
        code = seen_add(ingest, id, &fresh, failure);
    if (code != OS_OK)
        return code;
    if (!fresh) {
        ingest->statistics.same_chunks++;
        return OS_OK;
    }
    int found = ingest->options.known ? ingest->options.known->lookup(ingest->options.known->context, id, digest) : 0;
    if (found < 0)
        return os_fail(failure, OS_CORRUPT, "chunk map: a look-up failed");
    if (found) {
        ingest->statistics.known_chunks++;
        return note_known(ingest, digest, failure);
    }
    return put_chunk(ingest, id, data, size, failure);
}

/* Cuts what the window holds: all of it if the segment ends here, else as long as a cut cannot depend on more. */
static os_code cut(os_ingest *ingest, bool ends, os_failure *failure) {
    os_code code = OS_OK;
    while (code == OS_OK && ingest->window_start < ingest->window_end) {
        size_t there = ingest->window_end - ingest->window_start;
        if (!ends && there < OS_CHUNK_MAX)
            break;
        size_t size = os_gear_cut(ingest->window + ingest->window_start, there < OS_CHUNK_MAX ? there : OS_CHUNK_MAX);
        code = take_chunk(ingest, ingest->window + ingest->window_start, (uint32_t)size, failure);
        ingest->window_start += size;
    }
    return code;
}

/* Appends to the data segment; data NULL: zeros. */
static os_code add_data(os_ingest *ingest, const uint8_t *data, size_t size, os_failure *failure) {
    while (size) {
        if (ingest->window_end == WINDOW) {
            os_code code = cut(ingest, false, failure);
            if (code != OS_OK)
                return code;
            memmove(ingest->window, ingest->window + ingest->window_start, WINDOW - ingest->window_start);
            ingest->window_end -= ingest->window_start;
            ingest->window_start = 0;
        }
        size_t step = WINDOW - ingest->window_end;
        if (step > size)
            step = size;
        if (data) {
            memcpy(ingest->window + ingest->window_end, data, step);
            data += step;
        } else {
            memset(ingest->window + ingest->window_end, 0, step);
        }
        ingest->window_end += step;
        size -= step;
    }
    return OS_OK;
}

/* ---- holes ---- */

/* A run of zero blocks is over: it was a hole, or it is data. */
static os_code end_zero_run(os_ingest *ingest, os_failure *failure) {
    static const uint8_t HOLE[OS_ID_SIZE];
    uint64_t run = ingest->zero_run;
    ingest->zero_run = 0;
    if (run < OS_HOLE_MIN)
        return add_data(ingest, NULL, (size_t)run, failure);
    os_code code = cut(ingest, true, failure);
    ingest->window_start = ingest->window_end = 0;
    return code == OS_OK ? add_part(ingest, run, HOLE, failure) : code;
}

static bool all_zero(const uint8_t *data, size_t size) {
    return data[0] == 0 && !memcmp(data, data + 1, size - 1);
}

/* Blocks of OS_HOLE_BLOCK bytes, the last of a content may be short. */
static os_code take_blocks(os_ingest *ingest, const uint8_t *data, size_t size, os_failure *failure) {
    os_code code = OS_OK;
    size_t at = 0;
    while (code == OS_OK && at < size) {
        size_t start = at;
        while (at < size) {
            size_t step = size - at < OS_HOLE_BLOCK ? size - at : OS_HOLE_BLOCK;
            if (all_zero(data + at, step))
                break;
            at += step;
        }
        if (at > start) {
            if (ingest->zero_run)
                code = end_zero_run(ingest, failure);
            if (code == OS_OK)
                code = add_data(ingest, data + start, at - start, failure);
        } else {
            size_t step = size - at < OS_HOLE_BLOCK ? size - at : OS_HOLE_BLOCK;
            ingest->zero_run += step;
            at += step;
        }
    }
    return code;
}

/* ---- the interface ---- */

static os_code keep(os_ingest *ingest, os_code code, os_failure *failure) {
    if (code != OS_OK && code != OS_CLOSED) /* misuse breaks nothing */
        ingest->failure = *failure;
    return code;
}

static os_code usable(os_ingest *ingest, bool open, os_failure *failure) {
    if (ingest->failure.code != OS_OK) {
        *failure = ingest->failure;
        return failure->code;
    }
    if (ingest->finished)
        return os_fail(failure, OS_CLOSED, "ingest: it is finished");
    if (ingest->open != open)
        return os_fail(failure, OS_CLOSED, open ? "ingest: no content is open" : "ingest: a content is open");
    return OS_OK;
}

os_code os_ingest_begin(os_ingest *ingest, uint64_t size, uint32_t *ticket, os_failure *failure) {
    os_code code = usable(ingest, false, failure);
    if (code != OS_OK)
        return code;
    content made = {0, ingest->parts.size, 0};
    if (ingest->contents.size / sizeof made >= UINT32_MAX)
        return os_fail(failure, OS_LIMIT, "ingest: too many contents");
    *ticket = (uint32_t)(ingest->contents.size / sizeof made);
    code = append(ingest, &ingest->contents, &made, sizeof made, failure);
    ingest->open = code == OS_OK;
    ingest->expected = size;
    ingest->large = size != UINT64_MAX && size > OS_FILE_SHARED;
    ingest->taken = ingest->zero_run = 0;
    ingest->block_size = ingest->window_start = ingest->window_end = 0;
    return keep(ingest, code, failure);
}

static os_code count_bytes(os_ingest *ingest, uint64_t size, os_failure *failure) {
    if (size > OS_FILE_SIZE_MAX - ingest->taken)
        return os_fail(failure, OS_LIMIT, "content: longer than %llu bytes", (unsigned long long)OS_FILE_SIZE_MAX);
    ingest->taken += size;
    /* No chunk is cut before this is known: a cut needs OS_CHUNK_MAX bytes or the end. */
    if (ingest->taken > OS_FILE_SHARED)
        ingest->large = true;
    return OS_OK;
}

os_code os_ingest_update(os_ingest *ingest, const void *data, size_t size, os_failure *failure) {
    const uint8_t *from = data;
    os_code code = usable(ingest, true, failure);
    if (code == OS_OK)
        code = count_bytes(ingest, size, failure);
    if (code == OS_OK && ingest->block_size) {
        size_t step = OS_HOLE_BLOCK - ingest->block_size;
        if (step > size)
            step = size;
        memcpy(ingest->block + ingest->block_size, from, step);
        ingest->block_size += step;
        from += step;
        size -= step;
        if (ingest->block_size == OS_HOLE_BLOCK) {
            ingest->block_size = 0;
            code = take_blocks(ingest, ingest->block, OS_HOLE_BLOCK, failure);
        }
    }
    if (code == OS_OK && size) {
        size_t whole = size & ~(size_t)(OS_HOLE_BLOCK - 1);
        if (whole)
            code = take_blocks(ingest, from, whole, failure);
        memcpy(ingest->block, from + whole, size - whole);
        ingest->block_size = size - whole;
    }
    return keep(ingest, code, failure);
}

os_code os_ingest_zeros(os_ingest *ingest, uint64_t size, os_failure *failure) {
    static const uint8_t ZEROS[OS_HOLE_BLOCK];
    os_code code = usable(ingest, true, failure);
    if (code == OS_OK && ingest->block_size) {
        uint64_t step = OS_HOLE_BLOCK - ingest->block_size;
        if (step > size)
            step = size;
        code = os_ingest_update(ingest, ZEROS, (size_t)step, failure);
        size -= step;
    }
    if (code == OS_OK && size) {
        uint64_t whole = size & ~(uint64_t)(OS_HOLE_BLOCK - 1);
        code = count_bytes(ingest, whole, failure);
        if (code == OS_OK) {
            ingest->zero_run += whole;
            code = os_ingest_update(ingest, ZEROS, (size_t)(size - whole), failure);
        }
    }
    return keep(ingest, code, failure);
}

os_code os_ingest_end(os_ingest *ingest, os_failure *failure) {
    os_code code = usable(ingest, true, failure);
    if (code != OS_OK)
        return code;
    if (ingest->block_size)
        code = take_blocks(ingest, ingest->block, ingest->block_size, failure);
    if (code == OS_OK && ingest->zero_run)
        code = end_zero_run(ingest, failure);
    if (code == OS_OK)
        code = cut(ingest, true, failure);
    if (code == OS_OK && ingest->expected != UINT64_MAX && ingest->expected != ingest->taken)
        code = os_fail(failure, OS_CORRUPT, "content: got %llu bytes, want %llu", (unsigned long long)ingest->taken,
                       (unsigned long long)ingest->expected);
    content *last = (content *)(ingest->contents.data + ingest->contents.size) - 1;
    last->size = ingest->taken;
    last->parts_size = ingest->parts.size - last->parts;
    ingest->statistics.bytes += ingest->taken;
    ingest->open = false;
    return keep(ingest, code, failure);
}

os_code os_ingest_update_from(os_ingest *ingest, int fd, uint64_t offset, size_t size, os_failure *failure) {
    const os_env *env = ingest->options.env;
    os_code code = usable(ingest, true, failure);
    if (code == OS_OK && !ingest->read_buffer && !(ingest->read_buffer = allocate(ingest, READ_STEP)))
        code = no_memory(failure);
    while (code == OS_OK && size) {
        ssize_t count =
            env->pread(env->context, fd, ingest->read_buffer, size < READ_STEP ? size : READ_STEP, (off_t)offset);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            code = os_fail_errno(failure, errno, "content: cannot read");
        else if (count == 0)
            code = os_fail(failure, OS_CORRUPT, "content: the file became shorter while it was read");
        else
            code = os_ingest_update(ingest, ingest->read_buffer, (size_t)count, failure);
        if (code == OS_OK) {
            offset += (size_t)count;
            size -= (size_t)count;
        }
    }
    return keep(ingest, code, failure);
}

os_code os_ingest_parts(const os_ingest *ingest, uint32_t ticket, uint64_t *size, const uint8_t **parts,
                        size_t *parts_size, os_failure *failure) {
    if (ingest->failure.code != OS_OK) {
        *failure = ingest->failure;
        return failure->code;
    }
    size_t count = ingest->contents.size / sizeof(content) - ingest->open;
    if (ticket >= count)
        return os_fail(failure, OS_MISSING, "ingest: no content has ticket %u", ticket);
    const content *one = (const content *)ingest->contents.data + ticket;
    *size = one->size;
    *parts = one->parts_size ? ingest->parts.data + one->parts : NULL;
    *parts_size = one->parts_size;
    return OS_OK;
}

os_code os_ingest_finish(os_ingest *ingest, os_failure *failure) {
    os_code code = usable(ingest, false, failure);
    if (code == OS_OK)
        code = close_shared(ingest, failure);
    if (code == OS_OK)
        code = drain(ingest, 0, failure);
    if (code == OS_OK && ingest->fd >= 0)
        code = close_pack(ingest, failure);
    if (code == OS_OK)
        code = sync_closing(ingest, failure);
    if (code == OS_OK)
        ingest->finished = true;
    return keep(ingest, code, failure);
}

uint32_t os_ingest_pack_count(const os_ingest *ingest) {
    return (uint32_t)(ingest->packs.size / sizeof(pack));
}

void os_ingest_pack(const os_ingest *ingest, uint32_t row, const char **name, uint64_t *size, const uint8_t **table,
                    size_t *table_size) {
    const pack *one = (const pack *)ingest->packs.data + row;
    *name = one->name;
    *size = one->size;
    *table = one->table;
    *table_size = one->table_size;
}

void os_ingest_known_packs(const os_ingest *ingest, const uint8_t **digests, uint32_t *count) {
    *digests = ingest->known.data;
    *count = (uint32_t)(ingest->known.size / OS_ID_SIZE);
}

void os_ingest_statistics_of(const os_ingest *ingest, os_ingest_statistics *out) {
    *out = ingest->statistics;
}

/* ---- life ---- */

static bool make_job(const os_ingest *ingest, job *one, bool packed) {
    one->plain = allocate(ingest, OS_FRAME_MAX);
    one->packed = packed ? allocate(ingest, OS_FRAME_BOUND(OS_FRAME_MAX)) : NULL;
    return one->plain && (!packed || one->packed);
}

static void free_job_buffers(const os_ingest *ingest, job *one) {
    release(ingest, one->plain);
    release(ingest, one->packed);
    release(ingest, one->chunks);
}

os_code os_ingest_make(const os_ingest_options *options, os_ingest **out, os_failure *failure) {
    if (options->pack_size < OS_FRAME_MAX || options->pack_size > OS_PACK_MAX)
        return os_fail(failure, OS_LIMIT, "pack size: got %llu, want %u to %u", (unsigned long long)options->pack_size,
                       OS_FRAME_MAX, OS_PACK_MAX);
    if (options->threads < 1 || options->threads > THREADS_MAX)
        return os_fail(failure, OS_LIMIT, "threads: got %u, want 1 to %u", options->threads, THREADS_MAX);
    const os_env *env = options->env;
    os_ingest *ingest = env->allocate(env->context, sizeof *ingest);
    if (!ingest)
        return no_memory(failure);
    memset(ingest, 0, sizeof *ingest);
    ingest->options = *options;
    ingest->fd = ingest->closing_fd = -1;
    pthread_mutex_init(&ingest->lock, NULL);
    pthread_cond_init(&ingest->work, NULL);
    pthread_cond_init(&ingest->done, NULL);
    bool made = make_job(ingest, &ingest->shared, false);
    for (unsigned at = 0; at < RING; at++)
        made = make_job(ingest, &ingest->jobs[at], true) && made;
    ingest->block = allocate(ingest, OS_HOLE_BLOCK);
    ingest->window = allocate(ingest, WINDOW);
    os_code code = made && ingest->block && ingest->window ? OS_OK : no_memory(failure);
    for (; code == OS_OK && ingest->worker_count < options->threads; ingest->worker_count++) {
        int error = env->start_thread(env->context, &ingest->workers[ingest->worker_count], compress_frames, ingest);
        if (error) {
            code = os_fail_errno(failure, error, "ingest: cannot start a thread");
            break;
        }
    }
    if (code != OS_OK) {
        os_ingest_free(ingest);
        return code;
    }
    *out = ingest;
    return OS_OK;
}

void os_ingest_free(os_ingest *ingest) {
    if (!ingest)
        return;
    const os_env *env = ingest->options.env;
    pthread_mutex_lock(&ingest->lock);
    ingest->stop = true;
    pthread_cond_broadcast(&ingest->work);
    pthread_mutex_unlock(&ingest->lock);
    for (unsigned at = 0; at < ingest->worker_count; at++)
        pthread_join(ingest->workers[at], NULL);
    if (ingest->fd >= 0)
        env->close(env->context, ingest->fd);
    if (ingest->closing_fd >= 0)
        env->close(env->context, ingest->closing_fd);
    for (uint32_t row = 0; row < os_ingest_pack_count(ingest); row++) {
        pack *one = (pack *)ingest->packs.data + row;
        if (!ingest->finished)
            env->unlinkat(env->context, ingest->options.directory, one->name, 0);
        release(ingest, one->table);
    }
    for (unsigned at = 0; at < RING; at++)
        free_job_buffers(ingest, &ingest->jobs[at]);
    free_job_buffers(ingest, &ingest->shared);
    column *columns[] = {&ingest->seen, &ingest->known, &ingest->parts,  &ingest->contents, &ingest->packs,
                         &ingest->clen, &ingest->ulen,  &ingest->counts, &ingest->lengths,  &ingest->ids};
    for (size_t at = 0; at < sizeof columns / sizeof *columns; at++)
        release(ingest, columns[at]->data);
    release(ingest, ingest->block);
    release(ingest, ingest->read_buffer);
    release(ingest, ingest->window);
    pthread_cond_destroy(&ingest->done);
    pthread_cond_destroy(&ingest->work);
    pthread_mutex_destroy(&ingest->lock);
    env->release(env->context, ingest);
}
