/* Memory of an ingest: growing columns, and the set of ids met in it, which is open addressing since ids are uniform.
 */
#include "os_ingest_parts.h"

#include <string.h>

os_code os_ingest_no_memory(os_failure *failure) {
    return os_fail(failure, OS_MEMORY, "ingest: out of memory");
}

void *os_ingest_allocate(const os_ingest *ingest, size_t size) {
    return ingest->options.env->allocate(ingest->options.env->context, size);
}

void *os_ingest_reallocate(const os_ingest *ingest, void *memory, size_t size) {
    return ingest->options.env->reallocate(ingest->options.env->context, memory, size);
}

void os_ingest_release(const os_ingest *ingest, void *memory) {
    if (memory)
        ingest->options.env->release(ingest->options.env->context, memory);
}

static os_code grow(const os_ingest *ingest, os_ingest_column *to, size_t more, os_failure *failure) {
    if (to->room - to->size >= more)
        return OS_OK;
    size_t room = to->room ? to->room : 4096;
    while (room - to->size < more) {
        if (room > SIZE_MAX / 2)
            return os_ingest_no_memory(failure);
        room *= 2;
    }
    uint8_t *data = os_ingest_reallocate(ingest, to->data, room);
    if (!data)
        return os_ingest_no_memory(failure);
    to->data = data;
    to->room = room;
    return OS_OK;
}

os_code os_ingest_append(const os_ingest *ingest, os_ingest_column *to, const void *data, size_t size,
                         os_failure *failure) {
    os_code code = grow(ingest, to, size, failure);
    if (code == OS_OK) {
        memcpy(to->data + to->size, data, size);
        to->size += size;
    }
    return code;
}

static uint8_t *seen_slot(uint8_t *slots, size_t count, const uint8_t *id) {
    static const uint8_t EMPTY[OS_ID_SIZE];
    uint64_t at;
    memcpy(&at, id, sizeof at);
    for (;; at++) {
        uint8_t *slot = slots + (at & (count - 1)) * OS_ID_SIZE;
        if (!memcmp(slot, id, OS_ID_SIZE) || !memcmp(slot, EMPTY, OS_ID_SIZE))
            return slot;
    }
}

/* *fresh: the id was not in the set, and is now. An id of 32 zero bytes is the id of no content that can be found. */
os_code os_ingest_seen_add(os_ingest *ingest, const uint8_t *id, bool *fresh, os_failure *failure) {
    size_t count = ingest->seen.room / OS_ID_SIZE;
    if (2 * (ingest->seen_count + 1) > count) {
        size_t bigger = count ? 2 * count : 4096;
        uint8_t *slots = os_ingest_allocate(ingest, bigger * OS_ID_SIZE);
        if (!slots)
            return os_ingest_no_memory(failure);
        memset(slots, 0, bigger * OS_ID_SIZE);
        for (size_t at = 0; at < count; at++) {
            const uint8_t *old = ingest->seen.data + at * OS_ID_SIZE;
            memcpy(seen_slot(slots, bigger, old), old, OS_ID_SIZE);
        }
        os_ingest_release(ingest, ingest->seen.data);
        ingest->seen.data = slots;
        ingest->seen.room = bigger * OS_ID_SIZE;
        count = bigger;
    }
    uint8_t *slot = seen_slot(ingest->seen.data, count, id);
    *fresh = memcmp(slot, id, OS_ID_SIZE) != 0;
    if (*fresh) {
        memcpy(slot, id, OS_ID_SIZE);
        ingest->seen_count++;
    }
    return OS_OK;
}
