/* faults DIRECTORY [once]: fails the first, second, third … call of each kind that an ingest makes of its environment
 * (cext/src/os_env.h), once and from there on, until a run passes untouched. Prints "kind how calls" for each; what it
 * finds wrong goes to stderr, with exit status 1.
 *
 * After any fault: the failure says something in one line and stays, no content is given out, no file, descriptor,
 * thread or memory is left. A run that ends well has the bytes of a run without faults. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "os_ingest.h"
#include "os_limits.h"
#include "os_sha256.h"

#define FILE_SIZE (400u << 10)
#define PACKS_MAX 8
#define BYTES_MAX (2u << 20)

typedef enum kind { OPEN, CLOSE, WRITE, READ, SYNC, MEMORY, THREAD, LOOKUP, KINDS } kind;
static const char *const KIND_NAMES[KINDS] = {"openat",    "close",  "write",  "pread",
                                              "fdatasync", "memory", "thread", "lookup"};

/* What happens in place of the call. INTERRUPTED and SHORT are no faults: the run has to end well if they end. */
typedef enum how { FAILS, INTERRUPTED, SHORT, NOTHING } how;
static const char *const HOW_NAMES[] = {"fails", "interrupted", "short", "nothing"};

static struct {
    kind kind;
    how how;
    bool forever;
    int at;              /* number of the call, from 1; 0: none */
    atomic_int calls;    /* of the kind */
    atomic_int injected; /* calls that were not made */
    atomic_int descriptors, memory, threads;
    int made; /* pieces of memory that an ingest has before its first content */
} world;

static char context[] = "a run";

static void complain(const char *format, ...) {
    va_list words;
    va_start(words, format);
    fprintf(stderr, "%s %s at %d%s: ", KIND_NAMES[world.kind], HOW_NAMES[world.how], world.at,
            world.forever ? " and on" : "");
    vfprintf(stderr, format, words);
    fputc('\n', stderr);
    va_end(words);
    exit(1);
}

static bool hit(kind kind) {
    if (kind != world.kind || world.at == 0)
        return false;
    int number = atomic_fetch_add(&world.calls, 1) + 1;
    if (world.forever ? number < world.at : number != world.at)
        return false;
    atomic_fetch_add(&world.injected, 1);
    return true;
}

static int fault_openat(void *self, int directory, const char *path, int flags, mode_t mode) {
    (void)self;
    if (hit(OPEN)) {
        errno = EMFILE;
        return -1;
    }
    int fd = openat(directory, path, flags, mode);
    if (fd >= 0)
        atomic_fetch_add(&world.descriptors, 1);
    return fd;
}

/* The descriptor is gone, whatever close says. */
static int fault_close(void *self, int fd) {
    (void)self;
    close(fd);
    atomic_fetch_sub(&world.descriptors, 1);
    if (!hit(CLOSE))
        return 0;
    errno = world.how == INTERRUPTED ? EINTR : EIO;
    return -1;
}

static ssize_t fault_write(void *self, int fd, const void *buffer, size_t size) {
    (void)self;
    if (!hit(WRITE))
        return write(fd, buffer, size);
    if (world.how == SHORT)
        return write(fd, buffer, size > 1 ? size / 2 : size);
    if (world.how == NOTHING)
        return 0;
    errno = world.how == INTERRUPTED ? EINTR : ENOSPC;
    return -1;
}

static ssize_t fault_pread(void *self, int fd, void *buffer, size_t size, off_t offset) {
    (void)self;
    if (!hit(READ))
        return pread(fd, buffer, size, offset);
    if (world.how == SHORT)
        return pread(fd, buffer, size > 1 ? size / 2 : size, offset);
    if (world.how == NOTHING)
        return 0;
    errno = world.how == INTERRUPTED ? EINTR : EIO;
    return -1;
}

static int fault_fdatasync(void *self, int fd) {
    (void)self;
    (void)fd;
    if (!hit(SYNC))
        return 0; /* the disk's time is not what is tested */
    errno = EIO;
    return -1;
}

static void fault_start_writeback(void *self, int fd) {
    (void)self;
    (void)fd;
}

static int fault_unlinkat(void *self, int directory, const char *path, int flags) {
    (void)self;
    return unlinkat(directory, path, flags);
}

static void *fault_allocate(void *self, size_t size) {
    (void)self;
    void *memory = hit(MEMORY) ? NULL : malloc(size);
    if (memory)
        atomic_fetch_add(&world.memory, 1);
    return memory;
}

static void *fault_reallocate(void *self, void *old, size_t size) {
    (void)self;
    void *memory = hit(MEMORY) ? NULL : realloc(old, size);
    if (memory && !old)
        atomic_fetch_add(&world.memory, 1);
    return memory;
}

