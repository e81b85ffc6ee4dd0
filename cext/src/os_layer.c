/* First all records are found and hashed, then the tree is walked from the root with a stack of its own: input decides
 * its depth, so the C stack must not. A record that several directories share is walked once for each. */
#include "os_layer.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "os_bytes.h"
#include "os_hash.h"

#define FIXED 56u
#define PART 40u
#define RECORD_CONTEXT "onesec 2026 layer directory v1"
#define OBJECT_CONTEXT "onesec 2026 object v1"

typedef struct record {
    const uint8_t *data;
    uint32_t size;
    uint8_t digest[OS_ID_SIZE];
} record;

/* An entry where it lies. */
typedef struct raw_entry {
    const uint8_t *fixed; /* FIXED bytes */
    const uint8_t *name;
    const uint8_t *rest; /* xattrs and payload */
    size_t rest_size;
    const uint8_t *payload;
    uint32_t xattr_count;
    uint16_t name_size;
} raw_entry;

/* A directory that is being walked. */
typedef struct level {
    const uint8_t *at, *end;
    const uint8_t *last_name;
    uint32_t left, row, inode;
    uint16_t last_size;
} level;

/* Names of one inode find each other by what their entries say. */
typedef struct group {
    uint64_t key; /* 0: empty slot */
    const uint8_t *fixed, *rest;
    size_t rest_size;
    uint32_t inode;
} group;

typedef struct decoder {
    os_tree *tree;
    os_failure *failure;
    record *records; /* owned */
    uint32_t record_count;
    uint32_t *slots; /* owned: record + 1 by digest; 0 is empty */
    uint32_t slot_count;
    group *groups; /* owned */
    uint32_t group_room, group_count;
    os_hasher object; /* keyed with the context, before any input */
} decoder;

static os_code corrupt(decoder *d, const char *what) {
    return os_fail(d->failure, OS_CORRUPT, "layer index: %s", what);
}

/* ---- one entry ---- */

static os_code walk_xattrs(decoder *d, const uint8_t *at, const uint8_t *end, uint32_t count, raw_entry *entry) {
    const uint8_t *last = NULL;
    size_t last_size = 0, total = 0;
    for (uint32_t row = 0; row < count; row++) {
        if (end - at < 4)
            return corrupt(d, "an xattr is cut short");
        size_t name_size = os_get16(at), value_size = os_get16(at + 2);
        at += 4;
        if (name_size == 0 || name_size > OS_NAME_MAX || (size_t)(end - at) < name_size + value_size)
            return corrupt(d, "an xattr is cut short");
        total += name_size + value_size;
        if (total > OS_XATTR_TOTAL_MAX)
            return os_fail(d->failure, OS_LIMIT, "layer index: an entry has more than %u bytes of xattrs",
                           OS_XATTR_TOTAL_MAX);
        if (last && os_compare_names(last, last_size, at, name_size) >= 0)
            return corrupt(d, "xattrs are not in order");
        if (!os_xattr_allowed(at, name_size))
            return corrupt(d, "an xattr has a name that may not occur");
        last = at;
        last_size = name_size;
        at += name_size + value_size;
    }
    entry->payload = at;
    return OS_OK;
}

static os_code payload_size(decoder *d, const raw_entry *entry, const uint8_t *end, size_t *size) {
    uint64_t length = os_get64(entry->fixed + 40);
    uint32_t parts = os_get32(entry->fixed + 48);
    size_t there = (size_t)(end - entry->payload);
    switch (entry->fixed[0]) {
    case OS_KIND_FILE:
        if (parts > there / PART)
            return corrupt(d, "a file's parts are cut short");
        *size = (size_t)parts * PART;
        return OS_OK;
    case OS_KIND_DIRECTORY:
        *size = OS_ID_SIZE;
        return there < OS_ID_SIZE ? corrupt(d, "a directory is cut short") : OS_OK;
    case OS_KIND_SYMLINK:
        if (length == 0 || length > OS_SYMLINK_MAX || length > there)
            return corrupt(d, "a symlink's target is cut short or too long");
        *size = (size_t)length;
        return memchr(entry->payload, 0, *size) ? corrupt(d, "a symlink's target holds a NUL") : OS_OK;
    case OS_KIND_CHARACTER:
    case OS_KIND_BLOCK:
    case OS_KIND_FIFO:
        *size = 0;
        return OS_OK;
    default:
        return corrupt(d, "a kind of entry that a merged tree cannot have");
    }
}

