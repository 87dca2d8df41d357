/* The network namespace that an engine names, or a new one: entered for as long as the waiter is made, so that
 * /proc/<pid>/ns/net of the container's first process is where an engine looks for it. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "shim.h"

int netns_enter(const char *name)
{
	if (!*name)
		return -1;
	int before = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (before < 0)
		die("/proc/self/ns/net: %s", strerror(errno));
	if (!strcmp(name, "new")) {
		if (unshare(CLONE_NEWNET) < 0)
			die("a new network namespace: %s", strerror(errno));
		return before;
	}
	int fd = open(name, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWNET) < 0)
		die("network namespace %s: %s", name, strerror(errno));
	close(fd);
	return before;
}

void netns_leave(int before)
{
	if (before < 0)
		return;
	if (setns(before, CLONE_NEWNET) < 0)
		die("back from the network namespace: %s", strerror(errno));
	close(before);
}
