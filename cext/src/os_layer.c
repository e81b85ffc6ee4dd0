/* First all records are read once: hashed, their entries checked, and what is below each is counted, so that a small
 * index that stands for an enormous tree (a record may be shared by any number of directories) is refused before it
 * costs memory. Then the tree is walked from the root; a shared record is walked once for each of its directories.
 *
 * Input decides how deep a tree is, so both walks have stacks of their own and the C stack stays flat. */
#include "os_layer.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "os_bytes.h"
#include "os_hash.h"
#include "os_layer_entry.h"

#define OBJECT_CONTEXT "onesec 2026 object v1"

typedef struct record {
    const uint8_t *data;
    uint32_t size;
    uint32_t depth;       /* directories below each other in it */
    uint32_t child_first; /* row in children: records of its directories, in name order */
    uint32_t child_count;
    uint64_t names; /* below, those of shared records as often as they occur */
    uint8_t digest[OS_ID_SIZE];
} record;

/* A directory that is being walked. */
typedef struct level {
    const uint8_t *at, *end;
    uint32_t left, row, inode;
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
    uint32_t *children; /* owned: record numbers */
    uint32_t child_count, child_room;
    uint32_t *slots; /* owned: record + 1 by digest; 0 is empty */
    uint32_t slot_count;
    group *groups; /* owned */
    uint32_t group_room, group_count;
    os_hasher object; /* keyed with the context, before any input */
} decoder;

static os_code corrupt(decoder *d, const char *what) {
    return os_fail(d->failure, OS_CORRUPT, "layer index: %s", what);
}

/* ---- inodes ---- */

static os_code take_parts(decoder *d, os_inode *inode, const os_layer_entry *entry) {
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
        const uint8_t *part = entry->payload + (size_t)row * OS_LAYER_PART;
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
    os_hasher_update(&hasher, entry->payload, (size_t)inode->part_count * OS_LAYER_PART);
    os_hasher_final(&hasher, inode->object, OS_ID_SIZE);
    inode->has_object = 1;
    inode->algorithm = (uint8_t)algorithm;
    inode->parts = entry->payload;
    return OS_OK;
}

