/* The whole server between a made-up kernel and a made-up disk: requests of any bytes, memory and reads that fail at
 * any request, packs that are here or still to come. Every request that can be answered is answered exactly once, by
 * the end of the server at the latest, and each answer is well formed.
 *
 * Input: one byte (1: the pack is pending), then for each request: u8 switches, u16 length, bytes. */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "fuse_server.h"
#include "fuse_wire.h"
#include "os_hash.h"
#include "os_tables.h"

enum { NO_MEMORY = 1, NO_DISK = 2, KNOWN_NODE = 4, TRUE_LENGTH = 8, KNOWN_NAME = 16 };

#define CONTENT 5000u

static struct {
    const uint8_t *data;
    size_t size;
    atomic_int no_memory, no_disk, pending;
    atomic_uint expected, answered;
    uint64_t node;
} world;

static uint8_t content[CONTENT], frame[2 * CONTENT], object[OS_ID_SIZE];
static size_t frame_size;

static void *allocate(void *context, size_t size) {
    (void)context;
    return atomic_load(&world.no_memory) ? NULL : malloc(size);
}

static void release(void *context, void *memory) {
    (void)context;
    free(memory);
}

static uint64_t monotonic_ns(void *context) {
    return os_env_system.monotonic_ns(context);
}

static int close_nothing(void *context, int fd) {
    (void)context;
    (void)fd;
    return 0;
}

static int open_nothing(void *context, int directory, const char *path, int flags, mode_t mode) {
    (void)context;
    (void)directory;
    (void)path;
    (void)flags;
    (void)mode;
    errno = ENOENT;
    return -1;
}

/* The kernel's next request, or ENODEV. One worker calls it. */
static ssize_t next_request(void *context, int fd, void *buffer, size_t size) {
    (void)context;
    (void)fd;
    uint16_t length;
    if (world.size < 1 + sizeof length)
        goto unmounted;
    uint8_t switches = world.data[0];
    memcpy(&length, world.data + 1, sizeof length);
    if (length > world.size - 3 || length > size)
        goto unmounted;
    memcpy(buffer, world.data + 3, length);
    world.data += 3 + length;
    world.size -= 3 + length;
    atomic_store(&world.no_memory, switches & NO_MEMORY);
    atomic_store(&world.no_disk, switches & NO_DISK);
    struct fuse_in_header *in = buffer;
    if (length < sizeof *in)
        return length;
    if (switches & TRUE_LENGTH)
        in->len = length;
    if (switches & KNOWN_NODE)
        in->nodeid = world.node;
    if ((switches & KNOWN_NAME) && length >= sizeof *in + 2 * OS_ID_SIZE - 1) {
        static const char digits[] = "0123456789abcdef";
        char *name = (char *)buffer + sizeof *in;
        in->opcode = FUSE_LOOKUP;
        in->nodeid = OS_FUSE_DIRECTORY + object[0];
        for (unsigned at = 1; at < OS_ID_SIZE; at++) {
            name[2 * at - 2] = digits[object[at] >> 4];
            name[2 * at - 1] = digits[object[at] & 15];
        }
        name[2 * OS_ID_SIZE - 2] = '\0';
    }
    if (in->unique != 0 && in->opcode != FUSE_FORGET && in->opcode != FUSE_BATCH_FORGET && in->opcode != FUSE_INTERRUPT)
        atomic_fetch_add(&world.expected, 1);
    return length;
unmounted:
    atomic_store(&world.no_memory, 0);
    errno = ENODEV;
    return -1;
}

static ssize_t answer(void *context, int fd, const void *buffer, size_t size) {
    struct fuse_out_header out;
    (void)context;
    (void)fd;
    assert(size >= sizeof out);
    memcpy(&out, buffer, sizeof out);
    assert(out.len == size && out.unique != 0 && out.error <= 0 && out.error > -4096);
    assert(out.error == 0 || size == sizeof out);
    assert(size <= sizeof out + OS_FUSE_READ_MAX);
    if (size > sizeof out + 200) /* bytes of the object: never others */
        assert(memmem(content, sizeof content, (const uint8_t *)buffer + sizeof out, size - sizeof out) != NULL);
    atomic_fetch_add(&world.answered, 1);
    return (ssize_t)size;
}

