/* What is asked of the server from outside: images come and go, packs arrive, pages are pushed, counts are read. */
#include <errno.h>
#include <string.h>

#include "fuse_parts.h"

/* Room for one more image. The lock is held. */
static bool grow_images(os_fuse_server *server) {
    const os_env *env = server->options.env;
    if (server->images < server->images_room)
        return true;
    size_t room = server->images_room == 0 ? 16 : 2 * server->images_room;
    os_image **grown = env->allocate(env->context, room * sizeof *grown);
    if (grown == NULL)
        return false;
    if (server->images > 0)
        memcpy(grown, server->image, server->images * sizeof *grown);
    if (server->image != NULL)
        env->release(env->context, server->image);
    server->image = grown;
    server->images_room = room;
    return true;
}

os_code os_fuse_server_add(os_fuse_server *server, void *mapping, size_t size, os_source source, const char *label,
                           bool expected, uint64_t *id, os_failure *failure) {
    os_image *image;
    os_code code =
        os_image_make(server->options.env, 0, mapping, size, server->options.unmap, source, label, &image, failure);
    if (code != OS_OK)
        return code;
    pthread_mutex_lock(&server->lock);
    bool room = grow_images(server);
    if (room) {
        *id = image->id = ++server->last_image;
        server->image[server->images++] = image;
        server->arrivals++;
        if (expected)
            server->expected--;
        os_parking_wake_lookups(&server->parking);
        os_parking_wake_reads(&server->parking, NULL, 0, 0);
        pthread_cond_broadcast(&server->parked_changed);
    }
    pthread_mutex_unlock(&server->lock);
    if (room)
        return OS_OK;
    image->unmap = NULL; /* what was not taken stays the caller's */
    image->source.release = NULL;
    os_image_drop(image, server->options.env);
    return os_fail(failure, OS_MEMORY, "object server: got no memory for an image");
}

os_code os_fuse_server_remove(os_fuse_server *server, uint64_t id, os_failure *failure) {
    os_image *image = NULL;
    pthread_mutex_lock(&server->lock);
    for (size_t at = 0; at < server->images; at++) {
        if (server->image[at]->id != id)
            continue;
        image = server->image[at];
        memmove(&server->image[at], &server->image[at + 1], (--server->images - at) * sizeof *server->image);
        server->arrivals++; /* who waits for one of its packs has to see that it is gone */
        os_parking_wake_reads(&server->parking, NULL, 0, 0);
        pthread_cond_broadcast(&server->parked_changed);
        break;
    }
    pthread_mutex_unlock(&server->lock);
    if (image == NULL)
        return os_fail(failure, OS_MISSING, "object server: got image %llu, which is not there",
                       (unsigned long long)id);
    os_frame_cache_forget(&server->cache, id);
    os_image_drop(image, server->options.env);
    return OS_OK;
}

void os_fuse_server_expect(os_fuse_server *server, int change) {
    pthread_mutex_lock(&server->lock);
    server->expected += change;
    if (change < 0) {
        server->arrivals++;
        os_parking_wake_lookups(&server->parking);
        pthread_cond_signal(&server->parked_changed);
    }
    pthread_mutex_unlock(&server->lock);
}

void os_fuse_server_wake(os_fuse_server *server, const uint8_t *pack, uint64_t start, uint64_t end) {
    pthread_mutex_lock(&server->lock);
    server->arrivals++;
    unsigned woken = os_parking_wake_reads(&server->parking, pack, start, end);
    if (woken > 1)
        pthread_cond_broadcast(&server->parked_changed);
    else if (woken == 1)
        pthread_cond_signal(&server->parked_changed);
    pthread_mutex_unlock(&server->lock);
}

bool os_fuse_server_link(os_fuse_server *server, int sock) {
    if (server->spans != NULL)
        return os_spans_link(server->spans, sock);
    server->options.env->close(server->options.env->context, sock);
    return false;
}

os_spans *os_fuse_server_spans(os_fuse_server *server) {
    return server->spans; /* immutable */
}

os_code os_fuse_server_prefetch(os_fuse_server *server, uint64_t id, const os_warm_run *runs, size_t count,
                                uint64_t budget, uint64_t wait_ns, os_failure *failure) {
    os_image *image = NULL;
    pthread_mutex_lock(&server->lock);
    for (size_t at = 0; at < server->images && image == NULL; at++)
        if (server->image[at]->id == id)
            image = server->image[at];
    if (image != NULL)
        os_image_hold(image);
    pthread_mutex_unlock(&server->lock);
    if (image == NULL)
        return os_fail(failure, OS_MISSING, "object server: got image %llu, which is not there",
                       (unsigned long long)id);
    os_code code = OS_OK;
    if (server->warm != NULL && budget > 0)
        code = os_warm_add(server->warm, image, runs, count, budget, wait_ns, failure);
    os_image_drop(image, server->options.env);
    return code;
}

uint64_t os_fuse_server_node(const os_fuse_server *server, const uint8_t object[OS_ID_SIZE]) {
    return os_nodes_number(&server->nodes, object); /* the secret is immutable */
}

