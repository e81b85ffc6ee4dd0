/* Every bound on what comes from outside, in one place. docs/format.md gives the meaning of each field. */
#ifndef OS_LIMITS_H
#define OS_LIMITS_H

#define OS_ID_SIZE 32
enum { OS_ALGORITHM_BLAKE3 = 1, OS_ALGORITHM_SHA256 = 2 }; /* what a chunk's id is made with */
#define OS_CHUNK_MIN (16u << 10)
#define OS_CHUNK_AVERAGE (64u << 10)
#define OS_CHUNK_MAX (256u << 10)
#define OS_HOLE_BLOCK 4096u
#define OS_HOLE_MIN (1u << 20)
#define OS_FRAME_MAX (256u << 10)     /* uncompressed */
#define OS_FRAME_SHARED (128u << 10)  /* where a shared frame closes */
#define OS_FILE_SHARED (64u << 10)    /* files up to this share frames */
#define OS_PACK_MAX (64u << 20)       /* frames of one pack, compressed */
#define OS_PACK_TABLE_MAX (64u << 20) /* payload of the closing table */
#define OS_NAME_MAX 255u
#define OS_SYMLINK_MAX 4095u
#define OS_PATH_MAX 4096u
#define OS_DEPTH_MAX 2048u /* directories below each other, without the root */
#define OS_XATTR_VALUE_MAX 65535u
#define OS_XATTR_TOTAL_MAX (128u << 10) /* names and values of one entry */
#define OS_INODES_MAX (16u << 20)
#define OS_REFS_MAX (1u << 31)
#define OS_INDEX_MAX (4ull << 30)    /* decoded layer index, fs.erofs, tables */
#define OS_BOOT_HEAD_MAX (64u << 20) /* decoded head of a boot pack */
#define OS_BOOT_FRAME_MAX (1u << 20) /* uncompressed */
#define OS_BOOT_PAGE 4096u
#define OS_FILE_SIZE_MAX 0x7FFFFFFFFFFFFFFFull

#endif
