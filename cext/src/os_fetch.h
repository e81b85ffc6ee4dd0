/* The fetch engine: byte ranges of blobs from HTTP servers. Ranges become requests, several sources are tried in their
 * order, every answer is checked, and what comes out has the asked-for length. It cannot know whether the bytes are the
 * right ones: whoever has the hash says so (os_fetch_want.rejected). How it works: os_fetch.c. No Python. */
#ifndef OS_FETCH_H
#define OS_FETCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "os_env.h"
#include "os_fetch_limits.h"
#include "os_limits.h"
#include "os_log.h"
#include "os_result.h"

typedef struct os_fetch os_fetch;

typedef struct os_fetch_options {
    const os_env *env;           /* borrowed; sockets, time and randomness come from it too */
    os_log *log;                 /* borrowed, may be NULL: a line for each try that failed */
    const char *authorities;     /* a file of certificates to trust; NULL: the system's. Copied */
    unsigned flights;            /* requests in the air; 0: OS_FETCH_FLIGHTS */
    uint32_t connect_timeout_ms; /* 0: 10 s */
    uint32_t stall_timeout_ms;   /* without a byte; 0: 20 s */
    uint32_t backoff_ms;         /* before the second round; 0: 100 */
    uint32_t backoff_max_ms;     /* 0: 5 s */
    uint32_t hedge_floor_ms;     /* no request is doubled sooner; 0: 50 */
    int news;                    /* borrowed: an eventfd, written when os_fetch_news has something; or -1 */
} os_fetch_options;

/* How a range ended. */
typedef struct os_fetch_result {
    os_code code;    /* OS_OK: the buffer is filled */
    uint32_t source; /* that the bytes came from */
    uint32_t tries;
    char cause[OS_FETCH_CAUSE_MAX]; /* of the last failure, also while it goes on and after it went well; may be "" */
} os_fetch_result;

typedef struct os_fetch_want {
    uint8_t digest[OS_ID_SIZE]; /* of the blob: SHA-256 */
    uint64_t blob_size;         /* has to be the server's word too */
    uint64_t offset;
    uint32_t length; /* 1 to OS_FETCH_LENGTH_MAX, within the blob */
    uint32_t origin;
    bool prefetch;
    uint64_t deadline; /* env's clock, ns */
    uint32_t rejected; /* so often these bytes came and were wrong */
    uint32_t avoid;    /* the source they came from last; 0: none. It comes last for this range */
    uint8_t *buffer;   /* borrowed until done; written to before that too */
    void *context;     /* of the two below, which are called by the engine's thread and must not block */
    /* A try went wrong; may be NULL. Calls nothing of the engine's. */
    void (*failed)(void *context, uint64_t ticket, const os_fetch_result *so_far);
    void (*done)(void *context, uint64_t ticket, const os_fetch_result *result); /* once, whatever happens */
    uint64_t ticket;
} os_fetch_want;

/* What somebody with credentials has to do. */
typedef struct os_fetch_news {
    uint32_t source;
    uint32_t status;  /* 401, 403, or 0: its time has passed */
    uint64_t version; /* of the source when that happened: there may be newer credentials by now */
} os_fetch_news_item;

typedef struct os_fetch_slow {
    uint8_t digest[OS_ID_SIZE];
    uint64_t offset, ns;
    uint32_t length, tries, source;
} os_fetch_slow;

typedef struct os_fetch_statistics {
    uint64_t wants, joined;       /* asked for; of these: found one under way */
    uint64_t flights, bytes;      /* requests sent, redirects included; bytes of good answers */
    uint64_t hedges, hedges_won;  /* requests doubled */
    uint64_t retries, redirects;  /* rounds after a failure; hops followed */
    uint64_t raised;              /* prefetches that became demands */
    uint64_t expired, rejected;   /* wants whose deadline passed; answers that the hash refused */
    uint64_t stale;               /* 401, 403 and times that passed */
    uint64_t transport, timeouts; /* failures by kind: no answer; none in time */
    uint64_t status, range, length, encoding, redirect;
    uint64_t connections;
    uint64_t active, waiting; /* now: requests in the air, ranges that wait for one */
    uint64_t p50_ns, p95_ns;  /* of the last OS_FETCH_LATENCIES requests; 0: none so far */
} os_fetch_statistics;

typedef struct os_fetch_source_statistics {
    uint32_t source;
    bool stale;
    uint64_t flights, bytes, failures;
} os_fetch_source_statistics;

os_code os_fetch_make(const os_fetch_options *options, os_fetch **out, os_failure *failure);
/* Ends what is under way with OS_CLOSED, ends the thread, frees. May be NULL. */
void os_fetch_free(os_fetch *fetch);

/* The functions below: any thread, but none from within a callback unless it says so. */

typedef struct os_fetch_place {
    const char *url;            /* http or https; "{digest}" in it stands for the hex digits */
    const char *const *headers; /* lines "Name: value", sent to the host of the url and to no other */
    unsigned header_count;
    uint64_t lifetime_ns;    /* 0: for ever */
    const char *authorities; /* PEM of the certificates to trust, instead of the engine's; NULL: those */
    const char *proxy;       /* as CURLOPT_PROXY; NULL: none, whatever the environment says */
    const char *no_proxy;    /* hosts, as CURLOPT_NOPROXY; NULL: none */
} os_fetch_place;

/* All copied. A source that was there is replaced and no longer stale; requests in the air go on with what they were
 * sent. OS_CORRUPT: the words are no url or header. */
os_code os_fetch_set_source(os_fetch *fetch, uint32_t source, const os_fetch_place *place, os_failure *failure);
/* The sources of an origin, the first choice first. */
os_code os_fetch_set_origin(os_fetch *fetch, uint32_t origin, const uint32_t *sources, unsigned count,
                            os_failure *failure);

/* Copied. OS_OK: done will be called. May be called by done. */
os_code os_fetch_submit(os_fetch *fetch, const os_fetch_want *want, os_failure *failure);

/* A want that was submitted with this context and ticket (0: all with the context): cancel: it is done with OS_CLOSED,
 * soon; else it is a prefetch no longer. Nothing, if it is done already. Not called by a callback. false: no memory. */
bool os_fetch_change(os_fetch *fetch, const void *context, uint64_t ticket, bool cancel);

/* done(context, 0, OS_OK) is called when the engine's thread comes round: whoever hears nothing for seconds knows that
 * it hangs. false: no memory, or closed. */
bool os_fetch_ping(os_fetch *fetch, void *context,
                   void (*done)(void *context, uint64_t ticket, const os_fetch_result *result));

/* *out and true, or false: nothing left. */
bool os_fetch_news(os_fetch *fetch, os_fetch_news_item *out);

void os_fetch_statistics_of(os_fetch *fetch, os_fetch_statistics *out);
/* At most room of them; how many there are. */
unsigned os_fetch_sources_of(os_fetch *fetch, os_fetch_source_statistics *out, unsigned room);
unsigned os_fetch_slowest(os_fetch *fetch, os_fetch_slow out[OS_FETCH_SLOWEST]);

#endif
