"""start, stop, kill, pause, restart, wait, rm, ps, events, restart policies, health, supervisors."""
import json
import os
import re
import signal
import subprocess
import time

import lib
from lib import Failed, Skipped, Terminal, eq, image, match, no_match, only, timeout, true, until

WHO = "ab"


def test_stop(sk):
    with sk.case("stop: TERM, and the name is printed"):
        sk.up("aa", "echo trapped; while :; do sleep 1; done")
        until(lambda: sk("logs aa").out == "trapped", "it is ready for signals")
        sk("stop aa").says("aa")
        eq(sk.get("aa", "{{.State.Status}} {{.State.ExitCode}}"), "exited 0")
    with sk.case("one that ignores TERM is killed"):
        sk("run -d --name bb busybox sleep 1000").ok  # pid 1 without a handler
        sk("stop -t 1 bb").says("bb")
        eq(sk.get("bb", "{{.State.ExitCode}} {{.State.OOMKilled}}"), "137 false")
    with sk.case("-t 0"):
        sk("run -d --name cc busybox sleep 1000").ok
        sk("stop -t 0 cc").ok
        eq(sk.get("cc", "{{.State.ExitCode}}"), "137")
    with sk.case("--stop-signal"):
        sk("run -d --name dd --stop-signal USR1 busybox sh -c", "trap 'exit 9' USR1; while :; do sleep 0.05; done").ok
        time.sleep(0.3)
        sk("stop dd").ok
        eq(sk.get("dd", "{{.State.ExitCode}}"), "9")
    with sk.case("--stop-timeout"):
        sk("run -d --name ee --stop-timeout 0 busybox sleep 1000").ok
        sk("stop ee").ok
        eq(sk.get("ee", "{{.State.ExitCode}}"), "137")
    with sk.case("stop -s"):
        sk("run -d --name ff busybox sh -c", "trap 'exit 8' INT; while :; do sleep 0.05; done").ok
        time.sleep(0.3)
        sk("stop -s INT ff").ok
        eq(sk.get("ff", "{{.State.ExitCode}}"), "8")
    with sk.case("with --init"):
        sk("run -d --init --name gg busybox sleep 1000").ok
        sk("stop gg").ok
        eq(sk.get("gg", "{{.State.ExitCode}}"), "143")
    with sk.case("what is stopped stays so"):
        sk("stop aa").says("aa")
    with sk.case("several, one missing"):
        sk.up("hh")
        r = sk("stop nosuch hh").exits(1, "no such container: nosuch")
        eq((r.out, sk.status("hh")), ("hh", "exited"))
    with sk.case("created only"):
        sk("create --name ii busybox").ok
        sk("stop ii").says("ii")


def test_kill(sk):
    sk.up("aa")
    with sk.case("kill"):
        sk("kill aa").says("aa")
        until(lambda: sk.status("aa") == "exited", "it ends")
        eq(sk.get("aa", "{{.State.ExitCode}}"), "137")
    for s in "USR1", "SIGUSR1", "10", "usr1":
        with sk.case("-s " + s):
            sk("run -d --rm --name ss busybox sh -c", "trap 'exit 3' USR1; echo ready; while :; do sleep 0.05; done").ok
            until(lambda: sk("logs ss").out == "ready", "it is ready")
            w = sk.popen("wait ss", stdout=subprocess.PIPE)
            time.sleep(0.2)
            sk("kill -s", s, "ss").says("ss")
            eq(w.communicate(timeout=30)[0], b"3\n")
            until(lambda: "s" not in sk("ps -a --format", "{{.Names}}").ok.lines, "it is removed")
    with sk.case("not running"):
        sk("kill aa").exits(1, "is not running")
    with sk.case("bad signals"):
        for s in "NOSUCH", "0", "-1", "99", "":
            sk(["kill", "-s", s, "a"]).exits(None, ".")


def test_pause(sk):
    sk.up("aa", "i=0; while :; do i=$((i+1)); echo $i >/n; sleep 0.05; done")
    r = sk("pause aa")
    if r.code:
        r.exits(1, "cgroup|freez")  # no delegated cgroup: it must be said
        eq(sk.status("aa"), "running")
        return
    eq(r.out, "aa")
    eq(sk.status("aa"), "paused")
    eq(sk.get("aa", "{{.State.Paused}} {{.State.Running}}"), "true true")
    match(sk("ps --format", "{{.Status}}").ok.out, r"\(Paused\)$")
    sk("pause aa").exits(1, "already paused")
    with sk.case("kill of aa paused one"):
        sk("unpause aa").says("aa")
        eq(sk.status("aa"), "running")
        sk("unpause aa").exits(1, "not paused")
        sk("pause aa").ok
        sk("kill aa").ok
        until(lambda: sk.status("aa") == "exited", "a paused container is killed")
    with sk.case("stop of aa paused one"):
        sk("start aa").ok
        sk("pause aa").ok
        sk("stop -t 1 aa").ok
        eq(sk.status("aa"), "exited")
    with sk.case("not running"):
        sk("pause aa").exits(1, "is not running")
        sk("pause nosuch").exits(1, "no such container")
    with sk.case("the host's processes are not paused with one that sees them"):
        sk("run -d --name hh --pid host busybox sleep 1000").ok
        p = sk.popen("logs -f hh")
        r = sk("pause hh", wait=10)
        true(r.code == 0 or "namespace" in r.err, "a freezer, or a refusal; got %d %s" % (r.code, r.err))
        true(lib.state_of(p.pid) != "T", "another process of the user to go on")
        p.kill()
        p.wait()


