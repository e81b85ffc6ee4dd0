#include "os_hash.h"

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
