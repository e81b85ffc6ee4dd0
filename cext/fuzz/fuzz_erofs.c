/* fs.erofs: whatever the bytes are, the check stays inside them, and what it lets through encodes to itself. The input
 * is padded to whole blocks, and so that the magic need not be found. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "os_erofs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t padded = size < 4096 ? 4096 : (size + 4095) / 4096 * 4096;
    uint8_t *image = calloc(1, padded), *again = NULL;
    os_tree tree = {0};
    os_failure failure;
    assert(image != NULL);
    if (size)
        memcpy(image, data, size);
    if (os_erofs_check(image, padded, &tree, &failure) == OS_OK) {
        size_t again_size;
        assert(os_erofs_encode(&tree, 0, &again, &again_size, &failure) == OS_OK);
        assert(again_size == padded && !memcmp(image, again, padded));
        free(again);
    }
    os_tree_free(&tree);
    free(image);
    return 0;
}
