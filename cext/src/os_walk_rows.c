/* What the walk found, row by row, and which rows are names of one inode. */
#include "os_walk_parts.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "os_bytes.h"
#include "os_tree.h"

#define MAJOR_MAX 4095u /* what Linux and EROFS can say */
#define MINOR_MAX 1048575u

os_code os_walk_no_memory(os_failure *failure) {
    return os_fail(failure, OS_MEMORY, "tree: out of memory");
}

size_t os_walk_full_path(const os_walk *walk, uint32_t row, char path[OS_PATH_MAX]) {
    const os_walk_row *rows = os_walk_rows(walk);
    size_t size = rows[row].path_size, at = size;
    for (; row != rows[row].parent; row = rows[row].parent) {
        at -= rows[row].name_size;
        memcpy(path + at, walk->bytes.data + rows[row].name, rows[row].name_size);
        if (at > 0)
            path[--at] = '/';
    }
    return size;
}

os_walk_path os_walk_path_of(const os_walk *walk, uint32_t directory, const char *name) {
    os_walk_path made;
    char path[OS_PATH_MAX + OS_NAME_MAX + 2];
    size_t size = 0;
    if (directory < os_walk_row_count(walk))
        size = os_walk_full_path(walk, directory, path);
    if (size > 0 && name[0] != '\0')
        path[size++] = '/';
    size_t more = strnlen(name, OS_NAME_MAX);
    memcpy(path + size, name, more);
    size += more;
    size_t kept = size < 160 ? size : 160;
    snprintf(made.text, sizeof made.text, "%s%.*s", kept < size ? "…" : "", (int)kept, path + size - kept);
    return made;
}

os_code os_walk_note(os_walk *walk, uint32_t directory, const char *name, const char *what, os_failure *failure) {
    const os_walk_path path = os_walk_path_of(walk, directory, name);
    if (!os_column_append(&walk->notes, walk->env, path.text, strlen(path.text)) ||
        !os_column_append(&walk->notes, walk->env, what, strlen(what) + 1))
        return os_walk_no_memory(failure);
    return OS_OK;
}

/* An empty row under its name. */
static os_code new_row(os_walk *walk, uint32_t parent, const char *name, os_walk_row *made, os_failure *failure) {
    uint32_t number = os_walk_row_count(walk);
    size_t name_size = strlen(name), above = 0;
    if (number >= OS_INODES_MAX - 1)
        return os_fail(failure, OS_LIMIT, "tree: got more than %u names", OS_INODES_MAX - 1);
    if (parent != UINT32_MAX && os_walk_rows(walk)[parent].path_size > 0)
        above = os_walk_rows(walk)[parent].path_size + 1u;
    if (name_size > OS_NAME_MAX || above + name_size > OS_PATH_MAX)
        return os_fail(failure, OS_LIMIT, "%s: path: got %zu bytes, want at most %u",
                       os_walk_path_of(walk, parent, name).text, above + name_size, OS_PATH_MAX);
    *made = (os_walk_row){.parent = parent == UINT32_MAX ? number : parent,
                          .first = number,
                          .names = 1,
                          .path_size = (uint32_t)(above + name_size),
                          .name_size = (uint16_t)name_size,
                          .name = walk->bytes.size};
    return os_column_append(&walk->bytes, walk->env, name, name_size) ? OS_OK : os_walk_no_memory(failure);
}

static uint8_t kind_of(mode_t mode) {
    switch (mode & S_IFMT) {
    case S_IFDIR:
        return OS_KIND_DIRECTORY;
    case S_IFREG:
        return OS_KIND_FILE;
    case S_IFLNK:
        return OS_KIND_SYMLINK;
    case S_IFIFO:
        return OS_KIND_FIFO;
    case S_IFCHR:
        return OS_KIND_CHARACTER;
    default:
        return OS_KIND_BLOCK;
    }
}

/* A symlink's target behind its xattrs; *size: its length. */
static os_code add_target(os_walk *walk, const os_walk_path *path, int fd, const char *where, uint64_t *size,
                          os_failure *failure) {
    const os_env *env = walk->env;
    ssize_t got = env->read_link(env->context, fd, where, (char *)walk->buffer, OS_WALK_BUFFER);
    if (got < 0)
        return os_fail_errno(failure, errno, "%s: cannot read the link", path->text);
    if (got == 0 || got > (ssize_t)OS_SYMLINK_MAX)
        return os_fail(failure, OS_LIMIT, "%s: symlink: got %zd bytes, want 1 to %u", path->text, got, OS_SYMLINK_MAX);
    *size = (uint64_t)got;
    return os_column_append(&walk->bytes, env, walk->buffer, (size_t)got) ? OS_OK : os_walk_no_memory(failure);
}

