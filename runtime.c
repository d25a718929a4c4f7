/* skiff: containers for a user who has no root, no daemon and nothing installed.
 *
 * This file is the whole program. It pulls OCI and Docker images into a store that is an OCI image
 * layout, keeps each layer as one pack and one index, presents an image as one merged tree (its own
 * read-only FUSE file system below the kernel's overlay, or unpacked directories where there is no
 * FUSE), and starts processes in it from one description: an OCI runtime spec in memory, the plan.
 *
 * PROCESSES
 *
 *   skiff (CLI) ──fork──► supervisor ──clone3──► container's pid 1 ──exec──► the user's program
 *                             └──fork──► file server (only with the FUSE rung)
 *
 *   CLI         the user's identity, no privilege. Parses, resolves, writes the plan, forks the
 *               supervisor, then is a mere client of its socket (attach) or leaves (-d).
 *   supervisor  the user's identity, own session, holds containers/ID/lock for as long as it lives.
 *               Owns the pty or the pipes, the log, the exit code, health, restart, the socket.
 *   file server the user's identity, answers the kernel's FUSE requests from the merged index and
 *               the packs; holds nothing else, and dies with the mount.
 *   pid 1       created in its own user, mount, pid, ipc and uts namespaces; has every capability
 *               there until it has built the mounts, then drops to the plan's set and executes.
 *   exec        the CLI forks a child that joins the container's namespaces and executes there.
 *
 * TRUST
 *
 *   Not trusted: registries, archives, image configurations, everything that a container can write,
 *   other users of the host. Trusted: the user's own command line, the store (0700, the user's).
 *   Archives never reach a path: an archive becomes a tree in memory, and only that tree is ever
 *   written out, into a directory made for it. Paths in a container's root are resolved by openat2
 *   below a descriptor of that root. Files of a container (passwd, group) are read bounded.
 *
 * ON DISK: $SKIFF_ROOT, by default $XDG_DATA_HOME/skiff or ~/.local/share/skiff; directories are
 * 0700, files 0600. The top is an OCI image layout (image-spec 1.1, image-layout.md).
 *
 *   oci-layout, index.json     the layout; each descriptor of index.json is one name of one image
 *                              (org.opencontainers.image.ref.name = the full reference)
 *   blobs/sha256/HEX           manifests, configurations, layers as they came
 *   layers/HEX.pack, HEX.idx   one layer, HEX = its diff-id; the formats stand in part 11
 *   layers/HEX.tree[-MAP]/     the same unpacked, where FUSE cannot be had; MAP = the id mapping
 *   cache/init/               the mount points of every container, the lowest layer of all
 *   merged/HEX.idx             one image, HEX = its chain-id; the same index format
 *   names/NAME                 symbolic link whose text is a container's id
 *   containers/ID/config.json  the plan: an OCI runtime spec, with skiff's own words under "skiff"
 *   containers/ID/state.json   status, pid, exit code, times; none before the first start
 *   containers/ID/lock         flock held by the living supervisor
 *   containers/ID/sock         its socket (SEQPACKET; part 21 has the messages)
 *   containers/ID/log.json     output, in Docker's json-file form; rotated to log.json.N
 *   containers/ID/{upper,work,l}/     the writable layer, overlay's own, links to lower layers
 *   containers/ID/rootfs/             the whole tree, where there is no overlay
 *   volumes/NAME/{meta.json,_data/}
 *   cache/                     compiled seccomp filters, build cache records; always safe to delete
 *   locks/, tmp/               flocks; files being written (renamed into place when whole)
 *   events.json                one line an event
 *
 *   Writers write aside in tmp/, fsync, rename. index.json is changed under locks/index. Garbage is
 *   what no index.json entry and no container refers to; collecting it takes locks/gc exclusively,
 *   and everything that adds blobs holds it shared.
 *
 * CONTENTS
 *
 *    1 sys     includes, constants, system calls that libc lacks
 *    2 err     errors as values; warnings
 *    3 mem     memory, strings, growing buffers
 *    4 fs      descriptors, bounded reads, atomic files, locks, trees of files
 *    5 js      JSON: jansson with shorter words
 *    6 hash    SHA-256, random ids
 *    7 host    what this machine and this user offer
 *    8 http    HTTPS streams by libcurl
 *    9 reg     references, credentials, the registry protocol
 *   10 store   the image store
 *   11 layer   trees, packs, indexes; archives in and out
 *   12 ufs     the file server: read-only FUSE over a merged index
 *   13 idmap   which ids a container has
 *   14 sec     seccomp, capabilities
 *   15 cgroup  limits
 *   16 mnt     mounts below a root
 *   17 plan    the OCI runtime spec: parsing, checking
 *   18 launch  executing a plan; joining a container
 *   19 image   pull, push, load, save and what else is done to images
 *   20 ctr     containers on disk
 *   21 super   the supervisor: pty, logs, attach, health, restart
 *   22 tmpl    Go templates and tables for --format
 *   23 flag    one table describes each command
 *   24 make    from words to a plan: run and create
 *   25 build   Dockerfiles
 *   26 cmd     the commands
 *   27 main    dispatch
 *
 * To read from the top of the program, start at the end.
 */

/* {==== 1 sys: includes, constants, system calls ====
 * Uses: nothing. Every #include and every fall-back constant of the program is here. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <assert.h>
#include <ctype.h>
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <grp.h>
#include <inttypes.h>
#include <limits.h>
#include <locale.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <pwd.h>
#include <regex.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/fuse.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/securebits.h>

#include <archive.h>
#include <archive_entry.h>
#include <curl/curl.h>
#include <jansson.h>
#include <mbedtls/sha256.h>
#include <seccomp.h>
#include <zlib.h>
#include <zstd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif /* __x86_64__ */

#include "skiff_licenses.h"

#ifndef SKIFF_VERSION
#define SKIFF_VERSION "0.1.0"
#endif /* SKIFF_VERSION */

#define ARRAY_LEN(a) (sizeof(a) / sizeof(*(a)))
#define CLEANUP(fn) __attribute__((cleanup(fn)))
#define PRINTF(a, b) __attribute__((format(printf, a, b)))

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t i64;

/* Arguments of clone3(2), version 1 (64 bytes); libc headers clash with linux/sched.h. */
struct sys_clone_args {
    u64 flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
    u64 set_tid, set_tid_size, cgroup;
};

static int sys_openat2(int dir, const char *path, u64 flags, u64 mode, u64 resolve) {
    struct open_how how = { .flags = flags | O_CLOEXEC, .mode = mode, .resolve = resolve };
    int fd;
    /* EAGAIN: a rename raced with ".." below the root; bounded, since a container can provoke it */
    for (int i = 0; i < 128; i++) {
        fd = (int)syscall(SYS_openat2, dir, path, &how, sizeof how);
        if (fd >= 0 || errno != EAGAIN) break;
    }
    return fd;
}

static pid_t sys_clone3(struct sys_clone_args *a) {
    return (pid_t)syscall(SYS_clone3, a, sizeof *a);
}

static int sys_pidfd_open(pid_t pid) { return (int)syscall(SYS_pidfd_open, pid, 0); }

static int sys_pidfd_kill(int pidfd, int sig) {
    return (int)syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0);
}

static int sys_pivot_root(const char *new, const char *old) {
    return (int)syscall(SYS_pivot_root, new, old);
}

static int sys_open_tree(int dir, const char *path, unsigned flags) {
    return (int)syscall(SYS_open_tree, dir, path, flags | OPEN_TREE_CLOEXEC);
}

static int sys_move_mount(int from, int to) {
    return (int)syscall(SYS_move_mount, from, "", to, "",
                        MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

static int sys_mount_setattr(int fd, unsigned flags, struct mount_attr *attr) {
    return (int)syscall(SYS_mount_setattr, fd, "", flags | AT_EMPTY_PATH, attr, sizeof *attr);
}

static int sys_fsopen(const char *type) { return (int)syscall(SYS_fsopen, type, FSOPEN_CLOEXEC); }

static int sys_fsconfig(int fd, unsigned cmd, const char *key, const char *value) {
    return (int)syscall(SYS_fsconfig, fd, cmd, key, value, 0);
}

static int sys_fsmount(int fd, unsigned attr) {
    return (int)syscall(SYS_fsmount, fd, FSMOUNT_CLOEXEC, attr);
}

static int sys_close_range(unsigned first, unsigned last, unsigned flags) {
    return (int)syscall(SYS_close_range, first, last, flags);
}

static int sys_capset(u64 effective, u64 permitted, u64 inheritable) {
    struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct d[2] = {
        { (u32)effective, (u32)permitted, (u32)inheritable },
        { (u32)(effective >> 32), (u32)(permitted >> 32), (u32)(inheritable >> 32) },
    };
    return (int)syscall(SYS_capset, &h, d);
}

/* }==== 1 sys */

/* {==== 2 err: errors as values ====
 * A function that can fail takes a `struct err *` last, returns -1 (or NULL) with the error set,
 * and then has written none of its ret_* arguments. Nothing is allocated while failing, and the
 * whole error fits one write to a pipe (below PIPE_BUF), so a child sends it to its parent as it
 * is. Only the CLI (part 26, 27) prints errors and exits. Uses: 1 */
enum {
    EXIT_ENGINE = 125,   /* skiff itself failed (Docker's code) */
    EXIT_NOEXEC = 126,   /* the command cannot be executed */
    EXIT_NOTFOUND = 127, /* the command is not there */
};

struct err {
    int no;         /* errno, 0: none applies */
    int status;     /* exit status that the error deserves; 0: EXIT_ENGINE */
    char msg[1024]; /* operation, object, cause, remedy; no newline at the end */
};

PRINTF(3, 4) static int err_set(struct err *e, int no, const char *fmt, ...) {
    va_list ap;
    e->no = no;
    va_start(ap, fmt);
    int n = vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    va_end(ap);
    if (no && n >= 0 && (size_t)n < sizeof e->msg)
        snprintf(e->msg + n, sizeof e->msg - (size_t)n, ": %s", strerror(no));
    return -1;
}

/* Prepends context to an error that is set. */
PRINTF(2, 3) static int err_wrap(struct err *e, const char *fmt, ...) {
    char old[sizeof e->msg];
    va_list ap;
    memcpy(old, e->msg, sizeof old);
    va_start(ap, fmt);
    int n = vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof e->msg)
        snprintf(e->msg + n, sizeof e->msg - (size_t)n, ": %.900s", old);
    return -1;
}

/* The permitted globals: how much is said; the soft limit of descriptors that we were started with
 * (ours is raised, a container's is not); --storage-driver and the OCI root stand in their parts.
 * */
static struct { bool quiet, debug; } g_log;
static rlim_t g_nofile_soft;

PRINTF(1, 2) static void log_warn(const char *fmt, ...) {
    if (g_log.quiet) return;
    va_list ap;
    char line[1200];
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    fprintf(stderr, "WARNING: %s\n", line);
}

PRINTF(1, 2) static void log_debug(const char *fmt, ...) {
    if (!g_log.debug) return;
    va_list ap;
    va_start(ap, fmt);
    fputs("skiff: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
}
/* }==== 2 err */

/* {==== 3 mem: memory, strings, growing buffers ====
 * Memory that cannot be had ends the process with a message: no state is lost, since every file is
 * written aside and renamed. Uses: 1-2 */
static void *mem_check(void *p) {
    if (!p) {
        static const char MSG[] = "skiff: out of memory\n";
        (void)!write(2, MSG, sizeof MSG - 1);
        _exit(EXIT_ENGINE);
    }
    return p;
}

static void *mem_new(size_t n) { return mem_check(calloc(1, n ? n : 1)); }

static void *mem_grow(void *p, size_t count, size_t each) {
    size_t bytes;
    if (__builtin_mul_overflow(count, each, &bytes)) return mem_check(NULL);
    return mem_check(realloc(p, bytes ? bytes : 1));
}

static void mem_freep(void *pp) {
    free(*(void **)pp);
    *(void **)pp = NULL;
}
#define AUTO_FREE CLEANUP(mem_freep)

static char *str_dup(const char *s) { return mem_check(strdup(s)); }

static char *str_dupn(const char *s, size_t n) { return mem_check(strndup(s, n)); }

PRINTF(1, 2) static char *str_fmt(const char *fmt, ...) {
    char *s = NULL;
    va_list ap;
    va_start(ap, fmt);
    if (vasprintf(&s, fmt, ap) < 0) s = NULL;
    va_end(ap);
    return mem_check(s);
}

static bool str_eq(const char *a, const char *b) { return a && b && !strcmp(a, b); }

static bool str_prefix(const char *s, const char *prefix) {
    return !strncmp(s, prefix, strlen(prefix));
}

static bool str_suffix(const char *s, const char *suffix) {
    size_t n = strlen(s), m = strlen(suffix);
    return n >= m && !strcmp(s + n - m, suffix);
}

static bool str_empty(const char *s) { return !s || !*s; }

/* Whole-string decimal number; false if it is anything else or out of [min, max]. */
static bool str_int(const char *s, i64 min, i64 max, i64 *ret) {
    char *end;
    if (str_empty(s) || !(isdigit((u8)*s) || (*s == '-' && isdigit((u8)s[1])))) return false;
    errno = 0;
    long long v = strtoll(s, &end, 10);
    if (errno || *end || v < min || v > max) return false;
    *ret = v;
    return true;
}

/* A byte count with Docker's suffixes (b, k, m, g, t, also kb, KiB); -1 where it is none. */
static i64 str_bytes(const char *s) {
    char *end;
    if (str_empty(s) || !isdigit((u8)*s)) return -1;
    double v = strtod(s, &end);
    const char *units = "bkmgtp";
    u64 mul = 1;
    if (*end) {
        const char *u = strchr(units, tolower((u8)*end));
        if (!u) return -1;
        for (; u > units; u--) mul *= 1024;
        end++;
        if (mul > 1 && (*end == 'i' || *end == 'I')) end++;
        if (mul > 1 && (*end == 'b' || *end == 'B')) end++;
    }
    if (*end || v * (double)mul > 9e18) return -1;
    return (i64)(v * (double)mul);
}

/* A growing byte string, always NUL-terminated when p is set. */
struct buf {
    char *p; /* owned; NULL: empty */
    size_t n, cap;
};

static void buf_done(struct buf *b) {
    free(b->p);
    *b = (struct buf){ 0 };
}
#define AUTO_BUF CLEANUP(buf_done) struct buf

static void buf_reserve(struct buf *b, size_t more) {
    if (b->n + more + 1 <= b->cap) return;
    b->cap = (b->n + more + 1) * 3 / 2 + 64;
    b->p = mem_grow(b->p, b->cap, 1);
}

static void buf_add(struct buf *b, const void *data, size_t n) {
    buf_reserve(b, n);
    if (n) memcpy(b->p + b->n, data, n);
    b->n += n;
    b->p[b->n] = 0;
}

static void buf_adds(struct buf *b, const char *s) { buf_add(b, s, strlen(s)); }

static void buf_addc(struct buf *b, char c) { buf_add(b, &c, 1); }

PRINTF(2, 3) static void buf_addf(struct buf *b, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0) n = 0;
    buf_reserve(b, (size_t)n);
    vsnprintf(b->p + b->n, (size_t)n + 1, fmt, again);
    va_end(again);
    b->n += (size_t)n;
}

/* Takes the string out of the buffer; the caller owns it. */
static char *buf_steal(struct buf *b) {
    if (!b->p) buf_adds(b, "");
    char *p = b->p;
    *b = (struct buf){ 0 };
    return p;
}

/* A NULL-terminated list of owned strings. */
struct strv {
    char **v; /* owned, each owned; NULL: empty */
    size_t n;
};

static void strv_done(struct strv *l) {
    for (size_t i = 0; i < l->n; i++) free(l->v[i]);
    free(l->v);
    *l = (struct strv){ 0 };
}
#define AUTO_STRV CLEANUP(strv_done) struct strv

static void strv_take(struct strv *l, char *s /* consumed */) {
    if (!(l->n & (l->n + 1)) || !l->v) l->v = mem_grow(l->v, l->n * 2 + 2, sizeof *l->v);
    l->v[l->n++] = s;
    l->v[l->n] = NULL;
}

static void strv_add(struct strv *l, const char *s) { strv_take(l, str_dup(s)); }

static void strv_split(struct strv *l, const char *s, char sep) {
    for (;;) {
        const char *e = strchrnul(s, sep);
        strv_take(l, str_dupn(s, (size_t)(e - s)));
        if (!*e) return;
        s = e + 1;
    }
}

static int name_order(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool strv_has(const struct strv *l, const char *s) {
    for (size_t i = 0; i < l->n; i++)
        if (!strcmp(l->v[i], s)) return true;
    return false;
}

static char *str_join(const struct strv *l, const char *sep) {
    struct buf b = { 0 };
    for (size_t i = 0; i < l->n; i++) {
        if (i) buf_adds(&b, sep);
        buf_adds(&b, l->v[i]);
    }
    return buf_steal(&b);
}

/* Is w (n characters) one of the space-separated words? */
static bool word_in(const char *words, const char *w, size_t n) {
    for (const char *p = words; *p;) {
        size_t k = strcspn(p, " ");
        if (k == n && !strncmp(p, w, n)) return true;
        p += k + (p[k] == ' ');
    }
    return false;
}

/* Length of the well-formed UTF-8 character at p (at most n bytes); 0: there is none. */
static size_t utf8_char(const char *p, size_t n) {
    const u8 *s = (const u8 *)p;
    size_t k = s[0] < 0x80                   ? 1
               : s[0] >= 0xc2 && s[0] < 0xe0 ? 2
               : (s[0] & 0xf0) == 0xe0       ? 3
               : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                             : 0;
    if (!k || k > n) return 0;
    for (size_t i = 1; i < k; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
        (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return k;
}

/* Appends text with every byte that is not UTF-8 replaced by U+FFFD. */
static void buf_add_utf8(struct buf *b, const char *p, size_t n) {
    for (size_t i = 0; i < n;) {
        size_t k = utf8_char(p + i, n - i);
        if (k) buf_add(b, p + i, k);
        else buf_adds(b, "\xef\xbf\xbd");
        i += k ? k : 1;
    }
}

/* Text from outside made safe for a terminal: control characters become \xNN. Caller owns it. */
static char *str_printable(const char *s) {
    struct buf b = { 0 };
    for (; *s; s++)
        if ((u8)*s < 32 || (u8)*s == 127) buf_addf(&b, "\\x%02x", (u8)*s);
        else buf_addc(&b, *s);
    return buf_steal(&b);
}

static i64 time_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (i64)t.tv_sec * 1000000000 + t.tv_nsec;
}

static i64 time_mono_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (i64)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* RFC 3339 with nanoseconds, in UTC; `out` holds at least 40 bytes. */
static const char *time_rfc3339(i64 ns, char *out) {
    time_t s = (time_t)(ns / 1000000000);
    struct tm tm;
    gmtime_r(&s, &tm);
    size_t n = strftime(out, 40, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out + n, 40 - n, ".%09dZ", (int)(ns % 1000000000));
    return out;
}

/* "2026-11-23 15:01:12 +0000 UTC", as Go prints a time; `out` holds at least 40 bytes. */
static const char *time_go(i64 ns, char *out) {
    time_t s = (time_t)(ns / 1000000000);
    struct tm tm;
    strftime(out, 40, "%Y-%m-%d %H:%M:%S %z %Z", localtime_r(&s, &tm));
    return out;
}

/* Days since 1970 of a civil date (Howard Hinnant's days_from_civil); timegm without its limits. */
static i64 time_days(i64 y, int m, int d) {
    y -= m <= 2;
    i64 era = (y >= 0 ? y : y - 399) / 400;
    i64 yoe = y - era * 400, doy = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + d - 1;
    return era * 146097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719468;
}

/* RFC 3339 (with any fraction and offset) to nanoseconds since 1970; -1: not such a time. */
static i64 time_parse(const char *s) {
    int y, mo, d, h = 0, mi = 0, n = 0;
    double sec = 0;
    if (!s || sscanf(s, "%4d-%2d-%2d%n", &y, &mo, &d, &n) != 3 || mo < 1 || mo > 12) return -1;
    s += n;
    i64 off = 0;
    if (*s == 'T' || *s == ' ') {
        char *end;
        n = 0;
        if (sscanf(s + 1, "%2d:%2d%n", &h, &mi, &n) != 2) return -1;
        s += 1 + n;
        if (*s == ':') sec = strtod(s + 1, &end), s = end;
        if (!(sec >= 0 && sec < 62)) return -1;
        if (*s == '+' || *s == '-') {
            int oh, om = 0;
            if (sscanf(s + 1, "%2d:%2d", &oh, &om) < 1) return -1;
            off = (oh * 60 + om) * 60 * (*s == '-' ? -1 : 1);
        }
    }
    i64 whole = (i64)sec, ns;
    if (__builtin_mul_overflow(time_days(y, mo, d) * 86400 + h * 3600 + mi * 60 + whole - off,
                               (i64)1000000000, &ns))
        return -1; /* before 1678 or after 2262 */
    return ns + (i64)((sec - (double)whole) * 1e9);
}

/* A Go duration ("1h30m", "500ms", "10s"); nanoseconds, -1: not one. */
static i64 time_duration(const char *s) {
    double total = 0;
    if (str_empty(s)) return -1;
    if (!strcmp(s, "0")) return 0;
    while (*s) {
        char *end;
        double v = strtod(s, &end), unit;
        if (end == s || !(v >= 0)) return -1; /* "nan" is a number to strtod */
        if (str_prefix(end, "ms")) unit = 1e6, s = end + 2;
        else if (str_prefix(end, "us")) unit = 1e3, s = end + 2;
        else if (str_prefix(end, "ns")) unit = 1, s = end + 2;
        else if (*end == 's') unit = 1e9, s = end + 1;
        else if (*end == 'm') unit = 60e9, s = end + 1;
        else if (*end == 'h') unit = 3600e9, s = end + 1;
        else return -1;
        total += v * unit;
    }
    return total <= 9e18 ? (i64)total : -1;
}

/* "About an hour", "3 days": Docker's units.HumanDuration. Caller owns it. */
static char *time_human(i64 ns) {
    i64 s = ns / 1000000000, m = s / 60, h = (s + 1800) / 3600;
    if (s < 1) return str_dup("Less than a second");
    if (s == 1) return str_dup("1 second");
    if (s < 60) return str_fmt("%" PRId64 " seconds", s);
    if (m == 1) return str_dup("About a minute");
    if (m < 60) return str_fmt("%" PRId64 " minutes", m);
    if (h == 1) return str_dup("About an hour");
    if (h < 48) return str_fmt("%" PRId64 " hours", h);
    if (h < 24 * 7 * 2) return str_fmt("%" PRId64 " days", h / 24);
    if (h < 24 * 30 * 2) return str_fmt("%" PRId64 " weeks", h / 24 / 7);
    if (h < 24 * 365 * 2) return str_fmt("%" PRId64 " months", h / 24 / 30);
    return str_fmt("%" PRId64 " years", h / 24 / 365);
}

/* "4.26MB": Docker's units.HumanSize, decimal, four significant digits. Caller owns it. */
static char *size_human(u64 bytes) {
    static const char *const UNIT[] = { "B", "kB", "MB", "GB", "TB", "PB" };
    double v = (double)bytes;
    size_t i = 0;
    while (v >= 1000 && i + 1 < ARRAY_LEN(UNIT)) v /= 1000, i++;
    return str_fmt("%.3g%s", v, UNIT[i]);
}

/* "1.5MiB": Docker's units.BytesSize. Caller owns it. */
static char *size_binary(u64 bytes) {
    static const char *const UNIT[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB" };
    double v = (double)bytes;
    size_t i = 0;
    while (v >= 1024 && i + 1 < ARRAY_LEN(UNIT)) v /= 1024, i++;
    return str_fmt("%.4g%s", v, UNIT[i]);
}
/* }==== 3 mem */

/* {==== 4 fs: descriptors, bounded reads, atomic files, locks, trees ====
 * Invariants: (1) every descriptor is close-on-exec from its creation; (2) a file becomes visible
 * under its name only whole; (3) no read of a file that others wrote is unbounded. Uses: 1-3 */
static void fd_closep(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}
#define AUTO_FD CLEANUP(fd_closep) int

static int fd_steal(int *fd) {
    int f = *fd;
    *fd = -1;
    return f;
}

static void dir_closep(DIR **d) {
    if (*d) closedir(*d);
    *d = NULL;
}
#define AUTO_DIR CLEANUP(dir_closep) DIR

static int fd_write_all(int fd, const void *data, size_t n) {
    const char *p = data;
    while (n) {
        ssize_t k = write(fd, p, n);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return -1;
        p += k;
        n -= (size_t)k;
    }
    return 0;
}

/* Reads up to n bytes until the end of file; -1 on error, otherwise the count. */
static ssize_t fd_read_all(int fd, void *data, size_t n) {
    size_t got = 0;
    while (got < n) {
        ssize_t k = read(fd, (char *)data + got, n - got);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return -1;
        if (!k) break;
        got += (size_t)k;
    }
    return (ssize_t)got;
}

static int fd_pread_all(int fd, void *data, size_t n, u64 off) {
    char *p = data;
    while (n) {
        ssize_t k = pread(fd, p, n, (off_t)off);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) {
            if (!k) errno = EIO;
            return -1;
        }
        p += k;
        off += (u64)k;
        n -= (size_t)k;
    }
    return 0;
}

static int fd_pwrite_all(int fd, const void *data, size_t n, u64 off) {
    const char *p = data;
    while (n) {
        ssize_t k = pwrite(fd, p, n, (off_t)off);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return -1;
        p += k;
        off += (u64)k;
        n -= (size_t)k;
    }
    return 0;
}

/* Appends what fd gives, at most max bytes; EFBIG beyond. */
static int fd_slurp(int fd, size_t max, struct buf *ret) {
    for (;;) {
        buf_reserve(ret, 16384);
        ssize_t k = read(fd, ret->p + ret->n, ret->cap - ret->n - 1);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return -1;
        if (!k) break;
        ret->n += (size_t)k;
        ret->p[ret->n] = 0;
        if (ret->n > max) {
            errno = EFBIG;
            return -1;
        }
    }
    ret->p[ret->n] = 0;
    return 0;
}

/* Reads a regular file below dir, at most max bytes. Not for paths in a container's root. */
static int file_read(int dir, const char *path, size_t max, struct buf *ret, struct err *e) {
    AUTO_FD fd = openat(dir, path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0) return err_set(e, errno, "open %s", path);
    struct stat st;
    if (!fstat(fd, &st) && S_ISDIR(st.st_mode)) return err_set(e, EISDIR, "read %s", path);
    if (fd_slurp(fd, max, ret)) return err_set(e, errno, "read %s (limit %zu bytes)", path, max);
    return 0;
}

/* Short text file (proc, sysfs) into a fixed buffer, trailing newline cut; -1 on any failure. */
static int file_line(int dir, const char *path, char *out, size_t n) {
    AUTO_FD fd = openat(dir, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t k = fd_read_all(fd, out, n - 1);
    if (k < 0) return -1;
    while (k && (out[k - 1] == '\n' || out[k - 1] == ' ')) k--;
    out[k] = 0;
    return 0;
}

/* One write(2) to an existing file: proc and cgroup files. */
static int file_poke(int dir, const char *path, const char *text) {
    AUTO_FD fd = openat(dir, path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    size_t n = strlen(text);
    return write(fd, text, n) == (ssize_t)n ? 0 : -1;
}

enum {
    FILE_SYNC = 1,  /* file_replace: reaches the disk before the name does */
    FILE_FRESH = 2, /* in a directory that nobody looks at yet: written in place */
};

/* Writes a file aside and renames it over `name` in `dir`. */
static int file_replace(int dir, const char *name, const void *data, size_t n, mode_t mode,
                        int flags, struct err *e) {
    static unsigned counter;
    char tmp[64];
    if (flags & FILE_FRESH) snprintf(tmp, sizeof tmp, "%s", name);
    else
        snprintf(tmp, sizeof tmp, ".tmp-%d-%u", (int)getpid(),
                 __atomic_add_fetch(&counter, 1, __ATOMIC_RELAXED));
    AUTO_FD fd = openat(dir, tmp, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, mode);
    if (fd < 0) return err_set(e, errno, "create a file beside %s", name);
    if (fd_write_all(fd, data, n) || ((flags & FILE_SYNC) && fsync(fd)) ||
        (!(flags & FILE_FRESH) && renameat(dir, tmp, dir, name))) {
        int no = errno;
        unlinkat(dir, tmp, 0);
        return err_set(e, no, "write %s", name);
    }
    if (flags & FILE_SYNC) {
        AUTO_FD d = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (d >= 0) fsync(d);
    }
    return 0;
}

/* The same for a path: the temporary is made beside the file. */
static int file_put(const char *path, const void *data, size_t n, mode_t mode, struct err *e) {
    const char *slash = strrchr(path, '/');
    AUTO_FREE char *dir =
        slash ? str_dupn(path, slash == path ? 1 : (size_t)(slash - path)) : str_dup(".");
    AUTO_FD d = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (d < 0) return err_set(e, errno, "open directory %s", dir);
    return file_replace(d, slash ? slash + 1 : path, data, n, mode, 0, e);
}

/* Makes a path of directories below dir, mode 0700; existing ones are left. */
static int dir_make(int dir, const char *path, struct err *e) {
    AUTO_FREE char *p = str_dup(path);
    for (char *s = p + (*p == '/');; s++) {
        if (*s && *s != '/') continue;
        char c = *s;
        *s = 0;
        if (*p && mkdirat(dir, p, 0700) && errno != EEXIST)
            return err_set(e, errno, "make directory %s", p);
        if (!c) return 0;
        *s = c;
    }
}

static int dir_open(int dir, const char *path, struct err *e) {
    int fd = openat(dir, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) err_set(e, errno, "open directory %s", path);
    return fd;
}

/* Opens a directory stream on a name below dir without following a symbolic link there. */
static DIR *dir_stream(int dir, const char *name) {
    int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return NULL;
    DIR *d = fdopendir(fd);
    if (!d) close(fd);
    return d;
}

/* The next entry that is not "." or ".."; NULL at the end. */
static struct dirent *dir_next(DIR *d) {
    struct dirent *de;
    while ((de = readdir(d)))
        if (strcmp(de->d_name, ".") && strcmp(de->d_name, "..")) return de;
    return NULL;
}

enum {
    MAX_TREE_DEPTH = 2048,
    REMOVE_DEPTH = 256 /* levels held open at once; what lies deeper is moved up first */
};

static DIR *tree_open(int dir, const char *name) {
    DIR *d = dir_stream(dir, name);
    if (!d && errno == EACCES && !fchmodat(dir, name, 0700, 0)) d = dir_stream(dir, name);
    if (d) fchmod(dirfd(d), 0700); /* a container may leave 0000 ones */
    return d;
}

/* Removes name below dir, or moves it to `top` where it is too deep: its parent is empty then. */
static int tree_remove_at(int dir, const char *name, int top, unsigned *moved, int depth) {
    if (!unlinkat(dir, name, 0) || errno == ENOENT) return 0;
    if (errno != EISDIR && errno != EPERM) return -1;
    if (!unlinkat(dir, name, AT_REMOVEDIR) || errno == ENOENT) return 0;
    if (depth > REMOVE_DEPTH) {
        char deep[24];
        snprintf(deep, sizeof deep, "deep-%u", ++*moved);
        return renameat(dir, name, top, deep);
    }
    AUTO_DIR *d = tree_open(dir, name);
    struct dirent *de;
    int failed = 0;
    if (!d) return -1;
    while ((de = dir_next(d)))
        if (tree_remove_at(dirfd(d), de->d_name, top, moved, depth + 1)) failed = errno;
    if (!unlinkat(dir, name, AT_REMOVEDIR)) return 0;
    if (failed) errno = failed;
    return -1;
}

/* Removes a file or a whole tree below dir, however deep it is. */
static int tree_remove(int dir, const char *name) {
    if (!unlinkat(dir, name, 0) || errno == ENOENT) return 0;
    if (errno != EISDIR && errno != EPERM) return -1;
    if (!unlinkat(dir, name, AT_REMOVEDIR) || errno == ENOENT) return 0;
    unsigned moved = 0, before;
    int failed = 0;
    do { /* again for what was moved up */
        AUTO_DIR *d = tree_open(dir, name);
        struct dirent *de;
        if (!d) return -1;
        before = moved;
        failed = 0;
        while ((de = dir_next(d)))
            if (tree_remove_at(dirfd(d), de->d_name, dirfd(d), &moved, 1)) failed = errno;
    } while (moved != before);
    if (!unlinkat(dir, name, AT_REMOVEDIR)) return 0;
    if (failed) errno = failed;
    return -1;
}

/* Adds what a tree occupies on disk. */
static void tree_usage(int dir, const char *name, u64 *bytes, u64 *inodes, int depth) {
    struct stat st;
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW)) return;
    *bytes += (u64)st.st_blocks * 512;
    ++*inodes;
    if (!S_ISDIR(st.st_mode) || depth > MAX_TREE_DEPTH) return;
    AUTO_DIR *d = dir_stream(dir, name);
    struct dirent *de;
    while (d && (de = dir_next(d))) tree_usage(dirfd(d), de->d_name, bytes, inodes, depth + 1);
}

/* Takes a flock on a file below dir (made if missing). op as flock(2). The descriptor, or -1 with
 * errno EWOULDBLOCK where LOCK_NB met a holder. */
static int lock_take(int dir, const char *name, int op) {
    int fd = openat(dir, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return -1;
    while (flock(fd, op))
        if (errno != EINTR) {
            int no = errno;
            close(fd);
            errno = no;
            return -1;
        }
    return fd;
}

/* True while a living process holds the lock file exclusively. */
static bool lock_held(int dir, const char *name) {
    AUTO_FD fd = openat(dir, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    return fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) && errno == EWOULDBLOCK;
}

/* Sends up to 16 descriptors with one message; 0 or -1 with errno. */
static int fd_send(int sock, const void *data, size_t n, const int *fds, unsigned nfds) {
    union {
        char space[CMSG_SPACE(16 * sizeof(int))];
        struct cmsghdr align;
    } c = { 0 };
    struct iovec io = { (void *)(uintptr_t)data, n };
    struct msghdr m = { .msg_iov = &io, .msg_iovlen = 1 };
    assert(nfds <= 16);
    if (nfds) {
        m.msg_control = c.space;
        m.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        struct cmsghdr *h = CMSG_FIRSTHDR(&m);
        h->cmsg_level = SOL_SOCKET;
        h->cmsg_type = SCM_RIGHTS;
        h->cmsg_len = CMSG_LEN(nfds * sizeof(int));
        memcpy(CMSG_DATA(h), fds, nfds * sizeof(int));
    }
    ssize_t k;
    while ((k = sendmsg(sock, &m, MSG_NOSIGNAL)) < 0 && errno == EINTR) continue;
    return k < 0 ? -1 : 0;
}

/* Receives one message; *nfds says how many descriptors came (at most 16; the caller owns them). */
static ssize_t fd_recv(int sock, void *data, size_t n, int *fds, unsigned *nfds, int flags) {
    union {
        char space[CMSG_SPACE(16 * sizeof(int))];
        struct cmsghdr align;
    } c;
    struct iovec io = { data, n };
    struct msghdr m = {
        .msg_iov = &io, .msg_iovlen = 1, .msg_control = c.space, .msg_controllen = sizeof c.space
    };
    ssize_t k;
    while ((k = recvmsg(sock, &m, MSG_CMSG_CLOEXEC | flags)) < 0 && errno == EINTR) continue;
    if (nfds) *nfds = 0;
    if (k < 0) return -1;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS) continue;
        unsigned count = (unsigned)((h->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        const int *got = (const int *)CMSG_DATA(h);
        for (unsigned i = 0; i < count; i++)
            if (nfds && *nfds < 16) fds[(*nfds)++] = got[i];
            else close(got[i]);
    }
    return k;
}

/* "a/b/../c/./d" to "a/c/d": member names as keys. Caller owns it. */
static char *path_clean(const char *p) {
    AUTO_STRV in = { 0 };
    struct strv out = { 0 };
    strv_split(&in, p, '/');
    for (size_t i = 0; i < in.n; i++) {
        if (!*in.v[i] || !strcmp(in.v[i], ".")) continue;
        if (strcmp(in.v[i], "..")) strv_add(&out, in.v[i]);
        else if (out.n) free(out.v[--out.n]), out.v[out.n] = NULL;
    }
    char *s = str_join(&out, "/");
    strv_done(&out);
    return s;
}

/* A helper program of the host that runs. */
struct proc {
    pid_t pid;
    int out; /* owned: its output, both streams */
};

/* Starts one with a clean set of descriptors; `input` is fed to it. After it: proc_end. */
static int proc_begin(char *const argv[], const char *input, struct proc *ret, struct err *e) {
    int in[2] = { -1, -1 }, op[2] = { -1, -1 };
    if (pipe2(in, O_CLOEXEC) || pipe2(op, O_CLOEXEC)) return err_set(e, errno, "pipe");
    pid_t pid = fork();
    if (!pid) {
        dup2(in[0], 0);
        dup2(op[1], 1);
        dup2(op[1], 2);
        signal(SIGPIPE, SIG_DFL);
        execvp(argv[0], argv);
        _exit(127);
    }
    close(in[0]);
    close(op[1]);
    if (pid > 0 && input) (void)!fd_write_all(in[1], input, strlen(input));
    close(in[1]);
    if (pid < 0) {
        close(op[0]);
        return err_set(e, errno, "fork");
    }
    *ret = (struct proc){ pid, op[0] };
    return 0;
}

/* Waits for its end: the exit status. Its output (bounded) goes to `out` when given. */
static int proc_end(struct proc *p, struct buf *out) {
    struct buf text = { 0 };
    int status = -1;
    (void)!fd_slurp(p->out, 1 << 20, &text);
    fd_closep(&p->out);
    while (waitpid(p->pid, &status, 0) < 0 && errno == EINTR) continue;
    if (out) buf_add(out, text.p ? text.p : "", text.n);
    buf_done(&text);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Both: the exit status, or -1: it could not be run. */
static int proc_run(char *const argv[], const char *input, struct buf *out, struct err *e) {
    struct proc p;
    return proc_begin(argv, input, &p, e) ? -1 : proc_end(&p, out);
}
/* }==== 4 fs */

/* {==== 5 js: JSON ====
 * jansson does the work; these are its accessors with a default, tolerant of a missing or mistyped
 * member, because what they read has been checked or comes with Docker's "absent means zero".
 * Returned strings are borrowed from the document. Uses: 1-4 */
enum { JS_MAX_BYTES = 64 << 20 };

static void js_decref(json_t **j) {
    json_decref(*j);
    *j = NULL;
}
#define AUTO_JSON CLEANUP(js_decref) json_t

static json_t *js_get(const json_t *o, const char *key) { return json_object_get(o, key); }

/* Member by a path of keys joined by dots ("config.Labels"); NULL where a step is missing. */
static json_t *js_path(const json_t *o, const char *path) {
    char key[64];
    while (o && *path) {
        size_t n = strcspn(path, ".");
        if (n >= sizeof key) return NULL;
        memcpy(key, path, n);
        key[n] = 0;
        o = json_object_get(o, key);
        path += n + (path[n] == '.');
    }
    return (json_t *)(uintptr_t)o;
}

static const char *js_str(const json_t *o, const char *path) {
    return json_string_value(js_path(o, path));
}

static const char *js_str_or(const json_t *o, const char *path, const char *fallback) {
    const char *s = js_str(o, path);
    return s ? s : fallback;
}

static i64 js_int(const json_t *o, const char *path, i64 fallback) {
    const json_t *v = js_path(o, path);
    if (json_is_integer(v)) return json_integer_value(v);
    if (!json_is_real(v)) return fallback;
    double d = json_real_value(v); /* 2^63 and beyond have no integer */
    return d >= 0x1p63 ? INT64_MAX : d < -0x1p63 ? INT64_MIN : (i64)d;
}

static bool js_bool(const json_t *o, const char *path) { return json_is_true(js_path(o, path)); }

/* v NULL is JSON's null: what was absent where it came from. */
static void js_set(json_t *o, const char *key, json_t *v /* consumed */) {
    json_t *kept = json_incref(v ? v : json_null());
    if (json_object_set_new(o, key, kept)) { /* a key that is not UTF-8 */
        AUTO_BUF b = { 0 };
        buf_add_utf8(&b, key, strlen(key));
        json_incref(kept);
        if (json_object_set_new(o, b.p ? b.p : "", kept)) mem_check(NULL);
    }
    json_decref(kept);
}

/* Bytes that are not UTF-8 would be refused by jansson: they become U+FFFD. */
static json_t *js_text(const char *s) {
    json_t *j = json_string(s);
    if (j) return j;
    AUTO_BUF b = { 0 };
    buf_add_utf8(&b, s, strlen(s));
    return mem_check(json_string(b.p ? b.p : ""));
}

static void js_sets(json_t *o, const char *key, const char *v) {
    if (v) js_set(o, key, js_text(v));
}

static void js_seti(json_t *o, const char *key, i64 v) { js_set(o, key, json_integer(v)); }

static void js_setb(json_t *o, const char *key, bool v) { js_set(o, key, json_boolean(v)); }

static void js_push(json_t *a, const char *s) {
    if (json_array_append_new(a, js_text(s))) mem_check(NULL);
}

static json_t *js_strv(const struct strv *l) {
    json_t *a = json_array();
    for (size_t i = 0; i < l->n; i++) js_push(a, l->v[i]);
    return a;
}

/* The strings of an array; other members are passed over. */
static void js_to_strv(const json_t *a, struct strv *ret) {
    size_t i;
    json_t *v;
    json_array_foreach (a, i, v)
        if (json_is_string(v)) strv_add(ret, json_string_value(v));
}

/* The object at a key, made if it is not there. */
static json_t *js_sub(json_t *o, const char *key) {
    json_t *s = json_object_get(o, key);
    if (!json_is_object(s)) js_set(o, key, s = json_object());
    return s;
}

static json_t *js_suba(json_t *o, const char *key) {
    json_t *s = json_object_get(o, key);
    if (!json_is_array(s)) js_set(o, key, s = json_array());
    return s;
}

/* A copy of the member at a path, or the fallback where it is absent or null. */
static json_t *js_copy(const json_t *o, const char *path, json_t *fallback /* consumed */) {
    json_t *v = js_path(o, path);
    if (!v || json_is_null(v)) return fallback;
    json_decref(fallback);
    return json_deep_copy(v);
}

/* Writes the integers from 2^63 to 2^64-1 as the negative ones of the same bits: RLIM_INFINITY and
 * the like, whose readers cast to u64. */
static void js_wrap(const char *text, size_t n, struct buf *ret) {
    bool quoted = false;
    for (size_t i = 0, k; i < n; i += k) {
        k = 1;
        if (quoted && text[i] == '\\' && i + 1 < n) k = 2;
        else if (text[i] == '"') quoted = !quoted;
        else if (!quoted && strchr("-0123456789", text[i]) && text[i]) {
            while (i + k < n && text[i + k] && strchr("0123456789.eE+-", text[i + k])) k++;
            char num[24], *end;
            if (k < sizeof num && k >= 19) {
                memcpy(num, text + i, k), num[k] = 0;
                errno = 0;
                u64 v = strtoull(num, &end, 10);
                if (*num != '-' && !*end && !errno && v > INT64_MAX) {
                    buf_addf(ret, "%" PRId64, (i64)v);
                    continue;
                }
            }
        }
        buf_add(ret, text + i, k);
    }
}

static json_t *js_parse(const char *text, size_t n, const char *what, struct err *e) {
    json_error_t je;
    json_t *j = json_loadb(text, n, JSON_REJECT_DUPLICATES, &je);
    if (!j && json_error_code(&je) == json_error_numeric_overflow) {
        AUTO_BUF b = { 0 };
        js_wrap(text, n, &b);
        j = json_loadb(b.p, b.n, JSON_REJECT_DUPLICATES, &je);
    }
    if (!j) err_set(e, 0, "%s is not valid JSON: line %d: %s", what, je.line, je.text);
    return j;
}

static json_t *js_load(int dir, const char *path, struct err *e) {
    AUTO_BUF b = { 0 };
    if (file_read(dir, path, JS_MAX_BYTES, &b, e)) return NULL;
    return js_parse(b.p, b.n, path, e);
}

static char *js_dump(const json_t *j, size_t flags) {
    return mem_check(json_dumps(j, flags | JSON_ENCODE_ANY));
}

static int js_save(int dir, const char *path, const json_t *j, int flags, struct err *e) {
    AUTO_FREE char *s = js_dump(j, JSON_COMPACT);
    return file_replace(dir, path, s, strlen(s), 0600, flags, e);
}
/* }==== 5 js */

/* {==== 6 hash: SHA-256, random ids ====
 * SHA-256 decides the speed of a pull: the CPU's own instructions where there are any (1.5 GB/s
 * against 0.2), mbedTLS otherwise. Uses: 1-4 */
struct sha {
    bool native; /* state below is used; otherwise lib */
    u32 h[8];
    u64 n;       /* bytes so far */
    u8 part[64]; /* the block being filled: n % 64 bytes */
    mbedtls_sha256_context lib;
};

#if defined(__x86_64__)
static const u32 SHA_K[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* FIPS 180-4 by the SHA extensions (Intel SDM vol. 2, SHA256RNDS2, SHA256MSG1, SHA256MSG2). */
__attribute__((target("sha,sse4.1"))) static void sha_blocks(u32 h[8], const u8 *p, size_t blocks) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    __m128i t = _mm_shuffle_epi32(_mm_loadu_si128((const void *)h), 0xb1);
    __m128i s1 = _mm_shuffle_epi32(_mm_loadu_si128((const void *)(h + 4)), 0x1b);
    __m128i s0 = _mm_alignr_epi8(t, s1, 8);
    s1 = _mm_blend_epi16(s1, t, 0xf0);
    for (; blocks; blocks--, p += 64) {
        __m128i save0 = s0, save1 = s1, w[4];
        for (int i = 0; i < 4; i++)
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const void *)(p + 16 * i)), swap);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            if (i >= 4) {
                __m128i x = _mm_sha256msg1_epu32(w[i & 3], w[(i + 1) & 3]);
                x = _mm_add_epi32(x, _mm_alignr_epi8(w[(i + 3) & 3], w[(i + 2) & 3], 4));
                w[i & 3] = _mm_sha256msg2_epu32(x, w[(i + 3) & 3]);
            }
            __m128i k = _mm_add_epi32(w[i & 3], _mm_load_si128((const void *)(SHA_K + 4 * i)));
            s1 = _mm_sha256rnds2_epu32(s1, s0, k);
            s0 = _mm_sha256rnds2_epu32(s0, s1, _mm_shuffle_epi32(k, 0x0e));
        }
        s0 = _mm_add_epi32(s0, save0);
        s1 = _mm_add_epi32(s1, save1);
    }
    t = _mm_shuffle_epi32(s0, 0x1b);
    s1 = _mm_shuffle_epi32(s1, 0xb1);
    _mm_storeu_si128((void *)h, _mm_blend_epi16(t, s1, 0xf0));
    _mm_storeu_si128((void *)(h + 4), _mm_alignr_epi8(s1, t, 8));
}

/* CPUID costs microseconds in a virtual machine: asked once, on the first hash. */
static bool sha_native(void) {
    static int have; /* 0: not asked, 1: yes, -1: no */
    if (!have) {
        unsigned a, b, c, d;
        have = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA) ? 1 : -1;
    }
    return have > 0;
}
#else
static void sha_blocks(u32 h[8], const u8 *p, size_t blocks) { (void)h, (void)p, (void)blocks; }
static bool sha_native(void) { return false; }
#endif /* __x86_64__ */

static void sha_init(struct sha *s) {
    static const u32 START[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                  0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
    s->native = sha_native();
    s->n = 0;
    memcpy(s->h, START, sizeof START);
    if (s->native) return;
    mbedtls_sha256_init(&s->lib);
    mbedtls_sha256_starts(&s->lib, 0);
}

static void sha_add(struct sha *s, const void *data, size_t n) {
    const u8 *p = data;
    if (!s->native) {
        mbedtls_sha256_update(&s->lib, p, n);
        return;
    }
    if (!n) return;
    size_t have = s->n % 64;
    s->n += n;
    if (have) {
        size_t k = 64 - have < n ? 64 - have : n;
        memcpy(s->part + have, p, k);
        p += k;
        n -= k;
        if (have + k < 64) return;
        sha_blocks(s->h, s->part, 1);
    }
    sha_blocks(s->h, p, n / 64);
    memcpy(s->part, p + n / 64 * 64, n % 64);
}

static void sha_end(struct sha *s, u8 out[32]) {
    if (!s->native) {
        mbedtls_sha256_finish(&s->lib, out);
        mbedtls_sha256_free(&s->lib);
        return;
    }
    u8 pad[72] = { 0x80 };
    size_t k = (s->n % 64 < 56 ? 56 : 120) - s->n % 64;
    u64 bits = htobe64(s->n * 8);
    memcpy(pad + k, &bits, 8);
    sha_add(s, pad, k + 8);
    for (int i = 0; i < 8; i++) {
        u32 v = htobe32(s->h[i]);
        memcpy(out + 4 * i, &v, 4);
    }
}

static void sha_of(const void *data, size_t n, u8 out[32]) {
    struct sha s;
    sha_init(&s);
    sha_add(&s, data, n);
    sha_end(&s, out);
}

/* out holds 2*n+1 bytes */
static char *hex_of(const u8 *b, size_t n, char *out) {
    for (size_t i = 0; i < n; i++) sprintf(out + 2 * i, "%02x", b[i]);
    return out;
}

static int hex_to(const char *hex, u8 *out, size_t n) {
    for (size_t i = 0; i < n; i++) {
        unsigned v = 0;
        for (int k = 0; k < 2; k++) {
            char c = hex[2 * i + (size_t)k];
            if (!isdigit((u8)c) && !(c >= 'a' && c <= 'f')) return -1;
            v = v * 16 + (unsigned)(isdigit((u8)c) ? c - '0' : c - 'a' + 10);
        }
        out[i] = (u8)v;
    }
    return 0;
}

enum { HEX_LEN = 64, DIGEST_LEN = 7 + HEX_LEN }; /* "sha256:" + hex */

/* The hex part of a well-formed sha256 digest, borrowed; NULL for anything else. Every digest
 * passes here before it becomes part of a path or a URL. */
static const char *digest_hex(const char *digest) {
    u8 raw[32];
    if (!digest || strlen(digest) != DIGEST_LEN || !str_prefix(digest, "sha256:") ||
        hex_to(digest + 7, raw, 32))
        return NULL;
    return digest + 7;
}

/* out holds DIGEST_LEN+1 bytes */
static char *digest_of(const void *data, size_t n, char *out) {
    u8 raw[32];
    sha_of(data, n, raw);
    memcpy(out, "sha256:", 7);
    hex_of(raw, 32, out + 7);
    return out;
}

/* A random id of 64 hex digits; out holds HEX_LEN+1. */
static void id_random(char *out) {
    u8 raw[32];
    size_t got = 0;
    while (got < sizeof raw) {
        ssize_t k = getrandom(raw + got, sizeof raw - got, 0);
        if (k > 0) got += (size_t)k;
    }
    hex_of(raw, 32, out);
}
/* }==== 6 hash */

/* {==== 7 host: what this machine and this user offer ====
 * Everything is found by trying, on first use, never by kernel version. SKIFF_DISABLE, a list of
 * words (subuid, fuse, overlay, reflink, cgroup, memfd), switches a feature off, so that tests
 * reach each fall-back. Uses: 1-6 */
static bool host_disabled(const char *what) {
    const char *list = getenv("SKIFF_DISABLE");
    size_t n = strlen(what);
    for (const char *p = list; p && *p; p += strcspn(p, ","), p += *p == ',')
        if (!strncmp(p, what, n) && (p[n] == ',' || !p[n])) return true;
    return false;
}

/* The user's name and home from the environment's point of view; getpwuid as the last resort, since
 * a static libc sees no LDAP or NIS users. Borrowed strings. */
static const char *host_home(void) {
    const char *h = getenv("HOME");
    if (!str_empty(h) && *h == '/') return h;
    struct passwd *pw = getpwuid(getuid());
    return pw && pw->pw_dir ? pw->pw_dir : "/";
}

static const char *host_user(void) {
    struct passwd *pw = getpwuid(getuid());
    if (pw && pw->pw_name) return pw->pw_name;
    const char *u = getenv("USER");
    return u ? u : "";
}

/* First range for the user in /etc/subuid or /etc/subgid (subuid(5)); false: none. */
static bool host_subid(const char *file, u32 *ret_start, u32 *ret_count) {
    AUTO_BUF b = { 0 };
    struct err e;
    char uid[16];
    if (host_disabled("subuid") || file_read(AT_FDCWD, file, 4 << 20, &b, &e)) return false;
    snprintf(uid, sizeof uid, "%u", getuid());
    const char *user = host_user();
    char *save = NULL;
    for (char *l = strtok_r(b.p, "\n", &save); l; l = strtok_r(NULL, "\n", &save)) {
        char *c1 = strchr(l, ':'), *c2 = c1 ? strchr(c1 + 1, ':') : NULL;
        i64 start, count;
        if (!c2) continue;
        *c1 = *c2 = 0;
        if (strcmp(l, user) && strcmp(l, uid)) continue;
        if (!str_int(c1 + 1, 1, UINT32_MAX - 1, &start) || !str_int(c2 + 1, 1, UINT32_MAX, &count))
            continue;
        *ret_start = (u32)start;
        *ret_count = (u32)count;
        return true;
    }
    return false;
}

/* Absolute path of a program on PATH, or NULL; caller owns it. */
static char *host_program(const char *name) {
    AUTO_STRV dirs = { 0 };
    const char *path = getenv("PATH");
    strv_split(&dirs, str_empty(path) ? "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" : path, ':');
    for (size_t i = 0; i < dirs.n; i++) {
        if (*dirs.v[i] != '/') continue;
        char *p = str_fmt("%s/%s", dirs.v[i], name);
        if (!access(p, X_OK)) return p;
        free(p);
    }
    return NULL;
}

/* May FUSE be used? Opening is the probe; the descriptor is not kept, since the mount needs one
 * that was opened in its own user namespace. */
static bool host_fuse(void) {
    if (host_disabled("fuse")) return false;
    AUTO_FD fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    return fd >= 0;
}

/* The machine's name for OCI platforms. */
static const char *host_arch(void) {
#if defined(__x86_64__)
    return "amd64";
#elif defined(__aarch64__)
    return "arm64";
#elif defined(__arm__)
    return "arm";
#elif defined(__riscv)
    return "riscv64";
#else
    return "unknown";
#endif /* architecture */
}

/* An architecture as uname(1) or Debian spell it, in Go's words. */
static const char *host_arch_word(const char *a) {
    static const char *const SAME[][2] = {
        { "x86_64", "amd64" }, { "x86-64", "amd64" }, { "aarch64", "arm64" }, { "armhf", "arm" },
        { "armv7l", "arm" },   { "i386", "386" },     { "i686", "386" },
    };
    for (size_t i = 0; i < ARRAY_LEN(SAME); i++)
        if (!strcmp(a, SAME[i][0])) return SAME[i][1];
    return a;
}

/* Root, and not of a user namespace (podman without root calls us as 0 in its own). */
static bool host_real_root(void) {
    struct stat st;
    return !geteuid() && !stat("/proc/self/ns/user", &st) &&
           st.st_ino == 0xeffffffd /* PROC_USER_INIT_INO */;
}
/* }==== 7 host */

/* {==== 8 http: HTTPS streams ====
 * libcurl turned from push to pull: http_open returns when the response's headers are there, and
 * http_read gives the body as it comes, so that a blob is verified, inflated and stored while it
 * arrives, in one thread and bounded memory. Redirects are followed here, because an Authorization
 * header must not follow to another host. Uses: 1-6
 * Source: libcurl's curl_multi_perform(3), RFC 9110. */
enum {
    HTTP_MAX_REDIRECTS = 10,
    HTTP_BUFFER = 1 << 20, /* the transfer pauses when this much waits to be read */
};

struct http_req {
    const char *method; /* "GET", "HEAD", "POST", "PUT" … */
    const char *url;
    const struct strv *headers; /* "Name: value" each; NULL: none */
    const char *auth;           /* value of Authorization; sent to the URL's own host only */
    const void *body;           /* for POST, PUT: from memory … */
    size_t body_n;
    int body_fd; /* … or, when body is NULL and this is >= 0, from a file */
    u64 body_fd_n;
    const char *ca_extra; /* PEM added to the system's bundle; NULL: none */
    const char *cert, *key; /* PEM of a client's certificate and its key; NULL: none */
    bool insecure;        /* do not verify; plain http may be redirected to */
};

struct http {
    CURLM *multi;
    CURL *easy;
    struct curl_slist *list;
    const struct http_req *req;
    struct buf in; /* received, not yet read: in.p + at … */
    size_t at;
    bool headers_done, paused, done;
    CURLcode rc;
    long status;
    i64 length;                                        /* Content-Length; -1: not told */
    char *type, *location, *www_auth, *digest, *range; /* headers, owned; NULL: absent */
    char *origin; /* owned: of the URL that answered, after redirects */
    u64 sent;
    bool broken; /* the transfer failed after its headers: told once what came is read */
    struct err why;
    char msg[CURL_ERROR_SIZE];
};

static void http_free(struct http *h) {
    if (!h) return;
    if (h->multi && h->easy) curl_multi_remove_handle(h->multi, h->easy);
    if (h->easy) curl_easy_cleanup(h->easy);
    if (h->multi) curl_multi_cleanup(h->multi);
    curl_slist_free_all(h->list);
    buf_done(&h->in);
    free(h->type), free(h->location), free(h->www_auth), free(h->digest), free(h->range),
        free(h->origin);
    free(h);
}

static void http_freep(struct http **h) { http_free(*h); }
#define AUTO_HTTP CLEANUP(http_freep) struct http

static size_t http_on_body(char *p, size_t one, size_t n, void *arg) {
    struct http *h = arg;
    h->headers_done = true;
    if (h->in.n - h->at > HTTP_BUFFER) {
        h->paused = true;
        return CURL_WRITEFUNC_PAUSE;
    }
    if (h->at == h->in.n) h->at = h->in.n = 0;
    buf_add(&h->in, p, one * n);
    return one * n;
}

static void http_keep(char **slot, const char *line, size_t n, const char *name) {
    size_t k = strlen(name);
    if (n <= k || strncasecmp(line, name, k) || line[k] != ':') return;
    const char *v = line + k + 1, *end = line + n;
    while (v < end && (*v == ' ' || *v == '\t')) v++;
    while (end > v && (end[-1] == '\r' || end[-1] == '\n' || end[-1] == ' ')) end--;
    /* several challenges come as several headers: Bearer is the one that is wanted */
    if (*slot && !strncasecmp(*slot, "bearer", 6)) return;
    free(*slot);
    *slot = str_dupn(v, (size_t)(end - v));
}

static size_t http_on_header(char *p, size_t one, size_t n, void *arg) {
    struct http *h = arg;
    size_t len = one * n;
    if (len > 5 && !strncmp(p, "HTTP/", 5)) { /* a new response (after 100 or a proxy's 200) */
        free(h->www_auth), free(h->location);
        h->www_auth = h->location = NULL;
    }
    http_keep(&h->type, p, len, "Content-Type");
    http_keep(&h->location, p, len, "Location");
    http_keep(&h->www_auth, p, len, "WWW-Authenticate");
    http_keep(&h->digest, p, len, "Docker-Content-Digest");
    http_keep(&h->range, p, len, "Content-Range");
    return len;
}

static size_t http_on_send(char *out, size_t one, size_t n, void *arg) {
    struct http *h = arg;
    size_t want = one * n;
    u64 total = h->req->body ? h->req->body_n : h->req->body_fd_n;
    if (want > total - h->sent) want = (size_t)(total - h->sent);
    if (h->req->body) memcpy(out, (const char *)h->req->body + h->sent, want);
    else if (want && fd_pread_all(h->req->body_fd, out, want, h->sent)) return CURL_READFUNC_ABORT;
    h->sent += want;
    return want;
}

/* libcurl rewinds a body when it must send it again */
static int http_on_seek(void *arg, curl_off_t off, int whence) {
    struct http *h = arg;
    if (whence != SEEK_SET || off < 0) return CURL_SEEKFUNC_FAIL;
    h->sent = (u64)off;
    return CURL_SEEKFUNC_OK;
}

/* The CA bundle of the distribution, read once; NULL when there is none. */
static const char *http_ca_path(void) {
    static const char *const PLACES[] = {
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/ssl/cert.pem",
        "/etc/ca-certificates/extracted/tls-ca-bundle.pem",
    };
    const char *own = getenv("SSL_CERT_FILE");
    if (!str_empty(own)) return own;
    for (size_t i = 0; i < ARRAY_LEN(PLACES); i++)
        if (!access(PLACES[i], R_OK)) return PLACES[i];
    return NULL;
}

static void http_set_tls(struct http *h, const struct http_req *r) {
    const char *bundle = http_ca_path();
    curl_easy_setopt(h->easy, CURLOPT_CAPATH, NULL);
    if (r->insecure) {
        curl_easy_setopt(h->easy, CURLOPT_SSL_VERIFYPEER, 0L);
        curl_easy_setopt(h->easy, CURLOPT_SSL_VERIFYHOST, 0L);
        return;
    }
    if (!r->ca_extra) {
        if (bundle) curl_easy_setopt(h->easy, CURLOPT_CAINFO, bundle);
        return;
    }
    AUTO_BUF pem = { 0 };
    struct err ignored;
    if (bundle) file_read(AT_FDCWD, bundle, 16 << 20, &pem, &ignored);
    buf_addc(&pem, '\n');
    buf_adds(&pem, r->ca_extra);
    /* mbedTLS wants the PEM with its terminating NUL, which the backend adds to a copy */
    struct curl_blob blob = { pem.p, pem.n, CURL_BLOB_COPY };
    curl_easy_setopt(h->easy, CURLOPT_CAINFO, NULL);
    curl_easy_setopt(h->easy, CURLOPT_CAINFO_BLOB, &blob);
}

static void http_set_client(struct http *h, const struct http_req *r) {
    if (!r->cert || !r->key) return;
    struct curl_blob cert = { (void *)(uintptr_t)r->cert, strlen(r->cert), CURL_BLOB_COPY },
                     key = { (void *)(uintptr_t)r->key, strlen(r->key), CURL_BLOB_COPY };
    curl_easy_setopt(h->easy, CURLOPT_SSLCERT_BLOB, &cert);
    curl_easy_setopt(h->easy, CURLOPT_SSLKEY_BLOB, &key);
}

static void http_set_body(struct http *h, const struct http_req *r) {
    u64 n = r->body ? r->body_n : r->body_fd >= 0 ? r->body_fd_n : 0;
    if (!strcmp(r->method, "HEAD")) {
        curl_easy_setopt(h->easy, CURLOPT_NOBODY, 1L);
    } else if (!strcmp(r->method, "PUT") || !strcmp(r->method, "PATCH") || r->body) {
        curl_easy_setopt(h->easy, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(h->easy, CURLOPT_CUSTOMREQUEST, r->method);
        curl_easy_setopt(h->easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t)n);
    } else if (!strcmp(r->method, "POST")) {
        curl_easy_setopt(h->easy, CURLOPT_POSTFIELDS, "");
        curl_easy_setopt(h->easy, CURLOPT_POSTFIELDSIZE, 0L);
    } else if (strcmp(r->method, "GET")) {
        curl_easy_setopt(h->easy, CURLOPT_CUSTOMREQUEST, r->method);
    }
    curl_easy_setopt(h->easy, CURLOPT_READFUNCTION, http_on_send);
    curl_easy_setopt(h->easy, CURLOPT_READDATA, h);
    curl_easy_setopt(h->easy, CURLOPT_SEEKFUNCTION, http_on_seek);
    curl_easy_setopt(h->easy, CURLOPT_SEEKDATA, h);
}

/* Lets the transfer go on until something changes; -1 on failure of the transfer itself. */
static int http_pump(struct http *h, struct err *e) {
    int running = 0, left;
    if (h->paused) {
        h->paused = false;
        curl_easy_pause(h->easy, CURLPAUSE_CONT);
    }
    CURLMcode mc = curl_multi_perform(h->multi, &running);
    if (!mc && running && h->at == h->in.n) mc = curl_multi_poll(h->multi, NULL, 0, 1000, NULL);
    if (mc) return err_set(e, 0, "%s: %s", h->req->url, curl_multi_strerror(mc));
    for (CURLMsg *m; (m = curl_multi_info_read(h->multi, &left));)
        if (m->msg == CURLMSG_DONE) h->done = true, h->rc = m->data.result;
    if (h->done && h->rc) {
        const char *why = *h->msg ? h->msg : curl_easy_strerror(h->rc);
        return err_set(e, 0, "%s %s: %s%s", h->req->method, h->req->url, why,
                       h->rc == CURLE_PEER_FAILED_VERIFICATION && !http_ca_path()
                           ? " (no CA bundle found on this host: set SSL_CERT_FILE)"
                       : h->rc == CURLE_OPERATION_TIMEDOUT ? " (the server stalled)"
                                                           : "");
    }
    return 0;
}

static void http_global(void) { curl_global_init(CURL_GLOBAL_DEFAULT); }

/* One exchange, no redirect followed. NULL on failure. */
static struct http *http_once(const struct http_req *r, CURLcode *ret_rc, struct err *e) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, http_global);
    struct http *h = mem_new(sizeof *h);
    h->req = r;
    h->length = -1;
    h->multi = curl_multi_init();
    h->easy = curl_easy_init();
    if (!h->multi || !h->easy) mem_check(NULL);
    for (size_t i = 0; r->headers && i < r->headers->n; i++)
        h->list = curl_slist_append(h->list, r->headers->v[i]);
    if (r->auth) {
        AUTO_FREE char *a = str_fmt("Authorization: %s", r->auth);
        h->list = curl_slist_append(h->list, a);
    }
    h->list = curl_slist_append(h->list, "Expect:");
    const char *patience = getenv("SKIFF_HTTP_TIMEOUT"); /* seconds without a byte */
    i64 stall = 60;
    if (patience) str_int(patience, 1, 86400, &stall);
    curl_easy_setopt(h->easy, CURLOPT_URL, r->url);
    curl_easy_setopt(h->easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(h->easy, CURLOPT_HTTPHEADER, h->list);
    curl_easy_setopt(h->easy, CURLOPT_USERAGENT, "skiff/" SKIFF_VERSION);
    curl_easy_setopt(h->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(h->easy, CURLOPT_ERRORBUFFER, h->msg);
    curl_easy_setopt(h->easy, CURLOPT_WRITEFUNCTION, http_on_body);
    curl_easy_setopt(h->easy, CURLOPT_WRITEDATA, h);
    curl_easy_setopt(h->easy, CURLOPT_HEADERFUNCTION, http_on_header);
    curl_easy_setopt(h->easy, CURLOPT_HEADERDATA, h);
    curl_easy_setopt(h->easy, CURLOPT_BUFFERSIZE, 256L << 10);
    curl_easy_setopt(h->easy, CURLOPT_CONNECTTIMEOUT, stall < 15 ? (long)stall : 15L);
    curl_easy_setopt(h->easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(h->easy, CURLOPT_LOW_SPEED_TIME, (long)stall);
    http_set_tls(h, r);
    http_set_client(h, r);
    http_set_body(h, r);
    curl_multi_add_handle(h->multi, h->easy);
    while (!h->done && !h->headers_done)
        if (http_pump(h, e)) {
            *ret_rc = h->rc;
            if (h->headers_done) {
                h->broken = true;
                h->why = *e;
                break;
            }
            http_free(h);
            return NULL;
        }
    curl_off_t n = -1;
    curl_easy_getinfo(h->easy, CURLINFO_RESPONSE_CODE, &h->status);
    curl_easy_getinfo(h->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &n);
    h->length = n;
    return h;
}

/* "https://host:port" of a URL: what an Authorization header belongs to. Caller owns it. */
static char *http_origin(const char *url) {
    const char *s = strstr(url, "://");
    return s ? str_dupn(url, (size_t)(s - url) + 3 + strcspn(s + 3, "/?#")) : str_dup(url);
}

/* Sends a request and follows redirects of GET and HEAD. The caller looks at status, reads with
 * http_read, and frees. *ret_rc (may be NULL) gets curl's code on failure, for fall-backs. */
static struct http *http_open(const struct http_req *req, CURLcode *ret_rc, struct err *e) {
    struct http_req r = *req;
    AUTO_FREE char *url = str_dup(req->url);
    CURLcode rc = CURLE_OK;
    for (int hops = 0; hops <= HTTP_MAX_REDIRECTS; hops++) {
        r.url = url;
        struct http *h = http_once(&r, &rc, e);
        if (ret_rc) *ret_rc = rc;
        if (!h) return NULL;
        h->req = req;
        h->origin = http_origin(url);
        bool moved = (h->status >= 301 && h->status <= 303) || h->status == 307 || h->status == 308;
        if (!moved || !h->location || (strcmp(r.method, "GET") && strcmp(r.method, "HEAD")))
            return h;
        CURLU *u = curl_url();
        char *next = NULL;
        if (!u || curl_url_set(u, CURLUPART_URL, url, 0) ||
            curl_url_set(u, CURLUPART_URL, h->location, 0) ||
            curl_url_get(u, CURLUPART_URL, &next, 0))
            err_set(e, 0, "%s redirects to a URL that is not one: %.200s", url, h->location);
        curl_url_cleanup(u);
        http_free(h);
        if (!next) return NULL;
        AUTO_FREE char *from = http_origin(url), *to = http_origin(next);
        bool downgrade = str_prefix(from, "https:") && !str_prefix(to, "https:");
        if (strcmp(from, to)) r.auth = NULL, r.cert = r.key = NULL;
        free(url);
        url = str_dup(next);
        curl_free(next);
        if (downgrade && !r.insecure) {
            err_set(e, 0, "%s redirects from https to plain http: refused", req->url);
            return NULL;
        }
    }
    err_set(e, 0, "%s: more than %d redirects", req->url, HTTP_MAX_REDIRECTS);
    return NULL;
}

/* Up to n bytes of the body; 0 at its end, -1 on failure. */
static ssize_t http_read(struct http *h, void *out, size_t n, struct err *e) {
    while (h->at == h->in.n && !h->done)
        if (http_pump(h, e)) return -1;
    if (h->at == h->in.n && h->broken) return *e = h->why, -1;
    size_t have = h->in.n - h->at;
    if (n > have) n = have;
    if (n) memcpy(out, h->in.p + h->at, n);
    h->at += n;
    return (ssize_t)n;
}

/* The whole body, at most max bytes. */
static int http_slurp(struct http *h, size_t max, struct buf *ret, struct err *e) {
    char tmp[16384];
    for (ssize_t k; (k = http_read(h, tmp, sizeof tmp, e));) {
        if (k < 0) return -1;
        buf_add(ret, tmp, (size_t)k);
        if (ret->n > max)
            return err_set(e, 0, "%s: answer longer than %zu bytes", h->req->url, max);
    }
    buf_add(ret, "", 0);
    return 0;
}
/* }==== 8 http */

/* {==== 9 reg: references, credentials, the registry protocol ====
 * Sources: distribution/reference (grammar), distribution-spec 1.1, docker registry token
 * authentication, containers-auth.json(5), containers-registries.conf(5). Uses: 1-8 */

/* ---- 9.1 references ---- */
struct ref {
    char domain[256];            /* "docker.io", "localhost:5000" */
    char path[256];              /* "library/debian" */
    char tag[129];               /* "" when only a digest is given */
    char digest[DIGEST_LEN + 1]; /* "" when there is none */
};

/* One path component: [a-z0-9]+ joined by ".", "_", "__" or any number of "-". */
static bool ref_component_ok(const char *s, size_t n) {
    if (!n) return false;
    for (size_t i = 0; i < n;) {
        if (!islower((u8)s[i]) && !isdigit((u8)s[i])) return false;
        while (i < n && (islower((u8)s[i]) || isdigit((u8)s[i]))) i++;
        if (i == n) return true;
        if (s[i] == '.') i++;
        else if (s[i] == '_') i += 1 + (i + 1 < n && s[i + 1] == '_');
        else if (s[i] == '-')
            while (i < n && s[i] == '-') i++;
        else return false;
    }
    return false;
}

static bool ref_domain_ok(const char *s) {
    const char *colon = strrchr(s, ':');
    size_t n = strlen(s);
    if (*s == '[') {
        size_t k = strspn(s + 1, "0123456789abcdefABCDEF:.");
        i64 port;
        if (k < 2 || s[k + 1] != ']') return false;
        return !s[k + 2] || (s[k + 2] == ':' && str_int(s + k + 3, 1, 65535, &port));
    }
    if (colon) {
        i64 port;
        if (!str_int(colon + 1, 1, 65535, &port)) return false;
        n = (size_t)(colon - s);
    }
    for (size_t i = 0; i < n; i++)
        if (!isalnum((u8)s[i]) && !(i && i + 1 < n && (s[i] == '-' || s[i] == '.'))) return false;
    return n > 0;
}

static bool ref_tag_ok(const char *s) {
    if (!isalnum((u8)*s) && *s != '_') return false;
    for (const char *p = s; *p; p++)
        if (!isalnum((u8)*p) && !strchr("_.-", *p)) return false;
    return strlen(s) <= 128;
}

/* Docker's normalised reference: "debian" is docker.io/library/debian:latest. */
static int ref_parse(const char *text, struct ref *ret, struct err *e) {
    struct ref r = { 0 };
    AUTO_FREE char *shown = str_printable(text);
    AUTO_FREE char *s = str_dup(str_prefix(text, "docker://") ? text + 9 : text);
    if (strlen(s) > 1000) return err_set(e, 0, "invalid reference format: too long");
    char *at = strchr(s, '@');
    if (at) {
        *at++ = 0;
        if (!digest_hex(at))
            return err_set(e, 0,
                           "invalid reference format: '%s': the digest must be sha256: and "
                           "64 lower-case hex digits",
                           shown);
        strcpy(r.digest, at);
    }
    char *slash = strrchr(s, '/'), *colon = strrchr(s, ':');
    if (colon && (!slash || colon > slash)) {
        *colon++ = 0;
        if (!ref_tag_ok(colon))
            return err_set(e, 0, "invalid reference format: '%s': bad tag", shown);
        strcpy(r.tag, colon);
    }
    char *first = strchr(s, '/'), *path = s;
    size_t n = first ? (size_t)(first - s) : 0;
    bool has_domain =
        first && (memchr(s, '.', n) || memchr(s, ':', n) || (n == 9 && str_prefix(s, "localhost")));
    for (size_t i = 0; first && i < n; i++) has_domain |= isupper((u8)s[i]) != 0;
    if (has_domain) {
        *first = 0;
        path = first + 1;
        if (!ref_domain_ok(s) || strlen(s) >= sizeof r.domain)
            return err_set(e, 0, "invalid reference format: '%s': bad registry name", shown);
        strcpy(r.domain, s);
    } else strcpy(r.domain, "docker.io");
    if (!strcmp(r.domain, "index.docker.io")) strcpy(r.domain, "docker.io");
    bool official = !strcmp(r.domain, "docker.io") && !strchr(path, '/');
    if (strlen(path) + (official ? 8 : 0) + strlen(r.domain) + 1 >= sizeof r.path)
        return err_set(e, 0, "invalid reference format: '%s': name longer than 255", shown);
    snprintf(r.path, sizeof r.path, "%s%s", official ? "library/" : "", path);
    for (const char *p = r.path;; p++) {
        size_t k = strcspn(p, "/");
        if (!ref_component_ok(p, k))
            return err_set(e, 0, "invalid reference format: '%s'%s", shown,
                           strpbrk(path, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
                               ? ": repository name must be lowercase"
                               : "");
        p += k;
        if (!*p) break;
    }
    if (!r.tag[0] && !r.digest[0]) strcpy(r.tag, "latest");
    *ret = r;
    return 0;
}

/* The name without tag or digest, as Docker shows it ("debian", "quay.io/x/y"). Caller owns it. */
static char *ref_repository(const struct ref *r) {
    if (strcmp(r->domain, "docker.io")) return str_fmt("%s/%s", r->domain, r->path);
    bool official = str_prefix(r->path, "library/") && !strchr(r->path + 8, '/');
    return str_dup(official ? r->path + 8 : r->path);
}

/* Full form, the store's key: domain/path:tag or domain/path@digest. Caller owns it. */
static char *ref_full(const struct ref *r) {
    if (r->tag[0]) return str_fmt("%s/%s:%s", r->domain, r->path, r->tag);
    return str_fmt("%s/%s@%s", r->domain, r->path, r->digest);
}

/* Docker's short form of it. Caller owns it. */
static char *ref_familiar(const struct ref *r) {
    AUTO_FREE char *repo = ref_repository(r);
    return r->tag[0] ? str_fmt("%s:%s", repo, r->tag) : str_fmt("%s@%s", repo, r->digest);
}

/* ---- 9.2 base64 ---- */
static char *b64_encode(const void *data, size_t n) {
    static const char A[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const u8 *p = data;
    struct buf b = { 0 };
    for (size_t i = 0; i < n; i += 3) {
        u32 v = (u32)p[i] << 16 | (i + 1 < n ? (u32)p[i + 1] << 8 : 0) | (i + 2 < n ? p[i + 2] : 0);
        buf_addc(&b, A[v >> 18]);
        buf_addc(&b, A[v >> 12 & 63]);
        buf_addc(&b, i + 1 < n ? A[v >> 6 & 63] : '=');
        buf_addc(&b, i + 2 < n ? A[v & 63] : '=');
    }
    return buf_steal(&b);
}

/* NULL where it is not base64; caller owns it. */
static char *b64_decode(const char *s) {
    struct buf b = { 0 };
    u32 v = 0;
    int bits = 0;
    for (; *s && *s != '='; s++) {
        int d = isupper((u8)*s)   ? *s - 'A'
                : islower((u8)*s) ? *s - 'a' + 26
                : isdigit((u8)*s) ? *s - '0' + 52
                : *s == '+'       ? 62
                : *s == '/'       ? 63
                                  : -1;
        if (d < 0) {
            buf_done(&b);
            return NULL;
        }
        v = v << 6 | (u32)d;
        if ((bits += 6) >= 8) buf_addc(&b, (char)(v >> (bits -= 8)));
    }
    return buf_steal(&b);
}

/* ---- 9.3 credentials ---- */

/* The auth files in the order in which they are searched; the first is where login writes. */
static void auth_files(struct strv *ret) {
    const char *own = getenv("REGISTRY_AUTH_FILE"), *docker = getenv("DOCKER_CONFIG");
    const char *run = getenv("XDG_RUNTIME_DIR"), *conf = getenv("XDG_CONFIG_HOME");
    if (!str_empty(own)) strv_add(ret, own);
    if (!str_empty(docker)) strv_take(ret, str_fmt("%s/config.json", docker));
    else strv_take(ret, str_fmt("%s/.docker/config.json", host_home()));
    if (!str_empty(run)) strv_take(ret, str_fmt("%s/containers/auth.json", run));
    if (!str_empty(conf)) strv_take(ret, str_fmt("%s/containers/auth.json", conf));
    else strv_take(ret, str_fmt("%s/.config/containers/auth.json", host_home()));
}

static const char *auth_key(const char *domain) {
    return strcmp(domain, "docker.io") ? domain : "https://index.docker.io/v1/";
}

/* Asks docker-credential-NAME; "user:secret", or NULL. Source: docker-credential-helpers protocol.
 * */
static char *auth_helper(const char *name, const char *key) {
    for (const char *p = name; *p; p++)
        if (!isalnum((u8)*p) && !strchr("-_.", *p)) return NULL;
    AUTO_FREE char *prog = str_fmt("docker-credential-%s", name);
    char *argv[] = { prog, "get", NULL };
    AUTO_BUF out = { 0 };
    struct err e;
    if (proc_run(argv, key, &out, &e) || !out.p) return NULL;
    AUTO_JSON *j = json_loadb(out.p, out.n, 0, NULL);
    const char *user = js_str(j, "Username"), *secret = js_str(j, "Secret");
    return user && secret ? str_fmt("%s:%s", user, secret) : NULL;
}

/* Lets docker-credential-NAME keep "user:secret", or with NULL forget it. */
static int auth_helper_store(const char *name, const char *key, const char *pair, struct err *e) {
    for (const char *p = name; *p; p++)
        if (!isalnum((u8)*p) && !strchr("-_.", *p))
            return err_set(e, 0, "credential helper '%.60s': invalid name", name);
    AUTO_FREE char *prog = str_fmt("docker-credential-%s", name), *input = NULL;
    char *argv[] = { prog, pair ? "store" : "erase", NULL };
    AUTO_BUF out = { 0 };
    if (pair) {
        const char *colon = strchr(pair, ':');
        AUTO_JSON *j = json_object();
        js_sets(j, "ServerURL", key);
        js_set(j, "Username", json_stringn(pair, (size_t)(colon - pair)));
        js_sets(j, "Secret", colon + 1);
        input = js_dump(j, JSON_COMPACT);
    }
    int rc = proc_run(argv, input ? input : key, &out, e);
    if (rc > 0 && !pair) return 0; /* it had none */
    if (rc > 0) {
        AUTO_FREE char *said = str_printable(out.p ? out.p : "");
        return err_set(e, 0, "%s failed: %.200s", prog, said);
    }
    return rc;
}

/* Does a key of an auth file stand for a repository? Its length without scheme and old path, -1: no.
 * Keys are "host", "host/path…" (containers-auth.json(5)), "https://host[/v1/|/v2/]" (Docker). */
static int auth_key_covers(const char *key, const char *domain, const char *path) {
    const char *scheme = strstr(key, "://");
    if (scheme) key = scheme + 3;
    size_t d = strlen(domain);
    if (strncmp(key, domain, d) || (key[d] && key[d] != '/')) return -1;
    const char *rest = key + d + (key[d] == '/');
    if (scheme || !*rest) return (int)d;
    size_t n = strlen(rest);
    return !strncmp(path, rest, n) && (!path[n] || path[n] == '/') ? (int)(d + n) : -1;
}

/* The credentials of one entry: "user:password"; "<token>:TOKEN" for an identity token. */
static char *auth_entry(const json_t *a) {
    const char *token = js_str(a, "identitytoken"), *b64 = js_str(a, "auth");
    const char *user = js_str(a, "username"), *pw = js_str(a, "password");
    if (!str_empty(token)) return str_fmt("<token>:%s", token);
    if (!str_empty(b64)) return b64_decode(b64);
    return user && pw ? str_fmt("%s:%s", user, pw) : NULL;
}

/* The helper that a file names for a registry; NULL: none. */
static const char *auth_helper_of(const json_t *file, const char *domain) {
    const char *own = json_string_value(js_get(js_get(file, "credHelpers"), domain));
    return own ? own : js_str(file, "credsStore");
}

/* "user:password" for a repository, from the most specific key, or NULL. Caller owns it. */
static char *auth_find(const char *domain, const char *path) {
    AUTO_STRV files = { 0 };
    auth_files(&files);
    const char *key = auth_key(domain);
    for (size_t i = 0; i < files.n; i++) {
        struct err e;
        AUTO_JSON *j = js_load(AT_FDCWD, files.v[i], &e);
        if (!j && !access(files.v[i], F_OK)) log_warn("%s: %s", files.v[i], e.msg);
        const char *helper = auth_helper_of(j, domain), *name;
        char *found = helper ? auth_helper(helper, key) : NULL;
        if (found) return found;
        json_t *auths = js_get(j, "auths"), *entry;
        const json_t *best = js_get(auths, key);
        int most = best ? (int)strlen(domain) : -1;
        json_object_foreach (auths, name, entry) {
            int n = auth_key_covers(name, domain, path);
            if (n > most) most = n, best = entry;
        }
        if ((found = best ? auth_entry(best) : NULL)) return found;
    }
    return NULL;
}

/* Stores (or with pair NULL removes) credentials. ret_gone (may be NULL): there were none. */
static int auth_store(const char *domain, const char *pair, bool *ret_gone, struct err *e) {
    AUTO_STRV files = { 0 };
    auth_files(&files);
    const char *key = auth_key(domain);
    bool removed = false;
    for (size_t i = 0; i < (pair ? 1 : files.n); i++) {
        struct err ignored;
        AUTO_JSON *j = js_load(AT_FDCWD, files.v[i], &ignored);
        if (!j && !access(files.v[i], F_OK))
            return err_set(e, 0, "%s: %s: not changed", files.v[i], ignored.msg);
        if (!j && !pair) continue;
        if (!j) j = json_object();
        json_t *auths = js_sub(j, "auths");
        const char *helper = auth_helper_of(j, domain);
        if (helper && auth_helper_store(helper, key, pair, e)) return -1;
        if (pair) {
            AUTO_FREE char *b64 = helper ? NULL : b64_encode(pair, strlen(pair));
            json_t *a = json_object();
            if (b64) js_sets(a, "auth", b64);
            js_set(auths, key, a);
        } else if (json_object_del(auths, key) && !helper) continue;
        removed = true;
        AUTO_FREE char *dir = str_dup(files.v[i]);
        char *slash = strrchr(dir, '/');
        if (slash) *slash = 0;
        if (slash && dir_make(AT_FDCWD, dir, e)) return -1;
        AUTO_FD d = dir_open(AT_FDCWD, slash ? dir : ".", e);
        AUTO_FREE char *text = js_dump(j, JSON_INDENT(1));
        if (d < 0 ||
            file_replace(d, slash ? slash + 1 : dir, text, strlen(text), 0600, FILE_SYNC, e))
            return -1;
    }
    if (ret_gone) *ret_gone = !removed;
    return 0;
}

/* ---- 9.4 which hosts serve a registry ---- */
struct reg_host {
    char *location; /* "host:port" or "host/path", owned: replaces the prefix that matched */
    size_t strip;   /* characters of the repository's path that the prefix took */
    bool insecure;
};

struct reg_conf {
    struct reg_host hosts[16]; /* mirrors first, the registry itself last */
    size_t n;
    bool blocked;
    int longest; /* characters of the prefix that decided so far; 0: none */
};

static void reg_conf_done(struct reg_conf *c) {
    for (size_t i = 0; i < c->n; i++) free(c->hosts[i].location);
}

static void reg_conf_add(struct reg_conf *c, const char *location, size_t strip, bool insecure) {
    if (c->n < ARRAY_LEN(c->hosts))
        c->hosts[c->n++] = (struct reg_host){ str_dup(location), strip, insecure };
}

/* Does a prefix of registries.conf cover domain/path? Its length in the path, -1: no. */
static int reg_conf_covers(const char *prefix, const char *domain, const char *path) {
    size_t d = strlen(domain), n = prefix ? strlen(prefix) : 0;
    if (n > 2 && str_prefix(prefix, "*.")) /* all hosts below a domain */
        return d > n - 1 && !strcmp(domain + d - (n - 1), prefix + 1) ? 0 : -1;
    if (!n || strncmp(prefix, domain, d) || (prefix[d] && prefix[d] != '/')) return -1;
    const char *rest = prefix + d + (prefix[d] == '/');
    size_t k = strlen(rest);
    return !strncmp(rest, path, k) && (!k || !path[k] || path[k] == '/') ? (int)k : -1;
}

/* The value of `key = "value"` or `key = true` on a line of registries.conf; NULL: another key. */
static char *reg_conf_value(char *line, const char *key) {
    size_t n = strlen(key);
    while (*line == ' ' || *line == '\t') line++;
    if (strncmp(line, key, n)) return NULL;
    line += n;
    while (*line == ' ' || *line == '\t') line++;
    if (*line++ != '=') return NULL;
    while (*line == ' ' || *line == '\t') line++;
    if (*line == '"' || *line == '\'') {
        char q = *line++, *end = strchr(line, q);
        if (end) *end = 0;
    } else line[strcspn(line, " \t#\r")] = 0;
    return line;
}

/* The [[registry]] and [[registry.mirror]] tables of registries.conf(5) version 2 that concern one
 * domain: the keys prefix, location, insecure, blocked. The format's other parts do not apply. */
static int reg_conf_read(const char *path, const struct ref *ref, struct reg_conf *c,
                         struct reg_host *self, struct err *e) {
    AUTO_BUF b = { 0 };
    struct err none;
    if (access(path, F_OK)) return 0;
    if (file_read(AT_FDCWD, path, 1 << 20, &b, &none) || !b.p) return 0;
    int line = 0;
    enum { NONE, REGISTRY, MIRROR } in = NONE;
    AUTO_FREE char *prefix = NULL, *location = NULL, *mirror = NULL;
    AUTO_STRV mirrors = { 0 };
    bool insecure = false, blocked = false, lax[16] = { false };
    char *save = NULL;
    for (char *l = strtok_r(b.p, "\n", &save);; l = strtok_r(NULL, "\n", &save)) {
        char *s = l ? l + strspn(l, " \t") : NULL, *v;
        line++;
        if (s && *s && *s != '#' && *s != '[' && *s != ']' && *s != '"' && *s != '\r' &&
            !strchr(s, '='))
            return err_set(e, 0, "%s: line %d is no TOML: %.60s", path, line, s);
        if (s && *s == '[' && !strchr(s, ']') && !strchr(s, '='))
            return err_set(e, 0, "%s: line %d is no TOML: %.60s", path, line, s);
        if (!s || str_prefix(s, "[[registry]]")) {
            const char *by = prefix ? prefix : location;
            int took = reg_conf_covers(by, ref->domain, ref->path);
            if (took >= 0 && (int)strlen(by) > c->longest) { /* the longest one decides alone */
                c->longest = (int)strlen(by);
                while (c->n) mem_freep(&c->hosts[--c->n].location);
                c->blocked = false;
                for (size_t i = 0; i < mirrors.n && i < 15; i++)
                    reg_conf_add(c, mirrors.v[i], (size_t)took, lax[i]);
                c->blocked |= blocked;
                self->insecure |= insecure;
                if (location && prefix)
                    free(self->location), self->location = str_dup(location),
                                          self->strip = (size_t)took;
            }
            mem_freep(&prefix), mem_freep(&location), strv_done(&mirrors);
            insecure = blocked = false;
            memset(lax, 0, sizeof lax);
            if (!s) break;
            in = REGISTRY;
        } else if (str_prefix(s, "[[registry.mirror]]")) {
            in = MIRROR;
            strv_add(&mirrors, "");
        } else if (*s == '[') in = NONE;
        else if (in == REGISTRY && (v = reg_conf_value(s, "prefix")))
            free(prefix), prefix = str_dup(v);
        else if (in == REGISTRY && (v = reg_conf_value(s, "location")))
            free(location), location = str_dup(v);
        else if (in == REGISTRY && (v = reg_conf_value(s, "insecure")))
            insecure = str_eq(v, "true");
        else if (in == REGISTRY && (v = reg_conf_value(s, "blocked"))) blocked = str_eq(v, "true");
        else if (in == MIRROR && (v = reg_conf_value(s, "location"))) {
            free(mirrors.v[mirrors.n - 1]);
            mirrors.v[mirrors.n - 1] = str_dup(v);
        } else if (in == MIRROR && mirrors.n <= 16 && (v = reg_conf_value(s, "insecure")))
            lax[mirrors.n - 1] = str_eq(v, "true");
    }
    return 0;
}

static bool reg_is_loopback(const char *domain) {
    size_t host = strcspn(domain, ":");
    bool v4 = str_prefix(domain, "127.") && strspn(domain, "0123456789.") == host;
    return str_prefix(domain, "localhost:") || !strcmp(domain, "localhost") || v4 ||
           !strcmp(domain, "[::1]") || str_prefix(domain, "[::1]:");
}

/* Mirrors and laxness for a registry from registries.conf and Docker's daemon.json. */
static int reg_conf_load(const struct ref *ref, struct reg_conf *ret, struct err *e) {
    const char *domain = ref->domain;
    struct reg_host self = { str_dup(strcmp(domain, "docker.io") ? domain : "registry-1.docker.io"),
                             0, reg_is_loopback(domain) };
    int rc;
    const char *own = getenv("CONTAINERS_REGISTRIES_CONF");
    AUTO_FREE char *user = str_fmt("%s/.config/containers/registries.conf", host_home());
    const char *main = !str_empty(own)        ? own
                       : !access(user, R_OK) ? user
                                             : "/etc/containers/registries.conf";
    rc = reg_conf_read(main, ref, ret, &self, e);
    AUTO_FREE char *drop = str_fmt("%s.d", main);
    AUTO_STRV names = { 0 };
    AUTO_DIR *d = str_empty(own) ? opendir(drop) : NULL;
    struct dirent *de;
    while (d && (de = dir_next(d)))
        if (str_suffix(de->d_name, ".conf")) strv_add(&names, de->d_name);
    if (names.n) qsort(names.v, names.n, sizeof *names.v, name_order);
    for (size_t i = 0; !rc && i < names.n; i++) {
        AUTO_FREE char *path = str_fmt("%s/%s", drop, names.v[i]);
        rc = reg_conf_read(path, ref, ret, &self, e);
    }
    AUTO_FREE char *daemon = str_fmt("%s/.config/docker/daemon.json", host_home());
    const char *files[] = { daemon, "/etc/docker/daemon.json" };
    for (size_t i = 0; i < ARRAY_LEN(files); i++) {
        struct err none;
        AUTO_JSON *j = js_load(AT_FDCWD, files[i], &none);
        AUTO_STRV lax = { 0 }, mirrors = { 0 };
        js_to_strv(js_get(j, "insecure-registries"), &lax);
        js_to_strv(js_get(j, "registry-mirrors"), &mirrors);
        self.insecure |= strv_has(&lax, domain);
        for (size_t k = 0; !strcmp(domain, "docker.io") && k < mirrors.n; k++) {
            const char *m = strstr(mirrors.v[k], "://");
            AUTO_FREE char *at = str_dup(m ? m + 3 : mirrors.v[k]);
            if (str_suffix(at, "/")) at[strlen(at) - 1] = 0;
            reg_conf_add(ret, at, 0, str_prefix(mirrors.v[k], "http://"));
        }
    }
    reg_conf_add(ret, self.location, self.strip, self.insecure);
    free(self.location);
    return rc;
}

/* The extra CA certificates of certs.d for a host, as one PEM; NULL: none. A NAME.cert with its
 * NAME.key is a client's certificate (containers-certs.d(5)); owned by the caller. */
static char *reg_certs(const char *domain, char **ret_cert, char **ret_key) {
    AUTO_FREE char *user = str_fmt("%s/.config/containers/certs.d", host_home());
    AUTO_FREE char *user2 = str_fmt("%s/.docker/certs.d", host_home());
    const char *own = getenv("SKIFF_CERTS_D");
    const char *dirs[] = { str_empty(own) ? user : own, user2, "/etc/containers/certs.d",
                           "/etc/docker/certs.d" };
    struct buf pem = { 0 };
    for (size_t i = 0; i < ARRAY_LEN(dirs); i++) {
        AUTO_FREE char *dir = str_fmt("%s/%s", dirs[i], domain);
        AUTO_DIR *d = opendir(dir);
        struct dirent *de;
        struct err e;
        while (d && (de = dir_next(d)))
            if (str_suffix(de->d_name, ".crt")) {
                file_read(dirfd(d), de->d_name, 1 << 20, &pem, &e);
                buf_addc(&pem, '\n');
            } else if (str_suffix(de->d_name, ".cert") && !*ret_cert) {
                AUTO_FREE char *key = str_fmt("%.*skey", (int)strlen(de->d_name) - 4, de->d_name);
                AUTO_BUF c = { 0 }, k = { 0 };
                if (file_read(dirfd(d), de->d_name, 1 << 20, &c, &e) || !c.p ||
                    file_read(dirfd(d), key, 1 << 20, &k, &e) || !k.p) {
                    log_warn("%s/%s: a client certificate needs a readable %s beside it", dir,
                             de->d_name, key);
                    continue;
                }
                *ret_cert = buf_steal(&c);
                *ret_key = buf_steal(&k);
            }
    }
    return pem.p;
}

/* ---- 9.5 one registry, authenticated ---- */
struct reg {
    struct ref ref;
    char *base;     /* "https://host", owned; chosen by the first exchange */
    char *repo;     /* the repository's name at this host, owned */
    char *creds;    /* "user:password", owned; NULL: anonymous */
    char *auth;     /* Authorization value, owned; NULL: none asked yet */
    char *ca_extra; /* owned; NULL: none */
    char *cert, *key; /* owned: a client's certificate; NULL: none */
    bool insecure, push;
    pthread_mutex_t lock; /* guards auth */
};

static void reg_done(struct reg *r) {
    free(r->base), free(r->repo), free(r->creds), free(r->auth), free(r->ca_extra);
    free(r->cert), free(r->key);
    pthread_mutex_destroy(&r->lock);
}

/* The value of one parameter of a challenge (RFC 9110, 11.2). Caller owns it; NULL: absent. */
static char *reg_param(const char *challenge, const char *name) {
    size_t n = strlen(name);
    for (const char *p = challenge; (p = strcasestr(p, name)); p += n) {
        if (p > challenge && p[-1] != ' ' && p[-1] != ',') continue;
        if (p[n] != '=') continue;
        const char *v = p + n + 1;
        if (*v != '"') return str_dupn(v, strcspn(v, ", "));
        return str_dupn(v + 1, strcspn(v + 1, "\""));
    }
    return NULL;
}

/* Fetches a bearer token for the challenge that the registry itself sent. */
static int reg_token(struct reg *r, const char *challenge, char **ret_auth, struct err *e) {
    AUTO_FREE char *realm = reg_param(challenge, "realm"),
                   *service = reg_param(challenge, "service");
    if (!realm) return err_set(e, 0, "%s: challenge without a realm: %.200s", r->base, challenge);
    /* the password goes to the realm: never in clear unless the registry itself is plain http */
    AUTO_FREE char *origin = http_origin(realm);
    if (!str_prefix(realm, "https://") &&
        (strcmp(origin, r->base) || !str_prefix(realm, "http://")))
        return err_set(
            e, 0, "%s asks for a token from '%.200s', which is neither https nor itself: refused",
            r->base, realm);
    AUTO_FREE char *scope = str_fmt("repository:%s:%s", r->repo, r->push ? "pull,push" : "pull");
    char *esc_scope = curl_easy_escape(NULL, scope, 0);
    char *esc_service = curl_easy_escape(NULL, service ? service : "", 0);
    AUTO_FREE char *url = str_fmt("%s%cservice=%s&scope=%s", realm, strchr(realm, '?') ? '&' : '?',
                                  esc_service, esc_scope);
    curl_free(esc_scope), curl_free(esc_service);
    AUTO_FREE char *basic = NULL, *form = NULL;
    AUTO_STRV headers = { 0 };
    struct http_req q = { .method = "GET",
                          .url = url,
                          .body_fd = -1,
                          .ca_extra = r->ca_extra,
                          .insecure = r->insecure };
    if (r->creds && str_prefix(r->creds, "<token>:")) { /* OAuth2, RFC 6749 section 6 */
        char *esc_token = curl_easy_escape(NULL, r->creds + 8, 0);
        form = str_fmt("grant_type=refresh_token&client_id=skiff&refresh_token=%s&%s", esc_token,
                       strstr(url, "service="));
        curl_free(esc_token);
        strv_add(&headers, "Content-Type: application/x-www-form-urlencoded");
        q.method = "POST", q.url = realm, q.headers = &headers;
        q.body = form, q.body_n = strlen(form);
    } else if (r->creds) {
        AUTO_FREE char *b64 = b64_encode(r->creds, strlen(r->creds));
        q.auth = basic = str_fmt("Basic %s", b64);
    }
    AUTO_HTTP *h = http_open(&q, NULL, e);
    AUTO_BUF body = { 0 };
    if (!h || http_slurp(h, 1 << 20, &body, e)) return -1;
    if (h->status == 401 || h->status == 403)
        return err_set(e, 0, "%s: access denied by %s%s", r->ref.domain, realm,
                       r->creds ? ": wrong user name or password"
                                : ": 'skiff login' may be needed");
    AUTO_JSON *j = json_loadb(body.p, body.n, 0, NULL);
    const char *token = js_str(j, "token");
    if (!token) token = js_str(j, "access_token");
    if (h->status != 200 || !token)
        return err_set(e, 0, "%s: no token (HTTP %ld)", realm, h->status);
    *ret_auth = str_fmt("Bearer %s", token);
    return 0;
}

/* Answers a 401: finds out what Authorization to send. `used` is what the refused request sent. */
static int reg_answer(struct reg *r, const char *challenge, const char *used, struct err *e) {
    char *auth = NULL;
    pthread_mutex_lock(&r->lock);
    if ((used && r->auth && strcmp(used, r->auth)) || (!used && r->auth)) { /* another thread did */
        pthread_mutex_unlock(&r->lock);
        return 0;
    }
    int rc = -1;
    if (challenge && !strncasecmp(challenge, "bearer", 6)) rc = reg_token(r, challenge, &auth, e);
    else if (!r->creds)
        err_set(e, 0, "%s: authentication required: 'skiff login %s'", r->ref.domain,
                r->ref.domain);
    else if (used) err_set(e, 0, "%s: unauthorized: incorrect username or password", r->ref.domain);
    else {
        AUTO_FREE char *b64 = b64_encode(r->creds, strlen(r->creds));
        auth = str_fmt("Basic %s", b64);
        rc = 0;
    }
    if (!rc) free(r->auth), r->auth = auth;
    pthread_mutex_unlock(&r->lock);
    return rc;
}

/* What a registry says in an error document, appended to the status. */
static void reg_explain(struct http *h, const char *what, struct err *e) {
    AUTO_BUF b = { 0 };
    struct err ignored;
    http_slurp(h, 64 << 10, &b, &ignored);
    AUTO_JSON *j = b.p ? json_loadb(b.p, b.n, 0, NULL) : NULL;
    const json_t *first = json_array_get(js_get(j, "errors"), 0);
    const char *code = js_str(first, "code"), *msg = js_str(first, "message");
    AUTO_FREE char *text = str_printable(msg ? msg : code ? code : "");
    err_set(e, 0, "%s: HTTP %ld%s%.300s", what, h->status, *text ? ": " : "", text);
}

static bool reg_transient(long status) { return status == 408 || status == 429 || status >= 500; }

/* One request to the registry: `path` is below /v2/NAME/, or an absolute URL. Authenticates,
 * retries transient failures with back-off. Any status but 401 and 5xx is returned to the caller.
 * */
static struct http *reg_request(struct reg *r, struct http_req *q, const char *path,
                                struct err *e) {
    AUTO_FREE char *url = strstr(path, "://") ? str_dup(path)
                          : *path             ? str_fmt("%s/v2/%s/%s", r->base, r->repo, path)
                                              : str_fmt("%s/v2/", r->base);
    q->ca_extra = r->ca_extra;
    q->cert = r->cert, q->key = r->key;
    q->insecure = r->insecure;
    AUTO_FREE char *origin = http_origin(url);
    bool ours = !strcmp(origin, r->base);
    int answered = 0;
    for (int attempt = 0;; attempt++) {
        pthread_mutex_lock(&r->lock);
        AUTO_FREE char *auth = r->auth && ours ? str_dup(r->auth) : NULL;
        pthread_mutex_unlock(&r->lock);
        q->url = url;
        q->auth = auth;
        CURLcode rc = CURLE_OK;
        struct http *h = http_open(q, &rc, e);
        /* a challenge counts only from the registry itself: a redirect's target could name any
         * realm */
        if (h && h->status == 401 && ours && !strcmp(h->origin, r->base) && answered < 2) {
            int bad = reg_answer(r, h->www_auth, auth, e);
            http_free(h);
            if (bad) return NULL;
            answered++;
            attempt--;
            continue;
        }
        bool again = h ? reg_transient(h->status)
                       : rc == CURLE_COULDNT_CONNECT || rc == CURLE_GOT_NOTHING ||
                             rc == CURLE_RECV_ERROR || rc == CURLE_SEND_ERROR;
        if (!again || attempt >= 3) {
            if (h && reg_transient(h->status)) {
                reg_explain(h, url, e);
                http_free(h);
                return NULL;
            }
            if (h) h->req = q;
            q->url = r->base; /* url dies with this frame; messages name the host */
            q->auth = NULL;
            return h;
        }
        http_free(h);
        usleep(200000u << attempt);
    }
}

/* Has this host the image that the reference names? */
static bool reg_has(struct reg *r) {
    AUTO_STRV headers = { 0 };
    struct err ignored;
    if (!r->ref.tag[0] && !r->ref.digest[0]) return true;
    strv_add(&headers, "Accept: application/vnd.oci.image.index.v1+json, "
                       "application/vnd.oci.image.manifest.v1+json, "
                       "application/vnd.docker.distribution.manifest.list.v2+json, "
                       "application/vnd.docker.distribution.manifest.v2+json");
    AUTO_FREE char *path =
        str_fmt("manifests/%s", r->ref.digest[0] ? r->ref.digest : r->ref.tag);
    struct http_req q = { .method = "HEAD", .headers = &headers, .body_fd = -1 };
    AUTO_HTTP *h = reg_request(r, &q, path, &ignored);
    return h && h->status == 200;
}

/* Finds the host that serves a reference: mirrors first, https before http where http is allowed.
 * */
static int reg_connect(struct reg *r, const struct ref *ref, bool push, int tls_verify,
                       struct err *e) {
    struct reg_conf conf = { 0 };
    *r = (struct reg){ .ref = *ref, .push = push };
    pthread_mutex_init(&r->lock, NULL);
    if (reg_conf_load(ref, &conf, e)) return reg_conf_done(&conf), -1;
    if (conf.blocked) {
        reg_conf_done(&conf);
        return err_set(e, 0, "registry %s is blocked by registries.conf", ref->domain);
    }
    int found = -1;
    bool answered = false;
    for (size_t i = push ? conf.n - 1 : 0; !answered && i < conf.n; i++) {
        struct reg_host *host = &conf.hosts[i];
        bool lax = tls_verify < 0 ? host->insecure : !tls_verify;
        char *slash = strchr(host->location, '/');
        AUTO_FREE char *name = str_dupn(host->location, strcspn(host->location, "/"));
        for (int plain = 0; !answered && plain <= (lax ? 1 : 0); plain++) {
            free(r->base), free(r->repo), free(r->ca_extra), free(r->auth);
            r->auth = NULL;
            free(r->creds);
            r->creds =
                auth_find(i + 1 == conf.n ? ref->domain : name, /* a mirror gets its own */
                          ref->path);
            r->base = str_fmt("%s://%s", plain ? "http" : "https", name);
            const char *left = ref->path + host->strip;
            left += *left == '/';
            r->repo = slash ? str_fmt("%s/%s", slash + 1, left) : str_dup(left);
            mem_freep(&r->cert), mem_freep(&r->key);
            r->ca_extra = reg_certs(name, &r->cert, &r->key);
            /* a loopback registry with a CA of its own is verified like any other */
            r->insecure = lax && !r->ca_extra;
            struct http_req q = {
                .method = "GET", .body_fd = -1, .ca_extra = r->ca_extra, .cert = r->cert,
                .key = r->key, .insecure = r->insecure
            };
            AUTO_FREE char *url = str_fmt("%s/v2/", r->base);
            q.url = url;
            CURLcode rc = CURLE_OK;
            AUTO_HTTP *h = http_open(&q, &rc, e);
            if (!h) {
                log_debug("%s", e->msg);
                /* plain http is for a server that speaks no TLS, not for one whose certificate is
                 * wrong */
                if (rc == CURLE_PEER_FAILED_VERIFICATION) break;
                continue;
            }
            if (reg_transient(h->status) && i + 1 < conf.n) continue;
            found = h->status == 401 ? reg_answer(r, h->www_auth, NULL, e) : 0;
            /* a mirror that has not got the image leaves it to the next one */
            answered = i + 1 == conf.n || (!found && reg_has(r));
        }
    }
    reg_conf_done(&conf);
    return found;
}
/* }==== 9 reg */

/* {==== 10 store: the image store ====
 * An OCI image layout and its siblings, as the file's head lays them out.
 * Invariants: (1) a blob's name is the SHA-256 of its content; it is renamed into place after that
 * was checked; (2) index.json changes only under locks/index; (3) whoever adds blobs holds locks/gc
 * shared until index.json refers to them; the collector holds it exclusively. Uses: 1-9 */
struct store {
    int dir;    /* $SKIFF_ROOT */
    char *path; /* owned; absolute */
};

/* Opens the store, making it on first use. */
static int store_open(const char *root, struct store *ret, struct err *e) {
    AUTO_FREE char *path = NULL;
    const char *env = getenv("SKIFF_ROOT"), *data = getenv("XDG_DATA_HOME");
    if (!str_empty(root)) path = str_dup(root);
    else if (!str_empty(env)) path = str_dup(env);
    else if (!str_empty(data) && *data == '/') path = str_fmt("%s/skiff", data);
    else path = str_fmt("%s/.local/share/skiff", host_home());
    umask(022);
    AUTO_FD dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) {
        if (dir_make(AT_FDCWD, path, e))
            return err_wrap(e, "make the store %s (set SKIFF_ROOT to a directory of yours)", path);
        dir = dir_open(AT_FDCWD, path, e);
        if (dir < 0) return err_wrap(e, "open the store");
    }
    struct stat st;
    if (fstat(dir, &st)) return err_set(e, errno, "store %s", path);
    if (st.st_uid != geteuid())
        return err_set(e, 0,
                       "store %s belongs to uid %u, not to you: set SKIFF_ROOT to a directory "
                       "of yours",
                       path, st.st_uid);
    if (faccessat(dir, "oci-layout", F_OK, 0)) {
        static const char *const DIRS[] = { "blobs/sha256", "layers",     "merged",
                                            "names",        "containers", "volumes",
                                            "cache",        "locks",      "tmp" };
        if (st.st_mode & 077 && fchmod(dir, 0700)) return err_set(e, errno, "chmod 0700 %s", path);
        for (size_t i = 0; i < ARRAY_LEN(DIRS); i++)
            if (dir_make(dir, DIRS[i], e)) return err_wrap(e, "store %s", path);
        static const char INDEX[] = "{\"schemaVersion\":2,\"mediaType\":"
                                    "\"application/vnd.oci.image.index.v1+json\",\"manifests\":[]}";
        static const char LAYOUT[] = "{\"imageLayoutVersion\":\"1.0.0\"}";
        AUTO_FD lock = lock_take(dir, "locks/index", LOCK_EX);
        if (faccessat(dir, "index.json", F_OK, 0) &&
            file_replace(dir, "index.json", INDEX, sizeof INDEX - 1, 0600, FILE_SYNC, e))
            return err_wrap(e, "store %s", path);
        if (file_replace(dir, "oci-layout", LAYOUT, sizeof LAYOUT - 1, 0600, FILE_SYNC, e))
            return err_wrap(e, "store %s", path);
    }
    char *real = realpath(path, NULL);
    ret->path = real ? real : str_dup(path);
    ret->dir = fd_steal(&dir);
    return 0;
}

/* ---- 10.1 blobs ---- */

/* Path of a blob below the store; NULL for a digest that is not a sha256 one. out: 80 bytes. */
static const char *blob_path(const char *digest, char *out) {
    const char *hex = digest_hex(digest);
    if (!hex) return NULL;
    snprintf(out, 80, "blobs/sha256/%s", hex);
    return out;
}

static bool blob_have(const struct store *s, const char *digest) {
    char path[80];
    return blob_path(digest, path) && !faccessat(s->dir, path, F_OK, 0);
}

static int blob_open(const struct store *s, const char *digest, struct err *e) {
    char path[80];
    if (!blob_path(digest, path)) return err_set(e, 0, "bad digest '%.100s'", digest ? digest : "");
    int fd = openat(s->dir, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) err_set(e, errno, "open blob %s", digest);
    return fd;
}

/* Adds a small document; digest_out holds DIGEST_LEN+1 bytes. */
static int blob_add(const struct store *s, const void *data, size_t n, char *digest_out,
                    struct err *e) {
    char path[80];
    digest_of(data, n, digest_out);
    if (blob_have(s, digest_out)) return 0;
    blob_path(digest_out, path);
    AUTO_FD dir = dir_open(s->dir, "blobs/sha256", e);
    if (dir < 0) return -1;
    return file_replace(dir, path + 13, data, n, 0600, FILE_SYNC, e);
}

/* A JSON document among the blobs, verified against its digest. */
enum { DOC_MAX_BYTES = 16 << 20 };
static json_t *blob_json(const struct store *s, const char *digest, struct err *e) {
    char path[80], have[DIGEST_LEN + 1];
    AUTO_BUF b = { 0 };
    if (!blob_path(digest, path)) {
        err_set(e, 0, "bad digest '%.100s'", digest ? digest : "");
        return NULL;
    }
    if (file_read(s->dir, path, DOC_MAX_BYTES, &b, e)) return NULL;
    if (strcmp(digest_of(b.p, b.n, have), digest)) {
        err_set(e, 0,
                "blob %s is damaged: its content has digest %s ('skiff system check --repair', "
                "then pull again)",
                digest, have);
        return NULL;
    }
    return js_parse(b.p, b.n, digest, e);
}

/* ---- 10.2 names ---- */
#define REF_NAME "org.opencontainers.image.ref.name"
#define REPO_DIGEST "io.skiff.repo-digest" /* "repo@sha256:…" that the name was pulled from */

static json_t *store_index(const struct store *s, struct err *e) {
    json_t *j = js_load(s->dir, "index.json", e);
    if (j && !json_is_array(js_get(j, "manifests"))) {
        err_set(e, 0, "%s/index.json is not an OCI index", s->path);
        js_decref(&j);
    }
    return j;
}

static const char *desc_name(const json_t *desc) {
    return json_string_value(js_get(js_get(desc, "annotations"), REF_NAME));
}

/* Gives `name` (NULL: no name) to a manifest. An image that loses its last name stays, nameless, as
 * Docker's dangling images do. */
static int store_tag(const struct store *s, const json_t *desc, const char *name,
                     const char *repo_digest, struct err *e) {
    AUTO_FD lock = lock_take(s->dir, "locks/index", LOCK_EX);
    if (lock < 0) return err_set(e, errno, "lock %s/locks/index", s->path);
    AUTO_JSON *index = store_index(s, e);
    if (!index) return -1;
    json_t *all = js_get(index, "manifests"), *d;
    AUTO_JSON *keep = json_array();
    const char *digest = js_str(desc, "digest");
    AUTO_JSON *orphan = NULL;
    bool orphan_named = false, placed = false;
    size_t i;
    json_array_foreach (all, i, d) {
        const char *n = desc_name(d);
        bool same = str_eq(js_str(d, "digest"), digest);
        if (name ? str_eq(n, name) : same) {
            if (same && str_eq(n, name) && !repo_digest) placed = true;
            else if (!same) orphan = json_deep_copy(d);
            else if (!name) placed = true;
            if (!placed) continue;
        } else if (same && !n) continue; /* it gets a name now */
        json_array_append(keep, d);
    }
    if (!placed) {
        json_t *add = json_object();
        json_object_set(add, "mediaType", js_get(desc, "mediaType"));
        json_object_set(add, "digest", js_get(desc, "digest"));
        json_object_set(add, "size", js_get(desc, "size"));
        if (js_get(desc, "platform")) json_object_set(add, "platform", js_get(desc, "platform"));
        if (name) js_sets(js_sub(add, "annotations"), REF_NAME, name);
        if (repo_digest) js_sets(js_sub(add, "annotations"), REPO_DIGEST, repo_digest);
        json_array_append_new(keep, add);
    }
    if (orphan) {
        json_array_foreach (keep, i, d)
            orphan_named |= str_eq(js_str(d, "digest"), js_str(orphan, "digest"));
        json_object_del(js_get(orphan, "annotations"), REF_NAME);
        if (!orphan_named) json_array_append(keep, orphan);
    }
    json_object_set(index, "manifests", keep);
    return js_save(s->dir, "index.json", index, FILE_SYNC, e);
}

/* Removes the name, or with `name` NULL every entry of the manifest. */
static int store_untag(const struct store *s, const char *digest, const char *name, struct err *e) {
    AUTO_FD lock = lock_take(s->dir, "locks/index", LOCK_EX);
    if (lock < 0) return err_set(e, errno, "lock %s/locks/index", s->path);
    AUTO_JSON *index = store_index(s, e);
    if (!index) return -1;
    json_t *all = js_get(index, "manifests");
    for (size_t i = json_array_size(all); i-- > 0;) {
        json_t *d = json_array_get(all, i);
        if (str_eq(js_str(d, "digest"), digest) && (!name || str_eq(desc_name(d), name)))
            json_array_remove(all, i);
    }
    return js_save(s->dir, "index.json", index, FILE_SYNC, e);
}

/* ---- 10.3 images ---- */
struct image {
    json_t *desc;              /* the descriptor in index.json, owned */
    json_t *manifest, *config; /* owned */
    char id[HEX_LEN + 1];      /* hex of the configuration's digest: Docker's image id */
    struct strv diff_ids;      /* "sha256:…", bottom first */
};

static void image_done(struct image *m) {
    json_decref(m->desc), json_decref(m->manifest), json_decref(m->config);
    strv_done(&m->diff_ids);
    *m = (struct image){ 0 };
}
#define AUTO_IMAGE CLEANUP(image_done) struct image

enum { IMAGE_MAX_LAYERS = 4096 };

/* Reads the diff-ids of a configuration, checking each. */
static int image_diff_ids(const json_t *config, struct strv *ret, struct err *e) {
    const json_t *a = js_path(config, "rootfs.diff_ids");
    size_t i;
    json_t *v;
    if (json_array_size(a) > IMAGE_MAX_LAYERS)
        return err_set(e, 0, "image has %zu layers; the limit is %d", json_array_size(a),
                       IMAGE_MAX_LAYERS);
    json_array_foreach (a, i, v) {
        if (!digest_hex(json_string_value(v)))
            return err_set(e, 0, "configuration: /rootfs/diff_ids/%zu is not a sha256 digest", i);
        strv_add(ret, json_string_value(v));
    }
    return 0;
}

static int image_load(const struct store *s, const json_t *desc, struct image *ret, struct err *e) {
    struct image m = { .desc = json_incref((json_t *)(uintptr_t)desc) };
    m.manifest = blob_json(s, js_str(desc, "digest"), e);
    const char *cfg = m.manifest ? js_str(m.manifest, "config.digest") : NULL;
    m.config = cfg ? blob_json(s, cfg, e) : NULL;
    if (m.manifest && !cfg)
        err_set(e, 0, "manifest %s names no configuration", js_str(desc, "digest"));
    if (!m.config || image_diff_ids(m.config, &m.diff_ids, e)) {
        image_done(&m);
        return -1;
    }
    strcpy(m.id, digest_hex(cfg));
    *ret = m;
    return 0;
}

/* Finds an image by name, id, id prefix, name@digest. ret_name (may be NULL; caller owns): the
 * store name that matched, NULL when it was found by id. */
static int image_find(const struct store *s, const char *what, struct image *ret, char **ret_name,
                      struct err *e) {
    AUTO_JSON *index = store_index(s, e);
    if (!index) return -1;
    json_t *all = js_get(index, "manifests"), *d, *hit = NULL;
    size_t i;
    struct ref r;
    struct err why;
    AUTO_FREE char *full = NULL;
    AUTO_FREE char *bydigest = NULL;
    if (!ref_parse(what, &r, &why)) {
        full = ref_full(&r);
        if (r.digest[0]) bydigest = str_fmt("%s/%s@%s", r.domain, r.path, r.digest);
    }
    json_array_foreach (all, i, d) {
        const char *n = desc_name(d),
                   *rd = json_string_value(js_get(js_get(d, "annotations"), REPO_DIGEST));
        bool named = full && !bydigest && str_eq(n, full);
        bool digested =
            bydigest && (str_eq(rd, bydigest) || str_eq(n, bydigest) ||
                         (n && str_eq(js_str(d, "digest"), r.digest) && str_prefix(n, r.domain)));
        if (!named && !digested) continue;
        if (ret_name) *ret_name = n ? str_dup(n) : NULL;
        return image_load(s, d, ret, e);
    }
    const char *hex = str_prefix(what, "sha256:") ? what + 7 : what;
    size_t n = strlen(hex);
    if (n >= 1 && n <= HEX_LEN && strspn(hex, "0123456789abcdef") == n) {
        char id[HEX_LEN + 1] = "";
        json_array_foreach (all, i, d) {
            AUTO_IMAGE m = { 0 };
            if (image_load(s, d, &m, &why)) continue;
            const char *mh = digest_hex(js_str(d, "digest"));
            if (strncmp(m.id, hex, n) && (n < HEX_LEN || strcmp(mh, hex))) continue;
            if (id[0] && strcmp(id, m.id))
                return err_set(e, 0, "image id prefix '%s' is ambiguous", what);
            strcpy(id, m.id);
            if (!hit || desc_name(d)) hit = d;
        }
        if (hit) {
            if (ret_name) *ret_name = NULL;
            return image_load(s, hit, ret, e);
        }
    }
    AUTO_FREE char *shown = str_printable(what);
    if (!full) return err_set(e, 0, "%s", why.msg);
    return err_set(e, 0, "No such image: %s", shown);
}

/* ---- 10.4 garbage ---- */

/* Marks what a manifest refers to: hex digests of blobs, and "layers/…" by diff-id. */
static void store_mark(const struct store *s, const char *digest, json_t *live, int depth) {
    struct err e;
    const char *hex = digest_hex(digest);
    AUTO_FREE char *seen = str_fmt("seen:%s", hex ? hex : "");
    if (!hex || depth > 4 || js_get(live, seen)) return;
    js_setb(live, seen, true);
    js_setb(live, hex, true);
    AUTO_JSON *m = blob_json(s, digest, &e);
    if (!m) return;
    json_t *v;
    size_t i;
    const char *h;
    json_array_foreach (js_get(m, "manifests"), i, v)
        store_mark(s, js_str(v, "digest"), live, depth + 1);
    json_array_foreach (js_get(m, "layers"), i, v)
        if ((h = digest_hex(js_str(v, "digest")))) js_setb(live, h, true);
    const char *cfg = js_str(m, "config.digest");
    if (!(h = digest_hex(cfg))) return;
    js_setb(live, h, true);
    AUTO_JSON *c = blob_json(s, cfg, &e);
    struct sha chain;
    char id[DIGEST_LEN + 1] = "";
    json_array_foreach (js_path(c, "rootfs.diff_ids"), i, v) {
        if (!(h = digest_hex(json_string_value(v)))) continue;
        js_setb(live, h, true);
        if (!*id) strcpy(id, json_string_value(v));
        else {
            u8 raw[32];
            sha_init(&chain);
            sha_add(&chain, id, strlen(id));
            sha_add(&chain, " ", 1);
            sha_add(&chain, json_string_value(v), DIGEST_LEN);
            sha_end(&chain, raw);
            hex_of(raw, 32, id + 7);
        }
    }
    if (*id) { /* the merged index is named by the chain-id */
        AUTO_FREE char *key = str_fmt("chain:%s", id + 7);
        js_setb(live, key, true);
    }
}

/* Sweeps one directory: removes the entries whose first 64 characters are not live. */
static u64 store_sweep(const struct store *s, const char *dir, const char *prefix,
                       const json_t *live) {
    u64 freed = 0, inodes = 0;
    AUTO_DIR *d = dir_stream(s->dir, dir);
    struct dirent *de;
    while (d && (de = dir_next(d))) {
        char key[80];
        snprintf(key, sizeof key, "%s%.64s", prefix, de->d_name);
        bool stray = str_prefix(de->d_name, ".tmp-"); /* of a writer that was killed */
        if (!stray && (strlen(de->d_name) < HEX_LEN || js_get(live, key))) continue;
        tree_usage(dirfd(d), de->d_name, &freed, &inodes, 0);
        /* the name goes at once: a tree of mapped ids may resist, and half a tree must not be found
         * again */
        AUTO_FREE char *from = str_fmt("%s/%s", dir, de->d_name),
                       *aside = str_fmt("tmp/gone-%s", de->d_name);
        if (!renameat(s->dir, from, s->dir, aside)) tree_remove(s->dir, aside);
    }
    return freed;
}

/* Deletes blobs, layers and merged indexes that nothing names. Returns the bytes freed; 0 also
 * where another skiff is adding to the store (then that or a later call collects). all: what an
 * interrupted pull has left goes too. */
static u64 store_collect(const struct store *s, bool all) {
    struct err e;
    AUTO_FD lock = lock_take(s->dir, "locks/gc", LOCK_EX | LOCK_NB);
    AUTO_JSON *index = lock >= 0 ? store_index(s, &e) : NULL;
    if (!index) return 0;
    AUTO_JSON *live = json_object();
    size_t i;
    json_t *d;
    json_array_foreach (js_get(index, "manifests"), i, d)
        store_mark(s, js_str(d, "digest"), live, 0);
    AUTO_DIR *dir = dir_stream(s->dir, "containers");
    struct dirent *de;
    while (dir && (de = dir_next(dir))) {
        AUTO_FREE char *path = str_fmt("%s/config.json", de->d_name);
        AUTO_JSON *c = js_load(dirfd(dir), path, &e);
        /* of a build that was killed (builds hold the lock), or no container at all */
        if (str_eq(js_str(c, "skiff.image"), "<build>") || faccessat(dirfd(dir), path, F_OK, 0)) {
            AUTO_FREE char *aside = str_fmt("tmp/gone-%s", de->d_name);
            renameat(dirfd(dir), de->d_name, s->dir, aside);
            continue;
        }
        store_mark(s, js_str(c, "skiff.manifest"), live, 0);
    }
    AUTO_DIR *cache = dir_stream(s->dir, "cache");
    while (cache && (de = dir_next(cache))) { /* layers that the build cache may take again */
        if (!str_prefix(de->d_name, "build-")) continue;
        AUTO_JSON *c = js_load(dirfd(cache), de->d_name, &e);
        const char *blob = digest_hex(js_str(c, "layer.digest")),
                   *diff = digest_hex(js_str(c, "diff_id"));
        if (blob) js_setb(live, blob, true);
        if (diff) js_setb(live, diff, true);
    }
    u64 freed = store_sweep(s, "blobs/sha256", "", live);
    freed += store_sweep(s, "layers", "", live);
    freed += store_sweep(s, "merged", "chain:", live);
    AUTO_DIR *tmp = dir_stream(s->dir, "tmp"); /* nobody writes: what is here was abandoned */
    while (tmp && (de = dir_next(tmp))) {
        u64 inodes = 0;
        struct stat st;
        bool part = str_suffix(de->d_name, ".part") &&
                    !fstatat(dirfd(tmp), de->d_name, &st, AT_SYMLINK_NOFOLLOW);
        if (part && !all && time_now_ns() / 1000000000 - st.st_mtime < 86400)
            continue; /* a pull that may be resumed */
        tree_usage(dirfd(tmp), de->d_name, &freed, &inodes, 0);
        tree_remove(dirfd(tmp), de->d_name);
    }
    return freed;
}

/* ---- 10.5 events ---- */
static void store_event(const struct store *s, const char *type, const char *action, const char *id,
                        json_t *attributes /* consumed */) {
    i64 now = time_now_ns();
    AUTO_JSON *ev = json_object();
    js_sets(ev, "Type", type);
    js_sets(ev, "Action", action);
    js_sets(ev, "status", action);
    js_sets(ev, "id", id);
    json_t *actor = js_sub(ev, "Actor");
    js_sets(actor, "ID", id);
    js_set(actor, "Attributes", attributes ? attributes : json_object());
    js_sets(ev, "scope", "local");
    js_seti(ev, "time", now / 1000000000);
    js_seti(ev, "timeNano", now);
    AUTO_FREE char *text = js_dump(ev, JSON_COMPACT);
    AUTO_FREE char *line = str_fmt("%s\n", text);
    AUTO_FD fd =
        openat(s->dir, "events.json", O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    struct stat st;
    if (fd < 0) return;
    /* bounded: the log starts anew past 8 MiB, and readers of the old file reach its end */
    if (!fstat(fd, &st) && st.st_size > 8 << 20)
        renameat(s->dir, "events.json", s->dir, "events.json.1");
    (void)!fd_write_all(fd, line, strlen(line));
}
/* }==== 10 store */

/* {==== 11 layer: trees, packs, indexes; archives in and out ====
 * An archive is never unpacked to paths. It is read once, front to back; its names become a tree in
 * memory, its file contents are appended to a pack, and the tree is written as an index. Whiteouts,
 * hard links, symbolic links in parents: all are resolved in that tree, where ".." has nowhere to
 * go.
 *
 * PACK (layers/HEX.pack): file contents cut into chunks, each starting at a multiple of 4096; no
 * header. A chunk is stored raw or as one zstd frame; a hole (all zeros) is not stored.
 *
 * INDEX (layers/HEX.idx, merged/HEX.idx): little-endian, the structs below as they stand, sections
 * in the order of the head's offsets. A layer's index has whiteout entries and opaque marks and
 * exactly one pack; a merged index has none of the first and as many packs as layers with contents.
 * Inode 0 is the root. A directory's entries are contiguous and sorted bytewise by name; a file's
 * chunks are contiguous, all but the last 2^chunk_shift bytes long.
 *
 * Invariants: (1) an index reaches its name only whole and after its pack; (2) the head carries the
 * SHA-256 of itself and of the body: the first is checked on each open, the second when layers are
 * merged and by `system check`; (3) every accessor checks its bounds, so that a damaged index gives
 * EIO, never a wild read; (4) inode numbers of a merged index never change.
 * Uses: 1-10. Sources: image-spec layer.md, libarchive's archive_read(3). */

/* ---- 11.1 the index format ---- */
enum {
    IDX_VERSION = 1,
    CHUNK_SHIFT = 18, /* 256 KiB; larger for huge files: at most 65,536 chunks a file */
    PACK_ALIGN = 4096,
    TREE_MAX_ENTRIES = 6 << 20,
    TREE_MAX_NAMES = 1 << 30,
    XATTR_MAX_VALUE = 65536,
    XATTR_MAX_ENTRY = 1 << 20,
    NAME_LIMIT = 255,
    SYMLINK_LIMIT = 4095,
};
static const u32 NO_INODE = UINT32_MAX;

struct idx_head {
    char magic[8]; /* "skiffidx" */
    u32 version, has_xattrs;
    u64 file_size;                      /* of the index itself */
    u32 inodes, dirents, chunks, packs; /* counts */
    u64 inode_off, dirent_off, chunk_off, pack_off, name_off, xattr_off;
    u64 name_len, xattr_len;
    u64 content_size; /* sum of the sizes of the files */
    u8 id[32];        /* diff-id of a layer, chain-id of a merged index */
    u8 body_sha[32];  /* of all that follows the head */
    u8 head_sha[32];  /* of the head with this field zero */
};

enum { INODE_OPAQUE = 1 };
struct idx_inode {
    u32 mode, uid, gid, nlink;
    u64 size;
    i64 mtime; /* seconds */
    u32 mtime_ns, rdev;
    u64 data;   /* directory: first dirent; file: first chunk; symlink: in names */
    u32 count;  /* dirents, chunks; symlink: its length */
    u32 xattr;  /* 1 + offset in the xattr section; 0: none */
    u32 parent; /* of a directory */
    u8 chunk_shift, flags;
    u16 unused;
};

enum { DIRENT_WHITEOUT = 1 };
struct idx_dirent {
    u32 name, inode; /* offset in names; inode number */
    u16 name_len;
    u8 type, flags; /* DT_*; DIRENT_* */
};

struct idx_chunk {
    u64 off;         /* in the pack */
    u32 len, stored; /* bytes of content; bytes in the pack: == len raw, 0 hole, else zstd */
    u32 pack, unused;
    u8 sha[32]; /* of the content */
};

struct idx_pack {
    u8 diff_id[32];
    u64 size;
};

static_assert(sizeof(struct idx_head) == 208, "on-disk format");
static_assert(sizeof(struct idx_inode) == 64, "on-disk format");
static_assert(sizeof(struct idx_dirent) == 12, "on-disk format");
static_assert(sizeof(struct idx_chunk) == 56, "on-disk format");
static_assert(sizeof(struct idx_pack) == 40, "on-disk format");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the formats are little-endian");

struct idx {
    const u8 *map; /* owned mapping; NULL: closed */
    size_t n;
    const struct idx_head *head;
    const struct idx_inode *inodes;
    const struct idx_dirent *dirents;
    const struct idx_chunk *chunks;
    const struct idx_pack *packs;
    const char *names;
    const u8 *xattrs;
};

static void idx_close(struct idx *x) {
    if (x->map) munmap((void *)(uintptr_t)x->map, x->n);
    *x = (struct idx){ 0 };
}
#define AUTO_IDX CLEANUP(idx_close) struct idx

static void idx_head_sum(const struct idx_head *h, u8 out[32]) {
    struct idx_head copy = *h;
    memset(copy.head_sha, 0, sizeof copy.head_sha);
    sha_of(&copy, sizeof copy, out);
}

static bool idx_section_ok(const struct idx *x, u64 off, u64 count, u64 each) {
    u64 bytes;
    return !__builtin_mul_overflow(count, each, &bytes) && off >= sizeof *x->head && off <= x->n &&
           bytes <= x->n - off && off % 8 == 0;
}

/* Maps an index and checks its head; with `whole`, its body's digest too. */
static int idx_open(int dir, const char *path, bool whole, struct idx *ret, struct err *e) {
    AUTO_FD fd = openat(dir, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return err_set(e, errno, "open index %s", path);
    struct stat st;
    if (fstat(fd, &st)) return err_set(e, errno, "stat index %s", path);
    AUTO_IDX x = { 0 };
    if (st.st_size < (off_t)sizeof *x.head) return err_set(e, 0, "index %s is truncated", path);
    x.n = (size_t)st.st_size;
    void *map = mmap(NULL, x.n, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) return err_set(e, errno, "map index %s", path);
    x.map = map;
    x.head = map;
    u8 sum[32];
    const struct idx_head *h = x.head;
    idx_head_sum(h, sum);
    if (memcmp(h->magic, "skiffidx", 8) || h->version != IDX_VERSION)
        return err_set(e, 0, "index %s has another format or version", path);
    if (h->file_size != x.n || memcmp(sum, h->head_sha, 32) || !h->inodes ||
        !idx_section_ok(&x, h->inode_off, h->inodes, sizeof *x.inodes) ||
        !idx_section_ok(&x, h->dirent_off, h->dirents, sizeof *x.dirents) ||
        !idx_section_ok(&x, h->chunk_off, h->chunks, sizeof *x.chunks) ||
        !idx_section_ok(&x, h->pack_off, h->packs, sizeof *x.packs) ||
        !idx_section_ok(&x, h->name_off, h->name_len, 1) ||
        !idx_section_ok(&x, h->xattr_off, h->xattr_len, 1))
        return err_set(e, 0, "index %s is damaged", path);
    if (whole) {
        sha_of(x.map + sizeof *h, x.n - sizeof *h, sum);
        if (memcmp(sum, h->body_sha, 32)) return err_set(e, 0, "index %s is damaged", path);
    }
    x.inodes = (const void *)(x.map + h->inode_off);
    x.dirents = (const void *)(x.map + h->dirent_off);
    x.chunks = (const void *)(x.map + h->chunk_off);
    x.packs = (const void *)(x.map + h->pack_off);
    x.names = (const char *)(x.map + h->name_off);
    x.xattrs = x.map + h->xattr_off;
    *ret = x;
    x.map = NULL;
    return 0;
}

static const struct idx_inode *idx_inode(const struct idx *x, u64 ino) {
    return ino < x->head->inodes ? &x->inodes[ino] : NULL;
}

/* The entries of a directory; NULL with *n 0 for anything else or out of bounds. */
static const struct idx_dirent *idx_dir(const struct idx *x, const struct idx_inode *i, u32 *n) {
    *n = 0;
    if (!S_ISDIR(i->mode) || i->data > x->head->dirents || i->count > x->head->dirents - i->data)
        return NULL;
    *n = i->count;
    return x->dirents + i->data;
}

static const char *idx_name(const struct idx *x, u64 off, u64 len) {
    return off <= x->head->name_len && len <= x->head->name_len - off ? x->names + off : NULL;
}

/* The chunks of a file; NULL with *n 0 where there are none. */
static const struct idx_chunk *idx_chunks(const struct idx *x, const struct idx_inode *i, u32 *n) {
    *n = 0;
    if (!S_ISREG(i->mode) || i->data > x->head->chunks || i->count > x->head->chunks - i->data ||
        i->chunk_shift < 12 || i->chunk_shift > 26)
        return NULL;
    *n = i->count;
    return x->chunks + i->data;
}

static int name_cmp(const char *a, size_t an, const char *b, size_t bn) {
    int c = memcmp(a, b, an < bn ? an : bn);
    return c ? c : (an > bn) - (an < bn);
}

/* Finds a name in a directory; NULL: not there. */
static const struct idx_dirent *idx_lookup(const struct idx *x, const struct idx_inode *dir,
                                           const char *name, size_t len) {
    u32 n;
    const struct idx_dirent *d = idx_dir(x, dir, &n);
    for (u32 lo = 0, hi = n; lo < hi;) {
        u32 mid = lo + (hi - lo) / 2;
        const char *s = idx_name(x, d[mid].name, d[mid].name_len);
        if (!s) return NULL;
        int c = name_cmp(name, len, s, d[mid].name_len);
        if (!c) return &d[mid];
        if (c < 0) hi = mid;
        else lo = mid + 1;
    }
    return NULL;
}

/* Walks an inode's xattrs: *at starts at 0; false at the end. In the section: u16 count, then each
 * u16 name length, u32 value length, name, value. */
static bool idx_xattr_next(const struct idx *x, const struct idx_inode *i, u64 *at, u16 *left,
                           const char **name, u16 *nlen, const u8 **value, u32 *vlen) {
    u64 end = x->head->xattr_len;
    if (!i->xattr) return false;
    if (!*at) {
        *at = i->xattr - 1u;
        if (end < 2 || *at > end - 2) return false;
        memcpy(left, x->xattrs + *at, 2);
        *at += 2;
    }
    if (!(*left)-- || *at + 6 > end) return false;
    memcpy(nlen, x->xattrs + *at, 2);
    memcpy(vlen, x->xattrs + *at + 2, 4);
    *at += 6;
    if ((u64)*nlen + *vlen > end - *at) return false;
    *name = (const char *)x->xattrs + *at;
    *value = x->xattrs + *at + *nlen;
    *at += (u64)*nlen + *vlen;
    return true;
}

/* ---- 11.2 the tree in memory ---- */
struct tnode {
    u32 mode, uid, gid, rdev;
    u64 size;
    i64 mtime;
    u32 mtime_ns;
    u32 chunk, chunks;  /* into tree.chunk */
    u32 text, text_len; /* symlink: into tree.names */
    u32 xattr;          /* as idx_inode.xattr, into tree.xattrs */
    u32 kids;           /* directory: first tdent; NO_INODE: none */
    u32 number;         /* while writing: number in the index */
    u32 links;          /* while writing */
    u8 shift, opaque;
};

struct tdent {
    u32 parent, node; /* node NO_INODE: a whiteout */
    u32 name;
    u32 next; /* sibling */
    u32 hash_next;
    u16 len;
    bool dead;
};

struct tree {
    struct tnode *node;      /* owned; 0 is the root */
    struct tdent *dent;      /* owned */
    struct idx_chunk *chunk; /* owned */
    u32 *hash;               /* owned; heads of chains, NO_INODE: empty */
    u32 nodes, node_cap, dents, dent_cap, chunks, chunk_cap, hash_mask;
    struct buf names, xattrs;
    struct idx_pack *pack; /* owned */
    u32 packs;
};

static void tree_done(struct tree *t) {
    free(t->node), free(t->dent), free(t->chunk), free(t->hash), free(t->pack);
    buf_done(&t->names), buf_done(&t->xattrs);
    *t = (struct tree){ 0 };
}
#define AUTO_TREE CLEANUP(tree_done) struct tree

static u32 tree_node(struct tree *t) {
    if (t->nodes == t->node_cap)
        t->node = mem_grow(t->node, t->node_cap = t->node_cap * 2 + 64, sizeof *t->node);
    t->node[t->nodes] = (struct tnode){ .kids = NO_INODE };
    return t->nodes++;
}

static void tree_init(struct tree *t) {
    *t = (struct tree){ .hash_mask = 1023 };
    t->hash = mem_new((t->hash_mask + 1) * sizeof *t->hash);
    memset(t->hash, 0xff, (t->hash_mask + 1) * sizeof *t->hash);
    u32 root = tree_node(t);
    t->node[root].mode = S_IFDIR | 0755;
}

static u32 tree_hash(u32 parent, const char *name, size_t len) {
    u64 h = parent * 0x9e3779b97f4a7c15ull;
    for (size_t i = 0; i < len; i++) h = (h ^ (u8)name[i]) * 0x100000001b3ull;
    h ^= h >> 29;
    h *= 0xbf58476d1ce4e5b9ull;
    return (u32)(h >> 32);
}

/* The living entry of a name in a directory node; NULL: none. A whiteout counts as one. */
static struct tdent *tree_find(struct tree *t, u32 dir, const char *name, size_t len) {
    u32 i = t->hash[tree_hash(dir, name, len) & t->hash_mask];
    for (; i != NO_INODE; i = t->dent[i].hash_next) {
        struct tdent *d = &t->dent[i];
        if (!d->dead && d->parent == dir && d->len == len &&
            !memcmp(t->names.p + d->name, name, len))
            return d;
    }
    return NULL;
}

static void tree_rehash(struct tree *t) {
    free(t->hash);
    t->hash_mask = t->hash_mask * 4 + 3;
    t->hash = mem_new(((size_t)t->hash_mask + 1) * sizeof *t->hash);
    memset(t->hash, 0xff, ((size_t)t->hash_mask + 1) * sizeof *t->hash);
    for (u32 i = 0; i < t->dents; i++) {
        struct tdent *d = &t->dent[i];
        u32 *slot = &t->hash[tree_hash(d->parent, t->names.p + d->name, d->len) & t->hash_mask];
        d->hash_next = *slot;
        *slot = i;
    }
}

static u32 tree_text(struct tree *t, const char *s, size_t n) {
    u32 at = (u32)t->names.n;
    buf_add(&t->names, s, n);
    return at;
}

/* Makes `name` in `dir` refer to node (NO_INODE: whiteout), replacing what was there. */
static void tree_link(struct tree *t, u32 dir, const char *name, size_t len, u32 node) {
    struct tdent *old = tree_find(t, dir, name, len);
    if (old) {
        old->node = node;
        return;
    }
    if (t->dents == t->dent_cap)
        t->dent = mem_grow(t->dent, t->dent_cap = t->dent_cap * 2 + 64, sizeof *t->dent);
    if (t->dents > t->hash_mask) tree_rehash(t);
    u32 i = t->dents++;
    u32 *slot = &t->hash[tree_hash(dir, name, len) & t->hash_mask];
    t->dent[i] = (struct tdent){ .parent = dir,
                                 .node = node,
                                 .len = (u16)len,
                                 .next = t->node[dir].kids,
                                 .name = tree_text(t, name, len),
                                 .hash_next = *slot };
    *slot = i;
    t->node[dir].kids = i;
}

static void tree_unlink(struct tree *t, u32 dir, const char *name, size_t len) {
    struct tdent *d = tree_find(t, dir, name, len);
    if (d) d->dead = true;
}

/* Adds one xattr list for a node from (name, value) pairs; 0 when none is kept. */
struct xattr_list {
    struct buf data;
    u16 n;
};

/* What an image may carry: user.* and file capabilities. The names by which overlay file systems
 * are steered, and everything that needs privilege, are dropped (CVE-2021-3493, CVE-2023-0386). */
static bool xattr_kept(const char *name) {
    if (!strcmp(name, "security.capability")) return true;
    return str_prefix(name, "user.") && !str_prefix(name, "user.overlay.") &&
           !str_prefix(name, "user.containers.") && !str_prefix(name, "user.fuseoverlayfs.");
}

static int xattr_list_add(struct xattr_list *l, const char *name, const void *value, size_t n,
                          struct err *e) {
    size_t len = strlen(name);
    if (!xattr_kept(name)) return 0;
    if (len > NAME_LIMIT || n > XATTR_MAX_VALUE || l->data.n + len + n > XATTR_MAX_ENTRY ||
        l->n == UINT16_MAX)
        return err_set(e, 0, "extended attribute %.60s is too large (%zu bytes)", name, n);
    u16 nl = (u16)len;
    u32 vl = (u32)n;
    buf_add(&l->data, &nl, 2);
    buf_add(&l->data, &vl, 4);
    buf_add(&l->data, name, len);
    buf_add(&l->data, value, n);
    l->n++;
    return 0;
}

static u32 tree_xattrs(struct tree *t, struct xattr_list *l) {
    u32 at = (u32)t->xattrs.n + 1;
    if (!l->n) return 0;
    buf_add(&t->xattrs, &l->n, 2);
    buf_add(&t->xattrs, l->data.p, l->data.n);
    return at;
}

/* ---- 11.3 writing an index ---- */
static int dent_order(const void *a, const void *b, void *arg) {
    const struct tree *t = arg;
    const struct tdent *x = &t->dent[*(const u32 *)a], *y = &t->dent[*(const u32 *)b];
    return name_cmp(t->names.p + x->name, x->len, t->names.p + y->name, y->len);
}

struct idx_out {
    struct buf inodes, dirents, chunks, names;
    u64 content;
};

/* Numbers a directory's children and appends its entries; new directories go to the queue. */
static void idx_put_dir(struct tree *t, u32 dir, struct idx_out *o, u32 **order, u32 *numbered,
                        u32 *cap) {
    u32 n = 0, *list = NULL;
    for (u32 i = t->node[dir].kids; i != NO_INODE; i = t->dent[i].next) {
        if (t->dent[i].dead) continue;
        if (!(n & (n + 1))) list = mem_grow(list, n * 2 + 2, sizeof *list);
        list[n++] = i;
    }
    if (n) qsort_r(list, n, sizeof *list, dent_order, t);
    for (u32 k = 0; k < n; k++) {
        const struct tdent *d = &t->dent[list[k]];
        struct idx_dirent out = { .name = (u32)o->names.n, .name_len = d->len };
        buf_add(&o->names, t->names.p + d->name, d->len);
        if (d->node == NO_INODE) out.flags = DIRENT_WHITEOUT, out.type = DT_CHR;
        else {
            struct tnode *c = &t->node[d->node];
            if (c->number == NO_INODE) {
                if (*numbered == *cap)
                    *order = mem_grow(*order, *cap = *cap * 2 + 64, sizeof **order);
                (*order)[*numbered] = d->node;
                c->number = (*numbered)++;
            }
            c->links++;
            out.inode = c->number;
            out.type = (u8)IFTODT(c->mode);
            if (S_ISDIR(c->mode)) t->node[dir].links++;
        }
        buf_add(&o->dirents, &out, sizeof out);
    }
    free(list);
}

/* Appends one node as an inode record. */
static void idx_put_inode(const struct tree *t, const struct tnode *c, u32 parent, u64 dirent_at,
                          struct idx_out *o) {
    struct idx_inode out = {
        .mode = c->mode,
        .uid = c->uid,
        .gid = c->gid,
        .size = c->size,
        .mtime = c->mtime,
        .mtime_ns = c->mtime_ns,
        .rdev = c->rdev,
        .xattr = c->xattr,
        .parent = parent,
        .chunk_shift = c->shift,
        .flags = c->opaque ? INODE_OPAQUE : 0,
    };
    if (S_ISDIR(c->mode)) {
        out.data = dirent_at;
        out.count = (u32)(o->dirents.n / sizeof(struct idx_dirent) - dirent_at);
        out.size = 4096;
    } else if (S_ISREG(c->mode)) {
        out.data = o->chunks.n / sizeof(struct idx_chunk);
        out.count = c->chunks;
        if (c->chunks) buf_add(&o->chunks, t->chunk + c->chunk, c->chunks * sizeof *t->chunk);
        o->content += c->size;
    } else if (S_ISLNK(c->mode)) {
        out.data = o->names.n;
        out.count = c->text_len;
        out.size = c->text_len;
        if (c->text_len) buf_add(&o->names, t->names.p + c->text, c->text_len);
    }
    buf_add(&o->inodes, &out, sizeof out);
}

static u64 idx_place(u64 *at, size_t n) {
    u64 here = *at;
    *at = (*at + n + 7) & ~7ull;
    return here;
}

static int idx_emit(const struct tree *t, struct idx_out *o, const u8 id[32], int dir,
                    const char *name, struct err *e) {
    const struct buf parts[] = {
        o->inodes, o->dirents, o->chunks, { .p = (char *)t->pack, .n = t->packs * sizeof *t->pack },
        o->names,  t->xattrs
    };
    struct idx_head h = { .magic = "skiffidx",
                          .version = IDX_VERSION,
                          .has_xattrs = t->xattrs.n > 0,
                          .content_size = o->content,
                          .packs = t->packs };
    u64 at = sizeof h, *offs[] = { &h.inode_off, &h.dirent_off, &h.chunk_off,
                                   &h.pack_off,  &h.name_off,   &h.xattr_off };
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) *offs[i] = idx_place(&at, parts[i].n);
    h.inodes = (u32)(o->inodes.n / sizeof(struct idx_inode));
    h.dirents = (u32)(o->dirents.n / sizeof(struct idx_dirent));
    h.chunks = (u32)(o->chunks.n / sizeof(struct idx_chunk));
    h.name_len = o->names.n;
    h.xattr_len = t->xattrs.n;
    h.file_size = at;
    memcpy(h.id, id, 32);
    struct sha s;
    sha_init(&s);
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        static const u8 ZERO[8];
        sha_add(&s, parts[i].p, parts[i].n);
        sha_add(&s, ZERO, (8 - parts[i].n % 8) % 8);
    }
    sha_end(&s, h.body_sha);
    idx_head_sum(&h, h.head_sha);
    AUTO_FD fd = openat(dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return err_set(e, errno, "create index %s", name);
    if (fd_pwrite_all(fd, &h, sizeof h, 0)) return err_set(e, errno, "write index %s", name);
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        if (fd_pwrite_all(fd, parts[i].p, parts[i].n, *offs[i]))
            return err_set(e, errno, "write index %s", name);
    if (ftruncate(fd, (off_t)at) || fsync(fd)) return err_set(e, errno, "write index %s", name);
    return 0;
}

/* Writes the tree as an index file `name` in dir (aside: the caller renames it). Nodes that no name
 * reaches are left out. The tree is spent: its numbers and link counts are scratch. */
static int tree_write(struct tree *t, const u8 id[32], int dir, const char *name, struct err *e) {
    struct idx_out o = { 0 };
    u32 cap = t->nodes + 1, numbered = 1, *order = mem_new(cap * sizeof *order), *parent = NULL;
    for (u32 i = 0; i < t->nodes; i++) t->node[i].number = NO_INODE, t->node[i].links = 0;
    t->node[0].number = 0;
    t->node[0].links = 1;
    parent = mem_new(t->nodes * sizeof *parent);
    /* breadth first: a directory's children get neighbouring numbers */
    for (u32 k = 0; k < numbered; k++) {
        u32 i = order[k];
        u64 first = o.dirents.n / sizeof(struct idx_dirent);
        u32 before = numbered;
        if (S_ISDIR(t->node[i].mode)) idx_put_dir(t, i, &o, &order, &numbered, &cap);
        for (u32 c = before; c < numbered; c++) parent[order[c]] = k;
        idx_put_inode(t, &t->node[i], parent[i], first, &o);
    }
    for (u32 k = 0; k < numbered; k++) {
        struct idx_inode *out = (void *)(o.inodes.p + k * sizeof *out);
        const struct tnode *c = &t->node[order[k]];
        out->nlink = S_ISDIR(c->mode) ? c->links + 1 : c->links;
    }
    int rc = idx_emit(t, &o, id, dir, name, e);
    buf_done(&o.inodes), buf_done(&o.dirents), buf_done(&o.chunks), buf_done(&o.names);
    free(order);
    free(parent);
    return rc;
}

/* ---- 11.4 merging ---- */

/* Copies one inode of an index into the tree. */
static u32 tree_import(struct tree *t, const struct idx *x, u32 ino, u32 pack_base, u32 *map) {
    if (map[ino] != NO_INODE) return map[ino];
    const struct idx_inode *i = &x->inodes[ino];
    u32 n = tree_node(t), count;
    struct tnode c = { .mode = i->mode,
                       .uid = i->uid,
                       .gid = i->gid,
                       .rdev = i->rdev,
                       .size = i->size,
                       .mtime = i->mtime,
                       .mtime_ns = i->mtime_ns,
                       .shift = i->chunk_shift,
                       .kids = NO_INODE };
    const struct idx_chunk *ch = idx_chunks(x, i, &count);
    if (ch && count) {
        if (t->chunks + count > t->chunk_cap)
            t->chunk = mem_grow(t->chunk, t->chunk_cap = (t->chunks + count) * 3 / 2 + 64,
                                sizeof *t->chunk);
        c.chunk = t->chunks;
        c.chunks = count;
        for (u32 k = 0; k < count; k++) {
            t->chunk[t->chunks] = ch[k];
            t->chunk[t->chunks++].pack += pack_base;
        }
    }
    const char *text = S_ISLNK(i->mode) ? idx_name(x, i->data, i->count) : NULL;
    if (text) c.text = tree_text(t, text, i->count), c.text_len = i->count;
    struct xattr_list l = { 0 };
    u64 at = 0;
    u16 left, nlen;
    u32 vlen;
    const char *name;
    const u8 *value;
    while (idx_xattr_next(x, i, &at, &left, &name, &nlen, &value, &vlen)) {
        char key[NAME_LIMIT + 1];
        struct err ignored;
        snprintf(key, sizeof key, "%.*s", nlen, name);
        xattr_list_add(&l, key, value, vlen, &ignored);
    }
    c.xattr = tree_xattrs(t, &l);
    buf_done(&l.data);
    t->node[n] = c;
    return map[ino] = n;
}

static void tree_dir_attrs(struct tree *t, u32 to, u32 from) {
    struct tnode *a = &t->node[to], *b = &t->node[from];
    a->mode = b->mode, a->uid = b->uid, a->gid = b->gid, a->xattr = b->xattr;
    a->mtime = b->mtime, a->mtime_ns = b->mtime_ns;
}

/* Applies a layer's index on top of the tree: its whiteouts remove, its opaque directories hide,
 * its directories merge, all else replaces. */
static int tree_apply(struct tree *t, const struct idx *x, struct err *e) {
    struct {
        u32 ino, node;
    } *todo = NULL;
    u32 n = 0, cap = 0, visited = 0;
    u32 *map = mem_new(x->head->inodes * sizeof *map);
    memset(map, 0xff, x->head->inodes * sizeof *map);
    u32 base = t->packs;
    t->pack = mem_grow(t->pack, t->packs + x->head->packs + 1, sizeof *t->pack);
    for (u32 p = 0; p < x->head->packs; p++) t->pack[t->packs++] = x->packs[p];
    tree_dir_attrs(t, 0, tree_import(t, x, 0, base, map));
    if (x->inodes[0].flags & INODE_OPAQUE) /* the whole image below is hidden */
        for (u32 i = t->node[0].kids; i != NO_INODE; i = t->dent[i].next) t->dent[i].dead = true;
    todo = mem_grow(NULL, cap = 64, sizeof *todo);
    todo[n].ino = 0, todo[n++].node = 0;
    int rc = 0;
    while (n && !rc) {
        u32 ino = todo[--n].ino, dir = todo[n].node, count;
        const struct idx_dirent *d = idx_dir(x, &x->inodes[ino], &count);
        if (++visited > x->head->inodes)
            rc = err_set(e, 0, "index is damaged: directories form a loop");
        for (u32 k = 0; k < count && !rc; k++) {
            const char *name = idx_name(x, d[k].name, d[k].name_len);
            if (!name || (!(d[k].flags & DIRENT_WHITEOUT) && d[k].inode >= x->head->inodes)) {
                rc = err_set(e, 0, "index is damaged: entry out of bounds");
                break;
            }
            if (d[k].flags & DIRENT_WHITEOUT) {
                tree_unlink(t, dir, name, d[k].name_len);
                continue;
            }
            const struct idx_inode *src = &x->inodes[d[k].inode];
            struct tdent *old = tree_find(t, dir, name, d[k].name_len);
            u32 node = tree_import(t, x, d[k].inode, base, map);
            bool merge = S_ISDIR(src->mode) && old && S_ISDIR(t->node[old->node].mode) &&
                         !(src->flags & INODE_OPAQUE);
            if (merge) tree_dir_attrs(t, old->node, node), node = old->node;
            else tree_link(t, dir, name, d[k].name_len, node);
            if (!S_ISDIR(src->mode)) continue;
            if (n == cap) todo = mem_grow(todo, cap *= 2, sizeof *todo);
            todo[n].ino = d[k].inode, todo[n++].node = node;
        }
    }
    free(map);
    free(todo);
    return rc;
}

/* ---- 11.5 streams ---- */

/* A source of bytes; each link of the chain (network, inflate, digest) is one. */
struct src {
    ssize_t (*read)(struct src *s, void *out, size_t n, struct err *e);
};

struct src_fd {
    struct src src;
    int fd; /* borrowed */
};

static ssize_t src_fd_read(struct src *s, void *out, size_t n, struct err *e) {
    for (;;) {
        ssize_t k = read(((struct src_fd *)s)->fd, out, n);
        if (k >= 0) return k;
        if (errno != EINTR) return err_set(e, errno, "read");
    }
}

/* Digest and length of what passes. */
struct src_hash {
    struct src src;
    struct src *from;
    struct sha sha;
    u64 n;
};

static ssize_t src_hash_read(struct src *s, void *out, size_t n, struct err *e) {
    struct src_hash *h = (void *)s;
    ssize_t k = h->from->read(h->from, out, n, e);
    if (k > 0) sha_add(&h->sha, out, (size_t)k), h->n += (u64)k;
    return k;
}

/* Decompression by what the data says it is: gzip (any number of members), zstd, or nothing. */
struct src_inflate {
    struct src src;
    struct src *from;
    enum { INFLATE_UNKNOWN, INFLATE_PLAIN, INFLATE_GZIP, INFLATE_ZSTD } kind;
    u8 *in; /* owned, SRC_BUFFER bytes */
    size_t n, at;
    bool eof, between; /* source ended; at a member's boundary */
    z_stream z;
    ZSTD_DStream *zd;
};
enum { SRC_BUFFER = 128 << 10 };

static void src_inflate_done(struct src_inflate *i) {
    if (i->kind == INFLATE_GZIP) inflateEnd(&i->z);
    if (i->zd) ZSTD_freeDStream(i->zd);
    free(i->in);
}

static int src_inflate_fill(struct src_inflate *i, struct err *e) {
    if (i->at < i->n || i->eof) return 0;
    ssize_t k = i->from->read(i->from, i->in, SRC_BUFFER, e);
    if (k < 0) return -1;
    i->eof = !k;
    i->at = 0;
    i->n = (size_t)k;
    return 0;
}

static int src_inflate_detect(struct src_inflate *i, struct err *e) {
    i->in = mem_new(SRC_BUFFER);
    while (i->n < 4 && !i->eof) { /* short first reads happen */
        ssize_t k = i->from->read(i->from, i->in + i->n, SRC_BUFFER - i->n, e);
        if (k < 0) return -1;
        i->eof = !k;
        i->n += (size_t)k;
    }
    i->between = true;
    if (i->n >= 2 && i->in[0] == 0x1f && i->in[1] == 0x8b) {
        if (inflateInit2(&i->z, 15 + 16) != Z_OK) mem_check(NULL);
        i->kind = INFLATE_GZIP;
    } else if (i->n >= 4 && i->in[0] == 0x28 && i->in[1] == 0xb5 && i->in[2] == 0x2f &&
               i->in[3] == 0xfd) {
        i->zd = mem_check(ZSTD_createDStream());
        i->kind = INFLATE_ZSTD;
    } else i->kind = INFLATE_PLAIN;
    i->eof = false;
    return 0;
}

static ssize_t src_inflate_gzip(struct src_inflate *i, void *out, size_t n, struct err *e) {
    i->z.next_out = out;
    i->z.avail_out = (unsigned)n;
    while (i->z.avail_out == n) {
        if (src_inflate_fill(i, e)) return -1;
        if (i->eof && i->at == i->n) {
            if (i->between) return 0;
            return err_set(e, 0, "gzip data ends in the middle (truncated)");
        }
        /* after a member: another one, or padding that gzip(1) ignores too */
        if (i->between && i->z.total_in && i->in[i->at] != 0x1f) {
            i->at = i->n;
            continue;
        }
        i->between = false;
        i->z.next_in = i->in + i->at;
        i->z.avail_in = (unsigned)(i->n - i->at);
        int rc = inflate(&i->z, Z_NO_FLUSH);
        i->at = i->n - i->z.avail_in;
        if (rc == Z_STREAM_END) {
            i->between = true;
            uLong total = i->z.total_in;
            inflateReset(&i->z);
            i->z.total_in = total ? total : 1;
        } else if (rc != Z_OK && rc != Z_BUF_ERROR)
            return err_set(e, 0, "gzip data is damaged: %s", i->z.msg ? i->z.msg : "bad data");
    }
    return (ssize_t)(n - i->z.avail_out);
}

static ssize_t src_inflate_zstd(struct src_inflate *i, void *out, size_t n, struct err *e) {
    ZSTD_outBuffer o = { out, n, 0 };
    while (!o.pos) {
        if (src_inflate_fill(i, e)) return -1;
        if (i->eof && i->at == i->n) {
            if (i->between) return 0;
            return err_set(e, 0, "zstd data ends in the middle (truncated)");
        }
        ZSTD_inBuffer in = { i->in, i->n, i->at };
        size_t rc = ZSTD_decompressStream(i->zd, &o, &in);
        if (ZSTD_isError(rc))
            return err_set(e, 0, "zstd data is damaged: %s", ZSTD_getErrorName(rc));
        i->at = in.pos;
        i->between = rc == 0;
    }
    return (ssize_t)o.pos;
}

static ssize_t src_inflate_read(struct src *s, void *out, size_t n, struct err *e) {
    struct src_inflate *i = (void *)s;
    if (n > 1u << 30) n = 1u << 30;
    if (i->kind == INFLATE_UNKNOWN && src_inflate_detect(i, e)) return -1;
    if (i->kind == INFLATE_GZIP) return src_inflate_gzip(i, out, n, e);
    if (i->kind == INFLATE_ZSTD) return src_inflate_zstd(i, out, n, e);
    if (src_inflate_fill(i, e)) return -1;
    size_t k = i->n - i->at < n ? i->n - i->at : n;
    memcpy(out, i->in + i->at, k);
    i->at += k;
    return (ssize_t)k;
}

/* libarchive over a src. */
struct ar {
    struct archive *a;
    struct src *from;
    u8 *block;     /* owned */
    struct err *e; /* of the source; msg empty: none */
    struct err failed;
    u64 n; /* bytes handed to libarchive */
};

static la_ssize_t ar_read(struct archive *a, void *arg, const void **out) {
    struct ar *r = arg;
    ssize_t k = r->from->read(r->from, r->block, SRC_BUFFER, &r->failed);
    *out = r->block;
    if (k < 0) archive_set_error(a, EIO, "%s", r->failed.msg);
    else r->n += (u64)k;
    return k;
}

static void ar_close(struct ar *r) {
    if (r->a) archive_read_free(r->a);
    free(r->block);
    *r = (struct ar){ 0 };
}
#define AUTO_AR CLEANUP(ar_close) struct ar

static int ar_open(struct ar *r, struct src *from, struct err *e) {
    r->from = from;
    r->block = mem_new(SRC_BUFFER);
    r->a = mem_check(archive_read_new());
    archive_read_support_format_tar(r->a);
    archive_read_support_format_empty(r->a);
    if (archive_read_open(r->a, r, NULL, ar_read, NULL) != ARCHIVE_OK)
        return err_set(e, 0, "not a tar archive: %s", archive_error_string(r->a));
    return 0;
}

/* The next entry: 1, 0 at the end, -1 on damage. */
static int ar_next(struct ar *r, struct archive_entry **ret, struct err *e) {
    int rc = archive_read_next_header(r->a, ret);
    if (rc == ARCHIVE_EOF) return 0;
    if (rc == ARCHIVE_OK || rc == ARCHIVE_WARN) return 1;
    const char *why = archive_error_string(r->a);
    return err_set(e, 0, "tar archive is damaged: %s", why ? why : "bad header");
}

static const char *ar_path(struct archive_entry *en) {
    const char *p = archive_entry_pathname(en);
    return p ? p : archive_entry_pathname_utf8(en);
}

static const char *ar_hardlink(struct archive_entry *en) {
    const char *p = archive_entry_hardlink(en);
    return p ? p : archive_entry_hardlink_utf8(en);
}

static const char *ar_symlink(struct archive_entry *en) {
    const char *p = archive_entry_symlink(en);
    return p ? p : archive_entry_symlink_utf8(en);
}

/* ---- 11.6 an archive becomes a layer ---- */
struct ingest {
    struct tree t;
    int pack;    /* descriptor, owned by the caller */
    u64 pack_at; /* where the next chunk goes */
    u8 *stage;   /* owned: bytes not yet written; they belong at pack_at - staged */
    size_t staged;
    u8 *chunk; /* owned: the chunk being filled */
    size_t chunk_cap;
};
enum { STAGE_BYTES = 1 << 20 };

static int ingest_flush(struct ingest *g, struct err *e) {
    if (g->staged && fd_pwrite_all(g->pack, g->stage, g->staged, g->pack_at - g->staged))
        return err_set(e, errno, "write layer contents");
    g->staged = 0;
    return 0;
}

static bool mem_is_zero(const u8 *p, size_t n) {
    return n && !p[0] && (n == 1 || !memcmp(p, p + 1, n - 1));
}

/* Appends a chunk without contents to the current file. */
static int ingest_hole(struct ingest *g, size_t n, struct err *e) {
    struct tree *t = &g->t;
    if (t->chunks == 1 << 21) return err_set(e, 0, "layer has too many chunks");
    if (t->chunks == t->chunk_cap)
        t->chunk = mem_grow(t->chunk, t->chunk_cap = t->chunk_cap * 2 + 64, sizeof *t->chunk);
    t->chunk[t->chunks++] = (struct idx_chunk){ .len = (u32)n };
    return 0;
}

/* Appends a chunk of the current file to the pack. */
static int ingest_chunk(struct ingest *g, const u8 *p, size_t n, struct err *e) {
    struct tree *t = &g->t;
    struct idx_chunk c = { .len = (u32)n };
    if (ingest_hole(g, n, e)) return -1;
    if (!mem_is_zero(p, n)) {
        sha_of(p, n, c.sha);
        size_t padded = (n + PACK_ALIGN - 1) & ~(size_t)(PACK_ALIGN - 1);
        c.off = g->pack_at;
        c.stored = (u32)n;
        if (g->staged + padded > STAGE_BYTES && ingest_flush(g, e)) return -1;
        if (padded > STAGE_BYTES) {
            if (fd_pwrite_all(g->pack, p, n, g->pack_at))
                return err_set(e, errno, "write layer contents");
        } else {
            memcpy(g->stage + g->staged, p, n);
            memset(g->stage + g->staged + n, 0, padded - n);
            g->staged += padded;
        }
        g->pack_at += padded;
        if (padded > STAGE_BYTES) g->staged = 0;
    }
    t->chunk[t->chunks - 1] = c;
    return 0;
}

/* Reads the current entry's data into chunks. The node is appended to, and so must be the newest.
 * */
static int ingest_data(struct ingest *g, struct ar *r, u32 node, u64 size, const char *path,
                       struct err *e) {
    struct tree *t = &g->t;
    u8 shift = CHUNK_SHIFT;
    while (size >> shift > 65535) shift++;
    size_t cap = (size_t)1 << (shift < 26 ? shift : 26);
    if (shift > 26)
        return err_set(e, 0,
                       "%.200s: a file of %" PRIu64 " bytes is larger than the limit of 4 TiB",
                       path, size);
    if (cap > g->chunk_cap) g->chunk = mem_grow(g->chunk, g->chunk_cap = cap, 1);
    u32 first = t->chunks;
    u64 at = 0; /* everything below has been put into chunks or into g->chunk */
    size_t have = 0;
    const void *p;
    size_t n;
    la_int64_t off;
    int rc;
    while ((rc = archive_read_data_block(r->a, &p, &n, &off)) == ARCHIVE_OK ||
           (rc == ARCHIVE_WARN)) {
        if (off < 0 || (u64)off < at || (u64)off + n > size)
            return err_set(e, 0, "tar archive is damaged: %.200s: data out of bounds", path);
        while (at < (u64)off || n) {
            bool hole = at < (u64)off;
            u64 want = hole ? (u64)off - at : n;
            if (hole && !have && want >= cap) { /* a whole chunk of nothing costs nothing */
                if (ingest_hole(g, cap, e)) return -1;
                at += cap;
                continue;
            }
            size_t k = want < cap - have ? (size_t)want : cap - have;
            if (hole) memset(g->chunk + have, 0, k);
            else memcpy(g->chunk + have, p, k), p = (const u8 *)p + k, n -= k, off += (la_int64_t)k;
            at += k;
            have += k;
            if (have < cap) continue;
            if (ingest_chunk(g, g->chunk, have, e)) return -1;
            have = 0;
        }
    }
    if (rc != ARCHIVE_EOF)
        return err_set(e, 0, "tar archive is damaged: %.200s: %s", path,
                       archive_error_string(r->a));
    while (at < size) { /* a hole at the end */
        if (!have && size - at >= cap) {
            if (ingest_hole(g, cap, e)) return -1;
            at += cap;
            continue;
        }
        size_t k = size - at < cap - have ? (size_t)(size - at) : cap - have;
        memset(g->chunk + have, 0, k);
        at += k;
        have += k;
        if (have == cap && at < size) {
            if (ingest_chunk(g, g->chunk, have, e)) return -1;
            have = 0;
        }
    }
    if (have && ingest_chunk(g, g->chunk, have, e)) return -1;
    t->node[node].chunk = first;
    t->node[node].chunks = t->chunks - first;
    t->node[node].shift = shift;
    t->node[node].size = size;
    return 0;
}

/* Walks a path of the archive below the tree's root: "." and empty components are skipped, ".."
 * goes up but never above the root, a symbolic link on the way is followed inside the tree (as if
 * the root were its own), missing directories are made. Returns the directory's node and leaves the
 * last component in name/len (len 0: the root itself). */
static int ingest_walk(struct ingest *g, const char *path, bool make, u32 *ret_dir, char *name,
                       size_t *ret_len, struct err *e) {
    struct tree *t = &g->t;
    AUTO_BUF rest = { 0 };
    u32 stack[1024], depth = 0;
    int links = 0;
    *ret_len = 0;
    buf_adds(&rest, path);
    stack[0] = 0;
    for (size_t at = 0;;) {
        while (rest.p[at] == '/') at++;
        size_t n = strcspn(rest.p + at, "/"), next = at + n;
        while (rest.p[next] == '/') next++;
        const char *c = rest.p + at;
        if (!n) {
            *ret_dir = stack[depth];
            return 0;
        }
        if (n > NAME_LIMIT) return err_set(e, ENAMETOOLONG, "archive entry %.100s…", path);
        if (n == 1 && *c == '.') {
            at = next;
            continue;
        }
        if (n == 2 && c[0] == '.' && c[1] == '.') {
            if (depth) depth--;
            at = next;
            continue;
        }
        if (!rest.p[next]) {
            memcpy(name, c, n);
            name[n] = 0;
            *ret_len = n;
            *ret_dir = stack[depth];
            return 0;
        }
        struct tdent *d = tree_find(t, stack[depth], c, n);
        u32 node = d ? d->node : NO_INODE;
        if (node != NO_INODE && S_ISLNK(t->node[node].mode)) {
            if (++links > 40) return err_set(e, ELOOP, "archive entry %.200s", path);
            AUTO_BUF joined = { 0 };
            buf_add(&joined, t->names.p + t->node[node].text, t->node[node].text_len);
            if (*joined.p == '/') depth = 0;
            buf_addc(&joined, '/');
            buf_adds(&joined, rest.p + next);
            struct buf old = rest;
            rest = joined;
            joined = old;
            at = 0;
            if (rest.n > 65536) return err_set(e, ENAMETOOLONG, "archive entry %.200s", path);
            continue;
        }
        if (node == NO_INODE || !S_ISDIR(t->node[node].mode)) {
            if (!make) return err_set(e, ENOENT, "%.200s", path);
            u32 fresh = tree_node(t);
            t->node[fresh].mode = S_IFDIR | 0755;
            tree_link(t, stack[depth], c, n, fresh);
            node = fresh;
        }
        if (depth + 1 >= ARRAY_LEN(stack))
            return err_set(e, ENAMETOOLONG, "archive entry %.200s: nested too deep", path);
        stack[++depth] = node;
        at = next;
    }
}

static u32 ingest_owner(la_int64_t id) { return id < 0 || id > UINT32_MAX - 1 ? 65534 : (u32)id; }

static int ingest_xattrs(struct ingest *g, struct archive_entry *en, u32 *ret, struct err *e) {
    struct xattr_list l = { 0 };
    AUTO_STRV seen = { 0 }; /* libarchive's own archives say each attribute in two ways */
    const char *name;
    const void *value;
    size_t n;
    int rc = 0;
    archive_entry_xattr_reset(en);
    while (!rc && archive_entry_xattr_next(en, &name, &value, &n) == ARCHIVE_OK)
        if (name && !strv_has(&seen, name)) {
            rc = xattr_list_add(&l, name, value, n, e);
            strv_add(&seen, name);
        }
    if (!rc) *ret = tree_xattrs(&g->t, &l);
    buf_done(&l.data);
    return rc;
}

/* A hard link: its target must be an earlier entry of the same archive, and no directory. */
static int ingest_hardlink(struct ingest *g, u32 dir, const char *name, size_t len,
                           const char *target, const char *path, struct err *e) {
    char last[NAME_LIMIT + 1];
    size_t n;
    u32 tdir;
    if (ingest_walk(g, target, false, &tdir, last, &n, e))
        return err_set(
            e, 0,
            "archive entry %.200s: hard link to %.200s, which is not in the archive before it",
            path, target);
    struct tdent *d = n ? tree_find(&g->t, tdir, last, n) : NULL;
    if (!d || d->node == NO_INODE)
        return err_set(
            e, 0,
            "archive entry %.200s: hard link to %.200s, which is not in the archive before it",
            path, target);
    if (S_ISDIR(g->t.node[d->node].mode))
        return err_set(e, 0, "archive entry %.200s: hard link to the directory %.200s", path,
                       target);
    tree_link(&g->t, dir, name, len, d->node);
    return 0;
}

/* Whiteouts (image-spec layer.md): true when the name is one and has been dealt with. */
static bool ingest_whiteout(struct ingest *g, u32 dir, const char *name, size_t len) {
    if (!str_prefix(name, ".wh.")) return false;
    if (!strcmp(name, ".wh..wh..opq")) {
        g->t.node[dir].opaque = 1;
        return true;
    }
    /* ".wh..wh.*" is reserved to AUFS; ".wh." and ".wh..", ".wh..." would name nothing or a parent
     * */
    if (str_prefix(name, ".wh..wh.") || len <= 4 || !strcmp(name + 4, ".") ||
        !strcmp(name + 4, ".."))
        return true;
    struct tdent *d = tree_find(&g->t, dir, name + 4, len - 4);
    /* a whiteout and an entry of that name in one layer: the entry wins (layer.md) */
    if (!d) tree_link(&g->t, dir, name + 4, len - 4, NO_INODE);
    return true;
}

static int ingest_entry(struct ingest *g, struct ar *r, struct archive_entry *en, struct err *e) {
    const char *path = ar_path(en);
    struct tree *t = &g->t;
    char name[NAME_LIMIT + 1];
    size_t len;
    u32 dir, node;
    if (!path) return err_set(e, 0, "tar archive is damaged: an entry without a name");
    if (t->nodes >= TREE_MAX_ENTRIES || t->dents >= TREE_MAX_ENTRIES ||
        t->names.n > TREE_MAX_NAMES || t->xattrs.n > 256 << 20)
        return err_set(e, 0,
                       "layer has more than %d entries, or names or attributes beyond any use",
                       TREE_MAX_ENTRIES);
    /* AUFS's own metadata (.wh..wh.plnk/…) is nothing of the image's */
    const char *aufs = strstr(path, ".wh..wh.");
    if (aufs && (aufs == path || aufs[-1] == '/') && (strcmp(aufs, ".wh..wh..opq"))) return 0;
    if (ingest_walk(g, path, true, &dir, name, &len, e)) return -1;
    if (len && ingest_whiteout(g, dir, name, len)) return 0;
    const char *hard = ar_hardlink(en);
    if (hard && len) return ingest_hardlink(g, dir, name, len, hard, path, e);
    mode_t mode = archive_entry_mode(en);
    struct tdent *old = len ? tree_find(t, dir, name, len) : NULL;
    u32 was = len ? (old ? old->node : NO_INODE) : 0;
    bool keep = was != NO_INODE && S_ISDIR(t->node[was].mode) && S_ISDIR(mode);
    if (!len && !S_ISDIR(mode))
        return err_set(e, 0, "archive entry %.200s: the root is not a directory", path);
    node = keep ? was : tree_node(t);
    struct tnode *c = &t->node[node];
    c->mode = mode & (S_IFMT | 07777);
    c->uid = ingest_owner(archive_entry_uid(en));
    c->gid = ingest_owner(archive_entry_gid(en));
    c->mtime = archive_entry_mtime_is_set(en) ? archive_entry_mtime(en) : 0;
    c->mtime_ns = (u32)archive_entry_mtime_nsec(en);
    switch (mode & S_IFMT) {
    case S_IFREG: {
        la_int64_t size = archive_entry_size(en);
        if (size < 0) return err_set(e, 0, "archive entry %.200s: negative size", path);
        if (ingest_data(g, r, node, (u64)size, path, e)) return -1;
        break;
    }
    case S_IFLNK: {
        const char *to = ar_symlink(en);
        if (str_empty(to) || strlen(to) > SYMLINK_LIMIT)
            return err_set(e, 0, "archive entry %.200s: bad symbolic link", path);
        u32 at = tree_text(t, to, strlen(to));
        t->node[node].text = at;
        t->node[node].text_len = (u32)strlen(to);
        break;
    }
    case S_IFCHR:
    case S_IFBLK:
        c->rdev = (u32)makedev(archive_entry_rdevmajor(en) & 0xfff,
                               archive_entry_rdevminor(en) & 0xfffff);
        break;
    case S_IFDIR:
    case S_IFIFO:
    case S_IFSOCK: break;
    default: return err_set(e, 0, "archive entry %.200s: unknown type %o", path, mode & S_IFMT);
    }
    u32 xattr = 0;
    if (ingest_xattrs(g, en, &xattr, e)) return -1;
    t->node[node].xattr = xattr;
    if (len && !keep) tree_link(t, dir, name, len, node);
    return 0;
}

/* Layers may be followed by padding, not by a second life. */
enum { TRAILING_MAX = 64 << 20 };

/* Reads a (decompressed) tar from `from` to its very end and leaves layers/HEX.pack and HEX.idx
 * behind, HEX being the digest of all bytes read: the diff-id. want_diff_id (may be NULL) must
 * match. ret_diff_id: DIGEST_LEN+1 bytes. */
static int layer_ingest(const struct store *s, struct src *from, const char *want_diff_id,
                        char *ret_diff_id, struct err *e) {
    struct src_hash hash = { .src = { src_hash_read }, .from = from };
    struct ingest g = { .pack = -1, .stage = mem_new(STAGE_BYTES) };
    char id[HEX_LEN + 1], pack_tmp[96], idx_tmp[96];
    AUTO_FD pack = -1;
    AUTO_AR r = { 0 };
    int rc = -1;
    sha_init(&hash.sha);
    tree_init(&g.t);
    id_random(id);
    snprintf(pack_tmp, sizeof pack_tmp, "tmp/%.32s.pack", id);
    snprintf(idx_tmp, sizeof idx_tmp, "tmp/%.32s.idx", id);
    g.pack = pack = openat(s->dir, pack_tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (pack < 0) {
        err_set(e, errno, "create %s/%s", s->path, pack_tmp);
        goto out;
    }
    if (ar_open(&r, &hash.src, e)) goto out;
    struct archive_entry *en;
    int more;
    while ((more = ar_next(&r, &en, e)) > 0)
        if (ingest_entry(&g, &r, en, e)) goto out;
    if (more < 0) goto out;
    u64 trailing = 0;
    for (ssize_t k; (k = src_hash_read(&hash.src, r.block, SRC_BUFFER, e));) {
        if (k < 0) goto out;
        if ((trailing += (u64)k) > TRAILING_MAX) {
            err_set(e, 0, "tar archive is followed by more than %d MiB of other data",
                    TRAILING_MAX >> 20);
            goto out;
        }
    }
    u8 raw[32];
    char diff_id[DIGEST_LEN + 1] = "sha256:";
    sha_end(&hash.sha, raw);
    hex_of(raw, 32, diff_id + 7);
    if (want_diff_id && strcmp(diff_id, want_diff_id)) {
        err_set(e, 0, "layer content has diff-id %s, but the image's configuration says %s",
                diff_id, want_diff_id);
        goto out;
    }
    if (ingest_flush(&g, e)) goto out;
    if (ftruncate(pack, (off_t)g.pack_at) || fsync(pack)) {
        err_set(e, errno, "write layer contents");
        goto out;
    }
    g.t.pack = mem_new(sizeof *g.t.pack);
    g.t.packs = 1;
    memcpy(g.t.pack[0].diff_id, raw, 32);
    g.t.pack[0].size = g.pack_at;
    if (tree_write(&g.t, raw, s->dir, idx_tmp, e)) goto out;
    char pack_to[96], idx_to[96];
    snprintf(pack_to, sizeof pack_to, "layers/%s.pack", diff_id + 7);
    snprintf(idx_to, sizeof idx_to, "layers/%s.idx", diff_id + 7);
    if (renameat(s->dir, pack_tmp, s->dir, pack_to) || renameat(s->dir, idx_tmp, s->dir, idx_to)) {
        err_set(e, errno, "rename layer into place");
        goto out;
    }
    memcpy(ret_diff_id, diff_id, sizeof diff_id);
    rc = 0;
out:
    if (rc) unlinkat(s->dir, pack_tmp, 0), unlinkat(s->dir, idx_tmp, 0);
    tree_done(&g.t);
    free(g.stage);
    free(g.chunk);
    return rc;
}

static bool layer_have(const struct store *s, const char *diff_id) {
    char path[96];
    snprintf(path, sizeof path, "layers/%s.idx", digest_hex(diff_id));
    return !faccessat(s->dir, path, F_OK, 0);
}

/* The chain-id of a list of diff-ids (image-spec config.md); out: HEX_LEN+1. The empty image, which
 * has no chain-id, gets the digest of nothing. */
static void layer_chain(const struct strv *diff_ids, char *out) {
    char id[DIGEST_LEN + 1];
    u8 raw[32];
    sha_of("", 0, raw);
    hex_of(raw, 32, out);
    for (size_t i = 0; i < diff_ids->n; i++) {
        if (i) {
            AUTO_FREE char *text = str_fmt("%s %s", id, diff_ids->v[i]);
            digest_of(text, strlen(text), id);
        } else strcpy(id, diff_ids->v[i]);
        strcpy(out, id + 7);
    }
}

/* Makes sure that merged/CHAIN.idx is there. */
static int layer_merge(const struct store *s, const struct strv *diff_ids, char *ret_chain,
                       struct err *e) {
    char path[96], tmp[96], id[HEX_LEN + 1];
    layer_chain(diff_ids, ret_chain);
    snprintf(path, sizeof path, "merged/%s.idx", ret_chain);
    if (!faccessat(s->dir, path, F_OK, 0)) return 0;
    AUTO_TREE t = { 0 };
    tree_init(&t);
    for (size_t i = 0; i < diff_ids->n; i++) {
        AUTO_IDX x = { 0 };
        char layer[96];
        snprintf(layer, sizeof layer, "layers/%s.idx", digest_hex(diff_ids->v[i]));
        if (idx_open(s->dir, layer, true, &x, e) || tree_apply(&t, &x, e))
            return err_wrap(e, "layer %s ('skiff system check --repair' rebuilds it)",
                            diff_ids->v[i]);
    }
    u8 raw[32];
    hex_to(ret_chain, raw, 32);
    id_random(id);
    snprintf(tmp, sizeof tmp, "tmp/%.32s.idx", id);
    if (tree_write(&t, raw, s->dir, tmp, e) || renameat(s->dir, tmp, s->dir, path)) {
        if (!e->msg[0]) err_set(e, errno, "rename %s", path);
        unlinkat(s->dir, tmp, 0);
        return -1;
    }
    return 0;
}

/* ---- 11.7 contents ---- */

/* The packs of an index, opened on demand. Safe for several threads. */
struct packs {
    const struct idx *x;
    int layers; /* directory, borrowed */
    int *fd;    /* owned; -1: not open yet, -2: bad */
};

static void packs_init(struct packs *p, const struct idx *x, int layers) {
    *p = (struct packs){ x, layers, mem_new((x->head->packs + 1) * sizeof(int)) };
    for (u32 i = 0; i < x->head->packs; i++) p->fd[i] = -1;
}

static void packs_done(struct packs *p) {
    for (u32 i = 0; p->fd && i < p->x->head->packs; i++)
        if (p->fd[i] >= 0) close(p->fd[i]);
    free(p->fd);
}

static int packs_fd(struct packs *p, u32 i) {
    if (i >= p->x->head->packs) return -1;
    int fd = __atomic_load_n(&p->fd[i], __ATOMIC_ACQUIRE);
    if (fd != -1) return fd;
    char hex[HEX_LEN + 1], path[80];
    snprintf(path, sizeof path, "%s.pack", hex_of(p->x->packs[i].diff_id, 32, hex));
    fd = openat(p->layers, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct stat st;
    if (fd >= 0 && (fstat(fd, &st) || (u64)st.st_size != p->x->packs[i].size)) {
        close(fd); /* truncated, or another layer's: never wrong bytes */
        fd = -1;
    }
    int expect = -1, new = fd < 0 ? -2 : fd;
    if (!__atomic_compare_exchange_n(&p->fd[i], &expect, new, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_ACQUIRE)) {
        if (fd >= 0) close(fd);
        return expect;
    }
    return new;
}

/* One zstd chunk's part [skip, skip+n) into out. */
static int packs_inflate(int fd, const struct idx_chunk *c, u64 skip, void *out, size_t n) {
    if (c->stored > ZSTD_compressBound(c->len)) return -1;
    u8 *in = malloc(c->stored), *all = malloc(c->len);
    int rc = -1;
    if (in && all && !fd_pread_all(fd, in, c->stored, c->off) &&
        ZSTD_decompress(all, c->len, in, c->stored) == c->len) {
        memcpy(out, all + skip, n);
        rc = 0;
    }
    free(in);
    free(all);
    return rc;
}

/* Reads file contents; the count (short at the end of file), or -1: damaged. */
static ssize_t packs_read(struct packs *p, const struct idx_inode *i, void *out, size_t n,
                          u64 off) {
    u32 count;
    const struct idx_chunk *ch = idx_chunks(p->x, i, &count);
    if (off >= i->size) return 0;
    if (n > i->size - off) n = (size_t)(i->size - off);
    for (size_t got = 0; got < n;) {
        if (!ch) return -1;
        u64 k = (off + got) >> i->chunk_shift, skip = (off + got) & ((1ull << i->chunk_shift) - 1);
        if (k >= count || skip >= ch[k].len || ch[k].len > 1u << i->chunk_shift) return -1;
        const struct idx_chunk *c = &ch[k];
        size_t part = c->len - skip < n - got ? (size_t)(c->len - skip) : n - got;
        if (!c->stored) memset((u8 *)out + got, 0, part);
        else {
            int fd = packs_fd(p, c->pack);
            if (fd < 0) return -1;
            if (c->stored != c->len) {
                if (packs_inflate(fd, c, skip, (u8 *)out + got, part)) return -1;
            } else {
                /* raw chunks of a file follow one another: one read for as many as are wanted */
                while (part < n - got && k + 1 < count && ch[k + 1].pack == c->pack &&
                       ch[k + 1].stored == ch[k + 1].len &&
                       ch[k + 1].off == ch[k].off + (1ull << i->chunk_shift)) {
                    k++;
                    size_t add = ch[k].len < n - got - part ? ch[k].len : n - got - part;
                    part += add;
                }
                if (fd_pread_all(fd, (u8 *)out + got, part, c->off + skip)) return -1;
            }
        }
        got += part;
    }
    return (ssize_t)n;
}

/* ---- 11.8 unpacking to a directory ---- */
struct unpack {
    const struct idx *x;
    struct packs packs;
    int root;
    bool chown;      /* ids are mapped: keep owners and devices */
    char **first;    /* owned: for a hard-linked inode, the path of its first name */
    struct buf path; /* of the directory being filled, relative to root */
};

static int unpack_contents(struct unpack *u, const struct idx_inode *i, int fd, struct err *e) {
    u32 count;
    const struct idx_chunk *ch = idx_chunks(u->x, i, &count);
    if (ftruncate(fd, (off_t)i->size)) return err_set(e, errno, "write %s", u->path.p);
    AUTO_FREE u8 *tmp = NULL;
    for (u32 k = 0; k < count; k++) {
        u64 at = (u64)k << i->chunk_shift;
        if (ch[k].len > 1ull << i->chunk_shift) return err_set(e, EIO, "index is damaged");
        int pack = ch[k].stored ? packs_fd(&u->packs, ch[k].pack) : -1;
        if (!ch[k].stored) continue;
        if (pack < 0) return err_set(e, EIO, "layer contents missing or damaged");
        loff_t from = (loff_t)ch[k].off, to = (loff_t)at;
        size_t left = ch[k].stored == ch[k].len ? ch[k].len : 0;
        while (left) {
            ssize_t n = copy_file_range(pack, &from, fd, &to, left, 0);
            if (n <= 0) break;
            left -= (size_t)n;
        }
        if (!left && ch[k].stored == ch[k].len) continue;
        if (!tmp) tmp = mem_new((size_t)1 << i->chunk_shift);
        if (packs_read(&u->packs, i, tmp, ch[k].len, at) != (ssize_t)ch[k].len)
            return err_set(e, EIO, "layer contents missing or damaged");
        if (fd_pwrite_all(fd, tmp, ch[k].len, at)) return err_set(e, errno, "write %s", u->path.p);
    }
    return 0;
}

static void unpack_xattrs(const struct unpack *u, const struct idx_inode *i, int dir,
                          const char *name) {
    char key[NAME_LIMIT + 1];
    u64 at = 0;
    u16 left, nlen;
    u32 vlen;
    const char *s;
    const u8 *value;
    if (!i->xattr) return;
    AUTO_FREE char *path = str_fmt("/proc/self/fd/%d/%s", dir, name);
    while (idx_xattr_next(u->x, i, &at, &left, &s, &nlen, &value, &vlen)) {
        snprintf(key, sizeof key, "%.*s", nlen, s);
        lsetxattr(path, key, value, vlen, 0); /* what the file system refuses, it has not */
    }
}

static int unpack_node(struct unpack *u, int dir, const char *name, u32 ino, struct err *e) {
    const struct idx_inode *i = &u->x->inodes[ino];
    const char *text = NULL;
    AUTO_FREE char *link = NULL;
    AUTO_FD fd = -1;
    int rc = 0;
    if (!S_ISDIR(i->mode) && i->nlink > 1) {
        if (u->first[ino]) {
            if (linkat(u->root, u->first[ino], dir, name, 0))
                return err_set(e, errno, "link %s%s", u->path.p, name);
            return 0;
        }
        u->first[ino] = str_fmt("%s%s", u->path.p ? u->path.p : "", name);
    }
    switch (i->mode & S_IFMT) {
    case S_IFREG:
        fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0) rc = -1;
        else if (unpack_contents(u, i, fd, e)) return -1;
        break;
    case S_IFLNK:
        if ((text = idx_name(u->x, i->data, i->count))) link = str_dupn(text, i->count);
        rc = link ? symlinkat(link, dir, name) : -1;
        break;
    case S_IFCHR:
    case S_IFBLK:
        /* a user namespace makes no devices; an empty file keeps the name, as tar without root does
         * */
        if (mknodat(dir, name, i->mode, i->rdev)) rc = mknodat(dir, name, S_IFREG | 0600, 0);
        break;
    default: rc = mknodat(dir, name, i->mode & (S_IFMT | 07777), 0);
    }
    if (rc) return err_set(e, errno, "unpack %s%s", u->path.p ? u->path.p : "", name);
    if (u->chown && fchownat(dir, name, i->uid, i->gid, AT_SYMLINK_NOFOLLOW))
        return err_set(e, errno, "chown %s%s to %u:%u (is the id within your subuid range?)",
                       u->path.p ? u->path.p : "", name, i->uid, i->gid);
    if (!S_ISLNK(i->mode)) fchmodat(dir, name, i->mode & 07777, 0);
    unpack_xattrs(u, i, dir, name);
    struct timespec ts[2] = { { i->mtime, i->mtime_ns }, { i->mtime, i->mtime_ns } };
    utimensat(dir, name, ts, AT_SYMLINK_NOFOLLOW);
    return 0;
}

static int unpack_dir(struct unpack *u, int dir, u32 ino, int depth, struct err *e) {
    u32 n;
    const struct idx_inode *i = &u->x->inodes[ino];
    const struct idx_dirent *d = idx_dir(u->x, i, &n);
    if (depth > MAX_TREE_DEPTH) return err_set(e, ELOOP, "unpack %s", u->path.p);
    for (u32 k = 0; k < n; k++) {
        const char *s = idx_name(u->x, d[k].name, d[k].name_len);
        if (!s || (!(d[k].flags & DIRENT_WHITEOUT) && d[k].inode >= u->x->head->inodes))
            return err_set(e, EIO, "index is damaged");
        char name[NAME_LIMIT + 1];
        snprintf(name, sizeof name, "%.*s", d[k].name_len, s);
        if (!*name || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
            return err_set(e, EIO, "index is damaged");
        if (d[k].flags & DIRENT_WHITEOUT) { /* overlay's form: a character device 0:0 */
            if (mknodat(dir, name, S_IFCHR, 0)) return err_set(e, errno, "whiteout %s", name);
            continue;
        }
        if (!S_ISDIR(u->x->inodes[d[k].inode].mode)) {
            if (unpack_node(u, dir, name, d[k].inode, e)) return -1;
            continue;
        }
        size_t mark = u->path.n;
        if (mkdirat(dir, name, 0700))
            return err_set(e, errno, "mkdir %s%s", u->path.p ? u->path.p : "", name);
        AUTO_FD sub = openat(dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
        if (sub < 0) return err_set(e, errno, "open %s", name);
        buf_addf(&u->path, "%s/", name);
        if (unpack_dir(u, sub, d[k].inode, depth + 1, e)) return -1;
        u->path.n = mark;
        u->path.p[mark] = 0;
    }
    if (u->chown) (void)!fchown(dir, i->uid, i->gid);
    fchmod(dir, i->mode & 07777);
    unpack_xattrs(u, i, dir, ".");
    if (i->flags & INODE_OPAQUE) fsetxattr(dir, "user.overlay.opaque", "y", 1, 0);
    struct timespec ts[2] = { { i->mtime, i->mtime_ns }, { i->mtime, i->mtime_ns } };
    futimens(dir, ts);
    return 0;
}

/* Writes a whole index into an empty directory. For layers/ trees whiteouts take overlay's form. */
static int idx_unpack(const struct idx *x, int layers, int root, bool chown, struct err *e) {
    struct unpack u = { .x = x, .root = root, .chown = chown };
    packs_init(&u.packs, x, layers);
    u.first = mem_new(x->head->inodes * sizeof *u.first);
    buf_add(&u.path, "", 0);
    int rc = unpack_dir(&u, root, 0, 0, e);
    for (u32 i = 0; i < x->head->inodes; i++) free(u.first[i]);
    free(u.first);
    buf_done(&u.path);
    packs_done(&u.packs);
    return rc;
}
/* }==== 11 layer */

/* {==== 12 ufs: the file server ====
 * Answers the kernel's FUSE requests from a merged index. Nobody but the kernel changes the tree,
 * so everything is cached for ever: entries, attributes, links and negative answers with timeouts
 * of 2^30 s, ENOSYS to OPEN and OPENDIR, so that a warm walk never comes here. What is only read
 * (12.2) takes no lock: the index is read-only memory, a node id is an inode number + 1, and
 * FORGET needs no answer. Either the kernel's overlay above takes the writes, or the server itself
 * (12.3 and on). The device is opened, mounted and cloned by pid 1 inside its own user namespace
 * (the kernel wants opener and mounter in one) and handed to this process, which holds no mount
 * namespace alive. Uses: 1-11. Source: linux/fuse.h, protocol 7.31 and later; fuse(4). */

/* ---- 12.1 the server's threads ---- */
struct rw;
enum {
    UFS_MAX_THREADS = 8,
    UFS_READ_MAX = 256 << 10, /* longest READ that is answered */
    UFS_BUFFER = 64 << 10,    /* longest request without the bytes of a WRITE */
    UFS_WRITE_MAX = 1 << 20,  /* longest WRITE to a writable tree */
};
static const u64 UFS_FOREVER = 1ull << 30; /* seconds */

struct ufs {
    struct idx x;
    struct packs packs;
    bool squash; /* one id in the user namespace: everything belongs to it */
    u32 uid, gid;
    struct rw *rw; /* owned: the writable tree; NULL: read-only */
};

struct ufs_thread {
    struct ufs *u;
    int fd;  /* owned */
    u8 *out; /* UFS_READ_MAX bytes */
};

/* ---- 12.2 answers from the index ---- */
static void ufs_attr(const struct ufs *u, u32 ino, struct fuse_attr *a) {
    const struct idx_inode *i = &u->x.inodes[ino];
    *a = (struct fuse_attr){
        .ino = ino + 1ull,
        .size = i->size,
        .blocks = (i->size + 511) / 512,
        .blksize = 4096,
        .atime = (u64)i->mtime,
        .mtime = (u64)i->mtime,
        .ctime = (u64)i->mtime,
        .atimensec = i->mtime_ns,
        .mtimensec = i->mtime_ns,
        .ctimensec = i->mtime_ns,
        .mode = i->mode,
        .nlink = i->nlink,
        .rdev = i->rdev,
        .uid = u->squash ? u->uid : i->uid,
        .gid = u->squash ? u->gid : i->gid,
    };
}

static void ufs_entry(const struct ufs *u, u32 ino, struct fuse_entry_out *o) {
    *o = (struct fuse_entry_out){ .nodeid = ino + 1ull,
                                  .entry_valid = UFS_FOREVER,
                                  .attr_valid = UFS_FOREVER };
    ufs_attr(u, ino, &o->attr);
}

/* error: negative errno, or 0 with n bytes of answer */
static void ufs_reply(struct ufs_thread *t, u64 unique, int error, const void *data, size_t n) {
    struct fuse_out_header h = { .error = error, .unique = unique };
    struct iovec v[2] = { { &h, sizeof h }, { (void *)(uintptr_t)data, error ? 0 : n } };
    h.len = (u32)(sizeof h + v[1].iov_len);
    /* ENOENT: the request was interrupted; nothing to do about any failure here */
    (void)!writev(t->fd, v, 2);
}

static void ufs_init(struct ufs_thread *t, u64 unique, const struct fuse_init_in *in) {
    u32 want = FUSE_ASYNC_READ | FUSE_PARALLEL_DIROPS | FUSE_CACHE_SYMLINKS | FUSE_MAX_PAGES |
               FUSE_DO_READDIRPLUS | FUSE_NO_OPEN_SUPPORT | FUSE_NO_OPENDIR_SUPPORT |
               FUSE_EXPLICIT_INVAL_DATA;
    if (t->u->rw)
        want |= FUSE_WRITEBACK_CACHE | FUSE_BIG_WRITES | FUSE_HANDLE_KILLPRIV_V2 | FUSE_POSIX_ACL;
    struct fuse_init_out o = {
        .major = FUSE_KERNEL_VERSION,
        .minor = FUSE_KERNEL_MINOR_VERSION,
        .max_readahead = in->max_readahead < UFS_READ_MAX ? in->max_readahead : UFS_READ_MAX,
        .flags = in->flags & want,
        .max_background = 64,
        .congestion_threshold = 48,
        .max_write = t->u->rw ? UFS_WRITE_MAX : 4096,
        .time_gran = 1,
        .max_pages = (t->u->rw ? UFS_WRITE_MAX : UFS_READ_MAX) / 4096,
    };
    if (in->minor < FUSE_KERNEL_MINOR_VERSION) o.minor = in->minor;
    ufs_reply(t, unique, 0, &o, sizeof o);
}

static void ufs_lookup(struct ufs_thread *t, u64 unique, const struct idx_inode *dir,
                       const char *name) {
    const struct idx_dirent *d = idx_lookup(&t->u->x, dir, name, strlen(name));
    struct fuse_entry_out o = { .entry_valid = UFS_FOREVER }; /* node 0: a cached "not there" */
    if (d && d->inode < t->u->x.head->inodes) ufs_entry(t->u, d->inode, &o);
    ufs_reply(t, unique, 0, &o, sizeof o);
}

static void ufs_readdir(struct ufs_thread *t, u64 unique, u32 ino, const struct fuse_read_in *r,
                        bool plus) {
    const struct ufs *u = t->u;
    const struct idx_inode *dir = &u->x.inodes[ino];
    u32 n, max = r->size < UFS_READ_MAX ? r->size : UFS_READ_MAX;
    const struct idx_dirent *d = idx_dir(&u->x, dir, &n);
    size_t used = 0, head = plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET;
    for (u64 off = r->offset; off < n + 2ull; off++) {
        const char *name = off == 0 ? "." : "..";
        size_t len = off == 0 ? 1 : 2;
        u32 child = off == 0 ? ino : dir->parent, type = DT_DIR;
        if (off >= 2) {
            name = idx_name(&u->x, d[off - 2].name, d[off - 2].name_len);
            len = d[off - 2].name_len;
            child = d[off - 2].inode;
            type = d[off - 2].type;
            if (!name || child >= u->x.head->inodes) continue;
        }
        size_t size = (head + len + 7) & ~(size_t)7;
        if (used + size > max) break;
        u8 *p = t->out + used;
        memset(p, 0, size);
        struct fuse_dirent de = {
            .ino = child + 1ull, .off = off + 1, .namelen = (u32)len, .type = type
        };
        if (plus && off >= 2) ufs_entry(u, child, (struct fuse_entry_out *)(void *)p);
        memcpy(p + head - FUSE_NAME_OFFSET, &de, FUSE_NAME_OFFSET);
        memcpy(p + head, name, len);
        used += size;
    }
    ufs_reply(t, unique, 0, t->out, used);
}

static void ufs_getxattr(struct ufs_thread *t, u64 unique, const struct idx_inode *i, u32 size,
                         const char *want) {
    u64 at = 0;
    u16 left, nlen;
    u32 vlen;
    size_t used = 0;
    const char *name;
    const u8 *value;
    /* ENOSYS ends these requests for the connection: most images have no attributes at all */
    if (!t->u->x.head->has_xattrs && !t->u->rw) return ufs_reply(t, unique, -ENOSYS, NULL, 0);
    while (idx_xattr_next(&t->u->x, i, &at, &left, &name, &nlen, &value, &vlen)) {
        if (want && (strlen(want) != nlen || memcmp(want, name, nlen))) continue;
        size_t n = want ? vlen : nlen + 1u;
        if (size && used + n > (size < UFS_READ_MAX ? size : UFS_READ_MAX))
            return ufs_reply(t, unique, -ERANGE, NULL, 0);
        if (size) {
            memcpy(t->out + used, want ? value : (const u8 *)name, want ? n : n - 1);
            if (!want) t->out[used + n - 1] = 0;
        }
        used += n;
        if (want) break;
    }
    if (want && !at) return ufs_reply(t, unique, -ENODATA, NULL, 0);
    if (want && !used && !size) return ufs_reply(t, unique, -ENODATA, NULL, 0);
    struct fuse_getxattr_out o = { .size = (u32)used };
    if (size) ufs_reply(t, unique, want && !used ? -ENODATA : 0, t->out, used);
    else ufs_reply(t, unique, 0, &o, sizeof o);
}

static void ufs_statfs(struct ufs_thread *t, u64 unique) {
    struct fuse_statfs_out o = { .st = { .bsize = 4096,
                                         .frsize = 4096,
                                         .namelen = NAME_LIMIT,
                                         .blocks = t->u->x.head->content_size / 4096 + 1,
                                         .files = t->u->x.head->inodes } };
    ufs_reply(t, unique, 0, &o, sizeof o);
}

/* ---- 12.3 the writable tree: nodes ----
 * Where the kernel's overlay cannot take the writes, the server does: the same merged index below,
 * an upper directory in overlay's own format above (whiteouts are character devices 0:0,
 * user.overlay.opaque hides what is below), so that an upper may move between the rungs.
 *
 * What was never written has no node and is answered by 12.2 without a lock: a bit for each inode
 * of the index says whether it was touched. A node is what was: its id stays what the kernel knows
 * it by, also after its file was copied up. A node has one place (directory and name) at a time;
 * hard links are further entries with the same id. What has lost its last place keeps a
 * descriptor, for as long as the kernel remembers it.
 *
 * Invariants: (1) nobody else changes the upper, so a directory's listing, once read, is the truth;
 * (2) a lower file with several names gets all of them in the upper when it is copied up, so links
 * hold and nlink is right; (3) a lower directory is never renamed (EXDEV, as overlay says); (4) a
 * file appears in the upper whole: made in work/skiff, then renamed; (5) all of it under one lock,
 * but the copying and the contents. */
struct rw_entry {
    char *name; /* owned; NULL: gone */
    u64 id;     /* of its node; 0: not looked up yet */
    u64 seq;    /* never reused: a position for readdir */
    u32 next;   /* in its chain; UINT32_MAX: the end */
    u16 len;
    u8 type; /* DT_* */
    bool whiteout;
};

struct rw_list {
    struct rw_entry *e; /* owned, in the order of seq */
    u32 *head;          /* owned: chains */
    u32 n, cap, live, mask;
};

struct rw_node {
    u64 id;
    u32 lower; /* the inode it merges with, or was copied from; NO_INODE */
    u32 type;  /* S_IF* */
    bool upper, loaded, copying, gone;
    struct rw_node *parent; /* its place; NULL: the root, or none */
    char *name;             /* owned */
    u64 ino;                /* in the upper */
    u64 lookups;            /* of the kernel's; counted for ids above the index only */
    u32 kids, pins;
    int fd;     /* owned; a directory's O_PATH, a file's O_RDWR; -1: not open */
    int orphan; /* owned; what has no place; -1 */
    struct rw_list list;
    struct rw_node *id_next, *ino_next, *older, *newer;
};

enum { RW_OPEN_MAX = 512 }; /* descriptors kept open for nodes */
#define RW_INO_BASE (1ull << 48)  /* inode numbers of the upper are shown above the index's */
#define RW_SEQ_BASE (1ull << 40)  /* readdir's positions in the upper's part of a listing */
#define RW_ORIGIN "user.overlay.skiff" /* the index's inode number, kept with a copied file */

struct rw {
    struct ufs *u;
    int upper, work; /* owned; work is private to this server */
    bool is_volatile;
    pthread_mutex_t lock;
    pthread_cond_t copied;
    u8 *touched; /* owned: a bit an inode of the index */
    struct rw_node *root, **by_id, **by_ino, *newest, *oldest;
    u32 nodes, mask, opened, temps;
    u64 next_id, seq;
};

static bool rw_touched(const struct rw *w, u64 id) {
    return id > w->u->x.head->inodes ||
           __atomic_load_n(&w->touched[(id - 1) / 8], __ATOMIC_ACQUIRE) >> ((id - 1) % 8) & 1;
}

static u32 rw_hash(const char *s, size_t n) {
    u32 h = 2166136261u;
    for (size_t i = 0; i < n; i++) h = (h ^ (u8)s[i]) * 16777619u;
    return h ^ h >> 15;
}

static struct rw_node *rw_find(const struct rw *w, u64 id) {
    struct rw_node *n = id ? w->by_id[id & w->mask] : NULL;
    while (n && n->id != id) n = n->id_next;
    return n;
}

static void rw_ino_add(struct rw *w, struct rw_node *n) {
    struct rw_node **slot = &w->by_ino[n->ino & w->mask];
    n->ino_next = *slot;
    *slot = n;
}

static void rw_ino_remove(struct rw *w, struct rw_node *n) {
    struct rw_node **p = &w->by_ino[n->ino & w->mask];
    while (*p && *p != n) p = &(*p)->ino_next;
    if (*p) *p = n->ino_next;
}

static void rw_grow(struct rw *w) {
    u32 old = w->mask;
    struct rw_node **ids = w->by_id;
    w->mask = w->mask * 4 + 3;
    w->by_id = mem_new((w->mask + 1ul) * sizeof *w->by_id);
    free(w->by_ino);
    w->by_ino = mem_new((w->mask + 1ul) * sizeof *w->by_ino);
    for (u32 i = 0; i <= old; i++)
        for (struct rw_node *n = ids[i], *next; n; n = next) {
            next = n->id_next;
            n->id_next = w->by_id[n->id & w->mask];
            w->by_id[n->id & w->mask] = n;
            if (n->upper) rw_ino_add(w, n);
        }
    free(ids);
}

/* Gives a node a place; takes it from the old one. */
static void rw_move(struct rw_node *n, struct rw_node *parent, const char *name) {
    if (parent) parent->kids++;
    if (n->parent) n->parent->kids--;
    char *old = n->name;
    n->parent = parent;
    n->name = name ? str_dup(name) : NULL;
    free(old);
}

/* id 0: a new one. */
static struct rw_node *rw_node_new(struct rw *w, u64 id, u32 lower, u32 type,
                                   struct rw_node *parent, const char *name) {
    if (w->nodes > w->mask) rw_grow(w);
    struct rw_node *n = mem_new(sizeof *n);
    *n = (struct rw_node){ .id = id ? id : w->next_id++,
                           .lower = lower,
                           .type = type,
                           .fd = -1,
                           .orphan = -1 };
    n->id_next = w->by_id[n->id & w->mask];
    w->by_id[n->id & w->mask] = n;
    w->nodes++;
    rw_move(n, parent, name);
    return n;
}

/* The node has an object in the upper from here on. */
static void rw_mark_upper(struct rw *w, struct rw_node *n, u64 ino) {
    n->upper = true;
    n->ino = ino;
    rw_ino_add(w, n);
}

static void rw_touch(struct rw *w, const struct rw_node *n) {
    if (n->id <= w->u->x.head->inodes)
        __atomic_fetch_or(&w->touched[(n->id - 1) / 8], (u8)(1u << ((n->id - 1) % 8)),
                          __ATOMIC_ACQ_REL);
}

/* ---- 12.4 the writable tree: listings ---- */
static void rw_list_done(struct rw_list *l) {
    for (u32 i = 0; i < l->n; i++) free(l->e[i].name);
    free(l->e);
    free(l->head);
    *l = (struct rw_list){ 0 };
}

static void rw_list_chain(struct rw_list *l) {
    free(l->head);
    l->mask = 7;
    while (l->mask < l->live) l->mask = l->mask * 2 + 1;
    l->head = mem_new((l->mask + 1ul) * sizeof *l->head);
    memset(l->head, 0xff, (l->mask + 1ul) * sizeof *l->head);
    u32 k = 0;
    for (u32 i = 0; i < l->n; i++) {
        if (!l->e[i].name) continue;
        l->e[k] = l->e[i];
        u32 *h = &l->head[rw_hash(l->e[k].name, l->e[k].len) & l->mask];
        l->e[k].next = *h;
        *h = k++;
    }
    l->n = k;
}

static struct rw_entry *rw_list_find(const struct rw_list *l, const char *name, size_t len) {
    u32 i = l->head ? l->head[rw_hash(name, len) & l->mask] : UINT32_MAX;
    while (i != UINT32_MAX && (l->e[i].len != len || memcmp(l->e[i].name, name, len)))
        i = l->e[i].next;
    return i == UINT32_MAX ? NULL : &l->e[i];
}

/* The entry of a name, made where there is none; its place in the order stays. */
static struct rw_entry *rw_list_set(struct rw *w, struct rw_list *l, const char *name, size_t len,
                                    u64 id, u8 type, bool whiteout) {
    struct rw_entry *e = rw_list_find(l, name, len);
    if (!e) {
        if (l->n == l->cap) {
            if (l->live < l->n / 2) rw_list_chain(l);
            else l->e = mem_grow(l->e, l->cap = l->cap * 2 + 8, sizeof *l->e);
        }
        e = &l->e[l->n++];
        *e = (struct rw_entry){ .name = str_dupn(name, len), .len = (u16)len, .seq = ++w->seq };
        l->live++;
        if (!l->head || l->live > l->mask) {
            rw_list_chain(l);
            e = rw_list_find(l, name, len);
        } else {
            u32 *h = &l->head[rw_hash(name, len) & l->mask];
            e->next = *h;
            *h = (u32)(e - l->e);
        }
    }
    e->id = id;
    e->type = type;
    e->whiteout = whiteout;
    return e;
}

static void rw_list_remove(struct rw_list *l, const char *name, size_t len) {
    struct rw_entry *e = rw_list_find(l, name, len);
    if (!e) return;
    u32 i = (u32)(e - l->e), *p = &l->head[rw_hash(name, len) & l->mask];
    while (*p != i) p = &l->e[*p].next;
    *p = e->next;
    mem_freep(&e->name);
    l->live--;
}

/* ---- 12.5 the writable tree: descriptors and places ---- */
static void rw_fd_drop(struct rw *w, struct rw_node *n) {
    if (n->fd < 0 || n == w->root) return;
    *(n->older ? &n->older->newer : &w->oldest) = n->newer;
    *(n->newer ? &n->newer->older : &w->newest) = n->older;
    n->older = n->newer = NULL;
    fd_closep(&n->fd);
    w->opened--;
}

/* Keeps an open descriptor with its node; the one unused for longest is closed for it. */
static int rw_fd_keep(struct rw *w, struct rw_node *n, int fd) {
    if (fd < 0) return -1;
    for (struct rw_node *o = w->oldest; o && w->opened >= RW_OPEN_MAX; o = o->newer)
        if (!o->pins) {
            rw_fd_drop(w, o);
            break;
        }
    n->fd = fd;
    n->older = w->newest;
    n->newer = NULL;
    *(w->newest ? &w->newest->newer : &w->oldest) = n;
    w->newest = n;
    w->opened++;
    return fd;
}

/* A directory's descriptor, for names below it; the caller holds the lock, and pins what it needs
 * beyond the next call. -1 with errno. */
static int rw_dir(struct rw *w, struct rw_node *n) {
    if (n->fd >= 0) return n->fd;
    if (n->orphan >= 0) return n->orphan;
    if (!n->parent) return errno = ESTALE, -1;
    int at = rw_dir(w, n->parent);
    if (at < 0) return -1;
    return rw_fd_keep(w, n,
                      openat(at, n->name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
}

static int rw_stat(struct rw *w, struct rw_node *n, struct stat *st) {
    if (n->orphan >= 0) return fstatat(n->orphan, "", st, AT_EMPTY_PATH);
    if (n == w->root) return fstat(w->upper, st);
    int at = n->parent ? rw_dir(w, n->parent) : (errno = ESTALE, -1);
    return at < 0 ? -1 : fstatat(at, n->name, st, AT_SYMLINK_NOFOLLOW);
}

/* A path for calls that have no descriptor form; last component not to be followed. */
static int rw_path(struct rw *w, struct rw_node *n, char *out, size_t size) {
    if (n->orphan >= 0 || n == w->root)
        return snprintf(out, size, "/proc/self/fd/%d", n == w->root ? w->upper : n->orphan), 0;
    int at = n->parent ? rw_dir(w, n->parent) : (errno = ESTALE, -1);
    return at < 0 ? -1 : (snprintf(out, size, "/proc/self/fd/%d/%s", at, n->name), 0);
}

/* getxattr and its kin follow the link of an orphan's descriptor, and no other. */
static ssize_t rw_getxattr(struct rw *w, struct rw_node *n, const char *name, void *out,
                           size_t size) {
    char path[64 + NAME_LIMIT];
    if (rw_path(w, n, path, sizeof path)) return -1;
    bool link = n->orphan >= 0 || n == w->root;
    return link ? getxattr(path, name, out, size) : lgetxattr(path, name, out, size);
}

/* The descriptor of a file's contents in the upper, pinned: rw_unpin gives it back. */
static int rw_file(struct rw *w, struct rw_node *n) {
    if (n->fd < 0) {
        char path[64 + NAME_LIMIT];
        if (n->type != S_IFREG) return errno = EINVAL, -1;
        if (rw_path(w, n, path, sizeof path)) return -1;
        int flags = O_CLOEXEC | (n->orphan >= 0 ? 0 : O_NOFOLLOW), fd = open(path, O_RDWR | flags);
        if (fd < 0) fd = open(path, O_RDONLY | flags);
        if (rw_fd_keep(w, n, fd) < 0) return -1;
    }
    n->pins++;
    return n->fd;
}

static void rw_free(struct rw *w, struct rw_node *n);

static void rw_unpin(struct rw *w, struct rw_node *n) {
    pthread_mutex_lock(&w->lock);
    n->pins--;
    rw_free(w, n);
    pthread_mutex_unlock(&w->lock);
}

/* Forgets a node that neither the kernel nor another node refers to. Nodes of the index stay: their
 * number is bounded by what was written. */
static void rw_free(struct rw *w, struct rw_node *n) {
    while (n && n->id > w->u->x.head->inodes && !n->lookups && !n->kids && !n->pins) {
        struct rw_node *parent = n->parent, **p = &w->by_id[n->id & w->mask];
        rw_fd_drop(w, n);
        fd_closep(&n->orphan);
        rw_ino_remove(w, n);
        while (*p != n) p = &(*p)->id_next;
        *p = n->id_next;
        w->nodes--;
        rw_list_done(&n->list);
        rw_move(n, NULL, NULL);
        free(n);
        n = parent;
    }
}

/* Takes a node's place away before its name goes. It keeps a descriptor for what is still open. */
static void rw_detach(struct rw *w, struct rw_node *n) {
    if (n->upper && n->orphan < 0) {
        int at = n->parent ? rw_dir(w, n->parent) : -1;
        if (at >= 0) n->orphan = openat(at, n->name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    }
    rw_touch(w, n);
    n->gone = true;
    rw_move(n, NULL, NULL);
}

/* Reads a directory's listing from the upper, once. */
static int rw_load(struct rw *w, struct rw_node *d) {
    if (d->loaded || !d->upper) return 0;
    int at = rw_dir(w, d);
    AUTO_FD fd = at < 0 ? -1 : openat(at, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *s = fd < 0 ? NULL : fdopendir(fd);
    if (!s) return -1;
    fd_steal(&fd);
    struct dirent *de;
    while ((de = dir_next(s))) {
        struct stat st;
        u8 type = de->d_type;
        bool white = false;
        if (type == DT_UNKNOWN || type == DT_CHR) {
            if (fstatat(at, de->d_name, &st, AT_SYMLINK_NOFOLLOW)) continue;
            type = (u8)IFTODT(st.st_mode);
            white = type == DT_CHR && !st.st_rdev;
        }
        rw_list_set(w, &d->list, de->d_name, strlen(de->d_name), 0, type, white);
    }
    closedir(s);
    d->loaded = true;
    return 0;
}

/* The lower entry of a name, if the directory has a lower part. */
static const struct idx_dirent *rw_lower(const struct rw *w, const struct rw_node *d,
                                         const char *name, size_t len) {
    const struct idx *x = &w->u->x;
    const struct idx_dirent *l =
        d->lower == NO_INODE ? NULL : idx_lookup(x, &x->inodes[d->lower], name, len);
    return l && l->inode < x->head->inodes ? l : NULL;
}

/* The node of an entry of the upper that nobody has looked up yet. */
static struct rw_node *rw_adopt(struct rw *w, struct rw_node *d, struct rw_entry *e) {
    struct rw_node *n = rw_find(w, e->id);
    if (n) {
        if (n->gone) { /* another name of what lost its place */
            rw_move(n, d, e->name);
            fd_closep(&n->orphan);
            n->gone = false;
        }
        return n;
    }
    struct stat st;
    char path[64 + NAME_LIMIT], text[16] = "";
    int at = rw_dir(w, d);
    if (at < 0 || fstatat(at, e->name, &st, AT_SYMLINK_NOFOLLOW)) return NULL;
    snprintf(path, sizeof path, "/proc/self/fd/%d/%s", at, e->name);
    const struct idx *x = &w->u->x;
    u32 type = st.st_mode & S_IFMT, lower = NO_INODE;
    if (type == S_IFDIR) {
        const struct idx_dirent *l = rw_lower(w, d, e->name, e->len);
        if (l && S_ISDIR(x->inodes[l->inode].mode) &&
            (lgetxattr(path, "user.overlay.opaque", text, 1) != 1 || *text != 'y'))
            lower = l->inode;
    } else {
        if (st.st_nlink > 1)
            for (n = w->by_ino[st.st_ino & w->mask]; n; n = n->ino_next)
                if (n->ino == st.st_ino && n->upper && n->type == type) break;
        if (n) {
            e->id = n->id;
            return rw_adopt(w, d, e);
        }
        i64 from;
        if (type == S_IFREG && lgetxattr(path, RW_ORIGIN, text, sizeof text - 1) > 0 &&
            str_int(text, 0, x->head->inodes - 1, &from) &&
            (x->inodes[from].mode & S_IFMT) == type && !rw_find(w, (u64)from + 1))
            lower = (u32)from;
    }
    n = lower == NO_INODE ? NULL : rw_find(w, lower + 1ull);
    if (n) rw_move(n, d, e->name);
    else n = rw_node_new(w, lower == NO_INODE ? 0 : lower + 1ull, lower, type, d, e->name);
    rw_mark_upper(w, n, st.st_ino);
    rw_touch(w, n);
    e->id = n->id;
    return n;
}

/* What a name is: a node, or (*ret_lower) an inode of the index without one. -1 with errno. */
static int rw_resolve(struct rw *w, struct rw_node *d, const char *name, struct rw_node **ret,
                      u32 *ret_lower) {
    size_t len = strlen(name);
    *ret = NULL;
    *ret_lower = NO_INODE;
    if (d->gone) return errno = ENOENT, -1;
    if (len > NAME_LIMIT) return errno = ENAMETOOLONG, -1;
    if (rw_load(w, d)) return -1;
    struct rw_entry *e = rw_list_find(&d->list, name, len);
    if (e) {
        if (e->whiteout) return errno = ENOENT, -1;
        return (*ret = rw_adopt(w, d, e)) ? 0 : -1;
    }
    const struct idx_dirent *l = rw_lower(w, d, name, len);
    if (!l) return errno = ENOENT, -1;
    *ret_lower = l->inode;
    *ret = rw_find(w, l->inode + 1ull);
    return 0;
}

/* The name of an inode in a directory of the index. */
static const char *rw_lower_name(const struct idx *x, u32 dir, u32 ino, char *out) {
    u32 n;
    const struct idx_dirent *d = idx_dir(x, &x->inodes[dir], &n);
    for (u32 i = 0; i < n; i++) {
        const char *s = d[i].inode == ino ? idx_name(x, d[i].name, d[i].name_len) : NULL;
        if (s && d[i].name_len <= NAME_LIMIT)
            return snprintf(out, NAME_LIMIT + 1, "%.*s", d[i].name_len, s), out;
    }
    return NULL;
}

/* The node of a lower directory; NULL where the upper hides it. */
static struct rw_node *rw_lower_dir(struct rw *w, u32 ino, int depth) {
    const struct idx *x = &w->u->x;
    char name[NAME_LIMIT + 1];
    struct rw_node *n = rw_find(w, ino + 1ull);
    if (n) return n->gone ? NULL : n;
    u32 up = x->inodes[ino].parent;
    if (depth > MAX_TREE_DEPTH || up >= x->head->inodes || !rw_lower_name(x, up, ino, name))
        return NULL;
    struct rw_node *d = rw_lower_dir(w, up, depth + 1);
    u32 lower;
    if (!d || rw_resolve(w, d, name, &n, &lower)) return NULL;
    if (n) return n->lower == ino ? n : NULL;
    return lower == ino ? rw_node_new(w, ino + 1ull, ino, S_IFDIR, d, name) : NULL;
}

/* The node behind an id that the kernel sent; the caller holds the lock. */
static struct rw_node *rw_node(struct rw *w, u64 id) {
    const struct idx *x = &w->u->x;
    struct rw_node *n = rw_find(w, id), *d;
    char name[NAME_LIMIT + 1];
    if (n || !id || id > x->head->inodes) return n;
    u32 ino = (u32)(id - 1), up = x->inodes[ino].parent;
    if (S_ISDIR(x->inodes[ino].mode)) return rw_lower_dir(w, ino, 0);
    d = up < x->head->inodes ? rw_lower_dir(w, up, 0) : NULL;
    bool named = d && rw_lower_name(x, up, ino, name);
    n = rw_node_new(w, id, ino, x->inodes[ino].mode & S_IFMT, named ? d : NULL,
                    named ? name : NULL);
    return n;
}

/* ---- 12.6 the writable tree: copying up ---- */
static void rw_temp_name(struct rw *w, char out[24]) {
    snprintf(out, 24, "t%u", __atomic_add_fetch(&w->temps, 1, __ATOMIC_RELAXED));
}

/* Gives an object of the upper the attributes of an inode of the index; path as rw_path's. */
static int rw_copy_attrs(struct rw *w, const struct idx_inode *i, int at, const char *name) {
    const struct ufs *u = w->u;
    char path[64 + NAME_LIMIT];
    if (!u->squash && fchownat(at, name, i->uid, i->gid, AT_SYMLINK_NOFOLLOW)) return -1;
    if (!S_ISLNK(i->mode) && fchmodat(at, name, i->mode & 07777, 0)) return -1;
    snprintf(path, sizeof path, "/proc/self/fd/%d/%s", at, name);
    u64 pos = 0;
    u16 left, nlen;
    u32 vlen;
    const char *key;
    const u8 *value;
    while (idx_xattr_next(&u->x, i, &pos, &left, &key, &nlen, &value, &vlen)) {
        char k[NAME_LIMIT + 1];
        snprintf(k, sizeof k, "%.*s", nlen, key);
        if (lsetxattr(path, k, value, vlen, 0) && str_prefix(k, "user.")) return -1;
    }
    struct timespec ts[2] = { { i->mtime, i->mtime_ns }, { i->mtime, i->mtime_ns } };
    return utimensat(at, name, ts, AT_SYMLINK_NOFOLLOW);
}

/* Makes sure that a directory is in the upper. */
static int rw_up_dir(struct rw *w, struct rw_node *d) {
    struct stat st;
    char temp[24];
    if (d->upper) return rw_load(w, d);
    if (d->gone || !d->parent) return errno = ENOENT, -1;
    if (rw_up_dir(w, d->parent)) return -1;
    struct stat above;
    int at = rw_dir(w, d->parent);
    if (at < 0 || fstat(at, &above)) return -1;
    rw_temp_name(w, temp);
    if (mkdirat(w->work, temp, 0700)) return -1;
    if (rw_copy_attrs(w, &w->u->x.inodes[d->lower], w->work, temp) ||
        renameat(w->work, temp, at, d->name) || fstatat(at, d->name, &st, AT_SYMLINK_NOFOLLOW)) {
        int no = errno;
        unlinkat(w->work, temp, AT_REMOVEDIR);
        return errno = no, -1;
    }
    struct timespec ts[2] = { { .tv_nsec = UTIME_OMIT }, above.st_mtim };
    AUTO_FREE char *dot = str_fmt("/proc/self/fd/%d", at);
    utimensat(AT_FDCWD, dot, ts, 0);
    rw_list_set(w, &d->parent->list, d->name, strlen(d->name), d->id, DT_DIR, false);
    rw_mark_upper(w, d, st.st_ino);
    d->loaded = true; /* empty */
    rw_touch(w, d);
    return 0;
}

/* Writes the contents of a lower file, its first `size` bytes, without the lock. */
static int rw_copy_data(struct rw *w, const struct idx_inode *i, int fd, u64 size) {
    u32 count;
    struct packs *packs = &w->u->packs;
    const struct idx_chunk *c = idx_chunks(&w->u->x, i, &count);
    AUTO_FREE u8 *buf = NULL;
    if (size > i->size) size = i->size;
    if (ftruncate(fd, (off_t)size)) return -1;
    for (u64 k = 0, off = 0; off < size; k++, off += 1ull << i->chunk_shift) {
        if (!c || k >= count) return errno = EIO, -1;
        u64 n = c[k].len < size - off ? c[k].len : size - off;
        if (!c[k].stored) continue;
        int pack = packs_fd(packs, c[k].pack);
        loff_t from = (loff_t)c[k].off, to = (loff_t)off;
        u64 done = 0;
        while (c[k].stored == c[k].len && pack >= 0 && done < n) { /* shares the blocks if it can */
            ssize_t got = copy_file_range(pack, &from, fd, &to, n - done, 0);
            if (got <= 0) break;
            done += (u64)got;
        }
        if (!buf) buf = mem_new(256 << 10);
        while (done < n) {
            size_t part = n - done < 256 << 10 ? (size_t)(n - done) : 256 << 10;
            if (packs_read(packs, i, buf, part, off + done) != (ssize_t)part)
                return errno = EIO, -1;
            if (fd_pwrite_all(fd, buf, part, off + done)) return -1;
            done += part;
        }
    }
    return 0;
}

/* All visible names of an inode of the index: calls fn until one fails. */
static int rw_each_name(struct rw *w, u32 ino,
                        int (*fn)(struct rw *w, struct rw_node *d, const char *name, void *arg),
                        void *arg) {
    const struct idx *x = &w->u->x;
    char name[NAME_LIMIT + 1];
    bool many = x->inodes[ino].nlink > 1;
    u32 first = many ? 0 : x->inodes[ino].parent, last = many ? x->head->inodes - 1 : first;
    for (u32 dir = first; dir <= last && dir < x->head->inodes; dir++) {
        u32 n;
        const struct idx_dirent *d = idx_dir(x, &x->inodes[dir], &n);
        for (u32 k = 0; k < n; k++) {
            if (d[k].inode != ino) continue;
            const char *s = idx_name(x, d[k].name, d[k].name_len);
            struct rw_node *up = s ? rw_lower_dir(w, dir, 0) : NULL;
            if (!up || rw_load(w, up) || rw_list_find(&up->list, s, d[k].name_len)) continue;
            snprintf(name, sizeof name, "%.*s", d[k].name_len, s);
            int rc = fn(w, up, name, arg);
            if (rc) return rc;
        }
    }
    return 0;
}

struct rw_placing {
    struct rw_node *n;
    const char *temp; /* in work/ */
    int placed;
};

/* Puts a copied file under one of its names, and keeps the times of the directory. */
static int rw_place(struct rw *w, struct rw_node *d, const char *name, void *arg) {
    struct rw_placing *p = arg;
    struct stat above;
    int at = rw_up_dir(w, d) ? -1 : rw_dir(w, d);
    if (at < 0 || fstat(at, &above)) return -1;
    if (linkat(w->work, p->temp, at, name, 0)) return -1;
    struct timespec ts[2] = { { .tv_nsec = UTIME_OMIT }, above.st_mtim };
    AUTO_FREE char *dot = str_fmt("/proc/self/fd/%d", at);
    utimensat(AT_FDCWD, dot, ts, 0);
    rw_list_set(w, &d->list, name, strlen(name), p->n->id, (u8)IFTODT(p->n->type), false);
    if (!p->placed++) rw_move(p->n, d, name);
    return 0;
}

/* Makes the copy of a lower object in work/, without the lock. */
static int rw_copy(struct rw *w, const struct idx_inode *i, const char *temp, u64 size) {
    char text[PATH_MAX];
    int rc = -1;
    if (S_ISREG(i->mode)) {
        AUTO_FD fd = openat(w->work, temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0 || rw_copy_data(w, i, fd, size)) return -1;
        snprintf(text, sizeof text, "%u", (u32)(i - w->u->x.inodes));
        fsetxattr(fd, RW_ORIGIN, text, strlen(text), 0); /* only the inode number depends on it */
        rc = 0;
    } else if (S_ISLNK(i->mode)) {
        const char *s = idx_name(&w->u->x, i->data, i->count);
        if (!s || i->count >= sizeof text) return errno = EIO, -1;
        memcpy(text, s, i->count);
        text[i->count] = 0;
        rc = symlinkat(text, w->work, temp);
    } else rc = mknodat(w->work, temp, i->mode & (S_IFMT | 07777), i->rdev);
    return rc ? -1 : rw_copy_attrs(w, i, w->work, temp);
}

/* Makes sure that an object is in the upper; of a lower file at most `size` bytes are copied. The
 * lock is let go while it copies. */
static int rw_up(struct rw *w, struct rw_node *n, u64 size) {
    if (n->type == S_IFDIR) return rw_up_dir(w, n);
    while (n->copying) pthread_cond_wait(&w->copied, &w->lock);
    if (n->upper) return 0;
    if (n->lower == NO_INODE) return errno = ESTALE, -1;
    const struct idx_inode *i = &w->u->x.inodes[n->lower];
    char temp[24];
    struct stat st;
    rw_temp_name(w, temp);
    n->copying = true;
    pthread_mutex_unlock(&w->lock);
    int rc = rw_copy(w, i, temp, size), no = errno;
    pthread_mutex_lock(&w->lock);
    n->copying = false;
    pthread_cond_broadcast(&w->copied);
    struct rw_placing p = { n, temp, 0 };
    if (!rc && !n->gone) rc = rw_each_name(w, n->lower, rw_place, &p), no = errno;
    if (!rc && !p.placed) { /* unlinked while open */
        n->orphan = openat(w->work, temp, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        n->gone = true;
        if (n->orphan < 0) rc = -1, no = errno;
    }
    if (!rc) rc = fstatat(w->work, temp, &st, AT_SYMLINK_NOFOLLOW), no = errno;
    unlinkat(w->work, temp, 0);
    if (rc) return errno = no, -1;
    rw_mark_upper(w, n, st.st_ino);
    rw_touch(w, n);
    return 0;
}

/* ---- 12.7 the writable tree: changes ---- */

/* A whiteout under a new name in work/: one inode for all of them. */
static int rw_whiteout(struct rw *w, int at, const char *name) {
    if (!linkat(w->work, "wh", at, name, 0)) return 0;
    if (errno != EMLINK && errno != ENOENT) return -1;
    unlinkat(w->work, "wh", 0);
    if (mknodat(w->work, "wh", S_IFCHR, 0)) return -1;
    return linkat(w->work, "wh", at, name, 0);
}

/* Removes the whiteouts in a directory of the upper that shows nothing. */
static void rw_empty(int at, const char *name) {
    AUTO_DIR *s = dir_stream(at, name);
    struct dirent *de;
    while (s && (de = dir_next(s))) unlinkat(dirfd(s), de->d_name, 0);
}

/* 1: a directory shows nothing, 0: something, -1: errno. */
static int rw_dir_empty(struct rw *w, struct rw_node *d) {
    const struct idx *x = &w->u->x;
    u32 n = 0;
    if (rw_load(w, d)) return -1;
    for (u32 i = 0; i < d->list.n; i++)
        if (d->list.e[i].name && !d->list.e[i].whiteout) return 0;
    const struct idx_dirent *l =
        d->lower == NO_INODE ? NULL : idx_dir(x, &x->inodes[d->lower], &n);
    for (u32 k = 0; k < n; k++) {
        const char *s = idx_name(x, l[k].name, l[k].name_len);
        if (s && !rw_list_find(&d->list, s, l[k].name_len)) return 0;
    }
    return 1;
}

/* Where a new object is made: at once under its name, or, where a whiteout is, in work/ first. */
struct rw_new {
    struct rw_node *d;
    const char *name;
    int at;
    const char *as; /* the name below `at` */
    char temp[24];
    bool over, opaque; /* a whiteout is there; a lower directory is below it */
};

static int rw_new_begin(struct rw *w, struct rw_node *d, const char *name, struct rw_new *ret) {
    struct rw_node *old;
    u32 lower;
    *ret = (struct rw_new){ .d = d, .name = name, .as = name };
    if (!rw_resolve(w, d, name, &old, &lower)) return errno = EEXIST, -1;
    if (errno != ENOENT || d->gone || rw_up_dir(w, d)) return -1;
    struct rw_entry *e = rw_list_find(&d->list, name, strlen(name));
    const struct idx_dirent *l = rw_lower(w, d, name, strlen(name));
    ret->over = e != NULL;
    ret->opaque = l && S_ISDIR(w->u->x.inodes[l->inode].mode);
    if ((ret->at = rw_dir(w, d)) < 0) return -1;
    if (!ret->over) return 0;
    rw_temp_name(w, ret->temp);
    ret->at = w->work;
    ret->as = ret->temp;
    return 0;
}

/* Gives the new object to its owner, puts it in place, and makes its node; NULL with errno. */
static struct rw_node *rw_new_end(struct rw *w, struct rw_new *x,
                                  const struct fuse_in_header *h) {
    struct stat st, dir;
    int at = rw_dir(w, x->d), no;
    char path[64 + NAME_LIMIT];
    if (at < 0 || fstat(at, &dir) || fstatat(x->at, x->as, &st, AT_SYMLINK_NOFOLLOW)) goto fail;
    gid_t gid = dir.st_mode & S_ISGID ? dir.st_gid : h->gid;
    bool is_dir = S_ISDIR(st.st_mode);
    if ((st.st_uid != h->uid || st.st_gid != gid) &&
        fchownat(x->at, x->as, h->uid, gid, AT_SYMLINK_NOFOLLOW))
        goto fail;
    mode_t mode = st.st_mode & 07777;
    if (is_dir && dir.st_mode & S_ISGID) mode |= S_ISGID;
    if (!S_ISLNK(st.st_mode) && (mode & 06000) && fchmodat(x->at, x->as, mode, 0)) goto fail;
    snprintf(path, sizeof path, "/proc/self/fd/%d/%s", x->at, x->as);
    if (is_dir && x->opaque && lsetxattr(path, "user.overlay.opaque", "y", 1, 0)) goto fail;
    if (x->over) {
        if (syscall(SYS_renameat2, x->at, x->as, at, x->name, is_dir ? 2u /* EXCHANGE */ : 0u))
            goto fail;
        if (is_dir) unlinkat(x->at, x->as, 0);
    }
    struct rw_node *n = rw_node_new(w, 0, NO_INODE, st.st_mode & S_IFMT, x->d, x->name);
    rw_mark_upper(w, n, st.st_ino);
    n->loaded = is_dir;
    rw_list_set(w, &x->d->list, x->name, strlen(x->name), n->id, (u8)IFTODT(st.st_mode), false);
    return n;
fail:
    no = errno;
    unlinkat(x->at, x->as, S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0);
    return errno = no, NULL;
}

/* Makes an object; `text` is a symlink's. The umask is set for this thread alone. */
static struct rw_node *rw_make(struct rw *w, const struct fuse_in_header *h, const char *name,
                               mode_t mode, u32 rdev, u32 mask, const char *text) {
    struct rw_node *d = rw_node(w, h->nodeid), *n;
    struct rw_new x;
    dev_t dev = makedev(rdev >> 8 & 0xfff, (rdev & 0xff) | (rdev >> 12 & 0xfff00));
    if (!d) return errno = ESTALE, NULL;
    if (S_ISCHR(mode) && !dev) return errno = EPERM, NULL; /* it would be a whiteout */
    if (rw_new_begin(w, d, name, &x)) return NULL;
    umask(mask & 0777);
    int rc;
    if (S_ISDIR(mode)) rc = mkdirat(x.at, x.as, mode & 07777);
    else if (S_ISLNK(mode)) rc = symlinkat(text, x.at, x.as);
    else if (S_ISREG(mode)) {
        int fd = openat(x.at, x.as, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                        mode & 07777);
        rc = fd < 0 ? -1 : 0;
        if (!rc) {
            if ((n = rw_new_end(w, &x, h))) rw_fd_keep(w, n, fd);
            else close(fd);
            umask(0);
            return n;
        }
    } else rc = mknodat(x.at, x.as, mode, dev);
    int no = errno;
    umask(0);
    if (rc) return errno = no, NULL;
    return rw_new_end(w, &x, h);
}

/* Takes a name out of the tree; `dir`: what rmdir means. */
static int rw_remove(struct rw *w, struct rw_node *d, const char *name, bool dir) {
    struct rw_node *n;
    u32 lower;
    char temp[24];
    if (rw_resolve(w, d, name, &n, &lower)) return -1;
    if (!n && !(n = rw_node(w, lower + 1ull))) return errno = ENOENT, -1;
    while (n->copying) pthread_cond_wait(&w->copied, &w->lock);
    if (dir != (n->type == S_IFDIR)) return errno = dir ? ENOTDIR : EISDIR, -1;
    int empty = dir ? rw_dir_empty(w, n) : 1;
    if (empty != 1) return empty < 0 ? -1 : (errno = ENOTEMPTY, -1);
    /* of several names one goes: the others must know */
    if (!dir && !n->upper && w->u->x.inodes[n->lower].nlink > 1 && rw_up(w, n, UINT64_MAX))
        return -1;
    bool below = rw_lower(w, d, name, strlen(name)) != NULL;
    if (below && rw_up_dir(w, d)) return -1;
    int at = rw_dir(w, d);
    if (at < 0) return -1;
    struct rw_entry *e = rw_list_find(&d->list, name, strlen(name));
    bool here = n->parent == d && n->name && !strcmp(n->name, name);
    if (here) rw_detach(w, n);
    int rc = 0;
    if (!e) rc = rw_whiteout(w, at, name);
    else if (!below) {
        rc = unlinkat(at, name, dir ? AT_REMOVEDIR : 0);
        if (rc && dir && (errno == ENOTEMPTY || errno == EEXIST))
            rw_empty(at, name), rc = unlinkat(at, name, AT_REMOVEDIR);
    } else {
        rw_temp_name(w, temp);
        rc = rw_whiteout(w, w->work, temp);
        if (!rc)
            rc = (int)syscall(SYS_renameat2, w->work, temp, at, name, dir ? 2u /* EXCHANGE */ : 0u);
        if (!rc && dir) rw_empty(w->work, temp), unlinkat(w->work, temp, AT_REMOVEDIR);
        else if (rc) unlinkat(w->work, temp, 0);
    }
    if (rc) {
        int no = errno;
        if (here) { /* it still is where it was */
            rw_move(n, d, name);
            fd_closep(&n->orphan);
            n->gone = false;
        }
        return errno = no, -1;
    }
    if (below) rw_list_set(w, &d->list, name, strlen(name), 0, DT_CHR, true);
    else rw_list_remove(&d->list, name, strlen(name));
    rw_free(w, n);
    return 0;
}

/* Clears the way for a directory that takes the place of an empty one. */
static int rw_make_way(struct rw *w, struct rw_node *dst, int at, const char *name) {
    char path[64 + NAME_LIMIT];
    snprintf(path, sizeof path, "/proc/self/fd/%d/%s", at, name);
    if (!dst->upper) return 0;
    if (dst->lower != NO_INODE && lsetxattr(path, "user.overlay.opaque", "y", 1, 0)) return -1;
    rw_empty(at, name);
    return 0;
}

/* What rename needs to know of one side. */
struct rw_side {
    struct rw_node *d, *n; /* n NULL: there is nothing */
    const char *name;
    bool below; /* a lower entry of this name */
    int at;
};

static int rw_side(struct rw *w, struct rw_side *s, bool must) {
    u32 lower;
    if (rw_resolve(w, s->d, s->name, &s->n, &lower)) {
        if (must || errno != ENOENT || s->d->gone) return -1;
    } else if (!s->n && !(s->n = rw_node(w, lower + 1ull))) return errno = ENOENT, -1;
    s->below = rw_lower(w, s->d, s->name, strlen(s->name)) != NULL;
    return 0;
}

/* An object that is to be moved is in the upper; directories of the index do not move. */
static int rw_movable(struct rw *w, struct rw_node *n) {
    if (n->type == S_IFDIR && n->lower != NO_INODE) return errno = EXDEV, -1;
    return rw_up(w, n, UINT64_MAX);
}

static int rw_hide_below(const struct rw_side *to, const struct rw_node *n, const struct rw *w,
                         int at, const char *name) {
    const struct idx_dirent *l = rw_lower(w, to->d, to->name, strlen(to->name));
    char path[64 + NAME_LIMIT];
    if (n->type != S_IFDIR || !l || !S_ISDIR(w->u->x.inodes[l->inode].mode)) return 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d/%s", at, name);
    return lsetxattr(path, "user.overlay.opaque", "y", 1, 0);
}

static int rw_exchange(struct rw *w, struct rw_side *a, struct rw_side *b) {
    if (rw_movable(w, b->n)) return -1;
    if (rw_hide_below(b, a->n, w, a->at, a->name) || rw_hide_below(a, b->n, w, b->at, b->name) ||
        syscall(SYS_renameat2, a->at, a->name, b->at, b->name, 2u /* EXCHANGE */))
        return -1;
    rw_list_set(w, &a->d->list, a->name, strlen(a->name), b->n->id, (u8)IFTODT(b->n->type), false);
    rw_list_set(w, &b->d->list, b->name, strlen(b->name), a->n->id, (u8)IFTODT(a->n->type), false);
    rw_move(a->n, b->d, b->name);
    rw_move(b->n, a->d, a->name);
    return 0;
}

/* The rename itself, once both directories are in the upper. */
static int rw_rename_now(struct rw *w, struct rw_side *a, struct rw_side *b) {
    bool dir = a->n->type == S_IFDIR;
    struct rw_entry *e = rw_list_find(&b->d->list, b->name, strlen(b->name));
    bool white = e && e->whiteout, left = false; /* a whiteout is left at the old name */
    if (b->n && dir && rw_make_way(w, b->n, b->at, b->name)) return -1;
    if (rw_hide_below(b, a->n, w, a->at, a->name)) return -1;
    struct rw_node *dst = b->n;
    bool here = dst && dst->parent == b->d && !strcmp(dst->name, b->name);
    if (here) rw_detach(w, dst);
    int rc;
    if (dir && white) { /* the two change places */
        rc = (int)syscall(SYS_renameat2, a->at, a->name, b->at, b->name, 2u);
        left = !rc;
    } else if (a->below) {
        rc = (int)syscall(SYS_renameat2, a->at, a->name, b->at, b->name, 4u /* WHITEOUT */);
        left = !rc;
        if (rc && (errno == EINVAL || errno == EPERM))
            rc = renameat(a->at, a->name, b->at, b->name);
    } else rc = renameat(a->at, a->name, b->at, b->name);
    if (rc) {
        int no = errno;
        if (here) rw_move(dst, b->d, b->name), fd_closep(&dst->orphan), dst->gone = false;
        return errno = no, -1;
    }
    if (a->below && !left) rw_whiteout(w, a->at, a->name);
    else if (!a->below && left) unlinkat(a->at, a->name, 0);
    if (a->below) rw_list_set(w, &a->d->list, a->name, strlen(a->name), 0, DT_CHR, true);
    else rw_list_remove(&a->d->list, a->name, strlen(a->name));
    rw_list_set(w, &b->d->list, b->name, strlen(b->name), a->n->id, (u8)IFTODT(a->n->type), false);
    rw_move(a->n, b->d, b->name);
    if (dst) rw_free(w, dst);
    return 0;
}

static int rw_rename(struct rw *w, struct rw_node *from, const char *old, struct rw_node *to,
                     const char *new, u32 flags) {
    struct rw_side a = { .d = from, .name = old }, b = { .d = to, .name = new };
    bool exchange = flags & 2;
    if (flags & ~3u) return errno = EINVAL, -1;
    if (rw_side(w, &a, true) || rw_side(w, &b, exchange)) return -1;
    if (b.n && (flags & 1)) return errno = EEXIST, -1;
    if (a.n == b.n) return 0;
    bool adir = a.n->type == S_IFDIR, bdir = b.n && b.n->type == S_IFDIR;
    if (b.n && !exchange && adir != bdir) return errno = adir ? ENOTDIR : EISDIR, -1;
    if (bdir && !exchange) {
        int empty = rw_dir_empty(w, b.n);
        if (empty != 1) return empty < 0 ? -1 : (errno = ENOTEMPTY, -1);
    }
    if (b.n && !bdir && !b.n->upper && !exchange && w->u->x.inodes[b.n->lower].nlink > 1 &&
        rw_up(w, b.n, UINT64_MAX))
        return -1;
    if (rw_movable(w, a.n) || rw_up_dir(w, to)) return -1;
    if ((a.at = rw_dir(w, from)) < 0) return -1;
    from->pins++; /* the next call must not close it */
    b.at = rw_dir(w, to);
    int rc = b.at < 0 ? -1 : exchange ? rw_exchange(w, &a, &b) : rw_rename_now(w, &a, &b);
    from->pins--;
    return rc;
}

static int rw_link(struct rw *w, struct rw_node *n, struct rw_node *d, const char *name) {
    struct rw_new x;
    char path[64];
    if (n->type == S_IFDIR) return errno = EPERM, -1;
    if (rw_up(w, n, UINT64_MAX) || rw_new_begin(w, d, name, &x)) return -1;
    int from = -1, rc;
    d->pins++;
    if (n->orphan >= 0) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", n->orphan);
        rc = linkat(AT_FDCWD, path, x.at, x.as, AT_SYMLINK_FOLLOW);
    } else
        rc = n->parent && (from = rw_dir(w, n->parent)) >= 0 ? linkat(from, n->name, x.at, x.as, 0)
                                                             : -1;
    if (!rc && x.over) {
        int at = rw_dir(w, d);
        rc = at < 0 ? -1 : renameat(x.at, x.as, at, name);
    }
    d->pins--;
    if (rc) return -1;
    rw_list_set(w, &d->list, name, strlen(name), n->id, (u8)IFTODT(n->type), false);
    if (n->gone) {
        rw_move(n, d, name);
        fd_closep(&n->orphan);
        n->gone = false;
    }
    return 0;
}

/* ---- 12.8 the writable tree: answers ---- */
static void rw_attr(const struct rw *w, const struct rw_node *n, const struct stat *st,
                    struct fuse_attr *a) {
    *a = (struct fuse_attr){
        .ino = n->lower != NO_INODE ? n->lower + 1ull : st->st_ino + RW_INO_BASE,
        .size = (u64)st->st_size,
        .blocks = (u64)st->st_blocks,
        .blksize = 4096,
        .atime = (u64)st->st_atim.tv_sec,
        .mtime = (u64)st->st_mtim.tv_sec,
        .ctime = (u64)st->st_ctim.tv_sec,
        .atimensec = (u32)st->st_atim.tv_nsec,
        .mtimensec = (u32)st->st_mtim.tv_nsec,
        .ctimensec = (u32)st->st_ctim.tv_nsec,
        .mode = st->st_mode,
        .nlink = S_ISDIR(st->st_mode) && n->lower != NO_INODE ? 1 : (u32)st->st_nlink,
        .rdev = (u32)((minor(st->st_rdev) & 0xff) | major(st->st_rdev) << 8 |
                      (minor(st->st_rdev) & ~0xffu) << 12),
        .uid = st->st_uid,
        .gid = st->st_gid,
    };
}

/* The attributes of a node, wherever it is. */
static int rw_getattr(struct rw *w, struct rw_node *n, struct fuse_attr *a) {
    struct stat st;
    if (!n->upper) {
        ufs_attr(w->u, n->lower, a);
        if (n->gone) a->nlink = 0;
        return 0;
    }
    if (rw_stat(w, n, &st)) return -1;
    rw_attr(w, n, &st, a);
    return 0;
}

/* An entry for the kernel, which then knows the node. */
static int rw_entry_out(struct rw *w, struct rw_node *n, struct fuse_entry_out *o) {
    *o = (struct fuse_entry_out){ .nodeid = n->id,
                                  .entry_valid = UFS_FOREVER,
                                  .attr_valid = UFS_FOREVER };
    if (rw_getattr(w, n, &o->attr)) return -1;
    n->lookups++;
    return 0;
}

static void rw_lookup(struct ufs_thread *t, struct rw_node *d, u64 unique, const char *name) {
    struct rw *w = t->u->rw;
    struct fuse_entry_out o = { .entry_valid = UFS_FOREVER };
    struct rw_node *n;
    u32 lower;
    int rc = rw_resolve(w, d, name, &n, &lower);
    if (!rc && n) rc = rw_entry_out(w, n, &o);
    else if (!rc) ufs_entry(t->u, lower, &o);
    ufs_reply(t, unique, rc && errno != ENOENT ? -errno : 0, &o, sizeof o);
}

/* One name of a listing into the buffer; false: full. */
static bool rw_dirent(struct ufs_thread *t, size_t *used, u32 max, bool plus, const char *name,
                      size_t len, u64 off, u8 type, struct rw_node *n, u32 lower) {
    size_t head = plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET;
    size_t size = (head + len + 7) & ~(size_t)7;
    struct rw *w = t->u->rw;
    struct fuse_entry_out o = { 0 };
    if (*used + size > max) return false;
    u8 *p = t->out + *used;
    bool dots = *name == '.' && (len == 1 || (len == 2 && name[1] == '.'));
    memset(p, 0, size);
    u64 ino = lower != NO_INODE ? lower + 1ull
              : !n              ? 1
              : n->lower != NO_INODE ? n->lower + 1ull
                                     : n->ino + RW_INO_BASE;
    if (plus && !dots) {
        if (n && rw_entry_out(w, n, &o)) return true; /* gone from the disk: left out */
        if (!n) ufs_entry(t->u, lower, &o);
        memcpy(p, &o, sizeof o);
    }
    struct fuse_dirent de = { .ino = ino, .off = off, .namelen = (u32)len, .type = type };
    memcpy(p + head - FUSE_NAME_OFFSET, &de, FUSE_NAME_OFFSET);
    memcpy(p + head, name, len);
    *used += size;
    return true;
}

/* A merged listing: "." and "..", the lower's names in its order, what only the upper has in the
 * order of its making. A name that is copied up while it is read keeps its place. */
static int rw_readdir(struct ufs_thread *t, struct rw_node *d, const struct fuse_read_in *r,
                      bool plus, size_t *used) {
    struct rw *w = t->u->rw;
    const struct idx *x = &w->u->x;
    u32 n = 0, max = r->size < UFS_READ_MAX ? r->size : UFS_READ_MAX;
    u64 off = r->offset;
    if (rw_load(w, d)) return -1;
    const struct idx_dirent *l =
        d->lower == NO_INODE ? NULL : idx_dir(x, &x->inodes[d->lower], &n);
    for (; off < n + 2ull; off++) {
        struct rw_node *c = off == 0 ? d : d->parent ? d->parent : d;
        if (off < 2) {
            if (!rw_dirent(t, used, max, plus, "..", off + 1, off + 1, DT_DIR, c, NO_INODE))
                return 0;
            continue;
        }
        const char *name = idx_name(x, l[off - 2].name, l[off - 2].name_len);
        u32 len = l[off - 2].name_len, lower = l[off - 2].inode;
        u8 type = l[off - 2].type;
        if (!name || lower >= x->head->inodes || len > NAME_LIMIT) continue;
        struct rw_entry *e = rw_list_find(&d->list, name, len);
        if (e && e->whiteout) continue;
        c = e ? rw_adopt(w, d, e) : rw_find(w, lower + 1ull);
        if (e && !c) continue;
        if (!rw_dirent(t, used, max, plus, name, len, off + 1, e ? e->type : type, c,
                       c ? NO_INODE : lower))
            return 0;
    }
    u32 lo = 0, hi = d->list.n;
    u64 seq = off > RW_SEQ_BASE ? off - RW_SEQ_BASE : 0; /* the last one that was given */
    while (lo < hi) {
        u32 mid = lo + (hi - lo) / 2;
        if (d->list.e[mid].seq <= seq) lo = mid + 1;
        else hi = mid;
    }
    for (; lo < d->list.n; lo++) {
        struct rw_entry *e = &d->list.e[lo];
        if (!e->name || e->whiteout || rw_lower(w, d, e->name, e->len)) continue;
        struct rw_node *c = rw_adopt(w, d, e);
        if (c && !rw_dirent(t, used, max, plus, e->name, e->len, RW_SEQ_BASE + e->seq, e->type, c,
                            NO_INODE))
            return 0;
    }
    return 0;
}

static bool rw_xattr_hidden(const char *name) { return str_prefix(name, "user.overlay."); }

static ssize_t rw_listxattr(struct rw *w, struct rw_node *n, char *out, size_t size) {
    char path[64 + NAME_LIMIT];
    AUTO_FREE char *all = mem_new(XATTR_MAX_VALUE);
    if (rw_path(w, n, path, sizeof path)) return -1;
    ssize_t k = n->orphan >= 0 || n == w->root ? listxattr(path, all, XATTR_MAX_VALUE)
                                               : llistxattr(path, all, XATTR_MAX_VALUE);
    size_t used = 0;
    for (ssize_t i = 0; i < k;) {
        size_t len = strlen(all + i) + 1;
        if (!rw_xattr_hidden(all + i)) {
            if (size && used + len > size) return errno = ERANGE, -1;
            if (size) memcpy(out + used, all + i, len);
            used += len;
        }
        i += (ssize_t)len;
    }
    return k < 0 ? -1 : (ssize_t)used;
}

static int rw_setxattr(struct rw *w, struct rw_node *n, const char *name, const void *value,
                       size_t size, int flags, bool remove) {
    char path[64 + NAME_LIMIT];
    if (rw_xattr_hidden(name)) return errno = EPERM, -1;
    if (rw_up(w, n, UINT64_MAX) || rw_path(w, n, path, sizeof path)) return -1;
    bool follow = n->orphan >= 0 || n == w->root;
    if (remove) return follow ? removexattr(path, name) : lremovexattr(path, name);
    return follow ? setxattr(path, name, value, size, flags)
                  : lsetxattr(path, name, value, size, flags);
}

static int rw_times(const struct fuse_setattr_in *s, int at, const char *name, int flags) {
    struct timespec ts[2] = { { .tv_nsec = UTIME_OMIT }, { .tv_nsec = UTIME_OMIT } };
    if (!(s->valid & (FATTR_ATIME | FATTR_MTIME))) return 0;
    if (s->valid & FATTR_ATIME)
        ts[0] = (struct timespec){ (time_t)s->atime, s->valid & FATTR_ATIME_NOW ? UTIME_NOW
                                                                              : (long)s->atimensec };
    if (s->valid & FATTR_MTIME)
        ts[1] = (struct timespec){ (time_t)s->mtime, s->valid & FATTR_MTIME_NOW ? UTIME_NOW
                                                                              : (long)s->mtimensec };
    return utimensat(at, name, ts, flags);
}

static int rw_setattr(struct rw *w, struct rw_node *n, const struct fuse_setattr_in *s) {
    char path[64 + NAME_LIMIT];
    struct stat st;
    if (rw_up(w, n, s->valid & FATTR_SIZE ? s->size : UINT64_MAX) ||
        rw_path(w, n, path, sizeof path))
        return -1;
    bool follow = n->orphan >= 0 || n == w->root;
    int nofollow = follow ? 0 : AT_SYMLINK_NOFOLLOW;
    if ((s->valid & (FATTR_UID | FATTR_GID)) &&
        fchownat(AT_FDCWD, path, s->valid & FATTR_UID ? s->uid : (uid_t)-1,
                 s->valid & FATTR_GID ? s->gid : (gid_t)-1, nofollow))
        return -1;
    if ((s->valid & FATTR_MODE) && chmod(path, s->mode & 07777)) return -1;
    if (s->valid & FATTR_SIZE) {
        int fd = rw_file(w, n);
        if (fd < 0) return -1;
        int rc = ftruncate(fd, (off_t)s->size);
        n->pins--;
        if (rc) return -1;
    }
    if ((s->valid & FATTR_KILL_SUIDGID) && !(s->valid & FATTR_MODE) && !rw_stat(w, n, &st) &&
        (st.st_mode & 06000) && S_ISREG(st.st_mode)) {
        mode_t m = st.st_mode & 07777 & ~(mode_t)S_ISUID;
        if (m & S_IXGRP) m &= ~(mode_t)S_ISGID;
        chmod(path, m);
    }
    return rw_times(s, AT_FDCWD, path, nofollow);
}

static int rw_tmpfile(struct rw *w, const struct fuse_in_header *h, const struct fuse_create_in *c,
                      struct rw_node **ret) {
    struct rw_node *d = rw_node(w, h->nodeid);
    struct stat st;
    if (!d) return errno = ESTALE, -1;
    int at = rw_up_dir(w, d) ? -1 : rw_dir(w, d);
    if (at < 0) return -1;
    umask(c->umask & 0777);
    AUTO_FD fd = openat(at, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, c->mode & 07777);
    int no = errno;
    umask(0);
    if (fd < 0) return errno = no, -1;
    if (fchown(fd, h->uid, h->gid) || fstat(fd, &st)) return -1;
    *ret = rw_node_new(w, 0, NO_INODE, S_IFREG, NULL, NULL);
    (*ret)->orphan = fd_steal(&fd);
    (*ret)->gone = true;
    rw_mark_upper(w, *ret, st.st_ino);
    return 0;
}

/* ---- 12.9 the writable tree: contents, without the lock ---- */

/* A node's file in the upper, pinned, with `up` copied there first; -1 with errno; -2: the contents
 * are the index's. */
static int rw_contents(struct rw *w, u64 id, bool up, struct rw_node **ret) {
    pthread_mutex_lock(&w->lock);
    struct rw_node *n = *ret = rw_node(w, id);
    int fd = -1;
    if (!n) errno = ESTALE;
    else if (!up && !n->upper) fd = -2;
    else if (!rw_up(w, n, UINT64_MAX)) fd = rw_file(w, n);
    int no = errno;
    pthread_mutex_unlock(&w->lock);
    return errno = no, fd;
}

static void rw_read(struct ufs_thread *t, const struct fuse_in_header *h,
                    const struct fuse_read_in *r) {
    struct rw *w = t->u->rw;
    struct rw_node *n;
    size_t size = r->size < UFS_READ_MAX ? r->size : UFS_READ_MAX;
    int fd = rw_contents(w, h->nodeid, false, &n);
    if (fd == -1) return ufs_reply(t, h->unique, -errno, NULL, 0);
    ssize_t k;
    if (fd == -2) {
        k = packs_read(&t->u->packs, &t->u->x.inodes[n->lower], t->out, size, r->offset);
        if (k < 0) errno = EIO;
    } else {
        k = pread(fd, t->out, size, (off_t)r->offset);
        rw_unpin(w, n);
    }
    ufs_reply(t, h->unique, k < 0 ? -errno : 0, t->out, k < 0 ? 0 : (size_t)k);
}

static void rw_write(struct ufs_thread *t, const struct fuse_in_header *h,
                     const struct fuse_write_in *in) {
    struct rw *w = t->u->rw;
    struct rw_node *n;
    struct fuse_write_out o = { 0 };
    struct stat st;
    int fd = rw_contents(w, h->nodeid, true, &n);
    if (fd < 0) return ufs_reply(t, h->unique, -errno, NULL, 0);
    ssize_t k = pwrite(fd, in + 1, in->size, (off_t)in->offset);
    int no = errno;
    if (k >= 0 && (in->write_flags & FUSE_WRITE_KILL_SUIDGID) && !fstat(fd, &st) &&
        (st.st_mode & 06000))
        fchmod(fd, st.st_mode & 07777 & ~(mode_t)(S_ISUID | (st.st_mode & S_IXGRP ? S_ISGID : 0)));
    rw_unpin(w, n);
    o.size = k < 0 ? 0 : (u32)k;
    ufs_reply(t, h->unique, k < 0 ? -no : 0, &o, sizeof o);
}

/* fsync, fallocate, lseek and copy_file_range: each a call on descriptors of the upper. */
static int rw_fsync(struct rw *w, const struct fuse_in_header *h, const struct fuse_fsync_in *s) {
    struct rw_node *n;
    if (w->is_volatile || !rw_touched(w, h->nodeid)) return 0;
    int fd = rw_contents(w, h->nodeid, false, &n);
    if (fd < 0) return fd == -2 ? 0 : -errno;
    int rc = (s->fsync_flags & 1 ? fdatasync(fd) : fsync(fd)) ? -errno : 0;
    rw_unpin(w, n);
    return rc;
}

static int rw_fsyncdir(struct rw *w, u64 id) {
    pthread_mutex_lock(&w->lock);
    struct rw_node *n = rw_node(w, id);
    int at = n && n->upper ? rw_dir(w, n) : -1;
    AUTO_FD fd = at < 0 ? -1 : openat(at, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    pthread_mutex_unlock(&w->lock);
    return fd >= 0 && !w->is_volatile && fsync(fd) ? -errno : 0;
}

static int rw_fallocate(struct rw *w, u64 id, const struct fuse_fallocate_in *f) {
    struct rw_node *n;
    int fd = rw_contents(w, id, true, &n);
    if (fd < 0) return -errno;
    int rc = fallocate(fd, (int)f->mode, (off_t)f->offset, (off_t)f->length) ? -errno : 0;
    rw_unpin(w, n);
    return rc;
}

/* SEEK_DATA and SEEK_HOLE in the chunks of a lower file; -1 with errno. */
static i64 rw_seek_lower(const struct ufs *u, const struct idx_inode *i, u64 off, bool hole) {
    u32 n;
    const struct idx_chunk *c = idx_chunks(&u->x, i, &n);
    if (off >= i->size) return errno = ENXIO, -1;
    for (u64 k = off >> i->chunk_shift; c && k < n; k++) {
        u64 at = k << i->chunk_shift;
        if (hole == !c[k].stored) return (i64)(at > off ? at : off);
    }
    return hole ? (i64)i->size : (errno = ENXIO, -1);
}

static void rw_lseek(struct ufs_thread *t, const struct fuse_in_header *h,
                     const struct fuse_lseek_in *s) {
    struct rw *w = t->u->rw;
    struct rw_node *n;
    struct fuse_lseek_out o = { 0 };
    int fd = rw_contents(w, h->nodeid, false, &n);
    if (fd == -1) return ufs_reply(t, h->unique, -errno, NULL, 0);
    i64 at = fd == -2 ? rw_seek_lower(t->u, &t->u->x.inodes[n->lower], s->offset,
                                      s->whence == SEEK_HOLE)
                      : lseek(fd, (off_t)s->offset, (int)s->whence);
    int no = errno;
    if (fd >= 0) rw_unpin(w, n);
    o.offset = (u64)at;
    ufs_reply(t, h->unique, at < 0 ? -no : 0, &o, sizeof o);
}

static void rw_copy_range(struct ufs_thread *t, const struct fuse_in_header *h,
                          const struct fuse_copy_file_range_in *c) {
    struct rw *w = t->u->rw;
    struct rw_node *from, *to = NULL;
    struct fuse_write_out o = { 0 };
    int in = rw_contents(w, h->nodeid, true, &from), out = -1;
    if (in >= 0) out = rw_contents(w, c->nodeid_out, true, &to);
    ssize_t k = -1;
    loff_t a = (loff_t)c->off_in, b = (loff_t)c->off_out;
    u64 len = c->len < 1 << 30 ? c->len : 1 << 30;
    if (out >= 0) k = copy_file_range(in, &a, out, &b, (size_t)len, 0);
    int no = errno;
    if (out >= 0) rw_unpin(w, to);
    if (in >= 0) rw_unpin(w, from);
    o.size = k < 0 ? 0 : (u32)k;
    ufs_reply(t, h->unique, k < 0 ? -no : 0, &o, sizeof o);
}

static void rw_forget(struct rw *w, u64 id, u64 count) {
    if (id <= w->u->x.head->inodes) return;
    pthread_mutex_lock(&w->lock);
    struct rw_node *n = rw_find(w, id);
    if (n) {
        n->lookups = n->lookups > count ? n->lookups - count : 0;
        rw_free(w, n);
    }
    pthread_mutex_unlock(&w->lock);
}

static void rw_forget_all(struct rw *w, const struct fuse_batch_forget_in *b, size_t n) {
    const struct fuse_forget_one *f = (const void *)(b + 1);
    for (u32 i = 0; i < b->count && (i + 1) * sizeof *f + sizeof *b <= n; i++)
        rw_forget(w, f[i].nodeid, f[i].nlookup);
}

/* Answers an errno or an entry, and leaves the lock. */
static void rw_answer(struct ufs_thread *t, u64 unique, int rc) {
    int no = errno;
    pthread_mutex_unlock(&t->u->rw->lock);
    ufs_reply(t, unique, rc ? -no : 0, NULL, 0);
}

static void rw_answer_entry(struct ufs_thread *t, u64 unique, struct rw_node *n, bool open) {
    struct {
        struct fuse_entry_out entry;
        struct fuse_open_out open;
    } o = { 0 };
    int rc = n ? rw_entry_out(t->u->rw, n, &o.entry) : -1, no = errno;
    pthread_mutex_unlock(&t->u->rw->lock);
    o.open.open_flags = FOPEN_KEEP_CACHE;
    ufs_reply(t, unique, rc ? -no : 0, &o, open ? sizeof o : sizeof o.entry);
}

/* The requests that change names, each under the lock; false: not one of them. */
static bool rw_serve_names(struct ufs_thread *t, const struct fuse_in_header *h, const void *arg) {
    struct rw *w = t->u->rw;
    const struct fuse_mknod_in *mk = arg;
    const struct fuse_mkdir_in *md = arg;
    const struct fuse_create_in *cr = arg;
    const struct fuse_rename_in *mv = arg;
    const struct fuse_rename2_in *mv2 = arg;
    const struct fuse_link_in *ln = arg;
    const char *text = arg;
    struct rw_node *n = NULL, *d;
    pthread_mutex_lock(&w->lock);
    switch (h->opcode) {
    case FUSE_MKNOD:
        n = rw_make(w, h, (const char *)(mk + 1), mk->mode, mk->rdev, mk->umask, NULL);
        return rw_answer_entry(t, h->unique, n, false), true;
    case FUSE_MKDIR:
        n = rw_make(w, h, (const char *)(md + 1), S_IFDIR | md->mode, 0, md->umask, NULL);
        return rw_answer_entry(t, h->unique, n, false), true;
    case FUSE_SYMLINK:
        n = rw_make(w, h, text, S_IFLNK | 0777, 0, 0, text + strlen(text) + 1);
        return rw_answer_entry(t, h->unique, n, false), true;
    case FUSE_TMPFILE:
        if (rw_tmpfile(w, h, cr, &n)) n = NULL;
        return rw_answer_entry(t, h->unique, n, true), true;
    case FUSE_UNLINK:
    case FUSE_RMDIR:
        d = rw_node(w, h->nodeid);
        if (!d) errno = ESTALE;
        return rw_answer(t, h->unique, d ? rw_remove(w, d, text, h->opcode == FUSE_RMDIR) : -1),
               true;
    case FUSE_RENAME:
    case FUSE_RENAME2: {
        bool two = h->opcode == FUSE_RENAME2;
        const char *old = two ? (const char *)(mv2 + 1) : (const char *)(mv + 1);
        d = rw_node(w, h->nodeid);
        n = rw_node(w, mv->newdir);
        if (!d || !n) errno = ESTALE;
        return rw_answer(t, h->unique,
                         d && n ? rw_rename(w, d, old, n, old + strlen(old) + 1,
                                            two ? mv2->flags : 0)
                                : -1),
               true;
    }
    case FUSE_LINK:
        n = rw_node(w, ln->oldnodeid);
        d = rw_node(w, h->nodeid);
        if (!d || !n) errno = ESTALE, n = NULL;
        else if (rw_link(w, n, d, (const char *)(ln + 1))) n = NULL;
        return rw_answer_entry(t, h->unique, n, false), true;
    }
    pthread_mutex_unlock(&w->lock);
    return false;
}

/* The requests about one node that may be in the upper; false: 12.2 answers from the index. */
static bool rw_serve_node(struct ufs_thread *t, const struct fuse_in_header *h, const void *arg) {
    struct rw *w = t->u->rw;
    const struct fuse_getxattr_in *g = arg;
    const struct fuse_setxattr_in *s = arg;
    bool change = h->opcode == FUSE_SETATTR || h->opcode == FUSE_SETXATTR ||
                  h->opcode == FUSE_REMOVEXATTR;
    if (!change && !rw_touched(w, h->nodeid)) return false;
    pthread_mutex_lock(&w->lock);
    struct rw_node *n = rw_node(w, h->nodeid);
    if (!n || (!change && !n->upper && !n->gone)) {
        pthread_mutex_unlock(&w->lock);
        if (!n) ufs_reply(t, h->unique, -ESTALE, NULL, 0);
        return !n;
    }
    size_t used = 0;
    ssize_t k = 0;
    int rc = 0;
    size_t max = g->size < UFS_READ_MAX ? g->size : UFS_READ_MAX;
    switch (h->opcode) {
    case FUSE_LOOKUP: rw_lookup(t, n, h->unique, arg); break;
    case FUSE_GETATTR:
    case FUSE_SETATTR: {
        struct fuse_attr_out o = { .attr_valid = UFS_FOREVER };
        rc = h->opcode == FUSE_SETATTR ? rw_setattr(w, n, arg) : 0;
        if (!rc) rc = rw_getattr(w, n, &o.attr);
        ufs_reply(t, h->unique, rc ? -errno : 0, &o, sizeof o);
        break;
    }
    case FUSE_READLINK: {
        char link[PATH_MAX];
        k = n->upper && n->orphan >= 0 ? readlinkat(n->orphan, "", link, sizeof link)
            : n->upper && n->parent    ? readlinkat(rw_dir(w, n->parent), n->name, link, sizeof link)
                                       : (errno = ESTALE, -1);
        ufs_reply(t, h->unique, k < 0 ? -errno : 0, link, k < 0 ? 0 : (size_t)k);
        break;
    }
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
        if (!n->gone) rc = rw_readdir(t, n, arg, h->opcode == FUSE_READDIRPLUS, &used);
        ufs_reply(t, h->unique, rc ? -errno : 0, t->out, used);
        break;
    case FUSE_GETXATTR:
    case FUSE_LISTXATTR:
        if (h->opcode == FUSE_LISTXATTR) k = rw_listxattr(w, n, (char *)t->out, max);
        else if (rw_xattr_hidden((const char *)(g + 1))) k = -1, errno = ENODATA;
        else k = rw_getxattr(w, n, (const char *)(g + 1), t->out, max);
        if (k >= 0 && !g->size) {
            struct fuse_getxattr_out o = { .size = (u32)k };
            ufs_reply(t, h->unique, 0, &o, sizeof o);
        } else ufs_reply(t, h->unique, k < 0 ? -errno : 0, t->out, k < 0 ? 0 : (size_t)k);
        break;
    case FUSE_SETXATTR: {
        /* without FUSE_SETXATTR_EXT the head is 8 bytes */
        const char *name = (const char *)arg + FUSE_COMPAT_SETXATTR_IN_SIZE;
        rc = rw_setxattr(w, n, name, name + strlen(name) + 1, s->size, (int)s->flags, false);
        ufs_reply(t, h->unique, rc ? -errno : 0, NULL, 0);
        break;
    }
    case FUSE_REMOVEXATTR:
        rc = rw_setxattr(w, n, arg, NULL, 0, 0, true);
        ufs_reply(t, h->unique, rc ? -errno : 0, NULL, 0);
        break;
    }
    pthread_mutex_unlock(&w->lock);
    return true;
}

/* One request to a writable tree; false: it is about what was never written. Flat. */
static bool rw_serve_one(struct ufs_thread *t, const struct fuse_in_header *h, const void *arg) {
    struct rw *w = t->u->rw;
    const struct fuse_forget_in *f = arg;
    switch (h->opcode) {
    case FUSE_FORGET: return rw_forget(w, h->nodeid, f->nlookup), true;
    case FUSE_BATCH_FORGET: return rw_forget_all(w, arg, h->len - sizeof *h), true;
    case FUSE_STATFS: {
        struct statvfs v;
        struct fuse_statfs_out o = { 0 };
        int rc = fstatvfs(w->upper, &v);
        if (!rc)
            o.st = (struct fuse_kstatfs){ .blocks = v.f_blocks,
                                          .bfree = v.f_bfree,
                                          .bavail = v.f_bavail,
                                          .files = v.f_files,
                                          .ffree = v.f_ffree,
                                          .bsize = (u32)v.f_bsize,
                                          .frsize = (u32)v.f_frsize,
                                          .namelen = NAME_LIMIT };
        return ufs_reply(t, h->unique, rc ? -errno : 0, &o, sizeof o), true;
    }
    case FUSE_MKNOD:
    case FUSE_MKDIR:
    case FUSE_SYMLINK:
    case FUSE_TMPFILE:
    case FUSE_UNLINK:
    case FUSE_RMDIR:
    case FUSE_RENAME:
    case FUSE_RENAME2:
    case FUSE_LINK: return rw_serve_names(t, h, arg);
    case FUSE_LOOKUP:
    case FUSE_GETATTR:
    case FUSE_SETATTR:
    case FUSE_READLINK:
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
    case FUSE_GETXATTR:
    case FUSE_LISTXATTR:
    case FUSE_SETXATTR:
    case FUSE_REMOVEXATTR: return rw_serve_node(t, h, arg);
    case FUSE_READ: return rw_touched(w, h->nodeid) && (rw_read(t, h, arg), true);
    case FUSE_WRITE: return rw_write(t, h, arg), true;
    case FUSE_FSYNC: return ufs_reply(t, h->unique, rw_fsync(w, h, arg), NULL, 0), true;
    case FUSE_FSYNCDIR:
        return ufs_reply(t, h->unique, rw_fsyncdir(w, h->nodeid), NULL, 0), true;
    case FUSE_FALLOCATE:
        return ufs_reply(t, h->unique, rw_fallocate(w, h->nodeid, arg), NULL, 0), true;
    case FUSE_LSEEK: return rw_lseek(t, h, arg), true;
    case FUSE_COPY_FILE_RANGE: return rw_copy_range(t, h, arg), true;
    case FUSE_RELEASE: return ufs_reply(t, h->unique, 0, NULL, 0), true;
    /* ENOSYS ends it for the connection: MKNOD does the same, and nothing is to be released then */
    case FUSE_CREATE: return ufs_reply(t, h->unique, -ENOSYS, NULL, 0), true;
    }
    return h->nodeid > w->u->x.head->inodes && h->opcode != FUSE_INIT && h->opcode != FUSE_DESTROY &&
           h->opcode != FUSE_INTERRUPT &&
           (ufs_reply(t, h->unique, h->opcode == FUSE_IOCTL ? -ENOTTY : -ENOSYS, NULL, 0), true);
}

/* Opens the writable tree: upper and work are directories of the container; consumed. */
static int rw_open(struct ufs *u, int upper, int work, bool is_volatile, struct err *e) {
    struct rw *w = mem_new(sizeof *w);
    struct stat st;
    *w = (struct rw){ .u = u, .upper = upper, .work = -1, .is_volatile = is_volatile, .mask = 255 };
    tree_remove(work, "skiff"); /* what a killed server left */
    if (mkdirat(work, "skiff", 0700) || (w->work = dir_open(work, "skiff", e)) < 0 ||
        fstat(upper, &st))
        return err_set(e, errno, "make the work directory of the file server");
    close(work);
    w->by_id = mem_new((w->mask + 1ul) * sizeof *w->by_id);
    w->by_ino = mem_new((w->mask + 1ul) * sizeof *w->by_ino);
    w->touched = mem_new(u->x.head->inodes / 8 + 1);
    w->next_id = (1ull << 32) + u->x.head->inodes;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->copied, NULL);
    w->root = rw_node_new(w, FUSE_ROOT_ID, 0, S_IFDIR, NULL, NULL);
    w->root->fd = upper;
    rw_mark_upper(w, w->root, st.st_ino);
    rw_touch(w, w->root);
    u->rw = w;
    return 0;
}

/* ---- 12.10 serving ---- */
/* One request. Flat: a case is an opcode. */
static void ufs_serve_one(struct ufs_thread *t, const struct fuse_in_header *h, const void *arg) {
    struct ufs *u = t->u;
    const struct idx_inode *i = h->nodeid ? idx_inode(&u->x, h->nodeid - 1) : NULL;
    if (u->rw && rw_serve_one(t, h, arg)) return;
    switch (h->opcode) {
    case FUSE_INIT: return ufs_init(t, h->unique, arg);
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT: return;
    case FUSE_STATFS: return ufs_statfs(t, h->unique);
    case FUSE_DESTROY: return ufs_reply(t, h->unique, 0, NULL, 0);
    }
    if (!i) return ufs_reply(t, h->unique, -ESTALE, NULL, 0);
    u32 ino = (u32)(h->nodeid - 1);
    switch (h->opcode) {
    case FUSE_LOOKUP: return ufs_lookup(t, h->unique, i, arg);
    case FUSE_GETATTR: {
        struct fuse_attr_out o = { .attr_valid = UFS_FOREVER };
        ufs_attr(u, ino, &o.attr);
        return ufs_reply(t, h->unique, 0, &o, sizeof o);
    }
    case FUSE_READLINK: {
        const char *s = S_ISLNK(i->mode) ? idx_name(&u->x, i->data, i->count) : NULL;
        return ufs_reply(t, h->unique, s ? 0 : -EINVAL, s, s ? i->count : 0);
    }
    case FUSE_READ: {
        const struct fuse_read_in *r = arg;
        size_t n = r->size < UFS_READ_MAX ? r->size : UFS_READ_MAX;
        ssize_t k = packs_read(&u->packs, i, t->out, n, r->offset);
        return ufs_reply(t, h->unique, k < 0 ? -EIO : 0, t->out, k < 0 ? 0 : (size_t)k);
    }
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
        return ufs_readdir(t, h->unique, ino, arg, h->opcode == FUSE_READDIRPLUS);
    case FUSE_GETXATTR:
    case FUSE_LISTXATTR: {
        const struct fuse_getxattr_in *g = arg;
        const char *want = h->opcode == FUSE_GETXATTR ? (const char *)(g + 1) : NULL;
        return ufs_getxattr(t, h->unique, i, g->size, want);
    }
    case FUSE_IOCTL: return ufs_reply(t, h->unique, -ENOTTY, NULL, 0);
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR: return ufs_reply(t, h->unique, 0, NULL, 0);
    case FUSE_SETATTR:
    case FUSE_WRITE:
    case FUSE_CREATE:
    case FUSE_MKNOD:
    case FUSE_MKDIR:
    case FUSE_SYMLINK:
    case FUSE_LINK:
    case FUSE_UNLINK:
    case FUSE_RMDIR:
    case FUSE_RENAME:
    case FUSE_RENAME2:
    case FUSE_SETXATTR:
    case FUSE_REMOVEXATTR: return ufs_reply(t, h->unique, -EROFS, NULL, 0);
    }
    ufs_reply(t, h->unique, -ENOSYS, NULL, 0);
}

static void *ufs_loop(void *arg) {
    struct ufs_thread *t = arg;
    size_t size = UFS_BUFFER + (t->u->rw ? UFS_WRITE_MAX : 0);
    u8 *in = mem_new(size);
    t->out = mem_new(UFS_READ_MAX);
    if (t->u->rw) unshare(CLONE_FS), umask(0); /* a umask of its own for each thread */
    for (;;) {
        ssize_t n = read(t->fd, in, size);
        if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT)) continue;
        if (n < (ssize_t)sizeof(struct fuse_in_header)) _exit(0); /* ENODEV: unmounted */
        ufs_serve_one(t, (void *)in, in + sizeof(struct fuse_in_header));
    }
}

/* Serves until the mount is gone; never returns. fds: the mounted device and its clones, consumed.
 * */
__attribute__((noreturn)) static void ufs_serve(struct ufs *u, const int *fds, unsigned n) {
    static struct ufs_thread threads[UFS_MAX_THREADS];
    prctl(PR_SET_NAME, "skiff-fs");
    for (unsigned i = n < UFS_MAX_THREADS ? n : UFS_MAX_THREADS; i-- > 0;) {
        threads[i] = (struct ufs_thread){ .u = u, .fd = fds[i] };
        pthread_t th;
        pthread_attr_t a;
        pthread_attr_init(&a);
        pthread_attr_setstacksize(&a, u->rw ? 1 << 20 : 64 << 10);
        if (!i) ufs_loop(&threads[i]);
        else if (pthread_create(&th, &a, ufs_loop, &threads[i])) close(fds[i]);
    }
    _exit(1);
}

/* Opens and mounts the device in the caller's user namespace at `at` (relative paths are fine).
 * Returns how many descriptors ret_fds got (the device and its clones), -1 on failure. */
static int ufs_mount(const char *at, bool writable, int *ret_fds, struct err *e) {
    int n = 0;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fd < 0) return err_set(e, errno, "open /dev/fuse");
    AUTO_FREE char *opts = str_fmt("fd=%d,rootmode=40755,user_id=%u,group_id=%u,allow_other,"
                                   "default_permissions,max_read=%d",
                                   fd, getuid(), getgid(), UFS_READ_MAX);
    if (mount("skiff", at, "fuse.skiff", (writable ? 0 : MS_RDONLY) | MS_NODEV | MS_NOATIME,
              opts)) {
        err_set(e, errno, "mount skiff's file system at %s", at);
        close(fd);
        return -1;
    }
    ret_fds[n++] = fd;
    while (n < cpus && n < UFS_MAX_THREADS) {
        u32 first = (u32)fd;
        int clone = open("/dev/fuse", O_RDWR | O_CLOEXEC);
        if (clone < 0 || ioctl(clone, FUSE_DEV_IOC_CLONE, &first)) {
            fd_closep(&clone);
            break; /* fewer threads, nothing else */
        }
        ret_fds[n++] = clone;
    }
    return n;
}
/* }==== 12 ufs */

/* {==== 13 idmap: which ids a container has ====
 * The ladder: real root keeps its ids; a user with a subuid range and a working newuidmap gets
 * 65,536 or more; everybody else gets one id, which is the container's root or, by choice, another
 * one. Uses: 1-7. Sources: user_namespaces(7), newuidmap(1). */
struct idmap_range {
    u32 inside, outside, count;
};

struct idmap {
    struct idmap_range uid[4], gid[4];
    unsigned uids, gids; /* 0: no user namespace */
    bool helper;         /* newuidmap and newgidmap must write the map */
    bool outside;        /* the parent writes it: by helper, or as root with ranges of its own */
};

static bool idmap_single(const struct idmap *m) { return m->uids == 1 && m->uid[0].count == 1; }

/* True where the id exists inside. */
static bool idmap_has(const struct idmap_range *r, unsigned n, u32 id) {
    for (unsigned i = 0; i < n; i++)
        if (id >= r[i].inside && id - r[i].inside < r[i].count) return true;
    return false;
}

/* The host's number of an id of the container; without a map the same. */
static u32 idmap_outside_id(const struct idmap_range *r, unsigned n, u32 id) {
    for (unsigned i = 0; i < n; i++)
        if (id >= r[i].inside && id - r[i].inside < r[i].count)
            return r[i].outside + (id - r[i].inside);
    return id;
}

/* Lets the helpers write the maps of a process: both at once, since their start is what costs. */
static int idmap_helper(pid_t pid, const struct idmap *m, struct err *e) {
    static const char *const NAME[] = { "newuidmap", "newgidmap" };
    struct proc p[2];
    int started = 0, rc = 0;
    for (; started < 2; started++) {
        const struct idmap_range *r = started ? m->gid : m->uid;
        unsigned n = started ? m->gids : m->uids;
        AUTO_STRV args = { 0 };
        strv_add(&args, NAME[started]);
        strv_take(&args, str_fmt("%d", (int)pid));
        for (unsigned i = 0; i < n; i++) {
            strv_take(&args, str_fmt("%u", r[i].inside));
            strv_take(&args, str_fmt("%u", r[i].outside));
            strv_take(&args, str_fmt("%u", r[i].count));
        }
        if (proc_begin(args.v, NULL, &p[started], e)) {
            rc = -1;
            break;
        }
    }
    for (int i = 0; i < started; i++) {
        AUTO_BUF out = { 0 };
        int status = proc_end(&p[i], &out);
        if (out.n && out.p[out.n - 1] == '\n') out.p[out.n - 1] = 0;
        if (status && !rc)
            rc = err_set(e, 0, "%s failed: %s", NAME[i], out.p && *out.p ? out.p : "no message");
    }
    return rc;
}

/* Writes the maps of a process in a new user namespace, from outside or (pid 0) for oneself. */
static int idmap_write(pid_t pid, const struct idmap *m, struct err *e) {
    char path[64], dir[32];
    if (m->helper) return idmap_helper(pid, m, e);
    if (pid) snprintf(dir, sizeof dir, "/proc/%d", (int)pid);
    else strcpy(dir, "/proc/self");
    for (int g = 1; g >= 0; g--) {
        const struct idmap_range *r = g ? m->gid : m->uid;
        unsigned n = g ? m->gids : m->uids;
        AUTO_BUF text = { 0 };
        for (unsigned i = 0; i < n; i++)
            buf_addf(&text, "%u %u %u\n", r[i].inside, r[i].outside, r[i].count);
        /* user_namespaces(7): a gid map of one's own wants setgroups denied first */
        snprintf(path, sizeof path, "%s/setgroups", dir);
        if (g && idmap_single(m)) file_poke(AT_FDCWD, path, "deny");
        snprintf(path, sizeof path, "%s/%s", dir, g ? "gid_map" : "uid_map");
        if (file_poke(AT_FDCWD, path, text.p)) return err_set(e, errno, "write %s", path);
    }
    return 0;
}

/* Does a map by the helpers really work here? Tried in a throw-away child. */
static bool idmap_works(const struct idmap *m) {
    int pipes[2];
    if (pipe2(pipes, O_CLOEXEC)) return false;
    struct sys_clone_args a = { .flags = CLONE_NEWUSER, .exit_signal = SIGCHLD };
    pid_t pid = sys_clone3(&a);
    if (!pid) {
        char c;
        close(pipes[1]);
        (void)!read(pipes[0], &c, 1);
        _exit(0);
    }
    struct err e;
    bool ok = pid > 0 && !idmap_write(pid, m, &e);
    close(pipes[0]);
    close(pipes[1]);
    if (pid > 0) waitpid(pid, NULL, 0);
    return ok;
}

/* The map over a subuid range; false where there is none or it does not work. The trial costs some
 * milliseconds and is remembered in cache/ for this boot. */
static bool idmap_subid(int store, struct idmap *ret) {
    u32 us, uc, gs, gc;
    if (!host_subid("/etc/subuid", &us, &uc) || !host_subid("/etc/subgid", &gs, &gc)) return false;
    AUTO_FREE char *helper = host_program("newuidmap"), *helper2 = host_program("newgidmap");
    if (!helper || !helper2) return false;
    *ret = (struct idmap){ .uid = { { 0, geteuid(), 1 }, { 1, us, uc } },
                           .uids = 2,
                           .gid = { { 0, getegid(), 1 }, { 1, gs, gc } },
                           .gids = 2,
                           .helper = true,
                           .outside = true };
    char boot[64] = "", name[128], answer[8] = "";
    file_line(AT_FDCWD, "/proc/sys/kernel/random/boot_id", boot, sizeof boot);
    snprintf(name, sizeof name, "cache/subid-%.40s-%u-%u", boot, us, uc);
    file_line(store, name, answer, sizeof answer);
    if (strcmp(answer, "yes") && strcmp(answer, "no")) {
        struct err e;
        strcpy(answer, idmap_works(ret) ? "yes" : "no");
        file_replace(store, "cache/.subid", answer, strlen(answer), 0600, 0, &e);
        renameat(store, "cache/.subid", store, name);
    }
    return !strcmp(answer, "yes");
}

/* The map that a user namespace gets when nothing is said: root's is the one that this process has.
 * */
static void idmap_own(struct idmap *ret) {
    for (int g = 0; g < 2; g++) {
        AUTO_BUF b = { 0 };
        struct err ignored;
        struct idmap_range *r = g ? ret->gid : ret->uid;
        unsigned n = 0, in, out, count;
        file_read(AT_FDCWD, g ? "/proc/self/gid_map" : "/proc/self/uid_map", 4096, &b, &ignored);
        for (char *line = b.p; line && *line && n < ARRAY_LEN(ret->uid);
             line = strchr(line, '\n'), line = line ? line + 1 : NULL)
            if (sscanf(line, "%u %u %u", &in, &out, &count) == 3)
                r[n++] = (struct idmap_range){ in, in, count };
        *(g ? &ret->gids : &ret->uids) = n;
    }
}

/* Chooses the map: mode is "" (the ladder), "host", "keep-id", "single"; uid and gid are what the
 * container's first process will be. */
static int idmap_choose(int store, const char *mode, u32 uid, u32 gid, struct idmap *ret,
                        struct err *e) {
    struct idmap sub;
    *ret = (struct idmap){ 0 };
    bool keep = !strcmp(mode, "keep-id"), single = !strcmp(mode, "single");
    if (!strcmp(mode, "host") || (!geteuid() && !*mode)) {
        if (geteuid())
            return err_set(
                e, 0, "--userns=host needs root: a user without root runs in a user namespace");
        return 0;
    }
    if (*mode && !keep && !single && strcmp(mode, "auto"))
        return err_set(e, 0, "--userns=%s is not one of auto, host, keep-id, single", mode);
    u32 host_uid = geteuid(), host_gid = getegid();
    if (single || !idmap_subid(store, &sub)) {
        u32 to_uid = keep ? host_uid : uid, to_gid = keep ? host_gid : gid;
        *ret = (struct idmap){ .uid = { { to_uid, host_uid, 1 } },
                               .uids = 1,
                               .gid = { { to_gid, host_gid, 1 } },
                               .gids = 1 };
        return 0;
    }
    *ret = sub;
    if (!keep) return 0;
    /* keep-id: the user's own number inside too, the range around it */
    for (int g = 0; g < 2; g++) {
        struct idmap_range *r = g ? ret->gid : ret->uid, range = r[1];
        u32 own = g ? host_gid : host_uid, below = own < range.count ? own : range.count;
        unsigned n = 0;
        if (below) r[n++] = (struct idmap_range){ 0, range.outside, below };
        r[n++] = (struct idmap_range){ own, own, 1 };
        if (below < range.count)
            r[n++] = (struct idmap_range){ own + 1, range.outside + below, range.count - below };
        *(g ? &ret->gids : &ret->uids) = n;
    }
    return 0;
}
/* }==== 13 idmap */

/* {==== 14 sec: seccomp, capabilities ====
 * The default is Docker's profile as a table. A compiled filter is kept in cache/, named by the
 * digest of everything that it is made from, because compiling costs 8 ms and reading 20 µs. Uses:
 * 1-7. Sources: seccomp(2), capabilities(7), moby/profiles seccomp v0.2.3, libseccomp(3). */

/* ---- 14.1 capabilities ---- */
static const char *const CAP_NAMES[] = {
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
};
#define CAP_BIT(c) (1ull << (c))
static const u64 CAP_ALL = (1ull << ARRAY_LEN(CAP_NAMES)) - 1;
static const u64 CAP_DOCKER =
    CAP_BIT(CAP_CHOWN) | CAP_BIT(CAP_DAC_OVERRIDE) | CAP_BIT(CAP_FSETID) | CAP_BIT(CAP_FOWNER) |
    CAP_BIT(CAP_MKNOD) | CAP_BIT(CAP_NET_RAW) | CAP_BIT(CAP_SETGID) | CAP_BIT(CAP_SETUID) |
    CAP_BIT(CAP_SETFCAP) | CAP_BIT(CAP_SETPCAP) | CAP_BIT(CAP_NET_BIND_SERVICE) |
    CAP_BIT(CAP_SYS_CHROOT) | CAP_BIT(CAP_KILL) | CAP_BIT(CAP_AUDIT_WRITE);

/* Number of a capability by name, with or without CAP_, in any case; -1: unknown. */
static int cap_number(const char *name) {
    if (!strncasecmp(name, "CAP_", 4)) name += 4;
    for (size_t i = 0; i < ARRAY_LEN(CAP_NAMES); i++)
        if (!strcasecmp(name, CAP_NAMES[i])) return (int)i;
    return -1;
}

static json_t *cap_json(u64 set) {
    json_t *a = json_array();
    for (size_t i = 0; i < ARRAY_LEN(CAP_NAMES); i++)
        if (set & CAP_BIT(i)) {
            AUTO_FREE char *s = str_fmt("CAP_%s", CAP_NAMES[i]);
            js_push(a, s);
        }
    return a;
}

/* ---- 14.2 seccomp: the default profile ---- */
/* Equals moby/profiles seccomp/v0.2.3. What no rule allows fails with SECCOMP_DEFAULT_ERRNO; rules
 * for one system call are or-ed; names that this libseccomp does not know are passed over. */
#define SECCOMP_DEFAULT_ERRNO EPERM

/* sub-architectures of a native one; arch and sub are for seccomp_arch_resolve_name() */
static const struct scmp_arch {
    const char *docker; /* name in scmp_rule.arches */
    const char *arch;   /* native, libseccomp's name */
    const char *sub;    /* space separated; unknown to this libseccomp: skip */
} SECCOMP_ARCHES[] = {
    { "amd64", "x86_64", "x86 x32" },
    { "arm64", "aarch64", "arm" },
    { "mips64", "mips64", "mips mips64n32" },
    { "mips64n32", "mips64n32", "mips mips64" },
    { "mipsel64", "mipsel64", "mipsel mipsel64n32" },
    { "mips3l64n32", "mipsel64n32", "mipsel mipsel64" },
    { "s390x", "s390x", "s390" },
    { "riscv64", "riscv64", "" },
    { "loongarch64", "loongarch64", "" },
    /* not in moby's map: native only */
    { "x86", "x86", "" },
    { "arm", "arm", "" },
    { "mipsel", "mipsel", "" },
    { "ppc", "ppc", "" },
    { "ppc64", "ppc64", "" },
    { "ppc64le", "ppc64le", "" },
    { "s390", "s390", "" },
};

/* a rule holds if cap, without_cap, minkernel and arches all agree */
static const struct scmp_rule {
    const char *names;  /* space separated; unknown to this libseccomp: skip */
    int cap;            /* CAP_* that must be in the bounding set; -1: none */
    int without_cap;    /* CAP_* that must not be in it; -1: none */
    unsigned minkernel; /* major << 8 | minor; 0: any */
    struct {
        unsigned char arg, op; /* op: SCMP_CMP_*; 0: no condition */
        uint64_t a, b;         /* datum_a, datum_b (SCMP_CMP_MASKED_EQ: mask, value) */
    } cond;
    int action_errno;   /* 0: allow; else the errno returned */
    const char *arches; /* native arch, Docker's names; NULL: all; "!a b": all but these */
} SECCOMP_DEFAULT[] = {
    { "accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown "
      "chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime "
      "clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect "
      "copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old "
      "epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit "
      "exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir "
      "fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr "
      "flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 "
      "fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv "
      "futex_wake futimesat getcpu getcwd getdents getdents64 getegid getegid32 geteuid "
      "geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp "
      "getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 "
      "getrlimit get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid "
      "gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init "
      "inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents io_pgetevents "
      "io_pgetevents_time64 ioprio_get ioprio_set io_setup io_submit ipc kill landlock_add_rule "
      "landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat "
      "listen listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr "
      "lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir "
      "mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify "
      "mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink "
      "mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap "
      "name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open "
      "pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 "
      "prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 "
      "pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg "
      "recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat "
      "renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending "
      "rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait "
      "rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam "
      "sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval "
      "sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam "
      "sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop "
      "semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32 "
      "setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority "
      "setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 "
      "setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid "
      "setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd "
      "signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 "
      "statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time "
      "timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime "
      "timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime "
      "timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat "
      "uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid "
      "write writev",
      -1,
      -1,
      0,
      { 0 },
      0,
      NULL },
    { "process_vm_readv process_vm_writev ptrace", -1, -1, 0x0408, { 0 }, 0, NULL },
    /* all families but AF_ALG (38) and AF_VSOCK (40); not behind i386 socketcall */
    { "socket", -1, -1, 0, { 0, SCMP_CMP_LT, 38, 0 }, 0, NULL },
    { "socket", -1, -1, 0, { 0, SCMP_CMP_EQ, 39, 0 }, 0, NULL },
    { "socket", -1, -1, 0, { 0, SCMP_CMP_GT, 40, 0 }, 0, NULL },
    /* PER_LINUX, PER_LINUX32, UNAME26 alone and with LINUX32, query */
    { "personality", -1, -1, 0, { 0, SCMP_CMP_EQ, 0, 0 }, 0, NULL },
    { "personality", -1, -1, 0, { 0, SCMP_CMP_EQ, 8, 0 }, 0, NULL },
    { "personality", -1, -1, 0, { 0, SCMP_CMP_EQ, 0x20000, 0 }, 0, NULL },
    { "personality", -1, -1, 0, { 0, SCMP_CMP_EQ, 0x20008, 0 }, 0, NULL },
    { "personality", -1, -1, 0, { 0, SCMP_CMP_EQ, 0xffffffff, 0 }, 0, NULL },
    { "sync_file_range2 swapcontext", -1, -1, 0, { 0 }, 0, "ppc64le" },
    { "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
      -1,
      -1,
      0,
      { 0 },
      0,
      "arm arm64" },
    { "arch_prctl", -1, -1, 0, { 0 }, 0, "amd64 x32" },
    { "modify_ldt", -1, -1, 0, { 0 }, 0, "amd64 x32 x86" },
    { "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
      -1,
      -1,
      0,
      { 0 },
      0,
      "s390 s390x" },
    { "riscv_flush_icache", -1, -1, 0, { 0 }, 0, "riscv64" },
    { "open_by_handle_at", CAP_DAC_READ_SEARCH, -1, 0, { 0 }, 0, NULL },
    { "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie "
      "lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount "
      "open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog "
      "umount umount2 unshare",
      CAP_SYS_ADMIN,
      -1,
      0,
      { 0 },
      0,
      NULL },
    /* no CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}; s390 has the flags second */
    { "clone", -1, CAP_SYS_ADMIN, 0, { 0, SCMP_CMP_MASKED_EQ, 0x7e020000, 0 }, 0, "!s390 s390x" },
    { "clone", -1, CAP_SYS_ADMIN, 0, { 1, SCMP_CMP_MASKED_EQ, 0x7e020000, 0 }, 0, "s390 s390x" },
    /* flags are out of reach in memory: make the libc fall back to clone */
    { "clone3", -1, CAP_SYS_ADMIN, 0, { 0 }, ENOSYS, NULL },
    { "reboot", CAP_SYS_BOOT, -1, 0, { 0 }, 0, NULL },
    { "chroot", CAP_SYS_CHROOT, -1, 0, { 0 }, 0, NULL },
    { "delete_module init_module finit_module", CAP_SYS_MODULE, -1, 0, { 0 }, 0, NULL },
    { "acct", CAP_SYS_PACCT, -1, 0, { 0 }, 0, NULL },
    { "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
      CAP_SYS_PTRACE,
      -1,
      0,
      { 0 },
      0,
      NULL },
    { "iopl ioperm", CAP_SYS_RAWIO, -1, 0, { 0 }, 0, NULL },
    { "settimeofday stime clock_settime clock_settime64", CAP_SYS_TIME, -1, 0, { 0 }, 0, NULL },
    { "vhangup", CAP_SYS_TTY_CONFIG, -1, 0, { 0 }, 0, NULL },
    { "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
      CAP_SYS_NICE,
      -1,
      0,
      { 0 },
      0,
      NULL },
    { "syslog", CAP_SYSLOG, -1, 0, { 0 }, 0, NULL },
    { "bpf", CAP_BPF, -1, 0, { 0 }, 0, NULL },
    { "perf_event_open", CAP_PERFMON, -1, 0, { 0 }, 0, NULL },
};

/* ---- 14.3 seccomp: building and loading ---- */

/* A filter as the kernel takes it. */
struct filter {
    struct sock_filter *code; /* owned; NULL: none */
    unsigned short n;
    u32 flags; /* SECCOMP_FILTER_FLAG_* */
};

/* What a filter for the built-in profile depends on. */
struct filter_want {
    u64 caps;              /* bounding set */
    bool fake_root;        /* one id only: ownership and identity calls pretend success */
    const json_t *profile; /* an OCI linux.seccomp object; NULL: the built-in profile */
    bool strict;           /* an unknown system call is an error */
};

/* Calls that succeed without effect where there is only one id, so that package managers run; the
 * choice is Charliecloud's (ch-run(1), --seccomp). */
static const char FAKE_CALLS[] = "chown chown32 fchown fchown32 fchownat lchown lchown32 setuid "
                                 "setuid32 setgid setgid32 setreuid "
                                 "setreuid32 setregid setregid32 setresuid setresuid32 setresgid "
                                 "setresgid32 setfsuid setfsuid32 "
                                 "setfsgid setfsgid32 setgroups setgroups32 capset";

static const struct scmp_arch *filter_native(void) {
    u32 native = seccomp_arch_native();
    for (size_t i = 0; i < ARRAY_LEN(SECCOMP_ARCHES); i++)
        if (seccomp_arch_resolve_name(SECCOMP_ARCHES[i].arch) == native) return &SECCOMP_ARCHES[i];
    return NULL;
}

static bool filter_rule_holds(const struct scmp_rule *r, const struct filter_want *w,
                              const char *arch, unsigned kernel) {
    if (r->cap >= 0 && !(w->caps & CAP_BIT(r->cap))) return false;
    if (r->without_cap >= 0 && (w->caps & CAP_BIT(r->without_cap))) return false;
    if (r->minkernel > kernel) return false;
    if (!r->arches) return true;
    bool not = *r->arches == '!';
    return word_in(r->arches + not, arch, strlen(arch)) != not ;
}

static unsigned host_kernel(void) {
    struct utsname u;
    unsigned major = 0, minor = 0;
    if (!uname(&u)) sscanf(u.release, "%u.%u", &major, &minor);
    return major << 8 | (minor & 0xff);
}

/* Adds a word list; *max follows the highest native number. */
static void filter_add(scmp_filter_ctx ctx, u32 action, const char *names, const char *except,
                       const struct scmp_arg_cmp *cmp, int *max) {
    char name[64];
    for (const char *p = names; *p;) {
        size_t k = strcspn(p, " ");
        bool skip = word_in(except, p, k) || k >= sizeof name;
        snprintf(name, sizeof name, "%.*s", (int)k, p);
        p += k + (p[k] == ' ');
        int nr = skip ? __NR_SCMP_ERROR : seccomp_syscall_resolve_name(name);
        if (nr == __NR_SCMP_ERROR) continue;
        if (nr > *max && nr < 0x10000) *max = nr;
        seccomp_rule_add_array(ctx, action, nr, cmp ? 1 : 0, cmp);
    }
}

static int filter_builtin(scmp_filter_ctx ctx, const struct filter_want *w, int *max) {
    static const char MKNODS[] = "mknod mknodat";
    const struct scmp_arch *native = filter_native();
    unsigned kernel = host_kernel();
    AUTO_FREE char *except =
        str_fmt("%s %s", w->fake_root ? FAKE_CALLS : "", w->fake_root ? MKNODS : "");
    for (size_t i = 0; native && i < ARRAY_LEN(SECCOMP_DEFAULT); i++) {
        const struct scmp_rule *r = &SECCOMP_DEFAULT[i];
        if (!filter_rule_holds(r, w, native->docker, kernel)) continue;
        struct scmp_arg_cmp cmp = { r->cond.arg, (enum scmp_compare)r->cond.op, r->cond.a,
                                    r->cond.b };
        u32 action = r->action_errno ? SCMP_ACT_ERRNO((u32)r->action_errno) : SCMP_ACT_ALLOW;
        filter_add(ctx, action, r->names, except, r->cond.op ? &cmp : NULL, max);
    }
    if (!w->fake_root) return 0;
    filter_add(ctx, SCMP_ACT_ERRNO(0), FAKE_CALLS, "", NULL, max);
    for (int at = 0; at < 2; at++) { /* mknod: devices pretend, all else is real */
        const char *name = at ? "mknodat" : "mknod";
        unsigned arg = at ? 2 : 1;
        static const mode_t KINDS[] = { 0,       S_IFREG, S_IFIFO, S_IFSOCK,
                                        S_IFCHR, S_IFBLK, S_IFDIR, S_IFLNK };
        for (size_t k = 0; k < ARRAY_LEN(KINDS); k++) {
            struct scmp_arg_cmp cmp = { arg, SCMP_CMP_MASKED_EQ, S_IFMT, KINDS[k] };
            u32 action =
                KINDS[k] == S_IFCHR || KINDS[k] == S_IFBLK ? SCMP_ACT_ERRNO(0) : SCMP_ACT_ALLOW;
            filter_add(ctx, action, name, "", &cmp, max);
        }
    }
    return 0;
}

/* An action of the OCI spec; 0: not known. */
static u32 filter_action(const char *name, i64 errno_ret, i64 dflt_errno) {
    if (str_eq(name, "SCMP_ACT_ALLOW")) return SCMP_ACT_ALLOW;
    if (str_eq(name, "SCMP_ACT_ERRNO"))
        return SCMP_ACT_ERRNO((u32)(errno_ret >= 0    ? errno_ret
                                    : dflt_errno >= 0 ? dflt_errno
                                                      : EPERM) &
                              0xffff);
    if (str_eq(name, "SCMP_ACT_KILL") || str_eq(name, "SCMP_ACT_KILL_THREAD"))
        return SCMP_ACT_KILL_THREAD;
    if (str_eq(name, "SCMP_ACT_KILL_PROCESS")) return SCMP_ACT_KILL_PROCESS;
    if (str_eq(name, "SCMP_ACT_TRAP")) return SCMP_ACT_TRAP;
    if (str_eq(name, "SCMP_ACT_LOG")) return SCMP_ACT_LOG;
    if (str_eq(name, "SCMP_ACT_NOTIFY")) return SCMP_ACT_NOTIFY;
    if (str_eq(name, "SCMP_ACT_TRACE"))
        return SCMP_ACT_TRACE((u32)(errno_ret >= 0 ? errno_ret : 0) & 0xffff);
    return 0;
}

static int filter_op(const char *op) {
    static const char *const OPS[] = { "",
                                       "SCMP_CMP_NE",
                                       "SCMP_CMP_LT",
                                       "SCMP_CMP_LE",
                                       "SCMP_CMP_EQ",
                                       "SCMP_CMP_GE",
                                       "SCMP_CMP_GT",
                                       "SCMP_CMP_MASKED_EQ" };
    for (int i = 1; op && i < (int)ARRAY_LEN(OPS); i++)
        if (!strcmp(op, OPS[i])) return i;
    return 0;
}

/* Docker's own profile form has includes and excludes; they are looked at as Docker does. */
static bool filter_applies(const json_t *rule, const struct filter_want *w, const char *arch) {
    for (int ex = 0; ex < 2; ex++) {
        const json_t *c = js_get(rule, ex ? "excludes" : "includes"), *v;
        size_t i;
        if (!json_is_object(c)) continue;
        json_array_foreach (js_get(c, "caps"), i, v) {
            int cap = cap_number(json_string_value(v) ? json_string_value(v) : "");
            bool have = cap >= 0 && (w->caps & CAP_BIT(cap));
            if (ex ? have : !have) return false;
        }
        AUTO_STRV arches = { 0 };
        js_to_strv(js_get(c, "arches"), &arches);
        if (arches.n && strv_has(&arches, arch) == ex) return false;
        unsigned major = 0, minor = 0;
        const char *min = js_str(c, "minKernel");
        if (!ex && min && sscanf(min, "%u.%u", &major, &minor) == 2 &&
            host_kernel() < (major << 8 | minor))
            return false;
    }
    return true;
}

static int filter_json_rule(scmp_filter_ctx ctx, const struct filter_want *w, const json_t *rule,
                            size_t at, i64 dflt_errno, int *max, struct err *e) {
    struct scmp_arg_cmp cmp[6] = { 0 };
    unsigned n = 0;
    u32 action = filter_action(js_str(rule, "action"), js_int(rule, "errnoRet", -1), dflt_errno);
    if (!action) return err_set(e, 0, "seccomp: /syscalls/%zu/action: unknown or unsupported", at);
    size_t i;
    json_t *v;
    json_array_foreach (js_get(rule, "args"), i, v) {
        int op = filter_op(js_str(v, "op"));
        if (!op || n == 6)
            return err_set(e, 0, "seccomp: /syscalls/%zu/args/%zu: bad condition", at, i);
        cmp[n++] =
            (struct scmp_arg_cmp){ (unsigned)js_int(v, "index", 0), (enum scmp_compare)op,
                                   (u64)js_int(v, "value", 0), (u64)js_int(v, "valueTwo", 0) };
    }
    AUTO_STRV names = { 0 };
    if (js_str(rule, "name")) strv_add(&names, js_str(rule, "name"));
    js_to_strv(js_get(rule, "names"), &names);
    for (size_t k = 0; k < names.n; k++) {
        int nr = seccomp_syscall_resolve_name(names.v[k]);
        if (nr == __NR_SCMP_ERROR && w->strict)
            return err_set(e, 0, "seccomp: /syscalls/%zu/names/%zu: unknown system call '%.60s'",
                           at, k, names.v[k]);
        if (nr == __NR_SCMP_ERROR) continue;
        /* we would wait for the listener in the very call that hands it over */
        if (action == SCMP_ACT_NOTIFY && !strcmp(names.v[k], "sendmsg"))
            return err_set(e, 0,
                           "seccomp: /syscalls/%zu: SCMP_ACT_NOTIFY cannot be had for sendmsg", at);
        if (nr > *max && nr < 0x10000) *max = nr;
        /* conditions on one argument twice mean "or" in the kernel's eyes of libseccomp: add each
         * */
        bool twice = n == 2 && cmp[0].arg == cmp[1].arg;
        for (unsigned c = 0; c < (twice ? 2 : 1); c++) {
            int rc = seccomp_rule_add_array(ctx, action, nr, twice ? 1 : n, cmp + c);
            if (rc && rc != -EACCES && rc != -EEXIST)
                return err_set(e, -rc, "seccomp: /syscalls/%zu: %s", at, names.v[k]);
        }
    }
    return 0;
}

static int filter_json(scmp_filter_ctx ctx, const struct filter_want *w, int *max, struct err *e) {
    const struct scmp_arch *native = filter_native();
    i64 dflt = js_int(w->profile, "defaultErrnoRet", -1);
    json_t *v;
    size_t i;
    json_array_foreach (js_get(w->profile, "syscalls"), i, v) {
        u32 action = filter_action(js_str(v, "action"), js_int(v, "errnoRet", -1), dflt);
        u32 all = 0;
        seccomp_attr_get(ctx, SCMP_FLTATR_ACT_DEFAULT, &all);
        if (action == all || !filter_applies(v, w, native ? native->docker : "")) continue;
        if (filter_json_rule(ctx, w, v, i, dflt, max, e)) return -1;
    }
    return 0;
}

/* Calls newer than the profile answer ENOSYS, so that programs take their fall-back (runc does the
 * same): a prelude of four instructions for the native architecture. */
static void filter_prelude(struct filter *f, int max) {
#if defined(__x86_64__)
    const u32 arch = 0xc000003e;
#elif defined(__aarch64__)
    const u32 arch = 0xc00000b7;
#else
    const u32 arch = 0;
#endif /* architecture */
    const struct sock_filter pre[] = {
        { 0x20, 0, 0, 4 },          /* ld [arch] */
        { 0x15, 0, 4, arch },       /* not native: past the prelude */
        { 0x20, 0, 0, 0 },          /* ld [nr] */
        { 0x35, 2, 0, 0x40000000 }, /* x32: past */
        { 0x25, 0, 1, (u32)max },   { 0x06, 0, 0, 0x00050000 | ENOSYS }, /* ret ERRNO(ENOSYS) */
    };
    struct sock_filter *code = mem_new((f->n + ARRAY_LEN(pre)) * sizeof *code);
    memcpy(code, pre, sizeof pre);
    memcpy(code + ARRAY_LEN(pre), f->code, f->n * sizeof *code);
    free(f->code);
    f->code = code;
    f->n = (unsigned short)(f->n + ARRAY_LEN(pre));
}

static int filter_export(scmp_filter_ctx ctx, struct filter *ret, struct err *e) {
    AUTO_FD fd = (int)syscall(SYS_memfd_create, "bpf", 1u /* MFD_CLOEXEC */);
    AUTO_BUF b = { 0 };
    int rc;
    if (fd < 0) return err_set(e, errno, "memfd_create");
    if ((rc = seccomp_export_bpf(ctx, fd))) return err_set(e, -rc, "compile the seccomp filter");
    if (lseek(fd, 0, SEEK_SET) || fd_slurp(fd, 1 << 20, &b))
        return err_set(e, errno, "read the seccomp filter");
    if (b.n / sizeof(struct sock_filter) + 8 > 4096)
        return err_set(e, 0, "seccomp filter is too long");
    ret->n = (unsigned short)(b.n / sizeof(struct sock_filter));
    ret->code = (void *)buf_steal(&b);
    return 0;
}

static int filter_compile(const struct filter_want *w, struct filter *ret, struct err *e) {
    const json_t *p = w->profile;
    u32 dflt = p ? filter_action(js_str(p, "defaultAction"), js_int(p, "defaultErrnoRet", -1), -1)
                 : SCMP_ACT_ERRNO(SECCOMP_DEFAULT_ERRNO);
    if (!dflt) return err_set(e, 0, "seccomp: /defaultAction: missing, unknown or unsupported");
    scmp_filter_ctx ctx = mem_check(seccomp_init(dflt));
    /* a binary tree: the kernel runs the filter once a call number when it is loaded */
    seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    int max = 0, rc = -1;
    const struct scmp_arch *native = filter_native();
    size_t at;
    json_t *named;
    json_array_foreach (js_get(p, "architectures"), at, named) {
        AUTO_FREE char *word = str_dup(json_string_value(named) ? json_string_value(named) : "");
        for (char *c = word; *c; c++) *c = (char)tolower((u8)*c);
        u32 token = str_prefix(word, "scmp_arch_") ? seccomp_arch_resolve_name(word + 10) : 0;
        if (token) seccomp_arch_add(ctx, token);
    }
    for (const char *s = native && (!p || js_get(p, "archMap")) ? native->sub : ""; *s;) {
        char name[32];
        size_t k = strcspn(s, " ");
        snprintf(name, sizeof name, "%.*s", (int)k, s);
        u32 token = seccomp_arch_resolve_name(name);
        if (token) seccomp_arch_add(ctx, token);
        s += k + (s[k] == ' ');
    }
    if (p ? !filter_json(ctx, w, &max, e) : !filter_builtin(ctx, w, &max))
        rc = filter_export(ctx, ret, e);
    seccomp_release(ctx);
    bool denies =
        dflt != SCMP_ACT_ALLOW && dflt != SCMP_ACT_LOG && (dflt & 0xffff0000u) != SCMP_ACT_TRACE(0);
    if (!rc && max && denies) filter_prelude(ret, max);
    return rc;
}

static void filter_done(struct filter *f) { mem_freep(&f->code); }

/* SECCOMP_FILTER_FLAG_* of a profile. */
static int filter_flags(const json_t *profile, u32 *ret, struct err *e) {
    static const struct {
        const char *name;
        u32 flag;
    } FLAGS[] = {
        { "SECCOMP_FILTER_FLAG_TSYNC", 1 },
        { "SECCOMP_FILTER_FLAG_LOG", 2 },
        { "SECCOMP_FILTER_FLAG_SPEC_ALLOW", 4 },
        { "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", 32 },
    };
    const json_t *v;
    size_t i;
    *ret = js_str(profile, "listenerPath") ? 8 /* NEW_LISTENER */ : 0;
    json_array_foreach (js_get(profile, "flags"), i, v) {
        u32 flag = 0;
        for (size_t k = 0; k < ARRAY_LEN(FLAGS); k++)
            if (str_eq(json_string_value(v), FLAGS[k].name)) flag = FLAGS[k].flag;
        if (!flag) return err_set(e, 0, "seccomp: /flags/%zu: unknown", i);
        *ret |= flag & ~1u; /* we have one thread; with a listener the kernel refuses it */
    }
    return 0;
}

/* The compiled filter, from cache/ of the store or compiled and put there. */
static int filter_get(int store, const struct filter_want *w, struct filter *ret, struct err *e) {
    AUTO_FREE char *text =
        w->profile ? js_dump(w->profile, JSON_COMPACT | JSON_SORT_KEYS) : str_dup("builtin");
    AUTO_FREE char *key = str_fmt("%s %s %x %" PRIx64 " %d %d %s", SKIFF_VERSION, host_arch(),
                                  host_kernel(), w->caps, w->fake_root, w->strict, text);
    char digest[DIGEST_LEN + 1], name[96];
    AUTO_BUF b = { 0 };
    struct err ignored;
    digest_of(key, strlen(key), digest);
    snprintf(name, sizeof name, "cache/seccomp-%.64s", digest + 7);
    if (filter_flags(w->profile, &ret->flags, e)) return -1;
    if (store >= 0 && !file_read(store, name, 1 << 20, &b, &ignored) &&
        b.n > 32 + sizeof(struct sock_filter)) {
        u8 sum[32];
        sha_of(b.p + 32, b.n - 32, sum);
        if (!memcmp(sum, b.p, 32) && (b.n - 32) / 8 < 4096) {
            ret->n = (unsigned short)((b.n - 32) / sizeof *ret->code);
            ret->code = mem_new(b.n);
            memcpy(ret->code, b.p + 32, b.n - 32);
            return 0;
        }
    }
    if (filter_compile(w, ret, e)) return -1;
    buf_done(&b);
    u8 sum[32];
    sha_of(ret->code, ret->n * sizeof *ret->code, sum);
    buf_add(&b, sum, 32);
    buf_add(&b, ret->code, ret->n * sizeof *ret->code);
    AUTO_FD cache = store >= 0 ? openat(store, "cache", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (cache >= 0) file_replace(cache, name + 6, b.p, b.n, 0600, 0, &ignored);
    return 0;
}

/* Loads it for the calling thread and all that it becomes; needs no_new_privs or CAP_SYS_ADMIN. The
 * listener's descriptor where the flags ask for one, else 0. */
static int filter_load(const struct filter *f, struct err *e) {
    struct {
        unsigned short len;
        struct sock_filter *code;
    } prog = { f->n, f->code };
    int rc = f->n ? (int)syscall(SYS_seccomp, 1 /* SECCOMP_SET_MODE_FILTER */, f->flags, &prog) : 0;
    return rc < 0 ? err_set(e, errno, "load the seccomp filter") : rc;
}
/* }==== 14 sec */

/* {==== 15 cgroup: limits ====
 * A container's cgroup is made below the nearest cgroup that this user may write: the process's own
 * delegated subtree (a systemd scope with Delegate=yes, a batch job's cgroup), otherwise a scope
 * that the user's systemd makes for the asking; v2 only. Where there is none a limit that was asked
 * for is an error that names the remedy; without a limit no cgroup is needed and none is made. Uses: 1-5. Source: cgroup-v2.rst, config-linux.md. */
struct cgroup {
    char *path; /* absolute; owned; NULL: none */
};

static void cgroup_done(struct cgroup *c) { mem_freep(&c->path); }

/* The v2 mount point and this process's own path in it; false where there is no v2 hierarchy. */
static bool cgroup_own(char **ret) {
    static const char *const MOUNTS[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };
    AUTO_BUF b = { 0 };
    struct err e;
    if (host_disabled("cgroup") || file_read(AT_FDCWD, "/proc/self/cgroup", 65536, &b, &e))
        return false;
    char *own = b.p && str_prefix(b.p, "0::") ? b.p : b.p ? strstr(b.p, "\n0::") : NULL;
    if (!own) return false;
    own = strchr(own, '/');
    if (!own) return false;
    own[strcspn(own, "\n")] = 0;
    for (size_t i = 0; i < ARRAY_LEN(MOUNTS); i++) {
        struct statfs fs;
        if (statfs(MOUNTS[i], &fs) || fs.f_type != CGROUP2_SUPER_MAGIC) continue;
        *ret = str_fmt("%s%s", MOUNTS[i], strcmp(own, "/") ? own : "");
        return true;
    }
    return false;
}

static int cgroup_set(const struct cgroup *c, const char *file, const char *value, struct err *e) {
    AUTO_FREE char *path = str_fmt("%s/%s", c->path, file);
    if (file_poke(AT_FDCWD, path, value)) /* podman takes ENOENT's words for a missing command */
        return err_set(e, errno == ENOENT ? 0 : errno, "set %s to %s%s", path, value,
                       errno == ENOENT ? ": the controller is not available there"
                                       : " (is the controller delegated to you?)");
    return 0;
}

/* Each controller alone: one that is missing does not keep the others away. */
static void cgroup_controllers(const char *dir) {
    static const char *const WANT[] = { "+cpu", "+memory", "+pids", "+io", "+cpuset", "+hugetlb" };
    AUTO_FREE char *control = str_fmt("%s/cgroup.subtree_control", dir);
    for (size_t i = 0; i < ARRAY_LEN(WANT); i++) file_poke(AT_FDCWD, control, WANT[i]);
}

/* Makes the controllers available to children of `dir`: its processes move to a leaf first, since a
 * cgroup with controllers for its children may hold no processes itself (and the threaded ones
 * among the controllers would not say so, but turn it into a thread root). */
static void cgroup_enable(const char *dir) {
    AUTO_FREE char *procs = str_fmt("%s/cgroup.procs", dir);
    AUTO_FREE char *leaf = str_fmt("%s/skiff.self", dir),
                   *into = str_fmt("%s/skiff.self/cgroup.procs", dir);
    AUTO_BUF b = { 0 };
    struct err e;
    if (!file_read(AT_FDCWD, procs, 1 << 20, &b, &e) && b.n) {
        mkdir(leaf, 0755);
        char *save = NULL;
        for (char *p = b.p ? strtok_r(b.p, "\n", &save) : NULL; p; p = strtok_r(NULL, "\n", &save))
            file_poke(AT_FDCWD, into, p);
    }
    cgroup_controllers(dir);
}

/* config-linux.md's cpu.shares (2..262144) to v2's weight (1..10000). */
static u64 cgroup_weight(u64 shares) {
    u64 n = shares < 2 ? 2 : shares > 262144 ? 262144 : shares;
    return shares ? 1 + (n - 2) * 9999 / 262142 : 0;
}

/* linux.resources.unified: files of the cgroup by name. */
static int cgroup_unified(const struct cgroup *c, const json_t *unified, struct err *e) {
    const char *key;
    json_t *v;
    AUTO_BUF have = { 0 };
    struct err ignored;
    AUTO_FREE char *controllers = str_fmt("%s/cgroup.controllers", c->path);
    file_read(AT_FDCWD, controllers, 4096, &have, &ignored);
    for (char *s = have.p; s && *s; s++)
        if (*s == '\n') *s = ' ';
    json_object_foreach ((json_t *)(uintptr_t)unified, key, v) {
        const char *dot = strchr(key, '.'), *text = json_string_value(v);
        if (!dot || strchr(key, '/'))
            return err_set(e, 0,
                           "/linux/resources/unified: the specified key has not the form "
                           "CONTROLLER.VALUE `%.60s`",
                           key);
        if (!text)
            return err_set(e, 0, "/linux/resources/unified/%.60s: a string is required", key);
        if (strncmp(key, "cgroup.", 7) && !word_in(have.p ? have.p : "", key, (size_t)(dot - key)))
            return err_set(
                e, 0,
                "/linux/resources/unified: the requested cgroup controller `%.*s` is not available",
                (int)(dot - key), key);
        /* several lines are several writes */
        AUTO_STRV lines = { 0 };
        strv_split(&lines, text, '\n');
        for (size_t i = 0; i < lines.n; i++)
            if (*lines.v[i] && cgroup_set(c, key, lines.v[i], e)) return -1;
    }
    return 0;
}

/* Has an object this integer? */
static bool cgroup_int(const json_t *res, const char *path, i64 *ret) {
    const json_t *j = js_path(res, path);
    if (!json_is_integer(j)) return false;
    *ret = json_integer_value(j);
    return true;
}

PRINTF(4, 5) static int cgroup_setf(const struct cgroup *c, const char *file, struct err *e,
                                    const char *fmt, ...) {
    char v[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(v, sizeof v, fmt, ap);
    va_end(ap);
    return cgroup_set(c, file, v, e);
}

/* A limit where a negative number means none. */
static int cgroup_limit(const struct cgroup *c, const char *file, i64 n, struct err *e) {
    return n < 0 ? cgroup_set(c, file, "max", e) : cgroup_setf(c, file, e, "%" PRId64, n);
}

static int cgroup_memory(const struct cgroup *c, const json_t *res, struct err *e) {
    i64 limit = 0, n;
    if (cgroup_int(res, "memory.limit", &limit) && limit && cgroup_limit(c, "memory.max", limit, e))
        return -1;
    if (cgroup_int(res, "memory.swap", &n)) { /* OCI: memory plus swap; v2: swap alone */
        if (n > 0 && n < limit)
            return err_set(e, 0, "/linux/resources/memory/swap: less than the memory limit");
        if (cgroup_limit(c, "memory.swap.max", n > 0 && limit > 0 ? n - limit : n, e)) return -1;
    }
    return cgroup_int(res, "memory.reservation", &n) && n
               ? cgroup_limit(c, "memory.low", n < 0 ? 0 : n, e)
               : 0;
}

static int cgroup_cpu(const struct cgroup *c, const json_t *res, struct err *e) {
    i64 quota = 0, period = 100000, n;
    bool some = cgroup_int(res, "cpu.quota", &quota);
    some |= cgroup_int(res, "cpu.period", &period) && period;
    if (some && (quota > 0 ? cgroup_setf(c, "cpu.max", e, "%" PRId64 " %" PRId64, quota, period)
                           : cgroup_setf(c, "cpu.max", e, "max %" PRId64, period)))
        return -1;
    if (cgroup_int(res, "cpu.burst", &n) && cgroup_setf(c, "cpu.max.burst", e, "%" PRId64, n))
        return -1;
    if (cgroup_int(res, "cpu.shares", &n) && n > 0 &&
        cgroup_setf(c, "cpu.weight", e, "%" PRIu64, cgroup_weight((u64)n)))
        return -1;
    if (cgroup_int(res, "cpu.idle", &n) && cgroup_setf(c, "cpu.idle", e, "%" PRId64, n)) return -1;
    const char *cpus = js_str(res, "cpu.cpus"), *mems = js_str(res, "cpu.mems");
    return (!str_empty(cpus) && cgroup_set(c, "cpuset.cpus", cpus, e)) ||
                   (!str_empty(mems) && cgroup_set(c, "cpuset.mems", mems, e))
               ? -1
               : 0;
}

/* A weight of blockIO (10..1000): the bfq scheduler takes it as it is, io.cost 1..10000. dev: "" or
 * "MAJOR:MINOR ". */
static int cgroup_io_weight(const struct cgroup *c, const char *dev, i64 n, struct err *e) {
    struct err ignored;
    if (!cgroup_setf(c, "io.bfq.weight", &ignored, "%s%" PRId64, dev, n)) return 0;
    return cgroup_setf(c, "io.weight", e, "%s%" PRId64, *dev ? dev : "default ",
                       1 + (n - 10) * 9999 / 990);
}

static int cgroup_io(const struct cgroup *c, const json_t *res, struct err *e) {
    static const struct {
        const char *oci, *key;
    } MAX[] = { { "throttleReadBpsDevice", "rbps" },
                { "throttleWriteBpsDevice", "wbps" },
                { "throttleReadIOPSDevice", "riops" },
                { "throttleWriteIOPSDevice", "wiops" } };
    const json_t *io = js_get(res, "blockIO"), *d;
    i64 n;
    size_t i;
    char dev[48];
    if (cgroup_int(io, "weight", &n) && n && cgroup_io_weight(c, "", n, e)) return -1;
    json_array_foreach (js_get(io, "weightDevice"), i, d) {
        snprintf(dev, sizeof dev, "%" PRId64 ":%" PRId64 " ", js_int(d, "major", 0),
                 js_int(d, "minor", 0));
        if (cgroup_io_weight(c, dev, js_int(d, "weight", 0), e)) return -1;
    }
    for (size_t k = 0; k < ARRAY_LEN(MAX); k++)
        json_array_foreach (js_get(io, MAX[k].oci), i, d)
            if (cgroup_setf(c, "io.max", e, "%" PRId64 ":%" PRId64 " %s=%" PRId64,
                            js_int(d, "major", 0), js_int(d, "minor", 0), MAX[k].key,
                            js_int(d, "rate", 0)))
                return -1;
    return 0;
}

/* linux.resources, all of it but the devices. */
static int cgroup_apply(const struct cgroup *c, const json_t *res, struct err *e) {
    const json_t *v;
    const char *key;
    size_t i;
    i64 n;
    if (cgroup_memory(c, res, e) || cgroup_cpu(c, res, e) || cgroup_io(c, res, e)) return -1;
    if (cgroup_int(res, "pids.limit", &n) && n && cgroup_limit(c, "pids.max", n, e)) return -1;
    json_array_foreach (js_get(res, "hugepageLimits"), i, v) {
        AUTO_FREE char *file = str_fmt("hugetlb.%s.max", js_str_or(v, "pageSize", ""));
        if (strchr(file, '/')) return err_set(e, 0, "/linux/resources/hugepageLimits/%zu", i);
        if (cgroup_limit(c, file, js_int(v, "limit", 0), e)) return -1;
    }
    json_t *r;
    json_object_foreach ((json_t *)(uintptr_t)js_get(res, "rdma"), key, r) {
        AUTO_BUF b = { 0 };
        buf_adds(&b, key);
        if (cgroup_int(r, "hcaHandles", &n)) buf_addf(&b, " hca_handle=%" PRId64, n);
        if (cgroup_int(r, "hcaObjects", &n)) buf_addf(&b, " hca_object=%" PRId64, n);
        if (cgroup_set(c, "rdma.max", b.p, e)) return -1;
    }
    return cgroup_unified(c, js_get(res, "unified"), e);
}

/* ---- devices: a BPF program at the cgroup, since v2 has no file for them ---- */
struct bpf_word {
    u8 code, regs;
    int16_t off;
    int32_t imm;
}; /* regs: source << 4 | destination */

struct device_rule {
    bool allow;
    char type;
    i64 major, minor;
    const char *access;
}; /* type 'a', number -1: any */

/* Always allowed, as runc and crun have it: making nodes, and what every /dev holds. */
static const struct device_rule DEVICE_ALWAYS[] = {
    { true, 'c', -1, -1, "m" },    { true, 'b', -1, -1, "m" }, { true, 'c', 1, 3, "rwm" },
    { true, 'c', 1, 5, "rwm" },    { true, 'c', 1, 7, "rwm" }, { true, 'c', 1, 8, "rwm" },
    { true, 'c', 1, 9, "rwm" },    { true, 'c', 5, 0, "rwm" }, { true, 'c', 5, 2, "rwm" },
    { true, 'c', 136, -1, "rwm" },
};

static void bpf_put(struct buf *b, u8 code, u8 regs, int off, i64 imm) {
    struct bpf_word w = { code, regs, (int16_t)off, (int32_t)imm };
    buf_add(b, &w, sizeof w);
}

/* One rule: r2 type, r3 access, r4 major, r5 minor; what does not match goes on behind it. True:
 * nothing comes behind it, since it matches all. */
static bool bpf_rule(struct buf *b, const struct device_rule *r) {
    int access = (strchr(r->access, 'm') ? 1 : 0) | (strchr(r->access, 'r') ? 2 : 0) |
                 (strchr(r->access, 'w') ? 4 : 0);
    int left = (r->type != 'a') + (access != 7) * 3 + (r->major >= 0) + (r->minor >= 0) + 2;
    bool all = left == 2;
    if (r->type != 'a') bpf_put(b, 0x55, 0x02, --left, r->type == 'c' ? 2 : 1);
    if (access != 7) {
        bpf_put(b, 0xbc, 0x31, 0, 0); /* w1 = w3 & access */
        bpf_put(b, 0x54, 0x01, 0, access);
        left -= 3;
        /* allowed: all that is asked for; forbidden: any of it */
        if (r->allow) bpf_put(b, 0x5d, 0x31, left, 0);
        else bpf_put(b, 0x15, 0x01, left, 0);
    }
    if (r->major >= 0) bpf_put(b, 0x55, 0x04, --left, r->major);
    if (r->minor >= 0) bpf_put(b, 0x55, 0x05, --left, r->minor);
    bpf_put(b, 0xb7, 0x00, 0, r->allow);
    bpf_put(b, 0x95, 0x00, 0, 0);
    return all;
}

/* linux.resources.devices: the last rule that matches decides, and none is a refusal. */
static int cgroup_devices(const struct cgroup *c, const json_t *rules, struct err *e) {
    AUTO_BUF b = { 0 };
    size_t n = json_array_size(rules);
    bool all = false;
    if (!n) return 0;
    bpf_put(&b, 0x61, 0x12, 0, 0); /* w2 = type, w3 = access, w4 = major, w5 = minor */
    bpf_put(&b, 0x54, 0x02, 0, 0xffff);
    bpf_put(&b, 0x61, 0x13, 0, 0);
    bpf_put(&b, 0x74, 0x03, 0, 16);
    bpf_put(&b, 0x61, 0x14, 4, 0);
    bpf_put(&b, 0x61, 0x15, 8, 0);
    for (size_t i = ARRAY_LEN(DEVICE_ALWAYS); i-- > 0;) bpf_rule(&b, &DEVICE_ALWAYS[i]);
    if (n > 256) return err_set(e, 0, "/linux/resources/devices: more than 256");
    for (size_t i = n; i-- > 0 && !all;) {
        const json_t *j = json_array_get(rules, i);
        const char *type = js_str_or(j, "type", "a");
        if (!strchr("acb", *type) || !*type || type[1])
            return err_set(e, 0, "/linux/resources/devices/%zu/type: expected a, b or c", i);
        struct device_rule r = { js_bool(j, "allow"), *type, js_int(j, "major", -1),
                                 js_int(j, "minor", -1), js_str_or(j, "access", "rwm") };
        all = bpf_rule(&b, &r);
    }
    if (!all) bpf_put(&b, 0xb7, 0x00, 0, 0), bpf_put(&b, 0x95, 0x00, 0, 0);
    struct {
        u32 type, count;
        u64 code, license;
        u32 log_level, log_size;
        u64 log;
        u32 kernel, flags;
    } load = { 15 /* CGROUP_DEVICE */,
               (u32)(b.n / sizeof(struct bpf_word)),
               (u64)(uintptr_t)b.p,
               (u64)(uintptr_t) "GPL",
               0,
               0,
               0,
               0,
               0 };
    AUTO_FD prog = (int)syscall(SYS_bpf, 5 /* PROG_LOAD */, &load, sizeof load);
    AUTO_FD dir = prog < 0 ? -1 : open(c->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct {
        u32 target, prog, type, flags;
    } attach = { (u32)dir, (u32)prog, 6 /* CGROUP_DEVICE */, 2 /* ALLOW_MULTI */ };
    if (dir >= 0 && !syscall(SYS_bpf, 8 /* PROG_ATTACH */, &attach, sizeof attach)) return 0;
    /* root of a user namespace may load none, nor make any node that would want one */
    int no = errno;
    if (no == EPERM && !host_real_root()) return 0;
    return err_set(e, no, "/linux/resources/devices: BPF program");
}

/* ---- a scope by the user's systemd ----
 * One method call on the manager's own socket, org.freedesktop.systemd1.Manager.StartTransientUnit
 * (signature ssa(sv)a(sa(sv))), in the wire format of the D-Bus specification: little-endian, every
 * value at a multiple of its size. */
static void dbus_align(struct buf *b, size_t n) {
    while (b->n % n) buf_addc(b, 0);
}

static void dbus_u32(struct buf *b, u32 v) {
    dbus_align(b, 4);
    buf_add(b, &v, sizeof v);
}

static void dbus_string(struct buf *b, const char *s) {
    dbus_u32(b, (u32)strlen(s));
    buf_add(b, s, strlen(s) + 1);
}

static void dbus_signature(struct buf *b, const char *s) {
    buf_addc(b, (char)strlen(s));
    buf_add(b, s, strlen(s) + 1);
}

/* Starts an array; returns where its length stands. Elements begin at a multiple of `align`. */
static size_t dbus_array(struct buf *b, size_t align) {
    dbus_u32(b, 0);
    size_t at = b->n - 4;
    dbus_align(b, align);
    return at;
}

static void dbus_array_end(struct buf *b, size_t at, size_t align) {
    size_t first = (at + 4 + align - 1) / align * align;
    u32 n = (u32)(b->n - first);
    memcpy(b->p + at, &n, 4);
}

static void dbus_field(struct buf *b, u8 code, const char *type, const char *value) {
    dbus_align(b, 8);
    buf_addc(b, (char)code);
    dbus_signature(b, type);
    if (*type == 'g') dbus_signature(b, value);
    else dbus_string(b, value);
}

static void dbus_property(struct buf *b, const char *name, const char *type) {
    dbus_align(b, 8);
    dbus_string(b, name);
    dbus_signature(b, type);
}

/* Asks for a scope with this process in it, whose cgroup is ours to divide. */
static void dbus_scope(struct buf *msg, const char *unit) {
    AUTO_BUF body = { 0 };
    dbus_string(&body, unit);
    dbus_string(&body, "fail");
    size_t props = dbus_array(&body, 8);
    dbus_property(&body, "Description", "s");
    dbus_string(&body, "skiff container");
    dbus_property(&body, "Delegate", "b");
    dbus_u32(&body, 1);
    dbus_property(&body, "CollectMode", "s");
    dbus_string(&body, "inactive-or-failed");
    dbus_property(&body, "PIDs", "au");
    size_t pids = dbus_array(&body, 4);
    dbus_u32(&body, (u32)getpid());
    dbus_array_end(&body, pids, 4);
    dbus_array_end(&body, props, 8);
    dbus_array_end(&body, dbus_array(&body, 8), 8);
    buf_add(msg, "l\1\0\1", 4); /* little-endian, a method call, no flags, version 1 */
    dbus_u32(msg, (u32)body.n);
    dbus_u32(msg, 1);
    size_t fields = dbus_array(msg, 8);
    dbus_field(msg, 1, "o", "/org/freedesktop/systemd1");
    dbus_field(msg, 2, "s", "org.freedesktop.systemd1.Manager");
    dbus_field(msg, 3, "s", "StartTransientUnit");
    dbus_field(msg, 6, "s", "org.freedesktop.systemd1");
    dbus_field(msg, 8, "g", "ssa(sv)a(sa(sv))");
    dbus_array_end(msg, fields, 8);
    dbus_align(msg, 8);
    buf_add(msg, body.p, body.n);
}

/* Moves this process into a scope of its own. False: there is no manager, or it refused. */
static bool cgroup_scope(const char *id) {
    const char *dir = getenv("XDG_RUNTIME_DIR");
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    char hello[64], answer[256], uid[16];
    AUTO_FREE char *before = NULL;
    AUTO_FREE char *unit = str_fmt("skiff-%.12s.scope", id);
    AUTO_BUF msg = { 0 };
    if (host_disabled("systemd") || !cgroup_own(&before)) return false;
    size_t len = str_empty(dir) ? (size_t)snprintf(a.sun_path, sizeof a.sun_path,
                                                   "/run/user/%u/systemd/private", getuid())
                                : (size_t)snprintf(a.sun_path, sizeof a.sun_path,
                                                   "%s/systemd/private", dir);
    AUTO_FD s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval patience = { 5, 0 };
    if (s < 0 || len >= sizeof a.sun_path || connect(s, (struct sockaddr *)&a, sizeof a))
        return false;
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    /* the EXTERNAL mechanism: the number of the user in hexadecimal digits of its decimal ones */
    int n = snprintf(uid, sizeof uid, "%u", getuid());
    char *p = hello + 1 + snprintf(hello + 1, sizeof hello - 1, "AUTH EXTERNAL ");
    *hello = 0;
    for (int i = 0; i < n; i++) p += sprintf(p, "%02x", uid[i]);
    p += sprintf(p, "\r\n");
    if (fd_write_all(s, hello, (size_t)(p - hello)) || read(s, answer, sizeof answer) < 2 ||
        !str_prefix(answer, "OK") || fd_write_all(s, "BEGIN\r\n", 7))
        return false;
    dbus_scope(&msg, unit);
    if (fd_write_all(s, msg.p, msg.n)) return false;
    for (int i = 0; i < 250; i++) { /* done when we are elsewhere; an error does not move us */
        const struct timespec pause = { .tv_nsec = 10000000 };
        AUTO_FREE char *now = NULL;
        if (cgroup_own(&now) && strcmp(now, before)) return true;
        struct pollfd fd = { s, POLLIN, 0 };
        if (poll(&fd, 1, 0) > 0) {
            ssize_t k = read(s, answer, sizeof answer);
            if (k <= 1 || answer[1] == 3 /* an error */) return false;
        }
        nanosleep(&pause, NULL);
    }
    return false;
}

/* Makes a directory for the container in this process's own cgroup, or below `parent`. */
static int cgroup_place(const char *id, const char *parent, struct cgroup *c, struct err *e) {
    AUTO_FREE char *own = NULL;
    if (!cgroup_own(&own))
        return err_set(
            e, 0,
            "limits need a cgroup v2 hierarchy, which this host has not (an administrator can "
            "boot with systemd.unified_cgroup_hierarchy=1); run without the limit");
    char *leaf = strstr(own, "/skiff.self");
    if (leaf) *leaf = 0;
    AUTO_FREE char *clean = path_clean(parent ? parent : ""), *below = NULL;
    if (*clean) { /* a path from the top of the hierarchy, or below our own */
        const char *top = str_prefix(own, "/sys/fs/cgroup/unified") ? "/sys/fs/cgroup/unified"
                                                                    : "/sys/fs/cgroup";
        below = str_fmt("%s/%s", *parent == '/' ? top : own, clean);
    }
    if (!below || *parent != '/') cgroup_enable(own);
    if (below && mkdir(below, 0755) && errno != EEXIST)
        return err_set(e, errno, "make cgroup %s", below);
    if (below) cgroup_controllers(below);
    c->path = str_fmt("%s/skiff-%.12s", below ? below : own, id);
    if (!mkdir(c->path, 0755) || errno == EEXIST) return 0;
    int no = errno;
    AUTO_FREE char *path = c->path;
    c->path = NULL;
    return err_set(e, no,
                   "make cgroup %s: limits need a delegated cgroup: 'systemd-run --user --scope -p "
                   "Delegate=yes skiff run …'",
                   path);
}

/* Makes the container's cgroup and sets its limits: in a scope that the user's systemd makes for
 * us, where this process's own cgroup is not ours. No limits: c->path may stay NULL. */
static int cgroup_make(const char *id, const json_t *resources, const char *parent,
                       struct cgroup *c, struct err *e) {
    struct err ignored;
    i64 limit;
    *c = (struct cgroup){ 0 };
    if (!json_object_size(resources) && str_empty(parent)) return 0;
    if (cgroup_place(id, parent, c, e) &&
        (!str_empty(parent) || !cgroup_scope(id) || cgroup_place(id, parent, c, e)))
        return -1;
    if (!cgroup_apply(c, resources, e)) {
        /* Docker's default: as much swap as memory, where the kernel counts it */
        if (cgroup_int(resources, "memory.limit", &limit) && limit > 0 &&
            !js_path(resources, "memory.swap"))
            cgroup_limit(c, "memory.swap.max", limit, &ignored);
        return 0;
    }
    rmdir(c->path);
    cgroup_done(c);
    return -1;
}

static int cgroup_enter(const struct cgroup *c, pid_t pid, struct err *e) {
    char text[16];
    snprintf(text, sizeof text, "%d", (int)pid);
    return c->path ? cgroup_set(c, "cgroup.procs", text, e) : 0;
}

/* A counter of a flat keyed file ("oom_kill 3"); 0 where it is not there. */
static u64 cgroup_counter(const struct cgroup *c, const char *file, const char *key) {
    AUTO_BUF b = { 0 };
    struct err e;
    if (!c->path) return 0;
    AUTO_FREE char *path = str_fmt("%s/%s", c->path, file);
    if (file_read(AT_FDCWD, path, 65536, &b, &e) || !b.p) return 0;
    if (!key) return strtoull(b.p, NULL, 10);
    size_t n = strlen(key);
    for (const char *p = b.p; p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL)
        if (!strncmp(p, key, n) && p[n] == ' ') return strtoull(p + n + 1, NULL, 10);
    return 0;
}

static void cgroup_remove(struct cgroup *c) {
    struct err ignored;
    if (!c->path) return;
    cgroup_set(c, "cgroup.kill", "1", &ignored);
    for (int i = 0; i < 50 && rmdir(c->path) && errno == EBUSY; i++) usleep(2000);
    cgroup_done(c);
}
/* }==== 15 cgroup */

/* {==== 16 mnt: mounts below a root ====
 * Invariants: (1) no path of a container is given to mount(2): a target is resolved once, by
 * openat2 below the root's descriptor, and mounted on by descriptor; (2) what is written to or
 * bound over is checked to be what it should be (procfs, the null device) after it was opened.
 * Uses: 1-4. Sources: mount(2), move_mount(2), mount_setattr(2); CVE-2019-19921, CVE-2021-30465,
 * CVE-2025-31133, CVE-2025-52881. */

enum {
    MNT_DIR = 1,      /* the target is a directory */
    MNT_STRICT = 2,   /* no symbolic link at all on the way */
    MNT_NOFOLLOW = 4, /* a symbolic link at the end is itself the target */
};

/* Opens `path` below root as an O_PATH descriptor, making directories, and a file or directory at
 * its end, where they are missing: also at the end of a symbolic link that leads nowhere yet (the
 * /etc/resolv.conf of systemd's images). flags: MNT_*. */
static int mnt_target_at(int root, const char *path, unsigned flags, int links, struct err *e) {
    bool dir = flags & MNT_DIR, strict = flags & MNT_STRICT;
    u64 how = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | (strict ? RESOLVE_NO_SYMLINKS : 0);
    while (*path == '/') path++;
    int fd = sys_openat2(root, *path ? path : ".", O_PATH | (flags & MNT_NOFOLLOW ? O_NOFOLLOW : 0),
                         0, how);
    if (fd >= 0 || errno != ENOENT) {
        if (fd < 0)
            err_set(e, errno, "mount target /%s%s", path,
                    errno == ELOOP ? " (a symbolic link)" : "");
        return fd;
    }
    AUTO_STRV parts = { 0 };
    AUTO_BUF at = { 0 };
    buf_add(&at, "", 0);
    strv_split(&parts, path, '/');
    AUTO_FD parent = sys_openat2(root, ".", O_PATH | O_DIRECTORY, 0, how);
    for (size_t i = 0; i < parts.n; i++) {
        const char *name = parts.v[i];
        bool last = i + 1 == parts.n;
        if (!*name || !strcmp(name, ".")) continue;
        AUTO_FREE char *above = str_dup(at.p);
        buf_addf(&at, "%s%s", at.n ? "/" : "", name);
        fd = sys_openat2(root, at.p, O_PATH | (last && !dir ? 0 : O_DIRECTORY), 0, how);
        if (fd < 0 && errno == ENOENT) {
            char to[PATH_MAX];
            ssize_t n = strict ? -1 : readlinkat(parent, name, to, sizeof to - 1);
            if (n > 0) { /* it leads nowhere yet: go on where it points to */
                AUTO_BUF next = { 0 };
                to[n] = 0;
                if (links > 39) return err_set(e, ELOOP, "mount target /%s", path);
                buf_addf(&next, "%s/%s", *to == '/' ? "" : above, to);
                for (size_t k = i + 1; k < parts.n; k++) buf_addf(&next, "/%s", parts.v[k]);
                return mnt_target_at(root, next.p, flags, links + 1, e);
            }
            if (last && !dir) {
                AUTO_FD made = openat(parent, name,
                                      O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
                if (made < 0) return err_set(e, errno, "make mount target /%s", at.p);
            } else if (mkdirat(parent, name, 0755) && errno != EEXIST)
                return err_set(e, errno, "make mount target /%s", at.p);
            fd = sys_openat2(root, at.p, O_PATH | O_NOFOLLOW | (last && !dir ? 0 : O_DIRECTORY), 0,
                             how);
        }
        if (fd < 0) return err_set(e, errno, "mount target /%s", at.p);
        close(parent);
        parent = fd;
    }
    return fd_steal(&parent);
}

static int mnt_target(int root, const char *path, unsigned flags, struct err *e) {
    return mnt_target_at(root, path, flags, 0, e);
}

/* Sets mount attributes on a mounted tree's descriptor; without mount_setattr (before 5.12) the top
 * mount is remounted, keeping the flags that a user namespace has locked. */
static int mnt_attr(int mnt, u64 set, u64 clear, bool recursive, struct err *e) {
    struct mount_attr a = { .attr_set = set, .attr_clr = clear };
    /* mount_setattr(2): the access time modes are one field, cleared before one is set */
    if (set & (MOUNT_ATTR_NOATIME | MOUNT_ATTR_STRICTATIME)) a.attr_clr |= MOUNT_ATTR__ATIME;
    if (!set && !clear) return 0;
    if (!sys_mount_setattr(mnt, recursive ? AT_RECURSIVE : 0, &a)) return 0;
    if (errno != ENOSYS) return err_set(e, errno, "set mount attributes");
    static const struct {
        u64 attr;
        unsigned long ms, st;
    } MAP[] = {
        { MOUNT_ATTR_RDONLY, MS_RDONLY, 1 },      { MOUNT_ATTR_NOSUID, MS_NOSUID, 2 },
        { MOUNT_ATTR_NODEV, MS_NODEV, 4 },        { MOUNT_ATTR_NOEXEC, MS_NOEXEC, 8 },
        { MOUNT_ATTR_NOATIME, MS_NOATIME, 1024 }, { MOUNT_ATTR_NODIRATIME, MS_NODIRATIME, 2048 },
    };
    struct statfs fs;
    unsigned long flags = MS_REMOUNT | MS_BIND;
    if (fstatfs(mnt, &fs)) return err_set(e, errno, "statfs of a mount");
    for (size_t i = 0; i < ARRAY_LEN(MAP); i++)
        if (((unsigned long)fs.f_flags & MAP[i].st && !(clear & MAP[i].attr)) ||
            (set & MAP[i].attr))
            flags |= MAP[i].ms;
    if ((unsigned long)fs.f_flags & 4096) flags |= MS_RELATIME;
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", mnt);
    if (mount(NULL, path, NULL, flags, NULL)) return err_set(e, errno, "remount");
    return 0;
}

/* A new file system as a detached mount. data: comma-separated options. */
static int mnt_new(const char *type, const char *source, const char *data, unsigned attr,
                   struct err *e) {
    AUTO_FD fs = sys_fsopen(type);
    if (fs < 0) return err_set(e, errno, "file system %s", type);
    AUTO_STRV opts = { 0 };
    if (!str_empty(source)) sys_fsconfig(fs, FSCONFIG_SET_STRING, "source", source);
    if (!str_empty(data)) strv_split(&opts, data, ',');
    for (size_t i = 0; i < opts.n; i++) {
        char *eq = strchr(opts.v[i], '=');
        if (!*opts.v[i]) continue;
        if (eq) *eq++ = 0;
        if (sys_fsconfig(fs, eq ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, opts.v[i], eq))
            return err_set(e, errno, "mount %s: option %s%s%s", type, opts.v[i], eq ? "=" : "",
                           eq ? eq : "");
    }
    if (sys_fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL))
        return err_set(e, errno, "mount %s", type);
    int mnt = sys_fsmount(fs, attr);
    if (mnt < 0) err_set(e, errno, "mount %s", type);
    return mnt;
}

static int mnt_attach(int mnt, int target, struct err *e) {
    return sys_move_mount(mnt, target) ? err_set(e, errno, "attach a mount") : 0;
}

/* Hides a file or directory: /dev/null over a file, an empty read-only tmpfs over a directory. A
 * path that is not there needs no hiding. null: the verified null device. */
static int mnt_mask(int root, const char *path, int null, struct err *e) {
    AUTO_FD at = sys_openat2(root, path + (*path == '/'), O_PATH, 0,
                             RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
    struct stat st;
    struct statfs fs;
    if (at < 0)
        return errno == ENOENT || errno == ENOTDIR || errno == EACCES
                   ? 0
                   : err_set(e, errno, "mask %s", path);
    if (fstat(at, &st) || fstatfs(at, &fs)) return err_set(e, errno, "mask %s", path);
    if (str_prefix(path, "/proc/") && fs.f_type != PROC_SUPER_MAGIC && fs.f_type != TMPFS_MAGIC)
        return err_set(e, 0, "mask %s: it is not in procfs", path);
    AUTO_FD mnt =
        S_ISDIR(st.st_mode)
            ? mnt_new("tmpfs", "tmpfs", "size=0k",
                      MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
                      e)
            : sys_open_tree(null, "", AT_EMPTY_PATH | OPEN_TREE_CLONE);
    if (mnt < 0) return S_ISDIR(st.st_mode) ? -1 : err_set(e, errno, "mask %s", path);
    return mnt_attach(mnt, at, e) ? err_wrap(e, "mask %s", path) : 0;
}

static int mnt_readonly(int root, const char *path, struct err *e) {
    AUTO_FD at = sys_openat2(root, path + (*path == '/'), O_PATH, 0,
                             RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
    if (at < 0)
        return errno == ENOENT || errno == ENOTDIR ? 0
                                                   : err_set(e, errno, "make %s read-only", path);
    AUTO_FD mnt = sys_open_tree(at, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | AT_RECURSIVE);
    if (mnt < 0) return err_set(e, errno, "make %s read-only", path);
    if (mnt_attach(mnt, at, e) || mnt_attr(mnt, MOUNT_ATTR_RDONLY, 0, true, e))
        return err_wrap(e, "make %s read-only", path);
    return 0;
}

/* Opens a device node of the host and makes sure that it is that device (and no regular file that a
 * swapped bind mount put there). */
static int mnt_device(const char *path, unsigned major, unsigned minor, struct err *e) {
    AUTO_FD fd = open(path, O_PATH | O_CLOEXEC | O_NOFOLLOW);
    struct stat st;
    if (fd < 0) return err_set(e, errno, "open %s", path);
    if (fstat(fd, &st) || !S_ISCHR(st.st_mode) || st.st_rdev != makedev(major, minor))
        return err_set(e, 0, "%s is not the character device %u:%u", path, major, minor);
    return fd_steal(&fd);
}
/* }==== 16 mnt */

/* {==== 17 plan: the OCI runtime spec ====
 * Everything that starts a process becomes a plan: an OCI runtime spec (1.2) in memory, parsed and
 * checked here once, executed by part 18 with no more parsing. Errors name the JSON pointer.
 * skiff's own words live under /skiff, and are looked at only in plans that skiff itself wrote:
 *   rootfs {driver, chain, layers}, seccomp "default"|"unconfined", init, and what part 20 keeps.
 * Uses: 1-6, 13, 14. Source: runtime-spec config.md, config-linux.md. */
struct plan_mount {
    const char *dest, *type, *source;             /* borrowed from the spec */
    u64 attr_set, attr_clear, rec_set, rec_clear; /* MOUNT_ATTR_* */
    unsigned long propagation;                    /* MS_PRIVATE …, 0: as it is */
    char *data;                                   /* owned: options for the file system itself */
    bool bind, recursive, optional, copy_up, nofail;
    bool src_nofollow, dest_nofollow, copy_symlink;
    bool idmap, ridmap;
    struct idmap ids; /* with idmap: uids 0: the container's own */
    const char *text; /* borrowed; a file of these contents, in memory; NULL: not of that kind */
    size_t text_len;
    mode_t text_mode;
    u32 text_uid, text_gid;
};

struct plan_rlimit {
    int resource;
    struct rlimit64_pair {
        u64 soft, hard;
    } v;
};

struct plan {
    json_t *spec; /* owned */
    bool terminal;
    u16 rows, cols; /* 0: not told */
    u32 uid, gid;
    i64 umask;   /* -1: not told */
    u32 *groups; /* owned */
    size_t ngroups;
    struct strv args, env;
    const char *cwd;
    u64 cap_bounding, cap_effective, cap_permitted, cap_inheritable, cap_ambient;
    struct plan_rlimit rlimits[16];
    unsigned nrlimits;
    bool no_new_privs;
    i64 oom_score_adj; /* INT64_MIN: not told */

    const char *root; /* root.path; NULL: /skiff/rootfs says */
    bool root_readonly;
    const char *hostname, *domainname;
    struct plan_mount *mounts; /* owned */
    size_t nmounts;
    u64 ns_new; /* CLONE_NEW* to create */
    struct {
        u64 type;
        const char *path;
    } ns_join[8];
    unsigned nns_join;
    struct idmap ids;
    struct strv masked, readonly;
    unsigned long propagation; /* of the root file system */

    int ioprio; /* ioprio_set(2)'s value; -1: not told */
    struct sched_words {
        u32 size, policy;
        u64 flags;
        int nice;
        u32 priority;
        u64 runtime, deadline, period;
    } sched;                     /* size 0: not told */
    long personality;            /* -1: not told */
    int mem_mode;                /* set_mempolicy(2)'s mode and flags; -1: not told */
    unsigned long mem_nodes[16]; /* its mask: 1,024 nodes */

    bool seccomp_default, fake_root;
    const json_t *seccomp; /* borrowed; NULL: none or default */
    bool init;             /* skiff stays as pid 1 and reaps */
    const char *driver;    /* "overlay-fuse", "fuse", "overlay", "copy", "dir" */
};

static void plan_done(struct plan *p) {
    for (size_t i = 0; i < p->nmounts; i++) free(p->mounts[i].data);
    free(p->mounts);
    free(p->groups);
    strv_done(&p->args), strv_done(&p->env), strv_done(&p->masked), strv_done(&p->readonly);
    json_decref(p->spec);
    *p = (struct plan){ 0 };
}

static const struct {
    const char *name;
    int resource;
} RLIMITS[] = {
    { "core", RLIMIT_CORE },         { "cpu", RLIMIT_CPU },
    { "data", RLIMIT_DATA },         { "fsize", RLIMIT_FSIZE },
    { "locks", RLIMIT_LOCKS },       { "memlock", RLIMIT_MEMLOCK },
    { "msgqueue", RLIMIT_MSGQUEUE }, { "nice", RLIMIT_NICE },
    { "nofile", RLIMIT_NOFILE },     { "nproc", RLIMIT_NPROC },
    { "rss", RLIMIT_RSS },           { "rtprio", RLIMIT_RTPRIO },
    { "rttime", RLIMIT_RTTIME },     { "sigpending", RLIMIT_SIGPENDING },
    { "stack", RLIMIT_STACK },       { "as", RLIMIT_AS },
};

/* By Docker's name ("nofile") or the spec's ("RLIMIT_NOFILE"); -1: unknown. */
static int rlimit_number(const char *name) {
    if (!strncasecmp(name, "RLIMIT_", 7)) name += 7;
    for (size_t i = 0; i < ARRAY_LEN(RLIMITS); i++)
        if (!strcasecmp(name, RLIMITS[i].name)) return RLIMITS[i].resource;
    return -1;
}

/* Mount options that are attributes; the "r" forms act on the whole tree. */
static const struct {
    const char *name;
    u64 attr;
    bool clear;
} MNT_OPTS[] = {
    { "ro", MOUNT_ATTR_RDONLY, false },
    { "rw", MOUNT_ATTR_RDONLY, true },
    { "nosuid", MOUNT_ATTR_NOSUID, false },
    { "suid", MOUNT_ATTR_NOSUID, true },
    { "nodev", MOUNT_ATTR_NODEV, false },
    { "dev", MOUNT_ATTR_NODEV, true },
    { "noexec", MOUNT_ATTR_NOEXEC, false },
    { "exec", MOUNT_ATTR_NOEXEC, true },
    { "nodiratime", MOUNT_ATTR_NODIRATIME, false },
    { "diratime", MOUNT_ATTR_NODIRATIME, true },
    { "noatime", MOUNT_ATTR_NOATIME, false },
    { "relatime", MOUNT_ATTR__ATIME, true },
    { "strictatime", MOUNT_ATTR_STRICTATIME, false },
    { "nosymfollow", MOUNT_ATTR_NOSYMFOLLOW, false },
};

static const struct {
    const char *name;
    unsigned long flag;
} MNT_PROP[] = {
    { "private", MS_PRIVATE },       { "rprivate", MS_PRIVATE | MS_REC },
    { "slave", MS_SLAVE },           { "rslave", MS_SLAVE | MS_REC },
    { "shared", MS_SHARED },         { "rshared", MS_SHARED | MS_REC },
    { "unbindable", MS_UNBINDABLE }, { "runbindable", MS_UNBINDABLE | MS_REC },
};

/* One option of a mount; unknown ones are the file system's own. */
static void plan_mount_option(struct plan_mount *m, const char *o, struct buf *data) {
    if (!strcmp(o, "bind")) {
        m->bind = true;
        return;
    }
    if (!strcmp(o, "rbind")) {
        m->bind = m->recursive = true;
        return;
    }
    if (!strcmp(o, "nofail")) {
        m->nofail = true;
        return;
    }
    if (!strcmp(o, "tmpcopyup")) {
        m->copy_up = true;
        return;
    }
    if (!strcmp(o, "src-nofollow")) {
        m->src_nofollow = true;
        return;
    }
    if (!strcmp(o, "dest-nofollow")) {
        m->dest_nofollow = true;
        return;
    }
    if (!strcmp(o, "copy-symlink")) {
        m->copy_symlink = true;
        return;
    }
    if (!strcmp(o, "defaults") || !strcmp(o, "async") || !strcmp(o, "notmpcopyup")) return;
    for (size_t i = 0; i < ARRAY_LEN(MNT_PROP); i++)
        if (!strcmp(o, MNT_PROP[i].name)) {
            m->propagation = MNT_PROP[i].flag;
            return;
        }
    for (size_t i = 0; i < ARRAY_LEN(MNT_OPTS); i++) {
        bool rec = *o == 'r' && !strcmp(o + 1, MNT_OPTS[i].name);
        if (!rec && strcmp(o, MNT_OPTS[i].name)) continue;
        u64 *slot = MNT_OPTS[i].clear ? (rec ? &m->rec_clear : &m->attr_clear)
                                      : (rec ? &m->rec_set : &m->attr_set);
        u64 *opposite = MNT_OPTS[i].clear ? (rec ? &m->rec_set : &m->attr_set)
                                          : (rec ? &m->rec_clear : &m->attr_clear);
        *slot |= MNT_OPTS[i].attr;
        *opposite &= ~MNT_OPTS[i].attr; /* the last word wins */
        return;
    }
    if (data->n) buf_addc(data, ',');
    buf_adds(data, o);
}

/* "uids=INSIDE-OUTSIDE-COUNT#…;gids=…", crun's short form of a mount's mappings. */
static bool plan_idmap_words(const char *o, struct idmap *ret) {
    AUTO_STRV kinds = { 0 };
    strv_split(&kinds, o, ';');
    for (size_t k = 0; k < kinds.n; k++) {
        bool g = str_prefix(kinds.v[k], "gids=");
        AUTO_STRV ranges = { 0 };
        if (!g && !str_prefix(kinds.v[k], "uids=")) return false;
        strv_split(&ranges, kinds.v[k] + 5, '#');
        unsigned *n = g ? &ret->gids : &ret->uids;
        for (size_t i = 0; i < ranges.n; i++) {
            struct idmap_range r;
            char end;
            if (*n == ARRAY_LEN(ret->uid) ||
                sscanf(ranges.v[i], "%u-%u-%u%c", &r.inside, &r.outside, &r.count, &end) != 3)
                return false;
            (g ? ret->gid : ret->uid)[(*n)++] = r;
        }
    }
    return ret->uids && ret->gids;
}

/* The ranges of a list of id mappings; at: its JSON pointer. */
static int plan_ranges(const json_t *a, const char *at, struct idmap_range *r, unsigned *n,
                       struct err *e) {
    const json_t *j;
    size_t i;
    json_array_foreach (a, i, j) {
        if (*n == 4) return err_set(e, 0, "%s: more than 4 ranges", at);
        i64 in = js_int(j, "containerID", -1), out = js_int(j, "hostID", -1),
            size = js_int(j, "size", 0);
        if (in < 0 || out < 0 || size < 1 || in > UINT32_MAX || out > UINT32_MAX ||
            size > UINT32_MAX - in || size > UINT32_MAX - out)
            return err_set(e, 0, "%s/%zu: out of range", at, i);
        r[(*n)++] = (struct idmap_range){ (u32)in, (u32)out, (u32)size };
    }
    return 0;
}

static int plan_mount_idmap(struct plan_mount *m, const json_t *j, size_t at,
                            const struct strv *opts, struct err *e) {
    char where[48];
    for (size_t k = 0; k < opts->n; k++) {
        const char *o = opts->v[k] + (*opts->v[k] == 'r');
        if (!str_prefix(o, "idmap") || (o[5] && o[5] != '=')) continue;
        m->idmap = true;
        m->ridmap = o != opts->v[k];
        if (o[5] && !plan_idmap_words(o + 6, &m->ids))
            return err_set(e, 0, "/mounts/%zu/options/%zu: '%.60s': expected uids=N-N-N;gids=N-N-N",
                           at, k, o);
    }
    for (int g = 0; g < 2; g++) {
        const json_t *a = js_get(j, g ? "gidMappings" : "uidMappings");
        snprintf(where, sizeof where, "/mounts/%zu/%cidMappings", at, g ? 'g' : 'u');
        if (a && (m->idmap = true, plan_ranges(a, where, g ? m->ids.gid : m->ids.uid,
                                               g ? &m->ids.gids : &m->ids.uids, e)))
            return -1;
    }
    m->ids.outside = true;
    if (m->idmap && !m->bind)
        return err_set(e, 0, "/mounts/%zu: ids are mapped of bind mounts only", at);
    return !m->ids.uids == !m->ids.gids
               ? 0
               : err_set(e, 0, "/mounts/%zu: uidMappings and gidMappings go together", at);
}

static int plan_mounts(struct plan *p, struct err *e) {
    const json_t *a = js_get(p->spec, "mounts");
    size_t n = json_array_size(a);
    if (n > 1024) return err_set(e, 0, "/mounts: more than 1024");
    p->mounts = mem_new((n + 1) * sizeof *p->mounts);
    for (size_t i = 0; i < n; i++) {
        const json_t *j = json_array_get(a, i);
        struct plan_mount *m = &p->mounts[p->nmounts++];
        struct buf data = { 0 };
        AUTO_STRV opts = { 0 };
        m->dest = js_str(j, "destination");
        m->type = js_str_or(j, "type", "");
        m->source = js_str_or(j, "source", "");
        if (!m->dest || *m->dest != '/')
            return err_set(e, 0, "/mounts/%zu/destination: an absolute path is required", i);
        js_to_strv(js_get(j, "options"), &opts);
        for (size_t k = 0; k < opts.n; k++)
            if (!str_prefix(opts.v[k], "idmap") && !str_prefix(opts.v[k], "ridmap"))
                plan_mount_option(m, opts.v[k], &data);
        if (!strcmp(m->type, "bind")) m->bind = true;
        m->data = data.p;
        if (plan_mount_idmap(m, j, i, &opts, e)) return -1;
        m->optional = js_bool(j, "skiffOptional");
        m->text = js_str(j, "skiffText");
        m->text_len = json_string_length(js_get(j, "skiffText"));
        m->text_mode = (mode_t)js_int(j, "skiffMode", 0644) & 07777;
        m->text_uid = (u32)js_int(j, "skiffUid", 0);
        m->text_gid = (u32)js_int(j, "skiffGid", 0);
        if (!m->bind && !*m->type)
            return err_set(e, 0, "/mounts/%zu/type: required unless the options say bind", i);
        if (m->bind && !*m->source)
            return err_set(e, 0, "/mounts/%zu/source: required for a bind mount", i);
    }
    return 0;
}

static int plan_namespaces(struct plan *p, struct err *e) {
    static const struct {
        const char *name;
        u64 flag;
    } NS[] = {
        { "pid", CLONE_NEWPID },       { "network", CLONE_NEWNET },
        { "mount", CLONE_NEWNS },      { "ipc", CLONE_NEWIPC },
        { "uts", CLONE_NEWUTS },       { "user", CLONE_NEWUSER },
        { "cgroup", CLONE_NEWCGROUP }, { "time", 0x80 },
    };
    const json_t *a = js_path(p->spec, "linux.namespaces"), *j;
    u64 seen = 0;
    size_t i;
    json_array_foreach (a, i, j) {
        const char *type = js_str(j, "type"), *path = js_str(j, "path");
        u64 flag = 0;
        for (size_t k = 0; type && k < ARRAY_LEN(NS); k++)
            if (!strcmp(type, NS[k].name)) flag = NS[k].flag;
        if (!flag)
            return err_set(e, 0, "/linux/namespaces/%zu/type: unknown '%.40s'", i,
                           type ? type : "");
        if (seen & flag) return err_set(e, 0, "/linux/namespaces/%zu: '%s' twice", i, type);
        seen |= flag;
        if (path) {
            p->ns_join[p->nns_join].type = flag;
            p->ns_join[p->nns_join++].path = path;
        } else p->ns_new |= flag;
    }
    return 0;
}

static int plan_ids(struct plan *p, struct err *e) {
    for (int g = 0; g < 2; g++) {
        const json_t *a = js_path(p->spec, g ? "linux.gidMappings" : "linux.uidMappings");
        if (plan_ranges(a, g ? "/linux/gidMappings" : "/linux/uidMappings",
                        g ? p->ids.gid : p->ids.uid, g ? &p->ids.gids : &p->ids.uids, e))
            return -1;
    }
    if (p->ids.uids && !(p->ns_new & CLONE_NEWUSER)) {
        bool joined = false;
        for (unsigned i = 0; i < p->nns_join; i++) joined |= p->ns_join[i].type == CLONE_NEWUSER;
        if (!joined)
            return err_set(e, 0, "/linux/uidMappings: no user namespace in /linux/namespaces");
        p->ids.uids = p->ids.gids = 0;
    }
    if ((p->ns_new & CLONE_NEWUSER) && !p->ids.uids && !p->ids.gids) {
        if (!geteuid()) idmap_own(&p->ids);
        else if (idmap_choose(-1, "", 0, 0, &p->ids, e)) return -1;
    }
    if (!p->ids.uids != !p->ids.gids)
        return err_set(e, 0, "/linux/%cidMappings: missing", p->ids.uids ? 'g' : 'u');
    p->ids.helper =
        geteuid() && p->ids.uids &&
        !(idmap_single(&p->ids) && p->ids.gids == 1 && p->ids.uid[0].outside == geteuid() &&
          p->ids.gid[0].outside == getegid() && p->ids.gid[0].count == 1);
    p->ids.outside = p->ids.uids && (p->ids.helper || !geteuid());
    return 0;
}

/* A sysctl must belong to a namespace that is the container's own, or it would change the host. */
static int plan_sysctls(const struct plan *p, struct err *e) {
    static const struct {
        const char *prefix;
        u64 ns;
    } OF[] = {
        { "net.", CLONE_NEWNET },       { "fs.mqueue.", CLONE_NEWIPC },
        { "kernel.msg", CLONE_NEWIPC }, { "kernel.shm", CLONE_NEWIPC },
        { "kernel.sem", CLONE_NEWIPC }, { "kernel.domainname", CLONE_NEWUTS },
        { "user.", CLONE_NEWUSER },
    };
    u64 own = p->ns_new;
    const char *key;
    json_t *v;
    for (unsigned i = 0; i < p->nns_join; i++) own |= p->ns_join[i].type;
    json_object_foreach (js_path(p->spec, "linux.sysctl"), key, v) {
        AUTO_FREE char *dots = str_dup(key);
        for (char *c = dots; *c; c++)
            if (*c == '/') *c = '.';
        u64 ns = 0;
        for (size_t i = 0; i < ARRAY_LEN(OF); i++)
            if (str_prefix(dots, OF[i].prefix)) ns = OF[i].ns;
        if (!ns)
            return err_set(e, 0, "/linux/sysctl/%.100s: not of a namespace%s", key,
                           strcmp(dots, "kernel.hostname") ? "" : ": use /hostname");
        const char *domain = js_str(p->spec, "domainname");
        if (domain && !strcmp(dots, "kernel.domainname") && json_is_string(v) &&
            strcmp(domain, json_string_value(v)))
            return err_set(e, 0, "/linux/sysctl/kernel.domainname contradicts /domainname");
        if (!(own & ns))
            return err_set(e, 0, "/linux/sysctl/%.100s: its namespace is not the container's own",
                           key);
        if (!json_is_string(v))
            return err_set(e, 0, "/linux/sysctl/%.100s: a string is required", key);
    }
    return 0;
}

static int plan_caps(const json_t *proc, const char *set, u64 *ret, struct err *e) {
    const json_t *a = js_get(js_get(proc, "capabilities"), set), *j;
    size_t i;
    *ret = 0;
    json_array_foreach (a, i, j) {
        const char *name = json_string_value(j);
        int c = name ? cap_number(name) : -1;
        if (!name) return err_set(e, 0, "/process/capabilities/%s/%zu: not a string", set, i);
        if (c < 0) { /* config.md: a warning, not an error */
            log_warn("/process/capabilities/%s/%zu: unknown capability '%.40s'", set, i, name);
            continue;
        }
        *ret |= CAP_BIT(c);
    }
    return 0;
}

/* ioPriority and scheduler of a process. */
static int plan_sched(struct plan *p, const json_t *proc, struct err *e) {
    static const char *const CLASS[] = { "IOPRIO_CLASS_NONE", "IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE",
                                         "IOPRIO_CLASS_IDLE" };
    static const char *const POLICY[] = { "SCHED_OTHER",   "SCHED_FIFO", "SCHED_RR",
                                          "SCHED_BATCH",   "SCHED_ISO",  "SCHED_IDLE",
                                          "SCHED_DEADLINE" };
    static const struct {
        const char *name;
        u64 flag;
    } FLAGS[] = {
        { "SCHED_FLAG_RESET_ON_FORK", 1 },   { "SCHED_FLAG_RECLAIM", 2 },
        { "SCHED_FLAG_DL_OVERRUN", 4 },      { "SCHED_FLAG_KEEP_POLICY", 8 },
        { "SCHED_FLAG_KEEP_PARAMS", 16 },    { "SCHED_FLAG_UTIL_CLAMP_MIN", 32 },
        { "SCHED_FLAG_UTIL_CLAMP_MAX", 64 },
    };
    const json_t *io = js_get(proc, "ioPriority"), *s = js_get(proc, "scheduler"), *v;
    size_t i;
    p->ioprio = -1;
    if (io) {
        for (int k = 0; k < 4; k++)
            if (str_eq(js_str(io, "class"), CLASS[k]))
                p->ioprio = k << 13 | ((int)js_int(io, "priority", 0) & 7);
        if (p->ioprio < 0)
            return err_set(e, 0, "/process/ioPriority/class: unknown '%.40s'",
                           js_str_or(io, "class", ""));
    }
    if (!s) return 0;
    p->sched = (struct sched_words){ .nice = (int)js_int(s, "nice", 0),
                                     .priority = (u32)js_int(s, "priority", 0),
                                     .runtime = (u64)js_int(s, "runtime", 0),
                                     .deadline = (u64)js_int(s, "deadline", 0),
                                     .period = (u64)js_int(s, "period", 0) };
    for (u32 k = 0; k < ARRAY_LEN(POLICY); k++)
        if (str_eq(js_str(s, "policy"), POLICY[k])) p->sched.policy = k, p->sched.size = 48;
    if (!p->sched.size)
        return err_set(e, 0, "/process/scheduler/policy: unknown '%.40s'",
                       js_str_or(s, "policy", ""));
    json_array_foreach (js_get(s, "flags"), i, v) {
        u64 flag = 0;
        for (size_t k = 0; k < ARRAY_LEN(FLAGS); k++)
            if (str_eq(json_string_value(v), FLAGS[k].name)) flag = FLAGS[k].flag;
        if (!flag) return err_set(e, 0, "/process/scheduler/flags/%zu: unknown", i);
        p->sched.flags |= flag;
    }
    return 0;
}

/* linux.personality and linux.memoryPolicy. */
static int plan_policy(struct plan *p, struct err *e) {
    static const char *const MODE[] = { "MPOL_DEFAULT",
                                        "MPOL_PREFERRED",
                                        "MPOL_BIND",
                                        "MPOL_INTERLEAVE",
                                        "MPOL_LOCAL",
                                        "MPOL_PREFERRED_MANY",
                                        "MPOL_WEIGHTED_INTERLEAVE" };
    static const char *const FLAG[] = { "MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES",
                                        "MPOL_F_STATIC_NODES" }; /* 1 << 13 … 15 */
    const json_t *m = js_path(p->spec, "linux.memoryPolicy"), *v;
    const char *domain = js_str(p->spec, "linux.personality.domain");
    size_t i;
    p->personality = !domain                      ? -1
                     : !strcmp(domain, "LINUX")   ? 0
                     : !strcmp(domain, "LINUX32") ? 8
                                                  : -2;
    if (p->personality == -2)
        return err_set(e, 0, "/linux/personality/domain: unknown '%.40s'", domain);
    p->mem_mode = -1;
    if (!m) return 0;
    for (int k = 0; k < (int)ARRAY_LEN(MODE); k++)
        if (str_eq(js_str(m, "mode"), MODE[k])) p->mem_mode = k;
    if (p->mem_mode < 0) return err_set(e, 0, "/linux/memoryPolicy/mode: unknown or missing");
    json_array_foreach (js_get(m, "flags"), i, v) {
        int flag = 0;
        for (int k = 0; k < 3; k++)
            if (str_eq(json_string_value(v), FLAG[k])) flag = 1 << (13 + k);
        if (!flag) return err_set(e, 0, "/linux/memoryPolicy/flags/%zu: unknown", i);
        p->mem_mode |= flag;
    }
    AUTO_STRV parts = { 0 };
    const char *nodes = js_str_or(m, "nodes", "");
    if (*nodes) strv_split(&parts, nodes, ',');
    for (i = 0; i < parts.n; i++) {
        unsigned from, to;
        char end;
        int k = sscanf(parts.v[i], "%u-%u%c", &from, &to, &end);
        if (k == 1 && strspn(parts.v[i], "0123456789") == strlen(parts.v[i])) to = from;
        else if (k != 2) k = 0;
        if (!k || from > to || to >= sizeof p->mem_nodes * 8)
            return err_set(e, 0, "/linux/memoryPolicy/nodes: '%.40s' is no list of nodes", nodes);
        for (; from <= to; from++)
            p->mem_nodes[from / (8 * sizeof(long))] |= 1ul << from % (8 * sizeof(long));
    }
    return 0;
}

/* /process, which exec shares with run. */
static int plan_process(struct plan *p, const json_t *proc, struct err *e) {
    js_to_strv(js_get(proc, "args"), &p->args);
    js_to_strv(js_get(proc, "env"), &p->env);
    p->terminal = js_bool(proc, "terminal");
    p->cols = (u16)js_int(proc, "consoleSize.width", 0);
    p->rows = (u16)js_int(proc, "consoleSize.height", 0);
    p->cwd = js_str_or(proc, "cwd", "/");
    if (!p->args.n) return err_set(e, 0, "/process/args: empty");
    if (*p->cwd != '/')
        return err_set(e, 0, "/process/cwd: '%.200s' is not an absolute path", p->cwd);
    i64 uid = js_int(proc, "user.uid", 0), gid = js_int(proc, "user.gid", 0);
    if (uid < 0 || uid >= UINT32_MAX || gid < 0 || gid >= UINT32_MAX)
        return err_set(e, 0, "/process/user: id out of range");
    p->uid = (u32)uid;
    p->gid = (u32)gid;
    p->umask = js_int(proc, "user.umask", -1);
    const json_t *gids = js_path(proc, "user.additionalGids");
    p->ngroups = json_array_size(gids);
    if (p->ngroups > 65536) return err_set(e, 0, "/process/user/additionalGids: too many");
    p->groups = mem_new((p->ngroups + 1) * sizeof *p->groups);
    for (size_t i = 0; i < p->ngroups; i++)
        p->groups[i] = (u32)json_integer_value(json_array_get(gids, i));
    if (plan_caps(proc, "bounding", &p->cap_bounding, e) ||
        plan_caps(proc, "effective", &p->cap_effective, e) ||
        plan_caps(proc, "permitted", &p->cap_permitted, e) ||
        plan_caps(proc, "inheritable", &p->cap_inheritable, e) ||
        plan_caps(proc, "ambient", &p->cap_ambient, e))
        return -1;
    if (plan_sched(p, proc, e)) return -1;
    p->no_new_privs = js_bool(proc, "noNewPrivileges");
    p->oom_score_adj = js_int(proc, "oomScoreAdj", INT64_MIN);
    const json_t *rl = js_get(proc, "rlimits"), *j;
    size_t i;
    json_array_foreach (rl, i, j) {
        const char *type = js_str_or(j, "type", "");
        int r = rlimit_number(type);
        if (r < 0 || p->nrlimits == ARRAY_LEN(p->rlimits))
            return err_set(e, 0, "/process/rlimits/%zu: unknown '%.40s'", i, type);
        i64 soft = js_int(j, "soft", 0), hard = js_int(j, "hard", 0);
        p->rlimits[p->nrlimits++] = (struct plan_rlimit){ r, { (u64)soft, (u64)hard } };
    }
    return 0;
}

/* Parses and checks; takes a reference to the spec. */
static int plan_parse(json_t *spec, struct plan *ret, struct err *e) {
    struct plan p = { .spec = json_incref(spec), .oom_score_adj = INT64_MIN, .umask = -1 };
    const json_t *sk = js_get(spec, "skiff");
    int rc = -1;
    if (!json_is_object(js_get(spec, "process"))) err_set(e, 0, "/process: missing");
    else if (!plan_process(&p, js_get(spec, "process"), e) && !plan_namespaces(&p, e) &&
             !plan_ids(&p, e) && !plan_mounts(&p, e) && !plan_sysctls(&p, e) && !plan_policy(&p, e))
        rc = 0;
    if (rc) {
        plan_done(&p);
        return -1;
    }
    p.root = js_str(spec, "root.path");
    p.root_readonly = js_bool(spec, "root.readonly");
    p.hostname = js_str(spec, "hostname");
    p.domainname = js_str(spec, "domainname");
    js_to_strv(js_path(spec, "linux.maskedPaths"), &p.masked);
    js_to_strv(js_path(spec, "linux.readonlyPaths"), &p.readonly);
    p.seccomp = js_path(spec, "linux.seccomp");
    p.seccomp_default = str_eq(js_str(sk, "seccomp"), "default");
    p.fake_root = js_bool(sk, "fakeRoot");
    p.init = js_bool(sk, "init");
    p.driver = js_str_or(sk, "rootfs.driver", "dir");
    const char *prop = js_str(spec, "linux.rootfsPropagation");
    p.propagation = MS_REC | MS_PRIVATE;
    bool known = !prop;
    for (size_t i = 0; prop && i < ARRAY_LEN(MNT_PROP); i++)
        if (!strcmp(prop, MNT_PROP[i].name)) p.propagation = MNT_PROP[i].flag, known = true;
    if (!known) {
        err_set(e, 0, "/linux/rootfsPropagation: unknown '%.40s'", prop);
        plan_done(&p);
        return -1;
    }
    *ret = p;
    return 0;
}
/* }==== 17 plan */

/* {==== 18 launch: executing a plan ====
 * One launcher for everything that starts a process. The parent (supervisor, or CLI for exec) and
 * the child speak over a SEQPACKET pair; a message is one letter and its payload:
 *
 *   child                                  parent
 *   (in its new namespaces)
 *   <- GO        maps and cgroup are set   only where a helper writes the maps or there is a cgroup
 *   -> FUSE      device descriptors        forks the file server
 *   -> CONSOLE   pty master                keeps it
 *   -> HOOKS     the mounts are there      runs on_hooks, answers GO; then the child's own hooks
 *   -> LISTENER  seccomp's listener        hands it to on_listener at once: calls may wait for it
 *   -> READY     all is built              with wait_start: returns to its caller, who says START
 *   <- START
 *   -> ERROR     struct err                the launch failed
 *   end of file after READY: executed. End of file before it: the child died.
 *
 * Phases of the child: (a) capabilities of its user namespace, host's file tree: mounts are built,
 * host paths are opened; (b) after pivot_root: only the container's tree is reachable, names are
 * resolved there; (c) identity dropped, seccomp on: chdir and execve, nothing else. No file of the
 * container is interpreted in any phase, and none is opened for reading but through openat2 below
 * the root. Uses: 1-17. Sources: runtime-spec runtime-linux.md, pivot_root(2), namespaces(7). */
enum {
    MSG_GO = 'G',
    MSG_FUSE = 'F',
    MSG_CONSOLE = 'C',
    MSG_READY = 'R',
    MSG_START = 'S',
    MSG_ERROR = 'E',
    MSG_PID = 'P',
    MSG_LISTENER = 'L',
    MSG_HOOKS = 'H'
};

struct launch {
    const struct plan *plan;
    int store;            /* -1: none (a bundle) */
    int dir;              /* the container's directory: upper, work, lower, rootfs, l */
    int stdio[3];         /* for the process, borrowed; -1: /dev/null */
    struct filter filter; /* owned */
    struct cgroup cgroup; /* owned */
    unsigned keep_fds;    /* --preserve-fds: descriptors 3 … 2+n stay open */
    bool wait_start, die_with_parent, volatile_upper;
    bool stubs;   /* the mount points that every container has lie below the image (cache/init) */
    int start_fd; /* with wait_start: START is a byte on this FIFO instead; owned; -1: none */
    /* owned: bind sources of plan->mounts, opened before the user namespace; NULL: opened there */
    int *sources;
    int *nodes;    /* owned: linux.devices, made before the user namespace; NULL: made there */
    bool ufs_open; /* u below is open */
    struct ufs u;
    /* launch_join: called in the child with the container's root, before the identity is dropped */
    int (*in_root)(struct launch *l, int root, struct err *e);
    void *in_root_arg;
    /* the parent: takes seccomp's listener (borrowed) to whoever answers it */
    int (*on_listener)(struct launch *l, int fd, struct err *e);
    void *on_listener_arg;
    /* the parent's hooks, before the pivot; the child's own, those of `kind`, in its namespaces */
    int (*on_hooks)(struct launch *l, struct err *e);
    int (*run_hooks)(const struct launch *l, const char *kind, struct err *e);
    /* results */
    pid_t pid;
    int pidfd, sync, console; /* owned; -1: none */
    pid_t server;             /* the file server; 0: none */
};

static void launch_init(struct launch *l) {
    *l = (struct launch){ .store = -1,
                          .dir = -1,
                          .stdio = { -1, -1, -1 },
                          .pidfd = -1,
                          .sync = -1,
                          .console = -1,
                          .start_fd = -1 };
}

static void launch_done(struct launch *l) {
    filter_done(&l->filter);
    cgroup_done(&l->cgroup);
    for (size_t i = 0; l->nodes && i < json_array_size(js_path(l->plan->spec, "linux.devices"));
         i++)
        fd_closep(&l->nodes[i]);
    mem_freep(&l->nodes);
    for (size_t i = 0; l->sources && i < l->plan->nmounts; i++) fd_closep(&l->sources[i]);
    mem_freep(&l->sources);
    fd_closep(&l->pidfd), fd_closep(&l->sync), fd_closep(&l->console);
    if (l->ufs_open) packs_done(&l->u.packs), idx_close(&l->u.x);
    l->ufs_open = false;
}

__attribute__((noreturn)) static void launch_fail(int sync, struct err *e) {
    char msg[1 + sizeof *e];
    msg[0] = MSG_ERROR;
    memcpy(msg + 1, e, sizeof *e);
    (void)!fd_send(sync, msg, sizeof msg, NULL, 0);
    _exit(e->status ? e->status : EXIT_ENGINE);
}

static int launch_say(int sync, char what, const int *fds, unsigned n, struct err *e) {
    return fd_send(sync, &what, 1, fds, n) ? err_set(e, errno, "speak to the supervisor") : 0;
}

static int launch_hear(int sync, char what, struct err *e) {
    char c = 0;
    ssize_t k = fd_recv(sync, &c, 1, NULL, NULL, 0);
    return k == 1 && c == what ? 0 : err_set(e, 0, "the supervisor went away");
}

/* ---- 18.1 the root file system ---- */

/* Enters the container's directory by its path: the descriptor belongs to the mount namespace in
 * which it was opened, and the kernel mounts nothing on, or from, another namespace's mounts. */
static int launch_enter(const struct launch *l, struct err *e) {
    char link[40], path[PATH_MAX];
    struct stat a, b;
    if (l->dir < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", l->dir);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return err_set(e, errno, "find the container's directory");
    path[n] = 0;
    if (chdir(path) || stat(".", &a) || fstat(l->dir, &b))
        return err_set(e, errno, "enter the container's directory %s", path);
    if (a.st_ino != b.st_ino || a.st_dev != b.st_dev)
        return err_set(e, 0, "the container's directory %s was replaced", path);
    return 0;
}

/* Mounts the file system that the parent will serve. Whoever writes for the container needs its
 * user namespace, which comes last. */
static int launch_ufs(const char *at, bool writable, int sync, struct err *e) {
    int fds[UFS_MAX_THREADS + 1], n = ufs_mount(at, writable, fds, e), rc = 0;
    if (n < 0) return -1;
    if (writable && (fds[n] = open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC)) < 0)
        rc = err_set(e, errno, "open the user namespace");
    else if (writable) n++;
    if (!rc) rc = launch_say(sync, MSG_FUSE, fds, (unsigned)n, e);
    while (n > 0) close(fds[--n]);
    return rc;
}

/* Mounts the container's tree and returns a descriptor of its root. cwd becomes l->dir. */
static int launch_rootfs(struct launch *l, int sync, struct err *e) {
    const struct plan *p = l->plan;
    if (mount(NULL, "/", NULL,
              MS_REC | (p->propagation & MS_SHARED       ? MS_SLAVE
                        : p->propagation & MS_UNBINDABLE ? MS_PRIVATE
                                                         : p->propagation & ~(unsigned long)MS_REC),
              NULL))
        return err_set(e, errno, "make mounts private");
    if (launch_enter(l, e)) return -1;
    /* Any directory will do to mount on, so none is made for it: the store's names/, which nobody
     * looks at in this namespace. The overlay covers the file server's mount. */
    const char *at = "../../names";
    if (!strcmp(p->driver, "overlay-fuse") || !strcmp(p->driver, "overlay")) {
        AUTO_BUF data = { 0 };
        buf_adds(&data, "lowerdir=");
        /* the uppers of earlier build steps lie above the image */
        for (i64 i = js_int(p->spec, "skiff.rootfs.steps", 0); i-- > 0;)
            buf_addf(&data, "s%" PRId64 ":", i);
        if (!strcmp(p->driver, "overlay")) {
            size_t n = json_array_size(js_path(p->spec, "skiff.rootfs.layers"));
            for (size_t i = n; i-- > 0;) buf_addf(&data, "l/%zu%s", i, i ? ":" : "");
        } else {
            if (launch_ufs(at, false, sync, e)) return -1;
            buf_adds(&data, at);
        }
        if (l->stubs && !access("../../cache/init", F_OK)) buf_adds(&data, ":../../cache/init");
        buf_adds(&data, ",upperdir=upper,workdir=work,userxattr");
        size_t plain = data.n;
        if (l->volatile_upper) buf_adds(&data, ",volatile");
        if (mount("skiff", at, "overlay", 0, data.p) &&
            (data.p[plain] = 0, mount("skiff", at, "overlay", 0, data.p)))
            return err_set(e, errno, "mount overlay (%s)", data.p);
    } else if (!strcmp(p->driver, "fuse")) {
        if (launch_ufs(at, true, sync, e)) return -1;
    } else {
        at = p->root ? p->root : "rootfs";
        AUTO_FD tree = sys_open_tree(AT_FDCWD, at, OPEN_TREE_CLONE | AT_RECURSIVE);
        AUTO_FD on = tree >= 0 ? open(at, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
        if (on < 0) return err_set(e, errno, "root file system %s", at);
        if (mnt_attach(tree, on, e)) return -1;
        return fd_steal(&tree);
    }
    int root = open(at, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return root < 0 ? err_set(e, errno, "open the root file system %s", at) : root;
}

/* ---- 18.2 mounts of the plan ---- */

/* Copies the directory below into a fresh tmpfs, names and contents of plain files (tmpcopyup). */
static void launch_copy_up(int from, int to, int depth) {
    AUTO_DIR *d =
        depth < 64 ? fdopendir(openat(from, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) : NULL;
    struct dirent *de;
    while (d && (de = dir_next(d))) {
        struct stat st;
        char link[PATH_MAX];
        if (fstatat(from, de->d_name, &st, AT_SYMLINK_NOFOLLOW)) continue;
        if (S_ISDIR(st.st_mode)) {
            mkdirat(to, de->d_name, st.st_mode & 07777);
            AUTO_FD a = openat(from, de->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            AUTO_FD b = openat(to, de->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (a >= 0 && b >= 0) launch_copy_up(a, b, depth + 1);
        } else if (S_ISREG(st.st_mode)) {
            AUTO_FD a = openat(from, de->d_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
            AUTO_FD b =
                openat(to, de->d_name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, st.st_mode & 07777);
            char buf[8192];
            for (ssize_t k; a >= 0 && b >= 0 && (k = read(a, buf, sizeof buf)) > 0;)
                if (fd_write_all(b, buf, (size_t)k)) break;
        } else if (S_ISLNK(st.st_mode)) {
            ssize_t k = readlinkat(from, de->d_name, link, sizeof link - 1);
            if (k > 0) link[k] = 0, (void)!symlinkat(link, to, de->d_name);
        }
        (void)!fchownat(to, de->d_name, st.st_uid, st.st_gid, AT_SYMLINK_NOFOLLOW);
    }
}

/* What "cgroup" stands for: the v2 hierarchy mounted afresh (a new cgroup namespace sees its own
 * part), else the host's tree as it is. */
static int launch_mount_cgroup(const struct plan_mount *m, struct err *e) {
    struct statfs fs;
    bool v2 = !statfs("/sys/fs/cgroup", &fs) && fs.f_type == CGROUP2_SUPER_MAGIC;
    int fd = -1;
    if (v2 || !strcmp(m->type, "cgroup2")) {
        fd = mnt_new("cgroup2", "cgroup2", m->data, (unsigned)m->attr_set, e);
        if (fd >= 0 || (m->data && e->no == EINVAL)) return fd; /* options are never dropped */
    }
    if (!m->optional)
        fd = sys_open_tree(AT_FDCWD, "/sys/fs/cgroup", OPEN_TREE_CLONE | AT_RECURSIVE);
    return fd < 0 ? err_set(e, errno, "mount %s", m->type) : fd;
}

/* Shows a detached tree with other ids: a user namespace of a child that does nothing has the map.
 * */
static int launch_idmap(int tree, const struct plan_mount *m, const struct idmap *ids,
                        struct err *e) {
    struct sys_clone_args a = { .flags = CLONE_NEWUSER, .exit_signal = SIGCHLD };
    char path[40];
    if (!ids->uids)
        return err_set(e, 0, "idmap: no mappings, and no user namespace to take them from");
    pid_t pid = sys_clone3(&a);
    if (!pid)
        for (;;) pause();
    if (pid < 0) return err_set(e, errno, "create a user namespace");
    snprintf(path, sizeof path, "/proc/%d/ns/user", (int)pid);
    AUTO_FD ns = idmap_write(pid, ids, e) ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    struct mount_attr attr = { .attr_set = MOUNT_ATTR_IDMAP, .userns_fd = (u64)ns };
    int rc = ns < 0 ? -1
             : sys_mount_setattr(tree, m->ridmap ? AT_RECURSIVE : 0, &attr)
                 ? err_set(e, errno, "map the ids of %s", m->source)
                 : 0;
    kill(pid, SIGKILL);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) continue;
    return rc;
}

static int launch_mount_bind(const struct plan *p, const struct plan_mount *m, bool *ret_whole,
                             struct err *e) {
    unsigned how = OPEN_TREE_CLONE | (m->src_nofollow ? AT_SYMLINK_NOFOLLOW : 0);
    AUTO_FD fd = sys_open_tree(AT_FDCWD, m->source, how | (m->recursive ? AT_RECURSIVE : 0));
    if (fd < 0 && errno == EINVAL &&
        !m->recursive) { /* locked submounts: only the whole tree goes */
        fd = sys_open_tree(AT_FDCWD, m->source, how | AT_RECURSIVE);
        *ret_whole = true;
    }
    if (fd < 0) return err_set(e, errno, "bind source %s", m->source);
    if (m->idmap && launch_idmap(fd, m, m->ids.uids ? &m->ids : &p->ids, e)) return -1;
    return fd_steal(&fd);
}

/* The tree to attach for one mount of the plan. *ret_whole: submounts came along, asked for or not.
 * */
static int launch_mount_source(const struct plan *p, const struct plan_mount *m, bool *ret_whole,
                               struct err *e) {
    int fd;
    *ret_whole = false;
    if (m->bind) return launch_mount_bind(p, m, ret_whole, e);
    if (!strcmp(m->type, "cgroup") || !strcmp(m->type, "cgroup2")) return launch_mount_cgroup(m, e);
    unsigned attr = (unsigned)m->attr_set & ~(unsigned)MOUNT_ATTR_RDONLY;
    if (!strcmp(m->type, "tmpfs") || !(m->attr_set & MOUNT_ATTR_RDONLY))
        fd = mnt_new(m->type, m->source, m->data, attr, e);
    else fd = mnt_new(m->type, m->source, m->data, attr | MOUNT_ATTR_RDONLY, e);
    /* a container within a container may not mount proc afresh: it gets the one that is there */
    if (fd < 0 && !strcmp(m->type, "proc") && e->no == EPERM && !(p->ns_new & CLONE_NEWPID))
        fd = sys_open_tree(AT_FDCWD, "/proc", OPEN_TREE_CLONE | AT_RECURSIVE);
    if (fd < 0 && !strcmp(m->type, "sysfs") && e->no == EPERM) {
        fd = sys_open_tree(AT_FDCWD, "/sys", OPEN_TREE_CLONE | AT_RECURSIVE);
        *ret_whole = true;
    }
    return fd;
}

/* copy-symlink: the link itself is made anew in the container. */
static int launch_symlink(int root, const char *dest, const char *text, struct err *e) {
    const char *name = strrchr(dest, '/') + 1;
    AUTO_FREE char *parent = str_dupn(dest, (size_t)(name - dest));
    AUTO_FD dir = mnt_target(root, parent, MNT_DIR, e);
    if (dir < 0) return -1;
    char have[PATH_MAX];
    if (!symlinkat(text, dir, name)) return 0;
    ssize_t k = errno == EEXIST ? readlinkat(dir, name, have, sizeof have) : -1;
    return k == (ssize_t)strlen(text) && !memcmp(have, text, (size_t)k)
               ? 0
               : err_set(e, errno, "make link %s", dest);
}

/* source: the tree if it is open already; consumed. */
static int launch_mount(const struct plan *p, const struct plan_mount *m, int source, int root,
                        struct err *e) {
    char link[PATH_MAX];
    bool whole = source >= 0 && m->bind &&
                 !m->recursive; /* not known then; where there are no submounts it is the same */
    ssize_t k = m->copy_symlink ? readlink(m->source, link, sizeof link - 1) : -1;
    if (k > 0) {
        link[k] = 0;
        return launch_symlink(root, m->dest, link, e);
    }
    AUTO_FD tree = source >= 0 ? source : launch_mount_source(p, m, &whole, e);
    if (tree < 0) return m->optional || m->nofail ? 0 : -1;
    struct stat st;
    bool dir = !m->bind || fstat(tree, &st) || S_ISDIR(st.st_mode);
    bool strict = !strcmp(m->type, "proc") || !strcmp(m->type, "sysfs") || !strcmp(m->dest, "/dev");
    AUTO_FD at = mnt_target(
        root, m->dest,
        (dir ? MNT_DIR : 0) | (strict ? MNT_STRICT : 0) | (m->dest_nofollow ? MNT_NOFOLLOW : 0), e);
    if (at < 0) return -1;
    struct stat under;
    struct statfs fs;
    if (m->dest_nofollow && !fstat(at, &under) && S_ISLNK(under.st_mode) && !fstatfs(at, &fs) &&
        fs.f_type == PROC_SUPER_MAGIC)
        return err_set(e, 0, "a link of procfs is no mount target");
    if (!strcmp(m->type, "tmpfs") && !(m->data && strstr(m->data, "mode=")) && !fstat(at, &under))
        (void)!fchmodat(tree, ".", under.st_mode & 07777, 0);
    if (m->copy_up) {
        AUTO_FD below = sys_openat2(root, m->dest + 1, O_RDONLY | O_DIRECTORY, 0, RESOLVE_IN_ROOT);
        if (below >= 0) launch_copy_up(below, tree, 0);
    }
    if (mnt_attach(tree, at, e)) return -1;
    u64 set = m->attr_set & (m->bind ? ~0ull : MOUNT_ATTR_RDONLY),
        clear = m->attr_clear & ~m->attr_set;
    /* in a user namespace a locked "ro" cannot be taken back; asking for rw is the default anyway
     * */
    if (m->bind && mnt_attr(tree, set, p->ids.uids ? 0 : clear, whole, e)) return -1;
    if (!m->bind && set && mnt_attr(tree, set, 0, whole, e)) return -1;
    struct err locked; /* a user namespace may be refused the access times of the host's mounts */
    if (m->bind && p->ids.uids && (clear & MOUNT_ATTR__ATIME) == MOUNT_ATTR__ATIME)
        mnt_attr(tree, 0, MOUNT_ATTR__ATIME, whole, &locked);
    if ((m->rec_set || m->rec_clear) &&
        mnt_attr(tree, m->rec_set, p->ids.uids ? 0 : m->rec_clear, true, e))
        return -1;
    if (m->propagation) {
        char path[40];
        snprintf(path, sizeof path, "/proc/self/fd/%d", tree);
        if (mount(NULL, path, NULL, m->propagation, NULL))
            return err_set(e, errno, "propagation of %s", m->dest);
    }
    return 0;
}

/* What mknod needs for an entry of linux.devices; false: not one that can be made. */
static bool device_of(const json_t *j, mode_t *ret_mode, dev_t *ret_dev) {
    const char *type = js_str_or(j, "type", "");
    mode_t kind = *type == 'c' || *type == 'u' ? S_IFCHR
                  : *type == 'b'               ? S_IFBLK
                  : *type == 'p'               ? S_IFIFO
                                               : 0;
    *ret_mode = kind | ((mode_t)js_int(j, "fileMode", 0666) & 07777);
    *ret_dev = makedev((unsigned)js_int(j, "major", 0), (unsigned)js_int(j, "minor", 0));
    return kind && *type && !type[1];
}

static int device_make(int dir, const char *name, const json_t *j, u32 uid, u32 gid) {
    mode_t mode;
    dev_t dev;
    if (!device_of(j, &mode, &dev)) return errno = EINVAL, -1;
    return mknodat(dir, name, mode, dev) || fchmodat(dir, name, mode & 07777, 0) ||
                   fchownat(dir, name, uid, gid, 0)
               ? -1
               : 0;
}

/* Root makes the nodes of linux.devices before the user namespace, which could not: in a tmpfs that
 * is seen only in a mount namespace that is left at once. A child does it; the mounts come by
 * descriptor. */
static int launch_nodes(struct launch *l, struct err *e) {
    const struct plan *p = l->plan;
    const json_t *all = js_path(p->spec, "linux.devices"), *j;
    size_t i, n = json_array_size(all);
    int pair[2], status = 0;
    if (!n || !p->ids.uids || !host_real_root()) return 0;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return err_set(e, errno, "socketpair");
    AUTO_FD ours = pair[0], theirs = pair[1];
    l->nodes = mem_new(n * sizeof *l->nodes);
    for (i = 0; i < n; i++) l->nodes[i] = -1;
    pid_t pid = fork();
    if (pid < 0) return err_set(e, errno, "fork");
    if (!pid) {
        umask(0);
        if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) _exit(1);
        AUTO_FD tmp = mnt_new("tmpfs", "tmpfs", "mode=0755", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
                              e),
                on = open("/", O_PATH | O_CLOEXEC);
        if (tmp < 0 || mnt_attach(tmp, on, e)) _exit(1);
        json_array_foreach (all, i, j) {
            char name[24];
            snprintf(name, sizeof name, "%zu", i);
            u32 uid = idmap_outside_id(p->ids.uid, p->ids.uids, (u32)js_int(j, "uid", 0));
            u32 gid = idmap_outside_id(p->ids.gid, p->ids.gids, (u32)js_int(j, "gid", 0));
            AUTO_FD node = device_make(tmp, name, j, uid, gid)
                               ? -1
                               : sys_open_tree(tmp, name, OPEN_TREE_CLONE);
            if (node < 0 || fd_send(theirs, "N", 1, &node, 1)) _exit(1);
        }
        _exit(0);
    }
    fd_closep(&theirs);
    for (i = 0; i < n; i++) {
        char c;
        unsigned got = 1;
        if (fd_recv(ours, &c, 1, &l->nodes[i], &got, 0) != 1 || !got) {
            l->nodes[i] = -1;
            break;
        }
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
    return i < n ? err_set(e, 0, "/linux/devices/%zu: the node cannot be made", i) : 0;
}

/* One of linux.devices: a node of its own where that is allowed, else the host's by bind mount. */
static int launch_device(struct launch *l, const json_t *j, size_t at, int root, struct err *e) {
    AUTO_FREE char *path = str_dup(js_str_or(j, "path", ""));
    const char *host = js_str(j, "hostPath");
    for (size_t k = strlen(path); k && path[k - 1] == '/'; k--) path[k - 1] = 0;
    char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    mode_t mode;
    dev_t dev;
    if (*path != '/' || !*name)
        return err_set(e, 0, "/linux/devices/%zu/path: a path below / is required", at);
    if (!l->nodes && !host) {
        if (!device_of(j, &mode, &dev))
            return err_set(e, 0, "/linux/devices/%zu/type: expected c, u, b or p", at);
        AUTO_FREE char *parent = str_dupn(path, (size_t)(name - path));
        AUTO_FD dir = mnt_target(root, parent, MNT_DIR, e);
        if (dir < 0) return -1;
        struct stat st;
        if (!device_make(dir, name, j, (u32)js_int(j, "uid", 0), (u32)js_int(j, "gid", 0)))
            return 0;
        if (errno == EEXIST && !fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) &&
            (st.st_mode & S_IFMT) == (mode & S_IFMT) && st.st_rdev == dev)
            return 0;
        if (errno != EPERM && errno != EEXIST && errno != EROFS)
            return err_set(e, errno, "make device %s", path);
    }
    AUTO_FD node = l->nodes ? fd_steal(&l->nodes[at])
                            : sys_open_tree(AT_FDCWD, host ? host : path, OPEN_TREE_CLONE);
    AUTO_FD on = node >= 0 ? mnt_target(root, path, 0, e)
                           : err_set(e, errno, "device %s", host ? host : path);
    return on < 0 || mnt_attach(node, on, e) ||
                   mnt_attr(node, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, 0, false, e)
               ? -1
               : 0;
}

/* Device nodes by bind mount of the host's, and the links that runtime-linux.md asks for. */
static int launch_dev(struct launch *l, int root, struct err *e) {
    static const struct {
        const char *name;
        unsigned major, minor;
    } DEV[] = {
        { "null", 1, 3 },   { "zero", 1, 5 },    { "full", 1, 7 },
        { "random", 1, 8 }, { "urandom", 1, 9 }, { "tty", 5, 0 },
    };
    static const char *const LINKS[][2] = {
        { "/proc/self/fd", "fd" },       { "/proc/self/fd/0", "stdin" },
        { "/proc/self/fd/1", "stdout" }, { "/proc/self/fd/2", "stderr" },
        { "/proc/kcore", "core" },       { "pts/ptmx", "ptmx" },
    };
    AUTO_FD dev =
        sys_openat2(root, "dev", O_RDONLY | O_DIRECTORY, 0, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS);
    struct statfs fs;
    if (dev < 0 || fstatfs(dev, &fs) || fs.f_type != TMPFS_MAGIC) return 0; /* not ours to fill */
    for (size_t i = 0; i < ARRAY_LEN(DEV); i++) {
        char path[32];
        snprintf(path, sizeof path, "/dev/%s", DEV[i].name);
        AUTO_FD node = mnt_device(path, DEV[i].major, DEV[i].minor, e);
        if (node < 0) return -1;
        AUTO_FD tree = sys_open_tree(node, "", AT_EMPTY_PATH | OPEN_TREE_CLONE);
        AUTO_FD on =
            openat(dev, DEV[i].name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
        if (on < 0 && errno == EEXIST) continue;
        if (tree < 0 || on < 0) return err_set(e, errno, "make %s", path);
        if (mnt_attach(tree, on, e) ||
            mnt_attr(tree, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, 0, false, e))
            return -1;
    }
    for (size_t i = 0; i < ARRAY_LEN(LINKS); i++)
        if (symlinkat(LINKS[i][0], dev, LINKS[i][1]) && errno != EEXIST)
            return err_set(e, errno, "make /dev/%s", LINKS[i][1]);
    if (l->plan->fake_root) { /* apt's sandbox checks that it really changed its user */
        static const char APT[] = "APT::Sandbox::User \"root\";\n";
        struct err ignored;
        file_replace(dev, ".apt.conf", APT, sizeof APT - 1, 0644, 0, &ignored);
    }
    const json_t *j;
    size_t i;
    json_array_foreach (js_path(l->plan->spec, "linux.devices"), i, j)
        if (launch_device(l, j, i, root, e)) return -1;
    return 0;
}

/* The pty: made in the container's own devpts, its slave bound on /dev/console. */
static int launch_console(struct launch *l, int root, int sync, int *ret_slave, struct err *e) {
    AUTO_FD master = sys_openat2(root, "dev/pts/ptmx", O_RDWR | O_NOCTTY, 0,
                                 RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS);
    struct stat st;
    struct statfs fs;
    int unlock = 0;
    if (master < 0) return err_set(e, errno, "open /dev/pts/ptmx of the container");
    if (fstat(master, &st) || st.st_rdev != makedev(5, 2) || fstatfs(master, &fs) ||
        fs.f_type != DEVPTS_SUPER_MAGIC)
        return err_set(e, 0, "/dev/pts/ptmx of the container is not a pty multiplexer");
    if (ioctl(master, TIOCSPTLCK, &unlock)) return err_set(e, errno, "unlock the pty");
    AUTO_FD slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0) return err_set(e, errno, "open the pty");
    if (l->plan->rows || l->plan->cols) {
        struct winsize ws = { .ws_row = l->plan->rows, .ws_col = l->plan->cols };
        ioctl(master, TIOCSWINSZ, &ws);
    }
    (void)!fchown(slave, l->plan->uid, (gid_t)-1);
    AUTO_FD dev =
        sys_openat2(root, "dev", O_PATH | O_DIRECTORY, 0, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS);
    AUTO_FD on = dev < 0 ? -1
                         : openat(dev, "console",
                                  O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    AUTO_FD tree = on < 0 ? -1 : sys_open_tree(slave, "", AT_EMPTY_PATH | OPEN_TREE_CLONE);
    if (tree >= 0 && mnt_attach(tree, on, e)) return -1;
    int m = master;
    if (launch_say(sync, MSG_CONSOLE, &m, 1, e)) return -1;
    *ret_slave = fd_steal(&slave);
    return 0;
}

static int launch_pivot(int root, struct err *e) {
    AUTO_FD old = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (old < 0 || fchdir(root)) return err_set(e, errno, "enter the root file system");
    /* pivot_root(2): "." on both sides stacks the old root on the new one, where it is cut loose;
     * as a slave first, so that the cut does not reach the host */
    if (sys_pivot_root(".", ".")) return err_set(e, errno, "pivot_root");
    if (fchdir(old) || mount(NULL, ".", NULL, MS_SLAVE | MS_REC, NULL) ||
        umount2(".", MNT_DETACH) || chdir("/"))
        return err_set(e, errno, "leave the host's file tree");
    return 0;
}

static int launch_sysctls(const struct plan *p, int root, struct err *e) {
    const char *key;
    json_t *v;
    json_object_foreach (js_path(p->spec, "linux.sysctl"), key, v) {
        AUTO_FREE char *path = str_fmt("proc/sys/%s", key);
        for (char *s = path; *s; s++)
            if (*s == '.') *s = '/';
        AUTO_FD fd = sys_openat2(root, path, O_WRONLY, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
        struct statfs fs;
        const char *text = json_string_value(v);
        if (fd < 0) return err_set(e, errno, "sysctl %s", key);
        if (fstatfs(fd, &fs) || fs.f_type != PROC_SUPER_MAGIC)
            return err_set(e, 0, "sysctl %s: not in procfs", key);
        if (!text || write(fd, text, strlen(text)) < 0)
            return err_set(e, errno, "sysctl %s=%s", key, text ? text : "");
    }
    return 0;
}

static void launch_loopback(void) {
    AUTO_FD s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq r = { .ifr_name = "lo" };
    if (s >= 0 && !ioctl(s, SIOCGIFFLAGS, &r)) {
        r.ifr_flags |= IFF_UP;
        ioctl(s, SIOCSIFFLAGS, &r);
    }
}

/* Real root is nobody in a user namespace with a range of ids of its own. */
static int launch_become_root(const struct plan *p, struct err *e) {
    if (!p->ids.uids || !geteuid() || !idmap_has(p->ids.uid, p->ids.uids, 0) ||
        !idmap_has(p->ids.gid, p->ids.gids, 0))
        return 0;
    if (syscall(SYS_setresgid, 0, 0, 0) || syscall(SYS_setresuid, 0, 0, 0))
        return err_set(e, errno, "become root of the user namespace");
    return 0;
}

/* A tmpfs with the files that are in memory, each by the number of its mount; -2: there are none.
 * It lies over the store's names/: a tree can only be cloned from a mount that is attached. */
static int launch_texts(const struct plan *p, struct err *e) {
    AUTO_FD tmp = -1;
    for (size_t i = 0; i < p->nmounts; i++) {
        const struct plan_mount *m = &p->mounts[i];
        char name[24];
        if (!m->text) continue;
        if (tmp < 0) {
            AUTO_FD on = open("../../names", O_PATH | O_DIRECTORY | O_CLOEXEC);
            tmp = mnt_new("tmpfs", "tmpfs", "mode=0755", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, e);
            if (tmp < 0 || mnt_attach(tmp, on, e)) return -1;
        }
        snprintf(name, sizeof name, "%zu", i);
        if (file_replace(tmp, name, m->text, m->text_len, m->text_mode, FILE_FRESH, e)) return -1;
        if ((m->text_uid || m->text_gid) && /* with one id there is nobody to give it to */
            fchownat(tmp, name, m->text_uid, m->text_gid, 0) && !idmap_single(&p->ids))
            return err_set(e, errno, "give the file for %s to %u:%u", m->dest, m->text_uid,
                           m->text_gid);
    }
    return tmp < 0 ? -2 : fd_steal(&tmp);
}

/* The tree of mount i where it is open before its turn; -1: it is not. */
static int launch_opened(struct launch *l, size_t i, int texts) {
    char name[24];
    if (!l->plan->mounts[i].text) return l->sources ? fd_steal(&l->sources[i]) : -1;
    snprintf(name, sizeof name, "%zu", i);
    return sys_open_tree(texts, name, OPEN_TREE_CLONE);
}

static void launch_texts_detach(int texts) {
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", texts);
    if (texts >= 0) umount2(path, MNT_DETACH);
}

/* Phase (a) and the pivot. */
static int launch_mounts(struct launch *l, int sync, int *ret_slave, struct err *e) {
    const struct plan *p = l->plan;
    AUTO_FD root = launch_rootfs(l, sync, e);
    AUTO_FD null = root < 0 ? -1 : mnt_device("/dev/null", 1, 3, e);
    if (null < 0) return -1;
    if (launch_become_root(p, e)) return -1;
    AUTO_FD texts = launch_texts(p, e);
    if (texts == -1) return -1;
    for (size_t i = 0; i < p->nmounts; i++)
        if (launch_mount(p, &p->mounts[i], launch_opened(l, i, texts), root, e))
            return err_wrap(e, "mount %s", p->mounts[i].dest);
    launch_texts_detach(texts);
    AUTO_FD cwd = mnt_target(root, p->cwd, MNT_DIR, e);
    if (cwd < 0) return err_wrap(e, "working directory");
    if (launch_dev(l, root, e)) return -1;
    if (p->terminal && launch_console(l, root, sync, ret_slave, e)) return -1;
    /* masked before the pivot: the null device is the host's, checked above */
    for (size_t i = 0; i < p->masked.n; i++)
        if (mnt_mask(root, p->masked.v[i], null, e)) return -1;
    if (launch_sysctls(p, root, e)) return -1;
    for (size_t i = 0; i < p->readonly.n; i++)
        if (mnt_readonly(root, p->readonly.v[i], e)) return -1;
    if (p->root_readonly && mnt_attr(root, MOUNT_ATTR_RDONLY, 0, false, e))
        return err_wrap(e, "make the root read-only");
    if (l->on_hooks) { /* config.md: prestart, createRuntime, createContainer, then pivot_root */
        if (launch_say(sync, MSG_HOOKS, NULL, 0, e)) return -1;
        if (launch_hear(sync, MSG_GO, e)) _exit(EXIT_ENGINE);
        if (l->run_hooks(l, "createContainer", e)) return -1;
    }
    if (launch_pivot(root, e)) return -1;
    if (js_str(p->spec, "linux.rootfsPropagation") && mount(NULL, "/", NULL, p->propagation, NULL))
        return err_set(e, errno, "set /linux/rootfsPropagation");
    return 0;
}

/* ---- 18.3 identity and execution ---- */
static int launch_rlimits(const struct plan *p, struct err *e) {
    for (unsigned i = 0; i < p->nrlimits; i++) {
        struct rlimit r = { p->rlimits[i].v.soft, p->rlimits[i].v.hard };
        if (setrlimit(p->rlimits[i].resource, &r))
            return err_set(e, errno, "set resource limit %d to %" PRIu64 ":%" PRIu64,
                           p->rlimits[i].resource, p->rlimits[i].v.soft, p->rlimits[i].v.hard);
    }
    return 0;
}

/* sched(7) says what a deadline must be like; the kernel just says EINVAL. */
static int launch_sched_why(const struct plan *p, int no, struct err *e) {
    const struct sched_words *w = &p->sched;
    const u64 v[] = { w->runtime, w->deadline, w->period };
    static const char *const NAME[] = { "runtime", "deadline", "period" };
    if (no != EINVAL || w->policy != 6)
        return err_set(e, no, "set /process/scheduler: sched_setattr");
    for (int i = 0; i < 2; i++)
        if (!js_path(p->spec, i ? "process.scheduler.deadline" : "process.scheduler.runtime"))
            return err_set(e, no, "sched_setattr: `SCHED_DEADLINE` requires `%s`", NAME[i]);
    for (int i = 0; i < 2; i++)
        if (!v[i])
            return err_set(e, no, "sched_setattr: `SCHED_DEADLINE` %s must be greater than 0",
                           NAME[i]);
    for (int i = 0; i < 2; i++)
        if (v[i + 1] && v[i] > v[i + 1])
            return err_set(e, no,
                           "sched_setattr: `SCHED_DEADLINE` %s (%" PRIu64 ") must be <= %s (%" PRIu64
                           ")",
                           NAME[i], v[i], NAME[i + 1], v[i + 1]);
    for (int i = 0; i < 3; i++)
        if ((i < 2 || v[i]) && (v[i] < 1024 || v[i] > 1ull << 63))
            return err_set(e, no,
                           "sched_setattr: `SCHED_DEADLINE` %s (%" PRIu64
                           ") must be between 1024 and 2^63",
                           NAME[i], v[i]);
    return err_set(e, no, "sched_setattr: invalid `SCHED_DEADLINE` parameters");
}

/* Scheduling and memory policy, while there still are capabilities. */
static int launch_policy(const struct plan *p, struct err *e) {
    if (p->ioprio >= 0 && syscall(SYS_ioprio_set, 1 /* this process */, 0, p->ioprio))
        return err_set(e, errno, "set /process/ioPriority");
    if (p->sched.size && syscall(SYS_sched_setattr, 0, &p->sched, 0))
        return launch_sched_why(p, errno, e);
    if (p->personality >= 0 && syscall(SYS_personality, p->personality) < 0)
        return err_set(e, errno, "set /linux/personality");
    if (p->mem_mode >= 0) {
        bool some = false;
        for (size_t i = 0; i < ARRAY_LEN(p->mem_nodes); i++) some |= p->mem_nodes[i] != 0;
        if (syscall(SYS_set_mempolicy, p->mem_mode, some ? p->mem_nodes : NULL,
                    some ? sizeof p->mem_nodes * 8 : 0))
            return err_set(e, errno, "set /linux/memoryPolicy");
    }
    return 0;
}

/* A new time namespace: its offsets can be set as long as nobody is in it. */
static int launch_time(const struct plan *p, struct err *e) {
    static const char *const CLOCK[] = { "monotonic", "boottime" };
    if (!(p->ns_new & 0x80)) return 0;
    if (unshare(0x80)) return err_set(e, errno, "new time namespace");
    for (int i = 0; i < 2; i++) {
        AUTO_FREE char *key = str_fmt("linux.timeOffsets.%s", CLOCK[i]);
        const json_t *o = js_path(p->spec, key);
        AUTO_FREE char *text = str_fmt("%s %" PRId64 " %" PRId64 "\n", CLOCK[i],
                                       js_int(o, "secs", 0), js_int(o, "nanosecs", 0));
        if (o && file_poke(AT_FDCWD, "/proc/self/timens_offsets", text))
            return err_set(e, errno, "set /linux/timeOffsets/%s", CLOCK[i]);
    }
    AUTO_FD ns = open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC);
    return ns < 0 || setns(ns, 0x80) ? err_set(e, errno, "enter the new time namespace") : 0;
}

/* Drops to the plan's user, capabilities and filter; from here on nothing but chdir and execve. */
static int launch_identity(const struct launch *l, int sync, struct err *e) {
    const struct plan *p = l->plan;
    for (unsigned c = 0; c < ARRAY_LEN(CAP_NAMES); c++)
        if (!(p->cap_bounding & CAP_BIT(c)) && prctl(PR_CAPBSET_DROP, c, 0, 0, 0) &&
            errno != EINVAL)
            return err_set(e, errno, "drop capability %s", CAP_NAMES[c]);
    if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)) return err_set(e, errno, "keep capabilities");
    bool can_groups = !p->ids.uids || !idmap_single(&p->ids); /* setgroups is denied with one id */
    if (js_get(js_get(p->spec, "annotations"), "run.oci.keep_original_groups")) can_groups = false;
    for (unsigned i = 0; i < p->nns_join; i++)
        if (p->ns_join[i].type == CLONE_NEWUSER && !p->ngroups) can_groups = false;
    if (can_groups && syscall(SYS_setgroups, p->ngroups, p->groups))
        return err_set(e, errno, "set supplementary groups");
    if (syscall(SYS_setresgid, p->gid, p->gid, p->gid))
        return err_set(e, errno, "set gid %u (it is not mapped into the container)", p->gid);
    if (syscall(SYS_setresuid, p->uid, p->uid, p->uid))
        return err_set(e, errno, "set uid %u (it is not mapped into the container)", p->uid);
    if (p->umask >= 0) umask((mode_t)p->umask);
    bool nnp = p->no_new_privs || p->fake_root;
    if (nnp && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return err_set(e, errno, "no_new_privs");
    /* without no_new_privs the filter needs CAP_SYS_ADMIN, so that goes last */
    u64 hold = nnp ? 0 : CAP_BIT(CAP_SYS_ADMIN);
    u64 want = p->cap_permitted | p->cap_effective;
    if (sys_capset(p->cap_effective | hold, want | hold, p->cap_inheritable))
        return err_set(e, errno, "set capabilities");
    for (unsigned c = 0; c < ARRAY_LEN(CAP_NAMES); c++)
        if (p->cap_ambient & CAP_BIT(c)) prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, c, 0, 0);
    if (l->die_with_parent) prctl(PR_SET_PDEATHSIG, SIGKILL);
    AUTO_FD listener = filter_load(&l->filter, e);
    if (listener < 0 || (listener && launch_say(sync, MSG_LISTENER, &listener, 1, e))) return -1;
    if (!listener) listener = -1;
    if (hold && sys_capset(p->cap_effective, want, p->cap_inheritable))
        return err_set(e, errno, "set capabilities");
    return 0;
}

static const char *launch_path(const struct plan *p) {
    const char *path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    for (size_t i = 0; i < p->env.n; i++)
        if (str_prefix(p->env.v[i], "PATH=")) path = p->env.v[i] + 5;
    return path;
}

/* Says beforehand what launch_exec would. */
static int launch_find(const struct plan *p, struct err *e) {
    const char *name = p->args.v[0];
    AUTO_STRV dirs = { 0 };
    int no = ENOENT;
    struct stat st;
    if (strchr(name, '/'))
        no = access(name, X_OK) ? errno : !stat(name, &st) && S_ISDIR(st.st_mode) ? EACCES : 0;
    else {
        strv_split(&dirs, launch_path(p), ':');
        for (size_t i = 0; i < dirs.n && no; i++) {
            AUTO_FREE char *full = str_fmt("%s/%s", *dirs.v[i] ? dirs.v[i] : ".", name);
            if (!access(full, X_OK)) no = 0;
            else if (errno == EACCES) no = EACCES;
        }
    }
    e->status = no == ENOENT ? EXIT_NOTFOUND : EXIT_NOEXEC;
    return no ? err_set(e, 0, "exec: \"%s\": %s", name,
                        no == ENOENT && !strchr(name, '/') ? "executable file not found in $PATH"
                                                           : strerror(no))
              : 0;
}

/* execve with the plan's PATH. Only returns on failure. */
static int launch_exec(const struct plan *p, struct err *e) {
    const char *name = p->args.v[0], *path = launch_path(p);
    int no = ENOENT;
    if (strchr(name, '/')) {
        execve(name, p->args.v, p->env.v);
        no = errno;
    } else if (*name) {
        AUTO_STRV dirs = { 0 };
        strv_split(&dirs, path, ':');
        for (size_t i = 0; i < dirs.n; i++) {
            AUTO_FREE char *full = str_fmt("%s/%s", *dirs.v[i] ? dirs.v[i] : ".", name);
            execve(full, p->args.v, p->env.v);
            if (errno != ENOENT && errno != ENOTDIR) no = errno;
            if (errno != ENOENT && errno != ENOTDIR && errno != EACCES) break;
        }
    }
    e->status = no == ENOENT || no == ENOTDIR ? EXIT_NOTFOUND : EXIT_NOEXEC;
    AUTO_FREE char *shown = str_printable(name);
    if (no == ENOENT && !strchr(name, '/'))
        return err_set(e, 0, "exec: \"%s\": executable file not found in $PATH", shown);
    if (no == ENOEXEC)
        return err_set(e, 0, "exec: \"%s\": exec format error (built for another architecture?)",
                       shown);
    return err_set(e, 0, "exec: \"%s\": %s", shown,
                   no == ENOENT   ? "no such file or directory"
                   : no == EACCES ? "permission denied"
                                  : strerror(no));
}

/* Pid 1 of --init: reaps everything, forwards signals, ends with its child. Never returns. */
__attribute__((noreturn)) static void launch_init_loop(pid_t child) {
    sigset_t all;
    sigfillset(&all);
    prctl(PR_SET_NAME, "skiff-init");
    sys_close_range(3, ~0u, 0);
    for (;;) {
        siginfo_t si;
        if (sigwaitinfo(&all, &si) < 0) continue;
        if (si.si_signo != SIGCHLD) {
            kill(child, si.si_signo);
            continue;
        }
        int status;
        for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
            if (pid == child)
                _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    }
}

static void launch_signals_default(void) {
    sigset_t none;
    for (int s = 1; s < 65; s++) signal(s, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Puts stdio in place: a pty's slave, or the three given descriptors. */
static int launch_stdio(const struct launch *l, int slave, struct err *e) {
    AUTO_FD null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int i = 0; i < 3; i++) {
        int from = slave >= 0 ? slave : l->stdio[i] >= 0 ? l->stdio[i] : null;
        if (from < 0) continue; /* no /dev/null in the image, none asked for */
        struct stat st;
        /* a log file or pipe of root's that the user is to open again by /proc/self/fd; never a
         * device */
        if (slave < 0 && l->plan->uid && !fstat(from, &st) && !S_ISCHR(st.st_mode))
            (void)!fchown(from, l->plan->uid, l->plan->gid);
        if (from == i ? fcntl(i, F_SETFD, 0) : dup2(from, i) < 0)
            return err_set(e, errno, "set up stdio");
    }
    /* with --init the terminal is the program's, not the init's */
    if (slave >= 0 && !l->plan->init && ioctl(0, TIOCSCTTY, 0))
        return err_set(e, errno, "take the terminal");
    return 0;
}

/* Not traceable from here on, and no /proc/PID/exe for others while we are still ourselves. The
 * score comes first: a process that is not dumpable cannot open its own /proc files. */
static int launch_hide(const struct plan *p, struct err *e) {
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, p->oom_score_adj);
    if (p->oom_score_adj != INT64_MIN && file_poke(AT_FDCWD, "/proc/self/oom_score_adj", text))
        return err_set(e, errno, "set oom_score_adj to %s (only root may lower it)", text);
    prctl(PR_SET_DUMPABLE, 0);
    return 0;
}

/* Phases (b) and (c): what run and exec do alike. `sync` closes by itself at execve. */
__attribute__((noreturn)) static void launch_finish(struct launch *l, int sync, int slave) {
    const struct plan *p = l->plan;
    struct err e = { 0 };
    char cwd[PATH_MAX];
    setsid();
    if (launch_stdio(l, slave, &e)) launch_fail(sync, &e);
    struct rlimit files;
    if (g_nofile_soft && !getrlimit(RLIMIT_NOFILE, &files))
        files.rlim_cur = g_nofile_soft, setrlimit(RLIMIT_NOFILE, &files);
    if (launch_rlimits(p, &e) || launch_policy(p, &e)) launch_fail(sync, &e);
    bool entered = !chdir(p->cwd);
    if (launch_identity(l, sync, &e)) launch_fail(sync, &e);
    if (!entered && chdir(p->cwd)) {
        err_set(&e, errno, "working directory %s", p->cwd);
        launch_fail(sync, &e);
    }
    /* a cwd outside of the root has no name in it (CVE-2024-21626) */
    if (!getcwd(cwd, sizeof cwd) || *cwd != '/') {
        err_set(&e, 0, "working directory %s is outside of the container", p->cwd);
        launch_fail(sync, &e);
    }
    unsigned keep = 3 + l->keep_fds;
    if (sys_close_range(keep, ~0u, 4 /* CLOSE_RANGE_CLOEXEC, Linux 5.11 */)) {
        struct rlimit r;
        getrlimit(RLIMIT_NOFILE, &r);
        for (unsigned i = keep; i < (r.rlim_max > 1 << 20 ? 1u << 20 : (unsigned)r.rlim_max); i++)
            fcntl((int)i, F_SETFD, FD_CLOEXEC);
    }
    if (l->start_fd >= 0 && launch_find(p, &e))
        launch_fail(sync, &e); /* `create` reports it, not `start` */
    for (unsigned i = 3; i < keep; i++) fcntl((int)i, F_SETFD, 0);
    if (launch_say(sync, MSG_READY, NULL, 0, &e)) launch_fail(sync, &e);
    char start;
    if (l->start_fd >= 0)
        while (read(l->start_fd, &start, 1) != 1) continue;
    else if (l->wait_start && launch_hear(sync, MSG_START, &e)) _exit(EXIT_ENGINE);
    if (p->init) {
        sigset_t all;
        sigfillset(&all);
        sigprocmask(SIG_SETMASK, &all, NULL);
        pid_t child = fork();
        if (child < 0) err_set(&e, errno, "fork"), launch_fail(sync, &e);
        if (child) launch_init_loop(child);
        setsid();
        if (slave >= 0) ioctl(0, TIOCSCTTY, 0);
    }
    launch_signals_default();
    if (l->run_hooks && l->run_hooks(l, "startContainer", &e)) launch_fail(sync, &e);
    launch_exec(p, &e);
    launch_fail(sync, &e);
}

__attribute__((noreturn)) static void launch_child(struct launch *l, int sync) {
    const struct plan *p = l->plan;
    struct err e = { 0 };
    int slave = -1;
    bool self_map = p->ids.uids && !p->ids.outside;
    if (self_map && idmap_write(0, &p->ids, &e)) {
        err_wrap(&e, "map ids");
        launch_fail(sync, &e);
    }
    if ((p->ids.outside || l->cgroup.path || p->nns_join) && launch_hear(sync, MSG_GO, &e))
        _exit(EXIT_ENGINE);
    if (launch_time(p, &e) || launch_hide(p, &e)) launch_fail(sync, &e);
    if ((p->ns_new & CLONE_NEWCGROUP) && unshare(CLONE_NEWCGROUP)) {
        err_set(&e, errno, "new cgroup namespace");
        launch_fail(sync, &e);
    }
    if (p->ns_new & CLONE_NEWNET) launch_loopback();
    umask(0);
    if (launch_mounts(l, sync, &slave, &e)) launch_fail(sync, &e);
    umask(022);
    if (p->hostname && (p->ns_new & CLONE_NEWUTS) &&
        sethostname(p->hostname, strlen(p->hostname))) {
        err_set(&e, errno, "set host name %s", p->hostname);
        launch_fail(sync, &e);
    }
    if (p->domainname && (p->ns_new & CLONE_NEWUTS) &&
        setdomainname(p->domainname, strlen(p->domainname))) {
        err_set(&e, errno, "set domain name %s", p->domainname);
        launch_fail(sync, &e);
    }
    launch_finish(l, sync, slave);
}

/* ---- 18.4 the parent's side ---- */

/* Closes everything from 3 up but the given descriptors. */
static void fd_close_except(const int *keep, unsigned n) {
    int last = 2;
    for (;;) {
        int next = INT_MAX;
        for (unsigned i = 0; i < n; i++)
            if (keep[i] > last && keep[i] < next) next = keep[i];
        if (next == INT_MAX) break;
        if (next > last + 1) sys_close_range((unsigned)last + 1, (unsigned)next - 1, 0);
        last = next;
    }
    sys_close_range((unsigned)last + 1, ~0u, 0);
}

/* What the file server of a writable tree needs: the directories, the container's ids. */
static int launch_server_writes(struct launch *l, int ns, const int dirs[2], struct err *e) {
    prctl(PR_SET_DUMPABLE, 0); /* nobody in that user namespace may trace us */
    if (l->plan->ids.uids && setns(ns, CLONE_NEWUSER))
        return err_set(e, errno, "enter the container's user namespace");
    close(ns);
    return rw_open(&l->u, dirs[0], dirs[1], l->volatile_upper, e);
}

/* Forks the file server. fds: the device, its clones, and for a writable tree the user namespace. */
static int launch_server(struct launch *l, int *fds, unsigned n, struct err *e) {
    bool writes = !strcmp(l->plan->driver, "fuse");
    int dirs[2] = { -1, -1 };
    if (writes && ((dirs[0] = dir_open(l->dir, "upper", e)) < 0 ||
                   (dirs[1] = dir_open(l->dir, "work", e)) < 0))
        return fd_closep(&dirs[0]), -1;
    l->server = fork();
    if (!l->server) {
        setsid();
        int keep[20];
        unsigned k = n;
        memcpy(keep, fds, n * sizeof *fds);
        keep[k++] = l->u.packs.layers;
        if (writes) keep[k++] = dirs[0], keep[k++] = dirs[1];
        fd_close_except(keep, k);
        AUTO_FD null = open("/dev/null", O_RDWR | O_CLOEXEC);
        for (int i = 0; i < 3; i++) dup2(null, i);
        (void)!chdir("/");
        launch_signals_default();
        if (writes && launch_server_writes(l, fds[--n], dirs, e)) _exit(1);
        ufs_serve(&l->u, fds, n);
    }
    fd_closep(&dirs[0]), fd_closep(&dirs[1]);
    return l->server < 0 ? err_set(e, errno, "fork the file server") : 0;
}

/* Hears the child until it is ready (wait_start) or executed. */
static int launch_wait(struct launch *l, struct err *e) {
    bool ready = false;
    for (;;) {
        char msg[1 + sizeof *e];
        int fds[16];
        unsigned n = 0;
        ssize_t k = fd_recv(l->sync, msg, sizeof msg, fds, &n, 0);
        if (k <= 0) {
            if (ready) return 0;
            return err_set(e, 0, "the container's first process died before it could execute");
        }
        int rc = 0;
        if (msg[0] == MSG_FUSE) rc = launch_server(l, fds, n, e);
        else if (msg[0] == MSG_CONSOLE && n == 1) {
            fd_closep(&l->console);
            l->console = fds[0];
            n = 0;
        } else if (msg[0] == MSG_LISTENER && n == 1)
            rc = l->on_listener ? l->on_listener(l, fds[0], e)
                                : err_set(e, 0, "nobody answers /linux/seccomp's listener");
        else if (msg[0] == MSG_HOOKS && l->on_hooks)
            rc = l->on_hooks(l, e) || launch_say(l->sync, MSG_GO, NULL, 0, e) ? -1 : 0;
        else if (msg[0] == MSG_READY) ready = true;
        else if (msg[0] == MSG_PID && k == 1 + (ssize_t)sizeof l->pid)
            memcpy(&l->pid, msg + 1, sizeof l->pid);
        else if (msg[0] == MSG_ERROR && k == (ssize_t)sizeof msg) {
            memcpy(e, msg + 1, sizeof *e);
            e->msg[sizeof e->msg - 1] = 0;
            rc = -1;
        }
        while (n) close(fds[--n]);
        if (rc) return rc;
        if (ready && l->wait_start) return 0;
    }
}

/* Prepares what the plan needs from the store: filter, file server's index. */
static int launch_prepare(struct launch *l, struct err *e) {
    const struct plan *p = l->plan;
    if (p->seccomp_default || p->seccomp) {
        struct filter_want w = { .caps = p->cap_bounding,
                                 .fake_root = p->fake_root,
                                 .profile = p->seccomp_default ? NULL : p->seccomp,
                                 .strict = js_get(js_get(p->spec, "annotations"),
                                                  "run.oci.seccomp_fail_unknown_syscall") };
        if (filter_get(l->store, &w, &l->filter, e)) return -1;
    }
    if (strcmp(p->driver, "overlay-fuse") && strcmp(p->driver, "fuse")) return 0;
    const char *chain = js_str_or(p->spec, "skiff.rootfs.chain", "");
    AUTO_FREE char *path = str_fmt("merged/%s.idx", chain);
    if (idx_open(l->store, path, false, &l->u.x, e)) return -1;
    int layers = dir_open(l->store, "layers", e);
    if (layers < 0) {
        idx_close(&l->u.x);
        return -1;
    }
    l->u.squash = idmap_single(&p->ids);
    l->u.uid = p->ids.uid[0].inside;
    l->u.gid = p->ids.gid[0].inside;
    packs_init(&l->u.packs, &l->u.x, layers);
    l->ufs_open = true;
    return 0;
}

/* Joins the plan's existing namespaces, the user namespace first. */
static int launch_setns(const struct plan *p, struct err *e) {
    int fds[ARRAY_LEN(p->ns_join)];
    for (unsigned i = 0; i < p->nns_join; i++)
        if ((fds[i] = open(p->ns_join[i].path, O_RDONLY | O_CLOEXEC)) < 0)
            return err_set(e, errno, "namespace %s", p->ns_join[i].path);
    for (int user = 1; user >= 0; user--)
        for (unsigned i = 0; i < p->nns_join; i++)
            if ((p->ns_join[i].type == CLONE_NEWUSER) == user &&
                setns(fds[i], (int)p->ns_join[i].type))
                return err_set(e, errno, "join namespace %s", p->ns_join[i].path);
    for (unsigned i = 0; i < p->nns_join; i++) close(fds[i]);
    return 0;
}

/* Root opens bind sources, and maps their ids, before the user namespace: there it could do
 * neither. */
static int launch_sources(struct launch *l, struct err *e) {
    const struct plan *p = l->plan;
    if (geteuid()) return 0;
    l->sources = mem_new((p->nmounts + 1) * sizeof *l->sources);
    for (size_t i = 0; i < p->nmounts; i++) l->sources[i] = -1;
    for (size_t i = 0; i < p->nmounts; i++) {
        const struct plan_mount *m = &p->mounts[i];
        bool whole;
        if (!m->bind || (!p->ids.uids && !m->idmap) || (*m->source != '/' && l->dir >= 0)) continue;
        if ((l->sources[i] = launch_mount_source(p, m, &whole, e)) < 0 && !m->optional &&
            !m->nofail)
            return err_wrap(e, "mount %s", m->dest);
    }
    return 0;
}

/* Creates the container's first process. After it: launch_wait. */
static int launch_begin(struct launch *l, struct err *e) {
    const struct plan *p = l->plan;
    int pair[2];
    l->stubs = true;
    if (launch_prepare(l, e) || launch_nodes(l, e) || launch_sources(l, e)) return -1;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return err_set(e, errno, "socketpair");
    l->sync = pair[0];
    AUTO_FD theirs = pair[1];
    u64 flags = p->ns_new &
                ~(u64)(CLONE_NEWCGROUP | 0x80); /* both are entered later, when they are set up */
    struct sys_clone_args a = { .flags = flags, .exit_signal = SIGCHLD };
    bool staged = p->nns_join > 0;
    if (staged) a.flags = 0;
    l->pid = sys_clone3(&a);
    if (l->pid < 0)
        return err_set(e, errno, "create namespaces%s",
                       errno == EPERM || errno == ENOSPC || errno == EUSERS
                           ? " ('skiff doctor' says what this host forbids and how to allow it)"
                           : "");
    if (!l->pid) {
        close(pair[0]);
        if (!staged) launch_child(l, theirs);
        struct err ce = { 0 };
        prctl(PR_SET_DUMPABLE, 0); /* whoever is in those namespaces must not trace us */
        if (launch_setns(p, &ce)) launch_fail(theirs, &ce);
        struct sys_clone_args b = { .flags = flags | CLONE_PARENT };
        pid_t pid = sys_clone3(&b);
        if (!pid) launch_child(l, theirs);
        if (pid < 0) err_set(&ce, errno, "create namespaces"), launch_fail(theirs, &ce);
        char msg[1 + sizeof pid] = { MSG_PID };
        memcpy(msg + 1, &pid, sizeof pid);
        (void)!fd_send(theirs, msg, sizeof msg, NULL, 0);
        _exit(0);
    }
    fd_closep(&theirs);
    if (staged) {
        char msg[1 + sizeof *e];
        ssize_t k = fd_recv(l->sync, msg, sizeof msg, NULL, NULL, 0);
        waitpid(l->pid, NULL, 0);
        if (k == (ssize_t)sizeof msg && msg[0] == MSG_ERROR)
            return memcpy(e, msg + 1, sizeof *e), -1;
        if (k != 1 + (ssize_t)sizeof l->pid || msg[0] != MSG_PID)
            return err_set(e, 0, "joining namespaces failed");
        memcpy(&l->pid, msg + 1, sizeof l->pid);
    }
    l->pidfd = sys_pidfd_open(l->pid);
    if (p->ids.outside && idmap_write(l->pid, &p->ids, e)) return -1;
    if (cgroup_enter(&l->cgroup, l->pid, e)) return -1;
    if ((p->ids.outside || l->cgroup.path || staged) && launch_say(l->sync, MSG_GO, NULL, 0, e))
        return -1;
    return 0;
}

/* Ends a launch that failed: kills and reaps what was started. */
static void launch_abort(struct launch *l) {
    if (l->pid > 0) {
        kill(l->pid, SIGKILL);
        waitpid(l->pid, NULL, 0);
    }
    if (l->server > 0) {
        kill(l->server, SIGKILL);
        waitpid(l->server, NULL, 0);
    }
    cgroup_remove(&l->cgroup);
}

/* setns(2), again for a second on EPERM: between its change of credentials and execve(2) a process
 * may not be traced, so its namespaces may not be joined. */
static int setns_patiently(int pidfd, int namespaces) {
    const struct timespec pause = { .tv_nsec = 5000000 };
    for (int i = 0; setns(pidfd, namespaces); i++) {
        if (errno != EPERM || i == 200) return -1;
        nanosleep(&pause, NULL);
    }
    return 0;
}

/* ---- 18.5 joining a running container ---- */

/* Creates a process in the namespaces of `target` (a living pid of the container, known by pidfd).
 * Its parent is the caller. l->plan has the process; mounts and namespaces are the container's.
 * Then launch_wait. */
static int launch_join(struct launch *l, int pidfd, u64 namespaces, struct err *e) {
    int pair[2];
    const struct plan *p = l->plan;
    if (p->seccomp_default || p->seccomp) {
        struct filter_want w = { .caps = p->cap_bounding,
                                 .fake_root = p->fake_root,
                                 .profile = p->seccomp_default ? NULL : p->seccomp,
                                 .strict = js_get(js_get(p->spec, "annotations"),
                                                  "run.oci.seccomp_fail_unknown_syscall") };
        if (filter_get(l->store, &w, &l->filter, e)) return -1;
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return err_set(e, errno, "socketpair");
    l->sync = pair[0];
    AUTO_FD theirs = pair[1];
    pid_t stage = fork();
    if (stage < 0) return err_set(e, errno, "fork");
    if (!stage) {
        struct err ce = { 0 };
        close(pair[0]);
        if (launch_hide(p, &ce))
            launch_fail(theirs, &ce); /* before the first namespace: CVE-2016-9962 */
        if (l->cgroup.path && cgroup_enter(&l->cgroup, getpid(), &ce)) launch_fail(theirs, &ce);
        if (setns_patiently(pidfd, (int)namespaces)) {
            err_set(&ce, errno, "join the container's namespaces");
            launch_fail(theirs, &ce);
        }
        struct sys_clone_args b = { .flags = CLONE_PARENT };
        pid_t pid = sys_clone3(&b);
        if (!pid) {
            int slave = -1;
            AUTO_FD root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
            if (l->in_root && l->in_root(l, root, &ce)) launch_fail(theirs, &ce);
            if (p->terminal && launch_console(l, root, theirs, &slave, &ce))
                launch_fail(theirs, &ce);
            launch_finish(l, theirs, slave);
        }
        if (pid < 0) err_set(&ce, errno, "fork"), launch_fail(theirs, &ce);
        char msg[1 + sizeof pid] = { MSG_PID };
        memcpy(msg + 1, &pid, sizeof pid);
        (void)!fd_send(theirs, msg, sizeof msg, NULL, 0);
        _exit(0);
    }
    fd_closep(&theirs);
    l->pid = 0;
    return 0;
}

/* Runs fn in a child that has the container's file tree: of a running container by joining, of a
 * stopped one by mounting it in namespaces of its own. fn gets the root's descriptor and must _exit
 * by returning its status. The child's pid; the caller reaps it. */
static pid_t launch_visit(struct launch *l, int pidfd, int (*fn)(int root, void *arg), void *arg,
                          struct err *e) {
    int pair[2];
    const struct plan *p = l->plan;
    if (pidfd < 0 && launch_prepare(l, e)) return -1;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return err_set(e, errno, "socketpair");
    l->sync = pair[0];
    AUTO_FD theirs = pair[1];
    struct sys_clone_args a = { .exit_signal = SIGCHLD,
                                .flags =
                                    pidfd >= 0 ? 0 : (p->ns_new & CLONE_NEWUSER) | CLONE_NEWNS };
    pid_t pid = sys_clone3(&a);
    if (pid < 0) return err_set(e, errno, "create namespaces");
    if (!pid) {
        struct err ce = { 0 };
        AUTO_FD root = -1;
        close(pair[0]);
        if (pidfd >= 0) {
            prctl(PR_SET_DUMPABLE, 0);
            u64 ns = CLONE_NEWNS | (p->ids.uids ? CLONE_NEWUSER : 0);
            if (setns(pidfd, (int)ns))
                err_set(&ce, errno, "join the container's namespaces"), launch_fail(theirs, &ce);
            root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
        } else {
            if (p->ids.uids && !p->ids.outside && idmap_write(0, &p->ids, &ce))
                launch_fail(theirs, &ce);
            if (p->ids.outside && launch_hear(theirs, MSG_GO, &ce)) _exit(EXIT_ENGINE);
            root = launch_rootfs(l, theirs, &ce);
            if (root < 0) launch_fail(theirs, &ce);
        }
        launch_say(theirs, MSG_READY, NULL, 0, &ce);
        close(theirs);
        umask(0);
        _exit(fn(root, arg));
    }
    fd_closep(&theirs);
    l->pid = pid;
    if (pidfd < 0 && p->ids.outside &&
        (idmap_write(pid, &p->ids, e) || launch_say(l->sync, MSG_GO, NULL, 0, e)))
        return launch_abort(l), -1;
    if (launch_wait(l, e)) return launch_abort(l), -1;
    return pid;
}

/* Runs fn in the user namespace of an idmap, so that it may handle files of all mapped ids; the
 * exit status of fn, -1 on failure. */
static int launch_as_owner(const struct idmap *m, int (*fn)(void *arg), void *arg, struct err *e) {
    int pair[2];
    if (!m->uids) return fn(arg);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return err_set(e, errno, "socketpair");
    struct sys_clone_args a = { .flags = CLONE_NEWUSER, .exit_signal = SIGCHLD };
    pid_t pid = sys_clone3(&a);
    if (!pid) {
        struct err ce = { 0 };
        close(pair[0]);
        if (m->outside ? launch_hear(pair[1], MSG_GO, &ce) : idmap_write(0, m, &ce))
            launch_fail(pair[1], &ce);
        umask(0);
        _exit(fn(arg));
    }
    close(pair[1]);
    int rc = pid < 0 ? err_set(e, errno, "create a user namespace") : 0;
    if (!rc && m->outside)
        rc = idmap_write(pid, m, e) || launch_say(pair[0], MSG_GO, NULL, 0, e) ? -1 : 0;
    close(pair[0]);
    int status = 0;
    if (pid > 0 && rc) kill(pid, SIGKILL);
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
    if (rc) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
/* }==== 18 launch */

/* {==== 19 image: pull, push, load, save ====
 * Every way in ends in the same place: each layer's blob stored as it came and ingested (part 11),
 * a configuration, an OCI manifest, one name in index.json. Nothing is visible before all of it is
 * there. Uses: 1-11. Sources: image-spec manifest.md, distribution-spec, docker image spec v1.2
 * (save). */
#define MT_OCI_INDEX "application/vnd.oci.image.index.v1+json"
#define MT_OCI_MANIFEST "application/vnd.oci.image.manifest.v1+json"
#define MT_OCI_CONFIG "application/vnd.oci.image.config.v1+json"
#define MT_OCI_LAYER "application/vnd.oci.image.layer.v1.tar"
#define MT_DOCKER_LIST "application/vnd.docker.distribution.manifest.list.v2+json"
#define MT_DOCKER_MANIFEST "application/vnd.docker.distribution.manifest.v2+json"

/* ---- 19.1 progress ---- */
enum { PROGRESS_LAYERS = 256 };
struct progress {
    enum { PROGRESS_QUIET, PROGRESS_PLAIN, PROGRESS_BARS } mode;
    pthread_mutex_t lock;
    struct {
        char id[13], what[24];
        u64 now, total;
    } line[PROGRESS_LAYERS];
    unsigned n, shown;
    i64 drawn_ms;
};

static void progress_init(struct progress *p, bool quiet) {
    *p = (struct progress){ .mode = quiet       ? PROGRESS_QUIET
                                    : isatty(1) ? PROGRESS_BARS
                                                : PROGRESS_PLAIN };
    pthread_mutex_init(&p->lock, NULL);
}

static void progress_draw(struct progress *p) {
    struct winsize ws = { 0 };
    ioctl(1, TIOCGWINSZ, &ws);
    unsigned rows = ws.ws_row > 2 ? ws.ws_row - 2u : 22, first = p->n > rows ? p->n - rows : 0;
    if (p->shown) printf("\x1b[%uA", p->shown);
    for (unsigned i = first; i < p->n; i++) {
        printf("\x1b[2K%s: %s", p->line[i].id, p->line[i].what);
        if (p->line[i].total && !strcmp(p->line[i].what, "Downloading")) {
            int fill = (int)(p->line[i].now * 40 / p->line[i].total);
            AUTO_FREE char *now = size_human(p->line[i].now), *all = size_human(p->line[i].total);
            printf(" [%.*s>%*s] %s/%s", fill, "========================================", 40 - fill,
                   "", now, all);
        }
        putchar('\n');
    }
    p->shown = p->n - first;
    fflush(stdout);
}

/* What happens to one layer. */
static void progress_say(struct progress *p, const char *hex, const char *what, u64 now,
                         u64 total) {
    if (!p || p->mode == PROGRESS_QUIET) return;
    pthread_mutex_lock(&p->lock);
    unsigned i = 0;
    while (i < p->n && strncmp(p->line[i].id, hex, 12)) i++;
    bool news = i == p->n || strcmp(p->line[i].what, what);
    if (i == p->n && p->n < PROGRESS_LAYERS) snprintf(p->line[p->n++].id, 13, "%.12s", hex);
    if (i < p->n) {
        snprintf(p->line[i].what, sizeof p->line[i].what, "%s", what);
        p->line[i].now = now;
        p->line[i].total = total;
    }
    if (p->mode == PROGRESS_PLAIN) {
        if (news && strcmp(what, "Downloading")) printf("%.12s: %s\n", hex, what), fflush(stdout);
    } else if (news || time_mono_ms() - p->drawn_ms > 80) {
        p->drawn_ms = time_mono_ms();
        progress_draw(p);
    }
    pthread_mutex_unlock(&p->lock);
}

/* ---- 19.2 blobs on their way in ---- */

/* A blob from a registry: what an interrupted pull left in tmp/ first, the network from there on; a
 * broken transfer is taken up again by Range. Verified at its end. */
struct src_blob {
    struct src src;
    struct reg *reg;
    const struct store *store;
    const char *digest; /* borrowed, checked */
    u64 size, at, have; /* told by the manifest; read so far; bytes in the file */
    int fd;             /* owned: the partial file */
    struct http *http;  /* owned; NULL: not open */
    u64 skip;           /* bytes the server sends again although asked not to */
    struct sha sha;
    int failures;
    bool cut; /* the network failed: what came is worth keeping */
    struct progress *progress;
    char part[96];
};
enum { BLOB_RETRIES = 5 };

static int src_blob_open(struct src_blob *b, struct err *e) {
    AUTO_STRV headers = { 0 };
    AUTO_FREE char *path = str_fmt("blobs/%s", b->digest);
    if (b->at) strv_take(&headers, str_fmt("Range: bytes=%" PRIu64 "-", b->at));
    struct http_req q = { .method = "GET", .headers = &headers, .body_fd = -1 };
    b->http = reg_request(b->reg, &q, path, e);
    if (!b->http) return -1;
    static struct http_req spent = { .method = "GET", .url = "registry", .body_fd = -1 };
    b->http->req = &spent;
    b->skip = b->http->status == 200 ? b->at : 0;
    if (b->http->status == 200 || b->http->status == 206) return 0;
    reg_explain(b->http, path, e);
    b->failures = BLOB_RETRIES; /* an answer, not an accident */
    return -1;
}

static ssize_t src_blob_net(struct src_blob *b, void *out, size_t n, struct err *e) {
    if (b->at >= b->size) return 0; /* all of it was there already */
    for (;;) {
        ssize_t k = -1;
        if (b->http || !src_blob_open(b, e)) k = http_read(b->http, out, n, e);
        if (k > 0 && b->skip) {
            size_t drop = (u64)k < b->skip ? (size_t)k : (size_t)b->skip;
            b->skip -= drop;
            if (drop == (size_t)k) continue;
            memmove(out, (char *)out + drop, (size_t)k - drop);
            return k - (ssize_t)drop;
        }
        if (k > 0 || (k == 0 && b->at >= b->size)) return k;
        if (k == 0)
            err_set(e, 0, "connection closed after %" PRIu64 " of %" PRIu64 " bytes", b->at,
                    b->size);
        http_free(b->http);
        b->http = NULL;
        if (++b->failures >= BLOB_RETRIES) return b->cut = true, -1;
        progress_say(b->progress, b->digest + 7, "Retrying", b->at, b->size);
        usleep(100000u << b->failures);
    }
}

static ssize_t src_blob_read(struct src *s, void *out, size_t n, struct err *e) {
    struct src_blob *b = (void *)s;
    ssize_t k;
    if (b->at < b->have) {
        if (n > b->have - b->at) n = (size_t)(b->have - b->at);
        k = pread(b->fd, out, n, (off_t)b->at);
        if (k <= 0) return err_set(e, k ? errno : EIO, "read %s", b->part);
    } else {
        k = src_blob_net(b, out, n, e);
        if (k < 0) return -1;
        if (b->at + (u64)k > b->size)
            return err_set(e, 0,
                           "blob %s is longer than the %" PRIu64 " bytes that the manifest says",
                           b->digest, b->size);
        if (k && fd_pwrite_all(b->fd, out, (size_t)k, b->at))
            return err_set(e, errno, "write %s", b->part);
    }
    if (k) {
        sha_add(&b->sha, out, (size_t)k);
        b->at += (u64)k;
        progress_say(b->progress, b->digest + 7, "Downloading", b->at, b->size);
        return k;
    }
    u8 raw[32];
    char have[DIGEST_LEN + 1] = "sha256:";
    struct sha done = b->sha;
    sha_end(&done, raw);
    hex_of(raw, 32, have + 7);
    if (!strcmp(have, b->digest)) return 0;
    return err_set(e, 0, "blob %s: the content that arrived has digest %s", b->digest, have);
}

/* 0, or 1 when another process has stored the blob in the meantime, or -1. */
static int src_blob_begin(struct src_blob *b, const struct store *s, struct reg *r,
                          const char *digest, u64 size, struct progress *p, struct err *e) {
    *b = (struct src_blob){ .src = { src_blob_read },
                            .reg = r,
                            .store = s,
                            .digest = digest,
                            .size = size,
                            .fd = -1,
                            .progress = p };
    sha_init(&b->sha);
    snprintf(b->part, sizeof b->part, "tmp/%s.part", digest_hex(digest));
    for (;;) {
        struct stat st, named;
        b->fd = lock_take(s->dir, b->part, LOCK_EX);
        if (b->fd < 0 || fstat(b->fd, &st)) return err_set(e, errno, "open %s", b->part);
        if (!fstatat(s->dir, b->part, &named, AT_SYMLINK_NOFOLLOW) && named.st_ino == st.st_ino) {
            b->have = (u64)st.st_size <= size ? (u64)st.st_size : 0;
            return 0;
        }
        fd_closep(&b->fd); /* whoever held the lock has renamed or removed the file */
        if (blob_have(s, digest)) return 1;
    }
}

/* Gives the verified file its name, or closes it. */
static int src_blob_end(struct src_blob *b, bool keep, struct err *e) {
    char path[80];
    int rc = 0;
    if (keep && (fsync(b->fd) ||
                 renameat(b->store->dir, b->part, b->store->dir, blob_path(b->digest, path))))
        rc = err_set(e, errno, "store blob %s", b->digest);
    if (!keep && !b->cut) unlinkat(b->store->dir, b->part, 0); /* it would fail again and again */
    http_free(b->http);
    fd_closep(&b->fd);
    return rc;
}

/* Copies what passes to a file in tmp/ and digests it: for blobs from archives and of our own. */
struct src_tee {
    struct src src;
    struct src *from;
    int fd; /* owned */
    u64 n;
    struct sha sha;
    u8 head[4];
    char path[96];
};

static ssize_t src_tee_read(struct src *s, void *out, size_t n, struct err *e) {
    struct src_tee *t = (void *)s;
    ssize_t k = t->from->read(t->from, out, n, e);
    if (k <= 0) return k;
    if (fd_pwrite_all(t->fd, out, (size_t)k, t->n)) return err_set(e, errno, "write %s", t->path);
    for (size_t i = 0; t->n + i < 4 && i < (size_t)k; i++) t->head[t->n + i] = ((u8 *)out)[i];
    sha_add(&t->sha, out, (size_t)k);
    t->n += (u64)k;
    return k;
}

/* Stores a layer from any source, compressed or not; want (may be NULL): the diff-id it must have.
 * ret_desc: its descriptor, owned by the caller. */
static int layer_add(const struct store *s, struct src *from, const char *want, json_t **ret_desc,
                     char *ret_diff_id, struct err *e) {
    struct src_tee tee = { .src = { src_tee_read }, .from = from };
    struct src_inflate inf = { .src = { src_inflate_read }, .from = &tee.src };
    char id[HEX_LEN + 1], digest[DIGEST_LEN + 1] = "sha256:", path[80];
    u8 raw[32];
    id_random(id);
    sha_init(&tee.sha);
    snprintf(tee.path, sizeof tee.path, "tmp/%.32s.blob", id);
    tee.fd = openat(s->dir, tee.path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (tee.fd < 0) return err_set(e, errno, "create %s", tee.path);
    int rc = layer_ingest(s, &inf.src, want, ret_diff_id, e);
    src_inflate_done(&inf);
    sha_end(&tee.sha, raw);
    hex_of(raw, 32, digest + 7);
    if (!rc && (fsync(tee.fd) || renameat(s->dir, tee.path, s->dir, blob_path(digest, path))))
        rc = err_set(e, errno, "store blob %s", digest);
    if (rc) unlinkat(s->dir, tee.path, 0);
    close(tee.fd);
    if (rc) return -1;
    const char *kind = tee.head[0] == 0x1f && tee.head[1] == 0x8b   ? "+gzip"
                       : tee.head[0] == 0x28 && tee.head[1] == 0xb5 ? "+zstd"
                                                                    : "";
    AUTO_FREE char *type = str_fmt(MT_OCI_LAYER "%s", kind);
    *ret_desc = json_object();
    js_sets(*ret_desc, "mediaType", type);
    js_sets(*ret_desc, "digest", digest);
    js_seti(*ret_desc, "size", (i64)tee.n);
    return 0;
}

/* Rebuilds a layer's pack and index from its blob. */
static int layer_rebuild(const struct store *s, const char *blob, const char *diff_id,
                         struct err *e) {
    AUTO_FD fd = blob_open(s, blob, e);
    char got[DIGEST_LEN + 1];
    if (fd < 0) return -1;
    struct src_fd f = { { src_fd_read }, fd };
    struct src_inflate inf = { .src = { src_inflate_read }, .from = &f.src };
    int rc = layer_ingest(s, &inf.src, diff_id, got, e);
    src_inflate_done(&inf);
    return rc;
}

/* Writes configuration and manifest of an image whose layers are stored, merges them, and names it.
 * layers: descriptors, borrowed. ret_id: HEX_LEN+1, may be NULL. ret_desc may be NULL. */
static int image_put(const struct store *s, const json_t *config, const json_t *layers,
                     const char *name, const char *repo_digest, char *ret_id, json_t **ret_desc,
                     struct err *e) {
    char digest[DIGEST_LEN + 1], chain[HEX_LEN + 1];
    AUTO_FREE char *text = js_dump(config, JSON_COMPACT);
    AUTO_STRV diffs = { 0 };
    if (image_diff_ids(config, &diffs, e) || blob_add(s, text, strlen(text), digest, e)) return -1;
    if (json_array_size(layers) != diffs.n)
        return err_set(e, 0, "image has %zu layers, but its configuration says %zu",
                       json_array_size(layers), diffs.n);
    if (ret_id) strcpy(ret_id, digest + 7);
    AUTO_JSON *m = json_object();
    js_seti(m, "schemaVersion", 2);
    js_sets(m, "mediaType", MT_OCI_MANIFEST);
    json_t *c = js_sub(m, "config");
    js_sets(c, "mediaType", MT_OCI_CONFIG);
    js_sets(c, "digest", digest);
    js_seti(c, "size", (i64)strlen(text));
    json_object_set(m, "layers", (json_t *)(uintptr_t)layers);
    AUTO_FREE char *mtext = js_dump(m, JSON_COMPACT);
    if (blob_add(s, mtext, strlen(mtext), digest, e) || layer_merge(s, &diffs, chain, e)) return -1;
    AUTO_JSON *desc = json_object();
    js_sets(desc, "mediaType", MT_OCI_MANIFEST);
    js_sets(desc, "digest", digest);
    js_seti(desc, "size", (i64)strlen(mtext));
    if (store_tag(s, desc, name, repo_digest, e)) return -1;
    if (ret_desc) *ret_desc = json_incref(desc);
    return 0;
}

/* ---- 19.3 pull ---- */
struct platform {
    char os[32], arch[32], variant[32];
};

/* "linux/arm64/v8", "arm64", "" (this machine). */
static int platform_parse(const char *s, struct platform *ret, struct err *e) {
    *ret = (struct platform){ "linux", "", "" };
    snprintf(ret->arch, sizeof ret->arch, "%s", host_arch());
    if (str_empty(s)) return 0;
    AUTO_STRV p = { 0 };
    strv_split(&p, s, '/');
    for (size_t i = 0; i < p.n; i++)
        if (!*p.v[i] || strlen(p.v[i]) > 31 || p.n > 3)
            return err_set(e, 0, "--platform %s: expected os/architecture[/variant]", s);
    if (p.n > 1) strcpy(ret->os, p.v[0]);
    strcpy(ret->arch, host_arch_word(p.v[p.n > 1 ? 1 : 0]));
    if (p.n > 2) strcpy(ret->variant, p.v[2]);
    static const char ARCHES[] =
        "386 amd64 arm arm64 loong64 mips mips64 mips64le mipsle ppc64 ppc64le riscv64 s390x wasm";
    static const char SYSTEMS[] = "linux windows darwin freebsd wasip1";
    if (!word_in(ARCHES, ret->arch, strlen(ret->arch)) ||
        !word_in(SYSTEMS, ret->os, strlen(ret->os)))
        return err_set(e, 0,
                       "\"%.60s\": unknown operating system or architecture: invalid argument", s);
    return 0;
}

/* The manifest of an index for a platform; NULL: none. */
static const json_t *platform_pick(const json_t *index, const struct platform *want) {
    const json_t *best = NULL, *d;
    size_t i;
    json_array_foreach (js_get(index, "manifests"), i, d) {
        const char *os = js_str_or(d, "platform.os", ""),
                   *arch = js_str_or(d, "platform.architecture", "");
        const char *variant = js_str_or(d, "platform.variant", "");
        if (strcmp(os, want->os) || strcmp(host_arch_word(arch), want->arch)) continue;
        if (*want->variant ? !strcmp(variant, want->variant) : !best) best = d;
        if (!*want->variant && !strcmp(want->arch, "arm") && !strcmp(variant, "v7")) best = d;
    }
    return best;
}

static bool mt_is_index(const char *t) {
    return str_eq(t, MT_OCI_INDEX) || str_eq(t, MT_DOCKER_LIST);
}
static bool mt_is_manifest(const char *t) {
    return str_eq(t, MT_OCI_MANIFEST) || str_eq(t, MT_DOCKER_MANIFEST);
}

/* Refuses a document that is not exactly one of index and manifest (CVE-2021-41190). */
static int manifest_check(const json_t *m, const char *type, const char *what, struct err *e) {
    bool index = js_get(m, "manifests") != NULL,
         manifest = js_get(m, "layers") || js_get(m, "config");
    const char *said = js_str(m, "mediaType");
    if (js_int(m, "schemaVersion", 0) == 1)
        return err_set(e, 0,
                       "%s is a Docker schema 1 manifest, a format that registries have given up: "
                       "push it anew",
                       what);
    if (index == manifest)
        return err_set(e, 0, "%s is %s: refused", what,
                       index ? "an index and a manifest at once" : "no image manifest");
    if (said && !(index ? mt_is_index(said) : mt_is_manifest(said)))
        return err_set(e, 0, "%s says it is '%.100s', but its content is %s: refused", what, said,
                       index ? "an index" : "a manifest");
    if (type && (mt_is_index(type) || mt_is_manifest(type)) && mt_is_index(type) != index)
        return err_set(e, 0, "%s came as '%.100s', but its content is %s: refused", what, type,
                       index ? "an index" : "a manifest");
    if (js_int(m, "schemaVersion", 0) != 2)
        return err_set(e, 0, "%s: schemaVersion is not 2", what);
    return 0;
}

/* Fetches a manifest by tag or digest; its bytes stay as they came. */
static json_t *pull_manifest(struct reg *r, const char *which, struct buf *bytes, char *digest,
                             struct err *e) {
    AUTO_STRV headers = { 0 };
    strv_add(&headers, "Accept: " MT_OCI_INDEX ", " MT_OCI_MANIFEST ", " MT_DOCKER_LIST
                       ", " MT_DOCKER_MANIFEST);
    AUTO_FREE char *path = str_fmt("manifests/%s", which);
    struct http_req q = { .method = "GET", .headers = &headers, .body_fd = -1 };
    AUTO_HTTP *h = reg_request(r, &q, path, e);
    if (!h) return NULL;
    AUTO_FREE char *what = ref_familiar(&r->ref);
    if (h->status == 404)
        return err_set(e, 0, "manifest for %s not found: manifest unknown", what), NULL;
    if (h->status != 200) return reg_explain(h, what, e), NULL;
    buf_done(bytes);
    if (http_slurp(h, DOC_MAX_BYTES, bytes, e)) return NULL;
    digest_of(bytes->p, bytes->n, digest);
    if (digest_hex(which) && strcmp(which, digest))
        return err_set(e, 0, "manifest %s: the content that arrived has digest %s", which, digest),
               NULL;
    json_t *j = js_parse(bytes->p, bytes->n, "manifest", e);
    if (j && manifest_check(j, h->type, what, e)) js_decref(&j);
    return j;
}

struct pull_job {
    const struct store *store;
    struct reg *reg;
    const char *digest, *diff_id, *type;
    u64 size;
    struct progress *progress;
    struct err err;
    bool failed;
};

static int pull_layer(struct pull_job *j, struct err *e) {
    const char *hex = digest_hex(j->digest);
    char got[DIGEST_LEN + 1];
    if (blob_have(j->store, j->digest)) {
        if (!layer_have(j->store, j->diff_id) && layer_rebuild(j->store, j->digest, j->diff_id, e))
            return -1;
        progress_say(j->progress, hex, "Already exists", 0, 0);
        return 0;
    }
    progress_say(j->progress, hex, "Pulling fs layer", 0, j->size);
    struct src_blob b;
    int begun = src_blob_begin(&b, j->store, j->reg, j->digest, j->size, j->progress, e);
    if (begun > 0)
        return layer_have(j->store, j->diff_id) ? 0
                                                : layer_rebuild(j->store, j->digest, j->diff_id, e);
    if (begun < 0) return -1;
    struct src_inflate inf = { .src = { src_inflate_read }, .from = &b.src };
    int rc = layer_ingest(j->store, &inf.src, j->diff_id, got, e);
    src_inflate_done(&inf);
    /* what follows the compressed data was not read by the decompressor */
    char rest[4096];
    for (ssize_t k = 1; !rc && k;)
        if ((k = src_blob_read(&b.src, rest, sizeof rest, e)) < 0) rc = -1;
    struct err second;
    if (src_blob_end(&b, !rc, rc ? &second : e) && !rc) rc = -1;
    if (!rc) progress_say(j->progress, hex, "Pull complete", 0, 0);
    return rc;
}

struct pull_queue {
    struct pull_job *jobs;
    unsigned n, next;
    bool stop;
};

static void *pull_worker(void *arg) {
    struct pull_queue *q = arg;
    for (unsigned i; (i = __atomic_fetch_add(&q->next, 1, __ATOMIC_RELAXED)) < q->n;) {
        if (__atomic_load_n(&q->stop, __ATOMIC_RELAXED)) break;
        struct pull_job *j = &q->jobs[i];
        j->failed = pull_layer(j, &j->err) != 0;
        if (j->failed) __atomic_store_n(&q->stop, true, __ATOMIC_RELAXED);
    }
    return NULL;
}

/* Downloads the layers of a manifest, several at a time. */
static int pull_layers(const struct store *s, struct reg *r, const json_t *manifest,
                       const struct strv *diffs, struct progress *p, struct err *e) {
    const json_t *layers = js_get(manifest, "layers"), *l;
    struct pull_queue q = { .jobs = mem_new((diffs->n + 1) * sizeof *q.jobs) };
    int rc = 0;
    size_t i;
    json_array_foreach (layers, i, l) {
        const char *digest = js_str(l, "digest");
        bool twice = false;
        for (unsigned k = 0; k < q.n; k++) twice |= str_eq(q.jobs[k].digest, digest);
        i64 size = js_int(l, "size", -1);
        if (!digest_hex(digest) || size < 0)
            rc = err_set(e, 0, "manifest: /layers/%zu: bad digest or size", i);
        if (rc || twice) continue;
        q.jobs[q.n++] = (struct pull_job){ .store = s,
                                           .reg = r,
                                           .digest = digest,
                                           .diff_id = diffs->v[i],
                                           .size = (u64)size,
                                           .progress = p };
    }
    pthread_t th[4];
    unsigned nth = q.n < ARRAY_LEN(th) ? q.n : ARRAY_LEN(th);
    for (unsigned k = 0; !rc && k < nth; k++)
        if (pthread_create(&th[k], NULL, pull_worker, &q)) nth = k;
    for (unsigned k = 0; !rc && k < nth; k++) pthread_join(th[k], NULL);
    for (unsigned k = 0; !rc && k < q.n; k++)
        if (q.jobs[k].failed) {
            *e = q.jobs[k].err;
            rc = err_wrap(e, "layer %.19s", q.jobs[k].digest);
        }
    free(q.jobs);
    return rc;
}

struct pull_opts {
    const char *platform;
    bool quiet;
    int tls_verify;
};

static json_t *pull_config(const struct store *s, struct reg *r, const json_t *manifest,
                           struct err *e) {
    const char *digest = js_str(manifest, "config.digest");
    i64 size = js_int(manifest, "config.size", -1);
    if (!digest_hex(digest) || size < 0 || size > DOC_MAX_BYTES)
        return err_set(e, 0, "manifest: /config: bad digest or size"), NULL;
    if (!blob_have(s, digest)) {
        struct src_blob b;
        char sink[4096];
        ssize_t k = 1;
        int begun = src_blob_begin(&b, s, r, digest, (u64)size, NULL, e);
        if (begun < 0) return NULL;
        while (!begun && k > 0) k = src_blob_read(&b.src, sink, sizeof sink, e);
        struct err second;
        if (!begun && (src_blob_end(&b, !k, k ? &second : e) || k)) return NULL;
    }
    return blob_json(s, digest, e);
}

/* Pulls one reference. Prints as Docker does unless quiet. */
static int image_pull(const struct store *s, const struct ref *ref, const struct pull_opts *o,
                      struct err *e) {
    AUTO_FD gc = lock_take(s->dir, "locks/gc", LOCK_SH);
    struct reg r = { 0 };
    struct platform want;
    AUTO_BUF bytes = { 0 };
    char digest[DIGEST_LEN + 1], repo_digest[DIGEST_LEN + 1];
    const char *which = ref->digest[0] ? ref->digest : ref->tag;
    AUTO_JSON *manifest = NULL, *config = NULL, *desc = json_object();
    AUTO_STRV diffs = { 0 };
    AUTO_IMAGE before = { 0 };
    AUTO_FREE char *full = ref_full(ref), *familiar = ref_familiar(ref), *rd = NULL;
    static struct progress p;
    struct err none;
    int rc = -1;
    if (platform_parse(o->platform, &want, e)) return -1;
    progress_init(&p, o->quiet);
    if (reg_connect(&r, ref, false, o->tls_verify, e)) goto out;
    manifest = pull_manifest(&r, which, &bytes, digest, e);
    if (!manifest) goto out;
    strcpy(repo_digest, digest);
    if (!o->quiet) printf("%s: Pulling from %s\n", which, ref->path), fflush(stdout);
    for (int depth = 0; js_get(manifest, "manifests"); depth++) {
        const json_t *d = platform_pick(manifest, &want);
        const char *at = d ? js_str(d, "digest") : NULL;
        if (!digest_hex(at) || depth > 3) {
            err_set(e, 0, "no matching manifest for %s/%s%s%s in the manifest list entries",
                    want.os, want.arch, *want.variant ? "/" : "", want.variant);
            goto out;
        }
        AUTO_FREE char *copy = str_dup(at);
        js_decref(&manifest);
        if (!(manifest = pull_manifest(&r, copy, &bytes, digest, e))) goto out;
    }
    if (!(config = pull_config(s, &r, manifest, e)) || image_diff_ids(config, &diffs, e)) goto out;
    if (json_array_size(js_get(manifest, "layers")) != diffs.n) {
        err_set(e, 0, "manifest has %zu layers, but the configuration %zu",
                json_array_size(js_get(manifest, "layers")), diffs.n);
        goto out;
    }
    if (pull_layers(s, &r, manifest, &diffs, &p, e)) goto out;
    char chain[HEX_LEN + 1], put[DIGEST_LEN + 1];
    if (blob_add(s, bytes.p, bytes.n, put, e) || layer_merge(s, &diffs, chain, e)) goto out;
    js_sets(desc, "mediaType", js_str_or(manifest, "mediaType", MT_OCI_MANIFEST));
    js_sets(desc, "digest", digest);
    js_seti(desc, "size", (i64)bytes.n);
    rd = str_fmt("%s/%s@%s", ref->domain, ref->path, repo_digest);
    bool same =
        !image_find(s, full, &before, NULL, &none) && str_eq(js_str(before.desc, "digest"), digest);
    if (store_tag(s, desc, full, rd, e)) goto out;
    if (!same) store_event(s, "image", "pull", familiar, NULL);
    if (!o->quiet)
        printf("Digest: %s\nStatus: %s %s\n", repo_digest,
               same ? "Image is up to date for" : "Downloaded newer image for", familiar);
    rc = 0;
out:
    reg_done(&r);
    return rc;
}

/* ---- 19.4 push ---- */

/* Uploads a blob unless the registry has it. */
static int push_blob(struct reg *r, int fd, const char *digest, u64 size, struct progress *p,
                     struct err *e) {
    AUTO_FREE char *path = str_fmt("blobs/%s", digest);
    struct http_req head = { .method = "HEAD", .body_fd = -1 };
    AUTO_HTTP *h = reg_request(r, &head, path, e);
    if (!h) return -1;
    if (h->status == 200) {
        progress_say(p, digest + 7, "Layer already exists", 0, 0);
        return 0;
    }
    progress_say(p, digest + 7, "Preparing", 0, size);
    struct http_req start = { .method = "POST", .body_fd = -1 };
    AUTO_HTTP *up = reg_request(r, &start, "blobs/uploads/", e);
    if (!up) return -1;
    if (up->status != 202 || !up->location) return reg_explain(up, "start an upload", e), -1;
    AUTO_FREE char *at =
        *up->location == '/' ? str_fmt("%s%s", r->base, up->location) : str_dup(up->location);
    AUTO_FREE char *url = str_fmt("%s%cdigest=%s", at, strchr(at, '?') ? '&' : '?', digest);
    AUTO_STRV headers = { 0 };
    strv_add(&headers, "Content-Type: application/octet-stream");
    struct http_req put = {
        .method = "PUT", .headers = &headers, .body_fd = fd, .body_fd_n = size
    };
    AUTO_HTTP *done = reg_request(r, &put, url, e);
    if (!done) return -1;
    if (done->status != 201) return reg_explain(done, "upload of a blob", e), -1;
    progress_say(p, digest + 7, "Pushed", 0, 0);
    return 0;
}

/* Compresses an uncompressed layer into an unnamed file; fills digest and size. */
static int push_gzip(const struct store *s, int fd, char *digest, u64 *ret_size, struct err *e) {
    AUTO_FD out = openat(s->dir, "tmp", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
    z_stream z = { 0 };
    u8 *in = mem_new(SRC_BUFFER), *buf = mem_new(SRC_BUFFER), raw[32];
    struct sha sha;
    u64 at = 0, n = 0;
    int rc = out < 0 ? err_set(e, errno, "temporary file") : 0;
    sha_init(&sha);
    if (deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK) mem_check(NULL);
    for (bool end = false; !rc && !end;) {
        ssize_t k = pread(fd, in, SRC_BUFFER, (off_t)at);
        if (k < 0) rc = err_set(e, errno, "read a layer");
        end = k <= 0;
        at += k > 0 ? (u64)k : 0;
        z.next_in = in;
        z.avail_in = k > 0 ? (unsigned)k : 0;
        do {
            z.next_out = buf;
            z.avail_out = SRC_BUFFER;
            deflate(&z, end ? Z_FINISH : Z_NO_FLUSH);
            size_t have = SRC_BUFFER - z.avail_out;
            sha_add(&sha, buf, have);
            if (fd_pwrite_all(out, buf, have, n)) rc = err_set(e, errno, "write a temporary file");
            n += have;
        } while (!rc && !z.avail_out);
    }
    deflateEnd(&z);
    free(in), free(buf);
    sha_end(&sha, raw);
    memcpy(digest, "sha256:", 7);
    hex_of(raw, 32, digest + 7);
    *ret_size = n;
    return rc ? -1 : fd_steal(&out);
}

static int push_layer(const struct store *s, struct reg *r, json_t *layer, struct progress *p,
                      bool *changed, struct err *e) {
    const char *digest = js_str(layer, "digest");
    AUTO_FD fd = blob_open(s, digest, e);
    if (fd < 0) return -1;
    u64 size = (u64)js_int(layer, "size", 0);
    char gz[DIGEST_LEN + 1];
    if (str_suffix(js_str_or(layer, "mediaType", ""),
                   ".tar")) { /* our own layers are stored plain */
        int out = push_gzip(s, fd, gz, &size, e);
        if (out < 0) return -1;
        close(fd);
        fd = out;
        js_sets(layer, "mediaType", MT_OCI_LAYER "+gzip");
        js_sets(layer, "digest", gz);
        js_seti(layer, "size", (i64)size);
        *changed = true;
    }
    return push_blob(r, fd, js_str(layer, "digest"), size, p, e);
}

static int image_push(const struct store *s, const struct ref *ref, bool quiet, int tls_verify,
                      struct err *e) {
    AUTO_IMAGE m = { 0 };
    AUTO_FREE char *full = ref_full(ref), *familiar = ref_familiar(ref), *path = NULL;
    AUTO_JSON *manifest = NULL;
    AUTO_STRV headers = { 0 };
    AUTO_BUF bytes = { 0 };
    AUTO_FD cfd = -1, mfd = -1;
    AUTO_HTTP *h = NULL;
    struct reg r = { 0 };
    static struct progress p;
    int rc = -1;
    if (image_find(s, full, &m, NULL, e))
        return err_set(e, 0, "An image does not exist locally with the tag: %s", familiar);
    progress_init(&p, quiet);
    if (!quiet) {
        AUTO_FREE char *repo = ref_repository(ref);
        printf("The push refers to repository [%s]\n",
               strcmp(ref->domain, "docker.io") ? repo : familiar);
    }
    if (reg_connect(&r, ref, true, tls_verify, e)) goto out;
    manifest = json_deep_copy(m.manifest);
    bool changed = false;
    size_t i;
    json_t *l;
    json_array_foreach (js_get(manifest, "layers"), i, l)
        if (push_layer(s, &r, l, &p, &changed, e)) goto out;
    const char *cfg = js_str(manifest, "config.digest");
    cfd = blob_open(s, cfg, e);
    if (cfd < 0 || push_blob(&r, cfd, cfg, (u64)js_int(manifest, "config.size", 0), NULL, e))
        goto out;
    if (changed) {
        AUTO_FREE char *text = js_dump(manifest, JSON_COMPACT);
        buf_adds(&bytes, text);
    } else {
        mfd = blob_open(s, js_str(m.desc, "digest"), e);
        if (mfd < 0 || fd_slurp(mfd, DOC_MAX_BYTES, &bytes)) goto out;
    }
    strv_take(&headers,
              str_fmt("Content-Type: %s", js_str_or(manifest, "mediaType", MT_OCI_MANIFEST)));
    path = str_fmt("manifests/%s", ref->digest[0] && !ref->tag[0] ? ref->digest : ref->tag);
    struct http_req q = {
        .method = "PUT", .headers = &headers, .body = bytes.p, .body_n = bytes.n, .body_fd = -1
    };
    h = reg_request(&r, &q, path, e);
    if (!h) goto out;
    if (h->status != 201 && h->status != 200) {
        reg_explain(h, familiar, e);
        goto out;
    }
    char digest[DIGEST_LEN + 1];
    digest_of(bytes.p, bytes.n, digest);
    if (!quiet) printf("%s: digest: %s size: %zu\n", ref->tag, digest, bytes.n);
    store_event(s, "image", "push", familiar, NULL);
    rc = 0;
out:
    reg_done(&r);
    return rc;
}

/* ---- 19.5 load ---- */

/* The files of an archive or directory that images are loaded from. Archive members were written
 * to an unnamed-by-them directory in tmp/ under numbers; their names are only keys here. */
struct bundle {
    int dir;         /* owned */
    json_t *members; /* owned: name -> number, or "@name" for a link; NULL: a directory */
    char tmp[48];    /* to be removed; "": nothing */
};

static void bundle_done(const struct store *s, struct bundle *b) {
    fd_closep(&b->dir);
    json_decref(b->members);
    if (b->tmp[0]) tree_remove(s->dir, b->tmp);
}

static int bundle_open(const struct bundle *b, const char *name, struct err *e) {
    int fd = -1;
    if (!b->members) fd = sys_openat2(b->dir, name, O_RDONLY | O_NONBLOCK, 0, RESOLVE_BENEATH);
    else {
        const json_t *m = js_get(b->members, name);
        for (int hops = 0; json_is_string(m) && hops < 8; hops++) {
            const char *v = json_string_value(m);
            if (*v != '@') {
                fd = openat(b->dir, v, O_RDONLY | O_CLOEXEC);
                break;
            }
            m = js_get(b->members, v + 1);
        }
        if (fd < 0) errno = ENOENT;
    }
    return fd < 0 ? err_set(e, errno, "archive member %.200s", name) : fd;
}

static json_t *bundle_json(const struct bundle *b, const char *name, struct err *e) {
    AUTO_FD fd = bundle_open(b, name, e);
    AUTO_BUF t = { 0 };
    if (fd < 0) return NULL;
    if (fd_slurp(fd, DOC_MAX_BYTES, &t)) return err_set(e, errno, "read %s", name), NULL;
    return js_parse(t.p, t.n, name, e);
}

/* Takes an archive apart into numbered files. */
static int bundle_unpack(const struct store *s, struct src *from, struct bundle *b, struct err *e) {
    AUTO_AR r = { 0 };
    struct archive_entry *en;
    char id[HEX_LEN + 1], number[16];
    unsigned count = 0;
    int more;
    id_random(id);
    snprintf(b->tmp, sizeof b->tmp, "tmp/load-%.16s", id);
    b->members = json_object();
    if (mkdirat(s->dir, b->tmp, 0700)) return err_set(e, errno, "make %s", b->tmp);
    if ((b->dir = dir_open(s->dir, b->tmp, e)) < 0 || ar_open(&r, from, e)) return -1;
    while ((more = ar_next(&r, &en, e)) > 0) {
        const char *path = ar_path(en), *link = ar_symlink(en), *hard = ar_hardlink(en);
        if (!path || ++count > 100000)
            return err_set(e, 0, "archive has more than 100000 members, or one without a name");
        AUTO_FREE char *key = path_clean(path);
        if (link || hard) {
            const char *slash = strrchr(key, '/');
            AUTO_FREE char *full = hard || !slash
                                       ? str_dup(hard ? hard : link)
                                       : str_fmt("%.*s/%s", (int)(slash - key), key, link);
            AUTO_FREE char *to = path_clean(full), *at = str_fmt("@%s", to);
            js_sets(b->members, key, at);
            continue;
        }
        if (archive_entry_filetype(en) != AE_IFREG) continue;
        snprintf(number, sizeof number, "%u", count);
        AUTO_FD fd = openat(b->dir, number, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0) return err_set(e, errno, "create a temporary file");
        const void *p;
        size_t n;
        la_int64_t off;
        int rc;
        while ((rc = archive_read_data_block(r.a, &p, &n, &off)) == ARCHIVE_OK)
            if (fd_pwrite_all(fd, p, n, (u64)off))
                return err_set(e, errno, "write a temporary file");
        if (rc != ARCHIVE_EOF)
            return err_set(e, 0, "archive is damaged: %.200s: %s", path, archive_error_string(r.a));
        js_sets(b->members, key, number);
    }
    return more;
}

static int load_layer(const struct store *s, const struct bundle *b, const char *name,
                      const char *want_digest, const char *diff_id, json_t *layers, struct err *e) {
    AUTO_FD fd = bundle_open(b, name, e);
    char got[DIGEST_LEN + 1];
    if (fd < 0) return -1;
    struct src_fd f = { { src_fd_read }, fd };
    json_t *desc = NULL;
    if (layer_add(s, &f.src, diff_id, &desc, got, e)) return err_wrap(e, "layer %.200s", name);
    if (want_digest && strcmp(want_digest, js_str(desc, "digest"))) {
        err_set(e, 0, "layer %s: its content has digest %s", want_digest, js_str(desc, "digest"));
        json_decref(desc);
        return -1;
    }
    json_array_append_new(layers, desc);
    return 0;
}

/* One image of a docker-archive (manifest.json) or an OCI layout; prints what it loaded. */
static int load_image(const struct store *s, const struct bundle *b, const char *config_name,
                      const json_t *layer_names, bool oci, const struct strv *names,
                      struct err *e) {
    AUTO_JSON *config = bundle_json(b, config_name, e), *layers = json_array();
    AUTO_STRV diffs = { 0 };
    if (!config || image_diff_ids(config, &diffs, e)) return -1;
    if (json_array_size(layer_names) != diffs.n)
        return err_set(e, 0, "archive: %zu layers, but the configuration has %zu diff_ids",
                       json_array_size(layer_names), diffs.n);
    for (size_t i = 0; i < diffs.n; i++) {
        const json_t *l = json_array_get(layer_names, i);
        const char *digest = oci ? js_str(l, "digest") : NULL;
        if (oci && !digest_hex(digest))
            return err_set(e, 0, "manifest: /layers/%zu: bad digest", i);
        AUTO_FREE char *name = oci ? str_fmt("blobs/sha256/%s", digest_hex(digest))
                                   : path_clean(json_string_value(l) ? json_string_value(l) : "");
        if (load_layer(s, b, name, digest, diffs.v[i], layers, e)) return -1;
    }
    char id[HEX_LEN + 1];
    for (size_t i = 0; i < (names->n ? names->n : 1); i++) {
        struct ref r;
        AUTO_FREE char *full = NULL, *shown = NULL;
        if (names->n) {
            if (ref_parse(names->v[i], &r, e)) return -1;
            full = ref_full(&r);
            shown = ref_familiar(&r);
        }
        if (image_put(s, config, layers, full, NULL, id, NULL, e)) return -1;
        if (shown) printf("Loaded image: %s\n", shown);
        else printf("Loaded image ID: sha256:%s\n", id);
        store_event(s, "image", "load", id, NULL);
    }
    return 0;
}

/* An OCI layout: every manifest of index.json for this platform, or the one called `only`. */
static int load_oci(const struct store *s, const struct bundle *b, const char *only, const char *as,
                    struct err *e) {
    AUTO_JSON *index = bundle_json(b, "index.json", e);
    struct platform here;
    size_t i, done = 0;
    json_t *d;
    if (!index || platform_parse(NULL, &here, e)) return -1;
    json_array_foreach (js_get(index, "manifests"), i, d) {
        const char *name = desc_name(d), *full = json_string_value(js_get(
                                             js_get(d, "annotations"), "io.containerd.image.name"));
        if (only && *only && !str_eq(name, only)) continue;
        AUTO_JSON *m = NULL;
        const char *digest = js_str(d, "digest");
        for (int depth = 0; depth < 4; depth++) {
            char have[DIGEST_LEN + 1];
            if (!digest_hex(digest))
                return err_set(e, 0, "index.json: /manifests/%zu: bad digest", i);
            AUTO_FREE char *path = str_fmt("blobs/sha256/%s", digest_hex(digest));
            AUTO_FD fd = bundle_open(b, path, e);
            AUTO_BUF t = { 0 };
            if (fd < 0 || fd_slurp(fd, DOC_MAX_BYTES, &t)) return -1;
            if (strcmp(digest_of(t.p, t.n, have), digest))
                return err_set(e, 0, "%s: its content has digest %s", path, have);
            json_t *next = js_parse(t.p, t.n, path, e);
            if (!next || manifest_check(next, NULL, path, e)) return json_decref(next), -1;
            js_decref(&m);
            m = next;
            if (!js_get(m, "manifests")) break;
            const json_t *pick = platform_pick(m, &here);
            if (!pick)
                return err_set(e, 0, "%s has no manifest for %s/%s", path, here.os, here.arch);
            digest = js_str(pick, "digest");
        }
        const char *cfg = js_str(m, "config.digest");
        if (!digest_hex(cfg)) return err_set(e, 0, "manifest: /config/digest: not a sha256 digest");
        AUTO_FREE char *cpath = str_fmt("blobs/sha256/%s", digest_hex(cfg));
        AUTO_STRV names = { 0 };
        struct ref r;
        struct err bad;
        /* a bare tag as ref.name (the spec's own custom) names no repository */
        if (as) strv_add(&names, as);
        else if (full && !ref_parse(full, &r, &bad)) strv_add(&names, full);
        else if (name && strchr(name, '/') && !ref_parse(name, &r, &bad)) strv_add(&names, name);
        else if (name && strchr(name, ':') && !ref_parse(name, &r, &bad)) strv_add(&names, name);
        if (load_image(s, b, cpath, js_get(m, "layers"), true, &names, e)) return -1;
        done++;
    }
    if (!done)
        return err_set(e, 0,
                       only && *only ? "the layout has no image called '%s'"
                                     : "the layout has no image%s",
                       only ? only : "");
    return 0;
}

static int load_bundle(const struct store *s, const struct bundle *b, const char *only,
                       const char *as, struct err *e) {
    AUTO_JSON *m = bundle_json(b, "manifest.json", e);
    if (!json_is_array(m)) return load_oci(s, b, only, as, e);
    size_t i;
    json_t *d;
    json_array_foreach (m, i, d) {
        AUTO_STRV names = { 0 };
        AUTO_FREE char *config = path_clean(js_str_or(d, "Config", ""));
        if (as) strv_add(&names, as);
        else js_to_strv(js_get(d, "RepoTags"), &names);
        if (load_image(s, b, config, js_get(d, "Layers"), false, &names, e)) return -1;
    }
    return json_array_size(m) ? 0 : err_set(e, 0, "manifest.json names no image");
}

/* Loads from an archive (any of the forms, compressed or not) on fd, or with dir >= 0 a layout
 * directory. only: one name of an OCI layout; as: the name to give; both may be NULL. */
static int image_load_from(const struct store *s, int fd, int dir, const char *only, const char *as,
                           struct err *e) {
    AUTO_FD gc = lock_take(s->dir, "locks/gc", LOCK_SH);
    struct bundle b = { .dir = dir >= 0 ? fcntl(dir, F_DUPFD_CLOEXEC, 3) : -1 };
    int rc = 0;
    if (dir < 0) {
        struct src_fd f = { { src_fd_read }, fd };
        struct src_inflate inf = { .src = { src_inflate_read }, .from = &f.src };
        rc = bundle_unpack(s, &inf.src, &b, e);
        src_inflate_done(&inf);
        if (!rc && !json_object_size(b.members))
            rc = err_set(e, 0, "the input is not an image archive");
    }
    if (!rc) rc = load_bundle(s, &b, only, as, e);
    bundle_done(s, &b);
    return rc;
}

/* oci:DIR[:NAME], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME], the names of skopeo's
 * transports. as: what the image is called then; NULL: as it says. 1: not such a name. */
static int image_from_transport(const struct store *s, const char *text, const char *as, bool quiet,
                                struct err *e) {
    const char *colon = strchr(text, ':');
    AUTO_FREE char *kind = str_dupn(text, colon ? (size_t)(colon - text) : 0),
                   *path = str_dup(colon ? colon + 1 : "");
    if (strcmp(kind, "oci") && strcmp(kind, "oci-archive") && strcmp(kind, "docker-archive"))
        return 1;
    char *name = strrchr(path, ':');
    if (name && !strchr(name, '/')) *name++ = 0;
    else name = NULL;
    bool dir = !strcmp(kind, "oci");
    AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC | (dir ? O_DIRECTORY : 0));
    if (fd < 0) return err_set(e, errno, "open %s", path);
    int out = -1;
    fflush(stdout);
    if (quiet && as) { /* stdout is the container's */
        out = fcntl(1, F_DUPFD_CLOEXEC, 3);
        dup2(2, 1);
    }
    int rc = image_load_from(s, dir ? -1 : fd, dir ? fd : -1, name, as, e);
    fflush(stdout);
    if (out >= 0) dup2(out, 1), close(out);
    return rc;
}

/* ---- 19.6 save ---- */
static int save_member(struct archive *a, const char *name, const void *data, int fd, u64 size,
                       struct err *e) {
    struct archive_entry *en = archive_entry_new();
    archive_entry_set_pathname(en, name);
    archive_entry_set_filetype(en, AE_IFREG);
    archive_entry_set_perm(en, 0644);
    archive_entry_set_uid(en, geteuid()); /* readers without root cannot give files away */
    archive_entry_set_gid(en, getegid());
    archive_entry_set_size(en, (la_int64_t)size);
    archive_entry_set_mtime(en, 0, 0);
    int rc = archive_write_header(a, en);
    archive_entry_free(en);
    AUTO_FREE char *tmp = data ? NULL : mem_new(SRC_BUFFER);
    for (u64 at = 0; rc == ARCHIVE_OK && at < size;) {
        size_t n = size - at < SRC_BUFFER ? (size_t)(size - at) : SRC_BUFFER;
        if (!data && fd_pread_all(fd, tmp, n, at)) return err_set(e, errno, "read %s", name);
        if (archive_write_data(a, data ? (const char *)data + at : tmp, n) < 0) rc = ARCHIVE_FATAL;
        at += n;
    }
    return rc < ARCHIVE_WARN ? err_set(e, 0, "write the archive: %s", archive_error_string(a)) : 0;
}

static int save_dir(struct archive *a, const char *name, struct err *e) {
    struct archive_entry *en = archive_entry_new();
    archive_entry_set_pathname(en, name);
    archive_entry_set_filetype(en, AE_IFDIR);
    archive_entry_set_perm(en, 0755);
    archive_entry_set_uid(en, geteuid());
    archive_entry_set_gid(en, getegid());
    archive_entry_set_mtime(en, 0, 0);
    int rc = archive_write_header(a, en);
    archive_entry_free(en);
    return rc < ARCHIVE_WARN ? err_set(e, 0, "write the archive: %s", archive_error_string(a)) : 0;
}

static int save_json(struct archive *a, const char *name, const json_t *j, struct err *e) {
    AUTO_FREE char *t = js_dump(j, JSON_COMPACT);
    return save_member(a, name, t, -1, strlen(t), e);
}

static int save_blob(const struct store *s, struct archive *a, const char *digest, json_t *written,
                     struct err *e) {
    AUTO_FD fd = blob_open(s, digest, e);
    struct stat st;
    char path[80];
    if (fd < 0 || fstat(fd, &st)) return -1;
    if (js_get(written, digest)) return 0;
    js_setb(written, digest, true);
    return save_member(a, blob_path(digest, path), NULL, fd, (u64)st.st_size, e);
}

/* One archive that is an OCI layout and carries Docker's manifest.json: `docker load`, podman,
 * skopeo (both transports) and skiff read it. names: what the user asked for. */
static int image_save(const struct store *s, int fd, const struct strv *names, struct err *e) {
    struct archive *a = mem_check(archive_write_new());
    AUTO_JSON *index = json_object(), *manifest = json_array(), *written = json_object();
    int rc = 0;
    archive_write_set_format_pax_restricted(a);
    archive_write_set_bytes_per_block(a, 65536);
    if (archive_write_open_fd(a, fd) != ARCHIVE_OK)
        rc = err_set(e, 0, "write the archive: %s", archive_error_string(a));
    js_seti(index, "schemaVersion", 2);
    js_sets(index, "mediaType", MT_OCI_INDEX);
    static const char *const DIRS[] = { "blobs/", "blobs/sha256/" };
    for (size_t i = 0; !rc && i < ARRAY_LEN(DIRS); i++) rc = save_dir(a, DIRS[i], e);
    for (size_t i = 0; !rc && i < names->n; i++) {
        AUTO_IMAGE m = { 0 };
        AUTO_FREE char *name = NULL;
        if (image_find(s, names->v[i], &m, &name, e)) {
            rc = -1;
            break;
        }
        struct ref r;
        json_t *d = json_deep_copy(m.desc), *layers = js_get(m.manifest, "layers"), *l,
               *entry = json_object();
        size_t k;
        json_object_del(d, "annotations");
        if (name && !ref_parse(name, &r, e)) {
            AUTO_FREE char *familiar = ref_familiar(&r);
            js_sets(js_sub(d, "annotations"), REF_NAME, r.tag);
            js_sets(js_get(d, "annotations"), "io.containerd.image.name", name);
            js_push(js_suba(entry, "RepoTags"), familiar);
        } else js_suba(entry, "RepoTags");
        json_array_append_new(js_suba(index, "manifests"), d);
        char path[80];
        js_sets(entry, "Config", blob_path(js_str(m.manifest, "config.digest"), path));
        js_suba(entry, "Layers");
        rc = save_blob(s, a, js_str(m.desc, "digest"), written, e) ||
                     save_blob(s, a, js_str(m.manifest, "config.digest"), written, e)
                 ? -1
                 : 0;
        json_array_foreach (layers, k, l) {
            js_push(js_get(entry, "Layers"), blob_path(js_str(l, "digest"), path));
            if (!rc) rc = save_blob(s, a, js_str(l, "digest"), written, e);
        }
        json_array_append_new(manifest, entry);
    }
    static const char LAYOUT[] = "{\"imageLayoutVersion\":\"1.0.0\"}";
    if (!rc &&
        (save_json(a, "index.json", index, e) || save_json(a, "manifest.json", manifest, e) ||
         save_member(a, "oci-layout", LAYOUT, -1, sizeof LAYOUT - 1, e)))
        rc = -1;
    if (archive_write_close(a) != ARCHIVE_OK && !rc)
        rc = err_set(e, 0, "write the archive: %s", archive_error_string(a));
    archive_write_free(a);
    return rc;
}

/* Copies a blob of the store into another layout. */
static int save_layout_blob(const struct store *s, int dir, const char *digest, struct err *e) {
    char path[80];
    AUTO_FD from = blob_open(s, digest, e);
    if (from < 0 || !blob_path(digest, path)) return -1;
    AUTO_FD to = openat(dir, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (to < 0) return err_set(e, errno, "create %s", path);
    AUTO_FREE char *buf = mem_new(SRC_BUFFER);
    for (ssize_t k; (k = read(from, buf, SRC_BUFFER)) != 0;)
        if (k < 0 || fd_write_all(to, buf, (size_t)k)) return err_set(e, errno, "write %s", path);
    return 0;
}

/* Adds an image to an OCI layout directory, under a name (NULL: none). */
static int image_save_layout(const struct store *s, int dir, const struct image *m,
                             const char *name, struct err *e) {
    static const char LAYOUT[] = "{\"imageLayoutVersion\":\"1.0.0\"}";
    struct err none;
    if (dir_make(dir, "blobs/sha256", e) ||
        file_replace(dir, "oci-layout", LAYOUT, sizeof LAYOUT - 1, 0644, 0, e))
        return -1;
    AUTO_JSON *index = js_load(dir, "index.json", &none), *d = json_deep_copy(m->desc);
    if (!index) index = json_pack("{s:i,s:s}", "schemaVersion", 2, "mediaType", MT_OCI_INDEX);
    json_t *all = js_suba(index, "manifests"), *l;
    size_t i;
    for (i = json_array_size(all); name && i-- > 0;)
        if (str_eq(desc_name(json_array_get(all, i)), name)) json_array_remove(all, i);
    json_object_del(d, "annotations");
    if (name) js_sets(js_sub(d, "annotations"), REF_NAME, name);
    json_array_append(all, d);
    if (save_layout_blob(s, dir, js_str(m->desc, "digest"), e) ||
        save_layout_blob(s, dir, js_str(m->manifest, "config.digest"), e))
        return -1;
    json_array_foreach (js_get(m->manifest, "layers"), i, l)
        if (save_layout_blob(s, dir, js_str(l, "digest"), e)) return -1;
    AUTO_FREE char *text = js_dump(index, JSON_COMPACT);
    return file_replace(dir, "index.json", text, strlen(text), 0644, 0, e);
}

/* ---- 19.7 import ---- */

/* A tar stream as an image of one layer. config: its "config" member, borrowed; may be NULL. */
static int image_import(const struct store *s, int fd, const json_t *run_config,
                        const char *message, const char *name, const struct platform *p,
                        char *ret_id, struct err *e) {
    AUTO_FD gc = lock_take(s->dir, "locks/gc", LOCK_SH);
    struct src_fd f = { { src_fd_read }, fd };
    json_t *desc = NULL;
    char diff[DIGEST_LEN + 1], now[40];
    if (layer_add(s, &f.src, NULL, &desc, diff, e)) return -1;
    AUTO_JSON *layers = json_array(), *config = json_object(), *h = json_object();
    json_array_append_new(layers, desc);
    js_sets(config, "created", time_rfc3339(time_now_ns(), now));
    js_sets(config, "architecture", p->arch);
    js_sets(config, "os", p->os);
    js_set(config, "config", run_config ? json_deep_copy(run_config) : json_object());
    json_t *fs = js_sub(config, "rootfs");
    js_sets(fs, "type", "layers");
    js_push(js_suba(fs, "diff_ids"), diff);
    js_sets(h, "created", now);
    js_sets(h, "comment", message ? message : "Imported from -");
    json_array_append(js_suba(config, "history"), h);
    return image_put(s, config, layers, name, NULL, ret_id, NULL, e);
}

/* ---- 19.8 trees for hosts without FUSE ---- */
struct tree_want {
    const struct store *s;
    const char *idx, *name; /* "layers/HEX.idx", and where the tree goes, relative to the store */
    bool chown;
};

static int image_tree_make(void *arg) {
    struct tree_want *w = arg;
    struct err e = { 0 };
    AUTO_IDX x = { 0 };
    char id[HEX_LEN + 1], tmp[64];
    id_random(id);
    snprintf(tmp, sizeof tmp, "tmp/%.32s.tree", id);
    AUTO_FD layers = dir_open(w->s->dir, "layers", &e);
    int rc = mkdirat(w->s->dir, tmp, 0700) ? err_set(&e, errno, "make %s", tmp) : 0;
    AUTO_FD root = rc ? -1 : dir_open(w->s->dir, tmp, &e);
    if (root < 0 || idx_open(w->s->dir, w->idx, true, &x, &e) ||
        idx_unpack(&x, layers, root, w->chown, &e))
        rc = -1;
    if (!rc && renameat(w->s->dir, tmp, w->s->dir, w->name) && errno != EEXIST &&
        errno != ENOTEMPTY)
        rc = err_set(&e, errno, "rename %s", w->name);
    if (rc) fprintf(stderr, "skiff: unpack %s: %s\n", w->idx, e.msg);
    tree_remove(w->s->dir, tmp);
    return rc ? 1 : 0;
}

static int image_clean_tmp(void *arg) {
    const struct store *s = arg;
    AUTO_DIR *d = dir_stream(s->dir, "tmp");
    AUTO_FD lock = lock_take(s->dir, "locks/gc", LOCK_EX | LOCK_NB);
    bool locked = lock >= 0; /* nobody is making a container */
    struct dirent *de;
    while (d && (de = dir_next(d)))
        if (str_prefix(de->d_name, "gone-") || (locked && str_prefix(de->d_name, "ctr-")))
            tree_remove(dirfd(d), de->d_name);
    return 0;
}

/* Collects garbage (part 10), and what of it belongs to mapped ids as their owner. */
static u64 image_collect(const struct store *s, bool all) {
    u64 freed = store_collect(s, all);
    bool left = false;
    struct idmap ids;
    struct err e;
    AUTO_DIR *d = dir_stream(s->dir, "tmp");
    struct dirent *de;
    while (d && (de = dir_next(d)))
        left |= str_prefix(de->d_name, "gone-") || str_prefix(de->d_name, "ctr-");
    if (left && !idmap_choose(s->dir, "", 0, 0, &ids, &e))
        launch_as_owner(&ids, image_clean_tmp, (void *)(uintptr_t)s, &e);
    return freed;
}

/* Makes sure that an index is unpacked for an id mapping; ret_name (128 bytes): relative to the
 * store. */
static int image_tree(const struct store *s, const char *kind, const char *hex,
                      const struct idmap *ids, char *ret_name, struct err *e) {
    AUTO_FREE char *idx = str_fmt("%s/%s.idx", kind, hex);
    bool many = !ids->uids || !idmap_single(ids);
    if (!many) snprintf(ret_name, 128, "%s/%s.tree", kind, hex);
    else
        snprintf(ret_name, 128, "%s/%s.tree-%u", kind, hex,
                 ids->uids ? ids->uid[ids->uids - 1].outside : 0);
    if (!faccessat(s->dir, ret_name, F_OK, AT_SYMLINK_NOFOLLOW)) return 0;
    struct tree_want w = { s, idx, ret_name, many };
    int rc = launch_as_owner(ids, image_tree_make, &w, e);
    if (rc > 0) err_set(e, 0, "unpacking failed");
    return rc ? -1 : 0;
}
/* ---- 19.9 living trees as archives: commit, export, cp, build ---- */
struct tarring {
    struct archive *a;
    bool overlay;      /* an overlay's upper: whiteouts and opaque marks become the image's */
    bool squash_owner; /* everything belongs to 0:0 in the archive (COPY, cp -a's opposite) */
    i64 clamp;         /* times later than this become this (SOURCE_DATE_EPOCH); -1: as they are */
    json_t *links;     /* owned: "dev:ino" -> name of the first */
    const struct strv *skip; /* paths in the archive that are left out; NULL: none */
    /* where one id cannot keep owners: what the lower layers (newest first) say, and given ones */
    const struct idx *lower;
    size_t lowers;
    bool one_id;          /* … which is when this is set */
    const json_t *owners; /* path -> "uid:gid"; NULL: none */
};

static const struct idx_inode *tar_lower(const struct tarring *t, const char *path) {
    for (size_t i = 0; i < t->lowers; i++) {
        const struct idx_inode *n = &t->lower[i].inodes[0];
        for (const char *s = path; n && *s;) {
            size_t k = strcspn(s, "/");
            const struct idx_dirent *d = idx_lookup(&t->lower[i], n, s, k);
            n = d && !(d->flags & DIRENT_WHITEOUT) ? idx_inode(&t->lower[i], d->inode) : NULL;
            s += k + (s[k] == '/');
        }
        if (n) return n;
    }
    return NULL;
}

static void tar_owner(const struct tarring *t, const char *path, struct archive_entry *en) {
    const char *given = json_string_value(js_get(t->owners, path));
    unsigned uid, gid;
    const struct idx_inode *n = tar_lower(t, path);
    if (given && sscanf(given, "%u:%u", &uid, &gid) == 2)
        archive_entry_set_uid(en, uid), archive_entry_set_gid(en, gid);
    else if (n) archive_entry_set_uid(en, n->uid), archive_entry_set_gid(en, n->gid);
}

/* By descriptor: in a container's mount namespace /proc is not ours. Links have no attributes of
 * users. */
static void tar_xattrs(struct archive_entry *en, int dir, const char *name, mode_t mode,
                       bool overlay, bool *ret_opaque) {
    if (!S_ISREG(mode) && !S_ISDIR(mode)) return;
    AUTO_FD fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    char list[65536], value[65536];
    ssize_t n = fd < 0 ? -1 : flistxattr(fd, list, sizeof list);
    for (char *k = list; n > 0 && k < list + n; k += strlen(k) + 1) {
        ssize_t v = fgetxattr(fd, k, value, sizeof value);
        if (v < 0) continue;
        if (overlay && !strcmp(k, "user.overlay.opaque") && v == 1 && *value == 'y')
            *ret_opaque = true;
        if (xattr_kept(k)) archive_entry_xattr_add_entry(en, k, value, (size_t)v);
    }
}

static int tar_content(struct tarring *t, int dir, const char *name, u64 size, struct err *e) {
    AUTO_FD fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    AUTO_FREE char *buf = mem_new(SRC_BUFFER);
    if (fd < 0) return err_set(e, errno, "open %s", name);
    while (size) {
        ssize_t k = read(fd, buf, size < SRC_BUFFER ? (size_t)size : SRC_BUFFER);
        if (k < 0) return err_set(e, errno, "read %s", name);
        if (!k) return err_set(e, 0, "%s became shorter while it was read", name);
        if (archive_write_data(t->a, buf, (size_t)k) < 0)
            return err_set(e, 0, "write the archive: %s", archive_error_string(t->a));
        size -= (u64)k;
    }
    return 0;
}

/* One empty marker entry. */
static int tar_marker(struct tarring *t, const char *name, struct err *e) {
    struct archive_entry *en = archive_entry_new();
    archive_entry_set_pathname(en, name);
    archive_entry_set_filetype(en, AE_IFREG);
    archive_entry_set_perm(en, 0600);
    archive_entry_set_size(en, 0);
    archive_entry_set_mtime(en, t->clamp >= 0 ? t->clamp : 0, 0);
    int rc = archive_write_header(t->a, en);
    archive_entry_free(en);
    return rc == ARCHIVE_OK ? 0
                            : err_set(e, 0, "write the archive: %s", archive_error_string(t->a));
}

/* The entry of a directory alone. */
static int tar_dir(struct tarring *t, const char *as, const struct stat *st, struct err *e) {
    struct archive_entry *en = archive_entry_new();
    archive_entry_copy_stat(en, st);
    archive_entry_set_pathname(en, as);
    if (t->squash_owner) archive_entry_set_uid(en, 0), archive_entry_set_gid(en, 0);
    archive_entry_unset_atime(en), archive_entry_unset_ctime(en), archive_entry_unset_birthtime(en);
    if (t->overlay) archive_entry_set_mtime(en, st->st_mtime, 0);
    if (t->clamp >= 0 && st->st_mtime > t->clamp) archive_entry_set_mtime(en, t->clamp, 0);
    if (t->one_id) tar_owner(t, as, en);
    int rc = archive_write_header(t->a, en);
    archive_entry_free(en);
    return rc < ARCHIVE_WARN ? err_set(e, 0, "write the archive: %s", archive_error_string(t->a))
                             : 0;
}

/* Adds dir/name as `as` ("" for the top itself, which gets no entry) and all below, in name order.
 * */
static int tar_add(struct tarring *t, int dir, const char *name, const char *as, int depth,
                   struct err *e) {
    struct stat st;
    char text[PATH_MAX];
    bool opaque = false;
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW)) return err_set(e, errno, "stat %s", name);
    if (depth > MAX_TREE_DEPTH) return err_set(e, ELOOP, "%s", as);
    if (S_ISSOCK(st.st_mode)) return 0; /* tar has no sockets */
    if (t->overlay && S_ISCHR(st.st_mode) && !st.st_rdev) {
        const char *base = strrchr(as, '/') ? strrchr(as, '/') + 1 : as;
        AUTO_FREE char *wh = str_fmt("%.*s.wh.%s", (int)(base - as), as, base);
        return tar_marker(t, wh, e);
    }
    if (t->overlay && str_prefix(strrchr(as, '/') ? strrchr(as, '/') + 1 : as, ".wh.")) {
        log_warn("%s: a file with a name that marks a deletion in a layer: left out", as);
        return 0;
    }
    struct archive_entry *en = archive_entry_new();
    archive_entry_copy_stat(en, &st);
    archive_entry_set_pathname(en, as);
    if (t->squash_owner) archive_entry_set_uid(en, 0), archive_entry_set_gid(en, 0);
    if (t->one_id) tar_owner(t, as, en);
    archive_entry_unset_atime(en), archive_entry_unset_ctime(en), archive_entry_unset_birthtime(en);
    /* layers have whole seconds, as Docker's: the format would keep the rest of some files only */
    if (t->overlay) archive_entry_set_mtime(en, st.st_mtime, 0);
    if (t->clamp >= 0 && st.st_mtime > t->clamp) archive_entry_set_mtime(en, t->clamp, 0);
    tar_xattrs(en, dir, name, st.st_mode, t->overlay, &opaque);
    bool data = S_ISREG(st.st_mode);
    if (S_ISLNK(st.st_mode)) {
        ssize_t k = readlinkat(dir, name, text, sizeof text - 1);
        text[k < 0 ? 0 : k] = 0;
        archive_entry_set_symlink(en, text);
    }
    if (!S_ISDIR(st.st_mode) && st.st_nlink > 1) {
        char key[48];
        snprintf(key, sizeof key, "%lx:%lx", (unsigned long)st.st_dev, (unsigned long)st.st_ino);
        const char *first = js_str(t->links, key);
        if (first) {
            archive_entry_set_hardlink(en, first);
            archive_entry_unset_size(en);
            data = false;
        } else js_set(t->links, key, json_string_nocheck(as));
    }
    int rc = *as && archive_write_header(t->a, en) < ARCHIVE_WARN
                 ? err_set(e, 0, "write the archive: %s: %s", as, archive_error_string(t->a))
                 : 0;
    archive_entry_free(en);
    if (!rc && data && *as) rc = tar_content(t, dir, name, (u64)st.st_size, e);
    if (rc || !S_ISDIR(st.st_mode)) return rc;
    if (opaque) {
        AUTO_FREE char *mark = str_fmt("%s%s.wh..wh..opq", as, *as ? "/" : "");
        if (tar_marker(t, mark, e)) return -1;
    }
    AUTO_STRV names = { 0 };
    AUTO_DIR *d = dir_stream(dir, name);
    struct dirent *de;
    if (!d) return err_set(e, errno, "open directory %s", as);
    while ((de = dir_next(d))) strv_add(&names, de->d_name);
    if (names.n) qsort(names.v, names.n, sizeof *names.v, name_order);
    for (size_t i = 0; i < names.n; i++) {
        if (i && !strcmp(names.v[i], names.v[i - 1])) continue; /* renamed while it was read */
        AUTO_FREE char *sub = str_fmt("%s%s%s", as, *as ? "/" : "", names.v[i]);
        if (t->skip && strv_has(t->skip, sub)) continue;
        if (tar_add(t, dirfd(d), names.v[i], sub, depth + 1, e)) return -1;
    }
    return 0;
}

/* Opens a pax archive on a descriptor. */
static int tar_begin(struct tarring *t, int fd, struct err *e) {
    t->a = mem_check(archive_write_new());
    t->links = json_object();
    archive_write_set_format_pax_restricted(t->a);
    archive_write_set_format_option(t->a, "pax", "xattrheader", "SCHILY"); /* as Docker does */
    archive_write_set_bytes_per_block(t->a, 65536);
    archive_write_set_bytes_in_last_block(t->a, 512);
    return archive_write_open_fd(t->a, fd) == ARCHIVE_OK
               ? 0
               : err_set(e, 0, "write an archive: %s", archive_error_string(t->a));
}

static int tar_end(struct tarring *t, struct err *e) {
    int rc = archive_write_close(t->a) == ARCHIVE_OK
                 ? 0
                 : err_set(e, 0, "write an archive: %s", archive_error_string(t->a));
    archive_write_free(t->a);
    json_decref(t->links);
    return rc;
}

/* How the entries of an archive are laid out below a root. */
struct placing {
    int root;           /* everything is resolved below it */
    const char *into;   /* directory below root that the entries' names start at */
    const char *rename; /* the first component becomes this; NULL: stays */
    i64 uid, gid;       /* -1: the archive's, where that can be had */
    i64 chmod;          /* -1: the archive's */
    bool keep_owner;
    int placed;  /* gets "uid:gid path" for each that was placed; -1: nobody wants it */
    bool strict; /* root is a directory of the host: no symbolic link below it is followed */
};

static void place_note(const struct placing *pl, const char *dir, const char *name, i64 uid,
                       i64 gid) {
    if (pl->placed < 0) return;
    dir += strspn(dir, "/");
    AUTO_FREE char *line =
        str_fmt("%" PRId64 ":%" PRId64 " %s%s%s\n", uid, gid, dir, *dir ? "/" : "", name);
    (void)!fd_write_all(pl->placed, line, strlen(line));
}

/* Makes the directories of a path that are missing, with the owner that was asked for. */
static int place_dirs(const struct placing *pl, const char *path, struct err *e) {
    AUTO_STRV parts = { 0 };
    AUTO_BUF at = { 0 };
    strv_split(&parts, path, '/');
    buf_add(&at, "", 0);
    for (size_t i = 0; i < parts.n; i++) {
        if (!*parts.v[i]) continue;
        AUTO_FREE char *parent = str_dup(at.p);
        buf_addf(&at, "%s%s", at.n ? "/" : "", parts.v[i]);
        AUTO_FD had = sys_openat2(pl->root, at.p, O_PATH | O_DIRECTORY, 0,
                                  RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
        AUTO_FD d = had >= 0 ? -1 : mnt_target(pl->root, at.p, MNT_DIR, e);
        if (had >= 0) continue;
        if (d < 0) return -1;
        char self[40];
        snprintf(self, sizeof self, "/proc/self/fd/%d", d);
        if (pl->uid >= 0) (void)!chown(self, (uid_t)pl->uid, (gid_t)pl->gid);
        place_note(pl, parent, parts.v[i], pl->uid >= 0 ? pl->uid : 0, pl->uid >= 0 ? pl->gid : 0);
    }
    return 0;
}

static int place_file(struct ar *r, int dir, const char *name, mode_t mode, u64 size,
                      struct err *e) {
    const void *p;
    size_t n;
    la_int64_t off;
    int rc;
    unlinkat(dir, name, 0);
    AUTO_FD fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) return err_set(e, errno, "create %s", name);
    u64 end = 0;
    while ((rc = archive_read_data_block(r->a, &p, &n, &off)) == ARCHIVE_OK) {
        if (off < 0 || fd_pwrite_all(fd, p, n, (u64)off))
            return err_set(e, errno, "write %s", name);
        end = (u64)off + n;
    }
    if (rc != ARCHIVE_EOF)
        return err_set(e, 0, "archive is damaged: %s", archive_error_string(r->a));
    if (ftruncate(fd, (off_t)(size > end ? size : end)))
        return err_set(e, errno, "write %s", name); /* a hole at the end */
    return fchmod(fd, mode & 07777) ? err_set(e, errno, "chmod %s", name) : 0;
}

static int place_entry(const struct placing *pl, struct ar *r, struct archive_entry *en,
                       struct err *e) {
    AUTO_FREE char *clean = path_clean(ar_path(en) ? ar_path(en) : "");
    const char *rest = clean;
    AUTO_FREE char *full = NULL;
    if (pl->rename) {
        rest = strchr(clean, '/') ? strchr(clean, '/') : "";
        full = str_fmt("%s/%s%s", pl->into, pl->rename, rest);
    } else full = str_fmt("%s/%s", pl->into, clean);
    char *slash = strrchr(full, '/');
    *slash = 0;
    const char *name = slash + 1;
    mode_t mode = archive_entry_mode(en);
    if (pl->chmod >= 0 && !S_ISLNK(mode)) mode = (mode & S_IFMT) | (mode_t)pl->chmod;
    AUTO_FD at = mnt_target(pl->root, full, MNT_DIR | (pl->strict ? MNT_STRICT : 0), e);
    if (at < 0) return -1;
    if (!*name) return 0;
    const char *hard = ar_hardlink(en), *to = ar_symlink(en);
    struct stat st;
    bool there = !fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW);
    if (there && S_ISDIR(st.st_mode) != S_ISDIR(mode) && !hard) {
        if (S_ISDIR(st.st_mode))
            return err_set(e, 0, "cannot overwrite directory %s/%s with a file", full, name);
        if (!S_ISLNK(st.st_mode))
            return err_set(e, 0, "cannot overwrite file %s/%s with a directory", full, name);
        /* a link to a directory of the root stays where a directory comes */
        AUTO_FREE char *path = str_fmt("%s/%s", full, name);
        AUTO_FD target = sys_openat2(pl->root, path + strspn(path, "/"), O_PATH | O_DIRECTORY, 0,
                                     RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
        if (target >= 0 && !pl->strict) return 0;
        unlinkat(at, name, 0);
        there = false;
    }
    if (hard) {
        AUTO_FREE char *hc = path_clean(hard);
        AUTO_FREE char *hf = pl->rename ? str_fmt("%s/%s%s", pl->into, pl->rename,
                                                  strchr(hc, '/') ? strchr(hc, '/') : "")
                                        : str_fmt("%s/%s", pl->into, hc);
        char *hs = strrchr(hf, '/');
        *hs = 0;
        AUTO_FD from = mnt_target(pl->root, hf, MNT_DIR | (pl->strict ? MNT_STRICT : 0), e);
        if (from < 0) return -1;
        unlinkat(at, name, 0);
        return linkat(from, hs + 1, at, name, 0) ? err_set(e, errno, "link %s", name) : 0;
    }
    int rc = 0;
    if (S_ISREG(mode))
        rc = place_file(r, at, name, mode,
                        archive_entry_size_is_set(en) ? (u64)archive_entry_size(en) : 0, e);
    else if (S_ISLNK(mode)) {
        unlinkat(at, name, 0);
        if (symlinkat(to ? to : "", at, name))
            rc = err_set(e, errno, "make symbolic link %s", name);
    } else if (S_ISDIR(mode)) {
        if (!there && mkdirat(at, name, 0700)) rc = err_set(e, errno, "make directory %s", name);
        else if (!there || pl->keep_owner) fchmodat(at, name, mode & 07777, 0);
    } else if (S_ISFIFO(mode)) {
        unlinkat(at, name, 0);
        if (mknodat(at, name, S_IFIFO | (mode & 07777), 0))
            rc = err_set(e, errno, "make fifo %s", name);
    } else return 0; /* devices are not made from archives of users */
    if (rc) return -1;
    if (pl->keep_owner || pl->uid >= 0) {
        uid_t uid = (uid_t)(pl->uid >= 0 ? pl->uid : archive_entry_uid(en));
        gid_t gid = (gid_t)(pl->gid >= 0 ? pl->gid : archive_entry_gid(en));
        if (!fchownat(at, name, uid, gid, AT_SYMLINK_NOFOLLOW) && S_ISREG(mode))
            fchmodat(at, name, mode & 07777, 0);
    }
    struct timespec ts[2] = { { archive_entry_mtime(en), archive_entry_mtime_nsec(en) },
                              { archive_entry_mtime(en), archive_entry_mtime_nsec(en) } };
    utimensat(at, name, ts, AT_SYMLINK_NOFOLLOW);
    place_note(pl, full, name, pl->uid >= 0 ? pl->uid : archive_entry_uid(en),
               pl->gid >= 0 ? pl->gid : archive_entry_gid(en));
    return 0;
}

/* Lays a tar stream (compressed or not) out below a root. */
static int place_archive(const struct placing *pl, int fd, struct err *e) {
    struct src_fd f = { { src_fd_read }, fd };
    struct src_inflate inf = { .src = { src_inflate_read }, .from = &f.src };
    AUTO_AR r = { 0 };
    struct archive_entry *en;
    int more = ar_open(&r, &inf.src, e) ? -1 : 0;
    if (!more)
        while ((more = ar_next(&r, &en, e)) > 0)
            if (place_entry(pl, &r, en, e)) {
                more = -1;
                break;
            }
    /* the writer must not meet a closed pipe while it pads the end */
    char rest[8192];
    struct err ignored;
    while (!more && inf.src.read(&inf.src, rest, sizeof rest, &ignored) > 0) continue;
    src_inflate_done(&inf);
    return more;
}

/* Where an archive goes: into `path` if that is a directory (or ends with "/"), else as `path`. */
static int place_layout(int root, const char *path, bool whole, struct placing *pl, char **ret_into,
                        char **ret_rename, struct err *e) {
    AUTO_FREE char *clean = path_clean(path);
    struct stat st;
    AUTO_FD at =
        sys_openat2(root, *clean ? clean : ".", O_PATH, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
    bool there = at >= 0 && !fstat(at, &st), dir = there && S_ISDIR(st.st_mode);
    if (dir) {
        *ret_into = str_dup(clean);
        pl->into = *ret_into;
        return 0;
    }
    if (str_suffix(path, "/") && there)
        return err_set(e, 0, "destination \"%s\" is not a directory", path);
    if (str_suffix(path, "/") && !whole)
        return err_set(e, 0, "destination directory %s must exist", path);
    char *slash = strrchr(clean, '/');
    *ret_rename = str_dup(slash ? slash + 1 : clean);
    *ret_into = slash ? str_dupn(clean, (size_t)(slash - clean)) : str_dup("");
    AUTO_FD parent = sys_openat2(root, **ret_into ? *ret_into : ".", O_PATH | O_DIRECTORY, 0,
                                 RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
    if (parent < 0) return err_set(e, 0, "no such directory: /%s", *ret_into);
    pl->into = *ret_into;
    pl->rename = *ret_rename;
    return 0;
}
/* }==== 19 image */

/* {==== 20 ctr: containers on disk ====
 * config.json is the plan (part 17); what Docker's inspect shows beyond it is under its "skiff"
 * member. state.json is what happened. Invariants: (1) config.json changes only by create, rename,
 * update; (2) while the lock is held only its holder writes state.json; (3) a state that says
 * "running" with the lock free is a lost supervisor: the reader says "exited" and writes that down.
 * Uses: 1-19. */
struct ctr {
    const struct store *s;
    char id[HEX_LEN + 1];
    int dir;                /* owned; containers/ID */
    json_t *config, *state; /* owned */
};

static void ctr_done(struct ctr *c) {
    fd_closep(&c->dir);
    json_decref(c->config), json_decref(c->state);
    *c = (struct ctr){ .dir = -1 };
}
#define AUTO_CTR CLEANUP(ctr_done) struct ctr

static const char *ctr_name(const struct ctr *c) { return js_str_or(c->config, "skiff.name", ""); }
static const char *ctr_status(const struct ctr *c) {
    return js_str_or(c->state, "status", "created");
}
static bool ctr_is(const struct ctr *c, const char *status) {
    return !strcmp(ctr_status(c), status);
}
static bool ctr_alive(const struct ctr *c) {
    return ctr_is(c, "running") || ctr_is(c, "paused") || ctr_is(c, "restarting");
}

/* The state of a container that was never started; it is not written before that. */
static json_t *ctr_state_new(void) {
    return json_pack("{s:s,s:i,s:i,s:s,s:s,s:s}", "status", "created", "pid", 0, "exitCode", 0,
                     "error", "", "startedAt", "0001-01-01T00:00:00Z", "finishedAt",
                     "0001-01-01T00:00:00Z");
}

static int ctr_save_state(struct ctr *c, struct err *e) {
    return js_save(c->dir, "state.json", c->state, 0, e);
}

static void ctr_event(const struct ctr *c, const char *action, json_t *attributes /* consumed */) {
    json_t *a = attributes ? attributes : json_object(), *v;
    const char *key;
    json_object_foreach (js_path(c->config, "skiff.labels"), key, v) json_object_set(a, key, v);
    js_sets(a, "image", js_str(c->config, "skiff.image"));
    js_sets(a, "name", ctr_name(c));
    store_event(c->s, "container", action, c->id, a);
}

static int ctr_open(const struct store *s, const char *id, struct ctr *ret, struct err *e) {
    struct ctr c = { .s = s, .dir = -1 };
    AUTO_FREE char *path = str_fmt("containers/%s", id);
    snprintf(c.id, sizeof c.id, "%s", id);
    c.dir = openat(s->dir, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (c.dir < 0) return err_set(e, 0, "No such container: %s", id);
    c.config = js_load(c.dir, "config.json", e);
    c.state = c.config ? js_load(c.dir, "state.json", e) : NULL;
    if (c.config && !c.state && e->no == ENOENT) c.state = ctr_state_new();
    if (!c.state) {
        ctr_done(&c);
        return err_wrap(e, "container %.12s is damaged ('skiff rm -f %.12s' removes it)", id, id);
    }
    if (ctr_alive(&c) && !lock_held(c.dir, "lock")) {
        /* read again: the supervisor may have written its last word and left in between */
        json_t *again = js_load(c.dir, "state.json", e);
        if (again) json_decref(c.state), c.state = again;
        if (ctr_alive(&c)) {
            char now[40];
            js_sets(c.state, "status", "exited");
            js_seti(c.state, "exitCode", 137);
            js_seti(c.state, "pid", 0);
            js_sets(c.state, "error", "the supervisor was lost");
            js_sets(c.state, "finishedAt", time_rfc3339(time_now_ns(), now));
            ctr_save_state(&c, e);
        }
    }
    *ret = c;
    return 0;
}

/* By name, full id or unambiguous prefix. */
static int ctr_find(const struct store *s, const char *what, struct ctr *ret, struct err *e) {
    char id[HEX_LEN + 1] = "";
    AUTO_FREE char *link = str_fmt("names/%s", what + (*what == '/'));
    AUTO_FREE char *shown = str_printable(what);
    if (*what && !strchr(what + (*what == '/'), '/')) {
        ssize_t k = readlinkat(s->dir, link, id, HEX_LEN);
        if (k == HEX_LEN) {
            id[k] = 0;
            if (!ctr_open(s, id, ret, e)) return 0;
        }
    }
    size_t n = strlen(what);
    *id = 0;
    if (n && n <= HEX_LEN && strspn(what, "0123456789abcdef") == n) {
        AUTO_DIR *d = dir_stream(s->dir, "containers");
        struct dirent *de;
        while (d && (de = dir_next(d))) {
            if (strncmp(de->d_name, what, n) || strlen(de->d_name) != HEX_LEN) continue;
            if (*id) return err_set(e, 0, "container id prefix '%s' is ambiguous", shown);
            strcpy(id, de->d_name);
        }
    }
    if (!*id) return err_set(e, 0, "No such container: %s", shown);
    return ctr_open(s, id, ret, e);
}

/* All container ids, newest first is the caller's business. */
static void ctr_ids(const struct store *s, struct strv *ret) {
    AUTO_DIR *d = dir_stream(s->dir, "containers");
    struct dirent *de;
    while (d && (de = dir_next(d)))
        if (strlen(de->d_name) == HEX_LEN) strv_add(ret, de->d_name);
}

/* A stage's container of a build: nobody's business. */
static bool ctr_is_build(const struct ctr *c) {
    return str_eq(js_str(c->config, "skiff.image"), "<build>");
}

static bool ctr_name_ok(const char *n) {
    if (!isalnum((u8)*n) || !n[1] || strlen(n) > 200) return false;
    return strspn(n, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") ==
           strlen(n);
}

/* "brave_hopper", as Docker's names; caller owns it. */
static char *ctr_name_random(void) {
    static const char *const A[] = { "brave", "calm",  "clever", "eager", "fair",  "gentle",
                                     "happy", "keen",  "kind",   "lucid", "merry", "neat",
                                     "noble", "proud", "quick",  "quiet", "sharp", "sunny",
                                     "swift", "tidy",  "upbeat", "vivid", "warm",  "wise" };
    static const char *const B[] = { "babbage",  "banach",  "curie",    "darwin",   "dijkstra",
                                     "einstein", "erdos",   "euler",    "fermat",   "galois",
                                     "gauss",    "goedel",  "hamilton", "hilbert",  "hopper",
                                     "kepler",   "knuth",   "lamarr",   "lovelace", "meitner",
                                     "newton",   "noether", "pascal",   "ritchie",  "thompson",
                                     "torvalds", "turing",  "wiles" };
    u32 r[2];
    (void)!getrandom(r, sizeof r, 0);
    return str_fmt("%s_%s", A[r[0] % ARRAY_LEN(A)], B[r[1] % ARRAY_LEN(B)]);
}

/* Reserves a name for an id; EEXIST as an error that says who has it. */
static int ctr_claim_name(const struct store *s, const char *name, const char *id, struct err *e) {
    AUTO_FREE char *link = str_fmt("names/%s", name);
    for (int tries = 0; symlinkat(id, s->dir, link); tries++) {
        char owner[HEX_LEN + 1] = "";
        if (errno != EEXIST) return err_set(e, errno, "reserve the name %s", name);
        ssize_t k = readlinkat(s->dir, link, owner, HEX_LEN);
        if (k > 0) owner[k] = 0;
        AUTO_FREE char *dir = str_fmt("containers/%s", owner),
                       *making = str_fmt("tmp/ctr-%s", owner);
        if (tries < 2 && faccessat(s->dir, dir, F_OK, 0) &&
            faccessat(s->dir, making, F_OK, 0)) { /* left by a killed create or rm */
            unlinkat(s->dir, link, 0);
            continue;
        }
        return err_set(
            e, 0,
            "Conflict. The container name \"/%s\" is already in use by container \"%s\". You have "
            "to remove (or rename) that container to be able to reuse that name.",
            name, owner);
    }
    return 0;
}

static bool volume_name_ok(const char *n) { return n && ctr_name_ok(n); }

struct ctr_removal {
    const struct ctr *c;
    const char *dir;
    bool volumes;
};

/* In the user namespace of the container's ids: its files may belong to any of them. */
static int ctr_remove_files(void *arg) {
    const struct ctr_removal *x = arg;
    const struct ctr *c = x->c;
    int failed = tree_remove(c->s->dir, x->dir);
    size_t i;
    json_t *v;
    json_array_foreach (js_path(c->config, "skiff.anonymousVolumes"), i, v) {
        AUTO_FREE char *vol = str_fmt("tmp/gone-%s", json_string_value(v));
        if (x->volumes && volume_name_ok(json_string_value(v)))
            failed |= tree_remove(c->s->dir, vol);
    }
    return failed ? 1 : 0;
}

/* Takes the anonymous volumes of a container out of sight, to be deleted with its files. */
static void ctr_hide_volumes(const struct ctr *c) {
    size_t i;
    json_t *v;
    json_array_foreach (js_path(c->config, "skiff.anonymousVolumes"), i, v) {
        AUTO_FREE char *vol = str_fmt("volumes/%s", json_string_value(v)),
                       *gone = str_fmt("tmp/gone-%s", json_string_value(v));
        if (volume_name_ok(json_string_value(v))) renameat(c->s->dir, vol, c->s->dir, gone);
    }
}

/* Takes a container that is not running out of sight, name and all: half a container is never seen.
 * What is left of it is removed by ctr_purge, or collected after a kill. */
static int ctr_hide(const struct ctr *c, bool volumes, struct err *e) {
    AUTO_FREE char *link = str_fmt("names/%s", ctr_name(c)),
                   *path = str_fmt("containers/%s", c->id), *gone = str_fmt("tmp/gone-%s", c->id);
    char owner[HEX_LEN + 1] = "";
    if (renameat(c->s->dir, path, c->s->dir, gone))
        return err_set(e, errno, "remove container %.12s", c->id);
    if (readlinkat(c->s->dir, link, owner, HEX_LEN) > 0 && !strcmp(owner, c->id))
        unlinkat(c->s->dir, link, 0);
    if (volumes) ctr_hide_volumes(c);
    ctr_event(c, "destroy", NULL);
    return 0;
}

/* Deletes the files of a hidden container, and with `volumes` its anonymous volumes. */
static void ctr_purge(const struct ctr *c, bool volumes) {
    struct plan p = { 0 };
    struct err ignored;
    AUTO_FREE char *gone = str_fmt("tmp/gone-%s", c->id);
    struct ctr_removal x = { c, gone, volumes };
    if (!plan_parse(c->config, &p, &ignored)) {
        /* with one id, or none, all files are ours */
        if (p.ids.uids && !idmap_single(&p.ids))
            launch_as_owner(&p.ids, ctr_remove_files, &x, &ignored);
        plan_done(&p);
    }
    ctr_remove_files(&x);
}

static int ctr_remove(const struct ctr *c, bool volumes, struct err *e) {
    if (ctr_hide(c, volumes, e)) return -1;
    ctr_purge(c, volumes);
    return 0;
}

/* Prepares the launch of a container's plan from its directory. */
static void ctr_launch_init(const struct ctr *c, const struct plan *p, struct launch *l) {
    launch_init(l);
    l->plan = p;
    l->store = c->s->dir;
    l->dir = c->dir;
}

/* What a process joins: the namespaces that the container has of its own. */
static u64 ctr_namespaces(const struct plan *p) { return p->ns_new & ~(u64)0x80; }

/* The same for a process that joins: it shares the container's limits. */
static void ctr_join_init(const struct ctr *c, const struct plan *p, struct launch *l) {
    ctr_launch_init(c, p, l);
    if (js_str(c->state, "cgroup")) l->cgroup.path = str_dup(js_str(c->state, "cgroup"));
}

/* ---- 20.1 talking to a supervisor ---- */

/* Connects to the socket below a directory; 108 bytes of path are too few, /proc/self/fd is short.
 * */
static int ctr_connect(int dir) {
    AUTO_FD s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    snprintf(a.sun_path, sizeof a.sun_path, "/proc/self/fd/%d/sock", dir);
    if (s < 0 || connect(s, (struct sockaddr *)&a, sizeof a)) return -1;
    return fd_steal(&s);
}

/* Waits for the exit code on a supervisor's socket; -1: it went away (the state says more). */
static int ctr_await_exit(int sock, int timeout_ms) {
    i64 end = timeout_ms < 0 ? -1 : time_mono_ms() + timeout_ms;
    for (;;) {
        i64 left = end < 0 ? -1 : end - time_mono_ms();
        if (end >= 0 && left <= 0) return -2;
        struct pollfd p = { sock, POLLIN, 0 };
        if (poll(&p, 1, left > INT_MAX ? INT_MAX : (int)left) <= 0) continue;
        char msg[65536];
        ssize_t k = fd_recv(sock, msg, sizeof msg, NULL, NULL, 0);
        if (k < 0 && errno == ECONNRESET)
            continue; /* it left something of ours unread; its last word is still there */
        if (k <= 0) return -1;
        if (msg[0] != 'X' || k < 5) continue;
        i64 code = 0;
        memcpy(&code, msg + 1, 4);
        return (int)(i64)(int32_t)code;
    }
}

/* A pidfd of the container's first process, from its supervisor: no pid can have been reused. */
static int ctr_pidfd(const struct ctr *c, struct err *e) {
    AUTO_FD s = ctr_connect(c->dir);
    char msg[64];
    int fds[16];
    unsigned n = 0;
    if (s >= 0 && !fd_send(s, "D", 1, NULL, 0) && fd_recv(s, msg, sizeof msg, fds, &n, 0) > 0 &&
        n == 1)
        return fds[0];
    while (n) close(fds[--n]);
    return err_set(e, 0, "Container %s is not running", c->id);
}

/* Pids on the host of all processes in the pid namespace of a process. Caller frees *ret. */
static size_t ctr_pids(pid_t of, pid_t **ret) {
    char path[64], want[64] = "", have[64];
    size_t n = 0;
    *ret = NULL;
    snprintf(path, sizeof path, "/proc/%d/ns/pid", (int)of);
    if (of <= 0 || readlink(path, want, sizeof want - 1) < 0) return 0;
    AUTO_DIR *d = opendir("/proc");
    struct dirent *de;
    while (d && (de = dir_next(d))) {
        if (!isdigit((u8)de->d_name[0])) continue;
        snprintf(path, sizeof path, "/proc/%.20s/ns/pid", de->d_name);
        ssize_t k = readlink(path, have, sizeof have - 1);
        if (k < 0) continue;
        have[k] = 0;
        if (strcmp(want, have)) continue;
        *ret = mem_grow(*ret, n + 1, sizeof **ret);
        (*ret)[n++] = atoi(de->d_name);
    }
    return n;
}
/* Bytes of the writable layer, and of it together with the image. */
static void ctr_size(const struct ctr *c, u64 *ret_rw, u64 *ret_all) {
    u64 inodes = 0;
    AUTO_IDX x = { 0 };
    struct err e;
    AUTO_FREE char *path = str_fmt("merged/%s.idx", js_str_or(c->config, "skiff.rootfs.chain", ""));
    *ret_rw = 0;
    tree_usage(c->dir, "upper", ret_rw, &inodes, 0);
    *ret_all = *ret_rw;
    if (!idx_open(c->s->dir, path, false, &x, &e)) *ret_all += x.head->content_size;
}

/* ---- 20.2 visiting a container's file tree ---- */

/* Runs fn in the container's file tree; its exit status. */
static int ctr_visit(struct ctr *k, int (*fn)(int root, void *arg), void *arg, pid_t *ret_pid,
                     struct err *e) {
    struct plan p = { 0 };
    struct launch l;
    AUTO_FD pidfd = -1, lock = -1;
    /* a stopped container's tree is mounted once only: by us, or by whoever starts it */
    if (ctr_alive(k) ? (pidfd = ctr_pidfd(k, e)) < 0
                     : (lock = lock_take(k->dir, "lock", LOCK_EX | LOCK_NB)) < 0)
        return ctr_alive(k) ? -1 : err_set(e, 0, "container %s is in use", ctr_name(k));
    if (plan_parse(k->config, &p, e)) return -1;
    ctr_launch_init(k, &p, &l);
    fflush(NULL);
    pid_t pid = launch_visit(&l, pidfd, fn, arg, e);
    int status = 0, rc = pid < 0 ? -1 : 0;
    if (pid > 0 && ret_pid) *ret_pid = pid;
    else if (pid > 0) {
        waitpid(pid, &status, 0);
        rc = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
    }
    launch_done(&l);
    plan_done(&p);
    return rc;
}
/* }==== 20 ctr */

/* {==== 21 super: the supervisor ====
 * One process a container. Its loop owns: the pty or the pipes, the log, the socket, the timers,
 * the child. Messages on the socket, SEQPACKET, one letter and payload:
 *   from a client   A flags     attach (1: feed me output, 2: my stdin is the container's)
 *                   I bytes     stdin;  c  stdin ends;  W rows,cols (u16 each)  resize
 *                   K sig       signal (i32);  S sig  the same, and no restart afterwards
 *                   P, U        pause, unpause;  D  send me a pidfd;  w  tell me the exit
 *   to a client     O bytes, E bytes  output;  X code (i32)  exited;  k text  answer to P, U
 * A client that does not read stops the container's output, as a full pipe would, and nothing else.
 * Uses: 1-20. */
enum { SUPER_CLIENTS = 64, SUPER_CHUNK = 32768, LOG_LINE = 16384 };

struct super_client {
    int fd; /* owned; -1: free slot */
    bool output, input, waits;
    struct buf late; /* one message that did not fit the socket */
};

struct super_log {
    int fd;             /* owned; -1: not open yet */
    bool off;           /* --log-driver none */
    u64 size, max_size; /* 0: no rotation */
    i64 max_file;
    struct buf part[2]; /* the unfinished line of stdout, stderr */
};

struct super_health {
    struct plan plan;
    bool have;
    i64 interval_ms, timeout_ms, start_ms, start_interval_ms, retries;
    i64 next_ms, deadline_ms; /* monotonic; 0: none */
    pid_t pid;                /* running probe; 0: none */
    int out;                  /* its output, owned; -1 */
    struct buf text;
    i64 began_ns;
};

struct super {
    struct ctr *c;
    struct plan plan;
    struct launch l;
    int lock, listen, sigfd; /* owned */
    int out[2];              /* read ends of stdout and stderr, or out[0] the pty; owned; -1 */
    int in;                  /* write end of stdin, or the pty (not owned then); -1 */
    struct buf pending;      /* stdin that did not fit */
    bool close_in;           /* close stdin when pending is empty */
    struct super_client client[SUPER_CLIENTS];
    struct super_log log;
    struct super_health health;
    bool exited, stopped; /* child is gone; a user asked for the end */
    int code;
    i64 started_ms;
};

/* ---- 21.1 the log ---- */
static void log_open(struct super_log *g, const struct ctr *c) {
    const json_t *o = js_path(c->config, "skiff.log");
    *g = (struct super_log){ .fd = -1,
                             .max_file = js_int(o, "maxFile", 1),
                             .max_size = (u64)js_int(o, "maxSize", 0),
                             .off = str_eq(js_str(o, "driver"), "none") };
}

/* The file is made by the first output: many containers have none. */
static void log_open_file(struct super_log *g, int dir) {
    struct stat st;
    g->fd = openat(dir, "log.json", O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    g->size = g->fd >= 0 && !fstat(g->fd, &st) ? (u64)st.st_size : 0;
    if (g->fd < 0) g->off = true;
}

static void log_rotate(struct super_log *g, int dir) {
    char a[32], b[32];
    for (i64 i = g->max_file - 1; i > 0; i--) {
        if (i > 1) snprintf(a, sizeof a, "log.json.%d", (int)(i - 1));
        else strcpy(a, "log.json");
        snprintf(b, sizeof b, "log.json.%d", (int)i);
        renameat(dir, a, dir, b);
    }
    if (g->max_file <= 1) unlinkat(dir, "log.json", 0);
    close(g->fd);
    log_open_file(g, dir);
}

static void log_line(struct super_log *g, int dir, int stream, const char *p, size_t n) {
    char now[40];
    AUTO_JSON *j = json_object();
    json_t *text = json_stringn(p, n);
    if (!text) {
        AUTO_BUF b = { 0 };
        buf_add_utf8(&b, p, n);
        text = json_stringn(b.p, b.n);
    }
    js_set(j, "log", text);
    js_sets(j, "stream", stream ? "stderr" : "stdout");
    js_sets(j, "time", time_rfc3339(time_now_ns(), now));
    AUTO_FREE char *s = js_dump(j, JSON_COMPACT);
    AUTO_FREE char *line = str_fmt("%s\n", s);
    size_t len = strlen(line);
    if (g->max_size && g->size && g->size + len > g->max_size) log_rotate(g, dir);
    if (!fd_write_all(g->fd, line, len)) g->size += len;
}

/* Cuts output into lines; a line longer than LOG_LINE is logged in parts, as Docker does. */
static void log_add(struct super_log *g, int dir, int stream, const char *p, size_t n) {
    struct buf *part = &g->part[stream];
    if (g->fd < 0 && !g->off) log_open_file(g, dir);
    while (g->fd >= 0 && n) {
        const char *nl = memchr(p, '\n', n);
        size_t k = nl ? (size_t)(nl - p) + 1 : n;
        if (part->n + k > LOG_LINE) k = LOG_LINE - part->n;
        buf_add(part, p, k);
        if (part->n == LOG_LINE || part->p[part->n - 1] == '\n') {
            log_line(g, dir, stream, part->p, part->n);
            part->n = 0;
        }
        p += k;
        n -= k;
    }
}

static void log_close(struct super_log *g, int dir) {
    for (int i = 0; i < 2; i++) {
        if (g->part[i].n) log_line(g, dir, i, g->part[i].p, g->part[i].n);
        buf_done(&g->part[i]);
    }
    fd_closep(&g->fd);
}

/* ---- 21.2 clients ---- */
static void super_drop(struct super *s, struct super_client *k) {
    bool was_input = k->input;
    fd_closep(&k->fd);
    buf_done(&k->late);
    *k = (struct super_client){ .fd = -1 };
    /* the one whose stdin it was is gone (StdinOnce); on a pty nothing ends */
    if (was_input && !s->plan.terminal && js_bool(s->c->config, "skiff.stdinOnce"))
        s->close_in = true;
}

static void super_send(struct super *s, struct super_client *k, char what, const void *p,
                       size_t n) {
    AUTO_BUF msg = { 0 };
    buf_addc(&msg, what);
    buf_add(&msg, p, n);
    if (send(k->fd, msg.p, msg.n, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return;
    if (errno != EAGAIN && errno != ENOBUFS) {
        super_drop(s, k);
        return;
    }
    k->late = msg; /* output pauses until this one is through */
    msg = (struct buf){ 0 };
}

static bool super_clogged(const struct super *s) {
    for (size_t i = 0; i < SUPER_CLIENTS; i++)
        if (s->client[i].late.n) return true;
    return false;
}

static struct super_client *super_client_add(struct super *s, int fd /* consumed */) {
    for (size_t i = 0; i < SUPER_CLIENTS; i++)
        if (s->client[i].fd < 0) {
            s->client[i] = (struct super_client){ .fd = fd };
            return &s->client[i];
        }
    close(fd);
    return NULL;
}

static void super_accept(struct super *s) {
    int fd = accept4(s->listen, NULL, NULL, SOCK_CLOEXEC);
    struct ucred u;
    socklen_t n = sizeof u;
    if (fd < 0) return;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &u, &n) || (u.uid != geteuid() && u.uid)) close(fd);
    else super_client_add(s, fd);
}

/* Freezes or thaws by the cgroup, or by a signal to every process where there is none. */
static int super_freeze(struct super *s, bool freeze, struct err *e) {
    if (s->l.cgroup.path) return cgroup_set(&s->l.cgroup, "cgroup.freeze", freeze ? "1" : "0", e);
    pid_t *pids;
    size_t n = ctr_pids(s->l.pid, &pids);
    if (!n) return err_set(e, 0, "no process to %s", freeze ? "pause" : "resume");
    for (size_t i = 0; i < n; i++) kill(pids[i], freeze ? SIGSTOP : SIGCONT);
    free(pids);
    return 0;
}

static void super_pause(struct super *s, struct super_client *k, bool freeze) {
    struct err e = { 0 };
    bool paused = ctr_is(s->c, "paused");
    if (paused == freeze)
        err_set(&e, 0, "Container %s is %s", s->c->id, freeze ? "already paused" : "not paused");
    else if (!super_freeze(s, freeze, &e)) {
        struct err ignored;
        js_sets(s->c->state, "status", freeze ? "paused" : "running");
        ctr_save_state(s->c, &ignored);
        ctr_event(s->c, freeze ? "pause" : "unpause", NULL);
    }
    super_send(s, k, 'k', e.msg, strlen(e.msg));
}

static void super_signal(struct super *s, int sig, bool stop) {
    if (stop) s->stopped = true;
    if (s->l.pidfd >= 0 && !s->exited) sys_pidfd_kill(s->l.pidfd, sig);
}

static void super_client_read(struct super *s, struct super_client *k) {
    char msg[SUPER_CHUNK + 64];
    ssize_t n = recv(k->fd, msg, sizeof msg, MSG_DONTWAIT);
    i64 arg = 0;
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        super_drop(s, k);
        return;
    }
    if (n >= 5) {
        int32_t v;
        memcpy(&v, msg + 1, 4);
        arg = v;
    }
    switch (msg[0]) {
    case 'A':
        k->output = n > 1 && (msg[1] & 1);
        k->input = n > 1 && (msg[1] & 2);
        k->waits = true;
        break;
    case 'I':
        if (s->in >= 0) buf_add(&s->pending, msg + 1, (size_t)n - 1);
        break;
    case 'c':
        if (!s->plan.terminal) s->close_in = true;
        k->input = false;
        break;
    case 'W':
        if (n >= 5 && s->l.console >= 0) {
            struct winsize ws = { 0 };
            memcpy(&ws.ws_row, msg + 1, 2);
            memcpy(&ws.ws_col, msg + 3, 2);
            ioctl(s->l.console, TIOCSWINSZ, &ws);
        }
        break;
    case 'K':
    case 'S':
        if (arg >= 0 && arg < 65) super_signal(s, (int)arg, msg[0] == 'S');
        break;
    case 'P': super_pause(s, k, true); break;
    case 'U': super_pause(s, k, false); break;
    case 'D':
        if (s->l.pidfd >= 0 && !s->exited) fd_send(k->fd, "D", 1, &s->l.pidfd, 1);
        else super_drop(s, k);
        break;
    case 'w': k->waits = true; break;
    default: super_drop(s, k);
    }
}

/* ---- 21.3 output and input ---- */
static void super_output(struct super *s, int stream) {
    char buf[SUPER_CHUNK];
    ssize_t n = read(s->out[stream], buf, sizeof buf);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (n <= 0) { /* EIO on a pty: the last slave is closed */
        if (s->out[stream] != s->l.console) fd_closep(&s->out[stream]);
        else s->out[stream] = -1;
        return;
    }
    log_add(&s->log, s->c->dir, stream, buf, (size_t)n);
    for (size_t i = 0; i < SUPER_CLIENTS; i++)
        if (s->client[i].fd >= 0 && s->client[i].output)
            super_send(s, &s->client[i], stream ? 'E' : 'O', buf, (size_t)n);
}

static void super_input(struct super *s) {
    if (s->in >= 0 && s->pending.n) {
        ssize_t n = write(s->in, s->pending.p, s->pending.n);
        if (n > 0) {
            memmove(s->pending.p, s->pending.p + n, s->pending.n - (size_t)n);
            s->pending.n -= (size_t)n;
        } else if (errno != EAGAIN && errno != EINTR) s->pending.n = 0, s->close_in = true;
    }
    if (s->close_in && !s->pending.n && s->in >= 0) {
        if (s->in != s->l.console) close(s->in);
        s->in = -1;
    }
}

/* ---- 21.4 health ---- */
/* When the next probe is due: sooner while the container starts. */
static void health_next(struct super *s) {
    struct super_health *x = &s->health;
    i64 now = time_mono_ms();
    bool starting = str_eq(js_str(s->c->state, "health.status"), "starting") &&
                    now - s->started_ms < x->start_ms;
    x->next_ms = now + (starting ? x->start_interval_ms : x->interval_ms);
}

static void health_init(struct super *s) {
    const json_t *h = js_path(s->c->config, "skiff.health");
    struct super_health *x = &s->health;
    *x = (struct super_health){ .out = -1 };
    if (!json_array_size(js_get(h, "test"))) return;
    x->interval_ms = js_int(h, "intervalNs", 30000000000) / 1000000;
    x->timeout_ms = js_int(h, "timeoutNs", 30000000000) / 1000000;
    x->start_ms = js_int(h, "startPeriodNs", 0) / 1000000;
    x->start_interval_ms = js_int(h, "startIntervalNs", 5000000000) / 1000000;
    x->retries = js_int(h, "retries", 3);
    AUTO_JSON *spec = json_deep_copy(s->c->config);
    json_t *proc = js_get(spec, "process");
    json_object_set(proc, "args", js_get(h, "test"));
    js_setb(proc, "terminal", false);
    struct err e;
    x->have = !plan_parse(spec, &x->plan, &e);
    json_t *st = js_sub(s->c->state, "health");
    js_sets(st, "status", "starting");
    js_seti(st, "failingStreak", 0);
    js_set(st, "log", json_array());
    health_next(s);
}

static void health_result(struct super *s, int code) {
    struct super_health *x = &s->health;
    json_t *h = js_sub(s->c->state, "health"), *log = js_suba(h, "log"), *r = json_object();
    char t[40];
    struct err e;
    if (x->out >= 0) fcntl(x->out, F_SETFL, O_NONBLOCK);
    char more[4096];
    for (ssize_t k; x->out >= 0 && x->text.n < 4096 && (k = read(x->out, more, sizeof more)) > 0;)
        buf_add(&x->text, more, (size_t)k);
    fd_closep(&x->out);
    js_sets(r, "Start", time_rfc3339(x->began_ns, t));
    js_sets(r, "End", time_rfc3339(time_now_ns(), t));
    js_seti(r, "ExitCode", code);
    js_sets(r, "Output", x->text.p ? x->text.p : "");
    json_array_append_new(log, r);
    while (json_array_size(log) > 5) json_array_remove(log, 0);
    buf_done(&x->text);
    x->pid = 0;
    x->deadline_ms = 0;
    const char *was = js_str_or(h, "status", "starting"), *now = was;
    i64 streak = code ? js_int(h, "failingStreak", 0) + 1 : 0;
    bool grace = !strcmp(was, "starting") && time_mono_ms() - s->started_ms < x->start_ms;
    if (!code) now = "healthy";
    else if (grace) streak = 0;
    else if (streak >= x->retries) now = "unhealthy";
    bool changed = strcmp(was, now) != 0;
    AUTO_FREE char *action = str_fmt("health_status: %s", now);
    js_seti(h, "failingStreak", streak);
    js_sets(h, "status", now);
    health_next(s);
    ctr_save_state(s->c, &e);
    if (changed) ctr_event(s->c, action, NULL);
}

static void health_start(struct super *s) {
    struct super_health *x = &s->health;
    int p[2];
    struct launch l;
    struct err e;
    health_next(s);
    if (ctr_is(s->c, "paused") || pipe2(p, O_CLOEXEC)) return;
    ctr_join_init(s->c, &x->plan, &l);
    l.stdio[1] = l.stdio[2] = p[1];
    x->began_ns = time_now_ns();
    if (!launch_join(&l, s->l.pidfd, ctr_namespaces(&s->plan), &e) && !launch_wait(&l, &e)) {
        x->pid = l.pid;
        x->out = p[0];
        x->deadline_ms = time_mono_ms() + x->timeout_ms;
    } else { /* a probe that cannot even start has failed */
        close(p[0]);
        buf_adds(&x->text, e.msg);
        health_result(s, e.status ? e.status : 1);
    }
    close(p[1]);
    launch_done(&l);
}

/* ---- 21.5 life ---- */

/* Starts the container's process. */
static int super_launch(struct super *s, struct err *e) {
    struct ctr *c = s->c;
    int in[2] = { -1, -1 }, out[2] = { -1, -1 }, er[2] = { -1, -1 };
    bool tty = s->plan.terminal, open_in = js_bool(c->config, "skiff.openStdin");
    ctr_launch_init(c, &s->plan, &s->l);
    s->l.die_with_parent = true;
    s->l.volatile_upper = js_bool(c->config, "skiff.autoRemove");
    s->exited = false;
    s->close_in = false;
    if (!tty) {
        if ((open_in && pipe2(in, O_CLOEXEC)) || pipe2(out, O_CLOEXEC) || pipe2(er, O_CLOEXEC))
            return err_set(e, errno, "pipe");
        s->l.stdio[0] = in[0];
        s->l.stdio[1] = out[1];
        s->l.stdio[2] = er[1];
    }
    int rc = cgroup_make(c->id, js_path(c->config, "linux.resources"),
                         js_str(c->config, "skiff.cgroupParent"), &s->l.cgroup, e);
    if (!rc && (launch_begin(&s->l, e) || launch_wait(&s->l, e))) {
        launch_abort(&s->l);
        rc = -1;
    }
    fd_closep(&in[0]), fd_closep(&out[1]), fd_closep(&er[1]);
    if (rc) {
        fd_closep(&in[1]), fd_closep(&out[0]), fd_closep(&er[0]);
        launch_done(&s->l);
        return -1;
    }
    s->out[0] = tty ? s->l.console : out[0];
    s->out[1] = tty ? -1 : er[0];
    s->in = tty ? s->l.console : in[1];
    if (s->in >= 0) fcntl(s->in, F_SETFL, O_NONBLOCK | (tty ? O_RDWR : O_WRONLY));
    char now[40];
    s->started_ms = time_mono_ms();
    js_sets(c->state, "status", "running");
    js_seti(c->state, "pid", s->l.pid);
    js_sets(c->state, "cgroup", s->l.cgroup.path);
    js_seti(c->state, "exitCode", 0);
    js_sets(c->state, "error", "");
    js_setb(c->state, "oomKilled", false);
    js_sets(c->state, "startedAt", time_rfc3339(time_now_ns(), now));
    js_sets(c->state, "finishedAt", "0001-01-01T00:00:00Z");
    health_init(s);
    if (ctr_save_state(c, e)) {
        launch_abort(&s->l);
        launch_done(&s->l);
        return -1;
    }
    ctr_event(c, "start", NULL);
    return 0;
}

static void super_reap(struct super *s) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        if (pid == s->l.pid) s->exited = true, s->code = code;
        else if (pid == s->health.pid) health_result(s, code);
        else if (pid == s->l.server) s->l.server = 0;
    }
}

/* The next timer, as a poll timeout. */
static int super_timeout(const struct super *s) {
    i64 now = time_mono_ms(), at = -1;
    if (!s->health.have) return -1;
    at = s->health.pid ? s->health.deadline_ms : s->health.next_ms;
    return at <= now ? 0 : at - now > 60000 ? 60000 : (int)(at - now);
}

static void super_timers(struct super *s) {
    struct super_health *x = &s->health;
    i64 now = time_mono_ms();
    if (!x->have || s->exited) return;
    if (x->pid && now >= x->deadline_ms) {
        static const char LATE[] = "Health check exceeded timeout";
        kill(x->pid, SIGKILL);
        waitpid(x->pid, NULL, 0);
        buf_adds(&x->text, LATE);
        health_result(s, -1);
    } else if (!x->pid && now >= x->next_ms) health_start(s);
}

/* One turn of the loop. */
static void super_turn(struct super *s, int timeout) {
    struct pollfd p[SUPER_CLIENTS + 8];
    size_t n = 0, at_client[SUPER_CLIENTS];
    bool clogged = super_clogged(s);
    p[n++] = (struct pollfd){ s->sigfd, POLLIN, 0 };
    p[n++] = (struct pollfd){ s->listen, POLLIN, 0 };
    p[n++] = (struct pollfd){ clogged ? -1 : s->out[0], POLLIN, 0 };
    p[n++] = (struct pollfd){ clogged ? -1 : s->out[1], POLLIN, 0 };
    p[n++] = (struct pollfd){ s->pending.n || s->close_in ? s->in : -1, POLLOUT, 0 };
    p[n++] = (struct pollfd){ s->health.text.n < 4096 ? s->health.out : -1, POLLIN, 0 };
    for (size_t i = 0; i < SUPER_CLIENTS; i++) {
        at_client[i] = n;
        if (s->client[i].fd < 0) continue;
        short want = s->pending.n > SUPER_CHUNK ? 0 : POLLIN; /* a full stdin stops its feeders */
        if (s->client[i].late.n) want |= POLLOUT;
        p[n++] = (struct pollfd){ s->client[i].fd, want, 0 };
    }
    if (poll(p, n, timeout) <= 0) return;
    if (p[0].revents) {
        struct signalfd_siginfo si;
        while (read(s->sigfd, &si, sizeof si) == sizeof si)
            if (si.ssi_signo == SIGTERM || si.ssi_signo == SIGINT || si.ssi_signo == SIGHUP)
                super_signal(s, SIGTERM, true);
        super_reap(s);
    }
    if (p[2].revents) super_output(s, 0);
    if (p[3].revents && !super_clogged(s))
        super_output(s, 1); /* one message waits for each client, not two */
    if (p[5].revents) {
        char b[1024];
        ssize_t k = read(s->health.out, b, sizeof b);
        if (k > 0) buf_add(&s->health.text, b, (size_t)k);
        else fd_closep(&s->health.out);
    }
    for (size_t i = 0; i < SUPER_CLIENTS; i++) {
        struct super_client *k = &s->client[i];
        if (k->fd < 0 || at_client[i] >= n || p[at_client[i]].fd != k->fd) continue;
        short got = p[at_client[i]].revents;
        if ((got & POLLOUT) && k->late.n &&
            send(k->fd, k->late.p, k->late.n, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
            buf_done(&k->late);
        if (got & (POLLIN | POLLHUP | POLLERR)) super_client_read(s, k);
    }
    if (p[1].revents) super_accept(s);
    super_input(s);
}

/* The rest of the output, once the process is gone: its namespace is dead, so the pipes end. */
static void super_drain(struct super *s) {
    enum { PATIENCE_MS = 600000 }; /* for a reader that has stopped reading */
    i64 begun = time_mono_ms(), end = begun + 2000;
    while ((s->out[0] >= 0 || s->out[1] >= 0 || super_clogged(s)) && time_mono_ms() < end) {
        super_turn(s, 50);
        if (super_clogged(s) && time_mono_ms() < begun + PATIENCE_MS) end = time_mono_ms() + 2000;
    }
    for (int i = 0; i < 2; i++) {
        if (s->out[i] == s->l.console) s->out[i] = -1;
        fd_closep(&s->out[i]);
    }
    if (s->in != s->l.console) fd_closep(&s->in);
    s->in = -1;
    s->pending.n = 0;
}

/* Docker's restart policies; the delay doubles from 100 ms to a minute. */
static bool super_restarts(struct super *s, i64 *delay_ms) {
    const char *policy = js_str_or(s->c->config, "skiff.restart.name", "no");
    i64 max = js_int(s->c->config, "skiff.restart.max", 0),
        count = js_int(s->c->state, "restartCount", 0);
    bool again = !strcmp(policy, "always") || !strcmp(policy, "unless-stopped") ||
                 (!strcmp(policy, "on-failure") && s->code && (!max || count < max));
    if (s->stopped || !again) return false;
    *delay_ms = time_mono_ms() - s->started_ms > 10000 ? 100
                : *delay_ms * 2 > 60000                ? 60000
                                                       : *delay_ms * 2;
    js_seti(s->c->state, "restartCount", count + 1);
    return true;
}

/* Records the end of one run. */
static void super_finish(struct super *s) {
    char now[40];
    struct err e;
    struct ctr *c = s->c;
    bool oom = cgroup_counter(&s->l.cgroup, "memory.events", "oom_kill") > 0;
    if (s->health.pid)
        kill(s->health.pid, SIGKILL), waitpid(s->health.pid, NULL, 0), s->health.pid = 0;
    fd_closep(&s->health.out);
    if (s->health.have) plan_done(&s->health.plan);
    s->health.have = false;
    cgroup_remove(&s->l.cgroup);
    launch_done(&s->l);
    js_sets(c->state, "status", "exited");
    js_seti(c->state, "pid", 0);
    js_seti(c->state, "exitCode", s->code);
    js_setb(c->state, "oomKilled", oom);
    js_sets(c->state, "finishedAt", time_rfc3339(time_now_ns(), now));
    json_t *attr = json_object();
    AUTO_FREE char *code = str_fmt("%d", s->code);
    js_sets(attr, "exitCode", code);
    if (oom) ctr_event(c, "oom", NULL);
    ctr_event(c, "die", attr);
    if (!js_bool(c->config, "skiff.autoRemove")) ctr_save_state(c, &e);
}

static void super_tell_exit(struct super *s) {
    int32_t code = s->code;
    for (size_t i = 0; i < SUPER_CLIENTS; i++) {
        struct super_client *k = &s->client[i];
        if (k->fd < 0 || !k->waits) continue;
        /* the last word waits for a slow reader, but not for ever */
        struct timeval tv = { 10, 0 };
        setsockopt(k->fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv);
        if (k->late.n) (void)!send(k->fd, k->late.p, k->late.n, MSG_NOSIGNAL);
        char msg[5] = { 'X' };
        memcpy(msg + 1, &code, 4);
        (void)!send(k->fd, msg, sizeof msg, MSG_NOSIGNAL);
    }
}

static int super_listen(struct super *s, struct err *e) {
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    unlinkat(s->c->dir, "sock", 0);
    s->listen = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    snprintf(a.sun_path, sizeof a.sun_path, "/proc/self/fd/%d/sock", s->c->dir);
    mode_t old = umask(077);
    int bad =
        s->listen < 0 || bind(s->listen, (struct sockaddr *)&a, sizeof a) || listen(s->listen, 64);
    umask(old);
    return bad ? err_set(e, errno, "make the supervisor's socket") : 0;
}

/* Everything after the fork. ready: struct err is written there (msg empty: started). */
__attribute__((noreturn)) static void super_main(struct ctr *c, int lock, int client, int ready) {
    struct super *s = mem_new(sizeof *s);
    struct err e = { 0 };
    sigset_t set;
    *s = (struct super){ .c = c, .lock = lock, .listen = -1, .out = { -1, -1 }, .in = -1 };
    for (size_t i = 0; i < SUPER_CLIENTS; i++) s->client[i].fd = -1;
    launch_init(&s->l);
    prctl(PR_SET_NAME, "skiff-super");
    g_log.quiet = true;
    sigfillset(&set);
    sigdelset(&set, SIGSEGV), sigdelset(&set, SIGABRT), sigdelset(&set, SIGBUS);
    sigprocmask(SIG_SETMASK, &set, NULL);
    s->sigfd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (client >= 0) {
        struct super_client *k = super_client_add(s, client);
        if (k) k->output = k->waits = true, k->input = js_bool(c->config, "skiff.openStdin");
    }
    AUTO_FD null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int i = 0; i < 3; i++) dup2(null, i);
    log_open(&s->log, c);
    if (plan_parse(c->config, &s->plan, &e) || super_listen(s, &e) || super_launch(s, &e)) {
        char now[40];
        struct err ignored;
        js_sets(c->state, "status",
                str_eq(js_str(c->state, "startedAt"), "0001-01-01T00:00:00Z") ? "created"
                                                                              : "exited");
        js_seti(c->state, "exitCode", e.status ? e.status : 128);
        js_sets(c->state, "error", e.msg);
        js_sets(c->state, "finishedAt", time_rfc3339(time_now_ns(), now));
        ctr_save_state(c, &ignored);
        unlinkat(c->dir, "sock", 0);
        (void)!write(ready, &e, sizeof e);
        _exit(EXIT_ENGINE);
    }
    (void)!write(ready, &e, sizeof e);
    close(ready);
    i64 delay = 50;
    for (;;) {
        while (!s->exited) {
            super_turn(s, super_timeout(s));
            super_timers(s);
        }
        super_drain(s);
        super_finish(s);
        if (!super_restarts(s, &delay)) break;
        js_sets(c->state, "status", "restarting");
        ctr_save_state(c, &e);
        for (i64 end = time_mono_ms() + delay, left;
             !s->stopped && (left = end - time_mono_ms()) > 0;)
            super_turn(s, (int)left);
        if (s->stopped) {
            js_sets(c->state, "status", "exited");
            ctr_save_state(c, &e);
            break;
        }
        if (super_launch(s, &e)) {
            js_sets(c->state, "error", e.msg);
            s->exited = true;
            s->code = e.status ? e.status : 128;
            ctr_save_state(c, &e);
        }
    }
    log_close(&s->log, c->dir);
    unlinkat(c->dir, "sock", 0);
    bool hidden = js_bool(c->config, "skiff.autoRemove") && !ctr_hide(c, true, &e);
    close(s->lock);
    super_tell_exit(s);
    if (hidden) { /* nobody waits for the files to go */
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        ctr_purge(c, true);
    }
    _exit(0);
}

/* Starts a created or stopped container under a new supervisor. *ret_client (may be NULL): a socket
 * that is attached from the first byte on. */
static int super_start(struct ctr *c, int *ret_client, struct err *e) {
    int pair[2] = { -1, -1 }, ready[2];
    AUTO_FD lock = lock_take(c->dir, "lock", LOCK_EX | LOCK_NB);
    if (lock < 0 && errno != EWOULDBLOCK)
        return err_set(e, errno, "lock container %s", ctr_name(c));
    if (lock < 0) return err_set(e, 0, "container %s is already running", ctr_name(c));
    if (pipe2(ready, O_CLOEXEC) ||
        (ret_client && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)))
        return err_set(e, errno, "pipe");
    fflush(NULL);
    pid_t pid = fork();
    if (!pid) {
        setsid();
        close(ready[0]);
        fd_closep(&pair[0]);
        super_main(c, fd_steal(&lock), pair[1], ready[1]);
    }
    close(ready[1]);
    fd_closep(&pair[1]);
    struct err got;
    ssize_t k = pid < 0 ? -1 : fd_read_all(ready[0], &got, sizeof got);
    close(ready[0]);
    if (k == (ssize_t)sizeof got && !got.msg[0]) {
        if (ret_client) *ret_client = pair[0];
        return 0;
    }
    fd_closep(&pair[0]);
    if (k != (ssize_t)sizeof got)
        return err_set(e, 0, "the supervisor of container %.12s died while starting", c->id);
    waitpid(pid, NULL, 0);
    *e = got;
    return -1;
}
/* }==== 21 super */

/* {==== 22 tmpl: Go templates and tables for --format ====
 * The part of text/template that users of docker write: fields, variables, if, range, with, pipes
 * and Docker's functions (json, join, split, upper, lower, title, println, pad, truncate, index,
 * len …), over JSON values. Interpreted while it is read; a range reads its body again. Uses: 1-5.
 * Source: Go's text/template, Docker's "Format command and log output". */
enum { TMPL_DEPTH = 32, TMPL_VARS = 32, TMPL_ARGS = 16, TMPL_STEPS = 1000000 };

struct tmpl {
    const char *p; /* next character */
    struct buf *out;
    json_t *dot; /* borrowed */
    struct {
        char name[32];
        json_t *value;
    } var[TMPL_VARS]; /* values owned */
    unsigned vars;
    int depth, steps;
    bool skip, trim; /* nothing is written; the next text loses its leading space */
    struct err *e;
};

/* A value as Go prints it. */
static void tmpl_print(struct buf *out, const json_t *v) {
    const char *key;
    json_t *m;
    size_t i;
    if (json_is_string(v)) buf_add(out, json_string_value(v), json_string_length(v));
    else if (json_is_integer(v)) buf_addf(out, "%" PRId64, (i64)json_integer_value(v));
    else if (json_is_real(v)) buf_addf(out, "%g", json_real_value(v));
    else if (json_is_boolean(v)) buf_adds(out, json_is_true(v) ? "true" : "false");
    else if (json_is_array(v)) {
        buf_addc(out, '[');
        json_array_foreach (v, i, m) {
            if (i) buf_addc(out, ' ');
            tmpl_print(out, m);
        }
        buf_addc(out, ']');
    } else if (json_is_object(v)) {
        bool first = true;
        buf_adds(out, "map[");
        json_object_foreach ((json_t *)(uintptr_t)v, key, m) {
            buf_addf(out, "%s%s:", first ? "" : " ", key);
            tmpl_print(out, m);
            first = false;
        }
        buf_addc(out, ']');
    } else buf_adds(out, v ? "<nil>" : "<no value>");
}

static bool tmpl_true(const json_t *v) {
    if (json_is_string(v)) return json_string_length(v) > 0;
    if (json_is_integer(v)) return json_integer_value(v) != 0;
    if (json_is_real(v)) return json_real_value(v) != 0;
    if (json_is_array(v)) return json_array_size(v) > 0;
    if (json_is_object(v)) return json_object_size(v) > 0;
    return json_is_true(v);
}

static json_t *tmpl_fail(struct tmpl *t, const char *what, const char *which) {
    if (!t->e->msg[0]) {
        AUTO_FREE char *shown = str_printable(which);
        err_set(t->e, 0, "template parsing error: %s%.200s", what, shown);
    }
    return json_null();
}

static void tmpl_space(struct tmpl *t) {
    while (*t->p == ' ' || *t->p == '\t' || *t->p == '\n') t->p++;
}

/* True at the end of an action or a parenthesis or before a pipe. */
static bool tmpl_at_end(const struct tmpl *t) {
    return !*t->p || *t->p == ')' || *t->p == '|' || str_prefix(t->p, "}}") ||
           str_prefix(t->p, "-}}");
}

static json_t *tmpl_field(struct tmpl *t, json_t *v /* consumed */, const char *name) {
    json_t *f = js_get(v, name);
    if (!f && v && !json_is_null(v) && !t->skip) {
        json_decref(v);
        return tmpl_fail(t, "can't evaluate field ", name);
    }
    json_incref(f);
    json_decref(v);
    return f ? f : json_null();
}

/* .a.b.c after a value that has been read. */
static json_t *tmpl_chain(struct tmpl *t, json_t *v /* consumed */) {
    char name[128];
    while (*t->p == '.' && (isalnum((u8)t->p[1]) || t->p[1] == '_')) {
        size_t n = 0;
        for (t->p++; (isalnum((u8)*t->p) || *t->p == '_') && n < sizeof name - 1; t->p++)
            name[n++] = *t->p;
        name[n] = 0;
        v = tmpl_field(t, v, name);
    }
    return v;
}

/* Mutual recursion: a parenthesis holds a pipeline. */
static json_t *tmpl_pipeline(struct tmpl *t);

static json_t *tmpl_string(struct tmpl *t) {
    AUTO_BUF b = { 0 };
    char q = *t->p++;
    for (; *t->p && *t->p != q; t->p++) {
        if (q == '"' && *t->p == '\\' && t->p[1]) {
            t->p++;
            buf_addc(&b, *t->p == 'n' ? '\n' : *t->p == 't' ? '\t' : *t->p);
        } else buf_addc(&b, *t->p);
    }
    if (!*t->p) return tmpl_fail(t, "unterminated quoted string", "");
    t->p++;
    return js_text(b.p ? b.p : "");
}

static json_t *tmpl_operand(struct tmpl *t) {
    tmpl_space(t);
    if (*t->p == '"' || *t->p == '`') return tmpl_string(t);
    if (*t->p == '(') {
        t->p++;
        json_t *v = tmpl_pipeline(t);
        tmpl_space(t);
        if (*t->p == ')') t->p++;
        else tmpl_fail(t, "unclosed left paren", "");
        return tmpl_chain(t, v);
    }
    if (*t->p == '$') {
        char name[32];
        size_t n = 0;
        for (t->p++; (isalnum((u8)*t->p) || *t->p == '_') && n < sizeof name - 1; t->p++)
            name[n++] = *t->p;
        name[n] = 0;
        for (unsigned i = t->vars; i-- > 0;)
            if (!strcmp(t->var[i].name, name)) return tmpl_chain(t, json_incref(t->var[i].value));
        return tmpl_fail(t, "undefined variable $", name);
    }
    if (*t->p == '.') {
        json_t *v = json_incref(t->dot);
        if (!isalnum((u8)t->p[1]) && t->p[1] != '_') {
            t->p++;
            return v;
        }
        return tmpl_chain(t, v);
    }
    if (isdigit((u8)*t->p) || (*t->p == '-' && isdigit((u8)t->p[1]))) {
        char *end;
        long long v = strtoll(t->p, &end, 10);
        t->p = end;
        return json_integer(v);
    }
    return tmpl_fail(t, "unexpected ", t->p);
}

static int tmpl_compare(const json_t *a, const json_t *b) {
    if (json_is_number(a) && json_is_number(b)) {
        double x = json_number_value(a), y = json_number_value(b);
        return (x > y) - (x < y);
    }
    if (json_is_string(a) && json_is_string(b))
        return strcmp(json_string_value(a), json_string_value(b));
    return json_equal(a, b) ? 0 : 1;
}

static json_t *tmpl_case(const char *s, int how) {
    AUTO_FREE char *c = str_dup(s);
    for (char *p = c; *p; p++)
        *p = (char)(how == 'u' || (how == 't' && (p == c || p[-1] == ' ')) ? toupper((u8)*p)
                    : how == 'l'                                           ? tolower((u8)*p)
                                                                           : *p);
    return js_text(c);
}

static json_t *tmpl_printf(json_t **a, unsigned n) {
    AUTO_BUF b = { 0 };
    const char *f = n ? json_string_value(a[0]) : NULL;
    unsigned at = 1;
    for (; f && *f; f++) {
        if (*f != '%' || !f[1]) {
            buf_addc(&b, *f);
            continue;
        }
        char spec[16] = "%";
        size_t k = 1;
        size_t digits = 0;
        for (f++; *f && strchr("-0123456789.", *f); f++) {
            digits = isdigit((u8)*f) ? digits + 1 : 0;
            if (digits < 5 && k < sizeof spec - 3) spec[k++] = *f; /* no width beyond any use */
        }
        if (!*f) break;
        if (*f == '%') {
            buf_addc(&b, '%');
            continue;
        }
        AUTO_BUF one = { 0 };
        tmpl_print(&one, at < n ? a[at] : NULL);
        spec[k] = 's';
        spec[k + 1] = 0;
        if (*f == 'q') buf_addf(&b, "\"%s\"", one.p);
        else {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
            buf_addf(&b, spec, one.p);
#pragma GCC diagnostic pop
        }
        at++;
    }
    return js_text(b.p ? b.p : "");
}

/* json, as Go's encoder writes it: keys in order, no escaping of <, > here. */
static json_t *tmpl_json(const json_t *v, bool pretty) {
    AUTO_FREE char *s = js_dump(v ? v : json_null(), pretty ? JSON_INDENT(4) : JSON_COMPACT);
    return js_text(s);
}

/* Calls a function by name; NULL: there is none of that name. */
static json_t *tmpl_call(struct tmpl *t, const char *f, json_t **a, unsigned n) {
    const json_t *x = n ? a[0] : NULL, *y = n > 1 ? a[1] : NULL;
    const char *s = json_string_value(x);
    if (!strcmp(f, "json")) return tmpl_json(x, false);
    if (!strcmp(f, "prettyjson")) return tmpl_json(x, true);
    if (!strcmp(f, "len"))
        return json_integer((json_int_t)(json_is_array(x)    ? json_array_size(x)
                                         : json_is_object(x) ? json_object_size(x)
                                                             : json_string_length(x)));
    if (!strcmp(f, "not")) return json_boolean(!tmpl_true(x));
    if (!strcmp(f, "and") || !strcmp(f, "or")) {
        for (unsigned i = 0; i < n; i++)
            if (tmpl_true(a[i]) == (*f == 'o') || i + 1 == n) return json_incref(a[i]);
    }
    if (!strcmp(f, "eq")) {
        for (unsigned i = 1; i < n; i++)
            if (!tmpl_compare(x, a[i])) return json_true();
        return json_false();
    }
    if (!strcmp(f, "ne")) return json_boolean(tmpl_compare(x, y) != 0);
    if (!strcmp(f, "lt")) return json_boolean(tmpl_compare(x, y) < 0);
    if (!strcmp(f, "le")) return json_boolean(tmpl_compare(x, y) <= 0);
    if (!strcmp(f, "gt")) return json_boolean(tmpl_compare(x, y) > 0);
    if (!strcmp(f, "ge")) return json_boolean(tmpl_compare(x, y) >= 0);
    if (!strcmp(f, "index")) {
        const json_t *v = x;
        for (unsigned i = 1; i < n; i++) {
            if (json_is_array(v) && (!json_is_integer(a[i]) || json_integer_value(a[i]) < 0 ||
                                     (size_t)json_integer_value(a[i]) >= json_array_size(v)))
                return tmpl_fail(t, "error calling index: index out of range", "");
            v = json_is_string(a[i]) ? js_get(v, json_string_value(a[i]))
                                     : json_array_get(v, (size_t)json_integer_value(a[i]));
        }
        return v ? json_incref((json_t *)(uintptr_t)v) : js_text("");
    }
    if (!strcmp(f, "upper")) return tmpl_case(s ? s : "", 'u');
    if (!strcmp(f, "lower")) return tmpl_case(s ? s : "", 'l');
    if (!strcmp(f, "title")) return tmpl_case(s ? s : "", 't');
    if (!strcmp(f, "truncate")) {
        AUTO_FREE char *c = str_dupn(s ? s : "", json_is_integer(y) && json_integer_value(y) >= 0
                                                     ? (size_t)json_integer_value(y)
                                                     : 0);
        return js_text(c);
    }
    if (!strcmp(f, "slice")) {
        size_t len = json_is_array(x) ? json_array_size(x) : json_string_length(x);
        json_int_t from = n > 1 ? json_integer_value(a[1]) : 0,
                   to = n > 2 ? json_integer_value(a[2]) : (json_int_t)len;
        if (from < 0 || to < from || (size_t)to > len)
            return tmpl_fail(t, "error calling slice: index out of range", "");
        if (s) {
            AUTO_FREE char *part = str_dupn(s + from, (size_t)(to - from));
            return js_text(part);
        }
        json_t *part = json_array();
        for (json_int_t i = from; i < to; i++)
            json_array_append(part, json_array_get(x, (size_t)i));
        return part;
    }
    if (!strcmp(f, "pad")) {
        json_int_t left = json_integer_value(y), right = n > 2 ? json_integer_value(a[2]) : 0;
        if (left < 0 || left > 4096 || right < 0 || right > 4096)
            return tmpl_fail(t, "error calling pad: out of range", "");
        AUTO_FREE char *c = str_fmt("%*s%s%*s", (int)left, "", s ? s : "", (int)right, "");
        return js_text(c);
    }
    if (!strcmp(f, "join")) {
        AUTO_STRV l = { 0 };
        js_to_strv(x, &l);
        AUTO_FREE char *c = str_join(&l, json_string_value(y) ? json_string_value(y) : "");
        return js_text(c);
    }
    if (!strcmp(f, "split")) {
        AUTO_STRV l = { 0 };
        const char *sep = json_string_value(y), *p = s;
        for (const char *q; p && sep && *sep && (q = strstr(p, sep)); p = q + strlen(sep))
            strv_take(&l, str_dupn(p, (size_t)(q - p)));
        if (p) strv_add(&l, p);
        return js_strv(&l);
    }
    if (!strcmp(f, "println") || !strcmp(f, "print")) {
        AUTO_BUF b = { 0 };
        for (unsigned i = 0; i < n; i++) {
            if (i && f[5]) buf_addc(&b, ' ');
            tmpl_print(&b, a[i]);
        }
        if (f[5]) buf_addc(&b, '\n');
        return js_text(b.p ? b.p : "");
    }
    if (!strcmp(f, "printf")) return tmpl_printf(a, n);
    if (!strcmp(f, "true") || !strcmp(f, "false")) return json_boolean(*f == 't');
    if (!strcmp(f, "nil")) return json_null();
    return tmpl_fail(t, "function not defined: ", f);
}

/* One command of a pipeline; `piped` (consumed, may be NULL) becomes its last argument. */
static json_t *tmpl_command(struct tmpl *t, json_t *piped) {
    json_t *arg[TMPL_ARGS];
    unsigned n = 0;
    char name[64] = "";
    tmpl_space(t);
    const char *start = t->p;
    if (isalpha((u8)*t->p)) {
        size_t k = 0;
        while (isalnum((u8)*t->p) && k < sizeof name - 1) name[k++] = *t->p++;
        name[k] = 0;
    }
    for (tmpl_space(t); !tmpl_at_end(t) && n < TMPL_ARGS - 1; tmpl_space(t)) {
        if (isalpha((u8)*t->p)) { /* a word as an argument: true, false, nil */
            char word[64];
            size_t k = 0;
            while (isalnum((u8)*t->p) && k < sizeof word - 1) word[k++] = *t->p++;
            word[k] = 0;
            arg[n++] = tmpl_call(t, word, NULL, 0);
        } else if (!*name && !n && str_prefix(t->p, ".Label ")) { /* Docker's one method */
            t->p += 7;
            json_t *key = tmpl_operand(t);
            AUTO_FREE char *all = str_dup(js_str_or(t->dot, "Labels", ""));
            char *save = NULL;
            arg[n] = js_text("");
            for (char *l = strtok_r(all, ",", &save); l; l = strtok_r(NULL, ",", &save)) {
                char *eq = strchr(l, '=');
                if (eq) *eq++ = 0;
                if (str_eq(l, json_string_value(key)) && eq)
                    json_decref(arg[n]), arg[n] = js_text(eq);
            }
            json_decref(key);
            n++;
        } else {
            arg[n++] = tmpl_operand(t);
            if (t->e->msg[0]) break;
        }
    }
    if (piped) arg[n++] = piped;
    json_t *v;
    if (*name) v = t->skip ? json_null() : tmpl_call(t, name, arg, n);
    else if (n == 1) v = json_incref(arg[0]);
    else
        v = tmpl_fail(t, n ? "can't give argument to non-function " : "missing value for command ",
                      start);
    while (n) json_decref(arg[--n]);
    return v;
}

static json_t *tmpl_pipeline(struct tmpl *t) {
    if (++t->depth > TMPL_DEPTH) return tmpl_fail(t, "nested too deep", "");
    json_t *v = tmpl_command(t, NULL);
    for (tmpl_space(t); *t->p == '|' && !t->e->msg[0]; tmpl_space(t)) {
        t->p++;
        v = tmpl_command(t, v);
    }
    t->depth--;
    return v;
}

static void tmpl_var(struct tmpl *t, const char *name, json_t *value /* consumed */) {
    if (t->vars == TMPL_VARS) {
        json_decref(value);
        tmpl_fail(t, "too many variables", "");
        return;
    }
    snprintf(t->var[t->vars].name, sizeof t->var[t->vars].name, "%s", name);
    t->var[t->vars++].value = value;
}

static void tmpl_vars_to(struct tmpl *t, unsigned n) {
    while (t->vars > n) json_decref(t->var[--t->vars].value);
}

/* The end of an action; eats "-}}" with the space that follows. */
static void tmpl_close(struct tmpl *t) {
    tmpl_space(t);
    t->trim = str_prefix(t->p, "-}}");
    if (t->trim) t->p++;
    if (str_prefix(t->p, "}}")) t->p += 2;
    else tmpl_fail(t, "unclosed action near ", t->p);
}

static bool tmpl_word(struct tmpl *t, const char *w) {
    size_t n = strlen(w);
    if (strncmp(t->p, w, n) || isalnum((u8)t->p[n])) return false;
    t->p += n;
    return true;
}

/* Optional "$a := " or "$i, $v := " of an action. */
static unsigned tmpl_assign(struct tmpl *t, char name[2][32]) {
    const char *back = t->p;
    unsigned n = 0;
    while (*t->p == '$' && n < 2) {
        size_t k = 0;
        for (t->p++; isalnum((u8)*t->p) && k < 31; t->p++) name[n][k++] = *t->p;
        name[n++][k] = 0;
        tmpl_space(t);
        if (*t->p == ',') t->p++;
        tmpl_space(t);
    }
    if (n && str_prefix(t->p, ":=")) {
        t->p += 2;
        return n;
    }
    t->p = back;
    return 0;
}

/* Mutual recursion: a block holds blocks. Returns what ended it: 'e' end, 'l' else, 0 end of text.
 * */
static int tmpl_block(struct tmpl *t);

/* if and with, after the keyword. */
static void tmpl_if(struct tmpl *t, bool with) {
    char name[2][32];
    unsigned vars = t->vars;
    bool outer = t->skip, done = false;
    tmpl_space(t);
    unsigned n = tmpl_assign(t, name);
    json_t *v = tmpl_pipeline(t), *dot = t->dot;
    if (n) tmpl_var(t, name[0], json_incref(v));
    tmpl_close(t);
    bool yes = tmpl_true(v);
    t->skip = outer || !yes;
    done = yes;
    if (with) t->dot = v;
    int end = tmpl_block(t);
    t->dot = dot;
    while (end == 'l' && !t->e->msg[0]) {
        tmpl_space(t);
        bool take = !done;
        if (tmpl_word(t, "if")) {
            json_t *c = tmpl_pipeline(t);
            take = take && tmpl_true(c);
            json_decref(c);
        }
        tmpl_close(t);
        t->skip = outer || !take;
        done |= take;
        end = tmpl_block(t);
    }
    if (end != 'e') tmpl_fail(t, "unexpected EOF", "");
    t->skip = outer;
    json_decref(v);
    tmpl_vars_to(t, vars);
}

static int tmpl_range_one(struct tmpl *t, const char *body, unsigned n, char name[2][32],
                          json_t *key /* consumed */, json_t *v) {
    unsigned vars = t->vars;
    if (n == 2) tmpl_var(t, name[0], json_incref(key));
    if (n) tmpl_var(t, name[n - 1], json_incref(v));
    json_decref(key);
    t->p = body;
    t->dot = v;
    int end = tmpl_block(t);
    if (!end) tmpl_fail(t, "unexpected EOF", "");
    tmpl_vars_to(t, vars);
    return end;
}

static void tmpl_range(struct tmpl *t) {
    char name[2][32];
    bool outer = t->skip;
    tmpl_space(t);
    unsigned n = tmpl_assign(t, name);
    json_t *list = tmpl_pipeline(t), *dot = t->dot, *v;
    tmpl_close(t);
    const char *body = t->p, *key;
    size_t i;
    bool trim = t->trim, some = false;
    int end = 0;
    if (!outer && json_is_array(list))
        json_array_foreach (list, i, v) {
            t->trim = trim, some = true;
            end = tmpl_range_one(t, body, n, name, json_integer((json_int_t)i), v);
        }
    else if (!outer && json_is_object(list))
        json_object_foreach (list, key, v) {
            t->trim = trim, some = true;
            end = tmpl_range_one(t, body, n, name, js_text(key), v);
        }
    t->dot = dot;
    if (!some) { /* the body is read over, to find its end */
        t->skip = true;
        end = tmpl_range_one(t, body, n, name, json_null(), json_null());
    }
    t->dot = dot;
    if (end == 'l') { /* {{else}}: the branch for an empty list */
        tmpl_close(t);
        t->skip = outer || some;
        if (tmpl_block(t) != 'e') tmpl_fail(t, "unexpected EOF", "");
    }
    t->skip = outer;
    json_decref(list);
}

static void tmpl_text(struct tmpl *t, const char *end) {
    const char *s = t->p, *to = end;
    if (t->trim)
        while (s < to && isspace((u8)*s)) s++;
    t->trim = false;
    if (str_prefix(end, "{{- ") || str_prefix(end, "{{-\t"))
        while (to > s && isspace((u8)to[-1])) to--;
    if (!t->skip && to > s) buf_add(t->out, s, (size_t)(to - s));
    t->p = end;
}

static int tmpl_block(struct tmpl *t) {
    if (++t->depth > TMPL_DEPTH) tmpl_fail(t, "nested too deep", "");
    while (!t->e->msg[0] && ++t->steps < TMPL_STEPS) {
        const char *open = strstr(t->p, "{{");
        tmpl_text(t, open ? open : t->p + strlen(t->p));
        if (!open) break;
        t->p += 2;
        if (*t->p == '-') t->p++;
        tmpl_space(t);
        if (str_prefix(t->p, "/*")) {
            const char *end = strstr(t->p, "*/");
            t->p = end ? end + 2 : t->p + strlen(t->p);
            tmpl_close(t);
        } else if (tmpl_word(t, "end")) {
            tmpl_close(t);
            t->depth--;
            return 'e';
        } else if (tmpl_word(t, "else")) {
            t->depth--;
            return 'l';
        } else if (tmpl_word(t, "if")) tmpl_if(t, false);
        else if (tmpl_word(t, "with")) tmpl_if(t, true);
        else if (tmpl_word(t, "range")) tmpl_range(t);
        else {
            char name[2][32];
            unsigned n = tmpl_assign(t, name);
            json_t *v = tmpl_pipeline(t);
            if (n) tmpl_var(t, name[0], json_incref(v));
            else if (!t->skip && !t->e->msg[0]) tmpl_print(t->out, v);
            json_decref(v);
            tmpl_close(t);
        }
    }
    t->depth--;
    return 0;
}

/* Executes a template over a value and appends the result. */
static int tmpl_run(const char *text, json_t *value, struct buf *out, struct err *e) {
    struct tmpl t = { .p = text, .out = out, .dot = value, .e = e };
    e->msg[0] = 0;
    tmpl_var(&t, "", json_incref(value));
    int end = tmpl_block(&t);
    if (end && !e->msg[0]) tmpl_fail(&t, "unexpected {{end}} or {{else}}", "");
    tmpl_vars_to(&t, 0);
    return e->msg[0] ? -1 : 0;
}

/* "name=value" pairs in the order of their names. Caller owns it. */
static char *labels_text(const json_t *labels, const char *sep) {
    AUTO_STRV l = { 0 };
    const char *key;
    json_t *v;
    json_object_foreach ((json_t *)(uintptr_t)labels, key, v) {
        AUTO_FREE char *pair =
            str_fmt("%s=%s", key, json_string_value(v) ? json_string_value(v) : "");
        strv_take(&l, str_printable(pair));
    }
    if (l.n) qsort(l.v, l.n, sizeof *l.v, name_order);
    return str_join(&l, sep);
}

/* Lines of tab-separated cells as aligned columns, three spaces between. Counts UTF-8 as one each.
 * */
static void table_print(const char *text) {
    size_t width[64] = { 0 };
    for (int pass = 0; pass < 2; pass++) {
        size_t col = 0, n = 0;
        const char *cell = text;
        for (const char *p = text;; p++) {
            if (*p && *p != '\t' && *p != '\n') {
                n += ((u8)*p & 0xc0) != 0x80;
                continue;
            }
            if (!pass && *p == '\t' && col < 64 && n > width[col]) width[col] = n;
            if (pass) {
                fwrite(cell, 1, (size_t)(p - cell), stdout);
                if (*p == '\t') printf("%*s", (int)(col < 64 ? width[col] - n + 3 : 3), "");
                else if (*p) putchar('\n');
            }
            if (!*p) break;
            if (*p == '\n') col = 0;
            else col++;
            n = 0;
            cell = p + 1;
        }
    }
}

/* Prints rows: `format` is the user's (NULL: `table`, the command's own). heads maps fields to
 * column headings. Rows are objects of strings. */
static int rows_print(const char *format, const char *table, const json_t *heads,
                      const json_t *rows, struct err *e) {
    AUTO_BUF out = { 0 };
    AUTO_FREE char *unescaped = NULL;
    const char *f = str_empty(format) || !strcmp(format, "table") ? table : format;
    if (str_eq(format, "json")) f = "{{json .}}";
    struct buf u = { 0 }; /* shells pass \t and \n as two characters */
    for (const char *p = f; *p; p++)
        if (*p == '\\' && (p[1] == 't' || p[1] == 'n')) buf_addc(&u, *++p == 't' ? '\t' : '\n');
        else buf_addc(&u, *p);
    f = unescaped = buf_steal(&u);
    bool tabular = str_prefix(f, "table ");
    if (tabular) {
        f += 6;
        if (tmpl_run(f, (json_t *)(uintptr_t)heads, &out, e)) return -1;
        buf_addc(&out, '\n');
    }
    size_t i;
    json_t *r;
    AUTO_BUF scratch = { 0 }; /* a wrong template is wrong without rows, too */
    if (heads && !json_array_size(rows) && tmpl_run(f, (json_t *)(uintptr_t)heads, &scratch, e))
        return -1;
    json_array_foreach (rows, i, r) {
        if (tmpl_run(f, r, &out, e)) return -1;
        buf_addc(&out, '\n');
    }
    if (tabular) table_print(out.p ? out.p : "");
    else if (out.p) fwrite(out.p, 1, out.n, stdout);
    return 0;
}
/* }==== 22 tmpl */

/* {==== 23 flag: one table describes each command ====
 * Dispatch, parsing, help and completion all come from struct cmd and struct opt. Parsed values are
 * a JSON object keyed by the long name: true/false, a string, or an array of strings. Uses: 1-5.
 * Source: Docker's CLI reference; pflag's rules for short and long forms. */
enum opt_kind {
    OPT_BOOL,
    OPT_TEXT,
    OPT_LIST,
    OPT_INT,
    OPT_BYTES,
    OPT_DURATION,
    OPT_LATER_BOOL,
    OPT_LATER_TEXT
}; /* known to Docker, refused here with a word */

struct opt {
    const char *name; /* NULL ends a list */
    char letter;      /* 0: none */
    enum opt_kind kind;
    const char *help;
};

struct cli {
    struct store *store; /* opened on first use by cli_store */
    json_t *opts;        /* owned */
    char **args;         /* what is left after the options */
    int nargs;
    const struct cmd *cmd;
};

struct cmd {
    const char *path;  /* "container run" */
    const char *alias; /* "run"; NULL: none */
    const char *usage; /* "[OPTIONS] IMAGE [COMMAND] [ARG...]" */
    const char *summary;
    int (*run)(struct cli *c, struct err *e); /* exit status, -1: the error is printed */
    const struct opt *opts[4];
    int min, max; /* arguments; max -1: any */
    bool words;   /* options end at the first argument */
    int fail;     /* exit status of an error: 1, or 125 where the command's own is passed */
};

static bool opt_takes_value(enum opt_kind k) { return k != OPT_BOOL && k != OPT_LATER_BOOL; }

static const struct opt *opt_find(const struct cmd *c, const char *name, size_t n, char letter) {
    for (size_t g = 0; g < ARRAY_LEN(c->opts) && c->opts[g]; g++)
        for (const struct opt *o = c->opts[g]; o->name; o++)
            if (letter ? o->letter == letter : strlen(o->name) == n && !strncmp(o->name, name, n))
                return o;
    return NULL;
}

static int opt_store(json_t *into, const struct opt *o, const char *value, struct err *e) {
    i64 n;
    switch (o->kind) {
    case OPT_BOOL:
    case OPT_LATER_BOOL: {
        static const char *const YES[] = { "1", "t", "T", "true", "TRUE", "True" }, *const NO[] = {
            "0", "f", "F", "false", "FALSE", "False"
        };
        bool yes = !value, no = false;
        for (size_t i = 0; value && i < 6; i++)
            yes |= !strcmp(value, YES[i]), no |= !strcmp(value, NO[i]);
        if (!yes && !no)
            return err_set(e, 0, "invalid argument \"%.100s\" for \"--%s\" flag: not a boolean",
                           value, o->name);
        if (o->kind == OPT_LATER_BOOL && yes)
            return err_set(e, 0, "--%s is not supported yet by skiff", o->name);
        js_setb(into, o->name, yes);
        return 0;
    }
    case OPT_LATER_TEXT: return err_set(e, 0, "--%s is not supported yet by skiff", o->name);
    case OPT_LIST: js_push(js_suba(into, o->name), value); return 0;
    case OPT_INT:
        if (!str_int(value, INT32_MIN, INT64_MAX, &n))
            return err_set(e, 0, "invalid argument \"%.100s\" for \"--%s\" flag: not a number",
                           value, o->name);
        break;
    case OPT_BYTES:
        if (strcmp(value, "-1") && str_bytes(value) < 0)
            return err_set(e, 0, "invalid argument \"%.100s\" for \"--%s\" flag: invalid size",
                           value, o->name);
        break;
    case OPT_DURATION:
        if (time_duration(value) < 0)
            return err_set(e, 0,
                           "invalid argument \"%.100s\" for \"--%s\" flag: time: invalid duration",
                           value, o->name);
        break;
    case OPT_TEXT: break;
    }
    js_sets(into, o->name, value);
    return 0;
}

/* Parses argv after the command's words. ret_help: --help was given. */
static int opt_parse(const struct cmd *c, int argc, char **argv, struct cli *ret, bool *ret_help,
                     struct err *e) {
    int n = 0;
    ret->opts = json_object();
    ret->args = mem_new(((size_t)argc + 1) * sizeof *ret->args);
    *ret_help = false;
    for (int i = 0; i < argc; i++) {
        const char *a = argv[i];
        if (!strcmp(a, "--")) {
            while (++i < argc) ret->args[n++] = argv[i];
            break;
        }
        if (*a != '-' || !a[1]) {
            if (c->words) {
                while (i < argc) ret->args[n++] = argv[i++];
                break;
            }
            ret->args[n++] = argv[i];
            continue;
        }
        if (a[1] == '-') {
            const char *eq = strchr(a, '=');
            size_t len = eq ? (size_t)(eq - a - 2) : strlen(a + 2);
            const struct opt *o = opt_find(c, a + 2, len, 0);
            if (!o && len == 4 && str_prefix(a, "--help")) return *ret_help = true, 0;
            if (!o) return err_set(e, 0, "unknown flag: %.*s", (int)len + 2, a);
            const char *v = eq ? eq + 1 : NULL;
            if (!v && opt_takes_value(o->kind)) {
                if (++i == argc) return err_set(e, 0, "flag needs an argument: --%s", o->name);
                v = argv[i];
            }
            if (opt_store(ret->opts, o, v, e)) return -1;
            continue;
        }
        for (const char *s = a + 1; *s; s++) { /* -itv x, -p80:80, -e=x */
            const struct opt *o = opt_find(c, NULL, 0, *s);
            if (!o && *s == 'h') return *ret_help = true, 0;
            if (!o) return err_set(e, 0, "unknown shorthand flag: '%c' in %s", *s, a);
            if (!opt_takes_value(o->kind)) {
                const char *v = s[1] == '=' ? s + 2 : NULL;
                if (opt_store(ret->opts, o, v, e)) return -1;
                if (v) break;
                continue;
            }
            const char *v = s[1] ? s + 1 + (s[1] == '=') : ++i < argc ? argv[i] : NULL;
            if (!v) return err_set(e, 0, "flag needs an argument: '%c' in %s", *s, a);
            if (opt_store(ret->opts, o, v, e)) return -1;
            break;
        }
    }
    ret->nargs = n;
    ret->args[n] = NULL;
    return 0;
}

static void cmd_help(const struct cmd *c) {
    static const char *const KIND[] = { "",      "string",   "list", "int",
                                        "bytes", "duration", "",     "string" };
    printf("Usage:  skiff %s %s\n\n%s\n", c->alias ? c->alias : c->path, c->usage, c->summary);
    if (c->alias && strcmp(c->alias, c->path))
        printf("\nAliases:\n  skiff %s, skiff %s\n", c->path, c->alias);
    if (!c->opts[0]) return;
    printf("\nOptions:\n");
    for (size_t g = 0; g < ARRAY_LEN(c->opts) && c->opts[g]; g++)
        for (const struct opt *o = c->opts[g]; o->name; o++) {
            if (o->kind >= OPT_LATER_BOOL) continue;
            char left[64], letter[8] = "    ";
            if (o->letter) snprintf(letter, sizeof letter, "-%c, ", o->letter);
            snprintf(left, sizeof left, "%s--%s %s", letter, o->name, KIND[o->kind]);
            printf("  %-34s %s\n", left, o->help);
        }
}

static bool cli_flag(const struct cli *c, const char *name) { return js_bool(c->opts, name); }
static const char *cli_text(const struct cli *c, const char *name) {
    return json_string_value(js_get(c->opts, name));
}
static bool cli_has(const struct cli *c, const char *name) { return js_get(c->opts, name) != NULL; }
static i64 cli_int(const struct cli *c, const char *name, i64 fallback) {
    i64 v = fallback;
    const char *s = cli_text(c, name);
    if (s) str_int(s, INT64_MIN, INT64_MAX, &v);
    return v;
}
static void cli_list(const struct cli *c, const char *name, struct strv *ret) {
    js_to_strv(js_get(c->opts, name), ret);
}
/* --tls-verify: 1, 0, or -1 where it was not given. */
static int tls_verify(const struct cli *c) {
    return cli_has(c, "tls-verify") ? cli_flag(c, "tls-verify") : -1;
}
/* }==== 23 flag */

/* {==== 24 make: from words to a plan ====
 * `run`, `create`, build's RUN: words and an image's configuration become an OCI runtime spec and a
 * container's directory. Nothing is started here.
 * Uses: 1-23. Sources: Docker's run reference; moby's daemon/oci_linux.go for defaults. */

/* ---- 24.1 files of the image, read before anything is mounted ---- */
enum { ACCOUNTS_MAX_BYTES = 4 << 20 };

/* Finds a path in an index, following symbolic links inside it; NULL: not there. */
static const struct idx_inode *idx_resolve(const struct idx *x, const char *path) {
    AUTO_FREE char *rest = str_dup(path);
    u32 stack[256], depth = 0;
    int links = 0;
    stack[0] = 0;
    for (char *p = rest;;) {
        while (*p == '/') p++;
        size_t n = strcspn(p, "/");
        if (!n) return idx_inode(x, stack[depth]);
        if (n == 2 && p[0] == '.' && p[1] == '.') {
            depth -= depth > 0;
            p += n;
            continue;
        }
        if (n == 1 && *p == '.') {
            p += n;
            continue;
        }
        const struct idx_inode *dir = idx_inode(x, stack[depth]);
        const struct idx_dirent *d = dir ? idx_lookup(x, dir, p, n) : NULL;
        const struct idx_inode *i = d ? idx_inode(x, d->inode) : NULL;
        if (!i) return NULL;
        if (S_ISLNK(i->mode)) {
            const char *text = idx_name(x, i->data, i->count);
            if (!text || ++links > 40) return NULL;
            char *joined = str_fmt("%.*s/%s", (int)i->count, text, p + n);
            if (*joined == '/') depth = 0;
            free(rest);
            p = rest = joined;
            continue;
        }
        if (depth + 1 >= ARRAY_LEN(stack)) return NULL;
        stack[++depth] = d->inode;
        p += n;
    }
}

/* Where account files come from: an image's index or a directory. */
struct rootfs_view {
    const struct idx *x; /* NULL: dir */
    int layers, dir;
};

/* A whole regular file of the root file system; absent is empty. Bounded, nothing is executed. */
static int view_read(const struct rootfs_view *v, const char *path, struct buf *ret,
                     struct err *e) {
    if (v->x) {
        const struct idx_inode *i = idx_resolve(v->x, path);
        if (!i || !S_ISREG(i->mode)) return 0;
        if (i->size > ACCOUNTS_MAX_BYTES)
            return err_set(e, 0, "%s of the image is larger than %d bytes", path,
                           ACCOUNTS_MAX_BYTES);
        struct packs packs;
        packs_init(&packs, v->x, v->layers);
        buf_reserve(ret, i->size);
        ssize_t k = packs_read(&packs, i, ret->p, i->size, 0);
        packs_done(&packs);
        if (k < 0) return err_set(e, EIO, "read %s of the image", path);
        ret->n = (size_t)k;
        ret->p[ret->n] = 0;
        return 0;
    }
    AUTO_FD fd = sys_openat2(v->dir, path + (*path == '/'), O_RDONLY | O_NONBLOCK | O_NOCTTY, 0,
                             RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode)) return 0;
    if (fd_slurp(fd, ACCOUNTS_MAX_BYTES, ret))
        return err_set(e, errno, "read %s of the container", path);
    return 0;
}

/* ---- 24.2 users ---- */
struct user {
    u32 uid, gid;
    u32 *groups; /* owned; supplementary */
    size_t ngroups;
    char home[256]; /* "" unknown */
};

static void user_done(struct user *u) { mem_freep(&u->groups); }

static void user_group_add(struct user *u, u32 gid) {
    if (u->ngroups == 1024) return; /* the image's list is not ours to search for ever */
    for (size_t i = 0; i < u->ngroups; i++)
        if (u->groups[i] == gid) return;
    u->groups = mem_grow(u->groups, u->ngroups + 1, sizeof *u->groups);
    u->groups[u->ngroups++] = gid;
}

/* Fields of the next line of passwd(5) or group(5); false at the end. */
static bool account_next(char **save, char **text, char *f[7]) {
    char *l = strtok_r(*text, "\n", save);
    *text = NULL;
    if (!l) return false;
    for (int i = 0; i < 7; i++) {
        f[i] = l ? l : (char *)(uintptr_t) "";
        if (l && (l = strchr(l, ':'))) *l++ = 0;
    }
    return true;
}

/* Only digits are a number; Docker's range. */
static int account_id(const char *s, i64 *ret, struct err *e) {
    if (strspn(s, "0123456789") != strlen(s)) return 0;
    if (!str_int(s, 0, INT32_MAX, ret))
        return err_set(e, 0, "uids and gids must be in range 0-2147483647: '%.40s'", s);
    return 1;
}

/* Resolves "user[:group]" as Docker does: names by the image's passwd and group, numbers as they
 * are. */
static int user_resolve(const struct rootfs_view *v, const char *spec, struct user *ret,
                        struct err *e) {
    struct user u = { 0 };
    AUTO_BUF pw = { 0 }, gr = { 0 };
    AUTO_FREE char *user = str_dupn(spec, strcspn(spec, ":"));
    const char *colon = strchr(spec, ':'), *group = colon ? colon + 1 : NULL;
    AUTO_FREE char *shown = str_printable(spec);
    char *f[7], *save = NULL, name[64] = "";
    i64 uid = 0, gid = 0;
    if (*spec && (!*user || (colon && !*group) || strchr(group ? group : "", ':')))
        return err_set(e, 0, "invalid user '%s': expected user[:group]", shown);
    if (view_read(v, "/etc/passwd", &pw, e) || view_read(v, "/etc/group", &gr, e)) return -1;
    int numeric = *user ? account_id(user, &uid, e) : 1;
    if (numeric < 0) return -1;
    u.uid = (u32)uid;
    bool found = false;
    for (char *t = pw.p ? pw.p : (char *)(uintptr_t) ""; account_next(&save, &t, f);) {
        i64 id, g;
        if (!str_int(f[2], 0, INT32_MAX, &id) || !str_int(f[3], 0, INT32_MAX, &g)) continue;
        if (numeric ? id != uid : strcmp(f[0], user) != 0) continue;
        u.uid = (u32)id;
        u.gid = (u32)g;
        snprintf(name, sizeof name, "%s", f[0]);
        snprintf(u.home, sizeof u.home, "%s", f[5]);
        found = true;
        break;
    }
    if (!found && !numeric)
        return err_set(e, 0, "unable to find user %.*s: no matching entries in passwd file",
                       (int)strcspn(shown, ":"), shown);
    int gnum = group ? account_id(group, &gid, e) : 1;
    if (gnum < 0) return -1;
    if (group && gnum) u.gid = (u32)gid;
    bool gfound = !group || gnum;
    save = NULL;
    for (char *t = gr.p ? gr.p : (char *)(uintptr_t) ""; account_next(&save, &t, f);) {
        i64 id;
        if (!str_int(f[2], 0, INT32_MAX, &id)) continue;
        if (group && !gnum && !strcmp(f[0], group)) u.gid = (u32)id, gfound = true;
        char *msave = NULL;
        for (char *m = strtok_r(f[3], ",", &msave); m && !group && *name;
             m = strtok_r(NULL, ",", &msave))
            if (!strcmp(m, name)) user_group_add(&u, (u32)id);
    }
    if (!gfound) {
        user_done(&u);
        return err_set(e, 0, "unable to find group %.60s: no matching entries in group file",
                       group);
    }
    *ret = u;
    return 0;
}

/* --group-add: names or numbers. */
static int user_groups(const struct rootfs_view *v, const struct strv *add, struct user *u,
                       struct err *e) {
    for (size_t i = 0; i < add->n; i++) {
        AUTO_FREE char *spec = str_fmt("0:%s", add->v[i]);
        struct user one;
        if (!strcmp(add->v[i], "keep-groups")) continue;
        if (user_resolve(v, spec, &one, e)) return -1;
        user_group_add(u, one.gid);
        user_done(&one);
    }
    return 0;
}

/* ---- 24.3 environment ---- */

/* Sets NAME=VALUE, in place where the name is there. */
static void env_set(struct strv *env, const char *pair) {
    size_t n = strcspn(pair, "=") + 1;
    for (size_t i = 0; i < env->n; i++)
        if (!strncmp(env->v[i], pair, n)) {
            free(env->v[i]);
            env->v[i] = str_dup(pair);
            return;
        }
    strv_add(env, pair);
}

static const char *env_get(const struct strv *env, const char *name) {
    size_t n = strlen(name);
    for (size_t i = 0; i < env->n; i++)
        if (!strncmp(env->v[i], name, n) && env->v[i][n] == '=') return env->v[i] + n + 1;
    return NULL;
}

/* -e: "K=V", or "K" taken from the caller's environment. */
static void env_option(struct strv *env, const char *s) {
    if (strchr(s, '=')) env_set(env, s);
    else if (getenv(s)) {
        AUTO_FREE char *pair = str_fmt("%s=%s", s, getenv(s));
        env_set(env, pair);
    }
}

static int env_file(struct strv *env, const char *path, struct err *e) {
    AUTO_BUF b = { 0 };
    char *save = NULL;
    if (file_read(AT_FDCWD, path, 4 << 20, &b, e)) return -1;
    for (char *l = b.p ? strtok_r(b.p, "\n", &save) : NULL; l; l = strtok_r(NULL, "\n", &save)) {
        while (*l == ' ' || *l == '\t') l++;
        size_t n = strlen(l);
        if (n && l[n - 1] == '\r') l[n - 1] = 0;
        if (!*l || *l == '#') continue;
        if (*l == '=' || strcspn(l, " \t") < strcspn(l, "="))
            return err_set(e, 0, "env file %s: variable '%.100s' contains whitespaces", path, l);
        env_option(env, l);
    }
    return 0;
}

/* ---- 24.4 the container to be ---- */
struct make {
    const struct cli *cli; /* options of run or create */
    struct store *s;
    struct image image;  /* owned; manifest NULL: --rootfs */
    char *image_name;    /* owned: as the user spelled it */
    struct idx x;        /* owned: the merged index */
    int layers, rootdir; /* owned descriptors */
    struct ctr c;        /* owned */
    char *name;          /* owned */
    json_t *run;         /* borrowed: the image's "config" */
    json_t *sk;          /* borrowed: /skiff of the spec */
    struct user user;
    struct idmap ids;
    struct strv env, args;
    const char *driver;
    bool tty, interactive, privileged;
    char *rootfs; /* owned: --rootfs, absolute; NULL: an image */
    bool over;    /* … as a lower layer that stays as it is (DIR:O) */
};

static void make_done(struct make *m) {
    image_done(&m->image);
    idx_close(&m->x);
    fd_closep(&m->layers), fd_closep(&m->rootdir);
    ctr_done(&m->c);
    free(m->name), free(m->image_name), free(m->rootfs);
    user_done(&m->user);
    strv_done(&m->env), strv_done(&m->args);
}

static void mount_add(json_t *mounts, const char *dest, const char *type, const char *source,
                      const char *opts, bool optional) {
    json_t *m = json_object();
    AUTO_STRV o = { 0 };
    js_sets(m, "destination", dest);
    js_sets(m, "type", type);
    js_sets(m, "source", source);
    strv_split(&o, opts, ',');
    js_set(m, "options", js_strv(&o));
    if (optional) js_setb(m, "skiffOptional", true);
    json_array_append_new(mounts, m);
}

/* Docker's default mounts, as far as a user namespace allows. */
static void make_default_mounts(struct make *m, json_t *spec, bool host_net, bool host_pid,
                                bool host_ipc) {
    json_t *a = js_suba(spec, "mounts");
    bool tty_group = !m->ids.uids || idmap_has(m->ids.gid, m->ids.gids, 5);
    i64 shm = str_bytes(cli_text(m->cli, "shm-size") ? cli_text(m->cli, "shm-size") : "64m");
    if (!shm) shm = 64 << 20;
    js_seti(m->sk, "shmSize", shm);
    AUTO_FREE char *shm_opts = str_fmt("nosuid,noexec,nodev,mode=1777,size=%" PRId64, shm);
    if (host_pid) mount_add(a, "/proc", "bind", "/proc", "rbind,nosuid,noexec,nodev", false);
    else mount_add(a, "/proc", "proc", "proc", "nosuid,noexec,nodev", false);
    mount_add(a, "/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k", false);
    mount_add(a, "/dev/pts", "devpts", "devpts",
              tty_group ? "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"
                        : "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620",
              false);
    if (host_net) mount_add(a, "/sys", "bind", "/sys", "rbind,nosuid,noexec,nodev,ro,rro", false);
    else mount_add(a, "/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro", false);
    if (!host_net)
        mount_add(a, "/sys/fs/cgroup", "cgroup2", "cgroup", "nosuid,noexec,nodev,ro", true);
    if (host_ipc)
        mount_add(a, "/dev/mqueue", "bind", "/dev/mqueue", "rbind,nosuid,noexec,nodev", true);
    else mount_add(a, "/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev", true);
    if (host_ipc) mount_add(a, "/dev/shm", "bind", "/dev/shm", "rbind,nosuid,noexec,nodev", false);
    else mount_add(a, "/dev/shm", "tmpfs", "shm", shm_opts, false);
}

/* ---- 24.5 volumes ---- */
static int volume_create(const struct store *s, const char *name, const json_t *labels,
                         bool anonymous, struct err *e) {
    char now[40];
    AUTO_FREE char *dir = str_fmt("volumes/%s/_data", name), *meta = str_fmt("volumes/%s", name);
    if (!volume_name_ok(name))
        return err_set(e, 0,
                       "\"%.100s\" includes invalid characters for a local volume name, only "
                       "\"[a-zA-Z0-9][a-zA-Z0-9_.-]\" "
                       "are allowed. If you intended to pass a host directory, use absolute path",
                       name);
    if (!faccessat(s->dir, dir, F_OK, 0)) return 0;
    if (dir_make(s->dir, dir, e)) return -1;
    fchmodat(s->dir, dir, 0755, 0); /* users of the container other than root want in, too */
    AUTO_FD d = dir_open(s->dir, meta, e);
    AUTO_JSON *j = json_object();
    js_sets(j, "Name", name);
    js_sets(j, "Driver", "local");
    js_sets(j, "Scope", "local");
    js_sets(j, "CreatedAt", time_rfc3339(time_now_ns(), now));
    js_set(j, "Labels", labels ? json_deep_copy(labels) : json_object());
    js_set(j, "Options", json_object());
    js_setb(j, "anonymous", anonymous);
    if (d < 0 || js_save(d, "meta.json", j, 0, e)) return -1;
    store_event(s, "volume", "create", name, NULL);
    return 0;
}

/* Does a container refer to the volume? */
static bool volume_used(const struct store *s, const char *name) {
    AUTO_STRV ids = { 0 };
    ctr_ids(s, &ids);
    for (size_t i = 0; i < ids.n; i++) {
        AUTO_CTR k = { .dir = -1 };
        struct err e;
        size_t m;
        json_t *j;
        if (ctr_open(s, ids.v[i], &k, &e)) continue;
        json_array_foreach (js_path(k.config, "skiff.mounts"), m, j)
            if (str_eq(js_str(j, "Name"), name)) return true;
    }
    return false;
}

struct volume_fill {
    struct make *m;
    const struct idx_inode *from;
    const char *name;
};

/* A new volume starts with what the image has at its mount point. */
static int volume_fill_run(void *arg) {
    struct volume_fill *f = arg;
    struct err e = { 0 };
    AUTO_FREE char *path = str_fmt("volumes/%s/_data", f->name);
    AUTO_FD root = dir_open(f->m->s->dir, path, &e);
    struct unpack u = { .x = &f->m->x,
                        .root = root,
                        .chown = !f->m->ids.uids || !idmap_single(&f->m->ids) };
    if (root < 0) return 1;
    packs_init(&u.packs, u.x, f->m->layers);
    u.first = mem_new(u.x->head->inodes * sizeof *u.first);
    buf_add(&u.path, "", 0);
    int rc = unpack_dir(&u, root, (u32)(f->from - u.x->inodes), 0, &e);
    if (rc) fprintf(stderr, "skiff: fill volume %s: %s\n", f->name, e.msg);
    return rc ? 1 : 0;
}

static int volume_use(struct make *m, const char *name, const char *dest, bool anonymous,
                      bool nocopy, char **ret_path, struct err *e) {
    AUTO_FREE char *dir = str_fmt("volumes/%s/_data", name);
    bool fresh = faccessat(m->s->dir, dir, F_OK, 0) != 0;
    if (volume_create(m->s, name, NULL, anonymous, e)) return -1;
    if (!fresh &&
        !volume_used(
            m->s,
            name)) { /* an empty one is filled too, as Docker does; not under a container's eyes */
        AUTO_DIR *d = dir_stream(m->s->dir, dir);
        fresh = d && !dir_next(d);
    }
    const struct idx_inode *from = fresh && !nocopy && m->x.map ? idx_resolve(&m->x, dest) : NULL;
    if (from && S_ISDIR(from->mode)) {
        struct volume_fill f = { m, from, name };
        int rc = launch_as_owner(&m->ids, volume_fill_run, &f, e);
        if (rc)
            return rc < 0
                       ? -1
                       : err_set(e, 0, "copying the image's %s into volume %s failed", dest, name);
    }
    *ret_path = str_fmt("%s/%s", m->s->path, dir);
    return 0;
}

/* Records a mount in the spec, and in Docker's words for inspect. */
static int volume_mount(struct make *m, json_t *spec, const char *type, const char *source,
                        const char *dest, const char *opts, const char *name, struct err *e) {
    json_t *all = js_suba(m->sk, "mounts"), *old;
    AUTO_FREE char *clean = path_clean(dest), *at = str_fmt("/%s", clean);
    size_t i;
    if (*dest != '/')
        return err_set(e, 0, "invalid mount path: '%.200s' mount path must be absolute", dest);
    if (!*clean) return err_set(e, 0, "invalid specification: destination can't be '/'");
    json_array_foreach (all, i, old)
        if (str_eq(js_str(old, "Destination"), at))
            return err_set(e, 0, "Duplicate mount point: %s", at);
    bool ro = strstr(opts, "ro,") || str_suffix(opts, "ro");
    mount_add(js_suba(spec, "mounts"), at, strcmp(type, "tmpfs") ? "bind" : "tmpfs", source, opts,
              false);
    json_t *j = json_object();
    js_sets(j, "Type", type);
    if (name) js_sets(j, "Name", name);
    js_sets(j, "Source", strcmp(type, "tmpfs") ? source : "");
    js_sets(j, "Destination", at);
    if (name) js_sets(j, "Driver", "local");
    js_sets(j, "Mode", ro ? "ro" : "");
    js_setb(j, "RW", !ro);
    js_sets(j, "Propagation", name ? "" : "rprivate");
    json_array_append_new(all, j);
    return 0;
}

/* -v [source:]destination[:options] */
static int volume_option(struct make *m, json_t *spec, const char *text, struct err *e) {
    AUTO_STRV p = { 0 };
    AUTO_FREE char *made = NULL;
    char random[HEX_LEN + 1];
    strv_split(&p, text, ':');
    if (p.n > 3 || !*p.v[0]) return err_set(e, 0, "invalid volume specification: '%.200s'", text);
    const char *source = p.n > 1 ? p.v[0] : NULL, *dest = p.n > 1 ? p.v[1] : p.v[0];
    AUTO_BUF opts = { 0 };
    bool ro = false, nocopy = false;
    buf_adds(&opts, "rbind");
    AUTO_STRV words = { 0 };
    if (p.n == 3) strv_split(&words, p.v[2], ',');
    for (size_t i = 0; i < words.n; i++) {
        const char *w = words.v[i];
        if (!strcmp(w, "ro") || !strcmp(w, "readonly")) ro = true;
        else if (!strcmp(w, "rw") || !*w) continue;
        else if (!strcmp(w, "z") || !strcmp(w, "Z"))
            log_warn("volume option '%s': there is no SELinux labelling here; ignored", w);
        else if (!strcmp(w, "nocopy")) nocopy = true;
        else if (!strcmp(w, "cached") || !strcmp(w, "delegated") || !strcmp(w, "consistent"))
            continue; /* Docker's, for another system */
        else if (!strcmp(w, "rprivate") || !strcmp(w, "private") || !strcmp(w, "rslave") ||
                 !strcmp(w, "slave") || !strcmp(w, "rshared") || !strcmp(w, "shared"))
            buf_addf(&opts, ",%s", w);
        else return err_set(e, 0, "invalid mode: '%.60s' in volume '%.200s'", w, text);
    }
    if (ro) buf_adds(&opts, ",ro,rro");
    if (*dest != '/')
        return err_set(e, 0,
                       "invalid volume specification: '%.200s': invalid mount config for type "
                       "\"bind\": invalid mount path: '%.100s' mount path must be absolute",
                       text, dest);
    if (source && *source == '/') {
        struct stat st;
        if (stat(source, &st)) { /* Docker makes a missing bind source a directory */
            if (errno != ENOENT || dir_make(AT_FDCWD, source, e))
                return err_set(e, errno, "bind source path %s", source);
            chmod(source, 0755);
        }
        return volume_mount(m, spec, "bind", source, dest, opts.p, NULL, e);
    }
    bool below = source &&
                 (!strcmp(source, ".") || str_prefix(source, "./") || str_prefix(source, ".."));
    if (below && access(source, F_OK) && dir_make(AT_FDCWD, source, e)) return -1;
    AUTO_FREE char *relative = below ? realpath(source, NULL) : NULL;
    if (relative) return volume_mount(m, spec, "bind", relative, dest, opts.p, NULL, e);
    if (source && (*source == '.' || *source == '~'))
        return err_set(e, 0,
                       "\"%.100s\" includes invalid characters for a local volume name. If you "
                       "intended to pass a host directory, use absolute path",
                       source);
    if (!source) {
        id_random(random);
        source = random;
        js_push(js_suba(m->sk, "anonymousVolumes"), random);
    }
    if (volume_use(m, source, dest, p.n == 1, nocopy, &made, e)) return -1;
    return volume_mount(m, spec, "volume", made, dest, opts.p, source, e);
}

/* One record of CSV (RFC 4180): fields may be quoted, a doubled quote is one. */
static void csv_split(const char *s, struct strv *ret) {
    for (;;) {
        AUTO_BUF b = { 0 };
        buf_add(&b, "", 0);
        if (*s == '"') {
            for (s++; *s && (*s != '"' || s[1] == '"'); s++) buf_addc(&b, *s), s += *s == '"';
            s += *s == '"';
        }
        while (*s && *s != ',') buf_addc(&b, *s++);
        strv_add(ret, b.p);
        if (!*s++) return;
    }
}

/* --mount type=…,source=…,target=…,readonly,… */
static int mount_option(struct make *m, json_t *spec, const char *text, struct err *e) {
    AUTO_STRV kv = { 0 };
    AUTO_BUF opts = { 0 };
    const char *type = "volume", *source = NULL, *dest = NULL;
    AUTO_FREE char *made = NULL;
    char random[HEX_LEN + 1];
    bool ro = false, nocopy = false;
    csv_split(text, &kv);
    for (size_t i = 0; i < kv.n; i++) {
        char *v = strchr(kv.v[i], '='), *k = kv.v[i];
        if (v) *v++ = 0;
        if (!strcmp(k, "type") && v) type = v;
        else if ((!strcmp(k, "source") || !strcmp(k, "src")) && v) source = v;
        else if ((!strcmp(k, "target") || !strcmp(k, "dst") || !strcmp(k, "destination")) && v)
            dest = v;
        else if (!strcmp(k, "readonly") || !strcmp(k, "ro"))
            ro = !v || !strcmp(v, "true") || !strcmp(v, "1");
        else if (!strcmp(k, "bind-propagation") && v) buf_addf(&opts, ",%s", v);
        else if (!strcmp(k, "volume-nocopy")) nocopy = !v || !strcmp(v, "true") || !strcmp(v, "1");
        else if (!strcmp(k, "tmpfs-size") && v && str_bytes(v) >= 0)
            buf_addf(&opts, ",size=%" PRId64, str_bytes(v));
        else if (!strcmp(k, "tmpfs-mode") && v) buf_addf(&opts, ",mode=%s", v);
        else if (!strcmp(k, "consistency") || !strcmp(k, "bind-recursive")) continue;
        else
            return err_set(
                e, 0, "invalid argument \"%.200s\" for \"--mount\" flag: unexpected key '%.60s'",
                text, k);
    }
    if (!dest)
        return err_set(e, 0, "invalid argument \"%.200s\" for \"--mount\" flag: target is required",
                       text);
    if (!strcmp(type, "tmpfs")) {
        if (source)
            return err_set(e, 0,
                           "invalid mount config for type \"tmpfs\": field Source must not be "
                           "specified");
        AUTO_FREE char *o =
            str_fmt("nosuid,nodev,noexec%s%s", ro ? ",ro" : "", opts.p ? opts.p : "");
        return volume_mount(m, spec, "tmpfs", "tmpfs", dest, o, NULL, e);
    }
    AUTO_FREE char *o = str_fmt("rbind%s%s", ro ? ",ro,rro" : "", opts.p ? opts.p : "");
    if (!strcmp(type, "bind")) {
        struct stat st;
        AUTO_FREE char *abs = source && *source == '.' ? realpath(source, NULL) : NULL;
        if (abs) source = abs;
        if (nocopy)
            return err_set(e, 0, "cannot mix 'volume-*' options with mount type 'bind'");
        if (!source || (*source != '/' && *source != '.'))
            return err_set(
                e, 0, "invalid mount config for type \"bind\": source must be an absolute path");
        if (stat(source, &st))
            return err_set(
                e, 0,
                "invalid mount config for type \"bind\": bind source path does not exist: %.300s",
                source);
        return volume_mount(m, spec, "bind", source, dest, o, NULL, e);
    }
    if (strcmp(type, "volume"))
        return err_set(e, 0, "mount type '%.40s' is not one of bind, volume, tmpfs", type);
    if (!source) {
        id_random(random);
        source = random;
        js_push(js_suba(m->sk, "anonymousVolumes"), random);
    }
    if (volume_use(m, source, dest, source == random, nocopy, &made, e)) return -1;
    return volume_mount(m, spec, "volume", made, dest, o, source, e);
}

/* --tmpfs /path[:options] */
static int tmpfs_option(struct make *m, json_t *spec, const char *text, struct err *e) {
    AUTO_FREE char *dest = str_dupn(text, strcspn(text, ":"));
    const char *colon = strchr(text, ':');
    AUTO_FREE char *o =
        str_fmt("nosuid,nodev,noexec%s%s", colon && colon[1] ? "," : "", colon ? colon + 1 : "");
    return volume_mount(m, spec, "tmpfs", "tmpfs", dest, o, NULL, e);
}

static int make_volumes(struct make *m, json_t *spec, struct err *e) {
    AUTO_STRV v = { 0 }, mo = { 0 }, t = { 0 };
    const char *key;
    json_t *val;
    cli_list(m->cli, "volume", &v);
    cli_list(m->cli, "mount", &mo);
    cli_list(m->cli, "tmpfs", &t);
    for (size_t i = 0; i < v.n; i++)
        if (volume_option(m, spec, v.v[i], e)) return -1;
    for (size_t i = 0; i < mo.n; i++)
        if (mount_option(m, spec, mo.v[i], e)) return -1;
    for (size_t i = 0; i < t.n; i++)
        if (tmpfs_option(m, spec, t.v[i], e)) return -1;
    json_object_foreach (js_get(m->run, "Volumes"), key, val) { /* the image's own */
        AUTO_FREE char *clean = path_clean(key), *at = str_fmt("/%s", clean);
        bool taken = false;
        size_t i;
        json_t *old;
        json_array_foreach (js_get(m->sk, "mounts"), i, old)
            taken |= str_eq(js_str(old, "Destination"), at);
        if (!taken && *clean && !strchr(key, ':') && volume_option(m, spec, at, e)) return -1;
    }
    return 0;
}

/* ---- 24.6 /etc files ---- */
/* A mount of a file that is in the container's memory alone. The bytes may be any. */
static json_t *mount_text(json_t *mounts, const char *dest, const char *text, size_t n,
                          const char *opts) {
    mount_add(mounts, dest, "bind", "memory", opts, false);
    json_t *m = json_array_get(mounts, json_array_size(mounts) - 1);
    js_set(m, "skiffText", json_stringn_nocheck(text, n));
    return m;
}

/* A file over /etc/NAME, unless the user mounts something there. */
static void make_etc_file(struct make *m, json_t *spec, const char *name, const char *text) {
    AUTO_FREE char *to = str_fmt("/etc/%s", name);
    AUTO_BUF clean = { 0 };
    json_t *old;
    size_t i;
    json_array_foreach (js_get(m->sk, "mounts"), i, old)
        if (str_eq(js_str(old, "Destination"), to) || str_eq(js_str(old, "Destination"), "/etc"))
            return;
    buf_add(&clean, "", 0);
    buf_add_utf8(&clean, text, strlen(text)); /* it is kept in config.json */
    mount_text(js_suba(spec, "mounts"), to, clean.p, clean.n, "bind,rprivate");
}

static int make_etc(struct make *m, json_t *spec, const char *hostname, struct err *e) {
    AUTO_STRV add = { 0 }, dns = { 0 }, search = { 0 }, opt = { 0 };
    AUTO_BUF hosts = { 0 }, resolv = { 0 };
    cli_list(m->cli, "add-host", &add);
    cli_list(m->cli, "dns", &dns);
    cli_list(m->cli, "dns-search", &search);
    cli_list(m->cli, "dns-option", &opt);
    cli_list(m->cli, "dns-opt", &opt);
    buf_adds(
        &hosts,
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n"
        "ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n");
    for (size_t i = 0; i < add.n; i++) {
        char *c = strpbrk(add.v[i], ":=");
        if (!c || c == add.v[i] || !c[1] || strpbrk(add.v[i], "\n\t "))
            return err_set(
                e, 0,
                "invalid argument \"%.100s\" for \"--add-host\" flag: bad format for add-host",
                add.v[i]);
        *c = 0;
        u8 addr[16];
        size_t len = strlen(c + 1);
        if (c[1] == '[' && c[len] == ']') c[len] = 0, memmove(c + 1, c + 2, len - 1);
        if (strcmp(c + 1, "host-gateway") && inet_pton(AF_INET, c + 1, addr) < 1 &&
            inet_pton(AF_INET6, c + 1, addr) < 1)
            return err_set(e, 0,
                           "invalid argument \"%.100s:%.60s\" for \"--add-host\" flag: invalid IP "
                           "address in add-host",
                           add.v[i], c + 1);
        buf_addf(&hosts, "%s\t%s\n", strcmp(c + 1, "host-gateway") ? c + 1 : "127.0.0.1", add.v[i]);
    }
    buf_addf(&hosts, "127.0.1.1\t%s\n", hostname);
    AUTO_FREE char *name_line = str_fmt("%s\n", hostname);
    struct err ignored;
    if (!dns.n && !search.n && !opt.n)
        file_read(AT_FDCWD, "/etc/resolv.conf", 65536, &resolv, &ignored);
    for (size_t i = 0; i < dns.n; i++) {
        u8 addr[16];
        if (inet_pton(AF_INET, dns.v[i], addr) < 1 && inet_pton(AF_INET6, dns.v[i], addr) < 1)
            return err_set(
                e, 0, "invalid argument \"%.60s\" for \"--dns\" flag: %.60s is not an ip address",
                dns.v[i], dns.v[i]);
        buf_addf(&resolv, "nameserver %s\n", dns.v[i]);
    }
    if (!dns.n && (search.n || opt.n)) { /* the host's servers stay */
        AUTO_BUF host = { 0 };
        char *save = NULL;
        file_read(AT_FDCWD, "/etc/resolv.conf", 65536, &host, &ignored);
        for (char *l = host.p ? strtok_r(host.p, "\n", &save) : NULL; l;
             l = strtok_r(NULL, "\n", &save))
            if (str_prefix(l, "nameserver")) buf_addf(&resolv, "%s\n", l);
    }
    if (search.n) {
        AUTO_FREE char *j = str_join(&search, " ");
        buf_addf(&resolv, "search %s\n", j);
    }
    if (opt.n) {
        AUTO_FREE char *j = str_join(&opt, " ");
        buf_addf(&resolv, "options %s\n", j);
    }
    make_etc_file(m, spec, "hosts", hosts.p);
    make_etc_file(m, spec, "hostname", name_line);
    make_etc_file(m, spec, "resolv.conf", resolv.p ? resolv.p : "");
    return 0;
}

/* ---- 24.7 the root file system's rung ---- */

/* Does the kernel mount overlay here, over this store? Tried once a boot; remembered in cache/. */
static int probe_overlay_child(void *arg) {
    const char *dir = arg;
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || chdir(dir))
        return 1;
    if (mount("probe", "m", "overlay", 0, "lowerdir=l,upperdir=u,workdir=w,userxattr")) return 1;
    /* a real modification: some file systems mount and then refuse to copy up */
    if (mkdir("m/new", 0700) || chmod("m/f", 0640) || rename("m/f", "m/new/f") || unlink("m/new/f"))
        return 1;
    return 0;
}

static bool probe_overlay(const struct store *s, const struct idmap *ids) {
    char boot[64] = "", key[160], answer[8] = "", id[HEX_LEN + 1];
    struct statfs fs;
    struct err e;
    if (host_disabled("overlay") || fstatfs(s->dir, &fs)) return false;
    if ((u32)fs.f_type == 0x47504653) return false; /* GPFS: probing can hang the node */
    file_line(AT_FDCWD, "/proc/sys/kernel/random/boot_id", boot, sizeof boot);
    snprintf(key, sizeof key, "cache/overlay-%.40s-%" PRIx64 "-%u", boot, (u64)fs.f_type,
             ids->uids);
    file_line(s->dir, key, answer, sizeof answer);
    if (!strcmp(answer, "yes") || !strcmp(answer, "no")) return *answer == 'y';
    id_random(id);
    AUTO_FREE char *dir = str_fmt("tmp/probe-%.16s", id), *full = str_fmt("%s/%s", s->path, dir);
    static const char *const SUB[] = { "l", "u", "w", "m" };
    for (size_t i = 0; i < 4; i++) {
        AUTO_FREE char *sub = str_fmt("%s/%s", dir, SUB[i]);
        if (dir_make(s->dir, sub, &e)) return false;
    }
    AUTO_FREE char *lower = str_fmt("%s/l", dir);
    AUTO_FD l = dir_open(s->dir, lower, &e);
    file_replace(l, "f", "x", 1, 0600, 0, &e);
    struct idmap none = { 0 };
    pid_t pid = fork();
    if (!pid)
        _exit(launch_as_owner(geteuid() ? ids : &none, probe_overlay_child, full, &e) == 0 ? 0 : 1);
    int status = 1;
    if (pid > 0) waitpid(pid, &status, 0);
    bool ok = WIFEXITED(status) && !WEXITSTATUS(status);
    tree_remove(s->dir, dir);
    AUTO_FD cache = dir_open(s->dir, "cache", &e);
    file_replace(cache, key + 6, ok ? "yes" : "no", ok ? 3 : 2, 0600, 0, &e);
    return ok;
}

static const char *g_storage_driver; /* --storage-driver; NULL: the ladder */

/* Chooses the rung: overlay-fuse, fuse, overlay, copy. */
static const char *choose_driver(const struct store *s, const struct idmap *ids, struct err *e) {
    const char *force = g_storage_driver ? g_storage_driver : getenv("SKIFF_STORAGE_DRIVER");
    bool overlay = probe_overlay(s, ids), fuse = host_fuse();
    if (str_empty(force))
        return overlay && fuse ? "overlay-fuse" : fuse ? "fuse" : overlay ? "overlay" : "copy";
    if (!strcmp(force, "overlay-fuse") && overlay && fuse) return "overlay-fuse";
    if (!strcmp(force, "fuse") && fuse) return "fuse";
    if (!strcmp(force, "overlay") && overlay) return "overlay";
    if (!strcmp(force, "copy") || !strcmp(force, "vfs")) return "copy";
    bool wants_fuse = !strcmp(force, "fuse");
    if (!wants_fuse && strcmp(force, "overlay-fuse") && strcmp(force, "overlay"))
        err_set(e, 0, "storage driver '%.40s' is not one of overlay-fuse, fuse, overlay, copy",
                force);
    else
        err_set(e, 0, "storage driver %s does not work here: %s", force,
                !overlay && !wants_fuse
                    ? "the kernel refuses overlay in a user namespace over the store's file system"
                    : "/dev/fuse cannot be opened");
    return NULL;
}

struct copy_want {
    struct make *m;
};
static int make_copy_run(void *arg) {
    struct make *m = ((struct copy_want *)arg)->m;
    struct err e = { 0 };
    AUTO_FD root = dir_open(m->c.dir, "rootfs", &e);
    if (root >= 0 &&
        !idx_unpack(&m->x, m->layers, root, !m->ids.uids || !idmap_single(&m->ids), &e))
        return 0;
    fprintf(stderr, "skiff: %s\n", e.msg);
    return 1;
}

/* cache/init: the mount points that every container needs, as the lowest layer of all, so that
 * they need not be made in each container's own. */
static int make_stubs(const struct store *s, struct err *e) {
    static const char *const DIRS[] = { "dev", "proc", "sys", "etc" },
                            *const FILES[] = { "etc/hosts", "etc/hostname", "etc/resolv.conf" };
    if (!faccessat(s->dir, "cache/init", F_OK, 0)) return 0;
    char id[HEX_LEN + 1];
    id_random(id);
    AUTO_FREE char *tmp = str_fmt("tmp/init-%.16s", id);
    if (dir_make(s->dir, tmp, e)) return -1;
    AUTO_FD d = dir_open(s->dir, tmp, e);
    if (d < 0 || fchmod(d, 0755)) return -1;
    for (size_t i = 0; i < ARRAY_LEN(DIRS); i++)
        if (mkdirat(d, DIRS[i], 0755)) return err_set(e, errno, "make %s/%s", tmp, DIRS[i]);
    for (size_t i = 0; i < ARRAY_LEN(FILES); i++)
        if (file_replace(d, FILES[i], "", 0, 0644, FILE_FRESH, e)) return -1;
    if (renameat(s->dir, tmp, s->dir, "cache/init") && errno != EEXIST && errno != ENOTEMPTY)
        return err_set(e, errno, "make cache/init");
    tree_remove(s->dir, tmp); /* another was faster */
    return 0;
}

/* Makes the directories of the container's tree for its rung. */
static int make_rootfs(struct make *m, json_t *spec, struct err *e) {
    json_t *r = js_sub(m->sk, "rootfs");
    bool layers = !strcmp(m->driver, "overlay"), server = !strcmp(m->driver, "fuse"),
         overlay = layers || !strcmp(m->driver, "overlay-fuse");
    const struct {
        const char *name;
        mode_t mode;
        bool wanted;
    } DIRS[] = {
        { "rootfs", 0755, !overlay && !server },
        { "upper", 0755, overlay || server },
        { "work", 0700, overlay || server },
        { "l", 0700, layers },
    };
    for (size_t i = 0; i < ARRAY_LEN(DIRS); i++)
        if (DIRS[i].wanted && mkdirat(m->c.dir, DIRS[i].name, DIRS[i].mode))
            return err_set(e, errno, "make the container's directory %s", DIRS[i].name);
    if (overlay && make_stubs(m->s, e)) return -1;
    js_sets(r, "driver", m->driver);
    if (!m->image.manifest) { /* --rootfs DIR, as it is */
        if (!m->over) return js_sets(js_sub(spec, "root"), "path", m->rootfs), 0;
        js_push(js_suba(r, "layers"), m->rootfs);
        return symlinkat(m->rootfs, m->c.dir, "l/0") ? err_set(e, errno, "link a layer") : 0;
    }
    char chain[HEX_LEN + 1];
    layer_chain(&m->image.diff_ids, chain);
    js_sets(r, "chain", chain);
    if (!strcmp(m->driver, "overlay")) {
        size_t n = m->image.diff_ids.n;
        bool merged = n > 200 || !n; /* overlay's limits: 500 lowers, one page of options */
        for (size_t i = 0, lowers = 0; i < (merged ? 1 : n); i++) {
            char tree[128], link[32];
            /* overlay takes no directory twice; the upper of two equal layers is enough */
            bool again = false;
            for (size_t k = i + 1; !merged && k < n; k++)
                again |= !strcmp(m->image.diff_ids.v[i], m->image.diff_ids.v[k]);
            if (again) continue;
            const char *kind = merged ? "merged" : "layers",
                       *hex = merged ? chain : digest_hex(m->image.diff_ids.v[i]);
            if (image_tree(m->s, kind, hex, &m->ids, tree, e)) return -1;
            AUTO_FREE char *to = str_fmt("../../../%s", tree);
            snprintf(link, sizeof link, "l/%zu", lowers++);
            if (symlinkat(to, m->c.dir, link)) return err_set(e, errno, "link a layer");
            js_push(js_suba(r, "layers"), tree);
        }
    } else if (!strcmp(m->driver, "copy")) {
        struct copy_want w = { m };
        int rc = launch_as_owner(&m->ids, make_copy_run, &w, e);
        if (rc) return rc < 0 ? -1 : err_set(e, 0, "copying the image failed");
        AUTO_FREE char *path = str_fmt("%s/containers/%s/rootfs", m->s->path, m->c.id);
        js_sets(js_sub(spec, "root"), "path", path);
    }
    return 0;
}

/* ---- 24.8 process, capabilities, namespaces ---- */
static int make_caps(struct make *m, json_t *proc, u64 *ret, struct err *e) {
    AUTO_STRV add = { 0 }, drop = { 0 };
    u64 caps = m->privileged ? CAP_ALL : CAP_DOCKER, last = 0;
    char line[16];
    cli_list(m->cli, "cap-add", &add);
    cli_list(m->cli, "cap-drop", &drop);
    for (int pass = 0; pass < 2; pass++) {
        const struct strv *l = pass ? &add : &drop;
        bool all = false;
        for (size_t i = 0; i < l->n; i++) {
            int c = cap_number(l->v[i]);
            if (!strcasecmp(l->v[i], "ALL")) all = true;
            else if (c < 0) return err_set(e, 0, "invalid capability: \"%.60s\"", l->v[i]);
        }
        if (all) caps = pass ? CAP_ALL : 0;
    }
    for (size_t i = 0; i < drop.n; i++)
        if (strcasecmp(drop.v[i], "ALL")) caps &= ~CAP_BIT(cap_number(drop.v[i]));
    for (size_t i = 0; i < add.n; i++)
        if (strcasecmp(add.v[i], "ALL")) caps |= CAP_BIT(cap_number(add.v[i]));
    i64 n = 0;
    if (!file_line(AT_FDCWD, "/proc/sys/kernel/cap_last_cap", line, sizeof line) &&
        str_int(line, 0, 63, &n))
        last = n == 63 ? ~0ull : (1ull << (n + 1)) - 1;
    if (last) caps &= last;
    json_t *c = js_sub(proc, "capabilities");
    js_set(c, "bounding", cap_json(caps));
    js_set(c, "effective", cap_json(m->user.uid ? 0 : caps));
    js_set(c, "permitted", cap_json(m->user.uid ? 0 : caps));
    js_set(c, "inheritable", json_array());
    *ret = caps;
    return 0;
}

static int make_rlimits(struct make *m, json_t *proc, struct err *e) {
    AUTO_STRV l = { 0 };
    cli_list(m->cli, "ulimit", &l);
    for (size_t i = 0; i < l.n; i++) {
        char *eq = strchr(l.v[i], '=');
        i64 soft, hard;
        if (eq) *eq++ = 0;
        char *colon = eq ? strchr(eq, ':') : NULL;
        if (colon) *colon++ = 0;
        if (!eq || rlimit_number(l.v[i]) < 0)
            return err_set(e, 0, "invalid ulimit argument: %.60s", l.v[i]);
        if (!str_int(eq, -1, INT64_MAX, &soft) || (colon && !str_int(colon, -1, INT64_MAX, &hard)))
            return err_set(e, 0, "invalid ulimit value: %.60s", eq);
        if (!colon) hard = soft;
        if (hard >= 0 && (soft > hard || soft < 0))
            return err_set(e, 0,
                           "ulimit soft limit must be less than or equal to hard limit: %" PRId64
                           " > %" PRId64,
                           soft, hard);
        json_t *j = json_object();
        AUTO_FREE char *type = str_fmt("RLIMIT_%s", l.v[i]);
        for (char *s = type; *s; s++) *s = (char)toupper((u8)*s);
        js_sets(j, "type", type);
        js_seti(j, "soft", soft);
        js_seti(j, "hard", hard);
        json_array_append_new(js_suba(proc, "rlimits"), j);
    }
    return 0;
}

/* --security-opt */
static int make_security(struct make *m, json_t *spec, struct err *e) {
    AUTO_STRV l = { 0 };
    cli_list(m->cli, "security-opt", &l);
    js_sets(m->sk, "seccomp", m->privileged ? "unconfined" : "default");
    for (size_t i = 0; i < l.n; i++) {
        const char *o = l.v[i], *v = strpbrk(o, "=:");
        if (v) v++;
        if (str_prefix(o, "no-new-privileges"))
            js_setb(js_get(spec, "process"), "noNewPrivileges", !v || str_eq(v, "true"));
        else if (str_prefix(o, "seccomp") && str_eq(v, "unconfined"))
            js_sets(m->sk, "seccomp", "unconfined");
        else if (str_prefix(o, "seccomp") && v) {
            json_t *p = js_load(AT_FDCWD, v, e);
            if (!p) return err_wrap(e, "opening seccomp profile (%s) failed", v);
            js_set(js_sub(spec, "linux"), "seccomp", p);
            js_sets(m->sk, "seccomp", "profile");
        } else if (str_prefix(o, "label"))
            log_warn("--security-opt %s: there is no SELinux labelling here; ignored", o);
        else if (str_prefix(o, "apparmor") && str_eq(v, "unconfined")) continue;
        else if (str_prefix(o, "systempaths") && str_eq(v, "unconfined"))
            json_object_del(js_get(spec, "linux"), "maskedPaths"),
                json_object_del(js_get(spec, "linux"), "readonlyPaths");
        else return err_set(e, 0, "invalid --security-opt: \"%.100s\"", o);
    }
    return 0;
}

static void make_paths(json_t *lin) {
    static const char *const MASKED[] = { "/proc/acpi",
                                          "/proc/asound",
                                          "/proc/interrupts",
                                          "/proc/kcore",
                                          "/proc/keys",
                                          "/proc/latency_stats",
                                          "/proc/sched_debug",
                                          "/proc/scsi",
                                          "/proc/timer_list",
                                          "/proc/timer_stats",
                                          "/sys/devices/virtual/powercap",
                                          "/sys/firmware" };
    static const char *const READONLY[] = { "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                                            "/proc/sysrq-trigger" };
    for (size_t i = 0; i < ARRAY_LEN(MASKED); i++) js_push(js_suba(lin, "maskedPaths"), MASKED[i]);
    for (size_t i = 0; i < ARRAY_LEN(READONLY); i++)
        js_push(js_suba(lin, "readonlyPaths"), READONLY[i]);
}

static void make_idmap(json_t *lin, const struct idmap *ids) {
    for (int g = 0; g < 2; g++)
        for (unsigned i = 0; i < (g ? ids->gids : ids->uids); i++) {
            const struct idmap_range *r = g ? &ids->gid[i] : &ids->uid[i];
            json_t *j = json_object();
            js_seti(j, "containerID", r->inside);
            js_seti(j, "hostID", r->outside);
            js_seti(j, "size", r->count);
            json_array_append_new(js_suba(lin, g ? "gidMappings" : "uidMappings"), j);
        }
}

/* A namespace's mode: private or host; anything else is an error that says so. */
static int make_ns_mode(const struct cli *c, const char *flag, bool *ret_host, struct err *e) {
    const char *v = cli_text(c, flag);
    if (str_empty(v) || !strcmp(v, "private") || !strcmp(v, "shareable"))
        return *ret_host = false, 0;
    if (!strcmp(v, "host")) return *ret_host = true, 0;
    return err_set(e, 0, "--%s=%.60s is not supported yet by skiff: use private or host", flag, v);
}

static int make_namespaces(struct make *m, json_t *spec, struct err *e) {
    json_t *lin = js_sub(spec, "linux"), *ns = js_suba(lin, "namespaces");
    const char *net = cli_text(m->cli, "network");
    bool pid, ipc, uts, cgroup;
    if (make_ns_mode(m->cli, "pid", &pid, e) || make_ns_mode(m->cli, "ipc", &ipc, e) ||
        make_ns_mode(m->cli, "uts", &uts, e) || make_ns_mode(m->cli, "cgroupns", &cgroup, e))
        return -1;
    if (str_empty(net) || !strcmp(net, "default")) net = "host";
    if (strcmp(net, "host") && strcmp(net, "none"))
        return err_set(e, 0,
                       "--network=%.60s is not supported yet by skiff: use host (the default "
                       "without root) or none",
                       net);
    AUTO_STRV ports = { 0 };
    cli_list(m->cli, "publish", &ports);
    if (ports.n || cli_flag(m->cli, "publish-all"))
        log_warn("Published ports are discarded when using %s network mode", net);
    const struct {
        const char *type;
        bool on;
    } NS[] = {
        { "user", m->ids.uids > 0 },
        { "mount", true },
        { "pid", !pid },
        { "ipc", !ipc },
        { "uts", !uts },
        { "network", strcmp(net, "host") != 0 },
        { "cgroup", !cgroup },
    };
    for (size_t i = 0; i < ARRAY_LEN(NS); i++)
        if (NS[i].on) {
            json_t *j = json_object();
            js_sets(j, "type", NS[i].type);
            json_array_append_new(ns, j);
        }
    js_sets(m->sk, "network", net);
    make_idmap(lin, &m->ids);
    make_default_mounts(m, spec, !strcmp(net, "host"), pid, ipc);
    if (!m->privileged) make_paths(lin);
    if (uts && cli_has(m->cli, "hostname"))
        return err_set(e, 0, "conflicting options: hostname and the UTS mode");
    if (!uts) {
        AUTO_FREE char *short_id = str_dupn(m->c.id, 12);
        const char *h = cli_text(m->cli, "hostname");
        if (h && (strlen(h) > 64 || strpbrk(h, " \n\t/")))
            return err_set(e, 0, "invalid hostname: %.80s", h);
        js_sets(spec, "hostname", h ? h : short_id);
        js_sets(spec, "domainname", cli_text(m->cli, "domainname"));
    }
    return 0;
}

/* Entrypoint and command: Docker's rules. */
static int make_args(struct make *m, char *const *argv, struct err *e) {
    const char *ep = cli_text(m->cli, "entrypoint");
    if (ep && *ep) strv_add(&m->args, ep);
    else if (!ep) js_to_strv(js_get(m->run, "Entrypoint"), &m->args);
    size_t fixed = m->args.n;
    for (; *argv; argv++) strv_add(&m->args, *argv);
    if (m->args.n == fixed && !ep) js_to_strv(js_get(m->run, "Cmd"), &m->args);
    if (!m->args.n || (m->args.n == 1 && !*m->args.v[0]))
        return err_set(e, 0, "no command specified");
    return 0;
}

static int make_env(struct make *m, const char *hostname, struct err *e) {
    AUTO_STRV img = { 0 }, files = { 0 }, vars = { 0 };
    js_to_strv(js_get(m->run, "Env"), &img);
    cli_list(m->cli, "env-file", &files);
    cli_list(m->cli, "env", &vars);
    strv_add(&m->env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    strv_take(&m->env, str_fmt("HOSTNAME=%s", hostname));
    if (m->tty) strv_add(&m->env, "TERM=xterm");
    AUTO_STRV told = { 0 }; /* what inspect and commit show: nothing of the engine's own */
    if (!env_get(&img, "PATH")) strv_add(&told, m->env.v[0]);
    for (size_t i = 0; i < img.n; i++) env_set(&told, img.v[i]);
    for (size_t i = 0; i < files.n; i++)
        if (env_file(&told, files.v[i], e)) return -1;
    for (size_t i = 0; i < vars.n; i++) {
        if (!*vars.v[i] || *vars.v[i] == '=')
            return err_set(e, 0, "invalid environment variable: %.60s", vars.v[i]);
        env_option(&told, vars.v[i]);
    }
    for (size_t i = 0; i < told.n; i++) env_set(&m->env, told.v[i]);
    for (size_t i = 0; i < vars.n; i++) /* -e NAME of what is not set takes it away */
        if (!strchr(vars.v[i], '=') && !getenv(vars.v[i])) env_option(&m->env, vars.v[i]);
    js_set(m->sk, "env", js_strv(&told));
    if (!env_get(&m->env, "HOME"))
        strv_take(&m->env, str_fmt("HOME=%s", *m->user.home ? m->user.home : "/"));
    return 0;
}

/* ---- 24.9 the whole spec ---- */
static int make_process(struct make *m, json_t *spec, u64 *ret_caps, struct err *e) {
    json_t *proc = js_sub(spec, "process"), *u = js_sub(proc, "user");
    const char *cwd = cli_text(m->cli, "workdir");
    if (str_empty(cwd)) cwd = js_str_or(m->run, "WorkingDir", "/");
    if (str_empty(cwd)) cwd = "/";
    if (*cwd != '/')
        return err_set(e, 0,
                       "the working directory '%.200s' is invalid, it needs to be an absolute path",
                       cwd);
    AUTO_FREE char *clean = path_clean(cwd), *abs = str_fmt("/%s", clean);
    js_setb(proc, "terminal", m->tty);
    js_seti(u, "uid", m->user.uid);
    js_seti(u, "gid", m->user.gid);
    for (size_t i = 0; i < m->user.ngroups; i++)
        json_array_append_new(js_suba(u, "additionalGids"), json_integer(m->user.groups[i]));
    if (cli_has(m->cli, "group-add") && m->ids.uids && idmap_single(&m->ids))
        log_warn("--group-add has no effect: the container has one id only ('skiff doctor' says "
                 "how to get more)");
    js_set(proc, "args", js_strv(&m->args));
    js_set(proc, "env", js_strv(&m->env));
    js_sets(proc, "cwd", abs);
    if (cli_has(m->cli, "oom-score-adj"))
        js_seti(proc, "oomScoreAdj", cli_int(m->cli, "oom-score-adj", 0));
    struct winsize ws;
    if (m->tty && !ioctl(0, TIOCGWINSZ, &ws)) {
        js_seti(js_sub(proc, "consoleSize"), "height", ws.ws_row);
        js_seti(js_sub(proc, "consoleSize"), "width", ws.ws_col);
    }
    return make_caps(m, proc, ret_caps, e) || make_rlimits(m, proc, e) ? -1 : 0;
}

/* A size that may be -1, without limit. */
static int resource_bytes(const struct cli *c, const char *flag, json_t *into, const char *key,
                          struct err *e) {
    if (!cli_has(c, flag)) return 0;
    const char *v = cli_text(c, flag);
    i64 n = strcmp(v, "-1") ? str_bytes(v) : -1;
    if (n < -1 || (n < 0 && strcmp(v, "-1")))
        return err_set(e, 0, "invalid argument \"%.40s\" for \"--%s\" flag: invalid size", v, flag);
    if (n) js_seti(into, key, n);
    return 0;
}

/* --device-read-bps and its kin: PATH:RATE. */
static int resource_throttle(const struct cli *c, const char *flag, json_t *res, const char *key,
                             struct err *e) {
    AUTO_STRV l = { 0 };
    cli_list(c, flag, &l);
    for (size_t i = 0; i < l.n; i++) {
        char *colon = strrchr(l.v[i], ':');
        struct stat st;
        i64 rate = colon ? str_bytes(colon + 1) : -1;
        if (rate < 0)
            return err_set(e, 0, "bad format for path \"%.100s\": --%s takes PATH:RATE", l.v[i],
                           flag);
        *colon = 0;
        if (stat(l.v[i], &st) || !S_ISBLK(st.st_mode))
            return err_set(e, 0, "--%s: %.100s is not a block device", flag, l.v[i]);
        json_array_append_new(js_suba(js_sub(res, "blockIO"), key),
                              json_pack("{s:I,s:I,s:I}", "major", (json_int_t)major(st.st_rdev),
                                        "minor", (json_int_t)minor(st.st_rdev), "rate",
                                        (json_int_t)rate));
    }
    return 0;
}

/* The options that limit a container, as linux.resources; what means "no limit" is left out, unless
 * a limit is being changed. */
static int resource_options(const struct cli *c, json_t *res, bool change, struct err *e) {
    static const struct {
        const char *flag, *group, *key;
        i64 least; /* 0: any */
    } INTS[] = { { "cpu-shares", "cpu", "shares", 0 },
                 { "cpu-share", "cpu", "shares", 0 },
                 { "cpu-quota", "cpu", "quota", 0 },
                 { "cpu-period", "cpu", "period", 0 },
                 { "pids-limit", "pids", "limit", 0 },
                 { "blkio-weight", "blockIO", "weight", 10 } };
    static const struct {
        const char *flag, *key;
    } IO[] = { { "device-read-bps", "throttleReadBpsDevice" },
               { "device-write-bps", "throttleWriteBpsDevice" },
               { "device-read-iops", "throttleReadIOPSDevice" },
               { "device-write-iops", "throttleWriteIOPSDevice" } };
    json_t *mem = json_object();
    AUTO_JSON *hold = json_pack("{so}", "memory", mem);
    if (resource_bytes(c, "memory", mem, "limit", e) ||
        resource_bytes(c, "memory-swap", mem, "swap", e) ||
        resource_bytes(c, "memory-reservation", mem, "reservation", e))
        return -1;
    i64 limit = js_int(mem, "limit", 0), swap = js_int(mem, "swap", 0);
    if (limit > 0 && limit < 6 << 20)
        return err_set(e, 0, "Minimum memory limit allowed is 6MB");
    if (swap > 0 && limit > 0 && swap < limit)
        return err_set(e, 0, "Minimum memoryswap limit should be larger than memory limit");
    if (!change && swap > 0 && !limit)
        return err_set(e, 0, "You should always set the Memory limit when using Memoryswap limit");
    if (!change && swap < 0 && !limit) json_object_del(mem, "swap");
    if (!change && limit < 0) json_object_del(mem, "limit");
    if (json_object_size(mem)) json_object_set(res, "memory", mem);
    if (cli_has(c, "cpus")) {
        char *end;
        double v = strtod(cli_text(c, "cpus"), &end);
        if (*end || end == cli_text(c, "cpus") || !(v >= 0) || v > 4096)
            return err_set(e, 0, "invalid argument \"%.40s\" for \"--cpus\" flag",
                           cli_text(c, "cpus"));
        if (v > 0 || change) {
            js_seti(js_sub(res, "cpu"), "quota", v > 0 ? (i64)(v * 100000) : -1);
            js_seti(js_sub(res, "cpu"), "period", 100000);
        }
    }
    for (size_t i = 0; i < ARRAY_LEN(INTS); i++) {
        i64 n = cli_int(c, INTS[i].flag, 0);
        bool none = n <= 0;
        if (!cli_has(c, INTS[i].flag) || (none && !change)) continue;
        if (n && (n < INTS[i].least || (INTS[i].least && n > 1000)))
            return err_set(e, 0, "Range of blkio weight is from 10 to 1000");
        if (n || change) js_seti(js_sub(res, INTS[i].group), INTS[i].key, none ? -1 : n);
    }
    const char *cpus = cli_text(c, "cpuset-cpus"), *mems = cli_text(c, "cpuset-mems");
    if (!str_empty(cpus)) js_sets(js_sub(res, "cpu"), "cpus", cpus);
    if (!str_empty(mems)) js_sets(js_sub(res, "cpu"), "mems", mems);
    for (size_t i = 0; i < ARRAY_LEN(IO); i++)
        if (resource_throttle(c, IO[i].flag, res, IO[i].key, e)) return -1;
    AUTO_STRV conf = { 0 };
    cli_list(c, "cgroup-conf", &conf);
    for (size_t i = 0; i < conf.n; i++) {
        char *eq = strchr(conf.v[i], '=');
        if (!eq) return err_set(e, 0, "--cgroup-conf %.60s: expected FILE=VALUE", conf.v[i]);
        *eq++ = 0;
        js_sets(js_sub(res, "unified"), conf.v[i], eq);
    }
    return 0;
}

static int make_resources(struct make *m, json_t *spec, struct err *e) {
    AUTO_JSON *res = json_object();
    if (resource_options(m->cli, res, false, e)) return -1;
    if (cli_flag(m->cli, "oom-kill-disable"))
        log_warn("--oom-kill-disable: cgroup v2 has no such switch; discarded");
    if (cli_has(m->cli, "memory-swappiness"))
        log_warn("--memory-swappiness: cgroup v2 has no such switch; discarded");
    if (json_object_size(res)) json_object_set(js_sub(spec, "linux"), "resources", res);
    if (!str_empty(cli_text(m->cli, "cgroup-parent")))
        js_sets(m->sk, "cgroupParent", cli_text(m->cli, "cgroup-parent"));
    return 0;
}

static int make_sysctls(struct make *m, json_t *spec, struct err *e) {
    AUTO_STRV l = { 0 };
    cli_list(m->cli, "sysctl", &l);
    for (size_t i = 0; i < l.n; i++) {
        char *eq = strchr(l.v[i], '=');
        if (!eq || eq == l.v[i])
            return err_set(e, 0, "sysctl '%.60s' is not allowed: expected key=value", l.v[i]);
        *eq++ = 0;
        bool net = str_prefix(l.v[i], "net."),
             ipc = str_prefix(l.v[i], "kernel.msg") || str_prefix(l.v[i], "kernel.sem") ||
                   str_prefix(l.v[i], "kernel.shm") || str_prefix(l.v[i], "fs.mqueue.");
        if ((!net && !ipc) || strstr(l.v[i], "..") || strchr(l.v[i], '/'))
            return err_set(e, 0, "sysctl '%.60s' is not allowed: it is not of a namespace", l.v[i]);
        if (net && str_eq(js_str(m->sk, "network"), "host"))
            return err_set(
                e, 0, "sysctl '%.60s' is not allowed with the host's network: add --network none",
                l.v[i]);
        js_sets(js_sub(js_sub(spec, "linux"), "sysctl"), l.v[i], eq);
    }
    return 0;
}

static int make_devices(struct make *m, json_t *spec, struct err *e) {
    AUTO_STRV l = { 0 };
    cli_list(m->cli, "device", &l);
    for (size_t i = 0; i < l.n; i++) {
        AUTO_STRV p = { 0 };
        struct stat st;
        strv_split(&p, l.v[i], ':');
        const char *perm = p.n > 2                       ? p.v[2]
                           : p.n > 1 && *p.v[1] != '/' ? p.v[1]
                                                       : "rwm";
        if (p.n > 3 || !*perm || strspn(perm, "rwm") != strlen(perm))
            return err_set(e, 0, "invalid device specification: '%.100s': invalid mode", l.v[i]);
        if (strcmp(perm, "rwm") && !strchr(perm, 'w') && geteuid())
            log_warn("--device %s: access is the host's: the mode has no effect without root",
                     l.v[i]);
        if (stat(p.v[0], &st) || !(S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode)))
            return err_set(e, 0,
                           "error gathering device information while adding custom device "
                           "\"%.100s\": not a device node",
                           p.v[0]);
        json_t *j = json_object();
        js_sets(j, "hostPath", p.v[0]);
        js_sets(j, "path", p.n > 1 && *p.v[1] == '/' ? p.v[1] : p.v[0]);
        js_sets(j, "type", S_ISCHR(st.st_mode) ? "c" : "b");
        js_seti(j, "major", major(st.st_rdev));
        js_seti(j, "minor", minor(st.st_rdev));
        json_array_append_new(js_suba(js_sub(spec, "linux"), "devices"), j);
    }
    return 0;
}

/* --health-*, over the image's HEALTHCHECK. */
static int make_health(struct make *m, struct err *e) {
    const struct cli *c = m->cli;
    const json_t *img = js_get(m->run, "Healthcheck");
    AUTO_STRV test = { 0 }, run = { 0 };
    js_to_strv(js_get(img, "Test"), &test);
    if (cli_int(c, "health-retries", 0) < 0)
        return err_set(e, 0, "--health-retries cannot be negative");
    if (cli_has(c, "health-cmd")) {
        strv_done(&test);
        strv_add(&test, "CMD-SHELL");
        strv_add(&test, cli_text(c, "health-cmd"));
    }
    if (cli_flag(c, "no-healthcheck") && cli_has(c, "health-cmd"))
        return err_set(e, 0, "--no-healthcheck conflicts with --health-* options");
    if (cli_flag(c, "no-healthcheck") || !test.n || !strcmp(test.v[0], "NONE")) return 0;
    if (!strcmp(test.v[0], "CMD-SHELL") && test.n == 2) {
        strv_add(&run, "/bin/sh");
        strv_add(&run, "-c");
        strv_add(&run, test.v[1]);
    } else if (!strcmp(test.v[0], "CMD"))
        for (size_t i = 1; i < test.n; i++) strv_add(&run, test.v[i]);
    else return err_set(e, 0, "Unknown healthcheck type '%.40s' in the image", test.v[0]);
    static const struct {
        const char *flag, *image, *key;
        i64 dflt;
    } T[] = {
        { "health-interval", "Interval", "intervalNs", 30000000000 },
        { "health-timeout", "Timeout", "timeoutNs", 30000000000 },
        { "health-start-period", "StartPeriod", "startPeriodNs", 0 },
        { "health-start-interval", "StartInterval", "startIntervalNs", 5000000000 },
    };
    json_t *h = js_sub(m->sk, "health");
    js_set(h, "test", js_strv(&run));
    js_set(h, "declared", js_strv(&test));
    for (size_t i = 0; i < ARRAY_LEN(T); i++) {
        i64 v = js_int(img, T[i].image, 0);
        if (cli_has(c, T[i].flag)) v = time_duration(cli_text(c, T[i].flag));
        if (v && v < 1000000)
            return err_set(e, 0, "%s in Healthcheck cannot be less than 1ms", T[i].image);
        js_seti(h, T[i].key, v > 0 ? v : T[i].dflt);
    }
    i64 r = cli_int(c, "health-retries", js_int(img, "Retries", 3));
    js_seti(h, "retries", r > 0 ? r : 3);
    return 0;
}

/* --log-driver, --log-opt */
static int make_log(struct make *m, struct err *e) {
    AUTO_STRV o = { 0 };
    const char *driver = cli_text(m->cli, "log-driver");
    json_t *l = js_sub(m->sk, "log");
    cli_list(m->cli, "log-opt", &o);
    if (!str_empty(driver) && strcmp(driver, "json-file") && strcmp(driver, "none") &&
        strcmp(driver, "local"))
        return err_set(e, 0,
                       "--log-driver=%.40s is not supported yet by skiff: use json-file or none",
                       driver);
    js_sets(l, "driver", str_empty(driver) ? "json-file" : driver);
    js_seti(l, "maxFile", 1);
    for (size_t i = 0; i < o.n; i++) {
        char *eq = strchr(o.v[i], '=');
        i64 n = -1;
        if (eq) *eq++ = 0;
        js_sets(js_sub(l, "options"), o.v[i], eq ? eq : "");
        if (eq && !strcmp(o.v[i], "max-size") && (n = str_bytes(eq)) > 0) js_seti(l, "maxSize", n);
        else if (eq && !strcmp(o.v[i], "max-file") && str_int(eq, 1, 1000, &n))
            js_seti(l, "maxFile", n);
        else if (eq &&
                 (!strcmp(o.v[i], "labels") || !strcmp(o.v[i], "env") || !strcmp(o.v[i], "tag") ||
                  !strcmp(o.v[i], "mode") || !strcmp(o.v[i], "compress")))
            continue;
        else
            return err_set(e, 0,
                           "unknown or invalid log opt '%.60s%s%.60s' for json-file log driver",
                           o.v[i], eq ? "=" : "", eq ? eq : "");
    }
    return 0;
}

static int make_restart(struct make *m, struct err *e) {
    const char *r = cli_text(m->cli, "restart");
    json_t *j = js_sub(m->sk, "restart");
    AUTO_FREE char *name = str_dupn(r ? r : "no", strcspn(r ? r : "no", ":"));
    const char *colon = r ? strchr(r, ':') : NULL;
    i64 max = 0;
    if (strcmp(name, "no") && strcmp(name, "always") && strcmp(name, "unless-stopped") &&
        strcmp(name, "on-failure") && *name)
        return err_set(e, 0,
                       "invalid restart policy: unknown policy '%.40s'; use one of 'no', 'always', "
                       "'on-failure', or 'unless-stopped'",
                       name);
    if (colon && (strcmp(name, "on-failure") || !str_int(colon + 1, 0, INT32_MAX, &max)))
        return err_set(e, 0,
                       "invalid restart policy format: maximum retry count must be an integer, and "
                       "only for on-failure");
    if (cli_flag(m->cli, "rm") && strcmp(name, "no") && *name)
        return err_set(e, 0, "conflicting options: cannot specify both --restart and --rm");
    js_sets(j, "name", *name ? name : "no");
    js_seti(j, "max", max);
    return 0;
}

static int signal_number(const char *s) {
    static const struct {
        const char *name;
        int n;
    } SIG[] = {
        { "HUP", 1 },     { "INT", 2 },    { "QUIT", 3 },   { "ILL", 4 },   { "TRAP", 5 },
        { "ABRT", 6 },    { "BUS", 7 },    { "FPE", 8 },    { "KILL", 9 },  { "USR1", 10 },
        { "SEGV", 11 },   { "USR2", 12 },  { "PIPE", 13 },  { "ALRM", 14 }, { "TERM", 15 },
        { "STKFLT", 16 }, { "CHLD", 17 },  { "CONT", 18 },  { "STOP", 19 }, { "TSTP", 20 },
        { "TTIN", 21 },   { "TTOU", 22 },  { "URG", 23 },   { "XCPU", 24 }, { "XFSZ", 25 },
        { "VTALRM", 26 }, { "PROF", 27 },  { "WINCH", 28 }, { "IO", 29 },   { "PWR", 30 },
        { "SYS", 31 },    { "RTMIN", 34 }, { "RTMAX", 64 },
    };
    i64 n;
    if (str_int(s, 1, 64, &n)) return (int)n;
    if (!strncasecmp(s, "SIG", 3)) s += 3;
    for (size_t i = 0; i < ARRAY_LEN(SIG); i++)
        if (!strcasecmp(s, SIG[i].name)) return SIG[i].n;
    if (!strncasecmp(s, "RTMIN+", 6) && str_int(s + 6, 0, 30, &n)) return 34 + (int)n;
    if (!strncasecmp(s, "RTMAX-", 6) && str_int(s + 6, 0, 30, &n)) return 64 - (int)n;
    return -1;
}

static int make_labels(struct make *m, struct err *e) {
    AUTO_STRV l = { 0 }, files = { 0 };
    json_t *labels = json_deep_copy(js_get(m->run, "Labels"));
    if (!json_is_object(labels)) labels = json_object();
    js_set(m->sk, "labels", labels);
    cli_list(m->cli, "label-file", &files);
    for (size_t i = 0; i < files.n; i++) {
        AUTO_BUF b = { 0 };
        char *save = NULL;
        if (file_read(AT_FDCWD, files.v[i], 1 << 20, &b, e)) return -1;
        for (char *s = b.p ? strtok_r(b.p, "\n", &save) : NULL; s; s = strtok_r(NULL, "\n", &save))
            if (*s && *s != '#') strv_add(&l, s);
    }
    cli_list(m->cli, "label", &l);
    for (size_t i = 0; i < l.n; i++) {
        char *eq = strchr(l.v[i], '=');
        if (eq) *eq++ = 0;
        if (!*l.v[i]) return err_set(e, 0, "invalid label: empty name");
        js_sets(labels, l.v[i], eq ? eq : "");
    }
    return 0;
}

/* What inspect shows beyond the plan. */
static int make_record(struct make *m, struct err *e) {
    const struct cli *c = m->cli;
    json_t *sk = m->sk;
    const char *sig = cli_text(c, "stop-signal");
    if (!sig) sig = js_str_or(m->run, "StopSignal", "SIGTERM");
    if (signal_number(sig) < 0) return err_set(e, 0, "invalid signal: %.40s", sig);
    js_sets(sk, "stopSignal", sig);
    js_seti(sk, "stopTimeout", cli_int(c, "stop-timeout", 10));
    js_setb(sk, "autoRemove", cli_flag(c, "rm"));
    js_setb(sk, "openStdin", m->interactive);
    js_setb(sk, "stdinOnce", m->interactive && !cli_flag(c, "detach"));
    js_setb(sk, "init", cli_flag(c, "init"));
    js_setb(sk, "privileged", m->privileged);
    static const char *const HOST[][2] = { { "dns", "Dns" },
                                           { "dns-option", "DnsOptions" },
                                           { "dns-search", "DnsSearch" },
                                           { "add-host", "ExtraHosts" },
                                           { "group-add", "GroupAdd" },
                                           { "security-opt", "SecurityOpt" } };
    for (size_t i = 0; i < ARRAY_LEN(HOST); i++) {
        AUTO_STRV l = { 0 };
        cli_list(c, HOST[i][0], &l);
        if (l.n) js_set(js_sub(sk, "host"), HOST[i][1], js_strv(&l));
    }
    AUTO_STRV add = { 0 }, drop = { 0 };
    cli_list(c, "cap-add", &add), cli_list(c, "cap-drop", &drop);
    if (add.n) js_set(sk, "capAdd", js_strv(&add));
    if (drop.n) js_set(sk, "capDrop", js_strv(&drop));
    js_sets(sk, "userSpec",
            cli_text(c, "user") ? cli_text(c, "user") : js_str_or(m->run, "User", ""));
    js_set(sk, "entrypoint",
           cli_text(c, "entrypoint") ? json_pack("[s]", cli_text(c, "entrypoint"))
                                     : json_deep_copy(js_get(m->run, "Entrypoint")));
    if (js_get(m->run, "ExposedPorts"))
        json_object_set(sk, "exposedPorts", js_get(m->run, "ExposedPorts"));
    if (js_get(m->run, "Volumes")) json_object_set(sk, "imageVolumes", js_get(m->run, "Volumes"));
    return make_labels(m, e) || make_health(m, e) || make_log(m, e) || make_restart(m, e) ? -1 : 0;
}

static int make_open_image(struct make *m, struct err *e) {
    struct rootfs_view v = { NULL, -1, -1 };
    if (m->image.manifest) {
        char chain[HEX_LEN + 1], path[96];
        if (layer_merge(m->s, &m->image.diff_ids, chain, e)) return -1;
        snprintf(path, sizeof path, "merged/%s.idx", chain);
        if (idx_open(m->s->dir, path, false, &m->x, e)) return -1;
        m->layers = dir_open(m->s->dir, "layers", e);
        v.x = &m->x;
        v.layers = m->layers;
        m->run = js_get(m->image.config, "config");
    } else {
        AUTO_FREE char *path = str_dup(cli_text(m->cli, "rootfs"));
        m->over = str_suffix(path, ":O");
        if (m->over) path[strlen(path) - 2] = 0;
        m->rootfs = realpath(path, NULL);
        m->rootdir = m->rootfs ? open(m->rootfs, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
        if (m->rootdir < 0) return err_set(e, errno, "root file system %s", path);
        v.dir = m->rootdir;
    }
    const char *user = cli_text(m->cli, "user"), *mode = cli_text(m->cli, "userns");
    if (!user) user = js_str_or(m->run, "User", "");
    AUTO_STRV add = { 0 };
    cli_list(m->cli, "group-add", &add);
    if (user_resolve(&v, user, &m->user, e) || user_groups(&v, &add, &m->user, e)) return -1;
    if (str_eq(mode, "keep-id") && !cli_text(m->cli, "user"))
        m->user.uid = geteuid(), m->user.gid = getegid();
    if (idmap_choose(m->s->dir, mode ? mode : "", m->user.uid, m->user.gid, &m->ids, e)) return -1;
    if (!m->image.manifest && m->over && !probe_overlay(m->s, &m->ids))
        return err_set(e, 0, "--rootfs DIR:O needs overlay, which the kernel refuses here: use DIR");
    if (!m->image.manifest) return m->driver = m->over ? "overlay" : "dir", 0;
    return (m->driver = choose_driver(m->s, &m->ids, e)) ? 0 : -1;
}

/* Builds the whole plan in m->c.config. */
static int make_spec(struct make *m, char *const *argv, struct err *e) {
    json_t *spec = m->c.config = json_object();
    u64 caps;
    js_sets(spec, "ociVersion", "1.2.0");
    m->sk = js_sub(spec, "skiff");
    m->tty = cli_flag(m->cli, "tty");
    m->interactive = cli_flag(m->cli, "interactive");
    m->privileged = cli_flag(m->cli, "privileged");
    js_sub(spec, "process");
    if (make_open_image(m, e) || make_args(m, argv, e) || make_namespaces(m, spec, e)) return -1;
    const char *hostname = js_str(spec, "hostname");
    char own[65] = "";
    gethostname(own, sizeof own - 1);
    if (!hostname) hostname = own;
    js_setb(js_sub(spec, "root"), "readonly", cli_flag(m->cli, "read-only"));
    if (make_env(m, hostname, e) || make_process(m, spec, &caps, e)) return -1;
    /* with one id root's identity calls must pretend; a user that is mapped itself needs nothing */
    bool fake = m->ids.uids && idmap_single(&m->ids) && !m->user.uid && !m->privileged;
    js_setb(m->sk, "fakeRoot", fake);
    if (fake) js_push(js_get(js_get(spec, "process"), "env"), "APT_CONFIG=/dev/.apt.conf");
    return make_security(m, spec, e) || make_resources(m, spec, e) || make_sysctls(m, spec, e) ||
                   make_devices(m, spec, e) || make_record(m, e) || make_rootfs(m, spec, e) ||
                   make_volumes(m, spec, e) || make_etc(m, spec, hostname, e)
               ? -1
               : 0;
}

/* Creates the container on disk. On failure nothing of it is left. m->image and image_name are set.
 * */
static int make_container(struct make *m, const char *name, char *const *argv, struct err *e) {
    AUTO_FD gc = lock_take(m->s->dir, "locks/gc", LOCK_SH);
    char now[40];
    id_random(m->c.id);
    m->c.s = m->s;
    /* made aside: under its name a container is whole */
    AUTO_FREE char *dir = str_fmt("tmp/ctr-%s", m->c.id), *home = str_fmt("containers/%s", m->c.id);
    if (name && !ctr_name_ok(name))
        return err_set(
            e, 0, "Invalid container name (%.100s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
            name);
    if (mkdirat(m->s->dir, dir, 0700) || (m->c.dir = dir_open(m->s->dir, dir, e)) < 0)
        return err_set(e, errno, "make %s", dir);
    int rc = -1;
    for (int i = 0; rc && i < (name ? 1 : 20); i++) {
        free(m->name);
        m->name = name ? str_dup(name) : ctr_name_random();
        rc = ctr_claim_name(m->s, m->name, m->c.id, e);
    }
    bool claimed = !rc;
    if (!rc) rc = make_spec(m, argv, e);
    if (!rc) {
        json_t *sk = m->sk;
        m->c.state = ctr_state_new();
        js_sets(sk, "id", m->c.id);
        js_sets(sk, "name", m->name);
        js_sets(sk, "image", m->image_name ? m->image_name : "");
        js_sets(sk, "imageId", m->image.id);
        js_sets(sk, "manifest", m->image.desc ? js_str(m->image.desc, "digest") : NULL);
        js_sets(sk, "created", time_rfc3339(time_now_ns(), now));
        rc = js_save(m->c.dir, "config.json", m->c.config, FILE_FRESH, e);
        if (!rc && renameat(m->s->dir, dir, m->s->dir, home))
            rc = err_set(e, errno, "rename %s", dir);
    }
    if (!rc) {
        ctr_event(&m->c, "create", NULL);
        return 0;
    }
    struct err ignored;
    struct ctr_removal x = { &m->c, dir, true };
    ctr_hide_volumes(&m->c);
    if (m->ids.uids && !idmap_single(&m->ids))
        launch_as_owner(&m->ids, ctr_remove_files, &x, &ignored);
    ctr_remove_files(&x);
    AUTO_FREE char *link = str_fmt("names/%s", m->name ? m->name : "");
    if (claimed) unlinkat(m->s->dir, link, 0);
    return -1;
}
/* }==== 24 make */

/* {==== 25 build: Dockerfiles ====
 * A Dockerfile becomes a list of instructions; each either changes the image's configuration or
 * makes a layer. RUN is a container of part 24 whose upper directory is committed; COPY and ADD
 * place files in the same kind of container without a process. The cache is a chain of keys: parent
 * key, instruction with its expanded arguments, digest of what it reads. Uses: 1-24. Source:
 * Docker's Dockerfile reference, BuildKit's shell lexer. */

/* ---- 25.1 words and variables ---- */
struct df_vars {
    const struct strv *env;  /* NAME=VALUE: looked at first */
    const struct strv *args; /* then these; NULL: none */
};

static const char *df_var(const struct df_vars *v, const char *name) {
    const char *s = v && v->env ? env_get(v->env, name) : NULL;
    return s ? s : v && v->args ? env_get(v->args, name) : NULL;
}

/* A pattern of ${name#…} and its kin: * and ? and an escaped character, no brackets (BuildKit's
 * lexer); read from its end for suffixes. */
struct df_glob {
    char *c;      /* owned: a character each */
    u8 *kind;     /* owned: 0 the character, 1 any one, 2 any number */
    bool *at[2];  /* owned: the positions that the pattern may be at */
    size_t n;
    bool back, stars;
};

static void df_glob_done(struct df_glob *g) {
    free(g->c), free(g->kind), free(g->at[0]), free(g->at[1]);
}

static void df_glob_init(struct df_glob *g, const char *pat, bool back) {
    size_t len = strlen(pat);
    *g = (struct df_glob){ mem_new(len + 1), mem_new(len + 1), { mem_new(len + 2), mem_new(len + 2) },
                           0, back, false };
    for (; *pat; pat++) {
        g->kind[g->n] = *pat == '?' ? 1 : *pat == '*' ? 2 : 0;
        g->stars |= *pat == '*';
        if (*pat == '\\' && pat[1]) pat++;
        g->c[g->n++] = *pat;
    }
    for (size_t i = 0; back && i < g->n / 2; i++) {
        char c = g->c[i];
        u8 k = g->kind[i];
        g->c[i] = g->c[g->n - 1 - i], g->kind[i] = g->kind[g->n - 1 - i];
        g->c[g->n - 1 - i] = c, g->kind[g->n - 1 - i] = k;
    }
}

/* How many characters of s (from its end with `back`) the pattern takes, at most or at least;
 * SIZE_MAX: it does not match. All positions at once, so the time is bounded. */
static size_t df_glob_match(struct df_glob *g, const char *s, size_t len, bool longest) {
    size_t best = SIZE_MAX;
    memset(g->at[0], 0, g->n + 1);
    g->at[0][0] = true;
    for (size_t i = 0;; i++) {
        bool *now = g->at[i & 1], *next = g->at[~i & 1], some = false;
        for (size_t k = 0; k < g->n; k++)
            if (now[k] && g->kind[k] == 2) now[k + 1] = true;
        if (now[g->n]) {
            best = i;
            if (!longest) return best;
        }
        if (i == len) return best;
        char c = g->back ? s[len - 1 - i] : s[i];
        memset(next, 0, g->n + 1);
        for (size_t k = 0; k < g->n; k++) {
            if (!now[k]) continue;
            if (g->kind[k] == 2) next[k] = some = true;
            else if (g->kind[k] == 1 || g->c[k] == c) next[k + 1] = some = true;
        }
        if (!some) return best;
    }
}

/* ${name#pat}, ##, %, %%: what is left of value. Caller owns it. */
static char *df_trim(const char *value, const char *pat, bool suffix, bool longest) {
    CLEANUP(df_glob_done) struct df_glob g;
    df_glob_init(&g, pat, suffix);
    size_t n = strlen(value), cut = df_glob_match(&g, value, n, longest);
    if (cut == SIZE_MAX) return str_dup(value);
    return suffix ? str_dupn(value, n - cut) : str_dup(value + cut);
}

enum { DF_REPLACE_MAX = 8192 }; /* bytes of a value in which a pattern with * is searched for */

/* ${name/pat/rep}, // for all. Caller owns it; NULL: error. */
static char *df_replace(const char *value, const char *pat, const char *rep, bool all,
                        struct err *e) {
    CLEANUP(df_glob_done) struct df_glob g;
    struct buf out = { 0 };
    df_glob_init(&g, pat, false);
    size_t n = strlen(value);
    if (g.stars && n > DF_REPLACE_MAX)
        return err_set(e, 0, "a value of %zu bytes is too long to be searched for '%.40s'", n, pat),
               NULL;
    buf_add(&out, "", 0);
    for (size_t i = 0; i < n;) {
        size_t hit = df_glob_match(&g, value + i, g.stars || n - i < g.n ? n - i : g.n, true);
        if (hit == SIZE_MAX || !hit) {
            buf_addc(&out, value[i++]);
            continue;
        }
        buf_adds(&out, rep);
        i += hit;
        if (!all) {
            buf_adds(&out, value + i);
            break;
        }
    }
    return buf_steal(&out);
}

enum {
    DF_NEST = 16,
    DF_VALUE_MAX = 1 << 20 /* bytes of a value: execve(2) takes 128 KiB */
};

/* Mutual recursion: a default inside ${…} is a word itself. */
static int df_word(const char **p, const char *stop, char esc, const struct df_vars *v,
                   struct buf *out, int depth, struct err *e);

static int df_dollar(const char **p, char esc, const struct df_vars *v, struct buf *out, int depth,
                     struct err *e) {
    const char *s = *p + 1;
    char name[256];
    size_t n = 0;
    bool brace = *s == '{';
    s += brace;
    if (isalpha((u8)*s) || *s == '_')
        while ((isalnum((u8)*s) || *s == '_') && n < sizeof name - 1) name[n++] = *s++;
    else
        while (isdigit((u8)*s) && n < sizeof name - 1) name[n++] = *s++;
    name[n] = 0;
    if (out->n > DF_VALUE_MAX) return err_set(e, 0, "the value is longer than %d", DF_VALUE_MAX);
    if (!n && !brace && *s && strchr("@*#?-$!", *s)) { /* a shell's parameters: empty here */
        *p = s + 1;
        return 0;
    }
    if (!n) {
        if (brace) return err_set(e, 0, "bad substitution near '%.40s'", *p);
        buf_addc(out, '$');
        ++*p;
        return 0;
    }
    const char *value = df_var(v, name);
    if (!brace || *s == '}') {
        buf_adds(out, value ? value : "");
        *p = s + brace;
        return 0;
    }
    bool colon = *s == ':';
    s += colon;
    char op = *s++;
    bool twice = (op == '#' || op == '%' || op == '/') && *s == op;
    s += twice;
    AUTO_BUF word = { 0 }, rep = { 0 };
    buf_add(&word, "", 0), buf_add(&rep, "", 0);
    if (!op) return err_set(e, 0, "missing '}' in substitution of ${%s}", name);
    if (!strchr("-+?#%/", op) || depth > DF_NEST)
        return err_set(e, 0, "unsupported modifier (%c) in substitution of ${%s}", op, name);
    if (df_word(&s, op == '/' ? "/}" : "}", esc, v, &word, depth + 1, e)) return -1;
    if (op == '/' && *s != '/')
        return err_set(e, 0, "missing '/' in the substitution of ${%s/…}", name);
    if (op == '/' && (s++, df_word(&s, "}", esc, v, &rep, depth + 1, e))) return -1;
    if (*s != '}') return err_set(e, 0, "missing '}' in substitution of ${%s}", name);
    bool set = value && (!colon || *value);
    if (op == '-') buf_adds(out, set ? value : word.p);
    else if (op == '+') buf_adds(out, set ? word.p : "");
    else if (op == '?') {
        if (!set) return err_set(e, 0, "%s: %s", name, *word.p ? word.p : "not set");
        buf_adds(out, value);
    } else {
        AUTO_FREE char *r = op == '/' ? df_replace(value ? value : "", word.p, rep.p, twice, e)
                                      : df_trim(value ? value : "", word.p, op == '%', twice);
        if (!r) return -1;
        buf_adds(out, r);
    }
    *p = s + 1;
    return 0;
}

/* One word: quotes taken off, escapes and variables done, up to a character of `stop` or the end.
 * */
static int df_word(const char **p, const char *stop, char esc, const struct df_vars *v,
                   struct buf *out, int depth, struct err *e) {
    const char *s = *p;
    while (*s && !strchr(stop, *s)) {
        if (*s == '\'') {
            const char *end = strchr(s + 1, '\'');
            if (!end)
                return err_set(
                    e, 0, "unexpected end of statement while looking for matching single-quote");
            buf_add(out, s + 1, (size_t)(end - s - 1));
            s = end + 1;
        } else if (*s == '"') {
            for (s++; *s != '"';) {
                if (!*s)
                    return err_set(
                        e, 0,
                        "unexpected end of statement while looking for matching double-quote");
                if (*s == esc && s[1] && (strchr("\"$", s[1]) || s[1] == esc))
                    buf_addc(out, s[1]), s += 2;
                else if (*s == '$' && v) {
                    if (df_dollar(&s, esc, v, out, depth, e)) return -1;
                } else buf_addc(out, *s++);
            }
            s++;
        } else if (*s == esc && s[1]) {
            buf_addc(out, s[1]);
            s += 2;
        } else if (*s == '$' && v) {
            if (df_dollar(&s, esc, v, out, depth, e)) return -1;
        } else buf_addc(out, *s++);
    }
    *p = s;
    return 0;
}

/* All words of a line. v NULL: variables stay. */
static int df_words(const char *text, char esc, const struct df_vars *v, struct strv *ret,
                    struct err *e) {
    for (const char *s = text;;) {
        s += strspn(s, " \t\n");
        if (!*s) return 0;
        struct buf b = { 0 };
        buf_add(&b, "", 0);
        int rc = df_word(&s, " \t\n", esc, v, &b, 0, e);
        strv_take(ret, buf_steal(&b));
        if (rc) return -1;
    }
}

/* The whole text as one word: spaces stay. Caller owns *ret. */
static int df_text(const char *text, char esc, const struct df_vars *v, char **ret, struct err *e) {
    struct buf b = { 0 };
    buf_add(&b, "", 0);
    int rc = df_word(&text, "", esc, v, &b, 0, e);
    *ret = buf_steal(&b);
    return rc;
}

/* The exec form ["a", "b"]; NULL: it is the shell form. */
static json_t *df_json(const char *text) {
    text += strspn(text, " \t");
    if (*text != '[') return NULL;
    json_t *j = json_loads(text, JSON_ALLOW_NUL, NULL), *v;
    size_t i;
    bool strings = json_is_array(j);
    json_array_foreach (j, i, v) strings &= json_is_string(v);
    if (!strings) js_decref(&j);
    return j;
}

/* ---- 25.2 instructions that change the configuration ---- */

/* CMD, ENTRYPOINT, RUN: exec form as it is, shell form behind the shell. */
static json_t *df_command(const json_t *run, const char *text) {
    json_t *j = df_json(text);
    if (j) return j;
    j = json_is_array(js_get(run, "Shell")) ? json_deep_copy(js_get(run, "Shell"))
                                            : json_pack("[ss]", "/bin/sh", "-c");
    js_push(j, text);
    return j;
}

/* NAME=VALUE pairs of ENV and LABEL; the old "NAME rest of line" too. */
static int df_pairs(const char *what, const char *text, char esc, const struct df_vars *v,
                    struct strv *ret, struct err *e) {
    AUTO_STRV w = { 0 };
    size_t n = strcspn(text, " \t=");
    if (text[n] != '=') {
        const char *rest = text + n + strspn(text + n, " \t");
        AUTO_FREE char *val = NULL;
        if (!*rest) return err_set(e, 0, "%s must have two arguments", what);
        if (df_text(rest, esc, v, &val, e)) return -1;
        strv_take(ret, str_fmt("%.*s=%s", (int)n, text, val));
        return 0;
    }
    if (df_words(text, esc, v, &w, e)) return -1;
    for (size_t i = 0; i < w.n; i++) {
        if (!strchr(w.v[i], '='))
            return err_set(
                e, 0, "Syntax error - can't find = in \"%.100s\". Must be of the form: name=value",
                w.v[i]);
        if (*w.v[i] == '=') return err_set(e, 0, "%s names can not be blank", what);
        strv_add(ret, w.v[i]);
    }
    return 0;
}

static int df_healthcheck(json_t *run, const char *text, struct err *e) {
    static const struct {
        const char *flag, *key;
    } T[] = { { "--interval=", "Interval" },
              { "--timeout=", "Timeout" },
              { "--start-period=", "StartPeriod" },
              { "--start-interval=", "StartInterval" } };
    json_t *h = json_object();
    js_set(run, "Healthcheck", h);
    while (str_prefix(text, "--")) {
        size_t n = strcspn(text, " \t");
        AUTO_FREE char *flag = str_dupn(text, n);
        bool known = false;
        i64 r;
        for (size_t i = 0; i < ARRAY_LEN(T); i++)
            if (str_prefix(flag, T[i].flag)) {
                i64 ns = time_duration(flag + strlen(T[i].flag));
                if (ns < 0) return err_set(e, 0, "HEALTHCHECK: invalid duration in %s", flag);
                js_seti(h, T[i].key, ns);
                known = true;
            }
        if (str_prefix(flag, "--retries=") && str_int(flag + 10, 0, 1000000, &r))
            js_seti(h, "Retries", r), known = true;
        if (!known) return err_set(e, 0, "HEALTHCHECK: unknown flag: %s", flag);
        text += n + strspn(text + n, " \t");
    }
    if (!strcasecmp(text, "NONE")) js_set(h, "Test", json_pack("[s]", "NONE"));
    else if (!strncasecmp(text, "CMD", 3) && (text[3] == ' ' || text[3] == '\t')) {
        const char *cmd = text + 3 + strspn(text + 3, " \t");
        json_t *exec = df_json(cmd), *test = json_pack("[s]", exec ? "CMD" : "CMD-SHELL");
        if (exec) json_array_extend(test, exec), json_decref(exec);
        else js_push(test, cmd);
        js_set(h, "Test", test);
    } else return err_set(e, 0, "Unknown type \"%.20s\" in HEALTHCHECK (try CMD)", text);
    return 0;
}

static int df_expose(json_t *run, const char *text, char esc, const struct df_vars *v,
                     struct err *e) {
    AUTO_STRV w = { 0 };
    if (df_words(text, esc, v, &w, e)) return -1;
    for (size_t i = 0; i < w.n; i++) {
        char *slash = strchr(w.v[i], '/'), *dash = strchr(w.v[i], '-');
        for (char *c = slash; c && *c; c++) *c = (char)tolower((u8)*c);
        const char *proto = slash ? slash + 1 : "tcp";
        if (slash) *slash = 0;
        if (dash) *dash = 0;
        i64 from, to;
        if (!str_int(w.v[i], 1, 65535, &from) || (dash && !str_int(dash + 1, 1, 65535, &to)))
            return err_set(e, 0, "invalid containerPort: %.40s", w.v[i]);
        if (!dash) to = from;
        for (; from <= to; from++) {
            AUTO_FREE char *port = str_fmt("%" PRId64 "/%s", from, proto);
            js_set(js_sub(run, "ExposedPorts"), port, json_object());
        }
    }
    return 0;
}

/* Applies one instruction to an image configuration. Returns 1 when it is not one of these. */
static int df_configure(json_t *config, const char *name, const char *text, char esc,
                        const struct df_vars *v, struct err *e) {
    json_t *run = js_sub(config, "config");
    AUTO_STRV list = { 0 };
    AUTO_FREE char *one = NULL;
    if (!*text && strcasecmp(name, "CMD") && strcasecmp(name, "ENTRYPOINT"))
        return err_set(e, 0, "%s requires at least one argument", name);
    if (!strcasecmp(name, "ENV")) {
        AUTO_STRV env = { 0 };
        js_to_strv(js_get(run, "Env"), &env);
        if (df_pairs("ENV", text, esc, v, &list, e)) return -1;
        for (size_t i = 0; i < list.n; i++) env_set(&env, list.v[i]);
        js_set(run, "Env", js_strv(&env));
    } else if (!strcasecmp(name, "LABEL")) {
        if (df_pairs("LABEL", text, esc, v, &list, e)) return -1;
        for (size_t i = 0; i < list.n; i++) {
            char *eq = strchr(list.v[i], '=');
            *eq++ = 0;
            js_sets(js_sub(run, "Labels"), list.v[i], eq);
        }
    } else if (!strcasecmp(name, "CMD")) {
        js_set(run, "Cmd", df_command(run, text));
    } else if (!strcasecmp(name, "ENTRYPOINT")) {
        js_set(run, "Entrypoint", df_command(run, text));
    } else if (!strcasecmp(name, "EXPOSE")) return df_expose(run, text, esc, v, e);
    else if (!strcasecmp(name, "USER")) {
        if (df_text(text, esc, v, &one, e)) return -1;
        js_sets(run, "User", one);
    } else if (!strcasecmp(name, "WORKDIR")) {
        if (df_text(text, esc, v, &one, e)) return -1;
        AUTO_FREE char *joined =
            *one == '/' ? str_dup(one) : str_fmt("%s/%s", js_str_or(run, "WorkingDir", ""), one);
        AUTO_FREE char *clean = path_clean(joined), *abs = str_fmt("/%s", clean);
        js_sets(run, "WorkingDir", abs);
    } else if (!strcasecmp(name, "VOLUME")) {
        AUTO_JSON *j = df_json(text);
        if (j) js_to_strv(j, &list);
        else if (df_words(text, esc, v, &list, e)) return -1;
        for (size_t i = 0; i < list.n; i++) {
            if (!*list.v[i]) return err_set(e, 0, "VOLUME specified can not be an empty string");
            js_set(js_sub(run, "Volumes"), list.v[i], json_object());
        }
    } else if (!strcasecmp(name, "STOPSIGNAL")) {
        if (df_text(text, esc, v, &one, e)) return -1;
        if (signal_number(one) < 0) return err_set(e, 0, "invalid signal: %.40s", one);
        js_sets(run, "StopSignal", one);
    } else if (!strcasecmp(name, "HEALTHCHECK")) return df_healthcheck(run, text, e);
    else if (!strcasecmp(name, "SHELL")) {
        json_t *j = df_json(text);
        if (!j || !json_array_size(j))
            return json_decref(j), err_set(e, 0, "SHELL requires the arguments to be in JSON form");
        js_set(run, "Shell", j);
    } else if (!strcasecmp(name, "MAINTAINER")) js_sets(config, "author", text);
    else if (!strcasecmp(name, "ONBUILD")) {
        if (!strncasecmp(text, "ONBUILD", 7) || !strncasecmp(text, "FROM", 4) ||
            !strncasecmp(text, "MAINTAINER", 10))
            return err_set(e, 0, "%.*s isn't allowed as an ONBUILD trigger",
                           (int)strcspn(text, " "), text);
        js_push(js_suba(run, "OnBuild"), text);
    } else return 1;
    return 0;
}

/* One line of --change. */
static int config_change(json_t *config, const char *line, struct err *e) {
    AUTO_STRV env = { 0 };
    AUTO_FREE char *name = str_dupn(line, strcspn(line, " \t"));
    const char *text = line + strlen(name);
    js_to_strv(js_path(config, "config.Env"), &env);
    struct df_vars v = { &env, NULL };
    int rc = df_configure(config, name, text + strspn(text, " \t"), '\\', &v, e);
    return rc == 1 ? err_set(e, 0, "%.40s is not a valid change command", name) : rc;
}

/* ---- 25.3 a container's changes as a layer ---- */

/* Says an error of a visiting child, who has no other way; exit status 1. */
static int visit_fail(const struct err *e) {
    AUTO_FREE char *s = str_printable(e->msg);
    fprintf(stderr, "skiff: %s\n", s);
    return 1;
}

struct committing {
    struct ctr *k;
    int fd;
    i64 clamp;
    struct idx *lower; /* owned: the layers below, newest first */
    size_t lowers;
    const json_t *owners;
    bool one_id;
};

/* What the launcher put into the upper for its mounts: no change of the container's own. Paths
 * without the leading slash. */
static void ctr_mount_points(const struct ctr *k, struct strv *ret) {
    size_t i;
    json_t *m;
    json_array_foreach (js_get(k->config, "mounts"), i, m)
        strv_add(ret, js_str_or(m, "destination", "/") + 1);
}

/* Takes a mount point that was made for a mount out of the upper again, and the directories above
 * it that are there for nothing else. */
static void commit_unstub(const struct tarring *t, int upper, const char *path) {
    struct stat st;
    AUTO_FREE char *p = str_dup(path);
    if (!fstatat(upper, p, &st, AT_SYMLINK_NOFOLLOW) && !tar_lower(t, p) &&
        (S_ISDIR(st.st_mode) || (S_ISREG(st.st_mode) && !st.st_size)))
        unlinkat(upper, p, S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0);
    for (char *slash; (slash = strrchr(p, '/'));) {
        *slash = 0;
        const struct idx_inode *low = tar_lower(t, p);
        if (fstatat(upper, p, &st, AT_SYMLINK_NOFOLLOW) ||
            (low && (low->mode != st.st_mode ||
                     (!t->one_id && (low->uid != st.st_uid || low->gid != st.st_gid)))))
            return;
        if (unlinkat(upper, p, AT_REMOVEDIR)) return;
    }
}

/* The same of a whole copy: what differs from the image below. */
static int commit_copy(struct tarring *t, const struct idx *x, int dir, const struct idx_inode *was,
                       const char *path, int depth, struct err *e) {
    AUTO_STRV names = { 0 };
    AUTO_DIR *s = dir_stream(dir, ".");
    struct dirent *de;
    u32 n = 0;
    const struct idx_dirent *old = idx_dir(x, was, &n);
    while (s && (de = dir_next(s))) strv_add(&names, de->d_name);
    if (names.n) qsort(names.v, names.n, sizeof *names.v, name_order);
    for (size_t i = 0; i < names.n; i++) {
        struct stat st;
        AUTO_FREE char *full = str_fmt("%s%s%s", path, *path ? "/" : "", names.v[i]);
        const struct idx_dirent *o = idx_lookup(x, was, names.v[i], strlen(names.v[i]));
        const struct idx_inode *oi = o ? idx_inode(x, o->inode) : NULL;
        if (fstatat(dir, names.v[i], &st, AT_SYMLINK_NOFOLLOW) || strv_has(t->skip, full)) continue;
        bool both = oi && S_ISDIR(oi->mode) && S_ISDIR(st.st_mode);
        bool same = oi && oi->mode == st.st_mode &&
                    (both || (oi->size == (u64)st.st_size && oi->mtime == st.st_mtime));
        if (!both && !same && tar_add(t, dir, names.v[i], full, depth, e)) return -1;
        if (!both) continue;
        if (!same && tar_dir(t, full, &st, e)) return -1;
        AUTO_FD sub = openat(dir, names.v[i], O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (sub < 0 || depth > MAX_TREE_DEPTH) return err_set(e, errno, "open directory %s", full);
        if (commit_copy(t, x, sub, oi, full, depth + 1, e)) return -1;
    }
    for (u32 i = 0; i < n; i++) {
        const char *name = idx_name(x, old[i].name, old[i].name_len);
        AUTO_FREE char *gone = name ? str_dupn(name, old[i].name_len) : str_dup("");
        AUTO_FREE char *mark = str_fmt("%s%s.wh.%s", path, *path ? "/" : "", gone);
        if (!strv_has(&names, gone) && tar_marker(t, mark, e)) return -1;
    }
    return 0;
}

/* As the upper's owner: the upper directory as a layer's tar. */
static int commit_run(void *arg) {
    struct committing *x = arg;
    struct err e = { 0 };
    struct tarring t = { .overlay = true,
                         .clamp = x->clamp,
                         .lower = x->lower,
                         .lowers = x->lowers,
                         .owners = x->owners,
                         .one_id = x->one_id };
    AUTO_STRV skip = { 0 };
    ctr_mount_points(x->k, &skip);
    t.skip = &skip;
    bool copy = str_eq(js_str(x->k->config, "skiff.rootfs.driver"), "copy");
    AUTO_FD upper =
        openat(x->k->dir, copy ? "rootfs" : "upper", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    AUTO_FREE char *path =
        str_fmt("merged/%s.idx", js_str_or(x->k->config, "skiff.rootfs.chain", ""));
    AUTO_IDX merged = { 0 };
    t.overlay = !copy;
    if (upper < 0 || (copy && idx_open(x->k->s->dir, path, false, &merged, &e)) ||
        tar_begin(&t, x->fd, &e))
        return visit_fail(&e);
    for (size_t i = 0; i < skip.n && !copy && !ctr_alive(x->k); i++)
        commit_unstub(&t, upper, skip.v[i]);
    int rc = copy ? commit_copy(&t, &merged, upper, &merged.inodes[0], "", 0, &e)
                  : tar_add(&t, upper, ".", "", 0, &e);
    if (tar_end(&t, &e) || rc) return visit_fail(&e);
    return 0;
}

/* The container's changes as a stored layer. With one id the files' owners are not those of the
 * image: diff_ids (the layers below) and owners (may be NULL) tell them. */
static int ctr_commit_layer(struct ctr *k, i64 clamp, const json_t *owners,
                            const struct strv *diff_ids, json_t **ret_desc, char *ret_diff,
                            struct err *e) {
    int p[2];
    struct plan plan = { 0 };
    if (plan_parse(k->config, &plan, e)) return -1;
    if (!strcmp(plan.driver, "dir")) {
        err_set(e, 0, "a container of --rootfs has no image to commit a change of");
        plan_done(&plan);
        return -1;
    }
    if (pipe2(p, O_CLOEXEC)) return err_set(e, errno, "pipe");
    struct committing x = { .k = k, .fd = p[1], .clamp = clamp, .owners = owners };
    x.one_id = idmap_single(&plan.ids);
    x.lower = mem_new((diff_ids->n + 1) * sizeof *x.lower);
    for (size_t i = diff_ids->n; i-- > 0;) {
        char path[96];
        snprintf(path, sizeof path, "layers/%s.idx", digest_hex(diff_ids->v[i]));
        if (!idx_open(k->s->dir, path, false, &x.lower[x.lowers], e)) x.lowers++;
    }
    fflush(NULL);
    pid_t pid = fork();
    if (!pid) {
        close(p[0]);
        _exit(launch_as_owner(&plan.ids, commit_run, &x, e) ? 1 : 0);
    }
    close(p[1]);
    struct src_fd f = { { src_fd_read }, p[0] };
    int rc = pid < 0 ? err_set(e, errno, "fork")
                     : layer_add(k->s, &f.src, NULL, ret_desc, ret_diff, e),
        status = 0;
    close(p[0]);
    if (pid > 0) waitpid(pid, &status, 0);
    plan_done(&plan);
    while (x.lowers) idx_close(&x.lower[--x.lowers]);
    free(x.lower);
    if (!rc && status) {
        json_decref(*ret_desc);
        return err_set(e, 0, "reading the container's changes failed");
    }
    return rc;
}

/* Appends a layer and a history entry to an image's configuration. */
static void config_add_layer(json_t *config, const char *diff, const char *created_by,
                             const char *comment, const char *created) {
    if (diff) {
        js_sets(js_sub(config, "rootfs"), "type", "layers");
        js_push(js_suba(js_sub(config, "rootfs"), "diff_ids"), diff);
    }
    json_t *h = json_object();
    js_sets(h, "created", created);
    js_sets(h, "created_by", created_by);
    js_sets(h, "comment", comment);
    if (!diff) js_setb(h, "empty_layer", true);
    json_array_append_new(js_suba(config, "history"), h);
    js_sets(config, "created", created);
}

/* ---- 25.4 parsing a Dockerfile ---- */
struct df_heredoc {
    char *name, *text;
    bool expand;
}; /* owned */

struct df_inst {
    char *name;        /* upper case; owned */
    struct strv flags; /* "--from=x" */
    char *text;        /* what follows, continuation lines joined; owned */
    int line;          /* where it starts, from 1 */
    struct df_heredoc doc[8];
    unsigned docs;
};

struct df_stage {
    char *name;           /* lower case; NULL: none */
    char *base;           /* FROM's argument, not yet expanded; owned */
    char *platform;       /* owned; NULL: none */
    struct df_inst *inst; /* owned */
    size_t n;
    int line;
};

struct dockerfile {
    struct df_inst *global; /* ARGs before the first FROM; owned */
    size_t nglobal;
    struct df_stage *stage; /* owned */
    size_t n;
    char escape;
};

enum { DF_MAX_BYTES = 16 << 20, DF_MAX_STAGES = 256, DF_MAX_INST = 4096 };

static void df_inst_done(struct df_inst *i) {
    free(i->name), free(i->text);
    strv_done(&i->flags);
    for (unsigned k = 0; k < i->docs; k++) free(i->doc[k].name), free(i->doc[k].text);
}

static void dockerfile_done(struct dockerfile *d) {
    for (size_t s = 0; s < d->n; s++) {
        for (size_t i = 0; i < d->stage[s].n; i++) df_inst_done(&d->stage[s].inst[i]);
        free(d->stage[s].inst), free(d->stage[s].name), free(d->stage[s].base),
            free(d->stage[s].platform);
    }
    for (size_t i = 0; i < d->nglobal; i++) df_inst_done(&d->global[i]);
    free(d->stage), free(d->global);
    *d = (struct dockerfile){ 0 };
}

/* Parser directives: "# escape=`" and the like, before anything else. */
static const char *df_directives(const char *s, struct dockerfile *d, int *line) {
    d->escape = '\\';
    if (str_prefix(s, "\xef\xbb\xbf")) s += 3; /* a byte order mark */
    for (;;) {
        const char *p = s + strspn(s, " \t"), *end = strchrnul(p, '\n');
        char key[16], value[64];
        if (*p != '#' || sscanf(p + 1, " %15[a-zA-Z] = %63[^ \t\r\n]", key, value) != 2) return s;
        if (strcasecmp(key, "escape") && strcasecmp(key, "syntax") && strcasecmp(key, "check"))
            return s;
        if (!strcasecmp(key, "escape") && (*value == '`' || *value == '\\') && !value[1])
            d->escape = *value;
        if (!*end) return end;
        s = end + 1;
        ++*line;
    }
}

/* The next logical line: comments and blank lines go, continuations are joined. False at the end.
 * */
static bool df_line(const char **p, int *line, char esc, struct buf *out, int *ret_first) {
    bool open = false;
    out->n = 0;
    while (**p) {
        const char *s = *p, *end = strchrnul(s, '\n');
        size_t n = (size_t)(end - s), lead = strspn(s, " \t");
        *p = *end ? end + 1 : end;
        ++*line;
        if (n && s[n - 1] == '\r') n--;
        if (lead >= n || s[lead] == '#') {
            if (!open || lead >= n || s[lead] == '#') continue;
        }
        if (!open) *ret_first = *line, s += lead, n -= lead;
        size_t cut = n;
        while (cut && (s[cut - 1] == ' ' || s[cut - 1] == '\t')) cut--;
        open = cut && s[cut - 1] == esc;
        buf_add(out, s, open ? cut - 1 : n);
        if (!open) return true;
    }
    return out->n > 0;
}

/* Heredocs named on the line: their bodies follow it. */
static int df_heredocs(const char **p, int *line, struct df_inst *i, struct err *e) {
    for (const char *s = i->text; (s = strstr(s, "<<"));) {
        const char *w = s + 2;
        bool strip = *w == '-';
        w += strip;
        char q = *w == '"' || *w == '\'' ? *w++ : 0;
        size_t n = 0;
        while (isalnum((u8)w[n]) || w[n] == '_' || w[n] == '.' || w[n] == '-') n++;
        const char *before = s; /* it must be a word of its own, after a descriptor's number */
        while (before > i->text && isdigit((u8)before[-1])) before--;
        bool word = before == i->text || before[-1] == ' ' || before[-1] == '\t';
        s += 2;
        if (!n || !word || (q && w[n] != q)) continue;
        if (i->docs == ARRAY_LEN(i->doc))
            return err_set(e, 0, "line %d: more than %zu heredocs", i->line, ARRAY_LEN(i->doc));
        struct df_heredoc *h = &i->doc[i->docs++];
        *h = (struct df_heredoc){ .name = str_dupn(w, n), .expand = !q };
        AUTO_BUF body = { 0 };
        buf_add(&body, "", 0);
        for (bool found = false; !found;) {
            if (!**p) return err_set(e, 0, "line %d: unterminated heredoc %s", i->line, h->name);
            const char *l = *p, *end = strchrnul(l, '\n');
            *p = *end ? end + 1 : end;
            ++*line;
            size_t len = (size_t)(end - l);
            if (strip)
                while (len && *l == '\t') l++, len--;
            found = len == strlen(h->name) && !strncmp(l, h->name, len);
            if (!found) buf_add(&body, l, len), buf_addc(&body, '\n');
        }
        h->text = buf_steal(&body);
        s = w + n;
    }
    return 0;
}

static int df_inst_parse(const char *l, int first, const char **p, int *line, struct df_inst *i,
                         struct err *e) {
    static const char KNOWN[] = "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL "
                                "MAINTAINER ONBUILD RUN SHELL STOPSIGNAL USER VOLUME WORKDIR";
    size_t n = strcspn(l, " \t");
    *i = (struct df_inst){ .name = str_dupn(l, n), .line = first };
    for (char *s = i->name; *s; s++) *s = (char)toupper((u8)*s);
    if (!word_in(KNOWN, i->name, n))
        return err_set(e, 0, "line %d: unknown instruction: %.40s", first, i->name);
    l += n + strspn(l + n, " \t");
    bool takes_flags = word_in("ADD COPY FROM RUN", i->name, n);
    while (takes_flags && str_prefix(l, "--")) {
        size_t k = strcspn(l, " \t");
        strv_take(&i->flags, str_dupn(l, k));
        l += k + strspn(l + k, " \t");
    }
    i->text = str_dup(l);
    for (size_t k = strlen(i->text); k && strchr(" \t\r", i->text[k - 1]); k--) i->text[k - 1] = 0;
    if (!*i->text && !word_in("CMD ENTRYPOINT", i->name, n))
        return err_set(e, 0, "line %d: %s requires at least one argument", first, i->name);
    return word_in("RUN COPY ADD", i->name, n) ? df_heredocs(p, line, i, e) : 0;
}

/* "base [AS name]" */
static int df_from(struct df_stage *s, const struct df_inst *i, struct err *e) {
    AUTO_STRV w = { 0 }, parts = { 0 };
    strv_split(&parts, i->text, ' ');
    for (size_t k = 0; k < parts.n; k++)
        if (*parts.v[k]) strv_add(&w, parts.v[k]);
    if (w.n != 1 && !(w.n == 3 && !strcasecmp(w.v[1], "AS")))
        return err_set(e, 0,
                       "line %d: FROM requires either one or three arguments: FROM image [AS name]",
                       i->line);
    s->base = str_dup(w.v[0]);
    s->line = i->line;
    if (w.n == 3) {
        s->name = str_dup(w.v[2]);
        for (char *c = s->name; *c; c++) *c = (char)tolower((u8)*c);
        if (!isalpha((u8)*s->name) ||
            strspn(s->name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != strlen(s->name))
            return err_set(e, 0,
                           "line %d: invalid name for build stage: \"%.60s\", name can't start "
                           "with a number or contain symbols",
                           i->line, s->name);
    }
    for (size_t k = 0; k < i->flags.n; k++) {
        if (!str_prefix(i->flags.v[k], "--platform="))
            return err_set(e, 0, "line %d: unknown flag: %s", i->line, i->flags.v[k]);
        s->platform = str_dup(i->flags.v[k] + 11);
    }
    return 0;
}

static int dockerfile_parse(const char *text, struct dockerfile *ret, struct err *e) {
    struct dockerfile d = { 0 };
    AUTO_BUF l = { 0 };
    int line = 0, first = 0, rc = 0;
    const char *p = df_directives(text, &d, &line);
    d.stage = mem_new(DF_MAX_STAGES * sizeof *d.stage);
    while (!rc && df_line(&p, &line, d.escape, &l, &first)) {
        struct df_inst i;
        rc = df_inst_parse(l.p, first, &p, &line, &i, e);
        if (!rc && !strcmp(i.name, "FROM")) {
            if (d.n == DF_MAX_STAGES) rc = err_set(e, 0, "more than %d stages", DF_MAX_STAGES);
            else rc = df_from(&d.stage[d.n++], &i, e);
            df_inst_done(&i);
            continue;
        }
        struct df_inst **list = d.n ? &d.stage[d.n - 1].inst : &d.global;
        size_t *n = d.n ? &d.stage[d.n - 1].n : &d.nglobal;
        if (!rc && !d.n && strcmp(i.name, "ARG"))
            rc =
                err_set(e, 0, "line %d: no build stage in current context: expected FROM before %s",
                        first, i.name);
        if (!rc && *n == DF_MAX_INST) rc = err_set(e, 0, "line %d: too many instructions", first);
        if (rc) {
            df_inst_done(&i);
            break;
        }
        *list = mem_grow(*list, *n + 1, sizeof **list);
        (*list)[(*n)++] = i;
    }
    if (!rc && !d.n) rc = err_set(e, 0, "file with no instructions: expected FROM");
    if (rc && first) {
        const char *s = text;
        for (int k = 1; k < first && (s = strchr(s, '\n')); k++) s++;
        AUTO_FREE char *shown = str_dupn(s ? s : "", strcspn(s ? s : "", "\r\n")),
                       *safe = str_printable(shown);
        size_t n = strlen(e->msg);
        snprintf(e->msg + n, sizeof e->msg - n, "\n  %d | %.200s", first, safe);
    }
    if (rc) dockerfile_done(&d);
    else *ret = d;
    return rc;
}

/* ---- 25.5 .dockerignore ---- */

/* Docker's pattern rules: "**" any number of directories, "!" takes back, later lines win. */
static bool ignore_match(const char *pat, const char *path) {
    AUTO_STRV p = { 0 }, c = { 0 };
    strv_split(&p, pat, '/');
    strv_split(&c, path, '/');
    /* does the pattern from component i on match the path from component j on? A row an i */
    AUTO_FREE bool *row = mem_new(c.n + 1);
    for (size_t i = p.n; i-- > 0;) {
        bool last = i + 1 == p.n, any = !strcmp(p.v[i], "**"), below = false;
        for (size_t j = c.n; j-- > 0;) {
            bool here = row[j];
            if (any) row[j] = last || here || row[j + 1];
            else /* a matched directory takes all below it along */
                row[j] = !fnmatch(p.v[i], c.v[j], 0) && (last || below);
            below = here;
        }
    }
    return row[0];
}

static bool ignored(const struct strv *patterns, const char *path) {
    bool out = false;
    for (size_t i = 0; i < patterns->n; i++) {
        const char *p = patterns->v[i];
        bool back = *p == '!';
        if (ignore_match(p + back, path)) out = !back;
    }
    return out;
}

static void ignore_load(int dir, const char *name, struct strv *ret) {
    AUTO_BUF b = { 0 };
    struct err e;
    char *save = NULL;
    if (file_read(dir, name, 1 << 20, &b, &e)) return;
    for (char *l = b.p ? strtok_r(b.p, "\n", &save) : NULL; l; l = strtok_r(NULL, "\n", &save)) {
        if (str_prefix(l, "\xef\xbb\xbf")) l += 3;
        l += strspn(l, " \t");
        for (size_t n = strlen(l); n && strchr(" \t\r", l[n - 1]); n--) l[n - 1] = 0;
        if (!*l || *l == '#') continue;
        bool back = *l == '!';
        AUTO_FREE char *clean = path_clean(l + back);
        strv_take(ret, str_fmt("%s%s", back ? "!" : "", clean));
    }
}

/* ---- 25.6 sources of COPY ---- */

/* The files that a COPY reads: below a directory (the context) or in an index (a stage, an image).
 * */
struct copy_src {
    int dir; /* the context; -1: idx */
    const struct idx *x;
    struct packs *packs;
    const struct strv *ignore;
    struct strv exclude;
};

static bool copy_skips(const struct copy_src *c, const char *path) {
    return (c->ignore && ignored(c->ignore, path)) || ignored(&c->exclude, path);
}

/* Digests a file or tree of the context: names, modes, contents; not times, not owners (they become
 * 0). */
static int digest_dir(const struct copy_src *c, int dir, const char *name, const char *path,
                      const char *as, struct sha *h, int depth, struct err *e) {
    struct stat st;
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW)) return err_set(e, errno, "%s", path);
    bool skip = *path && copy_skips(c, path);
    if (skip && !S_ISDIR(st.st_mode)) return 0;
    AUTO_FREE char *head = str_fmt("%s\n%o\n", as, st.st_mode);
    if (!skip) sha_add(h, head, strlen(head));
    if (S_ISLNK(st.st_mode)) {
        char to[PATH_MAX];
        ssize_t k = readlinkat(dir, name, to, sizeof to);
        if (k > 0) sha_add(h, to, (size_t)k);
    } else if (S_ISREG(st.st_mode)) {
        AUTO_FD fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        char buf[65536];
        if (fd < 0) return err_set(e, errno, "open %s", path);
        for (ssize_t k; (k = read(fd, buf, sizeof buf));) {
            if (k < 0) return err_set(e, errno, "read %s", path);
            sha_add(h, buf, (size_t)k);
        }
    } else if (S_ISDIR(st.st_mode)) {
        AUTO_STRV names = { 0 };
        AUTO_DIR *d = depth < MAX_TREE_DEPTH ? dir_stream(dir, name) : NULL;
        struct dirent *de;
        if (!d) return err_set(e, errno, "open directory %s", path);
        while ((de = dir_next(d))) strv_add(&names, de->d_name);
        if (names.n) qsort(names.v, names.n, sizeof *names.v, name_order);
        for (size_t i = 0; i < names.n; i++) {
            AUTO_FREE char *sub = str_fmt("%s%s%s", path, *path ? "/" : "", names.v[i]),
                           *sas = str_fmt("%s/%s", as, names.v[i]);
            if (digest_dir(c, dirfd(d), names.v[i], sub, sas, h, depth + 1, e)) return -1;
        }
    }
    return 0;
}

/* The same for a tree in an index: chunk digests stand for the contents. */
static void digest_idx(const struct idx *x, const struct idx_inode *i, const char *as,
                       struct sha *h, int depth) {
    AUTO_FREE char *head = str_fmt("%s\n%o %u %u %" PRIu64 "\n", as, i->mode, i->uid, i->gid,
                                   S_ISDIR(i->mode) ? 0 : i->size);
    u32 n;
    sha_add(h, head, strlen(head));
    const char *text = S_ISLNK(i->mode) ? idx_name(x, i->data, i->count) : NULL;
    if (text) sha_add(h, text, i->count);
    const struct idx_chunk *ch = idx_chunks(x, i, &n);
    for (u32 k = 0; k < n; k++) sha_add(h, ch[k].sha, 32);
    const struct idx_dirent *d = idx_dir(x, i, &n);
    for (u32 k = 0; k < n && depth < MAX_TREE_DEPTH; k++) {
        const char *name = idx_name(x, d[k].name, d[k].name_len);
        const struct idx_inode *c = idx_inode(x, d[k].inode);
        if (!name || !c) continue;
        AUTO_FREE char *sub = str_fmt("%s/%.*s", as, d[k].name_len, name);
        digest_idx(x, c, sub, h, depth + 1);
    }
}

/* Writes an index's tree into an archive. */
static int tar_add_idx(struct tarring *t, const struct copy_src *c, const struct idx_inode *i,
                       const char *as, int depth, struct err *e) {
    const struct idx *x = c->x;
    struct archive_entry *en = archive_entry_new();
    AUTO_FREE char *link = NULL;
    u32 n;
    archive_entry_set_pathname(en, as);
    archive_entry_set_mode(en, i->mode);
    archive_entry_set_uid(en, i->uid);
    archive_entry_set_gid(en, i->gid);
    archive_entry_set_mtime(en, i->mtime, i->mtime_ns);
    archive_entry_set_size(en, S_ISREG(i->mode) ? (la_int64_t)i->size : 0);
    const char *text = S_ISLNK(i->mode) ? idx_name(x, i->data, i->count) : NULL;
    if (text) archive_entry_set_symlink(en, link = str_dupn(text, i->count));
    u64 at = 0;
    u16 left, nlen;
    u32 vlen;
    const char *s;
    const u8 *value;
    while (idx_xattr_next(x, i, &at, &left, &s, &nlen, &value, &vlen)) {
        AUTO_FREE char *key = str_dupn(s, nlen);
        archive_entry_xattr_add_entry(en, key, value, vlen);
    }
    int rc = *as && archive_write_header(t->a, en) < ARCHIVE_WARN
                 ? err_set(e, 0, "write the archive: %s", archive_error_string(t->a))
                 : 0;
    archive_entry_free(en);
    AUTO_FREE char *buf = S_ISREG(i->mode) ? mem_new(SRC_BUFFER) : NULL;
    for (u64 off = 0; !rc && buf && off < i->size;) {
        ssize_t k = packs_read(c->packs, i, buf, SRC_BUFFER, off);
        if (k <= 0) rc = err_set(e, EIO, "read %s", as);
        else if (archive_write_data(t->a, buf, (size_t)k) < 0)
            rc = err_set(e, 0, "write the archive: %s", archive_error_string(t->a));
        off += k > 0 ? (u64)k : 0;
    }
    const struct idx_dirent *d = idx_dir(x, i, &n);
    for (u32 k = 0; !rc && k < n && depth < MAX_TREE_DEPTH; k++) {
        const char *name = idx_name(x, d[k].name, d[k].name_len);
        const struct idx_inode *child = idx_inode(x, d[k].inode);
        if (!name || !child) continue;
        AUTO_FREE char *sub = str_fmt("%s%s%.*s", as, *as ? "/" : "", d[k].name_len, name);
        if (!ignored(&c->exclude, sub)) rc = tar_add_idx(t, c, child, sub, depth + 1, e);
    }
    return rc;
}

/* The context's tree, without what .dockerignore and --exclude leave out. */
static int tar_add_context(struct tarring *t, const struct copy_src *c, int dir, const char *name,
                           const char *path, const char *as, int depth, struct err *e) {
    struct stat st;
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW))
        return err_set(e, errno, "%s vanished while it was copied", path);
    bool skip = (*path && copy_skips(c, path)) || (*as && ignored(&c->exclude, as));
    if (skip && !S_ISDIR(st.st_mode)) return 0;
    if (!S_ISDIR(st.st_mode)) return tar_add(t, dir, name, as, depth, e);
    if (*as && !skip && tar_dir(t, as, &st, e)) return -1;
    AUTO_STRV names = { 0 };
    AUTO_DIR *d = depth < MAX_TREE_DEPTH ? dir_stream(dir, name) : NULL;
    struct dirent *de;
    if (!d) return err_set(e, errno, "open directory %s", path);
    while ((de = dir_next(d))) strv_add(&names, de->d_name);
    if (names.n) qsort(names.v, names.n, sizeof *names.v, name_order);
    for (size_t i = 0; i < names.n; i++) {
        AUTO_FREE char *sub = str_fmt("%s%s%s", path, *path ? "/" : "", names.v[i]),
                       *sas = str_fmt("%s%s%s", as, *as ? "/" : "", names.v[i]);
        if (tar_add_context(t, c, dirfd(d), names.v[i], sub, sas, depth + 1, e)) return -1;
    }
    return 0;
}

/* ---- 25.7 the builder ---- */
struct bstage {
    const struct df_stage *df;
    bool built, building, open; /* finished; on the way; m is a container */
    bool has_cmd;               /* CMD stood in this stage */
    char created[40];           /* when its newest layer was made */
    json_t *config, *layers;    /* owned: the image so far */
    char key[DIGEST_LEN + 1];   /* of the cache's chain */
    struct strv args;           /* ARG values in scope */
    struct make m;              /* the container whose uppers become layers */
    unsigned steps;             /* uppers moved aside: s0, s1, … */
    struct idx x;               /* merged, for COPY --from; map NULL: not yet */
};

struct build {
    const struct cli *cli;
    struct store *s;
    struct dockerfile df;
    struct bstage *stage; /* owned; as many as df.n, then images named by COPY --from */
    size_t nstages;
    int ctx; /* the context, owned; -1: none */
    struct strv ignore;
    struct strv global; /* NAME=VALUE of global ARGs and of the platform */
    i64 epoch;          /* SOURCE_DATE_EPOCH; -1: none */
    bool quiet, no_cache;
    unsigned step;
    FILE *out; /* borrowed: progress */
};

/* What one step says, in the words of BuildKit's plain progress. */
PRINTF(2, 3) static void build_say(struct build *b, const char *fmt, ...) {
    va_list ap;
    if (b->quiet) return;
    fprintf(b->out, "#%u ", b->step);
    va_start(ap, fmt);
    vfprintf(b->out, fmt, ap);
    va_end(ap);
    fputc('\n', b->out);
    fflush(b->out);
}

static const char *build_time(const struct build *b, char *out) {
    return time_rfc3339(b->epoch >= 0 ? b->epoch * 1000000000 : time_now_ns(), out);
}

/* The chain's next key. */
static void build_key(struct bstage *st, const char *what, const char *input) {
    AUTO_FREE char *text = str_fmt("%s\n%s\n%s", st->key, what, input ? input : "");
    digest_of(text, strlen(text), st->key);
}

static int build_cached(struct build *b, struct bstage *st, json_t **ret) {
    struct err e;
    AUTO_FREE char *name = str_fmt("cache/build-%s", st->key + 7);
    /* once a step had to be run its successors run above it, whatever another build has stored
     * meanwhile */
    json_t *r = b->no_cache || st->open ? NULL : js_load(b->s->dir, name, &e);
    const char *diff = js_str(r, "diff_id");
    if (r && digest_hex(diff) && layer_have(b->s, diff) &&
        blob_have(b->s, js_str(r, "layer.digest"))) {
        *ret = r;
        return 0;
    }
    json_decref(r);
    return -1;
}

static void build_remember(struct build *b, struct bstage *st, const json_t *desc,
                           const char *diff) {
    struct err e;
    AUTO_FREE char *name = str_fmt("build-%s", st->key + 7);
    build_time(b, st->created);
    AUTO_JSON *r = json_pack("{s:O,s:s,s:s}", "layer", (json_t *)(uintptr_t)desc, "diff_id", diff,
                             "created", st->created);
    AUTO_FD cache = dir_open(b->s->dir, "cache", &e);
    if (cache >= 0) js_save(cache, name, r, 0, &e);
}

/* The stage's container: made when the first step is not in the cache. */
static int build_open(struct build *b, struct bstage *st, struct err *e) {
    if (st->open) return 0;
    char *argv[] = { (char *)(uintptr_t) "/bin/true", NULL };
    st->m = (struct make){ .cli = b->cli,
                           .s = b->s,
                           .layers = -1,
                           .rootdir = -1,
                           .c = { .dir = -1 },
                           .image_name = str_dup("<build>") };
    st->m.image.manifest = json_object();
    st->m.image.config = json_pack("{s:{}}", "config");
    if (image_diff_ids(st->config, &st->m.image.diff_ids, e) ||
        make_container(&st->m, NULL, argv, e))
        return -1;
    if (!str_prefix(st->m.driver, "overlay"))
        return err_set(e, 0,
                       "build needs overlay, which this host does not allow in a user namespace "
                       "here (storage driver %s)",
                       st->m.driver);
    return st->open = true, 0;
}

static void build_close(struct bstage *st) {
    struct err e;
    if (st->m.c.config && st->m.c.dir >= 0) ctr_remove(&st->m.c, true, &e);
    make_done(&st->m);
    idx_close(&st->x);
    json_decref(st->config), json_decref(st->layers);
    strv_done(&st->args);
}

/* The step's upper becomes a lower of the next, and a layer of the image. */
static int build_seal(struct build *b, struct bstage *st, const json_t *owners, struct err *e) {
    char diff[DIGEST_LEN + 1], aside[16];
    json_t *desc = NULL;
    if (ctr_commit_layer(&st->m.c, b->epoch, owners, &st->m.image.diff_ids, &desc, diff, e))
        return -1;
    snprintf(aside, sizeof aside, "s%u", st->steps);
    char work[16];
    snprintf(work, sizeof work, "w%u", st->steps);
    if (renameat(st->m.c.dir, "upper", st->m.c.dir, aside) ||
        renameat(st->m.c.dir, "work", st->m.c.dir, work) || mkdirat(st->m.c.dir, "upper", 0755) ||
        mkdirat(st->m.c.dir, "work", 0700)) {
        json_decref(desc);
        return err_set(e, errno, "set the step's changes aside");
    }
    js_seti(js_path(st->m.c.config, "skiff.rootfs"), "steps", ++st->steps);
    strv_add(&st->m.image.diff_ids, diff);
    build_remember(b, st, desc, diff);
    json_array_append_new(st->layers, desc);
    js_push(js_suba(js_sub(st->config, "rootfs"), "diff_ids"), diff);
    return 0;
}

/* The times of cached layers stay: a build that is all cached gives the same image again. */
static void build_history(struct build *b, struct bstage *st, const char *by, bool empty) {
    json_t *h = json_object();
    if (!*st->created) build_time(b, st->created);
    js_sets(h, "created", st->created);
    js_sets(h, "created_by", by);
    js_sets(h, "comment", "skiff");
    if (empty) js_setb(h, "empty_layer", true);
    json_array_append_new(js_suba(st->config, "history"), h);
}

/* Takes a layer from the cache. */
static void build_take(struct bstage *st, const json_t *record) {
    json_array_append(st->layers, js_get(record, "layer"));
    js_push(js_suba(js_sub(st->config, "rootfs"), "diff_ids"), js_str(record, "diff_id"));
    snprintf(st->created, sizeof st->created, "%s", js_str_or(record, "created", ""));
}

/* ---- 25.8 identity of a step ---- */
struct who {
    const char *spec;
    int out;
};

static int who_run(int root, void *arg) {
    struct who *w = arg;
    struct rootfs_view v = { NULL, -1, root };
    struct user u;
    struct err e = { 0 };
    if (user_resolve(&v, w->spec, &u, &e)) return visit_fail(&e);
    u32 ids[2] = { u.uid, u.gid };
    (void)!fd_write_all(w->out, ids, sizeof ids);
    (void)!fd_write_all(w->out, u.home, sizeof u.home);
    return 0;
}

/* Looks a user up in the stage's own account files, which earlier steps may have changed. */
static int build_who(struct build *b, struct bstage *st, const char *spec, struct user *ret,
                     struct err *e) {
    *ret = (struct user){ .home = "/root" };
    i64 n;
    if (str_empty(spec) || !strcmp(spec, "root") || !strcmp(spec, "0") || !strcmp(spec, "0:0") ||
        !strcmp(spec, "root:root"))
        return 0;
    char *colon = strchr(spec, ':');
    if (colon && strspn(spec, "0123456789:") == strlen(spec) &&
        str_int(colon + 1, 0, INT32_MAX, &n)) {
        ret->gid = (u32)n;
        AUTO_FREE char *u = str_dupn(spec, (size_t)(colon - spec));
        if (!str_int(u, 0, INT32_MAX, &n)) return err_set(e, 0, "invalid user '%s'", spec);
        ret->uid = (u32)n;
        strcpy(ret->home, "/");
        return 0;
    }
    int p[2];
    if (build_open(b, st, e) || pipe2(p, O_CLOEXEC)) return -1;
    struct who w = { spec, p[1] };
    int rc = ctr_visit(&st->m.c, who_run, &w, NULL, e);
    close(p[1]);
    u32 ids[2] = { 0 };
    ssize_t k = fd_read_all(p[0], ids, sizeof ids);
    if (!rc && k == sizeof ids) fd_read_all(p[0], ret->home, sizeof ret->home);
    close(p[0]);
    if (rc || k != sizeof ids) return rc < 0 ? -1 : err_set(e, 0, "unable to find user %s", spec);
    ret->uid = ids[0];
    ret->gid = ids[1];
    return 0;
}

/* ---- 25.9 RUN ---- */

/* The words of one --mount=… of RUN. Borrowed from `kv`. */
struct run_mount {
    struct strv kv;
    const char *type, *target, *source, *from, *id, *env, *size;
    bool required, rw;
    i64 mode, uid, gid; /* -1: not told */
};

static int run_mount_parse(const char *text, struct run_mount *m, struct err *e) {
    *m = (struct run_mount){ .type = "bind", .source = "", .mode = -1, .uid = -1, .gid = -1 };
    strv_split(&m->kv, text, ',');
    for (size_t i = 0; i < m->kv.n; i++) {
        char *k = m->kv.v[i], *v = strchr(k, '=');
        if (v) *v++ = 0;
        bool yes = !v || !strcmp(v, "true");
        if (!strcmp(k, "type") && v) m->type = v;
        else if (word_in("target dst destination", k, strlen(k)) && v) m->target = v;
        else if (word_in("source src", k, strlen(k)) && v) m->source = v;
        else if (!strcmp(k, "from") && v) m->from = v;
        else if (!strcmp(k, "id") && v) m->id = v;
        else if (!strcmp(k, "size") && v) m->size = v;
        else if (!strcmp(k, "env") && v) m->env = v;
        else if (!strcmp(k, "required")) m->required = yes;
        else if (!strcmp(k, "rw") || !strcmp(k, "readwrite")) m->rw = yes;
        else if (!strcmp(k, "ro") || !strcmp(k, "readonly")) m->rw = !yes;
        else if (!strcmp(k, "mode") && v) m->mode = strtol(v, NULL, 8);
        else if (!strcmp(k, "uid") && v && str_int(v, 0, INT32_MAX, &m->uid)) continue;
        else if (!strcmp(k, "gid") && v && str_int(v, 0, INT32_MAX, &m->gid)) continue;
        else if (strcmp(k, "sharing"))
            return err_set(e, 0, "RUN --mount: unexpected key '%.60s'", k);
    }
    return 0;
}

/* Gives a file of the store to ids of the container, in the user namespace where they exist. */
struct run_owner {
    int dir;
    const char *name;
    uid_t uid;
    gid_t gid;
};
static int run_owner_set(void *arg) {
    const struct run_owner *o = arg;
    return fchownat(o->dir, o->name, o->uid, o->gid, AT_SYMLINK_NOFOLLOW) ? 1 : 0;
}

static void run_mount_own(const struct bstage *st, const struct run_mount *m, int dir,
                          const char *name) {
    struct err ignored;
    struct run_owner o = { dir, name, (uid_t)m->uid, (gid_t)m->gid };
    if ((m->uid > 0 || m->gid > 0) && !idmap_single(&st->m.ids))
        launch_as_owner(&st->m.ids, run_owner_set, &o, &ignored);
}

static int run_mount_cache(struct build *b, struct bstage *st, const struct run_mount *m,
                           json_t *mounts, const char *at, struct err *e) {
    char digest[DIGEST_LEN + 1];
    const char *key = m->id ? m->id : at;
    digest_of(key, strlen(key), digest);
    AUTO_FREE char *dir = str_fmt("cache/mount-%.32s", digest + 7);
    AUTO_FREE char *full = str_fmt("%s/%s", b->s->path, dir);
    bool fresh = faccessat(b->s->dir, dir, F_OK, 0) != 0;
    if (dir_make(b->s->dir, dir, e)) return -1;
    if (fresh) {
        fchmodat(b->s->dir, dir, m->mode >= 0 ? (mode_t)m->mode : 0755, 0);
        run_mount_own(st, m, b->s->dir, dir);
    }
    return mount_add(mounts, at, "bind", full, "rbind", false), 0;
}

/* The text of --secret id=…: from a file, or from the environment. 1: there is none of that id. */
static int run_secret_text(const char *spec, const char *want, struct buf *ret, struct err *e) {
    AUTO_STRV s = { 0 };
    const char *id = NULL, *src = NULL, *env = NULL;
    strv_split(&s, spec, ',');
    for (size_t k = 0; k < s.n; k++) {
        if (str_prefix(s.v[k], "id=")) id = s.v[k] + 3;
        else if (str_prefix(s.v[k], "src=")) src = s.v[k] + 4;
        else if (str_prefix(s.v[k], "source=")) src = s.v[k] + 7;
        else if (str_prefix(s.v[k], "env=")) env = s.v[k] + 4;
    }
    if (!str_eq(id, want)) return 1;
    if (!src && !env && getenv(id)) env = id;
    buf_add(ret, "", 0);
    if (env && getenv(env)) buf_adds(ret, getenv(env));
    else if (file_read(AT_FDCWD, src ? src : id, 512 << 10, ret, e))
        return err_wrap(e, "secret %s", want);
    return 0;
}

/* A secret is in the memory of its step's container, and nowhere else. */
static int run_mount_secret(struct build *b, struct bstage *st, const struct run_mount *m,
                            json_t *mounts, const char *at, json_t *env, struct err *e) {
    AUTO_STRV secrets = { 0 };
    const char *slash = m->target ? strrchr(m->target, '/') : NULL;
    const char *want = m->id ? m->id : slash ? slash + 1 : m->target ? m->target : "";
    AUTO_FREE char *dest = at ? str_dup(at) : str_fmt("/run/secrets/%s", want);
    cli_list(b->cli, "secret", &secrets);
    for (size_t i = 0; i < secrets.n; i++) {
        AUTO_BUF text = { 0 };
        int rc = run_secret_text(secrets.v[i], want, &text, e);
        if (rc < 0) return -1;
        if (rc) continue;
        if (m->env) { /* in the environment, and a file only where one was asked for */
            AUTO_FREE char *pair = str_fmt("%s=%s", m->env, text.p);
            js_push(env, pair);
            if (!m->target) return 0;
        }
        json_t *j = mount_text(mounts, dest, text.p, text.n, "bind,ro");
        js_seti(j, "skiffMode", m->mode >= 0 ? m->mode : 0400);
        js_seti(j, "skiffUid", m->uid > 0 ? m->uid : 0);
        js_seti(j, "skiffGid", m->gid > 0 ? m->gid : 0);
        return 0;
    }
    return m->required ? err_set(e, 0, "secret %s: not found", want) : 0;
}

/* A part of the context, read-only: a step must not change the user's own files. */
static int run_mount_bind(struct build *b, const struct run_mount *m, json_t *mounts,
                          const char *at, struct err *e) {
    char link[40], path[PATH_MAX];
    AUTO_FREE char *clean = path_clean(m->source);
    if (m->rw || m->from)
        return err_set(e, 0, "RUN --mount=type=bind with %s is not supported yet by skiff",
                       m->rw ? "rw" : "from");
    AUTO_FD src =
        b->ctx < 0 ? -1 : sys_openat2(b->ctx, *clean ? clean : ".", O_PATH, 0, RESOLVE_BENEATH);
    if (src < 0) return err_set(e, errno, "RUN --mount: source %s of the context", m->source);
    snprintf(link, sizeof link, "/proc/self/fd/%d", src);
    ssize_t k = readlink(link, path, sizeof path - 1);
    if (k < 0) return err_set(e, errno, "RUN --mount: source %s", m->source);
    path[k] = 0;
    return mount_add(mounts, at, "bind", path, "rbind,ro,rro", false), 0;
}

/* --mount=…: a mount of the step's plan; env: the step's environment. */
static int run_mount_add(struct build *b, struct bstage *st, json_t *spec,
                         const struct run_mount *m, json_t *env, struct err *e) {
    json_t *mounts = js_suba(spec, "mounts");
    const char *cwd = js_str_or(spec, "process.cwd", "/"), *sock = getenv("SSH_AUTH_SOCK");
    AUTO_FREE char *at = NULL;
    if (m->target) at = *m->target == '/' ? str_dup(m->target) : str_fmt("%s/%s", cwd, m->target);
    if (!strcmp(m->type, "secret")) return run_mount_secret(b, st, m, mounts, at, env, e);
    if (!strcmp(m->type, "ssh")) {
        if (!sock)
            return m->required ? err_set(e, 0, "RUN --mount=type=ssh: SSH_AUTH_SOCK is not set")
                               : 0;
        const char *dest = at ? at : "/run/buildkit/ssh_agent.0";
        AUTO_FREE char *pair = str_fmt("SSH_AUTH_SOCK=%s", dest);
        js_push(env, pair);
        return mount_add(mounts, dest, "bind", sock, "bind", false), 0;
    }
    if (!at) return err_set(e, 0, "RUN --mount=type=%.20s: target is required", m->type);
    if (!strcmp(m->type, "cache")) return run_mount_cache(b, st, m, mounts, at, e);
    if (!strcmp(m->type, "bind")) return run_mount_bind(b, m, mounts, at, e);
    if (strcmp(m->type, "tmpfs"))
        return err_set(e, 0, "RUN --mount: type '%.20s' is not understood", m->type);
    i64 size = m->size ? str_bytes(m->size) : -1;
    AUTO_FREE char *o =
        size >= 0 ? str_fmt("nosuid,nodev,size=%" PRId64, size) : str_dup("nosuid,nodev");
    return mount_add(mounts, at, "tmpfs", "tmpfs", o, false), 0;
}

static int run_mount(struct build *b, struct bstage *st, json_t *spec, const char *text,
                     json_t *env, struct err *e) {
    struct run_mount m;
    int rc = run_mount_parse(text, &m, e);
    if (!rc) rc = run_mount_add(b, st, spec, &m, env, e);
    strv_done(&m.kv);
    return rc;
}

/* Passes the step's output on, line by line, with its number and time. */
static void run_output(struct build *b, int fd, i64 began) {
    AUTO_BUF line = { 0 };
    char buf[16384];
    for (ssize_t k; (k = read(fd, buf, sizeof buf)) != 0;) {
        if (k < 0) {
            if (errno == EINTR) continue;
            break;
        }
        for (ssize_t i = 0; i < k; i++) {
            if (buf[i] != '\n' && line.n < 4096) {
                if (buf[i] != '\r') buf_addc(&line, buf[i]);
                continue;
            }
            double t = (double)(time_mono_ms() - began) / 1000;
            build_say(b, "%.3f %s", t, line.p ? line.p : "");
            line.n = 0;
            if (line.p) *line.p = 0;
        }
    }
    if (line.n) build_say(b, "%.3f %s", (double)(time_mono_ms() - began) / 1000, line.p);
}

/* The environment of a step: the image's, then arguments that it does not set. */
static void build_env(struct build *b, struct bstage *st, const struct user *u, struct strv *env) {
    static const char *const PROXY[] = { "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy",
                                         "FTP_PROXY",  "ftp_proxy",  "NO_PROXY",    "no_proxy",
                                         "ALL_PROXY",  "all_proxy" };
    AUTO_STRV img = { 0 }, given = { 0 };
    js_to_strv(js_path(st->config, "config.Env"), &img);
    cli_list(b->cli, "build-arg", &given);
    strv_add(env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    for (size_t i = 0; i < st->args.n; i++) env_set(env, st->args.v[i]);
    for (size_t i = 0; i < ARRAY_LEN(PROXY); i++) {
        const char *v = env_get(&given, PROXY[i]);
        AUTO_FREE char *pair = str_fmt("%s=%s", PROXY[i], v ? v : "");
        if (v) env_set(env, pair);
    }
    for (size_t i = 0; i < img.n; i++) env_set(env, img.v[i]);
    if (!env_get(env, "HOME")) strv_take(env, str_fmt("HOME=%s", *u->home ? u->home : "/"));
}

/* Runs the plan of one step; the exit status of its process, -1: not started. */
static int run_step(struct build *b, struct bstage *st, json_t *spec, struct err *e) {
    struct plan p = { 0 };
    struct launch l;
    int out[2];
    if (plan_parse(spec, &p, e)) return -1;
    if (pipe2(out, O_CLOEXEC)) return plan_done(&p), err_set(e, errno, "pipe");
    ctr_launch_init(&st->m.c, &p, &l);
    l.stdio[1] = l.stdio[2] = out[1];
    l.die_with_parent = l.volatile_upper = true;
    i64 began = time_mono_ms();
    fflush(NULL);
    int rc = launch_begin(&l, e) || launch_wait(&l, e) ? -1 : 0, status = 0;
    close(out[1]);
    if (rc) launch_abort(&l);
    else {
        run_output(b, out[0], began);
        while (waitpid(l.pid, &status, 0) < 0 && errno == EINTR) continue;
        if (l.server > 0) waitpid(l.server, NULL, 0);
        rc = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    close(out[0]);
    launch_done(&l);
    plan_done(&p);
    return rc;
}

/* The step's spec: the stage container's plan with the step's process and identity. */
static json_t *run_spec(struct build *b, struct bstage *st, const struct df_inst *in, json_t *args,
                        struct err *e) {
    struct user u;
    AUTO_STRV env = { 0 };
    const char *spec_user = js_str_or(st->config, "config.User", "");
    if (build_open(b, st, e) || build_who(b, st, spec_user, &u, e)) return NULL;
    json_t *spec = json_deep_copy(st->m.c.config), *proc = js_get(spec, "process");
    build_env(b, st, &u, &env);
    json_object_set(proc, "args", args);
    js_sets(proc, "cwd", js_str_or(st->config, "config.WorkingDir", "/"));
    if (str_empty(js_str(proc, "cwd"))) js_sets(proc, "cwd", "/");
    js_seti(js_sub(proc, "user"), "uid", u.uid);
    js_seti(js_sub(proc, "user"), "gid", u.gid);
    bool single = idmap_single(&st->m.ids);
    if (u.uid) {
        js_set(js_sub(proc, "capabilities"), "effective", json_array());
        js_set(js_sub(proc, "capabilities"), "permitted", json_array());
    }
    if (single && u.uid) { /* the one id is this user now; root's pretence is not needed */
        struct idmap one = { .uid = { { u.uid, geteuid(), 1 } },
                             .uids = 1,
                             .gid = { { u.gid, getegid(), 1 } },
                             .gids = 1 };
        json_object_del(js_get(spec, "linux"), "uidMappings");
        json_object_del(js_get(spec, "linux"), "gidMappings");
        make_idmap(js_get(spec, "linux"), &one);
        js_setb(js_get(spec, "skiff"), "fakeRoot", false);
    } else if (single) strv_add(&env, "APT_CONFIG=/dev/.apt.conf");
    json_t *env_json = js_strv(&env);
    js_set(proc, "env", env_json);
    for (size_t i = 0; i < in->flags.n; i++) {
        const char *f = in->flags.v[i];
        int rc = 0;
        AUTO_FREE char *mount = NULL;
        struct df_vars vars = { &env, &st->args };
        if (str_prefix(f, "--mount="))
            rc = df_text(f + 8, b->df.escape, &vars, &mount, e) ||
                         run_mount(b, st, spec, mount, env_json, e)
                     ? -1
                     : 0;
        else if (!strcmp(f, "--network=none")) {
            if (!str_eq(js_str(st->m.c.config, "skiff.network"), "none"))
                json_array_append_new(js_path(spec, "linux.namespaces"),
                                      json_pack("{ss}", "type", "network"));
        } else if (strcmp(f, "--network=default") && strcmp(f, "--network=host") &&
                   strcmp(f, "--security=sandbox"))
            rc = err_set(e, 0, "unknown flag: %s", f);
        if (rc) return json_decref(spec), NULL;
    }
    return spec;
}

#define RUN_SCRIPT "/dev/.script" /* where a heredoc with an interpreter of its own is mounted */

static int build_run(struct build *b, struct bstage *st, const struct df_inst *in, struct err *e) {
    AUTO_JSON *args = NULL, *record = NULL;
    AUTO_BUF key = { 0 };
    AUTO_STRV env = { 0 };
    struct user nobody = { .home = "" };
    bool script = false;
    if (in->docs == 1 && str_prefix(in->text, "<<") && !strpbrk(in->text, " \t")) {
        /* nothing but a heredoc: a script with its own interpreter, or one for the shell */
        script = str_prefix(in->doc[0].text, "#!");
        args = script ? json_pack("[s]", RUN_SCRIPT)
                      : df_command(js_get(st->config, "config"), in->doc[0].text);
        buf_adds(&key, in->doc[0].text);
    } else if (in->docs) {
        AUTO_BUF whole = { 0 };
        buf_addf(&whole, "%s\n", in->text);
        for (unsigned i = 0; i < in->docs; i++)
            buf_addf(&whole, "%s%s\n", in->doc[i].text, in->doc[i].name);
        args = df_command(js_get(st->config, "config"), whole.p);
    } else args = df_command(js_get(st->config, "config"), in->text);
    build_env(b, st, &nobody, &env);
    AUTO_FREE char *argtext = js_dump(args, JSON_COMPACT), *envtext = str_join(&st->args, "\n"),
                   *flags = str_join(&in->flags, " ");
    buf_addf(&key, "RUN %s %s\n%s", flags, argtext, envtext);
    build_key(st, key.p, NULL);
    AUTO_STRV shown = { 0 };
    js_to_strv(args, &shown);
    AUTO_FREE char *by_args = str_join(&shown, " "), *by = str_fmt("RUN %s # skiff", by_args);
    if (!build_cached(b, st, &record)) {
        build_say(b, "CACHED");
        build_take(st, record);
        build_history(b, st, by, false);
        return 0;
    }
    i64 began = time_mono_ms();
    AUTO_JSON *spec = run_spec(b, st, in, args, e);
    if (!spec) return -1;
    if (script)
        js_seti(mount_text(js_suba(spec, "mounts"), RUN_SCRIPT, in->doc[0].text,
                           strlen(in->doc[0].text), "bind,ro"),
                "skiffMode", 0755);
    /* the step sees the lowers of all steps before it */
    int rc = run_step(b, st, spec, e);
    if (rc < 0) return -1;
    if (rc)
        return err_set(e, 0, "process \"%.300s\" did not complete successfully: exit code: %d",
                       by_args, rc);
    json_t *saved = st->m.c.config; /* the step's own mount points are no changes either */
    st->m.c.config = spec;
    rc = build_seal(b, st, NULL, e);
    js_seti(js_path(saved, "skiff.rootfs"), "steps", st->steps);
    st->m.c.config = saved;
    if (rc) return -1;
    build_history(b, st, by, false);
    build_say(b, "DONE %.1fs", (double)(time_mono_ms() - began) / 1000);
    return 0;
}

/* ---- 25.10 COPY and ADD ---- */
struct copying {
    struct build *b;
    struct bstage *st;
    struct copy_src src;
    struct strv from;  /* expanded sources */
    struct strv pivot; /* with --parents: what stood before "/./" in a source */
    const char *dest;
    i64 uid, gid, mode; /* -1: as they are */
    bool add, parents;
    const struct df_inst *in;
    int pipe, other;      /* the child's end, and ours, which it closes */
    bool dir_contents;    /* one directory: its contents go to dest */
    int placed;           /* descriptor for the list of placed paths; -1 */
    bool download;        /* from a URL, which stays whole */
    bool unpack;          /* an archive is being taken apart */
    bool chown;           /* --chown was given */
    char *checksum, *tmp; /* owned: --checksum; the directory below tmp/ of a download */
    struct packs packs;
};

/* Expands the patterns of a COPY against the source; every pattern must match something. */
static int copy_glob_dir(const struct copy_src *c, int dir, const char *path, const char *pat,
                         struct strv *ret, int depth) {
    const char *slash = strchr(pat, '/');
    AUTO_FREE char *head = str_dupn(pat, slash ? (size_t)(slash - pat) : strlen(pat));
    if (!*head) return slash ? copy_glob_dir(c, dir, path, slash + 1, ret, depth) : 0;
    AUTO_STRV names = { 0 };
    if (!strpbrk(head, "*?[\\")) strv_add(&names, head);
    else {
        AUTO_DIR *d = dir_stream(dir, ".");
        struct dirent *de;
        while (d && (de = dir_next(d)))
            if (!fnmatch(head, de->d_name, 0)) strv_add(&names, de->d_name);
        if (names.n) qsort(names.v, names.n, sizeof *names.v, name_order);
    }
    for (size_t i = 0; i < names.n; i++) {
        AUTO_FREE char *sub = str_fmt("%s%s%s", path, *path ? "/" : "", names.v[i]);
        struct stat st;
        if (fstatat(dir, names.v[i], &st, AT_SYMLINK_NOFOLLOW) ||
            (copy_skips(c, sub) && !S_ISDIR(st.st_mode)))
            continue;
        if (!slash || !slash[1]) {
            bool some = false; /* an ignored directory may hold what is taken back by "!" */
            for (size_t k = 0; c->ignore && k < c->ignore->n; k++) some |= *c->ignore->v[k] == '!';
            if (!copy_skips(c, sub) || (some && S_ISDIR(st.st_mode))) strv_add(ret, sub);
            continue;
        }
        AUTO_FD next = sys_openat2(dir, names.v[i], O_RDONLY | O_DIRECTORY, 0, RESOLVE_BENEATH);
        if (next >= 0 && depth < 64) copy_glob_dir(c, next, sub, slash + 1, ret, depth + 1);
    }
    return 0;
}

static int copy_sources(struct copying *k, const char *pattern, struct err *e) {
    AUTO_FREE char *clean = path_clean(pattern);
    size_t before = k->from.n;
    if (k->src.dir >= 0) {
        if (!*clean) strv_add(&k->from, "");
        else copy_glob_dir(&k->src, k->src.dir, "", clean, &k->from, 0);
    } else if (!strpbrk(clean, "*?[")) {
        if (idx_resolve(k->src.x, clean)) strv_add(&k->from, clean);
    } else { /* a pattern in the last component */
        char *slash = strrchr(clean, '/');
        AUTO_FREE char *parent = slash ? str_dupn(clean, (size_t)(slash - clean)) : str_dup("");
        const struct idx_inode *dir = idx_resolve(k->src.x, parent);
        u32 n = 0;
        const struct idx_dirent *d = dir ? idx_dir(k->src.x, dir, &n) : NULL;
        for (u32 i = 0; i < n; i++) {
            const char *s = idx_name(k->src.x, d[i].name, d[i].name_len);
            AUTO_FREE char *name = s ? str_dupn(s, d[i].name_len) : str_dup("");
            if (!fnmatch(slash ? slash + 1 : clean, name, 0))
                strv_take(&k->from, str_fmt("%s%s%s", parent, *parent ? "/" : "", name));
        }
    }
    return k->from.n > before ? 0 : err_set(e, 0, "\"/%s\": not found", clean);
}

/* Where a symbolic link of the context leads, relative to it; NULL: out of it. Caller owns it. */
static char *copy_target(const struct copy_src *c, const char *p, struct err *e) {
    AUTO_FD real = sys_openat2(c->dir, p, O_PATH, 0, RESOLVE_IN_ROOT);
    char link[40], path[PATH_MAX], top[PATH_MAX];
    ssize_t n = -1, m = -1;
    if (real >= 0) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", real);
        n = readlink(link, path, sizeof path - 1);
        snprintf(link, sizeof link, "/proc/self/fd/%d", c->dir);
        m = readlink(link, top, sizeof top - 1);
    }
    if (n <= 0 || m <= 0 || n < m)
        return err_set(e, errno, "\"/%s\": a symbolic link out of the context", p), NULL;
    path[n] = 0;
    return path_clean(path + m);
}

static int copy_digest(struct copying *k, char *out, struct err *e) {
    struct sha h;
    u8 raw[32];
    sha_init(&h);
    for (size_t i = 0; i < k->from.n; i++) {
        const char *p = k->from.v[i], *base = strrchr(p, '/') ? strrchr(p, '/') + 1 : p;
        if (k->src.dir >= 0) {
            AUTO_FREE char *parent = str_dupn(p, base == p ? 0 : (size_t)(base - p - 1));
            AUTO_FD dir = sys_openat2(k->src.dir, *parent ? parent : ".", O_RDONLY | O_DIRECTORY, 0,
                                      RESOLVE_BENEATH);
            if (dir < 0) return err_set(e, errno, "%s of the context", p);
            struct stat st;
            if (!fstatat(dir, *base ? base : ".", &st, AT_SYMLINK_NOFOLLOW) &&
                S_ISLNK(st.st_mode)) {
                AUTO_FREE char *rel = copy_target(&k->src, p, e); /* its target is what is copied */
                if (!rel || digest_dir(&k->src, k->src.dir, *rel ? rel : ".", rel, base, &h, 0, e))
                    return -1;
                continue;
            }
            if (digest_dir(&k->src, dir, *base ? base : ".", p, base, &h, 0, e)) return -1;
        } else digest_idx(k->src.x, idx_resolve(k->src.x, p), base, &h, 0);
    }
    for (unsigned i = 0; i < k->in->docs; i++)
        sha_add(&h, k->in->doc[i].text, strlen(k->in->doc[i].text));
    sha_end(&h, raw);
    hex_of(raw, 32, out);
    return 0;
}

/* Is a source a tar archive that ADD takes apart? */
static bool add_is_archive(struct copying *k, const char *p) {
    if (!k->add || k->download || k->src.dir < 0) return false;
    AUTO_FD fd = sys_openat2(k->src.dir, p, O_RDONLY | O_NONBLOCK, 0, RESOLVE_BENEATH);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode)) return false;
    struct src_fd f = { { src_fd_read }, fd };
    struct src_inflate inf = { .src = { src_inflate_read }, .from = &f.src };
    u8 head[512];
    size_t got = 0;
    struct err e;
    for (ssize_t n;
         got < sizeof head && (n = inf.src.read(&inf.src, head + got, sizeof head - got, &e)) > 0;)
        got += (size_t)n;
    src_inflate_done(&inf);
    return got == sizeof head && !memcmp(head + 257, "ustar", 5);
}

/* In the stage's tree: lays out what comes through the pipe. */
static int copy_place(int root, void *arg) {
    struct copying *k = arg;
    struct err e = { 0 };
    fd_closep(&k->other);                                /* or the stream would never end */
    bool own = k->uid >= 0 && !(k->unpack && !k->chown); /* an archive brings its owners along */
    struct placing pl = { .root = root,
                          .uid = own ? k->uid : -1,
                          .gid = own ? k->gid : -1,
                          .chmod = k->unpack ? -1 : k->mode,
                          .keep_owner = !own,
                          .placed = k->placed };
    AUTO_FREE char *into = NULL, *rename = NULL;
    AUTO_FREE char *dest = path_clean(k->dest);
    bool to_dir = str_suffix(k->dest, "/") || k->from.n + k->in->docs > 1 || k->dir_contents ||
                  !*dest || !strcmp(k->dest, ".") || str_suffix(k->dest, "/.") || k->parents;
    if (to_dir) {
        if (place_dirs(&pl, dest, &e)) return visit_fail(&e);
        pl.into = into = str_dup(dest);
    } else {
        char *slash = strrchr(dest, '/');
        AUTO_FREE char *parent = str_dupn(dest, slash ? (size_t)(slash - dest) : 0);
        if (place_dirs(&pl, parent, &e) ||
            place_layout(root, k->dest, true, &pl, &into, &rename, &e))
            return visit_fail(&e);
    }
    return place_archive(&pl, k->pipe, &e) ? visit_fail(&e) : 0;
}

/* A heredoc's text with its variables, as the shell would do it. Caller owns *ret. */
static int doc_text(struct build *b, const struct df_heredoc *h, const struct df_vars *v,
                    char **ret, struct err *e) {
    struct buf out = { 0 };
    int rc = 0;
    buf_add(&out, "", 0);
    for (const char *s = h->text; *s && !rc;) {
        if (h->expand && *s == b->df.escape && (s[1] == '$' || s[1] == b->df.escape))
            buf_addc(&out, s[1]), s += 2;
        else if (h->expand && *s == '$') rc = df_dollar(&s, b->df.escape, v, &out, 0, e);
        else buf_addc(&out, *s++);
    }
    *ret = buf_steal(&out);
    return rc;
}

/* The name of a source under --parents: its whole path, or what follows the "/./" of its word. */
static const char *copy_name(const struct copying *k, const char *p) {
    for (size_t i = 0; i < k->pivot.n; i++) {
        size_t n = strlen(k->pivot.v[i]);
        if (n && !strncmp(p, k->pivot.v[i], n) && p[n] == '/') return p + n + 1;
    }
    return p;
}

/* Feeds the sources to the pipe as one archive. */
static int copy_feed(struct copying *k, int fd, struct err *e) {
    struct tarring t = { .clamp = k->b->epoch, .squash_owner = k->src.dir >= 0 };
    int rc = tar_begin(&t, fd, e);
    for (size_t i = 0; !rc && i < k->from.n; i++) {
        const char *p = k->from.v[i], *base = strrchr(p, '/') ? strrchr(p, '/') + 1 : p;
        AUTO_FREE char *parent = str_dupn(p, base == p ? 0 : (size_t)(base - p - 1));
        if (k->src.dir >= 0) {
            AUTO_FD dir = sys_openat2(k->src.dir, *parent ? parent : ".", O_RDONLY | O_DIRECTORY, 0,
                                      RESOLVE_BENEATH);
            struct stat st;
            if (dir < 0 || fstatat(dir, *base ? base : ".", &st, AT_SYMLINK_NOFOLLOW))
                rc = err_set(e, errno, "%s of the context", p);
            else if (S_ISLNK(st.st_mode)) { /* a named link is followed, inside the context */
                AUTO_FREE char *rel = copy_target(&k->src, p, e);
                if (!rel) rc = -1;
                else if (fstatat(k->src.dir, *rel ? rel : ".", &st, 0))
                    rc = err_set(e, errno, "%s", p);
                else
                    rc = tar_add_context(&t, &k->src, k->src.dir, *rel ? rel : ".", rel,
                                         S_ISDIR(st.st_mode) ? "" : base, 0, e);
            } else
                rc = tar_add_context(&t, &k->src, dir, *base ? base : ".", p,
                                     k->parents            ? copy_name(k, p)
                                     : S_ISDIR(st.st_mode) ? ""
                                                           : base,
                                     0, e);
        } else {
            const struct idx_inode *in = idx_resolve(k->src.x, p);
            rc = !in ? err_set(e, 0, "\"/%s\": not found", p)
                     : tar_add_idx(&t, &k->src, in,
                                   k->parents          ? copy_name(k, p)
                                   : S_ISDIR(in->mode) ? ""
                                                       : base,
                                   0, e);
        }
    }
    AUTO_STRV env = { 0 };
    js_to_strv(js_path(k->st->config, "config.Env"), &env);
    struct df_vars v = { &env, &k->st->args };
    for (unsigned i = 0; !rc && i < k->in->docs; i++) {
        AUTO_FREE char *text = NULL;
        rc = doc_text(k->b, &k->in->doc[i], &v, &text, e);
        if (!rc) rc = save_member(t.a, k->in->doc[i].name, text, -1, strlen(text), e);
    }
    struct err second;
    if (tar_end(&t, rc ? &second : e) && !rc) rc = -1;
    return rc;
}

/* The paths that a COPY placed, with their owner: what one id cannot keep in the files themselves.
 * */
static json_t *copy_owners(int fd) {
    AUTO_BUF b = { 0 };
    json_t *o = json_object();
    lseek(fd, 0, SEEK_SET);
    fd_slurp(fd, 256 << 20, &b);
    char *save = NULL;
    for (char *l = b.p ? strtok_r(b.p, "\n", &save) : NULL; l; l = strtok_r(NULL, "\n", &save)) {
        char *space = strchr(l, ' ');
        if (space) *space++ = 0, js_sets(o, space, l);
    }
    return o;
}

/* Runs one placing in the stage's tree. archive: a file of the context to take apart, or NULL. */
static int copy_once(struct copying *k, const char *archive, struct err *e) {
    int p[2] = { -1, -1 }, status = 0;
    pid_t pid = 0;
    struct err we = { 0 };
    AUTO_FD tar = archive ? sys_openat2(k->src.dir, archive, O_RDONLY, 0, RESOLVE_BENEATH) : -1;
    if (!archive && pipe2(p, O_CLOEXEC)) return err_set(e, errno, "pipe");
    k->pipe = archive ? tar : p[0];
    k->other = p[1];
    bool contents = k->dir_contents;
    k->unpack = archive != NULL;
    if (archive) k->dir_contents = true;
    int rc = ctr_visit(&k->st->m.c, copy_place, k, &pid, e);
    k->dir_contents = contents;
    fd_closep(&p[0]);
    if (!rc && !archive) {
        signal(SIGPIPE, SIG_IGN);
        rc = copy_feed(k, p[1], &we);
    }
    fd_closep(&p[1]);
    if (pid > 0) waitpid(pid, &status, 0);
    if (status) return err_set(e, 0, "placing the files failed%s%s", we.msg[0] ? ": " : "", we.msg);
    if (rc && we.msg[0]) *e = we;
    return rc;
}

/* The stage or image that --from names. Mutual recursion: a stage may have to be built first. */
static int build_stage(struct build *b, struct bstage *st, struct err *e);

static int build_from(struct build *b, const char *name, struct bstage **ret, struct err *e);

static int stage_index(struct build *b, struct bstage *st, struct err *e) {
    char chain[HEX_LEN + 1], path[96];
    AUTO_STRV diffs = { 0 };
    if (st->x.map) return 0;
    if (image_diff_ids(st->config, &diffs, e) || layer_merge(b->s, &diffs, chain, e)) return -1;
    snprintf(path, sizeof path, "merged/%s.idx", chain);
    return idx_open(b->s->dir, path, false, &st->x, e);
}

static int copy_flags(struct copying *k, const struct df_vars *v, char **ret_from, char **ret_chown,
                      struct err *e) {
    for (size_t i = 0; i < k->in->flags.n; i++) {
        const char *f = k->in->flags.v[i];
        AUTO_FREE char *val = NULL;
        const char *eq = strchr(f, '=');
        if (eq && df_text(eq + 1, k->b->df.escape, v, &val, e)) return -1;
        if (str_prefix(f, "--from=") && !k->add) *ret_from = str_dup(val);
        else if (str_prefix(f, "--chown=")) *ret_chown = str_dup(val);
        else if (str_prefix(f, "--chmod=")) {
            char *end;
            k->mode = strtol(val, &end, 8);
            if (*end || !*val || k->mode < 0 || k->mode > 07777)
                return err_set(e, 0,
                               "invalid chmod parameter: '%.20s'. it should be octal string and "
                               "between 0 and 07777",
                               val);
        } else if (str_prefix(f, "--exclude=")) strv_add(&k->src.exclude, val);
        else if (str_prefix(f, "--checksum=") && k->add)
            free(k->checksum), k->checksum = str_dup(val);
        else if (!strcmp(f, "--parents") || !strcmp(f, "--parents=true")) k->parents = true;
        else if (str_prefix(f, "--link") || str_prefix(f, "--keep-git-dir") ||
                 str_prefix(f, "--unpack"))
            continue;
        else return err_set(e, 0, "unknown flag: %s", f);
    }
    return 0;
}

static int copy_run(struct copying *k, const char *chown, struct err *e) {
    struct build *b = k->b;
    struct bstage *st = k->st;
    struct user u = { 0 };
    AUTO_JSON *owners = NULL;
    if (build_open(b, st, e)) return -1;
    k->uid = k->gid = -1;
    k->chown = chown != NULL;
    if (chown) {
        AUTO_FREE char *spec = strchr(chown, ':') ? str_dup(chown) : str_fmt("%s", chown);
        if (build_who(b, st, spec, &u, e)) return err_wrap(e, "--chown=%s", chown);
        k->uid = u.uid;
        k->gid = strchr(chown, ':') || strspn(chown, "0123456789") != strlen(chown) ? u.gid : u.uid;
    } else if (k->src.dir >= 0) k->uid = k->gid = 0;
    bool single = idmap_single(&st->m.ids);
    AUTO_FD placed = single ? openat(b->s->dir, "tmp", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600) : -1;
    k->placed = placed;
    AUTO_STRV plain = { 0 }, archives = { 0 };
    for (size_t i = 0; i < k->from.n; i++)
        strv_add(add_is_archive(k, k->from.v[i]) ? &archives : &plain, k->from.v[i]);
    for (size_t i = 0; i < archives.n; i++)
        if (copy_once(k, archives.v[i], e)) return -1;
    struct strv all = k->from;
    k->from = plain;
    int rc = plain.n || k->in->docs ? copy_once(k, NULL, e) : 0;
    k->from = all;
    if (rc) return -1;
    if (single && placed >= 0) owners = copy_owners(placed);
    return build_seal(b, st, owners, e);
}

/* ADD of a URL: downloaded into the context of a single file. */
static int add_url(struct copying *k, const char *url, const char *checksum, struct err *e) {
    struct http_req q = { .method = "GET", .url = url, .body_fd = -1 };
    AUTO_HTTP *h = http_open(&q, NULL, e);
    AUTO_BUF body = { 0 };
    char digest[DIGEST_LEN + 1];
    if (!h) return -1;
    if (h->status != 200) return err_set(e, 0, "ADD %s: HTTP %ld", url, h->status);
    if (http_slurp(h, 1u << 30, &body, e)) return -1;
    if (checksum && strcmp(digest_of(body.p, body.n, digest), checksum))
        return err_set(e, 0, "ADD %s: digest mismatch: %s, expected %s", url, digest, checksum);
    const char *base = strrchr(url, '/') ? strrchr(url, '/') + 1 : url;
    AUTO_FREE char *name = str_dupn(base, strcspn(base, "?#"));
    if (!*name || *name == '.')
        return err_set(e, 0, "ADD %s: cannot determine filename from url", url);
    AUTO_FD dir = dir_open(k->b->s->dir, "tmp", e);
    char id[HEX_LEN + 1];
    id_random(id);
    AUTO_FREE char *sub = str_fmt("add-%.16s", id);
    if (dir < 0 || mkdirat(dir, sub, 0700)) return err_set(e, errno, "temporary directory");
    AUTO_FD at = dir_open(dir, sub, e);
    if (at < 0 || file_replace(at, name, body.p ? body.p : "", body.n, 0600, 0, e)) return -1;
    k->download = true;
    k->tmp = str_fmt("tmp/%s", sub);
    k->src.dir = fd_steal(&at);
    k->src.ignore = NULL;
    if (k->mode < 0) k->mode = 0600;
    strv_add(&k->from, name);
    return 0;
}

static int build_copy(struct build *b, struct bstage *st, const struct df_inst *in, struct err *e) {
    AUTO_STRV env = { 0 }, words = { 0 };
    AUTO_FREE char *from = NULL, *chown = NULL, *dest = NULL;
    AUTO_JSON *record = NULL, *json = df_json(in->text);
    struct copying k = { .b = b,
                         .st = st,
                         .src = { .dir = b->ctx, .ignore = &b->ignore },
                         .mode = -1,
                         .add = !strcmp(in->name, "ADD"),
                         .in = in,
                         .placed = -1 };
    js_to_strv(js_path(st->config, "config.Env"), &env);
    struct df_vars v = { &env, &st->args };
    int rc = copy_flags(&k, &v, &from, &chown, e);
    if (!rc && json) js_to_strv(json, &words);
    else if (!rc) rc = df_words(in->text, b->df.escape, &v, &words, e);
    if (!rc && words.n < 2) rc = err_set(e, 0, "%s requires at least two arguments", in->name);
    if (!rc && words.n > 2 && !str_suffix(words.v[words.n - 1], "/"))
        rc = err_set(e, 0,
                     "when using %s with more than one source file, the destination must be a "
                     "directory and end with a /",
                     in->name);
    struct bstage *src = NULL;
    if (!rc && from) {
        rc = build_from(b, from, &src, e) || stage_index(b, src, e) ? -1 : 0;
        k.src = (struct copy_src){
            .dir = -1, .x = rc ? NULL : &src->x, .packs = &k.packs, .exclude = k.src.exclude
        };
    }
    int layers = rc ? -1 : dir_open(b->s->dir, "layers", e);
    if (!rc && from) packs_init(&k.packs, &src->x, layers);
    bool own_dir = false;
    for (size_t i = 0; !rc && i + 1 < words.n; i++) {
        if (str_prefix(words.v[i], "<<")) continue;
        const char *dot = strstr(words.v[i], "/./");
        if (dot) {
            AUTO_FREE char *before = str_dupn(words.v[i], (size_t)(dot - words.v[i]));
            strv_take(&k.pivot, path_clean(before));
        }
        if (k.add && (str_prefix(words.v[i], "http://") || str_prefix(words.v[i], "https://")))
            rc = add_url(&k, words.v[i], k.checksum, e), own_dir = true;
        else if (!from && b->ctx < 0)
            rc = err_set(e, 0, "there is no build context to copy %s from", words.v[i]);
        else rc = copy_sources(&k, words.v[i], e);
    }
    char digest[HEX_LEN + 1] = "";
    if (!rc) rc = copy_digest(&k, digest, e);
    if (!rc) {
        const char *to = words.v[words.n - 1];
        dest = *to == '/' ? str_dup(to)
                          : str_fmt("%s/%s", js_str_or(st->config, "config.WorkingDir", "/"), to);
        k.dest = dest;
        struct stat s;
        const struct idx_inode *i =
            from && k.from.n == 1 ? idx_resolve(k.src.x, k.from.v[0]) : NULL;
        k.dir_contents = from ? i && S_ISDIR(i->mode)
                              : k.from.n == 1 &&
                                    !fstatat(k.src.dir, *k.from.v[0] ? k.from.v[0] : ".", &s, 0) &&
                                    S_ISDIR(s.st_mode);
        AUTO_FREE char *flags = str_join(&in->flags, " "), *names = str_join(&words, " "),
                       *what = str_fmt("%s %s %s %s", in->name, flags, names, dest);
        AUTO_FREE char *by =
            str_fmt("%s %s%s%s # skiff", in->name, flags, *flags ? " " : "", names);
        build_key(st, what, digest);
        i64 began = time_mono_ms();
        if (!build_cached(b, st, &record)) {
            build_say(b, "CACHED");
            build_take(st, record);
        } else if (!(rc = copy_run(&k, chown, e)))
            build_say(b, "DONE %.1fs", (double)(time_mono_ms() - began) / 1000);
        if (!rc) build_history(b, st, by, false);
    }
    if (from && k.packs.fd) packs_done(&k.packs);
    if (own_dir) fd_closep(&k.src.dir);
    if (k.tmp) tree_remove(b->s->dir, k.tmp);
    free(k.tmp), free(k.checksum);
    fd_closep(&layers);
    strv_done(&k.from), strv_done(&k.pivot), strv_done(&k.src.exclude);
    return rc;
}

/* ---- 25.11 stages ---- */

/* ARG NAME[=default] …: a build argument wins, then the default, then a global of that name. */
static int build_arg(struct build *b, const struct df_inst *in, const struct strv *env,
                     struct strv *into, struct err *e) {
    AUTO_STRV words = { 0 }, given = { 0 };
    struct df_vars v = { env, into };
    if (df_words(in->text, b->df.escape, &v, &words, e)) return -1;
    if (!words.n) return err_set(e, 0, "ARG requires at least one argument");
    cli_list(b->cli, "build-arg", &given);
    for (size_t i = 0; i < words.n; i++) {
        AUTO_FREE char *name = str_dupn(words.v[i], strcspn(words.v[i], "="));
        const char *dflt = strchr(words.v[i], '='), *value = env_get(&given, name);
        for (size_t g = 0; !value && g < given.n; g++)
            if (!strcmp(given.v[g], name)) value = getenv(name);
        if (!value && dflt) value = dflt + 1;
        if (!value && into != &b->global) value = env_get(&b->global, name);
        if (!value) continue;
        AUTO_FREE char *pair = str_fmt("%s=%s", name, value);
        env_set(into, pair);
    }
    return 0;
}

/* WORKDIR makes its directories, owned by the USER of the moment. */
struct workdir {
    const char *path;
    u32 uid, gid;
    int placed;
};
static int workdir_run(int root, void *arg) {
    struct workdir *w = arg;
    struct err e = { 0 };
    struct placing pl = {
        .root = root, .uid = w->uid ? (i64)w->uid : -1, .gid = w->gid, .placed = w->placed
    };
    return place_dirs(&pl, w->path, &e) ? visit_fail(&e) : 0;
}

static int build_workdir(struct build *b, struct bstage *st, const struct df_inst *in,
                         const struct df_vars *v, struct err *e) {
    AUTO_JSON *record = NULL;
    if (df_configure(st->config, in->name, in->text, b->df.escape, v, e)) return -1;
    const char *path = js_str_or(st->config, "config.WorkingDir", "/");
    AUTO_FREE char *what = str_fmt("WORKDIR %s", path);
    build_key(st, what, js_str_or(st->config, "config.User", ""));
    if (!strcmp(path, "/")) {
        build_history(b, st, what, true);
        return 0;
    }
    if (!build_cached(b, st, &record)) {
        build_say(b, "CACHED");
        build_take(st, record);
    } else {
        struct user u;
        if (build_open(b, st, e) ||
            build_who(b, st, js_str_or(st->config, "config.User", ""), &u, e))
            return -1;
        AUTO_FD placed = openat(b->s->dir, "tmp", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
        struct workdir w = { path, u.uid, u.gid, placed };
        int rc = ctr_visit(&st->m.c, workdir_run, &w, NULL, e);
        if (rc) return rc < 0 ? -1 : err_set(e, 0, "WORKDIR %s failed", path);
        AUTO_JSON *owners = u.uid && placed >= 0 ? copy_owners(placed) : NULL;
        if (build_seal(b, st, owners, e)) return -1;
        build_say(b, "DONE");
    }
    build_history(b, st, what, false);
    return 0;
}

static int build_inst(struct build *b, struct bstage *st, const struct df_inst *in, struct err *e) {
    AUTO_STRV env = { 0 };
    js_to_strv(js_path(st->config, "config.Env"), &env);
    struct df_vars v = { &env, &st->args };
    if (!strcmp(in->name, "RUN")) return build_run(b, st, in, e);
    if (!strcmp(in->name, "COPY") || !strcmp(in->name, "ADD")) return build_copy(b, st, in, e);
    if (!strcmp(in->name, "WORKDIR")) return build_workdir(b, st, in, &v, e);
    AUTO_FREE char *by = str_fmt("%s %s", in->name, in->text);
    if (!strcmp(in->name, "ARG")) {
        if (build_arg(b, in, &env, &st->args, e)) return -1;
    } else {
        if (df_configure(st->config, in->name, in->text, b->df.escape, &v, e)) return -1;
        st->has_cmd |= !strcmp(in->name, "CMD");
        /* a new entry point does not go with the base image's command */
        if (!strcmp(in->name, "ENTRYPOINT") && !st->has_cmd)
            json_object_del(js_get(st->config, "config"), "Cmd");
        AUTO_FREE char *config =
            js_dump(js_get(st->config, "config"), JSON_COMPACT | JSON_SORT_KEYS);
        build_key(st, by, config);
    }
    build_history(b, st, by, true);
    return 0;
}

/* Puts file, line and text before an error. */
static int build_blame(struct build *b, const struct df_inst *in, struct err *e) {
    AUTO_FREE char *shown = str_printable(in->text), *flags = str_join(&in->flags, " ");
    const char *file = cli_text(b->cli, "file");
    return err_wrap(e, "%s:%d: %s %s%s%.120s", file && strcmp(file, "-") ? file : "Dockerfile",
                    in->line, in->name, flags, *flags ? " " : "", shown);
}

/* The image below a stage: scratch, an earlier stage, or one of the store or a registry. */
static int build_base(struct build *b, struct bstage *st, const char *base, const char *platform,
                      struct err *e) {
    char now[40];
    struct platform p;
    const char *want = platform ? platform : cli_text(b->cli, "platform");
    for (size_t i = 0; i < b->df.n; i++) {
        struct bstage *other = &b->stage[i];
        if (other == st) break;
        if (!b->df.stage[i].name || strcasecmp(b->df.stage[i].name, base)) continue;
        if (build_stage(b, other, e)) return -1;
        st->config = json_deep_copy(other->config);
        st->layers = json_deep_copy(other->layers);
        memcpy(st->key, other->key, sizeof st->key);
        memcpy(st->created, other->created, sizeof st->created);
        return 0;
    }
    if (platform_parse(want, &p, e)) return -1;
    if (!strcmp(base, "scratch")) {
        st->config = json_pack("{ss,ss,ss,s:{s:[s]},s:{s:s,s:[]},s:[]}", "architecture", p.arch,
                               "os", p.os, "created", build_time(b, now), "config", "Env",
                               "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                               "rootfs", "type", "layers", "diff_ids", "history");
        st->layers = json_array();
        snprintf(st->key, sizeof st->key, "scratch %s", p.arch);
        return 0;
    }
    AUTO_IMAGE m = { 0 };
    struct ref r;
    bool have = !cli_flag(b->cli, "pull") && !image_find(b->s, base, &m, NULL, e);
    if (have && !str_empty(want) &&
        strcmp(host_arch_word(js_str_or(m.config, "architecture", p.arch)), p.arch)) {
        image_done(&m); /* here for another machine */
        have = false;
    }
    if (!have) {
        struct pull_opts o = { want, true, tls_verify(b->cli) };
        if (ref_parse(base, &r, e) || image_pull(b->s, &r, &o, e)) return err_wrap(e, "%s", base);
        image_done(&m);
        if (image_find(b->s, base, &m, NULL, e)) return -1;
    }
    st->config = json_deep_copy(m.config);
    st->layers = json_deep_copy(js_get(m.manifest, "layers"));
    snprintf(st->key, sizeof st->key, "sha256:%s", m.id);
    if (b->epoch < 0)
        snprintf(st->created, sizeof st->created, "%s", js_str_or(m.config, "created", ""));
    return 0;
}

static int build_triggers(struct build *b, struct bstage *st, struct err *e) {
    AUTO_STRV list = { 0 };
    js_to_strv(js_path(st->config, "config.OnBuild"), &list);
    json_object_del(js_get(st->config, "config"), "OnBuild");
    for (size_t i = 0; i < list.n; i++) {
        struct df_inst in;
        const char *rest = "";
        int line = 0, rc = df_inst_parse(list.v[i], 0, &rest, &line, &in, e);
        if (!rc && build_inst(b, st, &in, e)) rc = build_blame(b, &in, e);
        df_inst_done(&in);
        if (rc) return err_wrap(e, "ONBUILD");
    }
    return 0;
}

static int build_stage(struct build *b, struct bstage *st, struct err *e) {
    AUTO_FREE char *base = NULL, *platform = NULL;
    struct df_vars v = { &b->global, NULL };
    if (st->built) return 0;
    const struct df_stage *df = st->df;
    if (st->building)
        return err_set(e, 0, "circular dependency detected on stage: %s",
                       df->name ? df->name : "0");
    st->building = true;
    if (df_text(df->base, b->df.escape, &v, &base, e) ||
        (df->platform && df_text(df->platform, b->df.escape, &v, &platform, e)))
        return -1;
    if (!*base)
        return err_set(e, 0, "Dockerfile:%d: base name (%s) should not be blank", df->line,
                       df->base);
    b->step++;
    build_say(b, "[%s 1/%zu] FROM %s",
              df->name      ? df->name
              : b->df.n > 1 ? "stage"
                            : "",
              df->n + 1, base);
    if (build_base(b, st, base, platform, e)) return -1;
    js_sub(st->config, "config");
    if (build_triggers(b, st, e)) return -1;
    for (size_t i = 0; i < df->n; i++) {
        const struct df_inst *in = &df->inst[i];
        AUTO_FREE char *shown = str_printable(in->text), *flags = str_join(&in->flags, " ");
        b->step++;
        build_say(b, "[%s%s%zu/%zu] %s %s%s%.200s", df->name ? df->name : "", df->name ? " " : "",
                  i + 2, df->n + 1, in->name, flags, *flags ? " " : "", shown);
        if (build_inst(b, st, in, e)) return build_blame(b, in, e);
    }
    return st->built = true, 0;
}

/* --from: a stage by name or number, or an image. */
static int build_from(struct build *b, const char *name, struct bstage **ret, struct err *e) {
    i64 n;
    for (size_t i = 0; i < b->df.n; i++)
        if ((b->df.stage[i].name && !strcasecmp(b->df.stage[i].name, name)) ||
            (str_int(name, 0, 1000, &n) && (size_t)n == i)) {
            *ret = &b->stage[i];
            return build_stage(b, *ret, e);
        }
    if (b->nstages == b->df.n + 64) return err_set(e, 0, "more than 64 images in COPY --from");
    struct bstage *st = &b->stage[b->nstages++];
    *ret = st;
    if (build_base(b, st, name, NULL, e)) return -1;
    return st->built = true, 0;
}

/* Builds the target stage. Everything of b but what this sets is the caller's. */
static int build_target(struct build *b, const char *target, struct bstage **ret, struct err *e) {
    struct platform p;
    size_t at = b->df.n - 1;
    i64 n;
    if (platform_parse(cli_text(b->cli, "platform"), &p, e)) return -1;
    strv_take(&b->global,
              str_fmt("TARGETPLATFORM=%s/%s%s%s", p.os, p.arch, *p.variant ? "/" : "", p.variant));
    strv_take(&b->global, str_fmt("TARGETOS=%s", p.os));
    strv_take(&b->global, str_fmt("TARGETARCH=%s", p.arch));
    strv_take(&b->global, str_fmt("TARGETVARIANT=%s", p.variant));
    strv_take(&b->global, str_fmt("BUILDPLATFORM=linux/%s", host_arch()));
    strv_add(&b->global, "BUILDOS=linux");
    strv_take(&b->global, str_fmt("BUILDARCH=%s", host_arch()));
    for (size_t i = 0; i < b->df.nglobal; i++)
        if (build_arg(b, &b->df.global[i], &b->global, &b->global, e)) return -1;
    b->stage = mem_new((b->df.n + 64) * sizeof *b->stage);
    b->nstages = b->df.n;
    for (size_t i = 0; i < b->df.n + 64; i++)
        b->stage[i] = (struct bstage){ .df = i < b->df.n ? &b->df.stage[i] : NULL,
                                       .m = { .layers = -1, .rootdir = -1, .c = { .dir = -1 } } };
    if (target) {
        for (at = 0; at < b->df.n; at++)
            if (!strcasecmp(b->df.stage[at].name ? b->df.stage[at].name : "", target) ||
                (str_int(target, 0, 1000, &n) && (size_t)n == at))
                break;
        if (at == b->df.n)
            return err_set(e, 0, "target stage \"%.60s\" could not be found", target);
    }
    *ret = &b->stage[at];
    return build_stage(b, *ret, e);
}

static void build_done(struct build *b) {
    for (size_t i = 0; b->stage && i < b->nstages; i++) build_close(&b->stage[i]);
    free(b->stage);
    dockerfile_done(&b->df);
    strv_done(&b->ignore), strv_done(&b->global);
    fd_closep(&b->ctx);
}
/* }==== 25 build */

/* {==== 26 cmd: the commands ====
 * Faces: they make plans, ask the parts above, print what Docker prints. Exit statuses are
 * Docker's. Uses: 1-25. */

/* ---- 26.1 common ---- */
static struct store *cli_store(struct cli *c, struct err *e) {
    static struct store s = { .dir = -1 };
    if (s.dir < 0 && store_open(NULL, &s, e)) return NULL;
    return c->store = &s;
}

/* Prints an error the way docker does. */
static void cli_error(const struct cli *c, const struct err *e) {
    fputs("skiff: ", stderr);
    for (const char *s = e->msg;; s++) { /* line by line: a message may show a line of a file */
        AUTO_FREE char *line = str_dupn(s, strcspn(s, "\n")), *shown = str_printable(line);
        fprintf(stderr, "%s\n", shown);
        if (!*(s += strlen(line))) break;
    }
    if (c->cmd && str_prefix(e->msg, "unknown ") && strstr(e->msg, "flag"))
        fprintf(stderr, "See 'skiff %s --help'.\n", c->cmd->alias ? c->cmd->alias : c->cmd->path);
}

/* Runs fn for every argument, going on after errors; prints what it handled. */
static int cli_each(struct cli *c, int (*fn)(struct cli *c, const char *arg, struct err *e),
                    bool print, struct err *e) {
    int failed = 0;
    for (int i = 0; i < c->nargs; i++) {
        e->msg[0] = 0;
        if (fn(c, c->args[i], e)) {
            AUTO_FREE char *shown = str_printable(e->msg);
            fprintf(stderr, "Error response from skiff: %s\n", shown);
            failed = 1;
        } else if (print) puts(c->args[i]);
    }
    return failed;
}

static bool ask(const char *question) {
    char line[16] = "";
    printf("%sAre you sure you want to continue? [y/N] ", question);
    fflush(stdout);
    return fgets(line, sizeof line, stdin) && tolower((u8)*line) == 'y';
}

/* ---- 26.2 a terminal in front of a container ---- */
struct terminal {
    struct termios saved;
    bool raw;
};

static void terminal_raw(struct terminal *t) {
    if (tcgetattr(0, &t->saved)) return;
    struct termios raw = t->saved;
    cfmakeraw(&raw);
    t->raw = !tcsetattr(0, TCSANOW, &raw);
}

static void terminal_restore(struct terminal *t) {
    if (t->raw) tcsetattr(0, TCSADRAIN, &t->saved);
    t->raw = false;
}

/* "ctrl-p,ctrl-q" as bytes; the length, -1: not such keys. */
static int detach_keys(const char *text, char *out, size_t n) {
    AUTO_STRV k = { 0 };
    size_t len = 0;
    if (!text) text = "ctrl-p,ctrl-q";
    if (!*text) return 0;
    strv_split(&k, text, ',');
    for (size_t i = 0; i < k.n && len < n; i++) {
        const char *s = k.v[i];
        if (str_prefix(s, "ctrl-") && strlen(s) == 6 &&
            (isalpha((u8)s[5]) || strchr("@[\\]^_", s[5])))
            out[len++] = (char)(toupper((u8)s[5]) & 0x1f);
        else if (strlen(s) == 1) out[len++] = *s;
        else return -1;
    }
    return (int)len;
}

struct keys {
    char want[16];
    int n, matched; /* how many of them have been seen */
};

/* Copies typed bytes, holding back what may become the detach keys; true when they are complete.
 * out has room for n + 16 bytes. */
static bool keys_filter(struct keys *k, const char *in, size_t n, char *out, size_t *ret_n) {
    size_t to = 0;
    bool all = false;
    for (size_t i = 0; i < n && !all; i++) {
        if (k->n && in[i] == k->want[k->matched]) {
            all = ++k->matched == k->n;
            continue;
        }
        memcpy(out + to, k->want, (size_t)k->matched); /* what looked like the keys was not */
        to += (size_t)k->matched;
        k->matched = k->n && in[i] == k->want[0];
        if (!k->matched) out[to++] = in[i];
        else all = k->n == 1;
    }
    *ret_n = to;
    return all;
}

struct attach {
    int sock;                             /* to the supervisor */
    bool tty, input, output, proxy, ours; /* ours: the container was started by this command */
    bool mute_out, mute_err;              /* --attach names the other one only */
    bool ended;                           /* our stdin is at its end, and that is not told yet */
    struct buf held; /* one message of stdin that the supervisor does not take yet */
    struct keys keys;
};

static void attach_resize(const struct attach *a) {
    struct winsize ws;
    char msg[5] = { 'W' };
    if (ioctl(0, TIOCGWINSZ, &ws)) return;
    memcpy(msg + 1, &ws.ws_row, 2);
    memcpy(msg + 3, &ws.ws_col, 2);
    (void)!send(a->sock, msg, sizeof msg, MSG_NOSIGNAL);
}

/* Passes stdin on; true when the client has to leave: detach keys, or the terminal is gone. */
static bool attach_input(struct attach *a) {
    char in[SUPER_CHUNK / 2], msg[SUPER_CHUNK / 2 + 32] = { 'I' };
    size_t out;
    ssize_t n = read(0, in, sizeof in);
    if (n <= 0) {
        a->input = false;
        a->ended = true;
        return a->tty && isatty(0) < 1 && n < 0;
    }
    struct keys none = { .n = 0 };
    bool leave = keys_filter(a->tty ? &a->keys : &none, in, (size_t)n, msg + 1, &out);
    /* never wait here: the supervisor may be waiting for us to read */
    if (out && send(a->sock, msg, out + 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno == EAGAIN)
        buf_add(&a->held, msg, out + 1);
    return leave;
}

/* What is left to be told to the supervisor, as far as it takes it. */
static void attach_flush(struct attach *a) {
    if (a->held.n) {
        if (send(a->sock, a->held.p, a->held.n, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno == EAGAIN)
            return;
        buf_done(&a->held);
    }
    if (a->ended && (send(a->sock, "c", 1, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0 || errno != EAGAIN))
        a->ended = false;
}

enum { ATTACH_LOST = -1, ATTACH_DETACHED = -2 };

/* Signals that the client passes on, and how it hears of them; without `all` only the window's
 * size. */
static int attach_signals(sigset_t *set, bool all) {
    static const int WANT[] = { SIGWINCH, SIGINT,  SIGTERM, SIGHUP,
                                SIGQUIT,  SIGUSR1, SIGUSR2, SIGALRM };
    sigemptyset(set);
    for (size_t i = 0; i < (all ? ARRAY_LEN(WANT) : 1); i++) sigaddset(set, WANT[i]);
    sigprocmask(SIG_BLOCK, set, NULL);
    return signalfd(-1, set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void attach_signal(const struct attach *a, char how, int sig) {
    char msg[5] = { how };
    int32_t n = sig;
    memcpy(msg + 1, &n, 4);
    (void)!send(a->sock, msg, sizeof msg, MSG_NOSIGNAL);
}

/* Stands between the terminal and the supervisor until the container ends; its exit code, or
 * ATTACH_*. */
static int attach_loop(struct attach *a) {
    struct terminal term = { .raw = false };
    sigset_t set;
    AUTO_FD sig = attach_signals(&set, a->proxy);
    int rc = ATTACH_LOST;
    signal(SIGPIPE, SIG_IGN);
    if (a->tty && a->input && isatty(0)) terminal_raw(&term);
    if (a->tty) attach_resize(a);
    for (bool on = true; on;) {
        short want = a->held.n || a->ended ? POLLIN | POLLOUT : POLLIN;
        struct pollfd p[] = { { a->sock, want, 0 },
                              { sig, POLLIN, 0 },
                              { a->input && !a->held.n ? 0 : -1, POLLIN, 0 } };
        if (poll(p, 3, -1) < 0) continue;
        if (p[0].revents & POLLOUT) attach_flush(a);
        if (p[1].revents) {
            struct signalfd_siginfo si;
            while (read(sig, &si, sizeof si) == sizeof si) {
                if (si.ssi_signo == SIGWINCH) {
                    if (a->tty) attach_resize(a);
                    continue;
                }
                if (si.ssi_signo == SIGHUP && a->tty)
                    rc = ATTACH_DETACHED, on = false; /* the terminal is gone */
                else attach_signal(a, 'K', (int)si.ssi_signo);
            }
        }
        if (p[0].revents & ~POLLOUT) {
            char msg[SUPER_CHUNK + 64];
            ssize_t n = recv(a->sock, msg, sizeof msg, 0);
            if (n < 0 && (errno == EINTR || errno == ECONNRESET))
                continue; /* its last word is still there */
            if (n <= 0) break;
            if (msg[0] == 'O' || msg[0] == 'E') {
                bool mute = msg[0] == 'O' ? a->mute_out : a->mute_err;
                if (a->output && !mute &&
                    fd_write_all(msg[0] == 'O' ? 1 : 2, msg + 1, (size_t)n - 1) && errno == EPIPE) {
                    /* what would have ended a plain program ends the container that we are in front
                     * of */
                    if (a->ours && a->proxy) attach_signal(a, 'S', SIGKILL);
                    a->output = false;
                    if (!a->ours) rc = 128 + SIGPIPE, on = false;
                }
            } else if (msg[0] == 'X' && n == 5) {
                int32_t code;
                memcpy(&code, msg + 1, 4);
                rc = code;
                on = false;
            }
        }
        if (on && p[2].revents && attach_input(a)) rc = ATTACH_DETACHED, on = false;
    }
    terminal_restore(&term);
    buf_done(&a->held);
    if (rc == ATTACH_DETACHED) fputs("\n", stderr);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    return rc;
}

/* Attaches this process to a running container. */
static int attach_run(const struct cli *c, struct ctr *ctr, int sock, bool input, bool told,
                      struct err *e) {
    AUTO_STRV only = { 0 };
    cli_list(c, "attach", &only);
    for (size_t i = 0; i < only.n; i++)
        for (char *s = only.v[i]; *s; s++) *s = (char)tolower((u8)*s);
    struct attach a = { .mute_out = only.n && !strv_has(&only, "stdout"),
                        .mute_err = only.n && !strv_has(&only, "stderr"),
                        .sock = sock,
                        .tty = js_bool(ctr->config, "process.terminal"),
                        .input = input,
                        .output = true,
                        .proxy = !cli_has(c, "sig-proxy") || cli_flag(c, "sig-proxy"),
                        .ours = told };
    a.keys.n = detach_keys(cli_text(c, "detach-keys"), a.keys.want, sizeof a.keys.want);
    if (a.keys.n < 0)
        return err_set(e, 0, "invalid detach keys (%.60s)", cli_text(c, "detach-keys"));
    char hello[2] = { 'A', (char)(1 | (input ? 2 : 0)) };
    if (!told && send(sock, hello, 2, MSG_NOSIGNAL) < 0)
        return err_set(e, errno, "speak to the supervisor");
    int rc = attach_loop(&a);
    if (rc == ATTACH_DETACHED) return 0;
    if (rc != ATTACH_LOST) return rc;
    struct ctr again = { .dir = -1 };
    struct err gone;
    if (ctr_open(ctr->s, ctr->id, &again, &gone))
        return err_set(e, 0, "the supervisor of container %.12s was lost", ctr->id);
    rc = (int)js_int(again.state, "exitCode", 137);
    ctr_done(&again);
    return rc;
}

/* ---- 26.3 run, create, start ---- */
static const struct opt OPT_RUN[] = {
    { "add-host", 0, OPT_LIST, "Add a custom host-to-IP mapping (host:ip)" },
    { "annotation", 0, OPT_LIST, "Add an annotation" },
    { "attach", 'a', OPT_LIST, "Attach to STDIN, STDOUT or STDERR" },
    { "cap-add", 0, OPT_LIST, "Add Linux capabilities" },
    { "cap-drop", 0, OPT_LIST, "Drop Linux capabilities" },
    { "blkio-weight", 0, OPT_INT, "Block IO weight, between 10 and 1000" },
    { "cgroup-conf", 0, OPT_LIST, "Write a file of the cgroup (FILE=VALUE)" },
    { "cgroup-parent", 0, OPT_TEXT, "Parent cgroup for the container" },
    { "cgroupns", 0, OPT_TEXT, "Cgroup namespace to use (host|private)" },
    { "cidfile", 0, OPT_TEXT, "Write the container ID to the file" },
    { "cpu-period", 0, OPT_INT, "Limit CPU CFS period" },
    { "cpu-quota", 0, OPT_INT, "Limit CPU CFS quota" },
    { "cpu-shares", 'c', OPT_INT, "CPU shares (relative weight)" },
    { "cpus", 0, OPT_TEXT, "Number of CPUs" },
    { "cpuset-cpus", 0, OPT_TEXT, "CPUs in which to allow execution (0-3, 0,1)" },
    { "cpuset-mems", 0, OPT_TEXT, "Memory nodes in which to allow execution" },
    { "detach", 'd', OPT_BOOL, "Run container in background and print container ID" },
    { "detach-keys", 0, OPT_TEXT, "Key sequence for detaching (ctrl-p,ctrl-q)" },
    { "device", 0, OPT_LIST, "Add a host device to the container" },
    { "device-read-bps", 0, OPT_LIST, "Limit read rate (bytes per second) from a device" },
    { "device-read-iops", 0, OPT_LIST, "Limit read rate (IO per second) from a device" },
    { "device-write-bps", 0, OPT_LIST, "Limit write rate (bytes per second) to a device" },
    { "device-write-iops", 0, OPT_LIST, "Limit write rate (IO per second) to a device" },
    { "dns", 0, OPT_LIST, "Set custom DNS servers" },
    { "dns-opt", 0, OPT_LIST, "The same as --dns-option" },
    { "dns-option", 0, OPT_LIST, "Set DNS options" },
    { "dns-search", 0, OPT_LIST, "Set custom DNS search domains" },
    { "domainname", 0, OPT_TEXT, "Container NIS domain name" },
    { "entrypoint", 0, OPT_TEXT, "Overwrite the default ENTRYPOINT of the image" },
    { "env", 'e', OPT_LIST, "Set environment variables" },
    { "env-file", 0, OPT_LIST, "Read in a file of environment variables" },
    { "expose", 0, OPT_LIST, "Expose a port or a range of ports" },
    { "group-add", 0, OPT_LIST, "Add additional groups to join" },
    { "health-cmd", 0, OPT_TEXT, "Command to run to check health" },
    { "health-interval", 0, OPT_DURATION, "Time between running the check" },
    { "health-retries", 0, OPT_INT, "Consecutive failures needed to report unhealthy" },
    { "health-start-interval", 0, OPT_DURATION, "Time between checks during the start period" },
    { "health-start-period", 0, OPT_DURATION, "Start period for the container to initialize" },
    { "health-timeout", 0, OPT_DURATION, "Maximum time to allow one check to run" },
    { "hostname", 'h', OPT_TEXT, "Container host name" },
    { "init", 0, OPT_BOOL,
      "Run an init inside the container that forwards signals and reaps processes" },
    { "interactive", 'i', OPT_BOOL, "Keep STDIN open even if not attached" },
    { "ipc", 0, OPT_TEXT, "IPC mode to use (private|host)" },
    { "label", 'l', OPT_LIST, "Set meta data on a container" },
    { "label-file", 0, OPT_LIST, "Read in a line delimited file of labels" },
    { "log-driver", 0, OPT_TEXT, "Logging driver (json-file|none)" },
    { "log-opt", 0, OPT_LIST, "Log driver options (max-size, max-file)" },
    { "memory", 'm', OPT_BYTES, "Memory limit" },
    { "memory-reservation", 0, OPT_BYTES, "Memory soft limit" },
    { "memory-swap", 0, OPT_TEXT, "Swap limit equal to memory plus swap: -1 for unlimited" },
    { "memory-swappiness", 0, OPT_INT, "Discarded: cgroup v2 has no such switch" },
    { "mount", 0, OPT_LIST, "Attach a filesystem mount to the container" },
    { "name", 0, OPT_TEXT, "Assign a name to the container" },
    { "network", 0, OPT_TEXT, "Connect a container to a network (host|none)" },
    { "net", 0, OPT_TEXT, "The same as --network" },
    { "no-healthcheck", 0, OPT_BOOL, "Disable any container-specified HEALTHCHECK" },
    { "oom-kill-disable", 0, OPT_BOOL, "Discarded: cgroup v2 has no such switch" },
    { "oom-score-adj", 0, OPT_INT, "Tune host's OOM preferences (-1000 to 1000)" },
    { "pid", 0, OPT_TEXT, "PID namespace to use (private|host)" },
    { "pids-limit", 0, OPT_INT, "Tune container pids limit (-1 for unlimited)" },
    { "platform", 0, OPT_TEXT, "Set platform (os/arch[/variant])" },
    { "privileged", 0, OPT_BOOL,
      "Give all capabilities of the user namespace, no seccomp filter, nothing masked" },
    { "publish", 'p', OPT_LIST, "Publish a container's port(s) to the host" },
    { "publish-all", 'P', OPT_BOOL, "Publish all exposed ports" },
    { "pull", 0, OPT_TEXT, "Pull image before running (always|missing|never)" },
    { "quiet", 'q', OPT_BOOL, "Suppress the pull output" },
    { "read-only", 0, OPT_BOOL, "Mount the container's root filesystem as read only" },
    { "restart", 0, OPT_TEXT, "Restart policy when a container exits" },
    { "rm", 0, OPT_BOOL, "Remove the container when it exits" },
    { "rootfs", 0, OPT_TEXT,
      "Run in this directory instead of an image; DIR:O leaves it as it is" },
    { "security-opt", 0, OPT_LIST,
      "Security options (seccomp=FILE|unconfined, no-new-privileges)" },
    { "shm-size", 0, OPT_BYTES, "Size of /dev/shm" },
    { "sig-proxy", 0, OPT_BOOL, "Proxy received signals to the process (true)" },
    { "stop-signal", 0, OPT_TEXT, "Signal to stop the container" },
    { "stop-timeout", 0, OPT_INT, "Timeout (in seconds) to stop a container" },
    { "sysctl", 0, OPT_LIST, "Sysctl options" },
    { "tls-verify", 0, OPT_BOOL, "Verify TLS certificates when pulling (true)" },
    { "tmpfs", 0, OPT_LIST, "Mount a tmpfs directory" },
    { "tty", 't', OPT_BOOL, "Allocate a pseudo-TTY" },
    { "ulimit", 0, OPT_LIST, "Ulimit options" },
    { "user", 'u', OPT_TEXT, "Username or UID (format: <name|uid>[:<group|gid>])" },
    { "userns", 0, OPT_TEXT, "User namespace to use (auto|keep-id|single|host)" },
    { "uts", 0, OPT_TEXT, "UTS namespace to use (private|host)" },
    { "volume", 'v', OPT_LIST, "Bind mount a volume" },
    { "workdir", 'w', OPT_TEXT, "Working directory inside the container" },
    { "blkio-weight-device", 0, OPT_LATER_TEXT, "" },
    { "cpu-rt-period", 0, OPT_LATER_TEXT, "" },
    { "cpu-rt-runtime", 0, OPT_LATER_TEXT, "" },
    { "cpu-count", 0, OPT_LATER_TEXT, "" },
    { "cpu-percent", 0, OPT_LATER_TEXT, "" },
    { "device-cgroup-rule", 0, OPT_LATER_TEXT, "" },
    { "disable-content-trust", 0, OPT_BOOL, "Accepted; skiff does no content trust" },
    { "gpus", 0, OPT_LATER_TEXT, "" },
    { "io-maxbandwidth", 0, OPT_LATER_TEXT, "" },
    { "io-maxiops", 0, OPT_LATER_TEXT, "" },
    { "ip", 0, OPT_LATER_TEXT, "" },
    { "ip6", 0, OPT_LATER_TEXT, "" },
    { "isolation", 0, OPT_LATER_TEXT, "" },
    { "kernel-memory", 0, OPT_LATER_TEXT, "" },
    { "link", 0, OPT_LATER_TEXT, "" },
    { "link-local-ip", 0, OPT_LATER_TEXT, "" },
    { "mac-address", 0, OPT_LATER_TEXT, "" },
    { "network-alias", 0, OPT_LATER_TEXT, "" },
    { "net-alias", 0, OPT_LATER_TEXT, "" },
    { "runtime", 0, OPT_LATER_TEXT, "" },
    { "storage-opt", 0, OPT_LATER_TEXT, "" },
    { "use-api-socket", 0, OPT_LATER_BOOL, "" },
    { "volume-driver", 0, OPT_LATER_TEXT, "" },
    { "volumes-from", 0, OPT_LATER_TEXT, "" },
    { NULL, 0, OPT_BOOL, NULL },
};

/* The embedded image: the program itself as its one file. */
static int hello_image(const struct store *s, struct err *e) {
    AUTO_FD gc = lock_take(s->dir, "locks/gc", LOCK_SH),
            exe = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    AUTO_FD tmp = openat(s->dir, "tmp", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
    struct stat st;
    struct tarring t = { .clamp = 0 };
    if (exe < 0 || tmp < 0 || fstat(exe, &st)) return err_set(e, errno, "make the embedded image");
    if (tar_begin(&t, tmp, e)) return -1;
    struct archive_entry *en = archive_entry_new();
    archive_entry_set_pathname(en, "hello");
    archive_entry_set_filetype(en, AE_IFREG);
    archive_entry_set_perm(en, 0755);
    archive_entry_set_size(en, st.st_size);
    archive_entry_set_mtime(en, 0, 0);
    archive_write_header(t.a, en);
    archive_entry_free(en);
    char buf[65536];
    for (ssize_t k; (k = read(exe, buf, sizeof buf)) > 0;) archive_write_data(t.a, buf, (size_t)k);
    if (tar_end(&t, e) || lseek(tmp, 0, SEEK_SET)) return -1;
    struct src_fd f = { { src_fd_read }, tmp };
    json_t *desc = NULL;
    char diff[DIGEST_LEN + 1];
    if (layer_add(s, &f.src, NULL, &desc, diff, e)) return -1;
    AUTO_JSON *layers = json_pack("[o]", desc);
    AUTO_JSON *config = json_pack(
        "{s:s,s:s,s:s,s:{s:[s],s:[s],s:s},s:{s:s,s:[s]},s:[{s:s,s:s}]}", "architecture",
        host_arch(), "os", "linux", "created", "1970-01-01T00:00:00Z", "config", "Cmd", "/hello",
        "Env", "PATH=/", "WorkingDir", "/", "rootfs", "type", "layers", "diff_ids", diff, "history",
        "created", "1970-01-01T00:00:00Z", "comment", "embedded in skiff " SKIFF_VERSION);
    return image_put(s, config, layers, "docker.io/library/hello:latest", NULL, NULL, NULL, e);
}

/* Finds the image of run or create, pulling as --pull says. */
static int run_image(struct cli *c, struct make *m, const char *what, struct err *e) {
    const char *policy = cli_text(c, "pull");
    struct platform p;
    if (str_empty(policy)) policy = "missing";
    if (strcmp(policy, "missing") && strcmp(policy, "always") && strcmp(policy, "never"))
        return err_set(
            e, 0,
            "invalid pull option: '%.40s': must be one of \"always\", \"missing\" or \"never\"",
            policy);
    if (platform_parse(cli_text(c, "platform"), &p, e)) return -1;
    if (strchr(what, ':') && (str_prefix(what, "oci:") || str_prefix(what, "oci-archive:") ||
                              str_prefix(what, "docker-archive:"))) {
        /* loaded under a name of its own, which is then what runs */
        char digest[DIGEST_LEN + 1];
        digest_of(what, strlen(what), digest);
        AUTO_FREE char *as = str_fmt("localhost/loaded:%.16s", digest + 7);
        if (image_from_transport(m->s, what, as, true, e) < 0) return -1;
        m->image_name = str_dup(what);
        return image_find(m->s, as, &m->image, NULL, e);
    }
    m->image_name = str_dup(what);
    bool always = !strcmp(policy, "always"), hello = !strcmp(what, "hello");
    if (!always && !image_find(m->s, what, &m->image, NULL, e)) {
        const char *arch = host_arch_word(js_str_or(m->image.config, "architecture", p.arch));
        if (!cli_has(c, "platform") || !strcmp(arch, p.arch)) return 0;
        image_done(&m->image);
        err_set(e, 0, "image %s was found, but for %s, not %s", what, arch, p.arch);
    } else if (!always && strncmp(e->msg, "No such image", 13)) return -1;
    if (hello && !always)
        return hello_image(m->s, e) || image_find(m->s, what, &m->image, NULL, e) ? -1 : 0;
    struct ref r;
    struct err bad;
    if (!strcmp(policy, "never") || ref_parse(what, &r, &bad)) {
        if (strcmp(policy, "never")) *e = bad;
        return -1;
    }
    if (strlen(what) == HEX_LEN && strspn(what, "0123456789abcdef") == HEX_LEN) return -1;
    bool quiet = cli_flag(c, "quiet");
    AUTO_FREE char *familiar = ref_familiar(&r);
    if (!quiet && !always) fprintf(stderr, "Unable to find image '%s' locally\n", familiar);
    struct pull_opts o = { cli_text(c, "platform"), quiet, tls_verify(c) };
    int out = -1;
    if (!quiet) { /* the container's stdout is not the place for progress */
        fflush(stdout);
        out = fcntl(1, F_DUPFD_CLOEXEC, 3);
        dup2(2, 1);
    }
    int rc = image_pull(m->s, &r, &o, e);
    fflush(stdout);
    if (out >= 0) dup2(out, 1), close(out);
    return rc || image_find(m->s, what, &m->image, NULL, e) ? -1 : 0;
}

static int run_prepare(struct cli *c, struct make *m, struct err *e) {
    const char *cidfile = cli_text(c, "cidfile");
    *m = (struct make){ .cli = c, .layers = -1, .rootdir = -1, .c = { .dir = -1 } };
    if (!(m->s = cli_store(c, e))) return -1;
    if (cli_has(c, "net") && !cli_has(c, "network"))
        js_sets(c->opts, "network", cli_text(c, "net"));
    bool rootfs = cli_has(c, "rootfs");
    if (cli_flag(c, "detach") && cli_has(c, "attach"))
        return err_set(e, 0, "Conflicting options: -a and -d");
    if (!c->nargs && !rootfs)
        return err_set(e, 0,
                       "\"skiff %s\" requires at least 1 argument: an image. Try: skiff run hello",
                       c->cmd->alias);
    if (cidfile && !access(cidfile, F_OK))
        return err_set(
            e, 0,
            "container ID file found, make sure the other container isn't running or delete %s",
            cidfile);
    char keys[16];
    if (detach_keys(cli_text(c, "detach-keys"), keys, sizeof keys) < 0)
        return err_set(e, 0, "invalid detach keys (%.60s)", cli_text(c, "detach-keys"));
    if (!rootfs && run_image(c, m, c->args[0], e)) return -1;
    const char *name = cli_text(c, "name");
    if (make_container(m, str_empty(name) ? NULL : name, c->args + (rootfs ? 0 : 1), e)) return -1;
    if (cidfile && file_put(cidfile, m->c.id, HEX_LEN, 0644, e)) {
        struct err ignored;
        ctr_remove(&m->c, true, &ignored);
        return -1;
    }
    return 0;
}

static int cmd_create(struct cli *c, struct err *e) {
    struct make m;
    int rc = run_prepare(c, &m, e);
    if (!rc) puts(m.c.id);
    make_done(&m);
    return rc;
}

static int cmd_run(struct cli *c, struct err *e) {
    struct make m;
    int client = -1, rc = -1;
    if (cli_flag(c, "interactive") && cli_flag(c, "tty") && !cli_flag(c, "detach") && !isatty(0))
        return err_set(e, 0, "the input device is not a TTY");
    if (run_prepare(c, &m, e)) goto out;
    bool detach = cli_flag(c, "detach");
    if (super_start(&m.c, detach ? NULL : &client, e)) {
        struct err why = *e, ignored;
        if (cli_flag(c, "rm")) ctr_remove(&m.c, true, &ignored);
        *e = why;
        rc = e->status ? e->status : EXIT_ENGINE;
        cli_error(c, e);
        goto out;
    }
    if (detach) puts(m.c.id), rc = 0;
    else rc = attach_run(c, &m.c, client, cli_flag(c, "interactive"), true, e);
out:
    fd_closep(&client);
    make_done(&m);
    return rc;
}

static int start_one(struct cli *c, const char *what, struct err *e) {
    AUTO_CTR k = { .dir = -1 };
    if (ctr_find(cli_store(c, e), what, &k, e)) return -1;
    if (ctr_is(&k, "paused"))
        return err_set(e, 0, "cannot start a paused container, try unpause instead");
    if (ctr_alive(&k)) return 0;
    js_seti(k.state, "restartCount", 0);
    return super_start(&k, NULL, e);
}

static int cmd_start(struct cli *c, struct err *e) {
    bool attach = cli_flag(c, "attach") || cli_flag(c, "interactive");
    if (!cli_store(c, e)) return -1;
    if (!attach) return cli_each(c, start_one, true, e);
    AUTO_CTR k = { .dir = -1 };
    int client = -1;
    if (c->nargs > 1)
        return err_set(e, 0, "you cannot start and attach multiple containers at once");
    if (ctr_find(c->store, c->args[0], &k, e)) return -1;
    bool input = cli_flag(c, "interactive") && js_bool(k.config, "skiff.openStdin");
    if (ctr_alive(&k)) {
        if ((client = ctr_connect(k.dir)) < 0)
            return err_set(e, 0, "Container %s is not running", k.id);
        return attach_run(c, &k, client, input, false, e);
    }
    if (super_start(&k, &client, e)) return cli_error(c, e), e->status ? e->status : 1;
    return attach_run(c, &k, client, input, true, e);
}

static int cmd_attach(struct cli *c, struct err *e) {
    AUTO_CTR k = { .dir = -1 };
    if (!cli_store(c, e) || ctr_find(c->store, c->args[0], &k, e)) return -1;
    if (ctr_is(&k, "paused"))
        return err_set(e, 0, "You cannot attach to a paused container, unpause it first");
    AUTO_FD s = ctr_alive(&k) ? ctr_connect(k.dir) : -1;
    if (s < 0) return err_set(e, 0, "You cannot attach to a stopped container, start it first");
    return attach_run(c, &k, s, js_bool(k.config, "skiff.openStdin") && !cli_flag(c, "no-stdin"),
                      false, e);
}

/* ---- update ---- */
static const struct opt OPT_LIMITS[] = {
    { "blkio-weight", 0, OPT_INT, "Block IO weight, between 10 and 1000" },
    { "cpu-period", 0, OPT_INT, "Limit CPU CFS period" },
    { "cpu-quota", 0, OPT_INT, "Limit CPU CFS quota" },
    { "cpu-share", 0, OPT_INT, "The same as --cpu-shares" },
    { "cpu-shares", 'c', OPT_INT, "CPU shares (relative weight)" },
    { "cpus", 0, OPT_TEXT, "Number of CPUs" },
    { "cpuset-cpus", 0, OPT_TEXT, "CPUs in which to allow execution (0-3, 0,1)" },
    { "cpuset-mems", 0, OPT_TEXT, "Memory nodes in which to allow execution" },
    { "memory", 'm', OPT_TEXT, "Memory limit" },
    { "memory-reservation", 0, OPT_TEXT, "Memory soft limit" },
    { "memory-swap", 0, OPT_TEXT, "Swap limit equal to memory plus swap: -1 for unlimited" },
    { "pids-limit", 0, OPT_INT, "Tune container pids limit (-1 for unlimited)" },
    { "cpu-rt-period", 0, OPT_LATER_TEXT, "" },
    { "cpu-rt-runtime", 0, OPT_LATER_TEXT, "" },
    { "kernel-memory", 0, OPT_LATER_TEXT, "" },
    { NULL, 0, OPT_BOOL, NULL },
};

static const struct opt OPT_UPDATE[] = {
    { "restart", 0, OPT_TEXT, "Restart policy to apply when a container exits" },
    { NULL, 0, OPT_BOOL, NULL },
};

/* Members of `from` over those of `into`, objects member by member. */
static void js_merge(json_t *into, json_t *from) {
    const char *key;
    json_t *v;
    json_object_foreach (from, key, v) {
        json_t *old = js_get(into, key);
        if (json_is_object(old) && json_is_object(v)) js_merge(old, v);
        else json_object_set(into, key, v);
    }
}

static int update_one(struct cli *c, const char *what, struct err *e) {
    AUTO_CTR k = { .dir = -1 };
    AUTO_JSON *res = json_object();
    if (ctr_find(cli_store(c, e), what, &k, e) || resource_options(c, res, true, e)) return -1;
    struct make m = { .cli = c, .sk = js_get(k.config, "skiff") };
    if (cli_has(c, "restart") && make_restart(&m, e)) return -1;
    if (json_object_size(res) && ctr_alive(&k)) {
        struct cgroup cg = { (char *)(uintptr_t)js_str(k.state, "cgroup") };
        if (!cg.path)
            return err_set(e, 0,
                           "container %s runs without a cgroup of its own, since it was started "
                           "without limits: the change would only hold from its next start; stop it "
                           "first",
                           ctr_name(&k));
        if (cgroup_apply(&cg, res, e)) return -1;
    }
    if (json_object_size(res)) js_merge(js_sub(js_sub(k.config, "linux"), "resources"), res);
    if (js_save(k.dir, "config.json", k.config, 0, e)) return -1;
    ctr_event(&k, "update", NULL);
    return 0;
}

static int cmd_update(struct cli *c, struct err *e) {
    bool some = cli_has(c, "restart");
    for (const struct opt *o = OPT_LIMITS; o->name; o++) some |= cli_has(c, o->name);
    if (!some) return err_set(e, 0, "you must provide one or more flags when using this command");
    return cli_store(c, e) ? cli_each(c, update_one, true, e) : -1;
}

/* ---- 26.4 stop, kill, pause, wait, rm ---- */
static int ctr_signal(const struct ctr *k, char how, int sig, int *ret_sock, struct err *e) {
    AUTO_FD s = ctr_alive(k) ? ctr_connect(k->dir) : -1;
    char msg[5] = { how };
    int32_t n = sig;
    memcpy(msg + 1, &n, 4);
    if (s < 0 || (ret_sock && send(s, "w", 1, MSG_NOSIGNAL) < 0) ||
        send(s, msg, sizeof msg, MSG_NOSIGNAL) < 0)
        return err_set(e, 0, "Container %s is not running", k->id);
    if (ret_sock) *ret_sock = fd_steal(&s);
    return 0;
}

/* Signals pid 1 from outside reach it only if it has a handler, or as SIGKILL: the wait ends it. */
static int ctr_stop(struct ctr *k, const char *signal_name, i64 timeout_s, struct err *e) {
    int sock = -1;
    if (!ctr_alive(k)) return 0;
    int sig = signal_number(signal_name ? signal_name
                                        : js_str_or(k->config, "skiff.stopSignal", "SIGTERM"));
    if (sig < 0) return err_set(e, 0, "invalid signal: %.40s", signal_name);
    if (timeout_s == INT64_MIN) timeout_s = js_int(k->config, "skiff.stopTimeout", 10);
    if (ctr_is(k, "paused")) {
        AUTO_FD s = ctr_connect(k->dir);
        char answer[256];
        if (s >= 0 && send(s, "U", 1, MSG_NOSIGNAL) > 0) (void)!recv(s, answer, sizeof answer, 0);
    }
    if (ctr_signal(k, 'S', sig, &sock, e)) return ctr_alive(k) ? 0 : 0;
    int rc = ctr_await_exit(sock, timeout_s < 0         ? -1
                                  : timeout_s > 1000000 ? -1
                                                        : (int)timeout_s * 1000);
    if (rc == -2) {
        char msg[5] = { 'S' };
        int32_t n = SIGKILL;
        memcpy(msg + 1, &n, 4);
        (void)!send(sock, msg, sizeof msg, MSG_NOSIGNAL);
        ctr_await_exit(sock, 30000);
    }
    close(sock);
    ctr_event(k, "stop", NULL);
    return 0;
}

static i64 stop_timeout(const struct cli *c) {
    return cli_has(c, "time")      ? cli_int(c, "time", 10)
           : cli_has(c, "timeout") ? cli_int(c, "timeout", 10)
                                   : INT64_MIN;
}

static int stop_one(struct cli *c, const char *what, struct err *e) {
    AUTO_CTR k = { .dir = -1 };
    return ctr_find(c->store, what, &k, e) ||
                   ctr_stop(&k, cli_text(c, "signal"), stop_timeout(c), e)
               ? -1
               : 0;
}
static int cmd_stop(struct cli *c, struct err *e) {
    return cli_store(c, e) ? cli_each(c, stop_one, true, e) : -1;
}

static int restart_one(struct cli *c, const char *what, struct err *e) {
    return stop_one(c, what, e) || start_one(c, what, e) ? -1 : 0;
}
static int cmd_restart(struct cli *c, struct err *e) {
    return cli_store(c, e) ? cli_each(c, restart_one, true, e) : -1;
}

static int kill_one(struct cli *c, const char *what, struct err *e) {
    AUTO_CTR k = { .dir = -1 };
    const char *name = cli_text(c, "signal");
    int sig = signal_number(name ? name : "KILL");
    if (sig < 0) return err_set(e, 0, "Invalid signal: %.40s", name);
    if (ctr_find(c->store, what, &k, e)) return -1;
    if (!ctr_alive(&k))
        return err_set(e, 0, "Cannot kill container: %s: Container %s is not running", what, k.id);
    bool ends =
        sig == SIGKILL || sig == signal_number(js_str_or(k.config, "skiff.stopSignal", "SIGTERM"));
    int sock = -1;
    if (ctr_signal(&k, ends ? 'S' : 'K', sig, sig == SIGKILL ? &sock : NULL, e)) return -1;
    ctr_event(&k, "kill", NULL);
    if (sock >= 0) ctr_await_exit(sock, 10000);
    fd_closep(&sock);
    return 0;
}
static int cmd_kill(struct cli *c, struct err *e) {
    return cli_store(c, e) ? cli_each(c, kill_one, true, e) : -1;
}

static int freeze_one(struct cli *c, const char *what, struct err *e) {
    AUTO_CTR k = { .dir = -1 };
    if (ctr_find(c->store, what, &k, e)) return -1;
    AUTO_FD s = ctr_alive(&k) ? ctr_connect(k.dir) : -1;
    char answer[1100];
    ssize_t n = -1;
    if (s >= 0 && send(s, str_suffix(c->cmd->path, "unpause") ? "U" : "P", 1, MSG_NOSIGNAL) > 0)
        n = recv(s, answer, sizeof answer - 1, 0);
    if (n < 1) return err_set(e, 0, "Container %s is not running", k.id);
    answer[n] = 0;
    return n > 1 ? err_set(e, 0, "%s", answer + 1) : 0;
}
static int cmd_pause(struct cli *c, struct err *e) {
    return cli_store(c, e) ? cli_each(c, freeze_one, true, e) : -1;
}

static int wait_one(struct cli *c, const char *what, struct err *e) {
    AUTO_CTR k = { .dir = -1 };
    if (ctr_find(c->store, what, &k, e)) return -1;
    AUTO_FD s = ctr_alive(&k) ? ctr_connect(k.dir) : -1;
    int code = s >= 0 && send(s, "w", 1, MSG_NOSIGNAL) > 0 ? ctr_await_exit(s, -1) : -1;
    if (code < 0) {
        AUTO_CTR again = { .dir = -1 };
        if (ctr_open(c->store, k.id, &again, e)) return -1;
        code = (int)js_int(again.state, "exitCode", 0);
    }
    printf("%d\n", code);
    return 0;
}
static int cmd_wait(struct cli *c, struct err *e) {
    return cli_store(c, e) ? cli_each(c, wait_one, false, e) : -1;
}

static int rm_one(struct cli *c, const char *what, struct err *e) {
    AUTO_CTR k = { .dir = -1 };
    if (ctr_find(c->store, what, &k, e)) {
        size_t n = strlen(what);
        AUTO_STRV ids = { 0 }; /* a damaged one can still be removed by its full or short id */
        if (!cli_flag(c, "force")) return -1;
        ctr_ids(c->store, &ids);
        for (size_t i = 0; i < ids.n; i++)
            if (n >= 12 && !strncmp(ids.v[i], what, n)) {
                AUTO_FREE char *dir = str_fmt("containers/%s", ids.v[i]);
                return tree_remove(c->store->dir, dir) ? err_set(e, errno, "remove %s", dir) : 0;
            }
        return strstr(e->msg, "No such container") ? 0 : -1;
    }
    if (ctr_alive(&k)) {
        if (!cli_flag(c, "force"))
            return err_set(e, 0,
                           "cannot remove container \"/%s\": container is %s: stop the container "
                           "before removing or force remove",
                           ctr_name(&k), ctr_status(&k));
        int sock = -1;
        if (!ctr_signal(&k, 'S', SIGKILL, &sock, e)) ctr_await_exit(sock, 30000);
        fd_closep(&sock);
        if (js_bool(k.config, "skiff.autoRemove")) return 0;
    }
    /* a supervisor that has told the exit is on its way out: wait for its lock */
    AUTO_FD lock = -1;
    for (int i = 0; i < 200 && lock < 0; i++) {
        if ((lock = lock_take(k.dir, "lock", LOCK_EX | LOCK_NB)) >= 0) break;
        if (errno != EWOULDBLOCK) return err_set(e, errno, "lock container %.12s", k.id);
        usleep(10000);
    }
    if (lock < 0) return err_set(e, 0, "container %.12s is in use", k.id);
    return ctr_remove(&k, cli_flag(c, "volumes"), e);
}
static int cmd_rm(struct cli *c, struct err *e) {
    return cli_store(c, e) ? cli_each(c, rm_one, true, e) : -1;
}

static int cmd_rename(struct cli *c, struct err *e) {
    AUTO_CTR k = { .dir = -1 };
    const char *to = c->args[1] + (*c->args[1] == '/');
    if (!cli_store(c, e) || ctr_find(c->store, c->args[0], &k, e)) return -1;
    if (!ctr_name_ok(to))
        return err_set(
            e, 0, "Invalid container name (%.100s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
            to);
    if (!strcmp(to, ctr_name(&k)))
        return err_set(e, 0, "Renaming a container with the same name as its current name");
    if (ctr_claim_name(c->store, to, k.id, e)) return -1;
    AUTO_FREE char *old = str_fmt("names/%s", ctr_name(&k));
    js_sets(js_get(k.config, "skiff"), "name", to);
    if (js_save(k.dir, "config.json", k.config, 0, e)) return -1;
    unlinkat(c->store->dir, old, 0);
    ctr_event(&k, "rename", NULL);
    return 0;
}

/* ---- 26.5 exec ---- */
static const struct opt OPT_EXEC[] = {
    { "detach", 'd', OPT_BOOL, "Detached mode: run command in the background" },
    { "detach-keys", 0, OPT_TEXT, "Key sequence for detaching" },
    { "env", 'e', OPT_LIST, "Set environment variables" },
    { "env-file", 0, OPT_LIST, "Read in a file of environment variables" },
    { "interactive", 'i', OPT_BOOL, "Keep STDIN open even if not attached" },
    { "privileged", 0, OPT_BOOL, "Give extended privileges to the command" },
    { "tty", 't', OPT_BOOL, "Allocate a pseudo-TTY" },
    { "user", 'u', OPT_TEXT, "Username or UID (format: <name|uid>[:<group|gid>])" },
    { "workdir", 'w', OPT_TEXT, "Working directory inside the container" },
    { NULL, 0, OPT_BOOL, NULL },
};

/* In the joined child: names are looked up in the container's own account files. */
static int exec_user(struct launch *l, int root, struct err *e) {
    struct {
        struct plan *p;
        const char *spec;
    } *x = l->in_root_arg;
    struct rootfs_view v = { NULL, -1, root };
    struct user u;
    if (user_resolve(&v, x->spec, &u, e)) return -1;
    x->p->uid = u.uid;
    x->p->gid = u.gid;
    free(x->p->groups);
    x->p->groups = u.groups ? u.groups : mem_new(4);
    x->p->ngroups = u.ngroups;
    if (u.uid) x->p->cap_effective = x->p->cap_permitted = x->p->cap_ambient = 0;
    else x->p->cap_effective = x->p->cap_permitted = x->p->cap_bounding;
    for (size_t i = 0; i < x->p->env.n; i++)
        if (str_prefix(x->p->env.v[i], "HOME=") && *u.home)
            free(x->p->env.v[i]), x->p->env.v[i] = str_fmt("HOME=%s", u.home);
    return 0;
}

/* Copies between our terminal and a pty of our own until the process is gone; true: detached
 * before. */
static bool exec_tty(int master, pid_t pid, bool input, struct keys *keys) {
    struct terminal term = { .raw = false };
    sigset_t set;
    bool left = false;
    AUTO_FD sig = attach_signals(&set, true);
    AUTO_FD pidfd = sys_pidfd_open(pid);
    struct winsize ws;
    if (input && isatty(0)) terminal_raw(&term);
    if (!ioctl(0, TIOCGWINSZ, &ws)) ioctl(master, TIOCSWINSZ, &ws);
    for (bool gone = false; !left;) {
        struct pollfd p[] = { { master, POLLIN, 0 },
                              { sig, POLLIN, 0 },
                              { input ? 0 : -1, POLLIN, 0 },
                              { gone ? -1 : pidfd, POLLIN, 0 } };
        char buf[16384];
        int n = poll(p, 4, gone ? 0 : -1);
        if (gone && n <= 0) break;
        if (p[0].revents) {
            ssize_t k = read(master, buf, sizeof buf);
            if (k > 0) (void)!fd_write_all(1, buf, (size_t)k);
            else if (k == 0 || errno != EINTR) break;
        }
        if (p[1].revents) {
            struct signalfd_siginfo si;
            while (read(sig, &si, sizeof si) == sizeof si)
                if (si.ssi_signo == SIGHUP) left = true;
                else if (si.ssi_signo == SIGWINCH && !ioctl(0, TIOCGWINSZ, &ws))
                    ioctl(master, TIOCSWINSZ, &ws);
        }
        if (p[2].revents) {
            char typed[sizeof buf - 32];
            size_t n2 = 0;
            ssize_t k = read(0, typed, sizeof typed);
            if (k <= 0) input = false;
            else left = keys_filter(keys, typed, (size_t)k, buf, &n2);
            if (n2) (void)!fd_write_all(master, buf, n2);
        }
        if (p[3].revents) gone = true;
    }
    terminal_restore(&term);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    return left;
}

/* Pumps between our stdio and a process's pipes until it is gone and they are dry: our own
 * descriptors (a terminal, a file that can be opened again) never reach the container. Takes the
 * pipes. */
static void exec_pump(int in, int out, int err, pid_t pid, bool input) {
    AUTO_FD pidfd = sys_pidfd_open(pid), w = in, o = out, r = err;
    struct buf held = { 0 };
    signal(SIGPIPE, SIG_IGN);
    fcntl(w, F_SETFL, O_NONBLOCK | O_WRONLY);
    if (!input) fd_closep(&w);
    for (bool gone = false; o >= 0 || r >= 0 || !gone;) {
        struct pollfd p[] = { { o, POLLIN, 0 },
                              { r, POLLIN, 0 },
                              { input && !held.n ? 0 : -1, POLLIN, 0 },
                              { held.n ? w : -1, POLLOUT, 0 },
                              { gone ? -1 : pidfd, POLLIN, 0 } };
        char buf[65536];
        int n = poll(p, 5, gone ? 0 : -1);
        if (gone && n <= 0) break;
        for (int i = 0; i < 2; i++) {
            if (!p[i].revents) continue;
            ssize_t k = read(p[i].fd, buf, sizeof buf);
            if (k > 0 && !fd_write_all(i + 1, buf, (size_t)k)) continue;
            if (k < 0 && errno == EINTR) continue;
            fd_closep(i ? &r : &o); /* its end, or nobody reads what we write */
        }
        if (p[2].revents) {
            ssize_t k = read(0, buf, sizeof buf);
            if (k > 0) buf_add(&held, buf, (size_t)k);
            else input = false;
        }
        if (held.n) {
            ssize_t k = write(w, held.p, held.n);
            if (k > 0) memmove(held.p, held.p + k, held.n -= (size_t)k);
            else if (errno != EAGAIN && errno != EINTR) held.n = 0, input = false;
        }
        if (!input && !held.n) fd_closep(&w);
        if (p[4].revents) gone = true;
    }
    buf_done(&held);
}

/* The plan of a process in a running container: its own, with another /process. */
static json_t *exec_spec(struct cli *c, const struct ctr *k, struct err *e) {
    json_t *spec = json_deep_copy(k->config), *proc = js_get(spec, "process");
    AUTO_STRV env = { 0 }, files = { 0 }, vars = { 0 };
    json_t *args = json_array();
    for (int i = 1; i < c->nargs; i++) js_push(args, c->args[i]);
    js_set(proc, "args", args);
    js_setb(proc, "terminal", cli_flag(c, "tty"));
    js_to_strv(js_get(proc, "env"), &env);
    cli_list(c, "env-file", &files);
    cli_list(c, "env", &vars);
    for (size_t i = 0; i < files.n; i++)
        if (env_file(&env, files.v[i], e)) return json_decref(spec), NULL;
    for (size_t i = 0; i < vars.n; i++) env_option(&env, vars.v[i]);
    if (cli_flag(c, "tty") && !env_get(&env, "TERM")) strv_add(&env, "TERM=xterm");
    js_set(proc, "env", js_strv(&env));
    const char *cwd = cli_text(c, "workdir");
    if (cwd && *cwd != '/')
        return json_decref(spec),
               err_set(e, 0, "working directory '%.200s' is not an absolute path", cwd), NULL;
    if (cwd) js_sets(proc, "cwd", cwd);
    if (cli_flag(c, "privileged")) {
        json_t *caps = js_sub(proc, "capabilities");
        js_set(caps, "bounding", cap_json(CAP_ALL));
        js_set(caps, "effective", cap_json(CAP_ALL));
        js_set(caps, "permitted", cap_json(CAP_ALL));
        js_sets(js_get(spec, "skiff"), "seccomp", "unconfined");
    }
    return spec;
}

static int cmd_exec(struct cli *c, struct err *e) {
    AUTO_CTR k = { .dir = -1 };
    struct plan p = { 0 };
    struct launch l;
    if (!cli_store(c, e) || ctr_find(c->store, c->args[0], &k, e)) return -1;
    if (!ctr_alive(&k)) return err_set(e, 0, "Container %s is not running", k.id);
    if (ctr_is(&k, "paused"))
        return err_set(e, 0, "Container %s is paused, unpause the container before exec",
                       ctr_name(&k));
    bool tty = cli_flag(c, "tty"), input = cli_flag(c, "interactive"),
         detach = cli_flag(c, "detach");
    struct keys keys = { .n =
                             detach_keys(cli_text(c, "detach-keys"), keys.want, sizeof keys.want) };
    if (keys.n < 0) return err_set(e, 0, "invalid detach keys (%.60s)", cli_text(c, "detach-keys"));
    if (tty && input && !detach && !isatty(0))
        return err_set(e, 0, "the input device is not a TTY");
    AUTO_FD pidfd = ctr_pidfd(&k, e);
    AUTO_JSON *spec = pidfd < 0 ? NULL : exec_spec(c, &k, e);
    if (!spec || plan_parse(spec, &p, e)) return -1;
    p.init = false;
    struct {
        struct plan *p;
        const char *spec;
    } user = { &p, cli_text(c, "user") };
    ctr_join_init(&k, &p, &l);
    if (user.spec) l.in_root = exec_user, l.in_root_arg = &user;
    int in[2] = { -1, -1 }, out[2] = { -1, -1 }, er[2] = { -1, -1 };
    bool pipes = !detach && !tty;
    if (pipes && (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(er, O_CLOEXEC)))
        return plan_done(&p), err_set(e, errno, "pipe");
    if (pipes) l.stdio[0] = input ? in[0] : -1, l.stdio[1] = out[1], l.stdio[2] = er[1];
    fflush(NULL);
    int rc = launch_join(&l, pidfd, ctr_namespaces(&p), e);
    if (!rc) rc = launch_wait(&l, e);
    fd_closep(&in[0]), fd_closep(&out[1]), fd_closep(&er[1]);
    struct pollfd gone = { pidfd, POLLIN, 0 };
    if (rc && !e->status && poll(&gone, 1, 0) > 0) {
        launch_done(&l);
        plan_done(&p);
        return err_set(e, 0, "Container %s is not running", k.id);
    }
    if (rc) {
        cli_error(c, e);
        rc = e->status ? e->status : 126;
        while (waitpid(-1, NULL, 0) > 0) continue;
    } else if (!detach) {
        int status = 0;
        bool left = l.console >= 0 && exec_tty(l.console, l.pid, input, &keys);
        if (pipes) exec_pump(in[1], out[0], er[0], l.pid, input);
        while (!left && waitpid(l.pid, &status, 0) < 0 && errno == EINTR) continue;
        rc = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    launch_done(&l);
    plan_done(&p);
    return rc;
}

/* ---- 26.6 logs ---- */
struct logs {
    bool stamps;
    char *details /* owned: before each line; NULL: nothing */;
    i64 since, until;
};

/* Prints the lines of one log file from `from` on; returns how many bytes are behind it. */
static u64 logs_print(const struct logs *g, int fd, u64 from, i64 skip_lines) {
    AUTO_BUF b = { 0 };
    if (lseek(fd, (off_t)from, SEEK_SET) < 0 || fd_slurp(fd, 1u << 31, &b) || !b.p) return from;
    char *end;
    size_t done = 0;
    for (char *l = b.p; (end = memchr(l, '\n', b.n - (size_t)(l - b.p))); l = end + 1) {
        done = (size_t)(end + 1 - b.p);
        if (skip_lines-- > 0) continue;
        AUTO_JSON *j = json_loadb(l, (size_t)(end - l), JSON_ALLOW_NUL, NULL);
        const json_t *text = js_get(j, "log");
        const char *t = js_str(j, "time");
        i64 at = g->since >= 0 || g->until >= 0 ? time_parse(t) : 0;
        if (!text || (g->since >= 0 && at < g->since) || (g->until >= 0 && at > g->until)) continue;
        FILE *to = str_eq(js_str(j, "stream"), "stderr") ? stderr : stdout;
        if (g->stamps) fprintf(to, "%s ", t);
        if (g->details) fprintf(to, "%s ", g->details);
        fwrite(json_string_value(text), 1, json_string_length(text), to);
    }
    fflush(stdout);
    return from + done;
}

/* "2h", a time, or seconds since 1970, as Docker's --since takes them; -2: none of them. */
static i64 time_option(const char *s) {
    if (!s) return -1;
    i64 ns = time_duration(s), unix_s;
    if (str_int(s, 0, INT64_MAX / 1000000000, &unix_s)) return unix_s * 1000000000;
    if (ns >= 0) return time_now_ns() - ns;
    ns = time_parse(s);
    return ns >= 0 ? ns : -2;
}

static u64 logs_count(int fd) {
    AUTO_BUF b = { 0 };
    u64 n = 0;
    lseek(fd, 0, SEEK_SET);
    if (fd_slurp(fd, 1u << 31, &b) || !b.p) return 0;
    for (char *p = b.p; (p = strchr(p, '\n')); p++) n++;
    return n;
}

/* What --log-opt labels=… and env=… ask for, as name=value pairs. Caller owns it. */
static char *logs_details(const struct ctr *k) {
    AUTO_STRV want = { 0 }, env = { 0 }, names = { 0 };
    AUTO_JSON *out = json_object();
    const char *labels = js_str(k->config, "skiff.log.options.labels"),
               *vars = js_str(k->config, "skiff.log.options.env");
    if (labels) strv_split(&want, labels, ',');
    if (vars) strv_split(&names, vars, ',');
    js_to_strv(js_path(k->config, "process.env"), &env);
    for (size_t i = 0; i < want.n; i++)
        js_sets(out, want.v[i],
                json_string_value(js_get(js_path(k->config, "skiff.labels"), want.v[i])));
    for (size_t i = 0; i < names.n; i++) js_sets(out, names.v[i], env_get(&env, names.v[i]));
    return labels_text(out, ",");
}

static int cmd_logs(struct cli *c, struct err *e) {
    AUTO_CTR k = { .dir = -1 };
    struct logs g = { cli_flag(c, "timestamps"), NULL, time_option(cli_text(c, "since")),
                      time_option(cli_text(c, "until")) };
    i64 tail = -1;
    const char *t = cli_text(c, "tail");
    if (g.since == -2 || g.until == -2)
        return err_set(e, 0, "invalid value for \"--since\" or \"--until\": not a time");
    if (t && strcmp(t, "all") && !str_int(t, 0, INT32_MAX, &tail)) tail = -1;
    if (!cli_store(c, e) || ctr_find(c->store, c->args[0], &k, e)) return -1;
    if (str_eq(js_str(k.config, "skiff.log.driver"), "none"))
        return err_set(e, 0, "configured logging driver does not support reading");
    if (cli_flag(c, "details")) g.details = logs_details(&k);
    int fds[1001], n = 0;
    for (i64 i = js_int(k.config, "skiff.log.maxFile", 1) - 1; i >= 0 && n < 1000;
         i--) { /* oldest first */
        char name[32] = "log.json";
        if (i) snprintf(name, sizeof name, "log.json.%d", (int)i);
        int fd = openat(k.dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd >= 0) fds[n++] = fd;
    }
    u64 total = 0, at = 0;
    if (tail >= 0)
        for (int i = 0; i < n; i++) total += logs_count(fds[i]);
    i64 skip = tail >= 0 && total > (u64)tail ? (i64)total - tail : 0;
    for (int i = 0; i < n; i++) {
        u64 lines = skip > 0 ? logs_count(fds[i]) : 0;
        at = logs_print(&g, fds[i], 0, skip);
        skip = skip > (i64)lines ? skip - (i64)lines : 0;
    }
    AUTO_FD live = n ? fds[n - 1] : -1;
    while (cli_flag(c, "follow") && !ferror(stdout)) {
        bool alive = lock_held(k.dir, "lock");
        AUTO_FD now = openat(k.dir, "log.json", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        struct stat a, b;
        if (now >= 0 && live >= 0 && !fstat(now, &a) && !fstat(live, &b) &&
            a.st_ino != b.st_ino) { /* rotated */
            logs_print(&g, live, at, 0);
            close(live);
            live = fd_steal(&now);
            at = 0;
        } else if (live < 0) live = fd_steal(&now);
        if (live >= 0) at = logs_print(&g, live, at, 0);
        if (!alive) break;
        usleep(100000);
    }
    return 0;
}

/* ---- 26.7 inspect ---- */
static json_t *inspect_state(const struct ctr *k) {
    const char *st = ctr_status(k);
    json_t *s = json_object();
    js_sets(s, "Status", st);
    js_setb(s, "Running", ctr_alive(k) && strcmp(st, "restarting") != 0);
    js_setb(s, "Paused", !strcmp(st, "paused"));
    js_setb(s, "Restarting", !strcmp(st, "restarting"));
    js_setb(s, "OOMKilled", js_bool(k->state, "oomKilled"));
    js_setb(s, "Dead", false);
    js_seti(s, "Pid", js_int(k->state, "pid", 0));
    js_seti(s, "ExitCode", js_int(k->state, "exitCode", 0));
    js_sets(s, "Error", js_str_or(k->state, "error", ""));
    js_sets(s, "StartedAt", js_str_or(k->state, "startedAt", ""));
    js_sets(s, "FinishedAt", js_str_or(k->state, "finishedAt", ""));
    const json_t *h = js_get(k->state, "health");
    if (h)
        js_set(s, "Health",
               json_pack("{s:s,s:I,s:O}", "Status", js_str_or(h, "status", ""), "FailingStreak",
                         (json_int_t)js_int(h, "failingStreak", 0), "Log", js_get(h, "log")));
    return s;
}

static json_t *inspect_config(const struct ctr *k) {
    const json_t *c = k->config;
    json_t *j = json_object();
    js_sets(j, "Hostname", js_str_or(c, "hostname", ""));
    js_sets(j, "Domainname", js_str_or(c, "domainname", ""));
    js_sets(j, "User", js_str_or(c, "skiff.userSpec", ""));
    js_setb(j, "AttachStdin", js_bool(c, "skiff.stdinOnce"));
    js_setb(j, "AttachStdout", true);
    js_setb(j, "AttachStderr", true);
    js_set(j, "ExposedPorts", js_copy(c, "skiff.exposedPorts", json_object()));
    js_setb(j, "Tty", js_bool(c, "process.terminal"));
    js_setb(j, "OpenStdin", js_bool(c, "skiff.openStdin"));
    js_setb(j, "StdinOnce", js_bool(c, "skiff.stdinOnce"));
    js_set(j, "Env",
           js_copy(c, js_path(c, "skiff.env") ? "skiff.env" : "process.env", json_array()));
    const json_t *ep = js_path(c, "skiff.entrypoint"), *args = js_path(c, "process.args");
    json_t *cmd = json_array();
    for (size_t i = json_array_size(ep); i < json_array_size(args); i++)
        json_array_append(cmd, json_array_get(args, i));
    js_set(j, "Cmd", cmd);
    js_sets(j, "Image", js_str_or(c, "skiff.image", ""));
    js_set(j, "Volumes", js_copy(c, "skiff.imageVolumes", json_null()));
    js_sets(j, "WorkingDir", js_str_or(c, "process.cwd", ""));
    js_set(j, "Entrypoint", js_copy(c, "skiff.entrypoint", json_null()));
    js_set(j, "Labels", js_copy(c, "skiff.labels", json_object()));
    js_sets(j, "StopSignal", js_str_or(c, "skiff.stopSignal", "SIGTERM"));
    js_seti(j, "StopTimeout", js_int(c, "skiff.stopTimeout", 10));
    const json_t *h = js_path(c, "skiff.health");
    if (h)
        js_set(j, "Healthcheck",
               json_pack("{s:O,s:I,s:I,s:I,s:I}", "Test", js_get(h, "declared"), "Interval",
                         (json_int_t)js_int(h, "intervalNs", 0), "Timeout",
                         (json_int_t)js_int(h, "timeoutNs", 0), "StartPeriod",
                         (json_int_t)js_int(h, "startPeriodNs", 0), "Retries",
                         (json_int_t)js_int(h, "retries", 3)));
    return j;
}

/* Namespaces by their mode; and what scripts look at, where there is nothing to tell. */
static void inspect_host_zeroes(const json_t *c, json_t *j) {
    static const struct {
        const char *name, *type;
    } MODES[] = { { "IpcMode", "ipc" },
                  { "PidMode", "pid" },
                  { "UTSMode", "uts" },
                  { "UsernsMode", "user" },
                  { "CgroupnsMode", "cgroup" } };
    static const char *const LISTS[] = { "Dns",      "DnsOptions", "DnsSearch", "ExtraHosts",
                                         "GroupAdd", "Devices",    "Mounts",    "SecurityOpt",
                                         "Ulimits" };
    for (size_t i = 0; i < ARRAY_LEN(MODES); i++) {
        bool own = false;
        size_t k;
        json_t *ns;
        json_array_foreach (js_path(c, "linux.namespaces"), k, ns)
            own |= str_eq(js_str(ns, "type"), MODES[i].type);
        js_sets(j, MODES[i].name, own ? "private" : "host");
    }
    for (size_t i = 0; i < ARRAY_LEN(LISTS); i++) {
        AUTO_FREE char *key = str_fmt("skiff.host.%s", LISTS[i]);
        js_set(j, LISTS[i], js_copy(c, key, json_array()));
    }
    js_set(j, "Sysctls", js_copy(c, "linux.sysctl", json_object()));
    js_set(j, "Devices", js_copy(c, "linux.devices", json_array()));
    js_set(j, "Ulimits", js_copy(c, "process.rlimits", json_array()));
    js_seti(j, "ShmSize", js_int(c, "skiff.shmSize", 67108864));
    js_seti(j, "CpuQuota", js_int(c, "linux.resources.cpu.quota", 0));
    js_seti(j, "CpuPeriod", js_int(c, "linux.resources.cpu.period", 0));
    js_sets(j, "CpusetCpus", js_str_or(c, "linux.resources.cpu.cpus", ""));
    js_sets(j, "CpusetMems", js_str_or(c, "linux.resources.cpu.mems", ""));
    js_seti(j, "BlkioWeight", js_int(c, "linux.resources.blockIO.weight", 0));
    js_sets(j, "CgroupParent", js_str_or(c, "skiff.cgroupParent", ""));
    js_set(j, "MemorySwappiness", json_null());
    js_set(j, "OomKillDisable", json_null());
    js_set(j, "Tmpfs", json_object());
    js_sets(j, "VolumeDriver", "");
    js_set(j, "VolumesFrom", json_null());
    js_set(j, "Links", json_null());
}

static json_t *inspect_host_config(const struct ctr *k) {
    const json_t *c = k->config, *res = js_path(c, "linux.resources");
    json_t *j = json_object();
    js_set(j, "Binds", json_array());
    const json_t *m;
    size_t i;
    json_array_foreach (js_path(c, "skiff.mounts"), i, m) {
        if (str_eq(js_str(m, "Type"), "tmpfs")) continue;
        const char *src = js_str(m, "Name") ? js_str(m, "Name") : js_str(m, "Source");
        AUTO_FREE char *b =
            str_fmt("%s:%s%s", src, js_str(m, "Destination"), js_bool(m, "RW") ? "" : ":ro");
        js_push(js_get(j, "Binds"), b);
    }
    js_set(j, "LogConfig",
           json_pack("{s:s,s:o}", "Type", js_str_or(c, "skiff.log.driver", "json-file"), "Config",
                     js_copy(c, "skiff.log.options", json_object())));
    js_sets(j, "NetworkMode", js_str_or(c, "skiff.network", "host"));
    js_set(j, "PortBindings", json_object());
    js_set(j, "RestartPolicy",
           json_pack("{s:s,s:I}", "Name", js_str_or(c, "skiff.restart.name", "no"),
                     "MaximumRetryCount", (json_int_t)js_int(c, "skiff.restart.max", 0)));
    js_setb(j, "AutoRemove", js_bool(c, "skiff.autoRemove"));
    js_setb(j, "Privileged", js_bool(c, "skiff.privileged"));
    js_setb(j, "ReadonlyRootfs", js_bool(c, "root.readonly"));
    js_setb(j, "Init", js_bool(c, "skiff.init"));
    js_seti(j, "Memory", js_int(res, "memory.limit", 0));
    js_seti(j, "MemorySwap", js_int(res, "memory.swap", 0));
    js_seti(j, "MemoryReservation", js_int(res, "memory.reservation", 0));
    js_seti(j, "NanoCpus",
            js_int(res, "cpu.quota", 0) > 0
                ? js_int(res, "cpu.quota", 0) * 1000000000 / js_int(res, "cpu.period", 100000)
                : 0);
    js_seti(j, "CpuShares", js_int(res, "cpu.shares", 0));
    js_seti(j, "PidsLimit", js_int(res, "pids.limit", 0));
    js_seti(j, "OomScoreAdj", js_int(c, "process.oomScoreAdj", 0));
    js_set(j, "CapAdd", js_copy(c, "skiff.capAdd", NULL));
    js_set(j, "CapDrop", js_copy(c, "skiff.capDrop", NULL));
    inspect_host_zeroes(c, j);
    json_array_foreach (js_path(c, "skiff.mounts"), i, m)
        if (str_eq(js_str(m, "Type"), "tmpfs"))
            js_sets(js_sub(j, "Tmpfs"), js_str(m, "Destination"), "");
    js_sets(j, "Runtime", "skiff");
    js_set(j, "MaskedPaths", js_copy(c, "linux.maskedPaths", json_array()));
    js_set(j, "ReadonlyPaths", js_copy(c, "linux.readonlyPaths", json_array()));
    return j;
}

static json_t *ctr_inspect(const struct ctr *k) {
    const json_t *c = k->config, *args = js_path(c, "process.args");
    json_t *j = json_object(), *rest = json_array();
    js_sets(j, "Id", k->id);
    js_sets(j, "Created", js_str_or(c, "skiff.created", ""));
    js_sets(j, "Path", json_string_value(json_array_get(args, 0)));
    for (size_t i = 1; i < json_array_size(args); i++)
        json_array_append(rest, json_array_get(args, i));
    js_set(j, "Args", rest);
    js_set(j, "State", inspect_state(k));
    AUTO_FREE char *image = str_fmt("sha256:%s", js_str_or(c, "skiff.imageId", "")),
                   *name = str_fmt("/%s", ctr_name(k));
    AUTO_FREE char *dir = str_fmt("%s/containers/%s", k->s->path, k->id),
                   *log = str_fmt("%s/log.json", dir);
    js_sets(j, "Image", image);
    js_sets(j, "ResolvConfPath", ""); /* these three are in the container's memory */
    js_sets(j, "HostnamePath", "");
    js_sets(j, "HostsPath", "");
    js_sets(j, "LogPath", str_eq(js_str(c, "skiff.log.driver"), "none") ? "" : log);
    js_sets(j, "Name", name);
    js_seti(j, "RestartCount", js_int(k->state, "restartCount", 0));
    js_sets(j, "Driver", js_str_or(c, "skiff.rootfs.driver", ""));
    js_set(j, "GraphDriver",
           json_pack("{s:s,s:{}}", "Name", js_str_or(c, "skiff.rootfs.driver", ""), "Data"));
    js_sets(j, "Platform", "linux");
    js_sets(j, "MountLabel", "");
    js_sets(j, "ProcessLabel", "");
    js_sets(j, "AppArmorProfile", "");
    js_set(j, "HostConfig", inspect_host_config(k));
    js_set(j, "Mounts", js_copy(c, "skiff.mounts", json_array()));
    js_set(j, "Config", inspect_config(k));
    js_set(j, "NetworkSettings",
           json_pack("{s:{},s:{s:{s:s,s:s,s:s}},s:s,s:s,s:s,s:i}", "Ports", "Networks",
                     js_str_or(c, "skiff.network", "host"), "IPAddress", "", "Gateway", "",
                     "MacAddress", "", "IPAddress", "", "Gateway", "", "MacAddress", "",
                     "IPPrefixLen", 0));
    js_set(j, "ExecIDs", json_null());
    return j;
}

/* All names of an image: "repo:tag" and "repo@digest". */
static void image_names(const struct store *s, const char *manifest, json_t *tags,
                        json_t *digests) {
    struct err e;
    AUTO_JSON *index = store_index(s, &e);
    size_t i;
    json_t *d;
    json_array_foreach (js_get(index, "manifests"), i, d) {
        if (!str_eq(js_str(d, "digest"), manifest)) continue;
        struct ref r;
        const char *n = desc_name(d),
                   *rd = json_string_value(js_get(js_get(d, "annotations"), REPO_DIGEST));
        if (n && !ref_parse(n, &r, &e) && r.tag[0]) {
            AUTO_FREE char *f = ref_familiar(&r);
            js_push(tags, f);
        }
        if (rd && !ref_parse(rd, &r, &e)) {
            AUTO_FREE char *repo = ref_repository(&r), *f = str_fmt("%s@%s", repo, r.digest);
            bool have = false;
            size_t k;
            json_t *x;
            json_array_foreach (digests, k, x) have |= str_eq(json_string_value(x), f);
            if (!have) js_push(digests, f);
        }
    }
}

/* Bytes of contents of all layers, as Docker's Size. */
static u64 image_size(const struct store *s, const struct image *m) {
    u64 n = 0;
    for (size_t i = 0; i < m->diff_ids.n; i++) {
        AUTO_IDX x = { 0 };
        struct err e;
        char path[96];
        snprintf(path, sizeof path, "layers/%s.idx", digest_hex(m->diff_ids.v[i]));
        if (!idx_open(s->dir, path, false, &x, &e)) n += x.head->content_size;
    }
    return n;
}

static json_t *image_inspect(const struct store *s, const struct image *m) {
    json_t *j = json_object(), *tags = json_array(), *digests = json_array();
    AUTO_FREE char *id = str_fmt("sha256:%s", m->id);
    image_names(s, js_str(m->desc, "digest"), tags, digests);
    js_sets(j, "Id", id);
    js_set(j, "RepoTags", tags);
    js_set(j, "RepoDigests", digests);
    js_sets(j, "Parent", "");
    js_sets(j, "Comment",
            js_str_or(json_array_get(js_get(m->config, "history"),
                                     json_array_size(js_get(m->config, "history")) - 1),
                      "comment", ""));
    js_sets(j, "Created", js_str_or(m->config, "created", ""));
    js_sets(j, "Author", js_str_or(m->config, "author", ""));
    json_t *run = js_copy(m->config, "config", json_object());
    static const char *const ALWAYS[] = { "Cmd", "Entrypoint",   "Volumes", "Labels",
                                          "Env", "ExposedPorts", "OnBuild" };
    static const char *const TEXTS[] = { "User", "WorkingDir" };
    for (size_t i = 0; i < ARRAY_LEN(ALWAYS); i++)
        if (!js_get(run, ALWAYS[i])) js_set(run, ALWAYS[i], NULL);
    for (size_t i = 0; i < ARRAY_LEN(TEXTS); i++)
        if (!js_get(run, TEXTS[i])) js_sets(run, TEXTS[i], "");
    js_set(j, "Config", run);
    js_sets(j, "Architecture", js_str_or(m->config, "architecture", ""));
    if (js_str(m->config, "variant")) js_sets(j, "Variant", js_str(m->config, "variant"));
    js_sets(j, "Os", js_str_or(m->config, "os", ""));
    js_seti(j, "Size", (i64)image_size(s, m));
    js_set(j, "RootFS",
           json_pack("{s:s,s:o}", "Type", "layers", "Layers",
                     js_copy(m->config, "rootfs.diff_ids", json_array())));
    json_t *d = json_object();
    for (const char *const *k = (const char *const[]){ "mediaType", "digest", "size", NULL }; *k;
         k++)
        json_object_set(d, *k, js_get(m->desc, *k));
    js_set(j, "Descriptor", d);
    return j;
}

static json_t *volume_inspect(const struct store *s, const char *name, struct err *e) {
    AUTO_FREE char *path = str_fmt("volumes/%s/meta.json", name);
    if (!volume_name_ok(name)) return err_set(e, 0, "no such volume: %.100s", name), NULL;
    json_t *j = js_load(s->dir, path, e);
    if (!j) return err_set(e, 0, "get %s: no such volume", name), NULL;
    AUTO_FREE char *mp = str_fmt("%s/volumes/%s/_data", s->path, name);
    js_sets(j, "Mountpoint", mp);
    json_object_del(j, "anonymous");
    return j;
}

static const struct opt OPT_INSPECT[] = {
    { "format", 'f', OPT_TEXT, "Format output using a custom template" },
    { "size", 's', OPT_BOOL, "Display total file sizes if the type is container" },
    { "type", 0, OPT_TEXT, "Return JSON for specified type (container|image|volume)" },
    { "platform", 0, OPT_TEXT, "Accepted" },
    { NULL, 0, OPT_BOOL, NULL },
};

/* `inspect` and its forms for one kind: kind is the command's first word or --type. */
static int cmd_inspect(struct cli *c, struct err *e) {
    const char *type = cli_text(c, "type"), *format = cli_text(c, "format");
    bool any = !strcmp(c->cmd->path, "inspect");
    if (!any)
        type = str_prefix(c->cmd->path, "container") ? "container"
               : str_prefix(c->cmd->path, "image")   ? "image"
                                                     : "volume";
    if (type && strcmp(type, "container") && strcmp(type, "image") && strcmp(type, "volume"))
        return err_set(e, 0, "\"%.40s\" is not a valid value for --type", type);
    if (!cli_store(c, e)) return -1;
    AUTO_JSON *all = json_array();
    int failed = 0;
    for (int i = 0; i < c->nargs; i++) {
        AUTO_CTR k = { .dir = -1 };
        AUTO_IMAGE m = { 0 };
        json_t *j = NULL;
        if ((!type || !strcmp(type, "container")) && !ctr_find(c->store, c->args[i], &k, e)) {
            u64 rw = 0, size = 0;
            j = ctr_inspect(&k);
            if (cli_flag(c, "size")) {
                ctr_size(&k, &rw, &size);
                js_seti(j, "SizeRw", (i64)rw);
                js_seti(j, "SizeRootFs", (i64)size);
            }
        }
        if (!j && (!type || !strcmp(type, "image")) &&
            !image_find(c->store, c->args[i], &m, NULL, e))
            j = image_inspect(c->store, &m);
        if (!j && (!type || !strcmp(type, "volume"))) j = volume_inspect(c->store, c->args[i], e);
        AUTO_FREE char *shown = str_printable(c->args[i]);
        if (!j) {
            fprintf(stderr, "Error: No such %s: %s\n", type ? type : "object", shown);
            failed = 1;
        } else json_array_append_new(all, j);
    }
    if (str_empty(format) || !strcmp(format, "json")) {
        AUTO_FREE char *s = js_dump(all, str_empty(format) ? JSON_INDENT(4) : JSON_COMPACT);
        puts(s);
        return failed;
    }
    size_t n;
    json_t *one;
    json_array_foreach (all, n, one) { /* unlike the lists, inspect takes \t as it stands */
        AUTO_BUF out = { 0 };
        if (tmpl_run(format, one, &out, e)) return -1;
        puts(out.p ? out.p : "");
    }
    return failed;
}

/* ---- 26.8 ps ---- */
static const struct opt OPT_PS[] = {
    { "all", 'a', OPT_BOOL, "Show all containers (default shows just running)" },
    { "filter", 'f', OPT_LIST, "Filter output based on conditions provided" },
    { "format", 0, OPT_TEXT, "Format output using a custom template" },
    { "last", 'n', OPT_INT, "Show n last created containers" },
    { "latest", 'l', OPT_BOOL, "Show the latest created container" },
    { "no-trunc", 0, OPT_BOOL, "Don't truncate output" },
    { "quiet", 'q', OPT_BOOL, "Only display container IDs" },
    { "size", 's', OPT_BOOL, "Display total file sizes" },
    { NULL, 0, OPT_BOOL, NULL },
};

static char *ago(const char *when) {
    i64 t = time_parse(when), now = time_now_ns();
    return t <= 0 ? str_dup("N/A") : time_human(now > t ? now - t : 0);
}

/* "Up 3 minutes (healthy)", "Exited (0) 2 hours ago". Caller owns it. */
static char *ctr_status_text(const struct ctr *k) {
    const char *st = ctr_status(k), *health = js_str(k->state, "health.status");
    AUTO_FREE char *up = ago(js_str(k->state, "startedAt")),
                   *down = ago(js_str(k->state, "finishedAt"));
    i64 code = js_int(k->state, "exitCode", 0);
    if (!strcmp(st, "running"))
        return health ? str_fmt(!strcmp(health, "starting") ? "Up %s (health: %s)" : "Up %s (%s)",
                                up, health)
                      : str_fmt("Up %s", up);
    if (!strcmp(st, "paused")) return str_fmt("Up %s (Paused)", up);
    if (!strcmp(st, "restarting")) return str_fmt("Restarting (%" PRId64 ") %s ago", code, down);
    if (!strcmp(st, "created")) return str_dup("Created");
    return str_fmt("Exited (%" PRId64 ") %s ago", code, down);
}

static char *quoted_command(const struct ctr *k, bool trunc) {
    AUTO_STRV args = { 0 };
    js_to_strv(js_path(k->config, "process.args"), &args);
    for (size_t i = 0; i < args.n; i++)
        if (strchr(args.v[i], ' ')) {
            char *q = str_fmt("'%s'", args.v[i]);
            free(args.v[i]);
            args.v[i] = q;
        }
    AUTO_FREE char *all = str_join(&args, " "), *safe = str_printable(all);
    if (trunc && strlen(safe) > 20) return str_fmt("\"%.19s…\"", safe);
    return str_fmt("\"%s\"", safe);
}

static json_t *ps_row(const struct ctr *k, const struct cli *c) {
    bool trunc = !cli_flag(c, "no-trunc");
    json_t *r = json_object();
    AUTO_FREE char *id = str_dupn(k->id, trunc ? 12 : HEX_LEN), *cmd = quoted_command(k, trunc),
                   *status = ctr_status_text(k);
    AUTO_FREE char *since = ago(js_str(k->config, "skiff.created")),
                   *running = str_fmt("%s ago", since),
                   *labels = labels_text(js_path(k->config, "skiff.labels"), ",");
    AUTO_FREE char *image = str_printable(js_str_or(k->config, "skiff.image", ""));
    js_sets(r, "ID", id);
    js_sets(r, "Image", *image ? image : "<rootfs>");
    js_sets(r, "Command", cmd);
    char when[40];
    js_sets(r, "CreatedAt", time_go(time_parse(js_str_or(k->config, "skiff.created", "")), when));
    js_sets(r, "RunningFor", running);
    js_sets(r, "Status", status);
    js_sets(r, "State", ctr_status(k));
    js_sets(r, "Ports", "");
    js_sets(r, "Names", ctr_name(k));
    js_sets(r, "Labels", labels);
    js_sets(r, "Networks", js_str_or(k->config, "skiff.network", ""));
    AUTO_BUF mounts = { 0 };
    size_t i;
    json_t *m;
    i64 local = 0;
    json_array_foreach (js_path(k->config, "skiff.mounts"), i, m) {
        local += js_str(m, "Name") != NULL;
        buf_addf(&mounts, "%s%s", mounts.n ? "," : "",
                 js_str(m, "Name") ? js_str(m, "Name") : js_str_or(m, "Source", ""));
    }
    js_sets(r, "Mounts", mounts.p ? mounts.p : "");
    AUTO_FREE char *vols = str_fmt("%" PRId64, local);
    js_sets(r, "LocalVolumes", vols);
    u64 rw = 0, all = 0;
    if (cli_flag(c, "size")) ctr_size(k, &rw, &all);
    AUTO_FREE char *own = size_human(rw), *virtual = size_human(all),
                   *size = str_fmt("%s (virtual %s)", own, virtual);
    js_sets(r, "Size", size);
    return r;
}

/* "key=value" filters of one key; true where none is given or one holds. */
static bool filter_match(const struct strv *filters, const char *key,
                         bool (*holds)(const void *x, const char *v), const void *x) {
    size_t n = strlen(key);
    bool asked = false;
    for (size_t i = 0; i < filters->n; i++) {
        if (strncmp(filters->v[i], key, n) || filters->v[i][n] != '=') continue;
        asked = true;
        if (holds(x, filters->v[i] + n + 1)) return true;
    }
    return !asked;
}

static bool label_holds(const json_t *labels, const char *v) {
    const char *eq = strchr(v, '=');
    AUTO_FREE char *key = str_dupn(v, eq ? (size_t)(eq - v) : strlen(v));
    const char *have = json_string_value(js_get(labels, key));
    return have && (!eq || !strcmp(have, eq + 1));
}

static bool ps_id(const void *x, const char *v) {
    return str_prefix(((const struct ctr *)x)->id, v);
}
static bool ps_name(const void *x, const char *v) {
    regex_t re;
    AUTO_FREE char *full = str_fmt("/%s", ctr_name(x));
    if (regcomp(&re, v, REG_EXTENDED | REG_NOSUB)) return strstr(full, v) != NULL;
    bool hit = !regexec(&re, full, 0, NULL, 0) || !regexec(&re, full + 1, 0, NULL, 0);
    regfree(&re);
    return hit;
}
static bool ps_status(const void *x, const char *v) { return ctr_is(x, v); }
static bool ps_label(const void *x, const char *v) {
    return label_holds(js_path(((const struct ctr *)x)->config, "skiff.labels"), v);
}
static bool ps_exited(const void *x, const char *v) {
    i64 n;
    return ctr_is(x, "exited") && str_int(v, 0, 255, &n) &&
           js_int(((const struct ctr *)x)->state, "exitCode", 0) == n;
}
static bool ps_volume(const void *x, const char *v) {
    size_t i;
    json_t *m;
    json_array_foreach (js_path(((const struct ctr *)x)->config, "skiff.mounts"), i, m)
        if (str_eq(js_str(m, "Name"), v) || str_eq(js_str(m, "Destination"), v) ||
            str_eq(js_str(m, "Source"), v))
            return true;
    return false;
}
static bool ps_health(const void *x, const char *v) {
    return !strcmp(js_str_or(((const struct ctr *)x)->state, "health.status", "none"), v);
}
static bool ps_network(const void *x, const char *v) {
    return str_eq(js_str(((const struct ctr *)x)->config, "skiff.network"), v);
}
static bool ps_ancestor(const void *x, const char *v) {
    const struct ctr *k = x;
    const char *image = js_str_or(k->config, "skiff.image", ""),
               *id = js_str_or(k->config, "skiff.imageId", "");
    struct ref a, b;
    struct err e;
    if (strlen(v) >= 4 && str_prefix(id, str_prefix(v, "sha256:") ? v + 7 : v)) return true;
    if (ref_parse(image, &a, &e) || ref_parse(v, &b, &e)) return false;
    AUTO_FREE char *fa = ref_full(&a), *fb = ref_full(&b);
    return !strcmp(fa, fb);
}

static int filters_known(const struct strv *f, const char *known, struct err *e) {
    for (size_t i = 0; i < f->n; i++) {
        size_t n = strcspn(f->v[i], "=");
        if (!f->v[i][n])
            return err_set(e, 0, "bad format of filter (expected name=value): '%.60s'", f->v[i]);
        if (!word_in(known, f->v[i], n))
            return err_set(e, 0, "invalid filter '%.*s'", (int)n, f->v[i]);
    }
    return 0;
}

/* before=, since=: by the time of creation of another container. */
static bool ps_order(const struct ctr *k, const struct strv *f) {
    for (size_t i = 0; i < f->n; i++) {
        bool before = str_prefix(f->v[i], "before=");
        AUTO_CTR other = { .dir = -1 };
        struct err e;
        if (!before && !str_prefix(f->v[i], "since=")) continue;
        if (ctr_find(k->s, strchr(f->v[i], '=') + 1, &other, &e)) return false;
        int c = strcmp(js_str_or(k->config, "skiff.created", ""),
                       js_str_or(other.config, "skiff.created", ""));
        if (before ? c >= 0 : c <= 0) return false;
    }
    return true;
}

static bool ps_filter(const struct ctr *k, const struct strv *f) {
    return ps_order(k, f) && filter_match(f, "id", ps_id, k) &&
           filter_match(f, "name", ps_name, k) && filter_match(f, "status", ps_status, k) &&
           filter_match(f, "label", ps_label, k) && filter_match(f, "exited", ps_exited, k) &&
           filter_match(f, "volume", ps_volume, k) && filter_match(f, "health", ps_health, k) &&
           filter_match(f, "network", ps_network, k) && filter_match(f, "ancestor", ps_ancestor, k);
}

static int created_order(const void *a, const void *b) {
    const struct ctr *x = a, *y = b;
    return strcmp(js_str_or(y->config, "skiff.created", ""),
                  js_str_or(x->config, "skiff.created", ""));
}

static int cmd_ps(struct cli *c, struct err *e) {
    AUTO_STRV filters = { 0 }, ids = { 0 };
    cli_list(c, "filter", &filters);
    if (!cli_store(c, e) ||
        filters_known(&filters,
                      "id name status label exited volume health network ancestor before since", e))
        return -1;
    static const char STATES[] = "created running paused restarting removing exited dead",
                      HEALTHS[] = "none starting healthy unhealthy";
    for (size_t i = 0; i < filters.n; i++) {
        const char *v = strchr(filters.v[i], '=') + 1;
        i64 n;
        if (str_prefix(filters.v[i], "status=") && !word_in(STATES, v, strlen(v)))
            return err_set(e, 0, "invalid filter 'status=%.40s'", v);
        if (str_prefix(filters.v[i], "health=") && !word_in(HEALTHS, v, strlen(v)))
            return err_set(e, 0, "invalid filter 'health=%.40s'", v);
        AUTO_CTR other = { .dir = -1 };
        if ((str_prefix(filters.v[i], "before=") || str_prefix(filters.v[i], "since=")) &&
            ctr_find(c->store, v, &other, e))
            return -1;
        if (str_prefix(filters.v[i], "exited=") && !str_int(v, 0, 255, &n))
            return err_set(e, 0, "invalid filter 'exited=%.40s'", v);
    }
    bool all = cli_flag(c, "all"), by_status = false;
    for (size_t i = 0; i < filters.n; i++)
        by_status |= str_prefix(filters.v[i], "status=") || str_prefix(filters.v[i], "exited=");
    i64 last = cli_flag(c, "latest") ? 1 : cli_int(c, "last", -1);
    ctr_ids(c->store, &ids);
    struct ctr *k = mem_new((ids.n + 1) * sizeof *k);
    size_t n = 0;
    for (size_t i = 0; i < ids.n; i++)
        if (!ctr_open(c->store, ids.v[i], &k[n], e)) n++;
    qsort(k, n, sizeof *k, created_order);
    AUTO_JSON *rows = json_array();
    for (size_t i = 0; i < n; i++) {
        bool show = !ctr_is_build(&k[i]) && (all || by_status || last > 0 || ctr_alive(&k[i])) &&
                    ps_filter(&k[i], &filters) && (last <= 0 || (i64)json_array_size(rows) < last);
        if (show && cli_flag(c, "quiet"))
            printf("%.*s\n", cli_flag(c, "no-trunc") ? HEX_LEN : 12, k[i].id);
        else if (show) json_array_append_new(rows, ps_row(&k[i], c));
        ctr_done(&k[i]);
    }
    free(k);
    if (cli_flag(c, "quiet")) return 0;
    AUTO_JSON *heads =
        json_pack("{ss,ss,ss,ss,ss,ss,ss,ss,ss,ss,ss,ss,ss,ss}", "ID", "CONTAINER ID", "Image",
                  "IMAGE", "Command", "COMMAND", "CreatedAt", "CREATED AT", "RunningFor", "CREATED",
                  "Status", "STATUS", "State", "STATE", "Ports", "PORTS", "Names", "NAMES",
                  "Labels", "LABELS", "Networks", "NETWORKS", "Mounts", "MOUNTS", "LocalVolumes",
                  "LOCAL VOLUMES", "Size", "SIZE");
    return rows_print(cli_text(c, "format"),
                      cli_flag(c, "size") ? "table "
                                            "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{"
                                            ".Status}}\t{{.Ports}}\t{{.Names}}\t{{.Size}}"
                                          : "table "
                                            "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{"
                                            ".Status}}\t{{.Ports}}\t{{.Names}}",
                      heads, rows, e);
}

/* ---- 26.9 top, port, stats ---- */

/* Fields of /proc/PID/stat after the command's name; false where the process is gone. */
static bool proc_stat(pid_t pid, char *comm, size_t n, unsigned long long f[22]) {
    char path[40], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    if (file_line(AT_FDCWD, path, text, sizeof text)) return false;
    char *open = strchr(text, '('), *close = strrchr(text, ')');
    if (!open || !close || close < open || !close[1]) return false;
    snprintf(comm, n, "%.*s", (int)(close - open - 1), open + 1);
    char *save = NULL;
    int i = 0;
    for (char *t = strtok_r(close + 2, " ", &save); t && i < 22; t = strtok_r(NULL, " ", &save))
        f[i++] = strtoull(t, NULL, 10);
    return i == 22;
}

struct top_proc {
    pid_t pid;
    char comm[64], state;
    char *args /* owned */;
    unsigned uid;
    time_t began;
    unsigned long long f[22];
};

static bool top_read(pid_t pid, struct top_proc *p) {
    char path[40];
    struct stat st;
    AUTO_BUF cmd = { 0 };
    struct err none;
    *p = (struct top_proc){ .pid = pid, .state = 'S' };
    if (!proc_stat(pid, p->comm, sizeof p->comm, p->f)) return false;
    snprintf(path, sizeof path, "/proc/%d/cmdline", (int)pid);
    file_read(AT_FDCWD, path, 4096, &cmd, &none);
    for (size_t b = 0; b + 1 < cmd.n; b++)
        if (!cmd.p[b]) cmd.p[b] = ' ';
    path[strlen(path) - 8] = 0;
    if (!stat(path, &st)) p->uid = st.st_uid, p->began = st.st_mtime;
    p->args = str_printable(cmd.n ? cmd.p : p->comm);
    return true;
}

static const char *top_head(const char *col) {
    static const char *const HEADS[][2] = {
        { "user", "UID" },     { "uid", "UID" },     { "pid", "PID" },  { "ppid", "PPID" },
        { "c", "C" },          { "stime", "STIME" }, { "tty", "TTY" },  { "time", "TIME" },
        { "comm", "COMMAND" }, { "args", "CMD" },    { "cmd", "CMD" },  { "command", "COMMAND" },
        { "rss", "RSS" },      { "vsz", "VSZ" },     { "stat", "STAT" }
    };
    for (size_t i = 0; i < ARRAY_LEN(HEADS); i++)
        if (!strcmp(col, HEADS[i][0])) return HEADS[i][1];
    return NULL;
}

/* One column of one process. Caller owns it. */
static char *top_cell(const struct top_proc *p, const char *col) {
    unsigned long long s = (p->f[11] + p->f[12]) / (unsigned long long)sysconf(_SC_CLK_TCK);
    char started[16] = "?";
    struct tm tm;
    if (!strcmp(col, "user") || !strcmp(col, "uid")) return str_fmt("%u", p->uid);
    if (!strcmp(col, "pid")) return str_fmt("%d", (int)p->pid);
    if (!strcmp(col, "ppid")) return str_fmt("%llu", p->f[1]);
    if (!strcmp(col, "c")) return str_dup("0");
    if (!strcmp(col, "stime"))
        return strftime(started, sizeof started, "%H:%M", localtime_r(&p->began, &tm)),
               str_dup(started);
    if (!strcmp(col, "tty")) return str_dup("?");
    if (!strcmp(col, "time")) return str_fmt("%02llu:%02llu:%02llu", s / 3600, s / 60 % 60, s % 60);
    if (!strcmp(col, "comm")) return str_printable(p->comm);
    if (!strcmp(col, "rss"))
        return str_fmt("%llu", p->f[21] * (unsigned long long)sysconf(_SC_PAGESIZE) / 1024);
    if (!strcmp(col, "vsz")) return str_fmt("%llu", p->f[20] / 1024);
    if (!strcmp(col, "stat")) return str_fmt("%c", p->state);
    return str_dup(p->args);
}

static int cmd_top(struct cli *c, struct err *e) {
    AUTO_CTR k = { .dir = -1 };
    if (!cli_store(c, e) || ctr_find(c->store, c->args[0], &k, e)) return -1;
    if (!ctr_alive(&k)) return err_set(e, 0, "Container %s is not running", k.id);
    pid_t *pids;
    size_t n = ctr_pids((pid_t)js_int(k.state, "pid", 0), &pids);
    AUTO_STRV cols = { 0 };
    AUTO_BUF out = { 0 };
    const char *want = "user,pid,ppid,c,stime,tty,time,args";
    for (int i = 1; i < c->nargs; i++) {
        const char *a = c->args[i];
        if (str_prefix(a, "-o") && a[2]) want = a + 2;
        else if ((!strcmp(a, "-o") || !strcmp(a, "-eo")) && i + 1 < c->nargs) want = c->args[++i];
        else if (!strcmp(a, "aux") || !strcmp(a, "-aux"))
            want = "user,pid,vsz,rss,tty,stat,stime,time,args";
        else if (strcmp(a, "-ef") && strcmp(a, "-e") && strcmp(a, "-f"))
            return free(pids), err_set(e, 0, "top: ps's option '%.40s' is not supported yet by skiff", a);
    }
    strv_split(&cols, want, ',');
    for (size_t k = 0; k < cols.n; k++) {
        const char *head = top_head(cols.v[k]);
        if (!head)
            return free(pids),
                   err_set(e, 0,
                           "top: unknown column '%.40s' (there are user, uid, pid, ppid, c, stime, "
                           "tty, time, comm, args, cmd, rss, vsz, stat)",
                           cols.v[k]);
        buf_addf(&out, "%s%s", head, k + 1 < cols.n ? "\t" : "\n");
    }
    for (size_t i = 0; i < n; i++) {
        struct top_proc p;
        if (!top_read(pids[i], &p)) continue;
        for (size_t k = 0; k < cols.n; k++) {
            AUTO_FREE char *cell = top_cell(&p, cols.v[k]);
            buf_addf(&out, "%s%s", cell, k + 1 < cols.n ? "\t" : "\n");
        }
        free(p.args);
    }
    free(pids);
    table_print(out.p);
    return 0;
}

static int cmd_port(struct cli *c, struct err *e) {
    AUTO_CTR k = { .dir = -1 };
    if (!cli_store(c, e) || ctr_find(c->store, c->args[0], &k, e)) return -1;
    if (c->nargs > 1)
        return err_set(e, 0, "No public port '%.40s' published for %s", c->args[1], ctr_name(&k));
    return 0; /* the host's and no network publish nothing */
}

struct usage {
    u64 cpu_ns, rss, pids;
};

static struct usage ctr_usage(const struct ctr *k) {
    struct usage u = { 0 };
    pid_t *pids;
    size_t n = ctr_pids((pid_t)js_int(k->state, "pid", 0), &pids);
    u64 tick = 1000000000ull / (u64)sysconf(_SC_CLK_TCK), page = (u64)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < n; i++) {
        char comm[64];
        unsigned long long f[22];
        if (!proc_stat(pids[i], comm, sizeof comm, f)) continue;
        u.cpu_ns += (f[11] + f[12]) * tick;
        u.rss += f[21] * page;
        u.pids++;
    }
    free(pids);
    return u;
}

static const struct opt OPT_STATS[] = {
    { "all", 'a', OPT_BOOL, "Show all containers (default shows just running)" },
    { "format", 0, OPT_TEXT, "Format output using a custom template" },
    { "no-stream", 0, OPT_BOOL, "Disable streaming stats and only pull the first result" },
    { "no-trunc", 0, OPT_BOOL, "Do not truncate output" },
    { NULL, 0, OPT_BOOL, NULL },
};

static json_t *stats_row(const struct ctr *k, const struct usage *before, const struct usage *now,
                         i64 ms, bool trunc) {
    u64 limit = (u64)js_int(k->config, "linux.resources.memory.limit", 0);
    if (!limit) limit = (u64)sysconf(_SC_PHYS_PAGES) * (u64)sysconf(_SC_PAGESIZE);
    AUTO_FREE char *used = size_binary(now->rss), *all = size_binary(limit),
                   *id = str_dupn(k->id, trunc ? 12 : HEX_LEN);
    AUTO_FREE char *cpu =
        str_fmt("%.2f%%", ms > 0 && now->cpu_ns > before->cpu_ns
                              ? (double)(now->cpu_ns - before->cpu_ns) / 1e4 / (double)ms
                              : 0.0);
    AUTO_FREE char *mem = str_fmt("%s / %s", used, all),
                   *perc = str_fmt("%.2f%%", 100.0 * (double)now->rss / (double)limit),
                   *pids = str_fmt("%" PRIu64, now->pids);
    return json_pack("{ss,ss,ss,ss,ss,ss,ss,ss,ss}", "Container", id, "ID", id, "Name", ctr_name(k),
                     "CPUPerc", cpu, "MemUsage", mem, "MemPerc", perc, "NetIO", "-- / --",
                     "BlockIO", "-- / --", "PIDs", pids);
}

static int cmd_stats(struct cli *c, struct err *e) {
    AUTO_JSON *heads =
        json_pack("{ss,ss,ss,ss,ss,ss,ss,ss,ss}", "Container", "CONTAINER", "ID", "CONTAINER ID",
                  "Name", "NAME", "CPUPerc", "CPU %", "MemUsage", "MEM USAGE / LIMIT", "MemPerc",
                  "MEM %", "NetIO", "NET I/O", "BlockIO", "BLOCK I/O", "PIDs", "PIDS");
    if (!cli_store(c, e)) return -1;
    do {
        AUTO_STRV ids = { 0 };
        AUTO_JSON *rows = json_array();
        for (int i = 0; i < c->nargs; i++) strv_add(&ids, c->args[i]);
        if (!c->nargs) ctr_ids(c->store, &ids);
        struct ctr *k = mem_new((ids.n + 1) * sizeof *k);
        struct usage *u = mem_new((ids.n + 1) * sizeof *u);
        int rc = 0;
        for (size_t i = 0; !rc && i < ids.n; i++) {
            k[i].dir = -1;
            if (ctr_find(c->store, ids.v[i], &k[i], e)) rc = c->nargs ? -1 : 0;
            else u[i] = ctr_usage(&k[i]);
        }
        i64 began = time_mono_ms();
        if (!rc) usleep(200000);
        for (size_t i = 0; i < ids.n; i++) {
            if (!rc && k[i].config && (c->nargs || cli_flag(c, "all") || ctr_alive(&k[i]))) {
                struct usage now = ctr_usage(&k[i]);
                json_array_append_new(rows, stats_row(&k[i], &u[i], &now, time_mono_ms() - began,
                                                      !cli_flag(c, "no-trunc")));
            }
            ctr_done(&k[i]);
        }
        free(k), free(u);
        if (rc) return rc;
        if (!cli_flag(c, "no-stream")) fputs("\x1b[2J\x1b[H", stdout);
        if (rows_print(cli_text(c, "format"),
                       "table "
                       "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}"
                       "\t{{.BlockIO}}\t{{.PIDs}}",
                       heads, rows, e))
            return -1;
        fflush(stdout);
        if (!cli_flag(c, "no-stream")) sleep(1);
    } while (!cli_flag(c, "no-stream"));
    return 0;
}

/* ---- 26.10 diff, export, cp, commit ---- */
struct visit {
    struct ctr *k;
    int fd;    /* of the stream to or from the parent */
    int other; /* the parent's end of it, to be closed in the child; -1: none */
    const char *path, *name;
    bool follow, archive, contents;
    bool stream; /* the user's own archive: it goes into a directory */
};

static int export_run(int root, void *arg) {
    struct visit *v = arg;
    struct err e = { 0 };
    struct tarring t = { .clamp = -1 };
    AUTO_STRV skip = { 0 };
    strv_add(&skip, "proc"), strv_add(&skip, "sys"), strv_add(&skip, "dev");
    t.skip = &skip;
    AUTO_FD dir = sys_openat2(root, ".", O_RDONLY | O_DIRECTORY, 0, RESOLVE_IN_ROOT);
    if (tar_begin(&t, v->fd, &e)) return visit_fail(&e);
    static const char *const EMPTY[] = { "dev", "proc", "sys" };
    for (size_t i = 0; i < ARRAY_LEN(EMPTY); i++) {
        struct stat st;
        if (fstatat(dir, EMPTY[i], &st, AT_SYMLINK_NOFOLLOW) || !S_ISDIR(st.st_mode)) continue;
        struct archive_entry *en = archive_entry_new();
        archive_entry_set_pathname(en, EMPTY[i]);
        archive_entry_set_filetype(en, AE_IFDIR);
        archive_entry_set_perm(en, 0755);
        archive_write_header(t.a, en);
        archive_entry_free(en);
    }
    int rc = tar_add(&t, dir, ".", "", 0, &e);
    if (tar_end(&t, &e) || rc) return visit_fail(&e);
    return 0;
}

static const struct opt OPT_OUTPUT[] = {
    { "output", 'o', OPT_TEXT, "Write to a file, instead of STDOUT" }, { NULL, 0, OPT_BOOL, NULL }
};

/* The file of -o, or stdout where that is no terminal. */
static int output_open(const struct cli *c, struct err *e) {
    const char *path = cli_text(c, "output");
    if (!path) {
        if (isatty(1))
            return err_set(e, 0,
                           "cowardly refusing to save to a terminal. Use the -o flag or redirect");
        return fcntl(1, F_DUPFD_CLOEXEC, 3);
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    return fd < 0 ? err_set(e, errno, "create %s", path) : fd;
}

static int cmd_export(struct cli *c, struct err *e) {
    AUTO_CTR k = { .dir = -1 };
    if (!cli_store(c, e) || ctr_find(c->store, c->args[0], &k, e)) return -1;
    AUTO_FD out = output_open(c, e);
    if (out < 0) return -1;
    struct visit v = { .k = &k, .fd = out };
    int rc = ctr_visit(&k, export_run, &v, NULL, e);
    if (rc > 0) return err_set(e, 0, "export of %s failed", c->args[0]);
    if (!rc) ctr_event(&k, "export", NULL);
    return rc;
}

/* Changes of the upper directory against the image, read as its owner. */
struct diffing {
    struct ctr *k;
    const struct idx *x;
    bool copy;
    struct strv skip;
};

/* A whole copy against the image: what is new, what has another size, mode or time, what is gone.
 * */
static void diff_copy(const struct diffing *d, int dir, const struct idx_inode *was,
                      const char *path, struct buf *out, int depth) {
    AUTO_STRV names = { 0 };
    AUTO_DIR *s = dir_stream(dir, ".");
    struct dirent *de;
    u32 n = 0;
    const struct idx_dirent *old = was ? idx_dir(d->x, was, &n) : NULL;
    while (s && (de = dir_next(s))) strv_add(&names, de->d_name);
    if (names.n) qsort(names.v, names.n, sizeof *names.v, name_order);
    for (size_t i = 0; i < names.n; i++) {
        struct stat st;
        AUTO_FREE char *full = str_fmt("%s/%s", path, names.v[i]), *shown = str_printable(full);
        if (fstatat(dir, names.v[i], &st, AT_SYMLINK_NOFOLLOW)) continue;
        const struct idx_dirent *o =
            was ? idx_lookup(d->x, was, names.v[i], strlen(names.v[i])) : NULL;
        const struct idx_inode *oi = o ? idx_inode(d->x, o->inode) : NULL;
        bool held = strv_has(&d->skip, full + 1), is_dir = S_ISDIR(st.st_mode);
        bool same = oi && oi->mode == st.st_mode &&
                    (is_dir || (oi->size == (u64)st.st_size && oi->mtime == st.st_mtime));
        AUTO_BUF below = { 0 };
        AUTO_FD sub = is_dir && depth < MAX_TREE_DEPTH
                          ? openat(dir, names.v[i], O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                          : -1;
        if (sub >= 0)
            diff_copy(d, sub, oi && S_ISDIR(oi->mode) ? oi : NULL, full, &below, depth + 1);
        if (!held && (!same || below.n)) buf_addf(out, "%c %s\n", oi ? 'C' : 'A', shown);
        if (below.n) buf_adds(out, below.p);
    }
    for (u32 i = 0; i < n; i++) {
        const char *name = idx_name(d->x, old[i].name, old[i].name_len);
        AUTO_FREE char *gone = name ? str_dupn(name, old[i].name_len) : str_dup("");
        if (!strv_has(&names, gone)) buf_addf(out, "D %s/%s\n", path, gone);
    }
}

/* A directory that is there only to hold a mount point has not changed. */
static void diff_dir(const struct diffing *d, int dir, const char *path, struct buf *out,
                     int depth) {
    AUTO_STRV names = { 0 };
    AUTO_DIR *s = dir_stream(dir, ".");
    struct dirent *de;
    while (s && (de = dir_next(s))) strv_add(&names, de->d_name);
    if (names.n) qsort(names.v, names.n, sizeof *names.v, name_order);
    for (size_t i = 0; i < names.n; i++) {
        struct stat st;
        AUTO_FREE char *full = str_fmt("%s/%s", path, names.v[i]), *shown = str_printable(full);
        if (fstatat(dir, names.v[i], &st, AT_SYMLINK_NOFOLLOW)) continue;
        const struct idx_inode *was = d->x ? idx_resolve(d->x, full) : NULL;
        bool white = S_ISCHR(st.st_mode) && !st.st_rdev, held = strv_has(&d->skip, full + 1);
        AUTO_BUF below = { 0 };
        AUTO_FD sub = S_ISDIR(st.st_mode) && depth < MAX_TREE_DEPTH
                          ? openat(dir, names.v[i], O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                          : -1;
        if (sub >= 0) diff_dir(d, sub, full, &below, depth + 1);
        for (size_t k = 0; k < d->skip.n && !held && !below.n; k++)
            held = str_prefix(d->skip.v[k], full + 1) && d->skip.v[k][strlen(full) - 1] == '/';
        if (!held) buf_addf(out, "%c %s\n", white ? 'D' : was ? 'C' : 'A', shown);
        if (below.n) buf_adds(out, below.p);
    }
}

static int diff_run(void *arg) {
    struct diffing *d = arg;
    AUTO_FD upper =
        openat(d->k->dir, d->copy ? "rootfs" : "upper", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    AUTO_BUF out = { 0 };
    if (upper >= 0 && d->copy) diff_copy(d, upper, &d->x->inodes[0], "", &out, 0);
    else if (upper >= 0) diff_dir(d, upper, "", &out, 0);
    return out.n && fd_write_all(1, out.p, out.n) ? 1 : 0;
}

static int cmd_diff(struct cli *c, struct err *e) {
    AUTO_CTR k = { .dir = -1 };
    struct plan p = { 0 };
    AUTO_IDX x = { 0 };
    if (!cli_store(c, e) || ctr_find(c->store, c->args[0], &k, e)) return -1;
    AUTO_FREE char *path = str_fmt("merged/%s.idx", js_str_or(k.config, "skiff.rootfs.chain", ""));
    const char *driver = js_str_or(k.config, "skiff.rootfs.driver", "");
    if (!strcmp(driver, "dir"))
        return err_set(e, 0, "a container of --rootfs has no image to differ from");
    if (idx_open(c->store->dir, path, false, &x, e) || plan_parse(k.config, &p, e)) return -1;
    struct diffing d = { &k, &x, !strcmp(driver, "copy"), { 0 } };
    ctr_mount_points(&k, &d.skip);
    fflush(NULL);
    int rc = launch_as_owner(&p.ids, diff_run, &d, e);
    strv_done(&d.skip);
    plan_done(&p);
    return rc;
}

/* cp: a path of the container becomes a tar stream, or takes one. */
static int cp_out_run(int root, void *arg) {
    struct visit *v = arg;
    struct err e = { 0 };
    struct tarring t = { .clamp = -1 };
    struct stat st;
    AUTO_FREE char *clean = path_clean(v->path), *parent = str_dup(clean);
    char *slash = strrchr(parent, '/');
    const char *base = slash ? clean + (slash - parent) + 1 : clean;
    if (slash) *slash = 0;
    AUTO_FD dir = sys_openat2(root, slash ? parent : ".", O_RDONLY | O_DIRECTORY, 0,
                              RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
    if (dir < 0 || fstatat(dir, *base ? base : ".", &st, AT_SYMLINK_NOFOLLOW))
        return err_set(&e, 0, "Could not find the file %s in container %s", v->path,
                       ctr_name(v->k)),
               visit_fail(&e);
    AUTO_FD real = -1;
    if (S_ISLNK(st.st_mode) &&
        (v->follow || str_suffix(v->path, "/") || str_suffix(v->path, "/."))) {
        /* the link's target, still below the root */
        AUTO_FREE char *self = str_fmt("/proc/self/fd/%d", root);
        real = sys_openat2(root, clean, O_RDONLY | O_NONBLOCK, 0,
                           RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
        if (real < 0 || fstat(real, &st))
            return err_set(&e, errno, "follow %s", v->path), visit_fail(&e);
        if (S_ISDIR(st.st_mode)) {
            if (tar_begin(&t, v->fd, &e) || tar_add(&t, real, ".", v->name, 0, &e) ||
                tar_end(&t, &e))
                return visit_fail(&e);
            return 0;
        }
        char target[PATH_MAX], where[40];
        snprintf(where, sizeof where, "/proc/self/fd/%d", real);
        ssize_t k = readlink(where, target, sizeof target - 1);
        (void)self;
        if (k <= 0) return err_set(&e, errno, "follow %s", v->path), visit_fail(&e);
        target[k] = 0;
        char *cut = strrchr(target, '/');
        AUTO_FD d2 = -1;
        if (cut) *cut = 0, d2 = open(*target ? target : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (d2 < 0 || tar_begin(&t, v->fd, &e) || tar_add(&t, d2, cut + 1, v->name, 0, &e) ||
            tar_end(&t, &e))
            return visit_fail(&e);
        return 0;
    }
    if (tar_begin(&t, v->fd, &e)) return visit_fail(&e);
    int rc = tar_add(&t, dir, *base ? base : ".", v->name, 0, &e);
    if (tar_end(&t, &e) || rc) return visit_fail(&e);
    return 0;
}

static int cp_in_run(int root, void *arg) {
    struct visit *v = arg;
    struct err e = { 0 };
    fd_closep(&v->other); /* or the stream would never end */
    struct placing pl = { .root = root,
                          .uid = v->archive ? -1 : 0,
                          .gid = v->archive ? -1 : 0,
                          .chmod = -1,
                          .keep_owner = v->archive,
                          .placed = -1 };
    AUTO_FREE char *into = NULL, *rename = NULL;
    if (v->contents) { /* DIR/. : the destination is made a directory */
        AUTO_FD made = mnt_target(root, v->path, MNT_DIR, &e);
        if (made < 0) return visit_fail(&e);
    }
    if (place_layout(root, v->path, v->follow, &pl, &into, &rename, &e)) return visit_fail(&e);
    if (v->stream && rename) {
        AUTO_FREE char *clean = path_clean(v->path);
        AUTO_FD at = sys_openat2(root, *clean ? clean : ".", O_PATH, 0, RESOLVE_IN_ROOT);
        err_set(&e, 0,
                at < 0 ? "Could not find the file %s in container %s"
                       : "destination \"%s\" of container %s must be a directory",
                v->path, ctr_name(v->k));
        return visit_fail(&e);
    }
    return place_archive(&pl, v->fd, &e) ? visit_fail(&e) : 0;
}

static const struct opt OPT_CP[] = {
    { "archive", 'a', OPT_BOOL, "Archive mode (copy all uid/gid information)" },
    { "follow-link", 'L', OPT_BOOL, "Always follow symbol link in SRC_PATH" },
    { "quiet", 'q', OPT_BOOL, "Suppress progress output during copy" },
    { NULL, 0, OPT_BOOL, NULL },
};

/* CONTAINER:PATH -> host path or "-". */
static int cp_from(struct cli *c, struct ctr *k, const char *path, const char *dest,
                   struct err *e) {
    int p[2];
    bool contents = str_suffix(path, "/."), out = !strcmp(dest, "-");
    AUTO_FREE char *clean = path_clean(path);
    const char *slash = strrchr(clean, '/'), *base = slash ? slash + 1 : clean;
    if (pipe2(p, O_CLOEXEC)) return err_set(e, errno, "pipe");
    struct visit v = { .k = k,
                       .fd = out ? 1 : p[1],
                       .path = path,
                       .name = contents && !out ? ""
                               : *base          ? base
                                                : "",
                       .follow = cli_flag(c, "follow-link") };
    pid_t pid = 0;
    if (out) {
        close(p[0]), close(p[1]);
        int rc = ctr_visit(k, cp_out_run, &v, NULL, e);
        return rc > 0 ? 1 : rc;
    }
    int rc = ctr_visit(k, cp_out_run, &v, &pid, e);
    close(p[1]);
    AUTO_FD src = p[0];
    if (rc) return -1;
    AUTO_FREE char *into = NULL, *rename = NULL;
    AUTO_FD root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    AUTO_FREE char *cwd = getcwd(NULL, 0),
                   *full = *dest == '/' ? str_dup(dest) : str_fmt("%s/%s", cwd ? cwd : "", dest);
    struct placing pl = { .root = root,
                          .uid = -1,
                          .gid = -1,
                          .chmod = -1,
                          .keep_owner = cli_flag(c, "archive"),
                          .placed = -1 };
    /* below "/" of the host: resolving in the root is resolving as usual */
    rc = place_layout(root, full, true, &pl, &into, &rename, e);
    if (!rc && contents && rename) { /* SRC/. to a new directory */
        AUTO_FREE char *made = str_fmt("%s/%s", into, rename);
        AUTO_FD d = mnt_target(root, made, MNT_DIR, e);
        free(into);
        into = str_dup(made);
        pl.into = into;
        pl.rename = NULL;
        if (d < 0) rc = -1;
    }
    /* what the container sends must not lead out of the destination by links of its own making */
    AUTO_FD top =
        rc ? -1
           : sys_openat2(root, *pl.into ? pl.into : ".", O_PATH | O_DIRECTORY, 0, RESOLVE_IN_ROOT);
    if (!rc && top < 0) rc = err_set(e, errno, "open /%s", pl.into);
    pl.root = top;
    pl.into = "";
    pl.strict = true;
    if (!rc) rc = place_archive(&pl, src, e);
    fd_closep(&src);
    int status = 0;
    waitpid(pid, &status, 0);
    if (status && !rc) return 1;
    return rc;
}

/* Host path or "-" -> CONTAINER:PATH. */
static int cp_to(struct cli *c, struct ctr *k, const char *src, const char *path, struct err *e) {
    int p[2] = { -1, -1 };
    bool in = !strcmp(src, "-"), contents = str_suffix(src, "/.") || !strcmp(src, ".");
    struct stat st;
    if (!in && lstat(src, &st)) return err_set(e, errno, "%s", src);
    if (!in && S_ISLNK(st.st_mode) && cli_flag(c, "follow-link") && stat(src, &st))
        return err_set(e, errno, "%s", src);
    if (!in && pipe2(p, O_CLOEXEC)) return err_set(e, errno, "pipe");
    struct visit v = { .k = k,
                       .fd = in ? 0 : p[0],
                       .other = p[1],
                       .path = path,
                       .archive = cli_flag(c, "archive"),
                       .contents = contents,
                       .stream = in,
                       .follow = !in && S_ISDIR(st.st_mode) };
    pid_t pid = 0;
    int rc = ctr_visit(k, cp_in_run, &v, &pid, e);
    fd_closep(&p[0]);
    struct err we = { 0 };
    if (!rc && !in) {
        struct tarring t = { .clamp = -1 };
        AUTO_FREE char *real = realpath(src, NULL),
                       *dir = str_dup(cli_flag(c, "follow-link") || contents ? (real ? real : src)
                                                                             : src);
        while (strlen(dir) > 1 && str_suffix(dir, "/")) dir[strlen(dir) - 1] = 0;
        char *slash = strrchr(dir, '/');
        const char *base = slash ? slash + 1 : dir,
                   *name = strrchr(src, '/') && !contents && strrchr(src, '/')[1]
                               ? strrchr(src, '/') + 1
                               : base;
        AUTO_FREE char *parent =
            slash ? str_dupn(dir, slash == dir ? 1 : (size_t)(slash - dir)) : str_dup(".");
        AUTO_FD d = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        signal(SIGPIPE, SIG_IGN);
        /* SRC to a path that is not there yet, a directory: its contents go there; the child
         * renames */
        if (d < 0 || tar_begin(&t, p[1], &we)) rc = -1;
        else {
            rc = tar_add(&t, d, *base ? base : ".", contents ? "" : name, 0, &we);
            if (tar_end(&t, rc ? &(struct err){ 0 } : &we)) rc = -1;
        }
    }
    fd_closep(&p[1]);
    int status = 0;
    if (pid > 0) waitpid(pid, &status, 0);
    if (status) return 1; /* the child has said why */
    if (rc && we.msg[0]) *e = we;
    return rc;
}

static int cmd_cp(struct cli *c, struct err *e) {
    char *from = c->args[0], *to = c->args[1], *fc = strchr(from, ':'), *tc = strchr(to, ':');
    AUTO_CTR k = { .dir = -1 };
    if (*from == '/' || *from == '.') fc = NULL; /* a host path may have a colon */
    if (*to == '/' || *to == '.') tc = NULL;
    if (!cli_store(c, e)) return -1;
    if (fc && tc) return err_set(e, 0, "copying between containers is not supported");
    if (!fc && !tc) return err_set(e, 0, "must specify at least one container source");
    char *colon = fc ? fc : tc;
    *colon++ = 0;
    if (ctr_find(c->store, fc ? from : to, &k, e)) return -1;
    if (!*colon) return err_set(e, 0, "source and destination paths must not be empty");
    return fc ? cp_from(c, &k, colon, to, e) : cp_to(c, &k, from, colon, e);
}

static const struct opt OPT_COMMIT[] = {
    { "author", 'a', OPT_TEXT, "Author (e.g., \"John Hannibal Smith <hannibal@a-team.com>\")" },
    { "change", 'c', OPT_LIST, "Apply Dockerfile instruction to the created image" },
    { "message", 'm', OPT_TEXT, "Commit message" },
    { "pause", 'p', OPT_BOOL, "Pause container during commit (true)" },
    { NULL, 0, OPT_BOOL, NULL },
};

static int cmd_commit(struct cli *c, struct err *e) {
    AUTO_CTR k = { .dir = -1 };
    AUTO_STRV changes = { 0 };
    struct ref r;
    AUTO_FREE char *full = NULL;
    char diff[DIGEST_LEN + 1], id[HEX_LEN + 1], now[40];
    json_t *desc = NULL;
    if (!cli_store(c, e) || ctr_find(c->store, c->args[0], &k, e)) return -1;
    AUTO_FD gc = lock_take(c->store->dir, "locks/gc", LOCK_SH);
    if (c->nargs > 1) {
        if (ref_parse(c->args[1], &r, e)) return -1;
        full = ref_full(&r);
    }
    AUTO_IMAGE m = { 0 };
    AUTO_JSON *base = blob_json(c->store, js_str(k.config, "skiff.manifest"), e);
    AUTO_JSON *config = base ? blob_json(c->store, js_str(base, "config.digest"), e) : NULL;
    if (!config) return err_wrap(e, "the image of container %s", c->args[0]);
    json_t *run = js_sub(config, "config");
    AUTO_JSON *ic = inspect_config(&k);
    static const char *const KEEP[] = { "Env",        "Cmd",          "Entrypoint",
                                        "WorkingDir", "User",         "Labels",
                                        "StopSignal", "ExposedPorts", "Volumes",
                                        "Healthcheck" };
    for (size_t i = 0; i < ARRAY_LEN(KEEP); i++) {
        json_t *v = js_get(ic, KEEP[i]);
        if (v && !json_is_null(v) && !(json_is_object(v) && !json_object_size(v)))
            json_object_set(run, KEEP[i], v);
        else if (strcmp(KEEP[i], "Healthcheck")) json_object_del(run, KEEP[i]);
    }
    cli_list(c, "change", &changes);
    for (size_t i = 0; i < changes.n; i++)
        if (config_change(config, changes.v[i], e)) return -1;
    bool pause = (!cli_has(c, "pause") || cli_flag(c, "pause")) && ctr_is(&k, "running");
    AUTO_FD s = pause ? ctr_connect(k.dir) : -1;
    char answer[1100];
    if (s >= 0 && send(s, "P", 1, MSG_NOSIGNAL) > 0) (void)!recv(s, answer, sizeof answer, 0);
    AUTO_STRV below = { 0 };
    if (image_diff_ids(config, &below, e)) return -1;
    int rc = ctr_commit_layer(&k, -1, NULL, &below, &desc, diff, e);
    if (s >= 0 && send(s, "U", 1, MSG_NOSIGNAL) > 0) (void)!recv(s, answer, sizeof answer, 0);
    if (rc) return -1;
    AUTO_JSON *layers = json_deep_copy(js_get(base, "layers"));
    json_array_append_new(layers, desc);
    AUTO_STRV args = { 0 };
    js_to_strv(js_path(k.config, "process.args"), &args);
    AUTO_FREE char *by = str_join(&args, " ");
    if (cli_has(c, "author")) js_sets(config, "author", cli_text(c, "author"));
    config_add_layer(config, diff, by, cli_text(c, "message"), time_rfc3339(time_now_ns(), now));
    if (image_put(c->store, config, layers, full, NULL, id, NULL, e)) return -1;
    printf("sha256:%s\n", id);
    ctr_event(&k, "commit", NULL);
    return 0;
}

/* ---- 26.11 images ---- */
static const struct opt OPT_IMAGES[] = {
    { "all", 'a', OPT_BOOL, "Show all images" },
    { "digests", 0, OPT_BOOL, "Show digests" },
    { "filter", 'f', OPT_LIST, "Filter output based on conditions provided" },
    { "format", 0, OPT_TEXT, "Format output using a custom template" },
    { "no-trunc", 0, OPT_BOOL, "Don't truncate output" },
    { "quiet", 'q', OPT_BOOL, "Only show image IDs" },
    { "tree", 0, OPT_LATER_BOOL, "" },
    { NULL, 0, OPT_BOOL, NULL },
};

struct image_row {
    json_t *desc;
    struct image m;
    i64 created;
};

static int image_row_order(const void *a, const void *b) {
    const struct image_row *x = a, *y = b;
    return (x->created < y->created) - (x->created > y->created);
}

/* All entries of index.json that can be read, newest first. Caller frees with image_rows_free. */
static struct image_row *image_rows(const struct store *s, size_t *ret_n, struct err *e) {
    AUTO_JSON *index = store_index(s, e);
    if (!index) return NULL;
    size_t i, n = 0;
    json_t *d;
    struct image_row *r = mem_new((json_array_size(js_get(index, "manifests")) + 1) * sizeof *r);
    json_array_foreach (js_get(index, "manifests"), i, d) {
        struct err bad;
        if (image_load(s, d, &r[n].m, &bad)) {
            log_debug("%s: %s", js_str_or(d, "digest", ""), bad.msg);
            continue;
        }
        r[n].desc = r[n].m.desc;
        r[n].created = time_parse(js_str_or(r[n].m.config, "created", ""));
        n++;
    }
    qsort(r, n, sizeof *r, image_row_order);
    *ret_n = n;
    return r;
}

static void image_rows_free(struct image_row *r, size_t n) {
    for (size_t i = 0; i < n; i++) image_done(&r[i].m);
    free(r);
}

static json_t *image_row_json(const struct store *s, const struct image_row *r, bool trunc) {
    struct ref ref = { 0 };
    struct err e;
    const char *name = desc_name(r->desc),
               *rd = json_string_value(js_get(js_get(r->desc, "annotations"), REPO_DIGEST));
    AUTO_FREE char *repo = NULL;
    if (name && !ref_parse(name, &ref, &e)) repo = ref_repository(&ref);
    else if (rd && !ref_parse(rd, &ref, &e)) repo = ref_repository(&ref), ref.tag[0] = 0;
    AUTO_FREE char *id = trunc ? str_dupn(r->m.id, 12) : str_fmt("sha256:%s", r->m.id),
                   *size = size_human(image_size(s, &r->m));
    AUTO_FREE char *since = ago(js_str(r->m.config, "created")),
                   *when = strcmp(since, "N/A") ? str_fmt("%s ago", since) : str_dup("N/A");
    return json_pack("{ss,ss,ss,ss,ss,ss,ss,ss}", "ID", id, "Repository", repo ? repo : "<none>",
                     "Tag", name && ref.tag[0] ? ref.tag : "<none>", "Digest",
                     rd && strchr(rd, '@') ? strchr(rd, '@') + 1
                                           : js_str_or(r->desc, "digest", "<none>"),
                     "CreatedSince", when, "CreatedAt", js_str_or(r->m.config, "created", "N/A"),
                     "Size", size, "Containers", "N/A");
}

/* "debian", "debian:b*": as the argument of `images` and filter reference=. */
static bool image_matches(const struct image_row *r, const char *pattern) {
    struct ref ref;
    struct err e;
    const char *name = desc_name(r->desc);
    if (!name || ref_parse(name, &ref, &e)) return false;
    AUTO_FREE char *repo = ref_repository(&ref), *familiar = ref_familiar(&ref);
    return !fnmatch(pattern, repo, 0) || !fnmatch(pattern, familiar, 0) ||
           !fnmatch(pattern, name, 0);
}

static bool images_filter(const struct store *s, const struct strv *f, const struct image_row *r) {
    bool ok = true;
    for (size_t i = 0; i < f->n && ok; i++) {
        const char *v = strchr(f->v[i], '=') + 1;
        if (str_prefix(f->v[i], "dangling="))
            ok = (desc_name(r->desc) == NULL) == (!strcmp(v, "true") || !strcmp(v, "1"));
        else if (str_prefix(f->v[i], "reference=")) ok = image_matches(r, v);
        else if (str_prefix(f->v[i], "label="))
            ok = label_holds(js_path(r->m.config, "config.Labels"), v);
        else {
            AUTO_IMAGE other = { 0 };
            struct err e;
            if (image_find(s, v, &other, NULL, &e)) return false;
            i64 at = time_parse(js_str_or(other.config, "created", ""));
            ok = strcmp(other.id, r->m.id) &&
                 (str_prefix(f->v[i], "before=") ? r->created < at : r->created > at);
        }
    }
    return ok;
}

static int cmd_images(struct cli *c, struct err *e) {
    AUTO_STRV filters = { 0 }, seen = { 0 };
    size_t n = 0;
    cli_list(c, "filter", &filters);
    if (!cli_store(c, e) ||
        filters_known(&filters, "dangling reference label before since until", e))
        return -1;
    struct image_row *r = image_rows(c->store, &n, e);
    if (!r) return -1;
    AUTO_JSON *rows = json_array();
    bool trunc = !cli_flag(c, "no-trunc");
    for (size_t i = 0; i < n; i++) {
        if ((c->nargs && !image_matches(&r[i], c->args[0])) ||
            !images_filter(c->store, &filters, &r[i]))
            continue;
        if (cli_flag(c, "quiet")) {
            if (!strv_has(&seen, r[i].m.id)) printf(trunc ? "%.12s\n" : "sha256:%s\n", r[i].m.id);
            strv_add(&seen, r[i].m.id);
        } else json_array_append_new(rows, image_row_json(c->store, &r[i], trunc));
    }
    image_rows_free(r, n);
    if (cli_flag(c, "quiet")) return 0;
    AUTO_JSON *heads =
        json_pack("{ss,ss,ss,ss,ss,ss,ss,ss}", "ID", "IMAGE ID", "Repository", "REPOSITORY", "Tag",
                  "TAG", "Digest", "DIGEST", "CreatedSince", "CREATED", "CreatedAt", "CREATED AT",
                  "Size", "SIZE", "Containers", "CONTAINERS");
    return rows_print(
        cli_text(c, "format"),
        cli_flag(c, "digests")
            ? "table {{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
            : "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
        heads, rows, e);
}

static const struct opt OPT_PULL[] = {
    { "all-tags", 'a', OPT_LATER_BOOL, "" },
    { "disable-content-trust", 0, OPT_BOOL, "Accepted; skiff does no content trust" },
    { "platform", 0, OPT_TEXT, "Set platform (os/arch[/variant])" },
    { "quiet", 'q', OPT_BOOL, "Suppress verbose output" },
    { "tls-verify", 0, OPT_BOOL, "Verify TLS certificates (true)" },
    { NULL, 0, OPT_BOOL, NULL },
};

static int cmd_pull(struct cli *c, struct err *e) {
    struct ref r;
    if (!cli_store(c, e)) return -1;
    int local = image_from_transport(c->store, c->args[0], NULL, cli_flag(c, "quiet"), e);
    if (local <= 0) return local;
    if (ref_parse(c->args[0], &r, e)) return -1;
    struct pull_opts o = { cli_text(c, "platform"), cli_flag(c, "quiet"), tls_verify(c) };
    if (!strrchr(c->args[0], ':') && !o.quiet) puts("Using default tag: latest");
    AUTO_FREE char *familiar = ref_familiar(&r);
    if (image_pull(c->store, &r, &o, e))
        return image_collect(c->store, false), err_wrap(e, "pull %s", familiar);
    AUTO_FREE char *full = ref_full(&r);
    puts(full);
    return 0;
}

/* push IMAGE oci:DIR[:NAME], oci-archive:FILE, docker-archive:FILE. */
static int push_local(struct cli *c, const char *image, const char *to, struct err *e) {
    const char *colon = strchr(to, ':');
    AUTO_FREE char *kind = str_dupn(to, colon ? (size_t)(colon - to) : 0),
                   *path = str_dup(colon ? colon + 1 : "");
    AUTO_STRV names = { 0 };
    AUTO_IMAGE m = { 0 };
    char *name = strrchr(path, ':');
    if (name && !strchr(name, '/')) *name++ = 0;
    else name = NULL;
    if (image_find(c->store, image, &m, NULL, e)) return -1;
    strv_add(&names, image);
    if (!strcmp(kind, "oci")) {
        AUTO_FD d = dir_make(AT_FDCWD, path, e) ? -1 : dir_open(AT_FDCWD, path, e);
        return d < 0 ? -1 : image_save_layout(c->store, d, &m, name, e);
    }
    if (strcmp(kind, "oci-archive") && strcmp(kind, "docker-archive"))
        return err_set(
            e, 0, "'%.60s' is none of oci:DIR[:NAME], oci-archive:FILE, docker-archive:FILE", to);
    AUTO_FD fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) return err_set(e, errno, "create %s", path);
    int rc = image_save(c->store, fd, &names, e);
    if (rc) unlink(path);
    return rc;
}

static int cmd_push(struct cli *c, struct err *e) {
    struct ref r;
    if (c->nargs > 1) return cli_store(c, e) ? push_local(c, c->args[0], c->args[1], e) : -1;
    if (!cli_store(c, e) || ref_parse(c->args[0], &r, e) ||
        image_push(c->store, &r, cli_flag(c, "quiet"), tls_verify(c), e))
        return -1;
    AUTO_FREE char *full = ref_full(&r);
    if (cli_flag(c, "quiet")) puts(full);
    return 0;
}

static int cmd_tag(struct cli *c, struct err *e) {
    AUTO_IMAGE m = { 0 };
    struct ref r;
    if (!cli_store(c, e) || image_find(c->store, c->args[0], &m, NULL, e) ||
        ref_parse(c->args[1], &r, e))
        return -1;
    if (r.digest[0]) return err_set(e, 0, "refusing to create a tag with a digest reference");
    if (!strcmp(r.path, "library/sha256"))
        return err_set(e, 0, "refusing to create an ambiguous tag using digest algorithm as name");
    AUTO_FREE char *full = ref_full(&r);
    if (store_tag(c->store, m.desc, full, NULL, e)) return -1;
    store_event(c->store, "image", "tag", m.id, NULL);
    return 0;
}

static const struct opt OPT_RMI[] = {
    { "force", 'f', OPT_BOOL, "Force removal of the image" },
    { "no-prune", 0, OPT_BOOL, "Do not delete untagged parents" },
    { "platform", 0, OPT_LATER_TEXT, "" },
    { NULL, 0, OPT_BOOL, NULL },
};

/* The name of a container that uses an image; NULL: none. Caller owns it. */
static char *image_user(const struct store *s, const char *id, bool alive_only) {
    AUTO_STRV ids = { 0 };
    ctr_ids(s, &ids);
    for (size_t i = 0; i < ids.n; i++) {
        AUTO_CTR k = { .dir = -1 };
        struct err e;
        if (!ctr_open(s, ids.v[i], &k, &e) && str_eq(js_str(k.config, "skiff.imageId"), id) &&
            (!alive_only || ctr_alive(&k)))
            return str_dupn(k.id, 12);
    }
    return NULL;
}

static int rmi_one(struct cli *c, const char *what, struct err *e) {
    AUTO_IMAGE m = { 0 };
    AUTO_FREE char *name = NULL;
    bool force = cli_flag(c, "force");
    if (image_find(c->store, what, &m, &name, e))
        return force && str_prefix(e->msg, "No such image") ? 0 : -1;
    AUTO_JSON *tags = json_array(), *digests = json_array();
    const char *digest = js_str(m.desc, "digest");
    image_names(c->store, digest, tags, digests);
    size_t names = json_array_size(tags), i;
    json_t *t;
    if (!name && names > 1 && !force)
        return err_set(e, 0,
                       "conflict: unable to delete %.12s (must be forced) - image is referenced in "
                       "multiple repositories",
                       m.id);
    bool last = !name || names <= 1;
    AUTO_FREE char *user = last ? image_user(c->store, m.id, force) : NULL;
    if (user)
        return err_set(e, 0,
                       force ? "conflict: unable to delete %.12s (cannot be forced) - image is "
                               "being used by running container %s"
                             : "conflict: unable to remove repository reference \"%.100s\" (must "
                               "force) - container %s is using its referenced image",
                       force ? m.id : what, user);
    if (name) {
        struct ref r;
        ref_parse(name, &r, e);
        AUTO_FREE char *familiar = ref_familiar(&r);
        printf("Untagged: %s\n", familiar);
    } else
        json_array_foreach (tags, i, t) printf("Untagged: %s\n", json_string_value(t));
    if (store_untag(c->store, digest, last ? NULL : name, e)) return -1;
    store_event(c->store, "image", "untag", m.id, NULL);
    if (!last) return 0;
    json_array_foreach (digests, i, t) printf("Untagged: %s\n", json_string_value(t));
    printf("Deleted: sha256:%s\n", m.id);
    store_event(c->store, "image", "delete", m.id, NULL);
    return 0;
}

static int cmd_rmi(struct cli *c, struct err *e) {
    if (!cli_store(c, e)) return -1;
    int rc = cli_each(c, rmi_one, false, e);
    image_collect(c->store, false);
    return rc;
}

static const struct opt OPT_HISTORY[] = {
    { "format", 0, OPT_TEXT, "Format output using a custom template" },
    { "human", 'H', OPT_BOOL, "Print sizes and dates in human readable format (true)" },
    { "no-trunc", 0, OPT_BOOL, "Don't truncate output" },
    { "platform", 0, OPT_LATER_TEXT, "" },
    { "quiet", 'q', OPT_BOOL, "Only show image IDs" },
    { NULL, 0, OPT_BOOL, NULL },
};

static int cmd_history(struct cli *c, struct err *e) {
    AUTO_IMAGE m = { 0 };
    if (!cli_store(c, e) || image_find(c->store, c->args[0], &m, NULL, e)) return -1;
    const json_t *h = js_get(m.config, "history");
    AUTO_JSON *rows = json_array();
    size_t layer = m.diff_ids.n;
    bool trunc = !cli_flag(c, "no-trunc"), human = !cli_has(c, "human") || cli_flag(c, "human");
    AUTO_FREE char *id = trunc ? str_dupn(m.id, 12) : str_fmt("sha256:%s", m.id);
    for (size_t i = json_array_size(h); i-- > 0;) {
        const json_t *x = json_array_get(h, i);
        u64 size = 0;
        if (!js_bool(x, "empty_layer") && layer) {
            AUTO_IDX idx = { 0 };
            char path[96];
            snprintf(path, sizeof path, "layers/%s.idx", digest_hex(m.diff_ids.v[--layer]));
            if (!idx_open(c->store->dir, path, false, &idx, e)) size = idx.head->content_size;
        }
        AUTO_FREE char *since = ago(js_str(x, "created")),
                       *when = strcmp(since, "N/A") ? str_fmt("%s ago", since) : str_dup("N/A");
        AUTO_FREE char *by = str_printable(js_str_or(x, "created_by", "")),
                       *bytes = human ? size_human(size) : str_fmt("%" PRIu64, size);
        size_t keep = 44; /* not within a character */
        while (trunc && strlen(by) > 45 && keep && ((u8)by[keep] & 0xc0) == 0x80) keep--;
        AUTO_FREE char *cut =
            trunc && strlen(by) > 45 ? str_fmt("%.*s…", (int)keep, by) : str_dup(by);
        bool top = i + 1 == json_array_size(h);
        if (cli_flag(c, "quiet")) puts(top ? id : "<missing>");
        else
            json_array_append_new(
                rows, json_pack("{ss,ss,ss,ss,ss,ss}", "ID", top ? id : "<missing>", "CreatedSince",
                                when, "CreatedAt", js_str_or(x, "created", ""), "CreatedBy", cut,
                                "Size", bytes, "Comment", js_str_or(x, "comment", "")));
    }
    if (cli_flag(c, "quiet")) return 0;
    AUTO_JSON *heads =
        json_pack("{ss,ss,ss,ss,ss,ss}", "ID", "IMAGE", "CreatedSince", "CREATED", "CreatedAt",
                  "CREATED AT", "CreatedBy", "CREATED BY", "Size", "SIZE", "Comment", "COMMENT");
    return rows_print(cli_text(c, "format"),
                      "table {{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}",
                      heads, rows, e);
}

static int cmd_save(struct cli *c, struct err *e) {
    AUTO_STRV names = { 0 };
    if (!cli_store(c, e)) return -1;
    for (int i = 0; i < c->nargs; i++) {
        AUTO_IMAGE m = { 0 };
        if (image_find(c->store, c->args[i], &m, NULL, e))
            return -1; /* before the file is touched */
        strv_add(&names, c->args[i]);
    }
    AUTO_FD fd = output_open(c, e);
    if (fd < 0) return -1;
    int rc = image_save(c->store, fd, &names, e);
    if (rc && cli_has(c, "output")) unlink(cli_text(c, "output"));
    return rc;
}

static const struct opt OPT_LOAD[] = {
    { "input", 'i', OPT_TEXT, "Read from tar archive file, instead of STDIN" },
    { "platform", 0, OPT_LATER_TEXT, "" },
    { "quiet", 'q', OPT_BOOL, "Suppress the load output" },
    { NULL, 0, OPT_BOOL, NULL },
};

static int cmd_load(struct cli *c, struct err *e) {
    const char *in = cli_text(c, "input");
    if (!in && isatty(0)) return err_set(e, 0, "requested load from stdin, but stdin is empty");
    AUTO_FD fd = in ? open(in, O_RDONLY | O_CLOEXEC) : fcntl(0, F_DUPFD_CLOEXEC, 3);
    struct stat st;
    if (fd < 0) return err_set(e, errno, "open %s", in);
    if (!cli_store(c, e)) return -1;
    bool dir = !fstat(fd, &st) && S_ISDIR(st.st_mode);
    int rc = image_load_from(c->store, dir ? -1 : fd, dir ? fd : -1, NULL, NULL, e);
    if (rc) image_collect(c->store, false);
    return rc;
}

static const struct opt OPT_IMPORT[] = {
    { "change", 'c', OPT_LIST, "Apply Dockerfile instruction to the created image" },
    { "message", 'm', OPT_TEXT, "Set commit message for imported image" },
    { "platform", 0, OPT_TEXT, "Set platform" },
    { NULL, 0, OPT_BOOL, NULL },
};

static int cmd_import(struct cli *c, struct err *e) {
    AUTO_STRV changes = { 0 };
    AUTO_JSON *config = json_object();
    struct platform p;
    struct ref r;
    char id[HEX_LEN + 1];
    AUTO_FREE char *full = NULL;
    if (!cli_store(c, e) || platform_parse(cli_text(c, "platform"), &p, e)) return -1;
    if (c->nargs > 1) {
        if (ref_parse(c->args[1], &r, e)) return -1;
        full = ref_full(&r);
    }
    cli_list(c, "change", &changes);
    for (size_t i = 0; i < changes.n; i++)
        if (config_change(config, changes.v[i], e)) return -1;
    if (strstr(c->args[0], "://"))
        return err_set(
            e, 0,
            "import from a URL is not supported yet by skiff: download it and import the file");
    AUTO_FD fd = strcmp(c->args[0], "-") ? open(c->args[0], O_RDONLY | O_CLOEXEC)
                                         : fcntl(0, F_DUPFD_CLOEXEC, 3);
    if (fd < 0) return err_set(e, errno, "open %s", c->args[0]);
    if (image_import(c->store, fd, js_get(config, "config"), cli_text(c, "message"), full, &p, id,
                     e))
        return image_collect(c->store, false), -1;
    printf("sha256:%s\n", id);
    store_event(c->store, "image", "import", id, NULL);
    return 0;
}

/* ---- 26.12 login ---- */
static const struct opt OPT_LOGIN[] = {
    { "password", 'p', OPT_TEXT, "Password" },
    { "password-stdin", 0, OPT_BOOL, "Take the password from stdin" },
    { "tls-verify", 0, OPT_BOOL, "Verify TLS certificates (true)" },
    { "username", 'u', OPT_TEXT, "Username" },
    { NULL, 0, OPT_BOOL, NULL },
};

static char *prompt(const char *what, bool hidden) {
    char line[512] = "";
    struct termios old, quiet;
    fprintf(stderr, "%s: ", what);
    bool tty = hidden && !tcgetattr(0, &old);
    if (tty) quiet = old, quiet.c_lflag &= ~(tcflag_t)ECHO, tcsetattr(0, TCSANOW, &quiet);
    bool ok = fgets(line, sizeof line, stdin) != NULL;
    if (tty) tcsetattr(0, TCSANOW, &old), fputc('\n', stderr);
    line[strcspn(line, "\r\n")] = 0;
    return ok ? str_dup(line) : NULL;
}

static int cmd_login(struct cli *c, struct err *e) {
    const char *server = c->nargs ? c->args[0] : "docker.io";
    AUTO_FREE char *user = NULL, *pass = NULL, *host = NULL;
    if (strstr(server, "://")) server = strstr(server, "://") + 3;
    host = str_dupn(server, strcspn(server, "/"));
    if (!ref_domain_ok(host)) return err_set(e, 0, "'%.100s' is not a registry name", host);
    user = cli_text(c, "username") ? str_dup(cli_text(c, "username")) : prompt("Username", false);
    if (cli_flag(c, "password-stdin")) {
        AUTO_BUF b = { 0 };
        if (!cli_has(c, "username"))
            return err_set(e, 0, "the --password-stdin option requires --username");
        if (fd_slurp(0, 65536, &b)) return err_set(e, errno, "read the password");
        while (b.n && (b.p[b.n - 1] == '\n' || b.p[b.n - 1] == '\r')) b.p[--b.n] = 0;
        pass = str_dup(b.p ? b.p : "");
    } else if (cli_has(c, "password")) {
        log_warn("Using --password via the CLI is insecure. Use --password-stdin.");
        pass = str_dup(cli_text(c, "password"));
    } else pass = prompt("Password", true);
    if (str_empty(user) || str_empty(pass))
        return err_set(e, 0, "a user name and a password are required");
    struct ref r = { 0 };
    struct reg reg;
    snprintf(r.domain, sizeof r.domain, "%s", host);
    AUTO_FREE char *pair = str_fmt("%s:%s", user, pass);
    /* the credentials are tried before they are kept */
    if (reg_connect(&reg, &r, false, tls_verify(c), e) && !reg.base) return reg_done(&reg), -1;
    free(reg.creds), free(reg.auth);
    reg.creds = str_dup(pair);
    reg.auth = NULL;
    struct http_req q = { .method = "GET", .body_fd = -1 };
    e->msg[0] = 0;
    AUTO_HTTP *h = reg_request(&reg, &q, "", e);
    long status = h ? h->status : 0;
    reg_done(&reg);
    if (!h) return -1;
    if (status != 200)
        return err_set(e, 0,
                       "login to %s failed: HTTP %ld: unauthorized: incorrect username or password",
                       host, status);
    if (auth_store(host, pair, NULL, e)) return -1;
    puts("Login Succeeded");
    return 0;
}

static int cmd_logout(struct cli *c, struct err *e) {
    const char *server = c->nargs ? c->args[0] : "docker.io";
    bool none;
    if (auth_store(server, NULL, &none, e)) return -1;
    printf(none ? "Not logged in to %s\n" : "Removing login credentials for %s\n", server);
    return 0;
}

/* ---- 26.13 volumes ---- */
static const struct opt OPT_VCREATE[] = {
    { "driver", 'd', OPT_TEXT, "Specify volume driver name (local)" },
    { "label", 0, OPT_LIST, "Set metadata for a volume" },
    { "name", 0, OPT_TEXT, "Specify volume name" },
    { "opt", 'o', OPT_LATER_TEXT, "" },
    { NULL, 0, OPT_BOOL, NULL },
};

static int cmd_volume_create(struct cli *c, struct err *e) {
    AUTO_STRV l = { 0 };
    AUTO_JSON *labels = json_object();
    char random[HEX_LEN + 1];
    const char *driver = cli_text(c, "driver");
    if (driver && strcmp(driver, "local"))
        return err_set(e, 0, "volume driver '%.40s' is not supported yet by skiff: use local",
                       driver);
    id_random(random);
    const char *name = c->nargs ? c->args[0] : cli_text(c, "name") ? cli_text(c, "name") : random;
    cli_list(c, "label", &l);
    for (size_t i = 0; i < l.n; i++) {
        char *eq = strchr(l.v[i], '=');
        if (eq) *eq++ = 0;
        js_sets(labels, l.v[i], eq ? eq : "");
    }
    if (!cli_store(c, e) || volume_create(c->store, name, labels, name == random, e)) return -1;
    puts(name);
    return 0;
}

/* All files of a volume may belong to mapped ids: removed as their owner would. */
struct volume_removal {
    const struct store *s;
    const char *name;
};
static int volume_remove_run(void *arg) {
    const struct volume_removal *r = arg;
    AUTO_FREE char *path = str_fmt("volumes/%s", r->name);
    return tree_remove(r->s->dir, path) ? 1 : 0;
}

static int volume_remove(const struct store *s, const char *name, struct err *e) {
    struct idmap ids;
    struct volume_removal r = { s, name };
    if (idmap_choose(s->dir, "", 0, 0, &ids, e) || launch_as_owner(&ids, volume_remove_run, &r, e))
        return err_set(e, 0, "remove volume %s", name);
    store_event(s, "volume", "destroy", name, NULL);
    return 0;
}

static int volume_rm_one(struct cli *c, const char *name, struct err *e) {
    AUTO_JSON *j = volume_inspect(c->store, name, e);
    if (!j) return cli_flag(c, "force") ? 0 : -1;
    if (volume_used(c->store, name)) return err_set(e, 0, "remove %s: volume is in use", name);
    return volume_remove(c->store, name, e);
}
static int cmd_volume_rm(struct cli *c, struct err *e) {
    return cli_store(c, e) ? cli_each(c, volume_rm_one, true, e) : -1;
}

static void volume_names(const struct store *s, struct strv *ret) {
    AUTO_DIR *d = dir_stream(s->dir, "volumes");
    struct dirent *de;
    while (d && (de = dir_next(d))) strv_add(ret, de->d_name);
    if (ret->n) qsort(ret->v, ret->n, sizeof *ret->v, name_order);
}

static int cmd_volume_ls(struct cli *c, struct err *e) {
    AUTO_STRV names = { 0 }, f = { 0 };
    AUTO_JSON *rows = json_array(),
              *heads = json_pack("{ss,ss,ss,ss,ss,ss}", "Name", "VOLUME NAME", "Driver", "DRIVER",
                                 "Mountpoint", "MOUNTPOINT", "Labels", "LABELS", "Scope", "SCOPE",
                                 "Size", "SIZE");
    cli_list(c, "filter", &f);
    if (!cli_store(c, e) || filters_known(&f, "name label dangling driver", e)) return -1;
    volume_names(c->store, &names);
    for (size_t i = 0; i < names.n; i++) {
        AUTO_JSON *v = volume_inspect(c->store, names.v[i], e);
        bool ok = v != NULL;
        for (size_t k = 0; k < f.n && ok; k++) {
            const char *x = strchr(f.v[k], '=') + 1;
            if (str_prefix(f.v[k], "name=")) ok = strstr(names.v[i], x) != NULL;
            else if (str_prefix(f.v[k], "label=")) ok = label_holds(js_get(v, "Labels"), x);
            else if (str_prefix(f.v[k], "driver=")) ok = !strcmp(x, "local");
            else ok = volume_used(c->store, names.v[i]) != (!strcmp(x, "true") || !strcmp(x, "1"));
        }
        if (!ok) continue;
        if (cli_flag(c, "quiet")) {
            puts(names.v[i]);
            continue;
        }
        AUTO_FREE char *labels = labels_text(js_get(v, "Labels"), ",");
        js_sets(v, "Labels", labels);
        js_sets(v, "Size", "N/A");
        json_array_append(rows, v);
    }
    if (cli_flag(c, "quiet")) return 0;
    return rows_print(cli_text(c, "format"), "table {{.Driver}}\t{{.Name}}", heads, rows, e);
}

/* ---- 26.14 prune, df, check ---- */
static const struct opt OPT_PRUNE[] = {
    { "all", 'a', OPT_BOOL, "Remove all unused, not just dangling or anonymous ones" },
    { "filter", 0, OPT_LIST, "Provide filter values (label=<key>=<value>, until=<timestamp>)" },
    { "force", 'f', OPT_BOOL, "Do not prompt for confirmation" },
    { "volumes", 0, OPT_BOOL, "Prune anonymous volumes" },
    { NULL, 0, OPT_BOOL, NULL },
};

/* --filter label=…, label!=…, until=…: may this object go? created: RFC 3339. */
static bool prune_takes(const struct cli *c, const json_t *labels, const char *created) {
    AUTO_STRV f = { 0 };
    cli_list(c, "filter", &f);
    for (size_t i = 0; i < f.n; i++) {
        if (str_prefix(f.v[i], "label=") && !label_holds(labels, f.v[i] + 6)) return false;
        if (str_prefix(f.v[i], "label!=") && label_holds(labels, f.v[i] + 7)) return false;
        if (str_prefix(f.v[i], "until=") && time_parse(created) > time_option(f.v[i] + 6))
            return false;
    }
    return true;
}

static u64 prune_containers(struct cli *c) {
    AUTO_STRV ids = { 0 };
    u64 freed = 0;
    bool head = false;
    ctr_ids(c->store, &ids);
    for (size_t i = 0; i < ids.n; i++) {
        AUTO_CTR k = { .dir = -1 };
        struct err e;
        u64 inodes = 0, bytes = 0;
        if (ctr_open(c->store, ids.v[i], &k, &e) || ctr_alive(&k) || ctr_is_build(&k)) continue;
        if (!prune_takes(c, js_path(k.config, "skiff.labels"),
                         js_str_or(k.config, "skiff.created", "")))
            continue;
        tree_usage(k.dir, "upper", &bytes, &inodes, 0);
        AUTO_FD lock = lock_take(k.dir, "lock", LOCK_EX | LOCK_NB);
        if (lock < 0 || ctr_remove(&k, false, &e)) continue;
        if (!head) puts("Deleted Containers:");
        head = true;
        puts(k.id);
        freed += bytes;
    }
    return freed;
}

static u64 prune_volumes(struct cli *c, bool all) {
    AUTO_STRV names = { 0 };
    u64 freed = 0;
    bool head = false;
    volume_names(c->store, &names);
    for (size_t i = 0; i < names.n; i++) {
        struct err e;
        AUTO_FREE char *meta = str_fmt("volumes/%s/meta.json", names.v[i]),
                       *path = str_fmt("volumes/%s", names.v[i]);
        AUTO_JSON *j = js_load(c->store->dir, meta, &e);
        u64 bytes = 0, inodes = 0;
        if ((!all && !js_bool(j, "anonymous")) ||
            !prune_takes(c, js_get(j, "Labels"), js_str_or(j, "CreatedAt", "")) ||
            volume_used(c->store, names.v[i]))
            continue;
        tree_usage(c->store->dir, path, &bytes, &inodes, 0);
        if (volume_remove(c->store, names.v[i], &e)) continue;
        if (!head) puts("Deleted Volumes:");
        head = true;
        puts(names.v[i]);
        freed += bytes;
    }
    return freed;
}

static u64 prune_images(struct cli *c, bool all) {
    size_t n = 0;
    bool head = false;
    struct err e;
    struct image_row *r = image_rows(c->store, &n, &e);
    for (size_t i = 0; r && i < n; i++) {
        if ((!all && desc_name(r[i].desc)) ||
            !prune_takes(c, js_path(r[i].m.config, "config.Labels"),
                         js_str_or(r[i].m.config, "created", "")))
            continue;
        AUTO_FREE char *user = image_user(c->store, r[i].m.id, false);
        if (user || store_untag(c->store, js_str(r[i].desc, "digest"), desc_name(r[i].desc), &e))
            continue;
        if (!head) puts("Deleted Images:");
        head = true;
        if (desc_name(r[i].desc)) printf("untagged: %s\n", desc_name(r[i].desc));
        printf("deleted: sha256:%s\n", r[i].m.id);
    }
    if (r) image_rows_free(r, n);
    return image_collect(c->store, true);
}

static int cmd_prune(struct cli *c, struct err *e) {
    bool sys = str_prefix(c->cmd->path, "system"), all = cli_flag(c, "all");
    u64 freed = 0;
    AUTO_STRV f = { 0 };
    cli_list(c, "filter", &f);
    for (size_t i = 0; i < f.n; i++) {
        bool until = str_prefix(f.v[i], "until=");
        if (!until && !str_prefix(f.v[i], "label=") && !str_prefix(f.v[i], "label!="))
            return err_set(e, 0, "invalid filter '%.60s'", f.v[i]);
        if (until && time_option(f.v[i] + 6) < 0)
            return err_set(e, 0, "invalid filter '%.60s': not a time", f.v[i]);
    }
    if (!cli_store(c, e)) return -1;
    const char *what = sys ? "WARNING! This will remove:\n  - all stopped containers\n  - all "
                             "dangling images\n  - unused build cache\n\n"
                       : str_prefix(c->cmd->path, "container")
                           ? "WARNING! This will remove all stopped containers.\n"
                       : str_prefix(c->cmd->path, "volume")
                           ? all ? "WARNING! This will remove all local volumes not used by at "
                                   "least one container.\n"
                                 : "WARNING! This will remove anonymous local volumes not used by "
                                   "at least one container.\n"
                       : all ? "WARNING! This will remove all images without at least one "
                               "container associated to them.\n"
                             : "WARNING! This will remove all dangling images.\n";
    if (!cli_flag(c, "force") && !ask(what)) return 0;
    if (sys || str_prefix(c->cmd->path, "container")) freed += prune_containers(c);
    if ((sys && cli_flag(c, "volumes")) || str_prefix(c->cmd->path, "volume"))
        freed += prune_volumes(c, all);
    if (sys || str_prefix(c->cmd->path, "image")) freed += prune_images(c, all);
    AUTO_FREE char *size = size_human(freed);
    printf("%sTotal reclaimed space: %s\n", freed ? "\n" : "", size);
    return 0;
}

static const struct opt OPT_DF[] = {
    { "format", 0, OPT_TEXT, "Format output using a custom template" },
    { "verbose", 'v', OPT_BOOL, "Show detailed information on space usage" },
    { NULL, 0, OPT_BOOL, NULL },
};

static json_t *df_row(const char *type, size_t total, size_t active, u64 size, u64 free_bytes) {
    AUTO_FREE char *s = size_human(size), *r = str_fmt("%zu", active), *t = str_fmt("%zu", total),
                   *f = size_human(free_bytes);
    AUTO_FREE char *rec =
        size ? str_fmt("%s (%d%%)", f, (int)(100 * free_bytes / size)) : str_dup(f);
    return json_pack("{ss,ss,ss,ss,ss}", "Type", type, "TotalCount", t, "Active", r, "Size", s,
                     "Reclaimable", rec);
}

/* df -v: a row for each thing. */
static int df_verbose(struct cli *c, const struct strv *ids, const struct strv *vols,
                      struct err *e) {
    AUTO_BUF out = { 0 };
    size_t n = 0;
    struct image_row *r = image_rows(c->store, &n, e);
    if (!r) return -1;
    puts("Images space usage:\n");
    buf_adds(&out, "REPOSITORY\tTAG\tIMAGE ID\tCREATED\tSIZE\n");
    for (size_t i = 0; i < n; i++) {
        AUTO_JSON *j = image_row_json(c->store, &r[i], true);
        buf_addf(&out, "%s\t%s\t%s\t%s\t%s\n", js_str(j, "Repository"), js_str(j, "Tag"),
                 js_str(j, "ID"), js_str(j, "CreatedSince"), js_str(j, "Size"));
    }
    image_rows_free(r, n);
    table_print(out.p);
    puts("\nContainers space usage:\n");
    buf_done(&out);
    buf_adds(&out, "CONTAINER ID\tIMAGE\tCOMMAND\tSIZE\tCREATED\tSTATUS\tNAMES\n");
    for (size_t i = 0; i < ids->n; i++) {
        AUTO_CTR k = { .dir = -1 };
        u64 rw, all;
        if (ctr_open(c->store, ids->v[i], &k, e)) continue;
        AUTO_JSON *j = ps_row(&k, c);
        ctr_size(&k, &rw, &all);
        AUTO_FREE char *size = size_human(rw);
        buf_addf(&out, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", js_str(j, "ID"), js_str(j, "Image"),
                 js_str(j, "Command"), size, js_str(j, "RunningFor"), js_str(j, "Status"),
                 js_str(j, "Names"));
    }
    table_print(out.p);
    puts("\nLocal Volumes space usage:\n");
    buf_done(&out);
    buf_adds(&out, "VOLUME NAME\tLINKS\tSIZE\n");
    for (size_t i = 0; i < vols->n; i++) {
        AUTO_FREE char *path = str_fmt("volumes/%s/_data", vols->v[i]);
        u64 bytes = 0, inodes = 0;
        tree_usage(c->store->dir, path, &bytes, &inodes, 0);
        AUTO_FREE char *size = size_human(bytes);
        buf_addf(&out, "%s\t%d\t%s\n", vols->v[i], volume_used(c->store, vols->v[i]), size);
    }
    table_print(out.p);
    return 0;
}

static int cmd_df(struct cli *c, struct err *e) {
    AUTO_JSON *rows = json_array(),
              *heads = json_pack("{ss,ss,ss,ss,ss}", "Type", "TYPE", "TotalCount", "TOTAL",
                                 "Active", "ACTIVE", "Size", "SIZE", "Reclaimable", "RECLAIMABLE");
    AUTO_STRV ids = { 0 }, vols = { 0 };
    u64 bytes = 0, unused = 0, inodes = 0, cb = 0, cu = 0, vb = 0, vu = 0;
    size_t n = 0, active = 0, running = 0, vactive = 0;
    if (!cli_store(c, e)) return -1;
    struct image_row *r = image_rows(c->store, &n, e);
    if (!r) return -1;
    for (size_t i = 0; i < n; i++) {
        AUTO_FREE char *user = image_user(c->store, r[i].m.id, false);
        if (user) active++;
        else unused += image_size(c->store, &r[i].m);
    }
    image_rows_free(r, n);
    static const char *const DIRS[] = { "blobs", "layers", "merged" };
    for (size_t i = 0; i < ARRAY_LEN(DIRS); i++)
        tree_usage(c->store->dir, DIRS[i], &bytes, &inodes, 0);
    ctr_ids(c->store, &ids);
    for (size_t i = 0; i < ids.n; i++) {
        AUTO_CTR k = { .dir = -1 };
        u64 b = 0;
        if (ctr_open(c->store, ids.v[i], &k, e)) continue;
        tree_usage(k.dir, "upper", &b, &inodes, 0);
        tree_usage(k.dir, "rootfs", &b, &inodes, 0);
        cb += b;
        if (ctr_alive(&k)) running++;
        else cu += b;
    }
    volume_names(c->store, &vols);
    for (size_t i = 0; i < vols.n; i++) {
        AUTO_FREE char *path = str_fmt("volumes/%s", vols.v[i]);
        u64 b = 0;
        tree_usage(c->store->dir, path, &b, &inodes, 0);
        vb += b;
        if (volume_used(c->store, vols.v[i])) vactive++;
        else vu += b;
    }
    if (cli_flag(c, "verbose")) return df_verbose(c, &ids, &vols, e);
    json_array_append_new(rows,
                          df_row("Images", n, active, bytes, unused < bytes ? unused : bytes));
    json_array_append_new(rows, df_row("Containers", ids.n, running, cb, cu));
    json_array_append_new(rows, df_row("Local Volumes", vols.n, vactive, vb, vu));
    json_array_append_new(rows, df_row("Build Cache", 0, 0, 0, 0));
    return rows_print(cli_text(c, "format"),
                      "table {{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}",
                      heads, rows, e);
}

static const struct opt OPT_CHECK[] = { { "repair", 0, OPT_BOOL,
                                          "Remove damaged blobs, rebuild layers from their blobs" },
                                        { NULL, 0, OPT_BOOL, NULL } };

/* Reads every blob, index and chunk of an image. Returns how many faults there were. */
static int check_image(const struct store *s, const struct image *m, bool repair) {
    int faults = 0;
    const json_t *layers = js_get(m->manifest, "layers");
    for (size_t i = 0; i < m->diff_ids.n; i++) {
        const char *blob = js_str(json_array_get(layers, i), "digest"), *diff = m->diff_ids.v[i];
        struct err e = { 0 };
        AUTO_FD fd = blob_open(s, blob, &e);
        struct src_fd f = { { src_fd_read }, fd };
        struct src_hash h = { .src = { src_hash_read }, .from = &f.src };
        char buf[65536], have[DIGEST_LEN + 1] = "sha256:", path[96], bp[80];
        u8 raw[32];
        sha_init(&h.sha);
        for (ssize_t k = fd < 0 ? 0 : 1; k > 0;) k = h.src.read(&h.src, buf, sizeof buf, &e);
        sha_end(&h.sha, raw);
        hex_of(raw, 32, have + 7);
        bool blob_bad = fd < 0 || !str_eq(have, blob);
        if (blob_bad) {
            printf("damaged blob %s%s\n", blob ? blob : "?", repair ? ": removed" : "");
            faults++;
            if (repair && blob_path(blob, bp)) unlinkat(s->dir, bp, 0);
        }
        snprintf(path, sizeof path, "layers/%s.idx", digest_hex(diff));
        AUTO_IDX x = { 0 };
        bool bad = idx_open(s->dir, path, true, &x, &e) != 0;
        AUTO_FD dir = dir_open(s->dir, "layers", &e);
        if (!bad) {
            struct packs packs;
            packs_init(&packs, &x, dir);
            AUTO_FREE u8 *tmp = NULL;
            size_t cap = 0;
            for (u32 k = 0; !bad && k < x.head->chunks; k++) {
                const struct idx_chunk *ch = &x.chunks[k];
                int pack = ch->stored ? packs_fd(&packs, ch->pack) : -1;
                if (!ch->stored) continue;
                if (ch->len > cap) tmp = mem_grow(tmp, cap = ch->len, 1);
                if (pack < 0 || ch->len > 1u << 26) bad = true;
                else if (ch->stored == ch->len ? fd_pread_all(pack, tmp, ch->len, ch->off)
                                               : packs_inflate(pack, ch, 0, tmp, ch->len))
                    bad = true;
                else sha_of(tmp, ch->len, raw), bad = memcmp(raw, ch->sha, 32) != 0;
            }
            packs_done(&packs);
        }
        if (!bad) continue;
        faults++;
        bool mended = repair && !blob_bad && !layer_rebuild(s, blob, diff, &e);
        printf("damaged layer %s%s\n", diff, mended ? ": rebuilt from its blob" : "");
    }
    return faults;
}

static int cmd_check(struct cli *c, struct err *e) {
    size_t n = 0;
    int faults = 0;
    bool repair = cli_flag(c, "repair");
    if (!cli_store(c, e)) return -1;
    AUTO_JSON *index = store_index(c->store, e);
    if (!index) return -1;
    struct image_row *r = image_rows(c->store, &n, e);
    size_t listed = json_array_size(js_get(index, "manifests"));
    if (n < listed)
        printf("%zu image%s with an unreadable manifest or configuration\n", listed - n,
               listed - n == 1 ? "" : "s"),
            faults++;
    for (size_t i = 0; r && i < n; i++) faults += check_image(c->store, &r[i].m, repair);
    if (r) image_rows_free(r, n);
    AUTO_STRV ids = { 0 };
    ctr_ids(c->store, &ids);
    for (size_t i = 0; i < ids.n; i++) {
        AUTO_CTR k = { .dir = -1 };
        if (ctr_open(c->store, ids.v[i], &k, e))
            printf("container %.12s: %s\n", ids.v[i], e->msg), faults++;
    }
    u64 freed = repair ? image_collect(c->store, false) : 0;
    if (freed) printf("%" PRIu64 " bytes of garbage removed\n", freed);
    printf("%zu images, %zu containers, %d fault%s\n", n, ids.n, faults, faults == 1 ? "" : "s");
    return faults && !repair ? 1 : 0;
}

/* ---- 26.15 events ---- */
static const struct opt OPT_EVENTS[] = {
    { "filter", 'f', OPT_LIST, "Filter output based on conditions provided" },
    { "format", 0, OPT_TEXT, "Format output using a custom template" },
    { "since", 0, OPT_TEXT, "Show all events created since timestamp" },
    { "until", 0, OPT_TEXT, "Stream events until this timestamp" },
    { NULL, 0, OPT_BOOL, NULL },
};

static bool ev_type(const void *x, const char *v) { return str_eq(js_str(x, "Type"), v); }
static bool ev_event(const void *x, const char *v) {
    return str_prefix(js_str_or(x, "Action", ""), v);
}
static bool ev_container(const void *x, const char *v) {
    return str_eq(js_str(x, "Type"), "container") &&
           (str_prefix(js_str_or(x, "id", ""), v) || str_eq(js_str(x, "Actor.Attributes.name"), v));
}
static bool ev_label(const void *x, const char *v) {
    return label_holds(js_path(x, "Actor.Attributes"), v);
}
static bool ev_image(const void *x, const char *v) {
    return str_eq(js_str(x, "Actor.Attributes.image"), v) || str_eq(js_str(x, "id"), v);
}

static int event_print(const json_t *ev, const char *format, struct err *e) {
    if (!str_empty(format)) {
        AUTO_BUF out = { 0 };
        if (tmpl_run(!strcmp(format, "json") ? "{{json .}}" : format, (json_t *)(uintptr_t)ev, &out,
                     e))
            return -1;
        puts(out.p ? out.p : "");
    } else {
        AUTO_FREE char *attrs = labels_text(js_path(ev, "Actor.Attributes"), ", ");
        char t[40];
        printf("%s %s %s %s (%s)\n", time_rfc3339(js_int(ev, "timeNano", 0), t), js_str(ev, "Type"),
               js_str(ev, "Action"), js_str(ev, "id"), attrs);
    }
    fflush(stdout);
    return 0;
}

static int cmd_events(struct cli *c, struct err *e) {
    AUTO_STRV f = { 0 };
    i64 since = time_option(cli_text(c, "since")), until = time_option(cli_text(c, "until"));
    cli_list(c, "filter", &f);
    if (since == -2 || until == -2)
        return err_set(e, 0, "invalid value for \"--since\" or \"--until\": not a time");
    if (!cli_store(c, e) || filters_known(&f, "type event container image label", e)) return -1;
    if (since < 0) since = time_now_ns();
    off_t at = 0;
    for (;;) {
        AUTO_FD fd = openat(c->store->dir, "events.json", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        AUTO_BUF b = { 0 };
        struct stat st;
        if (fd >= 0 && !fstat(fd, &st) && st.st_size < at) at = 0; /* the log began anew */
        if (fd >= 0 && lseek(fd, at, SEEK_SET) >= 0) fd_slurp(fd, 64 << 20, &b);
        char *end;
        for (char *l = b.p; l && (end = strchr(l, '\n')); l = end + 1) {
            AUTO_JSON *ev = json_loadb(l, (size_t)(end - l), 0, NULL);
            i64 t = js_int(ev, "timeNano", 0);
            at += end + 1 - l;
            if (t < since || (until >= 0 && t > until) || !filter_match(&f, "type", ev_type, ev) ||
                !filter_match(&f, "event", ev_event, ev) ||
                !filter_match(&f, "container", ev_container, ev) ||
                !filter_match(&f, "label", ev_label, ev) ||
                !filter_match(&f, "image", ev_image, ev))
                continue;
            if (event_print(ev, cli_text(c, "format"), e)) return -1;
        }
        if (until >= 0 && time_now_ns() >= until) return 0;
        usleep(100000);
    }
}

/* ---- 26.16 version, info, doctor ---- */
static const struct opt OPT_FORMAT[] = { { "format", 'f', OPT_TEXT,
                                           "Format output using a custom template" },
                                         { NULL, 0, OPT_BOOL, NULL } };
static const struct opt OPT_VERSION[] = {
    { "format", 'f', OPT_TEXT, "Format output using a custom template" },
    { "licenses", 0, OPT_BOOL, "Print the notices of the libraries inside" },
    { NULL, 0, OPT_BOOL, NULL },
};

static int cmd_version(struct cli *c, struct err *e) {
    if (cli_flag(c, "licenses")) {
        fputs(SKIFF_LICENSES, stdout);
        return 0;
    }
    struct utsname u;
    uname(&u);
    AUTO_JSON *v = json_pack("{ss,ss,ss,ss,ss}", "Version", SKIFF_VERSION, "ApiVersion", "", "Os",
                             "linux", "Arch", host_arch(), "KernelVersion", u.release);
    AUTO_JSON *j = json_pack("{s:O,s:O}", "Client", v, "Server", v);
    if (cli_text(c, "format")) {
        AUTO_JSON *rows = json_pack("[O]", j);
        return rows_print(cli_text(c, "format"), "", NULL, rows, e);
    }
    printf("Client: skiff\n Version:           %s\n OS/Arch:           linux/%s\n Kernel:          "
           "  %s\n libarchive:        %s\n libcurl:           %s\n zstd:              "
           "%s\n\nServer: none (skiff has no daemon)\n",
           SKIFF_VERSION, host_arch(), u.release, archive_version_string(), curl_version(),
           ZSTD_versionString());
    return 0;
}

static int cmd_info(struct cli *c, struct err *e) {
    AUTO_STRV ids = { 0 };
    struct idmap m;
    struct utsname u;
    size_t images = 0, run = 0, paused = 0, n = 0;
    if (!cli_store(c, e) || idmap_choose(c->store->dir, "", 0, 0, &m, e)) return -1;
    const char *driver = choose_driver(c->store, &m, e);
    if (!driver) return -1;
    uname(&u);
    ctr_ids(c->store, &ids);
    for (size_t i = 0; i < ids.n; i++) {
        AUTO_CTR k = { .dir = -1 };
        if (ctr_open(c->store, ids.v[i], &k, e)) continue;
        n++;
        run += ctr_is(&k, "running");
        paused += ctr_is(&k, "paused");
    }
    AUTO_JSON *index = store_index(c->store, e);
    images = json_array_size(js_get(index, "manifests"));
    AUTO_FREE char *own = NULL;
    bool cg = cgroup_own(&own) && !access(own, W_OK);
    const char *identity = !m.uids ? "root" : idmap_single(&m) ? "single id" : "subuid";
    AUTO_JSON *j =
        json_pack("{s:s,s:I,s:I,s:I,s:I,s:I,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:I,s:I,s:s,s:[s,s,s]}",
                  "ServerVersion", SKIFF_VERSION, "Containers", (json_int_t)n, "ContainersRunning",
                  (json_int_t)run, "ContainersPaused", (json_int_t)paused, "ContainersStopped",
                  (json_int_t)(n - run - paused), "Images", (json_int_t)images, "Driver", driver,
                  "Identity", identity, "CgroupDriver", cg ? "cgroupfs" : "none", "CgroupVersion",
                  cg ? "2" : "", "KernelVersion", u.release, "OSType", "linux", "Architecture",
                  u.machine, "NCPU", (json_int_t)sysconf(_SC_NPROCESSORS_ONLN), "MemTotal",
                  (json_int_t)sysconf(_SC_PHYS_PAGES) * (json_int_t)sysconf(_SC_PAGESIZE),
                  "DockerRootDir", c->store->path, "SecurityOptions",
                  "name=seccomp,profile=builtin", "name=rootless", "name=userns");
    js_sets(j, "Name", u.nodename);
    js_sets(j, "LoggingDriver", "json-file");
    AUTO_BUF osr = { 0 };
    file_read(AT_FDCWD, "/etc/os-release", 65536, &osr, e);
    char *pretty = osr.p ? strstr(osr.p, "PRETTY_NAME=\"") : NULL;
    AUTO_FREE char *os_name =
        pretty ? str_dupn(pretty + 13, strcspn(pretty + 13, "\"\n")) : str_dup("Linux");
    js_sets(j, "OperatingSystem", os_name);
    if (cli_text(c, "format")) {
        AUTO_JSON *rows = json_pack("[O]", j);
        return rows_print(cli_text(c, "format"), "", NULL, rows, e);
    }
    AUTO_FREE char *mem = size_binary((u64)js_int(j, "MemTotal", 0));
    printf("Server:\n Containers: %zu\n  Running: %zu\n  Paused: %zu\n  Stopped: %zu\n Images: "
           "%zu\n Server Version: %s\n Storage Driver: %s\n Identity: %s\n"
           " Logging Driver: json-file\n Cgroup Driver: %s\n Network: host none\n Security "
           "Options: seccomp (builtin), user namespace\n Kernel Version: %s\n Operating System: "
           "%s\n OSType: linux\n Architecture: %s\n CPUs: %d\n"
           " Total Memory: %s\n Name: %s\n Skiff Root Dir: %s\n",
           n, run, paused, n - run - paused, images, SKIFF_VERSION, driver, identity,
           cg ? "cgroupfs, version 2" : "none", u.release, os_name, u.machine,
           (int)sysconf(_SC_NPROCESSORS_ONLN), mem, u.nodename, c->store->path);
    return 0;
}

static void doctor_say(bool works, const char *what, const char *lost, const char *remedy) {
    printf("%-4s %-24s %s\n", works ? "ok" : "no", what, works ? "" : lost);
    if (!works && *remedy) printf("     %-24s an administrator can: %s\n", "", remedy);
}

static int doctor_userns(void *arg) {
    (void)arg;
    return unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET) ? 1 : 0;
}

static int cmd_doctor(struct cli *c, struct err *e) {
    struct idmap single = { .uid = { { 0, geteuid(), 1 } },
                            .uids = 1,
                            .gid = { { 0, getegid(), 1 } },
                            .gids = 1 },
                 sub;
    struct statfs fs;
    char text[64] = "";
    u32 a, b;
    if (!cli_store(c, e)) return -1;
    fflush(NULL);
    bool userns = launch_as_owner(&single, doctor_userns, NULL, e) == 0;
    doctor_say(userns, "user namespaces", "no container can be started",
               "sysctl -w user.max_user_namespaces=15000 kernel.unprivileged_userns_clone=1");
    bool armor = !file_line(AT_FDCWD, "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
                            text, sizeof text) &&
                 !strcmp(text, "1");
    doctor_say(!armor || userns, "AppArmor's restriction",
               "user namespaces come without capabilities",
               "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0");
    bool range = host_subid("/etc/subuid", &a, &b) && host_subid("/etc/subgid", &a, &b);
    AUTO_FREE char *line =
        str_fmt("usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s", host_user());
    doctor_say(range, "subuid range", "one id in containers; ownership calls pretend", line);
    AUTO_FREE char *helper = host_program("newuidmap");
    doctor_say(helper != NULL, "newuidmap", "subuid ranges cannot be used",
               "apt-get install uidmap");
    if (range && helper)
        doctor_say(idmap_subid(c->store->dir, &sub), "newuidmap works", "one id in containers",
                   "chmod u+s /usr/bin/newuidmap /usr/bin/newgidmap");
    doctor_say(probe_overlay(c->store, &single), "kernel overlay",
               "images are copied for each container",
               "use a kernel from 5.11 on, or put SKIFF_ROOT on ext4, xfs, btrfs or tmpfs");
    doctor_say(host_fuse(), "/dev/fuse", "layers are unpacked to directories",
               "chmod 0666 /dev/fuse");
    AUTO_FREE char *own = NULL;
    bool v2 = cgroup_own(&own);
    doctor_say(v2, "cgroup v2", "no limits", "boot with systemd.unified_cgroup_hierarchy=1");
    if (v2)
        doctor_say(!access(own, W_OK), "cgroup delegation", "no limits",
                   "systemctl set-property user@$UID.service Delegate=yes; then start skiff by "
                   "'systemd-run --user --scope -p Delegate=yes'");
    doctor_say(prctl(PR_GET_SECCOMP) >= 0 &&
                   !access("/proc/sys/kernel/seccomp/actions_avail", R_OK),
               "seccomp", "no system call filter", "use a kernel with CONFIG_SECCOMP_FILTER");
    AUTO_BUF actions = { 0 };
    file_read(AT_FDCWD, "/proc/sys/kernel/seccomp/actions_avail", 4096, &actions, e);
    doctor_say(actions.p && strstr(actions.p, "user_notif"), "seccomp notification",
               "nothing yet (reserved for identity emulation)", "");
    doctor_say(!access("/dev/net/tun", R_OK | W_OK), "/dev/net/tun",
               "nothing: skiff does not need it", "");
    i64 low = 1024;
    if (!file_line(AT_FDCWD, "/proc/sys/net/ipv4/ip_unprivileged_port_start", text, sizeof text))
        str_int(text, 0, 65535, &low);
    doctor_say(low < 1024, "low ports",
               "servers in containers with the host's network bind from 1024 on",
               "sysctl -w net.ipv4.ip_unprivileged_port_start=0");
    unsigned from = 1, to = 0;
    if (!file_line(AT_FDCWD, "/proc/sys/net/ipv4/ping_group_range", text, sizeof text))
        sscanf(text, "%u %u", &from, &to);
    doctor_say(from <= getegid() && getegid() <= to, "ping",
               "ping in containers with the host's network fails",
               "sysctl -w net.ipv4.ping_group_range='0 2147483647'");
    if (!fstatfs(c->store->dir, &fs)) {
        bool shared = (u32)fs.f_type == 0x6969 || (u32)fs.f_type == 0x0bd00bd0 ||
                      (u32)fs.f_type == 0x47504653;
        doctor_say(!shared, "store's file system",
                   "a parallel or network file system cannot be the upper of an overlay", "");
    }
    return userns ? 0 : 1;
}

/* ---- 26.17 build ---- */
static const struct opt OPT_BUILD[] = {
    { "add-host", 0, OPT_LIST, "Add a custom host-to-IP mapping (host:ip)" },
    { "build-arg", 0, OPT_LIST, "Set build-time variables" },
    { "file", 'f', OPT_TEXT, "Name of the Dockerfile (default: PATH/Dockerfile)" },
    { "iidfile", 0, OPT_TEXT, "Write the image ID to the file" },
    { "label", 0, OPT_LIST, "Set metadata for an image" },
    { "network", 0, OPT_TEXT, "Networking mode for the RUN instructions (host|none)" },
    { "no-cache", 0, OPT_BOOL, "Do not use cache when building the image" },
    { "output", 'o', OPT_TEXT, "Output destination (type=local,dest=path | type=tar,dest=path)" },
    { "platform", 0, OPT_TEXT, "Set target platform for build" },
    { "progress", 0, OPT_TEXT, "Set type of progress output (auto, plain, quiet)" },
    { "pull", 0, OPT_BOOL, "Always attempt to pull all referenced images" },
    { "quiet", 'q', OPT_BOOL, "Suppress the build output and print image ID on success" },
    { "secret", 0, OPT_LIST, "Secret to expose to the build (id=mysecret,src=/local/secret)" },
    { "shm-size", 0, OPT_BYTES, "Shared memory size for RUN" },
    { "ssh", 0, OPT_LIST, "SSH agent socket to expose to the build (default)" },
    { "tag", 't', OPT_LIST, "Name and optionally a tag (name:tag)" },
    { "target", 0, OPT_TEXT, "Set the target build stage to build" },
    { "tls-verify", 0, OPT_BOOL, "Verify TLS certificates when pulling (true)" },
    { "ulimit", 0, OPT_LIST, "Ulimit options" },
    { "force-rm", 0, OPT_BOOL, "Accepted; nothing is left behind anyway" },
    { "rm", 0, OPT_BOOL, "Accepted; nothing is left behind anyway" },
    { "load", 0, OPT_BOOL, "Accepted; images are always in the store" },
    { "allow", 0, OPT_LATER_TEXT, "" },
    { "attest", 0, OPT_LATER_TEXT, "" },
    { "annotation", 0, OPT_LATER_TEXT, "" },
    { "build-context", 0, OPT_LATER_TEXT, "" },
    { "cache-from", 0, OPT_LATER_TEXT, "" },
    { "cache-to", 0, OPT_LATER_TEXT, "" },
    { "cgroup-parent", 0, OPT_LATER_TEXT, "" },
    { "compress", 0, OPT_LATER_BOOL, "" },
    { "isolation", 0, OPT_LATER_TEXT, "" },
    { "memory", 'm', OPT_LATER_TEXT, "" },
    { "push", 0, OPT_LATER_BOOL, "" },
    { "squash", 0, OPT_LATER_BOOL, "" },
    { "provenance", 0, OPT_TEXT, "Accepted; none is made" },
    { "sbom", 0, OPT_TEXT, "Accepted; none is made" },
    { NULL, 0, OPT_BOOL, NULL },
};

/* A context that comes as an archive, laid out in tmp/. */
static int build_context_archive(struct build *b, int fd, char **ret_tmp, struct err *e) {
    char id[HEX_LEN + 1];
    id_random(id);
    *ret_tmp = str_fmt("tmp/context-%.16s", id);
    if (mkdirat(b->s->dir, *ret_tmp, 0700) || (b->ctx = dir_open(b->s->dir, *ret_tmp, e)) < 0)
        return err_set(e, errno, "make a directory for the context");
    struct placing pl = {
        .root = b->ctx, .into = "", .uid = -1, .gid = -1, .chmod = -1, .placed = -1
    };
    return place_archive(&pl, fd, e);
}

/* The context and the Dockerfile's text from PATH, "-" and -f. */
static int build_context(struct build *b, const char *where, char **ret_tmp, struct buf *text,
                         struct err *e) {
    const char *file = cli_text(b->cli, "file");
    if (str_prefix(where, "http://") || str_prefix(where, "https://") ||
        str_prefix(where, "git@") || str_suffix(where, ".git"))
        return err_set(
            e, 0,
            "a context from a URL is not supported yet by skiff: clone it and give the directory");
    if (!strcmp(where, "-")) {
        AUTO_BUF in = { 0 };
        buf_reserve(&in, 1024);
        ssize_t k = fd_read_all(0, in.p, 512);
        bool tar = (k == 512 && !memcmp(in.p + 257, "ustar", 5)) ||
                   (k > 4 && (u8)in.p[0] == 0x1f && (u8)in.p[1] == 0x8b) ||
                   (k > 4 && (u8)in.p[0] == 0x28 && (u8)in.p[1] == 0xb5);
        if (k < 0) return err_set(e, errno, "read the context");
        in.n = (size_t)k;
        if (fd_slurp(0, 2047u << 20, &in)) return err_set(e, errno, "read the context");
        if (!tar) return buf_add(text, in.p, in.n), 0;
        AUTO_FD tmp = openat(b->s->dir, "tmp", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
        if (tmp < 0 || fd_write_all(tmp, in.p, in.n) || lseek(tmp, 0, SEEK_SET) < 0)
            return err_set(e, errno, "keep the context");
        if (build_context_archive(b, tmp, ret_tmp, e)) return -1;
    } else {
        AUTO_FD fd = open(where, O_RDONLY | O_CLOEXEC);
        struct stat st;
        if (fd < 0 || fstat(fd, &st))
            return err_set(e, errno, "unable to prepare context: path \"%s\"", where);
        if (S_ISDIR(st.st_mode)) b->ctx = fd_steal(&fd);
        else if (build_context_archive(b, fd, ret_tmp, e)) return -1;
    }
    if (file && !strcmp(file, "-"))
        return fd_slurp(0, DF_MAX_BYTES, text) ? err_set(e, errno, "read the Dockerfile") : 0;
    AUTO_FREE char *beside = str_fmt("%s.dockerignore", file ? file : "Dockerfile");
    if (file && strcmp(where, "-")) {
        if (file_read(AT_FDCWD, file, DF_MAX_BYTES, text, e))
            return err_wrap(e, "unable to read the Dockerfile");
        if (!access(beside, R_OK)) ignore_load(AT_FDCWD, beside, &b->ignore);
        else ignore_load(b->ctx, ".dockerignore", &b->ignore);
        return 0;
    }
    if (!faccessat(b->ctx, beside, R_OK, 0)) ignore_load(b->ctx, beside, &b->ignore);
    else ignore_load(b->ctx, ".dockerignore", &b->ignore);
    return file_read(b->ctx, file ? file : "Dockerfile", DF_MAX_BYTES, text, e)
               ? err_wrap(e, "failed to read the Dockerfile")
               : 0;
}

/* --output: the tree of the result on the host. */
static int build_output(struct build *b, struct bstage *st, const char *spec, struct err *e) {
    AUTO_STRV kv = { 0 };
    const char *type = "local", *dest = NULL;
    strv_split(&kv, spec, ',');
    for (size_t i = 0; i < kv.n; i++) {
        if (str_prefix(kv.v[i], "type=")) type = kv.v[i] + 5;
        else if (str_prefix(kv.v[i], "dest=")) dest = kv.v[i] + 5;
        else if (!strchr(kv.v[i], '=')) dest = kv.v[i];
    }
    if (!strcmp(type, "image") || !strcmp(type, "docker")) return 0;
    if ((strcmp(type, "local") && strcmp(type, "tar")) || !dest)
        return err_set(e, 0, "--output: type=%s with dest '%s' is not supported yet by skiff", type,
                       dest ? dest : "");
    AUTO_FD layers = dir_open(b->s->dir, "layers", e);
    if (layers < 0 || stage_index(b, st, e)) return -1;
    if (!strcmp(type, "local")) {
        if (dir_make(AT_FDCWD, dest, e)) return -1;
        AUTO_FD d = dir_open(AT_FDCWD, dest, e);
        return d < 0 || idx_unpack(&st->x, layers, d, !geteuid(), e) ? -1 : 0;
    }
    AUTO_FD fd = strcmp(dest, "-") ? open(dest, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)
                                   : fcntl(1, F_DUPFD_CLOEXEC, 3);
    struct tarring t = { .clamp = b->epoch };
    struct packs packs;
    if (fd < 0) return err_set(e, errno, "create %s", dest);
    packs_init(&packs, &st->x, layers);
    struct copy_src src = { .dir = -1, .x = &st->x, .packs = &packs };
    int rc = tar_begin(&t, fd, e) || tar_add_idx(&t, &src, &st->x.inodes[0], "", 0, e) ? -1 : 0;
    struct err second;
    if (tar_end(&t, rc ? &second : e)) rc = -1;
    packs_done(&packs);
    return rc;
}

static int build_finish(struct build *b, struct bstage *st, struct err *e) {
    AUTO_STRV tags = { 0 }, labels = { 0 };
    char id[HEX_LEN + 1] = "";
    const char *iid = cli_text(b->cli, "iidfile");
    cli_list(b->cli, "tag", &tags);
    cli_list(b->cli, "label", &labels);
    for (size_t i = 0; i < labels.n; i++) {
        char *eq = strchr(labels.v[i], '=');
        if (eq) *eq++ = 0;
        js_sets(js_sub(js_sub(st->config, "config"), "Labels"), labels.v[i], eq ? eq : "");
    }
    if (!*st->created) build_time(b, st->created);
    js_sets(st->config, "created", st->created);
    for (size_t i = 0; i < (tags.n ? tags.n : 1); i++) {
        struct ref r;
        AUTO_FREE char *full = NULL;
        if (tags.n && ref_parse(tags.v[i], &r, e)) return -1;
        if (tags.n) full = ref_full(&r);
        if (image_put(b->s, st->config, st->layers, full, NULL, id, NULL, e)) return -1;
        AUTO_FREE char *familiar = full ? ref_familiar(&r) : NULL;
        b->step += i == 0;
        if (familiar) build_say(b, "naming to %s", familiar);
    }
    AUTO_FREE char *full_id = str_fmt("sha256:%s", id);
    if (iid && file_put(iid, full_id, strlen(full_id), 0644, e)) return -1;
    build_say(b, "writing image %s done", full_id);
    const char *out = cli_text(b->cli, "output");
    if (b->quiet && !(out && strstr(out, "dest=-"))) puts(full_id);
    return cli_has(b->cli, "output") ? build_output(b, st, cli_text(b->cli, "output"), e) : 0;
}

static int cmd_build(struct cli *c, struct err *e) {
    const char *progress = cli_text(c, "progress"), *epoch = getenv("SOURCE_DATE_EPOCH");
    struct build b = { .cli = c, .ctx = -1, .epoch = -1, .out = stderr };
    AUTO_BUF text = { 0 };
    AUTO_FREE char *tmp = NULL;
    struct bstage *st = NULL;
    struct ref r;
    AUTO_STRV tags = { 0 };
    if (progress && strcmp(progress, "auto") && strcmp(progress, "plain") &&
        strcmp(progress, "tty") && strcmp(progress, "quiet") && strcmp(progress, "rawjson"))
        return err_set(e, 0, "invalid progress mode %.40s", progress);
    if (!c->nargs)
        return err_set(e, 0,
                       "\"skiff build\" requires exactly 1 argument: the context's PATH or -");
    cli_list(c, "tag", &tags);
    for (size_t i = 0; i < tags.n; i++)
        if (ref_parse(tags.v[i], &r, e)) return -1;
    if (!(b.s = cli_store(c, e))) return -1;
    b.quiet = cli_flag(c, "quiet") || str_eq(progress, "quiet");
    b.no_cache = cli_flag(c, "no-cache");
    if (!str_empty(epoch) && !str_int(epoch, 0, INT64_MAX / 1000000000, &b.epoch))
        return err_set(e, 0, "SOURCE_DATE_EPOCH=%.40s is not a number of seconds", epoch);
    AUTO_FD gc = lock_take(b.s->dir, "locks/gc", LOCK_SH);
    int rc = build_context(&b, c->args[0], &tmp, &text, e);
    if (!rc && (!text.p || dockerfile_parse(text.p, &b.df, e)))
        rc = text.p ? err_wrap(e, "%s: parse error",
                               cli_text(c, "file") ? cli_text(c, "file") : "Dockerfile")
                    : err_set(e, 0, "the Dockerfile cannot be empty");
    if (!rc) rc = build_target(&b, cli_text(c, "target"), &st, e);
    if (!rc) rc = build_finish(&b, st, e);
    build_done(&b);
    if (tmp) tree_remove(b.s->dir, tmp);
    e->status = 1; /* the code of a command in a step is not the build's */
    return rc;
}

static int cmd_builder_prune(struct cli *c, struct err *e) {
    if (!cli_store(c, e)) return -1;
    if (!cli_flag(c, "force") && !ask("WARNING! This will remove all build cache.\n")) return 0;
    AUTO_DIR *d = dir_stream(c->store->dir, "cache");
    struct dirent *de;
    u64 freed = 0, inodes = 0;
    while (d && (de = dir_next(d)))
        if (str_prefix(de->d_name, "build-") || str_prefix(de->d_name, "mount-")) {
            AUTO_FREE char *gone = str_fmt("tmp/gone-%s", de->d_name);
            tree_usage(dirfd(d), de->d_name, &freed, &inodes, 0);
            renameat(dirfd(d), de->d_name, c->store->dir,
                     gone); /* a cache mount's files may be of mapped ids */
        }
    freed += image_collect(c->store, false);
    AUTO_FREE char *size = size_human(freed);
    printf("Total:\t%s\n", size);
    return 0;
}

/* ---- 26.18 the OCI runtime command line ----
 * `skiff oci …`, or the program under the name crun, runc or skiff-runtime: what podman, containerd
 * and Slurm call. A container's state is one file in ROOT/ID; `create` leaves its process waiting
 * at a FIFO there, `start` writes to it. Source: runtime-spec runtime.md, crun(1), runc(8). */
struct oci {
    int root;                     /* ROOT, owned */
    char *root_path;              /* owned */
    const char *log, *log_format; /* borrowed from argv; NULL: stderr */
    const char *name;             /* what we are called as: callers look for "crun version" */
};
static struct oci g_oci = { .root = -1 };

static int oci_root(const char *given, struct err *e) {
    const char *run = getenv("XDG_RUNTIME_DIR");
    if (given) g_oci.root_path = str_dup(given);
    else if (host_real_root() || (!geteuid() && str_empty(run)))
        g_oci.root_path = str_dup("/run/skiff-oci");
    else if (!str_empty(run)) g_oci.root_path = str_fmt("%s/skiff-oci", run);
    else g_oci.root_path = str_fmt("/tmp/skiff-oci-%u", geteuid());
    struct stat st;
    if (dir_make(AT_FDCWD, g_oci.root_path, e) ||
        (g_oci.root = dir_open(AT_FDCWD, g_oci.root_path, e)) < 0)
        return -1;
    if (fstat(g_oci.root, &st) || (st.st_uid != geteuid() && geteuid()) || (st.st_mode & 022))
        return err_set(e, 0, "state directory %s belongs to another user or is open to others",
                       g_oci.root_path);
    return 0;
}

/* The kernel's start time of a process, which with its pid names it for ever; 0: gone or a zombie.
 * */
static unsigned long long oci_started(pid_t pid) {
    char comm[64];
    unsigned long long f[22];
    char path[40], text[512];
    if (pid <= 0 || !proc_stat(pid, comm, sizeof comm, f)) return 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    if (file_line(AT_FDCWD, path, text, sizeof text)) return 0;
    char *state = strrchr(text, ')');
    return state && state[1] && (state[2] == 'Z' || state[2] == 'X') ? 0 : f[19];
}

static bool oci_id_ok(const char *id) {
    return *id && strlen(id) <= 1024 && strcmp(id, ".") && strcmp(id, "..") &&
           strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.") ==
               strlen(id);
}

static int oci_id_bad(const char *id, struct err *e) {
    return strchr(id, '/') ? err_set(e, 0, "invalid character `/` in the ID `%.100s`", id)
                           : err_set(e, 0, "invalid container id '%.100s'", id);
}

/* The state of a container, its "status" brought up to date. NULL: no such container. */
static json_t *oci_load(const char *id, struct err *e) {
    AUTO_FREE char *path = str_fmt("%s/status", id), *fifo = str_fmt("%s/start", id),
                   *frozen = str_fmt("%s/paused", id);
    if (!oci_id_ok(id)) return oci_id_bad(id, e), NULL;
    json_t *j = js_load(g_oci.root, path, e);
    if (!j) return err_set(e, 0, "container `%.100s` does not exist", id), NULL;
    pid_t pid = (pid_t)js_int(j, "pid", 0);
    bool alive =
        oci_started(pid) && oci_started(pid) == (unsigned long long)js_int(j, "started", 0);
    const char *status = !alive                                    ? "stopped"
                         : !faccessat(g_oci.root, fifo, F_OK, 0)   ? "created"
                         : !faccessat(g_oci.root, frozen, F_OK, 0) ? "paused"
                                                                   : "running";
    js_sets(j, "status", status);
    if (!alive) js_seti(j, "pid", 0);
    return j;
}

/* What hooks and `state` get. Caller owns it. */
static json_t *oci_state(const json_t *j) {
    json_t *s = json_object();
    static const char *const KEYS[] = { "ociVersion", "id",      "status", "pid",        "bundle",
                                        "rootfs",     "created", "owner",  "annotations" };
    for (size_t i = 0; i < ARRAY_LEN(KEYS); i++)
        if (js_get(j, KEYS[i])) json_object_set(s, KEYS[i], js_get(j, KEYS[i]));
    return s;
}

/* Runs the hooks of one kind with the state on their stdin. A hook's failure is an error, but for
 * poststop, where it is a word. */
static int oci_hooks(const json_t *spec, const char *kind, const json_t *state, struct err *e) {
    const json_t *h;
    size_t i;
    json_array_foreach (js_get(js_get(spec, "hooks"), kind), i, h) {
        AUTO_STRV args = { 0 }, env = { 0 };
        AUTO_FREE char *text = js_dump(state, JSON_COMPACT);
        const char *path = js_str_or(h, "path", "");
        i64 timeout = js_int(h, "timeout", 0);
        int in[2], status = -1;
        js_to_strv(js_get(h, "args"), &args);
        js_to_strv(js_get(h, "env"), &env);
        if (!args.n) strv_add(&args, path);
        if (*path != '/')
            return err_set(e, 0, "/hooks/%s/%zu/path: an absolute path is required", kind, i);
        if (pipe2(in, O_CLOEXEC)) return err_set(e, errno, "pipe");
        pid_t pid = fork();
        if (!pid) {
            static const char *const OUT[] = { "run.oci.hooks.stdout", "run.oci.hooks.stderr" };
            setpgid(0, 0); /* what it starts ends with it */
            dup2(in[0], 0);
            for (int k = 0; k < 2; k++) {
                const char *to = json_string_value(js_get(js_get(spec, "annotations"), OUT[k]));
                int fd = to ? open(to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0700) : -1;
                if (fd >= 0) dup2(fd, k + 1);
            }
            launch_signals_default();
            execve(path, args.v,
                   js_get(h, "env") ? env.v : environ); /* none said: ours, as crun has it */
            _exit(127);
        }
        close(in[0]);
        signal(SIGPIPE, SIG_IGN);
        (void)!fd_write_all(in[1], text, strlen(text));
        close(in[1]);
        for (i64 end = time_mono_ms() + timeout * 1000; pid > 0;) {
            pid_t got = waitpid(pid, &status, timeout > 0 ? WNOHANG : 0);
            if (got == pid || (got < 0 && errno != EINTR)) break;
            if (timeout > 0 && time_mono_ms() > end) kill(-pid, SIGKILL), timeout = 0;
            else if (timeout > 0) usleep(5000);
        }
        if (pid > 0 && WIFEXITED(status) && !WEXITSTATUS(status)) continue;
        if (!strcmp(kind, "poststop")) {
            log_warn("%s hook failed with exit code: %d (%s)", kind,
                     WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), path);
            continue;
        }
        return err_set(e, 0, "hook %s (%s) failed: %s %d", path, kind,
                       WIFEXITED(status) ? "exit status" : "signal",
                       WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    }
    return 0;
}

/* Sends a pty's master to whoever made the console socket. */
static int oci_send_console(const char *path, int master, struct err *e) {
    AUTO_FD s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    if (strlen(path) >= sizeof a.sun_path)
        return err_set(e, ENAMETOOLONG, "console socket %s", path);
    strcpy(a.sun_path, path);
    if (s < 0 || connect(s, (struct sockaddr *)&a, sizeof a) ||
        fd_send(s, "/dev/pts", 9, &master, 1))
        return err_set(e, errno, "console socket %s", path);
    return 0;
}

/* cgroupsPath below the v2 hierarchy, where there is one that can be written; no path: no cgroup.
 * */
static int oci_cgroup(const json_t *spec, const char *id, struct cgroup *c, struct err *e) {
    const char *path = js_str(spec, "linux.cgroupsPath");
    const json_t *res = js_path(spec, "linux.resources");
    struct statfs fs;
    *c = (struct cgroup){ 0 };
    if (statfs("/sys/fs/cgroup", &fs) || fs.f_type != CGROUP2_SUPER_MAGIC ||
        host_disabled("cgroup"))
        return 0;
    AUTO_FREE char *rel = NULL, *own = NULL;
    if (!cgroup_own(&own)) return 0;
    if (path && strchr(path, ':') && *path != '/') { /* systemd's slice:prefix:name */
        AUTO_STRV p = { 0 };
        strv_split(&p, path, ':');
        if (p.n == 3)
            rel = str_fmt("/%s/%s-%s.scope", *p.v[0] ? p.v[0] : "system.slice", p.v[1], p.v[2]);
    }
    AUTO_FREE char *clean = path_clean(rel ? rel : path ? path : id);
    c->path = !geteuid() || (path && *path == '/') ? str_fmt("/sys/fs/cgroup/%s", clean)
                                                   : str_fmt("%s/%s", own, clean);
    AUTO_FREE char *made = str_dup(c->path);
    if (!geteuid()) cgroup_controllers("/sys/fs/cgroup"); /* the root may hold processes as well */
    for (char *s = made + strlen("/sys/fs/cgroup/");; s++) {
        if (*s && *s != '/') continue;
        char was = *s;
        *s = 0;
        if (mkdir(made, 0755) &&
            errno != EEXIST) { /* not ours to write: the caller's cgroup stays */
            cgroup_done(c);
            return 0;
        }
        if (!was) break;
        cgroup_enable(made);
        *s = was;
    }
    return res && (cgroup_apply(c, res, e) || cgroup_devices(c, js_get(res, "devices"), e)) ? -1
                                                                                            : 0;
}

/* Processes of a container: its cgroup's; without one its pid namespace's, unless that is the
 * host's. */
static void oci_pids_of(const char *dir, pid_t **ret, size_t *n) {
    AUTO_BUF b = { 0 };
    struct err ignored;
    AUTO_FREE char *procs = str_fmt("%s/cgroup.procs", dir);
    file_read(AT_FDCWD, procs, 1 << 22, &b, &ignored);
    char *save = NULL;
    for (char *t = b.p ? strtok_r(b.p, "\n", &save) : NULL; t; t = strtok_r(NULL, "\n", &save)) {
        *ret = mem_grow(*ret, *n + 1, sizeof **ret);
        (*ret)[(*n)++] = atoi(t);
    }
    AUTO_DIR *d = opendir(dir);
    struct dirent *de;
    while (d && (de = dir_next(d))) {
        if (de->d_type != DT_DIR) continue;
        AUTO_FREE char *below = str_fmt("%s/%s", dir, de->d_name);
        oci_pids_of(below, ret, n);
    }
}

static size_t oci_pids(const json_t *j, pid_t **ret) {
    pid_t pid = (pid_t)js_int(j, "pid", 0);
    char path[40], own[64] = "", theirs[64] = "";
    size_t n = 0;
    *ret = NULL;
    if (js_str(j, "cgroup")) oci_pids_of(js_str(j, "cgroup"), ret, &n);
    if (n || !pid) return n;
    snprintf(path, sizeof path, "/proc/%d/ns/pid", (int)pid);
    if (readlink(path, theirs, sizeof theirs - 1) > 0 &&
        readlink("/proc/self/ns/pid", own, sizeof own - 1) > 0 && strcmp(own, theirs))
        return ctr_pids(pid, ret);
    *ret = mem_new(sizeof **ret);
    **ret = pid;
    return 1;
}

struct oci_run {
    const char *id, *bundle, *pid_file, *console;
    unsigned keep;
    bool detach, no_subreaper;
};

static int oci_fifo(const char *id, struct err *e) {
    AUTO_FREE char *fifo = str_fmt("%s/start", id);
    unlinkat(g_oci.root, fifo, 0);
    if (mkfifoat(g_oci.root, fifo, 0600))
        return err_set(e, errno, "make %s/%s", g_oci.root_path, fifo);
    int fd = openat(g_oci.root, fifo, O_RDWR | O_CLOEXEC);
    return fd < 0 ? err_set(e, errno, "open %s", fifo) : fd;
}

static int oci_save(const char *id, const json_t *state, const json_t *spec, struct err *e) {
    AUTO_FD d = dir_open(g_oci.root, id, e);
    return d < 0 || (spec && js_save(d, "config.json", spec, 0, e)) ||
                   js_save(d, "status", state, 0, e)
               ? -1
               : 0;
}

static void oci_forget(const char *id) { tree_remove(g_oci.root, id); }

/* What stdio is, for who dumps and restores processes: crun's "external_descriptors", JSON in a
 * string. */
static void oci_descriptors(json_t *state) {
    AUTO_JSON *a = json_array();
    for (int i = 0; i < 3; i++) {
        char path[24], text[PATH_MAX];
        snprintf(path, sizeof path, "/proc/self/fd/%d", i);
        ssize_t k = readlink(path, text, sizeof text - 1);
        text[k > 0 ? k : 0] = 0;
        js_push(a, text);
    }
    AUTO_FREE char *t = js_dump(a, JSON_COMPACT);
    js_sets(state, "external_descriptors", t);
}

/* seccomp's listener goes to /linux/seccomp/listenerPath with the state. Source: runtime-spec
 * config-linux.md. */
static int oci_listener(struct launch *l, int fd, struct err *e) {
    const json_t *sec = l->plan->seccomp;
    const char *path = js_str_or(sec, "listenerPath", "");
    AUTO_FD s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    AUTO_JSON *m = json_pack("{s:s,s:[s],s:i}", "ociVersion", "0.2.0", "fds", "seccompFd", "pid",
                             (int)l->pid),
              *state = oci_state(l->on_listener_arg);
    if (strlen(path) >= sizeof a.sun_path)
        return err_set(e, ENAMETOOLONG, "/linux/seccomp/listenerPath");
    strcpy(a.sun_path, path);
    js_seti(state, "pid", l->pid);
    js_sets(m, "metadata", js_str_or(sec, "listenerMetadata", ""));
    json_object_set(m, "state", state);
    AUTO_FREE char *text = js_dump(m, JSON_COMPACT);
    if (s < 0 || connect(s, (struct sockaddr *)&a, sizeof a) ||
        fd_send(s, text, strlen(text), &fd, 1))
        return err_set(e, errno, "/linux/seccomp/listenerPath %s", path);
    return 0;
}

/* The home directory of a uid by the root's own passwd. Caller owns it. */
static char *oci_home(const char *root, u32 uid) {
    AUTO_FD dir = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC),
            fd = dir < 0 ? -1
                         : sys_openat2(dir, "etc/passwd", O_RDONLY | O_NONBLOCK, 0,
                                       RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
    AUTO_BUF b = { 0 };
    struct stat st;
    if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode) || fd_slurp(fd, 1 << 20, &b) || !b.p)
        return str_dup("/");
    char *save = NULL;
    for (char *line = strtok_r(b.p, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        AUTO_STRV f = { 0 };
        strv_split(&f, line, ':');
        if (f.n >= 6 && *f.v[2] && strspn(f.v[2], "0123456789") == strlen(f.v[2]) &&
            strtoul(f.v[2], NULL, 10) == uid && *f.v[5])
            return str_dup(f.v[5]);
    }
    return str_dup("/");
}

/* What a process gets that its env does not say: HOME, and the sockets of a caller that listens. */
static void oci_env(struct plan *p, unsigned *keep) {
    const char *fds = getenv("LISTEN_FDS"), *names = getenv("LISTEN_FDNAMES");
    i64 n = 0;
    if (!env_get(&p->env, "HOME")) {
        AUTO_FREE char *home = oci_home(p->root ? p->root : "/", p->uid);
        strv_take(&p->env, str_fmt("HOME=%s", home));
    }
    if (!fds || !str_int(fds, 1, 1024, &n)) return;
    *keep += (unsigned)n;
    strv_take(&p->env, str_fmt("LISTEN_FDS=%s", fds));
    strv_add(&p->env, "LISTEN_PID=1");
    if (names) strv_take(&p->env, str_fmt("LISTEN_FDNAMES=%s", names));
}

/* A path that stays true after chdir(2). NULL stays NULL. Caller owns it. */
static char *path_from_cwd(const char *path) {
    if (!path || *path == '/') return path ? str_dup(path) : NULL;
    AUTO_FREE char *cwd = getcwd(NULL, 0);
    return str_fmt("%s/%s", cwd ? cwd : ".", path);
}

static int oci_hooks_parent(struct launch *l, struct err *e) {
    json_t *s = l->on_listener_arg;
    js_seti(s, "pid", l->pid);
    AUTO_JSON *hs = oci_state(s);
    return oci_hooks(l->plan->spec, "prestart", hs, e) ||
                   oci_hooks(l->plan->spec, "createRuntime", hs, e)
               ? -1
               : 0;
}

static int oci_hooks_child(const struct launch *l, const char *kind, struct err *e) {
    if (!js_get(js_get(l->plan->spec, "hooks"), kind)) return 0;
    AUTO_JSON *hs = oci_state(l->on_listener_arg);
    js_seti(hs, "pid", getpid());
    js_sets(hs, "status", !strcmp(kind, "startContainer") ? "created" : "creating");
    return oci_hooks(l->plan->spec, kind, hs, e);
}

/* create: everything up to the process waiting at its FIFO. *l stays with the caller. */
static int oci_create(const struct oci_run *o, json_t *spec, struct plan *p, struct launch *l,
                      json_t **ret_state, struct err *e) {
    char now[40];
    json_object_del(spec, "skiff"); /* our own words are not for strangers */
    if (geteuid()) { /* without root there always is a user namespace, said or not, as crun has it */
        json_t *ns = js_suba(js_sub(spec, "linux"), "namespaces"), *n;
        bool user = false;
        size_t k;
        json_array_foreach (ns, k, n) user |= str_eq(js_str(n, "type"), "user");
        if (!user) json_array_append_new(ns, json_pack("{ss}", "type", "user"));
    }
    AUTO_FREE char *bundle = realpath(o->bundle, NULL);
    AUTO_FREE char *pid_file = path_from_cwd(o->pid_file), *console = path_from_cwd(o->console);
    if (!bundle || chdir(bundle)) return err_set(e, errno, "bundle %s", o->bundle);
    if (!js_str(spec, "root.path")) return err_set(e, 0, "/root/path: missing");
    if (plan_parse(spec, p, e)) return -1;
    if (p->terminal && !o->console && o->detach)
        return err_set(e, 0, "a terminal of a detached container: use --console-socket");
    if (!oci_id_ok(o->id)) return oci_id_bad(o->id, e);
    if (mkdirat(g_oci.root, o->id, 0700))
        return errno == EEXIST ? err_set(e, 0, "container `%s` already exists", o->id)
                               : err_set(e, errno, "make %s/%s", g_oci.root_path, o->id);
    json_t *s = *ret_state = json_object();
    js_sets(s, "ociVersion", js_str_or(spec, "ociVersion", "1.0.0"));
    js_sets(s, "id", o->id);
    js_sets(s, "status", "creating");
    js_sets(s, "bundle", bundle);
    js_sets(s, "rootfs", p->root);
    js_sets(s, "created", time_rfc3339(time_now_ns(), now));
    js_sets(s, "owner", geteuid() ? host_user() : "");
    oci_descriptors(s);
    if (js_get(spec, "annotations")) json_object_set(s, "annotations", js_get(spec, "annotations"));
    launch_init(l);
    l->plan = p;
    l->keep_fds = o->keep;
    l->on_listener = oci_listener, l->on_listener_arg = s;
    if (js_get(spec, "hooks")) l->on_hooks = oci_hooks_parent, l->run_hooks = oci_hooks_child;
    oci_env(p, &l->keep_fds);
    l->stdio[0] = 0, l->stdio[1] = 1, l->stdio[2] = 2;
    l->wait_start = true;
    if ((l->start_fd = oci_fifo(o->id, e)) < 0 || oci_cgroup(spec, o->id, &l->cgroup, e))
        return oci_forget(o->id), -1;
    js_sets(s, "cgroup", l->cgroup.path);
    fflush(NULL);
    int rc = launch_begin(l, e) || launch_wait(l, e) ? -1 : 0;
    fd_closep(&l->start_fd);
    if (!rc) {
        js_seti(s, "pid", l->pid);
        js_seti(s, "started", (i64)oci_started(l->pid));
        js_sets(s, "status", "created");
        AUTO_FREE char *pid = str_fmt("%d", (int)l->pid);
        if (oci_save(o->id, s, spec, e) ||
            (pid_file && file_put(pid_file, pid, strlen(pid), 0644, e)) ||
            (p->terminal && console && oci_send_console(console, l->console, e)))
            rc = -1;
    }
    if (rc) {
        launch_abort(l);
        oci_forget(o->id);
    }
    return rc;
}

static int oci_remove(const char *id, json_t *s, struct err *e) {
    AUTO_FREE char *config = str_fmt("%s/config.json", id);
    AUTO_JSON *spec = js_load(g_oci.root, config, e), *hs = oci_state(s);
    struct cgroup cg = { js_str(s, "cgroup") ? str_dup(js_str(s, "cgroup")) : NULL };
    cgroup_remove(&cg);
    oci_forget(id);
    return spec ? oci_hooks(spec, "poststop", hs, e) : 0;
}

/* Lets a created container go. */
static int oci_start(const char *id, struct err *e) {
    AUTO_JSON *s = oci_load(id, e);
    if (!s) return -1;
    if (!str_eq(js_str(s, "status"), "created"))
        return err_set(e, 0, "container `%s` is not in the created state, it is %s", id,
                       js_str(s, "status"));
    AUTO_FREE char *fifo = str_fmt("%s/start", id), *config = str_fmt("%s/config.json", id);
    AUTO_JSON *spec = js_load(g_oci.root, config, e);
    AUTO_FD fd = openat(g_oci.root, fifo, O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || write(fd, "S", 1) != 1) return err_set(e, errno, "start container `%s`", id);
    unlinkat(g_oci.root, fifo, 0);
    js_sets(s, "status", "running");
    AUTO_JSON *hs = oci_state(s);
    if (!oci_hooks(spec, "poststart", hs, e)) return 0;
    kill((pid_t)js_int(s, "pid", 0), SIGKILL);
    struct err ignored;
    oci_remove(id, s, &ignored); /* runtime.md 9: stopped, and on with step 12, which deletes it */
    return -1;
}

static json_t *oci_bundle(const char *bundle, const char *config, struct err *e) {
    AUTO_FREE char *path = config ? str_dup(config) : str_fmt("%s/config.json", bundle);
    return js_load(AT_FDCWD, path, e);
}

static const struct opt OPT_OCI_RUN[] = {
    { "bundle", 'b', OPT_TEXT, "The bundle's directory (.)" },
    { "config", 'f', OPT_TEXT, "Another file than BUNDLE/config.json" },
    { "console-socket", 0, OPT_TEXT, "A Unix socket that gets the pty's master" },
    { "detach", 'd', OPT_BOOL, "Leave the container running (run)" },
    { "keep", 0, OPT_BOOL, "Keep the container's state after it ended (run)" },
    { "no-new-keyring", 0, OPT_BOOL, "Accepted; no keyring is made" },
    { "no-pivot", 0, OPT_BOOL, "Accepted; pivot_root is always used" },
    { "no-subreaper", 0, OPT_BOOL, "Accepted" },
    { "pid-file", 0, OPT_TEXT, "Write the first process's pid here" },
    { "preserve-fds", 0, OPT_INT, "Descriptors beyond stdio that the process gets" },
    { NULL, 0, OPT_BOOL, NULL },
};

static void oci_options(const struct cli *c, struct oci_run *o) {
    *o = (struct oci_run){ .id = c->args[0],
                           .bundle = cli_text(c, "bundle") ? cli_text(c, "bundle") : ".",
                           .pid_file = cli_text(c, "pid-file"),
                           .console = cli_text(c, "console-socket"),
                           .keep = (unsigned)cli_int(c, "preserve-fds", 0),
                           .detach = cli_flag(c, "detach") };
}

static int oci_cmd_create(struct cli *c, struct err *e) {
    struct oci_run o;
    struct plan p = { 0 };
    struct launch l;
    oci_options(c, &o);
    o.detach = true;
    launch_init(&l);
    AUTO_JSON *spec = oci_bundle(o.bundle, cli_text(c, "config"), e), *state = NULL;
    int rc = spec ? oci_create(&o, spec, &p, &l, &state, e) : -1;
    launch_done(&l);
    plan_done(&p);
    return rc;
}

static int oci_cmd_start(struct cli *c, struct err *e) { return oci_start(c->args[0], e); }

/* Removes what is left of a container: cgroup, state, poststop hooks. */
static int oci_cmd_run(struct cli *c, struct err *e) {
    struct oci_run o;
    struct plan p = { 0 };
    struct launch l;
    int status = 0;
    oci_options(c, &o);
    launch_init(&l);
    AUTO_JSON *spec = oci_bundle(o.bundle, cli_text(c, "config"), e), *state = NULL;
    sigset_t set, old;
    sigfillset(&set);
    sigprocmask(SIG_BLOCK, &set, &old);
    int rc = spec ? oci_create(&o, spec, &p, &l, &state, e) : -1;
    struct winsize ws;
    if (!rc && l.console >= 0 && !ioctl(0, TIOCGWINSZ, &ws)) ioctl(l.console, TIOCSWINSZ, &ws);
    if (!rc) rc = oci_start(o.id, e);
    if (!rc && !o.detach) {
        if (l.console >= 0 && !o.console) {
            struct keys none = { .n = 0 };
            sigprocmask(SIG_SETMASK, &old, NULL);
            exec_tty(l.console, l.pid, true, &none);
            sigprocmask(SIG_BLOCK, &set,
                        NULL); /* a SIGCHLD before this is found by waitpid below */
        }
        for (siginfo_t si; waitpid(l.pid, &status, WNOHANG) != l.pid;) {
            if (sigwaitinfo(&set, &si) < 0) continue;
            if (si.si_signo != SIGCHLD) kill(l.pid, si.si_signo);
        }
        rc = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        js_sets(state, "status", "stopped");
        struct err ignored;
        if (!cli_flag(c, "keep")) oci_remove(o.id, state, &ignored);
    }
    sigprocmask(SIG_SETMASK, &old, NULL);
    launch_done(&l);
    plan_done(&p);
    return rc;
}

static int oci_cmd_state(struct cli *c, struct err *e) {
    AUTO_JSON *j = oci_load(c->args[0], e);
    if (!j) return -1;
    AUTO_JSON *s = oci_state(j);
    AUTO_FREE char *t = js_dump(s, JSON_INDENT(2));
    puts(t);
    return 0;
}

static const struct opt OPT_OCI_KILL[] = {
    { "all", 'a', OPT_BOOL, "All processes of the container" },
    { "regex", 'r', OPT_LATER_BOOL, "" },
    { NULL, 0, OPT_BOOL, NULL },
};

static int oci_cmd_kill(struct cli *c, struct err *e) {
    AUTO_JSON *j = oci_load(c->args[0], e);
    int sig = signal_number(c->nargs > 1 ? c->args[1] : "TERM");
    if (!j) return -1;
    if (sig < 0) return err_set(e, 0, "invalid signal '%.40s'", c->args[1]);
    pid_t pid = (pid_t)js_int(j, "pid", 0);
    bool all = cli_flag(c, "all");
    if (!pid) return all ? 0 : err_set(e, 0, "container `%s` is not running", c->args[0]);
    AUTO_FD pidfd = sys_pidfd_open(pid);
    if (pidfd < 0 || oci_started(pid) != (unsigned long long)js_int(j, "started", 0))
        return err_set(e, 0, "container `%s` is not running", c->args[0]);
    if (all) {
        pid_t *pids;
        size_t n = oci_pids(j, &pids);
        for (size_t i = 0; i < n; i++) kill(pids[i], sig);
        free(pids);
        return 0;
    }
    return sys_pidfd_kill(pidfd, sig) ? err_set(e, errno, "kill container `%s`", c->args[0]) : 0;
}

static const struct opt OPT_OCI_DELETE[] = {
    { "force", 'f', OPT_BOOL, "Kill it first; no error where it is not there" },
    { "regex", 'r', OPT_BOOL, "CONTAINER is a regular expression" },
    { NULL, 0, OPT_BOOL, NULL },
};

static int oci_delete(const char *id, bool force, struct err *e) {
    AUTO_JSON *j = oci_load(id, e);
    if (!j) {
        if (force && oci_id_ok(id)) return oci_forget(id), 0;
        return -1;
    }
    pid_t pid = (pid_t)js_int(j, "pid", 0);
    const char *status = js_str(j, "status");
    if (pid && !force && strcmp(status, "created"))
        return err_set(e, 0, "cannot delete container `%s`: it is %s", id, status);
    if (pid) {
        AUTO_FD pidfd = sys_pidfd_open(pid);
        if (pidfd >= 0 && oci_started(pid) == (unsigned long long)js_int(j, "started", 0))
            sys_pidfd_kill(pidfd, SIGKILL);
        for (int i = 0; i < 500 && oci_started(pid) == (unsigned long long)js_int(j, "started", 0);
             i++)
            usleep(10000);
    }
    js_sets(j, "status", "stopped");
    js_seti(j, "pid", 0);
    return oci_remove(id, j, e);
}

static int oci_cmd_delete(struct cli *c, struct err *e) {
    regex_t re;
    int rc = 0;
    if (!cli_flag(c, "regex")) return oci_delete(c->args[0], cli_flag(c, "force"), e);
    if (regcomp(&re, c->args[0], REG_EXTENDED | REG_NOSUB))
        return err_set(e, 0, "'%.100s' is no regular expression", c->args[0]);
    AUTO_DIR *d = dir_stream(g_oci.root, ".");
    struct dirent *de;
    while (d && (de = dir_next(d)))
        if (oci_id_ok(de->d_name) && !regexec(&re, de->d_name, 0, NULL, 0) &&
            oci_delete(de->d_name, cli_flag(c, "force"), e))
            rc = -1;
    regfree(&re);
    return rc;
}

static const struct opt OPT_OCI_LIST[] = {
    { "format", 'f', OPT_TEXT, "table or json" },
    { "quiet", 'q', OPT_BOOL, "Only ids" },
    { NULL, 0, OPT_BOOL, NULL },
};

static int oci_cmd_list(struct cli *c, struct err *e) {
    AUTO_DIR *d = dir_stream(g_oci.root, ".");
    struct dirent *de;
    AUTO_JSON *all = json_array();
    AUTO_BUF out = { 0 };
    buf_adds(&out, "NAME\tPID\tSTATUS\tBUNDLE PATH\tCREATED\tOWNER\n");
    while (d && (de = dir_next(d))) {
        AUTO_JSON *j = oci_load(de->d_name, e);
        if (!j) continue;
        json_array_append_new(all, oci_state(j));
        if (cli_flag(c, "quiet")) puts(de->d_name);
        buf_addf(&out, "%s\t%d\t%s\t%s\t%s\t%s\n", de->d_name, (int)js_int(j, "pid", 0),
                 js_str(j, "status"), js_str_or(j, "bundle", ""), js_str_or(j, "created", ""),
                 js_str_or(j, "owner", ""));
    }
    if (cli_flag(c, "quiet")) return 0;
    if (str_eq(cli_text(c, "format"), "json")) {
        AUTO_FREE char *t = js_dump(all, JSON_COMPACT);
        puts(t);
    } else table_print(out.p);
    return 0;
}

static int oci_cmd_ps(struct cli *c, struct err *e) {
    AUTO_JSON *j = oci_load(c->args[0], e), *out = json_array();
    if (!j) return -1;
    pid_t *pids;
    size_t n = oci_pids(j, &pids);
    bool json = str_eq(cli_text(c, "format"), "json");
    if (!json) puts("PID");
    for (size_t i = 0; i < n; i++) {
        json_array_append_new(out, json_integer(pids[i]));
        if (!json) printf("%d\n", (int)pids[i]);
    }
    free(pids);
    AUTO_FREE char *t = js_dump(out, JSON_COMPACT);
    if (json) puts(t);
    return 0;
}

static int oci_cmd_pause(struct cli *c, struct err *e) {
    AUTO_JSON *j = oci_load(c->args[0], e);
    bool freeze = str_eq(c->cmd->path, "pause");
    if (!j) return -1;
    if (!str_eq(js_str(j, "status"), freeze ? "running" : "paused"))
        return err_set(e, 0, "container `%s` is %s", c->args[0], js_str(j, "status"));
    AUTO_FREE char *mark = str_fmt("%s/paused", c->args[0]),
                   *file = js_str(j, "cgroup") ? str_fmt("%s/cgroup.freeze", js_str(j, "cgroup"))
                                               : NULL;
    if (!file || file_poke(AT_FDCWD, file, freeze ? "1" : "0")) {
        pid_t *pids;
        size_t n = oci_pids(j, &pids);
        for (size_t i = 0; i < n; i++) kill(pids[i], freeze ? SIGSTOP : SIGCONT);
        free(pids);
    }
    if (!freeze) unlinkat(g_oci.root, mark, 0);
    else close(openat(g_oci.root, mark, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    return 0;
}

static const struct opt OPT_OCI_EXEC[] = {
    { "apparmor", 0, OPT_TEXT, "Accepted where there is no AppArmor" },
    { "cap", 'c', OPT_LIST, "Add a capability" },
    { "cgroup", 0, OPT_TEXT, "A cgroup below the container's" },
    { "console-socket", 0, OPT_TEXT, "A Unix socket that gets the pty's master" },
    { "cwd", 0, OPT_TEXT, "Working directory" },
    { "detach", 'd', OPT_BOOL, "Do not wait" },
    { "env", 'e', OPT_LIST, "Environment" },
    { "no-new-privs", 0, OPT_BOOL, "Set no_new_privs" },
    { "pid-file", 0, OPT_TEXT, "Write the pid here" },
    { "preserve-fds", 0, OPT_INT, "Descriptors beyond stdio" },
    { "process", 'p', OPT_TEXT, "A file with the process to run" },
    { "process-label", 0, OPT_TEXT, "Accepted where there is no SELinux" },
    { "tty", 't', OPT_BOOL, "Allocate a pty" },
    { "user", 'u', OPT_TEXT, "uid[:gid]" },
    { NULL, 0, OPT_BOOL, NULL },
};

/* /process of an exec: a file's, or the container's own changed by options. */
static int oci_exec_process(struct cli *c, json_t *spec, struct err *e) {
    const char *file = cli_text(c, "process"), *user = cli_text(c, "user");
    json_t *proc = js_get(spec, "process");
    if (file) {
        json_t *p = js_load(AT_FDCWD, file, e);
        if (!p) return -1;
        js_set(spec, "process", p);
        return 0;
    }
    AUTO_STRV env = { 0 }, add = { 0 }, caps = { 0 };
    json_t *args = json_array();
    for (int i = 1; i < c->nargs; i++) js_push(args, c->args[i]);
    js_set(proc, "args", args);
    js_setb(proc, "terminal", cli_flag(c, "tty"));
    if (cli_text(c, "cwd")) js_sets(proc, "cwd", cli_text(c, "cwd"));
    js_to_strv(js_get(proc, "env"), &env);
    cli_list(c, "env", &add);
    for (size_t i = 0; i < add.n; i++) env_option(&env, add.v[i]);
    js_set(proc, "env", js_strv(&env));
    js_setb(proc, "noNewPrivileges",
            cli_flag(c, "no-new-privs")); /* as crun and runc: not the container's */
    cli_list(c, "cap", &caps);
    static const char *const SETS[] = { "bounding", "effective", "permitted" };
    for (size_t i = 0; i < caps.n; i++)
        for (size_t k = 0; k < ARRAY_LEN(SETS); k++)
            js_push(js_suba(js_sub(proc, "capabilities"), SETS[k]), caps.v[i]);
    if (!user) return 0;
    unsigned uid, gid = 0;
    if (sscanf(user, "%u:%u", &uid, &gid) < 1 || strspn(user, "0123456789:") != strlen(user))
        return err_set(e, 0, "--user %.40s: expected uid[:gid]", user);
    js_seti(js_sub(proc, "user"), "uid", uid);
    js_seti(js_sub(proc, "user"), "gid", gid);
    return 0;
}

/* What exec must enter: all that the container made or joined; its user namespace only where it is
 * not ours already, since that cannot be entered. */
static u64 oci_namespaces(const struct plan *p, pid_t pid) {
    char path[40], own[64] = "", theirs[64] = "";
    u64 ns = (p->ns_new & ~(u64)0x80) | CLONE_NEWNS;
    for (unsigned i = 0; i < p->nns_join; i++) ns |= p->ns_join[i].type;
    snprintf(path, sizeof path, "/proc/%d/ns/user", (int)pid);
    if (readlink(path, theirs, sizeof theirs - 1) > 0 &&
        readlink("/proc/self/ns/user", own, sizeof own - 1) > 0 && !strcmp(own, theirs))
        ns &= ~(u64)CLONE_NEWUSER;
    return ns;
}

static int oci_cmd_exec(struct cli *c, struct err *e) {
    AUTO_JSON *j = oci_load(c->args[0], e);
    AUTO_FREE char *config = str_fmt("%s/config.json", c->args[0]);
    AUTO_JSON *spec = j ? js_load(g_oci.root, config, e) : NULL;
    struct plan p = { 0 };
    struct launch l;
    if (!spec) return -1;
    pid_t pid = (pid_t)js_int(j, "pid", 0);
    if (!pid || str_eq(js_str(j, "status"), "stopped"))
        return err_set(e, 0, "the container `%s` is not running", c->args[0]);
    AUTO_FD pidfd = sys_pidfd_open(pid);
    if (pidfd < 0 || oci_started(pid) != (unsigned long long)js_int(j, "started", 0))
        return err_set(e, 0, "the container `%s` is not running", c->args[0]);
    if (oci_exec_process(c, spec, e) || plan_parse(spec, &p, e)) return -1;
    const char *console = cli_text(c, "console-socket"), *pid_file = cli_text(c, "pid-file");
    bool detach = cli_flag(c, "detach");
    launch_init(&l);
    l.plan = &p;
    l.keep_fds = (unsigned)cli_int(c, "preserve-fds", 0);
    l.on_listener = oci_listener, l.on_listener_arg = j;
    AUTO_FREE char *root = p.root && *p.root != '/'
                               ? str_fmt("%s/%s", js_str_or(j, "bundle", "."), p.root)
                           : p.root ? str_dup(p.root)
                                    : NULL;
    p.root = root;
    oci_env(&p, &l.keep_fds);
    l.stdio[0] = 0, l.stdio[1] = 1, l.stdio[2] = 2;
    const char *below = cli_text(c, "cgroup");
    AUTO_STRV parts = { 0 };
    if (below) strv_split(&parts, below, '/');
    if (strv_has(&parts, ".."))
        return err_set(e, 0, "--cgroup %s: `..` components are not allowed", below);
    if (js_str(j, "cgroup"))
        l.cgroup.path =
            below ? str_fmt("%s/%s", js_str(j, "cgroup"), below) : str_dup(js_str(j, "cgroup"));
    fflush(NULL);
    int rc = launch_join(&l, pidfd, oci_namespaces(&p, pid), e), status = 0;
    if (!rc) rc = launch_wait(&l, e);
    if (rc) {
        rc = -1;
        while (waitpid(-1, NULL, 0) > 0) continue;
    } else {
        AUTO_FREE char *text = str_fmt("%d", (int)l.pid);
        if ((pid_file && file_put(pid_file, text, strlen(text), 0644, e)) ||
            (console && l.console >= 0 && oci_send_console(console, l.console, e)))
            rc = -1;
        if (!rc && !detach) {
            struct keys none = { .n = 0 };
            if (l.console >= 0 && !console) exec_tty(l.console, l.pid, true, &none);
            while (waitpid(l.pid, &status, 0) < 0 && errno == EINTR) continue;
            rc = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
    }
    launch_done(&l);
    plan_done(&p);
    return rc;
}

static const struct opt OPT_OCI_UPDATE[] = { { "resources", 'r', OPT_TEXT,
                                               "A file with linux.resources, - for stdin" },
                                             { NULL, 0, OPT_BOOL, NULL } };

static int oci_cmd_update(struct cli *c, struct err *e) {
    AUTO_JSON *j = oci_load(c->args[0], e), *res = NULL;
    const char *file = cli_text(c, "resources");
    if (!j) return -1;
    res = file ? js_load(AT_FDCWD, strcmp(file, "-") ? file : "/proc/self/fd/0", e) : json_object();
    if (res && resource_options(c, res, true, e)) return -1;
    struct cgroup cg = { js_str(j, "cgroup") ? str_dup(js_str(j, "cgroup")) : NULL };
    int rc = !res       ? -1
             : !cg.path ? err_set(e, 0, "container `%s` has no cgroup of its own", c->args[0])
                        : cgroup_apply(&cg, res, e);
    cgroup_done(&cg);
    return rc;
}

static int oci_cmd_features(struct cli *c, struct err *e) {
    (void)c, (void)e;
    AUTO_JSON *j = json_pack(
        "{s:s,s:s,s:[s,s,s,s,s,s],s:{s:[s,s,s,s,s,s,s,s],s:{s:b,s:b,s:b,s:b},s:{s:b},s:{s:"
        "b},s:{s:b}}}",
        "ociVersionMin", "1.0.0", "ociVersionMax", "1.2.0", "hooks", "prestart", "createRuntime",
        "createContainer", "startContainer", "poststart", "poststop", "linux", "namespaces", "cgroup", "ipc", "mount", "network", "pid",
        "time", "user", "uts", "cgroup", "v1", 0, "v2", 1, "systemd", 0, "systemdUser", 0,
        "seccomp", "enabled", 1, "apparmor", "enabled", 0, "selinux", "enabled", 0);
    json_t *opts = json_array();
    for (size_t i = 0; i < ARRAY_LEN(MNT_OPTS); i++) {
        AUTO_FREE char *below = str_fmt("r%s", MNT_OPTS[i].name);
        js_push(opts, MNT_OPTS[i].name);
        js_push(opts, below);
    }
    for (size_t i = 0; i < ARRAY_LEN(MNT_PROP); i++) js_push(opts, MNT_PROP[i].name);
    static const char *const MORE[] = { "bind", "rbind", "tmpcopyup", "defaults" };
    for (size_t i = 0; i < ARRAY_LEN(MORE); i++) js_push(opts, MORE[i]);
    js_set(j, "mountOptions", opts);
    js_set(js_get(j, "linux"), "capabilities", cap_json(CAP_ALL));
    AUTO_FREE char *t = js_dump(j, JSON_INDENT(2));
    puts(t);
    return 0;
}

static const struct opt OPT_OCI_SPEC[] = {
    { "bundle", 'b', OPT_TEXT, "Where config.json goes (.)" },
    { "rootless", 0, OPT_BOOL, "A configuration for a user without root" },
    { NULL, 0, OPT_BOOL, NULL },
};

static int oci_cmd_spec(struct cli *c, struct err *e) {
    const char *bundle = cli_text(c, "bundle");
    bool rootless = cli_flag(c, "rootless");
    AUTO_FD d = dir_open(AT_FDCWD, bundle ? bundle : ".", e);
    if (d < 0) return -1;
    if (!faccessat(d, "config.json", F_OK, 0)) return err_set(e, 0, "config.json already exists");
    AUTO_JSON *j = json_pack("{s:s,s:{s:b,s:{s:i,s:i},s:[s],s:[s,s],s:s,s:b},s:{s:s,s:b},s:s,s:{}}",
                             "ociVersion", "1.2.0", "process", "terminal", 1, "user", "uid", 0,
                             "gid", 0, "args", "sh", "env",
                             "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                             "TERM=xterm", "cwd", "/", "noNewPrivileges", 1, "root", "path",
                             "rootfs", "readonly", 1, "hostname", "skiff", "linux");
    json_t *lin = js_get(j, "linux"), *m = js_suba(j, "mounts"),
           *caps = js_sub(js_get(j, "process"), "capabilities");
    u64 few = CAP_BIT(CAP_AUDIT_WRITE) | CAP_BIT(CAP_KILL) | CAP_BIT(CAP_NET_BIND_SERVICE);
    static const char *const SETS[] = { "bounding", "effective", "permitted" }, *const NS[] = {
        "pid", "ipc", "uts", "mount", "cgroup"
    };
    for (size_t i = 0; i < ARRAY_LEN(SETS); i++) js_set(caps, SETS[i], cap_json(few));
    for (size_t i = 0; i < ARRAY_LEN(NS); i++)
        json_array_append_new(js_suba(lin, "namespaces"), json_pack("{ss}", "type", NS[i]));
    json_array_append_new(js_get(lin, "namespaces"),
                          json_pack("{ss}", "type", rootless ? "user" : "network"));
    if (rootless)
        make_idmap(lin, &(struct idmap){ .uid = { { 0, geteuid(), 1 } },
                                         .uids = 1,
                                         .gid = { { 0, getegid(), 1 } },
                                         .gids = 1 });
    mount_add(m, "/proc", "proc", "proc", "nosuid,noexec,nodev", false);
    mount_add(m, "/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k", false);
    mount_add(m, "/dev/pts", "devpts", "devpts",
              rootless ? "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620"
                       : "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
              false);
    mount_add(m, "/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k", false);
    mount_add(m, "/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev", false);
    if (rootless) mount_add(m, "/sys", "none", "/sys", "rbind,nosuid,noexec,nodev,ro", false);
    else mount_add(m, "/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro", false);
    make_paths(lin);
    AUTO_FREE char *t = js_dump(j, JSON_INDENT(2));
    return file_replace(d, "config.json", t, strlen(t), 0644, 0, e);
}

static const struct cmd OCI_CMDS[] = {
    { "create",
      NULL,
      "[OPTIONS] CONTAINER",
      "Create a container from a bundle",
      oci_cmd_create,
      { OPT_OCI_RUN },
      1,
      1,
      false,
      1 },
    { "delete",
      NULL,
      "[OPTIONS] CONTAINER",
      "Remove a container",
      oci_cmd_delete,
      { OPT_OCI_DELETE },
      1,
      1,
      false,
      1 },
    { "exec",
      NULL,
      "[OPTIONS] CONTAINER cmd [ARG...]",
      "Execute a process in a container",
      oci_cmd_exec,
      { OPT_OCI_EXEC },
      1,
      -1,
      true,
      1 },
    { "features",
      NULL,
      "",
      "Show the enabled features",
      oci_cmd_features,
      { NULL },
      0,
      0,
      false,
      1 },
    { "kill",
      NULL,
      "[OPTIONS] CONTAINER [SIGNAL]",
      "Send a signal to a container's first process",
      oci_cmd_kill,
      { OPT_OCI_KILL },
      1,
      2,
      false,
      1 },
    { "list",
      NULL,
      "[OPTIONS]",
      "List containers",
      oci_cmd_list,
      { OPT_OCI_LIST },
      0,
      0,
      false,
      1 },
    { "pause",
      NULL,
      "CONTAINER",
      "Pause all processes of a container",
      oci_cmd_pause,
      { NULL },
      1,
      1,
      false,
      1 },
    { "ps",
      NULL,
      "[OPTIONS] CONTAINER",
      "Show the processes of a container",
      oci_cmd_ps,
      { OPT_OCI_LIST },
      1,
      -1,
      false,
      1 },
    { "resume",
      NULL,
      "CONTAINER",
      "Resume all processes of a container",
      oci_cmd_pause,
      { NULL },
      1,
      1,
      false,
      1 },
    { "run",
      NULL,
      "[OPTIONS] CONTAINER",
      "Create and start a container",
      oci_cmd_run,
      { OPT_OCI_RUN },
      1,
      1,
      false,
      1 },
    { "spec",
      NULL,
      "[OPTIONS]",
      "Write a config.json to begin with",
      oci_cmd_spec,
      { OPT_OCI_SPEC },
      0,
      0,
      false,
      1 },
    { "start",
      NULL,
      "CONTAINER",
      "Start a created container",
      oci_cmd_start,
      { NULL },
      1,
      1,
      false,
      1 },
    { "state",
      NULL,
      "CONTAINER",
      "Show a container's state",
      oci_cmd_state,
      { NULL },
      1,
      1,
      false,
      1 },
    { "update",
      NULL,
      "[OPTIONS] CONTAINER",
      "Change the limits of a container",
      oci_cmd_update,
      { OPT_OCI_UPDATE, OPT_LIMITS },
      1,
      1,
      false,
      1 },
};

/* An error where the caller looks for it: the log file in its format, and stderr. */
static void oci_error(const struct err *e) {
    AUTO_FD fd = g_oci.log ? open(g_oci.log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644) : -1;
    char now[40];
    time_rfc3339(time_now_ns(), now);
    AUTO_JSON *j = json_object();
    js_sets(j, "msg", e->msg), js_sets(j, "level", "error"), js_sets(j, "time", now);
    AUTO_FREE char *json = js_dump(j, JSON_COMPACT);
    AUTO_FREE char *line =
        str_eq(g_oci.log_format, "json") ? str_fmt("%s\n", json) : str_fmt("%s: %s\n", now, e->msg);
    if (fd >= 0) (void)!fd_write_all(fd, line, strlen(line));
    else fprintf(stderr, "%s", line);
}

static int oci_main(int argc, char **argv) {
    struct err e = { 0 };
    struct cli c = { 0 };
    const char *root = NULL;
    bool help = false;
    int i = 1;
    g_oci.name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    if (!strcmp(g_oci.name, "oci")) g_oci.name = "skiff";
    for (; i < argc && *argv[i] == '-'; i++) {
        static const char *const VALUE[] = {
            "--root",           "--log",      "--log-format", "--log-level",
            "--cgroup-manager", "--rootless", "--criu"
        };
        const char *a = argv[i], *eq = strchr(a, '=');
        size_t n = eq ? (size_t)(eq - a) : strlen(a);
        if (!strcmp(a, "--version") || !strcmp(a, "-v"))
            return printf("%s version %s\nspec: 1.2.0\n+SECCOMP +CAP\n", g_oci.name, SKIFF_VERSION),
                   0;
        if (!strcmp(a, "--systemd-cgroup") || !strcmp(a, "--debug")) continue;
        bool known = false;
        for (size_t k = 0; k < ARRAY_LEN(VALUE); k++) {
            if (strlen(VALUE[k]) != n || strncmp(VALUE[k], a, n)) continue;
            const char *v = eq ? eq + 1 : i + 1 < argc ? argv[++i] : "";
            known = true;
            if (k == 0) root = v;
            else if (k == 1) g_oci.log = v;
            else if (k == 2) g_oci.log_format = v;
            const char *colon = k == 1 ? strchr(v, ':') : NULL;
            if (colon && str_prefix(v, "file:")) g_oci.log = v + 5;
            else if (colon && !memchr(v, '/', (size_t)(colon - v)) && !str_prefix(v, "syslog:") &&
                     !str_prefix(v, "journald:"))
                return g_oci.log = NULL, err_set(&e, 0, "--log %s: unknown kind of log", v),
                       oci_error(&e), 1;
            else if (colon && (str_prefix(v, "syslog:") || str_prefix(v, "journald:")))
                g_oci.log = NULL;
            if (k == 2 && strcmp(v, "text") && strcmp(v, "json"))
                return err_set(&e, 0, "--log-format %s: expected text or json", v), oci_error(&e),
                       1;
        }
        if (!known && strcmp(a, "--help") && strcmp(a, "-h"))
            return err_set(&e, 0, "unknown flag: %s", a), oci_error(&e), 1;
        help |= !known;
    }
    for (size_t k = 0; i < argc && !help && k < ARRAY_LEN(OCI_CMDS); k++)
        if (!strcmp(OCI_CMDS[k].path, argv[i])) c.cmd = &OCI_CMDS[k];
    if (!c.cmd) {
        puts("Usage:  skiff oci [--root DIR] [--log FILE] [--log-format text|json] "
             "COMMAND\n\nCommands:");
        for (size_t k = 0; k < ARRAY_LEN(OCI_CMDS); k++)
            printf("  %-12s %s\n", OCI_CMDS[k].path, OCI_CMDS[k].summary);
        return help ? 0 : 1;
    }
    int rc = opt_parse(c.cmd, argc - i - 1, argv + i + 1, &c, &help, &e);
    if (!rc && help) {
        const char *rest =
            str_prefix(c.cmd->usage, "[OPTIONS] ") ? c.cmd->usage + 10 : c.cmd->usage;
        return printf("Usage: %s [OPTION...] %s %s\n\n", g_oci.name, c.cmd->path, rest),
               cmd_help(c.cmd), 0;
    }
    if (!rc && (c.nargs < c.cmd->min || (c.cmd->max >= 0 && c.nargs > c.cmd->max)))
        rc = err_set(&e, 0, "usage: %s %s", c.cmd->path, c.cmd->usage);
    if (!rc) rc = oci_root(root, &e);
    if (!rc) rc = c.cmd->run(&c, &e);
    if (rc < 0) {
        oci_error(&e);
        rc = e.status ? e.status : 1;
    }
    fflush(stdout);
    return rc;
}

/* ---- 26.19 hello: what the embedded image runs ---- */
static int hello_main(void) {
    char uid[128] = "?", root[256] = "?", line[512];
    file_line(AT_FDCWD, "/proc/self/uid_map", uid, sizeof uid);
    FILE *f = fopen("/proc/self/mountinfo", "re");
    while (f && fgets(line, sizeof line, f)) {
        char *dash = strstr(line, " - ");
        if (dash && strstr(line, " / / "))
            snprintf(root, sizeof root, "%.*s", (int)strcspn(dash + 3, " \n"), dash + 3);
    }
    if (f) fclose(f);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    char seccomp[32] = "?", mem[64] = "none (host's)";
    AUTO_BUF status = { 0 };
    struct err e;
    if (!file_read(AT_FDCWD, "/proc/self/status", 65536, &status, &e)) {
        char *s = strstr(status.p, "Seccomp:\t");
        if (s) snprintf(seccomp, sizeof seccomp, "%s", s[9] == '2' ? "filter on" : "off");
    }
    file_line(AT_FDCWD, "/sys/fs/cgroup/memory.max", mem, sizeof mem);
    printf("Hello from a container.\n\n"
           "  process id         %d\n  user               uid %u, map (inside outside count): %s\n "
           " root file system   %s\n"
           "  seccomp            %s\n  memory limit       %s\n  open files         %llu\n\n"
           "No root, no daemon: skiff made the namespaces, mounted the image, and ran this program "
           "in it.\n\n"
           "Next:\n  skiff run -it debian bash\n  skiff ps -a\n  skiff doctor\n",
           getpid(), getuid(), uid, root, seccomp, mem, (unsigned long long)files.rlim_cur);
    return 0;
}

/* ---- 26.20 the table ---- */
static const struct opt OPT_TIME[] = {
    { "time", 't', OPT_INT, "Seconds to wait before killing the container" },
    { "timeout", 0, OPT_INT, "The same" },
    { "signal", 's', OPT_TEXT, "Signal to send to the container" },
    { NULL, 0, OPT_BOOL, NULL },
};
static const struct opt OPT_KILL[] = { { "signal", 's', OPT_TEXT,
                                         "Signal to send to the container (KILL)" },
                                       { NULL, 0, OPT_BOOL, NULL } };
static const struct opt OPT_RM[] = {
    { "force", 'f', OPT_BOOL, "Force the removal of a running container (uses SIGKILL)" },
    { "volumes", 'v', OPT_BOOL, "Remove anonymous volumes associated with the container" },
    { "link", 'l', OPT_LATER_BOOL, "" },
    { NULL, 0, OPT_BOOL, NULL },
};
static const struct opt OPT_START[] = {
    { "attach", 'a', OPT_BOOL, "Attach STDOUT/STDERR and forward signals" },
    { "detach-keys", 0, OPT_TEXT, "Key sequence for detaching" },
    { "interactive", 'i', OPT_BOOL, "Attach container's STDIN" },
    { "checkpoint", 0, OPT_LATER_TEXT, "" },
    { "checkpoint-dir", 0, OPT_LATER_TEXT, "" },
    { NULL, 0, OPT_BOOL, NULL },
};
static const struct opt OPT_ATTACH[] = {
    { "detach-keys", 0, OPT_TEXT, "Key sequence for detaching" },
    { "no-stdin", 0, OPT_BOOL, "Do not attach STDIN" },
    { "sig-proxy", 0, OPT_BOOL, "Proxy all received signals to the process (true)" },
    { NULL, 0, OPT_BOOL, NULL },
};
static const struct opt OPT_LOGS[] = {
    { "details", 0, OPT_BOOL, "Show extra details provided to logs" },
    { "follow", 'f', OPT_BOOL, "Follow log output" },
    { "since", 0, OPT_TEXT, "Show logs since timestamp or relative (42m)" },
    { "tail", 'n', OPT_TEXT, "Number of lines to show from the end (all)" },
    { "timestamps", 't', OPT_BOOL, "Show timestamps" },
    { "until", 0, OPT_TEXT, "Show logs before timestamp or relative (42m)" },
    { NULL, 0, OPT_BOOL, NULL },
};

static const struct cmd CMDS[] = {
    { "container run",
      "run",
      "[OPTIONS] IMAGE [COMMAND] [ARG...]",
      "Create and run a new container from an image",
      cmd_run,
      { OPT_RUN },
      0,
      -1,
      true,
      125 },
    { "container create",
      "create",
      "[OPTIONS] IMAGE [COMMAND] [ARG...]",
      "Create a new container",
      cmd_create,
      { OPT_RUN },
      0,
      -1,
      true,
      125 },
    { "container start",
      "start",
      "[OPTIONS] CONTAINER [CONTAINER...]",
      "Start one or more stopped containers",
      cmd_start,
      { OPT_START },
      1,
      -1,
      false,
      1 },
    { "container stop",
      "stop",
      "[OPTIONS] CONTAINER [CONTAINER...]",
      "Stop one or more running containers",
      cmd_stop,
      { OPT_TIME },
      1,
      -1,
      false,
      1 },
    { "container restart",
      "restart",
      "[OPTIONS] CONTAINER [CONTAINER...]",
      "Restart one or more containers",
      cmd_restart,
      { OPT_TIME },
      1,
      -1,
      false,
      1 },
    { "container kill",
      "kill",
      "[OPTIONS] CONTAINER [CONTAINER...]",
      "Kill one or more running containers",
      cmd_kill,
      { OPT_KILL },
      1,
      -1,
      false,
      1 },
    { "container pause",
      "pause",
      "CONTAINER [CONTAINER...]",
      "Pause all processes within one or more containers",
      cmd_pause,
      { NULL },
      1,
      -1,
      false,
      1 },
    { "container unpause",
      "unpause",
      "CONTAINER [CONTAINER...]",
      "Unpause all processes within one or more containers",
      cmd_pause,
      { NULL },
      1,
      -1,
      false,
      1 },
    { "container rm",
      "rm",
      "[OPTIONS] CONTAINER [CONTAINER...]",
      "Remove one or more containers",
      cmd_rm,
      { OPT_RM },
      1,
      -1,
      false,
      1 },
    { "container wait",
      "wait",
      "CONTAINER [CONTAINER...]",
      "Block until one or more containers stop, then print their exit codes",
      cmd_wait,
      { NULL },
      1,
      -1,
      false,
      1 },
    { "container attach",
      "attach",
      "[OPTIONS] CONTAINER",
      "Attach local standard input, output, and error streams to a running container",
      cmd_attach,
      { OPT_ATTACH },
      1,
      1,
      false,
      1 },
    { "container exec",
      "exec",
      "[OPTIONS] CONTAINER COMMAND [ARG...]",
      "Execute a command in a running container",
      cmd_exec,
      { OPT_EXEC },
      2,
      -1,
      true,
      1 },
    { "container logs",
      "logs",
      "[OPTIONS] CONTAINER",
      "Fetch the logs of a container",
      cmd_logs,
      { OPT_LOGS },
      1,
      1,
      false,
      1 },
    { "container rename",
      "rename",
      "CONTAINER NEW_NAME",
      "Rename a container",
      cmd_rename,
      { NULL },
      2,
      2,
      false,
      1 },
    { "container ls", "ps", "[OPTIONS]", "List containers", cmd_ps, { OPT_PS }, 0, 0, false, 1 },
    { "container list", NULL, "[OPTIONS]", "List containers", cmd_ps, { OPT_PS }, 0, 0, false, 1 },
    { "container ps", NULL, "[OPTIONS]", "List containers", cmd_ps, { OPT_PS }, 0, 0, false, 1 },
    { "container inspect",
      NULL,
      "[OPTIONS] CONTAINER [CONTAINER...]",
      "Display detailed information on one or more containers",
      cmd_inspect,
      { OPT_INSPECT },
      1,
      -1,
      false,
      1 },
    { "container top",
      "top",
      "CONTAINER [ps OPTIONS]",
      "Display the running processes of a container",
      cmd_top,
      { NULL },
      1,
      -1,
      true,
      1 },
    { "container port",
      "port",
      "CONTAINER [PRIVATE_PORT[/PROTO]]",
      "List port mappings or a specific mapping for the container",
      cmd_port,
      { NULL },
      1,
      2,
      false,
      1 },
    { "container stats",
      "stats",
      "[OPTIONS] [CONTAINER...]",
      "Display a live stream of container(s) resource usage statistics",
      cmd_stats,
      { OPT_STATS },
      0,
      -1,
      false,
      1 },
    { "container diff",
      "diff",
      "CONTAINER",
      "Inspect changes to files or directories on a container's filesystem",
      cmd_diff,
      { NULL },
      1,
      1,
      false,
      1 },
    { "container export",
      "export",
      "[OPTIONS] CONTAINER",
      "Export a container's filesystem as a tar archive",
      cmd_export,
      { OPT_OUTPUT },
      1,
      1,
      false,
      1 },
    { "container cp",
      "cp",
      "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|- | SRC_PATH|- CONTAINER:DEST_PATH",
      "Copy files/folders between a container and the local filesystem",
      cmd_cp,
      { OPT_CP },
      2,
      2,
      false,
      1 },
    { "container commit",
      "commit",
      "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
      "Create a new image from a container's changes",
      cmd_commit,
      { OPT_COMMIT },
      1,
      2,
      false,
      1 },
    { "container prune",
      NULL,
      "[OPTIONS]",
      "Remove all stopped containers",
      cmd_prune,
      { OPT_PRUNE },
      0,
      0,
      false,
      1 },
    { "image ls",
      "images",
      "[OPTIONS] [REPOSITORY[:TAG]]",
      "List images",
      cmd_images,
      { OPT_IMAGES },
      0,
      1,
      false,
      1 },
    { "image list",
      NULL,
      "[OPTIONS] [REPOSITORY[:TAG]]",
      "List images",
      cmd_images,
      { OPT_IMAGES },
      0,
      1,
      false,
      1 },
    { "image pull",
      "pull",
      "[OPTIONS] NAME[:TAG|@DIGEST]",
      "Download an image from a registry",
      cmd_pull,
      { OPT_PULL },
      1,
      1,
      false,
      1 },
    { "image push",
      "push",
      "[OPTIONS] NAME[:TAG] [oci:DIR[:NAME]|oci-archive:FILE|docker-archive:FILE]",
      "Upload an image to a registry, or write it to a local place",
      cmd_push,
      { OPT_PULL },
      1,
      2,
      false,
      1 },
    { "image tag",
      "tag",
      "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
      "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE",
      cmd_tag,
      { NULL },
      2,
      2,
      false,
      1 },
    { "image rm",
      "rmi",
      "[OPTIONS] IMAGE [IMAGE...]",
      "Remove one or more images",
      cmd_rmi,
      { OPT_RMI },
      1,
      -1,
      false,
      1 },
    { "image remove",
      NULL,
      "[OPTIONS] IMAGE [IMAGE...]",
      "Remove one or more images",
      cmd_rmi,
      { OPT_RMI },
      1,
      -1,
      false,
      1 },
    { "image inspect",
      NULL,
      "[OPTIONS] IMAGE [IMAGE...]",
      "Display detailed information on one or more images",
      cmd_inspect,
      { OPT_INSPECT },
      1,
      -1,
      false,
      1 },
    { "image history",
      "history",
      "[OPTIONS] IMAGE",
      "Show the history of an image",
      cmd_history,
      { OPT_HISTORY },
      1,
      1,
      false,
      1 },
    { "image prune",
      NULL,
      "[OPTIONS]",
      "Remove unused images",
      cmd_prune,
      { OPT_PRUNE },
      0,
      0,
      false,
      1 },
    { "image save",
      "save",
      "[OPTIONS] IMAGE [IMAGE...]",
      "Save one or more images to a tar archive (streamed to STDOUT by default)",
      cmd_save,
      { OPT_OUTPUT },
      1,
      -1,
      false,
      1 },
    { "image load",
      "load",
      "[OPTIONS]",
      "Load an image from a tar archive or STDIN",
      cmd_load,
      { OPT_LOAD },
      0,
      0,
      false,
      1 },
    { "image import",
      "import",
      "[OPTIONS] file|- [REPOSITORY[:TAG]]",
      "Import the contents from a tarball to create a filesystem image",
      cmd_import,
      { OPT_IMPORT },
      1,
      2,
      false,
      1 },
    { "inspect",
      NULL,
      "[OPTIONS] NAME|ID [NAME|ID...]",
      "Return low-level information on skiff objects",
      cmd_inspect,
      { OPT_INSPECT },
      1,
      -1,
      false,
      1 },
    { "login",
      NULL,
      "[OPTIONS] [SERVER]",
      "Authenticate to a registry",
      cmd_login,
      { OPT_LOGIN },
      0,
      1,
      false,
      1 },
    { "logout", NULL, "[SERVER]", "Log out from a registry", cmd_logout, { NULL }, 0, 1, false, 1 },
    { "container update",
      "update",
      "[OPTIONS] CONTAINER [CONTAINER...]",
      "Update configuration of one or more containers",
      cmd_update,
      { OPT_UPDATE, OPT_LIMITS },
      1,
      -1,
      false,
      1 },
    { "volume create",
      NULL,
      "[OPTIONS] [VOLUME]",
      "Create a volume",
      cmd_volume_create,
      { OPT_VCREATE },
      0,
      1,
      false,
      1 },
    { "volume ls", NULL, "[OPTIONS]", "List volumes", cmd_volume_ls, { OPT_PS }, 0, 0, false, 1 },
    { "volume list", NULL, "[OPTIONS]", "List volumes", cmd_volume_ls, { OPT_PS }, 0, 0, false, 1 },
    { "volume inspect",
      NULL,
      "[OPTIONS] VOLUME [VOLUME...]",
      "Display detailed information on one or more volumes",
      cmd_inspect,
      { OPT_INSPECT },
      1,
      -1,
      false,
      1 },
    { "volume rm",
      NULL,
      "[OPTIONS] VOLUME [VOLUME...]",
      "Remove one or more volumes",
      cmd_volume_rm,
      { OPT_RM },
      1,
      -1,
      false,
      1 },
    { "volume remove",
      NULL,
      "[OPTIONS] VOLUME [VOLUME...]",
      "Remove one or more volumes",
      cmd_volume_rm,
      { OPT_RM },
      1,
      -1,
      false,
      1 },
    { "volume prune",
      NULL,
      "[OPTIONS]",
      "Remove unused local volumes",
      cmd_prune,
      { OPT_PRUNE },
      0,
      0,
      false,
      1 },
    { "system df", NULL, "[OPTIONS]", "Show disk usage", cmd_df, { OPT_DF }, 0, 0, false, 1 },
    { "system prune",
      NULL,
      "[OPTIONS]",
      "Remove unused data",
      cmd_prune,
      { OPT_PRUNE },
      0,
      0,
      false,
      1 },
    { "system check",
      NULL,
      "[OPTIONS]",
      "Verify every blob, index and chunk of the store",
      cmd_check,
      { OPT_CHECK },
      0,
      0,
      false,
      1 },
    { "system info",
      "info",
      "[OPTIONS]",
      "Display system-wide information",
      cmd_info,
      { OPT_FORMAT },
      0,
      0,
      false,
      1 },
    { "system events",
      "events",
      "[OPTIONS]",
      "Get real time events",
      cmd_events,
      { OPT_EVENTS },
      0,
      0,
      false,
      1 },
    { "version",
      NULL,
      "[OPTIONS]",
      "Show the version information",
      cmd_version,
      { OPT_VERSION },
      0,
      0,
      false,
      1 },
    { "doctor",
      NULL,
      "",
      "Try each thing that skiff needs of this host, and say what is lost without it",
      cmd_doctor,
      { NULL },
      0,
      0,
      false,
      1 },
    { "image build",
      "build",
      "[OPTIONS] PATH | -",
      "Build an image from a Dockerfile",
      cmd_build,
      { OPT_BUILD },
      0,
      1,
      false,
      1 },
    { "builder build",
      NULL,
      "[OPTIONS] PATH | -",
      "Build an image from a Dockerfile",
      cmd_build,
      { OPT_BUILD },
      0,
      1,
      false,
      1 },
    { "builder prune",
      NULL,
      "[OPTIONS]",
      "Remove build cache",
      cmd_builder_prune,
      { OPT_PRUNE },
      0,
      0,
      false,
      1 },
};
/* }==== 26 cmd */

/* {==== 27 main: dispatch ====
 * Uses: 1-26. */

/* The command of argv[0 …]; *ret_used: how many words named it. NULL: none. */
static const struct cmd *main_find(int argc, char **argv, int *ret_used) {
    for (int words = argc < 2 ? argc : 2; words > 0; words--) {
        char path[96];
        snprintf(path, sizeof path, words == 2 ? "%s %s" : "%s", argv[0],
                 words == 2 ? argv[1] : "");
        for (size_t i = 0; i < ARRAY_LEN(CMDS); i++)
            if (!strcmp(CMDS[i].path, path) || (CMDS[i].alias && !strcmp(CMDS[i].alias, path))) {
                *ret_used = words;
                return &CMDS[i];
            }
    }
    return NULL;
}

static void main_usage(void) {
    puts("Usage:  skiff [OPTIONS] COMMAND\n\nContainers without root, daemon or installation. Try: "
         "skiff run hello\n\nCommands:");
    for (size_t i = 0; i < ARRAY_LEN(CMDS); i++)
        printf("  %-24s %s\n", CMDS[i].alias ? CMDS[i].alias : CMDS[i].path, CMDS[i].summary);
    puts("\nGlobal Options:\n"
         "  -D, --debug                  Say more on standard error\n"
         "      --root DIR               The store (default $SKIFF_ROOT or ~/.local/share/skiff)\n"
         "      --storage-driver NAME    overlay-fuse, fuse, overlay or copy instead of the best that "
         "works\n"
         "  -v, --version                Print version information and quit\n\n"
         "Run 'skiff COMMAND --help' for more information on a command.");
}

/* Global options before the command; the index of the first word after them, -1: error. */
static int main_globals(int argc, char **argv, bool *ret_version, bool *ret_help, struct err *e) {
    int i = 1;
    for (; i < argc && *argv[i] == '-'; i++) {
        const char *a = argv[i], *eq = strchr(a, '='),
                   *v = eq             ? eq + 1
                        : i + 1 < argc ? argv[i + 1]
                                       : NULL;
        if (!strcmp(a, "-D") || !strcmp(a, "--debug")) g_log.debug = true;
        else if (!strcmp(a, "-v") || !strcmp(a, "--version")) *ret_version = true;
        else if (!strcmp(a, "-h") || !strcmp(a, "--help")) *ret_help = true;
        else if (v && (str_prefix(a, "--root=") || !strcmp(a, "--root")))
            setenv("SKIFF_ROOT", v, 1), i += !eq;
        else if (v && (str_prefix(a, "--storage-driver=") || !strcmp(a, "--storage-driver"))) {
            if (!word_in("overlay-fuse fuse overlay copy vfs", v, strlen(v)) || !*v)
                return err_set(
                    e, 0, "storage driver '%.40s' is not one of overlay-fuse, fuse, overlay, copy",
                    v);
            g_storage_driver = v;
            i += !eq;
        } else if (v &&
                   (str_prefix(a, "--log-level=") || !strcmp(a, "--log-level") || !strcmp(a, "-l")))
            i += !eq;
        else return err_set(e, 0, "unknown flag: %s", a);
    }
    return i;
}

static bool main_is_group(const char *name) {
    size_t n = strlen(name);
    for (size_t i = 0; i < ARRAY_LEN(CMDS); i++)
        if (!strncmp(CMDS[i].path, name, n) && CMDS[i].path[n] == ' ') return true;
    return false;
}

/* Prints the commands of a group ("container"); false where there is no such group. */
static bool main_group(const char *name) {
    size_t n = strlen(name);
    bool some = false;
    for (size_t i = 0; i < ARRAY_LEN(CMDS); i++) {
        if (strncmp(CMDS[i].path, name, n) || CMDS[i].path[n] != ' ') continue;
        if (!some) printf("Usage:  skiff %s COMMAND\n\nCommands:\n", name);
        some = true;
        printf("  %-12s %s\n", CMDS[i].path + n + 1, CMDS[i].summary);
    }
    if (some) printf("\nRun 'skiff %s COMMAND --help' for more information on a command.\n", name);
    return some;
}

/* Words and options of every command, for a shell: from the same table as parsing and help. */
static void completion_case(const struct cmd *c, const char *name) {
    printf("    '%s') o='", name);
    for (size_t g = 0; g < ARRAY_LEN(c->opts) && c->opts[g]; g++)
        for (const struct opt *o = c->opts[g]; o->name; o++)
            if (o->kind < OPT_LATER_BOOL) printf("--%s ", o->name);
    puts("--help';;");
}

static int main_completion(const char *shell) {
    bool fish = !strcmp(shell, "fish");
    if (strcmp(shell, "bash") && strcmp(shell, "zsh") && !fish) {
        bool help = !strcmp(shell, "--help") || !strcmp(shell, "-h");
        fputs("Usage:  skiff completion bash|zsh|fish\n\nPrint a completion script: source <(skiff "
              "completion bash)\n",
              help ? stdout : stderr);
        return help ? 0 : 1;
    }
    if (fish) {
        puts("complete -c skiff -f");
        for (size_t i = 0; i < ARRAY_LEN(CMDS); i++) {
            const char *name = CMDS[i].alias ? CMDS[i].alias : CMDS[i].path;
            AUTO_FREE char *word = str_dupn(name, strcspn(name, " "));
            printf("complete -c skiff -n __fish_use_subcommand -a '%s'\n", word);
            for (size_t g = 0; g < ARRAY_LEN(CMDS[i].opts) && CMDS[i].opts[g]; g++)
                for (const struct opt *o = CMDS[i].opts[g]; o->name; o++)
                    if (o->kind < OPT_LATER_BOOL)
                        printf("complete -c skiff -n '__fish_seen_subcommand_from %s' -l %s\n",
                               word, o->name);
        }
        return 0;
    }
    if (!strcmp(shell, "zsh")) puts("#compdef skiff\nautoload -U +X bashcompinit && bashcompinit");
    puts("_skiff() {\n  local cur=${COMP_WORDS[COMP_CWORD]} o= two=\"${COMP_WORDS[1]} "
         "${COMP_WORDS[2]}\"\n  case $two in");
    for (size_t i = 0; i < ARRAY_LEN(CMDS); i++)
        if (strchr(CMDS[i].path, ' ')) completion_case(&CMDS[i], CMDS[i].path);
    puts("  esac\n  [ -n \"$o\" ] || case ${COMP_WORDS[1]} in");
    for (size_t i = 0; i < ARRAY_LEN(CMDS); i++) {
        if (CMDS[i].alias) completion_case(&CMDS[i], CMDS[i].alias);
        else if (!strchr(CMDS[i].path, ' ')) completion_case(&CMDS[i], CMDS[i].path);
    }
    puts("  esac");
    fputs("  local c='", stdout);
    for (size_t i = 0; i < ARRAY_LEN(CMDS); i++) {
        const char *name = CMDS[i].alias ? CMDS[i].alias : CMDS[i].path;
        printf("%.*s ", (int)strcspn(name, " "), name);
    }
    puts("'\n  if [ $COMP_CWORD -eq 1 ]; then COMPREPLY=($(compgen -W \"$c\" -- \"$cur\"))\n"
         "  elif [[ $cur == -* ]]; then COMPREPLY=($(compgen -W \"$o\" -- \"$cur\"))\n"
         "  else COMPREPLY=($(compgen -W \"$(skiff ps -a --format '{{.Names}}' 2>/dev/null) "
         "$(skiff images --format '{{.Repository}}:{{.Tag}}' 2>/dev/null)\" -- \"$cur\")); fi\n"
         "}\ncomplete -o default -F _skiff skiff");
    return 0;
}

/* A container that got hold of our executable could write to it where the user may (CVE-2019-5736):
 * then we go on from a sealed copy in memory. An executable that the user cannot write needs none.
 * */
static void main_protect(char **argv) {
    static const char MARK[] = "SKIFF_SEALED=1";
    if (getenv("SKIFF_SEALED")) {
        unsetenv("SKIFF_SEALED");
        return;
    }
    struct stat st;
    if (host_disabled("memfd") || stat("/proc/self/exe", &st)) return;
    /* the owner may always write, whatever the mode says: container root has CAP_DAC_OVERRIDE over
     * it */
    if (st.st_uid != geteuid() && faccessat(AT_FDCWD, "/proc/self/exe", W_OK, AT_EACCESS)) return;
    AUTO_FD exe = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    AUTO_FD copy = (int)syscall(SYS_memfd_create, "skiff", 3u /* CLOEXEC, ALLOW_SEALING */);
    if (exe < 0 || copy < 0) return;
    for (off_t left = st.st_size; left > 0;) {
        ssize_t k = syscall(SYS_sendfile, copy, exe, NULL, (size_t)left);
        if (k <= 0) return;
        left -= k;
    }
    if (fcntl(copy, 1033 /* F_ADD_SEALS */, 0xf)) return;
    putenv((char *)(uintptr_t)MARK);
    syscall(SYS_execveat, copy, "", argv, environ, AT_EMPTY_PATH);
    unsetenv("SKIFF_SEALED");
}

#ifndef SKIFF_NO_MAIN
int main(int argc, char **argv) {
    struct err e = { 0 };
    struct cli c = { 0 };
    bool version = false, help = false;
    int used = 0;
    const char *base = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    if (!strcmp(argv[0], "/hello") && getpid() == 1) return hello_main();
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0) open("/dev/null", O_RDWR);
    struct rlimit files; /* a directory tree is held open level by level */
    if (!getrlimit(RLIMIT_NOFILE, &files)) {
        g_nofile_soft = files.rlim_cur;
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    signal(SIGCHLD, SIG_DFL); /* a caller that ignores it would make our waits fail */
    signal(SIGXFSZ, SIG_IGN); /* a file size limit is an error, not a death */
    main_protect(argv);
    setlocale(LC_CTYPE, "C.UTF-8");
    if (!strcmp(base, "crun") || !strcmp(base, "runc") || !strcmp(base, "skiff-runtime"))
        return oci_main(argc, argv);
    if (argc > 1 && !strcmp(argv[1], "oci")) return oci_main(argc - 1, argv + 1);
    int at = main_globals(argc, argv, &version, &help, &e);
    if (at < 0) return cli_error(&c, &e), EXIT_ENGINE;
    if (version) return printf("skiff version %s\n", SKIFF_VERSION), 0;
    if (at == argc || help) return main_usage(), 0;
    if (!strcmp(argv[at], "help")) {
        if (at + 1 == argc) return main_usage(), 0;
        argv[argc] = NULL;
        at++, help = true;
    }
    if (!strcmp(argv[at], "completion")) return main_completion(at + 1 < argc ? argv[at + 1] : "");
    const struct cmd *cmd = c.cmd = main_find(argc - at, argv + at, &used);
    if (cmd && help) return cmd_help(cmd), 0;
    if (!cmd && (argc - at == 1 || !strcmp(argv[at + 1], "--help") || help) && main_group(argv[at]))
        return 0;
    if (!cmd) {
        static const char LATER[] = "search network compose context manifest buildx plugin config "
                                    "node secret service stack swarm trust checkpoint scout";
        bool two = argc - at > 1 && *argv[at + 1] != '-' && main_is_group(argv[at]);
        AUTO_FREE char *words = str_fmt("%s%s%s", argv[at], two ? " " : "", two ? argv[at + 1] : "");
        AUTO_FREE char *shown = str_printable(words);
        if (word_in(LATER, argv[at], strlen(argv[at])))
            fprintf(stderr, "skiff: '%s' is not supported yet by skiff.\n", shown);
        else
            fprintf(stderr, "skiff: '%s' is not a skiff command.\nSee 'skiff --help'\n", shown);
        return 1;
    }
    if (opt_parse(cmd, argc - at - used, argv + at + used, &c, &help, &e))
        return cli_error(&c, &e), EXIT_ENGINE;
    if (help) return cmd_help(cmd), 0;
    if (c.nargs < cmd->min || (cmd->max >= 0 && c.nargs > cmd->max)) {
        if (!cmd->max) {
            fprintf(stderr, "skiff: \"skiff %s\" accepts no arguments.\nSee 'skiff %s --help'.\n",
                    cmd->path, cmd->alias ? cmd->alias : cmd->path);
            return 1;
        }
        fprintf(stderr,
                "skiff: \"skiff %s\" requires %s%d argument%s.\nSee 'skiff %s --help'.\n\nUsage:  "
                "skiff %s %s\n\n%s\n",
                cmd->path,
                cmd->min == cmd->max ? "exactly "
                : c.nargs < cmd->min ? "at least "
                                     : "at most ",
                c.nargs < cmd->min ? cmd->min : cmd->max,
                (c.nargs < cmd->min ? cmd->min : cmd->max) == 1 ? "" : "s",
                cmd->alias ? cmd->alias : cmd->path, cmd->alias ? cmd->alias : cmd->path,
                cmd->usage, cmd->summary);
        return cmd->fail == EXIT_ENGINE ? EXIT_ENGINE : 1;
    }
    int rc = cmd->run(&c, &e);
    if (rc < 0) {
        cli_error(&c, &e);
        rc = e.status ? e.status : cmd->fail;
    }
    if ((fflush(stdout) || ferror(stdout)) && !rc) {
        err_set(&e, errno, "write to standard output");
        cli_error(&c, &e);
        rc = cmd->fail;
    }
    json_decref(c.opts);
    free(c.args);
    return rc;
}
#endif /* SKIFF_NO_MAIN */
/* }==== 27 main */
