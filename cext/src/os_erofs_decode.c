/* Decoding walks from the root, depth first, with a stack of its own, so that input cannot make the C stack deep. An
 * inode that is met again is one more name of it; a directory that is met again is an error.
 *
 * What encoding would write the same again is checked here, because the comparison cannot see it: order of names and of
 * xattrs, names that no file can have, a character device 0:0, what speaks to overlayfs. Everything else (places,
 * padding, nlink, . and .., the superblock) is left to the comparison in os_erofs_check. */
#include "os_erofs.h"

#include <stdlib.h>

#include "os_erofs_disk.h"

/* A directory whose names are being read. */
typedef struct level {
    uint32_t inode, row;
    const uint8_t *block, *end; /* what is left of its data */
    const uint8_t *last;        /* name before, . and .. aside; NULL at the first */
    uint32_t at, count, used;   /* in the block: next entry, entries, bytes */
    uint32_t dots;
    uint32_t last_size;
} level;

typedef struct decoder {
    const uint8_t *image;
    size_t size;
    uint64_t room; /* bytes that inodes have not used yet: what keeps overlapping ones from costing time and memory */
    os_tree *tree;
    os_failure *failure;
    uint32_t *numbers; /* owned: inode + 1 by nid */
    uint8_t *names;    /* the tree's: what is free of them */
} decoder;

static os_code corrupt(const decoder *d, const char *what) {
    return os_fail(d->failure, OS_CORRUPT, "fs.erofs: %s", what);
}

static os_code use(decoder *d, uint64_t bytes) {
    if (bytes > d->room)
        return corrupt(d, "inodes that overlap");
    d->room -= bytes;
    return OS_OK;
}

/* ---- xattrs ---- */

/* What digits stand for, without a branch (random digits would mispredict most of them: 3x). Anything but a digit gives
 * some number, which the comparison finds out. */
static uint8_t digit(uint8_t c) {
    return (uint8_t)((c & 15) + 9 * (c >> 6)) & 15;
}

static void object_of(const uint8_t *text, uint8_t *object) {
    object[0] = (uint8_t)(digit(text[1]) << 4 | digit(text[2]));
    for (unsigned row = 1; row < OS_ID_SIZE; row++)
        object[row] = (uint8_t)(digit(text[2 + 2 * row]) << 4 | digit(text[3 + 2 * row]));
}

/* One xattr where it lies. */
typedef struct raw_xattr {
    const uint8_t *rest, *value;
    uint16_t value_size;
    uint8_t index, rest_size;
} raw_xattr;

/* at moves behind it. */
static os_code next_xattr(const decoder *d, const uint8_t **at, const uint8_t *end, raw_xattr *out) {
    if (end - *at < (ptrdiff_t)OS_EROFS_XATTR_HEAD)
        return corrupt(d, "an xattr is cut short");
    *out = (raw_xattr){*at + OS_EROFS_XATTR_HEAD, NULL, os_get16(*at + 2), (*at)[1], (*at)[0]};
    uint64_t size = os_erofs_xattr_size(out->rest_size, out->value_size);
    if (size > (uint64_t)(end - *at))
        return corrupt(d, "an xattr is cut short");
    out->value = out->rest + out->rest_size;
    *at += size;
    return OS_OK;
}

/* What joins a file with its object: the last two xattrs, and the only trusted ones. */
static os_code read_redirect(decoder *d, os_inode *inode, const raw_xattr *metacopy, const uint8_t *at,
                             const uint8_t *end) {
    raw_xattr redirect = {0};
    if (metacopy->rest_size != OS_EROFS_REST || memcmp(metacopy->rest, OS_EROFS_METACOPY, OS_EROFS_REST) ||
        metacopy->value_size)
        return corrupt(d, "a trusted xattr that is not canonical");
    os_code code = next_xattr(d, &at, end, &redirect);
    if (code != OS_OK)
        return code;
    if (redirect.index != OS_EROFS_TRUSTED || redirect.rest_size != OS_EROFS_REST ||
        memcmp(redirect.rest, OS_EROFS_REDIRECT, OS_EROFS_REST) || redirect.value_size != OS_EROFS_REDIRECT_SIZE ||
        at != end)
        return corrupt(d, "a redirection that is not canonical");
    object_of(redirect.value, inode->object);
    inode->has_object = 1;
    return OS_OK;
}

/* Whole names need memory of their own, where namespace and rest stand side by side: at most 13 bytes for 8 of the
 * image, and no inode uses the bytes of another, so twice the image is enough. */
