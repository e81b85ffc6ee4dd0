#include "os_tables.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "os_bytes.h"
#include "os_hash.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "columns are used where they lie");
_Static_assert(sizeof(os_tables_blob) == 48, "as in docs/format.md");

#define PACK_CODEC 1u
#define OBJECT_CONTEXT "onesec 2026 object v1"
#define CLEN_MAX (OS_FRAME_MAX + (OS_FRAME_MAX >> 7) + 512u) /* over ZSTD_COMPRESSBOUND of a frame */

/* The next section: rows of width bytes at the next multiple of 8. NULL if it does not fit. */
static const void *section(const uint8_t *data, size_t size, size_t *at, uint64_t rows, size_t width) {
    size_t start = (*at + 7) & ~(size_t)7;
    if (start > size || rows > (size - start) / width)
        return NULL;
    for (size_t gap = *at; gap < start; gap++)
        if (data[gap] != 0)
            return NULL;
    *at = start + (size_t)rows * width;
    return data + start;
}

static uint32_t header_u32(const uint8_t *data, size_t at) {
    uint32_t value;
    memcpy(&value, data + at, sizeof value);
    return value;
}

static os_code check_header(const uint8_t *data, size_t size, os_tables *t, os_failure *failure) {
    if (size > OS_INDEX_MAX)
        return os_fail(failure, OS_LIMIT, "tables: got %zu bytes, want at most %llu", size, OS_INDEX_MAX);
    if (size < OS_TABLES_HEADER || memcmp(data, "OSTABLE1", 8) != 0)
        return os_fail(failure, OS_CORRUPT, "tables: got no OSTABLE1 at their start");
    t->blob_count = header_u32(data, 8);
    t->frame_count = header_u32(data, 12);
    t->chunk_count = header_u32(data, 16);
    t->object_count = header_u32(data, 20);
    t->ref_count = header_u32(data, 24);
    memcpy(&t->total_size, data + 32, sizeof t->total_size);
    if (t->ref_count >= OS_REFS_MAX)
        return os_fail(failure, OS_LIMIT, "tables: got %u refs, want less than %u", t->ref_count, OS_REFS_MAX);
    if (t->chunk_count == UINT32_MAX || t->object_count == UINT32_MAX || t->frame_count == UINT32_MAX)
        return os_fail(failure, OS_LIMIT, "tables: got a count of 2^32 - 1");
    static const uint8_t zero[24];
    if (header_u32(data, 28) != 0 || memcmp(data + 40, zero, sizeof zero) != 0)
        return os_fail(failure, OS_CORRUPT, "tables: got a header whose reserved bytes are not zero");
    return OS_OK;
}

static os_code place_sections(const uint8_t *data, size_t size, os_tables *t, os_failure *failure) {
    size_t at = OS_TABLES_HEADER;
    t->blob = section(data, size, &at, t->blob_count, sizeof *t->blob);
    t->frame_offset = t->blob == NULL ? NULL : section(data, size, &at, t->frame_count, 8);
    t->frame_blob = t->frame_offset == NULL ? NULL : section(data, size, &at, t->frame_count, 4);
    t->frame_clen = t->frame_blob == NULL ? NULL : section(data, size, &at, t->frame_count, 4);
    t->frame_ulen = t->frame_clen == NULL ? NULL : section(data, size, &at, t->frame_count, 4);
    t->chunk_id = t->frame_ulen == NULL ? NULL : section(data, size, &at, t->chunk_count, OS_ID_SIZE);
    t->chunk_frame = t->chunk_id == NULL ? NULL : section(data, size, &at, t->chunk_count, 4);
    t->chunk_offset = t->chunk_frame == NULL ? NULL : section(data, size, &at, t->chunk_count, 4);
    t->chunk_length = t->chunk_offset == NULL ? NULL : section(data, size, &at, t->chunk_count, 4);
    t->object_id = t->chunk_length == NULL ? NULL : section(data, size, &at, t->object_count, OS_ID_SIZE);
    t->object_size = t->object_id == NULL ? NULL : section(data, size, &at, t->object_count, 8);
    t->object_algorithm = t->object_size == NULL ? NULL : section(data, size, &at, t->object_count, 4);
    t->object_ref = t->object_algorithm == NULL ? NULL : section(data, size, &at, (uint64_t)t->object_count + 1, 4);
    t->ref = t->object_ref == NULL ? NULL : section(data, size, &at, t->ref_count, 4);
    if (t->ref == NULL || at != size)
        return os_fail(failure, OS_CORRUPT, "tables: got %zu bytes, want what the header's counts add up to", size);
    return OS_OK;
}

