/* A model check of a file system, run by test_union.py inside a container: random operations go to
 * a tree of the container (A) and to the same tree in a plain directory (B), one after the other,
 * and every result is compared; then both trees are, whole.
 *
 *   union build SPEC BLOB B            makes B after SPEC, and B.state, the inodes of its directories
 *   union run A B SEED SECONDS FLAGS   operations; on a difference: the last of them, exit code 1
 *   union check A B FLAGS              compares the trees only
 *   union OTHER ...                    the single programs at the end of this file
 *
 * FLAGS: m many ids, a access control lists too, t a trace in B.trace, i the tree is served by skiff
 * itself: inode numbers are as they should, a listing's are the files', hard links' are equal; only
 * EXDEV for renaming a directory of the image is allowed, and nlink of directories. Without i the
 * kernel's overlay takes the writes, and what it does by itself is allowed, where it is said below. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <pthread.h>
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
static bool many, exact;
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

/* ---- what is of the image: its inode numbers in B ---- */
static u64 lower[65536];

static void lower_put(u64 ino) {
    u64 i = ino * 0x9e3779b97f4a7c15ull >> 48;
    while (lower[i] > 1 && lower[i] != ino) i = (i + 1) & 65535;
    lower[i] = ino;
}

static u64 *lower_find(u64 ino) {
    u64 i = ino * 0x9e3779b97f4a7c15ull >> 48;
    while (lower[i] && lower[i] != ino) i = (i + 1) & 65535;
    return lower[i] ? &lower[i] : NULL;
}

static bool is_lower(const char *b) {
    struct stat st;
    return !lstat(b, &st) && lower_find(st.st_ino);
}

static bool is_lower_dir(const char *b) {
    struct stat st;
    return !lstat(b, &st) && S_ISDIR(st.st_mode) && lower_find(st.st_ino);
}

/* What had this state before lost a name: its number may be given to something else. */
static void lower_gone(const struct stat *st) {
    u64 *p = S_ISDIR(st->st_mode) || st->st_nlink < 2 ? lower_find(st->st_ino) : NULL;
    if (p) *p = 1;
}

static void state_write(void) {
    char name[PATH_MAX];
    snprintf(name, sizeof name, "%s.state", B);
    FILE *f = fopen(name, "w");
    for (size_t i = 0; f && i < 65536; i++)
        if (lower[i] > 1) fprintf(f, "%llu\n", (unsigned long long)lower[i]);
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
    struct names a = names_of(p.a, exact), b = names_of(p.b, false);
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
    if (!exact || b->st_nlink < 2 || S_ISDIR(b->st_mode)) return;
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
    bool image; /* opened as a file of the image, perhaps not copied up since */
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
    s->image = !s->write && lower_find(st.st_ino);
    snprintf(s->what, sizeof s->what, "[%d %.380s]", (int)(s - slots), shown(what));
}

/* The kernel's overlay cannot copy up what was unlinked: a file of the image that is still open
 * keeps its link count, and changes through the descriptor are EEXIST, or ENOENT where its directory
 * is gone too. */
static bool lost(const struct slot *s) {
    struct stat st;
    return !exact && s->image && !fstat(s->b, &st) && !st.st_nlink;
}

#define BOTH_FD(s, call_a, call_b)                                                                  \
    do {                                                                                            \
        errno = 0;                                                                                  \
        long r_ = (call_a);                                                                         \
        int e_ = errno;                                                                             \
        errno = 0;                                                                                  \
        if (r_ < 0 && (e_ == EEXIST || e_ == ENOENT) && lost(s)) add(" = %s", strerrorname_np(e_));                                    \
        else {                                                                                      \
            long q_ = (call_b);                                                                     \
            same(r_, e_, q_, errno);                                                                \
        }                                                                                           \
    } while (0)

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
    if (BOTH(fstat(s->a, &a), fstat(s->b, &b))) {
        if (lost(s)) a.st_nlink = 0;
        same_stat(s->what, &a, &b);
    }
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
    /* The kernel does not copy between file systems: from a file that is not copied up. */
    if (x < 0 && ex == EXDEV && !exact && s->image) {
        add(" = EXDEV");
        return;
    }
    if (x < 0) {
        ssize_t y = copy_file_range(s->b, &b1, t->b, &b2, n, 0);
        same(x, ex, y, errno);
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
    if (BOTH(rmdir(p.a), rmdir(p.b)) && had) lower_gone(&st);
}

