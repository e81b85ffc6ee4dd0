/* store_cuts DIRECTORY SEED: a power cut at the 1st, 2nd, 3rd ... write, sync or unlink of a program that uses a store.
 *
 * A child makes the calls of the store and of LMDB through the functions below, which note for each write what stood
 * there before, until the file is synced. At the cut each write that was not synced is kept or undone, by the toss of a
 * coin; so are deletions, and files in a directory that was not synced. Then another process opens the store: it must
 * open, every chunk that a flush had said is durable must be there, nothing may have wrong bytes, the map may not be
 * ahead of the data (but one that had to be made again), and fsck must be able to make it clean.
 *
 * Prints the number of cuts. A write that itself is durable (LMDB's meta pages: O_DSYNC) is not undone. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os_hash.h"
#include "os_store.h"

enum { CHUNKS = 40, SEGMENT = 30000, FILES = 256, NOTES = 4096, CUT = 10, CUTS_MAX = 5000 };
enum { UNKNOWN, DURABLE }; /* what is known of a chunk */

static atomic_int *known; /* shared with the parent, CHUNKS of them */
static char path[256];
static unsigned seed;

/* ---------------------------------------------------------------- the disk */

typedef struct note {
    char name[64];
    off_t offset;
    size_t size, old_size; /* old_size: bytes of old; behind them there was nothing */
    uint8_t *old;
    enum { WRITE, UNLINK, MAKE } kind;
} note;

static pthread_mutex_t disk = PTHREAD_MUTEX_INITIALIZER;
static note notes[NOTES]; /* in order; guarded by disk, with what follows */
static int note_count, calls, cut_at;
static char names[FILES][64]; /* of open descriptors; empty: not of this store */
static bool durable[FILES];   /* O_DSYNC */
static bool armed;

static int plain_open(const char *name, int flags) {
    char full[400];
    snprintf(full, sizeof full, "%s/%s", path, name);
    return (int)syscall(SYS_openat, AT_FDCWD, full, flags | O_CLOEXEC, 0600);
}

static bool toss(void) {
    seed = seed * 1664525u + 1013904223u;
    return seed >> 31;
}

static void undo(const note *it) {
    char full[400], hidden[400];
    snprintf(full, sizeof full, "%s/%s", path, it->name);
    snprintf(hidden, sizeof hidden, "%s/../gone-%s", path, it->name);
    if (it->kind == MAKE) {
        unlink(full);
    } else if (it->kind == UNLINK) {
        rename(hidden, full);
    } else {
        int fd = plain_open(it->name, O_RDWR);
        if (fd < 0)
            return;
        uint8_t *nothing = calloc(1, it->size);
        memcpy(nothing, it->old, it->old_size);
        syscall(SYS_pwrite64, fd, nothing, it->size, it->offset);
        syscall(SYS_close, fd);
        free(nothing);
    }
}

/* disk is held, for good if this is the moment. */
static void count_call(void) {
    if (!armed || ++calls != cut_at)
        return;
    for (int at = note_count; at-- > 0;)
        if (toss())
            undo(&notes[at]);
    _exit(CUT);
}

static note *new_note(int kind, const char *name) {
    if (note_count == NOTES)
        abort();
    note *it = &notes[note_count++];
    memset(it, 0, sizeof *it);
    it->kind = kind;
    snprintf(it->name, sizeof it->name, "%s", name);
    return it;
}

static void forget_notes(const char *name, bool of_directory) {
    int kept = 0;
    for (int at = 0; at < note_count; at++) {
        bool gone =
            of_directory ? notes[at].kind != WRITE : notes[at].kind == WRITE && strcmp(notes[at].name, name) == 0;
        if (gone)
            free(notes[at].old);
        else
            notes[kept++] = notes[at];
    }
    note_count = kept;
}

static void note_write(int fd, size_t size, off_t offset) {
    if (fd < 0 || fd >= FILES || names[fd][0] == '\0' || durable[fd])
        return;
    note *it = new_note(WRITE, names[fd]);
    it->size = size;
    it->offset = offset;
    it->old = malloc(size + 1);
    int readable = plain_open(names[fd], O_RDONLY);
    ssize_t got = syscall(SYS_pread64, readable, it->old, size, offset);
    it->old_size = got > 0 ? (size_t)got : 0;
    syscall(SYS_close, readable);
}

static void note_open(int fd, const char *name, int flags, bool is_new) {
    const char *last = strrchr(name, '/') != NULL ? strrchr(name, '/') + 1 : name;
    if (fd < 0 || fd >= FILES)
        return;
    bool ours = strncmp(last, "seg-", 4) == 0 || strcmp(last, "data.mdb") == 0;
    snprintf(names[fd], sizeof names[fd], "%s", ours ? last : "");
    durable[fd] = (flags & O_DSYNC) != 0;
    if (ours && is_new)
        new_note(MAKE, last);
}

