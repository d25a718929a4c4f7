"""Pull, push, login against real registries, and against ones that lie, stall and break off."""
import base64
import gzip
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import ssl
import subprocess
import time

import lib
from lib import (ENV, OCI, Failed, Registry, digest, entry, eq, image, match, no_match, oci_blobs, only, tar,
                 timeout, tool, true, until)

WHO = "b"


def trust(sk):
    return {"SSL_CERT_FILE": ENV["REGISTRY_CA"]}


@image(None)
@only("ab")
def test_pull(sk):
    http = ENV["REGISTRY_HTTP"]
    for tag in "latest", "docker":
        ref = "%s/busybox:%s" % (http, tag)
        with sk.case("pull " + tag):
            r = sk("pull", ref).ok
            match(r.out, r"(?m)^Digest: sha256:[0-9a-f]{64}$")
            match(r.out, r"(?m)^Status: Downloaded newer image for %s$" % ref)
            eq(r.lines[-1], ref, "last line")
            true("\x1b" not in r.out and "\r" not in r.out, "plain lines where there is no terminal")
            sk("run --rm", ref, "echo", "x").says("x")
        with sk.case("again " + tag):
            sk("pull", ref).prints("(?m)^Status: Image is up to date for " + ref)
        with sk.case("-q " + tag):
            sk("pull -q", ref).says(ref)
    with sk.case("by digest"):
        d = tool("skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", "docker://%s/busybox" % http).decode().strip()
        sk("pull %s/busybox@%s" % (http, d)).ok
        sk("run --rm %s/busybox@%s echo x" % (http, d)).says("x")
        sk("pull %s/busybox:latest@%s" % (http, d)).ok
        eq(sk("images --digests --format", "{{.Digest}}", http + "/busybox:latest").ok.out, d, "digest that images shows")
        sk("pull %s/busybox@sha256:%s" % (http, "0" * 64)).exits(1, "not found|manifest unknown|unknown")
    with sk.case("--platform"):
        sk("pull -q --platform linux/arm64 %s/busybox" % http).ok
        eq(sk.get(http + "/busybox", "{{.Architecture}}"), "arm64")
        sk("pull --platform linux/s390x %s/busybox" % http).exits(1, "no matching manifest|platform|s390x")
        sk("pull -q %s/busybox" % http).ok
        eq(sk.get(http + "/busybox", "{{.Architecture}}"), lib.ARCH)
    with sk.case("missing"):
        sk("pull %s/nosuch" % http).exits(1, "not found|unknown|denied|does not exist")
        sk("pull %s/busybox:nosuch" % http).exits(1, "not found|unknown|does not exist")
    with sk.case("-a"):
        sk("pull -aq %s/busybox" % http)  # may be refused, may not crash
    with sk.case("nobody there"):
        sk("pull 127.0.0.1:1/x").exits(1, "refused|connect")
        sk("pull no.such.host.invalid/x").exits(1, "no such host|resolve|could not")
    sk.check_store()


@image(None)
def test_run_pulls(sk):
    ref = ENV["REGISTRY_HTTP"] + "/busybox"
    with sk.case("--pull never"):
        sk("run --pull never --rm", ref, "true").exits(125, "no such image")
    with sk.case("run pulls what is missing, and says so on stderr only"):
        r = sk("run --rm", ref, "echo", "x").says("x")
        match(r.err, "Unable to find image '.*busybox:latest' locally")
    with sk.case("--pull always"):
        sk("run --rm --pull=always", ref, "echo", "x").says("x")
    with sk.case("--quiet"):
        sk("rmi", ref).ok
        r = sk("run --rm -q", ref, "echo", "x").says("x")
        eq(r.err, "")
    with sk.case("create pulls"):
        sk("rmi", ref).ok
        sk("create", ref).ok
    with sk.case("missing image"):
        sk("run --rm", ENV["REGISTRY_HTTP"] + "/nosuch", "true").exits(125, "not found|unknown|denied|does not exist")
    sk("ps -aq").ok


@image(None)
@only("b")
@timeout(200)
def test_big_images(sk):
    """Several layers, both compressions, shared layers."""
    http = ENV["REGISTRY_HTTP"]
    for name in "python:latest", "python:zstd", "nginx:latest":
        with sk.case(name):
            sk("pull", http + "/" + name, wait=120).prints("(?m)Pull complete")
    with sk.case("what it holds"):
        sk("run --rm %s/python python3 -c" % http, "print(6 * 7)").says("42")
        sk("run --rm %s/python:zstd python3 -c" % http, "import json, os; print(os.environ['GREETING'], os.getcwd())").says("hello world /app")
    with sk.case("layers are shared"):
        sk("rmi %s/python %s/python:zstd" % (http, http)).ok
        r = sk("pull %s/python" % http).ok
        match(r.out, "(?m)Already exists", "the base that nginx has too")
    sk.check_store()


@image(None)
def test_tls_and_login(sk):
    basic, token = ENV["REGISTRY_BASIC"], ENV["REGISTRY_TOKEN"]
    ca = trust(sk)
    with sk.case("unknown authority"):
        sk("pull %s/busybox" % basic).exits(1, "certificate|authority|x509|verif|unauthorized|no basic auth|authentication|denied")
    with sk.case("no credentials"):
        sk("pull %s/busybox" % basic, env=ca).exits(1, "unauthorized|authentication|no basic auth|denied")
    with sk.case("wrong password"):
        r = sk("login -u test -p geheim-wrong", basic, env=ca).exits(1, "unauthorized|incorrect|denied|401")
        no_match(r.err + r.out, "geheim-wrong", "the message")
        true(not os.path.exists(sk.home + "/.docker/config.json") or
             "localhost" not in open(sk.home + "/.docker/config.json").read(), "no credentials kept")
    for host in basic, token:
        with sk.case("login " + host):
            r = sk("login -u test --password-stdin", host, env=ca, input="secret\n").ok
            match(r.out, "^Login Succeeded$")
        with sk.case("pull " + host):
            sk("pull -q %s/busybox" % host, env=ca).ok
    with sk.case("the file is private, no secret is elsewhere"):
        found = []
        for d, _, files in os.walk(sk.dir):
            for f in files:
                p = os.path.join(d, f)
                data = open(p, "rb").read() if os.path.isfile(p) else b""
                if b"secret" in data and "config.json" in p or base64.b64encode(b"test:secret") in data:
                    found.append(p)
                    eq(os.stat(p).st_mode & 0o077, 0, "mode of " + p)
        true(len(found) == 1, "one file with the credentials, got %s" % found)
        j = json.load(open(found[0]))
        eq(base64.b64decode(j["auths"][basic]["auth"]), b"test:secret")
    with sk.case("push to the token registry"):
        sk("tag %s/busybox %s/test/pushed:1" % (token, token)).ok
        sk("push %s/test/pushed:1" % token, env=ca).prints(r"(?m)digest: sha256:[0-9a-f]{64} size: \d+")
    with sk.case("logout"):
        sk("logout", basic).prints("Removing login credentials for " + basic)
        sk("pull %s/busybox" % basic, env=ca).exits(1, "unauthorized|authentication|denied|no basic auth")
        sk("logout nosuch.example").prints("Not logged in to nosuch.example")
    with sk.case("anonymous token may pull, not push"):
        sk("logout", token).ok
        sk("pull -q %s/busybox" % token, env=ca).ok
        sk("push %s/test/pushed:1" % token, env=ca).exits(1, "unauthorized|denied|authentication|authoriz")
    with sk.case("login without a terminal and without a password"):
        sk("login -u test", basic, env=ca).exits(1, "TTY|terminal|password")
    with sk.case("login on a terminal asks, and does not echo"):
        t = lib.Terminal(sk, "login", basic, env=ca)
        t.expect("(?i)username")
        t.send("test\n")
        t.expect("(?i)password")
        t.send("secret\n")
        t.expect("Login Succeeded")
        t.exits(0)
        no_match(t.seen, "secret", "the terminal")


