/* For each part that a request touches: a hole is zeros; a chunk's frame is found, read and decoded, the chunk is
 * hashed, and only then is it part of the answer. A frame that is one whole chunk and lies whole in the request is
 * decoded right into the answer and hashed there; any other goes through the cache, because the next request is likely
 * to want the rest of it. Both are private memory: the bytes hashed are the bytes sent.
 *
 * Frames that lie side by side in a pack, as a file's do, are read together (fill_packed). */
#include "os_image_parts.h"

#include <stdio.h>
#include <string.h>

#include "os_frame.h"
#include "os_hash.h"
#include "os_sha256.h"
#include "os_shelf.h"

os_code os_image_make(const os_env *env, uint64_t id, void *mapping, size_t size, void (*unmap)(void *, size_t),
                      os_source source, const char *label, os_image **out, os_failure *failure) {
    os_image *image = env->allocate(env->context, sizeof *image);
    if (image == NULL)
        return os_fail(failure, OS_MEMORY, "image: got no memory");
    memset(image, 0, sizeof *image);
    os_code code = os_tables_open(mapping, size, &image->tables, failure);
    if (code == OS_OK) {
        size_t marks = image->tables.object_count;
        image->mark = env->allocate(env->context, marks + 1);
        if (image->mark == NULL)
            code = os_fail(failure, OS_MEMORY, "image: got no memory for %zu objects", marks);
        else
            for (size_t at = 0; at <= marks; at++)
                atomic_init(&image->mark[at], 0);
    }
    if (code != OS_OK) {
        env->release(env->context, image);
        return code;
    }
    image->id = id;
    image->mapping = mapping;
    image->mapping_size = size;
    image->unmap = unmap;
    image->source = source;
    atomic_init(&image->users, 1);
    snprintf(image->label, sizeof image->label, "%s", label);
    *out = image;
    return OS_OK;
}

void os_image_hold(os_image *image) {
    atomic_fetch_add(&image->users, 1);
}

void os_image_drop(os_image *image, const os_env *env) {
    if (atomic_fetch_sub(&image->users, 1) != 1)
        return;
    if (image->source.release != NULL)
        image->source.release(image->source.context);
    if (image->unmap != NULL)
        image->unmap(image->mapping, image->mapping_size);
    env->release(env->context, (void *)image->mark);
    env->release(env->context, image);
}

os_code os_image_check(os_image *image, uint32_t row, os_failure *failure) {
    uint8_t mark = atomic_load(&image->mark[row]);
    if (mark == 0) {
        mark = os_tables_check_object(&image->tables, row, NULL) == OS_OK ? 1 : 2;
        atomic_store(&image->mark[row], mark);
    }
    if (mark == 1)
        return OS_OK;
    return os_fail(failure, OS_CORRUPT, "its id is not the id of its parts");
}

os_code os_reader_init(os_reader *reader, const os_env *env, os_failure *failure) {
    memset(reader, 0, sizeof *reader);
    reader->zstd = ZSTD_createDCtx();
    reader->packed = env->allocate(env->context, OS_READER_PACKED);
    reader->frame = env->allocate(env->context, OS_FRAME_MAX);
    if (reader->zstd != NULL && reader->packed != NULL && reader->frame != NULL)
        return OS_OK;
    os_reader_destroy(reader, env);
    return os_fail(failure, OS_MEMORY, "reader: got no memory");
}

void os_reader_destroy(os_reader *reader, const os_env *env) {
    ZSTD_freeDCtx(reader->zstd);
    if (reader->packed != NULL)
        env->release(env->context, reader->packed);
    if (reader->frame != NULL)
        env->release(env->context, reader->frame);
    memset(reader, 0, sizeof *reader);
}

/* ---------------------------------------------------------------------- compressed bytes */

/* The end of the run of frames that this request needs from part on, side by side in one blob, within the buffer. */
static size_t run_length(const os_reading *r, const os_piece *p) {
    const os_tables *t = &r->image->tables;
    size_t run = p->packed;
    uint32_t first = t->object_ref[r->row], parts = t->object_ref[r->row + 1] - first;
    uint32_t last = p->frame;
    for (uint32_t at = p->part + 1; at < parts && r->starts[at] < r->end; at++) {
        uint32_t chunk = t->ref[first + at];
        uint32_t next = chunk < t->chunk_count ? t->chunk_frame[chunk] : OS_TABLES_HOLE;
        if (next == last)
            continue;
        if (next == OS_TABLES_HOLE || !os_frame_sound_in(t, next) || t->frame_blob[next] != p->blob ||
            t->frame_offset[next] != p->offset + run)
            break;
        size_t more = t->frame_clen[next];
        if (more > OS_READER_PACKED - run)
            break;
        run += more;
        last = next;
    }
    return run;
}

