"""What a hostile container, image or neighbour tries."""
import bz2
import ctypes
import gzip
import json
import lzma
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import tarfile

import lib
from lib import Failed, Skipped, docker_archive, entry, eq, image, match, no_match, only, tar, timeout, true, until

WHO = "ab"
DEFAULT_CAPS = "00000000a80425fb"


def compiled(sk, source):
    """A static program try/t below the test's folder; the folder."""
    sk.file("try/t.c", source)
    lib.tool("gcc", "-D_GNU_SOURCE", "-static", "-O1", "-w", "-o", sk.dir + "/try/t", sk.dir + "/try/t.c")
    return sk.dir + "/try"


def test_capabilities(sk):
    show = "grep Cap /proc/self/status | cut -f2 | tr '\\n' ' '"  # Inh Prm Eff Bnd Amb
    zero, c = "0" * 16, DEFAULT_CAPS
    for options, want in [
            ("", [zero, c, c, c, zero]), ("--cap-drop ALL", [zero] * 5), ("--cap-drop all --cap-add chown", [zero, "%016x" % 1] + ["%016x" % 1] * 2 + [zero]),
            ("--cap-add SYS_ADMIN", [zero] + ["%016x" % (int(c, 16) | 1 << 21)] * 3 + [zero]), ("--cap-add CAP_SYS_ADMIN --cap-drop CAP_CHOWN", [zero] + [
                "%016x" % ((int(c, 16) | 1 << 21) & ~1)] * 3 + [zero])]:
        with sk.case("run " + options):
            eq(sk("run --rm %s busybox sh -c" % options, show).ok.out.split(), want)
    with sk.case("another user has none"):
        eq(sk("run --rm -u 1000 busybox sh -c", show).ok.out.split(), [zero, zero, zero, c, zero])
    with sk.case("exec"):
        sk.up("cc")
        eq(sk("exec cc sh -c", show).ok.out.split(), [zero, c, c, c, zero])
        sk.up("dd", "sleep 1000", "--cap-drop", "ALL")
        eq(sk("exec dd sh -c", show).ok.out.split(), [zero] * 5)
    with sk.case("ALL"):
        r = sk("run --rm --cap-add ALL busybox sh -c", show).ok
        true(int(r.out.split()[2], 16) & 1 << 21, "CAP_SYS_ADMIN with --cap-add ALL")


def test_masks(sk):
    """Masked and read-only paths, as Docker's."""
    for p in "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/latency_stats", "/proc/timer_stats":
        if os.path.exists(p):
            with sk.case("masked " + p):
                sk("run --rm busybox sh -c", "cat %s 2>/dev/null | wc -c" % p).says("0")
    for p in "/proc/acpi", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap":
        if os.path.isdir(p):
            with sk.case("empty " + p):
                sk("run --rm busybox sh -c", "ls -A %s 2>/dev/null | wc -l" % p).says("0")
    for p in "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/sys/vm/drop_caches", "/proc/bus/x", "/proc/fs/x":
        with sk.case("read-only " + p):
            sk("run --rm busybox sh -c", "echo x >%s" % p).exits(None, "read-only|permission denied|nonexistent|no such")
    for p in "/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/sysrq-trigger":
        if os.path.exists(p):
            with sk.case("ro mount " + p):
                sk("run --rm busybox grep", " %s " % p, "/proc/mounts").prints(r" ro\b")
    with sk.case("/sys is read-only"):
        sk("run --rm busybox sh -c", "mkdir /sys/x").exits(None, ".")
        sk("run --rm busybox sh -c", "grep ' /sys ' /proc/mounts").prints(r" ro\b")
    with sk.case("masks cannot be taken off"):
        sk("run --rm busybox umount /proc/kcore").exits(None, ".")
        sk("run --rm --cap-add SYS_ADMIN busybox sh -c", "umount /proc/kcore; cat /proc/kcore 2>/dev/null | head -c 5 | wc -c").prints("^0")
    with sk.case("mounts cannot be made"):
        for what in "mount -t tmpfs t /mnt", "mount -o bind /etc /home", "mount -o remount,rw /proc/sys", "mount -t proc p /home":
            sk("run --rm busybox sh -c", "mkdir -p /mnt; " + what).exits(None, ".")
    with sk.case("--security-opt systempaths=unconfined"):
        sk("run --rm --security-opt systempaths=unconfined busybox sh -c", "grep -c ' /proc/kcore ' /proc/mounts").exits(1)
    with sk.case("proc is that of the container"):
        sk("run --rm busybox sh -c", "cat /proc/1/cmdline | tr '\\0' ' '").prints("sh -c cat")
    with sk.case("no way to the host by /proc/1/root, /proc/1/cwd"):
        sk("run --rm busybox sh -c", "test / -ef /proc/1/root && test / -ef /proc/1/cwd && ls -d /proc/1/root/bin/busybox").says("/proc/1/root/bin/busybox")
    with sk.case("the host's root is not mounted"):
        sk("run --rm busybox sh -c", "cut -d' ' -f2 /proc/mounts | grep -v -e '^/proc' -e '^/dev' -e '^/sys' -e '^/etc/' | sort -u").says("/")


def test_security_modules(sk):
    """AppArmor and SELinux where the host has none, or no such profile; tests/vm tests them where it has."""
    with sk.case("no profile of that name"):
        sk("run --rm --security-opt apparmor=no-such busybox true").exits(125, "AppArmor.*(not enabled|not loaded)|not loaded")
        sk("run --rm --security-opt apparmor= busybox true").exits(125, "security-opt")
    with sk.case("unconfined"):
        sk("run --name bare --security-opt apparmor=unconfined --security-opt label=disable busybox echo x").says("x")
        sk("inspect -f", "{{.AppArmorProfile}},{{.ProcessLabel}},{{.MountLabel}}", "bare").says("unconfined,,")
        sk("run --rm --security-opt apparmor:unconfined --security-opt label:disable busybox echo x").says("x")
    with sk.case("bad labels"):
        for word in "nonsense", "type", "type:", "nonsense:x", "type:a\"b":
            sk("run --rm --security-opt", "label=" + word, "busybox", "true").exits(125, "label=")
    if not os.path.exists("/sys/fs/selinux/enforce"):
        with sk.case("a label without SELinux"):
            r = sk("run --rm --security-opt label=type:x_t --security-opt label=level:s0:c1,c2 busybox echo x").ok
            match(r.err, "no SELinux")