@image(None)
def test_where_trust_and_credentials_come_from(sk):
    basic = ENV["REGISTRY_BASIC"]
    ca = trust(sk)
    auth = json.dumps({"auths": {basic: {"auth": base64.b64encode(b"test:secret").decode()}}})
    pull = lambda env=None, pattern=None: sk("pull -q %s/busybox" % basic, env=env or {})
    with sk.case("REGISTRY_AUTH_FILE"):
        pull(dict(ca, REGISTRY_AUTH_FILE=sk.file("auth.json", auth))).ok
    with sk.case("DOCKER_CONFIG"):
        sk.file("dc/config.json", auth)
        pull(dict(ca, DOCKER_CONFIG=sk.dir + "/dc")).ok
    with sk.case("podman's file"):
        p = sk.file("xdg/containers/auth.json", auth)
        pull(ca).ok
        os.unlink(p)
    with sk.case("credHelpers"):
        sk.file("bin/docker-credential-fake", "#!/bin/sh\nread h\necho \"$1 $h\" >>%s/asked\n"
                "echo '{\"ServerURL\":\"x\",\"Username\":\"test\",\"Secret\":\"secret\"}'\n" % sk.dir, 0o755)
        sk.file("home/.docker/config.json", json.dumps({"credHelpers": {basic: "fake"}}))
        pull(dict(ca, PATH=sk.dir + "/bin:" + sk.env["PATH"])).ok
        eq(open(sk.dir + "/asked").readline(), "get %s\n" % basic)
    with sk.case("credHelpers with a path in the name"):
        sk.file("home/.docker/config.json", json.dumps({"credHelpers": {basic: "../../bin/sh"}}))
        pull(ca).exits(1, ".")
    with sk.case("damaged config.json"):
        sk.file("home/.docker/config.json", "{")
        pull(ca).exits(1, r"config\.json")
    sk.file("home/.docker/config.json", auth)
    for d in "home/.config/containers/certs.d", "home/.config/docker/certs.d":
        with sk.case(d):
            p = sk.file("%s/%s/ca.crt" % (d, basic), open(ENV["REGISTRY_CA"]).read())
            pull().ok
            os.unlink(p)
    with sk.case("insecure in registries.conf"):
        c = sk.file("home/.config/containers/registries.conf", '[[registry]]\nlocation = "%s"\ninsecure = true\n' % basic)
        pull().ok
        os.unlink(c)
    with sk.case("blocked in registries.conf"):
        c = sk.file("home/.config/containers/registries.conf", '[[registry]]\nlocation = "%s"\nblocked = true\n' % basic)
        pull(ca).exits(1, "blocked")
        os.unlink(c)
    with sk.case("mirror"):
        c = sk.file("home/.config/containers/registries.conf",
                    '[[registry]]\nprefix = "docker.io/library"\nlocation = "docker.io/library"\n'
                    '[[registry.mirror]]\nlocation = "%s"\ninsecure = true\n' % ENV["REGISTRY_HTTP"])
        sk("pull -q busybox:docker").ok
        sk("images --format", "{{.Repository}}:{{.Tag}}", "busybox").says("busybox:docker")
        os.unlink(c)
    with sk.case("damaged registries.conf"):
        c = sk.file("home/.config/containers/registries.conf", "[[registry\n")
        pull(ca).exits(1, r"registries\.conf")
        os.unlink(c)
    with sk.case("proxy"):
        m, blobs = oci_blobs(lib.busybox_layer())
        proxy = Registry()
        proxy.fault("CONNECT|http:", lambda h: h.send(502, b"", "text/plain"))
        r = sk("pull", "registry.invalid/x", env={"HTTPS_PROXY": "http://" + proxy.host, "https_proxy": "http://" + proxy.host})
        r.exits(1, "proxy|CONNECT|502")
    with sk.case("NO_PROXY"):
        pull(dict(ca, HTTPS_PROXY="http://127.0.0.1:1", NO_PROXY="localhost,127.0.0.1")).ok


def conf(sk, text, name="registries.conf"):
    """A registries.conf of the user's: the text of a case."""
    return sk.file("home/.config/containers/" + name, text)


def entry_of(prefix, location=None, mirrors=(), blocked=False):
    """One [[registry]] table; all hosts are asked by plain http."""
    out = '[[registry]]\nprefix = "%s"\ninsecure = true\n' % prefix
    if location:
        out += 'location = "%s"\n' % location
    if blocked:
        out += "blocked = true\n"
    return out + "".join('[[registry.mirror]]\nlocation = "%s"\ninsecure = true\n' % m for m in mirrors)


def gone(h):
    return h.send(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}', "application/json")


@image(None)
def test_mirrors(sk):
    """The mirrors in their order, then the registry itself: whoever has the image serves it."""
    m, blobs = oci_blobs(lib.busybox_layer())
    d = digest(m)
    g = Registry(m, blobs)

    def pulled(name, mirrors, ref, by, *options):
        """Pulls by way of the mirrors; the blobs must come from `by`."""
        with sk.case(name):
            conf(sk, entry_of(g.host, g.host, [x if isinstance(x, str) else x.host for x in mirrors]))
            for x in [g] + [x for x in mirrors if not isinstance(x, str)]:
                x.requests.clear()
            sk("pull -q", *options, ref).says(ref)
            for x in [g] + [x for x in mirrors if not isinstance(x, str)]:
                eq(x.count("GET .*/blobs/") > 0, x is by, "blobs from %s" % x.host)
            sk("run --rm", ref, "echo", "x").says("x")
            sk("rmi", "-f", ref).ok
    full, empty = Registry(m, blobs), Registry()
    pulled("a mirror that has it", [full], g.ref, full)
    pulled("a mirror that lacks it", [empty], g.ref, g)
    pulled("the second one has it", [empty, full], g.ref, full)
    pulled("by digest, a mirror that lacks it", [empty], "%s/img@%s" % (g.host, d), g)
    pulled("by digest, a mirror that has it", [full], "%s/img@%s" % (g.host, d), full)
    pulled("nobody there", ["127.0.0.1:1"], g.ref, g)
    pulled("a mirror that lets nobody in", [Registry(m, blobs).fault(".", lambda h: h.send(401, b"", "text/plain", {"WWW-Authenticate": 'Basic realm="x"'}))],
           g.ref, g)
    pulled("a mirror that forbids", [Registry(m, blobs).fault("manifests", lambda h: h.send(403, b"{}", "application/json"))], g.ref, g)
    pulled("a mirror below a path", ["127.0.0.1:1/cache", full.host], g.ref, full)
    with sk.case("nobody has it"):
        conf(sk, entry_of(g.host, g.host, [empty.host]))
        empty.requests.clear(), g.requests.clear()
        sk("pull -q %s/img:nosuch" % g.host).exits(1, "not found|unknown")
        true(empty.count("manifests/nosuch") > 0 and g.count("manifests/nosuch") > 0, "both to be asked")
    with sk.case("run pulls by way of a mirror"):
        conf(sk, entry_of(g.host, g.host, [empty.host, full.host]))
        sk("run --rm", g.ref, "echo", "x").says("x")
    with sk.case("push goes to the registry itself"):
        full.requests.clear()
        sk("tag", g.ref, g.host + "/pushed:1").ok
        sk("push -q", g.host + "/pushed:1")
        eq((full.count("POST|PUT|PATCH"), empty.count("POST|PUT|PATCH")), (0, 0), "uploads to a mirror")
        true(g.count("PUT .*/manifests/1") > 0, "an upload to the registry")
        sk("rmi -f", g.ref, g.host + "/pushed:1").ok
    with sk.case("a mirror's own credentials, and not the registry's"):
        closed = Registry(m, blobs)
        closed.fault("/v2/", lambda h: None if h.headers.get("Authorization") == "Basic " + base64.b64encode(b"mirror:word").decode() else
                     h.send(401, b"", "text/plain", {"WWW-Authenticate": 'Basic realm="x"'}))
        auths = {closed.host: {"auth": base64.b64encode(b"mirror:word").decode()}, g.host: {"auth": base64.b64encode(b"home:word").decode()}}
        sk.file("home/.docker/config.json", json.dumps({"auths": auths}))
        pulled("closed mirror", [closed], g.ref, closed)
        sent = {h["Authorization"] for _, _, h in closed.requests if "Authorization" in h}
        eq(sent, {"Basic " + base64.b64encode(b"mirror:word").decode()}, "what the mirror was sent")
    sk.check_store()


