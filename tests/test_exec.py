"""exec, attach, top, cp, stats."""
import io
import os
import signal
import subprocess
import tarfile
import time

import lib
from lib import Terminal, entry, eq, image, match, no_match, only, tar, timeout, true, until


def test_exec(sk):
    sk.up("cc", "sleep 1000", "-e", "A=1", "-w", "/tmp", "--hostname", "hh", "--label", "x=y")
    for line, want in [
            ("exec cc echo hi", "hi"), ("exec cc pwd", "/tmp"), ("exec -w /etc cc pwd", "/etc"), ("exec cc sh -c 'echo $A'", "1"), ("exec -e A=2 cc sh -c 'echo $A'", "2"),
            ("exec -e B=3 cc sh -c 'echo $B'", "3"), ("exec cc hostname", "hh"), ("exec cc id -u", "0"), ("exec -u app cc id -u", "1000"), ("exec -u 0:0 cc id -u", "0"),
            ("exec -u app cc id -G", "1000 10"), ("exec -u app cc sh -c 'echo $HOME'", "/home"), ("exec cc sh -c 'echo $PATH'", "/bin"),
            ("exec --env-file ENVS cc sh -c 'echo $Z'", "9"), ("container exec cc echo x", "x"), ("exec cc echo -it -- -x", "-it -- -x")]:
        with sk.case(line):
            sk.file("ENVS", "Z=9\n")
            if line.startswith("exec -u app") and not sk.subuid:
                r = sk(line)  # the map of a single id cannot hold a second one unless it is emulated
                true(r.code == 0 and r.out == want or r.code in (125, 126), "%s, or a clear refusal, got %d %r %r" % (want, r.code, r.out, r.err))
                continue
            sk(line).says(want)
    for line, code, pattern in [
            ("exec cc false", 1, None), ("exec cc sh -c 'exit 42'", 42, None), ("exec cc nosuch", 127, "not found|no such"), ("exec cc /etc", 126, "directory|permission"),
            ("exec cc /etc/passwd", 126, "permission"), ("exec cc sh -c 'kill -9 $$'", 137, None), ("exec nosuch true", 1, "no such container"),
            ("exec -u nosuch cc true", None, "unable to find user nosuch"), ("exec -w /no/such cc true", None, "/no/such|chdir|no such"), ("exec -w relative cc true", None, "absolute|invalid|relative")]:
        with sk.case(line):
            sk(line).exits(code, pattern)
    for user in ":", "0:", "+1", "1x", "-1", "4294967296", "4294967295", "0:0:0", "0x0", " 0":
        with sk.case("-u %r" % user):
            r = sk(["exec", "-u", user, "cc", "id", "-u"])
            if r.code == 0:
                eq(user in ("0:", ":"), True, "user %r to be refused; id -u said %s" % (user, r.out))
            else:
                true(r.code in (1, 125, 126), "an error, got %d" % r.code)
    with sk.case("stdin"):
        sk("exec -i cc cat", input="through").says("through")
        sk("exec cc cat", input="not").says("")
    with sk.case("streams apart"):
        r = sk("exec cc sh -c", "echo o; echo e >&2").ok
        eq((r.out, r.err), ("o", "e"))
    with sk.case("large output"):
        eq(len(sk("exec cc sh -c", "head -c 5000000 /dev/zero").ok.raw), 5000000)
    with sk.case("-d"):
        sk("exec -d cc sh -c", "echo done >/tmp/flag").says("")
        until(lambda: sk("exec cc test -e /tmp/flag").code == 0, "a detached exec does its work")
    with sk.case("the same namespaces"):
        for n in "mnt", "pid", "user", "uts", "ipc", "net":
            eq(sk("exec cc readlink /proc/self/ns/" + n).ok.out, sk("exec cc readlink /proc/1/ns/" + n).ok.out)
    with sk.case("terminal"):
        t = Terminal(sk, "exec -it cc sh", rows=33, cols=77)
        t.expect("# ")
        t.send("tty; stty size\n")
        t.expect("/dev/pts/")
        t.expect("33 77")
        t.size(44, 88)
        until(lambda: t.send("stty size\n") or (t.read(0.3) and "44 88" in t.seen), "the new size arrives")
        t.seen = ""
        t.send("exit 6\n")
        t.exits(6)
    with sk.case("detach from exec"):
        t = Terminal(sk, "exec -it cc sh -c", "echo up; sleep 1000")
        t.expect("up")
        t.send("\x10\x11")
        t.exits(None)
        match(sk("top cc").ok.out, "sleep 1000")
    with sk.case("Ctrl-C ends it"):
        t = Terminal(sk, "exec -it cc sleep 999")
        until(lambda: "sleep 999" in sk("top cc").ok.out, "sleep runs")
        until(lambda: t.p.poll() is not None or t.send("\x03") or t.read(0.2) and False, "Ctrl-C ends sleep")
        t.exits(130)
    with sk.case("SIGTERM ends the command, and the terminal is as before"):
        t = Terminal(sk, "exec -it cc sh -c", "echo up; exec sleep 998")
        t.expect("up")
        t.p.send_signal(signal.SIGTERM)
        t.exits(128 + 15)
    with sk.case("inherits no descriptors"):
        r, w = os.pipe()
        os.set_inheritable(r, True)
        sk("exec cc sh -c", "ls /proc/self/fd | tr '\\n' ' '", pass_fds=[r]).prints("^0 1 2 3 ?$")
        os.close(r), os.close(w)
    with sk.case("many at once"):
        ps = [sk.popen("exec cc echo x", stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(15)]
        eq([p.communicate(timeout=60) for p in ps], [(b"x\n", b"")] * 15)
    with sk.case("its end with the container's"):
        p = sk.popen("exec cc sleep 2345", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: "sleep 2345" in sk("top cc").ok.out, "sleep runs")
        sk("kill cc").ok
        eq(p.wait(30), 137)
    with sk.case("not running"):
        sk("exec cc true").exits(1, "is not running")
    with sk.case("paused"):
        sk.up("pp")
        if sk("pause pp").code == 0:
            sk("exec pp true").exits(1, "is paused")
            sk("unpause pp").ok


def test_attach(sk):
    with sk.case("output and exit code"):
        sk("run -d --name aa busybox sh -c", "while [ ! -e /go ]; do sleep 0.05; done; echo out; echo err >&2; exit 4").ok
        p = sk.popen("attach aa", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(0.7)
        sk("exec aa touch /go").ok
        out, err = p.communicate(timeout=30)
        eq((p.returncode, out, err), (4, b"out\n", b"err\n"))
    with sk.case("two at once"):
        sk("run -di --name bb busybox sh -c", "read x; echo got-$x").ok
        ps = [sk.popen("attach --no-stdin bb", stdout=subprocess.PIPE) for _ in range(2)]
        time.sleep(0.5)
        q = sk("attach bb", input="word\n")
        eq([p.communicate(timeout=30)[0] for p in ps], [b"got-word\n"] * 2)
        eq(q.out, "got-word")
    with sk.case("stopped"):
        sk("attach bb").exits(1, "cannot attach to a stopped container")
    with sk.case("missing"):
        sk("attach nosuch").exits(1, "no such container")
    with sk.case("signals go to the container"):
        sk("run -d --name ss busybox sh -c", "trap 'exit 11' TERM; while :; do sleep 0.05; done").ok
        p = sk.popen("attach ss", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.5)
        p.send_signal(signal.SIGTERM)
        eq(p.wait(30), 11)


def test_top(sk):
    sk.up("cc", "sleep 4321")
    with sk.case("columns"):
        r = sk("top cc").ok
        match(r.lines[0], r"^UID +PID +PPID +C +STIME +TTY +TIME +CMD")
        match(r.out, "sleep 4321")
        true(str(sk.pid("cc")) in [x.split()[1] for x in r.lines[1:]], "the host's pid of pid 1 in top")
    with sk.case("ps options"):
        r = sk("top cc -o pid,comm").ok
        match(r.lines[0], r"^ *PID +COMMAND")
        for words, head in [("-opid,comm", "PID +COMMAND"), ("-eo pid,args", "PID +CMD"), ("-ef", "UID +PID +PPID"), ("-e -f", "UID +PID +PPID"),
                            ("aux", "USER|UID +PID +.*VSZ +RSS +.*STAT")]:
            r = sk("top cc " + words).ok
            match(r.lines[0], "^ *(%s)" % head, words)
            match(r.out, "sleep", words)
        for words in "-Z", "x", "-o", "-q 1":
            sk("top cc " + words).exits(1, "not supported|unknown")
    with sk.case("nothing of the container is run for it"):
        sk("exec cc sh -c", "rm -f /bin/ps; printf '#!/bin/sh\\ntouch /pwned\\n' >/bin/ps; chmod 755 /bin/ps").ok
        sk("top cc").ok
        sk("exec cc ls /pwned").exits(1)
    with sk.case("stopped, missing"):
        sk("kill cc").ok
        sk("top cc").exits(1, "is not running")
        sk("top nosuch").exits(1, "no such container")


def test_stats(sk):
    sk.up("cc")
    sk("create --name dd busybox").ok
    with sk.case("--no-stream"):
        r = sk("stats --no-stream").ok
        match(r.lines[0], r"^CONTAINER ID +NAME +CPU % +MEM USAGE / LIMIT +MEM % +NET I/O +BLOCK I/O +PIDS$")
        eq(len(r.lines), 2)
        match(r.lines[1], r"^[0-9a-f]{12} +cc +[\d.]+%")
    with sk.case("-a"):
        eq(len(sk("stats --no-stream -a").ok.lines), 3)
    with sk.case("--format"):
        sk("stats --no-stream --format {{.Name}} cc").says("cc")
        true("MemUsage" in sk("stats --no-stream --format json cc").ok.json, "MemUsage in stats --format json")
    with sk.case("missing"):
        sk("stats --no-stream nosuch").exits(1, "no such container")


def test_cp(sk):
    sk("create --name cc busybox sleep 100").ok
    sk.file("src/f", "data\n", 0o640)
    sk.file("src/d/x", "x\n")
    os.symlink("f", sk.dir + "/src/l")
    src, dst = sk.dir + "/src", sk.folder("dst")
    for state in "created", "running", "stopped":
        for name, args, script in [
                ("file to directory", (src + "/f", "cc:/tmp"), "cat /tmp/f"), ("file to a new name", (src + "/f", "cc:/tmp/g"), "cat /tmp/g"),
                ("file onto a file", (src + "/f", "cc:/etc/hostname2"), "cat /etc/hostname2"), ("to a relative path", (src + "/f", "cc:relative"), "cat /relative"),
                ("directory", (src, "cc:/new"), "cat /new/f"), ("directory into a directory", (src, "cc:/tmp"), "cat /tmp/src/f"),
                ("contents", (src + "/.", "cc:/tmp"), "cat /tmp/f"), ("by full id", (src + "/f", sk.get("cc", "{{.Id}}") + ":/tmp/id"), "cat /tmp/id")]:
            with sk.case("%s, %s" % (name, state)):
                sk("cp", *args).ok
                if state == "running":
                    sk("exec cc sh -c", script).says("data")
                else:
                    p = [w for w in script.split() if w.startswith("/")][0]
                    data = sk("cp", "cc:" + p, "-").ok.raw
                    with tarfile.open(fileobj=io.BytesIO(data)) as t:
                        eq(t.extractfile(t.getmembers()[0]).read(), b"data\n")
        with sk.case("out, " + state):
            sk("cp cc:/etc/passwd", dst + "/passwd").ok
            match(open(dst + "/passwd").read(), "^root:x:0:0")
            sk("cp cc:/etc", dst + "/etc-" + state).ok
            true(os.path.exists(dst + "/etc-%s/passwd" % state), "the copied directory")
            sk("cp cc:/etc/.", dst + "/dot-" + state).ok
            true(os.path.exists(dst + "/dot-%s/passwd" % state), "the copied contents")
            sk("cp cc:/etc", dst).ok
            true(os.path.exists(dst + "/etc/passwd"), "etc in an existing directory")
        with sk.case("links and modes, " + state):
            sk("cp", src + "/.", "cc:/m-" + state).ok
            data = sk("cp", "cc:/m-" + state, "-").ok.raw
            with tarfile.open(fileobj=io.BytesIO(data)) as t:
                m = {os.path.basename(x.name): x for x in t.getmembers()}
                eq((m["f"].mode & 0o777, m["l"].issym(), m["l"].linkname), (0o640, True, "f"))
            sk("cp -L", src + "/l", "cc:/tmp/followed").ok
        with sk.case("tar from stdin, " + state):
            sk("cp - cc:/tmp", input=tar(entry("from-tar", "yes\n"), entry("td/"), entry("td/f", "y\n"))).ok
            data = sk("cp cc:/tmp/from-tar -").ok.raw
            true(b"yes\n" in data, "the file of the tar")
        with sk.case("errors, " + state):
            sk("cp cc:/no/such", dst).exits(1, "could not find|no such")
            sk("cp", src + "/nosuch", "cc:/tmp").exits(1, "no such")
            sk("cp", src + "/f", "cc:/no/such/dir/").exits(1, "no such|exist|could not find")
            sk("cp nosuch:/x", dst).exits(1, "no such container")
            sk("cp", src, "cc:/etc/passwd").exits(1, "cannot copy directory|not a directory|file")
            sk("cp cc:/etc", dst + "/passwd").exits(1, "cannot copy directory|not a directory|file")
        if state == "created":
            sk("start cc").ok
        elif state == "running":
            sk("kill cc").ok
    with sk.case("symlinks of the container stay inside"):
        sk("create --name ss busybox").ok
        canary = sk.file("canary/file", "untouched")
        up = "../" * 40 + canary.lstrip("/")
        sk("cp - ss:/", input=tar(entry("abs", link=sk.dir + "/canary"), entry("rel", link=os.path.dirname(up)), entry("leaf", link=canary))).ok
        for p in "abs/file", "rel/file", "leaf":
            sk("cp", sk.dir + "/src/f", "ss:/" + p)
            sk("cp", "ss:/" + p, dst + "/stolen")
            true(not os.path.exists(dst + "/stolen") or open(dst + "/stolen").read() != "untouched", "no file of the host out of " + p)
            eq(open(canary).read(), "untouched", "the host's file after cp to " + p)
    with sk.case("into a volume"):
        sk("run -d --name vv -v vol:/v busybox sleep 1000").ok
        sk("cp", src + "/f", "vv:/v/f").ok
        sk("run --rm -v vol:/v busybox cat /v/f").says("data")
    with sk.case("a path with a colon"):
        sk.file("a:b", "colon")
        sk("cp", sk.dir + "/a:b", "cc:/tmp/colon").ok


@only("b")
@timeout(150)
def test_cp_race(sk):
    """CVE-2018-15664, CVE-2026-42306: a directory of the container, or of a volume that another one has too, becomes a symlink to the host's while cp and export run."""
    canary = sk.file("canary/file", "untouched")
    dst, shared = sk.folder("dst"), sk.folder("shared")
    swap = "cd %s; mkdir d; echo inside >d/file; while :; do mv d e; ln -s " + sk.dir + "/canary d; rm d; mv e d; done"
    sk.up("cc", swap % "/", "-v", shared + ":/v")
    sk.up("other", swap % "/s", "-v", shared + ":/s")
    sk("create --name still -v %s:/v -v vol:/v/d/m busybox" % shared).ok
    sk.file("evil", "overwritten")
    for i in range(60):
        for place in "cc:/d/file", "cc:/v/d/file", "still:/v/d/m/file":
            sk("cp", sk.dir + "/evil", place)
            eq((open(canary).read(), os.listdir(sk.dir + "/canary")), ("untouched", ["file"]), "the host's directory after cp to " + place)
            sk("cp", place, dst + "/out")
            if os.path.exists(dst + "/out"):
                true(open(dst + "/out").read() != "untouched", "no file of the host's in a copy of " + place)
                os.unlink(dst + "/out")
        if i % 6 == 0:
            true(b"untouched" not in sk("export cc").raw, "no file of the host's in an export")


def test_output_that_cannot_be_written(sk):
    """A full disk behind our standard output is said, and is no success."""
    sk.up("aa")
    with open("/dev/full", "wb") as full:
        for words in "exec aa echo hi", "run --rm busybox echo hi", "ps", "inspect aa":
            with sk.case(words):
                p = sk.popen(words.split(), stdout=full, stderr=subprocess.PIPE)
                err = p.communicate(timeout=40)[1]
                match(err.decode(), "No space left")
                true(p.returncode != 0, "a failure")
        with sk.case("the program's own status is kept"):
            p = sk.popen(["exec", "aa", "sh", "-c", "echo hi; exit 3"], stdout=full, stderr=subprocess.DEVNULL)
            eq(p.wait(40), 3)
