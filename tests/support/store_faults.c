/* store_faults DIRECTORY SCENARIO CALL ERROR once|always: runs something that writes to a store again and again, and
 * makes the 1st, 2nd, 3rd ... call of one kind fail, until a run makes no such call any more. Each run is a process of
 * its own on a store of its own. After each the store is opened again, with nothing failing, and looked at:
 *
 * - it opens, and fsck finds nothing wrong
 * - no chunk has wrong bytes
 * - what was there before is there, but for what the scenario or the fault may cost (stated at loss_allowed)
 * - if flush said that all went well, what was put is there
 * - no file was synced again after a sync of it had failed
 *
 * Prints how many calls were made to fail. The store's own calls fail by os_env, those of LMDB and of libraries because
 * the functions that they call are defined here. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os_hash.h"
#include "os_store.h"

enum { OLD = 8, NEW = 6, CHUNKS = OLD + NEW + 1, SEGMENT = 20000, NO_FAULT = 10, RUNS_MAX = 5000 };

static const char *const CALLS[] = {"openat",         "pread",     "pwrite",    "fdatasync",  "unlinkat",
                                    "allocate",       "free",      "lmdb-open", "lmdb-pread", "lmdb-write",
                                    "lmdb-fdatasync", "lmdb-mmap", "malloc",    "thread",     NULL};
enum {
    OPENAT,
    PREAD,
    PWRITE,
    FDATASYNC,
    UNLINKAT,
    ALLOCATE,
    FREE,
    LMDB_OPEN,
    LMDB_PREAD,
    LMDB_WRITE,
    LMDB_FDATASYNC,
    LMDB_MMAP,
    MALLOC,
    THREAD
};

static struct {
    int call, error, nth; /* error 0: a short write */
    bool always;
    atomic_bool armed;
    atomic_int count, injected;
} fault;

static atomic_bool sync_failed[1024]; /* by descriptor */

static bool fails(int call) {
    if (!atomic_load(&fault.armed) || fault.call != call)
        return false;
    int number = atomic_fetch_add(&fault.count, 1) + 1;
    if (number != fault.nth && !(fault.always && number > fault.nth))
        return false;
    atomic_fetch_add(&fault.injected, 1);
    errno = fault.error;
    return true;
}

static _Noreturn void die(const char *format, ...) {
    va_list arguments;
    atomic_store(&fault.armed, false);
    va_start(arguments, format);
    fprintf(stderr, "call %d: ", fault.nth);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    _exit(1);
}

/* ---------------------------------------------------------------- the store's own calls */

static int env_openat(void *context, int directory, const char *path, int flags, mode_t mode) {
    (void)context;
    if (fails(OPENAT))
        return -1;
    int fd = (int)syscall(SYS_openat, directory, path, flags, mode);
    if (fd >= 0 && fd < 1024)
        atomic_store(&sync_failed[fd], false);
    return fd;
}

static int env_close(void *context, int fd) {
    (void)context;
    return (int)syscall(SYS_close, fd);
}

static ssize_t env_pread(void *context, int fd, void *buffer, size_t size, off_t offset) {
    (void)context;
    return fails(PREAD) ? -1 : syscall(SYS_pread64, fd, buffer, size, offset);
}

static ssize_t env_pwrite(void *context, int fd, const void *buffer, size_t size, off_t offset) {
    (void)context;
    if (fails(PWRITE)) {
        if (fault.error != 0)
            return -1;
        size = size / 2 > 0 ? size / 2 : 1;
    }
    return syscall(SYS_pwrite64, fd, buffer, size, offset);
}

static int env_fdatasync(void *context, int fd) {
    (void)context;
    if (atomic_load(&sync_failed[fd]))
        die("descriptor %d is synced again after a sync of it failed", fd);
    if (!fails(FDATASYNC))
        return (int)syscall(SYS_fdatasync, fd);
    struct stat about;
    if (fstat(fd, &about) == 0 &&
        S_ISREG(about.st_mode)) /* a directory's failure concerns the files that are new in it */
        atomic_store(&sync_failed[fd], true);
    errno = fault.error;
    return -1;
}

static int env_unlinkat(void *context, int directory, const char *path, int flags) {
    (void)context;
    return fails(UNLINKAT) ? -1 : (int)syscall(SYS_unlinkat, directory, path, flags);
}

