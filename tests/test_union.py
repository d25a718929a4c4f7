"""The writable tree of a container, compared with a plain directory, and what broke other unions."""
import grp
import os
import random

import lib
from lib import ENV, Failed, Skipped, docker_archive, entry, eq, image, match, only, tar, timeout, true, until

WHO = "gf"
SECONDS = float(os.environ.get("SECONDS", 10))


def drivers(sk):
    return (["fuse", "overlay-fuse"] if sk.who in "fg" else []) + ["overlay"]


def program(sk):
    """union.c as a static program, in a directory to mount."""
    if not os.path.exists(sk.dir + "/bin/union"):
        sk.folder("bin")
        lib.tool("gcc", "-static", "-O1", "-o", sk.dir + "/bin/union", lib.HERE + "/union.c")
    return sk.dir + "/bin:/union:ro"


class Tree:
    """Layers made by chance, and what they are together: name -> node, equal for hard links."""

    def __init__(self, seed, links, ids):
        self.rng = random.Random(seed)
        self.blob = self.rng.randbytes(3 << 20)
        self.links, self.ids = links, ids
        self.merged = {"": dict(type="d", mode=0o755, uid=0, gid=0, mtime=1100000000, xattrs={})}
        self.layers = []

    def node(self, type, **kw):
        r = self.rng
        return dict(type=type, mode=r.choice([0o644, 0o755, 0o600, 0o444, 0o4755]) if type != "d" else
                    r.choice([0o755, 0o755, 0o755, 0o700, 0o777, 0o1777, 0o2755]),
                    uid=r.choice(self.ids), gid=r.choice(self.ids), mtime=r.randrange(1000000000, 1400000000),
                    xattrs={"user." + r.choice("ab"): "v" * r.randrange(1, 50)} if r.random() < 0.15 and type in "fd" else {}, **kw)

    def file(self):
        r, k = self.rng, self.rng.random()
        size = 0 if k < 0.15 else r.randrange(300) if k < 0.5 else r.randrange(70000) if k < 0.95 else r.randrange(1 << 21)
        parts = []
        if size > 1000 and r.random() < 0.3:  # mostly holes
            for _ in range(r.randrange(4)):
                n = r.randrange(1, min(size, 9000))
                parts.append((r.randrange(size - n + 1), n, r.randrange(len(self.blob) - n)))
        elif size:
            parts = [(0, size, r.randrange(len(self.blob) - size))]
        return self.node("f", size=size, parts=parts)

    def data(self, n):
        out = bytearray(n["size"])
        for off, size, at in n["parts"]:
            out[off:off + size] = self.blob[at:at + size]
        return bytes(out)

    def dirs(self):
        return [p for p, n in self.merged.items() if n["type"] == "d"]

    def name(self, i):
        r, k = self.rng, self.rng.random()
        if k < 0.03:
            return "L" * 254 + str(i % 10)
        if k < 0.06:
            return "sp ace'\\%d" % i
        return "%s%d" % (r.choice("abcdn"), i % 60)

    def layer(self, count, prefix):
        r, out, mine, shown = self.rng, [], {}, set()

        def parents(path):  # as everybody writes them: who leaves them out means other attributes
            for i in [0] + [i for i, c in enumerate(path) if c == "/"]:
                if path and path[:i] not in shown:
                    shown.add(path[:i])
                    emit(path[:i], self.merged[path[:i]])

        def emit(path, n):
            parents(path)
            shown.add(path)
            t = {"d": lib.tarfile.DIRTYPE, "f": None, "l": lib.tarfile.SYMTYPE, "p": lib.tarfile.FIFOTYPE}[n["type"]]
            kw = {k: n[k] for k in ("uid", "gid", "mtime")}
            if n["xattrs"]:
                kw["pax_headers"] = {"SCHILY.xattr." + k: v for k, v in n["xattrs"].items()}
            out.append(entry(prefix + path, self.data(n) if n["type"] == "f" else None, type=t, link=n.get("to", ""),
                             mode=n["mode"], **kw))

        def drop(path):
            for p in [p for p in self.merged if p == path or p.startswith(path + "/")]:
                del self.merged[p]
                mine.pop(p, None)

        for i in range(count):
            parent = r.choice(self.dirs())
            path = (parent + "/" if parent else "") + self.name(r.randrange(1000))
            k = r.random()
            old = self.merged.get(path)
            if old and path in mine:
                continue
            if old and old["type"] == "d" and any(p.startswith(path + "/") for p in mine):
                continue
            if self.layers and k < 0.2:  # a whiteout
                victims = [p for p in self.merged if p and len(p.split("/")[-1]) < 250 and p not in mine and not any(q.startswith(p + "/") for q in mine)]
                if victims:
                    p = r.choice(victims)
                    if p.count("/") > 1 or self.merged[p]["type"] != "d":
                        drop(p)
                        mine[p] = 1
                        parents(p)
                        head, _, base = p.rpartition("/")
                        out.append(entry(prefix + (head + "/" if head else "") + ".wh." + base, b""))
                        # what the whiteout hides does not come back in this layer
                        self.merged.pop(p, None)
                continue
            if self.layers and k < 0.26:  # opaque
                d = r.choice([p for p in self.dirs() if p] or [""])
                if d and d not in mine and not any(q.startswith(d + "/") for q in mine):
                    n = self.node("d")
                    drop(d)
                    self.merged[d] = n
                    mine[d] = 1
                    emit(d, n)
                    out.append(entry(prefix + d + "/.wh..wh..opq", b""))
                continue
            if path in mine:
                continue
            if old and old["type"] == "d" and k > 0.5:
                n = self.node("d")  # other attributes of a directory
            elif k < 0.5:
                n = self.node("d") if path.count("/") < 30 else self.file()
            elif k < 0.85:
                n = self.file()
            elif k < 0.93:
                n = self.node("l", to=r.choice(["a1", "../b2", "nowhere", "..", "x" * 300]))
                n["mode"] = 0o777
            elif k < 0.95:
                n = self.node("p")
            else:
                own = [p for p in mine if p in self.merged and self.merged[p]["type"] in "fl" and self.links]
                if not own or old:
                    continue
                target = r.choice(own)
                parents(path)
                self.merged[path] = self.merged[target]
                mine[path] = 1
                out.append(entry(prefix + path, None, type=lib.tarfile.LNKTYPE, link=prefix + target))
                continue
            if old and not (old["type"] == "d" and n["type"] == "d"):
                drop(path)
            self.merged[path] = n
            mine[path] = 1
            emit(path, n)
        deep = "/".join(["deep"] + ["d%d" % i for i in range(40)])
        if not self.layers:
            for i in range(1, 42):
                p = "/".join(deep.split("/")[:i])
                n = self.node("d")
                if p not in self.merged:
                    self.merged[p] = n
                    emit(p, n)
        self.layers.append(tar(*out))

    def spec(self):
        """What `union build` reads."""
        lines, seen, xattrs = [], {}, []
        for p in sorted(self.merged):
            n = self.merged[p]
            if id(n) in seen:
                lines.append(["h", p, seen[id(n)]])
                continue
            seen[id(n)] = p
            f = [n["type"], p, "%o" % n["mode"], n["uid"], n["gid"], n["mtime"]]
            if n["type"] == "f":
                f += [n["size"]] + [x for part in n["parts"] for x in part]
            if n["type"] == "l":
                f += [n["to"]]
            lines.append(f)
            xattrs += [["x", p, k, v] for k, v in n["xattrs"].items()]
        return "".join("\t".join(map(str, f)) + "\n" for f in lines + xattrs)


