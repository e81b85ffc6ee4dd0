/* SHA-256 (FIPS 180-4): chunks of foreign images, documents, packs while they are written. Allocates nothing, cannot
 * fail. The bits are the same on every processor; the speed is not (os_sha256_is_fast). */
#ifndef OS_SHA256_H
#define OS_SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct os_sha256_hasher {
    uint32_t state[8];
    uint64_t size;     /* bytes so far */
    uint8_t block[64]; /* the size % 64 bytes that fill no block yet */
} os_sha256_hasher;

void os_sha256_init(os_sha256_hasher *hasher);
void os_sha256_update(os_sha256_hasher *hasher, const void *data, size_t size);
void os_sha256_final(const os_sha256_hasher *hasher, uint8_t out[32]); /* the hasher may go on */

void os_sha256(const void *data, size_t size, uint8_t out[32]);

/* Whether this processor has instructions for it: 1.5 GB/s and more. Without them other code is faster than ours. */
bool os_sha256_is_fast(void);

/* ---- between os_sha256*.c ---- */

/* One step of the hash: count blocks of 64 bytes. */
typedef void os_sha256_blocks(uint32_t state[8], const uint8_t *data, size_t count);

extern const uint32_t os_sha256_constants[64];
os_sha256_blocks os_sha256_blocks_plain;
/* NULL: this processor, or this compiler's, has no instructions for it. */
os_sha256_blocks *os_sha256_blocks_native(void);

#endif
