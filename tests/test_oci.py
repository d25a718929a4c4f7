"""The OCI runtime command line: `skiff oci`, on a bundle made by hand."""
import array
import contextlib
import copy
import ctypes
import io
import json
import os
import pwd
import re
import resource
import shutil
import signal
import socket
import subprocess
import tarfile
import time

import lib
from lib import Skipped, eq, image, match, no_match, only, true, until
from test_security import SCAN, compiled

WHO = "ab"


def subordinate(user):
    """The first id and the number of ids that /etc/subuid gives a user."""
    with open("/etc/subuid") as f:
        for line in f:
            name, first, count = line.strip().split(":")
            if name == user:
                return int(first), int(count)
    raise Skipped("no subordinate ids of " + user)


class Bundle:
    """One busybox root; b.spec is changed before b.run() and the like write it to config.json."""

    def __init__(self, sk):
        self.sk, self.dir, self.state = sk, sk.folder("bundle"), sk.folder("oci")
        os.chmod(self.state, 0o700)
        self.rootfs = sk.folder("bundle/rootfs")
        with tarfile.open(fileobj=io.BytesIO(lib.busybox_layer())) as t:
            for m in t:
                path = os.path.join(self.rootfs, m.name)
                if m.isdir():
                    os.makedirs(path, exist_ok=True)
                elif m.issym():
                    os.symlink(m.linkname, path)
                elif m.islnk():
                    os.link(os.path.join(self.rootfs, m.linkname), path)
                elif m.isreg():
                    with open(path, "wb") as f:
                        f.write(t.extractfile(m).read())
                    os.chmod(path, m.mode & 0o777)
        for d in "proc", "dev", "sys", "tmp", "etc":
            os.makedirs(os.path.join(self.rootfs, d), exist_ok=True)
        mappings = {"uid": [{"containerID": 0, "hostID": os.getuid(), "size": 1}],
                    "gid": [{"containerID": 0, "hostID": os.getgid(), "size": 1}]}
        if sk.subuid:
            first, count = subordinate(pwd.getpwuid(os.getuid()).pw_name)
            for m in mappings.values():
                m.append({"containerID": 1, "hostID": first, "size": count})
        caps = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE"]
        self.spec = {
            "ociVersion": "1.2.0", "hostname": "bundle",
            "process": {"terminal": False, "user": {"uid": 0, "gid": 0}, "args": ["true"], "cwd": "/",
                        "env": ["PATH=/bin:/sbin:/usr/bin", "A=b"],
                        "capabilities": {k: list(caps) for k in ("bounding", "effective", "permitted")}},
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777"]}],
            "linux": {"namespaces": [{"type": t} for t in ("pid", "ipc", "uts", "mount", "user")],
                      "uidMappings": mappings["uid"], "gidMappings": mappings["gid"]}}

    def __call__(self, words, *rest, **kw):
        return self.sk(["oci", "--root", self.state] + words.split(), *rest, **kw)

    def write(self, *args):
        if args:
            self.spec["process"]["args"] = list(args)
        with open(self.dir + "/config.json", "w") as f:
            json.dump(self.spec, f)

    def run(self, *args, words="", **kw):
        """Runs a program in a new container until it ends."""
        self.write(*args)
        return self("run %s -b" % words, self.dir, "c%d" % time.monotonic_ns(), **kw)

    def sh(self, script, **kw):
        return self.run("sh", "-c", script, **kw)

    def create(self, id, *args, words="", command="create", **kw):
        """`create` and `run -d` leave the program their standard output: a file. Its path."""
        out = self.sk.file(id + ".out")
        self.write(*args)
        with open(out, "wb") as f, open(out + ".err", "wb") as g:
            p = self.sk.popen(["oci", "--root", self.state, command, *words.split(), "-b", self.dir, id], stdout=f, stderr=g, **kw)
            code = p.wait(lib.PATIENCE)
        with open(out + ".err") as f:
            eq(code, 0, "%s %s: %s" % (command, id, f.read()))
        return out

    def up(self, id, *args, **kw):
        """A container that runs until it is killed."""
        return self.create(id, *(args or ["sleep", "1000"]), command="run", words="-d " + kw.pop("words", ""), **kw)

    def get(self, id):
        return self("state", id).ok.json

    def becomes(self, id, status):
        until(lambda: self.get(id)["status"] == status, "%s becomes %s" % (id, status))

    def namespaces(self, *more):
        self.spec["linux"]["namespaces"] += [{"type": t} for t in more]

    def mount(self, dest, source, *options, type="bind"):
        self.spec["mounts"].append({"destination": dest, "type": type, "source": source, "options": list(options)})

    @contextlib.contextmanager
    def changed(self):
        """What is done to the spec inside holds only there."""
        before = copy.deepcopy(self.spec)
        try:
            yield self.spec
        finally:
            self.spec = before


def read(path):
    with open(path) as f:
        return f.read()


def receive_pty(server, command):
    """Runs a command that sends a pty to the listening socket; its master."""
    p = command()
    server.settimeout(lib.PATIENCE)
    with server.accept()[0] as c:
        fds = array.array("i")
        _, ancillary, _, _ = c.recvmsg(64, socket.CMSG_SPACE(fds.itemsize))
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[:fds.itemsize])
    true(len(fds) == 1, "one descriptor at the console socket, got %d" % len(fds))
    return p, fds[0]


def read_pty(master, pattern):
    seen = [""]

    def more():
        with contextlib.suppress(OSError):
            seen[0] += os.read(master, 4096).decode()
        return re.search(pattern, seen[0])
    return until(more, "the terminal shows /%s/" % pattern)


# ---- the life of a container ----

@image(None)
def test_lifecycle(sk):
    b = Bundle(sk)
    out = b.create("one", "sh", "-c", "echo started; trap 'exit 3' TERM; while :; do sleep 0.1; done", words="--pid-file pid")
    with sk.case("state when created"):
        s = b.get("one")
        eq((s["status"], s["id"], s["bundle"]), ("created", "one", b.dir))
        match(s["ociVersion"], r"^1\.\d")
        eq(s["pid"], int(read(sk.dir + "/pid")), "pid and pid file")
    with sk.case("nothing of the program ran"):
        eq(read(out), "")
    with sk.case("a created container is not paused or deleted unasked"):
        b("pause one").exits(None, "created")
    b("start one").ok
    with sk.case("start"):
        eq(b.get("one")["status"], "running")
        until(lambda: read(out) == "started\n", "the program says that it started")
        b("start one").exits(None, "created")
    with sk.case("a running container stays"):
        b("delete one").exits(None, "running")
        eq(b.get("one")["status"], "running")
    with sk.case("kill"):
        b("kill one NOSUCHSIGNAL").exits(None, "NOSUCHSIGNAL")
        b("kill one SIGTERM").ok
        b.becomes("one", "stopped")
        b("kill one").exits(None, "not running")
    with sk.case("delete"):
        eq(b.get("one").get("pid", 0), 0)
        b("delete one").ok
        b("state one").exits(None, "does not exist")
        eq(os.listdir(b.state), [])
    for words in "start", "kill", "delete", "state", "exec", "pause", "resume", "ps":
        with sk.case(words + " of a container that is not there"):
            b(words, "two", *(["true"] if words == "exec" else [])).exits(None, "two")
    with sk.case("delete --force of one that is not there"):
        b("delete -f two").ok
    with sk.case("delete --force of one that runs"):
        b.up("three")
        pid = b.get("three")["pid"]
        b("delete --force three").ok
        until(lambda: not os.path.exists("/proc/%d" % pid), "its process is gone")
    with sk.case("delete --regex"):
        b.up("x1"), b.up("x2"), b.up("y1")
        b("delete -f --regex", "^x[0-9]$").ok
        eq(b("list -q").ok.lines, ["y1"])
        b("delete -f y1").ok
    with sk.case("delete of one that was never started"):
        b.create("four", "true")
        b("delete four").ok
        eq(os.listdir(b.state), [])


@image(None)
def test_exit_codes(sk):
    b = Bundle(sk)
    for script, want in ("true", 0), ("exit 42", 42), ("kill -9 1; exit 5", 5), ("sh -c 'kill -9 $$'; exit $?", 137):
        with sk.case("run " + script):
            b.sh(script).exits(want)
    with sk.case("killed from outside"):
        b.write("sleep", "1000")
        with sk.popen(["oci", "--root", b.state, "run", "-b", b.dir, "killed"]) as p:
            until(lambda: os.path.isdir(b.state + "/killed") and b("state killed").code == 0 and b.get("killed")["status"] == "running", "it runs")
            b("kill killed KILL").ok
            eq(p.wait(lib.PATIENCE), 128 + 9)
    with sk.case("signals of run go to the program"):
        b.write("sh", "-c", "trap 'exit 33' TERM; echo up; while :; do sleep 0.1; done")
        p = sk.popen(["oci", "--root", b.state, "run", "-b", b.dir, "signalled"], stdout=subprocess.PIPE)
        eq(p.stdout.readline(), b"up\n")
        p.send_signal(signal.SIGTERM)
        eq(p.wait(lib.PATIENCE), 33)
        p.stdout.close()
    with sk.case("no such program"):
        b.run("/no/such").exits(127, "/no/such")
        b.run("nosuch").exits(127, "nosuch")
    with sk.case("not a program"):
        b.run("/etc").exits(126, "/etc")
        sk.file("bundle/rootfs/bin/text", "#no", mode=0o644)
        b.run("/bin/text").exits(126, "/bin/text")
    with sk.case("create says it, not start"):
        b.write("/no/such")
        b("create -b", b.dir, "bad").exits(127, "/no/such")
    with sk.case("nothing is left"):
        eq(os.listdir(b.state), [])
        eq([p for p in sk.processes() if p[1] == "sleep"], [])
    with sk.case("run --keep"):
        b.write("true")
        b("run --keep -b", b.dir, "kept").ok
        eq(b.get("kept")["status"], "stopped")
        b("delete kept").ok


