/* A disk that is full from the n-th write on, for the files of one folder.

   FULL_UNDER: the folder. FULL_AFTER: how many writes succeed. FULL_COUNT: where to add a byte for
   every write, to know how many there are. Loaded before the C library (LD_PRELOAD). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int full(int fd) {
    const char *under = getenv("FULL_UNDER"), *after = getenv("FULL_AFTER");
    const char *count = getenv("FULL_COUNT");
    char link[64], path[PATH_MAX];
    if (!under || !count) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (strncmp(path, under, strlen(under)) != 0) return 0;
    /* one counter for all processes and threads: the length of a file */
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    int counter = open(count, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (counter < 0) return 0;
    real(counter, ".", 1);
    off_t done = lseek(counter, 0, SEEK_END);
    close(counter);
    if (!after || done <= atoll(after)) return 0;
    errno = ENOSPC;
    return 1;
}

#define FULL(type, name, parameters, arguments)                    \
    type name parameters {                                         \
        static type (*real) parameters;                            \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name); \
        return full(fd) ? -1 : real arguments;                     \
    }

FULL(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
FULL(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
FULL(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
