/* Threads
 *
 * A worker for each descriptor of the connection. It sleeps in read(2) on its own descriptor, takes one request,
 * answers it on the same descriptor (the kernel accepts the answer nowhere else), and goes back. It never waits for
 * anything but the local disk: a request whose bytes are not here is parked, and the worker goes on.
 * One keeper. It sleeps until something is parked, then looks every TICK_NS: what became ready is tried again, what is
 * past its deadline is answered EIO, and what was interrupted is answered EINTR if its thread is being killed. (Only
 * then: a program with SA_RESTART would see EINTR from open and read otherwise. The kernel tells of the first signal
 * only, so an interrupted request is looked at again every tick.)
 * Callers of the functions in the header: any thread.
 *
 * Locks
 *
 * server->lock guards the list of images, the nodes' table and hints, the parking and the counts of arrivals. It is
 * held for look-ups in memory, never while anything is read, decoded, hashed, sent or freed.
 * cache.lock and log.lock are leaves; neither is taken under server->lock except for a log line's, which is never.
 *
 * What outlives the lock
 *
 * A node is never freed before the server. An image is counted: whoever reads from it holds it, the list holds it too,
 * and the last one to drop it unmaps its tables and closes its packs. Its tables and source are immutable.
 * server->arrivals closes the gap between "it is not here" and "parked": a request remembers the count it was tried at,
 * and is not parked but tried again if it has moved since.
 *
 * Several images may have one object. A READ tries the one that had it last, then each other, and only what none of
 * them has is parked (if one of them may still get it) or EIO. Every failure is a line in the log.
 *
 * End: `stopping` is set, and the workers are sent a signal until they have left; read(2) returns EINTR to them. */
#define _GNU_SOURCE
#include "fuse_server.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuse_nodes.h"
#include "fuse_parking.h"
#include "fuse_request.h"
#include "fuse_wire.h"
#include "os_image.h"
#include "os_log.h"

#define TICK_NS UINT64_C(50000000)
#define YEAR UINT64_C(31536000)
#define READAHEAD_MAX (16u << 20) /* what INIT allows; the bdi of the mount says how much is used */
#define WAKE_SIGNAL (SIGRTMIN + 7)

typedef struct worker {
    os_fuse_server *server; /* borrowed */
    pthread_t thread;
    bool started;
    atomic_bool left;
    int fd;           /* owned; -1: the keeper */
    uint8_t *request; /* owned, OS_FUSE_REQUEST_MAX bytes; NULL: the keeper */
    uint8_t *reply;   /* owned, a fuse_out_header and OS_FUSE_READ_MAX bytes */
    os_reader reader;
} worker;

struct os_fuse_server {
    os_fuse_options options; /* immutable */
    os_log log;
    os_frame_cache cache;
    worker worker[OS_FUSE_THREADS_MAX + 1]; /* the keeper is the last */
    unsigned workers;                       /* immutable, with the keeper */
    atomic_bool stopping;

    pthread_mutex_t lock;
    pthread_cond_t parked_changed;
    os_image **image; /* owned, ascending by id */
    size_t images, images_room;
    uint64_t last_image;
    os_nodes nodes;
    os_parking parking;
    int expected;
    uint64_t arrivals;

    struct {
        atomic_uint_fast64_t lookups, reads, read_bytes, other, errors, parked, expired, interrupts, killed, pack_bytes,
            decoded_bytes, cache_hits, stores, stored_bytes, unmounted;
    } count;
};

static uint64_t now_ns(const os_fuse_server *server) {
    return server->options.env->monotonic_ns(server->options.env->context);
}

static const char *hex(const uint8_t *bytes, size_t size, char *out) {
    for (size_t at = 0; at < size; at++)
        sprintf(out + 2 * at, "%02x", bytes[at]);
    return out;
}

/* ---------------------------------------------------------------------- answers */

