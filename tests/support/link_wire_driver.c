/* Feeds benchmarks/macro/programs/link_wire.c from stdin, on a clock that only the lines move:
 *
 *     link_wire_driver DELAY-S RATE ROOM
 *     a SIZE NOW     a packet of SIZE bytes arrives; prints when the last one accepted comes out, or "dropped"
 *     l NOW          prints the numbers of the packets whose time has come, counted from 0 as they arrived
 *     n              prints when the next one comes out, or "none" */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "link_wire.h"

enum { HEADER = 10, LARGEST = 1 << 17 };

static void arrive(wire *way, uint64_t number, size_t size, uint64_t now) {
    static uint8_t data[HEADER + LARGEST];
    uint64_t dropped = way->dropped;
    memcpy(data, &number, sizeof number);
    wire_arrive(way, data, HEADER + size, now);
    if (way->dropped > dropped)
        puts("dropped");
    else
        printf("%" PRIu64 "\n", way->last->due);
}

static void leave(wire *way, uint64_t now) {
    uint64_t number;
    for (wire_packet *packet; (packet = wire_leave(way, now)); free(packet)) {
        memcpy(&number, packet->data, sizeof number);
        printf("%" PRIu64 " ", number);
    }
    puts("");
}

int main(int count, char **words) {
    wire way;
    uint64_t now, size, arrived = 0;
    char line[80];
    if (count != 4 || !wire_init(&way, atof(words[1]), atof(words[2]), atof(words[3]), HEADER))
        return fprintf(stderr, "link_wire_driver: no such link\n"), 2;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "a %" SCNu64 " %" SCNu64, &size, &now) == 2 && size <= LARGEST)
            arrive(&way, arrived++, size, now);
        else if (sscanf(line, "l %" SCNu64, &now) == 1)
            leave(&way, now);
        else if (wire_next(&way) == UINT64_MAX)
            puts("none");
        else
            printf("%" PRIu64 "\n", wire_next(&way));
    }
    wire_free(&way);
    return 0;
}