def test_seccomp(sk):
    with sk.case("a filter is on"):
        sk("run --rm busybox sh -c", "grep -e ^Seccomp: /proc/self/status").prints(r"Seccomp:\s+2")
    with sk.case("unconfined"):
        r = sk("run --rm --security-opt seccomp=unconfined busybox sh -c", "grep -e ^Seccomp: /proc/self/status").ok
        if sk.subuid:  # without ranges a filter makes chown succeed
            match(r.out, r"Seccomp:\s+0")
    with sk.case("no-new-privileges"):
        sk("run --rm --security-opt no-new-privileges busybox sh -c", "grep NoNewPrivs /proc/self/status").prints(r"\s1$")
    with sk.case("a profile of one's own"):
        p = sk.file("p.json", json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}))
        sk("run --rm --security-opt seccomp=%s busybox sh -c" % p, "mkdir /x").exits(1, "not implemented")
        sk("run --rm --security-opt", "seccomp=" + sk.file("bad.json", "{"), "busybox", "true").exits(125, "seccomp|profile|JSON|decod")
    source = r"""
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static void t(const char *n, long r) { printf("%s %d\n", n, r < 0 ? errno : 0); }
#define S(name, ...) t(#name, syscall(SYS_##name, __VA_ARGS__))
int main(void) {
    S(keyctl, 0, -1, 0, 0, 0); S(add_key, "user", "x", "y", 1, -1); S(request_key, "user", "x", 0, 0);
    S(bpf, 0, 0, 0); S(userfaultfd, 0); S(perf_event_open, 0, 0, -1, -1, 0);
    S(mount, "none", "/tmp", "tmpfs", 0, 0); S(umount2, "/proc", 2); S(pivot_root, ".", ".");
    S(swapon, "/x", 0); S(reboot, 0, 0, 0, 0); S(init_module, 0, 0, ""); S(finit_module, -1, "", 0);
    S(delete_module, "x", 0); S(kexec_load, 0, 0, 0, 0); S(setns, -1, 0); S(unshare, CLONE_NEWUSER);
    S(acct, 0); S(settimeofday, 0, 0); S(quotactl, 0, 0, 0, 0); S(open_by_handle_at, -1, 0, 0);
    S(clone3, 0, 0); S(io_uring_setup, 1, 0); S(move_mount, -1, "", -1, "", 0);
    S(fsopen, "tmpfs", 0); S(mount_setattr, -1, "", 0, 0, 0); S(open_tree, -1, "", 0);
    S(personality, 0x0020000); S(fanotify_init, 0, 0); S(name_to_handle_at, -1, "", 0, 0, 0);
    t("clone_newuser", syscall(SYS_clone, CLONE_NEWUSER, 0, 0, 0, 0)); S(personality, 0);
    t("af_alg", socket(38, SOCK_SEQPACKET, 0)); t("af_vsock", socket(40, SOCK_STREAM, 0));
    S(socket, (1L << 32) + 38, SOCK_SEQPACKET, 0);
    t("af_inet", socket(AF_INET, SOCK_STREAM, 0)); t("unknown", syscall(9999)); t("getpid", getpid());
#ifdef __x86_64__
    t("x32", syscall(0x40000000 | 39)); t("ioperm", syscall(SYS_ioperm, 0, 1, 1)); t("iopl", syscall(SYS_iopl, 3));
#endif
    return 0;
}
"""
    compiled(sk, source)
    r = sk("run --rm -v", sk.dir + "/try:/try:ro", "busybox", "/try/t").ok
    got = dict((k, int(v)) for k, v in (x.split() for x in r.lines))
    EPERM, ENOSYS = 1, 38
    for name, want in [
            ("keyctl", EPERM), ("add_key", EPERM), ("request_key", EPERM), ("bpf", EPERM), ("userfaultfd", EPERM), ("perf_event_open", EPERM), ("mount", EPERM),
            ("umount2", EPERM), ("pivot_root", EPERM), ("swapon", EPERM), ("reboot", EPERM), ("init_module", EPERM), ("finit_module", EPERM), ("delete_module", EPERM),
            ("kexec_load", EPERM), ("setns", EPERM), ("unshare", EPERM), ("acct", EPERM), ("settimeofday", EPERM), ("quotactl", EPERM), ("open_by_handle_at", EPERM),
            ("clone3", ENOSYS), ("io_uring_setup", (EPERM, ENOSYS)), ("move_mount", EPERM), ("fsopen", EPERM), ("mount_setattr", EPERM), ("open_tree", EPERM), ("personality", 0),
            ("fanotify_init", EPERM), ("clone_newuser", EPERM), ("af_vsock", EPERM), ("af_alg", (EPERM, 97)), ("socket", EPERM), ("af_inet", 0), ("unknown", ENOSYS), ("getpid", 0), ("x32", (EPERM, ENOSYS)),
            ("ioperm", EPERM), ("iopl", EPERM)]:
        if name in got:
            with sk.case(name):
                true(got[name] == want or isinstance(want, tuple) and got[name] in want, "errno %s of %s, got %d" % (want, name, got[name]))


# What Docker's default profile denies on x86-64 with Docker's default capabilities, and besides on i386.
DENIED = """_sysctl acct add_key afs_syscall bpf clock_settime create_module delete_module fanotify_init finit_module fsconfig fsmount fsopen fspick get_kernel_syms
get_mempolicy getpmsg init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind
migrate_pages mount mount_setattr move_mount move_pages nfsservctl open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root process_madvise putpmsg
query_module quotactl quotactl_fd reboot request_key security set_mempolicy set_mempolicy_home_node setdomainname sethostname setns settimeofday swapoff swapon
sysfs syslog tuxcall umount2 unshare uselib userfaultfd ustat vhangup vserver""".split()
DENIED_32 = """bdflush break clock_settime64 ftime gtty idle lock mpx nice oldfstat oldlstat oldolduname oldstat olduname prof profil readdir sgetmask sigaction signal
sigpending sigsuspend ssetmask stime stty ulimit umount vm86 vm86old""".split()
ALLOW, ERRNO, EPERM, ENOSYS = 0x7fff0000, 0x50000, 1, 38
X86_64, I386 = 0xc000003e, 0x40000003  # audit architectures


def filtered(program, arch, nr, *args):
    """What a filter, a list of struct sock_filter, says to a call."""
    data = struct.pack("=IIQ6Q", nr, arch, 0, *(args + (0,) * 6)[:6])
    a = at = 0
    while True:
        code, yes, no, k = program[at]
        at += 1
        if code == 0x20:
            a = struct.unpack_from("=I", data, k)[0]
        elif code == 0x54:
            a &= k
        elif code == 0x05:
            at += k
        elif code == 0x06:
            return k
        else:
            at += yes if {0x15: a == k, 0x25: a > k, 0x35: a >= k, 0x45: a & k}[code] else no


def numbers(abi):
    """The system calls that the kernel's header for an ABI has: name -> number."""
    text = lib.tool("gcc", "-dM", "-E", "-include", "asm/unistd_%s.h" % abi, "-x", "c", "/dev/null").decode()
    return {name: int(number) | (0x40000000 if bit else 0) for name, bit, number in re.findall(r"#define __NR_(\w+) \(?(__X32_SYSCALL_BIT \+ )?(\d+)", text)}


