/* One zstd frame of at most OS_FRAME_MAX bytes (docs/format.md section 2). Contexts are made once and used by one
 * thread. */
#ifndef OS_FRAME_H
#define OS_FRAME_H

#include <stddef.h>
#include <stdint.h>
#include <zstd.h>

#include "os_result.h"

/* Room that os_frame_compress never exceeds. */
#define OS_FRAME_BOUND(size) ZSTD_COMPRESSBOUND(size)

os_code os_frame_compress(ZSTD_CCtx *zstd, int level, const void *data, size_t size, void *out, size_t capacity,
                          size_t *length, os_failure *failure);
/* Exactly size bytes, from exactly one frame that declares that size and has neither checksum nor dictionary. */
os_code os_frame_decompress(ZSTD_DCtx *zstd, const void *frame, size_t frame_size, void *out, size_t size,
                            os_failure *failure);
/* The same for frames of other kinds of blob, whose limit is the caller's. */
os_code os_frame_decompress_large(ZSTD_DCtx *zstd, const void *frame, size_t frame_size, void *out, size_t size,
                                  os_failure *failure);

#endif
