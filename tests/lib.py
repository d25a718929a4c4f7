"""What the black-box tests are written with: one skiff store a test, archives and registries
made by hand, a terminal, and assertions that say what was expected."""
import contextlib
import encodings.idna  # noqa: F401 - an unprivileged test may not be able to load it later
import fcntl
import gzip
import hashlib
import http.server
import io
import json
import os
import platform
import pty
import re
import select
import shlex
import shutil
import signal
import socketserver
import struct
import subprocess
import tarfile
import termios
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
DIR = os.environ.get("SKIFF_TEST_DIR", "/var/tmp/skiff-test")
SKIFF = os.path.abspath(os.environ.get("SKIFF", os.path.join(HERE, "../build/skiff")))
FIXTURES = DIR + "/fixtures"
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
ENV = {}  # tests/registry env
PATIENCE = 30  # seconds until something that must happen counts as not happening


class Failed(Exception):
    """The message says what was expected and what came instead."""


class Skipped(Exception):
    """The message names the kernel feature that is missing."""


# ---- how a test is to be run: read by tests/run ----

def only(who):
    """Who runs it, a letter each: "a" has subordinate ids, "b" has none, "g" and "f" are the same
    with /dev/fuse; or "root": the test stays root, its skiff is run as b."""
    return lambda f: setattr(f, "who", who) or f


def image(name):
    """The fixture that is loaded before: busybox by default, None for an empty store."""
    return lambda f: setattr(f, "image", name) or f


def timeout(seconds):
    return lambda f: setattr(f, "timeout", seconds) or f


# ---- assertions ----

def short(x, n=300):
    s = x if isinstance(x, str) else repr(x)
    return s if len(s) <= n else s[:n] + "..."


def eq(got, want, what=""):
    if got != want:
        raise Failed("%sexpected %s, got %s" % (what and what + ": ", short(repr(want)), short(repr(got))))


def true(x, what):
    if not x:
        raise Failed("expected " + what)


def match(text, pattern, what=""):
    m = re.search(pattern, text, re.M)
    if not m:
        raise Failed("%sexpected a match of /%s/, got %s"
                     % (what and what + ": ", pattern, short(repr(text))))
    return m


def no_match(text, pattern, what=""):
    if re.search(pattern, text, re.M):
        raise Failed("%sexpected no match of /%s/, got %s"
                     % (what and what + ": ", pattern, short(repr(text))))


def state_of(pid):
    """The letter of a process's state (proc(5)); none: it is gone."""
    try:
        with open("/proc/%d/stat" % pid) as f:
            return f.read().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def until(condition, what):
    end = time.monotonic() + PATIENCE
    while True:
        x = condition()
        if x:
            return x
        if time.monotonic() > end:
            raise Failed("expected that %s" % what)
        time.sleep(0.05)


class Result:
    def __init__(self, command, code, out, err):
        self.command, self.code, self.raw, self.errors = command, code, out, err

    @property
    def out(self):
        return self.raw.decode("utf-8", "surrogateescape").rstrip("\n")

    @property
    def err(self):
        return self.errors.decode("utf-8", "surrogateescape").rstrip("\n")

    @property
    def lines(self):
        return self.out.split("\n") if self.out else []

    @property
    def json(self):
        try:
            return json.loads(self.raw)
        except ValueError:
            raise Failed("expected JSON from `%s`, got %s" % (self.command, short(repr(self.out))))

    def exits(self, code, pattern=None):
        """The exit code (None: any but 0, and no crash), and what standard error says."""
        bad = self.code <= 0 or self.code > 127 if code is None else self.code != code
        if bad:
            raise Failed("`%s`: expected exit code %s, got %d, stdout %s, stderr %s"
                         % (short(self.command), "1..127" if code is None else code, self.code,
                            short(repr(self.out), 150), short(repr(self.err), 250)))
        if pattern and not re.search(pattern, self.err, re.I | re.M):
            raise Failed("`%s`: expected stderr to match /%s/i, got %s"
                         % (short(self.command), pattern, short(repr(self.err))))
        if code != 0 and re.search("AddressSanitizer|LeakSanitizer|runtime error:", self.err):
            raise Failed("`%s`: %s" % (short(self.command), short(self.err)))
        return self

    @property
    def ok(self):
        return self.exits(0)

    def says(self, want):
        self.exits(0)
        if self.out != want:
            raise Failed("`%s`: expected %s, got %s (stderr %s)" % (
                short(self.command), short(repr(want)), short(repr(self.out)), short(repr(self.err), 150)))
        return self

    def prints(self, pattern):
        self.exits(0)
        if not re.search(pattern, self.out, re.M):
            raise Failed("`%s`: expected output to match /%s/, got %s (stderr %s)" % (
                short(self.command), pattern, short(repr(self.out)), short(repr(self.err), 150)))
        return self


