/* Answers come back: what a good one ends, and what a fault says about its range and about its source. */
#include <stdio.h>
#include <string.h>

#include "os_fetch_parts.h"

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
            os_fetch_give_up(fetch, job->flight[0]);
        memcpy(target, flight->buffer, job->length);
    }
    os_fetch_give_up_all(fetch, job);
    for (os_fetch_waiter *waiter = job->waiters->next; waiter != NULL; waiter = waiter->next)
        memcpy(waiter->want.buffer, target, job->length);
    os_fetch_note_slow(fetch, job, number, now - job->asked);
    os_fetch_finish_job(fetch, job, OS_OK, number);
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
    os_fetch_give_up(fetch, flight);
    os_fetch_tell_failed(job);
    if (job->flight[0] == NULL && job->flight[1] == NULL && job->queue == NULL)
        os_fetch_enqueue(&fetch->ready[job->prefetch], job, true);
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

void os_fetch_take_answers(os_fetch *fetch, uint64_t now) {
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
uint64_t os_fetch_end_stalled(os_fetch *fetch, uint64_t now) {
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
