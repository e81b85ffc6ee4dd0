/* Encoding goes twice over the inodes: first every inode gets its place, then everything is written into one buffer of
 * the right size. Places depend on the tree alone.
 *
 *   0      zeros, superblock at 1024
 *   1152   inodes in tree order, each at the next multiple of 32: 64 bytes, xattrs, then by kind
 *            file with an object: its chunk map, every entry outside the device
 *            directory, symlink of at most TAIL_MAX bytes: those bytes
 *   ...    from the next block on: data of larger directories and symlinks, in tree order, each from a block on
 *
 * Data behind an inode must not cross a block: the inode moves on to the next place where it does not.
 *
 * The image needs no second buffer to be compared with another one of the same tree: os_erofs_encode is told the size
 * that it must have, so that a forged image costs no memory beyond its own size. */
#include "os_erofs.h"

#include <stdlib.h>

#include "os_erofs_disk.h"

/* ---- xattrs ---- */

/* The namespace that a name is in; NULL if EROFS has none for it. */
static const os_erofs_namespace *namespace_of(const os_xattr *one) {
    for (size_t row = 0; row < OS_EROFS_NAMESPACE_COUNT; row++) {
        const os_erofs_namespace *space = &OS_EROFS_NAMESPACES[row];
        if ((space->whole ? one->name_size == space->size : one->name_size > space->size) &&
            !memcmp(one->name, space->text, space->size))
            return space;
    }
    return NULL;
}

static os_code xattrs_size(const os_tree *tree, const os_inode *inode, uint64_t *size, os_failure *failure) {
    *size = 0;
    for (uint32_t row = inode->xattr_first; row < inode->xattr_first + inode->xattr_count; row++) {
        const os_xattr *one = &tree->xattrs[row];
        const os_erofs_namespace *space = namespace_of(one);
        if (!space)
            return os_fail(failure, OS_CORRUPT, "fs.erofs: an xattr is in no namespace that EROFS has: %.*s",
                           (int)(one->name_size < 80 ? one->name_size : 80), (const char *)one->name);
        *size += os_erofs_xattr_size((size_t)one->name_size - space->size, one->value_size);
    }
    if (inode->has_object)
        *size += os_erofs_xattr_size(OS_EROFS_REST, 0) + os_erofs_xattr_size(OS_EROFS_REST, OS_EROFS_REDIRECT_SIZE);
    if (*size)
        *size += OS_EROFS_XATTRS_HEAD;
    return OS_OK;
}

static uint8_t *write_xattr(uint8_t *at, uint8_t index, const void *rest, size_t rest_size, const void *value,
                            size_t value_size) {
    at[0] = (uint8_t)rest_size;
    at[1] = index;
    os_put16(at + 2, (uint16_t)value_size);
    memcpy(at + OS_EROFS_XATTR_HEAD, rest, rest_size);
    if (value_size)
        memcpy(at + OS_EROFS_XATTR_HEAD + rest_size, value, value_size);
    return at + os_erofs_xattr_size(rest_size, value_size);
}

static void redirect_of(const uint8_t *object, uint8_t *out) {
    static const char DIGITS[] = "0123456789abcdef";
    *out++ = '/';
    for (unsigned at = 0; at < OS_ID_SIZE; at++) {
        if (at == 1)
            *out++ = '/';
        *out++ = (uint8_t)DIGITS[object[at] >> 4];
        *out++ = (uint8_t)DIGITS[object[at] & 15];
    }
}

