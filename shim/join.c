/* A further container in a sandbox of runsc, as conmon wants one.
 *
 * runsc's own answer for such a container is of no use to a supervisor: the pid that `create` writes is the sandbox's, and
 * `start` gives the container the standard files of whoever runs it. So `create` leaves a process behind, the waiter: it
 * keeps the standard files that conmon gave, runs `runsc start` with them when asked (through a socket beside runsc's
 * state), and ends with the container's exit code. It ends the container when conmon goes away.
 *
 * The exit code comes from the sandbox's control socket (urpc: one JSON object each way), which costs no process; where
 * a runsc has it elsewhere, from a `runsc wait` that stays. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "join.h"
#include "shim.h"

enum { MOST_WORDS = 64, MOST_REPLY = 4096, GONE = 137, UNKNOWN = 255, LISTENED = 4 };

struct joined {
	char **words; /* runsc's, up to its command */
	int count;
	const char *root, *id, *sandbox;
	int listener, signals, supervisor; /* the last: conmon, as a pidfd */
};

static void fill(struct sockaddr_un *address, socklen_t *length, const char *root, const char *id)
{
	int folder = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (folder < 0)
		die("%s: %s", root, strerror(errno));
	*address = (struct sockaddr_un){ .sun_family = AF_UNIX };
	/* Through a descriptor: a socket's path has at most 107 bytes. */
	snprintf(address->sun_path, sizeof address->sun_path, "/proc/self/fd/%d/%.70s.join", folder, id);
	*length = sizeof *address;
}

static pid_t run(const struct joined *one, const char *const *more, int log, int output)
{
	const char *argv[MOST_WORDS + 12];
	char number[24];
	int used = 0;
	sigset_t none;
	pid_t pid;

	for (int i = 0; i < one->count; i++)
		argv[used++] = one->words[i];
	if (log >= 0) {
		snprintf(number, sizeof number, "--log-fd=%d", log);
		argv[used++] = number;
	}
	while (*more && used < MOST_WORDS + 10)
		argv[used++] = *more++;
	argv[used] = NULL;
	pid = fork();
	if (pid)
		return pid;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (output >= 0)
		dup2(output, 1);
	execv(argv[0], (char *const *)argv);
	_exit(127);
}

static int wait_for(pid_t pid)
{
	int status;

	if (pid < 0)
		return UNKNOWN;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return UNKNOWN;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* A connection to the sandbox's control socket, on which `request` was sent; -1: it is not where it was in 2022. */
static int call(const struct joined *one, const char *request)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int length = snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "runsc-sandbox.%.80s", one->sandbox);
	/* Its name ends with a zero byte, which counts. */
	socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length + 1);

	if (fd < 0)
		return -1;
	if (connect(fd, (struct sockaddr *)&address, size) < 0 ||
	    send(fd, request, strlen(request), MSG_NOSIGNAL) != (ssize_t)strlen(request)) {
		close(fd);
		return -1;
	}
	return fd;
}

static int call_wait(const struct joined *one)
{
	char request[256];

	snprintf(request, sizeof request, "{\"method\":\"containerManager.Wait\",\"arg\":\"%.80s\"}", one->id);
	return call(one, request);
}

static void send_signal(const struct joined *one, int number, int all)
{
	char request[256], reply[256];

	snprintf(request, sizeof request,
		"{\"method\":\"containerManager.Signal\",\"arg\":{\"CID\":\"%.80s\",\"Signo\":%d,\"PID\":0,\"Mode\":%d}}",
		one->id, number, all);
	int fd = call(one, request);
	if (fd >= 0) {
		struct pollfd answer = { fd, POLLIN, 0 };
		if (poll(&answer, 1, 2000) > 0 && read(fd, reply, sizeof reply) < 0)
			reply[0] = 0; /* it has ended, or will be told by its own end */
		close(fd);
		return;
	}
	char text[12];
	snprintf(text, sizeof text, "%d", number);
	const char *const words[] = { "kill", all ? "--all" : one->id, all ? one->id : text, all ? text : NULL, NULL };
	wait_for(run(one, words, -1, -1));
}

/* The number behind `name` in a reply; -1 where there is none. */
static long number_in(const char *reply, const char *name)
{
	const char *found = strstr(reply, name);
	char *end;

	if (!found)
		return -1;
	found += strlen(name);
	long value = strtol(found, &end, 10);
	return end == found || value < 0 || value > 0xffff ? -1 : value;
}

