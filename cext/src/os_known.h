/* Who already has a chunk: what an ingest asks before it writes one. */
#ifndef OS_KNOWN_H
#define OS_KNOWN_H

#include <stdint.h>

typedef struct os_known {
    void *context; /* borrowed */
    /* 1: known, and pack is the SHA-256 of a pack that holds it; 0: unknown; -1: the lookup failed. Any thread. */
    int (*lookup)(void *context, const uint8_t id[32], uint8_t pack[32]);
} os_known;

#endif
