/* Faults of the operating system, between it and every library of a process: preloaded, it counts calls by their places and
 * lets one fail. Python's own calls, libzmq, torch and the decoder all come by here.
 *
 * LLMASOS_SHIM names a file that all processes of a kernel map: `struct control` (shim.py writes it). LLMASOS_SHIM_SITES names
 * the file to which each place that is seen for the first time by a process is appended, one a line. A place is the call with
 * the lines of Python that led to it; in threads without Python, with the functions of C. What happens while a module is
 * imported, before Python has begun, and in a child before its exec is left alone.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { KERNEL = 1, DRIVER = 2 };
enum { SHORT = -1, TORN = -2, MISDIRECTED = -3 }; /* faults that are no errno */
enum { DEPTH = 24, OURS = 3, IN_C = 3, SEEN = 1 << 14, TEXT = 1600 }; /* frames, of them the system's own, of C */

struct control {
    volatile uint32_t armed;     /* calls that are still to fail */
    volatile uint32_t role;      /* of whom: KERNEL, DRIVER or both */
    volatile uint64_t site;      /* at which place; 0: any */
    volatile int32_t fault;      /* an errno, or one of the above */
    volatile uint32_t skip;      /* calls there that are let through before */
    volatile uint32_t fired;     /* calls that have failed since it was armed */
    volatile uint32_t fired_pid; /* in which process the last one was */
    volatile uint64_t calls;     /* that came by, in all processes */
    volatile uint64_t looks;     /* places are noted anew when this changes */
};

static struct control *control;
static int role, log_fd = -1;
static pid_t self;
static uint64_t seen[SEEN], look;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static __thread int inside;

/* --- Python, if it is in this process --- */

static struct {
    int (*initialized)(void);
    void *(*this_thread)(void);
    int (*ensure)(void);
    void (*release)(int);
    void *(*frame)(void);
    void *(*code)(void *);
    void *(*back)(void *);
    int (*line)(void *);
    void *(*attribute)(void *, const char *);
    const char *(*text)(void *);
    void (*drop)(void *);
    int (*finalizing)(void);
} py;

static void find_python(void) {
    if (py.drop) return;
    py.this_thread = (void *(*)(void))dlsym(RTLD_DEFAULT, "PyGILState_GetThisThreadState");
    py.ensure = (int (*)(void))dlsym(RTLD_DEFAULT, "PyGILState_Ensure");
    py.release = (void (*)(int))dlsym(RTLD_DEFAULT, "PyGILState_Release");
    py.frame = (void *(*)(void))dlsym(RTLD_DEFAULT, "PyEval_GetFrame");
    py.code = (void *(*)(void *))dlsym(RTLD_DEFAULT, "PyFrame_GetCode");
    py.back = (void *(*)(void *))dlsym(RTLD_DEFAULT, "PyFrame_GetBack");
    py.line = (int (*)(void *))dlsym(RTLD_DEFAULT, "PyFrame_GetLineNumber");
    py.attribute = (void *(*)(void *, const char *))dlsym(RTLD_DEFAULT, "PyObject_GetAttrString");
    py.text = (const char *(*)(void *))dlsym(RTLD_DEFAULT, "PyUnicode_AsUTF8");
    py.finalizing = (int (*)(void))dlsym(RTLD_DEFAULT, "_Py_IsFinalizing");
    py.initialized = (int (*)(void))dlsym(RTLD_DEFAULT, "Py_IsInitialized");
    py.drop = (void (*)(void *))dlsym(RTLD_DEFAULT, "Py_DecRef");
}

static const char *short_name(const char *path) {
    const char *found = strstr(path, "llmasos/");
    if (!found) found = strstr(path, "site-packages/");
    if (!found) found = strstr(path, "python3");
    return found ? found : path;
}

/* The lines of Python that led here, innermost first, up to the third of the system's own. 0: they import something, or
 * there are none. */
