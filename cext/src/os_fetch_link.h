/* The fetcher's end of os_link.h: ranges that an object server wants, fetched into its memory. */
#ifndef OS_FETCH_LINK_H
#define OS_FETCH_LINK_H

#include "os_fetch.h"

/* Says hello and serves until the other side closes; then OS_OK. sock: a packet socket. memory: sealed, of
 * OS_SLOTS_SIZE bytes. Both borrowed. Runs in the caller's thread, and returns when no range of it is left in fetch. */
os_code os_fetch_serve(os_fetch *fetch, int sock, int memory, os_failure *failure);

#endif
