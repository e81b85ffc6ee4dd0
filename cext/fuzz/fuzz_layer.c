/* Layer indexes. Digests bind a tree's records together, and no fuzzer finds those, so the harness writes them: the
 * input is the root's record, and in it 32 bytes 0xEE stand for the digest of an empty directory and 32 bytes 0xDD for
 * one with a fifo in it. If the first byte is 1, the rest is the whole index as it is.
 *
 * A tree that is taken has an image, that image is canonical, and its tables are the tables of its tree. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "os_bytes.h"
#include "os_erofs.h"
#include "os_hash.h"
#include "os_layer.h"
#include "os_layer_entry.h"
#include "os_tables_build.h"

#define CONTEXT "onesec 2026 layer directory v1"
#define FIFO_RECORD (4 + OS_LAYER_ENTRY + 1)

static void use_tree(const os_tree *tree) {
    uint8_t *image = NULL, *tables = NULL;
    size_t size = 0, tables_size = 0;
    os_failure failure;
    os_tree again = {0};
    os_code code = os_erofs_encode(tree, 0, &image, &size, &failure);
    assert(code == OS_OK);
    code = os_erofs_check(image, size, &again, &failure);
    assert(code == OS_OK && again.inode_count == tree->inode_count);
    if (os_tables_build(tree, NULL, 0, &tables, &tables_size, &failure) == OS_OK)
        free(tables);
    os_tree_free(&again);
    free(image);
}

static void put_digests(uint8_t *record, size_t size, uint8_t mark, const uint8_t digest[OS_ID_SIZE]) {
    uint8_t wanted[OS_ID_SIZE];
    memset(wanted, mark, sizeof wanted);
    for (size_t at = 0; at + OS_ID_SIZE <= size; at++)
        if (!memcmp(record + at, wanted, sizeof wanted))
            memcpy(record + at, digest, OS_ID_SIZE);
}

static uint8_t *put_record(uint8_t *at, const uint8_t *record, size_t size, uint8_t digest[OS_ID_SIZE]) {
    os_put32(at, (uint32_t)size);
    memcpy(at + 4, record, size);
    os_blake3_derive(CONTEXT, record, size, digest);
    return at + 4 + size;
}

/* Whether the records that stand for the marks are used, in the order in which they are first. */
static unsigned used_records(const uint8_t *record, size_t size) {
    for (size_t at = 0; at + OS_ID_SIZE <= size; at++)
        if (record[at] == 0xEE && record[at + OS_ID_SIZE - 1] == 0xEE)
            return 0;
        else if (record[at] == 0xDD && record[at + OS_ID_SIZE - 1] == 0xDD)
            return 1;
    return 2;
}

/* An index around the root's record, which is written over. order: 0 the empty directory comes first, 1 the other. */
static uint8_t *wrap(uint8_t *record, size_t size, unsigned order, bool both, size_t *whole) {
    static const uint8_t EMPTY[4];
    uint8_t fifo[FIFO_RECORD] = {1, 0, 0, 0, OS_KIND_FIFO, 0, 1};
    uint8_t digests[3][OS_ID_SIZE], *index = calloc(1, 256 + FIFO_RECORD + size), *at = index + 16 + OS_LAYER_ENTRY;
    assert(index != NULL);
    fifo[FIFO_RECORD - 1] = 'f';
    memcpy(index, "OSLAYER1", 8);
    index[16] = OS_KIND_DIRECTORY;
    at += OS_ID_SIZE;
    uint8_t *first = at;
    for (unsigned row = 0; row < 2; row++) {
        bool empty = (row == 0) == (order == 0);
        uint8_t *end =
            empty ? put_record(at, EMPTY, sizeof EMPTY, digests[0]) : put_record(at, fifo, sizeof fifo, digests[1]);
        if (both || row == 0)
            at = end;
    }
    put_digests(record, size, 0xEE, digests[0]);
    put_digests(record, size, 0xDD, digests[1]);
    if (order == 2)
        at = first;
    at = put_record(at, record, size, digests[2]);
    memcpy(index + 16 + OS_LAYER_ENTRY, digests[2], OS_ID_SIZE);
    index[8] = (uint8_t)(1 + (order < 2) + (order < 2 && both));
    *whole = (size_t)(at - index);
    return index;
}

static void decode(const uint8_t *data, size_t size) {
    uint8_t *exact = malloc(size + 1); /* its end is watched */
    os_tree tree = {0};
    os_failure failure;
    assert(exact != NULL);
    memcpy(exact, data, size);
    if (os_layer_decode(exact, size, &tree, &failure) == OS_OK) {
        use_tree(&tree);
        os_tree_free(&tree);
    }
    assert(tree.inodes == NULL && tree.entries == NULL);
    free(exact);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0)
        return 0;
    if (data[0] == 1) {
        decode(data + 1, size - 1);
        return 0;
    }
    for (unsigned both = 0; both < 2; both++) {
        uint8_t *record = malloc(size);
        size_t whole = 0;
        assert(record != NULL);
        memcpy(record, data + 1, size - 1);
        uint8_t *index = wrap(record, size - 1, used_records(record, size - 1), both, &whole);
        decode(index, whole);
        free(index);
        free(record);
    }
    return 0;
}
