/* Encoding goes twice over the inodes: first every inode gets its place, then everything is written into one buffer of
 * the right size. Places depend on the tree alone.
 *
 *   0      zeros, superblock at 1024
 *   1152   inodes in tree order, each at the next multiple of 32: 64 bytes, xattrs, then by kind
 *            file with an object: chunk map, every entry OUTSIDE        directory, symlink up to TAIL_MAX: the data
 * itself
 *   ...    from the next block on: data of larger directories and symlinks, in tree order, each in blocks of its own
 *
 * Inline data must not cross a block: an inode whose data would is moved to the next place where it does not.
 *
 * Decoding walks from the root with a queue, so that input cannot make the C stack deep; an inode that is met again is
 * one more name of it, a directory that is met again is an error. */
#include "os_erofs.h"

#include <endian.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 4096u
#define SUPER 1024u
#define FIRST (SUPER + 128u)
#define MAGIC 0xE0F5E1E2u
#define CHUNKED 0x4u
#define SLOT 32u
#define INODE 64u
#define DIRENT 12u
#define TAIL_MAX 2048u /* of inline data */
#define CHUNK_BITS 31u /* over the block's: chunks of 8 TiB */
#define CHUNK_SHIFT 43u
#define OUTSIDE 0xFFFFFFF0u /* a block that no device has: reading it is EIO, never zeros */

enum { FLAT_PLAIN = 0, FLAT_INLINE = 2, CHUNK_BASED = 4 };

static const char METACOPY[] = "trusted.overlay.metacopy";
static const char REDIRECT[] = "trusted.overlay.redirect";
#define REDIRECT_SIZE 66u /* "/ab/" and 62 digits */

/* Namespaces that EROFS has a number for. whole: the prefix is the whole name. */
static const struct {
    const char *text;
    uint8_t size, index;
    bool whole;
} PREFIXES[] = {
    {"user.", 5, 1, false},
    {"system.posix_acl_access", 23, 2, true},
    {"system.posix_acl_default", 24, 3, true},
    {"trusted.", 8, 4, false},
    {"security.", 9, 6, false},
};
#define PREFIX_COUNT (sizeof PREFIXES / sizeof *PREFIXES)

static void put16(uint8_t *at, uint16_t value) {
    value = htole16(value);
    memcpy(at, &value, sizeof value);
}

static void put32(uint8_t *at, uint32_t value) {
    value = htole32(value);
    memcpy(at, &value, sizeof value);
}

static void put64(uint8_t *at, uint64_t value) {
    value = htole64(value);
    memcpy(at, &value, sizeof value);
}

static uint16_t get16(const uint8_t *at) {
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return le16toh(value);
}

static uint32_t get32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return le32toh(value);
}

static uint64_t get64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return le64toh(value);
}

static uint64_t up(uint64_t value, uint64_t to) {
    return (value + to - 1) / to * to;
}

/* ---- xattrs ---- */

/* Row of the prefix that a name starts with, or PREFIX_COUNT. */
static size_t prefix_of(const uint8_t *name, size_t size) {
    for (size_t row = 0; row < PREFIX_COUNT; row++) {
        size_t length = PREFIXES[row].size;
        if ((PREFIXES[row].whole ? size == length : size > length) && !memcmp(name, PREFIXES[row].text, length))
            return row;
    }
    return PREFIX_COUNT;
}

static uint64_t xattr_size(size_t name, size_t value) {
    return up(4 + name + value, 4);
}

static os_code xattrs_size(const os_tree *tree, const os_inode *inode, uint64_t *size, os_failure *failure) {
    *size = 0;
    for (uint32_t row = inode->xattr_first; row < inode->xattr_first + inode->xattr_count; row++) {
        const os_xattr *one = &tree->xattrs[row];
        size_t prefix = prefix_of(one->name, one->name_size);
        if (prefix == PREFIX_COUNT)
            return os_fail(failure, OS_CORRUPT, "fs.erofs: an xattr is in no namespace that EROFS has: %.*s",
                           (int)(one->name_size < 80 ? one->name_size : 80), (const char *)one->name);
        *size += xattr_size(one->name_size - PREFIXES[prefix].size, one->value_size);
    }
    if (inode->has_object)
        *size += xattr_size(sizeof METACOPY - 1 - 8, 0) + xattr_size(sizeof REDIRECT - 1 - 8, REDIRECT_SIZE);
    if (*size)
        *size += 12;
    return OS_OK;
}

