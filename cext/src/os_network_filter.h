/* The seccomp filter of a process that reads packs from the network as nobody. */
#ifndef OS_NETWORK_FILTER_H
#define OS_NETWORK_FILTER_H

/* For good, for this thread and those it starts. process: its own number. Afterwards it computes, talks over sockets
 * that it connects itself, makes threads and reads files that everybody may read; every other call is EPERM. What it
 * needs of libraries has to be loaded before: nothing is mapped to be executed any more. -1 and errno if the kernel
 * refuses. */
int os_keep_to_network(unsigned process);

#endif
