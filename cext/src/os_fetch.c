/* Where things are: ranges and who waits for them in os_fetch_jobs.c, whose turn it is in os_fetch_launch.c, what comes
 * of an answer in os_fetch_answer.c, one request and its answer in os_fetch_flight.c, sources and the choice among them
 * in os_fetch_sources.c, quantiles in os_fetch_measure.c, the meaning of headers in os_fetch_http.c, wants that come
 * from an object server in os_fetch_link.c. Here: the thread, and what is said to it.
 *
 * Threads
 *
 * One of the engine's own. It sleeps in curl_multi_poll, and each time round it takes in what was submitted, ends what
 * is past its deadline, starts what may start, doubles what is late, lets libcurl move bytes, and looks at the answers
 * that are whole. All of libcurl is its own but curl_multi_wakeup. Callers of the functions in the header: any thread;
 * they leave word and wake it.
 *
 * The lock
 *
 * There is one, and nothing is locked under it but the log's. It guards what fetch->lock is said to guard in
 * os_fetch_parts.h; jobs, queues and flights are the thread's alone. It is not held while libcurl moves bytes, nor
 * while a callback runs: what is finished is put on a list first, and told when the lock is free.
 *
 * A range
 *
 *     submit ──► incoming ──► job ──► ready[demand | prefetch] ──► flight(s) ──► judged ──► finished ──► done()
 *                              ▲          ▲                            │
 *                              │          └─ delayed ◄─ a fault: other source, or later
 *                              └─ a second want for the same range joins the job
 *
 * A job is a range that somebody wants; its waiters are the wants. It is in exactly one queue, or it flies. It ends
 * when an answer is fine, when its last waiter's deadline has passed or it was cancelled, or when the engine is freed:
 * whatever goes wrong with a source may go right a second later, and only who waits knows how long that is worth it.
 * Rounds are bounded by the backoff: its longest pause is OS_FETCH options' backoff_max_ms.
 *
 * The bytes go straight into the buffer of the job's first waiter, and are copied to the others. If the first one's
 * deadline passes while others wait, its flights are given up and the job starts again into the next one's buffer:
 * nobody's buffer is written to after its done().
 *
 * Demands fly before prefetches, which get at most half of the flights; a prefetch that is demanded changes queues. A
 * demand that takes longer than the p95 of the last requests is sent a second time, to another source if there is one,
 * on another connection, as long as no more than one request in OS_FETCH_HEDGE_SHARE is such a double; the first good
 * answer wins, the other flight is given up.
 *
 * Credentials
 *
 * A source's headers go to the host of its own url and to no other. libcurl follows no redirect: each hop is judged
 * here, and the place it leads to is remembered for the blob, until it fails. 401 or 403 from the source itself makes
 * it stale: it is asked nothing more until os_fetch_set_source, and os_fetch_news says so to who can renew it. */
#include "os_fetch.h"

#include <signal.h>
#include <string.h>

#include "os_fetch_parts.h"

#define POLL_MAX_MS 1000

static void tell_finished(os_fetch *fetch) {
    os_fetch_waiter *waiter = fetch->finished;
    fetch->finished = NULL;
    fetch->finished_end = &fetch->finished;
    while (waiter != NULL) {
        os_fetch_waiter *next = waiter->next;
        waiter->want.done(waiter->want.context, waiter->want.ticket, &waiter->result);
        fetch->env->release(fetch->env->context, waiter);
        waiter = next;
    }
}

/* Lock held on entry and on return. */
static void take_in_all(os_fetch *fetch, uint64_t now) {
    os_fetch_waiter *waiter = fetch->incoming;
    fetch->incoming = NULL;
    fetch->incoming_end = &fetch->incoming;
    while (waiter != NULL) {
        os_fetch_waiter *next = waiter->next;
        if (waiter->order == OS_FETCH_WANT) {
            os_fetch_take_in(fetch, waiter, now);
        } else if (waiter->order == OS_FETCH_PING) {
            waiter->next = NULL;
            *fetch->finished_end = waiter;
            fetch->finished_end = &waiter->next;
        } else {
            os_fetch_take_change(fetch, waiter);
        }
        waiter = next;
    }
}

static void end_all(os_fetch *fetch) {
    take_in_all(fetch, os_fetch_now(fetch));
    for (size_t at = 0; at < OS_FETCH_BUCKETS; at++) {
        while (fetch->bucket[at] != NULL) {
            os_fetch_give_up_all(fetch, fetch->bucket[at]);
            os_fetch_finish_job(fetch, fetch->bucket[at], OS_CLOSED, 0);
        }
    }
}

