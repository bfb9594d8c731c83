/* Records what a process does to the pool's files, in order, for power cuts to be replayed.
 *
 * Preloaded, it stands between the process and libc for every call that changes a file or makes it
 * durable. What concerns one of the files in POWERLOSS_FILES (paths, with a colon between, that exist
 * already) goes to the log POWERLOSS_LOG: once before the call, with the data, and once after it.
 * recording.py has the log's format; each record is one append, so threads and processes need no
 * lock, and what has returned is in the log.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 1, WRITE_DURABLY, ZERO, SIZE, SYNC, DONE };
enum { FILES = 8, PIECES = 1024, HOLE = 0x02, ZEROED = 0x10 };

struct record {
    uint32_t what, file;
    uint64_t id, offset, length;
};

static struct {
    dev_t device;
    ino_t inode;
} files[FILES];
static int count, log_fd = -1;
static _Atomic uint64_t serial;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);

    if (found == NULL)
        abort();
    return found;
}

__attribute__((constructor)) static void begin(void)
{
    const char *paths = getenv("POWERLOSS_FILES"), *log = getenv("POWERLOSS_LOG");
    struct stat st;
    char *copy, *path, *rest;

    if (paths == NULL || log == NULL)
        return;
    copy = strdup(paths);
    for (path = strtok_r(copy, ":", &rest); path != NULL && count < FILES;
         path = strtok_r(NULL, ":", &rest), count++) {
        if (stat(path, &st) != 0)
            abort();
        files[count].device = st.st_dev;
        files[count].inode = st.st_ino;
    }
    free(copy);
    log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0)
        abort();
    serial = (uint64_t)getpid() << 40;
}

/* Which of the files, or -1. */
static int file_of(int fd)
{
    struct stat st;

    if (log_fd < 0 || fstat(fd, &st) != 0)
        return -1;
    for (int i = 0; i < count; i++)
        if (files[i].device == st.st_dev && files[i].inode == st.st_ino)
            return i;
    return -1;
}

static void put(struct record *record, const struct iovec *data, int pieces)
{
    struct iovec all[PIECES + 1];
    ssize_t size = sizeof *record;

    if (pieces > PIECES)
        abort();
    all[0] = (struct iovec){record, sizeof *record};
    for (int i = 0; i < pieces; i++) {
        all[i + 1] = data[i];
        size += data[i].iov_len;
    }
    if (REAL(writev)(log_fd, all, pieces + 1) != size)
        abort();
}

static uint64_t before(uint32_t what, int file, off_t offset, uint64_t length,
                       const struct iovec *data, int pieces)
{
    struct record record = {what, file, ++serial, offset, length};

    put(&record, data, pieces);
    return record.id;
}

/* `length`: how much was done of what was asked. */
static void after(uint64_t id, uint64_t length)
{
    int number = errno;
    struct record record = {DONE, 0, id, 0, length};

    put(&record, NULL, 0);
    errno = number;
}

static uint64_t before_write(int fd, int file, const struct iovec *data, int pieces, off_t offset)
{
    int flags = fcntl(fd, F_GETFL);
    uint64_t length = 0;

    for (int i = 0; i < pieces; i++)
        length += data[i].iov_len;
    return before(flags & O_DSYNC ? WRITE_DURABLY : WRITE, file, offset, length, data, pieces);
}

#define WRITES(fd, iov, pieces, at, call)                                  \
    do {                                                                   \
        int file = file_of(fd);                                            \
        if (file < 0)                                                      \
            return call;                                                   \
        uint64_t id = before_write(fd, file, iov, pieces, at);             \
        ssize_t done = call;                                               \
        after(id, done < 0 ? 0 : done);                                    \
        return done;                                                       \
    } while (0)

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    struct iovec one = {(void *)data, size};

    WRITES(fd, &one, 1, offset, REAL(pwrite)(fd, data, size, offset));
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset)
    __attribute__((alias("pwrite")));

ssize_t pwritev(int fd, const struct iovec *data, int pieces, off_t offset)
{
    WRITES(fd, data, pieces, offset, REAL(pwritev)(fd, data, pieces, offset));
}

ssize_t pwritev64(int fd, const struct iovec *data, int pieces, off_t offset)
    __attribute__((alias("pwritev")));

ssize_t pwritev2(int fd, const struct iovec *data, int pieces, off_t offset, int flags)
{
    WRITES(fd, data, pieces, offset, REAL(pwritev2)(fd, data, pieces, offset, flags));
}

ssize_t pwritev64v2(int fd, const struct iovec *data, int pieces, off_t offset, int flags)
    __attribute__((alias("pwritev2")));

ssize_t writev(int fd, const struct iovec *data, int pieces)
{
    WRITES(fd, data, pieces, lseek(fd, 0, SEEK_CUR), REAL(writev)(fd, data, pieces));
}

ssize_t write(int fd, const void *data, size_t size)
{
    struct iovec one = {(void *)data, size};

    WRITES(fd, &one, 1, lseek(fd, 0, SEEK_CUR), REAL(write)(fd, data, size));
}

ssize_t copy_file_range(int from, off64_t *source, int to, off64_t *target, size_t size,
                        unsigned flags)
{
    int file = file_of(to);
    struct iovec one;
    ssize_t done;
    uint64_t id;

    if (file < 0)
        return REAL(copy_file_range)(from, source, to, target, size, flags);
    if (source == NULL || target == NULL || (one.iov_base = malloc(size)) == NULL)
        abort();
    done = pread(from, one.iov_base, size, *source);
    one.iov_len = done < 0 ? 0 : done;
    id = before_write(to, file, &one, 1, *target);
    done = REAL(copy_file_range)(from, source, to, target, size, flags);
    after(id, done < 0 ? 0 : done);
    free(one.iov_base);
    return done;
}

int fallocate(int fd, int mode, off_t offset, off_t size)
{
    int file = file_of(fd), failed;
    uint64_t id;

    if (file < 0)
        return REAL(fallocate)(fd, mode, offset, size);
    if (!(mode & (HOLE | ZEROED)))
        abort();
    id = before(ZERO, file, offset, size, NULL, 0);
    failed = REAL(fallocate)(fd, mode, offset, size);
    after(id, failed ? 0 : size);
    return failed;
}

int fallocate64(int fd, int mode, off_t offset, off_t size) __attribute__((alias("fallocate")));

int ftruncate(int fd, off_t size)
{
    int file = file_of(fd), failed;
    uint64_t id;

    if (file < 0)
        return REAL(ftruncate)(fd, size);
    id = before(SIZE, file, size, 1, NULL, 0);
    failed = REAL(ftruncate)(fd, size);
    after(id, failed ? 0 : 1);
    return failed;
}

int ftruncate64(int fd, off_t size) __attribute__((alias("ftruncate")));

#define SYNCS(fd, call)                                                    \
    do {                                                                   \
        int file = file_of(fd), failed;                                    \
        if (file < 0)                                                      \
            return call;                                                   \
        uint64_t id = before(SYNC, file, 0, 1, NULL, 0);                   \
        failed = call;                                                     \
        after(id, failed ? 0 : 1);                                         \
        return failed;                                                     \
    } while (0)

int fsync(int fd)
{
    SYNCS(fd, REAL(fsync)(fd));
}

int fdatasync(int fd)
{
    SYNCS(fd, REAL(fdatasync)(fd));
}
