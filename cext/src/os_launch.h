/* Starts the OCI runtime so that it cannot outlive its client and leaves no mount behind.
 *
 * The child is made by one clone() into a mount namespace and a pid namespace of its own. It is pid 1 there and dies
 * with its parent (PDEATHSIG); the kernel then kills everything in the pid namespace, the container's own included,
 * and drops the mount namespace with the container's root in it. So a SIGKILL of the client needs no one to clean up
 * after it, and there is no moment at which that is not yet or no longer true. */
#ifndef OS_LAUNCH_H
#define OS_LAUNCH_H

#include <sys/types.h>

#include "os_result.h"

typedef struct os_launch_mount {
    int tree;           /* borrowed: a detached mount */
    const char *target; /* borrowed: directory that it is attached to in the new namespace */
} os_launch_mount;

typedef struct os_launch {
    const char *program;           /* borrowed: absolute path */
    char *const *arguments;        /* borrowed: NULL-terminated */
    char *const *environment;      /* borrowed: NULL-terminated */
    const os_launch_mount *mounts; /* borrowed: in the order in which they are attached */
    size_t mount_count;
    int streams[3];             /* borrowed: stdin, stdout, stderr of the program; -1: the caller's own */
    const char *const *unmount; /* borrowed: NULL-terminated; detached in the new namespace, missing ones are fine */
    int own_group;              /* into a process group of its own: the terminal's signals go to the client alone */
} os_launch;

/* Forks and executes; returns once execve has succeeded or something failed. The calling thread has to live as long as
 * the child is wanted. On OS_OK *pid is the child's. */
os_code os_launch_start(const os_launch *launch, pid_t *pid, os_failure *failure);

#endif
