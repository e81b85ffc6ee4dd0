/* os_store_check: every row of the map and the entry that it names, header and content, then the segments' own headers.
 * Rows are taken some at a time, so that no transaction stays open while gigabytes are hashed. */
#include <stdlib.h>
#include <string.h>

#include "os_store_parts.h"

enum { ROWS = 256 };

typedef struct row {
    uint8_t id[OS_ID_SIZE];
    bool sound;
    os_entry entry;
} row;

typedef struct page {
    os_store *store;
    const uint8_t *after; /* NULL: from the first row on */
    row *out;
    size_t count;
} page;

/* The rows after one; fewer than ROWS: those were the last. */
static int next_rows(void *context, MDB_txn *transaction) {
    page *it = context;
    MDB_cursor *cursor;
    MDB_val value, key = {OS_ID_SIZE, (void *)it->after};
    it->count = 0;
    int code = mdb_cursor_open(transaction, os_lmdb_table(it->store->map, TABLE_CHUNKS), &cursor);
    if (code != 0)
        return code;
    code = mdb_cursor_get(cursor, &key, &value, it->after == NULL ? MDB_FIRST : MDB_SET_RANGE);
    if (code == 0 && it->after != NULL && key.mv_size == OS_ID_SIZE && memcmp(key.mv_data, it->after, OS_ID_SIZE) == 0)
        code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    for (; code == 0 && it->count < ROWS; code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) {
        if (key.mv_size != OS_ID_SIZE) {
            code = MDB_CORRUPTED;
            break;
        }
        row *next = &it->out[it->count++];
        memcpy(next->id, key.mv_data, OS_ID_SIZE);
        next->sound = os_store_row_read(&key, &value, &next->entry);
    }
    mdb_cursor_close(cursor);
    return code == MDB_NOTFOUND ? 0 : code;
}

static bool same(const os_entry *left, const os_entry *right) {
    return memcmp(left->id, right->id, OS_ID_SIZE) == 0 && left->algorithm == right->algorithm &&
           left->codec == right->codec && left->length == right->length && left->stored == right->stored;
}

typedef struct check {
    os_store *store;
    os_store_report *report;
    uint8_t *stored, *content; /* owned; OS_ENTRY_HEADER + OS_CHUNK_MAX and OS_CHUNK_MAX bytes */
} check;

static bool entry_is_sound(check *it, const segment *in, const os_entry *entry) {
    os_store *store = it->store;
    os_entry there;
    uint8_t of_stored[8];
    const uint8_t *stored = it->stored + OS_ENTRY_HEADER;
    if (os_segment_pread(store->env, in->fd, it->stored, OS_ENTRY_HEADER + (size_t)entry->stored, entry->offset,
                         NULL) != OS_OK)
        return false;
    if (!os_entry_read(it->stored, entry->segment, entry->offset, &there) || !same(&there, entry))
        return false;
    os_entry_check(stored, entry->stored, of_stored);
    return memcmp(of_stored, there.check, sizeof of_stored) == 0 &&
           os_store_decode(store, entry, stored, it->content, NULL) == OS_OK;
}

/* Whether it is to be forgotten. */
static bool row_is_bad(check *it, const row *one) {
    segment *in = one->sound ? os_store_find_segment(it->store, one->entry.segment) : NULL;
    if (in == NULL) {
        it->report->damaged_rows++;
        return true;
    }
    it->report->chunks++;
    it->report->bytes += one->entry.stored;
    bool bad = !entry_is_sound(it, in, &one->entry);
    os_store_release_segment(it->store, in);
    it->report->damaged += bad;
    return bad;
}

static os_code forget(os_store *store, const row *one, os_failure *failure) {
    uint64_t ticket;
    job *it = os_store_job(store, JOB_FORGET, 0);
    if (it == NULL)
        return os_fail(failure, OS_MEMORY, "store: no memory");
    memcpy(it->entry.id, one->id, OS_ID_SIZE);
    if (one->sound) {
        it->entry.segment = one->entry.segment;
        it->entry.offset = one->entry.offset;
    }
    return os_store_enqueue(store, it, false, &ticket, failure);
}

static os_code check_rows(check *it, bool repair, os_failure *failure) {
    uint8_t after[OS_ID_SIZE];
    size_t count = ROWS;
    os_code code = OS_OK;
    row *rows = malloc(ROWS * sizeof *rows);
    if (rows == NULL)
        return os_fail(failure, OS_MEMORY, "store: no memory");
    for (bool first = true; code == OS_OK && count == ROWS; first = false) {
        page next = {.store = it->store, .after = first ? NULL : after, .out = rows};
        code = os_lmdb_read(it->store->map, next_rows, &next, failure);
        count = next.count;
        for (size_t at = 0; code == OS_OK && at < count; at++) {
            if (row_is_bad(it, &rows[at]) && repair)
                code = forget(it->store, &rows[at], failure);
            memcpy(after, rows[at].id, OS_ID_SIZE);
        }
    }
    free(rows);
    return code;
}

static os_code check_header(check *it, const segment *one, bool repair, os_failure *failure) {
    os_store *store = it->store;
    uint8_t header[OS_SEGMENT_HEADER];
    uint64_t ticket;
    bool pinned;
    if (os_segment_pread(store->env, one->fd, header, sizeof header, 0, NULL) == OS_OK &&
        os_segment_header_read(header, one->number, &pinned))
        return OS_OK;
    it->report->damaged_headers++;
    if (!repair)
        return OS_OK;
    job *rewrite = os_store_job(store, JOB_HEADER, 0);
    if (rewrite == NULL)
        return os_fail(failure, OS_MEMORY, "store: no memory");
    rewrite->entry.segment = one->number;
    return os_store_enqueue(store, rewrite, false, &ticket, failure);
}

static os_code check_headers(check *it, bool repair, os_failure *failure) {
    os_store_segment *list;
    size_t count;
    os_code code = os_store_segments(it->store, &list, &count, failure);
    if (code != OS_OK)
        return code;
    for (size_t at = 0; code == OS_OK && at < count; at++) {
        segment *one = list[at].bytes > 0 ? os_store_find_segment(it->store, list[at].number) : NULL;
        if (one == NULL)
            continue;
        code = check_header(it, one, repair, failure);
        os_store_release_segment(it->store, one);
    }
    free(list);
    return code;
}

os_code os_store_check(os_store *store, bool repair, os_store_report *out, os_failure *failure) {
    *out = (os_store_report){0};
    os_code code = os_store_enter(store, failure);
    if (code != OS_OK)
        return code;
    if (atomic_load(&store->broken)) {
        os_store_leave(store);
        return os_fail(failure, OS_CLOSED, "store: its map failed, want the store opened again");
    }
    check it = {.store = store, .report = out};
    it.stored = malloc(OS_ENTRY_HEADER + OS_CHUNK_MAX);
    it.content = malloc(OS_CHUNK_MAX);
    code = it.stored == NULL || it.content == NULL ? os_fail(failure, OS_MEMORY, "store: no memory")
                                                   : check_rows(&it, repair, failure);
    free(it.stored);
    free(it.content);
    if (code == OS_OK)
        code = check_headers(&it, repair, failure);
    os_store_leave(store);
    return code == OS_OK ? os_store_flush(store, failure) : code;
}