static void *engine_main(void *argument) {
    os_fetch *fetch = argument;
    pthread_mutex_lock(&fetch->lock);
    while (!fetch->stopping) {
        uint64_t now = os_fetch_now(fetch);
        take_in_all(fetch, now);
        os_fetch_expire(fetch, now);
        os_fetch_end_delays(fetch, now, fetch->sources_changed);
        fetch->sources_changed = false;
        uint64_t wake = os_fetch_end_stalled(fetch, now);
        os_fetch_start_ready(fetch, now);
        wake = os_fetch_sooner(wake, os_fetch_start_hedges(fetch, now));
        wake = os_fetch_sooner(wake, os_fetch_sooner(fetch->next_ready, fetch->next_deadline));
        fetch->count.active = fetch->flights;
        fetch->count.waiting = fetch->ready[0].count + fetch->ready[1].count + fetch->delayed.count;
        pthread_mutex_unlock(&fetch->lock);
        tell_finished(fetch);
        int running = 0;
        curl_multi_perform(fetch->multi, &running);
        pthread_mutex_lock(&fetch->lock);
        size_t answered = fetch->flights;
        os_fetch_take_answers(fetch, os_fetch_now(fetch));
        bool busy = answered != fetch->flights || fetch->finished != NULL || fetch->incoming != NULL;
        pthread_mutex_unlock(&fetch->lock);
        tell_finished(fetch);
        now = os_fetch_now(fetch);
        if (!busy && wake > now) {
            uint64_t ms = (wake - now + OS_FETCH_MS - 1) / OS_FETCH_MS;
            curl_multi_poll(fetch->multi, NULL, 0, ms < POLL_MAX_MS ? (int)ms : POLL_MAX_MS, NULL);
        }
        pthread_mutex_lock(&fetch->lock);
    }
    end_all(fetch);
    pthread_mutex_unlock(&fetch->lock);
    tell_finished(fetch);
    return NULL;
}

/* ---------------------------------------------------------------------- life */

static void set_defaults(os_fetch_options *options) {
    options->flights = options->flights == 0 ? OS_FETCH_FLIGHTS : options->flights;
    options->connect_timeout_ms = options->connect_timeout_ms == 0 ? 10000 : options->connect_timeout_ms;
    options->stall_timeout_ms = options->stall_timeout_ms == 0 ? 20000 : options->stall_timeout_ms;
    options->backoff_ms = options->backoff_ms == 0 ? 100 : options->backoff_ms;
    options->backoff_max_ms = options->backoff_max_ms == 0 ? 5000 : options->backoff_max_ms;
    options->hedge_floor_ms = options->hedge_floor_ms == 0 ? 50 : options->hedge_floor_ms;
}

static void destroy(os_fetch *fetch) {
    const os_env *env = fetch->env;
    while (fetch->idle != NULL) {
        os_fetch_flight *flight = fetch->idle;
        fetch->idle = flight->next;
        os_fetch_flight_free(flight);
    }
    if (fetch->multi != NULL)
        curl_multi_cleanup(fetch->multi);
    os_fetch_free_sources(fetch);
    if (fetch->authorities != NULL)
        env->release(env->context, fetch->authorities);
    pthread_mutex_destroy(&fetch->lock);
    env->release(env->context, fetch);
}

static os_code set_up(os_fetch *fetch, os_failure *failure) {
    const char *authorities = fetch->options.authorities;
    if (authorities != NULL) {
        size_t size = strlen(authorities) + 1;
        fetch->authorities = fetch->env->allocate(fetch->env->context, size);
        if (fetch->authorities == NULL)
            return os_fail(failure, OS_MEMORY, "fetch: got no memory");
        memcpy(fetch->authorities, authorities, size);
        fetch->options.authorities = NULL;
    }
    fetch->multi = curl_multi_init();
    if (fetch->multi == NULL)
        return os_fail(failure, OS_MEMORY, "fetch: libcurl would not start");
    curl_multi_setopt(fetch->multi, CURLMOPT_PIPELINING, (long)CURLPIPE_MULTIPLEX);
    curl_multi_setopt(fetch->multi, CURLMOPT_MAX_HOST_CONNECTIONS, (long)fetch->options.flights);
    curl_multi_setopt(fetch->multi, CURLMOPT_MAXCONNECTS, (long)fetch->options.flights);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&fetch->thread, NULL, engine_main, fetch);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error == 0 ? OS_OK : os_fail_errno(failure, error, "fetch: thread: %s", strerror(error));
}

