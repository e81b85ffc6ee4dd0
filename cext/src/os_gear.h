/* Where content is cut (docs/format.md section 1). */
#ifndef OS_GEAR_H
#define OS_GEAR_H

#include <stddef.h>
#include <stdint.h>

/* Length of the first chunk of a data segment. Fewer than OS_CHUNK_MAX bytes mean that the segment ends with them. */
size_t os_gear_cut(const uint8_t *data, size_t size);

#endif
