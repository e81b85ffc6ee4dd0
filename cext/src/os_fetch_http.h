/* What a server's words mean: functions of text alone. Everything in it is hostile. */
#ifndef OS_FETCH_HTTP_H
#define OS_FETCH_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "os_limits.h"
#include "os_result.h"

typedef struct os_http_range {
    uint64_t first, last, total;
} os_http_range;

/* "bytes 0-99/1000", and nothing less exact: no "*". text: not NUL-terminated. */
bool os_http_content_range(const char *text, size_t length, os_http_range *out);

/* Seconds until the time that Retry-After names, a number or a date; 0: it makes no sense, or it is past. */
uint64_t os_http_retry_after(const char *text, size_t length);

/* A url with "{digest}" filled in; OS_LIMIT if it does not fit. */
os_code os_http_fill(const char *url, const uint8_t digest[OS_ID_SIZE], char *out, size_t room, os_failure *failure);

/* OS_OK for an http or https url without user or password. label: scheme, host and port, for people: no path, which
 * may be a secret. */
os_code os_http_check_url(const char *url, char *label, size_t label_room, os_failure *failure);

/* Where a redirect leads: absolute, http or https, never from https to http, no user or password in it.
 * *same: scheme, host and port stay what they were, so that credentials may go along. */
os_code os_http_redirect(const char *from, const char *location, char *out, size_t room, bool *same,
                         os_failure *failure);

/* "Name: value" of printable bytes, so that no value can end its line. */
bool os_http_header_sound(const char *line);

#endif
