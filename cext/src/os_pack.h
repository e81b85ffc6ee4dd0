/* The table that closes a pack (docs/format.md section 3): reading one from anywhere, and making one. */
#ifndef OS_PACK_H
#define OS_PACK_H

#include <stddef.h>
#include <stdint.h>

#include "os_limits.h"
#include "os_result.h"

#define OS_PACK_HEADER 16u
#define OS_PACK_FOOTER 48u
#define OS_PACK_MAGIC_FRAME 0x184D2A5Eu

/* Views of a validated payload: borrowed, columns of little-endian u32 at any alignment (os_pack_u32 reads them). */
typedef struct os_pack_table {
    uint32_t frame_count;
    uint32_t chunk_count;
    const uint8_t *frame_clen;
    const uint8_t *frame_ulen;
    const uint8_t *frame_chunks;
    const uint8_t *chunk_length;
    const uint8_t *chunk_id; /* 32 bytes each */
} os_pack_table;

uint32_t os_pack_u32(const uint8_t *column, uint32_t row);

/* blob_size: of the whole pack, frames and table. Every MUST of the format is checked. */
os_code os_pack_table_parse(const uint8_t *payload, size_t size, uint64_t blob_size, os_pack_table *table,
                            os_failure *failure);

/* The payload's size from the last 16 bytes of a pack of blob_size bytes. */
os_code os_pack_footer(const uint8_t tail[16], uint64_t blob_size, uint32_t *size, os_failure *failure);

/* Bytes of a payload; 0 if it is over OS_PACK_TABLE_MAX. */
size_t os_pack_table_size(uint32_t frame_count, uint32_t chunk_count);
/* Writes os_pack_table_size bytes. Columns in the machine's own order. */
void os_pack_table_write(uint8_t *payload, uint32_t frame_count, uint32_t chunk_count, const uint32_t *frame_clen,
                         const uint32_t *frame_ulen, const uint32_t *frame_chunks, const uint32_t *chunk_length,
                         const uint8_t *chunk_id);

#endif
