/* Makes a thread of another process ask the kernel for one system call, as code that broke into it would:
 *     inject step|leave PID NUMBER ARGUMENT...
 * step: prints what the call answered (negative: an errno), "trapped" where a filter raises SIGSYS (which is taken back,
 * since the kernel keeps an init that is traced from dying of it), or "killed SIGNAL". leave: lets go of the thread just
 * before the call, so that all is as without a tracer; what becomes of the process is to be seen afterwards.
 * An argument is a number, or "=text": the address of that text, put below the thread's stack. The
 * thread must wait in a system call: the two bytes before its instruction pointer are then "syscall", which is used
 * again. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

static void must(long answer, const char *what)
{
	if (answer < 0) {
		perror(what);
		exit(2);
	}
}

/* Waits for the next stop, whether it is SIGSYS's; prints and ends when the process is gone. */
static int await_stop(pid_t pid)
{
	int status;

	must(waitpid(pid, &status, __WALL), "waitpid");
	if (WIFSTOPPED(status))
		return WSTOPSIG(status) == SIGSYS;
	printf("killed %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : -1);
	exit(0);
}

int main(int argc, char **argv)
{
	struct user_regs_struct before, now;
	unsigned long long arguments[6] = { 0 };

	if (argc < 4 || argc > 10)
		return 2;
	int leaves = !strcmp(argv[1], "leave");
	argv++, argc--;
	pid_t pid = atoi(argv[1]);
	must(ptrace(PTRACE_SEIZE, pid, 0, 0), "seize");
	must(ptrace(PTRACE_INTERRUPT, pid, 0, 0), "interrupt");
	await_stop(pid);
	must(ptrace(PTRACE_GETREGS, pid, 0, &before), "registers");
	now = before;
	unsigned long long place = (before.rsp - 8192) & ~15ULL;
	for (int i = 3; i < argc; i++) {
		if (*argv[i] != '=') {
			arguments[i - 3] = strtoull(argv[i], NULL, 0);
			continue;
		}
		struct iovec ours = { argv[i] + 1, strlen(argv[i]) }, theirs = { (void *)place, strlen(argv[i]) };
		must(process_vm_writev(pid, &ours, 1, &theirs, 1, 0), "write");
		arguments[i - 3] = place;
		place += 1024;
	}
	now.rip = before.rip - 2;
	now.rax = strtoull(argv[2], NULL, 0);
	now.orig_rax = (unsigned long long)-1;
	now.rdi = arguments[0], now.rsi = arguments[1], now.rdx = arguments[2];
	now.r10 = arguments[3], now.r8 = arguments[4], now.r9 = arguments[5];
	must(ptrace(PTRACE_SETREGS, pid, 0, &now), "registers");
	if (leaves) {
		must(ptrace(PTRACE_DETACH, pid, 0, 0), "detach");
		return 0;
	}
	must(ptrace(PTRACE_SINGLESTEP, pid, 0, 0), "step");
	int trapped = await_stop(pid);
	must(ptrace(PTRACE_GETREGS, pid, 0, &now), "registers");
	if (trapped)
		printf("trapped\n");
	else
		printf("%lld\n", (long long)now.rax);
	must(ptrace(PTRACE_SETREGS, pid, 0, &before), "registers");
	must(ptrace(PTRACE_DETACH, pid, 0, 0), "detach");
	return 0;
}