def test_seccomp_table(sk):
    """Each call of x86-64, i386 and x32 against Docker's profile: the filter itself is asked."""
    if os.uname().machine != "x86_64":
        raise Skipped("the lists are those of x86-64")
    sk("run --rm busybox true").ok
    cache = sk.root + "/cache/"
    with open(cache + [f for f in os.listdir(cache) if f.startswith("seccomp-")][0], "rb") as f:
        program = list(struct.iter_unpack("=HBBI", f.read()[32:]))
    true(len(program) > 100, "a program, got %d steps" % len(program))
    with sk.case("the container has it"):
        sk("run --rm busybox grep", "^Seccomp_filters:", "/proc/self/status").prints("[1-9]")
    for abi, arch, denied in ("64", X86_64, DENIED), ("32", I386, DENIED + DENIED_32), ("x32", X86_64, DENIED):
        with sk.case(abi):
            wrong = []
            for name, nr in numbers(abi).items():
                got = filtered(program, arch, nr)
                want = [ERRNO | EPERM] if name in denied else [ERRNO | ENOSYS] if name == "clone3" else [ALLOW, ERRNO]  # 0: ownership, of one id
                if abi == "x32":  # as the same call of x86-64 where the kernel has x32, else it is none
                    want += [ERRNO | ENOSYS]
                if nr & 0x3fffffff <= 450 and got not in want:
                    wrong.append("%s: %#x" % (name, got))
            eq(wrong, [])
    with sk.case("arguments"):
        n = numbers("64")
        for want, name, args in [
                (EPERM, "socket", [38]), (EPERM, "socket", [40]), (0, "socket", [1]), (0, "socket", [16]), (EPERM, "personality", [0x0040000]), (0, "personality", [8]),
                (EPERM, "socket", [(1 << 32) + 38]), (EPERM, "socket", [(1 << 32) + 40]), (0, "socket", [41]), (0, "socket", [45]), (0, "clone", [0x11]), (0, "clone", [0x3d0f00])] + [
                (EPERM, "clone", [flag]) for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)]:
            eq(filtered(program, X86_64, n[name], *args), ERRNO | want if want else ALLOW, "%s%s" % (name, args))
        n = numbers("32")
        eq([filtered(program, I386, n[name], *args) for name, *args in (("socket", 38), ("clone", 0x10000000), ("personality", 0x0040000))], [ERRNO | EPERM] * 3)
    with sk.case("calls that are newer than the profile"):
        for nr in 480, 500, 9999:
            eq(filtered(program, X86_64, nr), ERRNO | ENOSYS, str(nr))
    with sk.case("other architectures"):
        for arch in 0, 0x40000028, 0xc00000b7:
            true(filtered(program, arch, 39) not in (ALLOW, ERRNO), "a call of architecture %#x to be denied" % arch)


KEYS = r"""
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
    char text[64] = "";
    long key = syscall(SYS_keyctl, 10 /* search */, -3 /* the session's */, "user", "skiff-test", 0);
    if (key >= 0 && syscall(SYS_keyctl, 11 /* read */, key, text, sizeof text - 1) < 0) strcpy(text, "found");
    puts(key < 0 ? strerrorname_np(errno) : text);
    return 0;
}
"""


def test_keyring(sk):
    """The keys of the session that skiff was started in: where no filter forbids keyctl(2) the container has a session keyring of its own."""
    add_key, keyctl = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]
    call = ctypes.CDLL(None).syscall
    if call(keyctl, 1, None) < 0 or call(add_key, b"user", b"skiff-test", b"secret", 6, -3) < 0:
        raise Skipped("keyrings (CONFIG_KEYS)")
    v = "-v %s:/try:ro " % compiled(sk, KEYS)
    eq(subprocess.run([sk.dir + "/try/t"], stdout=subprocess.PIPE).stdout, b"secret\n", "what a process of the session reads")
    with sk.case("the default filter"):
        sk("run --rm %s busybox /try/t" % v).says("EPERM")
    with sk.case("--privileged"):
        sk("run --rm --privileged %s busybox /try/t" % v).says("ENOKEY")
        sk("run --rm --init --privileged %s busybox /try/t" % v).says("ENOKEY")
    with sk.case("seccomp=unconfined"):
        match(sk("run --rm --security-opt seccomp=unconfined %s busybox /try/t" % v).ok.out, "^(ENOKEY|EPERM)$")
    with sk.case("exec --privileged"):
        sk.up("cc", "sleep 1000", "-v", sk.dir + "/try:/try:ro")
        sk("exec --privileged cc /try/t").says("ENOKEY")
        sk("exec cc /try/t").says("EPERM")


SCAN = r"""
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(void) {
    /* the namespace's latest pid tells of each process that comes, which is looked at until it is one of the container's programs */
    char path[64], text[4096];
    int load = open("/proc/loadavg", O_RDONLY);
    close(creat("/ready", 0644));
    for (int last = getpid();;) {
        ssize_t k = pread(load, text, sizeof text - 1, 0);
        text[k < 0 ? 0 : k] = 0;
        int pid = atoi(strrchr(text, ' '));
        if (pid == last) continue;
        snprintf(path, sizeof path, "/proc/%d/exe", last = pid);
        for (int i = 0; i < 20000; i++) {
            if ((k = readlink(path, text, sizeof text - 1)) < 0) {
                if (!i) printf("refused %d\n", pid), fflush(stdout);
                if (kill(pid, 0)) break;
                continue;
            }
            text[k] = 0;
            if (strstr(text, "busybox")) break;
            if (k) printf("%s of %d\n", text, pid), fflush(stdout);
        }
    }
}
"""


def test_joining_process(sk):
    """CVE-2016-9962: a process that joins a container is not to be looked into before it executes, even with CAP_SYS_PTRACE there."""
    sk.up("cc", "/try/t >/found", "-v", compiled(sk, SCAN) + ":/try:ro", "--cap-add", "SYS_PTRACE")
    until(lambda: sk("exec cc test -e /ready").code == 0, "it looks")
    for options in "", "-u 0", "--privileged":
        with sk.case("exec " + options):
            for _ in range(40):
                sk("exec %s cc true" % options).ok
            eq(sk("exec cc sh -c", "grep of /found | sort | uniq -c").ok.out, "", "processes that could be looked into")
    with sk.case("it has seen some come"):
        sk("exec cc grep -c refused /found").prints("[1-9]")


def test_visitor_is_hidden(sk):
    """CVE-2016-9962: cp's process in a container's user namespace is not to be looked into by a container that sees the host's processes."""
    sk.up("cc", "sleep 1000", "--pid", "host", "--cap-add", "SYS_PTRACE")
    p = sk.popen("cp cc:/bin -", stdout=subprocess.PIPE)  # nobody reads: it stays
    try:
        true(select.select([p.stdout], [], [], lib.PATIENCE)[0], "the archive's beginning")
        seen = sk("exec cc sh -c", "for p in /proc/[0-9]*; do readlink $p/exe; done; true").ok.lines
        eq(set(seen), {"/bin/busybox"})
    finally:
        p.kill()
        p.wait()


