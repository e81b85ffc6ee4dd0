#include "fuse_nodes.h"

#include <string.h>

#include "fuse_wire.h"
#include "os_hash.h"

#define BUCKETS_FIRST 1024u

static os_node **make_buckets(size_t count, const os_env *env) {
    os_node **bucket = env->allocate(env->context, count * sizeof *bucket);
    for (size_t at = 0; bucket != NULL && at < count; at++)
        bucket[at] = NULL;
    return bucket;
}

os_code os_nodes_init(os_nodes *nodes, const uint8_t secret[32], const os_env *env, os_failure *failure) {
    nodes->bucket = make_buckets(BUCKETS_FIRST, env);
    if (nodes->bucket == NULL)
        return os_fail(failure, OS_MEMORY, "nodes: got no memory");
    nodes->buckets = BUCKETS_FIRST;
    nodes->count = 0;
    memcpy(nodes->secret, secret, sizeof nodes->secret);
    return OS_OK;
}

void os_nodes_destroy(os_nodes *nodes, const os_env *env) {
    for (size_t at = 0; at < nodes->buckets; at++) {
        for (os_node *node = nodes->bucket[at], *next; node != NULL; node = next) {
            next = node->next;
            uint64_t *starts = atomic_load(&node->starts);
            if (starts != NULL)
                env->release(env->context, starts);
            env->release(env->context, node);
        }
    }
    if (nodes->bucket != NULL)
        env->release(env->context, nodes->bucket);
    memset(nodes, 0, sizeof *nodes);
}

uint64_t os_nodes_number(const os_nodes *nodes, const uint8_t object[OS_ID_SIZE]) {
    uint8_t keyed[64], hash[32];
    uint64_t number;
    memcpy(keyed, nodes->secret, 32);
    memcpy(keyed + 32, object, OS_ID_SIZE);
    os_blake3(keyed, sizeof keyed, hash);
    memcpy(&number, hash, sizeof number);
    number >>= 1;
    return number < OS_FUSE_OBJECT ? number + OS_FUSE_OBJECT : number;
}

os_node *os_nodes_find(const os_nodes *nodes, uint64_t number) {
    os_node *node = nodes->bucket[number & (nodes->buckets - 1)];
    while (node != NULL && node->number != number)
        node = node->next;
    return node;
}

static void grow(os_nodes *nodes, const os_env *env) {
    size_t buckets = nodes->buckets * 2;
    os_node **bucket = make_buckets(buckets, env);
    if (bucket == NULL)
        return; /* longer chains, nothing worse */
    for (size_t at = 0; at < nodes->buckets; at++) {
        for (os_node *node = nodes->bucket[at], *next; node != NULL; node = next) {
            next = node->next;
            os_node **place = &bucket[node->number & (buckets - 1)];
            node->next = *place;
            *place = node;
        }
    }
    env->release(env->context, nodes->bucket);
    nodes->bucket = bucket;
    nodes->buckets = buckets;
}

os_code os_nodes_make(os_nodes *nodes, const uint8_t object[OS_ID_SIZE], uint64_t size, uint32_t parts,
                      const os_env *env, os_node **out, os_failure *failure) {
    uint64_t number = os_nodes_number(nodes, object);
    os_node *node = os_nodes_find(nodes, number);
    if (node != NULL && memcmp(node->object, object, OS_ID_SIZE) != 0)
        return os_fail(failure, OS_CORRUPT, "its node id is another object's");
    if (node == NULL) {
        node = env->allocate(env->context, sizeof *node);
        if (node == NULL)
            return os_fail(failure, OS_MEMORY, "got no memory for a node");
        memset(node, 0, sizeof *node);
        node->number = number;
        node->size = size;
        node->parts = parts;
        memcpy(node->object, object, OS_ID_SIZE);
        if (nodes->count >= nodes->buckets)
            grow(nodes, env);
        os_node **place = &nodes->bucket[number & (nodes->buckets - 1)];
        node->next = *place;
        *place = node;
        nodes->count++;
    }
    *out = node;
    return OS_OK;
}
