#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"

/* Loads the modules that `list` (a file of the initramfs, one path in a line) names, in that order, and removes their
 * files: what is loaded need not stay in memory. A module that is missing is said on the console; the step that needs
 * it fails with its own error. */
void load_modules(const char *list)
{
	static char names[8192];
	int fd = open(list, O_RDONLY | O_CLOEXEC);

	if (fd < 0) {
		say("casemate: %s: %s", list, strerror(errno));
		return;
	}
	ssize_t length = read(fd, names, sizeof names - 1);
	close(fd);
	if (length <= 0)
		return;
	names[length] = 0;
	char *rest = names, *name;
	while ((name = strsep(&rest, "\n"))) {
		if (!*name)
			continue;
		fd = open(name, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
			say("casemate: module %s: %s", name, strerror(errno));
		if (fd >= 0)
			close(fd);
		unlink(name);
	}
}