static os_code check_fields(decoder *d, const raw_entry *entry) {
    const uint8_t *fixed = entry->fixed;
    uint8_t kind = fixed[0];
    uint64_t length = os_get64(fixed + 40);
    if (fixed[1])
        return corrupt(d, "an opaque or implicit directory in a merged tree");
    if (os_get32(fixed + 4) > 07777)
        return corrupt(d, "mode: more than permission bits");
    if (os_get32(fixed + 24) >= 1000000000u)
        return corrupt(d, "mtime: a second or more of nanoseconds");
    if (kind == OS_KIND_DIRECTORY && os_get64(fixed + 32))
        return corrupt(d, "a directory in a link group");
    if ((kind == OS_KIND_DIRECTORY || kind == OS_KIND_FIFO) && length)
        return corrupt(d, "a size where none can be");
    if (kind != OS_KIND_FILE && (os_get32(fixed + 48) || os_get32(fixed + 52)))
        return corrupt(d, "parts where none can be");
    if (kind == OS_KIND_CHARACTER && length == 0)
        return corrupt(d, "a character device 0:0");
    return OS_OK;
}

/* at moves behind the entry. */
static os_code parse_entry(decoder *d, const uint8_t **at, const uint8_t *end, bool root, raw_entry *entry) {
    size_t size = 0;
    if (end - *at < (ptrdiff_t)FIXED)
        return corrupt(d, "an entry is cut short");
    entry->fixed = *at;
    entry->name = *at + FIXED;
    entry->name_size = os_get16(entry->fixed + 2);
    entry->xattr_count = os_get32(entry->fixed + 28);
    if (root ? entry->name_size != 0 : entry->name_size == 0 || entry->name_size > OS_NAME_MAX)
        return corrupt(d, "a name of impossible length");
    if ((size_t)(end - entry->name) < entry->name_size)
        return corrupt(d, "a name is cut short");
    if (memchr(entry->name, '/', entry->name_size) || memchr(entry->name, 0, entry->name_size) ||
        (entry->name[0] == '.' && (entry->name_size == 1 || (entry->name_size == 2 && entry->name[1] == '.'))))
        if (!root)
            return corrupt(d, "a name that no file can have");
    entry->rest = entry->name + entry->name_size;
    os_code code = check_fields(d, entry);
    if (code == OS_OK)
        code = walk_xattrs(d, entry->rest, end, entry->xattr_count, entry);
    if (code == OS_OK)
        code = payload_size(d, entry, end, &size);
    if (code != OS_OK)
        return code;
    *at = entry->payload + size;
    entry->rest_size = (size_t)(*at - entry->rest);
    return OS_OK;
}

/* ---- inodes ---- */

