/* Content in, packs out (docs/format.md sections 1 to 3): cut, hash, ask whether it is known, compress, append.
 *
 * Bytes that come out depend on the bytes that go in, their order and what `known` answers; never on the number of
 * threads. All functions are called by one thread at a time. After a failure every call but os_ingest_free returns
 * that failure again. */
#ifndef OS_INGEST_H
#define OS_INGEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "os_env.h"
#include "os_known.h"
#include "os_result.h"

typedef struct os_ingest os_ingest;

typedef struct os_ingest_options {
    const os_env *env;     /* borrowed */
    const os_known *known; /* borrowed; NULL: nothing is known */
    int directory;         /* borrowed descriptor; packs appear there as pack-<pid>-<n>.tmp */
    int level;             /* zstd's */
    unsigned threads;      /* that compress; at least 1 */
    uint64_t pack_size;    /* of a pack's frames; at most OS_PACK_MAX, at least OS_FRAME_MAX */
    bool digests;          /* packs are hashed while they are written */
} os_ingest_options;

typedef struct os_ingest_statistics {
    uint64_t bytes;        /* of content, holes included */
    uint64_t chunks;       /* met */
    uint64_t known_chunks; /* of those, in older packs */
    uint64_t same_chunks;  /* of those, met before in this ingest */
    uint64_t written;      /* bytes of packs */
} os_ingest_statistics;

os_code os_ingest_make(const os_ingest_options *options, os_ingest **out, os_failure *failure);
/* Stops the threads and deletes packs that were not finished. May be NULL. */
void os_ingest_free(os_ingest *ingest);

/* One content: begin, any number of update and zeros, end. size: if it is known, else UINT64_MAX. */
os_code os_ingest_begin(os_ingest *ingest, uint64_t size, uint32_t *ticket, os_failure *failure);
os_code os_ingest_update(os_ingest *ingest, const void *data, size_t size, os_failure *failure);
os_code os_ingest_zeros(os_ingest *ingest, uint64_t size, os_failure *failure);
os_code os_ingest_end(os_ingest *ingest, os_failure *failure);
/* An update with size bytes of fd at offset. OS_CORRUPT if the file has fewer. */
os_code os_ingest_update_from(os_ingest *ingest, int fd, uint64_t offset, size_t size, os_failure *failure);
/* One step through a file of size bytes, of which *offset were taken: a hole, or 16 MiB at most. */
os_code os_ingest_file_step(os_ingest *ingest, int fd, uint64_t size, uint64_t *offset, os_failure *failure);

/* Of an ended content: its size, and its parts as `u64 length, id[32]` (borrowed until the
 * next content; NULL if there are none). */
os_code os_ingest_parts(const os_ingest *ingest, uint32_t ticket, uint64_t *size, const uint8_t **parts,
                        size_t *parts_size, os_failure *failure);

/* Writes everything out and syncs it. After it only parts, packs, known_packs, statistics and free may be called. */
os_code os_ingest_finish(os_ingest *ingest, os_failure *failure);
uint32_t os_ingest_pack_count(const os_ingest *ingest);
/* digest: SHA-256 of the file, if the options asked for it. */
void os_ingest_pack(const os_ingest *ingest, uint32_t row, const char **name, uint64_t *size, const uint8_t **table,
                    size_t *table_size, const uint8_t **digest);
/* Distinct digests of older packs that hold chunks met here, in the order of first use. */
void os_ingest_known_packs(const os_ingest *ingest, const uint8_t **digests, uint32_t *count);
void os_ingest_statistics_of(const os_ingest *ingest, os_ingest_statistics *out);

#endif
