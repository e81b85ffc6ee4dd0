/* What the files of the getter share. */
#ifndef OS_FETCH_GET_PARTS_H
#define OS_FETCH_GET_PARTS_H

#include <curl/curl.h>
#include <pthread.h>

#include "os_fetch_get.h"
#include "os_fetch_limits.h"

/* Everything in it is guarded by the getter's lock. */
typedef struct os_get_transfer {
    struct os_get_transfer *next;
    os_get *get; /* borrowed */
    uint32_t number;
    CURL *easy;                 /* owned */
    struct curl_slist *headers; /* owned */
    bool added;                 /* the multi handle has it */
    bool dropped;               /* the thread frees it */
    bool paused, resume;
    bool whole; /* the header is complete */
    bool overlong;
    bool connected; /* it was sent to somebody */
    long status;
    os_get_end end;
    int error;
    char *head;                                /* owned */
    size_t head_size, head_room, header_bytes; /* header_bytes: of all lines, those that are not kept included */
    uint8_t *data;                             /* owned: from begin to size */
    size_t begin, size, room;
    uint64_t moved; /* when the last byte came, or it was started */
    char words[CURL_ERROR_SIZE];
} os_get_transfer;

struct os_get {
    const os_env *env;               /* immutable */
    char *authorities;               /* owned, immutable */
    uint32_t connect_ms, silence_ms; /* immutable */
    pid_t process;                   /* immutable: who made it */
    pthread_t thread;
    CURLM *multi; /* the thread's, under the lock, but for curl_multi_poll and curl_multi_wakeup */

    pthread_mutex_t lock; /* guards what follows, and is held in every callback of libcurl */
    pthread_cond_t changed;
    bool stopping;
    uint64_t changes, seen; /* counted; as far as the last wait knows */
    uint32_t next_number;
    unsigned count;
    os_get_transfer *transfers; /* owned */
};

/* os_fetch_get_setup.c: a handle that is told everything about a request. NULL: no memory, or libcurl would not. */
CURL *os_get_handle(os_get_transfer *transfer, const os_get_request *request);
/* What a transfer's end means. */
void os_get_judge(os_get_transfer *transfer, CURLcode result);

#endif
