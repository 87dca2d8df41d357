/* The process that a supervisor (conmon, containerd's shim) sees as the container's first one: it ends with its exit
 * code, passes signals and the terminal's size on, and holds nothing but a socket to the VM's monitor. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include "shim.h"

/* A description of our own, so that O_NONBLOCK does not reach whoever shares the descriptor with us. */
static int reopen(int fd, int flags)
{
	char path[32];
	struct stat status;

	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	if (fstat(fd, &status) == 0 && (S_ISFIFO(status.st_mode) || S_ISCHR(status.st_mode))) {
		int own = open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
		if (own >= 0)
			return own;
	}
	/* A socket cannot be opened, and a file would lose its place: passed as they are. */
	int again = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (again < 0) {
		again = open("/dev/null", flags | O_CLOEXEC);
		if (again < 0)
			die("/dev/null: %s", strerror(errno));
	}
	return again;
}

static void send_terminal(const char *path, int master)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof address.sun_path)
		die("%s: the name of a socket has at most %zu bytes", path, sizeof address.sun_path - 1);
	strcpy(address.sun_path, path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
		die("console socket %s: %s", path, strerror(errno));
	int error = send_fds(fd, "/dev/ptmx", 9, &master, 1);
	if (error)
		die("console socket %s: %s", path, strerror(error));
	close(fd);
}

/* `console_socket` NULL: the other end is ours, for a process that copies. */
static void open_terminal(struct stdio *stdio, const char *console_socket)
{
	struct termios raw;
	int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
	char name[64];

	if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0 || ptsname_r(master, name, sizeof name))
		die("terminal: %s", strerror(errno));
	stdio->terminal = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (stdio->terminal < 0 || tcgetattr(stdio->terminal, &raw) < 0)
		die("terminal: %s", strerror(errno));
	/* The line discipline is the guest's; this end passes bytes. */
	cfmakeraw(&raw);
	tcsetattr(stdio->terminal, TCSANOW, &raw);
	if (console_socket)
		send_terminal(console_socket, master);
	else if ((stdio->relay = relay_fork(master, stdio->terminal)) < 0)
		die("fork: %s", strerror(errno));
	close(master);
	stdio->fds[stdio->count++] = reopen(stdio->terminal, O_RDWR);
}

void stdio_open(struct stdio *stdio, const struct options *options, int terminal)
{
	int pair[2];

	*stdio = (struct stdio){ .terminal = -1 };
	if (terminal && (options->console_socket || (!options->detach && relay_is_needed()))) {
		open_terminal(stdio, options->console_socket);
	} else if (terminal) {
		/* In the foreground: the caller's own terminal, which the caller has set to raw. */
		stdio->terminal = 0;
		stdio->fds[stdio->count++] = reopen(0, O_RDWR);
	} else {
		stdio->fds[stdio->count++] = reopen(0, O_RDONLY);
		stdio->fds[stdio->count++] = reopen(1, O_WRONLY);
		stdio->fds[stdio->count++] = reopen(2, O_WRONLY);
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		die("socketpair: %s", strerror(errno));
	stdio->exit_socket = pair[0];
	stdio->fds[stdio->count++] = pair[1];
}

void drop_privileges(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = { { 0 } };

	for (int i = 0; i < 64; i++)
		if (prctl(PR_CAPBSET_DROP, i, 0, 0, 0) < 0)
			break;
	syscall(SYS_capset, &head, none);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static void send_size(const struct stdio *stdio)
{
	struct winsize size;
	uint8_t message[5] = { 'R' };

	/* A terminal that nobody has sized says nothing against the size that the bundle names. */
	if (stdio->terminal < 0 || ioctl(stdio->terminal, TIOCGWINSZ, &size) < 0 || (!size.ws_row && !size.ws_col))
		return;
	wire_put_u16(message + 1, size.ws_row);
	wire_put_u16(message + 3, size.ws_col);
	send(stdio->exit_socket, message, sizeof message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void forward(const struct stdio *stdio, int signal)
{
	uint8_t message[2] = { 'K', (uint8_t)signal };

	if (signal == SIGWINCH)
		send_size(stdio);
	else if (signal != SIGCHLD)
		send(stdio->exit_socket, message, sizeof message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

_Noreturn void waiter_run(const struct stdio *stdio)
{
	struct signalfd_siginfo information;
	sigset_t all;
	uint8_t code[4];

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	int signals = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
	send_size(stdio);
	for (;;) {
		struct pollfd two[2] = { { stdio->exit_socket, POLLIN, 0 }, { signals, POLLIN, 0 } };
		if (poll(two, 2, -1) < 0)
			continue;
		while (read(signals, &information, sizeof information) == sizeof information)
			forward(stdio, (int)information.ssi_signo);
		if (!two[0].revents)
			continue;
		ssize_t got = recv(stdio->exit_socket, code, sizeof code, MSG_DONTWAIT);
		if (got == 4)
			_exit((int)(wire_u32(code) & 255));
		if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
			_exit(137); /* the monitor is gone, and the machine with it */
	}
}

static void must(int result)
{
	if (result < 0)
		_exit(125);
}

/* A /proc of its own, which shows this process alone, and nothing else of the host's files: Podman's `top` enters the mount
 * namespace of the container's process and lists what /proc has there. No mount of the host stays held by it, and none that
 * comes later is copied here. */
static void hide_host(void)
{
	static const char users[] = "root:x:0:0::/:\n";

	must(mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL));
	must(mount("casemate", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=64k,mode=755"));
	must(chdir("/proc"));
	must(mkdir("proc", 0555));
	must(mkdir("etc", 0755));
	int fd = open("etc/passwd", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	must(fd);
	must(write(fd, users, sizeof users - 1) < 0 ? -1 : 0);
	close(fd);
	must(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
	must((int)syscall(SYS_pivot_root, ".", "."));
	must(umount2(".", MNT_DETACH));
	/* Podman's `cp` would write a running container's files here, and say that it did. */
	must(mount("casemate", "/", NULL, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=64k,mode=755"));
}

pid_t waiter_fork(const struct stdio *stdio, int alone, uint32_t namespaces)
{
	/* Then the first process of a pid namespace of its own; to everybody outside it is one like another. */
	unsigned long flags = CLONE_NEWPID | CLONE_NEWNS | SIGCHLD |
		(namespaces & (CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP));
	pid_t pid = alone ? (pid_t)syscall(SYS_clone, flags, NULL, NULL, NULL, 0) : fork();

	if (pid)
		return pid;
	if (alone)
		hide_host();
	setsid();
	if (stdio->terminal > 2)
		ioctl(stdio->terminal, TIOCSCTTY, 0);
	/* Only the exit socket and the terminal stay: an open pipe of the supervisor's would hold up its end. */
	int keep[2] = { stdio->exit_socket, stdio->terminal };
	int low = keep[0] < keep[1] ? keep[0] : keep[1], high = keep[0] < keep[1] ? keep[1] : keep[0];
	if (low > 0)
		close_range(0, (unsigned)low - 1, 0);
	if (high > low + 1)
		close_range((unsigned)low + 1, (unsigned)high - 1, 0);
	close_range((unsigned)high + 1, ~0U, 0);
	if (chdir("/") < 0)
		_exit(125);
	prctl(PR_SET_NAME, "casemate-vm");
	drop_privileges();
	waiter_run(stdio);
}
