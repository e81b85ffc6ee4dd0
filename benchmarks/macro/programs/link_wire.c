/* A packet is on the wire for size / rate, after those before it; then it travels for the delay, which packets share.
 * So it comes out at max(wire free, now) + size / rate + delay. `free_ns` is all that has to be kept: what waits is
 * (free - now) * rate. An idle wire saves nothing up: a burst after silence is as slow as any other. */
#include "link_wire.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

bool wire_init(wire *way, double delay_s, double rate, double room, size_t header) {
    if (!(delay_s >= 0 && delay_s <= 3600) || !(rate >= 1 && rate <= 1e12) || !(room >= 0 && room <= 1e12))
        return false;
    *way = (wire){
        .delay_ns = round(delay_s * 1e9),
        .ns_per_byte = 1e9 / rate,
        .room = (uint64_t)room,
        .header = header,
    };
    return true;
}

void wire_arrive(wire *way, const uint8_t *data, size_t size, uint64_t now) {
    double on_wire = (double)(size - way->header);
    double begins = fmax(way->free_ns, (double)now);
    double waiting = (begins - (double)now) / way->ns_per_byte;
    wire_packet *packet = waiting + on_wire > (double)way->room ? NULL : malloc(sizeof *packet + size);
    if (!packet) {
        way->dropped++;
        return;
    }
    way->free_ns = begins + on_wire * way->ns_per_byte;
    packet->next = NULL;
    packet->due = (uint64_t)ceil(way->free_ns + way->delay_ns);
    packet->size = size;
    memcpy(packet->data, data, size);
    if (way->first)
        way->last->next = packet;
    else
        way->first = packet;
    way->last = packet;
}

wire_packet *wire_leave(wire *way, uint64_t now) {
    wire_packet *packet = way->first;
    if (!packet || packet->due > now)
        return NULL;
    way->first = packet->next;
    return packet;
}

uint64_t wire_next(const wire *way) {
    return way->first ? way->first->due : UINT64_MAX;
}

void wire_free(wire *way) {
    for (wire_packet *packet; (packet = wire_leave(way, UINT64_MAX));)
        free(packet);
}
