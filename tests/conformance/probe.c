/* What the kernel itself answers a process about its own state, where /proc/self/status is a text that a kernel may not
 * write: `probe no_new_privs`, `probe signals`. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

int main(int argc, char **argv)
{
	sigset_t blocked;
	struct sigaction now;

	if (argc > 1 && !strcmp(argv[1], "no_new_privs")) {
		printf("%d\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
		return 0;
	}
	sigprocmask(SIG_BLOCK, NULL, &blocked);
	for (int one = 1; one <= 31; one++) {
		if (sigismember(&blocked, one))
			printf("%d is blocked\n", one);
		if (sigaction(one, NULL, &now) == 0 && now.sa_handler == SIG_IGN)
			printf("%d is ignored\n", one);
	}
	puts("looked");
	return 0;
}
