/* The map of the local store: LMDB trusts its file, so whatever os_lmdb_check lets through LMDB has to be able to read
 * and to write without harm. The store is opened on the file, asked, written to and opened again.
 *
 * The first byte says what is done. */
#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "os_hash.h"
#include "os_store.h"

static char directory[64];

static void remove_all(void) {
    static const char *const names[] = {"data.mdb", "lock.mdb", "lock", "seen", "seg-00000001", "seg-00000002"};
    char name[128];
    for (size_t at = 0; at < sizeof names / sizeof *names; at++) {
        snprintf(name, sizeof name, "%s/%s", directory, names[at]);
        unlink(name);
    }
}

static void leave(void) {
    remove_all();
    rmdir(directory);
}

static void write_map(const uint8_t *data, size_t size) {
    char name[128];
    snprintf(name, sizeof name, "%s/data.mdb", directory);
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    close(fd);
}

static void use(os_store *store, uint8_t what) {
    uint8_t id[OS_ID_SIZE], buffer[64], chunk[40];
    size_t length;
    for (uint8_t number = 0; number < 12; number++) {
        memset(chunk, number, sizeof chunk);
        os_blake3(chunk, sizeof chunk, id);
        if (os_store_get(store, id, OS_ALGORITHM_BLAKE3, buffer, sizeof buffer, &length, NULL) == OS_OK)
            assert(length == sizeof chunk && memcmp(buffer, chunk, length) == 0);
        if (what & 1)
            os_store_put(store, id, OS_ALGORITHM_BLAKE3, chunk, sizeof chunk, 0, NULL);
    }
    os_store_report report;
    if (what & 2)
        os_store_check(store, what & 4, &report, NULL);
    os_store_flush(store, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    os_store_options options = {.segment_size = 4096};
    os_failure failure;
    os_store *store;
    if (size < 1)
        return 0;
    if (directory[0] == '\0') {
        snprintf(directory, sizeof directory, "/dev/shm/fuzz-map-%d", (int)getpid());
        assert(mkdir(directory, 0700) == 0);
        atexit(leave);
    }
    write_map(data + 1, size - 1);
    for (int time = 0; time < 2; time++) { /* what it wrote it can read */
        os_code code = os_store_open(directory, &options, &store, &failure);
        assert(code == OS_OK);
        use(store, data[0]);
        os_store_free(store);
    }
    remove_all();
    return 0;
}
