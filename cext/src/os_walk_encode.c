/* Rows become the layer index (docs/format.md section 4). They stand in the order of the walk, so one pass is enough:
 * each open directory has a buffer of entries, which becomes a record when the walk has left it; records come out
 * children first, each once. */
#include "os_walk_parts.h"

#include <string.h>

#include "os_bytes.h"
#include "os_hash.h"
#include "os_id_set.h"
#include "os_tree.h"

#define GROUP_CONTEXT "onesec 2026 link group v1"
#define TOP 16u /* magic, number of records, zero */

typedef struct directory {
    uint32_t row, count;
    os_column entries; /* with the count in front */
} directory;

typedef struct encoder {
    os_walk *walk; /* borrowed */
    os_failure *failure;
    uint64_t *groups; /* owned: of each row that describes; 0: none */
    directory open[OS_WALK_ROOT_LEVELS];
    uint32_t depth;
    os_id_set seen;
    uint32_t records;
    uint8_t root[OS_ID_SIZE];
} encoder;

/* ---- entries ---- */

/* Appends a row's entry under a name. digest: of a directory's record. */
static os_code add_entry(encoder *e, os_column *to, uint32_t row, const uint8_t *name, uint16_t name_size,
                         uint64_t group, const uint8_t *digest) {
    os_walk *walk = e->walk;
    const os_walk_row *inode = &os_walk_rows(walk)[row];
    const uint8_t *parts = NULL;
    size_t parts_size = 0;
    uint64_t size = 0;
    uint8_t fixed[OS_LAYER_ENTRY];
    memcpy(fixed, inode->fixed, sizeof fixed);
    os_put16(fixed + 2, name_size);
    os_put64(fixed + 32, group);
    if (fixed[0] == OS_KIND_FILE) {
        os_code code = os_ingest_parts(walk->ingest, inode->ticket, &size, &parts, &parts_size, e->failure);
        if (code != OS_OK)
            return code;
        if (parts_size / OS_LAYER_PART > UINT32_MAX)
            return os_fail(e->failure, OS_LIMIT, "tree: a file has too many parts");
        os_put64(fixed + 40, size);
        os_put32(fixed + 48, (uint32_t)(parts_size / OS_LAYER_PART));
        os_put32(fixed + 52, parts_size ? OS_ALGORITHM_BLAKE3 : 0);
    }
    if (!os_column_append(to, walk->env, fixed, sizeof fixed) || !os_column_append(to, walk->env, name, name_size) ||
        !os_column_append(to, walk->env, walk->bytes.data + inode->rest, inode->rest_size) ||
        !os_column_append(to, walk->env, parts, parts_size) ||
        !os_column_append(to, walk->env, digest, digest ? OS_ID_SIZE : 0))
        return os_walk_no_memory(e->failure);
    return OS_OK;
}

/* ---- hard links ---- */

/* The format's number of an inode with several names: a hash of its first path and of what it is. */
static os_code number_of(encoder *e, uint32_t row, const char *path, size_t path_size, uint64_t *number) {
    os_column text = {0};
    uint8_t hash[OS_ID_SIZE];
    os_code code = OS_OK;
    if (!os_column_append(&text, e->walk->env, path, path_size) || !os_column_append(&text, e->walk->env, "", 1))
        code = os_walk_no_memory(e->failure);
    if (code == OS_OK)
        code = add_entry(e, &text, row, NULL, 0, 0, NULL);
    if (code == OS_OK) {
        os_blake3_derive(GROUP_CONTEXT, text.data, text.size, hash);
        *number = os_get64(hash);
        if (*number == 0)
            *number = 1;
    }
    os_column_free(&text, e->walk->env);
    return code;
}

/* firsts: for each row that describes, the row whose path comes first bytewise, which is not the order of the walk. */
static void find_firsts(const os_walk *walk, uint32_t *firsts) {
    const os_walk_row *rows = os_walk_rows(walk);
    uint32_t count = os_walk_row_count(walk);
    char one[OS_PATH_MAX], other[OS_PATH_MAX];
    for (uint32_t row = 0; row < count; row++)
        firsts[row] = row;
    for (uint32_t row = 0; row < count; row++) {
        uint32_t *first = &firsts[rows[row].first];
        if (rows[row].first == row)
            continue;
        size_t one_size = os_walk_full_path(walk, row, one), other_size = os_walk_full_path(walk, *first, other);
        if (os_compare_names((uint8_t *)one, one_size, (uint8_t *)other, other_size) < 0)
            *first = row;
    }
}

static os_code number_groups(encoder *e) {
    os_walk *walk = e->walk;
    const os_env *env = walk->env;
    uint32_t count = os_walk_row_count(walk);
    char path[OS_PATH_MAX];
    e->groups = env->allocate(env->context, count * sizeof *e->groups);
    if (!e->groups)
        return os_walk_no_memory(e->failure);
    memset(e->groups, 0, count * sizeof *e->groups);
    if (walk->inode_count == 0)
        return OS_OK;
    uint32_t *firsts = env->allocate(env->context, count * sizeof *firsts);
    if (!firsts)
        return os_walk_no_memory(e->failure);
    find_firsts(walk, firsts);
    os_code code = OS_OK;
    for (uint32_t row = 0; row < count && code == OS_OK; row++)
        if (os_walk_rows(walk)[row].names > 1 && os_walk_rows(walk)[row].first == row)
            code = number_of(e, row, path, os_walk_full_path(walk, firsts[row], path), &e->groups[row]);
    env->release(env->context, firsts);
    return code;
}

