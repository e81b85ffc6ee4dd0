#include "os_pack_files.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

struct os_pack_files {
    const os_env *env; /* borrowed, immutable */
    uint32_t count;    /* immutable */
    bool lazy;         /* immutable */
    _Atomic int fd[];  /* owned; -1 until set, then immutable */
};

os_pack_files *os_pack_files_make(const os_env *env, uint32_t count, bool lazy) {
    os_pack_files *files = env->allocate(env->context, sizeof *files + count * sizeof files->fd[0]);
    if (files == NULL)
        return NULL;
    files->env = env;
    files->count = count;
    files->lazy = lazy;
    for (uint32_t at = 0; at < count; at++)
        atomic_init(&files->fd[at], -1);
    return files;
}

void os_pack_files_free(os_pack_files *files) {
    if (files == NULL)
        return;
    const os_env *env = files->env;
    for (uint32_t at = 0; at < files->count; at++) {
        int fd = atomic_load(&files->fd[at]);
        if (fd >= 0)
            env->close(env->context, fd);
    }
    env->release(env->context, files);
}

void os_pack_files_set(os_pack_files *files, uint32_t blob, int fd) {
    int none = -1;
    if (blob >= files->count || !atomic_compare_exchange_strong(&files->fd[blob], &none, fd))
        files->env->close(files->env->context, fd);
}

bool os_pack_files_has(const os_pack_files *files, uint32_t blob) {
    return blob < files->count && atomic_load(&files->fd[blob]) >= 0;
}

static os_answer read_file(void *context, uint32_t blob, void *buffer, size_t size, uint64_t offset,
                           os_failure *failure) {
    os_pack_files *files = context;
    const os_env *env = files->env;
    int fd = blob < files->count ? atomic_load(&files->fd[blob]) : -1;
    if (fd < 0) {
        if (files->lazy)
            return OS_ANSWER_PENDING;
        os_fail(failure, OS_MISSING, "no such file");
        return OS_ANSWER_FAILED;
    }
    for (size_t done = 0; done < size;) {
        ssize_t got = env->pread(env->context, fd, (uint8_t *)buffer + done, size - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            os_fail_errno(failure, errno, "read: %s", strerror(errno));
            return OS_ANSWER_FAILED;
        }
        if (got == 0) {
            os_fail(failure, OS_CORRUPT, "the file ends at %llu", (unsigned long long)(offset + done));
            return OS_ANSWER_FAILED;
        }
        done += (size_t)got;
    }
    return OS_ANSWER_HERE;
}

static void release_files(void *context) {
    os_pack_files_free(context);
}

os_source os_pack_files_source(os_pack_files *files) {
    return (os_source){.context = files, .read = read_file, .release = release_files};
}