@image(None)
def test_registries_conf(sk):
    """containers-registries.conf(5): the longest prefix decides alone; blocked; wildcards; drop-ins."""
    m, blobs = oci_blobs(lib.busybox_layer())
    one_, two = Registry(m, blobs), Registry(m, blobs)
    host = "some.host.invalid"

    def served(name, ref, by, *tables, files=()):
        with sk.case(name):
            paths = [conf(sk, "".join(tables))] + [conf(sk, text, "registries.conf.d/" + f) for f, text in files]
            one_.requests.clear(), two.requests.clear()
            r = sk("pull -q", ref)
            for p in paths:
                os.unlink(p)
            if by is None:
                r.exits(1, "blocked")
                eq(one_.requests + two.requests, [], "requests of a blocked image")
            else:
                r.says(ref)
                eq((one_.count("blobs") > 0, two.count("blobs") > 0), (by is one_, by is two), "who served the blobs")
                sk("rmi -f", ref).ok
    a, b = entry_of(host + "/a", one_.host), entry_of(host + "/a/img", two.host + "/img")
    served("a location", host + "/a/img:latest", one_, a)
    served("the longest prefix", host + "/a/img:latest", two, a, b)
    served("the longest prefix, said first", host + "/a/img:latest", two, b, a)
    served("a prefix ends at a component", host + "/a/img:latest", one_, a, entry_of(host + "/a/im", two.host))
    served("a prefix with a tag is another", host + "/a/img:latest", one_, a, entry_of(host + "/a/img/x", two.host))
    served("blocked by the longest", host + "/a/img", None, a, entry_of(host + "/a/img", blocked=True))
    served("blocked, but not what is below", host + "/a/img:latest", one_, entry_of(host, blocked=True), a)
    served("a host", host + "/img:latest", one_, entry_of(host, one_.host))
    served("a wildcard", "sub.some.invalid/img:latest", one_, entry_of("*.some.invalid", one_.host))
    served("a wildcard, two levels", "x.sub.some.invalid/img:latest", one_, entry_of("*.some.invalid", one_.host))
    served("a wildcard and the host itself", "sub.some.invalid/img:latest", two, entry_of("*.some.invalid", one_.host), entry_of("sub.some.invalid", two.host))
    served("a wildcard blocks", "sub.some.invalid/img", None, entry_of("*.some.invalid", blocked=True))
    with sk.case("a wildcard is of whole labels"):
        p = conf(sk, entry_of("*.some.invalid", one_.host))
        sk("pull -q awesome.invalid/img").exits(1, "resolve|host")
        sk("pull -q some.invalid/img").exits(1, "resolve|host")
        os.unlink(p)
    served("a drop-in", host + "/a/img:latest", one_, "", files=[("10-a.conf", a)])
    served("the last drop-in of a prefix wins", host + "/a/img:latest", two, "", files=[("10-a.conf", a), ("20-b.conf", entry_of(host + "/a", two.host))])
    served("a drop-in over the file", host + "/a/img:latest", two, a, files=[("10-b.conf", entry_of(host + "/a", two.host))])
    served("a longer prefix in a drop-in", host + "/a/img:latest", two, a, files=[("10-b.conf", b)])
    served("a longer prefix in the file", host + "/a/img:latest", two, b, files=[("10-a.conf", a)])
    served("a file of another name is none", host + "/a/img:latest", one_, a, files=[("10-b.conf.bak", entry_of(host + "/a", two.host)), (".20.txt", "[[")])
    with sk.case("a drop-in of the user's where there is no file of the user's"):
        p = conf(sk, a, "registries.conf.d/10-a.conf")
        sk("pull -q %s/a/img" % host).ok
        sk("rmi -f %s/a/img" % host).ok
        os.unlink(p)
    with sk.case("a damaged drop-in"):
        p = conf(sk, "[[registry\n", "registries.conf.d/10-a.conf")
        q = conf(sk, a)
        sk("pull -q %s/a/img" % host).exits(1, r"10-a\.conf")
        os.unlink(p), os.unlink(q)
    with sk.case("$CONTAINERS_REGISTRIES_CONF"):
        sk("pull -q %s/a/img" % host, env={"CONTAINERS_REGISTRIES_CONF": sk.file("elsewhere.conf", a)}).ok


def demands(want):
    """A fault for Registry: Basic credentials or nothing."""
    header = "Basic " + base64.b64encode(want.encode()).decode()
    return lambda h: None if h.headers.get("Authorization") == header else h.send(
        401, b"", "text/plain", {"WWW-Authenticate": 'Basic realm="x"'})


@image(None)
def test_auth_keys(sk):
    """The forms of keys that Docker and Podman write; the most specific one decides."""
    m, blobs = oci_blobs(lib.busybox_layer())
    g = Registry(m, blobs, name="team/img").fault("/v2/", demands("me:word"))
    good = {"auth": base64.b64encode(b"me:word").decode()}
    bad = {"auth": base64.b64encode(b"me:wrong").decode()}

    def pull(auths):
        sk.file("home/.docker/config.json", json.dumps({"auths": auths}))
        r = sk("pull -q", g.ref)
        sk("rmi -f", g.ref)
        return r
    for name, auths in [
            ("host", {g.host: good}), ("host/path", {g.host + "/team": good}), ("host/path/image", {g.host + "/team/img": good}),
            ("https://host", {"https://" + g.host: good}), ("http://host", {"http://" + g.host: good}), ("https://host/", {"https://%s/" % g.host: good}),
            ("https://host/v1/", {"https://%s/v1/" % g.host: good}), ("https://host/v2/", {"https://%s/v2/" % g.host: good}),
            ("user name and password", {g.host: {"username": "me", "password": "word"}}),
            ("the most specific", {g.host: bad, g.host + "/team": bad, g.host + "/team/img": good}),
            ("the most specific, said first", {g.host + "/team/img": good, g.host: bad}),
            ("another path", {g.host: good, g.host + "/tea": bad, g.host + "/team/im": bad, g.host + "/team/img/below": bad}),
            ("another host", {g.host: good, g.host + "1": bad, "1" + g.host: bad, g.host.split(":")[0]: bad})]:
        with sk.case(name):
            pull(auths).ok
    for name, auths in [
            ("nothing", {}), ("another path only", {g.host + "/tea": good}), ("the wrong one is more specific", {g.host: good, g.host + "/team/img": bad}),
            ("the host without its port", {g.host.split(":")[0]: good}), ("empty", {g.host: {}}), ("not base64", {g.host: {"auth": "***"}}),
            ("no colon", {g.host: {"auth": base64.b64encode(b"justname").decode()}})]:
        with sk.case("refused: " + name):
            r = pull(auths).exits(1, "unauthorized|authentication|denied|no basic auth|login")
            no_match(r.err + r.out, "me:|:word|:wrong|bWU6|justname", "what is said")
    with sk.case("credentials of the name are not sent to where a location leads"):
        g.requests.clear()
        sk.file("home/.docker/config.json", json.dumps({"auths": {"named.invalid": good}}))
        conf(sk, entry_of("named.invalid", g.host))
        sk("pull -q named.invalid/team/img").exits(1, "unauthorized|authentication|denied|no basic auth|login")
        eq([h for _, _, h in g.requests if "Authorization" in h], [], "requests with credentials")
    with sk.case("credentials of where it leads are"):
        sk.file("home/.docker/config.json", json.dumps({"auths": {g.host: good}}))
        sk("pull -q named.invalid/team/img").ok


HELPER = """#!/bin/sh
# docker-credential-fake: keeps what it is told in files
in=$(cat)
echo "$*" >>%(dir)s/asked
env >>%(dir)s/environment
case $1 in
    store) echo "$in" >%(dir)s/stored ;;
    get) [ -e %(dir)s/stored ] && cat %(dir)s/stored || { echo "credentials not found in native keychain"; exit 1; } ;;
    erase) echo "$in" >%(dir)s/erased; rm -f %(dir)s/stored ;;
    *) exit 2 ;;
esac
"""