def up(sk, driver, name, tag, *options):
    """A container of that rung that waits."""
    return sk(["--storage-driver", driver, "run", "-d", "--name", name, "-v", program(sk), *options, tag, "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done & wait"]).ok


def union(sk, name, *words):
    return sk(["exec", name, "/union/union", *map(str, words)])


def servers(sk):
    return [pid for pid, name in sk.processes() if name == "skiff-fs"]


def memory(pid):
    """What a server holds that cannot be thrown away, in MB."""
    with open("/proc/%d/status" % pid) as f:
        return int(match(f.read(), r"RssAnon:\s+(\d+) kB")[1]) / 1024


def many_ids(sk):
    return sk.who in "ag"


def model_image(sk, tag, seed, links, trees=2):
    """An image with `trees` equal trees in /t, and as many plain ones in plain/."""
    made = [Tree(seed + i, links, [0, 0, 0, 1, 1000] if many_ids(sk) else [0]) for i in range(trees)]
    layers = [lib.busybox_layer()]
    for k in range(4):
        for i, t in enumerate(made):
            t.layer([150, 60, 60, 40][k], "t/%d/" % i)
            layers.append(t.layers[-1])
    sk.load(docker_archive(*layers, tag=tag)).ok
    for i, t in enumerate(made):
        sk.file("spec/%d" % i, t.spec())
        sk.file("spec/%d.blob" % i, t.blob)
    return made


