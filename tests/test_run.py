"""run and create: every option's effect, exit codes, the terminal."""
import contextlib
import fcntl
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import time

import lib
from lib import Failed, Skipped, Terminal, eq, image, match, no_match, only, timeout, true, until


def test_exit_codes(sk):
    for line, code, pattern in [
            ("run --rm busybox true", 0, None), ("run --rm busybox false", 1, None), ("run --rm busybox sh -c 'exit 42'", 42, None),
            ("run --rm busybox sh -c 'exit 255'", 255, None), ("run --rm busybox sh -c 'exit 125'", 125, None),
            ("run --rm busybox sh -c 'kill -9 $$; sleep 9'", None, None),
            ("run --rm --init busybox sh -c 'kill -9 $$'", 137, None), ("run --rm --init busybox sh -c 'kill -TERM $$'", 143, None),
            ("run --rm --init busybox sh -c 'kill -SEGV $$'", 139, None),
            ("run --rm busybox nosuch", 127, "executable file not found in|no such file"),
            ("run --rm busybox /no/such", 127, "no such file"), ("run --rm busybox /etc", 126, "is a directory|permission denied"),
            ("run --rm busybox /etc/passwd", 126, "permission denied"), ("run --rm --entrypoint /etc busybox", 126, "directory|permission"),
            ("run --rm --entrypoint nosuch busybox", 127, "not found|no such"),
            ("run --rm --pull never nosuch", 125, "no such image"), ("run --rm -u nosuch busybox true", 125, "unable to find user nosuch"),
            ("run --rm -u 0:nosuch busybox true", 125, "unable to find group nosuch"),
            ("run --rm -w /etc/passwd busybox true", None, "."),
            ("run --name taken busybox true", 0, None), ("run --name taken busybox true", 125, "already in use"),
            ("run -d --rm busybox nosuch", 127, "not found|no such"), ("start -a taken", 0, None)]:
        with sk.case(line):
            if line.endswith("sleep 9'"):  # pid 1 is not killed by its own signal
                eq(sk("run --rm busybox sh -c", "kill -9 $$; exit 7").code, 7)
            else:
                sk(line).exits(code, pattern)
    with sk.case("a container that could not start is kept as created, with its error"):
        sk("run --name broken busybox nosuch").exits(127)
        eq(sk.get("broken", "{{.State.Status}} {{.State.ExitCode}}"), "created 127")
        match(sk.get("broken", "{{.State.Error}}"), "not found|no such")
    with sk.case("nothing of --rm is left"):
        eq(sorted(sk("ps -a --format", "{{.Names}}").ok.lines), ["broken", "taken"])


def test_streams(sk):
    with sk.case("stdout and stderr apart"):
        r = sk("run --rm busybox sh -c", "echo out; echo err >&2").ok
        eq((r.raw, r.errors), (b"out\n", b"err\n"))
    with sk.case("-i"):
        sk("run --rm -i busybox cat", input="a\nb").says("a\nb")
    with sk.case("no -i: no input"):
        sk("run --rm busybox cat", input="secret").says("")
    with sk.case("binary"):
        data = bytes(range(256)) * 1000
        eq(sk("run --rm -i busybox cat", input=data).ok.raw, data)
    with sk.case("10 MB through"):
        data = os.urandom(10 << 20)
        eq(lib.digest(sk("run --rm -i busybox cat", input=data).ok.raw), lib.digest(data))
    with sk.case("all output of a short life"):
        for _ in range(5):
            r = sk("run --rm busybox sh -c", "seq 1 5000; echo end >&2").ok
            eq((len(r.lines), r.lines[-1], r.err), (5000, "5000", "end"))
    with sk.case("a reader that leaves"):
        p = subprocess.run(["sh", "-c", "%s run --rm busybox yes | head -1" % sk.binary], env=sk.env, stdout=subprocess.PIPE, timeout=60)
        eq(p.stdout, b"y\n")
    with sk.case("-a stdout"):
        r = sk("run --rm -a stdout busybox sh -c", "echo out; echo err >&2").ok
        eq((r.out, r.err), ("out", ""))
    with sk.case("-a stdin -a stdout -i"):
        sk("run --rm -i -a stdin -a stdout busybox cat", input="x").says("x")
    with sk.case("/dev/stdout, /dev/stderr, /dev/fd"):
        r = sk("run --rm busybox sh -c", "echo a >/dev/stdout; echo b >/dev/stderr; echo c >/dev/fd/1").ok
        eq((r.out, r.err), ("a\nc", "b"))
    with sk.case("-it without a terminal"):
        sk("run --rm -it busybox true").exits(None, "not a (TTY|terminal)")
    with sk.case("-t without -i and without a terminal"):
        sk("run --rm -t busybox sh -c", "tty; echo x").prints("^/dev/pts/0\r?\nx")


