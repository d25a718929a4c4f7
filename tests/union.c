/* A model check of a file system, run by test_union.py inside a container: random operations go to
 * a tree of the container (A) and to the same tree in a plain directory (B), one after the other,
 * and every result is compared; then both trees are, whole.
 *
 *   union build SPEC BLOB B            makes B after SPEC, and B.state, the inodes of its directories
 *   union run A B SEED SECONDS FLAGS   operations; on a difference: the last of them, exit code 1
 *   union check A B FLAGS              compares the trees only
 *   union OTHER ...                    the single programs at the end of this file
 *
 * Allowed is what the kernel's overlay does too: EXDEV for renaming a directory of the image, nlink
 * of directories, inode numbers. FLAGS: m many ids, i inode numbers
 * are as they should: a listing's are the files', hard links' are equal. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t u64;
enum { SLOTS = 12, TAIL = 400, BUF = 1 << 20, PAST = 1500000000 };

static const char *A, *B;
static u64 seed, rng_state;
static bool many, d_ino, hard;
static char tail[TAIL][1500];
static unsigned long ops;
static char *buf_a, *buf_b, *noise;

static void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
static void die(const char *format, ...) {
    va_list v;
    printf("DIFFERENCE seed %llu operation %lu: ", (unsigned long long)seed, ops);
    va_start(v, format);
    vprintf(format, v);
    va_end(v);
    printf("\nthe last operations:\n");
    for (unsigned long i = ops > TAIL ? ops - TAIL + 1 : 1; i <= ops; i++)
        printf("%lu %s\n", i, tail[i % TAIL]);
    fflush(stdout);
    _exit(1);
}

static void on_signal(int s) {
    die("signal %d", s);
}

static u64 rnd(u64 n) {
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return n ? (rng_state * 0x2545f4914f6cdd1dull >> 11) % n : 0;
}

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...) {
    va_list v;
    va_start(v, format);
    vsnprintf(tail[++ops % TAIL], sizeof tail[0], format, v);
    va_end(v);
}

static void add(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void add(const char *format, ...) {
    va_list v;
    char *t = tail[ops % TAIL];
    size_t n = strlen(t);
    va_start(v, format);
    vsnprintf(t + n, sizeof tail[0] - n, format, v);
    va_end(v);
}

static FILE *trace;

/* Both results of an operation; true where it worked. */
static bool same(long a, int ea, long b, int eb) {
    if (a < 0) add(" = %s", strerrorname_np(ea));
    else add(" = %ld", a);
    if (a != b || (a < 0 && ea != eb))
        die("%s: got %ld %s, expected %ld %s", tail[ops % TAIL], a, a < 0 ? strerrorname_np(ea) : "", b,
            b < 0 ? strerrorname_np(eb) : "");
    if (trace) fprintf(trace, "%lu %s\n", ops, tail[ops % TAIL]), fflush(trace);
    return a >= 0;
}

/* BOTH(call): the same call on a and on b. */
#define BOTH(call_a, call_b)                                                                        \
    ({                                                                                              \
        errno = 0;                                                                                  \
        long ra_ = (call_a);                                                                        \
        int ea_ = errno;                                                                            \
        errno = 0;                                                                                  \
        long rb_ = (call_b);                                                                        \
        same(ra_, ea_, rb_, errno);                                                                 \
    })

/* ---- the paths that are known ---- */
struct path {
    char *name; /* relative, "" is the root */
    bool dir;
};
static struct path *paths;
static size_t npaths, cpaths;

static void path_add(const char *name, bool dir) {
    if (npaths == cpaths) paths = realloc(paths, (cpaths = cpaths * 2 + 256) * sizeof *paths);
    paths[npaths++] = (struct path){ strdup(name), dir };
}

struct pair {
    char rel[PATH_MAX], a[2 * PATH_MAX], b[2 * PATH_MAX];
};

static struct pair pair_of(const char *rel) {
    static struct pair ring[4];
    static int k;
    struct pair *p = &ring[k++ % 4];
    snprintf(p->rel, sizeof p->rel, "%s", rel);
    snprintf(p->a, sizeof p->a, "%s%s%s", A, *rel ? "/" : "", rel);
    snprintf(p->b, sizeof p->b, "%s%s%s", B, *rel ? "/" : "", rel);
    return *p;
}

static struct pair some_path(void) { return pair_of(paths[rnd(npaths)].name); }

static struct pair some_dir(void) {
    for (int i = 0; i < 200; i++) {
        struct path *p = &paths[rnd(npaths)];
        if (p->dir) return pair_of(p->name);
    }
    return pair_of("");
}

static struct pair some_file(void) {
    for (int i = 0; i < 200; i++) {
        struct path *p = &paths[rnd(npaths)];
        if (!p->dir) return pair_of(p->name);
    }
    return pair_of("nothing");
}

/* A name that perhaps is not there yet. */
static struct pair new_path(void) {
    char name[300], full[PATH_MAX];
    u64 k = rnd(100);
    if (k < 80) snprintf(name, sizeof name, "n%llu", (unsigned long long)rnd(25));
    else if (k < 90) {
        memset(name, 'L', 255);
        snprintf(name + 254, 2, "%llu", (unsigned long long)rnd(4));
    } else if (k < 97) snprintf(name, sizeof name, "o d\n\xff\\%llu", (unsigned long long)rnd(3));
    else {
        memset(name, 'M', 256);
        name[256] = 0;
    }
    struct pair d = some_dir();
    if (strlen(d.rel) > 2500) return pair_of(name);
    snprintf(full, sizeof full, "%s%s%s", d.rel, *d.rel ? "/" : "", name);
    return pair_of(full);
}

static struct pair any_path(void) { return rnd(3) ? some_path() : new_path(); }

