"""The command line itself: help, versions, spellings, flags, templates, filters, bad values."""
import json
import os
import re
import resource

import lib
from lib import Failed, eq, image, match, no_match, only, true

COMMANDS = """attach commit cp create diff events exec export history images import info inspect kill
load login logout logs pause port ps pull push rename restart rm rmi run save start stats stop tag top
unpause update version wait""".split()
BOTH = [  # what is said in two ways
    ("container ls", "ps"), ("container ps", "ps"), ("container list", "ps"), ("image ls", "images"),
    ("image list", "images"), ("container ls -a -q", "ps -aq"), ("system info", "info"),
    ("image history busybox", "history busybox"),
]
LATER = """search network compose context manifest buildx plugin config node secret service stack swarm trust
checkpoint""".split()  # Docker's commands that skiff has not


@image(None)
def test_help(sk):
    for c in COMMANDS + ["container", "image", "volume", "system", "system df", "system prune",
                         "container prune", "image prune", "volume create", "volume prune", "doctor",
                         "completion"]:
        with sk.case("help " + c):
            r = sk(c + " --help").ok
            match(r.out, r"(?i)usage:\s+(skiff|\w+) ?.*" + c.split()[-1], c + " --help")
    with sk.case("help run is help COMMAND"):
        eq(sk("help run").ok.out, sk("run --help").ok.out)
        match(sk("help run").out, r"--entrypoint")
    with sk.case("no arguments"):
        r = sk("")
        match(r.out + r.err, r"(?i)usage", "help")
    with sk.case("--help"):
        for c in "run", "exec", "pull", "images":
            match(sk("--help").ok.out, r"^\s+%s\s" % c)


@image(None)
def test_version(sk):
    with sk.case("--version is one line"):
        eq(len(sk("--version").ok.lines), 1)
    with sk.case("version"):
        sk("version").prints(r"(?i)version:? +\S+")
    with sk.case("version --format"):
        true(sk("version --format", "{{.Client.Version}}").ok.out in sk("--version").out, "one version")
    with sk.case("version --format json"):
        true("Client" in sk("version --format json").ok.json, "Client in version --format json")
    with sk.case("licences"):
        r = sk("version --licenses").ok
        for name in "musl", "libarchive", "libseccomp", "curl":
            match(r.out, "(?i)" + name, "version --licenses")


@image(None)
def test_info(sk):
    with sk.case("info"):
        r = sk("info").ok
        match(r.out, r"(?m)^ *Containers: 0", "info")
        match(r.out, r"(?m)^ *Images: 0", "info")
        match(r.out, r"(?m)^ *Storage Driver: \S+", "info")
    with sk.case("info --format json"):
        j = sk("info --format", "{{json .}}").ok.json
        for k in "Containers", "ContainersRunning", "ContainersPaused", "ContainersStopped", "Images", \
                "Driver", "DockerRootDir", "ServerVersion", "KernelVersion", "OperatingSystem", "OSType", \
                "Architecture", "NCPU", "MemTotal":
            true(k in j, k + " in info")
        eq(j["DockerRootDir"], sk.root)
        eq(j["OSType"], "linux")
    with sk.case("info --format field"):
        sk("info --format", "{{.Images}}").says("0")


@image(None)
def test_doctor(sk):
    r = sk("doctor")
    true(r.code in (0, 1), "doctor to end with 0 or 1, got %d" % r.code)
    for what in "user namespace", "subuid", "overlay", "seccomp", "/dev/fuse", "cgroup":
        with sk.case("doctor names " + what):
            match(r.out, "(?i)" + what)
    with sk.case("doctor sees the ranges"):
        line = [x for x in r.lines if "subuid" in x.lower()][0].lower()
        true(bool(re.search(r"\bworks\b|\bok\b", line)) == sk.subuid, "subuid %s, got: %s" % (sk.subuid, line))


@image(None)
@only("b")
def test_completion(sk):
    for shell in "bash", "zsh", "fish":
        with sk.case(shell):
            out = sk("completion " + shell).ok.out
            for c in COMMANDS:
                true(re.search(r"\b%s\b" % c, out), "%s in the completion for %s" % (c, shell))
    with sk.case("another shell"):
        sk("completion tcl").exits(None)


