/* What the parts of the walk share. Private to os_walk*.c. */
#ifndef OS_WALK_PARTS_H
#define OS_WALK_PARTS_H

#include <sys/stat.h>

#include "os_column.h"
#include "os_layer_entry.h"
#include "os_limits.h"
#include "os_walk.h"

#define OS_WALK_ROOT_LEVELS (OS_WALK_DEPTH + 1u) /* with the root */
#define OS_WALK_BUFFER (128u << 10)              /* the largest list of xattrs or value; a small file and one byte */

/* One name, in the order of the walk: parents before children, children in bytewise order. */
typedef struct os_walk_row {
    uint32_t parent;    /* row of its directory; the root's is its own */
    uint32_t first;     /* row that describes its inode: its own, or that of the first name of a hard link */
    uint32_t names;     /* of a row that describes: how many have it */
    uint32_t path_size; /* from the root */
    uint32_t ticket;    /* of a file's content */
    uint16_t name_size;
    size_t name; /* place in bytes */
    size_t rest; /* place in bytes of the xattrs, then a symlink's target, as an entry has them */
    size_t rest_size;
    uint8_t fixed[OS_LAYER_ENTRY]; /* as an entry begins; what names, links and parts say is filled in by encode */
} os_walk_row;

/* A directory that is open. */
typedef struct os_walk_level {
    int fd; /* owned but for the root's */
    uint32_t row;
    size_t texts, items; /* where its own begin in walk->texts, walk->items */
    size_t next;         /* item that comes next */
} os_walk_level;

typedef struct os_walk_item {
    uint32_t text; /* from the level's texts on */
    uint8_t type;  /* DT_* */
} os_walk_item;

/* Inodes with more than one name: open addressing. */
typedef struct os_walk_inode {
    uint64_t device, number;
    uint32_t row_and_1; /* 0: empty */
} os_walk_inode;

struct os_walk {
    const os_env *env; /* borrowed */
    os_ingest *ingest; /* borrowed */
    int root;          /* borrowed */
    bool started;
    uint32_t depth; /* open levels */
    os_walk_level levels[OS_WALK_ROOT_LEVELS];
    os_column rows;  /* of os_walk_row */
    os_column bytes; /* what rows are made of */
    os_column texts; /* names of open directories, each with its NUL */
    os_column items; /* of os_walk_item, of open directories */
    os_column notes;
    os_walk_inode *inodes; /* owned */
    size_t inode_count, inode_room;
    uint8_t *buffer; /* owned, OS_WALK_BUFFER */

    int file; /* owned; -1: none. A large file that is being taken */
    uint32_t file_row;
    uint64_t file_size, file_offset;

    os_column index; /* made by encode */
};

static inline os_walk_row *os_walk_rows(const os_walk *walk) {
    return (os_walk_row *)walk->rows.data;
}

static inline uint32_t os_walk_row_count(const os_walk *walk) {
    return (uint32_t)(walk->rows.size / sizeof(os_walk_row));
}

os_code os_walk_no_memory(os_failure *failure);

/* ---- os_walk_rows.c ---- */

/* A path for a message: all of it, or its end. */
typedef struct os_walk_path {
    char text[170];
} os_walk_path;
os_walk_path os_walk_path_of(const os_walk *walk, uint32_t directory, const char *name);
/* The path of a row, which has OS_PATH_MAX bytes at most; returns its size. */
size_t os_walk_full_path(const os_walk *walk, uint32_t row, char path[OS_PATH_MAX]);

/* A row that is described by `found`, with its xattrs (name: as os_env's) and a symlink's target, and its number.
 * parent: UINT32_MAX for the root. fd: of the directory, or with where "" of the thing itself. */
os_code os_walk_add(os_walk *walk, uint32_t parent, const char *name, int fd, const char *where,
                    const struct stat *found, uint32_t *row, os_failure *failure);
/* If the inode was met: adds one more name of it. *linked: it was. row: what to remember if it was not. */
os_code os_walk_link(os_walk *walk, uint32_t parent, const char *name, const struct stat *found, bool *linked,
                     os_failure *failure);
os_code os_walk_remember(os_walk *walk, const struct stat *found, uint32_t row, os_failure *failure);
os_code os_walk_note(os_walk *walk, uint32_t directory, const char *name, const char *what, os_failure *failure);

/* ---- os_walk_xattrs.c ---- */

/* Appends to bytes, in order, those that an image may have; *count: of them. */
os_code os_walk_xattrs(os_walk *walk, uint32_t directory, const char *name, int fd, const char *where, uint32_t *count,
                       os_failure *failure);

#endif