static void fault_release(void *self, void *memory) {
    (void)self;
    if (memory)
        atomic_fetch_sub(&world.memory, 1);
    free(memory);
}

typedef struct thread {
    void *(*begin)(void *);
    void *argument;
} thread;

static void *count_thread(void *argument) {
    thread mine = *(thread *)argument;
    free(argument);
    void *result = mine.begin(mine.argument);
    atomic_fetch_sub(&world.threads, 1);
    return result;
}

static int fault_start_thread(void *self, pthread_t *id, void *(*begin)(void *), void *argument) {
    (void)self;
    if (hit(THREAD))
        return EAGAIN;
    thread *started = malloc(sizeof *started);
    *started = (thread){begin, argument};
    atomic_fetch_add(&world.threads, 1);
    return pthread_create(id, NULL, count_thread, started);
}

static int fault_lookup(void *self, const uint8_t id[32], uint8_t pack[32]) {
    (void)self;
    memset(pack, 7, 32);
    if (hit(LOOKUP))
        return -1;
    return id[0] % 8 == 0;
}

static const os_env ENV = {.context = context,
                           .openat = fault_openat,
                           .close = fault_close,
                           .write = fault_write,
                           .pread = fault_pread,
                           .fdatasync = fault_fdatasync,
                           .start_writeback = fault_start_writeback,
                           .unlinkat = fault_unlinkat,
                           .allocate = fault_allocate,
                           .reallocate = fault_reallocate,
                           .release = fault_release,
                           .start_thread = fault_start_thread};

/* ---- one run ---- */

typedef struct outcome {
    uint8_t packs[BYTES_MAX]; /* all of them, back to back */
    size_t size;
    uint32_t count;
} outcome;

static outcome want, got;
static uint8_t noise[FILE_SIZE];
static int noise_fd;

static int entries(const char *path) {
    int count = 0;
    DIR *directory = opendir(path);
    if (!directory)
        complain("cannot list %s", path);
    while (readdir(directory))
        count++;
    closedir(directory);
    return count - 2;
}

/* A row of small contents, a large one by descriptor, a hole, one that comes in pieces, one that is there already. */
static os_code feed(os_ingest *ingest, os_failure *failure) {
    uint32_t ticket;
    os_code code = OS_OK;
    for (size_t row = 0; row < 20 && code == OS_OK; row++) {
        code = os_ingest_begin(ingest, 9000, &ticket, failure);
        if (code == OS_OK)
            code = os_ingest_update(ingest, noise + 1000 * row, 9000, failure);
        if (code == OS_OK)
            code = os_ingest_end(ingest, failure);
    }
    for (size_t row = 0; row < 2 && code == OS_OK; row++) {
        code = os_ingest_begin(ingest, FILE_SIZE, &ticket, failure);
        if (code == OS_OK)
            code = os_ingest_update_from(ingest, noise_fd, 0, FILE_SIZE, failure);
        if (code == OS_OK)
            code = os_ingest_end(ingest, failure);
    }
    if (code == OS_OK)
        code = os_ingest_begin(ingest, UINT64_MAX, &ticket, failure);
    if (code == OS_OK)
        code = os_ingest_update(ingest, noise + 1, 100000, failure);
    if (code == OS_OK)
        code = os_ingest_zeros(ingest, 5u << 20, failure);
    if (code == OS_OK)
        code = os_ingest_update(ingest, noise, 5000, failure);
    return code == OS_OK ? os_ingest_end(ingest, failure) : code;
}

static void collect(const os_ingest *ingest, int directory) {
    got.size = 0;
    got.count = os_ingest_pack_count(ingest);
    for (uint32_t row = 0; row < got.count; row++) {
        const char *name;
        uint64_t size;
        const uint8_t *table, *digest;
        uint8_t hash[OS_ID_SIZE];
        size_t table_size;
        os_ingest_pack(ingest, row, &name, &size, &table, &table_size, &digest);
        int fd = openat(directory, name, O_RDONLY | O_CLOEXEC);
        ssize_t count = fd < 0 ? -1 : read(fd, got.packs + got.size, BYTES_MAX - got.size);
        if (count < 0 || (uint64_t)count != size || memcmp(got.packs + got.size + size - table_size, table, table_size))
            complain("pack %s is not what finish says", name);
        os_sha256(got.packs + got.size, (size_t)size, hash);
        if (memcmp(hash, digest, sizeof hash))
            complain("pack %s has another digest", name);
        got.size += size;
        close(fd);
        unlinkat(directory, name, 0);
    }
}

