/* What an object server and a fetcher say to each other: packets on a socket, bytes in shared memory.
 *
 * The object server has neither network nor credentials, the fetcher has no mount. The server owns the memory, OS_SLOTS
 * slots of a span each: it names the slot that a range is to be put into, and that slot is the fetcher's until it
 * answers. What comes out of it is copied, and only the copy is decoded, hashed and served; so a fetcher that lies, or
 * writes where it has no business, can make reads wait but not read wrong.
 *
 * Both processes are of one host and one build: integers as they are. */
#ifndef OS_LINK_H
#define OS_LINK_H

#include <stdint.h>

#include "os_fetch_limits.h"
#include "os_limits.h"

#define OS_LINK_VERSION 1u
#define OS_SLOTS_SIZE ((uint64_t)OS_SLOTS * OS_FETCH_SPAN)

typedef enum os_link_kind {
    OS_LINK_HELLO = 1, /* fetcher: it is new, and knows of no range; rest: OS_LINK_VERSION */
    OS_LINK_WANT,      /* server: ticket is new */
    OS_LINK_RAISE,     /* server: the prefetch is a demand now */
    OS_LINK_CANCEL,    /* server: nobody waits any more; there is an answer all the same */
    OS_LINK_TRY,       /* fetcher: a try failed, the range is still being worked on */
    OS_LINK_DONE,      /* fetcher: the slot is the server's again; code says with or without the bytes */
} os_link_kind;

typedef struct os_link_want {
    uint32_t kind, slot;
    uint64_t ticket;
    uint8_t digest[OS_ID_SIZE];
    uint64_t blob_size, offset;
    uint32_t length, origin;
    uint32_t prefetch, rejected, avoid, zero;
} os_link_want;

typedef struct os_link_answer {
    uint32_t kind, code; /* code: os_code; of a hello the version */
    uint64_t ticket;
    uint32_t source, tries;
    char cause[OS_FETCH_CAUSE_MAX];
} os_link_answer;

#endif