static os_code check_device(const os_walk_path *path, const struct stat *found, uint64_t *value, os_failure *failure) {
    unsigned high = major(found->st_rdev), low = minor(found->st_rdev);
    if (high > MAJOR_MAX || low > MINOR_MAX)
        return os_fail(failure, OS_LIMIT, "%s: device: got %u:%u, want at most %u:%u", path->text, high, low, MAJOR_MAX,
                       MINOR_MAX);
    *value = (uint64_t)high << 32 | low;
    return OS_OK;
}

os_code os_walk_add(os_walk *walk, uint32_t parent, const char *name, int fd, const char *where,
                    const struct stat *found, uint32_t *row, os_failure *failure) {
    os_walk_row made;
    uint32_t xattrs;
    uint64_t value = 0;
    uint8_t kind = kind_of(found->st_mode);
    os_code code = new_row(walk, parent, name, &made, failure);
    if (code != OS_OK)
        return code;
    made.rest = walk->bytes.size;
    code = os_walk_xattrs(walk, parent, name, fd, where, &xattrs, failure);
    if (code != OS_OK)
        return code;
    if (kind == OS_KIND_SYMLINK || kind == OS_KIND_CHARACTER || kind == OS_KIND_BLOCK) {
        const os_walk_path path = os_walk_path_of(walk, parent, name);
        code = kind == OS_KIND_SYMLINK ? add_target(walk, &path, fd, where, &value, failure)
                                       : check_device(&path, found, &value, failure);
        if (code != OS_OK)
            return code;
    }
    made.rest_size = walk->bytes.size - made.rest;
    made.fixed[0] = kind;
    os_put32(made.fixed + 4, found->st_mode & 07777);
    os_put32(made.fixed + 8, found->st_uid);
    os_put32(made.fixed + 12, found->st_gid);
    os_put64(made.fixed + 16, (uint64_t)found->st_mtim.tv_sec);
    os_put32(made.fixed + 24, (uint32_t)found->st_mtim.tv_nsec);
    os_put32(made.fixed + 28, xattrs);
    os_put64(made.fixed + 40, value);
    *row = os_walk_row_count(walk);
    return os_column_append(&walk->rows, walk->env, &made, sizeof made) ? OS_OK : os_walk_no_memory(failure);
}

/* ---- hard links ---- */

static os_walk_inode *slot_of(os_walk_inode *slots, size_t room, uint64_t device, uint64_t number) {
    uint64_t at = (number ^ device << 32) * UINT64_C(0x9E3779B97F4A7C15);
    for (at >>= 20;; at++) {
        os_walk_inode *slot = &slots[at & (room - 1)];
        if (slot->row_and_1 == 0 || (slot->device == device && slot->number == number))
            return slot;
    }
}

os_code os_walk_link(os_walk *walk, uint32_t parent, const char *name, const struct stat *found, bool *linked,
                     os_failure *failure) {
    os_walk_row made;
    *linked = false;
    if (walk->inode_room == 0)
        return OS_OK;
    const os_walk_inode *met = slot_of(walk->inodes, walk->inode_room, found->st_dev, found->st_ino);
    if (met->row_and_1 == 0)
        return OS_OK;
    os_code code = new_row(walk, parent, name, &made, failure);
    if (code != OS_OK)
        return code;
    made.first = met->row_and_1 - 1;
    os_walk_rows(walk)[made.first].names++;
    *linked = true;
    return os_column_append(&walk->rows, walk->env, &made, sizeof made) ? OS_OK : os_walk_no_memory(failure);
}

os_code os_walk_remember(os_walk *walk, const struct stat *found, uint32_t row, os_failure *failure) {
    const os_env *env = walk->env;
    if (2 * (walk->inode_count + 1) > walk->inode_room) {
        size_t room = walk->inode_room ? 2 * walk->inode_room : 256;
        os_walk_inode *bigger = env->allocate(env->context, room * sizeof *bigger);
        if (!bigger)
            return os_walk_no_memory(failure);
        memset(bigger, 0, room * sizeof *bigger);
        for (size_t at = 0; at < walk->inode_room; at++)
            if (walk->inodes[at].row_and_1 != 0)
                *slot_of(bigger, room, walk->inodes[at].device, walk->inodes[at].number) = walk->inodes[at];
        if (walk->inodes)
            env->release(env->context, walk->inodes);
        walk->inodes = bigger;
        walk->inode_room = room;
    }
    *slot_of(walk->inodes, walk->inode_room, found->st_dev, found->st_ino) =
        (os_walk_inode){found->st_dev, found->st_ino, row + 1};
    walk->inode_count++;
    return OS_OK;
}
