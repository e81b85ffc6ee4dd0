/* Tables: what is opened can be used row by row without leaving them, and every object is found under its id; ids that
 * were left out are computed to what they have to be. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "os_index.h"
#include "os_tables.h"

static volatile uint64_t sum; /* so that nothing is read in vain */

static void read_rows(const os_tables *t) {
    uint64_t total = 0;
    for (uint32_t row = 0; row < t->object_count; row++) {
        uint32_t found = UINT32_MAX;
        uint64_t size = 0;
        os_code code = os_tables_find(t, t->object_id + (size_t)row * OS_ID_SIZE, &found);
        assert(code == OS_OK && found == row);
        for (uint32_t at = t->object_ref[row]; at < t->object_ref[row + 1]; at++) {
            uint32_t chunk = t->ref[at], frame = t->chunk_frame[chunk];
            size += os_tables_length(t, chunk);
            if (frame == OS_TABLES_HOLE)
                continue;
            const os_tables_blob *blob = &t->blob[t->frame_blob[frame]];
            assert(t->frame_offset[frame] + t->frame_clen[frame] <= blob->size);
            assert(t->chunk_offset[chunk] + t->chunk_length[chunk] <= t->frame_ulen[frame]);
            sum += t->chunk_id[(size_t)chunk * OS_ID_SIZE];
        }
        assert(size == t->object_size[row]);
        total += size;
    }
    assert(total == t->total_size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    os_tables tables;
    os_failure failure;
    uint8_t *exact = malloc(size + 1); /* aligned, and its end is watched */
    static uint8_t no_image[4096];
    assert(exact != NULL);
    memcpy(exact, data, size);
    if (os_tables_open(exact, size, &tables, &failure) == OS_OK) {
        read_rows(&tables);
        os_tables_check_objects(&tables, &failure);
    }
    os_code code = os_index_check(no_image, sizeof no_image, exact, size, &failure);
    assert(code != OS_OK);
    /* Without its ids the same input is as hostile, and has to be as harmless. */
    if (os_tables_clear_ids(exact, size, &failure) == OS_OK && os_tables_fill_ids(exact, size, &failure) == OS_OK &&
        os_tables_open(exact, size, &tables, &failure) == OS_OK) {
        read_rows(&tables);
        assert(os_tables_check_objects(&tables, &failure) == OS_OK || strstr(failure.message, "in no object"));
    }
    free(exact);
    return 0;
}
