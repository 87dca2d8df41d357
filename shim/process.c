/* The commands that make a process, and those around its life. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "shim.h"

static uint8_t room[MUX_MAX_CONTROL];

void begin_request(struct wire_out *out, const struct options *o, uint8_t kind)
{
	if (!o->id)
		die("%s: the container's id is missing", o->command);
	wire_begin(out, room, sizeof room, kind, 1);
	wire_add_text(out, TAG_CONTAINER, o->id);
	if (o->root)
		wire_add_text(out, TAG_ROOT, o->root);
}

static void write_pid(const char *path, pid_t pid)
{
	char text[16];

	if (!path)
		return;
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	int length = snprintf(text, sizeof text, "%d", (int)pid);
	if (fd < 0 || write(fd, text, (size_t)length) != length || close(fd) < 0)
		die("%s: %s", path, strerror(errno));
}

/* Whether "terminal" of a process document is true. The document is the engine's own; a match inside a string would at
 * worst ask for a terminal that hostd then refuses. */
static int wants_terminal(const char *json)
{
	const char *at = json;

	while ((at = strstr(at, "\"terminal\""))) {
		at += strlen("\"terminal\"");
		at += strspn(at, " \t\r\n");
		if (*at != ':')
			continue;
		at++;
		at += strspn(at, " \t\r\n");
		return !strncmp(at, "true", 4);
	}
	return 0;
}

_Noreturn static void fail(pid_t waiter, const char *why)
{
	if (waiter > 0) {
		kill(waiter, SIGKILL);
		waitpid(waiter, NULL, 0);
	}
	die("%s", why);
}

/* Asks with the standard files; the waiter is there already (its pid stands in the request). */
static void hand_over(const struct options *o, struct wire_out *out, struct stdio *stdio, pid_t waiter, int terminal)
{
	int fd = ask_connect(o->socket);

	wire_add_u32(out, TAG_STATUS, (uint32_t)(waiter ? waiter : getpid()));
	wire_add_u32(out, TAG_FLAGS, (terminal ? ASK_FLAG_TERMINAL : 0) | (o->no_new_privs ? ASK_FLAG_NO_NEW_PRIVS : 0) |
			(o->ignore_paused ? ASK_FLAG_IGNORE_PAUSED : 0));
	const struct answer *a = ask(fd, out, stdio->fds, stdio->count);
	if (a->error)
		fail(waiter, *a->text ? a->text : strerror(a->error));
	close(fd);
	for (int i = 0; i < stdio->count; i++)
		close(stdio->fds[i]);
}

/* Hooks of the stage createContainer are programs of the host that are to run in the container's namespaces: of those the
 * network's is the only one on the host, that of the waiter. */
static int create_container_hooks(const struct answer *a, pid_t waiter, char *why, size_t size)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/ns/net", (int)waiter);
	int netns = open(path, O_RDONLY | O_CLOEXEC);
	if (netns < 0)
		return snprintf(why, size, "%s: %s", path, strerror(errno));
	int failed = hooks_run(a, TAG_START_HOOK, netns, waiter, "creating", why, size);
	close(netns);
	return failed;
}

static void add_bundle(struct wire_out *out, const struct options *o, const char *bundle)
{
	wire_add_text(out, TAG_CWD, bundle);
	if (o->config)
		wire_add_text(out, TAG_TEXT, o->config);
}

static pid_t create(const struct options *o, struct stdio *stdio)
{
	struct wire_out out;
	char bundle[4096], why[1024] = "";

	if (!realpath(o->bundle ? o->bundle : ".", bundle))
		die("bundle %s: %s", o->bundle ? o->bundle : ".", strerror(errno));
	begin_request(&out, o, ASK_PREPARE);
	add_bundle(&out, o, bundle);
	const struct answer *a = must_ask(o, &out);
	int terminal = (a->flags & ASK_FLAG_TERMINAL) != 0;
	stdio_open(stdio, o, terminal);
	int before = netns_enter(a->netns);
	/* An engine's, which looks for the container's processes by this one; our own daemons ask the guest. */
	pid_t waiter = waiter_fork(stdio, *a->netns != 0, a->namespaces);
	if (waiter < 0)
		die("fork: %s", strerror(errno));
	netns_leave(before);
	if (hooks_run(a, TAG_HOOK, -1, waiter, "creating", why, sizeof why) ||
	    create_container_hooks(a, waiter, why, sizeof why))
		fail(waiter, why);
	begin_request(&out, o, ASK_CREATE);
	add_bundle(&out, o, bundle);
	hand_over(o, &out, stdio, waiter, terminal);
	write_pid(o->pid_file, waiter);
	return waiter;
}

