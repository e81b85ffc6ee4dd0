/* The life of a boot pack that answers reads, and how its runs are found by object and offset: made once, from a head
 * that was hashed and checked. */
#define _GNU_SOURCE
#include "os_boot_reads.h"

#include <stdlib.h>
#include <string.h>

#include "os_frame.h"
#include "os_hash.h"

static int compare_ids(const void *one, const void *other, void *argument) {
    const os_boot *boot = argument;
    return memcmp(boot->object_id + (size_t)*(const uint32_t *)one * OS_ID_SIZE,
                  boot->object_id + (size_t)*(const uint32_t *)other * OS_ID_SIZE, OS_ID_SIZE);
}

static int compare_places(const void *one, const void *other, void *argument) {
    const os_boot *boot = argument;
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    if (boot->run_object[a] != boot->run_object[b])
        return boot->run_object[a] < boot->run_object[b] ? -1 : 1;
    return (boot->run_offset[a] > boot->run_offset[b]) - (boot->run_offset[a] < boot->run_offset[b]);
}

static os_code read_head(os_boot_reads *self, size_t head_size, const uint8_t *digest, os_failure *failure) {
    const os_env *env = self->env;
    uint8_t id[OS_ID_SIZE];
    os_code code = OS_OK;
    if (head_size > OS_FRAME_BOUND(OS_BOOT_HEAD_MAX))
        return os_fail(failure, OS_LIMIT, "boot pack: got a head of %zu bytes", head_size);
    uint8_t *packed = env->allocate(env->context, head_size + 1);
    ZSTD_DCtx *zstd = ZSTD_createDCtx();
    if (packed == NULL || zstd == NULL) {
        code = os_fail(failure, OS_MEMORY, "boot pack: no memory");
        goto done;
    }
    size_t got = 0;
    for (ssize_t more = 1; got < head_size && more > 0; got += more > 0 ? (size_t)more : 0)
        more = env->pread(env->context, self->fd, packed + got, head_size - got, (off_t)got);
    os_blake3(packed, got, id);
    if (got < head_size || memcmp(id, digest, OS_ID_SIZE) != 0) {
        code = os_fail(failure, OS_CORRUPT, "boot pack: got a head of another hash");
        goto done;
    }
    unsigned long long size = ZSTD_getFrameContentSize(packed, head_size);
    if (size > OS_BOOT_HEAD_MAX) { /* unknown and error are the largest numbers */
        code = os_fail(failure, OS_CORRUPT, "boot pack: got a head that does not say its size, or too long a one");
        goto done;
    }
    self->head = env->allocate(env->context, (size_t)size + 1);
    if (self->head == NULL)
        code = os_fail(failure, OS_MEMORY, "boot pack: no memory");
    else
        code = os_frame_decompress_large(zstd, packed, head_size, self->head, (size_t)size, failure);
    if (code == OS_OK)
        code = os_boot_open(self->head, (size_t)size, &self->boot, failure);
done:
    ZSTD_freeDCtx(zstd);
    if (packed != NULL)
        env->release(env->context, packed);
    return code;
}

static void *array_of(const os_env *env, size_t count, size_t size) {
    return env->allocate(env->context, (count + 1) * size); /* below 2^32 entries of 8 bytes */
}

