/* Segment files of the local store: the scanner ends, finds each entry at most once and in order, and every entry that
 * it finds is within bounds, is what os_entry_write would have written there, and can be decoded without harm.
 *
 * Hashes would keep the fuzzer out, so the first byte says which headers get theirs put right before. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "os_frame.h"
#include "os_hash.h"
#include "os_segment.h"

enum { NUMBER = 1 };

typedef struct file {
    uint8_t *data; /* owned */
    size_t size;
    uint64_t last; /* end of the entry before */
    unsigned found;
} file;

static ssize_t read_file(void *context, int fd, void *buffer, size_t size, off_t offset) {
    const file *it = context;
    (void)fd;
    if ((uint64_t)offset >= it->size)
        return 0;
    if (size > it->size - (size_t)offset)
        size = it->size - (size_t)offset;
    memcpy(buffer, it->data + offset, size);
    return (ssize_t)size;
}

static os_code look(void *context, const os_entry *entry) {
    file *it = context;
    uint8_t again[OS_ENTRY_HEADER], id[OS_ID_SIZE];
    static uint8_t content[OS_CHUNK_MAX];
    assert(entry->segment == NUMBER && entry->offset >= it->last);
    assert((uint64_t)entry->offset + OS_ENTRY_HEADER <= it->size);
    assert(entry->length >= 1 && entry->length <= OS_CHUNK_MAX && entry->stored <= entry->length);
    os_entry_write(again, entry);
    assert(memcmp(again, it->data + entry->offset, sizeof again) == 0);
    it->last = (uint64_t)entry->offset + OS_ENTRY_HEADER + entry->stored;
    assert(it->last <= UINT32_MAX);
    it->found++;
    if (it->last > it->size)
        return OS_OK; /* torn */
    const uint8_t *stored = it->data + entry->offset + OS_ENTRY_HEADER;
    if (entry->codec == OS_CODEC_ZSTD) {
        ZSTD_DCtx *decoder = ZSTD_createDCtx();
        (void)os_frame_decompress(decoder, stored, entry->stored, content, entry->length, NULL);
        ZSTD_freeDCtx(decoder);
    } else
        os_blake3(stored, entry->stored, id);
    return OS_OK;
}

/* As far as the headers lead: numbers, places and hashes as they should be, the rest as it came. */
static void put_right(file *it, uint8_t which) {
    uint8_t hash[32];
    if (it->size < OS_SEGMENT_HEADER)
        return;
    os_segment_header_write(it->data, NUMBER, which & 1);
    for (size_t at = OS_SEGMENT_HEADER; at + OS_ENTRY_HEADER <= it->size; which = (uint8_t)(which >> 1 | which << 7)) {
        uint32_t stored, number = NUMBER, offset = (uint32_t)at;
        uint8_t *header = it->data + at;
        memcpy(&stored, header + 12, sizeof stored);
        if (which & 2) {
            memcpy(header, "OSen", 4);
            memcpy(header + 16, &number, 4);
            memcpy(header + 20, &offset, 4);
            os_blake3(header, 64, hash);
            memcpy(header + 64, hash, 16);
        }
        at += OS_ENTRY_HEADER + (size_t)stored % 5000;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1)
        return 0;
    file it = {.data = malloc(size), .size = size - 1};
    os_env env = os_env_system;
    os_failure failure;
    uint32_t end;
    assert(it.data != NULL);
    memcpy(it.data, data + 1, size - 1);
    if (data[0] != 0)
        put_right(&it, data[0]);
    env.context = &it;
    env.pread = read_file;
    os_code code = os_segment_scan(&env, 0, NUMBER, look, &it, &end, &failure);
    assert(code == OS_OK || code == OS_CORRUPT);
    assert(code != OS_OK || it.found == 0 || end == it.last);
    free(it.data);
    return 0;
}
