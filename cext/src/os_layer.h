/* A decoded merged layer index (docs/format.md section 4) becomes a tree. */
#ifndef OS_LAYER_H
#define OS_LAYER_H

#include "os_tree.h"

/* data: borrowed by the tree. tree: empty; after a failure it is empty again. Every MUST of the format is checked;
 * whiteouts, links, opaque and implicit directories are refused. */
os_code os_layer_decode(const uint8_t *data, size_t size, os_tree *tree, os_failure *failure);

#endif
