#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shim.h"

static char reply[MUX_MAX_CONTROL];
static uint8_t room[MUX_MAX_CONTROL];

static void begin(struct wire_out *out, const struct options *o, uint8_t kind)
{
	wire_begin(out, room, sizeof room, kind, 1);
	if (o->id)
		wire_add_text(out, TAG_CONTAINER, o->id);
}

static void need_id(const struct options *o)
{
	if (!o->id)
		die("%s: the container's id is missing", o->command);
}

static void simple(const struct options *o, struct wire_out *out)
{
	int error = ask(ask_connect(o->socket), out, NULL, 0, reply, sizeof reply);

	if (error)
		die("%s", *reply ? reply : strerror(error));
	if (*reply)
		printf("%s\n", reply);
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

static char *read_all(const char *path, size_t most)
{
	char *text = malloc(most + 1);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t used = 0;
	ssize_t got;

	if (fd < 0 || !text)
		die("%s: %s", path, strerror(errno));
	while (used < most && (got = read(fd, text + used, most - used)) > 0)
		used += (size_t)got;
	if (used == most)
		die("%s has more than %zu bytes", path, most);
	close(fd);
	text[used] = 0;
	return text;
}

/* Whether "terminal" of the process document is true: the one thing that this side must know before it asks. The
 * document is the engine's own; a match inside a string would at worst ask for a terminal that hostd then refuses. */
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

/* Asks with the standard files; on success leaves a waiter behind, or becomes it. */
static int begin_process(const struct options *o, struct wire_out *out, int terminal, int foreground)
{
	struct stdio stdio;
	int fd = ask_connect(o->socket);
	pid_t pid = 0;

	stdio_open(&stdio, o, terminal);
	if (!foreground && (pid = waiter_fork(&stdio)) < 0)
		die("fork: %s", strerror(errno));
	wire_add_u32(out, TAG_STATUS, (uint32_t)(foreground ? getpid() : pid));
	wire_add_u32(out, TAG_FLAGS, terminal ? ASK_FLAG_TERMINAL : 0);
	int error = ask(fd, out, stdio.fds, stdio.count, reply, sizeof reply);
	if (error) {
		if (pid > 0) {
			kill(pid, SIGKILL);
			waitpid(pid, NULL, 0);
		}
		die("%s", *reply ? reply : strerror(error));
	}
	write_pid(o->pid_file, foreground ? getpid() : pid);
	for (int i = 0; i < stdio.count; i++)
		close(stdio.fds[i]);
	if (foreground)
		waiter_run(&stdio);
	return 0;
}

static void create(const struct options *o)
{
	struct wire_out out;
	char bundle[4096], path[4200];

	need_id(o);
	if (!realpath(o->bundle ? o->bundle : ".", bundle))
		die("bundle %s: %s", o->bundle, strerror(errno));
	snprintf(path, sizeof path, "%s/config.json", bundle);
	char *config = read_all(path, 4 << 20);
	begin(&out, o, ASK_CREATE);
	wire_add_text(&out, TAG_CWD, bundle);
	begin_process(o, &out, wants_terminal(config), 0);
}

static void command_create(const struct options *o)
{
	create(o);
}

static void command_start(const struct options *o)
{
	struct wire_out out;

	need_id(o);
	begin(&out, o, ASK_START);
	simple(o, &out);
}

static void command_exec(const struct options *o)
{
	struct wire_out out;
	int terminal = o->terminal;

	need_id(o);
	begin(&out, o, ASK_EXEC);
	if (o->process) {
		char *process = read_all(o->process, 100 << 10);
		terminal = terminal || wants_terminal(process);
		wire_add_text(&out, TAG_PROCESS, process);
	} else {
		if (!o->rest_count)
			die("exec: neither --process nor a command is given");
		for (int i = 0; i < o->rest_count; i++)
			wire_add_text(&out, TAG_ARG, o->rest[i]);
		if (o->cwd)
			wire_add_text(&out, TAG_CWD, o->cwd);
	}
	begin_process(o, &out, terminal, !o->detach);
}

static void command_kill(const struct options *o)
{
	struct wire_out out;

	need_id(o);
	begin(&out, o, ASK_KILL);
	wire_add_text(&out, TAG_SIGNAL, o->rest_count ? o->rest[0] : "TERM");
	wire_add_u32(&out, TAG_FLAGS, o->all ? ASK_FLAG_ALL : 0);
	simple(o, &out);
}

static void command_delete(const struct options *o)
{
	struct wire_out out;

	need_id(o);
	begin(&out, o, ASK_DELETE);
	wire_add_u32(&out, TAG_FLAGS, o->force ? ASK_FLAG_FORCE : 0);
	simple(o, &out);
}

static void with_id(const struct options *o, uint8_t kind)
{
	struct wire_out out;

	need_id(o);
	begin(&out, o, kind);
	simple(o, &out);
}

static void command_state(const struct options *o) { with_id(o, ASK_STATE); }
static void command_pause(const struct options *o) { with_id(o, ASK_PAUSE); }
static void command_resume(const struct options *o) { with_id(o, ASK_RESUME); }

static void command_ps(const struct options *o)
{
	struct wire_out out;

	need_id(o);
	begin(&out, o, ASK_PS);
	wire_add_text(&out, TAG_TEXT, o->format ? o->format : "table");
	simple(o, &out);
}

static void command_list(const struct options *o)
{
	struct wire_out out;

	begin(&out, o, ASK_LIST);
	wire_add_text(&out, TAG_TEXT, o->format ? o->format : "table");
	simple(o, &out);
}

static void command_features(const struct options *o)
{
	(void)o;
	puts("{\"ociVersionMin\":\"1.0.0\",\"ociVersionMax\":\"1.0.2\","
	     "\"mountOptions\":[\"ro\",\"rw\",\"nosuid\",\"nodev\",\"noexec\",\"noatime\",\"relatime\"],"
	     "\"linux\":{\"namespaces\":[\"cgroup\",\"ipc\",\"mount\",\"network\",\"pid\",\"uts\"],"
	     "\"cgroup\":{\"v1\":true,\"v2\":true,\"systemd\":false},\"seccomp\":{\"enabled\":true}}}");
}

static const struct {
	const char *name;
	void (*run)(const struct options *);
} commands[] = {
	{ "create", command_create }, { "start", command_start }, { "state", command_state }, { "kill", command_kill },
	{ "delete", command_delete }, { "exec", command_exec }, { "ps", command_ps }, { "list", command_list },
	{ "pause", command_pause }, { "resume", command_resume }, { "features", command_features },
};

enum { LONG_ONLY = 256, F_LOG, F_LOG_FORMAT, F_SOCKET, F_CONSOLE, F_PID, F_PRESERVE, F_ROOT, F_CWD, F_IGNORED };

static const struct option flags[] = {
	{ "root", 1, NULL, F_ROOT }, { "log", 1, NULL, F_LOG }, { "log-format", 1, NULL, F_LOG_FORMAT },
	{ "socket", 1, NULL, F_SOCKET }, { "debug", 0, NULL, F_IGNORED }, { "systemd-cgroup", 0, NULL, F_IGNORED },
	{ "bundle", 1, NULL, 'b' }, { "console-socket", 1, NULL, F_CONSOLE }, { "pid-file", 1, NULL, F_PID },
	{ "preserve-fds", 1, NULL, F_PRESERVE }, { "no-pivot", 0, NULL, F_IGNORED }, { "no-new-keyring", 0, NULL, F_IGNORED },
	{ "force", 0, NULL, 'f' }, { "all", 0, NULL, 'a' }, { "process", 1, NULL, 'p' }, { "tty", 0, NULL, 't' },
	{ "detach", 0, NULL, 'd' }, { "cwd", 1, NULL, F_CWD }, { "format", 1, NULL, F_PRESERVE + 100 },
	{ "version", 0, NULL, 'v' }, { NULL, 0, NULL, 0 },
};

static void set_flag(struct options *o, int flag)
{
	switch (flag) {
	case F_ROOT: o->root = optarg; break;
	case F_LOG: o->log = optarg; break;
	case F_LOG_FORMAT: o->log_format = optarg; break;
	case F_SOCKET: o->socket = optarg; break;
	case F_CONSOLE: o->console_socket = optarg; break;
	case F_PID: o->pid_file = optarg; break;
	case F_CWD: o->cwd = optarg; break;
	case F_PRESERVE:
		if (strcmp(optarg, "0"))
			die("--preserve-fds %s: a descriptor of the host cannot enter a virtual machine", optarg);
		break;
	case F_PRESERVE + 100: o->format = optarg; break;
	case 'b': o->bundle = optarg; break;
	case 'p': o->process = optarg; break;
	case 'f': o->force = 1; break;
	case 'a': o->all = 1; break;
	case 't': o->terminal = 1; break;
	case 'd': o->detach = 1; break;
	case F_IGNORED: break;
	case 'v':
		puts("casemate-vm version " SHIM_VERSION "\nspec: 1.0.2");
		exit(0);
	default: die("unknown flag; see docs/reference/levels.md");
	}
}

/* Flags stand before and after the command; what follows the id is the command's own ("+": stop at the first word). */
static void parse(struct options *o, int argc, char **argv)
{
	int flag;

	while ((flag = getopt_long(argc, argv, "+b:fap:tdv", flags, NULL)) != -1)
		set_flag(o, flag);
	if (optind >= argc)
		die("usage: casemate-vm [--root DIR] [--log FILE] COMMAND [FLAGS] ID");
	o->command = argv[optind++];
	for (;;) {
		while ((flag = getopt_long(argc, argv, "+b:fap:tdv", flags, NULL)) != -1)
			set_flag(o, flag);
		if (o->id || optind >= argc)
			break;
		o->id = argv[optind++];
		/* `exec ID cmd -x`: -x is the command's; `kill ID SIGNAL --all` is how some engines write it. */
		if (!strcmp(o->command, "exec"))
			break;
	}
	o->rest = argv + optind;
	o->rest_count = argc - optind;
}

int main(int argc, char **argv)
{
	static struct options options = { .socket = DEFAULT_SOCKET };
	const char *socket = getenv("CASEMATE_VM_SOCKET");

	if (argc > 1 && !strcmp(argv[1], "monitor"))
		return monitor_main(argc - 1, argv + 1);
	if (argc > 1 && !strcmp(argv[1], "tsc"))
		return tsc_main();
	if (socket)
		options.socket = socket;
	parse(&options, argc, argv);
	log_to(options.log, options.log_format);
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
		if (!strcmp(options.command, commands[i].name)) {
			commands[i].run(&options);
			return 0;
		}
	}
	die("unknown command %s", options.command);
}
