/* libseccomp takes the kernel's own seccomp header. */
#define HAVE_LINUX_SECCOMP_H 1
