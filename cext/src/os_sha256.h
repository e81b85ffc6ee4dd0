/* SHA-256 (FIPS 180-4) of a buffer, for chunks of foreign images. Allocates nothing, cannot fail. */
#ifndef OS_SHA256_H
#define OS_SHA256_H

#include <stddef.h>
#include <stdint.h>

void os_sha256(const void *data, size_t size, uint8_t out[32]);

#endif
