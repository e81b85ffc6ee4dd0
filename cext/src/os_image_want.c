/* What of a request is far away, and how it is asked for. */
#include <string.h>

#include "os_image_parts.h"
#include "os_shelf.h"

bool os_frame_sound_in(const os_tables *t, uint32_t frame) {
    if (frame >= t->frame_count || t->frame_blob[frame] >= t->blob_count)
        return false;
    return t->frame_clen[frame] <= 2 * OS_FRAME_MAX && t->frame_ulen[frame] <= OS_FRAME_MAX;
}

unsigned os_reading_algorithm(const os_reading *r) {
    return r->image->tables.object_algorithm[r->row];
}

const uint8_t *os_reading_id(const os_reading *r, const os_piece *p) {
    return r->image->tables.chunk_id + (size_t)p->chunk * OS_ID_SIZE;
}

os_piece os_piece_of(const os_tables *t, uint32_t chunk, uint32_t part) {
    os_piece p = {.chunk = chunk, .part = part, .frame = t->chunk_frame[chunk]};
    if (os_frame_sound_in(t, p.frame)) {
        p.blob = t->frame_blob[p.frame];
        p.packed = t->frame_clen[p.frame];
        p.plain = t->frame_ulen[p.frame];
        p.offset = t->frame_offset[p.frame];
        p.at = t->chunk_offset[chunk];
        p.length = t->chunk_length[chunk];
    }
    return p;
}

bool os_piece_sound(const os_tables *t, const os_piece *p) {
    return p->packed > 0 && p->packed <= 2 * OS_FRAME_MAX && p->plain <= OS_FRAME_MAX && p->blob < t->blob_count &&
           p->at + p->length <= p->plain;
}

void os_reading_place(const os_reading *r, const os_piece *p) {
    const os_tables *t = &r->image->tables;
    *r->place = (os_place){.chunk = t->chunk_id + (size_t)p->chunk * OS_ID_SIZE,
                           .pack = t->blob[p->blob].digest,
                           .offset = p->offset,
                           .size = p->packed};
}

/* The part that offset lies in. */
uint32_t os_part_at(const uint64_t *starts, uint32_t parts, uint64_t offset) {
    uint32_t low = 0, high = parts;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (starts[middle] <= offset)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Whether the chunk can be had without its pack: out of the cache of frames, or the store. */
static bool is_near(const os_reading *r, const os_piece *p) {
    os_frame_slot *slot = os_frame_cache_get(r->cache, r->image->id, p->frame);
    if (slot != NULL)
        os_frame_cache_release(r->cache, slot, 0);
    return slot != NULL || os_shelf_has(r->reader->store, os_reading_id(r, p), os_reading_algorithm(r));
}

/* Asks for all that the request needs before any of it is decoded: what is far comes at once and not one after the
 * other, and what is here is not decoded in vain while the rest is on its way. */
os_answer os_image_want(const os_reading *r, bool ahead) {
    const os_tables *t = &r->image->tables;
    os_source *source = &r->image->source;
    uint32_t first = t->object_ref[r->row], parts = t->object_ref[r->row + 1] - first;
    os_answer all = OS_ANSWER_HERE;
    for (uint32_t part = os_part_at(r->starts, parts, r->offset); part < parts && r->starts[part] < r->end; part++) {
        uint32_t chunk = first + part < t->ref_count ? t->ref[first + part] : UINT32_MAX;
        if (chunk >= t->chunk_count || t->chunk_frame[chunk] == OS_TABLES_HOLE)
            continue;
        const os_piece p = os_piece_of(t, chunk, part);
        if (!os_piece_sound(t, &p) || is_near(r, &p))
            continue; /* what is unsound is found out when it is read */
        bool left = r->reader->passive && source->far(source->context, p.blob);
        os_answer one =
            left ? OS_ANSWER_PENDING : source->want(source->context, p.blob, p.packed, p.offset, ahead, r->failure);
        if (one == OS_ANSWER_PENDING && all == OS_ANSWER_HERE) {
            all = OS_ANSWER_PENDING;
            os_reading_place(r, &p);
        }
    }
    return all;
}

os_answer os_image_want_ahead(os_image *image, uint32_t row, const uint64_t *starts, uint64_t from, uint64_t to,
                              os_reader *reader, os_frame_cache *cache, const os_env *env) {
    os_place place = {0};
    os_failure failure = {0};
    const os_reading r = {image, row, starts, from, to, reader, cache, env, &place, &failure};
    return image->source.want == NULL ? OS_ANSWER_HERE : os_image_want(&r, true);
}
