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
	wire_add_text(&out, TAG_TEXT, o->quiet ? "quiet" : o->format ? o->format : "table");
	if (o->root)
		wire_add_text(&out, TAG_ROOT, o->root);
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

int main(int argc, char **argv)
{
	static struct options options = { .socket = DEFAULT_SOCKET };
	const char *socket = getenv("CASEMATE_VM_SOCKET");

	if (argc > 1 && !strcmp(argv[1], "monitor"))
		return monitor_main(argc - 1, argv + 1);
	if (argc > 2 && !strcmp(argv[1], "runsc"))
		runsc_main(argv + 2);
	if (argc > 3 && !strcmp(argv[1], "stdio"))
		stdio_main(argv + 2);
	if (argc > 1 && !strcmp(argv[1], "rest"))
		rest_main();
	if (argc > 3 && !strcmp(argv[1], "resolver"))
		return resolver_main(argv + 2);
	if (argc > 1 && !strcmp(argv[1], "tsc"))
		return tsc_main();
	if (socket)
		options.socket = socket;
	parse_flags(&options, argc, argv);
	log_to(options.log, options.log_format, options.debug);
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
		if (!strcmp(options.command, commands[i].name)) {
			note("%s %s", options.command, options.id ? options.id : "");
			commands[i].run(&options);
			note("%s is done", options.command);
			return 0;
		}
	}
	die("unknown command %s; `casemate-vm --help` lists them", options.command);
}
