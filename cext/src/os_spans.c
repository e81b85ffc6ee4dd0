/* A span is OS_FETCH_SPAN bytes of a blob, from a multiple of that on; the last one of a blob is shorter.
 *
 *     (absent) ──want──► QUEUED ──a slot is free, a fetcher is there──► FLYING ──► HERE ──► (absent)
 *                          ▲  ▲                                           │         │
 *                          │  └── the fetcher is gone, or gave it back ───┘         │
 *                          └────────────── its bytes turned out wrong ──────────────┘
 *
 * Threads
 *
 * One of its own: the link's. It reads what the fetcher says, hands out slots, and each TICK looks for spans that
 * nobody has asked for as long as a reader would wait; these it cancels. And when nothing was wanted for a while it
 * gives the memory back. Readers of the object server: any number.
 *
 * The lock
 *
 * spans->lock guards everything but the bytes in the slots. It is held for look-ups, for sending a packet of 120 bytes
 * that never blocks, never while bytes are copied: who copies has the span in use (users), and a span in use keeps its
 * slot. `came` is called without it.
 *
 * Whose turn it is
 *
 * Slots go to spans in the order in which they were wanted, demands before prefetches. A read may need several spans at
 * once, and the one that is here must not make room for what the next reader wants while the other one is on its way:
 * a span that was wanted and not read since is held for HOLD_NS. As slots are handed out in order, the first in line
 * always gets all that it needs, reads it, and makes room. */
#define _GNU_SOURCE
#include "os_spans.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "os_link.h"

#define TICK_MS 500
#define HOLD_NS UINT64_C(5000000000)
#define PAUSE_NS UINT64_C(200000000) /* after a fetcher gave something back */
#define IDLE_NS UINT64_C(2000000000)
#define BUCKETS 1024u

typedef enum span_state { ABSENT, QUEUED, FLYING, HERE } span_state;

typedef struct span {
    struct span *chain;           /* in its bucket, or among the unused */
    struct span *next, *previous; /* in the queue */
    span_state state;
    os_blob blob;
    uint64_t index;
    uint32_t length, slot;
    bool prefetch, cancelled;
    bool doomed; /* wrong, but still being copied: goes back when users is 0 */
    unsigned users;
    uint32_t rejected, source;
    uint64_t ticket, wanted, used, held; /* ticket: of the flight. times; held: until then it stays */
    char cause[OS_FETCH_CAUSE_MAX];
} span;

struct os_spans {
    os_spans_options options; /* immutable */
    const os_env *env;        /* immutable */
    uint8_t *memory;          /* immutable; the slots */
    pthread_t thread;
    int wake; /* owned: an eventfd that wakes the thread */

    pthread_mutex_t lock; /* guards what follows */
    bool stopping;
    int sock;             /* owned, -1: no fetcher */
    bool ready;           /* it said hello */
    bool starved;         /* somebody waits for a span that had no place here */
    uint64_t pause_until; /* nothing is asked for before */
    span *bucket[BUCKETS];
    span *unused;
    span *first[2], *last[2]; /* the queues: demands, prefetches */
    span *slot[OS_SLOTS];     /* who has it; NULL: free */
    uint64_t last_ticket;
    os_spans_statistics count;
    span span[OS_SPANS_MAX];
};

static uint64_t now_of(const os_spans *spans) {
    return spans->env->monotonic_ns(spans->env->context);
}

/* ---------------------------------------------------------------------- the table */

static span **bucket_of(os_spans *spans, const uint8_t *digest, uint64_t index) {
    uint64_t key;
    memcpy(&key, digest, sizeof key);
    return &spans->bucket[(key ^ index) % BUCKETS];
}

static span *find(os_spans *spans, const os_blob *blob, uint64_t index) {
    span *it = *bucket_of(spans, blob->digest, index);
    while (it != NULL && (it->index != index || memcmp(it->blob.digest, blob->digest, OS_ID_SIZE) != 0))
        it = it->chain;
    return it;
}

static void enqueue(os_spans *spans, span *it, bool in_front) {
    int kind = it->prefetch;
    it->state = QUEUED;
    it->next = in_front ? spans->first[kind] : NULL;
    it->previous = in_front ? NULL : spans->last[kind];
    *(it->next != NULL ? &it->next->previous : &spans->last[kind]) = it;
    *(it->previous != NULL ? &it->previous->next : &spans->first[kind]) = it;
    spans->count.queued++;
}