def test_process(sk):
    """What the first process finds."""
    for name, options, script, want in [
            ("pid 1", "", "echo $$", "1"), ("only its own processes", "", "ls /proc | grep -c '^[0-9]'", "[1-5]"),
            ("ids", "", "id -u; id -g", "0\n0"), ("-u number", "-u 1000", "id -u; id -g", "1000\n1000"),
            ("-u other number", "-u 12345", "id -u; id -g", "12345\n0"), ("-u name", "-u app", "id -u; id -g; echo $HOME", "1000\n1000\n/home"),
            ("-u name:group", "-u app:wheel", "id -u; id -g", "1000\n10"), ("-u n:m", "-u 5:6", "id -u; id -g", "5\n6"),
            ("-u 0", "-u 0:0", "id -u", "0"), ("groups of the user", "-u app", "id -G", "1000 10" if sk.subuid else "1000( 10)?"),
            ("cwd", "", "pwd", "/"), ("-w", "-w /tmp", "pwd", "/tmp"), ("-w makes it", "-w /a/b/c", "pwd; ls -d /a/b/c", "/a/b/c\n/a/b/c"),
            ("PATH", "", "echo $PATH", "/bin"), ("HOME", "", "echo $HOME", "/root"), ("HOSTNAME", "--hostname h", "echo $HOSTNAME; hostname", "h\nh"),
            ("domain name", "--hostname h.example.org", "hostname", "h.example.org"),
            ("-e", "-e A=1 -e B=", "echo $A-$B-; env | grep -c ^B=", "1--\n1"), ("-e inherits", "-e FROM_HOST", "echo $FROM_HOST", "here"),
            ("-e of what is not set", "-e NOT_SET_AT_ALL", "env | grep -c NOT_SET", "0"), ("-e PATH", "-e PATH=/x:/bin", "echo $PATH", "/x:/bin"),
            ("nothing of the host's environment", "", "env | grep -c -e SKIFF -e FROM_HOST -e XDG", "0"),
            ("-e with = and spaces", "-e 'A=b=c d'", "echo \"$A\"", "b=c d"),
            ("add-host", "--add-host some.host:10.9.8.7", "grep some.host /etc/hosts", r"10\.9\.8\.7\s+some\.host"),
            ("add-host of IPv6", "--add-host six:fe80::1 --add-host bra:[::2] --add-host eq=::3 --add-host four=1.2.3.4",
             "grep -e six -e bra -e eq -e four /etc/hosts", r"fe80::1\s+six\n::2\s+bra\n::3\s+eq\n1\.2\.3\.4\s+four"),
            ("localhost", "", "grep -c '^127.0.0.1.*localhost' /etc/hosts", "1"), ("own name in hosts", "--network none --hostname me", "grep -c -w me /etc/hosts", "[01]"),
            ("dns", "--dns 9.9.9.9 --dns-search example.net --dns-option ndots:3", "cat /etc/resolv.conf",
             r"(?s:.*nameserver 9\.9\.9\.9.*)"), ("dns-search", "--dns 9.9.9.9 --dns-search example.net", "grep -c '^search example.net' /etc/resolv.conf", "1"),
            ("dns-option", "--dns 9.9.9.9 --dns-option ndots:3", "grep -c '^options ndots:3' /etc/resolv.conf", "1"),
            ("dns-opt", "--dns 9.9.9.9 --dns-opt ndots:3 --dns-opt timeout:1", "grep ^options /etc/resolv.conf", "options ndots:3 timeout:1"),
            ("read-only", "--read-only", "(echo x >/f) 2>&1; echo x >/dev/shm/f && echo shm", "(?s:.*Read-only file system.*shm)"),
            ("read-only with tmpfs", "--read-only --tmpfs /run", "echo x >/run/f && cat /run/f", "x"),
            ("tmpfs", "--tmpfs /t", "grep ' /t tmpfs' /proc/mounts | grep -c 'nosuid,nodev,noexec'", "1"),
            ("tmpfs size", "--tmpfs /t:size=1m,mode=700", "df -k /t | tail -1 | tr -s ' ' | cut -d' ' -f2; stat -c %a /t", "1024\n700"),
            ("tmpfs exec", "--tmpfs /t:exec", "cp /bin/busybox /t/true && /t/true && echo ran", "ran"),
            ("shm", "", "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2", "65536"),
            ("shm-size", "--shm-size 1m", "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2", "1024"),
            ("shm-size 0 is the default", "--shm-size 0", "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2", "65536"),
            ("ulimit", "--ulimit nofile=100:200", "ulimit -Sn; ulimit -Hn", "100\n200"), ("ulimit one", "--ulimit core=0", "ulimit -c", "0"),
            ("sysctl", "--sysctl kernel.msgmax=65000", "cat /proc/sys/kernel/msgmax", "65000"),
            ("sysctl net", "--network none --sysctl net.ipv4.ip_forward=1", "cat /proc/sys/net/ipv4/ip_forward", "1"),
            ("init", "--init", "cat /proc/1/comm; echo $$", r"[\w-]*init\w*\n[2-9]"), ("pid host", "--pid host", "test $(ls /proc | grep -c '^[0-9]') -gt 8 && echo many", "many"),
            ("ipc host", "--ipc host", "readlink /proc/self/ns/ipc", re.escape(os.readlink("/proc/self/ns/ipc"))),
            ("uts host", "--uts host", "readlink /proc/self/ns/uts", re.escape(os.readlink("/proc/self/ns/uts"))),
            ("network host", "--network host", "readlink /proc/self/ns/net", re.escape(os.readlink("/proc/self/ns/net"))),
            ("network by default the host's", "", "readlink /proc/self/ns/net", re.escape(os.readlink("/proc/self/ns/net"))),
            ("network none", "--network none", "ls /sys/class/net 2>/dev/null || cut -s -d: -f1 /proc/net/dev", r"(?s:\s*lo\s*)"),
            ("loopback is up", "--network none", "ping -c1 -W1 127.0.0.1 >/dev/null 2>&1 && echo up || cat /sys/class/net/lo/operstate", "up|unknown"),
            ("device", "--device /dev/zero:/dev/mine", "head -c 2 /dev/mine | wc -c", "2"),
            ("device by its own name", "--device /dev/fuse", "test -c /dev/fuse && echo there", "there") if os.path.exists("/dev/fuse") else
            ("device by its own name", "--device /dev/zero", "test -c /dev/zero && echo there", "there"),
            ("device with a mode", "--device /dev/zero:/dev/mine:rw --device /dev/zero:r", "head -c 2 /dev/mine | wc -c", "2"),
            ("limits that mean none", "--memory 0 --memory-swap -1 --memory-reservation 0 --cpus 0 --cpu-quota -1 --cpu-period 0 --cpu-shares 0 --pids-limit -1 "
             "--blkio-weight 0 --cpuset-cpus ''", "echo x", "x"), ("limits that mean none, too", "--memory -1 --cpu-quota 0 --pids-limit 0", "echo x", "x"),
            ("dev", "", "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; echo x >/dev/null; head -c1 /dev/zero | wc -c", "1"),
            ("dev links", "", "for l in fd stdin ptmx; do readlink /dev/$l; done", "/proc/self/fd\n/proc/self/fd/0\n(/dev/)?pts/ptmx"),
            ("no other devices", "", "ls /dev | tr '\\n' ' '", r"(console )?(core )?fd full (mqueue )?null ptmx pts random shm stderr stdin stdout tty urandom zero ?"),
            ("mqueue", "", "grep -c ' /dev/mqueue mqueue' /proc/mounts", "1"), ("umask", "", "umask", "0022"),
            ("writable root", "", "echo x >/etc/new && cat /etc/new", "x"), ("signals are not ignored or blocked", "", "grep -e SigIgn -e SigBlk /proc/self/status | cut -f2 | sort -u", "0000000000000000"),
            ("oom score", "--oom-score-adj 500", "cat /proc/self/oom_score_adj", "500"),
            ("label has no effect", "-l a=b --label-file LABELS", "echo x", "x"),
            ("env-file", "--env-file ENVS", "echo $A $B; env | grep -c -e '^#' -e ^C=", "1 two words\n0")]:
        with sk.case(name):
            sk.file("LABELS", "c=d\n# no\n\ne\n")
            sk.file("ENVS", "A=1\n# comment\n\nB=two words\nC_NOT_SET\n")
            r = sk("run --rm " + options + " busybox sh -c", script + "; true", env={"FROM_HOST": "here"})
            r.ok
            if not re.search("^(?:%s)$" % want, r.out):
                raise Failed("run %s `%s`: expected /%s/, got %r (stderr %r)" % (options, script, want, lib.short(r.out), lib.short(r.err, 150)))


