"""Images: tag, list, inspect, history, remove, prune, save, load, import, export, transports."""
import gzip
import io
import json
import os
import re
import subprocess
import tarfile

import lib
from lib import (ARCH, Failed, docker_archive, eq, entry, image, match, no_match, oci_blobs, only, tar, timeout,
                 tool, true)


def test_list(sk):
    with sk.case("table"):
        r = sk("images").ok
        match(r.out, r"^REPOSITORY +TAG +IMAGE ID +CREATED +SIZE\nbusybox +latest +[0-9a-f]{12} +.* ago +[\d.]+[kM]B$")
    sk("tag busybox other:v1").ok
    sk("tag busybox example.com:5000/a/b:c").ok
    iid = sk("images -q --no-trunc busybox").ok.out
    match(iid, r"^sha256:[0-9a-f]{64}$", "images -q --no-trunc")
    for line, want in [
            ("images -q busybox", iid[7:19]),
            ("images -q other:v1", iid[7:19]),
            ("images -q nosuch", ""),
            ("images --format {{.Repository}}:{{.Tag}} other", "other:v1"),
            ("images --format {{.Repository}}:{{.Tag}} example.com:5000/a/b", "example.com:5000/a/b:c"),
            ("images --format {{.Tag}} --filter reference=oth*", "v1"),
            ("images --format {{.Tag}} --filter reference=*:v1", "v1"),
            ("images -q --filter dangling=true", ""),
            ("images -q --filter label=nosuch", ""),
            ("images --format {{.Tag}} --filter before=busybox", ""),
            ("image ls --format {{.Tag}} -f reference=other", "v1")]:
        with sk.case(line):
            sk(line).says(want)
    with sk.case("--digests"):
        sk("images --digests").prints(r"REPOSITORY +TAG +DIGEST +IMAGE ID")


def test_tag_and_remove(sk):
    iid = sk.get("busybox", "{{.Id}}")
    for ref, shown in [("a", "a:latest"), ("a:1", "a:1"), ("docker.io/library/b", "b:latest"), ("docker.io/u/r:t", "u/r:t"),
                       ("h:80/p/q", "h:80/p/q:latest"), ("localhost/x", "localhost/x:latest"),
                       ("a-b_c/e__f:G.h-I_j", "a-b_c/e__f:G.h-I_j"), ("index.docker.io/library/z", "z:latest")]:
        with sk.case("tag " + ref):
            sk("tag busybox", ref).says("")
            sk("rmi", ref).says("Untagged: " + shown)
    for ref in ["A", "a:", "a:-x", "a/", "/a", "a//b", "a:b:c", "a@sha256:12", "-a/b", "a..b", "a:" + "x" * 129,
                "a" * 260, "a___b", "a b", "http://a/b", "a@md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:" + "a" * 64]:
        with sk.case("refused: " + ref[:40]):
            sk(["tag", "busybox", ref]).exits(None, "reference|format|lower ?case|tag|digest|refus|name|unknown flag|flag")
    with sk.case("tag of a missing image"):
        sk("tag nosuch x").exits(1, "no such image")
    with sk.case("by id and by its start"):
        sk("tag", iid[7:19], "byid").ok
        sk("tag", iid, "byid:2").ok
        eq(sk.get("byid:2", "{{.Id}}"), iid)
    with sk.case("an image with two names is not removed by id"):
        sk("rmi", iid[7:19]).exits(1, "must be forced|multiple|referenced")
    with sk.case("in use"):
        sk("create --name cc busybox true").ok
        sk("rmi byid byid:2").ok
        sk("rmi busybox").exits(1, r"conflict|in use|used by")
        sk("rm cc").ok
    with sk.case("last name removes the image"):
        r = sk("rmi busybox").ok
        match(r.out, r"^Untagged: busybox:latest$")
        match(r.out, r"^Deleted: sha256:[0-9a-f]{64}$")
        sk("images -q").says("")
        left = [f for f in os.listdir(sk.root + "/blobs/sha256")] if os.path.isdir(sk.root + "/blobs/sha256") else []
        eq(left, [], "blobs after the last image was removed")
    with sk.case("missing"):
        sk("rmi nosuch").exits(1, "no such image: nosuch")
        sk("rmi -f nosuch").ok
    with sk.case("rmi goes on after an error"):
        sk("load -q -i", lib.ENV["FIXTURE_busybox"]).ok
        r = sk("rmi nosuch busybox")
        r.exits(1, "nosuch")
        sk("images -q").says("")


