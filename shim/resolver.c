/* `casemate-vm resolver PID SOCKET`: the host's end of guest/agent/resolver.c. In the network namespace of the container's
 * waiter it puts the guest's questions to the engine's resolver at 127.0.0.11, and to nobody else: as nobody, without a
 * capability, each question with its own socket and its own end. What the guest sends is bounded and never read. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

enum { OPEN = 64, HEAD = 8, MOST = 65535, QUESTION = 4096, UDP = 0, TCP = 1, PATIENCE_S = 15, NOBODY = 65534 };

/* A question on its way; of a stream what has come of the answer, its length before it. */
static struct {
	int fd;
	uint16_t number, kind;
	time_t end;
	size_t used;
	uint8_t *bytes;
} asked[OPEN];

static time_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec;
}

static void forget(int i)
{
	close(asked[i].fd);
	free(asked[i].bytes);
	asked[i].fd = -1;
	asked[i].bytes = NULL;
}

/* A guest that does not take its answers loses them all: the frames would no longer be whole. */
static void answer(int guest, int i, const uint8_t *bytes, size_t length)
{
	static uint8_t frame[HEAD + MOST];

	wire_put_u16(frame, asked[i].number);
	wire_put_u16(frame + 2, asked[i].kind);
	wire_put_u32(frame + 4, (uint32_t)length);
	memcpy(frame + HEAD, bytes, length);
	length += HEAD;
	for (size_t sent = 0; sent < length;) {
		struct pollfd one = { guest, POLLOUT, 0 };
		ssize_t wrote = poll(&one, 1, PATIENCE_S * 1000) > 0
			? send(guest, frame + sent, length - sent, MSG_NOSIGNAL | MSG_DONTWAIT) : -1;
		if (wrote < 0 && errno == EAGAIN)
			continue;
		if (wrote <= 0)
			_exit(0);
		sent += (size_t)wrote;
	}
}

static int open_to_resolver(uint16_t kind)
{
	struct sockaddr_in there = { .sin_family = AF_INET, .sin_port = htons(53), .sin_addr.s_addr = htonl(0x7f00000b) };
	int fd = socket(AF_INET, (kind == TCP ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0);

	/* On loopback a connection stands or is refused at once. */
	if (fd >= 0 && connect(fd, (struct sockaddr *)&there, sizeof there) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static void ask_for(int guest, const uint8_t *frame)
{
	uint16_t kind = wire_u16(frame + 2);
	size_t length = wire_u32(frame + 4);
	uint8_t head[2] = { (uint8_t)(length >> 8), (uint8_t)length };
	int i = 0;

	while (i < OPEN && asked[i].fd >= 0)
		i++;
	/* Too many at once: a resolver asks again. */
	if (i == OPEN || kind > TCP)
		return;
	asked[i].fd = open_to_resolver(kind);
	asked[i].number = wire_u16(frame);
	asked[i].kind = kind;
	asked[i].end = now() + PATIENCE_S;
	asked[i].used = 0;
	asked[i].bytes = kind == TCP ? malloc(MOST + 2) : NULL;
	int sent = asked[i].fd >= 0 && (kind != TCP || asked[i].bytes) &&
		(kind != TCP || send(asked[i].fd, head, 2, MSG_NOSIGNAL | MSG_MORE) == 2);
	if (sent && send(asked[i].fd, frame + HEAD, length, MSG_NOSIGNAL) == (ssize_t)length)
		return;
	if (kind == TCP)
		answer(guest, i, NULL, 0); /* its connection ends */
	forget(i);
}

static void hear(int guest, int i)
{
	static uint8_t datagram[MOST];

	if (asked[i].kind == UDP) {
		struct pollfd room = { guest, POLLOUT, 0 };
		ssize_t got = recv(asked[i].fd, datagram, sizeof datagram, 0);
		/* A guest that asks and does not listen loses answers, as from any resolver that is asked too much. */
		if (got > 0 && poll(&room, 1, 0) > 0)
			answer(guest, i, datagram, (size_t)got);
		forget(i);
		return;
	}
	ssize_t got = recv(asked[i].fd, asked[i].bytes + asked[i].used, MOST + 2 - asked[i].used, 0);
	asked[i].used += got > 0 ? (size_t)got : 0;
	size_t wanted = asked[i].used < 2 ? MOST : (size_t)asked[i].bytes[0] << 8 | asked[i].bytes[1];
	if (asked[i].used >= wanted + 2)
		answer(guest, i, asked[i].bytes + 2, wanted);
	else if (got <= 0)
		answer(guest, i, NULL, 0);
	else
		return;
	forget(i);
}

static void take(int guest)
{
	static uint8_t room[HEAD + QUESTION];
	static size_t used;
	ssize_t got = recv(guest, room + used, sizeof room - used, 0);

	if (got <= 0)
		_exit(0);
	used += (size_t)got;
	while (used >= HEAD) {
		size_t length = wire_u32(room + 4);
		if (length > QUESTION || length < 12)
			_exit(1);
		if (used < HEAD + length)
			return;
		ask_for(guest, room);
		used -= HEAD + length;
		memmove(room, room + HEAD + length, used);
	}
}

static void enter(const char *pid)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%.10s/ns/net", pid);
	int netns = open(path, O_RDONLY | O_CLOEXEC);
	if (netns < 0 || setns(netns, CLONE_NEWNET) < 0 || chdir("/") < 0)
		die("%s: %s", path, strerror(errno));
	if (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0)
		die("uid %d: %s", NOBODY, strerror(errno));
	drop_privileges();
}

int resolver_main(char **argv)
{
	struct pollfd list[1 + OPEN];
	int guest = argv[0] && argv[1] ? atoi(argv[1]) : -1;

	if (guest < 3)
		die("usage: casemate-vm resolver PID SOCKET");
	enter(argv[0]);
	for (int i = 0; i < OPEN; i++)
		asked[i].fd = -1;
	for (;;) {
		list[0] = (struct pollfd){ guest, POLLIN, 0 };
		for (int i = 0; i < OPEN; i++)
			list[1 + i] = (struct pollfd){ asked[i].fd, POLLIN, 0 };
		if (poll(list, 1 + OPEN, PATIENCE_S * 1000) < 0)
			continue;
		for (int i = 0; i < OPEN; i++) {
			if (asked[i].fd >= 0 && list[1 + i].revents)
				hear(guest, i);
			else if (asked[i].fd >= 0 && now() > asked[i].end)
				forget(i);
		}
		if (list[0].revents)
			take(guest);
	}
}
