/* The cgroups of one micro-VM's monitor and of its QEMU, without a wait.
 *
 * A process that is moved makes the kernel wait for every cpu (cgroup_threadgroup_rwsem): 8 to 30 ms, in which QEMU would
 * not begin. A thread that moves itself does not wait: version 1 allows that (tasks), and the monitor is of one thread. Nor
 * does a process that is born in its cgroup, which is the way of version 2: QEMU first, then its parent follows, which
 * has nothing to do until QEMU has begun. */
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim.h"

static const char *version_2;

static int write_zero(const char *folder, const char *file)
{
	char path[4096];

	if (snprintf(path, sizeof path, "%s/%s", folder, file) >= (int)sizeof path)
		return errno = ENAMETOOLONG, -1;
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t written = fd < 0 ? -1 : write(fd, "0", 1);
	int error = errno;
	if (fd >= 0)
		close(fd);
	errno = error;
	return written == 1 ? 0 : -1;
}

static void move_to(const char *folder)
{
	if (write_zero(folder, "cgroup.procs") < 0)
		die("%s/cgroup.procs: %s", folder, strerror(errno));
}

void cgroup_join(const char *folder)
{
	if (write_zero(folder, "tasks") == 0)
		return;
	if (errno != ENOENT)
		die("%s/tasks: %s", folder, strerror(errno));
	if (version_2)
		move_to(version_2);
	version_2 = folder;
}

/* As fork(2), with new namespaces and in the cgroup of version 2, if there is one. */
pid_t cgroup_clone(unsigned long flags)
{
	int fd = version_2 ? open(version_2, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
	struct clone_args arguments = { .flags = flags | CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)fd };

	if (version_2 && fd < 0)
		die("%s: %s", version_2, strerror(errno));
	pid_t pid = fd < 0 ? -1 : (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
	if (pid > 0)
		close(fd);
	if (pid >= 0)
		return pid;
	/* A kernel before 5.7, a filter around us, or no such cgroup: then as everywhere. */
	if (version_2)
		move_to(version_2);
	version_2 = NULL;
	return (pid_t)syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, 0);
}

/* After QEMU was cloned; where that cannot be, it does not stay. */
void cgroup_follow(pid_t qemu)
{
	if (version_2 && write_zero(version_2, "cgroup.procs") < 0) {
		int error = errno;
		kill(qemu, SIGKILL);
		die("%s/cgroup.procs: %s", version_2, strerror(error));
	}
}