static const char *shown(const char *rel) {
    static char ring[4][PATH_MAX];
    static int k;
    char *s = ring[k++ % 4];
    size_t n = strlen(rel), w = 0;
    for (size_t i = 0; i < n && w < 300; i++) {
        size_t run = 1;
        while (i + run < n && rel[i + run] == rel[i]) run++;
        if (run > 20) {
            w += (size_t)snprintf(s + w, 16, "%c{%zu}", rel[i], run);
            i += run - 1;
        } else s[w++] = rel[i] < 32 ? '?' : rel[i];
    }
    s[w] = 0;
    return s;
}

/* ---- directories of the image: their inode numbers in B ---- */
static u64 lower_dirs[65536];

static void lower_put(u64 ino) {
    u64 i = ino * 0x9e3779b97f4a7c15ull >> 48;
    while (lower_dirs[i] > 1 && lower_dirs[i] != ino) i = (i + 1) & 65535;
    lower_dirs[i] = ino;
}

static u64 *lower_find(u64 ino) {
    u64 i = ino * 0x9e3779b97f4a7c15ull >> 48;
    while (lower_dirs[i] && lower_dirs[i] != ino) i = (i + 1) & 65535;
    return lower_dirs[i] ? &lower_dirs[i] : NULL;
}

static bool is_lower_dir(const char *b) {
    struct stat st;
    return !lstat(b, &st) && S_ISDIR(st.st_mode) && lower_find(st.st_ino);
}

static void lower_gone(u64 ino) {
    u64 *p = lower_find(ino);
    if (p) *p = 1;
}

static void state_write(void) {
    char name[PATH_MAX];
    snprintf(name, sizeof name, "%s.state", B);
    FILE *f = fopen(name, "w");
    for (size_t i = 0; f && i < 65536; i++)
        if (lower_dirs[i] > 1) fprintf(f, "%llu\n", (unsigned long long)lower_dirs[i]);
    if (f) fclose(f);
}

static void state_read(void) {
    char name[PATH_MAX];
    unsigned long long ino;
    snprintf(name, sizeof name, "%s.state", B);
    FILE *f = fopen(name, "r");
    while (f && fscanf(f, "%llu", &ino) == 1) lower_put(ino);
    if (f) fclose(f);
}

/* ---- comparing ---- */
static void same_stat(const char *what, const struct stat *a, const struct stat *b) {
    char text[200] = "";
#define DIFFERS(field)                                                                              \
    if (!*text && a->field != b->field)                                                                       \
        snprintf(text, sizeof text, "%s is %#llx, expected %#llx", #field,                          \
                 (unsigned long long)a->field, (unsigned long long)b->field);
    DIFFERS(st_mode)
    DIFFERS(st_uid)
    DIFFERS(st_gid)
    if (!S_ISDIR(b->st_mode)) {
        DIFFERS(st_size)
        DIFFERS(st_nlink)
        DIFFERS(st_rdev)
    }
    /* a time that was set is that time; where it is now, it is now in both */
    if (b->st_mtim.tv_sec < PAST) {
        DIFFERS(st_mtim.tv_nsec)
        DIFFERS(st_mtim.tv_sec)
    } else if (a->st_mtim.tv_sec < PAST)
        snprintf(text, sizeof text, "mtime is %lld, expected now", (long long)a->st_mtim.tv_sec);
    if (*text) die("%s: %s", shown(what), text);
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

struct names {
    char **v; /* the first byte is the type */
    size_t n;
};

static struct names names_of(const char *dir, bool check_ino) {
    struct names l = { NULL, 0 };
    DIR *d = opendir(dir);
    struct dirent *e;
    struct stat st;
    while (d && (e = readdir(d))) {
        char text[300];
        if (check_ino && strcmp(e->d_name, "..") && !fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) &&
            st.st_ino != e->d_ino)
            die("%s/%s: st_ino %llu, in the listing %llu", shown(dir), shown(e->d_name),
                (unsigned long long)st.st_ino, (unsigned long long)e->d_ino);
        snprintf(text, sizeof text, "%s%c", e->d_name, e->d_type + 'A');
        l.v = realloc(l.v, (l.n + 1) * sizeof *l.v);
        l.v[l.n++] = strdup(text);
    }
    if (d) closedir(d);
    if (l.n) qsort(l.v, l.n, sizeof *l.v, by_name);
    return l;
}

static void names_free(struct names *l) {
    for (size_t i = 0; i < l->n; i++) free(l->v[i]);
    free(l->v);
}

static struct names same_names(struct pair p) {
    struct names a = names_of(p.a, d_ino), b = names_of(p.b, false);
    for (size_t i = 0; i < a.n || i < b.n; i++) {
        const char *x = i < a.n ? a.v[i] : "", *y = i < b.n ? b.v[i] : "";
        if (strcmp(x, y)) die("names in %s: got %s, expected %s", shown(p.rel), shown(x), shown(y));
    }
    names_free(&a);
    return b;
}

static void same_fds(const char *what, int a, int b) {
    for (off_t off = 0;;) {
        ssize_t x = pread(a, buf_a, BUF, off);
        int no = errno;
        ssize_t y = pread(b, buf_b, BUF, off);
        if (x != y) die("%s: reading at %lld gives %zd (%s), expected %zd", shown(what), (long long)off, x, x < 0 ? strerrorname_np(no) : "", y);
        if (x <= 0) return;
        if (memcmp(buf_a, buf_b, (size_t)x)) {
            ssize_t i = 0;
            while (buf_a[i] == buf_b[i]) i++;
            die("%s: byte %lld is %d, expected %d", shown(what), (long long)(off + i), buf_a[i], buf_b[i]);
        }
        off += x;
    }
}

static void same_file(struct pair p) {
    int a = open(p.a, O_RDONLY | O_NONBLOCK), ea = errno, b = open(p.b, O_RDONLY | O_NONBLOCK);
    if ((a < 0) != (b < 0)) die("%s: open gives %s, in the plain tree %s", shown(p.rel), a < 0 ? strerrorname_np(ea) : "0", b < 0 ? strerrorname_np(errno) : "0");
    if (a < 0) return;
    same_fds(p.rel, a, b);
    close(a);
    close(b);
}

