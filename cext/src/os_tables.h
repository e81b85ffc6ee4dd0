/* The tables of an image (docs/format.md section 6) as a view: nothing is copied, columns are used where they lie.
 *
 * os_tables_open checks everything but the objects' ids: sizes, ranges, order. Whoever uses an object calls
 * os_tables_check_object once before it trusts the object's rows; os_tables_check_objects does so for all. */
#ifndef OS_TABLES_H
#define OS_TABLES_H

#include <stddef.h>
#include <stdint.h>

#include "os_limits.h"
#include "os_result.h"

#define OS_TABLES_HOLE UINT32_MAX /* in chunk_frame */
#define OS_TABLES_HEADER 64u

typedef struct os_tables_blob {
    uint8_t digest[OS_ID_SIZE]; /* SHA-256 */
    uint64_t size;
    uint32_t codec, zero;
} os_tables_blob;

/* All pointers are borrowed from the bytes that were opened. */
typedef struct os_tables {
    uint32_t blob_count, frame_count, chunk_count, object_count, ref_count;
    uint64_t total_size;
    const os_tables_blob *blob;
    const uint64_t *frame_offset;
    const uint32_t *frame_blob, *frame_clen, *frame_ulen;
    const uint8_t *chunk_id;
    const uint32_t *chunk_frame, *chunk_offset, *chunk_length;
    const uint8_t *object_id;
    const uint64_t *object_size;
    const uint32_t *object_algorithm, *object_ref, *ref;
} os_tables;

/* data: aligned to 8, stays while the view is used. OS_CORRUPT or OS_LIMIT say which rule is broken. */
os_code os_tables_open(const uint8_t *data, size_t size, os_tables *tables, os_failure *failure);

/* OS_OK and the row of the object with this id, or OS_MISSING (failure untouched). */
os_code os_tables_find(const os_tables *tables, const uint8_t id[OS_ID_SIZE], uint32_t *row);

/* Whether the object's id is the id of its description; row below object_count. */
os_code os_tables_check_object(const os_tables *tables, uint32_t row, os_failure *failure);
/* All of them, and whether each chunk is in one. */
os_code os_tables_check_objects(const os_tables *tables, os_failure *failure);

/* The form that travels: the column of object ids is zero, because they follow from the other columns and are what
 * compresses least. clear makes it. fill computes the ids again where the first is zero, and leaves other tables alone.
 * data: aligned to 8 and hostile; of its content only what leads from column to column is checked. */
os_code os_tables_clear_ids(uint8_t *data, size_t size, os_failure *failure);
os_code os_tables_fill_ids(uint8_t *data, size_t size, os_failure *failure);

/* Length of a chunk or hole; chunk below chunk_count. */
uint64_t os_tables_length(const os_tables *tables, uint32_t chunk);

#endif
