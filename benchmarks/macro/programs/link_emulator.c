/* A link with delay and rate between two TUN devices, for kernels without netem.
 *
 *     link_emulator NAME NAME DELAY-S RATE-BYTES-PER-S QUEUE-BYTES
 *
 * Makes both devices, prints `ready`, and carries packets from each to the other until stdin ends: whoever started it
 * moves the devices to where they belong, and nothing is left when this process is gone. link_wire.c decides when a
 * packet comes out and which is dropped; here are only devices and the clock. A proxy that ended connections in this
 * place would hide the delay from TCP's slow start, which is most of what a delay costs.
 *
 * One thread. It sleeps in epoll until a device has packets, the timer of the earliest packet on its way fires, or
 * stdin ends; a timer descriptor has the kernel's full resolution, so that nobody spins. Packets come and go as the
 * kernel has them, up to 64 KiB with their offload header: a TUN device gives one packet for each read, so a batch is
 * reading until there is no more, and the large packets are what keeps 1 Gbit/s at 2,000 reads a second. */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "link_wire.h"

enum {
    HEADER = sizeof(struct virtio_net_hdr),
    LARGEST = 65536 + HEADER,
    BATCH = 64, /* reads of one device before the other has its turn */
    CONTROL = 2,
    TIMER = 3,
};

typedef struct end {
    int fd;  /* owned: the device goes with it */
    wire to; /* what it sends, on its way to the other end */
} end;

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000U + (uint64_t)time.tv_nsec;
}

/* A device in the network namespace of this process, or -1 with errno. */
static int open_device(const char *name) {
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC), header = HEADER;
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    if (fd < 0)
        return -1;
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    if (ioctl(fd, TUNSETIFF, &request) || ioctl(fd, TUNSETVNETHDRSZ, &header) ||
        ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)) {
        close(fd);
        return -1;
    }
    return fd;
}

static void take(end *from) {
    uint8_t packet[LARGEST];
    for (int count = 0; count < BATCH; count++) {
        ssize_t size = read(from->fd, packet, sizeof packet);
        if (size < HEADER) /* nothing more, or the device is down */
            return;
        wire_arrive(&from->to, packet, (size_t)size, now());
    }
}

static void give(end *from, int target) {
    for (wire_packet *packet; (packet = wire_leave(&from->to, now())); free(packet))
        if (write(target, packet->data, packet->size) < 0) /* it is down: it is being torn down */
            from->to.dropped++;
}

/* The earliest packet of both ways. armed: what the timer is set to, so that it is set only for another time. */
static int arm(int timer, const end *ends, uint64_t *armed) {
    uint64_t one = wire_next(&ends[0].to), other = wire_next(&ends[1].to), due = one < other ? one : other;
    struct itimerspec setting = {0};
    if (due == *armed || due == UINT64_MAX)
        return 0;
    setting.it_value.tv_sec = (time_t)(due / 1000000000U);
    setting.it_value.tv_nsec = (long)(due % 1000000000U);
    *armed = due;
    return timerfd_settime(timer, TFD_TIMER_ABSTIME, &setting, NULL);
}

/* Until stdin ends: 0. Else -1 with errno. */
static int carry(end *ends, int poll, int timer) {
    struct epoll_event ready[4];
    uint64_t armed = UINT64_MAX, fired;
    for (;;) {
        if (arm(timer, ends, &armed))
            return -1;
        int count = epoll_wait(poll, ready, 4, -1);
        if (count < 0 && errno != EINTR)
            return -1;
        for (int at = 0; at < count; at++) {
            uint32_t what = ready[at].data.u32;
            if (what == CONTROL || (ready[at].events & EPOLLERR)) /* or a device is gone with its namespace */
                return 0;
            if (what == TIMER)
                armed = read(timer, &fired, sizeof fired) < 0 ? armed : UINT64_MAX;
            else
                take(&ends[what]);
        }
        give(&ends[0], ends[1].fd);
        give(&ends[1], ends[0].fd);
    }
}

static int watch(int poll, int fd, uint32_t what) {
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = what};
    return epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
}

static int failed(const char *what) {
    fprintf(stderr, "link_emulator: %s: %s\n", what, strerror(errno));
    return 1;
}

int main(int count, char **words) {
    end ends[2];
    int poll = epoll_create1(EPOLL_CLOEXEC);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    mallopt(M_TRIM_THRESHOLD, 256 << 20); /* a queue that fills again and again gives nothing back in between */
    mallopt(M_MMAP_THRESHOLD, 1 << 20);
    for (int at = 0; at < 2; at++) {
        if (count != 6 || !wire_init(&ends[at].to, atof(words[3]), atof(words[4]), atof(words[5]), HEADER)) {
            fprintf(stderr, "usage: link_emulator NAME NAME DELAY-S RATE-BYTES-PER-S QUEUE-BYTES\n");
            return 2;
        }
        ends[at].fd = open_device(words[1 + at]);
        if (ends[at].fd < 0)
            return failed(words[1 + at]);
    }
    if (poll < 0 || timer < 0 || watch(poll, ends[0].fd, 0) || watch(poll, ends[1].fd, 1) ||
        watch(poll, STDIN_FILENO, CONTROL) || watch(poll, timer, TIMER))
        return failed("epoll");
    puts("ready");
    fflush(stdout);
    int status = carry(ends, poll, timer) ? failed("epoll") : 0;
    for (int at = 0; at < 2; at++)
        wire_free(&ends[at].to);
    return status;
}
