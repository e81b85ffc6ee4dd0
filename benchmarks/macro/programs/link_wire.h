/* One way of a link: packets wait for the wire, are a while on their way, and come out in order. Pure but for the
 * memory of the packets: time is what the caller says, so a test moves the clock by itself. */
#ifndef LINK_WIRE_H
#define LINK_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* As the kernel hands it over: `header` bytes of struct virtio_net_hdr that are on no wire, then the packet. */
typedef struct wire_packet {
    struct wire_packet *next; /* owned by the wire while it is queued */
    uint64_t due;             /* ns: when it comes out */
    size_t size;              /* of data */
    uint8_t data[];
} wire_packet;

/* Times are nanoseconds of one clock that never goes back, sizes bytes. */
typedef struct wire {
    double delay_ns;    /* immutable */
    double ns_per_byte; /* immutable */
    uint64_t room;      /* immutable: what may wait in front of the wire */
    size_t header;      /* immutable */
    double free_ns;     /* when everything that was accepted will have been sent */
    uint64_t dropped;
    wire_packet *first; /* owned; due times ascend */
    wire_packet *last;  /* borrowed, meaningless while first is NULL */
} wire;

/* False: a number that is no delay (seconds), rate (bytes a second) or room. */
bool wire_init(wire *way, double delay_s, double rate, double room, size_t header);

/* A packet at the near end. What finds more than `room` waiting is dropped, as a router drops it; so is one without a
 * memory to hold it. data is copied. size: at least `header`. */
void wire_arrive(wire *way, const uint8_t *data, size_t size, uint64_t now);

/* The next packet whose time has come, now the caller's to free; NULL if there is none yet. */
wire_packet *wire_leave(wire *way, uint64_t now);

/* When the next packet comes out; UINT64_MAX if none is on its way. */
uint64_t wire_next(const wire *way);

void wire_free(wire *way);

#endif
