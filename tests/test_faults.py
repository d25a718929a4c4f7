"""Full disk, unreadable or damaged store, strange surroundings."""
import json
import os
import random
import resource
import shutil
import signal
import subprocess

import lib
from lib import Failed, Skipped, docker_archive, entry, eq, image, match, no_match, only, tar, timeout, true, until

WHO = "b"


@only("root")
@image(None)
@timeout(180)
def test_full_disk(sk):
    """Small file systems of several sizes: a clear error, nothing half-done, and it works again with room."""
    noise = random.Random(5).randbytes(3 << 20)
    data = docker_archive(lib.busybox_layer(), tar(entry("noise", noise)))
    for kb in 64, 512, 2000, 5000, 9000, 14000:
        with sk.case("%d kB" % kb):
            disk = sk.folder("disk")
            lib.tool("mount", "-t", "tmpfs", "-o", "size=%dk,mode=700,uid=%d,gid=%d" % (kb, *sk.user), "tmpfs", disk)
            try:
                sk.root = disk + "/root"
                sk.env["SKIFF_ROOT"] = sk.root
                r = sk("load -q", input=data)
                if r.code:
                    r.exits(None, "no space left|disk")
                    sk("images -aq").says("")
                    sk.check_store()
                    left = [p for d, _, fs in os.walk(sk.root) for p in fs if os.path.getsize(os.path.join(d, p)) > 100000]
                    eq(left, [], "large files after a failed load")
                else:
                    r = sk("run --rm attack sh -c", "head -c 20000000 /dev/zero >/fill")
                    true(r.code != 0, "the container to see a full disk")
                    for c in sk("ps -aq").ok.lines:
                        sk("rm -f", c).ok
                    sk("run --rm attack true").ok
                    for line in "run --name full attack sh -c 'head -c 20000000 /dev/zero >/fill'", "commit full x:y", "rm -f full", "rmi attack":
                        sk(line)
                    sk.check_store()
            finally:
                for p, _ in sk.processes():
                    lib.kill(p)
                lib.tool("umount", "-l", disk)


@only("root")
@image(None)
def test_log_on_a_full_disk(sk):
    """Lines that do not fit are lost, whole ones; what comes after them is there."""
    disk = sk.folder("disk")
    lib.tool("mount", "-t", "tmpfs", "-o", "size=30m,mode=700,uid=%d,gid=%d" % sk.user, "tmpfs", disk)
    try:
        sk.root = disk + "/root"
        sk.env["SKIFF_ROOT"] = sk.root
        sk("load -q -i", lib.ENV["FIXTURE_busybox"]).ok
        sk("run -d --name cc busybox sh -c", r"trap 'for i in 1 2 3 4 5 6 7 8; do head -c 3000 /dev/zero | tr \\0 x; echo; done' USR1; trap 'echo after' USR2; "
           "echo up; while :; do sleep 0.1; done").ok
        until(lambda: sk("logs cc").ok.out == "up", "it is up")
        with sk.popen("attach --no-stdin --sig-proxy=false cc", stdout=subprocess.PIPE) as p:
            fill = open(disk + "/fill", "wb", 0)
            try:
                while fill.write(bytes(4096)) == 4096:
                    pass
            except OSError:
                pass
            sk("kill -s USR1 cc")
            eq(len(p.stdout.read(8 * 3001)), 8 * 3001)
            os.unlink(fill.name)
            fill.close()
            sk("kill -s USR2 cc").ok
            eq(p.stdout.readline(), b"after\n")
            p.kill()
        lines = sk("logs cc").ok.lines
        eq((lines[0], lines[-1], {len(line) for line in lines[1:-1]} <= {3000}, len(lines) < 10), ("up", "after", True, True))
        with open("%s/containers/%s/run/log.json" % (sk.root, sk.get("cc", "{{.Id}}"))) as f:
            eq([json.loads(line)["stream"] for line in f], ["stdout"] * len(lines))
        sk("rm -f cc").ok
    finally:
        for p, _ in sk.processes():
            lib.kill(p)
        lib.tool("umount", "-l", disk)