def test_restart(sk):
    sk.up("aa", "echo x >>/count; sleep 1000")
    was = sk.pid("aa")
    with sk.case("restart"):
        sk("restart -t 1 aa").says("aa")
        eq(sk.status("aa"), "running")
        true(sk.pid("aa") != was, "another process")
        until(lambda: sk("exec aa sh -c", "wc -l </count").out == "2", "files are kept")
    with sk.case("of a stopped one"):
        sk("kill aa").ok
        sk("restart aa").ok
        eq(sk.status("aa"), "running")
    with sk.case("missing"):
        sk("restart nosuch").exits(1, "no such container")


@timeout(180)
def test_policies(sk):
    with sk.case("on-failure:2"):
        sk("run -d --name ff --restart on-failure:2 busybox sh -c", "echo run; exit 3").ok
        sk.becomes("ff", "{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}}", "exited 2 3")
        eq(len(sk("logs ff").ok.lines), 3)
    with sk.case("on-failure ends with success"):
        sk("run -d --name ok --restart on-failure busybox sh -c", "test -e /once && exit 0; touch /once; exit 1").ok
        sk.becomes("ok", "{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}}", "exited 1 0")
    with sk.case("no"):
        sk("run -d --name nn --restart no busybox false").ok
        sk("wait nn").says("1")
        eq(sk.get("nn", "{{.RestartCount}}"), "0")
    for policy in "always", "unless-stopped":
        with sk.case(policy):
            sk("run -d --name", policy, "--restart", policy, "busybox", "sh", "-c", "echo run; sleep 0.1").ok
            until(lambda: int(sk.get(policy, "{{.RestartCount}}")) >= 2, "it is started again")
            sk("stop -t 1", policy).ok
            eq(sk.status(policy), "exited")
            time.sleep(1)
            eq(sk.status(policy), "exited")
    with sk.case("a killed one is started again"):
        sk("run -d --name kk --restart always busybox sleep 1000").ok
        was = sk.pid("kk")
        os.kill(was, signal.SIGKILL)
        until(lambda: sk.status("kk") == "running" and sk.pid("kk") not in (0, was), "it runs again")
    with sk.case("kill by the user ends it, for unless-stopped as for always"):
        sk("kill kk").ok
        time.sleep(1)
        eq(sk.status("kk"), "exited")
    with sk.case("rm -f while it waits for its restart"):
        sk("run -d --name ww --restart always busybox false").ok
        until(lambda: int(sk.get("ww", "{{.RestartCount}}")) >= 3, "it is started again")
        sk("rm -f ww").ok
        sk("inspect ww").exits(1)
    with sk.case("a command that is missing is not tried for ever in the foreground"):
        sk("run --restart on-failure:1 busybox nosuch").exits(127)