static int env_free_bytes(void *context, int fd, uint64_t *out) {
    (void)context;
    (void)fd;
    *out = UINT64_C(1) << 40;
    return fails(FREE) ? -1 : 0;
}

static void *env_allocate(void *context, size_t size) {
    (void)context;
    return fails(ALLOCATE) ? NULL : os_env_system.allocate(NULL, size);
}

/* ---------------------------------------------------------------- what LMDB and the libraries call */

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *old, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);

void *malloc(size_t size) {
    return fails(MALLOC) ? NULL : __libc_malloc(size);
}
void *calloc(size_t count, size_t size) {
    return fails(MALLOC) ? NULL : __libc_calloc(count, size);
}
void *realloc(void *old, size_t size) {
    return fails(MALLOC) ? NULL : __libc_realloc(old, size);
}
int posix_memalign(void **out, size_t alignment, size_t size) {
    if (fails(MALLOC))
        return ENOMEM;
    *out = __libc_memalign(alignment, size);
    return *out == NULL ? ENOMEM : 0;
}
int open(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    int mode = flags & O_CREAT ? va_arg(arguments, int) : 0;
    va_end(arguments);
    return fails(LMDB_OPEN) ? -1 : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
ssize_t pread(int fd, void *buffer, size_t size, off_t offset) {
    return fails(LMDB_PREAD) ? -1 : syscall(SYS_pread64, fd, buffer, size, offset);
}
ssize_t pwrite(int fd, const void *buffer, size_t size, off_t offset) {
    return fails(LMDB_WRITE) ? -1 : syscall(SYS_pwrite64, fd, buffer, size, offset);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    return fails(LMDB_WRITE) ? -1 : syscall(SYS_writev, fd, parts, count);
}
int fdatasync(int fd) {
    return fails(LMDB_FDATASYNC) ? -1 : (int)syscall(SYS_fdatasync, fd);
}
void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    return fails(LMDB_MMAP) ? MAP_FAILED : (void *)syscall(SYS_mmap, at, size, protection, flags, fd, offset);
}
extern int __real_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    return fails(THREAD) ? fault.error : __real_pthread_create(thread, attributes, run, argument);
}

/* ---------------------------------------------------------------- chunks */

static struct {
    uint8_t data[12000], id[OS_ID_SIZE];
    size_t size;
} chunk[CHUNKS];

static void make_chunks(void) {
    for (uint32_t at = 0; at < CHUNKS; at++) {
        uint32_t state = at * 2654435761u + 12345;
        chunk[at].size = 3000 + at * 7919 % 9000;
        for (size_t byte = 0; byte < chunk[at].size; byte++) {
            state = state * 1664525u + 1013904223u;
            chunk[at].data[byte] = (uint8_t)(at % 2 ? state >> 24 : state >> 30); /* every other one compresses */
        }
        os_blake3(chunk[at].data, chunk[at].size, chunk[at].id);
    }
}

static os_env env;
static char path[512];
static os_store *store;
static uint64_t quota;

static os_code open_store(os_failure *failure) {
    os_store_options options = {.env = &env, .segment_size = SEGMENT, .quota = quota, .floor = quota};
    return os_store_open(path, &options, &store, failure);
}

static os_code put(int at, os_failure *failure) {
    return os_store_put(store, chunk[at].id, OS_ALGORITHM_BLAKE3, chunk[at].data, chunk[at].size,
                        at % 3    ? OS_STORE_ZSTD
                        : at == 3 ? OS_STORE_PINNED
                                  : 0,
                        failure);
}

/* 1 there, 0 missing. */
static int look(int at) {
    uint8_t buffer[12000];
    size_t length = 0;
    os_failure failure = {0};
    os_code code = os_store_get(store, chunk[at].id, OS_ALGORITHM_BLAKE3, buffer, sizeof buffer, &length, &failure);
    if (code == OS_OK && (length != chunk[at].size || memcmp(buffer, chunk[at].data, length) != 0))
        die("chunk %d has wrong bytes", at);
    if (code != OS_OK && code != OS_MISSING && !atomic_load(&fault.armed))
        die("chunk %d: %s", at, failure.message);
    return code == OS_OK;
}

static void must(os_code code, const os_failure *failure, const char *what) {
    if (code != OS_OK)
        die("%s: %s", what, failure->message);
}

