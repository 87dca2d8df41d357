/* The command line: runc's flags, for every command alike. What a virtual machine cannot do is refused by name. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shim.h"

enum {
	LONG_ONLY = 256,
	F_LOG, F_LOG_FORMAT, F_SOCKET, F_CONSOLE, F_PID, F_PRESERVE, F_ROOT, F_CWD, F_FORMAT, F_RESOURCES, F_INTERVAL,
	F_STATS, F_LIMIT, F_DEBUG, F_CONFIG, F_KEEP, F_NO_NEW_PRIVS, F_IGNORE_PAUSED, F_REFUSED, F_IGNORED, F_IGNORED_WORD,
};

static const struct option flags[] = {
	{ "root", 1, NULL, F_ROOT }, { "log", 1, NULL, F_LOG }, { "log-format", 1, NULL, F_LOG_FORMAT },
	{ "socket", 1, NULL, F_SOCKET }, { "debug", 0, NULL, F_DEBUG }, { "systemd-cgroup", 0, NULL, F_IGNORED },
	{ "bundle", 1, NULL, 'b' }, { "config", 1, NULL, F_CONFIG }, { "console-socket", 1, NULL, F_CONSOLE }, { "pid-file", 1, NULL, F_PID },
	{ "preserve-fds", 1, NULL, F_PRESERVE }, { "no-pivot", 0, NULL, F_IGNORED }, { "no-new-keyring", 0, NULL, F_IGNORED },
	{ "no-subreaper", 0, NULL, F_IGNORED }, { "force", 0, NULL, 'f' }, { "all", 0, NULL, 'a' },
	{ "process", 1, NULL, 'p' },
	{ "tty", 0, NULL, 't' }, { "detach", 0, NULL, 'd' }, { "cwd", 1, NULL, F_CWD }, { "format", 1, NULL, F_FORMAT },
	{ "version", 0, NULL, 'v' }, { "help", 0, NULL, 'h' }, { "user", 1, NULL, 'u' }, { "env", 1, NULL, 'e' },
	{ "additional-gids", 1, NULL, 'g' }, { "cap", 1, NULL, 'c' }, { "no-new-privs", 0, NULL, F_NO_NEW_PRIVS },
	{ "ignore-paused", 0, NULL, F_IGNORE_PAUSED }, { "quiet", 0, NULL, 'q' }, { "keep", 0, NULL, F_KEEP },
	{ "resources", 1, NULL, F_RESOURCES }, { "interval", 1, NULL, F_INTERVAL }, { "stats", 0, NULL, F_STATS },
	{ "memory", 1, NULL, F_LIMIT }, { "memory-reservation", 1, NULL, F_LIMIT }, { "memory-swap", 1, NULL, F_LIMIT },
	{ "cpu-quota", 1, NULL, F_LIMIT }, { "cpu-period", 1, NULL, F_LIMIT }, { "cpu-share", 1, NULL, F_LIMIT },
	{ "cpuset-cpus", 1, NULL, F_LIMIT }, { "cpuset-mems", 1, NULL, F_LIMIT }, { "pids-limit", 1, NULL, F_LIMIT },
	{ "blkio-weight", 1, NULL, F_LIMIT }, { "rootless", 1, NULL, F_IGNORED_WORD }, { "criu", 1, NULL, F_IGNORED_WORD },
	{ "cgroup-manager", 1, NULL, F_IGNORED_WORD }, { "apparmor", 1, NULL, F_REFUSED },
	{ "process-label", 1, NULL, F_REFUSED }, { "cgroup", 1, NULL, F_REFUSED }, { NULL, 0, NULL, 0 },
};

static const char usage[] =
	"NAME:\n   casemate-vm - an OCI runtime that runs each container, or pod, in a micro-VM\n\n"
	"USAGE:\n   casemate-vm [--root DIR] [--log FILE] [--log-format text|json] [--debug] COMMAND [FLAGS] ID [WORDS]\n\n"
	"COMMANDS:\n   create start state kill delete exec ps list pause resume update events features run spec\n\n"
	"Flags are those of runc; docs/reference/levels.md says what is refused, and why.\n";

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

static void check_preserved(const char *what, const char *count)
{
	if (strspn(count, "0") != strlen(count))
		die("%s %s: a descriptor of the host cannot enter a virtual machine", what, count);
}

static void set_logging(struct options *o, int flag)
{
	if (flag == F_LOG)
		o->log = optarg;
	else if (strcmp(optarg, "text") && strcmp(optarg, "json"))
		die("--log-format %s: allowed are text and json", optarg);
	else
		o->log_format = optarg;
}

static void set_switch(struct options *o, int flag)
{
	switch (flag) {
	case F_STATS: o->stats = 1; break;
	case F_DEBUG: o->debug = 1; break;
	case F_KEEP: o->keep = 1; break;
	case F_NO_NEW_PRIVS: o->no_new_privs = 1; break;
	case F_IGNORE_PAUSED: o->ignore_paused = 1; break;
	case 'f': o->force = 1; break;
	case 'a': o->all = 1; break;
	case 't': o->terminal = 1; break;
	case 'd': o->detach = 1; break;
	case 'q': o->quiet = 1; break;
	case 'h':
		fputs(usage, stdout);
		exit(0);
	case 'v':
		puts("casemate-vm version " SHIM_VERSION "\nspec: " OCI_VERSION);
		exit(0);
	case F_IGNORED:
	case F_IGNORED_WORD: break;
	default: die("unknown flag; see docs/reference/levels.md");
	}
}

static void set_flag(struct options *o, int flag, const char *name)
{
	switch (flag) {
	case F_ROOT: o->root = optarg; break;
	case F_LOG:
	case F_LOG_FORMAT: set_logging(o, flag); break;
	case F_SOCKET: o->socket = optarg; break;
	case F_CONSOLE: o->console_socket = optarg; break;
	case F_PID: o->pid_file = optarg; break;
	case F_CONFIG: o->config = optarg; break;
	case F_CWD: o->cwd = optarg; break;
	case F_PRESERVE: check_preserved("--preserve-fds", optarg); break;
	case F_FORMAT: o->format = optarg; break;
	case F_RESOURCES: o->resources = optarg; break;
	case F_INTERVAL: o->interval = optarg; break;
	case F_LIMIT: add_limit(o, name); break;
	case F_REFUSED: die("--%s: means nothing inside a virtual machine", name);
	case 'u': o->user = optarg; break;
	case 'e': add(o->env, &o->env_count, optarg); break;
	case 'g': add(o->groups, &o->group_count, optarg); break;
	case 'c': add(o->caps, &o->cap_count, optarg); break;
	case 'b': o->bundle = optarg; break;
	case 'p': o->process = optarg; break;
	case 'r': o->resources = optarg; break;
	case 'F': o->format = optarg; break;
	default: set_switch(o, flag);
	}
}

/* -f is `--force` of delete and `--format` of list and ps. */
static int next_flag(const struct options *o, int argc, char **argv, int *which)
{
	int formatted = o->command && (!strcmp(o->command, "list") || !strcmp(o->command, "ps"));
	const char *words = formatted ? "+b:f:ap:tdvu:e:r:g:c:qh" : "+b:fap:tdvu:e:r:g:c:qh";
	int flag = getopt_long(argc, argv, words, flags, which);

	return flag == 'f' && formatted ? 'F' : flag;
}

/* Flags stand before and after the command; what follows the id is the command's own ("+": stop at the first word). */
void parse_flags(struct options *o, int argc, char **argv)
{
	const char *listening = getenv("LISTEN_FDS");
	int flag, which = 0;

	while ((flag = next_flag(o, argc, argv, &which)) != -1)
		set_flag(o, flag, flags[which].name);
	if (optind >= argc)
		die("usage: casemate-vm [--root DIR] [--log FILE] COMMAND [FLAGS] ID; `casemate-vm --help` says more");
	o->command = argv[optind++];
	if (!strcmp(o->command, "exec"))
		failure_code = 255;
	for (;;) {
		while ((flag = next_flag(o, argc, argv, &which)) != -1)
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
	if (listening && (!strcmp(o->command, "create") || !strcmp(o->command, "run")))
		check_preserved("LISTEN_FDS", listening);
}
