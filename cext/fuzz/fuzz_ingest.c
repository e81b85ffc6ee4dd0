/* The ingest: any calls in any order, on a disk that is made up, with memory or the disk failing at one call. What the
 * header promises holds: misuse is told and breaks nothing, a failure stays, and the parts of a content are as
 * docs/format.md section 1 has them.
 *
 * Input: u8 what fails, u16 at which of its calls (0: never), u8 threads; then for each call: u8 which, u16 size. */
#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "os_bytes.h"
#include "os_ingest.h"
#include "os_limits.h"

#define DATA (1u << 20)   /* bytes that contents are made of */
#define BUDGET (6u << 20) /* bytes that one input may hash */
#define PART 40u

enum { NOTHING, MEMORY, OPEN, WRITE, READ, SYNC, CLOSE, THREAD, LOOKUP, KINDS };

static struct {
    atomic_uint kind, left; /* calls until one fails; 0: none does */
    atomic_bool failed;
    atomic_int open;
} world;

static uint8_t data_of[DATA];

static bool fails(unsigned kind) {
    if (kind != atomic_load(&world.kind) || atomic_load(&world.left) == 0 || atomic_fetch_sub(&world.left, 1) != 1)
        return false;
    atomic_store(&world.failed, true);
    errno = EIO;
    return true;
}

static int open_file(void *context, int directory, const char *path, int flags, mode_t mode) {
    (void)context, (void)directory, (void)path, (void)flags, (void)mode;
    if (fails(OPEN))
        return -1;
    atomic_fetch_add(&world.open, 1);
    return 1000;
}

static int close_file(void *context, int fd) {
    (void)context, (void)fd;
    atomic_fetch_sub(&world.open, 1);
    return fails(CLOSE) ? -1 : 0;
}

static ssize_t write_file(void *context, int fd, const void *buffer, size_t size) {
    (void)context, (void)fd, (void)buffer;
    return fails(WRITE) ? -1 : (ssize_t)size;
}

static ssize_t read_file(void *context, int fd, void *buffer, size_t size, off_t offset) {
    (void)context, (void)fd;
    if (fails(READ))
        return -1;
    size_t at = (size_t)offset % DATA, step = size < DATA - at ? size : DATA - at;
    memcpy(buffer, data_of + at, step);
    return (ssize_t)step;
}

static int sync_file(void *context, int fd) {
    (void)context, (void)fd;
    return fails(SYNC) ? -1 : 0;
}

static void ignore_file(void *context, int fd) {
    (void)context, (void)fd;
}

static int remove_file(void *context, int directory, const char *path, int flags) {
    (void)context, (void)directory, (void)path, (void)flags;
    return 0;
}

static void *allocate(void *context, size_t size) {
    (void)context;
    return fails(MEMORY) ? NULL : malloc(size);
}

static void *reallocate(void *context, void *memory, size_t size) {
    (void)context;
    return fails(MEMORY) ? NULL : realloc(memory, size);
}

static void release(void *context, void *memory) {
    (void)context;
    free(memory);
}

static int start_thread(void *context, pthread_t *thread, void *(*begin)(void *), void *argument) {
    (void)context;
    return fails(THREAD) ? EAGAIN : pthread_create(thread, NULL, begin, argument);
}

static int lookup(void *context, const uint8_t id[32], uint8_t pack[32]) {
    (void)context;
    memset(pack, id[1] & 3, 32);
    return fails(LOOKUP) ? -1 : id[0] < 16;
}

/* What the caller knows of an ingest. */
typedef struct model {
    bool open, finished;
    uint64_t expected, taken;
    uint32_t contents;
    os_code failed; /* the failure that stays */
} model;

static void check_parts(const os_ingest *ingest, const model *now) {
    os_failure failure;
    const uint8_t *parts;
    size_t size;
    uint64_t length, sum = 0;
    os_code code = os_ingest_parts(ingest, now->contents, &length, &parts, &size, &failure);
    assert(code != OS_OK);
    if (now->contents == 0 || now->failed != OS_OK)
        return;
    assert(os_ingest_parts(ingest, now->contents - 1, &length, &parts, &size, &failure) == OS_OK && size % PART == 0);
    bool hole = false;
    for (size_t at = 0; at < size; at += PART) {
        static const uint8_t NONE[OS_ID_SIZE];
        uint64_t one = os_get64(parts + at);
        bool is_hole = !memcmp(parts + at + 8, NONE, OS_ID_SIZE);
        assert(one > 0 && !(hole && is_hole) && (is_hole ? one >= OS_HOLE_MIN : one <= OS_CHUNK_MAX));
        hole = is_hole;
        sum += one;
    }
    assert(sum == length);
}

