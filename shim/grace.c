/* What a start of runsc would wait for, and does not need: RCU grace periods, 8 to 25 ms each.
 *
 * **A registration.** A runsc of 2022 or 2024 registers each of its processes for membarrier's private expedited
 * command before their main function (later ones where the platform wants it). To a process with threads, as every Go
 * program is by then, the kernel answers when a grace period has passed: half of what such a process takes to start,
 * and four of them stand one behind the other in the start of a container. The platforms ptrace and systrap never give
 * that command. So for these the registration is answered at once, by a filter that the processes of the sandbox
 * inherit; the kernel keeps in a bitmap that it lets all other calls through, which then costs nothing. (With an error
 * for an answer runsc would warn on standard error, which is the container's.) membarrier(2) inside the sandbox goes by
 * the global command, which is untouched.
 *
 * **A table of descriptors that grows.** The sandbox puts its container's standard files on the numbers from 256 on.
 * Its table has room for 64, and one that threads share is exchanged for a larger one after a grace period. A table is
 * as large as its highest number wants when a process begins: so the sandbox begins with one above these, which names
 * /dev/null and is good for nothing (O_PATH).
 *
 * **Changes of cgroup.** `runsc create` joins the container's cgroups for the time in which it makes the sandbox, and
 * then goes back: twice it is the first for a while that takes the kernel's lock for such changes, for which a grace
 * period must pass; who takes it while that still shows waits for nothing. So while runsc starts, a process beside it
 * moves itself to where it is already, which changes nothing, takes the lock, and lets the first grace period pass
 * while runsc still reads its tables; and again every few milliseconds until `create` has ended. */
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/membarrier.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

enum { ABOVE_ITS_STDIO = 511, PERIOD_NS = 4000000, MOST_PERIODS = 100 };

#define LOAD(member) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, member))
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, what)
#define IS(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no)

/* For runsc with the command line *argv*, which is about to take the place of this process. */
void spare_registration(char **argv)
{
	const struct sock_filter program[] = {
		LOAD(arch),
		IS(AUDIT_ARCH_X86_64, 0, 5),
		LOAD(nr),
		IS(SYS_membarrier, 0, 3),
		LOAD(args[0]),
		IS(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 1),
		RETURN(SECCOMP_RET_ERRNO),
		RETURN(SECCOMP_RET_ALLOW),
	};
	const struct sock_fprog whole = { .len = sizeof program / sizeof *program, .filter = (struct sock_filter *)program };

	while (*argv && strcmp(*argv, "--platform=ptrace") && strcmp(*argv, "--platform=systrap"))
		argv++;
	/* By CAP_SYS_ADMIN; who has it not only waits, as before. */
	if (*argv)
		(void)!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &whole);
}

/* Before a runsc that makes a sandbox. */
void spare_larger_table(void)
{
	int null = open("/dev/null", O_PATH | O_CLOEXEC);

	if (null >= 0 && fcntl(ABOVE_ITS_STDIO, F_GETFD) < 0)
		(void)!dup2(null, ABOVE_ITS_STDIO);
	if (null >= 0)
		close(null);
}

/* The file by which this process joins the cgroup that it is in, of any hierarchy; -1 where none can be written. */
static int own_group(void)
{
	char line[512], file[512], *path;
	FILE *list = fopen("/proc/self/cgroup", "re");
	int found = -1;

	while (list && found < 0 && fgets(line, sizeof line, list)) {
		char *names = strchr(line, ':');

		line[strcspn(line, "\n")] = 0;
		if (!names || !(path = strchr(++names, ':')))
			continue;
		*path++ = 0;
		/* A hierarchy of version 1 is where its controllers' names say; version 2 has none. */
		snprintf(file, sizeof file, "/sys/fs/cgroup/%s%s/cgroup.procs", names, path);
		found = open(file, O_WRONLY | O_CLOEXEC);
	}
	if (list)
		fclose(list);
	return found;
}

/* Before a runsc that joins cgroups: the process beside it, which ends with it. */
void spare_first_change(void)
{
	const struct timespec period = { .tv_nsec = PERIOD_NS };
	pid_t runsc = getpid();

	if (fork())
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	int group = dup2(own_group(), 0);
	close_range(1, ~0U, 0);
	for (int i = 0; i < MOST_PERIODS && getppid() == runsc && group >= 0; i++) {
		if (write(group, "0", 1) != 1)
			break;
		nanosleep(&period, NULL);
	}
	_exit(0);
}
