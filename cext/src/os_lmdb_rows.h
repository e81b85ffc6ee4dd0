/* Rows that know when they have rotted: each value of fixed size ends with the first 4 bytes of BLAKE3(key, value
 * before it). The walk at open (os_lmdb_check.h) finds rot in LMDB's structure, this finds it in what the rows say. */
#ifndef OS_LMDB_ROWS_H
#define OS_LMDB_ROWS_H

#include <stdatomic.h>
#include <stdbool.h>

#include "os_lmdb.h"

#define OS_LMDB_ROW_CHECK 4u

typedef struct os_lmdb_rows {
    os_lmdb *map;              /* borrowed */
    _Atomic uint64_t *damaged; /* borrowed: counts the rows that were refused */
} os_lmdb_rows;

/* Whether value has this size and passes its check. */
bool os_lmdb_row_sound(const MDB_val *key, const MDB_val *value, size_t size);

/* All return LMDB codes. get: size bytes, check included; a row that does not pass is MDB_NOTFOUND. put: fills in the
 * check at the end of row. delete: no such row is success. */
int os_lmdb_row_get(const os_lmdb_rows *rows, MDB_txn *transaction, unsigned table, MDB_val *key, uint8_t *row,
                    size_t size);
int os_lmdb_row_put(const os_lmdb_rows *rows, MDB_txn *transaction, unsigned table, MDB_val *key, uint8_t *row,
                    size_t size);
int os_lmdb_row_delete(const os_lmdb_rows *rows, MDB_txn *transaction, unsigned table, MDB_val *key);

/* Keys are big-endian, so that LMDB's order is the numbers' order. */
void os_lmdb_number_key(uint32_t number, uint8_t out[4]);
uint32_t os_lmdb_key_number(const uint8_t in[4]);

#endif
