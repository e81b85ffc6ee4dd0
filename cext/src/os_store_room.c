/* Which segments go when there is no room: the one that was used longest ago, pinned ones (working sets of profiles)
 * only when no other is left. The unit is the segment because that is what a disk gives back in one call; nothing is
 * ever compacted. */
#include <errno.h>
#include <string.h>

#include "os_store_parts.h"

/* How many times between an empty and a full quota the room is looked at. */
enum { LOOKS = 64 };

static segment *least_used(const os_store *store) {
    segment *found = NULL;
    for (size_t at = 0; at < store->segment_count; at++) {
        segment *it = store->segments[at];
        if (it->going)
            continue;
        if (found == NULL || it->pinned < found->pinned ||
            (it->pinned == found->pinned && atomic_load(&it->used) < atomic_load(&found->used)))
            found = it;
    }
    return found;
}

/* Bytes that have to go before size more may come; 0: none. */
static uint64_t excess(uint64_t stored, uint64_t quota, uint64_t available, uint64_t floor, uint64_t size) {
    uint64_t over = quota > 0 && stored + size > quota ? stored + size - quota : 0;
    uint64_t under = floor > 0 && floor + size > available ? floor + size - available : 0;
    return over > under ? over : under;
}

/* How much there would be to get by dropping everything. */
static uint64_t sum_segments(const os_store *store, bool going) {
    uint64_t sum = 0;
    for (size_t at = 0; at < store->segment_count; at++)
        if (store->segments[at]->going == going)
            sum += store->segments[at]->written;
    return sum;
}

os_code os_store_take_room(os_store *store, uint32_t size, os_failure *failure) {
    const os_env *env = store->env;
    uint64_t available = 0, step = store->quota / LOOKS;
    if (store->quota == 0 && store->floor == 0)
        return OS_OK;
    if (store->allowance >= size) {
        store->allowance -= size;
        return OS_OK;
    }
    if (store->floor > 0) {
        if (env->free_bytes(env->context, store->directory, &available) < 0)
            return os_fail_errno(failure, errno, "store: free space: %s", strerror(errno));
        available += sum_segments(store, true); /* theirs comes with the next commit */
    }
    if (step < size)
        step = size;
    uint64_t stored = sum_segments(store, false);
    uint64_t over = excess(stored, store->quota, available, store->floor, step);
    if (over > stored) {
        step = size;
        over = excess(stored, store->quota, available, store->floor, step);
    }
    store->allowance = 0;
    if (over > stored) /* dropping everything would help nobody */
        return os_fail(failure, OS_LIMIT, "store: full: %llu bytes over its quota or the free space to keep",
                       (unsigned long long)(over - stored));
    for (segment *it; over > 0 && (it = least_used(store)) != NULL;) {
        over = it->written < over ? over - it->written : 0;
        os_store_doom_segment(store, it);
        atomic_fetch_add(&store->evicted, 1);
    }
    store->allowance = step - size;
    return OS_OK;
}
