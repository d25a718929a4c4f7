"""Layers whose blobs have a table of contents (zstd:chunked, eStargz), and packs with holes."""
import gzip
import hashlib
import io
import json
import os
import random
import struct
import tarfile

import lib
from lib import Registry, digest, entry, eq, match, no_match, tar, timeout, tool, true

WHO = "gf"
CUT = 100000  # bytes a frame: not what a chunk of a pack has
CHUNK = 256 << 10


def zstd(data):
    return tool("zstd", "-qc", "-1", "-", input=data, stdin=None)


def skippable(data):
    return struct.pack("<II", 0x184D2A50, len(data)) + data


def cut(layer, pack, last_open):
    """A tar as frames or members, each file's contents in ones of their own: (blob, what is left, entries)."""
    out, at, entries = bytearray(), 0, []
    with tarfile.open(fileobj=io.BytesIO(layer)) as f:
        for m in f:
            kind = "reg" if m.isreg() else "dir" if m.isdir() else "hardlink" if m.islnk() else "symlink"
            mine = [dict(type=kind, name=m.name, size=m.size, mode=m.mode, linkName=m.linkname)]
            if m.isreg() and m.size:
                out += pack(layer[at:m.offset_data])
                data = layer[m.offset_data:m.offset_data + m.size]
                for k in range(0, m.size, CUT):
                    part = data[k:k + CUT]
                    if k:
                        mine.append(dict(type="chunk", name=m.name))
                    mine[-1].update(offset=len(out), chunkDigest=digest(part))
                    if m.size > CUT:
                        mine[-1].update(chunkOffset=k, chunkSize=0 if last_open and k + CUT >= m.size else len(part))
                    out += pack(part)
                mine[0].update(endOffset=len(out), digest=digest(data))
                at = m.offset_data + m.size
            entries += mine
    return bytes(out), layer[at:], entries


def zstd_chunked(layer, change=None):
    """(layer, blob, its descriptor's media type, annotations)"""
    blob, rest, entries = cut(layer, zstd, False)
    blob += zstd(rest)
    toc = dict(version=1, entries=entries)
    toc = change(toc) or toc if change else toc
    plain = json.dumps(toc).encode()
    packed = zstd(plain)
    where = (len(blob) + 8, len(packed), len(plain), 1)
    blob += skippable(packed) + skippable(struct.pack("<7Q", *where, 0, 0, 0) + b"GNUlInUx")
    return layer, blob, "+zstd", {"io.github.containers.zstd-chunked.manifest-checksum": digest(packed),
                                  "io.github.containers.zstd-chunked.manifest-position": "%d:%d:%d:%d" % where}


def estargz(layer, change=None):
    with tarfile.open(fileobj=io.BytesIO(layer)) as f:  # without the blocks that end it
        last = f.getmembers()[-1]
    layer = layer[:last.offset_data + (last.size + 511 & ~511 if last.isreg() else 0)]
    blob, rest, entries = cut(layer, gzip.compress, True)
    blob += gzip.compress(rest)
    toc = dict(version=1, entries=entries)
    toc = change(toc) or toc if change else toc
    plain = json.dumps(toc, indent="\t").encode()
    last = tar(entry("stargz.index.json", plain))
    footer = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H2sH", 26, b"SG", 22) + b"%016xSTARGZ" % len(blob) + b"\1\0\0\xff\xff" + bytes(8)
    return layer + last, blob + gzip.compress(last) + footer, "+gzip", {"containerd.io/snapshot/stargz/toc.digest": digest(plain)}


def plain_gzip(layer):
    return layer, gzip.compress(layer), "+gzip", {}


