/* Ranges of blobs for Python: read, which waits, and serve, which lasts as long as an object server does. */
#include "py_fetch_parts.h"

#include <pthread.h>
#include <string.h>
#include <time.h>

#include "os_fetch_link.h"

/* What one read waits for. Whoever lets go of it last frees it: a read that was interrupted leaves the engine alone
 * with it. */
typedef struct call {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t left;            /* ranges not done; guarded by lock */
    unsigned owners;        /* guarded by lock */
    os_fetch_result result; /* of the range that failed first, else of the last one; guarded by lock */
    uint8_t data[];         /* the engine's until left is 0 */
} call;

static call *make_call(size_t length) {
    call *it = PyMem_RawCalloc(1, sizeof *it + length);
    if (it == NULL)
        return NULL;
    pthread_mutex_init(&it->lock, NULL);
    pthread_cond_init(&it->changed, NULL);
    it->owners = 1;
    return it;
}

static void let_go(call *it) {
    pthread_mutex_lock(&it->lock);
    unsigned left = --it->owners;
    pthread_mutex_unlock(&it->lock);
    if (left > 0)
        return;
    pthread_cond_destroy(&it->changed);
    pthread_mutex_destroy(&it->lock);
    PyMem_RawFree(it);
}

static void on_done(void *context, uint64_t ticket, const os_fetch_result *result) {
    call *it = context;
    (void)ticket;
    pthread_mutex_lock(&it->lock);
    if (it->result.code == OS_OK)
        it->result = *result;
    it->left--;
    pthread_cond_signal(&it->changed);
    pthread_mutex_unlock(&it->lock);
    let_go(it);
}

/* Whether all of it is done, within a moment. */
static bool wait_a_moment(call *it, long ns) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += ns;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&it->lock);
    int error = 0;
    while (it->left > 0 && error == 0)
        error = pthread_cond_timedwait(&it->changed, &it->lock, &until);
    bool done = it->left == 0;
    pthread_mutex_unlock(&it->lock);
    return done;
}

/* Waits; false with an exception if a signal ended it. */
static bool wait_for(call *it) {
    for (;;) {
        bool done;
        Py_BEGIN_ALLOW_THREADS;
        done = wait_a_moment(it, 1000000000);
        Py_END_ALLOW_THREADS;
        if (done)
            return true;
        if (PyErr_CheckSignals() < 0)
            return false;
    }
}

static void submit_spans(os_fetch *fetch, call *it, os_fetch_want want, size_t size) {
    os_failure failure = {0};
    uint64_t end = want.offset + size;
    while (want.offset < end) {
        uint64_t stop = (want.offset / OS_FETCH_SPAN + 1) * OS_FETCH_SPAN;
        want.length = (uint32_t)((stop < end ? stop : end) - want.offset);
        pthread_mutex_lock(&it->lock);
        it->left++;
        it->owners++;
        pthread_mutex_unlock(&it->lock);
        if (os_fetch_submit(fetch, &want, &failure) != OS_OK) {
            os_fetch_result result = {.code = failure.code};
            snprintf(result.cause, sizeof result.cause, "%.*s", (int)sizeof result.cause - 1, failure.message);
            on_done(it, 0, &result);
            return;
        }
        want.buffer += want.length;
        want.offset += want.length;
    }
}

PyObject *os_py_fetch_read(PyObject *object, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"", "", "", "", "", "timeout", "prefetch", "rejected", "avoid", NULL};
    os_fetch_want want = {.done = on_done};
    Py_buffer digest;
    unsigned long long size, offset;
    Py_ssize_t length;
    double timeout = 120;
    int prefetch = 0;
    os_fetch *fetch = os_py_fetch_opened(object);
    if (fetch == NULL ||
        !PyArg_ParseTupleAndKeywords(arguments, keywords, "Iy*KKn|$dpII:read", names, &want.origin, &digest, &size,
                                     &offset, &length, &timeout, &prefetch, &want.rejected, &want.avoid))
        return NULL;
    bool sound = digest.len == OS_ID_SIZE && length > 0 && (unsigned long long)length <= size &&
                 offset <= size - (unsigned long long)length && timeout >= 0 && timeout < 1e9;
    if (sound)
        memcpy(want.digest, digest.buf, OS_ID_SIZE);
    PyBuffer_Release(&digest);
    if (!sound)
        return PyErr_Format(PyExc_ValueError, "read: want a digest of 32 bytes, a range inside the blob, and seconds");
    call *it = make_call((size_t)length);
    if (it == NULL)
        return PyErr_NoMemory();
    want.blob_size = size;
    want.offset = offset;
    want.prefetch = prefetch != 0;
    want.deadline = os_env_system.monotonic_ns(NULL) + (uint64_t)(timeout * 1e9);
    want.buffer = it->data;
    want.context = it;
    submit_spans(fetch, it, want, (size_t)length);
    PyObject *out = NULL;
    if (wait_for(it)) {
        os_failure failure = {0};
        if (it->result.code == OS_OK) {
            out = Py_BuildValue("(y#II)", (char *)it->data, length, it->result.source, it->result.tries);
        } else {
            const char *what = it->result.code == OS_MISSING ? "did not come before the deadline" : "not fetched";
            os_fail(&failure, it->result.code, "blob: %s: %s", what, it->result.cause);
            os_py_raise(&failure);
        }
    }
    let_go(it);
    return out;
}

PyObject *os_py_fetch_ping(PyObject *object, PyObject *arguments) {
    double timeout;
    os_fetch *fetch = os_py_fetch_opened(object);
    if (fetch == NULL || !PyArg_ParseTuple(arguments, "d:ping", &timeout))
        return NULL;
    call *it = make_call(0);
    if (it == NULL)
        return PyErr_NoMemory();
    bool came = false;
    it->left = 1;
    it->owners = 2;
    if (!os_fetch_ping(fetch, it, on_done))
        on_done(it, 0, &(os_fetch_result){.code = OS_MEMORY});
    else
        for (double waited = 0; waited < timeout && !came && PyErr_CheckSignals() == 0; waited += 0.1) {
            Py_BEGIN_ALLOW_THREADS;
            came = wait_a_moment(it, 100000000);
            Py_END_ALLOW_THREADS;
        }
    let_go(it);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(came);
}

PyObject *os_py_fetch_serve(PyObject *object, PyObject *arguments) {
    int sock, memory;
    os_py_fetcher *self = (os_py_fetcher *)object;
    os_fetch *fetch = os_py_fetch_opened(object);
    if (fetch == NULL || !PyArg_ParseTuple(arguments, "ii:serve", &sock, &memory))
        return NULL;
    os_failure failure = {0};
    os_code code;
    self->serving++;
    Py_BEGIN_ALLOW_THREADS;
    code = os_fetch_serve(fetch, sock, memory, &failure);
    Py_END_ALLOW_THREADS;
    self->serving--;
    if (code != OS_OK)
        return os_py_raise(&failure);
    Py_RETURN_NONE;
}