/* The inode's own first, in their order, then the two that join it with its object. */
static void write_xattrs(const os_tree *tree, const os_inode *inode, uint8_t *at) {
    uint8_t redirect[OS_EROFS_REDIRECT_SIZE];
    at += OS_EROFS_XATTRS_HEAD;
    for (uint32_t row = inode->xattr_first; row < inode->xattr_first + inode->xattr_count; row++) {
        const os_xattr *one = &tree->xattrs[row];
        const os_erofs_namespace *space = namespace_of(one);
        at = write_xattr(at, space->index, one->name + space->size, (size_t)one->name_size - space->size, one->value,
                         one->value_size);
    }
    if (inode->has_object) {
        redirect_of(inode->object, redirect);
        at = write_xattr(at, OS_EROFS_TRUSTED, OS_EROFS_METACOPY, OS_EROFS_REST, NULL, 0);
        write_xattr(at, OS_EROFS_TRUSTED, OS_EROFS_REDIRECT, OS_EROFS_REST, redirect, sizeof redirect);
    }
}

/* ---- directories ---- */

/* Names of a directory in order, with . and .. where they belong: before the first name that is greater. */
typedef struct name_cursor {
    const os_tree *tree;
    const os_inode *directory;
    uint32_t number; /* inode of the directory */
    uint32_t row;    /* next of its entries */
    unsigned dots;   /* 0: neither was given, 1: "." was, 2: both */
} name_cursor;

typedef struct name_row {
    const uint8_t *name;
    uint32_t inode;
    uint16_t size;
} name_row;

static bool next_name(name_cursor *cursor, name_row *out) {
    static const uint8_t DOTS[] = "..";
    const os_inode *directory = cursor->directory;
    bool more = cursor->row < directory->entry_count;
    const os_entry *entry = more ? &cursor->tree->entries[directory->entry_first + cursor->row] : NULL;
    unsigned size = cursor->dots + 1;
    if (cursor->dots < 2 && (!more || os_compare_names(DOTS, size, entry->name, entry->name_size) < 0)) {
        *out = (name_row){DOTS, cursor->dots ? directory->parent : cursor->number, (uint16_t)size};
        cursor->dots++;
        return true;
    }
    if (!more)
        return false;
    *out = (name_row){entry->name, entry->inode, entry->name_size};
    cursor->row++;
    return true;
}

/* Bytes of a directory: whole blocks, the last as far as it is used. */
static uint64_t directory_size(const os_tree *tree, uint32_t number) {
    name_cursor cursor = {tree, &tree->inodes[number], number, 0, 0};
    name_row row;
    uint64_t blocks = 0;
    uint32_t used = 0;
    while (next_name(&cursor, &row)) {
        uint32_t more = OS_EROFS_DIRENT + row.size;
        if (used + more > OS_EROFS_BLOCK) {
            blocks++;
            used = 0;
        }
        used += more;
    }
    return blocks * OS_EROFS_BLOCK + used;
}

static uint8_t file_type(uint8_t kind) {
    static const uint8_t TYPES[] = {[OS_KIND_FILE] = 1,  [OS_KIND_DIRECTORY] = 2, [OS_KIND_CHARACTER] = 3,
                                    [OS_KIND_BLOCK] = 4, [OS_KIND_FIFO] = 5,      [OS_KIND_SYMLINK] = 7};
    return TYPES[kind];
}

/* One block: the entries' heads, then their names. */
static void write_block(uint8_t *at, const name_row *rows, uint32_t count, const os_tree *tree, const uint32_t *nids) {
    uint32_t name_at = count * OS_EROFS_DIRENT;
    for (uint32_t row = 0; row < count; row++) {
        uint8_t *entry = at + row * OS_EROFS_DIRENT;
        os_put64(entry, nids[rows[row].inode]);
        os_put16(entry + 8, (uint16_t)name_at);
        entry[10] = file_type(tree->inodes[rows[row].inode].kind);
        memcpy(at + name_at, rows[row].name, rows[row].size);
        name_at += rows[row].size;
    }
}

