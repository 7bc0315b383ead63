/* Faults at a chosen step, for LD_PRELOAD: the file operations of a program on watched paths are counted, and at the one
 * that is asked for something happens first: an error, a signal, a change of the file. Settings come from the environment:
 *   FAULT_UNDER   absolute path (or its beginning) of what is watched
 *   FAULT_OPS     mask: 1 reads (and opening to read), 2 what needs room (write, create, sync), 4 other changes of a folder,
 *                 8 what simple file systems lack (links, locks, modes, ...), 16 new processes, 32 new threads (on no path)
 *   FAULT_AT      number of the step, from 1; 0 for none
 *   FAULT_DO      error VALUE, full VALUE (an error from here on), signal VALUE, truncate, remove, rewrite, replace
 *   FAULT_VALUE   errno or signal number
 *   FAULT_WITH    the file whose bytes are written over the path (rewrite), or that is renamed to it (replace)
 *   FAULT_STATE   a file of at least 4096 bytes: the counter that all processes share, whether the fault came, and where
 *   FAULT_LOG     a file that gets a line for each step: the kind and the path
 *   FAULT_CLOCK   seconds that are added to the clock's time, whatever the others are
 * A SIGKILL at a write comes when half of it is written. What libc does inside itself (stdio's own writes) is not seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { READ = 1, ROOM = 2, CHANGE = 4, LACK = 8, PROCESS = 16, THREAD = 32 };
enum { PASS = 0, TEAR = -1 };

struct state {
    long count, fired;
    char where[PATH_MAX - 128];
};

static const char *under, *doing, *with;
static long at, ops, value, ahead;
static int log_fd = -1;
static struct state *state;

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("FAULT_STATE"), *log = getenv("FAULT_LOG");
    ahead = getenv("FAULT_CLOCK") ? atol(getenv("FAULT_CLOCK")) : 0;
    under = getenv("FAULT_UNDER");
    doing = getenv("FAULT_DO");
    with = getenv("FAULT_WITH");
    at = getenv("FAULT_AT") ? atol(getenv("FAULT_AT")) : 0;
    ops = getenv("FAULT_OPS") ? atol(getenv("FAULT_OPS")) : 0;
    value = getenv("FAULT_VALUE") ? atol(getenv("FAULT_VALUE")) : 0;
    if (!under || !doing || !file) return;
    int fd = syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *mapped = (void *)syscall(SYS_mmap, 0, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (mapped == MAP_FAILED) return;
    if (log) log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CLOEXEC);
    state = mapped;
}

static void overwrite(const char *path) {
    char data[65536];
    long got;
    int from = syscall(SYS_openat, AT_FDCWD, with, O_RDONLY | O_CLOEXEC);
    int to = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    while ((got = syscall(SYS_read, from, data, sizeof data)) > 0) syscall(SYS_write, to, data, got);
    syscall(SYS_close, from);
    syscall(SYS_close, to);
}

/* What to do at this step: PASS, TEAR (half of the write, then SIGKILL), or the errno to fail with. */
static int step(int kind, const char *name, const char *path) {
    if (!state || !(ops & kind) || strncmp(path, under, strlen(under))) return PASS;
    if (log_fd >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%d %s %s\n", kind, name, path);
        syscall(SYS_write, log_fd, line, length);
    }
    long number = __atomic_add_fetch(&state->count, 1, __ATOMIC_SEQ_CST);
    int full = !strcmp(doing, "full");
    if (!at || (number != at && !(full && number > at))) return PASS;
    if (!__atomic_exchange_n(&state->fired, 1, __ATOMIC_SEQ_CST)) snprintf(state->where, sizeof state->where, "%s %s", name, path);
    if (full || !strcmp(doing, "error")) return (int)value;
    if (!strcmp(doing, "signal")) {
        if (value == SIGKILL && strstr(name, "write")) return TEAR;
        syscall(SYS_kill, getpid(), (int)value);
    } else if (!strcmp(doing, "truncate")) {
        struct stat found;
        if (!stat(path, &found)) {
            int fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC);
            syscall(SYS_ftruncate, fd, found.st_size / 2);
            syscall(SYS_close, fd);
        }
    } else if (!strcmp(doing, "remove")) {
        syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    } else if (!strcmp(doing, "rewrite")) {
        overwrite(path);
    } else if (!strcmp(doing, "replace")) {
        syscall(SYS_renameat2, AT_FDCWD, with, AT_FDCWD, path, 0);
    }
    return PASS;
}

