/* First every chunk of the packs gets a row in a hash table, the first pack winning. Then the distinct objects of the
 * tree are collected and sorted, and what they use is marked. Used blobs, frames and chunks are numbered in the order
 * that the format asks for, and the columns are written. */
#include "os_tables_build.h"

#include <endian.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "os_pack.h"
#include "os_tables.h"

#define PART 40u

typedef struct frame_row {
    uint64_t offset;
    uint32_t pack, clen, ulen, number;
    bool used;
} frame_row;

typedef struct chunk_row {
    const uint8_t *id; /* borrowed from a table */
    uint32_t frame, offset, length, number;
    bool used;
} chunk_row;

#define NO_CHUNK UINT32_MAX

typedef struct object_row {
    uint64_t start; /* the id's first eight bytes as a number: most comparisons end here */
    uint32_t inode;
} object_row;

typedef struct builder {
    const os_tree *tree;
    const os_pack_input *packs;
    os_failure *failure;
    os_pack_table *parsed; /* owned, as all below */
    uint32_t *order;       /* packs by digest */
    uint32_t *blob_number; /* by pack; UINT32_MAX: unused */
    frame_row *frames;
    chunk_row *chunks;
    uint64_t *slots;     /* by id: four more bytes of it above chunk + 1, so that a miss reads no row */
    uint64_t *holes;     /* lengths, ascending, distinct */
    object_row *objects; /* ascending by object id, distinct */
    uint32_t
        *uses; /* chunk of each part of each object, NO_CHUNK for a hole: found once, it costs three cache misses */
    size_t pack_count;
    uint32_t frame_count, chunk_count, slot_count, hole_count, object_count;
    uint32_t used_blobs, used_frames, used_chunks, ref_count;
    uint64_t total;
} builder;

static os_code no_memory(builder *b) {
    return os_fail(b->failure, OS_MEMORY, "tables: out of memory");
}

static uint64_t length_of(const uint8_t *part) {
    uint64_t length = 0;
    for (unsigned at = 0; at < 8; at++)
        length |= (uint64_t)part[at] << 8 * at;
    return length;
}

static bool is_hole(const uint8_t *part) {
    static const uint8_t HOLE[OS_ID_SIZE];
    return !memcmp(part + 8, HOLE, OS_ID_SIZE);
}

/* ---- what the packs have ---- */

static uint32_t chunk_in(uint64_t slot) {
    return (uint32_t)slot - 1;
}

/* *tag: what an empty slot gets, to which chunk + 1 is added. */
static uint64_t *slot_of(const builder *b, const uint8_t *id, uint64_t *tag) {
    uint64_t at;
    memcpy(&at, id, sizeof at);
    memcpy(tag, id + sizeof at, sizeof *tag);
    *tag &= ~(uint64_t)UINT32_MAX;
    for (;; at++) {
        uint64_t *slot = &b->slots[at & (b->slot_count - 1)];
        if (!*slot || (((*slot ^ *tag) >> 32) == 0 && !memcmp(b->chunks[chunk_in(*slot)].id, id, OS_ID_SIZE)))
            return slot;
    }
}

static os_code parse_packs(builder *b) {
    uint64_t frames = 0, chunks = 0;
    b->parsed = calloc(b->pack_count + 1, sizeof *b->parsed);
    if (!b->parsed)
        return no_memory(b);
    for (size_t pack = 0; pack < b->pack_count; pack++) {
        os_code code = os_pack_table_parse(b->packs[pack].table, b->packs[pack].table_size, b->packs[pack].size,
                                           &b->parsed[pack], b->failure);
        if (code != OS_OK)
            return code;
        frames += b->parsed[pack].frame_count;
        chunks += b->parsed[pack].chunk_count;
    }
    if (chunks >= 1u << 30)
        return os_fail(b->failure, OS_LIMIT, "tables: packs with too many chunks");
    b->slot_count = 16;
    while (b->slot_count < 2 * chunks)
        b->slot_count *= 2;
    b->frames = calloc(frames + 1, sizeof *b->frames);
    b->chunks = calloc(chunks + 1, sizeof *b->chunks);
    b->slots = calloc(b->slot_count, sizeof *b->slots);
    return b->frames && b->chunks && b->slots ? OS_OK : no_memory(b);
}

