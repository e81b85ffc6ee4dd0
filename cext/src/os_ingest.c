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
 * Memory: OS_INGEST_RING frames, plain and compressed, and one window of content: about 30 MiB for
 * chunks of the average size, 70 MiB if all are of the largest, and the tables of 1 M chunks.
 *
 * Durability: the disk begins with a pack while it is written, and the pack is waited for only when the next one
 * closes, or at the end. A caller that waited for 64 MiB to reach the disk let the workers run dry. */
#include "os_ingest_parts.h"

#include <errno.h>
#include <string.h>

#include "os_frame.h"

os_code os_ingest_keep(os_ingest *ingest, os_code code, os_failure *failure) {
    if (code != OS_OK && code != OS_CLOSED) /* misuse breaks nothing */
        ingest->failure = *failure;
    return code;
}

os_code os_ingest_usable(os_ingest *ingest, bool open, os_failure *failure) {
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
    os_code code = os_ingest_usable(ingest, false, failure);
    if (code != OS_OK)
        return code;
    os_ingest_content made = {0, ingest->parts.size, 0};
    if (ingest->contents.size / sizeof made >= UINT32_MAX)
        return os_fail(failure, OS_LIMIT, "ingest: too many contents");
    *ticket = (uint32_t)(ingest->contents.size / sizeof made);
    code = os_ingest_append(ingest, &ingest->contents, &made, sizeof made, failure);
    ingest->open = code == OS_OK;
    ingest->expected = size;
    ingest->large = size != UINT64_MAX && size > OS_FILE_SHARED;
    ingest->taken = ingest->zero_run = 0;
    ingest->block_size = ingest->window_start = ingest->window_end = 0;
    return os_ingest_keep(ingest, code, failure);
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
    os_code code = os_ingest_usable(ingest, true, failure);
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
            code = os_ingest_take_blocks(ingest, ingest->block, OS_HOLE_BLOCK, failure);
        }
    }
    if (code == OS_OK && size) {
        size_t whole = size & ~(size_t)(OS_HOLE_BLOCK - 1);
        if (whole)
            code = os_ingest_take_blocks(ingest, from, whole, failure);
        memcpy(ingest->block, from + whole, size - whole);
        ingest->block_size = size - whole;
    }
    return os_ingest_keep(ingest, code, failure);
}

os_code os_ingest_zeros(os_ingest *ingest, uint64_t size, os_failure *failure) {
    static const uint8_t ZEROS[OS_HOLE_BLOCK];
    os_code code = os_ingest_usable(ingest, true, failure);
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
    return os_ingest_keep(ingest, code, failure);
}

os_code os_ingest_end(os_ingest *ingest, os_failure *failure) {
    os_code code = os_ingest_usable(ingest, true, failure);
    if (code != OS_OK)
        return code;
    if (ingest->block_size)
        code = os_ingest_take_blocks(ingest, ingest->block, ingest->block_size, failure);
    if (code == OS_OK && ingest->zero_run)
        code = os_ingest_end_zero_run(ingest, failure);
    if (code == OS_OK)
        code = os_ingest_cut(ingest, true, failure);
    if (code == OS_OK && ingest->expected != UINT64_MAX && ingest->expected != ingest->taken)
        code = os_fail(failure, OS_CORRUPT, "content: got %llu bytes, want %llu", (unsigned long long)ingest->taken,
                       (unsigned long long)ingest->expected);
    os_ingest_content *last = (os_ingest_content *)(ingest->contents.data + ingest->contents.size) - 1;
    last->size = ingest->taken;
    last->parts_size = ingest->parts.size - last->parts;
    ingest->statistics.bytes += ingest->taken;
    ingest->open = false;
    return os_ingest_keep(ingest, code, failure);
}

os_code os_ingest_parts(const os_ingest *ingest, uint32_t ticket, uint64_t *size, const uint8_t **parts,
                        size_t *parts_size, os_failure *failure) {
    if (ingest->failure.code != OS_OK) {
        *failure = ingest->failure;
        return failure->code;
    }
    size_t count = ingest->contents.size / sizeof(os_ingest_content) - ingest->open;
    if (ticket >= count)
        return os_fail(failure, OS_MISSING, "ingest: no content has ticket %u", ticket);
    const os_ingest_content *one = (const os_ingest_content *)ingest->contents.data + ticket;
    *size = one->size;
    *parts = one->parts_size ? ingest->parts.data + one->parts : NULL;
    *parts_size = one->parts_size;
    return OS_OK;
}

os_code os_ingest_finish(os_ingest *ingest, os_failure *failure) {
    os_code code = os_ingest_usable(ingest, false, failure);
    if (code == OS_OK)
        code = os_ingest_close_shared(ingest, failure);
    if (code == OS_OK)
        code = os_ingest_drain(ingest, 0, failure);
    if (code == OS_OK && ingest->fd >= 0)
        code = os_ingest_close_pack(ingest, failure);
    if (code == OS_OK)
        code = os_ingest_sync_closing(ingest, failure);
    if (code == OS_OK)
        ingest->finished = true;
    return os_ingest_keep(ingest, code, failure);
}