static os_code check_blobs(const os_tables *t, os_failure *failure) {
    for (uint32_t row = 0; row < t->blob_count; row++) {
        const os_tables_blob *blob = &t->blob[row];
        if (blob->codec != PACK_CODEC || blob->zero != 0)
            return os_fail(failure, OS_CORRUPT, "tables: blob %u: got codec %u, want %u", row, blob->codec, PACK_CODEC);
        if (row > 0 && memcmp(t->blob[row - 1].digest, blob->digest, OS_ID_SIZE) >= 0)
            return os_fail(failure, OS_CORRUPT, "tables: blob %u: got a digest out of order", row);
    }
    return OS_OK;
}

static os_code check_frames(const os_tables *t, os_failure *failure) {
    for (uint32_t row = 0; row < t->frame_count; row++) {
        uint32_t blob = t->frame_blob[row], packed = t->frame_clen[row], plain = t->frame_ulen[row];
        if (blob >= t->blob_count)
            return os_fail(failure, OS_CORRUPT, "tables: frame %u: got blob %u, want below %u", row, blob,
                           t->blob_count);
        uint64_t room = t->blob[blob].size, offset = t->frame_offset[row];
        if (packed == 0 || packed > CLEN_MAX || offset > room || packed > room - offset)
            return os_fail(failure, OS_CORRUPT, "tables: frame %u: got %u bytes at %" PRIu64 ", want them in its blob",
                           row, packed, offset);
        if (plain == 0 || plain > OS_FRAME_MAX)
            return os_fail(failure, OS_CORRUPT, "tables: frame %u: got %u bytes decoded, want 1 to %u", row, plain,
                           OS_FRAME_MAX);
        if (blob > (row > 0 ? t->frame_blob[row - 1] + 1 : 0))
            return os_fail(failure, OS_CORRUPT, "tables: blob %u: got no frame in it", blob - 1);
        if (row > 0 &&
            (blob < t->frame_blob[row - 1] || (blob == t->frame_blob[row - 1] && offset <= t->frame_offset[row - 1])))
            return os_fail(failure, OS_CORRUPT, "tables: frame %u: got a place out of order", row);
    }
    if (t->blob_count != (t->frame_count ? t->frame_blob[t->frame_count - 1] + 1 : 0))
        return os_fail(failure, OS_CORRUPT, "tables: blob %u: got no frame in it", t->blob_count - 1);
    return OS_OK;
}

uint64_t os_tables_length(const os_tables *t, uint32_t chunk) {
    uint64_t high = t->chunk_frame[chunk] == OS_TABLES_HOLE ? t->chunk_offset[chunk] : 0;
    return high << 32 | t->chunk_length[chunk];
}

static os_code check_chunks(const os_tables *t, os_failure *failure) {
    static const uint8_t zero[OS_ID_SIZE];
    uint32_t frames = 0; /* with a chunk */
    for (uint32_t row = 0; row < t->chunk_count; row++) {
        uint32_t frame = t->chunk_frame[row], before = row > 0 ? t->chunk_frame[row - 1] : 0;
        uint64_t length = os_tables_length(t, row);
        bool hole = frame == OS_TABLES_HOLE;
        if (length == 0 || length > OS_FILE_SIZE_MAX)
            return os_fail(failure, OS_CORRUPT, "tables: chunk %u: got length %" PRIu64, row, length);
        if (!hole && frame >= t->frame_count)
            return os_fail(failure, OS_CORRUPT, "tables: chunk %u: got frame %u, want below %u", row, frame,
                           t->frame_count);
        if (!hole &&
            (t->chunk_offset[row] > t->frame_ulen[frame] || length > t->frame_ulen[frame] - t->chunk_offset[row]))
            return os_fail(failure, OS_CORRUPT, "tables: chunk %u: got bytes outside its frame", row);
        if (hole != (memcmp(t->chunk_id + (size_t)row * OS_ID_SIZE, zero, OS_ID_SIZE) == 0))
            return os_fail(failure, OS_CORRUPT, "tables: chunk %u: got the id of a hole on data, or the reverse", row);
        if (!hole && frame > (row > 0 ? before + 1 : 0))
            return os_fail(failure, OS_CORRUPT, "tables: frame %u: got no chunk in it", frame - 1);
        frames += !hole && (row == 0 || frame != before);
        if (row == 0)
            continue;
        bool ascends = frame > before;
        if (frame == before)
            ascends = hole ? length > os_tables_length(t, row - 1) : t->chunk_offset[row] > t->chunk_offset[row - 1];
        if (!ascends)
            return os_fail(failure, OS_CORRUPT, "tables: chunk %u: got a place out of order", row);
    }
    if (frames != t->frame_count)
        return os_fail(failure, OS_CORRUPT, "tables: frame %u: got no chunk in it", frames);
    return OS_OK;
}

