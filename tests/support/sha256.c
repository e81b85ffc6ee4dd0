/* sha256 SIZE...: SHA-256 of the first SIZE bytes of standard input, for each SIZE; a line `size plain native pieces`.
 * plain and native: of the two steps, native is "-" where the processor has no instructions. pieces: taken in pieces of
 * 1, 2, 3 ... bytes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "os_sha256.h"

/* The padding is written out here, so that a step stands alone. */
static void whole(os_sha256_blocks *blocks, const uint8_t *data, size_t size, char *text) {
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    size_t padded = (size + 9 + 63) / 64 * 64;
    uint8_t *copy = calloc(padded, 1);
    if (copy == NULL)
        exit(2);
    memcpy(copy, data, size);
    copy[size] = 0x80;
    for (int i = 0; i < 8; i++)
        copy[padded - 1 - (size_t)i] = (uint8_t)((uint64_t)size * 8 >> 8 * i);
    blocks(state, copy, padded / 64);
    free(copy);
    for (int i = 0; i < 8; i++)
        sprintf(text + 8 * i, "%08x", state[i]);
}

static void pieces(const uint8_t *data, size_t size, char *text) {
    os_sha256_hasher hasher;
    uint8_t digest[32];
    os_sha256_init(&hasher);
    for (size_t at = 0, step = 1; at < size; at += step++)
        os_sha256_update(&hasher, data + at, size - at < step ? size - at : step);
    os_sha256_final(&hasher, digest);
    for (int i = 0; i < 32; i++)
        sprintf(text + 2 * i, "%02x", digest[i]);
}

int main(int count, char **words) {
    static uint8_t data[1 << 20];
    char plain[65], native[65] = "-", mixed[65];
    size_t got = fread(data, 1, sizeof data, stdin);
    os_sha256_blocks *fast = os_sha256_blocks_native();
    for (int at = 1; at < count; at++) {
        size_t size = strtoul(words[at], NULL, 10);
        if (size > got)
            return 1;
        whole(os_sha256_blocks_plain, data, size, plain);
        if (fast != NULL)
            whole(fast, data, size, native);
        pieces(data, size, mixed);
        printf("%zu %s %s %s\n", size, plain, native, mixed);
    }
    return 0;
}
