/* The ring between the caller and the workers, and how chunks fill its frames. */
#define ZSTD_STATIC_LINKING_ONLY /* contexts whose memory comes from the environment */
#include "os_ingest_parts.h"

#include <string.h>

#include "os_frame.h"

void *os_ingest_compress_frames(void *argument) {
    os_ingest *ingest = argument;
    const os_env *env = ingest->options.env;
    ZSTD_CCtx *zstd = ZSTD_createCCtx_advanced((ZSTD_customMem){env->allocate, env->release, env->context});
    pthread_mutex_lock(&ingest->lock);
    for (;;) {
        os_ingest_job *mine = &ingest->jobs[ingest->next % OS_INGEST_RING];
        if (ingest->stop)
            break;
        if (mine->state != OS_INGEST_WAITING) {
            pthread_cond_wait(&ingest->work, &ingest->lock);
            continue;
        }
        mine->state = OS_INGEST_BUSY;
        ingest->next++;
        pthread_mutex_unlock(&ingest->lock);
        mine->failure.code = OS_OK;
        if (!zstd)
            os_ingest_no_memory(&mine->failure);
        else
            os_frame_compress(zstd, ingest->options.level, mine->plain, mine->size, mine->packed,
                              OS_FRAME_BOUND(OS_FRAME_MAX), &mine->packed_size, &mine->failure);
        pthread_mutex_lock(&ingest->lock);
        mine->state = OS_INGEST_DONE;
        pthread_cond_signal(&ingest->done);
    }
    pthread_mutex_unlock(&ingest->lock);
    ZSTD_freeCCtx(zstd);
    return NULL;
}

/* Writes frames that are compressed; waits until at most `left` are in the ring. */
os_code os_ingest_drain(os_ingest *ingest, uint64_t left, os_failure *failure) {
    os_code code = OS_OK;
    while (code == OS_OK && ingest->head < ingest->tail) {
        os_ingest_job *oldest = &ingest->jobs[ingest->head % OS_INGEST_RING];
        pthread_mutex_lock(&ingest->lock);
        while (oldest->state != OS_INGEST_DONE && ingest->tail - ingest->head > left)
            pthread_cond_wait(&ingest->done, &ingest->lock);
        bool ready = oldest->state == OS_INGEST_DONE;
        pthread_mutex_unlock(&ingest->lock);
        if (!ready)
            break;
        code = os_ingest_write_frame(ingest, oldest, failure);
        pthread_mutex_lock(&ingest->lock);
        oldest->state = OS_INGEST_FREE;
        pthread_mutex_unlock(&ingest->lock);
        oldest->size = oldest->chunk_count = 0;
        ingest->head++;
    }
    return code;
}

static os_code add_row(const os_ingest *ingest, os_ingest_job *to, const uint8_t *id, const uint8_t *data,
                       uint32_t size, os_failure *failure) {
    if (to->chunk_count == to->chunk_room) {
        uint32_t room = to->chunk_room ? 2 * to->chunk_room : 16;
        os_ingest_chunk *rows = os_ingest_reallocate(ingest, to->chunks, room * sizeof *rows);
        if (!rows)
            return os_ingest_no_memory(failure);
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
static os_code free_job(os_ingest *ingest, os_ingest_job **out, os_failure *failure) {
    os_code code = os_ingest_drain(ingest, OS_INGEST_RING - 1, failure);
    *out = &ingest->jobs[ingest->tail % OS_INGEST_RING];
    return code;
}

static void submit(os_ingest *ingest, os_ingest_job *filled) {
    pthread_mutex_lock(&ingest->lock);
    filled->state = OS_INGEST_WAITING;
    pthread_cond_signal(&ingest->work);
    pthread_mutex_unlock(&ingest->lock);
    ingest->tail++;
}

os_code os_ingest_close_shared(os_ingest *ingest, os_failure *failure) {
    os_ingest_job *slot, *shared = &ingest->shared;
    if (shared->size == 0)
        return OS_OK;
    os_code code = free_job(ingest, &slot, failure);
    if (code != OS_OK)
        return code;
    /* the buffers change places, so that nothing is copied */
    uint8_t *plain = slot->plain;
    os_ingest_chunk *chunks = slot->chunks;
    uint32_t room = slot->chunk_room;
    slot->plain = shared->plain, slot->chunks = shared->chunks, slot->chunk_room = shared->chunk_room;
    slot->size = shared->size, slot->chunk_count = shared->chunk_count;
    shared->plain = plain, shared->chunks = chunks, shared->chunk_room = room;
    shared->size = shared->chunk_count = 0;
    submit(ingest, slot);
    return OS_OK;
}

os_code os_ingest_put_chunk(os_ingest *ingest, const uint8_t *id, const uint8_t *data, uint32_t size,
                            os_failure *failure) {
    if (!ingest->large) {
        os_code code = OS_OK;
        if (ingest->shared.size && ingest->shared.size + size > OS_FRAME_SHARED)
            code = os_ingest_close_shared(ingest, failure);
        return code == OS_OK ? add_row(ingest, &ingest->shared, id, data, size, failure) : code;
    }
    os_ingest_job *slot;
    os_code code = free_job(ingest, &slot, failure);
    if (code == OS_OK)
        code = add_row(ingest, slot, id, data, size, failure);
    if (code == OS_OK)
        submit(ingest, slot);
    return code;
}
