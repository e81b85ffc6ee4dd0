/* What writer and reader of fs.erofs share: the places and numbers of docs/format.md section 5. */
#ifndef OS_EROFS_DISK_H
#define OS_EROFS_DISK_H

#include <stdbool.h>

#include "os_bytes.h"
#include "os_tree.h"

#define OS_EROFS_BLOCK 4096u
#define OS_EROFS_SUPER 1024u /* of 128 bytes; the first inode follows */
#define OS_EROFS_FIRST (OS_EROFS_SUPER + 128u)
#define OS_EROFS_MAGIC 0xE0F5E1E2u
#define OS_EROFS_CHUNKED 0x4u /* the one incompatible feature */
#define OS_EROFS_SLOT 32u
#define OS_EROFS_INODE 64u
#define OS_EROFS_DIRENT 12u
#define OS_EROFS_TAIL_MAX 2048u   /* of data behind its inode */
#define OS_EROFS_CHUNK_FORMAT 31u /* the largest: chunks of 2^31 blocks, 8 TiB */
#define OS_EROFS_CHUNK_SHIFT 43u  /* so one number maps nearly every file, two to the 20th any */
#define OS_EROFS_OUTSIDE                                                                                               \
    0xFFFFFFF0u /* a block that no device has: reading it is EIO; 0xFFFFFFFF would read as zeros                       \
                 */

enum { OS_EROFS_FLAT = 0, OS_EROFS_INLINE = 2, OS_EROFS_CHUNKS = 4 };

/* An inode's xattrs: a head of 12 bytes if there is any, then for each a head of 4, the rest of its name, its value. */
#define OS_EROFS_XATTRS_HEAD 12u
#define OS_EROFS_XATTR_HEAD 4u

/* What makes overlayfs take a file's data from its object. */
#define OS_EROFS_METACOPY "overlay.metacopy" /* rests of names in OS_EROFS_TRUSTED */
#define OS_EROFS_REDIRECT "overlay.redirect"
#define OS_EROFS_REST 16u          /* of both */
#define OS_EROFS_REDIRECT_SIZE 66u /* "/ab/" and 62 digits */
#define OS_EROFS_TRUSTED 4u

/* Namespaces with the number that EROFS has for them. whole: the namespace is the whole name. */
typedef struct os_erofs_namespace {
    const char *text;
    uint8_t size, index;
    bool whole;
} os_erofs_namespace;

static const os_erofs_namespace OS_EROFS_NAMESPACES[] = {
    {"user.", 5, 1, false},
    {"security.", 9, 6, false},
    {"system.posix_acl_access", 23, 2, true},
    {"system.posix_acl_default", 24, 3, true},
};
#define OS_EROFS_NAMESPACE_COUNT (sizeof OS_EROFS_NAMESPACES / sizeof *OS_EROFS_NAMESPACES)

static inline uint64_t os_erofs_xattr_size(size_t rest, size_t value) {
    return os_up(OS_EROFS_XATTR_HEAD + rest + value, 4);
}

/* Entries of a file's chunk map; size not 0. */
static inline uint64_t os_erofs_chunks(uint64_t size) {
    return ((size - 1) >> OS_EROFS_CHUNK_SHIFT) + 1;
}

/* File type bits of st_mode, by kind. */
static inline uint16_t os_erofs_type_bits(uint8_t kind) {
    static const uint16_t BITS[] = {
        [OS_KIND_FILE] = 0100000,      [OS_KIND_DIRECTORY] = 0040000, [OS_KIND_SYMLINK] = 0120000,
        [OS_KIND_CHARACTER] = 0020000, [OS_KIND_BLOCK] = 0060000,     [OS_KIND_FIFO] = 0010000};
    return BITS[kind];
}

#endif