def test_update(sk):
    """Limits of what runs need its cgroup (tests/vm has one); those of what does not are kept for the next start."""
    sk("create --name cr busybox true").ok
    h = lambda name: json.loads(sk.get(name, "{{json .HostConfig}}"))
    with sk.case("of a created one"):
        sk("update --memory 64m --memory-swap 128m --memory-reservation 32m --cpus 1.5 --cpu-shares 512 --pids-limit 50 --blkio-weight 100 --cpuset-cpus 0 cr").says("cr")
        got = h("cr")
        for key, want in [("Memory", 64 << 20), ("MemorySwap", 128 << 20), ("MemoryReservation", 32 << 20), ("NanoCpus", 1500000000), ("CpuShares", 512),
                          ("PidsLimit", 50), ("BlkioWeight", 100), ("CpusetCpus", "0")]:
            eq(got[key], want, key)
    with sk.case("what is not said stays"):
        sk("update --pids-limit 60 cr").ok
        got = h("cr")
        eq((got["Memory"], got["PidsLimit"], got["CpuShares"]), (64 << 20, 60, 512))
    with sk.case("a swap limit below the memory limit that is there"):
        sk("update --memory-swap 32m cr").exits(1, "memory ?swap")
        eq(h("cr")["MemorySwap"], 128 << 20)
    with sk.case("taken back"):
        sk("update --memory -1 --memory-swap -1 --cpus 0 --pids-limit -1 --cpu-quota -1 cr").ok
        got = h("cr")
        true(got["Memory"] <= 0 and got["PidsLimit"] <= 0 and got["CpuQuota"] <= 0 and got["NanoCpus"] <= 0, "no limits, got %s" % got)
    with sk.case("container update, several, one missing"):
        sk("create --name ct busybox true").ok
        r = sk("container update --pids-limit 70 cr nosuch ct").exits(1, "no such container: nosuch")
        eq((r.lines, h("cr")["PidsLimit"], h("ct")["PidsLimit"]), (["cr", "ct"], 70, 70))
    with sk.case("of a running one without a cgroup"):
        sk.up("rr")
        sk("update --memory 64m rr").exits(1, "cgroup")
        eq(h("rr")["Memory"], 0)
    with sk.case("--restart of a running one takes effect at once"):
        sk("update --restart on-failure:5 rr").says("rr")
        eq(sk.get("rr", "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}"), "on-failure 5")
        sk("run -d --name once --restart no busybox sh -c", "while [ ! -e /go ]; do sleep 0.1; done; rm /go; exit 3").ok
        sk("update --restart always once").ok
        sk("exec once touch /go").ok
        until(lambda: sk.get("once", "{{.RestartCount}} {{.State.Running}}") == "1 true", "it is started again")
        sk("update --restart no once").ok
        sk("exec once touch /go").ok
        sk.becomes("once", "{{.State.Status}}", "exited")
        time.sleep(0.5)
        eq(sk.get("once", "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}"), "exited 3 1")
    with sk.case("--restart of one that is removed by itself"):
        sk("run -d --rm --name auto busybox sleep 1000").ok
        sk("update --restart always auto").exits(1, "autoremove|--rm")
    with sk.case("events"):
        match(sk("events --since 10m --until 0s --filter container=cr").ok.out, r"container update")


