"""The writable tree of a container, compared with a plain directory, and what broke other unions."""
import glob
import grp
import hashlib
import os
import random
import re
import resource
import struct
import subprocess
import time

import lib
from lib import ENV, Failed, Skipped, docker_archive, entry, eq, image, match, only, tar, timeout, true, until

WHO = "gf"
SECONDS = {"fuse": 5, "overlay-fuse": 2, "overlay": 2}  # of the model check; for more: SECONDS=600 SEED=7 DRIVER=fuse tests/run union.model


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


@timeout(1000)
def test_model(sk):
    """Random operations, file system by file system, also over restarts; what differs is told with the operations that led there."""
    seed = int(os.environ.get("SEED", 1))
    flags = "m" if many_ids(sk) else "-"
    for driver in os.environ.get("DRIVER", "").split() or drivers(sk):
        with sk.case("%s, seed %d" % (driver, seed)):
            f = flags + ("i" if driver == "fuse" else "") + os.environ.get("FLAGS", "a")
            seconds = float(os.environ.get("SECONDS", SECONDS[driver]))
            model_image(sk, "model:" + driver, seed, driver == "fuse")
            plain = sk.folder("plain-" + driver)
            up(sk, driver, driver, "model:" + driver, "-v", plain + ":/plain", "-v", sk.dir + "/spec:/spec:ro")
            for i in range(2):
                sk("exec %s mkdir /plain/%d" % (driver, i)).ok
                sk("exec %s /union/union build /spec/%d /spec/%d.blob /plain/%d" % (driver, i, i, i)).ok
                r = sk("exec %s /union/union check /t/%d /plain/%d %s" % (driver, i, i, f))
                true(r.code == 0, "the image's tree: " + lib.short(r.out, 2000) + r.err)
            phases = 3 if seconds > 3 else 1
            for phase in range(phases):
                running = [sk.popen("exec %s /union/union run /t/%d /plain/%d %d %f %s" % (driver, i, i, seed + 10 * phase + i, seconds / phases, f),
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for i in range(2)]
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
    for driver in "overlay-fuse", "fuse":
        words = "--storage-driver %s run " % driver
        over = words + "--rm ahead sh -c"
        with sk.case(driver + ": in order"):
            eq(sk(over, "md5sum /d?/f*").ok.lines, want)
        with sk.case(driver + ": before they are asked for"):
            sk(words + "--rm -v %s ahead sh -c" % program(sk), "ls /d1 >/dev/null; /union/union ahead /d1").says("read ahead")
        with sk.case(driver + ": backwards, and from the middle"):
            eq(sk(over, "md5sum $(ls -r /d1/f*); md5sum /d1/f07* /d0/f*").ok.lines,
               [x for x in reversed(want) if "/d1/" in x] + [x for x in want if "/d1/f07" in x] + [x for x in want if "/d0/" in x])
        with sk.case(driver + ": two at once, in opposite order"):
            eq(sk(over, "md5sum $(ls -r /d2/f*) >/b & md5sum /d2/f* >/a; wait; cat /a; sort -k 2 /b").ok.lines, [x for x in want if "/d2/" in x] * 2)
        with sk.case(driver + ": what is changed above stays changed"):
            eq(sk(over, "cat /d0/f000 /d0/f001 /d0/f002 /d0/f003 /d0/f004 >/dev/null; for i in 05 06 07 08; do echo new >>/d0/f0$i; done; "
                        "md5sum /d0/f* >/dev/null; for i in 05 06 07 08; do tail -c 4 /d0/f0$i; done").ok.lines, ["new"] * 4)
        with sk.case(driver + ": what is written through mappings meanwhile stays"):
            for i in range(10):
                sk(words + "--name dirty -v %s ahead /union/union dirty /d2" % program(sk)).says("0 lost")
                sk("cp dirty:/d2", sk.folder("dirty%s%d" % (driver, i))).ok
                lost = [n for n in names if n.startswith("d2/") and files[n] and
                        not open("%s/dirty%s%d/%s" % (sk.dir, driver, i, n), "rb").read().endswith(b"!")]
                eq(lost, [])
                sk("start -a dirty").says("0 lost")
                sk("rm dirty").ok
        with sk.case(driver + ": files that are gone, or others by now"):
            eq(sk(over, "cat /d0/f00* >/dev/null; rm /d0/f05*; mkfifo /d0/f050; ln -s /nowhere /d0/f051; rm -r /d1; ln -s /d2 /d1; "
                        "cat /d0/f0[1-4]* /d0/f0[6-9]* /d0/f1* >/dev/null; md5sum /d1/f*").ok.lines, [x.replace("/d2/", "/d1/") for x in want if "/d2/" in x])
        with sk.case(driver + ": a server that is killed while it reads goes, and so does who reads"):
            for i in range(12):
                sk(words + "-d --name kill ahead sh -c", "while :; do for d in 0 1 2; do cat $(seq -w 0 149 | sed s,^,/d$d/f,); done; done >/dev/null").ok
                time.sleep(i / 200)
                for pid in servers(sk):
                    lib.kill(pid)
                until(lambda: not servers(sk), "it has ended")
                sk("rm -f kill", wait=20).ok
    with sk.case("a damaged index costs the file that it speaks of, not the server"):
        over = "--storage-driver overlay-fuse run --rm ahead sh -c"
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
def test_restarts(sk):
    """A container that is started again and again: what was written is there, and the starter keeps nothing of a run."""
    sk.load(docker_archive(lib.busybox_layer(), tag="again")).ok
    starter = lambda: [p for p, n in sk.processes() if n == "skiff-starter"][0]
    count = lambda: int(sk.get("again", "{{.RestartCount}}"))
    for driver in "overlay-fuse", "fuse":
        with sk.case(driver):
            sk("--storage-driver %s run -d --name again --restart always again sh -c" % driver, "echo >>/lines; wc -l </lines; while [ ! -e /go ]; do sleep 0.02; done; rm /go").ok
            held = []
            for i in range(5):
                until(lambda: len(sk("logs again").ok.lines) == i + 1, "it runs")
                held.append(len(os.listdir("/proc/%d/fd" % starter())))
                sk("exec again touch /go").ok
                until(lambda: count() == i + 1, "it is started again")
            eq(held[1:], held[1:2] * 4)
            sk("stop -t 0 again").ok
            eq(sk("logs again").ok.lines[:5], list("12345"))
            until(lambda: not servers(sk), "no server stays")
            sk("rm again").ok


@image(None)
def test_commit_while_it_writes(sk):
    """What a running container has written to files that it has open is in the image that is made of it."""
    sk.load(docker_archive(lib.busybox_layer(), tar(entry("d/"), entry("d/old", b"old\n")), tag="writes")).ok
    for driver in "overlay-fuse", "fuse":
        with sk.case(driver):
            sk("--storage-driver %s run -d --name writes writes sh -c" % driver,
               "(printf more; sleep 1000) | dd of=/d/old bs=4 seek=1 conv=notrunc & (printf hello; sleep 1000) | dd of=/new bs=5").ok
            until(lambda: sk("exec writes stat -c %s /new /d/old").lines == ["5", "8"], "all is written")
            sk("commit writes made").ok
            sk("rm -f writes").ok
            sk("run --rm made cat /new /d/old").says("helloold\nmore")
            sk("rmi made").ok


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


@only("f")
@image(None)
def test_listing_into_mapping(sk):
    """A listing for whose place a file must be read first, while others make the server drop it: that one is read by another thread."""
    sk.load(docker_archive(lib.busybox_layer(), tar(entry("t/"), *[entry("t/%03d" % i, b"%d" % i * 40000) for i in range(200)]), tag="map")).ok
    for driver in "overlay-fuse", "fuse":
        with sk.case(driver):
            sk(["--storage-driver", driver, "run", "--rm", "-v", program(sk), "map", "/union/union", "mapped", "/t"]).says("202 names each time")


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
        ps = [sk.popen("exec %s sh -c" % n, "for i in 1 2 3; do cat /many/* | md5sum; find / -xdev | wc -l; done", stdout=subprocess.PIPE) for n in ("bb", "cc", "dd", "ee")]
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
        still = servers(sk)[0]  # the one that is started meanwhile may take a moment to end
        os.kill(still, lib.signal.SIGSTOP)
        sk(over + "run --rm many cat /many/f3", wait=20).says("3")
        os.kill(still, lib.signal.SIGCONT)
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
            ps = [sk.popen(over + "run --rm many cat /many/f%d" % k, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for k in (i, i + 1)]
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
        r = sk("exec chance /union/union run /t/0 /plain/0 7 3 %s" % ("mi" if many_ids(sk) else "-i"))
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


def memory(pid):
    """What a server holds that cannot be thrown away, in MB."""
    with open("/proc/%d/status" % pid) as f:
        return int(match(f.read(), r"RssAnon:\s+(\d+) kB")[1]) / 1024


@only("f")
def test_large_directory(sk):
    """3,000 entries below and 600 above: each once, also while they are removed; the server stays small."""
    sk.load(docker_archive(lib.busybox_layer(), tar(entry("big/"), *[entry("big/f%06d" % i, b"x" * (i % 50)) for i in range(3000)]), tag="many")).ok
    for driver in "fuse", "overlay-fuse":
        with sk.case(driver):
            up(sk, driver, driver, "many")
            sk("exec %s sh -c" % driver, "ls /big | wc -l; ls /big | sort -u | wc -l; find /big -type f -size -2 | wc -l; stat -c %h /big/f000007").says("3000\n3000\n3000\n1")
            union(sk, driver, "many", "/big", 600).says("")
            sk("exec %s sh -c" % driver, "ls /big | wc -l; rm /big/f*[05]; ls /big | wc -l; ls /big/f*[05] 2>/dev/null | wc -l; wc -c </big/n000599").says("3600\n3000\n0\n0")
            union(sk, driver, "sweep", "/big").says("3000 names, 0 twice, 0 not removed, 0 left")
            sk("exec %s sh -c" % driver, "ls -A /big | wc -l; rmdir /big && mkdir /big && ls -A /big | wc -l; mkdir /new").says("0\n0")
            union(sk, driver, "many", "/new", 500).says("")
            union(sk, driver, "sweep", "/new").says("500 names, 0 twice, 0 not removed, 0 left")
            for pid in servers(sk):
                true(memory(pid) < 30, "the server to hold less than 30 MB, it has %.1f" % memory(pid))
            sk("restart -t 2", driver).ok
            sk("exec %s sh -c" % driver, "ls -A /big /new | wc -l; rmdir /new && ls / | grep -c new").exits(1)
            sk("rm -f", driver).ok


@only("g")
def test_memory(sk):
    """A walk over 3,000 files, and files that come and go, leave nothing in the server."""
    layer = [entry("m/")] + [e for d in range(30) for e in [entry("m/d%d/" % d)] + [entry("m/d%d/f%d" % (d, i), b"%d" % i) for i in range(100)]]
    sk.load(docker_archive(lib.busybox_layer(), tar(*layer), tag="walk")).ok
    for driver, most in ("overlay-fuse", 10), ("fuse", 30):
        with sk.case(driver):
            up(sk, driver, driver, "walk")
            pid, = servers(sk)
            walk = "find /m -type f -exec cat {} + | wc -c; find /m | wc -l"
            for _ in range(2):
                sk("exec %s sh -c" % driver, walk, wait=100).says("5700\n3031")
            true(memory(pid) < most, "less than %d MB after the walk, not %.1f" % (most, memory(pid)))
            union(sk, driver, "many", "/tmp", 1000).ok
            union(sk, driver, "sweep", "/tmp").ok
            before = memory(pid)
            for _ in range(3):
                union(sk, driver, "many", "/tmp", 1000).ok
                union(sk, driver, "sweep", "/tmp").says("1000 names, 0 twice, 0 not removed, 0 left")
            true(memory(pid) < before + 0.5, "3,000 files that came and went to leave nothing: %.1f MB were %.1f" % (memory(pid), before))
            sk("rm -f", driver).ok


@only("g")
def test_inodes(sk):
    """Inode and link numbers, while files are changed and after a restart; ACLs that are taken and set."""
    A = dict(mtime=1234567890)
    sk.load(docker_archive(
        lib.busybox_layer(),
        tar(entry("d/", **A), entry("d/f", "f", **A), entry("d/h1", "h", **A), entry("d/h2", type=lib.tarfile.LNKTYPE, link="d/h1", **A), entry("d/s", link="f", **A),
            entry("d/p", type=lib.tarfile.FIFOTYPE, **A), entry("d/sub/", **A), entry("d/sub/x", "x", **A)),
        tar(entry("e/", **A), entry("e/f", "e", **A), entry("acl", "a", **A)), tag="ino")).ok
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
            union(sk, driver, "acl", "/acl").says("751")
            sk("rm -f", driver).ok


@only("g")
def test_names_of_many(sk):
    """One of the two names of more files than the server may open is removed, or replaced: the other is whole."""
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))
    script = """cd /tmp; mkdir a o; i=0; while [ $i -lt 2000 ]; do echo $i >a/$i; i=$((i + 1)); done; ln -s x a/s; cp -al a b; ls -lR . >/dev/null
        cd a; for i in 1 2 3; do echo new >../o/$i; mv ../o/$i $i; done; cd ..
        exec 3<a/5; rm -rf a && cat <&3; mkdir n && echo n >n/n && rm -r n; cat b/* | md5sum; stat -c %h b/1 b/1999 b/s; readlink b/s; ln b/7 c; ln b/s s; stat -c %h b/7 c s; echo more >>c; cat b/7
        rm b/7; cat c; stat -c %h c; rm b/8; mv b/9 b/1; rm -rf b && ls"""
    want = hashlib.md5("".join("%s\n" % i for i in sorted(map(str, range(2000)))).encode()).hexdigest()
    for driver in drivers(sk):
        with sk.case(driver):
            sk(["--storage-driver", driver, "run", "-d", "--name", driver, "busybox", "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done & wait"], preexec_fn=few).ok
            eq(sk("exec %s sh -c" % driver, script, wait=60).ok.lines, ["5", want + "  -", "1", "1", "1", "x", "2", "2", "2", "7", "more", "7", "more", "1", "c", "o", "s"])
        with sk.case(driver + ", after a restart, where the other names were not seen yet"):
            sk("exec %s sh -c" % driver, "cd /tmp; mkdir a; i=0; while [ $i -lt 2000 ]; do echo $i >a/$i; i=$((i + 1)); done; cp -al a b", wait=60).ok
            sk("restart -t 2", driver, preexec_fn=few).ok
            eq(sk("exec %s sh -c" % driver, "cd /tmp && ls -l a >/dev/null && rm -rf a && mkdir n && echo n >n/n && rm -r n && cat b/* | md5sum; stat -c %h b/5; rm -r b && ls", wait=60).ok.lines, [want + "  -", "1", "c", "o", "s"])
        sk("rm -f", driver).ok


