/* Opening: what the map says and what the directory holds are made to agree.
 *
 * - A file without a row was made by a batch that never committed: deleted.
 * - A row without a file, or with one that cannot be opened: its chunks are forgotten.
 * - No map, a damaged one, or one that was not finished: made again from the headers in the segments. Their stored
 * bytes are not read (every later read verifies them) but where two entries claim one chunk.
 * - A damaged segment header: with a map it does not matter, check repairs it; without one the segment is deleted. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "os_store_parts.h"

typedef struct numbers {
    uint32_t *list; /* owned, ascending */
    size_t count;
} numbers;

static int ascending(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return a < b ? -1 : a > b;
}

static bool has(const numbers *all, uint32_t number) {
    return all->count > 0 && bsearch(&number, all->list, all->count, sizeof number, ascending) != NULL;
}

static bool add_number(numbers *all, uint32_t number) {
    if (all->count % 64 == 0) {
        uint32_t *grown = realloc(all->list, (all->count + 64) * sizeof *grown);
        if (grown == NULL)
            return false;
        all->list = grown;
    }
    all->list[all->count++] = number;
    return true;
}

/* The segment files of the directory. */
static os_code list_files(os_store *store, numbers *files, os_failure *failure) {
    const os_env *env = store->env;
    int fd = env->openat(env->context, store->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (directory == NULL) {
        int error = errno;
        if (fd >= 0)
            env->close(env->context, fd);
        return os_fail_errno(failure, error, "store: %s: %s", store->path, strerror(error));
    }
    bool good = true;
    for (const struct dirent *entry; good && (entry = readdir(directory)) != NULL;) {
        char again[16];
        unsigned long number = strncmp(entry->d_name, "seg-", 4) == 0 ? strtoul(entry->d_name + 4, NULL, 16) : 0;
        if (number == 0 || number >= UINT32_MAX)
            continue;
        os_store_segment_name((uint32_t)number, again);
        if (strcmp(again, entry->d_name) == 0)
            good = add_number(files, (uint32_t)number);
    }
    closedir(directory);
    if (!good)
        return os_fail(failure, OS_MEMORY, "store: no memory");
    if (files->count > 0)
        qsort(files->list, files->count, sizeof *files->list, ascending);
    return OS_OK;
}

static os_code open_segment(os_store *store, uint32_t number, segment **out, os_failure *failure) {
    const os_env *env = store->env;
    uint8_t header[OS_SEGMENT_HEADER] = {0};
    bool pinned = false;
    char name[16];
    os_store_segment_name(number, name);
    int fd = env->openat(env->context, store->directory, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0);
    if (fd < 0)
        return os_fail_errno(failure, errno, "store: %s: %s", name, strerror(errno));
    bool sound = os_segment_pread(env, fd, header, sizeof header, 0, NULL) == OS_OK &&
                 os_segment_header_read(header, number, &pinned);
    *out = os_store_make_segment(store, number, fd, sound && pinned);
    if (*out == NULL)
        return os_fail(failure, OS_MEMORY, "store: no memory");
    (*out)->sealed = !sound;
    return OS_OK;
}

static os_code keep_segment(os_store *store, segment *it, uint32_t bytes, uint64_t used, os_failure *failure) {
    it->bytes = it->written = bytes;
    atomic_store(&it->used, used);
    atomic_store(&it->saved_used, used);
    if (used > atomic_load(&store->clock))
        atomic_store(&store->clock, used);
    if (it->number >= store->next_number)
        store->next_number = it->number + 1;
    if (os_store_add_segment(store, it))
        return OS_OK;
    os_store_release_segment(store, it);
    return os_fail(failure, OS_MEMORY, "store: no memory");
}

/* ---------------------------------------------------------------- with a map */

static bool is_gone(void *context, uint32_t number) {
    return has(context, number);
}

static int delete_rows(void *context, MDB_txn *transaction) {
    numbers *gone = ((void **)context)[0];
    os_store *store = ((void **)context)[1];
    return os_store_segments_delete(store, transaction, is_gone, gone);
}

typedef struct loading {
    os_store *store;
    const numbers *files;
    numbers rows, gone; /* owned */
    os_code code;       /* of what is not LMDB's */
    os_failure *failure;
} loading;

/* Too many descriptors, or no memory: not the file's fault. */
static bool will_pass(const os_failure *failure) {
    return failure->code == OS_MEMORY || failure->error == EMFILE || failure->error == ENFILE ||
           failure->error == ENOMEM;
}

/* One row of the segments table. */
static os_code load_row(loading *it, const MDB_val *key, const MDB_val *value) {
    uint32_t number, bytes;
    uint64_t used;
    segment *made = NULL;
    os_failure why = {0};
    os_store *store = it->store;
    if (!os_store_segment_read(key, value, &number, &bytes, &used))
        return os_fail(it->failure, OS_CORRUPT, "store: a row of the map is damaged");
    bool there = has(it->files, number);
    if (there && open_segment(store, number, &made, &why) != OS_OK) {
        if (will_pass(&why)) {
            if (it->failure != NULL)
                *it->failure = why;
            return why.code;
        }
        os_store_note(store, "%s", why.message);
        there = false;
    }
    if ((there && !add_number(&it->rows, number)) || (!there && !add_number(&it->gone, number))) {
        if (made != NULL)
            os_store_release_segment(store, made);
        return os_fail(it->failure, OS_MEMORY, "store: no memory");
    }
    return there ? keep_segment(store, made, bytes, used, it->failure) : OS_OK;
}

static int load_rows(void *context, MDB_txn *transaction) {
    loading *it = context;
    MDB_cursor *cursor;
    MDB_val key, value;
    uint32_t built;
    os_store *store = it->store;
    int code = os_store_number_get(store, transaction, "built", &built);
    if (code == 0)
        code = os_store_number_get(store, transaction, "next", &store->next_number);
    if (code == 0)
        code = mdb_cursor_open(transaction, os_lmdb_table(store->map, TABLE_SEGMENTS), &cursor);
    if (code != 0)
        return code;
    while (it->code == OS_OK && (code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) == 0)
        it->code = load_row(it, &key, &value);
    mdb_cursor_close(cursor);
    return code == MDB_NOTFOUND ? 0 : code;
}

/* OS_MISSING: the map was never finished. OS_CORRUPT: it is damaged. */
static os_code load_map(os_store *store, const numbers *files, os_failure *failure) {
    loading it = {.store = store, .files = files, .failure = failure};
    os_code code = os_lmdb_read(store->map, load_rows, &it, failure);
    if (code == OS_OK)
        code = it.code;
    for (size_t at = 0; code == OS_OK && at < files->count; at++)
        if (!has(&it.rows, files->list[at]))
            os_store_unlink_segment(store, files->list[at]);
    if (code == OS_OK && it.gone.count > 0) {
        void *context[] = {&it.gone, store};
        code = os_lmdb_write(store->map, delete_rows, context, failure);
        os_store_note(store, "%zu segments are gone, their chunks are forgotten", it.gone.count);
    }
    free(it.rows.list);
    free(it.gone.list);
    return code;
}

/* ---------------------------------------------------------------- without one */

typedef struct filling {
    os_store *store;
    MDB_txn *transaction;
    segment *from;
    uint32_t end;
    int map_code;
    os_code scan_code;
} filling;

/* The later of two entries is the better one (the first was damaged, or a frame), unless a crash tore it. */
static bool stored_is_whole(const filling *it, const os_entry *entry) {
    uint8_t check[sizeof entry->check];
    const os_env *env = it->store->env;
    scratch *own = os_store_scratch(it->store);
    if (own == NULL)
        return false;
    bool whole = os_segment_pread(env, it->from->fd, own->buffer, entry->stored,
                                  (uint64_t)entry->offset + OS_ENTRY_HEADER, NULL) == OS_OK;
    if (whole) {
        os_entry_check(own->buffer, entry->stored, check);
        whole = memcmp(check, entry->check, sizeof check) == 0;
    }
    os_store_scratch_back(it->store, own);
    return whole;
}

static os_code fill_entry(void *context, const os_entry *entry) {
    filling *it = context;
    os_entry there;
    it->map_code = os_store_row_get(it->store, it->transaction, entry->id, &there);
    if (it->map_code == MDB_NOTFOUND || (it->map_code == 0 && stored_is_whole(it, entry)))
        it->map_code = os_store_row_put(it->store, it->transaction, entry);
    return it->map_code == 0 ? OS_OK : OS_LIMIT; /* any code that stops the scan */
}

static int fill_segment(void *context, MDB_txn *transaction) {
    filling *it = context;
    it->transaction = transaction;
    it->map_code = 0;
    it->scan_code = os_segment_scan(it->store->env, it->from->fd, it->from->number, fill_entry, it, &it->end, NULL);
    if (it->map_code != 0)
        return it->map_code;
    if (it->scan_code != OS_OK)
        return MDB_NOTFOUND; /* no row of a segment that cannot be read */
    return os_store_segment_put(it->store, transaction, it->from, it->end, it->from->number);
}

static int finish(void *context, MDB_txn *transaction) {
    os_store *store = context;
    int code = os_store_number_put(store, transaction, "next", store->next_number);
    return code != 0 ? code : os_store_number_put(store, transaction, "built", 1);
}

/* One segment into the map; one that cannot be used is deleted. */
static os_code rebuild_segment(os_store *store, uint32_t number, os_failure *failure) {
    filling it = {.store = store};
    os_failure why = {0};
    os_code code = open_segment(store, number, &it.from, &why);
    if (code != OS_OK && will_pass(&why)) {
        if (failure != NULL)
            *failure = why;
        return code;
    }
    store->next_number = number + 1;
    if (code == OS_OK) {
        code = os_lmdb_write(store->map, fill_segment, &it, failure);
        if (code == OS_OK)
            return keep_segment(store, it.from, it.end, number, failure);
        os_store_release_segment(store, it.from);
        if (code != OS_MISSING)
            return code;
    }
    os_store_note(store, "segment %08x can't be used and is dropped", number);
    os_store_unlink_segment(store, number);
    return OS_OK;
}

static os_code rebuild(os_store *store, const numbers *files, os_failure *failure) {
    os_code code = OS_OK;
    store->next_number = 1;
    for (size_t at = 0; code == OS_OK && at < files->count; at++)
        code = rebuild_segment(store, files->list[at], failure);
    store->rebuilt = files->count > 0;
    return code == OS_OK ? os_lmdb_write(store->map, finish, store, failure) : code;
}

static os_code open_map(os_store *store, os_failure *failure) {
    os_code code = os_lmdb_open(store->path, &os_store_kind, 0, &store->map, failure);
    store->rows = (os_lmdb_rows){store->map, &store->damaged_rows};
    return code;
}

/* Closes the map, if it is open, and deletes it; what was loaded by it is let go. */
static os_code wipe_map(os_store *store, os_failure *failure) {
    const os_env *env = store->env;
    os_lmdb_close(store->map);
    store->map = NULL;
    while (store->segment_count > 0)
        os_store_release_segment(store, store->segments[--store->segment_count]);
    if (env->unlinkat(env->context, store->directory, "data.mdb", 0) < 0 && errno != ENOENT)
        return os_fail_errno(failure, errno, "store: %s/data.mdb: %s", store->path, strerror(errno));
    if (env->unlinkat(env->context, store->directory, "lock.mdb", 0) < 0 && errno != ENOENT)
        return os_fail_errno(failure, errno, "store: %s/lock.mdb: %s", store->path, strerror(errno));
    return open_map(store, failure);
}

static void choose_active(os_store *store) {
    for (size_t at = 0; at < store->segment_count; at++) {
        segment *it = store->segments[at];
        if (!it->sealed && it->bytes < store->segment_size && store->segment_size - it->bytes > store->segment_size / 8)
            store->active[it->pinned] = it;
    }
}

os_code os_store_load(os_store *store, os_failure *out) {
    numbers files = {0};
    os_failure own = {0}, *failure = out != NULL ? out : &own;
    os_code code = list_files(store, &files, failure);
    if (code == OS_OK && (code = open_map(store, failure)) == OS_OK)
        code = load_map(store, &files, failure);
    if (code == OS_CORRUPT || (code == OS_SYSTEM && failure->error == EIO)) {
        os_store_note(store, "%s; the map is made again", failure->message);
        code = wipe_map(store, failure);
        if (code == OS_OK)
            code = OS_MISSING;
    }
    if (code == OS_MISSING)
        code = rebuild(store, &files, failure);
    free(files.list);
    if (code == OS_OK)
        choose_active(store);
    return code;
}
