/* FUSE requests: whatever bytes come, what the decoder lets through can be used as it is. */
#include <assert.h>
#include <string.h>

#include "fuse_request.h"
#include "fuse_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    os_fuse_request request;
    os_failure failure;
    uint8_t directory, id[OS_ID_SIZE];
    if (os_fuse_decode(data, size, &request, &failure) != OS_OK) {
        assert(strlen(failure.message) > 0);
        assert(size >= sizeof(struct fuse_in_header) || request.unique == 0);
        return 0;
    }
    assert(size >= sizeof(struct fuse_in_header));
    switch (request.kind) {
    case OS_FUSE_LOOKUP:
        assert((const uint8_t *)request.name.text >= data && request.name.length > 0);
        assert((const uint8_t *)request.name.text + request.name.length < data + size);
        assert(strlen(request.name.text) == request.name.length);
        os_fuse_directory_name(request.name.text, request.name.length, &directory);
        os_fuse_object_name((uint8_t)request.node, request.name.text, request.name.length, id);
        break;
    case OS_FUSE_READ:
        assert(request.read.size <= OS_FUSE_READ_MAX && request.read.offset <= OS_FILE_SIZE_MAX);
        break;
    case OS_FUSE_FORGET:
    case OS_FUSE_INTERRUPT:
        assert(request.unique == 0);
        break;
    default:
        break;
    }
    return 0;
}
