"""skiff build: the Dockerfile language, COPY and its kin, RUN, stages, the cache, and what must never leak."""
import bz2
import gzip
import hashlib
import http.server
import io
import json
import lzma
import os
import pwd
import re
import socket
import subprocess
import tarfile
import threading
import time

import lib
from lib import Skiff, entry, eq, image, match, no_match, only, tar, timeout, tool, true
from test_real import fetch, free_port, package

# ---- a context, a build, and what came out ----

N = iter(range(1 << 30))


def context(sk, files, dockerfile=None):
    """A fresh context. {"a/b": data or (data, mode), "d/": None or mode, "link -> target": None}; its path."""
    base = "ctx%d" % next(N)
    sk.folder(base)
    if dockerfile is not None:
        sk.file(base + "/Dockerfile", dockerfile)
    closed = []
    for name, what in (files or {}).items():
        if " -> " in name:
            name, target = name.split(" -> ")
            os.makedirs(os.path.dirname("%s/%s/%s" % (sk.dir, base, name)), exist_ok=True)
            os.symlink(target, "%s/%s/%s" % (sk.dir, base, name))
        elif name.endswith("/"):
            sk.folder(base + "/" + name)
            if what:
                closed.append((base + "/" + name, what))
        else:
            data, mode = what if isinstance(what, tuple) else (what, 0o644)
            sk.file(base + "/" + name, data, mode)
    for name, mode in closed:
        os.chmod(sk.dir + "/" + name, mode)
    if sk.user:
        tool("chown", "-Rh", "%d:%d" % sk.user, sk.dir + "/" + base)
    return base


def build(sk, dockerfile, *options, files=None, name="t", **kw):
    """Builds it in a fresh context as image NAME."""
    return sk(["build", "-t", name, *options, context(sk, files, dockerfile)], **kw)


def brief(data):
    """Contents as the tree shows them."""
    return data.decode("utf-8", "backslashreplace") if len(data) < 200 else lib.digest(data)


def show(t, data):
    mode = t.mode & 0o7777
    if t.isdir():
        return "d%o %d:%d" % (mode, t.uid, t.gid)
    if t.issym():
        return "-> %s %d:%d" % (t.linkname, t.uid, t.gid)
    if t.isreg():
        return "%o %d:%d %s" % (mode, t.uid, t.gid, brief(data))
    return "%s%o %d:%d" % ("p" if t.isfifo() else "dev", mode, t.uid, t.gid)


class Image:
    """config, and tree: path -> one line that says what is there. From what `save` writes.
    links: hard link -> its first name, xattrs: path -> {name: value}, both over all layers."""

    def __init__(self, data):
        self.tree, self.times, self.layers, self.links, self.xattrs = {}, {}, [], {}, {}
        with tarfile.open(fileobj=io.BytesIO(data)) as t:
            get = lambda name: t.extractfile(name).read()
            m = json.loads(get("manifest.json"))[0]
            self.config = json.loads(get(m["Config"]))
            for name in m["Layers"]:
                self.add(get(name))

    def add(self, data):
        names, fresh = [], {}
        with tarfile.open(fileobj=io.BytesIO(data)) as t:
            for m in t.getmembers():
                name = os.path.normpath(m.name.lstrip("/"))
                folder, base = os.path.split(name)
                names.append(name)
                if base == ".wh..wh..opq":
                    self.drop(folder + "/" if folder else "")
                elif base.startswith(".wh."):
                    gone = os.path.join(folder, base[4:])
                    self.tree.pop(gone, None)
                    self.drop(gone + "/")
                elif m.islnk():
                    fresh[name] = ("link", os.path.normpath(m.linkname.lstrip("/")))
                    self.links[name] = fresh[name][1]
                elif name != ".":
                    fresh[name] = (show(m, t.extractfile(m).read() if m.isreg() else b""), m.mtime)
                self.xattrs[name] = {k[13:]: v for k, v in m.pax_headers.items() if k.startswith("SCHILY.xattr.")}
        for name, (what, time) in fresh.items():
            if what != "link":
                if not what.startswith("d"):
                    self.drop(name + "/")
                self.tree[name], self.times[name] = what, time
        for name, (what, to) in fresh.items():
            if what == "link":
                self.tree[name], self.times[name] = self.tree.get(to, "dangling hard link to " + to), self.times.get(to)
        self.layers.append(names)

    def drop(self, prefix):
        for n in [n for n in self.tree if n.startswith(prefix)]:
            del self.tree[n]


def result(sk, name="t"):
    return Image(sk("save", name).ok.raw)


def check(sk, dockerfile, want, *options, name="t", **kw):
    """Builds, and holds the wanted paths (None: absent) against the image's tree."""
    build(sk, dockerfile, *options, name=name, **kw).ok
    i = result(sk, name)
    for path, text in want.items():
        eq(i.tree.get(path), text, path)
    return i


def config(sk, name="t"):
    return sk(["image", "inspect", name]).ok.json[0]["Config"]


def labels(sk, dockerfile, *options, **kw):
    build(sk, dockerfile, *options, **kw).ok
    return config(sk)["Labels"] or {}


def steps(r):
    """(how many steps were cached, how many were done)"""
    return (len(re.findall(r"^#\d+ CACHED$", r.err, re.M)), len(re.findall(r"^#\d+ DONE\b", r.err, re.M)))


# ---- the language ----

PARSER = [  # name, Dockerfile, labels
    ("one line", "FROM scratch\nLABEL a=1", {"a": "1"}),
    ("no newline at the end, lower case", "from scratch\nlabel a=1", {"a": "1"}),
    ("CRLF", "FROM scratch\r\nLABEL a=1 \\\r\n b=2\r\n", {"a": "1", "b": "2"}),
    ("a byte order mark", "\ufeffFROM scratch\nLABEL a=1", {"a": "1"}),
    ("leading blanks", "  FROM scratch\n\t LABEL a=1", {"a": "1"}),
    ("tabs between words", "FROM\tscratch\nLABEL\ta=1\tb=2", {"a": "1", "b": "2"}),
    ("comments and blank lines", "# c\n\n  # d\nFROM scratch\n#LABEL a=1\nLABEL b=2 c=#x\n", {"b": "2", "c": "#x", "a": None}),
    ("continuation", "FROM scratch\nLABEL a=1 \\\n  b=2 \\\n  c=3", {"a": "1", "b": "2", "c": "3"}),
    ("continuation inside a word", "FROM scratch\nLABEL a=on\\\ne", {"a": "one"}),
    ("blanks after the backslash", "FROM scratch\nLABEL a=1 \\  \n  b=2", {"a": "1", "b": "2"}),
    ("comments and blank lines inside a continuation", "FROM scratch\nLABEL a=1 \\\n# c\n\n   # d\n  b=2", {"a": "1", "b": "2"}),
    ("continuation at the end", "FROM scratch\nLABEL a=1 \\\n", {"a": "1"}),
    ("tabs in FROM", "FROM\tscratch\tAS\tx\nLABEL a=1", {"a": "1"}),
    ("syntax and escape, each once", "# syntax=x\n# escape=`\n# check=skip=all\nFROM scratch\nLABEL a=1 `\n b=2", {"a": "1", "b": "2"}),
    ("escape directive", "# escape=`\nFROM scratch\nLABEL a=1 `\n  b=c:\\d `\n e=`$x", {"a": "1", "b": "c:\\d", "e": "$x"}),
    ("directives in a row, case and blanks", "#  EsCaPe = ` \n# syntax=docker/dockerfile:1\nFROM scratch\nLABEL a=1 `\n b=2", {"a": "1", "b": "2"}),
    ("syntax and check are taken", "# syntax=docker/dockerfile:1.7-labs\n# check=skip=all;error=true\nFROM scratch\nLABEL a=1", {"a": "1"}),
    ("no directive after a comment", "# hello\n# escape=`\nFROM scratch\nLABEL a=1 \\\n b=`", {"a": "1", "b": "`"}),
    ("no directive after a blank line", "\n# escape=`\nFROM scratch\nLABEL a=1 \\\n b=2", {"a": "1", "b": "2"}),
    ("quotes", "FROM scratch\nLABEL a=\"x  y\" 'b c'='$d' e=\"q\\\"r\" f='g'\"h\"i", {"a": "x  y", "b c": "$d", "e": 'q"r', "f": "ghi"}),
    ("old form", "FROM scratch\nLABEL a b  c=d", {"a": "b  c=d"}),
    ("a backslash before a blank", "FROM scratch\nLABEL a=x\\ y b=2", {"a": "x y", "b": "2"}),
    ("later wins, empty stays", "FROM scratch\nLABEL a=1 b=\nLABEL a=2", {"a": "2", "b": ""}),
    ("utf-8", "FROM scratch\nLABEL a=grün", {"a": "grün"}),
    ("a long line", "FROM scratch\nLABEL a=" + "x" * 100000, {"a": "x" * 100000}),
    ("a blank line after a continuation is left out", "FROM scratch\nLABEL a=b \\\n\n\nc=d", {"a": "b", "c": "d"}),
    ("escapes inside quotes", "FROM scratch\nLABEL a=\"b\\nc\" d=e\\\\f g='h\\i' j=\"k\\\\l\" m=n\\o", {"a": "b\\nc", "d": "e\\f", "g": "h\\i", "j": "k\\l", "m": "no"}),
]


@image(None)
def test_parser(sk):
    for name, text, want in PARSER:
        with sk.case(name):
            got = labels(sk, text)
            for k, v in want.items():
                eq(got.get(k), v, k)


ERRORS = [  # Dockerfile, line, what is said
    ("", None, "empty|no instructions"),
    ("# only a comment\n", None, "empty|no instructions"),
    ("# escape=x\nFROM scratch\n", 1, "escape"),
    ("# escape=\nFROM scratch\n", 1, "escape"),
    ("# escape=``\nFROM scratch\n", 1, "escape"),
    ("# escape=`\n# escape=`\nFROM scratch\n", 2, "only one escape"),
    ("FROM scratch\nFOO bar\n", 2, "unknown instruction: FOO"),
    ("FROM scratch\n\n# c\nLABEL a=1 \\\n b=2\nRUNN x\n", 6, "unknown instruction: RUNN"),
    ("LABEL a=1\nFROM scratch\n", 1, "FROM|build stage"),
    ("FROM\n", 1, "FROM requires"),
    ("FROM a b c\n", 1, "FROM requires"),
    ("FROM scratch AS\n", 1, "FROM requires"),
    ("FROM scratch AS 1a\n", 1, "invalid name|stage"),
    ("FROM scratch AS a/b\n", 1, "invalid name|stage"),
    ("FROM --nosuch=1 scratch\n", 1, "unknown flag"),
    ("FROM scratch\nCOPY a\n", 2, "COPY requires"),
    ("FROM scratch\nCOPY --nosuch a b\n", 2, "unknown flag.*nosuch"),
    ("FROM scratch\nCOPY --chmod=999 Dockerfile /a\n", 2, "chmod"),
    ("FROM scratch\nCOPY --chmod=77777 Dockerfile /a\n", 2, "chmod"),
    ("FROM scratch\nCOPY --chmod=q+x Dockerfile /a\n", 2, "chmod"),
    ("FROM scratch\nARG m=u%x\nCOPY --chmod=$m Dockerfile /a\n", 3, "chmod"),
    ("FROM scratch\nADD --checksum=sha256:" + "0" * 64 + " Dockerfile /a\n", 2, "checksum"),
    ("FROM scratch\nADD --from=x Dockerfile /a\n", 2, "unknown flag.*from|from"),
    ("FROM scratch\nCOPY nosuch /a\n", 2, "nosuch.*not found"),
    ("FROM scratch\nCOPY Dockerfile Dockerfile /a\n", 2, "must be a directory and end with"),
    ("FROM scratch\nCOPY <<E /a\nx\n", 2, "heredoc|E\\b"),
    ("FROM scratch\nENV\n", 2, "ENV"),
    ("FROM scratch\nENV a\n", 2, "ENV must have two arguments"),
    ("FROM scratch\nENV a=1 b\n", 2, "must be of the form: name=value"),
    ("FROM scratch\nENV =1\n", 2, "blank"),
    ("FROM scratch\nLABEL a='b\n", 2, "quote"),
    ("FROM scratch\nLABEL a=${b\n", 2, "substitution|missing|}"),
    ("FROM scratch\nLABEL a=${b^c}\n", 2, "unsupported modifier|substitution"),
    ("FROM scratch\nLABEL a=${b/c}\n", 2, "substitution"),
    ("FROM scratch\nLABEL a=${b/c/d\n", 2, "substitution"),
    ("FROM scratch\nLABEL a=${b:?it is needed}\n", 2, "it is needed"),
    ("FROM scratch\nEXPOSE x\n", 2, "port"),
    ("FROM scratch\nEXPOSE 99999\n", 2, "port"),
    ("FROM scratch\nSTOPSIGNAL NOSUCH\n", 2, "signal"),
    ("FROM scratch\nHEALTHCHECK FOO x\n", 2, "HEALTHCHECK|FOO"),
    ("FROM scratch\nHEALTHCHECK --interval=x CMD y\n", 2, "interval|duration"),
    ("FROM scratch\nHEALTHCHECK --nosuch=1 CMD y\n", 2, "nosuch"),
    ("FROM scratch\nHEALTHCHECK CMD\n", 2, "HEALTHCHECK|command"),
    ("FROM scratch\nHEALTHCHECK --interval=1us CMD y\n", 2, "interval|duration"),
    ("FROM scratch\nHEALTHCHECK --retries=-1 CMD y\n", 2, "retries"),
    ("FROM scratch\nHEALTHCHECK NONE y\n", 2, "NONE"),
    ("FROM scratch\nSHELL /bin/sh\n", 2, "SHELL.*JSON"),
    ("FROM scratch\nSHELL []\n", 2, "SHELL"),
    ("FROM scratch\nARG\n", 2, "ARG requires"),
    ("FROM scratch\nARG a\nARG b=${a:?it is needed}\n", 3, "it is needed"),
    ("FROM scratch AS $x\n", 1, "invalid name|stage"),
    ("ARG a=${b:?it is needed}\nFROM scratch\n", 1, "it is needed"),
    ("FROM scratch\nONBUILD MAINTAINER x\n", 2, "MAINTAINER.*ONBUILD"),
    ("FROM scratch\nCOPY [\"a\"]\n", 2, "COPY requires"),
    ("FROM scratch\nONBUILD ONBUILD RUN x\n", 2, "ONBUILD"),
    ("FROM scratch\nONBUILD FROM x\n", 2, "ONBUILD"),
    ("FROM scratch\nVOLUME [\"\"]\n", 2, "VOLUME"),
    ("FROM scratch\nUSER\n", 2, "USER requires"),
    ("FROM scratch\nWORKDIR\n", 2, "WORKDIR requires"),
    ("FROM scratch\nMAINTAINER\n", 2, "MAINTAINER requires"),
    ("FROM scratch\nRUN\n", 2, "RUN requires"),
    ("FROM scratch\nRUN --mount=type=nosuch,target=/x true\n", 2, "mount"),
    ("FROM scratch\nRUN --mount=target=/ true\n", 2, "mount target"),
    ("FROM scratch\nRUN --mount=type=bind,nosuch=1,target=/x true\n", 2, "nosuch"),
    ("FROM scratch\nRUN --network=nosuch true\n", 2, "network"),
    ("FROM scratch\nRUN --nosuch true\n", 2, "nosuch"),
    ("FROM scratch AS a\nFROM scratch\nCOPY --from=nosuch:0:0 a /a\n", 3, "nosuch"),
    ("FROM scratch AS a\nCOPY --from=a Dockerfile /a\n", None, "circular|itself|current|depend"),
    ("FROM scratch\nCOPY --from=0 Dockerfile /a\n", None, "circular|itself|current|depend"),
    ("FROM scratch AS a\nCOPY --from=b /b /a\nFROM scratch AS b\nCOPY --from=a /a /b\n", None, "circular|itself|current|depend"),
]


@image(None)
def test_errors(sk):
    """The error names the file and the line and shows it; nothing is left in the store."""
    for text, line, pattern in ERRORS:
        with sk.case(repr(text)[:70]):
            r = build(sk, text).exits(1, pattern)
            if line:
                shown = text.split("\n")[line - 1]
                match(r.err, r"(?i)Dockerfile(:| line |.*line )%d\b" % line)
                true(shown in r.err, "the line %r in %r" % (shown, r.err))
    with sk.case("nothing is left"):
        sk("images -aq").says("")
        eq(os.listdir(sk.root + "/containers"), [])
    with sk.case("the file's own name"):
        c = context(sk, {"sub/My.df": "FROM scratch\nFOO\n"})
        sk(["build", "-f", c + "/sub/My.df", c]).exits(1, r"My\.df(:| line |.*line )2\b")
        sk.file(c + "/sub/My.df", "FROM scratch\nCOPY nosuch /\n")
        sk(["build", "-f", c + "/sub/My.df", c]).exits(1, r"My\.df(:| line |.*line )2\b")
    with sk.case("escape sequences are not passed on to the terminal"):
        r = build(sk, "FROM scratch\nFOO \x1b[2J\n").exits(1)
        true("\x1b" not in r.err, "no escape in %r" % r.err)
    for argv, pattern in [(["build"], "requires|argument"), (["build", "/no/such"], "/no/such"), (["build", "-f", "/no/such", "."], "/no/such"),
                          (["build", "-t", "BAD", "."], "reference|lower"), (["build", "--progress", "x", "."], "progress"),
                          (["build", "--target", "nosuch", context(sk, {}, "FROM scratch\n")], "nosuch.*could not be found|nosuch"),
                          (["build", context(sk, {})], "Dockerfile"), (["build", "--nosuch", "."], "unknown flag")]:
        with sk.case(" ".join(argv[:3])):
            sk(argv).exits(None, pattern)


EARLY = ["COPY --nosuch a /b", "COPY --chmod=99 a /b", "COPY --from a /b", "COPY a", "COPY a b /c", "ADD --from=x a /b", "ADD --parents-x a /b", "EXPOSE x", "EXPOSE 1-70000", "EXPOSE 80/foo",
         "RUN --nosuch true", "RUN --mount=type=nosuch,target=/x true", "RUN --mount=type=cache true", "RUN --mount=type=bind,nosuch=1,target=/x true", "RUN --network=nosuch true", "RUN --security=nosuch true",
         "ENV a", "ENV a=1 b", "LABEL a=1 b", "HEALTHCHECK --interval=x CMD y", "HEALTHCHECK FOO", "HEALTHCHECK CMD", "SHELL /bin/sh", "STOPSIGNAL NOSUCH", "ONBUILD ONBUILD RUN x", "ONBUILD FROM x", "VOLUME [\"\"]", "FROM --nosuch scratch"]


def test_errors_come_first(sk):
    """What can be told from the Dockerfile alone is told before any step runs, also in stages that nobody needs."""
    for text in EARLY:
        with sk.case(text):
            for where in "FROM busybox\nRUN echo ran\n%s\n", "FROM busybox AS unused\n%s\nFROM busybox\nRUN echo ran\n":
                r = build(sk, where % text).exits(1, r"Dockerfile(:| line |.*line )%d\b" % (where.split("\n").index("%s") + 1))
                no_match(r.err, r"^#\d+ ([\d.]+ ran|DONE|CACHED)", "a step before the error")
    with sk.case("--target, -t, -o, --cache-to, --platform"):
        for options in ["--target", "nosuch"], ["-t", "UPPER"], ["-o", "type=nosuch"], ["-o", "type=tar"], ["-o", "type=oci,dest=x,compression=nosuch"], ["--cache-to", "type=nosuch"], ["--platform", "a/b/c/d"]:
            r = build(sk, "FROM busybox\nRUN echo ran\n", *options).exits(1, ".")
            no_match(r.err, r"^#\d+ ([\d.]+ ran|DONE|CACHED)", "a step before the error of %s" % options)


VARIABLES = [  # in a label, with ENV e=env n= p=/a/b/c.tar.gz and ARG a=arg, x unset
    ("$e", "env"), ("${e}", "env"), ("$e$a", "envarg"), ("${e}_x", "env_x"), ("$e_x", ""), ("$x", ""), ("${x}", ""),
    ("\\$e", "$e"), ("\\${e}", "${e}"), ("'$e'", "$e"), ('"$e"', "env"), ('"\\$e"', "$e"), ("a\\\\$e", "a\\env"),
    ("${x:-d}", "d"), ("${x-d}", "d"), ("${n:-d}", "d"), ("${n-d}", ""), ("${e:-d}", "env"), ("${x:-$e}", "env"), ("${x:-${a}}", "arg"),
    ("${x:-${y:-z}}", "z"), ("${x:+d}", ""), ("${x+d}", ""), ("${e:+d}", "d"), ("${n:+d}", ""), ("${n+d}", "d"), ("${e:?m}", "env"), ("${n?m}", ""),
    ("${x:-}", ""), ('"${x:-a b}"', "a b"), ("${p#*/}", "a/b/c.tar.gz"), ("${p##*/}", "c.tar.gz"), ("${p%.*}", "/a/b/c.tar"), ("${p%%.*}", "/a/b/c"),
    ("${p#x}", "/a/b/c.tar.gz"), ("${p%/*}", "/a/b"), ("${p/b/X}", "/a/X/c.tar.gz"), ("${p//a/X}", "/X/b/c.tXr.gz"), ("${p//[a-b]/}", "/a/b/c.tar.gz"), ("${p//\\*/X}", "/a/b/c.tar.gz"),
    ("${p/nosuch/X}", "/a/b/c.tar.gz"), ("${e/?/X}", "Xnv"), ("${e//n*/X}", "eX"), ("$", "$"), ("a$", "a$"), ("$$", ""), ("x$$y", "xy"), ("x$@y", "xy"), ("$10", ""), ("100%", "100%"), ("$1", ""),
    ("${e}${e}", "envenv"), ("{$e}", "{env}"), ("$e.$a", "env.arg"),
]


@image(None)
def test_variables(sk):
    got = labels(sk, "FROM scratch\nENV e=env n= p=/a/b/c.tar.gz\nARG a=arg\n" +
                 "".join("LABEL v%d=%s\n" % (i, v) for i, (v, _) in enumerate(VARIABLES)))
    for i, (v, want) in enumerate(VARIABLES):
        with sk.case(v):
            eq(got.get("v%d" % i), want)
    for name, text, options, want in [
            ("one instruction sees what was before it", "ENV abc=hello\nENV abc=bye def=$abc\nENV ghi=$abc\nLABEL a=$abc d=$def g=$ghi", [], {"a": "bye", "d": "hello", "g": "bye"}),
            ("ARG default and --build-arg", "ARG a=1\nARG b=2\nLABEL a=$a b=$b", ["--build-arg", "b=3"], {"a": "1", "b": "3"}),
            ("ARG without a value", "ARG a\nLABEL a=x$a", [], {"a": "x"}),
            ("an empty --build-arg", "ARG a=1\nLABEL a=x$a", ["--build-arg", "a="], {"a": "x"}),
            ("--build-arg from the environment", "ARG HOME=1\nLABEL a=$HOME", ["--build-arg", "HOME"], {"a": sk.home}),
            ("several in one ARG", "ARG a=1 b=\"2 3\" c\nLABEL a=$a b=\"$b\" c=$c", ["--build-arg", "c=4"], {"a": "1", "b": "2 3", "c": "4"}),
            ("an ARG from another", "ARG a=1\nARG b=${a}2\nLABEL b=$b", [], {"b": "12"}),
            ("ENV hides ARG", "ARG a=1\nENV a=2\nARG a=3\nLABEL a=$a", ["--build-arg", "a=4"], {"a": "2"}),
            ("ENV from ARG", "ARG a=1\nENV b=${a:-x}\nLABEL b=$b", ["--build-arg", "a=5"], {"b": "5"}),
            ("a --build-arg nobody declared", "LABEL a=x$a", ["--build-arg", "a=5"], {"a": "x"}),
            ("before its ARG there is nothing", "LABEL a=x$a\nARG a=1\nLABEL b=$a", [], {"a": "x", "b": "1"}),
            ("label names expand too", "ARG a=k\nLABEL $a.x=1", [], {"k.x": "1"}),
            ("target platform", "ARG TARGETPLATFORM\nARG TARGETOS\nARG TARGETARCH\nARG BUILDARCH\nLABEL a=$TARGETPLATFORM b=$TARGETOS c=$TARGETARCH d=$BUILDARCH",
             [], {"a": "linux/" + lib.ARCH, "b": "linux", "c": lib.ARCH, "d": lib.ARCH}),
            ("an undeclared one is empty", "LABEL a=x$TARGETOS", [], {"a": "x"}),
            ("stages do not share", "ARG a=1\nFROM scratch\nLABEL a=x$a", [], {"a": "x"})]:
        with sk.case(name):
            got = labels(sk, "FROM scratch\n" + text, *options)
            for k, v in want.items():
                eq(got.get(k), v, k)
    for name, text, options, want in [
            ("global ARG in FROM", "ARG base=scratch\nFROM $base\nLABEL a=x$base", [], {"a": "x"}),
            ("global ARG taken into a stage", "ARG a=1\nFROM scratch\nARG a\nLABEL a=$a", [], {"a": "1"}),
            ("its default in the stage wins", "ARG a=1\nFROM scratch\nARG a=2\nLABEL a=$a", [], {"a": "2"}),
            ("--build-arg wins over both", "ARG a=1\nFROM scratch\nARG a=2\nLABEL a=$a", ["--build-arg", "a=3"], {"a": "3"}),
            ("global from global", "ARG a=scr\nARG b=${a}atch\nFROM ${b}\nARG b\nLABEL b=$b", [], {"b": "scratch"}),
            ("forms in FROM", "ARG a\nFROM ${a:-scratch} AS x\nLABEL a=1", [], {"a": "1"}),
            ("ENV and ARG of the base", "FROM scratch AS b\nENV e=1\nARG g=1\nFROM b\nLABEL a=$e b=x$g", [], {"a": "1", "b": "x1"})]:
        with sk.case(name):
            got = labels(sk, text, *options)
            for k, v in want.items():
                eq(got.get(k), v, k)
    with sk.case("where variables do and do not expand"):
        build(sk, "FROM scratch\nARG p=81 d=/data u=7 s=SIGINT\nENV e=1\nEXPOSE $p/udp\nVOLUME $d\nUSER $u\nSTOPSIGNAL $s\nWORKDIR $d/w\n"
                  "CMD echo $e\nENTRYPOINT [\"$e\"]\nHEALTHCHECK CMD echo $e\nONBUILD LABEL a=$e").ok
        c = config(sk)
        eq([list(c["ExposedPorts"]), list(c["Volumes"]), c["User"], c["StopSignal"], c["WorkingDir"], c["Cmd"], c["Entrypoint"], c["Healthcheck"]["Test"],
            c["OnBuild"]], [["81/udp"], ["/data"], "7", "SIGINT", "/data/w", ["/bin/sh", "-c", "echo $e"], ["$e"], ["CMD-SHELL", "echo $e"], ["LABEL a=$e"]])


SECOND = 10 ** 9
CONFIG = [  # instructions, members of the configuration (None or empty: unset)
    ("ENV a=1 b=\"x y\" c=x\\ y", {"Env": ["a=1", "b=x y", "c=x y"]}),
    ("ENV a 1  2 ", {"Env": ["a=1  2"]}),
    ("ENV a=1\nENV b=2\nENV a=3", {"Env": ["a=3", "b=2"]}),
    ("CMD a b", {"Cmd": ["/bin/sh", "-c", "a b"]}),
    ("CMD [\"a\", \"b c\"]", {"Cmd": ["a", "b c"]}),
    ("CMD []", {"Cmd": []}),
    ("CMD ['a', 'b']", {"Cmd": ["/bin/sh", "-c", "['a', 'b']"]}),
    ("CMD [ \"a\" ] b", {"Cmd": ["/bin/sh", "-c", "[ \"a\" ] b"]}),
    ("CMD [\"a\", 1]", {"Cmd": ["/bin/sh", "-c", "[\"a\", 1]"]}),
    ("CMD [ \"a\", \\\n  \"b\\u00e9\\n\" ]", {"Cmd": ["a", "b\u00e9\n"]}),
    ("ENTRYPOINT []random string", {"Entrypoint": ["/bin/sh", "-c", "[]random string"]}),
    ("CMD a\nCMD b", {"Cmd": ["/bin/sh", "-c", "b"]}),
    ("CMD echo \"a  b\" \\\n  c", {"Cmd": ["/bin/sh", "-c", "echo \"a  b\"   c"]}),
    ("ENTRYPOINT a b", {"Entrypoint": ["/bin/sh", "-c", "a b"], "Cmd": []}),
    ("ENTRYPOINT [\"a\"]\nCMD [\"b\"]", {"Entrypoint": ["a"], "Cmd": ["b"]}),
    ("CMD [\"b\"]\nENTRYPOINT [\"a\"]", {"Entrypoint": ["a"], "Cmd": ["b"]}),
    ("SHELL [\"/bin/bash\", \"-ec\"]\nCMD a\nENTRYPOINT b", {"Shell": ["/bin/bash", "-ec"], "Cmd": ["/bin/bash", "-ec", "a"], "Entrypoint": ["/bin/bash", "-ec", "b"]}),
    ("EXPOSE 80 81/tcp 82/udp 90-92", {"ExposedPorts": ["80/tcp", "81/tcp", "82/udp", "90/tcp", "91/tcp", "92/tcp"]}),
    ("EXPOSE 53/UDP", {"ExposedPorts": ["53/udp"]}),
    ("ARG p=\"80 81/udp\"\nEXPOSE $p 90 $nosuch", {"ExposedPorts": ["80/tcp", "81/udp", "90/tcp"]}),
    ("VOLUME /a /b", {"Volumes": ["/a", "/b"]}),
    ("VOLUME [\"/a b\", \"/c\"]", {"Volumes": ["/a b", "/c"]}),
    ("ARG v=/x\nVOLUME [\"$v/y\", \"${v}z\", \"/c\"]", {"Volumes": ["/c", "/x/y", "/xz"]}),
    ("ARG a=x:1/tcp\nENV v=\"/a /b\"\nVOLUME $v /c\nWORKDIR $v", {"Volumes": ["/a /b", "/c"], "WorkingDir": "/a /b"}),
    ("USER me", {"User": "me"}), ("USER 1:2", {"User": "1:2"}), ("USER me:them\nUSER root", {"User": "root"}),
    ("WORKDIR /a", {"WorkingDir": "/a"}), ("WORKDIR a\nWORKDIR b", {"WorkingDir": "/a/b"}), ("WORKDIR /a/\nWORKDIR ../b/./c", {"WorkingDir": "/b/c"}),
    ("WORKDIR \"/a b\"", {"WorkingDir": "/a b"}),
    ("STOPSIGNAL SIGQUIT", {"StopSignal": "SIGQUIT"}), ("STOPSIGNAL 9", {"StopSignal": "9"}),
    ("LABEL a=1 b.c/d-e=\"2 3\"", {"Labels": {"a": "1", "b.c/d-e": "2 3"}}),
    ("HEALTHCHECK CMD a b", {"Healthcheck": {"Test": ["CMD-SHELL", "a b"]}}),
    ("HEALTHCHECK --interval=1m30s --timeout=5s --start-period=2s --retries=4 CMD [\"a\", \"b\"]",
     {"Healthcheck": {"Test": ["CMD", "a", "b"], "Interval": 90 * SECOND, "Timeout": 5 * SECOND, "StartPeriod": 2 * SECOND, "Retries": 4}}),
    ("HEALTHCHECK --start-interval=3s --interval=5s \\\n  CMD a", {"Healthcheck": {"Test": ["CMD-SHELL", "a"], "Interval": 5 * SECOND, "StartInterval": 3 * SECOND}}),
    ("HEALTHCHECK CMD a\nHEALTHCHECK NONE", {"Healthcheck": {"Test": ["NONE"]}}),
    ("ONBUILD RUN a  b\nONBUILD COPY . /x", {"OnBuild": ["RUN a  b", "COPY . /x"]}),
]


