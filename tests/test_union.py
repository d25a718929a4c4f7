"""The writable tree of a container, compared with a plain directory, and what broke other unions."""
import glob
import hashlib
import os
import random
import re
import struct
import time

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
    # another SEED and more SECONDS make it a search; the kernel's overlay differs from a plain directory by itself
    seed = int(os.environ.get("SEED", 1))
    flags = "m" if many_ids(sk) else "-"
    for driver in os.environ.get("DRIVER", "fuse").split():
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


def servers(sk):
    return [pid for pid, name in sk.processes() if name == "skiff-fs"]


def sockets(sk):
    return [n for n in os.listdir(sk.root + "/cache") if n.startswith("fs-")]


def test_read_ahead(sk):
    """Who reads files in the order of their listing gets the next ones before it asks: the same ones."""
    sizes = [0, 1, 4095, 4096, 4097, 16384, 65535, 65536, 65537, 300000]
    blob = bytes(i * i * 7 % 251 for i in range(300000))
    files = {"d%d/f%03d" % (d, i): blob[i * 37 % 1000:][:sizes[(i * 7 + d) % 10] if i % 9 else i] for d in range(3) for i in range(150)}
    names = sorted(files)
    sk.load(docker_archive(lib.busybox_layer(), tar(
        *[entry("d%d/" % d) for d in range(3)], *[entry(n, files[n]) for n in names],
        *[entry("d%d/link%d" % (d, d), link="f001") for d in range(3)]), tag="ahead")).ok
    want = ["%s  /%s" % (hashlib.md5(files[n]).hexdigest(), n) for n in names]
    over = "--storage-driver overlay-fuse run --rm ahead sh -c"
    with sk.case("in order"):
        eq(sk(over, "md5sum /d?/f*").ok.lines, want)
    with sk.case("backwards, and from the middle"):
        eq(sk(over, "md5sum $(ls -r /d1/f*); md5sum /d1/f07* /d0/f*").ok.lines,
           [x for x in reversed(want) if "/d1/" in x] + [x for x in want if "/d1/f07" in x] + [x for x in want if "/d0/" in x])
    with sk.case("two at once, in opposite order"):
        eq(sk(over, "md5sum $(ls -r /d2/f*) >/b & md5sum /d2/f* >/a; wait; cat /a; sort -k 2 /b").ok.lines, [x for x in want if "/d2/" in x] * 2)
    with sk.case("what is changed above stays changed"):
        eq(sk(over, "cat /d0/f000 /d0/f001 /d0/f002 /d0/f003 /d0/f004 >/dev/null; for i in 05 06 07 08; do echo new >>/d0/f0$i; done; "
                    "md5sum /d0/f* >/dev/null; for i in 05 06 07 08; do tail -c 4 /d0/f0$i; done").ok.lines, ["new"] * 4)
    with sk.case("a server that is killed while it sends goes, and so does who reads"):
        for i in range(12):
            sk("--storage-driver overlay-fuse run -d --name kill ahead sh -c", "while :; do md5sum /d?/f*; done").ok
            time.sleep(i / 200)
            for pid in servers(sk):
                lib.kill(pid)
            until(lambda: not servers(sk), "it has ended")
            sk("rm -f kill", wait=20).ok
    with sk.case("a damaged index costs the file that it speaks of, not the server"):
        digest = hashlib.sha256(files["d1/f113"]).digest()
        path, index = next((p, i) for p, i in ((p, open(p, "rb").read()) for p in glob.glob(sk.root + "/merged/*.idx")) if digest in i)
        with open(path, "r+b") as f:
            for m in re.finditer(re.escape(digest), index):
                f.seek(m.start() - 8)  # which pack the chunk lies in
                f.write(struct.pack("<I", 0x7fffffff))
        r = sk(over, "md5sum /d1/f*; md5sum /d2/f*")
        same = [n for n in names if files[n] == files["d1/f113"]]
        eq(r.lines, [x for x in want if x.split("  /")[1] not in same and "/d0/" not in x])


@image(None)
def test_listening_alone(sk):
    """A walk, for which one thread of the server listens alone; then many who read and write, for which all must."""
    files = [entry("t/%03d" % i, b"%d" % i * 400) for i in range(300)]
    sk.load(docker_archive(lib.busybox_layer(), tar(entry("t/"), *files), tag="alone")).ok
    script = ("for i in 1 2 3 4 5; do ls -l /t | wc -l; done; mkdir /w; for i in 1 2 3 4 5 6; do "
              "(cat /t/1* /t/2* | md5sum >/w/sum$i; dd if=/dev/zero of=/w/zero$i bs=64k count=16 conv=fsync 2>/dev/null; echo $i >/t/new$i; rm /t/00$i) & done; wait; "
              "cat /w/sum? | sort -u | wc -l; du -a /w | grep -c zero; ls /t | wc -l")
    for driver in "overlay-fuse", "fuse":
        with sk.case(driver):
            eq(sk("--storage-driver %s run --rm alone sh -c" % driver, script, wait=60).ok.lines, ["301"] * 5 + ["1", "6", "300"])


