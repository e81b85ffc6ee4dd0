/* The one program of the test images: what it does is its first argument. Static, so that it needs no libraries. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

extern char **environ;
static volatile sig_atomic_t caught;

static void on_signal(int number) {
    caught = number;
}

static void on_size(int number) {
    (void)number;
}

/* Signals are blocked from here on but while sigsuspend waits: one that comes between a line of output and the wait for
 * it, as a test's answer to that line does, is not lost. */
static sigset_t block_signals(void) {
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before);
    return before;
}

static int complain(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    return errno;
}

static int list(const char *path) {
    DIR *directory = opendir(path);
    if (directory == NULL)
        return complain(path);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            printf("%s\n", entry->d_name);
    closedir(directory);
    return 0;
}

static int copy(int from) {
    char buffer[65536];
    ssize_t size;
    while ((size = read(from, buffer, sizeof buffer)) > 0)
        if (write(1, buffer, (size_t)size) != size)
            return complain("write");
    return size < 0 ? complain("read") : 0;
}

int main(int count, char **words) {
    const char *verb = count > 1 ? words[1] : "true";
    const char *first = count > 2 ? words[2] : "";
    const char *second = count > 3 ? words[3] : "";
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (strcmp(verb, "true") == 0)
        return 0;
    if (strcmp(verb, "exit") == 0)
        return atoi(first);
    if (strcmp(verb, "words") == 0) {
        for (int at = 2; at < count; at++)
            printf("%s\n", words[at]);
        return 0;
    }
    if (strcmp(verb, "env") == 0) {
        for (char **item = environ; *item != NULL; item++)
            printf("%s\n", *item);
        return 0;
    }
    if (strcmp(verb, "cwd") == 0) {
        char buffer[4096];
        printf("%s\n", getcwd(buffer, sizeof buffer) == NULL ? "?" : buffer);
        return 0;
    }
    if (strcmp(verb, "id") == 0) {
        gid_t groups[64];
        int found = getgroups(64, groups);
        printf("%d:%d", (int)getuid(), (int)getgid());
        for (int at = 0; at < found; at++)
            printf(" %d", (int)groups[at]);
        printf("\n");
        return 0;
    }
    if (strcmp(verb, "cat") == 0) {
        int fd = *first ? open(first, O_RDONLY) : 0;
        return fd < 0 ? complain(first) : copy(fd);
    }
    if (strcmp(verb, "write") == 0) {
        int fd = open(first, O_WRONLY | O_CREAT | O_APPEND, 0644);
        if (fd < 0)
            return complain(first);
        return write(fd, second, strlen(second)) < 0 ? complain(first) : 0;
    }
    if (strcmp(verb, "list") == 0)
        return list(first);
    if (strcmp(verb, "readlink") == 0) {
        char buffer[4096];
        ssize_t size = readlink(first, buffer, sizeof buffer);
        if (size < 0)
            return complain(first);
        printf("%.*s\n", (int)size, buffer);
        return 0;
    }
    if (strcmp(verb, "ttys") == 0) {
        /* says the size again each time it changes, until SIGINT */
        signal(SIGINT, on_signal);
        signal(SIGWINCH, on_size);
        sigset_t open = block_signals();
        while (!caught) {
            struct winsize size = {0};
            ioctl(0, TIOCGWINSZ, &size);
            printf("tty %d%d%d %dx%d\n", isatty(0), isatty(1), isatty(2), size.ws_row, size.ws_col);
            sigsuspend(&open);
        }
        printf("caught %d\n", (int)caught);
        return 40 + caught;
    }
    if (strcmp(verb, "trap") == 0) {
        for (int number = 1; number < 32; number++)
            if (number != SIGCHLD && number != SIGWINCH)
                signal(number, on_signal);
        sigset_t open = block_signals();
        printf("ready\n");
        while (!caught)
            sigsuspend(&open);
        printf("caught %d\n", (int)caught);
        return 40 + caught;
    }
    if (strcmp(verb, "hang") == 0) {
        printf("ready\n");
        for (;;)
            pause();
    }
    if (strcmp(verb, "mkdirs") == 0) {
        /* deeper than any path: a mkdir and a chdir at a time */
        for (int at = 0; at < atoi(first); at++)
            if (mkdir("d", 0755) != 0 || chdir("d") != 0)
                return complain("mkdir");
        return 0;
    }
    if (strcmp(verb, "mount") == 0)
        return mount("none", "/tmp", "tmpfs", 0, NULL) != 0 ? complain("mount") : 0;
    if (strcmp(verb, "mknod") == 0)
        return mknod("/tmp/null", S_IFCHR | 0666, makedev(1, 3)) != 0 ? complain("mknod") : 0;
    if (strcmp(verb, "keyctl") == 0)
        return syscall(SYS_add_key, "user", "x", "y", 1, -1) < 0 ? complain("add_key") : 0;
    fprintf(stderr, "%s: no such verb\n", verb);
    return 99;
}