@only("b")
def test_spellings(sk):
    sk("create --name one busybox true").ok
    for a, b in BOTH:
        with sk.case(a + " = " + b):
            drop = lambda s: re.sub(r"\d+ \w+ ago|About an? \w+ ago|Less than a second ago", "", s)
            eq(drop(sk(a).ok.out), drop(sk(b).ok.out))
    rows = [("container inspect one", "inspect one"), ("image inspect busybox", "inspect busybox")]
    for a, b in rows:
        with sk.case(a + " = " + b):
            eq(sk(a).ok.json, sk(b).ok.json)
    with sk.case("container run --rm"):
        sk("container run --rm busybox echo x").says("x")
    with sk.case("container rm"):
        sk("container rm one").says("one")
    with sk.case("image rm"):
        sk("image rm busybox").prints("Untagged: busybox:latest")


@image(None)
@only("b")
def test_later_commands(sk):
    """A command of Docker's that is missing says so; any other word is no command."""
    for c in LATER:
        for words in c, c + " ls", c + " create --flag x":
            with sk.case(words):
                r = sk(words).exits(1, "'%s' is not supported yet by skiff" % c)
                eq(r.out, "")
    for words, shown in [("serach", "serach"), ("container nosuch", "container nosuch"), ("image nosuch --x", "image nosuch"),
                         ("volume nosuch a b", "volume nosuch"), ("nosuch network", "nosuch")]:
        with sk.case(words):
            sk(words).exits(1, "'%s' is not a skiff command" % shown)


@only("b")
def test_flags(sk):
    """Combined, with =, separated, --, negated: as pflag takes them."""
    for line, want in [
            ("run --rm -e A=1 busybox sh -c 'echo $A'", "1"),
            ("run --rm -eA=1 busybox sh -c 'echo $A'", "1"),
            ("run --rm --env A=1 busybox sh -c 'echo $A'", "1"),
            ("run --rm --env=A=1 busybox sh -c 'echo $A'", "1"),
            ("run --rm=true busybox echo x", "x"),
            ("run --rm -it=false busybox echo x", "x"),
            ("run --rm -i --tty=false busybox echo x", "x"),
            ("run --rm -- busybox echo x", "x"),
            ("run --rm busybox echo -- --rm -it", "-- --rm -it"),
            ("run --rm -iw /tmp busybox pwd", "/tmp"),
            ("run --rm -iw/tmp busybox pwd", "/tmp"),
            ("run --rm --workdir=/tmp busybox pwd", "/tmp"),
            ("run --rm -e A=1 -e A=2 busybox sh -c 'echo $A'", "2"),
            ("run --rm busybox echo a 'b  c' ''", "a b  c "),
            ("run --rm busybox sh -c 'echo $0 $1' x y", "x y")]:
        with sk.case(line):
            sk(line).says(want)


