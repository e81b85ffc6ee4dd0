#include "os_frame_cache.h"

#include <string.h>

void os_frame_cache_init(os_frame_cache *cache, unsigned slots) {
    memset(cache, 0, sizeof *cache);
    cache->slots = slots;
    pthread_mutex_init(&cache->lock, NULL);
}

void os_frame_cache_destroy(os_frame_cache *cache, const os_env *env) {
    for (unsigned at = 0; at < cache->slots; at++)
        if (cache->slot[at].data != NULL)
            env->release(env->context, cache->slot[at].data);
    pthread_mutex_destroy(&cache->lock);
}

static os_frame_slot *find(os_frame_cache *cache, uint64_t image, uint32_t frame) {
    for (unsigned at = 0; at < cache->slots; at++)
        if (cache->slot[at].image == image && cache->slot[at].frame == frame)
            return &cache->slot[at];
    return NULL;
}

static void use(os_frame_cache *cache, os_frame_slot *slot) {
    slot->users++;
    slot->stamp = ++cache->clock;
}

os_frame_slot *os_frame_cache_get(os_frame_cache *cache, uint64_t image, uint32_t frame) {
    pthread_mutex_lock(&cache->lock);
    os_frame_slot *slot = find(cache, image, frame);
    if (slot != NULL)
        use(cache, slot);
    pthread_mutex_unlock(&cache->lock);
    return slot;
}

os_frame_slot *os_frame_cache_put(os_frame_cache *cache, uint64_t image, uint32_t frame, uint8_t **data) {
    pthread_mutex_lock(&cache->lock);
    os_frame_slot *slot = find(cache, image, frame); /* somebody was faster: the same bytes, keep theirs */
    if (slot == NULL) {
        for (unsigned at = 0; at < cache->slots; at++) {
            os_frame_slot *other = &cache->slot[at];
            if (other->users == 0 && (slot == NULL || other->stamp < slot->stamp))
                slot = other;
        }
        if (slot != NULL) {
            uint8_t *old = slot->data;
            slot->data = *data;
            *data = old;
            slot->image = image;
            slot->frame = frame;
        }
    }
    if (slot != NULL)
        use(cache, slot);
    pthread_mutex_unlock(&cache->lock);
    return slot;
}

void os_frame_cache_release(os_frame_cache *cache, os_frame_slot *slot, int drop) {
    pthread_mutex_lock(&cache->lock);
    slot->users--;
    if (drop) {
        slot->image = 0;
        slot->stamp = 0;
    }
    pthread_mutex_unlock(&cache->lock);
}

void os_frame_cache_forget(os_frame_cache *cache, uint64_t image) {
    pthread_mutex_lock(&cache->lock);
    for (unsigned at = 0; at < cache->slots; at++)
        if (cache->slot[at].image == image)
            cache->slot[at].image = cache->slot[at].stamp = 0;
    pthread_mutex_unlock(&cache->lock);
}
