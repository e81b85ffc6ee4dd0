/* A set of ids, which are uniform: open addressing needs no hash of its own. All zero is a valid empty one. */
#ifndef OS_ID_SET_H
#define OS_ID_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "os_env.h"
#include "os_limits.h"

typedef struct os_id_set {
    uint8_t *slots; /* owned: OS_ID_SIZE bytes each, all zero is empty */
    size_t room, count;
} os_id_set;

/* *fresh: the id was not in the set, and is now. An id of zeros is that of nothing that can be found. false: out of
 * memory, and nothing was changed. */
bool os_id_set_add(os_id_set *set, const os_env *env, const uint8_t *id, bool *fresh);
void os_id_set_free(os_id_set *set, const os_env *env); /* leaves it empty */

#endif
