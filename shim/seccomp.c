/* The system calls that QEMU may make, beneath the filter of its own (-sandbox), which denies more once it has started.
 * A filter cannot be exchanged for a narrower one later in every thread, so this one holds what a start needs, too. What is
 * used once a guest runs is a third of it: docs/security/system-calls.md has the numbers, and the test that counts them. */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "shim.h"

/* The often used first: the kernel goes through them in order. */
static const unsigned short allowed[] = {
	/* the loop, the guest's cpu, the disk */
	SYS_futex, SYS_write, SYS_ppoll, SYS_read, SYS_mprotect, SYS_recvmsg, SYS_sendmsg, SYS_preadv, SYS_pread64,
	SYS_readv, SYS_writev, SYS_poll, SYS_clock_nanosleep, SYS_clock_gettime, SYS_ioctl, SYS_madvise, SYS_rt_sigprocmask,
	/* memory, threads and their end */
	SYS_mmap, SYS_munmap, SYS_mremap, SYS_brk, SYS_clone, SYS_clone3, SYS_set_robust_list, SYS_rseq, SYS_membarrier,
	SYS_set_mempolicy, SYS_get_mempolicy, SYS_sched_yield, SYS_sched_getaffinity, SYS_gettid, SYS_getpid, SYS_getppid,
	SYS_tgkill, SYS_rt_sigaction, SYS_rt_sigreturn, SYS_rt_sigtimedwait, SYS_sigaltstack, SYS_signalfd4,
	SYS_restart_syscall, SYS_exit, SYS_exit_group,
	/* descriptors that are passed in */
	SYS_close, SYS_fcntl, SYS_dup, SYS_lseek, SYS_fstat, SYS_newfstatat, SYS_eventfd2, SYS_pipe2, SYS_memfd_create,
	SYS_ftruncate, SYS_fadvise64, SYS_fallocate, SYS_fdatasync, SYS_getsockopt, SYS_setsockopt, SYS_getsockname,
	SYS_getpeername, SYS_shutdown, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_wait, SYS_epoll_pwait,
	SYS_timerfd_create, SYS_timerfd_settime,
	/* the start: the program, its libraries, its own sandbox */
	SYS_execve, SYS_arch_prctl, SYS_set_tid_address, SYS_prctl, SYS_seccomp, SYS_prlimit64, SYS_getrlimit, SYS_access,
	SYS_openat, SYS_open, SYS_stat, SYS_readlink, SYS_getrandom, SYS_sysinfo, SYS_uname, SYS_getcwd, SYS_getuid,
	SYS_geteuid, SYS_getgid, SYS_getegid, SYS_umask,
	/* folders of the host (9p): in a mount namespace that holds nothing else */
	SYS_openat2, SYS_statfs, SYS_fstatfs, SYS_statx, SYS_getdents64, SYS_pwrite64, SYS_pwritev, SYS_fsync, SYS_mkdirat,
	SYS_mknodat, SYS_linkat, SYS_symlinkat, SYS_readlinkat, SYS_unlinkat, SYS_renameat, SYS_renameat2, SYS_fchmod,
	SYS_fchmodat, SYS_fchown, SYS_fchownat, SYS_faccessat, SYS_faccessat2, SYS_utimensat, SYS_fgetxattr, SYS_lgetxattr,
	SYS_llistxattr, SYS_flistxattr, SYS_fsetxattr, SYS_lsetxattr, SYS_fremovexattr, SYS_lremovexattr, SYS_truncate,
	SYS_fchdir, SYS_chmod,
};

enum { COUNT = sizeof allowed / sizeof *allowed, HEAD = 4 };
_Static_assert(COUNT < 250, "a jump of the kernel's filter language reaches 255 instructions");

/* Needs no_new_privs. 0, or -1 with errno. */
int seccomp_enter(void)
{
	struct sock_filter program[HEAD + COUNT + 2] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	};

	for (int i = 0; i < COUNT; i++)
		program[HEAD + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i],
			(unsigned char)(COUNT - i), 0);
	program[HEAD + COUNT] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
	program[HEAD + COUNT + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog whole = { .len = HEAD + COUNT + 2, .filter = program };
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &whole, 0, 0);
}
