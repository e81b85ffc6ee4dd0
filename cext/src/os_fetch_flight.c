/* One request: what libcurl is told, what it may do with the answer, and what the answer is worth.
 *
 * The callbacks run inside curl_multi_perform, without the lock, and touch their flight alone. Nothing is written to a
 * buffer before status, range and encoding were found right, and nothing past its end. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "os_fetch_parts.h"

/* ---------------------------------------------------------------------- callbacks */

static curl_socket_t open_socket(void *context, curlsocktype purpose, struct curl_sockaddr *address) {
    const os_env *env = context;
    (void)purpose;
    int fd = env->socket(env->context, address->family, address->socktype, address->protocol);
    return fd < 0 ? CURL_SOCKET_BAD : fd;
}

static int close_socket(void *context, curl_socket_t fd) {
    const os_env *env = context;
    return env->close(env->context, fd);
}

/* The value of a header with this name, without white space around it; NULL: it is another. */
static const char *header_value(const char *line, size_t size, const char *name, size_t *length) {
    size_t at = strlen(name);
    if (size <= at || line[at] != ':' || strncasecmp(line, name, at) != 0)
        return NULL;
    at++;
    while (at < size && (line[at] == ' ' || line[at] == '\t'))
        at++;
    while (size > at && strchr(" \t\r\n", line[size - 1]) != NULL)
        size--;
    *length = size - at;
    return line + at;
}

static size_t on_header(char *line, size_t one, size_t size, void *context) {
    os_fetch_flight *flight = context;
    size_t length;
    const char *value;
    (void)one;
    flight->moved = flight->fetch->env->monotonic_ns(flight->fetch->env->context);
    flight->header_bytes += size;
    if (flight->header_bytes > OS_FETCH_ANSWER_HEADERS_MAX) {
        flight->fault = OS_FETCH_STATUS;
        return 0;
    }
    if (size > 5 && strncmp(line, "HTTP/", 5) == 0) { /* of the answer itself, or of a 1xx before it */
        flight->ranged = flight->encoded = false;
        flight->retry_after = 0;
        flight->location[0] = '\0';
    } else if ((value = header_value(line, size, "content-range", &length)) != NULL) {
        /* Twice is once too often. */
        flight->ranged = !flight->ranged && os_http_content_range(value, length, &flight->range);
    } else if ((value = header_value(line, size, "content-encoding", &length)) != NULL) {
        if (length != 8 || strncasecmp(value, "identity", 8) != 0)
            flight->encoded = true;
    } else if ((value = header_value(line, size, "retry-after", &length)) != NULL) {
        flight->retry_after = os_http_retry_after(value, length);
    } else if ((value = header_value(line, size, "location", &length)) != NULL) {
        if (length < sizeof flight->location) {
            memcpy(flight->location, value, length);
            flight->location[length] = '\0';
        }
    }
    return size;
}

static bool range_is_right(const os_fetch_flight *flight) {
    return flight->ranged && flight->range.first == flight->offset &&
           flight->range.last == flight->offset + flight->length - 1 && flight->range.total == flight->total;
}

static size_t on_body(char *data, size_t one, size_t size, void *context) {
    os_fetch_flight *flight = context;
    (void)one;
    flight->moved = flight->fetch->env->monotonic_ns(flight->fetch->env->context);
    if (flight->status == 0)
        curl_easy_getinfo(flight->easy, CURLINFO_RESPONSE_CODE, &flight->status);
    if (flight->status != 206) {
        /* A short answer is read to its end, so that its connection can be used again; a blob in full is not. */
        flight->error_bytes += size;
        if (flight->error_bytes <= OS_FETCH_ERROR_BODY_MAX)
            return size;
        flight->fault = OS_FETCH_STATUS;
        return 0;
    }
    if (flight->encoded)
        flight->fault = OS_FETCH_ENCODING;
    else if (!range_is_right(flight))
        flight->fault = OS_FETCH_RANGE;
    else if (size > flight->length - flight->got)
        flight->fault = OS_FETCH_LENGTH;
    if (flight->fault != OS_FETCH_FINE)
        return 0;
    memcpy(flight->buffer + flight->got, data, size);
    flight->got += (uint32_t)size;
    return size;
}

/* ---------------------------------------------------------------------- out */

#define SET(option, value) bad = bad == CURLE_OK ? curl_easy_setopt(easy, option, value) : bad

