/* get_faults PORT DIGEST SIZE: fails the first, second, third … call of each kind that the getter makes of its
 * environment (cext/src/os_env.h), once and from there on, until a run passes untouched. The blob at the port has byte
 * at % 251 at each place. Prints "kind how calls" for each; what it finds wrong goes to stderr, with exit status 1.
 *
 * After any fault each request ends, with the right bytes or in words, and no descriptor and no memory is left. */
#include <dirent.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <curl/curl.h>

#include "os_fetch_get.h"

#define REQUESTS 3
#define CALLS_MAX 2000

typedef enum kind { MEMORY, SOCKET, KINDS } kind;
static const char *const KIND_NAMES[KINDS] = {"memory", "socket"};

static struct {
    kind kind;
    bool forever;
    int at; /* number of the call, from 1 */
    atomic_int calls, injected, memory;
} world;

static void complain(const char *words, int value) {
    fprintf(stderr, "%s at %d%s: %s: %d\n", KIND_NAMES[world.kind], world.at, world.forever ? " and on" : "", words,
            value);
    exit(1);
}

static bool hit(kind kind) {
    if (kind != world.kind)
        return false;
    int call = atomic_fetch_add(&world.calls, 1) + 1;
    if (call < world.at || (call > world.at && !world.forever))
        return false;
    atomic_fetch_add(&world.injected, 1);
    return true;
}

static void *reallocate(void *context, void *memory, size_t size) {
    if (hit(MEMORY))
        return NULL;
    atomic_fetch_add(&world.memory, memory == NULL);
    return os_env_system.reallocate(context, memory, size);
}

static void *allocate(void *context, size_t size) {
    return reallocate(context, NULL, size);
}

static void release(void *context, void *memory) {
    atomic_fetch_sub(&world.memory, memory != NULL);
    os_env_system.release(context, memory);
}

static int open_socket(void *context, int family, int type, int protocol) {
    if (hit(SOCKET)) {
        errno = EMFILE;
        return -1;
    }
    return os_env_system.socket(context, family, type, protocol);
}

/* Of this process. Counted where the kernel has them: libcurl closes a socket now by our function, now by itself. */
static int descriptors(void) {
    DIR *directory = opendir("/proc/self/fd");
    int found = 0;
    while (readdir(directory) != NULL)
        found++;
    closedir(directory);
    return found;
}

/* Takes the body of one request to its end. */
static void finish(os_get *get, uint32_t number, size_t size) {
    static uint8_t piece[1 << 16];
    os_failure failure;
    os_get_answer answer;
    size_t at = 0;
    for (bool last = false;;) {
        size_t taken;
        if (os_get_look(get, number, &answer, &failure) != OS_OK)
            complain("a request is not there", (int)number);
        last = answer.end != OS_GET_RUNNING;
        while (os_get_take(get, number, piece, sizeof piece, &taken, &failure) == OS_OK && taken > 0)
            for (size_t byte = 0; byte < taken; byte++, at++)
                if (piece[byte] != at % 251)
                    complain("wrong byte", (int)at);
        if (last)
            break;
        os_get_wait(get, 1000000000u);
    }
    if (answer.end == OS_GET_DONE && at != size)
        complain("an answer is done after so many bytes", (int)at);
    if (answer.end != OS_GET_DONE && answer.words[0] == '\0')
        complain("an end without words", (int)answer.end);
}

/* One life of a getter: requests at once, one of which is forgotten. */
static void run(const os_env *env, const char *url, size_t size) {
    os_get_options options = {.env = env, .connect_ms = 5000, .silence_ms = 5000};
    os_get_request request = {.url = url};
    os_failure failure = {0};
    os_get *get = NULL;
    uint32_t number[REQUESTS] = {0};
    int before = descriptors();
    if (os_get_make(&options, &get, &failure) == OS_OK) {
        for (int at = 0; at < REQUESTS; at++)
            if (os_get_start(get, &request, &number[at], &failure) != OS_OK && failure.message[0] == '\0')
                complain("a failure without words", (int)failure.code);
        os_get_drop(get, number[REQUESTS - 1]);
        for (int at = 0; at + 1 < REQUESTS; at++)
            if (number[at] != 0)
                finish(get, number[at], size);
    } else if (failure.message[0] == '\0') {
        complain("a failure without words", (int)failure.code);
    }
    os_get_free(get);
    if (atomic_load(&world.memory) != 0)
        complain("pieces of memory left", atomic_load(&world.memory));
    if (descriptors() != before)
        complain("descriptors left", descriptors() - before);
}

int main(int count, char **arguments) {
    char url[256];
    if (count != 4)
        return 2;
    snprintf(url, sizeof url, "http://127.0.0.1:%s/blobs/%s", arguments[1], arguments[2]);
    os_env env = os_env_system;
    env.allocate = allocate;
    env.reallocate = reallocate;
    env.release = release;
    env.socket = open_socket;
    curl_global_init(CURL_GLOBAL_DEFAULT);
    for (world.kind = MEMORY; world.kind < KINDS; world.kind++) {
        for (int forever = 0; forever < 2; forever++) {
            world.forever = forever;
            for (world.at = 1; world.at < CALLS_MAX; world.at++) {
                atomic_store(&world.calls, 0);
                atomic_store(&world.injected, 0);
                run(&env, url, strtoull(arguments[3], NULL, 10));
                if (atomic_load(&world.injected) == 0)
                    break;
            }
            printf("%s %s %d\n", KIND_NAMES[world.kind], forever ? "forever" : "once", world.at - 1);
        }
    }
    return 0;
}
