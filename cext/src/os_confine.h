/* A function in a process that can do nothing else: for parsers of what strangers wrote. */
#ifndef OS_CONFINE_H
#define OS_CONFINE_H

#include "os_result.h"

typedef os_code (*os_task)(const void *context, os_failure *failure);

/* Runs task(context) in a forked child with no privileges, no descriptors but the pipe for its answer, and a seccomp
 * filter under which it can use memory and answer, and everything else kills it. Memory of the caller is the child's as
 * a copy, so context may point anywhere; nothing that the task does to memory comes back, only its answer.
 *
 * Returns the task's answer. A child that dies or says nothing is OS_CORRUPT. What a filter cannot prevent: a task that
 * was taken over can still give a false answer. Works from threads; signals reach the caller, not the child. */
os_code os_run_confined(os_task task, const void *context, os_failure *failure);

#endif