/* What is the same for all requests, once: a handle that was used before refuses another buffer size. */
static bool set_up(os_fetch_flight *flight) {
    os_fetch *fetch = flight->fetch;
    CURL *easy = flight->easy;
    CURLcode bad = CURLE_OK;
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
    SET(CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_USERAGENT, "onesec");
    SET(CURLOPT_HTTP_CONTENT_DECODING, 0L);
    SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_2TLS);
    SET(CURLOPT_BUFFERSIZE, 256L << 10);
    SET(CURLOPT_TCP_KEEPALIVE, 1L);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long)fetch->options.connect_timeout_ms);
    SET(CURLOPT_OPENSOCKETFUNCTION, open_socket);
    SET(CURLOPT_OPENSOCKETDATA, (void *)fetch->env);
    SET(CURLOPT_CLOSESOCKETFUNCTION, close_socket);
    SET(CURLOPT_CLOSESOCKETDATA, (void *)fetch->env);
    SET(CURLOPT_HEADERFUNCTION, on_header);
    SET(CURLOPT_HEADERDATA, flight);
    SET(CURLOPT_WRITEFUNCTION, on_body);
    SET(CURLOPT_WRITEDATA, flight);
    SET(CURLOPT_PRIVATE, flight);
    if (fetch->authorities != NULL)
        SET(CURLOPT_CAINFO, fetch->authorities);
    return bad == CURLE_OK;
}

os_fetch_flight *os_fetch_flight_get(os_fetch *fetch) {
    const os_env *env = fetch->env;
    os_fetch_flight *flight = fetch->idle;
    if (flight != NULL) {
        fetch->idle = flight->next;
        fetch->idles--;
    } else {
        flight = env->allocate(env->context, sizeof *flight);
        if (flight == NULL)
            return NULL;
        memset(flight, 0, sizeof *flight);
        flight->fetch = fetch;
        flight->easy = curl_easy_init();
        if (flight->easy == NULL || !set_up(flight)) {
            curl_easy_cleanup(flight->easy);
            env->release(env->context, flight);
            return NULL;
        }
    }
    flight->next = fetch->flying;
    fetch->flying = flight;
    fetch->flights++;
    return flight;
}

static void land(os_fetch_flight *flight) {
    const os_env *env = flight->fetch->env;
    if (flight->hedge && flight->buffer != NULL)
        env->release(env->context, flight->buffer);
    flight->buffer = NULL;
    curl_slist_free_all(flight->headers);
    flight->headers = NULL;
}

void os_fetch_flight_free(os_fetch_flight *flight) {
    const os_env *env = flight->fetch->env;
    land(flight);
    curl_easy_cleanup(flight->easy);
    env->release(env->context, flight);
}

void os_fetch_flight_put(os_fetch *fetch, os_fetch_flight *flight) {
    os_fetch_flight **place = &fetch->flying;
    while (*place != flight)
        place = &(*place)->next;
    *place = flight->next;
    fetch->flights--;
    if (fetch->idles >= fetch->options.flights) {
        os_fetch_flight_free(flight);
        return;
    }
    land(flight);
    flight->job = NULL;
    flight->next = fetch->idle;
    fetch->idle = flight;
    fetch->idles++;
}

static bool add_header(os_fetch_flight *flight, const char *line) {
    struct curl_slist *longer = curl_slist_append(flight->headers, line);
    if (longer == NULL)
        return false;
    flight->headers = longer;
    return true;
}

bool os_fetch_take_off(os_fetch_flight *flight) {
    os_fetch *fetch = flight->fetch;
    const os_fetch_job *job = flight->job;
    const os_fetch_source *source = os_fetch_find_source(fetch, flight->source);
    char range[64];
    CURL *easy = flight->easy;
    curl_slist_free_all(flight->headers);
    flight->headers = NULL;
    bool whole = add_header(flight, "Accept-Encoding: identity") && add_header(flight, "Accept: */*");
    if (job->no_cache)
        whole = whole && add_header(flight, "Cache-Control: no-cache");
    if (flight->credentials && source != NULL)
        for (const struct curl_slist *line = source->headers; line != NULL; line = line->next)
            whole = whole && add_header(flight, line->data);
    snprintf(range, sizeof range, "%llu-%llu", (unsigned long long)job->offset,
             (unsigned long long)(job->offset + job->length - 1));
    flight->offset = job->offset;
    flight->length = job->length;
    flight->total = job->blob_size;
    flight->got = 0;
    flight->status = 0;
    flight->ranged = flight->encoded = false;
    flight->retry_after = 0;
    flight->header_bytes = flight->error_bytes = 0;
    flight->fault = OS_FETCH_FINE;
    flight->location[0] = '\0';
    flight->moved = fetch->env->monotonic_ns(fetch->env->context);
    CURLcode bad = CURLE_OK;
    SET(CURLOPT_URL, flight->url);
    SET(CURLOPT_HTTPHEADER, flight->headers);
    SET(CURLOPT_RANGE, range);
    /* To share a connection, where its TLS handshake says whether it can be; plain HTTP would say so in its first
     * answer, which may be long in coming. */
    SET(CURLOPT_PIPEWAIT, strncasecmp(flight->url, "https:", 6) == 0 ? 1L : 0L);
    /* A second try is not to sit behind what the first one sits behind. */
    SET(CURLOPT_FRESH_CONNECT, flight->hedge || job->tries > 1 ? 1L : 0L);
    SET(CURLOPT_PROXY, source != NULL && source->proxy != NULL ? source->proxy : ""); /* none from the environment */
    SET(CURLOPT_NOPROXY, source != NULL && source->no_proxy != NULL ? source->no_proxy : "");
    struct curl_blob pem = {NULL, 0, CURL_BLOB_COPY};
    if (source != NULL && source->authorities != NULL)
        pem = (struct curl_blob){source->authorities, strlen(source->authorities), CURL_BLOB_COPY};
    SET(CURLOPT_CAINFO_BLOB, pem.len > 0 ? &pem : NULL);
    return whole && bad == CURLE_OK && curl_multi_add_handle(fetch->multi, easy) == CURLM_OK;
}