static size_t xattr_text(const char *path, char *out, size_t size) {
    char list[4096], value[4096], *v[64];
    size_t n = 0, used = 0;
    ssize_t k = llistxattr(path, list, sizeof list);
    for (ssize_t i = 0; i < k && n < 64; i += (ssize_t)strlen(list + i) + 1)
        if (!strncmp(list + i, "user.", 5) || !strncmp(list + i, "system.", 7)) v[n++] = list + i;
    if (n) qsort(v, n, sizeof *v, by_name);
    for (size_t i = 0; i < n; i++) {
        ssize_t len = lgetxattr(path, v[i], value, sizeof value);
        used += (size_t)snprintf(out + used, size - used, "%s %zd:", v[i], len);
        for (ssize_t j = 0; j < len && used < size; j++) used += (size_t)snprintf(out + used, size - used, "%02x", (unsigned char)value[j]);
        used += (size_t)snprintf(out + used, size - used, "\n");
    }
    out[used] = 0;
    return n;
}

struct link_seen {
    u64 a, b;
} *links;
static size_t nlinks;

static void same_links(const char *what, const struct stat *a, const struct stat *b) {
    if (!hard || b->st_nlink < 2 || S_ISDIR(b->st_mode)) return;
    for (size_t i = 0; i < nlinks; i++) {
        if (links[i].a == a->st_ino && links[i].b == b->st_ino) return;
        if (links[i].a == a->st_ino || links[i].b == b->st_ino) die("%s: not linked to what it is in the plain tree", shown(what));
    }
    links = realloc(links, (nlinks + 1) * sizeof *links);
    links[nlinks++] = (struct link_seen){ a->st_ino, b->st_ino };
}

static unsigned long compared;

static void same_tree(const char *rel) {
    static char x[1 << 16], y[1 << 16];
    struct pair p = pair_of(rel);
    struct stat a, b;
    compared++;
    if (lstat(p.a, &a)) die("%s: lstat: %s", shown(rel), strerrorname_np(errno));
    if (lstat(p.b, &b)) die("%s: lstat in the plain tree: %s", shown(rel), strerrorname_np(errno));
    same_stat(rel, &a, &b);
    same_links(rel, &a, &b);
    if (!S_ISLNK(b.st_mode)) {
        xattr_text(p.a, x, sizeof x);
        xattr_text(p.b, y, sizeof y);
        if (strcmp(x, y)) die("%s: xattrs are %s, expected %s", shown(rel), x, y);
    }
    if (S_ISREG(b.st_mode)) same_file(p);
    else if (S_ISLNK(b.st_mode)) {
        ssize_t n = readlink(p.a, x, sizeof x - 1), m = readlink(p.b, y, sizeof y - 1);
        if (n != m || (n > 0 && memcmp(x, y, (size_t)n))) die("%s: a link of another target", shown(rel));
    } else if (S_ISDIR(b.st_mode)) {
        struct names l = same_names(p);
        for (size_t i = 0; i < l.n; i++) {
            char sub[PATH_MAX], *name = l.v[i];
            name[strlen(name) - 1] = 0;
            if (!strcmp(name, ".") || !strcmp(name, "..")) continue;
            snprintf(sub, sizeof sub, "%s%s%s", rel, *rel ? "/" : "", name);
            struct stat st;
            struct pair q = pair_of(sub);
            path_add(sub, !lstat(q.b, &st) && S_ISDIR(st.st_mode));
            same_tree(sub);
        }
        names_free(&l);
    }
}

static void same_all(void) {
    nlinks = 0;
    for (size_t i = 0; i < npaths; i++) free(paths[i].name);
    npaths = 0;
    path_add("", true);
    same_tree("");
}

/* ---- operations ---- */
static struct slot {
    int a, b;
    bool write, read;
    char what[400];
} slots[SLOTS];

static u64 some_size(void) {
    switch (rnd(10)) {
    case 0: return rnd(600000);
    case 1: return rnd(100) * 4096;
    case 2: return 0;
    case 3: return rnd(100000);
    default: return rnd(5000);
    }
}

static struct slot *some_slot(void) {
    for (int i = 0; i < 20; i++) {
        struct slot *s = &slots[rnd(SLOTS)];
        if (s->a >= 0) return s;
    }
    return NULL;
}

static void slot_close(struct slot *s) {
    if (s->a < 0) return;
    say("close %s", s->what);
    BOTH(close(s->a), close(s->b));
    s->a = -1;
}

/* Keeps a pair of descriptors of a regular file. */
static void slot_keep(int a, int b, int flags, const char *what) {
    struct slot *s = &slots[rnd(SLOTS)];
    struct stat st;
    if (fstat(b, &st) || !S_ISREG(st.st_mode)) {
        close(a);
        close(b);
        return;
    }
    slot_close(s);
    s->a = a;
    s->b = b;
    s->write = (flags & O_ACCMODE) != O_RDONLY;
    s->read = (flags & O_ACCMODE) != O_WRONLY;
    snprintf(s->what, sizeof s->what, "[%d %.380s]", (int)(s - slots), shown(what));
}

static void op_open(void) {
    static const int MORE[] = { O_CREAT, O_CREAT, O_EXCL | O_CREAT, O_TRUNC, O_APPEND, O_NOFOLLOW, O_DIRECTORY };
    int flags = (int)rnd(3) | O_NONBLOCK | O_CLOEXEC;
    mode_t mode = rnd(3) ? 0644 : rnd(2) ? 0444 : 0600;
    for (size_t i = 0; i < sizeof MORE / sizeof *MORE; i++)
        if (!rnd(i < 5 ? 4 : 30)) flags |= MORE[i];
    struct pair p = flags & O_CREAT ? any_path() : some_file();
    say("open %s flags %#o mode %o", shown(p.rel), (unsigned)flags, (unsigned)mode);
    errno = 0;
    int a = open(p.a, flags, mode), ea = errno, b = open(p.b, flags, mode), eb = errno;
    same(a < 0 ? -1 : 0, ea, b < 0 ? -1 : 0, eb);
    if (a < 0) return;
    if (flags & O_CREAT) path_add(p.rel, false);
    slot_keep(a, b, flags, p.rel);
}

