/* An image that objects are read from: its tables, where its packs are, and the road from a place in an object to
 * verified bytes. Immutable but for its counts and marks, shared by the threads of a server. */
#ifndef OS_IMAGE_H
#define OS_IMAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <zstd.h>

#include "os_env.h"
#include "os_frame_cache.h"
#include "os_source.h"
#include "os_store.h"
#include "os_tables.h"

#define OS_IMAGE_LABEL_MAX 128u

typedef struct os_image {
    uint64_t id;         /* immutable, never 0, never used twice */
    os_tables tables;    /* immutable, validated */
    void *mapping;       /* owned through unmap: the bytes of tables */
    size_t mapping_size; /* immutable */
    void (*unmap)(void *mapping, size_t size);
    os_source source;      /* owned */
    _Atomic uint8_t *mark; /* owned, object_count: 0 not looked at, 1 id checked, 2 id wrong */
    atomic_uint users;     /* freed at 0 */
    char label[OS_IMAGE_LABEL_MAX];
} os_image;

/* What one thread reads with. */
typedef struct os_reader {
    os_store *store; /* borrowed: asked before the packs are; NULL: there is none */
    bool passive;    /* what is far away is not asked for: it is PENDING, and that is all */
    ZSTD_DCtx *zstd; /* owned */
    uint8_t *packed; /* owned, OS_READER_PACKED bytes */
    uint8_t *frame;  /* owned, OS_FRAME_MAX bytes; NULL for a moment after a swap with the cache */
    /* What packed holds, for one request. image NULL: nothing. */
    const os_image *image;
    uint32_t blob;
    uint64_t start, end;
    /* What it did, since it was made. */
    uint64_t pack_bytes, decoded_bytes, cache_hits, kept_bytes,
        keeps; /* kept_bytes: out of the store; keeps: into it */
} os_reader;

/* A request's bytes of frames (1 MiB, hardly longer compressed) are read by one pread where they lie side by side. */
#define OS_READER_PACKED ((1u << 20) + (128u << 10) + 2 * OS_FRAME_MAX)

/* Where a read went wrong, or what it waits for. */
typedef struct os_place {
    const uint8_t *chunk; /* borrowed from the tables, as is pack; NULL: not come so far */
    const uint8_t *pack;
    uint64_t offset; /* of the frame in the pack, with its size */
    size_t size;
} os_place;

/* Takes mapping (validated here) and source on OS_OK only. users is 1. */
os_code os_image_make(const os_env *env, uint64_t id, void *mapping, size_t size, void (*unmap)(void *, size_t),
                      os_source source, const char *label, os_image **out, os_failure *failure);
void os_image_hold(os_image *image);
void os_image_drop(os_image *image, const os_env *env);

/* OS_OK if the row's id was found to be the id of its parts, now or before. */
os_code os_image_check(os_image *image, uint32_t row, os_failure *failure);

os_code os_reader_init(os_reader *reader, const os_env *env, os_failure *failure);
void os_reader_destroy(os_reader *reader, const os_env *env);

/* size bytes at offset of a checked object, all inside it, into out. starts: part_count + 1 offsets of its parts. */
os_answer os_image_read(os_image *image, uint32_t row, const uint64_t *starts, uint64_t offset, size_t size,
                        uint8_t *out, os_reader *reader, os_frame_cache *cache, const os_env *env, os_place *place,
                        os_failure *failure);
/* From one offset to another, both inside the object: what is far comes nearer, when nothing else has to. HERE: all of
 * it is. */
os_answer os_image_want_ahead(os_image *image, uint32_t row, const uint64_t *starts, uint64_t from, uint64_t to,
                              os_reader *reader, os_frame_cache *cache, const os_env *env);

#endif
