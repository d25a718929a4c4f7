/* inside PID NUMBER [ARGUMENT...] - makes one system call in another process of the same user, as
 * code that has taken the process over could, and prints what it returned: a number, or the name of
 * the error. An argument that begins with a digit or "-" is a number; any other is a text that is
 * put on the stack there. x86-64. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>

static pid_t pid;

static void check(long rc, const char *what) {
    if (rc >= 0) return;
    perror(what);
    exit(errno == EPERM ? 77 : 1);
}

static void go_on(int to_stop) {
    int status;
    check(ptrace(to_stop, pid, 0, 0), "continue");
    check(waitpid(pid, &status, __WALL), "wait");
    if (!WIFSTOPPED(status)) {
        printf("ended\n");
        exit(0);
    }
}

int main(int argc, char **argv) {
    struct user_regs_struct was, now;
    unsigned long long *to[] = { &now.rdi, &now.rsi, &now.rdx, &now.r10, &now.r8, &now.r9 };
    if (argc < 3 || argc > 9) return 2;
    pid = atoi(argv[1]);
    check(ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACESYSGOOD), "seize");
    check(ptrace(PTRACE_INTERRUPT, pid, 0, 0), "interrupt");
    check(waitpid(pid, NULL, __WALL), "wait");
    check(ptrace(PTRACE_GETREGS, pid, 0, &was), "registers");
    now = was;
    now.rip -= 2; /* it waits in a call: the instruction before is "syscall" */
    now.rax = strtoull(argv[2], NULL, 0);
    now.orig_rax = -1ull;
    unsigned long long at = (was.rsp - 8192) & ~15ull;
    for (int i = 3; i < argc; i++) {
        size_t n = strlen(argv[i]) + 1;
        if (strchr("-0123456789", *argv[i])) {
            *to[i - 3] = strtoull(argv[i], NULL, 0);
            continue;
        }
        *to[i - 3] = at;
        for (size_t k = 0; k < n; k += 8, at += 8) {
            long word = 0;
            memcpy(&word, argv[i] + k, n - k < 8 ? n - k : 8);
            check(ptrace(PTRACE_POKEDATA, pid, at, word), "write");
        }
    }
    check(ptrace(PTRACE_SETREGS, pid, 0, &now), "registers");
    go_on(PTRACE_SYSCALL);
    go_on(PTRACE_SYSCALL);
    check(ptrace(PTRACE_GETREGS, pid, 0, &now), "registers");
    check(ptrace(PTRACE_SETREGS, pid, 0, &was), "registers");
    check(ptrace(PTRACE_DETACH, pid, 0, 0), "detach");
    long rc = (long)now.rax;
    if (rc < 0 && rc >= -4095) printf("%s\n", strerrorname_np((int)-rc));
    else printf("%ld\n", rc);
    return 0;
}
