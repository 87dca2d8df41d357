"""The system calls that shim/seccomp.c lets QEMU and its 9p server make: to be shown, never applied from here."""

from __future__ import annotations

from casemate.isolation.seccomp_groups import names

#: A test holds it equal to the filter's own list.
ALLOWED = frozenset(
    names("""
    access arch_prctl brk chmod clock_gettime clock_nanosleep clone clone3 close dup epoll_create1 epoll_ctl
    epoll_pwait epoll_wait eventfd2 execve exit exit_group faccessat faccessat2 fadvise64 fallocate fchdir fchmod
    fchmodat fchown fchownat fcntl fdatasync fgetxattr flistxattr fremovexattr fsetxattr fstat fstatfs fsync
    ftruncate futex get_mempolicy getcwd getdents64 getegid geteuid getgid getpeername getpid getppid getrandom
    getrlimit getsockname getsockopt gettid getuid ioctl lgetxattr linkat llistxattr lremovexattr lseek lsetxattr
    madvise membarrier memfd_create mkdirat mknodat mmap mprotect mremap munmap newfstatat open openat openat2 pipe2
    poll ppoll prctl pread64 preadv prlimit64 pwrite64 pwritev read readlink readlinkat readv recvmsg renameat
    renameat2 restart_syscall rseq rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait sched_getaffinity
    sched_yield seccomp sendmsg set_mempolicy set_robust_list set_tid_address setsockopt shutdown sigaltstack
    signalfd4 stat statfs statx symlinkat sysinfo tgkill timerfd_create timerfd_settime truncate umask uname
    unlinkat utimensat write writev
    """)
)