@image(None)
def test_names(sk):
    """The program called as a runtime is one."""
    b = Bundle(sk)
    b.write("echo", "named")
    for name in "crun", "runc", "skiff-runtime":
        with sk.case(name):
            link = sk.dir + "/" + name
            os.symlink(sk.binary, link)
            r = subprocess.run([link, "--root", b.state, "--log-format", "json", "--cgroup-manager=cgroupfs", "run", "-b", b.dir, name],
                               env=sk.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=lib.PATIENCE)
            eq((r.returncode, r.stdout), (0, b"named\n"), r.stderr)
            v = subprocess.run([link, "--version"], env=sk.env, stdout=subprocess.PIPE, timeout=lib.PATIENCE)
            match(v.stdout.decode(), r"^%s version \d[^\n]*\n(.*\n)*spec: 1\." % name)
    if not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        with sk.case("systemd as the cgroup manager, with cgroup v1"):
            for word in "--systemd-cgroup=false", "--debug":
                eq(sk("oci %s --root %s run -b %s v1" % (word, b.state, b.dir)).ok.err, "")
            r = sk("oci --systemd-cgroup --root %s run -b %s v1" % (b.state, b.dir))
            r.says("named")
            match(r.err, "v1.*systemd")
    with sk.case("features"):
        f = b("features").ok.json
        eq(set(f["hooks"]), {"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"})
        for o in "ro", "rro", "nosuid", "tmpcopyup", "rprivate":
            true(o in f["mountOptions"], "mount option %s in features" % o)
        for n in "user", "time", "cgroup":
            true(n in f["linux"]["namespaces"], "namespace %s in features" % n)
        true("CAP_CHOWN" in f["linux"]["capabilities"], "CAP_CHOWN in features")
    with sk.case("spec --rootless"):
        d = sk.folder("spec")
        os.symlink(b.rootfs, d + "/rootfs")
        b("spec --rootless -b", d).ok
        with open(d + "/config.json") as f:
            spec = json.load(f)
        spec["process"].update(terminal=False, args=["echo", "from spec"])
        spec["root"]["path"] = b.rootfs
        with open(d + "/config.json", "w") as f:
            json.dump(spec, f)
        b("run -b", d, "s").says("from spec")
        b("spec -b", d).exits(None, "already exists")


