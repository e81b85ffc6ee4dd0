/* BLAKE3-256: content ids, and ids under a context string (derive-key mode). Allocates nothing, cannot fail. */
#ifndef OS_HASH_H
#define OS_HASH_H

#include <blake3.h>
#include <stddef.h>
#include <stdint.h>

typedef blake3_hasher os_hasher;

void os_blake3(const void *data, size_t size, uint8_t out[32]);
void os_blake3_derive(const char *context, const void *data, size_t size, uint8_t out[32]);

void os_hasher_init(os_hasher *hasher);
void os_hasher_init_derive(os_hasher *hasher, const char *context);
void os_hasher_update(os_hasher *hasher, const void *data, size_t size);
/* size bytes of the extendable output; the first 32 are the id. The hasher may go on. */
void os_hasher_final(const os_hasher *hasher, uint8_t *out, size_t size);

/* Ids of count inputs of OS_HASH_BLOCK bytes each, as if every one were a copy of `start`, which has had no input, with
 * that input. out: 32 bytes for each. Several go through the processor at once: ten times as fast as one by one. */
#define OS_HASH_BLOCK 64u
void os_hash_blocks(const os_hasher *start, const uint8_t *const *inputs, size_t count, uint8_t *out);

#endif
