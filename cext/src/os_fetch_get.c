#include "os_fetch_get.h"

/* One thread of ours drives libcurl, so that bytes come in while the client imports, forks and mounts. The client's
 * threads take them out.
 *
 * One lock guards everything. The thread holds it in curl_multi_perform and in all callbacks, and lets go of it for
 * curl_multi_poll, which touches nothing but descriptors. So whoever has the lock knows that the thread holds no other,
 * neither libcurl's nor the allocator's nor OpenSSL's: that is the moment to fork (os_get_park). libcurl's resolver has
 * threads of its own for names, which nobody can stop: what forks then must not look up names itself before it has let
 * go of everything, and ours only use addresses or do so in a process that made its engine after the fork.
 *
 * A transfer is freed by the thread, or by os_get_free once the thread has ended. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "os_fetch_get_parts.h"
#include "os_fetch_http.h"

#define TICK_MS 1000 /* between two looks at what is silent */

static void free_transfer(os_get *get, os_get_transfer *transfer) {
    const os_env *env = get->env;
    if (transfer->added)
        curl_multi_remove_handle(get->multi, transfer->easy);
    curl_easy_cleanup(transfer->easy);
    curl_slist_free_all(transfer->headers);
    env->release(env->context, transfer->head);
    env->release(env->context, transfer->data);
    env->release(env->context, transfer);
}

static os_get_transfer *find(const os_get *get, uint32_t number) {
    os_get_transfer *transfer = get->transfers;
    while (transfer != NULL && (transfer->number != number || transfer->dropped))
        transfer = transfer->next;
    return transfer;
}

/* ---------------------------------------------------------------------- the thread */

static void take_in(os_get *get, os_get_transfer *transfer) {
    if (transfer->end != OS_GET_RUNNING)
        return;
    if (!transfer->added) {
        transfer->added = curl_multi_add_handle(get->multi, transfer->easy) == CURLM_OK;
        if (!transfer->added)
            os_get_judge(transfer, CURLE_OUT_OF_MEMORY);
    }
    if (transfer->resume) {
        transfer->resume = transfer->paused = false;
        transfer->moved = get->env->monotonic_ns(get->env->context);
        curl_easy_pause(transfer->easy, CURLPAUSE_CONT);
    }
}

static void end_silent(os_get *get, os_get_transfer *transfer) {
    uint64_t now = get->env->monotonic_ns(get->env->context);
    curl_off_t sent = 0;
    if (!transfer->added || transfer->end != OS_GET_RUNNING || transfer->paused)
        return;
    if (curl_easy_getinfo(transfer->easy, CURLINFO_PRETRANSFER_TIME_T, &sent) == CURLE_OK && sent > 0 &&
        !transfer->connected) {
        transfer->connected = true;
        transfer->moved = now;
    }
    /* The time to connect is libcurl's to watch. */
    if (transfer->connected && now - transfer->moved > (uint64_t)get->silence_ms * 1000000u) {
        curl_multi_remove_handle(get->multi, transfer->easy);
        transfer->added = false;
        os_get_judge(transfer, CURLE_OPERATION_TIMEDOUT);
        transfer->end = OS_GET_SILENT;
    }
}

static void look_at_all(os_get *get) {
    for (os_get_transfer **place = &get->transfers; *place != NULL;) {
        os_get_transfer *transfer = *place;
        if (transfer->dropped) {
            *place = transfer->next;
            free_transfer(get, transfer);
            continue;
        }
        take_in(get, transfer);
        end_silent(get, transfer);
        place = &transfer->next;
    }
}

static void take_ends(os_get *get) {
    int left;
    for (CURLMsg *message; (message = curl_multi_info_read(get->multi, &left)) != NULL;) {
        char *context = NULL;
        CURLcode result = message->data.result;
        if (message->msg != CURLMSG_DONE ||
            curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &context) != CURLE_OK)
            continue;
        os_get_transfer *transfer = (os_get_transfer *)(void *)context;
        os_get_judge(transfer, result);
        curl_multi_remove_handle(get->multi, transfer->easy);
        transfer->added = false;
    }
}