def test_entrypoint_and_command(sk):
    sk("load -q", input=lib.docker_archive(lib.busybox_layer(), tag="ep", config={
        "Entrypoint": ["/bin/echo", "ep"], "Cmd": ["cmd"], "User": "app", "WorkingDir": "/work/dir", "Env": ["PATH=/bin", "FROM=image"],
        "Labels": {"l": "m"}, "StopSignal": "SIGINT"})).ok
    for line, want in [
            ("run --rm ep", "ep cmd"), ("run --rm ep other words", "ep other words"), ("run --rm --entrypoint pwd ep", "/work/dir"),
            ("run --rm --entrypoint id ep -u", "1000"), ("run --rm --entrypoint sh ep -c 'echo $FROM'", "image"),
            ("run --rm -e FROM=option --entrypoint sh ep -c 'echo $FROM'", "option"), ("run --rm --entrypoint '' ep echo x", "x"),
            ("run --rm --entrypoint echo -w /tmp ep x", "x")]:
        with sk.case(line):
            sk(line).says(want)
    with sk.case("--entrypoint drops the image's command"):
        sk("run --rm --entrypoint echo ep").says("")
    with sk.case("inspect"):
        sk("create --name cc ep x").ok
        eq(sk.get("cc", "{{.Path}} {{json .Args}} {{.Config.User}} {{.Config.WorkingDir}} {{.Config.StopSignal}} {{.Config.Labels.l}}"),
           '/bin/echo ["ep","x"] app /work/dir SIGINT m')
    with sk.case("no command"):
        sk("load -q", input=lib.docker_archive(lib.busybox_layer(), tag="none", config={"Cmd": None})).ok
        sk("run --rm none").exits(125, "no command specified")
    for name, config, code in [
            ("wrong kind of Cmd", {"Cmd": "a string"}, None), ("Env without =", {"Env": ["PATH=/bin", "JUSTNAME", "=x", ""]}, 0),
            ("USER 0:0:0", {"User": "0:0:0"}, None), ("USER -1", {"User": "-1"}, None), ("USER 2^32", {"User": "4294967296"}, None),
            ("USER 2^32-1", {"User": "4294967295"}, None), ("USER :", {"User": ":"}, None),
            ("WORKDIR of /proc/self/fd", {"WorkingDir": "/proc/self/fd/8"}, None), ("WORKDIR relative", {"WorkingDir": "rel/dir"}, None),
            ("WORKDIR with dots", {"WorkingDir": "/../../../tmp"}, 0), ("VOLUME with dots", {"Volumes": {"/../../x": {}}}, 0), ("VOLUME empty", {"Volumes": {"": {}}}, None),
            ("VOLUME /", {"Volumes": {"/": {}}}, None), ("health is a string", {"Healthcheck": "x"}, None),
            ("health with odd times", {"Healthcheck": {"Test": ["CMD", "true"], "Interval": -5}}, None), ("StopSignal odd", {"StopSignal": "NOSUCH"}, None),
            ("ExposedPorts odd", {"ExposedPorts": {"x/y/z": {}, "99999999/tcp": {}}}, None), ("Labels null", {"Labels": None}, 0)]:
        with sk.case("image config: " + name):
            tag = "odd"
            r = sk("load -q", input=lib.docker_archive(lib.busybox_layer(), tag=tag, config=config))
            if r.code == 0:
                r = sk("run --rm odd sh -c", "id -u; pwd; echo fine")
                if code == 0:
                    r.prints("fine")
                elif r.code == 0:
                    no_match(r.out, r"/fd/8", "cwd")
                    if "USER" in name and name != "USER :":
                        no_match(r.out, r"^0$", "uid")
                else:
                    true(r.code in (1, 125, 126, 127), "125..127, got %d" % r.code)
            else:
                r.exits(None, ".")


def test_terminal(sk):
    with sk.case("run -it"):
        t = Terminal(sk, "run --rm -it busybox sh", rows=31, cols=97)
        t.expect("# ")
        t.send("tty; stty size; echo $TERM; test -t 2 && echo iste''rm\n")
        t.expect("/dev/(pts/0|console)")
        t.expect("31 97")
        t.expect("xterm")
        t.expect("isterm")
        t.size(50, 120)
        t.send("stty size\n")
        until(lambda: t.send("stty size\n") or (t.read(0.3) and "50 120" in t.seen), "the terminal's new size arrives")
        t.seen = ""
        t.send("sleep 1000\n")
        t.expect("sleep 1000")
        until(lambda: t.send("\x03") or (t.read(0.3) and "# " in t.seen), "Ctrl-C ends sleep")
        t.send("exit 9\n")
        t.exits(9)
    with sk.case("line discipline is the container's"):
        t = Terminal(sk, "run --rm -it busybox cat")
        t.send("hello\r")
        t.expect("hello\r\n(.|\n)*hello")
        t.send("\x04")
        t.exits(0)
    with sk.case("detach with Ctrl-P Ctrl-Q, attach, exit"):
        t = Terminal(sk, "run -it --name dd busybox sh")
        t.expect("# ")
        t.send("X=kept\n")
        t.expect("# ")
        t.send("\x10")
        t.send("\x11")
        t.exits(0)
        eq(sk.status("dd"), "running")
        t = Terminal(sk, "attach dd")
        t.send("echo is-$X\n")
        t.expect("is-kept")
        t.send("exit 5\n")
        t.exits(5)
        eq(sk.get("dd", "{{.State.ExitCode}}"), "5")
    with sk.case("Ctrl-P alone passes"):
        t = Terminal(sk, "run --rm -it busybox sh -c", "stty raw -echo; echo ready; dd bs=1 count=3 2>/dev/null | od -An -tx1")
        t.expect("ready")
        t.send("\x10a\x10")
        t.send("b")
        t.expect("10 61 10")
        t.exits(0)
    with sk.case("--detach-keys"):
        t = Terminal(sk, "run -it --name ee --detach-keys ctrl-x,y busybox sh")
        t.expect("# ")
        t.send("\x18y")
        t.exits(0)
        t = Terminal(sk, "attach --detach-keys q ee")
        t.send("q")
        t.exits(0)
        eq(sk.status("ee"), "running")
    with sk.case("start -ai"):
        sk("create -it --name ff busybox sh").ok
        t = Terminal(sk, "start -ai ff")
        t.expect("# ")
        t.send("exit 3\n")
        t.exits(3)
    with sk.case("TERM given"):
        t = Terminal(sk, "run --rm -it -e TERM=dumb busybox sh -c", "echo t-$TERM-")
        t.expect("t-dumb-")
        t.exits(0)
    with sk.case("fast output is whole"):
        t = Terminal(sk, "run --rm -it busybox seq 1 20000")
        t.exits(0)
        eq(len(re.findall(r"\d+\r\n", t.seen)), 20000, "lines on the terminal")
    with sk.case("hang-up of the terminal leaves the container"):
        t = Terminal(sk, "run -it --name gg busybox sh")
        t.expect("# ")
        os.close(t.slave)
        os.close(t.master)
        t.p.wait(30)
        eq(sk.status("gg"), "running")


def test_signals(sk):
    """The client passes signals on; the exit code is the container's."""
    for sig, want in (signal.SIGINT, 2), (signal.SIGTERM, 15), (signal.SIGHUP, 1), (signal.SIGUSR1, 10):
        with sk.case(sig.name):
            p = sk.popen("run --rm busybox sh -c", "trap 'exit %d' %d; echo ready; while :; do sleep 0.05; done" % (want, want), stdout=subprocess.PIPE)
            eq(p.stdout.readline(), b"ready\n")
            p.send_signal(sig)
            eq(p.wait(30), want)
    with sk.case("--sig-proxy=false"):
        p = sk.popen("run --sig-proxy=false --name ss busybox sh -c", "echo ready; sleep 1000", stdout=subprocess.PIPE)
        eq(p.stdout.readline(), b"ready\n")
        p.send_signal(signal.SIGTERM)
        p.wait(30)
        eq(sk.status("ss"), "running")
    with sk.case("kill -9 of the client leaves the container"):
        p = sk.popen("run --name kk busybox sh -c", "echo ready; sleep 1000", stdout=subprocess.PIPE)
        eq(p.stdout.readline(), b"ready\n")
        p.kill()
        p.wait()
        eq(sk.status("kk"), "running")