void command_create(const struct options *o)
{
	struct stdio stdio;

	create(o, &stdio);
}

/* Hooks after the fact: what fails is said and changes nothing. */
static void hooks_after(const struct answer *a, pid_t pid, const char *status)
{
	char why[1024] = "";

	if (hooks_run(a, TAG_HOOK, -1, pid, status, why, sizeof why))
		fprintf(stderr, "casemate-vm: %s\n", why);
}

void command_start(const struct options *o)
{
	struct wire_out out;

	begin_request(&out, o, ASK_START);
	const struct answer *a = must_ask(o, &out);
	hooks_after(a, (pid_t)a->flags, "running");
}

void command_delete(const struct options *o)
{
	struct wire_out out;

	begin_request(&out, o, ASK_DELETE);
	wire_add_u32(&out, TAG_FLAGS, o->force ? ASK_FLAG_FORCE : 0);
	hooks_after(must_ask(o, &out), 0, "stopped");
}

void command_exec(const struct options *o)
{
	struct wire_out out;
	struct stdio stdio;
	int terminal = o->terminal;
	pid_t waiter = 0;

	begin_request(&out, o, ASK_EXEC);
	if (o->process) {
		char *process = read_file(o->process, 100 << 10);
		terminal = terminal || wants_terminal(process);
		wire_add_text(&out, TAG_PROCESS, process);
	} else {
		if (!o->rest_count)
			die("exec: neither --process nor a command is given");
		for (int i = 0; i < o->rest_count; i++)
			wire_add_text(&out, TAG_ARG, o->rest[i]);
		for (int i = 0; i < o->env_count; i++)
			wire_add_text(&out, TAG_ENV, o->env[i]);
		if (o->cwd)
			wire_add_text(&out, TAG_CWD, o->cwd);
		if (o->user)
			wire_add_text(&out, TAG_UID, o->user);
		for (int i = 0; i < o->group_count; i++)
			wire_add_text(&out, TAG_GROUP, o->groups[i]);
		for (int i = 0; i < o->cap_count; i++)
			wire_add_text(&out, TAG_CAPABILITIES, o->caps[i]);
	}
	stdio_open(&stdio, o, terminal);
	if (o->detach && (waiter = waiter_fork(&stdio, 0, 0)) < 0)
		die("fork: %s", strerror(errno));
	hand_over(o, &out, &stdio, waiter, terminal);
	write_pid(o->pid_file, waiter ? waiter : getpid());
	if (!waiter)
		waiter_run(&stdio);
}

/* The terminal that `run` was started at: raw while the container has it. */
static struct termios before_run;
static int is_raw;

static void restore_terminal(void)
{
	if (is_raw)
		tcsetattr(0, TCSANOW, &before_run);
}

static void make_raw(void)
{
	struct termios raw;

	if (tcgetattr(0, &before_run) < 0)
		return;
	raw = before_run;
	cfmakeraw(&raw);
	is_raw = tcsetattr(0, TCSANOW, &raw) == 0;
	atexit(restore_terminal);
}

static int wait_forwarding(pid_t waiter)
{
	struct signalfd_siginfo information;
	sigset_t all;
	int status;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	int signals = signalfd(-1, &all, SFD_CLOEXEC);
	/* Looked at before each wait: it may have ended before its signal was held for us. */
	while (waitpid(waiter, &status, WNOHANG) != waiter) {
		if (read(signals, &information, sizeof information) == sizeof information &&
		    information.ssi_signo != SIGCHLD)
			kill(waiter, (int)information.ssi_signo);
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void command_run(const struct options *o)
{
	struct options last = *o;
	struct stdio stdio;
	pid_t waiter = create(o, &stdio);

	if (stdio.terminal == 0 || stdio.relay)
		make_raw();
	if (stdio.relay)
		close(stdio.terminal);
	command_start(o);
	if (o->detach)
		return;
	int code = wait_forwarding(waiter);
	if (stdio.relay)
		waitpid(stdio.relay, NULL, 0);
	if (o->keep)
		exit(code);
	last.force = 1;
	command_delete(&last);
	exit(code);
}
