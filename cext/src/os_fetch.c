/* Where things are: one request and its answer in os_fetch_flight.c, sources and the choice among them in
 * os_fetch_sources.c, quantiles in os_fetch_measure.c, the meaning of headers in os_fetch_http.c, wants that come from
 * an object server in os_fetch_link.c. Here: what becomes of a range from the first want to the last answer.
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

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "os_fetch_parts.h"

#define FIRST_HEDGE_MS 2000u /* before there are enough requests to have a p95 */
#define LATENCIES_ENOUGH 20u
#define POLL_MAX_MS 1000

static uint64_t now_of(const os_fetch *fetch) {
    return fetch->env->monotonic_ns(fetch->env->context);
}

static uint64_t sooner(uint64_t left, uint64_t right) {
    return left < right ? left : right;
}

/* ---------------------------------------------------------------------- queues and jobs */

static void enqueue(os_fetch_queue *queue, os_fetch_job *job, bool in_front) {
    job->queue = queue;
    job->next = in_front ? queue->first : NULL;
    job->previous = in_front ? NULL : queue->last;
    if (job->next != NULL)
        job->next->previous = job;
    else
        queue->last = job;
    if (job->previous != NULL)
        job->previous->next = job;
    else
        queue->first = job;
    queue->count++;
}

static void dequeue(os_fetch_job *job) {
    os_fetch_queue *queue = job->queue;
    if (queue == NULL)
        return;
    *(job->previous != NULL ? &job->previous->next : &queue->first) = job->next;
    *(job->next != NULL ? &job->next->previous : &queue->last) = job->previous;
    queue->count--;
    job->queue = NULL;
}

static os_fetch_job **bucket_of(os_fetch *fetch, const uint8_t *digest, uint64_t offset) {
    uint64_t key;
    memcpy(&key, digest, sizeof key);
    return &fetch->bucket[(key ^ offset >> 16) % OS_FETCH_BUCKETS];
}

static os_fetch_job *find_job(os_fetch *fetch, const os_fetch_want *want) {
    os_fetch_job *job = *bucket_of(fetch, want->digest, want->offset);
    while (job != NULL && (job->offset != want->offset || job->length != want->length || job->origin != want->origin ||
                           job->blob_size != want->blob_size || memcmp(job->digest, want->digest, OS_ID_SIZE) != 0))
        job = job->chain;
    return job;
}

static void drop_job(os_fetch *fetch, os_fetch_job *job) {
    os_fetch_job **place = bucket_of(fetch, job->digest, job->offset);
    while (*place != job)
        place = &(*place)->chain;
    *place = job->chain;
    dequeue(job);
    fetch->env->release(fetch->env->context, job);
}

static void give_up_flight(os_fetch *fetch, os_fetch_flight *flight) {
    curl_multi_remove_handle(fetch->multi, flight->easy);
    for (int at = 0; at < 2; at++)
        if (flight->job->flight[at] == flight)
            flight->job->flight[at] = NULL;
    os_fetch_flight_put(fetch, flight);
}

static void give_up_flights(os_fetch *fetch, os_fetch_job *job) {
    for (int at = 0; at < 2; at++)
        if (job->flight[at] != NULL)
            give_up_flight(fetch, job->flight[at]);
}

/* Puts a waiter (out of its job's list) on the list of those to be told. */
static void finish_waiter(os_fetch *fetch, os_fetch_waiter *waiter, os_code code, uint32_t source,
                          const os_fetch_job *job) {
    waiter->result = (os_fetch_result){.code = code, .source = source, .tries = job->tries};
    snprintf(waiter->result.cause, sizeof waiter->result.cause, "%s", job->cause);
    waiter->next = NULL;
    *fetch->finished_end = waiter;
    fetch->finished_end = &waiter->next;
    fetch->wants--;
}

/* Tells all waiters and forgets the job, which has no flights. */
static void finish_job(os_fetch *fetch, os_fetch_job *job, os_code code, uint32_t source) {
    for (os_fetch_waiter *waiter = job->waiters, *next; waiter != NULL; waiter = next) {
        next = waiter->next;
        finish_waiter(fetch, waiter, code, source, job);
    }
    drop_job(fetch, job);
}

