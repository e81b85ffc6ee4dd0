/* fetch_faults PORT DIGEST SIZE: fails the first, second, third … call of each kind that the fetch engine makes of its
 * environment (cext/src/os_env.h), once and from there on, until a run passes untouched. The blob at the port has byte
 * at % 251 at each place. Prints "kind how calls" for each; what it finds wrong goes to stderr, with exit status 1.
 *
 * After any fault each want is told exactly once, with the right bytes or a code that says why not, and no descriptor
 * and no memory is left. A single fault of the network is made up for. */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <curl/curl.h>

#include "os_fetch.h"

#define WANTS 4
#define LENGTH (32u << 10)
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

static void *allocate(void *context, size_t size) {
    if (hit(MEMORY))
        return NULL;
    atomic_fetch_add(&world.memory, 1);
    return os_env_system.allocate(context, size);
}

static void release(void *context, void *memory) {
    atomic_fetch_sub(&world.memory, 1);
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

typedef struct told {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int count[WANTS], left;
    os_code code[WANTS];
} told;

static void on_done(void *context, uint64_t ticket, const os_fetch_result *result) {
    told *it = context;
    pthread_mutex_lock(&it->lock);
    it->count[ticket]++;
    it->code[ticket] = result->code;
    it->left--;
    pthread_cond_signal(&it->changed);
    pthread_mutex_unlock(&it->lock);
}

static void check_want(const told *it, int at, uint64_t offset, const uint8_t *data) {
    if (it->count[at] != 1)
        complain("a want was told so often", it->count[at]);
    if (it->code[at] != OS_OK) {
        if (it->code[at] != OS_MEMORY && it->code[at] != OS_MISSING)
            complain("a want ended with code", (int)it->code[at]);
        if (world.kind == SOCKET && !world.forever)
            complain("one socket less ended a want with code", (int)it->code[at]);
        return;
    }
    for (uint32_t byte = 0; byte < LENGTH; byte++)
        if (data[byte] != (offset + byte) % 251)
            complain("wrong byte of want", at);
}

/* One life of an engine: two wants for one range, two for others. */
static void run(const os_env *env, const char *url, const uint8_t *digest, uint64_t size) {
    static uint8_t data[WANTS][LENGTH];
    const uint64_t offset[WANTS] = {0, 0, 5 * LENGTH, 7 * LENGTH};
    const uint32_t sources[1] = {1};
    os_fetch_options options = {.env = env, .news = -1, .backoff_ms = 2, .backoff_max_ms = 20};
    os_fetch_place place = {.url = url};
    os_failure failure = {0};
    os_fetch *fetch = NULL;
    told it = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    bool submitted[WANTS] = {false};
    int before = descriptors();
    memset(data, 0, sizeof data);
    if (os_fetch_make(&options, &fetch, &failure) == OS_OK &&
        os_fetch_set_source(fetch, 1, &place, &failure) == OS_OK &&
        os_fetch_set_origin(fetch, 1, sources, 1, &failure) == OS_OK) {
        uint64_t patience = world.forever ? UINT64_C(150000000) : UINT64_C(100000000000);
        for (int at = 0; at < WANTS; at++) {
            os_fetch_want want = {.blob_size = size,
                                  .offset = offset[at],
                                  .length = LENGTH,
                                  .origin = 1,
                                  .deadline = env->monotonic_ns(env->context) + patience,
                                  .buffer = data[at],
                                  .context = &it,
                                  .done = on_done,
                                  .ticket = (uint64_t)at};
            memcpy(want.digest, digest, OS_ID_SIZE);
            pthread_mutex_lock(&it.lock);
            it.left++;
            pthread_mutex_unlock(&it.lock);
            submitted[at] = os_fetch_submit(fetch, &want, &failure) == OS_OK;
            pthread_mutex_lock(&it.lock);
            it.left -= !submitted[at];
            pthread_mutex_unlock(&it.lock);
        }
        pthread_mutex_lock(&it.lock);
        while (it.left > 0)
            pthread_cond_wait(&it.changed, &it.lock);
        pthread_mutex_unlock(&it.lock);
    } else if (failure.message[0] == '\0') {
        complain("a failure without words", (int)failure.code);
    }
    os_fetch_free(fetch);
    for (int at = 0; at < WANTS; at++)
        if (submitted[at])
            check_want(&it, at, offset[at], data[at]);
    if (atomic_load(&world.memory) != 0)
        complain("pieces of memory left", atomic_load(&world.memory));
    if (descriptors() != before)
        complain("descriptors left", descriptors() - before);
}

int main(int count, char **arguments) {
    char url[128];
    uint8_t digest[OS_ID_SIZE];
    if (count != 4 || strlen(arguments[2]) != 2 * OS_ID_SIZE)
        return 2;
    for (int at = 0; at < OS_ID_SIZE; at++) {
        unsigned byte;
        if (sscanf(arguments[2] + 2 * at, "%2x", &byte) != 1)
            return 2;
        digest[at] = (uint8_t)byte;
    }
    snprintf(url, sizeof url, "http://127.0.0.1:%s/blobs/{digest}", arguments[1]);
    os_env env = os_env_system;
    env.allocate = allocate;
    env.release = release;
    env.socket = open_socket;
    curl_global_init(CURL_GLOBAL_DEFAULT);
    for (world.kind = MEMORY; world.kind < KINDS; world.kind++) {
        for (int forever = 0; forever < 2; forever++) {
            world.forever = forever;
            for (world.at = 1; world.at < CALLS_MAX; world.at++) {
                atomic_store(&world.calls, 0);
                atomic_store(&world.injected, 0);
                run(&env, url, digest, strtoull(arguments[3], NULL, 10));
                if (atomic_load(&world.injected) == 0)
                    break;
            }
            printf("%s %s %d\n", KIND_NAMES[world.kind], forever ? "forever" : "once", world.at - 1);
        }
    }
    return 0;
}
