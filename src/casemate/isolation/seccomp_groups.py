"""The allow-list of system calls as data: each group with the reason why a container may use it.

Equal in effect to the profile that Docker and Podman ship for the same capabilities (a test compares), except
where a reason below says otherwise. Names are those of libseccomp; one that an architecture or the installed
libseccomp does not know is passed over by the runtime.
"""

from __future__ import annotations

import sys

ALWAYS: dict[str, tuple[str, str]] = {
    "files": (
        "opening, reading, writing, naming and removing files: bounded by the mounts and the owner ids",
        """access chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
        fadvise64 fadvise64_64 fallocate fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync
        flock fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getdents getdents64
        ioctl lchown lchown32 link linkat _llseek lseek lstat lstat64 mkdir mkdirat mknod mknodat newfstatat open
        openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readdir readlink readlinkat
        readv rename renameat renameat2 rmdir sendfile sendfile64 splice stat stat64 statfs statfs64 statx symlink
        symlinkat sync sync_file_range sync_file_range2 arm_sync_file_range arm_fadvise64_64 syncfs tee truncate
        truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes write writev cachestat
        statmount listmount""",
    ),
    "names": (
        "the working folder and the root that a process sees",
        "chdir fchdir getcwd name_to_handle_at",
    ),
    "attributes": (
        "extended attributes: file capabilities and ACLs of packages",
        """fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr
        lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat""",
    ),
    "watching": (
        "waiting for descriptors and watching files",
        """epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old
        eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch _newselect poll
        ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4 timerfd timerfd_create timerfd_gettime
        timerfd_gettime64 timerfd_settime timerfd_settime64""",
    ),
    "asynchronous": (
        "the old asynchronous file interface of databases; io_uring is left out (most kernel escapes of late)",
        "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit",
    ),
    "memory": (
        "memory of the process itself; userfaultfd is left out (it holds races in the kernel open)",
        """brk get_thread_area madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2
        mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect
        process_mrelease remap_file_pages set_thread_area""",
    ),
    "processes": (
        "making, running, naming and ending processes in the container's own pid namespace",
        """capget capset execve execveat exit exit_group fork getpgid getpgrp getpid getppid getpriority getrlimit
        getrusage getsid gettid kill pause pidfd_open pidfd_send_signal prctl prlimit64 restart_syscall rseq
        rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
        rt_sigtimedwait_time64 rt_tgsigqueueinfo setpgid setpriority setrlimit set_robust_list get_robust_list setsid
        set_tid_address sigaction sigaltstack signal sigpending sigprocmask sigreturn sigsuspend tgkill tkill
        ugetrlimit vfork wait4 waitid waitpid""",
    ),
    "tracing": (
        "debuggers and stack dumps inside the container: same user namespace, kernel 4.8 or newer keeps seccomp",
        "ptrace process_vm_readv process_vm_writev",
    ),
    "confinement": (
        "a program may confine itself further",
        "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp",
    ),
    "identity": (
        "user and group ids, which are those of the pod's own range",
        """getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid
        getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32
        setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32""",
    ),
    "scheduling": (
        "priorities and cpus within the cgroup's limits",
        """getcpu ioprio_get ioprio_set nice sched_get_priority_max sched_get_priority_min sched_getaffinity
        sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
        sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield""",
    ),
    "locks": (
        "futexes of threads",
        "futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake",
    ),
    "time": (
        "reading clocks, sleeping, timers; setting a clock takes CAP_SYS_TIME",
        """adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
        clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create
        timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 times""",
    ),
    "sockets": (
        "sockets of the pod's own network namespace; which families may be opened stands in seccomp.py",
        """accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64
        recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketpair""",
    ),
    "messages": (
        "pipes, System V and POSIX queues, semaphores and shared memory of the pod's own ipc namespace",
        """ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
        mq_unlink msgctl msgget msgrcv msgsnd pipe pipe2 semctl semget semop semtimedop semtimedop_time64 shmat shmctl
        shmdt shmget""",
    ),
    "system": (
        "facts about the machine",
        "getrandom sysinfo uname lsm_get_self_attr lsm_list_modules uretprobe",
    ),
}

#: Calls of one architecture alone.
BY_MACHINE: dict[str, tuple[str, str]] = {
    "x86_64": ("thread-local storage, and the segments of old 32-bit programs", "arch_prctl modify_ldt"),
    "aarch64": ("cache maintenance and thread-local storage of 32-bit programs", "breakpoint cacheflush set_tls"),
}

#: Calls that a capability opens: without it they answer EPERM at once, whatever the kernel would say.
BY_CAPABILITY: dict[str, tuple[str, str]] = {
    "CAP_BPF": ("loading programs into the kernel", "bpf"),
    "CAP_DAC_READ_SEARCH": ("opening by handle passes by every folder's mode", "open_by_handle_at"),
    "CAP_PERFMON": ("performance counters read across processes", "perf_event_open"),
    "CAP_SYS_ADMIN": (
        "mounts, namespaces and the rest of what root alone may do",
        """bpf fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount open_tree
        open_tree_attr perf_event_open pivot_root quotactl quotactl_fd setdomainname sethostname setns syslog umount
        umount2 unshare""",
    ),
    "CAP_SYS_BOOT": ("restarting", "reboot"),
    "CAP_SYS_CHROOT": ("a root folder of one's own", "chroot"),
    "CAP_SYS_MODULE": ("kernel modules", "delete_module finit_module init_module"),
    "CAP_SYS_NICE": ("placing memory on nodes", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    "CAP_SYS_PACCT": ("process accounting", "acct"),
    "CAP_SYS_PTRACE": ("reaching into other users' processes", "kcmp pidfd_getfd process_madvise"),
    "CAP_SYS_RAWIO": ("input and output ports", "ioperm iopl"),
    "CAP_SYS_TIME": ("setting clocks", "clock_settime clock_settime64 settimeofday stime"),
    "CAP_SYS_TTY_CONFIG": ("hanging up terminals", "vhangup"),
    "CAP_SYSLOG": ("reading the kernel's log", "syslog"),
}

#: Refused whatever the capabilities, with EPERM so that programs do not take the kernel for an old one.
NEVER: dict[str, tuple[str, str]] = {
    "keyring": ("the kernel's keyrings know no container", "add_key keyctl request_key"),
    "kexec": ("another kernel", "kexec_file_load kexec_load"),
    "swap": ("the host's swap", "swapoff swapon"),
    "races": (
        "attack surface that images can do without: programs fall back",
        "io_uring_enter io_uring_register io_uring_setup userfaultfd vmsplice",
    ),
    "moving": ("moving other processes' pages", "migrate_pages move_pages"),
    "old": (
        "calls that nothing of the last ten years uses",
        """bdflush nfsservctl oldfstat oldlstat oldolduname oldstat olduname sgetmask ssetmask sysfs _sysctl uselib
        ustat vm86 vm86old""",
    ),
}


def names(text: str) -> tuple[str, ...]:
    """The names in one group's text, each name once for all who ask."""
    return tuple(map(sys.intern, text.split()))