/* ---------------------------------------------------------------------- waiters leave */

/* Tells the waiters that the predicate names, and forgets jobs that have none left. */
static void end_waiters(os_fetch *fetch, os_code code, bool (*ends)(const os_fetch_want *want, const void *rule),
                        const void *rule) {
    fetch->next_deadline = OS_FETCH_NEVER;
    for (size_t at = 0; at < OS_FETCH_BUCKETS; at++) {
        for (os_fetch_job *job = fetch->bucket[at], *chain; job != NULL; job = chain) {
            chain = job->chain;
            bool first_gone = false;
            for (os_fetch_waiter **place = &job->waiters; *place != NULL;) {
                os_fetch_waiter *waiter = *place;
                if (!ends(&waiter->want, rule)) {
                    fetch->next_deadline = sooner(fetch->next_deadline, waiter->want.deadline);
                    place = &waiter->next;
                    continue;
                }
                if (place == &job->waiters && !first_gone) {
                    first_gone = true;
                    give_up_flights(fetch, job); /* before its buffer is another's */
                }
                *place = waiter->next;
                fetch->count.expired += code == OS_MISSING;
                finish_waiter(fetch, waiter, code, 0, job);
            }
            if (job->waiters == NULL)
                drop_job(fetch, job);
            else if (first_gone && job->queue == NULL)
                enqueue(&fetch->ready[job->prefetch], job, true);
        }
    }
}

static bool is_past(const os_fetch_want *want, const void *now) {
    return want->deadline <= *(const uint64_t *)now;
}

/* Ends what waits past its deadline. */
static void expire(os_fetch *fetch, uint64_t now) {
    if (fetch->next_deadline <= now)
        end_waiters(fetch, OS_MISSING, is_past, &now);
}

static bool is_named(const os_fetch_want *want, const void *rule) {
    const os_fetch_want *named = rule;
    return want->context == named->context && (named->ticket == 0 || want->ticket == named->ticket);
}

/* ---------------------------------------------------------------------- wants come in */

static os_fetch_job *make_job(os_fetch *fetch, const os_fetch_want *want, uint64_t now) {
    os_fetch_job *job = fetch->env->allocate(fetch->env->context, sizeof *job);
    if (job == NULL)
        return NULL;
    memset(job, 0, sizeof *job);
    memcpy(job->digest, want->digest, OS_ID_SIZE);
    job->blob_size = want->blob_size;
    job->offset = want->offset;
    job->length = want->length;
    job->origin = want->origin;
    job->prefetch = want->prefetch;
    job->asked = now;
    os_fetch_job **place = bucket_of(fetch, want->digest, want->offset);
    job->chain = *place;
    *place = job;
    if (want->rejected > 0) {
        /* What came was wrong: the others first, and all of them slower each time. */
        const os_fetch_origin *origin = os_fetch_find_origin(fetch, want->origin);
        fetch->count.rejected++;
        job->no_cache = true;
        job->last_failure = now;
        job->jitter = fetch->env->random(fetch->env->context) & 65535;
        for (unsigned at = 0; origin != NULL && at < origin->count; at++)
            job->tried[at] = want->rejected - (origin->source[at] == want->avoid ? 0 : 1);
        snprintf(job->cause, sizeof job->cause, "its bytes were wrong %u times", want->rejected);
    }
    return job;
}

static void raise_job(os_fetch *fetch, os_fetch_job *job) {
    if (!job->prefetch)
        return;
    job->prefetch = false;
    fetch->count.raised++;
    if (job->queue == &fetch->ready[1]) {
        dequeue(job);
        enqueue(&fetch->ready[0], job, false);
    }
}

static void raise_named(os_fetch *fetch, const os_fetch_want *named) {
    for (size_t at = 0; at < OS_FETCH_BUCKETS; at++)
        for (os_fetch_job *job = fetch->bucket[at]; job != NULL; job = job->chain)
            for (const os_fetch_waiter *waiter = job->waiters; waiter != NULL; waiter = waiter->next)
                if (is_named(&waiter->want, named))
                    raise_job(fetch, job);
}

