/* The two roads that may end in waiting: a LOOKUP, whose answer needs an image's tables, and a READ, whose answer needs
 * its packs. Both are walked by a worker first, and again by the keeper for what was parked. */
#include <errno.h>
#include <string.h>

#include "fuse_parts.h"

uint64_t os_fuse_now(const os_fuse_server *server) {
    return server->options.env->monotonic_ns(server->options.env->context);
}

const char *os_fuse_hex(const uint8_t *bytes, size_t size, char *out) {
    static const char digits[] = "0123456789abcdef";
    for (size_t at = 0; at < size; at++) {
        out[2 * at] = digits[bytes[at] >> 4];
        out[2 * at + 1] = digits[bytes[at] & 15];
    }
    out[2 * size] = '\0';
    return out;
}

/* ---------------------------------------------------------------------- images and parking */

/* The first image after the one with id `after` that has the object, held; except `not`. */
static os_image *next_image(os_fuse_server *server, const uint8_t *object, uint64_t after, uint64_t not,
                            uint32_t *row) {
    for (size_t at = 0; at < server->images; at++) {
        os_image *image = server->image[at];
        if (image->id <= after || image->id == not|| os_tables_find(&image->tables, object, row) != OS_OK)
            continue;
        os_image_hold(image);
        return image;
    }
    return NULL;
}

static os_image *hinted_image(os_fuse_server *server, const os_node *node, uint32_t *row) {
    for (size_t at = 0; at < server->images; at++) {
        if (server->image[at]->id != node->image)
            continue;
        *row = node->row;
        os_image_hold(server->image[at]);
        return server->image[at];
    }
    return NULL;
}

os_fuse_parked os_fuse_park(os_fuse_server *server, os_ask *ask) {
    uint64_t now = os_fuse_now(server);
    os_fuse_parked result = OS_FUSE_PARKED;
    bool full = false;
    pthread_mutex_lock(&server->lock);
    if (ask->arrivals != server->arrivals) {
        result = OS_FUSE_PARKED_NOT_RETRY;
    } else if (server->parking.count >= OS_FUSE_PARKED_MAX) {
        full = true;
        result = OS_FUSE_PARKED_NOT_REFUSED;
    } else if (atomic_load(&server->stopping) || os_parking_refuses(&server->parking, ask, now)) {
        result = OS_FUSE_PARKED_NOT_REFUSED;
    } else {
        bool first = ask->deadline == 0;
        if (first)
            ask->deadline = now + server->options.deadline_ns;
        ask->ready = false;
        if (!os_parking_add(&server->parking, ask, server->options.env))
            result = OS_FUSE_PARKED_NOT_REFUSED;
        else if (first)
            atomic_fetch_add(&server->count.parked, 1);
        pthread_cond_signal(&server->parked_changed);
    }
    pthread_mutex_unlock(&server->lock);
    if (full)
        os_log_write(&server->log, "mount: got %u requests that wait, want no more", OS_FUSE_PARKED_MAX);
    return result;
}

/* ---------------------------------------------------------------------- LOOKUP */

void os_fuse_log_object(os_fuse_server *server, const os_image *image, const uint8_t *object, const char *words) {
    char name[65];
    os_log_write(&server->log, "%s: object %s: %s", image != NULL ? image->label : "mount",
                 os_fuse_hex(object, OS_ID_SIZE, name), words);
}

void os_fuse_fail(os_fuse_server *server, const os_ask *ask) {
    atomic_fetch_add(&server->count.errors, 1);
    os_fuse_reply_error(server, ask->fd, ask->unique, EIO);
}

/* The node of an object that an image has, or NULL with *found saying whether one claimed to have it. */
static os_node *look_up(os_fuse_server *server, os_ask *ask, bool *found) {
    os_failure failure = {0};
    os_node *node = NULL;
    os_image *image;
    uint32_t row;
    *found = false;
    for (uint64_t after = 0; node == NULL; after = image->id, os_image_drop(image, server->options.env)) {
        pthread_mutex_lock(&server->lock);
        ask->arrivals = server->arrivals;
        image = next_image(server, ask->object, after, 0, &row);
        pthread_mutex_unlock(&server->lock);
        if (image == NULL)
            return NULL;
        *found = true;
        if (os_image_check(image, row, &failure) == OS_OK) {
            const os_tables *t = &image->tables;
            pthread_mutex_lock(&server->lock);
            if (os_nodes_make(&server->nodes, ask->object, t->object_size[row],
                              t->object_ref[row + 1] - t->object_ref[row], server->options.env, &node,
                              &failure) == OS_OK) {
                node->image = image->id;
                node->row = row;
            }
            pthread_mutex_unlock(&server->lock);
        }
        if (node == NULL)
            os_fuse_log_object(server, image, ask->object, failure.message);
    }
    return node;
}

