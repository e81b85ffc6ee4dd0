/* The one table through which the engines (ingest, store, object server, fetch) reach time, disk, memory and
 * the network. Tests put their own functions here, so that any call can fail, be delayed or be recorded.
 * Kernels (gear, hash, erofs, tables) call nothing of the kind: they compute on buffers. */
#ifndef OS_ENV_H
#define OS_ENV_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

/* Any thread may call any of them. */
typedef struct os_env {
    void *context; /* borrowed, handed to every function */
    int (*openat)(void *context, int directory, const char *path, int flags, mode_t mode);
    int (*close)(void *context, int fd);
    ssize_t (*read)(void *context, int fd, void *buffer, size_t size);
    ssize_t (*write)(void *context, int fd, const void *buffer, size_t size);
    ssize_t (*writev)(void *context, int fd, const struct iovec *parts, int count);
    ssize_t (*pread)(void *context, int fd, void *buffer, size_t size, off_t offset);
    ssize_t (*pwrite)(void *context, int fd, const void *buffer, size_t size, off_t offset);
    off_t (*seek_data)(void *context, int fd, off_t offset); /* lseek, SEEK_DATA */
    int (*fdatasync)(void *context, int fd);
    void (*start_writeback)(void *context, int fd); /* of what is dirty; waits for nothing, promises nothing */
    int (*renameat)(void *context, int from, const char *from_path, int to, const char *to_path);
    int (*unlinkat)(void *context, int directory, const char *path, int flags);
    void (*read_ahead)(void *context, int fd, off_t offset, size_t size); /* a hint, may do nothing */
    int (*length)(void *context, int fd, uint64_t *out);                  /* of a file */
    int (*free_bytes)(void *context, int fd, uint64_t *out); /* of fd's file system, for the unprivileged */
    int (*socket)(void *context, int family, int type, int protocol);
    uint64_t (*monotonic_ns)(void *context);
    uint32_t (*random)(void *context); /* for jitter, not for secrets */
    /* A directory tree. name "": fd itself. A name is one component; of a symlink it is the link. */
    int (*stat)(void *context, int fd, const char *name, struct stat *out);
    ssize_t (*list_directory)(void *context, int fd, void *buffer, size_t size); /* getdents64 */
    ssize_t (*read_link)(void *context, int fd, const char *name, char *buffer, size_t size);
    ssize_t (*list_xattrs)(void *context, int fd, const char *name, char *buffer, size_t size);
    ssize_t (*get_xattr)(void *context, int fd, const char *name, const char *key, void *buffer, size_t size);
    void *(*allocate)(void *context, size_t size);
    void *(*reallocate)(void *context, void *memory, size_t size); /* memory: from allocate, or NULL */
    void (*release)(void *context, void *memory);
    int (*start_thread)(void *context, pthread_t *thread, void *(*main)(void *), void *argument); /* 0 or an errno */
} os_env;

/* The real system. Immutable. */
extern const os_env os_env_system;

#endif
