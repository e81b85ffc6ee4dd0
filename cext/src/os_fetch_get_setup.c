/* One request of the getter: what libcurl is told, where it puts the answer, and what the end means.
 *
 * The callbacks run inside curl_multi_perform, so the lock is held, and touch their transfer alone. Nothing that a
 * server says is believed here; it is bounded: headers in all, and the body by how much of it nobody has taken. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "os_fetch_get_parts.h"

static curl_socket_t open_socket(void *context, curlsocktype purpose, struct curl_sockaddr *address) {
    const os_env *env = context;
    (void)purpose;
    int fd = env->socket(env->context, address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
    return fd < 0 ? CURL_SOCKET_BAD : fd;
}

static int close_socket(void *context, curl_socket_t fd) {
    const os_env *env = context;
    return env->close(env->context, fd);
}

/* Room for so many more bytes behind size of a buffer. */
static bool make_room(const os_env *env, void **buffer, size_t size, size_t more, size_t *room) {
    if (more <= *room - size)
        return true;
    size_t bigger = *room * 2 > size + more ? *room * 2 : size + more;
    void *moved = env->reallocate(env->context, *buffer, bigger);
    if (moved == NULL)
        return false;
    *buffer = moved;
    *room = bigger;
    return true;
}

static void note(os_get_transfer *transfer) {
    os_get *get = transfer->get;
    transfer->moved = get->env->monotonic_ns(get->env->context);
    get->changes++;
}

static size_t on_header(char *line, size_t one, size_t size, void *context) {
    os_get_transfer *transfer = context;
    (void)one;
    note(transfer);
    if (size > OS_FETCH_ANSWER_HEADERS_MAX - transfer->header_bytes) {
        transfer->overlong = true;
        return 0;
    }
    transfer->header_bytes += size;
    if (transfer->whole)
        return size; /* a trailer; who looks has the header */
    if (size >= 5 && memcmp(line, "HTTP/", 5) == 0)
        transfer->head_size = 0; /* of the answer itself, or of a 1xx before it */
    if (!make_room(transfer->get->env, (void **)&transfer->head, transfer->head_size, size, &transfer->head_room))
        return 0;
    memcpy(transfer->head + transfer->head_size, line, size);
    transfer->head_size += size;
    if (size <= 2 && strspn(line, "\r\n") >= size) {
        long status = 0;
        curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
        transfer->whole = status >= 200;
        transfer->status = transfer->whole ? status : 0;
    }
    return size;
}

static size_t on_body(char *data, size_t one, size_t size, void *context) {
    os_get_transfer *transfer = context;
    const os_env *env = transfer->get->env;
    (void)one;
    note(transfer);
    size_t held = transfer->size - transfer->begin;
    if (held > 0 && size > OS_GET_HELD_MAX - held) {
        transfer->paused = true;
        return CURL_WRITEFUNC_PAUSE;
    }
    if (transfer->begin > 0 && size > transfer->room - transfer->size) {
        memmove(transfer->data, transfer->data + transfer->begin, held);
        transfer->begin = 0;
        transfer->size = held;
    }
    if (!make_room(env, (void **)&transfer->data, transfer->size, size, &transfer->room))
        return 0;
    memcpy(transfer->data + transfer->size, data, size);
    transfer->size += size;
    return size;
}

#define SET(option, value) bad = bad == CURLE_OK ? curl_easy_setopt(easy, option, value) : bad

