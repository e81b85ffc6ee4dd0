/* Tables of the environment; integers little-endian, keys big-endian:
 *
 *   chunks    id[32]      -> u32 segment, offset of the entry's header, stored, length, u8 algorithm, codec, u16 0,
 * check segments  u32 number  -> u32 bytes, u32 0, u64 used, check meta      "next"      -> u32 number of the next
 * segment to be made, check "built"     -> u32 1, check: the map was filled from all segments that were there
 *
 * check: the first 4 bytes of BLAKE3(key, value before it). A row that fails it is as good as none.
 * Numbers are never used twice, so a row that outlived its segment names nothing. */
#include <string.h>

#include "os_hash.h"
#include "os_store_parts.h"

enum { CHECK = 4, CHUNK_ROW = 24, SEGMENT_ROW = 20, NUMBER_ROW = 8, ROW_MAX = CHUNK_ROW };

const os_lmdb_kind os_store_kind = {"onesec store 1", {"chunks", "segments", "meta"}};

static void put32(uint8_t *at, uint32_t value) {
    memcpy(at, &value, sizeof value);
}

static uint32_t get32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static void check_of(const MDB_val *key, const uint8_t *row, size_t size, uint8_t out[CHECK]) {
    os_hasher hasher;
    os_hasher_init(&hasher);
    os_hasher_update(&hasher, key->mv_data, key->mv_size);
    os_hasher_update(&hasher, row, size - CHECK);
    os_hasher_final(&hasher, out, CHECK);
}

static bool sound(const MDB_val *key, const MDB_val *value, size_t size) {
    uint8_t check[CHECK];
    if (value->mv_size != size)
        return false;
    check_of(key, value->mv_data, size, check);
    return memcmp(check, (const uint8_t *)value->mv_data + size - CHECK, CHECK) == 0;
}

static int get(os_store *store, MDB_txn *transaction, unsigned table, MDB_val *key, uint8_t *row, size_t size) {
    MDB_val value;
    int code = mdb_get(transaction, os_lmdb_table(store->map, table), key, &value);
    if (code != 0)
        return code;
    if (!sound(key, &value, size)) {
        atomic_fetch_add(&store->damaged_rows, 1);
        return MDB_NOTFOUND;
    }
    memcpy(row, value.mv_data, size);
    return 0;
}

static int put(os_store *store, MDB_txn *transaction, unsigned table, MDB_val *key, uint8_t *row, size_t size) {
    check_of(key, row, size, row + size - CHECK);
    MDB_val value = {size, row};
    return mdb_put(transaction, os_lmdb_table(store->map, table), key, &value, 0);
}

static void number_key(uint32_t number, uint8_t name[4]) {
    for (int byte = 0; byte < 4; byte++)
        name[byte] = (uint8_t)(number >> (24 - 8 * byte));
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
           (out->codec == OS_CODEC_ZSTD || (out->codec == OS_CODEC_RAW && out->stored == out->length));
}

bool os_store_row_read(const MDB_val *key, const MDB_val *value, os_entry *out) {
    return key->mv_size == OS_ID_SIZE && sound(key, value, CHUNK_ROW) && parse_row(key->mv_data, value->mv_data, out);
}

int os_store_row_get(os_store *store, MDB_txn *transaction, const uint8_t id[OS_ID_SIZE], os_entry *out) {
    uint8_t row[CHUNK_ROW];
    MDB_val key = {OS_ID_SIZE, (void *)id};
    int code = get(store, transaction, TABLE_CHUNKS, &key, row, sizeof row);
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
    return put(store, transaction, TABLE_CHUNKS, &key, row, sizeof row);
}

int os_store_row_delete(os_store *store, MDB_txn *transaction, const uint8_t id[OS_ID_SIZE]) {
    MDB_val key = {OS_ID_SIZE, (void *)id};
    int code = mdb_del(transaction, os_lmdb_table(store->map, TABLE_CHUNKS), &key, NULL);
    return code == MDB_NOTFOUND ? 0 : code;
}

/* ---------------------------------------------------------------- segments */

int os_store_segment_delete(os_store *store, MDB_txn *transaction, uint32_t number) {
    MDB_cursor *cursor;
    MDB_val key, value;
    int code = mdb_cursor_open(transaction, os_lmdb_table(store->map, TABLE_CHUNKS), &cursor);
    if (code != 0)
        return code;
    while ((code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) == 0)
        if (value.mv_size == CHUNK_ROW && get32(value.mv_data) == number && (code = mdb_cursor_del(cursor, 0)) != 0)
            break;
    mdb_cursor_close(cursor);
    if (code != MDB_NOTFOUND)
        return code;
    uint8_t name[4];
    number_key(number, name);
    key = (MDB_val){sizeof name, name};
    code = mdb_del(transaction, os_lmdb_table(store->map, TABLE_SEGMENTS), &key, NULL);
    return code == MDB_NOTFOUND ? 0 : code;
}

int os_store_segment_put(os_store *store, MDB_txn *transaction, const segment *it, uint32_t bytes, uint64_t used) {
    uint8_t row[SEGMENT_ROW] = {0}, name[4];
    number_key(it->number, name);
    MDB_val key = {sizeof name, name};
    put32(row, bytes);
    memcpy(row + 8, &used, sizeof used);
    return put(store, transaction, TABLE_SEGMENTS, &key, row, sizeof row);
}

bool os_store_segment_read(const MDB_val *key, const MDB_val *value, uint32_t *number, uint32_t *bytes,
                           uint64_t *used) {
    if (key->mv_size != 4 || !sound(key, value, SEGMENT_ROW))
        return false;
    const uint8_t *name = key->mv_data, *row = value->mv_data;
    *number = (uint32_t)name[0] << 24 | (uint32_t)name[1] << 16 | (uint32_t)name[2] << 8 | name[3];
    *bytes = get32(row);
    memcpy(used, row + 8, sizeof *used);
    return true;
}

/* ---------------------------------------------------------------- meta */

int os_store_number_get(os_store *store, MDB_txn *transaction, const char *name, uint32_t *out) {
    uint8_t row[NUMBER_ROW];
    MDB_val key = {strlen(name), (void *)name};
    int code = get(store, transaction, TABLE_META, &key, row, sizeof row);
    if (code == 0)
        *out = get32(row);
    return code;
}

int os_store_number_put(os_store *store, MDB_txn *transaction, const char *name, uint32_t value) {
    uint8_t row[NUMBER_ROW];
    MDB_val key = {strlen(name), (void *)name};
    put32(row, value);
    return put(store, transaction, TABLE_META, &key, row, sizeof row);
}
