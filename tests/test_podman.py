"""podman with skiff as its OCI runtime, with and without root."""
import os
import shutil
import subprocess

import lib
from lib import ENV, Skipped, eq, image, match, only, timeout


def podman(sk):
    """podman(…): one of its commands with a store of its own, as the caller."""
    if not shutil.which("podman"):
        raise Skipped("podman, which tests/setup installs")
    runtime = sk.dir + "/bin/skiff-runtime"
    os.makedirs(sk.dir + "/bin", exist_ok=True)
    os.symlink(lib.SKIFF, runtime)
    sk.folder("pod")
    base = ["podman", "--root", sk.dir + "/pod/s", "--runroot", sk.dir + "/pod/r", "--tmpdir", sk.dir + "/pod/t", "--storage-driver", "vfs",
            "--runtime", runtime, "--cgroup-manager", "cgroupfs", "--events-backend", "file"]

    def call(words, *rest, input=None):
        argv = base + words.split() + list(rest)
        p = subprocess.run(argv, input=input, env=sk.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=100,
                           **({} if input is not None else {"stdin": subprocess.DEVNULL}))
        r = lib.Result("podman " + words + " " + " ".join(rest), p.returncode, p.stdout, p.stderr)
        sk.log.append("$ %s\n%s\n%s[%d]\n" % (r.command, r.out, r.err, r.code))
        return r
    call("load -q -i", ENV["FIXTURE_busybox"]).ok
    return call


def commands(sk):
    pod = podman(sk)
    # As many files as anybody may open: podman asks for more than a root of few capabilities may give.
    options = "--network none --ulimit nofile=1024:1024 --ulimit nproc=500:500 "
    with sk.case("run"):
        r = pod("run --rm -e A=b -w /tmp -h there %s busybox sh -c" % options, "id -u; hostname; pwd; echo $A; ulimit -n; exit 5").exits(5)
        eq(r.out, "0\nthere\n/tmp\nb\n1024")
        pod("run --rm %s busybox no-such-program" % options).exits(127)
        pod("run --rm %s busybox /etc/passwd" % options).exits(126)
    with sk.case("standard input"):
        eq(pod("run --rm -i %s busybox wc -c" % options, input=b"x" * 100000).out, "100000")
    with sk.case("another user, few rights"):
        pod("run --rm -u 5:6 --cap-drop all --read-only %s busybox sh -c" % options,
            "id -u; id -g; grep CapBnd /proc/self/status; touch /f 2>/dev/null || echo no").prints(r"^5\n6\nCapBnd:\t0+\nno$")
    with sk.case("exec"):
        pod("run -d --name one %s busybox sh -c" % options, "trap 'exit 3' TERM; while :; do sleep 0.1; done").ok
        pod("exec one sh -c", "exit 9").exits(9)
        pod("exec -u 1:1 -w /tmp -e B=c one sh -c", "id -u; pwd; echo $B").says("1\n/tmp\nc")
        eq(pod("exec -i one cat", input=b"through").out, "through")
        match(pod("ps").ok.out, r" Up .* one$")
        match(pod("top one").ok.out, "trap")
    with sk.case("logs, stop, start, rm"):
        pod("stop one").ok
        pod("inspect -f", "{{.State.Status}} {{.State.ExitCode}} {{.OCIRuntime}}", "one").says("exited 3 %s/bin/skiff-runtime" % sk.dir)
        pod("start one").ok
        pod("exec one true").ok
        pod("kill one").ok
        pod("wait one").says("137")
        pod("rm one").ok
    with sk.case("build"):
        sk.file("ctx/Dockerfile", "FROM busybox\nRUN echo built >/f && id -u >>/f\nCMD cat /f\n")
        pod("build -q --network none --ulimit nofile=1024:1024 --ulimit nproc=500:500 --runtime %s/bin/skiff-runtime -t made" % sk.dir, sk.dir + "/ctx").ok
        pod("run --rm %s made" % options).says("built\n0")


@image(None)
@timeout(300)
@only("a")
def test_rootless(sk):
    commands(sk)


@image(None)
@timeout(300)
@only("root")
def test_rootful(sk):
    commands(sk)
