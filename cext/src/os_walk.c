/* One thread: the caller's, which is also that of the ingest; os_walk_step never waits for another one but in the
 * ingest's ring. Nothing is locked.
 *
 * Every step goes through a descriptor of the directory, so a directory that is swapped for a link on the way leads
 * nowhere else; what is described is what was opened. Names are read for a whole directory, sorted, and taken one a
 * step; below it the same, so `texts` and `items` are stacks. Listing says what kind most names are, which saves a
 * stat: what it says is only believed as far as open(2) confirms it. */
#define _GNU_SOURCE
#include "os_walk_parts.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

#define OPEN_FLAGS (O_RDONLY | O_NOFOLLOW | O_CLOEXEC)

os_code os_walk_make(const os_env *env, os_ingest *ingest, int root, os_walk **out, os_failure *failure) {
    os_walk *walk = env->allocate(env->context, sizeof *walk);
    if (!walk)
        return os_walk_no_memory(failure);
    memset(walk, 0, sizeof *walk);
    walk->env = env;
    walk->ingest = ingest;
    walk->root = root;
    walk->file = -1;
    walk->buffer = env->allocate(env->context, OS_WALK_BUFFER);
    if (!walk->buffer) {
        os_walk_free(walk);
        return os_walk_no_memory(failure);
    }
    *out = walk;
    return OS_OK;
}

void os_walk_free(os_walk *walk) {
    if (!walk)
        return;
    const os_env *env = walk->env;
    if (walk->file >= 0)
        env->close(env->context, walk->file);
    while (walk->depth > 1)
        env->close(env->context, walk->levels[--walk->depth].fd);
    os_column *columns[] = {&walk->rows, &walk->bytes, &walk->texts, &walk->items, &walk->notes, &walk->index};
    for (size_t at = 0; at < sizeof columns / sizeof *columns; at++)
        os_column_free(columns[at], env);
    if (walk->inodes)
        env->release(env->context, walk->inodes);
    if (walk->buffer)
        env->release(env->context, walk->buffer);
    env->release(env->context, walk);
}

const char *os_walk_notes(const os_walk *walk, size_t *size) {
    *size = walk->notes.size;
    return (const char *)walk->notes.data;
}

static os_code cannot(const os_walk *walk, uint32_t directory, const char *name, int error, os_failure *failure) {
    return os_fail_errno(failure, error, "%s: cannot be read", os_walk_path_of(walk, directory, name).text);
}

static os_code changed(const os_walk *walk, uint32_t directory, const char *name, os_failure *failure) {
    return os_fail(failure, OS_CORRUPT, "%s: changed while it was read", os_walk_path_of(walk, directory, name).text);
}

/* ---- directories ---- */

static int by_text(const void *one, const void *other, void *texts) {
    const os_walk_item *a = one, *b = other;
    return strcmp((const char *)texts + a->text, (const char *)texts + b->text);
}

static os_code take_names(os_walk *walk, const os_walk_level *level, size_t size, os_failure *failure) {
    for (size_t at = 0; at < size;) {
        const struct dirent64 *found = (const struct dirent64 *)(const void *)(walk->buffer + at);
        const char *name = found->d_name;
        at += found->d_reclen;
        if (!strcmp(name, ".") || !strcmp(name, ".."))
            continue;
        size_t text = walk->texts.size - level->texts;
        if (text > UINT32_MAX - OS_PATH_MAX)
            return os_fail(failure, OS_LIMIT, "%s: a directory with too many names",
                           os_walk_path_of(walk, level->row, "").text);
        const os_walk_item item = {(uint32_t)text, found->d_type};
        if (!os_column_append(&walk->texts, walk->env, name, strlen(name) + 1) ||
            !os_column_append(&walk->items, walk->env, &item, sizeof item))
            return os_walk_no_memory(failure);
    }
    return OS_OK;
}

