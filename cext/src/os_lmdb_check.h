/* Whether an LMDB data file is sound enough to be used. LMDB trusts its file: a page number or an offset that rotted
 * makes it fault, abort, or overwrite pages that are in use. So every map is walked with pread before LMDB looks at it,
 * in the snapshot of a read transaction that the caller holds; processes that write meanwhile do no harm.
 *
 * Walked at open and before each write. Rot of pages after that (one that was evicted from memory and is read back
 * wrong) meets the guard (os_lmdb_guard.h) and the checks that rows carry. */
#ifndef OS_LMDB_CHECK_H
#define OS_LMDB_CHECK_H

#include <stdint.h>

#include "os_result.h"

/* Before mdb_env_open: the two meta pages of an existing file. OS_MISSING: the file is empty, LMDB will fill it. */
os_code os_lmdb_check_meta(int fd, os_failure *failure);

/* In a read transaction with this id: every page, node, key order and free page that can be reached. OS_MISSING: the
 * snapshot is no longer one of the two newest (somebody committed); begin a new transaction and call again. */
os_code os_lmdb_check_pages(int fd, uint64_t transaction, os_failure *failure);

#endif
