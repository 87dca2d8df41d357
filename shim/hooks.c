/* The engine's hooks: programs of the host, named by path, run one after the other. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shim.h"

struct hook {
	uint32_t seconds;
	char *path, **args, **env;
};

/* Splits `count` texts off `*rest`, each ended by a zero byte; NULL when there are fewer. */
static char **split(char **rest, const char *end, uint32_t count)
{
	if (count > 4096)
		return NULL;
	char **list = calloc(count + 1, sizeof *list);
	for (uint32_t i = 0; list && i < count; i++) {
		if (*rest >= end)
			return NULL;
		list[i] = *rest;
		*rest += strlen(*rest) + 1;
	}
	return list;
}

static int read_hook(const struct wire_field *field, struct hook *hook)
{
	if (field->length < 13 || field->bytes[field->length - 1])
		return -1;
	uint32_t args = wire_u32(field->bytes + 4), env = wire_u32(field->bytes + 8);
	char *copy = malloc(field->length - 12);
	if (!copy)
		return -1;
	memcpy(copy, field->bytes + 12, field->length - 12);
	const char *end = copy + field->length - 12;
	hook->seconds = wire_u32(field->bytes);
	hook->path = copy;
	copy += strlen(copy) + 1;
	hook->args = split(&copy, end, args);
	/* As in casemate.isolation.microvm.engines: the bundle names none, not even an empty list. */
	hook->env = env == UINT32_MAX ? environ : split(&copy, end, env);
	/* Without arguments the program's name is its own. */
	if (hook->args && !hook->args[0] && (hook->args = calloc(2, sizeof *hook->args)))
		hook->args[0] = hook->path;
	return hook->args && hook->env ? 0 : -1;
}

static int wait_for(pid_t pid, uint32_t seconds, char *why, size_t size, const char *path)
{
	int status = 0, pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	struct pollfd one = { pidfd, POLLIN, 0 };

	if (pidfd >= 0 && poll(&one, 1, (int)seconds * 1000) == 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		close(pidfd);
		snprintf(why, size, "hook %s did not end within %u s", path, seconds);
		return -1;
	}
	close(pidfd);
	if (waitpid(pid, &status, 0) < 0 || status) {
		if (WIFSIGNALED(status))
			snprintf(why, size, "hook %s was ended by signal %d", path, WTERMSIG(status));
		else
			snprintf(why, size, "hook %s ended with code %d", path, WEXITSTATUS(status));
		return -1;
	}
	return 0;
}

static int run_one(const struct hook *hook, int netns, const char *state, char *why, size_t size)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
		die("pipe: %s", strerror(errno));
	pid_t pid = fork();
	if (pid == 0) {
		dup2(ends[0], 0);
		if (netns >= 0 && setns(netns, CLONE_NEWNET) < 0)
			_exit(126);
		execve(hook->path, hook->args, hook->env);
		dprintf(2, "casemate-vm: hook %s: %s\n", hook->path, strerror(errno));
		_exit(127);
	}
	close(ends[0]);
	/* A hook that reads nothing closes its end; the document fits a pipe (its annotations are bounded by a message). */
	signal(SIGPIPE, SIG_IGN);
	fcntl(ends[1], F_SETPIPE_SZ, 1 << 18);
	if (write(ends[1], state, strlen(state)) < 0 && errno != EPIPE)
		snprintf(why, size, "hook %s: %s", hook->path, strerror(errno));
	close(ends[1]);
	if (pid < 0)
		die("fork: %s", strerror(errno));
	return wait_for(pid, hook->seconds, why, size, hook->path);
}

int hooks_run(const struct answer *answer, uint16_t tag, int netns, pid_t pid, const char *status, char *why,
	size_t size)
{
	static char state[MUX_MAX_CONTROL + 128];
	struct wire_field field;
	size_t offset = 0;
	int number = 0, failed = 0;

	snprintf(state, sizeof state, "%s\"pid\": %d, \"status\": \"%s\"}", answer->text, (int)pid, status);
	while (wire_next(answer->payload, answer->length, &offset, &field) == 1) {
		struct hook hook;
		if (field.tag != tag)
			continue;
		number++;
		if (read_hook(&field, &hook) < 0)
			die("casemate-hostd sent a hook that is none");
		/* poststart and poststop go on after a failure (runtime.md, "Lifecycle"); the caller decides. */
		if (run_one(&hook, netns, state, why, size) < 0 && !failed)
			failed = number;
		if (failed && !strcmp(status, "creating"))
			break;
	}
	return failed;
}
