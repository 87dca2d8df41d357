/* A rehearsal: a container of nobody's that runs on a second processor while the first one makes the user's. Under
 * emulation most of a start is kernel code that is translated as it runs for the first time, and QEMU's processors share
 * what they translate: what the rehearsal has walked already costs the container nothing. Its stage is set before the
 * template is saved, by a copy of the agent that has its own of everything: mounts, control groups, rows, a prepared
 * process, a port that leads nowhere. When it is over the second processor is taken away. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

enum { CPU = 1, REST_S = 1 };

static int word = -1;

static void take_cpu_away(void)
{
	/* Not at once: whoever starts has the host's processors to himself. A container that ends before never sees it. */
	nanosleep(&(struct timespec){ .tv_sec = REST_S }, NULL);
	cpu_set_t first;
	CPU_ZERO(&first);
	CPU_SET(0, &first);
	sched_setaffinity(0, sizeof first, &first);
	int error = write_file("/sys/devices/system/cpu/cpu1/online", "0", 1);
	if (error)
		say("casemate: second processor: %s", strerror(error));
}

static int set_stage(const struct wire_message *frame, struct request **request, const char **why)
{
	cpu_set_t own;
	char *arena;

	CPU_ZERO(&own);
	CPU_SET(CPU, &own);
	*why = "a second processor";
	if (sched_setaffinity(0, sizeof own, &own) < 0)
		return errno;
	*why = "mounts of a rehearsal";
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("casemate", "/c", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700,size=8m") < 0 ||
	    mount(NULL, "/c", NULL, MS_SHARED, NULL) < 0)
		return errno;
	loop_begin();
	port_leave();
	cgroup_rehearse();
	zygote_make_other();
	*why = "a process for a rehearsal";
	if (!(*request = zygote_request(&arena)))
		return ENOMEM;
	int error = request_parse(frame, *request, arena, why);
	return error ? error : rootfs_rehearse((*request)->container, why);
}

static void play(struct request *request)
{
	static char text[200];
	const char *why = "", *container = request->container;

	int error = process_create(request, &why, text, sizeof text);
	if (!error)
		error = process_start(container, &why, text, sizeof text);
	if (error)
		say("casemate: rehearsal: %s: %s", *text ? text : why, strerror(error));
	while (!error && process_lives(container))
		loop_turn();
	process_remove(container);
}

_Noreturn static void run(const struct wire_message *frame, int channel)
{
	struct request *request = NULL;
	const char *why = "";
	char go = 0;

	int error = set_stage(frame, &request, &why);
	if (channel_send(channel, error, why, -1) || error)
		_exit(1);
	if (read(channel, &go, 1) == 1 && go == 'r')
		play(request);
	take_cpu_away();
	_exit(0);
}

int rehearsal_make(const struct wire_message *frame, const char **why)
{
	static char text[200];
	int pair[2], code = 0;

	*why = "a rehearsal was made";
	if (word >= 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return word >= 0 ? EEXIST : errno;
	pid_t pid = fork();
	if (pid == 0)
		run(frame, pair[1]);
	close(pair[1]);
	*why = "a process for a rehearsal";
	int error = pid < 0 ? errno : channel_receive(pair[0], SETUP_TIMEOUT_MS, &code, text, sizeof text, NULL);
	if (error || code) {
		if (*text)
			*why = text;
		close(pair[0]);
		return error ? error : code;
	}
	word = pair[0];
	/* What containers count as theirs from the start is what they will have. */
	*why = "the pod's set of processors";
	return cgroup_write("", "cpuset.cpus", "0");
}

void rehearsal_begin(int wanted)
{
	if (word < 0)
		return;
	if (write(word, wanted ? "r" : "n", 1) < 0)
		say("casemate: rehearsal: %s", strerror(errno));
	close(word);
	word = -1;
}