static os_code take_parts(decoder *d, os_inode *inode, const raw_entry *entry) {
    static const uint8_t HOLE[OS_ID_SIZE];
    uint32_t algorithm = os_get32(entry->fixed + 52);
    uint64_t sum = 0;
    bool after_hole = false;
    inode->part_count = os_get32(entry->fixed + 48);
    if (inode->part_count == 0)
        return inode->size || algorithm ? corrupt(d, "a file without parts that is not empty") : OS_OK;
    if (algorithm != 1 && algorithm != 2)
        return corrupt(d, "a hash algorithm that does not exist");
    for (uint32_t row = 0; row < inode->part_count; row++) {
        const uint8_t *part = entry->payload + (size_t)row * PART;
        uint64_t length = os_get64(part);
        bool hole = !memcmp(part + 8, HOLE, OS_ID_SIZE);
        if (length == 0 || length > inode->size - sum || (hole && after_hole) || (!hole && length > OS_CHUNK_MAX))
            return corrupt(d, "a file's parts do not make up the file");
        after_hole = hole;
        sum += length;
    }
    if (sum != inode->size)
        return corrupt(d, "a file's parts do not make up the file");
    uint8_t head[24] = {(uint8_t)algorithm};
    uint64_t size = htole64(inode->size), count = htole64(inode->part_count);
    memcpy(head + 8, &size, 8);
    memcpy(head + 16, &count, 8);
    os_hasher hasher = d->object;
    os_hasher_update(&hasher, head, sizeof head);
    os_hasher_update(&hasher, entry->payload, (size_t)inode->part_count * PART);
    os_hasher_final(&hasher, inode->object, OS_ID_SIZE);
    inode->has_object = 1;
    inode->algorithm = (uint8_t)algorithm;
    inode->parts = entry->payload;
    return OS_OK;
}

static os_code take_xattrs(decoder *d, uint32_t number, const raw_entry *entry) {
    const uint8_t *at = entry->rest;
    uint32_t first = os_tree_add_xattrs(d->tree, entry->xattr_count);
    if (first == UINT32_MAX)
        return os_fail(d->failure, OS_MEMORY, "layer index: out of memory");
    d->tree->inodes[number].xattr_first = first;
    d->tree->inodes[number].xattr_count = entry->xattr_count;
    for (uint32_t row = first; row < first + entry->xattr_count; row++) {
        os_xattr *one = &d->tree->xattrs[row];
        one->name_size = os_get16(at);
        one->value_size = os_get16(at + 2);
        one->name = at + 4;
        one->value = one->name + one->name_size;
        at += 4 + one->name_size + one->value_size;
    }
    return OS_OK;
}

static os_code new_inode(decoder *d, const raw_entry *entry, uint32_t *number) {
    const uint8_t *fixed = entry->fixed;
    *number = os_tree_add_inode(d->tree);
    if (*number == UINT32_MAX)
        return os_fail(d->failure, OS_LIMIT, "layer index: more than %u inodes, or out of memory", OS_INODES_MAX);
    os_inode *inode = &d->tree->inodes[*number];
    uint64_t length = os_get64(fixed + 40);
    inode->kind = fixed[0];
    inode->mode = (uint16_t)os_get32(fixed + 4);
    inode->uid = os_get32(fixed + 8);
    inode->gid = os_get32(fixed + 12);
    inode->mtime_sec = (int64_t)os_get64(fixed + 16);
    inode->mtime_nsec = os_get32(fixed + 24);
    inode->nlink = inode->kind == OS_KIND_DIRECTORY ? 2 : 1;
    if (inode->kind == OS_KIND_CHARACTER || inode->kind == OS_KIND_BLOCK) {
        inode->major = (uint32_t)(length >> 32);
        inode->minor = (uint32_t)length;
        if (inode->major >= 1u << 12 || inode->minor >= 1u << 20)
            return corrupt(d, "a device number that Linux cannot have");
    } else {
        inode->size = length;
    }
    if (inode->size > OS_FILE_SIZE_MAX)
        return os_fail(d->failure, OS_LIMIT, "layer index: a file longer than Linux can have");
    if (inode->kind == OS_KIND_SYMLINK)
        inode->target = entry->payload;
    os_code code = inode->kind == OS_KIND_FILE ? take_parts(d, inode, entry) : OS_OK;
    return code == OS_OK && entry->xattr_count ? take_xattrs(d, *number, entry) : code;
}

/* ---- link groups ---- */

