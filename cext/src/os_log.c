#include "os_log.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#define SECOND UINT64_C(1000000000)

void os_log_init(os_log *log, const os_env *env, int fd) {
    log->env = env;
    log->fd = fd;
    pthread_mutex_init(&log->lock, NULL);
    log->start = log->refilled = env->monotonic_ns(env->context);
    log->tokens = OS_LOG_BURST;
    log->suppressed = 0;
}

void os_log_destroy(os_log *log) {
    pthread_mutex_destroy(&log->lock);
}

/* Whether a line may go out now. The lock is held. */
static int take_token(os_log *log, uint64_t now) {
    uint64_t earned = (now - log->refilled) * OS_LOG_PER_SECOND / SECOND;
    if (earned > 0) {
        log->tokens = log->tokens + earned > OS_LOG_BURST ? OS_LOG_BURST : log->tokens + earned;
        log->refilled = now;
    }
    if (log->tokens == 0) {
        log->suppressed++;
        return 0;
    }
    log->tokens--;
    return 1;
}

void os_log_write(os_log *log, const char *format, ...) {
    char line[OS_LOG_LINE_MAX];
    if (log->fd < 0)
        return;
    uint64_t now = log->env->monotonic_ns(log->env->context);
    pthread_mutex_lock(&log->lock);
    int may = take_token(log, now);
    uint64_t suppressed = log->suppressed;
    if (may)
        log->suppressed = 0;
    pthread_mutex_unlock(&log->lock);
    if (!may)
        return;
    uint64_t age = now - log->start;
    int length = snprintf(line, sizeof line, "+%" PRIu64 ".%03" PRIu64 " ", age / SECOND, age % SECOND / 1000000);
    if (suppressed > 0)
        length += snprintf(line + length, sizeof line - (size_t)length, "(%" PRIu64 " lines left out) ", suppressed);
    va_list arguments;
    va_start(arguments, format);
    int more = vsnprintf(line + length, sizeof line - (size_t)length - 1, format, arguments);
    va_end(arguments);
    if (more > 0)
        length += more;
    if (length > (int)sizeof line - 2)
        length = (int)sizeof line - 2;
    for (int at = 0; at < length; at++)
        if ((unsigned char)line[at] < 0x20 || line[at] == 0x7f)
            line[at] = '?';
    line[length++] = '\n';
    if (log->env->write(log->env->context, log->fd, line, (size_t)length) < 0)
        return; /* a full disk must not stop the readers */
}
