"""Slurm with skiff as its OCI runtime: a cluster of one node, started by the test as root."""
import contextlib
import json
import os
import pwd
import shutil
import subprocess

import lib
from lib import Skipped, eq, match, timeout, true, until
from test_real import free_port

WHO = "root"

# The user, the job, the step, the task: what Slurm calls a container here.
OLD = """RunTimeQuery="{skiff} state %u.%j.%s.%t"
RunTimeRun="exec {skiff} run --bundle=%b %u.%j.%s.%t"
RunTimeKill="{skiff} kill -a %u.%j.%s.%t"
RunTimeDelete="{skiff} delete --force %u.%j.%s.%t"
"""
# Since 23.02 a step may have several tasks on a node, but when it has ended, Slurm asks for task -1
# alone: the question is where all tasks of the step can be removed.
NEW = """RunTimeQuery="{skiff} delete --force --regex '^%u[.]%j[.]%s[.]'; echo {{}}"
RunTimeRun="exec {skiff} run --bundle=%b %u.%j.%s.%t"
RunTimeKill="true"
RunTimeDelete="true"
"""


class Cluster:
    """munged, slurmctld and slurmd on loopback; what is submitted to them, the test's user submits."""

    def __init__(self, sk, track):
        self.sk, self.dir, self.states, self.daemons = sk, sk.folder("slurm"), sk.dir + "/states-%u", []
        for d in "spool", "state", "munge":
            os.makedirs(self.dir + "/" + d, 0o755, exist_ok=True)
        sk.file("slurm/munge/key", os.urandom(128), 0o600)
        ports, host = [free_port() for _ in range(2)], os.uname().nodename.split(".")[0]
        sk.file("slurm/slurm.conf", """ClusterName=skiff
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthInfo=socket={dir}/munge/socket
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd.log
SlurmdDebug=debug
ProctrackType=proctrack/{track}
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
KillWait=2
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=500
PartitionName=all Nodes=node Default=YES OverSubscribe=FORCE:4
""".format(dir=self.dir, ports=ports, host=host, track=track))
        version = lib.tool("srun", "--version", env=dict(os.environ, SLURM_CONF=self.dir + "/slurm.conf")).decode()
        self.new = tuple(map(int, match(version, r"(\d+)\.(\d+)").groups())) >= (23, 2)
        sk.file("slurm/oci.conf", (NEW if self.new else OLD).format(skiff="%s oci --root=%s" % (lib.SKIFF, self.states)))
        if self.new:
            sk.file("slurm/cgroup.conf", "CgroupPlugin=disabled\n")
        sk.env["SLURM_CONF"] = self.dir + "/slurm.conf"
        munge = self.dir + "/munge/"
        self.daemon("munged", "--foreground", "--force", "--key-file=" + munge + "key", "--socket=" + munge + "socket",
                    "--pid-file=" + munge + "pid", "--log-file=" + munge + "log", "--seed-file=" + munge + "seed")
        until(lambda: os.path.exists(munge + "socket"), "munged listens")
        self.daemon("slurmctld", "-D", "-c")
        self.daemon("slurmd", "-D")
        until(lambda: self("sinfo", "-h", "-o", "%T").out == "idle", "the node is up: " + self.log())

    def daemon(self, *argv):
        with open("%s/%s.out" % (self.dir, argv[0]), "wb") as f:
            self.daemons.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=f, stderr=f, env=self.sk.env))

    def log(self):
        with contextlib.suppress(OSError), open(self.dir + "/slurmd.log", errors="replace") as f:
            return f.read()
        return ""

    def popen(self, *argv, **kw):
        uid, gid = self.sk.user
        return subprocess.Popen(argv, user=uid, group=gid, extra_groups=[], cwd=self.sk.home, env=dict(self.sk.env, FROM="a b"),
                                stdin=kw.pop("stdin", subprocess.DEVNULL), stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)

    def __call__(self, *argv, input=None):
        """Runs one of Slurm's commands as the user."""
        return self.end(self.popen(*argv, stdin=subprocess.DEVNULL if input is None else subprocess.PIPE), input)

    def end(self, p, input=None):
        out, err = p.communicate(input, timeout=60)
        r = lib.Result(" ".join(p.args), p.returncode, out, err)
        self.sk.log.append("$ %s\n%s\n%s[%d]\n" % (r.command, r.out, r.err, r.code))
        return r

    def script(self, name, text):
        return self.sk.file("home/" + name, "#!/bin/sh\n" + text, 0o755)

    def batch(self, script, *options):
        """A batch job that has ended: exit code, and what it wrote."""
        out = self.sk.home + "/batch.out"
        with contextlib.suppress(OSError):
            os.unlink(out)
        r = self("sbatch", "-W", "-o", out, *options, script)
        with open(out) as f:
            return r.code, f.read().strip()

    def clean(self):
        """Nothing is left of any container: no job, no process, no state."""
        until(lambda: self("squeue", "-h").out == "", "no job is left: " + self("squeue", "-h").out)
        states = self.states.replace("%u", pwd.getpwuid(self.sk.user[0]).pw_name)
        eq(os.listdir(states), [], "states left")
        eq([n for n in os.listdir(self.dir + "/spool") if n.startswith("oci-")], [], "bundles left")

    def stop(self):
        for p in reversed(self.daemons):
            p.terminate()
        for p in reversed(self.daemons):
            with contextlib.suppress(subprocess.TimeoutExpired):
                p.wait(10)


