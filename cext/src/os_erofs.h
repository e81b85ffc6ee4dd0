/* fs.erofs (docs/format.md section 5): one canonical encoding of a tree, without file data. */
#ifndef OS_EROFS_H
#define OS_EROFS_H

#include "os_tree.h"

/* image: owned by the caller (free), a multiple of 4096 bytes. */
os_code os_erofs_encode(const os_tree *tree, uint8_t **image, size_t *size, os_failure *failure);

/* image: hostile, borrowed by the tree. Checks what it needs to be safe; only os_erofs_check knows whether the image is
 * the canonical one of the tree. tree: empty; after a failure it is empty again. */
os_code os_erofs_decode(const uint8_t *image, size_t size, os_tree *tree, os_failure *failure);

/* Decodes, encodes again and compares. The tree is kept on success. */
os_code os_erofs_check(const uint8_t *image, size_t size, os_tree *tree, os_failure *failure);

#endif
