/* Fuzzers (libFuzzer) over what skiff reads and did not write. One program, built and run by
 * tests/fuzz/run: $SKIFF_FUZZ names the target; without it the targets are listed.
 *
 * What skiff reads from fixed places comes from the input: the linker sends openat, access, statfs
 * and fopen here (--wrap). Nothing is written but below a directory of our own in $TMPDIR, nothing
 * is executed, nothing is connected to. _exit, which is how skiff runs out of memory, is a crash. */
#define SKIFF_NO_MAIN
#include "../../runtime.c"

#define TARGETS                                                                                    \
    X(plan) X(ref) X(manifest) X(archive) X(index) X(load) X(place) X(dockerfile) X(ignore)        \
    X(proc) X(http) X(format) X(env) X(users) X(words) X(flags) X(holes)

static struct {
    const u8 *file; /* what /FUZZ… and all of /proc and /sys, contains */
    size_t file_n;
    bool in;          /* a target runs: its _exit is a failure */
    int dir;          /* ours */
    struct store s;   /* in it */
    unsigned runs;
} g;

/* ---- what the system says ---- */
int __real_openat(int dir, const char *path, int flags, ...);
int __real_access(const char *path, int mode);
int __real_statfs(const char *path, struct statfs *fs);
FILE *__real_fopen(const char *path, const char *mode);
__attribute__((noreturn)) void __real__exit(int status);

static bool ours(const char *path) {
    return g.in && (str_prefix(path, "/FUZZ") ||
                    (str_prefix(path, "/proc/") && !str_prefix(path, "/proc/self/fd/")) ||
                    str_prefix(path, "/sys/"));
}

static int file_fd(void) {
    int fd = (int)syscall(SYS_memfd_create, "fuzz", 1u);
    if (fd < 0 || fd_pwrite_all(fd, g.file, g.file_n, 0)) abort();
    return fd;
}

int __wrap_openat(int dir, const char *path, int flags, ...) {
    va_list ap;
    va_start(ap, flags);
    mode_t mode = flags & O_CREAT ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    if (!ours(path)) return __real_openat(dir, path, flags, mode);
    if ((flags & O_ACCMODE) == O_RDONLY) return file_fd();
    return __real_openat(AT_FDCWD, "/dev/null", O_WRONLY | O_CLOEXEC);
}

int __wrap_access(const char *path, int mode) { return ours(path) ? 0 : __real_access(path, mode); }

int __wrap_statfs(const char *path, struct statfs *fs) {
    if (!ours(path)) return __real_statfs(path, fs);
    *fs = (struct statfs){ .f_type = strstr(path, "selinux") ? SELINUX_MAGIC : CGROUP2_SUPER_MAGIC };
    return 0;
}

FILE *__wrap_fopen(const char *path, const char *mode) {
    return ours(path) ? fdopen(file_fd(), "r") : __real_fopen(path, mode);
}

__attribute__((noreturn)) void __wrap__exit(int status) {
    if (g.in) abort();
    __real__exit(status);
}

static void must(bool holds) {
    if (!holds) __builtin_trap();
}

/* The input as a string of its own: reads behind its end are noticed. Caller owns it. */
static char *text_of(const u8 *data, size_t n) { return str_dupn((const char *)data, n); }

/* Cuts the input behind the first `mark`; what follows it is in *rest. */
static size_t cut_at(const u8 *data, size_t n, const char *mark, const u8 **rest, size_t *rest_n) {
    const u8 *at = n ? memmem(data, n, mark, strlen(mark)) : NULL;
    *rest = at ? at + strlen(mark) : data + n;
    *rest_n = (size_t)(data + n - *rest);
    return at ? (size_t)(at - data) : n;
}