static void *drive(void *argument) {
    os_get *get = argument;
    pthread_mutex_lock(&get->lock);
    while (!get->stopping) {
        int running;
        uint64_t before = get->changes;
        look_at_all(get);
        curl_multi_perform(get->multi, &running);
        take_ends(get);
        if (get->changes != before)
            pthread_cond_broadcast(&get->changed);
        pthread_mutex_unlock(&get->lock);
        curl_multi_poll(get->multi, NULL, 0, get->silence_ms < TICK_MS ? (int)get->silence_ms : TICK_MS, NULL);
        pthread_mutex_lock(&get->lock);
    }
    pthread_mutex_unlock(&get->lock);
    return NULL;
}

/* ---------------------------------------------------------------------- the client */

os_code os_get_make(const os_get_options *options, os_get **out, os_failure *failure) {
    const os_env *env = options->env;
    os_get *get = env->allocate(env->context, sizeof *get);
    pthread_condattr_t monotonic;
    if (get == NULL)
        return os_fail(failure, OS_MEMORY, "getter: out of memory");
    memset(get, 0, sizeof *get);
    get->env = env;
    get->process = getpid();
    get->connect_ms = options->connect_ms;
    get->silence_ms = options->silence_ms;
    get->next_number = 1;
    pthread_mutex_init(&get->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&get->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    get->multi = curl_multi_init();
    bool whole = get->multi != NULL;
    if (options->authorities != NULL) {
        size_t size = strlen(options->authorities) + 1;
        get->authorities = env->allocate(env->context, size);
        if (get->authorities != NULL)
            memcpy(get->authorities, options->authorities, size);
        whole = whole && get->authorities != NULL;
    }
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* whoever blocks a signal is not to get it by way of our thread */
    int error = whole ? env->start_thread(env->context, &get->thread, drive, get) : 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (whole && error == 0) {
        *out = get;
        return OS_OK;
    }
    curl_multi_cleanup(get->multi);
    pthread_cond_destroy(&get->changed);
    pthread_mutex_destroy(&get->lock);
    env->release(env->context, get->authorities);
    env->release(env->context, get);
    return error != 0 ? os_fail_errno(failure, error, "getter: cannot start its thread")
                      : os_fail(failure, OS_MEMORY, "getter: out of memory");
}

void os_get_free(os_get *get) {
    if (get == NULL || os_get_inherited(get))
        return; /* a child's copy: its lock is held for ever and its thread never was */
    const os_env *env = get->env;
    pthread_mutex_lock(&get->lock);
    get->stopping = true;
    curl_multi_wakeup(get->multi);
    pthread_mutex_unlock(&get->lock);
    pthread_join(get->thread, NULL);
    while (get->transfers != NULL) {
        os_get_transfer *transfer = get->transfers;
        get->transfers = transfer->next;
        free_transfer(get, transfer);
    }
    curl_multi_cleanup(get->multi);
    pthread_cond_destroy(&get->changed);
    pthread_mutex_destroy(&get->lock);
    env->release(env->context, get->authorities);
    env->release(env->context, get);
}

static os_code check(const os_get_request *request, os_failure *failure) {
    char label[OS_FETCH_URL_MAX + 64];
    if (request->header_count > OS_FETCH_HEADERS_MAX)
        return os_fail(failure, OS_LIMIT, "request: got %u headers, want at most %u", request->header_count,
                       OS_FETCH_HEADERS_MAX);
    for (unsigned at = 0; at < request->header_count; at++)
        if (!os_http_header_sound(request->headers[at]))
            return os_fail(failure, OS_CORRUPT, "request: got a header that no request may have");
    if (request->body_size > OS_GET_BODY_MAX)
        return os_fail(failure, OS_LIMIT, "request: got %zu bytes, want at most %u", request->body_size,
                       OS_GET_BODY_MAX);
    return os_http_check_url(request->url, label, sizeof label, failure);
}

os_code os_get_start(os_get *get, const os_get_request *request, uint32_t *number, os_failure *failure) {
    const os_env *env = get->env;
    os_code code = check(request, failure);
    if (code != OS_OK)
        return code;
    os_get_transfer *transfer = env->allocate(env->context, sizeof *transfer);
    if (transfer == NULL)
        return os_fail(failure, OS_MEMORY, "request: out of memory");
    memset(transfer, 0, sizeof *transfer);
    transfer->get = get;
    transfer->moved = env->monotonic_ns(env->context);
    transfer->easy = os_get_handle(transfer, request);
    if (transfer->easy == NULL) {
        free_transfer(get, transfer);
        return os_fail(failure, OS_MEMORY, "request: libcurl would not take it");
    }
    pthread_mutex_lock(&get->lock);
    if (get->count >= OS_GET_AT_ONCE_MAX) {
        pthread_mutex_unlock(&get->lock);
        free_transfer(get, transfer);
        return os_fail(failure, OS_LIMIT, "request: got more than %u at once", OS_GET_AT_ONCE_MAX);
    }
    os_get_transfer **place = &get->transfers;
    while (*place != NULL)
        place = &(*place)->next;
    *place = transfer;
    get->count++;
    *number = transfer->number = get->next_number++;
    curl_multi_wakeup(get->multi);
    pthread_mutex_unlock(&get->lock);
    return OS_OK;
}

os_code os_get_look(os_get *get, uint32_t number, os_get_answer *out, os_failure *failure) {
    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&get->lock);
    os_get_transfer *transfer = find(get, number);
    if (transfer != NULL) {
        out->end = transfer->end;
        out->error = transfer->error;
        out->status = transfer->status;
        if (transfer->whole) {
            out->head = transfer->head; /* nothing writes to it any more */
            out->head_size = transfer->head_size;
        }
        out->words = transfer->end == OS_GET_RUNNING ? "" : transfer->words;
    }
    pthread_mutex_unlock(&get->lock);
    return transfer != NULL ? OS_OK : os_fail(failure, OS_MISSING, "request %u: not there", number);
}

