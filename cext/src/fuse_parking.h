/* Requests that wait: for a pack that is not here yet, or for the tables of an announced image. And what is remembered
 * about those that waited in vain: the kernel asks two or three times for one page before a program sees EIO, so a
 * place whose deadline has passed is refused at once for a while, or the program would wait for several deadlines. No
 * lock of its own: the caller holds the server's. */
#ifndef OS_FUSE_PARKING_H
#define OS_FUSE_PARKING_H

#include <stdbool.h>
#include <stdint.h>

#include "os_env.h"
#include "os_limits.h"

#define OS_PARKING_REFUSED 256u    /* places remembered; the oldest is forgotten first, then one more deadline passes */
#define OS_PARKING_INTERRUPTED 64u /* interrupts that came before their request was parked */

/* A LOOKUP or READ on its way to an answer. */
typedef struct os_ask {
    struct os_ask *next;
    int fd;      /* borrowed: the descriptor it was read from, which is the only one that takes the answer */
    bool lookup; /* else a READ */
    uint32_t pid;
    uint32_t size; /* READ */
    uint64_t unique, node, offset;
    uint64_t began;             /* READ, while reads are recorded: ns */
    uint64_t deadline;          /* ns; 0: never parked so far */
    uint64_t arrivals;          /* the server's count when it was last tried */
    uint8_t object[OS_ID_SIZE]; /* LOOKUP */
    uint8_t pack[OS_ID_SIZE];   /* READ: what it waits for first of all, */
    uint64_t start, end;        /* and where in it */
    uint64_t ahead, ahead_end;  /* READ: what its reader is likely to want next; both 0: nothing */
    bool anywhere;              /* it waits for more than one pack: any bytes that come may be what it needs */
    uint64_t frames_until;      /* READ: how long it may wait for frames of a boot pack, ns; 0: it never did */
    bool frames;                /* it waits for them */
    bool ready, interrupted;
    bool last; /* its deadline has passed: one more try, so that the log can say what is wrong */
} os_ask;

typedef struct os_refused {
    uint64_t node, start, end, until; /* until: ns */
    bool lookup;
} os_refused;

typedef struct os_parking {
    os_ask *first;          /* owned */
    uint32_t count, frames; /* frames: of them, those that wait for a boot pack that comes */
    os_refused refused[OS_PARKING_REFUSED];
    unsigned next_refused;
    uint64_t interrupted[OS_PARKING_INTERRUPTED]; /* uniques */
    unsigned next_interrupted;
} os_parking;

/* Of the try that is made now: it waits for nothing so far. */
void os_ask_begin(os_ask *ask);
/* One of its images waits for this part of a pack; pack NULL: that cannot be said. */
void os_ask_waits(os_ask *ask, const uint8_t *pack, uint64_t start, uint64_t end);

/* Keeps a copy. false: no memory. */
bool os_parking_add(os_parking *parking, const os_ask *ask, const os_env *env);
/* Takes out at most `most` that have something to be done about: ready, past their deadline, or interrupted. now 0:
 * only those that are ready. */
os_ask *os_parking_due(os_parking *parking, uint64_t now, unsigned most);
os_ask *os_parking_all(os_parking *parking);

void os_parking_wake_lookups(os_parking *parking);
/* Those that wait for something between start and end; pack NULL: all. Returns how many. */
unsigned os_parking_wake_reads(os_parking *parking, const uint8_t *pack, uint64_t start, uint64_t end);
/* Those that wait for a boot pack: whether it has grown is for them to see. */
void os_parking_wake_frames(os_parking *parking);
void os_parking_interrupt(os_parking *parking, uint64_t unique);

void os_parking_refuse(os_parking *parking, const os_ask *ask, uint64_t until);
bool os_parking_refuses(const os_parking *parking, const os_ask *ask, uint64_t now);

#endif