static void write_directory(const os_tree *tree, uint32_t number, const uint32_t *nids, uint8_t *at) {
    name_cursor cursor = {tree, &tree->inodes[number], number, 0, 0};
    name_row rows[OS_EROFS_BLOCK / OS_EROFS_DIRENT + 1];
    uint32_t count = 0, used = 0;
    while (next_name(&cursor, &rows[count])) {
        name_row last = rows[count];
        if (used + OS_EROFS_DIRENT + last.size > OS_EROFS_BLOCK) {
            write_block(at, rows, count, tree, nids);
            at += OS_EROFS_BLOCK;
            rows[0] = last;
            count = used = 0;
        }
        used += OS_EROFS_DIRENT + last.size;
        count++;
    }
    write_block(at, rows, count, tree, nids);
}

/* ---- the whole ---- */

typedef struct encoder {
    const os_tree *tree;
    uint32_t *nids;   /* owned */
    uint32_t *blocks; /* owned: block of data that is not behind its inode, 0: none */
    uint64_t size;
    os_failure *failure;
} encoder;

/* Bytes that follow an inode's xattrs or lie in blocks of their own. */
static uint64_t data_size(const encoder *e, uint32_t number) {
    const os_inode *inode = &e->tree->inodes[number];
    if (inode->kind == OS_KIND_DIRECTORY)
        return directory_size(e->tree, number);
    return inode->kind == OS_KIND_SYMLINK ? inode->size : 0;
}

/* at: of the place before; moves behind the inode. */
static os_code place_inode(encoder *e, uint32_t number, uint64_t *at) {
    const os_inode *inode = &e->tree->inodes[number];
    uint64_t head, data = data_size(e, number);
    os_code code = xattrs_size(e->tree, inode, &head, e->failure);
    head += OS_EROFS_INODE;
    *at = os_up(*at, OS_EROFS_SLOT);
    if (data && data <= OS_EROFS_TAIL_MAX) {
        while ((*at + head) / OS_EROFS_BLOCK != (*at + head + data - 1) / OS_EROFS_BLOCK)
            *at += OS_EROFS_SLOT;
        head += data;
    } else if (data) {
        e->blocks[number] = 1; /* until place_blocks */
    }
    if (inode->has_object)
        head += 4 * os_erofs_chunks(inode->size);
    e->nids[number] = (uint32_t)(*at / OS_EROFS_SLOT);
    *at += head;
    if (code == OS_OK && *at > OS_INDEX_MAX)
        code = os_fail(e->failure, OS_LIMIT, "fs.erofs: larger than %llu bytes", OS_INDEX_MAX);
    return code;
}

static os_code place_all(encoder *e) {
    uint64_t at = OS_EROFS_FIRST;
    os_code code = OS_OK;
    for (uint32_t number = 0; code == OS_OK && number < e->tree->inode_count; number++)
        code = place_inode(e, number, &at);
    for (uint32_t number = 0; code == OS_OK && number < e->tree->inode_count; number++)
        if (e->blocks[number]) {
            at = os_up(at, OS_EROFS_BLOCK);
            e->blocks[number] = (uint32_t)(at / OS_EROFS_BLOCK);
            at += data_size(e, number);
        }
    e->size = os_up(at, OS_EROFS_BLOCK);
    if (code == OS_OK && e->size > OS_INDEX_MAX)
        code = os_fail(e->failure, OS_LIMIT, "fs.erofs: larger than %llu bytes", OS_INDEX_MAX);
    return code;
}

/* i_u: by layout and kind a chunk format, a block, a device number. */
static void write_head(const encoder *e, uint32_t number, uint8_t *at, uint64_t xattrs, uint64_t size, unsigned layout,
                       uint32_t i_u) {
    const os_inode *inode = &e->tree->inodes[number];
    os_put16(at, (uint16_t)(1 | layout << 1));
    os_put16(at + 2, xattrs ? (uint16_t)((xattrs - OS_EROFS_XATTRS_HEAD) / 4 + 1) : 0);
    os_put16(at + 4, (uint16_t)(os_erofs_type_bits(inode->kind) | inode->mode));
    os_put64(at + 8, size);
    os_put32(at + 16, i_u);
    os_put32(at + 20, number + 1);
    os_put32(at + 24, inode->uid);
    os_put32(at + 28, inode->gid);
    os_put64(at + 32, (uint64_t)inode->mtime_sec);
    os_put32(at + 40, inode->mtime_nsec);
    os_put32(at + 44, inode->nlink);
}