@only("b")
def test_bad_flags(sk):
    """Docker's words and exit codes; never silently ignored, nothing left behind."""
    sk("create --name there busybox").ok
    for line, code, pattern in [
            ("nosuchcommand", None, r"nosuchcommand.*is not a|unknown command"),
            ("run", None, r"requires at least 1 argument"),
            ("run --nosuch busybox", 125, r"unknown flag: --nosuch"),
            ("run -Y busybox", 125, r"unknown shorthand flag: 'Y' in -Y"),
            ("run --name", 125, r"flag needs an argument: --name"),
            ("run -e", 125, r"flag needs an argument: 'e' in -e"),
            ("run --rm=perhaps busybox true", 125, r"invalid"),
            ("run --init=2 busybox true", 125, r"invalid"),
            ("run --shm-size lots busybox true", 125, r"invalid"),
            ("run --shm-size -1 busybox true", 125, r"invalid"),
            ("run --ulimit nofile busybox true", 125, r"invalid"),
            ("run --ulimit nosuch=1 busybox true", 125, r"invalid ulimit|ulimit"),
            ("run --ulimit nofile=20:10 busybox true", 125, r"soft.*hard|ulimit"),
            ("run --network nosuch busybox true", 125, r"network nosuch|nosuch"),
            ("run --restart sometimes busybox true", 125, r"restart"),
            ("run --restart on-failure:x busybox true", 125, r"restart|retry"),
            ("run --restart always --rm busybox true", 125, r"conflicting options"),
            ("run --name -bad busybox true", 125, r"Invalid container name"),
            ("run --name ../x busybox true", 125, r"Invalid container name"),
            ("run --name aa/b busybox true", 125, r"Invalid container name"),
            ("run --cap-add NOSUCH busybox true", 125, r"NOSUCH"),
            ("run --cap-drop NOSUCH busybox true", 125, r"NOSUCH"),
            ("run --security-opt nosuch=1 busybox true", 125, r"security-opt|nosuch"),
            ("run --security-opt seccomp=/no/such busybox true", 125, r"/no/such|seccomp"),
            ("run --stop-signal NOSUCH busybox true", 125, r"signal"),
            ("run --pid nosuch busybox true", 125, r"pid"),
            ("run --ipc nosuch busybox true", 125, r"ipc"),
            ("run --uts nosuch busybox true", 125, r"uts"),
            ("run --userns nosuch busybox true", 125, r"user"),
            ("run --pull sometimes busybox true", 125, r"pull"),
            ("run --log-driver nosuch busybox true", 125, r"log"),
            ("run --log-opt max-size=x busybox true", 125, r"max-size|size"),
            ("run --log-opt nosuch=1 busybox true", 125, r"nosuch"),
            ("run --add-host nocolon busybox true", 125, r"add-host|bad format"),
            ("run --add-host h:notip busybox true", 125, r"invalid IP|add-host"),
            ("run --dns notip busybox true", 125, r"IP"),
            ("run --env-file /no/such busybox true", 125, r"/no/such"),
            ("run -v relative/x:/y busybox true", 125, r"relative|invalid characters|name"),
            ("run -v /a:relative busybox true", 125, r"absolute|invalid"),
            ("run -v /tmp:/b:nosuch busybox true", 125, r"invalid mode|nosuch"),
            ("run -v /tmp:/b:ro:x busybox true", 125, r"invalid"),
            ("run --mount type=nosuch,target=/x busybox true", 125, r"nosuch|type"),
            ("run --mount type=bind,target=/x busybox true", 125, r"source|src"),
            ("run --mount type=tmpfs busybox true", 125, r"target|required"),
            ("run --mount type=tmpfs,source=/tmp,target=/x busybox true", 125, r"source must not be specified"),
            ("run --mount type=bind,volume-nocopy,source=/tmp,target=/x busybox true", 125, r"cannot mix 'volume-\*' options"),
            ("run --mount type=bind,source=relative,target=/x busybox true", 125, r"absolute"),
            ("run --mount type=bind,nosuch=1,source=/tmp,target=/x busybox true", 125, r"nosuch"),
            ("run --tmpfs relative busybox true", 125, r"absolute|relative|invalid"),
            ("run --device /dev/nosuch busybox true", 125, r"/dev/nosuch"),
            ("run --device /dev/null:/dev/x:rx busybox true", 125, r"invalid mode"),
            ("run --device /dev/null:/dev/x: busybox true", 125, r"invalid"),
            ("run --device /dev/null:/dev/x:rw:y busybox true", 125, r"invalid"),
            ("run --detach-keys ctrl-nosuch busybox true", 125, r"detach"),
            ("run --health-interval x busybox true", 125, r"invalid"),
            ("run --health-interval 1ns --health-cmd true busybox true", 125, r"interval|less than"),
            ("run --health-retries -1 busybox true", 125, r"retries"),
            ("run --stop-timeout x busybox true", 125, r"invalid"),
            ("run -w relative busybox true", 125, r"absolute|invalid"),
            ("run -e =x busybox true", 125, r"invalid environment variable"),
            ("run --sysctl kernel.nosuch=1 busybox true", 125, r"sysctl|nosuch"),
            ("run --platform nosuch busybox true", 125, r"platform|nosuch"),
            ("run --memory lots busybox true", 125, r"invalid"),
            ("run --memory 1m busybox true", 125, r"minimum memory limit allowed is 6MB"),
            ("run --memory-swap lots busybox true", 125, r"invalid"),
            ("run --memory-swap -2 busybox true", 125, r"invalid"),
            ("run --memory-swap 64m busybox true", 125, r"always set the memory limit"),
            ("run --memory 64m --memory-swap 32m busybox true", 125, r"larger than memory limit"),
            ("run --memory-reservation lots busybox true", 125, r"invalid"),
            ("run --cpus x busybox true", 125, r"invalid"),
            ("run --cpus -1 busybox true", 125, r"invalid"),
            ("run --cpus nan busybox true", 125, r"invalid"),
            ("run --cpu-shares x busybox true", 125, r"invalid"),
            ("run --blkio-weight 9 busybox true", 125, r"10 to 1000"),
            ("run --blkio-weight 1001 busybox true", 125, r"10 to 1000"),
            ("run --device-read-bps /dev/null busybox true", 125, r"bad format"),
            ("run --device-write-iops /dev/null:x busybox true", 125, r"bad format|invalid"),
            ("run --device-read-bps /dev/null:1m busybox true", 125, r"not a block device"),
            ("run --cgroup-conf nothing busybox true", 125, r"FILE=VALUE|invalid"),
            ("run --health-start-interval x busybox true", 125, r"invalid"),
            ("run --rootfs /no/such:O true", 125, r"/no/such"),
            ("run UPPER", 125, r"invalid reference format|lower ?case"),
            ("run ''", 125, r"invalid reference format"),
            ("run -d --cidfile /no/such/dir/f busybox true", 125, r"/no/such/dir"),
            ("exec", None, r"requires at least 2 arguments"),
            ("exec x", None, r"requires at least 2 arguments"),
            ("ps extra", None, r"accepts no arguments"),
            ("ps --filter nosuch=1", None, r"invalid filter"),
            ("ps --filter nosuch", None, r"(invalid|bad format).*filter"),
            ("ps --format {{.Nosuch}}", None, r"Nosuch"),
            ("ps --format {{.ID", None, r"template|unclosed"),
            ("images --filter nosuch=1", None, r"invalid filter"),
            ("rm", None, r"requires at least 1 argument"),
            ("rename aa", None, r"requires .*2 argument"),
            ("stop -t x y", 125, r"invalid"),
            ("update", 1, r"requires at least 1 argument"),
            ("update there", 1, r"one or more flags"),
            ("update --memory 64m nosuch", 1, r"no such container: nosuch"),
            ("update --memory 1m there", 1, r"minimum memory limit allowed is 6MB"),
            ("update --memory lots there", None, r"invalid"),
            ("update --memory 64m --memory-swap 32m there", 1, r"larger than memory limit"),
            ("update --cpus -1 there", None, r"invalid"),
            ("update --blkio-weight 5 there", 1, r"10 to 1000"),
            ("update --restart sometimes there", 1, r"restart"),
            ("update --restart on-failure:x there", 1, r"restart|retry"),
            ("update --kernel-memory 1m there", None, r"not supported"),
            ("update --cpu-rt-period 1 there", None, r"not supported"),
            ("update --nosuch there", 125, r"unknown flag: --nosuch"),
            ("top there -Z", 1, r"not supported yet|is not running"),
            ("logs --tail x y", None, r"."),
            ("kill -s NOSUCH one", None, r"invalid signal|signal"),
            ("cp /a /b", None, r"must specify at least one container source"),
            ("cp aa:/x b:/y", None, r"copying between containers is not supported"),
            ("volume create ../x", None, r"invalid|includes"),
            ("login --password x", None, r"username|provide|must"),
            ("tag busybox BAD:tag", None, r"reference format|lower ?case"),
            ("tag busybox x:bad/tag", None, r"reference format"),
            ("pull --platform x", None, r"."),
            ("--nosuch ps", 125, r"unknown flag"),
            ("--storage-driver nosuch ps", None, r"storage|driver"),
    ]:
        with sk.case("`%s`" % line):
            sk(line).exits(code, pattern)
    with sk.case("nothing is left"):
        sk("volume ls -q").says("")
        sk.check_store()


