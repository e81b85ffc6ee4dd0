#include "os_fetch_http.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "os_fetch_limits.h"

#define PLACEHOLDER "{digest}"

/* Digits from *at on, at most what fits 63 bits. */
static bool take_number(const char *text, size_t length, size_t *at, uint64_t *out) {
    uint64_t value = 0;
    size_t start = *at;
    for (; *at < length && text[*at] >= '0' && text[*at] <= '9'; (*at)++) {
        if (*at - start >= 18)
            return false;
        value = value * 10 + (uint64_t)(text[*at] - '0');
    }
    *out = value;
    return *at > start;
}

static bool take_byte(const char *text, size_t length, size_t *at, char byte) {
    if (*at >= length || text[*at] != byte)
        return false;
    (*at)++;
    return true;
}

bool os_http_content_range(const char *text, size_t length, os_http_range *out) {
    size_t at = 6;
    return length > 6 && strncasecmp(text, "bytes ", 6) == 0 && take_number(text, length, &at, &out->first) &&
           take_byte(text, length, &at, '-') && take_number(text, length, &at, &out->last) &&
           take_byte(text, length, &at, '/') && take_number(text, length, &at, &out->total) && at == length &&
           out->first <= out->last && out->last < out->total;
}

uint64_t os_http_retry_after(const char *text, size_t length) {
    char copy[64];
    uint64_t seconds;
    size_t at = 0;
    if (take_number(text, length, &at, &seconds) && at == length)
        return seconds;
    if (length >= sizeof copy)
        return 0;
    memcpy(copy, text, length);
    copy[length] = '\0';
    time_t then = curl_getdate(copy, NULL), now = time(NULL);
    return then > now ? (uint64_t)(then - now) : 0;
}

os_code os_http_fill(const char *url, const uint8_t digest[OS_ID_SIZE], char *out, size_t room, os_failure *failure) {
    char hex[2 * OS_ID_SIZE + 1];
    for (size_t at = 0; at < OS_ID_SIZE; at++)
        snprintf(hex + 2 * at, 3, "%02x", digest[at]);
    const char *place = strstr(url, PLACEHOLDER);
    int head = place == NULL ? (int)strlen(url) : (int)(place - url);
    const char *tail = place == NULL ? "" : place + strlen(PLACEHOLDER);
    int length = snprintf(out, room, "%.*s%s%s", head, url, place == NULL ? "" : hex, tail);
    if (length < 0 || (size_t)length >= room)
        return os_fail(failure, OS_LIMIT, "url: got more than %zu bytes", room);
    return OS_OK;
}

typedef struct origin {
    char *scheme, *host, *port; /* owned by libcurl */
} origin;

static void free_origin(origin *it) {
    curl_free(it->scheme);
    curl_free(it->host);
    curl_free(it->port);
}

static bool read_origin(CURLU *url, origin *out) {
    *out = (origin){0};
    return curl_url_get(url, CURLUPART_SCHEME, &out->scheme, 0) == CURLUE_OK &&
           curl_url_get(url, CURLUPART_HOST, &out->host, 0) == CURLUE_OK &&
           curl_url_get(url, CURLUPART_PORT, &out->port, CURLU_DEFAULT_PORT) == CURLUE_OK;
}

static bool is_web(const origin *it) {
    return strcasecmp(it->scheme, "http") == 0 || strcasecmp(it->scheme, "https") == 0;
}

os_code os_http_check_url(const char *text, char *label, size_t label_room, os_failure *failure) {
    CURLU *url = curl_url();
    origin found = {0};
    os_code code = OS_OK;
    if (url == NULL)
        return os_fail(failure, OS_MEMORY, "url: got no memory");
    if (strlen(text) >= OS_FETCH_URL_MAX)
        code = os_fail(failure, OS_LIMIT, "url: got more than %u bytes", OS_FETCH_URL_MAX);
    else if (curl_url_set(url, CURLUPART_URL, text, CURLU_DISALLOW_USER) != CURLUE_OK || !read_origin(url, &found) ||
             !is_web(&found))
        code = os_fail(failure, OS_CORRUPT, "url: want http or https, a host, and no user or password");
    else
        snprintf(label, label_room, "%s://%s:%s", found.scheme, found.host, found.port);
    free_origin(&found);
    curl_url_cleanup(url);
    return code;
}

/* What no URL has: releases of libcurl differ in what they make of it. */
static bool has_control(const char *text) {
    for (; *text != '\0'; text++)
        if ((unsigned char)*text < ' ' || *text == 0x7F)
            return true;
    return false;
}

os_code os_http_redirect(const char *from, const char *location, char *out, size_t room, bool *same,
                         os_failure *failure) {
    CURLU *url = curl_url();
    origin before = {0}, after = {0};
    char *text = NULL;
    os_code code = OS_OK;
    *same = false;
    if (url == NULL)
        return os_fail(failure, OS_MEMORY, "redirect: got no memory");
    if (has_control(location) || curl_url_set(url, CURLUPART_URL, from, 0) != CURLUE_OK || !read_origin(url, &before) ||
        curl_url_set(url, CURLUPART_URL, location, CURLU_DISALLOW_USER | CURLU_URLENCODE) != CURLUE_OK ||
        curl_url_set(url, CURLUPART_FRAGMENT, NULL, 0) != CURLUE_OK || !read_origin(url, &after) || !is_web(&after) ||
        curl_url_get(url, CURLUPART_URL, &text, 0) != CURLUE_OK) {
        code = os_fail(failure, OS_CORRUPT, "redirect: want an http or https url without user or password");
    } else if (strcasecmp(before.scheme, "https") == 0 && strcasecmp(after.scheme, "https") != 0) {
        code = os_fail(failure, OS_CORRUPT, "redirect: got %s after https", after.scheme);
    } else if (strlen(text) >= room) {
        code = os_fail(failure, OS_LIMIT, "redirect: got a url of %zu bytes, want less than %zu", strlen(text), room);
    } else {
        memcpy(out, text, strlen(text) + 1);
        *same = strcasecmp(before.scheme, after.scheme) == 0 && strcasecmp(before.host, after.host) == 0 &&
                strcmp(before.port, after.port) == 0;
    }
    curl_free(text);
    free_origin(&before);
    free_origin(&after);
    curl_url_cleanup(url);
    return code;
}

bool os_http_header_sound(const char *line) {
    const char *colon = strchr(line, ':');
    size_t length = strlen(line);
    if (colon == NULL || colon == line || length > OS_FETCH_HEADER_MAX)
        return false;
    for (const char *at = line; at < colon; at++)
        if (strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", *at) == NULL)
            return false;
    for (const char *at = colon; *at != '\0'; at++)
        if (((unsigned char)*at < 0x20 && *at != '\t') || (unsigned char)*at >= 0x7f)
            return false;
    return true;
}
