#include "fuse_request.h"

#include <string.h>

#include "fuse_wire.h"

/* struct fuse_init_in of 7.36 and later is longer by its flags2 and reserved words. */
#define INIT_SHORT 16u
#define INIT_LONG 64u

static os_code bad_body(const os_fuse_request *request, size_t size, os_failure *failure) {
    return os_fail(failure, OS_CORRUPT, "fuse: opcode %u: got a body of %zu bytes", request->opcode, size);
}

static os_code decode_init(const uint8_t *body, size_t size, os_fuse_request *request, os_failure *failure) {
    if (size < INIT_SHORT)
        return bad_body(request, size, failure);
    uint32_t words[5] = {0};
    memcpy(words, body, size >= INIT_LONG ? sizeof words : INIT_SHORT);
    request->kind = OS_FUSE_INIT;
    request->init.major = words[0];
    request->init.minor = words[1];
    request->init.max_readahead = words[2];
    request->init.flags = words[3];
    if (words[3] & FUSE_INIT_EXT)
        request->init.flags |= (uint64_t)words[4] << 32;
    return OS_OK;
}

static os_code decode_lookup(const uint8_t *body, size_t size, os_fuse_request *request, os_failure *failure) {
    const uint8_t *end = size == 0 ? NULL : memchr(body, 0, size);
    if (end == NULL || end != body + size - 1 || end == body)
        return bad_body(request, size, failure);
    request->kind = OS_FUSE_LOOKUP;
    request->name.text = (const char *)body;
    request->name.length = size - 1;
    return OS_OK;
}

static os_code decode_read(const uint8_t *body, size_t size, os_fuse_request *request, os_failure *failure) {
    struct fuse_read_in in;
    if (size < sizeof in)
        return bad_body(request, size, failure);
    memcpy(&in, body, sizeof in);
    request->kind = OS_FUSE_READ;
    request->read.offset = in.offset;
    request->read.size = in.size;
    if (in.size > OS_FUSE_READ_MAX || in.offset > OS_FILE_SIZE_MAX)
        return os_fail(failure, OS_CORRUPT, "fuse: read: got %u bytes at %llu, want at most %u", in.size,
                       (unsigned long long)in.offset, OS_FUSE_READ_MAX);
    return OS_OK;
}

static os_code decode_body(const uint8_t *body, size_t size, os_fuse_request *request, os_failure *failure) {
    switch (request->opcode) {
    case FUSE_INIT:
        return decode_init(body, size, request, failure);
    case FUSE_LOOKUP:
        return decode_lookup(body, size, request, failure);
    case FUSE_READ:
        return decode_read(body, size, request, failure);
    case FUSE_INTERRUPT:
        if (size < sizeof request->interrupted)
            return bad_body(request, size, failure);
        request->kind = OS_FUSE_INTERRUPT;
        memcpy(&request->interrupted, body, sizeof request->interrupted);
        return OS_OK;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
        request->kind = OS_FUSE_FORGET;
        return OS_OK;
    case FUSE_GETATTR:
        request->kind = OS_FUSE_GETATTR;
        return OS_OK;
    case FUSE_STATFS:
        request->kind = OS_FUSE_STATFS;
        return OS_OK;
    case FUSE_DESTROY:
        request->kind = OS_FUSE_DESTROY;
        return OS_OK;
    case FUSE_IOCTL:
        request->kind = OS_FUSE_IOCTL;
        return OS_OK;
    default:
        return OS_OK;
    }
}

os_code os_fuse_decode(const uint8_t *buffer, size_t length, os_fuse_request *request, os_failure *failure) {
    struct fuse_in_header in;
    memset(request, 0, sizeof *request);
    request->kind = OS_FUSE_OTHER;
    if (length < sizeof in)
        return os_fail(failure, OS_CORRUPT, "fuse: got a request of %zu bytes, want at least %zu", length, sizeof in);
    memcpy(&in, buffer, sizeof in);
    request->opcode = in.opcode;
    request->pid = in.pid;
    request->node = in.nodeid;
    bool answered = in.opcode != FUSE_FORGET && in.opcode != FUSE_BATCH_FORGET && in.opcode != FUSE_INTERRUPT;
    request->unique = answered ? in.unique : 0;
    if (in.len != length)
        return os_fail(failure, OS_CORRUPT, "fuse: opcode %u: got %zu bytes, want the %u it says", in.opcode, length,
                       in.len);
    if (answered && in.unique == 0) /* the kernel would take an answer to 0 for a notification */
        return os_fail(failure, OS_CORRUPT, "fuse: opcode %u: got a request without a number", in.opcode);
    return decode_body(buffer + sizeof in, length - sizeof in, request, failure);
}

static int digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool hexadecimal(const char *text, size_t bytes, uint8_t *out) {
    for (size_t at = 0; at < bytes; at++) {
        int high = digit(text[2 * at]), low = digit(text[2 * at + 1]);
        if (high < 0 || low < 0)
            return false;
        out[at] = (uint8_t)(high << 4 | low);
    }
    return true;
}

bool os_fuse_directory_name(const char *name, size_t length, uint8_t *directory) {
    return length == 2 && hexadecimal(name, 1, directory);
}

bool os_fuse_object_name(uint8_t directory, const char *name, size_t length, uint8_t id[OS_ID_SIZE]) {
    id[0] = directory;
    return length == 2 * (OS_ID_SIZE - 1) && hexadecimal(name, OS_ID_SIZE - 1, id + 1);
}
