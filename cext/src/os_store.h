/* The local chunk store: verified chunks on this host's disk, in append-only segment files, with an LMDB map that says
 * where each one is. A cache: whatever is damaged or lost is fetched again, and the map can be made again from the
 * segments.
 *
 * - A chunk is hashed before it enters and each time it is read, in the buffer that the reader gets.
 * - put returns before the chunk is on disk; it can be read, and survives a crash, after flush (or by itself, soon).
 * - A directory has one store at a time, held by a flock. All functions but open and free may be called from any
 *   thread. After a fork only the process that opened the store may use it.
 * - Quota and free space are kept by the writer, which drops whole segments, those read longest ago first, pinned ones
 *   last. A put for which there is no room is lost, and flush says OS_LIMIT. */
#ifndef OS_STORE_H
#define OS_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "os_env.h"
#include "os_log.h"
#include "os_result.h"
#include "os_segment.h"

typedef struct os_store os_store;

typedef struct os_store_options {
    const os_env *env;     /* borrowed; NULL: the system. LMDB does its own I/O; so do flock and the listing at open */
    os_log *log;           /* borrowed, may be NULL: a line for each chunk that was found damaged, and for what broke */
    uint32_t segment_size; /* where a segment file is closed; 0: OS_STORE_SEGMENT, or less under a small quota */
    uint32_t queue_size;   /* bytes that may wait for the writer; 0: OS_STORE_QUEUE */
    int level;             /* of zstd; 0: 3 */
    uint64_t quota;        /* bytes of all segments, 0: no bound */
    uint64_t floor;        /* bytes that the file system is left, whoever fills it; 0: none */
} os_store_options;

#define OS_STORE_SEGMENT (256u << 20) /* one descriptor each: a store of 100 GiB has 400 */
#define OS_STORE_SEGMENT_MIN (8u << 20)
#define OS_STORE_QUEUE (32u << 20)

enum {
    OS_STORE_ZSTD = 1,     /* keep it compressed, if that makes it smaller: less disk, a third of the speed */
    OS_STORE_PINNED = 2,   /* put it with what is dropped last */
    OS_STORE_NO_WAIT = 4,  /* OS_LIMIT while the queue is full, instead of waiting */
    OS_STORE_VERIFIED = 8, /* the caller has hashed data in this very buffer a moment before */
};

typedef struct os_store_segment {
    uint32_t number;
    uint32_t bytes; /* committed */
    uint64_t used;  /* when it was last read or written, on a clock that counts both; survives a restart roughly */
    bool pinned;
} os_store_segment;

typedef struct os_store_statistics {
    uint64_t chunks, segments, bytes; /* on disk and committed; bytes: of the segment files */
    uint64_t hits, misses;            /* of get */
    uint64_t puts, known;             /* accepted; not written because they were there */
    uint64_t damaged;                 /* chunks that failed a read and were taken out of the map */
    uint64_t damaged_rows;            /* rows of the map that failed their check */
    uint64_t lost;                    /* puts that were accepted and could not be written */
    uint64_t evicted;                 /* segments dropped for want of room */
    uint64_t queued;                  /* bytes waiting for the writer */
    uint64_t rebuilt;                 /* 1: the map was made again from the segments at open */
    uint64_t broken;                  /* 1: the map failed; the store does nothing until it is opened again */
} os_store_statistics;

/* What os_store_check found among what the map says is there. */
typedef struct os_store_report {
    uint64_t chunks, bytes;   /* looked at: entries, and their bytes */
    uint64_t damaged;         /* entries whose header or content is wrong */
    uint64_t damaged_rows;    /* rows of the map that are wrong or name no segment */
    uint64_t damaged_headers; /* of segments */
} os_store_report;

/* path: an existing directory of ours. OS_SYSTEM with EWOULDBLOCK: somebody else has this store open. */
os_code os_store_open(const char *path, const os_store_options *options, os_store **out, os_failure *failure);
/* Writes what is queued, stops the writer, gives the directory free. Waits for running calls; later ones get OS_CLOSED.
 * Returns what a last flush would have. */
os_code os_store_close(os_store *store, os_failure *failure);
void os_store_free(os_store *store); /* closes; may be NULL */

/* OS_CORRUPT: data is not what id says. Waits while the queue is full, unless told not to. A chunk that is there
 * compressed is put again if this one is to be raw, and one that is not pinned if this one is to be. */
os_code os_store_put(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm, const void *data, size_t size,
                     unsigned flags, os_failure *failure);
/* *length verified bytes in buffer, or OS_MISSING (not there, or found damaged; buffer is then of no use). OS_LIMIT:
 * capacity is too small. Never waits for the writer. */
os_code os_store_get(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm, void *buffer, size_t capacity,
                     size_t *length, os_failure *failure);
/* Whether a get would most likely succeed; nothing is read but the map. */
bool os_store_has(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm);
/* Whether a put with these flags would find the chunk in its place. */
bool os_store_keeps(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm, unsigned flags);
/* Waits until everything put before is durable. Fails with the first thing that went wrong since the flush before. */
os_code os_store_flush(os_store *store, os_failure *failure);

/* Whether somebody asked about this chunk before, roughly: a filter of a million bits, kept over a restart. */
bool os_store_seen(os_store *store, const uint8_t id[OS_ID_SIZE]);

/* The descriptor of its directory, in which it makes and deletes files; -1 once closed. */
int os_store_directory(const os_store *store);

/* *out: owned by the caller (free), ascending by number. */
os_code os_store_segments(os_store *store, os_store_segment **out, size_t *count, os_failure *failure);
/* Deletes a segment and forgets its chunks; readers that are in it finish. OS_MISSING: there is no such segment. */
os_code os_store_drop(os_store *store, uint32_t number, os_failure *failure);

/* Reads and hashes everything. repair: what is damaged is forgotten, damaged segment headers are written anew. */
os_code os_store_check(os_store *store, bool repair, os_store_report *out, os_failure *failure);

os_code os_store_statistics_of(os_store *store, os_store_statistics *out, os_failure *failure);

#endif
