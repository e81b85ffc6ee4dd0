/* A log of lines into a descriptor, bounded in rate: what goes wrong for each of a million reads must not fill a disk.
 * Lines over the rate are counted, and the count is told with the next line that may go out. Any thread. */
#ifndef OS_LOG_H
#define OS_LOG_H

#include <pthread.h>
#include <stdint.h>

#include "os_env.h"

#define OS_LOG_BURST 64u      /* lines at once */
#define OS_LOG_PER_SECOND 8u  /* then */
#define OS_LOG_LINE_MAX 1024u /* bytes; longer ones are cut */

typedef struct os_log {
    const os_env *env;           /* borrowed, immutable */
    int fd;                      /* borrowed, immutable; -1: nowhere */
    pthread_mutex_t lock;        /* a leaf: nothing is called under it but env */
    uint64_t start, refilled;    /* ns; guarded by lock */
    uint64_t tokens, suppressed; /* guarded by lock */
} os_log;

void os_log_init(os_log *log, const os_env *env, int fd);
void os_log_destroy(os_log *log);
/* One line: seconds since init, then the words. Control characters become '?', so that no name can forge a line. */
void os_log_write(os_log *log, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
