/* Ranges that somebody wants: jobs, their queues and waiters. All of it is the engine's thread's, but for what
 * os_fetch_parts.h says. */
#include <stdio.h>
#include <string.h>

#include "os_fetch_parts.h"

uint64_t os_fetch_now(const os_fetch *fetch) {
    return fetch->env->monotonic_ns(fetch->env->context);
}

uint64_t os_fetch_sooner(uint64_t left, uint64_t right) {
    return left < right ? left : right;
}

/* ---------------------------------------------------------------------- queues and jobs */

void os_fetch_enqueue(os_fetch_queue *queue, os_fetch_job *job, bool in_front) {
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

void os_fetch_dequeue(os_fetch_job *job) {
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
                           job->blob_size != want->blob_size || job->no_cache != (want->rejected > 0) ||
                           memcmp(job->digest, want->digest, OS_ID_SIZE) != 0))
        job = job->chain;
    return job;
}

void os_fetch_drop_job(os_fetch *fetch, os_fetch_job *job) {
    os_fetch_job **place = bucket_of(fetch, job->digest, job->offset);
    while (*place != job)
        place = &(*place)->chain;
    *place = job->chain;
    os_fetch_dequeue(job);
    fetch->env->release(fetch->env->context, job);
}

void os_fetch_give_up(os_fetch *fetch, os_fetch_flight *flight) {
    curl_multi_remove_handle(fetch->multi, flight->easy);
    for (int at = 0; at < 2; at++)
        if (flight->job->flight[at] == flight)
            flight->job->flight[at] = NULL;
    os_fetch_flight_put(fetch, flight);
}

void os_fetch_give_up_all(os_fetch *fetch, os_fetch_job *job) {
    for (int at = 0; at < 2; at++)
        if (job->flight[at] != NULL)
            os_fetch_give_up(fetch, job->flight[at]);
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
void os_fetch_finish_job(os_fetch *fetch, os_fetch_job *job, os_code code, uint32_t source) {
    for (os_fetch_waiter *waiter = job->waiters, *next; waiter != NULL; waiter = next) {
        next = waiter->next;
        finish_waiter(fetch, waiter, code, source, job);
    }
    os_fetch_drop_job(fetch, job);
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
                    fetch->next_deadline = os_fetch_sooner(fetch->next_deadline, waiter->want.deadline);
                    place = &waiter->next;
                    continue;
                }
                if (place == &job->waiters && !first_gone) {
                    first_gone = true;
                    os_fetch_give_up_all(fetch, job); /* before its buffer is another's */
                }
                *place = waiter->next;
                fetch->count.expired += code == OS_MISSING;
                finish_waiter(fetch, waiter, code, 0, job);
            }
            if (job->waiters == NULL)
                os_fetch_drop_job(fetch, job);
            else if (first_gone && job->queue == NULL)
                os_fetch_enqueue(&fetch->ready[job->prefetch], job, true);
        }
    }
}

static bool is_past(const os_fetch_want *want, const void *now) {
    return want->deadline <= *(const uint64_t *)now;
}

/* Ends what waits past its deadline. */
void os_fetch_expire(os_fetch *fetch, uint64_t now) {
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
        os_fetch_dequeue(job);
        os_fetch_enqueue(&fetch->ready[0], job, false);
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
void os_fetch_take_change(os_fetch *fetch, os_fetch_waiter *waiter) {
    if (waiter->order == OS_FETCH_CANCEL)
        end_waiters(fetch, OS_CLOSED, is_named, &waiter->want);
    else
        raise_named(fetch, &waiter->want);
    fetch->env->release(fetch->env->context, waiter);
}

void os_fetch_take_in(os_fetch *fetch, os_fetch_waiter *waiter, uint64_t now) {
    const os_fetch_want *want = &waiter->want;
    os_fetch_job *job = find_job(fetch, want);
    fetch->count.wants++;
    fetch->next_deadline = os_fetch_sooner(fetch->next_deadline, want->deadline);
    waiter->next = NULL;
    if (job == NULL) {
        job = make_job(fetch, want, now);
        if (job == NULL) {
            os_fetch_job none = {.cause = "got no memory"};
            finish_waiter(fetch, waiter, OS_MEMORY, 0, &none);
            return;
        }
        job->waiters = waiter;
        os_fetch_enqueue(&fetch->ready[job->prefetch], job, false);
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
void os_fetch_tell_failed(const os_fetch_job *job) {
    os_fetch_result so_far = {.code = OS_CORRUPT, .tries = job->tries};
    snprintf(so_far.cause, sizeof so_far.cause, "%s", job->cause);
    for (const os_fetch_waiter *waiter = job->waiters; waiter != NULL; waiter = waiter->next)
        if (waiter->want.failed != NULL)
            waiter->want.failed(waiter->want.context, waiter->want.ticket, &so_far);
}

/* ---------------------------------------------------------------------- time */

/* Lets go of what has waited long enough. */
void os_fetch_end_delays(os_fetch *fetch, uint64_t now, bool all) {
    if (!all && fetch->next_ready > now)
        return;
    fetch->next_ready = OS_FETCH_NEVER;
    for (os_fetch_job *job = fetch->delayed.first, *next; job != NULL; job = next) {
        next = job->next;
        if (all || job->ready <= now) {
            os_fetch_dequeue(job);
            os_fetch_enqueue(&fetch->ready[job->prefetch], job, false);
        } else if (job->ready < fetch->next_ready) {
            fetch->next_ready = job->ready;
        }
    }
}
