/* The source of an image whose packs are on another host: a pack that is here as a file is read from it, the others
 * come as spans from a fetcher. */
#ifndef OS_REMOTE_H
#define OS_REMOTE_H

#include "os_env.h"
#include "os_pack_files.h"
#include "os_spans.h"

/* count blobs, in the order of the image's rows; copied. The source takes files, borrows spans. context NULL in what is
 * returned: no memory, nothing is taken. */
os_source os_remote_source(const os_env *env, os_pack_files *files, os_spans *spans, const os_blob *blobs,
                           uint32_t count);

#endif
