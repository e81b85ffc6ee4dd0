/* An ingest's memory, from its environment. */
#include "os_ingest_parts.h"

os_code os_ingest_no_memory(os_failure *failure) {
    return os_fail(failure, OS_MEMORY, "ingest: out of memory");
}

void *os_ingest_allocate(const os_ingest *ingest, size_t size) {
    return ingest->options.env->allocate(ingest->options.env->context, size);
}

void *os_ingest_reallocate(const os_ingest *ingest, void *memory, size_t size) {
    return ingest->options.env->reallocate(ingest->options.env->context, memory, size);
}

void os_ingest_release(const os_ingest *ingest, void *memory) {
    if (memory)
        ingest->options.env->release(ingest->options.env->context, memory);
}

os_code os_ingest_append(const os_ingest *ingest, os_column *to, const void *data, size_t size, os_failure *failure) {
    return os_column_append(to, ingest->options.env, data, size) ? OS_OK : os_ingest_no_memory(failure);
}
