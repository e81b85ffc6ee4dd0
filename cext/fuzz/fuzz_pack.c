/* Pack tables: whatever the bytes are, parsing stays inside them, and what it accepts is what writing would give.
 *
 * Input: one byte (bit 0: the magic numbers, lengths and the checksum are made right; bit 1: the pack's size is), u64
 * size of the pack, payload. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "os_bytes.h"
#include "os_hash.h"
#include "os_pack.h"

static void make_right(uint8_t *payload, size_t size) {
    uint8_t *footer = payload + size - OS_PACK_FOOTER;
    memcpy(payload, "OSPACK01", 8);
    os_blake3(payload, size - OS_PACK_FOOTER, footer);
    os_put32(footer + 32, (uint32_t)size);
    os_put32(footer + 36, 0);
    memcpy(footer + 40, "OSPACKE1", 8);
}

static uint32_t *column(const uint8_t *from, uint32_t count, uint64_t *sum) {
    uint32_t *made = malloc(4 * (size_t)count + 1);
    assert(made != NULL);
    for (uint32_t row = 0; row < count; row++)
        *sum += made[row] = os_pack_u32(from, row);
    return made;
}

/* Everything that a reader relies on, and the same bytes from the columns. */
static void check(const os_pack_table *table, const uint8_t *payload, size_t size, uint64_t blob_size) {
    uint64_t compressed = 0, plain = 0, chunks = 0, lengths = 0;
    uint32_t *clen = column(table->frame_clen, table->frame_count, &compressed);
    uint32_t *ulen = column(table->frame_ulen, table->frame_count, &plain);
    uint32_t *counts = column(table->frame_chunks, table->frame_count, &chunks);
    uint32_t *length = column(table->chunk_length, table->chunk_count, &lengths);
    assert(compressed + 8 + size == blob_size && plain == lengths && chunks == table->chunk_count);
    for (uint32_t row = 0; row < table->frame_count; row++)
        assert(ulen[row] > 0 && ulen[row] <= OS_FRAME_MAX && counts[row] > 0);
    assert(os_pack_table_size(table->frame_count, table->chunk_count) == size);
    uint8_t *again = malloc(size);
    assert(again != NULL);
    os_pack_table_write(again, table->frame_count, table->chunk_count, clen, ulen, counts, length, table->chunk_id);
    assert(!memcmp(again, payload, size));
    free(again);
    free(clen);
    free(ulen);
    free(counts);
    free(length);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    os_pack_table table = {0};
    os_failure failure = {0};
    uint32_t said = 0;
    if (size < 9)
        return 0;
    uint64_t blob_size = os_get64(data + 1);
    size_t length = size - 9;
    uint8_t *payload = malloc(length ? length : 1); /* its end is watched */
    assert(payload != NULL);
    memcpy(payload, data + 9, length);
    if (length >= OS_PACK_HEADER + OS_PACK_FOOTER) {
        if (data[0] & 1)
            make_right(payload, length);
        if (data[0] & 2) {
            blob_size = length + 8;
            uint64_t frames = os_get32(payload + 8);
            for (uint64_t row = 0; row < frames && OS_PACK_HEADER + 4 * (row + 1) <= length; row++)
                blob_size += os_get32(payload + OS_PACK_HEADER + 4 * row);
        }
    }
    if (length >= 16 && os_pack_footer(payload + length - 16, blob_size, &said, &failure) == OS_OK)
        assert(said >= OS_PACK_HEADER + OS_PACK_FOOTER && said <= OS_PACK_TABLE_MAX && said + 8ull <= blob_size);
    os_code code = os_pack_table_parse(payload, length, blob_size, &table, &failure);
    if (code == OS_OK)
        check(&table, payload, length, blob_size);
    else
        assert(failure.message[0] != '\0');
    free(payload);
    return 0;
}
