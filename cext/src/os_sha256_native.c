/* SHA-256 by the SHA extensions of x86-64 (Intel since Ice Lake and Goldmont, AMD since Zen). The file is compiled for
 * any x86-64 processor; the one function that uses them says so, and is called only where CPUID names them.
 *
 * The instructions keep the state as two vectors, {a, b, e, f} and {c, d, g, h}, most significant word first. Four
 * rounds need four words of the schedule plus their constants; the schedule of the rounds 16 ahead is made on the way,
 * in a ring of four vectors. */
#include "os_sha256.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

static bool has_instructions(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSSE3) || !(c & bit_SSE4_1))
        return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA);
}

__attribute__((target("sha,sse4.1,ssse3"))) static void blocks(uint32_t state[8], const uint8_t *data, size_t count) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i low = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)state), 0xB1);        /* c d a b */
    __m128i high = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(state + 4)), 0x1B); /* e f g h */
    __m128i abef = _mm_alignr_epi8(low, high, 8), cdgh = _mm_blend_epi16(high, low, 0xF0);
    for (; count > 0; count--, data += 64) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w[4];
#pragma GCC unroll 16
        for (int step = 0; step < 16; step++) { /* four rounds each */
            __m128i *here = &w[step % 4];
            if (step < 4) {
                *here = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)data + step), swap);
            } else {
                const __m128i before = w[(step + 3) % 4];
                *here = _mm_sha256msg1_epu32(*here, w[(step + 1) % 4]);
                *here = _mm_add_epi32(*here, _mm_alignr_epi8(before, w[(step + 2) % 4], 4));
                *here = _mm_sha256msg2_epu32(*here, before);
            }
            __m128i sum = _mm_add_epi32(*here, _mm_loadu_si128((const __m128i *)(os_sha256_constants + 4 * step)));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0E));
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    low = _mm_shuffle_epi32(abef, 0x1B);  /* a b e f, as memory has it */
    high = _mm_shuffle_epi32(cdgh, 0xB1); /* g h c d */
    _mm_storeu_si128((__m128i *)state, _mm_blend_epi16(low, high, 0xF0));
    _mm_storeu_si128((__m128i *)(state + 4), _mm_alignr_epi8(high, low, 8));
}

os_sha256_blocks *os_sha256_blocks_native(void) {
    return has_instructions() ? blocks : NULL;
}
#else
os_sha256_blocks *os_sha256_blocks_native(void) {
    return NULL;
}
#endif