@timeout(300)
def test_model(sk):
    seed = int(os.environ.get("SEED", random.SystemRandom().randrange(10 ** 6)))
    flags = "m" if many_ids(sk) else "-"
    for driver in os.environ.get("DRIVER", "").split() or drivers(sk):
        with sk.case("%s, seed %d" % (driver, seed)):
            f = flags + ("i" if driver == "fuse" else "") + os.environ.get("FLAGS", "")
            model_image(sk, "model:" + driver, seed, driver == "fuse")
            plain = sk.folder("plain-" + driver)
            sk(["--storage-driver", driver, "run", "-d", "--name", driver, "-v", program(sk), "-v", plain + ":/plain", "-v", sk.dir + "/spec:/spec:ro",
                "model:" + driver, "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done & wait"]).ok
            for i in range(2):
                sk("exec %s mkdir /plain/%d" % (driver, i)).ok
                sk("exec %s /union/union build /spec/%d /spec/%d.blob /plain/%d" % (driver, i, i, i)).ok
                r = sk("exec %s /union/union check /t/%d /plain/%d %s" % (driver, i, i, f))
                true(r.code == 0, "the image's tree: " + lib.short(r.out, 2000) + r.err)
            phases = 3
            for phase in range(phases):
                running = [sk.popen("exec %s /union/union run /t/%d /plain/%d %d %f %s" % (driver, i, i, seed + 10 * phase + i, SECONDS / phases, f),
                                    stdout=lib.subprocess.PIPE, stderr=lib.subprocess.STDOUT) for i in range(2)]
                out = [p.communicate()[0].decode("utf-8", "replace") for p in running]
                sk.log += out
                for i, p in enumerate(running):
                    true(p.returncode == 0, "no difference in tree %d, phase %d: %s" % (i, phase, lib.short(out[i], 1500)))
                sk("restart -t 2", driver).ok
                for i in range(2):
                    r = sk("exec %s /union/union check /t/%d /plain/%d %s" % (driver, i, i, f))
                    true(r.code == 0, "the same after a restart, phase %d: %s" % (phase, lib.short(r.out, 4000) + r.err))
            sk("rm -f -v", driver).ok


def many_names(sk, tag, n):
    sk.load(docker_archive(lib.busybox_layer(), tar(entry("big/"), *[entry("big/f%06d" % i, b"x" * (i % 50)) for i in range(n)]), tag=tag)).ok