static os_code take_xattrs(decoder *d, uint32_t number, const os_layer_entry *entry) {
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

static os_code new_inode(decoder *d, const os_layer_entry *entry, uint32_t *number) {
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

static uint64_t group_key(const os_layer_entry *entry) {
    uint8_t id[OS_ID_SIZE];
    uint64_t key;
    os_hasher hasher;
    os_hasher_init(&hasher);
    os_hasher_update(&hasher, entry->fixed, 2);
    os_hasher_update(&hasher, entry->fixed + 4, OS_LAYER_ENTRY - 4);
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
static os_code grouped_inode(decoder *d, const os_layer_entry *entry, uint32_t *number) {
    if (!grow_groups(d))
        return os_fail(d->failure, OS_MEMORY, "layer index: out of memory");
    uint64_t key = group_key(entry), at = key;
    group *slot;
    for (;; at++) {
        slot = &d->groups[at & (d->group_room - 1)];
        if (!slot->key)
            break;
        if (slot->key == key && slot->rest_size == entry->rest_size && slot->fixed[0] == entry->fixed[0] &&
            !memcmp(slot->fixed + 4, entry->fixed + 4, OS_LAYER_ENTRY - 4) &&
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

#define NO_RECORD UINT32_MAX

static uint32_t find_record(const decoder *d, const uint8_t *digest) {
    uint64_t at;
    memcpy(&at, digest, sizeof at);
    for (; d->slots[at & (d->slot_count - 1)]; at++) {
        uint32_t number = d->slots[at & (d->slot_count - 1)] - 1;
        if (!memcmp(d->records[number].digest, digest, OS_ID_SIZE))
            return number;
    }
    return NO_RECORD;
}

static void add_slot(decoder *d, uint32_t number) {
    uint64_t at;
    memcpy(&at, d->records[number].digest, sizeof at);
    while (d->slots[at & (d->slot_count - 1)])
        at++;
    d->slots[at & (d->slot_count - 1)] = number + 1;
}

/* A directory in a record: its own record stands before this one. */
static os_code add_child(decoder *d, record *parent, const uint8_t *digest) {
    uint32_t number = find_record(d, digest);
    if (number == NO_RECORD)
        return corrupt(d, "a directory's record does not stand before it");
    if (d->child_count == d->child_room) {
        uint32_t room = d->child_room ? 2 * d->child_room : 64;
        uint32_t *grown = realloc(d->children, room * sizeof *grown);
        if (!grown)
            return os_fail(d->failure, OS_MEMORY, "layer index: out of memory");
        d->children = grown;
        d->child_room = room;
    }
    d->children[d->child_count++] = number;
    parent->child_count++;
    parent->names += d->records[number].names;
    if (parent->depth <= d->records[number].depth)
        parent->depth = d->records[number].depth + 1;
    return OS_OK;
}

/* Reads a record's entries: each by itself, their order, and what is below. */
static os_code read_record(decoder *d, record *one) {
    const uint8_t *at = one->data + 4, *end = one->data + one->size;
    os_layer_entry entry, last = {0};
    uint32_t count = os_get32(one->data);
    one->names = count;
    one->child_first = d->child_count;
    for (uint32_t row = 0; row < count; row++) {
        os_code code = os_layer_entry_parse(&at, end, false, &entry, d->failure);
        if (code != OS_OK)
            return code;
        if (row && os_compare_names(last.name, last.name_size, entry.name, entry.name_size) >= 0)
            return corrupt(d, "names are not in order");
        if (entry.fixed[0] == OS_KIND_DIRECTORY)
            code = add_child(d, one, entry.payload);
        if (code != OS_OK)
            return code;
        last = entry;
    }
    if (at != end)
        return corrupt(d, "bytes after the last entry of a record");
    if (one->names >= OS_INODES_MAX)
        return os_fail(d->failure, OS_LIMIT, "layer index: got a tree of %u names or more", OS_INODES_MAX);
    if (one->depth > OS_DEPTH_MAX)
        return os_fail(d->failure, OS_LIMIT, "layer index: got directories deeper than %u", OS_DEPTH_MAX);
    return OS_OK;
}

static os_code read_records(decoder *d, const uint8_t *at, const uint8_t *end) {
    if (d->record_count == 0 || d->record_count > (size_t)(end - at) / 8)
        return corrupt(d, "records are cut short");
    d->slot_count = 16;
    while (d->slot_count < 2 * d->record_count)
        d->slot_count *= 2;
    d->records = calloc(d->record_count, sizeof *d->records);
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
        os_blake3_derive(OS_LAYER_RECORD_CONTEXT, one->data, one->size, one->digest);
        if (find_record(d, one->digest) != NO_RECORD)
            return corrupt(d, "a record stands there twice");
        os_code code = read_record(d, one);
        if (code != OS_OK)
            return code;
        add_slot(d, row);
    }
    return at == end ? OS_OK : corrupt(d, "bytes after the last record");
}

/* Whether records stand where a walk from the root leaves them for the first time, and none besides. */
static os_code check_post_order(decoder *d) {
    typedef struct step {
        uint32_t number, next; /* record, and the next of its children */
    } step;
    step *steps = calloc(OS_DEPTH_MAX + 1, sizeof *steps);
    uint8_t *seen = calloc(d->record_count, 1);
    uint32_t depth = 1, left = 0;
    os_code code = OS_OK;
    if (steps)
        steps[0].number = d->record_count - 1;
    if (!steps || !seen)
        code = os_fail(d->failure, OS_MEMORY, "layer index: out of memory");
    while (code == OS_OK && depth) {
        step *here = &steps[depth - 1];
        const record *one = &d->records[here->number];
        if (here->next < one->child_count) {
            uint32_t child = d->children[one->child_first + here->next++];
            if (!seen[child]) /* depth: at most OS_DEPTH_MAX below the root, read_record has seen to it */
                steps[depth++] = (step){child, 0};
            seen[child] = 1;
        } else {
            if (here->number != left++)
                code = corrupt(d, "records are out of order, or one is not used");
            depth--;
        }
    }
    free(steps);
    free(seen);
    return code;
}

/* ---- the walk ---- */

static os_code enter(decoder *d, const uint8_t *digest, uint32_t inode, level *to) {
    const record *one = &d->records[find_record(d, digest)]; /* read_record found it */
    uint32_t count = os_get32(one->data);
    uint32_t first = os_tree_add_entries(d->tree, count);
    if (first == UINT32_MAX)
        return os_fail(d->failure, OS_LIMIT, "layer index: too many names, or out of memory");
    d->tree->inodes[inode].entry_first = first;
    d->tree->inodes[inode].entry_count = count;
    *to = (level){one->data + 4, one->data + one->size, count, first, inode};
    return OS_OK;
}

static os_code next_entry(decoder *d, level *levels, uint32_t *depth) {
    level *here = &levels[*depth - 1];
    os_layer_entry entry;
    uint32_t number;
    os_code code = os_layer_entry_parse(&here->at, here->end, false, &entry, d->failure);
    if (code == OS_OK)
        code = os_get64(entry.fixed + 32) ? grouped_inode(d, &entry, &number) : new_inode(d, &entry, &number);
    if (code != OS_OK)
        return code;
    d->tree->entries[here->row++] = (os_entry){entry.name, number, entry.name_size};
    here->left--;
    if (entry.fixed[0] != OS_KIND_DIRECTORY)
        return OS_OK;
    d->tree->inodes[number].parent = here->inode;
    d->tree->inodes[here->inode].nlink++;
    return enter(d, entry.payload, number, &levels[(*depth)++]);
}

static os_code walk(decoder *d, const os_layer_entry *root) {
    uint32_t number, depth = 1;
    level *levels = malloc((OS_DEPTH_MAX + 1) * sizeof *levels);
    if (!levels)
        return os_fail(d->failure, OS_MEMORY, "layer index: out of memory");
    os_code code = new_inode(d, root, &number);
    if (code == OS_OK)
        code = enter(d, root->payload, number, &levels[0]);
    while (code == OS_OK && depth) {
        if (levels[depth - 1].left)
            code = next_entry(d, levels, &depth);
        else
            depth--;
    }
    free(levels);
    return code;
}

os_code os_layer_decode(const uint8_t *data, size_t size, os_tree *tree, os_failure *failure) {
    decoder d = {.tree = tree, .failure = failure};
    os_layer_entry root;
    const uint8_t *at = data + 16, *end = data + size;
    if (size < 16 + OS_LAYER_ENTRY || size > OS_INDEX_MAX || memcmp(data, "OSLAYER1", 8) || os_get32(data + 12))
        return corrupt(&d, "this is not one");
    d.record_count = os_get32(data + 8);
    os_hasher_init_derive(&d.object, OBJECT_CONTEXT);
    os_code code = os_layer_entry_parse(&at, end, true, &root, failure);
    if (code == OS_OK && root.fixed[0] != OS_KIND_DIRECTORY)
        code = corrupt(&d, "the root is not a directory");
    if (code == OS_OK)
        code = read_records(&d, at, end);
    if (code == OS_OK && memcmp(d.records[d.record_count - 1].digest, root.payload, OS_ID_SIZE))
        code = corrupt(&d, "the last record is not the root's");
    if (code == OS_OK)
        code = check_post_order(&d);
    if (code == OS_OK)
        code = walk(&d, &root);
    free(d.records);
    free(d.children);
    free(d.slots);
    free(d.groups);
    if (code != OS_OK)
        os_tree_free(tree);
    return code;
}