@timeout(180)
def test_health(sk):
    with sk.case("healthy, unhealthy, healthy"):
        sk("run -d --name hh --health-interval 1s --health-retries 2 --health-timeout 5s --health-cmd", "test ! -e /bad",
           "busybox", "sleep", "1000").ok
        match(sk.get("hh", "{{.State.Health.Status}}"), "^(starting|healthy)$")
        sk.becomes("hh", "{{.State.Health.Status}}", "healthy")
        sk("ps --format", "{{.Status}}").prints(r"^Up .*\(healthy\)$")
        sk("exec hh touch /bad").ok
        sk.becomes("hh", "{{.State.Health.Status}}", "unhealthy")
        true(int(sk.get("hh", "{{.State.Health.FailingStreak}}")) >= 2, "a failing streak of two")
        sk("ps -q --filter health=unhealthy").prints("^[0-9a-f]{12}$")
        log = json.loads(sk.get("hh", "{{json .State.Health.Log}}"))
        true(1 <= len(log) <= 5 and log[-1]["ExitCode"] == 1, "a log of at most five, got %s" % log)
        sk("exec hh rm /bad").ok
        sk.becomes("hh", "{{.State.Health.Status}}", "healthy")
    with sk.case("its output is kept"):
        sk("run -d --name oo --health-cmd", "echo checked; exit 0", "--health-interval", "1s", "busybox", "sleep", "1000").ok
        sk.becomes("oo", "{{.State.Health.Status}}", "healthy")
        match(sk.get("oo", "{{json .State.Health.Log}}"), "checked")
    with sk.case("a check that hangs"):
        sk("run -d --name tt --health-cmd", "sleep 1000", "--health-interval", "1s", "--health-timeout", "1s", "--health-retries", "1", "busybox", "sleep", "1000").ok
        sk.becomes("tt", "{{.State.Health.Status}}", "unhealthy")
        until(lambda: sk("top tt").ok.out.count("sleep 1000") <= 3, "the hanging check is ended")
    with sk.case("a check with more output than is kept does not wait for its reader"):
        sk("run -d --name mm --health-cmd", "head -c 300000 /dev/zero | tr '\\0' x", "--health-interval", "1s", "--health-timeout", "9s", "--health-retries", "1", "busybox", "sleep", "1000").ok
        until(lambda: sk.get("mm", "{{.State.Health.Status}}") != "starting", "it ends")
        eq(sk.get("mm", "{{.State.Health.Status}} {{len (index .State.Health.Log 0).Output}}"), "healthy 4096")
    with sk.case("a container that stops its checks before they execute does not stop its supervisor"):
        sk("run -d --name ss --health-cmd true --health-interval 1s --health-timeout 1s --health-retries 1 busybox sh -c", "while :; do kill -STOP -- -1; done 2>/dev/null").ok
        until(lambda: "exceeded" in sk.get("ss", "{{json .State.Health.Log}}"), "one was stopped, and that is noticed")
        sk("rm -f ss").ok
    with sk.case("a check that cannot execute"):
        sk("load -q", input=lib.docker_archive(lib.busybox_layer(), tag="hn", config={"Healthcheck": {"Test": ["CMD", "/nosuch"], "Interval": 10**9, "Retries": 1}})).ok
        sk("run -d --name nn hn sleep 1000").ok
        sk.becomes("nn", "{{.State.Health.Status}}", "unhealthy")
        eq(sk.get("nn", "{{(index .State.Health.Log 0).ExitCode}}"), "127")
        match(sk.get("nn", "{{json .State.Health.Log}}"), "/nosuch.*no such file")
    with sk.case("of the image, --no-healthcheck, start period"):
        sk("load -q", input=lib.docker_archive(lib.busybox_layer(), tag="hc", config={
            "Healthcheck": {"Test": ["CMD", "true"], "Interval": 10**9, "Retries": 1}})).ok
        sk("run -d --name ii hc sleep 1000").ok
        sk.becomes("ii", "{{.State.Health.Status}}", "healthy")
        sk("run -d --name no --no-healthcheck hc sleep 1000").ok
        no_match(sk("ps --filter name=^no$ --format", "{{.Status}}").ok.out, "health")
        sk("run -d --name sp --health-cmd false --health-interval 1s --health-retries 1 --health-start-period 300s busybox sleep 1000").ok
        time.sleep(2.5)
        eq(sk.get("sp", "{{.State.Health.Status}}"), "starting")
    with sk.case("start interval: looked at sooner while it starts"):
        sk("run -d --name si --health-cmd true --health-interval 1h --health-start-period 1h --health-start-interval 500ms busybox sleep 1000").ok
        sk.becomes("si", "{{.State.Health.Status}}", "healthy")
        sk("load -q", input=lib.docker_archive(lib.busybox_layer(), tag="hs", config={
            "Healthcheck": {"Test": ["CMD", "true"], "Interval": 3600 * 10**9, "StartPeriod": 3600 * 10**9, "StartInterval": 5 * 10**8}})).ok
        sk("run -d --name sj hs sleep 1000").ok
        sk.becomes("sj", "{{.State.Health.Status}}", "healthy")
    with sk.case("--no-healthcheck and --health-cmd"):
        sk("run --no-healthcheck --health-cmd true busybox true").exits(125, "conflict")
    with sk.case("events"):
        match(sk("events --since 10m --until 0s --filter container=hh").ok.out, r"health_status: (un)?healthy")


