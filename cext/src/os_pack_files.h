/* The source that reads packs from open files: a descriptor for each blob row, or none yet. */
#ifndef OS_PACK_FILES_H
#define OS_PACK_FILES_H

#include <stdbool.h>

#include "os_env.h"
#include "os_source.h"

typedef struct os_pack_files os_pack_files;

/* lazy: a pack without a descriptor is pending, not missing. NULL: no memory. */
os_pack_files *os_pack_files_make(const os_env *env, uint32_t count, bool lazy);
void os_pack_files_free(os_pack_files *files); /* may be NULL; closes the descriptors */
/* Takes fd, also when it is of no use (a row that is not there or has one). Any thread. */
void os_pack_files_set(os_pack_files *files, uint32_t blob, int fd);
bool os_pack_files_has(const os_pack_files *files, uint32_t blob);
/* The source takes files. */
os_source os_pack_files_source(os_pack_files *files);

#endif