static os_code check_objects(const os_tables *t, os_failure *failure) {
    uint64_t total = 0;
    for (uint32_t row = 0; row < t->object_count; row++) {
        const uint8_t *id = t->object_id + (size_t)row * OS_ID_SIZE;
        uint32_t first = t->object_ref[row], last = t->object_ref[row + 1];
        uint32_t algorithm = t->object_algorithm[row];
        if (row > 0 && memcmp(id - OS_ID_SIZE, id, OS_ID_SIZE) >= 0)
            return os_fail(failure, OS_CORRUPT, "tables: object %u: got an id out of order", row);
        if (algorithm != OS_ALGORITHM_BLAKE3 && algorithm != OS_ALGORITHM_SHA256)
            return os_fail(failure, OS_CORRUPT, "tables: object %u: got algorithm %u, want 1 or 2", row, algorithm);
        if (first >= last || last > t->ref_count)
            return os_fail(failure, OS_CORRUPT, "tables: object %u: got refs %u to %u of %u", row, first, last,
                           t->ref_count);
        uint64_t size = 0;
        for (uint32_t at = first; at < last; at++) {
            uint32_t chunk = t->ref[at];
            if (chunk >= t->chunk_count)
                return os_fail(failure, OS_CORRUPT, "tables: object %u: got chunk %u, want below %u", row, chunk,
                               t->chunk_count);
            if (at > first && t->chunk_frame[chunk] == OS_TABLES_HOLE &&
                t->chunk_frame[t->ref[at - 1]] == OS_TABLES_HOLE)
                return os_fail(failure, OS_CORRUPT, "tables: object %u: got two holes side by side", row);
            size += os_tables_length(t, chunk);
            if (size > OS_FILE_SIZE_MAX)
                break;
        }
        if (size != t->object_size[row] || size > OS_FILE_SIZE_MAX)
            return os_fail(failure, OS_CORRUPT, "tables: object %u: got size %" PRIu64 ", want its parts' sum", row,
                           t->object_size[row]);
        if (size > UINT64_MAX - total)
            return os_fail(failure, OS_CORRUPT, "tables: got objects of over 2^64 bytes");
        total += size;
    }
    if (t->object_ref[0] != 0 || t->object_ref[t->object_count] != t->ref_count)
        return os_fail(failure, OS_CORRUPT, "tables: got refs of no object");
    if (total != t->total_size)
        return os_fail(failure, OS_CORRUPT, "tables: got total size %" PRIu64 ", want %" PRIu64, t->total_size, total);
    return OS_OK;
}

os_code os_tables_open(const uint8_t *data, size_t size, os_tables *tables, os_failure *failure) {
    os_code code = check_header(data, size, tables, failure);
    if (code == OS_OK)
        code = place_sections(data, size, tables, failure);
    if (code == OS_OK)
        code = check_blobs(tables, failure);
    if (code == OS_OK)
        code = check_frames(tables, failure);
    if (code == OS_OK)
        code = check_chunks(tables, failure);
    if (code == OS_OK)
        code = check_objects(tables, failure);
    return code;
}

os_code os_tables_find(const os_tables *t, const uint8_t id[OS_ID_SIZE], uint32_t *row) {
    uint32_t low = 0, high = t->object_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = memcmp(t->object_id + (size_t)middle * OS_ID_SIZE, id, OS_ID_SIZE);
        if (order == 0) {
            *row = middle;
            return OS_OK;
        }
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return OS_MISSING;
}

