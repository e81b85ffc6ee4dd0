/* Node ids of objects. An id is a 63-bit hash of the object's id, keyed by the mount's secret: nobody outside can look
 * for two objects that share one. If two do, the second is refused. Nodes are made by LOOKUP and stay as long as the
 * server: FORGET is not counted, because a successor could not go on counting. About 110 bytes each.
 * No lock of its own: the caller holds the server's. */
#ifndef OS_FUSE_NODES_H
#define OS_FUSE_NODES_H

#include <stdatomic.h>
#include <stdint.h>

#include "os_ahead.h"
#include "os_env.h"
#include "os_limits.h"
#include "os_result.h"

typedef struct os_node {
    struct os_node *next;       /* in its bucket */
    uint64_t number, size;      /* immutable */
    uint32_t parts;             /* immutable */
    uint8_t object[OS_ID_SIZE]; /* immutable */
    _Atomic(uint64_t *) starts; /* owned: offsets of the parts and the end; NULL until the first read, then immutable */
    uint64_t image; /* a hint: the image that had it last, and its row there; guarded by the server's lock */
    uint32_t row;
    os_ahead ahead; /* guarded by the server's lock */
} os_node;

typedef struct os_nodes {
    os_node **bucket; /* owned */
    size_t buckets, count;
    uint8_t secret[32]; /* immutable */
} os_nodes;

os_code os_nodes_init(os_nodes *nodes, const uint8_t secret[32], const os_env *env, os_failure *failure);
void os_nodes_destroy(os_nodes *nodes, const os_env *env);
uint64_t os_nodes_number(const os_nodes *nodes, const uint8_t object[OS_ID_SIZE]);
/* Nodes never move and are never freed before the end: a pointer outlives the lock. */
os_node *os_nodes_find(const os_nodes *nodes, uint64_t number);
/* The object's node, made if it is not there. OS_CORRUPT: another object has its number. */
os_code os_nodes_make(os_nodes *nodes, const uint8_t object[OS_ID_SIZE], uint64_t size, uint32_t parts,
                      const os_env *env, os_node **out, os_failure *failure);

#endif
