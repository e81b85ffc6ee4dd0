/* One entry of a merged layer index (docs/format.md section 4) where it lies. */
#ifndef OS_LAYER_ENTRY_H
#define OS_LAYER_ENTRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "os_result.h"

#define OS_LAYER_ENTRY 56u                                       /* bytes before the name */
#define OS_LAYER_PART 40u                                        /* u64 length, id[32] */
#define OS_LAYER_RECORD_CONTEXT "onesec 2026 layer directory v1" /* of a record's digest */

/* Everything borrowed from the index. */
typedef struct os_layer_entry {
    const uint8_t *fixed; /* OS_LAYER_ENTRY bytes */
    const uint8_t *name;
    const uint8_t *rest; /* xattrs and payload */
    size_t rest_size;
    const uint8_t *payload; /* parts, target, digest */
    uint32_t xattr_count;
    uint16_t name_size;
} os_layer_entry;

/* Checks all that an entry of a merged tree can break by itself, but for a file's parts. at moves behind it. root: the
 * one without a name. */
os_code os_layer_entry_parse(const uint8_t **at, const uint8_t *end, bool root, os_layer_entry *entry,
                             os_failure *failure);

#endif