/* out: a fuse_out_header in front of size bytes of body. false: the request is gone (killed, or answered before). */
static bool send_reply(os_fuse_server *server, int fd, uint64_t unique, int error, void *out, size_t size) {
    struct fuse_out_header *header = out;
    header->len = (uint32_t)(sizeof *header + size);
    header->error = error;
    header->unique = unique;
    const os_env *env = server->options.env;
    if (env->write(env->context, fd, out, header->len) >= 0)
        return true;
    if (errno != ENOENT && errno != ENODEV && errno != ECONNABORTED)
        os_log_write(&server->log, "reply to request %llu: %s", (unsigned long long)unique, strerror(errno));
    return false;
}

static void send_error(os_fuse_server *server, int fd, uint64_t unique, int error) {
    struct fuse_out_header header;
    send_reply(server, fd, unique, -error, &header, 0);
}

static void fill_attr(struct fuse_attr *attr, uint64_t node, uint32_t mode, uint64_t size) {
    memset(attr, 0, sizeof *attr);
    attr->ino = node;
    attr->mode = mode;
    attr->size = size;
    attr->blocks = (size + 511) / 512;
    attr->nlink = mode & S_IFDIR ? 2 : 1;
    attr->blksize = 4096;
}

static void send_entry(os_fuse_server *server, int fd, uint64_t unique, uint64_t node, uint32_t mode, uint64_t size) {
    struct {
        struct fuse_out_header header;
        struct fuse_entry_out entry;
    } out;
    memset(&out, 0, sizeof out);
    out.entry.nodeid = node;
    out.entry.entry_valid = out.entry.attr_valid = YEAR;
    fill_attr(&out.entry.attr, node, mode, size);
    send_reply(server, fd, unique, 0, &out, sizeof out.entry);
}

static void send_attr(os_fuse_server *server, int fd, uint64_t unique, uint64_t node, uint32_t mode, uint64_t size) {
    struct {
        struct fuse_out_header header;
        struct fuse_attr_out attr;
    } out;
    memset(&out, 0, sizeof out);
    out.attr.attr_valid = YEAR;
    fill_attr(&out.attr.attr, node, mode, size);
    send_reply(server, fd, unique, 0, &out, sizeof out.attr);
}

#define DIRECTORY_MODE (S_IFDIR | 0555)
#define OBJECT_MODE (S_IFREG | 0444)

static bool is_directory(uint64_t node) {
    return node == FUSE_ROOT_ID || (node >= OS_FUSE_DIRECTORY && node < OS_FUSE_DIRECTORY + 256);
}

/* ---------------------------------------------------------------------- images and parking, under the lock */