@only("b")
def test_not_supported_is_said(sk):
    """Flags of Docker's reference that have no effect yet must parse and say so, or work."""
    for flag in ["--gpus all", "--isolation hyperv", "--volumes-from x", "--link a:b", "--mac-address 02:00:00:00:00:01",
                 "--ip 10.0.0.2", "--runtime nosuch", "--cgroup-parent x", "--storage-opt size=1G", "-p 80:80",
                 "--annotation a=b", "--volume-driver x", "--network-alias x", "--userns host"]:
        with sk.case(flag):
            r = sk("run --rm %s busybox true" % flag)
            no_match(r.err, "unknown (shorthand )?flag", flag)
            true(r.code == 0 or re.search(r"(?i)support|needs?\b|delegated|no such|not found|unknown|invalid|cannot", r.err),
                 "%s to work or to say why not, got %d %r" % (flag, r.code, r.err))


@only("b")
def test_templates(sk):
    sk("create --name tee -l a=b -l c=d -e X=1 busybox echo 'hi there'").ok
    cid = sk.get("tee", "{{.Id}}")
    for template, want in [
            ("{{.Name}}", "/tee"),
            ("{{ .Name }}", "/tee"),
            ("{{- .Name -}}", "/tee"),
            ("x{{.Name}}y{{.Path}}", "x/teeyecho"),
            ("{{json .Args}}", '["hi there"]'),
            ("{{json .Config.Labels}}", '{"a":"b","c":"d"}'),
            ("{{index .Config.Labels \"a\"}}", "b"),
            ("{{.Config.Labels.a}}", "b"),
            ("{{index .Args 0}}", "hi there"),
            ("{{len .Args}}", "1"),
            ("{{range .Args}}<{{.}}>{{end}}", "<hi there>"),
            ("{{range $i, $a := .Args}}{{$i}}={{$a}}{{end}}", "0=hi there"),
            ("{{range $k, $v := .Config.Labels}}{{$k}}={{$v} }{{end}}".replace("} }", "}};"), "a=b;c=d;"),
            ("{{range .Mounts}}x{{else}}none{{end}}", "none"),
            ("{{if .State.Running}}up{{else}}down{{end}}", "down"),
            ("{{if not .State.Running}}down{{end}}", "down"),
            ("{{if eq .Name \"/tee\"}}yes{{end}}", "yes"),
            ("{{if and .Name .Path}}both{{end}}", "both"),
            ("{{if or .State.Running .Name}}one{{end}}", "one"),
            ("{{with .State}}{{.Status}}{{end}}", "created"),
            ("{{.State.ExitCode}} {{.State.Running}}", "0 false"),
            ("{{printf \"%s|%d\" .Name .State.ExitCode}}", "/tee|0"),
            ("{{upper .Name}} {{lower .Name}}", "/TEE /tee"),
            ("{{join .Args \",\"}}", "hi there"),
            ("{{json .State.Running}}", "false"),
            ("{{$x := .Name}}{{$x}}", "/tee"),
            ("{{/* comment */}}a", "a"),
            ("{{\"quoted\"}}{{`raw`}}", "quotedraw"),
            ("{{.Name | json}}", '"/tee"'),
            ("{{slice .Id 0 12}}", cid[:12]),
            ("{{if gt (len .Args) 0}}some{{end}}", "some"),
            ("a\\tb", "a\\tb"),
            ("{{println .Name}}", "/tee"),
            ("{{split .Name \"/\"}}", "[ tee]"),
    ]:
        with sk.case(template):
            sk("inspect -f", template, "tee").says(want)
    for template in ["{{", "{{.Nosuch.Field}}", "{{nosuch}}", "{{if}}", "{{range .Args}}", "{{end}}", "{{.Name",
                     "{{index .Args 7}}", "{{" + "(" * 5000, "{{.State.Status.Deeper}}",
                     "{{template \"x\"}}", "{{printf \"%s\"", "{{range .}}{{range .}}", "{{slice .Id 0 9999}}"]:
        with sk.case("bad " + template[:30]):
            sk("inspect -f", template, "tee").exits(None, "template|field|function|index|range|end|slice|unexpected|evaluate")