static void op_unlink(void) {
    struct pair p = rnd(8) ? some_file() : any_path();
    struct stat st;
    if (!*p.rel) return;
    bool had = !lstat(p.b, &st);
    say("unlink %s", shown(p.rel));
    if (BOTH(unlink(p.a), unlink(p.b)) && had) lower_gone(&st);
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
        bool had = !lstat(q.b, &st);
        if ((dir ? BOTH(rmdir(q.a), rmdir(q.b)) : BOTH(unlink(q.a), unlink(q.b))) && had) lower_gone(&st);
    }
    closedir(d);
    if (*p.rel && !lstat(p.b, &st)) {
        say("rmdir %s", shown(p.rel));
        if (BOTH(rmdir(p.a), rmdir(p.b))) lower_gone(&st);
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
        if (!(flags & 2) && hp && hq && sp.st_ino != sq.st_ino) lower_gone(&sq);
        path_add(q.rel, hp && S_ISDIR(sp.st_mode));
    } else if (!exact && ea == ENOTEMPTY) { /* ext4 puts the overlay's whiteout there first, and takes it away */
        *strrchr(p.a, '/') = *strrchr(p.b, '/') = 0;
        utimensat(AT_FDCWD, p.a, NULL, 0), utimensat(AT_FDCWD, p.b, NULL, 0);
    }
}

static void op_link(void) {
    struct pair p = rnd(10) ? some_file() : any_path(), q = new_path();
    if (!rnd(5)) q = any_path();
    int flags = rnd(4) ? 0 : AT_SYMLINK_FOLLOW;
    /* The kernel's overlay makes an inode of its own for each name of a file of the image: what is
     * changed through one of them, a permission check through the other does not know. */
    if (!exact && is_lower(p.b)) return;
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
        BOTH_FD(s, fchmod(s->a, mode), fchmod(s->b, mode));
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
        BOTH_FD(s, fchown(s->a, (uid_t)uid, (gid_t)gid), fchown(s->b, (uid_t)uid, (gid_t)gid));
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
        BOTH_FD(s, futimens(s->a, t), futimens(s->b, t));
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
            BOTH_FD(s, fsetxattr(s->a, name, value, n, flags), fsetxattr(s->b, name, value, n, flags));
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
        /* The kernel's overlay takes the set-group-id bit then from who is not in the group. */
        if (!exact && !def && setfsuid((uid_t)-1)) return;
        say("remove %s of %s", name, shown(p.rel));
        errno = 0;
        int a = removexattr(p.a, name), ea = errno;
        /* The kernel's overlay looks first what a file has that is not copied up: nothing, or, over
         * a server that was not asked to have lists (that costs a request an inode), an error. */
        if (a && (ea == ENODATA || ea == EOPNOTSUPP) && !exact && is_lower(p.b)) {
            add(" = %s", strerrorname_np(ea));
            return;
        }
        errno = 0;
        int b = removexattr(p.b, name);
        same(a, ea, b, errno);
    } else {
        /* FUSE_HANDLE_KILLPRIV_V2 leaves a set-group-id bit that nobody can execute by. */
        struct stat st;
        if (exact && !stat(p.b, &st) && S_ISREG(st.st_mode) && st.st_mode & S_ISGID) acl.e[3].perm |= 1;
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
            bool had = !lstat(p.b, &st);
            if (had && S_ISDIR(st.st_mode)) continue;
            say("unlink %s in between", shown(sub));
            if (BOTH(unlink(p.a), unlink(p.b)) && had) lower_gone(&st);
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
        if (!lstat(path, &st)) lower_put(st.st_ino);
    }
    while (n-- > 0)
        if (utimensat(AT_FDCWD, late[n].path, late[n].t, AT_SYMLINK_NOFOLLOW)) return perror(late[n].path), 1;
    state_write();
    return 0;
}