static os_code add_xattr(decoder *d, os_inode *inode, const raw_xattr *raw) {
    const os_erofs_namespace *space = NULL;
    for (size_t row = 0; !space && row < OS_EROFS_NAMESPACE_COUNT; row++)
        if (OS_EROFS_NAMESPACES[row].index == raw->index)
            space = &OS_EROFS_NAMESPACES[row];
    if (!space || space->whole != (raw->rest_size == 0))
        return corrupt(d, "an xattr in no namespace");
    const uint8_t *name = (const uint8_t *)space->text;
    size_t size = (size_t)space->size + raw->rest_size;
    if (!space->whole) {
        memcpy(d->names, space->text, space->size);
        memcpy(d->names + space->size, raw->rest, raw->rest_size);
        name = d->names;
        d->names += size;
    }
    if (!os_xattr_allowed(name, size))
        return corrupt(d, "an xattr has a name that may not occur");
    uint32_t row = os_tree_add_xattrs(d->tree, 1);
    if (row == UINT32_MAX)
        return os_fail(d->failure, OS_MEMORY, "fs.erofs: out of memory");
    os_xattr *one = &d->tree->xattrs[row];
    if (inode->xattr_count++ == 0)
        inode->xattr_first = row;
    else if (os_compare_names(one[-1].name, one[-1].name_size, name, size) >= 0)
        return corrupt(d, "xattrs are not in order");
    *one = (os_xattr){name, raw->value, (uint16_t)size, raw->value_size};
    return OS_OK;
}

static os_code read_xattrs(decoder *d, os_inode *inode, const uint8_t *at, const uint8_t *end) {
    size_t total = 0;
    for (at += OS_EROFS_XATTRS_HEAD; at < end;) {
        raw_xattr raw = {0};
        os_code code = next_xattr(d, &at, end, &raw);
        if (code == OS_OK && raw.index == OS_EROFS_TRUSTED)
            return read_redirect(d, inode, &raw, at, end);
        if (code == OS_OK)
            code = add_xattr(d, inode, &raw);
        if (code != OS_OK)
            return code;
        const os_xattr *one = &d->tree->xattrs[d->tree->xattr_count - 1];
        total += (size_t)one->name_size + one->value_size;
        if (total > OS_XATTR_TOTAL_MAX)
            return os_fail(d->failure, OS_LIMIT, "fs.erofs: an inode has more than %u bytes of xattrs",
                           OS_XATTR_TOTAL_MAX);
    }
    return OS_OK;
}

/* ---- inodes ---- */

static uint8_t kind_of(uint16_t mode) {
    for (uint8_t kind = OS_KIND_FILE; kind <= OS_KIND_FIFO; kind++)
        if ((mode & 0170000) == os_erofs_type_bits(kind))
            return kind;
    return 0;
}

/* Where the data of a directory or symlink lies; all of it inside the image. */
static os_code data_of(decoder *d, const uint8_t *at, uint64_t xattrs, uint64_t size, const uint8_t **data) {
    unsigned layout = os_get16(at) >> 1;
    uint64_t offset;
    if (layout == OS_EROFS_INLINE)
        offset = (uint64_t)(at - d->image) + OS_EROFS_INODE + xattrs;
    else if (layout == OS_EROFS_FLAT)
        offset = (uint64_t)os_get32(at + 16) * OS_EROFS_BLOCK;
    else
        return corrupt(d, "a data layout that is not canonical");
    if (offset > d->size || size > d->size - offset)
        return corrupt(d, "data outside the image");
    *data = d->image + offset;
    return use(d, size);
}

/* What is the same for all kinds. */
static void read_head(os_inode *inode, const uint8_t *at, uint8_t kind) {
    uint32_t device = os_get32(at + 16);
    inode->kind = kind;
    inode->mode = os_get16(at + 4) & 07777;
    inode->uid = os_get32(at + 24);
    inode->gid = os_get32(at + 28);
    inode->mtime_sec = (int64_t)os_get64(at + 32);
    inode->mtime_nsec = os_get32(at + 40);
    inode->nlink = kind == OS_KIND_DIRECTORY ? 2 : 1;
    if (kind == OS_KIND_CHARACTER || kind == OS_KIND_BLOCK) {
        inode->major = device >> 8 & 0xFFF;
        inode->minor = (device & 0xFF) | (device >> 12 & 0xFFF00);
    }
}