def test_inspect(sk):
    j = sk("image inspect busybox").ok.json
    eq(len(j), 1)
    i = j[0]
    for k in "Id RepoTags RepoDigests Created Architecture Os Size Config RootFS".split():
        with sk.case(k):
            true(k in i, k + " in image inspect")
    eq((i["RepoTags"], i["Architecture"], i["Os"]), (["busybox:latest"], ARCH, "linux"))
    eq(i["RootFS"]["Type"], "layers")
    eq(i["RootFS"]["Layers"], [lib.digest(lib.busybox_layer())])
    eq(i["Config"]["Cmd"], ["/bin/sh"])
    match(i["Created"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
    with sk.case("--format"):
        sk("image inspect -f", "{{.Architecture}}/{{.Os}}", "busybox").says(ARCH + "/linux")
    with sk.case("missing"):
        r = sk("image inspect nosuch").exits(1, "no such image: nosuch")
        eq(r.out, "[]")
        r = sk("inspect nosuch").exits(1, "no such object: nosuch")
        eq(r.out, "[]")
    with sk.case("one of two"):
        r = sk("inspect nosuch busybox").exits(1, "nosuch")
        eq(len(r.json), 1)
    with sk.case("--type"):
        sk("inspect --type container busybox").exits(1, "no such container")
        sk("inspect --type image busybox").ok
    with sk.case("history"):
        r = sk("history busybox").ok
        match(r.lines[0], r"^IMAGE +CREATED +CREATED BY +SIZE +COMMENT$")
        match(r.lines[1], "^" + i["Id"][7:19])
        sk("history -q --no-trunc busybox").prints("^" + i["Id"])
        sk("history nosuch").exits(1, "no such image")


def test_prune(sk):
    sk("tag busybox keep").ok
    sk("create --name cc busybox true").ok
    a = sk("commit cc dangling").ok.out
    sk("commit -m again cc dangling").ok  # the first is now without a name
    sk("images -q --no-trunc --filter dangling=true").says(a)
    with sk.case("<none>"):
        sk("images").prints(r"(?m)^<none> +<none> +" + a[7:19])
    with sk.case("image prune -f"):
        r = sk("image prune -f").ok
        match(r.out, r"(?m)^Deleted Images:$")
        match(r.out, r"(?m)^deleted: " + a)
        match(r.out, r"(?m)^Total reclaimed space: [\d.]+ ?k?M?B$")
        sk("images -q --filter dangling=true").says("")
    with sk.case("it asks, and no means no"):
        r = sk("image prune", input="n\n")
        match(r.out + r.err, r"WARNING! This will remove all dangling images")
    with sk.case("prune -a keeps what a container uses"):
        sk("image prune -af").ok
        eq(sorted(sk("images --format", "{{.Repository}}").ok.lines), ["busybox", "keep"])
    sk("rm cc").ok
    with sk.case("system prune -af"):
        sk("system prune -af").prints("Total reclaimed space: [^0]")
        sk("images -aq").says("")
    sk.check_store()


def docker_names(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as t:
        return t.getnames()


def test_save_and_load(sk):
    iid = sk.get("busybox", "{{.Id}}")
    f = sk.dir + "/s.tar"
    with sk.case("save -o is readable by skopeo"):
        sk("save -o", f, "busybox").says("")
        eq(os.stat(f).st_mode & 0o077, 0, "mode of the saved file for others")
        j = json.loads(tool("skopeo", "inspect", "--config", "docker-archive:" + f, env=sk.env))
        eq(j["architecture"], ARCH)
        names = docker_names(open(f, "rb").read())
        true("manifest.json" in names, "manifest.json in %s" % names[:9])
    with sk.case("save is an OCI archive as well, as Docker's since 25"):
        names = docker_names(open(f, "rb").read())
        if "oci-layout" in names:
            tool("tar", "-C", sk.folder("oci"), "--no-same-owner", "-xf", f)
            tool("skopeo", "inspect", "oci:%s/oci" % sk.dir, env=sk.env)
    with sk.case("save to a pipe, load from it"):
        data = sk("save busybox").ok.raw
        sk("rmi busybox").ok
        sk("load", input=data).says("Loaded image: busybox:latest")
        eq(sk.get("busybox", "{{.Id}}"), iid, "id after save and load")
    with sk.case("load -q"):
        sk("load -q", input=data).says("Loaded image: busybox:latest")
    with sk.case("gzip, and -i"):
        z = sk.file("s.tar.gz", gzip.compress(data))
        sk("load -i", z).says("Loaded image: busybox:latest")
    with sk.case("by id: without a name"):
        data = sk("save", iid[7:19]).ok.raw
        sk("rmi -f busybox").ok
        sk("load", input=data).says("Loaded image ID: " + iid)
    with sk.case("two images, two names"):
        sk("load -i", f).ok
        sk("tag busybox two:2").ok
        data = sk("save busybox two:2").ok.raw
        sk("rmi busybox two:2").ok
        r = sk("load", input=data).ok
        eq(sorted(r.lines), ["Loaded image: busybox:latest", "Loaded image: two:2"])
    with sk.case("missing image"):
        sk("save nosuch").exits(1, "nosuch")
    with sk.case("missing file"):
        sk("load -i /no/such").exits(1, "/no/such")
    with sk.case("save into a missing directory"):
        sk("save -o /no/such/dir/f busybox").exits(1, "/no/such/dir")
    with sk.case("failed save leaves the old file"):
        old = sk.file("old", "precious")
        sk("save -o", old, "nosuch").exits(1)
        eq(open(old).read(), "precious")
    with sk.case("terminal"):
        t = lib.Terminal(sk, "save busybox")
        t.expect(r"(?i)terminal|redirect")
        t.exits(1)
    sk.check_store()


@image(None)
def test_load_bad(sk):
    good = docker_archive(lib.busybox_layer())
    m, blobs = oci_blobs(lib.busybox_layer())
    manifest = lambda *items: tar(*items)
    for name, data in [
            ("empty", b""), ("zeros", b"\0" * 4096), ("text", b"hello world\n" * 1000),
            ("truncated", good[:len(good) // 2]), ("no manifest", tar(entry("x", "y"))),
            ("manifest is no JSON", tar(entry("manifest.json", "{"))),
            ("manifest is an object", tar(entry("manifest.json", "{}"))),
            ("manifest is null", tar(entry("manifest.json", "null"))),
            ("nothing in it", tar(entry("manifest.json", "[]"))),
            ("config missing", tar(entry("manifest.json", '[{"Config":"c.json","RepoTags":["x:y"],"Layers":[]}]'))),
            ("config is a path", tar(entry("manifest.json",
                '[{"Config":"../../../../etc/passwd","RepoTags":["x:y"],"Layers":["/etc/hostname"]}]'))),
            ("layer missing", tar(entry("c.json", json.dumps(lib.image_config([b""]))),
                                  entry("manifest.json", '[{"Config":"c.json","RepoTags":["x:y"],"Layers":["l.tar"]}]'))),
            ("layer is a symlink out", tar(entry("c.json", json.dumps(lib.image_config([b""]))),
                                           entry("l.tar", link="/etc/passwd"),
                                           entry("manifest.json", '[{"Config":"c.json","RepoTags":["x:y"],"Layers":["l.tar"]}]'))),
            ("wrong diff id", docker_archive(lib.busybox_layer(), rootfs={"type": "layers", "diff_ids": ["sha256:" + "0" * 64]})),
            ("diff id is a path", docker_archive(lib.busybox_layer(), rootfs={"type": "layers", "diff_ids": ["sha256:../../../x"]})),
            ("too few diff ids", docker_archive(lib.busybox_layer(), rootfs={"type": "layers", "diff_ids": []})),
            ("its config is a list", tar(
                entry("c.json", json.dumps({**lib.image_config([lib.busybox_layer()]), "config": [{"Cmd": ["true"]}]})),
                entry("l.tar", lib.busybox_layer()),
                entry("manifest.json", '[{"Config":"c.json","RepoTags":["x:y"],"Layers":["l.tar"]}]'))),
            ("bad tag", docker_archive(lib.busybox_layer(), tag="../../x:y")),
            ("tag with an escape", docker_archive(lib.busybox_layer(), tag="a\x1b[2J:y")),
            ("truncated gzip", gzip.compress(good)[:20000]),
            ("gzip with a wrong sum", gzip.compress(good)[:-8] + b"\1" * 8),
            ("deep JSON", tar(entry("manifest.json", "[" * 100000))),
    ]:
        with sk.case(name):
            sk("load", input=data).exits(None, ".")
            sk("images -aq").says("")
    with sk.case("each cut at a block"):
        small = docker_archive(tar(entry("a", "x" * 600), entry("b/"), entry("b/c", link="/a")))
        for n in range(512, len(small) - 1024 - (-len(small) % 512), 512):
            r = sk("load", input=small[:n])
            if r.code == 0:  # complete but for padding
                sk("rmi -f attack").ok
                true(b"manifest.json" in small[:n], "a cut archive (%d of %d bytes) to be refused" % (n, len(small)))
            else:
                r.exits(None, ".")
    sk("images -aq").says("")
    sk.check_store()
    with sk.case("a good one afterwards"):
        sk("load", input=good).says("Loaded image: attack:latest")


def test_import_and_export(sk):
    sk("create --name cc -e A=1 busybox true").ok
    f = sk.dir + "/e.tar"
    with sk.case("export -o"):
        sk("export -o", f, "cc").says("")
        with tarfile.open(f) as t:
            names = {n.lstrip("./") for n in t.getnames()}
            true({"bin/busybox", "etc/passwd"} <= names, "bin/busybox in an export")
            b = [m for m in t.getmembers() if m.name.lstrip("./") == "bin/busybox"][0]
            eq((b.uid, b.gid), (0, 0), "owner of bin/busybox in the export")
            true(not [n for n in names if n.startswith(".wh.")], "no whiteouts in an export")
    with sk.case("export | import -"):
        data = sk("export cc").ok.raw
        r = sk("import - flat:1", input=data).ok
        match(r.out, r"^sha256:[0-9a-f]{64}$")
        sk("run --rm flat:1 /bin/echo x").says("x")
        eq(sk.get("flat:1", "{{len .RootFS.Layers}} {{json .Config.Cmd}}"), "1 null")
    with sk.case("import FILE with --change and -m"):
        sk("import", "-m", "a message", "-c", "CMD [\"echo\", \"from cmd\"]", "--change", "ENV B=2", "-c",
           "WORKDIR /tmp", "-c", "ENTRYPOINT [\"/bin/busybox\"]", "-c", "USER 0", "-c", "EXPOSE 80", "-c", "LABEL l=m", f, "flat:2").ok
        sk("run --rm flat:2").says("from cmd")
        eq(sk.get("flat:2", "{{index .Config.Env 0}} {{.Config.WorkingDir}} {{.Config.Labels.l}} {{json .Config.ExposedPorts}}"),
           'B=2 /tmp m {"80/tcp":{}}')
        sk("history flat:2").prints("a message")
    for name, data in [("gzip", gzip.compress(data)), ("plain", data)]:
        with sk.case("import " + name):
            sk("import -", input=data).prints("^sha256:")
    with sk.case("import nonsense"):
        sk("import -", input=b"nonsense" * 200).exits(None, ".")
        sk("import /no/such").exits(1, "/no/such")
        sk("import - BAD", input=data).exits(1, "reference|lower ?case")
        sk("import -c", "NOSUCH x", "-", input=data).exits(None, "NOSUCH|unknown|valid change")
    with sk.case("export of a missing container"):
        sk("export nosuch").exits(1, "no such container: nosuch")


def test_commit(sk):
    sk("run --name cc -e A=1 -w /tmp --label l=m busybox sh -c", "echo new >/root/f; rm /etc/group; mkdir /d; chmod 700 /d").ok
    with sk.case("commit"):
        r = sk("commit -a me -m why cc made:1").ok
        match(r.out, r"^sha256:[0-9a-f]{64}$")
        sk("run --rm made:1 sh -c", "cat /root/f; ls /etc/group 2>&1; stat -c %a /d; pwd; echo $A").prints(
            r"^new\nls: /etc/group: No such file or directory\n700\n/tmp\n1$")
        eq(sk.get("made:1", "{{.Author}} {{.Comment}} {{len .RootFS.Layers}} {{.Config.Labels.l}}"), "me why 2 m")
    with sk.case("--change"):
        sk("commit", "-c", "CMD [\"cat\",\"/root/f\"]", "--change", "ENV Z=1", "cc", "made:2").ok
        sk("run --rm made:2").says("new")
    with sk.case("the layer is a layer"):
        sk("save -o", sk.dir + "/m.tar", "made:1").ok
        tool("skopeo", "copy", "-q", "docker-archive:" + sk.dir + "/m.tar", "oci:" + sk.dir + "/m:x", env=sk.env)
        tool("umoci", "unpack", "--rootless", "--image", sk.dir + "/m:x", sk.dir + "/bundle", env=sk.env)
        true(os.path.exists(sk.dir + "/bundle/rootfs/root/f"), "root/f of the commit in umoci's tree")
        true(not os.path.exists(sk.dir + "/bundle/rootfs/etc/group"), "no etc/group in umoci's tree")
    with sk.case("of a running one"):
        sk.up("rr", "echo x >/live; sleep 1000")
        lib.until(lambda: sk("exec rr test -e /live").code == 0, "the file is written")
        sk("commit rr made:3").ok
        eq(sk.status("rr"), "running")
        sk("run --rm made:3 cat /live").says("x")
    with sk.case("what the container was told is the image's"):
        sk("run --name ff -e B=2 -e C --expose 80 --expose 53/udp --health-cmd 'test -e /f' --health-interval 7s --stop-signal INT -u app made:1 true").ok
        sk("commit ff made:4").ok
        c = json.loads(sk.get("made:4", "{{json .Config}}"))
        eq(sorted(c["Env"]), ["A=1", "B=2", "PATH=/bin"], "Env: of the image and of -e, nothing of the engine")
        eq((c["Healthcheck"]["Test"], c["Healthcheck"]["Interval"]), (["CMD-SHELL", "test -e /f"], 7 * 10**9))
        eq(c["ExposedPorts"], {"80/tcp": {}, "53/udp": {}})
        eq((c["Cmd"], c["User"], c["StopSignal"], c["Labels"]), (["true"], "app", "INT" if c["StopSignal"] == "INT" else "SIGINT", {"l": "m"}))
    with sk.case("and what the image said stays"):
        sk("load -q", input=docker_archive(lib.busybox_layer(), tag="rich", config={
            "ExposedPorts": {"1/tcp": {}}, "Volumes": {"/v": {}}, "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5 * 10**9}, "OnBuild": ["RUN x"]})).ok
        sk("create --name rich rich true").ok
        sk("commit rich made:5").ok
        c = json.loads(sk.get("made:5", "{{json .Config}}"))
        eq((c["ExposedPorts"], c["Volumes"], c["Healthcheck"]["Test"]), ({"1/tcp": {}}, {"/v": {}}, ["CMD", "true"]))
        sk("create --name bare --no-healthcheck rich true").ok
        sk("commit bare made:6").ok
    with sk.case("errors"):
        sk("commit nosuch").exits(1, "no such container")
        sk("commit cc BAD").exits(1, "reference|lower ?case")


def saved_layers(sk, name):
    """The layers of an image as `save` writes them, each a list of (member, contents)."""
    out = []
    with tarfile.open(fileobj=io.BytesIO(sk("save", name).ok.raw)) as t:
        for path in json.load(t.extractfile("manifest.json"))[0]["Layers"]:
            with tarfile.open(fileobj=io.BytesIO(t.extractfile(path).read())) as u:
                out.append(u.getmembers())
    return out


@only("abfg")
def test_commit_links_and_attributes(sk):
    sk("run --name cc busybox sh -c", "echo c >/f1; ln /f1 /f2; mkdir /d; ln /f1 /d/f3; ln -s nowhere /s1; ln /s1 /s2; mkfifo /p1; ln /p1 /p2; echo x >/x; "
       "chmod 4755 /x; ln /bin/busybox /bin/hard").ok
    upper = "%s/containers/%s/upper" % (sk.root, sk.get("cc", "{{.Id}}"))
    os.setxattr(upper + "/x", "user.one", b"1")
    os.setxattr(upper + "/d", "user.dir", b"of the directory")
    sk("commit cc links").ok
    m = {x.name.rstrip("/"): x for x in saved_layers(sk, "links")[-1]}
    for names in ["f1", "f2", "d/f3"], ["s1", "s2"], ["p1", "p2"]:
        with sk.case("links of " + names[0]):
            true(set(names) <= set(m), "all names in the layer, got %s" % sorted(m))
            own = [n for n in names if not m[n].islnk()]
            eq(len(own), 1, "entries that are no hard link")
            eq({m[n].linkname for n in names if m[n].islnk()}, set(own), "what the others are links to")
    with sk.case("kinds"):
        true([m[n] for n in ("s1", "s2") if m[n].issym()][0].linkname == "nowhere", "the link's text")
    with sk.case("attributes are written once, as Docker does"):
        for name, key, value in ("x", "user.one", "1"), ("d", "user.dir", "of the directory"):
            eq({k: v for k, v in m[name].pax_headers.items() if "xattr" in k.lower()}, {"SCHILY.xattr." + key: value}, "of " + name)
    with sk.case("nothing of the engine's own"):
        eq([(n, k) for n, x in m.items() for k in x.pax_headers if "overlay" in k or "skiff" in k], [])
    with sk.case("in a container of it"):
        sk("run --rm links sh -c", "stat -c '%h %n' /f1 /f2 /d/f3 /s1 /s2 /p1 /p2; cat /d/f3; readlink /s2; stat -c %a /x").says(
            "3 /f1\n3 /f2\n3 /d/f3\n2 /s1\n2 /s2\n2 /p1\n2 /p2\nc\nnowhere\n4755")
    with sk.case("they are still there after a second commit"):
        sk("run --name c2 links sh -c", "echo more >>/f1").ok
        sk("commit c2 links2").ok
        sk("run --rm links2 sh -c", "cat /f1; readlink /s1").says("c\nmore\nnowhere")
    sk("rm cc c2").ok
    sk.check_store()


DEEP = """c=d; for i in 1 2 3 4 5 6 7 8 9; do c=$c/d/d/d/d/d; done; p=$c
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18; do p=$p/$c; done  # 874 levels, below the limit of a path
mkdir x; echo leaf >x/leaf; chmod 0 x/leaf; chmod 0 x
for i in 1 2 3 4; do mkdir -p $p && mv x $p/x && mv d x || exit 9; done"""


@only("abfg")
def test_deep_tree(sk):
    """3,500 directories in each other, the innermost closed: too deep for an archive, not to be removed."""
    for words in [""] + (["--storage-driver fuse "] if sk.who in "fg" else ["--storage-driver copy "]):
        with sk.case("removed " + words):
            sk(words + "run --name deep busybox sh -c", DEEP).ok
            sk("commit deep").exits(1, "deep|too long")
            sk("rm deep").says("deep")
            sk(words + "run --rm busybox sh -c", DEEP).ok
            lib.until(lambda: not sk.processes(), "the files are gone")
            eq((os.listdir(sk.root + "/tmp"), os.listdir(sk.root + "/containers")), ([], []), "what is left")
    with sk.case("in a volume"):
        sk("run --rm -v vol:/vol -w /vol busybox sh -c", DEEP).ok
        sk("volume rm vol").says("vol")
        eq(os.listdir(sk.root + "/volumes"), [])


@image(None)
@only("b")
def test_history_rows(sk):
    """A long line is cut between characters; nothing hostile reaches the terminal."""
    for by in "é" * 60, "x" + "é" * 60, "xy" + "€" * 60, "xyz" + "😀" * 30, "a" * 60, "a\x1b[31m\n" + "b" * 60, "short", "":
        with sk.case("created by %.6r" % by):
            sk("load -q", input=docker_archive(lib.busybox_layer(), tag="row", history=[{"created": "2020-01-02T03:04:05Z", "created_by": by}])).ok
            r = sk("history row").ok
            r.raw.decode("utf-8")
            eq(len(r.lines), 2)
            true("\x1b" not in r.out, "no escape in " + repr(r.out))
            shown = sk("history --format {{.CreatedBy}} row").ok
            shown.raw.decode("utf-8")
            true(len(shown.raw.rstrip(b"\n")) <= 47, "at most 44 bytes and an ellipsis, got %r" % shown.out)
            if len(by.encode()) <= 45 and "\x1b" not in by:
                eq(shown.out, by)
            else:
                match(shown.out, "…$")
                if "\x1b" not in by:
                    eq(sk("history --no-trunc --format {{.CreatedBy}} row").ok.out, by, "--no-trunc")


@only("abfg")
def test_mount(sk):
    d = sk.folder("m")
    with sk.case("an image's files, read-only, below unshare"):
        want = sk("run --rm --network none busybox sh -c 'cat /bin/busybox | sha256sum'").ok.out.split()[0]
        drivers = ["overlay-fuse", "fuse", "overlay"] if sk.who in "fg" else ["overlay"]
        for driver in drivers:
            r = sk(["unshare", "sh", "-c", """
                id -u
                $0 --storage-driver %s mount busybox %s || exit
                sha256sum < %s/bin/busybox
                touch %s/new 2>&1
                $0 umount %s && ls %s | wc -l; exit 5""" % (driver, d, d, d, d, d), sk.binary]).exits(5, "")
            lines = r.out.splitlines()
            eq(lines[0], "0", "root there")
            match(lines[1], want)
            match(lines[2], "Read-only")
            eq(lines[3], "0")
    with sk.case("outside, and what cannot be"):
        sk(["mount", "busybox", d]).exits(125, "skiff unshare")
        sk(["unshare", sk.binary, "mount", "nosuch:1", d]).exits(125, "nosuch")
        sk(["unshare", sk.binary, "mount", "busybox", d + "/none"]).exits(125, "No such file")
        sk(["unshare", sk.binary, "umount", d]).exits(125, "unmount")
        sk(["unshare", sk.binary, "--storage-driver", "copy", "mount", "busybox", d]).exits(125, "doctor")
        sk(["unshare", "/nosuch"]).exits(127, "nosuch")
        sk(["unshare", d]).exits(126, "denied")
    with sk.case("umask and descriptors are the caller's"):
        sk(["unshare", "sh", "-c", "umask; ls /proc/self/fd | wc -l"]).says("0022\n4")


def test_store_is_an_oci_layout(sk):
    sk("tag busybox some.host:99/a/b:c").ok
    sk.check_store()
    index = json.load(open(sk.root + "/index.json"))
    refs = [m["annotations"]["org.opencontainers.image.ref.name"] for m in index["manifests"] if "annotations" in m]
    true(len(refs) >= 2, "two names in index.json, got %s" % refs)
    for ref in refs:
        with sk.case("skopeo " + ref):
            tool("skopeo", "inspect", "oci:%s:%s" % (sk.root, ref), env=sk.env)
            tool("skopeo", "copy", "-q", "oci:%s:%s" % (sk.root, ref), "dir:%s/d-%d" % (sk.dir, refs.index(ref)), env=sk.env)
    with sk.case("private"):
        eq(os.stat(sk.root).st_mode & 0o077, 0, "mode of the store for others")
        bad = []
        for d, dirs, files in os.walk(sk.root):
            for f in files + dirs:
                p = os.path.join(d, f)
                s = os.lstat(p)
                if s.st_mode & 0o002 and not os.path.islink(p) and not s.st_mode & 0o1000:
                    bad.append(p[len(sk.root):])
        eq(bad[:3], [], "world-writable in the store")


@image(None)
def test_transports(sk):
    layout = lib.ENV["REGISTRY_IMAGES"]
    sk("load -q -i", lib.ENV["FIXTURE_busybox"]).ok
    f = sk.dir + "/b.tar"
    tool("skopeo", "copy", "-q", "docker-archive:" + lib.ENV["FIXTURE_busybox"], "oci-archive:%s:latest" % f, env=sk.env)
    sk("rmi busybox").ok
    for ref in ["oci:%s:busybox" % layout, "oci-archive:" + f, "docker-archive:" + lib.ENV["FIXTURE_busybox"]]:
        with sk.case("pull " + ref.split(":")[0]):
            r = sk("pull -q", ref).ok
            sk("run --rm", r.out.split()[-1], "echo", "x").says("x")
    with sk.case("load of an OCI archive"):
        sk("load -i", f).prints("^Loaded image")
    with sk.case("push oci:"):
        sk("load -q -i", lib.ENV["FIXTURE_busybox"]).ok
        sk("push busybox oci:%s/out:tag" % sk.dir).ok
        tool("skopeo", "inspect", "oci:%s/out:tag" % sk.dir, env=sk.env)
        tool("umoci", "unpack", "--rootless", "--image", sk.dir + "/out:tag", sk.dir + "/bundle", env=sk.env)
        true(os.path.exists(sk.dir + "/bundle/rootfs/bin/busybox"), "busybox in umoci's tree")
    for kind in "oci-archive", "docker-archive":
        with sk.case("push %s:" % kind):
            sk("push busybox %s:%s/%s.tar" % (kind, sk.dir, kind)).ok
            tool("skopeo", "inspect", "%s:%s/%s.tar" % (kind, sk.dir, kind), env=sk.env)
    with sk.case("missing"):
        sk("pull oci:/no/such:x").exits(1, "/no/such")
        sk("pull docker-archive:/no/such").exits(1, "/no/such")
    data = docker_archive(lib.busybox_layer(), tag="some.host:99/own/name:v9")
    own = sk.file("own.tar", data)
    tool("skopeo", "copy", "-q", "docker-archive:" + own, "oci:%s/lay:some.host/own:v9" % sk.dir, env=sk.env)
    tool("skopeo", "copy", "-q", "docker-archive:" + own, "oci:%s/lay:plain" % sk.dir, env=sk.env)
    tool("skopeo", "copy", "-q", "docker-archive:" + own, "oci-archive:%s/one.tar:v9" % sk.dir, env=sk.env)
    sk("rmi -f busybox").ok
    for ref in ["oci:%s:busybox" % layout, "oci:lay:plain", "oci:%s/lay:plain" % sk.dir, "oci:lay:some.host/own:v9", "oci-archive:one.tar", "oci-archive:one.tar:v9",
                "docker-archive:" + own, "docker-archive:own.tar", "docker-archive:own.tar:some.host:99/own/name:v9"]:
        with sk.case("run " + ref.replace(sk.dir, "")):
            before = sk("images -q").ok.lines
            r = sk("run --name tt", ref, "echo", "ran").says("ran")
            eq(sk.get("tt", "{{.Config.Image}}"), ref)
            true(len(sk("images -q").ok.lines) <= len(before) + 1, "at most one image more")
            sk("run --rm --pull never", ref, "echo", "again").says("again")
            sk("commit tt made").ok
            sk("rm tt").ok
    with sk.case("create prints the id alone"):
        match(sk("create docker-archive:own.tar true").ok.out, "^[0-9a-f]{64}$")
    with sk.case("run of what is missing"):
        sk("run --rm oci:/no/such:x true").exits(125, "/no/such")
        sk("run --rm oci:lay:nosuch true").exits(125, "nosuch")
        sk("run --rm docker-archive:/no/such true").exits(125, "/no/such")
        sk("run --rm docker-archive:own.tar:nosuch true").exits(125, "nosuch")
    with sk.case("one of several"):
        sk("load -q -i own.tar").ok
        sk("load -q -i", lib.ENV["FIXTURE_busybox"]).ok
        sk("run --name vv busybox sh -c", "echo second >/which").ok
        sk("commit vv second:2").ok
        sk("rm vv").ok
        for order in "busybox second:2", "second:2 busybox":
            sk("save -o both.tar " + order).ok
            sk("run --rm docker-archive:both.tar:second:2 cat /which").says("second")
            sk("run --rm docker-archive:both.tar:busybox:latest ls /which").exits(1, "no such file")
            sk("run --rm docker-archive:both.tar true").exits(125, "several|images|which")
        tool("skopeo", "copy", "-q", "docker-archive:both.tar:second:2", "oci:lay:second", cwd=sk.dir, env=sk.env)
        sk("run --rm oci:lay:second cat /which").says("second")
        sk("run --rm oci:lay true").exits(125, "several|images|which")
    with sk.case("docker://"):
        sk("load -q -i", lib.ENV["FIXTURE_busybox"]).ok
        sk("run --rm docker://busybox echo x").says("x")
        sk("run --rm docker://docker.io/library/busybox:latest echo x").says("x")
        ref = lib.ENV["REGISTRY_HTTP"] + "/busybox:docker"
        sk("pull -q docker://" + ref).says(ref)
        sk("run --rm", ref, "echo", "x").says("x")
    sk.check_store()


def test_rootfs(sk):
    with tarfile.open(fileobj=io.BytesIO(lib.busybox_layer())) as t:
        root = sk.folder("rootfs")
        t.extractall(root)
    with sk.case("--rootfs"):
        sk("run --rm --rootfs", root, "sh", "-c", "echo x >/f; cat /f").says("x")
    with sk.case("a relative path"):
        sk("run --rm --rootfs rootfs cat /f").says("x")
        sk("run --rm --rootfs ./rootfs cat f", cwd=sk.dir).says("x")
        sk("create --name rel --rootfs rootfs cat /f").ok
        sk("start -a rel", cwd="/").says("x")
        sk("rm rel").ok
    with sk.case("--rootfs :O leaves it alone"):
        before = sorted(os.listdir(root))
        for path in root + ":O", "rootfs:O", "./rootfs:O":
            sk("run --rm --rootfs", path, "sh", "-c", "cat /f; echo y >/g; cat /g; rm /f; rm -r /home; echo z >>/etc/passwd").says("x\ny")
        eq(sorted(os.listdir(root)), before, "the folder's files")
        sk("run --rm --rootfs", root, "tail", "-n1", "/etc/passwd").prints("^nobody")
    with sk.case("what :O wrote is kept until rm"):
        sk("run --name oo --rootfs rootfs:O sh -c", "echo kept >>/kept; cat /kept").says("kept")
        sk("start -a oo").says("kept\nkept")
        sk("exec oo true").exits(1, "not running")
        sk("cp oo:/kept", sk.dir + "/kept").ok
        eq(open(sk.dir + "/kept").read(), "kept\nkept\n")
        with tarfile.open(fileobj=io.BytesIO(sk("export oo").ok.raw)) as t:
            true({"kept", "bin/busybox"} <= {n.lstrip("./") for n in t.getnames()}, "both layers in the export")
    with sk.case("it has no image"):
        sk("commit oo x").exits(1, "image|rootfs")
        for name in "oo", "dir":
            if name == "dir":
                sk("create --name dir --rootfs rootfs true").ok
            r = sk("diff", name)
            if r.code:
                r.exits(1, "rootfs|image")
                no_match(r.err, "merged/", "the message")
        sk("rm oo dir").ok
    with sk.case("--read-only --rootfs"):
        sk("run --rm --read-only --rootfs", root, "sh", "-c", "echo x >/h").exits(1, "read-only")
    with sk.case("missing"):
        sk("run --rm --rootfs /no/such true").exits(125, "/no/such")


def test_diff(sk):
    sk("run --name cc busybox sh -c",
       "echo x >/new; rm /bin/vi; echo y >>/etc/passwd; mkdir -p /d/e; touch /d/e/f; rm -rf /home; ln -s a /l").ok
    got = sk("diff cc").ok.lines
    for want in ["A /new", "C /bin", "D /bin/vi", "C /etc", "C /etc/passwd", "A /d", "A /d/e", "A /d/e/f", "D /home", "A /l"]:
        with sk.case(want):
            true(want in got, "%s in %s" % (want, got))
    with sk.case("no more than that"):
        eq([x for x in got if x not in ("A /new", "C /bin", "D /bin/vi", "C /etc", "C /etc/passwd", "A /d", "A /d/e", "A /d/e/f",
                                        "D /home", "A /l", "C /tmp", "C /root")], [])
    with sk.case("created only"):
        sk("create --name dd busybox true").ok
        sk("diff dd").says("")
    with sk.case("missing"):
        sk("diff nosuch").exits(1, "no such container")


def tree_of_tar(data):
    """name -> what can be compared, of an export."""
    out, links = {}, {}
    with tarfile.open(fileobj=io.BytesIO(data)) as t:
        for m in t:
            name = os.path.normpath(m.name).lstrip("/")
            if m.islnk():
                links[name] = os.path.normpath(m.linkname).lstrip("/")
                continue
            content = lib.digest(t.extractfile(m).read()) if m.isreg() else m.linkname if m.issym() else \
                (m.devmajor, m.devminor) if m.isdev() else ""
            kind = "f" if m.isreg() else "d" if m.isdir() else "l" if m.issym() else "x"
            out[name] = (kind, m.mode & 0o7777 if kind != "l" else 0, m.uid, m.gid, content, int(m.mtime) if kind == "f" else 0)
    for name, target in links.items():
        out[name] = out.get(target, ("missing link target " + target,))
    return out


def tree_of_folder(root):
    out = {}
    for d, dirs, files in os.walk(root):
        for f in dirs + files:
            p = os.path.join(d, f)
            s = os.lstat(p)
            if os.path.islink(p):
                v = ("l", 0, s.st_uid, s.st_gid, os.readlink(p), 0)
            elif os.path.isdir(p):
                v = ("d", s.st_mode & 0o7777, s.st_uid, s.st_gid, "", 0)
            elif os.path.isfile(p):
                with open(p, "rb") as h:
                    v = ("f", s.st_mode & 0o7777, s.st_uid, s.st_gid, lib.digest(h.read()), int(s.st_mtime))
            else:
                v = ("x", s.st_mode & 0o7777, s.st_uid, s.st_gid, "", 0)
            out[os.path.relpath(p, root)] = v
    return out


@image(None)
@only("a")
@timeout(280)
def test_tree_equals_umoci(sk):
    """Entry by entry; with subordinate ids the owners as well."""
    for name in "python", "python-zstd", "nginx":
        with sk.case(name):
            ref = sk("pull -q oci:%s:%s" % (lib.ENV["REGISTRY_IMAGES"], name), wait=200).ok.out.split()[-1]
            sk("create --name cc", ref, "true").ok
            ours = tree_of_tar(sk("export cc").ok.raw)
            sk("rm cc").ok
            bundle = sk.dir + "/u-" + name
            # umoci as namespace root over the same ranges keeps owners, and needs no real root
            script = "umoci unpack --image %s:%s %s && exec python3 -c '%s'" % (
                lib.ENV["REGISTRY_IMAGES"], name.replace("-zstd", ""), bundle,
                "import sys, json; sys.dont_write_bytecode = True; sys.path.insert(0, \"%s\"); import test_image; "
                "json.dump(test_image.tree_of_folder(\"%s/rootfs\"), sys.stdout)" % (lib.HERE, bundle))
            out = tool("podman", "--root", sk.dir + "/p", "--runroot", sk.dir + "/pr", "unshare", "sh", "-c", script, env=sk.env)
            theirs = {k: tuple(v) for k, v in json.loads(out[out.index(b"{"):]).items()}
            skip = {".", "dev/console", "etc/hosts", "etc/hostname", "etc/resolv.conf", ".dockerenv", "run/.containerenv"}
            names = sorted((set(ours) | set(theirs)) - skip)
            different = [(n, ours.get(n), theirs.get(n)) for n in names
                         if ours.get(n) != theirs.get(n)
                         and not (n in ("dev", "proc", "sys") or n.startswith(("dev/", "proc/", "sys/")))]
            true(len(names) > 3000, "a whole tree, got %d names" % len(names))
            eq(different[:3], [], "%d entries that differ (name, skiff, umoci)" % len(different))
            eq(sk("rmi", ref).code, 0, "rmi")
            tool("podman", "--root", sk.dir + "/p", "--runroot", sk.dir + "/pr", "unshare", "rm", "-rf", bundle, env=sk.env)
