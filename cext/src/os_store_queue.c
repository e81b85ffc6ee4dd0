/* The queue between callers and the writer, and the idle buffers that calls share; os_store.c has the essay. */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "os_store_parts.h"

#define NOTE_NS UINT64_C(600000000000) /* between two lines about failures that nobody has asked for */

void os_store_note(os_store *store, const char *format, ...) {
    char line[512];
    va_list arguments;
    if (store->log == NULL)
        return;
    va_start(arguments, format);
    if (vsnprintf(line, sizeof line, format, arguments) > 0)
        os_log_write(store->log, "store: %s", line);
    va_end(arguments);
}

/* ---------------------------------------------------------------- what went wrong */

void os_store_remember(os_store *store, const os_failure *failure) {
    uint64_t now = store->env->monotonic_ns(store->env->context);
    pthread_mutex_lock(&store->queue_lock);
    bool tell = store->trouble.code == OS_OK || now - store->noted > NOTE_NS;
    if (tell)
        store->noted = now;
    if (store->trouble.code == OS_OK)
        store->trouble = *failure;
    pthread_mutex_unlock(&store->queue_lock);
    if (tell) /* a disk that stays full is one line, not one for each batch */
        os_store_note(store, "%s", failure->message);
}

os_code os_store_take_trouble(os_store *store, os_failure *failure) {
    pthread_mutex_lock(&store->queue_lock);
    os_code code = store->trouble.code;
    if (code != OS_OK && failure != NULL)
        *failure = store->trouble;
    store->trouble.code = OS_OK;
    pthread_mutex_unlock(&store->queue_lock);
    return code;
}

/* ---------------------------------------------------------------- jobs */

job *os_store_job(os_store *store, job_kind kind, size_t size) {
    job *it = store->env->allocate(store->env->context, sizeof *it + size);
    if (it != NULL) {
        memset(it, 0, sizeof *it);
        it->kind = kind;
    }
    return it;
}

bool os_store_queue_is_short(os_store *store) {
    pthread_mutex_lock(&store->queue_lock);
    bool is_short = store->queued_bytes < store->queue_size;
    pthread_mutex_unlock(&store->queue_lock);
    return is_short;
}

/* queue_lock is held. Signals are for the caller's threads, but for those that a fault in the map raises. */
static int start_writer(os_store *store) {
    sigset_t all, before;
    if (store->writing)
        return 0;
    sigfillset(&all);
    for (size_t at = 0; at < 4; at++)
        sigdelset(&all, ((const int[]){SIGBUS, SIGSEGV, SIGFPE, SIGILL})[at]);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&store->writer, NULL, os_store_writer_main, store);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    store->writing = error == 0;
    return error;
}

static os_code refuse(os_store *store, job *it, os_failure *failure, os_code code, const char *words) {
    pthread_mutex_unlock(&store->queue_lock);
    store->env->release(store->env->context, it);
    return os_fail(failure, code, "store: %s", words);
}

os_code os_store_enqueue(os_store *store, job *it, bool wait, uint64_t *ticket, os_failure *failure) {
    pthread_mutex_lock(&store->queue_lock);
    while (wait && it->kind == JOB_PUT && store->queued_bytes >= store->queue_size && !store->stopping)
        pthread_cond_wait(&store->room, &store->queue_lock);
    if (store->stopping)
        return refuse(store, it, failure, OS_CLOSED, "closed");
    if (it->kind == JOB_PUT && store->queued_bytes >= store->queue_size)
        return refuse(store, it, failure, OS_LIMIT, "its queue is full");
    int error = start_writer(store);
    if (error != 0) {
        refuse(store, it, failure, OS_SYSTEM, "");
        return os_fail_errno(failure, error, "store: no thread: %s", strerror(error));
    }
    *(store->last == NULL ? &store->first : &store->last->next) = it;
    store->last = it;
    store->queued_bytes += sizeof *it + it->entry.stored;
    *ticket = ++store->queued_jobs;
    if (it->kind == JOB_FORGET)
        atomic_fetch_add(&store->forgetting, 1);
    pthread_cond_signal(&store->work);
    pthread_mutex_unlock(&store->queue_lock);
    return OS_OK;
}

void os_store_wait(os_store *store, uint64_t ticket) {
    pthread_mutex_lock(&store->queue_lock);
    while (store->settled_jobs < ticket)
        pthread_cond_wait(&store->settled, &store->queue_lock);
    pthread_mutex_unlock(&store->queue_lock);
}

job *os_store_take_batch(os_store *store) {
    pthread_mutex_lock(&store->queue_lock);
    while (store->first == NULL && !store->stopping)
        pthread_cond_wait(&store->work, &store->queue_lock);
    job *batch = store->first;
    store->first = store->last = NULL;
    pthread_mutex_unlock(&store->queue_lock);
    return batch;
}

void os_store_settle(os_store *store, job *batch) {
    uint64_t jobs = 0, bytes = 0;
    while (batch != NULL) {
        job *it = batch;
        batch = it->next;
        jobs++;
        bytes += sizeof *it + it->entry.stored;
        if (it->kind == JOB_FORGET)
            atomic_fetch_sub(&store->forgetting, 1);
        store->env->release(store->env->context, it);
    }
    pthread_mutex_lock(&store->queue_lock);
    store->settled_jobs += jobs;
    store->queued_bytes -= bytes;
    pthread_cond_broadcast(&store->room);
    pthread_cond_broadcast(&store->settled);
    pthread_mutex_unlock(&store->queue_lock);
}

/* ---------------------------------------------------------------- buffers */

static void scratch_free(os_store *store, scratch *it) {
    ZSTD_freeDCtx(it->decoder);
    ZSTD_freeCCtx(it->encoder);
    store->env->release(store->env->context, it);
}

scratch *os_store_scratch(os_store *store) {
    pthread_mutex_lock(&store->scratch_lock);
    scratch *it = store->idle;
    if (it != NULL)
        store->idle = it->next;
    pthread_mutex_unlock(&store->scratch_lock);
    if (it != NULL)
        return it;
    it = store->env->allocate(store->env->context, sizeof *it);
    if (it == NULL)
        return NULL;
    it->decoder = ZSTD_createDCtx();
    it->encoder = ZSTD_createCCtx();
    if (it->decoder != NULL && it->encoder != NULL)
        return it;
    scratch_free(store, it);
    return NULL;
}

void os_store_scratch_back(os_store *store, scratch *it) {
    pthread_mutex_lock(&store->scratch_lock);
    it->next = store->idle;
    store->idle = it;
    pthread_mutex_unlock(&store->scratch_lock);
}

void os_store_scratch_end(os_store *store) {
    while (store->idle != NULL) {
        scratch *it = store->idle;
        store->idle = it->next;
        scratch_free(store, it);
    }
}
