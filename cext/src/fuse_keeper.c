/* The keepers: what becomes of parked requests. See fuse_server.c. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fuse_parts.h"

#define TICK_NS UINT64_C(50000000)
/* Of reads that wait for a boot pack that comes: it says nothing, its file grows. A mebibyte takes 8 ms at 1 Gbit/s. */
#define FRAMES_TICK_NS UINT64_C(2000000)
#define BATCH 4u /* ready requests that a keeper takes at once, so that the other has some too */

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

void os_fuse_expire(os_fuse_server *server, const os_ask *ask) {
    pthread_mutex_lock(&server->lock);
    os_parking_refuse(&server->parking, ask, os_fuse_now(server) + server->options.fail_fast_ns);
    pthread_mutex_unlock(&server->lock);
    atomic_fetch_add(&server->count.expired, 1);
    os_fuse_fail(server, ask);
}

static void keep(os_fuse_worker *self, os_ask *ask) {
    os_fuse_server *server = self->server;
    uint64_t now = os_fuse_now(server);
    if (!ask->ready && ask->interrupted && is_killed(server, ask->pid)) {
        atomic_fetch_add(&server->count.killed, 1);
        os_fuse_reply_error(server, ask->fd, ask->unique, EINTR);
        return;
    }
    bool late = !ask->ready && ask->deadline <= now;
    if (late && ask->lookup) {
        os_fuse_log_object(server, NULL, ask->object, "looked up, but its tables did not come before the deadline");
        os_fuse_expire(server, ask);
        return;
    }
    ask->last = late;
    /* Ready, or interrupted by a signal that does not kill; something may have arrived while it was out of the list. */
    if (!ask->ready && !late && os_fuse_park(server, ask) == OS_FUSE_PARKED)
        return;
    if (ask->lookup)
        os_fuse_answer_lookup(server, ask);
    else
        os_fuse_answer_read(self, ask);
}

static void wait_a_tick(os_fuse_server *server) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)(server->parking.frames > 0 ? FRAMES_TICK_NS : TICK_NS);
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_cond_timedwait(&server->parked_changed, &server->lock, &until);
}

void *os_fuse_keeper_main(void *argument) {
    os_fuse_worker *self = argument;
    os_fuse_server *server = self->server;
    const os_env *env = server->options.env;
    pthread_mutex_lock(&server->lock);
    while (!atomic_load(&server->stopping)) {
        uint64_t now = os_fuse_now(server);
        bool look = now >= server->next_look;
        if (server->parking.frames > 0 && now >= server->next_frames) {
            os_parking_wake_frames(&server->parking);
            server->next_frames = now + FRAMES_TICK_NS;
        }
        os_ask *due = os_parking_due(&server->parking, look ? now : 0, look ? UINT_MAX : BATCH);
        if (look)
            server->next_look = now + TICK_NS;
        if (due == NULL) {
            if (server->parking.count == 0)
                pthread_cond_wait(&server->parked_changed, &server->lock);
            else
                wait_a_tick(server);
            continue;
        }
        pthread_mutex_unlock(&server->lock);
        while (due != NULL) {
            os_ask ask = *due;
            env->release(env->context, due);
            due = ask.next;
            keep(self, &ask);
        }
        pthread_mutex_lock(&server->lock);
    }
    pthread_mutex_unlock(&server->lock);
    atomic_store(&self->left, true);
    return NULL;
}
