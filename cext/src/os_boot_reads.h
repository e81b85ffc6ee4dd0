/* A boot pack that answers reads: pages that a start brought, or is still bringing, are had from its frames instead of
 * from another host. Its file grows while it comes, in order and without gaps, so that its length says what is here.
 *
 * The file is hostile: whoever writes it may write anything. The head is copied once and has its hash in the manifest,
 * each frame is copied and hashed before it is decoded, and only runs that fit the object's size in the verified tables
 * answer. What does not hash right makes the whole pack worth nothing: its reads go where they went before it was here.
 *
 * Threads: any number may read. What is made at the start is immutable; `lock` guards what is known of the file's
 * growth; the cache has a lock of its own; both are leaves. Counted: whoever reads holds it. */
#ifndef OS_BOOT_READS_H
#define OS_BOOT_READS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "os_boot.h"
#include "os_env.h"
#include "os_frame_cache.h"

#define OS_BOOT_READS_SLOTS 8u                     /* decoded frames of a mebibyte that a pack keeps */
#define OS_BOOT_READS_SOON (UINT64_C(16) << 20)    /* packed bytes: waiting for so much is faster than asking again */
#define OS_BOOT_READS_STALL_NS UINT64_C(300000000) /* of a file that does not grow: what brings it has ended */

typedef struct os_boot_reads {
    const os_env *env; /* borrowed */
    atomic_uint users;
    atomic_bool broken;     /* a frame was not what the head says */
    int fd;                 /* owned */
    uint8_t *head;          /* owned; the rest is immutable and views it, or is owned */
    os_boot boot;           /* views head */
    uint64_t *frame_start;  /* of frame_count + 1, in the file */
    uint32_t *by_id;        /* rows of objects, ascending by id */
    uint32_t *by_place;     /* runs, ascending by object and offset */
    uint32_t *object_first; /* of object_count + 1: where in by_place */
    uint32_t *run_frame;    /* of each run */
    uint32_t *run_start;    /* where in its decoded frame */

    pthread_mutex_t lock;
    uint64_t length, grown; /* of the file, and when it was last seen to grow: ns */
    os_frame_cache cache;
} os_boot_reads;

typedef enum os_boot_found {
    OS_BOOT_NOT_HERE, /* not all of these bytes are in it, or they will not come soon */
    OS_BOOT_COMING,   /* they are next in a file that grows */
    OS_BOOT_HERE,
} os_boot_found;

/* fd: of the pack's file, taken on success. OS_CORRUPT for a head of another hash, or with runs that overlap: two
 * frames would say what is in a page. */
os_code os_boot_reads_make(const os_env *env, int fd, size_t head_size, const uint8_t head_digest[OS_ID_SIZE],
                           os_boot_reads **out, os_failure *failure);
void os_boot_reads_hold(os_boot_reads *reads);
void os_boot_reads_drop(os_boot_reads *reads); /* may be NULL */

bool os_boot_reads_knows(const os_boot_reads *reads, const uint8_t object[OS_ID_SIZE]);
/* The bytes of an object from offset on into out. object_size: of the verified tables; offset + size is not above it.
 * *failure is set for a frame that is damaged: OS_BOOT_NOT_HERE, from then on for all. */
os_boot_found os_boot_reads_read(os_boot_reads *reads, const uint8_t object[OS_ID_SIZE], uint64_t object_size,
                                 uint64_t offset, size_t size, uint8_t *out, os_failure *failure);

#endif
