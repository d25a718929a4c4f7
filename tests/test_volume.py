"""Volumes, binds, --mount; the volume commands."""
import os
import re

import lib
from lib import eq, image, match, no_match, only, timeout, true, until

WHO = "ab"


def test_commands(sk):
    with sk.case("create"):
        sk("volume create vv").says("vv")
        sk("volume create vv").says("vv")
        name = sk("volume create").ok.out
        match(name, "^[0-9a-f]{64}$")
    with sk.case("ls"):
        r = sk("volume ls").ok
        match(r.lines[0], r"^DRIVER +VOLUME NAME$")
        match(r.out, r"^local +vv$")
        eq(sorted(sk("volume ls -q").ok.lines), sorted(["vv", name]))
    with sk.case("inspect"):
        j = sk("volume inspect vv").ok.json[0]
        eq((j["Name"], j["Driver"], j["Scope"]), ("vv", "local", "local"))
        true(os.path.isdir(j["Mountpoint"]), "the mount point to be a directory")
        sk("volume inspect -f {{.Name}} vv").says("vv")
        sk("volume inspect nosuch").exits(1, "no such volume|nosuch")
        eq(sk("inspect --type volume vv").ok.json[0]["Name"], "vv")
    with sk.case("labels and filters"):
        sk("volume create --label a=b lab").ok
        sk("volume ls -qf label=a=b").says("lab")
        sk("volume ls -qf name=la").says("lab")
        sk("volume ls -qf driver=nosuch").says("")
        sk("volume ls -f nosuch=1").exits(None, "invalid filter")
        eq(sk("volume inspect -f {{.Labels.a}} lab").ok.out, "b")
    with sk.case("in use"):
        sk("create --name cc -v vv:/x busybox").ok
        sk("volume rm vv").exits(1, "in use")
        sk("volume ls -qf dangling=false").says("vv")
        true("vv" not in sk("volume ls -qf dangling=true").ok.lines, "v not dangling")
        sk("rm cc").ok
        sk("volume rm vv").says("vv")
    with sk.case("rm"):
        sk("volume rm nosuch").exits(1, "no such volume|nosuch")
        sk("volume rm -f nosuch").ok
        sk("volume rm", name).says(name)
    with sk.case("prune takes anonymous ones, -a all"):
        sk("volume create named").ok
        sk("create --name dd -v /anon busybox").ok
        sk("rm dd").ok
        r = sk("volume prune -f").ok
        match(r.out, r"^Deleted Volumes:\n[0-9a-f]{64}\n\nTotal reclaimed space: ")
        eq(sorted(sk("volume ls -q").ok.lines), ["lab", "named"])
        sk("volume prune -af --filter label!=a").prints("named")
        sk("volume ls -q").says("lab")
    for bad in "../x", "a/b", ".", "..", "-x", "a" * 300, "a b", "\x1b":
        with sk.case("bad name %r" % bad[:9]):
            sk(["volume", "create", bad]).exits(None, ".")
    with sk.case("bad driver"):
        sk("volume create -d nosuch xx").exits(None, "nosuch|driver")


def test_named(sk):
    with sk.case("made when missing, kept between containers"):
        sk("run --rm -v data:/d busybox sh -c", "echo x >/d/f").ok
        sk("run --rm -v data:/e busybox cat /e/f").says("x")
        sk("volume ls -q").says("data")
    with sk.case("filled from the image"):
        sk("run --rm -v etc:/etc busybox cat /etc/passwd").prints("^root:")
        sk("run --rm -v etc:/x busybox ls /x").prints("passwd")
        sk("run --rm -v etc:/bin:nocopy busybox true").exits(127)
        sk("run --rm -v fresh:/bin:nocopy --entrypoint /bin/true busybox").exits(127)
    with sk.case("what is there stays"):
        sk("run --rm -v data:/etc busybox ls /etc").prints("(?m)^f$")
        no_match(sk("run --rm -v data:/x busybox ls /x").ok.out, "passwd")
    with sk.case("ro"):
        sk("run --rm -v data:/d:ro busybox sh -c", "cat /d/f; echo y >/d/g").exits(1, "read-only")
    with sk.case("owner of the image's directory"):
        sk("load -q", input=lib.docker_archive(lib.busybox_layer(), lib.tar(
            lib.entry("own/", mode=0o750), lib.entry("own/f", "in image\n")), tag="own", config={"Volumes": {"/own": {}}})).ok
        sk("run --rm own sh -c", "stat -c %a /own; cat /own/f").says("750\nin image")
    with sk.case("VOLUME makes an anonymous one"):
        sk("create --name oo own true").ok
        m = sk("inspect oo").ok.json[0]["Mounts"]
        eq((len(m), m[0]["Type"], m[0]["Destination"]), (1, "volume", "/own"))
        match(m[0]["Name"], "^[0-9a-f]{64}$")
        sk("rm -v oo").ok
    with sk.case("two containers at once"):
        sk.up("ww", "echo shared >/d/s; sleep 1000", "-v", "data:/d")
        until(lambda: sk("run --rm -v data:/d busybox cat /d/s").out == "shared", "the other sees the file")
    with sk.case("mount over a path that is not there, a file, nested"):
        sk("run --rm -v aa:/new/deep/path -v bb:/new/deep/path/in busybox sh -c", "echo 1 >/new/deep/path/in/f; ls /new/deep/path").says("in")
        sk("run --rm -v bb:/x busybox cat /x/f").says("1")


