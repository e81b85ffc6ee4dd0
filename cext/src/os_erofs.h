/* fs.erofs (docs/format.md section 5): one canonical encoding of a tree, without file data. */
#ifndef OS_EROFS_H
#define OS_EROFS_H

#include "os_tree.h"

/* image: owned by the caller (free), a multiple of 4096 bytes. wanted: bytes that it has to have, 0 for any; another
 * size is OS_CORRUPT before the image's memory is asked for. */
os_code os_erofs_encode(const os_tree *tree, size_t wanted, uint8_t **image, size_t *size, os_failure *failure);

/* image: hostile, borrowed by the tree. The tree keeps all rules of a merged tree, but only os_erofs_check knows
 * whether the image is the canonical one of it. Time and memory are linear in size, whatever the image says: the inodes
 * that are reached may not use more bytes together than there are. tree: empty; after a failure it is empty again. */
os_code os_erofs_decode(const uint8_t *image, size_t size, os_tree *tree, os_failure *failure);

/* Decodes, encodes again and compares. The tree is kept on success. */
os_code os_erofs_check(const uint8_t *image, size_t size, os_tree *tree, os_failure *failure);

#endif
