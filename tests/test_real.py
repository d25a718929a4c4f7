"""Whole programs of real images: Debian with its package manager, Python, nginx, PostgreSQL."""
import os
import socket
import subprocess
import time
import urllib.request

import lib
from lib import ENV, eq, image, match, no_match, only, timeout, true, until

WHO = "abf"


def package(sk):
    """A package whose installation changes owners, makes users and runs scripts."""
    d = sk.folder("deb")
    sk.file("deb/DEBIAN/control", "Package: skiff-probe\nVersion: 1\nArchitecture: all\nMaintainer: t <t@example.org>\nDescription: probe\n")
    sk.file("deb/DEBIAN/postinst", "#!/bin/sh\nset -e\ngroupadd -r probe\nuseradd -r -g probe -d /var/lib/probe probe\nmkdir -p /var/lib/probe\n"
            "chown -R probe:probe /var/lib/probe\nchown root:mail /opt/probe/f\nchmod 2755 /opt/probe/f\nldconfig\necho configured\n", 0o755)
    sk.file("deb/opt/probe/f", "payload\n")
    os.makedirs(sk.dir + "/debs", exist_ok=True)
    lib.tool("dpkg-deb", "--root-owner-group", "-b", d, sk.dir + "/debs/probe.deb")
    return sk.dir + "/debs"


@image("debian")
@timeout(240)
def test_debian(sk):
    debs = package(sk)
    with sk.case("bash"):
        sk("run --rm debian bash -c", "echo $BASH_VERSION | cut -c1; . /etc/os-release; echo $ID").prints(r"^\d\n\w+")
    with sk.case("dpkg -i"):
        r = sk("run --name cc -v", debs + ":/debs:ro", "debian", "sh", "-c",
               "dpkg -i /debs/probe.deb && cat /opt/probe/f && getent passwd probe && dpkg -s skiff-probe | grep Status", wait=150).ok
        for want in "configured", "payload", "^probe:x:", "Status: install ok installed":
            match(r.out, want)
    with sk.case("apt-get install from a folder"):
        r = sk("run --rm -v", debs + ":/debs:ro", "debian", "sh", "-c",
               "apt-get install -y --no-install-recommends /debs/probe.deb >/tmp/out 2>&1 || { cat /tmp/out; exit 1; }; cat /opt/probe/f; dpkg -r skiff-probe >/dev/null && echo removed",
               wait=150)
        r.says("payload\nremoved")
    with sk.case("a package source of its own"):
        sk.file("debs/Packages", lib.tool("sh", "-c", "cd %s && dpkg-scanpackages -m . 2>/dev/null || true" % debs))
        if os.path.getsize(sk.dir + "/debs/Packages"):
            sk("run --rm -v", debs + ":/debs:ro", "debian", "sh", "-c",
               "rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*; echo 'deb [trusted=yes] file:/debs ./' >/etc/apt/sources.list; "
               "apt-get update -qq >/dev/null && apt-get install -y -qq skiff-probe >/dev/null && cat /opt/probe/f", wait=150).says("payload")
    with sk.case("what was installed can be committed"):
        sk("commit cc made").ok
        sk("run --rm made sh -c", "getent passwd probe >/dev/null && stat -c %U:%G /var/lib/probe").prints("probe:probe|root:root")
    with sk.case("useradd, su, passwd"):
        r = sk("run --rm debian sh -c", "useradd -m u && su u -c 'cd && touch f && echo from-u'; echo u:pw | chpasswd && echo set")
        match(r.out, "set")
        if sk.subuid:
            match(r.out, "from-u")
    with sk.case("tar as root"):
        sk("run --rm debian sh -c", "cd / && tar cf /tmp/t.tar etc && mkdir /x && tar xf /tmp/t.tar -C /x && ls /x/etc/passwd").says("/x/etc/passwd")
    with sk.case("a large tree is removed"):
        sk("run --rm debian sh -c", "rm -rf /usr/share /var/lib && ls /usr | grep -c share").exits(1)


