/* An engine's resolver that listens on a loopback address of the container's network namespace on the host (Docker's
 * 127.0.0.11): a guest has a loopback of its own. This child listens there in the guest and passes questions and answers on
 * as frames over its standard files; casemate-vm puts them to the engine's resolver (shim/resolver.c).
 *
 * A frame, both ways:  u16 number | u16 kind | u32 length | the message as DNS has it, little-endian.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"

enum { ASKED = 64, STREAMS = 8, HEAD = 8, MOST = 65535, QUESTION = 4096, UDP = 0, TCP = 1, NOBODY = 65534 };

/* Who asked by datagram: the oldest gives way to the newest. */
static struct {
	struct sockaddr_in who;
	uint16_t number;
	int used;
} asked[ASKED];

static struct {
	int fd;
	uint16_t number;
	size_t length;
	uint8_t bytes[QUESTION + 2];
} connections[STREAMS];

static uint16_t last_number;

static int listen_at(int type)
{
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons(53), .sin_addr.s_addr = htonl(0x7f00000b) };
	int one = 1, fd = socket(AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(fd, (struct sockaddr *)&here, sizeof here) < 0 || (type == SOCK_STREAM && listen(fd, STREAMS) < 0))
		return -1;
	return fd;
}

static void put(int fd, const uint8_t *bytes, size_t length)
{
	while (length) {
		ssize_t wrote = write(fd, bytes, length);
		if (wrote < 0 && errno == EINTR)
			continue;
		if (wrote <= 0)
			_exit(0);
		bytes += wrote;
		length -= (size_t)wrote;
	}
}

static void ask(uint16_t number, uint16_t kind, const uint8_t *bytes, size_t length)
{
	uint8_t frame[HEAD + QUESTION];
	struct pollfd room = { 1, POLLOUT, 0 };

	/* Too many at once: who asked asks again. Waiting here would keep answers from being taken. */
	if (poll(&room, 1, 0) <= 0)
		return;
	wire_put_u16(frame, number);
	wire_put_u16(frame + 2, kind);
	wire_put_u32(frame + 4, (uint32_t)length);
	memcpy(frame + HEAD, bytes, length);
	put(1, frame, HEAD + length);
}

static void datagram(int fd)
{
	uint8_t question[QUESTION];
	struct sockaddr_in who;
	socklen_t size = sizeof who;
	ssize_t length = recvfrom(fd, question, sizeof question, MSG_TRUNC, (struct sockaddr *)&who, &size);

	if (length < 12 || length > QUESTION)
		return;
	int slot = ++last_number % ASKED;
	asked[slot].who = who;
	asked[slot].number = last_number;
	asked[slot].used = 1;
	ask(last_number, UDP, question, (size_t)length);
}

static void end_stream(int i)
{
	close(connections[i].fd);
	connections[i].fd = -1;
}

static void accept_one(int fd)
{
	int one = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	for (int i = 0; one >= 0 && i < STREAMS; i++) {
		if (connections[i].fd >= 0)
			continue;
		connections[i].fd = one;
		connections[i].length = 0;
		connections[i].number = 0;
		return;
	}
	if (one >= 0)
		close(one);
}

/* One question a connection, its length before it (RFC 1035, 4.2.2). */
static void stream(int i)
{
	uint8_t *bytes = connections[i].bytes;
	ssize_t got = read(connections[i].fd, bytes + connections[i].length, sizeof connections[i].bytes - connections[i].length);

	if (got <= 0 || connections[i].number) {
		end_stream(i);
		return;
	}
	connections[i].length += (size_t)got;
	size_t wanted = connections[i].length < 2 ? 0 : (size_t)bytes[0] << 8 | bytes[1];
	if (wanted > QUESTION || (connections[i].length >= 2 && wanted < 12))
		end_stream(i);
	else if (wanted && connections[i].length >= wanted + 2) {
		connections[i].number = ++last_number ? last_number : ++last_number;
		ask(connections[i].number, TCP, bytes + 2, wanted);
	}
}

static void answer_stream(uint16_t number, const uint8_t *bytes, size_t length)
{
	uint8_t head[2] = { (uint8_t)(length >> 8), (uint8_t)length };

	for (int i = 0; i < STREAMS; i++) {
		if (connections[i].fd < 0 || connections[i].number != number || !number)
			continue;
		/* A reader that takes nothing loses its answer; nobody waits for it. */
		if (length && send(connections[i].fd, head, 2, MSG_NOSIGNAL | MSG_MORE) == 2)
			send(connections[i].fd, bytes, length, MSG_NOSIGNAL);
		end_stream(i);
	}
}

static void answer(int udp, const uint8_t *frame)
{
	uint16_t number = wire_u16(frame), kind = wire_u16(frame + 2);
	size_t length = wire_u32(frame + 4);
	int slot = number % ASKED;

	if (kind == TCP)
		answer_stream(number, frame + HEAD, length);
	else if (asked[slot].used && asked[slot].number == number) {
		asked[slot].used = 0;
		sendto(udp, frame + HEAD, length, MSG_DONTWAIT, (struct sockaddr *)&asked[slot].who, sizeof asked[slot].who);
	}
}

/* What has come of the host's frames; those that are whole are answers. */
static void take(int udp)
{
	static uint8_t room[HEAD + MOST];
	static size_t used;
	ssize_t got = read(0, room + used, sizeof room - used);

	if (got <= 0)
		_exit(0);
	used += (size_t)got;
	while (used >= HEAD) {
		size_t length = wire_u32(room + 4);
		if (length > MOST)
			_exit(1);
		if (used < HEAD + length)
			return;
		answer(udp, room);
		used -= HEAD + length;
		memmove(room, room + HEAD + length, used);
	}
}

_Noreturn void resolver_run(void)
{
	struct pollfd list[3 + STREAMS];
	int udp = listen_at(SOCK_DGRAM), tcp = listen_at(SOCK_STREAM);

	if (udp < 0 || tcp < 0)
		_exit(2);
	signal(SIGPIPE, SIG_IGN);
	if (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0)
		_exit(3);
	for (int i = 0; i < STREAMS; i++)
		connections[i].fd = -1;
	for (;;) {
		list[0] = (struct pollfd){ 0, POLLIN, 0 };
		list[1] = (struct pollfd){ udp, POLLIN, 0 };
		list[2] = (struct pollfd){ tcp, POLLIN, 0 };
		for (int i = 0; i < STREAMS; i++)
			list[3 + i] = (struct pollfd){ connections[i].fd, POLLIN, 0 };
		if (poll(list, 3 + STREAMS, -1) < 0)
			continue;
		for (int i = 0; i < STREAMS; i++)
			if (list[3 + i].revents && connections[i].fd >= 0)
				stream(i);
		if (list[0].revents)
			take(udp);
		if (list[1].revents)
			datagram(udp);
		if (list[2].revents)
			accept_one(tcp);
	}
}