static int exit_code(const char *reply, int is_status)
{
	long value = number_in(reply, is_status ? "\"result\":" : "\"exitStatus\":");

	if (value < 0 || (is_status && !strstr(reply, "\"success\":true")))
		return UNKNOWN;
	if (!is_status)
		return (int)(value & 255);
	return value & 127 ? 128 + (int)(value & 127) : (int)(value >> 8);
}

static void take_signals(const struct joined *one)
{
	struct signalfd_siginfo information;

	while (read(one->signals, &information, sizeof information) == sizeof information) {
		int number = (int)information.ssi_signo;
		if (number != SIGCHLD && number != SIGWINCH && number != SIGPIPE)
			send_signal(one, number, 0);
	}
}

_Noreturn static void abandoned(const struct joined *one)
{
	send_signal(one, SIGKILL, 1);
	_exit(GONE);
}

/* Started: end as it ends. `source` brings one reply, of the control socket or of `runsc wait`. */
_Noreturn static void follow(const struct joined *one, int source, int is_status)
{
	char reply[MOST_REPLY];
	size_t have = 0;

	for (;;) {
		struct pollfd three[3] = { { source, POLLIN, 0 }, { one->signals, POLLIN, 0 }, { one->supervisor, POLLIN, 0 } };
		if (poll(three, 3, -1) < 0)
			continue;
		if (three[1].revents)
			take_signals(one);
		if (three[2].revents)
			abandoned(one);
		if (!three[0].revents)
			continue;
		ssize_t got = read(source, reply + have, sizeof reply - 1 - have);
		if (got < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		have += got > 0 ? (size_t)got : 0;
		reply[have] = 0;
		if (strchr(reply, '}'))
			_exit(exit_code(reply, is_status));
		if (got <= 0 || have == sizeof reply - 1)
			_exit(GONE); /* the sandbox is gone, and all that was in it */
	}
}

static int follow_by_runsc(const struct joined *one)
{
	const char *const words[] = { "wait", one->id, NULL };
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
		_exit(UNKNOWN);
	run(one, words, -1, ends[1]);
	close(ends[1]);
	return ends[0];
}

/* One who connected asks for the start. Returns whether it began. */
static int start(const struct joined *one, int client)
{
	const char *const words[] = { "start", one->id, NULL };
	int passed[MAX_PASSED], count;
	uint8_t code;
	char request;

	if (receive_fds(client, &request, 1, passed, &count) != 1 || count != 1)
		return 0;
	int log = passed[0];
	/* Its words to who asked, not to the container's standard error alone. */
	fcntl(log, F_SETFD, 0);
	code = (uint8_t)wait_for(run(one, words, log, -1));
	close(log);
	send(client, &code, 1, MSG_NOSIGNAL);
	return code == 0;
}

_Noreturn static void waiter(struct joined *one)
{
	sigset_t all;

	setsid();
	prctl(PR_SET_NAME, "casemate-join");
	/* Nothing else of the supervisor's: an open pipe would hold up its end. */
	int low = one->listener < one->supervisor ? one->listener : one->supervisor;
	int high = one->listener < one->supervisor ? one->supervisor : one->listener;
	if (low > 3)
		close_range(3, (unsigned)low - 1, 0);
	if (high > low + 1)
		close_range((unsigned)low + 1, (unsigned)high - 1, 0);
	close_range((unsigned)high + 1, ~0U, 0);
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	one->signals = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
	for (;;) {
		struct pollfd three[3] = { { one->listener, POLLIN, 0 }, { one->signals, POLLIN, 0 }, { one->supervisor, POLLIN, 0 } };
		if (poll(three, 3, -1) < 0)
			continue;
		if (three[1].revents)
			take_signals(one);
		if (three[2].revents)
			abandoned(one);
		if (!three[0].revents)
			continue;
		int client = accept4(one->listener, NULL, NULL, SOCK_CLOEXEC);
		int has_begun = client >= 0 && start(one, client);
		if (client >= 0)
			close(client);
		if (!has_begun)
			continue;
		close(one->listener);
		/* The container has its own of them now: ours would keep its output open. */
		int null = open("/dev/null", O_RDWR | O_CLOEXEC);
		for (int i = 0; i < 3; i++)
			dup2(null, i);
		int control = call_wait(one);
		follow(one, control >= 0 ? control : follow_by_runsc(one), control >= 0);
	}
}

static const char *value_of(char **argv, const char *name)
{
	size_t length = strlen(name);

	for (; *argv; argv++) {
		if (!strcmp(*argv, name) && argv[1])
			return argv[1];
		if (!strncmp(*argv, name, length) && (*argv)[length] == '=')
			return *argv + length + 1;
	}
	return NULL;
}

static void parse(struct joined *one, char **argv, const char *command)
{
	int total = 0;

	*one = (struct joined){ .words = argv, .root = value_of(argv, "--root") };
	while (argv[total])
		total++;
	while (argv[one->count] && strcmp(argv[one->count], command))
		one->count++;
	if (!argv[one->count] || one->count > MOST_WORDS || one->count + 1 >= total || !one->root)
		die("runsc: %s with --root and an id was expected", command);
	one->id = argv[total - 1];
	if (strlen(one->id) > 70)
		die("%s: an id has at most 70 bytes", one->id);
}

void join_create(const char *sandbox, char **argv)
{
	struct joined one;
	struct sockaddr_un address;
	socklen_t length;

	parse(&one, argv, "create");
	one.sandbox = sandbox;
	const char *pid_file = value_of(argv, "--pid-file");
	fill(&address, &length, one.root, one.id);
	unlink(address.sun_path);
	one.listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (one.listener < 0 || bind(one.listener, (struct sockaddr *)&address, length) < 0 || listen(one.listener, LISTENED) < 0)
		die("%s.join: %s", one.id, strerror(errno));
	one.supervisor = (int)syscall(SYS_pidfd_open, getppid(), 0);
	pid_t pid = fork();
	if (!pid)
		waiter(&one);
	const char *const *rest = (const char *const *)argv + one.count;
	int code = pid < 0 ? UNKNOWN : wait_for(run(&one, rest, -1, -1));
	FILE *file = code || !pid_file ? NULL : fopen(pid_file, "we");
	if (!code && pid_file && (!file || fprintf(file, "%d", (int)pid) < 0 || fclose(file)))
		code = 1;
	if (code) {
		if (pid > 0)
			kill(pid, SIGKILL);
		unlink(address.sun_path);
	}
	exit(code);
}

int join_start(char **argv)
{
	struct joined one;
	struct sockaddr_un address;
	socklen_t length;
	int words = 2;
	uint8_t code = 1;

	parse(&one, argv, "start");
	fill(&address, &length, one.root, one.id);
	if (access(address.sun_path, F_OK))
		return 0;
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, length) < 0)
		die("%s.join: %s", one.id, strerror(errno));
	if (send_fds(fd, "S", 1, &words, 1))
		die("%s.join: %s", one.id, strerror(errno));
	if (recv(fd, &code, 1, 0) != 1)
		die("the container's waiter ended");
	exit(code);
}