@image(None)
def test_credential_helpers(sk):
    """login and logout leave the secret to the helper that the file names."""
    basic = ENV["REGISTRY_BASIC"]
    env = dict(trust(sk), PATH=sk.dir + "/bin:" + sk.env["PATH"])
    sk.file("bin/docker-credential-fake", HELPER % {"dir": sk.dir}, 0o755)
    path = sk.dir + "/home/.docker/config.json"
    for kind, config in ("credHelpers", {"credHelpers": {basic: "fake"}}), ("credsStore", {"credsStore": "fake"}):
        with sk.case(kind + ": login"):
            sk.file("home/.docker/config.json", json.dumps(dict(config, other={"kept": 1})))
            sk("login -u test --password-stdin", basic, env=env, input="secret\n").prints("Login Succeeded")
            eq(json.load(open(sk.dir + "/stored")), {"ServerURL": basic, "Username": "test", "Secret": "secret"})
            text = open(path).read()
            true("secret" not in text and base64.b64encode(b"test:secret").decode() not in text, "no secret in config.json: " + text)
            eq(json.loads(text)["other"], {"kept": 1}, "the rest of config.json")
        with sk.case(kind + ": pull"):
            sk("pull -q %s/busybox" % basic, env=env).ok
        with sk.case(kind + ": logout"):
            sk("logout", basic, env=env).prints("Removing login credentials for " + basic)
            eq(open(sk.dir + "/erased").read().strip(), basic)
            true(not os.path.exists(sk.dir + "/stored"), "nothing kept")
            sk("pull %s/busybox" % basic, env=env).exits(1, "unauthorized|authentication|denied|no basic auth|login")
    with sk.case("the secret is neither an argument nor in the environment"):
        no_match(open(sk.dir + "/asked").read() + open(sk.dir + "/environment").read(), "secret|" + base64.b64encode(b"test:secret").decode(), "what the helper was told")
    with sk.case("a wrong password is not kept"):
        sk("login -u test -p wrong-one", basic, env=env).exits(1, "unauthorized|incorrect|denied|401")
        true(not os.path.exists(sk.dir + "/stored"), "nothing kept")
    with sk.case("a helper of another registry is not asked"):
        sk.file("home/.docker/config.json", json.dumps({"credHelpers": {"other.example": "fake"}}))
        os.unlink(sk.dir + "/asked")
        sk("login -u test --password-stdin", basic, env=env, input="secret\n").ok
        true(not os.path.exists(sk.dir + "/asked"), "the helper not to be asked")
        sk("logout", basic, env=env).ok
    with sk.case("a helper that fails"):
        sk.file("bin/docker-credential-bad", "#!/bin/sh\necho 'the keyring is locked'; exit 1\n", 0o755)
        sk.file("home/.docker/config.json", json.dumps({"credHelpers": {basic: "bad"}}))
        r = sk("login -u test --password-stdin", basic, env=env, input="secret\n").exits(1, "keyring is locked")
        true("secret" not in r.err and "test:secret" not in open(path).read(), "no secret said or kept")
    with sk.case("a helper that is not there"):
        sk.file("home/.docker/config.json", json.dumps({"credHelpers": {basic: "nosuch"}}))
        sk("login -u test --password-stdin", basic, env=env, input="secret\n").exits(1, "nosuch")


@image(None)
def test_identity_token(sk):
    """An identity token is exchanged for a token by POST, as OAuth2 has it, at the realm alone."""
    m, blobs = oci_blobs(lib.busybox_layer())
    g = Registry(m, blobs)
    posts = []

    def token(h):
        if h.command != "POST":
            return h.send(401, b"{}", "application/json")
        form = h.rfile.read(int(h.headers["Content-Length"])).decode()
        posts.append((form, h.headers.get("Content-Type"), h.headers.get("Authorization")))
        if "refresh_token=it%3Dis%2Bme%26x" not in form:
            return h.send(401, b"{}", "application/json")
        return h.send(200, b'{"access_token":"short-lived"}', "application/json")
    g.fault("/token", token)
    g.fault("/v2/", lambda h: None if h.headers.get("Authorization") == "Bearer short-lived" else h.send(
        401, b"", "text/plain", {"WWW-Authenticate": 'Bearer realm="http://%s/token",service="the service",scope="repository:img:pull"' % g.host}))
    for name, entry_ in [("alone", {"identitytoken": "it=is+me&x"}), ("beside an empty password", {
            "auth": base64.b64encode(b"00000000-0000:").decode(), "identitytoken": "it=is+me&x"})]:
        with sk.case(name):
            posts.clear()
            sk.file("home/.docker/config.json", json.dumps({"auths": {g.host: entry_}}))
            sk("pull -q", g.ref).ok
            sk("rmi -f", g.ref).ok
            form, kind, auth = posts[0]
            eq((kind, auth), ("application/x-www-form-urlencoded", None))
            for want in "grant_type=refresh_token", "service=the%20service", "scope=repository%3Aimg%3Apull", "client_id=":
                true(want in form.replace("+", "%20"), "%s in %s" % (want, form))
    with sk.case("from a helper, as user <token>"):
        sk.file("bin/docker-credential-fake", "#!/bin/sh\necho '{\"Username\":\"<token>\",\"Secret\":\"it=is+me&x\"}'\n", 0o755)
        sk.file("home/.docker/config.json", json.dumps({"credHelpers": {g.host: "fake"}}))
        sk("pull -q", g.ref, env={"PATH": sk.dir + "/bin:" + sk.env["PATH"]}).ok
        sk("rmi -f", g.ref).ok
    with sk.case("one that is refused"):
        sk.file("home/.docker/config.json", json.dumps({"auths": {g.host: {"identitytoken": "old-secret"}}}))
        r = sk("pull -q", g.ref).exits(1, "denied|unauthorized|authentication|login")
        no_match(r.err, "old-secret", "what is said")
    with sk.case("it never goes to the registry"):
        eq([h["Authorization"] for _, _, h in g.requests if "it=is" in h.get("Authorization", "")], [])