static os_code make_index(os_boot_reads *self, size_t head_size, os_failure *failure) {
    const os_boot *boot = &self->boot;
    const os_env *env = self->env;
    self->frame_start = array_of(env, boot->frame_count, sizeof *self->frame_start);
    self->by_id = array_of(env, boot->object_count, sizeof *self->by_id);
    self->by_place = array_of(env, boot->run_count, sizeof *self->by_place);
    self->object_first = array_of(env, boot->object_count, sizeof *self->object_first);
    self->run_frame = array_of(env, boot->run_count, sizeof *self->run_frame);
    self->run_start = array_of(env, boot->run_count, sizeof *self->run_start);
    if (self->frame_start == NULL || self->by_id == NULL || self->by_place == NULL || self->object_first == NULL ||
        self->run_frame == NULL || self->run_start == NULL)
        return os_fail(failure, OS_MEMORY, "boot pack: no memory");
    uint64_t at = head_size;
    uint32_t run = 0;
    for (uint32_t frame = 0; frame < boot->frame_count; frame++) {
        uint32_t start = 0;
        for (uint32_t end = run + boot->frame_runs[frame]; run < end; run++) {
            self->by_place[run] = run;
            self->run_frame[run] = frame;
            self->run_start[run] = start;
            start += boot->run_length[run];
        }
        self->frame_start[frame] = at;
        at += boot->frame_packed[frame];
    }
    self->frame_start[boot->frame_count] = at;
    for (uint32_t row = 0; row < boot->object_count; row++)
        self->by_id[row] = row;
    qsort_r(self->by_id, boot->object_count, sizeof *self->by_id, compare_ids, (void *)boot);
    qsort_r(self->by_place, boot->run_count, sizeof *self->by_place, compare_places, (void *)boot);
    for (uint32_t row = 1; row < boot->object_count; row++)
        if (compare_ids(&self->by_id[row - 1], &self->by_id[row], (void *)boot) == 0)
            return os_fail(failure, OS_CORRUPT, "boot pack: got an object twice");
    uint32_t objects = 0;
    for (uint32_t place = 0; place < boot->run_count; place++) {
        uint32_t this = self->by_place[place], before = place > 0 ? self->by_place[place - 1] : 0;
        if (place == 0 || boot->run_object[before] != boot->run_object[this])
            self->object_first[objects++] = place; /* each object has runs, os_boot_open says */
        else if (boot->run_offset[before] + boot->run_length[before] > boot->run_offset[this])
            return os_fail(failure, OS_CORRUPT, "boot pack: run %u: got a page that is in run %u too", this, before);
    }
    self->object_first[objects] = boot->run_count;
    return OS_OK;
}

os_code os_boot_reads_make(const os_env *env, int fd, size_t head_size, const uint8_t head_digest[OS_ID_SIZE],
                           os_boot_reads **out, os_failure *failure) {
    os_boot_reads *self = env->allocate(env->context, sizeof *self);
    if (self == NULL)
        return os_fail(failure, OS_MEMORY, "boot pack: no memory");
    memset(self, 0, sizeof *self);
    self->env = env;
    atomic_store(&self->users, 1);
    self->fd = fd;
    self->grown = env->monotonic_ns(env->context);
    pthread_mutex_init(&self->lock, NULL);
    os_frame_cache_init(&self->cache, OS_BOOT_READS_SLOTS);
    os_code code = read_head(self, head_size, head_digest, failure);
    if (code == OS_OK)
        code = make_index(self, head_size, failure);
    if (code != OS_OK) {
        self->fd = -1; /* it stays the caller's */
        os_boot_reads_drop(self);
        return code;
    }
    *out = self;
    return OS_OK;
}

void os_boot_reads_hold(os_boot_reads *reads) {
    atomic_fetch_add(&reads->users, 1);
}

void os_boot_reads_drop(os_boot_reads *reads) {
    if (reads == NULL || atomic_fetch_sub(&reads->users, 1) != 1)
        return;
    const os_env *env = reads->env;
    void *const owned[] = {reads->head,         reads->frame_start, reads->by_id,    reads->by_place,
                           reads->object_first, reads->run_frame,   reads->run_start};
    for (size_t at = 0; at < sizeof owned / sizeof *owned; at++)
        if (owned[at] != NULL)
            env->release(env->context, owned[at]);
    if (reads->fd >= 0)
        env->close(env->context, reads->fd);
    os_frame_cache_destroy(&reads->cache, env);
    pthread_mutex_destroy(&reads->lock);
    env->release(env->context, reads);
}