/* Something about a want that was submitted before. */
static void take_change(os_fetch *fetch, os_fetch_waiter *waiter) {
    if (waiter->order == OS_FETCH_CANCEL)
        end_waiters(fetch, OS_CLOSED, is_named, &waiter->want);
    else
        raise_named(fetch, &waiter->want);
    fetch->env->release(fetch->env->context, waiter);
}

static void take_in(os_fetch *fetch, os_fetch_waiter *waiter, uint64_t now) {
    const os_fetch_want *want = &waiter->want;
    os_fetch_job *job = find_job(fetch, want);
    fetch->count.wants++;
    fetch->next_deadline = sooner(fetch->next_deadline, want->deadline);
    waiter->next = NULL;
    if (job == NULL) {
        job = make_job(fetch, want, now);
        if (job == NULL) {
            os_fetch_job none = {.cause = "got no memory"};
            finish_waiter(fetch, waiter, OS_MEMORY, 0, &none);
            return;
        }
        job->waiters = waiter;
        enqueue(&fetch->ready[job->prefetch], job, false);
        return;
    }
    fetch->count.joined++;
    os_fetch_waiter **end = &job->waiters;
    while (*end != NULL)
        end = &(*end)->next;
    *end = waiter;
    if (!want->prefetch)
        raise_job(fetch, job);
}

/* Tells who waits about the last failure. */
static void tell_failed(const os_fetch_job *job) {
    os_fetch_result so_far = {.code = OS_CORRUPT, .tries = job->tries};
    snprintf(so_far.cause, sizeof so_far.cause, "%s", job->cause);
    for (const os_fetch_waiter *waiter = job->waiters; waiter != NULL; waiter = waiter->next)
        if (waiter->want.failed != NULL)
            waiter->want.failed(waiter->want.context, waiter->want.ticket, &so_far);
}

/* ---------------------------------------------------------------------- flights go out */

/* Sends a request for the job. in_the_air: the place of the source that another flight asks, or -1. */
static bool launch(os_fetch *fetch, os_fetch_job *job, os_fetch_source *source, unsigned place, int in_the_air,
                   uint64_t now) {
    const os_env *env = fetch->env;
    os_fetch_flight *flight = os_fetch_flight_get(fetch);
    if (flight == NULL)
        return false;
    flight->job = job;
    flight->source = source->number;
    flight->version = source->version;
    flight->place = place;
    flight->hedge = in_the_air >= 0;
    flight->hops = 0;
    flight->credentials = true;
    flight->remembered = false;
    flight->started = now;
    flight->buffer = flight->hedge ? env->allocate(env->context, job->length) : job->waiters->want.buffer;
    job->tries++;
    const os_fetch_hop *hop = os_fetch_find_hop(source, job->digest);
    bool ready = flight->buffer != NULL;
    if (ready && hop != NULL) {
        snprintf(flight->url, sizeof flight->url, "%s", hop->url);
        flight->credentials = hop->credentials;
        flight->hops = 1;
        flight->remembered = true;
    } else if (ready) {
        ready = os_http_fill(source->url, job->digest, flight->url, sizeof flight->url, NULL) == OS_OK;
    }
    if (!ready || !os_fetch_take_off(flight)) {
        os_fetch_flight_put(fetch, flight);
        return false;
    }
    job->flight[flight->hedge] = flight;
    fetch->count.flights++;
    source->count.flights++;
    return true;
}

/* Somebody has to know why nothing happens. */
static void say_nobody(os_fetch_job *job) {
    if (job->cause[0] != '\0')
        return;
    snprintf(job->cause, sizeof job->cause, "there is no source that may be asked");
    tell_failed(job);
}

static void delay(os_fetch *fetch, os_fetch_job *job, uint64_t until) {
    dequeue(job);
    job->ready = until;
    fetch->next_ready = sooner(fetch->next_ready, until);
    enqueue(&fetch->delayed, job, false);
}

static unsigned prefetches_flying(const os_fetch *fetch) {
    unsigned count = 0;
    for (const os_fetch_flight *flight = fetch->flying; flight != NULL; flight = flight->next)
        count += flight->job->prefetch;
    return count;
}

