/* Threads
 *
 * One of its own, made with the first order. It takes one order after the other and one chunk after the other: wants
 * the chunk's spans as a prefetch, waits until they are here, reads the chunk as any reader would, and puts it into the
 * store. So there is one span in the air at a time, or two where a frame lies across their border; and before each it
 * waits until no demand is on its way. It may wait for the store's writer, since nobody waits for it. An order begins
 * when its time has come: a start that reads everything out of the page cache shows no demand, and still needs the line
 * and the processors.
 *
 * warm->lock guards the list of orders, `stopping` and the counts; it is a leaf. An order holds its image: what was
 * detached meanwhile is finished all the same, as long as the server lives, because the next start is who profits.
 *
 * Everything comes out of os_image_read, so it is verified; tables are looked at anew for each chunk, as there. */
#define _GNU_SOURCE
#include "os_warm.h"

#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "os_image_parts.h"
#include "os_shelf.h"

#define SECOND_NS UINT64_C(1000000000)
#define TICK_NS (SECOND_NS / 50)
#define PATIENCE_NS (30 * SECOND_NS) /* for one chunk; then the order is given up */

typedef struct order {
    struct order *next;
    os_image *image;   /* held */
    uint64_t left;     /* of the budget */
    uint64_t begin_ns; /* not before that */
    uint8_t *done;     /* owned, a bit for each chunk: what was put is not in the map at once. NULL until its turn */
    size_t count;
    os_warm_run run[];
} order;

struct os_warm {
    os_warm_options options; /* immutable */
    const os_env *env;       /* immutable */
    pthread_mutex_t lock;    /* guards what follows */
    pthread_cond_t changed;
    bool stopping, started;
    order *first;
    os_warm_statistics count;
    pthread_t thread;

    /* the thread's own */
    os_reader reader;
    uint8_t *chunk;   /* owned, OS_CHUNK_MAX bytes */
    uint64_t *starts; /* owned: of the object in `row` of the order at hand */
    uint32_t row;
    uint32_t frame; /* that was paid for last */
};

/* ---------------------------------------------------------------------- waiting */

/* Or until something changed; with the lock. */
static void wait_locked(os_warm *warm, uint64_t ns) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    ns += (uint64_t)until.tv_nsec;
    until.tv_sec += (time_t)(ns / SECOND_NS);
    until.tv_nsec = (long)(ns % SECOND_NS);
    if (!warm->stopping)
        pthread_cond_timedwait(&warm->changed, &warm->lock, &until);
}

/* Whether to go on. */
static bool wait_a_tick(os_warm *warm) {
    pthread_mutex_lock(&warm->lock);
    wait_locked(warm, TICK_NS);
    bool on = !warm->stopping;
    pthread_mutex_unlock(&warm->lock);
    return on;
}

static bool goes_on(os_warm *warm) {
    pthread_mutex_lock(&warm->lock);
    bool on = !warm->stopping;
    pthread_mutex_unlock(&warm->lock);
    return on;
}

/* ---------------------------------------------------------------------- one chunk */

static void count(os_warm *warm, const os_piece *p, uint64_t packed) {
    pthread_mutex_lock(&warm->lock);
    warm->count.chunks++;
    warm->count.bytes += p->length;
    warm->count.fetched += packed;
    pthread_mutex_unlock(&warm->lock);
}

