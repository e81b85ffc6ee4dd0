/* What the parts of the spans share. Private to os_spans*.c; os_spans.c says who runs and what the lock guards. */
#ifndef OS_SPANS_PARTS_H
#define OS_SPANS_PARTS_H

#include <pthread.h>

#include "os_link.h"
#include "os_spans.h"

#define OS_SPANS_HOLD_NS UINT64_C(5000000000) /* how long a span that was wanted keeps its place unread */
#define OS_SPANS_BUCKETS 1024u

typedef enum os_span_state { ABSENT, QUEUED, FLYING, HERE } os_span_state;

typedef struct os_span {
    struct os_span *chain;           /* in its bucket, or among the unused */
    struct os_span *next, *previous; /* in the queue */
    os_span_state state;
    os_blob blob;
    uint64_t index;
    uint32_t length, slot;
    uint64_t viewer; /* of the one image that it is for, which rejected what others take; 0: for all */
    bool prefetch, cancelled;
    bool foreign; /* somebody waits for it whose own origin is another */
    bool doomed;  /* wrong, but still being copied: goes when users is 0 */
    unsigned users;
    uint32_t rejected, source;
    uint64_t ticket, wanted, used, held; /* ticket: of the flight. times; held: until then it stays */
    char cause[OS_FETCH_CAUSE_MAX];
} os_span;

struct os_spans {
    os_spans_options options; /* immutable */
    const os_env *env;        /* immutable */
    uint8_t *memory;          /* immutable; the slots */
    pthread_t thread;
    int wake; /* owned: an eventfd that wakes the thread */

    pthread_mutex_t lock; /* guards what follows */
    bool stopping;
    int sock;             /* owned, -1: no fetcher */
    bool ready;           /* it said hello */
    bool starved;         /* somebody waits for a span that had no place here */
    uint64_t pause_until; /* nothing is asked for before */
    os_span *bucket[OS_SPANS_BUCKETS];
    os_span *unused;
    os_span *first[2], *last[2]; /* the queues: demands, prefetches */
    os_span *slot[OS_SLOTS];     /* who has it; NULL: free */
    uint64_t last_ticket, last_viewer;
    os_spans_statistics count;
    os_span span[OS_SPANS_MAX];
};

uint64_t os_spans_now(const os_spans *spans);

/* The functions below: the lock is held. */

/* os_spans_table.c */
/* The span that serves the image of the blob best, or NULL. */
os_span *os_spans_find(os_spans *spans, const os_blob *blob, uint64_t index);
/* Into the table, absent and for all; a span that is not needed makes room. NULL: there is none. */
os_span *os_spans_new(os_spans *spans, const os_blob *blob, uint64_t index, uint64_t now);
void os_spans_enqueue(os_spans *spans, os_span *it, bool in_front);
void os_spans_dequeue(os_spans *spans, os_span *it);
/* Out of the table; its slot is free. */
void os_spans_forget(os_spans *spans, os_span *it);
bool os_spans_may_go(const os_span *it, uint64_t now);
/* A slot, emptied if it has to be; OS_SLOTS: none. prefetch: one that no demand and no younger prefetch will miss. */
uint32_t os_spans_free_slot(os_spans *spans, uint64_t now, bool prefetch);

/* os_spans_link.c */
void os_spans_wake(os_spans *spans);
/* false: the fetcher cannot be told now; its end is noticed by the thread. */
bool os_spans_tell(os_spans *spans, const os_span *it, os_link_kind kind);
/* Gives slots to those first in line. */
void os_spans_send_queued(os_spans *spans);
/* Back into the queue, without its slot. */
void os_spans_take_back(os_spans *spans, os_span *it);
void *os_spans_main(void *argument); /* the thread; without the lock */

#endif