static os_code list(os_walk *walk, os_walk_level *level, os_failure *failure) {
    os_code code = OS_OK;
    level->texts = walk->texts.size;
    level->items = walk->items.size;
    level->next = level->items;
    while (code == OS_OK) {
        ssize_t got = walk->env->list_directory(walk->env->context, level->fd, walk->buffer, OS_WALK_BUFFER);
        if (got < 0)
            return cannot(walk, level->row, "", errno, failure);
        if (got == 0)
            break;
        code = take_names(walk, level, (size_t)got, failure);
    }
    size_t count = (walk->items.size - level->items) / sizeof(os_walk_item);
    if (code == OS_OK && count > 1)
        qsort_r(walk->items.data + level->items, count, sizeof(os_walk_item), by_text, walk->texts.data + level->texts);
    return code;
}

/* Takes over fd, but for the root's. parent: UINT32_MAX for the root. */
static os_code enter(os_walk *walk, uint32_t parent, const char *name, int fd, os_failure *failure) {
    struct stat found;
    os_walk_level *level = &walk->levels[walk->depth++];
    level->fd = fd;
    level->texts = walk->texts.size;
    level->items = level->next = walk->items.size;
    if (walk->env->stat(walk->env->context, fd, "", &found) < 0)
        return cannot(walk, parent, name, errno, failure);
    os_code code = os_walk_add(walk, parent, name, fd, "", &found, &level->row, failure);
    return code == OS_OK ? list(walk, level, failure) : code;
}

static void leave(os_walk *walk) {
    os_walk_level *level = &walk->levels[--walk->depth];
    walk->texts.size = level->texts;
    walk->items.size = level->items;
    if (walk->depth > 0)
        walk->env->close(walk->env->context, level->fd);
}

static os_code take_directory(os_walk *walk, const os_walk_level *above, const char *name, os_failure *failure) {
    const os_env *env = walk->env;
    if (walk->depth == OS_WALK_ROOT_LEVELS)
        return os_fail(failure, OS_LIMIT, "%s: directories deeper than %u",
                       os_walk_path_of(walk, above->row, name).text, OS_WALK_DEPTH);
    int fd = env->openat(env->context, above->fd, name, OPEN_FLAGS | O_DIRECTORY, 0);
    return fd < 0 ? cannot(walk, above->row, name, errno, failure) : enter(walk, above->row, name, fd, failure);
}

/* ---- files ---- */

/* Up to OS_FILE_SHARED bytes; one more is asked for, to see that there are none. */
static os_code take_small(os_walk *walk, uint32_t row, int fd, size_t size, os_failure *failure) {
    const os_env *env = walk->env;
    size_t got = 0;
    while (got <= size) {
        ssize_t count = env->pread(env->context, fd, walk->buffer + got, size + 1 - got, (off_t)got);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return cannot(walk, row, "", errno, failure);
        if (count == 0)
            break;
        got += (size_t)count;
    }
    if (got != size)
        return changed(walk, row, "", failure);
    uint32_t ticket;
    os_code code = os_ingest_begin(walk->ingest, size, &ticket, failure);
    if (code == OS_OK)
        code = os_ingest_update(walk->ingest, walk->buffer, size, failure);
    os_walk_rows(walk)[row].ticket = ticket;
    return code == OS_OK ? os_ingest_end(walk->ingest, failure) : code;
}

static os_code take_opened(os_walk *walk, uint32_t directory, const char *name, int *fd, os_failure *failure) {
    struct stat found;
    uint32_t row;
    bool linked;
    os_code code;
    if (walk->env->stat(walk->env->context, *fd, "", &found) < 0)
        return cannot(walk, directory, name, errno, failure);
    if (!S_ISREG(found.st_mode))
        return changed(walk, directory, name, failure);
    if (found.st_nlink > 1) {
        code = os_walk_link(walk, directory, name, &found, &linked, failure);
        if (code != OS_OK || linked)
            return code;
    }
    code = os_walk_add(walk, directory, name, *fd, "", &found, &row, failure);
    if (code == OS_OK && found.st_nlink > 1)
        code = os_walk_remember(walk, &found, row, failure);
    if (code != OS_OK)
        return code;
    if (found.st_size <= (off_t)OS_FILE_SHARED)
        return take_small(walk, row, *fd, (size_t)found.st_size, failure);
    code = os_ingest_begin(walk->ingest, (uint64_t)found.st_size, &os_walk_rows(walk)[row].ticket, failure);
    if (code == OS_OK) {
        walk->file = *fd;
        walk->file_row = row;
        walk->file_size = (uint64_t)found.st_size;
        walk->file_offset = 0;
        *fd = -1;
    }
    return code;
}