static int fresh_dir(const char *name) {
    tree_remove(g.dir, name);
    must(!mkdirat(g.dir, name, 0700));
    return openat(g.dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

/* A store that does not grow for ever. */
static struct store *store_of(void) {
    if (g.s.path && g.runs % 256) return &g.s;
    struct err e;
    if (g.s.path) close(g.s.dir), free(g.s.path);
    g.s.path = NULL;
    tree_remove(g.dir, "store");
    must(!store_open(getenv("SKIFF_ROOT"), &g.s, &e));
    return &g.s;
}

/* ---- a config.json ---- */
static void fuzz_plan(const u8 *data, size_t n) {
    struct err e = { 0 };
    struct plan p;
    struct idmap map = { 0 };
    AUTO_JSON *j = js_parse((const char *)data, n, "input", &e);
    json_t *v;
    if (!j || plan_parse(j, &p, &e)) return;
    must(p.args.n || !js_get(j, "process"));
    must(p.nmounts <= 1024 && p.nrlimits <= 16 && p.ids.uids <= 4 && p.ids.gids <= 4);
    for (unsigned i = 0; i < p.ids.uids; i++)
        must((u64)p.ids.uid[i].inside + p.ids.uid[i].count <= UINT32_MAX);
    if (p.seccomp) {
        struct filter f = { 0 };
        struct filter_want want = { CAP_DOCKER, false, p.seccomp, true };
        filter_flags(p.seccomp, &f.flags, &e);
        if (json_array_size(js_get(p.seccomp, "architectures")) < 4 && n < 4096 &&
            !filter_compile(&want, &f, &e))
            must(f.n && f.n <= 4096);
        filter_done(&f);
    }
    size_t i;
    for (i = 0; i < p.nmounts; i++) {
        AUTO_STRV options = { 0 };
        if (p.mounts[i].data) mnt_words(&options, p.mounts[i].data);
        must(!p.mounts[i].data || options.n);
    }
    json_array_foreach (js_path(j, "linux.devices"), i, v) {
        mode_t mode;
        dev_t dev;
        device_of(v, &mode, &dev);
    }
    AUTO_BUF code = { 0 };
    json_array_foreach (js_path(j, "linux.resources.devices"), i, v) {
        struct device_rule r = { js_bool(v, "allow"), *js_str_or(v, "type", "a"),
                                 js_int(v, "major", -1), js_int(v, "minor", -1),
                                 js_str_or(v, "access", "rwm") };
        bpf_rule(&code, &r);
    }
    char where[] = "/FUZZ";
    cgroup_apply(&(struct cgroup){ where }, js_path(j, "linux.resources"), &e);
    if (js_str(j, "annotations.map")) plan_idmap_words(js_str(j, "annotations.map"), &map);
    AUTO_FREE char *s = js_dump(j, 0);
    plan_done(&p);
}

/* ---- references ---- */
static void fuzz_ref(const u8 *data, size_t n) {
    struct err e = { 0 };
    struct ref r, again;
    struct platform pf;
    AUTO_FREE char *text = text_of(data, n);
    platform_parse(text, &pf, &e);
    if (digest_hex(text)) must(strlen(text) == DIGEST_LEN);
    if (ref_parse(text, &r, &e)) {
        must(e.msg[0]);
        return;
    }
    AUTO_FREE char *full = ref_full(&r), *familiar = ref_familiar(&r), *repo = ref_repository(&r);
    for (const char *s = full; *s; s++) must(isalnum((u8)*s) || strchr("-._:/@[]", *s));
    must(!strstr(full, "/../") && !strstr(r.path, "//") && *r.path != '/' && *r.domain);
    must(!ref_parse(full, &again, &e));
    must(!strcmp(again.domain, r.domain) && !strcmp(again.path, r.path));
    must(!strcmp(again.tag, r.tag));
    /* Docker's short form is another image's name where a path on its hub looks like a registry */
    const char *slash = strchr(r.path, '/');
    size_t first = slash ? (size_t)(slash - r.path) : 0;
    if (!memchr(r.path, '.', first) && !str_prefix(r.path, "localhost/"))
        must(!ref_parse(familiar, &again, &e) && !strcmp(again.path, r.path));
    reg_conf_covers(text, r.domain, r.path);
    reg_is_loopback(r.domain);
}

/* ---- manifests, indexes and configurations, and what is done with them ---- */
static void fuzz_manifest(const u8 *data, size_t n) {
    static const char *const TYPES[] = { NULL, MT_OCI_INDEX, MT_OCI_MANIFEST, MT_DOCKER_LIST };
    static const char *const LINES[] = { "ENV A=b C=d", "LABEL a=b",  "WORKDIR x/../y", "CMD a b",
                                         "EXPOSE 80",   "VOLUME /v",  "ENTRYPOINT [\"x\"]",
                                         "USER 1:2",    "ONBUILD RUN x", "HEALTHCHECK CMD x" };
    struct err e = { 0 };
    struct store *s = store_of();
    AUTO_JSON *j = js_parse((const char *)data, n, "input", &e);
    json_t *v;
    if (!j) return;
    size_t i;
    for (i = 0; i < ARRAY_LEN(TYPES); i++) manifest_check(j, TYPES[i], "input", &e);
    static const struct platform WANT[] = { { "linux", "amd64", "" },
                                            { "linux", "arm", "v7" },
                                            { "linux", "arm", "" } };
    for (i = 0; i < ARRAY_LEN(WANT); i++) platform_pick(j, &WANT[i]);
    AUTO_IMAGE m = { .desc = json_incref(j), .manifest = json_incref(j), .config = json_incref(j) };
    if (image_diff_ids(j, &m.diff_ids, &e)) return;
    char chain[HEX_LEN + 1];
    layer_chain(&m.diff_ids, chain);
    strcpy(m.id, chain);
    AUTO_JSON *shown = image_inspect(s, &m);
    AUTO_FREE char *all = js_dump(shown, 0);
    struct image_row row = { .desc = j, .m = m };
    AUTO_JSON *listed = image_row_json(s, &row, false);
    must(json_is_object(listed));
    image_matches(&row, "a:b*");
    json_array_foreach (js_get(j, "history"), i, v) {
        AUTO_FREE char *since = ago(js_str(v, "created")),
                       *by = str_printable(js_str_or(v, "created_by", ""));
    }
    struct cli c = { .opts = json_object(), .store = s };
    AUTO_JSON *sk = json_object();
    struct make k = { .cli = &c, .s = s, .run = js_get(j, "config"), .sk = sk };
    if (!make_record(&k, &e)) {
        AUTO_FREE char *record = js_dump(sk, 0), *labels = labels_text(js_get(sk, "labels"), ",");
    }
    json_decref(c.opts);
    AUTO_JSON *config = json_deep_copy(j);
    for (i = 0; json_is_object(config) && i < ARRAY_LEN(LINES); i++)
        config_change(config, LINES[i], &e);
}

/* ---- an index and everything that looks into it ---- */
struct looking {
    struct ufs u;
    struct ufs_thread t;
};

static void request(struct looking *l, u32 op, u64 node, const void *arg, size_t n) {
    struct fuse_in_header h = { .opcode = op, .nodeid = node, .unique = 1 };
    AUTO_FREE u8 *copy = mem_new(n + 1);
    if (n) memcpy(copy, arg, n);
    ufs_serve_one(&l->t, &h, copy);
}

/* A tree of plain names, each directory in one place only: what may be unpacked. */
static bool idx_is_tree(const struct idx *x) {
    AUTO_FREE u8 *seen = mem_new(x->head->inodes);
    bool good = S_ISDIR(x->inodes[0].mode);
    for (u32 i = 0; i < x->head->inodes && good; i++) {
        u32 n;
        const struct idx_dirent *d = idx_dir(x, &x->inodes[i], &n);
        for (u32 k = 0; k < n && good; k++) {
            const char *s = idx_name(x, d[k].name, d[k].name_len);
            const struct idx_inode *c = idx_inode(x, d[k].inode);
            if (!s || !c) continue;
            good = d[k].name_len && d[k].name_len <= NAME_LIMIT && !memchr(s, '/', d[k].name_len) &&
                   !memchr(s, 0, d[k].name_len) && memcmp(s, "..", d[k].name_len < 2 ? 1 : 2) &&
                   !(S_ISDIR(c->mode) && (!d[k].inode || seen[d[k].inode]++));
        }
    }
    return good;
}

static void idx_look(struct idx *x, int layers, bool merged) {
    static const u64 AT[] = { 0, 1, 4095, 4096, 262143, 262144, 1ull << 40, UINT64_MAX };
    struct looking l = { .u = { .x = *x } };
    struct err e = { 0 };
    l.t = (struct ufs_thread){ .u = &l.u, .out = mem_new(UFS_READ_MAX) };
    l.t.fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    packs_init(&l.u.packs, &l.u.x, layers);
    request(&l, FUSE_STATFS, 1, NULL, 0);
    for (u64 node = 1; node <= x->head->inodes + 1ull && node <= 64; node++) {
        request(&l, FUSE_GETATTR, node, NULL, 0);
        request(&l, FUSE_READLINK, node, NULL, 0);
        request(&l, FUSE_LOOKUP, node, "a", 2);
        request(&l, FUSE_LOOKUP, node, "", 1);
        for (size_t i = 0; i < ARRAY_LEN(AT); i++) {
            struct fuse_read_in r = { .offset = AT[i], .size = i & 1 ? 4096 : UFS_READ_MAX };
            request(&l, FUSE_READ, node, &r, sizeof r);
            request(&l, FUSE_READDIR, node, &r, sizeof r);
            request(&l, FUSE_READDIRPLUS, node, &r, sizeof r);
        }
        for (u32 size = 0; size < 100; size += 33) {
            struct {
                struct fuse_getxattr_in in;
                char name[8];
            } get = { .in.size = size, .name = "user.a" };
            request(&l, FUSE_LISTXATTR, node, &get, sizeof get);
            request(&l, FUSE_GETXATTR, node, &get, sizeof get);
        }
        const struct idx_inode *i = idx_inode(x, node - 1);
        u32 n;
        const struct idx_dirent *d = i ? idx_dir(x, i, &n) : NULL, *found;
        for (u32 k = 0; d && k < n && k < 64; k++) {
            const char *s = idx_name(x, d[k].name, d[k].name_len);
            if (s) found = idx_lookup(x, i, s, d[k].name_len), (void)found;
            if (merged) {
                must(s && d[k].name_len && !memchr(s, '/', d[k].name_len));
                must(!(d[k].flags & DIRENT_WHITEOUT) && found == &d[k]);
            }
        }
    }
    static const char *const PATHS[] = { "/etc/passwd", "a/b/../c", "/", "link/x", "." };
    for (size_t i = 0; i < ARRAY_LEN(PATHS); i++) {
        struct rootfs_view view = { x, layers, -1 };
        AUTO_BUF b = { 0 };
        view_read(&view, PATHS[i], &b, &e);
    }
    struct user who;
    if (!user_resolve(&(struct rootfs_view){ x, layers, -1 }, "a:b", &who, &e)) user_done(&who);
    if (idx_is_tree(x)) {
        struct sha h;
        u8 raw[32];
        sha_init(&h);
        digest_idx(x, &x->inodes[0], "", &h, 0);
        sha_end(&h, raw);
        AUTO_FD root = fresh_dir("tree");
        idx_unpack(x, layers, root, false, &e);
    }
    packs_done(&l.u.packs);
    close(l.t.fd);
    free(l.t.out);
}

/* The input is the index, but for the sums and the names of the packs, which are put right. */
static void fuzz_index(const u8 *data, size_t n) {
    static const char PACK[] = "layers/0101010101010101010101010101010101010101010101010101010101"
                               "010101.pack";
    struct idx_head h;
    struct err e = { 0 };
    struct store *s = store_of();
    if (n < sizeof h) return;
    AUTO_FREE u8 *all = mem_new(n);
    memcpy(all, data, n);
    memcpy(&h, all, sizeof h);
    memcpy(h.magic, "skiffidx", 8);
    if (h.version != IDX_VERSION_HOLES || h.file_size > n || h.file_size < sizeof h)
        h.version = IDX_VERSION, h.file_size = n;
    if (h.packs > 4) h.packs = 1;
    for (u32 i = 0; i < h.packs && h.pack_off <= n && n - h.pack_off >= (i + 1) * 40; i++) {
        memset(all + h.pack_off + i * 40ull, 1, 32);
        u64 size = htole64(3 * PACK_ALIGN);
        memcpy(all + h.pack_off + i * 40ull + 32, &size, 8);
    }
    sha_of(all + sizeof h, h.file_size - sizeof h, h.body_sha);
    idx_head_sum(&h, h.head_sha);
    memcpy(all, &h, sizeof h);
    if (faccessat(s->dir, PACK, F_OK, 0)) { /* raw, raw, a zstd frame */
        AUTO_FD fd = openat(s->dir, PACK, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        char z[256], zeros[4096] = "";
        size_t k = ZSTD_compress(z, sizeof z, zeros, sizeof zeros, 1);
        must(!ZSTD_isError(k) && !fd_pwrite_all(fd, z, k, 2 * PACK_ALIGN) &&
             !fd_pwrite_all(fd, "raw", 3, 0) && !ftruncate(fd, 3 * PACK_ALIGN));
    }
    must(!file_replace(s->dir, "tmp/i.idx", all, n, 0600, FILE_FRESH, &e));
    AUTO_IDX x = { 0 };
    if (idx_open(s->dir, "tmp/i.idx", true, &x, &e)) return;
    AUTO_FD layers = dir_open(s->dir, "layers", &e);
    idx_look(&x, layers, false);
    AUTO_TREE t = { 0 };
    tree_init(&t);
    u8 id[32] = { 0 };
    if (!tree_apply(&t, &x, &e) && !tree_apply(&t, &x, &e))
        must(!tree_write(&t, id, s->dir, "tmp/m.idx", &e));
}

/* ---- an archive as a layer, above another one ---- */
struct src_mem {
    struct src src;
    const u8 *p;
    size_t n;
};

static ssize_t src_mem_read(struct src *s, void *out, size_t n, struct err *e) {
    struct src_mem *m = (void *)s;
    if (n > m->n) n = m->n;
    memcpy(out, m->p, n);
    m->p += n;
    m->n -= n;
    return (ssize_t)n;
}

static int ingest_mem(struct store *s, const void *p, size_t n, char *diff_id, struct err *e) {
    struct src_mem m = { { src_mem_read }, p, n };
    struct src_inflate inf = { .src = { src_inflate_read }, .from = &m.src };
    int rc = layer_ingest(s, &inf.src, NULL, diff_id, e);
    src_inflate_done(&inf);
    return rc;
}

/* The layer below: names that the seeds use. */
static void base_layer(struct store *s, char *diff_id) {
    AUTO_BUF tar = { 0 };
    struct err e = { 0 };
    static const struct {
        const char *name;
        mode_t mode;
        const char *text;
    } ENTRIES[] = { { "a/", S_IFDIR | 0755, "" },   { "a/b", S_IFREG | 0644, "x" },
                    { "a/c/", S_IFDIR | 0700, "" }, { "a/c/d", S_IFREG | 0600, "y" },
                    { "etc/", S_IFDIR | 0755, "" }, { "etc/passwd", S_IFREG | 0644, "a:x:1:1::/:" },
                    { "link", S_IFLNK | 0777, "a" } };
    buf_reserve(&tar, 1 << 16);
    struct archive *a = archive_write_new();
    archive_write_set_format_ustar(a);
    size_t used = 0;
    archive_write_open_memory(a, tar.p, 1 << 16, &used);
    for (size_t i = 0; i < ARRAY_LEN(ENTRIES); i++) {
        struct archive_entry *en = archive_entry_new();
        archive_entry_set_pathname(en, ENTRIES[i].name);
        archive_entry_set_mode(en, ENTRIES[i].mode);
        size_t len = S_ISREG(ENTRIES[i].mode) ? strlen(ENTRIES[i].text) : 0;
        archive_entry_set_size(en, (la_int64_t)len);
        if (S_ISLNK(ENTRIES[i].mode)) archive_entry_set_symlink(en, ENTRIES[i].text);
        must(archive_write_header(a, en) == ARCHIVE_OK);
        if (len) archive_write_data(a, ENTRIES[i].text, len);
        archive_entry_free(en);
    }
    archive_write_free(a);
    must(!ingest_mem(s, tar.p, used, diff_id, &e));
}

static void fuzz_archive(const u8 *data, size_t n) {
    struct err e = { 0 };
    struct store *s = store_of();
    char base[DIGEST_LEN + 1], top[DIGEST_LEN + 1], path[96], chain[HEX_LEN + 1];
    if (ingest_mem(s, data, n, top, &e)) {
        must(e.msg[0]);
        return;
    }
    base_layer(s, base);
    AUTO_STRV ids = { 0 };
    strv_add(&ids, base);
    strv_add(&ids, top);
    must(!layer_merge(s, &ids, chain, &e));
    AUTO_FD layers = dir_open(s->dir, "layers", &e);
    AUTO_IDX x = { 0 }, m = { 0 };
    snprintf(path, sizeof path, "layers/%s.idx", digest_hex(top));
    must(!idx_open(s->dir, path, true, &x, &e));
    snprintf(path, sizeof path, "merged/%s.idx", chain);
    must(!idx_open(s->dir, path, true, &m, &e));
    if (x.head->content_size < 16 << 20) {
        idx_look(&x, layers, false);
        idx_look(&m, layers, true);
    }
    snprintf(path, sizeof path, "layers/%s.idx", digest_hex(top));
    unlinkat(s->dir, path, 0);
    memcpy(path + strlen(path) - 3, "pack", 5);
    unlinkat(s->dir, path, 0);
    snprintf(path, sizeof path, "merged/%s.idx", chain);
    unlinkat(s->dir, path, 0);
}

/* ---- a pack with holes, its blob's table, and readers at once ---- */
enum { HOLE_FILES = 3, HOLE_READERS = 3 };

static struct {
    u8 *data[HOLE_FILES]; /* contents of /0, /1, … */
    size_t n[HOLE_FILES];
    unsigned asked[1024]; /* the provider was, for the chunk at a place */
    bool refuse;
    struct packs packs;
} hole;

static int hole_provide(struct holes *h, const struct idx_chunk *c, struct err *e) {
    __atomic_add_fetch(&hole.asked[c->off / PACK_ALIGN], 1, __ATOMIC_RELAXED);
    return hole.refuse ? -1 : holes_from_blob(h, c, e);
}

/* Each file of the layer, in pieces that begin within chunks. */
static void *hole_read(void *arg) {
    size_t step = 50000 + 60000 * (size_t)(uintptr_t)arg;
    AUTO_FREE u8 *out = mem_new(step);
    for (unsigned f = 0; f < HOLE_FILES; f++) {
        char name[2] = { (char)('0' + f), 0 };
        const struct idx *x = hole.packs.x;
        const struct idx_dirent *d = idx_lookup(x, &x->inodes[0], name, 1);
        for (size_t at = 0; d && at < hole.n[f]; at += step) {
            ssize_t k = packs_read(&hole.packs, idx_inode(x, d->inode), out, step, at);
            size_t want = hole.n[f] - at < step ? hole.n[f] - at : step;
            must(hole.refuse ? k < 0 : k == (ssize_t)want && !memcmp(out, hole.data[f] + at, want));
        }
    }
    return NULL;
}

/* A layer of three files, its blob compressed as members of `step` bytes each. */
static void hole_layer(struct store *s, size_t step, char *diff_id, u8 blob_raw[32]) {
    static struct buf tar, kept[2];
    static size_t used;
    struct buf *blob = &kept[step > 1000];
    struct err e = { 0 };
    char digest[DIGEST_LEN + 1];
    static const size_t SIZES[HOLE_FILES] = { 5, 3 * 4096, (1 << CHUNK_SHIFT) + 777 };
    if (blob->n) goto made;
    buf_done(&tar);
    buf_reserve(&tar, 1 << 20);
    struct archive *a = archive_write_new();
    archive_write_set_format_ustar(a);
    archive_write_open_memory(a, tar.p, 1 << 20, &used);
    for (unsigned f = 0; f < HOLE_FILES; f++) {
        char name[2] = { (char)('0' + f), 0 };
        struct archive_entry *en = archive_entry_new();
        if (!hole.data[f]) {
            hole.data[f] = mem_new(hole.n[f] = SIZES[f]);
            for (size_t i = 0, v = f; i < SIZES[f]; i++) hole.data[f][i] = (u8)((v = v * 69069 + 5) >> 16);
        }
        archive_entry_set_pathname(en, name);
        archive_entry_set_mode(en, S_IFREG | 0644);
        archive_entry_set_size(en, (la_int64_t)hole.n[f]);
        must(archive_write_header(a, en) == ARCHIVE_OK);
        archive_write_data(a, hole.data[f], hole.n[f]);
        archive_entry_free(en);
    }
    archive_write_free(a);
    for (size_t at = 0; at < used; at += step) {
        size_t n = used - at < step ? used - at : step;
        buf_reserve(blob, ZSTD_compressBound(n));
        blob->n += ZSTD_compress(blob->p + blob->n, ZSTD_compressBound(n), tar.p + at, n, 1);
    }
made:
    must(!ingest_mem(s, tar.p, used, diff_id, &e) && !blob_add(s, blob->p, blob->n, digest, &e));
    hex_to(digest_hex(digest), blob_raw, 32);
}

/* Takes from a layer what the bits of `gone` say. */
static void hole_punch(struct store *s, const char *diff_id, const u8 blob[32], u32 gone) {
    char path[96];
    struct err e = { 0 };
    AUTO_IDX x = { 0 };
    AUTO_BUF out = { 0 };
    snprintf(path, sizeof path, "layers/%s.idx", digest_hex(diff_id));
    must(!idx_open(s->dir, path, true, &x, &e));
    u64 places = x.packs[0].size / PACK_ALIGN, bits[16] = { 0 };
    struct idx_head h = *x.head;
    h.version = IDX_VERSION_HOLES;
    idx_head_sum(&h, h.head_sha);
    buf_add(&out, &h, sizeof h);
    buf_add(&out, x.map + sizeof h, x.head->file_size - sizeof h);
    memcpy(path + strlen(path) - 3, "pack", 5);
    AUTO_FD pack = openat(s->dir, path, O_RDWR | O_CLOEXEC);
    for (u32 k = 0; k < x.head->chunks; k++) {
        const struct idx_chunk *c = &x.chunks[k];
        AUTO_FREE u8 *zeros = mem_new(c->stored);
        if (!(gone >> k & 1)) bits_set(bits, c->off / PACK_ALIGN);
        else must(!fd_pwrite_all(pack, zeros, c->stored, c->off));
    }
    must(places <= 1024 && !ftruncate(pack, (off_t)x.packs[0].size + PACK_ALIGN));
    buf_add(&out, blob, 32);
    buf_add(&out, &places, 8);
    buf_add(&out, bits, (places + 63) / 64 * 8);
    snprintf(path, sizeof path, "layers/%s.idx", digest_hex(diff_id));
    must(!file_replace(s->dir, path, out.p, out.n, 0600, 0, &e));
}

/* The input is the table, in our form or as JSON; whatever it says, contents are right, and each
 * chunk is asked for once. */
static void fuzz_holes(const u8 *data, size_t n) {
    char diff[DIGEST_LEN + 1], path[96];
    u8 blob[32];
    struct err e = { 0 };
    struct store *s = store_of();
    if (n < 2) return;
    hole_layer(s, data[0] & 4 ? 1000 : 100000, diff, blob);
    AUTO_IDX x = { 0 };
    snprintf(path, sizeof path, "layers/%s.idx", digest_hex(diff));
    must(!idx_open(s->dir, path, true, &x, &e));
    AUTO_FD layers = dir_open(s->dir, "layers", &e);
    AUTO_BUF b = { 0 };
    struct toc_head h = { .magic = "skifftoc", .version = TOC_VERSION };
    memcpy(h.blob, blob, 32);
    buf_add(&b, &h, sizeof h);
    if (data[0] & 1) {
        AUTO_JSON *j = js_parse((const char *)data + 2, n - 2, "input", &e);
        struct toc_making m = { .x = &x, .end = 1 << 20 };
        toc_entries(&m, js_get(j, "entries"));
        toc_pieces(&m, &b);
    } else {
        buf_add(&b, data + 2, n - 2);
        ((struct toc_head *)(void *)b.p)->pieces = (u32)((n - 2) / sizeof(struct toc_piece));
    }
    must(!toc_save(layers, digest_hex(diff), &b, &e));
    hole_punch(s, diff, blob, data[1]);
    packs_init(&hole.packs, &x, layers);
    must(packs_fd(&hole.packs, 0) >= 0 && hole.packs.pack[0].holes);
    hole.packs.pack[0].holes->provide = hole_provide;
    memset(hole.asked, 0, sizeof hole.asked);
    if (data[0] & 2 && data[1] == 0xff) { /* refused at first, all is there later */
        hole.refuse = true;
        hole_read(NULL);
        hole.refuse = false;
        memset(hole.asked, 0, sizeof hole.asked);
    }
    pthread_t th[HOLE_READERS];
    for (uintptr_t i = 0; i < HOLE_READERS; i++)
        must(!pthread_create(&th[i], NULL, hole_read, (void *)i));
    for (unsigned i = 0; i < HOLE_READERS; i++) pthread_join(th[i], NULL);
    for (u32 k = 0; k < x.head->chunks; k++)
        must(hole.asked[x.chunks[k].off / PACK_ALIGN] <= (data[1] >> k & 1));
    packs_done(&hole.packs);
}

/* ---- an archive of images ---- */
static void fuzz_load(const u8 *data, size_t n) {
    struct err e = { 0 };
    struct store *s = store_of();
    g.file = data, g.file_n = n;
    AUTO_FD fd = file_fd();
    if (image_load_from(s, fd, -1, NULL, NULL, &e)) must(e.msg[0]);
}

/* ---- an archive laid out below a root: cp, ADD ---- */
static void fuzz_place(const u8 *data, size_t n) {
    struct err e = { 0 };
    if (!n) return;
    AUTO_FD outside = fresh_dir("outside"), root = fresh_dir("root");
    must(!mkdirat(root, "in", 0700) && !mkdirat(root, "outside", 0700) && !symlinkat("../outside", root, "out") &&
         !symlinkat("/in", root, "in2"));
    must(!mkdirat(outside, "kept", 0700));
    g.file = data + 1, g.file_n = n - 1;
    AUTO_FD fd = file_fd();
    struct placing pl = { .root = root, .into = *data & 1 ? "in" : "", .uid = -1, .gid = -1,
                          .chmod = -1, .strict = *data & 2,
                          .rename = *data & 4 ? "new" : NULL };
    place_archive(&pl, fd, &e);
    AUTO_DIR *d = dir_stream(g.dir, "outside");
    struct dirent *de = dir_next(d);
    must(de && !strcmp(de->d_name, "kept") && !dir_next(d)); /* nothing came, nothing went */
}

/* ---- Dockerfiles ---- */
static void fuzz_dockerfile(const u8 *data, size_t n) {
    struct err e = { 0 };
    struct dockerfile d;
    AUTO_FREE char *text = text_of(data, n);
    if (dockerfile_parse(text, &d, &e)) {
        must(e.msg[0]);
        return;
    }
    AUTO_STRV args = { 0 };
    AUTO_JSON *config = json_object();
    size_t total = 0;
    for (size_t i = 0; i < d.nglobal; i++) {
        AUTO_STRV w = { 0 };
        struct df_vars v = { NULL, &args };
        if (df_words(d.global[i].text, d.escape, &v, &w, &e)) break;
        for (size_t k = 0; k < w.n; k++)
            if ((total += strlen(w.v[k])) < 1000) env_set(&args, w.v[k]);
    }
    for (size_t st = 0; st < d.n; st++)
        for (size_t i = 0; i < d.stage[st].n; i++) {
            const struct df_inst *in = &d.stage[st].inst[i];
            AUTO_STRV env = { 0 }, w = { 0 };
            js_to_strv(js_path(config, "config.Env"), &env);
            struct df_vars v = { &env, &args };
            size_t size = 0; /* variables made of variables grow without end */
            for (size_t k = 0; k < env.n; k++) size += strlen(env.v[k]);
            if (size > 300) goto out;
            for (size_t k = 0; k < in->flags.n; k++) {
                struct run_mount m;
                if (!str_prefix(in->flags.v[k], "--mount=")) continue;
                run_mount_parse(in->flags.v[k] + 8, &m, &e);
                strv_done(&m.kv);
            }
            for (unsigned k = 0; k < in->docs; k++) {
                AUTO_FREE char *body = NULL;
                df_text(in->doc[k].text, d.escape, in->doc[k].expand ? &v : NULL, &body, &e);
            }
            if (df_configure(config, in->name, in->text, d.escape, &v, &e) == 1)
                df_words(in->text, d.escape, &v, &w, &e);
        }
out:;
    AUTO_FREE char *dump = js_dump(config, 0);
    dockerfile_done(&d);
}

/* ---- .dockerignore, an empty line, paths ---- */
static void fuzz_ignore(const u8 *data, size_t n) {
    const u8 *rest;
    size_t rest_n;
    g.file = data;
    g.file_n = cut_at(data, n, "\n\n", &rest, &rest_n);
    AUTO_STRV patterns = { 0 }, paths = { 0 };
    struct err e;
    if (ignore_load(g.dir, "/FUZZ", &patterns, &e) && !e.msg[0]) abort();
    AUTO_FREE char *text = text_of(rest, rest_n);
    strv_split(&paths, text, '\n');
    for (size_t i = 0; i < paths.n; i++) {
        AUTO_FREE char *clean = path_clean(paths.v[i]);
        must(*clean != '/' && !str_prefix(clean, "../") && !strstr(clean, "/../"));
        ignored(&patterns, clean);
    }
}

/* ---- files of the kernel ---- */
static void fuzz_proc(const u8 *data, size_t n) {
    struct err e = { 0 };
    if (!n) return;
    g.file = data + 1, g.file_n = n - 1;
    switch (*data % 7) {
    case 0: {
        AUTO_FREE char *own = NULL;
        cgroup_own(&own);
        break;
    }
    case 1: {
        struct top_proc p;
        static const char *const COLS[] = { "user", "pid", "ppid", "stime", "time",
                                            "comm", "rss", "vsz",  "stat",  "args" };
        if (top_read(1, &p))
            for (size_t i = 0; i < ARRAY_LEN(COLS); i++) free(top_cell(&p, COLS[i]));
        free(p.args);
        proc_started(1);
        break;
    }
    case 2: {
        struct idmap map = { 0 };
        idmap_own(&map);
        must(map.uids <= 4 && map.gids <= 4);
        idmap_has(map.uid, map.uids, 0);
        idmap_outside_id(map.uid, map.uids, 0);
        break;
    }
    case 3: {
        char where[] = "/FUZZ";
        struct cgroup c = { where };
        cgroup_counter(&c, "memory.events", "oom_kill");
        cgroup_counter(&c, "memory.current", NULL);
        cgroup_enable("/FUZZ");
        pid_t *pids = NULL;
        size_t count = 0;
        cgroup_pids("/FUZZ", &pids, &count);
        free(pids);
        break;
    }
    case 4: hello_main(); break;
    case 5: {
        u32 start, count;
        host_subid("/FUZZ", &start, &count);
        break;
    }
    case 6: {
        char line[16];
        i64 v;
        if (!file_line(AT_FDCWD, "/proc/sys/kernel/cap_last_cap", line, sizeof line))
            str_int(line, 0, 63, &v);
        json_t *proc = json_object();
        struct cli c = { .opts = json_object() };
        struct make m = { .cli = &c };
        u64 caps;
        make_caps(&m, proc, &caps, &e);
        json_decref(c.opts), json_decref(proc);
    }
    }
}

/* ---- what a registry says: header lines; behind an empty line a registries.conf ---- */
static void fuzz_http(const u8 *data, size_t n) {
    struct http *h = mem_new(sizeof *h);
    struct err e = { 0 };
    const u8 *rest, *p = data, *next;
    size_t rest_n, left;
    size_t head = cut_at(data, n, "\n\n", &rest, &rest_n);
    while (head) {
        size_t len = cut_at(p, head, "\n", &next, &left);
        AUTO_FREE char *line = mem_new(len + 1); /* as libcurl gives it: not terminated */
        memcpy(line, p, len);
        http_on_header(line, 1, len, h);
        p = next, head = left;
    }
    if (h->www_auth) {
        AUTO_FREE char *realm = reg_param(h->www_auth, "realm"),
                       *service = reg_param(h->www_auth, "service"),
                       *scope = reg_param(h->www_auth, "scope");
        AUTO_FREE char *origin = realm ? http_origin(realm) : NULL;
        if (origin) must(strlen(origin) <= strlen(realm));
        AUTO_FREE char *plain = b64_decode(h->www_auth);
        if (plain) free(b64_encode(plain, strlen(plain)));
    }
    if (h->location) {
        CURLU *u = curl_url();
        char *to = NULL;
        if (!curl_url_set(u, CURLUPART_URL, "https://registry.example/v2/a/blobs/b", 0) &&
            !curl_url_set(u, CURLUPART_URL, h->location, 0) &&
            !curl_url_get(u, CURLUPART_URL, &to, 0)) {
            AUTO_FREE char *origin = http_origin(to);
            must(strstr(origin, "://"));
        }
        curl_free(to);
        curl_url_cleanup(u);
    }
    manifest_check(json_null(), h->type, "input", &e);
    digest_hex(h->digest);
    http_free(h);
    struct ref ref;
    struct reg_conf c = { 0 };
    struct reg_host self = { str_dup("x"), 0, false };
    g.file = rest, g.file_n = rest_n;
    must(!ref_parse("r.example/team/app", &ref, &e));
    reg_conf_read("/FUZZ", &ref, &c, &self, &e);
    for (size_t i = 0; i < c.n; i++) must(c.hosts[i].strip <= strlen(ref.path));
    must(self.strip <= strlen(ref.path));
    reg_conf_done(&c);
    free(self.location);
}

/* ---- --format: a template; behind an empty line a value ---- */
static void fuzz_format(const u8 *data, size_t n) {
    static const char VALUE[] =
        "{\"ID\":\"0123456789ab\",\"Names\":\"caf\xc3\xa9\",\"Labels\":\"a=b,c=d\",\"N\":-3,"
        "\"R\":1.5,\"T\":true,\"Null\":null,\"List\":[1,\"two\",[3]],\"Map\":{\"k\":\"v\",\"l\":{}},"
        "\"Config\":{\"Env\":[\"A=b\"],\"Labels\":{\"x.y\":\"z\"}}}";
    struct err e = { 0 };
    const u8 *rest;
    size_t rest_n, k = cut_at(data, n, "\n\n", &rest, &rest_n);
    AUTO_FREE char *text = text_of(data, k);
    AUTO_JSON *v = rest_n ? js_parse((const char *)rest, rest_n, "input", &e) : NULL;
    if (!v) v = js_parse(VALUE, sizeof VALUE - 1, "value", &e);
    AUTO_BUF out = { 0 };
    tmpl_run(text, v, &out, &e);
    if (!json_is_object(v)) return;
    AUTO_JSON *rows = json_array();
    json_array_append(rows, v);
    rows_print(text, "table {{.ID}}\t{{.Names}}", v, rows, &e);
}

/* ---- environment files ---- */
static void fuzz_env(const u8 *data, size_t n) {
    struct err e = { 0 };
    AUTO_STRV env = { 0 };
    g.file = data, g.file_n = n;
    env_file(&env, "/FUZZ", &e);
    for (size_t i = 0; i < env.n; i++) must(strchr(env.v[i], '='));
    env_get(&env, "PATH");
    struct cli c = { .opts = json_object() };
    AUTO_JSON *sk = json_object();
    struct make m = { .cli = &c, .sk = sk };
    js_push(js_suba(c.opts, "label-file"), "/FUZZ");
    make_labels(&m, &e);
    json_decref(c.opts);
}

/* ---- "user:group", an empty line, a passwd which is the group file, too ---- */
static void fuzz_users(const u8 *data, size_t n) {
    struct err e = { 0 };
    struct user u;
    const u8 *rest;
    size_t rest_n, k = cut_at(data, n, "\n\n", &rest, &rest_n);
    AUTO_FREE char *spec = text_of(data, k);
    AUTO_FD root = fresh_dir("view");
    must(!mkdirat(root, "etc", 0700));
    must(!file_replace(root, "etc/passwd", rest, rest_n, 0600, FILE_FRESH, &e));
    must(!file_replace(root, "etc/group", rest, rest_n, 0600, FILE_FRESH, &e));
    struct rootfs_view v = { NULL, -1, root };
    if (user_resolve(&v, spec, &u, &e)) {
        must(e.msg[0]);
        return;
    }
    must(u.uid <= INT32_MAX && u.gid <= INT32_MAX);
    AUTO_STRV add = { 0 };
    strv_split(&add, spec, ':');
    user_groups(&v, &add, &u, &e);
    user_done(&u);
}

/* ---- single words: sizes, times, signals, keys ---- */
static void fuzz_words(const u8 *data, size_t n) {
    struct err e = { 0 };
    AUTO_FREE char *s = text_of(data, n);
    char time[40], keys[16];
    i64 ns = time_parse(s), v;
    time_rfc3339(ns, time);
    time_go(ns, time);
    free(time_human(ns)), free(ago(s));
    must(time_duration(s) >= -1 && str_bytes(s) >= -1);
    time_option(s);
    free(size_human((u64)str_bytes(s))), free(size_binary((u64)str_bytes(s)));
    if (str_int(s, -5, 5, &v)) must(v >= -5 && v <= 5);
    signal_number(s), cap_number(s), rlimit_number(s), oci_id_ok(s);
    struct idmap map = { 0 };
    plan_idmap_words(s, &map);
    AUTO_STRV fields = { 0 };
    csv_split(s, &fields);
    struct run_mount rm;
    run_mount_parse(s, &rm, &e);
    strv_done(&rm.kv);
    AUTO_FREE char *safe = str_printable(s), *clean = path_clean(s);
    for (const char *p = safe; *p; p++) must((u8)*p >= 32);
    const char *comma = strchr(s, ' ');
    AUTO_FREE char *want = str_dupn(s, comma ? (size_t)(comma - s) : n);
    struct keys k = { 0 };
    k.n = detach_keys(want, k.want, sizeof k.want);
    memcpy(keys, k.want, sizeof keys);
    if (k.n < 0) k.n = 0;
    AUTO_FREE char *typed = mem_new(n + 16);
    size_t got;
    keys_filter(&k, s, strlen(s), typed, &got);
    must(got <= n + 16);
}

/* ---- a command line, one word a line ---- */
static void fuzz_flags(const u8 *data, size_t n) {
    struct err e = { 0 };
    AUTO_STRV w = { 0 };
    AUTO_FREE char *text = text_of(data, n);
    strv_split(&w, text, '\n');
    int used = 0;
    bool help;
    const struct cmd *cmd = main_find((int)w.n, w.v, &used);
    for (size_t i = 0; !cmd && i < ARRAY_LEN(OCI_CMDS); i++)
        if (w.n > 1 && !strcmp(w.v[0], "oci") && str_eq(w.v[1], OCI_CMDS[i].path))
            cmd = &OCI_CMDS[i], used = 2;
    if (!cmd) return;
    struct cli c = { .cmd = cmd };
    if (!opt_parse(cmd, (int)w.n - used, w.v + used, &c, &help, &e) && !help) {
        must(c.nargs <= (int)w.n && !c.args[c.nargs]);
        AUTO_JSON *sk = json_object(), *spec = json_object(), *proc = json_object();
        struct make m = { .cli = &c, .sk = sk };
        u64 caps;
        make_record(&m, &e);
        make_caps(&m, proc, &caps, &e);
        make_rlimits(&m, proc, &e);
        make_resources(&m, spec, &e);
        make_sysctls(&m, spec, &e);
        AUTO_STRV mounts = { 0 };
        cli_list(&c, "mount", &mounts);
        for (size_t i = 0; i < mounts.n; i++) {
            AUTO_STRV kv = { 0 };
            csv_split(mounts.v[i], &kv);
        }
    }
    json_decref(c.opts);
    free(c.args);
}

/* ---- the fuzzer ---- */
static void (*target)(const u8 *data, size_t n);

static void leave(void) {
    g.in = false;
    const char *own = getenv("SKIFF_FUZZ_DIR");
    if (own) tree_remove(AT_FDCWD, own);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    static const struct {
        const char *name;
        void (*run)(const u8 *, size_t);
    } ALL[] = {
#define X(name) { #name, fuzz_##name },
        TARGETS
#undef X
    };
    const char *want = getenv("SKIFF_FUZZ"), *tmp = getenv("TMPDIR");
    for (size_t i = 0; i < ARRAY_LEN(ALL); i++) {
        if (!want) printf("%s\n", ALL[i].name);
        else if (!strcmp(want, ALL[i].name)) target = ALL[i].run;
    }
    if (!want) exit(0);
    if (!target) fprintf(stderr, "no target %s\n", want), exit(2);
    AUTO_FREE char *dir = str_fmt("%s/skiff-fuzz-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(dir)) perror(dir), exit(2);
    g.dir = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    AUTO_FREE char *root = str_fmt("%s/store", dir);
    setenv("SKIFF_FUZZ_DIR", dir, 1);
    setenv("SKIFF_ROOT", root, 1);
    setenv("HOME", dir, 1);
    setenv("SKIFF_DISABLE", "subuid", 1); /* no helper is run */
    atexit(leave);
    setlocale(LC_CTYPE, "C.UTF-8");
    g_log.quiet = true;
    struct rlimit files; /* as main does */
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (!freopen("/dev/null", "w", stdout)) exit(2);
    return 0;
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t n) {
    g.file = NULL, g.file_n = 0;
    g.in = true;
    target(data, n);
    g.in = false;
    g.runs++;
    fflush(stdout);
    return 0;
}