def authority(sk, *names):
    """The folder of a certificate authority, with certificates for this machine."""
    ca = sk.folder("ca")
    ext = sk.file("ca/ext", "subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    tool("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=ca", "-keyout", ca + "/ca.key", "-out", ca + "/ca.crt")
    for name in names:
        tool("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=" + name, "-keyout", "%s/%s.key" % (ca, name), "-out", "%s/%s.csr" % (ca, name))
        tool("openssl", "x509", "-req", "-in", "%s/%s.csr" % (ca, name), "-CA", ca + "/ca.crt", "-CAkey", ca + "/ca.key", "-CAcreateserial", "-days", "30",
             "-extfile", ext, "-out", "%s/%s.crt" % (ca, name))
    return ca


def tls_server(ca, verify=ssl.CERT_NONE):
    c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    c.load_cert_chain(ca + "/server.crt", ca + "/server.key")
    c.load_verify_locations(ca + "/ca.crt")
    c.verify_mode = verify
    return c


@image(None)
def test_client_certificate(sk):
    """certs.d/HOST/NAME.cert with NAME.key, as containers-certs.d(5) says."""
    ca = authority(sk, "server", "client")
    m, blobs, big = one()
    seen = []  # who offered a certificate at the second registry
    g = Registry(m, blobs, tls=tls_server(ca, ssl.CERT_REQUIRED))
    other = Registry(m, blobs, tls=tls_server(ca, ssl.CERT_OPTIONAL))
    other.fault(".", lambda h: seen.append(h.connection.getpeercert()))
    d = "home/.config/containers/certs.d/%s/" % g.host
    read = lambda name: open(ca + "/" + name).read()
    sk.file(d + "ca.crt", read("ca.crt"))
    with sk.case("without one"):
        sk("pull -q", g.ref).exits(1, "certificate|TLS|SSL|handshake|alert")
    cert, key = sk.file(d + "client.cert", read("client.crt")), sk.file(d + "client.key", read("client.key"), 0o600)
    with sk.case("with one"):
        sk("pull -q", g.ref).ok
        sk("run --rm", g.ref, "echo", "x").says("x")
        sk("rmi -f", g.ref).ok
    with sk.case("it is not shown to another host"):
        sk.file("home/.config/containers/certs.d/%s/ca.crt" % other.host, read("ca.crt"))
        g.fault("GET .*" + big, lambda h: h.send(307, b"", "text/plain", {"Location": "https://%s/v2/img/blobs/%s" % (other.host, big)}))
        sk("pull -q", g.ref).ok
        true(seen and not any(seen), "the redirect to be followed without a certificate, got %s" % seen)
        sk("rmi -f", g.ref).ok
        sk("pull -q", other.ref).ok
        true(not any(seen), "no certificate for a registry that has none in certs.d")
    g.faults.clear()
    with sk.case("a certificate without its key is told"):
        os.unlink(key)
        sk("pull -q", g.ref).exits(1, r"client\.key")
    with sk.case("a damaged key"):
        sk.file(d + "client.key", "nonsense")
        sk("pull -q", g.ref).exits(1, ".")
    with sk.case("a key of another"):
        sk.file(d + "client.key", read("server.key"))
        sk("pull -q", g.ref).exits(1, ".")


@only("ab")
def test_push(sk):
    http = ENV["REGISTRY_HTTP"]
    name = "%s/pushed-%s-%d" % (http, sk.who, os.getpid())
    sk("tag busybox", name + ":1").ok
    with sk.case("push"):
        r = sk("push", name + ":1").ok
        match(r.out, r"(?m)^The push refers to repository \[%s\]$" % name)
        match(r.out, r"(?m)^1: digest: sha256:[0-9a-f]{64} size: \d+$")
    with sk.case("skopeo reads it"):
        j = json.loads(tool("skopeo", "inspect", "--tls-verify=false", "docker://" + name + ":1"))
        eq(j["Architecture"], lib.ARCH)
    with sk.case("it comes back the same"):
        iid = sk.get(name + ":1", "{{.Id}}")
        sk("rmi -f", name + ":1", "busybox").ok
        sk("pull -q", name + ":1").ok
        eq(sk.get(name + ":1", "{{.Id}}"), iid)
    with sk.case("again"):
        sk("push", name + ":1").prints("Layer already exists")
    with sk.case("-q"):
        sk("push -q", name + ":1").says(name + ":1")
    with sk.case("a commit"):
        sk("run --name cc", name + ":1", "sh", "-c", "echo x >/f").ok
        sk("commit cc", name + ":2").ok
        sk("push", name + ":2").ok
        tool("skopeo", "copy", "-q", "--src-tls-verify=false", "docker://" + name + ":2", "oci:%s/o:x" % sk.dir)
        tool("umoci", "unpack", "--rootless", "--image", sk.dir + "/o:x", sk.dir + "/bundle")
        eq(open(sk.dir + "/bundle/rootfs/f").read(), "x\n")
    with sk.case("missing"):
        sk("push nosuch").exits(1, "does not exist|no such image")
    with sk.case("read-only registry"):
        g = Registry()
        g.fault("POST", lambda h: h.send(403, b'{"errors":[{"code":"DENIED","message":"no way"}]}', "application/json"))
        sk("tag", name + ":1", g.host + "/x").ok
        sk("push", g.host + "/x").exits(1, "no way|denied")


# ---- registries that misbehave ----

def one(size=300000, extra=()):
    """An image of one busybox and one random layer, and the digest of the latter's blob."""
    noise = random.Random(7).randbytes(size)
    layers = [lib.busybox_layer(), tar(entry("noise", noise), *extra)]
    m, blobs = oci_blobs(*layers)
    return m, blobs, json.loads(m)["layers"][1]["digest"]


def clean_after_failure(sk):
    """Nothing half-done: no image, the store in order."""
    sk("images -aq").says("")
    sk.check_store()


@image(None)
def test_faults_that_heal(sk):
    """Retried with back-off, resumed by Range: the pull succeeds."""
    m, blobs, big = one()
    data = blobs[big]

    def cut(h):  # the first half, then the connection closes
        if h.headers.get("Range"):
            return False
        h.send(200, data[:len(data) // 2], "application/octet-stream", size=len(data))
        h.close_connection = True
        return True

    def flaky(h):
        return h.send(503, b"later", "text/plain", {"Retry-After": "1"})

    for name, pattern, fault, times in [
            ("503 on a blob", "GET .*blobs/" + big, flaky, 2),
            ("500 on a manifest", "GET .*manifests", lambda h: h.send(500, b"oops"), 1),
            ("429 on a blob", "GET .*blobs/" + big, lambda h: h.send(429, b"slow", "text/plain", {"Retry-After": "1"}), 1),
            ("closed in the middle", "GET .*blobs/" + big, cut, 1),
            ("closed in the middle twice", "GET .*blobs/" + big, cut, 2),
            ("closed at once", "GET .*blobs/" + big, lambda h: setattr(h, "close_connection", True) or True, 1),
    ]:
        with sk.case(name):
            g = Registry(m, blobs).fault(pattern, fault, times)
            sk("pull -q", g.ref).ok
            sk("run --rm", g.ref, "wc", "-c", "/noise").says("300000 /noise")
            if "middle" in name:
                true(any(h.get("Range", "").startswith("bytes=") for _, p, h in g.requests if big in p),
                     "a Range request after the connection broke")
            sk("rmi", g.ref).ok
    with sk.case("a server that ignores Range"):
        g = Registry(m, blobs).fault("GET .*" + big, cut, 1).fault(
            "GET .*" + big, lambda h: h.send(200, data, "application/octet-stream"))
        sk("pull -q", g.ref).ok
        sk("rmi", g.ref).ok
    with sk.case("HEAD not allowed"):
        g = Registry(m, blobs).fault("^HEAD", lambda h: h.send(405, b""))
        sk("pull -q", g.ref).ok
        sk("rmi", g.ref).ok
    with sk.case("no Content-Length"):
        def chunked(h):
            h.send_response(200)
            h.send_header("Transfer-Encoding", "chunked")
            h.end_headers()
            for i in range(0, len(data), 7919):
                h.wfile.write(b"%x\r\n%s\r\n" % (len(data[i:i + 7919]), data[i:i + 7919]))
            h.wfile.write(b"0\r\n\r\n")
            return True
        g = Registry(m, blobs).fault("GET .*" + big, chunked)
        sk("pull -q", g.ref).ok
        sk("rmi", g.ref).ok
    with sk.case("a killed pull goes on where it was"):
        g = Registry(m, blobs)

        def stall(h):
            h.send(200, data[:200000], "application/octet-stream", size=len(data))
            stop.wait(60)
            return True
        stop = lib.threading.Event()
        g.fault("GET .*" + big, stall, 1)
        p = sk.popen("pull -q", g.ref, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: g.count("GET .*" + big), "the blob is asked for")
        time.sleep(0.3)
        p.kill()
        p.wait()
        stop.set()
        sk.check_store()
        sk("pull -q", g.ref).ok
        sk("run --rm", g.ref, "wc", "-c", "/noise").says("300000 /noise")
    sk.check_store()


@image(None)
@timeout(200)
def test_faults_that_last(sk):
    """A clear error, exit code 1, nothing half-done."""
    m, blobs, big = one()
    data = blobs[big]
    other = dict(blobs)
    other[big] = data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]
    short_, long_ = dict(blobs), dict(blobs)
    short_[big], long_[big] = data[:-1], data + b"x"
    manifest = json.loads(m)

    def doc(change):
        j = json.loads(m)
        change(j)
        return json.dumps(j).encode()

    def layer(**kw):
        return doc(lambda j: j["layers"][1].update(kw))

    wrong = json.loads(blobs[manifest["config"]["digest"]])
    wrong["rootfs"]["diff_ids"][1] = "sha256:" + "0" * 64
    wrong = json.dumps(wrong).encode()
    diff = doc(lambda j: j["config"].update(digest=digest(wrong), size=len(wrong)))
    moved = lambda to: (lambda h: h.send(307, b"", "text/plain", {"Location": to}))
    for name, reg, pattern in [
            ("bit flipped in a blob", Registry(m, other), "damaged|digest|checksum|mismatch|verif"),
            ("blob too short", Registry(m, short_), "size|short|digest|mismatch|truncated|unexpected|closed"),
            ("blob too long", Registry(m, long_), "size|long|digest|mismatch|larger"),
            ("blob missing", Registry(m, {k: v for k, v in blobs.items() if k != big}), "not found|unknown|404"),
            ("config missing", Registry(m, {k: v for k, v in blobs.items() if k != manifest["config"]["digest"]}), "not found|unknown|404"),
            ("manifest that lies about a size", Registry(layer(size=len(data) + 5), blobs), "size|mismatch|short|closed"),
            ("manifest size too small", Registry(layer(size=10), blobs), "size|mismatch|larger|long"),
            ("negative size", Registry(layer(size=-1), blobs), "size|invalid|negative"),
            ("size is a string", Registry(layer(size="5"), blobs), "size|invalid"),
            ("size 2^63", Registry(layer(size=1 << 63), blobs), "size|invalid|large|integer|JSON"),
            ("wrong diff id", Registry(diff, {**blobs, digest(wrong): wrong}), "diff.?id|digest|mismatch"),
            ("digest with a path", Registry(layer(digest="sha256:../../../../x"), blobs), "digest|invalid"),
            ("digest short", Registry(layer(digest="sha256:abcd"), blobs), "digest|invalid"),
            ("digest upper case", Registry(layer(digest=big.upper().replace("SHA", "sha")), blobs), "digest|invalid"),
            ("digest of no algorithm", Registry(layer(digest=big[7:]), blobs), "digest|invalid"),
            ("digest md5", Registry(layer(digest="md5:d41d8cd98f00b204e9800998ecf8427e"), blobs), "digest|unsupported|algorithm|md5"),
            ("digest missing", Registry(doc(lambda j: j["layers"][1].pop("digest")), blobs), "digest"),
            ("no layers", Registry(doc(lambda j: j.pop("layers")), blobs), "layers|manifest"),
            ("layers are an object", Registry(doc(lambda j: j.update(layers={})), blobs), "layers|manifest|array"),
            ("no config", Registry(doc(lambda j: j.pop("config")), blobs), "config|manifest"),
            ("index and manifest at once", Registry(doc(lambda j: j.update(manifests=[])), blobs), "both|ambig|confus|manifests|index"),
            ("media type of an index", Registry(doc(lambda j: j.update(mediaType=OCI + "index.v1+json")), blobs), "media|index|manifest"),
            ("schema 1", Registry(json.dumps({"schemaVersion": 1, "name": "x", "fsLayers": []}).encode(), blobs), "schema|unsupported|version"),
            ("not JSON", Registry(b"<html>", blobs), "JSON|parse|manifest|invalid"),
            ("empty manifest", Registry(b"", blobs), "JSON|parse|manifest|empty|invalid"),
            ("deep JSON", Registry(b'{"a":' + b"[" * 200000, blobs), "JSON|deep|manifest|parse|nest|invalid"),
            ("index of indexes without end", None, "nest|deep|index|loop|recurs|no matching"),
            ("redirect loop", Registry(m, blobs), "redirect"),
            ("500 for ever", Registry(m, blobs).fault("GET .*blobs/" + big, lambda h: h.send(500, b"no")), "500|server error"),
            ("config of 100 MB", None, "size|large|limit|big"),
            ("10,000 layers", None, "layers|many|limit"),
            ("another digest than asked for", None, "digest|mismatch"),
            ("login page instead of a blob", Registry(m, blobs).fault("GET .*" + big, lambda h: h.send(200, b"<html>please log in</html>", "text/html")), "size|digest|mismatch|html|short|closed"),
            ("redirect to a file", Registry(m, blobs).fault("GET .*" + big, moved("file:///etc/passwd")), "redirect|protocol|file|scheme|unsupported"),
            ("redirect to gopher", Registry(m, blobs).fault("GET .*" + big, moved("gopher://127.0.0.1:1/x")), "redirect|protocol|gopher|scheme|unsupported"),
    ]:
        with sk.case(name):
            sk.root = sk.env["SKIFF_ROOT"] = sk.folder("roots") + "/" + name.replace(" ", "-")
            ref = reg and reg.ref
            if name == "index of indexes without end":
                reg = Registry()
                d = {"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": []}
                child = m
                for _ in range(50):
                    reg.manifests[digest(child)] = child
                    child = json.dumps(dict(d, manifests=[{"mediaType": OCI + "index.v1+json", "digest": digest(child),
                                                          "size": len(child), "platform": {"architecture": lib.ARCH, "os": "linux"}}])).encode()
                reg.manifests["latest"] = child
                reg.blobs = blobs
                ref = reg.ref
            elif name == "redirect loop":
                reg.fault("GET .*blobs", lambda h: h.send(307, b"", "text/plain", {"Location": h.path}))
            elif name == "config of 100 MB":
                j = json.loads(m)
                j["config"].update(size=100 << 20)
                reg = Registry(json.dumps(j).encode(), blobs)
                reg.fault("GET .*" + j["config"]["digest"], lambda h: h.send(200, b" " * (100 << 20)))
                ref = reg.ref
            elif name == "10,000 layers":
                j = json.loads(m)
                j["layers"] *= 5000
                reg = Registry(json.dumps(j).encode(), blobs)
                ref = reg.ref
            elif name == "another digest than asked for":
                reg = Registry(m, blobs)
                reg.manifests["sha256:" + "1" * 64] = m
                ref = "%s/img@sha256:%s" % (reg.host, "1" * 64)
            sk("pull -q", ref, wait=90).exits(1, pattern)
            clean_after_failure(sk)
    for name, bad in ("flipped", other), ("short", short_), ("long", long_):
        with sk.case("a blob that came %s does not spoil the next pull" % name):
            sk.root = sk.env["SKIFF_ROOT"] = sk.dir + "/roots/after-" + name
            sk("pull -q", Registry(m, bad).ref).exits(1)
            g = Registry(m, blobs)
            sk("pull -q", g.ref).ok
            sk("run --rm", g.ref, "wc", "-c", "/noise").says("300000 /noise")
    with sk.case("what went wrong is named"):
        sk.root = sk.env["SKIFF_ROOT"] = sk.dir + "/roots/named"
        g = Registry(m, other)
        r = sk("pull", g.ref).exits(1)
        match(r.err, "img", "the image in the error")


@image(None)
def test_two_faces(sk):
    """CVE-2021-41190: what is an index to one reader and a manifest to another is neither."""
    m, blobs, _ = one()
    evil, more = oci_blobs(lib.busybox_layer(), tar(entry("evil", "x")))
    d = {"mediaType": OCI + "manifest.v1+json", "digest": digest(evil), "size": len(evil), "platform": {"architecture": lib.ARCH, "os": "linux"}}
    index = {"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": [d]}
    kinds = {"an index": OCI + "index.v1+json", "a manifest": OCI + "manifest.v1+json", "a list": "application/vnd.docker.distribution.manifest.list.v2+json"}
    both = dict(json.loads(m), manifests=[d])
    for name, doc, kind, pattern in \
            [("both, said to be " + k, dict(both, mediaType=v), None, "at once") for k, v in kinds.items()] + \
            [("both, sent as " + k, {k: v for k, v in both.items() if k != "mediaType"}, v, "at once") for k, v in kinds.items()] + [
                ("a manifest said to be an index", dict(json.loads(m), mediaType=kinds["an index"]), None, "its content is a manifest"),
                ("a manifest sent as an index", json.loads(m), kinds["a list"], "its content is a manifest"),
                ("an index said to be a manifest", dict(index, mediaType=kinds["a manifest"]), None, "its content is an index"),
                ("an index sent as a manifest", index, kinds["a manifest"], "its content is an index")]:
        with sk.case(name):
            doc = json.dumps(doc).encode()
            g = Registry(doc, {**blobs, **more})
            g.manifests[digest(evil)] = evil
            if kind:
                g.fault("manifests/latest", lambda h: h.send(200, doc, kind))
            sk("pull -q", g.ref).exits(1, pattern)
            sk("images -aq").says("")
    with sk.case("each for itself is taken"):
        g = Registry(json.dumps(index).encode(), more)
        g.manifests[digest(evil)] = evil
        sk("pull -q", g.ref).ok


@image(None)
def test_swapped_contents(sk):
    """Other contents of the same size, which nothing but the digest tells apart."""
    plain = lambda x: x
    m, blobs = oci_blobs(lib.busybox_layer(), tar(entry("f", "good")), compress=plain, media="layer.v1.tar")
    evil, other = oci_blobs(lib.busybox_layer(), tar(entry("f", "evil")), compress=plain, media="layer.v1.tar")
    mine, theirs = json.loads(m), json.loads(evil)
    swap = lambda a, b: Registry(m, {**blobs, a["digest"]: other[b["digest"]]})
    with sk.case("a layer"):
        sk("pull -q", swap(mine["layers"][1], theirs["layers"][1]).ref).exits(1, "digest")
    with sk.case("the configuration"):
        sk("pull -q", swap(mine["config"], theirs["config"]).ref).exits(1, "digest")
    with sk.case("configuration and layer"):
        g = swap(mine["config"], theirs["config"])
        g.blobs[mine["layers"][1]["digest"]] = other[theirs["layers"][1]["digest"]]
        sk("pull -q", g.ref).exits(1, "digest")
    with sk.case("the manifest"):
        g = Registry(evil, other)
        g.manifests[digest(m)] = evil
        sk("pull -q %s/img@%s" % (g.host, digest(m))).exits(1, "digest")
    clean_after_failure(sk)


@image(None)
def test_digests(sk):
    """CVE-2024-3727: what is no digest becomes neither a path nor an address."""
    m, blobs, big = one()
    for bad in "sha256:../../planted", "sha256:../planted/" + "a" * 53, "sha256:/planted" + "a" * 56, big.upper().replace("SHA", "sha"), big[:-1], big + "0", \
            "sha256:", "sha512:" + "0" * 128, "sha256:%2e%2e/planted", "SHA256:" + big[7:], "", None, 5:
        for what in "layer", "config", "index":
            with sk.case("%s of %s" % (bad, what)):
                j = json.loads(m)
                if what == "index":
                    j = {"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": [
                        {"mediaType": OCI + "manifest.v1+json", "digest": bad, "size": 5, "platform": {"architecture": lib.ARCH, "os": "linux"}}]}
                else:
                    (j["layers"][1] if what == "layer" else j["config"]).update(digest=bad)
                g = Registry(json.dumps(j).encode(), blobs)
                sk("pull -q", g.ref).exits(1, "digest|no matching")
                asked = [p for _, p, _ in g.requests if "blobs" in p or "manifests" in p and "latest" not in p]
                eq([p for p in asked if p.split("/")[-1] not in blobs], [], "what was asked for")
        if isinstance(bad, str):
            with sk.case("%s in a reference" % bad):
                g = Registry(m, blobs)
                sk(["pull", "-q", "%s/img@%s" % (g.host, bad)]).exits(1, "reference|digest")
                eq(g.requests, [], "requests")
            for what in "layer", "config", "manifest":
                with sk.case("%s of the %s of an archive" % (bad, what)):
                    j = json.loads(m)
                    if what != "manifest":
                        (j["layers"][1] if what == "layer" else j["config"]).update(digest=bad)
                    doc = json.dumps(j).encode()
                    index = {"schemaVersion": 2, "manifests": [{"mediaType": OCI + "manifest.v1+json", "digest": bad if what == "manifest" else digest(doc), "size": len(doc)}]}
                    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode(), "blobs/planted": blobs[big],
                             **{"blobs/sha256/" + k[7:]: v for k, v in {**blobs, digest(doc): doc}.items()}}
                    sk("load -q", input=tar(*[entry(k, v) for k, v in files.items()])).exits(1, "digest")
        true(not [x for x in os.listdir(sk.dir) if "planted" in x], "nothing beside the store")
    clean_after_failure(sk)


@image(None)
def test_endless_manifest(sk):
    """A manifest of 1 GB, and one without end: bounded memory, a clear error."""
    less = {} if "ASAN_OPTIONS" in sk.env else {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))}
    def endless(h):
        h.send_response(200)
        h.send_header("Content-Type", OCI + "manifest.v1+json")
        h.send_header("Content-Length", str(1 << 30))
        h.end_headers()
        for _ in range(1 << 10):
            h.wfile.write(b" " * (1 << 20))
        return True
    with sk.case("manifest"):
        g = Registry().fault("GET .*manifests", endless)
        p = sk.popen("pull -q", g.ref, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **less)
        _, status, usage = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        err = p.stderr.read().decode()
        eq(p.returncode, 1, "exit code; stderr " + err)
        match(err, "(?i)large|limit|size|big|long")
        true(usage.ru_maxrss < 200000, "less than 200 MB of memory, got %d kB" % usage.ru_maxrss)
    with sk.case("token"):
        g = Registry()
        g.fault("/v2/", lambda h: h.send(401, b"", "text/plain", {
            "WWW-Authenticate": 'Bearer realm="http://%s/token",service="x"' % g.host}))
        g.fault("/token", endless)
        sk("pull -q", g.ref, **less).exits(1, "longer than")
    with sk.case("headers"):
        g = Registry().fault("/v2/", lambda h: h.send(200, b"", "text/plain", {"X-%d" % i: "y" * 60000 for i in range(200)}))
        sk("pull -q", g.ref, **less).exits(1, ".")
    clean_after_failure(sk)