@only("root")
@image(None)
def test_read_only_store(sk):
    disk = sk.folder("disk")
    lib.tool("mount", "-t", "tmpfs", "-o", "size=60m,mode=700,uid=%d,gid=%d" % sk.user, "tmpfs", disk)
    try:
        sk.root = disk + "/root"
        sk.env["SKIFF_ROOT"] = sk.root
        sk("load -q -i", lib.ENV["FIXTURE_busybox"]).ok
        sk("create --name cc busybox true").ok
        lib.tool("mount", "-o", "remount,ro", disk)
        for line, code in [("images -q", 0), ("ps -aq", 0), ("inspect cc", 0), ("rmi -f busybox", 1), ("rm cc", 1), ("start cc", 1), ("run --rm busybox true", 125),
                           ("volume create vv", 1), ("tag busybox x", 1)]:
            with sk.case(line):
                r = sk(line)
                if code:
                    r.exits(code, "read-only|denied")
                else:
                    true(r.code == 0 or "read-only" in r.err.lower(), "%s to work or to name the cause: %r" % (line, r.err))
    finally:
        lib.tool("umount", "-l", disk)


def test_damaged_store(sk):
    """Files of the store cut, emptied, exchanged: a clear error, never a crash or a wrong content."""
    sk("create --name cc busybox echo fine").ok
    good = sk.dir + "/good"
    shutil.copytree(sk.root, good, symlinks=True)
    files = [os.path.relpath(os.path.join(d, f), good) for d, _, fs in os.walk(good) for f in fs]
    files = [f for f in files if os.path.isfile(os.path.join(good, f)) and not os.path.islink(os.path.join(good, f)) and "lock" not in f and ".tree" not in f]
    small = [f for f in files if os.path.getsize(os.path.join(good, f)) < 200000][:25]
    big = [f for f in files if f not in small][:6]
    for f in small + big:
        with sk.case(f[-50:]):
            size = os.path.getsize(os.path.join(good, f))
            for how in "empty", "cut", "zeros", "gone", "directory", "garbage":
                shutil.rmtree(sk.root, ignore_errors=True)
                shutil.copytree(good, sk.root, symlinks=True, dirs_exist_ok=True)
                p = os.path.join(sk.root, f)
                if how == "empty":
                    open(p, "w").close()
                elif how == "cut":
                    os.truncate(p, size // 2)
                elif how == "zeros":
                    open(p, "wb").write(b"\0" * size)
                elif how == "garbage":
                    open(p, "wb").write(random.Random(1).randbytes(min(size, 5000)))
                else:
                    os.unlink(p)
                    if how == "directory":
                        os.mkdir(p)
                for line in "ps -a", "images", "start -a cc" if how in ("cut", "garbage", "gone") else "inspect cc":
                    r = sk(line, wait=30)
                    true(r.code in (0, 1, 2, 125, 126, 127), "%s with %s %s: an ordered end, got %d %r" % (line, how, f, r.code, lib.short(r.err)))
                    true(r.code == 0 or r.err, "%s with %s %s: an error text" % (line, how, f))


@image(None)
def test_unusable_store(sk):
    for name, path in [("a file", sk.file("file", "x")), ("below a file", sk.file("file", "x") + "/x"), ("not allowed", "/root/x"), ("a missing parent of root's", "/no/such/dir"),
                       ("proc", "/proc/self/x"), ("empty name", ""), ("a device", "/dev/null")]:
        with sk.case(name):
            r = sk("volume create vv", env={"SKIFF_ROOT": path, "HOME": sk.dir if path else "/nonexistent"})
            if path or r.code:
                r.exits(None, ".")
    with sk.case("unreadable"):
        d = sk.folder("closed")
        os.chmod(d, 0)
        try:
            sk("volume create vv", env={"SKIFF_ROOT": d}).exits(None, "permission denied|private|mode|0700")
        finally:
            os.chmod(d, 0o700)
    with sk.case("a store of a later version"):
        sk.file("later/oci-layout", '{"imageLayoutVersion": "99.0.0"}')
        sk.file("later/index.json", '{"schemaVersion": 99}')
        os.chmod(sk.dir + "/later", 0o700)
        r = sk("images", env={"SKIFF_ROOT": sk.dir + "/later"})
        r.exits(None, ".")
    with sk.case("a very long path"):
        long = sk.dir + "/" + "/".join(["p" * 60] * 12)
        sk("load -q -i", lib.ENV["FIXTURE_busybox"], env={"SKIFF_ROOT": long}).ok
        sk("run -d --name ll busybox sleep 100", env={"SKIFF_ROOT": long}).ok
        sk("exec ll echo x", env={"SKIFF_ROOT": long}).says("x")
        sk("rm -f ll", env={"SKIFF_ROOT": long}).ok
    with sk.case("a path with spaces, quotes, commas, colons, backslashes"):
        odd = sk.dir + "/a b,c:d\\e'f\"g%h=i"
        sk("load -q -i", lib.ENV["FIXTURE_busybox"], env={"SKIFF_ROOT": odd}).ok
        for driver in "overlay", "copy":
            sk("--storage-driver %s run --rm busybox echo x" % driver, env={"SKIFF_ROOT": odd}).says("x")
    with sk.case("through a symlink"):
        os.symlink(sk.folder("real"), sk.dir + "/link")
        sk("volume create vv", env={"SKIFF_ROOT": sk.dir + "/link/s"}).ok
        sk("volume ls -q", env={"SKIFF_ROOT": sk.dir + "/real/s"}).says("vv")


def test_umask_and_signals(sk):
    for mask in 0o000, 0o077, 0o777:
        with sk.case("umask %03o" % mask):
            sk("run --rm busybox sh -c", "umask; stat -c %a /bin /etc/passwd", preexec_fn=lambda: os.umask(mask)).says("0022\n755\n644")
    with sk.case("blocked and ignored signals of the caller"):
        def odd():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGCHLD])
        sk("run --rm busybox sh -c", "grep -e SigIgn -e SigBlk /proc/self/status | cut -f2 | sort -u", preexec_fn=odd).says("0000000000000000")
    with sk.case("SIGCHLD ignored by the caller"):
        sk("run --rm busybox sh -c", "exit 3", preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)).exits(3)
    with sk.case("file size limit of the caller"):
        r = sk("run --rm busybox true", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
        true(r.code in (0, 1, 125, 126), "an ordered end, got %d" % r.code)
        sk.check_store()
    with sk.case("core size limit goes to the container"):
        sk("run --rm busybox sh -c", "ulimit -c", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0))).says("0")