def test_detached(sk):
    with sk.case("-d prints the id, output goes to the log"):
        cid = sk("run -d --name aa busybox echo hello").ok.out
        match(cid, "^[0-9a-f]{64}$")
        sk("wait aa").says("0")
        sk("logs aa").says("hello")
    with sk.case("--cidfile"):
        f = sk.dir + "/cid"
        cid = sk("run -d --cidfile", f, "busybox", "true").ok.out
        eq(open(f).read(), cid)
        sk("run --cidfile", f, "busybox", "true").exits(125, "container ID file found")
    with sk.case("-d returns without holding the pipe"):
        r = subprocess.run("%s run -d busybox sleep 1000 | cat" % sk.binary, shell=True, env=sk.env, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, timeout=30)
        match(r.stdout.decode(), "^[0-9a-f]{64}$")
    with sk.case("-d --rm goes away by itself"):
        cid = sk("run -d --rm busybox true").ok.out
        until(lambda: cid[:12] not in sk("ps -aq").ok.out, "the container is removed")
    with sk.case("-dit and attach"):
        sk("run -dit --name sh busybox sh").ok
        t = Terminal(sk, "attach sh")
        t.send("echo he''re\n")
        t.expect("here")
        t.send("\x10\x11")
        t.exits(0)
    with sk.case("-d and -a"):
        sk("run -d -a stdout busybox true").exits(125, "conflicting options")
    with sk.case("not a child: it lives in a session of its own"):
        sk("run -d --name own busybox sleep 1000").ok
        true(os.getsid(sk.supervisor("own")) != os.getsid(0), "a session of its own for the supervisor")


def test_names_and_ids(sk):
    cid = sk("create --name first busybox true").ok.out
    for ref in cid, cid[:12], cid[:4], "first", "/first":
        with sk.case("found by " + ref[:14]):
            eq(sk.get(ref, "{{.Id}}"), cid)
    with sk.case("a made-up name"):
        n = sk.get(sk("create busybox").ok.out, "{{.Name}}")
        match(n, "^/[a-z]+_[a-z]+[0-9]?$")
    with sk.case("ambiguous start of an id"):
        ids = [sk("create busybox").ok.out for _ in range(18)]
        start = [i for i in "0123456789abcdef" if sum(x.startswith(i) for x in ids + [cid]) > 1][0]
        sk("start", start).exits(1, "multiple|ambiguous|no such")
    with sk.case("a name that is another's id"):
        sk("create --name", cid[:12], "busybox", "true").ok
        eq(sk.get(cid, "{{.Name}}"), "/first")
    with sk.case("rename"):
        sk("rename first second").says("")
        eq(sk.get(cid, "{{.Name}}"), "/second")
        sk("inspect first").exits(1)
        sk("create --name first busybox").ok
        sk("rename first second").exits(1, "already in use")
        sk("rename second", "a b").exits(1, "invalid")
        sk("rename nosuch x").exits(1, "no such container")
        sk("rename second second").exits(1, "same")
    with sk.case("a name that a killed create has left"):
        os.mkdir(sk.root + "/tmp/ctr-" + "1" * 64)
        os.symlink("ERERERERERERERERERERERERERERERERERERERERERE=", sk.root + "/names/left")
        sk("create --name left busybox").ok
        os.rmdir(sk.root + "/tmp/ctr-" + "1" * 64)
    with sk.case("a name whose owner is still at removing it"):
        gone, link = sk.root + "/tmp/gone-" + "0" * 64, sk.root + "/names/slow"
        os.mkdir(gone)
        os.symlink("A" * 43 + "=", link)
        with open(gone + "/lock", "w") as lock:
            os.chmod(gone + "/lock", 0o666)
            fcntl.flock(lock, fcntl.LOCK_EX)
            p = sk.popen("create --name slow busybox", stdout=subprocess.DEVNULL)
            time.sleep(0.5)
            os.unlink(link)
        eq(p.wait(30), 0)
        eq(sk.get("slow", "{{.Name}}"), "/slow")
        shutil.rmtree(gone)
    for name in "a", ".a", "-a", "a b", "a/b", "é", "", "a" * 300, "a\nb", "a:b":
        with sk.case("name %r" % name[:9]):
            r = sk("create --name", name, "busybox")
            if name == "":
                r.ok
            else:
                r.exits(125, "invalid container name|too long|only|name")
    for name in "ab", "A.b-c_d", "0x", "a" * 200:
        with sk.case("name %r" % name[:9]):
            sk("create --name", name, "busybox").ok


@only("abfg")
def test_storage(sk):
    """The rung is chosen by what works; each does the same."""
    want = {"a": "overlay", "b": "overlay", "f": "overlay-fuse", "g": "overlay-fuse"}[sk.who]
    with sk.case("chosen"):
        eq(sk("info --format", "{{.Driver}}").ok.out, want)
    for driver in ["overlay", "copy"] + (["overlay-fuse", "fuse"] if sk.who in "fg" else []):
        base = "--storage-driver %s " % driver
        with sk.case(driver):
            sk(base + "run --name %s busybox sh -c" % driver, "echo x >/f; echo y >>/etc/passwd; rm /bin/vi; mkdir /d; mv /home /d/; chmod 700 /bin; "
               "ln /bin/busybox /bin/hard; ls -l /bin/busybox >/dev/null; stat -c %F /").says("directory")
            d = sk("diff", driver).ok.lines
            for line in "A /f", "C /etc/passwd", "D /bin/vi", "A /d", "D /home", "A /bin/hard":
                true(line in d, "%s in %s" % (line, d))
            sk("commit %s %s:c" % (driver, driver)).ok
            sk(base + "run --rm %s:c sh -c" % driver, "cat /f; tail -1 /etc/passwd; ls /bin/vi /d 2>&1; stat -c %a /bin").says(
                "x\ny\nls: /bin/vi: No such file or directory\n/d:\nhome\n700")
            eq(sk.get(driver, "{{.Driver}}"), driver)
            sk("cp %s:/f -" % driver).ok
            sk("cp %s:/etc/passwd" % driver, sk.dir + "/passwd").ok
            eq(open(sk.dir + "/passwd").read().splitlines()[-1], "y")
            with tarfile.open(fileobj=io.BytesIO(sk("export", driver).ok.raw)) as t:
                names = {n.strip("./") for n in t.getnames()}
                true({"f", "d/home", "bin/hard"} <= names and not {"bin/vi", "home"} & names, "the merged tree in an export")
            sk("rm", driver).ok
        with sk.case(driver + ": start again, exec, cp into what runs"):
            sk(base + "run -d --name again busybox sh -c", "echo x >>/count; sleep 1000").ok
            until(lambda: sk("exec again cat /count").out == "x", "the first start has written")
            sk("restart -t 0 again").ok
            until(lambda: sk("exec again cat /count").out == "x\nx", "the second start sees what the first wrote")
            sk("cp", sk.file("given", "given\n"), "again:/etc/given").ok
            sk("exec again sh -c", "cat /etc/given; echo more >>/etc/given").says("given")
            sk("cp again:/etc/given", sk.dir + "/back").ok
            eq(open(sk.dir + "/back").read(), "given\nmore\n")
            sk("commit again again:c").ok
            sk(base + "run --rm again:c sh -c", "cat /count /etc/given").says("x\nx\ngiven\nmore")
            sk("rm -f again").ok
    if sk.who in "ab":
        for driver in "overlay-fuse", "fuse":
            with sk.case("a rung that cannot be had says why: " + driver):
                sk("--storage-driver %s run --rm busybox true" % driver).exits(125, "/dev/fuse")
    with sk.case("by the environment"):
        sk("run --rm busybox true", env={"SKIFF_STORAGE_DRIVER": "copy"}).ok
        sk("info --format", "{{.Driver}}", env={"SKIFF_STORAGE_DRIVER": "copy"}).says("copy")
        sk("run --rm busybox true", env={"SKIFF_STORAGE_DRIVER": "nosuch"}).exits(125, "nosuch.*overlay-fuse, fuse, overlay, copy")
    with sk.case("nothing is mounted or running afterwards"):
        until(lambda: not sk.processes(), "no process is left: %s" % sk.processes())
    with sk.case("rm leaves no files"):
        eq(os.listdir(sk.root + "/containers") if os.path.isdir(sk.root + "/containers") else [], [])