/* ---- single programs ---- */
static int fail(const char *what) {
    printf("%s: %s\n", what, strerrorname_np(errno));
    return 1;
}

static u64 sum_of(int fd) {
    u64 h = 14695981039346656037ull;
    ssize_t n;
    off_t at = 0;
    while ((n = pread(fd, buf_a, BUF, at)) > 0) {
        for (ssize_t i = 0; i < n; i++) h = (h ^ (unsigned char)buf_a[i]) * 1099511628211ull;
        at += n;
    }
    return n ? 0 : h;
}

/* All of a tree, a line a name, but inode numbers and what is now. */
static void tree(int at, const char *name, const char *rel) {
    struct stat st;
    char path[64 + 256], text[PATH_MAX] = "";
    if (fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW)) {
        printf("%s %s\n", rel, strerrorname_np(errno));
        return;
    }
    printf("%s %o %u:%u", rel, st.st_mode, st.st_uid, st.st_gid);
    if (!S_ISDIR(st.st_mode)) printf(" links %lu size %lld", (unsigned long)st.st_nlink, (long long)st.st_size);
    if (st.st_mtim.tv_sec < PAST) printf(" time %lld.%ld", (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    if (S_ISCHR(st.st_mode)) printf(" dev %lx", (unsigned long)st.st_rdev);
    if (S_ISLNK(st.st_mode) && readlinkat(at, name, text, sizeof text - 1) > 0) printf(" -> %s", text);
    if (!S_ISLNK(st.st_mode)) {
        snprintf(path, sizeof path, "/proc/self/fd/%d/%s", at, name);
        xattr_text(path, text, sizeof text);
        for (char *p = text; *p; p++)
            if (*p == '\n') *p = ' ';
        printf(" %s", text);
    }
    int fd = S_ISREG(st.st_mode) || S_ISDIR(st.st_mode) ? openat(at, name, O_RDONLY | O_NOFOLLOW) : -1;
    if (S_ISREG(st.st_mode)) printf(" sum %llx", (unsigned long long)sum_of(fd));
    printf("\n");
    if (S_ISDIR(st.st_mode)) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        struct names l = names_of(path, false);
        for (size_t i = 0; i < l.n; i++) {
            char sub[PATH_MAX], *e = l.v[i];
            e[strlen(e) - 1] = 0;
            if (!strcmp(e, ".") || !strcmp(e, "..")) continue;
            snprintf(sub, sizeof sub, "%s/%s", rel, e);
            tree(fd, e, sub);
        }
        names_free(&l);
    }
    if (fd >= 0) close(fd);
}

static int make_many(const char *dir, int n) {
    char name[32];
    int d = open(dir, O_RDONLY | O_DIRECTORY);
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "n%06d", i);
        if (mknodat(d, name, S_IFREG | 0644, 0)) return fail(name);
    }
    return 0;
}

/* Reads a listing in small parts and removes each name at once, as rm -r does. */
static int sweep(const char *dir) {
    char parts[2000], **seen = NULL;
    size_t n = 0;
    int d = open(dir, O_RDONLY | O_DIRECTORY), failed = 0;
    for (long got; (got = syscall(SYS_getdents64, d, parts, sizeof parts)) != 0;) {
        if (got < 0) return fail("getdents64");
        for (long at = 0; at < got;) {
            struct dirent64 *e = (void *)(parts + at);
            at += e->d_reclen;
            if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
            seen = realloc(seen, (n + 1) * sizeof *seen);
            seen[n++] = strdup(e->d_name);
            failed += unlinkat(d, e->d_name, 0) != 0;
        }
    }
    if (n) qsort(seen, n, sizeof *seen, by_name);
    size_t twice = 0;
    for (size_t i = 1; i < n; i++) twice += !strcmp(seen[i - 1], seen[i]);
    struct names l = names_of(dir, false);
    printf("%zu names, %zu twice, %d not removed, %zu left\n", n, twice, failed, l.n - 2);
    return 0;
}

