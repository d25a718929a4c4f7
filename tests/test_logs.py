"""logs and log drivers."""
import json
import os
import re
import signal
import subprocess
import time

import lib
from lib import eq, image, match, no_match, only, timeout, true, until

WHO = "ab"


def log_files(sk, name):
    base = os.path.join(sk.root, "containers", sk.get(name, "{{.Id}}"), "run")
    return [os.path.join(base, f) for f in sorted(os.listdir(base)) if re.search(r"log(\.json)?(\.\d+)?$|json\.log", f)
            or "log" in f and os.path.isfile(os.path.join(base, f))]


def test_logs(sk):
    sk("run --name aa busybox sh -c", "echo one; sleep 0.2; echo two >&2; sleep 0.2; echo three").ok
    with sk.case("streams apart"):
        r = sk("logs aa").ok
        eq((r.out, r.err), ("one\nthree", "two"))
    for line, want in [("--tail 1", ["three"]), ("-n 2", ["three"]), ("--tail 0", []), ("--tail all", ["one", "three"]), ("--tail -1", ["one", "three"]),
                       ("-n 99", ["one", "three"]), ("--since 1h", ["one", "three"]), ("--since 2020-01-01", ["one", "three"]), ("--until 2020-01-01T00:00:00Z", []),
                       ("--since 2100-01-01T00:00:00", []), ("--until 1h", []), ("--since 0", ["one", "three"]), ("-f", ["one", "three"])]:
        with sk.case("logs " + line):
            eq(sk("logs %s aa" % line).ok.lines, want)
    with sk.case("-t"):
        for line in sk("logs -t aa").ok.lines:
            match(line, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (one|three)$")
    with sk.case("--since a time that -t showed"):
        stamp = sk("logs -t aa").ok.lines[-1].split()[0]
        eq(sk("logs --since", stamp, "aa").ok.lines, ["three"])
    with sk.case("--details"):
        sk("run --name det --log-opt labels=x -l x=y busybox echo z").ok
        match(sk("logs --details det").ok.out, r"^(x=y )?z$")
    with sk.case("container logs"):
        sk("container logs aa").says("one\nthree")
    for line, pattern in [("nosuch", "no such container"), ("--since nonsense a", "since|time|invalid|pars")]:
        with sk.case("bad " + line):
            sk("logs " + line).exits(1 if line == "nosuch" else None, pattern)
    with sk.case("json-file format"):
        files = log_files(sk, "aa")
        lines = [json.loads(x) for f in files for x in open(f)]
        eq([(x["stream"], x["log"]) for x in lines if x["stream"] == "stdout"], [("stdout", "one\n"), ("stdout", "three\n")])
        true(all(re.match(r"^\d{4}-.*Z$", x["time"]) for x in lines), "times in RFC 3339")
        eq(os.stat(files[0]).st_mode & 0o077, 0, "mode of the log for others")
    with sk.case("created only"):
        sk("create --name bb busybox").ok
        sk("logs bb").says("")
    with sk.case("several runs"):
        sk("start -a aa").ok
        eq(sk("logs aa").ok.lines, ["one", "three", "one", "three"])


def test_content(sk):
    with sk.case("no newline at the end"):
        sk("run --name aa busybox printf abc").ok
        eq(sk("logs aa").ok.raw, b"abc")
    with sk.case("binary, quotes, escapes"):
        sk("run --name bb busybox printf", r"\001\"\\\\\t\377\303\251\n").ok
        raw = sk("logs bb").ok.raw
        true(raw.startswith(b'\x01\\"\\\\\t') and raw.endswith(b"\xc3\xa9\n"), "the bytes, got %r" % raw)
    with sk.case("a line of 100 kB"):
        sk("run --name cc busybox sh -c", "head -c 100000 /dev/zero | tr '\\0' x; echo").ok
        eq(sk("logs cc").ok.raw, b"x" * 100000 + b"\n")
    with sk.case("many lines"):
        sk("run -d --name dd busybox seq 1 50000").ok
        sk("wait dd").ok
        eq(lib.digest(sk("logs dd").ok.raw), lib.digest(b"".join(b"%d\n" % i for i in range(1, 50001))))
        eq(sk("logs --tail 3 dd").ok.lines, ["49998", "49999", "50000"])
    with sk.case("a terminal"):
        sk("run -dt --name ee busybox echo x").ok
        sk("wait ee").ok
        eq(sk("logs ee").ok.raw, b"x\r\n")
    with sk.case("NUL, empty lines"):
        sk("run --name ff busybox printf", r"\n\na\000b\n").ok
        eq(sk("logs ff").ok.raw, b"\n\na\0b\n")


def test_follow(sk):
    with sk.case("to its end"):
        sk("run -d --name aa busybox sh -c", "for i in 1 2 3 4 5; do echo $i; sleep 0.2; done").ok
        eq(sk("logs -f aa").ok.lines, ["1", "2", "3", "4", "5"])
    with sk.case("as it comes"):
        sk("run -d --name bb busybox sh -c", "while [ ! -e /go ]; do sleep 0.05; done; echo went; sleep 1000").ok
        p = sk.popen("logs -f bb", stdout=subprocess.PIPE)
        sk("exec bb touch /go").ok
        eq(p.stdout.readline(), b"went\n")
        p.send_signal(signal.SIGINT)
        p.wait(30)
    with sk.case("-f --tail 1"):
        p = sk.popen("logs -f --tail 1 bb", stdout=subprocess.PIPE)
        eq(p.stdout.readline(), b"went\n")
        sk("kill bb").ok
        p.wait(30)
    with sk.case("of one that is removed with its only line"):
        sk("run -d --rm --name dd busybox sh -c", "while [ ! -e /go ]; do sleep 0.05; done; echo went").ok
        log = "%s/containers/%s/run/log.json" % (sk.root, sk.get("dd", "{{.Id}}"))
        p = sk.popen("logs -f dd", stdout=subprocess.PIPE)
        until(lambda: os.path.exists(log), "the follower holds the log")
        sk("exec dd touch /go").ok
        eq(p.communicate(timeout=30)[0], b"went\n")
    with sk.case("through a rotation"):
        sk("run -d --name cc --log-opt max-size=10k --log-opt max-file=3 busybox sh -c", "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; done; sleep 0.5; echo end").ok
        r = sk("logs -f cc").ok
        eq(r.lines[-1], "end")


def test_rotation(sk):
    sk("run -d --name rr --log-opt max-size=20k --log-opt max-file=3 busybox seq 1 20000").ok
    sk("wait rr").ok
    files = log_files(sk, "rr")
    with sk.case("at most three"):
        true(2 <= len(files) <= 3, "two or three log files, got %s" % files)
        true(all(os.path.getsize(f) <= 21 * 1024 + 200 for f in files), "none above the limit, got %s" % [os.path.getsize(f) for f in files])
    with sk.case("the end is kept, in order, whole"):
        lines = sk("logs rr").ok.lines
        eq(lines[-1], "20000")
        eq(lines, [str(i) for i in range(20001 - len(lines), 20001)])
    with sk.case("max-file=1"):
        sk("run -d --name ss --log-opt max-size=10k --log-opt max-file=1 busybox seq 1 9000").ok
        sk("wait ss").ok
        eq((len(log_files(sk, "ss")), sk("logs --tail 1 ss").ok.out), (1, "9000"))
    with sk.case("a flood keeps within its limit"):
        sk("run -d --name flood --log-opt max-size=100k --log-opt max-file=2 busybox sh -c", "yes aaaaaaaaaaaaaaaaaaaaaaaaaaaa | head -n 1000000; echo end").ok
        sk("wait flood").says("0")
        true(sum(os.path.getsize(f) for f in log_files(sk, "flood")) < 230000, "at most 200 kB of log")
        sk("logs --tail 1 flood").says("end")


def test_drivers(sk):
    with sk.case("none"):
        sk("run --name nn --log-driver none busybox echo x").says("x")
        sk("logs nn").exits(1, "does not support reading|logging driver")
    with sk.case("local"):
        r = sk("run --name ll --log-driver local busybox echo x")
        true(r.code == 0 and sk("logs ll").out == "x" or r.code == 125 and re.search("(?i)log", r.err), "the driver local to work or to be refused")
    with sk.case("a log path that is a symlink is not followed"):
        sk("run --name ss busybox echo x").ok
        sk("create --name tt busybox echo evil").ok
        target = sk.file("target", "precious")
        base = sk.root + "/containers/" + sk.get("tt", "{{.Id}}") + "/run"
        name = os.path.basename(log_files(sk, "ss")[0])
        if os.path.lexists(base + "/" + name):
            os.unlink(base + "/" + name)
        os.symlink(target, base + "/" + name)
        sk("start -a tt")
        eq(open(target).read(), "precious", "the file a log path pointed to")