WRITES = r"""
say() { [ "$2" = "$3" ] || echo "$1: '$3' instead of '$2'"; }
links() { stat -c %h "$@" | tr '\n' ' '; }
ino=$(stat -c %i /etc/group); echo x >>/etc/group
say 'inode number after a copy' $ino $(stat -c %i /etc/group)
say 'a lower file that was read stays' "$(wc -c </etc/passwd)" "$(cat /etc/passwd | wc -c)"
exec 3</etc/passwd; echo new >/etc/passwd.new; mv /etc/passwd.new /etc/passwd
say 'a replaced file, still open' root "$(head -n1 <&3 | cut -d: -f1)"; say 'replaced' new "$(cat /etc/passwd)"
exec 4>/tmp/gone; rm /tmp/gone; echo kept >&4; say 'unlinked while open' kept "$(cat /proc/self/fd/4)"
n=$(stat -c %h /bin/busybox); ln /bin/busybox /bin/another; say 'links' "$((n+1)) $((n+1)) " "$(links /bin/busybox /bin/another)"
rm /bin/another; say 'one link less' "$n " "$(links /bin/busybox)"; /bin/busybox true || echo 'busybox does not run'
mkdir -p /a/b/c; echo 1 >/a/b/c/f; mv /a/b /a/moved; say 'a moved directory' 1 "$(cat /a/moved/c/f)"; [ ! -e /a/b ] || echo 'still there'
mv /low/d /low/e && say 'a moved lower directory' '1 2' "$(echo $(cat /low/e/one /low/e/sub/two))"; [ ! -e /low/d ] || echo 'the lower directory is still there'
rm -r /low; mkdir /low; say 'a directory made anew is empty' '' "$(ls -A /low)"; rmdir /low || echo 'low is not empty'
say 'all links of a lower file' '3 3 3 ' "$(links /h1 /h2 /hd/h3)"; echo x >>/h2; say 'written by another name' 'h x' "$(echo $(cat /hd/h3))"; rm /h1; say 'two left' '2 2 ' "$(links /h2 /hd/h3)"
rmdir /etc 2>/dev/null && echo 'a full directory was removed'
dd if=/dev/zero of=/big bs=64k count=100 2>/dev/null; say 'size' 6553600 $(stat -c %s /big); truncate -s 10 /big; say 'cut' 10 $(wc -c </big)
truncate -s 1G /sparse; say 'sparse' '1073741824 ok' "$(stat -c %s /sparse) $([ $(stat -c %b /sparse) -lt 1000 ] && echo ok)"
printf abc | dd of=/sparse bs=1 seek=1000000000 conv=notrunc 2>/dev/null; say 'far away' abc "$(dd if=/sparse bs=1 skip=1000000000 count=3 2>/dev/null)"
echo x >/m; chmod 4750 /m; say 'mode' 4750 $(stat -c %a /m); touch -d '2001-02-03 04:05:06' /m; say 'time' 981173106 $(stat -c %Y /m)
ln -s nowhere /l; say 'link' nowhere "$(readlink /l)"; ln /l /l2; say 'links of a link' "2 2 " "$(stat -c %h /l /l2 | tr '\n' ' ')"
mkfifo /p; (echo through >/p &); say 'fifo' through "$(cat /p)"
i=0; mkdir /many; while [ $i -lt 500 ]; do echo $i >/many/$i; i=$((i+1)); done; say 'many' 500 $(ls /many | wc -l); rm /many/1*; say 'fewer' 389 $(ls /many | wc -l)
for f in /many/*; do mv $f $f.x; done; say 'renamed' 389 $(ls /many | grep -c x$); rm -r /many; [ ! -e /many ] || echo 'many is there'
df / >/dev/null || echo 'no df'; sync
"""


