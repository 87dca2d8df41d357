/* A terminal in the foreground whose two ends are not one terminal of the caller's: bytes of standard input go to a
 * terminal of our own, and what that shows goes to standard output, as when there is no supervisor to hold it. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "shim.h"

enum { CHUNK = 16384 };

/* Whether standard input and output are the same terminal, which the container can then have as it is. */
int relay_is_needed(void)
{
	struct stat in, out;

	return !isatty(0) || !isatty(1) || fstat(0, &in) < 0 || fstat(1, &out) < 0 || in.st_rdev != out.st_rdev;
}

static int write_all(int fd, const char *bytes, size_t length)
{
	while (length) {
		ssize_t wrote = write(fd, bytes, length);
		if (wrote < 0 && errno == EAGAIN) {
			struct pollfd one = { fd, POLLOUT, 0 };
			poll(&one, 1, -1);
			continue;
		}
		if (wrote <= 0)
			return -1;
		bytes += wrote;
		length -= (size_t)wrote;
	}
	return 0;
}

/* Until nobody holds the other end of the terminal any more. */
_Noreturn static void copy(int master)
{
	char bytes[CHUNK];
	struct pollfd two[2] = { { 0, POLLIN, 0 }, { master, POLLIN, 0 } };

	signal(SIGPIPE, SIG_IGN);
	for (;;) {
		if (poll(two, 2, -1) < 0)
			continue;
		if (two[1].revents) {
			ssize_t got = read(master, bytes, sizeof bytes);
			if (got <= 0 || write_all(1, bytes, (size_t)got) < 0)
				_exit(0);
		}
		if (two[0].revents) {
			ssize_t got = read(0, bytes, sizeof bytes);
			if (got <= 0 || write_all(master, bytes, (size_t)got) < 0)
				two[0].fd = -1;
		}
	}
}

/* The process that copies; the caller closes its own `master`. */
pid_t relay_fork(int master, int slave)
{
	struct winsize size;

	for (int i = 0; i < 3; i++) {
		if (isatty(i) && ioctl(i, TIOCGWINSZ, &size) == 0) {
			ioctl(slave, TIOCSWINSZ, &size);
			break;
		}
	}
	pid_t pid = fork();
	if (pid)
		return pid;
	close(slave);
	copy(master);
}
