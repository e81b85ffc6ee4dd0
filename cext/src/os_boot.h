/* A boot pack (docs/format.md section 8): the pages that a start touches, in order, in frames that follow its head.
 *
 * The head is a view, nothing is copied. What a head says of an object is believed only after the object was placed:
 * its size then comes from the image's verified tables, by way of the mount. */
#ifndef OS_BOOT_H
#define OS_BOOT_H

#include <stddef.h>
#include <stdint.h>
#include <zstd.h>

#include "os_env.h"
#include "os_limits.h"
#include "os_result.h"

/* All pointers are borrowed from the bytes that were opened. */
typedef struct os_boot {
    uint32_t object_count, run_count, frame_count;
    uint64_t total;           /* bytes of all runs */
    const uint8_t *object_id; /* in the order in which they are first touched */
    const uint8_t *frame_id;  /* BLAKE3 of each frame's compressed bytes */
    const uint64_t *run_offset;
    const uint32_t *run_length, *run_object;
    const uint32_t *frame_packed, *frame_plain, *frame_runs;
} os_boot;

/* Where an object's pages go. node 0: it is not there, its runs are left out. */
typedef struct os_boot_place {
    uint64_t node, size;
} os_boot_place;

/* data: aligned to 8, stays while the view is used. OS_CORRUPT or OS_LIMIT say which rule is broken. */
os_code os_boot_open(const uint8_t *data, size_t size, os_boot *boot, os_failure *failure);

/* Verifies a frame's bytes and decodes them into plain (OS_BOOT_FRAME_MAX bytes). frame: below frame_count. */
os_code os_boot_decode(const os_boot *boot, uint32_t frame, const void *data, size_t size, ZSTD_DCtx *zstd,
                       uint8_t *plain, os_failure *failure);

/* Pushes a decoded frame's pages into the page cache of the mount of fuse. first_run: of this frame. A run that its
 * object's size does not allow is OS_CORRUPT, and nothing of the frame is pushed. May wait for a READ of the same page.
 * *stored: bytes taken. */
os_code os_boot_store(const os_boot *boot, uint32_t frame, uint32_t first_run, const uint8_t *plain,
                      const os_boot_place *places, int fuse, const os_env *env, uint64_t *stored, os_failure *failure);

#endif
