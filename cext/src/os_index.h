/* The index of an image: fs.erofs and tables together. */
#ifndef OS_INDEX_H
#define OS_INDEX_H

#include <stddef.h>
#include <stdint.h>

#include "os_result.h"
#include "os_tables_build.h"

typedef struct os_index {
    uint8_t *erofs, *tables; /* owned by the caller (free) */
    size_t erofs_size, tables_size;
} os_index;

/* layer: a decoded merged layer index. packs: as os_tables_build takes them. index: untouched after a failure. */
os_code os_index_encode(const uint8_t *layer, size_t size, const os_pack_input *packs, size_t pack_count,
                        os_index *index, os_failure *failure);

/* Everything that docs/format.md asks of the two (sections 5 and 6) and of them together: each file's object is in the
 * tables with the file's size, each object's id is the id of its parts, and no row is there that no file uses. Both
 * inputs are hostile; tables: aligned to 8. Time and memory are linear in their sizes. */
os_code os_index_check(const uint8_t *erofs, size_t erofs_size, const uint8_t *tables, size_t tables_size,
                       os_failure *failure);

#endif