@image(None)
def test_errors(sk):
    """Each bad configuration is refused by the JSON pointer of what is bad, and leaves nothing."""
    b = Bundle(sk)
    with sk.case("an id twice"):
        b.up("twice")
        b.write("true")
        b("run -b", b.dir, "twice").exits(1, "already exists")
        eq(b.get("twice")["status"], "running", "the first of them")
        b("delete -f twice").ok
    for id in "a/b", "..", ".", "", "a b", "x" * 1100:
        with sk.case("id %.9r" % id):
            b("run -b", b.dir, id).exits(None, "id|usage")
    with sk.case("no bundle"):
        b("run -b", sk.dir + "/nowhere", "c").exits(1, "nowhere")
    with sk.case("no config.json"):
        b("run -b", sk.folder("empty"), "c").exits(1, "config.json")
    with sk.case("not JSON"):
        sk.file("bundle/config.json", "{\"process\": ")
        b("run -b", b.dir, "c").exits(1, "json")

    def bad(pointer, change):
        with sk.case(pointer), b.changed() as spec:
            change(spec)
            b.write()
            b("run -b", b.dir, "c").exits(1, re.escape(pointer))

    proc, lin = lambda s: s["process"], lambda s: s["linux"]
    bad("/process", lambda s: s.pop("process"))
    bad("/process/args", lambda s: proc(s).update(args=[]))
    bad("/process/cwd", lambda s: proc(s).update(cwd="relative"))
    bad("/process/user", lambda s: proc(s).update(user={"uid": -1, "gid": 0}))
    bad("/process/capabilities/bounding/0", lambda s: proc(s).update(capabilities={"bounding": [7]}))
    bad("/process/rlimits/0", lambda s: proc(s).update(rlimits=[{"type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1}]))
    bad("/process/ioPriority/class", lambda s: proc(s).update(ioPriority={"class": "NONSENSE", "priority": 1}))
    bad("/process/scheduler/policy", lambda s: proc(s).update(scheduler={"policy": "NONSENSE"}))
    bad("/root/path", lambda s: s.pop("root"))
    bad("/mounts/0/destination", lambda s: s.update(mounts=[{"destination": "relative", "type": "proc"}]))
    bad("/mounts/0/type", lambda s: s.update(mounts=[{"destination": "/x", "source": "/"}]))
    bad("/mounts/0/source", lambda s: s.update(mounts=[{"destination": "/x", "type": "bind"}]))
    bad("/linux/namespaces/0", lambda s: lin(s).update(namespaces=[{"type": "nonsense"}]))
    bad("/linux/namespaces/5", lambda s: lin(s)["namespaces"].append({"type": "pid"}))
    bad("/linux/uidMappings", lambda s: lin(s).update(uidMappings=[{"containerID": 0, "hostID": -1, "size": 1}]))
    bad("/linux/gidMappings", lambda s: lin(s).pop("gidMappings"))
    bad("/linux/rootfsPropagation", lambda s: lin(s).update(rootfsPropagation="nonsense"))
    bad("/linux/sysctl/kernel.hostname", lambda s: lin(s).update(sysctl={"kernel.hostname": "x"}))
    bad("/linux/sysctl/net.ipv4.ip_forward", lambda s: lin(s).update(sysctl={"net.ipv4.ip_forward": "1"}))
    bad("/linux/sysctl/vm.swappiness", lambda s: lin(s).update(sysctl={"vm.swappiness": "1"}))
    bad("/linux/personality/domain", lambda s: lin(s).update(personality={"domain": "NONSENSE"}))
    bad("/linux/memoryPolicy/mode", lambda s: lin(s).update(memoryPolicy={"mode": "NONSENSE"}))
    bad("/linux/devices/0", lambda s: lin(s).update(devices=[{"path": "/dev/x", "type": "x"}]))
    bad("/defaultAction", lambda s: lin(s).update(seccomp={"defaultAction": "NONSENSE"}))
    bad("/syscalls/0", lambda s: lin(s).update(seccomp={"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "NONSENSE"}]}))
    bad("/linux/mountLabel", lambda s: lin(s).update(mountLabel="a\"b"))
    if not os.path.exists("/sys/module/apparmor"):
        with sk.case("a profile without AppArmor"), b.changed() as spec:
            proc(spec).update(apparmorProfile="x")
            match(b.run("true").ok.err, "/process/apparmorProfile is ignored")
    if not os.path.exists("/sys/fs/selinux/enforce"):
        with sk.case("a label without SELinux"), b.changed() as spec:
            proc(spec).update(selinuxLabel="a:b:c:s0")
            match(b.run("true").ok.err, "/process/selinuxLabel is ignored")
        with sk.case("labels of mounts, and unconfined, are nothing here"), b.changed() as spec:
            lin(spec).update(mountLabel="a:b:c:s0:c1,c2")
            proc(spec).update(apparmorProfile="unconfined", selinuxLabel="")
            b.run("echo", "x").says("x")
        with sk.case("a label of one mount has commas"), b.changed() as spec:
            spec["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "t", "options": ["context=\"a:b:c:s0:c1,c2\"", "size=4k"]})
            b.run("true").exits(1, "option context=a:b:c:s0:c1,c2")
    with sk.case("a root that is not there"), b.changed() as spec:
        spec["root"]["path"] = "nowhere"
        b.run("true").exits(1, "nowhere")
    with sk.case("nothing is left"):
        eq(os.listdir(b.state), [])
    with sk.case("a log in JSON"):
        log = sk.dir + "/log"
        sk(["oci", "--root", b.state, "--log", log, "--log-format", "json", "state", "nobody"]).exits(1)
        entry = json.loads(read(log).splitlines()[-1])
        match(entry["msg"], "nobody")
        eq(entry["level"], "error")
    with sk.case("bad log words"):
        sk(["oci", "--log-format", "nonsense", "list"]).exits(1, "nonsense")


@image(None)
def test_list_and_ps(sk):
    b = Bundle(sk)
    with sk.case("nothing"):
        eq(b("list -q").ok.out, "")
        eq(b("list -f json").ok.json, [])
    b.up("a1", "sh", "-c", "sleep 1000 & sleep 1001 & wait")
    b.create("b2", "true")
    with sk.case("table"):
        lines = sorted(b("list").ok.lines)
        eq(len(lines), 3)
        match(lines[0], r"^NAME\s+PID\s+STATUS\s+BUNDLE")
        match(lines[1], r"^a1\s+%d\s+running\s+%s" % (b.get("a1")["pid"], re.escape(b.dir)))
        match(lines[2], r"^b2\s+\d+\s+created")
    with sk.case("json"):
        eq(sorted((x["id"], x["status"]) for x in b("list --format json").ok.json), [("a1", "running"), ("b2", "created")])
    with sk.case("quiet"):
        eq(sorted(b("list -q").ok.lines), ["a1", "b2"])
    with sk.case("ps"):
        until(lambda: len(b("ps -f json a1").ok.json) == 3, "three processes are shown")
        pids = b("ps --format json a1").ok.json
        true(b.get("a1")["pid"] in pids, "its first process among them")
        eq(sorted(map(int, b("ps a1").ok.lines[1:])), sorted(pids))
    with sk.case("pause and resume"):
        b("pause a1").ok
        eq(b.get("a1")["status"], "paused")
        b("pause a1").exits(None, "paused")
        b("resume a1").ok
        eq(b.get("a1")["status"], "running")
        b("resume a1").exits(None, "running")
    with sk.case("kill --all"):
        pids = b("ps -f json a1").ok.json
        b("kill --all a1 KILL").ok
        until(lambda: not any(os.path.exists("/proc/%d/exe" % p) and os.access("/proc/%d/exe" % p, os.R_OK) for p in pids), "all are gone")
    with sk.case("a container with the host's processes"), b.changed() as spec:
        # it must not be taken for all that the host runs: kill -a reached every process of the user
        spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "pid"]
        spec["mounts"][0] = {"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"]}
        b.up("host")
        with subprocess.Popen(["sleep", "1000"]) as bystander:
            pids = b("ps -f json host").ok.json
            true(bystander.pid not in pids and os.getpid() not in pids, "only its own processes, got %s" % pids)
            if len(pids) < 5:
                b("kill -a host KILL").ok
            eq(bystander.poll(), None, "a process of somebody else")
            bystander.kill()
        b("delete -f host").ok


# ---- descriptors ----

@image(None)
def test_preserve_fds(sk):
    b = Bundle(sk)
    path = sk.file("passed", "through")
    with open(path) as f:
        fd = os.dup2(f.fileno(), 3) if f.fileno() != 3 else 3
        os.set_inheritable(3, True)
        for words, want in ("--preserve-fds 1", "through"), ("", "none"):
            with sk.case("run " + words):
                b.sh("cat <&3 2>/dev/null || echo -n none", words=words, pass_fds=[fd]).says(want)
                os.lseek(fd, 0, 0)
        with sk.case("exec"):
            b.up("fds")
            b("exec --preserve-fds 1 fds cat /proc/self/fd/3", pass_fds=[fd]).says("through")
            b("exec fds", "ls", "/proc/self/fd", pass_fds=[fd]).prints("0\n1\n2\n3$")
    with sk.case("nothing of ours comes along"):
        eq(b.sh("ls /proc/1/fd; true").ok.lines, ["0", "1", "2"])
    b("delete -f fds").ok


@image(None)
def test_listen_fds(sk):
    b = Bundle(sk)
    r, w = os.pipe()
    for fd in (r, w):
        os.set_inheritable(fd, True)
    os.write(w, b"socket\n")
    os.close(w)
    os.dup2(r, 3)
    b.sh("echo $LISTEN_FDS $LISTEN_PID; head -n 1 <&3", env={"LISTEN_FDS": "1", "LISTEN_PID": "7"}, pass_fds=[3]).says("1 1\nsocket")


@image(None)
def test_console_socket(sk):
    b = Bundle(sk)
    path = sk.dir + "/console"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(2)
        with sk.case("a terminal wants someone to hold it"), b.changed() as spec:
            spec["process"]["terminal"] = True
            b.write("true")
            b("create -b", b.dir, "none").exits(1, "console-socket")
        with sk.case("create"), b.changed() as spec:
            spec["process"].update(terminal=True, consoleSize={"height": 33, "width": 99})
            b.write("sh", "-c", "tty; stty size; read x; echo got $x")
            p, master = receive_pty(server, lambda: sk.popen(["oci", "--root", b.state, "create", "--console-socket", path, "-b", b.dir, "tty"]))
            eq(p.wait(lib.PATIENCE), 0)
            b("start tty").ok
            read_pty(master, "33 99")
            os.write(master, b"word\n")
            read_pty(master, "got word")
            b.becomes("tty", "stopped")
            os.close(master)
            b("delete tty").ok
        with sk.case("exec"):
            b.up("ex")
            p, master = receive_pty(server, lambda: sk.popen(
                ["oci", "--root", b.state, "exec", "--tty", "--console-socket", path, "ex", "sh", "-c", "tty; read x; echo got $x; exit 4"]))
            read_pty(master, "/dev/pts/0")
            os.write(master, b"that\n")
            read_pty(master, "got that")
            eq(p.wait(lib.PATIENCE), 4)
            os.close(master)
            b("delete -f ex").ok


@image(None)
def test_terminal(sk):
    b = Bundle(sk)
    b.spec["process"]["terminal"] = True
    b.write("sh", "-c", "tty; stty size; read x; exit $x")
    t = lib.Terminal(sk, "oci --root %s run -b" % b.state, b.dir, "term", rows=30, cols=70)
    t.expect("/dev/(pts/0|console)")
    t.expect("30 70")
    t.send("9\n")
    t.exits(9)
    with sk.case("a short life does not hang"):
        for _ in range(10):
            b.write("tty")
            lib.Terminal(sk, "oci --root %s run -b" % b.state, b.dir, "short").exits(0)
    with sk.case("signals go to the program"):
        b.write("sh", "-c", "trap 'exit 33' TERM; echo up; while :; do sleep 0.1; done")
        t = lib.Terminal(sk, "oci --root %s run -b" % b.state, b.dir, "signalled")
        t.expect("up")
        t.p.send_signal(signal.SIGTERM)
        t.exits(33)


# ---- exec ----

@image(None)
def test_exec(sk):
    b = Bundle(sk)
    b.up("e")
    with sk.case("output and exit code"):
        b("exec e", "sh", "-c", "echo out; echo err >&2; exit 17").exits(17, "^err$")
        eq(b("exec e echo out").ok.out, "out")
    with sk.case("it is in the same namespaces"):
        for ns in "pid", "ipc", "uts", "mnt", "user":
            eq(b("exec e readlink /proc/self/ns/" + ns).ok.out, b("exec e readlink /proc/1/ns/" + ns).ok.out, ns)
        b("exec e hostname").says("bundle")
    with sk.case("environment"):
        b("exec --env C=d e", "sh", "-c", "echo $A $C").says("b d")
    with sk.case("HOME"):
        b("exec e", "sh", "-c", "echo $HOME").prints("^/")
    with sk.case("cwd"):
        b("exec --cwd /tmp e pwd").says("/tmp")
        b("exec --cwd relative e pwd").exits(None, "absolute")
        b("exec --cwd /no/such e pwd").exits(None, "/no/such")
    with sk.case("no such program"):
        b("exec e /no/such").exits(127, "/no/such")
    with sk.case("killed"):
        b("exec e", "sh", "-c", "kill -9 $$").exits(137)
    with sk.case("stdin"):
        b("exec e cat", input="typed").says("typed")
    with sk.case("a process file"):
        proc = {"args": ["sh", "-c", "pwd; id -u; echo $X; grep NoNew /proc/self/status | tr -d '\\t'; umask"], "cwd": "/etc",
                "env": ["PATH=/bin", "X=y"], "user": {"uid": 0, "gid": 0, "umask": 0o27}, "noNewPrivileges": True}
        b("exec --process", sk.file("process.json", json.dumps(proc)), "e").says("/etc\n0\ny\nNoNewPrivs:1\n0027")
    with sk.case("no new privileges"):
        b("exec --no-new-privs e", "grep", "NoNew", "/proc/self/status").prints("1$")
    with sk.case("capabilities"):
        show = ["sh", "-c", "grep Cap /proc/self/status | cut -f2 | tr '\\n' ' '"]
        run = b.run(*show).ok.out
        eq(b("exec e", *show).ok.out, run, "exec has what run has")
        eq(run.split()[2], "00000000000004e1", "effective")
        eq(run.split()[3], "00000000000004e1", "bounding")
        more = b("exec --cap CAP_SYS_CHROOT e", *show).ok.out.split()
        eq(more[2], "00000000000404e1")
        b("exec --cap CAP_NONSENSE e true").exits(0, "CAP_NONSENSE")
    with sk.case("detached"):
        p = sk.popen(["oci", "--root", b.state, "exec", "-d", "--pid-file", "exec.pid", "e", "sleep", "500"],
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eq(p.wait(lib.PATIENCE), 0)
        pid = int(read(sk.dir + "/exec.pid"))
        true(pid in b("ps -f json e").ok.json, "the process of the pid file in ps")
        eq(read("/proc/%d/cmdline" % pid), "sleep\x00500\x00")
    with sk.case("a stopped container"):
        b("kill e KILL").ok
        b.becomes("e", "stopped")
        b("exec e true").exits(None, "not running")
        b("delete e").ok


@image(None)
def test_joined_namespaces(sk):
    """A namespace given by its path is the container's, and an exec's too."""
    b = Bundle(sk)
    b.namespaces("network")
    b.up("first")
    pid = b.get("first")["pid"]
    for n in b.spec["linux"]["namespaces"]:
        if n["type"] in ("network", "uts", "user"):
            n["path"] = "/proc/%d/ns/%s" % (pid, {"network": "net"}.get(n["type"], n["type"]))
    del b.spec["linux"]["uidMappings"], b.spec["linux"]["gidMappings"], b.spec["hostname"]
    b.up("second")
    for name in "net", "uts", "user":
        with sk.case(name):
            want = b("exec first readlink /proc/self/ns/" + name).ok.out
            eq(b("exec second readlink /proc/1/ns/" + name).ok.out, want)
            eq(b("exec second readlink /proc/self/ns/" + name).ok.out, want, "exec")
    with sk.case("others are its own"):
        true(b("exec second readlink /proc/self/ns/pid").ok.out != b("exec first readlink /proc/self/ns/pid").ok.out, "another pid namespace")
    b("delete -f second").ok
    b("delete -f first").ok


@image(None)
def test_joined_processes_are_hidden(sk):
    """CVE-2016-9962: what starts in another container's namespaces is not to be looked into from there before it executes."""
    b = Bundle(sk)
    shutil.copy(compiled(sk, SCAN) + "/t", b.rootfs + "/scan")
    for kind in "bounding", "effective", "permitted":
        b.spec["process"]["capabilities"][kind].append("CAP_SYS_PTRACE")
    b.up("first", "sh", "-c", "/scan >/found")
    until(lambda: os.path.exists(b.rootfs + "/ready"), "it looks")
    pid = b.get("first")["pid"]
    for n in b.spec["linux"]["namespaces"]:
        if n["type"] in ("pid", "user"):
            n["path"] = "/proc/%d/ns/%s" % (pid, n["type"])
    del b.spec["linux"]["uidMappings"], b.spec["linux"]["gidMappings"]
    for _ in range(20):
        b.run("true").ok
    b("delete -f first").ok
    found = read(b.rootfs + "/found").split("\n")
    eq([line for line in found if " of " in line], [])
    true(any("refused" in line for line in found), "some to be seen")


# ---- hooks ----

def hook(log, name, script="", **kw):
    return {"path": "/bin/sh", "args": ["sh", "-c", "echo %s $(tr -d '\\n \\t' | sed 's/.*\"status\":\"\\([a-z]*\\)\".*/\\1/') >>%s; %s" % (name, log, script)], **kw}


@image(None)
def test_hooks(sk):
    b = Bundle(sk)
    log = sk.file("bundle/rootfs/log")
    os.chmod(log, 0o666)
    kinds = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
    where = lambda k: "/log" if k == "startContainer" else log  # it runs in the container's root
    with sk.case("order and state"), b.changed() as spec:
        spec["hooks"] = {k: [hook(where(k), k + "1"), hook(where(k), k + "2")] for k in kinds}
        b.create("h", "sleep", "1000")
        eq([x.split()[0] for x in read(log).splitlines()], [k + n for k in kinds[:3] for n in "12"], "after create")
        b("start h").ok
        eq([x.split()[0] for x in read(log).splitlines()], [k + n for k in kinds[:5] for n in "12"], "after start")
        b("kill h KILL").ok
        b.becomes("h", "stopped")
        b("delete h").ok
        got = [x.split() for x in read(log).splitlines()]
        eq([x[0] for x in got], [k + n for k in kinds for n in "12"])
        eq([x[1] for x in got[::2]], ["created"] + ["creating"] * 2 + ["created", "running", "stopped"], "status in each")
    with sk.case("pid, bundle and id"), b.changed() as spec:
        spec["annotations"] = {"org.example.key": "value"}
        spec["hooks"] = {k: [{"path": "/bin/sh", "args": ["sh", "-c", "cat >%s/%s" % (sk.dir, k)]}] for k in kinds[:3] + ["poststart"]}
        b.create("h", "sleep", "1000")
        b("start h").ok
        for k in kinds[:3] + ["poststart"]:
            s = json.loads(read("%s/%s" % (sk.dir, k)))
            eq((s["id"], s["bundle"], s["annotations"]), ("h", b.dir, {"org.example.key": "value"}), k)
            true(s["pid"] > 0, "a pid in the state of " + k)
            if k != "createContainer":  # which may say the pid as its own namespace has it
                eq(s["pid"], b.get("h")["pid"], "pid of " + k)
        b("delete -f h").ok
    for kind in kinds[:4]:
        with sk.case("a failing " + kind), b.changed() as spec:
            open(log, "w").close()
            spec["hooks"] = {kind: [hook(where(kind), "a", "exit 1"), hook(where(kind), "b")], "poststop": [hook(log, "c")]}
            b.run("true").exits(1, kind)
            no_match(read(log), "^b")
            b("state h").exits(1, "does not exist")
            eq(os.listdir(b.state), [])
    with sk.case("a failing startContainer is said by start"), b.changed() as spec:
        spec["hooks"] = {"startContainer": [hook("/log", "a", "exit 1")]}
        b.create("h", "touch", "/ran")
        b("start h").exits(1, "startContainer")
        true(not os.path.exists(b.rootfs + "/ran"), "the program not to run")
        b("delete -f h").ok
    with sk.case("a failing poststart stops the container and deletes it"), b.changed() as spec:
        open(log, "w").close()
        spec["hooks"] = {"poststart": [hook(log, "x", "exit 1")], "poststop": [hook(log, "stop")]}
        b.create("h", "sleep", "1000")
        pid = b.get("h")["pid"]
        b("start h").exits(1, "poststart")
        b("state h").exits(1, "does not exist")
        until(lambda: not os.path.exists("/proc/%d" % pid), "its process is gone")
        match(read(log), "^stop stopped$", "the poststop hook")
    with sk.case("a failing poststop is a word"), b.changed() as spec:
        spec["hooks"] = {"poststop": [hook(log, "x", "exit 1"), hook(log, "last")]}
        b.run("true").exits(0, "poststop hook failed with exit code: 1")
        match(read(log), "^last")
    with sk.case("timeout"), b.changed() as spec:
        for kind in "prestart", "createContainer", "startContainer":
            spec["hooks"] = {kind: [hook(where(kind), "x", "exec sleep 60", timeout=1)]}
            began = time.monotonic()
            b.run("true").exits(1, kind)
            true(time.monotonic() - began < 20, "the hook to be ended after its second")
    with sk.case("environment"), b.changed() as spec:
        for kind, env in ("prestart", "/usr/bin/env"), ("createContainer", "/usr/bin/env"), ("startContainer", "/bin/env"):
            spec["hooks"] = {kind: [{"path": env, "env": ["ONLY=this"]}]}
            b.run("true").says("ONLY=this")
    with sk.case("a relative path"), b.changed() as spec:
        for kind in kinds[:5]:
            spec["hooks"] = {kind: [{"path": "true"}]}
            b.run("true").exits(1, "/hooks/%s/0/path" % kind)
    eq(os.listdir(b.state), [])


@image(None)
def test_hooks_namespaces(sk):
    """prestart and createRuntime run in the runtime's namespaces, createContainer in the container's before its root is
    changed, startContainer in the container as it is for the program."""
    b = Bundle(sk)
    names = ["mnt", "pid", "uts", "user"]
    kinds = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart"]
    b.mount("/out", sk.folder("out"), "bind")
    b.mount("/only-inside", "tmpfs", "size=4k", type="tmpfs")
    b.spec["hooks"] = {}
    for k in kinds:
        out = ("/out" if k == "startContainer" else sk.dir + "/out") + "/" + k
        script = "cat >/dev/null; { for n in %s; do readlink /proc/self/ns/$n; done; hostname; pwd; ls -d /only-inside %s; grep -c ' %s/only-inside ' /proc/self/mountinfo; } >%s 2>/dev/null; true" % (
            " ".join(names), sk.dir, "[^ ]*", out)
        b.spec["hooks"][k] = [{"path": "/bin/sh", "args": ["sh", "-c", script]}]
    b.up("ns")
    got = {k: read("%s/out/%s" % (sk.dir, k)).splitlines() for k in kinds}
    host = [os.readlink("/proc/self/ns/" + n) for n in names]
    inside = [b("exec ns readlink /proc/self/ns/" + n).ok.out for n in names]
    for k in "prestart", "createRuntime", "poststart":
        with sk.case(k):
            eq(got[k][:4], host, "namespaces of " + k)
            true(sk.dir in got[k] and "/only-inside" not in got[k], "the host's files, got %s" % got[k])
    with sk.case("createContainer"):
        k = got["createContainer"]
        eq(k[:4], inside, "namespaces")
        true(sk.dir in k and "/only-inside" not in k, "the host's files, since it comes before the pivot; got %s" % k)
        true(int(k[-1]) >= 1, "the container's mounts to be there, got %s" % k)
    with sk.case("startContainer"):
        k = got["startContainer"]
        eq(k[:4], inside, "namespaces")
        eq((k[4], k[5]), ("bundle", "/"), "host name and directory")
        true(sk.dir not in k and "/only-inside" in k, "the container's files, got %s" % k)
    b("delete -f ns").ok


# ---- what the process is ----

@image(None)
def test_process(sk):
    b = Bundle(sk)
    with sk.case("cwd"), b.changed() as spec:
        spec["process"]["cwd"] = "/tmp"
        b.run("pwd").says("/tmp")
    with sk.case("a cwd that is not there is made"), b.changed() as spec:
        spec["process"]["cwd"] = "/new/place"
        b.run("pwd").says("/new/place")
    with sk.case("umask"), b.changed() as spec:
        spec["process"]["user"]["umask"] = 0o77
        b.sh("umask").says("0077")
    with sk.case("no new privileges"):
        for on in False, True:
            with b.changed() as spec:
                spec["process"]["noNewPrivileges"] = on
                b.run("grep", "NoNewPrivs", "/proc/self/status").prints("%d$" % on)
    with sk.case("rlimits"), b.changed() as spec:
        spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 123, "hard": 456}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
        b.sh("ulimit -Sn; ulimit -Hn; ulimit -c").says("123\n456\n0")
    with sk.case("integers up to 2^64"), b.changed() as spec:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        if hard == resource.RLIM_INFINITY:
            spec["process"]["rlimits"] = [{"type": "RLIMIT_FSIZE", "soft": 2**64 - 1, "hard": 2**64 - 1}]
            b.sh("ulimit -Sf; ulimit -Hf").says("unlimited\nunlimited")
            spec["process"]["rlimits"] = [{"type": "RLIMIT_FSIZE", "soft": 2**62, "hard": 2**63}]
            b.run("cat", "/proc/self/limits").prints(r"Max file size +%d +%d" % (2**62, 2**63))
        spec["process"]["rlimits"] = [{"type": "RLIMIT_FSIZE", "soft": 4096, "hard": 2**64}]
        b.run("true").exits(1, "config.json|rlimits")
        spec["process"]["rlimits"] = []
        spec["annotations"] = {"a": "18446744073709551615", "b": "x\\\"18446744073709551615"}
        spec["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
            "names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 2**64 - 1, "op": "SCMP_CMP_EQ"}]}]}
        spec["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "cat >%s/state" % sk.dir]}]}
        b.run("true").ok
        eq(json.loads(read(sk.dir + "/state"))["annotations"], spec["annotations"], "numbers in strings")
    with sk.case("an rlimit above its hard limit"), b.changed() as spec:
        spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 500, "hard": 400}]
        b.run("true").exits(1, "limit")
    with sk.case("oom score"), b.changed() as spec:
        spec["process"]["oomScoreAdj"] = 777
        b.run("cat", "/proc/self/oom_score_adj").says("777")
    with sk.case("host name"):
        b.run("hostname").says("bundle")
    with sk.case("domain name"), b.changed() as spec:
        spec["domainname"] = "example.org"
        b.run("cat", "/proc/sys/kernel/domainname").says("example.org")
        spec["linux"]["sysctl"] = {"kernel.domainname": "example.org"}
        b.run("cat", "/proc/sys/kernel/domainname").says("example.org")
        spec["linux"]["sysctl"] = {"kernel.domainname": "example.net"}
        b.run("true").exits(1, "domainname")
    with sk.case("capabilities"), b.changed() as spec:
        show = "grep Cap /proc/self/status | cut -f2 | tr '\\n' ' '"  # Inh Prm Eff Bnd Amb
        spec["process"]["capabilities"] = {"bounding": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_KILL"],
                                           "inheritable": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"]}
        got = b.sh(show).ok.out.split()
        eq((got[3], got[0]), ("%016x" % 0x21, "%016x" % 1), "bounding and inheritable")
        spec["process"].pop("capabilities")
        eq(b.sh(show).ok.out.split(), ["0" * 16] * 5, "none said")
    with sk.case("an unknown capability is a warning"), b.changed() as spec:
        spec["process"]["capabilities"] = {k: ["CAP_CHOWN", "CAP_NONSENSE"] for k in ("bounding", "effective", "permitted")}
        r = b.sh("grep CapEff /proc/self/status | cut -f2").exits(0, "CAP_NONSENSE")
        eq(r.out, "%016x" % 1)
    with sk.case("I/O priority"), b.changed() as spec:
        spec["process"]["ioPriority"] = {"class": "IOPRIO_CLASS_IDLE", "priority": 0}
        b.run("ionice", "-p", "1").prints("idle")
    with sk.case("scheduler"), b.changed() as spec:
        nice = min(19, os.nice(0) + 5)
        spec["process"]["scheduler"] = {"policy": "SCHED_BATCH", "nice": nice}
        b.sh("cut -d' ' -f41,19 /proc/1/stat").says("%d 3" % nice)
    with sk.case("personality"), b.changed() as spec:
        spec["linux"]["personality"] = {"domain": "LINUX32"}
        b.run("uname", "-m").prints("i686|armv")
    with sk.case("time"), b.changed() as spec:
        if not os.path.exists("/proc/self/ns/time"):
            raise Skipped("the kernel has no time namespaces")
        spec["linux"]["namespaces"].append({"type": "time"})
        spec["linux"]["timeOffsets"] = {"boottime": {"secs": 86400 * 1000}}
        true(float(b.run("cat", "/proc/uptime").ok.out.split()[0]) > 86400 * 1000, "an uptime of a thousand days")


@only("a")
@image(None)
def test_ids(sk):
    b = Bundle(sk)
    with sk.case("user and groups"), b.changed() as spec:
        spec["process"]["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [5, 7]}
        b.sh("id -u; id -g; id -G").prints("^1000\n1001\n(1001 )?5 7")
    with sk.case("no groups of ours"):
        eq(b.sh("id -G").ok.out, "0")
    with sk.case("a uid that is not mapped"), b.changed() as spec:
        spec["process"]["user"] = {"uid": 4000000, "gid": 0}
        b.run("true").exits(1, "4000000")
    with sk.case("exec --user"):
        b.up("u")
        b("exec --user 1000:1001 u", "sh", "-c", "id -u; id -g").says("1000\n1001")
        b("exec --user nobody u true").exits(None, "uid")
        b("delete -f u").ok
    with sk.case("HOME of a user"), b.changed() as spec:
        sk.file("bundle/rootfs/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nsome:x:1000:1000::/home/some:/bin/sh\n")
        spec["process"]["user"] = {"uid": 1000, "gid": 1000}
        b.sh("echo $HOME").says("/home/some")
    with sk.case("standard output may be opened again"), b.changed() as spec:
        spec["process"]["user"] = {"uid": 1000, "gid": 1000}
        b.sh("echo again >/proc/self/fd/1").says("again")


# ---- what the process sees ----

@image(None)
def test_paths(sk):
    b = Bundle(sk)
    sk.file("bundle/rootfs/etc/secret", "secret")
    sk.file("bundle/rootfs/etc/dir/file", "secret")
    with sk.case("masked"), b.changed() as spec:
        spec["linux"]["maskedPaths"] = ["/proc/timer_list", "/etc/secret", "/etc/dir", "/no/such"]
        b.sh("cat /etc/secret; ls -A /etc/dir; cat /proc/timer_list 2>/dev/null; echo x 2>/dev/null >/etc/dir/new || echo end").says("end")
    with sk.case("read-only"), b.changed() as spec:
        spec["linux"]["readonlyPaths"] = ["/etc/dir", "/proc/sys", "/no/such"]
        b.sh("echo x >/etc/dir/file").exits(1, "read-only")
        b.sh("cat /etc/dir/file").says("secret")
        b.sh("grep ' /proc/sys ' /proc/mounts").prints(r"\bro\b.*nosuid|\bro,nosuid")
    with sk.case("a read-only root"), b.changed() as spec:
        spec["root"]["readonly"] = True
        b.sh("touch /x").exits(1, "read-only")
        b.sh("touch /dev/shm/x")
    with sk.case("a mask through a link"), b.changed() as spec:
        # CVE-2019-19921 and its kin: the root is somebody else's, and so are its links
        os.symlink("/proc", b.rootfs + "/etc/proc-link")
        spec["linux"]["maskedPaths"] = ["/etc/proc-link/timer_list"]
        b.run("true").ok
    with sk.case("links of the root do not lead out"), b.changed() as spec:
        outside = sk.folder("outside")
        os.symlink("../../../../../../../../.." + outside, b.rootfs + "/etc/leak")
        spec["mounts"].append({"destination": "/etc/leak/in", "type": "tmpfs", "source": "tmpfs", "options": []})
        b.run("true")
        eq(os.listdir(outside), [])
    with sk.case("/proc as a link"), b.changed() as spec:
        os.rename(b.rootfs + "/proc", b.rootfs + "/proc.real")
        os.symlink("proc.real", b.rootfs + "/proc")
        b.run("true").exits(1, "proc")
        os.unlink(b.rootfs + "/proc")
        os.rename(b.rootfs + "/proc.real", b.rootfs + "/proc")


# Waits for a process of the engine's executable, keeps that open, ends the process, and writes when nobody runs it any more.
WRITER = """touch /ready
while :; do for p in /proc/[0-9]*; do case $(readlink $p/exe) in *skiff*) exec 5<$p/exe && break 2;; esac; done; done 2>/dev/null
touch /held; while [ -e $p/stat ]; do usleep 1000; done
for i in $(seq 200); do (printf bad >/proc/self/fd/5) 2>/dev/null; usleep 2000; done
touch /done; sleep 1000"""


@image(None)
def test_own_binary(sk):
    """CVE-2019-5736: a container whose programs are links to /proc/self/exe gets the engine's executable, which the user may write, and outlives the engine."""
    mine, before = sk.own_binary()
    b = Bundle(sk)
    b.up("cc", "sh", "-c", WRITER)
    until(lambda: os.path.exists(b.rootfs + "/ready"), "it waits")
    p = sk.popen(["oci", "--root", b.state, "exec", "-e", "HOME=/tmp", "cc", "/proc/self/exe", "load"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: os.path.exists(b.rootfs + "/held"), "it has found the engine")
    p.stdin.close()
    p.wait(lib.PATIENCE)
    until(lambda: os.path.exists(b.rootfs + "/done"), "it has tried")
    eq(lib.digest(open(mine, "rb").read()), before, "the engine's executable")
    b("delete -f cc").ok


@image(None)
def test_dev_as_link(sk):
    """A root without a mount on /dev, whose /dev leads to a directory of the host (CVE-2026-41579, CVE-2026-47766)."""
    b = Bundle(sk)
    canary = sk.folder("canary")
    sk.file("canary/ptmx", "decoy")
    os.symlink("/dev/pts", canary + "/pts")
    look = lambda: sorted((f, os.lstat(canary + "/" + f).st_mode, os.lstat(canary + "/" + f).st_mtime_ns) for f in os.listdir(canary))
    before = look()
    b.spec["mounts"] = [m for m in b.spec["mounts"] if not m["destination"].startswith("/dev")]
    os.rmdir(b.rootfs + "/dev")
    for to in canary, "../" * 40 + canary[1:], ".." + "/.." * 40 + canary, "/proc/self/cwd/../canary":
        os.symlink(to, b.rootfs + "/dev")
        with sk.case(to[:9]):
            b.run("true")
            eq(look(), before, "the host's directory")
        with sk.case(to[:9] + ", with a terminal"), b.changed() as spec:
            spec["process"]["terminal"] = True
            b.write("true")
            lib.Terminal(sk, "oci --root", b.state, "run", "-b", b.dir, "tt").exits(1)
            eq(look(), before, "the host's directory")
        os.unlink(b.rootfs + "/dev")


@image(None)
def test_masks_of_the_root(sk):
    """What hides a file is the host's null device, whatever the root's is; what is written to is in procfs (CVE-2025-31133, CVE-2025-52881)."""
    b = Bundle(sk)
    sk.file("bundle/rootfs/etc/secret", "secret")
    b.spec["linux"]["maskedPaths"] = ["/etc/secret"]
    with sk.case("/dev/null of the root's"), b.changed() as spec:
        sk.file("bundle/rootfs/dev/null", "decoy")
        spec["mounts"] = [m for m in spec["mounts"] if not m["destination"].startswith("/dev")]
        b.sh("cat /etc/secret; echo x >/etc/secret; test -c /etc/secret && echo end").says("end")
        eq((read(b.rootfs + "/etc/secret"), read(b.rootfs + "/dev/null")), ("secret", "decoy"))
        os.unlink(b.rootfs + "/dev/null")
        os.symlink("../etc/passwd", b.rootfs + "/dev/null")
        b.sh("cat /etc/secret; echo x >/etc/secret; test -c /etc/secret && echo end").says("end")
        os.unlink(b.rootfs + "/dev/null")
    decoy = sk.folder("decoy")
    value = sk.file("decoy/sys/kernel/shm_rmid_forced", "old")
    sk.file("decoy/keys", "old")
    with sk.case("a sysctl where /proc is a directory of somebody's"), b.changed() as spec:
        spec["mounts"][0] = {"destination": "/proc", "type": "bind", "source": decoy, "options": ["bind"]}
        spec["linux"]["sysctl"] = {"kernel.shm_rmid_forced": "1"}
        b.run("true").exits(1, "procfs|sysctl")
        eq(read(value), "old")
    with sk.case("a sysctl through a link"), b.changed() as spec:
        os.unlink(value)
        os.symlink("../../../../../.." + decoy + "/keys", value)
        spec["mounts"][0] = {"destination": "/proc", "type": "bind", "source": decoy, "options": ["bind"]}
        spec["linux"]["sysctl"] = {"kernel.shm_rmid_forced": "1"}
        b.run("true").exits(1, "procfs|sysctl")
        eq(read(decoy + "/keys"), "old")
    with sk.case("a mask below it"), b.changed() as spec:
        spec["mounts"][0] = {"destination": "/proc", "type": "bind", "source": decoy, "options": ["bind"]}
        spec["linux"]["maskedPaths"] = ["/proc/keys"]
        b.run("true").exits(1, "procfs")


@image(None)
def test_terminal_of_the_caller(sk):
    """A program without a terminal of its own cannot type into the caller's, nor open it again."""
    b = Bundle(sk)
    sk.file("bundle/rootfs/try.c", """
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
int main(void) {
    puts(ioctl(0, TIOCSTI, "x") ? strerrorname_np(errno) : "typed");
    puts(ioctl(0, TIOCSCTTY, 0) ? strerrorname_np(errno) : "taken");
    puts(fopen("/dev/tty", "w") ? "opened" : strerrorname_np(errno));
    return 0;
}
""")
    lib.tool("gcc", "-D_GNU_SOURCE", "-static", "-O1", "-w", "-o", b.rootfs + "/try", b.rootfs + "/try.c")
    b.write("/try")
    with sk.case("run"):
        t = lib.Terminal(sk, "oci --root", b.state, "run", "-b", b.dir, "tt")
        t.exits(0)
        match(t.seen.replace("\r", ""), "^(EPERM|EIO)\nEPERM\nENXIO$")
    with sk.case("exec"):
        b.up("cc")
        t = lib.Terminal(sk, "oci --root", b.state, "exec", "cc", "/try")
        t.exits(0)
        match(t.seen.replace("\r", ""), "^(EPERM|EIO)\nEPERM\nENXIO$")
        b("delete -f cc").ok


@image(None)
def test_mounts(sk):
    b = Bundle(sk)
    source = sk.folder("source")
    sk.file("source/file", "from the host")
    with sk.case("bind"), b.changed():
        b.mount("/mnt/a", source, "bind")
        b.sh("cat /mnt/a/file; echo new >/mnt/a/new").says("from the host")
        eq(read(source + "/new"), "new\n")
    with sk.case("read-only"), b.changed():
        b.mount("/mnt/a", source, "bind", "ro")
        b.sh("echo x >/mnt/a/x").exits(1, "read-only")
    with sk.case("a file"), b.changed():
        b.mount("/etc/bound/file", source + "/file", "bind", "ro")
        b.run("cat", "/etc/bound/file").says("from the host")
    with sk.case("a relative source is the bundle's"), b.changed():
        sk.file("bundle/beside/file", "beside")
        b.mount("/mnt/b", "beside", "bind")
        b.run("cat", "/mnt/b/file").says("beside")
    with sk.case("options"), b.changed():
        b.mount("/mnt/a", source, "bind", "nosuid", "nodev", "noexec", "ro")
        b.mount("/mnt/t", "tmpfs", "noatime", "nodiratime", type="tmpfs")
        o = set(b.sh("grep ' /mnt/a ' /proc/mounts").ok.out.split()[3].split(","))
        true({"ro", "nosuid", "nodev", "noexec"} <= o, "all options, got %s" % sorted(o))
        o = set(b.sh("grep ' /mnt/t ' /proc/mounts").ok.out.split()[3].split(","))
        true({"noatime", "nodiratime"} <= o, "noatime and nodiratime, got %s" % sorted(o))
    with sk.case("access times"), b.changed():
        for words, want in (["noatime"], "noatime"), (["relatime"], "relatime"), (["noatime", "relatime"], "relatime"), (["relatime", "noatime"], "noatime"):
            with b.changed():
                b.mount("/mnt/t", "tmpfs", *words, type="tmpfs")
                b.sh("grep ' /mnt/t ' /proc/mounts").prints(r"\b%s\b" % want)
        b.mount("/mnt/a", source, "bind", "relatime")  # whatever the host has: it may be locked
        b.run("ls", "/mnt/a").says("file\nlink" if os.path.lexists(source + "/link") else "file\nnew")
    with sk.case("the last word wins"), b.changed():
        b.mount("/mnt/t", "tmpfs", "ro", "rw", "exec", "noexec", type="tmpfs")
        o = b.sh("grep ' /mnt/t ' /proc/mounts").ok.out.split()[3].split(",")
        true("rw" in o and "noexec" in o, "rw and noexec, got %s" % o)
    with sk.case("rro"), b.changed():
        with open("/proc/self/mountinfo") as f:
            below = sorted({x.split()[4] for x in f} & {"/dev/pts", "/dev/shm", "/dev/mqueue"})
        if not below:
            raise Skipped("the host has no mount below /dev")
        b.mount("/mnt/dev", "/dev", "rbind", "rro")
        b.mount("/mnt/dev2", "/dev", "rbind", "ro")
        got = {x.split()[1]: x.split()[3].split(",") for x in b.run("cat", "/proc/mounts").ok.lines}
        for name in [""] + [x[4:] for x in below]:
            eq(got["/mnt/dev" + name][0], "ro", "rro of /dev" + name)
        eq(got["/mnt/dev2"][0], "ro")
    with sk.case("the recursive forms"), b.changed():
        b.mount("/mnt/dev", "/dev", "rbind", "rnosuid", "rnoexec")
        for line in b.sh("grep ' /mnt/dev' /proc/mounts").ok.lines:
            o = line.split()[3].split(",")
            true("nosuid" in o and "noexec" in o, "nosuid and noexec in " + line)
    with sk.case("a source that is not there"), b.changed():
        b.mount("/mnt/a", source + "/nowhere", "bind")
        b.run("true").exits(1, "nowhere")
    with sk.case("tmpfs"), b.changed():
        b.mount("/mnt/t", "tmpfs", "size=1m", "mode=1750", type="tmpfs")
        b.sh("stat -c %a /mnt/t; df -k /mnt/t | awk 'END {print $2}'").says("1750\n1024")
        os.makedirs(b.rootfs + "/kept", 0o755)
        os.chmod(b.rootfs + "/kept", 0o712)
        b.mount("/kept", "tmpfs", "ro", type="tmpfs")
        b.run("stat", "-c", "%a", "/kept").says("712")
    with sk.case("tmpcopyup"), b.changed():
        sk.file("bundle/rootfs/full/sub/file", "below", mode=0o640)
        os.symlink("sub/file", b.rootfs + "/full/link")
        b.mount("/full", "tmpfs", "tmpcopyup", "nosuid", type="tmpfs")
        b.sh("cat /full/sub/file; readlink /full/link; stat -c %a /full/sub/file; echo more >/full/new; ls /full").says("belowsub/file\n640\nlink\nnew\nsub")
        eq(os.listdir(b.rootfs + "/full/sub"), ["file"])
    with sk.case("links"), b.changed():
        os.symlink("file", source + "/link")
        b.mount("/etc/followed", source + "/link", "bind")
        b.mount("/etc/copied", source + "/link", "bind", "copy-symlink")
        b.sh("cat /etc/followed; readlink /etc/copied").says("from the hostfile")
    with sk.case("a dangling link as target is followed inside"), b.changed():
        os.symlink("../made/there", b.rootfs + "/etc/dangling")
        b.mount("/etc/dangling", source + "/file", "bind")
        b.run("cat", "/made/there").says("from the host")
    with sk.case("an unknown option"), b.changed():
        b.mount("/mnt/t", "tmpfs", "nonsense", type="tmpfs")
        b.run("true").exits(1, "nonsense")


@image(None)
def test_cgroup_mount(sk):
    """A mount of type cgroup shows the container's own subtree; options are applied or refused, never dropped."""
    b = Bundle(sk)
    b.namespaces("cgroup")
    options = lambda: [x.split(" - ")[0].split()[5] for x in b.run("cat", "/proc/self/mountinfo").ok.lines if x.split()[4].startswith("/sys/fs/cgroup")]
    with sk.case("read-only"), b.changed():
        b.mount("/sys/fs/cgroup", "cgroup", "ro", "nosuid", "noexec", "nodev", "relatime", type="cgroup")
        got = options()
        true(got, "a mount at /sys/fs/cgroup")
        for o in got:
            true({"ro", "nosuid", "noexec", "nodev"} <= set(o.split(",")), "all options, got " + o)
    with sk.case("cgroup2"), b.changed():
        b.mount("/sys/fs/cgroup", "cgroup2", "ro", type="cgroup2")
        b.run("cat", "/proc/mounts").prints("^cgroup2? /sys/fs/cgroup cgroup2 ro")
    with sk.case("an option that the kernel does not know"), b.changed():
        b.mount("/sys/fs/cgroup", "cgroup2", "ro", "nonsense", type="cgroup2")
        b.run("true").exits(1, "cgroup|nonsense")


@image(None)
def test_no_user_namespace(sk):
    """A bundle that names none: without root there always is one, with the ids that the caller has."""
    b = Bundle(sk)
    b.spec["linux"]["namespaces"] = [n for n in b.spec["linux"]["namespaces"] if n["type"] != "user"]
    with sk.case("with mappings"):
        b.sh("id -u; readlink /proc/self/ns/user").prints("^0\n")
        true(b.run("readlink", "/proc/self/ns/user").ok.out != os.readlink("/proc/self/ns/user"), "a user namespace of its own")
    with sk.case("without mappings"):
        del b.spec["linux"]["uidMappings"], b.spec["linux"]["gidMappings"]
        lines = b.sh("id -u; id -g; cat /proc/self/uid_map").ok.lines
        eq(lines[:2], ["0", "0"])
        eq(lines[2].split(), ["0", str(os.getuid()), "1"], "the first line of the map")
    with sk.case("exec"):
        b.up("no")
        b("exec no id -u").says("0")
        b("delete -f no").ok


@image(None)
def test_resources(sk):
    """Limits of a bundle: crun runs it without them where it may make no cgroup, and so do we; update says it."""
    b = Bundle(sk)
    b.spec["linux"]["resources"] = {"memory": {"limit": 64 << 20, "swap": 128 << 20}, "pids": {"limit": 20},
                                    "cpu": {"shares": 100, "quota": 50000, "period": 100000}, "unified": {"memory.high": "32000000"}}
    b.up("lim")
    eq(b.get("lim")["status"], "running")
    have = b("update --memory 32m lim").code == 0
    with sk.case("update with flags"):
        r = b("update --memory 32m --cpu-shares 50 --pids-limit 10 lim")
        if not have:
            r.exits(1, "no cgroup")
    with sk.case("update by a file"):
        path = sk.file("limits.json", json.dumps({"pids": {"limit": 15}}))
        for r in b("update --resources", path, "lim"), b("update --resources - lim", input='{"pids":{"limit":15}}'), b("update -r", path, "lim"):
            r.exits(0) if have else r.exits(1, "no cgroup")
    with sk.case("bad values"):
        b("update --memory 1m lim").exits(1, "6MB")
        b("update --memory lots lim").exits(None, "invalid")
        b("update --blkio-weight 5000 lim").exits(1, "10 to 1000")
        b("update --resources", sk.dir + "/nowhere", "lim").exits(1, "nowhere")
        b("update --resources", sk.file("bad.json", "{"), "lim").exits(1, "JSON")
        b("update --memory 32m nobody").exits(1, "does not exist")
    b("delete -f lim").ok


@image(None)
def test_propagation(sk):
    b = Bundle(sk)
    shown = "awk '$5 == \"%s\" {print $7}' /proc/self/mountinfo"
    with sk.case("private unless said"):
        b.sh(shown % "/").says("-")
    for word, want in ("shared", "^shared:"), ("rshared", "^shared:"), ("private", "^-$"), ("unbindable", "^unbindable$"):
        with sk.case("rootfsPropagation " + word), b.changed() as spec:
            spec["linux"]["rootfsPropagation"] = word
            b.sh(shown % "/").prints(want)
    for word, want in ("shared", "^shared:"), ("rprivate", "^-$"), ("unbindable", "^unbindable$"), ("rslave", "^(-|master:)"):
        with sk.case("mount option " + word), b.changed():
            b.mount("/mnt/a", sk.folder("source"), "bind", word)
            b.sh(shown % "/mnt/a").prints(want)


@image(None)
def test_sysctl(sk):
    b = Bundle(sk)
    b.namespaces("network")
    b.spec["linux"]["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": "77", "net/ipv4/ping_group_range": "0 0"}
    b.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /proc/sys/net/ipv4/ping_group_range").says("77\n0\t0")
    with sk.case("the host keeps its own"):
        true(read("/proc/sys/net/ipv4/ip_unprivileged_port_start") != "77\n", "the host's value")
    with sk.case("a value that is refused"):
        b.spec["linux"]["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": "-1"}
        b.run("true").exits(1, "ip_unprivileged_port_start")


@image(None)
def test_seccomp(sk):
    b = Bundle(sk)
    rule = lambda action, *names, **kw: {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": list(names), "action": action, **kw}]}
    with sk.case("errno"), b.changed() as spec:
        spec["linux"]["seccomp"] = rule("SCMP_ACT_ERRNO", "mkdir", "mkdirat", errnoRet=28)
        b.run("mkdir", "/x").exits(1, "no space left")
    with sk.case("kill"), b.changed() as spec:
        spec["linux"]["seccomp"] = rule("SCMP_ACT_KILL_PROCESS", "mkdir", "mkdirat")
        b.run("mkdir", "/x").exits(128 + signal.SIGSYS)
    with sk.case("of an argument"), b.changed() as spec:
        spec["linux"]["seccomp"] = rule("SCMP_ACT_ERRNO", "kill", args=[{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}])
        b.sh("kill -12 99; kill -10 99").exits(1, "not permitted")
    with sk.case("exec has it"), b.changed() as spec:
        spec["linux"]["seccomp"] = rule("SCMP_ACT_ERRNO", "mkdir", "mkdirat")
        b.up("sec")
        b("exec sec mkdir /x").exits(1, "not permitted")
        b("delete -f sec").ok
    with sk.case("an unknown call"), b.changed() as spec:
        spec["linux"]["seccomp"] = rule("SCMP_ACT_ERRNO", "no_such_call")
        b.run("true").ok
        spec["annotations"] = {"run.oci.seccomp_fail_unknown_syscall": "1"}
        b.run("true").exits(1, "no_such_call")
    with sk.case("listener"), b.changed() as spec, socket.socket(socket.AF_UNIX) as server:
        path = sk.dir + "/listener"
        server.bind(path)
        server.listen(1)
        server.settimeout(lib.PATIENCE)
        spec["linux"]["seccomp"] = {**rule("SCMP_ACT_NOTIFY", "mkdir", "mkdirat"), "listenerPath": path, "listenerMetadata": "words"}
        b.up("lis")
        with server.accept()[0] as c:
            text, ancillary, _, _ = c.recvmsg(65536, socket.CMSG_SPACE(4))
        eq(len(ancillary), 1, "descriptors at the listener's socket")
        m = json.loads(text)
        eq((m["fds"], m["metadata"], m["state"]["id"], m["state"]["status"]), (["seccompFd"], "words", "lis", "creating"))
        eq(m["pid"], b.get("lis")["pid"])
        b("delete -f lis").ok
    with sk.case("nobody listens"), b.changed() as spec:
        spec["linux"]["seccomp"] = {**rule("SCMP_ACT_NOTIFY", "mkdir"), "listenerPath": sk.dir + "/nobody"}
        b.run("true").exits(1, "listenerPath")


@image(None)
def test_keyring(sk):
    """A session keyring of the container's own, unless --no-new-keyring."""
    if ctypes.CDLL(None).syscall({"x86_64": 250, "aarch64": 219}[os.uname().machine], 1, None) < 0:
        raise Skipped("keyrings (CONFIG_KEYS)")
    b = Bundle(sk)
    sk.file("bundle/rootfs/try.c", "#include <stdio.h>\n#include <sys/syscall.h>\n#include <unistd.h>\n"
            "int main(void) { printf(\"%ld\\n\", syscall(SYS_keyctl, 0, -3, 0)); return 0; }\n")  # the session keyring's number
    program = b.rootfs + "/try"
    lib.tool("gcc", "-static", "-O1", "-o", program, program + ".c")
    mine = lib.tool(program).decode().strip()
    with sk.case("run"):
        theirs = b.run("/try").ok.out
        true(theirs != mine and int(theirs) > 0, "another keyring than %s, got %s" % (mine, theirs))
    with sk.case("--no-new-keyring"):
        b.run("/try", words="--no-new-keyring").says(mine)
    with sk.case("exec"):
        b.up("kk")
        true(b("exec kk /try").ok.out != mine, "another keyring")
        b("delete -f kk").ok


@image(None)
def test_devices(sk):
    b = Bundle(sk)
    with sk.case("what every /dev has"):
        b.sh("ls -l /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty | cut -c1 | sort -u").says("c")
        b.sh("for l in fd stdin ptmx; do readlink /dev/$l; done").says("/proc/self/fd\n/proc/self/fd/0\npts/ptmx")
        b.sh("awk '$5 == \"/dev/null\" {print $6}' /proc/self/mountinfo").prints("nosuid.*noexec")
    with sk.case("linux.devices"), b.changed() as spec:
        spec["linux"]["devices"] = [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666}]
        b.sh("ls -l /dev/null").prints("1, *3")
    with sk.case("one that the host has not"), b.changed() as spec:
        spec["linux"]["devices"] = [{"path": "/dev/no-such", "type": "c", "major": 1, "minor": 3}]
        b.run("true").exits(1, "/dev/no-such")


@only("root")
@image(None)
def test_state_of_another(sk):
    """Slurm calls state, kill and delete as root on the state directory of a user."""
    states, null = sk.dir + "/states", subprocess.DEVNULL
    root = lambda words: subprocess.run([lib.SKIFF, "oci", "--root", states] + words.split(), env=sk.env, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=lib.PATIENCE)

    def forge(id, config="{}", **state):
        """The files of a container as its owner may write them."""
        state = {"ociVersion": "1.2.0", "id": id, "status": "running", "pid": 0, "started": 0, **state}
        for name, text in ("status", json.dumps(state)), ("config.json", config):
            os.chown(os.path.dirname(sk.file("states/%s/%s" % (id, name), text)), *sk.user)
        os.chown(states, *sk.user)
        os.chmod(states, 0o700)

    with sk.case("where nothing is, nothing is made"):
        for words, code in ("state x", 1), ("kill -a x", 1), ("delete x", 1), ("delete --force x", 0), ("list", 0):
            eq((words, root(words).returncode), (words, code))
        eq(os.path.exists(states), False, "the directory")
    with sk.case("a container of the user"):
        b = sk.folder("bundle")
        os.chown(b, *sk.user)
        sk("oci spec --rootless -b", b).ok
        with open(b + "/config.json") as f:
            spec = json.load(f)
        spec["process"].update(terminal=False, args=["/busybox", "sleep", "1000"])
        sk.file("bundle/config.json", json.dumps(spec))
        with tarfile.open(fileobj=io.BytesIO(lib.busybox_layer())) as t:
            sk.file("bundle/rootfs/busybox", t.extractfile("bin/busybox").read(), 0o755)
        for d in "proc", "dev", "sys":
            sk.folder("bundle/rootfs/" + d)
        for d, _, _ in os.walk(b):
            os.chown(d, *sk.user)
        for words in (("kill -a x KILL", "state x", "delete --force x"), ("delete --force x",)):
            eq(sk.popen(["oci", "--root", states, "run", "-d", "-b", b, "x"], stdout=null, stderr=null).wait(lib.PATIENCE), 0, "run -d")
            eq(json.loads(root("state x").stdout)["status"], "running")
            for w in words:
                eq((w, root(w).returncode), (w, 0))
            eq(os.listdir(states), [], "states left")
    with sk.case("its hooks run as the user"):
        hook = {"path": "/bin/sh", "args": ["sh", "-c", "id -u >%s/home/out" % sk.dir]}
        forge("h", json.dumps({"hooks": {"poststop": [hook]}}))
        eq(root("delete --force h").returncode, 0)
        eq(read(sk.dir + "/home/out").strip(), str(sk.user[0]))
    with sk.case("no process but the user's is signalled"):
        p = subprocess.Popen(["sleep", "1000"], stdin=null)
        started = int(read("/proc/%d/stat" % p.pid).rsplit(")", 1)[1].split()[19])
        forge("p", pid=p.pid, started=started)
        for words in "kill p KILL", "kill -a p KILL":
            root(words)
        time.sleep(0.2)
        eq(p.poll(), None, "what became of a process of root")
        p.kill()
        p.wait()
    with sk.case("no directory but the user's is removed"):
        d = sk.folder("cgroup")
        forge("c", cgroup=d)
        os.chown(d, 0, 0)
        os.chown(sk.dir, 0, 0)
        root("delete --force c")
        os.chown(sk.dir, *sk.user)
        eq(os.path.isdir(d), True, "a directory of root still to be there")


@image(None)
def test_mounts_command(sk):
    """`mounts add` and `mounts remove` of a running container."""
    b = Bundle(sk)
    b.up("mm")
    f = sk.file("m.json", json.dumps([{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]}]))
    with sk.case("added"):
        b("mounts add mm", f).ok
        match(b("exec mm grep /tmp /proc/mounts").ok.out, "^tmpfs /tmp tmpfs .*size=64k")
    with sk.case("mounted anew with other options, which needs no source"):
        again = [{"destination": "/tmp", "type": "none", "source": "/nosuch", "options": ["bind", "remount", "ro"]}]
        b("mounts add mm", sk.file("again.json", json.dumps(again))).ok
        match(b("exec mm grep /tmp /proc/mounts").ok.out, "^tmpfs /tmp tmpfs ro,")
    with sk.case("removed"):
        b("mounts remove mm", sk.file("r.json", json.dumps([{"destination": "/tmp/", "type": "tmpfs"}]))).ok
        b("exec mm grep /tmp /proc/mounts").exits(1, "")
    with sk.case("a link of the container leads nowhere else"):
        b("exec mm ln -s /proc/1/root /tmp/x").ok
        sk.file("m.json", json.dumps([{"destination": "/tmp/x/etc", "type": "tmpfs", "source": "tmpfs"}]))
        b("mounts add mm", f)
        b("exec mm sh -c", "[ $(grep -c ' tmpfs ' /proc/mounts) -le 3 ]")
        eq(os.path.ismount("/etc"), False)
    with sk.case("refused"):
        b("mounts add nosuch", f).exits(1, "does not exist")
        b("mounts twist mm", f).exits(1, "add or remove")
        b("mounts add mm", sk.file("n.json", "{}")).exits(1, "list")
        b("mounts add mm", sk.dir + "/missing").exits(1, "missing")
    b("delete -f mm").ok


@image(None)
def test_affinity(sk):
    """execCPUAffinity of what exec starts; what is ignored is said."""
    b = Bundle(sk)
    b.spec["linux"]["intelRdt"] = {"closID": "x"}
    with sk.case("intelRdt is ignored, with a word"):
        b.write("true")
        match(b("run -b", b.dir, "ii").ok.err, "/linux/intelRdt is ignored")
    del b.spec["linux"]["intelRdt"]
    b.up("af")
    last = str(max(os.sched_getaffinity(0)))

    def mask(**affinity):
        process = {"args": ["sed", "-n", "s/Cpus_allowed_list:.//p", "/proc/self/status"], "cwd": "/", "env": ["PATH=/bin"], "execCPUAffinity": affinity}
        return b("exec --process", sk.file("process.json", json.dumps(process)), "af")
    first, whole = str(min(os.sched_getaffinity(0))), mask().ok.out
    mask(initial=last).says(last)
    mask(final=last).says(last)
    mask(initial=first, final=last).says(last)
    mask(initial=last, final=whole).says(whole)
    mask(final="").says(whole)
    for bad in "x", "1-", "2-1", "0 1", "-1":
        mask(final=bad).exits(None, "/process/execCPUAffinity/final")
    mask(initial="1023").exits(None, "/process/execCPUAffinity/initial")
    b("delete -f af").ok


@image(None)
def test_events_command(sk):
    """Its errors; what it tells needs a cgroup of the container's own (tests/vm, and run.cgroup_v1)."""
    b = Bundle(sk)
    b.up("ee")
    b("events --stats nosuch").exits(1, "does not exist")
    b("events --interval 0s ee").exits(1, "interval")
    if not b.get("ee").get("cgroup"):
        b("events --stats ee").exits(1, "no cgroup of its own|^$")
    b("kill ee KILL").ok
    until(lambda: b.get("ee")["status"] == "stopped", "it ends")
    b("events --stats ee").exits(1, "not running")
    b("delete ee").ok


@image(None)
def test_notify_socket(sk):
    """READY=1 of the container, and nothing else, reaches the caller's NOTIFY_SOCKET."""
    b = Bundle(sk)
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind(sk.dir + "/notify.sock")
    s.settimeout(20)
    env = {"NOTIFY_SOCKET": sk.dir + "/notify.sock"}
    with sk.case("the variable names a socket in the container"):
        match(b.sh("echo $NOTIFY_SOCKET; [ -S $NOTIFY_SOCKET ] && echo there", env=env).ok.out, r"notify\.sock/notify\nthere$")
    with sk.case("without it there is none"):
        eq(b.sh("echo -$NOTIFY_SOCKET-").ok.out, "--")
    with sk.case("start waits until it ends, where it never says that it is ready"):
        b.create("nn", "sh", "-c", "exit 0", env=env)
        b("start nn", env=env).ok
        b("delete -f nn").ok


@image(None)
def test_features_of_mounts(sk):
    """What `features` lists is understood."""
    b = Bundle(sk)
    known = b("features").ok.json
    true(known["linux"]["mountExtensions"]["idmap"]["enabled"], "idmap")
    for option in ("atime", "nostrictatime", "symfollow", "async", "dirsync", "mand", "nomand", "src-nofollow", "dest-nofollow"):
        true(option in known["mountOptions"], option + " to be listed")
    with sk.case("options that only say the default"), b.changed():
        b.mount("/tmp", "tmpfs", "atime", "nostrictatime", "symfollow", type="tmpfs")
        match(b.run("grep", " /tmp ", "/proc/mounts").ok.out, "^tmpfs /tmp tmpfs")
    with sk.case("words for the file system, in crun's recursive form too"), b.changed():
        b.mount("/tmp", "tmpfs", "rsync", "rnomand", "rdirsync", "norelatime", type="tmpfs")
        match(b.run("grep", " /tmp ", "/proc/mounts").ok.out, "^tmpfs /tmp tmpfs rw,sync,dirsync")
    with sk.case("as crun it says what crun says"):
        f = subprocess.run([os.path.join(sk.dir, "crun"), "features"], executable=sk.binary, env=sk.env, stdout=subprocess.PIPE, check=True).stdout
        f = json.loads(f)
        only_here = {"symfollow", "rsymfollow", "nosymfollow", "rnosymfollow", "ridmap"}
        eq(set(known["mountOptions"]) - set(f["mountOptions"]), only_here)
        true("run.oci.crun.commit" in f["annotations"] and "annotations" not in known, "crun's annotations")


@image(None)
def test_remount(sk):
    """Other options for what is mounted: by an earlier entry, or by none."""
    b = Bundle(sk)
    flags = lambda *more: [x for x in b.run("grep", " /tmp ", "/proc/mounts", *more).ok.out.split()[3].split(",") if x in ("ro", "rw", "nosuid", "noexec", "size=64k")]
    b.mount("/tmp", "tmpfs", "nosuid", "size=32k", type="tmpfs")
    with sk.case("flags"), b.changed():
        b.mount("/tmp", "none", "remount", "ro", "noexec", type="none")
        eq(flags(), ["ro", "nosuid", "noexec"])
        b.sh("echo x >/tmp/x").exits(1, "[Rr]ead-only")
    with sk.case("the file system's own options"), b.changed():
        b.mount("/tmp", "tmpfs", "remount", "size=64k", type="tmpfs")
        eq(flags(), ["rw", "nosuid", "size=64k"])
    with sk.case("what is locked in a user namespace stays"), b.changed():
        b.mount("/etc", "/etc", "bind")
        b.mount("/etc", "", "bind", "remount", "ro")
        b.sh("echo x >/etc/x").exits(1, "[Rr]ead-only")
    with sk.case("an option that it does not know"), b.changed():
        b.mount("/tmp", "tmpfs", "remount", "nonsense", type="tmpfs")
        b.run("true").exits(1, "nonsense")
    with sk.case("where nothing is"), b.changed():
        b.mount("/nowhere", "none", "remount", "ro", type="none")
        b.run("true").exits(1, "remount /nowhere: No such file")


@image(None)
def test_without_a_process(sk):
    """`create` needs none; `start` finds that out where the process' output goes, as with crun."""
    b = Bundle(sk)
    del b.spec["process"]
    out = b.create("none")
    eq(b.get("none")["status"], "created")
    b("start none").ok
    b.becomes("none", "stopped")
    with open(out + ".err") as f:
        match(f.read(), "/process: missing")
    b("delete none").ok


@only("root")
@image(None)
def test_without_a_mount_namespace(sk):
    """Root and a bundle that has no mount namespace of its own: the caller's tree stays what it is."""
    b = sk.folder("bundle")
    with tarfile.open(fileobj=io.BytesIO(lib.busybox_layer())) as t:
        sk.file("bundle/rootfs/busybox", t.extractfile("bin/busybox").read(), 0o755)
    for d in "proc", "dev", "sys":
        sk.folder("bundle/rootfs/" + d)
    # in a namespace that may be spoilt
    script = ("set -e; %(s)s oci spec -b %(b)s; python3 - <<'E'\nimport json\nj = json.load(open('%(b)s/config.json'))\n"
              "j['process'].update(terminal=False, args=['/busybox', 'ls', '/'])\nj['linux']['namespaces'] = [n for n in j['linux']['namespaces'] if n['type'] != 'mount']\n"
              "j['linux'].pop('maskedPaths', None)\nj['linux'].pop('readonlyPaths', None)\nj['linux'].pop('resources', None)\nj['mounts'], j['root']['readonly'] = [], False\njson.dump(j, open('%(b)s/config.json', 'w'))\nE\n"
              "before=$(ls / | md5sum); %(s)s oci --root %(b)s/state run -b %(b)s x || echo code $?; [ \"$before\" = \"$(ls / | md5sum)\" ] && [ -e /proc/self ] && echo whole")
    r = subprocess.run(["unshare", "-m", "--propagation", "private", "sh", "-c", script % {"s": lib.SKIFF, "b": b}], env=sk.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=lib.PATIENCE)
    eq(r.stdout.split()[-1:], ["whole"], r.stdout)
    match(r.stdout, "(?m)^busybox$")