def test_descriptors(sk):
    """CVE-2024-21626: nothing of the engine's or the caller's is open inside."""
    r, w = os.pipe()
    extra = os.open(sk.dir, os.O_RDONLY)
    for fd in r, w, extra:
        os.set_inheritable(fd, True)
    for line in "run --rm busybox", "run --rm -i busybox", "run --rm --init busybox", "--storage-driver copy run --rm busybox":
        with sk.case(line):
            got = sk(line + " sh -c", "ls /proc/$$/fd; true", pass_fds=[r, w, extra]).ok.out
            eq(got.split(), ["0", "1", "2"], "descriptors of the command")
            got = sk(line + " sh -c", "ls -l /proc/1/fd | grep -c -e /root/ -e containers -e layers", pass_fds=[r, w, extra])
            eq(got.out, "0", "descriptors of pid 1 that lead into the store")
    with sk.case("on a terminal"):
        t = lib.Terminal(sk, "run --rm -it busybox ls /proc/self/fd")
        t.exits(0)
        eq(t.seen.split(), ["0", "1", "2", "3"])
    sk.file("canary/x", "secret of the host")
    sk.up("cc")
    for d in ["/proc/self/fd/%d" % n for n in range(3, 12)] + ["/proc/self/cwd", "/proc/1/cwd", "/proc/self/fd/7/../../.."]:
        for line in ["run --rm -w %s busybox" % d] + ["exec -w %s cc" % d]:
            with sk.case(line):
                got = sk(line + " sh -c", "pwd -P; ls -d bin/busybox ../bin/busybox 2>/dev/null")
                if got.code == 0:
                    true("(unreachable)" not in got.out and sk.dir not in got.out, "a directory inside, got %r" % got.out)
                got = sk(line + " sh -c", "cat canary/x ../canary/x ../../canary/x ../../../canary/x ..%s/canary/x" % ("/.." * 20 + sk.dir))
                no_match(got.out, "secret", "a file of the host")
    with sk.case("nothing of the host in the container's memory maps"):
        no_match(sk("exec cc cat /proc/1/maps").ok.out, "skiff")


def test_labels(sk):
    """CVE-2026-53488: an image's labels that look like what engines tell each other are labels."""
    evil = {"run.oci.keep_original_groups": "1", "run.oci.handler": "krun", "io.podman.annotations.privileged": "TRUE", "io.podman.annotations.seccomp": "unconfined",
            "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel": "true", "skiff.restart": "always", "skiff": "{\"rootfs\":{}}", "skiff.manifest": "sha256:" + "0" * 64,
            "org.opencontainers.image.ref.name": "evil:1", "io.containerd.image.name": "docker.io/library/evil:1", "com.docker.compose.project": "x"}
    layer = lib.busybox_layer()
    sk("load -q", input=lib.docker_archive(layer, tag="plain")).ok
    sk("load -q", input=lib.docker_archive(layer, tag="labelled", config={"Labels": evil})).ok
    plans = []
    for name in "plain", "labelled":
        sk("create --name %s %s sh -c" % (name, name), "id; grep -e Cap -e Seccomp -e NoNew /proc/self/status; cat /proc/self/mountinfo | wc -l").ok
        with open("%s/containers/%s/config.json" % (sk.root, sk.get(name, "{{.Id}}"))) as f:
            plans.append(json.load(f))
    with sk.case("they are kept"):
        eq(json.loads(sk.get("labelled", "{{json .Config.Labels}}")), evil)
    with sk.case("and are nowhere else in the plan"):
        def without(j):
            if isinstance(j, dict):
                return {k: without(v) for k, v in j.items() if k.lower() != "labels"}
            return [without(x) for x in j] if isinstance(j, list) else j
        text = json.dumps(without(plans[1]))
        eq([k for k in evil if '"%s"' % k in text and '"%s"' % k not in json.dumps(without(plans[0]))], [])
        eq(plans[0].get("annotations"), plans[1].get("annotations"), "annotations")
    with sk.case("what runs is the same"):
        eq(sk("start -a labelled").ok.out, sk("start -a plain").ok.out)
        eq(sk.get("labelled", "{{.HostConfig.Privileged}} {{.HostConfig.RestartPolicy.Name}}"), sk.get("plain", "{{.HostConfig.Privileged}} {{.HostConfig.RestartPolicy.Name}}"))
    with sk.case("they name no image"):
        sk("images -q evil").says("")


def test_own_binary(sk):
    """CVE-2019-5736: /proc/PID/exe of the engine, from inside."""
    mine, before = sk.own_binary()
    sk("load -q", input=docker_archive(lib.busybox_layer(), tar(entry("evil", link="/proc/self/exe"), entry(
        "script", "#!/proc/self/exe\n", mode=0o755)), tag="evil")).ok
    writer = "while :; do for p in /proc/[0-9]*; do [ $p = /proc/$$ ] || (printf bad >>$p/exe) 2>/dev/null; done; done"
    sk.up("cc", writer)
    for line in "exec cc /proc/self/exe --help", "exec cc true", "run --rm evil /evil --help", "run --rm evil /script", "run --rm --entrypoint /proc/self/exe evil", "exec cc true", "exec cc /proc/1/exe":
        with sk.case(line):
            sk(line)
            eq(lib.digest(open(mine, "rb").read()), before, "the engine's binary after " + line)
    for _ in range(20):
        sk("exec cc true")
    eq(lib.digest(open(mine, "rb").read()), before)


def test_hostile_roots(sk):
    """Parts of the image that are symlinks or odd files where the engine works."""
    canary = sk.folder("canary")
    sk.file("canary/ptmx", "decoy")
    sk.file("canary/passwd", "evil:x:0:0::/:/bin/sh\n")
    up = "../" * 40 + canary.lstrip("/")
    link = lambda p, to: entry(p, link=to)
    before = {f: (os.stat(canary + "/" + f).st_mode, os.stat(canary + "/" + f).st_mtime_ns) for f in os.listdir(canary)}
    wh = lambda p: entry(".wh." + p, "")
    for name, items in [
            ("/dev absolute", [link("dev", canary)]), ("/dev relative", [link("dev", up)]), ("/dev to proc", [link("dev", "/proc/1/root")]), ("/dev/pts", [entry("dev/"), link("dev/pts", canary)]),
            ("/dev/shm", [entry("dev/"), link("dev/shm", canary)]), ("/dev/ptmx", [entry("dev/"), link("dev/ptmx", canary + "/ptmx")]), ("/dev/null", [entry("dev/"), link("dev/null", canary + "/ptmx")]),
            ("/proc", [link("proc", canary)]), ("/proc relative", [link("proc", up)]), ("/proc is a file", [wh("proc"), entry("proc", "x")]), ("/sys", [link("sys", canary)]),
            ("/etc", [link("etc", canary)]), ("/etc/hosts", [link("etc/hosts", canary + "/hosts")]), ("/etc/resolv.conf", [link("etc/resolv.conf", up + "/resolv.conf")]),
            ("/etc/hostname is a directory", [entry("etc/hostname/")]), ("/etc/mtab", [link("etc/mtab", canary + "/mtab")]), ("/etc/passwd", [link("etc/passwd", canary + "/passwd")]),
            ("/run", [link("run", canary)]), ("/tmp", [link("tmp", canary)]), ("loop", [link("dev", "dev")]), ("no /dev /proc /sys", [wh("dev"), wh("proc"), wh("sys")]),
            ("/dev is a fifo", [wh("dev"), entry("dev", type=lib.tarfile.FIFOTYPE)])]:
        with sk.case(name):
            tag = "root"
            r = sk("load -q", input=docker_archive(lib.busybox_layer(), tar(*items), tag=tag))
            if r.code:
                r.exits(None, ".")
                continue
            for line in "run --rm %s true", "run --rm -t %s true", "run --rm -u evil %s id -u", "run --rm -w /tmp/x/y %s true":
                r = sk(line % tag)
                true(r.code in (0, 1, 125, 126, 127), "an ordered end, got %d" % r.code)
                if "evil" in line:
                    no_match(r.out, "^0$", "uid by the host's file")
            after = {f: (os.stat(canary + "/" + f).st_mode, os.stat(canary + "/" + f).st_mtime_ns) for f in os.listdir(canary)}
            eq(after, before, "the host's directory")
    with sk.case("labels that look like the engine's own"):
        sk("load -q", input=docker_archive(lib.busybox_layer(), tag="lab", config={"Labels": {
            "skiff": "x", "skiff.pid": "1", "io.podman.annotations.privileged": "TRUE", "org.opencontainers.image.ref.name": "evil", "skiff.hostpath": "/"}})).ok
        sk("run --rm lab sh -c", "grep CapEff /proc/self/status").prints(DEFAULT_CAPS)