void os_fuse_answer_lookup(os_fuse_server *server, os_ask *ask) {
    for (;;) {
        bool found, expected;
        os_node *node = look_up(server, ask, &found);
        if (node != NULL) {
            os_fuse_reply_entry(server, ask->fd, ask->unique, node->number, OS_FUSE_OBJECT_MODE, node->size);
            return;
        }
        pthread_mutex_lock(&server->lock);
        expected = server->expected > 0;
        pthread_mutex_unlock(&server->lock);
        if (!found && !expected) {
            os_fuse_reply_error(server, ask->fd, ask->unique, ENOENT); /* not cached: an image may come */
            return;
        }
        os_fuse_parked result = found ? OS_FUSE_PARKED_NOT_REFUSED : os_fuse_park(server, ask);
        if (result == OS_FUSE_PARKED)
            return;
        if (result == OS_FUSE_PARKED_NOT_REFUSED) {
            os_fuse_fail(server, ask);
            return;
        }
    }
}

/* ---------------------------------------------------------------------- READ */

/* Where the object's parts start: for one part in two, for more made at the first read. NULL: no memory. */
static const uint64_t *part_starts(os_fuse_server *server, os_node *node, const os_image *image, uint32_t row,
                                   uint64_t two[2]) {
    if (node->parts == 1) {
        two[0] = 0;
        two[1] = node->size;
        return two;
    }
    uint64_t *starts = atomic_load(&node->starts);
    if (starts != NULL)
        return starts;
    const os_env *env = server->options.env;
    starts = env->allocate(env->context, ((size_t)node->parts + 1) * sizeof *starts);
    if (starts == NULL)
        return NULL;
    const os_tables *t = &image->tables;
    uint64_t at = 0;
    for (uint32_t part = 0; part < node->parts; part++) {
        uint32_t chunk = t->ref[t->object_ref[row] + part];
        starts[part] = at;
        at += chunk < t->chunk_count ? os_tables_length(t, chunk) : 0;
    }
    starts[node->parts] = node->size;
    uint64_t *none = NULL;
    if (atomic_compare_exchange_strong(&node->starts, &none, starts))
        return starts;
    env->release(env->context, starts);
    return none;
}

static void log_failure(os_fuse_server *server, const os_image *image, const os_node *node, const os_ask *ask,
                        const os_place *place, const os_failure *failure) {
    char object[65], chunk[65] = "?", pack[65] = "?";
    if (place->chunk != NULL)
        os_fuse_hex(place->chunk, OS_ID_SIZE, chunk);
    if (place->pack != NULL)
        os_fuse_hex(place->pack, OS_ID_SIZE, pack);
    os_log_write(&server->log, "%s: object %s: read of %u bytes at %llu: chunk %s: pack %s at %llu: %s", image->label,
                 os_fuse_hex(node->object, OS_ID_SIZE, object), ask->size, (unsigned long long)ask->offset, chunk, pack,
                 (unsigned long long)place->offset, failure->message);
}

/* Puts the deadline before the cause, if one is known. */
static void say_late(os_failure *failure) {
    char cause[sizeof failure->message];
    memcpy(cause, failure->message, sizeof cause);
    os_fail(failure, OS_MISSING, "did not come before the deadline%s%.180s", cause[0] != '\0' ? ": " : "", cause);
}

/* One image's try. The reader becomes passive if the bytes are on their way to it, and nothing speaks against that they
 * come: then those that have the object too need not fetch it as well. */
static os_answer read_from(os_fuse_worker *self, os_image *image, os_node *node, uint32_t row, os_ask *ask,
                           size_t size) {
    os_fuse_server *server = self->server;
    os_failure failure = {0};
    os_place place = {0};
    os_answer answer = OS_ANSWER_FAILED;
    uint64_t two[2];
    const uint64_t *starts;
    if (os_image_check(image, row, &failure) != OS_OK ||
        image->tables.object_ref[row + 1] - image->tables.object_ref[row] != node->parts) {
        if (failure.code == OS_OK)
            os_fail(&failure, OS_CORRUPT, "the tables have changed");
    } else if ((starts = part_starts(server, node, image, row, two)) == NULL) {
        os_fail(&failure, OS_MEMORY, "got no memory");
    } else {
        answer = os_image_read(image, row, starts, ask->offset, size, self->reply + sizeof(struct fuse_out_header),
                               &self->reader, &server->cache, server->options.env, &place, &failure);
        if (ask->ahead < ask->ahead_end && answer != OS_ANSWER_FAILED)
            os_image_want_ahead(image, row, starts, ask->ahead, ask->ahead_end, &self->reader, &server->cache,
                                server->options.env);
        ask->ahead = ask->ahead_end = 0;
    }
    if (answer == OS_ANSWER_PENDING && ask->last)
        say_late(&failure);
    if (answer == OS_ANSWER_FAILED || (answer == OS_ANSWER_PENDING && ask->last))
        log_failure(server, image, node, ask, &place, &failure);
    if (answer == OS_ANSWER_PENDING && !self->reader.passive) {
        os_ask_waits(ask, place.pack, place.offset, place.offset + place.size);
        self->reader.passive = image->source.want != NULL && failure.code == OS_OK;
    }
    return answer;
}

