/* Where an image's packs are read from. A source answers at once: it has the bytes, it cannot have them, or they may
 * come later; then the request is parked, and os_fuse_server_wake says when to ask again. */
#ifndef OS_SOURCE_H
#define OS_SOURCE_H

#include <stddef.h>
#include <stdint.h>

#include "os_result.h"

typedef enum os_answer {
    OS_ANSWER_HERE,
    OS_ANSWER_FAILED, /* failure says why */
    OS_ANSWER_PENDING,
} os_answer;

typedef struct os_source {
    void *context; /* owned by the source */
    /* Exactly size bytes at offset of the blob in row blob of the image's tables; any thread, several at once. */
    os_answer (*read)(void *context, uint32_t blob, void *buffer, size_t size, uint64_t offset, os_failure *failure);
    void (*release)(void *context);
} os_source;

#endif
