/* A directory tree on this host becomes content of an ingest and a layer index (docs/format.md section 4), as it is:
 * owners, modes, times, xattrs, hard links, holes. Symlinks are kept, never followed. What no image can have, sockets
 * and character devices 0:0, is left out with a note.
 *
 * imagebuilder/trees.py is the slow twin: the same tree gives the same bytes. One thread at a time; the ingest is the
 * walk's alone until it is freed. */
#ifndef OS_WALK_H
#define OS_WALK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "os_env.h"
#include "os_ingest.h"
#include "os_result.h"

#define OS_WALK_DEPTH 250u /* directories below each other; each costs a descriptor */

typedef struct os_walk os_walk;

/* root: descriptor of a directory, borrowed until free, as env and ingest are. */
os_code os_walk_make(const os_env *env, os_ingest *ingest, int root, os_walk **out, os_failure *failure);
void os_walk_free(os_walk *walk); /* may be NULL */

/* Goes on for one name, or one step of a large file; *done: there is nothing left. After a failure only free. */
os_code os_walk_step(os_walk *walk, bool *done, os_failure *failure);

/* The decoded layer index, after the last step. *data: borrowed until free. */
os_code os_walk_encode(os_walk *walk, const uint8_t **data, size_t *size, os_failure *failure);

/* What was left out and why, each ended by a NUL; size: of all. Borrowed until the next step. */
const char *os_walk_notes(const os_walk *walk, size_t *size);

#endif
