/* Tables of the environment; all integers big-endian, so that LMDB's byte order is theirs:
 *
 *   chunks   id[32]      -> u32 pack number, check
 *   packs    u32 number  -> digest[32], u32 chunk count, check
 *            0           -> u32 last number given out, check
 *   digests  digest[32]  -> u32 pack number, check
 *
 * check: os_lmdb_rows.h. A wrong pack number would put a chunk into a manifest that its pack does not have.
 *
 * A number is never given out twice, so rows that survive their pack name nothing. 44 bytes a chunk; naming packs by
 * their digests would make it 72.
 *
 * One lock: closing is read-held by every call, write-held by close. */
#include "os_chunk_map.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "os_lmdb_rows.h"

enum { CHUNKS, PACKS, DIGESTS, NUMBER_ROW = 8, PACK_ROW = 40 };

static const os_lmdb_kind KIND = {"onesec chunk map 1", {"chunks", "packs", "digests"}};

struct os_chunk_map {
    pthread_rwlock_t closing;
    os_lmdb *map;      /* owned; guarded by closing; NULL once closed */
    os_lmdb_rows rows; /* of map */
    os_known known;    /* immutable */
    _Atomic uint64_t damaged;
};

/* One change or look-up: a transaction on the map, and what it is about. */
typedef struct job {
    os_chunk_map *owner;
    const uint8_t *digest, *ids;
    uint32_t count;
    bool changed;
} job;

static MDB_dbi table(const os_chunk_map *owner, unsigned row) {
    return os_lmdb_table(owner->map, row);
}

static int get_number(os_chunk_map *owner, MDB_txn *transaction, unsigned where, MDB_val *key, uint32_t *out) {
    uint8_t row[NUMBER_ROW];
    int code = os_lmdb_row_get(&owner->rows, transaction, where, key, row, sizeof row);
    if (code == 0)
        *out = os_lmdb_key_number(row);
    return code;
}

static int put_number(os_chunk_map *owner, MDB_txn *transaction, unsigned where, MDB_val *key, uint32_t number) {
    uint8_t row[NUMBER_ROW];
    os_lmdb_number_key(number, row);
    return os_lmdb_row_put(&owner->rows, transaction, where, key, row, sizeof row);
}

static int get_pack(os_chunk_map *owner, MDB_txn *transaction, uint32_t number, uint8_t row[PACK_ROW]) {
    uint8_t name[4];
    os_lmdb_number_key(number, name);
    MDB_val key = {sizeof name, name};
    return number == 0 ? MDB_NOTFOUND : os_lmdb_row_get(&owner->rows, transaction, PACKS, &key, row, PACK_ROW);
}

/* The pack that a chunk's row names, if it is there. */
static int pack_of(os_chunk_map *owner, MDB_txn *transaction, const uint8_t *id, uint32_t *number,
                   uint8_t row[PACK_ROW]) {
    MDB_val key = {32, (void *)id};
    int code = get_number(owner, transaction, CHUNKS, &key, number);
    return code == 0 ? get_pack(owner, transaction, *number, row) : code;
}

static int next_number(os_chunk_map *owner, MDB_txn *transaction, uint32_t *out) {
    uint8_t zero[4] = {0};
    MDB_val key = {sizeof zero, zero}, value;
    int code = get_number(owner, transaction, PACKS, &key, out);
    if (code == MDB_NOTFOUND && mdb_get(transaction, table(owner, PACKS), &key, &value) == 0)
        return MDB_CORRUPTED; /* a guess might name a removed pack's rows */
    if (code == MDB_NOTFOUND)
        *out = code = 0;
    if (code == 0 && *out == UINT32_MAX)
        code = MDB_KEYEXIST;
    return code != 0 ? code : put_number(owner, transaction, PACKS, &key, ++*out);
}