@timeout(200)
def test_large_directory(sk):
    """20,000 entries below and 20,000 above: each once, also while they are removed; the server stays small."""
    many_names(sk, "many", 20000)
    for driver in drivers(sk):
        with sk.case(driver):
            up(sk, driver, driver, "many")
            sk("exec %s sh -c" % driver, "ls /big | wc -l; ls /big | sort -u | wc -l; find /big -type f -size -2 | wc -l; stat -c %h /big/f000007").says("20000\n20000\n20000\n1")
            union(sk, driver, "many", "/big", 20000).says("")
            sk("exec %s sh -c" % driver, "ls /big | wc -l; rm /big/f*[05]; ls /big | wc -l; ls /big/f*[05] 2>/dev/null | wc -l; cat /big/n019999").says("40000\n36000\n0\nn019999")
            union(sk, driver, "sweep", "/big").says("36000 names, 0 twice, 0 not removed, 0 left")
            sk("exec %s sh -c" % driver, "ls -A /big | wc -l; rmdir /big && mkdir /big && ls -A /big | wc -l; mkdir /new").says("0\n0")
            union(sk, driver, "many", "/new", 5000).says("")
            union(sk, driver, "sweep", "/new").says("5000 names, 0 twice, 0 not removed, 0 left")
            for pid in servers(sk):
                true(memory(pid) < 30, "the server to hold less than 30 MB, it has %.1f" % memory(pid))
            sk("restart -t 2", driver).ok
            sk("exec %s sh -c" % driver, "ls -A /big /new | wc -l; rmdir /new && ls / | grep -c new").exits(1)
            sk("rm -f", driver).ok


@only("gf")
@timeout(200)
def test_memory(sk):
    """A walk over 60,000 files, and files that come and go, leave nothing in the server."""
    layer = [entry("m/")] + [e for d in range(300) for e in [entry("m/d%d/" % d)] + [entry("m/d%d/f%d" % (d, i), b"%d" % i) for i in range(200)]]
    sk.load(docker_archive(lib.busybox_layer(), tar(*layer), tag="walk")).ok
    for driver, most in ("overlay-fuse", 10), ("fuse", 30):
        with sk.case(driver):
            up(sk, driver, driver, "walk")
            pid, = servers(sk)
            walk = "find /m -type f -exec cat {} + | wc -c; find /m | wc -l"
            for _ in range(2):
                sk("exec %s sh -c" % driver, walk, wait=100).says("147000\n60301")
            true(memory(pid) < most, "less than %d MB after the walk, not %.1f" % (most, memory(pid)))
            union(sk, driver, "many", "/tmp", 2000).ok
            union(sk, driver, "sweep", "/tmp").ok
            before = memory(pid)
            for _ in range(10):
                union(sk, driver, "many", "/tmp", 2000).ok
                union(sk, driver, "sweep", "/tmp").says("2000 names, 0 twice, 0 not removed, 0 left")
            true(memory(pid) < before + 2, "20,000 files that came and went to leave nothing: %.1f MB were %.1f" % (memory(pid), before))
            sk("rm -f", driver).ok