@only("f")
def test_no_xattrs(sk):
    """An image without attributes: their list is empty, not an error, below and copied up."""
    for driver in drivers(sk):
        up(sk, driver, driver, "busybox")
        for path in "/bin/busybox", "/bin", "/etc/passwd":
            with sk.case("%s, %s" % (driver, path)):
                union(sk, driver, "listxattr", path).says("0 0")
        with sk.case(driver + ", copied up"):
            sk(["exec", driver, "touch", "/etc/passwd"]).ok
            union(sk, driver, "listxattr", "/etc/passwd").says("0 0")
        sk("rm -f", driver).ok


@only("f")
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


FORGE = r"""
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>
int main(int argc, char **argv) {
    if (argc == 4) puts(setxattr(argv[1], argv[2], argv[3], strlen(argv[3]), 0) ? strerrorname_np(errno) : "set");
    else puts(getxattr(argv[1], argv[2], (char[256]){ 0 }, 256) < 0 ? strerrorname_np(errno) : "there");
    return 0;
}
"""


def test_forged_xattrs(sk):
    """Attributes by which overlay file systems are steered, set from inside; privileges of a file that is copied up, and written (CVE-2021-3493, CVE-2023-0386)."""
    program(sk)
    lib.tool("gcc", "-D_GNU_SOURCE", "-static", "-O1", "-o", sk.dir + "/bin/forge", sk.file("forge.c", FORGE))
    cap = "\x01\x00\x00\x02" + "\x00\x20\x00\x00" + "\x00" * 12  # version 2, effective: CAP_NET_RAW
    sk("load -q", input=docker_archive(lib.busybox_layer(), tar(
        entry("low/"), entry("low/one", "1"), entry("low/sub/"), entry("low/sub/two", "2"), entry("file", "contents"), entry("secret/"), entry("secret/s", "s"),
        entry("suid", "x", mode=0o4755), entry("suid2", "x", mode=0o6755), entry("cap", "x", mode=0o755, pax_headers={"SCHILY.xattr.security.capability": cap})), tag="forged")).ok
    names = [("/low", n, v) for n, v in (("opaque", "x"), ("opaque", "y"), ("redirect", "/secret"), ("origin", "x"), ("impure", "y"), ("skiff", "0"))] + [
        ("/file", n, v) for n, v in (("whiteout", "y"), ("metacopy", ""), ("redirect", "/secret/s"), ("skiff", "1"), ("origin", "x"))]
    script = "; ".join("/union/forge %s %s.%s '%s'" % (at, prefix, n, v) for at, n, v in names
                       for prefix in ("user.overlay", "user.overlay.overlay", "trusted.overlay", "user.fuseoverlayfs", "user.containers", "user.skiff"))
    look, seen = "find /low /secret | sort; cat /file", "/low\n/low/one\n/low/sub\n/low/sub/two\n/secret\n/secret/s\ncontents"
    for driver in drivers(sk) + ["copy"]:
        up(sk, driver, driver, "forged")
        with sk.case(driver + ": steering"):
            sk("exec", driver, "sh", "-c", "touch /low /file; " + script).ok
            sk("exec", driver, "sh", "-c", look).says(seen)
            sk("restart -t 1", driver).ok
            sk("exec", driver, "sh", "-c", look).says(seen)
        with sk.case(driver + ": steering, in an image of it"):
            sk("commit", driver, "again").ok
            sk(["--storage-driver", driver, "run", "--rm", "again", "sh", "-c", look]).says(seen)
        with sk.case(driver + ": set-id bits of what is written"):
            sk("exec", driver, "sh", "-c", "echo y >>/suid; truncate -s 0 /suid2; stat -c %a /suid /suid2").says("755\n755")
        with sk.case(driver + ": file capabilities of what is written"):
            out = sk("exec", driver, "sh", "-c", "/union/forge /cap security.capability; echo y >>/cap; /union/forge /cap security.capability").ok.lines
            true(out[0] in ("there", "ENODATA") and out[1] == "ENODATA", "none afterwards, got %s" % out)
        with sk.case(driver + ": nothing of it is a privilege outside"):
            sk("exec", driver, "sh", "-c", "cp /bin/busybox /tmp/b; chmod 6755 /tmp/b").ok
            found = 0
            for top, _, files in os.walk(sk.root + "/containers/" + sk.get(driver, "{{.Id}}")):
                for path in [os.path.join(top, f) for f in files]:
                    found += path.endswith("/tmp/b")
                    if "security.capability" in os.listxattr(path, follow_symlinks=False):
                        value = os.getxattr(path, "security.capability", follow_symlinks=False)
                        true(value[3] == 3 and int.from_bytes(value[20:24], "little"), "capabilities of a user namespace on %s, got %r" % (path, value))
            eq(found, 1)
            eq(os.stat(sk.root).st_mode & 0o777, 0o700, "nobody else comes to set-id files")
        sk("rm -f", driver).ok


