/* Tables and packs: whatever the bytes are, opening and reading stays inside its buffers, and nothing is served whose
 * hash is not the one that the tables name. Input: u16 size of a pack, the pack, the tables. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "os_hash.h"
#include "os_image.h"

#define OBJECTS_MAX 8u
#define READ_MAX (192u << 10)

typedef struct pack {
    const uint8_t *data;
    size_t size;
} pack;

static os_answer read_pack(void *context, uint32_t blob, void *buffer, size_t size, uint64_t offset,
                           os_failure *failure) {
    const pack *from = context;
    (void)blob;
    if (offset > from->size || size > from->size - offset) {
        os_fail(failure, OS_CORRUPT, "short");
        return OS_ANSWER_FAILED;
    }
    memcpy(buffer, from->data + offset, size);
    return OS_ANSWER_HERE;
}

static void read_object(os_image *image, uint32_t row, os_reader *reader, os_frame_cache *cache, uint8_t *out) {
    const os_tables *t = &image->tables;
    uint32_t first = t->object_ref[row], parts = t->object_ref[row + 1] - first;
    uint64_t *starts = malloc(((size_t)parts + 1) * sizeof *starts), at = 0;
    assert(starts != NULL);
    for (uint32_t part = 0; part < parts; part++, at = starts[part - 1] + os_tables_length(t, t->ref[first + part - 1]))
        starts[part] = at;
    starts[parts] = at;
    assert(at == t->object_size[row]);
    uint64_t places[3] = {0, at / 2, at > READ_MAX ? at - READ_MAX : 0};
    for (unsigned place = 0; place < 3; place++) {
        os_place where;
        os_failure failure;
        size_t size = at - places[place] < READ_MAX ? (size_t)(at - places[place]) : READ_MAX;
        os_image_read(image, row, starts, places[place], size, out, reader, cache, &os_env_system, &where, &failure);
    }
    free(starts);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static os_reader reader;
    static uint8_t *out;
    os_failure failure;
    if (out == NULL) {
        out = malloc(READ_MAX);
        assert(os_reader_init(&reader, &os_env_system, &failure) == OS_OK);
    }
    uint16_t length;
    if (size < sizeof length)
        return 0;
    memcpy(&length, data, sizeof length);
    data += sizeof length;
    size -= sizeof length;
    if (length > size)
        return 0;
    pack from = {data, length};
    size -= length;
    void *tables = malloc(size + 1); /* aligned, and its end is watched */
    assert(tables != NULL);
    memcpy(tables, data + length, size);
    os_image *image;
    os_frame_cache cache;
    os_source source = {.context = &from, .read = read_pack};
    if (os_image_make(&os_env_system, 1, tables, size, NULL, source, "fuzz", &image, &failure) == OS_OK) {
        image->id = 1;
        os_frame_cache_init(&cache, OS_FRAME_CACHE_SLOTS);
        for (uint32_t row = 0; row < image->tables.object_count && row < OBJECTS_MAX; row++) {
            os_image_check(image, row, &failure);
            read_object(image, row, &reader, &cache, out);
        }
        os_frame_cache_destroy(&cache, &os_env_system);
        os_image_drop(image, &os_env_system);
    }
    free(tables);
    return 0;
}