static void dequeue(os_spans *spans, span *it) {
    int kind = it->prefetch;
    *(it->next != NULL ? &it->next->previous : &spans->last[kind]) = it->previous;
    *(it->previous != NULL ? &it->previous->next : &spans->first[kind]) = it->next;
    spans->count.queued--;
}

/* Out of the table; its slot is free. */
static void forget(os_spans *spans, span *it) {
    span **place = bucket_of(spans, it->blob.digest, it->index);
    while (*place != it)
        place = &(*place)->chain;
    *place = it->chain;
    if (it->state == QUEUED)
        dequeue(spans, it);
    else
        spans->slot[it->slot] = NULL;
    it->state = ABSENT;
    it->chain = spans->unused;
    spans->unused = it;
}

static bool may_go(const span *it, uint64_t now) {
    return it != NULL && it->state == HERE && it->users == 0 && it->held <= now;
}

/* A slot, emptied if it has to be; OS_SLOTS: none. */
static uint32_t free_slot(os_spans *spans, uint64_t now) {
    uint32_t best = OS_SLOTS;
    for (uint32_t at = 0; at < OS_SLOTS; at++) {
        if (spans->slot[at] == NULL)
            return at;
        if (may_go(spans->slot[at], now) && (best == OS_SLOTS || spans->slot[at]->used < spans->slot[best]->used))
            best = at;
    }
    if (best < OS_SLOTS) {
        spans->count.evicted++;
        forget(spans, spans->slot[best]);
    }
    return best;
}

static span *make(os_spans *spans, const os_blob *blob, uint64_t index, uint64_t now) {
    span *it = spans->unused;
    if (it == NULL) {
        uint32_t slot = free_slot(spans, now);
        it = slot < OS_SLOTS ? spans->unused : NULL;
        if (it == NULL)
            return NULL;
    }
    spans->unused = it->chain;
    uint64_t start = index * OS_FETCH_SPAN, left = blob->size - start;
    *it = (span){.blob = *blob, .index = index, .length = left < OS_FETCH_SPAN ? (uint32_t)left : OS_FETCH_SPAN};
    span **place = bucket_of(spans, blob->digest, index);
    it->chain = *place;
    *place = it;
    return it;
}

/* ---------------------------------------------------------------------- to the fetcher */

static void wake_thread(os_spans *spans) {
    uint64_t one = 1;
    (void)!spans->env->write(spans->env->context, spans->wake, &one, sizeof one);
}

