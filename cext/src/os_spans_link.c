/* The thread that listens to the fetcher, and what is said to it. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "os_link.h"
#include "os_spans_parts.h"

#define TICK_MS 500
#define PAUSE_NS UINT64_C(200000000) /* after a fetcher gave something back */
#define IDLE_NS UINT64_C(2000000000)

void os_spans_wake(os_spans *spans) {
    uint64_t one = 1;
    (void)!spans->env->write(spans->env->context, spans->wake, &one, sizeof one);
}

/* false: it cannot be told now; its end is noticed by the thread. */
bool os_spans_tell(os_spans *spans, const os_span *it, os_link_kind kind) {
    os_link_want want;
    memset(&want, 0, sizeof want);
    want.kind = kind;
    want.slot = it->slot;
    want.ticket = it->ticket;
    memcpy(want.digest, it->blob.digest, OS_ID_SIZE);
    want.blob_size = it->blob.size;
    want.origin = it->blob.origin;
    want.offset = it->index * OS_FETCH_SPAN;
    want.length = it->length;
    want.prefetch = it->prefetch;
    want.rejected = it->rejected;
    want.avoid = it->source;
    struct iovec part = {&want, sizeof want};
    struct msghdr packet = {.msg_iov = &part, .msg_iovlen = 1}; /* sendmsg: the process may make no other such call */
    return sendmsg(spans->sock, &packet, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)sizeof want;
}

/* Gives slots to those first in line. */
void os_spans_send_queued(os_spans *spans) {
    uint64_t now = os_spans_now(spans);
    for (int kind = 0; kind < 2 && spans->sock >= 0 && spans->ready && spans->pause_until <= now; kind++) {
        while (spans->first[kind] != NULL) {
            uint32_t slot = os_spans_free_slot(spans, now, kind == 1);
            if (slot == OS_SLOTS)
                return;
            os_span *it = spans->first[kind];
            os_spans_dequeue(spans, it);
            it->slot = slot;
            it->ticket = ++spans->last_ticket;
            it->cancelled = false;
            if (!os_spans_tell(spans, it, OS_LINK_WANT)) {
                os_spans_enqueue(spans, it, true);
                return;
            }
            it->state = FLYING;
            spans->slot[slot] = it;
            spans->count.flying++;
        }
    }
}

/* Back into the queue, without its slot. */
void os_spans_take_back(os_spans *spans, os_span *it) {
    if (it->state == FLYING)
        spans->count.flying--;
    spans->slot[it->slot] = NULL;
    it->ticket = 0;
    os_spans_enqueue(spans, it, true);
}

/* ---------------------------------------------------------------------- from the fetcher */

static os_span *flying(os_spans *spans, uint64_t ticket) {
    for (unsigned at = 0; at < OS_SLOTS; at++)
        if (spans->slot[at] != NULL && spans->slot[at]->state == FLYING && spans->slot[at]->ticket == ticket)
            return spans->slot[at];
    return NULL;
}

/* What the fetcher before this one left on the socket the new one has heard, too: a want that nobody counts on any more
 * would keep its slot for as long as its origin is away. */
static void take_all_back(os_spans *spans) {
    for (unsigned at = 0; at < OS_SLOTS; at++) {
        os_span *it = spans->slot[at];
        if (it == NULL || it->state != FLYING)
            continue;
        if (spans->sock >= 0)
            os_spans_tell(spans, it, OS_LINK_CANCEL);
        os_spans_take_back(spans, it);
    }
}

/* Lock held. Whether those who wait for a span have to look again; then *what is a copy of it. */
static bool take_answer(os_spans *spans, const os_link_answer *answer, os_span *what) {
    if (answer->kind == OS_LINK_HELLO) {
        take_all_back(spans); /* it knows nothing of what the one before it was asked for */
        spans->ready = answer->code == OS_LINK_VERSION;
        spans->count.links++;
        return false;
    }
    os_span *it = flying(spans, answer->ticket);
    if (it == NULL || (answer->kind != OS_LINK_TRY && answer->kind != OS_LINK_DONE))
        return false;
    bool first = answer->cause[0] != '\0' && it->cause[0] == '\0';
    if (answer->cause[0] != '\0')
        snprintf(it->cause, sizeof it->cause, "%.*s", (int)sizeof it->cause - 1, answer->cause);
    *what = *it;
    if (answer->kind == OS_LINK_TRY || answer->code != OS_OK)
        it->foreign = false;
    if (answer->kind == OS_LINK_TRY)
        return what->foreign || first; /* who has another origin, or another image, asks there */
    if (answer->code != OS_OK) {
        bool dropped = it->cancelled;
        os_spans_take_back(spans, it);
        if (dropped)
            os_spans_forget(spans, it);
        else
            spans->pause_until = os_spans_now(spans) + PAUSE_NS;
        return what->foreign || first;
    }
    spans->count.flying--;
    spans->count.fetched++;
    spans->count.fetched_bytes += it->length;
    it->state = HERE;
    it->source = answer->source;
    it->used = os_spans_now(spans);
    it->held = it->prefetch ? 0 : it->used + OS_SPANS_HOLD_NS;
    return true;
}