def test_binds(sk):
    d = sk.folder("host")
    sk.file("host/f", "host file\n")
    sk.file("host/sub/g", "below\n")
    os.symlink("f", d + "/link")
    os.symlink(sk.dir, d + "/up")
    for options, script, want in [
            ("-v %s:/m" % d, "cat /m/f /m/sub/g", "host file\nbelow"), ("-v %s:/m:ro" % d, "(echo x >/m/n) 2>&1; ls /m/n 2>&1 | grep -c 'No such'", "(?s:.*Read-only.*1)"),
            ("-v %s/f:/etc/one" % d, "cat /etc/one", "host file"), ("-v %s/f:/etc/passwd:ro" % d, "cat /etc/passwd", "host file"),
            ("-v %s/link:/m" % d, "cat /m", "host file"), ("-v %s:/m:z" % d, "cat /m/f", "host file"), ("-v %s:/m:ro,Z" % d, "cat /m/f", "host file"),
            ("-v %s:/m:rw" % d, "echo w >/m/w; cat /m/w", "w"), ("-v %s:/m:ro,rslave" % d, "cat /m/f", "host file"),
            ("--mount type=bind,source=%s,target=/m" % d, "cat /m/f", "host file"), ("--mount type=bind,src=%s,dst=/m,readonly" % d, "touch /m/n 2>&1", ".*Read-only.*"),
            ("--mount type=bind,src=%s,destination=/m,ro=true,bind-propagation=rprivate" % d, "cat /m/f", "host file"),
            ("--mount type=volume,src=vol,dst=/m", "echo v >/m/v; cat /m/v", "v"), ("--mount type=volume,dst=/m", "echo v >/m/v; cat /m/v", "v"),
            ("--mount src=vol,dst=/m", "cat /m/v", "v"), ("--mount type=volume,src=vol,dst=/m,readonly", "touch /m/x 2>&1", ".*Read-only.*"),
            ("--mount type=tmpfs,dst=/m,tmpfs-size=1m,tmpfs-mode=0700", "df -k /m | tail -1 | tr -s ' ' | cut -d' ' -f2; stat -c %a /m", "1024\n700"),
            ("--mount 'type=bind,\"source=%s\",target=/m'" % d, "cat /m/f", "host file"), ("-v %s:/m/../n" % d, "cat /n/f", "host file"),
            ("-v %s:/a/b/c/d" % d, "cat /a/b/c/d/f", "host file"), ("-v %s:/m -v %s/f:/m/sub/g" % (d, d), "cat /m/sub/g", "host file"),
            ("-v ./host:/m", "cat /m/f", "host file"), ("-v %s:/m:cached" % d, "cat /m/f", "host file"), ("-v %s:/m:ro,delegated" % d, "touch /m/n 2>&1", ".*Read-only.*"),
            ("-v %s:/m:consistent,rw" % d, "cat /m/f", "host file"), ("--mount type=bind,source=./host,target=/m", "cat /m/f", "host file"),
            ("--mount type=bind,source=.,target=/m", "cat /m/host/f", "host file")]:
        with sk.case(options.replace(sk.dir, "")[:70]):
            r = sk("run --rm " + options + " busybox sh -c", script)
            true(re.search("^(?:%s)$" % want, r.out), "/%s/, got %r %r" % (want, r.out, lib.short(r.err)))
    with sk.case("a missing source of -v is made"):
        sk("run --rm -v", sk.dir + "/made:/m", "busybox", "touch", "/m/x").ok
        true(os.path.exists(sk.dir + "/made/x"), "the made directory")
        sk("run --rm -v ./made2/below:/m busybox touch /m/x").ok
        true(os.path.exists(sk.dir + "/made2/below/x"), "the made directory of a relative path")
    with sk.case("a missing source of --mount is refused"):
        sk("run --rm --mount type=bind,src=./nosuch,dst=/m busybox true").exits(125, "does not exist|no such")
        sk("run --rm --mount type=bind,src=%s/nosuch,dst=/m busybox true" % sk.dir).exits(125, "does not exist|no such")
        true(not os.path.exists(sk.dir + "/nosuch"), "nothing made")
    with sk.case("twice at one place"):
        sk("run --rm -v %s:/m -v vol:/m busybox true" % d).exits(125, "duplicate mount point")
    with sk.case("over /"):
        sk("run --rm -v %s:/ busybox true" % d).exits(125, "destination can't be '/'|invalid")
    with sk.case("read-only is read-only for what is mounted below"):
        mine = "/shm/skiff-test-%d" % os.getpid()
        try:
            sk("run --rm -v /dev:/m:ro busybox touch", "/m" + mine).exits(1, "read-only|permission")
        finally:
            if os.path.exists("/dev" + mine):
                os.unlink("/dev" + mine)
    with sk.case("noexec, nosuid of the host stay"):
        flags = [x.split()[3] for x in open("/proc/mounts") if x.split()[1] == "/dev/shm"]
        got = sk("run --rm -v /dev/shm:/m busybox grep ' /m ' /proc/mounts").ok.out.split()[3]
        for flag in "nosuid", "nodev", "noexec":
            true(not flags or flag not in flags[-1].split(",") or flag in got, "%s kept from the host's /dev/shm, got %s" % (flag, got))
    with sk.case("the mount is no longer there afterwards"):
        no_match(open("/proc/self/mountinfo").read(), re.escape(sk.dir) + "/(host|root)")
    with sk.case("a target that is a symlink in the image stays inside"):
        canary = sk.folder("canary")
        sk("load -q", input=lib.docker_archive(lib.busybox_layer(), lib.tar(
            lib.entry("abs", link=canary), lib.entry("rel", link="../" * 40 + canary.lstrip("/")), lib.entry("deep", link="/abs")), tag="link")).ok
        for t in "/abs", "/rel", "/abs/new", "/deep/er", "/rel/x":
            r = sk("run --rm -v %s:%s link true" % (d, t))
            true(r.code in (0, 125), "a mount inside or a refusal, got %d" % r.code)
            sk("run --rm -v %s/f:%s/file link true" % (d, t))
            sk("run --rm -w %s/wd link true" % t)
            sk("run --rm --tmpfs %s/tmp link true" % t)
            eq(os.listdir(canary), [], "the host's directory after a mount on " + t)
    with sk.case("a source that is a symlink"):
        sk("run --rm -v %s/up:/m busybox cat /m/host/f" % d).says("host file")