def test_wait_and_rm(sk):
    with sk.case("wait"):
        sk("run -d --name aa busybox sh -c", "sleep 0.3; exit 6").ok
        sk("wait aa").says("6")
        sk("wait aa aa").says("6\n6")
        sk("wait nosuch").exits(1, "no such container")
    with sk.case("rm"):
        sk("rm aa").says("aa")
        sk("rm aa").exits(1, "no such container")
        sk("rm -f aa").ok
    with sk.case("rm of aa running one"):
        sk.up("bb")
        sk("rm bb").exits(1, "running")
        eq(sk.status("bb"), "running")
        pid = sk.pid("bb")
        sk("rm -f bb").says("bb")
        until(lambda: not os.path.exists("/proc/%d" % pid), "its process ends")
    with sk.case("rm -v takes anonymous volumes, not named ones"):
        sk("create --name cc -v /anon -v named:/n busybox").ok
        eq(len(sk("volume ls -q").ok.lines), 2)
        sk("rm -v cc").ok
        sk("volume ls -q").says("named")
    with sk.case("--rm takes them as well"):
        sk("run --rm -v /anon busybox true").ok
        sk("volume ls -q").says("named")
    with sk.case("--rm and the name that it has been given since"):
        sk("run -d --rm --name first busybox sh -c", "while [ ! -e /go ]; do sleep 0.05; done").ok
        sk("rename first second").ok
        sk("exec second touch /go").ok
        until(lambda: sk("create --name second busybox").code == 0, "the name is free")
        sk("rm second").ok
        eq(sk("events --since 10m --until 0s --filter event=destroy --format", "{{.Actor.Attributes.name}}").ok.lines[-2:], ["second"] * 2)
    with sk.case("--rm, and the name is taken away by who sees the end, or with the next collection"):
        for i, end in enumerate(("wait n0", "stop -t 0 n1", "rm -f n2", "exec n3 touch /go")):
            sk("run -d --rm --name n%d busybox sh -c" % i, "while [ ! -e /go ]; do sleep 0.05; done").ok
            if i == 0:
                sk("exec n0 kill -9 1"), sk("exec n0 touch /go")
            sk(end)
        until(lambda: sk("inspect n3").code, "the last one is gone")
        until(lambda: not os.listdir(sk.root + "/tmp"), "and its files")
        true(not {"n0", "n1", "n2"} & set(os.listdir(sk.root + "/names")), "three names to be taken away")
        sk("system prune -f").ok
        true("n3" not in os.listdir(sk.root + "/names"), "the fourth name to be taken away")
    with sk.case("state and logs where skiff 0.1 had them"):
        sk("run --name old --log-opt max-size=1k --log-opt max-file=2 busybox sh -c", "seq 100; exit 7").exits(7)
        said, own = sk("logs old").ok.out, sk.root + "/containers/" + sk.get("old", "{{.Id}}")
        for f in os.listdir(own + "/run"):
            os.rename(own + "/run/" + f, own + "/" + f)
        os.rmdir(own + "/run")
        eq(sk("logs old").ok.out, said)
        eq(sk.get("old", "{{.State.ExitCode}}"), "7")
        sk("start -a old").exits(7)
        sk("rm old").ok
    with sk.case("several"):
        sk("create --name dd busybox").ok
        sk("create --name ee busybox").ok
        r = sk("rm dd nosuch ee").exits(1, "nosuch")
        eq(r.out, "dd\nee")
    with sk.case("container prune"):
        cid = sk("create --name ff busybox").ok.out
        sk.up("gg")
        r = sk("container prune -f").ok
        match(r.out, "Deleted Containers:\n%s\n\nTotal reclaimed space: " % cid)
        sk("ps -a --format", "{{.Names}}").says("gg")
    with sk.case("prune filters"):
        sk("create --name hh -l keep busybox").ok
        sk("create --name ii busybox").ok
        sk("container prune -f --filter label!=keep").ok
        eq(sorted(sk("ps -a --format", "{{.Names}}").ok.lines), ["gg", "hh"])
        sk("container prune -f --filter until=1h").ok
        eq(sorted(sk("ps -a --format", "{{.Names}}").ok.lines), ["gg", "hh"])
    with sk.case("prune asks"):
        r = sk("container prune", input="y\n").ok
        match(r.out, "WARNING! This will remove all stopped containers.")
        sk("ps -a --format", "{{.Names}}").says("gg")
    with sk.case("create and remove many"):
        before = sorted(os.listdir(sk.root + "/containers"))
        for _ in range(10):
            sk("run --rm busybox true").ok
        eq(sorted(os.listdir(sk.root + "/containers")), before)