static void start_ready(os_fetch *fetch, uint64_t now) {
    for (int kind = 0; kind < 2; kind++) {
        os_fetch_queue *queue = &fetch->ready[kind];
        unsigned prefetches = kind == 1 && queue->first != NULL ? prefetches_flying(fetch) : 0;
        while (queue->first != NULL && fetch->flights < fetch->options.flights) {
            if (kind == 1 && prefetches++ >= (fetch->options.flights + 1) / 2)
                return;
            os_fetch_job *job = queue->first;
            unsigned place;
            uint64_t until;
            os_fetch_source *source = os_fetch_choose(fetch, job, now, -1, &place, &until);
            if (source == NULL) {
                say_nobody(job);
                delay(fetch, job, until);
                continue;
            }
            if (job->tries > 0)
                fetch->count.retries++;
            dequeue(job);
            if (!launch(fetch, job, source, place, -1, now)) { /* no memory, most likely: a moment later */
                snprintf(job->cause, sizeof job->cause, "cannot send a request");
                delay(fetch, job, now + 100 * OS_FETCH_MS);
            }
            if (fetch->hedge_credit < OS_FETCH_HEDGE_BURST * OS_FETCH_HEDGE_SHARE)
                fetch->hedge_credit++;
        }
    }
}

static uint64_t hedge_after(const os_fetch *fetch) {
    uint64_t floor = fetch->options.hedge_floor_ms * OS_FETCH_MS;
    uint64_t late = fetch->latencies < LATENCIES_ENOUGH ? FIRST_HEDGE_MS * OS_FETCH_MS : fetch->p95;
    return late > floor ? late : floor;
}

/* Doubles what is late. Returns when the next one will be. */
static uint64_t start_hedges(os_fetch *fetch, uint64_t now) {
    uint64_t after = hedge_after(fetch), next = OS_FETCH_NEVER;
    for (os_fetch_flight *flight = fetch->flying; flight != NULL; flight = flight->next) {
        os_fetch_job *job = flight->job;
        if (job->prefetch || job->flight[1] != NULL || flight->hedge)
            continue;
        if (flight->started + after > now) {
            next = flight->started + after < next ? flight->started + after : next;
            continue;
        }
        if (fetch->hedge_credit < OS_FETCH_HEDGE_SHARE || fetch->flights >= fetch->options.flights)
            continue;
        unsigned place;
        uint64_t until;
        os_fetch_source *source = os_fetch_choose(fetch, job, now, (int)flight->place, &place, &until);
        if (source == NULL || !launch(fetch, job, source, place, (int)flight->place, now))
            continue;
        fetch->hedge_credit -= OS_FETCH_HEDGE_SHARE;
        fetch->count.hedges++;
    }
    return next;
}

/* ---------------------------------------------------------------------- answers come back */

static void count_fault(os_fetch *fetch, os_fetch_fault fault) {
    uint64_t *const counts[] = {
        [OS_FETCH_TRANSPORT] = &fetch->count.transport, [OS_FETCH_TIMEOUT] = &fetch->count.timeouts,
        [OS_FETCH_STATUS] = &fetch->count.status,       [OS_FETCH_RANGE] = &fetch->count.range,
        [OS_FETCH_LENGTH] = &fetch->count.length,       [OS_FETCH_ENCODING] = &fetch->count.encoding,
        [OS_FETCH_REDIRECT] = &fetch->count.redirect,
    };
    if (fault != OS_FETCH_STALE) /* counted when the source was marked */
        (*counts[fault])++;
}

static void succeed(os_fetch *fetch, os_fetch_flight *flight, uint64_t now) {
    os_fetch_job *job = flight->job;
    os_fetch_source *source = os_fetch_find_source(fetch, flight->source);
    uint32_t number = flight->source;
    uint8_t *target = job->waiters->want.buffer;
    os_fetch_measure(fetch, now - flight->started);
    fetch->count.bytes += job->length;
    fetch->count.hedges_won += flight->hedge;
    if (source != NULL) {
        source->failures = 0;
        source->not_before = 0;
        source->count.bytes += job->length;
        if (flight->hops > 0 && !flight->remembered)
            os_fetch_remember_hop(fetch, source, flight);
    }
    if (flight->hedge) { /* the other one writes to the target as long as it flies */
        if (job->flight[0] != NULL)
            give_up_flight(fetch, job->flight[0]);
        memcpy(target, flight->buffer, job->length);
    }
    give_up_flights(fetch, job);
    for (os_fetch_waiter *waiter = job->waiters->next; waiter != NULL; waiter = waiter->next)
        memcpy(waiter->want.buffer, target, job->length);
    os_fetch_note_slow(fetch, job, number, now - job->asked);
    finish_job(fetch, job, OS_OK, number);
}