/* ---------------------------------------------------------------------- back */

static os_fetch_fault fault(os_fetch_fault kind, char *cause, size_t room, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static os_fetch_fault fault(os_fetch_fault kind, char *cause, size_t room, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(cause, room, format, arguments);
    va_end(arguments);
    return kind;
}

static os_fetch_fault judge_redirect(os_fetch_flight *flight, char *cause, size_t room) {
    os_failure failure;
    bool same;
    char to[OS_FETCH_URL_MAX];
    if (flight->location[0] == '\0')
        return fault(OS_FETCH_REDIRECT, cause, room, "status %ld without a sensible location", flight->status);
    if (flight->hops >= OS_FETCH_HOPS_MAX)
        return fault(OS_FETCH_REDIRECT, cause, room, "more than %u redirects", OS_FETCH_HOPS_MAX);
    if (os_http_redirect(flight->url, flight->location, to, sizeof to, &same, &failure) != OS_OK)
        return fault(OS_FETCH_REDIRECT, cause, room, "%s", failure.message);
    memcpy(flight->url, to, sizeof to);
    flight->credentials = flight->credentials && same; /* once dropped, dropped for the rest of the way */
    flight->hops++;
    return OS_FETCH_HOP;
}

os_fetch_fault os_fetch_judge(os_fetch_flight *flight, CURLcode result, char *cause, size_t room) {
    long connects = 0;
    cause[0] = '\0';
    if (curl_easy_getinfo(flight->easy, CURLINFO_NUM_CONNECTS, &connects) == CURLE_OK)
        flight->fetch->count.connections += (uint64_t)connects;
    if (flight->status == 0)
        curl_easy_getinfo(flight->easy, CURLINFO_RESPONSE_CODE, &flight->status);
    if (flight->fault == OS_FETCH_TIMEOUT)
        return fault(OS_FETCH_TIMEOUT, cause, room, "no byte for %u ms", flight->fetch->options.stall_timeout_ms);
    if (result == CURLE_OPERATION_TIMEDOUT)
        return fault(OS_FETCH_TIMEOUT, cause, room, "%s", curl_easy_strerror(result));
    if (result != CURLE_OK && flight->fault == OS_FETCH_FINE && result != CURLE_PARTIAL_FILE)
        return fault(OS_FETCH_TRANSPORT, cause, room, "%s", curl_easy_strerror(result));
    if (flight->header_bytes > OS_FETCH_ANSWER_HEADERS_MAX)
        return fault(OS_FETCH_STATUS, cause, room, "got more than %u bytes of headers", OS_FETCH_ANSWER_HEADERS_MAX);
    if (flight->status == 401 || flight->status == 403)
        return fault(flight->hops == 0 ? OS_FETCH_STALE : OS_FETCH_STATUS, cause, room, "got status %ld, want 206",
                     flight->status);
    if (flight->status == 301 || flight->status == 302 || flight->status == 303 || flight->status == 307 ||
        flight->status == 308)
        return judge_redirect(flight, cause, room);
    if (flight->status != 206)
        return fault(OS_FETCH_STATUS, cause, room, "got status %ld, want 206", flight->status);
    if (flight->encoded)
        return fault(OS_FETCH_ENCODING, cause, room, "got an encoded answer");
    if (!range_is_right(flight)) {
        if (!flight->ranged)
            return fault(OS_FETCH_RANGE, cause, room, "got no content-range that makes sense");
        return fault(OS_FETCH_RANGE, cause, room, "got range %llu-%llu/%llu, want %llu-%llu/%llu",
                     (unsigned long long)flight->range.first, (unsigned long long)flight->range.last,
                     (unsigned long long)flight->range.total, (unsigned long long)flight->offset,
                     (unsigned long long)(flight->offset + flight->length - 1), (unsigned long long)flight->total);
    }
    if (flight->fault == OS_FETCH_LENGTH)
        return fault(OS_FETCH_LENGTH, cause, room, "got more than %u bytes", flight->length);
    if (flight->got != flight->length)
        return fault(OS_FETCH_LENGTH, cause, room, "got %u bytes, want %u", flight->got, flight->length);
    return OS_FETCH_FINE;
}
