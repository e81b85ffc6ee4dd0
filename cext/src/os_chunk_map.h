/* Which pack of the layout has a chunk: what a build asks before it compresses and writes one. A cache: it can always
 * be made again from the tables of the packs.
 *
 * Of several packs with a chunk the first one committed is named. A pack that was removed is never named, even where
 * its rows could not be found again. A row that does not pass its own check counts as unknown (and in damaged).
 *
 * All functions may be called from any thread and, on one directory, from several processes. */
#ifndef OS_CHUNK_MAP_H
#define OS_CHUNK_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "os_known.h"
#include "os_result.h"

typedef struct os_chunk_map os_chunk_map;

typedef struct os_chunk_map_statistics {
    uint64_t packs, chunks;  /* chunks: rows, those of removed packs included until they are overwritten */
    uint64_t used, map_size; /* bytes */
    uint64_t damaged;        /* rows refused since this process opened the map */
} os_chunk_map_statistics;

/* path: an existing directory, of which data.mdb and lock.mdb are used. map_size: 0 for the default. */
os_code os_chunk_map_open(const char *path, size_t map_size, os_chunk_map **out, os_failure *failure);
void os_chunk_map_close(os_chunk_map *map); /* waits for running calls; later ones get OS_CLOSED */
void os_chunk_map_free(os_chunk_map *map);  /* closes; no call may run; may be NULL */

/* ids: count times 32 bytes, of a validated table. Durable on return. added: false if the pack was there already. */
os_code os_chunk_map_add(os_chunk_map *map, const uint8_t digest[32], const uint8_t *ids, uint32_t count, bool *added,
                         os_failure *failure);
/* Forgets the pack and its rows. Durable on return: only then may the pack be deleted. removed: false if unknown. */
os_code os_chunk_map_remove(os_chunk_map *map, const uint8_t digest[32], const uint8_t *ids, uint32_t count,
                            bool *removed, os_failure *failure);
/* OS_MISSING, without a message: no pack has it. */
os_code os_chunk_map_lookup(os_chunk_map *map, const uint8_t id[32], uint8_t pack[32], os_failure *failure);
/* *out: owned by the caller (free), count times 32 bytes. */
os_code os_chunk_map_packs(os_chunk_map *map, uint8_t **out, size_t *count, os_failure *failure);
os_code os_chunk_map_statistics_of(os_chunk_map *map, os_chunk_map_statistics *out, os_failure *failure);

/* Borrowed; valid until os_chunk_map_free. Answers -1 after close. */
const os_known *os_chunk_map_known(const os_chunk_map *map);

#endif