def test_large_inputs(sk):
    with sk.case("100 kB in an argument"):
        sk("run --rm busybox sh -c", "echo ${#0}", "x" * 100000).says("100000")
    with sk.case("1,000 variables"):
        sk(["run", "--rm"] + sum([["-e", "V%d=%d" % (i, i)] for i in range(1000)], []) + ["busybox", "sh", "-c", "env | grep -c ^V"]).says("1000")
    with sk.case("1,000 labels"):
        sk(["create", "--name", "lab"] + sum([["-l", "l%d=v" % i] for i in range(1000)], []) + ["busybox"]).ok
        eq(sk.get("lab", "{{len .Config.Labels}}"), "1000")
    with sk.case("60 volumes"):
        sk(["run", "--rm"] + sum([["-v", "v%d:/v%d" % (i, i)] for i in range(60)], []) + ["busybox", "sh", "-c", "ls -d /v* | wc -l"]).says("60")
    with sk.case("100,000 files that a container has made"):
        sk("run --name many busybox sh -c", "mkdir /d; cd /d; seq 100000 | xargs touch").ok
        eq(len(sk("diff many").ok.lines), 100001)
        sk("rm many").ok
        eq(os.listdir(sk.root + "/containers"), [sk.get("lab", "{{.Id}}")])
    with sk.case("an env file of 2 MB"):
        f = sk.file("env", "".join("A%d=%s\n" % (i, "x" * 100) for i in range(20000)))
        r = sk("run --rm --env-file", f, "busybox", "true")
        true(r.code in (0, 1, 125, 126), "an ordered end, got %d" % r.code)
