/* `casemate-vm runsc PROGRAM ARGUMENTS`: runsc as conmon wants an OCI runtime. conmon says `exec --tty` beside a process
 * document that says the same; runsc takes the document alone and ends at the flag. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "shim.h"

void runsc_main(char **argv)
{
	char **to = argv, **from = argv;
	int is_exec = 0;

	for (; *from; from++) {
		is_exec |= !strcmp(*from, "exec");
		if (!is_exec || strcmp(*from, "--tty"))
			*to++ = *from;
	}
	*to = NULL;
	execv(argv[0], argv);
	die("%s: %s", argv[0], strerror(errno));
}
