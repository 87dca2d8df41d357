/* The system calls that a monitor may make once its QEMU runs: what its loop is made of, and nothing else. It opens no
 * file, makes no socket, no process and no memory that holds code; it kills one process, its own QEMU. Whatever else it
 * asks for, it has been broken into: it ends, and QEMU with it. A test counts them and makes it ask for others. */
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim.h"

static const unsigned short allowed_monitor[] = {
	/* the loop: the port, standard files, hostd, the console */
	SYS_poll, SYS_recvfrom, SYS_sendto, SYS_recvmsg, SYS_sendmsg, SYS_read, SYS_write, SYS_restart_syscall,
	/* hostd comes and goes */
	SYS_accept4, SYS_getsockopt,
	/* a channel's place, and its end */
	SYS_brk, SYS_munmap, SYS_close,
	/* QEMU's end and its own */
	SYS_wait4, SYS_exit_group,
};

enum { MONITOR_COUNT = sizeof allowed_monitor / sizeof *allowed_monitor, ROOM = 2 * MONITOR_COUNT + 16 };

#define LOAD(member) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, member))
/* The low half of an argument: all of those that are looked at here are 32 bits wide for the kernel. */
#define ARGUMENT(number) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args) + 8 * (number))
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, what)
#define IS(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no)

/* Needs no_new_privs. 0, or -1 with errno. */
int seccomp_enter_monitor(pid_t qemu)
{
	struct sock_filter program[ROOM] = {
		LOAD(arch),
		IS(AUDIT_ARCH_X86_64, 1, 0),
		RETURN(SECCOMP_RET_KILL_PROCESS),
		LOAD(nr),
	};
	const struct sock_filter tail[] = {
		/* kill: QEMU alone, by KILL alone */
		IS(SYS_kill, 0, 4),
		ARGUMENT(0),
		IS((uint32_t)qemu, 0, 6),
		ARGUMENT(1),
		IS(SIGKILL, 5, 4),
		/* mmap, where brk cannot grow: never of what can be executed */
		IS(SYS_mmap, 0, 3),
		ARGUMENT(2),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 1, 0),
		RETURN(SECCOMP_RET_ALLOW),
		RETURN(SECCOMP_RET_KILL_PROCESS),
		RETURN(SECCOMP_RET_ALLOW),
	};
	unsigned short used = 4;

	for (int i = 0; i < MONITOR_COUNT; i++) {
		program[used++] = (struct sock_filter)IS(allowed_monitor[i], 0, 1);
		program[used++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
	}
	for (size_t i = 0; i < sizeof tail / sizeof *tail; i++)
		program[used++] = tail[i];
	struct sock_fprog whole = { .len = used, .filter = program };
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_LOG, &whole);
}