def test_inodes(sk):
    """Inode and link numbers, while files are changed and after a restart."""
    A = dict(mtime=1234567890)
    sk.load(docker_archive(
        lib.busybox_layer(),
        tar(entry("d/", **A), entry("d/f", "f", **A), entry("d/h1", "h", **A), entry("d/h2", type=lib.tarfile.LNKTYPE, link="d/h1", **A), entry("d/s", link="f", **A),
            entry("d/p", type=lib.tarfile.FIFOTYPE, **A), entry("d/sub/", **A), entry("d/sub/x", "x", **A)),
        tar(entry("e/", **A), entry("e/f", "e", **A)), tag="ino")).ok
    show = "cd /d && stat -c '%n %i %h' . f h1 h2 s p sub sub/x ../e ../e/f"
    for driver in drivers(sk):
        exact = driver == "fuse"
        with sk.case(driver):
            up(sk, driver, driver, "ino")
            look = lambda: {w[0]: (w[1], w[2]) for w in (x.split() for x in sk("exec %s sh -c" % driver, show).ok.lines)}
            first = look()
            eq([first[n][1] for n in ("f", "h1", "h2", "s")], ["1", "2", "2", "1"], "links")
            eq(len({i for i, _ in first.values()}), 9, "inode numbers")
            eq(first["h1"][0], first["h2"][0], "the inode of a hard link")
            dirs = [".", "sub", "../e"]
            change = "cd /d && echo more >>f; echo more >>h1; chmod 600 sub/x ../e/f; touch p; chown -h 0:0 s; chmod 700 . sub ../e; touch new"
            sk("exec %s sh -c" % driver, change).ok
            now = look()
            for n in first if exact else dirs:  # the kernel breaks hard links
                eq(now[n][0], first[n][0], "the inode of " + n)
                true(now[n][1] == first[n][1] or n in dirs and now[n][1] == "1", "the links of %s to stay %s, or to be 1: %s" % (n, first[n][1], now[n][1]))
            if exact:
                sk("exec %s cat /d/h2" % driver).says("hmore")
            for phase in range(2):
                sk("restart -t 2", driver).ok
                again = look()
                for n in now if exact else dirs:
                    if n not in "sp":  # no attribute can be kept with these
                        eq(again[n], now[n], "%s after a restart" % n)
                eq(sk("exec %s sh -c" % driver, "cd /d && for n in *; do stat -c %i $n; done").ok.lines, [l.split()[0] for l in sk("exec %s sh -c" % driver, "cd /d && ls -i1").ok.lines],
                   "the numbers in the listing")
            sk("rm -f", driver).ok


def test_large_values(sk):
    """A file of 1 TiB, attributes of 64 KiB, paths longer than PATH_MAX: below, above, and over a restart."""
    value = "".join(chr(97 + i % 26) for i in range(65536))
    deep = "/".join(["D" * 200] * 30)
    sk.load(docker_archive(
        lib.busybox_layer(),
        tar(entry("x", "x", pax_headers={"SCHILY.xattr.user.big": value, "SCHILY.xattr.user.small": "s"}), entry("deep/"), entry("deep/" + deep + "/file", "deep")), tag="large")).ok
    plain = sk.folder("plain")
    for driver in drivers(sk):
        with sk.case(driver):
            up(sk, driver, driver, "large", "-v", plain + ":/plain")
        with sk.case(driver + ", 1 TiB"):
            union(sk, driver, "sparse", "/big").says("1 TiB, few blocks, truncated, punched")
            sk("exec %s rm /big" % driver).ok
        with sk.case(driver + ", 64 KiB of xattr in the image"):
            if driver != "overlay":  # what the host's file system takes is what an unpacked layer has
                h = 0
                for c in value:
                    h = (h * 31 + ord(c)) % (1 << 64)
                union(sk, driver, "getxattr", "/x", "user.big").says("65536 65536 65536 ERANGE %x %d" % (h, len("user.big.user.small.")))
        for size in 100, 3000, 20000, 65536, 65537:
            with sk.case("%s, an xattr of %d" % (driver, size)):
                for at in "/", "/plain/":
                    sk("exec %s touch %sfile%d" % (driver, at, size)).ok
                eq(union(sk, driver, "xattr", "/file%d" % size, size).ok.out, union(sk, driver, "xattr", "/plain/file%d" % size, size).ok.out, "as in a plain directory")
        with sk.case(driver + ", long paths below"):
            union(sk, driver, "deep", "/deep", 30, "c").says("5 names, the path is long")
        with sk.case(driver + ", long paths above"):
            sk("exec %s mkdir /up" % driver).ok
            union(sk, driver, "deep", "/up", 40, "m").ok
            sk("restart -t 2", driver).ok
            union(sk, driver, "deep", "/up", 40, "c").says("5 names, the path is long")
            match(sk("diff", driver).ok.out, "A /up/D+/D+")
            sk("commit %s deep:%s" % (driver, driver)).ok
            sk(["--storage-driver", driver, "run", "--rm", "-v", program(sk), "deep:" + driver, "/union/union", "deep", "/up", "40", "r"]).ok
            union(sk, driver, "deep", "/up", 40, "r").ok
            union(sk, driver, "deep", "/deep", 30, "r").ok
            sk("exec %s ls /deep /up" % driver).says("/deep:\n\n/up:")
            sk("rm -f", driver).ok