def test_ps(sk):
    ids = {n: sk.up(n, "sleep 1000", *o) for n, o in [("one", ["-l", "k=1"]), ("two", ["-l", "k=2", "-v", "vol:/v"])]}
    sk("run --name three busybox sh -c", "exit 3").exits(3)
    ids["four"] = sk("create --name four -l k busybox true").ok.out
    with sk.case("table"):
        r = sk("ps").ok
        match(r.lines[0], r"^CONTAINER ID   IMAGE +COMMAND +CREATED +STATUS +PORTS +NAMES$")
        match(r.lines[1], r'^%s   busybox   "sh -c .*…"   .* ago +Up .* +two$' % ids["two"][:12])
        eq(len(r.lines), 3)
    with sk.case("-a: newest first"):
        eq(sk("ps -a --format", "{{.Names}}").ok.lines, ["four", "three", "two", "one"])
    with sk.case("no containers: only a head"):
        eq(len(sk("ps --filter name=nosuch").ok.lines), 1)
    with sk.case("--no-trunc"):
        sk("ps --no-trunc").prints(ids["two"])
        sk("ps -q --no-trunc").prints("^" + ids["two"] + "$")
        sk("ps --no-trunc --filter name=two --format", "{{.Command}}").prints("wait")
    for line, want in [
            ("-n 1", "four"), ("--last 2", "four three"), ("-l", "four"), ("-a --filter status=exited", "three"), ("--filter status=created", "four"),
            ("--filter status=running", "two one"), ("-a --filter exited=3", "three"), ("-a --filter exited=0", ""), ("--filter name=o", "two one"),
            ("--filter name=^one$", "one"), ("-f label=k=1", "one"), ("-a -f label=k", "four two one"), ("-f id=%s" % ids["one"][:12], "one"),
            ("-f volume=vol", "two"), ("-f volume=/v", "two"), ("-a -f ancestor=busybox", "four three two one"), ("-f ancestor=nosuch", ""),
            ("-a -f before=two", "one"), ("-a -f since=two", "four three"), ("-f label=k=1 -f name=two", ""), ("-f name=one -f name=two", "two one"),
            ("-a -f status=exited -f status=created", "four three"), ("-f network=host", "two one"), ("-f network=nosuch", "")]:
        with sk.case("ps " + line):
            eq(" ".join(sk("ps --format {{.Names}} " + line).ok.lines), want)
    for line, pattern in [("-f status=nosuch", "status"), ("-f exited=x", "exited|invalid"), ("-f health=nosuch", "health"), ("-f before=nosuch", "no such container"), ("-n x", "invalid")]:
        with sk.case("bad " + line):
            sk("ps " + line).exits(None, pattern)
    with sk.case("columns"):
        eq(sk("ps -a -f name=three --format", "{{.State}} {{.Image}} {{.Command}} {{.Ports}}").ok.out, 'exited busybox "sh -c \'exit 3\'" ')
        match(sk("ps -a -f name=three --format", "{{.Status}}").ok.out, r"^Exited \(3\) .* ago$")
        match(sk("ps -a -f name=one --format", "{{.Status}}").ok.out, r"^Up (Less than a|\d+|About a) \w+$")
        eq(sk("ps -a -f name=four --format", "{{.Status}}").ok.out, "Created")
        match(sk("ps -s -a -f name=three --format", "{{.Size}}").ok.out, r"^[\d.]+k?B \(virtual [\d.]+[kM]B\)$")
        match(sk("ps -f name=two --format", "{{.Mounts}} {{.LocalVolumes}} {{.Networks}}").ok.out, r"^vol 1 host$")
        match(sk("ps -f name=two --format", "{{.CreatedAt}}").ok.out, r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4} \w+$")
    with sk.case("an image whose name has gone"):
        sk("tag busybox gone").ok
        sk("create --name five gone true").ok
        sk("rmi gone").ok
        match(sk("ps -a -f name=five --format", "{{.Image}}").ok.out, "^gone$|^[0-9a-f]{12}$")


def test_port(sk):
    sk("create --name cc busybox").ok
    sk("port cc").says("")
    sk("port nosuch").exits(1, "no such container")


def test_events(sk):
    sk("run --name aa -l x=y busybox true").ok
    sk("rm aa").ok
    sk("volume create vv").ok
    sk("volume rm vv").ok
    with sk.case("in order"):
        r = sk("events --since 10m --until 0s --filter type=container --format {{.Action}}").ok
        got = [x for x in r.lines if x in ("create", "start", "die", "destroy")]
        eq(got, ["create", "start", "die", "destroy"])
    with sk.case("text"):
        r = sk("events --since 10m --until 0s").ok
        match(r.out, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}\S* container create [0-9a-f]{64} \(.*image=busybox.*name=aa.*\)$")
        match(r.out, r"container die [0-9a-f]{64} \(.*exitCode=0.*\)")
        match(r.out, r"volume create vv ")
        match(r.out, r"image load ")
    with sk.case("filters"):
        eq(sk("events --since 10m --until 0s -f event=die --format {{.Type}}").ok.out, "container")
        eq(sk("events --since 10m --until 0s -f container=nosuch").ok.out, "")
        eq(len(sk("events --since 10m --until 0s -f label=x=y -f event=start").ok.lines), 1)
        true("Action" in json.loads(sk("events --since 10m --until 0s -f event=die --format json").ok.out), "JSON")
    with sk.case("live"):
        p = sk.popen("events --filter event=start --format {{.Actor.Attributes.name}}", stdout=subprocess.PIPE)
        time.sleep(0.5)
        sk("run --rm --name live busybox true").ok
        eq(p.stdout.readline(), b"live\n")
        p.send_signal(signal.SIGINT)
        true(p.wait(30) in (0, 130, -2), "events to end on Ctrl-C")