static void write_inode(const encoder *e, uint32_t number, uint8_t *image) {
    const os_inode *inode = &e->tree->inodes[number];
    uint8_t *at = image + (size_t)e->nids[number] * OS_EROFS_SLOT;
    uint64_t xattrs = 0, size = data_size(e, number);
    xattrs_size(e->tree, inode, &xattrs, NULL);
    uint8_t *data = at + OS_EROFS_INODE + xattrs;
    if (inode->has_object) {
        write_head(e, number, at, xattrs, inode->size, OS_EROFS_CHUNKS, OS_EROFS_CHUNK_FORMAT);
        for (uint64_t row = 0; row < os_erofs_chunks(inode->size); row++)
            os_put32(data + 4 * row, OS_EROFS_OUTSIDE);
    } else if (e->blocks[number]) {
        write_head(e, number, at, xattrs, size, OS_EROFS_FLAT, e->blocks[number]);
        data = image + (size_t)e->blocks[number] * OS_EROFS_BLOCK;
    } else if (size) {
        write_head(e, number, at, xattrs, size, OS_EROFS_INLINE, 0);
    } else {
        uint32_t device = (inode->minor & 0xFF) | inode->major << 8 | (inode->minor & ~0xFFu) << 12;
        write_head(e, number, at, xattrs, 0, OS_EROFS_FLAT, device);
    }
    if (xattrs)
        write_xattrs(e->tree, inode, at + OS_EROFS_INODE);
    if (inode->kind == OS_KIND_DIRECTORY)
        write_directory(e->tree, number, e->nids, data);
    else if (inode->kind == OS_KIND_SYMLINK)
        memcpy(data, inode->target, inode->size);
}

static void write_super(const encoder *e, uint8_t *at) {
    os_put32(at, OS_EROFS_MAGIC);
    at[12] = 12; /* block bits */
    os_put16(at + 14, (uint16_t)e->nids[0]);
    os_put64(at + 16, e->tree->inode_count);
    os_put32(at + 36, (uint32_t)(e->size / OS_EROFS_BLOCK));
    os_put32(at + 80, OS_EROFS_CHUNKED);
}

os_code os_erofs_encode(const os_tree *tree, size_t wanted, uint8_t **image, size_t *size, os_failure *failure) {
    encoder e = {.tree = tree, .failure = failure};
    uint8_t *made = NULL;
    os_code code = OS_OK;
    if (tree->inode_count == 0 || tree->inodes[0].kind != OS_KIND_DIRECTORY)
        return os_fail(failure, OS_CORRUPT, "fs.erofs: a tree without a root");
    e.nids = malloc(tree->inode_count * sizeof *e.nids);
    e.blocks = calloc(tree->inode_count, sizeof *e.blocks);
    if (!e.nids || !e.blocks)
        code = os_fail(failure, OS_MEMORY, "fs.erofs: out of memory");
    if (code == OS_OK)
        code = place_all(&e);
    if (code == OS_OK && wanted && e.size != wanted)
        code = os_fail(failure, OS_CORRUPT, "fs.erofs: got %zu bytes, want %llu for its tree", wanted,
                       (unsigned long long)e.size);
    if (code == OS_OK && !(made = calloc(1, (size_t)e.size)))
        code = os_fail(failure, OS_MEMORY, "fs.erofs: out of memory");
    if (code == OS_OK) {
        write_super(&e, made + OS_EROFS_SUPER);
        for (uint32_t number = 0; number < tree->inode_count; number++)
            write_inode(&e, number, made);
        *image = made;
        *size = (size_t)e.size;
    }
    free(e.nids);
    free(e.blocks);
    return code;
}