static os_code take_file(os_walk *walk, const os_walk_level *level, const char *name, os_failure *failure) {
    const os_env *env = walk->env;
    int fd = env->openat(env->context, level->fd, name, OPEN_FLAGS | O_NONBLOCK, 0);
    if (fd < 0)
        return cannot(walk, level->row, name, errno, failure);
    os_code code = take_opened(walk, level->row, name, &fd, failure);
    if (fd >= 0)
        env->close(env->context, fd);
    return code;
}

static os_code go_on_with_file(os_walk *walk, os_failure *failure) {
    const os_env *env = walk->env;
    struct stat now;
    if (walk->file_offset < walk->file_size)
        return os_ingest_file_step(walk->ingest, walk->file, walk->file_size, &walk->file_offset, failure);
    int fd = walk->file;
    if (env->stat(env->context, fd, "", &now) < 0)
        return cannot(walk, walk->file_row, "", errno, failure);
    if ((uint64_t)now.st_size != walk->file_size)
        return changed(walk, walk->file_row, "", failure);
    walk->file = -1;
    env->close(env->context, fd);
    return os_ingest_end(walk->ingest, failure);
}

/* ---- anything ---- */

/* What cannot be opened: symlinks, fifos, devices, sockets. */
static os_code take_special(os_walk *walk, const os_walk_level *level, const char *name, const struct stat *found,
                            os_failure *failure) {
    uint32_t row;
    if (S_ISSOCK(found->st_mode))
        return os_walk_note(walk, level->row, name, ": a socket, left out", failure);
    if (S_ISCHR(found->st_mode) && major(found->st_rdev) == 0 && minor(found->st_rdev) == 0)
        return os_walk_note(walk, level->row, name,
                            ": character device 0:0, left out: overlayfs reads it as a whiteout", failure);
    os_code code = os_walk_add(walk, level->row, name, level->fd, name, found, &row, failure);
    return code == OS_OK && found->st_nlink > 1 ? os_walk_remember(walk, found, row, failure) : code;
}

static os_code take(os_walk *walk, const os_walk_level *level, const char *name, uint8_t type, os_failure *failure) {
    struct stat found;
    bool linked = false;
    if (type == DT_DIR)
        return take_directory(walk, level, name, failure);
    if (type == DT_REG)
        return take_file(walk, level, name, failure);
    if (walk->env->stat(walk->env->context, level->fd, name, &found) < 0)
        return cannot(walk, level->row, name, errno, failure);
    if (S_ISDIR(found.st_mode))
        return take_directory(walk, level, name, failure);
    if (S_ISREG(found.st_mode))
        return take_file(walk, level, name, failure);
    os_code code = found.st_nlink > 1 ? os_walk_link(walk, level->row, name, &found, &linked, failure) : OS_OK;
    return code == OS_OK && !linked ? take_special(walk, level, name, &found, failure) : code;
}

os_code os_walk_step(os_walk *walk, bool *done, os_failure *failure) {
    *done = false;
    if (walk->file >= 0)
        return go_on_with_file(walk, failure);
    if (!walk->started) {
        walk->started = true;
        return enter(walk, UINT32_MAX, "", walk->root, failure);
    }
    if (walk->depth == 0) {
        *done = true;
        return OS_OK;
    }
    os_walk_level *level = &walk->levels[walk->depth - 1];
    if (level->next == walk->items.size) {
        leave(walk);
        return OS_OK;
    }
    const os_walk_item item = *(const os_walk_item *)(const void *)(walk->items.data + level->next);
    level->next += sizeof item;
    char name[OS_NAME_MAX + 1]; /* texts move when the directory is entered */
    const char *text = (const char *)walk->texts.data + level->texts + item.text;
    size_t size = strlen(text);
    if (size > OS_NAME_MAX)
        return os_fail(failure, OS_LIMIT, "%s: name: got %zu bytes, want at most %u",
                       os_walk_path_of(walk, level->row, text).text, size, OS_NAME_MAX);
    memcpy(name, text, size + 1);
    return take(walk, level, name, item.type, failure);
}
