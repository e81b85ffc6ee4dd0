/* Tables of the environment; integers little-endian, keys big-endian:
 *
 * - chunks: id[32] -> u32 segment, u32 offset of the entry's header, u32 stored, u32 length, u8 algorithm, u8 codec,
 *   u16 0, check
 * - segments: u32 number -> u32 bytes, u32 0, u64 used, check
 * - meta: "next" -> u32 number of the next segment to be made, check; "built" -> u32 1, check: the map was filled from
 *   all segments that were there
 *
 * check: os_lmdb_rows.h. A row that fails it is as good as none. Numbers are never used twice, so a row that outlived
 * its segment names nothing. */
#include <string.h>

#include "os_store_parts.h"

enum { CHUNK_ROW = 24, SEGMENT_ROW = 20, NUMBER_ROW = 8 };

const os_lmdb_kind os_store_kind = {"onesec store 1", {"chunks", "segments", "meta"}};

static void put32(uint8_t *at, uint32_t value) {
    memcpy(at, &value, sizeof value);
}

static uint32_t get32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* ---------------------------------------------------------------- chunks */

static bool parse_row(const uint8_t *id, const uint8_t *row, os_entry *out) {
    *out = (os_entry){.segment = get32(row),
                      .offset = get32(row + 4),
                      .stored = get32(row + 8),
                      .length = get32(row + 12),
                      .algorithm = row[16],
                      .codec = row[17]};
    memcpy(out->id, id, OS_ID_SIZE);
    return out->length <= OS_CHUNK_MAX && out->stored <= out->length && out->stored >= 1 &&
           (uint64_t)out->offset + OS_ENTRY_HEADER + out->stored <= UINT32_MAX &&
           (out->codec == OS_CODEC_ZSTD || (out->codec == OS_CODEC_RAW && out->stored == out->length));
}

bool os_store_row_read(const MDB_val *key, const MDB_val *value, os_entry *out) {
    return key->mv_size == OS_ID_SIZE && os_lmdb_row_sound(key, value, CHUNK_ROW) &&
           parse_row(key->mv_data, value->mv_data, out);
}

int os_store_row_get(os_store *store, MDB_txn *transaction, const uint8_t id[OS_ID_SIZE], os_entry *out) {
    uint8_t row[CHUNK_ROW];
    MDB_val key = {OS_ID_SIZE, (void *)id};
    int code = os_lmdb_row_get(&store->rows, transaction, TABLE_CHUNKS, &key, row, sizeof row);
    return code != 0 ? code : parse_row(id, row, out) ? 0 : MDB_NOTFOUND;
}

int os_store_row_put(os_store *store, MDB_txn *transaction, const os_entry *entry) {
    uint8_t row[CHUNK_ROW] = {0};
    MDB_val key = {OS_ID_SIZE, (void *)entry->id};
    put32(row, entry->segment);
    put32(row + 4, entry->offset);
    put32(row + 8, entry->stored);
    put32(row + 12, entry->length);
    row[16] = entry->algorithm;
    row[17] = entry->codec;
    return os_lmdb_row_put(&store->rows, transaction, TABLE_CHUNKS, &key, row, sizeof row);
}

int os_store_row_delete(os_store *store, MDB_txn *transaction, const uint8_t id[OS_ID_SIZE]) {
    MDB_val key = {OS_ID_SIZE, (void *)id};
    return os_lmdb_row_delete(&store->rows, transaction, TABLE_CHUNKS, &key);
}

/* ---------------------------------------------------------------- segments */

static int delete_where(os_store *store, MDB_txn *transaction, unsigned table,
                        bool (*doomed)(void *, const MDB_val *, const MDB_val *), void *context) {
    MDB_cursor *cursor;
    MDB_val key, value;
    int code = mdb_cursor_open(transaction, os_lmdb_table(store->map, table), &cursor);
    if (code != 0)
        return code;
    while ((code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) == 0)
        if (doomed(context, &key, &value) && (code = mdb_cursor_del(cursor, 0)) != 0)
            break;
    mdb_cursor_close(cursor);
    return code == MDB_NOTFOUND ? 0 : code;
}

typedef struct going {
    bool (*gone)(void *context, uint32_t number);
    void *context;
} going;

static bool chunk_is_going(void *context, const MDB_val *key, const MDB_val *value) {
    const going *it = context;
    (void)key;
    return value->mv_size == CHUNK_ROW && it->gone(it->context, get32(value->mv_data));
}

static bool segment_is_going(void *context, const MDB_val *key, const MDB_val *value) {
    const going *it = context;
    (void)value;
    return key->mv_size == 4 && it->gone(it->context, os_lmdb_key_number(key->mv_data));
}

int os_store_segments_delete(os_store *store, MDB_txn *transaction, bool (*gone)(void *context, uint32_t number),
                             void *context) {
    going it = {gone, context};
    int code = delete_where(store, transaction, TABLE_CHUNKS, chunk_is_going, &it);
    return code != 0 ? code : delete_where(store, transaction, TABLE_SEGMENTS, segment_is_going, &it);
}

int os_store_segment_put(os_store *store, MDB_txn *transaction, const segment *it, uint32_t bytes, uint64_t used) {
    uint8_t row[SEGMENT_ROW] = {0}, name[4];
    os_lmdb_number_key(it->number, name);
    MDB_val key = {sizeof name, name};
    put32(row, bytes);
    memcpy(row + 8, &used, sizeof used);
    return os_lmdb_row_put(&store->rows, transaction, TABLE_SEGMENTS, &key, row, sizeof row);
}

bool os_store_segment_read(const MDB_val *key, const MDB_val *value, uint32_t *number, uint32_t *bytes,
                           uint64_t *used) {
    if (key->mv_size != 4 || !os_lmdb_row_sound(key, value, SEGMENT_ROW))
        return false;
    const uint8_t *row = value->mv_data;
    *number = os_lmdb_key_number(key->mv_data);
    *bytes = get32(row);
    memcpy(used, row + 8, sizeof *used);
    return true;
}

/* ---------------------------------------------------------------- meta */

int os_store_number_get(os_store *store, MDB_txn *transaction, const char *name, uint32_t *out) {
    uint8_t row[NUMBER_ROW];
    MDB_val key = {strlen(name), (void *)name};
    int code = os_lmdb_row_get(&store->rows, transaction, TABLE_META, &key, row, sizeof row);
    if (code == 0)
        *out = get32(row);
    return code;
}

int os_store_number_put(os_store *store, MDB_txn *transaction, const char *name, uint32_t value) {
    uint8_t row[NUMBER_ROW];
    MDB_val key = {strlen(name), (void *)name};
    put32(row, value);
    return os_lmdb_row_put(&store->rows, transaction, TABLE_META, &key, row, sizeof row);
}