/* Directories in directories, beyond PATH_MAX: made, used at the bottom, or removed. */
static int deep(const char *dir, int levels, const char *what) {
    char name[201], where[PATH_MAX];
    int fd;
    memset(name, 'D', 200), name[200] = 0;
    if (chdir(dir)) return fail(dir);
    for (int i = 0; i < levels; i++)
        if ((*what == 'm' && mkdir(name, 0755)) || chdir(name)) return fail("going down");
    if (*what == 'm') {
        if ((fd = open("file", O_RDWR | O_CREAT | O_EXCL, 0644)) < 0 || write(fd, "deep", 4) != 4 || close(fd)) return fail("making a file");
    } else if (*what == 'c') {
        char text[10] = "";
        struct stat st;
        if ((fd = open("file", O_RDWR)) < 0 || read(fd, text, 9) < 4 || strncmp(text, "deep", 4) || pwrite(fd, "deeper", 6, 0) != 6 || close(fd)) return fail("using the file");
        if (link("file", "link") || rename("file", "name") || symlink("name", "symlink") || setxattr("name", "user.x", "y", 1, 0) || chmod("name", 0600)) return fail("changes");
        if (mkdir("sub", 0755) || rename("link", "sub/link") || truncate("name", 5) || stat("symlink", &st) || st.st_size != 5 || st.st_mode != (S_IFREG | 0600)) return fail("more changes");
        struct names l = names_of(".", exact);
        printf("%zu names", l.n);
        printf(", the path is %s\n", getcwd(where, sizeof where) ? "short" : "long");
    } else {
        unlink("file"), unlink("name"), unlink("symlink"), unlink("sub/link");
        if (access("sub", F_OK) == 0 && rmdir("sub")) return fail("sub");
        for (int i = 0; i < levels; i++)
            if (chdir("..") || rmdir(name)) return fail("going up");
    }
    return 0;
}

/* Reads and writes all over a tree until something fails, and says what. */
static int load(const char *dir, const char *scratch) {
    char name[PATH_MAX];
    B = dir;
    for (unsigned long round = 0;; round++) {
        struct names l = names_of(dir, false);
        for (size_t i = 0; i < l.n; i++) {
            struct stat st;
            l.v[i][strlen(l.v[i]) - 1] = 0;
            snprintf(name, sizeof name, "%s/%s", dir, l.v[i]);
            int fd = open(name, O_RDONLY);
            if (fd < 0 || fstat(fd, &st)) return fail("open");
            posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
            if (S_ISREG(st.st_mode) && pread(fd, buf_a, BUF, 0) < 0) return fail("read");
            close(fd);
            snprintf(name, sizeof name, "%s/w%lu", scratch, (round + i) % 50);
            if ((fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644)) < 0) return fail("create");
            if (write(fd, noise, 100000) != 100000) return fail("write");
            if (round > 1 && i % 20 == 3 && fsync(fd)) return fail("fsync");
            if (close(fd)) return fail("close");
            if (i % 7 == 2 && unlink(name)) return fail("unlink");
        }
        if (l.n < 3) return fail("listing");
        names_free(&l);
        if (round == 1) fprintf(stderr, "working\n");
    }
}