static void op_write(void) {
    struct slot *s = some_slot();
    if (!s) return;
    u64 off = some_size(), n = some_size();
    const char *data = noise + rnd(BUF);
    if (!rnd(5)) {
        say("write %s %llu to its end", s->what, (unsigned long long)n);
        lseek(s->a, 0, SEEK_END), lseek(s->b, 0, SEEK_END);
        BOTH(write(s->a, data, n), write(s->b, data, n));
    } else {
        say("pwrite %s at %llu, %llu", s->what, (unsigned long long)off, (unsigned long long)n);
        BOTH(pwrite(s->a, data, n, (off_t)off), pwrite(s->b, data, n, (off_t)off));
    }
}

static void op_read(void) {
    struct slot *s = some_slot();
    if (!s) return;
    u64 off = some_size(), n = some_size();
    say("pread %s at %llu, %llu", s->what, (unsigned long long)off, (unsigned long long)n);
    memset(buf_a, 0, n);
    memset(buf_b, 0, n);
    BOTH(pread(s->a, buf_a, n, (off_t)off), pread(s->b, buf_b, n, (off_t)off));
    if (memcmp(buf_a, buf_b, n)) {
        u64 i = 0;
        while (buf_a[i] == buf_b[i]) i++;
        die("%s: byte %llu is %d, expected %d", tail[ops % TAIL], (unsigned long long)(off + i), buf_a[i], buf_b[i]);
    }
}

static void op_fd_stat(void) {
    struct slot *s = some_slot();
    struct stat a, b;
    if (!s) return;
    say("fstat %s", s->what);
    if (BOTH(fstat(s->a, &a), fstat(s->b, &b))) same_stat(s->what, &a, &b);
    if (!rnd(4) && s->read) same_fds(s->what, s->a, s->b);
}

static void op_fd_truncate(void) {
    struct slot *s = some_slot();
    if (!s) return;
    u64 n = some_size();
    struct stat st;
    if (!fstat(s->b, &st) && st.st_size == (off_t)n) return; /* whether that is a change, file systems disagree */
    say("ftruncate %s %llu", s->what, (unsigned long long)n);
    BOTH(ftruncate(s->a, (off_t)n), ftruncate(s->b, (off_t)n));
}

static void op_fsync(void) {
    struct slot *s = some_slot();
    if (!s) return;
    say("fsync %s", s->what);
    if (rnd(2)) BOTH(fsync(s->a), fsync(s->b));
    else BOTH(fdatasync(s->a), fdatasync(s->b));
}

static void op_fallocate(void) {
    static const int MODES[] = { 0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                 FALLOC_FL_ZERO_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE };
    struct slot *s = some_slot();
    if (!s) return;
    int mode = MODES[rnd(6)];
    u64 off = some_size(), n = some_size();
    say("fallocate %s mode %d at %llu, %llu", s->what, mode, (unsigned long long)off, (unsigned long long)n);
    BOTH(fallocate(s->a, mode, (off_t)off, (off_t)n), fallocate(s->b, mode, (off_t)off, (off_t)n));
}

/* Holes may be elsewhere, but what is called a hole is zero, and data is not missed. */
static void op_seek(void) {
    struct slot *s = some_slot();
    struct stat st;
    if (!s || fstat(s->b, &st) || !s->read) return;
    off_t off = (off_t)rnd((u64)st.st_size + 10);
    say("seek %s data from %lld of %lld", s->what, (long long)off, (long long)st.st_size);
    errno = 0;
    off_t d = lseek(s->a, off, SEEK_DATA), end = d < 0 ? st.st_size : d;
    if (d < 0 && errno != ENXIO) die("%s: %s", tail[ops % TAIL], strerrorname_np(errno));
    if (d >= 0 && (d < off || d >= st.st_size)) die("%s: %lld", tail[ops % TAIL], (long long)d);
    for (off_t at = off; at < end;) {
        ssize_t n = pread(s->b, buf_b, end - at < BUF ? (size_t)(end - at) : BUF, at);
        if (n <= 0) break;
        for (ssize_t i = 0; i < n; i++)
            if (buf_b[i]) die("%s = %lld, but there is data at %lld", tail[ops % TAIL], (long long)d, (long long)(at + i));
        at += n;
    }
    off_t h = lseek(s->a, off, SEEK_HOLE);
    if (off >= st.st_size ? h >= 0 || errno != ENXIO : h < off || h > st.st_size)
        die("%s: the hole is at %lld", tail[ops % TAIL], (long long)h);
    if (h >= 0 && h < st.st_size && pread(s->b, buf_b, 1, h) == 1 && buf_b[0])
        die("%s: the hole at %lld has data", tail[ops % TAIL], (long long)h);
}

static void op_mmap(void) {
    struct slot *s = some_slot();
    struct stat st;
    if (!s || !s->write || !s->read || fstat(s->b, &st) || !st.st_size) return;
    size_t size = (size_t)st.st_size, off = rnd(size), n = rnd(size - off) % 20000 + 1;
    if (off + n > size) n = size - off;
    u64 at = rnd(BUF);
    bool sync = rnd(2);
    say("mmap %s, write at %zu, %zu%s", s->what, off, n, sync ? ", msync" : "");
    char *a = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, s->a, 0);
    int ea = errno;
    char *b = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, s->b, 0);
    if (!same(a == MAP_FAILED ? -1 : 0, ea, b == MAP_FAILED ? -1 : 0, errno)) return;
    if (memcmp(a + off, b + off, n)) die("%s: the mapping has other contents", tail[ops % TAIL]);
    memcpy(a + off, noise + at, n);
    memcpy(b + off, noise + at, n);
    if (sync) msync(a, size, MS_SYNC);
    munmap(a, size);
    munmap(b, size);
}