static int disk_openat(int directory, const char *name, int flags, int mode) {
    struct stat about;
    pthread_mutex_lock(&disk);
    bool is_new = (flags & O_CREAT) && fstatat(directory, name, &about, AT_SYMLINK_NOFOLLOW) < 0;
    int fd = (int)syscall(SYS_openat, directory, name, flags, mode);
    note_open(fd, name, flags, is_new);
    pthread_mutex_unlock(&disk);
    return fd;
}

static ssize_t disk_pwrite(int fd, const void *buffer, size_t size, off_t offset) {
    pthread_mutex_lock(&disk);
    count_call();
    note_write(fd, size, offset);
    ssize_t wrote = syscall(SYS_pwrite64, fd, buffer, size, offset);
    pthread_mutex_unlock(&disk);
    return wrote;
}

static int disk_sync(int fd) {
    struct stat about;
    pthread_mutex_lock(&disk);
    count_call();
    bool directory = fstat(fd, &about) == 0 && S_ISDIR(about.st_mode);
    forget_notes(fd < FILES ? names[fd] : "", directory);
    pthread_mutex_unlock(&disk);
    return 0; /* nothing here outlives this machine */
}

int open(const char *name, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    int mode = flags & O_CREAT ? va_arg(arguments, int) : 0;
    va_end(arguments);
    return disk_openat(AT_FDCWD, name, flags, mode);
}
ssize_t pwrite(int fd, const void *buffer, size_t size, off_t offset) {
    return disk_pwrite(fd, buffer, size, offset);
}
ssize_t write(int fd, const void *buffer, size_t size) {
    off_t offset = lseek(fd, 0, SEEK_CUR);
    if (offset < 0 || fd >= FILES || names[fd][0] == '\0')
        return syscall(SYS_write, fd, buffer, size);
    ssize_t wrote = disk_pwrite(fd, buffer, size, offset);
    if (wrote > 0)
        lseek(fd, offset + wrote, SEEK_SET);
    return wrote;
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    off_t offset = lseek(fd, 0, SEEK_CUR);
    size_t size = 0;
    for (int at = 0; at < count; at++)
        size += parts[at].iov_len;
    pthread_mutex_lock(&disk);
    count_call();
    note_write(fd, size, offset);
    ssize_t wrote = syscall(SYS_writev, fd, parts, count);
    pthread_mutex_unlock(&disk);
    return wrote;
}
int fdatasync(int fd) {
    return disk_sync(fd);
}

static int env_openat(void *context, int directory, const char *name, int flags, mode_t mode) {
    (void)context;
    return disk_openat(directory, name, flags, (int)mode);
}
static ssize_t env_pwrite(void *context, int fd, const void *buffer, size_t size, off_t offset) {
    (void)context;
    return disk_pwrite(fd, buffer, size, offset);
}
static int env_fdatasync(void *context, int fd) {
    (void)context;
    return disk_sync(fd);
}
static int env_unlinkat(void *context, int directory, const char *name, int flags) {
    char full[400], hidden[400];
    (void)context;
    (void)directory;
    (void)flags;
    pthread_mutex_lock(&disk);
    count_call();
    snprintf(full, sizeof full, "%s/%s", path, name);
    snprintf(hidden, sizeof hidden, "%s/../gone-%s", path, name);
    int result = rename(full, hidden);
    if (result == 0)
        new_note(UNLINK, name);
    pthread_mutex_unlock(&disk);
    return result;
}

/* ---------------------------------------------------------------- the program */

static uint8_t data[CHUNKS][8000], id[CHUNKS][OS_ID_SIZE];
static size_t size[CHUNKS];

static void make_chunks(void) {
    for (uint32_t at = 0; at < CHUNKS; at++) {
        uint32_t state = at * 2654435761u + 99;
        size[at] = 1000 + at * 7919 % 7000;
        for (size_t byte = 0; byte < size[at]; byte++) {
            state = state * 1664525u + 1013904223u;
            data[at][byte] = (uint8_t)(at % 2 ? state >> 24 : state >> 30);
        }
        os_blake3(data[at], size[at], id[at]);
    }
}

static void die(const char *words, int number) {
    fprintf(stderr, "cut %d: %s %d\n", cut_at, words, number);
    _exit(1);
}

