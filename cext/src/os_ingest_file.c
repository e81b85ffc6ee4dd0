/* A content out of a file: data by long reads, holes by one call. */
#include "os_ingest_parts.h"

#include <errno.h>

#define SIGNAL_STEP (16u << 20) /* bytes, after which whoever drives may look for Ctrl-C */

os_code os_ingest_update_from(os_ingest *ingest, int fd, uint64_t offset, size_t size, os_failure *failure) {
    const os_env *env = ingest->options.env;
    os_code code = os_ingest_usable(ingest, true, failure);
    if (code == OS_OK && !ingest->read_buffer &&
        !(ingest->read_buffer = os_ingest_allocate(ingest, OS_INGEST_READ_STEP)))
        code = os_ingest_no_memory(failure);
    while (code == OS_OK && size) {
        ssize_t count = env->pread(env->context, fd, ingest->read_buffer,
                                   size < OS_INGEST_READ_STEP ? size : OS_INGEST_READ_STEP, (off_t)offset);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            code = os_fail_errno(failure, errno, "content: cannot read");
        else if (count == 0)
            code = os_fail(failure, OS_CORRUPT, "content: the file became shorter while it was read");
        else
            code = os_ingest_update(ingest, ingest->read_buffer, (size_t)count, failure);
        if (code == OS_OK) {
            offset += (size_t)count;
            size -= (size_t)count;
        }
    }
    return os_ingest_keep(ingest, code, failure);
}

/* The next place at or after offset that may hold data; end of file counts as size. A speed-up only: what is skipped
 * reads as zeros. */
static uint64_t next_data(const os_env *env, int fd, uint64_t offset, uint64_t size) {
    off_t found = env->seek_data(env->context, fd, (off_t)offset);
    if (found < 0)
        return errno == ENXIO ? size : offset;
    return (uint64_t)found < size ? (uint64_t)found : size;
}

os_code os_ingest_file_step(os_ingest *ingest, int fd, uint64_t size, uint64_t *offset, os_failure *failure) {
    uint64_t from = *offset;
    uint64_t data = size - from > OS_HOLE_MIN ? next_data(ingest->options.env, fd, from, size) : from;
    if (data > from) {
        *offset = data;
        return os_ingest_zeros(ingest, data - from, failure);
    }
    uint64_t step = size - from < SIGNAL_STEP ? size - from : SIGNAL_STEP;
    *offset += step;
    return os_ingest_update_from(ingest, fd, from, (size_t)step, failure);
}
