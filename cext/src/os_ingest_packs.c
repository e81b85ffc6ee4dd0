/* Packs: frames back to back, then the table that closes them. */
#define _GNU_SOURCE
#include "os_ingest_parts.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "os_pack.h"

#define WRITEBACK_STEP (8u << 20) /* of a pack, after which the disk is asked to begin */

static os_code append_u32(const os_ingest *ingest, os_column *to, uint32_t value, os_failure *failure) {
    return os_ingest_append(ingest, to, &value, sizeof value, failure);
}

static os_code write_all(os_ingest *ingest, const uint8_t *data, size_t size, os_failure *failure) {
    const os_env *env = ingest->options.env;
    while (size) {
        ssize_t count = env->write(env->context, ingest->fd, data, size);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return os_fail_errno(failure, count ? errno : EIO, "pack: cannot write");
        if (ingest->options.digests)
            os_sha256_update(&ingest->hasher, data, (size_t)count);
        data += count;
        size -= (size_t)count;
        ingest->offset += (size_t)count;
        ingest->statistics.written += (size_t)count;
    }
    return OS_OK;
}

static os_code open_pack(os_ingest *ingest, os_failure *failure) {
    const os_env *env = ingest->options.env;
    os_ingest_pack_file made = {0};
    snprintf(made.name, sizeof made.name, "pack-%ld-%zu.tmp", (long)getpid(),
             ingest->packs.size / sizeof(os_ingest_pack_file));
    os_code code = os_ingest_append(ingest, &ingest->packs, &made, sizeof made, failure);
    if (code != OS_OK)
        return code;
    ingest->fd = env->openat(env->context, ingest->options.directory, made.name,
                             O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (ingest->fd < 0) {
        ingest->packs.size -= sizeof made; /* a file of that name is somebody else's */
        return os_fail_errno(failure, errno, "pack: cannot make %s", made.name);
    }
    ingest->offset = ingest->written_back = 0;
    os_sha256_init(&ingest->hasher);
    return OS_OK;
}

/* Waits until the pack before this one is on the disk. */
os_code os_ingest_sync_closing(os_ingest *ingest, os_failure *failure) {
    const os_env *env = ingest->options.env;
    int fd = ingest->closing_fd;
    if (fd < 0)
        return OS_OK;
    if (env->fdatasync(env->context, fd) < 0)
        return os_fail_errno(failure, errno, "pack: cannot sync");
    ingest->closing_fd = -1;
    if (env->close(env->context, fd) < 0 && errno != EINTR)
        return os_fail_errno(failure, errno, "pack: cannot close");
    return OS_OK;
}

os_code os_ingest_close_pack(os_ingest *ingest, os_failure *failure) {
    const os_env *env = ingest->options.env;
    os_ingest_pack_file *made = (os_ingest_pack_file *)(ingest->packs.data + ingest->packs.size) - 1;
    uint32_t frames = (uint32_t)(ingest->clen.size / 4), chunks = (uint32_t)(ingest->lengths.size / 4);
    made->table_size = os_pack_table_size(frames, chunks);
    if (!made->table_size)
        return os_fail(failure, OS_LIMIT, "pack table: too many chunks in one pack: %u", chunks);
    made->table = os_ingest_allocate(ingest, made->table_size);
    if (!made->table)
        return os_ingest_no_memory(failure);
    os_pack_table_write(made->table, frames, chunks, (uint32_t *)ingest->clen.data, (uint32_t *)ingest->ulen.data,
                        (uint32_t *)ingest->counts.data, (uint32_t *)ingest->lengths.data, ingest->ids.data);
    uint32_t head[2] = {htole32(OS_PACK_MAGIC_FRAME), htole32((uint32_t)made->table_size)};
    os_code code = write_all(ingest, (uint8_t *)head, sizeof head, failure);
    if (code == OS_OK)
        code = write_all(ingest, made->table, made->table_size, failure);
    if (code != OS_OK)
        return code;
    code = os_ingest_sync_closing(ingest, failure);
    if (code != OS_OK)
        return code;
    env->start_writeback(env->context, ingest->fd);
    ingest->closing_fd = ingest->fd;
    ingest->fd = -1;
    made->size = ingest->offset;
    if (ingest->options.digests)
        os_sha256_final(&ingest->hasher, made->digest);
    ingest->clen.size = ingest->ulen.size = ingest->counts.size = ingest->lengths.size = ingest->ids.size = 0;
    return OS_OK;
}

os_code os_ingest_write_frame(os_ingest *ingest, const os_ingest_job *from, os_failure *failure) {
    os_code code = OS_OK;
    if (from->failure.code != OS_OK) {
        *failure = from->failure;
        return failure->code;
    }
    if (ingest->fd >= 0 && ingest->offset + from->packed_size > ingest->options.pack_size)
        code = os_ingest_close_pack(ingest, failure);
    if (code == OS_OK && ingest->fd < 0)
        code = open_pack(ingest, failure);
    if (code == OS_OK)
        code = write_all(ingest, from->packed, from->packed_size, failure);
    if (code == OS_OK && ingest->offset - ingest->written_back >= WRITEBACK_STEP) {
        ingest->options.env->start_writeback(ingest->options.env->context, ingest->fd);
        ingest->written_back = ingest->offset;
    }
    if (code == OS_OK)
        code = append_u32(ingest, &ingest->clen, (uint32_t)from->packed_size, failure);
    if (code == OS_OK)
        code = append_u32(ingest, &ingest->ulen, from->size, failure);
    if (code == OS_OK)
        code = append_u32(ingest, &ingest->counts, from->chunk_count, failure);
    for (uint32_t row = 0; code == OS_OK && row < from->chunk_count; row++) {
        code = append_u32(ingest, &ingest->lengths, from->chunks[row].length, failure);
        if (code == OS_OK)
            code = os_ingest_append(ingest, &ingest->ids, from->chunks[row].id, OS_ID_SIZE, failure);
    }
    return code;
}