#define DESCRIPTION_HEAD 24u
#define PART 40u
#define PARTS_AT_ONCE 64u
#define BATCH 16u /* objects: what a processor with AVX-512 hashes at once */

_Static_assert(DESCRIPTION_HEAD + PART == OS_HASH_BLOCK, "an object of one part is one block");

/* The id that an object's description has. context: initialised for objects. The tables may be hostile, or a mapping of
 * a file that somebody changes: what could lead out of them is looked at here. used: a byte for each chunk, or NULL. */
static os_code id_of_object(const os_tables *t, uint32_t row, const os_hasher *context, uint8_t *used,
                            uint8_t id[OS_ID_SIZE], os_failure *failure) {
    uint8_t buffer[DESCRIPTION_HEAD + PART * PARTS_AT_ONCE];
    uint32_t first = t->object_ref[row], last = t->object_ref[row + 1];
    if (first > last || last > t->ref_count)
        return os_fail(failure, OS_CORRUPT, "tables: object %u: got refs %u to %u of %u", row, first, last,
                       t->ref_count);
    os_hasher hasher = *context;
    os_put32(buffer, t->object_algorithm[row]);
    os_put32(buffer + 4, 0);
    os_put64(buffer + 8, t->object_size[row]);
    os_put64(buffer + 16, last - first);
    size_t size = DESCRIPTION_HEAD;
    for (uint32_t at = first; at < last; at++) {
        uint32_t chunk = t->ref[at];
        if (chunk >= t->chunk_count)
            return os_fail(failure, OS_CORRUPT, "tables: object %u: got chunk %u, want below %u", row, chunk,
                           t->chunk_count);
        if (used)
            used[chunk] = 1;
        if (size + PART > sizeof buffer) {
            os_hasher_update(&hasher, buffer, size);
            size = 0;
        }
        os_put64(buffer + size, os_tables_length(t, chunk));
        memcpy(buffer + size + 8, t->chunk_id + (size_t)chunk * OS_ID_SIZE, OS_ID_SIZE);
        size += PART;
    }
    os_hasher_update(&hasher, buffer, size);
    os_hasher_final(&hasher, id, OS_ID_SIZE);
    return OS_OK;
}

/* Fills description, one block, for an object that is one part; false for others and for what is unsound. */
static bool describe_one_part(const os_tables *t, uint32_t row, uint8_t *used, uint8_t description[OS_HASH_BLOCK]) {
    uint32_t first = t->object_ref[row], last = t->object_ref[row + 1];
    if (first >= t->ref_count || last != first + 1 || t->ref[first] >= t->chunk_count)
        return false;
    uint32_t chunk = t->ref[first];
    if (used)
        used[chunk] = 1;
    os_put32(description, t->object_algorithm[row]);
    os_put32(description + 4, 0);
    os_put64(description + 8, t->object_size[row]);
    os_put64(description + 16, 1);
    os_put64(description + DESCRIPTION_HEAD, os_tables_length(t, chunk));
    memcpy(description + DESCRIPTION_HEAD + 8, t->chunk_id + (size_t)chunk * OS_ID_SIZE, OS_ID_SIZE);
    return true;
}

/* Objects stand by id, so their chunks are all over the columns: they are asked for some objects ahead. */
static void fetch_ahead(const os_tables *t, uint32_t row) {
    if (row >= t->object_count || t->object_ref[row] >= t->ref_count || t->ref[t->object_ref[row]] >= t->chunk_count)
        return;
    uint32_t chunk = t->ref[t->object_ref[row]];
    __builtin_prefetch(t->chunk_id + (size_t)chunk * OS_ID_SIZE);
    __builtin_prefetch(t->chunk_frame + chunk);
    __builtin_prefetch(t->chunk_length + chunk);
}

