/* A content becomes parts: holes are found, data is cut, each chunk is hashed and looked up. */
#include "os_ingest_parts.h"

#include <endian.h>
#include <string.h>

#include "os_gear.h"
#include "os_hash.h"

static os_code note_known(os_ingest *ingest, const uint8_t *digest, os_failure *failure) {
    for (size_t at = 0; at < ingest->known.size; at += OS_ID_SIZE)
        if (!memcmp(ingest->known.data + at, digest, OS_ID_SIZE))
            return OS_OK;
    return os_ingest_append(ingest, &ingest->known, digest, OS_ID_SIZE, failure);
}

static os_code add_part(os_ingest *ingest, uint64_t length, const uint8_t *id, os_failure *failure) {
    uint8_t part[OS_INGEST_PART_SIZE];
    uint64_t stored = htole64(length);
    memcpy(part, &stored, sizeof stored);
    memcpy(part + sizeof stored, id, OS_ID_SIZE);
    return os_ingest_append(ingest, &ingest->parts, part, sizeof part, failure);
}

static os_code take_chunk(os_ingest *ingest, const uint8_t *data, uint32_t size, os_failure *failure) {
    uint8_t id[OS_ID_SIZE], digest[OS_ID_SIZE];
    bool fresh = false;
    os_blake3(data, size, id);
    ingest->statistics.chunks++;
    os_code code = add_part(ingest, size, id, failure);
    if (code != OS_OK)
        return code;
    if (!os_id_set_add(&ingest->seen, ingest->options.env, id, &fresh))
        return os_ingest_no_memory(failure);
    if (!fresh) {
        ingest->statistics.same_chunks++;
        return OS_OK;
    }
    int found = ingest->options.known ? ingest->options.known->lookup(ingest->options.known->context, id, digest) : 0;
    if (found < 0)
        return os_fail(failure, OS_CORRUPT, "chunk map: a look-up failed");
    if (found) {
        ingest->statistics.known_chunks++;
        return note_known(ingest, digest, failure);
    }
    return os_ingest_put_chunk(ingest, id, data, size, failure);
}

/* Cuts what the window holds: all of it if the segment ends here, else as long as a cut cannot depend on more. */
os_code os_ingest_cut(os_ingest *ingest, bool ends, os_failure *failure) {
    os_code code = OS_OK;
    while (code == OS_OK && ingest->window_start < ingest->window_end) {
        size_t there = ingest->window_end - ingest->window_start;
        if (!ends && there < OS_CHUNK_MAX)
            break;
        size_t size = os_gear_cut(ingest->window + ingest->window_start, there < OS_CHUNK_MAX ? there : OS_CHUNK_MAX);
        code = take_chunk(ingest, ingest->window + ingest->window_start, (uint32_t)size, failure);
        ingest->window_start += size;
    }
    return code;
}

/* Appends to the data segment; data NULL: zeros. */
static os_code add_data(os_ingest *ingest, const uint8_t *data, size_t size, os_failure *failure) {
    while (size) {
        if (ingest->window_end == OS_INGEST_WINDOW) {
            os_code code = os_ingest_cut(ingest, false, failure);
            if (code != OS_OK)
                return code;
            memmove(ingest->window, ingest->window + ingest->window_start, OS_INGEST_WINDOW - ingest->window_start);
            ingest->window_end -= ingest->window_start;
            ingest->window_start = 0;
        }
        size_t step = OS_INGEST_WINDOW - ingest->window_end;
        if (step > size)
            step = size;
        if (data) {
            memcpy(ingest->window + ingest->window_end, data, step);
            data += step;
        } else {
            memset(ingest->window + ingest->window_end, 0, step);
        }
        ingest->window_end += step;
        size -= step;
    }
    return OS_OK;
}

/* A run of zero blocks is over: it was a hole, or it is data. */
os_code os_ingest_end_zero_run(os_ingest *ingest, os_failure *failure) {
    static const uint8_t HOLE[OS_ID_SIZE];
    uint64_t run = ingest->zero_run;
    ingest->zero_run = 0;
    if (run < OS_HOLE_MIN)
        return add_data(ingest, NULL, (size_t)run, failure);
    os_code code = os_ingest_cut(ingest, true, failure);
    ingest->window_start = ingest->window_end = 0;
    return code == OS_OK ? add_part(ingest, run, HOLE, failure) : code;
}

static bool all_zero(const uint8_t *data, size_t size) {
    return data[0] == 0 && !memcmp(data, data + 1, size - 1);
}

/* Blocks of OS_HOLE_BLOCK bytes, the last of a content may be short. */
os_code os_ingest_take_blocks(os_ingest *ingest, const uint8_t *data, size_t size, os_failure *failure) {
    os_code code = OS_OK;
    size_t at = 0;
    while (code == OS_OK && at < size) {
        size_t start = at;
        while (at < size) {
            size_t step = size - at < OS_HOLE_BLOCK ? size - at : OS_HOLE_BLOCK;
            if (all_zero(data + at, step))
                break;
            at += step;
        }
        if (at > start) {
            if (ingest->zero_run)
                code = os_ingest_end_zero_run(ingest, failure);
            if (code == OS_OK)
                code = add_data(ingest, data + start, at - start, failure);
        } else {
            size_t step = size - at < OS_HOLE_BLOCK ? size - at : OS_HOLE_BLOCK;
            ingest->zero_run += step;
            at += step;
        }
    }
    return code;
}
