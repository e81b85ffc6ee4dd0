/* The FUSE kernel protocol, from linux/fuse.h, and what Debian 12's copy of it (7.38) lacks. */
#ifndef OS_FUSE_WIRE_H
#define OS_FUSE_WIRE_H

#include <linux/fuse.h>

#define OS_FUSE_PAGES_MAX 256u                   /* fs.fuse.max_pages_limit */
#define OS_FUSE_READ_MAX (1u << 20)              /* bytes of one READ: as many pages */
#define OS_FUSE_REQUEST_MAX ((1u << 20) + 8192u) /* what read(2) wants: max_write and the headers */

#define OS_FUSE_HAS_RESEND (UINT64_C(1) << 39)
#define OS_FUSE_UNIQUE_RESEND (UINT64_C(1) << 63) /* in unique: sent again; a reply has to echo it */

/* Numbers of the root, of its 256 directories, and the first that an object may have. */
#define OS_FUSE_DIRECTORY 2u
#define OS_FUSE_OBJECT 1024u

#endif