static void index_pack(builder *b, uint32_t pack) {
    const os_pack_table *table = &b->parsed[pack];
    uint64_t offset = 0;
    uint32_t chunk = 0;
    for (uint32_t frame = 0; frame < table->frame_count; frame++) {
        frame_row *row = &b->frames[b->frame_count];
        *row = (frame_row){offset, pack, os_pack_u32(table->frame_clen, frame), os_pack_u32(table->frame_ulen, frame),
                           0,      false};
        offset += row->clen;
        uint32_t inside = 0;
        for (uint32_t end = chunk + os_pack_u32(table->frame_chunks, frame); chunk < end; chunk++) {
            const uint8_t *id = table->chunk_id + (size_t)chunk * OS_ID_SIZE;
            uint64_t tag, *slot = slot_of(b, id, &tag);
            uint32_t length = os_pack_u32(table->chunk_length, chunk);
            if (!*slot) {
                b->chunks[b->chunk_count] = (chunk_row){id, b->frame_count, inside, length, 0, false};
                *slot = tag | ++b->chunk_count;
            }
            inside += length;
        }
        b->frame_count++;
    }
}

/* ---- what the tree uses ---- */

static _Thread_local const os_tree *sorted_tree; /* qsort hands no argument on */

static int by_object(const void *a, const void *b) {
    const object_row *one = a, *other = b;
    if (one->start != other->start)
        return one->start < other->start ? -1 : 1;
    return memcmp(sorted_tree->inodes[one->inode].object, sorted_tree->inodes[other->inode].object, OS_ID_SIZE);
}

static int by_length(const void *a, const void *b) {
    uint64_t one = *(const uint64_t *)a, other = *(const uint64_t *)b;
    return (one > other) - (one < other);
}

/* uses: room for the inode's parts. */
static os_code use_parts(builder *b, const os_inode *inode, uint32_t *uses, uint64_t *hole_room) {
    for (uint32_t row = 0; row < inode->part_count; row++) {
        const uint8_t *part = inode->parts + (size_t)row * PART;
        if (is_hole(part)) {
            if (b->hole_count == *hole_room) {
                *hole_room = *hole_room ? 2 * *hole_room : 64;
                uint64_t *grown = realloc(b->holes, *hole_room * sizeof *grown);
                if (!grown)
                    return no_memory(b);
                b->holes = grown;
            }
            b->holes[b->hole_count++] = length_of(part);
            uses[row] = NO_CHUNK;
            continue;
        }
        uint64_t tag, slot = *slot_of(b, part + 8, &tag);
        if (!slot)
            return os_fail(b->failure, OS_MISSING, "tables: a chunk is in none of the %zu packs", b->pack_count);
        uses[row] = chunk_in(slot);
        chunk_row *chunk = &b->chunks[uses[row]];
        if (chunk->length != length_of(part))
            return os_fail(b->failure, OS_CORRUPT, "tables: a chunk has another length in its pack");
        chunk->used = true;
        b->frames[chunk->frame].used = true;
    }
    return OS_OK;
}

/* The distinct objects of the tree, ascending. */
static os_code collect_objects(builder *b) {
    uint32_t distinct = 0;
    uint64_t refs = 0;
    b->objects = malloc(((size_t)b->tree->inode_count + 1) * sizeof *b->objects);
    if (!b->objects)
        return no_memory(b);
    for (uint32_t number = 0; number < b->tree->inode_count; number++) {
        const os_inode *inode = &b->tree->inodes[number];
        if (!inode->has_object)
            continue;
        uint64_t start;
        memcpy(&start, inode->object, sizeof start);
        b->objects[b->object_count++] = (object_row){be64toh(start), number};
    }
    sorted_tree = b->tree;
    qsort(b->objects, b->object_count, sizeof *b->objects, by_object);
    for (uint32_t row = 0; row < b->object_count; row++) {
        if (distinct && !by_object(&b->objects[distinct - 1], &b->objects[row]))
            continue;
        const os_inode *inode = &b->tree->inodes[b->objects[row].inode];
        b->objects[distinct++] = b->objects[row];
        refs += inode->part_count;
        if (refs >= OS_REFS_MAX || inode->size > UINT64_MAX - b->total)
            return os_fail(b->failure, OS_LIMIT, "tables: an image with too many chunks");
        b->total += inode->size;
    }
    b->object_count = distinct;
    b->ref_count = (uint32_t)refs;
    return OS_OK;
}

