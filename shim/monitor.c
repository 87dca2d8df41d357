/* The monitor of one micro-VM: QEMU's parent, and the only process that reads the guest's port. It sorts frames by their
 * header and looks no further: standard files go to their channels, control messages to hostd, which may come and go.
 *
 * Descriptors at start: 3 a listening SOCK_SEQPACKET socket for hostd; 7 a file for how the machine ended (u32 QEMU's
 * wait status, the console's tail), which counts where no hostd listens; 10 and above are QEMU's own (memory, state,
 * block devices, tap), whose numbers stand in its arguments. Made here, with numbers that the arguments name: PORT,
 * CONSOLE and QMP.
 *
 * Messages with hostd, first byte: 'C' a control message, both ways; 'A' u16 channel, with a process's descriptors;
 * 'M' bytes of QEMU's monitor protocol, both ways; 'T' asks for, and answers, the console's tail; 'P' QEMU's pid, u32;
 * 'Q' end the machine; 'X' u32 wait status: QEMU has ended, after a last 'T'. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "channels.h"

/* A kernel that has panicked resets its machine at once, which ends QEMU (-no-reboot). QEMU 7.2 was seen to miss that,
 * with its processor stopped for good: after this many intervals in which nothing was heard it is ended from here. */
enum { QUIET_MS = 100, QUIET_AFTER_PANIC = 20 };
static const char panicked[] = "Kernel panic - not syncing: ";

enum { LISTEN_FD = 3, PORT_FD = 4, CONSOLE_FD = 5, QMP_FD = 6, END_FD = 7, FIRST_PASSED = 10, TAIL = 8192 };

static struct {
	int listener, hostd, console, qmp, signals, end;
	pid_t qemu;
	uint8_t input[MUX_HEADER + MUX_MAX_CONTROL];
	size_t input_length;
	char tail[TAIL];
	size_t tail_length;
	int panicked;
} vm = { .hostd = -1 };

static const char usage[] = "usage: casemate-vm monitor --uid N --gid N [--root DIR] [--writes] [--kvm] [--cgroup DIR]... "
			    "[--qmp TEXT] [--uid-map IN:OUT:COUNT]... [--gid-map IN:OUT:COUNT]... -- QEMU ARGUMENTS";

static void tell(uint8_t kind, const void *bytes, size_t length)
{
	static uint8_t message[1 + MUX_MAX_CONTROL];

	if (vm.hostd < 0 || length > MUX_MAX_CONTROL)
		return;
	message[0] = kind;
	memcpy(message + 1, bytes, length);
	/* hostd reads at once or not at all; what it misses it asks for after it has connected again. */
	if (send(vm.hostd, message, length + 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
		close(vm.hostd);
		vm.hostd = -1;
	}
}

static void keep_tail(const char *bytes, size_t length)
{
	if (length > TAIL / 2) {
		bytes += length - TAIL / 2;
		length = TAIL / 2;
	}
	if (vm.tail_length + length > TAIL) {
		size_t drop = vm.tail_length + length - TAIL;
		memmove(vm.tail, vm.tail + drop, vm.tail_length - drop);
		vm.tail_length -= drop;
	}
	memcpy(vm.tail + vm.tail_length, bytes, length);
	vm.tail_length += length;
}

static void hear_text(int fd, uint8_t kind)
{
	char bytes[4096];
	ssize_t got = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);

	if (got <= 0)
		return;
	if (kind)
		tell(kind, bytes, (size_t)got);
	else
		keep_tail(bytes, (size_t)got);
	if (!kind && !vm.panicked)
		vm.panicked = memmem(vm.tail, vm.tail_length, panicked, sizeof panicked - 1) != NULL;
}

/* Before anybody is told of an end: who is told may look. */
static void write_end(int status)
{
	static uint8_t end[4 + TAIL];

	for (int i = 0; i < 4; i++)
		hear_text(vm.console, 0);
	wire_put_u32(end, (uint32_t)status);
	memcpy(end + 4, vm.tail, vm.tail_length);
	if (vm.end >= 0 && write(vm.end, end, 4 + vm.tail_length) < 0)
		return;
}

_Noreturn static void finish(int status)
{
	uint8_t number[4];

	if (vm.qemu > 0) {
		kill(vm.qemu, SIGKILL);
		waitpid(vm.qemu, NULL, 0);
	}
	write_end(status);
	channels_end(137);
	wire_put_u32(number, (uint32_t)status);
	tell('T', vm.tail, vm.tail_length);
	tell('X', number, 4);
	_exit(0);
}

/* QEMU has closed the port: it is ending, and how is known in a moment. */
_Noreturn static void finish_ending(void)
{
	struct pollfd one = { vm.signals, POLLIN, 0 };
	int status = 0;

	poll(&one, 1, 1000);
	if (vm.qemu > 0 && waitpid(vm.qemu, &status, WNOHANG) == vm.qemu)
		vm.qemu = 0;
	finish(status);
}

