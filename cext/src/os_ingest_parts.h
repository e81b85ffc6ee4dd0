/* What the parts of the ingest share: its state, and the road of a content through them. Private to os_ingest*.c;
 * os_ingest.c says who runs and who owns what. */
#ifndef OS_INGEST_PARTS_H
#define OS_INGEST_PARTS_H

#include <pthread.h>
#include <stdbool.h>

#include "os_column.h"
#include "os_id_set.h"
#include "os_ingest.h"
#include "os_limits.h"
#include "os_sha256.h"

/* Lets workers go on while the caller is busy with small files, and the other way round. */
#define OS_INGEST_RING 128u
#define OS_INGEST_PART_SIZE 40u
#define OS_INGEST_WINDOW (4u << 20) /* of a data segment, before its chunks are cut */
#define OS_INGEST_READ_STEP (1u << 20)
#define OS_INGEST_THREADS_MAX 64u

typedef enum os_ingest_job_state {
    OS_INGEST_FREE,
    OS_INGEST_WAITING,
    OS_INGEST_BUSY,
    OS_INGEST_DONE
} os_ingest_job_state;

typedef struct os_ingest_chunk {
    uint8_t id[OS_ID_SIZE];
    uint32_t length;
} os_ingest_chunk;

typedef struct os_ingest_job {
    os_ingest_job_state state; /* guarded by lock */
    uint8_t *plain;            /* owned, OS_FRAME_MAX */
    uint8_t *packed;           /* owned, OS_FRAME_BOUND(OS_FRAME_MAX) */
    os_ingest_chunk *chunks;   /* owned */
    uint32_t size, chunk_count, chunk_room;
    size_t packed_size; /* with failure: written by the worker while OS_INGEST_BUSY */
    os_failure failure;
} os_ingest_job;

typedef struct os_ingest_content {
    uint64_t size;
    size_t parts, parts_size; /* place in parts */
} os_ingest_content;

typedef struct os_ingest_pack_file {
    char name[48];
    uint64_t size;
    uint8_t *table; /* owned */
    size_t table_size;
    uint8_t digest[OS_ID_SIZE]; /* if options.digests */
} os_ingest_pack_file;

struct os_ingest {
    os_ingest_options options; /* immutable */
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    pthread_t workers[OS_INGEST_THREADS_MAX];
    unsigned worker_count; /* started */
    bool stop;             /* guarded by lock */
    uint64_t next;         /* guarded by lock: job that the next worker looks at */
    uint64_t head, tail;   /* caller's: jobs written, jobs filled */
    os_ingest_job jobs[OS_INGEST_RING];
    os_ingest_job shared; /* caller's: the shared frame that is open; only plain and chunks are used */

    os_id_set seen;     /* ids of chunks that were met */
    os_column known;    /* digests of older packs */
    os_column parts;    /* of all contents */
    os_column contents; /* of content */
    os_column packs;    /* of pack */

    /* the content that is open */
    bool open, large;
    uint64_t expected, taken, zero_run;
    uint8_t *block; /* owned, OS_HOLE_BLOCK: a block that is not complete */
    size_t block_size;
    uint8_t *window; /* owned, OS_INGEST_WINDOW: the data segment, as far as it is not cut */
    size_t window_start, window_end;
    /* owned, OS_INGEST_READ_STEP, made by the first read: a mapping each time would cost its page faults */
    uint8_t *read_buffer;

    /* the pack that is open */
    int fd;                /* owned; -1: none */
    int closing_fd;        /* owned; -1: none. The pack before it, complete but not yet known to be on the disk */
    uint64_t written_back; /* of offset: the disk was asked to begin */
    uint64_t offset;
    os_sha256_hasher hasher; /* of what was written, if options.digests */
    os_column clen, ulen, counts, lengths, ids;

    bool finished;
    os_failure failure; /* the first one; stays */
    os_ingest_statistics statistics;
};

/* ---- os_ingest_memory.c ---- */

os_code os_ingest_no_memory(os_failure *failure);
void *os_ingest_allocate(const os_ingest *ingest, size_t size);
void *os_ingest_reallocate(const os_ingest *ingest, void *memory, size_t size);
void os_ingest_release(const os_ingest *ingest, void *memory); /* which may be NULL */
os_code os_ingest_append(const os_ingest *ingest, os_column *to, const void *data, size_t size, os_failure *failure);

/* ---- os_ingest.c ---- */

os_code os_ingest_keep(os_ingest *ingest, os_code code, os_failure *failure); /* the first failure stays */
os_code os_ingest_usable(os_ingest *ingest, bool open, os_failure *failure);  /* open: want a content that is */

/* ---- os_ingest_frames.c: the ring ---- */

void *os_ingest_compress_frames(void *ingest); /* a worker */
/* Writes frames that are compressed; waits until at most `left` are in the ring. */
os_code os_ingest_drain(os_ingest *ingest, uint64_t left, os_failure *failure);
/* A new chunk, into the shared frame or one of its own. */
os_code os_ingest_put_chunk(os_ingest *ingest, const uint8_t *id, const uint8_t *data, uint32_t size,
                            os_failure *failure);
os_code os_ingest_close_shared(os_ingest *ingest, os_failure *failure);

/* ---- os_ingest_packs.c ---- */

os_code os_ingest_write_frame(os_ingest *ingest, const os_ingest_job *from, os_failure *failure);
os_code os_ingest_close_pack(os_ingest *ingest, os_failure *failure);
/* Waits until the pack before this one is on the disk. */
os_code os_ingest_sync_closing(os_ingest *ingest, os_failure *failure);

/* ---- os_ingest_cut.c ---- */

/* Blocks of OS_HOLE_BLOCK bytes, the last of a content may be short. */
os_code os_ingest_take_blocks(os_ingest *ingest, const uint8_t *data, size_t size, os_failure *failure);
/* A run of zero blocks is over: it was a hole, or it is data. */
os_code os_ingest_end_zero_run(os_ingest *ingest, os_failure *failure);
/* Cuts what the window holds: all of it if the segment ends here, else as long as a cut cannot depend on more. */
os_code os_ingest_cut(os_ingest *ingest, bool ends, os_failure *failure);

#endif