static os_code collect(builder *b) {
    uint64_t hole_room = 0;
    uint32_t distinct = 0;
    os_code code = collect_objects(b);
    if (code != OS_OK)
        return code;
    b->uses = malloc(((size_t)b->ref_count + 1) * sizeof *b->uses);
    if (!b->uses)
        return no_memory(b);
    uint32_t *uses = b->uses;
    for (uint32_t row = 0; row < b->object_count; row++) {
        const os_inode *inode = &b->tree->inodes[b->objects[row].inode];
        code = use_parts(b, inode, uses, &hole_room);
        if (code != OS_OK)
            return code;
        uses += inode->part_count;
    }
    if (b->hole_count) /* holes are NULL without one, which qsort may not get */
        qsort(b->holes, b->hole_count, sizeof *b->holes, by_length);
    distinct = 0;
    for (uint32_t row = 0; row < b->hole_count; row++)
        if (!distinct || b->holes[distinct - 1] != b->holes[row])
            b->holes[distinct++] = b->holes[row];
    b->hole_count = distinct;
    return OS_OK;
}

/* ---- numbers ---- */

static _Thread_local const os_pack_input *sorted_packs;

static int by_digest(const void *a, const void *b) {
    return memcmp(sorted_packs[*(const uint32_t *)a].digest, sorted_packs[*(const uint32_t *)b].digest, OS_ID_SIZE);
}

static os_code number_rows(builder *b) {
    b->order = malloc((b->pack_count + 1) * sizeof *b->order);
    b->blob_number = malloc((b->pack_count + 1) * sizeof *b->blob_number);
    uint32_t *first = malloc((b->pack_count + 1) * sizeof *first);
    uint32_t *first_chunk = malloc((b->pack_count + 1) * sizeof *first_chunk);
    if (!b->order || !b->blob_number || !first || !first_chunk) {
        free(first);
        free(first_chunk);
        return no_memory(b);
    }
    /* frames and chunks of a pack stand side by side, in file order: index_pack put them so */
    uint32_t frame = 0, chunk = 0;
    for (uint32_t pack = 0; pack < b->pack_count; pack++) {
        b->order[pack] = pack;
        first[pack] = frame;
        first_chunk[pack] = chunk;
        while (frame < b->frame_count && b->frames[frame].pack == pack)
            frame++;
        while (chunk < b->chunk_count && b->frames[b->chunks[chunk].frame].pack == pack)
            chunk++;
    }
    first[b->pack_count] = b->frame_count;
    first_chunk[b->pack_count] = b->chunk_count;
    sorted_packs = b->packs;
    qsort(b->order, b->pack_count, sizeof *b->order, by_digest);
    for (size_t place = 0; place < b->pack_count; place++) {
        uint32_t pack = b->order[place];
        bool used = false;
        for (frame = first[pack]; frame < first[pack + 1]; frame++)
            if (b->frames[frame].used) {
                used = true;
                b->frames[frame].number = b->used_frames++;
            }
        for (chunk = first_chunk[pack]; chunk < first_chunk[pack + 1]; chunk++)
            if (b->chunks[chunk].used)
                b->chunks[chunk].number = b->used_chunks++;
        b->blob_number[pack] = used ? b->used_blobs++ : UINT32_MAX;
    }
    free(first);
    free(first_chunk);
    return OS_OK;
}

/* ---- columns ---- */

typedef struct columns {
    uint8_t *data;
    size_t at;
} columns;

static void *section(columns *to, size_t size) {
    to->at = (to->at + 7) & ~(size_t)7;
    void *start = to->data ? to->data + to->at : NULL;
    to->at += size;
    return start;
}