/* The chunk's bytes in warm->chunk. */
static os_answer fetch(os_warm *warm, order *it, uint32_t part, const os_piece *p) {
    uint64_t from = warm->starts[part], to = from + p->length, began = warm->env->monotonic_ns(warm->env->context);
    os_place place;
    os_failure failure = {0};
    for (;;) {
        bool on = goes_on(warm);
        while (on && os_spans_busy(warm->options.spans)) { /* that long it does not wait for its packs */
            on = wait_a_tick(warm);
            began = warm->env->monotonic_ns(warm->env->context);
        }
        if (!on)
            return OS_ANSWER_PENDING;
        os_answer answer = os_image_want_ahead(it->image, warm->row, warm->starts, from, to, &warm->reader,
                                               warm->options.cache, warm->env);
        if (answer == OS_ANSWER_HERE)
            answer = os_image_read(it->image, warm->row, warm->starts, from, p->length, warm->chunk, &warm->reader,
                                   warm->options.cache, warm->env, &place, &failure);
        if (answer != OS_ANSWER_PENDING)
            return answer;
        if (warm->env->monotonic_ns(warm->env->context) - began > PATIENCE_NS) {
            os_log_write(warm->options.log, "%s: prefetch: given up, its packs do not come", it->image->label);
            return OS_ANSWER_PENDING;
        }
        if (!wait_a_tick(warm))
            return OS_ANSWER_PENDING;
    }
}

/* Whether the order goes on. */
static bool keep_chunk(os_warm *warm, order *it, uint32_t part, bool pin) {
    const os_tables *t = &it->image->tables;
    const os_source *source = &it->image->source;
    uint32_t ref = t->object_ref[warm->row] + part, chunk = ref < t->ref_count ? t->ref[ref] : UINT32_MAX;
    if (chunk >= t->chunk_count || t->chunk_frame[chunk] == OS_TABLES_HOLE)
        return true;
    uint8_t *done = &it->done[chunk / 8], bit = (uint8_t)(1u << chunk % 8);
    if (*done & bit)
        return true;
    *done |= bit;
    const os_piece p = os_piece_of(t, chunk, part);
    if (!os_piece_sound(t, &p) || p.length != warm->starts[part + 1] - warm->starts[part] || p.length > OS_CHUNK_MAX)
        return true;
    const uint8_t *id = t->chunk_id + (size_t)chunk * OS_ID_SIZE;
    unsigned algorithm = t->object_algorithm[warm->row];
    unsigned flags = OS_STORE_VERIFIED | (pin ? OS_STORE_PINNED : 0);
    if (source->far == NULL || !source->far(source->context, p.blob) ||
        os_store_keeps(warm->options.store, id, algorithm, flags))
        return true;
    uint64_t packed = 0;
    if (!os_shelf_get(warm->options.store, id, algorithm, warm->chunk, p.length)) {
        packed = p.frame == warm->frame ? 0 : p.packed;
        if (packed > it->left)
            return false;
        os_answer answer = fetch(warm, it, part, &p);
        if (answer != OS_ANSWER_HERE)
            return answer == OS_ANSWER_FAILED;
        it->left -= packed;
        warm->frame = p.frame;
    }
    if (os_store_put(warm->options.store, id, algorithm, warm->chunk, p.length, flags, NULL) != OS_OK)
        return false; /* the store takes no more */
    count(warm, &p, packed);
    return goes_on(warm);
}

/* ---------------------------------------------------------------------- one order */

/* Makes warm->starts those of the row; false: it is no object that can be read. */
static bool take_row(os_warm *warm, order *it, uint32_t row) {
    const os_tables *t = &it->image->tables;
    if (warm->starts != NULL && warm->row == row)
        return true;
    if (warm->starts != NULL)
        warm->env->release(warm->env->context, warm->starts);
    warm->starts = NULL;
    if (os_image_check(it->image, row, NULL) != OS_OK)
        return false;
    uint32_t first = t->object_ref[row], parts = t->object_ref[row + 1] - first;
    uint64_t *starts = warm->env->allocate(warm->env->context, ((size_t)parts + 1) * sizeof *starts), at = 0;
    if (starts == NULL)
        return false;
    for (uint32_t part = 0; part < parts; part++) {
        uint32_t chunk = first + part < t->ref_count ? t->ref[first + part] : UINT32_MAX;
        starts[part] = at;
        at += chunk < t->chunk_count ? os_tables_length(t, chunk) : 0;
    }
    starts[parts] = at;
    warm->starts = starts;
    warm->row = row;
    return true;
}