/* false: it cannot be told now; its end is noticed by the thread. */
static bool tell(os_spans *spans, const span *it, os_link_kind kind) {
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
static void send_queued(os_spans *spans) {
    uint64_t now = now_of(spans);
    for (int kind = 0; kind < 2 && spans->sock >= 0 && spans->ready && spans->pause_until <= now; kind++) {
        while (spans->first[kind] != NULL) {
            uint32_t slot = free_slot(spans, now);
            if (slot == OS_SLOTS)
                return;
            span *it = spans->first[kind];
            dequeue(spans, it);
            it->slot = slot;
            it->ticket = ++spans->last_ticket;
            it->cancelled = false;
            if (!tell(spans, it, OS_LINK_WANT)) {
                enqueue(spans, it, true);
                return;
            }
            it->state = FLYING;
            spans->slot[slot] = it;
            spans->count.flying++;
        }
    }
}

/* Back into the queue, without its slot. */
static void take_back(os_spans *spans, span *it) {
    if (it->state == FLYING)
        spans->count.flying--;
    spans->slot[it->slot] = NULL;
    it->ticket = 0;
    enqueue(spans, it, true);
}

/* ---------------------------------------------------------------------- from the fetcher */

static span *flying(os_spans *spans, uint64_t ticket) {
    for (unsigned at = 0; at < OS_SLOTS; at++)
        if (spans->slot[at] != NULL && spans->slot[at]->state == FLYING && spans->slot[at]->ticket == ticket)
            return spans->slot[at];
    return NULL;
}

static void take_all_back(os_spans *spans) {
    for (unsigned at = 0; at < OS_SLOTS; at++)
        if (spans->slot[at] != NULL && spans->slot[at]->state == FLYING)
            take_back(spans, spans->slot[at]);
}

/* Lock held. Whether bytes came; then *what is a copy of the span. */
static bool take_answer(os_spans *spans, const os_link_answer *answer, span *what) {
    if (answer->kind == OS_LINK_HELLO) {
        take_all_back(spans); /* it knows nothing of what the one before it was asked for */
        spans->ready = answer->code == OS_LINK_VERSION;
        spans->count.links++;
        return false;
    }
    span *it = flying(spans, answer->ticket);
    if (it == NULL || (answer->kind != OS_LINK_TRY && answer->kind != OS_LINK_DONE))
        return false;
    if (answer->cause[0] != '\0')
        snprintf(it->cause, sizeof it->cause, "%.*s", (int)sizeof it->cause - 1, answer->cause);
    if (answer->kind == OS_LINK_TRY)
        return false;
    if (answer->code != OS_OK) {
        bool dropped = it->cancelled;
        take_back(spans, it);
        if (dropped)
            forget(spans, it);
        else
            spans->pause_until = now_of(spans) + PAUSE_NS;
        return false;
    }
    spans->count.flying--;
    spans->count.fetched++;
    spans->count.fetched_bytes += it->length;
    it->state = HERE;
    it->source = answer->source;
    it->used = now_of(spans);
    it->held = it->prefetch ? 0 : it->used + HOLD_NS;
    *what = *it;
    return true;
}

/* Cancels what nobody has asked for in a long time. */
static void cancel_old(os_spans *spans) {
    uint64_t now = now_of(spans), patience = spans->options.patience_ns;
    for (unsigned at = 0; at < OS_SPANS_MAX; at++) {
        span *it = &spans->span[at];
        if ((it->state != QUEUED && it->state != FLYING) || it->wanted + patience > now)
            continue;
        if (it->state == QUEUED)
            forget(spans, it);
        else if (!it->cancelled)
            it->cancelled = tell(spans, it, OS_LINK_CANCEL);
    }
}

/* Nobody has wanted anything for a while: what was read is in the page cache, or in the store, so the memory goes back.
 */
static void give_memory_back(os_spans *spans) {
    uint64_t now = now_of(spans);
    bool used = false, busy = spans->count.queued > 0;
    for (unsigned at = 0; at < OS_SLOTS; at++) {
        const span *it = spans->slot[at];
        used = used || it != NULL;
        busy = busy || (it != NULL && (!may_go(it, now) || it->used + IDLE_NS > now));
    }
    if (!used || busy)
        return;
    for (unsigned at = 0; at < OS_SLOTS; at++)
        if (spans->slot[at] != NULL)
            forget(spans, spans->slot[at]);
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
    span what;
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
    send_queued(spans);
    pthread_mutex_unlock(&spans->lock);
    if (starved) {
        spans->options.came(spans->options.context, NULL, 0, 0);
    } else if (came) {
        uint64_t start = what.index * OS_FETCH_SPAN;
        spans->options.came(spans->options.context, what.blob.digest, start, start + what.length);
    }
    return true;
}

static void *link_main(void *argument) {
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
        if (now_of(spans) >= next_tick) {
            cancel_old(spans);
            send_queued(spans); /* what was held may go by now */
            give_memory_back(spans);
            next_tick = now_of(spans) + TICK_MS * UINT64_C(1000000);
        }
    }
    pthread_mutex_unlock(&spans->lock);
    return NULL;
}

/* ---------------------------------------------------------------------- readers */

static bool is_here(const span *it) {
    return it != NULL && it->state == HERE && !it->doomed;
}

static bool inside(const os_blob *blob, uint64_t offset, size_t size) {
    return size > 0 && size <= blob->size && offset <= blob->size - size;
}

