/* Sources, origins, and which source is asked next. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "os_fetch_parts.h"

static char *copy_text(os_fetch *fetch, const char *text) {
    size_t size = strlen(text) + 1;
    char *copy = fetch->env->allocate(fetch->env->context, size);
    if (copy != NULL)
        memcpy(copy, text, size);
    return copy;
}

static bool copy_optional(os_fetch *fetch, const char *text, char **out) {
    *out = text == NULL ? NULL : copy_text(fetch, text);
    return text == NULL || *out != NULL;
}

static void release(os_fetch *fetch, void *memory) {
    if (memory != NULL)
        fetch->env->release(fetch->env->context, memory);
}

static void forget_hops(os_fetch *fetch, os_fetch_source *source) {
    for (unsigned at = 0; at < OS_FETCH_REDIRECTS; at++) {
        release(fetch, source->hop[at].url);
        source->hop[at].url = NULL;
    }
}

static void free_source(os_fetch *fetch, os_fetch_source *source) {
    if (source == NULL)
        return;
    forget_hops(fetch, source);
    release(fetch, source->url);
    release(fetch, source->authorities);
    release(fetch, source->proxy);
    release(fetch, source->no_proxy);
    curl_slist_free_all(source->headers);
    release(fetch, source);
}

void os_fetch_free_sources(os_fetch *fetch) {
    for (size_t at = 0; at < fetch->sources; at++)
        free_source(fetch, fetch->source[at]);
    for (size_t at = 0; at < fetch->origins; at++)
        release(fetch, fetch->origin[at]);
    release(fetch, fetch->source);
    release(fetch, fetch->origin);
}

/* ---------------------------------------------------------------------- two small sorted lists */