static uint64_t group_key(const raw_entry *entry) {
    uint8_t id[OS_ID_SIZE];
    uint64_t key;
    os_hasher hasher;
    os_hasher_init(&hasher);
    os_hasher_update(&hasher, entry->fixed, 2);
    os_hasher_update(&hasher, entry->fixed + 4, FIXED - 4);
    os_hasher_update(&hasher, entry->rest, entry->rest_size);
    os_hasher_final(&hasher, id, sizeof id);
    memcpy(&key, id, sizeof key);
    return key ? key : 1;
}

static bool grow_groups(decoder *d) {
    if (2 * (d->group_count + 1) <= d->group_room)
        return true;
    uint32_t room = d->group_room ? 2 * d->group_room : 256;
    group *slots = calloc(room, sizeof *slots);
    if (!slots)
        return false;
    for (uint32_t at = 0; at < d->group_room; at++)
        if (d->groups[at].key) {
            uint64_t to = d->groups[at].key;
            while (slots[to & (room - 1)].key)
                to++;
            slots[to & (room - 1)] = d->groups[at];
        }
    free(d->groups);
    d->groups = slots;
    d->group_room = room;
    return true;
}

/* The inode that the entry is one more name of, or a new one. */
static os_code grouped_inode(decoder *d, const raw_entry *entry, uint32_t *number) {
    if (!grow_groups(d))
        return os_fail(d->failure, OS_MEMORY, "layer index: out of memory");
    uint64_t key = group_key(entry), at = key;
    group *slot;
    for (;; at++) {
        slot = &d->groups[at & (d->group_room - 1)];
        if (!slot->key)
            break;
        if (slot->key == key && slot->rest_size == entry->rest_size && slot->fixed[0] == entry->fixed[0] &&
            !memcmp(slot->fixed + 4, entry->fixed + 4, FIXED - 4) &&
            !memcmp(slot->rest, entry->rest, entry->rest_size)) {
            *number = slot->inode;
            d->tree->inodes[slot->inode].nlink++;
            return OS_OK;
        }
    }
    os_code code = new_inode(d, entry, number);
    if (code == OS_OK) {
        *slot = (group){key, entry->fixed, entry->rest, entry->rest_size, *number};
        d->group_count++;
    }
    return code;
}

/* ---- records ---- */

static const record *find_record(const decoder *d, const uint8_t *digest) {
    uint64_t at;
    memcpy(&at, digest, sizeof at);
    for (; d->slots[at & (d->slot_count - 1)]; at++) {
        const record *one = &d->records[d->slots[at & (d->slot_count - 1)] - 1];
        if (!memcmp(one->digest, digest, OS_ID_SIZE))
            return one;
    }
    return NULL;
}

static os_code read_records(decoder *d, const uint8_t *at, const uint8_t *end) {
    if (d->record_count == 0 || d->record_count > (size_t)(end - at) / 8)
        return corrupt(d, "records are cut short");
    d->slot_count = 16;
    while (d->slot_count < 2 * d->record_count)
        d->slot_count *= 2;
    d->records = malloc(d->record_count * sizeof *d->records);
    d->slots = calloc(d->slot_count, sizeof *d->slots);
    if (!d->records || !d->slots)
        return os_fail(d->failure, OS_MEMORY, "layer index: out of memory");
    for (uint32_t row = 0; row < d->record_count; row++) {
        record *one = &d->records[row];
        if (end - at < 8 || os_get32(at) < 4 || os_get32(at) > (size_t)(end - at) - 4)
            return corrupt(d, "a record is cut short");
        one->size = os_get32(at);
        one->data = at + 4;
        at += 4 + one->size;
        os_blake3_derive(RECORD_CONTEXT, one->data, one->size, one->digest);
        if (find_record(d, one->digest))
            return corrupt(d, "a record stands there twice");
        uint64_t slot;
        memcpy(&slot, one->digest, sizeof slot);
        while (d->slots[slot & (d->slot_count - 1)])
            slot++;
        d->slots[slot & (d->slot_count - 1)] = row + 1;
    }
    return at == end ? OS_OK : corrupt(d, "bytes after the last record");
}

/* ---- the walk ---- */

