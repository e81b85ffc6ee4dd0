#include "os_id_set.h"

#include <string.h>

#define FIRST_ROOM 4096u

static uint8_t *slot_of(uint8_t *slots, size_t room, const uint8_t *id) {
    static const uint8_t EMPTY[OS_ID_SIZE];
    uint64_t at;
    memcpy(&at, id, sizeof at);
    for (;; at++) {
        uint8_t *slot = slots + (at & (room - 1)) * OS_ID_SIZE;
        if (!memcmp(slot, id, OS_ID_SIZE) || !memcmp(slot, EMPTY, OS_ID_SIZE))
            return slot;
    }
}

static bool grow(os_id_set *set, const os_env *env) {
    size_t room = set->room ? 2 * set->room : FIRST_ROOM;
    uint8_t *slots = env->allocate(env->context, room * OS_ID_SIZE);
    if (!slots)
        return false;
    memset(slots, 0, room * OS_ID_SIZE);
    for (size_t at = 0; at < set->room; at++) {
        const uint8_t *old = set->slots + at * OS_ID_SIZE;
        memcpy(slot_of(slots, room, old), old, OS_ID_SIZE);
    }
    if (set->slots)
        env->release(env->context, set->slots);
    set->slots = slots;
    set->room = room;
    return true;
}

bool os_id_set_add(os_id_set *set, const os_env *env, const uint8_t *id, bool *fresh) {
    if (2 * (set->count + 1) > set->room && !grow(set, env))
        return false;
    uint8_t *slot = slot_of(set->slots, set->room, id);
    *fresh = memcmp(slot, id, OS_ID_SIZE) != 0;
    if (*fresh) {
        memcpy(slot, id, OS_ID_SIZE);
        set->count++;
    }
    return true;
}

void os_id_set_free(os_id_set *set, const os_env *env) {
    if (set->slots)
        env->release(env->context, set->slots);
    *set = (os_id_set){0};
}