uint32_t os_ingest_pack_count(const os_ingest *ingest) {
    return (uint32_t)(ingest->packs.size / sizeof(os_ingest_pack_file));
}

void os_ingest_pack(const os_ingest *ingest, uint32_t row, const char **name, uint64_t *size, const uint8_t **table,
                    size_t *table_size, const uint8_t **digest) {
    const os_ingest_pack_file *one = (const os_ingest_pack_file *)ingest->packs.data + row;
    *name = one->name;
    *size = one->size;
    *table = one->table;
    *table_size = one->table_size;
    *digest = one->digest;
}

void os_ingest_known_packs(const os_ingest *ingest, const uint8_t **digests, uint32_t *count) {
    *digests = ingest->known.data;
    *count = (uint32_t)(ingest->known.size / OS_ID_SIZE);
}

void os_ingest_statistics_of(const os_ingest *ingest, os_ingest_statistics *out) {
    *out = ingest->statistics;
}

/* ---- life ---- */

static bool make_job(const os_ingest *ingest, os_ingest_job *one, bool packed) {
    one->plain = os_ingest_allocate(ingest, OS_FRAME_MAX);
    one->packed = packed ? os_ingest_allocate(ingest, OS_FRAME_BOUND(OS_FRAME_MAX)) : NULL;
    return one->plain && (!packed || one->packed);
}

static void free_job_buffers(const os_ingest *ingest, os_ingest_job *one) {
    os_ingest_release(ingest, one->plain);
    os_ingest_release(ingest, one->packed);
    os_ingest_release(ingest, one->chunks);
}

os_code os_ingest_make(const os_ingest_options *options, os_ingest **out, os_failure *failure) {
    if (options->pack_size < OS_FRAME_MAX || options->pack_size > OS_PACK_MAX)
        return os_fail(failure, OS_LIMIT, "pack size: got %llu, want %u to %u", (unsigned long long)options->pack_size,
                       OS_FRAME_MAX, OS_PACK_MAX);
    if (options->threads < 1 || options->threads > OS_INGEST_THREADS_MAX)
        return os_fail(failure, OS_LIMIT, "threads: got %u, want 1 to %u", options->threads, OS_INGEST_THREADS_MAX);
    const os_env *env = options->env;
    os_ingest *ingest = env->allocate(env->context, sizeof *ingest);
    if (!ingest)
        return os_ingest_no_memory(failure);
    memset(ingest, 0, sizeof *ingest);
    ingest->options = *options;
    ingest->fd = ingest->closing_fd = -1;
    pthread_mutex_init(&ingest->lock, NULL);
    pthread_cond_init(&ingest->work, NULL);
    pthread_cond_init(&ingest->done, NULL);
    bool made = make_job(ingest, &ingest->shared, false);
    for (unsigned at = 0; at < OS_INGEST_RING; at++)
        made = make_job(ingest, &ingest->jobs[at], true) && made;
    ingest->block = os_ingest_allocate(ingest, OS_HOLE_BLOCK);
    ingest->window = os_ingest_allocate(ingest, OS_INGEST_WINDOW);
    os_code code = made && ingest->block && ingest->window ? OS_OK : os_ingest_no_memory(failure);
    for (; code == OS_OK && ingest->worker_count < options->threads; ingest->worker_count++) {
        int error =
            env->start_thread(env->context, &ingest->workers[ingest->worker_count], os_ingest_compress_frames, ingest);
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
        os_ingest_pack_file *one = (os_ingest_pack_file *)ingest->packs.data + row;
        if (!ingest->finished)
            env->unlinkat(env->context, ingest->options.directory, one->name, 0);
        os_ingest_release(ingest, one->table);
    }
    for (unsigned at = 0; at < OS_INGEST_RING; at++)
        free_job_buffers(ingest, &ingest->jobs[at]);
    free_job_buffers(ingest, &ingest->shared);
    os_id_set_free(&ingest->seen, env);
    os_column *columns[] = {&ingest->known, &ingest->parts,  &ingest->contents, &ingest->packs, &ingest->clen,
                            &ingest->ulen,  &ingest->counts, &ingest->lengths,  &ingest->ids};
    for (size_t at = 0; at < sizeof columns / sizeof *columns; at++)
        os_column_free(columns[at], env);
    os_ingest_release(ingest, ingest->block);
    os_ingest_release(ingest, ingest->read_buffer);
    os_ingest_release(ingest, ingest->window);
    pthread_cond_destroy(&ingest->done);
    pthread_cond_destroy(&ingest->work);
    pthread_mutex_destroy(&ingest->lock);
    env->release(env->context, ingest);
}
