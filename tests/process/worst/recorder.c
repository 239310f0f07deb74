/*
 * Watches what a process does to the files below one directory: a library for
 * LD_PRELOAD.  Environment, all read once:
 *
 *   RECORDER_ROOT     absolute path; only what is below it is watched
 *   RECORDER_LOG      every change, sync and acknowledgement is appended here
 *   RECORDER_KILL_AT  the process is killed (-9) in the midst of its n-th change
 *   RECORDER_KILL_IN  only changes of files count whose path ends so
 *   RECORDER_KILLED   what it was killed in is written here, as "kind path"
 *
 * One lock is held around each call and its record, so the order of records is the
 * order in which things happened, across threads.  An acknowledgement (an HTTP answer
 * that names a write, or anything on standard output) is recorded before it leaves.
 *
 * A record: kind (1 byte), fd (4), number (8), length (4), as many bytes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define FDS 65536

enum { BEGIN = 'B', OPEN = 'O', WRITE = 'W', TRUNCATE = 'T', SYNC = 'S', CLOSE = 'C',
       RENAME = 'R', UNLINK = 'U', MKDIR = 'M', ACKNOWLEDGED = 'A' };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *root, *killed, *kill_in;
static int log_fd = -1;
static long kill_at, changes;
static char *watched[FDS]; /* the path of each open file below the root */

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void put(const void *bytes, size_t count)
{
    const char *at = bytes;
    while (count) {
        long done = syscall(SYS_write, log_fd, at, count);
        if (done < 0) {
            if (errno == EINTR)
                continue;
            abort();
        }
        at += done;
        count -= done;
    }
}

static void record(char kind, int fd, int64_t number, const void *bytes, size_t count)
{
    if (log_fd < 0)
        return;
    int saved = errno;
    char head[17];
    uint32_t length = count;
    head[0] = kind;
    memcpy(head + 1, &fd, 4);
    memcpy(head + 5, &number, 8);
    memcpy(head + 13, &length, 4);
    put(head, sizeof head);
    put(bytes, count);
    errno = saved;
}