def test_df(sk):
    sk("run --name cc -v vol:/v busybox sh -c", "head -c 300000 /dev/urandom >/f; head -c 200000 /dev/urandom >/v/g").ok
    with sk.case("table"):
        r = sk("system df").ok
        match(r.lines[0], r"^TYPE +TOTAL +ACTIVE +SIZE +RECLAIMABLE$")
        match(r.out, r"^Images +1 +1 +[\d.]+MB +[\d.]+k?M?B")
        match(r.out, r"^Containers +1 +0 +\d+(\.\d+)?kB +\d+(\.\d+)?kB \(100%\)$")
        match(r.out, r"^Local Volumes +1 +1 +\d+(\.\d+)?kB +0B \(0%\)$")
        match(r.out, r"^Build Cache +0 +0 +0B +0B$")
    with sk.case("-v"):
        r = sk("system df -v").ok
        match(r.out, r"(?m)^REPOSITORY +TAG +IMAGE ID")
        match(r.out, r"(?m)^VOLUME NAME +LINKS +SIZE")
        match(r.out, r"(?m)^vol +1 +20\d(\.\d+)?kB")
    with sk.case("system prune"):
        sk("volume create loose").ok
        r = sk("system prune -f").ok
        match(r.out, "Deleted Containers:")
        match(r.out, "Total reclaimed space: [1-9]")
        eq((sk("ps -aq").out, len(sk("images -q").ok.lines), sorted(sk("volume ls -q").ok.lines)), ("", 1, ["loose", "vol"]))
        sk("system prune -af --volumes").ok
        sk("images -q").says("")
    with sk.case("all is given back"):
        size = sum(os.lstat(os.path.join(d, f)).st_size for d, _, fs in os.walk(sk.root) for f in fs
                   if not d.startswith(sk.root + "/volumes"))
        true(size < 400000, "an empty store to be small, got %d bytes" % size)
