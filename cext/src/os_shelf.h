/* The local store as a reader of packs uses it: asked first, and given what had to be decoded twice. A chunk is asked
 * for by a row of the tables of an image that is mounted here, and whoever serves other trust domains has another
 * store. */
#ifndef OS_SHELF_H
#define OS_SHELF_H

#include "os_store.h"

/* Whether exactly length verified bytes of the chunk are in out now. store may be NULL: it has nothing. Whatever is
 * wrong with the store is its own affair: the packs are there. */
bool os_shelf_get(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm, uint8_t *out, size_t length);

/* A chunk that was decoded from a pack and verified. The second time it is kept, raw: then it costs a read of the disk
 * and a hash, instead of a frame's decompression on top. Never waits; what the writer cannot take now it does not get.
 * Returns whether it was handed on. */
bool os_shelf_offer(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm, const uint8_t *data,
                    size_t length);

/* The same the first time already: what came over the network. Raw too: compressing it again would cost the reader that
 * waits for it more than anything else does. */
bool os_shelf_keep(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm, const uint8_t *data,
                   size_t length);

/* Whether a get is likely to succeed. */
bool os_shelf_has(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm);

#endif