static void fill(void) {
    os_failure failure = {0};
    must(open_store(&failure), &failure, "open before");
    for (int at = 0; at < OLD; at++)
        must(put(at, &failure), &failure, "put before");
    must(os_store_flush(store, &failure), &failure, "flush before");
    must(os_store_close(store, &failure), &failure, "close before");
    os_store_free(store);
    store = NULL;
}

/* A byte of the first segment: of its header (offset 3), or in the content of its first chunks. */
static void damage(off_t offset) {
    char name[600], byte;
    snprintf(name, sizeof name, "%s/seg-00000001", path);
    int fd = open(name, O_RDWR);
    if (fd < 0 || pread(fd, &byte, 1, offset) != 1)
        die("damage: %s", strerror(errno));
    byte ^= 1;
    if (pwrite(fd, &byte, 1, offset) != 1)
        die("damage: %s", strerror(errno));
    close(fd);
}

/* ---------------------------------------------------------------- scenarios: armed inside act, and only there */

static bool flushed; /* all of NEW was put, and a flush said yes */

static void put_new(void) {
    bool good = true;
    for (int at = OLD; at < OLD + NEW; at++)
        good &= put(at, NULL) == OS_OK;
    good &= os_store_flush(store, NULL) == OS_OK;
    flushed = good;
}

static void act_fresh(void) {
    if (open_store(NULL) == OS_OK)
        put_new();
}
static void act_put(void) {
    put_new();
}
static void act_reopen(void) {
    (void)open_store(NULL);
}
static void act_drop(void) {
    (void)os_store_drop(store, 1, NULL);
}
static void act_heal(void) {
    (void)look(0);
    put(0, NULL);
    (void)os_store_flush(store, NULL);
}
static void act_check(void) {
    os_store_report report;
    (void)os_store_check(store, true, &report, NULL);
}
static void act_close(void) {
    bool good = true;
    for (int at = OLD; at < OLD + NEW; at++)
        good &= put(at, NULL) == OS_OK;
    flushed = os_store_close(store, NULL) == OS_OK && good;
}
static void act_read(void) {
    for (int at = 0; at < OLD; at++)
        (void)look(at);
}

static const struct {
    const char *name;
    bool filled, opened, damaged, unmapped, bounded; /* what is done before */
    void (*act)(void);
} SCENARIOS[] = {
    {"fresh", false, false, false, false, false, act_fresh},  {"put", true, true, false, false, false, act_put},
    {"evict", true, true, false, false, true, act_put},       {"reopen", true, false, false, false, false, act_reopen},
    {"rebuild", true, false, false, true, false, act_reopen}, {"drop", true, true, false, false, false, act_drop},
    {"heal", true, true, true, false, false, act_heal},       {"check", true, true, true, false, false, act_check},
    {"close", true, true, false, false, false, act_close},    {"read", true, true, false, false, false, act_read},
};

/* What may be gone afterwards although it was there: what the scenario takes away, and the segments that a failed sync,
 * a failed read or a file that cannot be opened have cost. */
static bool loss_allowed(size_t scenario) {
    const char *name = SCENARIOS[scenario].name;
    return SCENARIOS[scenario].bounded || SCENARIOS[scenario].damaged || strcmp(name, "drop") == 0 ||
           fault.call == FDATASYNC || fault.call == PREAD || (fault.call == OPENAT && fault.error != EMFILE);
}

static void clean(void) {
    char name[900];
    DIR *directory = opendir(path);
    for (const struct dirent *entry; directory != NULL && (entry = readdir(directory)) != NULL;) {
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        unlink(name);
    }
    if (directory != NULL)
        closedir(directory);
    rmdir(path);
}

static void verify(size_t scenario) {
    os_failure failure = {0};
    os_store_report report;
    quota = 0;
    must(open_store(&failure), &failure, "open after");
    for (int at = 0; at < OLD && SCENARIOS[scenario].filled; at++)
        if (!look(at) && !loss_allowed(scenario))
            die("chunk %d was there before and is gone", at);
    for (int at = OLD; at < OLD + NEW; at++)
        if (!look(at) && flushed && !SCENARIOS[scenario].bounded)
            die("chunk %d was flushed and is gone", at);
    must(os_store_flush(store, &failure), &failure, "flush after"); /* what was found damaged is forgotten */
    must(os_store_check(store, false, &report, &failure), &failure, "check after");
    if (report.damaged != 0 || report.damaged_rows != 0)
        die("check finds %d damaged chunks, %d rows", (int)report.damaged, (int)report.damaged_rows);
    for (int at = 0; at < CHUNKS; at++)
        must(put(at, &failure), &failure, "put after");
    must(os_store_flush(store, &failure), &failure, "last flush");
    for (int at = 0; at < CHUNKS; at++)
        if (!look(at))
            die("chunk %d cannot be put again", at);
    must(os_store_close(store, &failure), &failure, "last close");
    os_store_free(store);
}

