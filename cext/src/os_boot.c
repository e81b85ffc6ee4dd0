/* The head is checked whole before a frame is asked for, so that the loop over frames has no case left but the frame's
 * own hash. Pages go to the kernel run by run: one NOTIFY_STORE for each, exactly as long as the file allows, since a
 * store past the end would make the file longer for every reader (and a padded one would show zeros). */
#include "os_boot.h"

#include <errno.h>
#include <linux/fuse.h>
#include <string.h>
#include <sys/uio.h>

#include "os_frame.h"
#include "os_hash.h"

#define HEADER 32u
#define MAGIC "OSBOOT01"

static uint32_t word(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static os_code check_frames(const os_boot *boot, os_failure *failure) {
    uint64_t runs = 0, total = 0;
    for (uint32_t frame = 0; frame < boot->frame_count; frame++) {
        uint32_t plain = boot->frame_plain[frame], packed = boot->frame_packed[frame];
        uint32_t count = boot->frame_runs[frame];
        if (plain == 0 || plain > OS_BOOT_FRAME_MAX || packed == 0 || packed > OS_FRAME_BOUND(OS_BOOT_FRAME_MAX))
            return os_fail(failure, OS_CORRUPT, "boot pack: frame %u: got %u bytes packed into %u", frame, plain,
                           packed);
        if (count == 0 || count > boot->run_count - runs)
            return os_fail(failure, OS_CORRUPT, "boot pack: frame %u: got %u runs, want 1 to %llu", frame, count,
                           (unsigned long long)(boot->run_count - runs));
        uint64_t sum = 0;
        for (uint32_t run = 0; run < count; run++)
            sum += boot->run_length[runs + run];
        if (sum != plain)
            return os_fail(failure, OS_CORRUPT, "boot pack: frame %u: got runs of %llu bytes, want %u", frame,
                           (unsigned long long)sum, plain);
        runs += count;
        total += plain;
    }
    if (runs != boot->run_count || total != boot->total)
        return os_fail(failure, OS_CORRUPT, "boot pack: got %llu runs and %llu bytes in its frames, want %u and %llu",
                       (unsigned long long)runs, (unsigned long long)total, boot->run_count,
                       (unsigned long long)boot->total);
    return OS_OK;
}

static os_code check_runs(const os_boot *boot, os_failure *failure) {
    uint32_t met = 0;
    for (uint32_t run = 0; run < boot->run_count; run++) {
        uint64_t offset = boot->run_offset[run];
        uint32_t length = boot->run_length[run], object = boot->run_object[run];
        if (object > met || object >= boot->object_count)
            return os_fail(failure, OS_CORRUPT,
                           "boot pack: run %u: got object %u, want them in the order of their runs", run, object);
        met += object == met;
        if (length == 0 || length > OS_BOOT_FRAME_MAX || offset % OS_BOOT_PAGE != 0 ||
            offset > OS_FILE_SIZE_MAX - length)
            return os_fail(failure, OS_CORRUPT, "boot pack: run %u: got %u bytes at %llu, want whole pages", run,
                           length, (unsigned long long)offset);
    }
    if (met != boot->object_count)
        return os_fail(failure, OS_CORRUPT, "boot pack: got %u objects with runs, want %u", met, boot->object_count);
    return OS_OK;
}

os_code os_boot_open(const uint8_t *data, size_t size, os_boot *boot, os_failure *failure) {
    if (size < HEADER || memcmp(data, MAGIC, 8) != 0)
        return os_fail(failure, OS_CORRUPT, "boot pack: got no head");
    if (size > OS_BOOT_HEAD_MAX)
        return os_fail(failure, OS_LIMIT, "boot pack: got a head of %zu bytes, want at most %u", size,
                       OS_BOOT_HEAD_MAX);
    boot->object_count = word(data + 8);
    boot->run_count = word(data + 12);
    boot->frame_count = word(data + 16);
    memcpy(&boot->total, data + 24, sizeof boot->total);
    uint64_t objects = boot->object_count, runs = boot->run_count, frames = boot->frame_count;
    uint64_t want = HEADER + objects * OS_ID_SIZE + frames * OS_ID_SIZE + runs * 16 + frames * 12; /* below 2^39 */
    if (word(data + 20) != 0 || want != size)
        return os_fail(failure, OS_CORRUPT, "boot pack: got a head of %zu bytes, want %llu for its counts", size,
                       (unsigned long long)want);
    boot->object_id = data + HEADER;
    boot->frame_id = boot->object_id + objects * OS_ID_SIZE;
    boot->run_offset = (const uint64_t *)(boot->frame_id + frames * OS_ID_SIZE);
    boot->run_length = (const uint32_t *)(boot->run_offset + runs);
    boot->run_object = boot->run_length + runs;
    boot->frame_packed = boot->run_object + runs;
    boot->frame_plain = boot->frame_packed + frames;
    boot->frame_runs = boot->frame_plain + frames;
    os_code code = check_runs(boot, failure);
    return code != OS_OK ? code : check_frames(boot, failure);
}

os_code os_boot_decode(const os_boot *boot, uint32_t frame, const void *data, size_t size, ZSTD_DCtx *zstd,
                       uint8_t *plain, os_failure *failure) {
    uint8_t id[OS_ID_SIZE];
    if (size != boot->frame_packed[frame])
        return os_fail(failure, OS_CORRUPT, "boot pack: frame %u: got %zu bytes, want %u", frame, size,
                       boot->frame_packed[frame]);
    os_blake3(data, size, id);
    if (memcmp(id, boot->frame_id + (size_t)frame * OS_ID_SIZE, OS_ID_SIZE) != 0)
        return os_fail(failure, OS_CORRUPT, "boot pack: frame %u: got bytes of another hash", frame);
    return os_frame_decompress_large(zstd, data, size, plain, boot->frame_plain[frame], failure);
}

/* One run. A run that ends before its object does has to be whole pages: the rest of a page would read as zeros. */
static os_code check_place(const os_boot *boot, uint32_t run, const os_boot_place *place, os_failure *failure) {
    uint64_t offset = boot->run_offset[run];
    uint32_t length = boot->run_length[run];
    if (offset > place->size || length > place->size - offset ||
        (length % OS_BOOT_PAGE != 0 && offset + length != place->size))
        return os_fail(failure, OS_CORRUPT, "boot pack: run %u: got %u bytes at %llu of an object of %llu", run, length,
                       (unsigned long long)offset, (unsigned long long)place->size);
    return OS_OK;
}

os_code os_boot_store(const os_boot *boot, uint32_t frame, uint32_t first_run, const uint8_t *plain,
                      const os_boot_place *places, int fuse, const os_env *env, uint64_t *stored, os_failure *failure) {
    *stored = 0;
    for (uint32_t run = first_run; run < first_run + boot->frame_runs[frame]; run++) {
        const os_boot_place *place = &places[boot->run_object[run]];
        if (place->node != 0 && check_place(boot, run, place, failure) != OS_OK)
            return failure->code;
    }
    for (uint32_t run = first_run; run < first_run + boot->frame_runs[frame]; run++) {
        const os_boot_place *place = &places[boot->run_object[run]];
        uint32_t length = boot->run_length[run];
        struct {
            struct fuse_out_header header;
            struct fuse_notify_store_out store;
        } head;
        memset(&head, 0, sizeof head);
        head.header.len = (uint32_t)(sizeof head + length);
        head.header.error = FUSE_NOTIFY_STORE;
        head.store.nodeid = place->node;
        head.store.offset = boot->run_offset[run];
        head.store.size = length;
        const struct iovec parts[2] = {{&head, sizeof head}, {(void *)plain, length}};
        plain += length;
        if (place->node == 0)
            continue;
        if (env->writev(env->context, fuse, parts, 2) >= 0)
            *stored += length;
        else if (errno != ENOENT) /* ENOENT: the kernel let go of the inode; its pages are not missed */
            return os_fail_errno(failure, errno, "boot pack: store: %s", strerror(errno));
    }
    return OS_OK;
}
