/* A machine without a network: its containers live in a network namespace with nothing but loopback, made at boot. The
 * card stays behind in the first one, where no process is and nothing on the host answers it. To take it from its driver
 * at a start was 3,600 translated blocks, 40 ms under emulation. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"

static int own = -1, lonely = -1, entered;

static int open_own(void)
{
	return open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
}

void lonely_make(void)
{
	own = open_own();
	if (own < 0 || unshare(CLONE_NEWNET) < 0) {
		say("casemate: network namespace: %s", strerror(errno));
		return;
	}
	boot_network();
	lonely = open_own();
	if (setns(own, CLONE_NEWNET) < 0)
		say("casemate: network namespace: %s", strerror(errno));
}

/* The agent, for good: what it makes from now on is born there. In a child, the child. */
int lonely_enter(const char **why)
{
	*why = "there is no network namespace without the card";
	if (lonely < 0)
		return ENODEV;
	if (setns(lonely, CLONE_NEWNET) < 0)
		return errno;
	entered = 1;
	return 0;
}

int lonely_is(void)
{
	return entered;
}

/* There, `work` where there is any, and back. */
void lonely_visit(void (*work)(void))
{
	if (lonely < 0 || setns(lonely, CLONE_NEWNET) < 0)
		return;
	if (work)
		work();
	if (setns(own, CLONE_NEWNET) < 0)
		say("casemate: network namespace: %s", strerror(errno));
}
