/* One thread reads packets, the engine's thread sends the answers. A slot that is in use is refused a second time, so
 * that two ranges never share one.
 *
 * Nobody ever waits for the server to read: the engine serves others too. An answer that does not go out at once is
 * kept, in its order, and the reading thread sends it when there is room. There is one for each slot at most, and as
 * many refusals; the thread reads no further packet while so many are kept. */
#define _GNU_SOURCE
#include "os_fetch_link.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "os_link.h"

#define KEPT_MAX (2 * OS_SLOTS + 2)

typedef struct served_link {
    os_fetch *fetch; /* borrowed */
    int sock;        /* borrowed */
    uint8_t *memory;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int wake;                  /* owned: an eventfd, written when an answer is kept */
    unsigned left;             /* ranges in the engine; guarded by lock */
    uint64_t ticket[OS_SLOTS]; /* of the range that uses the slot, 0: none; guarded by lock */
    os_link_answer kept[KEPT_MAX];
    unsigned first, count; /* of kept; guarded by lock */
} served_link;

/* false: there is no room. An answer to a server that is gone is gone too. */
static bool send_now(const served_link *it, const os_link_answer *answer) {
    while (send(it->sock, answer, sizeof *answer, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        if (errno != EINTR)
            return errno != EAGAIN && errno != ENOBUFS && errno != ENOMEM;
    return true;
}

/* Lock held. */
static void send_kept(served_link *it) {
    while (it->count > 0 && send_now(it, &it->kept[it->first % KEPT_MAX])) {
        it->first++;
        it->count--;
    }
}

/* Sends it after those that are kept. spare: if that is not now, it need not be at all. */
static void say(served_link *it, const os_link_answer *answer, bool spare) {
    uint64_t one = 1;
    pthread_mutex_lock(&it->lock);
    send_kept(it);
    bool late = it->count > 0 || !send_now(it, answer);
    if (late && !spare && it->count < KEPT_MAX) {
        it->kept[(it->first + it->count++) % KEPT_MAX] = *answer;
        (void)!write(it->wake, &one, sizeof one);
    }
    pthread_mutex_unlock(&it->lock);
}

static os_link_answer answer_of(os_link_kind kind, uint64_t ticket, const os_fetch_result *result) {
    os_link_answer answer;
    memset(&answer, 0, sizeof answer);
    answer.kind = kind;
    answer.code = result->code;
    answer.ticket = ticket;
    answer.source = result->source;
    answer.tries = result->tries;
    memcpy(answer.cause, result->cause, sizeof answer.cause);
    return answer;
}

static void on_try(void *context, uint64_t ticket, const os_fetch_result *so_far) {
    os_link_answer answer = answer_of(OS_LINK_TRY, ticket, so_far);
    say(context, &answer, true);
}

static void on_done(void *context, uint64_t ticket, const os_fetch_result *result) {
    served_link *it = context;
    os_link_answer answer = answer_of(OS_LINK_DONE, ticket, result);
    pthread_mutex_lock(&it->lock);
    for (unsigned slot = 0; slot < OS_SLOTS; slot++)
        if (it->ticket[slot] == ticket)
            it->ticket[slot] = 0;
    pthread_mutex_unlock(&it->lock);
    say(it, &answer, false);
    pthread_mutex_lock(&it->lock);
    it->left--;
    pthread_cond_signal(&it->changed);
    pthread_mutex_unlock(&it->lock);
}

static void refuse(served_link *it, uint64_t ticket, const os_failure *failure) {
    os_fetch_result result = {.code = failure->code};
    snprintf(result.cause, sizeof result.cause, "%.*s", (int)sizeof result.cause - 1, failure->message);
    os_link_answer answer = answer_of(OS_LINK_DONE, ticket, &result);
    say(it, &answer, false);
}

static void take_want(served_link *it, const os_link_want *asked) {
    os_failure failure = {0};
    os_fetch_want want = {.blob_size = asked->blob_size,
                          .offset = asked->offset,
                          .length = asked->length,
                          .origin = asked->origin,
                          .prefetch = asked->prefetch != 0,
                          .deadline = UINT64_MAX, /* the server cancels */
                          .rejected = asked->rejected,
                          .avoid = asked->avoid,
                          .context = it,
                          .failed = on_try,
                          .done = on_done,
                          .ticket = asked->ticket};
    memcpy(want.digest, asked->digest, OS_ID_SIZE);
    pthread_mutex_lock(&it->lock);
    bool sound =
        asked->ticket != 0 && asked->slot < OS_SLOTS && asked->length <= OS_FETCH_SPAN && it->ticket[asked->slot] == 0;
    if (sound) {
        it->ticket[asked->slot] = asked->ticket;
        it->left++;
    }
    pthread_mutex_unlock(&it->lock);
    if (!sound) {
        os_fail(&failure, OS_LIMIT, "link: got slot %u, which is none or in use", asked->slot);
        refuse(it, asked->ticket, &failure);
        return;
    }
    want.buffer = it->memory + (size_t)asked->slot * OS_FETCH_SPAN;
    if (os_fetch_submit(it->fetch, &want, &failure) == OS_OK)
        return;
    pthread_mutex_lock(&it->lock);
    it->ticket[asked->slot] = 0;
    it->left--;
    pthread_mutex_unlock(&it->lock);
    refuse(it, asked->ticket, &failure);
}

/* One packet. false: the other side is gone. */
static bool hear(served_link *it, os_link_want *want, bool *whole) {
    ssize_t got = recv(it->sock, want, sizeof *want, MSG_DONTWAIT);
    *whole = got == (ssize_t)sizeof *want;
    return got > 0 || (got < 0 && (errno == EINTR || errno == EAGAIN));
}

static void serve(served_link *it) {
    for (;;) {
        os_link_want want;
        uint64_t woken;
        bool whole;
        pthread_mutex_lock(&it->lock);
        send_kept(it);
        short events = (short)((it->count < OS_SLOTS ? POLLIN : 0) | (it->count > 0 ? POLLOUT : 0));
        pthread_mutex_unlock(&it->lock);
        struct pollfd watch[2] = {{.fd = it->sock, .events = events}, {.fd = it->wake, .events = POLLIN}};
        poll(watch, 2, -1);
        if (watch[1].revents != 0)
            (void)!read(it->wake, &woken, sizeof woken);
        if (watch[0].revents & POLLIN) {
            if (!hear(it, &want, &whole))
                return;
        } else if (watch[0].revents & (POLLHUP | POLLERR | POLLNVAL)) {
            return;
        } else {
            continue;
        }
        if (!whole)
            continue;
        if (want.kind == OS_LINK_WANT)
            take_want(it, &want);
        else if (want.kind == OS_LINK_RAISE || want.kind == OS_LINK_CANCEL)
            os_fetch_change(it->fetch, it, want.ticket, want.kind == OS_LINK_CANCEL);
    }
}

os_code os_fetch_serve(os_fetch *fetch, int sock, int memory, os_failure *failure) {
    struct stat found;
    int seals = fcntl(memory, F_GET_SEALS);
    if (fstat(memory, &found) < 0 || (uint64_t)found.st_size != OS_SLOTS_SIZE || seals < 0 || !(seals & F_SEAL_SHRINK))
        return os_fail(failure, OS_CORRUPT, "link: got memory that is not %llu sealed bytes",
                       (unsigned long long)OS_SLOTS_SIZE);
    served_link it = {.fetch = fetch, .sock = sock};
    it.memory = mmap(NULL, OS_SLOTS_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (it.memory == MAP_FAILED)
        return os_fail_errno(failure, errno, "link: memory: %s", strerror(errno));
    it.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (it.wake < 0) {
        munmap(it.memory, OS_SLOTS_SIZE);
        return os_fail_errno(failure, errno, "link: eventfd: %s", strerror(errno));
    }
    pthread_mutex_init(&it.lock, NULL);
    pthread_cond_init(&it.changed, NULL);
    os_link_answer hello;
    memset(&hello, 0, sizeof hello);
    hello.kind = OS_LINK_HELLO;
    hello.code = OS_LINK_VERSION;
    say(&it, &hello, false);
    serve(&it);
    struct timespec moment = {0, 10000000};
    while (!os_fetch_change(fetch, &it, 0, true))
        nanosleep(&moment, NULL);
    pthread_mutex_lock(&it.lock);
    while (it.left > 0)
        pthread_cond_wait(&it.changed, &it.lock);
    pthread_mutex_unlock(&it.lock);
    pthread_cond_destroy(&it.changed);
    pthread_mutex_destroy(&it.lock);
    close(it.wake);
    munmap(it.memory, OS_SLOTS_SIZE);
    return OS_OK;
}
