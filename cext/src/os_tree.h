/* A merged file tree in memory: what a layer index or a canonical fs.erofs decodes to, and what both encode from.
 *
 * Everything variable (names, xattrs, targets, parts) is borrowed from the decoded buffer, which outlives the tree.
 * Inodes stand in canonical order: depth first, parents before children, children in bytewise name order; an inode with
 * several names stands where its first name is. Inode 0 is the root. All limits of os_limits.h hold for a filled tree.
 */
#ifndef OS_TREE_H
#define OS_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "os_limits.h"
#include "os_result.h"

enum { OS_KIND_FILE = 1, OS_KIND_DIRECTORY, OS_KIND_SYMLINK, OS_KIND_CHARACTER, OS_KIND_BLOCK, OS_KIND_FIFO };

typedef struct os_xattr {
    const uint8_t *name; /* whole name with its namespace, borrowed */
    const uint8_t *value;
    uint16_t name_size;
    uint16_t value_size;
} os_xattr;

typedef struct os_inode {
    uint64_t size; /* file: bytes. symlink: bytes of target. else 0 */
    int64_t mtime_sec;
    uint32_t mtime_nsec;
    uint32_t uid;
    uint32_t gid;
    uint32_t nlink; /* names of this inode; directories: 2 + subdirectories */
    uint32_t major;
    uint32_t minor;
    uint32_t xattr_first; /* row in xattrs; ascending by name */
    uint32_t xattr_count;
    uint32_t entry_first; /* directory: row in entries; ascending by name; without . and .. */
    uint32_t entry_count;
    uint32_t parent;       /* directory: its parent's inode; root: 0 */
    uint32_t part_count;   /* file with an object, from a layer index; 0 when decoded from EROFS */
    const uint8_t *target; /* symlink */
    const uint8_t *parts;  /* file: part_count x (u64 length, id[32]); NULL when decoded from EROFS */
    uint16_t mode;         /* permission bits, at most 07777 */
    uint8_t kind;
    uint8_t algorithm;  /* of the parts */
    uint8_t has_object; /* files with size > 0 */
    uint8_t object[OS_ID_SIZE];
} os_inode;

typedef struct os_entry {
    const uint8_t *name; /* borrowed */
    uint32_t inode;
    uint16_t name_size;
} os_entry;

typedef struct os_tree {
    os_inode *inodes;  /* owned */
    os_entry *entries; /* owned */
    os_xattr *xattrs;  /* owned */
    uint8_t *names;    /* owned: names of xattrs that an EROFS image holds in two pieces; else NULL */
    uint32_t inode_count, inode_room;
    uint32_t entry_count, entry_room;
    uint32_t xattr_count, xattr_room;
} os_tree;

/* Rows are grown by these; they return the row or UINT32_MAX when memory or OS_INODES_MAX is reached. */
uint32_t os_tree_add_inode(os_tree *tree);
uint32_t os_tree_add_entries(os_tree *tree, uint32_t count);
uint32_t os_tree_add_xattrs(os_tree *tree, uint32_t count);

/* Whether a merged tree may have an xattr of this name: in user. (but not user.overlay.) or security., or one of the
 * two ACLs; no NUL, at most OS_NAME_MAX bytes. Nothing else speaks to a container, and trusted. speaks to overlayfs. */
bool os_xattr_allowed(const uint8_t *name, size_t size);

void os_tree_free(os_tree *tree); /* leaves it empty; an all-zero tree is a valid empty one */

#endif
