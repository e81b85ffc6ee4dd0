/* The plain step is C, 0.4 GB/s; where the processor has instructions for the hash, os_sha256_native.c uses them. Which
 * one is decided once; both are tested against each other. */
#include "os_sha256.h"

#include <pthread.h>
#include <string.h>

const uint32_t os_sha256_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t x, int n) {
    return x >> n | x << (32 - n);
}

/* The eight words change places from round to round instead of moving: eight rounds bring them back. */
#define ROUND(a, b, c, d, e, f, g, h, i)                                                                               \
    do {                                                                                                               \
        uint32_t t = (h) + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((g) ^ ((e) & ((f) ^ (g)))) +              \
                     os_sha256_constants[i] + w[i];                                                                    \
        (d) += t;                                                                                                      \
        (h) = t + (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + (((a) & (b)) | ((c) & ((a) | (b))));                \
    } while (0)

void os_sha256_blocks_plain(uint32_t state[8], const uint8_t *data, size_t count) {
    for (; count > 0; count--, data += 64) {
        uint32_t w[64];
        for (int i = 0; i < 16; i++)
            w[i] = (uint32_t)data[4 * i] << 24 | (uint32_t)data[4 * i + 1] << 16 | (uint32_t)data[4 * i + 2] << 8 |
                   data[4 * i + 3];
        for (int i = 16; i < 64; i++) {
            uint32_t x = w[i - 15], y = w[i - 2];
            w[i] = w[i - 16] + (rotate(x, 7) ^ rotate(x, 18) ^ x >> 3) + w[i - 7] +
                   (rotate(y, 17) ^ rotate(y, 19) ^ y >> 10);
        }
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
        uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
        for (int i = 0; i < 64; i += 8) {
            ROUND(a, b, c, d, e, f, g, h, i);
            ROUND(h, a, b, c, d, e, f, g, i + 1);
            ROUND(g, h, a, b, c, d, e, f, i + 2);
            ROUND(f, g, h, a, b, c, d, e, i + 3);
            ROUND(e, f, g, h, a, b, c, d, i + 4);
            ROUND(d, e, f, g, h, a, b, c, i + 5);
            ROUND(c, d, e, f, g, h, a, b, i + 6);
            ROUND(b, c, d, e, f, g, h, a, i + 7);
        }
        state[0] += a, state[1] += b, state[2] += c, state[3] += d;
        state[4] += e, state[5] += f, state[6] += g, state[7] += h;
    }
}

static os_sha256_blocks *chosen; /* immutable once made */
static bool fast;
static pthread_once_t made = PTHREAD_ONCE_INIT;

static void choose(void) {
    os_sha256_blocks *native = os_sha256_blocks_native();
    fast = native != NULL;
    chosen = fast ? native : os_sha256_blocks_plain;
}

bool os_sha256_is_fast(void) {
    pthread_once(&made, choose);
    return fast;
}

void os_sha256_init(os_sha256_hasher *hasher) {
    static const uint32_t START[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    pthread_once(&made, choose);
    memcpy(hasher->state, START, sizeof START);
    hasher->size = 0;
}

void os_sha256_update(os_sha256_hasher *hasher, const void *data, size_t size) {
    const uint8_t *at = data;
    size_t held = hasher->size % 64;
    hasher->size += size;
    if (held > 0) {
        size_t step = size < 64 - held ? size : 64 - held;
        memcpy(hasher->block + held, at, step);
        if (held + step < 64)
            return;
        chosen(hasher->state, hasher->block, 1);
        at += step;
        size -= step;
    }
    if (size >= 64)
        chosen(hasher->state, at, size / 64);
    if (size % 64 > 0)
        memcpy(hasher->block, at + size / 64 * 64, size % 64);
}

void os_sha256_final(const os_sha256_hasher *hasher, uint8_t out[32]) {
    uint32_t state[8];
    uint8_t tail[128] = {0};
    size_t left = hasher->size % 64, end = left < 56 ? 64 : 128;
    memcpy(state, hasher->state, sizeof state);
    memcpy(tail, hasher->block, left);
    tail[left] = 0x80;
    uint64_t bits = hasher->size * 8;
    for (int i = 0; i < 8; i++)
        tail[end - 1 - (size_t)i] = (uint8_t)(bits >> 8 * i);
    chosen(state, tail, end / 64);
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 4; j++)
            out[4 * i + j] = (uint8_t)(state[i] >> (24 - 8 * j));
}

void os_sha256(const void *data, size_t size, uint8_t out[32]) {
    os_sha256_hasher hasher;
    os_sha256_init(&hasher);
    os_sha256_update(&hasher, data, size);
    os_sha256_final(&hasher, out);
}
