/* Frames: nothing is written beyond the size that is asked for, what is accepted fills it, and it comes back from a
 * frame of our own.
 *
 * Input: u8 (1: the magic number and the rest of the header are made right), u32 size, frame. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "os_bytes.h"
#include "os_frame.h"
#include "os_limits.h"

static ZSTD_DCtx *decoder;
static ZSTD_CCtx *encoder;

int LLVMFuzzerInitialize(int *count, char ***words) {
    (void)count, (void)words;
    decoder = ZSTD_createDCtx();
    encoder = ZSTD_createCCtx();
    assert(decoder != NULL && encoder != NULL);
    return 0;
}

static void check_again(const uint8_t *content, size_t size) {
    size_t length = 0, room = OS_FRAME_BOUND(size);
    os_failure failure;
    uint8_t *packed = malloc(room + 1), *again = malloc(size + 1);
    assert(packed != NULL && again != NULL);
    os_code code = os_frame_compress(encoder, 3, content, size, packed, room, &length, &failure);
    assert(code == OS_OK && length <= room);
    code = os_frame_decompress(decoder, packed, length, again, size, &failure);
    assert(code == OS_OK && !memcmp(content, again, size));
    free(packed);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    os_failure failure = {0};
    if (size < 5)
        return 0;
    size_t length = size - 5, plain = os_get32(data + 1) % (OS_FRAME_MAX + 2);
    uint8_t *frame = malloc(length ? length : 1), *out = malloc(plain ? plain : 1);
    assert(frame != NULL && out != NULL);
    memcpy(frame, data + 5, length);
    if ((data[0] & 1) && length > 9) { /* one segment, its size in four bytes */
        os_put32(frame, 0xFD2FB528);
        frame[4] = 0xA0;
        os_put32(frame + 5, (uint32_t)plain);
    }
    if (os_frame_decompress(decoder, frame, length, out, plain, &failure) == OS_OK) {
        assert((frame[4] & 0x0F) == 0);
        check_again(out, plain);
    } else {
        assert(failure.message[0] != '\0');
    }
    free(frame);
    free(out);
    return 0;
}
