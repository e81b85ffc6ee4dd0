#include "os_frame.h"

#include "os_limits.h"

os_code os_frame_compress(ZSTD_CCtx *zstd, int level, const void *data, size_t size, void *out, size_t capacity,
                          size_t *length, os_failure *failure) {
    if (size > OS_FRAME_MAX)
        return os_fail(failure, OS_LIMIT, "frame: got %zu bytes, want at most %u", size, OS_FRAME_MAX);
    ZSTD_CCtx_reset(zstd, ZSTD_reset_session_and_parameters);
    ZSTD_CCtx_setParameter(zstd, ZSTD_c_compressionLevel, level);
    size_t made = ZSTD_compress2(zstd, out, capacity, data, size);
    if (ZSTD_isError(made))
        return os_fail(failure, OS_MEMORY, "frame: zstd: %s", ZSTD_getErrorName(made));
    *length = made;
    return OS_OK;
}

os_code os_frame_decompress(ZSTD_DCtx *zstd, const void *frame, size_t frame_size, void *out, size_t size,
                            os_failure *failure) {
    if (size > OS_FRAME_MAX)
        return os_fail(failure, OS_LIMIT, "frame: got %zu bytes, want at most %u", size, OS_FRAME_MAX);
    unsigned long long declared = ZSTD_getFrameContentSize(frame, frame_size);
    if (declared != size)
        return os_fail(failure, OS_CORRUPT, "frame: got content size %llu, want %zu", declared, size);
    size_t whole = ZSTD_findFrameCompressedSize(frame, frame_size);
    if (ZSTD_isError(whole) || whole != frame_size)
        return os_fail(failure, OS_CORRUPT, "frame: got more or less than one frame in %zu bytes, want one",
                       frame_size);
    size_t made = ZSTD_decompressDCtx(zstd, out, size, frame, frame_size);
    if (ZSTD_isError(made) || made != size)
        return os_fail(failure, OS_CORRUPT, "frame: got bytes that do not decompress to %zu, want a zstd frame", size);
    return OS_OK;
}
