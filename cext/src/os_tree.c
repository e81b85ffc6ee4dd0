#include "os_tree.h"

#include <stdlib.h>
#include <string.h>

/* Makes room for `more` rows of `size` bytes; false when memory or the bound is reached. */
static int reserve(void **rows, uint32_t count, uint32_t *room, uint32_t more, size_t size) {
    if (more > 4 * OS_INODES_MAX - count)
        return 0;
    if (*room - count >= more)
        return 1;
    uint64_t wanted = *room ? *room : 64;
    while (wanted < (uint64_t)count + more)
        wanted *= 2;
    void *grown = realloc(*rows, (size_t)wanted * size);
    if (!grown)
        return 0;
    *rows = grown;
    *room = (uint32_t)wanted;
    return 1;
}

uint32_t os_tree_add_inode(os_tree *tree) {
    if (tree->inode_count >= OS_INODES_MAX ||
        !reserve((void **)&tree->inodes, tree->inode_count, &tree->inode_room, 1, sizeof *tree->inodes))
        return UINT32_MAX;
    memset(&tree->inodes[tree->inode_count], 0, sizeof *tree->inodes);
    return tree->inode_count++;
}

uint32_t os_tree_add_entries(os_tree *tree, uint32_t count) {
    if (!reserve((void **)&tree->entries, tree->entry_count, &tree->entry_room, count, sizeof *tree->entries))
        return UINT32_MAX;
    uint32_t first = tree->entry_count;
    tree->entry_count += count;
    return first;
}

uint32_t os_tree_add_xattrs(os_tree *tree, uint32_t count) {
    if (!reserve((void **)&tree->xattrs, tree->xattr_count, &tree->xattr_room, count, sizeof *tree->xattrs))
        return UINT32_MAX;
    uint32_t first = tree->xattr_count;
    tree->xattr_count += count;
    return first;
}

static bool in_namespace(const uint8_t *name, size_t size, const char *space, size_t length) {
    return size > length && !memcmp(name, space, length);
}

static bool is_name(const uint8_t *name, size_t size, const char *whole, size_t length) {
    return size == length && !memcmp(name, whole, length);
}

bool os_xattr_allowed(const uint8_t *name, size_t size) {
    if (size > OS_NAME_MAX || memchr(name, 0, size))
        return false;
    if (in_namespace(name, size, "user.", 5))
        return size < 13 || memcmp(name, "user.overlay.", 13);
    return in_namespace(name, size, "security.", 9) || is_name(name, size, "system.posix_acl_access", 23) ||
           is_name(name, size, "system.posix_acl_default", 24);
}

void os_tree_free(os_tree *tree) {
    free(tree->inodes);
    free(tree->entries);
    free(tree->xattrs);
    free(tree->names);
    memset(tree, 0, sizeof *tree);
}
