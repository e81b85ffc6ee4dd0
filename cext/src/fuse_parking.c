#include "fuse_parking.h"

#include <string.h>

void os_ask_begin(os_ask *ask) {
    ask->start = ask->end = 0;
    ask->anywhere = false;
}

void os_ask_waits(os_ask *ask, const uint8_t *pack, uint64_t start, uint64_t end) {
    bool first = ask->end == 0;
    if (pack == NULL || (!first && memcmp(ask->pack, pack, OS_ID_SIZE) != 0)) {
        ask->anywhere = true;
        return;
    }
    memcpy(ask->pack, pack, OS_ID_SIZE);
    ask->start = first || start < ask->start ? start : ask->start;
    ask->end = end > ask->end ? end : ask->end;
}

bool os_parking_add(os_parking *parking, const os_ask *ask, const os_env *env) {
    os_ask *kept = env->allocate(env->context, sizeof *kept);
    if (kept == NULL)
        return false;
    *kept = *ask;
    for (unsigned at = 0; at < OS_PARKING_INTERRUPTED; at++) {
        if (ask->unique != 0 && parking->interrupted[at] == ask->unique) {
            parking->interrupted[at] = 0;
            kept->interrupted = true;
        }
    }
    kept->next = parking->first;
    parking->first = kept;
    parking->count++;
    parking->frames += kept->frames;
    return true;
}

os_ask *os_parking_due(os_parking *parking, uint64_t now, unsigned most) {
    os_ask *due = NULL;
    for (os_ask **place = &parking->first; *place != NULL && most > 0;) {
        os_ask *ask = *place;
        if (!ask->ready && (now == 0 || (!ask->interrupted && ask->deadline > now))) {
            place = &ask->next;
            continue;
        }
        *place = ask->next;
        parking->count--;
        parking->frames -= ask->frames;
        most--;
        ask->next = due;
        due = ask;
    }
    return due;
}

os_ask *os_parking_all(os_parking *parking) {
    os_ask *all = parking->first;
    parking->first = NULL;
    parking->count = parking->frames = 0;
    return all;
}

void os_parking_wake_lookups(os_parking *parking) {
    for (os_ask *ask = parking->first; ask != NULL; ask = ask->next)
        if (ask->lookup)
            ask->ready = true;
}

unsigned os_parking_wake_reads(os_parking *parking, const uint8_t *pack, uint64_t start, uint64_t end) {
    unsigned count = 0;
    for (os_ask *ask = parking->first; ask != NULL; ask = ask->next) {
        bool meant = pack == NULL || ask->anywhere ||
                     (memcmp(ask->pack, pack, OS_ID_SIZE) == 0 && ask->start < end && start < ask->end);
        if (!ask->lookup && meant) {
            ask->ready = true;
            count++;
        }
    }
    return count;
}

void os_parking_wake_frames(os_parking *parking) {
    for (os_ask *ask = parking->first; ask != NULL && parking->frames > 0; ask = ask->next)
        if (ask->frames)
            ask->ready = true;
}

void os_parking_interrupt(os_parking *parking, uint64_t unique) {
    for (os_ask *ask = parking->first; ask != NULL; ask = ask->next) {
        if (ask->unique == unique) {
            ask->interrupted = true;
            return;
        }
    }
    /* On its way into the parking, or answered by now. */
    parking->interrupted[parking->next_interrupted++ % OS_PARKING_INTERRUPTED] = unique;
}

void os_parking_refuse(os_parking *parking, const os_ask *ask, uint64_t until) {
    os_refused *place = &parking->refused[parking->next_refused++ % OS_PARKING_REFUSED];
    *place = (os_refused){ask->node, ask->offset, ask->offset + ask->size, until, ask->lookup};
}

bool os_parking_refuses(const os_parking *parking, const os_ask *ask, uint64_t now) {
    for (unsigned at = 0; at < OS_PARKING_REFUSED; at++) {
        const os_refused *place = &parking->refused[at];
        if (place->until <= now || place->node != ask->node || place->lookup != ask->lookup)
            continue;
        if (ask->lookup || (ask->offset < place->end && place->start < ask->offset + ask->size))
            return true;
    }
    return false;
}