/* Makes reader->packed hold the frame; *bytes is where. */
static os_answer fill_packed(const os_reading *r, const os_piece *p, const uint8_t **bytes) {
    os_reader *reader = r->reader;
    if (reader->image == r->image && reader->blob == p->blob && p->offset >= reader->start &&
        p->offset + p->packed <= reader->end) {
        *bytes = reader->packed + (p->offset - reader->start);
        return OS_ANSWER_HERE;
    }
    reader->image = NULL;
    os_source *source = &r->image->source;
    /* Of a file one long read is cheaper than many; of spans it would only ask for frames that nobody needs. */
    size_t run = source->want == NULL ? run_length(r, p) : p->packed;
    os_answer answer = source->read(source->context, p->blob, reader->packed, run, p->offset, r->failure);
    if (answer == OS_ANSWER_FAILED && run != p->packed) { /* perhaps this one frame is there: blame the right one */
        run = p->packed;
        answer = source->read(source->context, p->blob, reader->packed, run, p->offset, r->failure);
    }
    if (answer != OS_ANSWER_HERE)
        return answer;
    reader->pack_bytes += run;
    reader->image = r->image;
    reader->blob = p->blob;
    reader->start = p->offset;
    reader->end = p->offset + run;
    *bytes = reader->packed;
    return OS_ANSWER_HERE;
}

/* The frame's bytes, or what came out of them, are wrong. */
static os_answer refuse(const os_reading *r, const os_piece *p) {
    os_source *source = &r->image->source;
    r->reader->image = NULL;
    bool others = source->reject != NULL && source->reject(source->context, p->blob, p->packed, p->offset);
    return others ? OS_ANSWER_PENDING : OS_ANSWER_FAILED;
}

static os_answer decode(const os_reading *r, const os_piece *p, uint8_t *out) {
    const uint8_t *bytes;
    os_answer answer = fill_packed(r, p, &bytes);
    if (answer != OS_ANSWER_HERE)
        return answer;
    if (os_frame_decompress(r->reader->zstd, bytes, p->packed, out, p->plain, r->failure) != OS_OK)
        return refuse(r, p);
    r->reader->decoded_bytes += p->plain;
    return OS_ANSWER_HERE;
}

/* ---------------------------------------------------------------------- chunks */

static os_answer verify(const os_reading *r, const os_piece *p, const uint8_t *data, size_t size) {
    const os_tables *t = &r->image->tables;
    uint8_t id[OS_ID_SIZE];
    if (t->object_algorithm[r->row] == OS_ALGORITHM_SHA256)
        os_sha256(data, size, id);
    else
        os_blake3(data, size, id);
    if (memcmp(id, t->chunk_id + (size_t)p->chunk * OS_ID_SIZE, OS_ID_SIZE) == 0)
        return OS_ANSWER_HERE;
    os_fail(r->failure, OS_CORRUPT, "the chunk's hash differs");
    return refuse(r, p);
}

/* Out of the store: into out if all of the chunk is wanted, by way of reader->frame if not. */
static bool read_kept(const os_reading *r, const os_piece *p, size_t from, size_t take, uint8_t *out) {
    os_reader *reader = r->reader;
    bool whole = take == p->length;
    if (reader->store == NULL || (!whole && reader->frame == NULL))
        return false;
    if (!os_shelf_get(reader->store, os_reading_id(r, p), os_reading_algorithm(r), whole ? out : reader->frame,
                      p->length))
        return false;
    reader->kept_bytes += take;
    if (whole)
        return true;
    memcpy(out, reader->frame + from, take);
    if (p->length == p->plain) { /* a frame of its own: whoever wants the rest of it finds it in the cache */
        os_frame_slot *slot = os_frame_cache_put(r->cache, r->image->id, p->frame, &reader->frame);
        if (slot != NULL)
            os_frame_cache_release(r->cache, slot, 0);
    }
    return true;
}

static bool is_far(const os_reading *r, const os_piece *p) {
    const os_source *source = &r->image->source;
    return source->far != NULL && source->far(source->context, p->blob);
}