os_code os_fetch_make(const os_fetch_options *options, os_fetch **out, os_failure *failure) {
    const os_env *env = options->env;
    if (options->flights > OS_FETCH_FLIGHTS_MAX)
        return os_fail(failure, OS_LIMIT, "fetch: got %u flights, want at most %u", options->flights,
                       OS_FETCH_FLIGHTS_MAX);
    os_fetch *fetch = env->allocate(env->context, sizeof *fetch);
    if (fetch == NULL)
        return os_fail(failure, OS_MEMORY, "fetch: got no memory");
    memset(fetch, 0, sizeof *fetch);
    fetch->options = *options;
    fetch->env = env;
    set_defaults(&fetch->options);
    fetch->incoming_end = &fetch->incoming;
    fetch->finished_end = &fetch->finished;
    fetch->next_ready = fetch->next_deadline = OS_FETCH_NEVER;
    fetch->hedge_credit = OS_FETCH_HEDGE_BURST * OS_FETCH_HEDGE_SHARE;
    pthread_mutex_init(&fetch->lock, NULL);
    os_code code = set_up(fetch, failure);
    if (code != OS_OK) {
        destroy(fetch);
        return code;
    }
    *out = fetch;
    return OS_OK;
}

void os_fetch_free(os_fetch *fetch) {
    if (fetch == NULL)
        return;
    pthread_mutex_lock(&fetch->lock);
    fetch->stopping = true;
    pthread_mutex_unlock(&fetch->lock);
    curl_multi_wakeup(fetch->multi);
    pthread_join(fetch->thread, NULL);
    destroy(fetch);
}

os_code os_fetch_submit(os_fetch *fetch, const os_fetch_want *want, os_failure *failure) {
    if (want->length == 0 || want->length > OS_FETCH_LENGTH_MAX || want->length > want->blob_size ||
        want->offset > want->blob_size - want->length)
        return os_fail(failure, OS_LIMIT, "fetch: got %u bytes at %llu of a blob of %llu", want->length,
                       (unsigned long long)want->offset, (unsigned long long)want->blob_size);
    os_fetch_waiter *waiter = fetch->env->allocate(fetch->env->context, sizeof *waiter);
    if (waiter == NULL)
        return os_fail(failure, OS_MEMORY, "fetch: got no memory");
    memset(waiter, 0, sizeof *waiter);
    waiter->want = *want;
    os_code code = OS_OK;
    pthread_mutex_lock(&fetch->lock);
    if (fetch->stopping) {
        code = os_fail(failure, OS_CLOSED, "fetch: closed");
    } else if (fetch->wants >= OS_FETCH_WANTS_MAX) {
        code = os_fail(failure, OS_LIMIT, "fetch: got more than %u ranges at once", OS_FETCH_WANTS_MAX);
    } else {
        fetch->wants++;
        *fetch->incoming_end = waiter;
        fetch->incoming_end = &waiter->next;
    }
    pthread_mutex_unlock(&fetch->lock);
    if (code == OS_OK)
        curl_multi_wakeup(fetch->multi);
    else
        fetch->env->release(fetch->env->context, waiter);
    return code;
}

/* Leaves a word that is no want. false: the engine takes none any more, and the word is freed. */
static bool leave_word(os_fetch *fetch, os_fetch_waiter *waiter) {
    pthread_mutex_lock(&fetch->lock);
    bool late = fetch->stopping;
    if (!late) {
        *fetch->incoming_end = waiter;
        fetch->incoming_end = &waiter->next;
    }
    pthread_mutex_unlock(&fetch->lock);
    if (late)
        fetch->env->release(fetch->env->context, waiter);
    else
        curl_multi_wakeup(fetch->multi);
    return !late;
}

bool os_fetch_ping(os_fetch *fetch, void *context,
                   void (*done)(void *context, uint64_t ticket, const os_fetch_result *result)) {
    os_fetch_waiter *waiter = fetch->env->allocate(fetch->env->context, sizeof *waiter);
    if (waiter == NULL)
        return false;
    memset(waiter, 0, sizeof *waiter);
    waiter->order = OS_FETCH_PING;
    waiter->want.context = context;
    waiter->want.done = done;
    return leave_word(fetch, waiter);
}

bool os_fetch_change(os_fetch *fetch, const void *context, uint64_t ticket, bool cancel) {
    os_fetch_waiter *waiter = fetch->env->allocate(fetch->env->context, sizeof *waiter);
    if (waiter == NULL)
        return false;
    memset(waiter, 0, sizeof *waiter);
    waiter->order = cancel ? OS_FETCH_CANCEL : OS_FETCH_RAISE;
    waiter->want.context = (void *)context;
    waiter->want.ticket = ticket;
    leave_word(fetch, waiter);
    return true;
}
