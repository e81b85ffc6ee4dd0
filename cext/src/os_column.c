#include "os_column.h"

#include <string.h>

#define FIRST_ROOM 4096u

bool os_column_grow(os_column *column, const os_env *env, size_t more) {
    if (column->room - column->size >= more)
        return true;
    size_t room = column->room ? column->room : FIRST_ROOM;
    while (room - column->size < more) {
        if (room > SIZE_MAX / 2)
            return false;
        room *= 2;
    }
    uint8_t *data = env->reallocate(env->context, column->data, room);
    if (!data)
        return false;
    column->data = data;
    column->room = room;
    return true;
}

bool os_column_append(os_column *column, const os_env *env, const void *data, size_t size) {
    if (size == 0)
        return true;
    if (!os_column_grow(column, env, size))
        return false;
    memcpy(column->data + column->size, data, size);
    column->size += size;
    return true;
}

void os_column_free(os_column *column, const os_env *env) {
    if (column->data)
        env->release(env->context, column->data);
    *column = (os_column){0};
}
