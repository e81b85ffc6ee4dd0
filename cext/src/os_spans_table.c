/* The table of spans: by blob and place, in line for a slot, and in the slots. The lock is held throughout. */
#include <string.h>

#include "os_spans_parts.h"

uint64_t os_spans_now(const os_spans *spans) {
    return spans->env->monotonic_ns(spans->env->context);
}

static os_span **bucket_of(os_spans *spans, const uint8_t *digest, uint64_t index) {
    uint64_t key;
    memcpy(&key, digest, sizeof key);
    return &spans->bucket[(key ^ index) % OS_SPANS_BUCKETS];
}

/* How well a span of the same place serves an image: not at all, as long as nothing speaks against it, well, best. */
static unsigned fitness(const os_span *it, const os_blob *blob) {
    if (it->viewer != 0)
        return it->viewer == blob->viewer ? 3 : 0;
    if (it->doomed)
        return 0;
    if (it->blob.origin == blob->origin)
        return 2;
    return it->state == HERE || it->cause[0] == '\0' ? 1 : 0; /* what is in trouble need not concern another origin */
}

os_span *os_spans_find(os_spans *spans, const os_blob *blob, uint64_t index) {
    os_span *best = NULL;
    unsigned most = 0;
    for (os_span *it = *bucket_of(spans, blob->digest, index); it != NULL; it = it->chain) {
        if (it->index != index || it->blob.size != blob->size || memcmp(it->blob.digest, blob->digest, OS_ID_SIZE) != 0)
            continue;
        unsigned how = fitness(it, blob);
        if (how > most) {
            most = how;
            best = it;
        }
    }
    return best;
}

void os_spans_enqueue(os_spans *spans, os_span *it, bool in_front) {
    int kind = it->prefetch;
    it->state = QUEUED;
    it->next = in_front ? spans->first[kind] : NULL;
    it->previous = in_front ? NULL : spans->last[kind];
    *(it->next != NULL ? &it->next->previous : &spans->last[kind]) = it;
    *(it->previous != NULL ? &it->previous->next : &spans->first[kind]) = it;
    spans->count.queued++;
}

void os_spans_dequeue(os_spans *spans, os_span *it) {
    int kind = it->prefetch;
    *(it->next != NULL ? &it->next->previous : &spans->last[kind]) = it->previous;
    *(it->previous != NULL ? &it->previous->next : &spans->first[kind]) = it->next;
    spans->count.queued--;
}

/* Out of the table; its slot is free. */
void os_spans_forget(os_spans *spans, os_span *it) {
    os_span **place = bucket_of(spans, it->blob.digest, it->index);
    while (*place != it)
        place = &(*place)->chain;
    *place = it->chain;
    if (it->state == QUEUED)
        os_spans_dequeue(spans, it);
    else
        spans->slot[it->slot] = NULL;
    it->state = ABSENT;
    it->chain = spans->unused;
    spans->unused = it;
}

bool os_spans_may_go(const os_span *it, uint64_t now) {
    return it != NULL && it->state == HERE && it->users == 0 && it->held <= now;
}

/* A prefetch that came or comes, and was not read so far. */
static bool is_ahead(const os_span *it, uint64_t now) {
    return it != NULL && it->prefetch && (it->state == FLYING || it->used + OS_SPANS_HOLD_NS > now);
}

uint32_t os_spans_free_slot(os_spans *spans, uint64_t now, bool prefetch) {
    uint32_t best = OS_SLOTS;
    unsigned ahead = 0;
    for (uint32_t at = 0; at < OS_SLOTS && prefetch; at++)
        ahead += is_ahead(spans->slot[at], now);
    if (ahead >= OS_SLOTS_AHEAD)
        return OS_SLOTS;
    for (uint32_t at = 0; at < OS_SLOTS; at++) {
        os_span *it = spans->slot[at];
        if (it == NULL)
            return at;
        if (!os_spans_may_go(it, now) || (prefetch && is_ahead(it, now)))
            continue;
        if (best == OS_SLOTS || it->used < spans->slot[best]->used)
            best = at;
    }
    if (best < OS_SLOTS) {
        spans->count.evicted++;
        os_spans_forget(spans, spans->slot[best]);
    }
    return best;
}

os_span *os_spans_new(os_spans *spans, const os_blob *blob, uint64_t index, uint64_t now) {
    os_span *it = spans->unused;
    if (it == NULL) {
        uint32_t slot = os_spans_free_slot(spans, now, false);
        it = slot < OS_SLOTS ? spans->unused : NULL;
        if (it == NULL)
            return NULL;
    }
    spans->unused = it->chain;
    uint64_t start = index * OS_FETCH_SPAN, left = blob->size - start;
    *it = (os_span){.blob = *blob, .index = index, .length = left < OS_FETCH_SPAN ? (uint32_t)left : OS_FETCH_SPAN};
    os_span **place = bucket_of(spans, blob->digest, index);
    it->chain = *place;
    *place = it;
    return it;
}
