/* The last decoded frames, shared by the threads of a server: the pieces of a chunk that two requests share, and the
 * small files of one frame. Buffers are swapped in and out, never copied. Any thread. */
#ifndef OS_FRAME_CACHE_H
#define OS_FRAME_CACHE_H

#include <pthread.h>
#include <stdint.h>

#include "os_env.h"
#include "os_limits.h"
#include "os_result.h"

#define OS_FRAME_CACHE_SLOTS 64u /* of OS_FRAME_MAX bytes: 16 MiB; more than there are threads */

typedef struct os_frame_slot {
    uint8_t *data;  /* owned, NULL until first used; its bytes stay while users > 0 */
    uint64_t image; /* 0: empty */
    uint32_t frame, users;
    uint64_t stamp; /* of the last use */
} os_frame_slot;

typedef struct os_frame_cache {
    pthread_mutex_t lock; /* a leaf; guards everything below but the bytes */
    os_frame_slot slot[OS_FRAME_CACHE_SLOTS];
    unsigned slots; /* immutable: those that are used */
    uint64_t clock;
} os_frame_cache;

/* slots: at most OS_FRAME_CACHE_SLOTS, of buffers whose size is the caller's. */
void os_frame_cache_init(os_frame_cache *cache, unsigned slots);
void os_frame_cache_destroy(os_frame_cache *cache, const os_env *env);

/* The slot of a frame, to be given back, or NULL. */
os_frame_slot *os_frame_cache_get(os_frame_cache *cache, uint64_t image, uint32_t frame);
/* Puts *data (owned by the caller) in and gives *data another buffer of that size, or NULL: then
 * the caller has to get itself one. Returns the slot, to be given back; NULL, and nothing changed, if all are in use.
 */
os_frame_slot *os_frame_cache_put(os_frame_cache *cache, uint64_t image, uint32_t frame, uint8_t **data);
/* drop: the bytes turned out wrong, nobody is to find them again. */
void os_frame_cache_release(os_frame_cache *cache, os_frame_slot *slot, int drop);
/* Forgets the frames of an image that is gone. */
void os_frame_cache_forget(os_frame_cache *cache, uint64_t image);

#endif
