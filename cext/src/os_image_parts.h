/* What the parts of an image's reading share. Private to os_image*.c. */
#ifndef OS_IMAGE_PARTS_H
#define OS_IMAGE_PARTS_H

#include <stdbool.h>

#include "os_image.h"

typedef struct os_reading {
    os_image *image;
    uint32_t row;
    const uint64_t *starts;
    uint64_t offset, end;
    os_reader *reader;
    os_frame_cache *cache;
    const os_env *env;
    os_place *place;
    os_failure *failure;
} os_reading;

/* A chunk and its frame, read from the tables once: they are a mapping of a file, so what os_tables_open found may
 * have been changed since, and what could lead out of a buffer is looked at again, here, before it is used. */
typedef struct os_piece {
    uint32_t chunk, part, frame, blob;
    size_t packed, plain; /* of the frame */
    size_t at, length;    /* of the chunk in the decoded frame */
    uint64_t offset;      /* of the frame in its blob */
} os_piece;

/* Whether the frame is one that a reader's buffers can hold. */
bool os_frame_sound_in(const os_tables *t, uint32_t frame);
os_piece os_piece_of(const os_tables *t, uint32_t chunk, uint32_t part);
bool os_piece_sound(const os_tables *t, const os_piece *p);
/* The part that offset lies in. */
uint32_t os_part_at(const uint64_t *starts, uint32_t parts, uint64_t offset);

unsigned os_reading_algorithm(const os_reading *r);
const uint8_t *os_reading_id(const os_reading *r, const os_piece *p);
void os_reading_place(const os_reading *r, const os_piece *p); /* says that it is there that the reading is */

/* Asks for all that the reading needs and that is not near; ahead: nobody waits for it so far. */
os_answer os_image_want(const os_reading *r, bool ahead);

#endif