/* The chunks of a run; whole: of the object that it is in. */
static bool keep_run(os_warm *warm, order *it, const os_warm_run *run, bool whole) {
    const os_tables *t = &it->image->tables;
    uint32_t row;
    if (os_tables_find(t, run->object, &row) != OS_OK || !take_row(warm, it, row))
        return true;
    uint32_t parts = t->object_ref[row + 1] - t->object_ref[row];
    uint64_t end = warm->starts[parts], from = whole ? 0 : run->offset;
    if (from >= end)
        return true;
    uint64_t stop = whole || run->length > end - from ? end : from + run->length;
    bool on = true;
    for (uint32_t part = os_part_at(warm->starts, parts, from); part < parts && warm->starts[part] < stop && on; part++)
        on = keep_chunk(warm, it, part, !whole);
    return on;
}

/* The rest of the objects, each once, in the order in which they were met. */
static void keep_rest(os_warm *warm, order *it) {
    const os_tables *t = &it->image->tables;
    uint8_t *met = warm->env->allocate(warm->env->context, (size_t)t->object_count + 1);
    if (met == NULL)
        return;
    memset(met, 0, (size_t)t->object_count + 1);
    bool on = true;
    for (size_t at = 0; at < it->count && on; at++) {
        uint32_t row;
        if (os_tables_find(t, it->run[at].object, &row) != OS_OK || met[row])
            continue;
        met[row] = 1;
        on = keep_run(warm, it, &it->run[at], true);
    }
    warm->env->release(warm->env->context, met);
}

static void keep_order(os_warm *warm, order *it) {
    const size_t size = (size_t)it->image->tables.chunk_count / 8 + 1;
    it->done = warm->env->allocate(warm->env->context, size);
    bool on = it->done != NULL;
    if (on)
        memset(it->done, 0, size);
    warm->frame = UINT32_MAX;
    for (size_t at = 0; at < it->count && on; at++)
        on = keep_run(warm, it, &it->run[at], false);
    if (on)
        keep_rest(warm, it);
    os_store_flush(warm->options.store, NULL); /* done means on disk */
    if (warm->starts != NULL)
        warm->env->release(warm->env->context, warm->starts);
    warm->starts = NULL;
}

static void end_order(os_warm *warm, order *it) {
    os_image_drop(it->image, warm->env);
    if (it->done != NULL)
        warm->env->release(warm->env->context, it->done);
    warm->env->release(warm->env->context, it);
}

/* Takes the first order that may begin out of the list; NULL after having waited for one. With the lock. */
static order *next_order(os_warm *warm) {
    if (warm->first == NULL) {
        pthread_cond_wait(&warm->changed, &warm->lock);
        return NULL;
    }
    const uint64_t now = warm->env->monotonic_ns(warm->env->context);
    uint64_t soonest = UINT64_MAX;
    for (order **at = &warm->first; *at != NULL; at = &(*at)->next) {
        order *it = *at;
        if (it->begin_ns <= now) {
            *at = it->next;
            return it;
        }
        if (it->begin_ns < soonest)
            soonest = it->begin_ns;
    }
    wait_locked(warm, soonest - now);
    return NULL;
}

static void *warm_main(void *argument) {
    os_warm *warm = argument;
    os_failure failure;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL); /* signals are for the threads that read requests */
    warm->chunk = warm->env->allocate(warm->env->context, OS_CHUNK_MAX);
    bool able = warm->chunk != NULL && os_reader_init(&warm->reader, warm->env, &failure) == OS_OK;
    pthread_mutex_lock(&warm->lock);
    while (!warm->stopping) {
        order *it = next_order(warm);
        if (it == NULL)
            continue;
        pthread_mutex_unlock(&warm->lock);
        if (able)
            keep_order(warm, it);
        pthread_mutex_lock(&warm->lock);
        warm->count.orders--;
        pthread_mutex_unlock(&warm->lock);
        end_order(warm, it);
        pthread_mutex_lock(&warm->lock);
    }
    pthread_mutex_unlock(&warm->lock);
    return NULL;
}

