/* walk_faults PACKS TREE: walks TREE with every call of its environment failing in turn, once. Each run must end with
 * what was injected, or well where the failure is none of ours, and leave no memory, descriptor or pack behind. Prints
 * `kind calls` for each kind. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "os_limits.h"
#include "os_walk.h"

typedef enum kind { OPEN, READ, STAT, LIST, LINK, XATTRS, XATTR, DATA, MEMORY, SIZE, KINDS } kind;
static const char *const NAMES[KINDS] = {"openat", "pread", "stat", "list",   "link",
                                         "xattrs", "xattr", "seek", "memory", "size"};

static struct {
    kind kind;
    int at, calls, injected;
    atomic_int memory, descriptors;
} world;

/* The walk runs, and this is its thread: what workers allocate is the ingest's, and comes at any time. */
static _Thread_local bool armed;

static bool hit(kind kind) {
    if (!armed || kind != world.kind || ++world.calls != world.at)
        return false;
    world.injected++;
    return true;
}

static int fault_openat(void *self, int directory, const char *path, int flags, mode_t mode) {
    (void)self;
    if (!(flags & O_CREAT) && hit(OPEN)) {
        errno = EMFILE;
        return -1;
    }
    int fd = openat(directory, path, flags, mode);
    world.descriptors += fd >= 0;
    return fd;
}

static int fault_close(void *self, int fd) {
    (void)self;
    world.descriptors--;
    return close(fd);
}

static ssize_t fault_write(void *self, int fd, const void *data, size_t size) {
    (void)self;
    return write(fd, data, size);
}

static int fault_fdatasync(void *self, int fd) {
    (void)self, (void)fd;
    return 0;
}

static void fault_start_writeback(void *self, int fd) {
    (void)self, (void)fd;
}

static int fault_unlinkat(void *self, int directory, const char *path, int flags) {
    (void)self;
    return unlinkat(directory, path, flags);
}

static ssize_t fault_pread(void *self, int fd, void *data, size_t size, off_t offset) {
    (void)self;
    if (!hit(READ))
        return pread(fd, data, size, offset);
    errno = EIO;
    return -1;
}

static off_t fault_seek_data(void *self, int fd, off_t offset) {
    (void)self;
    if (!hit(DATA))
        return lseek(fd, offset, SEEK_DATA);
    errno = EINVAL;
    return -1;
}

static int fault_stat(void *self, int fd, const char *name, struct stat *out) {
    if (hit(STAT)) {
        errno = EIO;
        return -1;
    }
    int result = os_env_system.stat(self, fd, name, out);
    if (result == 0 && S_ISREG(out->st_mode) && hit(SIZE))
        out->st_size++; /* the file grew between two looks, or shrank */
    return result;
}

static ssize_t fault_list_directory(void *self, int fd, void *buffer, size_t size) {
    if (!hit(LIST))
        return os_env_system.list_directory(self, fd, buffer, size);
    errno = EIO;
    return -1;
}

static ssize_t fault_read_link(void *self, int fd, const char *name, char *buffer, size_t size) {
    if (!hit(LINK))
        return os_env_system.read_link(self, fd, name, buffer, size);
    errno = EINVAL;
    return -1;
}

static ssize_t fault_list_xattrs(void *self, int fd, const char *name, char *buffer, size_t size) {
    if (!hit(XATTRS))
        return os_env_system.list_xattrs(self, fd, name, buffer, size);
    errno = EIO;
    return -1;
}

static ssize_t fault_get_xattr(void *self, int fd, const char *name, const char *key, void *buffer, size_t size) {
    if (!hit(XATTR))
        return os_env_system.get_xattr(self, fd, name, key, buffer, size);
    errno = ENODATA;
    return -1;
}

static void *fault_allocate(void *self, size_t size) {
    (void)self;
    if (hit(MEMORY))
        return NULL;
    world.memory++;
    return malloc(size);
}