/* A disk that was full is full no more: the same open store takes chunks again, unless its map had to be given up. */
static void check_works(void) {
    os_failure failure = {0};
    os_store_statistics about;
    must(os_store_statistics_of(store, &about, &failure), &failure, "statistics");
    if (about.broken)
        return;
    (void)os_store_flush(store, NULL); /* takes what went wrong before */
    must(put(CHUNKS - 1, &failure), &failure, "put with space again");
    must(os_store_flush(store, &failure), &failure, "flush with space again");
    if (!look(CHUNKS - 1))
        die("the store does not take chunks after it was full");
}

static _Noreturn void run(size_t scenario) {
    os_failure failure = {0};
    if (SCENARIOS[scenario].filled)
        fill();
    if (SCENARIOS[scenario].unmapped) {
        char name[600];
        snprintf(name, sizeof name, "%s/data.mdb", path);
        unlink(name);
    }
    quota = SCENARIOS[scenario].bounded ? 65000 : 0;
    if (SCENARIOS[scenario].opened)
        must(open_store(&failure), &failure, "open for the scenario");
    if (SCENARIOS[scenario].damaged) {
        damage(3);
        damage(32 + 80 + 100);
    }
    atomic_store(&fault.armed, true);
    SCENARIOS[scenario].act();
    atomic_store(&fault.armed, false);
    if (store != NULL && strcmp(SCENARIOS[scenario].name, "close") != 0 && fault.error == ENOSPC)
        check_works();
    if (store != NULL)
        (void)os_store_close(store, NULL);
    os_store_free(store);
    store = NULL;
    int injected = atomic_load(&fault.injected);
    verify(scenario);
    clean();
    _exit(injected > 0 ? 0 : NO_FAULT);
}

static int number_of(const char *const *names, const char *name) {
    for (int at = 0; names[at] != NULL; at++)
        if (strcmp(names[at], name) == 0)
            return at;
    fprintf(stderr, "no such call: %s\n", name);
    exit(2);
}

int main(int count, char **words) {
    if (count != 6)
        return 2;
    size_t scenario = 0;
    while (strcmp(SCENARIOS[scenario].name, words[2]) != 0)
        if (++scenario == sizeof SCENARIOS / sizeof *SCENARIOS)
            return 2;
    fault.call = number_of(CALLS, words[3]);
    fault.error = strcmp(words[4], "EIO") == 0      ? EIO
                  : strcmp(words[4], "ENOSPC") == 0 ? ENOSPC
                  : strcmp(words[4], "EMFILE") == 0 ? EMFILE
                  : strcmp(words[4], "ENOMEM") == 0 ? ENOMEM
                                                    : 0;
    fault.always = strcmp(words[5], "always") == 0;
    env = os_env_system;
    env.openat = env_openat;
    env.close = env_close;
    env.pread = env_pread;
    env.pwrite = env_pwrite;
    env.fdatasync = env_fdatasync;
    env.unlinkat = env_unlinkat;
    env.free_bytes = env_free_bytes;
    env.allocate = env_allocate;
    make_chunks();
    for (fault.nth = 1; fault.nth < RUNS_MAX; fault.nth++) {
        snprintf(path, sizeof path, "%s/store-%d", words[1], fault.nth);
        if (mkdir(path, 0700) < 0)
            return 2;
        int status;
        pid_t child = fork();
        if (child == 0)
            run(scenario);
        if (child < 0 || waitpid(child, &status, 0) != child)
            return 2;
        if (WIFSIGNALED(status))
            fprintf(stderr, "call %d: killed by signal %d\n", fault.nth, WTERMSIG(status));
        if (WIFEXITED(status) && WEXITSTATUS(status) == NO_FAULT) {
            printf("%d\n", fault.nth - 1);
            return 0;
        }
        if (status != 0)
            return 1;
    }
    return 2;
}
