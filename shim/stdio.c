/* `casemate-vm stdio UID:GID PROGRAM ARGUMENTS`: an OCI runtime's exec whose standard files are the process's own. conmon
 * makes the pipes as the host's root, whom a container's user namespace does not know: they can be written to, and opening
 * /dev/stdout or /proc/self/fd/1 anew is refused. For a container's first process the runtime does this itself; crun 1.8
 * does not for a further one. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shim.h"

static unsigned long number(const char *text, char until)
{
	char *end;
	unsigned long found;

	errno = 0;
	found = strtoul(text, &end, 10);
	if (errno || end == text || *end != until || found >= UINT32_MAX || text[0] < '0' || text[0] > '9')
		die("stdio: %s is no UID:GID", text);
	return found;
}

void stdio_main(char **argv)
{
	const char *colon = strchr(argv[0], ':');
	unsigned long uid = number(argv[0], ':'), gid = number(colon + 1, '\0');

	for (int fd = 0; fd < 3; fd++) {
		struct stat status;

		/* Pipes alone: /dev/null, or a file that somebody opened, is everybody's or its owner's. */
		if (fstat(fd, &status) || !S_ISFIFO(status.st_mode) || status.st_uid)
			continue;
		if (fchown(fd, (uid_t)uid, (gid_t)gid))
			die("stdio: %d: %s", fd, strerror(errno));
	}
	execv(argv[1], argv + 1);
	die("%s: %s", argv[1], strerror(errno));
}