# ---- the engine under test ----

class Skiff:
    """sk("run --rm busybox sh -c", "echo hi"): the first word list is split, the rest is verbatim."""

    def __init__(self, base, who, user=None):
        self.dir, self.who, self.user = base, who, user  # user: (uid, gid) to drop to, or None
        self.groups = []  # of that user, besides its own
        self.subuid = who in "ag"
        self.binary = SKIFF
        self.root = base + "/root"
        self.home = base + "/home"
        self.cases, self.failures, self.log = 0, [], []
        self.env = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": self.home, "SKIFF_ROOT": self.root, "XDG_RUNTIME_DIR": base + "/xdg",
            "TMPDIR": base + "/tmp", "LANG": "C.UTF-8", "TERM": "xterm", "USER": "skiff" + who,
        }
        for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS"):
            if name in os.environ:
                self.env[name] = os.environ[name]
        for d in (self.home, base + "/xdg", base + "/tmp"):
            os.makedirs(d, 0o700, exist_ok=True)

    def argv(self, words, rest):
        return [self.binary] + (shlex.split(words) if isinstance(words, str) else list(words)) + \
            [str(x) for x in rest]

    def popen(self, words, *rest, env=None, **kw):
        kw.setdefault("stdin", subprocess.DEVNULL)
        if self.user:
            kw.update(user=self.user[0], group=self.user[1], extra_groups=self.groups)
        e = dict(self.env)
        for k, v in (env or {}).items():
            e.pop(k, None)
            if v is not None:
                e[k] = v
        return subprocess.Popen(self.argv(words, rest), env=e, cwd=kw.pop("cwd", self.dir), **kw)

    def __call__(self, words, *rest, input=None, env=None, wait=40, **kw):
        command = "skiff " + shlex.join(self.argv(words, rest)[1:])
        if input is not None:
            kw["stdin"] = subprocess.PIPE
            input = input.encode() if isinstance(input, str) else input
        p = self.popen(words, *rest, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)
        try:
            out, err = p.communicate(input, timeout=wait)
        except subprocess.TimeoutExpired:
            p.kill()
            out, err = b"", b""
            with contextlib.suppress(subprocess.TimeoutExpired):
                out, err = p.communicate(timeout=2)
            raise Failed("`%s`: expected it to end within %d s; stdout %s stderr %s" % (
                short(command), wait, short(repr(out), 100), short(repr(err), 200)))
        r = Result(command, p.returncode, out, err)
        self.log.append("$ %s\n%s%s[%d]\n" % (command, r.out[:2000] + "\n" if r.out else "",
                                            r.err[:2000] + "\n" if r.err else "", r.code))
        if r.code < 0:
            raise Failed("`%s`: expected no crash, got signal %d; stderr %s"
                         % (short(command), -r.code, short(repr(r.err))))
        return r

    @contextlib.contextmanager
    def case(self, name):
        """One row of a table: counted by itself, and its failure does not end the test."""
        self.cases += 1
        try:
            yield
        except Failed as e:
            self.failures.append("%s: %s" % (name, e))

    # -- short-hands --

    def sh(self, script, *options, image="busybox"):
        return self(["run", "--rm", *options, image, "sh", "-c", script])

    def up(self, name, script="while :; do sleep 1; done", *options, image="busybox"):
        """A detached container that runs; its id."""
        r = self(["run", "-d", "--name", name, *options, image, "sh", "-c",
                  "trap 'exit 0' TERM; " + script + " & wait"]).ok
        match(r.out, "^[0-9a-f]{64}$", "run -d")
        pid = self.get(name, "{{.State.Pid}}")

        def ready():  # TERM before the shell has its handler would be lost: it is pid 1
            try:
                with open("/proc/%s/status" % pid) as f:
                    return int(re.search(r"SigCgt:\s*(\w+)", f.read())[1], 16) & 1 << 14
            except (OSError, TypeError):
                return True  # it has ended already
        until(ready, "%s handles TERM" % name)
        return r.out

    def get(self, name, template):
        return self(["inspect", "--format", template, name]).ok.out

    def status(self, name):
        return self.get(name, "{{.State.Status}}")

    def becomes(self, name, template, want):
        until(lambda: self.get(name, template) == want,
              "%s of %s becomes %s (it is %s)" % (template, name, want, self.get(name, template)))

    def pid(self, name):
        return int(self.get(name, "{{.State.Pid}}"))

    def file(self, name, data="", mode=0o644):
        path = os.path.join(self.dir, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
        os.chmod(path, mode)
        return path

    def own_binary(self):
        """From here on a copy that its user may write is what runs; (path, digest)."""
        self.binary = shutil.copy(self.binary, self.dir + "/skiff")
        os.chmod(self.binary, 0o755)
        with open(self.binary, "rb") as f:
            return self.binary, digest(f.read())

    def folder(self, name):
        path = os.path.join(self.dir, name)
        os.makedirs(path, exist_ok=True)
        return path

    def load(self, data, **kw):
        return self("load", input=data, **kw)

    def processes(self):
        """Processes below the test: (pid, command), without the test itself."""
        me, parents, names = os.getpid(), {}, {}
        for p in os.listdir("/proc"):
            if p.isdigit():
                with contextlib.suppress(OSError):
                    with open("/proc/%s/stat" % p) as f:
                        stat = f.read()
                    name, rest = stat[stat.index("(") + 1:stat.rindex(")")], stat[stat.rindex(")") + 2:]
                    if rest[0] != "Z":
                        parents[int(p)], names[int(p)] = int(rest.split()[1]), name
        def below(pid):
            while pid > 1:
                pid = parents.get(pid, 0)
                if pid == KEEPER:
                    return True
            return False
        return [(p, names[p]) for p in parents if p != me and below(p)]

    def supervisor(self, name):
        """The process of the engine that keeps a container: the parent of its first process."""
        with open("/proc/%d/stat" % self.pid(name)) as f:
            parent = int(f.read().rsplit(")", 1)[1].split()[1])
        for _ in range(3):  # an init or namespace helper may stand between
            with open("/proc/%d/stat" % parent) as f:
                up = int(f.read().rsplit(")", 1)[1].split()[1])
            if up in (1, KEEPER):
                return parent
            parent = up
        return parent

    def check_store(self):
        """The store is a valid OCI layout: each blob is what its name says, each reference leads
        to blobs that are there; system df works."""
        if not os.path.isdir(self.root):
            return
        index = self.root + "/index.json"
        if os.path.exists(index):
            with open(self.root + "/oci-layout") as f:
                true("imageLayoutVersion" in json.load(f), "oci-layout to name its version")
            with open(index) as f:
                todo = json.load(f)["manifests"]
            while todo:
                d = todo.pop()
                path = self.root + "/blobs/" + d["digest"].replace(":", "/")
                if not os.path.exists(path) and d.get("platform", {}).get("architecture", ARCH) != ARCH:
                    continue
                true(os.path.exists(path), "blob %s, named in the index, to be there" % d["digest"])
                with open(path, "rb") as f:
                    data = f.read()
                eq(len(data), d["size"], "size of " + d["digest"])
                if "manifest" in d["mediaType"] or "index" in d["mediaType"]:
                    m = json.loads(data)
                    todo += m.get("manifests", []) + m.get("layers", []) + \
                        ([m["config"]] if "config" in m else [])
        blobs = self.root + "/blobs/sha256"
        for name in os.listdir(blobs) if os.path.isdir(blobs) else []:
            if re.fullmatch("[0-9a-f]{64}", name):
                with open(blobs + "/" + name, "rb") as f:
                    eq(hashlib.sha256(f.read()).hexdigest(), name, "the digest of a stored blob")
            else:
                raise Failed("expected only digests as names in blobs/sha256, got " + name)
        self("system df").ok


KEEPER = 0  # pid of the process that orphans of this test fall to; set by tests/run


class Terminal:
    """A command on a terminal of its own: t = Terminal(sk, "run -it busybox sh")."""

    def __init__(self, sk, words, *rest, rows=24, cols=80, env=None):
        self.master, slave = pty.openpty()
        self.size(rows, cols)
        self.seen = ""

        def control():
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        self.before = termios.tcgetattr(slave)
        self.command = "skiff %s %s" % (words, shlex.join(map(str, rest)))
        self.p = sk.popen(words, *rest, stdin=slave, stdout=slave, stderr=slave, preexec_fn=control,
                          env=env)
        self.slave = slave

    def size(self, rows, cols):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def send(self, text):
        os.write(self.master, text.encode() if isinstance(text, str) else text)

    def read(self, wait):
        if select.select([self.master], [], [], wait)[0]:
            with contextlib.suppress(OSError):
                self.seen += os.read(self.master, 65536).decode("utf-8", "replace")
                return True
        return False

    def expect(self, pattern):
        end = time.monotonic() + PATIENCE
        while True:
            m = re.search(pattern, self.seen)
            if m:
                self.seen = self.seen[m.end():]
                return m
            if time.monotonic() > end or (self.p.poll() is not None and not self.read(0)):
                raise Failed("`%s` on a terminal: expected /%s/, got %s"
                             % (self.command, pattern, short(repr(self.seen[-300:]))))
            self.read(0.1)

    def exits(self, code):
        end = time.monotonic() + PATIENCE
        while self.p.poll() is None and time.monotonic() < end:
            self.read(0.05)
        while self.read(0.1):  # more than one read of what was on its way
            pass
        if self.p.poll() is None:
            self.p.kill()
            raise Failed("`%s` on a terminal: expected it to end; it showed %s"
                         % (self.command, short(repr(self.seen[-300:]))))
        if code is not None and self.p.returncode != code:
            raise Failed("`%s` on a terminal: expected exit code %d, got %d, shown %s"
                         % (self.command, code, self.p.returncode, short(repr(self.seen[-300:]))))
        eq(termios.tcgetattr(self.slave), self.before, "terminal settings after `%s`" % self.command)
        return self


# ---- archives and images made by hand ----

def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def entry(name, data=None, type=None, link="", mode=None, **kw):
    """One tar member; a name that ends in / is a directory; data None: no regular file."""
    t = tarfile.TarInfo(name)
    t.type = type or (tarfile.DIRTYPE if name.endswith("/") else
                      tarfile.SYMTYPE if link and data is None else tarfile.REGTYPE)
    t.mode = mode if mode is not None else 0o755 if t.type == tarfile.DIRTYPE else 0o644
    t.linkname = link
    data = b"" if data is None else data.encode() if isinstance(data, str) else data
    t.size = len(data)
    for k, v in kw.items():
        setattr(t, k, v)
    return t, data


def tar(*entries, format=tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as f:
        for t, data in entries:
            f.addfile(t, io.BytesIO(data))
    return out.getvalue()


def fixture_blobs():
    """(config, layer as plain tar) of the busybox fixture."""
    root = ENV["REGISTRY_IMAGES"]
    get = lambda d: open(root + "/blobs/" + d.replace(":", "/"), "rb").read()
    for m in json.load(open(root + "/index.json"))["manifests"]:
        if m.get("annotations", {}).get("org.opencontainers.image.ref.name") == "busybox":
            for n in json.loads(get(m["digest"]))["manifests"]:
                if n["platform"]["architecture"] == ARCH:
                    manifest = json.loads(get(n["digest"]))
                    return (json.loads(get(manifest["config"]["digest"])),
                            gzip.decompress(get(manifest["layers"][0]["digest"])))
    raise Failed("expected a busybox image in " + root)


def busybox_layer():
    return fixture_blobs()[1]


def image_config(layers, config=None, **kw):
    c = {"architecture": ARCH, "os": "linux", "created": "2020-01-02T03:04:05Z",
         "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"], **(config or {})},
         "rootfs": {"type": "layers", "diff_ids": [digest(x) for x in layers]},
         "history": [{"created": "2020-01-02T03:04:05Z", "created_by": "layer %d" % i}
                     for i in range(len(layers))]}
    c.update(kw)
    return c