@contextlib.contextmanager
def cluster(sk, track):
    for program in "munged", "slurmctld", "slurmd", "srun":
        if not shutil.which(program):
            raise Skipped(program + ", which tests/setup installs")
    c = Cluster(sk, track)
    try:
        yield c
    finally:
        c.stop()


def bundle(sk):
    """What a user does: an image's files, and a configuration for it. A folder is shared as /shared."""
    path = sk.folder("bundle")
    shared = sk.folder("shared")
    for d in path, shared, sk.home:
        os.chown(d, *sk.user)
    sk("create --name source busybox").ok
    sk("export -o", path + "/root.tar", "source").ok
    sk("rm source").ok
    uid, gid = sk.user
    lib.tool("sh", "-c", "mkdir rootfs && tar -xf root.tar -C rootfs && mkdir -p rootfs/proc rootfs/dev rootfs/sys rootfs/tmp && rm root.tar",
             cwd=path, user=uid, group=gid, extra_groups=[])
    sk("oci spec --rootless -b", path).ok
    with open(path + "/config.json") as f:
        spec = json.load(f)
    spec["mounts"].append({"destination": "/shared", "type": "bind", "source": shared, "options": ["bind", "rw"]})
    with open(path + "/config.json", "w") as f:
        json.dump(spec, f)
    return path, shared


def waiting(job, shared, name):
    """Until a container has said in the shared folder that it is up."""
    until(lambda: os.path.exists(shared + "/" + name) or job.poll() is not None, "%s is up" % name)
    true(job.poll() is None, "%s to run, but it ended" % name)


@timeout(240)
def test_slurm(sk):
    path, shared = bundle(sk)
    box = "--container=" + path
    with cluster(sk, "linuxproc") as c:
        with sk.case("output, identity, environment"):
            r = c("srun", box, "/bin/sh", "-c", "id -u; hostname; echo $FROM $SLURM_STEP_ID; echo $0 >&2")
            r.says("0\nskiff\na b 0")
            match(r.err, "^/bin/sh$")
        with sk.case("standard input"):
            eq(c("srun", box, "/bin/wc", "-c", input=b"x" * 100000).out, "100000")
        with sk.case("exit codes"):
            for code, script in (7, "exit 7"), (0, "exit 0"), (137, "sh -c 'kill -9 $$'; exit $?"):
                c("srun", box, "/bin/sh", "-c", script).exits(code)
            c("srun", box, "no-such-program").exits(127, "no-such-program")
        with sk.case("two steps of a job at the same time"):
            one = "touch /shared/%s; until [ -e /shared/%s ]; do sleep 0.1; done; echo %s of $SLURM_JOB_ID; exit %d"
            script = c.script("two", "srun --overlap -n1 {0} /bin/sh -c '{1}' &\nsrun --overlap -n1 {0} /bin/sh -c '{2}'\necho $?\nwait $!\necho $?\n".format(
                box, one % ("a", "b", "a", 3), one % ("b", "a", "b", 4)))
            code, out = c.batch(script, "-n2")
            eq((code, [x for x in sorted(out.split("\n")) if "srun" not in x][:2]), (0, ["3", "4"]), out)
            match(out, r"^a of (\d+)\n(.*\n)*b of \1|^b of (\d+)\n(.*\n)*a of \3")
        if c.new:
            with sk.case("two tasks of a step"):
                r = c("srun", "-n2", box, "/bin/sh", "-c", "echo $SLURM_PROCID of $SLURM_NTASKS; exit $((SLURM_PROCID + 3))").exits(4)
                eq(sorted(r.lines), ["0 of 2", "1 of 2"])
        with sk.case("scancel --signal reaches the program"):
            p = c.popen("srun", "-J", "trap", box, "/bin/sh", "-c", "trap 'echo got; exit 5' TERM; touch /shared/trap; while :; do sleep 0.1; done")
            waiting(p, shared, "trap")
            c("scancel", "-s", "TERM", "-n", "trap").ok
            r = c.end(p).exits(5)
            eq(r.out, "got")
        with sk.case("a batch job in a container"):
            eq(c.batch(c.script("in", "hostname; echo $SLURM_JOB_NAME; exit 6\n"), box), (6, "skiff\nin"))
        with sk.case("a batch job that calls skiff run"):
            script = c.script("call", "%s run --rm -e SLURM_JOB_NAME busybox sh -c 'echo $SLURM_JOB_NAME; exit 9'\n" % lib.SKIFF)
            eq(c.batch(script), (9, "call"))
        with sk.case("nothing is left"):
            c.clean()


@timeout(200)
def test_slurm_kills(sk):
    """scancel of what does not listen, where Slurm finds it and where it finds only the runtime."""
    path, shared = bundle(sk)
    for track in "linuxproc", "pgid":
        with cluster(sk, track) as c, sk.case(track):
            p = c.popen("srun", "-J", "deaf", "--container=" + path, "/bin/sh", "-c",
                        "trap '' TERM INT; (trap '' TERM; exec sleep 4321) & touch /shared/%s; while :; do sleep 0.1; done" % track)
            waiting(p, shared, track)
            c("scancel", "-n", "deaf").ok
            match(c.end(p).err, "CANCELLED")
            c.clean()
            alive = lambda: subprocess.run(["pgrep", "-u", str(sk.user[0]), "-f", "^sleep 4321"], stdout=subprocess.DEVNULL).returncode == 0
            until(lambda: not alive(), "no process of the container is left")
            if not c.new:
                match(c.log(), "RunTimeDelete rc:0 ", "what root did for the user")
