/* The format is that of LMDB 0.9 (data version 1), 64-bit little-endian: pages of one size, the first two of which are
 * metas. A meta names the roots of two trees, the free list and the main database; a leaf of the main database may hold
 * the record of a further tree. We use neither duplicates nor fixed mappings, so whatever has them is not ours.
 *
 * Each tree is walked in key order. A page is entered once: a bitmap over the file finds loops, shared pages, and free
 * pages that are also in use. */
#include "os_lmdb_check.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    PAGE_HEADER = 16,
    PAGE_MAX = 65536,
    NODE_HEADER = 8,
    KEY_MAX = 511,
    DEPTH_MAX = 32, /* LMDB's own stack */
    RECORD = 48,
    META = PAGE_HEADER + 136,
    P_BRANCH = 1,
    P_LEAF = 2,
    P_OVERFLOW = 4,
    P_META = 8,
    N_BIG = 1,
    N_TREE = 2,
    INTEGER_KEY = 8,
};

#define MAGIC 0xBEEFC0DEu
#define NO_PAGE UINT64_MAX
#define MAP_MAX (UINT64_C(1) << 40)

typedef struct tree {
    unsigned flags, depth;
    uint64_t branches, leaves, overflows, entries, root;
} tree;

typedef struct meta {
    unsigned page_size;
    uint64_t last_page, transaction;
    tree free, main;
} meta;

typedef struct walk {
    int fd;
    unsigned page_size;
    uint8_t *seen; /* owned; a bit for each page up to last_page */
    uint64_t last_page;
    os_failure *failure;
} walk;

/* Where a walk through one tree stands. */
typedef struct place {
    bool integers, is_free_list, inclusive, any;
    uint8_t key[KEY_MAX]; /* the last one; inclusive: from a branch, the next leaf key may equal it */
    unsigned key_size;
    uint64_t branches, leaves, overflows, entries;
} place;

