#include "os_index.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "os_erofs.h"
#include "os_layer.h"
#include "os_tables.h"

os_code os_index_encode(const uint8_t *layer, size_t size, const os_pack_input *packs, size_t pack_count,
                        os_index *index, os_failure *failure) {
    os_tree tree = {0};
    os_index made = {0};
    os_code code = os_layer_decode(layer, size, &tree, failure);
    if (code == OS_OK)
        code = os_erofs_encode(&tree, 0, &made.erofs, &made.erofs_size, failure);
    if (code == OS_OK)
        code = os_tables_build(&tree, packs, pack_count, &made.tables, &made.tables_size, failure);
    os_tree_free(&tree);
    if (code == OS_OK)
        *index = made;
    else
        free(made.erofs);
    return code;
}

/* Where in the tables the ids with the same first two bytes start: a binary search over all ids costs as much as
 * decoding the image does. */
#define BUCKETS 65536u

static uint32_t bucket_of(const uint8_t *id) {
    return (uint32_t)id[0] << 8 | id[1];
}

static void fill_starts(const os_tables *tables, uint32_t *starts) {
    uint32_t bucket = 0;
    for (uint32_t row = 0; row < tables->object_count; row++)
        for (uint32_t own = bucket_of(tables->object_id + (size_t)row * OS_ID_SIZE); bucket <= own; bucket++)
            starts[bucket] = row;
    for (; bucket <= BUCKETS; bucket++)
        starts[bucket] = tables->object_count;
}

static bool find(const os_tables *tables, const uint32_t *starts, const uint8_t *id, uint32_t *row) {
    uint32_t low = starts[bucket_of(id)], high = starts[bucket_of(id) + 1];
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = memcmp(tables->object_id + (size_t)middle * OS_ID_SIZE, id, OS_ID_SIZE);
        if (order == 0) {
            *row = middle;
            return true;
        }
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

static os_code match(const os_tree *tree, const os_tables *tables, const uint32_t *starts, uint8_t *used,
                     os_failure *failure) {
    for (uint32_t number = 0; number < tree->inode_count; number++) {
        const os_inode *inode = &tree->inodes[number];
        uint32_t row;
        if (!inode->has_object)
            continue;
        if (!find(tables, starts, inode->object, &row))
            return os_fail(failure, OS_CORRUPT, "image: inode %u: got an object that the tables lack", number + 1);
        if (tables->object_size[row] != inode->size)
            return os_fail(failure, OS_CORRUPT, "image: inode %u: got size %" PRIu64 ", want its object's %" PRIu64,
                           number + 1, inode->size, tables->object_size[row]);
        used[row] = 1;
    }
    const uint8_t *idle = memchr(used, 0, tables->object_count);
    if (idle)
        return os_fail(failure, OS_CORRUPT, "image: object %zu: got it in the tables, but no file has it",
                       (size_t)(idle - used));
    return OS_OK;
}

static os_code check_together(const os_tree *tree, const os_tables *tables, os_failure *failure) {
    uint32_t *starts = malloc((BUCKETS + 1) * sizeof *starts);
    uint8_t *used = calloc((size_t)tables->object_count + 1, 1);
    os_code code = OS_MEMORY;
    if (starts && used) {
        fill_starts(tables, starts);
        code = match(tree, tables, starts, used, failure);
    } else {
        os_fail(failure, OS_MEMORY, "image: out of memory");
    }
    free(starts);
    free(used);
    return code;
}

os_code os_index_check(const uint8_t *erofs, size_t erofs_size, const uint8_t *tables, size_t tables_size,
                       os_failure *failure) {
    os_tree tree = {0};
    os_tables view;
    os_code code = os_tables_open(tables, tables_size, &view, failure);
    if (code == OS_OK)
        code = os_tables_check_objects(&view, failure);
    if (code == OS_OK)
        code = os_erofs_check(erofs, erofs_size, &tree, failure);
    if (code == OS_OK)
        code = check_together(&tree, &view, failure);
    os_tree_free(&tree);
    return code;
}
