/* Holds up a process's syncs one by one, as a slow disk does: preloaded, it tells of each in the FIFO
 * SLOW_SYNC_BEGUN, and goes on when it reads a byte from the FIFO SLOW_SYNC_GO. Only while the file
 * SLOW_SYNC_ON exists.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static void hold(void)
{
    const char *on = getenv("SLOW_SYNC_ON");
    int begun, go;
    char byte = 's';

    if (on == NULL || access(on, F_OK) != 0)
        return;
    begun = open(getenv("SLOW_SYNC_BEGUN"), O_RDWR | O_CLOEXEC);
    go = open(getenv("SLOW_SYNC_GO"), O_RDWR | O_CLOEXEC);
    if (begun < 0 || go < 0 || write(begun, &byte, 1) != 1)
        abort();
    while (read(go, &byte, 1) != 1)
        if (errno != EINTR)
            abort();
    close(begun);
    close(go);
}

int fdatasync(int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");

    hold();
    return real(fd);
}

int fsync(int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");

    hold();
    return real(fd);
}