/* The first image after the one with id `after` that has the object, held; except `not`. */
static os_image *next_image(os_fuse_server *server, const uint8_t *object, uint64_t after, uint64_t not,
                            uint32_t *row) {
    for (size_t at = 0; at < server->images; at++) {
        os_image *image = server->image[at];
        if (image->id <= after || image->id == not || os_tables_find(&image->tables, object, row) != OS_OK)
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

typedef enum parked {
    PARKED,
    PARKED_NOT_RETRY,   /* something arrived meanwhile: try again */
    PARKED_NOT_REFUSED, /* EIO */
} parked;

static parked park(os_fuse_server *server, os_ask *ask) {
    uint64_t now = now_ns(server);
    parked result = PARKED;
    pthread_mutex_lock(&server->lock);
    if (ask->arrivals != server->arrivals) {
        result = PARKED_NOT_RETRY;
    } else if (atomic_load(&server->stopping) || os_parking_refuses(&server->parking, ask, now) ||
               server->parking.count >= OS_FUSE_PARKED_MAX) {
        result = PARKED_NOT_REFUSED;
    } else {
        bool first = ask->deadline == 0;
        if (first)
            ask->deadline = now + server->options.deadline_ns;
        ask->ready = false;
        if (!os_parking_add(&server->parking, ask, server->options.env))
            result = PARKED_NOT_REFUSED;
        else if (first)
            atomic_fetch_add(&server->count.parked, 1);
        pthread_cond_signal(&server->parked_changed);
    }
    pthread_mutex_unlock(&server->lock);
    return result;
}

/* ---------------------------------------------------------------------- LOOKUP */

static void log_object(os_fuse_server *server, const os_image *image, const uint8_t *object, const char *words) {
    char name[65];
    os_log_write(&server->log, "%s: object %s: %s", image != NULL ? image->label : "mount",
                 hex(object, OS_ID_SIZE, name), words);
}

static void fail_ask(os_fuse_server *server, const os_ask *ask) {
    atomic_fetch_add(&server->count.errors, 1);
    send_error(server, ask->fd, ask->unique, EIO);
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
            log_object(server, image, ask->object, failure.message);
    }
    return node;
}

static void answer_lookup(os_fuse_server *server, os_ask *ask) {
    for (;;) {
        bool found, expected;
        os_node *node = look_up(server, ask, &found);
        if (node != NULL) {
            send_entry(server, ask->fd, ask->unique, node->number, OBJECT_MODE, node->size);
            return;
        }
        pthread_mutex_lock(&server->lock);
        expected = server->expected > 0;
        pthread_mutex_unlock(&server->lock);
        if (!found && !expected) {
            send_error(server, ask->fd, ask->unique, ENOENT); /* not cached: an image may come */
            return;
        }
        parked result = found ? PARKED_NOT_REFUSED : park(server, ask);
        if (result == PARKED)
            return;
        if (result == PARKED_NOT_REFUSED) {
            fail_ask(server, ask);
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
        hex(place->chunk, OS_ID_SIZE, chunk);
    if (place->pack != NULL)
        hex(place->pack, OS_ID_SIZE, pack);
    os_log_write(&server->log, "%s: object %s: read of %u bytes at %llu: chunk %s: pack %s at %llu: %s", image->label,
                 hex(node->object, OS_ID_SIZE, object), ask->size, (unsigned long long)ask->offset, chunk, pack,
                 (unsigned long long)place->offset, failure->message);
}

/* One image's try. */
static os_answer read_from(worker *self, os_image *image, os_node *node, uint32_t row, os_ask *ask, size_t size) {
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
    }
    if (answer == OS_ANSWER_FAILED)
        log_failure(server, image, node, ask, &place, &failure);
    if (answer == OS_ANSWER_PENDING && place.pack != NULL)
        memcpy(ask->pack, place.pack, OS_ID_SIZE);
    return answer;
}

static void add_counts(os_fuse_server *server, os_reader *reader) {
    atomic_fetch_add(&server->count.pack_bytes, reader->pack_bytes);
    atomic_fetch_add(&server->count.decoded_bytes, reader->decoded_bytes);
    atomic_fetch_add(&server->count.cache_hits, reader->cache_hits);
    reader->pack_bytes = reader->decoded_bytes = reader->cache_hits = 0;
}

/* Every image's try, the likeliest first; leaves the bytes in self->reply. */
static os_answer read_object(worker *self, os_node *node, os_ask *ask, size_t size) {
    os_fuse_server *server = self->server;
    os_answer best = OS_ANSWER_FAILED;
    uint64_t after = 0, hinted;
    uint32_t row = 0;
    bool any = false;
    pthread_mutex_lock(&server->lock);
    ask->arrivals = server->arrivals;
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
        log_object(server, NULL, node->object, "read, but no image has it any more");
    return best;
}

static void answer_read(worker *self, os_ask *ask) {
    os_fuse_server *server = self->server;
    pthread_mutex_lock(&server->lock);
    os_node *node = os_nodes_find(&server->nodes, ask->node);
    pthread_mutex_unlock(&server->lock);
    if (node == NULL) {
        os_log_write(&server->log, "mount: read of node %llx, which nobody looked up", (unsigned long long)ask->node);
        fail_ask(server, ask);
        return;
    }
    size_t size = 0;
    if (ask->offset < node->size)
        size = node->size - ask->offset < ask->size ? (size_t)(node->size - ask->offset) : ask->size;
    for (;;) {
        os_answer answer = size == 0 ? OS_ANSWER_HERE : read_object(self, node, ask, size);
        add_counts(server, &self->reader);
        if (answer == OS_ANSWER_HERE) {
            atomic_fetch_add(&server->count.read_bytes, size);
            send_reply(server, ask->fd, ask->unique, 0, self->reply, size);
            return;
        }
        parked result = answer == OS_ANSWER_PENDING ? park(server, ask) : PARKED_NOT_REFUSED;
        if (result == PARKED)
            return;
        if (result == PARKED_NOT_REFUSED) {
            fail_ask(server, ask);
            return;
        }
    }
}

/* ---------------------------------------------------------------------- requests */

static void serve_init(worker *self, const os_fuse_request *request) {
    struct {
        struct fuse_out_header header;
        struct fuse_init_out init;
    } out;
    static const uint64_t wanted = FUSE_ASYNC_READ | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES | FUSE_NO_OPEN_SUPPORT |
                                   FUSE_NO_OPENDIR_SUPPORT | FUSE_EXPLICIT_INVAL_DATA | FUSE_INIT_EXT |
                                   OS_FUSE_HAS_RESEND;
    memset(&out, 0, sizeof out);
    if (request->init.major != FUSE_KERNEL_VERSION) {
        os_log_write(&self->server->log, "INIT: got protocol %u.%u, want 7.x", request->init.major,
                     request->init.minor);
        send_error(self->server, self->fd, request->unique, EPROTO);
        return;
    }
    uint64_t flags = wanted & request->init.flags;
    long page = sysconf(_SC_PAGESIZE);
    out.init.major = FUSE_KERNEL_VERSION;
    out.init.minor = request->init.minor;
    out.init.max_readahead = READAHEAD_MAX;
    out.init.flags = (uint32_t)flags;
    out.init.flags2 = (uint32_t)(flags >> 32);
    out.init.max_background = out.init.congestion_threshold = 65535;
    out.init.max_write = OS_FUSE_READ_MAX;
    out.init.time_gran = 1;
    out.init.max_pages = (uint16_t)(page > 4096 ? OS_FUSE_READ_MAX / page : OS_FUSE_PAGES_MAX);
    send_reply(self->server, self->fd, request->unique, 0, &out, sizeof out.init);
}

static void serve_lookup(worker *self, const os_fuse_request *request) {
    os_fuse_server *server = self->server;
    os_ask ask = {.fd = self->fd, .lookup = true, .pid = request->pid, .unique = request->unique};
    uint8_t directory;
    atomic_fetch_add(&server->count.lookups, 1);
    if (request->node == FUSE_ROOT_ID) {
        if (os_fuse_directory_name(request->name.text, request->name.length, &directory))
            send_entry(server, self->fd, request->unique, OS_FUSE_DIRECTORY + directory, DIRECTORY_MODE, 0);
        else
            send_error(server, self->fd, request->unique, ENOENT);
    } else if (!is_directory(request->node)) {
        send_error(server, self->fd, request->unique, EIO);
    } else if (os_fuse_object_name((uint8_t)(request->node - OS_FUSE_DIRECTORY), request->name.text,
                                   request->name.length, ask.object)) {
        ask.node = os_nodes_number(&server->nodes, ask.object);
        answer_lookup(server, &ask);
    } else {
        send_error(server, self->fd, request->unique, ENOENT);
    }
}

static void serve_getattr(worker *self, const os_fuse_request *request) {
    os_fuse_server *server = self->server;
    if (is_directory(request->node)) {
        send_attr(server, self->fd, request->unique, request->node, DIRECTORY_MODE, 0);
        return;
    }
    pthread_mutex_lock(&server->lock);
    const os_node *node = os_nodes_find(&server->nodes, request->node);
    pthread_mutex_unlock(&server->lock);
    if (node != NULL)
        send_attr(server, self->fd, request->unique, node->number, OBJECT_MODE, node->size);
    else
        send_error(server, self->fd, request->unique, EIO);
}

static void serve_statfs(worker *self, const os_fuse_request *request) {
    struct {
        struct fuse_out_header header;
        struct fuse_statfs_out statfs;
    } out;
    memset(&out, 0, sizeof out);
    out.statfs.st.bsize = out.statfs.st.frsize = 4096;
    out.statfs.st.namelen = 2 * OS_ID_SIZE;
    send_reply(self->server, self->fd, request->unique, 0, &out, sizeof out.statfs);
}

static void serve_request(worker *self, size_t length) {
    os_fuse_server *server = self->server;
    os_fuse_request request;
    os_failure failure;
    if (os_fuse_decode(self->request, length, &request, &failure) != OS_OK) {
        os_log_write(&server->log, "%s", failure.message);
        if (request.unique != 0)
            send_error(server, self->fd, request.unique, EIO);
        return;
    }
    if (request.kind == OS_FUSE_READ) {
        os_ask ask = {.fd = self->fd,
                      .pid = request.pid,
                      .unique = request.unique,
                      .node = request.node,
                      .offset = request.read.offset,
                      .size = request.read.size};
        atomic_fetch_add(&server->count.reads, 1);
        answer_read(self, &ask);
        return;
    }
    if (request.kind == OS_FUSE_LOOKUP) {
        serve_lookup(self, &request);
        return;
    }
    atomic_fetch_add(&server->count.other, 1);
    switch (request.kind) {
    case OS_FUSE_INIT:
        serve_init(self, &request);
        break;
    case OS_FUSE_GETATTR:
        serve_getattr(self, &request);
        break;
    case OS_FUSE_STATFS:
        serve_statfs(self, &request);
        break;
    case OS_FUSE_INTERRUPT:
        atomic_fetch_add(&server->count.interrupts, 1);
        pthread_mutex_lock(&server->lock);
        os_parking_interrupt(&server->parking, request.interrupted);
        pthread_cond_signal(&server->parked_changed);
        pthread_mutex_unlock(&server->lock);
        break;
    case OS_FUSE_FORGET:
        break;
    case OS_FUSE_DESTROY:
        send_error(server, self->fd, request.unique, 0);
        break;
    case OS_FUSE_IOCTL:
        send_error(server, self->fd, request.unique, ENOTTY);
        break;
    default: /* OPEN and OPENDIR among them: answered so once, they are never sent again */
        send_error(server, self->fd, request.unique, ENOSYS);
    }
}

static void *worker_main(void *argument) {
    worker *self = argument;
    os_fuse_server *server = self->server;
    const os_env *env = server->options.env;
    while (!atomic_load(&server->stopping)) {
        ssize_t got = env->read(env->context, self->fd, self->request, OS_FUSE_REQUEST_MAX);
        if (got >= 0) {
            serve_request(self, (size_t)got);
        } else if (errno == ENODEV || errno == ECONNABORTED) {
            if (atomic_exchange(&server->count.unmounted, 1) == 0 && server->options.hangup >= 0) {
                uint64_t one = 1;
                if (env->write(env->context, server->options.hangup, &one, sizeof one) < 0)
                    os_log_write(&server->log, "hang-up: %s", strerror(errno));
            }
            break;
        } else if (errno != EINTR && errno != EAGAIN && errno != ENOENT) {
            os_log_write(&server->log, "read of a request: %s", strerror(errno));
            break;
        }
    }
    atomic_store(&self->left, true);
    return NULL;
}

/* ---------------------------------------------------------------------- keeper */

/* Whether SIGKILL is pending for the thread or its process. */
static bool is_killed(const os_fuse_server *server, uint32_t pid) {
    static const char *const fields[] = {"\nSigPnd:", "\nShdPnd:"};
    const os_env *env = server->options.env;
    char path[32], text[4096];
    if (pid == 0 || server->options.proc < 0)
        return false;
    snprintf(path, sizeof path, "%u/status", pid);
    int fd = env->openat(env->context, server->options.proc, path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return false;
    ssize_t got = env->read(env->context, fd, text, sizeof text - 1);
    env->close(env->context, fd);
    text[got > 0 ? got : 0] = '\0';
    for (unsigned at = 0; at < 2; at++) {
        const char *field = strstr(text, fields[at]);
        if (field != NULL && (strtoull(field + strlen(fields[at]), NULL, 16) >> (SIGKILL - 1) & 1))
            return true;
    }
    return false;
}

static void expire(os_fuse_server *server, os_ask *ask, uint64_t now) {
    char pack[65];
    pthread_mutex_lock(&server->lock);
    os_parking_refuse(&server->parking, ask, now + server->options.fail_fast_ns);
    pthread_mutex_unlock(&server->lock);
    atomic_fetch_add(&server->count.expired, 1);
    if (ask->lookup)
        log_object(server, NULL, ask->object, "looked up, but its tables did not come before the deadline");
    else
        os_log_write(&server->log, "mount: read of node %llx at %llu: pack %s did not come before the deadline",
                     (unsigned long long)ask->node, (unsigned long long)ask->offset, hex(ask->pack, OS_ID_SIZE, pack));
    fail_ask(server, ask);
}

static void keep(worker *self, os_ask *ask) {
    os_fuse_server *server = self->server;
    uint64_t now = now_ns(server);
    if (!ask->ready && ask->interrupted && is_killed(server, ask->pid)) {
        atomic_fetch_add(&server->count.killed, 1);
        send_error(server, ask->fd, ask->unique, EINTR);
        return;
    }
    if (!ask->ready && ask->deadline <= now) {
        expire(server, ask, now);
        return;
    }
    /* Ready, or interrupted by a signal that does not kill; something may have arrived while it was out of the list. */
    if (!ask->ready && park(server, ask) == PARKED)
        return;
    if (ask->lookup)
        answer_lookup(server, ask);
    else
        answer_read(self, ask);
}

static void wait_a_tick(os_fuse_server *server) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)TICK_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_cond_timedwait(&server->parked_changed, &server->lock, &until);
}

static void *keeper_main(void *argument) {
    worker *self = argument;
    os_fuse_server *server = self->server;
    const os_env *env = server->options.env;
    pthread_mutex_lock(&server->lock);
    while (!atomic_load(&server->stopping)) {
        os_ask *due = os_parking_due(&server->parking, now_ns(server));
        pthread_mutex_unlock(&server->lock);
        while (due != NULL) {
            os_ask ask = *due;
            env->release(env->context, due);
            due = ask.next;
            keep(self, &ask);
        }
        pthread_mutex_lock(&server->lock);
        if (atomic_load(&server->stopping))
            break;
        if (server->parking.count == 0)
            pthread_cond_wait(&server->parked_changed, &server->lock);
        else
            wait_a_tick(server);
    }
    pthread_mutex_unlock(&server->lock);
    atomic_store(&self->left, true);
    return NULL;
}

/* ---------------------------------------------------------------------- life */

static void free_worker(worker *self, const os_env *env) {
    if (self->request != NULL)
        env->release(env->context, self->request);
    if (self->reply != NULL)
        env->release(env->context, self->reply);
    os_reader_destroy(&self->reader, env);
    if (self->fd >= 0)
        env->close(env->context, self->fd);
}

static os_code make_worker(worker *self, os_fuse_server *server, bool keeper, os_failure *failure) {
    const os_env *env = server->options.env;
    self->server = server;
    self->fd = -1;
    self->reply = env->allocate(env->context, sizeof(struct fuse_out_header) + OS_FUSE_READ_MAX);
    if (!keeper)
        self->request = env->allocate(env->context, OS_FUSE_REQUEST_MAX);
    if (self->reply == NULL || (!keeper && self->request == NULL))
        return os_fail(failure, OS_MEMORY, "object server: got no memory for a thread");
    return os_reader_init(&self->reader, env, failure);
}

os_code os_fuse_server_make(const os_fuse_options *options, os_fuse_server **out, os_failure *failure) {
    const os_env *env = options->env;
    if (options->fd_count == 0 || options->fd_count > OS_FUSE_THREADS_MAX)
        return os_fail(failure, OS_LIMIT, "object server: got %u descriptors, want 1 to %u", options->fd_count,
                       OS_FUSE_THREADS_MAX);
    os_fuse_server *server = env->allocate(env->context, sizeof *server);
    if (server == NULL)
        return os_fail(failure, OS_MEMORY, "object server: got no memory");
    memset(server, 0, sizeof *server);
    server->options = *options;
    server->options.fds = NULL;
    os_log_init(&server->log, env, options->log);
    os_frame_cache_init(&server->cache);
    pthread_mutex_init(&server->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&server->parked_changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    os_code code = os_nodes_init(&server->nodes, options->secret, env, failure);
    for (unsigned at = 0; at <= options->fd_count && code == OS_OK; at++) {
        server->workers = at + 1;
        code = make_worker(&server->worker[at], server, at == options->fd_count, failure);
    }
    if (code != OS_OK) {
        os_fuse_server_free(server);
        return code;
    }
    for (unsigned at = 0; at < options->fd_count; at++)
        server->worker[at].fd = options->fds[at];
    *out = server;
    return OS_OK;
}

static void on_wake_signal(int number) {
    (void)number;
}

static void stop_threads(os_fuse_server *server) {
    pthread_mutex_lock(&server->lock);
    atomic_store(&server->stopping, true);
    pthread_cond_broadcast(&server->parked_changed);
    pthread_mutex_unlock(&server->lock);
    for (unsigned at = 0; at < server->workers; at++) {
        worker *self = &server->worker[at];
        if (!self->started)
            continue;
        /* A signal that comes just before read(2) is lost on it, so it is sent until the thread has left. */
        while (!atomic_load(&self->left)) {
            if (self->fd >= 0)
                pthread_kill(self->thread, WAKE_SIGNAL);
            struct timespec moment = {0, 1000000};
            nanosleep(&moment, NULL);
        }
        pthread_join(self->thread, NULL);
        self->started = false;
    }
}

os_code os_fuse_server_start(os_fuse_server *server, os_failure *failure) {
    struct sigaction action = {.sa_handler = on_wake_signal}; /* without SA_RESTART: read(2) has to return */
    sigset_t all, before;
    if (server->worker[0].started || atomic_load(&server->stopping))
        return os_fail(failure, OS_CLOSED, "object server: started before");
    sigaction(WAKE_SIGNAL, &action, NULL);
    sigfillset(&all);
    sigdelset(&all, WAKE_SIGNAL);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the caller's other signals stay with the caller's threads */
    int error = 0;
    for (unsigned at = 0; at < server->workers && error == 0; at++) {
        worker *self = &server->worker[at];
        error = pthread_create(&self->thread, NULL, self->request == NULL ? keeper_main : worker_main, self);
        self->started = error == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error == 0)
        return OS_OK;
    stop_threads(server);
    return os_fail_errno(failure, error, "object server: thread: %s", strerror(error));
}

void os_fuse_server_free(os_fuse_server *server) {
    if (server == NULL)
        return;
    const os_env *env = server->options.env;
    stop_threads(server);
    for (os_ask *ask = os_parking_all(&server->parking), *next; ask != NULL; ask = next) {
        next = ask->next;
        send_error(server, ask->fd, ask->unique, EIO);
        env->release(env->context, ask);
    }
    for (size_t at = 0; at < server->images; at++)
        os_image_drop(server->image[at], env);
    if (server->image != NULL)
        env->release(env->context, server->image);
    for (unsigned at = 0; at < server->workers; at++)
        free_worker(&server->worker[at], env);
    os_nodes_destroy(&server->nodes, env);
    os_frame_cache_destroy(&server->cache, env);
    pthread_cond_destroy(&server->parked_changed);
    pthread_mutex_destroy(&server->lock);
    os_log_destroy(&server->log);
    env->release(env->context, server);
}

/* ---------------------------------------------------------------------- from outside */

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
        os_parking_wake_reads(&server->parking, NULL);
        pthread_cond_signal(&server->parked_changed);
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
        os_parking_wake_reads(&server->parking, NULL);
        pthread_cond_signal(&server->parked_changed);
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

void os_fuse_server_wake(os_fuse_server *server, const uint8_t pack[OS_ID_SIZE]) {
    pthread_mutex_lock(&server->lock);
    server->arrivals++;
    os_parking_wake_reads(&server->parking, pack);
    pthread_cond_signal(&server->parked_changed);
    pthread_mutex_unlock(&server->lock);
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
        .stores = atomic_load(&server->count.stores),
        .stored_bytes = atomic_load(&server->count.stored_bytes),
        .unmounted = atomic_load(&server->count.unmounted),
    };
    pthread_mutex_lock(&server->lock);
    out->parked_now = server->parking.count;
    out->images = server->images;
    out->objects = server->nodes.count;
    pthread_mutex_unlock(&server->lock);
}
