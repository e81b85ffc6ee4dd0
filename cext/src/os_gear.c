#include "os_gear.h"

#include <pthread.h>

#include "os_hash.h"
#include "os_limits.h"

#define MASK(bits) (((UINT64_C(1) << (bits)) - 1) << (64 - (bits)))

static uint64_t gear[256]; /* immutable once made */
static pthread_once_t made = PTHREAD_ONCE_INIT;

static void make(void) {
    uint8_t bytes[sizeof gear];
    os_hasher hasher;
    os_hasher_init_derive(&hasher, "onesec 2026 gear v1");
    os_hasher_final(&hasher, bytes, sizeof bytes);
    for (size_t at = 0; at < 256; at++)
        for (size_t byte = 0; byte < 8; byte++)
            gear[at] |= (uint64_t)bytes[at * 8 + byte] << (8 * byte);
}

size_t os_gear_cut(const uint8_t *data, size_t size) {
    pthread_once(&made, make);
    if (size <= OS_CHUNK_MIN)
        return size;
    size_t end = size < OS_CHUNK_MAX ? size : OS_CHUNK_MAX;
    size_t middle = end < OS_CHUNK_AVERAGE ? end : OS_CHUNK_AVERAGE;
    uint64_t hash = 0;
    size_t at = OS_CHUNK_MIN;
    for (; at < middle; at++) {
        hash = (hash << 1) + gear[data[at]];
        if ((hash & MASK(18)) == 0)
            return at + 1;
    }
    for (; at < end; at++) {
        hash = (hash << 1) + gear[data[at]];
        if ((hash & MASK(14)) == 0)
            return at + 1;
    }
    return end;
}
