/* What a kernel or engine returns: a code, and the words for a person. Never thrown, never global. */
#ifndef OS_RESULT_H
#define OS_RESULT_H

typedef enum os_code {
    OS_OK = 0,
    OS_CORRUPT, /* bytes from outside break the format or a hash */
    OS_LIMIT,   /* over a bound of os_limits.h */
    OS_MEMORY,  /* allocation failed */
    OS_SYSTEM,  /* a system call failed; error is its errno */
    OS_MISSING, /* a thing that was named is not there */
    OS_CLOSED,  /* used after close */
} os_code;

typedef struct os_failure {
    os_code code;
    int error;         /* errno where code is OS_SYSTEM, else 0 */
    char message[240]; /* "what: got X, want Y", lower case, no full stop */
} os_failure;

/* Fills failure (may be NULL) and returns code, so that a caller can write: return os_fail(f, OS_CORRUPT, "...", ...);
 */
os_code os_fail(os_failure *failure, os_code code, const char *format, ...) __attribute__((format(printf, 3, 4)));
os_code os_fail_errno(os_failure *failure, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
