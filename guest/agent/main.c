#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

int loop_fd = -1;
static int signals = -1;

int loop_watch(int fd, enum loop_kind kind, int index, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.u64 = (uint64_t)kind << 32 | (uint32_t)index };

	if (epoll_ctl(loop_fd, EPOLL_CTL_MOD, fd, &event) == 0)
		return 0;
	return errno == ENOENT && epoll_ctl(loop_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : errno;
}

void loop_forget(int fd)
{
	epoll_ctl(loop_fd, EPOLL_CTL_DEL, fd, NULL);
}

/* The name holds the virtio device's number, which depends on the order of the devices; the port's own is 1 (0 is
 * reserved for a console by the device). */
static void open_port(void)
{
	int fd = -1;

	/* The driver learns of its ports by messages, after it is loaded. */
	for (int tries = 0; fd < 0 && tries < 10000; tries++) {
		char path[32];
		snprintf(path, sizeof path, "/dev/vport%dp1", tries % 16);
		fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
		if (fd < 0 && tries % 16 == 15)
			nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);
	}
	if (fd < 0)
		say("casemate: no virtio-serial port");
	else
		port_open(fd);
}

static void event(enum loop_kind kind, int index, uint32_t events)
{
	struct signalfd_siginfo information;

	switch (kind) {
	case LOOP_PORT: port_event(); break;
	case LOOP_IN: stream_input(index); break;
	case LOOP_OUT:
		if (events & EPOLLOUT)
			stream_input(index);
		if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
			stream_output(index, 0);
		break;
	case LOOP_ERR: stream_output(index, 1); break;
	case LOOP_SIGNALS:
		while (read(signals, &information, sizeof information) > 0)
			continue;
		process_reap();
		break;
	default: break;
	}
}

void loop_begin(void)
{
	sigset_t set;

	loop_fd = epoll_create1(EPOLL_CLOEXEC);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	loop_watch(signals, LOOP_SIGNALS, 0, EPOLLIN);
}

void loop_turn(void)
{
	struct epoll_event events[16];

	int count = epoll_wait(loop_fd, events, 16, -1);
	for (int i = 0; i < count; i++)
		event((enum loop_kind)(events[i].data.u64 >> 32), (int)(uint32_t)events[i].data.u64, events[i].events);
	port_flush();
}

int main(int argc, char **argv)
{
	/* The program of a rehearsal's container. */
	if (argc && !strcmp(argv[0], "warm"))
		return 0;
	umask(022);
	mkdir("/root", 0700);
	load_modules("/modules/order");
	boot_mounts();
	signal(SIGPIPE, SIG_IGN);
	loop_begin();
	lonely_make();
	cgroup_boot();
	zygote_make();
	open_port();
	control_ready();
	for (;;)
		loop_turn();
}
