/* The xattrs of one inode, as an entry of a layer index has them. */
#include "os_walk_parts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "os_bytes.h"
#include "os_tree.h"

static int by_bytes(const void *one, const void *other) {
    return strcmp(*(const char *const *)one, *(const char *const *)other);
}

/* Names that an image may have, in order. list: size bytes, each name with its NUL. */
static uint32_t keep_allowed(const char *list, size_t size, const char **names) {
    uint32_t count = 0;
    for (size_t at = 0; at < size; at += strlen(list + at) + 1)
        if (os_xattr_allowed((const uint8_t *)list + at, strlen(list + at)))
            names[count++] = list + at;
    qsort(names, count, sizeof *names, by_bytes);
    return count;
}

static os_code add_one(os_walk *walk, const os_walk_path *path, int fd, const char *where, const char *key,
                       size_t *total, os_failure *failure) {
    const os_env *env = walk->env;
    uint8_t head[4];
    ssize_t got = env->get_xattr(env->context, fd, where, key, walk->buffer, OS_WALK_BUFFER);
    if (got < 0)
        return os_fail_errno(failure, errno, "%s: cannot read its xattr %.60s", path->text, key);
    if ((size_t)got > OS_XATTR_VALUE_MAX)
        return os_fail(failure, OS_LIMIT, "%s: xattr %.60s: got %zd bytes, want at most %u", path->text, key, got,
                       OS_XATTR_VALUE_MAX);
    *total += strlen(key) + (size_t)got;
    if (*total > OS_XATTR_TOTAL_MAX)
        return os_fail(failure, OS_LIMIT, "%s: xattrs: got more than %u bytes", path->text, OS_XATTR_TOTAL_MAX);
    os_put16(head, (uint16_t)strlen(key));
    os_put16(head + 2, (uint16_t)got);
    if (!os_column_append(&walk->bytes, env, head, sizeof head) ||
        !os_column_append(&walk->bytes, env, key, strlen(key)) ||
        !os_column_append(&walk->bytes, env, walk->buffer, (size_t)got))
        return os_walk_no_memory(failure);
    return OS_OK;
}

os_code os_walk_xattrs(os_walk *walk, uint32_t directory, const char *name, int fd, const char *where, uint32_t *count,
                       os_failure *failure) {
    const os_env *env = walk->env;
    *count = 0;
    ssize_t size = env->list_xattrs(env->context, fd, where, (char *)walk->buffer, OS_WALK_BUFFER);
    if (size == 0 || (size < 0 && errno == ENOTSUP))
        return OS_OK;
    const os_walk_path path = os_walk_path_of(walk, directory, name);
    if (size < 0)
        return os_fail_errno(failure, errno, "%s: cannot list its xattrs", path.text);
    /* The values are read into the buffer: the list moves, with room for a pointer to each of its names behind it. */
    size_t room = ((size_t)size + 1 + 7) & ~(size_t)7;
    char *list = env->allocate(env->context, room + (size_t)size * sizeof(char *));
    if (!list)
        return os_walk_no_memory(failure);
    const char **names = (const char **)(void *)(list + room);
    memcpy(list, walk->buffer, (size_t)size);
    list[size] = '\0';
    uint32_t allowed = keep_allowed(list, (size_t)size, names);
    size_t total = 0;
    os_code code = OS_OK;
    for (uint32_t at = 0; at < allowed && code == OS_OK; at++)
        code = add_one(walk, &path, fd, where, names[at], &total, failure);
    env->release(env->context, list);
    *count = allowed;
    return code;
}
