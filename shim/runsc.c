/* `casemate-vm runsc [--join SANDBOX] PROGRAM ARGUMENTS`: runsc as conmon wants an OCI runtime. conmon says `exec --tty`
 * beside a process document that says the same; runsc takes the document alone and ends at the flag. For --join and what
 * follows from it see join.c; for what is kept from runsc, grace.c. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "join.h"
#include "shim.h"

static int is_command(char **argv, const char *name)
{
	for (; *argv; argv++)
		if (!strcmp(*argv, name))
			return 1;
	return 0;
}

static const char *const others[] = { "pause", "resume", "delete" };

void runsc_main(char **argv)
{
	const char *sandbox = NULL;
	int is_exec = 0;

	if (!strcmp(*argv, "--join") && argv[1] && argv[2]) {
		sandbox = argv[1];
		argv += 2;
	}
	spare_registration(argv);
	if (!sandbox && is_command(argv, "create")) {
		spare_larger_table();
		spare_first_change();
	}
	if (sandbox && is_command(argv, "create"))
		join_create(sandbox, argv);
	if (is_command(argv, "start"))
		join_start(argv);
	for (size_t i = 0; i < sizeof others / sizeof *others; i++)
		if (is_command(argv, others[i]))
			join_other(argv, others[i]);
	char **to = argv;
	for (char **from = argv; *from; from++) {
		is_exec |= !strcmp(*from, "exec");
		if (!is_exec || strcmp(*from, "--tty"))
			*to++ = *from;
	}
	*to = NULL;
	execv(argv[0], argv);
	die("%s: %s", argv[0], strerror(errno));
}
