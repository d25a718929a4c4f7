"""runtime.c's own rules: its order is its architecture. What fails prints the line to look at."""
import os
import re

from lib import eq, true

WHO = "b"
SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "runtime.c")


def test_tidy(sk):
    lines = open(SOURCE).read().split("\n")
    opened, closed, prototypes = [], [], []
    for n, line in enumerate(lines, 1):
        m = re.match(r"/\* \{==== (\d+) (\w+): ", line)
        if m:
            opened.append((int(m.group(1)), m.group(2)))
        m = re.match(r"/\* \}==== (\d+) (\w+) \*/$", line)
        if m:
            closed.append((int(m.group(1)), m.group(2)))
        if re.match(r"static [^=({]*\([^{]*\);$", line):
            prototypes.append(n)
    contents = [(int(a), b) for a, b in re.findall(r"^ \* {2,}(\d+) (\w+) {2,}\S", "\n".join(lines[:110]), re.M)]
    with sk.case("banners open and close, in order"):
        eq(opened, closed)
        eq([n for n, _ in opened], list(range(1, len(opened) + 1)))
    with sk.case("the table of contents is true"):
        eq(contents, opened)
    with sk.case("no line is longer than 100 characters, none has tabs or trailing space"):
        bad = [n for n, x in enumerate(lines, 1) if len(x) > 100 or "\t" in x or x != x.rstrip()]
        eq(bad, [])
    with sk.case("a prototype only for mutual recursion inside a part, and it says so"):
        for n in prototypes:
            true("utual recursion" in "\n".join(lines[max(0, n - 6):n]), "a reason above line %d: %s" % (n, lines[n - 1]))
    with sk.case("nothing is left to do, no call that is banned"):
        for n, x in enumerate(lines, 1):
            m = re.search(r"\b(TODO|FIXME|XXX)\b|(?<![\w.>])(system|popen|gets|tmpnam|mktemp|alloca)\(", x)
            true(not m, "line %d: %s" % (n, x.strip()))
