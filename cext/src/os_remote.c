#include "os_remote.h"

#include <string.h>

typedef struct remote {
    const os_env *env;    /* borrowed */
    os_source files;      /* owned */
    os_pack_files *packs; /* the same, owned by it */
    os_spans *spans;      /* borrowed */
    uint32_t count;       /* immutable, as are the blobs */
    os_blob blob[];
} remote;

static bool is_far(void *context, uint32_t blob) {
    const remote *it = context;
    return !os_pack_files_has(it->packs, blob) && blob < it->count;
}

static os_answer read_either(void *context, uint32_t blob, void *buffer, size_t size, uint64_t offset,
                             os_failure *failure) {
    const remote *it = context;
    if (!is_far(context, blob))
        return it->files.read(it->files.context, blob, buffer, size, offset, failure);
    return os_spans_read(it->spans, &it->blob[blob], buffer, size, offset, failure);
}

static os_answer want_either(void *context, uint32_t blob, size_t size, uint64_t offset, bool ahead,
                             os_failure *failure) {
    const remote *it = context;
    if (!is_far(context, blob))
        return OS_ANSWER_HERE;
    return os_spans_want(it->spans, &it->blob[blob], offset, size, ahead, failure);
}

static bool reject_either(void *context, uint32_t blob, size_t size, uint64_t offset) {
    const remote *it = context;
    if (!is_far(context, blob))
        return false;
    os_spans_reject(it->spans, &it->blob[blob], offset, size);
    return true;
}

static void release_both(void *context) {
    remote *it = context;
    it->files.release(it->files.context);
    it->env->release(it->env->context, it);
}

os_source os_remote_source(const os_env *env, os_pack_files *files, os_spans *spans, const os_blob *blobs,
                           uint32_t count) {
    remote *it = env->allocate(env->context, sizeof *it + count * sizeof it->blob[0]);
    if (it == NULL)
        return (os_source){0};
    it->env = env;
    it->files = os_pack_files_source(files);
    it->packs = files;
    it->spans = spans;
    it->count = count;
    uint64_t viewer = os_spans_viewer(spans);
    for (uint32_t row = 0; row < count; row++) {
        it->blob[row] = blobs[row];
        it->blob[row].viewer = viewer;
    }
    return (os_source){.context = it,
                       .read = read_either,
                       .want = want_either,
                       .far = is_far,
                       .reject = reject_either,
                       .release = release_both};
}
