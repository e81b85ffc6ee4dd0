#include "os_lmdb_rows.h"

#include <string.h>

#include "os_hash.h"

enum { CHECK = OS_LMDB_ROW_CHECK };

static void check_of(const MDB_val *key, const uint8_t *row, size_t size, uint8_t out[CHECK]) {
    os_hasher hasher;
    os_hasher_init(&hasher);
    os_hasher_update(&hasher, key->mv_data, key->mv_size);
    os_hasher_update(&hasher, row, size - CHECK);
    os_hasher_final(&hasher, out, CHECK);
}

bool os_lmdb_row_sound(const MDB_val *key, const MDB_val *value, size_t size) {
    uint8_t check[CHECK];
    if (value->mv_size != size)
        return false;
    check_of(key, value->mv_data, size, check);
    return memcmp(check, (const uint8_t *)value->mv_data + size - CHECK, CHECK) == 0;
}

int os_lmdb_row_get(const os_lmdb_rows *rows, MDB_txn *transaction, unsigned table, MDB_val *key, uint8_t *row,
                    size_t size) {
    MDB_val value, copy = {size, row};
    int code = mdb_get(transaction, os_lmdb_table(rows->map, table), key, &value);
    if (code != 0)
        return code;
    if (value.mv_size == size) {
        memcpy(row, value.mv_data, size); /* first: what was checked is what is used */
        if (os_lmdb_row_sound(key, &copy, size))
            return 0;
    }
    atomic_fetch_add(rows->damaged, 1);
    return MDB_NOTFOUND;
}

int os_lmdb_row_put(const os_lmdb_rows *rows, MDB_txn *transaction, unsigned table, MDB_val *key, uint8_t *row,
                    size_t size) {
    check_of(key, row, size, row + size - CHECK);
    MDB_val value = {size, row};
    return mdb_put(transaction, os_lmdb_table(rows->map, table), key, &value, 0);
}

int os_lmdb_row_delete(const os_lmdb_rows *rows, MDB_txn *transaction, unsigned table, MDB_val *key) {
    int code = mdb_del(transaction, os_lmdb_table(rows->map, table), key, NULL);
    return code == MDB_NOTFOUND ? 0 : code;
}

void os_lmdb_number_key(uint32_t number, uint8_t out[4]) {
    for (int byte = 0; byte < 4; byte++)
        out[byte] = (uint8_t)(number >> (24 - 8 * byte));
}

uint32_t os_lmdb_key_number(const uint8_t in[4]) {
    return (uint32_t)in[0] << 24 | (uint32_t)in[1] << 16 | (uint32_t)in[2] << 8 | in[3];
}
