/* The segment files of the local store (docs/format.md section 9): what their headers are made of, and a scanner that
 * finds every whole entry of a file that may be damaged anywhere. */
#ifndef OS_SEGMENT_H
#define OS_SEGMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "os_env.h"
#include "os_limits.h"
#include "os_result.h"

#define OS_SEGMENT_HEADER 32u
#define OS_ENTRY_HEADER 80u

enum { OS_CODEC_RAW = 0, OS_CODEC_ZSTD = 1 };

typedef struct os_entry {
    uint8_t id[OS_ID_SIZE];
    uint8_t algorithm, codec;
    uint32_t length, stored;  /* bytes of the content, and of what stands after the header */
    uint32_t segment, offset; /* the header's place */
    uint8_t check[8];         /* of the stored bytes */
} os_entry;

void os_segment_header_write(uint8_t out[OS_SEGMENT_HEADER], uint32_t number, bool pinned);
bool os_segment_header_read(const uint8_t in[OS_SEGMENT_HEADER], uint32_t number, bool *pinned);

/* The first 8 bytes of the BLAKE3 of stored bytes. */
void os_entry_check(const void *stored, size_t size, uint8_t out[8]);
void os_entry_write(uint8_t out[OS_ENTRY_HEADER], const os_entry *entry);
/* Whether an entry that was written for this place stands here; only then *out is filled, every field in range. */
bool os_entry_read(const uint8_t in[OS_ENTRY_HEADER], uint32_t segment, uint32_t offset, os_entry *out);

/* All of size bytes; OS_CORRUPT: the file ends before. */
os_code os_segment_pread(const os_env *env, int fd, void *buffer, size_t size, uint64_t offset, os_failure *failure);

/* Calls found for each entry whose header is sound, in file order; what lies between them is skipped. Only headers are
 * read, so the stored bytes of an entry may still be wrong or beyond the end of the file. *end: where the last one
 * ends. Stops with OS_CORRUPT if the segment's own header is damaged, with OS_SYSTEM if reading fails, or with the code
 * of found if that is not OS_OK. */
os_code os_segment_scan(const os_env *env, int fd, uint32_t number,
                        os_code (*found)(void *context, const os_entry *entry), void *context, uint32_t *end,
                        os_failure *failure);

#endif