@only("b")
def test_table_templates(sk):
    sk("create --name tee -l a=b busybox echo hi").ok
    for line, want in [
            (["ps", "-a", "--format", "table {{.Names}}\t{{.Image}}"], r"^NAMES +IMAGE\ntee +busybox$"),
            (["ps", "-a", "--format", "{{.Names}}\\t{{.Image}}"], r"^tee\tbusybox$"),
            (["ps", "-a", "--format", "{{.Names}}: {{.Command}}"], r'^tee: "echo hi"$'),
            (["ps", "-a", "--format", "{{.Label \"a\"}} {{.Labels}}"], r"^b a=b$"),
            (["ps", "-a", "--format", "{{.State}} {{.Status}}"], r"^created Created$"),
            (["ps", "-a", "--format", "{{.Ports}}|{{.Networks}}|{{.LocalVolumes}}"], r"^\|\w+\|0$"),
            (["images", "--format", "{{.Repository}}:{{.Tag}}"], r"^busybox:latest$"),
            (["images", "--format", "table {{.Repository}}\t{{.ID}}"], r"^REPOSITORY +IMAGE ID\nbusybox +[0-9a-f]{12}$"),
            (["images", "--format", "{{.Size}} {{.CreatedSince}}"], r"^[\d.]+[kM]?B .+ ago$"),
            (["history", "--format", "{{.ID}} {{.Size}}", "busybox"], r"^[0-9a-f]{12} [\d.]+[kM]?B"),
            (["volume", "ls", "--format", "{{.Name}}"], r"^$"),
            (["system", "df", "--format", "{{.Type}} {{.TotalCount}}"], r"^Images 1\nContainers 1\nLocal Volumes 0"),
    ]:
        with sk.case(" ".join(line)):
            match(sk(line).ok.out, want)
    with sk.case("ps --format json"):
        j = json.loads(sk("ps -a --format json").ok.out)
        for k in "ID Names Image Command CreatedAt RunningFor Ports State Status Size Labels Mounts".split():
            true(k in j, k + " in ps --format json")
        eq((j["Names"], j["State"], j["Command"]), ("tee", "created", '"echo hi"'))
    with sk.case("images --format json"):
        j = json.loads(sk("images --format json").ok.out)
        eq((j["Repository"], j["Tag"]), ("busybox", "latest"))