static os_code enter(decoder *d, const uint8_t *digest, uint32_t inode, level *to) {
    const record *one = find_record(d, digest);
    if (!one)
        return corrupt(d, "a directory's record is not there");
    uint32_t count = os_get32(one->data);
    if (count > (one->size - 4) / (FIXED + 1))
        return corrupt(d, "a record is cut short");
    uint32_t first = os_tree_add_entries(d->tree, count);
    if (first == UINT32_MAX)
        return os_fail(d->failure, OS_LIMIT, "layer index: too many names, or out of memory");
    d->tree->inodes[inode].entry_first = first;
    d->tree->inodes[inode].entry_count = count;
    *to = (level){one->data + 4, one->data + one->size, NULL, count, first, inode, 0};
    return OS_OK;
}

static os_code next_entry(decoder *d, level *levels, uint32_t *depth) {
    level *here = &levels[*depth - 1];
    raw_entry entry;
    uint32_t number;
    os_code code = parse_entry(d, &here->at, here->end, false, &entry);
    if (code != OS_OK)
        return code;
    if (here->last_name && os_compare_names(here->last_name, here->last_size, entry.name, entry.name_size) >= 0)
        return corrupt(d, "names are not in order");
    here->last_name = entry.name;
    here->last_size = entry.name_size;
    code = os_get64(entry.fixed + 32) ? grouped_inode(d, &entry, &number) : new_inode(d, &entry, &number);
    if (code != OS_OK)
        return code;
    d->tree->entries[here->row++] = (os_entry){entry.name, number, entry.name_size};
    here->left--;
    if (entry.fixed[0] != OS_KIND_DIRECTORY)
        return OS_OK;
    if (*depth == OS_DEPTH_MAX)
        return os_fail(d->failure, OS_LIMIT, "layer index: directories deeper than %u", OS_DEPTH_MAX);
    d->tree->inodes[number].parent = here->inode;
    d->tree->inodes[here->inode].nlink++;
    return enter(d, entry.payload, number, &levels[(*depth)++]);
}

static os_code walk(decoder *d, const raw_entry *root) {
    uint32_t number, depth = 1;
    level *levels = malloc(OS_DEPTH_MAX * sizeof *levels);
    if (!levels)
        return os_fail(d->failure, OS_MEMORY, "layer index: out of memory");
    os_code code = new_inode(d, root, &number);
    if (code == OS_OK)
        code = enter(d, root->payload, number, &levels[0]);
    while (code == OS_OK && depth) {
        level *here = &levels[depth - 1];
        if (here->left)
            code = next_entry(d, levels, &depth);
        else if (here->at != here->end)
            code = corrupt(d, "bytes after the last entry of a record");
        else
            depth--;
    }
    free(levels);
    return code;
}

os_code os_layer_decode(const uint8_t *data, size_t size, os_tree *tree, os_failure *failure) {
    decoder d = {.tree = tree, .failure = failure};
    raw_entry root;
    const uint8_t *at = data + 16, *end = data + size;
    if (size < 16 + FIXED || size > OS_INDEX_MAX || memcmp(data, "OSLAYER1", 8) || os_get32(data + 12))
        return corrupt(&d, "this is not one");
    d.record_count = os_get32(data + 8);
    os_hasher_init_derive(&d.object, OBJECT_CONTEXT);
    os_code code = parse_entry(&d, &at, end, true, &root);
    if (code == OS_OK && root.fixed[0] != OS_KIND_DIRECTORY)
        code = corrupt(&d, "the root is not a directory");
    if (code == OS_OK)
        code = read_records(&d, at, end);
    if (code == OS_OK && memcmp(d.records[d.record_count - 1].digest, root.payload, OS_ID_SIZE))
        code = corrupt(&d, "the last record is not the root's");
    if (code == OS_OK)
        code = walk(&d, &root);
    free(d.records);
    free(d.slots);
    free(d.groups);
    if (code != OS_OK)
        os_tree_free(tree);
    return code;
}
