/* What starts read, in the order of the first reading: a megabyte of it at most, however long a container runs. The
 * pages that a reader finds in the page cache are not among it: the kernel does not ask for them. */
#include <string.h>

#include "fuse_parts.h"

#define PAGE UINT64_C(4096)
#define LAST 8u /* entries that a read may continue: that many files are read at once */

struct os_fuse_learned {
    const os_node *node; /* borrowed: nodes are never freed before the server */
    uint32_t page, pages;
};

/* Lock held. Room for one more; false: no more is kept. */
static bool grow(os_fuse_server *server) {
    const os_env *env = server->options.env;
    if (server->learned_count < server->learned_room)
        return true;
    if (server->learned_room >= OS_FUSE_LEARNED_MAX)
        return false;
    size_t room = server->learned_room == 0 ? 512 : 2 * server->learned_room;
    os_fuse_learned *grown = env->allocate(env->context, room * sizeof *grown);
    if (grown == NULL)
        return false;
    if (server->learned_count > 0)
        memcpy(grown, server->learned, server->learned_count * sizeof *grown);
    if (server->learned != NULL)
        env->release(env->context, server->learned);
    server->learned = grown;
    server->learned_room = room;
    return true;
}

void os_fuse_learn(os_fuse_server *server, const os_node *node, uint64_t offset, size_t size) {
    uint64_t first = offset / PAGE, pages = (offset % PAGE + size + PAGE - 1) / PAGE;
    if (first > UINT32_MAX || pages > UINT32_MAX)
        return;
    pthread_mutex_lock(&server->lock);
    for (size_t back = 1; back <= LAST && back <= server->learned_count; back++) {
        os_fuse_learned *it = &server->learned[server->learned_count - back];
        if (it->node != node || (uint64_t)it->page + it->pages != first || it->pages > UINT32_MAX - pages)
            continue;
        it->pages += (uint32_t)pages;
        pthread_mutex_unlock(&server->lock);
        return;
    }
    if (atomic_load(&server->learning) && grow(server))
        server->learned[server->learned_count++] =
            (os_fuse_learned){.node = node, .page = (uint32_t)first, .pages = (uint32_t)pages};
    pthread_mutex_unlock(&server->lock);
}

void os_fuse_server_learn(os_fuse_server *server, bool on) {
    const os_env *env = server->options.env;
    os_fuse_learned *old = NULL;
    pthread_mutex_lock(&server->lock);
    atomic_store(&server->learning, on);
    if (!on) {
        old = server->learned;
        server->learned = NULL;
        server->learned_count = server->learned_room = 0;
    }
    pthread_mutex_unlock(&server->lock);
    if (old != NULL)
        env->release(env->context, old);
}

size_t os_fuse_server_learned(os_fuse_server *server, uint64_t id, size_t *next, os_warm_run *out, size_t room) {
    os_image *image = NULL;
    size_t count = 0;
    os_fuse_learned batch[256];
    uint32_t row;
    pthread_mutex_lock(&server->lock);
    for (size_t at = 0; at < server->images && image == NULL; at++)
        if (server->image[at]->id == id)
            image = server->image[at];
    if (image != NULL)
        os_image_hold(image);
    pthread_mutex_unlock(&server->lock);
    if (image == NULL)
        return 0;
    while (count < room) {
        size_t most = room - count < 256 ? room - count : 256, got = 0;
        pthread_mutex_lock(&server->lock);
        if (*next < server->learned_count) {
            got = server->learned_count - *next < most ? server->learned_count - *next : most;
            memcpy(batch, server->learned + *next, got * sizeof batch[0]);
        }
        pthread_mutex_unlock(&server->lock);
        if (got == 0)
            break;
        *next += got;
        for (size_t at = 0; at < got; at++) {
            const os_fuse_learned *it = &batch[at];
            uint64_t offset = it->page * PAGE;
            if (offset >= it->node->size || os_tables_find(&image->tables, it->node->object, &row) != OS_OK)
                continue; /* another image's, of the same domain */
            uint64_t length = it->pages * PAGE, left = it->node->size - offset;
            os_warm_run *run = &out[count++];
            memcpy(run->object, it->node->object, OS_ID_SIZE);
            run->offset = offset;
            run->length = length < left ? length : left;
        }
    }
    os_image_drop(image, server->options.env);
    return count;
}