/* Lock held. Makes sure that the span comes; it, or NULL: there is no room. */
static span *want(os_spans *spans, const os_blob *blob, uint64_t index, bool prefetch, uint64_t now) {
    span *it = find(spans, blob, index);
    if (it == NULL) {
        it = make(spans, blob, index, now);
        if (it == NULL) {
            spans->starved = true;
            return NULL;
        }
        it->prefetch = prefetch;
        enqueue(spans, it, false);
    } else if (it->prefetch && !prefetch) {
        if (it->state == QUEUED)
            dequeue(spans, it);
        it->prefetch = false;
        if (it->state == QUEUED)
            enqueue(spans, it, false);
        else if (it->state == FLYING)
            tell(spans, it, OS_LINK_RAISE);
    }
    it->wanted = now;
    it->cancelled = false; /* if that was on its way, it comes back and is asked for again */
    if (it->state == HERE && !prefetch)
        it->held = now + HOLD_NS;
    return it;
}

/* Lock held. Why the span is not here, if something is known. */
static void say_why(const os_spans *spans, const span *it, os_failure *failure) {
    if (it == NULL)
        os_fail(failure, OS_LIMIT, "more than %u spans are waited for", OS_SPANS_MAX);
    else if (it->cause[0] != '\0')
        os_fail(failure, OS_MISSING, "%s", it->cause);
    else if (spans->sock < 0)
        os_fail(failure, OS_MISSING, "there is no fetcher");
}

os_answer os_spans_want(os_spans *spans, const os_blob *blob, uint64_t offset, size_t size, bool prefetch,
                        os_failure *failure) {
    os_answer answer = OS_ANSWER_HERE;
    if (!inside(blob, offset, size))
        return OS_ANSWER_FAILED;
    pthread_mutex_lock(&spans->lock);
    uint64_t now = now_of(spans), last = (offset + size - 1) / OS_FETCH_SPAN;
    for (uint64_t index = offset / OS_FETCH_SPAN; index <= last; index++) {
        const span *it = want(spans, blob, index, prefetch, now);
        if (is_here(it))
            continue;
        answer = OS_ANSWER_PENDING;
        say_why(spans, it, failure);
    }
    if (answer == OS_ANSWER_PENDING)
        send_queued(spans);
    pthread_mutex_unlock(&spans->lock);
    return answer;
}

/* Lock held. Its bytes are wrong: again, without them. */
static void reject(os_spans *spans, span *it) {
    it->doomed = false;
    it->rejected++;
    it->prefetch = false;
    it->wanted = now_of(spans);
    spans->count.rejected++;
    snprintf(it->cause, sizeof it->cause, "its bytes were wrong %u times", it->rejected);
    take_back(spans, it);
}

/* The part of a range that lies in one span. */
static os_answer read_one(os_spans *spans, const os_blob *blob, uint64_t index, size_t from, size_t size, uint8_t *out,
                          os_failure *failure) {
    pthread_mutex_lock(&spans->lock);
    uint64_t now = now_of(spans);
    span *it = want(spans, blob, index, false, now);
    if (!is_here(it)) {
        say_why(spans, it, failure);
        send_queued(spans);
        pthread_mutex_unlock(&spans->lock);
        return OS_ANSWER_PENDING;
    }
    it->users++;
    it->used = now;
    pthread_mutex_unlock(&spans->lock);
    memcpy(out, spans->memory + (size_t)it->slot * OS_FETCH_SPAN + from, size);
    pthread_mutex_lock(&spans->lock);
    it->users--;
    it->held = 0; /* read: it may make room */
    if (it->doomed && it->users == 0)
        reject(spans, it);
    bool room = spans->first[0] != NULL || spans->first[1] != NULL;
    if (room)
        send_queued(spans);
    pthread_mutex_unlock(&spans->lock);
    return OS_ANSWER_HERE;
}

os_answer os_spans_read(os_spans *spans, const os_blob *blob, void *buffer, size_t size, uint64_t offset,
                        os_failure *failure) {
    uint8_t *out = buffer;
    if (!inside(blob, offset, size)) {
        os_fail(failure, OS_CORRUPT, "the blob ends at %llu", (unsigned long long)blob->size);
        return OS_ANSWER_FAILED;
    }
    os_answer answer =
        os_spans_want(spans, blob, offset, size, false, failure); /* all at once, not one after the other */
    while (size > 0) {
        size_t from = offset % OS_FETCH_SPAN, part = OS_FETCH_SPAN - from < size ? OS_FETCH_SPAN - from : size;
        answer = read_one(spans, blob, offset / OS_FETCH_SPAN, from, part, out, failure);
        if (answer != OS_ANSWER_HERE)
            break;
        out += part;
        offset += part;
        size -= part;
    }
    return answer;
}

