/* Hooks of the stage startContainer: programs of the container's own file system, run in its namespaces after the word to
 * start and before its program, one after the other, each with the state document on standard input (OCI runtime-spec
 * config.md, "startContainer Hooks"). They are what the container may be, user, capabilities and filter; so do the runtimes
 * of the field. One that fails ends the start. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

static char words[192];

static int said(const char **why, int error, const char *path, const char *what, int number)
{
	snprintf(words, sizeof words, "hook %.120s %s %d", path, what, number);
	*why = words;
	return error;
}

static int seconds_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int)now.tv_sec;
}

/* The document fits the pipe, as the message that brought it was no larger: nobody need read it. */
static int feed(const char *state)
{
	int ends[2];
	size_t length = state ? strlen(state) : 0;

	if (pipe2(ends, O_CLOEXEC) < 0)
		return -1;
	fcntl(ends[1], F_SETPIPE_SZ, MUX_MAX_CONTROL);
	fcntl(ends[1], F_SETFL, O_NONBLOCK);
	if (length && write(ends[1], state, length) != (ssize_t)length) {
		close(ends[0]);
		ends[0] = -1;
	}
	close(ends[1]);
	return ends[0];
}

static int run_one(const struct hook_request *hook, const char *state, int seconds, const char **why)
{
	const char *alone[] = { hook->path, NULL };
	const char **args = hook->args[0] ? hook->args : alone;
	int status = 0, input = feed(state);

	if (input < 0)
		return said(why, EIO, hook->path, "got no state document:", errno);
	pid_t pid = fork();
	if (pid == 0) {
		dup2(input, 0);
		dup2(2, 1);
		execve(hook->path, (char *const *)(uintptr_t)args, (char *const *)(uintptr_t)hook->env);
		_exit(errno == ENOENT ? 127 : 126);
	}
	close(input);
	if (pid < 0)
		return said(why, errno, hook->path, "could not be forked:", errno);
	struct pollfd one = { (int)syscall(SYS_pidfd_open, pid, 0), POLLIN, 0 };
	int ready = poll(&one, 1, seconds * 1000);
	close(one.fd);
	if (ready <= 0)
		kill(pid, SIGKILL);
	if (waitpid(pid, &status, 0) < 0)
		return said(why, errno, hook->path, "was lost:", errno);
	if (ready <= 0)
		return said(why, ETIMEDOUT, hook->path, "did not end within seconds:", seconds);
	if (WIFSIGNALED(status))
		return said(why, ECANCELED, hook->path, "was ended by signal", WTERMSIG(status));
	return status ? said(why, ECANCELED, hook->path, "ended with code", WEXITSTATUS(status)) : 0;
}

int start_hooks_run(const struct request *r, const char **why)
{
	int end = seconds_now() + MAX_HOOKS_SECONDS, error = 0;

	for (size_t i = 0; i < r->hook_count && !error; i++) {
		int left = end - seconds_now(), wanted = (int)r->hooks[i].seconds;
		if (left < 1)
			return said(why, ETIMEDOUT, r->hooks[i].path, "has no time left; seconds of all hooks:", MAX_HOOKS_SECONDS);
		error = run_one(&r->hooks[i], r->state, wanted > 0 && wanted < left ? wanted : left, why);
	}
	return error;
}