/* Cancels what nobody has asked for in a long time. */
static void cancel_old(os_spans *spans) {
    uint64_t now = os_spans_now(spans), patience = spans->options.patience_ns;
    for (unsigned at = 0; at < OS_SPANS_MAX; at++) {
        os_span *it = &spans->span[at];
        bool ahead = it->state == QUEUED && it->prefetch; /* it had no turn in all that time: the reader has moved on */
        uint64_t most = ahead && patience > OS_SPANS_HOLD_NS ? OS_SPANS_HOLD_NS : patience;
        if ((it->state != QUEUED && it->state != FLYING) || it->wanted + most > now)
            continue;
        if (it->state == QUEUED)
            os_spans_forget(spans, it);
        else if (!it->cancelled)
            it->cancelled = os_spans_tell(spans, it, OS_LINK_CANCEL);
    }
}

/* Nobody has wanted anything for a while: what was read is in the page cache, or in the store, so the memory goes back.
 */
static void give_memory_back(os_spans *spans) {
    uint64_t now = os_spans_now(spans);
    bool used = false, busy = spans->count.queued > 0;
    for (unsigned at = 0; at < OS_SLOTS; at++) {
        const os_span *it = spans->slot[at];
        used = used || it != NULL;
        busy = busy || (it != NULL && (!os_spans_may_go(it, now) || it->used + IDLE_NS > now));
    }
    if (!used || busy)
        return;
    for (unsigned at = 0; at < OS_SLOTS; at++)
        if (spans->slot[at] != NULL)
            os_spans_forget(spans, spans->slot[at]);
    madvise(spans->memory, OS_SLOTS_SIZE, MADV_REMOVE); /* if it cannot, it cannot */
}

static void unlink_fetcher(os_spans *spans) {
    os_log_write(spans->options.log, "the fetcher is gone; what it was asked for waits for another");
    spans->env->close(spans->env->context, spans->sock);
    spans->sock = -1;
    spans->ready = false;
    take_all_back(spans);
}

/* One packet. false: the fetcher is gone. */
static bool hear(os_spans *spans, int sock) {
    os_link_answer answer;
    os_span what;
    struct iovec part = {&answer, sizeof answer};
    struct msghdr packet = {.msg_iov = &part, .msg_iovlen = 1};
    ssize_t got = recvmsg(sock, &packet, MSG_DONTWAIT);
    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return true;
    if (got <= 0)
        return false;
    if (got != (ssize_t)sizeof answer)
        return true;
    answer.cause[sizeof answer.cause - 1] = '\0';
    pthread_mutex_lock(&spans->lock);
    bool came = take_answer(spans, &answer, &what), starved = came && spans->starved;
    if (starved)
        spans->starved = false;
    os_spans_send_queued(spans);
    pthread_mutex_unlock(&spans->lock);
    if (starved) {
        spans->options.came(spans->options.context, NULL, 0, 0);
    } else if (came) {
        uint64_t start = what.index * OS_FETCH_SPAN;
        spans->options.came(spans->options.context, what.blob.digest, start, start + what.length);
    }
    return true;
}

void *os_spans_main(void *argument) {
    os_spans *spans = argument;
    uint64_t next_tick = 0;
    uint64_t woken;
    pthread_mutex_lock(&spans->lock);
    while (!spans->stopping) {
        struct pollfd watch[2] = {{.fd = spans->wake, .events = POLLIN}, {.fd = spans->sock, .events = POLLIN}};
        pthread_mutex_unlock(&spans->lock);
        poll(watch, 2, TICK_MS);
        if (watch[0].revents != 0)
            (void)!spans->env->read(spans->env->context, spans->wake, &woken, sizeof woken);
        bool there = watch[1].revents == 0 || hear(spans, watch[1].fd);
        pthread_mutex_lock(&spans->lock);
        if (!there)
            unlink_fetcher(spans);
        if (os_spans_now(spans) >= next_tick) {
            cancel_old(spans);
            os_spans_send_queued(spans); /* what was held may go by now */
            give_memory_back(spans);
            next_tick = os_spans_now(spans) + TICK_MS * UINT64_C(1000000);
        }
    }
    pthread_mutex_unlock(&spans->lock);
    return NULL;
}
