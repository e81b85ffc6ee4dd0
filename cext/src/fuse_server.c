/* Where things are: requests taken apart in fuse_request.c, LOOKUP and READ in fuse_answer.c, bytes of objects in
 * os_image.c, waiting in fuse_parking.c and fuse_keeper.c, what is asked from outside in fuse_images.c.
 *
 * Threads
 *
 * A worker for each descriptor of the connection. It sleeps in read(2) on its own descriptor, takes one request,
 * answers it on the same descriptor (the kernel accepts the answer nowhere else), and goes back. It never waits for
 * anything but the local disk: a request whose bytes are not here is parked, and the worker goes on.
 * Two keepers. They sleep until something is parked. What became ready they try again at once, a few at a time each;
 * and every TICK_NS one of them looks at all: what is past its deadline is tried once more and answered EIO, and what
 * was interrupted is answered EINTR if its thread is being killed. (Only then: a program with SA_RESTART would see
 * EINTR from open and read otherwise. The kernel tells of the first signal only, so an interrupted request is looked at
 * again every tick.) One of the spans' (os_spans.c), if packs can be far away: it hears from the fetcher, a process of
 * its own, that bytes came, and wakes who waits for them. One that fills the store when nobody waits (os_warm.c), from
 * the first os_fuse_server_prefetch on. Callers of the functions in the header: any thread.
 *
 * Locks
 *
 * server->lock guards the list of images, the nodes' table and hints, the parking and the counts of arrivals. It is
 * held for look-ups in memory, never while anything is read, decoded, hashed, sent or freed.
 * cache.lock, the spans' lock and log.lock are leaves: nothing is locked under them but the log's, and none is taken
 * under server->lock.
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
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fuse_parts.h"

#define WAKE_SIGNAL (SIGRTMIN + 7)
/* A read that waited in vain is tried once more, to say why: what is known about its spans has to be there still. */
#define PATIENCE_MORE_NS UINT64_C(5000000000)

/* ---------------------------------------------------------------------- requests */

bool os_fuse_is_directory(uint64_t node) {
    return node == FUSE_ROOT_ID || (node >= OS_FUSE_DIRECTORY && node < OS_FUSE_DIRECTORY + 256);
}

static void serve_lookup(os_fuse_worker *self, const os_fuse_request *request) {
    os_fuse_server *server = self->server;
    os_ask ask = {.fd = self->fd, .lookup = true, .pid = request->pid, .unique = request->unique};
    uint8_t directory;
    atomic_fetch_add(&server->count.lookups, 1);
    if (request->node == FUSE_ROOT_ID) {
        if (os_fuse_directory_name(request->name.text, request->name.length, &directory))
            os_fuse_reply_entry(server, self->fd, request->unique, OS_FUSE_DIRECTORY + directory,
                                OS_FUSE_DIRECTORY_MODE, 0);
        else
            os_fuse_reply_error(server, self->fd, request->unique, ENOENT);
    } else if (!os_fuse_is_directory(request->node)) {
        os_fuse_reply_error(server, self->fd, request->unique, EIO);
    } else if (os_fuse_object_name((uint8_t)(request->node - OS_FUSE_DIRECTORY), request->name.text,
                                   request->name.length, ask.object)) {
        ask.node = os_nodes_number(&server->nodes, ask.object);
        os_fuse_answer_lookup(server, &ask);
    } else {
        os_fuse_reply_error(server, self->fd, request->unique, ENOENT);
    }
}

static void serve_getattr(os_fuse_worker *self, const os_fuse_request *request) {
    os_fuse_server *server = self->server;
    if (os_fuse_is_directory(request->node)) {
        os_fuse_reply_attr(server, self->fd, request->unique, request->node, OS_FUSE_DIRECTORY_MODE, 0);
        return;
    }
    pthread_mutex_lock(&server->lock);
    const os_node *node = os_nodes_find(&server->nodes, request->node);
    pthread_mutex_unlock(&server->lock);
    if (node != NULL)
        os_fuse_reply_attr(server, self->fd, request->unique, node->number, OS_FUSE_OBJECT_MODE, node->size);
    else
        os_fuse_reply_error(server, self->fd, request->unique, EIO);
}

static void serve_request(os_fuse_worker *self, size_t length) {
    os_fuse_server *server = self->server;
    os_fuse_request request;
    os_failure failure;
    if (os_fuse_decode(self->request, length, &request, &failure) != OS_OK) {
        os_log_write(&server->log, "%s", failure.message);
        if (request.unique != 0)
            os_fuse_reply_error(server, self->fd, request.unique, EIO);
        return;
    }
    if (request.kind == OS_FUSE_READ) {
        os_ask ask = {.fd = self->fd,
                      .pid = request.pid,
                      .unique = request.unique,
                      .node = request.node,
                      .offset = request.read.offset,
                      .size = request.read.size,
                      .began = atomic_load(&server->recording) ? os_fuse_now(server) : 0};
        atomic_fetch_add(&server->count.reads, 1);
        os_fuse_answer_read(self, &ask);
        return;
    }
    if (request.kind == OS_FUSE_LOOKUP) {
        serve_lookup(self, &request);
        return;
    }
    atomic_fetch_add(&server->count.other, 1);
    switch (request.kind) {
    case OS_FUSE_INIT:
        os_fuse_reply_init(server, self->fd, &request);
        break;
    case OS_FUSE_GETATTR:
        serve_getattr(self, &request);
        break;
    case OS_FUSE_STATFS:
        os_fuse_reply_statfs(server, self->fd, request.unique);
        break;
    case OS_FUSE_INTERRUPT:
        atomic_fetch_add(&server->count.interrupts, 1);
        pthread_mutex_lock(&server->lock);
        os_parking_interrupt(&server->parking, request.interrupted);
        server->next_look = 0;
        pthread_cond_signal(&server->parked_changed);
        pthread_mutex_unlock(&server->lock);
        break;
    case OS_FUSE_FORGET:
        break;
    case OS_FUSE_DESTROY:
        os_fuse_reply_error(server, self->fd, request.unique, 0);
        break;
    case OS_FUSE_IOCTL:
        os_fuse_reply_error(server, self->fd, request.unique, ENOTTY);
        break;
    default: /* OPEN and OPENDIR among them: answered so once, they are never sent again */
        os_fuse_reply_error(server, self->fd, request.unique, ENOSYS);
    }
}