@image(None)
@timeout(180)
def test_stalls(sk):
    """A server that says nothing: Ctrl-C ends the pull at once and leaves the store in order."""
    m, blobs, big = one()
    data = blobs[big]
    stop = lib.threading.Event()

    def stall(h):
        h.send(200, data[:1000], "application/octet-stream", size=len(data))
        stop.wait(100)
        return True
    for sig, code in (signal.SIGINT, 130), (signal.SIGTERM, 143):
        with sk.case(sig.name):
            g = Registry(m, blobs).fault("GET .*" + big, stall)
            p = sk.popen("pull", g.ref, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            until(lambda: g.count("GET .*" + big), "the blob is asked for")
            p.send_signal(sig)
            true(p.wait(30) in (1, code, -sig), "an end by the signal, got %d" % p.returncode)
            clean_after_failure(sk)
    stop.set()


@image(None)
def test_no_core_dump(sk):
    """What has credentials in memory leaves no core dump, whatever the caller's limit."""
    m, blobs, big = one()
    g, go = Registry(m, blobs), lib.threading.Event()
    g.fault("GET .*" + big, lambda h: not go.wait(100))
    p = sk.popen("pull", g.ref, stdout=subprocess.DEVNULL,
                 preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2))
    until(lambda: g.count("GET .*" + big), "the blob is asked for")
    with open("/proc/%d/limits" % p.pid) as f:
        limits = f.read()
    go.set()
    eq(p.wait(30), 0)
    match(limits, r"(?m)^Max core file size +0 ")