static void write_rows(const builder *b, columns *to) {
    size_t frames = b->used_frames, chunks = (size_t)b->used_chunks + b->hole_count, objects = b->object_count;
    uint8_t *header = section(to, OS_TABLES_HEADER);
    os_tables_blob *blob = section(to, b->used_blobs * sizeof *blob);
    uint64_t *frame_offset = section(to, 8 * frames);
    uint32_t *frame_blob = section(to, 4 * frames);
    uint32_t *frame_clen = section(to, 4 * frames);
    uint32_t *frame_ulen = section(to, 4 * frames);
    uint8_t *chunk_id = section(to, OS_ID_SIZE * chunks);
    uint32_t *chunk_frame = section(to, 4 * chunks);
    uint32_t *chunk_offset = section(to, 4 * chunks);
    uint32_t *chunk_length = section(to, 4 * chunks);
    uint8_t *object_id = section(to, OS_ID_SIZE * objects);
    uint64_t *object_size = section(to, 8 * objects);
    uint32_t *object_algorithm = section(to, 4 * objects);
    uint32_t *object_ref = section(to, 4 * (objects + 1));
    uint32_t *ref = section(to, 4 * (size_t)b->ref_count);
    if (!to->data)
        return;
    uint32_t counts[6] = {b->used_blobs, b->used_frames, (uint32_t)chunks, b->object_count, b->ref_count, 0};
    memcpy(header, "OSTABLE1", 8);
    memcpy(header + 8, counts, sizeof counts);
    memcpy(header + 32, &b->total, sizeof b->total);
    for (size_t pack = 0; pack < b->pack_count; pack++)
        if (b->blob_number[pack] != UINT32_MAX) {
            os_tables_blob *row = &blob[b->blob_number[pack]];
            memcpy(row->digest, b->packs[pack].digest, OS_ID_SIZE);
            row->size = b->packs[pack].size;
            row->codec = 1;
        }
    for (uint32_t at = 0; at < b->frame_count; at++) {
        const frame_row *row = &b->frames[at];
        if (!row->used)
            continue;
        frame_offset[row->number] = row->offset;
        frame_blob[row->number] = b->blob_number[row->pack];
        frame_clen[row->number] = row->clen;
        frame_ulen[row->number] = row->ulen;
    }
    for (uint32_t at = 0; at < b->chunk_count; at++) {
        const chunk_row *row = &b->chunks[at];
        if (!row->used)
            continue;
        memcpy(chunk_id + (size_t)row->number * OS_ID_SIZE, row->id, OS_ID_SIZE);
        chunk_frame[row->number] = b->frames[row->frame].number;
        chunk_offset[row->number] = row->offset;
        chunk_length[row->number] = row->length;
    }
    for (uint32_t at = 0; at < b->hole_count; at++) {
        chunk_frame[b->used_chunks + at] = OS_TABLES_HOLE;
        chunk_offset[b->used_chunks + at] = (uint32_t)(b->holes[at] >> 32);
        chunk_length[b->used_chunks + at] = (uint32_t)b->holes[at];
    }
    uint32_t next = 0;
    for (uint32_t at = 0; at < b->object_count; at++) {
        const os_inode *inode = &b->tree->inodes[b->objects[at].inode];
        memcpy(object_id + (size_t)at * OS_ID_SIZE, inode->object, OS_ID_SIZE);
        object_size[at] = inode->size;
        object_algorithm[at] = inode->algorithm;
        object_ref[at] = next;
        for (uint32_t row = 0; row < inode->part_count; row++) {
            uint32_t chunk = b->uses[next];
            if (chunk == NO_CHUNK) {
                uint64_t length = length_of(inode->parts + (size_t)row * PART);
                uint64_t *found = bsearch(&length, b->holes, b->hole_count, sizeof *b->holes, by_length);
                ref[next++] = b->used_chunks + (uint32_t)(found - b->holes);
            } else {
                ref[next++] = b->chunks[chunk].number;
            }
        }
    }
    object_ref[b->object_count] = next;
}

os_code os_tables_build(const os_tree *tree, const os_pack_input *packs, size_t pack_count, uint8_t **tables,
                        size_t *size, os_failure *failure) {
    builder b = {.tree = tree, .packs = packs, .pack_count = pack_count, .failure = failure};
    columns columns = {NULL, 0};
    os_code code = parse_packs(&b);
    for (size_t pack = 0; code == OS_OK && pack < pack_count; pack++)
        index_pack(&b, (uint32_t)pack);
    if (code == OS_OK)
        code = collect(&b);
    if (code == OS_OK)
        code = number_rows(&b);
    if (code == OS_OK) {
        write_rows(&b, &columns); /* measures */
        if (columns.at > OS_INDEX_MAX)
            code = os_fail(failure, OS_LIMIT, "tables: larger than %llu bytes", OS_INDEX_MAX);
        else if (!(columns.data = calloc(1, columns.at)))
            code = no_memory(&b);
    }
    if (code == OS_OK) {
        *tables = columns.data;
        *size = columns.at;
        columns.at = 0;
        write_rows(&b, &columns);
    }
    free(b.parsed);
    free(b.order);
    free(b.blob_number);
    free(b.frames);
    free(b.chunks);
    free(b.slots);
    free(b.holes);
    free(b.objects);
    free(b.uses);
    return code;
}