/* ---------------------------------------------------------------------- from outside */

os_code os_warm_make(const os_warm_options *options, os_warm **out, os_failure *failure) {
    os_warm *warm = options->env->allocate(options->env->context, sizeof *warm);
    if (warm == NULL)
        return os_fail(failure, OS_MEMORY, "prefetch: got no memory");
    memset(warm, 0, sizeof *warm);
    warm->options = *options;
    warm->env = options->env;
    pthread_mutex_init(&warm->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&warm->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    *out = warm;
    return OS_OK;
}

os_code os_warm_add(os_warm *warm, os_image *image, const os_warm_run *runs, size_t count, uint64_t budget,
                    uint64_t wait_ns, os_failure *failure) {
    const os_env *env = warm->env;
    if (count > OS_WARM_RUNS_MAX)
        return os_fail(failure, OS_LIMIT, "prefetch: got %zu runs, want at most %u", count, OS_WARM_RUNS_MAX);
    order *it = env->allocate(env->context, sizeof *it + count * sizeof it->run[0]);
    if (it == NULL)
        return os_fail(failure, OS_MEMORY, "prefetch: got no memory");
    const uint64_t begin = env->monotonic_ns(env->context) + wait_ns;
    *it = (order){.image = image, .left = budget, .begin_ns = begin, .count = count};
    if (count > 0)
        memcpy(it->run, runs, count * sizeof it->run[0]);
    os_code code = OS_OK;
    pthread_mutex_lock(&warm->lock);
    if (warm->stopping || warm->count.orders >= OS_WARM_ORDERS_MAX) {
        code = os_fail(failure, OS_LIMIT, "prefetch: got more than %u orders at once", OS_WARM_ORDERS_MAX);
    } else if (!warm->started) {
        int error = env->start_thread(env->context, &warm->thread, warm_main, warm);
        warm->started = error == 0;
        if (error != 0)
            code = os_fail_errno(failure, error, "prefetch: thread: %s", strerror(error));
    }
    if (code == OS_OK) {
        order **end = &warm->first;
        while (*end != NULL)
            end = &(*end)->next;
        *end = it;
        os_image_hold(image);
        warm->count.orders++;
        pthread_cond_signal(&warm->changed);
    }
    pthread_mutex_unlock(&warm->lock);
    if (code != OS_OK)
        env->release(env->context, it);
    return code;
}

void os_warm_wake(os_warm *warm) {
    pthread_mutex_lock(&warm->lock);
    pthread_cond_signal(&warm->changed);
    pthread_mutex_unlock(&warm->lock);
}

void os_warm_statistics_of(os_warm *warm, os_warm_statistics *out) {
    pthread_mutex_lock(&warm->lock);
    *out = warm->count;
    pthread_mutex_unlock(&warm->lock);
}

void os_warm_stop(os_warm *warm) {
    if (warm == NULL)
        return;
    pthread_mutex_lock(&warm->lock);
    bool running = warm->started && !warm->stopping;
    warm->stopping = true;
    pthread_cond_signal(&warm->changed);
    pthread_mutex_unlock(&warm->lock);
    if (running)
        pthread_join(warm->thread, NULL);
}

void os_warm_free(os_warm *warm) {
    if (warm == NULL)
        return;
    os_warm_stop(warm);
    while (warm->first != NULL) {
        order *it = warm->first;
        warm->first = it->next;
        end_order(warm, it);
    }
    os_reader_destroy(&warm->reader, warm->env);
    if (warm->chunk != NULL)
        warm->env->release(warm->env->context, warm->chunk);
    pthread_cond_destroy(&warm->changed);
    pthread_mutex_destroy(&warm->lock);
    warm->env->release(warm->env->context, warm);
}
