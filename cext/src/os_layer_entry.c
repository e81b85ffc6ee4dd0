#include "os_layer_entry.h"

#include <string.h>

#include "os_bytes.h"
#include "os_tree.h"

static os_code corrupt(os_failure *failure, const char *what) {
    return os_fail(failure, OS_CORRUPT, "layer index: %s", what);
}

static os_code walk_xattrs(const uint8_t *at, const uint8_t *end, os_layer_entry *entry, os_failure *failure) {
    const uint8_t *last = NULL;
    size_t last_size = 0, total = 0;
    for (uint32_t row = 0; row < entry->xattr_count; row++) {
        if (end - at < 4)
            return corrupt(failure, "an xattr is cut short");
        size_t name_size = os_get16(at), value_size = os_get16(at + 2);
        at += 4;
        if (name_size == 0 || name_size > OS_NAME_MAX || (size_t)(end - at) < name_size + value_size)
            return corrupt(failure, "an xattr is cut short");
        total += name_size + value_size;
        if (total > OS_XATTR_TOTAL_MAX)
            return os_fail(failure, OS_LIMIT, "layer index: an entry has more than %u bytes of xattrs",
                           OS_XATTR_TOTAL_MAX);
        if (last && os_compare_names(last, last_size, at, name_size) >= 0)
            return corrupt(failure, "xattrs are not in order");
        if (!os_xattr_allowed(at, name_size))
            return corrupt(failure, "an xattr has a name that may not occur");
        last = at;
        last_size = name_size;
        at += name_size + value_size;
    }
    entry->payload = at;
    return OS_OK;
}

static os_code payload_size(const os_layer_entry *entry, const uint8_t *end, size_t *size, os_failure *failure) {
    uint64_t length = os_get64(entry->fixed + 40);
    uint32_t parts = os_get32(entry->fixed + 48);
    size_t there = (size_t)(end - entry->payload);
    switch (entry->fixed[0]) {
    case OS_KIND_FILE:
        if (parts > there / OS_LAYER_PART)
            return corrupt(failure, "a file's parts are cut short");
        *size = (size_t)parts * OS_LAYER_PART;
        return OS_OK;
    case OS_KIND_DIRECTORY:
        *size = OS_ID_SIZE;
        return there < OS_ID_SIZE ? corrupt(failure, "a directory is cut short") : OS_OK;
    case OS_KIND_SYMLINK:
        if (length == 0 || length > OS_SYMLINK_MAX || length > there)
            return corrupt(failure, "a symlink's target is cut short or too long");
        *size = (size_t)length;
        return memchr(entry->payload, 0, *size) ? corrupt(failure, "a symlink's target holds a NUL") : OS_OK;
    case OS_KIND_CHARACTER:
    case OS_KIND_BLOCK:
    case OS_KIND_FIFO:
        *size = 0;
        return OS_OK;
    default:
        return corrupt(failure, "a kind of entry that a merged tree cannot have");
    }
}

static os_code check_fields(const os_layer_entry *entry, os_failure *failure) {
    const uint8_t *fixed = entry->fixed;
    uint8_t kind = fixed[0];
    uint64_t length = os_get64(fixed + 40);
    if (fixed[1])
        return corrupt(failure, "an opaque or implicit directory in a merged tree");
    if (os_get32(fixed + 4) > 07777)
        return corrupt(failure, "mode: more than permission bits");
    if (os_get32(fixed + 24) >= 1000000000u)
        return corrupt(failure, "mtime: a second or more of nanoseconds");
    if (kind == OS_KIND_DIRECTORY && os_get64(fixed + 32))
        return corrupt(failure, "a directory in a link group");
    if ((kind == OS_KIND_DIRECTORY || kind == OS_KIND_FIFO) && length)
        return corrupt(failure, "a size where none can be");
    if (kind != OS_KIND_FILE && (os_get32(fixed + 48) || os_get32(fixed + 52)))
        return corrupt(failure, "parts where none can be");
    if (kind == OS_KIND_CHARACTER && length == 0)
        return corrupt(failure, "a character device 0:0");
    return OS_OK;
}

os_code os_layer_entry_parse(const uint8_t **at, const uint8_t *end, bool root, os_layer_entry *entry,
                             os_failure *failure) {
    size_t size = 0;
    if (end - *at < (ptrdiff_t)OS_LAYER_ENTRY)
        return corrupt(failure, "an entry is cut short");
    entry->fixed = *at;
    entry->name = *at + OS_LAYER_ENTRY;
    entry->name_size = os_get16(entry->fixed + 2);
    entry->xattr_count = os_get32(entry->fixed + 28);
    if (root ? entry->name_size != 0 : entry->name_size == 0 || entry->name_size > OS_NAME_MAX)
        return corrupt(failure, "a name of impossible length");
    if ((size_t)(end - entry->name) < entry->name_size)
        return corrupt(failure, "a name is cut short");
    if (memchr(entry->name, '/', entry->name_size) || memchr(entry->name, 0, entry->name_size) ||
        (entry->name[0] == '.' && (entry->name_size == 1 || (entry->name_size == 2 && entry->name[1] == '.'))))
        if (!root)
            return corrupt(failure, "a name that no file can have");
    entry->rest = entry->name + entry->name_size;
    os_code code = check_fields(entry, failure);
    if (code == OS_OK)
        code = walk_xattrs(entry->rest, end, entry, failure);
    if (code == OS_OK)
        code = payload_size(entry, end, &size, failure);
    if (code != OS_OK)
        return code;
    *at = entry->payload + size;
    entry->rest_size = (size_t)(*at - entry->rest);
    return OS_OK;
}