@timeout(240)
def test_shared_server(sk):
    """Many containers of one image have one file server, which ends with the last of them."""
    over = "--storage-driver overlay-fuse "
    files = {"f%d" % i: "%d\n" % i for i in range(400)}
    sk.load(docker_archive(lib.busybox_layer(), tar(entry("many/"), *[entry("many/" + n, t) for n, t in files.items()]), tag="many")).ok

    def start(*names, image="many", words=over):
        for n in names:
            sk(words + "run -d --name %s %s sleep 1000" % (n, image)).ok

    def whole(name):
        sk("exec %s sh -c" % name, "cat /many/*").says("".join(t for n, t in sorted(files.items())).rstrip("\n"))

    with sk.case("five containers, one server"):
        start("aa", "bb", "cc", "dd", "ee")
        eq((len(servers(sk)), len(sockets(sk))), (1, 1))
        one = servers(sk)
        whole("cc")
    with sk.case("the first one's end is not the others'"):
        sk("rm -f aa").ok
        for n in ("bb", "cc", "dd", "ee"):
            whole(n)
        eq(servers(sk), one)
    with sk.case("all at the same time"):
        ps = [sk.popen("exec %s sh -c" % n, "for i in 1 2 3; do cat /many/* | md5sum; find / -xdev | wc -l; done", stdout=lib.subprocess.PIPE) for n in ("bb", "cc", "dd", "ee")]
        eq(len({p.communicate()[0] for p in ps}), 1)
    with sk.case("a container that joins later, and leaves first"):
        sk(over + "run --rm many cat /many/f7").says("7")
        eq(servers(sk), one)
    with sk.case("another image, another server"):
        start("oo", image="busybox")
        eq(len(servers(sk)), 2)
        sk("rm -f oo").ok
        until(lambda: servers(sk) == one, "it ends")
    with sk.case("a writable tree has its own"):
        start("ww", words="--storage-driver fuse ")
        eq(len(servers(sk)), 2)
        sk("rm -f ww").ok
        until(lambda: servers(sk) == one, "it ends")
    with sk.case("steps of a build"):
        sk.file("ctx/Dockerfile", "FROM many\nRUN cat /many/f1 >/new\nRUN cat /new /many/f2 >/new2\n")
        sk(over + "build -q -t built", sk.dir + "/ctx").ok
        sk(over + "run --rm built cat /new2").says("1\n2")
        until(lambda: servers(sk) == one, "theirs have ended")
    with sk.case("a mount"):
        sk.folder("m1"), sk.folder("m2")
        sk("unshare sh -c", "%s %smount many m1 && %s %smount many m2 && cat m1/many/f1 m2/many/f2; %s umount m1; cat m2/many/f3"
           % (sk.binary, over, sk.binary, over, sk.binary)).says("1\n2\n3")
        until(lambda: servers(sk) == one, "its server has ended")
    with sk.case("the last one's end is the server's"):
        sk("rm -f bb cc dd").ok
        whole("ee")
        sk("rm -f ee").ok
        until(lambda: not servers(sk) and not sockets(sk), "server and socket are gone: %s" % sockets(sk))
    with sk.case("a server that is killed: errors for all, no hanging, and a next start"):
        start("aa", "bb", "cc")
        lib.kill(servers(sk)[0])
        for n in ("aa", "bb", "cc"):
            true(sk("exec %s cat /many/f9" % n).code, "an error in %s, or its end" % n)
        eq(len(sockets(sk)), 1, "what it leaves")
        start("dd")
        whole("dd")
        eq((len(servers(sk)), len(sockets(sk))), (1, 1))
        sk("rm -f aa bb cc").ok
        whole("dd")
        sk("restart -t 0 dd").ok
        whole("dd")
        sk("rm -f dd").ok
    with sk.case("a server that stands still is not waited for long"):
        start("aa")
        os.kill(servers(sk)[0], lib.signal.SIGSTOP)
        sk(over + "run --rm many cat /many/f3", wait=20).says("3")
        os.kill(servers(sk)[0], lib.signal.SIGCONT)
        whole("aa")
        sk("rm -f aa").ok
    with sk.case("files of another, and stale ones, where the socket would be"):
        start("aa")
        name = sk.root + "/cache/" + sockets(sk)[0]
        os.unlink(name)
        sk.file(name)
        start("bb")
        whole("bb")
        eq((len(servers(sk)), sockets(sk)), (2, [os.path.basename(name)]))
        sk("rm -f aa bb").ok
        until(lambda: not servers(sk) and not sockets(sk), "nothing is left: %s" % sockets(sk))
    with sk.case("after the collection of garbage nobody comes to the old server"):
        start("aa")
        sk("rmi -f busybox").ok
        eq(sockets(sk), [])
        start("bb")
        whole("bb")
        eq(len(servers(sk)), 2)
        sk("rm -f aa bb").ok
    with sk.case("two starts, and an end, at once"):
        for i in range(30):
            ps = [sk.popen(over + "run --rm many cat /many/f%d" % k, stdout=lib.subprocess.PIPE, stderr=lib.subprocess.PIPE) for k in (i, i + 1)]
            for k, p in enumerate(ps):
                out, err = p.communicate(timeout=lib.PATIENCE)
                eq((p.returncode, out, err), (0, b"%d\n" % (i + k), b""), "round %d" % i)
        until(lambda: not servers(sk) and not sockets(sk), "nothing is left: %s" % sockets(sk))
    with sk.case("switched off"):
        for n in ("aa", "bb"):
            sk(over + "run -d --name %s many sleep 1000" % n, env={"SKIFF_DISABLE": "share"}).ok
        eq((len(servers(sk)), sockets(sk)), (2, []))
        sk("rm -f aa bb").ok