static void add_counts(os_fuse_server *server, os_reader *reader) {
    atomic_fetch_add(&server->count.pack_bytes, reader->pack_bytes);
    atomic_fetch_add(&server->count.decoded_bytes, reader->decoded_bytes);
    atomic_fetch_add(&server->count.cache_hits, reader->cache_hits);
    atomic_fetch_add(&server->count.kept_bytes, reader->kept_bytes);
    atomic_fetch_add(&server->count.keeps, reader->keeps);
    reader->pack_bytes = reader->decoded_bytes = reader->cache_hits = reader->kept_bytes = reader->keeps = 0;
}

/* Every image's try, the likeliest first; leaves the bytes in self->reply. */
static os_answer read_object(os_fuse_worker *self, os_node *node, os_ask *ask, size_t size) {
    os_fuse_server *server = self->server;
    os_answer best = OS_ANSWER_FAILED;
    uint64_t after = 0, hinted;
    uint32_t row = 0;
    bool any = false;
    self->reader.passive = false;
    pthread_mutex_lock(&server->lock);
    ask->arrivals = server->arrivals;
    os_ask_begin(ask);
    os_ahead_note(&node->ahead, ask->offset, size, node->size, &ask->ahead, &ask->ahead_end);
    hinted = node->image;
    os_image *image = hinted_image(server, node, &row);
    if (image == NULL)
        image = next_image(server, node->object, 0, hinted, &row);
    pthread_mutex_unlock(&server->lock);
    while (image != NULL) {
        any = true;
        os_answer answer = read_from(self, image, node, row, ask, size);
        if (answer == OS_ANSWER_PENDING)
            best = answer;
        uint64_t id = image->id;
        os_image_drop(image, server->options.env);
        if (id != hinted)
            after = id;
        if (answer == OS_ANSWER_HERE && id == hinted)
            return answer;
        pthread_mutex_lock(&server->lock);
        if (answer == OS_ANSWER_HERE) {
            node->image = id;
            node->row = row;
        } else {
            image = next_image(server, node->object, after, hinted, &row);
        }
        pthread_mutex_unlock(&server->lock);
        if (answer == OS_ANSWER_HERE)
            return answer;
    }
    if (!any)
        os_fuse_log_object(server, NULL, node->object, "read, but no image has it any more");
    return best;
}

/* Before the reader's counts are taken away. */
static os_fuse_from source_of(const os_reader *reader, const os_ask *ask) {
    if (ask->deadline != 0)
        return OS_FUSE_FROM_WAITING;
    if (reader->pack_bytes > 0)
        return OS_FUSE_FROM_PACK;
    return reader->kept_bytes > 0 ? OS_FUSE_FROM_STORE : OS_FUSE_FROM_MEMORY;
}

void os_fuse_answer_read(os_fuse_worker *self, os_ask *ask) {
    os_fuse_server *server = self->server;
    pthread_mutex_lock(&server->lock);
    os_node *node = os_nodes_find(&server->nodes, ask->node);
    pthread_mutex_unlock(&server->lock);
    if (node == NULL) {
        os_log_write(&server->log, "mount: read of node %llx, which nobody looked up", (unsigned long long)ask->node);
        os_fuse_fail(server, ask);
        return;
    }
    size_t size = 0;
    if (ask->offset < node->size)
        size = node->size - ask->offset < ask->size ? (size_t)(node->size - ask->offset) : ask->size;
    for (;;) {
        os_boot_found boot = size == 0 || ask->last ? OS_BOOT_NOT_HERE : os_fuse_from_boot(self, node, ask, size);
        os_answer answer = size == 0 || boot == OS_BOOT_HERE ? OS_ANSWER_HERE
                           : boot == OS_BOOT_COMING          ? OS_ANSWER_PENDING
                                                             : read_object(self, node, ask, size);
        os_fuse_from from = source_of(&self->reader, ask);
        if (boot == OS_BOOT_HERE && from == OS_FUSE_FROM_MEMORY)
            from = OS_FUSE_FROM_STORE;
        add_counts(server, &self->reader);
        if (answer == OS_ANSWER_HERE) {
            atomic_fetch_add(&server->count.read_bytes, size);
            if (size > 0 && atomic_load(&server->learning))
                os_fuse_learn(server, node, ask->offset, size);
            if (size > 0 && atomic_load(&server->recording))
                os_fuse_record(server, node, ask, size, from);
            os_fuse_reply(server, ask->fd, ask->unique, 0, self->reply, size);
            return;
        }
        if (answer == OS_ANSWER_PENDING && ask->last) {
            os_fuse_expire(server, ask);
            return;
        }
        os_fuse_parked result = answer == OS_ANSWER_PENDING ? os_fuse_park(server, ask) : OS_FUSE_PARKED_NOT_REFUSED;
        if (result == OS_FUSE_PARKED)
            return;
        if (result == OS_FUSE_PARKED_NOT_REFUSED) {
            os_fuse_fail(server, ask);
            return;
        }
    }
}
