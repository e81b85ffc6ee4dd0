/* What is known about how long requests take. */
#include <stdlib.h>
#include <string.h>

#include "os_fetch_parts.h"

#define EVERY 8u /* requests between two looks at the quantiles */

static int by_size(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return a < b ? -1 : a > b;
}

void os_fetch_measure(os_fetch *fetch, uint64_t ns) {
    uint64_t sorted[OS_FETCH_LATENCIES];
    fetch->latency[fetch->latency_next++ % OS_FETCH_LATENCIES] = ns;
    if (fetch->latencies < OS_FETCH_LATENCIES)
        fetch->latencies++;
    if (fetch->latency_next % EVERY != 0)
        return;
    unsigned count = fetch->latencies;
    memcpy(sorted, fetch->latency, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_size);
    fetch->p50 = sorted[count / 2];
    fetch->p95 = sorted[count - 1 - count / 20];
}

void os_fetch_note_slow(os_fetch *fetch, const os_fetch_job *job, uint32_t source, uint64_t ns) {
    unsigned at = fetch->slows;
    if (at == OS_FETCH_SLOWEST) {
        at = 0;
        for (unsigned other = 1; other < OS_FETCH_SLOWEST; other++)
            if (fetch->slow[other].ns < fetch->slow[at].ns)
                at = other;
        if (fetch->slow[at].ns >= ns)
            return;
    } else {
        fetch->slows++;
    }
    os_fetch_slow *slow = &fetch->slow[at];
    *slow =
        (os_fetch_slow){.offset = job->offset, .ns = ns, .length = job->length, .tries = job->tries, .source = source};
    memcpy(slow->digest, job->digest, OS_ID_SIZE);
}

unsigned os_fetch_slowest(os_fetch *fetch, os_fetch_slow out[OS_FETCH_SLOWEST]) {
    pthread_mutex_lock(&fetch->lock);
    unsigned count = fetch->slows;
    memcpy(out, fetch->slow, count * sizeof *out);
    pthread_mutex_unlock(&fetch->lock);
    return count;
}

void os_fetch_statistics_of(os_fetch *fetch, os_fetch_statistics *out) {
    pthread_mutex_lock(&fetch->lock);
    *out = fetch->count;
    out->p50_ns = fetch->p50;
    out->p95_ns = fetch->p95;
    pthread_mutex_unlock(&fetch->lock);
}