static void hear_hostd(void)
{
	static uint8_t message[1 + MUX_MAX_CONTROL];
	int fds[MAX_PASSED], count;
	ssize_t got = receive_fds(vm.hostd, message, sizeof message, fds, &count);

	if (got <= 0) {
		if (got < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		close(vm.hostd);
		vm.hostd = -1;
		return;
	}
	size_t length = (size_t)got - 1;
	switch (message[0]) {
	case 'C': port_put(MUX_CONTROL, 0, message + 1, length); break;
	case 'A':
		if (length == 2 && !channel_open(wire_u16(message + 1), fds, count))
			count = 0; /* the channel's now */
		break;
	case 'M':
		if (send_fds(vm.qmp, message + 1, length, fds, count))
			keep_tail("qmp: not taken\n", 15);
		break;
	case 'T':
		hear_text(vm.console, 0);
		tell('T', vm.tail, vm.tail_length);
		break;
	case 'P':
		wire_put_u32(message, (uint32_t)vm.qemu);
		tell('P', message, 4);
		break;
	case 'Q': finish(0);
	default: break;
	}
	for (int i = 0; i < count; i++)
		close(fds[i]);
}

static void accept_hostd(void)
{
	struct ucred peer;
	socklen_t size = sizeof peer;
	int fd = accept4(vm.listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || peer.uid != 0) {
		close(fd);
		return;
	}
	/* The newer one counts: the older is a hostd that is gone, or on its way. */
	if (vm.hostd >= 0)
		close(vm.hostd);
	vm.hostd = fd;
}

/* The guest's frames. One that breaks the rules ends the machine: nothing after it can be trusted to be in step. */
static void hear_guest(void)
{
	struct mux_frame frame;
	size_t used = 0;
	long size;
	ssize_t got = recv(port.fd, vm.input + vm.input_length, sizeof vm.input - vm.input_length, MSG_DONTWAIT);

	if (got <= 0) {
		if (got == 0 || (errno != EAGAIN && errno != EINTR))
			finish_ending();
		return;
	}
	vm.input_length += (size_t)got;
	while ((size = mux_parse(vm.input + used, vm.input_length - used, &frame)) > 0) {
		if (frame.type == MUX_CONTROL)
			tell('C', frame.payload, frame.length);
		else if (channel_frame(&frame) < 0)
			size = WIRE_BROKEN;
		if (size == WIRE_BROKEN)
			break;
		used += (size_t)size;
	}
	if (size == WIRE_BROKEN) {
		keep_tail("casemate-vm: the guest broke the protocol\n", 42);
		finish(1 << 8);
	}
	memmove(vm.input, vm.input + used, vm.input_length - used);
	vm.input_length -= used;
}

static void hear_signals(void)
{
	struct signalfd_siginfo information;
	int status;

	while (read(vm.signals, &information, sizeof information) == sizeof information) {
		if (information.ssi_signo == SIGTERM)
			finish(0);
		if (waitpid(vm.qemu, &status, WNOHANG) == vm.qemu) {
			vm.qemu = 0;
			hear_text(vm.console, 0);
			finish(status);
		}
	}
}

_Noreturn static void serve(void)
{
	static struct pollfd list[6 + 4 * MAX_CHANNELS];
	int quiet = 0;

	for (;;) {
		list[0] = (struct pollfd){ vm.listener, POLLIN, 0 };
		list[1] = (struct pollfd){ port_free() > MUX_HEADER + MUX_MAX_CONTROL ? vm.hostd : -1, POLLIN, 0 };
		list[2] = (struct pollfd){ port.fd, port.length ? POLLIN | POLLOUT : POLLIN, 0 };
		list[3] = (struct pollfd){ vm.console, POLLIN, 0 };
		list[4] = (struct pollfd){ vm.qmp, POLLIN, 0 };
		list[5] = (struct pollfd){ vm.signals, POLLIN, 0 };
		size_t count = channels_poll(list + 6);
		int ready = poll(list, 6 + count, vm.panicked ? QUIET_MS : -1);
		if (ready == 0 && ++quiet == QUIET_AFTER_PANIC)
			finish(0);
		if (ready <= 0)
			continue;
		if (list[5].revents)
			hear_signals();
		/* Channels first: the list was made for those that were there. */
		channels_serve(list + 6);
		if (list[1].revents)
			hear_hostd();
		if (list[2].revents & (POLLIN | POLLHUP | POLLERR))
			hear_guest();
		if (list[3].revents)
			hear_text(vm.console, 0);
		if (list[4].revents)
			hear_text(vm.qmp, 'M');
		if (list[0].revents)
			accept_hostd();
		if (port.length && port_write() < 0)
			finish_ending();
	}
}

/* QEMU's C library: huge pages where the host offers them, and everything in the one heap that then consists of them.
 * A page at a time it was 3,200 faults of the 6,500 in a start. */
static const char memory_tunables[] = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:"
				      "glibc.malloc.mmap_threshold=33554432";

_Noreturn static void become_qemu(const struct jail *jail, const int *ends, char **argv)
{
	sigset_t none;

	/* From high numbers to the fixed ones; none of the fixed ones is a source. */
	for (int i = 0; i < 3; i++)
		if (dup2(ends[i], PORT_FD + i) < 0)
			_exit(125);
	/* QEMU's own words (warnings, a failed assertion) belong to the console's tail. */
	dup2(ends[1], 1);
	dup2(ends[1], 2);
	close(LISTEN_FD);
	close_range(500, 599, 0); /* the monitor's ends: a child that waits must see that it is alone */
	close_range(PORT_FD + 3, FIRST_PASSED - 1, 0);
	close_range(1000, ~0U, 0);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	const char *step = jail_enter(jail);
	if (step) {
		dprintf(2, "casemate-vm: jail: %s: %s\n", step, strerror(errno));
		_exit(125);
	}
	setenv("GLIBC_TUNABLES", memory_tunables, 1);
	execv(argv[0], argv);
	dprintf(2, "casemate-vm: %s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

static int high_pair(int *ours, int *theirs)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return -1;
	/* Beyond what was passed to us, so that the fixed numbers are free. */
	*ours = fcntl(pair[0], F_DUPFD_CLOEXEC, 500);
	*theirs = fcntl(pair[1], F_DUPFD_CLOEXEC, 600);
	close(pair[0]);
	close(pair[1]);
	return *ours < 0 || *theirs < 0 ? -1 : 0;
}

/* QEMU's arguments, after "--"; the rest is ours. */
static char **parse(int argc, char **argv, struct jail *jail, const char **qmp)
{
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--") && i + 1 < argc)
			return argv + i + 1;
		if (!strcmp(argv[i], "--writes")) {
			jail->writes_files = 1;
			continue;
		}
		if (!strcmp(argv[i], "--kvm")) {
			jail->kvm = 1;
			continue;
		}
		if (i + 1 >= argc)
			break;
		if (!strcmp(argv[i], "--uid"))
			jail->uid = (uid_t)strtoul(argv[++i], NULL, 10);
		else if (!strcmp(argv[i], "--gid"))
			jail->gid = (gid_t)strtoul(argv[++i], NULL, 10);
		else if (!strcmp(argv[i], "--root"))
			jail->root = argv[++i];
		else if (!strcmp(argv[i], "--cgroup"))
			cgroup_join(argv[++i]);
		else if (!strcmp(argv[i], "--qmp"))
			*qmp = argv[++i];
		else if (!strcmp(argv[i], "--uid-map") && !jail_add_map(&jail->uid_map, argv[i + 1]))
			i++;
		else if (!strcmp(argv[i], "--gid-map") && !jail_add_map(&jail->gid_map, argv[i + 1]))
			i++;
		else
			break;
	}
	die("%s", usage);
}

int monitor_main(int argc, char **argv)
{
	struct jail jail = { .uid = (uid_t)-1, .gid = (gid_t)-1 };
	const char *qmp = NULL, *step;
	int ends[3], maps = -1;
	sigset_t set;

	vm.listener = LISTEN_FD;
	fcntl(vm.listener, F_SETFD, FD_CLOEXEC);
	/* None is passed for a template's guest, or a probe's. */
	vm.end = fcntl(END_FD, F_SETFD, FD_CLOEXEC) < 0 ? -1 : END_FD;
	char **qemu = parse(argc, argv, &jail, &qmp);
	if (jail.uid == (uid_t)-1 || jail.gid == (gid_t)-1 || !jail.uid || !jail.gid)
		die("%s", usage);
	if (!jail.uid_map.count != !jail.gid_map.count || (jail.uid_map.count && jail_inner(&jail)))
		die("the id maps do not hold user %u and group %u", jail.uid, jail.gid);
	if (jail.uid_map.count && high_pair(&maps, &jail.maps))
		die("socketpair: %s", strerror(errno));
	if (high_pair(&port.fd, &ends[0]) || high_pair(&vm.console, &ends[1]) || high_pair(&vm.qmp, &ends[2]))
		die("socketpair: %s", strerror(errno));
	/* What QEMU is to do first waits in the socket when it starts: no round trip in the hot path. */
	if (qmp && send(vm.qmp, qmp, strlen(qmp), MSG_NOSIGNAL) < 0)
		die("qmp: %s", strerror(errno));
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	vm.signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	unsigned long flags = CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWPID | (jail.root ? CLONE_NEWNS : 0);
	vm.qemu = cgroup_clone(flags);
	if (vm.qemu < 0)
		die("clone: %s", strerror(errno));
	if (vm.qemu == 0)
		become_qemu(&jail, ends, qemu);
	for (int i = 0; i < 3; i++)
		close(ends[i]);
	if (maps >= 0) {
		close(jail.maps);
		if ((step = jail_map(&jail, vm.qemu, maps)))
			die("jail: %s: %s", step, strerror(errno));
		close(maps);
	}
	close_range(FIRST_PASSED, 499, 0);
	cgroup_follow(vm.qemu);
	prctl(PR_SET_NAME, "casemate-vmm");
	if ((step = jail_drop(&jail, vm.qemu)))
		die("jail: %s: %s", step, strerror(errno));
	serve();
}
