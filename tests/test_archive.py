"""Hostile archives, by load, import and cp: nothing outside the layer's root changes, nothing gets a
privilege, no memory without bound. Each image is busybox below layers made by hand."""
import gzip
import io
import lzma
import os
import resource
import struct
import subprocess
import tarfile
import zlib

import lib
from lib import Failed, docker_archive, entry, eq, image, match, no_match, only, tar, timeout, true

WHO = "abf"


class Attack:
    """A layered image; canaries beside the store show whether something got out."""

    def __init__(self, sk):
        self.sk = sk
        self.canary = sk.folder("canary")
        sk.file("canary/file", "untouched\n")
        sk.file("canary/sub/file", "untouched\n")
        self.before = self.snapshot()

    def snapshot(self):
        out = {}
        for d, dirs, files in os.walk(self.canary):
            for f in dirs + files:
                p = os.path.join(d, f)
                s = os.lstat(p)
                out[p] = (s.st_mode, s.st_size, s.st_nlink, s.st_mtime_ns)
        return out

    def load(self, *layers):
        """Loads; True when taken. Either way nothing outside may have changed."""
        r = self.sk("load -q", input=docker_archive(lib.busybox_layer(), *layers))
        eq(self.snapshot(), self.before, "files outside of the store after load")
        if r.code:
            r.exits(None, ".")
            return False
        return True

    def sees(self, script, want, *options):
        """What a container of the loaded image sees."""
        r = self.sk(["run", "--rm", "--network", "none", *options, "attack", "/bin/sh", "-c", script + "; true"])
        eq(self.snapshot(), self.before, "files outside of the store after run")
        got = r.ok.out.strip()
        if want is not None and not lib.re.search("^(?:%s)$" % want, got):
            raise Failed("`%s` in the image: expected /%s/, got %r (stderr %r)" % (lib.short(script), want, lib.short(got), lib.short(r.err)))
        return got


def dots(sk):
    return "../" * 40 + sk.dir.lstrip("/") + "/canary/"


def test_names(sk):
    """.., absolute, empty, dots, NUL, newline: contained or refused."""
    a = Attack(sk)
    for name, path in [
            ("dot-dot", dots(sk) + "file"), ("dot-dot, a new name", dots(sk) + "new"), ("absolute", a.canary + "/file"), ("absolute with dots", "/a/" + dots(sk) + "file"),
            ("slashes", "//" + a.canary + "//file"), ("inner dots", "a/b/" + dots(sk) + "file"), ("dot-dot alone", ".."),
            ("dot-dot slash", "../"), ("dot", "."), ("slash", "/"), ("empty", ""), ("trailing dots", "a/.."), ("newline", "a\nb"),
            ("escape", "a\x1b[2Jb"), ("backslash", "a\\..\\b"), ("long", "x" * 255), ("too long", "y" * 300),
            ("deep", "d/" * 1500 + "f"), ("not UTF-8", b"\xff\xfe".decode("utf-8", "surrogateescape"))]:
        with sk.case(name):
            fmt = tarfile.GNU_FORMAT
            if a.load(tar(entry(path, "overwritten"), entry("marker", "m"), format=fmt)):
                a.sees("cat /marker; ls /bin/busybox", "m/bin/busybox")
    with sk.case("NUL in a PAX path"):
        pax = b"16 path=a\0b/../c\n"
        head = tarfile.TarInfo("pax")
        head.type, head.size = b"x", len(pax)
        data = head.tobuf() + pax.ljust(512, b"\0") + entry("x")[0].tobuf() + b"\0" * 1024
        if a.load(data):
            a.sees("true", "")