@only("b")
def test_closed_output(sk):
    """A reader that goes away is no crash; a full device is an error."""
    import subprocess
    p = sk.popen("help", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    p.stdout.close()
    true(p.wait(30) in (0, 1, 141, -13), "help to end when its reader has gone, got %s" % p.returncode)
    with open("/dev/full", "w") as full:
        r = sk.popen("images", stdout=full, stderr=subprocess.PIPE)
        err = r.communicate(timeout=30)[1]
        true(r.returncode > 0, "images > /dev/full to fail, got %d %r" % (r.returncode, err))


@image(None)
@only("b")
def test_environment(sk):
    """Started from strange places."""
    with sk.case("no HOME, no SKIFF_ROOT"):
        r = sk("ps", env={"HOME": None, "SKIFF_ROOT": None})
        true(r.code in (0, 1, 125), "a clear end without HOME")
    with sk.case("XDG_DATA_HOME"):
        sk("images", env={"SKIFF_ROOT": None, "XDG_DATA_HOME": sk.dir + "/data"}).ok
        sk("volume create vv", env={"SKIFF_ROOT": None, "XDG_DATA_HOME": sk.dir + "/data"}).ok
        true(os.path.isdir(sk.dir + "/data/skiff"), "the store in $XDG_DATA_HOME/skiff")
    with sk.case("relative SKIFF_ROOT"):
        sk("volume create vv", env={"SKIFF_ROOT": "rel"}, cwd=sk.folder("here")).ok
        true(os.path.isdir(sk.dir + "/here/rel"), "the store in here/rel")
        sk("volume ls -q", env={"SKIFF_ROOT": sk.dir + "/here/rel"}).says("vv")
    with sk.case("empty PATH"):
        sk("images -q", env={"PATH": None}).says("")
    with sk.case("directory that was deleted"):
        import shlex
        import subprocess
        d = sk.folder("gone")
        p = subprocess.run(["sh", "-c", "cd %s && rmdir %s && exec %s images -q" % ((shlex.quote(d),) * 2 + (sk.binary,))],
                           env=sk.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        eq((p.returncode, p.stdout), (0, b""), "images in a deleted directory: %s" % p.stderr)
    with sk.case("closed stdin, stdout, stderr"):
        import subprocess
        p = subprocess.run(["sh", "-c", "exec %s volume create ww <&- >&- 2>&-" % sk.binary], env=sk.env)
        sk("volume ls -q").prints("^ww$")
        no_match(sk("info --format", "{{json .}}").ok.out, "\0")


@only("b")
def test_escapes(sk):
    """Terminal escapes of hostile names never reach the screen raw."""
    evil = "\x1b]0;pwned\x07\x1b[2J\u009b2J"  # the last as one character: a terminal that takes UTF-8 knows it
    raw = "[\x00-\x09\x0b-\x1f\x7f-\x9f]"
    sk(["create", "--name", "ee", "-l", "evil=" + evil, "busybox", "echo", evil + "\n\r"]).ok
    for line in ["ps -a --no-trunc", "ps -a --no-trunc --format table\\t{{.Labels}}", "inspect ee", "ps -a --format json",
                 "ps -a --no-trunc --format {{.Command}}"]:
        with sk.case(line):
            r = sk(line).ok
            no_match(r.out, raw[:raw.index("\x7f")] + "]" if "inspect" in line or "json" in line else raw, "the output of " + line)
    for line in [["run", evil], ["rm", evil], ["pull", evil], ["logs", evil], ["images", evil], ["nosuch" + evil]]:
        with sk.case("error of " + line[0][:6]):
            r = sk(line)
            no_match(r.err + r.out, raw, "the error of " + line[0][:6])
    with sk.case("a warning that names a container's file"):
        sk(["run", "--name", "ww", "busybox", "touch", "/.wh." + evil]).ok
        r = sk("commit ww").ok
        match(r.err, "WARNING: .*pwned")
        no_match(r.err, raw, "the warning")
    with sk.case("a warning that names a layer's annotation"):
        m, blobs = lib.oci_blobs(lib.busybox_layer())
        m = json.loads(m)
        m["layers"][0]["annotations"] = {"io.github.containers.zstd-chunked.manifest-" + k: evil for k in ("checksum", "position")}
        r = sk("pull -q", lib.Registry(json.dumps(m).encode(), blobs).ref).ok
        match(r.err, "WARNING: .*pwned")
        no_match(r.err, raw, "the warning")
    with sk.case("an error that names an image's directory"):
        sk("load -q", input=lib.docker_archive(lib.busybox_layer(), lib.tar(lib.entry(evil + "/big", os.urandom(3 << 20))))).ok
        less = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))
        r = sk("--storage-driver copy run --rm attack true", preexec_fn=less).exits(125, "pwned.*too large")
        no_match(r.err, raw, "the error")
    with sk.case("what is no control character stays"):
        sk(["create", "--name", "uu", "busybox", "echo", "é€😀\u00a0"]).ok
        sk("ps -a --no-trunc --format {{.Command}} --filter name=uu").says('"echo é€😀\u00a0"')


@only("b")
def test_hello(sk):
    """The image that is inside the binary, without a network."""
    with sk.case("a bare run suggests it"):
        r = sk("run").exits(None)
        match(r.out + r.err, r"run hello")
    r = sk("run hello").ok
    for what in r"(?i)pid|process id", r"(?i)map|uid", r"(?i)root file ?system|overlay|copy|fuse", r"(?i)skiff run":
        with sk.case("hello shows " + what):
            match(r.out, what)