static unsigned get16(const uint8_t *at) {
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint32_t get32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint64_t get64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static os_code read_at(int fd, void *buffer, size_t size, uint64_t offset, os_failure *failure) {
    for (size_t done = 0; done < size;) {
        ssize_t got = pread(fd, (uint8_t *)buffer + done, size - done, (off_t)(offset + done));
        if (got == 0)
            return os_fail(failure, OS_CORRUPT, "map: ends at %llu, want more", (unsigned long long)(offset + done));
        if (got < 0 && errno != EINTR)
            return os_fail_errno(failure, errno, "map: read failed");
        if (got > 0)
            done += (size_t)got;
    }
    return OS_OK;
}

static tree get_tree(const uint8_t *at) {
    return (tree){get16(at + 4),  get16(at + 6),  get64(at + 8), get64(at + 16),
                  get64(at + 24), get64(at + 32), get64(at + 40)};
}

static os_code parse_meta(const uint8_t *page, meta *out, os_failure *failure) {
    const uint8_t *body = page + PAGE_HEADER;
    if (!(get16(page + 10) & P_META) || get32(body) != MAGIC || get32(body + 4) != 1)
        return os_fail(failure, OS_CORRUPT, "map: got no meta page of an LMDB file");
    *out = (meta){get32(body + 24), get64(body + 120), get64(body + 128), get_tree(body + 24), get_tree(body + 72)};
    if (out->page_size < 512 || out->page_size > PAGE_MAX || (out->page_size & (out->page_size - 1)))
        return os_fail(failure, OS_CORRUPT, "map: got pages of %u bytes", out->page_size);
    if (get64(body + 8) != 0 || get64(body + 16) > MAP_MAX || out->last_page < 1 ||
        out->last_page >= MAP_MAX / out->page_size)
        return os_fail(failure, OS_CORRUPT, "map: sizes in its meta page are out of range");
    if (out->free.flags != INTEGER_KEY || out->main.flags != 0)
        return os_fail(failure, OS_CORRUPT, "map: got flags %#x and %#x", out->free.flags, out->main.flags);
    return OS_OK;
}

static os_code read_metas(int fd, meta out[2], os_failure *failure) {
    uint8_t page[META];
    os_code code = read_at(fd, page, META, 0, failure);
    if (code == OS_OK)
        code = parse_meta(page, &out[0], failure);
    if (code == OS_OK)
        code = read_at(fd, page, META, out[0].page_size, failure);
    if (code == OS_OK)
        code = parse_meta(page, &out[1], failure);
    if (code == OS_OK && out[1].page_size != out[0].page_size)
        return os_fail(failure, OS_CORRUPT, "map: its two meta pages differ in page size");
    return code;
}

os_code os_lmdb_check_meta(int fd, os_failure *failure) {
    struct stat about;
    meta metas[2] = {0};
    if (fstat(fd, &about) < 0)
        return os_fail_errno(failure, errno, "map: stat failed");
    if (about.st_size == 0)
        return OS_MISSING;
    os_code code = OS_OK;
    for (int attempt = 0; attempt < 5; attempt++) { /* a read beside a first or any commit may see half a meta page */
        if ((code = read_metas(fd, metas, failure)) != OS_CORRUPT)
            break;
        usleep(1000);
    }
    if (code == OS_OK && fstat(fd, &about) == 0 && (uint64_t)about.st_size < 2 * (uint64_t)metas[0].page_size)
        return os_fail(failure, OS_CORRUPT, "map: got %lld bytes, want two pages", (long long)about.st_size);
    return code;
}

static os_code enter(walk *it, uint64_t page, uint64_t count) {
    if (page < 2 || page > it->last_page || count > it->last_page - page + 1)
        return os_fail(it->failure, OS_CORRUPT, "map: page %llu is out of range", (unsigned long long)page);
    for (; count > 0; page++, count--) {
        if (it->seen[page / 8] & (1u << page % 8))
            return os_fail(it->failure, OS_CORRUPT, "map: page %llu is used twice", (unsigned long long)page);
        it->seen[page / 8] |= (uint8_t)(1u << page % 8);
    }
    return OS_OK;
}

static int compare(const place *at, const uint8_t *key, unsigned size) {
    if (at->integers) {
        uint64_t left = get64(at->key), right = get64(key);
        return left < right ? -1 : left > right;
    }
    int order = memcmp(at->key, key, at->key_size < size ? at->key_size : size);
    return order != 0 ? order : (int)at->key_size - (int)size;
}

static os_code next_key(walk *it, place *at, const uint8_t *key, unsigned size, bool branch) {
    if (size == 0 || size > KEY_MAX || (at->integers && size != 8))
        return os_fail(it->failure, OS_CORRUPT, "map: got a key of %u bytes", size);
    int order = at->any ? compare(at, key, size) : -1;
    if (order > 0 || (order == 0 && (branch || !at->inclusive)))
        return os_fail(it->failure, OS_CORRUPT, "map: keys are not in order");
    memcpy(at->key, key, size);
    at->key_size = size;
    at->any = true;
    at->inclusive = branch;
    return OS_OK;
}

static os_code free_pages(walk *it, const uint8_t *value, size_t size) {
    uint64_t count = size >= 8 ? get64(value) : NO_PAGE;
    if (size % 8 != 0 || count > size / 8 - 1)
        return os_fail(it->failure, OS_CORRUPT, "map: got a free list of %zu bytes", size);
    uint64_t before = NO_PAGE;
    for (uint64_t row = 1; row <= count; row++) {
        uint64_t page = get64(value + 8 * row);
        if (page >= before)
            return os_fail(it->failure, OS_CORRUPT, "map: a free list is not in order");
        before = page;
        os_code code = enter(it, page, 1);
        if (code != OS_OK)
            return code;
    }
    return OS_OK;
}

static os_code walk_tree(walk *it, tree expect, bool is_free_list, bool is_main);

static os_code big_value(walk *it, place *at, uint64_t page, size_t size) {
    uint64_t count = (PAGE_HEADER - 1 + (uint64_t)size) / it->page_size + 1;
    /* Rows of ours fit into a page. A free list has a number for each page that it frees, and no page twice: what is
     * longer is a forgery, and is not read, in a file that may be sparse and of any size. */
    if (!at->is_free_list || size > 8 * (it->last_page + 2) + 2 * it->page_size)
        return os_fail(it->failure, OS_CORRUPT, "map: got a value of %zu bytes", size);
    os_code code = enter(it, page, count);
    if (code != OS_OK)
        return code;
    at->overflows += count;
    uint8_t *value = malloc(PAGE_HEADER + size);
    if (value == NULL)
        return os_fail(it->failure, OS_MEMORY, "map: no memory");
    code = read_at(it->fd, value, PAGE_HEADER + size, page * it->page_size, it->failure);
    if (code == OS_OK && (get64(value) != page || get16(value + 10) != P_OVERFLOW || get32(value + 12) != count))
        code = os_fail(it->failure, OS_CORRUPT, "map: page %llu is no overflow page", (unsigned long long)page);
    if (code == OS_OK)
        code = free_pages(it, value + PAGE_HEADER, size);
    free(value);
    return code;
}

/* node: whole within its page. */
static os_code leaf_value(walk *it, place *at, const uint8_t *node, bool is_main) {
    unsigned flags = get16(node + 4);
    const uint8_t *value = node + NODE_HEADER + get16(node + 6);
    size_t size = get32(node);
    if (flags == N_BIG)
        return big_value(it, at, get64(value), size);
    if (flags == N_TREE && is_main && size == RECORD) {
        tree inner = get_tree(value);
        if (inner.flags != 0)
            return os_fail(it->failure, OS_CORRUPT, "map: got flags %#x", inner.flags);
        return walk_tree(it, inner, false, false);
    }
    if (flags != 0)
        return os_fail(it->failure, OS_CORRUPT, "map: got a node with flags %#x", flags);
    return at->is_free_list ? free_pages(it, value, size) : OS_OK;
}

static os_code walk_page(walk *it, place *at, uint64_t number, unsigned below, bool is_main);

static os_code walk_nodes(walk *it, place *at, const uint8_t *page, unsigned below, bool is_main) {
    unsigned flags = get16(page + 10), lower = get16(page + 12), upper = get16(page + 14);
    unsigned count = (lower - PAGE_HEADER) / 2, used = 0;
    bool branch = flags == P_BRANCH;
    if (lower < PAGE_HEADER || lower % 2 || lower > upper || upper > it->page_size ||
        count < (branch && !at->is_free_list ? 2u : 1u))
        return os_fail(it->failure, OS_CORRUPT, "map: bounds of page %llu", (unsigned long long)get64(page));
    for (unsigned row = 0; row < count; row++) {
        unsigned offset = get16(page + PAGE_HEADER + 2 * row);
        if (offset < upper || offset % 2 || offset + NODE_HEADER > it->page_size)
            return os_fail(it->failure, OS_CORRUPT, "map: node of page %llu", (unsigned long long)get64(page));
        const uint8_t *node = page + offset;
        unsigned key_size = get16(node + 6);
        uint64_t size = NODE_HEADER + (uint64_t)key_size;
        if (!branch)
            size += get16(node + 4) & N_BIG ? 8 : (uint64_t)get32(node);
        if (size > it->page_size - offset)
            return os_fail(it->failure, OS_CORRUPT, "map: node of page %llu", (unsigned long long)get64(page));
        used += (unsigned)(size + (size & 1));
        os_code code = OS_OK;
        if (!branch || row > 0)
            code = next_key(it, at, node + NODE_HEADER, key_size, branch);
        else if (key_size > KEY_MAX)
            code = os_fail(it->failure, OS_CORRUPT, "map: got a key of %u bytes", key_size);
        if (code == OS_OK && branch)
            code = walk_page(it, at, get32(node) | (uint64_t)get16(node + 4) << 32, below, is_main);
        else if (code == OS_OK) {
            at->entries++;
            code = leaf_value(it, at, node, is_main);
        }
        if (code != OS_OK)
            return code;
    }
    if (used != it->page_size - upper)
        return os_fail(it->failure, OS_CORRUPT, "map: nodes of page %llu", (unsigned long long)get64(page));
    return OS_OK;
}

/* below: levels from this page down, itself counted. */
static os_code walk_page(walk *it, place *at, uint64_t number, unsigned below, bool is_main) {
    os_code code = enter(it, number, 1);
    if (code != OS_OK)
        return code;
    uint8_t *page = malloc(it->page_size);
    if (page == NULL)
        return os_fail(it->failure, OS_MEMORY, "map: no memory");
    code = read_at(it->fd, page, it->page_size, number * it->page_size, it->failure);
    if (code == OS_OK && (get64(page) != number || get16(page + 10) != (below > 1 ? P_BRANCH : P_LEAF)))
        code =
            os_fail(it->failure, OS_CORRUPT, "map: page %llu is not what its tree wants", (unsigned long long)number);
    if (code == OS_OK) {
        *(below > 1 ? &at->branches : &at->leaves) += 1;
        code = walk_nodes(it, at, page, below - 1, is_main);
    }
    free(page);
    return code;
}

static os_code walk_tree(walk *it, tree expect, bool is_free_list, bool is_main) {
    if (expect.root == NO_PAGE)
        return expect.depth == 0 && expect.entries == 0
                   ? OS_OK
                   : os_fail(it->failure, OS_CORRUPT, "map: an empty tree with entries");
    if (expect.depth < 1 || expect.depth > DEPTH_MAX)
        return os_fail(it->failure, OS_CORRUPT, "map: got a tree of depth %u", expect.depth);
    place at = {.integers = is_free_list, .is_free_list = is_free_list};
    os_code code = walk_page(it, &at, expect.root, expect.depth, is_main);
    if (code == OS_OK && (at.entries != expect.entries || at.branches != expect.branches ||
                          at.leaves != expect.leaves || at.overflows != expect.overflows))
        return os_fail(it->failure, OS_CORRUPT, "map: counts of a tree are wrong");
    return code;
}

os_code os_lmdb_check_pages(int fd, uint64_t transaction, os_failure *failure) {
    meta metas[2] = {0};
    os_code code = read_metas(fd, metas, failure);
    if (code != OS_OK)
        return code;
    const meta *ours = metas[0].transaction == transaction ? &metas[0] : &metas[1];
    if (ours->transaction != transaction)
        return OS_MISSING;
    walk it = {.fd = fd, .page_size = ours->page_size, .last_page = ours->last_page, .failure = failure};
    it.seen = calloc(1, it.last_page / 8 + 1);
    if (it.seen == NULL)
        return os_fail(failure, OS_MEMORY, "map: no memory");
    code = walk_tree(&it, ours->free, true, false);
    if (code == OS_OK)
        code = walk_tree(&it, ours->main, false, true);
    free(it.seen);
    return code;
}