/* Writes until the disk is full: write() itself says so, and what it took is there. */
static int fill(const char *name) {
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644), last = 0;
    off_t size = 0;
    struct stat st;
    if (fd < 0) return fail("open");
    for (ssize_t n; size < 1 << 30; size += n)
        if ((n = write(fd, noise + size % 4096, 65536)) < 0) {
            last = errno;
            break;
        }
    printf("write: %s, %s", last ? strerrorname_np(last) : "no error", size > 0 ? "after some" : "at once");
    if (fstat(fd, &st) || st.st_size != size) printf(", the size is %lld, not %lld", (long long)st.st_size, (long long)size);
    for (off_t at = 0; at < size; at += 65536) {
        size_t k = size - at < 65536 ? (size_t)(size - at) : 65536;
        if (pread(fd, buf_a, k, at) != (ssize_t)k || memcmp(buf_a, noise + at % 4096, k)) {
            printf(", at %lld are other bytes", (long long)at);
            break;
        }
    }
    printf(", close: %s\n", close(fd) ? strerrorname_np(errno) : "0");
    return 0;
}

static int sparse(const char *name) {
    const off_t T = 1ll << 40;
    struct stat st;
    char text[8] = "";
    int fd = open(name, O_RDWR | O_CREAT, 0644);
    if (fd < 0 || ftruncate(fd, T) || pwrite(fd, "end", 3, T - 3) != 3 || pwrite(fd, "mid", 3, T / 2) != 3) return fail("making it");
    if (fsync(fd) || close(fd) || (fd = open(name, O_RDWR)) < 0 || fstat(fd, &st)) return fail("opening it");
    printf("%s, %s blocks", st.st_size == T ? "1 TiB" : "another size", st.st_blocks < 2000 ? "few" : "many");
    if (pread(fd, text, 3, T - 3) != 3 || strcmp(text, "end") || pread(fd, text, 3, T / 4) != 3 || *text || pread(fd, text, 3, T / 2) != 3 || strcmp(text, "mid")) return fail("reading it");
    if (ftruncate(fd, T / 2 + 3) || ftruncate(fd, T) || pread(fd, text, 3, T - 3) != 3 || *text) return fail("cutting it");
    if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, T / 2, 4096) || pread(fd, text, 3, T / 2) != 3 || *text) return fail("punching it");
    printf(", truncated, punched\n");
    return 0;
}

static int xattr(const char *name, size_t size) {
    int rc = setxattr(name, "user.big", noise, size, 0);
    printf("set %zu: %s", size, rc ? strerrorname_np(errno) : "0");
    ssize_t n = getxattr(name, "user.big", buf_a, BUF);
    printf(", get: %s\n", n < 0 ? strerrorname_np(errno) : n == (ssize_t)size && !memcmp(buf_a, noise, size) ? "the same" : "another");
    return 0;
}

/* The length of an attribute, with a buffer of that length and one too small. */
static int get_xattr(const char *name, const char *key) {
    ssize_t n = getxattr(name, key, NULL, 0), m = getxattr(name, key, buf_a, BUF), k = getxattr(name, key, buf_b, n > 0 ? (size_t)n : 0);
    if (n < 0) return fail(name);
    ssize_t x = getxattr(name, key, buf_b, (size_t)n - 1);
    u64 h = 0;
    for (ssize_t i = 0; i < m; i++) h = h * 31 + (unsigned char)buf_a[i];
    printf("%zd %zd %zd %s %llx %zd\n", n, m, k, x < 0 ? strerrorname_np(errno) : "0", (unsigned long long)h, listxattr(name, buf_a, BUF));
    return 0;
}

/* The list itself: asked for its length alone, the kernel's overlay counts its own attributes too. */
static int list_xattr(const char *name) {
    ssize_t n = listxattr(name, buf_a, BUF);
    printf("%zd %s\n", n, n < 0 ? strerrorname_np(errno) : "0");
    return 0;
}

/* Takes an access control list that is not there: no error, or the kernel's overlay's. Sets one as
 * an owner who is not in the file's group: the set-group-id bit goes. */
