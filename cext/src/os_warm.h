/* Chunks that a start is likely to need again, put into the local store while nobody waits for anything: first those
 * under the pages of a boot pack, which the store then drops last, then the rest of the same objects, within a budget.
 * How it works: os_warm.c. */
#ifndef OS_WARM_H
#define OS_WARM_H

#include "os_image.h"
#include "os_log.h"
#include "os_spans.h"

#define OS_WARM_ORDERS_MAX 64u
#define OS_WARM_RUNS_MAX (1u << 20)

typedef struct os_warm os_warm;

typedef struct os_warm_options {
    const os_env *env;     /* borrowed, as is all of it */
    os_log *log;           /* a line when packs do not come */
    os_store *store;       /* what is filled */
    os_spans *spans;       /* where it comes from, and who says that somebody waits */
    os_frame_cache *cache; /* of the server */
} os_warm_options;

/* Bytes of an object that a start touches. As it comes from outside: little-endian, no padding. */
typedef struct os_warm_run {
    uint8_t object[OS_ID_SIZE];
    uint64_t offset, length;
} os_warm_run;

typedef struct os_warm_statistics {
    uint64_t chunks, bytes; /* put into the store */
    uint64_t fetched;       /* bytes of packs that they were in, compressed */
    uint64_t orders;        /* not done */
} os_warm_statistics;

os_code os_warm_make(const os_warm_options *options, os_warm **out, os_failure *failure);
void os_warm_stop(os_warm *warm); /* ends what is under way, and the thread; may be NULL */
void os_warm_free(os_warm *warm); /* stopped; may be NULL */

/* The functions below: any thread. */

/* runs: copied. budget: bytes of packs, compressed. wait_ns: it begins then. The image is held until it is done.
 * OS_LIMIT: too much at once. */
os_code os_warm_add(os_warm *warm, os_image *image, const os_warm_run *runs, size_t count, uint64_t budget,
                    uint64_t wait_ns, os_failure *failure);
void os_warm_wake(os_warm *warm); /* bytes came, or nobody waits any more */
void os_warm_statistics_of(os_warm *warm, os_warm_statistics *out);

#endif
