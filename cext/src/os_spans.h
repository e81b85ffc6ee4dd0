/* Parts of blobs that come from a fetcher: which are here, which are on their way, who has to be told. One for an
 * object server; the other end of os_link.h. How it works: os_spans.c. */
#ifndef OS_SPANS_H
#define OS_SPANS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "os_env.h"
#include "os_fetch_limits.h"
#include "os_limits.h"
#include "os_log.h"
#include "os_result.h"
#include "os_source.h"

typedef struct os_spans os_spans;

typedef struct os_spans_options {
    const os_env *env;    /* borrowed */
    os_log *log;          /* borrowed */
    int memory;           /* borrowed: OS_SLOTS_SIZE sealed bytes */
    uint64_t patience_ns; /* how long a span is fetched for somebody who does not ask again: the deadline of reads */
    void *context;
    /* Bytes from start to end of a blob came; blob NULL: whatever is waited for may have. Called by a thread of the
     * spans', without a lock. */
    void (*came)(void *context, const uint8_t blob[OS_ID_SIZE], uint64_t start, uint64_t end);
} os_spans_options;

typedef struct os_spans_statistics {
    uint64_t fetched, fetched_bytes; /* spans that came */
    uint64_t rejected;               /* of these: turned out wrong */
    uint64_t evicted;                /* had to make room */
    uint64_t flying, queued;         /* now */
    uint64_t links;                  /* fetchers that said hello */
} os_spans_statistics;

/* A blob as one image knows it: what its tables say of the size, the fetcher's number of the list of sources that have
 * it, and the image itself (os_spans_viewer). */
typedef struct os_blob {
    uint8_t digest[OS_ID_SIZE];
    uint64_t size;
    uint32_t origin;
    uint64_t viewer;
} os_blob;

os_code os_spans_make(const os_spans_options *options, os_spans **out, os_failure *failure);
void os_spans_free(os_spans *spans); /* may be NULL; nothing reads from it any more */

/* The functions below: any thread. */

/* A fetcher's socket, taken. Takes the place of the one that was, if that is gone; false, and the socket is closed: it
 * is not. */
bool os_spans_link(os_spans *spans, int sock);
bool os_spans_linked(os_spans *spans);

/* A number for one image more: never 0, never given twice. */
uint64_t os_spans_viewer(os_spans *spans);

/* Says that a range will be read: what is not here is fetched. HERE: all of it is. PENDING: failure says what went
 * wrong so far, or nothing. */
os_answer os_spans_want(os_spans *spans, const os_blob *blob, uint64_t offset, size_t size, bool prefetch,
                        os_failure *failure);
/* A copy of the bytes, or PENDING: then they are wanted. */
os_answer os_spans_read(os_spans *spans, const os_blob *blob, void *buffer, size_t size, uint64_t offset,
                        os_failure *failure);
/* The range that was read is wrong, says this image: for it alone it is fetched again, from another source if there is
 * one. */
void os_spans_reject(os_spans *spans, const os_blob *blob, uint64_t offset, size_t size);
/* Whether somebody waits for something that is no prefetch. */
bool os_spans_busy(os_spans *spans);

void os_spans_statistics_of(os_spans *spans, os_spans_statistics *out);

#endif