@only("gf")
@timeout(200)
def test_killed_server(sk):
    """kill -9 of the server while a container works: an error, no hang, the store is in order, others go on."""
    noise = random.Random(3).randbytes(300000)
    sk.load(docker_archive(lib.busybox_layer(), tar(entry("data/"), *[entry("data/f%d" % i, noise[i:]) for i in range(300)]), tag="load")).ok
    for driver in "fuse", "overlay-fuse":
        with sk.case(driver):
            sk(["--storage-driver", driver, "run", "-d", "--name", "other", "load", "sleep", "1000"]).ok
            mine = set(servers(sk))
            sk(["--storage-driver", driver, "run", "-d", "--name", "idle", "load", "sleep", "1000"]).ok
            p = sk.popen(["--storage-driver", driver, "run", "--name", "busy", "-v", program(sk), "load", "/union/union", "load", "/data", "/tmp"],
                         stdout=lib.subprocess.PIPE, stderr=lib.subprocess.PIPE)
            eq(p.stderr.readline(), b"working\n", "the program")
            for pid in set(servers(sk)) - mine:
                lib.kill(pid)
            try:
                out, err = p.communicate(timeout=30)
            except lib.subprocess.TimeoutExpired:
                p.kill()
                raise Failed("expected the program to see an error within 30 s")
            match(out.decode(), "^[a-z]+: (ENOTCONN|ECONNABORTED|EIO|ENODEV)$", "what the program says")
            eq(p.returncode, 1, "its exit code")
            r = sk("exec idle ls /data")
            true(r.code != 0, "ls in a container without a server to fail")
            sk("exec other sh -c", "ls /data | wc -l").says("300")
            for n in "busy", "idle":
                until(lambda: sk("rm -f", n).code == 0, "rm -f %s works" % n)
            sk("system check").ok
            sk(["--storage-driver", driver, "run", "--rm", "load", "sh", "-c", "cat /data/* | wc -c; echo x >/data/f1 && cat /data/f1"]).says("%d\nx" % sum(300000 - i for i in range(300)))
            sk("rm -f other").ok
            sk.check_store()


@only("root")
@image(None)
@timeout(200)
def test_full_disk(sk):
    """A store on a small disk: write() says ENOSPC, what was taken is there, and with room all goes on."""
    sk.groups = [grp.getgrnam("skiff-fuse").gr_gid]
    disk = sk.folder("disk")
    lib.tool("mount", "-t", "tmpfs", "-o", "size=50m,mode=700,uid=%d,gid=%d" % (sk.user[0], sk.user[1]), "tmpfs", disk)
    try:
        sk.root = sk.env["SKIFF_ROOT"] = disk + "/root"
        sk.load(docker_archive(lib.busybox_layer(), tar(entry("lower", b"l" * 3000000)), tag="full")).ok
        for driver in "fuse", "overlay-fuse", "overlay":
            with sk.case(driver):
                r = sk("--storage-driver %s run --rm full true" % driver)
                if r.code == 125 and "does not work here" in r.err:
                    raise Skipped("%s over tmpfs" % driver)
                up(sk, driver, driver, "full")
                for _ in range(2):
                    union(sk, driver, "fill", "/fill").says("write: ENOSPC, after some, close: 0")
                    match(sk("exec %s sh -c" % driver, "echo x >>/lower").err, "No space left on device", "a copy of 3 MB")
                    sk("exec %s sh -c" % driver, "wc -c </lower; mkdir /tmp/a && rmdir /tmp/a; rm /fill; cat /etc/passwd >/tmp/p && cmp /etc/passwd /tmp/p").says("3000000")
                sk("exec %s sh -c" % driver, "echo x >>/lower && wc -c </lower").says("3000002")
                sk("restart -t 2", driver).ok
                sk("exec %s sh -c" % driver, "wc -c </lower; ls /").prints("^3000002\n")
                sk("rm -f", driver).ok
                sk(["--storage-driver", driver, "run", "--rm", "-v", program(sk), "full", "/union/union", "fill", "/fill"]).prints("^write: ENOSPC, after some")
                sk("system check").ok
                sk.check_store()
    finally:
        for p, _ in sk.processes():
            lib.kill(p)
        lib.tool("umount", "-l", disk)


