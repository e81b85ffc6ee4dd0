/* What the parts of the fetch engine share. Private to os_fetch*.c; os_fetch.c says who runs and what the lock guards.
 */
#ifndef OS_FETCH_PARTS_H
#define OS_FETCH_PARTS_H

#include <curl/curl.h>
#include <pthread.h>
#include <stdatomic.h>

#include "os_fetch.h"
#include "os_fetch_http.h"

#define OS_FETCH_NEVER UINT64_MAX
#define OS_FETCH_MS UINT64_C(1000000)
#define OS_FETCH_BUCKETS 4096u
#define OS_FETCH_LABEL_MAX 96u

/* Where a source's redirect led, so that the next range of that blob need not ask again. */
typedef struct os_fetch_hop {
    uint8_t digest[OS_ID_SIZE];
    char *url;        /* owned; NULL: empty */
    bool credentials; /* still the host that they are for */
} os_fetch_hop;

typedef struct os_fetch_source {
    uint32_t number;
    char *url;                  /* owned */
    struct curl_slist *headers; /* owned */
    char *authorities;          /* owned; NULL: the engine's */
    char *proxy, *no_proxy;     /* owned, or NULL */
    char label[OS_FETCH_LABEL_MAX];
    uint64_t version, expires; /* expires: OS_FETCH_NEVER, or on env's clock */
    bool stale;
    unsigned failures; /* in a row, of the kind that says the host is unwell */
    uint64_t not_before;
    os_fetch_hop hop[OS_FETCH_REDIRECTS];
    unsigned next_hop;
    os_fetch_source_statistics count;
} os_fetch_source;

typedef struct os_fetch_origin {
    uint32_t number;
    unsigned count;
    uint32_t source[OS_FETCH_ORIGIN_SOURCES_MAX];
} os_fetch_origin;

/* What is submitted: a want, or something about one that was. */
typedef enum os_fetch_order { OS_FETCH_WANT, OS_FETCH_RAISE, OS_FETCH_CANCEL, OS_FETCH_PING } os_fetch_order;

typedef struct os_fetch_waiter {
    struct os_fetch_waiter *next;
    os_fetch_want want;
    os_fetch_result result; /* filled when it is done */
    os_fetch_order order;
} os_fetch_waiter;

typedef struct os_fetch_flight os_fetch_flight;

/* A range that somebody wants. */
typedef struct os_fetch_job {
    struct os_fetch_job *next, *previous; /* in its queue */
    struct os_fetch_job *chain;           /* in its bucket */
    struct os_fetch_queue *queue;         /* NULL: it flies */
    os_fetch_waiter *waiters;             /* owned; the first one's buffer is written to */
    uint8_t digest[OS_ID_SIZE];
    uint64_t blob_size, offset;
    uint32_t length, origin;
    bool prefetch, no_cache;
    unsigned tries, rejected;
    uint32_t avoid;
    uint32_t tried[OS_FETCH_ORIGIN_SOURCES_MAX]; /* failures, for each source of the origin */
    uint64_t asked, last_failure;
    uint32_t jitter; /* of this failure, in 1/65536 */
    uint64_t ready;  /* in the delayed queue: until when */
    os_fetch_flight *flight[2];
    char cause[OS_FETCH_CAUSE_MAX];
} os_fetch_job;

typedef struct os_fetch_queue {
    os_fetch_job *first, *last;
    size_t count;
} os_fetch_queue;

typedef enum os_fetch_fault {
    OS_FETCH_FINE,
    OS_FETCH_TRANSPORT,
    OS_FETCH_TIMEOUT,
    OS_FETCH_STATUS,
    OS_FETCH_STALE,
    OS_FETCH_RANGE,
    OS_FETCH_LENGTH,
    OS_FETCH_ENCODING,
    OS_FETCH_REDIRECT, /* one that is not followed */
    OS_FETCH_HOP,      /* no fault: one that is */
} os_fetch_fault;

/* A request in the air. The engine's thread alone touches it. */
struct os_fetch_flight {
    os_fetch_flight *next; /* in the list of those that fly, or that wait to be used again */
    os_fetch *fetch;       /* borrowed */
    os_fetch_job *job;     /* borrowed */
    CURL *easy;            /* owned, kept for the next flight */
    struct curl_slist *headers;
    uint32_t source;
    unsigned place; /* of the source in the origin */
    uint64_t version;
    unsigned hops; /* 0: the source's own url */
    bool credentials, hedge, remembered;
    uint8_t *buffer; /* borrowed from the first waiter; of a hedge owned */
    uint32_t got;
    uint64_t offset, total; /* the job's, for the callbacks */
    uint32_t length;
    uint64_t started, moved; /* moved: when the last byte came */
    /* the answer */
    long status;
    bool ranged, encoded;
    os_http_range range;
    uint64_t retry_after; /* seconds */
    size_t header_bytes, error_bytes;
    os_fetch_fault fault; /* why a callback ended it */
    char url[OS_FETCH_URL_MAX], location[OS_FETCH_URL_MAX];
};

struct os_fetch {
    os_fetch_options options; /* immutable */
    const os_env *env;        /* immutable */
    char *authorities;        /* owned, immutable */
    pthread_t thread;
    CURLM *multi; /* the thread's, but for curl_multi_wakeup */