def test_workdir_through_link(sk):
    """CVE-2026-55686: a working directory below a link of the image that leads out is made in the container, and nothing outside."""
    canary = sk.folder("canary")
    os.chmod(canary, 0o777)
    before = os.stat(canary)
    for to in canary, "../" * 40 + canary[1:], "/proc/1/root" + canary, "/proc/self/cwd":
        sk("load -q", input=docker_archive(lib.busybox_layer(), tar(entry("w", link=to)), tag="wd", config={"WorkingDir": "/w/a/b"})).ok
        for line in "run --rm wd", "run --rm -w /w/c wd", "run --rm -w /w/../w/d wd", "run --rm -u 1000 -w /w/e wd":
            with sk.case("%s: %s" % (to[:12], line)):
                r = sk(line + " sh -c", "pwd; touch here")
                true(r.code in (0, 1, 125, 126), "an ordered end, got %d" % r.code)
                eq((os.listdir(canary), os.stat(canary)[:6]), ([], before[:6]), "the host's directory")


def test_accounts(sk):
    """passwd and group of an image, or as a container has changed them: read to a limit, never waited for, never uid 0 by accident."""
    link = lambda p, to: entry(p, link=to)
    wh = lambda p: entry(".wh." + p, "")
    large = "larger than|too large"
    for name, items, error in [
            ("passwd of 64 MB", [entry("etc/passwd", b"root:x:0:0::/:/bin/sh\n" + b"x" * (64 << 20) + b"\napp:x:0:0::/:/bin/sh\n")], large),
            ("passwd is a fifo", [entry("etc/passwd", type=lib.tarfile.FIFOTYPE)], "unable to find"), ("passwd is /dev/zero", [link("etc/passwd", "/dev/zero")], "unable to find"),
            ("passwd is a directory", [wh("etc"), entry("etc/passwd/")], "unable to find"), ("group is /dev/zero", [link("etc/group", "/dev/zero")], None),
            ("passwd with NULs and no fields", [entry("etc/passwd", b"\0\0app\n:::\napp\napp:\napp:x:\napp:x:-1:0::\napp:x:0x0:0::\n")], "unable to find")]:
        with sk.case(name):
            sk("load -q", input=docker_archive(lib.busybox_layer(), tar(*items), tag="pw")).ok
            for line in "run --rm -u app pw id -u", "run --rm -u app:wheel pw id -u", "run --rm pw true":
                r = sk(line)
                true(r.code in (0, 1, 125, 126), "an ordered end, got %d %r" % (r.code, lib.short(r.err)))
                if "-u" in line:
                    no_match(r.out, "^0$", "uid")
                    if error:
                        r.exits(125, error)
    with sk.case("USER 4294967295/6 with a line of that name"):
        for u in "4294967295", "4294967296":
            sk("load -q", input=docker_archive(lib.busybox_layer(), tar(entry("etc/passwd", "%s:x:0:0::/:/bin/sh\n" % u)), tag="pw", config={"User": u})).ok
            r = sk("run --rm pw id -u")
            no_match(r.out, "^0$", "uid")
            r.exits(125, "range")
    sk.up("cc")
    for name, script, error in [
            ("a fifo", "mkfifo /etc/passwd", "unable to find"), ("a link to /dev/zero", "ln -s /dev/zero /etc/passwd", "unable to find"), ("a link to itself", "ln -s passwd /etc/passwd", "unable to find"),
            ("a link out of the root", "ln -s /proc/1/root/etc/group /etc/passwd", "unable to find"), ("a directory", "mkdir /etc/passwd", "unable to find"),
            ("of 64 MB", "truncate -s 64M /etc/passwd; printf '\\napp:x:0:0::/:/bin/sh\\n' >>/etc/passwd", large)]:
        with sk.case("exec: passwd is " + name):
            sk("exec cc sh -c", "rm -rf /etc/passwd; " + script).ok
            sk("exec -u app cc id -u", wait=15).exits(None, error)
    with sk.case("exec: a link is looked up in the container"):
        sk("exec cc sh -c", "rm -f /etc/passwd; echo mine:x:0:0::/:/bin/sh >/mine; ln -s ../../../../mine /etc/passwd").ok
        sk("exec -u mine cc id -u").says("0")


def test_isolation(sk):
    with sk.case("own namespaces"):
        out = sk("run --rm --network none busybox sh -c", "for n in user mnt pid ipc uts net cgroup; do readlink /proc/self/ns/$n; done").ok.lines
        for line in out:
            kind = line.split(":")[0]
            if kind != "cgroup":
                true(line != os.readlink("/proc/self/ns/" + kind), "an own %s namespace" % kind)
    with sk.case("host files cannot be reached by the ids of the map"):
        sk("run --rm -v /etc:/m busybox cat /m/shadow").exits(1, "permission denied")
        sk("run --rm -v /etc:/m busybox sh -c", "echo x >>/m/passwd").exits(1, "permission denied|read-only")
        sk("run --rm -v /etc:/m busybox chown 0:0 /m/passwd")
        eq(os.stat("/etc/passwd").st_uid, 0)
    with sk.case("TIOCSTI, other terminals"):
        t = lib.Terminal(sk, "run --rm -it busybox sh -c", "ls /dev/pts; cat /proc/self/stat >/dev/null; echo done")
        t.expect("done")
        t.exits(0)
        no_match(t.seen, r"\b[1-9]\b")
    with sk.case("no terminals of the host"):
        sk("run --rm busybox ls /dev/pts").says("ptmx")
    with sk.case("System V and POSIX IPC"):
        libc = ctypes.CDLL(None)
        shm, queue = libc.shmget(0, 4096, 0o1600), "/skiff-test-%d" % os.getpid()
        mq = libc.mq_open(queue.encode(), os.O_RDWR | os.O_CREAT, 0o600, None)
        try:
            sk("run --rm busybox sh -c", "grep -c . /proc/sysvipc/shm; ls /dev/mqueue /dev/shm").says("1\n/dev/mqueue:\n\n/dev/shm:")
        finally:
            libc.shmctl(shm, 0, None)
            libc.mq_unlink(queue.encode())
            libc.mq_close(mq)
    with sk.case("abstract sockets, without the host's network"), socket.socket(socket.AF_UNIX) as server:
        server.bind("\0skiff-test-%d" % os.getpid())
        sk("run --rm busybox cat /proc/net/unix").prints("@skiff-test-%d$" % os.getpid())
        no_match(sk("run --rm --network none busybox cat /proc/net/unix").ok.out, "skiff-test")
    with sk.case("keyrings are not shared"):
        sk("run --rm busybox sh -c", "cat /proc/keys | wc -c").says("0")
    with sk.case("the environment of the host and of other containers"):
        sk.up("cc", "sleep 1000", "-e", "SECRET_OF_C=1")
        r = sk("exec cc sh -c", "cat /proc/1/environ | tr '\\0' '\\n'", env={"HOST_SECRET": "1"}).ok
        no_match(r.out, "HOST_SECRET|SKIFF|XDG")
        no_match(sk("run --rm busybox env").ok.out, "SECRET_OF_C")
    with sk.case("no new privileges in the supervisor's children: ptrace of the joining process"):
        r = sk("exec cc sh -c", "cat /proc/self/status | grep -e TracerPid").ok
        match(r.out, r"TracerPid:\s+0")
    with sk.case("a process that has left its terminal does not outlive its container"):
        sk("run -d --name kk busybox sh -c", "setsid sleep 4242 & sleep 0.2; exit 0").ok
        sk("wait kk").ok
        until(lambda: not [p for p, n in sk.processes() if n == "sleep" and b"4242" in open("/proc/%d/cmdline" % p, "rb").read()], "it is ended")


