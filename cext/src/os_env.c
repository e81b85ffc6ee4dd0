#define _GNU_SOURCE
#include "os_env.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define PATH_BELOW 320 /* a descriptor in /proc, and a name of 255 bytes */

static int system_openat(void *context, int directory, const char *path, int flags, mode_t mode) {
    (void)context;
    return openat(directory, path, flags, mode);
}

static int system_close(void *context, int fd) {
    (void)context;
    return close(fd);
}

static ssize_t system_read(void *context, int fd, void *buffer, size_t size) {
    (void)context;
    return read(fd, buffer, size);
}

static ssize_t system_write(void *context, int fd, const void *buffer, size_t size) {
    (void)context;
    return write(fd, buffer, size);
}

static ssize_t system_writev(void *context, int fd, const struct iovec *parts, int count) {
    (void)context;
    return writev(fd, parts, count);
}

static ssize_t system_pread(void *context, int fd, void *buffer, size_t size, off_t offset) {
    (void)context;
    return pread(fd, buffer, size, offset);
}

static ssize_t system_pwrite(void *context, int fd, const void *buffer, size_t size, off_t offset) {
    (void)context;
    return pwrite(fd, buffer, size, offset);
}

static off_t system_seek_data(void *context, int fd, off_t offset) {
    (void)context;
    return lseek(fd, offset, SEEK_DATA);
}

static int system_fdatasync(void *context, int fd) {
    (void)context;
    return fdatasync(fd);
}

static void system_start_writeback(void *context, int fd) {
    (void)context;
    sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE);
}

static int system_renameat(void *context, int from, const char *from_path, int to, const char *to_path) {
    (void)context;
    return renameat(from, from_path, to, to_path);
}

static int system_unlinkat(void *context, int directory, const char *path, int flags) {
    (void)context;
    return unlinkat(directory, path, flags);
}

static void system_read_ahead(void *context, int fd, off_t offset, size_t size) {
    (void)context;
    posix_fadvise(fd, offset, (off_t)size, POSIX_FADV_WILLNEED);
}

static int system_length(void *context, int fd, uint64_t *out) {
    struct stat found;
    (void)context;
    if (fstat(fd, &found) < 0)
        return -1;
    *out = (uint64_t)found.st_size;
    return 0;
}

static int system_free_bytes(void *context, int fd, uint64_t *out) {
    struct statfs about;
    (void)context;
    if (fstatfs(fd, &about) < 0)
        return -1;
    *out = (uint64_t)about.f_bavail * (uint64_t)about.f_bsize;
    return 0;
}

static int system_socket(void *context, int family, int type, int protocol) {
    (void)context;
    return socket(family, type, protocol);
}

static uint64_t system_monotonic_ns(void *context) {
    struct timespec now;
    (void)context;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint32_t system_random(void *context) {
    uint32_t value = 0;
    (void)context;
    if (getrandom(&value, sizeof value, GRND_NONBLOCK) != (ssize_t)sizeof value)
        return (uint32_t)system_monotonic_ns(NULL);
    return value;
}

static int system_stat(void *context, int fd, const char *name, struct stat *out) {
    (void)context;
    return fstatat(fd, name, out, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH);
}

static ssize_t system_list_directory(void *context, int fd, void *buffer, size_t size) {
    (void)context;
    return getdents64(fd, buffer, size);
}

static ssize_t system_read_link(void *context, int fd, const char *name, char *buffer, size_t size) {
    (void)context;
    return readlinkat(fd, name, buffer, size);
}

/* To what cannot be opened: resolves nothing but the descriptor. */
static void path_below(int fd, const char *name, char path[PATH_BELOW]) {
    snprintf(path, PATH_BELOW, "/proc/self/fd/%d/%s", fd, name);
}

static ssize_t system_list_xattrs(void *context, int fd, const char *name, char *buffer, size_t size) {
    char path[PATH_BELOW];
    (void)context;
    if (name[0] == '\0')
        return flistxattr(fd, buffer, size);
    path_below(fd, name, path);
    return llistxattr(path, buffer, size);
}

static ssize_t system_get_xattr(void *context, int fd, const char *name, const char *key, void *buffer, size_t size) {
    char path[PATH_BELOW];
    (void)context;
    if (name[0] == '\0')
        return fgetxattr(fd, key, buffer, size);
    path_below(fd, name, path);
    return lgetxattr(path, key, buffer, size);
}

static void *system_allocate(void *context, size_t size) {
    (void)context;
    return malloc(size);
}

static void *system_reallocate(void *context, void *memory, size_t size) {
    (void)context;
    return realloc(memory, size);
}

static void system_release(void *context, void *memory) {
    (void)context;
    free(memory);
}

static int system_start_thread(void *context, pthread_t *thread, void *(*main)(void *), void *argument) {
    (void)context;
    return pthread_create(thread, NULL, main, argument);
}

const os_env os_env_system = {
    .openat = system_openat,
    .close = system_close,
    .read = system_read,
    .write = system_write,
    .writev = system_writev,
    .pread = system_pread,
    .pwrite = system_pwrite,
    .seek_data = system_seek_data,
    .fdatasync = system_fdatasync,
    .start_writeback = system_start_writeback,
    .renameat = system_renameat,
    .unlinkat = system_unlinkat,
    .read_ahead = system_read_ahead,
    .length = system_length,
    .free_bytes = system_free_bytes,
    .socket = system_socket,
    .monotonic_ns = system_monotonic_ns,
    .random = system_random,
    .stat = system_stat,
    .list_directory = system_list_directory,
    .read_link = system_read_link,
    .list_xattrs = system_list_xattrs,
    .get_xattr = system_get_xattr,
    .allocate = system_allocate,
    .reallocate = system_reallocate,
    .release = system_release,
    .start_thread = system_start_thread,
};
