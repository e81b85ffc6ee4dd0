/* How fast the index kernels are by themselves: fs.erofs encoded and judged, a layer index decoded. Prints JSON.
 *
 *     index_speed LAYER-INDEX ROUNDS
 *
 * Seconds are of CPU: what else the machine does costs caches, but not time.
 * From Python encode_image and check_image are seen whole, with the tables; this takes them apart. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "os_erofs.h"
#include "os_layer.h"

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static uint8_t *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END))
        return NULL;
    long length = ftell(file);
    uint8_t *data = length < 0 ? NULL : malloc((size_t)length + 1);
    rewind(file);
    if (data && fread(data, 1, (size_t)length, file) != (size_t)length) {
        free(data);
        data = NULL;
    }
    fclose(file);
    *size = (size_t)length;
    return data;
}

static int must(os_code code, const os_failure *failure) {
    if (code != OS_OK)
        fprintf(stderr, "%s\n", failure->message);
    return code == OS_OK;
}

static void print(const char *name, const double *seconds, int rounds, const char *end) {
    printf("\"%s\": [", name);
    for (int at = 0; at < rounds; at++)
        printf("%s%.6f", at ? ", " : "", seconds[at]);
    printf("]%s", end);
}

int main(int count, char **words) {
    size_t size = 0;
    int rounds = count == 3 ? atoi(words[2]) : 0;
    uint8_t *layer = rounds > 0 && rounds <= 100 ? read_file(words[1], &size) : NULL;
    double decode[100], encode[100], check[100];
    uint32_t inodes = 0;
    os_failure failure;
    if (!layer)
        return fprintf(stderr, "usage: index_speed LAYER-INDEX ROUNDS\n"), 2;
    for (int at = 0; at < rounds; at++) {
        os_tree tree = {0}, again = {0};
        uint8_t *image = NULL;
        size_t image_size = 0;
        double start = now();
        if (!must(os_layer_decode(layer, size, &tree, &failure), &failure))
            return 1;
        decode[at] = now() - start;
        start = now();
        if (!must(os_erofs_encode(&tree, 0, &image, &image_size, &failure), &failure))
            return 1;
        encode[at] = now() - start;
        start = now();
        if (!must(os_erofs_check(image, image_size, &again, &failure), &failure))
            return 1;
        check[at] = now() - start;
        inodes = tree.inode_count;
        os_tree_free(&again);
        os_tree_free(&tree);
        free(image);
    }
    printf("{\"inodes\": %u, ", inodes);
    print("decode", decode, rounds, ", ");
    print("encode", encode, rounds, ", ");
    print("check", check, rounds, "}\n");
    free(layer);
    return 0;
}