CALLS = dict(openat=257, socket=41, kill=62, fork=57, execve=59, mprotect=10, setns=308, ioctl=16, mkdirat=258, unlinkat=263, renameat2=316,
             truncate=76, symlinkat=266, ptrace=101, mount=165, getpid=39, fcntl=72, fchmod=91, fchmodat=268)


def inside(sk, pid, call, *args):
    """What a system call returns that is made in another process: code that has taken it over could do no more."""
    program = sk.dir + "/inside"
    if not os.path.exists(program):
        lib.tool("gcc", "-D_GNU_SOURCE", "-static", "-O1", "-o", program, lib.HERE + "/inside.c")
    r = subprocess.run([program, str(pid), str(CALLS[call])] + [str(a) for a in args], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if r.returncode == 77:
        raise Skipped("ptrace is not allowed here (kernel.yama.ptrace_scope)")
    eq((r.returncode, r.stderr), (0, b""), "inside " + call)
    return r.stdout.decode().strip()


def status(pid):
    with open("/proc/%d/status" % pid) as f:
        return dict(line.split(":", 1) for line in f.read().splitlines())


def landlock():
    """The number of its ABI, below 1: none."""
    return ctypes.CDLL(None).syscall(444, None, 0, 1)


def test_supervisor_is_shut_in(sk):
    """What has taken over a supervisor reaches its own container and nothing else."""
    here, cwd = 18446744073709551516, sk.root + "/containers/"  # AT_FDCWD
    outside = sk.folder("outside")
    with open(outside + "/secret", "w") as f:
        f.write("{}")
    os.chmod(outside + "/secret", 0o666)
    os.chmod(outside, 0o777)
    sk.up("other")
    for name, options in ("kept", ""), ("gone", "--rm -v /data"):
        sk("run -d --name %s %s busybox sh -c" % (name, options), "mkdir -p /d/d /data/d; touch /d/d/f /data/d/f; chown -R 5:6 /d /data; "
           "chmod -R 0 /d /data; while [ ! -e /go ]; do sleep 0.1; done; echo out").ok
        sup, own, other = sk.supervisor(name), cwd + sk.get(name, "{{.Id}}"), cwd + sk.get("other", "{{.Id}}")
        with sk.case("%s: no privileges, a filter" % name):
            want = {"NoNewPrivs": "1", "Seccomp": "2"}
            want.update({c: "0" * 16 for c in ("CapInh", "CapPrm", "CapEff", "CapAmb")})
            have = lambda: {k: status(sup)[k].strip() for k in want}
            until(lambda: have() == want, "%s, got %s" % (want, have()))
        if os.uname().machine != "x86_64":
            continue
        with sk.case("%s: the way of asking" % name):
            eq(inside(sk, sup, "getpid"), str(sup))
        with sk.case("%s: calls that it has no need of" % name):
            for call in [("socket", 1, 1, 0), ("fork",), ("execve", "/bin/true", 0, 0), ("kill", os.getpid(), 0), ("kill", sk.pid("other"), 9),
                         ("ptrace", 16, sk.pid("other"), 0, 0), ("mount", "none", "/tmp", "tmpfs", 0, 0), ("mprotect", 0, 4096, 7),
                         ("setns", 0, 0x20000), ("ioctl", 0, 0x5412, 0), ("symlinkat", "/etc", here, own + "/link"), ("truncate", outside + "/secret", 0),
                         ("fcntl", 3, 8, sk.pid("other")), ("fcntl", 3, 10, 9), ("fchmod", 3, 0o777), ("fchmodat", here, outside, 0o755)]:
                eq(inside(sk, sup, *call), "EPERM", str(call))
            eq(inside(sk, sup, "setns", 99, 0x10000000), "EBADF", "its user namespace, to remove files")
            eq(inside(sk, sup, "fchmodat", here, own, 0o700), "0", "a directory, to remove files")
        if landlock() >= 2:
            with sk.case("%s: files of others" % name):
                for path in "/etc/passwd", outside + "/secret", sk.root + "/index.json", other + "/config.json", other + "/run/state.json", "/proc/self/status":
                    eq(inside(sk, sup, "openat", here, path, 0), "EACCES", path)
                for path in outside, sk.root, sk.root + "/blobs/sha256", cwd, "/proc":
                    eq(inside(sk, sup, "openat", here, path, 0o200000), "EACCES", "listing " + path)
                for path in outside + "/new", sk.root + "/tmp/new", other + "/new", sk.root + "/new", own + "/new", own + "/upper/new", sk.root + "/names/new":
                    eq(inside(sk, sup, "openat", here, path, 0o101, 0o600), "EACCES", "making " + path)
                for path in outside + "/secret", sk.root + "/index.json", sk.root + "/events.json", own + "/config.json":
                    eq(inside(sk, sup, "openat", here, path, 0o1001), "EACCES", "emptying " + path)
                for path in other + "/config.json", sk.root + "/names/other":
                    eq(inside(sk, sup, "unlinkat", here, path, 0), "EACCES", "removing " + path)
                if name == "kept":
                    eq(inside(sk, sup, "unlinkat", here, own + "/config.json", 0), "EACCES", "removing its plan")
                got = inside(sk, sup, "renameat2", here, own + "/run/state.json", here, own + "/config.json", 0)
                true(got in ("EACCES", "EXDEV"), "no plan of its own making, got " + got)
                for to in sk.root + "/tmp/x", own + "/x":
                    got = inside(sk, sup, "renameat2", here, other, here, to, 0)
                    true(got in ("EACCES", "EXDEV"), "no moving of another's directory to %s, got %s" % (to, got))
                got = inside(sk, sup, "renameat2", here, sk.root + "/index.json", here, own + "/x", 0)
                true(got in ("EACCES", "EXDEV"), "no moving in of a file, got " + got)
        with sk.case("%s: its own are there, and it works" % name):
            true(int(inside(sk, sup, "openat", here, own + "/run/state.json", 0)) > 2, "its own state")
            sk("exec", name, "touch", "/go").ok
            if name == "kept":
                sk("wait kept").says("0")
                sk("logs kept").says("out")
            until(lambda: not os.path.exists("/proc/%d" % sup) or status(sup)["State"].strip()[0] == "Z", "it ends")
        with sk.case("%s: what it was to remove" % name):
            eq(os.path.exists(own), name == "kept")
            eq(sk("inspect", name).code, int(name != "kept"))
            sk("create --name", name, "busybox").exits(125, "already in use") if name == "kept" else sk("run --rm --name", name, "busybox", "true").ok
            until(lambda: (os.listdir(sk.root + "/tmp"), os.listdir(sk.root + "/volumes")) == ([], []), "nothing is left")


def test_supervisor_without_landlock(sk):
    """A kernel that has none: all works, and the filter holds."""
    env = {"SKIFF_DISABLE": "landlock"}
    sk("doctor", env=env).prints(r"(?m)^no +Landlock")
    if landlock() >= 2:
        sk("doctor").prints(r"(?m)^ok +Landlock")
    true("landlock" not in sk("info -f", "{{json .SecurityOptions}}", env=env).ok.out, "no Landlock in info")
    sk("run -d --name cc busybox sleep 1000", env=env).ok
    until(lambda: status(sk.supervisor("cc"))["Seccomp"].strip() == "2", "it has shut itself in, soon after the start")
    sk("rm -f cc").ok
    sk("run --rm busybox echo hello", env=env).says("hello")
    until(lambda: not os.listdir(sk.root + "/tmp"), "its files are removed")


def test_supervisor_holds_nothing_of_the_caller(sk):
    r, w = os.pipe()
    sk("run -d --name cc busybox sleep 1000", pass_fds=[w]).ok
    os.close(w)
    true(select.select([r], [], [], lib.PATIENCE)[0] and not os.read(r, 1), "the end of the pipe while the container runs")
    os.close(r)


def test_starter(sk):
    """The process that starts a container again: only where one may be, and gone with its supervisor."""
    starters = lambda: [p for p, n in sk.processes() if n == "skiff-starter"]
    with sk.case("none for one that is removed when it exits"):
        sk("run -d --rm --name once busybox sleep 1000").ok
        eq(starters(), [])
        sk("rm -f once").ok
    with sk.case("it holds nothing of the container's, and not the lock"):
        sk("run -d --name cc --restart always busybox sh -c", "while [ ! -e /go ]; do sleep 0.1; done; rm /go").ok
        until(lambda: len(starters()) == 1, "there is one")
        keeper, sup = starters()[0], sk.supervisor("cc")
        eq(int(status(keeper)["PPid"]), sup)
        until(lambda: len(os.listdir("/proc/%d/fd" % keeper)) == 7, "0, 1, 2, its socket, the store, the directory, the first process")
        true(not any(os.readlink("/proc/%d/fd/%s" % (keeper, fd)).endswith("/lock") for fd in os.listdir("/proc/%d/fd" % keeper)), "not the lock")
    with sk.case("what it starts is the supervisor's child"):
        for i in range(3):
            sk("exec cc touch /go").ok
            until(lambda: sk.get("cc", "{{.RestartCount}} {{.State.Running}}") == "%d true" % (i + 1), "it is started again")
            eq((sk.supervisor("cc"), starters()), (sup, [keeper]))
            eq(int(status(sk.pid("cc"))["PPid"]), sup)
    with sk.case("it dies with the supervisor, and the container too"):
        pid = sk.pid("cc")
        os.kill(sup, signal.SIGKILL)
        until(lambda: not starters() and not os.path.exists("/proc/%d/ns" % pid), "both are gone")
        eq(sk.status("cc"), "exited")
        sk("rm cc").ok
    with sk.case("without it the container runs on, and is not started again"):
        sk("run -d --name dd --restart always busybox sh -c", "while [ ! -e /go ]; do sleep 0.1; done; exit 3").ok
        until(lambda: len(starters()) == 1, "there is one")
        os.kill(starters()[0], signal.SIGKILL)
        sk("exec dd touch /go").ok
        sk.becomes("dd", "{{.State.Status}}", "exited")
        match(sk.get("dd", "{{.State.Error}}"), "lost")
        sk("rm dd").ok


@only("root")
def test_other_user(sk):
    """Another user finds nothing: store private, sockets refuse, planted links are not followed."""
    sk.up("cc")
    other = dict(user="skiffa", group="skiffa", extra_groups=[])
    for path in sk.root, sk.root + "/containers", sk.root + "/index.json":
        with sk.case("closed: " + path[len(sk.root):]):
            r = subprocess.run(["ls", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **other)
            true(r.returncode != 0, "%s not to be readable by another user" % path)
    with sk.case("its store is refused"):
        r = subprocess.run([sk.binary, "ps"], env=sk.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **other)
        true(r.returncode not in (0,) and r.stderr, "a clear error for another's store, got %d %r" % (r.returncode, r.stderr))
    with sk.case("its socket is deaf to them, even where the way to it is open"):
        sk.up("dd")
        at = "%s/containers/%s/run" % (sk.root, sk.get("dd", "{{.Id}}"))
        opened = [sk.root, sk.root + "/containers", os.path.dirname(at), at]
        for path in opened:
            os.chmod(path, 0o711)
        os.chmod(at + "/sock", 0o666)
        subprocess.run(["/usr/bin/python3", "-c", "import os, socket, struct\nos.chdir(%r)\ns = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
                        "s.connect('sock')\ns.send(struct.pack('=ci', b'S', 9))\ns.recv(9)" % at], stderr=subprocess.DEVNULL, timeout=lib.PATIENCE, **other)
        for path in opened:
            os.chmod(path, 0o700)
        sk("exec dd echo x").says("x")
    with sk.case("the supervisor cannot be read or traced"):
        sup = sk.supervisor("cc")
        r = subprocess.run(["ls", "-l", "/proc/%d/fd" % sup], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **other)
        true(r.returncode != 0, "no descriptors for another user")
    with sk.case("a world-writable store is made private or refused"):
        loose = sk.folder("loose")
        os.chmod(loose, 0o777)
        os.chown(loose, *sk.user)
        r = sk("volume create xx", env={"SKIFF_ROOT": loose})
        true(r.code != 0 or os.stat(loose).st_mode & 0o077 == 0, "a refusal, or a store of 0700; mode %o" % os.stat(loose).st_mode)
    with sk.case("one where others may have put things"):
        sk("volume create xx", env={"SKIFF_ROOT": loose}).ok
        os.chmod(loose, 0o777)
        sk("volume ls", env={"SKIFF_ROOT": loose}).exits(None, "others")
    with sk.case("a store of another user's"):
        theirs = sk.folder("theirs")
        os.chmod(theirs, 0o777)
        subprocess.run(["mkdir", "-m", "777", theirs + "/root"], **other)
        sk("volume create xx", env={"SKIFF_ROOT": theirs + "/root"}).exits(None, ".")
        eq(os.listdir(theirs + "/root"), [], "what is made there")
        store = theirs + "/store"
        for words in [sk.binary, "volume", "ls"], ["chmod", "-R", "o+rwX", store], ["chmod", "755", store]:
            subprocess.run(words, env={**sk.env, "SKIFF_ROOT": store}, check=True, stdout=subprocess.DEVNULL, **other)
        sk("volume create xx", env={"SKIFF_ROOT": store}).exits(None, "belongs to uid")
    with sk.case("a directory of states that another user has made beforehand"):
        for words in "list", "state x", "delete --force x":
            sk("oci --root %s/root %s" % (theirs, words)).exits(1, "another user")


@timeout(90)
def test_removal_follows_no_link(sk):
    """CVE-2024-23652: with a container, a volume or a cache goes what lies there, not what its links lead to."""
    canary, host = sk.folder("canary"), ["d/g", "f"]
    for f in host:
        sk.file("canary/" + f, "host's own")
    have = lambda: sorted(os.path.relpath(os.path.join(d, f), canary) for d, _, fs in os.walk(canary) for f in fs)
    links = "for d in / /v /tmp; do ln -s %s $d/l; done; mkdir /e; ln -s ../../../../../../../../../..%s /e/r" % (canary, canary)
    for driver in "overlay", "copy":
        for line in "run --name cc -v vol:/v", "run --rm -v /v":
            with sk.case(driver + ": " + line):
                sk("--storage-driver %s %s busybox sh -c" % (driver, line), links).ok
                sk("rm -f cc").ok
                sk("volume rm -f vol").ok
                until(lambda: have() != host or not os.listdir(sk.root + "/tmp") and not os.listdir(sk.root + "/volumes"), "its files are gone")
                eq(have(), host, "the host's files")
    with sk.case("builder prune"):
        sk.file("ctx/Dockerfile", "FROM busybox\nRUN --mount=type=cache,target=/v %s\n" % links)
        sk("build", sk.dir + "/ctx").ok
        sk("builder prune -af").ok
        eq(have(), host, "the host's files")


def test_nothing_of_the_image_is_run(sk):
    """CVE-2022-1227, CVE-2026-41567, CVE-2019-14271: top, cp, export, commit and ADD have no use for its programs and libraries."""
    names = "ps tar cpio gzip gunzip zcat pigz unpigz xz unxz lzma bzip2 bunzip2 zstd unzstd git cp mount umount newuidmap sha256sum getent nologin"
    trojans = [entry("%s/%s" % (d, n), "#!/bin/busybox sh\nbusybox touch /pwned\n", mode=0o755) for d in ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin") for n in names.split()]
    libraries = [entry("lib/%s" % n, "\x7fELF trojan", mode=0o755) for n in ("libnss_files.so.2", "libc.so.6", "ld-linux-x86-64.so.2", "ld-musl-x86_64.so.1")]
    sk("load -q", input=docker_archive(lib.busybox_layer(), tar(*trojans, *libraries, entry("etc/nsswitch.conf", "passwd: files trojan\n")), tag="evil")).ok
    sk.up("cc", "sleep 1000", image="evil")
    sk("create --name still evil").ok
    data = tar(entry("x", "data"))
    packed = {"tar": data, "gz": gzip.compress(data), "bz2": bz2.compress(data), "xz": lzma.compress(data)}
    with sk.case("top, export, commit, stats, diff"):
        for words in "top cc", "stats --no-stream cc", "diff cc", "export -o e.tar cc", "export -o e.tar still", "commit cc made", "exec -u root cc busybox true":
            sk(words).ok
    for name in "cc", "still":
        for kind in packed:
            with sk.case("cp to %s: %s" % (name, kind)):
                sk("cp - %s:/tmp" % name, input=packed[kind]).ok
                sk("cp -aL %s:/tmp/x" % name, sk.dir + "/copy").ok
    with sk.case("ADD, COPY, WORKDIR, USER"):
        for kind in packed:
            sk.file("ctx/a." + kind, packed[kind])
        sk.file("ctx/Dockerfile", "FROM evil\nWORKDIR /w\nADD --chown=app a.* /o/\nCOPY --chown=app a.tar /\nUSER app\n")
        sk("build -q -t made", sk.dir + "/ctx").ok
    with sk.case("none of them has been"):
        for line in "exec cc", "run --rm made":
            sk(line + " busybox ls /pwned /o").exits(1, "/pwned: No such")
        sk("cp still:/pwned", sk.dir + "/copy").exits(1, "could not find")


@only("b")
@timeout(180)
def test_swap_race(sk):
    """A mount target that a neighbour swaps for a symlink to the host while containers start."""
    canary = sk.folder("canary")
    shared = sk.folder("shared")
    sk.up("swap", "cd /s; mkdir -p a; while :; do mv a b; ln -s %s a; rm a; mv b a; done" % canary, "-v", shared + ":/s")
    for i in range(100):
        sk("run --rm -v %s:/s --tmpfs /s/a/mnt -w /s/a/wd busybox true" % shared)
    eq(os.listdir(canary), [], "the host's directory")


@only("b")
def test_limits(sk):
    with sk.case("fork bomb against nproc"):
        r = sk("run --rm --ulimit nproc=200 busybox sh -c", "for i in $(seq 300); do sleep 3 & done 2>/dev/null; echo end", wait=90)
        true(r.code in (0, 1, 2), "an ordered end")
    with sk.case("descriptor exhaustion of the caller"):
        import resource
        for n in 3, 4, 6, 10, 16, 24:
            r = sk("run --rm busybox true", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (n, n)))
            true(r.code in (0, 1, 125, 126, 127), "an ordered end with %d descriptors, got %d" % (n, r.code))
    with sk.case("nothing left of these"):
        until(lambda: not sk.processes(), "no process is left: %s" % sk.processes())
    with sk.case("memory of the caller"):
        import resource
        r = sk("images", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (64 << 20, 64 << 20)))
        true(r.code in (0, 1, 125), "an ordered end, got %d" % r.code)


@only("root")
@image(None)
def test_devices_of_the_host(sk):
    """The host's root in a container makes no device of the host, and uses none that the image brings, unless it may make them."""
    node = lambda name, minor: entry(name, type=tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=minor)
    archive = sk.file("nodes.tar", docker_archive(lib.busybox_layer(), tar(node("zero", 5), entry("d/"), node("d/zero", 5)), tag="nodes"))
    use = "for f in /zero /d/zero; do head -c 2 $f | wc -c; done; mknod /made c 1 5 && head -c 2 /made | wc -c; head -c 2 /dev/zero | wc -c"

    def root(*words):
        p = subprocess.run([lib.SKIFF, *words], env=dict(sk.env, SKIFF_ROOT=sk.dir + "/roots"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True, timeout=lib.PATIENCE)
        return p.stdout, p.stderr

    try:
        root("load", "-i", archive)
        for driver in "overlay", "copy":
            run = ["--storage-driver", driver, "run", "--rm", "--network", "none"]
            with sk.case(driver):
                out, err = root(*run, "nodes", "sh", "-c", use)
                eq(out.split(), ["0", "0", "2"], err)
                match(err, "(?s)/zero: Permission denied.*/d/zero: Permission denied.*mknod: /made: Operation not permitted")
            with sk.case(driver + ": it may"):
                out, err = root(*run, "--cap-add", "MKNOD", "nodes", "sh", "-c", use)
                eq(out.split(), ["2"] * 4, err)
            with sk.case(driver + ": --device"):
                eq(root(*run, "--device", "/dev/zero:/dev/other", "nodes", "head", "-c", "2", "/dev/other"), ("\0\0", ""))
    finally:
        shutil.rmtree(sk.dir + "/roots", ignore_errors=True)
