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
    with sk.case("errors"):
        sk("commit nosuch").exits(1, "no such container")
        sk("commit cc BAD").exits(1, "reference|lower ?case")


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


def test_rootfs(sk):
    with tarfile.open(fileobj=io.BytesIO(lib.busybox_layer())) as t:
        root = sk.folder("rootfs")
        t.extractall(root)
    with sk.case("--rootfs"):
        sk("run --rm --rootfs", root, "sh", "-c", "echo x >/f; cat /f").says("x")
    with sk.case("--rootfs :O leaves it alone"):
        r = sk("run --rm --rootfs", root + ":O", "sh", "-c", "echo y >/g; cat /g")
        if r.code == 0:
            true(not os.path.exists(root + "/g"), "no /g in the folder")
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