static int python_place(char *into, size_t room) {
    int held = py.ensure(), count = 0, importing = 0, ours = 0;
    size_t used = 0;
    void *frame = py.frame();
    void *owned = NULL; /* PyEval_GetFrame's is borrowed */
    while (frame && count < DEPTH) {
        void *code = py.code(frame);
        void *file = py.attribute(code, "co_filename");
        const char *name = file ? py.text(file) : NULL;
        if (name && strstr(name, "importlib")) importing = 1;
        if (name && used < room - 200 && ours < OURS)
            used += (size_t)snprintf(into + used, room - used, "%s%s:%d", used ? " < " : "", short_name(name), py.line(frame));
        if (name && strstr(name, "llmasos/")) ours++;
        if (file) py.drop(file);
        py.drop(code);
        void *next = py.back(frame);
        if (owned) py.drop(owned);
        frame = owned = next;
        count++;
    }
    if (owned) py.drop(owned);
    py.release(held);
    return count && !importing;
}

static void c_place(char *into, size_t room) {
    void *calls[DEPTH + 4];
    int depth = backtrace(calls, DEPTH + 4);
    size_t used = 0;
    for (int i = 2, shown = 0; i < depth && shown < IN_C && used < room - 200; i++) {
        Dl_info found;
        if (!dladdr(calls[i], &found) || !found.dli_fname) continue;
        if (strstr(found.dli_fname, "shim.so")) continue;
        shown++;
        const char *library = strrchr(found.dli_fname, '/');
        used += (size_t)snprintf(into + used, room - used, "%s%s+%lx", used ? " < " : "", library ? library + 1 : found.dli_fname,
                                 (unsigned long)((char *)calls[i] - (char *)found.dli_fbase));
    }
}

/* --- which call this is, and whether it fails --- */

