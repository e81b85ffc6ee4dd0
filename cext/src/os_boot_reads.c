#include "os_boot_reads.h"

#include <string.h>

#include "os_frame.h"

/* The object's row, or object_count. */
static uint32_t find_object(const os_boot_reads *self, const uint8_t *object) {
    uint32_t low = 0, high = self->boot.object_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = memcmp(self->boot.object_id + (size_t)self->by_id[middle] * OS_ID_SIZE, object, OS_ID_SIZE);
        if (order == 0)
            return self->by_id[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return self->boot.object_count;
}

bool os_boot_reads_knows(const os_boot_reads *reads, const uint8_t object[OS_ID_SIZE]) {
    return !atomic_load(&reads->broken) && find_object(reads, object) < reads->boot.object_count;
}

/* Where in by_place the run of an object's row is that has the byte at offset; false: none. */
static bool find_run(const os_boot_reads *self, uint32_t row, uint64_t offset, uint32_t *place) {
    uint32_t low = self->object_first[row], high = self->object_first[row + 1];
    const uint32_t first = low;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (self->boot.run_offset[self->by_place[middle]] <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == first)
        return false;
    uint32_t run = self->by_place[low - 1];
    *place = low - 1;
    return offset - self->boot.run_offset[run] < self->boot.run_length[run];
}

/* As a push checks it: within the object, and whole pages but at its end. */
static bool fits(const os_boot *boot, uint32_t run, uint64_t object_size) {
    uint64_t offset = boot->run_offset[run], length = boot->run_length[run];
    return offset <= object_size && length <= object_size - offset &&
           (length % OS_BOOT_PAGE == 0 || offset + length == object_size);
}

/* Whether all of it is in the pack, and the byte of the file behind the last frame that has some of it. */
static bool covered(const os_boot_reads *self, uint32_t row, uint64_t object_size, uint64_t offset, size_t size,
                    uint32_t *first, uint64_t *end) {
    const os_boot *boot = &self->boot;
    uint32_t place;
    *end = 0;
    if (!find_run(self, row, offset, first))
        return false;
    for (place = *first; size > 0; place++) {
        if (place == self->object_first[row + 1])
            return false;
        uint32_t run = self->by_place[place];
        if (boot->run_offset[run] > offset || !fits(boot, run, object_size))
            return false;
        uint64_t here = boot->run_offset[run] + boot->run_length[run] - offset;
        uint64_t behind = self->frame_start[self->run_frame[run] + 1];
        *end = behind > *end ? behind : *end;
        size -= here < size ? (size_t)here : size;
        offset += here;
    }
    return true;
}

static os_boot_found look(os_boot_reads *self, uint64_t end) {
    const os_env *env = self->env;
    uint64_t length, now = env->monotonic_ns(env->context);
    if (env->length(env->context, self->fd, &length) < 0)
        return OS_BOOT_NOT_HERE;
    pthread_mutex_lock(&self->lock);
    if (length > self->length) {
        self->length = length;
        self->grown = now;
    }
    /* Another thread may have looked at its clock, and seen the file grow, after we looked at ours. */
    bool grows = now <= self->grown || now - self->grown < OS_BOOT_READS_STALL_NS;
    pthread_mutex_unlock(&self->lock);
    if (length >= end)
        return OS_BOOT_HERE;
    return grows && end - length <= OS_BOOT_READS_SOON ? OS_BOOT_COMING : OS_BOOT_NOT_HERE;
}

/* A frame that is here, decoded; NULL with *failure. *own: the buffer, if the cache had no room for it, to be released.
 */
static const uint8_t *decoded(os_boot_reads *self, uint32_t frame, os_frame_slot **slot, uint8_t **own,
                              os_failure *failure) {
    const os_env *env = self->env;
    size_t size = self->boot.frame_packed[frame], got = 0;
    *own = NULL;
    *slot = os_frame_cache_get(&self->cache, 1, frame);
    if (*slot != NULL)
        return (*slot)->data;
    uint8_t *packed = env->allocate(env->context, size), *plain = env->allocate(env->context, OS_BOOT_FRAME_MAX);
    ZSTD_DCtx *zstd = ZSTD_createDCtx();
    os_code code = OS_OK;
    if (packed == NULL || plain == NULL || zstd == NULL)
        code = os_fail(failure, OS_MEMORY, "boot pack: no memory");
    for (ssize_t more = 1; code == OS_OK && got < size && more > 0; got += more > 0 ? (size_t)more : 0)
        more = env->pread(env->context, self->fd, packed + got, size - got, (off_t)(self->frame_start[frame] + got));
    if (code == OS_OK)
        code = os_boot_decode(&self->boot, frame, packed, got, zstd, plain, failure);
    ZSTD_freeDCtx(zstd);
    if (packed != NULL)
        env->release(env->context, packed);
    if (code == OS_OK) {
        *own = plain;
        *slot = os_frame_cache_put(&self->cache, 1, frame, own);
        if (*slot == NULL)
            return plain;
        plain = *own; /* what the cache gave for it, or NULL */
        *own = NULL;
    }
    if (plain != NULL)
        env->release(env->context, plain);
    return code == OS_OK ? (*slot)->data : NULL;
}

os_boot_found os_boot_reads_read(os_boot_reads *reads, const uint8_t object[OS_ID_SIZE], uint64_t object_size,
                                 uint64_t offset, size_t size, uint8_t *out, os_failure *failure) {
    const os_boot *boot = &reads->boot;
    uint32_t row = find_object(reads, object), place;
    uint64_t end;
    if (atomic_load(&reads->broken) || row == boot->object_count ||
        !covered(reads, row, object_size, offset, size, &place, &end))
        return OS_BOOT_NOT_HERE;
    os_boot_found found = look(reads, end);
    if (found != OS_BOOT_HERE)
        return found;
    for (; size > 0; place++) {
        uint32_t run = reads->by_place[place];
        uint64_t skipped = offset - boot->run_offset[run], there = boot->run_length[run] - skipped;
        size_t part = there < size ? (size_t)there : size;
        os_frame_slot *slot;
        uint8_t *own;
        const uint8_t *plain = decoded(reads, reads->run_frame[run], &slot, &own, failure);
        if (plain == NULL) {
            if (failure->code != OS_MEMORY)
                atomic_store(&reads->broken, true);
            return OS_BOOT_NOT_HERE;
        }
        memcpy(out, plain + reads->run_start[run] + skipped, part);
        if (slot != NULL)
            os_frame_cache_release(&reads->cache, slot, 0);
        if (own != NULL)
            reads->env->release(reads->env->context, own);
        out += part;
        offset += part;
        size -= part;
    }
    return OS_BOOT_HERE;
}
