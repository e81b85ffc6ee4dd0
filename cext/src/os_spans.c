/* The table of spans is in os_spans_table.c, the fetcher's side in os_spans_link.c; here: readers, and life.
 *
 * A span is OS_FETCH_SPAN bytes of a blob, from a multiple of that on; the last one of a blob is shorter.
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
 * Whose bytes they are
 *
 * One span serves all images that name its pack, as long as they agree that its bytes are right: the same size, and no
 * chunk in it that hashes to something else. Tables come from outside, and so do the sources of an image; so an image
 * that finds a span wrong gets one of its own (viewer), from its own origin, and what it does there concerns no other.
 * A span that somebody else's origin has trouble with is not waited for: the image asks its own.
 *
 * Whose turn it is
 *
 * Slots go to spans in the order in which they were wanted, demands before prefetches. A read may need several spans at
 * once, and the one that is here must not make room for what the next reader wants while the other one is on its way:
 * a span that was wanted and not read since is held for HOLD_NS. As slots are handed out in order, the first in line
 * always gets all that it needs, reads it, and makes room. Prefetches fly when no demand is in line, into
 * OS_SLOTS_AHEAD slots at most, and one that came is spared by the next prefetches for a while, but not by a demand. */
#define _GNU_SOURCE
#include "os_spans.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "os_spans_parts.h"

/* ---------------------------------------------------------------------- readers */

static bool is_here(const os_span *it) {
    return it != NULL && it->state == HERE && !it->doomed;
}

static bool inside(const os_blob *blob, uint64_t offset, size_t size) {
    return size > 0 && size <= blob->size && offset <= blob->size - size;
}

/* Lock held. Makes sure that the span comes; it, or NULL: there is no room. */
static os_span *want(os_spans *spans, const os_blob *blob, uint64_t index, bool prefetch, uint64_t now) {
    os_span *it = os_spans_find(spans, blob, index);
    if (it == NULL) {
        it = os_spans_new(spans, blob, index, now);
        if (it == NULL) {
            spans->starved = true;
            return NULL;
        }
        it->prefetch = prefetch;
        os_spans_enqueue(spans, it, false);
    } else if (it->prefetch && !prefetch) {
        if (it->state == QUEUED)
            os_spans_dequeue(spans, it);
        it->prefetch = false;
        if (it->state == QUEUED)
            os_spans_enqueue(spans, it, false);
        else if (it->state == FLYING)
            os_spans_tell(spans, it, OS_LINK_RAISE);
    }
    it->wanted = now;
    it->foreign = it->foreign || it->blob.origin != blob->origin;
    it->cancelled = false; /* if that was on its way, it comes back and is asked for again */
    if (it->state == HERE && !prefetch)
        it->held = now + OS_SPANS_HOLD_NS;
    return it;
}

/* Lock held. Why the span is not here, if something is known. */
static void say_why(const os_spans *spans, const os_span *it, os_failure *failure) {
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
    uint64_t now = os_spans_now(spans), last = (offset + size - 1) / OS_FETCH_SPAN;
    for (uint64_t index = offset / OS_FETCH_SPAN; index <= last; index++) {
        const os_span *it = want(spans, blob, index, prefetch, now);
        if (is_here(it))
            continue;
        answer = OS_ANSWER_PENDING;
        say_why(spans, it, failure);
    }
    if (answer == OS_ANSWER_PENDING)
        os_spans_send_queued(spans);
    pthread_mutex_unlock(&spans->lock);
    return answer;
}

/* Lock held. A span that was wrong and is in nobody's hands any more: again if it is one image's own, else gone. */
static void end_doomed(os_spans *spans, os_span *it) {
    if (!it->doomed || it->users > 0)
        return;
    it->doomed = false;
    if (it->viewer != 0)
        os_spans_take_back(spans, it);
    else
        os_spans_forget(spans, it);
}

/* Lock held. Its bytes are wrong for the image of the blob. What others took for right is left to them to judge: this
 * image gets a span of its own, so that tables that lie spoil no other image's reads. */
static void reject(os_spans *spans, const os_blob *blob, os_span *it) {
    uint64_t now = os_spans_now(spans);
    os_span *own = it;
    uint32_t times = it->viewer != 0 ? it->rejected + 1 : 1, source = it->source;
    spans->count.rejected++;
    it->doomed = true;
    if (it->viewer == 0) {
        uint64_t index = it->index;
        end_doomed(spans, it);
        own = os_spans_new(spans, blob, index, now);
        if (own == NULL)
            return; /* no room for one more: the next read begins anew */
        own->viewer = blob->viewer;
        os_spans_enqueue(spans, own, false);
    }
    own->rejected = times;
    own->source = source;
    own->prefetch = false;
    own->wanted = now;
    snprintf(own->cause, sizeof own->cause, "its bytes were wrong %u times", times);
    if (own == it)
        end_doomed(spans, it);
}

/* The part of a range that lies in one span. */
static os_answer read_one(os_spans *spans, const os_blob *blob, uint64_t index, size_t from, size_t size, uint8_t *out,
                          os_failure *failure) {
    pthread_mutex_lock(&spans->lock);
    uint64_t now = os_spans_now(spans);
    os_span *it = want(spans, blob, index, false, now);
    if (!is_here(it)) {
        say_why(spans, it, failure);
        os_spans_send_queued(spans);
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
    end_doomed(spans, it);
    bool room = spans->first[0] != NULL || spans->first[1] != NULL;
    if (room)
        os_spans_send_queued(spans);
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
        os_span *it = os_spans_find(spans, blob, index);
        if (is_here(it)) /* else it is on its way again already */
            reject(spans, blob, it);
    }
    os_spans_send_queued(spans);
    pthread_mutex_unlock(&spans->lock);
}

uint64_t os_spans_viewer(os_spans *spans) {
    pthread_mutex_lock(&spans->lock);
    uint64_t viewer = ++spans->last_viewer;
    pthread_mutex_unlock(&spans->lock);
    return viewer;
}

bool os_spans_busy(os_spans *spans) {
    pthread_mutex_lock(&spans->lock);
    bool busy = spans->first[0] != NULL;
    for (unsigned at = 0; at < OS_SLOTS && !busy; at++)
        busy = spans->slot[at] != NULL && spans->slot[at]->state == FLYING && !spans->slot[at]->prefetch;
    pthread_mutex_unlock(&spans->lock);
    return busy;
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
        os_spans_wake(spans);
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
    int error = pthread_create(&spans->thread, NULL, os_spans_main, spans);
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
    os_spans_wake(spans);
    pthread_join(spans->thread, NULL);
    destroy(spans);
}
