/* Every bound of the fetch engine and of what the object server keeps for it, in one place. */
#ifndef OS_FETCH_LIMITS_H
#define OS_FETCH_LIMITS_H

#define OS_FETCH_SPAN (1u << 20)                /* a blob is asked for in spans of this, from its start on */
#define OS_FETCH_LENGTH_MAX OS_FETCH_SPAN       /* of one request */
#define OS_FETCH_FLIGHTS 64u                    /* requests in the air at once; also connections to one host */
#define OS_FETCH_FLIGHTS_MAX 512u               /* what an option may make of it */
#define OS_FETCH_WANTS_MAX 16384u               /* ranges asked for and not done; more are refused */
#define OS_FETCH_SOURCES_MAX 4096u              /* of the engine */
#define OS_FETCH_ORIGINS_MAX 4096u              /* of the engine */
#define OS_FETCH_ORIGIN_SOURCES_MAX 8u          /* of one origin */
#define OS_FETCH_URL_MAX 8192u                  /* bytes, also of where a redirect leads */
#define OS_FETCH_HEADERS_MAX 16u                /* lines sent with a request */
#define OS_FETCH_HEADER_MAX 16384u              /* bytes of one such line */
#define OS_FETCH_ANSWER_HEADERS_MAX (64u << 10) /* bytes of header of one answer */
#define OS_FETCH_ERROR_BODY_MAX (64u << 10)     /* read of an answer that is no data, to keep its connection */
#define OS_FETCH_HOPS_MAX 5u                    /* redirects in a row */
#define OS_FETCH_REDIRECTS 64u                  /* remembered for each source */
#define OS_FETCH_RETRY_AFTER_MAX_S 30u          /* of what a server may ask us to wait */
#define OS_FETCH_LATENCIES 256u                 /* requests that quantiles are made of */
#define OS_FETCH_HEDGE_SHARE 20u                /* one request in so many may be doubled */
#define OS_FETCH_HEDGE_BURST 4u                 /* and so many at once */
#define OS_FETCH_SLOWEST 16u                    /* remembered */
#define OS_FETCH_NEWS_MAX 256u                  /* not yet read by who has the credentials */
#define OS_FETCH_CAUSE_MAX 160u                 /* bytes of words */

/* Of the object server that reads through a fetcher. */
#define OS_SLOTS 32u       /* spans in memory, in the air or here; 32 MiB */
#define OS_SLOTS_AHEAD 16u /* of these for what nobody waits for yet */
#define OS_SPANS_MAX 4096u /* spans that somebody waits for; more wait for a place */

#endif