/* What a fault says about the source as a whole. */
static void blame(os_fetch *fetch, os_fetch_source *source, const os_fetch_flight *flight, os_fetch_fault fault,
                  uint64_t now) {
    source->count.failures++;
    if (flight->hops > 0)
        os_fetch_forget_hop(fetch, source, flight->job->digest);
    if (fault == OS_FETCH_STALE) {
        if (source->version == flight->version)
            os_fetch_mark_stale(fetch, source, (uint32_t)flight->status);
        return;
    }
    uint64_t rest = 0;
    if (fault == OS_FETCH_TRANSPORT || fault == OS_FETCH_TIMEOUT || flight->status == 429 || flight->status >= 500) {
        /* One failure is bad luck and concerns its range alone; from the second in a row on, the host is unwell. */
        if (++source->failures > 1)
            rest = os_fetch_backoff(fetch, source->failures - 1, flight->job->jitter);
    }
    if ((flight->status == 429 || flight->status == 503) && flight->retry_after > 0) {
        uint64_t asked =
            flight->retry_after < OS_FETCH_RETRY_AFTER_MAX_S ? flight->retry_after : OS_FETCH_RETRY_AFTER_MAX_S;
        rest = asked * 1000 * OS_FETCH_MS > rest ? asked * 1000 * OS_FETCH_MS : rest;
    }
    if (rest > 0 && now + rest > source->not_before)
        source->not_before = now + rest;
}

static void fail(os_fetch *fetch, os_fetch_flight *flight, os_fetch_fault fault, const char *cause, uint64_t now) {
    os_fetch_job *job = flight->job;
    os_fetch_source *source = os_fetch_find_source(fetch, flight->source);
    char digest[17];
    bool remembered = flight->remembered && fault != OS_FETCH_TRANSPORT && fault != OS_FETCH_TIMEOUT;
    for (int at = 0; at < 8; at++)
        snprintf(digest + 2 * at, 3, "%02x", job->digest[at]);
    count_fault(fetch, fault);
    job->jitter = fetch->env->random(fetch->env->context) & 65535;
    snprintf(job->cause, sizeof job->cause, "%s: %s", source != NULL ? source->label : "a source that is gone", cause);
    if (source != NULL)
        blame(fetch, source, flight, fault, now);
    /* A remembered place that has had its time costs nothing but the way to it; so do credentials. */
    if (!remembered && fault != OS_FETCH_STALE) {
        job->tried[flight->place]++;
        job->last_failure = now;
    }
    if (fetch->options.log != NULL)
        os_log_write(fetch->options.log, "fetch: blob %s at %llu: try %u: %s", digest, (unsigned long long)job->offset,
                     job->tries, job->cause);
    give_up_flight(fetch, flight);
    tell_failed(job);
    if (job->flight[0] == NULL && job->flight[1] == NULL && job->queue == NULL)
        enqueue(&fetch->ready[job->prefetch], job, true);
}

static void take_answer(os_fetch *fetch, os_fetch_flight *flight, CURLcode result, uint64_t now) {
    char cause[OS_FETCH_CAUSE_MAX];
    os_fetch_fault fault = os_fetch_judge(flight, result, cause, sizeof cause);
    if (fault == OS_FETCH_HOP) {
        curl_multi_remove_handle(fetch->multi, flight->easy);
        flight->remembered = false;
        fetch->count.redirects++;
        fetch->count.flights++;
        if (os_fetch_take_off(flight))
            return;
        fault = OS_FETCH_TRANSPORT;
        snprintf(cause, sizeof cause, "cannot send a request");
    }
    if (fault == OS_FETCH_FINE)
        succeed(fetch, flight, now);
    else
        fail(fetch, flight, fault, cause, now);
}