/* Counts a change; true if it is the one to die in. */
static int last(const char *kind, const char *path)
{
    size_t whole = strlen(path), end = kill_in ? strlen(kill_in) : 0;
    if (end > whole || (end && strcmp(path + whole - end, kill_in)) || ++changes != kill_at)
        return 0;
    if (killed) {
        char text[5000];
        int length = snprintf(text, sizeof text, "%s %s\n", kind, path);
        int fd = syscall(SYS_openat, AT_FDCWD, killed, O_CREAT | O_WRONLY | O_TRUNC, 0600);
        syscall(SYS_write, fd, text, length);
    }
    return 1;
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static int below(const char *path)
{
    if (!root || !path)
        return 0;
    /* The index of SQLite's log is shared memory: nobody expects it to be kept. */
    size_t length = strlen(root), whole = strlen(path);
    if (whole > 4 && !strcmp(path + whole - 4, "-shm"))
        return 0;
    return !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static const char *path_of(int fd)
{
    return fd >= 0 && fd < FDS ? watched[fd] : NULL;
}

__attribute__((constructor)) static void begin(void)
{
    const char *log_path = getenv("RECORDER_LOG"), *at = getenv("RECORDER_KILL_AT");
    root = getenv("RECORDER_ROOT");
    killed = getenv("RECORDER_KILLED");
    kill_in = getenv("RECORDER_KILL_IN");
    kill_at = at ? atol(at) : 0;
    if (log_path) {
        log_fd = syscall(SYS_openat, AT_FDCWD, log_path,
                         O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
        if (log_fd < 0)
            abort();
        record(BEGIN, -1, getpid(), "", 0);
    }
}

static int opened(int fd, const char *path, int flags)
{
    if (fd >= 0 && fd < FDS && below(path)) {
        free(watched[fd]);
        watched[fd] = strdup(path);
        record(OPEN, fd, flags, path, strlen(path));
    }
    return fd;
}

#define OPENER(name, parameters, arguments, path)                                  \
    int name parameters                                                            \
    {                                                                              \
        mode_t mode = 0;                                                           \
        if (flags & (O_CREAT | O_TMPFILE)) {                                       \
            va_list rest;                                                          \
            va_start(rest, flags);                                                 \
            mode = va_arg(rest, mode_t);                                           \
            va_end(rest);                                                          \
        }                                                                          \
        pthread_mutex_lock(&lock);                                                 \
        if (below(path) && flags & O_CREAT && last("open", path))                  \
            die();                                                                 \
        int fd = opened(REAL(name) arguments, path, flags);                        \
        pthread_mutex_unlock(&lock);                                               \
        return fd;                                                                 \
    }

OPENER(open, (const char *path, int flags, ...), (path, flags, mode), path)
OPENER(open64, (const char *path, int flags, ...), (path, flags, mode), path)
OPENER(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode), path)
OPENER(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode), path)

int close(int fd)
{
    pthread_mutex_lock(&lock);
    if (path_of(fd)) {
        record(CLOSE, fd, 0, "", 0);
        free(watched[fd]);
        watched[fd] = NULL;
    }
    int result = REAL(close)(fd);
    pthread_mutex_unlock(&lock);
    return result;
}

ssize_t write(int fd, const void *bytes, size_t count)
{
    if (fd == 1 && log_fd >= 0) {
        pthread_mutex_lock(&lock);
        record(ACKNOWLEDGED, fd, 0, bytes, count);
        pthread_mutex_unlock(&lock);
    }
    if (!path_of(fd))
        return REAL(write)(fd, bytes, count);
    pthread_mutex_lock(&lock);
    off_t offset = lseek(fd, 0, fcntl(fd, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
    int dies = last("write", path_of(fd));
    ssize_t done = REAL(write)(fd, bytes, dies ? count / 2 : count);
    if (dies)
        die();
    if (done > 0)
        record(WRITE, fd, offset, bytes, done);
    pthread_mutex_unlock(&lock);
    return done;
}

#define WRITER(name, offset_type)                                                  \
    ssize_t name(int fd, const void *bytes, size_t count, offset_type offset)      \
    {                                                                              \
        if (!path_of(fd))                                                          \
            return REAL(name)(fd, bytes, count, offset);                           \
        pthread_mutex_lock(&lock);                                                 \
        int dies = last("write", path_of(fd));                                     \
        ssize_t done = REAL(name)(fd, bytes, dies ? count / 2 : count, offset);    \
        if (dies)                                                                  \
            die();                                                                 \
        if (done > 0)                                                              \
            record(WRITE, fd, offset, bytes, done);                                \
        pthread_mutex_unlock(&lock);                                               \
        return done;                                                               \
    }

WRITER(pwrite, off_t)
WRITER(pwrite64, off64_t)

#define TRUNCATER(name, offset_type)                                               \
    int name(int fd, offset_type size)                                             \
    {                                                                              \
        if (!path_of(fd))                                                          \
            return REAL(name)(fd, size);                                           \
        pthread_mutex_lock(&lock);                                                 \
        if (last("truncate", path_of(fd)))                                         \
            die();                                                                 \
        int result = REAL(name)(fd, size);                                         \
        if (!result)                                                               \
            record(TRUNCATE, fd, size, "", 0);                                     \
        pthread_mutex_unlock(&lock);                                               \
        return result;                                                             \
    }

TRUNCATER(ftruncate, off_t)
TRUNCATER(ftruncate64, off64_t)

#define SYNCER(name)                                                               \
    int name(int fd)                                                               \
    {                                                                              \
        if (!path_of(fd))                                                          \
            return REAL(name)(fd);                                                 \
        pthread_mutex_lock(&lock);                                                 \
        if (last("sync", path_of(fd)))                                             \
            die();                                                                 \
        int result = REAL(name)(fd);                                               \
        if (!result)                                                               \
            record(SYNC, fd, 0, "", 0);                                            \
        pthread_mutex_unlock(&lock);                                               \
        return result;                                                             \
    }

SYNCER(fsync)
SYNCER(fdatasync)

int rename(const char *from, const char *to)
{
    if (!below(from) && !below(to))
        return REAL(rename)(from, to);
    pthread_mutex_lock(&lock);
    if (last("rename", to))
        die();
    int result = REAL(rename)(from, to);
    if (!result) {
        char both[8192];
        int length = snprintf(both, sizeof both, "%s%c%s", from, '\n', to);
        record(RENAME, -1, 0, both, length);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int unlink(const char *path)
{
    if (!below(path))
        return REAL(unlink)(path);
    pthread_mutex_lock(&lock);
    if (last("unlink", path))
        die();
    int result = REAL(unlink)(path);
    if (!result)
        record(UNLINK, -1, 0, path, strlen(path));
    pthread_mutex_unlock(&lock);
    return result;
}

int mkdir(const char *path, mode_t mode)
{
    if (!below(path))
        return REAL(mkdir)(path, mode);
    pthread_mutex_lock(&lock);
    if (last("mkdir", path))
        die();
    int result = REAL(mkdir)(path, mode);
    if (!result)
        record(MKDIR, -1, mode, path, strlen(path));
    pthread_mutex_unlock(&lock);
    return result;
}

ssize_t send(int fd, const void *bytes, size_t count, int flags)
{
    static const char name[] = "kvs-dot:";
    const char *at = bytes;
    for (size_t i = 0; log_fd >= 0 && i + sizeof name <= count; i++) {
        if (strncasecmp(at + i, name, sizeof name - 1))
            continue;
        const char *end = memchr(at + i, '\r', count - i);
        if (!end)
            break;
        const char *dot = at + i + sizeof name - 1;
        pthread_mutex_lock(&lock);
        record(ACKNOWLEDGED, fd, 0, dot, end - dot);
        pthread_mutex_unlock(&lock);
    }
    return REAL(send)(fd, bytes, count, flags);
}