__attribute__((constructor)) static void begin(void) {
    char words[4096] = {0};
    const char *path = getenv("LLMASOS_SHIM");
    const char *sites = getenv("LLMASOS_SHIM_SITES");
    int fd = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    if (!path || fd < 0) return;
    long length = syscall(SYS_read, fd, words, sizeof words - 1);
    syscall(SYS_close, fd);
    for (long i = 0; i < length; i++)
        if (!words[i]) words[i] = ' ';
    if (strstr(words, "llmasos.kernel.edge.boot")) role = KERNEL;
    if (strstr(words, "llmasos.drivers.host")) role = DRIVER;
    if (!role) return;
    if (role == KERNEL) prctl(PR_SET_PDEATHSIG, SIGKILL); /* however the test ends, its kernel does; drivers follow that */
    fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *mapped = (void *)syscall(SYS_mmap, NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (mapped == MAP_FAILED) return;
    if (sites) {
        int opened = (int)syscall(SYS_openat, AT_FDCWD, sites, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        log_fd = opened < 0 ? -1 : (int)syscall(SYS_fcntl, opened, F_DUPFD_CLOEXEC, 900); /* out of the way */
        if (opened >= 0) syscall(SYS_close, opened);
    }
    void *warm[2];
    backtrace(warm, 2); /* it allocates the first time */
    self = getpid();
    control = mapped;
}

static uint64_t hash(const char *text) {
    uint64_t value = 1469598103934665603u;
    for (; *text; text++) value = (value ^ (unsigned char)*text) * 1099511628211u;
    return value ? value : 1;
}

static void note(uint64_t site, const char *text) {
    size_t slot = site % SEEN;
    int fresh = 0;
    pthread_mutex_lock(&turn);
    if (look != control->looks) {
        memset(seen, 0, sizeof seen);
        look = control->looks;
    }
    while (seen[slot] && seen[slot] != site) slot = (slot + 1) % SEEN;
    if (!seen[slot]) seen[slot] = site, fresh = 1;
    pthread_mutex_unlock(&turn);
    if (!fresh || log_fd < 0) return;
    char line[TEXT + 100];
    int length = snprintf(line, sizeof line, "%d\t%016lx\t%s\n", role, (unsigned long)site, text);
    syscall(SYS_write, log_fd, line, (size_t)length);
}

/* The fault that this call is to have; 0: none. */
static int fault(const char *call) {
    if (!control || inside || getpid() != self) return 0;
    int before = errno, found = 0;
    inside = 1;
    find_python();
    if (py.drop && py.initialized() && !(py.finalizing && py.finalizing())) {
        char text[TEXT];
        size_t used = (size_t)snprintf(text, sizeof text, "%s\t", call);
        int known = 1;
        if (py.this_thread())
            known = python_place(text + used, sizeof text - used);
        else
            c_place(text + used, sizeof text - used);
        if (known) {
            uint64_t site = hash(text);
            __atomic_add_fetch(&control->calls, 1, __ATOMIC_SEQ_CST);
            note(site, text);
            if (control->armed && (control->role & (uint32_t)role) && (!control->site || control->site == site)) {
                if (control->skip)
                    __atomic_sub_fetch(&control->skip, 1, __ATOMIC_SEQ_CST);
                else {
                    __atomic_sub_fetch(&control->armed, 1, __ATOMIC_SEQ_CST);
                    control->fired_pid = (uint32_t)self;
                    __atomic_add_fetch(&control->fired, 1, __ATOMIC_SEQ_CST);
                    found = control->fault;
                }
            }
        }
    }
    inside = 0;
    errno = before;
    return found;
}

#define REAL(type, name, ...)                                                                                                  \
    static type (*real)(__VA_ARGS__);                                                                                          \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/* A call that fails by an errno only. */
#define PLAIN(type, name, parameters, arguments)                                                                               \
    type name parameters {                                                                                                     \
        static type(*real) parameters;                                                                                         \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);                                                         \
        int found = fault(#name);                                                                                              \
        if (found > 0) {                                                                                                       \
            errno = found;                                                                                                     \
            return (type)-1;                                                                                                   \
        }                                                                                                                      \
        return real arguments;                                                                                                 \
    }

PLAIN(int, fsync, (int fd), (fd))
PLAIN(int, fdatasync, (int fd), (fd))
PLAIN(int, rename, (const char *a, const char *b), (a, b))
PLAIN(int, renameat, (int x, const char *a, int y, const char *b), (x, a, y, b))
PLAIN(int, link, (const char *a, const char *b), (a, b))
PLAIN(int, linkat, (int x, const char *a, int y, const char *b, int f), (x, a, y, b, f))
PLAIN(int, symlink, (const char *a, const char *b), (a, b))
PLAIN(int, unlink, (const char *a), (a))
PLAIN(int, unlinkat, (int x, const char *a, int f), (x, a, f))
PLAIN(int, mkdir, (const char *a, mode_t m), (a, m))
PLAIN(int, ftruncate, (int fd, off_t n), (fd, n))
PLAIN(int, ftruncate64, (int fd, off64_t n), (fd, n))
PLAIN(int, flock, (int fd, int how), (fd, how))
PLAIN(int, dup, (int fd), (fd))
PLAIN(int, dup3, (int a, int b, int f), (a, b, f))
PLAIN(int, socket, (int a, int b, int c), (a, b, c))
PLAIN(int, socketpair, (int a, int b, int c, int d[2]), (a, b, c, d))
PLAIN(int, bind, (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n))
PLAIN(int, listen, (int fd, int n), (fd, n))
PLAIN(int, connect, (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n))
PLAIN(int, accept, (int fd, struct sockaddr *a, socklen_t *n), (fd, a, n))
PLAIN(int, accept4, (int fd, struct sockaddr *a, socklen_t *n, int f), (fd, a, n, f))
PLAIN(int, getsockopt, (int fd, int l, int o, void *v, socklen_t *n), (fd, l, o, v, n))
PLAIN(ssize_t, recv, (int fd, void *b, size_t n, int f), (fd, b, n, f))
PLAIN(ssize_t, recvfrom, (int fd, void *b, size_t n, int f, struct sockaddr *a, socklen_t *l), (fd, b, n, f, a, l))
PLAIN(ssize_t, recvmsg, (int fd, struct msghdr *m, int f), (fd, m, f))
PLAIN(ssize_t, sendmsg, (int fd, const struct msghdr *m, int f), (fd, m, f))
PLAIN(int, pipe, (int p[2]), (p))
PLAIN(int, pipe2, (int p[2], int f), (p, f))
PLAIN(int, eventfd, (unsigned n, int f), (n, f))
PLAIN(int, epoll_create, (int n), (n))
PLAIN(int, epoll_create1, (int f), (f))
PLAIN(int, memfd_create, (const char *a, unsigned f), (a, f))
PLAIN(int, dup2, (int a, int b), (a, b))
PLAIN(int, rmdir, (const char *a), (a))
PLAIN(ssize_t, sendto, (int fd, const void *b, size_t n, int f, const struct sockaddr *a, socklen_t l), (fd, b, n, f, a, l))

/* To take something out needs nothing that could be missing. */
int epoll_ctl(int fd, int how, int other, struct epoll_event *event) {
    REAL(int, "epoll_ctl", int, int, int, struct epoll_event *);
    int found = how == EPOLL_CTL_DEL ? 0 : fault("epoll_ctl");
    if (found > 0) return errno = found, -1;
    return real(fd, how, other, event);
}

#define OPENED(type, name, parameters, arguments)                                                                              \
    type *name parameters {                                                                                                    \
        static type *(*real) parameters;                                                                                       \
        if (!real) real = (type * (*) parameters) dlsym(RTLD_NEXT, #name);                                                     \
        int found = fault(#name);                                                                                              \
        if (found > 0) {                                                                                                       \
            errno = found;                                                                                                     \
            return NULL;                                                                                                       \
        }                                                                                                                      \
        return real arguments;                                                                                                 \
    }

OPENED(DIR, opendir, (const char *a), (a))
OPENED(FILE, fopen, (const char *a, const char *how), (a, how))
OPENED(FILE, fopen64, (const char *a, const char *how), (a, how))

#define OPEN(name, at, ...)                                                                                                    \
    int name(__VA_ARGS__, int flags, ...) {                                                                                    \
        REAL(int, #name, __VA_ARGS__, int, ...);                                                                               \
        mode_t mode = 0;                                                                                                       \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                                                   \
            va_list more;                                                                                                      \
            va_start(more, flags);                                                                                             \
            mode = va_arg(more, mode_t);                                                                                       \
            va_end(more);                                                                                                      \
        }                                                                                                                      \
        int found = fault(#name);                                                                                              \
        if (found > 0) {                                                                                                       \
            errno = found;                                                                                                     \
            return -1;                                                                                                         \
        }                                                                                                                      \
        return real(at, flags, mode);                                                                                          \
    }
#define COMMA ,
OPEN(open, path, const char *path)
OPEN(open64, path, const char *path)
OPEN(openat, place COMMA path, int place, const char *path)
OPEN(openat64, place COMMA path, int place, const char *path)

static int is_socket(int fd) {
    struct stat found;
    return !fstat(fd, &found) && S_ISSOCK(found.st_mode);
}

/* A counter in memory, by which threads wake each other: no operating system lets reading and writing it fail. */
static int is_counter(int fd) {
    char path[40], name[40] = {0};
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return control && syscall(SYS_readlinkat, AT_FDCWD, path, name, sizeof name - 1) > 0 && strstr(name, "eventfd");
}

/* Contents may also be cut short, torn (the second half is not written) or misdirected (written a block further on). */

ssize_t read(int fd, void *into, size_t count) {
    REAL(ssize_t, "read", int, void *, size_t);
    int found = is_counter(fd) ? 0 : fault("read");
    if (found > 0) return errno = found, -1;
    return real(fd, into, found == SHORT && count > 1 ? count / 2 : count);
}

#define READ_AT(name, offset_t)                                                                                                \
    ssize_t name(int fd, void *into, size_t count, offset_t at) {                                                              \
        REAL(ssize_t, #name, int, void *, size_t, offset_t);                                                                   \
        int found = fault(#name);                                                                                              \
        if (found > 0) return errno = found, -1;                                                                               \
        if (found == MISDIRECTED) at += 4096;                                                                                  \
        return real(fd, into, found == SHORT && count > 1 ? count / 2 : count, at);                                            \
    }
READ_AT(pread, off_t)
READ_AT(pread64, off64_t)


static ssize_t torn(ssize_t (*real)(int, const void *, size_t), int fd, const void *from, size_t count) {
    char *copy = malloc(count);
    memcpy(copy, from, count);
    memset(copy + count / 2, 0, count - count / 2);
    ssize_t done = real(fd, copy, count);
    free(copy);
    return done;
}

ssize_t write(int fd, const void *from, size_t count) {
    REAL(ssize_t, "write", int, const void *, size_t);
    /* What a signal handler of Python's writes may interrupt anything: it is let through. */
    int found = (count == 1 && is_socket(fd)) || is_counter(fd) ? 0 : fault("write");
    if (found > 0) return errno = found, -1;
    if (found == TORN && count > 1) return torn(real, fd, from, count);
    return real(fd, from, found == SHORT && count > 1 ? count / 2 : count);
}

ssize_t send(int fd, const void *from, size_t count, int flags) {
    REAL(ssize_t, "send", int, const void *, size_t, int);
    int found = count == 1 ? 0 : fault("send"); /* as above: trio's wakes its loop so */
    if (found > 0) return errno = found, -1;
    return real(fd, from, found == SHORT && count > 1 ? count / 2 : count, flags);
}

#define WRITE_AT(name, offset_t)                                                                                               \
    ssize_t name(int fd, const void *from, size_t count, offset_t at) {                                                        \
        REAL(ssize_t, #name, int, const void *, size_t, offset_t);                                                             \
        int found = fault(#name);                                                                                              \
        if (found > 0) return errno = found, -1;                                                                               \
        if (found == MISDIRECTED) at += 4096;                                                                                  \
        return real(fd, from, found == SHORT && count > 1 ? count / 2 : count, at);                                            \
    }
WRITE_AT(pwrite, off_t)
WRITE_AT(pwrite64, off64_t)

static size_t all_of(const struct iovec *pieces, int count) {
    size_t sum = 0;
    for (int i = 0; i < count; i++) sum += pieces[i].iov_len;
    return sum;
}

ssize_t writev(int fd, const struct iovec *pieces, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    int found = fault("writev");
    if (found > 0) return errno = found, -1;
    if (found == SHORT || found == TORN) {
        struct iovec first = pieces[0];
        if (first.iov_len > 1) first.iov_len /= 2;
        ssize_t done = real(fd, &first, 1);
        return found == SHORT || done < 0 ? done : (ssize_t)all_of(pieces, count);
    }
    return real(fd, pieces, count);
}

#define VECTOR_AT(name, writes, ...)                                                                                           \
    ssize_t name(int fd, const struct iovec *pieces, int count, __VA_ARGS__) {                                                 \
        REAL(ssize_t, #name, int, const struct iovec *, int, __VA_ARGS__);                                                     \
        int found = fault(#name);                                                                                              \
        if (found > 0) return errno = found, -1;                                                                               \
        if (found == MISDIRECTED) at += 4096;                                                                                  \
        if (found == SHORT || (found == TORN && writes)) {                                                                     \
            struct iovec first = pieces[0];                                                                                    \
            if (first.iov_len > 1) first.iov_len /= 2;                                                                         \
            ssize_t done = real(fd, &first, 1, at LAST);                                                                       \
            return found == SHORT || done < 0 ? done : (ssize_t)all_of(pieces, count);                                         \
        }                                                                                                                      \
        return real(fd, pieces, count, at LAST);                                                                               \
    }
#define LAST
VECTOR_AT(preadv, 0, off_t at)
VECTOR_AT(preadv64, 0, off64_t at)
VECTOR_AT(pwritev, 1, off_t at)
VECTOR_AT(pwritev64, 1, off64_t at)
#undef LAST
#define LAST , flags
VECTOR_AT(preadv64v2, 0, off64_t at, int flags)
VECTOR_AT(pwritev64v2, 1, off64_t at, int flags)

/* Memory without a file is left alone where Python's own allocator asks for it: then anything could fail. */
static int arena(int fd, void *from) {
    Dl_info found;
    return fd < 0 && dladdr(from, &found) && found.dli_fname && strstr(found.dli_fname, "python3");
}

#define MMAP(name, offset_t)                                                                                                   \
    void *name(void *where, size_t count, int protection, int flags, int fd, offset_t at) {                                    \
        REAL(void *, #name, void *, size_t, int, int, int, offset_t);                                                          \
        int found = arena(fd, __builtin_return_address(0)) ? 0 : fault(#name);                                                 \
        if (found > 0) return errno = found, MAP_FAILED;                                                                       \
        return real(where, count, protection, flags, fd, at);                                                                  \
    }
MMAP(mmap, off_t)
MMAP(mmap64, off64_t)

#define FALLOCATE(name, offset_t)                                                                                              \
    int name(int fd, offset_t at, offset_t count) {                                                                            \
        REAL(int, #name, int, offset_t, offset_t);                                                                             \
        int found = fault(#name);                                                                                              \
        return found > 0 ? found : real(fd, at, count);                                                                        \
    }
FALLOCATE(posix_fallocate, off_t)
FALLOCATE(posix_fallocate64, off64_t)