/* runsc can pause a whole sandbox alone. Of one container each process is stopped by a signal; a mark tells of it. */
static void mark(const struct joined *one, char *path, size_t size, const char *kind)
{
	int folder = open(one->root, O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (folder < 0)
		die("%s: %s", one->root, strerror(errno));
	snprintf(path, size, "/proc/self/fd/%d/%.70s.%s", folder, one->id, kind);
}

int join_other(char **argv, const char *command)
{
	struct joined one;
	char socket_path[128], paused[128];

	parse(&one, argv, command);
	mark(&one, socket_path, sizeof socket_path, "join");
	mark(&one, paused, sizeof paused, "paused");
	if (access(socket_path, F_OK))
		return 0;
	if (!strcmp(command, "delete")) {
		unlink(paused);
		unlink(socket_path);
		return 0;
	}
	const int is_pause = !strcmp(command, "pause");
	const char *const words[] = { "kill", "--all", one.id, is_pause ? "STOP" : "CONT", NULL };
	if (is_pause)
		close(open(paused, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
	int code = wait_for(run(&one, words, -1, -1));
	if (is_pause == (code != 0))
		unlink(paused);
	exit(code);
}

/* The first process of a sandbox whose containers are all further ones: it waits, and takes up orphans. */
void rest_main(void)
{
	signal(SIGCHLD, SIG_IGN);
	for (;;)
		pause();
}