    pthread_mutex_t lock; /* guards what follows, but for the flights */
    bool stopping;
    os_fetch_waiter *incoming, **incoming_end; /* owned */
    size_t wants;                              /* submitted and not done */
    os_fetch_source **source;                  /* owned, ascending by number */
    size_t sources, sources_room;
    os_fetch_origin **origin; /* owned, ascending by number */
    size_t origins, origins_room;
    bool sources_changed;
    uint64_t version;
    os_fetch_news_item news[OS_FETCH_NEWS_MAX];
    unsigned news_first, news_count;
    os_fetch_statistics count;
    uint64_t latency[OS_FETCH_LATENCIES];
    unsigned latencies, latency_next;
    uint64_t p50, p95;
    os_fetch_slow slow[OS_FETCH_SLOWEST];
    unsigned slows;

    /* the thread's own */
    os_fetch_queue ready[2]; /* demands, prefetches */
    os_fetch_queue delayed;
    uint64_t next_ready, next_deadline; /* no earlier one is in delayed, or among the waiters */
    os_fetch_job *bucket[OS_FETCH_BUCKETS];
    os_fetch_flight *flying, *idle; /* owned */
    unsigned flights, idles;
    uint64_t hedge_credit; /* in 1/OS_FETCH_HEDGE_SHARE */
    os_fetch_waiter *finished, **finished_end;
};

uint64_t os_fetch_now(const os_fetch *fetch);
uint64_t os_fetch_sooner(uint64_t left, uint64_t right);

/* The functions below are the engine's thread's, and the lock is held. */

/* os_fetch_jobs.c */
void os_fetch_enqueue(os_fetch_queue *queue, os_fetch_job *job, bool in_front);
void os_fetch_dequeue(os_fetch_job *job);
void os_fetch_give_up(os_fetch *fetch, os_fetch_flight *flight);
void os_fetch_give_up_all(os_fetch *fetch, os_fetch_job *job);
/* Tells all waiters and forgets the job, which has no flights. */
void os_fetch_finish_job(os_fetch *fetch, os_fetch_job *job, os_code code, uint32_t source);
void os_fetch_tell_failed(const os_fetch_job *job); /* who waits, about the last failure */
void os_fetch_take_in(os_fetch *fetch, os_fetch_waiter *waiter, uint64_t now);
void os_fetch_take_change(os_fetch *fetch, os_fetch_waiter *waiter); /* about a want that was submitted before */
void os_fetch_expire(os_fetch *fetch, uint64_t now);                 /* what waits past its deadline */
void os_fetch_end_delays(os_fetch *fetch, uint64_t now, bool all);   /* lets go of what has waited long enough */

/* os_fetch_launch.c */
void os_fetch_start_ready(os_fetch *fetch, uint64_t now);
/* Doubles what is late. Returns when the next one will be. */
uint64_t os_fetch_start_hedges(os_fetch *fetch, uint64_t now);

/* os_fetch_answer.c */
void os_fetch_take_answers(os_fetch *fetch, uint64_t now);
/* Ends flights that do not move. Returns when the next one would be one. */
uint64_t os_fetch_end_stalled(os_fetch *fetch, uint64_t now);

/* os_fetch_flight.c */
/* Sends the flight's request to its url; false: libcurl would not. */
bool os_fetch_take_off(os_fetch_flight *flight);
os_fetch_flight *os_fetch_flight_get(os_fetch *fetch);
void os_fetch_flight_put(os_fetch *fetch, os_fetch_flight *flight);
void os_fetch_flight_free(os_fetch_flight *flight);
/* What the answer is worth; cause: words for anything but OS_FETCH_FINE and OS_FETCH_HOP (then flight->url is set). */
os_fetch_fault os_fetch_judge(os_fetch_flight *flight, CURLcode result, char *cause, size_t room);

/* os_fetch_sources.c */
os_fetch_source *os_fetch_find_source(const os_fetch *fetch, uint32_t number);
const os_fetch_origin *os_fetch_find_origin(const os_fetch *fetch, uint32_t number);
/* The source to ask next for the job, not `other` if there is another one that may be asked now. NULL: none now; *until
 * says when to look again. */
os_fetch_source *os_fetch_choose(os_fetch *fetch, const os_fetch_job *job, uint64_t now, int other, unsigned *place,
                                 uint64_t *until);
void os_fetch_mark_stale(os_fetch *fetch, os_fetch_source *source, uint32_t status);
const os_fetch_hop *os_fetch_find_hop(const os_fetch_source *source, const uint8_t digest[OS_ID_SIZE]);
void os_fetch_remember_hop(os_fetch *fetch, os_fetch_source *source, const os_fetch_flight *flight);
void os_fetch_forget_hop(os_fetch *fetch, os_fetch_source *source, const uint8_t digest[OS_ID_SIZE]);
void os_fetch_free_sources(os_fetch *fetch);
uint64_t os_fetch_backoff(const os_fetch *fetch, unsigned failures, uint32_t jitter);

/* os_fetch_measure.c */
void os_fetch_measure(os_fetch *fetch, uint64_t ns);
void os_fetch_note_slow(os_fetch *fetch, const os_fetch_job *job, uint32_t source, uint64_t ns);

#endif