def docker_archive(*layers, tag="attack:latest", config=None, **kw):
    """What `docker save` writes; layers are plain tars, the first is below."""
    c = json.dumps(image_config(layers, config, **kw)).encode()
    files = [(digest(c)[7:] + ".json", c)]
    for i, layer in enumerate(layers):
        files.append(("%064x/layer.tar" % i, layer))
    files.append(("manifest.json", json.dumps([{
        "Config": files[0][0], "RepoTags": [tag] if tag else None,
        "Layers": [f[0] for f in files[1:]]}]).encode()))
    return tar(*[entry(n, d) for n, d in files], format=tarfile.USTAR_FORMAT
               if all(len(d) < 1 << 33 for _, d in files) else tarfile.PAX_FORMAT)


OCI = "application/vnd.oci.image."


def oci_blobs(*layers, config=None, compress=gzip.compress, media="layer.v1.tar+gzip", **kw):
    """(manifest bytes, {digest: blob}); layers are plain tars."""
    c = json.dumps(image_config(layers, config, **kw)).encode()
    packed = [compress(x) for x in layers]
    blobs = {digest(b): b for b in packed + [c]}
    m = {"schemaVersion": 2, "mediaType": OCI + "manifest.v1+json",
         "config": {"mediaType": OCI + "config.v1+json", "digest": digest(c), "size": len(c)},
         "layers": [{"mediaType": OCI + media, "digest": digest(b), "size": len(b)} for b in packed]}
    return json.dumps(m).encode(), blobs