def oci(tag, *layers):
    """(archive of an OCI layout, manifest, blobs)"""
    c = json.dumps(lib.image_config([x[0] for x in layers])).encode()
    m = json.dumps({"schemaVersion": 2, "mediaType": lib.OCI + "manifest.v1+json",
                    "config": {"mediaType": lib.OCI + "config.v1+json", "digest": digest(c), "size": len(c)},
                    "layers": [{"mediaType": lib.OCI + "layer.v1.tar" + kind, "digest": digest(b), "size": len(b),
                                **({"annotations": a} if a else {})} for _, b, kind, a in layers]}).encode()
    blobs = {digest(b): b for b in [c, m] + [x[1] for x in layers]}
    index = {"schemaVersion": 2, "manifests": [{"mediaType": lib.OCI + "manifest.v1+json", "digest": digest(m), "size": len(m),
                                                "annotations": {"io.containerd.image.name": tag}}]}
    files = [entry("oci-layout", '{"imageLayoutVersion":"1.0.0"}'), entry("index.json", json.dumps(index))]
    return tar(*files, *[entry("blobs/sha256/" + d[7:], b) for d, b in blobs.items()]), m, blobs


class Pack:
    """A stored layer, from which chunks can be taken away: the format of runtime.c's part 11."""

    def __init__(self, sk, layer, blob):
        self.idx, self.pack = (sk.root + "/layers/" + digest(layer)[7:] + x for x in (".idx", ".pack"))
        self.toc, self.blob = self.idx[:-4] + ".toc", digest(blob)
        self.read()

    def read(self):
        with open(self.idx, "rb") as f:
            d = self.data = f.read()
        self.version, self.file_size = struct.unpack_from("<I4xQ", d, 8)
        n, = struct.unpack_from("<I", d, 32)
        chunk_off, pack_off = struct.unpack_from("<QQ", d, 56)
        self.size, = struct.unpack_from("<Q", d, pack_off + 32)
        self.chunks = [struct.unpack_from("<QIIII32s", d, chunk_off + 56 * i) for i in range(n)]
        self.bits = int.from_bytes(d[self.file_size + 40:], "little")

    def find(self, data):
        """The places of a file's chunks."""
        want = [hashlib.sha256(data[k:k + CHUNK]).digest() for k in range(0, len(data), CHUNK)]
        return [c[0] // 4096 for w in want for c in self.chunks if c[5] == w]

    def punch(self, keep=(), lie=False, blob=None):
        """All but the places to keep are no longer there; lie: though the bitmap says so."""
        gone = [c for c in self.chunks if c[2] and c[0] // 4096 not in keep]
        bits = 0
        for c in self.chunks:
            if c[2] and (lie or c not in gone):
                bits |= 1 << c[0] // 4096
        with open(self.pack, "r+b") as f:
            for c in gone:
                f.seek(c[0])
                f.write(bytes(c[2]))
            f.truncate(self.size + 4096)
        head = bytearray(self.data[:208])
        struct.pack_into("<I", head, 8, 2)
        head[176:] = bytes(32)
        head[176:] = hashlib.sha256(head).digest()
        places = self.size // 4096
        with open(self.idx, "wb") as f:
            f.write(head + self.data[208:self.file_size] + bytes.fromhex((blob or self.blob)[7:]) +
                    struct.pack("<Q", places) + bits.to_bytes((places + 63) // 64 * 8, "little"))
        self.read()

    def there(self):
        self.read()
        return {i for i in range(self.size // 4096) if self.bits >> i & 1}

    def whole(self):
        return os.path.getsize(self.pack) == self.size


def files(seed=1):
    r = random.Random(seed)
    return {"f/small": b"a few bytes\n", "f/one": r.randbytes(70000), "f/large": r.randbytes(700001),
            "f/zeros": bytes(300000) + b"end", "f/same": b"a few bytes\n", "f/sub/text": b"line\n" * 30000}


def content(f):
    return tar(entry("f/"), entry("f/empty", b""), entry(".no.prefetch.landmark", b"\x0f"), *[entry(n, d) for n, d in f.items()],
               entry("f/link", None, link="small"), entry("f/hard", None, type=tarfile.LNKTYPE, link=min(f)))


def base():
    return plain_gzip(lib.busybox_layer())


def sums(f):
    return "\n".join("%s  /%s" % (hashlib.sha256(d).hexdigest(), n) for n, d in sorted(f.items()))


def check_files(sk, driver, tag, f):
    sk(["--storage-driver", driver, "run", "--rm", tag, "sha256sum"] + ["/" + n for n in sorted(f)]).says(sums(f))


@timeout(240)
def test_tables(sk):
    """One file's contents come by the table, and nothing else does."""
    f = files()
    for kind in zstd_chunked, estargz:
        with sk.case(kind.__name__):
            name = kind.__name__ + ":1"
            made = kind(content(f))
            archive, manifest, blobs = oci(name, base(), made)
            no_match(sk.load(archive).ok.err, "WARNING", "load")
            p = Pack(sk, *made[:2])
            true(os.path.exists(p.toc), "a table beside the layer")
            eq(p.version, 1)
            p.punch()
            sk("run --rm", name, "sha256sum", "/f/one").says(hashlib.sha256(f["f/one"]).hexdigest() + "  /f/one")
            eq(p.there(), set(p.find(f["f/one"])), "what was brought")
            sk("run --rm", name, "sh", "-c", "tail -c 300001 /f/large | sha256sum").prints(hashlib.sha256(f["f/large"][400000:]).hexdigest())
            true(set(p.find(f["f/large"])[1:]) <= p.there(), "the end of the large file to be there")
            check_files(sk, "overlay-fuse", name, f)
            true(not p.whole(), "a pack that still has a hole: the landmark")
            r = sk("system check").ok
            match(r.out, r"1 of \d+ chunks are not there yet")
            match(r.out, " 0 faults")


def test_tables_pulled(sk):
    f = files(2)
    for kind in zstd_chunked, estargz:
        with sk.case(kind.__name__):
            made = kind(content(f))
            _, manifest, blobs = oci("x", base(), made)
            g = Registry(manifest, blobs, name=kind.__name__.replace("_", "-"))
            no_match(sk("pull", g.ref).ok.err, "WARNING", "pull")
            p = Pack(sk, *made[:2])
            p.punch(keep=p.find(f["f/small"]))
            check_files(sk, "overlay-fuse", g.ref, f)
            true(not p.whole(), "the landmark not to have been brought")


def test_wrong_tables(sk):
    """A table that is not what the manifest says is passed over; one that lies does no harm."""
    f = files(3)

    def digest_of(a):
        return {k: digest(b"x") if v.startswith("sha256:") else v for k, v in a.items()}

    for k, kind in enumerate((zstd_chunked, estargz)):
        layer = content(f)
        layer_, blob, media, notes = kind(layer)
        position = "io.github.containers.zstd-chunked.manifest-position"
        bad = [("digest", digest_of(notes), "digest")]
        if kind is zstd_chunked:
            bad += [("outside", {**notes, position: "%d:10:10:1" % len(blob)}, "outside"),
                    ("huge", {**notes, position: "1:10:99999999999:1"}, "larger"),
                    ("nonsense", {**notes, position: "1:2:x"}, "annotation"),
                    ("kind", {**notes, position: notes[position][:-1] + "2"}, "kind"),
                    ("both", {**notes, "containerd.io/snapshot/stargz/toc.digest": digest(b"")}, "two")]
        for what, a, why in bad:
            with sk.case("%s, %s" % (kind.__name__, what)):
                name = "bad:%s%d" % (what, k)
                r = sk.load(oci(name, base(), (layer_, blob, media, a))[0]).ok
                match(r.err, "WARNING: the table of contents in layer %s is not used: .*%s" % (digest(blob), why))
                p = Pack(sk, layer_, blob)
                true(not os.path.exists(p.toc), "no table to be kept")
                p.punch()
                check_files(sk, "overlay-fuse", name, f)
                true(p.whole(), "a whole pack after all of the blob was read")
                sk("rmi", name).ok

        def lies():
            def every(key, value):
                def change(toc):
                    for e in toc["entries"]:
                        if key in e:
                            e[key] = value(e[key]) if callable(value) else value
                return change
            yield "offsets", every("offset", lambda x: x + 1)
            yield "offsets of others", every("offset", 1)
            yield "offsets outside", every("offset", 1 << 62)
            yield "negative offsets", every("offset", -5)
            yield "sizes", every("size", 1 << 62)
            yield "chunk sizes", every("chunkSize", 1 << 62)
            yield "places", every("chunkOffset", lambda x: x + 7)
            yield "inner offsets", lambda toc: [e.update(innerOffset=1 << 40) for e in toc["entries"]] and None
            yield "skipped", lambda toc: [e.update(innerOffset=1 << 20) for e in toc["entries"]] and None
            yield "names", every("name", "f/large")
            yield "ends", every("endOffset", 3)
            yield "zeros", lambda toc: [e.update(chunkType="zeros") for e in toc["entries"]] and None
            yield "types", lambda toc: dict(version=1, entries=[1, None, {}, [], {"type": 1, "name": 2, "offset": "x"}])
            yield "depth", lambda toc: {**toc, "x": json.loads("[" * 900 + "]" * 900)}
            yield "no entries", lambda toc: dict(version=1, entries="x")
        for what, change in lies():
            with sk.case("%s, lying %s" % (kind.__name__, what)):
                made = kind(layer, change)
                name = "lies:%s%d" % (what.replace(" ", "-"), k)
                no_match(sk.load(oci(name, base(), made)[0]).ok.err, "WARNING")
                p = Pack(sk, *made[:2])
                p.punch()
                check_files(sk, "overlay-fuse", name, f)
                sk("rmi", name).ok


def test_holes_without_a_table(sk):
    f = files(4)
    made = plain_gzip(content(f))
    sk.load(oci("plain:1", base(), made)[0]).ok
    p = Pack(sk, *made[:2])
    with sk.case("the first miss brings all, and the pack is whole"):
        p.punch()
        sk("run --rm plain:1 cat /f/small").says("a few bytes")
        true(p.whole(), "a whole pack")
        check_files(sk, "overlay-fuse", "plain:1", f)
    with sk.case("what the bitmap says is verified"):
        p.punch(lie=True)
        check_files(sk, "overlay-fuse", "plain:1", f)
    with sk.case("damage of a pack with holes is mended as it is read"):
        p.punch(keep=p.find(f["f/one"]))
        with open(p.pack, "r+b") as o:
            o.seek(p.find(f["f/one"])[0] * 4096 + 5)
            o.write(b"damaged")
        check_files(sk, "overlay-fuse", "plain:1", f)
    for driver in "fuse", "overlay", "copy":
        with sk.case("wholeness where it is needed: " + driver):
            p.punch()
            tool("rm", "-rf", *[sk.root + "/layers/" + x for x in os.listdir(sk.root + "/layers") if ".tree" in x] or ["-f"])
            check_files(sk, driver, "plain:1", f)
            sk("--storage-driver %s run --name box plain:1 sh -c" % driver, "echo more >> /f/one").ok
            p.punch()
            sk("commit box plain:2").ok
            check_files(sk, driver, "plain:2", {**f, "f/one": f["f/one"] + b"more\n"})
            sk("rm -f box").ok
    with sk.case("save and build"):
        p.punch()
        sk("save -o", sk.dir + "/saved.tar", "plain:1").ok
        sk.file("ctx/Dockerfile", "FROM plain:1 AS a\nFROM busybox\nCOPY --from=a /f /f\n")
        sk("build -t built", sk.dir + "/ctx").ok
        check_files(sk, "overlay-fuse", "built", f)
    with sk.case("check and repair"):
        p.punch()
        match(sk("system check").ok.out, r"layer %s: (\d+) of \d+ chunks are not there yet" % digest(made[0]))
        with open(p.idx, "r+b") as o:
            o.seek(300)
            o.write(b"damaged")
        sk("system check").exits(1)
        sk("system check --repair").prints("rebuilt")
        sk("system check").prints(" 0 faults")
        true(p.whole(), "a whole pack")


def test_no_provider(sk):
    """What cannot be had is EIO, and may be had later."""
    f = files(5)
    for kind in plain_gzip, zstd_chunked:
        with sk.case(kind.__name__):
            made = kind(content(f))
            name = kind.__name__ + ":x"
            sk.load(oci(name, base(), made)[0]).ok
            p = Pack(sk, *made[:2])
            p.punch(keep=p.find(f["f/small"]))
            blob = sk.root + "/blobs/sha256/" + digest(made[1])[7:]
            os.rename(blob, sk.dir + "/aside")
            sk.up("box", image=name)
            sk("exec box cat /f/small").says("a few bytes")
            for _ in range(2):
                r = sk("exec box sha256sum /f/one /f/large").exits(1)
                match(r.err, "/f/one.*: Input/output error")
                match(r.err, "/f/large.*: Input/output error")
            os.rename(sk.dir + "/aside", blob)
            sk("exec box sha256sum /f/one").says(hashlib.sha256(f["f/one"]).hexdigest() + "  /f/one")
            sk("rm -f box").ok
    with sk.case("a blob that is another one"):
        other = digest(base()[1])
        p.punch(blob=other)
        sk("run --rm", name, "cat", "/f/one").exits(1, "Input/output error")
    with sk.case("no blob known"):
        p.punch(blob="sha256:" + "0" * 64)
        sk("run --rm", name, "cat", "/f/one").exits(1, "Input/output error")
    with sk.case("a pack with holes, and an index that knows of none"):
        with open(p.idx, "wb") as o:
            o.write(made_whole(p))
        sk("run --rm", name, "cat", "/f/one").exits(1, "Input/output error")
        match(sk("system check").exits(1).out, "damaged layer " + digest(made[0]))


def made_whole(p):
    head = bytearray(p.data[:208])
    struct.pack_into("<I", head, 8, 1)
    head[176:] = bytes(32)
    head[176:] = hashlib.sha256(head).digest()
    return bytes(head) + p.data[208:p.file_size]


def test_damaged_bitmap(sk):
    made = plain_gzip(content(files(6)))
    sk.load(oci("d:1", base(), made)[0]).ok
    p = Pack(sk, *made[:2])
    p.punch()
    for what, data in [("short", p.data[:-8]), ("long", p.data + bytes(8)), ("none", p.data[:p.file_size]), ("odd", p.data[:-3]),
                       ("places", p.data[:p.file_size + 32] + struct.pack("<Q", 1 << 60) + p.data[p.file_size + 40:])]:
        with sk.case(what):
            with open(p.idx, "wb") as o:
                o.write(data)
            match(sk("system check").exits(1).out, "damaged layer " + digest(made[0]))
            sk("run --rm d:1 cat /f/one").exits(None, "Input/output error|damaged")


@timeout(240)
def test_readers_at_once(sk):
    """Many readers of the same chunks: the blob is read once for each."""
    r = random.Random(7)
    f = {"f/%d" % i: r.randbytes(CHUNK) for i in range(24)}
    for kind in zstd_chunked, plain_gzip:
        with sk.case(kind.__name__):
            made = kind(content(f))
            name = kind.__name__ + ":r"
            sk.load(oci(name, base(), made)[0]).ok
            p = Pack(sk, *made[:2])
            p.punch()
            sk.up("box", image=name)

            def read():
                servers = [pid for pid, what in sk.processes() if what == "skiff-fs"]
                eq(len(servers), 1, "servers")
                with open("/proc/%d/io" % servers[0]) as o:
                    return int(o.readline().split()[1])
            before = read()
            # four readers begin at different places of the same chunk, so that each asks by itself
            sk("exec box sh -c", "for i in $(seq 0 23); do for k in 0 1 2 3; do "
               "dd if=/f/$i of=/dev/null bs=32k skip=$((k*2)) count=2 2>/dev/null & done; done; wait").ok
            spent = read() - before
            total = 24 * CHUNK
            # once from the blob, once from the pack, and requests; not twice from the blob
            true(total < spent < 2.1 * total, "%d bytes read for %d of contents" % (spent, total))
            sk("exec box sha256sum", *["/" + n for n in sorted(f)]).says(sums(f))
            sk("rm -f box").ok


@timeout(240)
def test_two_servers(sk):
    """Containers with servers of their own read one pack with holes."""
    f = files(8)
    made = zstd_chunked(content(f))
    sk.load(oci("two:1", base(), made)[0]).ok
    p = Pack(sk, *made[:2])
    for _ in range(3):
        p.punch()
        running = [sk.popen(["run", "--rm", "two:1", "sha256sum"] + ["/" + n for n in sorted(f)], stdout=lib.subprocess.PIPE) for _ in range(3)]
        for x in running:
            eq(x.communicate()[0].decode().strip(), sums(f))
