/* An entry's header names its own place, so a header that was written elsewhere, or that lies inside a chunk by design
 * of its author, is none. After a header that is none, the scanner looks for the next one byte by byte.
 *
 * Integers are little-endian, as on every machine this runs on: read and written by memcpy. */
#include "os_segment.h"

#include <errno.h>
#include <string.h>

#include "os_hash.h"

#define SEGMENT_MAGIC "OSSTORE1"
#define ENTRY_MAGIC "OSen"

enum { CHECKED = 64, WINDOW = 16384 };

static void put32(uint8_t *at, uint32_t value) {
    memcpy(at, &value, sizeof value);
}

static uint32_t get32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static void check_of(const void *data, size_t size, uint8_t *out, size_t out_size) {
    uint8_t hash[32];
    os_blake3(data, size, hash);
    memcpy(out, hash, out_size);
}

void os_segment_header_write(uint8_t out[OS_SEGMENT_HEADER], uint32_t number, bool pinned) {
    memcpy(out, SEGMENT_MAGIC, 8);
    put32(out + 8, number);
    put32(out + 12, pinned);
    check_of(out, 16, out + 16, 16);
}

bool os_segment_header_read(const uint8_t in[OS_SEGMENT_HEADER], uint32_t number, bool *pinned) {
    uint8_t check[16];
    check_of(in, 16, check, sizeof check);
    *pinned = get32(in + 12) != 0;
    return memcmp(in, SEGMENT_MAGIC, 8) == 0 && get32(in + 8) == number && get32(in + 12) <= 1 &&
           memcmp(in + 16, check, sizeof check) == 0;
}

void os_entry_check(const void *stored, size_t size, uint8_t out[8]) {
    check_of(stored, size, out, 8);
}

void os_entry_write(uint8_t out[OS_ENTRY_HEADER], const os_entry *entry) {
    memcpy(out, ENTRY_MAGIC, 4);
    out[4] = entry->algorithm;
    out[5] = entry->codec;
    out[6] = out[7] = 0;
    put32(out + 8, entry->length);
    put32(out + 12, entry->stored);
    put32(out + 16, entry->segment);
    put32(out + 20, entry->offset);
    memcpy(out + 24, entry->check, 8);
    memcpy(out + 32, entry->id, OS_ID_SIZE);
    check_of(out, CHECKED, out + CHECKED, OS_ENTRY_HEADER - CHECKED);
}

bool os_entry_read(const uint8_t in[OS_ENTRY_HEADER], uint32_t segment, uint32_t offset, os_entry *out) {
    uint8_t check[OS_ENTRY_HEADER - CHECKED];
    uint32_t length = get32(in + 8), stored = get32(in + 12);
    if (memcmp(in, ENTRY_MAGIC, 4) != 0 || get32(in + 16) != segment || get32(in + 20) != offset)
        return false;
    if (in[4] < OS_ALGORITHM_BLAKE3 || in[4] > OS_ALGORITHM_SHA256 || in[5] > OS_CODEC_ZSTD || in[6] || in[7])
        return false;
    if (length < 1 || length > OS_CHUNK_MAX || stored < 1 ||
        (in[5] == OS_CODEC_RAW ? stored != length : stored >= length) ||
        (uint64_t)offset + OS_ENTRY_HEADER + stored > UINT32_MAX)
        return false;
    check_of(in, CHECKED, check, sizeof check);
    if (memcmp(in + CHECKED, check, sizeof check) != 0)
        return false;
    *out = (os_entry){
        .algorithm = in[4], .codec = in[5], .length = length, .stored = stored, .segment = segment, .offset = offset};
    memcpy(out->check, in + 24, 8);
    memcpy(out->id, in + 32, OS_ID_SIZE);
    return true;
}

/* As many of size bytes as there are before the end of the file; -1 with errno. */
static ssize_t read_some(const os_env *env, int fd, void *buffer, size_t size, uint64_t offset) {
    size_t done = 0;
    while (done < size) {
        ssize_t got = env->pread(env->context, fd, (uint8_t *)buffer + done, size - done, (off_t)(offset + done));
        if (got == 0)
            break;
        if (got < 0 && errno != EINTR)
            return -1;
        if (got > 0)
            done += (size_t)got;
    }
    return (ssize_t)done;
}

os_code os_segment_pread(const os_env *env, int fd, void *buffer, size_t size, uint64_t offset, os_failure *failure) {
    ssize_t got = read_some(env, fd, buffer, size, offset);
    if (got < 0)
        return os_fail_errno(failure, errno, "segment: read: %s", strerror(errno));
    if ((size_t)got < size)
        return os_fail(failure, OS_CORRUPT, "segment: got %zd bytes at %llu, want %zu", got, (unsigned long long)offset,
                       size);
    return OS_OK;
}

/* The first sound header at or after *offset: 1, *offset and *out set; 0 none before the end; -1 with errno. */
static int find_entry(const os_env *env, int fd, uint32_t number, uint64_t *offset, os_entry *out) {
    uint8_t window[WINDOW];
    for (;;) {
        ssize_t got = read_some(env, fd, window, sizeof window, *offset);
        if (got < (ssize_t)OS_ENTRY_HEADER || *offset > UINT32_MAX)
            return got < 0 ? -1 : 0;
        size_t places = (size_t)got - OS_ENTRY_HEADER + 1;
        for (size_t at = 0; at < places; at++) {
            const uint8_t *next = memchr(window + at, ENTRY_MAGIC[0], places - at);
            if (next == NULL)
                break;
            at = (size_t)(next - window);
            if (*offset + at <= UINT32_MAX && os_entry_read(next, number, (uint32_t)(*offset + at), out)) {
                *offset += at;
                return 1;
            }
        }
        *offset += places;
    }
}

os_code os_segment_scan(const os_env *env, int fd, uint32_t number,
                        os_code (*found)(void *context, const os_entry *entry), void *context, uint32_t *end,
                        os_failure *failure) {
    uint8_t header[OS_ENTRY_HEADER];
    bool pinned;
    os_code code = os_segment_pread(env, fd, header, OS_SEGMENT_HEADER, 0, failure);
    *end = OS_SEGMENT_HEADER;
    if (code != OS_OK)
        return code;
    if (!os_segment_header_read(header, number, &pinned))
        return os_fail(failure, OS_CORRUPT, "segment %08x: its header is damaged", number);
    for (uint64_t offset = OS_SEGMENT_HEADER;;) {
        os_entry entry;
        ssize_t got = read_some(env, fd, header, sizeof header, offset);
        int sound = got < 0 ? -1 : 0;
        if (got == sizeof header && offset <= UINT32_MAX)
            sound = os_entry_read(header, number, (uint32_t)offset, &entry)
                        ? 1
                        : find_entry(env, fd, number, &offset, &entry);
        if (sound < 0)
            return os_fail_errno(failure, errno, "segment %08x: read: %s", number, strerror(errno));
        if (sound == 0)
            return OS_OK;
        if ((code = found(context, &entry)) != OS_OK)
            return code;
        offset = *end = entry.offset + OS_ENTRY_HEADER + entry.stored;
    }
}