static void op_copy_range(void) {
    struct slot *s = some_slot(), *t = some_slot();
    if (!s || !t) return;
    loff_t a1 = (loff_t)some_size(), b1 = a1, a2 = (loff_t)some_size(), b2 = a2;
    size_t n = some_size();
    say("copy_file_range %s at %lld to %s at %lld, %zu", s->what, (long long)a1, t->what, (long long)a2, n);
    errno = 0;
    ssize_t x = copy_file_range(s->a, &a1, t->a, &a2, n, 0);
    int ex = errno;
    if (x < 0) {
        same(x, ex, copy_file_range(s->b, &b1, t->b, &b2, n, 0), errno);
        return;
    }
    ssize_t y = copy_file_range(s->b, &b1, t->b, &b2, (size_t)x ? (size_t)x : n, 0); /* it may copy less than it was told */
    same(x, ex, y, errno);
}

static void op_mkdir(void) {
    struct pair p = new_path();
    mode_t mode = rnd(4) ? 0755 : rnd(2) ? 02775 : 01777;
    say("mkdir %s %o", shown(p.rel), (unsigned)mode);
    if (BOTH(mkdir(p.a, mode), mkdir(p.b, mode))) path_add(p.rel, true);
}

static void op_rmdir(void) {
    struct pair p = rnd(4) ? some_dir() : some_path();
    struct stat st;
    if (!*p.rel) return;
    bool had = !lstat(p.b, &st);
    say("rmdir %s", shown(p.rel));
    if (BOTH(rmdir(p.a), rmdir(p.b)) && had) lower_gone(st.st_ino);
}

static void op_unlink(void) {
    struct pair p = rnd(8) ? some_file() : any_path();
    if (!*p.rel) return;
    say("unlink %s", shown(p.rel));
    BOTH(unlink(p.a), unlink(p.b));
}

/* A whole directory emptied, so that rmdir has something to do. */
static void op_clear(void) {
    struct pair p = some_dir();
    DIR *d = opendir(p.b);
    struct dirent *e;
    struct stat st;
    if (!d || rnd(3)) {
        if (d) closedir(d);
        return;
    }
    while ((e = readdir(d))) {
        char sub[PATH_MAX];
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        snprintf(sub, sizeof sub, "%s%s%s", p.rel, *p.rel ? "/" : "", e->d_name);
        struct pair q = pair_of(sub);
        bool dir = !lstat(q.b, &st) && S_ISDIR(st.st_mode);
        say("%s %s", dir ? "rmdir" : "unlink", shown(sub));
        if (dir ? BOTH(rmdir(q.a), rmdir(q.b)) : BOTH(unlink(q.a), unlink(q.b)))
            if (dir) lower_gone(st.st_ino);
    }
    closedir(d);
    if (*p.rel && !lstat(p.b, &st)) {
        say("rmdir %s", shown(p.rel));
        if (BOTH(rmdir(p.a), rmdir(p.b))) lower_gone(st.st_ino);
    }
}

static int rename2(const char *a, const char *b, unsigned flags) { return (int)syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, flags); }

static void op_rename(void) {
    struct pair p = some_path(), q = any_path();
    unsigned flags = rnd(3) ? 0 : rnd(2) ? 1 : rnd(10) ? 2 : 3;
    struct stat sp, sq;
    if (!*p.rel || !*q.rel) return;
    bool lower = is_lower_dir(p.b) || ((flags & 2) && is_lower_dir(q.b));
    bool hp = !lstat(p.b, &sp), hq = !lstat(q.b, &sq);
    say("rename %s to %s flags %u", shown(p.rel), shown(q.rel), flags);
    errno = 0;
    int a = rename2(p.a, q.a, flags), ea = errno;
    if (a && ea == EXDEV && lower) {
        add(" = EXDEV");
        return;
    }
    int b = rename2(p.b, q.b, flags);
    if (same(a, ea, b, errno)) {
        if (lower && !(hp && hq && sp.st_ino == sq.st_ino)) die("%s: a directory of the image was moved", tail[ops % TAIL]);
        if (!(flags & 2) && hp && hq && S_ISDIR(sq.st_mode) && sp.st_ino != sq.st_ino) lower_gone(sq.st_ino);
        path_add(q.rel, hp && S_ISDIR(sp.st_mode));
    }
}

static void op_link(void) {
    struct pair p = rnd(10) ? some_file() : any_path(), q = new_path();
    if (!rnd(5)) q = any_path();
    int flags = rnd(4) ? 0 : AT_SYMLINK_FOLLOW;
    say("link %s as %s flags %d", shown(p.rel), shown(q.rel), flags);
    if (BOTH(linkat(AT_FDCWD, p.a, AT_FDCWD, q.a, flags), linkat(AT_FDCWD, p.b, AT_FDCWD, q.b, flags))) path_add(q.rel, false);
}

static void op_symlink(void) {
    static const char *const TO[] = { "n1", "../n2", ".", "nowhere", "n3/n4", "a/b" };
    char text[600];
    struct pair p = any_path();
    snprintf(text, sizeof text, "%s", TO[rnd(6)]);
    if (!rnd(5)) memset(text, 'x', 500), text[500] = 0;
    say("symlink %s -> %.20s", shown(p.rel), text);
    if (BOTH(symlink(text, p.a), symlink(text, p.b))) path_add(p.rel, false);
}

static void op_mknod(void) {
    static const mode_t KIND[] = { S_IFREG, S_IFIFO, S_IFSOCK, S_IFCHR };
    struct pair p = any_path();
    mode_t mode = KIND[rnd(4)] | (rnd(2) ? 0644 : 0600);
    dev_t dev = S_ISCHR(mode) ? makedev(1, 3) : 0;
    say("mknod %s %o", shown(p.rel), (unsigned)mode);
    if (BOTH(mknod(p.a, mode, dev), mknod(p.b, mode, dev))) path_add(p.rel, false);
}

static mode_t some_mode(void) {
    static const mode_t MODES[] = { 0644, 0755, 0600, 0444, 04755, 02755, 06711, 0777, 01777, 0700, 02710 };
    return MODES[rnd(11)];
}