static void check_failed(os_ingest *ingest, os_code code, const os_failure *first) {
    os_failure failure = {0};
    uint32_t ticket;
    uint64_t size;
    const uint8_t *parts;
    size_t parts_size;
    if (!first->message[0] || strchr(first->message, '\n') || first->code != code)
        complain("code %d, message '%s'", (int)code, first->message);
    if (os_ingest_begin(ingest, 1, &ticket, &failure) != code || strcmp(failure.message, first->message))
        complain("begin forgot the failure '%s': '%s'", first->message, failure.message);
    if (os_ingest_finish(ingest, &failure) != code || strcmp(failure.message, first->message))
        complain("finish forgot the failure '%s'", first->message);
    for (ticket = 0; ticket < 30; ticket++)
        if (os_ingest_parts(ingest, ticket, &size, &parts, &parts_size, &failure) == OS_OK)
            complain("content %u is given out after the failure '%s'", ticket, first->message);
}

/* Whether it ended well. */
static bool run(const char *path, unsigned threads) {
    const os_known known = {context, fault_lookup};
    os_failure failure = {0};
    os_ingest *ingest = NULL;
    int before = entries("/proc/self/fd"), directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const os_ingest_options options = {&ENV, &known, directory, 3, threads, OS_FRAME_MAX, true};
    atomic_store(&world.calls, 0);
    atomic_store(&world.injected, 0);
    os_code code = os_ingest_make(&options, &ingest, &failure);
    if (code == OS_OK && world.at == 0)
        world.made = atomic_load(&world.memory);
    if (code == OS_OK)
        code = feed(ingest, &failure);
    if (code == OS_OK)
        code = os_ingest_finish(ingest, &failure);
    if (code == OS_OK)
        collect(ingest, directory);
    else if (ingest)
        check_failed(ingest, code, &failure);
    else if (!failure.message[0])
        complain("no message");
    os_ingest_free(ingest);
    close(directory);
    if (code == OS_OK && world.at &&
        (got.count != want.count || got.size != want.size || memcmp(got.packs, want.packs, got.size)))
        complain("it ended well, with other packs");
    if (entries(path) != 0)
        complain("%d files are left", entries(path));
    if (entries("/proc/self/fd") != before || atomic_load(&world.descriptors) != 0)
        complain("%d descriptors are left", atomic_load(&world.descriptors));
    if (atomic_load(&world.memory) != 0)
        complain("%d pieces of memory are left", atomic_load(&world.memory));
    if (atomic_load(&world.threads) != 0)
        complain("%d threads are left", atomic_load(&world.threads));
    return code == OS_OK;
}

/* The buffers that an ingest begins with are alike: of those, some. */
static int step(kind kind) {
    return kind == MEMORY && world.at > 6 && world.at < world.made - 40 ? 37 : 1;
}

static void enumerate(const char *path, kind kind, how how, bool forever, unsigned threads) {
    world.kind = kind;
    world.how = how;
    world.forever = forever;
    bool harmless = how == SHORT || how == INTERRUPTED;
    bool unsure = kind == MEMORY && threads > 1; /* a worker without memory that gets no work is no loss */
    int calls = 0;
    for (world.at = 1;; world.at += step(kind)) {
        calls++;
        bool well = run(path, threads);
        if (atomic_load(&world.injected) == 0) {
            if (!well)
                complain("it failed without a fault");
            break;
        }
        if (well != harmless && !unsure)
            complain(well ? "the fault was not seen" : "it failed");
    }
    printf("%s %s%s threads-%u %d\n", KIND_NAMES[kind], HOW_NAMES[how], forever ? "-forever" : "", threads, calls - 1);
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc < 2)
        return 2;
    uint64_t state = 88172645463325252u;
    for (size_t at = 0; at < FILE_SIZE; at++) { /* xorshift64 */
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise[at] = (uint8_t)(state >> 32);
    }
    noise_fd = memfd_create("noise", MFD_CLOEXEC);
    if (noise_fd < 0 || write(noise_fd, noise, FILE_SIZE) != FILE_SIZE)
        complain("cannot make a file");
    if (!run(argv[1], 2))
        complain("it failed without a fault");
    want = got;
    for (int forever = 0; forever < (argc == 3 ? 1 : 2); forever++) {
        for (kind kind = 0; kind < KINDS; kind++)
            enumerate(argv[1], kind, FAILS, forever, 2);
        enumerate(argv[1], MEMORY, FAILS, forever, 1);
        enumerate(argv[1], CLOSE, INTERRUPTED, forever, 2);
        enumerate(argv[1], WRITE, SHORT, forever, 2);
        enumerate(argv[1], WRITE, NOTHING, forever, 2);
        enumerate(argv[1], READ, SHORT, forever, 2);
        enumerate(argv[1], READ, NOTHING, forever, 2);
    }
    enumerate(argv[1], WRITE, INTERRUPTED, false, 2); /* for ever would be for ever */
    enumerate(argv[1], READ, INTERRUPTED, false, 2);
    return 0;
}