/* The code of a call, given what the model says that it has to be where nothing fails. */
static void settle(model *now, os_code code, os_code want, const os_failure *failure) {
    if (now->failed != OS_OK) {
        assert(code == now->failed);
        return;
    }
    if (code != want) {
        assert(code != OS_OK && atomic_load(&world.failed));
    }
    if (code != OS_OK)
        assert(failure->message[0] != '\0' && !strchr(failure->message, '\n'));
    if (code != OS_OK && code != OS_CLOSED)
        now->failed = code;
}

static void call(os_ingest *ingest, model *now, unsigned which, uint64_t size, uint64_t *budget) {
    os_failure failure = {0};
    os_code code;
    uint32_t ticket = 0;
    bool usable = now->open && !now->finished;
    uint64_t bytes = size * 61 < *budget ? size * 61 : *budget, zeros = size * size * size;
    switch (which % 7) {
    case 0:
    case 1:
        code = os_ingest_begin(ingest, which % 7 ? size * 61 : UINT64_MAX, &ticket, &failure);
        settle(now, code, now->open || now->finished ? OS_CLOSED : OS_OK, &failure);
        if (code == OS_OK) {
            assert(ticket == now->contents);
            now->open = true;
            now->expected = which % 7 ? size * 61 : UINT64_MAX;
            now->taken = 0;
        }
        break;
    case 2:
    case 3:
        if (bytes > DATA)
            bytes = DATA;
        code = which % 7 == 2 ? os_ingest_update(ingest, data_of + DATA - bytes, (size_t)bytes, &failure)
                              : os_ingest_update_from(ingest, 5, size, (size_t)bytes, &failure);
        settle(now, code, usable ? OS_OK : OS_CLOSED, &failure);
        *budget -= bytes;
        now->taken += bytes;
        break;
    case 4:
        if (zeros < OS_HOLE_MIN && (zeros = zeros < *budget ? zeros : *budget))
            *budget -= zeros;
        code = os_ingest_zeros(ingest, zeros, &failure);
        settle(now, code, usable ? OS_OK : OS_CLOSED, &failure);
        now->taken += zeros;
        break;
    case 5:
        code = os_ingest_end(ingest, &failure);
        settle(now, code,
               !usable                                                      ? OS_CLOSED
               : now->expected != UINT64_MAX && now->expected != now->taken ? OS_CORRUPT
                                                                            : OS_OK,
               &failure);
        if (code == OS_OK) {
            now->open = false;
            now->contents++;
        }
        break;
    default:
        code = os_ingest_finish(ingest, &failure);
        settle(now, code, now->open || now->finished ? OS_CLOSED : OS_OK, &failure);
        now->finished = now->finished || code == OS_OK;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const os_env ENV = {.openat = open_file,
                               .close = close_file,
                               .write = write_file,
                               .pread = read_file,
                               .fdatasync = sync_file,
                               .start_writeback = ignore_file,
                               .unlinkat = remove_file,
                               .allocate = allocate,
                               .reallocate = reallocate,
                               .release = release,
                               .start_thread = start_thread};
    static const os_known KNOWN = {NULL, lookup};
    os_failure failure = {0};
    os_ingest *ingest = NULL;
    model now = {0};
    uint64_t budget = BUDGET;
    if (size < 4)
        return 0;
    if (data_of[0] == 0)
        for (size_t at = 0; at < DATA; at++) /* a part that is hard to compress, one that is easy, one of zeros */
            data_of[at] = (uint8_t)(at < DATA / 2       ? 1 + (at * at * 2654435761u >> 24)
                                    : at < DATA / 4 * 3 ? at >> 9
                                                        : 0);
    atomic_store(&world.kind, data[0] % KINDS);
    atomic_store(&world.left, os_get16(data + 1) % 300);
    atomic_store(&world.failed, false);
    const os_ingest_options options = {&ENV, &KNOWN, 3, 1, 1 + data[3] % 3, OS_FRAME_MAX, true};
    os_code code = os_ingest_make(&options, &ingest, &failure);
    assert((code == OS_OK) != (ingest == NULL) && (code == OS_OK || atomic_load(&world.failed)));
    for (size_t at = 4; ingest != NULL && at + 3 <= size && at < 4 + 3 * 60; at += 3) {
        call(ingest, &now, data[at], os_get16(data + at + 1), &budget);
        check_parts(ingest, &now);
    }
    os_ingest_free(ingest);
    assert(atomic_load(&world.open) == 0);
    return 0;
}
