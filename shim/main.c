#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "join.h"
#include "shim.h"

static void show(const struct options *o, const struct wire_out *out)
{
	const struct answer *a = must_ask(o, out);

	if (*a->text)
		printf("%s\n", a->text);
}

static void command_kill(const struct options *o)
{
	struct wire_out out;

	begin_request(&out, o, ASK_KILL);
	wire_add_text(&out, TAG_SIGNAL, o->rest_count ? o->rest[0] : "TERM");
	wire_add_u32(&out, TAG_FLAGS, o->all ? ASK_FLAG_ALL : 0);
	show(o, &out);
}

static void with_id(const struct options *o, uint8_t kind)
{
	struct wire_out out;

	begin_request(&out, o, kind);
	show(o, &out);
}

static void command_state(const struct options *o) { with_id(o, ASK_STATE); }
static void command_pause(const struct options *o) { with_id(o, ASK_PAUSE); }
static void command_resume(const struct options *o) { with_id(o, ASK_RESUME); }

static void command_ps(const struct options *o)
{
	struct wire_out out;

	begin_request(&out, o, ASK_PS);
	wire_add_text(&out, TAG_TEXT, o->format ? o->format : "table");
	show(o, &out);
}

static void command_list(const struct options *o)
{
	static uint8_t room[4096];
	struct wire_out out;

	wire_begin(&out, room, sizeof room, ASK_LIST, 1);
	wire_add_text(&out, TAG_TEXT, o->format ? o->format : "table");
	show(o, &out);
}

static const struct {
	const char *name;
	void (*run)(const struct options *);
} commands[] = {
	{ "create", command_create }, { "start", command_start }, { "state", command_state }, { "kill", command_kill },
	{ "delete", command_delete }, { "exec", command_exec }, { "ps", command_ps }, { "list", command_list },
	{ "pause", command_pause }, { "resume", command_resume }, { "features", command_features },
	{ "run", command_run }, { "spec", command_spec }, { "events", command_events }, { "update", command_update },
};

enum { LONG_ONLY = 256, F_LOG, F_LOG_FORMAT, F_SOCKET, F_CONSOLE, F_PID, F_PRESERVE, F_ROOT, F_CWD, F_FORMAT,
	F_RESOURCES, F_INTERVAL, F_STATS, F_LIMIT, F_IGNORED, F_IGNORED_WORD };


static const struct option flags[] = {
	{ "root", 1, NULL, F_ROOT }, { "log", 1, NULL, F_LOG }, { "log-format", 1, NULL, F_LOG_FORMAT },
	{ "socket", 1, NULL, F_SOCKET }, { "debug", 0, NULL, F_IGNORED }, { "systemd-cgroup", 0, NULL, F_IGNORED },
	{ "bundle", 1, NULL, 'b' }, { "console-socket", 1, NULL, F_CONSOLE }, { "pid-file", 1, NULL, F_PID },
	{ "preserve-fds", 1, NULL, F_PRESERVE }, { "no-pivot", 0, NULL, F_IGNORED }, { "no-new-keyring", 0, NULL, F_IGNORED },
	{ "force", 0, NULL, 'f' }, { "all", 0, NULL, 'a' }, { "process", 1, NULL, 'p' }, { "tty", 0, NULL, 't' },
	{ "detach", 0, NULL, 'd' }, { "cwd", 1, NULL, F_CWD }, { "format", 1, NULL, F_FORMAT },
	{ "version", 0, NULL, 'v' }, { "user", 1, NULL, 'u' }, { "env", 1, NULL, 'e' },
	{ "resources", 1, NULL, F_RESOURCES }, { "interval", 1, NULL, F_INTERVAL }, { "stats", 0, NULL, F_STATS },
	{ "memory", 1, NULL, F_LIMIT }, { "cpu-quota", 1, NULL, F_LIMIT }, { "cpu-period", 1, NULL, F_LIMIT },
	{ "pids-limit", 1, NULL, F_LIMIT }, { "keep", 0, NULL, F_IGNORED }, { "rootless", 1, NULL, F_IGNORED_WORD },
	{ "cgroup-manager", 1, NULL, F_IGNORED_WORD }, { NULL, 0, NULL, 0 },
};

static void add(const char **list, int *count, const char *word)
{
	if (*count == MAX_LIST)
		die("more than %d values of one flag", MAX_LIST);
	list[(*count)++] = word;
}

static void add_limit(struct options *o, const char *name)
{
	char *word = malloc(strlen(name) + strlen(optarg) + 2);

	if (!word)
		die("memory");
	sprintf(word, "%s=%s", name, optarg);
	add(o->limits, &o->limit_count, word);
}

static void set_flag(struct options *o, int flag, const char *name)
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
	case F_FORMAT: o->format = optarg; break;
	case F_RESOURCES: o->resources = optarg; break;
	case F_INTERVAL: o->interval = optarg; break;
	case F_STATS: o->stats = 1; break;
	case F_LIMIT: add_limit(o, name); break;
	case 'u': o->user = optarg; break;
	case 'e': add(o->env, &o->env_count, optarg); break;
	case 'b': o->bundle = optarg; break;
	case 'p': o->process = optarg; break;
	case 'f': o->force = 1; break;
	case 'r': o->resources = optarg; break;
	case 'a': o->all = 1; break;
	case 't': o->terminal = 1; break;
	case 'd': o->detach = 1; break;
	case F_IGNORED:
	case F_IGNORED_WORD: break;
	case 'v':
		puts("casemate-vm version " SHIM_VERSION "\nspec: 1.0.2");
		exit(0);
	default: die("unknown flag; see docs/reference/levels.md");
	}
}

/* Flags stand before and after the command; what follows the id is the command's own ("+": stop at the first word). */
static void parse(struct options *o, int argc, char **argv)
{
	int flag, which = 0;

	while ((flag = getopt_long(argc, argv, "+b:fap:tdvu:e:r:", flags, &which)) != -1)
		set_flag(o, flag, flags[which].name);
	if (optind >= argc)
		die("usage: casemate-vm [--root DIR] [--log FILE] COMMAND [FLAGS] ID");
	o->command = argv[optind++];
	for (;;) {
		while ((flag = getopt_long(argc, argv, "+b:fap:tdvu:e:r:", flags, &which)) != -1)
			set_flag(o, flag, flags[which].name);
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
	if (argc > 2 && !strcmp(argv[1], "runsc"))
		runsc_main(argv + 2);
	if (argc > 1 && !strcmp(argv[1], "rest"))
		rest_main();
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