static void *fault_reallocate(void *self, void *memory, size_t size) {
    (void)self;
    if (hit(MEMORY))
        return NULL;
    world.memory += memory == NULL;
    return realloc(memory, size);
}

static void fault_release(void *self, void *memory) {
    (void)self;
    world.memory -= memory != NULL;
    free(memory);
}

static int fault_start_thread(void *self, pthread_t *thread, void *(*body)(void *), void *argument) {
    (void)self;
    return pthread_create(thread, NULL, body, argument);
}

static const os_env ENV = {.openat = fault_openat,
                           .close = fault_close,
                           .write = fault_write,
                           .pread = fault_pread,
                           .seek_data = fault_seek_data,
                           .fdatasync = fault_fdatasync,
                           .start_writeback = fault_start_writeback,
                           .unlinkat = fault_unlinkat,
                           .stat = fault_stat,
                           .list_directory = fault_list_directory,
                           .read_link = fault_read_link,
                           .list_xattrs = fault_list_xattrs,
                           .get_xattr = fault_get_xattr,
                           .allocate = fault_allocate,
                           .reallocate = fault_reallocate,
                           .release = fault_release,
                           .start_thread = fault_start_thread};

static os_code walk_once(int packs, int tree, os_failure *failure) {
    os_ingest *ingest = NULL;
    os_walk *walk = NULL;
    bool done = false;
    const uint8_t *index;
    size_t size;
    const os_ingest_options options = {&ENV, NULL, packs, 3, 1, OS_PACK_MAX, false};
    if (os_ingest_make(&options, &ingest, failure) != OS_OK)
        exit(2);
    armed = true;
    os_code code = os_walk_make(&ENV, ingest, tree, &walk, failure);
    while (code == OS_OK && !done)
        code = os_walk_step(walk, &done, failure);
    if (code == OS_OK)
        code = os_walk_encode(walk, &index, &size, failure);
    armed = false;
    os_walk_free(walk);
    os_ingest_free(ingest);
    return code;
}

static void complain(const char *what, const os_failure *failure) {
    fprintf(stderr, "%s at %d: %s (%s)\n", NAMES[world.kind], world.at, what, failure->message);
    exit(1);
}

static void check(os_code code, const os_failure *failure) {
    const os_code want[KINDS] = {
        [OPEN] = OS_SYSTEM,   [READ] = OS_SYSTEM,  [STAT] = OS_SYSTEM, [LIST] = OS_SYSTEM,   [LINK] = OS_SYSTEM,
        [XATTRS] = OS_SYSTEM, [XATTR] = OS_SYSTEM, [DATA] = OS_OK,     [MEMORY] = OS_MEMORY, [SIZE] = OS_CORRUPT};
    /* a size that is looked at only for what a link already has says nothing about the content */
    if (world.injected && code != want[world.kind] && !(world.kind == SIZE && code == OS_OK))
        complain("another end than expected", failure);
    if (!world.injected && code != OS_OK)
        complain("failed by itself", failure);
    if (world.memory != 0 || world.descriptors != 0)
        complain("memory or descriptors are left", failure);
}

int main(int count, char **words) {
    if (count != 3)
        return 2;
    int packs = open(words[1], O_RDONLY | O_DIRECTORY), tree = open(words[2], O_RDONLY | O_DIRECTORY);
    for (world.kind = 0; world.kind < KINDS; world.kind++) {
        int points = 0, refused = 0;
        for (world.at = 1;; world.at++) {
            os_failure failure = {0};
            world.calls = world.injected = 0;
            lseek(tree, 0, SEEK_SET); /* its descriptor is the caller's, and has been listed */
            os_code code = walk_once(packs, tree, &failure);
            check(code, &failure);
            if (!world.injected)
                break;
            points++;
            refused += code != OS_OK;
        }
        printf("%s %d %d\n", NAMES[world.kind], points, refused);
    }
    return 0;
}