static os_answer read_pack(void *context, uint32_t blob, void *buffer, size_t size, uint64_t offset,
                           os_failure *failure) {
    (void)context;
    (void)blob;
    assert(offset + size <= frame_size);
    if (atomic_load(&world.pending))
        return OS_ANSWER_PENDING;
    if (atomic_load(&world.no_disk)) {
        os_fail_errno(failure, EIO, "read: made up");
        return OS_ANSWER_FAILED;
    }
    memcpy(buffer, frame + offset, size);
    return OS_ANSWER_HERE;
}

/* Tables with one object of one chunk. */
static size_t make_tables(uint8_t *out) {
    struct {
        char magic[8];
        uint32_t counts[5], zero;
        uint64_t total;
        uint8_t gap[24];
        os_tables_blob blob;
        uint64_t frame_offset;
        uint32_t frame_blob, gap1, frame_clen, gap2, frame_ulen, gap3;
        uint8_t chunk[OS_ID_SIZE];
        uint32_t chunk_frame, gap4, chunk_offset, gap5, chunk_length, gap6;
        uint8_t object[OS_ID_SIZE];
        uint64_t size;
        uint32_t algorithm, gap7, refs[2], ref;
    } t = {.magic = "OSTABLE1", .counts = {1, 1, 1, 1, 1}, .total = CONTENT, .size = CONTENT, .algorithm = 1};
    struct {
        uint32_t algorithm, zero;
        uint64_t size, parts, length;
        uint8_t id[OS_ID_SIZE];
    } description = {1, 0, CONTENT, 1, CONTENT, {0}};
    size_t size = offsetof(__typeof__(t), ref) + sizeof t.ref;
    t.blob.size = frame_size;
    t.blob.codec = 1;
    t.frame_clen = (uint32_t)frame_size;
    t.frame_ulen = t.chunk_length = CONTENT;
    t.refs[1] = 1;
    os_blake3(content, sizeof content, t.chunk);
    memcpy(description.id, t.chunk, OS_ID_SIZE);
    os_blake3_derive("onesec 2026 object v1", &description, sizeof description, t.object);
    memcpy(object, t.object, OS_ID_SIZE);
    memcpy(out, &t, size);
    return size;
}

static void free_tables(void *mapping, size_t size) {
    (void)size;
    free(mapping);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const int fd = 99;
    os_env env = os_env_system;
    os_failure failure;
    os_fuse_server *server;
    uint64_t image;
    env.allocate = allocate;
    env.release = release;
    env.monotonic_ns = monotonic_ns;
    env.openat = open_nothing;
    env.close = close_nothing;
    env.read = next_request;
    env.write = answer;
    if (size == 0)
        return 0;
    if (frame_size == 0) {
        for (unsigned at = 0; at < CONTENT; at++)
            content[at] = (uint8_t)(at * at >> 5);
        frame_size = ZSTD_compress(frame, sizeof frame, content, sizeof content, 3);
    }
    world.data = data + 1;
    world.size = size - 1;
    atomic_store(&world.pending, data[0] == 1);
    atomic_store(&world.expected, 0);
    atomic_store(&world.answered, 0);
    os_fuse_options options = {.env = &env,
                               .fds = &fd,
                               .fd_count = 1,
                               .proc = -1,
                               .log = -1,
                               .hangup = -1,
                               .memory = -1,
                               .deadline_ns = 1000000,
                               .fail_fast_ns = 1000,
                               .unmap = free_tables};
    assert(os_fuse_server_make(&options, &server, &failure) == OS_OK);
    uint8_t *tables = malloc(1024);
    assert(tables != NULL);
    os_source source = {.read = read_pack};
    size_t tables_size = make_tables(tables);
    assert(os_fuse_server_add(server, tables, tables_size, source, "fuzz", false, &image, &failure) == OS_OK);
    world.node = os_fuse_server_node(server, object);
    assert(os_fuse_server_start(server, &failure) == OS_OK);
    os_fuse_statistics statistics;
    do
        os_fuse_server_statistics(server, &statistics);
    while (statistics.unmounted == 0);
    os_fuse_server_free(server);
    assert(atomic_load(&world.expected) == atomic_load(&world.answered));
    return 0;
}