static void *worker_main(void *argument) {
    os_fuse_worker *self = argument;
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
            /* Out of memory, perhaps. A thread that left would leave its requests unanswered. */
            struct timespec moment = {0, 10000000};
            os_log_write(&server->log, "read of a request: %s", strerror(errno));
            nanosleep(&moment, NULL);
        }
    }
    atomic_store(&self->left, true);
    return NULL;
}

/* ---------------------------------------------------------------------- life */

static void free_worker(os_fuse_worker *self, const os_env *env) {
    if (self->request != NULL)
        env->release(env->context, self->request);
    if (self->reply != NULL)
        env->release(env->context, self->reply);
    os_reader_destroy(&self->reader, env);
    if (self->fd >= 0)
        env->close(env->context, self->fd);
}

static os_code make_worker(os_fuse_worker *self, os_fuse_server *server, bool keeper, os_failure *failure) {
    const os_env *env = server->options.env;
    self->server = server;
    self->fd = -1;
    self->reply = env->allocate(env->context, sizeof(struct fuse_out_header) + OS_FUSE_READ_MAX);
    if (!keeper)
        self->request = env->allocate(env->context, OS_FUSE_REQUEST_MAX);
    if (self->reply == NULL || (!keeper && self->request == NULL))
        return os_fail(failure, OS_MEMORY, "object server: got no memory for a thread");
    os_code code = os_reader_init(&self->reader, env, failure);
    self->reader.store = server->options.store;
    return code;
}

static void on_bytes(void *context, const uint8_t *blob, uint64_t start, uint64_t end) {
    os_fuse_server *server = context;
    os_fuse_server_wake(server, blob, start, end);
    if (server->warm != NULL)
        os_warm_wake(server->warm);
}

static os_code make_spans(os_fuse_server *server, os_failure *failure) {
    const os_spans_options options = {.env = server->options.env,
                                      .log = &server->log,
                                      .memory = server->options.memory,
                                      .patience_ns = server->options.deadline_ns + PATIENCE_MORE_NS,
                                      .context = server,
                                      .came = on_bytes};
    os_code code = os_spans_make(&options, &server->spans, failure);
    if (code != OS_OK || server->options.store == NULL)
        return code;
    const os_warm_options warm = {.env = server->options.env,
                                  .log = &server->log,
                                  .store = server->options.store,
                                  .spans = server->spans,
                                  .cache = &server->cache};
    return os_warm_make(&warm, &server->warm, failure);
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
    atomic_store(&server->recording, options->profile);
    os_log_init(&server->log, env, options->log);
    os_frame_cache_init(&server->cache, OS_FRAME_CACHE_SLOTS);
    pthread_mutex_init(&server->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&server->parked_changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    os_code code = os_nodes_init(&server->nodes, options->secret, env, failure);
    for (unsigned at = 0; at < options->fd_count + OS_FUSE_KEEPERS && code == OS_OK; at++) {
        server->workers = at + 1;
        code = make_worker(&server->worker[at], server, at >= options->fd_count, failure);
    }
    if (code == OS_OK && options->memory >= 0)
        code = make_spans(server, failure);
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
        os_fuse_worker *self = &server->worker[at];
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
        os_fuse_worker *self = &server->worker[at];
        error = pthread_create(&self->thread, NULL, self->request == NULL ? os_fuse_keeper_main : worker_main, self);
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
    os_warm_stop(server->warm); /* it uses the spans, and is woken by their thread */
    os_spans_free(server->spans);
    os_warm_free(server->warm);
    for (os_ask *ask = os_parking_all(&server->parking), *next; ask != NULL; ask = next) {
        next = ask->next;
        os_fuse_reply_error(server, ask->fd, ask->unique, EIO);
        env->release(env->context, ask);
    }
    for (size_t at = 0; at < server->images; at++)
        os_image_drop(server->image[at], env);
    for (size_t at = 0; at < server->boots; at++)
        os_boot_reads_drop(server->boot[at].reads);
    if (server->image != NULL)
        env->release(env->context, server->image);
    for (unsigned at = 0; at < server->workers; at++)
        free_worker(&server->worker[at], env);
    os_nodes_destroy(&server->nodes, env);
    if (server->touch != NULL)
        env->release(env->context, server->touch);
    if (server->learned != NULL)
        env->release(env->context, server->learned);
    os_frame_cache_destroy(&server->cache, env);
    pthread_cond_destroy(&server->parked_changed);
    pthread_mutex_destroy(&server->lock);
    os_log_destroy(&server->log);
    env->release(env->context, server);
}
