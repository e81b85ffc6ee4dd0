/* The answers, as the kernel wants them. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "fuse_parts.h"

#define READAHEAD_MAX (16u << 20) /* what INIT allows; the bdi of the mount says how much is used */

bool os_fuse_reply(os_fuse_server *server, int fd, uint64_t unique, int error, void *out, size_t size) {
    struct fuse_out_header *header = out;
    header->len = (uint32_t)(sizeof *header + size);
    header->error = error;
    header->unique = unique;
    const os_env *env = server->options.env;
    if (env->write(env->context, fd, out, header->len) >= 0)
        return true;
    if (errno != ENOENT && errno != ENODEV && errno != ECONNABORTED)
        os_log_write(&server->log, "reply to request %llu: %s", (unsigned long long)unique, strerror(errno));
    return false;
}

void os_fuse_reply_error(os_fuse_server *server, int fd, uint64_t unique, int error) {
    struct fuse_out_header header;
    os_fuse_reply(server, fd, unique, -error, &header, 0);
}

static void fill_attr(struct fuse_attr *attr, uint64_t node, uint32_t mode, uint64_t size) {
    memset(attr, 0, sizeof *attr);
    attr->ino = node;
    attr->mode = mode;
    attr->size = size;
    attr->blocks = (size + 511) / 512;
    attr->nlink = mode & S_IFDIR ? 2 : 1;
    attr->blksize = 4096;
}

void os_fuse_reply_entry(os_fuse_server *server, int fd, uint64_t unique, uint64_t node, uint32_t mode, uint64_t size) {
    struct {
        struct fuse_out_header header;
        struct fuse_entry_out entry;
    } out;
    memset(&out, 0, sizeof out);
    out.entry.nodeid = node;
    out.entry.entry_valid = out.entry.attr_valid = OS_FUSE_YEAR;
    fill_attr(&out.entry.attr, node, mode, size);
    os_fuse_reply(server, fd, unique, 0, &out, sizeof out.entry);
}

void os_fuse_reply_attr(os_fuse_server *server, int fd, uint64_t unique, uint64_t node, uint32_t mode, uint64_t size) {
    struct {
        struct fuse_out_header header;
        struct fuse_attr_out attr;
    } out;
    memset(&out, 0, sizeof out);
    out.attr.attr_valid = OS_FUSE_YEAR;
    fill_attr(&out.attr.attr, node, mode, size);
    os_fuse_reply(server, fd, unique, 0, &out, sizeof out.attr);
}

void os_fuse_reply_init(os_fuse_server *server, int fd, const os_fuse_request *request) {
    struct {
        struct fuse_out_header header;
        struct fuse_init_out init;
    } out;
    static const uint64_t wanted = FUSE_ASYNC_READ | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES | FUSE_NO_OPEN_SUPPORT |
                                   FUSE_NO_OPENDIR_SUPPORT | FUSE_EXPLICIT_INVAL_DATA | FUSE_INIT_EXT |
                                   OS_FUSE_HAS_RESEND;
    memset(&out, 0, sizeof out);
    if (request->init.major != FUSE_KERNEL_VERSION) {
        os_log_write(&server->log, "INIT: got protocol %u.%u, want 7.x", request->init.major, request->init.minor);
        os_fuse_reply_error(server, fd, request->unique, EPROTO);
        return;
    }
    uint64_t flags = wanted & request->init.flags;
    long page = sysconf(_SC_PAGESIZE);
    out.init.major = FUSE_KERNEL_VERSION;
    out.init.minor = request->init.minor;
    out.init.max_readahead = server->options.profile ? 0 : READAHEAD_MAX;
    out.init.flags = (uint32_t)flags;
    out.init.flags2 = (uint32_t)(flags >> 32);
    out.init.max_background = out.init.congestion_threshold = 65535;
    out.init.max_write = OS_FUSE_READ_MAX;
    out.init.time_gran = 1;
    out.init.max_pages = (uint16_t)(page > 4096 ? OS_FUSE_READ_MAX / page : OS_FUSE_PAGES_MAX);
    os_fuse_reply(server, fd, request->unique, 0, &out, sizeof out.init);
}

void os_fuse_reply_statfs(os_fuse_server *server, int fd, uint64_t unique) {
    struct {
        struct fuse_out_header header;
        struct fuse_statfs_out statfs;
    } out;
    memset(&out, 0, sizeof out);
    out.statfs.st.bsize = out.statfs.st.frsize = 4096;
    out.statfs.st.namelen = 2 * OS_ID_SIZE;
    os_fuse_reply(server, fd, unique, 0, &out, sizeof out.statfs);
}