static int acl(const char *name) {
    static const uint32_t mode_0751[] = { 2, 7 << 16 | 1, ~0u, 5 << 16 | 4, ~0u, 1 << 16 | 32, ~0u };
    struct stat st;
    if (removexattr(name, "system.posix_acl_access") && errno != ENODATA) return fail(name);
    if (chown(name, 1000, 0) || chmod(name, 02755)) return fail(name);
    setfsgid(1000), setfsuid(1000);
    int rc = setxattr(name, "system.posix_acl_access", mode_0751, sizeof mode_0751, 0);
    setfsuid(0), setfsgid(0);
    if (rc || stat(name, &st)) return fail(name);
    printf("%o\n", st.st_mode & 07777);
    return 0;
}

/* Lists a directory again and again into a mapping of one of its files, which is not in memory then,
 * while a thread asks for the attributes of the others. */
static const char *mapped_dir;
static int mapped_over;

static void *mapped_stats(void *arg) {
    char name[PATH_MAX];
    struct stat st;
    for (unsigned i = 0; !__atomic_load_n(&mapped_over, __ATOMIC_RELAXED); i++) {
        snprintf(name, sizeof name, "%s/%03u", mapped_dir, 2 + i % 198);
        close(open(name, O_RDONLY));
        stat(name, &st);
    }
    return arg;
}

static void *mapped_lists(void *arg) {
    char name[PATH_MAX];
    const size_t size = 1 << 16;
    long count = 0;
    snprintf(name, sizeof name, "%s/%s", mapped_dir, (char *)arg);
    int f = open(name, O_RDONLY), d = open(mapped_dir, O_RDONLY | O_DIRECTORY);
    char *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, f, 0);
    for (int i = 0; i < 300 && m != MAP_FAILED; i++) {
        long got;
        lseek(d, 0, SEEK_SET);
        for (count = 0;;) {
            madvise(m, size, MADV_DONTNEED);
            posix_fadvise(f, 0, 0, POSIX_FADV_DONTNEED);
            got = syscall(SYS_getdents64, d, m, 2048);
            if (got <= 0) break;
            for (long at = 0; at < got; count++) at += ((struct dirent64 *)(void *)(m + at))->d_reclen;
        }
        if (got || count != 202) break;
    }
    return (void *)count;
}

static int mapped(const char *dir) {
    pthread_t stats, lists;
    void *n;
    mapped_dir = dir;
    if (pthread_create(&stats, NULL, mapped_stats, NULL) || pthread_create(&lists, NULL, mapped_lists, "000")) return fail("thread");
    pthread_join(lists, &n);
    __atomic_store_n(&mapped_over, 1, __ATOMIC_RELAXED);
    pthread_join(stats, NULL);
    printf("%ld names each time\n", (long)n);
    return 0;
}

/* Reads f000 and what follows in DIR, with pauses, until the kernel has one that nobody read. */
static int ahead(const char *dir) {
    char name[PATH_MAX];
    for (int i = 0; i < 140; i++, usleep(2000)) {
        snprintf(name, sizeof name, "%s/f%03d", dir, i);
        int fd = open(name, O_RDONLY);
        if (fd < 0 || read(fd, buf_a, BUF) < 0) return fail(name);
        close(fd);
        for (int next = i + 2; next < i + 10; next++) {
            unsigned char here = 0;
            snprintf(name, sizeof name, "%s/f%03d", dir, next);
            fd = open(name, O_RDONLY);
            void *m = mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0);
            if (m == MAP_FAILED || mincore(m, 1, &here)) return fail(name);
            munmap(m, 1);
            close(fd);
            if (here & 1) return puts("read ahead"), 0;
        }
    }
    puts("not read ahead");
    return 1;
}

/* Reads the files of DIR in order, while a thread writes to the last byte of each through a mapping;
 * then once more: each has it. */
enum { DIRTY_FILES = 150 };

