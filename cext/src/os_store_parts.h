/* What the files of the local store share.
 *
 * - os_store.c: put and get, with the essay on threads
 * - os_store_life.c: open, close, what is asked about the whole
 * - os_store_load.c: what open does with the map and the segments, also making the map again
 * - os_store_queue.c: what the writer is asked to do, and the buffers that calls work in
 * - os_store_writer.c: the writer thread; os_store_segments.c: its list of segments; os_store_room.c: its quota
 * - os_store_map.c: rows of the map; os_store_seen.c: what was asked for before; os_store_check.c: fsck */
#ifndef OS_STORE_PARTS_H
#define OS_STORE_PARTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <zstd.h>

#include "os_lmdb_rows.h"
#include "os_store.h"

enum { TABLE_CHUNKS, TABLE_SEGMENTS, TABLE_META };
enum { SEEN_BITS = 1 << 20, SEEN_WORDS = SEEN_BITS / 64 };
enum { STREAMS = 2 }; /* ordinary and pinned: each has a segment of its own that it writes to */

/* One segment file. The list holds a reference; so does each reader that is in it. */
typedef struct segment {
    uint32_t number; /* immutable */
    bool pinned;     /* immutable */
    bool sealed;     /* immutable: its header was damaged when it was opened, so nothing more is appended */
    int fd;          /* owned */
    atomic_uint references;
    _Atomic uint32_t ahead;            /* how far it was read ahead of its readers; a hint */
    _Atomic uint64_t used, saved_used; /* saved_used: writer only; what the map says */
    uint32_t bytes;                    /* guarded by segments_lock, changed by the writer only: committed */
    uint32_t written;                  /* writer only: end of what was appended, committed or not */
    bool dirty;                        /* writer only: appended to since it was synced */
    bool going;                        /* writer only: to be dropped, with everything in it, by the next commit */
} segment;

typedef enum job_kind {
    JOB_PUT,
    JOB_FORGET, /* a row that led to nothing */
    JOB_DROP,   /* a segment */
    JOB_HEADER, /* write a segment's header anew */
    JOB_GIVE_UP /* the map failed */
} job_kind;

/* What the writer is asked to do. */
typedef struct job {
    struct job *next;
    job_kind kind;
    bool pinned, done; /* done: PUT is appended, its row may be written */
    os_entry entry; /* PUT: all but its place. FORGET: id and place (segment 0: whatever row there is). else: segment */
    uint8_t data[]; /* PUT: OS_ENTRY_HEADER bytes of room, then the stored bytes */
} job;

typedef struct scratch {
    struct scratch *next;
    ZSTD_DCtx *decoder; /* owned */
    ZSTD_CCtx *encoder; /* owned */
    uint8_t buffer[ZSTD_COMPRESSBOUND(OS_CHUNK_MAX)];
} scratch;

struct os_store {
    /* immutable once open */
    const os_env *env;
    os_log *log; /* borrowed, may be NULL */
    uint32_t segment_size, queue_size;
    uint64_t quota, floor; /* 0: none */
    int level;
    pid_t pid;
    char *path;          /* owned */
    int directory, lock; /* owned */
    os_lmdb *map;        /* owned */
    os_lmdb_rows rows;   /* of map */
    bool rebuilt;
    atomic_bool
        broken; /* the map failed: it is deleted, nothing is found or taken until the next open makes it again */

    pthread_rwlock_t closing; /* read-held by every call from outside; write-held to set closed */
    bool closed;              /* guarded by closing */

    pthread_rwlock_t segments_lock; /* guards the list and bytes of its members; write-held by the writer only */
    segment **segments;             /* owned, ascending by number */
    size_t segment_count, segment_room;

    pthread_mutex_t queue_lock;                       /* guards what follows */
    pthread_cond_t work, room, settled;               /* a job came or stopping; the queue shrank; settled_jobs grew */
    job *first, *last;                                /* owned */
    uint64_t queued_bytes, queued_jobs, settled_jobs; /* jobs: counted since open */
    bool stopping;
    os_failure trouble; /* the first failure since the last flush; code OS_OK: none */
    uint64_t noted;     /* when a failure was last put in the log, ns */
    bool writing;       /* the writer runs: from the first job on, so that what opens may still change what it is */
    pthread_t writer;   /* owned, joined by close */
    _Atomic uint64_t forgetting; /* FORGET jobs that are queued; read without the lock */

    /* writer only, or before it runs */
    segment *active[STREAMS]; /* borrowed from the list, or not yet in it */
    uint32_t next_number;
    uint64_t allowance; /* bytes that may be appended before the room is looked at again */
    bool directory_dirty;
    bool stale; /* the map may have rows of segments that are gone */

    pthread_mutex_t scratch_lock; /* a leaf */
    scratch *idle;                /* owned; guarded by scratch_lock */

    int seen_file;                     /* owned, or -1 */
    _Atomic uint64_t seen[SEEN_WORDS]; /* os_store_seen.c */
    _Atomic uint32_t seen_bits;