os_code os_get_take(os_get *get, uint32_t number, void *buffer, size_t room, size_t *taken, os_failure *failure) {
    pthread_mutex_lock(&get->lock);
    os_get_transfer *transfer = find(get, number);
    if (transfer != NULL) {
        size_t held = transfer->size - transfer->begin;
        *taken = held < room ? held : room;
        if (*taken > 0)
            memcpy(buffer, transfer->data + transfer->begin, *taken);
        transfer->begin += *taken;
        if (transfer->begin == transfer->size)
            transfer->begin = transfer->size = 0;
        if (transfer->paused && !transfer->resume) {
            transfer->resume = true;
            curl_multi_wakeup(get->multi);
        }
    }
    pthread_mutex_unlock(&get->lock);
    return transfer != NULL ? OS_OK : os_fail(failure, OS_MISSING, "request %u: not there", number);
}

size_t os_get_held(os_get *get, uint32_t number) {
    pthread_mutex_lock(&get->lock);
    const os_get_transfer *transfer = find(get, number);
    size_t held = transfer == NULL ? 0 : transfer->size - transfer->begin;
    pthread_mutex_unlock(&get->lock);
    return held;
}

void os_get_drop(os_get *get, uint32_t number) {
    pthread_mutex_lock(&get->lock);
    os_get_transfer *transfer = find(get, number);
    if (transfer != NULL) {
        transfer->dropped = true;
        get->count--;
        curl_multi_wakeup(get->multi);
    }
    pthread_mutex_unlock(&get->lock);
}

void os_get_wait(os_get *get, uint64_t timeout_ns) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t end = (uint64_t)until.tv_nsec + timeout_ns % 1000000000u;
    until.tv_sec += (time_t)(timeout_ns / 1000000000u + end / 1000000000u);
    until.tv_nsec = (long)(end % 1000000000u);
    pthread_mutex_lock(&get->lock);
    int error = 0;
    while (get->changes == get->seen && error == 0)
        error = pthread_cond_timedwait(&get->changed, &get->lock, &until);
    get->seen = get->changes;
    pthread_mutex_unlock(&get->lock);
}

void os_get_wake(os_get *get) {
    pthread_mutex_lock(&get->lock);
    get->changes++;
    pthread_cond_broadcast(&get->changed);
    pthread_mutex_unlock(&get->lock);
}

void os_get_park(os_get *get) {
    pthread_mutex_lock(&get->lock);
}

void os_get_unpark(os_get *get) {
    pthread_mutex_unlock(&get->lock);
}

bool os_get_inherited(const os_get *get) {
    return get->process != getpid();
}