static void *dirty_writes(void *dir) {
    char name[PATH_MAX];
    for (int i = 0; i < DIRTY_FILES; i++) {
        struct stat st;
        snprintf(name, sizeof name, "%s/f%03d", (char *)dir, i);
        int fd = open(name, O_RDWR);
        if (fd < 0 || fstat(fd, &st)) return fail(name), NULL;
        char *m = st.st_size ? mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : NULL;
        close(fd);
        if (m == MAP_FAILED) return fail(name), NULL;
        if (m) m[st.st_size - 1] = '!';
        if (m) munmap(m, (size_t)st.st_size);
    }
    return dir;
}

static int dirty(char *dir) {
    char name[PATH_MAX];
    pthread_t writes;
    int bad = 0;
    if (pthread_create(&writes, NULL, dirty_writes, dir)) return fail("thread");
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < DIRTY_FILES; i++) {
            snprintf(name, sizeof name, "%s/f%03d", dir, i);
            int fd = open(name, O_RDONLY);
            ssize_t n = fd < 0 ? -1 : read(fd, buf_a, BUF);
            close(fd);
            if (n < 0) return fail(name);
            bad += pass && n && buf_a[n - 1] != '!';
        }
        void *done = dir;
        if (!pass) pthread_join(writes, &done);
        if (!done) return 1;
    }
    printf("%d lost\n", bad);
    return bad != 0;
}

/* Writes to a new file of 1 MiB through a mapping, and ends at once. */
static int last(const char *name) {
    int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0644);
    if (fd < 0 || ftruncate(fd, BUF)) return fail(name);
    char *m = mmap(NULL, BUF, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (m == MAP_FAILED) return fail(name);
    close(fd);
    for (size_t i = 0; i < BUF; i += 512) m[i] = 'x';
    _exit(0);
}

static int single(int argc, char **argv) {
    const char *what = argv[1], *name = argv[2];
    int n = argc > 3 ? atoi(argv[3]) : 0;
    if (!strcmp(what, "tree")) return tree(AT_FDCWD, name, "."), 0;
    if (!strcmp(what, "many")) return make_many(name, n);
    if (!strcmp(what, "sweep")) return sweep(name);
    if (!strcmp(what, "listxattr")) return list_xattr(name);
    if (!strcmp(what, "deep")) return deep(name, n, argc > 4 ? argv[4] : "");
    if (!strcmp(what, "load") && argc == 4) return load(name, argv[3]);
    if (!strcmp(what, "fill")) return fill(name);
    if (!strcmp(what, "acl")) return acl(name);
    if (!strcmp(what, "mapped")) return mapped(name);
    if (!strcmp(what, "ahead")) return ahead(name);
    if (!strcmp(what, "last")) return last(name);
    if (!strcmp(what, "dirty")) return dirty(argv[2]);
    if (!strcmp(what, "sparse")) return sparse(name);
    if (!strcmp(what, "xattr")) return xattr(name, (size_t)n);
    if (!strcmp(what, "getxattr") && argc == 4) return get_xattr(name, argv[3]);
    return 2;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    buf_a = malloc(BUF), buf_b = malloc(BUF), noise = malloc(2 * BUF);
    rng_state = 88172645463325252ull;
    for (size_t i = 0; i < 2 * BUF; i++) noise[i] = (char)rnd(256);
    signal(SIGBUS, on_signal);
    signal(SIGSEGV, on_signal);
    if (!strcmp(argv[1], "build") && argc == 5) {
        B = argv[4];
        return build(argv[2], argv[3]);
    }
    if (strcmp(argv[1], "check") && strcmp(argv[1], "run")) return single(argc, argv);
    if (argc < 5) return 2;
    A = argv[2], B = argv[3];
    const char *flags = argv[argc - 1];
    many = strchr(flags, 'm'), exact = strchr(flags, 'i');
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
    if (argc != 7) return 2;
    seed = strtoull(argv[4], NULL, 10);
    rng_state ^= (seed + 1) * 0x9e3779b97f4a7c15ull;
    rnd(1), rnd(1), rnd(1);
    return run(atof(argv[5]), flags);
}