@image(None)
def test_config(sk):
    for text, want in CONFIG:
        with sk.case(text.replace("\n", "; ")):
            build(sk, "FROM scratch\n" + text).ok
            got = config(sk)
            for k, v in want.items():
                g = got.get(k) or type(v)()
                if k == "Env":
                    g = [x for x in g if not x.startswith("PATH=")]
                eq(sorted(g) if k in ("ExposedPorts", "Volumes") else g, v, k)
    with sk.case("MAINTAINER"):
        build(sk, "FROM scratch\nMAINTAINER Me <me@example.org>").ok
        sk("image inspect -f {{.Author}} t").says("Me <me@example.org>")
    base = "FROM scratch AS b\nENV a=1 b=2\nCMD [\"c\"]\nENTRYPOINT [\"e\"]\nLABEL l=1 m=2\nEXPOSE 1\nVOLUME /v\nUSER 5\nWORKDIR /w\nHEALTHCHECK CMD h\nSTOPSIGNAL 3\nSHELL [\"s\"]\n"
    for text, want in [
            ("", {"Env": ["a=1", "b=2"], "Cmd": ["c"], "Entrypoint": ["e"], "Labels": {"l": "1", "m": "2"}, "User": "5", "WorkingDir": "/w", "StopSignal": "3", "Shell": ["s"],
                  "ExposedPorts": {"1/tcp": {}}, "Volumes": {"/v": {}}, "Healthcheck": {"Test": ["CMD-SHELL", "h"]}}),
            ("ENTRYPOINT [\"f\"]", {"Entrypoint": ["f"], "Cmd": []}),
            ("CMD [\"d\"]", {"Entrypoint": ["e"], "Cmd": ["d"]}),
            ("CMD [\"d\"]\nENTRYPOINT [\"f\"]", {"Entrypoint": ["f"], "Cmd": ["d"]}),
            ("ENTRYPOINT []", {"Entrypoint": [], "Cmd": []}),
            ("ENV b=3 c=4", {"Env": ["a=1", "b=3", "c=4"]}),
            ("LABEL m=3", {"Labels": {"l": "1", "m": "3"}}),
            ("EXPOSE 2", {"ExposedPorts": {"1/tcp": {}, "2/tcp": {}}}),
            ("WORKDIR x", {"WorkingDir": "/w/x"}),
            ("CMD x y", {"Cmd": ["s", "x y"]})]:
        with sk.case("over a base: " + text.replace("\n", "; ")):
            build(sk, base + "FROM b\n" + text).ok
            got = config(sk)
            for k, v in want.items():
                g = got.get(k) or type(v)()
                eq([x for x in g if not x.startswith("PATH=")] if k == "Env" else g, v, k)
    with sk.case("scratch has a PATH, and what is set again stays where it was"):
        build(sk, "FROM scratch\nENV a=1\nENV PATH=/x:$PATH").ok
        eq(config(sk)["Env"], ["PATH=/x:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "a=1"])
    with sk.case("the history's words are Docker's"):
        build(sk, "FROM scratch\nARG a=5 b\nENV x=$a y=\"q r\"\nLABEL l=$x \"m n\"=o\nEXPOSE 80 90/udp\nEXPOSE 53/UDP 8080-8082 53/udp\nVOLUME /v $a/w\nVOLUME [\"/y z\", \"/$a\"]\nCMD echo $x\n"
                  "ENTRYPOINT [\"e\", \"f g\"]\nUSER $a\nSTOPSIGNAL 9\nSHELL [\"/bin/sh\", \"-ec\"]\nONBUILD RUN x $a\nCMD late\nWORKDIR w$a\nMAINTAINER me you\nCOPY --chown=$a:6 Dockerfile /d$a\n").ok
        eq([h["created_by"] for h in result(sk).config["history"]], [
            "ARG a=5 b", "ENV x=5 y=q r", "LABEL l=5 m n=o", "EXPOSE map[80/tcp:{} 90/udp:{}]", "EXPOSE map[53/udp:{} 8080/tcp:{} 8081/tcp:{} 8082/tcp:{}]", "VOLUME [/v 5/w]", "VOLUME [/y z /5]",
            'CMD ["/bin/sh" "-c" "echo $x"]', 'ENTRYPOINT ["e" "f g"]', "USER 5", "STOPSIGNAL 9", "SHELL [/bin/sh -ec]", "ONBUILD RUN x $a", 'CMD ["/bin/sh" "-ec" "late"]', "WORKDIR /w5", "MAINTAINER me you",
            "COPY --chown=5:6 Dockerfile /d5 # skiff"])
    with sk.case("history"):
        build(sk, "FROM scratch\nARG z=1\nENV a=1\nCOPY --chown=5:6 Dockerfile /d\nLABEL a=b\nWORKDIR /w\nCMD [\"x\"]\nUSER u").ok
        h = result(sk).config["history"]
        eq([x.get("empty_layer", False) for x in h], [True, True, False, True, False, True, True])
        for x, want in zip(h, ["ARG z=1", "ENV a=1", "COPY --chown=5:6 Dockerfile /d # ", "LABEL a=b", "WORKDIR /w", "CMD \\[\"x\"\\]", "USER u"]):
            match(x["created_by"], "^" + want)


# ---- COPY and ADD ----

F = {"a.txt": "A", "b.txt": "B", "c.md": ("C", 0o600), "x.sh": ("X", 0o755), "d/e": "E", "d/f.txt": "F", "d/sub/g": "G", "d/sub/h.txt": "H", "d/empty/": 0o700,
     "d/link -> e": None, "top -> a.txt": None, "dlink -> d": None, "abs -> /a.txt": None, "absd -> /d": None, "sp ace/q r": "Q", "we[i]rd*": "W", ".hidden": "."}
COPY = [  # name, instructions, paths
    ("a file", "COPY a.txt /o", {"o": "644 0:0 A"}),
    ("a file into a directory", "COPY a.txt /o/", {"o": "d755 0:0", "o/a.txt": "644 0:0 A"}),
    ("over the top", "COPY a.txt /", {"a.txt": "644 0:0 A"}),
    ("modes stay", "COPY c.md x.sh /o/", {"o/c.md": "600 0:0 C", "o/x.sh": "755 0:0 X"}),
    ("parents are made", "COPY a.txt /p/q/r", {"p": "d755 0:0", "p/q": "d755 0:0", "p/q/r": "644 0:0 A"}),
    ("a directory's contents", "COPY d /o", {"o/e": "644 0:0 E", "o/sub/g": "644 0:0 G", "o/empty": "d700 0:0", "o/link": "-> e 0:0", "o/d": None}),
    ("a directory with a slash", "COPY d/ /o/", {"o/e": "644 0:0 E", "o/d": None}),
    ("two directories", "COPY d/sub d/empty /o/", {"o/g": "644 0:0 G", "o/sub": None, "o/empty": None}),
    ("a directory and a file", "COPY d/sub a.txt /o/", {"o/g": "644 0:0 G", "o/a.txt": "644 0:0 A", "o/sub": None}),
    ("all", "COPY . /o", {"o/a.txt": "644 0:0 A", "o/d/e": "644 0:0 E", "o/.hidden": "644 0:0 .", "o/top": "-> a.txt 0:0", "o/dlink": "-> d 0:0"}),
    ("JSON form with variables", "ARG s=a t=o\nCOPY [\"${s}.txt\", \"/$t/\"]", {"o/a.txt": "644 0:0 A"}),
    ("an absolute link begins at the context", "COPY abs /o", {"o": "644 0:0 A"}),
    ("an absolute link to a directory, and through it", "COPY absd /o\nCOPY absd/sub/g /p", {"o/e": "644 0:0 E", "p": "644 0:0 G"}),
    ("absolute means the context", "COPY /a.txt ./d/../b.txt /o/", {"o/a.txt": "644 0:0 A", "o/b.txt": "644 0:0 B"}),
    (".. stops at the context", "COPY ../../a.txt /o", {"o": "644 0:0 A"}),
    ("a named link is followed", "COPY top /o", {"o": "644 0:0 A"}),
    ("a named link to a directory", "COPY dlink /o", {"o/e": "644 0:0 E"}),
    ("through a link", "COPY dlink/e /o", {"o": "644 0:0 E"}),
    ("*", "COPY *.txt /o/", {"o/a.txt": "644 0:0 A", "o/b.txt": "644 0:0 B", "o/c.md": None}),
    ("?", "COPY ?.md /o/", {"o/c.md": "600 0:0 C"}),
    ("[]", "COPY [ab].txt /o/", {"o/a.txt": "644 0:0 A", "o/b.txt": "644 0:0 B"}),
    ("[^]", "COPY [^a].txt /o/", {"o/a.txt": None, "o/b.txt": "644 0:0 B"}),
    ("a pattern for one file, not a directory", "COPY a*.txt /o", {"o": "644 0:0 A"}),
    ("a pattern in the middle", "COPY */e /o/", {"o/e": "644 0:0 E"}),
    ("a pattern does not cross /", "COPY d*.txt a.txt /o/", {"o/f.txt": None, "o/a.txt": "644 0:0 A"}),
    ("a pattern that matches nothing", "COPY a.txt no*such /o/", {"o/a.txt": "644 0:0 A"}),
    ("only patterns that match nothing", "COPY no*such d/no?such /o/", {"o": None}),
    ("* takes hidden files too", "COPY .h* /o/", {"o/.hidden": "644 0:0 ."}),
    ("escaped pattern characters", "COPY we[[]i]rd* /o/", {"o/we[i]rd*": "644 0:0 W"}),
    ("JSON form with blanks", "COPY [\"sp ace/q r\", \"/o p/\"]", {"o p/q r": "644 0:0 Q"}),
    ("quoted words", "COPY \"sp ace/q r\" /o/", {"o/q r": "644 0:0 Q"}),
    ("variables", "ARG s=a t=/o\nCOPY ${s}.txt $t/", {"o/a.txt": "644 0:0 A"}),
    ("relative to WORKDIR", "WORKDIR /w\nCOPY a.txt .\nCOPY b.txt ./x/\nCOPY c.md y", {"w/a.txt": "644 0:0 A", "w/x/b.txt": "644 0:0 B", "w/y": "600 0:0 C"}),
    ("onto an existing directory", "COPY a.txt /o/\nCOPY b.txt /o", {"o/a.txt": "644 0:0 A", "o/b.txt": "644 0:0 B"}),
    ("an existing file is replaced", "COPY a.txt /o\nCOPY x.sh /o", {"o": "755 0:0 X"}),
    ("trees merge", "COPY d /o\nCOPY d/sub /o/sub\nCOPY a.txt /o/sub/", {"o/e": "644 0:0 E", "o/sub/g": "644 0:0 G", "o/sub/a.txt": "644 0:0 A"}),
    ("--chown by number", "COPY --chown=5:6 a.txt /o/", {"o/a.txt": "644 5:6 A"}),
    ("--chown, one number", "COPY --chown=5 a.txt /o", {"o": "644 5:5 A"}),
    ("--chown of a tree", "COPY --chown=5:6 d /o", {"o": "d755 5:6", "o/sub": "d755 5:6", "o/sub/g": "644 5:6 G", "o/link": "-> e 5:6"}),
    ("--chmod", "COPY --chmod=640 a.txt x.sh /o/", {"o/a.txt": "640 0:0 A", "o/x.sh": "640 0:0 X"}),
    ("--chmod of a tree", "COPY --chmod=750 d /o", {"o/sub": "d750 0:0", "o/sub/g": "750 0:0 G", "o/link": "-> e 0:0"}),
    ("--chmod with special bits", "COPY --chmod=4755 a.txt /o", {"o": "4755 0:0 A"}),
    ("--chmod from a variable", "ARG m=0604\nCOPY --chmod=$m a.txt /o", {"o": "604 0:0 A"}),
    ("--chmod by symbols", "COPY --chmod=u=rwX,go=rX c.md x.sh d /o/", {"o/c.md": "644 0:0 C", "o/x.sh": "755 0:0 X", "o/empty": "d755 0:0", "o/sub/g": "644 0:0 G"}),
    ("--chmod: +, - and several", "COPY --chmod=+x a.txt /o\nCOPY --chmod=go-r a.txt /p\nCOPY --chmod=a=r,u+w,g+s a.txt /q\nCOPY --chmod=g=u x.sh /r", {"o": "755 0:0 A", "p": "600 0:0 A", "q": "2644 0:0 A", "r": "775 0:0 X"}),
    ("--chmod: X and set-id bits", "COPY --chmod=4755 a.txt /o\nCOPY --chmod=u+s,o= a.txt x.sh /p/\nCOPY --chmod=a+X d /q", {"o": "4755 0:0 A", "p/a.txt": "4640 0:0 A", "p/x.sh": "4750 0:0 X", "q/sub": "d755 0:0", "q/e": "644 0:0 E"}),
    ("--chmod by symbols from a variable", "ARG m=u=rw,go=\nCOPY --chmod=$m x.sh /o", {"o": "600 0:0 X"}),
    ("--chown and --chmod", "COPY --chown=1000:10 --chmod=2750 a.txt /o", {"o": "2750 1000:10 A"}),
    ("--link", "COPY --link a.txt /o/", {"o/a.txt": "644 0:0 A"}),
    ("--exclude", "COPY --exclude=*.txt . /o/", {"o/a.txt": None, "o/c.md": "600 0:0 C", "o/d/e": "644 0:0 E"}),
    ("--exclude, any depth", "COPY --exclude=**/*.txt . /o/", {"o/a.txt": None, "o/d/f.txt": None, "o/d/sub/h.txt": None, "o/d/sub/g": "644 0:0 G"}),
    ("--exclude, twice", "COPY --exclude=*.txt --exclude=*.md . /o/", {"o/a.txt": None, "o/c.md": None, "o/x.sh": "755 0:0 X"}),
    ("--exclude below a directory", "COPY --exclude=sub d /o/", {"o/e": "644 0:0 E", "o/sub": None, "o/sub/g": None}),
    ("--exclude with a pattern", "COPY --exclude=b* *.txt /o/", {"o/a.txt": "644 0:0 A", "o/b.txt": None}),
    ("--parents", "COPY --parents ./d/e d/sub/g /o/", {"o/d/e": "644 0:0 E", "o/d/sub/g": "644 0:0 G", "o/e": None}),
    ("--parents with a pattern", "COPY --parents d/*/*.txt /o/", {"o/d/sub/h.txt": "644 0:0 H", "o/d/sub/g": None}),
    ("--parents, a pivot", "COPY --parents ./d/./sub/*.txt /o/", {"o/sub/h.txt": "644 0:0 H", "o/d": None}),
    ("--parents of a directory", "COPY --parents d/sub /o/", {"o/d/sub/g": "644 0:0 G", "o/d/sub/h.txt": "644 0:0 H"}),
]


@image(None)
@timeout(150)
def test_copy(sk):
    for name, text, want in COPY:
        with sk.case(name):
            if want is None:
                build(sk, "FROM scratch\n" + text, files=F).exits(1, "not found|no source|match")
            else:
                check(sk, "FROM scratch\n" + text, want, files=F)
    with sk.case("names that look like options of programs"):
        names = ["-x", "-rf", "--checkpoint=1", "--checkpoint-action=exec=sh", "$(touch o)", "; touch o #"]
        check(sk, "FROM scratch\nCOPY . /o/\nADD ./-x /p\n", {"p": "644 0:0 -x", **{"o/" + n: "644 0:0 " + n for n in names}}, files={n: n for n in names})


def test_copy_over_an_image(sk):
    base = "FROM busybox\nRUN mkdir /real && echo old >/real/f && ln -s real /sym && ln -s /real/f /flink && chmod 1777 /real\n"
    for name, text, want in [
            ("--chown by names of the image", "COPY --chown=app a.txt /1\nCOPY --chown=app:wheel a.txt /2\nCOPY --chown=nobody:0 a.txt /3",
             {"1": "644 1000:1000 A", "2": "644 1000:10 A", "3": "644 65534:0 A"}),
            ("--chown by names that a step made", "RUN echo neu:x:77:88::/:/bin/sh >>/etc/passwd\nCOPY --chown=neu a.txt /1", {"1": "644 77:88 A"}),
            ("a link to a directory in the way", "COPY a.txt /sym/", {"sym": "-> real 0:0", "real/a.txt": "644 0:0 A", "real": "d1777 0:0"}),
            ("a tree over a link to a directory", "COPY d /sym", {"sym": "-> real 0:0", "real/e": "644 0:0 E"}),
            ("what is there keeps its mode", "COPY a.txt /real/", {"real": "d1777 0:0", "real/f": "644 0:0 old\n"}),
            ("USER does not matter", "USER app\nCOPY a.txt /1", {"1": "644 0:0 A"})]:
        with sk.case(name):
            check(sk, base + text, want, files=F)
    for text, pattern in [("COPY --chown=nosuch a.txt /", "nosuch"), ("COPY --chown=app:nosuch a.txt /", "nosuch"), ("COPY a.txt /bin", None), ("COPY d /real/f", ".")]:
        with sk.case(text):
            r = build(sk, base + text, files=F)
            r.exits(1, pattern) if pattern else r.ok
    for text, pattern in [("RUN mkdir -p /x/a.txt\nCOPY a.txt /x/", "cannot overwrite directory"), ("RUN mkdir /x && touch /x/sub\nCOPY d /x/", "cannot overwrite file"), ("RUN touch /x\nCOPY a.txt /x/", "non-directory"),
                          ("RUN touch /x\nCOPY a.txt /x/y", "non-directory"), ("RUN touch /x\nWORKDIR /x", "non-directory"), ("RUN touch /x\nADD t.tar /x/", "non-directory")]:
        with sk.case("in the way: " + text.replace("\n", "; ")):
            build(sk, "FROM busybox\n" + text, files=dict(F, **{"t.tar": tar(entry("f", "F"))})).exits(1, pattern)
    with sk.case("an empty destination is the WORKDIR"):
        check(sk, "FROM busybox\nENV empty=\nWORKDIR /w\nCOPY a.txt $empty\nCOPY --link b.txt \"\"\n", {"w/a.txt": "644 0:0 A", "w/b.txt": "644 0:0 B"}, files=F)
    with sk.case("--from"):
        check(sk, base + "RUN echo s >/real/s; chmod 4711 /real/s; mkfifo /real/p\nCOPY --chown=5:6 a.txt /real/f\nFROM scratch AS two\nCOPY --from=0 /real /one\n"
              "FROM scratch\nCOPY --from=two one/f /f\nCOPY --from=two --chown=7:8 /one /o\nCOPY --from=busybox /bin/busybox /bb\nCOPY --from=TWO --chmod=600 /one/* /g/\n"
              "COPY --from=0 /flink /h\nCOPY --from=0 sym/s /i\n",
              {"f": "644 5:6 A", "o/f": "644 7:8 A", "g/f": "600 5:6 A", "h": "644 5:6 A", "i": "4711 0:0 s\n", "o/p": "p644 7:8", "one": None}, files=F)
        eq(result(sk).tree["bb"], result(sk, "busybox").tree["bin/busybox"])
    with sk.case("--from with patterns in every component"):
        check(sk, "FROM busybox AS a\nRUN mkdir -p /x1/y/z1 /x2/y/z2 /x3/w && echo 1 > /x1/y/z1/f.c && echo 2 > /x2/y/z2/f.d && echo 3 > /x1/y/z1/f.txt && echo 4 > /x3/w/g && ln -s x2 /xl\nFROM scratch\n"
              "COPY --from=a /x[12]/?/z*/f.[cd] /o/\nCOPY --from=a /x3/* /p/\nCOPY --from=a x?/y/*1/*.txt /q/\nCOPY --from=a /xl/y/*/f.? /r/\n",
              {"o/f.c": "644 0:0 1\n", "o/f.d": "644 0:0 2\n", "o/f.txt": None, "p/g": "644 0:0 4\n", "q/f.txt": "644 0:0 3\n", "r/f.d": "644 0:0 2\n"})
        check(sk, "FROM busybox AS a\nFROM scratch\nCOPY --from=a /*/nosuch*/x /o/\n", {"o": None})
    with sk.case("a link that a pattern meets is not followed, one before it is"):
        d = "FROM busybox AS a\nRUN mkdir -p /x2/y && echo 1 > /x2/y/f && ln -s x2 /xl\nFROM scratch\nCOPY --from=a %s /o/\n"
        check(sk, d % "/*l/y/f", {"o/f": None})
        check(sk, d % "/xl/y/*", {"o/f": "644 0:0 1\n"})
        c = context(sk, {"x2/y/f": "1"}, "FROM scratch\nCOPY *l/y/f /o/\n")
        os.symlink("x2", c + "/xl")
        sk("build -q -t t", c).ok
        eq(result(sk).tree.get("o/f"), None)
        sk("build -q -t t -f -", c, input="FROM scratch\nCOPY xl/y/* /o/\n").ok
        eq(result(sk).tree["o/f"], "644 0:0 1")
    with sk.case("hard links and sparse files of a stage"):
        i = check(sk, "FROM busybox AS a\nRUN mkdir /d && echo x >/d/1 && ln /d/1 /d/2 && truncate -s 5000000 /d/big\nFROM scratch\nCOPY --from=a /d /d", {"d/1": "644 0:0 x\n", "d/2": "644 0:0 x\n"})
        eq(i.links, {"d/2": "d/1"})
        match(i.tree["d/big"], hashlib.sha256(b"\0" * 5000000).hexdigest())


def packed(fmt, data):
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode="w:" + fmt) as t:
        for m, d in data:
            t.addfile(m, io.BytesIO(d))
    return f.getvalue()


@image(None)
def test_add(sk):
    items = [entry("in/"), entry("in/f", "F", mode=0o640, uid=3, gid=4), entry("in/l", link="f"), entry("in/s", "S", mode=0o4755)]
    tree = {"o/in/f": "640 3:4 F", "o/in/l": "-> f 0:0", "o/in/s": "4755 0:0 S"}
    plain = packed("", items)
    archives = {"p.tar": plain, "p.tar.gz": gzip.compress(plain), "noname": gzip.compress(plain)}
    archives["p.tar.zst"] = tool("zstd", "-qc", "-", input=plain, stdin=None)
    for name, data in archives.items():
        with sk.case("ADD takes %s apart" % name):
            check(sk, "FROM scratch\nADD %s /o/" % name, tree, files={name: data})
    with sk.case("without a slash as well"):
        check(sk, "FROM scratch\nADD p.tar.gz /o", tree, files=archives)
    with sk.case("COPY leaves it whole"):
        check(sk, "FROM scratch\nCOPY p.tar.gz /o/", {"o/p.tar.gz": "644 0:0 " + brief(archives["p.tar.gz"]), "o/in": None}, files=archives)
    with sk.case("two archives and a file"):
        check(sk, "FROM scratch\nADD p.tar q.tar x /o/", dict(tree, **{"o/y": "644 0:0 Y", "o/x": "644 0:0 X", "o/p.tar": None}),
              files={"p.tar": plain, "q.tar": packed("", [entry("y", "Y")]), "x": "X"})
    with sk.case("a pattern of archives"):
        check(sk, "FROM scratch\nADD *.tar /o/", tree, files={"p.tar": plain})
    with sk.case("no archive in spite of its name"):
        check(sk, "FROM scratch\nADD x.tar.gz /o/", {"o/x.tar.gz": "644 0:0 no archive"}, files={"x.tar.gz": "no archive"})
    with sk.case("a file and a directory are copied as by COPY"):
        check(sk, "FROM scratch\nADD --chmod=600 --chown=1:2 a.txt /o/\nADD d /p", {"o/a.txt": "600 1:2 A", "p/sub/g": "644 0:0 G"}, files=F)
    with sk.case("--exclude"):
        check(sk, "FROM scratch\nADD --exclude=*.txt . /o/", {"o/a.txt": None, "o/c.md": "600 0:0 C"}, files=F)
    with sk.case("--chown of an archive's files"):
        check(sk, "FROM scratch\nADD --chown=7:8 p.tar /o/", {"o/in/f": "640 7:8 F"}, files=archives)
    with sk.case("v7, ustar and GNU tar"):
        for fmt in "v7", "ustar", "gnu", "posix":
            sk.file("mk/f", "F")
            sk.file("mk/s/g", "G")
            made = tool("tar", "-c", "--format=" + fmt, "--owner=3", "--group=4", "-C", sk.dir + "/mk", "f", "s/g")
            check(sk, "FROM scratch\nADD a.tar /o/", {"o/f": "644 3:4 F", "o/s/g": "644 3:4 G", "o/a.tar": None}, files={"a.tar": made})
    with sk.case("--unpack=false leaves an archive whole, --unpack=true takes it apart"):
        check(sk, "FROM scratch\nADD --unpack=false p.tar /o/\nADD --unpack=true p.tar.gz /q/", {"o/p.tar": "644 0:0 " + brief(plain), "o/in": None, "q/in/f": "640 3:4 F"}, files=archives)
    for kind, pack in ("xz", lzma.compress), ("bz2", bz2.compress):
        with sk.case(kind):
            check(sk, "FROM scratch\nADD p.tar.%s /o/" % kind, {"o/in/f": "640 3:4 F", "o/p.tar." + kind: None}, files={"p.tar." + kind: pack(plain)})
            big = packed("", [entry("big", os.urandom(300000)), entry("zero", bytes(3000000))])
            halves = pack(big[:100000]) + pack(big[100000:])  # two members are one archive
            check(sk, "FROM scratch\nADD b /o/", {"o/zero": "644 0:0 " + brief(bytes(3000000))}, files={"b": halves})
            check(sk, "FROM scratch\nADD a.%s /o/" % kind, {"o/a." + kind: "644 0:0 " + brief(pack(b"no archive" * 100))}, files={"a." + kind: pack(b"no archive" * 100)})
            build(sk, "FROM scratch\nADD b /o/", files={"b": halves[:-60000]}).exits(1, "truncated")
            build(sk, "FROM scratch\nADD b /o/", files={"b": halves[:150000] + b"?" * 9 + halves[150009:]}).exits(1, "damaged")
    with sk.case("a damaged archive"):
        build(sk, "FROM scratch\nADD p.tar.gz /o/", files={"p.tar.gz": gzip.compress(packed("", [entry("big", os.urandom(100000))]))[:-5000]}).exits(1, ".")
    for name, bad in [("a path out", entry("../../escaped", "x")), ("an absolute path", entry("/abs", "x"))]:
        with sk.case("an archive with " + name):
            r = build(sk, "FROM scratch\nADD p.tar /o/", files={"p.tar": packed("", [bad])})
            true(not os.path.exists("/abs") and not os.path.exists("/escaped"), "nothing outside")
            if r.code == 0:
                true(not {"escaped", "abs"} & set(result(sk).tree), "nothing outside /o")


class Web:
    """Files by HTTP on the loopback."""

    def __init__(self, files):
        self.hits, self.files = [], files

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(me):
                self.hits.append(me.path)
                data = files.get(me.path.split("?")[0])
                if isinstance(data, str):
                    me.send_response(302)
                    me.send_header("Location", data)
                    data = b""
                else:
                    me.send_response(404 if data is None else 200)
                    data = data or b""
                me.send_header("Content-Length", str(len(data)))
                me.send_header("Last-Modified", "Wed, 01 Jan 2020 00:00:00 GMT")
                me.end_headers()
                me.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = "http://127.0.0.1:%d" % self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@image(None)
def test_add_url(sk):
    archive = gzip.compress(packed("", [entry("in", "I")]))
    web = Web({"/f": b"data", "/g": b"other", "/d/f": b"second", "/d/x.tar.gz": archive, "/moved": "/f", "/": b"index"})
    sha = lib.digest(b"data")
    for name, text, want in [
            ("into a directory", "ADD %s/f /o/", {"o/f": "600 0:0 data"}),
            ("as a file", "ADD %s/f /o", {"o": "600 0:0 data"}),
            ("a query is no name", "ADD %s/f?a=b /o/", {"o/f": "600 0:0 data"}),
            ("a redirection", "ADD %s/moved /o", {"o": "600 0:0 data"}),
            ("an archive stays whole", "ADD %s/d/x.tar.gz /o/", {"o/x.tar.gz": "600 0:0 " + brief(archive)}),
            ("--chmod --chown", "ADD --chmod=755 --chown=1:2 %s/f /o", {"o": "755 1:2 data"}),
            ("--checksum", "ADD --checksum=" + sha + " %s/f /o", {"o": "600 0:0 data"}),
            ("--unpack", "ADD --unpack=true %s/d/x.tar.gz /o/", {"o/in": "644 0:0 I", "o/x.tar.gz": None}),
            ("--checksum from a variable", "ARG sum=" + sha + "\nADD --checksum=$sum %s/f /o", {"o": "600 0:0 data"}),
            ("an ARG in the URL", "ARG n=f\nADD %s/$n /o", {"o": "600 0:0 data"})]:
        with sk.case(name):
            check(sk, "FROM scratch\n" + text % web.url, want)
    with sk.case("it has the time that the server tells"):
        eq(check(sk, "FROM scratch\nADD %s/f /o" % web.url, {}).times["o"], 1577836800)
    with sk.case("several, and files of the context beside them"):
        for text in "ADD %s/f %s/g /o/", "ADD %s/f a.txt %s/g /o/", "ADD a.txt %s/f %s/g /o/", "ADD %s/f %s/g d /o/":
            want = {"o/f": "600 0:0 data", "o/g": "600 0:0 other"}
            want.update({"o/a.txt": "644 0:0 A"} if "a.txt" in text else {"o/sub/g": "644 0:0 G"} if " d " in text else {})
            check(sk, "FROM scratch\n" + text % (web.url, web.url), want, files=F)
    with sk.case("two of one name: the last"):
        check(sk, "FROM scratch\nADD %s/f %s/d/f /o/" % (web.url, web.url), {"o/f": "600 0:0 second"})
    with sk.case("another file behind the same address is no cache hit"):
        c = context(sk, {}, "FROM scratch\nADD %s/change /o\n" % web.url)
        for data in b"1", b"2":
            web.files["/change"] = data
            eq(steps(sk("build -t t", c).ok), (0, 1))
        eq(steps(sk("build -t t", c).ok), (1, 0))
        eq(result(sk).tree["o"], "600 0:0 2")
    for text, pattern in [("ADD --checksum=sha256:" + "0" * 64 + " %s/f /o", "digest|checksum|mismatch"), ("ADD %s/nosuch /o", "404"), ("ADD %s/ /o/", "filename|name"),
                          ("ADD --checksum=nonsense %s/f /o", "checksum|digest"), ("COPY %s/f /o", "not found|http|URL|source")]:
        with sk.case("refused: " + text):
            build(sk, "FROM scratch\n" + text % web.url).exits(1, pattern)
    with sk.case("what is downloaded does not stay beside the image"):
        eq([n for n in os.listdir(sk.root + "/tmp")], [])


HEREDOC = [
    ("a file", "COPY <<EOF /f\none\n  two\n\nEOF", {"f": "644 0:0 one\n  two\n\n"}),
    ("variables", "ARG a=1\nENV b=2\nCOPY <<EOF /f\n$a ${b:-x} \\$c ${d:-e}\nEOF", {"f": "644 0:0 1 2 $c e\n"}),
    ("quoted: none", "ARG a=1\nCOPY <<\"EOF\" /f\n$a \\$a\nEOF", {"f": "644 0:0 $a \\$a\n"}),
    ("single quoted", "ARG a=1\nCOPY <<'EOF' /f\n$a\nEOF", {"f": "644 0:0 $a\n"}),
    ("<<- strips tabs", "COPY <<-EOF /f\n\tone\n\t\ttwo\n  three\n\tEOF", {"f": "644 0:0 one\ntwo\n  three\n"}),
    ("into a directory by its name", "COPY <<a.txt <<b.txt /d/\nA\na.txt\nB\nb.txt", {"d/a.txt": "644 0:0 A\n", "d/b.txt": "644 0:0 B\n"}),
    ("beside a file of the context", "COPY a.txt <<E /d/\nx\nE", {"d/a.txt": "644 0:0 A", "d/E": "644 0:0 x\n"}),
    ("with flags", "COPY --chown=1:2 --chmod=755 <<E /f\nx\nE", {"f": "755 1:2 x\n"}),
    ("ADD", "ADD <<E /f\nx\nE", {"f": "644 0:0 x\n"}),
    ("comments, continuations and instructions inside are text", "COPY <<E /f\n# c\na \\\nFROM x\nE\nLABEL a=1", {"f": "644 0:0 # c\na \\\nFROM x\n"}),
    ("quotes inside are text", "COPY <<E /f\n'a' \"b\"\nE", {"f": "644 0:0 'a' \"b\"\n"}),
    ("an empty one", "COPY <<E /f\nE", {"f": "644 0:0 "}),
    ("lines that end in CR LF", "COPY <<E /f\r\none\r\nE\r\nLABEL a=1\r", {"f": "644 0:0 one\r\n"}),
    ("fifty of them", "COPY %s /d/\n%s" % (" ".join("<<n%d" % i for i in range(50)), "".join("text %d\nn%d\n" % (i, i) for i in range(50))), {"d/n%d" % i: "644 0:0 text %d\n" % i for i in range(50)}),
    ("none inside quotes", "LABEL a=\"x <<E y\"\nCOPY a.txt /f", {"f": "644 0:0 A"}),
]


@image(None)
def test_heredoc(sk):
    for name, text, want in HEREDOC:
        with sk.case(name):
            check(sk, "FROM scratch\n" + text, want, files=F)


IGNORE = [  # .dockerignore, what is left of F2
    ("", "a.txt b.md d/a.txt d/e/a.txt d/e/x d/x x"),
    ("*.txt", "b.md d/a.txt d/e/a.txt d/e/x d/x x"),
    ("**/*.txt", "b.md d/e/x d/x x"),
    ("*/*.txt", "a.txt b.md d/e/a.txt d/e/x d/x x"),
    ("*/*/*.txt", "a.txt b.md d/a.txt d/e/x d/x x"),
    ("d", "a.txt b.md x"), ("d/", "a.txt b.md x"), ("/d", "a.txt b.md x"), ("./d", "a.txt b.md x"), ("d/*", "a.txt b.md x"),
    ("d/e", "a.txt b.md d/a.txt d/x x"), ("**/e", "a.txt b.md d/a.txt d/x x"), ("**/x", "a.txt b.md d/a.txt d/e/a.txt"),
    ("d/**", "a.txt b.md x"), ("d/**/x", "a.txt b.md d/a.txt d/e/a.txt x"),
    ("*", ""), ("*\n!x", "x"), ("*\n!d/e", "d/e/a.txt d/e/x"), ("*\n!d/x", "d/x"), ("d\n!d/e/x", "a.txt b.md d/e/x x"),
    ("!x\nx", "a.txt b.md d/a.txt d/e/a.txt d/e/x d/x"), ("**\n!**/*.txt", "a.txt d/a.txt d/e/a.txt"),
    ("# d\n\n  x  \n", "a.txt b.md d/a.txt d/e/a.txt d/e/x d/x"), ("?.txt", "b.md d/a.txt d/e/a.txt d/e/x d/x x"), ("[ab].*", "d/a.txt d/e/a.txt d/e/x d/x x"),
    ("../x", "a.txt b.md d/a.txt d/e/a.txt d/e/x d/x"), ("d/../x", "a.txt b.md d/a.txt d/e/a.txt d/e/x d/x"), ("x\r\nd\r\n", "a.txt b.md"),
    ("nosuch\na", "a.txt b.md d/a.txt d/e/a.txt d/e/x d/x x"), ("\ufeffx", "a.txt b.md d/a.txt d/e/a.txt d/e/x d/x"),
]
F2 = {"a.txt": "1", "b.md": "2", "x": "3", "d/a.txt": "4", "d/x": "5", "d/e/a.txt": "6", "d/e/x": "7"}


@image(None)
def test_dockerignore(sk):
    def left():
        return " ".join(sorted(n[2:] for n, w in result(sk).tree.items() if n.startswith("o/") and w[0] != "d"))
    for text, want in IGNORE:
        with sk.case(repr(text)):
            build(sk, "FROM scratch\nCOPY . /o\n", files=dict(F2, **{".dockerignore": text + "\n.dockerignore\nDockerfile\n"})).ok
            eq(left(), want)
    with sk.case("what is ignored cannot be named"):
        build(sk, "FROM scratch\nCOPY x /o\n", files=dict(F2, **{".dockerignore": "x"})).exits(1, "not found")
        build(sk, "FROM scratch\nCOPY d/x /o\n", files=dict(F2, **{".dockerignore": "d"})).exits(1, "not found")
        build(sk, "FROM scratch\nCOPY d /o\n", files=dict(F2, **{".dockerignore": "d"})).exits(1, "not found")
    with sk.case("the Dockerfile may be ignored and is still read"):
        check(sk, "FROM scratch\nCOPY . /o\n", {"o/Dockerfile": None, "o/x": "644 0:0 3"}, files=dict(F2, **{".dockerignore": "Dockerfile\n.dockerignore"}))
    with sk.case("NAME.dockerignore goes before"):
        c = context(sk, dict(F2, **{"sub/My.df": "FROM scratch\nCOPY . /o\n", "sub/My.df.dockerignore": "**\n!b.md", ".dockerignore": "b.md"}))
        sk(["build", "-t", "t", "-f", c + "/sub/My.df", c]).ok
        eq(left(), "b.md")
    with sk.case("an ignored directory leaves no empty one"):
        i = check(sk, "FROM scratch\nCOPY . /o\n", {"o/d": None, "o/d/e": None}, files=dict(F2, **{".dockerignore": "d"}))
    with sk.case("a directory's own rules in COPY of it"):
        check(sk, "FROM scratch\nCOPY d /o\n", {"o/x": None, "o/e": "d755 0:0", "o/e/x": "644 0:0 7"}, files=dict(F2, **{".dockerignore": "d/x"}))
    with sk.case("rules that cannot be read are no empty ones"):
        c = context(sk, dict(F2, **{".dockerignore": ("x\n" + "# a comment\n" * 120000)}), "FROM scratch\nCOPY . /o\n")
        sk("build -q -t t", c).ok
        eq("o/x" in result(sk).tree, False)
        os.chmod("%s/%s/.dockerignore" % (sk.dir, c), 0)
        if os.getuid():
            sk("build -q", c).exits(1, "dockerignore.*denied")
    with sk.case("ignored files do not matter to the cache"):
        c = context(sk, dict(F2, **{".dockerignore": "x"}), "FROM scratch\nCOPY . /o\n")
        sk("build", c).ok
        sk.file(c + "/x", "changed")
        eq(steps(sk("build", c).ok), (1, 0))


# ---- RUN ----

def out(sk, dockerfile, *options, **kw):
    """What the steps put into /o."""
    build(sk, dockerfile, *options, **kw).ok
    w = result(sk).tree.get("o")
    return w and w.split(" ", 2)[2]


def test_run(sk):
    for name, text, want in [
            ("shell form", "RUN echo a b  c > /o", "a b c\n"),
            ("exec form", "RUN [\"/bin/sh\", \"-c\", \"echo \\\"$0\\\" > /o\", \"x  y\"]", "x  y\n"),
            ("continuation with comments", "RUN echo a \\\n# no\n\n  && echo b > /o", "b\n"),
            ("SHELL", "SHELL [\"/bin/sh\", \"-ec\"]\nRUN echo $0 $- | grep -c e > /o", "1\n"),
            ("the shell expands, not the builder", "ENV a=1\nRUN a=2; echo $a ${a#2} '$a' \\$a > /o", "2 $a $a\n"),
            ("ARG is in the environment", "ARG a=1\nARG b\nRUN echo $a-$b-$(env | grep -c ^a=) > /o", "1--1\n"),
            ("ENV wins over ARG", "ARG a=1\nENV a=2\nRUN echo $a > /o", "2\n"),
            ("ENV and HOME", "ENV a=\"x  y\"\nRUN echo \"$a $HOME\" > /o", "x  y /root\n"),
            ("PATH of the image", "ENV PATH=/bin:/x\nRUN echo $PATH > /o", "/bin:/x\n"),
            ("WORKDIR", "WORKDIR /w/x\nRUN pwd > /o", "/w/x\n"),
            ("heredoc", "RUN <<EOF\necho a > /o\nx=$((1+1))\necho b$x >> /o\nEOF", "a\nb2\n"),
            ("heredoc, quoted", "ENV x=1\nRUN <<'EOF'\necho \"$x\" > /o\nEOF", "1\n"),
            ("heredoc, <<-", "RUN <<-EOF\n\techo a > /o\n\tEOF", "a\n"),
            ("heredoc with its interpreter", "RUN <<EOF\n#!/bin/awk -f\nBEGIN { print 1 + 1 > \"/o\" }\nEOF", "2\n"),
            ("heredoc of a command", "RUN cat <<EOF > /o\nx\n y\nEOF", "x\n y\n"),
            ("heredoc with set -e", "RUN <<EOF\nset -e\ntrue\necho ok > /o\nEOF", "ok\n"),
            ("two heredocs", "RUN cat <<A - <<B > /o\na\nA\nb\nB", "b\n"),
            ("heredoc and more", "RUN <<EOF cat > /o && echo more >> /o\nx\nEOF", "x\nmore\n"),
            ("no heredoc: <<<, a shift", "RUN echo $((1<<3)) > /o", "8\n"),
            ("no heredoc: in quotes", "RUN echo \"a <<E b\" 'c <<F d' > /o", "a <<E b c <<F d\n"),
            ("several heredocs of one line", "RUN <<A cat > /o && cat >> /o <<B && cat <<-C >> /o\na\nA\nb\nB\n\tc\n\tC", "a\nb\nc\n"),
            ("heredocs by descriptors", "RUN <<E 3<<A 4<<B cat - /dev/fd/3 /dev/fd/4 > /o\nx\nE\nfirst\nA\nsecond\nB", "x\nfirst\nsecond\n"),
            ("heredoc for a SHELL that is none", "SHELL [\"/bin/awk\"]\nRUN <<E\nBEGIN {\n\tprint \"awk\" > \"/o\"\n}\nE", "awk\n"),
            ("global ARGs in quotes", "ARG a3=\"bar-$a2\"\nRUN echo $a3 > /o", "bar-\n"),
            ("stdin is empty", "RUN cat > /o; echo $? >> /o", "0\n"),
            ("what was made before is there, what was removed is gone", "RUN echo 1 > /a && echo 2 > /b\nRUN rm /a /etc/passwd\nRUN cat /b > /o; ls /a /etc/passwd 2>/dev/null >> /o || echo gone >> /o", "2\ngone\n"),
            ("umask and /tmp", "RUN umask > /o; touch /tmp/x; stat -c %a /tmp/x /tmp >> /o", "0022\n644\n1777\n"),
            ("the host's processes are not there", "RUN echo $$ $(ls -d /proc/[0-9]* | wc -l) > /o", None)]:
        with sk.case(name):
            got = out(sk, "FROM busybox\n" + text)
            eq(got, want) if want else match(got, r"^1 \d\n$")
    with sk.case("removed files are whiteouts in the layer"):
        build(sk, "FROM busybox\nRUN rm /etc/passwd && rm -r /home && mkdir /home && echo x > /home/y").ok
        i = result(sk)
        true("etc/passwd" not in i.tree and "home/y" in i.tree and "etc/group" in i.tree, "the tree after rm")
    with sk.case("a layer holds only what changed"):
        build(sk, "FROM busybox\nRUN mkdir -p /n/m && echo x > /n/m/f\nRUN true").ok
        i = result(sk)
        eq(sorted(n for n in i.layers[1] if n != "."), ["n", "n/m", "n/m/f"])
        eq([n for n in i.layers[2] if n != "."], [])
    with sk.case("mount points and the like of the engine are not in the image"):
        build(sk, "FROM scratch\nCOPY --from=busybox /bin/busybox /bin/sh\nRUN [\"/bin/sh\", \"-c\", \"echo x > /o\"]").ok
        eq(sorted(result(sk).tree), ["bin", "bin/sh", "o"])
    with sk.case("modes, links, times and kinds of file"):
        t = check(sk, "FROM busybox\nRUN mkdir /d && cd /d && echo x > s && chmod 4755 s && ln -s s l && ln s h && mkfifo p && mkdir -m 1777 t && touch -d '2001-02-03 04:05:06' s",
                  {"d/s": "4755 0:0 x\n", "d/h": "4755 0:0 x\n", "d/l": "-> s 0:0", "d/p": "p644 0:0", "d/t": "d1777 0:0"})
        eq(int(t.times["d/s"]), 981173106)
    if sk.subuid:  # one id keeps no other owners than those of COPY --chown and USER
        with sk.case("owners"):
            check(sk, "FROM busybox\nRUN touch /1 /2 && chown app /1 && chown nobody:wheel /2 && mkdir -p /d && chown -R 7:8 /d", {"1": "644 1000:0 ", "2": "644 65534:10 ", "d": "d755 7:8"})
    with sk.case("the history of RUN, with its arguments"):
        build(sk, "FROM busybox\nRUN true a  b\nARG a=5\nARG b\nARG c=\"x y\"\nRUN true c\nRUN [\"true\", \"d e\"]\nRUN <<E\ntrue f\nE\n").ok
        eq([h["created_by"].replace(" # skiff", "") for h in result(sk).config["history"] if "true" in h["created_by"]], [
            "RUN /bin/sh -c true a  b", "RUN |2 a=5 c=x y /bin/sh -c true c", "RUN |2 a=5 c=x y true d e", "RUN |2 a=5 c=x y /bin/sh -c true f\n"])
    with sk.case("output is shown, of both streams"):
        r = build(sk, "FROM busybox\nRUN echo to-out; echo to-err >&2; printf no-newline").ok
        match(r.err, r"^#\d+ [\d.]+ to-out$")
        match(r.err, r"^#\d+ [\d.]+ to-err$")
        match(r.err, r"^#\d+ [\d.]+ no-newline$")
        match(r.err, r"^#1 .*FROM busybox")
        match(r.err, r"^#2 \[.*2/2\] RUN echo to-out")
        eq(r.out, "")
    with sk.case("much output, and long lines"):
        r = build(sk, "FROM busybox\nRUN yes | head -c 200000; head -c 100000 /dev/zero | tr '\\0' x; echo; echo end").ok
        eq(len(re.findall(r"^#2 [\d.]+ y$", r.err, re.M)), 100000)
        eq(sum(len(m) for m in re.findall(r"^#2 [\d.]+ (x+)$", r.err, re.M)), 100000)
        match(r.err, r"^#2 [\d.]+ end$")
    with sk.case("a NUL hides nothing"):
        match(build(sk, "FROM busybox\nRUN printf 'a\\0b''c\\n'").ok.err, "^#2 [\\d.]+ a.*bc$")
    with sk.case("a process left behind does not hold the build"):
        build(sk, "FROM busybox\nRUN sleep 1000 & echo x > /o").ok


def test_run_user(sk):
    for name, text, want in [
            ("USER", "USER app\nRUN id -u > /tmp/x; id -g >> /tmp/x; echo $HOME >> /tmp/x\nUSER root\nRUN cat /tmp/x > /o", "1000\n1000\n/home\n"),
            ("USER by number", "USER 1000:10\nRUN id -u > /tmp/x; id -g >> /tmp/x\nUSER 0\nRUN cat /tmp/x > /o", "1000\n10\n"),
            ("USER from an ARG", "ARG u=app\nUSER $u\nRUN id -un > /tmp/x\nUSER root\nRUN cat /tmp/x > /o", "app\n")]:
        with sk.case(name):
            eq(out(sk, "FROM busybox\n" + text), want)
    with sk.case("files of a USER are the user's"):
        check(sk, "FROM busybox\nRUN chmod 1777 /tmp\nUSER app\nRUN echo x > /tmp/f && mkdir /tmp/d", {"tmp/f": "644 1000:1000 x\n", "tmp/d": "d755 1000:1000"})
    if sk.subuid:
        with sk.case("its other groups are those of the image"):
            groups = "FROM busybox\nRUN printf 'one:x:101:x,app\\ntwo:x:102:app\\nthree:x:103:x\\n' >> /etc/group\n"
            for user, want in ("app", "10 101 102 1000"), ("1000", "10 101 102 1000"), ("app:two", "102"), ("1000:1000", "1000"), ("nobody", "65534"), ("77", "0"):
                eq(" ".join(sorted(out(sk, groups + "USER %s\nRUN id -G > /tmp/o\nUSER 0\nRUN mv /tmp/o /o" % user).split(), key=int)), want, user)
    with sk.case("an unknown user"):
        build(sk, "FROM busybox\nUSER nosuch\nRUN true").exits(1, "nosuch")
    with sk.case("WORKDIR belongs to the user"):
        check(sk, "FROM busybox\nUSER app\nWORKDIR /w", {"w": "d755 1000:1000"})
    if sk.subuid:  # with one id all files are its own
        with sk.case("a user is no root"):
            build(sk, "FROM busybox\nRUN echo x > /f && chmod 600 /f && chmod 700 /root\nUSER app\nRUN ! cat /f && ! ls /root && ! touch /x && ! chown app /f").ok


def test_run_mount(sk):
    def run(text, *options, files=F, want=None):
        got = out(sk, "FROM busybox\n" + text, *options, files=files)
        if want is not None:
            eq(got, want)
    with sk.case("bind: the context, read-only"):
        run("RUN --mount=type=bind,target=/m cat /m/a.txt /m/d/e > /o; touch /m/x 2>/dev/null || echo ro >> /o", want="AEro\n")
    with sk.case("bind: a source below it, the type left out, target by its other names"):
        run("RUN --mount=source=d,target=/m --mount=src=d/sub,dst=/n --mount=source=a.txt,destination=/f ls /m /n > /o; cat /f >> /o",
            want="/m:\ne\nempty\nf.txt\nlink\nsub\n\n/n:\ng\nh.txt\nA")
    with sk.case("bind: relative to WORKDIR"):
        run("WORKDIR /w\nRUN --mount=target=m cat /w/m/a.txt > /o", want="A")
    with sk.case("bind,rw never writes into the context"):
        c = context(sk, F, "FROM busybox\nRUN --mount=target=/m,rw echo new > /m/a.txt\n")
        sk("build -t t", c)
        eq(open("%s/%s/a.txt" % (sk.dir, c)).read(), "A", "the context's file")
    with sk.case("bind: a source out of the context"):
        build(sk, "FROM busybox\nRUN --mount=source=../../etc,target=/m ls /m\n").exits(1, ".")
        build(sk, "FROM busybox\nRUN --mount=source=nosuch,target=/m ls /m\n").exits(1, "nosuch")
    with sk.case("bind: variables in the flag"):
        run("ARG d=d\nRUN --mount=source=$d,target=/m cat /m/e > /o", want="E")
    with sk.case("mounts within mounts, over a file, and twice the same source"):
        run("RUN --mount=target=/m --mount=source=b.txt,target=/n/b --mount=type=cache,target=/c/d --mount=type=tmpfs,target=/c/d/e cat /m/a.txt /n/b > /o; touch /c/d/e/gone /c/d/kept\n"
            "RUN --mount=type=cache,target=/c/d find /c -type f >> /o\nRUN --mount=source=a.txt,target=/etc/passwd cat /etc/passwd >> /o\nRUN head -c4 /etc/passwd >> /o", want="AB/c/d/kept\nAroot")
    with sk.case("the type and the id from variables, also of a base"):
        eq(out(sk, "FROM busybox AS stage\nENV T=cache I=vid\nRUN --mount=type=$T,id=$I,target=/$I echo v > /vid/f\nFROM stage\nRUN --mount=type=$T,id=$I,target=/w cat /w/f > /o"), "v\n")
    with sk.case("the mount is no part of the layer"):
        build(sk, "FROM busybox\nRUN --mount=target=/m1 --mount=type=cache,target=/m2 --mount=type=tmpfs,target=/m3 true", files=F).ok
        eq([n for n in result(sk).tree if re.match("m[123]/", n)], [])
    with sk.case("tmpfs"):
        run("RUN --mount=type=tmpfs,target=/m grep ' /m ' /proc/mounts | cut -d' ' -f3 > /o; echo x > /m/f\nRUN ls /m/f 2>/dev/null >> /o || echo gone >> /o", want="tmpfs\ngone\n")
    with sk.case("tmpfs with a size"):
        run("RUN --mount=type=tmpfs,target=/m,size=1m ! head -c 3000000 /dev/zero > /m/f 2>/dev/null; wc -c < /m/f > /o", want="1048576\n")
    with sk.case("cache keeps from step to step and build to build"):
        d = "RUN --mount=type=cache,target=/m echo %s >> /m/f && cat /m/f > /o"
        run(d % 1, want="1\n")
        run(d % 2 + "\n" + d % 3, want="1\n2\n3\n")
    with sk.case("cache by id, shared between targets; another id is another"):
        run("RUN --mount=type=cache,id=i,target=/m echo 1 > /m/f\nRUN --mount=type=cache,id=i,target=/n,sharing=locked cat /n/f > /o; ls /n >> /o\nRUN --mount=type=cache,id=j,target=/m ls /m >> /o", want="1\nf\n")
    with sk.case("cache: mode, uid, gid"):
        run("RUN --mount=type=cache,target=/m4,mode=0750,uid=1000,gid=10 stat -c '%a %u %g' /m4 > /o", want="750 1000 10\n" if sk.subuid else None)
    with sk.case("ssh"):
        agent = socket.socket(socket.AF_UNIX)
        agent.bind(sk.dir + "/agent")
        eq(out(sk, "FROM busybox\nRUN --mount=type=ssh test -S \"$SSH_AUTH_SOCK\" && echo yes > /o\nRUN echo $SSH_AUTH_SOCK- >> /o", "--ssh", "default",
               env={"SSH_AUTH_SOCK": sk.dir + "/agent"}), "yes\n-\n")
        build(sk, "FROM busybox\nRUN --mount=type=ssh,required=true true", env={"SSH_AUTH_SOCK": None}).exits(1, "ssh")
    with sk.case("--security"):
        run("RUN --security=sandbox echo x > /o", want="x\n")
        build(sk, "FROM busybox\nRUN --security=nosuch true").exits(1, "security")
    with sk.case("cache is not in the context of the next build's tree"):
        true(not [n for n in result(sk).tree if n.startswith("m4/")], "an empty mount point")


def ready(p, word):
    """Reads a build's progress until a line has the word."""
    seen = b""
    while word not in seen:
        line = p.stderr.readline()
        if not line:
            raise lib.Failed("expected %r from a build, got %s" % (word, lib.short(repr(seen))))
        seen += line


def ended(*builds):
    """Waits for builds in the background; what each wrote to standard error."""
    said = [p.communicate(timeout=lib.PATIENCE + 10)[1].decode() for p in builds]
    for p, text in zip(builds, said):
        eq(p.returncode, 0, "exit code of a build in the background (%s)" % text[-300:])
    return said


WAIT = "i=0; while ! %s; do sleep 0.1; i=$((i+1)); [ $i -lt 250 ] || exit 9; done; "  # until a condition holds


def test_run_mount_from(sk):
    """Binds of stages, images and named directories: what they hold, what a step may do with it, and that it is in the key."""
    base = "FROM busybox AS s\nRUN mkdir -p /d/e && echo one > /d/f && echo deep > /d/e/g && ln -s f /d/l && chmod 640 /d/e/g\nFROM busybox\n"
    for name, text, want in [
            ("a directory of a stage", "RUN --mount=from=s,source=/d,target=/m cat /m/f /m/l /m/e/g > /o; stat -c %a /m/e/g >> /o", "one\none\ndeep\n640\n"),
            ("by its number, a file", "RUN --mount=type=bind,from=0,src=d/f,dst=/m/x/y cat /m/x/y > /o", "one\n"),
            ("its whole tree", "RUN --mount=from=S,target=/m cat /m/d/f > /o; ls -d /m/bin/busybox >> /o", "one\n/m/bin/busybox\n"),
            ("through its links", "RUN --mount=from=s,source=/d/l,target=/m cat /m > /o", "one\n"),
            ("read-only", "RUN --mount=from=s,source=/d,target=/m touch /m/new 2>/dev/null || echo ro > /o", "ro\n"),
            ("rw: changes are the step's own", "RUN --mount=from=s,source=/d,target=/m,rw echo two > /m/f; rm -r /m/e; cat /m/f > /o\nRUN --mount=from=s,source=/d,target=/m cat /m/f /m/e/g >> /o", "two\none\ndeep\n"),
            ("an image", "RUN --mount=from=busybox,source=/etc,target=/m head -n1 /m/passwd > /o", "root:x:0:0:root:/root:/bin/sh\n"),
            ("a variable", "ARG w=d\nRUN --mount=from=s,source=/$w,target=/m cat /m/f > /o", "one\n")]:
        with sk.case(name):
            eq(out(sk, base + text), want)
    with sk.case("nothing of it is in the layer"):
        build(sk, base + "RUN --mount=from=s,source=/d,target=/m,rw touch /m/new").ok
        eq([n for n in result(sk).layers[-1] if n not in (".", "m")], [])
    if sk.subuid:
        with sk.case("owners of a stage's files"):
            eq(out(sk, "FROM busybox AS s\nRUN mkdir /d && touch /d/f && chown app:wheel /d/f\nFROM busybox\nRUN --mount=from=s,source=/d,target=/m stat -c '%u %g' /m/f > /o"), "1000 10\n")
    for text, pattern in [("from=s,source=/nosuch,target=/m", "nosuch.*not found"), ("from=127.0.0.1:1/nosuch:1,target=/m", "127.0.0.1:1/nosuch:1"), ("from=s,source=/d", "target")]:
        with sk.case("refused: " + text):
            build(sk, base + "RUN --mount=%s true" % text).exits(1, pattern)
    named = context(sk, {"f": "named", "x": "no", ".dockerignore": "x\n"})
    given = ["--build-context", "n=" + named]
    with sk.case("a directory by --build-context"):
        eq(out(sk, "FROM busybox\nRUN --mount=from=n,source=f,target=/m cat /m > /o", *given), "named")
    with sk.case("rw never writes into it"):
        eq(out(sk, "FROM busybox\nRUN --mount=from=n,target=/m,rw echo new > /m/f; cat /m/f > /o", *given), "new\n")
        eq(open(sk.dir + "/" + named + "/f").read(), "named")
    with sk.case("its own .dockerignore"):
        eq(out(sk, "FROM busybox\nRUN --mount=from=n,target=/m ls /m > /o", *given), "f\n")
        check(sk, "FROM scratch\nCOPY --from=n . /\n", {"f": "644 0:0 named", "x": None}, *given)
    ignore = {".dockerignore": "*.txt\n.dockerignore\nDockerfile\n", "a.txt": "A", "b": "B", "d/c.txt": "C"}
    with sk.case(".dockerignore of the context"):
        eq(out(sk, "FROM busybox\nRUN --mount=target=/m cd /m; find . -type f | sort > /o; cat b >> /o; touch x 2>/dev/null || echo ro >> /o", files=ignore), "./b\n./d/c.txt\nBro\n")
        eq(out(sk, "FROM busybox\nRUN --mount=target=/m,rw cd /m; find . -type f | sort > /o; touch x", files=ignore), "./b\n./d/c.txt\n")
        build(sk, "FROM busybox\nRUN --mount=source=a.txt,target=/m true", files=ignore).exits(1, "a.txt")
    with sk.case("changed contents are no cache hit, what is ignored does not matter"):
        c = context(sk, dict(ignore, **{"d/e": "E"}), "FROM busybox\nRUN --mount=target=/m cat /m/b > /o\nRUN --mount=source=d,target=/m true\n")
        seen = []
        for name in None, "a.txt", "b", "d/e", None:
            if name:
                sk.file(c + "/" + name, "changed")
            seen.append(steps(sk(["build", "-t", "t", c]).ok))
        eq(seen, [(0, 2), (2, 0), (0, 2), (0, 2), (2, 0)])
        eq(result(sk).tree["o"], "644 0:0 changed")
    with sk.case("the same of a stage and of a named directory"):
        d = "FROM busybox AS s\nRUN echo %s > /f; echo %s > /g\nFROM busybox\nRUN --mount=from=s,source=f,target=/m cat /m > /o\nRUN --mount=from=n,target=/m cat /m/f >> /o\n"
        seen = []
        for a, b, n in ("1", "1", "N"), ("1", "2", "N"), ("2", "2", "N"), ("2", "2", "M"):
            sk.file(named + "/f", n)
            seen.append(steps(build(sk, d % (a, b), *given).ok))
        eq(seen, [(0, 3), (2, 1), (0, 3), (2, 1)])
        eq(result(sk).tree["o"], "644 0:0 2\nM")


def test_run_mount_cache(sk):
    """Cache mounts of builds at the same time, their seed, and what a prune may take."""
    def start(script, n=0, name="t", **mount):
        flags = "".join(",%s=%s" % x for x in mount.items())
        c = context(sk, {}, "FROM busybox\nARG n=%d\nRUN --mount=type=cache,id=sync,target=/s --mount=type=cache,target=/c%s %s\n" % (n, flags, script))
        return sk.popen(["build", "--no-cache", "-t", name + str(n), c], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with sk.case("shared: several builds have it at once"):
        ended(*[start("touch /c/$n; " + WAIT % "[ -e /c/1 -a -e /c/2 ]", n, id="sh", sharing="shared") for n in (1, 2)])
    with sk.case("shared is the default"):
        ended(*[start("touch /c/$n; " + WAIT % "[ -e /c/1 -a -e /c/2 ]", n, id="df") for n in (1, 2)])
    with sk.case("locked: one after the other"):
        ended(*[start("mkdir /c/busy && sleep 0.3 && rmdir /c/busy && echo $n >> /c/all", n, id="lo", sharing="locked") for n in range(4)])
        eq(sorted(out(sk, "FROM busybox\nRUN --mount=type=cache,id=lo,target=/c cat /c/all > /o").split()), ["0", "1", "2", "3"])
    with sk.case("private: at the same time each has its own"):
        ended(*[start("echo $n > /c/mine; touch /s/$n; " + WAIT % "[ -e /s/1 -a -e /s/2 ]" + "[ $(cat /c/mine) = $n ]", n, id="pr", sharing="private") for n in (1, 2)])
    with sk.case("private: afterwards it is used again"):
        match(out(sk, "FROM busybox\nRUN --mount=type=cache,id=pr,target=/c,sharing=private cat /c/mine > /o"), "^[12]$")
    with sk.case("the same cache twice in a step"):
        eq(out(sk, "FROM busybox\nRUN --mount=type=cache,id=tw,target=/x,sharing=locked --mount=type=cache,id=tw,target=/y,sharing=locked touch /x/f; ls /y > /o", wait=20), "f\n")
    seed = "FROM busybox AS s\nRUN mkdir -p /d/e && echo seed > /d/f && echo deep > /d/e/g\nFROM busybox\n"
    with sk.case("from and source: the seed of a new one"):
        d = seed + "RUN --mount=type=cache,id=se,target=/c,from=s,source=/d cat /c/f /c/e/g > /o; echo more >> /c/f\n"
        eq(out(sk, d), "seed\ndeep\n")
        eq(out(sk, d, "--no-cache"), "seed\nmore\ndeep\n")
    with sk.case("the seed of an image and of a named directory"):
        eq(out(sk, "FROM busybox\nRUN --mount=type=cache,id=si,target=/c,from=busybox,source=/etc head -c4 /c/passwd > /o"), "root")
        eq(out(sk, "FROM busybox\nRUN --mount=type=cache,id=sn,target=/c,from=n,source=d cat /c/f > /o", "--build-context", "n=" + context(sk, {"d/f": "named"})), "named")
    with sk.case("ro"):
        eq(out(sk, seed + "RUN --mount=type=cache,id=ro,target=/c,ro,from=s,source=/d cat /c/f > /o; touch /c/x 2>/dev/null || echo no >> /o"), "seed\nno\n")
    with sk.case("for a user, in its own mode"):
        eq(out(sk, "FROM busybox\nUSER app\nRUN --mount=type=cache,id=us,target=/c,uid=1000,gid=1000,mode=0700 touch /c/f && stat -c %a /c > /tmp/o\nUSER 0\nRUN cp /tmp/o /o"), "700\n")
    with sk.case("builder prune leaves one that is in use, and takes it afterwards"):
        p = start("touch /c/f; printf rea; echo dy; " + WAIT % "[ -e /s/go ]" + "test -e /c/f", id="busy")
        ready(p, b"ready")
        sk("builder prune -f").ok
        build(sk, "FROM busybox\nRUN --mount=type=cache,id=sync,target=/s touch /s/go").ok
        ended(p)
        look = "FROM busybox\nRUN --mount=type=cache,id=busy,target=/c ls /c > /o"
        eq(out(sk, look, "--no-cache"), "f\n")
        sk("builder prune -f").ok
        eq(out(sk, look, "--no-cache"), "")


def test_ssh(sk):
    """An agent's socket is in the step that asks for it, where the command line gives one."""
    agent = socket.socket(socket.AF_UNIX)
    agent.bind(sk.dir + "/agent")
    env = {"SSH_AUTH_SOCK": sk.dir + "/agent"}
    here = "FROM busybox\nRUN --mount=type=ssh%s test -S \"$SSH_AUTH_SOCK\" && echo yes > /o || echo \"no-$SSH_AUTH_SOCK\" > /o"
    for name, flags, options, want in [
            ("without --ssh there is none, though the caller has one", "", [], "no-\n"), ("--ssh default", "", ["--ssh", "default"], "yes\n"),
            ("another id is another", ",id=k", ["--ssh", "default"], "no-\n"), ("an id with its socket", ",id=k", ["--ssh", "k=" + sk.dir + "/agent"], "yes\n"),
            ("a target", ",target=/x/agent", ["--ssh", "default"], "yes\n")]:
        with sk.case(name):
            eq(out(sk, here % flags, "--no-cache", *options, env=env), want)
    with sk.case("the target is where it is"):
        eq(out(sk, "FROM busybox\nRUN --mount=type=ssh,target=/x/agent echo $SSH_AUTH_SOCK > /o; test -S /x/agent", "--ssh", "default", env=env), "/x/agent\n")
    with sk.case("required"):
        build(sk, "FROM busybox\nRUN --mount=type=ssh,required=true true", env=env).exits(1, "ssh")
        build(sk, "FROM busybox\nRUN --mount=type=ssh,required=true true", "--ssh", "default", env=env).ok
    with sk.case("no agent"):
        build(sk, here % "", "--ssh", "default", env={"SSH_AUTH_SOCK": None}).exits(1, "SSH_AUTH_SOCK")
        build(sk, here % "", "--ssh", "default=/no/such").exits(1, "/no/such")


@image(None)
def test_add_secrets(sk):
    """HTTP_AUTH_TOKEN_host, HTTP_AUTH_HEADER_host and GIT_AUTH_TOKEN: for that host, for nobody else, and in no layer."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(me):
            seen.append((me.path, me.headers.get("Authorization")))
            if me.path.startswith("/away"):
                me.send_response(302)
                me.send_header("Location", "http://localhost:%d/there" % me.server.server_port)
                me.end_headers()
                return
            me.send_response(200 if me.headers.get("Authorization") or me.path == "/there" else 401)
            me.send_header("Content-Length", "2")
            me.end_headers()
            me.wfile.write(b"ok")

        def log_message(self, *a):
            pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = "127.0.0.1:%d" % server.server_port
    try:
        d = "FROM scratch\nADD http://%s/%%s /o\n" % host
        token = sk.file("token", "tok-123\n")
        with sk.case("without"):
            build(sk, d % "f").exits(1, "401")
        with sk.case("a token"):
            check(sk, d % "f", {"o": "600 0:0 ok"}, "--secret", "id=HTTP_AUTH_TOKEN_%s,src=%s" % (host, token))
            eq(seen[-1], ("/f", "Bearer tok-123"))
        with sk.case("a Dockerfile without a context: root's all the same"):
            sk("build -q -t t --secret", "id=HTTP_AUTH_TOKEN_%s,src=%s" % (host, token), "-", input=d % "f").ok
            eq(result(sk).tree["o"], "600 0:0 ok")
        with sk.case("a header"):
            check(sk, d % "g", {"o": "600 0:0 ok"}, "--secret", "id=HTTP_AUTH_HEADER_%s,env=H" % host, env={"H": "Basic eDp5"})
            eq(seen[-1], ("/g", "Basic eDp5"))
        with sk.case("another host's"):
            build(sk, d % "h", "--secret", "id=HTTP_AUTH_TOKEN_localhost,src=" + token).exits(1, "401")
        with sk.case("not across a redirect to another host"):
            build(sk, d % "away", "--secret", "id=HTTP_AUTH_TOKEN_%s,src=%s" % (host, token)).ok
            eq(seen[-2:], [("/away", "Bearer tok-123"), ("/there", None)])
        with sk.case("Git"):
            for secret, want in ("GIT_AUTH_TOKEN", "basic eC1hY2Nlc3MtdG9rZW46dG9rLTEyMw=="), ("GIT_AUTH_TOKEN." + host, "basic eC1hY2Nlc3MtdG9rZW46dG9rLTEyMw=="), ("GIT_AUTH_HEADER", "tok-123"), ("GIT_AUTH_TOKEN.localhost", None):
                build(sk, "FROM scratch\nADD http://%s/r.git /o\n" % host, "--secret", "id=%s,src=%s" % (secret, token)).exits(1, "r.git")
                eq([auth for path, auth in seen if path.startswith("/r.git/info/refs")][-1], want, secret)
        with sk.case("in no layer"):
            eq(grep_store(sk, b"tok-123"), [])
    finally:
        server.shutdown()


def test_names_of_stages(sk):
    """Which stage a name means, and what is said where there is none."""
    with sk.case("of two of one name the last one"):
        check(sk, "FROM busybox AS x\nRUN echo 1 > /f\nFROM busybox AS x\nRUN echo 2 > /f\nFROM x\nRUN cp /f /g\nFROM scratch\nCOPY --from=x /f /f\nCOPY --from=2 /g /g\n", {"f": "644 0:0 2\n", "g": "644 0:0 2\n"})
    with sk.case("one that comes later"):
        build(sk, "FROM busybox AS a\nCOPY --from=b /x /\nFROM busybox AS b\nRUN touch /x\nFROM a\n").exits(1, r"Dockerfile:2: .*defined before")
    with sk.case("the line of FROM"):
        for text, want in ("ARG x\nFROM busybox:$x", r"Dockerfile:2: FROM .*invalid reference"), ("ARG x\n\nFROM $x", r"Dockerfile:3: FROM .*blank"), ("FROM busybox AS q\nFROM 127.0.0.1:1/no", r"Dockerfile:2: FROM "):
            r = build(sk, text + "\n").exits(1, want)
            eq(r.err.count("Dockerfile:"), 1, "places named")
        c = context(sk, {"other": "ARG x\nFROM $x\n"})
        sk("build -f", c + "/other", c).exits(1, "other:2: FROM")
    with sk.case("a build context goes before a stage, and is said where it cannot be used"):
        c = context(sk, {"own": "X"}, "FROM busybox AS one\nRUN exit 1\nFROM scratch\nCOPY --from=one /bin/busybox /o\n")
        sk("build -q -t t --build-context one=docker-image://busybox", c).ok
        true("o" in result(sk).tree, "the image's file")
        for kind in "oci-layout://x:y", "https://127.0.0.1:1/x.git", "http://127.0.0.1:1/x.tar":
            for use in "FROM nb", "FROM scratch\nCOPY --from=nb / /":
                build(sk, use + "\n", "--build-context", "nb=" + kind).exits(1, "build-context nb=")
        build(sk, "FROM scratch\n", "--build-context", "nothing").exits(1, "NAME=VALUE")
    with sk.case("a build context of an OCI layout"):
        sk("build -q -t lay", context(sk, {"f": "of the layout"}, "FROM busybox\nCOPY f /f\n")).ok
        tool("tar", "-x", "-C", sk.folder("layout"), input=sk("build -q --output type=oci,dest=- ", context(sk, {"f": "of the layout"}, "FROM busybox\nCOPY f /f\n")).ok.raw, stdin=None)
        tag = json.load(open(sk.dir + "/layout/index.json"))["manifests"][0].get("annotations", {}).get("org.opencontainers.image.ref.name")
        where = "nb=oci-layout://%s/layout%s" % (sk.dir, ":" + tag if tag else "")
        check(sk, "FROM nb\nRUN cp /f /g\n", {"f": "644 0:0 of the layout", "g": "644 0:0 of the layout"}, "--build-context", where)
        check(sk, "FROM scratch\nCOPY --from=nb /f /h\n", {"h": "644 0:0 of the layout"}, "--build-context", where)
    with sk.case("a build context of Git and of an archive"):
        git = lambda *argv: tool("git", "-C", sk.folder("grepo"), "-c", "user.name=t", "-c", "user.email=t@example.org", *argv)
        git("init", "-q")
        sk.file("grepo/sub/f", "of git")
        git("add", ".")
        git("commit", "-qm", "first")
        web = Web({"/c.tar.xz": lzma.compress(packed("", [entry("a/"), entry("a/f", "of the web")]))})
        check(sk, "FROM scratch\nCOPY --from=g /f /g\nCOPY --from=w /a/f /w\n", {"g": "644 0:0 of git", "w": "644 0:0 of the web"},
              "--build-context", "g=file://%s/grepo/.git#:sub" % sk.dir, "--build-context", "w=%s/c.tar.xz" % web.url)
        eq(os.listdir(sk.root + "/tmp"), [])
    with sk.case("escaped blanks in the names of ENV"):
        check(sk, "FROM busybox\nENV a\\ b=c d=e\nRUN echo $d > /o\n", {"o": "644 0:0 e\n"})
        true("a b=c" in config(sk)["Env"], config(sk)["Env"])
    with sk.case("what is not understood is said"):
        build(sk, "FROM busybox\nRUN --mount=type=tmpfs,target=/t,size=10x true\n").exits(1, "size")
        build(sk, "FROM busybox\nRUN --mount=type=cache,target=/t,source=sel true\n").exits(1, "source")
        build(sk, "FROM busybox\n", "--secret", "type=nosuch,id=HOME").exits(1, "secret type")


@image("debian")
def test_ssh_keys(sk):
    """--ssh ID=KEY: an agent that has the key and lives as long as the build."""
    ask = ("FROM debian\nRUN --mount=type=ssh%s perl -MIO::Socket::UNIX -e 'my $s = IO::Socket::UNIX->new($ENV{SSH_AUTH_SOCK}) or die; syswrite $s, pack q(NC), 1, 11; sysread $s, my $n, 4; my $r = q(); "
           "while (length $r < unpack q(N), $n) { sysread $s, $r, 4096, length $r or die } print unpack(q(N), substr $r, 1), qq( $_\\n) for sort $r =~ /key-\\w+/g' > /o\n")
    for name in "one", "two", "locked":
        tool("ssh-keygen", "-q", "-t", "ed25519", "-C", "key-" + name, "-N", "secret" if name == "locked" else "", "-f", sk.dir + "/" + name)
        os.chown(sk.dir + "/" + name, os.stat(sk.dir).st_uid, -1)
    key = lambda name: sk.dir + "/" + name
    for name, flags, options, want in [("one", "", ["--ssh", "default=" + key("one")], "1 key-one\n"), ("two", "", ["--ssh", "default=%s,%s" % (key("one"), key("two"))], "2 key-one\n2 key-two\n"),
                                       ("an id each", ",id=b", ["--ssh", "a=" + key("one"), "--ssh", "b=" + key("two")], "1 key-two\n")]:
        with sk.case(name):
            eq(out(sk, ask % flags, "--no-cache", *options, env={"SSH_AUTH_SOCK": None}), want)
            eq([n for _, n in sk.processes() if n == "ssh-agent"], [], "agents that are left")
    for name, bad in ("locked", key("locked")), ("no key", sk.file("bad", "no key")), ("a directory", sk.folder("dir")), ("two, one is missing", key("one") + "," + sk.dir + "/missing"):
        with sk.case("refused: " + name):
            build(sk, ask % "", "--ssh", "default=" + bad).exits(1, os.path.basename(bad))
            lib.until(lambda: not [n for _, n in sk.processes() if n == "ssh-agent"], "no agent is left")
    with sk.case("killed"):
        p = sk.popen(["build", "--ssh", "default=" + key("one"), context(sk, {}, "FROM debian\nRUN --mount=type=ssh echo rea''dy; sleep 1000\n")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        ready(p, b"ready")
        p.kill()
        p.communicate(timeout=20)
        lib.until(lambda: not sk.processes(), "all of a killed build ends, its agent too")


def grep_store(sk, text, packed=True):
    """Files below the store, and where the engine may put others, that hold the text, plain or in a layer."""
    found = []
    for d, f in [(d, f) for top in (sk.root, sk.dir + "/tmp", sk.dir + "/xdg", sk.home) for d, _, fs in os.walk(top) for f in fs]:
        if os.path.isfile(os.path.join(d, f)):
            with open(os.path.join(d, f), "rb") as h:
                data = h.read()
            for unpack in (bytes,) if not packed else (bytes, gzip.decompress, lambda x: subprocess.run(["zstd", "-dqc"], input=x, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout):
                try:
                    if text in unpack(data):
                        found.append(os.path.join(d, f)[len(sk.dir):])
                except (OSError, EOFError, ValueError):
                    pass
    return sorted(set(found))


def test_secret(sk):
    value = "s3cr3t-%d-value" % os.getpid()
    f = sk.file("sec", value)

    def got(text, *options, **kw):
        return out(sk, "FROM busybox\n" + text, *options, **kw)
    mine = "wc -c < %s > /o && stat -c %%a %s >> /o"
    n = len(value)
    for name, text, options, want in [
            ("by id", "RUN --mount=type=secret,id=k " + mine % (("/run/secrets/k",) * 2), ["--secret", "id=k,src=" + f], "%d\n400\n" % n),
            ("source=", "RUN --mount=type=secret,id=k wc -c < /run/secrets/k > /o", ["--secret", "id=k,source=" + f], "%d\n" % n),
            ("type=file", "RUN --mount=type=secret,id=k wc -c < /run/secrets/k > /o", ["--secret", "type=file,id=k,src=" + f], "%d\n" % n),
            ("target and mode", "RUN --mount=type=secret,id=k,target=/x/y,mode=0444 " + mine % (("/x/y",) * 2), ["--secret", "id=k,src=" + f], "%d\n444\n" % n),
            ("the id from the target", "RUN --mount=type=secret,target=/x/k wc -c < /x/k > /o", ["--secret", "id=k,src=" + f], "%d\n" % n),
            ("of the environment", "RUN --mount=type=secret,id=k wc -c < /run/secrets/k > /o", ["--secret", "id=k,env=SECRET_K"], "%d\n" % n),
            ("of the environment, by the id", "RUN --mount=type=secret,id=SECRET_K wc -c < /run/secrets/SECRET_K > /o", ["--secret", "id=SECRET_K"], "%d\n" % n),
            ("into the environment", "RUN --mount=type=secret,id=k,env=V printf %s \"$V\" | wc -c > /o; ls /run/secrets/k 2>/dev/null >> /o || true", ["--secret", "id=k,src=" + f], "%d\n" % n),
            ("for a user", "RUN chmod 1777 /tmp\nUSER app\nRUN --mount=type=secret,id=k,uid=1000 wc -c < /run/secrets/k > /tmp/o\nUSER root\nRUN cat /tmp/o > /o", ["--secret", "id=k,src=" + f], "%d\n" % n),
            ("one that is not given is not there", "RUN --mount=type=secret,id=none ls /run/secrets/none 2>/dev/null > /o || echo no > /o", [], "no\n"),
            ("only in its step", "RUN --mount=type=secret,id=k cat /run/secrets/k >/dev/null\nRUN ls /run/secrets/k 2>/dev/null > /o || echo no > /o", ["--secret", "id=k,src=" + f], "no\n")]:
        with sk.case(name):
            eq(got(text, *options, env={"SECRET_K": value}), want)
    with sk.case("required"):
        build(sk, "FROM busybox\nRUN --mount=type=secret,id=none,required=true true").exits(1, "none")
        build(sk, "FROM busybox\nRUN --mount=type=secret,id=none,required true").exits(1, "none")
    with sk.case("a missing file"):
        build(sk, "FROM busybox\nRUN --mount=type=secret,id=k true", "--secret", "id=k,src=/no/such").exits(1, "/no/such|k")
    with sk.case("a failing step leaves none either"):
        build(sk, "FROM busybox\nRUN --mount=type=secret,id=k cat /run/secrets/k >/dev/null; exit 3", "--secret", "id=k,src=" + f).exits(1, "3")
    with sk.case("on no disk while its step runs"):
        c = context(sk, {}, "FROM busybox\nRUN --mount=type=secret,id=k --mount=type=secret,id=k,env=K --mount=type=cache,id=go,target=/go "
                    "echo rea; printf dy; wc -c < /run/secrets/k; " + WAIT % "[ -e /go/on ]" + "\n")
        p = sk.popen(["build", "--secret", "id=k,src=" + f, c], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        ready(p, b"dy%d" % n)
        eq(grep_store(sk, value.encode(), packed=False), [])
        build(sk, "FROM busybox\nRUN --mount=type=cache,id=go,target=/go touch /go/on").ok
        ended(p)
    with sk.case("nowhere in the store: layers, history, cache, configuration"):
        eq(grep_store(sk, value.encode()), [])
        no_match(sk("history --no-trunc t").ok.out, value)
    with sk.case("another value is no reason to run again"):
        d = "FROM busybox\nRUN --mount=type=secret,id=k wc -c < /run/secrets/k > /o"
        got(d[13:], "--secret", "id=k,src=" + f)
        eq(steps(build(sk, d, "--secret", "id=k,src=" + sk.file("sec2", "other")).ok), (1, 0))


def test_run_network(sk):
    with sk.case("--network=none"):
        eq(out(sk, "FROM busybox\nRUN --network=none ls /sys/class/net | grep -v lo > /o; ip -4 addr | grep -c 'inet ' >> /o; true").split()[-1] in ("0", "1"), True)
    with sk.case("RUN --network=none: /sys shows no other network"):
        eq(out(sk, "FROM busybox\nRUN --network=none ls /sys/class/net > /o; grep -c ' /sys sysfs ' /proc/mounts >> /o"), "lo\n1\n")
    with sk.case("the host's network can be reached unless it is none"):
        web = Web({"/f": b"data"})
        fetch = "printf 'GET /f HTTP/1.0\\r\\n\\r\\n' | nc -w 5 %s %s | tail -n 1 > /x" % tuple(web.url[7:].split(":"))
        eq(out(sk, "FROM busybox\nRUN --network=none %s; test -s /x || echo no > /o" % fetch), "no\n")
        eq(len(web.hits), 0, "requests from a step with --network=none")
        check(sk, "FROM busybox\nRUN " + fetch, {"x": "644 0:0 "}, "--network", "none")
        check(sk, "FROM busybox\nRUN --network=host " + fetch, {"x": "644 0:0 data"})
    with sk.case("proxies that are predefined: in the step, not in the image"):
        eq(out(sk, "FROM busybox\nRUN echo $http_proxy $NO_PROXY > /o", "--build-arg", "http_proxy=http://u:pw@p", "--build-arg", "NO_PROXY=x"), "http://u:pw@p x\n")
        no_match(json.dumps(result(sk).config), "u:pw@p")
    with sk.case("a proxy from the environment"):
        eq(out(sk, "FROM busybox\nRUN echo $NO_PROXY > /o", "--build-arg", "NO_PROXY", env={"NO_PROXY": "from-env"}), "from-env\n")
    with sk.case("another proxy is no reason to run again, unless it is an ARG"):
        for arg, want in ("", (1, 0)), ("ARG HTTP_PROXY\n", (0, 1)):
            d = "FROM busybox\n%sRUN echo \"[$HTTP_PROXY]\"\n" % arg
            match(build(sk, d, "--build-arg", "HTTP_PROXY=one").ok.err, r"\[one\]$")
            eq(steps(build(sk, d, "--build-arg", "HTTP_PROXY=two").ok), want)
    with sk.case("--add-host: IPv6, in brackets, and the gateway"):
        eq(out(sk, "FROM busybox\nRUN grep -e six -e gw /etc/hosts | tr -s '\\t ' ' ' > /o", "--add-host", "six:[::2]", "--add-host", "gw:host-gateway").split("\n")[0], "::2 six")
    with sk.case("--add-host, --shm-size, --ulimit"):
        eq(out(sk, "FROM busybox\nRUN grep -c 1.2.3.4.*hosty /etc/hosts > /o; df -k /dev/shm | tail -1 | awk '{print $2}' >> /o; ulimit -n >> /o",
               "--add-host", "hosty:1.2.3.4", "--shm-size", "1m", "--ulimit", "nofile=123:456"), "1\n1024\n123\n")
        true("hosty" not in json.dumps(result(sk).tree), "no host entry in the image")


LOOK = ("grep -E '^(Cap|Seccomp|NoNew|Groups)' /proc/self/status; cat /proc/self/uid_map /proc/self/gid_map /proc/1/comm; ls /dev /proc/acpi /sys/firmware; ls /proc/kcore; cat /proc/timer_list | wc -c; "
        "for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /sys/x; do echo x > $f; done; mount -t tmpfs t /mnt; unshare -U true; unshare -n true; mknod /n c 1 3; chroot / true && echo chroot; hostname x; umask; cat /proc/self/oom_score_adj; "
        "ls -l /proc/self/ns | grep -c net:; grep -c . /proc/net/dev")


def test_isolation(sk):
    """A step is as confined as a container of `run`."""
    for network in "host", "none":
        with sk.case("--network " + network):
            r = build(sk, "FROM busybox\nRUN <<'E'\n%s\nE\n" % LOOK.replace("; ", "\n"), "--no-cache", "--network", network).ok
            seen = [re.sub("^/bin/sh", "sh", x) for x in re.findall(r"^#2 [\d.]+ (.*)$", r.err, re.M)]
            p = sk("run --rm --network", network, "busybox", "sh", "-c", "exec 2>&1; " + LOOK).ok
            eq(seen, p.lines)
            match(p.out, r"^Seccomp:\s+2$")
    with sk.case("CVE-2021-3602: the environment is its own"):
        seen = out(sk, "FROM busybox AS s\nENV FIRST=1\nRUN echo > /o\nFROM busybox\nCOPY --from=s /o /\nRUN cat /proc/1/environ /proc/self/environ | tr '\\0' '\\n' > /o",
                   env={"HOST_SECRET": "1"})
        match(seen, "^PATH=")
        no_match(seen, "HOST_SECRET|SKIFF|XDG|FIRST")


def test_failing_run(sk):
    for name, text, line, code in [("exit", "FROM busybox\n\nRUN exit 7\nRUN true\n", 3, 7), ("heredoc", "FROM busybox\nRUN <<E\nexit 8\nE\n", 2, 8), ("exec form", "FROM busybox\nRUN [\"false\"]\n", 2, 1),
                                   ("killed", "FROM busybox\nRUN sh -c 'kill -9 $$'; exit $?\n", 2, 137), ("not found", "FROM busybox\nRUN nosuch\n", 2, 127),
                                   ("not found, exec form", "FROM busybox\nRUN [\"/nosuch\"]\n", 2, None), ("second stage", "FROM busybox AS a\nRUN true\nFROM a\nLABEL a=b\nRUN exit 9\n", 5, 9)]:
        with sk.case(name):
            r = build(sk, text).exits(1, r"Dockerfile(:| line )%d\b" % line)
            if code is not None:
                match(r.err, r"exit code: %d\b" % code)
    with sk.case("its output, the steps before are cached, nothing is tagged or left"):
        d = "FROM busybox\nRUN echo first\nRUN echo before; echo why >&2; exit 5\n"
        for cached in 0, 1:
            r = build(sk, d).exits(1, "exit code: 5")
            match(r.err, r"^#3 [\d.]+ before$")
            match(r.err, r"^#3 [\d.]+ why$")
            eq(steps(r)[0], cached)
        sk("images -q t").says("")
        eq(os.listdir(sk.root + "/containers"), [])
        r = build(sk, d, "-q").exits(1, "exit code: 5")
        match(r.err, "why", "the step's output with -q")
    with sk.case("no exit code 0 without an image"):
        eq(build(sk, d, "--iidfile", sk.dir + "/iid").code, 1)
        true(not os.path.exists(sk.dir + "/iid"), "no --iidfile after a failure")
    sk.check_store()


# ---- stages, triggers, flags ----

def test_stages(sk):
    d = ("FROM busybox AS base\nRUN echo base > /base\nFROM base AS a\nRUN echo a > /a\nFROM base AS unused\nRUN exit 1\nFROM scratch AS Last\nCOPY --from=a /a /base /\n")
    with sk.case("only what the last stage needs"):
        r = build(sk, d).ok
        eq(sorted(result(sk).tree), ["a", "base"])
        no_match(r.err, "exit 1|unused")
    for target, want in [("a", True), ("A", True), ("1", True), ("base", False), ("0", False)]:
        with sk.case("--target " + target):
            build(sk, d, "--target", target).ok
            t = result(sk).tree
            eq(("a" in t, "base" in t, "bin/busybox" in t), (want, True, True))
    with sk.case("--target that fails"):
        build(sk, d, "--target", "unused").exits(1, "exit code: 1")
    with sk.case("a stage of the same name as an image, and an image of a later stage's name"):
        check(sk, "FROM scratch AS busybox\nLABEL a=1\nCOPY <<E /mark\nx\nE\nFROM busybox\nLABEL b=2", {"mark": "644 0:0 x\n", "bin/busybox": None})
    with sk.case("case of stage names"):
        check(sk, "FROM busybox AS One\nRUN echo 1 > /o\nFROM ONE\nCOPY --from=oNe /o /p", {"o": "644 0:0 1\n", "p": "644 0:0 1\n"})
    with sk.case("ENV, ARG and WORKDIR of a stage go on"):
        eq(out(sk, "FROM busybox AS a\nARG x=1\nENV y=2\nWORKDIR /w\nFROM a\nRUN echo \"$x-$y-$PWD\" > /o"), "1-2-/w\n")
    with sk.case("scratch has nothing"):
        build(sk, "FROM scratch\nLABEL a=b").ok
        i = result(sk)
        eq((i.tree, i.config["rootfs"]["diff_ids"], i.config["architecture"], i.config["os"]), ({}, [], lib.ARCH, "linux"))
    with sk.case("an image that is not there"):
        build(sk, "FROM 127.0.0.1:1/nosuch:1\nLABEL a=b").exits(1, "127.0.0.1:1/nosuch:1")
    with sk.case("--from of an unneeded missing image is no matter"):
        build(sk, "FROM 127.0.0.1:1/nosuch:1 AS x\nFROM scratch\nLABEL a=b").ok
    with sk.case("two images of one Dockerfile share the stage"):
        build(sk, d, "--target", "a").ok
        r = build(sk, d).ok
        eq(steps(r)[1], 0)
    with sk.case("twenty stages in a chain"):
        eq(out(sk, "FROM busybox AS s0\nRUN echo 0 > /o\n" + "".join("FROM s%d AS s%d\nRUN echo %d >> /o\n" % (i, i + 1, i + 1) for i in range(20))), "".join("%d\n" % i for i in range(21)))


def test_onbuild(sk):
    build(sk, "FROM busybox\nARG v=1\nONBUILD ARG a=arg\nONBUILD ENV e=$a\nONBUILD COPY a.txt /t/\nONBUILD RUN cat /t/a.txt > /o; echo $e >> /o\nONBUILD LABEL l=\"$e\"\nRUN test ! -e /t", name="trig").ok
    eq(len(config(sk, "trig")["OnBuild"]), 5)
    with sk.case("triggers run in the next build, once"):
        eq(out(sk, "FROM trig\nRUN echo own >> /o", files=F), "Aarg\nown\n")
        c = config(sk)
        eq((c["OnBuild"] or [], c["Labels"], "e=arg" in c["Env"]), ([], {"l": "arg"}, True))
        build(sk, "FROM t\nRUN ! grep -q twice /o", name="t2").ok
    with sk.case("--build-arg reaches them"):
        eq(out(sk, "FROM trig\n", "--build-arg", "a=given", files=F), "Agiven\n")
    with sk.case("a trigger that fails names itself"):
        build(sk, "FROM trig\n").exits(1, "a.txt.*not found")
    with sk.case("in a middle stage"):
        eq(out(sk, "FROM trig AS x\nFROM scratch\nCOPY --from=x /o /o", files=F), "Aarg\n")
    with sk.case("heredocs in triggers"):
        build(sk, "FROM busybox\nARG v=base\nONBUILD COPY <<A <<'B' /h/\n$v ${v:+x}\nA\n$v\nB\nONBUILD RUN <<E cat > /o\nline 1\n  line $v\nE\nONBUILD RUN <<E\necho script >> /o\nE\nLABEL after=1\n", name="trig2").ok
        eq(len(config(sk, "trig2")["OnBuild"]), 3)
        t = check(sk, "FROM trig2\nRUN cat /h/* >> /o\n", {"h/B": "644 0:0 $v\n"})
        match(t.tree["o"], "^644 0:0 line 1\\n  line .*\\nscript\\n.*\\n\\$v\\n$")
    with sk.case("triggers that need a stage"):
        check(sk, "FROM busybox AS src\nRUN echo 12 > /in\nFROM busybox AS base\nONBUILD COPY --from=src /in /out/foo\nONBUILD RUN --mount=from=src,target=/m cp /m/in /bar\nFROM base AS mid\nRUN cat /out/foo /bar > /o\n"
              "FROM scratch\nCOPY --from=mid /o /o\n", {"o": "644 0:0 12\n12\n"})
    with sk.case("inside one Dockerfile"):
        check(sk, "FROM scratch AS x\nONBUILD COPY a.txt /o\nFROM x\nLABEL a=1", {"o": "644 0:0 A"}, files=F)


def test_flags(sk):
    d = "FROM busybox\nARG a=1\nRUN echo $a > /o\nLABEL l=1 m=2\n"
    c = context(sk, F, d)
    with sk.case("-q prints the id and nothing else"):
        r = sk("build -q -t t", c).ok
        match(r.out, "^sha256:[0-9a-f]{64}$")
        eq((r.err, r.out), ("", sk.get("t", "{{.Id}}")))
        r = sk("build --progress quiet", c).ok
        match(r.out, "^sha256:[0-9a-f]{64}$")
    with sk.case("--progress"):
        for words in "", "--progress auto", "--progress plain":
            r = sk("build --no-cache", *words.split(), c).ok
            match(r.err, r"^#3 \[.*\] RUN echo \$a > /o$")
            match(r.err, r"^#3 DONE [\d.]+s$")
            eq(r.out, "")
        t = lib.Terminal(sk, "build --no-cache", c)
        t.expect("DONE")
        t.expect("writing image sha256:")
        t.exits(0)
        sk("build -t t --iidfile", sk.dir + "/iid", c).ok
        eq(open(sk.dir + "/iid").read(), sk.get("t", "{{.Id}}"))
    with sk.case("a fully cached build makes the same image"):
        a = sk("build -q -t t", c).ok.out
        time.sleep(0.01)
        eq(sk("build -q -t t", c).ok.out, a)
    with sk.case("several tags"):
        sk("build -q -t x:1 --tag example.com:5000/y/z -t x:2", c).ok
        ids = {sk.get(n, "{{.Id}}") for n in ("x:1", "x:2", "example.com:5000/y/z:latest")}
        eq(len(ids), 1, "images under three names")
    with sk.case("no tag"):
        i = sk("build -q", c).ok.out
        sk("run --rm", i, "cat", "/o").says("1")
    with sk.case("a tag moves"):
        old = sk.get("t", "{{.Id}}")
        sk("build -q -t t --label n=3", c).ok
        true(sk.get("t", "{{.Id}}") != old, "another image")
        eq(config(sk)["Labels"], {"l": "1", "m": "2", "n": "3"})
    with sk.case("--label wins, and may be empty"):
        sk("build -q -t t --label l=9 --label k", c).ok
        eq(config(sk)["Labels"], {"l": "9", "m": "2", "k": ""})
    with sk.case("--build-arg"):
        sk("build -q -t t --build-arg a=5", c).ok
        sk("run --rm t cat /o").says("5")
    with sk.case("-f"):
        sk.file(c + "/other", "FROM scratch\nLABEL f=other\nCOPY a.txt /\n")
        sk("build -q -t t -f", c + "/other", c).ok
        eq(config(sk)["Labels"], {"f": "other"})
        sk.file("outside", "FROM scratch\nLABEL f=outside\nCOPY a.txt /\n")
        sk("build -q -t t --file", sk.dir + "/outside", c).ok
        eq(config(sk)["Labels"], {"f": "outside"})
    with sk.case("-f - takes the Dockerfile from standard input"):
        sk("build -q -t t -f -", c, input="FROM scratch\nCOPY a.txt /o\nLABEL f=stdin\n").ok
        eq(result(sk).tree["o"], "644 0:0 A")
        sk("build -q -f -", c, input="").exits(1, "empty|no instructions")
    with sk.case("- as a Dockerfile"):
        sk("build -q -t t -", input="FROM busybox\nRUN echo x > /o\n").ok
        eq(result(sk).tree["o"], "644 0:0 x\n")
        sk("build -", input="FROM scratch\nCOPY a.txt /\n").exits(1, "a.txt|context")
        sk("build -", input="").exits(1, "empty|no instructions")
    plain = tar(entry("Dockerfile", "FROM scratch\nCOPY d /d\nCOPY s /s\n"), entry("alt/D", "FROM scratch\nLABEL f=alt\n"), entry("d/"), entry("d/x", "X", mode=0o755, uid=77), entry("d/l", link="x"),
                entry("s", "S"), entry(".dockerignore", "d/no\n"), entry("d/no", "no"))
    zst = tool("zstd", "-qc", "-", input=plain, stdin=None)
    for name, data in [("tar", plain), ("gzip", gzip.compress(plain)), ("zstd", zst), ("xz", lzma.compress(plain)), ("bzip2", bz2.compress(plain))]:
        with sk.case("- as a context: " + name):
            sk("build -q -t t -", input=data).ok
            eq(result(sk).tree, {"d": "d755 0:0", "d/x": "755 0:0 X", "d/l": "-> x 0:0", "s": "644 0:0 S"})
        with sk.case("a file as a context: " + name):
            sk("build -q -t t", sk.file("c." + name, data)).ok
            true("s" in result(sk).tree, "the file s")
    with sk.case("-f inside a tar context"):
        sk("build -q -t t -f alt/D -", input=plain).ok
        eq(config(sk)["Labels"], {"f": "alt"})
    with sk.case("damaged tar contexts"):
        for data in gzip.compress(plain)[:-60], plain[:700], b"\x1f\x8b\x08" + b"x" * 600:
            sk("build -q -", input=data).exits(1, ".")
        eq(os.listdir(sk.root + "/tmp"), [])
    with sk.case("a tar context that would write outside"):
        evil = tar(entry("Dockerfile", "FROM scratch\nCOPY . /\n"), entry("up", link=sk.dir), entry("up/escaped", "x"), entry("../escaped2", "x"))
        sk("build -q -t t -", input=evil)
        for evil in [("Dockerfile", entry("Dockerfile", link="/etc/passwd")), ("Dockerfile", entry("Dockerfile", link="../" * 20 + sk.file("hostfile", "FROM scratch\nLABEL host=1\n").lstrip("/"))),
                     ("x", entry("x", link=sk.dir + "/hostfile"))]:
            r = sk("build -q -t t -f", evil[0], "-", input=tar(evil[1])).exits(1, ".")
            no_match(r.err, "root:")
        for link in sk.dir, "../" * 20 + sk.dir.lstrip("/"):
            r = sk("build -q -t t -f d/hostfile -", input=tar(entry("d", link=link))).exits(1, ".")
            sk.file("hostignore", "s\n")
            sk("build -q -t t -", input=tar(entry("Dockerfile", "FROM scratch\nCOPY . /\n"), entry("s", "S"), entry(".dockerignore", link=link + "/hostignore"))).ok
            true("s" in result(sk).tree, "the host's .dockerignore not to be read")
            for text in "COPY d/hostfile /", "COPY d /o/", "ADD d/host* /o/", "COPY --parents d/hostfile /":
                r = sk("build -q -t t -", input=tar(entry("Dockerfile", "FROM scratch\n%s\n" % text), entry("d", link=link)))
                true(r.code == 1 or "LABEL host" not in json.dumps(result(sk).tree), "no file of the host by " + text)
        true(not os.path.exists(sk.dir + "/escaped") and not os.path.exists(sk.root + "/escaped2") and not os.path.exists(sk.root + "/tmp/escaped2"), "nothing outside")
    with sk.case("--output type=local and type=tar"):
        sk("build -o", "type=local,dest=" + sk.dir + "/out", c, "-f", c + "/other").ok
        eq(open(sk.dir + "/out/a.txt").read(), "A")
        sk("build -o", sk.dir + "/out2", c, "-f", c + "/other").ok
        eq(open(sk.dir + "/out2/a.txt").read(), "A")
        for dest in sk.dir + "/o.tar", "-":
            r = sk("build -o", "type=tar,dest=" + dest, c, "-f", c + "/other").ok
            with tarfile.open(fileobj=io.BytesIO(r.raw if dest == "-" else open(dest, "rb").read())) as t:
                eq([n.lstrip("./") for n in t.getnames() if n.strip("./")], ["a.txt"])
    with sk.case("--pull with a registry, --platform"):
        ref = lib.ENV["REGISTRY_HTTP"] + "/busybox"
        sk("build -q -t t --pull -", input="FROM %s\nRUN echo x > /o\n" % ref).ok
        sk("build -q -t t -", input="FROM scratch\nCOPY --from=%s /etc/passwd /pw\n" % ref).ok
        eq(list(result(sk).tree), ["pw"])
        sk("build -q -t t --platform linux/arm64 -", input="FROM %s\nLABEL a=b\n" % ref).ok
        eq(sk.get("t", "{{.Architecture}}"), "arm64")
        sk("build -q -t t -", input="FROM --platform=linux/%s %s\nLABEL a=b\n" % (lib.ARCH, ref)).ok
        eq(sk.get("t", "{{.Architecture}}"), lib.ARCH)
    with sk.case("--pull takes what the registry has now"):
        moving = "%s/moving-%s:%d" % (lib.ENV["REGISTRY_HTTP"], sk.who, os.getpid())
        other = {"SKIFF_ROOT": sk.folder("pusher")}
        sk("load -q -i", lib.ENV["FIXTURE_busybox"], env=other).ok
        for n in "12":
            sk("build -q --push -t", moving, "-", input="FROM busybox\nRUN echo %s > /v\n" % n, env=other).ok
            want = "1" if n == "1" else "12"
            got = [out(sk, "FROM %s\nRUN cp /v /o\n" % moving, *options).strip() for options in ([], ["--pull"])]
            eq("".join(sorted(set(got))), want)
    with sk.case("FROM and --from by digest"):
        ref, _, digest = sk("image inspect -f", "{{index .RepoDigests 0}}", moving).ok.out.partition("@")
        check(sk, "FROM %s@%s AS a\nFROM scratch\nCOPY --from=a /v /a\nCOPY --from=%s@%s /v /b\n" % (ref, digest, moving, digest), {"a": "644 0:0 2\n", "b": "644 0:0 2\n"})
    with sk.case("--platform: what a stage of the build's own platform knows"):
        d = "FROM --platform=$BUILDPLATFORM busybox AS a\nARG TARGETPLATFORM TARGETARCH TARGETVARIANT BUILDPLATFORM\nRUN echo $TARGETPLATFORM $TARGETARCH [$TARGETVARIANT] $BUILDPLATFORM > /o\nFROM scratch\nCOPY --from=a /o /o\n"
        for platform, want in ("linux/arm64", "linux/arm64 arm64 []"), ("linux/arm/v7", "linux/arm/v7 arm [v7]"):
            eq(out(sk, d, "--platform", platform), "%s linux/%s\n" % (want, lib.ARCH))
            eq(result(sk).config["architecture"], platform.split("/")[1])
    with sk.case("--build-context: an image, also instead of the Dockerfile's"):
        ref = lib.ENV["REGISTRY_HTTP"] + "/busybox"
        check(sk, "FROM n\nCOPY --from=n /etc/passwd /pw\n", {"bin/busybox": result(sk, "busybox").tree["bin/busybox"]}, "--build-context", "n=docker-image://busybox")
        check(sk, "FROM busybox\nRUN cp /v /o\n", {"o": "644 0:0 2\n"}, "--build-context", "busybox=docker-image://" + moving)
        build(sk, "FROM busybox\nCOPY --from=n x /\n", "--build-context", "n=/no/such").exits(1, "/no/such")
    with sk.case("push, and what others say of it"):
        name = "%s/built-%s:%d" % (lib.ENV["REGISTRY_HTTP"], sk.who, os.getpid())
        sk("build -q -t", name, c).ok
        sk("push -q", name).ok
        j = json.loads(tool("skopeo", "inspect", "--tls-verify=false", "docker://" + name, env=sk.env))
        eq((j["Labels"], j["Architecture"], len(j["Layers"])), ({"l": "1", "m": "2"}, lib.ARCH, 2))
    with sk.case("runs as it says"):
        sk("build -q -t t -", input="FROM busybox\nENV a=1\nWORKDIR /w\nENTRYPOINT [\"sh\", \"-c\", \"echo $a $PWD $0\"]\nCMD [\"dflt\"]\n").ok
        sk("run --rm t").says("1 /w dflt")
        sk("run --rm t other").says("1 /w other")
    with sk.case("builder build, image build"):
        for words in "builder build -q", "image build -q":
            match(sk(words, c).ok.out, "^sha256:")
    sk.check_store()


@image(None)
def test_http_context(sk):
    """A context by HTTP: an archive, or a Dockerfile alone."""
    plain = tar(entry("Dockerfile", "FROM scratch\nCOPY . /o\n"), entry("alt/D", "FROM scratch\nLABEL f=alt\nCOPY alt /o\n"), entry("a", "A"), entry(".dockerignore", "no\nDockerfile\n.dockerignore\n"), entry("no", "x"))
    web = Web({"/c.tar": plain, "/c.tar.gz": gzip.compress(plain), "/c.tar.zst": tool("zstd", "-qc", "-", input=plain, stdin=None), "/noname": gzip.compress(plain), "/moved": "/c.tar",
               "/Dockerfile": b"FROM scratch\nLABEL f=alone\n", "/needs": b"FROM scratch\nCOPY a /\n", "/bad.tar.gz": gzip.compress(plain)[:-80], "/empty": b""})
    for path in "/c.tar", "/c.tar.gz", "/c.tar.zst", "/noname", "/moved":
        with sk.case(path):
            sk("build -q -t t", web.url + path).ok
            eq(sorted(result(sk).tree), ["o", "o/a", "o/alt", "o/alt/D"])
    with sk.case("-f inside it"):
        sk("build -q -t t -f alt/D", web.url + "/c.tar").ok
        eq((config(sk)["Labels"], sorted(result(sk).tree)), ({"f": "alt"}, ["o", "o/D"]))
    with sk.case("a Dockerfile alone"):
        sk("build -q -t t", web.url + "/Dockerfile").ok
        eq(config(sk)["Labels"], {"f": "alone"})
        sk("build -q", web.url + "/needs").exits(1, "context|not found")
    for path, pattern in ("/nosuch", "404"), ("/bad.tar.gz", "."), ("/empty", "empty|no instructions|Dockerfile"):
        with sk.case("refused: " + path):
            sk("build -q", web.url + path).exits(1, pattern)
    with sk.case("nothing of it stays"):
        eq(os.listdir(sk.root + "/tmp"), [])


@image(None)
def test_git_context(sk):
    """A context, or what ADD copies, from a Git repository."""
    git = lambda *argv: tool("git", "-C", sk.folder("repo"), "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main", *argv)
    git("init", "-q")
    outside = sk.file("outside/secret", "host's own")
    for name, data in ("Dockerfile", "FROM scratch\nLABEL d=top\nCOPY . /o\n"), ("sub/Dockerfile", "FROM scratch\nLABEL d=sub\nCOPY . /o\n"), ("sub/f", "one"), ("a", "A"):
        sk.file("repo/" + name, data)
    os.chmod(sk.file("repo/x.sh", "X"), 0o755)
    for name, target in ("link", "sub"), ("up", ".."), ("abs", os.path.dirname(outside)), ("sub/l", "f"), ("sub/out", outside):
        os.symlink(target, sk.dir + "/repo/" + name)
    git("add", ".")
    git("commit", "-qm", "first")
    git("tag", "v1")
    first = git("rev-parse", "HEAD").decode().strip()
    git("checkout", "-qb", "topic/x")
    sk.file("repo/sub/f", "two")
    git("commit", "-qam", "second")
    tool("git", "clone", "-q", "--bare", sk.dir + "/repo", sk.dir + "/r.git")
    tool("git", "-C", sk.dir + "/r.git", "symbolic-ref", "HEAD", "refs/heads/main" if b"main" in git("branch") else "refs/heads/master")
    url = "file://%s/r.git" % sk.dir
    for frag, label, path, want in [
            ("", "top", "o/sub/f", "644 0:0 one"), ("#v1", "top", "o/sub/f", "644 0:0 one"), ("#topic/x", "top", "o/sub/f", "644 0:0 two"), ("#" + first, "top", "o/x.sh", "755 0:0 X"),
            ("#topic/x:sub", "sub", "o/f", "644 0:0 two"), ("#:sub", "sub", "o/f", "644 0:0 one"), ("#v1:/sub/", "sub", "o/l", "-> f 0:0"), ("#v1:sub/../sub", "sub", "o/f", "644 0:0 one")]:
        with sk.case("#REF:DIR as " + repr(frag)):
            sk("build -q -t t", url + frag).ok
            i = result(sk)
            eq((config(sk)["Labels"], i.tree.get(path), [n for n in i.tree if ".git" in n]), ({"d": label}, want, []))
    for frag, pattern in ("#v1:link", "link"), ("#v1:up", "up"), ("#v1:abs", "abs"), ("#v1:../..", r"\.\."), ("#v1:nosuch", "nosuch"), ("#v1:a", "a"), ("#nosuch", "nosuch"), ("#--upload-pack=touch x", "upload-pack"), ("#-x", "-x"):
        with sk.case("refused: " + frag):
            sk("build -q", url + frag).exits(1, pattern)
    with sk.case("a branch that is an option of git's"):
        program = sk.file("program", "#!/bin/sh\ntouch %s/pwned\n" % sk.dir, 0o755)
        for option in "--upload-pack=", "--exec=", "-u":
            sk("build -q", "%s#%s%s" % (url, option, program)).exits(1, ".")
        build(sk, "FROM scratch\nADD %s#--upload-pack=%s /o\n" % (url, program)).exits(1, ".")
        for address in "git://--upload-pack=%s/r.git", "ssh://-oProxyCommand=%s/r.git", "git@-oProxyCommand=%s:r.git", "file://--upload-pack=%s/r.git":
            sk("build -q", address % program).exits(1, ".")
        true(not os.path.exists(sk.dir + "/pwned"), "nothing that is run")
    with sk.case("no links out of it"):
        sk("build -q -t t -f -", url + "#v1", input="FROM scratch\nCOPY sub/out /o\n").exits(1, ".")
        sk("build -q -t t -f -", url + "#v1", input="FROM scratch\nCOPY abs/ /o/\n").exits(1, ".")
        sk("build -q -t t -f abs/secret", url + "#v1").exits(1, ".")
    with sk.case("-f of the repository"):
        sk("build -q -t t -f sub/Dockerfile", url).ok
        eq((config(sk)["Labels"], "o/a" in result(sk).tree), ({"d": "sub"}, True))
    with sk.case("ADD"):
        check(sk, "FROM scratch\nADD %s#v1:sub /o/\n" % url, {"o/f": "644 0:0 one", "o/l": "-> f 0:0", "o/a": None, "o/.git": None})
        check(sk, "FROM scratch\nADD --chown=1:2 %s#topic/x /o\n" % url, {"o/sub/f": "644 1:2 two", "o/x.sh": "755 1:2 X"})
        check(sk, "FROM scratch\nADD %s#v1:sub a.txt /o/\n" % url, {"o/f": "644 0:0 one", "o/a.txt": "644 0:0 A"}, files=F)
        build(sk, "FROM scratch\nADD %s#v1:up /o/\n" % url).exits(1, "up")
    with sk.case("ADD --keep-git-dir"):
        true("o/.git/HEAD" in check(sk, "FROM scratch\nADD --keep-git-dir=true %s#v1 /o\n" % url, {"o/a": "644 0:0 A"}).tree, ".git/HEAD to be there")
    with sk.case("a new commit is no cache hit, the same one is"):
        c = context(sk, {}, "FROM scratch\nADD %s#topic/x /o\n" % url)
        seen = [steps(sk("build -t t", c).ok)]
        seen.append(steps(sk("build -t t", c).ok))
        sk.file("repo/sub/f", "three")
        git("commit", "-qam", "third")
        git("push", "-q", sk.dir + "/r.git", "topic/x")
        seen.append(steps(sk("build -t t", c).ok))
        eq((seen[1:], result(sk).tree["o/sub/f"]), ([(1, 0), (0, 1)], "644 0:0 three"))
    with sk.case("--checksum is for files of the web"):
        build(sk, "FROM scratch\nADD --checksum=sha256:%s %s#v1 /o\n" % ("0" * 64, url)).exits(1, "checksum")
    with sk.case("escaped brackets of .dockerignore, and what is no pattern"):
        check(sk, "FROM scratch\nCOPY . /o/\n", {"o/a[b": None, "o/a.txt": "644 0:0 A"}, files={"a[b": "x", "a.txt": "A", ".dockerignore": "a\\[b\n"})
        for bad in "a[b", "a\\", "!":
            build(sk, "FROM scratch\nCOPY . /o/\n", files={"a.txt": "A", ".dockerignore": bad + "\n"}).exits(1, "dockerignore: .*pattern")
    with sk.case("submodules, of submodules too"):
        for name, inner in ("m1", "repo"), ("m2", "m1"):
            sub = lambda *argv: tool("git", "-C", sk.folder(name), "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always", *argv)
            sub("init", "-q")
            sub("submodule", "-q", "add", "file://%s/%s" % (sk.dir, inner), "in")
            sk.file(name + "/own", name)
            sub("add", ".")
            sub("commit", "-qm", "first")
        t = check(sk, "FROM scratch\nADD file://%s/m2/.git /o\n" % sk.dir, {"o/own": "644 0:0 m2", "o/in/own": "644 0:0 m1", "o/in/in/sub/f": "644 0:0 three"}).tree
        eq([n for n in t if n.endswith("/.git")], [])
    with sk.case("a repository's permission to name files of the host is not another one's"):
        sub = lambda *argv: tool("git", "-C", sk.dir + "/evil", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always", *argv)
        tool("git", "init", "-q", sk.folder("evil"))
        sub("submodule", "-q", "add", "file://%s/repo" % sk.dir, "in")
        sub("commit", "-qm", "first")
        p = subprocess.Popen(["git", "daemon", "--reuseaddr", "--export-all", "--base-path=" + sk.dir, "--listen=127.0.0.1", "--port=%d" % (20000 + os.getpid() % 20000), sk.dir + "/evil"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            remote = "git://127.0.0.1:%d/evil/.git" % (20000 + os.getpid() % 20000)
            lib.until(lambda: subprocess.run(["git", "ls-remote", remote], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0, "the daemon answers")
            build(sk, "FROM scratch\nADD file://%s/m2/.git /o\nADD %s /e\n" % (sk.dir, remote)).exits(1, "submodules: .*file.* not allowed")
        finally:
            p.kill()
            p.wait()
    with sk.case("nothing of it stays"):
        eq(os.listdir(sk.root + "/tmp"), [])


def blobs(sk, layout, name=None):
    """(manifest, [contents of its layers as plain tars], [their blobs]) of an OCI layout in an archive or a directory."""
    if os.path.isfile(layout):
        tool("tar", "-xf", layout, "-C", sk.folder("layout%d" % next(N)))
        layout = sk.dir + "/layout%d" % (next(N) - 1)
    get = lambda d: open(layout + "/blobs/" + d["digest"].replace(":", "/"), "rb").read()
    with open(layout + "/index.json") as f:
        m = json.loads(get([d for d in json.load(f)["manifests"] if name in (None, d.get("annotations", {}).get("org.opencontainers.image.ref.name"))][0]))
    raw = [get(d) for d in m["layers"]]
    unpack = {"gzip": gzip.decompress, "zstd": lambda x: tool("zstd", "-dqc", "-", input=x, stdin=None), "tar": bytes}
    return m, [unpack[re.split("[.+]", d["mediaType"])[-1]](x) for d, x in zip(m["layers"], raw)], raw


def test_output(sk):
    """Where an image goes, in which form, several at a time."""
    c = context(sk, {"text": "words " * 20000, "x.sh": ("X", 0o755), "d/l -> ../text": None, "d/secret": ("S", 0o600)}, "FROM busybox\nCOPY . /c\nRUN rm /etc/group; echo x > /f\n")
    o = lambda *words: [w for x in words for w in ("-o", x.replace("OUT", sk.dir + "/out"))]
    sk(["build", "-q", "-t", "t", c]).ok
    want = result(sk)
    for kind, inspect in ("oci", "oci-archive:"), ("docker", "docker-archive:"):
        with sk.case("type=" + kind):
            sk(["build", "-q", "-t", "t", *o("type=%s,dest=OUT.%s" % (kind, kind)), c]).ok
            j = json.loads(tool("skopeo", "inspect", "--config", "%s%s/out.%s" % (inspect, sk.dir, kind), env=sk.env))
            eq(j["rootfs"], want.config["rootfs"])
            other = {"SKIFF_ROOT": sk.folder("other-" + kind)}
            sk("load -q -i", sk.dir + "/out." + kind, env=other).ok
            eq(Image(sk("save t", env=other).ok.raw).tree, want.tree)
    for dest in "OUT.tar", "-":
        with sk.case("type=tar to " + dest):
            r = sk(["build", *o("type=tar,dest=" + dest), c]).ok
            with tarfile.open(fileobj=io.BytesIO(r.raw if dest == "-" else open(sk.dir + "/out.tar", "rb").read())) as t:
                names = {os.path.normpath(m.name): m for m in t.getmembers()}
            eq(("etc/group" in names, names["f"].size, names["c/x.sh"].mode & 0o7777, names["c/d/l"].linkname, names["c/d/secret"].mode & 0o777), (False, 2, 0o755, "../text", 0o600))
    with sk.case("- is a tar on standard output"):
        with tarfile.open(fileobj=io.BytesIO(sk(["build", "-q", "-o", "-", c]).ok.raw)) as t:
            true("f" in {os.path.normpath(n) for n in t.getnames()}, "/f in the archive")
    with sk.case("oci and docker on standard output"):
        for kind in "oci", "docker":
            with tarfile.open(fileobj=io.BytesIO(sk(["build", "-q", "-t", "t", *o("type=%s,dest=-" % kind), c]).ok.raw)) as t:
                true("manifest.json" in t.getnames() or "index.json" in t.getnames(), "an image's archive")
    with sk.case("type=local, and again over what is there"):
        os.mkdir(sk.dir + "/out", 0o700)
        sk.file("out/mine", "kept")
        sk.file("out/f", "old and longer")
        os.makedirs(sk.dir + "/out/c/old")
        for n in range(2):
            sk(["build", "-q", *o("type=local,dest=OUT"), c]).ok
            look = lambda name: open(sk.dir + "/out/" + name).read()
            eq((look("f"), look("mine"), look("c/x.sh"), os.readlink(sk.dir + "/out/c/d/l"), os.path.exists(sk.dir + "/out/etc/group"), os.path.isdir(sk.dir + "/out/c/old")), ("x\n", "kept", "X", "../text", False, True))
            eq(os.stat(sk.dir + "/out").st_mode & 0o777, 0o700, "the mode of a directory that was there")
        os.symlink(sk.folder("elsewhere"), sk.dir + "/out3")
        sk(["build", "-q", "-o", sk.dir + "/out3", c]).ok
    with sk.case("type=local never writes through a link that is there"):
        os.makedirs(sk.dir + "/out4")
        for name in "c", "f":
            os.symlink(sk.folder("target"), sk.dir + "/out4/" + name)
        sk(["build", "-q", "-o", sk.dir + "/out4", c])
        eq(os.listdir(sk.dir + "/target"), [])
    with sk.case("type=image with names"):
        sk(["build", "-q", *o("type=image,name=one:1", 'type=image,"name=two:2,three:3"'), c]).ok
        eq(len({sk.get(n, "{{.Id}}") for n in ("one:1", "two:2", "three:3", "t")}), 1)
    ref = "%s/out-%s:%d" % (lib.ENV["REGISTRY_HTTP"], sk.who, os.getpid())
    raw = lambda name: json.loads(tool("skopeo", "inspect", "--raw", "--tls-verify=false", "docker://" + name, env=sk.env))
    for n, argv in enumerate((["--push", "-t", ref + "a"], ["-t", ref + "b", "-o", "type=registry"], ["-o", "type=image,push=true,name=" + ref + "c"], ["-t", ref + "d", "--push", "-o", "type=tar,dest=" + sk.dir + "/beside.tar"])):
        with sk.case("pushed by " + " ".join(argv[:3:2])):
            sk(["build", "-q", *argv, c]).ok
            eq(len(raw(ref + "abcd"[n])["layers"]), 3)
    true(os.path.exists(sk.dir + "/beside.tar"), "the other output beside a push")
    with sk.case("pushed without a name"):
        sk(["build", "-q", "--push", c]).exits(1, "name|-t|tag")
    size = {}
    for kind, level, tail in ("gzip", "", "+gzip"), ("gzip", "1", "+gzip"), ("gzip", "9", "+gzip"), ("zstd", "", "+zstd"), ("zstd", "1", "+zstd"), ("zstd", "19", "+zstd"), ("uncompressed", "", ".tar"):
        with sk.case("compression=%s, level %s" % (kind, level or "not told")):
            sk(["build", "-q", *o("type=oci,dest=OUT.c,compression=%s%s,force-compression=true" % (kind, level and ",compression-level=" + level)), c]).ok
            m, tars, packed = blobs(sk, sk.dir + "/out.c")
            eq([d["mediaType"].split("layer.v1")[-1][-len(tail):] for d in m["layers"]], [tail] * 3)
            eq([lib.digest(x) for x in tars], want.config["rootfs"]["diff_ids"])
            size[kind + level] = sum(map(len, packed))
    with sk.case("a level makes a difference"):
        true(len(size) == 7 and size["gzip9"] < size["gzip1"] < size["uncompressed"] and size["zstd19"] < size["zstd1"] < size["uncompressed"], "sizes by level, got %s" % size)
    with sk.case("compression of what is pushed; the base as it is unless forced"):
        sk(["build", "-q", *o("type=registry,name=%sz,compression=zstd" % ref), c]).ok
        eq([d["mediaType"].endswith("+zstd") for d in raw(ref + "z")["layers"]][1:], [True, True])
        sk(["build", "-q", *o("type=registry,name=%sg,compression=gzip,force-compression=true" % ref), c]).ok
        eq([d["mediaType"].endswith("+gzip") for d in raw(ref + "g")["layers"]], [True] * 3)
        sk("run --rm", ref + "z", "cat", "/f").says("x")
    with sk.case("several at once"):
        r = sk(["build", "-q", "-t", "t", *o("type=oci,dest=OUT1", "type=docker,dest=OUT2", "type=local,dest=OUTd", "type=tar,dest=-", "type=image,name=four:4"), c]).ok
        with tarfile.open(fileobj=io.BytesIO(r.raw)) as t:
            true(len(t.getnames()) > 5, "a tree on standard output")
        eq((os.path.getsize(sk.dir + "/out1") > 0, os.path.getsize(sk.dir + "/out2") > 0, os.path.exists(sk.dir + "/outd/f"), sk.get("four:4", "{{.Id}}")), (True, True, True, sk.get("t", "{{.Id}}")))
    for spec, pattern in ("type=nosuch", "type"), ("type=oci", "dest"), ("type=local", "dest"), ("type=oci,dest=x,nosuch=1", "nosuch"), ("type=oci,dest=x,compression=lzma", "lzma"), ("type=oci,dest=x,compression=gzip,compression-level=22", "level"), \
            ("type=tar,dest=/no/such/x", "/no/such"), ("type=oci,dest=/no/such/x", "/no/such"):
        with sk.case("refused: " + spec):
            sk(["build", "-q", "-o", spec, c]).exits(1, pattern)
    sk.check_store()


def test_squash(sk):
    """--squash: one layer above the base, and the same tree."""
    d = ("FROM busybox\nRUN mkdir -p /d/e && echo 1 > /d/a && echo 2 > /d/b && ln /d/a /d/h && ln -s a /d/l && mkfifo /d/p && rm /etc/group && touch -d '2001-01-01' /d/old\n"
         "COPY --chown=5:6 d /c\nRUN rm /d/b /c/e && rm -r /home /c/sub && mkdir /home && echo n > /home/n && chmod 700 /tmp && ln -sf /x /etc/passwd && echo more >> /d/a\n"
         "WORKDIR /w\nENV a=1\nRUN rm -r /root && echo file > /root && rm -r /d/e && echo file > /d/e && rm /bin/vi && mkdir /bin/vi && echo in > /bin/vi/f\nRUN rm -rf /home /d/old\n")
    c = context(sk, F, d)
    sk("build -q -t plain", c).ok
    sk("build -q -t sq --squash", c).ok
    a, b = result(sk, "plain"), result(sk, "sq")
    base = result(sk, "busybox")
    with sk.case("the same tree"):
        bad = ["%s: %r, squashed %r" % (k, a.tree.get(k), b.tree.get(k)) for k in sorted(set(a.tree) | set(b.tree)) if a.tree.get(k) != b.tree.get(k)]
        true(not bad, "the same tree; " + "; ".join(bad)[:600])
        eq(*[{k: int(i.times[k]) for k, v in i.tree.items() if not v.startswith("d")} for i in (b, a)], "times")
    with sk.case("the same by a container's eyes"):
        look = "find / -xdev ! -path '/proc*' ! -path '/sys*' ! -path '/dev*' ! -path '/run*' ! -path '/etc/hosts' ! -path '/etc/hostname' ! -path '/etc/resolv.conf' | sort | xargs ls -ldn 2>/dev/null | awk '{print $1, $3, $4, $9, $10, $11}'"
        eq(sk("run --rm sq sh -c", look).ok.out, sk("run --rm plain sh -c", look).ok.out)
    with sk.case("one layer more than the base, and one history entry for it"):
        eq(b.config["rootfs"]["diff_ids"][:-1], base.config["rootfs"]["diff_ids"])
        eq(sum(not h.get("empty_layer", False) for h in b.config["history"]), len(b.layers))
        eq({k: b.config["config"].get(k) for k in KEYS}, {k: a.config["config"].get(k) for k in KEYS})
    with sk.case("what is gone leaves nothing behind in the layer"):
        eq([n for n in b.layers[-1] if n in ("d/b", "c/e", "c/sub", "home/n", "d/old")], [])
    with sk.case("hard links"):
        eq(sk("run --rm sq stat -c %h /d/a").ok.out, sk("run --rm plain stat -c %h /d/a").ok.out)
    with sk.case("of stages, from scratch, of one step, of none"):
        build(sk, "FROM busybox AS x\nRUN echo 1 > /f\nFROM scratch\nCOPY --from=x /f /f\nCOPY --from=x /f /g\n", "--squash").ok
        eq((len(result(sk).layers), sorted(result(sk).tree)), (1, ["f", "g"]))
        build(sk, "FROM busybox\nRUN echo 1 > /f\n", "--squash").ok
        eq(len(result(sk).layers), 2)
        build(sk, "FROM busybox\nLABEL a=1\n", "--squash").ok
        eq(len(result(sk).layers), 1)
    with sk.case("cached: the same image again"):
        i = sk("build -q --squash", c).ok.out
        time.sleep(0.01)
        eq(sk("build -q --squash", c).ok.out, i)
    sk.check_store()


def test_cache_carried(sk):
    """--cache-to and --cache-from: another store has it all CACHED."""
    files = {"a": "A", "b": "B"}
    d = "FROM busybox AS x\nRUN echo 1 > /x && chmod 4711 /x\nFROM busybox AS y\nCOPY a /a\nRUN cat /a > /y\nFROM busybox\nCOPY b /b\nCOPY --from=x /x /x\nCOPY --from=y /y /y\nWORKDIR /w\nARG v=1\nRUN echo $v > /v; cat /proc/sys/kernel/random/uuid > /u\nADD t.tar /t\nRUN true\n"
    c = context(sk, dict(files, **{"t.tar": tar(entry("in", "I"))}), d)
    ref = "%s/cache-%s:%d" % (lib.ENV["REGISTRY_HTTP"], sk.who, os.getpid())
    ways = [("type=local,dest=" + sk.dir + "/cache", "type=local,src=" + sk.dir + "/cache"), ("type=registry,ref=" + ref, "type=registry,ref=" + ref), ("type=registry,mode=max,ref=" + ref + "m", ref + "m")]
    sk(["build", "-t", "t", *[w for to, _ in ways for w in ("--cache-to", to)], c]).ok
    want = result(sk)
    n = 10
    for i, (to, from_) in enumerate(ways):
        with sk.case("from " + from_.replace(sk.dir, "")):
            env = {"SKIFF_ROOT": sk.folder("fresh%d" % i)}
            sk("load -q -i", lib.ENV["FIXTURE_busybox"], env=env).ok
            eq(steps(sk(["build", "-t", "t", "--cache-from", from_, c], env=env).ok), (n, 0))
            got = Image(sk("save t", env=env).ok.raw)
            eq(got.tree, want.tree)
            eq(got.config["rootfs"], want.config["rootfs"])
            eq([x for x in sk("images --format {{.Repository}}", env=env).lines if x not in ("t", "busybox")], [], "images beside the build's")
            sk("run --rm t cat /x", env=env).says("1")
            sk("system check", env=env).ok
            with sk.case("what changed is run again, the rest is not"):
                eq(steps(sk(["build", "-t", "t", "--cache-from", from_, "--build-arg", "v=2", c], env=env).ok), (n - 3, 3))
    with sk.case("a cache that is written again, from a build that was all cached"):
        sk(["build", "-q", "--cache-to", ways[0][0], c]).ok
        env = {"SKIFF_ROOT": sk.folder("again")}
        sk("load -q -i", lib.ENV["FIXTURE_busybox"], env=env).ok
        eq(steps(sk(["build", "--cache-from", ways[0][1], "--cache-to", "type=local,dest=" + sk.dir + "/second", c], env=env).ok), (n, 0))
        env = {"SKIFF_ROOT": sk.folder("third")}
        sk("load -q -i", lib.ENV["FIXTURE_busybox"], env=env).ok
        eq(steps(sk(["build", "--cache-from", "type=local,src=" + sk.dir + "/second", c], env=env).ok), (n, 0))
    with sk.case("others read the layout"):
        tool("skopeo", "inspect", "--raw", "oci:%s/cache:buildcache" % sk.dir, env=sk.env)
    env = {"SKIFF_ROOT": sk.folder("none")}
    sk("load -q -i", lib.ENV["FIXTURE_busybox"], env=env).ok
    small = context(sk, {}, "FROM busybox\nRUN echo x > /x\n")
    with sk.case("what cannot be had is said, and no error"):
        for spec in "type=local,src=/no/such", "127.0.0.1:1/nosuch:1", "type=local,src=" + sk.folder("empty"), lib.ENV["REGISTRY_HTTP"] + "/busybox:latest":
            r = sk(["build", "--cache-from", spec, small], env=env).ok
            if "busybox" not in spec:
                match(r.err, "(?i)warn.*cache-from|cache-from")
    with sk.case("a damaged one is no hit"):
        tool("cp", "-r", sk.dir + "/cache", sk.dir + "/damaged")
        for name in os.listdir(sk.dir + "/damaged/blobs/sha256"):
            path = sk.dir + "/damaged/blobs/sha256/" + name
            if os.path.getsize(path) < 3000 and not open(path, "rb").read().startswith(b"{"):
                with open(path, "r+b") as f:
                    f.seek(100)
                    f.write(b"damage")
        sk(["build", "-q", "-t", "t", "--cache-from", "type=local,src=" + sk.dir + "/damaged", c], env=env).ok
        got = Image(sk("save t", env=env).ok.raw)
        eq({k: v for k, v in got.tree.items() if k != "u"}, {k: v for k, v in want.tree.items() if k != "u"})
        sk("system check", env=env).ok
    for spec, pattern in ("type=nosuch", "type"), ("type=local", "dest"), ("type=registry", "ref"):
        with sk.case("refused: --cache-to " + spec):
            sk(["build", "--cache-to", spec, small], env=env).exits(1, pattern)
    sk.check_store()


def test_cache_prune(sk):
    """builder prune by size and age; what is left is right."""
    layers = "FROM busybox\n" + "".join("RUN head -c %d /dev/zero | tr '\\0' %d > /f%d\n" % (1000000, i, i) for i in range(6))
    c = context(sk, {}, layers)
    count = lambda: len([n for n in os.listdir(sk.root + "/cache") if n.startswith("build-")])

    def age(seconds):
        """Makes what is in the cache now look older."""
        for n in os.listdir(sk.root + "/cache"):
            if n.startswith(("build-", "mount-")):
                t = os.stat(sk.root + "/cache/" + n).st_mtime - seconds
                os.utime(sk.root + "/cache/" + n, (t, t))
    with sk.case("--filter until: what was not used for so long"):
        sk("build -q", c).ok
        age(7200)
        build(sk, "FROM busybox\nRUN echo young > /y\n").ok
        sk("rmi -f t").ok
        sk("builder prune -f --filter until=3h").ok
        eq(count(), 7)
        sk("builder prune -f --filter until=1h").ok
        eq(count(), 1)
        eq(steps(build(sk, "FROM busybox\nRUN echo young > /y\n").ok), (1, 0))
    with sk.case("use makes young"):
        sk("build -q", c).ok
        age(7200)
        eq(steps(sk("build", c).ok), (6, 0))
        sk("builder prune -f --filter until=1h").ok
        eq(count(), 6)
    with sk.case("--keep-storage: what was used last is kept"):
        age(100)
        build(sk, "FROM busybox\nRUN head -c 1500000 /dev/zero | tr '\\0' y > /y\n").ok
        sk("rmi -f t").ok
        sk("builder prune -f --keep-storage 100m").ok
        eq(count(), 7)
        sk("builder prune -f --keep-storage 4m").ok
        true(1 <= count() <= 3, "one to three records within 4 MB, got %d" % count())
        eq(steps(build(sk, "FROM busybox\nRUN head -c 1500000 /dev/zero | tr '\\0' y > /y\n").ok), (1, 0))
    with sk.case("a build after it is right"):
        sk("build -q -t t", c).ok
        t = result(sk).tree
        eq([t["f%d" % i] for i in range(6)], ["644 0:0 " + lib.digest(b"%d" % i * 1000000) for i in range(6)])
    with sk.case("layers of images stay"):
        sk("builder prune -f").ok
        sk("run --rm t tail -c1 /f5").says("5")
    for words in "--filter until=x", "--filter nosuch=1", "--keep-storage x":
        with sk.case("refused: " + words):
            sk("builder prune -f " + words).exits(None, ".")
    sk("system check").ok
    sk.check_store()


# ---- stages at the same time ----

MEET = "touch /c/%s; " + WAIT % "[ -e /c/%s ]"  # says that it is here, and waits for the other


def test_parallel(sk):
    """Stages that need nothing of each other are built at once."""
    one = "--mount=type=cache,id=%s,target=/c "
    with sk.case("two stages that wait for each other"):
        d = "FROM busybox AS a\nRUN " + one % "two" + MEET % ("a", "b") + "echo a > /a\nFROM busybox AS b\nRUN " + one % "two" + MEET % ("b", "a") + "echo b > /b\nFROM scratch\nCOPY --from=a /a /a\nCOPY --from=b /b /b\n"
        check(sk, d, {"a": "644 0:0 a\n", "b": "644 0:0 b\n"})
        eq(steps(build(sk, d).ok), (4, 0))
    with sk.case("the same above a stage that both need, which is built once"):
        d = ("FROM busybox AS base\nRUN cat /proc/sys/kernel/random/uuid > /u\nFROM base AS a\nRUN " + one % "base" + MEET % ("a", "b") + "cp /u /a\nFROM base AS b\nRUN " + one % "base" + MEET % ("b", "a") + "cp /u /b\n"
             "FROM busybox\nCOPY --from=a /a /a\nRUN --mount=from=b,source=/b,target=/m cmp /a /m && echo same > /o\n")
        check(sk, d, {"o": "644 0:0 same\n"})
    with sk.case("two of three are ready, the third needs both"):
        d = ("FROM busybox AS a\nRUN " + one % "tri" + MEET % ("a", "b") + "echo a > /f\nFROM busybox AS b\nRUN " + one % "tri" + MEET % ("b", "a") + "echo b > /f\nFROM busybox AS c\nRUN --mount=from=a,source=/f,target=/a --mount=from=b,source=/f,target=/b cat /a /b > /f\n"
             "FROM scratch\nCOPY --from=c /f /o\nCOPY --from=a /f /p\n")
        check(sk, d, {"o": "644 0:0 a\nb\n", "p": "644 0:0 a\n"})
    with sk.case("a stage starts when what it needs is there, not when all that began before it are"):
        d = ("FROM busybox AS a\nRUN " + one % "soon" + MEET % ("a", "c") + "echo a > /f\nFROM busybox AS b\nRUN echo b > /f\nFROM b AS c\nRUN " + one % "soon" + MEET % ("c", "a") + "echo c >> /f\n"
             "FROM scratch\nCOPY --from=a /f /a\nCOPY --from=c /f /c\n")
        check(sk, d, {"a": "644 0:0 a\n", "c": "644 0:0 b\nc\n"})
    for first in "a", "b":
        with sk.case("a stage that fails ends the other one; it stands %s" % ("first" if first == "a" else "second")):
            bad = "RUN " + one % ("end" + first) + WAIT % "[ -e /c/on ]" + "exit 7\n"
            good = "RUN " + one % ("end" + first) + "touch /c/on; sleep 1000\n"
            d = "FROM busybox AS a\n%sFROM busybox AS b\n%sFROM scratch\nCOPY --from=a /x /\nCOPY --from=b /x /\n" % ((bad, good) if first == "a" else (good, bad))
            r = build(sk, d, wait=35).exits(1, "exit code: 7")
            match(r.err, r"Dockerfile:%d\b" % (2 if first == "a" else 4))
            lib.until(lambda: not [n for _, n in sk.processes() if n in ("sleep", "sh")], "the other stage's processes end")
            eq(os.listdir(sk.root + "/containers"), [])
    with sk.case("each line is whole, and under its own step's number"):
        d = "FROM busybox AS a\nRUN yes aaaaaaaa | head -n 5000\nFROM busybox AS b\nRUN yes bbbbbbbb | head -n 5000\nFROM scratch\nCOPY --from=a /etc/passwd /a\nCOPY --from=b /etc/passwd /b\n"
        r = build(sk, d, "--no-cache").ok
        no = lambda text: match(r.err, r"^#(\d+) \[.*\] RUN yes " + text)[1]
        eq(sorted({x for x in re.findall(r"^#(\d+) [\d.]+ (.*)$", r.err, re.M)}), sorted([(no("a"), "a" * 8), (no("b"), "b" * 8)]))
        eq((len(re.findall("^#.* a{8}$", r.err, re.M)), len(re.findall("^#.* b{8}$", r.err, re.M))), (5000, 5000))
    with sk.case("a stage that is met on the way: every step has its own end"):
        d = "FROM busybox AS a\nRUN echo 1 > /a\nFROM busybox\nCOPY Dockerfile /d\nCOPY --from=a /a /a\nRUN echo 2 > /b\n"
        for word in r"DONE [\d.]+s", "CACHED":
            r = build(sk, d).ok
            eq(sorted(re.findall(r"^#(\d+) %s$" % word, r.err, re.M)), sorted(re.findall(r"^#(\d+) \[.*\] (?:RUN|COPY)", r.err, re.M)))
    with sk.case("the same image as by one after the other"):
        d = ("FROM busybox AS a\nRUN echo a > /f; ln /f /g\nCOPY d /d\nFROM busybox AS b\nCOPY --chown=5:6 a.txt /x/y\nRUN rm -r /home; echo b > /f\nFROM a AS c\nRUN cat /f /d/e > /c\nARG v=1\nENV w=$v\n"
             "FROM c\nARG v\nRUN echo \"$v$w\" > /v\nCOPY --from=b /x /x\nCOPY --from=a /g /g2\nCOPY --from=b /f /f2\n")
        c = context(sk, F, d)
        ids = []
        for i, targets in enumerate(([], ["a", "b", "c"], ["b"])):
            env = {"SKIFF_ROOT": sk.folder("p%d" % i), "SOURCE_DATE_EPOCH": "1600000000"}
            sk("load -q -i", lib.ENV["FIXTURE_busybox"], env=env).ok
            for t in targets:
                sk(["build", "-q", "--target", t, c], env=env).ok
            ids.append(sk("build -q", c, env=env).ok.out)
        eq(len(set(ids)), 1, "ids of the image by one build and by several")
    with sk.case("killed: nothing goes on, the next build is right"):
        d = "FROM busybox AS a\nRUN " + one % "kill" + "touch /c/a; echo rea''dy; sleep 1000\nFROM busybox AS b\nRUN " + one % "kill" + WAIT % "[ -e /c/a ]" + "echo rea''dy; sleep 1000\nFROM scratch\nCOPY --from=a /x /\nCOPY --from=b /x /\n"
        for sig in 9, 2:
            p = sk.popen(["build", context(sk, {}, d)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            ready(p, b"ready")
            p.send_signal(sig)
            p.communicate(timeout=20)
            lib.until(lambda: not sk.processes(), "all of a killed build ends (signal %d)" % sig)
        sk("system check").ok
        build(sk, "FROM busybox AS a\nRUN echo a > /a\nFROM busybox AS b\nRUN echo b > /a\nFROM scratch\nCOPY --from=a /a /a\nCOPY --from=b /a /b\n").ok
        eq(result(sk).tree, {"a": "644 0:0 a\n", "b": "644 0:0 b\n"})
        sk("system prune -f").ok
        eq(os.listdir(sk.root + "/containers"), [])
    sk.check_store()


def test_link(sk):
    """COPY --link: a layer that neither sees nor needs what is below it."""
    with sk.case("a link of the tree is not followed"):
        check(sk, "FROM busybox\nRUN mkdir /real && ln -s real /l\nCOPY --link a.txt /l/\nCOPY a.txt /m/\n", {"l": "d755 0:0", "l/a.txt": "644 0:0 A", "real/a.txt": None, "m/a.txt": "644 0:0 A"}, files=F)
        sk("run --rm t cat /l/a.txt").says("A")
    with sk.case("it is a hit above whatever was run"):
        c = context(sk, F, "FROM busybox\nARG n\nRUN echo $n > /n\nCOPY --link --chown=5:6 d /d\nCOPY a.txt /\n")
        eq(steps(sk("build -t t --build-arg n=1", c).ok), (0, 3))
        eq(steps(sk("build -t t --build-arg n=2", c).ok), (1, 2))
        eq((result(sk).tree["n"], result(sk).tree["d/e"], result(sk).tree["a.txt"]), ("644 0:0 2\n", "644 5:6 E", "644 0:0 A"))
        eq(steps(sk("build -t t --build-arg n=2", c).ok), (3, 0))
        eq(steps(sk("build -t t --no-cache --build-arg n=2", c).ok), (0, 3))
    with sk.case("RUN after it sees it"):
        c = context(sk, F, "FROM busybox\nARG n\nRUN echo $n > /n\nCOPY --link d /d\nRUN cat /n /d/e > /o\n")
        for n in "3", "4":
            sk("build -t t --build-arg", "n=" + n, c).ok
            eq(result(sk).tree["o"], "644 0:0 %s\nE" % n)
    with sk.case("--link=false"):
        check(sk, "FROM busybox\nRUN mkdir /real && ln -s real /l\nCOPY --link=false a.txt /l/\n", {"l": "-> real 0:0", "real/a.txt": "644 0:0 A"}, files=F)
    with sk.case("--parents: where a pattern finds a file counts"):
        for at in "a", "b":
            c = context(sk, {at + "/x.json": "{}"}, "FROM scratch\nCOPY --parents **/x.json /o/\n")
            sk("build -t t", c).ok
            eq([n for n in result(sk).tree if n.endswith(".json")], ["o/%s/x.json" % at])
    with sk.case("a link to nowhere that a pattern finds"):
        build(sk, "FROM busybox AS a\nRUN mkdir /d && ln -s /nowhere /d/l && echo 1 > /d/f\nFROM scratch\nCOPY --from=a /d/* /e/\n").exits(1, "/d/l.*not found")
    with sk.case("another owner, mode or place is another layer"):
        for flags, path, want in ("--chown=7:8", "d", "644 7:8 E"), ("--chown=7:8 --chmod=600", "d", "600 7:8 E"), ("--chown=7:8", "dd", "644 7:8 E"):
            check(sk, "FROM busybox\nCOPY --link %s d /%s\n" % (flags, path), {path + "/e": want}, files=F)


@only("abgf")
@timeout(150)
def test_drivers(sk):
    """What a build makes does not depend on the way to a root file system: RUN after COPY after RUN."""
    d = ("FROM busybox\nRUN mkdir /d /gone && echo 1 > /d/a && echo 2 > /d/b && ln /d/a /d/h && ln -s a /d/l && mkfifo /d/p && chmod 4750 /d/b && touch -d '2001-01-01 00:00:00' /d/old && echo x > /gone/x\n"
         "COPY --chown=5:6 d /d/x\nRUN cat /d/x/e > /d/c; rm /d/b; mv /d/x/f.txt /d/g; rm -r /d/x/sub /gone; echo more >> /d/x/e\nCOPY a.txt b.txt /d/x/\nRUN rm -r /home && mkdir /home && cat /d/x/a.txt > /home/n; chmod 600 /d/x/b.txt\n"
         "RUN touch -d '2001-01-01 00:00:00' /s; echo old > /s2; touch -d '2001-01-01 00:00:00' /s2\nRUN echo new > /s2; touch -d '2001-01-01 00:00:00' /s2\nWORKDIR /w\nRUN pwd > rel\nADD t.tar /t\nRUN ls /d /d/x /t > /o; rm -r /t; mkdir -p /t/in; echo other > /t/in/z\nUSER app\nRUN echo mine > /tmp/mine\nUSER 0\n" +
         ("RUN chown app:wheel /d/c /w && chown -h 7:8 /d/l\nRUN chown 9 /home\n" if sk.subuid else "RUN true\nRUN true\n"))
    want = {"d/a": "644 0:0 1\n", "d/h": "644 0:0 1\n", "d/b": None, "d/l": "-> a 7:8" if sk.subuid else "-> a 0:0", "d/p": "p644 0:0", "d/c": "644 1000:10 E" if sk.subuid else "644 0:0 E", "d/g": "644 5:6 F", "d/x": "d755 5:6", "d/x/e": "644 5:6 Emore\n",
            "d/x/sub": None, "d/x/sub/g": None, "d/x/a.txt": "644 0:0 A", "d/x/b.txt": "600 0:0 B", "tmp": "d1777 0:0", "home": "d755 9:0" if sk.subuid else "d755 0:0", "home/n": "644 0:0 A", "gone": None, "gone/x": None, "s2": "644 0:0 new\n", "w": "d755 1000:10" if sk.subuid else "d755 0:0", "w/rel": "644 0:0 /w\n",
            "t/in/f": None, "t/in/z": "644 0:0 other\n", "o": "644 0:0 /d:\na\nc\ng\nh\nl\nold\np\nx\n\n/d/x:\na.txt\nb.txt\ne\nempty\nlink\n\n/t:\nin\n", "tmp/mine": "644 1000:1000 mine\n"}
    if not sk.subuid:
        want["d/g"] = None  # a new name: with one id nobody knows whose it was
    files = dict(F, **{"t.tar": tar(entry("in/"), entry("in/f", "x"))})
    c = context(sk, files, d)
    trees = {}
    for driver in ("overlay-fuse", "fuse") if sk.who in "gf" else ("overlay", "copy"):
        with sk.case(driver):
            env = {"SKIFF_STORAGE_DRIVER": driver, "SKIFF_ROOT": sk.folder(driver)}
            sk("load -q -i", lib.ENV["FIXTURE_busybox"], env=env).ok
            eq(steps(sk("build -t t", c, env=env).ok), (0, 14))
            i = Image(sk("save t", env=env).ok.raw)
            trees[driver] = i.tree
            for path, text in want.items():
                if text is None and path == "d/g":
                    continue
                eq(i.tree.get(path), text, path)
            eq((int(i.times["d/old"]), int(i.times["s2"])), (978307200, 978307200), "times that a step set")
            eq(i.links.get("d/h", i.links.get("d/a")) in ("d/a", "d/h"), True, "/d/h and /d/a to be one file")
            eq(steps(sk("build -t t", c, env=env).ok), (14, 0))
            sk("run --rm t sh -c", "cat /d/x/e /s2; ls /t/in; stat -c %h /d/a", env=env).says("Emore\nnew\nz\n2")
            eq(os.listdir(sk.dir + "/" + driver + "/containers"), [])
            sk("system check", env=env).ok
    with sk.case("the same tree on both"):
        a, b = trees.values() if len(trees) == 2 else ({}, {})
        eq({k: (a.get(k), b.get(k)) for k in set(a) | set(b) if a.get(k) != b.get(k)}, {})


@only("a")
@timeout(150)
def test_podman_runs_it(sk):
    """What skiff built, run by podman."""
    build(sk, "FROM busybox\nRUN echo one > /f && mkdir /d && chmod 4711 /f && ln /f /h\nCOPY --chown=app:wheel --chmod=750 d /app\nRUN rm /etc/group\nWORKDIR /app\nENV a=\"x y\"\nUSER app\nENTRYPOINT [\"sh\", \"-c\"]\n"
              "CMD [\"id -u; pwd; echo $a; cat /f 2>&1; stat -c '%u:%g %a' /app/e; stat -c %h /h; ls /etc/group 2>&1 || true\"]\nEXPOSE 80\nVOLUME /data\nLABEL l=1\nHEALTHCHECK CMD true\nSTOPSIGNAL SIGINT\n", "-o", "type=docker,dest=" + sk.dir + "/p.tar", "-o", "type=oci,dest=" + sk.dir + "/p.oci,compression=gzip,force-compression=true", files=F).ok
    base = ["podman", "--root", sk.dir + "/pod", "--runroot", sk.dir + "/podrun", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc"]
    pod = lambda *argv: tool(*base, *argv, env=sk.env).decode()
    want = sk("run --rm t").ok.out
    match(want, r"^1000\n/app\nx y\n.*\n1000:10 750\n2\n")
    for archive in "docker-archive:%s/p.tar" % sk.dir, "oci-archive:%s/p.oci" % sk.dir:
        with sk.case(archive.split(":")[0]):
            image = pod("pull", "-q", archive).strip().split("\n")[-1]
            eq(pod("run", "--rm", "--network", "none", "--no-healthcheck", image).rstrip("\n"), want)
            j = json.loads(pod("image", "inspect", image))[0]
            eq((j["Config"]["Env"][-1], j["User"], j["Config"]["Volumes"], j["Config"]["ExposedPorts"], j["Labels"], j["Config"]["StopSignal"]), ("a=x y", "app", {"/data": {}}, {"80/tcp": {}}, {"l": "1"}, "SIGINT"))
    pod("unshare", "rm", "-rf", sk.dir + "/pod", sk.dir + "/podrun")


# ---- the cache ----

def test_cache(sk):
    files = {"f%d" % i: str(i) for i in range(20)}
    with sk.case("twenty steps, the twelfth changes: 11 are cached, 9 run"):
        c = context(sk, files, "FROM busybox\n" + "".join("COPY f%d /\n" % i for i in range(20)))
        eq(steps(sk("build -t t", c).ok), (0, 20))
        eq(steps(sk("build -t t", c).ok), (20, 0))
        sk.file(c + "/f11", "changed")
        eq(steps(sk("build -t t", c).ok), (11, 9))
        eq(result(sk).tree["f11"], "644 0:0 changed")
        sk.file(c + "/f11", "11")
        eq(steps(sk("build -t t", c).ok), (20, 0))
    with sk.case("the same with RUN between"):
        c = context(sk, {n: "0" + t for n, t in files.items()}, "FROM busybox\n" + "".join("COPY f%d /\nRUN cat /f%d >> /all\n" % (i, i) for i in range(0, 6)))
        eq(steps(sk("build -t t", c).ok), (0, 12))
        sk.file(c + "/f3", "x")
        eq(steps(sk("build -t t", c).ok), (6, 6))
        eq(result(sk).tree["all"], "644 0:0 000102x0405")
    base = "FROM busybox\nCOPY d /d\nRUN echo x > /x\n"

    def again(name, change, want, dockerfile=base, second=None, options=(), options2=None):
        with sk.case(name):
            c = context(sk, {"d/f": name, "d/g": "G", "other": "o"}, dockerfile.replace("echo x", "echo " + repr(name)))
            sk(["build", "-t", "t", *options, c]).ok
            if change:
                change(sk.dir + "/" + c)
            if second:
                sk.file(c + "/Dockerfile", second.replace("echo x", "echo " + repr(name)))
            eq(steps(sk(["build", "-t", "t", *(options if options2 is None else options2), c]).ok), want)
    again("times do not matter", lambda d: os.utime(d + "/d/f", (1, 1)), (2, 0))
    again("a mode does", lambda d: os.chmod(d + "/d/f", 0o600), (0, 2))
    again("a new file", lambda d: open(d + "/d/new", "w").close(), (0, 2))
    again("a new name", lambda d: os.rename(d + "/d/f", d + "/d/f2"), (0, 2))
    again("a file less", lambda d: os.unlink(d + "/d/g"), (0, 2))
    again("a link instead", lambda d: (os.unlink(d + "/d/g"), os.symlink("f", d + "/d/g")), (0, 2))
    again("a new empty directory", lambda d: os.mkdir(d + "/d/n"), (0, 2))
    again("another file of the context", lambda d: os.unlink(d + "/other"), (2, 0))
    again("a comment", None, (2, 0), second="# c\n" + base.replace("RUN", "\n # d\nRUN"))
    again("RUN's text", None, (1, 1), second=base.replace("> /x", "> /y"))
    again("a destination", None, (0, 2), second=base.replace("/d\n", "/e\n"))
    again("a flag of COPY", None, (0, 2), second=base.replace("COPY", "COPY --chown=1:1"))
    again("LABEL between", None, (1, 1), second=base.replace("RUN", "LABEL a=b\nRUN"))
    again("LABEL at the end", None, (2, 0), second=base + "LABEL a=b\n")
    again("ENV before", None, (0, 2), second=base.replace("COPY", "ENV a=b\nCOPY"))
    arg = "FROM busybox\nCOPY d /d\nARG a=1\nRUN echo x > /x\n"
    again("an ARG's value", None, (1, 1), dockerfile=arg, options2=("--build-arg", "a=2"))
    again("the ARG's same value", None, (2, 0), dockerfile=arg, options2=("--build-arg", "a=1"))
    again("an ARG that nobody declares", None, (2, 0), options2=("--build-arg", "zz=2"))
    again("--no-cache", None, (0, 2), options2=("--no-cache",))
    again("USER before RUN", None, (1, 1), second=base.replace("RUN", "USER 0\nRUN"))
    again("--label and -t", None, (2, 0), options2=("--label", "x=y", "-t", "u"))
    with sk.case("--no-cache leaves the cache fresh"):
        d = "FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /o\n"
        c = context(sk, {}, d)
        seen = []
        for options in [], [], ["--no-cache"], []:
            sk(["build", "-t", "t", *options, c]).ok
            seen.append(result(sk).tree["o"])
        eq((seen[0] == seen[1], seen[1] == seen[2], seen[2] == seen[3]), (True, False, True))
    with sk.case("COPY --from: what the other stage makes counts, not how"):
        d = "FROM busybox AS a\nRUN %s\nFROM scratch\nCOPY --from=a /f /f\nCOPY Dockerfile2 /g\n"
        c = context(sk, {"Dockerfile2": "x"}, d % "echo 1 > /f")
        sk("build", c).ok
        sk.file(c + "/Dockerfile", d % "echo 1 > /f; echo other > /h")
        eq(steps(sk("build", c).ok), (2, 1))
        sk.file(c + "/Dockerfile", d % "echo 2 > /f")
        eq(steps(sk("build -t t", c).ok), (0, 3))
        eq(result(sk).tree["f"], "644 0:0 2\n")
    with sk.case("another base"):
        d = "FROM base\nRUN echo x > /x\n"
        for n in 1, 2:
            build(sk, "FROM busybox\nRUN echo %d > /base\n" % n, name="base").ok
            eq(steps(build(sk, d).ok), (0, 1))
            eq(result(sk).tree["base"], "644 0:0 %d\n" % n)
    with sk.case("rmi keeps what the cache holds; builder prune empties it"):
        c = context(sk, {}, "FROM busybox\nRUN echo keep > /x\n")
        sk("build -t t", c).ok
        sk("rmi -f t").ok
        eq(steps(sk("build -t t", c).ok), (1, 0))
        sk("builder prune -f").prints(r"Total:?\s+[\d.]+ ?[kM]?B")
        eq(steps(sk("build -t t", c).ok), (0, 1))
        sk("run --rm t cat /x").says("keep")
    with sk.case("a damaged record is no hit"):
        for name in os.listdir(sk.root + "/cache"):
            p = sk.root + "/cache/" + name
            if name.startswith("build-"):
                with open(p, "r+b") as f:
                    f.truncate(os.path.getsize(p) // 2)
        sk("build -t t", c).ok
        sk("run --rm t cat /x").says("keep")
    sk("system check").ok
    sk.check_store()


SETX = """#include <string.h>
#include <sys/xattr.h>
int main(int n, char **v) {
    unsigned char cap[20] = { 1, 0, 0, 2, 0, 4 };
    return !strcmp(v[2], "cap") ? setxattr(v[1], "security.capability", cap, 20, 0) : setxattr(v[1], v[2], v[3], strlen(v[3]), 0);
}
"""


def test_cache_keys(sk):
    """Two builds that differ in one thing are not taken for the same."""
    def differ(name, first, second, want, path="o"):
        """first, second: (Dockerfile, files, options); the second build must not be given the first's result."""
        with sk.case(name):
            for n, (text, files, options) in enumerate((first, second)):
                build(sk, text, *options, files=files).ok
                eq(result(sk).tree.get(path), want[n], "build %d" % (n + 1))
    arg = lambda text, first, second, want, name, path="o", files=F: differ(name, (text, files, first), (text, files, second), want, path)
    a, b = ("--build-arg", "a=1"), ("--build-arg", "a=2")
    arg("FROM scratch\nARG a\nCOPY --chown=$a a.txt /o\n", a, b, ["644 1:1 A", "644 2:2 A"], "an ARG in --chown")
    arg("FROM scratch\nARG a\nCOPY --chmod=60$a a.txt /o\n", a, b, ["601 0:0 A", "602 0:0 A"], "an ARG in --chmod")
    arg("FROM scratch\nARG a\nCOPY --exclude=$a.txt . /o/\n", a, b, [None, "644 0:0 x"], "an ARG in --exclude", "o/1.txt", {"1.txt": "x", "2.txt": "x"})
    arg("FROM scratch\nARG a\nADD --unpack=$a t.tar /o/\n", ("--build-arg", "a=true"), ("--build-arg", "a=false"), ["644 0:0 F", None], "an ARG in --unpack", "o/f", {"t.tar": tar(entry("f", "F"))})
    arg("FROM scratch\nARG a\nCOPY <<E /o\n$a\nE\n", a, b, ["644 0:0 1\n", "644 0:0 2\n"], "an ARG in a heredoc")
    arg("FROM scratch\nARG a\nCOPY <<E /d/$a\nx\nE\n", a, b, ["644 0:0 x\n", None], "an ARG in a destination", "d/1")
    arg("FROM busybox\nARG a\nARG b\nRUN echo \"$a-$b\" > /o\n", ("--build-arg", "a=1\nb=2"), ("--build-arg", "a=1", "--build-arg", "b=2"), ["644 0:0 1\nb=2-\n", "644 0:0 1-2\n"], "an ARG that looks like two")
    arg("FROM busybox\nARG a\nUSER $a\nRUN touch /tmp/o\n", a, b, ["644 1:0 ", "644 2:0 "], "an ARG in USER", "tmp/o")
    arg("FROM busybox\nARG a\nWORKDIR /$a\nRUN pwd > /o\n", a, b, ["644 0:0 /1\n", "644 0:0 /2\n"], "an ARG in WORKDIR")
    differ("contents that look like two files", ("FROM scratch\nCOPY d /x\n", {"d/a": "1d/b\n100644\n2"}, ()), ("FROM scratch\nCOPY d /x\n", {"d/a": "1", "d/b": "2"}, ()), [None, "644 0:0 2"], "x/b")
    differ("names that look like several", ("FROM scratch\nCOPY [\"a b\", \"c\", \"/x/\"]\n", {"a b": "1", "c": "2"}, ()), ("FROM scratch\nCOPY [\"a\", \"b c\", \"/x/\"]\n", {"a": "1", "b c": "2"}, ()), [None, "644 0:0 2"], "x/b c")
    differ("an empty file instead of an empty directory", ("FROM scratch\nCOPY d /x\n", {"d/a/": 0o644, "d/b": ""}, ()), ("FROM scratch\nCOPY d /x\n", {"d/a": "", "d/b": ""}, ()), ["d644 0:0", "644 0:0 "], "x/a")
    differ("a file under another name", ("FROM scratch\nCOPY d /x\n", {"d/a": "b"}, ()), ("FROM scratch\nCOPY d /x\n", {"d/ab": ""}, ()), [None, "644 0:0 "], "x/ab")
    for name, opts, script, want in [("--add-host", ("--add-host", "h%d:1.2.3.%d"), "grep -c 'h2$' /etc/hosts > /o || true", ["644 0:0 0\n", "644 0:0 1\n"]), ("--shm-size", ("--shm-size", "%d%dm"), "df -m /dev/shm | tail -1 | awk '{print $2}' > /o", ["644 0:0 11\n", "644 0:0 22\n"]),
                                     ("--ulimit", ("--ulimit", "nofile=12%d:12%d"), "ulimit -n > /o", ["644 0:0 121\n", "644 0:0 122\n"])]:
        d = "FROM busybox\nRUN " + script
        differ("the option " + name, (d, {}, [o % (1, 1) if "%" in o else o for o in opts]), (d, {}, [o % (2, 2) if "%" in o else o for o in opts]), want)
    stage = "FROM busybox AS a\nRUN mkdir /d && echo x > /d/1 && touch -d '2001-02-03 04:05:06' /d/1 && %s\nFROM scratch\nCOPY --from=a /d /d\n"
    with sk.case("a hard link in a stage that becomes a copy"):
        for how, links in ("ln /d/1 /d/2", {"d/2": "d/1"}), ("cp -p /d/1 /d/2", {}):
            build(sk, stage % how).ok
            eq(result(sk).links, links)
    if sk.subuid:
        differ("an owner in a stage", (stage % "true", {}, ()), (stage % "chown 5:6 /d/1", {}, ()), ["644 0:0 x\n", "644 5:6 x\n"], "d/1")
    with sk.case("extended attributes and capabilities in a stage"):
        sk.file("setx.c", SETX)
        tool("cc", "-static", "-Os", "-o", sk.dir + "/setx", sk.dir + "/setx.c")
        with open(sk.dir + "/setx", "rb") as f:
            setx = {"setx": (f.read(), 0o755)}
        seen = []
        for how in "true", "/setx /d/1 user.k one", "/setx /d/1 user.k two", "/setx /d/1 cap", "mkdir /d/s && /setx /d/s user.k one":
            build(sk, stage.replace("RUN", "COPY setx /\nRUN") % how, files=setx).ok
            i = result(sk)
            seen.append({n: {k: v if k.startswith("user") else len(v) > 0 for k, v in x.items()} for n, x in i.xattrs.items() if x})
        cap = {"d/1": {"security.capability": True}}
        eq(seen[:3] + seen[4:], [{}, {"d/1": {"user.k": "one"}}, {"d/1": {"user.k": "two"}}, {"d/s": {"user.k": "one"}}])
        eq(seen[3], cap)
    with sk.case("above a stage that had to run again nothing is taken from the cache"):
        d = "FROM busybox AS a\nRUN cat /proc/sys/kernel/random/uuid > /u\nFROM a AS b\nRUN cp /u /v\nFROM b\nRUN cat /u /v | uniq | wc -l > /o\n"
        sk("builder prune -f").ok
        build(sk, d, "--target", "a").ok
        first = [n for n in os.listdir(sk.root + "/cache") if n.startswith("build-")]
        build(sk, d).ok
        for n in first:
            os.unlink(sk.root + "/cache/" + n)
        eq(steps(build(sk, d).ok), (0, 3))
        eq(result(sk).tree["o"], "644 0:0 1\n")
    with sk.case("owners do not come back with a name"):
        t = check(sk, "FROM busybox\nCOPY --chown=5:6 d /d\nRUN rm -r /d\nRUN mkdir -p /d/sub && echo new > /d/e && echo new > /d/sub/g\nRUN echo more >> /d/e\n",
                  {"d": "d755 0:0", "d/sub": "d755 0:0", "d/e": "644 0:0 new\nmore\n", "d/sub/g": "644 0:0 new\n", "d/f.txt": None}, files=F)
    with sk.case("files that change while they are copied are nobody's hit later"):
        c = context(sk, {"big": b"old" * 20000000}, "FROM scratch\nCOPY big /\n")
        for i in range(4):
            sk.file(os.path.basename(c) + "/big", b"old" * 20000000)
            p = sk.popen(["build", "-q", "-t", "x", c], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            time.sleep(0.05 * i)
            sk.file(os.path.basename(c) + "/big", b"new" * 20000000)
            p.communicate(timeout=60)
            sk.file(os.path.basename(c) + "/big", b"old" * 20000000)
            sk("build -t t", c).ok
            eq(result(sk).tree["big"], "644 0:0 " + brief(b"old" * 20000000))
            sk("builder prune -f").ok
    with sk.case("bytes that are not UTF-8, in a script and in names of the Dockerfile"):
        for n in b"\xe4", b"\xf6":
            build(sk, b"FROM busybox\nCOPY a.txt /x/" + n + b"\nRUN <<E\n#!/bin/sh\n# gr" + n + b"n\necho ok > /o\nE\n", files=F).ok
            eq([v for k, v in result(sk).tree.items() if k == os.fsdecode(b"x/" + n) or k == "o"], ["644 0:0 A", "644 0:0 ok\n"])
    with sk.case("owners stay with names of any bytes"):
        names = {"a\nb": "1", "\udcff\udcfe": "2", "we\tird ": "3", "-n": "4", "x\\y": "5"}
        t = check(sk, "FROM busybox\nCOPY --chown=5:6 d /d\nRUN cd /d && for f in ./*; do echo z >> \"$f\"; chmod 600 \"$f\"; done\nRUN touch /d/new\n", {"d/new": "644 0:0 "}, files={"d/" + n: v for n, v in names.items()})
        eq({n: t.tree.get("d/" + n) for n in names}, {n: "600 5:6 %sz\n" % v for n, v in names.items()})


@image(None)
def test_bounds(sk):
    """What grows without end from a few lines is refused or ends soon."""
    with sk.case("ENV that doubles"):
        r = build(sk, "FROM scratch\nENV a=xxxxxxxxxxxxxxxx\n" + "ENV a=$a$a\n" * 60, wait=20).exits(1, "longer|too long|too large")
        match(r.err, r"Dockerfile:\d+")
        build(sk, "FROM scratch\nARG a=xxxxxxxxxxxxxxxx\n" + "ARG a=${a:-$a}$a\n" * 60 + "LABEL a=$a\n", wait=20).exits(1, "longer|too long|too large")
        build(sk, "FROM scratch\nENV a=xxxxxxxxxxxxxxxx\n" + "ENV a=${a//x/$a}\n" * 60, wait=20).exits(1, "longer|too long|too large")
    with sk.case("patterns of .dockerignore"):
        deep = "/".join("a" * 30 for _ in range(12)) + "/" + "a" * 100
        for pat in "**/" * 30 + "b", "a*" * 40 + "b", "/".join(["*a*a*a*a*"] * 12) + "/b", ("**/a*/" * 12) + "b", "?" * 100 + "*" * 50 + "b":
            check(sk, "FROM scratch\nCOPY . /o\n", {"o/" + deep: "644 0:0 x"}, files={deep: "x", ".dockerignore": (pat + "\n") * 20}, wait=20)
    with sk.case("patterns in substitutions"):
        labels(sk, "FROM scratch\nENV p=%s\nLABEL a=${p##%s} b=${p%%%%%s} c=${p//%s/x}\n" % ("a" * 5000, "*a" * 30 + "b", "b" + "a*" * 30, "a*" * 10 + "b"), wait=20)
    with sk.case("patterns of COPY"):
        build(sk, "FROM scratch\nCOPY %s /o/\n" % ("a*" * 40 + "b"), files={"a" * 200: "x"}, wait=20).ok
        eq(result(sk).tree, {})
    with sk.case("deep nesting"):
        build(sk, "FROM scratch\nLABEL a=" + "${x:-" * 200 + "y" + "}" * 200 + "\n", wait=20).exits(1, ".")
        build(sk, "FROM scratch\nCMD " + "[" * 100000 + "\n", wait=20)
    with sk.case("many instructions and stages"):
        build(sk, "".join("FROM scratch AS s%d\n" % i for i in range(300)), wait=20).exits(1, "stages")
        build(sk, "FROM scratch\n" + "LABEL a=1\n" * 5000, wait=20).exits(1, "instructions")
        build(sk, "FROM scratch\nCOPY %s /d/\n%s" % (" ".join("<<n%d" % i for i in range(300)), "".join("n%d\n" % i for i in range(300))), wait=20).exits(1, "heredocs")


@timeout(150)
def test_changed_context(sk):
    """A file that changes after it was digested and before it is copied spoils no later build."""
    with sk.case("COPY"):
        c = context(sk, {"a": "x" * 150000000, "z": "first"}, "FROM busybox\nCOPY . /c\nRUN cp /c/z /o\n")
        for i in range(5):
            sk.file(c + "/z", "first%d" % i)
            p = sk.popen(["build", "-q", c], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(0.1 + i * 0.12)
            sk.file(c + "/z", "other%d" % i)
            p.wait(40)
            sk.file(c + "/z", "first%d" % i)
            sk("build -q -t t", c).ok
            sk("run --rm t cat /c/z /o").says("first%d" % i * 2)
    with sk.case("RUN --mount"):
        c = context(sk, {"z": "first"}, "FROM busybox\nRUN --mount=target=/m --mount=type=cache,id=sync,target=/s echo rea''dy; %s cp /m/z /o\nRUN cp /o /p\n" % (WAIT % "[ -e /s/go ]"))
        p = sk.popen(["build", c], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        ready(p, b"ready")
        sk.file(c + "/z", "other")
        build(sk, "FROM busybox\nRUN --mount=type=cache,id=sync,target=/s touch /s/go").ok
        ended(p)
        sk.file(c + "/z", "first")
        sk("build -q -t t", c).ok
        sk("run --rm t cat /o /p").says("firstfirst")
        eq(steps(sk("build", c).ok), (2, 0))
    sk("system check").ok


def test_optional_sources(sk):
    """A pattern may match nothing, as in `COPY package.json yarn.lock* ./`."""
    for text, want in [("COPY a.txt yarn.lock* /o/", {"o": "d755 0:0", "o/a.txt": "644 0:0 A"}), ("COPY no* /o/\nCOPY a.txt /p", {"o": None, "p": "644 0:0 A"}), ("ADD no?.tar d /o/", {"o/e": "644 0:0 E"}),
                       ("COPY --from=busybox /etc/passwd /etc/no* /o/", {"o/passwd": result(sk, "busybox").tree["etc/passwd"]}), ("COPY no* <<E /o/\nx\nE", {"o/E": "644 0:0 x\n"})]:
        with sk.case(text):
            check(sk, "FROM scratch\n" + text, want, files=F)
    with sk.case("one that comes later is no cache hit"):
        c = context(sk, {"a": "A"}, "FROM scratch\nCOPY a b* /\n")
        sk("build", c).ok
        sk.file(c + "/b", "B")
        eq(steps(sk("build -t t", c).ok), (0, 1))
        eq(sorted(result(sk).tree), ["a", "b"])


@image(None)
def test_parents_deep(sk):
    files = {"src/a.txt": "1", "src/x/b.txt": "2", "src/x/y/c.txt": "3", "src/x/y/d.c": "4", "e/f": "5"}
    for text, want in [("./src/**/*.txt", "src/a.txt src/x/b.txt src/x/y/c.txt"), ("src/./**/y", "x/y/c.txt x/y/d.c"), ("**/f src/**/**/d*", "e/f src/x/y/d.c"), ("src/./x/b.txt e/f", "e/f x/b.txt"), ("s*/./**/b.txt", "x/b.txt")]:
        for where in "COPY --parents %s /o/", "COPY . /\nFROM scratch\nCOPY --from=0 --parents %s /o/":
            with sk.case(where.replace("\n", "; ") % text):
                build(sk, "FROM scratch\n" + where % text, files=files).ok
                eq(" ".join(sorted(n[2:] for n, w in result(sk).tree.items() if n.startswith("o/") and w[0] != "d")), want)


@timeout(150)
def test_two_at_once(sk):
    d = "FROM busybox\nCOPY . /c\n" + "".join("RUN echo %d >> /o; head -c 100000 /dev/zero > /z%d\n" % (i, i) for i in range(6))
    for round in range(3):
        c = context(sk, dict({"f%d" % i: "%d-%d" % (round, i) * 1000 for i in range(50)}, **{"Dockerfile": d.replace("echo", "echo %d" % round)}))
        p = [sk.popen(["build", "-q", "-t", "t%d" % i, c], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for i in range(4)]
        ends = [(x.communicate(timeout=60), x.returncode) for x in p]
        for (o, e), code in ends:
            eq(code, 0, "exit code of a build beside three others (%s)" % e.decode()[-300:])
        trees = [result(sk, "t%d" % i).tree for i in range(4)]
        for t in trees:
            eq(t["o"], "644 0:0 " + "".join("%d %d\n" % (round, i) for i in range(6)))
            eq(t["c/f7"], trees[0]["c/f7"])
            eq(len(t), len(trees[0]))
        eq(steps(sk("build -t t", c).ok), (7, 0))
    with sk.case("a build beside prunes and removals"):
        other = [sk.popen(["builder", "prune", "-f"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(3)]
        r = build(sk, d.replace("echo", "echo p"), name="p")
        for x in other:
            x.wait(30)
        r.ok
        sk("run --rm p tail -n1 /o").says("p 5")
    sk("system check").ok
    sk.check_store()


# ---- what must not happen ----

def test_links_never_escape(sk):
    """Neither the context's nor the image's links lead COPY out."""
    outside = sk.file("outside/secret", "host's own")
    mine = os.path.dirname(outside)
    for name, files, text in [
            ("an absolute link, named", {"l -> /etc/passwd": None}, "COPY l /o"),
            ("an absolute link to the test's file", {"l -> " + outside: None}, "COPY l /o"),
            ("a relative link", {"l -> ../outside/secret": None}, "COPY l /o"),
            ("a long relative link", {"l -> " + "../" * 20 + outside.lstrip("/"): None}, "COPY l /o"),
            ("a link to a directory, named", {"l -> ../outside": None}, "COPY l /o"),
            ("a link to a directory, with a slash", {"l -> " + mine: None}, "COPY l/ /o/"),
            ("through a link to a directory", {"l -> " + mine: None}, "COPY l/secret /o"),
            ("through a relative link to a directory", {"l -> ../outside": None}, "COPY l/secret /o"),
            ("through two links", {"m -> ..": None, "l -> m/outside": None}, "COPY l/secret /o"),
            ("by a pattern through a link", {"l -> " + mine: None}, "COPY l/s* /o/"),
            ("by a pattern of links", {"l1 -> " + outside: None}, "COPY l? /o/"),
            ("ADD of a link", {"l -> " + outside: None}, "ADD l /o"),
            ("ADD through a link", {"l -> " + mine: None}, "ADD l/secret /o"),
            ("--parents", {"l -> " + mine: None}, "COPY --parents l/secret /o/"),
            ("..", {}, "COPY ../outside/secret /o"),
            ("a bind mount of a link", {"l -> " + mine: None}, "COPY --from=busybox / /\nRUN --mount=source=l,target=/m cp -r /m /o"),
            ("a bind mount through a link", {"l -> ..": None}, "COPY --from=busybox / /\nRUN --mount=source=l/outside,target=/m cp -r /m /o")]:
        with sk.case(name):
            r = build(sk, "FROM scratch\n" + text, files=files)
            if r.code == 0:
                t = json.dumps(result(sk).tree)
                true("host's own" not in t and "root:" not in t.replace("root:x:0:0:root:/root:/bin/sh", ""), "nothing from outside in %s" % t[:300])
            else:
                r.exits(1, ".")
    with sk.case("links inside a copied tree stay links"):
        check(sk, "FROM scratch\nCOPY d /o", {"o/a": "-> /etc/passwd 0:0", "o/r": "-> ../../outside/secret 0:0"}, files={"d/a -> /etc/passwd": None, "d/r -> ../../outside/secret": None})
    target = sk.folder("target")
    os.chmod(target, 0o777)
    links = "RUN ln -s %s /abs && ln -s %s /rel && ln -s %s/f /file && mkdir /d && ln -s %s /d/in && ln -s /nowhere /dang\n" % (target, "../" * 20 + target.lstrip("/"), target, target)
    for name, text in [("absolute", "COPY f /abs/"), ("relative", "COPY f /rel/"), ("a file's place", "COPY f /file"), ("below a directory", "COPY t /d"), ("deeper", "COPY f /abs/x/y/"),
                       ("an archive", "ADD t.tar /d/"), ("WORKDIR", "WORKDIR /abs/w\nCOPY f ."), ("WORKDIR through a relative one", "WORKDIR /rel/w2\nRUN touch here"), ("dangling", "COPY f /dang/"),
                       ("--from", "COPY --from=busybox /etc/passwd /abs/"), ("a heredoc", "COPY <<f /abs/\nx\nf"), ("an archive with its own link", "ADD evil.tar /"),
                       ("a mount point", "RUN --mount=type=cache,target=/abs/m touch /abs/m/x"), ("a mount point at a link", "RUN --mount=type=tmpfs,target=/abs touch /abs/x")]:
        with sk.case("in the image: " + name):
            r = build(sk, "FROM busybox\n" + links + text, files={
                "f": "data", "t/in/f": "data", "t.tar": tar(entry("in/"), entry("in/f", "x")), "evil.tar": tar(entry("e", link=target), entry("e/f", "x"), entry("h", link=target))})
            eq(os.listdir(target), [], "what came through the link (exit code %d)" % r.code)
    with sk.case("and it lands where the link says inside the image"):
        i = check(sk, "FROM busybox\nRUN mkdir /real && ln -s /real /abs && ln -s ../../../real /rel\nCOPY f /abs/1\nCOPY f /rel/2", {"real/1": "644 0:0 data", "real/2": "644 0:0 data", "abs": "-> /real 0:0"}, files={"f": "data"})
    with sk.case("a device, a fifo or a socket of the context does not hang the build"):
        c = context(sk, {"f": "data"}, "FROM scratch\nCOPY . /o\n")
        os.mkfifo("%s/%s/fifo" % (sk.dir, c))
        r = sk("build -t t", c, wait=20)
        if r.code == 0:
            eq(result(sk).tree.get("o/f"), "644 0:0 data")
    with sk.case("an unreadable file is named"):
        c = context(sk, {"f": ("x", 0)}, "FROM scratch\nCOPY . /o\n")
        if os.getuid():
            sk("build", c).exits(1, r"\bf\b.*denied|denied.*\bf\b")


@timeout(240)
def test_mounts_never_escape(sk):
    """CVE-2024-1753, CVE-2024-23651, CVE-2024-23652: links of a stage as sources, in a cache that another build has, and where a mount was."""
    target = sk.folder("target")
    sk.file("target/secret", "host's own")
    sk.folder("target/m")
    os.chmod(target, 0o777)
    stage = "FROM busybox AS s\nRUN ln -s / /up && ln -s %s /abs && ln -s %s /rel && ln -s /abs/secret /file\nFROM busybox\n" % (target, "../" * 20 + target.lstrip("/"))
    for source in "abs", "rel", "file", "abs/secret", "up" + target:
        for kind in "type=bind", "type=cache,id=%d" % next(N):
            with sk.case("%s of a link of a stage: %s" % (kind, source.replace(sk.dir, ""))):
                r = build(sk, stage + "RUN --mount=%s,from=s,source=%s,target=/n cp -r /n /o" % (kind, source))
                true(r.code == 1 or "host's own" not in json.dumps(result(sk).tree), "nothing of the host")
    with sk.case("a directory of a cache that another build swaps while steps mount below it"):
        c = context(sk, {}, "FROM busybox\nRUN --mount=type=cache,id=c,target=/c cd /c; mkdir -p d; printf rea; echo dy; "
                    "while [ ! -e stop ]; do mv d e; ln -s %s d; rm d; mv e d; done\n" % target)
        p = sk.popen(["build", c], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        ready(p, b"ready")
        for n in range(20):
            build(sk, "FROM busybox\nRUN --mount=type=cache,id=c,target=/c --mount=type=tmpfs,target=/c/d/new%d true" % n)
        build(sk, "FROM busybox\nRUN --mount=type=cache,id=c,target=/c touch /c/stop").ok
        ended(p)
        eq(sorted(os.listdir(target)), ["m", "secret"], "the host's directory")
    with sk.case("a directory of the context that a container swaps while steps bind it"):
        c = context(sk, {"d/f": "x"}, "FROM busybox\nRUN --mount=source=d,target=/m ls /m\n")
        sk.up("swap", "cd /c; while :; do mv d e; ln -s %s d; rm d; mv e d; done" % target, "-v", "%s/%s:/c" % (sk.dir, c))
        for _ in range(120):
            no_match(sk("build --no-cache", c).err, r"[\d.]+ secret$", "what a step sees")
        sk("rm -f swap").ok
    with sk.case("a mount point whose parent the step swaps"):
        build(sk, "FROM busybox\nRUN --mount=type=tmpfs,target=/d/m mv /d /e && ln -s %s /d\nRUN --mount=type=cache,target=/f/m mv /f /g && ln -s %s /f" % (target, target)).ok
        eq((sorted(os.listdir(target)), result(sk).tree["d"]), (["m", "secret"], "-> %s 0:0" % target))


def test_epoch(sk):
    d = ("FROM busybox AS a\nRUN mkdir /d && echo x > /d/f && ln /d/f /d/g && ln -s f /d/l\nFROM busybox\nCOPY . /c\nCOPY --from=a /d /d\nRUN echo y > /y; mkdir -p /m/n; touch -d '2001-01-01 00:00:00' /old\nWORKDIR /w\n"
         "ADD t.tar /t\nENV a=b\nLABEL c=d\nUSER app\n")
    seen, stamps = set(), []
    for i in range(2):
        c = context(sk, dict(F, **{"t.tar": tar(entry("z", "z", mtime=5))}), d)
        os.utime("%s/%s/a.txt" % (sk.dir, c), (1700000000 + i, 1700000000 + i))
        seen.add(sk("build -q --no-cache -t t", c, env={"SOURCE_DATE_EPOCH": "1600000000"}).ok.out)
        img = result(sk)
        stamps.append((img.config["rootfs"]["diff_ids"], img.config["created"], [h["created"] for h in img.config["history"][1:]],
                       max(t for n, t in img.times.items() if not re.match("bin|etc|dev|home|root|proc|sys|tmp", n))))
        time.sleep(1.1)
    with sk.case("the same digests"):
        eq(stamps[0][0], stamps[1][0], "diff_ids")
        eq(len(seen), 1, "ids of two builds")
    with sk.case("times"):
        eq(stamps[0][1][:19], "2020-09-13T12:26:40")
        eq({s[:19] for s in stamps[0][2]}, {"2020-09-13T12:26:40"})
        true(stamps[0][3] <= 1600000000, "no file later than the epoch, got %s" % stamps[0][3])
        eq(img.times["old"] // 86400, 978307200 // 86400, "an older file's time")
    with sk.case("what is written is the same, byte for byte"):
        written = []
        for i in range(2):
            env = {"SKIFF_ROOT": sk.folder("epoch%d" % i), "SOURCE_DATE_EPOCH": "1600000000"}
            sk("load -q -i", lib.ENV["FIXTURE_busybox"], env=env).ok
            kinds = "type=oci", "type=docker", "type=tar", "type=oci,compression=zstd,compression-level=7,force-compression=true", "type=oci,compression=gzip,force-compression=true"
            sk(["build", "-q", "--no-cache", *[x for n, k in enumerate(kinds) for x in ("-o", "%s,dest=%s/w%d" % (k, sk.dir, n))], c], env=env).ok
            sk(["build", "-q", "--squash", "-o", "type=oci,dest=%s/w%d" % (sk.dir, len(kinds)), c], env=env).ok
            written.append([lib.digest(open("%s/w%d" % (sk.dir, n), "rb").read()) for n in range(len(kinds) + 1)])
            time.sleep(1.1)
        eq(*written)
    with sk.case("as a build argument, which goes before"):
        sk("build -q --no-cache -t t --build-arg SOURCE_DATE_EPOCH=1400000000", c, env={"SOURCE_DATE_EPOCH": "1600000000"}).ok
        eq(result(sk).config["created"][:19], "2014-05-13T16:53:20")
    with sk.case("another epoch is another image"):
        true(sk("build -q --no-cache", c, env={"SOURCE_DATE_EPOCH": "1500000000"}).ok.out not in seen, "another id")
    with sk.case("an epoch that is no number"):
        sk("build -q", c, env={"SOURCE_DATE_EPOCH": "x"}).exits(1, "SOURCE_DATE_EPOCH")


@only("fg")
@timeout(150)
def test_epoch_rungs(sk):
    """One image, whatever the rung (plain copies aside, which see no directory that was made again)."""
    files = dict(F, **{"t.tar": tar(entry("z", "z", mtime=5))})
    c = context(sk, files, "FROM busybox AS a\nRUN mkdir -p /z/b && echo 1 > /z/1 && ln /z/1 /z/2 && ln -s 1 /z/l && mkfifo /z/p && rm -r /home && mkdir /home && echo x > /home/x\nFROM busybox\nCOPY . /c\nCOPY --from=a /z /z\n"
                           "RUN rm /c/a.txt && echo new > /c/a.txt && mv /z/b /z/bb && mv /c/d /z/d\nADD t.tar /t\nWORKDIR /w/x\nRUN --mount=type=cache,target=/q echo 2 > rel\nUSER app\nRUN echo m > /tmp/m\n")
    ids = {}
    for driver in "overlay", "overlay-fuse", "fuse":
        env = {"SKIFF_ROOT": sk.folder("e-" + driver), "SKIFF_STORAGE_DRIVER": driver, "SOURCE_DATE_EPOCH": "1600000000"}
        sk("load -q -i", lib.ENV["FIXTURE_busybox"], env=env).ok
        ids[driver] = [sk("build -q", *words, c, env=env).ok.out for words in ([], ["--no-cache", "--squash"])]
    eq(len({tuple(x) for x in ids.values()}), 1, "ids by rung: %s" % ids)


@timeout(150)
def test_kill(sk):
    """kill -9 at many moments: the store is sound, the next build is right, nothing half-done is taken for done."""
    d = "FROM busybox\n" + "".join("COPY f%d /\nRUN echo %d >> /o; head -c 300000 /dev/urandom > /r%d\n" % (i, i, i) for i in range(4)) + "ADD t.tar /t\n"
    c = context(sk, dict({"f%d" % i: str(i) * 300000 for i in range(4)}, **{"t.tar": tar(entry("x", "x" * 500000))}), d)
    want = None
    began = time.monotonic()
    sk("build -q -t whole", c).ok
    whole = time.monotonic() - began
    for i in range(8):
        sk("builder prune -f").ok
        p = sk.popen(["build", "-t", "t", c], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(whole * (i + 0.5) / 8)
        p.kill()
        p.wait()
        with sk.case("killed at %d of 8" % i):
            r = sk("system check")
            r.prints(r"\b0 (fault|error|problem)s?|no faults|ok")
            sk("build -t t", c).ok
            t = result(sk).tree
            eq([t["o"], len(t["f3"]), t["t/x"][:8]], ["644 0:0 0\n1\n2\n3\n", len(t["f0"]), "644 0:0 "])
            want = want or sorted(t)
            eq(sorted(t), want)
    with sk.case("nothing of the killed ones stays"):
        sk("system prune -f").ok
        sk("build -q -t t", c).ok
        eq(os.listdir(sk.root + "/containers"), [])
        eq(os.listdir(sk.root + "/tmp"), [])
        eq([n for _, n in sk.processes()], [])
    sk("system check").ok
    sk.check_store()


RUNGS = """FROM busybox AS one
RUN echo one > /one && mkdir -p /dir/sub && echo f > /dir/file && ln /dir/file /dir/link && echo more >> /dir/link && ln -s link /dir/sym && mkfifo /dir/p
COPY --chown=1000:1000 a /dir/a
RUN cat /dir/a && rm /one && stat -c '%h %n' /dir/file > /dir/count
WORKDIR /w/x
ADD t.tar /t/
RUN mv /t/in /t/out && rm -rf /dir/sub && mkdir /dir/sub && echo new > /dir/sub/n && chmod 750 /dir
COPY --chmod=600 a /dir/sub/
RUN ls /dir/sub && touch /dir/sub/m && mv /dir/sub /dir/sub2
FROM busybox
COPY --from=one /dir /copied
RUN --mount=type=bind,from=one,source=/dir,target=/m cp /m/file /of-one && rm -r /home && mkdir /home && echo x > /home/y
"""


@only("abfg")
@timeout(240)
def test_rungs(sk):
    """The same image on each rung, also where steps are cached by another one."""
    files = {"a": "A", "t.tar": tar(entry("in", "in"))}
    trees = {}
    for driver in ["overlay", "copy"] + (["overlay-fuse", "fuse"] if sk.who in "fg" else []):
        with sk.case(driver):
            c = context(sk, files, RUNGS)
            sk("--storage-driver %s build --no-cache -t" % driver, driver, c).ok
            i = result(sk, driver)
            trees[driver] = i.tree
            for path, want in [("copied/file", "644 0:0 f\nmore\n"), ("copied/link", "644 0:0 f\nmore\n"), ("copied/sym", "-> link 0:0"),
                               ("copied/count", "644 0:0 2 /dir/file\n"), ("copied/sub2/n", "644 0:0 new\n"), ("copied/sub2/a", "600 0:0 A"), ("copied/sub", None),
                               ("of-one", "644 0:0 f\nmore\n"), ("home/y", "644 0:0 x\n"), ("one", None)]:
                eq(i.tree.get(path), want, path)
            eq(i.tree["copied/a"].split()[1:], ["1000:1000", "A"], "copied/a, given to 1000")
            sk("--storage-driver %s run --rm" % driver, driver, "cat", "/copied/link").says("f\nmore")
            differ = {p: (i.tree.get(p), trees["overlay"].get(p)) for p in set(i.tree) | set(trees["overlay"]) if i.tree.get(p) != trees["overlay"].get(p)}
            eq(differ, {}, "what is not as on overlay")
    for driver in list(trees)[1:]:
        with sk.case(driver + " goes on from the cache of the others"):
            c = context(sk, files, RUNGS + "RUN cat /home/y /copied/count > /%s\n" % driver)
            r = sk("--storage-driver %s build -t more" % driver, c).ok
            true(steps(r)[0] >= 8, "all older steps cached, got %s" % (steps(r),))
            eq(result(sk, "more").tree[driver], "644 0:0 x\n2 /dir/file\n")
    sk("system check").ok
    sk.check_store()


@only("root")
@image(None)
@timeout(180)
def test_full_disk(sk):
    """A store that is full says so; with room the same build is right."""
    for mb in 4, 8, 16:
        with sk.case("%d MB" % mb):
            disk = sk.folder("disk")
            tool("mount", "-t", "tmpfs", "-o", "size=%dm,mode=700,uid=%d,gid=%d" % (mb, *sk.user), "tmpfs", disk)
            try:
                sk.root = sk.env["SKIFF_ROOT"] = disk + "/root"
                d = "FROM busybox\nCOPY f /\nRUN head -c 8000000 /f > /g\n"
                c = context(sk, {"f": os.urandom(12000000)}, d)
                if sk("load -q -i", lib.ENV["FIXTURE_busybox"]).code == 0:
                    sk("build -q -t t", c).exits(1, "no space|write error|failed|exit code")
                    sk("system check").ok
                    eq(os.listdir(sk.root + "/containers"), [])
                tool("mount", "-o", "remount,size=200m", disk)
                sk("load -q -i", lib.ENV["FIXTURE_busybox"]).ok
                sk("build -q -t t", c).ok
                match(result(sk).tree["g"], "^644 0:0 sha256:")
                sk.check_store()
            finally:
                for p, _ in sk.processes():
                    lib.kill(p)
                tool("umount", "-l", disk)


def test_interrupt(sk):
    c = context(sk, {}, "FROM busybox\nRUN echo started; sleep 1000\n")
    p = sk.popen(["build", c], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while b"started" not in p.stderr.readline():
        pass
    p.send_signal(2)
    p.communicate(timeout=20)
    true(p.returncode != 0, "an interrupted build to fail")
    lib.until(lambda: not [n for _, n in sk.processes() if n == "sleep"], "the step's process ends")
    sk("system check").ok
    sk("build -q -t t -", input="FROM busybox\nRUN echo x > /o\n").ok
    eq(os.listdir(sk.root + "/containers"), [])


def test_vanishing_file(sk):
    """The context changes while it is read: an error or one of the states, never a broken image."""
    c = context(sk, {"d/f%d" % i: "x" * 20000 for i in range(300)}, "FROM scratch\nCOPY d /d\n")
    p = sk.popen(["build", "-t", "t", c], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for i in range(299, 0, -3):
        os.unlink("%s/%s/d/f%d" % (sk.dir, c, i))
    o, e = p.communicate(timeout=40)
    if p.returncode:
        match(e.decode(), "vanished|No such file|not found|changed")
    sk("build -q -t t", c).ok
    eq(len([n for n in result(sk).tree if n.startswith("d/")]), 200)
    sk("system check").ok


def test_changing_file(sk):
    """A file that grows or shrinks while it is read: one of its states or an error."""
    c = context(sk, {"f": "x" * 30000000}, "FROM scratch\nCOPY . /c\n")
    for name, step in ("grows", lambda f, i: f.write(b"y" * 300000)), ("shrinks", lambda f, i: f.truncate(29000000 - i * 200000)):
        with sk.case(name):
            p = sk.popen(["build", "--no-cache", "-q", "-t", "t", c], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            with open("%s/%s/f" % (sk.dir, c), "r+b") as f:
                f.seek(0, 2)
                for i in range(100):
                    step(f, i)
                    f.flush()
            o, e = p.communicate(timeout=40)
            if p.returncode:
                match(e.decode(), "shorter|changed")
            sk("build -q --no-cache -t t", c).ok
            with open("%s/%s/f" % (sk.dir, c), "rb") as f:
                eq(result(sk).tree["c/f"], "644 0:0 " + lib.digest(f.read()))
            sk("system check").ok


@image(None)
def test_kill_between_steps(sk):
    """kill -9 where a build waits for others: its input, a server, who reads its output, a registry."""
    stop = threading.Event()

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(me):
            me.send_response(200)
            me.send_header("Content-Length", "1000000")
            me.end_headers()
            me.wfile.write(b"part")
            waiting.set()
            stop.wait(60)

        def log_message(self, *args):
            pass
    waiting = threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = "http://127.0.0.1:%d/f" % server.server_port
    big = context(sk, {"f": os.urandom(3000000)}, "FROM scratch\nCOPY f /f\n")
    half = tar(entry("Dockerfile", "FROM scratch\nCOPY f /f\n"), entry("f", "x" * 2000000))[:1000000]
    for name, argv, ready in [("its context from a pipe", ["build", "-"], lambda p: p.stdin.write(half)), ("ADD of an address", ["build", "-"], lambda p: (p.stdin.write(b"FROM scratch\nADD %s /f\n" % url.encode()), p.stdin.close(), waiting.wait(30))),
                              ("its context from an address", ["build", url], lambda p: waiting.wait(30)), ("its output", ["build", "-q", "-o", "-", big], lambda p: p.stdout.read(1000))]:
        with sk.case(name):
            waiting.clear()
            p = sk.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
            ready(p)
            p.kill()
            p.wait(20)
            for f in p.stdin, p.stdout:
                f.close()
            lib.until(lambda: not sk.processes(), "all of a killed build ends")
            sk("system check").ok
            check(sk, "FROM scratch\nCOPY a.txt /f\n", {"f": "644 0:0 A"}, files=F)
            sk("system prune -f").ok
            eq(os.listdir(sk.root + "/tmp"), [])
    stop.set()
    server.shutdown()
    sk.check_store()


# ---- beside another builder ----

TAR = tar(entry("in/"), entry("in/f", "F", mode=0o640, uid=3, gid=4), entry("in/l", link="f"))
SAME = [  # name, Dockerfile, options
    ("files", "FROM busybox\nCOPY a.txt /o\nCOPY a.txt b.txt c.md /p/q/\nCOPY d /r\nCOPY d/sub/ /s/\nCOPY *.txt x.s? /t/\nCOPY top /u\nCOPY dlink /v\nCOPY [\"sp ace/q r\", \"/w x/\"]\nCOPY . /all\n", []),
    ("owners and modes", "FROM busybox\nCOPY --chown=5:6 a.txt /o/p/q\nCOPY --chown=app d /r\nCOPY --chown=app:wheel --chmod=640 a.txt /s\nCOPY --chown=7 a.txt /t\nCOPY --chmod=4711 x.sh /u\n"
     "RUN mkdir -m 700 /old\nCOPY --chown=1:2 d /old\n", []),
    ("archives", "FROM busybox\nADD t.tar /o/\nADD t.tar.gz /p\nADD a.txt t.tar /q/\nCOPY t.tar.gz /r/\nADD d /s\n", []),
    ("links in the way", "FROM busybox\nRUN mkdir /real && ln -s real /sym && ln -s /real/f /file && echo old > /real/f\nCOPY a.txt /sym/\nCOPY d /sym\nCOPY b.txt /sym/sub/deep/\nWORKDIR /sym/w\nCOPY a.txt .\n", []),
    ("RUN", "FROM busybox\nRUN mkdir -p /d/e && cd /d && echo x > f && ln f g && ln -s f l && mkfifo p && chmod 4755 f && mkdir -m 1777 t && chmod 2755 e\nRUN rm /d/g /etc/group && rm -r /home && echo y >> /d/f\n"
     "RUN mv /d/e /e && rm -r /d/t && mkdir /d/t && echo z > /d/t/z\nRUN rm -rf /d && mkdir /d && echo w > /d/w\n", []),
    ("owners by RUN [a]", "FROM busybox\nRUN touch /1 /2 && chown app /1 && chown nobody:wheel /2 && mkdir -p /d/e && chown -R 7:8 /d && chmod 6755 /2\nUSER app\nRUN touch /tmp/mine && mkdir /tmp/d\n", []),
    ("configuration", "FROM busybox\nENV a=1 b=\"2 3\" PATH=/x:$PATH\nENV c $a  d\nLABEL l=1 \"m n\"='o $a' p=$b\nEXPOSE 80 53/udp\nVOLUME /v /w\nVOLUME [\"/x y\"]\nUSER app:wheel\n"
     "CMD [\"x\", \"y z\"]\nENTRYPOINT [\"e\"]\nSTOPSIGNAL SIGQUIT\nHEALTHCHECK --interval=5s --timeout=1m --retries=2 --start-period=3s CMD echo $a\nMAINTAINER me\nONBUILD RUN echo x\nSHELL [\"/bin/sh\", \"-ec\"]\n", []),
    ("shell forms", "FROM busybox\nENV a=1\nWORKDIR /a\nWORKDIR b\nCMD echo $a  \"b\" \\\n  c\nENTRYPOINT exec top -b\nHEALTHCHECK NONE\n", []),
    ("ENTRYPOINT resets CMD", "FROM busybox\nENTRYPOINT [\"x\"]\n", []),
    ("ARG", "ARG base=busybox\nARG g=glob\nFROM ${base} AS x\nARG g\nARG a=1 \nARG b\nENV e=${a:-n} f=${b:+set} h=${zz:-dflt} i=$g j=\\$a k='$a' l=\"$a\"\nRUN echo $a $b $g $e > /o\nLABEL v=$a$b\n", ["--build-arg", "a=9", "--build-arg", "b=bee"]),
    ("stages", "FROM busybox AS one\nRUN mkdir /d && ln -s 1 /d/l\nCOPY --chown=5:6 --chmod=4755 a.txt /d/1\nWORKDIR /wd\nENV q=1\nFROM one AS two\nRUN echo 2 > /d/2; pwd > /d/pwd\nFROM scratch\nCOPY --from=one /d /one\n"
     "COPY --from=1 /d/2 /d/pwd /two/\nCOPY --from=busybox /etc/passwd /pw\nCOPY --from=two --chown=1:2 /d/ /three/\nENV r=2\n", []),
    (".dockerignore", "FROM busybox\nCOPY . /all\nCOPY d /d2\n", []),
    ("mounts", "FROM busybox AS a\nRUN echo s > /s\nFROM busybox\nRUN --mount=type=bind,source=d,target=/m --mount=type=tmpfs,target=/n --mount=type=cache,target=/c cat /m/e > /o && touch /n/x /c/y\nRUN ls /c /m /n > /p 2>&1 || true\n", []),
    ("USER, WORKDIR", "FROM busybox\nWORKDIR /r/s\nUSER app\nWORKDIR /t/u\nRUN id -u > /tmp/i; pwd >> /tmp/i\nUSER 0\nWORKDIR rel\nRUN pwd > /q\n", []),
]
KEYS = "Env Cmd Entrypoint WorkingDir User Labels ExposedPorts Volumes StopSignal Healthcheck OnBuild Shell".split()
OWN = {"etc/hostname", "etc/hosts", "etc/resolv.conf", "dev", "proc", "sys", "run"}  # mount points that a builder leaves in the image


def described(i):
    c = {k: i.config["config"].get(k) or None for k in KEYS}
    c["Env"] = sorted(c["Env"] or [])  # a variable that is set again moves to the end there, in Docker it stays
    c["WorkingDir"] = c["WorkingDir"] if c["WorkingDir"] != "/" else None
    c["Labels"] = {k: v for k, v in (c["Labels"] or {}).items() if not k.startswith("io.buildah")}
    tree = {k: v for k, v in i.tree.items() if k not in OWN}
    return c, tree


@only("root")
@image(None)
@timeout(180)
def test_same_as_buildah(sk):
    """The tree and the configuration, from the same Dockerfile and context, on either kind of user."""
    base = ["buildah", "--root", sk.folder("storage"), "--runroot", sk.folder("runroot"), "--storage-driver", "vfs"]
    env = dict(os.environ, HOME=sk.dir, TMPDIR=sk.folder("btmp"))
    tool(*base, "tag", tool(*base, "pull", "-q", "docker-archive:" + lib.ENV["FIXTURE_busybox"], env=env).decode().strip(), "localhost/busybox", env=env)
    users = {}
    for letter in "ab":
        account = pwd.getpwnam("skiff" + letter)
        home = sk.folder(letter)
        users[letter] = Skiff(home, letter, (account.pw_uid, account.pw_gid))
        tool("chown", "-R", "%d:%d" % (account.pw_uid, account.pw_gid), home)
        os.chmod(home, 0o700)
        users[letter]("load -q -i", lib.ENV["FIXTURE_busybox"]).ok
    for name, text, options in SAME:
        files = {k: v for k, v in F.items() if not k.startswith("we[")}
        files.update({"t.tar": TAR, "t.tar.gz": gzip.compress(TAR)})
        if name == ".dockerignore":
            files[name] = "*.txt\n**/sub\n!d/f.txt\n!b.txt\n.dockerignore\n"
        layers = ["--layers"] if name == "configuration" else []
        out = "%s/b%d.tar" % (sk.dir, next(N))
        tool(*base, "bud", "--isolation", "chroot", "--format", "docker", *layers, *options, "-t", "t", context(sk, files, text), env=env, cwd=sk.dir)
        tool(*base, "push", "-q", "t", "docker-archive:%s:t:latest" % out, env=env)
        with open(out, "rb") as f:
            theirs = Image(f.read())
        os.unlink(out)
        for letter, user in users.items():
            if name.endswith("[a]") and letter != "a":
                continue
            with sk.case("%s, skiff%s" % (name, letter)):
                build(user, text, *options, files=files).ok
                ours = result(user)
                (c1, t1), (c2, t2) = described(theirs), described(ours)
                for k in KEYS:
                    eq(c2[k], c1[k], k)
                bad = ["%s: theirs %r, ours %r" % (k, t1.get(k), t2.get(k)) for k in sorted(set(t1) | set(t2)) if t1.get(k) != t2.get(k)]
                true(not bad, "the same tree; " + "; ".join(bad)[:900])
                eq(len(ours.config["history"]), len(theirs.config["history"]), "history")
                if layers:
                    empty = lambda i: [h.get("empty_layer", False) for h in i.config["history"] if "WORKDIR" not in h["created_by"]]
                    eq(empty(ours), empty(theirs), "empty_layer")
                eq((ours.config["architecture"], ours.config["os"]), (theirs.config["architecture"], theirs.config["os"]))
                eq(sum(not h.get("empty_layer", False) for h in ours.config["history"]), len(ours.config["rootfs"]["diff_ids"]), "layers and history entries that have one")


def test_others_read_it(sk):
    """What skiff built, in the eyes of skopeo and umoci."""
    build(sk, "FROM busybox\nCOPY --chown=5:6 d /o\nRUN echo x > /x && rm /etc/group\nENV a=1\nUSER app\nEXPOSE 80\nHEALTHCHECK CMD x\nCMD [\"y\"]\n", files=F).ok
    sk("save -o", sk.dir + "/s.tar", "t").ok
    c = json.loads(tool("skopeo", "inspect", "--config", "docker-archive:%s/s.tar" % sk.dir, env=sk.env))
    eq((c["config"]["Env"][-1], c["config"]["User"], c["config"]["Cmd"], c["config"]["ExposedPorts"]), ("a=1", "app", ["y"], {"80/tcp": {}}))
    tool("skopeo", "copy", "-q", "docker-archive:%s/s.tar" % sk.dir, "oci:%s/oci:t" % sk.dir, env=sk.env)
    tool("umoci", "unpack", "--rootless", "--image", sk.dir + "/oci:t", sk.dir + "/bundle", env=sk.env)
    root = sk.dir + "/bundle/rootfs/"
    eq((open(root + "x").read(), open(root + "o/sub/g").read(), os.path.exists(root + "etc/group"), os.readlink(root + "o/link")), ("x\n", "G", False, "e"))


@image("debian")
@timeout(200)
def test_debian(sk):
    """A package with users, owners and scripts, installed by RUN; kept in two stages with a cache mount."""
    package(sk)
    with open(sk.dir + "/debs/probe.deb", "rb") as f:
        files = {"probe.deb": f.read(), "app.sh": ("#!/bin/sh\nid -un\n", 0o755)}
    build(sk, "FROM debian AS base\nENV DEBIAN_FRONTEND=noninteractive\nCOPY probe.deb /tmp/\n"
              "RUN --mount=type=cache,target=/var/cache/apt apt-get install -y --no-install-recommends /tmp/probe.deb && rm /tmp/probe.deb\n"
              "RUN useradd -m -u 1234 app && dpkg -s skiff-probe | grep -q 'ok installed'\n"
              "FROM base\nCOPY --chown=app --chmod=755 app.sh /home/app/\nUSER app\nWORKDIR /home/app\nCMD [\"./app.sh\"]\n", files=files, wait=150).ok
    sk("run --rm t", wait=60).says("app")
    t = result(sk).tree
    eq(t["home/app/app.sh"].split()[:2], ["755", "1234:1234"])
    match(t["etc/passwd"] if "probe" in t["etc/passwd"] else sk("run --rm t cat /etc/passwd").ok.out, "(?m)^probe:x:")
    eq("tmp/probe.deb" in t, False)


# ---- whole programs ----

APT = ("RUN --mount=type=cache,target=/var/lib/apt/lists,sharing=locked --mount=type=cache,target=/var/cache/apt,sharing=locked \\\n"
       "    apt-get update && apt-get install -y --no-install-recommends %s\n")
REAL = {}  # name: (Dockerfile, files)
REAL["web"] = ("""FROM debian AS base
ARG DEBIAN_FRONTEND=noninteractive
""" + APT % "python3-flask gunicorn" + """RUN useradd --system --create-home web

FROM base AS check
WORKDIR /app
COPY app.py .
RUN python3 -m py_compile app.py && python3 -c 'import app; print("checked", app.app.test_client().get("/").data.decode())'

FROM base
WORKDIR /app
COPY --chown=web:web app.py ./
COPY --from=check /app/__pycache__ ./__pycache__
ENV PYTHONUNBUFFERED=1 GREETING="hello world" PORT=8000
USER web
EXPOSE 8000
HEALTHCHECK --interval=1s --start-period=20s CMD python3 -c "import os, urllib.request as u; u.urlopen('http://127.0.0.1:%s/' % os.environ['PORT'])"
CMD exec gunicorn --workers 2 --access-logfile - --bind "127.0.0.1:$PORT" app:app
""", {"app.py": """import os, pwd
from flask import Flask, jsonify
app = Flask(__name__)
@app.route("/")
def top(): return os.environ.get("GREETING", "nothing")
@app.route("/me")
def me(): return jsonify(user=pwd.getpwuid(os.getuid()).pw_name, dir=os.getcwd(), cached=os.listdir("__pycache__") != [])
"""})
REAL["c"] = ("""# syntax=docker/dockerfile:1
FROM debian AS build
""" + APT % "gcc libc6-dev make" + """WORKDIR /src
COPY Makefile .
COPY src src
RUN --mount=type=cache,target=/src/obj make && install -D -m 755 server /out/server

FROM scratch
COPY --from=build /out/server /server
USER 65534:65534
EXPOSE 8000/tcp
STOPSIGNAL SIGTERM
ENTRYPOINT ["/server"]
CMD ["8000"]
""", {"Makefile": "OBJ = obj/main.o obj/answer.o\nserver: $(OBJ)\n\tgcc -static -o $@ $(OBJ)\nobj/%.o: src/%.c\n\tgcc -O2 -c -o $@ $<\n",
      "src/answer.c": "const char *answer(void) { return \"first\"; }\n",
      "src/main.c": """#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
const char *answer(void);
static void end(int signal) { _exit(0); }
int main(int n, char **v) {
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(atoi(v[n - 1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int s = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    signal(SIGTERM, end);
    if (bind(s, (struct sockaddr *)&a, sizeof a) || listen(s, 5)) return perror("bind"), 1;
    for (;;) {
        int c = accept(s, NULL, NULL);
        char in[4096];
        if (read(c, in, sizeof in) > 0) dprintf(c, "HTTP/1.0 200 OK\\r\\n\\r\\n%s %d", answer(), getuid());
        close(c);
    }
}
"""})
REAL["nginx"] = ("""FROM debian
ARG DEBIAN_FRONTEND=noninteractive
""" + APT % "nginx-light" + """RUN ln -sf /dev/stdout /var/log/nginx/access.log && ln -sf /dev/stderr /var/log/nginx/error.log && rm /etc/nginx/sites-enabled/default
COPY --chmod=644 site.conf /etc/nginx/conf.d/
ARG PORT=80
RUN sed -i "s/@PORT@/$PORT/" /etc/nginx/conf.d/site.conf && nginx -t
COPY --chown=www-data:www-data html /srv/html
EXPOSE $PORT
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
""", {"site.conf": ("server { listen 127.0.0.1:@PORT@; root /srv/html; location / { try_files $uri $uri/ =404; } }\n", 0o600),
      "html/index.html": "<h1>served</h1>\n", "html/d/x.txt": "below\n"})
REAL["postgres"] = ("""FROM debian
ARG DEBIAN_FRONTEND=noninteractive
""" + APT % "postgresql" + """ENV PGDATA=/data/pg PATH=/pgbin:$PATH
RUN ln -s /usr/lib/postgresql/*/bin /pgbin && mkdir -p /var/run/postgresql && chown postgres:postgres /var/run/postgresql && chmod 3777 /var/run/postgresql \\
    && install -d -o postgres -g postgres -m 700 /data
COPY --chmod=755 <<'E' /entry.sh
#!/bin/sh
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb -A trust -E UTF8 >/dev/null
    pg_ctl -w -o "-c listen_addresses=" start >/dev/null
    for f in /init.d/*.sql; do psql -qf "$f"; done
    pg_ctl -w stop >/dev/null
fi
exec "$@"
E
COPY --chown=postgres:postgres init.d /init.d
VOLUME /data
USER postgres
EXPOSE 5432
ENTRYPOINT ["/entry.sh"]
CMD ["postgres", "-c", "listen_addresses=127.0.0.1"]
""", {"init.d/1.sql": "create table t (a int, b text);\n", "init.d/2.sql": "insert into t select n, 'row ' || n from generate_series(1, 1000) n;\n"})


def real_c(sk, make, talk, place, port):
    with sk.case("a C program in two stages, whose objects are in a cache"):
        made = lambda r: sorted(re.findall(r"^#.* gcc -O2 -c -o obj/(\w+)\.o", r.err, re.M))
        compiled = [made(make("c"))]
        time.sleep(1.1)  # make(1) goes by times, of which layers keep whole seconds
        sk.file(place + "/src/answer.c", "const char *answer(void) { return \"second\"; }\n")
        compiled.append(made(make("c")))
        eq(compiled, [["answer", "main"], ["answer"]])
        i = result(sk, "c")
        eq((sorted(i.tree), len(i.layers)), (["server"], 1))
        sk("run -d --name server c %d" % port).ok
        eq(talk("server"), "second 65534")
        sk("stop server").ok
        eq(sk.get("server", "{{.State.ExitCode}}"), "0")


def real_nginx(sk, make, talk, ports, port):
    with sk.case("nginx with its configuration"):
        make("nginx", *ports)
        eq(list(config(sk, "nginx")["ExposedPorts"]), ["%d/tcp" % port])
        sk("run -d --name nginx nginx").ok
        eq((talk("nginx"), talk("nginx", "/d/x.txt")), ("<h1>served</h1>\n", "below\n"))
        lib.until(lambda: "GET /d/x.txt" in sk("logs nginx").out, "the access log is in the logs")
        sk("stop nginx").ok
        eq(sk.get("nginx", "{{.State.ExitCode}}"), "0")


@image(None)
@timeout(240)
def test_real_dockerfiles(sk):
    """Dockerfiles as people write them, from Debian's packages; then the programs run and are talked to."""
    sk("pull -q", lib.ENV["REGISTRY_HTTP"] + "/debian", wait=60).ok
    sk("tag", lib.ENV["REGISTRY_HTTP"] + "/debian", "debian").ok
    proxy = tool("sh", "-c", "eval \"$(apt-config shell p Acquire::http::Proxy)\"; printf %s \"$p\"").decode()
    given = ["--build-arg", "http_proxy=" + proxy] if proxy else []
    places = {name: context(sk, files, text) for name, (text, files) in REAL.items()}
    port = free_port()
    ports = ["--build-arg", "PORT=%d" % port]
    make = lambda name, *options: sk(["build", "-t", name, *given, *options, places[name]], wait=110).ok

    def talk(name, path="/"):
        return lib.until(lambda: fetch("http://127.0.0.1:%d%s" % (port, path)), "%s answers; it says %s" % (name, lib.short(sk("logs", name).err)))
    with sk.case("a Python web application"):
        match(make("web").err, "checked nothing")
        sk("run -d --name web -e PORT=%d web" % port).ok
        eq(talk("web"), "hello world")
        eq(json.loads(talk("web", "/me")), {"user": "web", "dir": "/app", "cached": True})
        sk.becomes("web", "{{.State.Health.Status}}", "healthy")
        sk("stop web").ok
        eq(sk.get("web", "{{.State.ExitCode}}"), "0")
    names = list(REAL) if sk.subuid else ["web", "postgres"]  # with one id the others are no different
    if sk.subuid:
        real_c(sk, make, talk, places["c"], port)
        real_nginx(sk, make, talk, ports, port)
    with sk.case("PostgreSQL with its entry script"):
        make("postgres")
        sk("run --rm --entrypoint stat postgres -c", "%U:%G %a", "/data").says("postgres:postgres 700")
        sk("run -d --name postgres postgres postgres -c listen_addresses=127.0.0.1 -c port=%d" % port).ok
        query = lambda sql: sk("exec postgres psql -h 127.0.0.1 -p %d -tAc" % port, sql).out
        lib.until(lambda: query("select count(*) || max(b) from t") or sk.status("postgres") != "running", "the tables of its scripts are there")
        eq(query("select count(*) || max(b) from t"), "1000row 999", "logs: " + lib.short(sk("logs postgres").err))
        sk("stop postgres").ok
        eq(sk.get("postgres", "{{.State.ExitCode}}"), "0")
        sk("start postgres").ok
        lib.until(lambda: query("select count(*) from t") == "1000", "the data is there again")
        sk("rm -f postgres").ok
    with sk.case("again: all is cached"):
        for name in names:
            eq(steps(make(name, *ports))[1], 0, name)
    sk.check_store()