void os_spans_reject(os_spans *spans, const os_blob *blob, uint64_t offset, size_t size) {
    if (!inside(blob, offset, size))
        return;
    pthread_mutex_lock(&spans->lock);
    uint64_t last = (offset + size - 1) / OS_FETCH_SPAN;
    for (uint64_t index = offset / OS_FETCH_SPAN; index <= last; index++) {
        span *it = find(spans, blob, index);
        if (!is_here(it))
            continue; /* on its way again already */
        if (it->users > 0)
            it->doomed = true;
        else
            reject(spans, it);
    }
    send_queued(spans);
    pthread_mutex_unlock(&spans->lock);
}

void os_spans_statistics_of(os_spans *spans, os_spans_statistics *out) {
    pthread_mutex_lock(&spans->lock);
    *out = spans->count;
    pthread_mutex_unlock(&spans->lock);
}

/* ---------------------------------------------------------------------- life */

bool os_spans_link(os_spans *spans, int sock) {
    pthread_mutex_lock(&spans->lock);
    bool taken = spans->sock < 0;
    if (taken)
        spans->sock = sock;
    pthread_mutex_unlock(&spans->lock);
    if (taken)
        wake_thread(spans);
    else
        spans->env->close(spans->env->context, sock);
    return taken;
}

bool os_spans_linked(os_spans *spans) {
    pthread_mutex_lock(&spans->lock);
    bool linked = spans->sock >= 0;
    pthread_mutex_unlock(&spans->lock);
    return linked;
}

static void destroy(os_spans *spans) {
    if (spans->wake >= 0)
        spans->env->close(spans->env->context, spans->wake);
    if (spans->sock >= 0)
        spans->env->close(spans->env->context, spans->sock);
    if (spans->memory != NULL)
        munmap(spans->memory, OS_SLOTS_SIZE);
    pthread_mutex_destroy(&spans->lock);
    spans->env->release(spans->env->context, spans);
}

static os_code set_up(os_spans *spans, os_failure *failure) {
    struct stat found;
    sigset_t all, before;
    int seals = fcntl(spans->options.memory, F_GET_SEALS);
    if (fstat(spans->options.memory, &found) < 0 || (uint64_t)found.st_size != OS_SLOTS_SIZE || seals < 0 ||
        !(seals & F_SEAL_SHRINK))
        return os_fail(failure, OS_CORRUPT, "spans: got memory that is not %llu sealed bytes",
                       (unsigned long long)OS_SLOTS_SIZE);
    void *memory = mmap(NULL, OS_SLOTS_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, spans->options.memory, 0);
    if (memory == MAP_FAILED)
        return os_fail_errno(failure, errno, "spans: memory: %s", strerror(errno));
    spans->memory = memory;
    spans->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (spans->wake < 0)
        return os_fail_errno(failure, errno, "spans: eventfd: %s", strerror(errno));
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&spans->thread, NULL, link_main, spans);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error == 0 ? OS_OK : os_fail_errno(failure, error, "spans: thread: %s", strerror(error));
}

os_code os_spans_make(const os_spans_options *options, os_spans **out, os_failure *failure) {
    const os_env *env = options->env;
    os_spans *spans = env->allocate(env->context, sizeof *spans);
    if (spans == NULL)
        return os_fail(failure, OS_MEMORY, "spans: got no memory");
    memset(spans, 0, sizeof *spans);
    spans->options = *options;
    spans->env = env;
    spans->sock = spans->wake = -1;
    pthread_mutex_init(&spans->lock, NULL);
    for (unsigned at = OS_SPANS_MAX; at-- > 0;) {
        spans->span[at].chain = spans->unused;
        spans->unused = &spans->span[at];
    }
    os_code code = set_up(spans, failure);
    if (code != OS_OK) {
        destroy(spans);
        return code;
    }
    *out = spans;
    return OS_OK;
}

void os_spans_free(os_spans *spans) {
    if (spans == NULL)
        return;
    pthread_mutex_lock(&spans->lock);
    spans->stopping = true;
    pthread_mutex_unlock(&spans->lock);
    wake_thread(spans);
    pthread_join(spans->thread, NULL);
    destroy(spans);
}