    _Atomic uint64_t clock;
    _Atomic uint64_t hits, misses, puts, known, damaged, damaged_rows, lost, evicted;
};

/* ---- os_store.c */

/* Leaves closing read-held on success. */
os_code os_store_enter(os_store *store, os_failure *failure);
void os_store_leave(os_store *store);
/* The content of entry's stored bytes, verified, in out (entry->length bytes). stored may be out for raw. */
os_code os_store_decode(os_store *store, const os_entry *entry, const void *stored, void *out, os_failure *failure);

/* ---- os_store_queue.c */

job *os_store_job(os_store *store, job_kind kind, size_t size); /* zeroed; NULL: no memory */
/* Takes it; *ticket: what settled_jobs must reach. While the queue is full a PUT waits, or gets OS_LIMIT if it may not.
 * OS_CLOSED: stopping. */
os_code os_store_enqueue(os_store *store, job *it, bool wait, uint64_t *ticket, os_failure *failure);
/* Whether so little waits that a job nobody waits for may be added. */
bool os_store_queue_is_short(os_store *store);
void os_store_wait(os_store *store, uint64_t ticket);
job *os_store_take_batch(os_store *store); /* everything that is queued; NULL: stopping, and nothing is left */
void os_store_settle(os_store *store, job *batch);
void os_store_remember(os_store *store, const os_failure *failure); /* for the next flush, and the log */
os_code os_store_take_trouble(os_store *store, os_failure *failure);
void os_store_note(os_store *store, const char *format, ...) __attribute__((format(printf, 2, 3)));
scratch *os_store_scratch(os_store *store); /* NULL: no memory */
void os_store_scratch_back(os_store *store, scratch *it);
void os_store_scratch_end(os_store *store);

/* ---- os_store_map.c: all in a transaction, all return LMDB codes */

extern const os_lmdb_kind os_store_kind;

/* The checked row, or MDB_NOTFOUND. */
int os_store_row_get(os_store *store, MDB_txn *transaction, const uint8_t id[OS_ID_SIZE], os_entry *out);
/* The same from what a cursor returned; false if it does not pass. */
bool os_store_row_read(const MDB_val *key, const MDB_val *value, os_entry *out);
int os_store_row_put(os_store *store, MDB_txn *transaction, const os_entry *entry);
int os_store_row_delete(os_store *store, MDB_txn *transaction, const uint8_t id[OS_ID_SIZE]);
/* Deletes every row that names a segment of those that gone says, and the segments' own. */
int os_store_segments_delete(os_store *store, MDB_txn *transaction, bool (*gone)(void *context, uint32_t number),
                             void *context);
int os_store_segment_put(os_store *store, MDB_txn *transaction, const segment *it, uint32_t bytes, uint64_t used);
/* bytes, used and number; false: the row is damaged. */
bool os_store_segment_read(const MDB_val *key, const MDB_val *value, uint32_t *number, uint32_t *bytes, uint64_t *used);
int os_store_number_get(os_store *store, MDB_txn *transaction, const char *name, uint32_t *out);
int os_store_number_put(os_store *store, MDB_txn *transaction, const char *name, uint32_t value);

/* ---- os_store_segments.c */

/* A segment of the file fd (taken also on failure), with one reference, or NULL: no memory. */
segment *os_store_make_segment(os_store *store, uint32_t number, int fd, bool pinned);
/* Adds to the list; takes the caller's reference. false: no memory, nothing taken. */
bool os_store_add_segment(os_store *store, segment *it);
/* The segment, with a reference for the caller, or NULL. */
segment *os_store_find_segment(os_store *store, uint32_t number);
void os_store_release_segment(os_store *store, segment *it);     /* counts down, closes and frees at none */
void os_store_use_segment(os_store *store, segment *it);         /* used now */
segment *os_store_own_segment(os_store *store, uint32_t number); /* writer only: without lock or reference */
/* Writer only: takes those out of the list that wanted says, deletes their files. */
void os_store_remove_segments(os_store *store, bool (*wanted)(const segment *it));
void os_store_segment_name(uint32_t number, char out[16]);
void os_store_unlink_segment(os_store *store, uint32_t number);
/* Writer only: it goes with the next commit, and nothing more is appended to it. */
void os_store_doom_segment(os_store *store, segment *it);

/* ---- os_store_room.c */

/* Writer only: makes room for size bytes, by dooming segments. OS_LIMIT: there is none. */
os_code os_store_take_room(os_store *store, uint32_t size, os_failure *failure);

/* ---- os_store_seen.c */

void os_store_seen_open(os_store *store);
void os_store_seen_close(os_store *store);

/* ---- os_store_writer.c */

void *os_store_writer_main(void *store);
void os_store_commit_use(os_store *store); /* at the end, when only the times of last use are left to be written */

/* ---- os_store_load.c: the list and the map agree when it returns OS_OK */

os_code os_store_load(os_store *store, os_failure *failure);

#endif