static int add(void *context, MDB_txn *transaction) {
    job *it = context;
    os_chunk_map *owner = it->owner;
    MDB_val digest = {32, (void *)it->digest};
    uint32_t number, other;
    uint8_t row[PACK_ROW], name[4];
    it->changed = false;
    int code = get_number(owner, transaction, DIGESTS, &digest, &number);
    if (code == 0 && get_pack(owner, transaction, number, row) == 0 && memcmp(row, it->digest, 32) == 0)
        return 0;
    if (code != 0 && code != MDB_NOTFOUND)
        return code;
    if ((code = next_number(owner, transaction, &number)) != 0)
        return code;
    os_lmdb_number_key(number, name);
    MDB_val key = {sizeof name, name};
    memcpy(row, it->digest, 32);
    os_lmdb_number_key(it->count, row + 32);
    if ((code = os_lmdb_row_put(&owner->rows, transaction, PACKS, &key, row, sizeof row)) != 0 ||
        (code = put_number(owner, transaction, DIGESTS, &digest, number)) != 0)
        return code;
    it->changed = true;
    for (uint32_t at = 0; at < it->count; at++) {
        MDB_val id = {32, (void *)(it->ids + 32 * (size_t)at)};
        code = pack_of(owner, transaction, id.mv_data, &other, row);
        if (code == MDB_NOTFOUND)
            code = put_number(owner, transaction, CHUNKS, &id, number);
        if (code != 0)
            return code;
    }
    return 0;
}

/* Every row of packs with this digest, also one that does not pass its check: none of them may speak again. */
static int forget_digest(os_chunk_map *owner, MDB_txn *transaction, const uint8_t *digest, bool *found) {
    MDB_cursor *cursor;
    MDB_val key, value;
    int code = mdb_cursor_open(transaction, table(owner, PACKS), &cursor);
    if (code != 0)
        return code;
    while ((code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) == 0)
        if (value.mv_size == PACK_ROW && memcmp(value.mv_data, digest, 32) == 0) {
            *found = true;
            if ((code = mdb_cursor_del(cursor, 0)) != 0)
                break;
        }
    mdb_cursor_close(cursor);
    return code == MDB_NOTFOUND ? 0 : code;
}

static int forget_chunks(job *it, MDB_txn *transaction, uint32_t number) {
    for (uint32_t at = 0; at < it->count; at++) {
        MDB_val id = {32, (void *)(it->ids + 32 * (size_t)at)};
        uint32_t other;
        int code = get_number(it->owner, transaction, CHUNKS, &id, &other);
        if (code == 0 && other == number)
            code = os_lmdb_row_delete(&it->owner->rows, transaction, CHUNKS, &id);
        if (code != 0 && code != MDB_NOTFOUND)
            return code;
    }
    return 0;
}

static int remove_pack(void *context, MDB_txn *transaction) {
    job *it = context;
    MDB_val digest = {32, (void *)it->digest};
    uint32_t number;
    it->changed = false;
    int code = get_number(it->owner, transaction, DIGESTS, &digest, &number);
    if (code == 0)
        code = forget_chunks(it, transaction, number);
    if (code != 0 && code != MDB_NOTFOUND)
        return code;
    if ((code = os_lmdb_row_delete(&it->owner->rows, transaction, DIGESTS, &digest)) != 0)
        return code;
    return forget_digest(it->owner, transaction, it->digest, &it->changed);
}

/* ---------------------------------------------------------------- the outside */

/* Leaves closing read-held on success. */
static os_code enter(os_chunk_map *map, os_failure *failure) {
    pthread_rwlock_rdlock(&map->closing);
    if (map->map != NULL)
        return OS_OK;
    pthread_rwlock_unlock(&map->closing);
    return os_fail(failure, OS_CLOSED, "chunk map: closed");
}

static os_code change(os_chunk_map *map, int (*what)(void *, MDB_txn *), job *it, bool *changed, os_failure *failure) {
    os_code code = enter(map, failure);
    if (code != OS_OK)
        return code;
    code = os_lmdb_write(map->map, what, it, failure);
    pthread_rwlock_unlock(&map->closing);
    if (changed != NULL)
        *changed = code == OS_OK && it->changed;
    return code;
}

os_code os_chunk_map_add(os_chunk_map *map, const uint8_t digest[32], const uint8_t *ids, uint32_t count, bool *added,
                         os_failure *failure) {
    job it = {.owner = map, .digest = digest, .ids = ids, .count = count};
    return change(map, add, &it, added, failure);
}

os_code os_chunk_map_remove(os_chunk_map *map, const uint8_t digest[32], const uint8_t *ids, uint32_t count,
                            bool *removed, os_failure *failure) {
    job it = {.owner = map, .digest = digest, .ids = ids, .count = count};
    return change(map, remove_pack, &it, removed, failure);
}