static CURLcode set_basics(CURL *easy, os_get_transfer *transfer) {
    const os_get *get = transfer->get;
    CURLcode bad = CURLE_OK;
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
    SET(CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_QUICK_EXIT, 1L); /* what is given up does not wait for the resolver, which may take a minute */
    SET(CURLOPT_USERAGENT, "onesec");
    SET(CURLOPT_HTTP_CONTENT_DECODING, 0L);
    SET(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_2TLS);
    SET(CURLOPT_BUFFERSIZE, 256L << 10);
    SET(CURLOPT_TCP_KEEPALIVE, 1L);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long)get->connect_ms);
    SET(CURLOPT_OPENSOCKETFUNCTION, open_socket);
    SET(CURLOPT_OPENSOCKETDATA, (void *)get->env);
    SET(CURLOPT_CLOSESOCKETFUNCTION, close_socket);
    SET(CURLOPT_CLOSESOCKETDATA, (void *)get->env);
    SET(CURLOPT_HEADERFUNCTION, on_header);
    SET(CURLOPT_HEADERDATA, transfer);
    SET(CURLOPT_WRITEFUNCTION, on_body);
    SET(CURLOPT_WRITEDATA, transfer);
    SET(CURLOPT_PRIVATE, transfer);
    SET(CURLOPT_ERRORBUFFER, transfer->words);
    if (get->authorities != NULL)
        SET(CURLOPT_CAINFO, get->authorities);
    return bad;
}

CURL *os_get_handle(os_get_transfer *transfer, const os_get_request *request) {
    CURL *easy = curl_easy_init();
    if (easy == NULL)
        return NULL;
    CURLcode bad = set_basics(easy, transfer);
    for (unsigned at = 0; bad == CURLE_OK && at < request->header_count; at++) {
        struct curl_slist *longer = curl_slist_append(transfer->headers, request->headers[at]);
        bad = longer == NULL ? CURLE_OUT_OF_MEMORY : CURLE_OK;
        transfer->headers = longer == NULL ? transfer->headers : longer;
    }
    SET(CURLOPT_URL, request->url);
    SET(CURLOPT_HTTPHEADER, transfer->headers);
    /* To share a connection, where its TLS handshake says whether it can be. */
    SET(CURLOPT_PIPEWAIT, strncasecmp(request->url, "https:", 6) == 0 ? 1L : 0L);
    SET(CURLOPT_PROXY, request->proxy != NULL ? request->proxy : "");
    SET(CURLOPT_NOPROXY, request->no_proxy != NULL ? request->no_proxy : "");
    if (request->head)
        SET(CURLOPT_NOBODY, 1L);
    if (request->body != NULL) {
        SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)request->body_size);
        SET(CURLOPT_COPYPOSTFIELDS, request->body);
    }
    if (request->authorities != NULL) {
        struct curl_blob pem = {(void *)(uintptr_t)request->authorities, strlen(request->authorities), CURL_BLOB_COPY};
        SET(CURLOPT_CAINFO_BLOB, &pem);
    }
    if (bad == CURLE_OK)
        return easy;
    curl_easy_cleanup(easy);
    return NULL;
}

static os_get_end end_of(const os_get_transfer *transfer, CURLcode result) {
    curl_off_t before = 0;
    switch (result) {
    case CURLE_OK:
        return OS_GET_DONE;
    case CURLE_OPERATION_TIMEDOUT:
        curl_easy_getinfo(transfer->easy, CURLINFO_PRETRANSFER_TIME_T, &before);
        return before == 0 ? OS_GET_CONNECT : OS_GET_SILENT;
    case CURLE_COULDNT_CONNECT:
    case CURLE_COULDNT_RESOLVE_HOST:
        return OS_GET_REFUSED;
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_PROXY:
        return OS_GET_PROXY;
    case CURLE_PEER_FAILED_VERIFICATION:
        return OS_GET_UNTRUSTED;
    case CURLE_SSL_CONNECT_ERROR:
        return strstr(transfer->words, "wrong version number") != NULL ? OS_GET_NO_TLS : OS_GET_BROKEN;
    default:
        return transfer->overlong ? OS_GET_HEADERS : OS_GET_BROKEN;
    }
}

void os_get_judge(os_get_transfer *transfer, CURLcode result) {
    long error = 0;
    transfer->end = end_of(transfer, result);
    curl_easy_getinfo(transfer->easy, CURLINFO_OS_ERRNO, &error);
    transfer->error = result == CURLE_COULDNT_RESOLVE_HOST ? 0 : (int)error;
    if (transfer->end == OS_GET_DONE && transfer->status == 0)
        transfer->end = OS_GET_BROKEN; /* no answer at all */
    if (transfer->words[0] == '\0')
        snprintf(transfer->words, sizeof transfer->words, "%s", curl_easy_strerror(result));
    note(transfer);
}