static os_code read_body(decoder *d, os_inode *inode, const uint8_t *at, uint64_t xattrs, const uint8_t **data) {
    uint64_t size = os_get64(at + 8);
    os_code code = OS_OK;
    switch (inode->kind) {
    case OS_KIND_FILE:
        if (size > OS_FILE_SIZE_MAX || (size != 0) != inode->has_object)
            return corrupt(d, "content and object do not go together");
        inode->size = size;
        return size ? use(d, 4 * os_erofs_chunks(size)) : OS_OK;
    case OS_KIND_DIRECTORY:
        return data_of(d, at, xattrs, size, data);
    case OS_KIND_SYMLINK:
        if (size == 0 || size > OS_SYMLINK_MAX)
            return corrupt(d, "a symlink of impossible length");
        code = data_of(d, at, xattrs, size, data);
        if (code == OS_OK && memchr(*data, 0, (size_t)size))
            return corrupt(d, "a symlink's target holds a NUL");
        inode->size = size;
        inode->target = *data;
        return code;
    case OS_KIND_CHARACTER:
        return inode->major || inode->minor ? OS_OK : corrupt(d, "a character device 0:0");
    default:
        return OS_OK;
    }
}

/* A new inode from its nid, which is in range. data: of directories and symlinks. */
static os_code read_inode(decoder *d, uint64_t nid, uint32_t *number, const uint8_t **data) {
    const uint8_t *at = d->image + nid * OS_EROFS_SLOT;
    uint16_t icount = os_get16(at + 2);
    uint64_t xattrs = icount ? OS_EROFS_XATTRS_HEAD + 4 * ((uint64_t)icount - 1) : 0;
    uint8_t kind = kind_of(os_get16(at + 4));
    if (!(os_get16(at) & 1) || !kind || os_get32(at + 40) >= 1000000000u ||
        xattrs > d->size - nid * OS_EROFS_SLOT - OS_EROFS_INODE)
        return corrupt(d, "an inode that is not canonical");
    os_code code = use(d, OS_EROFS_INODE + xattrs);
    if (code != OS_OK)
        return code;
    *number = os_tree_add_inode(d->tree);
    if (*number == UINT32_MAX)
        return os_fail(d->failure, OS_LIMIT, "fs.erofs: more than %u inodes, or out of memory", OS_INODES_MAX);
    d->numbers[nid] = *number + 1;
    os_inode *inode = &d->tree->inodes[*number]; /* stays where it is until the next inode */
    read_head(inode, at, kind);
    if (xattrs)
        code = read_xattrs(d, inode, at + OS_EROFS_INODE, at + OS_EROFS_INODE + xattrs);
    if (code == OS_OK && inode->has_object && kind != OS_KIND_FILE)
        return corrupt(d, "an object of what is no file");
    return code == OS_OK ? read_body(d, inode, at, xattrs, data) : code;
}

/* ---- names ---- */

/* Starts the next block of a directory. */
static os_code next_block(const decoder *d, level *here) {
    size_t left = (size_t)(here->end - here->block);
    here->used = left < OS_EROFS_BLOCK ? (uint32_t)left : OS_EROFS_BLOCK;
    if (here->used < OS_EROFS_DIRENT + 1)
        return corrupt(d, "a directory block that is too short");
    uint32_t names = os_get16(here->block + 8);
    if (names == 0 || names % OS_EROFS_DIRENT || names >= here->used)
        return corrupt(d, "a directory block that is not canonical");
    here->count = names / OS_EROFS_DIRENT;
    here->at = 0;
    return OS_OK;
}

static os_code read_name(const decoder *d, level *here, const uint8_t **name, uint32_t *size, uint64_t *nid) {
    const uint8_t *entry = here->block + here->at * OS_EROFS_DIRENT;
    uint32_t start = os_get16(entry + 8);
    uint32_t end = here->at + 1 < here->count ? os_get16(entry + OS_EROFS_DIRENT + 8) : here->used;
    if (start >= end || end > here->used || start < here->count * OS_EROFS_DIRENT)
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
    *nid = os_get64(entry);
    if (*nid > (d->size - OS_EROFS_INODE) / OS_EROFS_SLOT)
        return corrupt(d, "an inode outside the image");
    here->at++;
    return OS_OK;
}

static bool is_dots(const uint8_t *name, uint32_t size) {
    return name[0] == '.' && (size == 1 || (size == 2 && name[1] == '.'));
}

/* Names after . and .. are aside, strictly ascending over all blocks. */
static os_code check_order(const decoder *d, level *here, const uint8_t *name, uint32_t size) {
    if (here->last && os_compare_names(here->last, here->last_size, name, size) >= 0)
        return corrupt(d, "names are not in order");
    here->last = name;
    here->last_size = size;
    return OS_OK;
}

/* How many names a directory has, without . and .., so that its entries lie side by side. */
static os_code count_names(decoder *d, const uint8_t *data, uint64_t size, uint32_t *count) {
    level scan = {.block = data, .end = data + size};
    uint64_t sum = 0;
    while (scan.block < scan.end) {
        os_code code = next_block(d, &scan);
        if (code != OS_OK)
            return code;
        sum += scan.count;
        scan.block += scan.used;
    }
    if (sum < 2)
        return corrupt(d, "a directory without itself and its parent");
    *count = (uint32_t)(sum - 2); /* size / 12 at most */
    return OS_OK;
}

