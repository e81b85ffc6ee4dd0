/* The tables of an image (docs/format.md section 6) from its tree and its packs. */
#ifndef OS_TABLES_BUILD_H
#define OS_TABLES_BUILD_H

#include "os_tree.h"

typedef struct os_pack_input {
    const uint8_t *digest; /* SHA-256, 32 bytes, borrowed as is table */
    const uint8_t *table;
    size_t table_size;
    uint64_t size; /* of the whole pack */
} os_pack_input;

/* tree: from os_layer_decode. Of several packs with a chunk the first one given is used. tables: owned by the caller
 * (free). OS_MISSING: a chunk is in none of the packs. */
os_code os_tables_build(const os_tree *tree, const os_pack_input *packs, size_t pack_count, uint8_t **tables,
                        size_t *size, os_failure *failure);

#endif