static const char *path_of(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long got = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_MAX - 1);
    out[got < 0 ? 0 : got] = 0;
    return out;
}

static const char *absolute(int folder, const char *path, char *out) {
    if (!path) return "";
    if (path[0] == '/') return path;
    if (folder == AT_FDCWD) {
        if (syscall(SYS_getcwd, out, PATH_MAX) < 0) out[0] = 0;
    } else {
        path_of(folder, out);
    }
    size_t used = strlen(out);
    snprintf(out + used, PATH_MAX - used, "/%s", path);
    return out;
}

static int at_fd(int kind, const char *name, int fd) {
    char path[PATH_MAX];
    if (!state) return PASS;
    int before = errno, found = step(kind, name, path_of(fd, path));
    errno = before;
    return found;
}

static int at_path(int kind, const char *name, int folder, const char *path) {
    char buffer[PATH_MAX];
    if (!state) return PASS;
    int before = errno, found = step(kind, name, absolute(folder, path, buffer));
    errno = before;
    return found;
}

#define REAL(type, name, ...)                                     \
    static type (*real)(__VA_ARGS__);                             \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define FAIL(code)      \
    do {                \
        errno = (code); \
        return -1;      \
    } while (0)

#define WRITES(name, half, call, ...)                      \
    ssize_t name(__VA_ARGS__) {                            \
        REAL(ssize_t, #name, __VA_ARGS__);                 \
        int found = at_fd(ROOM, #name, fd);                \
        if (found == TEAR) {                               \
            half;                                          \
            syscall(SYS_kill, getpid(), SIGKILL);          \
        }                                                  \
        if (found > 0) FAIL(found);                        \
        return call;                                       \
    }

WRITES(write, syscall(SYS_write, fd, data, count / 2), real(fd, data, count), int fd, const void *data, size_t count)
WRITES(pwrite, syscall(SYS_pwrite64, fd, data, count / 2, offset), real(fd, data, count, offset), int fd, const void *data,
       size_t count, off_t offset)
WRITES(pwrite64, syscall(SYS_pwrite64, fd, data, count / 2, offset), real(fd, data, count, offset), int fd, const void *data,
       size_t count, off_t offset)
WRITES(writev, syscall(SYS_writev, fd, data, count / 2), real(fd, data, count), int fd, const struct iovec *data, int count)

static int is_folder(int fd) {
    struct stat found;
    return !fstat(fd, &found) && S_ISDIR(found.st_mode);
}

#define FLUSHES(name)                                                      \
    int name(int fd) {                                                     \
        REAL(int, #name, int);                                             \
        int found = at_fd(ROOM, #name, fd);                                \
        if (found > 0) FAIL(found);                                        \
        if (is_folder(fd) && at_fd(LACK, #name, fd) > 0) FAIL(EINVAL);     \
        return real(fd);                                                   \
    }
FLUSHES(fsync)
FLUSHES(fdatasync)

#define READS(name, call, ...)              \
    ssize_t name(__VA_ARGS__) {             \
        REAL(ssize_t, #name, __VA_ARGS__);  \
        int found = at_fd(READ, #name, fd); \
        if (found > 0) FAIL(found);         \
        return call;                        \
    }
READS(read, real(fd, data, count), int fd, void *data, size_t count)
READS(pread, real(fd, data, count, offset), int fd, void *data, size_t count, off_t offset)
READS(pread64, real(fd, data, count, offset), int fd, void *data, size_t count, off_t offset)
READS(readv, real(fd, data, count), int fd, const struct iovec *data, int count)
READS(preadv, real(fd, data, count, offset), int fd, const struct iovec *data, int count, off_t offset)
READS(preadv64, real(fd, data, count, offset), int fd, const struct iovec *data, int count, off_t offset)
READS(preadv2, real(fd, data, count, offset, flags), int fd, const struct iovec *data, int count, off_t offset, int flags)
READS(preadv64v2, real(fd, data, count, offset, flags), int fd, const struct iovec *data, int count, off_t offset, int flags)

size_t fread(void *data, size_t size, size_t count, FILE *stream) {
    REAL(size_t, "fread", void *, size_t, size_t, FILE *);
    int found = at_fd(READ, "fread", fileno(stream));
    if (found > 0) {
        errno = found;
        return 0;
    }
    return real(data, size, count, stream);
}

/* A mapping reads nothing yet, so it never fails here; but the file may change from then on. */
void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    REAL(void *, "mmap", void *, size_t, int, int, int, off_t);
    if (fd >= 0) at_fd(READ, "mmap", fd);
    return real(address, length, protection, flags, fd, offset);
}
void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    REAL(void *, "mmap64", void *, size_t, int, int, int, off_t);
    if (fd >= 0) at_fd(READ, "mmap", fd);
    return real(address, length, protection, flags, fd, offset);
}

static int opens(int folder, const char *path, int flags) {
    if ((flags & O_TMPFILE) == O_TMPFILE && at_path(LACK, "O_TMPFILE", folder, path) > 0) return EOPNOTSUPP;
    if (flags & O_CREAT) return at_path(ROOM, "create", folder, path);
    return (flags & O_ACCMODE) == O_WRONLY || (flags & O_DIRECTORY) ? PASS : at_path(READ, "open", folder, path);
}

#define TAKES_MODE(flags) ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE)
#define OPENS(name)                                            \
    int name(const char *path, int flags, ...) {               \
        REAL(int, #name, const char *, int, ...);              \
        va_list rest;                                          \
        va_start(rest, flags);                                 \
        int mode = TAKES_MODE(flags) ? va_arg(rest, int) : 0;  \
        va_end(rest);                                          \
        int found = opens(AT_FDCWD, path, flags);              \
        if (found > 0) FAIL(found);                            \
        return real(path, flags, mode);                        \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                            \
    int name(int folder, const char *path, int flags, ...) {      \
        REAL(int, #name, int, const char *, int, ...);            \
        va_list rest;                                             \
        va_start(rest, flags);                                    \
        int mode = TAKES_MODE(flags) ? va_arg(rest, int) : 0;     \
        va_end(rest);                                             \
        int found = opens(folder, path, flags);                   \
        if (found > 0) FAIL(found);                               \
        return real(folder, path, flags, mode);                   \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

#define ON_PATH(name, kind, folder, call, ...)                 \
    int name(__VA_ARGS__) {                                    \
        REAL(int, #name, __VA_ARGS__);                         \
        int found = at_path(kind, #name, folder, path);        \
        if (found > 0) FAIL(found);                            \
        return call;                                           \
    }
#define LINKS(name, new, call, ...)                                        \
    int name(__VA_ARGS__) {                                                \
        REAL(int, #name, __VA_ARGS__);                                     \
        int found = at_path(CHANGE, #name, AT_FDCWD, new);                 \
        if (found > 0) FAIL(found);                                        \
        if (at_path(LACK, #name, AT_FDCWD, new) > 0) FAIL(EPERM);          \
        return call;                                                       \
    }
ON_PATH(mkdir, ROOM, AT_FDCWD, real(path, mode), const char *path, mode_t mode)
ON_PATH(mkdirat, ROOM, folder, real(folder, path, mode), int folder, const char *path, mode_t mode)
ON_PATH(rename, CHANGE, AT_FDCWD, real(path, to), const char *path, const char *to)
ON_PATH(renameat, CHANGE, folder, real(folder, path, other, to), int folder, const char *path, int other, const char *to)
ON_PATH(unlink, CHANGE, AT_FDCWD, real(path), const char *path)
ON_PATH(unlinkat, CHANGE, folder, real(folder, path, flags), int folder, const char *path, int flags)
ON_PATH(rmdir, CHANGE, AT_FDCWD, real(path), const char *path)
LINKS(link, to, real(path, to), const char *path, const char *to)
LINKS(symlink, path, real(to, path), const char *to, const char *path)
ON_PATH(truncate, CHANGE, AT_FDCWD, real(path, length), const char *path, off_t length)

#define CUTS(name)                                \
    int name(int fd, off_t length) {              \
        REAL(int, #name, int, off_t);             \
        int found = at_fd(CHANGE, #name, fd);     \
        if (found > 0) FAIL(found);               \
        return real(fd, length);                  \
    }
CUTS(ftruncate)
CUTS(ftruncate64)

ssize_t copy_file_range(int from, off64_t *start, int fd, off64_t *to, size_t count, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    int found = at_fd(ROOM, "copy_file_range", fd);
    if (found > 0) FAIL(found);
    if (at_fd(LACK, "copy_file_range", fd) > 0) FAIL(EXDEV);
    return real(from, start, fd, to, count, flags);
}
ssize_t sendfile(int fd, int from, off_t *offset, size_t count) {
    REAL(ssize_t, "sendfile", int, int, off_t *, size_t);
    int found = at_fd(ROOM, "sendfile", fd);
    if (found > 0) FAIL(found);
    return real(fd, from, offset, count);
}

#define LACKS(name, where, code, call, ...)     \
    int name(__VA_ARGS__) {                     \
        REAL(int, #name, __VA_ARGS__);          \
        if ((where) > 0) FAIL(code);            \
        return call;                            \
    }
LACKS(flock, at_fd(LACK, "flock", fd), ENOLCK, real(fd, how), int fd, int how)
LACKS(linkat, at_path(LACK, "linkat", other, to), EPERM, real(folder, path, other, to, flags), int folder, const char *path,
      int other, const char *to, int flags)
LACKS(chmod, at_path(LACK, "chmod", AT_FDCWD, path), EPERM, real(path, mode), const char *path, mode_t mode)
LACKS(fchmod, at_fd(LACK, "fchmod", fd), EPERM, real(fd, mode), int fd, mode_t mode)
LACKS(fchmodat, at_path(LACK, "fchmodat", folder, path), EPERM, real(folder, path, mode, flags), int folder, const char *path,
      mode_t mode, int flags)
LACKS(futimens, at_fd(LACK, "futimens", fd), EPERM, real(fd, times), int fd, const struct timespec times[2])
LACKS(utimensat, at_path(LACK, "utimensat", folder, path), EPERM, real(folder, path, times, flags), int folder,
      const char *path, const struct timespec times[2], int flags)

int posix_fallocate(int fd, off_t offset, off_t length) {
    REAL(int, "posix_fallocate", int, off_t, off_t);
    return at_fd(LACK, "posix_fallocate", fd) > 0 ? EOPNOTSUPP : real(fd, offset, length);
}
int posix_fallocate64(int fd, off64_t offset, off64_t length) {
    REAL(int, "posix_fallocate64", int, off64_t, off64_t);
    return at_fd(LACK, "posix_fallocate", fd) > 0 ? EOPNOTSUPP : real(fd, offset, length);
}

/* SQLite's locks. */
#define LOCKS(name)                                                                                         \
    int name(int fd, int command, ...) {                                                                    \
        REAL(int, #name, int, int, ...);                                                                    \
        va_list rest;                                                                                       \
        va_start(rest, command);                                                                            \
        void *with = va_arg(rest, void *);                                                                  \
        va_end(rest);                                                                                       \
        int locks = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW; \
        if (locks && at_fd(LACK, "fcntl", fd) > 0) FAIL(ENOLCK);                                            \
        return real(fd, command, with);                                                                     \
    }
LOCKS(fcntl)
LOCKS(fcntl64)

static int spawns(int kind, const char *name) { return at_path(kind, name, AT_FDCWD, "/"); }

pid_t fork(void) {
    REAL(pid_t, "fork", void);
    if (spawns(PROCESS, "fork") > 0) FAIL(EAGAIN);
    return real();
}
/* A child of vfork may not return from here, so that it is a fork where it does not fail. */
pid_t vfork(void) {
    REAL(pid_t, "fork", void);
    if (spawns(PROCESS, "vfork") > 0) FAIL(EAGAIN);
    return real();
}

#define SPAWNS(name)                                                                                                    \
    int name(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *others, \
             char *const *arguments, char *const *environment) {                                                       \
        REAL(int, #name, pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *,         \
             char *const *, char *const *);                                                                            \
        if (spawns(PROCESS, #name) > 0) return EAGAIN;                                                                 \
        return real(pid, path, actions, others, arguments, environment);                                               \
    }
SPAWNS(posix_spawn)
SPAWNS(posix_spawnp)

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*begin)(void *), void *with) {
    REAL(int, "pthread_create", pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (spawns(THREAD, "pthread_create") > 0) return EAGAIN;
    return real(thread, how, begin, with);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    int code = real(clock, now);
    if (!code && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead;
    return code;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(int, "gettimeofday", struct timeval *, void *);
    int code = real(now, zone);
    if (!code) now->tv_sec += ahead;
    return code;
}
time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}