static bool look(os_store *store, int at) {
    uint8_t buffer[8000];
    size_t length = 0;
    os_code code = os_store_get(store, id[at], OS_ALGORITHM_BLAKE3, buffer, sizeof buffer, &length, NULL);
    if (code == OS_OK && (length != size[at] || memcmp(buffer, data[at], length) != 0))
        die("wrong bytes in chunk", at);
    return code == OS_OK;
}

static void put_some(os_store *store, int first, int count) {
    for (int at = first; at < first + count; at++)
        os_store_put(store, id[at], OS_ALGORITHM_BLAKE3, data[at], size[at],
                     (at % 3 ? OS_STORE_ZSTD : 0) | (at % 5 == 0 ? OS_STORE_PINNED : 0), NULL);
    if (os_store_flush(store, NULL) == OS_OK)
        for (int at = first; at < first + count; at++)
            atomic_store(&known[at], DURABLE);
}

static void drop_first(os_store *store) {
    os_store_segment *list;
    size_t count;
    for (int at = 0; at < CHUNKS; at++)
        atomic_store(&known[at], UNKNOWN);
    if (os_store_segments(store, &list, &count, NULL) == OS_OK && count > 0)
        os_store_drop(store, list[0].number, NULL);
    free(list);
    for (int at = 0; at < CHUNKS; at++)
        if (look(store, at))
            atomic_store(&known[at], DURABLE);
}

static _Noreturn void work(void) {
    os_env env = os_env_system;
    os_store *store;
    os_store_report report;
    env.openat = env_openat;
    env.pwrite = env_pwrite;
    env.fdatasync = env_fdatasync;
    env.unlinkat = env_unlinkat;
    os_store_options options = {.env = &env, .segment_size = SEGMENT};
    armed = true;
    for (int round = 0; round < 2; round++) {
        if (os_store_open(path, &options, &store, NULL) != OS_OK)
            die("cannot open in round", round);
        put_some(store, 20 * round, 3);
        put_some(store, 20 * round + 3, 8);
        drop_first(store);
        put_some(store, 20 * round, 6);
        put_some(store, 20 * round + 11, 9);
        os_store_check(store, true, &report, NULL);
        os_store_close(store, NULL);
        os_store_free(store);
    }
    _exit(0);
}

static _Noreturn void verify(void) {
    os_store_options options = {.segment_size = SEGMENT};
    os_failure failure = {0};
    os_store *store;
    os_store_report report;
    os_store_statistics about;
    for (int time = 0; time < 2; time++) {
        if (os_store_open(path, &options, &store, &failure) != OS_OK)
            die(failure.message, time);
        if (os_store_statistics_of(store, &about, &failure) != OS_OK ||
            os_store_check(store, false, &report, &failure) != OS_OK)
            die(failure.message, 0);
        if (!about.rebuilt && report.damaged + report.damaged_rows > 0) /* one made again may name what was torn */
            die("the map was ahead of the data in round", time);
        for (int at = 0; at < CHUNKS; at++)
            if (!look(store, at) && atomic_load(&known[at]) == DURABLE)
                die("gone although it was durable: chunk", at);
        if (os_store_check(store, true, &report, &failure) != OS_OK ||
            os_store_check(store, false, &report, &failure) != OS_OK)
            die(failure.message, 0);
        if (report.damaged + report.damaged_rows + report.damaged_headers > 0)
            die("not clean after a repair", time);
        os_store_close(store, NULL);
        os_store_free(store);
    }
    _exit(0);
}

static void clean(const char *where) {
    char name[700];
    DIR *directory = opendir(where);
    for (const struct dirent *entry; directory != NULL && (entry = readdir(directory)) != NULL;) {
        snprintf(name, sizeof name, "%s/%s", where, entry->d_name);
        if (entry->d_name[0] != '.' && unlink(name) < 0)
            rmdir(name);
    }
    closedir(directory);
}

static int run(void (*what)(void)) {
    int status;
    pid_t child = fork();
    if (child == 0)
        what();
    return child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status) ? -1 : WEXITSTATUS(status);
}

int main(int count, char **words) {
    if (count != 3)
        return 2;
    unsigned first = (unsigned)strtoul(words[2], NULL, 10);
    make_chunks();
    known = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    snprintf(path, sizeof path, "%s/store", words[1]);
    for (cut_at = 1; cut_at < CUTS_MAX; cut_at++) {
        seed = first + (unsigned)cut_at * 7919;
        mkdir(path, 0700);
        memset((void *)known, 0, CHUNKS * sizeof *known);
        int done = run(work);
        if (done != CUT && done != 0)
            return 1;
        if (run(verify) != 0)
            return 1;
        clean(path);
        clean(words[1]);
        if (done == 0) {
            printf("%d\n", cut_at - 1);
            return 0;
        }
    }
    return 2;
}
