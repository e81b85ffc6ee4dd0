/* Whole answers over HTTP for a client that has no event loop: the requests of a start, a handful at a time.
 *
 * It decides nothing. No redirect is followed, no login is added, nothing is tried again: registry/session.py does
 * that, for this road as for the other. What it does is move bytes while its client does something else. */
#ifndef OS_FETCH_GET_H
#define OS_FETCH_GET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "os_env.h"
#include "os_result.h"

typedef struct os_get os_get;

typedef struct os_get_options {
    const os_env *env;
    const char *authorities; /* file of certificates for requests that bring none; NULL: libcurl's */
    uint32_t connect_ms, silence_ms;
} os_get_options;

/* All borrowed, and copied. body NULL: a GET; else a POST of it. head: a HEAD. authorities: PEM, NULL: the options'.
 * proxy, no_proxy: NULL: none; nothing is taken from the environment. */
typedef struct os_get_request {
    const char *url;
    const char *const *headers;
    unsigned header_count;
    const void *body;
    size_t body_size;
    bool head;
    const char *authorities, *proxy, *no_proxy;
} os_get_request;

typedef enum os_get_end {
    OS_GET_RUNNING,
    OS_GET_DONE,      /* the answer came to its end */
    OS_GET_CONNECT,   /* no connection in time */
    OS_GET_SILENT,    /* no byte in time */
    OS_GET_REFUSED,   /* no connection; error is an errno or 0 */
    OS_GET_UNTRUSTED, /* the certificate */
    OS_GET_NO_TLS,    /* what answers does not speak it */
    OS_GET_PROXY,
    OS_GET_BROKEN, /* it broke off */
    OS_GET_HEADERS /* more of them than OS_FETCH_ANSWER_HEADERS_MAX */
} os_get_end;

/* head: lines of the answer's header, each ended by \r\n or \n, valid once status is not 0; borrowed until the next
 * call about this request. words: about any end but the first two. */
typedef struct os_get_answer {
    long status; /* 0: its header is not complete */
    os_get_end end;
    int error;
    const char *head;
    size_t head_size;
    const char *words;
} os_get_answer;

os_code os_get_make(const os_get_options *options, os_get **out, os_failure *failure);
void os_get_free(os_get *get); /* what runs is given up */

/* *number is not 0. */
os_code os_get_start(os_get *get, const os_get_request *request, uint32_t *number, os_failure *failure);
os_code os_get_look(os_get *get, uint32_t number, os_get_answer *out, os_failure *failure);
/* Moves at most room bytes of the body out; what is not taken stops the transfer at OS_GET_HELD_MAX. */
os_code os_get_take(os_get *get, uint32_t number, void *buffer, size_t room, size_t *taken, os_failure *failure);
/* Bytes that could be taken now. */
size_t os_get_held(os_get *get, uint32_t number);
void os_get_drop(os_get *get, uint32_t number); /* forgets it, finished or not; numbers that are not there are fine */

/* Waits until something has changed since the last wait, somebody called wake, or the time is over. */
void os_get_wait(os_get *get, uint64_t timeout_ns);
void os_get_wake(os_get *get); /* any thread */

/* Around a fork: between them the thread holds no lock, of ours, libcurl's or the allocator's. The child has no thread:
 * it may use none of these functions, and os_get_free in it does nothing. */
void os_get_park(os_get *get);
void os_get_unpark(os_get *get);
bool os_get_inherited(const os_get *get); /* this process is such a child */

/* Bytes of one answer that nobody has taken: 30 ms of 1 Gbit/s. A process that is forked meanwhile has a copy. */
#define OS_GET_HELD_MAX (4u << 20)
#define OS_GET_AT_ONCE_MAX 64u     /* requests */
#define OS_GET_BODY_MAX (1u << 20) /* bytes that are sent with one */

#endif