/* The ids of count objects from row on, at most BATCH. Most files are one part: those go through the hash together. */
static os_code ids_of_objects(const os_tables *t, uint32_t row, uint32_t count, const os_hasher *context, uint8_t *used,
                              uint8_t ids[BATCH][OS_ID_SIZE], os_failure *failure) {
    uint8_t descriptions[BATCH][OS_HASH_BLOCK], together[BATCH][OS_ID_SIZE];
    const uint8_t *inputs[BATCH];
    uint32_t places[BATCH];
    size_t short_ones = 0;
    for (uint32_t at = 0; at < count; at++) {
        fetch_ahead(t, row + at + BATCH);
        if (describe_one_part(t, row + at, used, descriptions[short_ones])) {
            inputs[short_ones] = descriptions[short_ones];
            places[short_ones++] = at;
            continue;
        }
        os_code code = id_of_object(t, row + at, context, used, ids[at], failure);
        if (code != OS_OK)
            return code;
    }
    os_hash_blocks(context, inputs, short_ones, together[0]);
    for (size_t at = 0; at < short_ones; at++)
        memcpy(ids[places[at]], together[at], OS_ID_SIZE);
    return OS_OK;
}

static os_code wrong_id(uint32_t row, os_failure *failure) {
    return os_fail(failure, OS_CORRUPT, "tables: object %u: got an id that is not the id of its parts", row);
}

os_code os_tables_check_object(const os_tables *t, uint32_t row, os_failure *failure) {
    os_hasher context;
    uint8_t id[OS_ID_SIZE];
    os_hasher_init_derive(&context, OBJECT_CONTEXT);
    os_code code = id_of_object(t, row, &context, NULL, id, failure);
    if (code == OS_OK && memcmp(id, t->object_id + (size_t)row * OS_ID_SIZE, sizeof id) != 0)
        return wrong_id(row, failure);
    return code;
}

os_code os_tables_check_objects(const os_tables *t, os_failure *failure) {
    os_hasher context;
    os_code code = OS_OK;
    uint8_t ids[BATCH][OS_ID_SIZE];
    uint8_t *used = calloc((size_t)t->chunk_count + 1, 1);
    if (used == NULL)
        return os_fail(failure, OS_MEMORY, "tables: out of memory");
    os_hasher_init_derive(&context, OBJECT_CONTEXT);
    for (uint32_t row = 0; row < t->object_count && code == OS_OK; row += BATCH) {
        uint32_t count = t->object_count - row < BATCH ? t->object_count - row : BATCH;
        code = ids_of_objects(t, row, count, &context, used, ids, failure);
        for (uint32_t at = 0; at < count && code == OS_OK; at++)
            if (memcmp(ids[at], t->object_id + (size_t)(row + at) * OS_ID_SIZE, OS_ID_SIZE) != 0)
                code = wrong_id(row + at, failure);
    }
    const uint8_t *idle = code == OS_OK ? memchr(used, 0, t->chunk_count) : NULL;
    if (idle != NULL)
        code = os_fail(failure, OS_CORRUPT, "tables: chunk %zu: got it in no object", (size_t)(idle - used));
    free(used);
    return code;
}

/* ---- on the wire ---- */

static os_code open_columns(const uint8_t *data, size_t size, os_tables *t, os_failure *failure) {
    os_code code = check_header(data, size, t, failure);
    return code == OS_OK ? place_sections(data, size, t, failure) : code;
}

os_code os_tables_clear_ids(uint8_t *data, size_t size, os_failure *failure) {
    os_tables t;
    os_code code = open_columns(data, size, &t, failure);
    if (code == OS_OK)
        memset(data + (t.object_id - data), 0, (size_t)t.object_count * OS_ID_SIZE);
    return code;
}

os_code os_tables_fill_ids(uint8_t *data, size_t size, os_failure *failure) {
    static const uint8_t none[OS_ID_SIZE];
    os_tables t;
    os_hasher context;
    os_code code = open_columns(data, size, &t, failure);
    if (code != OS_OK || t.object_count == 0 || memcmp(t.object_id, none, sizeof none) != 0)
        return code;
    uint8_t *ids = data + (t.object_id - data), made[BATCH][OS_ID_SIZE];
    os_hasher_init_derive(&context, OBJECT_CONTEXT);
    for (uint32_t row = 0; row < t.object_count && code == OS_OK; row += BATCH) {
        uint32_t count = t.object_count - row < BATCH ? t.object_count - row : BATCH;
        code = ids_of_objects(&t, row, count, &context, NULL, made, failure);
        if (code == OS_OK)
            memcpy(ids + (size_t)row * OS_ID_SIZE, made, (size_t)count * OS_ID_SIZE);
    }
    return code;
}
