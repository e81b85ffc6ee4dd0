/* One thread reads packets, the engine's thread sends the answers. A slot that is in use is refused a second time, so
 * that two ranges never share one. */
#define _GNU_SOURCE
#include "os_fetch_link.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

#include "os_link.h"

typedef struct link {
    os_fetch *fetch; /* borrowed */
    int sock;        /* borrowed */
    uint8_t *memory;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned left;             /* ranges in the engine; guarded by lock */
    uint64_t ticket[OS_SLOTS]; /* of the range that uses the slot, 0: none; guarded by lock */
} link;

/* The server always reads, so this waits for it only as long as it takes to be scheduled. */
static void say(const link *it, const os_link_answer *answer, int flags) {
    while (send(it->sock, answer, sizeof *answer, MSG_NOSIGNAL | flags) < 0 && errno == EINTR)
        continue;
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
    say(context, &answer, MSG_DONTWAIT);
}

static void on_done(void *context, uint64_t ticket, const os_fetch_result *result) {
    link *it = context;
    os_link_answer answer = answer_of(OS_LINK_DONE, ticket, result);
    pthread_mutex_lock(&it->lock);
    for (unsigned slot = 0; slot < OS_SLOTS; slot++)
        if (it->ticket[slot] == ticket)
            it->ticket[slot] = 0;
    pthread_mutex_unlock(&it->lock);
    say(it, &answer, 0);
    pthread_mutex_lock(&it->lock);
    it->left--;
    pthread_cond_signal(&it->changed);
    pthread_mutex_unlock(&it->lock);
}

static void refuse(const link *it, uint64_t ticket, const os_failure *failure) {
    os_fetch_result result = {.code = failure->code};
    snprintf(result.cause, sizeof result.cause, "%.*s", (int)sizeof result.cause - 1, failure->message);
    os_link_answer answer = answer_of(OS_LINK_DONE, ticket, &result);
    say(it, &answer, 0);
}

static void take_want(link *it, const os_link_want *asked) {
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

static void serve(link *it) {
    for (;;) {
        os_link_want want;
        ssize_t got = recv(it->sock, &want, sizeof want, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return;
        if (got != (ssize_t)sizeof want)
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
    link it = {.fetch = fetch, .sock = sock};
    it.memory = mmap(NULL, OS_SLOTS_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (it.memory == MAP_FAILED)
        return os_fail_errno(failure, errno, "link: memory: %s", strerror(errno));
    pthread_mutex_init(&it.lock, NULL);
    pthread_cond_init(&it.changed, NULL);
    os_link_answer hello;
    memset(&hello, 0, sizeof hello);
    hello.kind = OS_LINK_HELLO;
    hello.code = OS_LINK_VERSION;
    say(&it, &hello, 0);
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
    munmap(it.memory, OS_SLOTS_SIZE);
    return OS_OK;
}
