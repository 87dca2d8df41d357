/* The child between clone and execve. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

_Noreturn static void fail(int channel, int error, const char *why)
{
	channel_send(channel, error ? error : EINVAL, why, -1);
	_exit(125);
}

/* A terminal of the container's own devpts, which becomes its controlling one; the agent gets the other end. */
static int open_terminal(const struct request *r, int *master)
{
	char name[32];
	unsigned number;
	int unlock = 0;

	*master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	if (*master < 0 || ioctl(*master, TIOCSPTLCK, &unlock) < 0 || ioctl(*master, TIOCGPTN, &number) < 0)
		return errno;
	snprintf(name, sizeof name, "/dev/pts/%u", number);
	int slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (slave < 0)
		return errno;
	struct winsize size = { .ws_row = r->rows, .ws_col = r->columns };
	if (r->rows && ioctl(slave, TIOCSWINSZ, &size) < 0)
		return errno;
	if (fchown(slave, r->uid, (gid_t)-1) < 0 && errno != EROFS)
		return errno;
	if (ioctl(slave, TIOCSCTTY, 0) < 0)
		return errno;
	for (int i = 0; i < 3; i++)
		if (dup2(slave, i) < 0)
			return errno;
	return 0;
}

/* Standard input that nobody writes to is the container's own /dev/null, and not that of a file system that it left. */
static void reopen_null(const struct request *r)
{
	struct stat status;

	if (r->flags & (FLAG_STDIN | FLAG_TERMINAL))
		return;
	int fd = open("/dev/null", O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (fstat(fd, &status) == 0 && S_ISCHR(status.st_mode) && status.st_rdev == makedev(1, 3) &&
	    fcntl(fd, F_SETFL, 0) == 0)
		dup2(fd, 0);
	close(fd);
}

static void own_standard_files(const struct request *r)
{
	struct stat status;

	reopen_null(r);
	/* So that the process may open /dev/stdout again; pipes only, never /dev/null. */
	for (int i = 0; i < 3; i++)
		if (fstat(i, &status) == 0 && S_ISFIFO(status.st_mode) && fchown(i, r->uid, r->gid) < 0)
			continue;
}

static void default_signals(void)
{
	struct sigaction action = { .sa_handler = SIG_DFL };
	sigset_t none;

	for (int i = 1; i < 65; i++)
		if (i != SIGKILL && i != SIGSTOP)
			sigaction(i, &action, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static const char *path_variable(const struct request *r)
{
	for (size_t i = 0; i < r->env_count; i++)
		if (!strncmp(r->env[i], "PATH=", 5))
			return r->env[i] + 5;
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
}

/* As execvpe, with the container's PATH and no shell for what has no magic number: the errno that best says why. */
static int execute(const struct request *r, const char *const *env)
{
	char path[4096];
	const char *name = r->args[0], *list = path_variable(r);
	int found = ENOENT;

	if (strchr(name, '/')) {
		execve(name, (char *const *)(uintptr_t)r->args, (char *const *)(uintptr_t)env);
		return errno;
	}
	while (*list) {
		size_t length = strcspn(list, ":");
		if (length + strlen(name) + 2 <= sizeof path) {
			snprintf(path, sizeof path, "%.*s/%s", (int)length, length ? list : ".", name);
			execve(path, (char *const *)(uintptr_t)r->args, (char *const *)(uintptr_t)env);
			if (errno != ENOENT && errno != ENOTDIR)
				found = errno;
		}
		list += length;
		list += *list == ':';
	}
	return found;
}

/* Whether there is a program to execute at all: engines are told when the container is made, as by other runtimes. Root
 * looks here; what its user may not execute is found when it is tried. A name relative to the working directory waits. */
static int find_program(const struct request *r)
{
	char path[4096];
	const char *name = r->args[0], *list = path_variable(r);
	struct stat status;

	if (strchr(name, '/')) {
		if (*name != '/')
			return 0;
		if (stat(name, &status) < 0)
			return errno;
		return S_ISREG(status.st_mode) && status.st_mode & 0111 ? 0 : EACCES;
	}
	while (*list) {
		size_t length = strcspn(list, ":");
		if (length + strlen(name) + 2 <= sizeof path) {
			snprintf(path, sizeof path, "%.*s/%s", (int)length, length ? list : ".", name);
			if (stat(path, &status) == 0 && S_ISREG(status.st_mode) && status.st_mode & 0111)
				return 0;
		}
		list += length;
		list += *list == ':';
	}
	return ENOENT;
}

/* The field "home" of the user's row in the container's passwd(5), or the root folder, as the field's runtimes say it. */
static void find_home(uid_t uid, char *home, size_t size)
{
	static char text[32768];
	int fd = open("/etc/passwd", O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof text - 1);

	if (fd >= 0)
		close(fd);
	text[length > 0 ? length : 0] = 0;
	snprintf(home, size, "HOME=/");
	for (char *line = text, *next; line; line = next) {
		char *field = line;
		if ((next = strchr(line, '\n')))
			*next++ = 0;
		for (int i = 0; i < 2 && field; i++)
			field = (field = strchr(field, ':')) ? field + 1 : NULL;
		if (!field || *field < '0' || *field > '9' || strtoul(field, NULL, 10) != uid)
			continue;
		for (int i = 0; i < 3 && field; i++)
			field = (field = strchr(field, ':')) ? field + 1 : NULL;
		if (field && *field == '/')
			snprintf(home, size, "HOME=%.*s", (int)strcspn(field, ":"), field);
		return;
	}
}

_Noreturn static void execute_at_home(const struct request *r, int channel)
{
	static const char *env[MAX_STRINGS + 2];
	static char home[4096];

	for (size_t i = 0; i < r->env_count; i++)
		if (!strncmp(r->env[i], "HOME=", 5) && r->env[i][5])
			fail(channel, execute(r, r->env), "execve");
	find_home(r->uid, home, sizeof home);
	size_t count = 0;
	for (size_t i = 0; i < r->env_count; i++)
		if (strncmp(r->env[i], "HOME=", 5))
			env[count++] = r->env[i];
	env[count] = home;
	fail(channel, execute(r, env), "execve");
}

/* Both kinds of child end here: terminal, message "set up", the word to start, identity, execve. */
_Noreturn static void finish(const struct request *r, int channel, int wait_for_start)
{
	const char *why = "terminal";
	int master = -1, code, error;

	if (wait_for_start && (error = find_program(r)))
		fail(channel, error, "execve");
	setsid();
	if (r->flags & FLAG_TERMINAL && (error = open_terminal(r, &master)))
		fail(channel, error, why);
	own_standard_files(r);
	if (channel_send(channel, 0, "", master))
		_exit(125);
	if (master >= 0)
		close(master);
	if (wait_for_start && (channel_receive(channel, -1, &code, NULL, 0, NULL) || code))
		_exit(125);
	/* The first process of the container: nothing of the agent's must be within its reach any more. */
	default_signals();
	if ((error = identity_apply(r, &why)))
		fail(channel, error, why);
	if ((error = start_hooks_run(r, &why)))
		fail(channel, error, why);
	execute_at_home(r, channel);
}

/* A working directory that the image does not have is made, as the field's runtimes do it. */
static void make_folders(const char *path)
{
	char part[4096];

	for (size_t i = 1; path[0] == '/' && i < sizeof part; i++) {
		if (path[i] && path[i] != '/')
			continue;
		memcpy(part, path, i);
		part[i] = 0;
		if (mkdir(part, 0755) < 0 && errno != EEXIST)
			return;
		if (!path[i])
			return;
	}
}

_Noreturn static void enter(const struct request *r, int channel, int early)
{
	const char *why = "root";
	int error;

	if (r->hostname && r->namespaces & CLONE_NEWUTS && sethostname(r->hostname, strlen(r->hostname)) < 0)
		fail(channel, errno, "host name");
	int root = open(r->root, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		fail(channel, errno, why);
	if ((error = mounts_make(root, r, early, &why)))
		fail(channel, error, why);
	if (fchdir(root) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		fail(channel, errno, "change of root");
	close(root);
	make_folders(r->cwd);
	if ((error = mounts_hide(r, &why)))
		fail(channel, error, why);
	finish(r, channel, 1);
}

_Noreturn void stage_container(const struct request *r, int channel)
{
	if (r->namespaces & CLONE_NEWCGROUP && unshare(CLONE_NEWCGROUP) < 0)
		fail(channel, errno, "cgroup namespace");
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		fail(channel, errno, "private mounts");
	enter(r, channel, 0);
}

/* It has its namespaces and control group already. */
_Noreturn void stage_zygote(const struct request *r, int channel)
{
	const char *why;
	int error = r->is_lonely ? lonely_enter(&why) : 0;

	if (error)
		fail(channel, error, why);
	zygote_files(r);
	enter(r, channel, 1);
}

_Noreturn void stage_exec(const struct request *r, int channel, int init_pidfd)
{
	if (setns(init_pidfd, (int)r->namespaces) < 0)
		fail(channel, errno, "namespaces");
	/* The child's first message must come after ours: it waits until this end is closed. */
	int gate[2];
	char word;
	if (pipe2(gate, O_CLOEXEC) < 0)
		fail(channel, errno, "pipe");
	/* A process enters a pid namespace only by being born in it; its parent is to be the agent. */
	long pid = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, NULL, NULL, NULL, 0);
	if (pid < 0)
		fail(channel, errno, "clone");
	if (pid > 0) {
		channel_send(channel, (int)pid, "", -1);
		_exit(0);
	}
	close(gate[1]);
	if (read(gate[0], &word, 1) < 0 || chdir("/") < 0)
		fail(channel, errno, "root");
	close(gate[0]);
	finish(r, channel, 0);
}
