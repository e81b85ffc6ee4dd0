/* The writer thread; os_store.c has the essay. Everything here runs in it, or after it has ended. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "os_store_parts.h"

static bool is_going(const segment *it) {
    return it->going;
}

static bool never_committed(const segment *it) {
    return it->bytes == 0;
}

/* ---------------------------------------------------------------- appending */

static os_code write_all(os_store *store, int fd, const uint8_t *data, size_t size, uint64_t offset,
                         os_failure *failure) {
    const os_env *env = store->env;
    for (size_t done = 0; done < size;) {
        ssize_t wrote = env->pwrite(env->context, fd, data + done, size - done, (off_t)(offset + done));
        if (wrote == 0 || (wrote < 0 && errno != EINTR)) {
            int error = wrote == 0 ? EIO : errno;
            return os_fail_errno(failure, error, "store: write: %s", strerror(error));
        }
        if (wrote > 0)
            done += (size_t)wrote;
    }
    return OS_OK;
}

static os_code new_segment(os_store *store, bool pinned, os_failure *failure) {
    const os_env *env = store->env;
    uint32_t number = store->next_number;
    uint8_t header[OS_SEGMENT_HEADER];
    char name[16];
    os_store_segment_name(number, name);
    if (number == UINT32_MAX)
        return os_fail(failure, OS_LIMIT, "store: out of segment numbers");
    int fd =
        env->openat(env->context, store->directory, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return os_fail_errno(failure, errno, "store: %s: %s", name, strerror(errno));
    store->next_number++;
    store->directory_dirty = true;
    segment *it = os_store_make_segment(store, number, fd, pinned);
    if (it == NULL) {
        os_store_unlink_segment(store, number);
        return os_fail(failure, OS_MEMORY, "store: no memory");
    }
    os_segment_header_write(header, number, pinned);
    os_code code = write_all(store, fd, header, sizeof header, 0, failure);
    if (code == OS_OK && !os_store_add_segment(store, it))
        code = os_fail(failure, OS_MEMORY, "store: no memory");
    if (code != OS_OK) {
        os_store_unlink_segment(store, number);
        os_store_release_segment(store, it);
        return code;
    }
    it->written = OS_SEGMENT_HEADER;
    store->active[pinned] = it;
    return OS_OK;
}

static os_code append(os_store *store, job *it, os_failure *failure) {
    uint32_t size = OS_ENTRY_HEADER + it->entry.stored;
    os_code room = os_store_take_room(store, size, failure);
    if (room != OS_OK)
        return room;
    segment *to = store->active[it->pinned];
    if (to != NULL && (uint64_t)to->written + size > store->segment_size && to->written > OS_SEGMENT_HEADER)
        store->active[it->pinned] = to = NULL;
    if (to == NULL) {
        os_code code = new_segment(store, it->pinned, failure);
        if (code != OS_OK)
            return code;
        to = store->active[it->pinned];
    }
    it->entry.segment = to->number;
    it->entry.offset = to->written;
    os_entry_write(it->data, &it->entry);
    to->dirty = true;
    os_code code = write_all(store, to->fd, it->data, size, to->written, failure);
    if (code != OS_OK) {
        if (failure->error != ENOSPC && failure->error != EDQUOT) /* else it goes on from here when there is space */
            store->active[it->pinned] = NULL;
        return code;
    }
    to->written += size;
    os_store_use_segment(store, to);
    it->done = true;
    return OS_OK;
}

/* After a failure nothing more of this batch is tried: it would most likely fail as well. */
static void append_all(os_store *store, job *batch) {
    os_failure failure = {0};
    os_code code = OS_OK;
    for (job *it = batch; it != NULL; it = it->next)
        if (it->kind == JOB_PUT && code == OS_OK)
            code = atomic_load(&store->broken)
                       ? os_fail(&failure, OS_CLOSED, "store: its map failed, want the store opened again")
                       : append(store, it, &failure);
    if (code != OS_OK)
        os_store_remember(store, &failure);
}

/* What the header says beside its number is known, so it can be made again; a sync that fails drops the segment. */
static void write_headers(os_store *store, const job *batch) {
    for (const job *it = batch; it != NULL; it = it->next) {
        segment *to = it->kind == JOB_HEADER ? os_store_own_segment(store, it->entry.segment) : NULL;
        uint8_t header[OS_SEGMENT_HEADER];
        os_failure failure;
        if (to == NULL)
            continue;
        os_segment_header_write(header, to->number, to->pinned);
        if (write_all(store, to->fd, header, sizeof header, 0, &failure) == OS_OK)
            to->dirty = true;
        else
            os_store_remember(store, &failure);
    }
}

static void sync_all(os_store *store) {
    const os_env *env = store->env;
    int names = store->directory_dirty && env->fdatasync(env->context, store->directory) < 0 ? errno : 0;
    store->directory_dirty = false;
    for (size_t at = 0; at < store->segment_count; at++) {
        segment *it = store->segments[at];
        os_failure failure;
        if (!it->dirty || it->going)
            continue;
        it->dirty = false;
        int error = env->fdatasync(env->context, it->fd) < 0 ? errno : never_committed(it) ? names : 0;
        if (error == 0)
            continue;
        os_fail_errno(&failure, error, "store: segment %08x is dropped: sync: %s", it->number, strerror(error));
        os_store_doom_segment(store, it);
        os_store_remember(store, &failure);
    }
}

/* ---------------------------------------------------------------- committing */

static int commit_put(os_store *store, MDB_txn *transaction, const job *it) {
    os_entry there;
    const segment *in = os_store_own_segment(store, it->entry.segment);
    if (!it->done || in == NULL || in->going)
        return 0;
    int code = os_store_row_get(store, transaction, it->entry.id, &there);
    if (code == 0) {
        const segment *old = os_store_own_segment(store, there.segment);
        bool better = there.codec == OS_CODEC_ZSTD && it->entry.codec == OS_CODEC_RAW;
        if (old != NULL && !old->going && there.algorithm == it->entry.algorithm && !better)
            return 0; /* somebody put it a moment before; this copy is dead weight */
    }
    return code != 0 && code != MDB_NOTFOUND ? code : os_store_row_put(store, transaction, &it->entry);
}

static int commit_forget(os_store *store, MDB_txn *transaction, const job *it) {
    os_entry there;
    if (it->entry.segment != 0) {
        int code = os_store_row_get(store, transaction, it->entry.id, &there);
        if (code != 0)
            return code == MDB_NOTFOUND ? 0 : code;
        if (there.segment != it->entry.segment || there.offset != it->entry.offset)
            return 0; /* put again meanwhile */
    }
    return os_store_row_delete(store, transaction, it->entry.id);
}

static bool number_is_going(void *context, uint32_t number) {
    const segment *it = os_store_own_segment(context, number);
    return it == NULL || it->going;
}

typedef struct batch {
    os_store *store;
    job *jobs;
} batch;

static int commit_changes(void *context, MDB_txn *transaction) {
    const batch *all = context;
    os_store *store = all->store;
    int code = 0;
    bool any_going = store->stale;
    for (size_t at = 0; code == 0 && at < store->segment_count; at++) {
        segment *it = store->segments[at];
        uint64_t used = atomic_load(&it->used);
        if (it->going) {
            any_going |= !never_committed(it);
        } else if (it->written != it->bytes || used != atomic_load(&it->saved_used)) {
            code = os_store_segment_put(store, transaction, it, it->written, used);
            atomic_store(&it->saved_used, used);
        }
    }
    if (code == 0 && any_going)
        code = os_store_segments_delete(store, transaction, number_is_going, store);
    for (const job *it = all->jobs; code == 0 && it != NULL; it = it->next)
        if (it->kind == JOB_PUT)
            code = commit_put(store, transaction, it);
        else if (it->kind == JOB_FORGET)
            code = commit_forget(store, transaction, it);
    return code != 0 ? code : os_store_number_put(store, transaction, "next", store->next_number);
}

static void committed(os_store *store) {
    pthread_rwlock_wrlock(&store->segments_lock);
    for (size_t at = 0; at < store->segment_count; at++)
        if (!store->segments[at]->going)
            store->segments[at]->bytes = store->segments[at]->written;
    store->stale = false;
    pthread_rwlock_unlock(&store->segments_lock);
    os_store_remove_segments(store, is_going);
}

static void give_up_map(os_store *store) {
    atomic_store(&store->broken, true);
    if (store->env->unlinkat(store->env->context, store->directory, "data.mdb", 0) < 0 && errno != ENOENT)
        os_store_note(store, "data.mdb could not be deleted: %s", strerror(errno));
    os_store_note(store, "the map failed; it is made again when the store is next opened");
}

/* Segments that were written to are closed: what was appended stands after their committed ends, known to nobody. */
static void not_committed(os_store *store, const os_failure *failure) {
    for (unsigned stream = 0; stream < STREAMS; stream++)
        if (store->active[stream] != NULL && store->active[stream]->written != store->active[stream]->bytes)
            store->active[stream] = NULL;
    for (size_t at = 0; at < store->segment_count; at++)
        if (!never_committed(store->segments[at]))
            store->segments[at]->written = store->segments[at]->bytes;
    os_store_remove_segments(store, never_committed);
    bool full = failure->code == OS_SYSTEM && (failure->error == ENOSPC || failure->error == EDQUOT);
    if (full) { /* the disk is so full that its map has no room to say what goes: then it goes first */
        os_store_remove_segments(store, is_going);
        store->stale = true;
    }
    if (full || failure->code == OS_LIMIT || failure->code == OS_MEMORY)
        return; /* nothing was written that counts */
    give_up_map(store);
}

static bool anything_to_commit(os_store *store, const job *jobs) {
    if (atomic_load(&store->broken))
        return false;
    for (const job *it = jobs; it != NULL; it = it->next)
        if (it->kind == JOB_FORGET)
            return true;
    for (size_t at = 0; at < store->segment_count; at++)
        if (store->segments[at]->going || store->segments[at]->written != store->segments[at]->bytes ||
            (jobs == NULL && atomic_load(&store->segments[at]->used) != atomic_load(&store->segments[at]->saved_used)))
            return true;
    return false;
}

/* jobs: NULL at the end, when only the times of last use are left to be written. */
static void commit(os_store *store, job *jobs) {
    os_failure failure = {0};
    batch all = {store, jobs};
    if (!anything_to_commit(store, jobs))
        return;
    if (os_lmdb_write(store->map, commit_changes, &all, &failure) == OS_OK)
        committed(store);
    else {
        for (job *it = jobs; it != NULL; it = it->next)
            it->done = false;
        os_store_remember(store, &failure);
        not_committed(store, &failure);
    }
}

static void mark_drops(os_store *store, const job *batch) {
    for (const job *it = batch; it != NULL; it = it->next) {
        segment *gone = it->kind == JOB_DROP ? os_store_own_segment(store, it->entry.segment) : NULL;
        if (gone == NULL)
            continue;
        os_store_doom_segment(store, gone); /* before anything is appended: this batch does not go down with it */
    }
}

static void count_lost(os_store *store, const job *batch) {
    for (const job *it = batch; it != NULL; it = it->next)
        if (it->kind == JOB_PUT && (!it->done || os_store_own_segment(store, it->entry.segment) == NULL))
            atomic_fetch_add(&store->lost, 1);
}

static bool says_give_up(const job *batch) {
    for (; batch != NULL; batch = batch->next)
        if (batch->kind == JOB_GIVE_UP)
            return true;
    return false;
}

static void run_batch(os_store *store, job *batch) {
    if (says_give_up(batch))
        give_up_map(store);
    mark_drops(store, batch);
    append_all(store, batch);
    write_headers(store, batch);
    sync_all(store);
    commit(store, batch);
    count_lost(store, batch);
}

/* ---------------------------------------------------------------- the thread */

void *os_store_writer_main(void *context) {
    os_store *store = context;
    for (job *batch; (batch = os_store_take_batch(store)) != NULL;) {
        run_batch(store, batch);
        os_store_settle(store, batch);
    }
    return NULL;
}

void os_store_commit_use(os_store *store) {
    commit(store, NULL);
}
