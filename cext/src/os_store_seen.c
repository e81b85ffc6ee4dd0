/* What was asked for once: a chunk is worth its disk when it is asked for again. A bit for each of a million places,
 * chosen by the id (a hash already); when half of them are set all are cleared. The file is a hint: it is not synced,
 * and whatever stands in it does no harm. */
#include <fcntl.h>
#include <string.h>

#include "os_store_parts.h"

static unsigned ones(uint64_t word) {
    return (unsigned)__builtin_popcountll(word);
}

void os_store_seen_open(os_store *store) {
    const os_env *env = store->env;
    uint64_t words[512];
    uint32_t bits = 0;
    store->seen_file =
        env->openat(env->context, store->directory, "seen", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    for (size_t at = 0; store->seen_file >= 0 && at < SEEN_WORDS; at += 512) {
        if (env->pread(env->context, store->seen_file, words, sizeof words, (off_t)(at * 8)) != (ssize_t)sizeof words)
            break;
        for (size_t row = 0; row < 512; row++) {
            atomic_store(&store->seen[at + row], words[row]);
            bits += ones(words[row]);
        }
    }
    atomic_store(&store->seen_bits, bits);
}

void os_store_seen_close(os_store *store) {
    const os_env *env = store->env;
    uint64_t words[512];
    if (store->seen_file < 0)
        return;
    for (size_t at = 0; at < SEEN_WORDS; at += 512) {
        for (size_t row = 0; row < 512; row++)
            words[row] = atomic_load(&store->seen[at + row]);
        if (env->pwrite(env->context, store->seen_file, words, sizeof words, (off_t)(at * 8)) < 0)
            break;
    }
    env->close(env->context, store->seen_file);
    store->seen_file = -1;
}

bool os_store_seen(os_store *store, const uint8_t id[OS_ID_SIZE]) {
    uint32_t place;
    memcpy(&place, id, sizeof place);
    place %= SEEN_BITS;
    uint64_t bit = UINT64_C(1) << place % 64;
    if (atomic_fetch_or(&store->seen[place / 64], bit) & bit)
        return true;
    if (atomic_fetch_add(&store->seen_bits, 1) >= SEEN_BITS / 2) {
        atomic_store(&store->seen_bits, 0);
        for (size_t at = 0; at < SEEN_WORDS; at++)
            atomic_store(&store->seen[at], 0);
    }
    return false;
}
