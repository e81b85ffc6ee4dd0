/* fs.erofs: whatever the bytes are, decoding stays inside them, and what it makes of them is a tree whose image is
 * canonical. The superblock's magic is filled in; the rest is the input, padded to whole blocks. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "os_erofs.h"
#include "os_erofs_disk.h"

/* The image of a tree is accepted, and is the image of the tree that it is decoded to. */
static void check_image_of(const os_tree *tree) {
    uint8_t *image = NULL;
    size_t size = 0;
    os_failure failure;
    os_tree again = {0};
    os_code code = os_erofs_encode(tree, 0, &image, &size, &failure);
    assert(code == OS_OK);
    code = os_erofs_check(image, size, &again, &failure);
    assert(code == OS_OK);
    assert(again.inode_count == tree->inode_count && again.entry_count == tree->entry_count &&
           again.xattr_count == tree->xattr_count);
    os_tree_free(&again);
    free(image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    os_tree tree = {0};
    os_failure failure;
    size_t whole = (size_t)os_up(size + 1, OS_EROFS_BLOCK);
    uint8_t *image = calloc(1, whole);
    assert(image != NULL);
    memcpy(image, data, size);
    os_put32(image + OS_EROFS_SUPER, OS_EROFS_MAGIC);
    if (os_erofs_decode(image, whole, &tree, &failure) == OS_OK) {
        check_image_of(&tree);
        os_tree_free(&tree);
    }
    if (os_erofs_check(image, whole, &tree, &failure) == OS_OK)
        os_tree_free(&tree);
    assert(tree.inodes == NULL && tree.names == NULL);
    free(image);
    return 0;
}
