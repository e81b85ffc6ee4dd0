/* The writer's list of segments: readers borrow from it, only the writer changes it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "os_store_parts.h"

void os_store_segment_name(uint32_t number, char out[16]) {
    snprintf(out, 16, "seg-%08x", number);
}

segment *os_store_make_segment(os_store *store, uint32_t number, int fd, bool pinned) {
    segment *it = store->env->allocate(store->env->context, sizeof *it);
    if (it == NULL) {
        store->env->close(store->env->context, fd);
        return NULL;
    }
    memset(it, 0, sizeof *it);
    it->number = number;
    it->pinned = pinned;
    it->fd = fd;
    atomic_store(&it->references, 1);
    return it;
}

bool os_store_add_segment(os_store *store, segment *it) {
    pthread_rwlock_wrlock(&store->segments_lock);
    bool room = store->segment_count < store->segment_room;
    if (!room) {
        size_t count = 2 * store->segment_room + 16;
        segment **grown = realloc(store->segments, count * sizeof *grown);
        if (grown != NULL) {
            store->segments = grown;
            store->segment_room = count;
            room = true;
        }
    }
    if (room)
        store->segments[store->segment_count++] = it; /* numbers only grow */
    pthread_rwlock_unlock(&store->segments_lock);
    return room;
}

void os_store_release_segment(os_store *store, segment *it) {
    if (atomic_fetch_sub(&it->references, 1) != 1)
        return;
    store->env->close(store->env->context, it->fd);
    store->env->release(store->env->context, it);
}

segment *os_store_find_segment(os_store *store, uint32_t number) {
    segment *found = NULL;
    pthread_rwlock_rdlock(&store->segments_lock);
    for (size_t low = 0, high = store->segment_count; low < high && found == NULL;) {
        size_t middle = low + (high - low) / 2;
        segment *it = store->segments[middle];
        if (it->number == number)
            found = it;
        else if (it->number < number)
            low = middle + 1;
        else
            high = middle;
    }
    if (found != NULL)
        atomic_fetch_add(&found->references, 1);
    pthread_rwlock_unlock(&store->segments_lock);
    return found;
}

void os_store_use_segment(os_store *store, segment *it) {
    atomic_store(&it->used, atomic_fetch_add(&store->clock, 1) + 1);
}

/* The list does not change under the writer, so no lock. */
segment *os_store_own_segment(os_store *store, uint32_t number) {
    for (size_t at = store->segment_count; at-- > 0;)
        if (store->segments[at]->number == number)
            return store->segments[at];
    return NULL;
}

void os_store_unlink_segment(os_store *store, uint32_t number) {
    char name[16];
    os_store_segment_name(number, name);
    if (store->env->unlinkat(store->env->context, store->directory, name, 0) < 0 && errno != ENOENT)
        os_store_note(store, "%s could not be deleted: %s", name, strerror(errno)); /* the next open tries again */
}

static void stop_appending(os_store *store, const segment *it) {
    for (unsigned stream = 0; stream < STREAMS; stream++)
        if (store->active[stream] == it)
            store->active[stream] = NULL;
}

void os_store_doom_segment(os_store *store, segment *it) {
    it->going = true;
    stop_appending(store, it);
}

void os_store_remove_segments(os_store *store, bool (*wanted)(const segment *it)) {
    for (size_t at = 0; at < store->segment_count;) {
        segment *it = store->segments[at];
        if (!wanted(it)) {
            at++;
            continue;
        }
        pthread_rwlock_wrlock(&store->segments_lock);
        memmove(&store->segments[at], &store->segments[at + 1],
                (--store->segment_count - at) * sizeof *store->segments);
        pthread_rwlock_unlock(&store->segments_lock);
        stop_appending(store, it);
        os_store_unlink_segment(store, it->number);
        os_store_release_segment(store, it);
    }
}
