/* Where an image's packs are read from. A source answers at once: it has the bytes, it cannot have them, or they may
 * come later; then the request is parked, and os_fuse_server_wake says when to ask again. */
#ifndef OS_SOURCE_H
#define OS_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "os_result.h"

typedef enum os_answer {
    OS_ANSWER_HERE,
    OS_ANSWER_FAILED, /* failure says why */
    OS_ANSWER_PENDING,
} os_answer;

/* Row blob of the image's tables in all of them. read and want: any thread, several at once. */
typedef struct os_source {
    void *context; /* owned by the source */
    /* Exactly size bytes at offset. PENDING: they were asked for; failure says what went wrong so far, or nothing. */
    os_answer (*read)(void *context, uint32_t blob, void *buffer, size_t size, uint64_t offset, os_failure *failure);
    /* NULL: everything is as near as it will ever be. Else: the range will be read; what is far comes nearer. failure:
     * as with read. ahead: nobody waits for it so far. */
    os_answer (*want)(void *context, uint32_t blob, size_t size, uint64_t offset, bool ahead, os_failure *failure);
    /* Whether the blob's bytes come from far away, so that what is read is worth keeping. May be NULL: no. */
    bool (*far)(void *context, uint32_t blob);
    /* The bytes that read gave turned out wrong. Returns whether others may come; then read says PENDING until they
     * have. May be NULL: no. */
    bool (*reject)(void *context, uint32_t blob, size_t size, uint64_t offset);
    void (*release)(void *context);
} os_source;

#endif