@image(None)
def test_credentials_stay_home(sk):
    """No Authorization to another host: by redirect, by a realm elsewhere, by a foreign layer URL."""
    m, blobs, big = one()
    stranger = Registry(m, blobs)
    g = Registry(m, blobs)
    home = g.host.replace("127.0.0.1", "localhost")
    auth = base64.b64encode(b"me:top-secret-word").decode()
    sk.file("home/.docker/config.json", json.dumps({"auths": {home: {"auth": auth}, g.host: {"auth": auth}}}))

    def ask(h):
        if h.headers.get("Authorization"):
            return False
        return h.send(401, b"", "text/plain", {"WWW-Authenticate": 'Basic realm="x"'})
    with sk.case("redirect of a blob"):
        g.fault("GET .*" + big, lambda h: h.headers.get("Authorization") and h.send(
            307, b"", "text/plain", {"Location": "http://%s/v2/img/blobs/%s" % (stranger.host, big)}))
        g.fault("/v2/", ask)
        sk("pull -q", g.ref).ok
        true(any("Authorization" in h for _, _, h in g.requests), "credentials for their own host")
        true(stranger.count(big) > 0, "the redirect to be followed")
        eq([p for _, p, h in stranger.requests if "Authorization" in h or "Cookie" in h], [], "credentials at another host")
        sk("rmi", g.ref).ok
    with sk.case("realm at another host (CVE-2020-15157)"):
        stranger.requests.clear()
        g2 = Registry(m, blobs)
        sk.file("home/.docker/config.json", json.dumps({"auths": {g2.host: {"auth": auth}}}))
        g2.fault("/v2/", lambda h: h.send(401, b"", "text/plain", {
            "WWW-Authenticate": 'Bearer realm="http://%s/token",service="x",scope="y"' % stranger.host}))
        stranger.fault("/token", lambda h: h.send(200, b'{"token":"x"}', "application/json"))
        sk("pull -q", g2.ref).exits(1, ".")
        sent = [h["Authorization"] for _, _, h in stranger.requests if "Authorization" in h]
        body = [p for _, p, _ in stranger.requests if "secret" in p]
        # A realm by plain http elsewhere must not see the password; a token service by https may.
        eq((sent, body), ([], []), "credentials at a plain http realm of another host")
    with sk.case("a redirect's target asks for a token"):
        away = Registry(m, blobs, tls=tls_server(authority(sk, "server")))
        away.fault("/token", lambda h: h.send(200, b'{"token":"x"}', "application/json"))
        away.fault("/v2/", lambda h: h.send(401, b"", "text/plain", {"WWW-Authenticate": 'Bearer realm="https://%s/token",service="x"' % away.host}))
        g5 = Registry(m, blobs).fault("GET .*" + big, lambda h: h.send(307, b"", "text/plain", {"Location": "https://%s/v2/img/blobs/%s" % (away.host, big)}))
        sk.file("home/.docker/config.json", json.dumps({"auths": {g5.host: {"auth": auth}}}))
        sk("pull -q", g5.ref).exits(1, "401")
        true(away.count(big), "the redirect to be followed")
        eq([p for _, p, h in away.requests if "token" in p or "Authorization" in h], [], "requests for a token to where a blob was redirected")
    with sk.case("foreign layer"):
        stranger.requests.clear()
        j = json.loads(m)
        j["layers"][1]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        j["layers"][1]["urls"] = ["http://%s/v2/img/blobs/%s" % (stranger.host, big)]
        g3 = Registry(json.dumps(j).encode(), {k: v for k, v in blobs.items() if k != big})
        sk.file("home/.docker/config.json", json.dumps({"auths": {g3.host: {"auth": auth}}}))
        sk("pull -q", g3.ref).exits(1, ".")
        eq(stranger.count("."), 0, "requests to the URL of a foreign layer")
    with sk.case("upload location at another host"):
        stranger.requests.clear()
        g4 = Registry()
        sk.file("home/.docker/config.json", json.dumps({"auths": {g4.host: {"auth": auth}}}))
        g4.fault("POST", lambda h: h.headers.get("Authorization") and h.send(
            202, b"", "text/plain", {"Location": "http://%s/upload?x" % stranger.host}))
        g4.fault("/v2/", ask)
        sk("load -q -i", ENV["FIXTURE_busybox"]).ok
        sk("tag busybox", g4.ref).ok
        sk("push", g4.ref).exits(1, ".")
        eq([p for _, p, h in stranger.requests if "Authorization" in h], [], "credentials at the upload host")
    with sk.case("not in the process list, not in what is kept"):
        r = subprocess.run(["grep", "-rlF", "top-secret-word", sk.root], stdout=subprocess.PIPE).stdout
        eq(r, b"", "files of the store with the password")