/* ---- records ---- */

static os_code open_directory(encoder *e, uint32_t row) {
    directory *made = &e->open[e->depth++];
    made->row = row;
    made->count = 0;
    made->entries.size = 0;
    return os_column_append(&made->entries, e->walk->env, &made->count, 4) ? OS_OK : os_walk_no_memory(e->failure);
}

static os_code put_record(encoder *e, const os_column *record, const uint8_t *digest) {
    const os_env *env = e->walk->env;
    os_column *index = &e->walk->index;
    uint8_t length[4];
    bool fresh;
    if (!os_id_set_add(&e->seen, env, digest, &fresh))
        return os_walk_no_memory(e->failure);
    if (!fresh)
        return OS_OK;
    if (record->size > OS_INDEX_MAX || index->size > OS_INDEX_MAX - record->size)
        return os_fail(e->failure, OS_LIMIT, "layer index: got more than %llu bytes", OS_INDEX_MAX);
    os_put32(length, (uint32_t)record->size);
    if (!os_column_append(index, env, length, sizeof length) ||
        !os_column_append(index, env, record->data, record->size))
        return os_walk_no_memory(e->failure);
    e->records++;
    return OS_OK;
}

static os_code close_directory(encoder *e) {
    directory *done = &e->open[--e->depth];
    const os_walk_row *row = &os_walk_rows(e->walk)[done->row];
    os_hasher hasher;
    uint8_t digest[OS_ID_SIZE];
    os_put32(done->entries.data, done->count);
    os_hasher_init_derive(&hasher, OS_LAYER_RECORD_CONTEXT);
    os_hasher_update(&hasher, done->entries.data, done->entries.size);
    os_hasher_final(&hasher, digest, sizeof digest);
    os_code code = put_record(e, &done->entries, digest);
    if (code != OS_OK)
        return code;
    if (e->depth == 0) {
        memcpy(e->root, digest, sizeof digest);
        return OS_OK;
    }
    directory *above = &e->open[e->depth - 1];
    above->count++;
    return add_entry(e, &above->entries, done->row, e->walk->bytes.data + row->name, row->name_size, 0, digest);
}

static os_code add_row(encoder *e, uint32_t number) {
    const os_walk_row *row = &os_walk_rows(e->walk)[number];
    os_code code = OS_OK;
    while (code == OS_OK && e->open[e->depth - 1].row != row->parent)
        code = close_directory(e);
    if (code != OS_OK)
        return code;
    if (row->first == number && row->fixed[0] == OS_KIND_DIRECTORY)
        return open_directory(e, number);
    directory *here = &e->open[e->depth - 1];
    here->count++;
    return add_entry(e, &here->entries, row->first, e->walk->bytes.data + row->name, row->name_size,
                     e->groups[row->first], NULL);
}

/* The root's entry stands in front of the records, and needs the digest of the last one: its place is kept free. */
static os_code encode(encoder *e) {
    os_walk *walk = e->walk;
    uint8_t top[TOP] = "OSLAYER1";
    const uint8_t none[OS_ID_SIZE] = {0};
    walk->index.size = 0;
    if (!os_column_append(&walk->index, walk->env, top, sizeof top))
        return os_walk_no_memory(e->failure);
    os_code code = add_entry(e, &walk->index, 0, NULL, 0, 0, none);
    size_t behind_root = walk->index.size;
    if (code == OS_OK)
        code = open_directory(e, 0);
    for (uint32_t row = 1; code == OS_OK && row < os_walk_row_count(walk); row++)
        code = add_row(e, row);
    while (code == OS_OK && e->depth > 0)
        code = close_directory(e);
    if (code == OS_OK) {
        memcpy(walk->index.data + behind_root - OS_ID_SIZE, e->root, OS_ID_SIZE);
        os_put32(walk->index.data + 8, e->records);
    }
    return code;
}

os_code os_walk_encode(os_walk *walk, const uint8_t **data, size_t *size, os_failure *failure) {
    const os_env *env = walk->env;
    encoder *e = env->allocate(env->context, sizeof *e);
    if (!e)
        return os_walk_no_memory(failure);
    memset(e, 0, sizeof *e);
    e->walk = walk;
    e->failure = failure;
    os_code code = number_groups(e);
    if (code == OS_OK)
        code = encode(e);
    if (e->groups)
        env->release(env->context, e->groups);
    for (size_t at = 0; at < OS_WALK_ROOT_LEVELS; at++)
        os_column_free(&e->open[at].entries, env);
    os_id_set_free(&e->seen, env);
    env->release(env->context, e);
    if (code == OS_OK) {
        *data = walk->index.data;
        *size = walk->index.size;
    }
    return code;
}
