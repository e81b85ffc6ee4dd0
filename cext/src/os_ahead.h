/* Whether an object is read from front to back, and how much of it is worth having before it is asked for. A kernel:
 * it computes, and keeps 24 bytes for each object. Several threads answer reads, so requests of one reader come a
 * little out of order. */
#ifndef OS_AHEAD_H
#define OS_AHEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OS_AHEAD_SLACK (512u << 10) /* out of order by no more than this */
#define OS_AHEAD_FIRST (512u << 10) /* read in a row before anything is asked for: two requests of the kernel's */
#define OS_AHEAD_MAX (8u << 20)     /* ahead of the reader, at most */
#define OS_AHEAD_STEP (512u << 10)  /* nothing less is asked for, but at the end of the object */

/* All zero: nobody has read. */
typedef struct os_ahead {
    uint64_t high;  /* how far it was read */
    uint64_t run;   /* of that, in a row */
    uint64_t until; /* how far it was asked for */
} os_ahead;

/* Notes a read of size bytes at offset, inside an object of end bytes. Whether *from to *to should come: as much again
 * as was read in a row, from 1 MiB on, doubling. One that jumps, or goes backwards, is asked nothing ahead. */
bool os_ahead_note(os_ahead *it, uint64_t offset, size_t size, uint64_t end, uint64_t *from, uint64_t *to);

#endif