os_code os_fuse_server_store(os_fuse_server *server, const uint8_t object[OS_ID_SIZE], uint64_t offset,
                             const void *data, size_t size, size_t *stored, os_failure *failure) {
    const os_env *env = server->options.env;
    *stored = 0;
    pthread_mutex_lock(&server->lock);
    const os_node *node = os_nodes_find(&server->nodes, os_nodes_number(&server->nodes, object));
    pthread_mutex_unlock(&server->lock);
    if (node == NULL || memcmp(node->object, object, OS_ID_SIZE) != 0)
        return os_fail(failure, OS_MISSING, "store: got an object that was not looked up");
    if (offset >= node->size) /* a byte past the end would make the file longer for everyone */
        return OS_OK;
    if (size > node->size - offset)
        size = (size_t)(node->size - offset);
    if (size > OS_FUSE_READ_MAX)
        size = OS_FUSE_READ_MAX;
    struct {
        struct fuse_out_header header;
        struct fuse_notify_store_out store;
    } head;
    memset(&head, 0, sizeof head);
    head.header.len = (uint32_t)(sizeof head + size);
    head.header.error = FUSE_NOTIFY_STORE;
    head.store.nodeid = node->number;
    head.store.offset = offset;
    head.store.size = (uint32_t)size;
    const struct iovec parts[2] = {{&head, sizeof head}, {(void *)data, size}};
    if (env->writev(env->context, server->worker[0].fd, parts, 2) < 0) {
        if (errno == ENOENT)
            return os_fail(failure, OS_MISSING, "store: got an object that the kernel does not know");
        return os_fail_errno(failure, errno, "store: %s", strerror(errno));
    }
    *stored = size;
    atomic_fetch_add(&server->count.stores, 1);
    atomic_fetch_add(&server->count.stored_bytes, size);
    return OS_OK;
}

void os_fuse_server_record(os_fuse_server *server, bool on) {
    const os_env *env = server->options.env;
    os_fuse_touch *old = NULL;
    pthread_mutex_lock(&server->lock);
    atomic_store(&server->recording, on);
    if (!on) {
        old = server->touch;
        server->touch = NULL;
        server->touches = server->touches_room = 0;
    }
    pthread_mutex_unlock(&server->lock);
    if (old != NULL)
        env->release(env->context, old);
}

void os_fuse_record(os_fuse_server *server, const os_node *node, const os_ask *ask, size_t size, os_fuse_from from) {
    const os_env *env = server->options.env;
    uint64_t now = os_fuse_now(server);
    pthread_mutex_lock(&server->lock);
    if (!atomic_load(&server->recording)) { /* it was turned off in between: the next one starts with none */
        pthread_mutex_unlock(&server->lock);
        return;
    }
    if (server->touches == server->touches_room && server->touches < OS_FUSE_TOUCHES_MAX) {
        size_t room = server->touches_room == 0 ? 4096 : 2 * server->touches_room;
        os_fuse_touch *grown = env->allocate(env->context, room * sizeof *grown);
        if (grown != NULL) {
            if (server->touches > 0)
                memcpy(grown, server->touch, server->touches * sizeof *grown);
            if (server->touch != NULL)
                env->release(env->context, server->touch);
            server->touch = grown;
            server->touches_room = room;
        }
    }
    if (server->touches < server->touches_room) {
        os_fuse_touch *touch = &server->touch[server->touches++];
        memcpy(touch->object, node->object, OS_ID_SIZE);
        touch->offset = ask->offset;
        touch->size = (uint32_t)size;
        touch->from = from;
        touch->began = ask->began != 0 ? ask->began : now;
        touch->ended = now;
    }
    pthread_mutex_unlock(&server->lock);
}

size_t os_fuse_server_touches(os_fuse_server *server, size_t first, os_fuse_touch *out, size_t room) {
    pthread_mutex_lock(&server->lock);
    size_t count = server->touches;
    if (first < count)
        memcpy(out, server->touch + first, (count - first < room ? count - first : room) * sizeof *out);
    pthread_mutex_unlock(&server->lock);
    return count;
}

void os_fuse_server_statistics(os_fuse_server *server, os_fuse_statistics *out) {
    *out = (os_fuse_statistics){
        .lookups = atomic_load(&server->count.lookups),
        .reads = atomic_load(&server->count.reads),
        .read_bytes = atomic_load(&server->count.read_bytes),
        .other = atomic_load(&server->count.other),
        .errors = atomic_load(&server->count.errors),
        .parked = atomic_load(&server->count.parked),
        .expired = atomic_load(&server->count.expired),
        .killed = atomic_load(&server->count.killed),
        .interrupts = atomic_load(&server->count.interrupts),
        .pack_bytes = atomic_load(&server->count.pack_bytes),
        .decoded_bytes = atomic_load(&server->count.decoded_bytes),
        .cache_hits = atomic_load(&server->count.cache_hits),
        .kept_bytes = atomic_load(&server->count.kept_bytes),
        .keeps = atomic_load(&server->count.keeps),
        .stores = atomic_load(&server->count.stores),
        .stored_bytes = atomic_load(&server->count.stored_bytes),
        .boot_reads = atomic_load(&server->count.boot_reads),
        .boot_bytes = atomic_load(&server->count.boot_bytes),
        .unmounted = atomic_load(&server->count.unmounted),
    };
    if (server->spans != NULL)
        os_spans_statistics_of(server->spans, &out->spans);
    if (server->warm != NULL)
        os_warm_statistics_of(server->warm, &out->warm);
    pthread_mutex_lock(&server->lock);
    out->parked_now = server->parking.count;
    out->images = server->images;
    out->objects = server->nodes.count;
    pthread_mutex_unlock(&server->lock);
}
