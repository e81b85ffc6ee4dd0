/* Notes the time of a container's first instruction, and becomes the container's command:
 *
 *     first /PATH/OF/COMMAND WORDS…
 *
 * FIRST_NS in the command's environment is the kernel's monotonic clock, which the caller outside reads as well.
 * Statically linked, so that nothing of the image is read before the clock is. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int count, char **words) {
    struct timespec time;
    char text[32];
    clock_gettime(CLOCK_MONOTONIC, &time);
    snprintf(text, sizeof text, "%lld", (long long)time.tv_sec * 1000000000LL + time.tv_nsec);
    if (count < 2 || setenv("FIRST_NS", text, 1)) {
        fprintf(stderr, "usage: first COMMAND [WORD...]\n");
        return 2;
    }
    execv(words[1], words + 1);
    perror(words[1]);
    return 127;
}
