/* The object server: answers the kernel for one FUSE mount whose files are objects, /<2 hex>/<62 hex>, named by the
 * hash of their content. Several threads, one descriptor each; no Python. How it works: fuse_server.c. */
#ifndef OS_FUSE_SERVER_H
#define OS_FUSE_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "os_env.h"
#include "os_limits.h"
#include "os_result.h"
#include "os_source.h"
#include "os_spans.h"
#include "os_store.h"
#include "os_warm.h"

#define OS_FUSE_THREADS_MAX 32u
#define OS_FUSE_PARKED_MAX 65536u
#define OS_FUSE_BOOTS_MAX 64u          /* boot packs that answer reads */
#define OS_FUSE_TOUCHES_MAX (1u << 20) /* recorded; later ones are not */
#define OS_FUSE_LEARNED_MAX 65536u     /* runs of pages that are learned, of 16 bytes */

typedef struct os_fuse_server os_fuse_server;

typedef struct os_fuse_options {
    const os_env *env;     /* borrowed */
    const int *fds;        /* the mount's /dev/fuse and its clones, one thread for each; each is taken on success */
    unsigned fd_count;     /* 1 to OS_FUSE_THREADS_MAX */
    int proc;              /* borrowed: a proc file system, to see who is being killed; -1: nobody ever is */
    int log;               /* borrowed; -1: nowhere */
    int hangup;            /* borrowed: an eventfd that is written when the kernel closes the connection; or -1 */
    uint8_t secret[32];    /* of the mount: keys the node ids */
    uint64_t deadline_ns;  /* of a parked request */
    uint64_t fail_fast_ns; /* how long a place whose deadline passed is answered EIO at once */
    void (*unmap)(void *mapping, size_t size); /* for what add_image takes */
    os_store *store;                           /* borrowed: of this server's trust domain; may be NULL */
    int memory;   /* borrowed: what a fetcher puts bytes into, see os_link.h; -1: there will be none */
    bool profile; /* no read-ahead, so that each page that is touched is asked for; reads are recorded */
} os_fuse_options;

typedef enum os_fuse_from {
    OS_FUSE_FROM_MEMORY,
    OS_FUSE_FROM_STORE,
    OS_FUSE_FROM_PACK,
    OS_FUSE_FROM_WAITING
} os_fuse_from;

/* One READ, in the order of the answers, while reads are recorded. */
typedef struct os_fuse_touch {
    uint8_t object[OS_ID_SIZE];
    uint64_t offset;
    uint32_t size, from;   /* from: where the slowest of its bytes were, os_fuse_from */
    uint64_t began, ended; /* env's clock, ns; began: of the request */
} os_fuse_touch;

typedef struct os_fuse_statistics {
    uint64_t lookups, reads, read_bytes, other; /* requests, and bytes sent */
    uint64_t errors;                            /* READ and LOOKUP answered EIO */
    uint64_t parked, parked_now, expired, killed, interrupts;
    uint64_t pack_bytes, decoded_bytes, cache_hits;
    uint64_t kept_bytes, keeps; /* sent out of the local store; chunks given to it */
    uint64_t images, objects;
    uint64_t stores, stored_bytes;
    uint64_t boot_reads, boot_bytes; /* answered out of boot packs */
    uint64_t unmounted;              /* 1: the kernel has closed the connection */
    os_spans_statistics spans;
    os_warm_statistics warm;
} os_fuse_statistics;

os_code os_fuse_server_make(const os_fuse_options *options, os_fuse_server **out, os_failure *failure);
/* Once. On failure nothing runs. */
os_code os_fuse_server_start(os_fuse_server *server, os_failure *failure);
/* Ends the threads, answers what is parked with EIO, closes the descriptors, frees. May be NULL. */
void os_fuse_server_free(os_fuse_server *server);

/* The functions below: any thread, at any time between make and free. */

/* mapping: the tables' bytes, aligned to 8; taken with source on OS_OK. expected: ends one os_fuse_server_expect. */
os_code os_fuse_server_add(os_fuse_server *server, void *mapping, size_t size, os_source source, const char *label,
                           bool expected, uint64_t *id, os_failure *failure);
/* Objects that no other image has are EIO from now on. OS_MISSING: no such image. */
os_code os_fuse_server_remove(os_fuse_server *server, uint64_t id, os_failure *failure);
/* An image whose tables are still to come is announced (+1), or will not come after all (-1): as long as one is, the
 * look-up of an unknown object waits. */
void os_fuse_server_expect(os_fuse_server *server, int change);
/* Bytes of a pack from start to end can be had: requests that wait for them are tried again. pack NULL: all requests.
 */
void os_fuse_server_wake(os_fuse_server *server, const uint8_t *pack, uint64_t start, uint64_t end);

/* A boot pack of this domain whose pages are had from its file, which may still grow, before another host is asked
 * (os_boot_reads.h). fd: taken on OS_OK. Its pages are believed as pushed ones are: the caller has the head's digest
 * from a manifest of the domain. */
os_code os_fuse_server_add_boot(os_fuse_server *server, int fd, size_t head_size, const uint8_t head_digest[OS_ID_SIZE],
                                uint64_t *id, os_failure *failure);
void os_fuse_server_remove_boot(os_fuse_server *server, uint64_t id); /* of one that is not there: nothing */

/* A fetcher's socket, taken; false: there is a fetcher already, or the server has no memory for one. */
bool os_fuse_server_link(os_fuse_server *server, int sock);
/* Borrowed: for the sources of images whose packs are far away; NULL if the server has no memory. */
os_spans *os_fuse_server_spans(os_fuse_server *server);

/* Puts verified bytes of an object into the page cache (NOTIFY_STORE), clipped to the object's size in the tables.
 * *stored: bytes taken. OS_MISSING: no image has the object, or the kernel has not looked it up. May wait for a READ
 * of the same page: never called by a thread that answers reads. */
os_code os_fuse_server_store(os_fuse_server *server, const uint8_t object[OS_ID_SIZE], uint64_t offset,
                             const void *data, size_t size, size_t *stored, os_failure *failure);

/* Puts the chunks of an image that a start touches into the store, and then the rest of their objects, while nobody
 * waits for anything, and wait_ns from now at the earliest. runs: copied. budget: bytes of packs. OS_MISSING: no such
 * image. Nothing, without a store or a fetcher's memory. */
os_code os_fuse_server_prefetch(os_fuse_server *server, uint64_t id, const os_warm_run *runs, size_t count,
                                uint64_t budget, uint64_t wait_ns, os_failure *failure);

/* Reads are recorded from now on, or no more and what was recorded is forgotten. */
void os_fuse_server_record(os_fuse_server *server, bool on);
/* How many touches there are, and up to room of them from row first on. */
size_t os_fuse_server_touches(os_fuse_server *server, size_t first, os_fuse_touch *out, size_t room);

/* What is read is learned from now on, or no more and what was learned is forgotten. */
void os_fuse_server_learn(os_fuse_server *server, bool on);
/* What was learned of an image's objects, from *next on, which moves: at most room runs. Returns how many, 0: no more.
 */
size_t os_fuse_server_learned(os_fuse_server *server, uint64_t id, size_t *next, os_warm_run *out, size_t room);

void os_fuse_server_statistics(os_fuse_server *server, os_fuse_statistics *out);
uint64_t os_fuse_server_node(const os_fuse_server *server, const uint8_t object[OS_ID_SIZE]);

#endif