@image(None)
@timeout(200)
@only("bf")
def test_python(sk):
    ref = ENV["REGISTRY_HTTP"] + "/python"
    sk("pull -q", ref, wait=120).ok
    with sk.case("its user, directory and environment"):
        sk("run --rm", ref, "python3", "-c", "import os, pwd; print(pwd.getpwuid(os.getuid()).pw_name, os.getcwd(), os.environ['GREETING'])").says("app /app hello world")
    with sk.case("threads, processes, sockets, tmp"):
        sk("run --rm", ref, "python3", "-c", """
import concurrent.futures as c, multiprocessing as m, tempfile, socket, sqlite3, ssl, os
def f(x): return x * x
with m.Pool(3) as p: a = sum(p.map(f, range(50)))
with c.ThreadPoolExecutor(8) as t: b = sum(t.map(f, range(50)))
s = socket.socketpair(); s[0].send(b'x'); s[1].recv(1)
with tempfile.TemporaryDirectory() as d:
    db = sqlite3.connect(d + '/x.db'); db.execute('create table t(a)'); db.commit()
print(a == b == 40425, m.Lock() is not None, os.listdir('/dev/shm') == [])
""").says("True True True")
    with sk.case("a server"):
        port = free_port()
        sk("run -d --name ss", ref, "python3", "-m", "http.server", str(port)).ok
        body = until(lambda: fetch("http://127.0.0.1:%d/app.py" % port), "the server answers")
        match(body, "http.server")
        sk("stop -t 3 ss").ok


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def fetch(url):
    try:
        return urllib.request.urlopen(url, timeout=5).read().decode()
    except OSError:
        return None


@image(None)
@timeout(200)
@only("ab")
def test_nginx(sk):
    ref = ENV["REGISTRY_HTTP"] + "/nginx"
    sk("pull -q", ref, wait=120).ok
    port = free_port()
    conf = sk.file("site/default", "server { listen 127.0.0.1:%d; root /var/www/html; location / { try_files $uri =404; } }\n" % port)
    sk.file("site/hello.txt", "served\n")
    sk("run -d --name nn -v", conf + ":/etc/nginx/sites-enabled/default:ro", "-v", sk.dir + "/site/hello.txt:/var/www/html/hello.txt:ro", ref).ok
    with sk.case("serves"):
        eq(until(lambda: fetch("http://127.0.0.1:%d/hello.txt" % port), "nginx answers: %s" % sk("logs nn").err), "served\n")
    with sk.case("its log is the container's"):
        until(lambda: "GET /hello.txt" in sk("logs nn").out, "the access log is in logs")
    with sk.case("reload"):
        sk("kill -s HUP nn").ok
        eq(until(lambda: fetch("http://127.0.0.1:%d/hello.txt" % port), "nginx answers"), "served\n")
    with sk.case("stops by its own signal"):
        sk("stop nn").ok
        eq(sk.get("nn", "{{.State.ExitCode}}"), "0")


@image(None)
@timeout(240)
@only("ab")
def test_postgres(sk):
    ref = ENV["REGISTRY_HTTP"] + "/postgres"
    sk("pull -q", ref, wait=150).ok
    port = free_port()
    run = ["run", "-d", "--name", "pp", "-v", "pg:/data", ref, "postgres", "-c", "listen_addresses=127.0.0.1", "-c", "port=%d" % port]
    sk(run).ok
    query = lambda sql: sk("exec pp psql -h 127.0.0.1 -p %d -U postgres -tAc" % port, sql)
    with sk.case("comes up"):
        until(lambda: query("select 6 * 7").out == "42" or sk.status("pp") != "running", "it answers")
        eq(query("select 6 * 7").out, "42", "logs: " + lib.short(sk("logs pp").err))
    with sk.case("keeps data over restarts"):
        query("create table t as select generate_series(1, 10000) a").ok
        sk("stop pp").ok
        eq(sk.get("pp", "{{.State.ExitCode}}"), "0")
        sk("start pp").ok
        until(lambda: query("select count(*) from t").out == "10000", "the data is there again")
    with sk.case("survives kill -9, in a new container"):
        sk("kill pp").ok
        sk("rm pp").ok
        sk(run).ok
        until(lambda: query("select count(*) from t").out == "10000", "the data is there again")
        sk("rm -f pp").ok