static uint8_t *write_xattr(uint8_t *at, const uint8_t *name, size_t name_size, const uint8_t *value,
                            size_t value_size) {
    size_t prefix = prefix_of(name, name_size), skip = PREFIXES[prefix].size;
    at[0] = (uint8_t)(name_size - skip);
    at[1] = PREFIXES[prefix].index;
    put16(at + 2, (uint16_t)value_size);
    memcpy(at + 4, name + skip, name_size - skip);
    if (value_size)
        memcpy(at + 4 + name_size - skip, value, value_size);
    return at + xattr_size(name_size - skip, value_size);
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
    uint8_t redirect[REDIRECT_SIZE];
    at += 12;
    for (uint32_t row = inode->xattr_first; row < inode->xattr_first + inode->xattr_count; row++) {
        const os_xattr *one = &tree->xattrs[row];
        at = write_xattr(at, one->name, one->name_size, one->value, one->value_size);
    }
    if (inode->has_object) {
        redirect_of(inode->object, redirect);
        at = write_xattr(at, (const uint8_t *)METACOPY, sizeof METACOPY - 1, NULL, 0);
        write_xattr(at, (const uint8_t *)REDIRECT, sizeof REDIRECT - 1, redirect, sizeof redirect);
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

static int compare_names(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size) {
    int order = memcmp(a, b, a_size < b_size ? a_size : b_size);
    return order ? order : (a_size > b_size) - (a_size < b_size);
}

static bool next_name(name_cursor *cursor, name_row *out) {
    static const uint8_t DOTS[] = "..";
    const os_inode *directory = cursor->directory;
    bool more = cursor->row < directory->entry_count;
    const os_entry *entry = more ? &cursor->tree->entries[directory->entry_first + cursor->row] : NULL;
    unsigned size = cursor->dots + 1;
    if (cursor->dots < 2 && (!more || compare_names(DOTS, size, entry->name, entry->name_size) < 0)) {
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
        uint32_t more = DIRENT + row.size;
        if (used + more > BLOCK) {
            blocks++;
            used = 0;
        }
        used += more;
    }
    return blocks * BLOCK + used;
}

static uint8_t file_type(uint8_t kind) {
    static const uint8_t TYPES[] = {[OS_KIND_FILE] = 1,  [OS_KIND_DIRECTORY] = 2, [OS_KIND_CHARACTER] = 3,
                                    [OS_KIND_BLOCK] = 4, [OS_KIND_FIFO] = 5,      [OS_KIND_SYMLINK] = 7};
    return TYPES[kind];
}

/* One block: the entries' heads, then their names. */
static void write_block(uint8_t *at, const name_row *rows, uint32_t count, const os_tree *tree, const uint64_t *nids) {
    uint32_t name_at = count * DIRENT;
    for (uint32_t row = 0; row < count; row++) {
        put64(at + row * DIRENT, nids[rows[row].inode]);
        put16(at + row * DIRENT + 8, (uint16_t)name_at);
        at[row * DIRENT + 10] = file_type(tree->inodes[rows[row].inode].kind);
        memcpy(at + name_at, rows[row].name, rows[row].size);
        name_at += rows[row].size;
    }
}

static void write_directory(const os_tree *tree, uint32_t number, const uint64_t *nids, uint8_t *at) {
    name_cursor cursor = {tree, &tree->inodes[number], number, 0, 0};
    name_row rows[BLOCK / DIRENT + 1];
    uint32_t count = 0, used = 0;
    while (next_name(&cursor, &rows[count])) {
        name_row last = rows[count];
        if (used + DIRENT + last.size > BLOCK) {
            write_block(at, rows, count, tree, nids);
            at += BLOCK;
            rows[0] = last;
            count = used = 0;
        }
        used += DIRENT + last.size;
        count++;
    }
    write_block(at, rows, count, tree, nids);
}

/* ---- encoding ---- */

typedef struct encoder {
    const os_tree *tree;
    uint64_t *nids; /* owned */
    uint64_t *data; /* owned: offset of data outside the inode, 0: none */
    uint64_t size;
    os_failure *failure;
} encoder;

/* What follows an inode's xattrs, or lies in blocks of its own. */
static uint64_t data_size(const encoder *e, uint32_t number) {
    const os_inode *inode = &e->tree->inodes[number];
    if (inode->kind == OS_KIND_DIRECTORY)
        return directory_size(e->tree, number);
    return inode->kind == OS_KIND_SYMLINK ? inode->size : 0;
}

static os_code place_inodes(encoder *e) {
    uint64_t at = FIRST, xattrs;
    for (uint32_t number = 0; number < e->tree->inode_count; number++) {
        const os_inode *inode = &e->tree->inodes[number];
        os_code code = xattrs_size(e->tree, inode, &xattrs, e->failure);
        if (code != OS_OK)
            return code;
        uint64_t data = data_size(e, number), head = INODE + xattrs;
        at = up(at, SLOT);
        if (data && data <= TAIL_MAX) {
            while ((at + head) / BLOCK != (at + head + data - 1) / BLOCK)
                at += SLOT;
            head += data;
        } else if (data) {
            e->data[number] = 1;
        }
        if (inode->has_object)
            head += 4 * up(inode->size, 1ull << CHUNK_SHIFT) / (1ull << CHUNK_SHIFT);
        e->nids[number] = at / SLOT;
        at += head;
    }
    for (uint32_t number = 0; number < e->tree->inode_count; number++)
        if (e->data[number]) {
            at = up(at, BLOCK);
            e->data[number] = at;
            at += data_size(e, number);
        }
    e->size = up(at, BLOCK);
    if (e->size > OS_INDEX_MAX || e->size / BLOCK > OUTSIDE - 1)
        return os_fail(e->failure, OS_LIMIT, "fs.erofs: larger than %llu bytes", OS_INDEX_MAX);
    return OS_OK;
}

static uint16_t type_bits(uint8_t kind) {
    static const uint16_t BITS[] = {
        [OS_KIND_FILE] = 0100000,      [OS_KIND_DIRECTORY] = 0040000, [OS_KIND_SYMLINK] = 0120000,
        [OS_KIND_CHARACTER] = 0020000, [OS_KIND_BLOCK] = 0060000,     [OS_KIND_FIFO] = 0010000};
    return BITS[kind];
}

static void write_inode(const encoder *e, uint32_t number, uint8_t *image) {
    const os_inode *inode = &e->tree->inodes[number];
    uint8_t *at = image + e->nids[number] * SLOT;
    uint64_t xattrs = 0, size = data_size(e, number);
    unsigned layout = FLAT_PLAIN;
    uint32_t place = 0;
    xattrs_size(e->tree, inode, &xattrs, NULL);
    uint8_t *after = at + INODE + xattrs;
    if (inode->has_object) {
        layout = CHUNK_BASED;
        place = CHUNK_BITS;
        size = inode->size;
        for (uint64_t row = 0; row < up(size, 1ull << CHUNK_SHIFT) >> CHUNK_SHIFT; row++)
            put32(after + 4 * row, OUTSIDE);
    } else if (size && !e->data[number]) {
        layout = FLAT_INLINE;
    } else if (size) {
        place = (uint32_t)(e->data[number] / BLOCK);
        after = image + e->data[number];
    } else if (inode->kind == OS_KIND_CHARACTER || inode->kind == OS_KIND_BLOCK) {
        place = (inode->minor & 0xFF) | inode->major << 8 | (inode->minor & ~0xFFu) << 12;
    }
    put16(at, (uint16_t)(1 | layout << 1));
    put16(at + 2, xattrs ? (uint16_t)((xattrs - 12) / 4 + 1) : 0);
    put16(at + 4, (uint16_t)(type_bits(inode->kind) | inode->mode));
    put64(at + 8, size);
    put32(at + 16, place);
    put32(at + 20, number + 1);
    put32(at + 24, inode->uid);
    put32(at + 28, inode->gid);
    put64(at + 32, (uint64_t)inode->mtime_sec);
    put32(at + 40, inode->mtime_nsec);
    put32(at + 44, inode->nlink);
    if (xattrs)
        write_xattrs(e->tree, inode, at + INODE);
    if (inode->kind == OS_KIND_DIRECTORY)
        write_directory(e->tree, number, e->nids, after);
    else if (inode->kind == OS_KIND_SYMLINK)
        memcpy(after, inode->target, inode->size);
}

static void write_super(const encoder *e, uint8_t *at) {
    put32(at, MAGIC);
    at[12] = 12; /* block bits */
    put16(at + 14, (uint16_t)e->nids[0]);
    put64(at + 16, e->tree->inode_count);
    put32(at + 36, (uint32_t)(e->size / BLOCK));
    put32(at + 80, CHUNKED);
}

os_code os_erofs_encode(const os_tree *tree, uint8_t **image, size_t *size, os_failure *failure) {
    encoder e = {.tree = tree, .failure = failure};
    uint8_t *made = NULL;
    os_code code = OS_OK;
    if (tree->inode_count == 0 || tree->inodes[0].kind != OS_KIND_DIRECTORY)
        return os_fail(failure, OS_CORRUPT, "fs.erofs: a tree without a root");
    e.nids = malloc(tree->inode_count * sizeof *e.nids);
    e.data = calloc(tree->inode_count, sizeof *e.data);
    if (!e.nids || !e.data)
        code = os_fail(failure, OS_MEMORY, "fs.erofs: out of memory");
    if (code == OS_OK)
        code = place_inodes(&e);
    if (code == OS_OK && !(made = calloc(1, (size_t)e.size)))
        code = os_fail(failure, OS_MEMORY, "fs.erofs: out of memory");
    if (code == OS_OK) {
        write_super(&e, made + SUPER);
        for (uint32_t number = 0; number < tree->inode_count; number++)
            write_inode(&e, number, made);
        *image = made;
        *size = (size_t)e.size;
    }
    free(e.nids);
    free(e.data);
    return code;
}

/* ---- decoding ---- */

/* A directory whose names are being read. */
typedef struct level {
    uint32_t inode, row;
    const uint8_t *block, *end; /* what is left of its data */
    uint32_t at, count, used;   /* in the block: next entry, entries, bytes */
    uint32_t dots;
} level;

typedef struct decoder {
    const uint8_t *image;
    size_t size;
    os_tree *tree;
    os_failure *failure;
    uint32_t *numbers;          /* owned: inode + 1 by nid */
    uint8_t *names, *names_end; /* the tree's: what is free of them */
} decoder;

static os_code corrupt(const decoder *d, const char *what) {
    return os_fail(d->failure, OS_CORRUPT, "fs.erofs: %s", what);
}

static int digit(uint8_t c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool object_of(const uint8_t *text, size_t size, uint8_t *object) {
    if (size != REDIRECT_SIZE || text[0] != '/' || text[3] != '/')
        return false;
    for (unsigned row = 0; row < OS_ID_SIZE; row++) {
        const uint8_t *at = text + (row ? 2 + 2 * row : 1);
        int high = digit(at[0]), low = digit(at[1]);
        if (high < 0 || low < 0)
            return false;
        object[row] = (uint8_t)(high << 4 | low);
    }
    return true;
}

/* Names are rebuilt from prefix and rest, so they need memory of their own: a canonical image keeps them short. They
 * are compared by the final comparison only, which needs prefix and rest alone: name points at a copy. */
static os_code read_xattrs(decoder *d, uint32_t number, const uint8_t *at, const uint8_t *end) {
    bool metacopy = false, redirect = false;
    if (end - at < 12)
        return corrupt(d, "xattrs are cut short");
    for (at += 12; at < end;) {
        if (end - at < 4)
            return corrupt(d, "an xattr is cut short");
        size_t rest = at[0], value_size = get16(at + 2), prefix = 0;
        while (prefix < PREFIX_COUNT && PREFIXES[prefix].index != at[1])
            prefix++;
        if (prefix == PREFIX_COUNT || xattr_size(rest, value_size) > (size_t)(end - at))
            return corrupt(d, "an xattr is cut short or has no namespace");
        const uint8_t *name = at + 4, *value = name + rest;
        at += xattr_size(rest, value_size);
        if (PREFIXES[prefix].index == 4) { /* trusted: only the two of ours */
            if (rest == 16 && !memcmp(name, METACOPY + 8, 16) && value_size == 0)
                metacopy = true;
            else if (rest == 16 && !memcmp(name, REDIRECT + 8, 16) &&
                     object_of(value, value_size, d->tree->inodes[number].object))
                redirect = true;
            else
                return corrupt(d, "a trusted xattr");
            continue;
        }
        if (rest >= 8 && PREFIXES[prefix].index == 1 && !memcmp(name, "overlay.", 8))
            return corrupt(d, "an xattr that speaks to overlayfs");
        /* Only inodes that overlap, so none of a canonical image, can need more than there is. */
        if ((size_t)(d->names_end - d->names) < PREFIXES[prefix].size + rest)
            return corrupt(d, "inodes that overlap");
        uint32_t row = os_tree_add_xattrs(d->tree, 1);
        if (row == UINT32_MAX)
            return os_fail(d->failure, OS_MEMORY, "fs.erofs: out of memory");
        os_inode *inode = &d->tree->inodes[number];
        if (inode->xattr_count++ == 0)
            inode->xattr_first = row;
        memcpy(d->names, PREFIXES[prefix].text, PREFIXES[prefix].size);
        memcpy(d->names + PREFIXES[prefix].size, name, rest);
        d->tree->xattrs[row] =
            (os_xattr){d->names, value, (uint16_t)(PREFIXES[prefix].size + rest), (uint16_t)value_size};
        d->names += PREFIXES[prefix].size + rest;
    }
    if (metacopy != redirect)
        return corrupt(d, "a file with half of its redirection");
    d->tree->inodes[number].has_object = redirect;
    return OS_OK;
}

static uint8_t kind_of(uint16_t mode) {
    for (uint8_t kind = OS_KIND_FILE; kind <= OS_KIND_FIFO; kind++)
        if ((mode & 0170000) == type_bits(kind))
            return kind;
    return 0;
}

/* Where the data of a directory or symlink lies; all of it inside the image. */
static os_code data_of(const decoder *d, const uint8_t *at, uint64_t xattrs, uint64_t size, const uint8_t **data) {
    unsigned layout = get16(at) >> 1;
    uint64_t offset;
    if (layout == FLAT_INLINE)
        offset = (uint64_t)(at - d->image) + INODE + xattrs;
    else if (layout == FLAT_PLAIN)
        offset = (uint64_t)get32(at + 16) * BLOCK;
    else
        return corrupt(d, "a data layout that is not canonical");
    if (offset > d->size || size > d->size - offset)
        return corrupt(d, "data outside the image");
    *data = d->image + offset;
    return OS_OK;
}

/* A new inode from its nid. data, size: of directories. */
static os_code read_inode(decoder *d, uint64_t nid, uint32_t *number, const uint8_t **data, uint64_t *size) {
    if (nid > (d->size - INODE) / SLOT)
        return corrupt(d, "an inode outside the image");
    const uint8_t *at = d->image + nid * SLOT;
    uint16_t icount = get16(at + 2), mode = get16(at + 4);
    uint64_t xattrs = icount ? 12 + 4 * ((uint64_t)icount - 1) : 0;
    uint8_t kind = kind_of(mode);
    if (!(get16(at) & 1) || !kind || xattrs > d->size - nid * SLOT - INODE)
        return corrupt(d, "an inode that is not canonical");
    *number = os_tree_add_inode(d->tree);
    if (*number == UINT32_MAX)
        return os_fail(d->failure, OS_LIMIT, "fs.erofs: more than %u inodes, or out of memory", OS_INODES_MAX);
    d->numbers[nid] = *number + 1;
    os_inode *inode = &d->tree->inodes[*number];
    uint32_t device = get32(at + 16);
    inode->kind = kind;
    inode->mode = mode & 07777;
    inode->uid = get32(at + 24);
    inode->gid = get32(at + 28);
    inode->mtime_sec = (int64_t)get64(at + 32);
    inode->mtime_nsec = get32(at + 40);
    inode->nlink = kind == OS_KIND_DIRECTORY ? 2 : 1;
    *size = get64(at + 8);
    if (kind == OS_KIND_CHARACTER || kind == OS_KIND_BLOCK) {
        inode->major = device >> 8 & 0xFFF;
        inode->minor = (device & 0xFF) | (device >> 12 & 0xFFF00);
    }
    if (kind == OS_KIND_FILE)
        inode->size = *size;
    if (inode->mtime_nsec >= 1000000000u || inode->size > OS_FILE_SIZE_MAX)
        return corrupt(d, "an inode that is not canonical");
    os_code code = xattrs ? read_xattrs(d, *number, at + INODE, at + INODE + xattrs) : OS_OK;
    inode = &d->tree->inodes[*number];
    if (code == OS_OK && (inode->has_object ? kind != OS_KIND_FILE || !inode->size : inode->size != 0))
        code = corrupt(d, "content and object do not go together");
    if (code == OS_OK && inode->has_object && (inode->size - 1) >> CHUNK_SHIFT > d->size / 4)
        code = corrupt(d, "a file whose chunk map is not there");
    if (code != OS_OK || (kind != OS_KIND_DIRECTORY && kind != OS_KIND_SYMLINK))
        return code;
    code = data_of(d, at, xattrs, *size, data);
    if (code == OS_OK && kind == OS_KIND_SYMLINK) {
        if (*size == 0 || *size > OS_SYMLINK_MAX || memchr(*data, 0, (size_t)*size))
            return corrupt(d, "a symlink that is not canonical");
        inode->size = *size;
        inode->target = *data;
    }
    return code;
}

/* ---- names ---- */

/* Starts the next block of a directory. */
static os_code next_block(decoder *d, level *here) {
    size_t left = (size_t)(here->end - here->block);
    here->used = left < BLOCK ? (uint32_t)left : BLOCK;
    if (here->used < DIRENT + 1)
        return corrupt(d, "a directory block that is too short");
    uint32_t names = get16(here->block + 8);
    if (names == 0 || names % DIRENT || names >= here->used)
        return corrupt(d, "a directory block that is not canonical");
    here->count = names / DIRENT;
    here->at = 0;
    return OS_OK;
}

static os_code read_name(decoder *d, level *here, const uint8_t **name, uint32_t *size, uint64_t *nid) {
    const uint8_t *entry = here->block + here->at * DIRENT;
    uint32_t start = get16(entry + 8);
    uint32_t end = here->at + 1 < here->count ? get16(entry + DIRENT + 8) : here->used;
    if (start >= end || end > here->used || start < here->count * DIRENT)
        return corrupt(d, "a name outside its directory block");
    *name = here->block + start;
    *size = end - start;
    if (here->at + 1 == here->count) { /* the last one may be followed by zeros */
        const uint8_t *zero = memchr(*name, 0, *size);
        if (zero)
            *size = (uint32_t)(zero - *name);
    }
    if (*size == 0 || *size > OS_NAME_MAX || memchr(*name, 0, *size) || memchr(*name, '/', *size))
        return corrupt(d, "a name that no file can have");
    *nid = get64(entry);
    here->at++;
    return OS_OK;
}

static bool is_dots(const uint8_t *name, uint32_t size) {
    return name[0] == '.' && (size == 1 || (size == 2 && name[1] == '.'));
}

/* How many names a directory has, without . and .., so that its entries lie side by side. */
static os_code count_names(decoder *d, const uint8_t *data, uint64_t size, uint32_t *count) {
    level scan = {.block = data, .end = data + size};
    *count = 0;
    while (scan.block < scan.end) {
        os_code code = next_block(d, &scan);
        if (code != OS_OK)
            return code;
        *count += scan.count;
        scan.block += scan.used;
    }
    if (*count < 2)
        return corrupt(d, "a directory without itself and its parent");
    *count -= 2;
    if (*count > d->size / DIRENT - d->tree->entry_count)
        return corrupt(d, "directories that overlap");
    return OS_OK;
}

static os_code enter(decoder *d, uint32_t number, const uint8_t *data, uint64_t size, level *to) {
    uint32_t count;
    os_code code = count_names(d, data, size, &count);
    if (code != OS_OK)
        return code;
    uint32_t first = os_tree_add_entries(d->tree, count);
    if (first == UINT32_MAX)
        return os_fail(d->failure, OS_LIMIT, "fs.erofs: too many names, or out of memory");
    d->tree->inodes[number].entry_first = first;
    d->tree->inodes[number].entry_count = count;
    *to = (level){.inode = number, .row = first, .block = data, .end = data + size};
    return next_block(d, to);
}

static os_code next_entry(decoder *d, level *levels, uint32_t *depth) {
    level *here = &levels[*depth - 1];
    const uint8_t *name = NULL, *data;
    uint32_t size = 0, number;
    uint64_t nid = 0, data_size;
    if (here->at == here->count) {
        here->block += here->used;
        if (here->block == here->end) {
            const os_inode *done = &d->tree->inodes[here->inode];
            (*depth)--;
            return here->dots == 2 && here->row == done->entry_first + done->entry_count
                       ? OS_OK
                       : corrupt(d, "a directory without itself and its parent");
        }
        return next_block(d, here);
    }
    os_code code = read_name(d, here, &name, &size, &nid);
    if (code != OS_OK)
        return code;
    if (is_dots(name, size)) { /* where they lead is checked by the comparison with the canonical image */
        here->dots++;
        return OS_OK;
    }
    if (here->row == d->tree->inodes[here->inode].entry_first + d->tree->inodes[here->inode].entry_count)
        return corrupt(d, "a directory without itself and its parent");
    if (nid > (d->size - INODE) / SLOT)
        return corrupt(d, "an inode outside the image");
    if (d->numbers[nid]) {
        number = d->numbers[nid] - 1;
        if (d->tree->inodes[number].kind == OS_KIND_DIRECTORY)
            return corrupt(d, "a directory with two names");
        d->tree->inodes[number].nlink++;
        d->tree->entries[here->row++] = (os_entry){name, number, (uint16_t)size};
        return OS_OK;
    }
    code = read_inode(d, nid, &number, &data, &data_size);
    if (code != OS_OK)
        return code;
    d->tree->entries[here->row++] = (os_entry){name, number, (uint16_t)size};
    if (d->tree->inodes[number].kind != OS_KIND_DIRECTORY)
        return OS_OK;
    if (*depth == OS_DEPTH_MAX)
        return os_fail(d->failure, OS_LIMIT, "fs.erofs: directories deeper than %u", OS_DEPTH_MAX);
    d->tree->inodes[number].parent = here->inode;
    d->tree->inodes[here->inode].nlink++;
    return enter(d, number, data, data_size, &levels[(*depth)++]);
}

os_code os_erofs_decode(const uint8_t *image, size_t size, os_tree *tree, os_failure *failure) {
    decoder d = {.image = image, .size = size, .tree = tree, .failure = failure};
    uint32_t depth = 1, number;
    const uint8_t *data = NULL;
    uint64_t data_size = 0;
    if (size < BLOCK || size % BLOCK || size > OS_INDEX_MAX || get32(image + SUPER) != MAGIC)
        return corrupt(&d, "this is not one");
    d.numbers = calloc(size / SLOT, sizeof *d.numbers);
    level *levels = malloc(OS_DEPTH_MAX * sizeof *levels);
    /* A name in the tree is its rest in the image and a prefix of at most 24 bytes, beside 4 bytes of head at least. */
    d.names = tree->names = malloc(8 * size);
    d.names_end = d.names ? d.names + 8 * size : NULL;
    os_code code = d.numbers && levels && d.names ? OS_OK : os_fail(failure, OS_MEMORY, "fs.erofs: out of memory");
    if (code == OS_OK)
        code = read_inode(&d, get16(image + SUPER + 14), &number, &data, &data_size);
    if (code == OS_OK && tree->inodes[number].kind != OS_KIND_DIRECTORY)
        code = corrupt(&d, "the root is not a directory");
    if (code == OS_OK)
        code = enter(&d, number, data, data_size, &levels[0]);
    while (code == OS_OK && depth)
        code = next_entry(&d, levels, &depth);
    free(levels);
    free(d.numbers);
    if (code != OS_OK)
        os_tree_free(tree);
    return code;
}

os_code os_erofs_check(const uint8_t *image, size_t size, os_tree *tree, os_failure *failure) {
    uint8_t *again = NULL;
    size_t again_size = 0;
    os_code code = os_erofs_decode(image, size, tree, failure);
    if (code != OS_OK)
        return code;
    code = os_erofs_encode(tree, &again, &again_size, failure);
    if (code == OS_OK && (again_size != size || memcmp(image, again, size)))
        code = os_fail(failure, OS_CORRUPT, "fs.erofs: it is not the canonical image of its tree");
    free(again);
    if (code != OS_OK)
        os_tree_free(tree);
    return code;
}
