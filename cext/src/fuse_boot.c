/* Boot packs that answer READs: what a start brought, or is bringing at this moment, is not asked for again. */
#include <string.h>

#include "fuse_parts.h"

/* How long one READ waits for frames that seem to be next, however the file grows: then it goes its ordinary way, with
 * most of its deadline left. At 100 Mbit/s what is next comes in less than two seconds. */
#define PATIENCE_NS UINT64_C(5000000000)
#define PATIENCE_PART 4u /* of a short deadline, too */

static uint64_t patience(const os_fuse_server *server) {
    uint64_t part = server->options.deadline_ns / PATIENCE_PART;
    return part < PATIENCE_NS ? part : PATIENCE_NS;
}

os_code os_fuse_server_add_boot(os_fuse_server *server, int fd, size_t head_size, const uint8_t head_digest[OS_ID_SIZE],
                                uint64_t *id, os_failure *failure) {
    os_boot_reads *made;
    os_code code = os_boot_reads_make(server->options.env, fd, head_size, head_digest, &made, failure);
    if (code != OS_OK)
        return code;
    pthread_mutex_lock(&server->lock);
    bool room = server->boots < OS_FUSE_BOOTS_MAX;
    if (room) {
        *id = ++server->last_boot;
        server->boot[server->boots++] = (os_fuse_boot){*id, made};
    }
    pthread_mutex_unlock(&server->lock);
    if (room)
        return OS_OK;
    made->fd = -1; /* it stays the caller's */
    os_boot_reads_drop(made);
    return os_fail(failure, OS_LIMIT, "object server: got a boot pack, want at most %u", OS_FUSE_BOOTS_MAX);
}

void os_fuse_server_remove_boot(os_fuse_server *server, uint64_t id) {
    os_boot_reads *gone = NULL;
    pthread_mutex_lock(&server->lock);
    for (size_t at = 0; at < server->boots && gone == NULL; at++) {
        if (server->boot[at].id != id)
            continue;
        gone = server->boot[at].reads;
        server->boot[at] = server->boot[--server->boots];
    }
    pthread_mutex_unlock(&server->lock);
    os_boot_reads_drop(gone);
}

os_boot_found os_fuse_from_boot(os_fuse_worker *self, const os_node *node, os_ask *ask, size_t size) {
    os_fuse_server *server = self->server;
    os_boot_reads *held[OS_FUSE_BOOTS_MAX];
    size_t count = 0;
    os_boot_found found = OS_BOOT_NOT_HERE;
    uint64_t now = os_fuse_now(server);
    pthread_mutex_lock(&server->lock);
    for (size_t at = 0; at < server->boots; at++) {
        if (!os_boot_reads_knows(server->boot[at].reads, node->object))
            continue;
        held[count++] = server->boot[at].reads;
        os_boot_reads_hold(server->boot[at].reads);
    }
    if (count > 0) {
        ask->arrivals = server->arrivals;
        os_ask_begin(ask);
    }
    pthread_mutex_unlock(&server->lock);
    for (size_t at = 0; at < count; at++) {
        os_failure failure = {0};
        if (found != OS_BOOT_HERE) {
            os_boot_found one = os_boot_reads_read(held[at], node->object, node->size, ask->offset, size,
                                                   self->reply + sizeof(struct fuse_out_header), &failure);
            found = one > found ? one : found;
        }
        if (failure.code != OS_OK)
            os_log_write(&server->log, "%s; it answers nothing from now on", failure.message);
        os_boot_reads_drop(held[at]);
    }
    if (found == OS_BOOT_COMING) {
        if (ask->frames_until == 0)
            ask->frames_until = now + patience(server);
        if (now >= ask->frames_until)
            found = OS_BOOT_NOT_HERE;
    }
    ask->frames = found == OS_BOOT_COMING;
    if (found == OS_BOOT_HERE) {
        atomic_fetch_add(&server->count.boot_reads, 1);
        atomic_fetch_add(&server->count.boot_bytes, size);
    }
    return found;
}