static void op_chmod(void) {
    mode_t mode = some_mode();
    struct slot *s = rnd(4) ? NULL : some_slot();
    if (s) {
        say("fchmod %s %o", s->what, (unsigned)mode);
        BOTH(fchmod(s->a, mode), fchmod(s->b, mode));
        return;
    }
    struct pair p = some_path();
    say("chmod %s %o", shown(p.rel), (unsigned)mode);
    BOTH(chmod(p.a, mode), chmod(p.b, mode));
}

static void op_chown(void) {
    static const int IDS[] = { 0, 0, 1, 1000, 65534, -1 };
    int uid = IDS[rnd(6)], gid = IDS[rnd(uid == -1 ? 5 : 6)];
    struct slot *s = rnd(4) ? NULL : some_slot();
    if (s) {
        say("fchown %s %d %d", s->what, uid, gid);
        BOTH(fchown(s->a, (uid_t)uid, (gid_t)gid), fchown(s->b, (uid_t)uid, (gid_t)gid));
        return;
    }
    struct pair p = some_path();
    say("lchown %s %d %d", shown(p.rel), uid, gid);
    BOTH(lchown(p.a, (uid_t)uid, (gid_t)gid), lchown(p.b, (uid_t)uid, (gid_t)gid));
}

static void op_utimens(void) {
    struct timespec t[2] = { { 1000000000 + (time_t)rnd(400000000), (long)rnd(1000000000) }, { 1000000000 + (time_t)rnd(400000000), (long)rnd(1000000000) } };
    if (!rnd(6)) t[1].tv_nsec = UTIME_OMIT;
    if (!rnd(6)) t[0].tv_nsec = UTIME_OMIT;
    if (!rnd(10)) t[1].tv_nsec = UTIME_NOW;
    struct slot *s = rnd(4) ? NULL : some_slot();
    if (s) {
        say("futimens %s %lld", s->what, (long long)t[1].tv_sec);
        BOTH(futimens(s->a, t), futimens(s->b, t));
        return;
    }
    struct pair p = some_path();
    say("utimens %s %lld.%ld", shown(p.rel), (long long)t[1].tv_sec, t[1].tv_nsec);
    BOTH(utimensat(AT_FDCWD, p.a, t, AT_SYMLINK_NOFOLLOW), utimensat(AT_FDCWD, p.b, t, AT_SYMLINK_NOFOLLOW));
}

static void op_xattr(void) {
    static const char *const NAME[] = { "user.a", "user.b", "user.long.name.of.an.attribute", "user.d", "trusted.x", "user.a" };
    struct pair p = some_path();
    const char *name = NAME[rnd(rnd(8) ? 4 : 6)];
    size_t n = rnd(3) ? rnd(40) : rnd(200);
    const char *value = noise + rnd(BUF);
    struct slot *s = rnd(5) ? NULL : some_slot();
    switch (rnd(5)) {
    case 0:
    case 1: {
        int flags = rnd(4) ? 0 : rnd(2) ? XATTR_CREATE : XATTR_REPLACE;
        if (s) {
            say("fsetxattr %s %s %zu flags %d", s->what, name, n, flags);
            BOTH(fsetxattr(s->a, name, value, n, flags), fsetxattr(s->b, name, value, n, flags));
        } else {
            say("lsetxattr %s %s %zu flags %d", shown(p.rel), name, n, flags);
            BOTH(lsetxattr(p.a, name, value, n, flags), lsetxattr(p.b, name, value, n, flags));
        }
        break;
    }
    case 2: {
        size_t room = rnd(3) ? 200 : rnd(30);
        memset(buf_a, 0, 200), memset(buf_b, 0, 200);
        if (s) {
            say("fgetxattr %s %s into %zu", s->what, name, room);
            BOTH(fgetxattr(s->a, name, buf_a, room), fgetxattr(s->b, name, buf_b, room));
        } else {
            say("lgetxattr %s %s into %zu", shown(p.rel), name, room);
            BOTH(lgetxattr(p.a, name, buf_a, room), lgetxattr(p.b, name, buf_b, room));
        }
        if (memcmp(buf_a, buf_b, 200)) die("%s: another value", tail[ops % TAIL]);
        break;
    }
    case 3:
        say("lremovexattr %s %s", shown(p.rel), name);
        BOTH(lremovexattr(p.a, name), lremovexattr(p.b, name));
        break;
    default: {
        static char x[1 << 16], y[1 << 16];
        say("listxattr %s", shown(p.rel));
        BOTH((long)xattr_text(p.a, x, sizeof x), (long)xattr_text(p.b, y, sizeof y));
        if (strcmp(x, y)) die("%s: %s, expected %s", tail[ops % TAIL], x, y);
    }
    }
}

/* An access control list: the mode follows it, and what is made in a directory inherits its own. */
static void op_acl(void) {
    struct {
        uint32_t version;
        struct {
            uint16_t tag, perm;
            uint32_t id;
        } e[5];
    } acl = { 2, { { 1, (uint16_t)rnd(8), ~0u }, { 2, (uint16_t)rnd(8), many ? (rnd(2) ? 1000u : 1u) : 0 }, { 4, (uint16_t)rnd(8), ~0u }, { 16, (uint16_t)rnd(8), ~0u }, { 32, (uint16_t)rnd(8), ~0u } } };
    bool def = rnd(2);
    struct pair p = def ? some_dir() : some_path();
    const char *name = def ? "system.posix_acl_default" : "system.posix_acl_access";
    if (!rnd(3)) {
        say("remove %s of %s", name, shown(p.rel));
        BOTH(removexattr(p.a, name), removexattr(p.b, name));
    } else {
        say("set %s of %s", name, shown(p.rel));
        BOTH(setxattr(p.a, name, &acl, sizeof acl, 0), setxattr(p.b, name, &acl, sizeof acl, 0));
    }
}

