/* Requests go out: whose turn it is, which source is asked, and when a request that is late is sent a second time. */
#include <stdio.h>

#include "os_fetch_parts.h"

#define FIRST_HEDGE_MS 2000u /* before there are enough requests to have a p95 */
#define LATENCIES_ENOUGH 20u

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
    os_fetch_tell_failed(job);
}

static void delay(os_fetch *fetch, os_fetch_job *job, uint64_t until) {
    os_fetch_dequeue(job);
    job->ready = until;
    fetch->next_ready = os_fetch_sooner(fetch->next_ready, until);
    os_fetch_enqueue(&fetch->delayed, job, false);
}

static unsigned prefetches_flying(const os_fetch *fetch) {
    unsigned count = 0;
    for (const os_fetch_flight *flight = fetch->flying; flight != NULL; flight = flight->next)
        count += flight->job->prefetch;
    return count;
}

void os_fetch_start_ready(os_fetch *fetch, uint64_t now) {
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
            os_fetch_dequeue(job);
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
uint64_t os_fetch_start_hedges(os_fetch *fetch, uint64_t now) {
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
