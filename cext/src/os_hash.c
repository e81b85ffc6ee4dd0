#include "os_hash.h"

#include <blake3_impl.h>

void os_hasher_init(os_hasher *hasher) {
    blake3_hasher_init(hasher);
}

void os_hasher_init_derive(os_hasher *hasher, const char *context) {
    blake3_hasher_init_derive_key(hasher, context);
}

void os_hasher_update(os_hasher *hasher, const void *data, size_t size) {
    blake3_hasher_update(hasher, data, size);
}

void os_hasher_final(const os_hasher *hasher, uint8_t *out, size_t size) {
    blake3_hasher_finalize(hasher, out, size);
}

void os_blake3(const void *data, size_t size, uint8_t out[32]) {
    os_hasher hasher;
    os_hasher_init(&hasher);
    os_hasher_update(&hasher, data, size);
    os_hasher_final(&hasher, out, 32);
}

void os_blake3_derive(const char *context, const void *data, size_t size, uint8_t out[32]) {
    os_hasher hasher;
    os_hasher_init_derive(&hasher, context);
    os_hasher_update(&hasher, data, size);
    os_hasher_final(&hasher, out, 32);
}

_Static_assert(OS_HASH_BLOCK == BLAKE3_BLOCK_LEN, "one block is a whole input");

/* The library's own inner step, which it uses for the chunks of one long input; an input that is one block is a tree of
 * one chunk, whose only compression is the root's. */
void os_hash_blocks(const os_hasher *start, const uint8_t *const *inputs, size_t count, uint8_t *out) {
    blake3_hash_many(inputs, count, 1, start->key, 0, false, start->chunk.flags, CHUNK_START, CHUNK_END | ROOT, out);
}