static os_code enter(decoder *d, uint32_t number, const uint8_t *data, uint64_t size, level *to) {
    uint32_t count = 0;
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

/* The directory's last name was read. */
static os_code leave(const decoder *d, const level *here, uint32_t *depth) {
    const os_inode *done = &d->tree->inodes[here->inode];
    (*depth)--;
    return here->dots == 2 && here->row == done->entry_first + done->entry_count
               ? OS_OK
               : corrupt(d, "a directory without itself and its parent");
}

static os_code next_entry(decoder *d, level *levels, uint32_t *depth) {
    level *here = &levels[*depth - 1];
    const uint8_t *name = NULL, *data = NULL;
    uint32_t size = 0, number;
    uint64_t nid = 0;
    if (here->at == here->count) {
        here->block += here->used;
        return here->block == here->end ? leave(d, here, depth) : next_block(d, here);
    }
    os_code code = read_name(d, here, &name, &size, &nid);
    if (code != OS_OK)
        return code;
    if (is_dots(name, size)) {
        here->dots++;
        return OS_OK;
    }
    if (here->row == d->tree->inodes[here->inode].entry_first + d->tree->inodes[here->inode].entry_count)
        return corrupt(d, "a directory without itself and its parent");
    code = check_order(d, here, name, size);
    if (code != OS_OK)
        return code;
    bool again = d->numbers[nid] != 0;
    if (!again)
        code = read_inode(d, nid, &number, &data);
    else
        number = d->numbers[nid] - 1;
    if (code != OS_OK)
        return code;
    os_inode *inode = &d->tree->inodes[number];
    d->tree->entries[here->row++] = (os_entry){name, number, (uint16_t)size};
    if (inode->kind != OS_KIND_DIRECTORY) {
        inode->nlink += again;
        return OS_OK;
    }
    if (again)
        return corrupt(d, "a directory with two names");
    if (*depth > OS_DEPTH_MAX)
        return os_fail(d->failure, OS_LIMIT, "fs.erofs: directories deeper than %u", OS_DEPTH_MAX);
    inode->parent = here->inode;
    d->tree->inodes[here->inode].nlink++;
    return enter(d, number, data, os_get64(d->image + nid * OS_EROFS_SLOT + 8), &levels[(*depth)++]);
}

/* ---- the whole ---- */

static os_code walk(decoder *d, level *levels) {
    uint64_t root = os_get16(d->image + OS_EROFS_SUPER + 14);
    uint32_t depth = 1, number = 0;
    const uint8_t *data = NULL;
    if (root > (d->size - OS_EROFS_INODE) / OS_EROFS_SLOT)
        return corrupt(d, "an inode outside the image");
    os_code code = read_inode(d, root, &number, &data);
    if (code == OS_OK && d->tree->inodes[number].kind != OS_KIND_DIRECTORY)
        code = corrupt(d, "the root is not a directory");
    if (code == OS_OK)
        code = enter(d, number, data, os_get64(d->image + root * OS_EROFS_SLOT + 8), &levels[0]);
    while (code == OS_OK && depth)
        code = next_entry(d, levels, &depth);
    return code;
}

os_code os_erofs_decode(const uint8_t *image, size_t size, os_tree *tree, os_failure *failure) {
    decoder d = {.image = image, .size = size, .room = size, .tree = tree, .failure = failure};
    if (size > OS_INDEX_MAX)
        return os_fail(failure, OS_LIMIT, "fs.erofs: got %zu bytes, want at most %llu", size, OS_INDEX_MAX);
    if (size < OS_EROFS_BLOCK || size % OS_EROFS_BLOCK || os_get32(image + OS_EROFS_SUPER) != OS_EROFS_MAGIC)
        return corrupt(&d, "this is not one");
    d.numbers = calloc(size / OS_EROFS_SLOT, sizeof *d.numbers);
    d.names = tree->names = malloc(2 * size); /* touched as far as it is needed */
    level *levels = malloc((OS_DEPTH_MAX + 1) * sizeof *levels);
    os_code code =
        d.numbers && levels && d.names ? walk(&d, levels) : os_fail(failure, OS_MEMORY, "fs.erofs: out of memory");
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
    code = os_erofs_encode(tree, size, &again, &again_size, failure);
    if (code == OS_OK && memcmp(image, again, size))
        code = os_fail(failure, OS_CORRUPT, "fs.erofs: it is not the canonical image of its tree");
    free(again);
    if (code != OS_OK)
        os_tree_free(tree);
    return code;
}