@timeout(240)
def test_storage_opt(sk):
    """--storage-opt size: what a container may write, counted as a disk counts."""
    MIB = 1 << 20
    sk.load(docker_archive(lib.busybox_layer(), tar(entry("big", b"b" * 8 * MIB), entry("big2", None, lib.tarfile.LNKTYPE, "big"), entry("small", "s\n")), tag="big")).ok
    sk("run -d --name box --storage-opt size=20m big sleep 1000").ok
    base = []

    def used(name="box"):
        total, taken, free = map(int, sk("exec %s sh -c" % name, "df -k / | tail -n1").ok.out.split()[1:4])
        eq((total, taken + free), (20480, 20480), "df")
        return taken

    def sh(script, code=0, name="box"):
        return sk("exec %s sh -c" % name, script).exits(code)

    def becomes(kib):
        until(lambda: used() - base[0] == kib, "%d KiB are used, it is %d" % (kib, used() - base[0]))

    base.append(used())
    true(base[0] < 100, "nothing to be used yet, got %d KiB" % base[0])
    with sk.case("inspect"):
        eq(sk.get("box", "{{json .HostConfig.StorageOpt}}"), '{"size":"20m"}')
    with sk.case("a full disk is said to the write"):
        match(sh("dd if=/dev/zero of=/f bs=1M count=30", 1).err, "No space left")
        eq(used(), 20480)
        match(sh("echo x >/g", 1).err, "No space left")
        match(sh("mkdir /d", 1).err, "No space left")
    with sk.case("what is there may be written over, and renamed"):
        sh("dd if=/dev/zero of=/f bs=64k count=16 conv=notrunc; mv /f /f2; mv /f2 /f; rm /small; ls / | grep -c small | grep 0")
    with sk.case("what is removed is free at once"):
        for i in range(20):
            sh("rm /f; dd if=/dev/zero of=/f bs=1M count=18")
        sh("rm /f")
        becomes(0)
    with sk.case("holes are free"):
        sh("truncate -s 1G /s")
        becomes(0)
        sh("dd if=/dev/zero of=/s bs=1M count=5 seek=100 conv=notrunc")
        becomes(5120)
        sh("truncate -s 102M /s")
        becomes(2048)
        match(sh("dd if=/dev/zero of=/s bs=1M count=30 seek=200 conv=notrunc", 1).err, "No space left")
        sh(": >/s")
        becomes(0)
    with sk.case("hard links"):
        sh("dd if=/dev/zero of=/a bs=1M count=12; ln /a /b; rm /a")
        becomes(12288)
        sh("ln /b /c; rm /b /c")
        becomes(0)
    with sk.case("one file over another"):
        sh("dd if=/dev/zero of=/a bs=1M count=12; dd if=/dev/zero of=/b bs=1M count=6; mv /b /a")
        becomes(6144)
        sh("rm /a")
        becomes(0)
    with sk.case("unlinked, but open"):
        sh("exec 3>/o; dd if=/dev/zero bs=1M count=12 >&3; rm /o; dd if=/dev/zero of=/p bs=1M count=12", 1)
        sh("rm /p")
        becomes(0)
    with sk.case("fallocate"):
        match(sh("fallocate -l 30M /a", 1).err, "No space left")
        sh("rm -f /a; fallocate -l 10M /a")
        becomes(10240)
        sh("dd if=/dev/zero of=/f bs=1M count=30", 1)
        sh("dd if=/dev/urandom of=/a bs=1M count=10 conv=notrunc; rm /a /f")
        becomes(0)
    with sk.case("a file of the image, copied for a change"):
        sh("dd if=/dev/zero of=/f bs=1M count=15")
        match(sh("echo x >>/big", 1).err, "No space left")
        sh("cmp /big /big2 && ! grep -q x /big; rm /f; echo x >>/big; cmp /big /big2")
        becomes(8196)
        sh("rm /big")
        becomes(8196)
        sh("rm /big2")
        becomes(0)
    with sk.case("a part of a write"):
        match(sh("dd if=/dev/zero of=/f bs=64M count=1", 1).err, "No space left")
        true(19 * MIB < int(sh("stat -c %s /f").out) <= 20 * MIB, "as much as there is room for")
        sh("rm /f")
    with sk.case("several writers"):
        sh("for i in 1 2 3 4; do dd if=/dev/zero of=/w$i bs=300k count=60 2>/dev/null & done; wait; sync; [ $(du -k /w1 /w2 /w3 /w4 | awk '{ n += $1 } END { print n }') -gt 18000 ]")
        sh("rm /w?")
        becomes(0)
    with sk.case("another start counts anew"):
        sh("mkdir /t; for i in $(seq 50); do dd if=/dev/zero of=/t/$i bs=5k count=1; done 2>/dev/null; ln /t/1 /t/x; ln -s 1 /t/y; truncate -s 1M /t/h; rm -r /bin/vi")
        before = used()
        sk("restart -t 0 box").ok
        eq(used(), before)
        sh("rm -r /t")
        becomes(4)  # of /bin
        sh("dd if=/dev/zero of=/f bs=1M count=30", 1)
        sk("restart -t 0 box").ok
        sh("echo x >/g", 1)
        sh("rm /f; echo x >/g; rm /g")
        becomes(4)
    with sk.case("changes by chance: what is counted is what is there"):
        model_image(sk, "model:size", 7, True, 1)
        sk("run -d --name chance --storage-opt size=900m -v", program(sk), "-v", sk.folder("plain-size") + ":/plain", "-v", sk.dir + "/spec:/spec:ro",
           "model:size", "sleep", "1000").ok
        sk("exec chance mkdir /plain/0").ok
        sk("exec chance /union/union build /spec/0 /spec/0.blob /plain/0").ok
        r = sk("exec chance /union/union run /t/0 /plain/0 7 %f %s" % (SECONDS / 3, "mi" if many_ids(sk) else "-i"))
        true(r.code == 0, "no difference: " + lib.short(r.out, 1500))

        def counted():
            return int(sk("exec chance sh -c", "df -k / | tail -n1").ok.out.split()[2])
        before = counted()
        sk("restart -t 0 chance").ok
        true(abs(counted() - before) < 64, "%d KiB, as they were counted, got %d" % (before, counted()))  # extents of files with holes come late
        sk("rm -f chance").ok
    with sk.case("no size, no StorageOpt"):
        sk("create --name plain busybox true").ok
        eq("StorageOpt" in sk("inspect plain").json[0]["HostConfig"], False)
        sk("run --rm --storage-opt size=0 busybox true").ok
    with sk.case("with --read-only, with a volume"):
        sk("run --rm --read-only --storage-opt size=1m -v vol:/v busybox dd if=/dev/zero of=/v/f bs=1M count=3").ok
    with sk.case("what it cannot be"):
        for words, message in [("--storage-opt foo=1", "Unknown option foo"), ("--storage-opt size=x", "invalid size"), ("--storage-opt size=-1", "invalid size"),
                               ("--storage-opt size", "invalid storage option"), ("--storage-opt size=1g --rootfs /", "rootfs")]:
            sk("run --rm %s busybox true" % words).exits(125, message)
        sk("--storage-driver overlay run --rm --storage-opt size=1g busybox true").exits(125, "needs the storage driver fuse")
        sk("run --rm --storage-opt size=1g busybox true", env={"SKIFF_DISABLE": "fuse"}).exits(125, "chmod 0666 /dev/fuse")
