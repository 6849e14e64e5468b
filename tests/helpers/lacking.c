/* Preloaded: what is named in LACKING does not work for files under LACKING_UNDER; it fails with LACKING_ERRNO,
   or, where that is 0, seems to work and does nothing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int lacks(const char *what, const char *path) {
    const char *lacking = getenv("LACKING"), *under = getenv("LACKING_UNDER");
    return path && lacking && under && !strcmp(lacking, what) && !strncmp(path, under, strlen(under));
}

static int lacks_of(const char *what, int descriptor) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return lacks(what, path);
}

static int fault(void) {
    errno = atoi(getenv("LACKING_ERRNO"));
    return errno ? -1 : 0;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int flock(int descriptor, int how) {
    return lacks_of("flock", descriptor) ? fault() : NEXT(flock)(descriptor, how);
}

static int is_lock(int command) {
    return command == F_SETLK || command == F_SETLKW || command == F_GETLK || command == F_OFD_SETLK
        || command == F_OFD_SETLKW || command == F_OFD_GETLK;
}

/* Who asks after a lock that was not taken is told that there is none. */
static int no_lock(int command, void *argument) {
    int code = fault();
    if (code == 0 && (command == F_GETLK || command == F_OFD_GETLK)) ((struct flock *)argument)->l_type = F_UNLCK;
    return code;
}

#define LOCKING(name)                                                                            \
    int name(int descriptor, int command, ...) {                                                 \
        va_list rest;                                                                            \
        va_start(rest, command);                                                                 \
        void *argument = va_arg(rest, void *);                                                   \
        va_end(rest);                                                                            \
        if (is_lock(command) && lacks_of("fcntl", descriptor)) return no_lock(command, argument); \
        return NEXT(name)(descriptor, command, argument);                                        \
    }
LOCKING(fcntl)
LOCKING(fcntl64)

#define MAPPING(name, offset_type)                                                               \
    void *name(void *at, size_t size, int protection, int flags, int descriptor, offset_type from) { \
        if ((flags & MAP_SHARED) && descriptor >= 0 && lacks_of("mmap", descriptor)) {           \
            if (fault()) return MAP_FAILED;                                                      \
            flags = (flags & ~MAP_SHARED) | MAP_PRIVATE;                                         \
        }                                                                                        \
        void *(*next)(void *, size_t, int, int, int, offset_type) = dlsym(RTLD_NEXT, #name);     \
        return next(at, size, protection, flags, descriptor, from);                              \
    }
MAPPING(mmap, off_t)
MAPPING(mmap64, off64_t)

int chmod(const char *path, mode_t mode) {
    return lacks("chmod", path) ? fault() : NEXT(chmod)(path, mode);
}

int fchmod(int descriptor, mode_t mode) {
    return lacks_of("chmod", descriptor) ? fault() : NEXT(fchmod)(descriptor, mode);
}

int fchmodat(int folder, const char *path, mode_t mode, int flags) {
    return lacks("chmod", path) ? fault() : NEXT(fchmodat)(folder, path, mode, flags);
}

int rename(const char *from, const char *to) {
    return lacks("rename", to) ? fault() : NEXT(rename)(from, to);
}

int link(const char *from, const char *to) {
    return lacks("link", to) ? fault() : NEXT(link)(from, to);
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    return lacks("link", to) ? fault() : NEXT(linkat)(from_folder, from, to_folder, to, flags);
}

int fsync(int descriptor) {
    return lacks_of("fsync", descriptor) ? fault() : NEXT(fsync)(descriptor);
}

int fdatasync(int descriptor) {
    return lacks_of("fsync", descriptor) ? fault() : NEXT(fdatasync)(descriptor);
}

int mkdir(const char *path, mode_t mode) {
    return lacks("mkdir", path) ? fault() : NEXT(mkdir)(path, mode);
}

int truncate(const char *path, off_t size) {
    return lacks("truncate", path) ? fault() : NEXT(truncate)(path, size);
}

int truncate64(const char *path, off64_t size) {
    return lacks("truncate", path) ? fault() : NEXT(truncate64)(path, size);
}

int ftruncate(int descriptor, off_t size) {
    return lacks_of("ftruncate", descriptor) ? fault() : NEXT(ftruncate)(descriptor, size);
}

int ftruncate64(int descriptor, off64_t size) {
    return lacks_of("ftruncate", descriptor) ? fault() : NEXT(ftruncate64)(descriptor, size);
}

int utimensat(int folder, const char *path, const struct timespec times[2], int flags) {
    return lacks("utime", path) ? fault() : NEXT(utimensat)(folder, path, times, flags);
}

int unlink(const char *path) {
    return lacks("unlink", path) ? fault() : NEXT(unlink)(path);
}

/* A file opened to be appended to: refused, or, where that seems to work, written from its start. */
#define OPENING(name)                                                       \
    int name(const char *path, int flags, ...) {                            \
        va_list rest;                                                       \
        va_start(rest, flags);                                              \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                       \
        if ((flags & O_APPEND) && lacks("append", path)) {                  \
            if (fault()) return -1;                                         \
            flags &= ~O_APPEND;                                             \
        }                                                                   \
        return NEXT(name)(path, flags, mode);                               \
    }
OPENING(open)
OPENING(open64)
