#include "os_pack.h"

#include <endian.h>
#include <string.h>

#include "os_hash.h"

static const char HEAD[8] = "OSPACK01";
static const char TAIL[8] = "OSPACKE1";

static uint32_t load(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return le32toh(value);
}

static uint8_t *store(uint8_t *at, uint32_t value) {
    value = htole32(value);
    memcpy(at, &value, sizeof value);
    return at + sizeof value;
}

uint32_t os_pack_u32(const uint8_t *column, uint32_t row) {
    return load(column + 4 * (size_t)row);
}

size_t os_pack_table_size(uint32_t frame_count, uint32_t chunk_count) {
    uint64_t size =
        OS_PACK_HEADER + 12 * (uint64_t)frame_count + (4 + OS_ID_SIZE) * (uint64_t)chunk_count + OS_PACK_FOOTER;
    return size > OS_PACK_TABLE_MAX ? 0 : (size_t)size;
}

os_code os_pack_footer(const uint8_t tail[16], uint64_t blob_size, uint32_t *size, os_failure *failure) {
    if (memcmp(tail + 8, TAIL, 8) || load(tail + 4) != 0)
        return os_fail(failure, OS_CORRUPT, "pack: it does not end with a table");
    *size = load(tail);
    if (*size > OS_PACK_TABLE_MAX)
        return os_fail(failure, OS_LIMIT, "pack table: got %u bytes, want at most %u", *size, OS_PACK_TABLE_MAX);
    if (*size < OS_PACK_HEADER + OS_PACK_FOOTER || (uint64_t)*size + 8 > blob_size)
        return os_fail(failure, OS_CORRUPT, "pack table: got %u bytes in a pack of %llu", *size,
                       (unsigned long long)blob_size);
    return OS_OK;
}

/* The sums that tie the columns together. */
static os_code check_sums(const os_pack_table *table, uint64_t frames_size, os_failure *failure) {
    uint64_t compressed = 0;
    uint32_t chunk = 0;
    for (uint32_t frame = 0; frame < table->frame_count; frame++) {
        uint32_t count = os_pack_u32(table->frame_chunks, frame), plain = os_pack_u32(table->frame_ulen, frame);
        uint64_t sum = 0;
        compressed += os_pack_u32(table->frame_clen, frame);
        if (plain == 0 || plain > OS_FRAME_MAX)
            return os_fail(failure, OS_LIMIT, "pack table: frame %u: got %u bytes, want 1 to %u", frame, plain,
                           OS_FRAME_MAX);
        if (count == 0 || count > table->chunk_count - chunk)
            return os_fail(failure, OS_CORRUPT, "pack table: frame %u: its %u chunks are not there", frame, count);
        for (uint32_t end = chunk + count; chunk < end; chunk++) {
            uint32_t length = os_pack_u32(table->chunk_length, chunk);
            if (length == 0)
                return os_fail(failure, OS_CORRUPT, "pack table: chunk %u is empty", chunk);
            sum += length;
        }
        if (sum != plain)
            return os_fail(failure, OS_CORRUPT, "pack table: frame %u: chunks sum to %llu, want %u", frame,
                           (unsigned long long)sum, plain);
    }
    if (chunk != table->chunk_count)
        return os_fail(failure, OS_CORRUPT, "pack table: frames hold %u chunks, want %u", chunk, table->chunk_count);
    if (compressed != frames_size)
        return os_fail(failure, OS_CORRUPT, "pack table: frames sum to %llu bytes, want %llu",
                       (unsigned long long)compressed, (unsigned long long)frames_size);
    return OS_OK;
}

os_code os_pack_table_parse(const uint8_t *payload, size_t size, uint64_t blob_size, os_pack_table *table,
                            os_failure *failure) {
    uint8_t digest[OS_ID_SIZE];
    if (size < OS_PACK_HEADER + OS_PACK_FOOTER || size > OS_PACK_TABLE_MAX || memcmp(payload, HEAD, 8))
        return os_fail(failure, OS_CORRUPT, "pack table: this is not one");
    table->frame_count = load(payload + 8);
    table->chunk_count = load(payload + 12);
    if (os_pack_table_size(table->frame_count, table->chunk_count) != size)
        return os_fail(failure, OS_CORRUPT, "pack table: got %zu bytes for %u frames and %u chunks", size,
                       table->frame_count, table->chunk_count);
    if (blob_size < size + 8)
        return os_fail(failure, OS_CORRUPT, "pack table: larger than its pack of %llu bytes",
                       (unsigned long long)blob_size);
    const uint8_t *footer = payload + size - OS_PACK_FOOTER;
    if (memcmp(footer + 40, TAIL, 8) || load(footer + 32) != size || load(footer + 36) != 0)
        return os_fail(failure, OS_CORRUPT, "pack table: broken end");
    os_blake3(payload, size - OS_PACK_FOOTER, digest);
    if (memcmp(digest, footer, OS_ID_SIZE))
        return os_fail(failure, OS_CORRUPT, "pack table: its checksum is wrong");
    table->frame_clen = payload + OS_PACK_HEADER;
    table->frame_ulen = table->frame_clen + 4 * (size_t)table->frame_count;
    table->frame_chunks = table->frame_ulen + 4 * (size_t)table->frame_count;
    table->chunk_length = table->frame_chunks + 4 * (size_t)table->frame_count;
    table->chunk_id = table->chunk_length + 4 * (size_t)table->chunk_count;
    return check_sums(table, blob_size - size - 8, failure);
}

static uint8_t *store_column(uint8_t *at, const uint32_t *column, uint32_t count) {
    for (uint32_t row = 0; row < count; row++)
        at = store(at, column[row]);
    return at;
}

void os_pack_table_write(uint8_t *payload, uint32_t frame_count, uint32_t chunk_count, const uint32_t *frame_clen,
                         const uint32_t *frame_ulen, const uint32_t *frame_chunks, const uint32_t *chunk_length,
                         const uint8_t *chunk_id) {
    size_t size = os_pack_table_size(frame_count, chunk_count);
    uint8_t *at = payload + 8;
    memcpy(payload, HEAD, 8);
    at = store(store(at, frame_count), chunk_count);
    at = store_column(at, frame_clen, frame_count);
    at = store_column(at, frame_ulen, frame_count);
    at = store_column(at, frame_chunks, frame_count);
    at = store_column(at, chunk_length, chunk_count);
    if (chunk_count)
        memcpy(at, chunk_id, OS_ID_SIZE * (size_t)chunk_count);
    at += OS_ID_SIZE * (size_t)chunk_count;
    os_blake3(payload, size - OS_PACK_FOOTER, at);
    at = store(store(at + OS_ID_SIZE, (uint32_t)size), 0);
    memcpy(at, TAIL, 8);
}
