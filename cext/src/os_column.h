/* A growing array of bytes or rows, whose memory comes from an environment. All zero is a valid empty one. */
#ifndef OS_COLUMN_H
#define OS_COLUMN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "os_env.h"

typedef struct os_column {
    uint8_t *data; /* owned; moves when the column grows */
    size_t size, room;
} os_column;

/* false: out of memory, and nothing was changed. grow makes room behind size, append fills it; data may be NULL if
 * size is 0. */
bool os_column_grow(os_column *column, const os_env *env, size_t more);
bool os_column_append(os_column *column, const os_env *env, const void *data, size_t size);
void os_column_free(os_column *column, const os_env *env); /* leaves it empty */

#endif
