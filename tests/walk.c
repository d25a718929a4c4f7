/* walk TREE WRITE - what tests/bench fs measures in each file system: prints `NAME SECONDS` lines
 *
 * Twice over all of TREE, `first` and `warm`: stat of every entry, open of every file, read of every
 * file. Then stat once more, `again`: what a file system asks anew after each read or close shows.
 * Then, if the directory WRITE is given, 10,000 files made and removed, 10,000 writes of 1 KiB,
 * $MIB MiB in writes of 1 MiB. After each of the four prints `pause` and waits for a line on
 * standard input. Fails at the first error. */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct dir {
    char *path, *names; /* of its files, one after the other */
    size_t used, room;
};
static struct dir *dirs;
static size_t ndirs, room, entries;
static char buffer[1 << 20];
static struct timespec began;

static void start(void) { clock_gettime(CLOCK_MONOTONIC, &began); }

static void stop(const char *name) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    printf("%s %.6f\n", name, t.tv_sec - began.tv_sec + (t.tv_nsec - began.tv_nsec) / 1e9);
}

static void add(struct dir *d, const char *name) {
    size_t n = strlen(name) + 1;
    while (d->used + n > d->room) d->names = realloc(d->names, d->room = d->room * 2 + 256);
    memcpy(d->names + d->used, name, n);
    d->used += n;
}

/* Every entry below; with keep, notes directories and files. */
static void walk(const char *path, int keep) {
    char *subs[4096];
    size_t nsubs = 0, me = ndirs;
    DIR *d = opendir(path);
    if (!d) err(1, "%s", path);
    if (keep) {
        if (ndirs == room) dirs = realloc(dirs, (room = room * 2 + 64) * sizeof *dirs);
        dirs[ndirs++] = (struct dir){ .path = strdup(path) };
    }
    for (struct dirent *e; (e = readdir(d));) {
        struct stat s;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        if (fstatat(dirfd(d), e->d_name, &s, AT_SYMLINK_NOFOLLOW)) err(1, "%s/%s", path, e->d_name);
        entries++;
        if (S_ISREG(s.st_mode) && keep) add(&dirs[me], e->d_name);
        if (!S_ISDIR(s.st_mode)) continue;
        if (nsubs == 4096) errx(1, "%s: too many directories", path);
        if (asprintf(&subs[nsubs++], "%s/%s", path, e->d_name) < 0) err(1, "memory");
    }
    closedir(d);
    for (size_t i = 0; i < nsubs; i++) walk(subs[i], keep), free(subs[i]);
}

static void files(int reading) {
    for (size_t i = 0; i < ndirs; i++) {
        int d = open(dirs[i].path, O_PATH | O_DIRECTORY);
        if (d < 0) err(1, "%s", dirs[i].path);
        for (char *p = dirs[i].names; p < dirs[i].names + dirs[i].used; p += strlen(p) + 1) {
            int fd = openat(d, p, O_RDONLY);
            if (fd < 0 || (reading && read(fd, buffer, 16384) < 0)) err(1, "%s/%s", dirs[i].path, p);
            close(fd);
        }
        close(d);
    }
}

static int make(const char *name) {
    int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0644);
    if (fd < 0) err(1, "create %s", name);
    return fd;
}

static void writes(int fd, size_t size, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (write(fd, buffer, size) != (ssize_t)size) err(1, "write");
    if (close(fd)) err(1, "close");
}

static void rest(void) {
    char line[16];
    puts("pause");
    if (!fgets(line, sizeof line, stdin)) exit(1);
}

int main(int argc, char **argv) {
    char name[16];
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int warm = 0; warm < 2; warm++) {
        start(), walk(argv[1], !warm), stop(warm ? "stat-warm" : "stat-first");
        start(), files(0), stop(warm ? "open-warm" : "open-first");
        start(), files(1), stop(warm ? "read-warm" : "read-first");
        if (!warm) printf("entries %zu\n", entries);
        rest();
    }
    start(), walk(argv[1], 0), stop("stat-again");
    rest();
    if (argc < 3) return 0;
    if (mkdir(argv[2], 0755) || chdir(argv[2])) err(1, "%s", argv[2]);
    memset(buffer, 'x', sizeof buffer);
    start();
    for (int i = 0; i < 10000; i++) sprintf(name, "f%d", i), close(make(name));
    for (int i = 0; i < 10000; i++)
        if (sprintf(name, "f%d", i), unlink(name)) err(1, "unlink %s", name);
    stop("create");
    start(), writes(make("small"), 1024, 10000), stop("small");
    start(), writes(make("large"), 1 << 20, (size_t)atoi(getenv("MIB"))), stop("large");
    if (unlink("small") || unlink("large")) err(1, "unlink");
    rest();
    return 0;
}