@only("fg")
def test_fuse_rung(sk):
    """A root file system that skiff itself writes, where the kernel mounts no overlay."""
    fuse = "--storage-driver fuse "
    sk("load -q", input=lib.docker_archive(lib.busybox_layer(), lib.tar(
        lib.entry("low/"), lib.entry("low/d/"), lib.entry("low/d/one", "1\n"), lib.entry("low/d/sub/"), lib.entry("low/d/sub/two", "2\n"), lib.entry("hd/"),
        lib.entry("h1", "h\n"), lib.entry("h2", None, tarfile.LNKTYPE, "h1"), lib.entry("hd/h3", None, tarfile.LNKTYPE, "h1")), tag="low")).ok
    with sk.case("what programs do with files"):
        r = sk(fuse + "run --name cc low sh -c", WRITES).ok
        eq((r.out, r.err), ("", ""))
    with sk.case("the mount"):
        sk(fuse + "run --rm busybox grep ' / ' /proc/mounts").prints("^skiff / fuse.skiff rw,.*nodev")
    with sk.case("the image stays as it was"):
        sk(fuse + "run --rm low sh -c", "ls -d /a /big /low /low/d/one 2>/dev/null; stat -c %h /h1; head -n1 /etc/passwd").prints("^/low\n/low/d/one\n3\nroot:")
    with sk.case("--read-only"):
        sk(fuse + "run --rm --read-only busybox touch /x").exits(1, "read-only")
    with sk.case("owners"):
        out = sk(fuse + "run --rm busybox sh -c", "touch /f; chown 33:44 /f; stat -c %u:%g /f; su app -c 'id -u; touch /x' 2>&1; stat -c %u /tmp").ok.lines
        eq(out[0], "33:44" if sk.subuid else "0:0")
        if sk.subuid:
            match("\n".join(out), "1000\n.*permission denied".replace("p", "[pP]", 1))
    with sk.case("several users of one image at once"):
        ps = [sk.popen(fuse + "run --rm busybox sh -c", "for i in 1 2 3 4 5 6 7 8; do cp /bin/busybox /b$i; cmp /bin/busybox /b$i || exit 9; done",
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
        for p in ps:
            out, err = p.communicate(timeout=90)
            eq((p.returncode, out, err), (0, b"", b""))
    with sk.case("the same changes as on overlay"):
        script = "rm -r /home; mkdir /home; echo x >/home/f; mv /low/d /tmp/; ln -s a /low/d; touch /root/.t; rm /bin/vi; chmod 700 /tmp; rm -r /tmp/d/sub; echo x >/tmp/d/sub; mv /root/.t /low/d2"
        trees = []
        for words in fuse, "--storage-driver overlay ":
            sk(words + "run --name same low sh -c", script).ok
            sk("commit same same:" + str(len(trees))).ok
            trees.append((sk("diff same").ok.out, sk("run --rm same:%d sh -c" % len(trees), "find / -xdev ! -path '/proc*' ! -path '/dev*' ! -path '/sys*' | sort | "
                                                     "xargs stat -c '%n %F %a %u %g %h %s' | grep -v ^/.directory").ok.out))
            sk("rm same").ok
        eq(trees[0][0], trees[1][0], "diff")
        eq(trees[0][1], trees[1][1], "the committed tree")
    with sk.case("start again"):
        sk("start -a cc")
        sk("export cc").ok
        sk("rm cc").ok
    with sk.case("a file server that is killed: errors, but an end, and a next start"):
        sk(fuse + "run -d --name kk busybox sh -c", "echo x >>/count; sleep 1000").ok
        until(lambda: sk("exec kk cat /count").out == "x", "it has written")
        for pid, name in sk.processes():
            if name == "skiff-fs":
                lib.kill(pid)
        sk("exec kk ls /").exits(None)
        sk("kill kk")  # unless it has come to an end by itself
        sk("wait kk").ok
        sk("start kk").ok
        until(lambda: sk("exec kk cat /count").out == "x\nx", "it runs again, with its files")
        sk("rm -f kk").ok
    with sk.case("nothing is left"):
        until(lambda: not sk.processes(), "no process is left: %s" % sk.processes())
        eq(os.listdir(sk.root + "/containers"), [])


def test_keep_id(sk):
    uid, gid = os.getuid(), os.getgid()
    d = sk.folder("mine")
    with sk.case("own id, own files"):
        sk("run --rm --userns keep-id -v", d + ":/d", "busybox", "sh", "-c", "id -u; id -g; echo x >/d/f; stat -c %u /d/f").says("%d\n%d\n%d" % (uid, gid, uid))
        eq(os.stat(d + "/f").st_uid, uid)
    with sk.case("root's files are the user's"):
        sk("run --rm -v", d + ":/d", "busybox", "sh", "-c", "id -u; touch /d/g; stat -c %u /d/g").says("0\n0")
        eq(os.stat(d + "/g").st_uid, uid)
    with sk.case("a number mapped to the user where there are no ranges"):
        if not sk.subuid:
            sk("run --rm -u 1000 -v", d + ":/d", "busybox", "sh", "-c", "id -u; touch /d/h; stat -c %u /d/h").says("1000\n1000")
            eq(os.stat(d + "/h").st_uid, uid)
        else:
            sk("run --rm -u 1000 --tmpfs /t:mode=1777 busybox sh -c", "id -u; touch /t/h; stat -c %u /t/h").says("1000\n1000")
    with sk.case("keep-id with -u"):
        sk("run --rm --userns keep-id -u 0 busybox id -u").ok if sk.subuid else None
    with sk.case("--group-add"):
        sk("run --rm --group-add wheel busybox id -G").prints(r"\b10\b") if sk.subuid else None
    with sk.case("--group-add keep-groups"):
        sk("run --rm --group-add keep-groups busybox true").ok


@only("ab")
def test_ownership(sk):
    """chown, useradd-like changes and set*id work as for root, with and without ranges."""
    for name, script, want in [
            ("chown", "touch /f && chown 33:44 /f && echo ok", "ok"), ("chown -h of a link", "ln -s x /l && chown -h 5:5 /l && echo ok", "ok"),
            ("chgrp", "mkdir /d && chgrp 7 /d && echo ok", "ok"), ("chown -R", "chown -R 1000:1000 /etc && echo ok", "ok"),
            ("set-id bit stays", "cp /bin/busybox /s && chmod 4755 /s && stat -c %a /s", "4755"),
            ("su", "su app -c 'id -u' >/tmp/o 2>&1; cat /tmp/o", "1000|0" if not sk.subuid else "1000"),
            ("mknod of a fifo", "mknod /p p && test -p /p && echo ok", "ok"),
            ("tar with owners", "mkdir /t && cd /t && touch a && chown 9:9 a; tar cf ../t.tar a && rm a && tar xf ../t.tar && ls", "a")]:
        with sk.case(name):
            r = sk("run --rm busybox sh -c", script).ok
            true(re.search("^(?:%s)$" % want, r.out), "/%s/ from `%s`, got %r %r" % (want, script, r.out, r.err))
    if sk.subuid:
        with sk.case("owners are seen"):
            sk("run --rm busybox sh -c", "touch /f; chown 33:44 /f; stat -c %u:%g /f").says("33:44")


def test_create_start(sk):
    with sk.case("create, then start"):
        cid = sk("create --name cc busybox echo hi").ok.out
        eq(sk.status("cc"), "created")
        sk("start cc").says("cc")
        sk("wait cc").says("0")
        sk("logs cc").says("hi")
    with sk.case("start -a"):
        sk("start -a cc").says("hi")
    with sk.case("start again keeps the files"):
        sk("create --name ff busybox sh -c", "echo x >>/f; wc -l </f").ok
        for n in "123":
            sk("start -a ff").says(n)
    with sk.case("start -i"):
        sk("create -i --name ii busybox cat").ok
        sk("start -ai ii", input="through").says("through")
    with sk.case("start -a: its exit code"):
        sk("create --name ee busybox sh -c", "exit 33").ok
        sk("start -a ee").exits(33)
    with sk.case("start of several"):
        sk("create --name xx busybox sleep 100").ok
        sk("create --name yy busybox sleep 100").ok
        sk("start xx yy").says("xx\nyy")
        sk("start xx").says("xx")
    with sk.case("start of a missing one goes on"):
        sk("create --name zz busybox sleep 100").ok
        r = sk("start nosuch zz").exits(1, "no such container: nosuch")
        eq((r.out, sk.status("zz")), ("zz", "running"))
    with sk.case("a broken one"):
        sk("create --name broken busybox nosuch").ok
        sk("start broken").exits(1, "not found|no such")
    with sk.case("start --detach-keys, options kept"):
        sk("create --name oo -e A=1 -w /tmp -u app --hostname hh busybox sh -c", "echo $A $(pwd) $(id -u) $(hostname)").ok
        sk("start -a oo").says("1 /tmp 1000 hh")


def test_inspect(sk):
    cid = sk("create --name cc -e A=1 -l x=y -w /tmp -u app --hostname hh --restart on-failure:3 --cap-add NET_ADMIN --read-only "
             "-v vol:/v --tmpfs /t --init --stop-timeout 7 --stop-signal USR1 --entrypoint echo busybox a b").ok.out
    j = sk("inspect cc").ok.json[0]
    for path, want in [
            ("Id", cid), ("Name", "/cc"), ("Path", "echo"), ("Args", ["a", "b"]), ("State.Status", "created"), ("State.Running", False), ("State.Pid", 0),
            ("State.ExitCode", 0), ("State.StartedAt", "0001-01-01T00:00:00Z"), ("RestartCount", 0), ("Config.User", "app"), ("Config.Hostname", "hh"),
            ("Config.Image", "busybox"), ("Config.WorkingDir", "/tmp"), ("Config.Entrypoint", ["echo"]), ("Config.Cmd", ["a", "b"]), ("Config.Tty", False),
            ("Config.Labels", {"x": "y"}), ("Config.StopSignal", "USR1|SIGUSR1"), ("Config.StopTimeout", 7), ("HostConfig.RestartPolicy.Name", "on-failure"),
            ("HostConfig.RestartPolicy.MaximumRetryCount", 3), ("HostConfig.ReadonlyRootfs", True), ("HostConfig.NetworkMode", "host|default"),
            ("HostConfig.Init", True), ("HostConfig.Binds", ["vol:/v"]), ("HostConfig.AutoRemove", False), ("HostConfig.Tmpfs", {"/t": ""}),
            ("Image", sk.get("busybox", "{{.Id}}")), ("HostConfig.LogConfig.Type", "json-file")]:
        with sk.case(path):
            v = j
            for k in path.split("."):
                true(isinstance(v, dict) and k in v, "%s in inspect" % path)
                v = v[k]
            if isinstance(want, str):
                true(re.fullmatch(want, str(v)), "%s %r, got %r" % (path, want, v))
            else:
                eq(v, want, path)
    with sk.case("environment"):
        true({"A=1", "PATH=/bin"} <= set(j["Config"]["Env"]), "A=1 and PATH in %s" % j["Config"]["Env"])
        eq([x for x in j["Config"]["Env"] if x.startswith(("HOSTNAME=", "HOME=", "TERM="))], [], "what is not the user's own")
    for options, want in [("-e HOME=/x -e HOSTNAME=y -t", ["HOME=/x", "HOSTNAME=y"]), ("-t", [])]:
        with sk.case("environment with " + options):
            name = "env%d" % len(want)
            sk("create --name %s %s busybox true" % (name, options)).ok
            env = json.loads(sk.get(name, "{{json .Config.Env}}"))
            eq([x for x in env if x.startswith(("HOSTNAME=", "HOME=", "TERM="))], want)
    with sk.case("namespaces"):
        get = lambda name: sk.get(name, "{{with .HostConfig}}{{.IpcMode}} {{.PidMode}} {{.UTSMode}} {{.UsernsMode}} {{.CgroupnsMode}} {{.NetworkMode}}{{end}}")
        eq(get("cc").split()[:3], ["private"] * 3)
        sk("create --name hosts --pid host --ipc host --uts host --network none busybox true").ok
        eq(get("hosts").split()[:3] + [get("hosts").split()[5]], ["host", "host", "host", "none"])
    with sk.case("what was given"):
        sk("create --name given --dns 9.9.9.9 --dns-opt a:1 --dns-option b:2 --dns-search example.net --add-host h:1.2.3.4 --shm-size 1m --expose 80 "
           "--expose 53/udp --security-opt no-new-privileges --group-add keep-groups --ulimit core=0 --sysctl kernel.msgmax=65000 "
           "--health-cmd true --health-start-interval 2s --health-start-period 9s busybox true").ok
        h = json.loads(sk.get("given", "{{json .HostConfig}}"))
        for key, value in [("Dns", ["9.9.9.9"]), ("DnsSearch", ["example.net"]), ("ExtraHosts", ["h:1.2.3.4"]), ("ShmSize", 1 << 20),
                           ("SecurityOpt", ["no-new-privileges"]), ("GroupAdd", ["keep-groups"]), ("Sysctls", {"kernel.msgmax": "65000"})]:
            eq(h.get(key), value, key)
        eq(sorted(h["DnsOptions"]), ["a:1", "b:2"], "DnsOptions")
        eq(len(h["Ulimits"]), 1, "Ulimits")
        c = json.loads(sk.get("given", "{{json .Config}}"))
        eq(c["ExposedPorts"], {"80/tcp": {}, "53/udp": {}})
        eq((c["Healthcheck"].get("StartInterval"), c["Healthcheck"].get("StartPeriod")), (2 * 10**9, 9 * 10**9), "start interval and period")
    with sk.case("what a script looks at where there is nothing to tell"):
        for template, want in [("{{.NetworkSettings.IPAddress}}|{{.NetworkSettings.Gateway}}|{{.NetworkSettings.MacAddress}}", "||"), ("{{json .NetworkSettings.Ports}}", "{}"),
                               ("{{range .NetworkSettings.Networks}}<{{.IPAddress}}>{{end}}", "<>"), ("{{json .ExecIDs}}", "null"),
                               ("{{json .HostConfig.Devices}} {{json .HostConfig.Links}} {{.HostConfig.CpuQuota}} {{.HostConfig.CpusetCpus}}|", "[] null 0 |")]:
            eq(sk.get("cc", template), want, template)
    with sk.case("capabilities"):
        true(j["HostConfig"].get("CapAdd") in (["NET_ADMIN"], ["CAP_NET_ADMIN"]), "CapAdd of NET_ADMIN, got %s" % j["HostConfig"].get("CapAdd"))
    with sk.case("mounts"):
        m = [x for x in j["Mounts"] if x["Destination"] == "/v"][0]
        eq((m["Type"], m["Name"], m["RW"]), ("volume", "vol", True))
    with sk.case("times"):
        match(j["Created"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z$")
    with sk.case("running"):
        sk.up("rr")
        j = sk("inspect rr").ok.json[0]
        true(os.path.exists("/proc/%d" % j["State"]["Pid"]), "State.Pid of a process of the host")
        eq((j["State"]["Status"], j["State"]["Running"]), ("running", True))
    with sk.case("-s"):
        true("SizeRw" in sk("inspect -s cc").ok.json[0], "SizeRw in inspect -s")


def test_containers_are_apart(sk):
    """What one container writes, another does not see."""
    sk("run --name aa busybox sh -c", "echo secret >/secret; echo $$ >/tmp/x").ok
    sk("run --rm busybox sh -c", "ls /secret /tmp/x 2>&1 | grep -c 'No such'").says("2")


@timeout(100)
def test_limits_best_effort(sk):
    """Without a cgroup --limits=best-effort takes what there is instead, and says what it took."""
    with sk.case("strict is the default, and says how to go on"):
        for more in [], ["--limits", "strict"]:
            r = sk(["run", "--rm", *more, "--memory", "64m", "busybox", "true"]).exits(125, "cgroup")
            match(r.err, "best-effort|administrator")
    with sk.case("another word"):
        sk("run --rm --limits=some --memory 64m busybox true").exits(125, "strict or best-effort")
    with sk.case("without limits there is nothing to say"):
        eq(sk("run --rm --limits=best-effort busybox true").ok.err, "")
    with sk.case("what is said"):
        r = sk("run --rm --limits best-effort --memory 64m --pids-limit 50 --cpus 1 --cpu-shares 100 --memory-reservation 32m busybox true").ok
        match(r.err, "WARNING: limits without a cgroup .*memory: .*pids: .*cpu: 1 .*not limited: cpu-shares, memory-reservation")
        match(sk("run -d --rm --limits best-effort --memory 64m busybox true").ok.err, "WARNING: limits without a cgroup .*memory: ")
    with sk.case("pids"):
        sk("run --rm --limits best-effort --pids-limit 12 busybox sh -c", "for i in $(seq 30); do sleep 1 & done; wait").exits(None, "can't fork")
        sk("run --rm --limits best-effort --pids-limit 40 busybox sh -c", "for i in $(seq 30); do sleep 0 & done; wait").ok
    with sk.case("--ulimit of the same: the smaller one"):
        eq(sk("run --rm --limits best-effort --pids-limit 30 --ulimit nproc=9:9 busybox sh -c", "grep processes /proc/self/limits").ok.out.split()[2:4], ["9", "9"])
        eq(sk("run --rm --limits best-effort --pids-limit 9 --ulimit nproc=30:40 busybox sh -c", "grep processes /proc/self/limits").ok.out.split()[2:4], ["9", "9"])
    with sk.case("processors"):
        sk("run --rm --limits best-effort --cpuset-cpus 0 busybox sh -c", "grep Cpus_allowed_list /proc/self/status").says("Cpus_allowed_list:\t0")
        n = len(os.sched_getaffinity(0))
        sk("run --rm --limits best-effort --cpus 0.5 busybox nproc").says("1")
        sk("run --rm --limits best-effort --cpus %d.0 busybox nproc" % n).says(str(n))
    with sk.case("memory of one process"):
        sk("run --rm --limits best-effort --memory 32m busybox sh -c", "head -c 100m /dev/zero | tail").exits(1, "out of memory")
    with sk.case("memory of all of them: killed, and said to be"):
        one = "{ head -c 20m /dev/zero; sleep 30; } | tail & "
        r = sk("run --name oom --limits best-effort --memory 32m busybox sh -c", one * 3 + "wait").exits(137, "WARNING")
        eq(sk.get("oom", "{{.State.OOMKilled}} {{.State.ExitCode}}"), "true 137")
    with sk.case("below the limit it lives"):
        sk("run --name fine --limits best-effort --memory 100m busybox sh -c", one.replace("30", "1") * 3 + "wait").ok
        eq(sk.get("fine", "{{.State.OOMKilled}}"), "false")


def test_privileged(sk):
    """The kernel's file systems, read-only else, are not with --privileged, as with Docker."""
    for net in "none", "host":
        for words, how in ("", "ro"), ("--privileged", "rw"):
            with sk.case("%s %s" % (net, words)):
                sk("run --rm --network %s %s busybox sh -c" % (net, words), "sed -n 's|^[^ ]* \\(/sys\\|/proc\\|/proc/sys\\) [^ ]* \\(r.\\),.*|\\1 \\2|p' /proc/mounts | sort").says(
                    "/proc rw\n" + "/proc/sys ro\n" * (how == "ro") + "/sys " + how)


@only("root")
@timeout(100)
def test_cgroup_v1(sk):
    """Limits by the hierarchies of v1, where an administrator has given the user a directory in each."""
    kinds = [k for k in ("memory", "cpu", "cpuset", "cpuacct", "pids", "blkio", "freezer") if os.path.exists("/sys/fs/cgroup/%s/cgroup.procs" % k)]
    if "memory" not in kinds:
        raise Skipped("the host has cgroup v2, which the virtual machines test")
    name = "skiff-test-%d" % os.getpid()
    at = lambda kind, file="": "/sys/fs/cgroup/%s/%s/%s" % (kind, name, file)

    def put(path, text):
        with open(path, "w") as f:
            f.write(str(text))

    def get(path):
        with open(path) as f:
            return f.read().strip()
    sk("load -q -i", lib.ENV["FIXTURE_busybox"]).ok
    here = {l.split(":")[1]: l.split(":")[2].strip() for l in open("/proc/self/cgroup")}
    try:
        for kind in kinds:
            os.mkdir(at(kind))
            for f in ("cpuset.cpus", "cpuset.mems") if kind == "cpuset" else ():
                put(at(kind, f), get("/sys/fs/cgroup/cpuset/" + f))
            for f in "", "cgroup.procs", "tasks":
                os.chown(at(kind, f), *sk.user)
            put(at(kind, "cgroup.procs"), os.getpid())
        sk.up("cc", "while :; do echo x; sleep 0.05; done", "--memory", "64m", "--memory-swap", "96m", "--pids-limit", "30", "--cpus", "0.5", "--cpu-shares", "300", "--cpuset-cpus", "0")
        own = sk("exec cc cat /proc/1/cgroup").ok.out
        leaf = "skiff-" + sk.get("cc", "{{.Id}}")[:12]
        with sk.case("its files"):
            for kind, file, want in [("memory", "memory.limit_in_bytes", 64 << 20), ("memory", "memory.memsw.limit_in_bytes", 96 << 20), ("pids", "pids.max", 30), ("cpu", "cpu.cfs_quota_us", 50000),
                                     ("cpu", "cpu.shares", 300), ("cpuset", "cpuset.cpus", 0)]:
                eq(get(at(kind, leaf + "/" + file)), str(want), file)
        with sk.case("exec is in it too"):
            before = int(get(at("pids", leaf + "/pids.current")))
            p = sk.popen("exec cc sleep 20")
            lib.until(lambda: int(get(at("pids", leaf + "/pids.current"))) > before, "it is counted")
            p.kill()
            p.wait()
        with sk.case("stats are those of its files"):
            row = json.loads(sk("stats --no-stream --format", "{{json .}}", "cc").ok.out)
            match(row["MemUsage"], "iB / 64MiB")
            true(abs(int(row["PIDs"]) - int(get(at("pids", leaf + "/pids.current")))) <= 1, row)
        with sk.case("pause"):
            sk("pause cc").ok
            eq(get(at("freezer", leaf + "/freezer.state")), "FROZEN")
            sk("unpause cc").ok
            eq(get(at("freezer", leaf + "/freezer.state")), "THAWED")
        with sk.case("a paused one can be killed"):
            sk.up("pp", "sleep 1000", "--memory", "64m")
            sk("pause pp").ok
            sk("kill pp").ok
            sk.becomes("pp", "{{.State.Status}}", "exited")
            sk("start pp").ok
            sk("pause pp").ok
            sk("rm -f pp").ok
        with sk.case("the processors of the directories above stay"):
            put(at("cpuset", "cpuset.cpus"), "0")
            sk("run --rm --cpuset-cpus 0 busybox true").ok
            eq(get(at("cpuset", "cpuset.cpus")), "0")
        with sk.case("update, up and down"):
            for memory, swap in ("200m", "300m"), ("48m", "60m"):
                sk("update --memory %s --memory-swap %s --pids-limit 44 cc" % (memory, swap)).ok
                eq([get(at("memory", leaf + "/memory." + f)) for f in ("limit_in_bytes", "memsw.limit_in_bytes")], [str(int(x[:-1]) << 20) for x in (memory, swap)])
            eq(get(at("pids", leaf + "/pids.max")), "44")
        sk("rm -f cc").ok
        with sk.case("nothing is left"):
            eq([k for k in kinds if os.path.exists(at(k, leaf))], [])
        with sk.case("memory"):
            sk("run --name oom --memory 32m busybox sh -c", "head -c 200m /dev/zero | tail").exits(137, "")
            eq(sk.get("oom", "{{.State.OOMKilled}}"), "true")
        with sk.case("pids"):
            sk("run --rm --pids-limit 10 busybox sh -c", "for i in $(seq 30); do sleep 1 & done; wait").exits(None, "can't fork")
        with sk.case("cpu"):
            ns = int(sk("run --rm --cpus 0.5 busybox sh -c", "timeout 2 sh -c 'while :; do :; done'; cut -d' ' -f16 /proc/$$/stat").ok.lines[0])
            true(60 <= ns <= 115, "about 100 ticks of 200, got %d" % ns)
        with sk.case("--cgroup-parent"):
            sk("run --rm --cgroup-parent sub --pids-limit 10 busybox true").ok
            true(os.path.exists(at("pids", "sub")), "the parent to be there")
        with sk.case("what v1 has not"):
            sk("run --rm --cgroup-conf memory.high=10000000 busybox true").exits(125, "v1")
        with sk.case("info and doctor"):
            match(sk("info").ok.out, "Cgroup Driver: cgroupfs, version 1")
            match(sk("doctor").out, "(?m)^ok +cgroup delegation")
        with sk.case("a hierarchy that is not the user's"):
            put("/sys/fs/cgroup/memory%s/cgroup.procs" % here["memory"].rstrip("/"), os.getpid())
            sk("run --rm --memory 32m busybox true").exits(125, "administrator")
            sk("run --rm --pids-limit 10 busybox true").ok
    finally:
        for p, _ in sk.processes():
            lib.kill(p)
        for kind in kinds:
            put("/sys/fs/cgroup/%s%s/cgroup.procs" % (kind, here[kind].rstrip("/")), os.getpid())
            for d, _, _ in sorted(os.walk(at(kind)), reverse=True):
                with contextlib.suppress(OSError):
                    os.rmdir(d)