def test_symlinks(sk):
    """A symlink, then a file through it; in one layer and across layers."""
    a = Attack(sk)
    out = a.canary
    link = lambda to: entry("a", link=to)
    for name, layers, script, want in [
            ("absolute, one layer", [[link(out), entry("a/file", "bad")]], "cat %s/file /a/file 2>&1 | grep -c bad" % out, "[12]"),
            ("absolute, across", [[link(out)], [entry("a/file", "bad")]], "cat %s/file /a/file 2>&1 | grep -c bad" % out, "[12]"),
            ("relative", [[link(dots(sk)), entry("a/file", "bad")]], "grep -rl bad /a/ %s 2>/dev/null | wc -l" % out, "[12]"),
            ("relative, a new name", [[link(dots(sk)), entry("a/new", "bad")]], "true", ""),
            ("relative, across, a new name", [[link(dots(sk))], [entry("a/new", "bad")]], "true", ""),
            ("to itself", [[link("a"), entry("a/file", "x")]], "true", ""),
            ("chain", [[entry("b", link="a"), link(".."), entry("b/file", "x")]], "true", ""),
            ("parent of a directory", [[link(out), entry("a/new/"), entry("a/new/f", "bad")]], "true", ""),
            ("link over a file through a link", [[link(out), entry("a/file", link="/etc/passwd")]], "true", ""),
            ("device through a link", [[link(out), entry("a/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)]], "true", ""),
            ("mode through a link", [[link(out + "/file"), entry("a", type=tarfile.DIRTYPE, mode=0o777)]], "stat -c %F /a", "directory"),
            ("dir, then its symlink, then a dir", [[entry("a/"), entry("a/x", "1"), link("/etc"), entry("a/"), entry("a/y", "2")]],
             "test -d /a && cat /a/y /etc/y 2>/dev/null", "2"),
            ("etc is a symlink out", [[entry("etc", link=out), entry("etc/file", "bad")]], "true", None),
            ("proc is a symlink out", [[entry("proc", link=out)]], "cat /proc/1/comm >/dev/null && echo ok", "ok"),
            ("tmp is a symlink out", [[entry("tmp", link=out)]], "echo bad >/tmp/file 2>/dev/null; true", None)]:
        with sk.case(name):
            if a.load(*[tar(*x) for x in layers]):
                if "proc" in name or "etc" in name:
                    r = sk("run --rm --network none attack sh -c", script)
                    true(r.code in (0, 125, 126, 127), "an ordered end, got %d" % r.code)
                    eq(a.snapshot(), a.before, "files outside after run")
                else:
                    a.sees(script, want)


def test_hard_links(sk):
    a = Attack(sk)
    hard = lambda name, to: entry(name, type=tarfile.LNKTYPE, link=to)
    for name, taken, items in [
            ("to outside, absolute", False, [hard("h", a.canary + "/file"), entry("h", "bad")]),
            ("to outside, dots", False, [hard("h", dots(sk) + "file"), entry("h", "bad")]),
            ("through a symlink", False, [entry("s", link=a.canary), hard("h", "s/file"), entry("h", "bad")]),
            ("to a symlink to outside", True, [entry("s", link=a.canary + "/file"), hard("h", "s"), entry("h", "bad")]),
            ("to a symlink to outside, that stays", True, [entry("s", link=a.canary + "/file"), hard("h", "s")]),
            ("to a later entry", False, [hard("h", "later"), entry("later", "x")]),
            ("to nothing", False, [hard("h", "nothing")]),
            ("to a directory", False, [entry("d/"), hard("h", "d")]),
            ("to itself", False, [hard("h", "h")]),
            ("to the root", False, [hard("h", "/")]),
            ("over its target", True, [entry("f", "x"), hard("f", "f")]),
            ("from outside", True, [entry("f", "bad"), hard(dots(sk) + "file", "f")])]:
        with sk.case(name):
            eq(a.load(tar(*items)), taken, "taken")
            if taken:
                a.sees("cat /h 2>/dev/null | grep -c untouched", "0")
    with sk.case("to a lower layer"):
        true(a.load(tar(entry("f", "x" * 5)), tar(entry("g", "x" * 5), hard("h", "g"))), "load")
        a.sees("stat -c %h /g; cat /h; echo; test /g -ef /h && echo same", "2\nxxxxx\nsame")
    with sk.case("many names"):
        true(a.load(tar(entry("n0", "x"), *[hard("n%d" % i, "n%d" % (i - 1)) for i in range(1, 50)])), "load")
        a.sees("stat -c %h /n0; cat /n49", "50\nx")


def test_whiteouts(sk):
    """.wh.NAME takes away NAME of the layers below in its own directory, and nothing else."""
    a = Attack(sk)
    wh = lambda p: entry(os.path.dirname(p) + ("/" if os.path.dirname(p) else "") + ".wh." + os.path.basename(p), "")
    base = tar(entry("d/"), entry("d/a", "1"), entry("d/b", "2"), entry("d/s/"), entry("d/s/x", "3"), entry("l", link="d"), entry("t", "4"),
               entry("out", link=a.canary))
    for name, layers, script, want in [
            ("a file", [[wh("d/a")]], "ls /d", "b\ns"),
            ("a directory", [[wh("d/s")]], "ls /d", "a\nb"),
            ("a top name", [[wh("t")]], "ls -d /t 2>/dev/null; echo", ""),
            ("what is not there", [[wh("d/none")]], "ls /d", "a\nb\ns"),
            ("opaque", [[entry("d/"), entry("d/.wh..wh..opq"), entry("d/new", "5")]], "ls /d", "new"),
            ("opaque after its own entries", [[entry("d/"), entry("d/new", "5"), entry("d/.wh..wh..opq")]], "ls /d", "new"),
            ("opaque in a directory below", [[entry("d/s/.wh..wh..opq"), entry("d/s/y", "1")]], "ls /d /d/s | tr '\\n' ' '", "/d: a b s +/d/s: y"),
            ("taken away and made anew", [[wh("d/a"), entry("d/a", "new")]], "cat /d/a", "new"),
            ("made anew before it is taken away", [[entry("d/a", "new"), wh("d/a")]], "cat /d/a", "new"),
            ("away, then anew in the next", [[wh("d")], [entry("d/"), entry("d/z", "9")]], "ls /d", "z"),
            ("a directory for a file", [[entry("d/a/"), entry("d/a/f", "x")]], "ls /d/a", "f"),
            ("a file for a directory", [[entry("d/s", "file")]], "cat /d/s", "file"),
            ("a symlink for a directory, and back", [[entry("d", link="etc")], [entry("d/"), entry("d/q", "1")]], "ls /d; ls /etc/q 2>/dev/null", "q"),
            ("a symlink for a directory, and back, twice", [[entry("d", link="etc")], [entry("d/"), entry("d/q", "1")], [entry("d", link="bin")], [entry("d/"), entry("d/r", "1")]],
             "ls /d; ls /etc/q /bin/r 2>/dev/null", "r"),
            ("dir over symlink over dir", [[entry("d", link="bin")], [wh("d")], [entry("d/"), entry("d/r", "1")]], "ls /d", "r"),
            ("through a symlink", [[wh("l/a")]], "ls /d /bin | grep -c busybox", "1"),
            ("through a symlink out", [[wh("out/file")]], "true", ""),
            ("opaque on a symlink out", [[entry("out/.wh..wh..opq")]], "true", ""),
            ("dots", [[entry("d/.wh...")], [entry(".wh...")]], "ls / | grep -c bin", "[0-9]"),
            ("dot", [[entry("d/.wh..")]], "true", ""),
            ("empty name", [[entry("d/.wh.")]], "true", ""),
            ("of the root", [[entry(".wh..")], [entry(".wh./")]], "ls /bin/busybox", "/bin/busybox"),
            ("slash in it", [[entry("d/.wh.../x")]], "true", ""),
            ("as a directory", [[entry("d/.wh.a/")]], "true", None),
            ("with data", [[entry("d/.wh.a", "data")]], "ls /d", "b\ns"),
            ("aufs metadata", [[entry(".wh..wh.plnk/"), entry(".wh..wh.plnk/1.2", "x"), entry(".wh..wh.aufs", "")]], "ls -a / | grep -c wh", "0"),
            ("hard link to a whiteout", [[wh("d/a"), entry("h", type=tarfile.LNKTYPE, link="d/.wh.a")]], "true", None),
            ("root opaque", [[entry(".wh..wh..opq"), entry("only", "x"), entry("bin/"), entry("bin/sh", b"")]], None, None)]:
        with sk.case(name):
            if a.load(base, *[tar(*x) for x in layers]) and script is not None:
                a.sees(script, want)
    with sk.case("no name of a whiteout is seen"):
        true(a.load(base, tar(wh("d/a"))), "load")
        a.sees("find / -xdev -name '.wh*'", "")
    with sk.case("a file .wh.x that the container writes stays data or is refused"):
        sk("run --name ww busybox sh -c", "mkdir /d; echo 1 >/d/x; echo 2 >/d/.wh.x; echo 3 >/bin/.wh.vi").ok
        if sk("commit ww img:1").code == 0:
            sk("run --rm img:1 sh -c", "cat /d/x; ls /bin/vi").says("1\n/bin/vi")


def test_no_privilege(sk):
    """Set-id, devices, sockets, forged xattrs."""
    a = Attack(sk)
    script = b"#!/bin/sh\nid -u\n"
    with sk.case("modes"):
        true(a.load(tar(entry("su", script, mode=0o4755), entry("sg", script, mode=0o2755), entry("st/", mode=0o1777), entry("no", "x", mode=0),
                        entry("nodir/", mode=0), entry("nodir/f", "x"))), "load")
        a.sees("stat -c %a /su /sg /st /no /nodir", "4755\n2755\n1777\n0\n0")
        a.sees("cat /nodir/f", "x")
    with sk.case("no set-id root file of the user's is left on the host"):
        found = []
        lib.until(lambda: not sk.processes(), "what --rm removes is gone")
        for d, _, files in os.walk(sk.root):
            for f in files:
                s = os.lstat(os.path.join(d, f))
                if s.st_mode & 0o6000 and s.st_mode & 0o001 and os.stat(sk.root).st_mode & 0o007:
                    found.append(f)
        eq(found, [])
    with sk.case("devices, fifo, socket"):
        if a.load(tar(entry("dev0/"), entry("dev0/mem", type=tarfile.CHRTYPE, devmajor=1, devminor=1), entry("dev0/fifo", type=tarfile.FIFOTYPE),
                      entry("dev0/sda", type=tarfile.BLKTYPE, devmajor=8, devminor=0, mode=0o666))):
            a.sees("test -p /dev0/fifo && echo fifo; cat /dev0/mem /dev0/sda 2>/dev/null | head -c 1 | wc -c", "fifo\n0")
    for key in ["trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.opaque", "user.overlay.redirect", "user.overlay.whiteout",
                "user.overlay.origin", "user.overlay.metacopy", "user.fuseoverlayfs.opaque", "user.containers.override_stat",
                "user.overlay.overlay.opaque", "user.skiff.opaque"]:
        with sk.case(key):
            value = "/../../.." if "redirect" in key else "y" if "opaque" in key or "whiteout" in key else "0:0:4755"
            d = entry("d/", pax_headers={"SCHILY.xattr." + key: value})
            f = entry("f", "", pax_headers={"SCHILY.xattr." + key: value})
            if a.load(tar(entry("d/"), entry("d/below", "1"), entry("f", "full"), entry("g", "1")), tar(d, entry("d/new", "1"))):
                a.sees("ls /d", "below\nnew")
            if a.load(tar(entry("f", "full")), tar(f)):
                a.sees("wc -c </f; test -f /f && echo file", "0\nfile")
    with sk.case("security.capability gives no more than the container has"):
        cap = struct.pack("<IIIII", 0x02000001, 0xffffffff, 0, 0xffffffff, 0).decode("latin1")
        e = entry("cap", b"#!/bin/sh\n", mode=0o755, pax_headers={"SCHILY.xattr.security.capability": cap})
        if a.load(tar(e)):
            a.sees("grep CapBnd /proc/self/status | cut -f2", "00000000a80425fb")
    with sk.case("user xattrs are kept"):
        e = entry("x", "1", pax_headers={"SCHILY.xattr.user.note": "hi"})
        true(a.load(tar(e)), "load")
        sk("create --name xx attack").ok
        data = sk("export xx").ok.raw
        with tarfile.open(fileobj=io.BytesIO(data)) as t:
            eq({k: v for k, v in t.getmember("x").pax_headers.items() if "SCHILY.xattr" in k}, {"SCHILY.xattr.user.note": "hi"})


def test_odd_but_valid(sk):
    a = Attack(sk)
    with sk.case("a layer that is cut at each block"):
        small = tar(entry("a", "x" * 600), entry("b/"), entry("b/c", "y" * 1100), format=tarfile.USTAR_FORMAT)
        for n in range(512, 512 * 9, 512):  # a header, two blocks, a header, a header, three blocks
            eq(a.load(small[:n]), n // 512 in (3, 4, 8), "taken with %d blocks" % (n // 512))
    with sk.case("duplicates: the last wins"):
        true(a.load(tar(entry("f", "one"), entry("f", "two"), entry("d/"), entry("d/a", "1"), entry("d/", mode=0o700))), "load")
        a.sees("cat /f; stat -c %a /d; ls /d", "two700\na")
    with sk.case("parents that are not named"):
        true(a.load(tar(entry("p/q/r/f", "x"))), "load")
        a.sees("cat /p/q/r/f; stat -c %a /p/q", "x755")
    with sk.case("times"):
        true(a.load(tar(entry("old", "", mtime=-86400), entry("new", "", mtime=1 << 34), entry("frac", "", mtime=1000000000.5),
                        entry("zero", "", mtime=0))), "load")
        a.sees("stat -c %Y /frac /zero", "1000000000\n0")
        a.sees("stat -c %Y /old /new", "-86400\n[12]\\d{9,10}")  # ext4 ends in 2446
    with sk.case("owners"):
        true(a.load(tar(entry("n", "", uid=33, gid=44))), "load")
        a.sees("stat -c %u:%g /n", "33:44" if sk.subuid else None)
        if a.load(tar(entry("big", "", uid=1 << 31, gid=1 << 31), entry("neg", "", uid=-1, gid=-2))):
            r = sk("run --rm attack ls /big /neg")
            true(r.code == 0 or r.code == 125 and "subuid" in r.err, "both files, or the range to be named; got %d %s" % (r.code, r.err))
    with sk.case("long names"):
        long = "/".join(["n" * 200] * 10)
        for fmt in tarfile.PAX_FORMAT, tarfile.GNU_FORMAT:
            true(a.load(tar(entry(long, "x"), entry("l", link="t" * 3000), format=fmt)), "load")
            a.sees("cat /%s; readlink /l | wc -c" % long, "x3001")
    with sk.case("empty layer"):
        true(a.load(tar(), b"\0" * 1024, tar(entry("x", "1"))), "load")
        a.sees("cat /x", "1")
    with sk.case("two gzip members"):
        t = tar(entry("x", "1" * 5000), entry("y", "2"))
        z = gzip.compress(t[:3000]) + gzip.compress(t[3000:])
        m, blobs = lib.oci_blobs(lib.busybox_layer(), t, compress=lambda x: z if x is t else gzip.compress(x))
        g = lib.Registry(m, blobs)
        sk("pull -q", g.ref).ok
        sk("run --rm", g.ref, "cat", "/y").says("2")
    raw = lambda x: b"\x28\xb5\x2f\xfd\0\x58" + struct.pack("<I", len(x) << 3)[:3] + x  # zstd: a block that is not the last
    for kind, cut in ("gzip", lambda x: gzip.compress(x)[:-8]), ("zstd", raw):
        with sk.case(kind + " whose end is missing, though the tar's is there"):
            m, blobs = lib.oci_blobs(tar(entry("x", "1")), compress=cut, media="layer.v1.tar+" + kind)
            sk("pull -q", lib.Registry(m, blobs).ref).exits(1, "truncated")
    with sk.case("plain layer from a registry"):
        m, blobs = lib.oci_blobs(lib.busybox_layer(), tar(entry("p", "plain")), compress=lambda x: x, media="layer.v1.tar")
        g = lib.Registry(m, blobs)
        sk("pull -q", g.ref).ok
        sk("run --rm", g.ref, "cat", "/p").says("plain")
    with sk.case("sparse"):
        p = sk.file("sp/sparse")
        with open(p, "wb") as f:
            f.truncate(50 << 20)
            f.seek(20 << 20)
            f.write(b"middle")
        data = lib.tool("tar", "-C", sk.dir + "/sp", "-cS", "sparse")
        for fmt in "gnu", "pax":
            data = lib.tool("tar", "--format=" + fmt, "-C", sk.dir + "/sp", "-cS", "sparse")
            true(a.load(data), "load")
            a.sees("stat -c %s /sparse; dd if=/sparse bs=1M skip=20 count=1 2>/dev/null | head -c 6", "52428800\nmiddle")
    with sk.case("10,000 names in a directory"):
        true(a.load(tar(*[entry("many/%05d" % i, "") for i in range(10000)])), "load")
        a.sees("ls /many | wc -l; ls /many | tail -1", "10000\n09999")
    with sk.case("100 layers"):
        true(a.load(*[tar(entry("l%d" % i, str(i)), entry("same", str(i))) for i in range(100)]), "load")
        a.sees("cat /same; ls / | grep -c '^l[0-9]'", "99100")


def bounded(sk, data, limit_mb=400):
    """load in at most so much memory; the result."""
    p = sk.popen("load -q", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                 preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 30, 3 << 30)))
    try:
        out, err = p.communicate(data, timeout=100)
    except subprocess.TimeoutExpired:
        p.kill()
        raise Failed("expected load to end")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    true(peak < limit_mb * 1024, "at most %d MB of memory, got %d" % (limit_mb, peak // 1024))
    true(p.returncode >= 0, "no crash, got signal %d" % -p.returncode)
    return p.returncode, err.decode("utf-8", "replace")


@only("b")
@image(None)
@timeout(200)
def test_bombs(sk):
    """Bounded memory and time, a clear error or the right result."""
    def pax(text, name="x", data=b""):
        head = tarfile.TarInfo("pax")
        head.type, head.size = b"x", len(text)
        t, _ = entry(name, data)
        return head.tobuf() + text + b"\0" * (-len(text) % 512) + t.tobuf() + data + b"\0" * (-len(data) % 512) + b"\0" * 1024
    huge = entry("huge", "")[0]
    huge.size = 8 << 30
    rec = lambda s: (lambda n: b"%d %s\n" % (n + len(b"%d" % (n + len(b"%d" % n))), s))(len(s) + 2)
    for name, layer in [
            ("header of 8 GB without data", huge.tobuf(tarfile.GNU_FORMAT)),
            ("PAX header of 64 MB", pax(rec(b"comment=" + b"x" * (64 << 20)))),
            ("xattr of 32 MB", pax(rec(b"SCHILY.xattr.user.big=" + b"x" * (32 << 20)))),
            ("PAX size of 8 EiB", pax(rec(b"size=9223372036854775807"))),
            ("PAX size negative", pax(rec(b"size=-1"))),
            ("sparse file of 8 EiB", pax(rec(b"GNU.sparse.major=1") + rec(b"GNU.sparse.minor=0") + rec(b"GNU.sparse.name=s") +
                                         rec(b"GNU.sparse.realsize=9223372036854775807"), data=b"1\n0\n0\n".ljust(512, b"\0"))),
            ("a PAX record whose length lies", pax(b"999999999 path=x\n")),
            ("a PAX record without a length", pax(b"path=x\n")),
            ("a path of 1 MB", pax(rec(b"path=" + b"p/" * 500000))),
            ("a link of 1 MB", pax(rec(b"linkpath=" + b"p/" * 500000))),
            ("zero blocks", b"\0" * (64 << 20)),
            ("trailing garbage", tar(entry("x", "1")) + b"garbage" * 10000),
            ("a wrong check sum", tar(entry("x", "1"))[:148] + b"0000000\0" + tar(entry("x", "1"))[156:]),
            ("GNU long name of 1 GB", (lambda t: (setattr(t, "type", b"L"), setattr(t, "size", 1 << 30), t)[2])(tarfile.TarInfo("././@LongLink")).tobuf(tarfile.GNU_FORMAT) + b"a" * (1 << 20)),
    ]:
        with sk.case(name):
            code, err = bounded(sk, docker_archive(layer))
            if code:
                true(err.strip(), "an error text")
                sk("images -aq").says("")
            else:
                sk("rmi attack").ok
            sk("system df").ok
    with sk.case("gzip bomb against a limited disk"):
        bomb = gzip.compress(b"\0" * (256 << 20), 9)
        code, err = bounded(sk, bomb)
        true(code != 0, "256 MB of zeros to be refused")
    with sk.case("100,000 entries"):
        code, err = bounded(sk, docker_archive(tar(*[entry("d%d/%d" % (i % 100, i), "") for i in range(100000)])))
        eq(code, 0, "load of 100,000 files: " + err)


@only("b")
def test_import_attacks(sk):
    a = Attack(sk)
    for name, items in [("dots", [entry(dots(sk) + "file", "bad")]), ("symlink", [entry("a", link=a.canary), entry("a/file", "bad")]),
                        ("hard link", [entry("h", type=tarfile.LNKTYPE, link=a.canary + "/file"), entry("h", "bad")])]:
        with sk.case("import " + name):
            sk("import - x:y", input=tar(*items))
            eq(a.snapshot(), a.before, "files outside")
    sk("create --name cc busybox").ok
    for name, items in [("dots", [entry(dots(sk) + "file", "bad")]), ("symlink", [entry("a", link=a.canary), entry("a/file", "bad")]),
                        ("absolute", [entry(a.canary + "/file", "bad")]),
                        ("hard link", [entry("h", type=tarfile.LNKTYPE, link=a.canary + "/file"), entry("h", "bad")])]:
        with sk.case("cp - " + name):
            sk("cp - cc:/tmp", input=tar(*items))
            eq(a.snapshot(), a.before, "files outside")
    sk("run --name ll busybox ln -s", a.canary, "/tmp/a").ok
    for name, items in [("a file", [entry("a/file", "bad")]), ("a new one", [entry("a/new", "bad")]), ("a hard link", [entry("f", "bad"), entry("a/new", type=tarfile.LNKTYPE, link="f")])]:
        with sk.case("cp - through a symlink of the container: " + name):
            sk("cp - ll:/tmp", input=tar(*items))
            eq(a.snapshot(), a.before, "files outside")


@only("b")
@image(None)
def test_endless(sk):
    """What follows an archive, and what its compression asks for, has a limit."""
    zeros = b"\0" * (65 << 20)
    with sk.case("zeros behind a layer"):
        sk("load -q", input=gzip.compress(docker_archive(tar(entry("x", "1")) + zeros), 1)).exits(1, "followed by")
    with sk.case("a stream of zeros without end"):
        p = sk.popen("import - x:y", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        sent = 0
        try:
            p.stdin.write(tar(entry("x", "1")))
            while sent < 256 << 20:
                sent += p.stdin.write(zeros[:1 << 20])
        except BrokenPipeError:
            pass
        err = p.communicate()[1].decode()
        true(p.returncode == 1 and "followed by" in err, "an error long before 256 MB, got %d after %d: %s" % (p.returncode, sent, err))
    record = lambda s: (lambda n: b"%d %s\n" % (n + len(b"%d" % (n + len(b"%d" % n))), s))(len(s) + 2)

    def pax(*records, data=b""):
        head, (t, _) = tarfile.TarInfo("pax"), entry("x", data)
        text = b"".join(map(record, records))
        head.type, head.size = b"x", len(text)
        return head.tobuf() + text.ljust(-(-len(text) // 512) * 512, b"\0") + t.tobuf() + data.ljust(-(-len(data) // 512) * 512, b"\0") + b"\0" * 1024

    def sparse(size, at, n=5):
        return pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.name=s", b"GNU.sparse.realsize=%d" % size,
                   data=(b"1\n%d\n%d\n" % (at, n)).ljust(512, b"\0") + b"x" * n)
    with sk.case("an attribute of 100 kB"):
        sk("load -q", input=docker_archive(pax(b"SCHILY.xattr.user.big=" + b"x" * 100000))).exits(1, "extended attribute")
    for name, layer, why in [("a file of 5 TiB", sparse(5 << 40, 100), "limit of 4 TiB"), ("a file of 8 EiB", sparse((1 << 63) - 1, 100), "limit of 4 TiB")]:
        with sk.case(name):  # what needs memory for each part of it ends here
            less = lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
            sk("load -q", input=docker_archive(layer), **({} if "ASAN_OPTIONS" in sk.env else {"preexec_fn": less})).exits(1, why)
    with sk.case("data behind the end of its file"):
        sk("load -q", input=docker_archive(sparse(100, 1000))).exits(1, "damaged")
    for log, code in (27, 0), (31, 1):
        with sk.case("zstd with a window of %d MB" % (1 << log - 20)):  # one raw block, the last
            frame = lambda x: b"\x28\xb5\x2f\xfd\0" + bytes([log - 10 << 3]) + struct.pack("<I", len(x) << 3 | 1)[:3] + x
            m, blobs = lib.oci_blobs(tar(entry("x", "1")), compress=frame, media="layer.v1.tar+zstd")
            g = lib.Registry(m, blobs)
            sk("pull -q", g.ref).exits(code, "memory" if code else None)
            sk("rmi -f", g.ref)
    with sk.case("xz with a dictionary of 1 GB"):
        data = bytearray(lzma.compress(docker_archive(tar(entry("x", "1")))))
        eq(data[14:16], b"\x21\x01", "the filter LZMA2, whose one byte is the size")
        data[16] = 36
        n = (data[12] + 1) * 4
        data[12 + n - 4:12 + n] = struct.pack("<I", zlib.crc32(data[12:12 + n - 4]))
        sk("load -q", input=bytes(data)).exits(1, "memory")
    with sk.case("nothing is left of them"):
        sk("images -aq").says("")
        sk.check_store()


@only("b")
@image(None)
def test_flipped_bits(sk):
    """A good archive with one byte changed, many times: no crash, and what is taken is in order."""
    import random
    rnd = random.Random(11)
    good = docker_archive(tar(entry("a/"), entry("a/b", "x" * 700), entry("a/l", link="b"), entry("a/h", type=tarfile.LNKTYPE, link="a/b"),
                              entry("p", "y", pax_headers={"SCHILY.xattr.user.a": "b"}), entry("q" * 150, "z")))
    for i in range(120):
        data = bytearray(good)
        for _ in range(rnd.choice([1, 1, 3])):
            data[rnd.randrange(len(data))] = rnd.randrange(256)
        r = sk("load -q", input=bytes(data))
        if r.code == 0:
            sk("rmi -f", *[x for x in sk("images -aq").ok.lines])
        else:
            r.exits(None, ".")
    sk.check_store()