/* Where the number is or would be, in a list of things that start with theirs. */
static size_t find(void *const *list, size_t count, uint32_t number) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (*(const uint32_t *)list[middle] < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static os_code insert(os_fetch *fetch, void ***list, size_t *count, size_t *room, size_t most, void *it,
                      os_failure *failure) {
    if (*count >= most)
        return os_fail(failure, OS_LIMIT, "fetch: got more than %zu sources or origins", most);
    if (*count == *room) {
        size_t larger = *room == 0 ? 16 : 2 * *room;
        void **grown = fetch->env->allocate(fetch->env->context, larger * sizeof *grown);
        if (grown == NULL)
            return os_fail(failure, OS_MEMORY, "fetch: got no memory");
        if (*count > 0)
            memcpy(grown, *list, *count * sizeof *grown);
        release(fetch, *list);
        *list = grown;
        *room = larger;
    }
    size_t at = find(*list, *count, *(const uint32_t *)it);
    memmove(*list + at + 1, *list + at, (*count - at) * sizeof **list);
    (*list)[at] = it;
    (*count)++;
    return OS_OK;
}

os_fetch_source *os_fetch_find_source(const os_fetch *fetch, uint32_t number) {
    size_t at = find((void *const *)fetch->source, fetch->sources, number);
    return at < fetch->sources && fetch->source[at]->number == number ? fetch->source[at] : NULL;
}

const os_fetch_origin *os_fetch_find_origin(const os_fetch *fetch, uint32_t number) {
    size_t at = find((void *const *)fetch->origin, fetch->origins, number);
    return at < fetch->origins && fetch->origin[at]->number == number ? fetch->origin[at] : NULL;
}

/* ---------------------------------------------------------------------- from outside */

os_code os_fetch_set_source(os_fetch *fetch, uint32_t number, const os_fetch_place *place, os_failure *failure) {
    const char *const *headers = place->headers;
    unsigned count = place->header_count;
    static const uint8_t any[OS_ID_SIZE];
    char filled[OS_FETCH_URL_MAX], label[OS_FETCH_LABEL_MAX];
    const os_env *env = fetch->env;
    os_code code = os_http_fill(place->url, any, filled, sizeof filled, failure);
    if (code == OS_OK)
        code = os_http_check_url(filled, label, sizeof label, failure);
    if (code == OS_OK && (count > OS_FETCH_HEADERS_MAX || number == 0))
        code = os_fail(failure, OS_LIMIT, "source: got number %u and %u headers, want not 0 and at most %u", number,
                       count, OS_FETCH_HEADERS_MAX);
    for (unsigned at = 0; at < count && code == OS_OK; at++)
        if (!os_http_header_sound(headers[at]))
            code = os_fail(failure, OS_CORRUPT, "source: got a header that is none, want \"Name: value\" on one line");
    if (code != OS_OK)
        return code;
    os_fetch_source *made = env->allocate(env->context, sizeof *made);
    if (made == NULL)
        return os_fail(failure, OS_MEMORY, "source: got no memory");
    memset(made, 0, sizeof *made);
    made->number = made->count.source = number;
    made->url = copy_text(fetch, place->url);
    memcpy(made->label, label, sizeof label);
    bool whole = made->url != NULL && copy_optional(fetch, place->authorities, &made->authorities) &&
                 copy_optional(fetch, place->proxy, &made->proxy) &&
                 copy_optional(fetch, place->no_proxy, &made->no_proxy);
    for (unsigned at = 0; at < count && whole; at++) {
        struct curl_slist *longer = curl_slist_append(made->headers, headers[at]);
        whole = longer != NULL;
        if (whole)
            made->headers = longer;
    }
    uint64_t now = env->monotonic_ns(env->context);
    made->expires = place->lifetime_ns == 0 ? OS_FETCH_NEVER : now + place->lifetime_ns;
    pthread_mutex_lock(&fetch->lock);
    os_fetch_source *old = os_fetch_find_source(fetch, number);
    made->version = ++fetch->version;
    if (!whole) {
        code = os_fail(failure, OS_MEMORY, "source: got no memory");
    } else if (old != NULL) {
        made->count = old->count;
        made->count.stale = false;
        fetch->source[find((void *const *)fetch->source, fetch->sources, number)] = made;
        made = old;
    } else {
        code = insert(fetch, (void ***)&fetch->source, &fetch->sources, &fetch->sources_room, OS_FETCH_SOURCES_MAX,
                      made, failure);
        if (code == OS_OK)
            made = NULL;
    }
    fetch->sources_changed = true;
    pthread_mutex_unlock(&fetch->lock);
    free_source(fetch, made);
    curl_multi_wakeup(fetch->multi);
    return code;
}

os_code os_fetch_set_origin(os_fetch *fetch, uint32_t number, const uint32_t *sources, unsigned count,
                            os_failure *failure) {
    if (count > OS_FETCH_ORIGIN_SOURCES_MAX)
        return os_fail(failure, OS_LIMIT, "origin: got %u sources, want at most %u", count,
                       OS_FETCH_ORIGIN_SOURCES_MAX);
    os_fetch_origin *made = fetch->env->allocate(fetch->env->context, sizeof *made);
    if (made == NULL)
        return os_fail(failure, OS_MEMORY, "origin: got no memory");
    *made = (os_fetch_origin){.number = number, .count = count};
    if (count > 0)
        memcpy(made->source, sources, count * sizeof *sources);
    os_code code = OS_OK;
    pthread_mutex_lock(&fetch->lock);
    size_t at = find((void *const *)fetch->origin, fetch->origins, number);
    if (at < fetch->origins && fetch->origin[at]->number == number) {
        *fetch->origin[at] = *made;
        release(fetch, made);
    } else {
        code = insert(fetch, (void ***)&fetch->origin, &fetch->origins, &fetch->origins_room, OS_FETCH_ORIGINS_MAX,
                      made, failure);
        if (code != OS_OK)
            release(fetch, made);
    }
    fetch->sources_changed = true;
    pthread_mutex_unlock(&fetch->lock);
    curl_multi_wakeup(fetch->multi);
    return code;
}

bool os_fetch_news(os_fetch *fetch, os_fetch_news_item *out) {
    pthread_mutex_lock(&fetch->lock);
    bool any = fetch->news_count > 0;
    if (any) {
        *out = fetch->news[fetch->news_first++ % OS_FETCH_NEWS_MAX];
        fetch->news_count--;
    }
    pthread_mutex_unlock(&fetch->lock);
    return any;
}

unsigned os_fetch_sources_of(os_fetch *fetch, os_fetch_source_statistics *out, unsigned room) {
    pthread_mutex_lock(&fetch->lock);
    unsigned count = (unsigned)fetch->sources;
    for (unsigned at = 0; at < count && at < room; at++) {
        out[at] = fetch->source[at]->count;
        out[at].stale = fetch->source[at]->stale;
    }
    pthread_mutex_unlock(&fetch->lock);
    return count;
}

/* ---------------------------------------------------------------------- the engine's thread */

void os_fetch_mark_stale(os_fetch *fetch, os_fetch_source *source, uint32_t status) {
    uint64_t one = 1;
    if (source->stale)
        return;
    source->stale = true;
    fetch->count.stale++;
    if (fetch->news_count < OS_FETCH_NEWS_MAX) /* else the reader is dead, and who waits for it runs into a deadline */
        fetch->news[(fetch->news_first + fetch->news_count++) % OS_FETCH_NEWS_MAX] =
            (os_fetch_news_item){source->number, status, source->version};
    if (fetch->options.news >= 0 && fetch->env->write(fetch->env->context, fetch->options.news, &one, sizeof one) < 0 &&
        errno != EAGAIN && fetch->options.log != NULL)
        os_log_write(fetch->options.log, "fetch: news: %s", strerror(errno));
}

uint64_t os_fetch_backoff(const os_fetch *fetch, unsigned failures, uint32_t jitter) {
    uint64_t first = fetch->options.backoff_ms * OS_FETCH_MS, most = fetch->options.backoff_max_ms * OS_FETCH_MS;
    uint64_t full = first;
    for (unsigned at = 1; at < failures && full < most; at++)
        full *= 2;
    if (full > most)
        full = most;
    return full / 2 + full / 2 * jitter / 65536;
}

/* The order among sources that may be asked now: fewest failures for this range first, then the origin's own order. A
 * source that failed for it before rests longer each time, so that a range with one source does not hammer it; one that
 * has not goes at once. */
os_fetch_source *os_fetch_choose(os_fetch *fetch, const os_fetch_job *job, uint64_t now, int other, unsigned *place,
                                 uint64_t *until) {
    const os_fetch_origin *origin = os_fetch_find_origin(fetch, job->origin);
    os_fetch_source *best = NULL;
    *until = OS_FETCH_NEVER;
    for (unsigned at = 0; origin != NULL && at < origin->count; at++) {
        os_fetch_source *source = os_fetch_find_source(fetch, origin->source[at]);
        if (source != NULL && !source->stale && source->expires <= now)
            os_fetch_mark_stale(fetch, source, 0);
        if (source == NULL || source->stale)
            continue;
        uint64_t ready = source->not_before;
        if (job->tried[at] > 0) {
            uint64_t rested = job->last_failure + os_fetch_backoff(fetch, job->tried[at], job->jitter);
            ready = rested > ready ? rested : ready;
        }
        if (ready > now) {
            *until = ready < *until ? ready : *until;
            continue;
        }
        bool fewer = best == NULL || job->tried[at] < job->tried[*place] || (int)*place == other;
        if (fewer && !(best != NULL && (int)at == other)) {
            best = source;
            *place = at;
        }
    }
    return best;
}

const os_fetch_hop *os_fetch_find_hop(const os_fetch_source *source, const uint8_t digest[OS_ID_SIZE]) {
    for (unsigned at = 0; at < OS_FETCH_REDIRECTS; at++)
        if (source->hop[at].url != NULL && memcmp(source->hop[at].digest, digest, OS_ID_SIZE) == 0)
            return &source->hop[at];
    return NULL;
}

void os_fetch_forget_hop(os_fetch *fetch, os_fetch_source *source, const uint8_t digest[OS_ID_SIZE]) {
    os_fetch_hop *hop = (os_fetch_hop *)os_fetch_find_hop(source, digest);
    if (hop == NULL)
        return;
    release(fetch, hop->url);
    hop->url = NULL;
}

void os_fetch_remember_hop(os_fetch *fetch, os_fetch_source *source, const os_fetch_flight *flight) {
    os_fetch_forget_hop(fetch, source, flight->job->digest);
    os_fetch_hop *hop = &source->hop[source->next_hop++ % OS_FETCH_REDIRECTS];
    release(fetch, hop->url);
    hop->url = copy_text(fetch, flight->url);
    hop->credentials = flight->credentials;
    memcpy(hop->digest, flight->job->digest, OS_ID_SIZE);
}