CHANGES = """
cd /t && echo more >>changed && rm gone && rm -r dirgone && rm -r remade && mkdir remade && echo new >remade/new && rm file && mkdir file && echo in >file/in
rm -r dir && echo file >dir && mv moved elsewhere && mkdir made && mv made movedmade && echo a >hard1 && ln hard1 hard2 && ln -s changed link && ln link link2
chmod 4750 mode && mkfifo fifo && mkdir -m 2775 setgid && touch -d @1000000000 old && mkdir sub/new && rm sub/a && echo b >sub/b && chmod 711 sub && truncate -s 1000000 hole
mkdir -p back && rm back/x && echo again >back/x && mv opaque/keep . && rm -r opaque && mkdir opaque && mv keep opaque
"""


def test_moved(sk):
    """What one rung wrote, another reads: as the container's own tree, and through commit."""
    names = ["changed", "gone", "dirgone/a", "dirgone/b/c", "remade/old", "file", "dir/a", "moved", "mode", "sub/a", "sub/b", "sub/c", "back/x", "back/y", "opaque/keep", "opaque/drop"]
    sk.load(docker_archive(lib.busybox_layer(), tar(entry("t/", mtime=1100000000), *[entry("t/" + n, n, mtime=1200000000) for n in names]), tag="moved")).ok
    all = drivers(sk)
    tree = lambda driver, image: sk(["--storage-driver", driver, "run", "--rm", "-v", program(sk), image, "/union/union", "tree", "/t"]).ok.out
    want = None
    for driver in all:
        with sk.case(driver):
            up(sk, driver, driver, "moved")
            sk("exec %s sh -ec" % driver, CHANGES).ok
            got = union(sk, driver, "tree", "/t").ok.out
            want = want or got
            eq(got.split("\n"), want.split("\n"), "the tree by " + driver)
            sk("stop -t 2", driver).ok
            sk("commit %s by:%s" % (driver, driver)).ok
            for other in all:
                eq(tree(other, "by:" + driver).split("\n"), want.split("\n"), "made by %s, run by %s" % (driver, other))
    with sk.case("the container's own tree"):
        for driver, other in ("fuse", "overlay-fuse"), ("overlay-fuse", "fuse"):
            if driver in all:
                path = "%s/containers/%s/config.json" % (sk.root, sk.get(driver, "{{.Id}}"))
                with open(path) as f:
                    text = f.read()
                with open(path, "w") as f:
                    f.write(text.replace('"driver":"%s"' % driver, '"driver":"%s"' % other).replace('"driver": "%s"' % driver, '"driver": "%s"' % other))
                sk("start", driver).ok
                eq(union(sk, driver, "tree", "/t").ok.out.split("\n"), want.split("\n"), "written by %s, read by %s" % (driver, other))
                sk("exec %s sh -ec" % driver, "cd /t; echo more >>changed; rm -r sub; mkdir sub; rm hard1; mv link changed2").ok
                sk("restart -t 2", driver).ok
                sk("exec %s sh -ec" % driver, "cd /t; ls sub | wc -l; tail -n1 changed; cat hard2").says("0\nmore\na")
    for driver in all:
        sk("rm -f", driver).ok
