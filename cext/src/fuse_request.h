/* A FUSE request, taken apart. Every length in it is checked: what comes out can be used as it is. */
#ifndef OS_FUSE_REQUEST_H
#define OS_FUSE_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "os_limits.h"
#include "os_result.h"

typedef enum os_fuse_kind {
    OS_FUSE_INIT,
    OS_FUSE_LOOKUP,
    OS_FUSE_FORGET, /* BATCH_FORGET too; has no answer */
    OS_FUSE_GETATTR,
    OS_FUSE_READ,
    OS_FUSE_STATFS,
    OS_FUSE_INTERRUPT, /* has no answer */
    OS_FUSE_DESTROY,
    OS_FUSE_IOCTL,
    OS_FUSE_OTHER,
} os_fuse_kind;

typedef struct os_fuse_request {
    os_fuse_kind kind;
    uint32_t opcode, pid; /* pid: of the thread that asks, 0 if it is not of our pid namespace */
    uint64_t unique;      /* 0: there is nothing to answer to */
    uint64_t node;
    union {
        struct {
            uint32_t major, minor, max_readahead;
            uint64_t flags;
        } init;
        struct {
            const char *text; /* borrowed from the buffer, NUL-terminated */
            size_t length;    /* without the NUL */
        } name;
        struct {
            uint64_t offset;
            uint32_t size;
        } read;
        uint64_t interrupted; /* unique of the request meant */
    };
} os_fuse_request;

/* Pure. OS_CORRUPT: the bytes are no request; unique is set if there is one to answer with an error. */
os_code os_fuse_decode(const uint8_t *buffer, size_t length, os_fuse_request *request, os_failure *failure);

/* What a name looked up in a directory of the mount stands for: the root knows two, a directory sixty-two lower-case
 * hexadecimal digits. Returns whether it can be there; directory: of the object; id: written by the second. */
bool os_fuse_directory_name(const char *name, size_t length, uint8_t *directory);
bool os_fuse_object_name(uint8_t directory, const char *name, size_t length, uint8_t id[OS_ID_SIZE]);

#endif