/* A verified chunk for the store: what came over the network at once, other things if they are read again. */
static void keep(const os_reading *r, const os_piece *p, const uint8_t *data) {
    r->reader->keeps +=
        is_far(r, p) ? os_shelf_keep(r->reader->store, os_reading_id(r, p), os_reading_algorithm(r), data, p->length)
                     : os_shelf_offer(r->reader->store, os_reading_id(r, p), os_reading_algorithm(r), data, p->length);
}

/* Part of a frame, through the cache. */
static os_answer read_cached(const os_reading *r, const os_piece *p, size_t from, size_t take, uint8_t *out) {
    os_reader *reader = r->reader;
    os_frame_slot *slot = os_frame_cache_get(r->cache, r->image->id, p->frame);
    bool decoded = slot == NULL;
    if (slot != NULL) {
        reader->cache_hits++;
    } else {
        if (reader->frame == NULL && (reader->frame = r->env->allocate(r->env->context, OS_FRAME_MAX)) == NULL) {
            os_fail(r->failure, OS_MEMORY, "got no memory for a frame");
            return OS_ANSWER_FAILED;
        }
        if (read_kept(r, p, from, take, out))
            return OS_ANSWER_HERE;
        os_answer answer = decode(r, p, reader->frame);
        if (answer != OS_ANSWER_HERE)
            return answer;
        slot = os_frame_cache_put(r->cache, r->image->id, p->frame, &reader->frame);
    }
    const uint8_t *data = (slot != NULL ? slot->data : reader->frame) + p->at;
    os_answer answer = verify(r, p, data, p->length);
    if (answer == OS_ANSWER_HERE) {
        memcpy(out, data + from, take);
        if (decoded || is_far(r, p))
            keep(r, p, data);
    }
    if (slot != NULL)
        os_frame_cache_release(r->cache, slot, answer != OS_ANSWER_HERE);
    return answer;
}

static os_answer read_chunk(const os_reading *r, uint32_t chunk, uint32_t part, size_t from, size_t take,
                            uint8_t *out) {
    const os_tables *t = &r->image->tables;
    os_piece p = os_piece_of(t, chunk, part);
    r->place->chunk = t->chunk_id + (size_t)chunk * OS_ID_SIZE;
    if (!os_piece_sound(t, &p) || from + take > p.length) {
        os_fail(r->failure, OS_CORRUPT, "the tables have changed");
        return OS_ANSWER_FAILED;
    }
    os_reading_place(r, &p);
    if (take != p.plain)
        return read_cached(r, &p, from, take, out);
    if (read_kept(r, &p, from, take, out))
        return OS_ANSWER_HERE;
    os_answer answer = decode(r, &p, out);
    if (answer == OS_ANSWER_HERE)
        answer = verify(r, &p, out, take);
    if (answer == OS_ANSWER_HERE)
        keep(r, &p, out);
    return answer;
}

os_answer os_image_read(os_image *image, uint32_t row, const uint64_t *starts, uint64_t offset, size_t size,
                        uint8_t *out, os_reader *reader, os_frame_cache *cache, const os_env *env, os_place *place,
                        os_failure *failure) {
    const os_tables *t = &image->tables;
    const os_reading r = {image, row, starts, offset, offset + size, reader, cache, env, place, failure};
    uint32_t first = t->object_ref[row], parts = t->object_ref[row + 1] - first;
    *place = (os_place){0};
    reader->image = NULL;
    if (image->source.want != NULL && os_image_want(&r, false) == OS_ANSWER_PENDING)
        return OS_ANSWER_PENDING;
    for (uint32_t part = os_part_at(starts, parts, offset); offset < r.end; part++) {
        if (part >= parts || first + part >= t->ref_count || t->ref[first + part] >= t->chunk_count ||
            os_tables_length(t, t->ref[first + part]) != starts[part + 1] - starts[part]) {
            os_fail(failure, OS_CORRUPT, "the tables have changed");
            return OS_ANSWER_FAILED;
        }
        uint32_t chunk = t->ref[first + part];
        uint64_t stop = starts[part + 1] < r.end ? starts[part + 1] : r.end;
        size_t take = (size_t)(stop - offset);
        if (t->chunk_frame[chunk] == OS_TABLES_HOLE) {
            memset(out, 0, take);
        } else {
            os_answer answer = read_chunk(&r, chunk, part, (size_t)(offset - starts[part]), take, out);
            if (answer != OS_ANSWER_HERE)
                return answer;
        }
        out += take;
        offset = stop;
    }
    return OS_ANSWER_HERE;
}