static void take_answers(os_fetch *fetch, uint64_t now) {
    CURLMsg *message;
    int left;
    while ((message = curl_multi_info_read(fetch->multi, &left)) != NULL) {
        char *context = NULL;
        CURLcode result = message->data.result;
        if (message->msg != CURLMSG_DONE ||
            curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &context) != CURLE_OK)
            continue;
        take_answer(fetch, (os_fetch_flight *)(void *)context, result, now);
    }
}

/* Ends flights that do not move. Returns when the next one would be one. */
static uint64_t end_stalled(os_fetch *fetch, uint64_t now) {
    uint64_t limit = fetch->options.stall_timeout_ms * OS_FETCH_MS, next = OS_FETCH_NEVER;
    for (os_fetch_flight *flight = fetch->flying, *after; flight != NULL; flight = after) {
        after = flight->next;
        if (flight->moved + limit > now) {
            next = flight->moved + limit < next ? flight->moved + limit : next;
            continue;
        }
        char cause[OS_FETCH_CAUSE_MAX];
        flight->fault = OS_FETCH_TIMEOUT;
        os_fetch_fault fault = os_fetch_judge(flight, CURLE_OK, cause, sizeof cause);
        fail(fetch, flight, fault, cause, now);
    }
    return next;
}

/* ---------------------------------------------------------------------- time */

/* Lets go of what has waited long enough. */
static void end_delays(os_fetch *fetch, uint64_t now, bool all) {
    if (!all && fetch->next_ready > now)
        return;
    fetch->next_ready = OS_FETCH_NEVER;
    for (os_fetch_job *job = fetch->delayed.first, *next; job != NULL; job = next) {
        next = job->next;
        if (all || job->ready <= now) {
            dequeue(job);
            enqueue(&fetch->ready[job->prefetch], job, false);
        } else if (job->ready < fetch->next_ready) {
            fetch->next_ready = job->ready;
        }
    }
}

/* ---------------------------------------------------------------------- the thread */

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
        if (waiter->order == OS_FETCH_WANT)
            take_in(fetch, waiter, now);
        else
            take_change(fetch, waiter);
        waiter = next;
    }
}

static void end_all(os_fetch *fetch) {
    take_in_all(fetch, now_of(fetch));
    for (size_t at = 0; at < OS_FETCH_BUCKETS; at++) {
        while (fetch->bucket[at] != NULL) {
            give_up_flights(fetch, fetch->bucket[at]);
            finish_job(fetch, fetch->bucket[at], OS_CLOSED, 0);
        }
    }
}

static void *engine_main(void *argument) {
    os_fetch *fetch = argument;
    pthread_mutex_lock(&fetch->lock);
    while (!fetch->stopping) {
        uint64_t now = now_of(fetch);
        take_in_all(fetch, now);
        expire(fetch, now);
        end_delays(fetch, now, fetch->sources_changed);
        fetch->sources_changed = false;
        uint64_t wake = end_stalled(fetch, now);
        start_ready(fetch, now);
        wake = sooner(wake, start_hedges(fetch, now));
        wake = sooner(wake, sooner(fetch->next_ready, fetch->next_deadline));
        fetch->count.active = fetch->flights;
        fetch->count.waiting = fetch->ready[0].count + fetch->ready[1].count + fetch->delayed.count;
        pthread_mutex_unlock(&fetch->lock);
        tell_finished(fetch);
        int running = 0;
        curl_multi_perform(fetch->multi, &running);
        pthread_mutex_lock(&fetch->lock);
        size_t answered = fetch->flights;
        take_answers(fetch, now_of(fetch));
        bool busy = answered != fetch->flights || fetch->finished != NULL || fetch->incoming != NULL;
        pthread_mutex_unlock(&fetch->lock);
        tell_finished(fetch);
        now = now_of(fetch);
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

bool os_fetch_change(os_fetch *fetch, const void *context, uint64_t ticket, bool cancel) {
    os_fetch_waiter *waiter = fetch->env->allocate(fetch->env->context, sizeof *waiter);
    if (waiter == NULL)
        return false;
    memset(waiter, 0, sizeof *waiter);
    waiter->order = cancel ? OS_FETCH_CANCEL : OS_FETCH_RAISE;
    waiter->want.context = (void *)context;
    waiter->want.ticket = ticket;
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
    return true;
}