@image(None)
def test_https_downgrade(sk):
    """What is not on loopback and not declared insecure is never asked by plain http."""
    g = Registry(*one()[:2])
    port = g.host.split(":")[1]
    ip = subprocess.run(["hostname", "-I"], stdout=subprocess.PIPE).stdout.decode().split()
    with sk.case("no plain http by itself"):
        for host in ip[:1]:
            sk("pull -q %s:%s/img" % (host, port)).exits(1, ".")
        eq(g.count("manifests"), 0, "manifest requests by plain http")
    with sk.case("https server that redirects a blob to http"):
        m, blobs, big = one()
        ca = authority(sk, "server")
        s = Registry(m, blobs, tls=tls_server(ca)).fault("GET .*" + big, lambda h: h.send(
            307, b"", "text/plain", {"Location": "http://%s/v2/img/blobs/%s" % (g.host, big)}))
        sk.file("home/.config/containers/certs.d/%s/ca.crt" % s.host, open(ca + "/ca.crt").read())
        sk("pull -q", s.ref).exits(1, "plain http")
        eq(g.count(big), 0, "requests for the blob by plain http")


@image(None)
@timeout(180)
def test_progress_on_a_terminal(sk):
    t = lib.Terminal(sk, "pull %s/nginx" % ENV["REGISTRY_HTTP"])
    t.expect("(?i)pulling")
    t.expect("Downloading|Extracting|Pull complete")
    t.expect("Pull complete")
    t.expect("Status: Downloaded newer image")
    t.exits(0)
    with sk.case("a narrow terminal"):
        t = lib.Terminal(sk, "pull %s/busybox" % ENV["REGISTRY_HTTP"], cols=20, rows=3)
        t.expect("Downloaded newer image")
        t.exits(0)


@image(None)
@timeout(180)
def test_many_at_once(sk):
    """Several engines on one store: nothing is damaged, all succeed."""
    http = ENV["REGISTRY_HTTP"]
    refs = ["busybox:latest", "busybox:docker", "nginx:latest", "debian:latest", "debian:docker", "busybox:latest"]
    ps = [sk.popen("pull -q", http + "/" + r, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for r in refs]
    for r, p in zip(refs, ps):
        out, err = p.communicate(timeout=150)
        with sk.case("pull " + r):
            eq(p.returncode, 0, "exit code of a pull beside five others: %s" % err)
    with sk.case("runs and removals at once"):
        ps = [sk.popen("run --rm", http + "/busybox", "true", stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(6)]
        ps += [sk.popen("tag", http + "/busybox", "t:%d" % i, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for i in range(6)]
        for p in ps:
            out, err = p.communicate(timeout=100)
            eq((p.returncode, err), (0, b""))
        eq(sorted(sk("images --format {{.Tag}} t").ok.lines), list("012345"))
    sk.check_store()


@image(None)
@timeout(200)
def test_killed_at_any_point(sk):
    """kill -9 during pull, load, commit, rmi: the store is in order each time, and goes on."""
    http = ENV["REGISTRY_HTTP"]
    rnd = random.Random(3)
    for line in "pull -q %s/nginx" % http, "load -q -i " + ENV["FIXTURE_busybox"], "run -d --name kk%d busybox sleep 100", "rmi busybox":
        with sk.case(line.split()[0]):
            for i in range(7):
                if line.startswith("r"):
                    sk("load -q -i", ENV["FIXTURE_busybox"]).ok
                p = sk.popen(line % i if "%d" in line else line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                try:
                    p.wait(rnd.uniform(0, 0.8 if "nginx" in line else 0.08))
                except subprocess.TimeoutExpired:
                    p.kill()
                    p.wait()
                sk.check_store()
                sk("ps -a").ok
                sk("images").ok
    with sk.case("it goes on"):
        sk("load -q -i", ENV["FIXTURE_busybox"]).ok
        sk("run --rm busybox echo x").says("x")
        for c in sk("ps -aq").ok.lines:
            sk("rm -f", c).ok
        sk("system prune -af").ok
        sk.check_store()
    with sk.case("nothing is left after prune"):
        left = [p for d in ("tmp", "layers", "blobs/sha256") if os.path.isdir(sk.root + "/" + d) for p in os.listdir(sk.root + "/" + d)]
        eq(left, [], "files of the store after prune of everything")
