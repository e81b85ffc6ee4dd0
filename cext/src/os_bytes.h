/* Little-endian numbers at any place, and names in the one order that all our formats have. */
#ifndef OS_BYTES_H
#define OS_BYTES_H

#include <endian.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint16_t os_get16(const uint8_t *at) {
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return le16toh(value);
}

static inline uint32_t os_get32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return le32toh(value);
}

static inline uint64_t os_get64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return le64toh(value);
}

static inline void os_put16(uint8_t *at, uint16_t value) {
    value = htole16(value);
    memcpy(at, &value, sizeof value);
}

static inline void os_put32(uint8_t *at, uint32_t value) {
    value = htole32(value);
    memcpy(at, &value, sizeof value);
}

static inline void os_put64(uint8_t *at, uint64_t value) {
    value = htole64(value);
    memcpy(at, &value, sizeof value);
}

/* The next multiple of to, which is a power of two. */
static inline uint64_t os_up(uint64_t value, uint64_t to) {
    return (value + to - 1) & ~(to - 1);
}

/* Bytewise; a name comes after its own beginning. */
static inline int os_compare_names(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size) {
    int order = memcmp(a, b, a_size < b_size ? a_size : b_size);
    return order ? order : (a_size > b_size) - (a_size < b_size);
}

#endif