static void op_truncate(void) {
    struct pair p = some_file();
    u64 n = some_size();
    struct stat st;
    if (!stat(p.b, &st) && st.st_size == (off_t)n) return;
    say("truncate %s %llu", shown(p.rel), (unsigned long long)n);
    BOTH(truncate(p.a, (off_t)n), truncate(p.b, (off_t)n));
}

static void op_look(void) {
    struct pair p = any_path();
    struct stat a, b;
    say("look at %s", shown(p.rel));
    if (!BOTH(lstat(p.a, &a), lstat(p.b, &b))) return;
    same_stat(p.rel, &a, &b);
    if (S_ISREG(b.st_mode)) same_file(p);
    if (S_ISDIR(b.st_mode)) {
        struct names l = same_names(p);
        names_free(&l);
    }
    if (S_ISLNK(b.st_mode)) {
        memset(buf_a, 0, 4096), memset(buf_b, 0, 4096);
        BOTH(readlink(p.a, buf_a, 4096), readlink(p.b, buf_b, 4096));
        if (memcmp(buf_a, buf_b, 4096)) die("%s: another target", tail[ops % TAIL]);
    }
    int mode = (int)rnd(8);
    say("access %s %d", shown(p.rel), mode);
    BOTH(access(p.a, mode), access(p.b, mode));
}

static void op_tmpfile(void) {
    struct pair d = some_dir(), p = new_path();
    mode_t mode = rnd(2) ? 0644 : 0600;
    int flags = O_TMPFILE | O_RDWR | O_CLOEXEC;
    say("tmpfile in %s", shown(d.rel));
    errno = 0;
    int a = open(d.a, flags, mode), ea = errno;
    if (a < 0 && ea == EOPNOTSUPP) return;
    int b = open(d.b, flags, mode);
    if (!same(a < 0 ? -1 : 0, ea, b < 0 ? -1 : 0, errno)) return;
    u64 n = some_size();
    say("write to it %llu", (unsigned long long)n);
    BOTH(write(a, noise, n), write(b, noise, n));
    if (rnd(3)) {
        char x[40], y[40];
        snprintf(x, sizeof x, "/proc/self/fd/%d", a);
        snprintf(y, sizeof y, "/proc/self/fd/%d", b);
        say("link it as %s", shown(p.rel));
        if (BOTH(linkat(AT_FDCWD, x, AT_FDCWD, p.a, AT_SYMLINK_FOLLOW), linkat(AT_FDCWD, y, AT_FDCWD, p.b, AT_SYMLINK_FOLLOW))) path_add(p.rel, false);
    }
    slot_keep(a, b, O_RDWR, "tmpfile");
}