def test_after_the_supervisor(sk):
    """ps is right, whatever became of the supervisor or the container."""
    with sk.case("kill -9 of the supervisor"):
        sk("run -d --name aa busybox sleep 1000").ok
        pid, sup = sk.pid("aa"), sk.supervisor("aa")
        os.kill(sup, signal.SIGKILL)
        until(lambda: lib.state_of(sup) in ("", "Z"), "it is dead")
        # Either the container ended with its supervisor or it is still managed; never a lie.
        until(lambda: (sk.status("aa") == "running") == os.path.exists("/proc/%d/ns" % pid), "ps agrees with what runs")
        shown = sk("ps -aq -f status=running").ok.out != ""
        eq(shown, sk.status("aa") == "running")
        sk("rm -f aa").ok
        until(lambda: not os.path.exists("/proc/%d" % pid), "rm -f ends its process")
    with sk.case("it starts again afterwards"):
        sk("run -d --name bb busybox sleep 1000").ok
        os.kill(sk.supervisor("bb"), signal.SIGKILL)
        until(lambda: sk.status("bb") == "exited", "it is seen to have ended (it is %s)" % sk.status("bb"))
        true(sk.get("bb", "{{.State.ExitCode}}") != "0", "an exit code that is no success")
        sk("start bb").ok
        eq(sk.status("bb"), "running")
        sk("rm -f bb").ok
    with sk.case("one whose first process has changed its user"):
        if sk.subuid:
            for options in "--rm", "--restart always":
                sk("run -d --name su %s busybox sh -c" % options, "exec su app -c 'echo ready; exec sleep 1000'").ok
                pid, sup = sk.pid("su"), sk.supervisor("su")
                until(lambda: sk("logs su").ok.out == "ready", "it has")
                os.kill(sup, signal.SIGKILL)
                sk.becomes("su", "{{.State.Status}}", "exited")
                true(lib.state_of(pid) in ("", "Z"), "no process of one that has exited")
                sk("rm su").ok
    with sk.case("kill -9 of the first process"):
        sk("run -d --name cc busybox sleep 1000").ok
        os.kill(sk.pid("cc"), signal.SIGKILL)
        sk("wait cc").says("137")
    with sk.case("a pid that was taken by another process"):
        sk("run -d --name dd busybox sleep 1000").ok
        os.kill(sk.supervisor("dd"), signal.SIGKILL)
        until(lambda: sk.status("dd") == "exited", "it has ended")
        other = subprocess.Popen(["sleep", "1000"])
        for base, _, files in os.walk(sk.root + "/containers"):  # as if the number came round
            for f in files:
                p = os.path.join(base, f)
                if f.endswith(".json") and os.path.getsize(p) < 1 << 20:
                    text = open(p).read()
                    new = re.sub(r'("(?:[Pp]id|supervisor)": ?)\d+', r"\g<1>%d" % other.pid, text).replace('"exited"', '"running"')
                    if new != text:
                        open(p, "w").write(new)
        eq(sk("ps -q").ok.out, "", "running containers")
        sk("kill dd").exits(1, "is not running")
        sk("rm -f dd").ok
        eq(other.poll(), None, "the other process lives")
        other.kill()
        other.wait()
    with sk.case("the terminal's group gets Ctrl-C: a detached one does not"):
        sk("run -d --name ee busybox sleep 1000").ok
        eq(sk.status("ee"), "running")
        true(os.getpgid(sk.supervisor("ee")) != os.getpgid(0), "a process group of its own")
    with sk.case("standard streams are not held"):
        for fd in "0", "1", "2":
            to = os.readlink("/proc/%d/fd/%s" % (sk.supervisor("ee"), fd))
            true(to == "/dev/null" or sk.root in to or "deleted" not in to and "pipe" not in to, "no stream of the caller's, got " + to)
    with sk.case("SIGTERM at any moment of a start does not leave the container to itself"):
        for i in range(20):
            p = sk.popen("run --rm --init busybox sleep 1000", stderr=subprocess.DEVNULL)
            time.sleep(i / 1000)
            p.terminate()
            p.wait(30)
        until(lambda: len(sk("ps -q").ok.lines) == 1, "no other container runs")
    with sk.case("nothing is left of those that have ended"):
        sk("rm -f ee").ok
        sk("rm -f cc").ok
        until(lambda: not sk.processes(), "no process is left: %s" % sk.processes())


