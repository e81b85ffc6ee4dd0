/* A boot pack's head: what is opened names only objects, runs and frames that it has, and no run leaves its object. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "os_boot.h"

static uint64_t stored;

static ssize_t count_writev(void *context, int fd, const struct iovec *parts, int count) {
    (void)context;
    (void)fd;
    assert(count == 2 && parts[1].iov_len > 0 && parts[1].iov_len <= OS_BOOT_FRAME_MAX);
    for (size_t at = 0; at < parts[1].iov_len; at += 512)
        stored += ((const uint8_t *)parts[1].iov_base)[at];
    return (ssize_t)(parts[0].iov_len + parts[1].iov_len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t plain[OS_BOOT_FRAME_MAX];
    os_env env = os_env_system;
    env.writev = count_writev;
    os_boot boot;
    os_failure failure;
    uint8_t *exact = malloc(size + 1); /* aligned, and its end is watched */
    assert(exact != NULL);
    memcpy(exact, data, size);
    if (os_boot_open(exact, size, &boot, &failure) == OS_OK) {
        os_boot_place *places = calloc(boot.object_count + 1, sizeof *places);
        ZSTD_DCtx *zstd = ZSTD_createDCtx();
        assert(places != NULL && zstd != NULL);
        for (uint32_t row = 0; row < boot.object_count; row++)
            places[row] = (os_boot_place){row % 3, (uint64_t)boot.object_id[(size_t)row * OS_ID_SIZE] << 12};
        uint32_t first = 0;
        for (uint32_t frame = 0; frame < boot.frame_count; frame++) {
            uint64_t taken;
            os_boot_store(&boot, frame, first, plain, places, -1, &env, &taken, &failure);
            assert(taken <= boot.frame_plain[frame]);
            os_boot_decode(&boot, frame, data, size < boot.frame_packed[frame] ? size : boot.frame_packed[frame], zstd,
                           plain, &failure);
            first += boot.frame_runs[frame];
        }
        assert(first == boot.run_count);
        ZSTD_freeDCtx(zstd);
        free(places);
    }
    free(exact);
    return 0;
}