/* Reads a listing in small parts while names come and go: what stays is seen once. */
static void op_listing(void) {
    struct pair d = some_dir(), p;
    char parts[600], sub[PATH_MAX], **seen = NULL;
    size_t n = 0;
    struct stat st;
    struct names before = names_of(d.b, false);
    static char changed[8][PATH_MAX];
    int nchanged = 0;
    say("listing %s", shown(d.rel));
    errno = 0;
    int fd = open(d.a, O_RDONLY | O_DIRECTORY | O_CLOEXEC), ea = errno, b = open(d.b, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool ok = same(fd < 0 ? -1 : 0, ea, b < 0 ? -1 : 0, errno);
    if (b >= 0) close(b);
    while (ok) {
        long got = syscall(SYS_getdents64, fd, parts, sizeof parts);
        if (got < 0) die("%s: getdents64: %s", tail[ops % TAIL], strerrorname_np(errno));
        if (!got) break;
        for (long at = 0; at < got;) {
            struct dirent64 *e = (void *)(parts + at);
            at += e->d_reclen;
            seen = realloc(seen, (n + 1) * sizeof *seen);
            seen[n++] = strdup(e->d_name);
        }
        if (nchanged == 8 || before.n < 3) continue;
        if (rnd(2)) {
            const char *name = before.v[rnd(before.n)];
            snprintf(changed[nchanged], PATH_MAX, "%.*s", (int)strlen(name) - 1, name);
            if (!strcmp(changed[nchanged], ".") || !strcmp(changed[nchanged], "..")) continue;
            snprintf(sub, sizeof sub, "%s%s%s", d.rel, *d.rel ? "/" : "", changed[nchanged++]);
            p = pair_of(sub);
            if (!lstat(p.b, &st) && S_ISDIR(st.st_mode)) continue;
            say("unlink %s in between", shown(sub));
            BOTH(unlink(p.a), unlink(p.b));
        } else {
            snprintf(changed[nchanged], PATH_MAX, "n%llu", (unsigned long long)rnd(25));
            snprintf(sub, sizeof sub, "%s%s%s", d.rel, *d.rel ? "/" : "", changed[nchanged++]);
            p = pair_of(sub);
            say("mknod %s in between", shown(sub));
            if (BOTH(mknod(p.a, S_IFREG | 0600, 0), mknod(p.b, S_IFREG | 0600, 0))) path_add(sub, false);
        }
    }
    if (fd >= 0) close(fd);
    for (size_t i = 0; ok && i < before.n; i++) {
        char *name = before.v[i];
        bool skip = false;
        int times = 0;
        name[strlen(name) - 1] = 0;
        for (int k = 0; k < nchanged; k++) skip |= !strcmp(changed[k], name);
        for (size_t k = 0; k < n; k++) times += !strcmp(seen[k], name);
        if (times > 1 || (!times && !skip)) die("a listing of %s in parts had %s %d times", shown(d.rel), shown(name), times);
    }
    names_free(&before);
    for (size_t i = 0; i < n; i++) free(seen[i]);
    free(seen);
}

static const struct {
    void (*run)(void);
    unsigned weight;
} OPS[] = {
    { op_open, 12 },   { op_write, 10 },  { op_read, 6 },    { op_fd_stat, 4 }, { op_fd_truncate, 3 }, { op_fsync, 2 },   { op_fallocate, 3 },
    { op_seek, 3 },    { op_mmap, 4 },    { op_mkdir, 4 },   { op_rmdir, 4 },   { op_unlink, 6 },      { op_clear, 2 },   { op_rename, 12 },
    { op_link, 6 },    { op_symlink, 4 }, { op_mknod, 4 },   { op_chmod, 5 },   { op_chown, 4 },       { op_utimens, 4 }, { op_xattr, 6 },
    { op_truncate, 3 }, { op_look, 8 },   { op_tmpfile, 2 }, { op_listing, 3 }, { op_copy_range, 3 },  { op_acl, 2 },
};

static int run(double seconds, const char *flags) {
    struct timespec t0, t;
    unsigned total = 0;
    bool acl = strchr(flags, 'a');
    for (size_t i = 0; i < sizeof OPS / sizeof *OPS; i++) total += OPS[i].weight;
    state_read();
    same_all();
    for (int i = 0; i < SLOTS; i++) slots[i].a = -1;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    unsigned long next = 300;
    for (;;) {
        unsigned k = (unsigned)rnd(total), i = 0;
        while (k >= OPS[i].weight) k -= OPS[i++].weight;
        if (OPS[i].run == op_acl && !acl) continue;
        bool user = many && !rnd(8);
        umask((mode_t)(rnd(4) ? 022 : rnd(2) ? 077 : 0));
        if (user) setfsgid(1000), setfsuid(1000);
        OPS[i].run();
        if (user) setfsuid(0), setfsgid(0);
        umask(022);
        clock_gettime(CLOCK_MONOTONIC, &t);
        bool last = (double)(t.tv_sec - t0.tv_sec) + 1e-9 * (double)(t.tv_nsec - t0.tv_nsec) > seconds;
        if (ops >= next || last) {
            same_all();
            next = ops + 300;
        }
        if (last) break;
    }
    for (int i = 0; i < SLOTS; i++) slot_close(&slots[i]);
    state_write();
    printf("%lu operations, %lu comparisons, %zu paths\n", ops, compared, npaths);
    return 0;
}

/* ---- the plain tree ---- */
static int build(const char *spec, const char *blob_name) {
    char *line = NULL, *f[16];
    size_t cap = 0;
    FILE *s = fopen(spec, "r");
    int blob = open(blob_name, O_RDONLY);
    struct stat st;
    if (!s || blob < 0 || fstat(blob, &st)) return perror(spec), 1;
    char *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, blob, 0);
    struct late {
        char *path;
        struct timespec t[2];
    } *late = NULL;
    size_t n = 0;
    umask(0);
    while (getline(&line, &cap, s) > 0) {
        int k = 0;
        line[strcspn(line, "\n")] = 0;
        for (char *p = line, *q; k < 16 && (q = strsep(&p, "\t")); k++) f[k] = q;
        char path[2 * PATH_MAX], other[2 * PATH_MAX];
        snprintf(path, sizeof path, "%s%s%s", B, *f[1] ? "/" : "", f[1]);
        int rc = 0;
        if (*f[0] == 'x') {
            rc = lsetxattr(path, f[2], f[3], strlen(f[3]), 0);
            if (rc) return perror(path), 1;
            continue;
        }
        if (*f[0] == 'h') {
            snprintf(other, sizeof other, "%s/%s", B, f[2]);
            if (link(other, path)) return perror(path), 1;
            continue;
        }
        mode_t mode = (mode_t)strtoul(f[2], NULL, 8);
        if (*f[0] == 'd') rc = *f[1] ? mkdir(path, 0700) : 0;
        if (*f[0] == 'l') rc = symlink(f[6], path);
        if (*f[0] == 'p') rc = mkfifo(path, 0600);
        if (*f[0] == 'f') {
            int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
            rc = fd < 0 || ftruncate(fd, atoll(f[6]));
            for (int i = 7; i + 2 < k && !rc; i += 3) /* offset, length, place in the blob */
                rc = pwrite(fd, data + atoll(f[i + 2]), (size_t)atoll(f[i + 1]), atoll(f[i])) != atoll(f[i + 1]);
            close(fd);
        }
        if (rc || lchown(path, (uid_t)atoi(f[3]), (gid_t)atoi(f[4])) || (*f[0] != 'l' && chmod(path, mode))) return perror(path), 1;
        late = realloc(late, (n + 1) * sizeof *late);
        late[n++] = (struct late){ strdup(path), { { atoll(f[5]), 0 }, { atoll(f[5]), 0 } } };
        if (*f[0] == 'd' && !lstat(path, &st)) lower_put(st.st_ino);
    }
    while (n-- > 0)
        if (utimensat(AT_FDCWD, late[n].path, late[n].t, AT_SYMLINK_NOFOLLOW)) return perror(late[n].path), 1;
    state_write();
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    buf_a = malloc(BUF), buf_b = malloc(BUF), noise = malloc(2 * BUF);
    rng_state = 88172645463325252ull;
    for (size_t i = 0; i < 2 * BUF; i++) noise[i] = (char)rnd(256);
    signal(SIGBUS, on_signal);
    signal(SIGSEGV, on_signal);
    if (!strcmp(argv[1], "build") && argc == 5) {
        B = argv[4];
        return build(argv[2], argv[3]);
    }
    A = argv[2], B = argv[3];
    const char *flags = argv[argc - 1];
    many = strchr(flags, 'm'), d_ino = hard = strchr(flags, 'i');
    if (strchr(flags, 't')) {
        char name[PATH_MAX];
        snprintf(name, sizeof name, "%s.trace", B);
        trace = fopen(name, "a");
    }
    if (!strcmp(argv[1], "check")) {
        same_all();
        printf("%zu paths\n", npaths);
        return 0;
    }
    if (strcmp(argv[1], "run") || argc != 7) return 2;
    seed = strtoull(argv[4], NULL, 10);
    rng_state ^= (seed + 1) * 0x9e3779b97f4a7c15ull;
    rnd(1), rnd(1), rnd(1);
    return run(atof(argv[5]), flags);
}