class Registry:
    """A registry in this process that can be told to misbehave.

    faults: list of (regex on "METHOD path", times, function(handler) -> handled?); times -1: always.
    """

    def __init__(self, manifest=None, blobs=None, name="img", tag="latest", realm=None, tls=None):
        self.manifests, self.blobs = {}, dict(blobs or {})
        self.requests, self.faults, self.realm = [], [], realm
        self.lock = threading.Lock()
        if manifest is not None:
            self.manifests[tag] = self.manifests[digest(manifest)] = manifest
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 120

            def do_GET(self):
                with outer.lock:
                    outer.requests.append((self.command, self.path, dict(self.headers)))
                    act = None
                    for i, (pattern, times, f) in enumerate(outer.faults):
                        if times and re.search(pattern, self.command + " " + self.path):
                            outer.faults[i] = (pattern, times - 1, f)
                            act = f
                            break
                try:
                    if not (act and act(self)):
                        self.serve()
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_CONNECT = do_GET

            def serve(self):
                if self.path.rstrip("/") == "/v2":
                    return self.send(200, b"{}", "application/json")
                m = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/?]+)(\?.*)?", self.path)
                if not m:
                    return self.send(404, b'{"errors":[{"code":"NOT_FOUND"}]}', "application/json")
                data = (outer.manifests if m[2] == "manifests" else outer.blobs).get(m[3])
                if data is None:
                    return self.send(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}', "application/json")
                kind = "application/octet-stream"
                if m[2] == "manifests":
                    try:
                        kind = json.loads(data).get("mediaType", OCI + "manifest.v1+json")
                    except (ValueError, AttributeError):
                        kind = OCI + "manifest.v1+json"
                rng = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                if rng and m[2] == "blobs" and int(rng[1]) < len(data):
                    a, b = int(rng[1]), min(int(rng[2] or len(data) - 1), len(data) - 1)
                    return self.send(206, data[a:b + 1], kind,
                                     {"Content-Range": "bytes %d-%d/%d" % (a, b, len(data))})
                self.send(200, data, kind)

            def send(self, code, data, kind="text/plain", headers=None, size=None):
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data) if size is None else size))
                if "manifests" in self.path and code == 200:
                    self.send_header("Docker-Content-Digest", digest(data))
                for k, v in (headers or {}).items():
                    self.send_header(k, v)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)
                    self.wfile.flush()
                return True

            def log_message(self, *args):
                pass

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def server_bind(self):  # without asking for the host's name
                socketserver.TCPServer.server_bind(self)
                self.server_name, self.server_port = self.server_address

            def handle_error(self, request, address):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        if tls:  # an ssl.SSLContext
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.host = "127.0.0.1:%d" % self.server.server_port
        self.ref = "%s/%s:%s" % (self.host, name, tag)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def fault(self, pattern, function, times=-1):
        self.faults.append((pattern, times, function))
        return self

    def count(self, pattern):
        return sum(1 for m, p, _ in self.requests if re.search(pattern, m + " " + p))


def kill(pid, sig=signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sig)


def tool(*argv, **kw):
    """Another program that must work, e.g. skopeo."""
    kw.setdefault("stdin", subprocess.DEVNULL)
    r = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)
    if r.returncode:
        raise Failed("expected `%s` to work, got exit code %d: %s" % (
            short(shlex.join(argv)), r.returncode, short(r.stderr.decode("utf-8", "replace"))))
    return r.stdout