def test_server_is_hidden(sk):
    """The file server of a writable tree is in the container's user namespace: one that sees the host's processes, with CAP_SYS_PTRACE, may not look into it."""
    up(sk, "fuse", "cc", "busybox", "--pid", "host", "--cap-add", "SYS_PTRACE")
    seen = sk("exec", "cc", "sh", "-c", "for p in /proc/[0-9]*; do readlink $p/exe; done").lines
    eq(set(seen), {"/bin/busybox"})


@only("g")
def test_killed_server(sk):
    """kill -9 of a writable tree's server while its container works: an error, no hang, the store is in order, others go on."""
    noise = random.Random(3).randbytes(300000)
    sk.load(docker_archive(lib.busybox_layer(), tar(entry("data/"), *[entry("data/f%d" % i, noise[i:]) for i in range(100)]), tag="load")).ok
    up(sk, "fuse", "other", "load")
    mine = set(servers(sk))
    up(sk, "fuse", "idle", "load")
    p = sk.popen("--storage-driver fuse run --name busy -v", program(sk), "load", "/union/union", "load", "/data", "/tmp", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    eq(p.stderr.readline(), b"working\n", "the program")
    for pid in set(servers(sk)) - mine:
        lib.kill(pid)
    try:
        out, err = p.communicate(timeout=lib.PATIENCE)
    except subprocess.TimeoutExpired:
        raise Failed("expected the program to see an error")
    match(out.decode(), "^[a-z]+: (ENOTCONN|ECONNABORTED|EIO|ENODEV)$", "what the program says")
    eq(p.returncode, 1, "its exit code")
    true(sk("exec idle ls /data").code != 0, "ls in a container without a server to fail")
    sk("exec other sh -c", "ls /data | wc -l").says("100")
    for n in "busy", "idle":
        until(lambda: sk("rm -f", n).code == 0, "rm -f %s works" % n)
    sk("system check").ok
    sk("--storage-driver fuse run --rm load sh -c", "cat /data/* | wc -c; echo x >/data/f1 && cat /data/f1").says("%d\nx" % sum(300000 - i for i in range(100)))
    sk("rm -f other").ok
    sk.check_store()


@only("root")
@image(None)
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
                    continue  # before 6.6 tmpfs has no attributes
                up(sk, driver, driver, "full")
                sk("exec %s touch /tmp/x" % driver).ok
                union(sk, driver, "xattr", "/tmp/x", 65536).says("set 65536: 0, get: the same")  # more than ext4 takes
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


@only("g")
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
                text, n = re.subn('("driver": *)"%s"' % driver, r'\1"%s"' % other, text)
                eq(n, 1, "places where the rung is written")
                with open(path, "w") as f:
                    f.write(text)
                sk("start", driver).ok
                eq(union(sk, driver, "tree", "/t").ok.out.split("\n"), want.split("\n"), "written by %s, read by %s" % (driver, other))
                sk("exec %s sh -ec" % driver, "cd /t; echo more >>changed; rm -r sub; mkdir sub; rm hard1; mv link changed2").ok
                sk("restart -t 2", driver).ok
                sk("exec %s sh -ec" % driver, "cd /t; ls sub | wc -l; tail -n1 changed; cat hard2").says("0\nmore\na")
    for driver in all:
        sk("rm -f", driver).ok
