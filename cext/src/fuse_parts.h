/* What the parts of the object server share: its state, the answers, the roads of a LOOKUP and a READ. Private to
 * fuse_*.c; fuse_server.c says who runs and which lock guards what. */
#ifndef OS_FUSE_PARTS_H
#define OS_FUSE_PARTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "fuse_nodes.h"
#include "fuse_parking.h"
#include "fuse_request.h"
#include "fuse_server.h"
#include "fuse_wire.h"
#include "os_boot_reads.h"
#include "os_image.h"
#include "os_log.h"

#define OS_FUSE_YEAR UINT64_C(31536000) /* seconds: how long the kernel may believe names and attributes */
#define OS_FUSE_DIRECTORY_MODE (S_IFDIR | 0555)
#define OS_FUSE_KEEPERS 2u /* threads that answer what was parked: one decodes 0.7 GB/s */
#define OS_FUSE_OBJECT_MODE (S_IFREG | 0444)

typedef struct os_fuse_learned os_fuse_learned;

typedef struct os_fuse_worker {
    os_fuse_server *server; /* borrowed */
    pthread_t thread;
    bool started;
    atomic_bool left;
    int fd;           /* owned; -1: a keeper */
    uint8_t *request; /* owned, OS_FUSE_REQUEST_MAX bytes; NULL: a keeper */
    uint8_t *reply;   /* owned, a fuse_out_header and OS_FUSE_READ_MAX bytes */
    os_reader reader;
} os_fuse_worker;

typedef struct os_fuse_boot {
    uint64_t id;
    os_boot_reads *reads; /* owned */
} os_fuse_boot;

struct os_fuse_server {
    os_fuse_options options; /* immutable */
    os_log log;
    os_frame_cache cache;
    os_fuse_worker worker[OS_FUSE_THREADS_MAX + OS_FUSE_KEEPERS]; /* the keepers are the last */
    unsigned workers;                                             /* immutable, with the keepers */
    os_spans *spans; /* owned, immutable; NULL: nothing comes from far away */
    os_warm *warm;   /* owned, immutable; NULL: and nothing could be kept */
    atomic_bool stopping, recording, learning;

    pthread_mutex_t lock; /* guards the rest, but for count */
    pthread_cond_t parked_changed;
    os_image **image; /* owned, ascending by id */
    size_t images, images_room;
    uint64_t last_image;
    os_fuse_boot boot[OS_FUSE_BOOTS_MAX];
    size_t boots;
    uint64_t last_boot;
    os_nodes nodes;
    os_parking parking;
    int expected;
    uint64_t arrivals;
    uint64_t next_look;   /* ns: when the keepers look for what is late or interrupted */
    uint64_t next_frames; /* the same for what waits for frames of a boot pack */
    os_fuse_touch *touch; /* owned */
    size_t touches, touches_room;
    os_fuse_learned *learned; /* owned */
    size_t learned_count, learned_room;

    struct {
        atomic_uint_fast64_t lookups, reads, read_bytes, other, errors, parked, expired, interrupts, killed, pack_bytes,
            decoded_bytes, cache_hits, kept_bytes, keeps, stores, stored_bytes, boot_reads, boot_bytes, unmounted;
    } count;
};

/* fuse_reply.c. out: a fuse_out_header in front of size bytes of body. false: the request is gone (killed, or answered
 * before). */
bool os_fuse_reply(os_fuse_server *server, int fd, uint64_t unique, int error, void *out, size_t size);
void os_fuse_reply_error(os_fuse_server *server, int fd, uint64_t unique, int error);
void os_fuse_reply_entry(os_fuse_server *server, int fd, uint64_t unique, uint64_t node, uint32_t mode, uint64_t size);
void os_fuse_reply_attr(os_fuse_server *server, int fd, uint64_t unique, uint64_t node, uint32_t mode, uint64_t size);
void os_fuse_reply_init(os_fuse_server *server, int fd, const os_fuse_request *request);
void os_fuse_reply_statfs(os_fuse_server *server, int fd, uint64_t unique);

/* fuse_answer.c. Each ends with an answer, or with the request parked. */
void os_fuse_answer_lookup(os_fuse_server *server, os_ask *ask);
void os_fuse_answer_read(os_fuse_worker *self, os_ask *ask);
void os_fuse_fail(os_fuse_server *server, const os_ask *ask); /* EIO */
/* fuse_boot.c: leaves the bytes in self->reply, or says that they come soon and has ask->frames say so. */
os_boot_found os_fuse_from_boot(os_fuse_worker *self, const os_node *node, os_ask *ask, size_t size);
/* fuse_images.c */
void os_fuse_record(os_fuse_server *server, const os_node *node, const os_ask *ask, size_t size, os_fuse_from from);

/* fuse_learn.c: of a READ that was answered, while reads are learned. */
void os_fuse_learn(os_fuse_server *server, const os_node *node, uint64_t offset, size_t size);

/* EIO, now and for a while: what it waited for did not come before the deadline. */
void os_fuse_expire(os_fuse_server *server, const os_ask *ask);

typedef enum os_fuse_parked {
    OS_FUSE_PARKED,
    OS_FUSE_PARKED_NOT_RETRY,   /* something arrived meanwhile: try again */
    OS_FUSE_PARKED_NOT_REFUSED, /* EIO */
} os_fuse_parked;

os_fuse_parked os_fuse_park(os_fuse_server *server, os_ask *ask);

uint64_t os_fuse_now(const os_fuse_server *server);
const char *os_fuse_hex(const uint8_t *bytes, size_t size, char *out);
/* image NULL: the mount as a whole. */
void os_fuse_log_object(os_fuse_server *server, const os_image *image, const uint8_t *object, const char *words);
bool os_fuse_is_directory(uint64_t node);

/* fuse_keeper.c: a thread; argument is its os_fuse_worker. */
void *os_fuse_keeper_main(void *argument);

#endif