typedef struct looking {
    os_chunk_map *map;
    const uint8_t *id;
    uint8_t row[PACK_ROW];
} looking;

static int look_up(void *context, MDB_txn *transaction) {
    looking *it = context;
    uint32_t number;
    return pack_of(it->map, transaction, it->id, &number, it->row);
}

os_code os_chunk_map_lookup(os_chunk_map *map, const uint8_t id[32], uint8_t pack[32], os_failure *failure) {
    os_code code = enter(map, failure);
    if (code != OS_OK)
        return code;
    looking it = {.map = map, .id = id};
    code = os_lmdb_read(map->map, look_up, &it, failure);
    if (code == OS_OK)
        memcpy(pack, it.row, 32);
    pthread_rwlock_unlock(&map->closing);
    return code;
}

static int known_lookup(void *context, const uint8_t id[32], uint8_t pack[32]) {
    os_code code = os_chunk_map_lookup(context, id, pack, NULL);
    return code == OS_OK ? 1 : code == OS_MISSING ? 0 : -1;
}

typedef struct listing {
    os_chunk_map *map;
    uint8_t *digests; /* owned */
    size_t count;
} listing;

static int list_packs(void *context, MDB_txn *transaction) {
    listing *it = context;
    MDB_stat about;
    MDB_cursor *cursor;
    MDB_val key, value;
    uint8_t row[PACK_ROW];
    int code = mdb_stat(transaction, table(it->map, PACKS), &about);
    if (code == 0)
        code = mdb_cursor_open(transaction, table(it->map, PACKS), &cursor);
    if (code != 0)
        return code;
    it->digests = malloc(32 * about.ms_entries + 1);
    code = it->digests == NULL ? ENOMEM : mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
    for (; code == 0; code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT))
        if (key.mv_size == 4 && get_pack(it->map, transaction, os_lmdb_key_number(key.mv_data), row) == 0)
            memcpy(it->digests + 32 * it->count++, row, 32);
    mdb_cursor_close(cursor);
    return code == MDB_NOTFOUND ? 0 : code;
}

os_code os_chunk_map_packs(os_chunk_map *map, uint8_t **out, size_t *count, os_failure *failure) {
    listing it = {.map = map};
    os_code code = enter(map, failure);
    *out = NULL;
    if (code != OS_OK)
        return code;
    code = os_lmdb_read(map->map, list_packs, &it, failure);
    pthread_rwlock_unlock(&map->closing);
    if (code != OS_OK) {
        free(it.digests);
        return code;
    }
    *out = it.digests;
    *count = it.count;
    return OS_OK;
}

os_code os_chunk_map_statistics_of(os_chunk_map *map, os_chunk_map_statistics *out, os_failure *failure) {
    os_lmdb_statistics about;
    os_code code = enter(map, failure);
    if (code != OS_OK)
        return code;
    code = os_lmdb_statistics_of(map->map, &about, failure);
    pthread_rwlock_unlock(&map->closing);
    if (code == OS_OK)
        *out = (os_chunk_map_statistics){about.rows[DIGESTS], about.rows[CHUNKS], about.used, about.map_size,
                                         map->damaged};
    return code;
}

const os_known *os_chunk_map_known(const os_chunk_map *map) {
    return &map->known;
}

os_code os_chunk_map_open(const char *path, size_t map_size, os_chunk_map **out, os_failure *failure) {
    os_chunk_map *map = calloc(1, sizeof *map);
    *out = NULL;
    if (map == NULL)
        return os_fail(failure, OS_MEMORY, "chunk map: no memory");
    os_code code = os_lmdb_open(path, &KIND, map_size, &map->map, failure);
    if (code != OS_OK) {
        free(map);
        return code;
    }
    pthread_rwlock_init(&map->closing, NULL);
    map->rows = (os_lmdb_rows){map->map, &map->damaged};
    map->known = (os_known){map, known_lookup};
    *out = map;
    return OS_OK;
}

void os_chunk_map_close(os_chunk_map *map) {
    pthread_rwlock_wrlock(&map->closing);
    os_lmdb_close(map->map);
    map->map = NULL;
    pthread_rwlock_unlock(&map->closing);
}

void os_chunk_map_free(os_chunk_map *map) {
    if (map == NULL)
        return;
    os_chunk_map_close(map);
    pthread_rwlock_destroy(&map->closing);
    free(map);
}
