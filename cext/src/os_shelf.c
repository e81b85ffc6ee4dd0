#include "os_shelf.h"

bool os_shelf_get(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm, uint8_t *out, size_t length) {
    size_t got = 0;
    return store != NULL && os_store_get(store, id, algorithm, out, length, &got, NULL) == OS_OK && got == length;
}

bool os_shelf_offer(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm, const uint8_t *data,
                    size_t length) {
    return store != NULL && os_store_seen(store, id) &&
           os_store_put(store, id, algorithm, data, length, OS_STORE_NO_WAIT | OS_STORE_VERIFIED, NULL) == OS_OK;
}

bool os_shelf_keep(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm, const uint8_t *data,
                   size_t length) {
    return store != NULL &&
           os_store_put(store, id, algorithm, data, length, OS_STORE_NO_WAIT | OS_STORE_VERIFIED, NULL) == OS_OK;
}

bool os_shelf_has(os_store *store, const uint8_t id[OS_ID_SIZE], unsigned algorithm) {
    return store != NULL && os_store_has(store, id, algorithm);
}