@only("b")
@timeout(150)
def test_many(sk):
    """Thirty at once: each has its own result."""
    for i in range(30):
        sk("run -d --name m%d busybox sh -c" % i, "exit %d" % i).ok
    eq(sk(["wait"] + ["m%d" % i for i in range(30)]).ok.lines, [str(i) for i in range(30)])
    eq(len(sk("ps -aq").ok.lines), 30)
    sk(["rm"] + ["m%d" % i for i in range(30)]).ok
    with sk.case("started and removed at the same time"):
        for _ in range(3):
            a = sk.popen("run --name same busybox true", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            b = sk.popen("run --name same busybox true", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            codes = sorted([a.wait(60), b.wait(60)])
            eq(codes, [0, 125], "exit codes of two with one name")
            sk("rm -f same").ok
    with sk.case("rm -f by two at once"):
        sk.up("rr")
        ps = [sk.popen("rm -f rr", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(3)]
        for p in ps:
            true(p.wait(60) in (0, 1), "an ordered end")
        sk("inspect rr").exits(1)
    with sk.case("stop by three at once"):
        sk.up("ss")
        ps = [sk.popen("stop -t 2 ss", stdout=subprocess.DEVNULL) for _ in range(3)]
        eq([p.wait(60) for p in ps], [0, 0, 0])


@only("b")
def test_socket_attacks(sk):
    """Nonsense on the supervisor's socket, half-open clients: it stays up."""
    import socket
    sk.up("cc")
    cid = sk.get("cc", "{{.Id}}")
    paths = [os.path.join(d, f) for d, _, fs in os.walk(sk.root + "/containers/" + cid) for f in fs
             if not os.path.islink(os.path.join(d, f)) and (os.lstat(os.path.join(d, f)).st_mode & 0o170000) == 0o140000]
    for path in paths:
        eq(os.stat(path).st_mode & 0o077, 0, "mode of the socket for others")
        for kind in socket.SOCK_SEQPACKET, socket.SOCK_STREAM:
            open_ones = []
            for data in [b"", b"\0", b"\xff" * 4, b"x" * 60000, b"\0" * 60000, b'{"a":', os.urandom(3000), b"A", b"W\1", b"K", b"K\xff\xff\xff\xff",
                         b"S\x41\0\0\0", b"I" * 60000, b"D" * 9, b"U", b"X\0\0\0\0"] * 8:
                s = socket.socket(socket.AF_UNIX, kind)
                s.settimeout(2)
                try:
                    here = os.getcwd()
                    os.chdir(os.path.dirname(path))
                    s.connect(os.path.basename(path))
                    os.chdir(here)
                    if data:
                        s.send(data)
                except OSError:
                    os.chdir(here)
                open_ones.append(s)
            for s in open_ones[::2]:
                s.close()
    eq(sk.status("cc"), "running")
    sk("exec cc echo x").says("x")
    sk("stop -t 2 cc").ok


@timeout(100)
def test_clients(sk):
    """Clients that do not read, and more of them than it serves: they are no matter to anybody else."""
    import socket
    sk("run -d --name cc busybox sh -c", "while [ ! -e /go ]; do sleep 0.05; done; yes aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa").ok
    sup, at = sk.supervisor("cc"), sk.root + "/containers/" + sk.get("cc", "{{.Id}}") + "/run"

    def client(say):
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here = os.open(".", os.O_RDONLY)
        os.chdir(at)
        try:
            s.connect("sock")
            s.send(say)
        except OSError:
            pass  # it has enough of them
        finally:
            os.fchdir(here)
            os.close(here)
        return s
    with sk.case("1,000 at once"):
        fds = lambda: len(os.listdir("/proc/%d/fd" % sup))
        before = fds()
        for _ in range(4):
            them = [client(b"A\1") for _ in range(250)]
            true(fds() < before + 70, "descriptors, got %d after %d" % (fds(), before))
            for s in them:
                s.close()
        until(lambda: fds() <= before, "all are gone (%d of %d)" % (fds(), before))
        sk("exec cc echo x").says("x")
    with sk.case("one that never reads"):
        deaf = client(b"A\1")
        sk("exec cc touch /go").ok
        time.sleep(1)
        for words in "exec cc true", "kill -s WINCH cc", "kill cc":
            sk(words, wait=15).ok
        deaf.close()
        sk("wait cc", wait=15).says("137")


@timeout(100)
def test_commit_sparse(sk):
    """A file with holes costs what it holds: in the layer, in an export, and in what they are unpacked to."""
    make = ("truncate -s 1024G /t; dd if=/bin/busybox of=/t bs=4096 seek=200000000 count=3 conv=notrunc 2>/dev/null; truncate -s 1024G /t; truncate -s 5M /empty; "
            "dd if=/bin/busybox of=/parts bs=1M count=1 2>/dev/null; truncate -s 9M /parts; echo end >> /parts; cp /bin/busybox /full")
    look = "stat -c '%n %s' /t /empty /parts /full; dd if=/t bs=4096 skip=200000000 count=3 2>/dev/null | md5sum; md5sum /empty /parts /full; [ $(du -k /t | cut -f1) -lt 40000 ]"
    sk("run --name cc busybox sh -c", make + "; " + look).ok
    want = sk("start -a cc").ok.out
    sk("commit cc sparse").ok
    eq(sk("run --rm sparse sh -c", look).ok.out, want)
    with sk.case("tar reads it"):
        with open(sk.file("e.tar"), "wb") as f:
            p = sk.popen("export cc", stdout=f)
            eq(p.wait(60), 0)
        out = subprocess.run(["tar", "-tvf", sk.dir + "/e.tar", "t", "empty", "parts"], stdout=subprocess.PIPE, check=True).stdout.decode()
        eq(sorted(int(l.split()[2]) for l in out.splitlines()), [5 << 20, (9 << 20) + 4, 1 << 40])
        true(os.path.getsize(sk.dir + "/e.tar") < 30 << 20, "a small archive")
