/* The parsers of agent and monitor under the sanitizers: as a libFuzzer target (make fuzz), and with a main of its own
 * that feeds them mutated right messages and noise (make check), which needs nothing but gcc. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../shim/channels.h"
#include "../agent/agent.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

void say(const char *format, ...)
{
	(void)format;
}

static void check(int holds, const char *what)
{
	if (!holds) {
		fprintf(stderr, "broken: %s\n", what);
		abort();
	}
}

/* Each input in a block of its own length, so that one byte too far is seen. */
static uint8_t *copy_of(const uint8_t *data, size_t size)
{
	uint8_t *copy = malloc(size ? size : 1);

	if (!copy)
		abort();
	if (size)
		memcpy(copy, data, size);
	return copy;
}

static void try_request(const uint8_t *data, size_t size)
{
	static struct request request;
	static char arena[REQUEST_ARENA];
	struct wire_message message;
	const char *why = NULL;

	if (wire_parse(data, size, &message) < 0)
		return;
	check(message.length <= size, "a message within its bytes");
	if (request_parse(&message, &request, arena, &why) == 0) {
		check(request.arg_count <= MAX_STRINGS && request.args[request.arg_count] == NULL, "arguments have an end");
		for (size_t i = 0; i < request.arg_count; i++)
			check(strlen(request.args[i]) <= size, "an argument within the message");
		for (size_t i = 0; i < request.mount_count; i++)
			check(strlen(request.mounts[i].target) + strlen(request.mounts[i].data) <= size, "a mount's texts");
		check(!strchr(request.container, '/'), "an id is no path");
	} else {
		check(why != NULL, "a refusal says why");
	}
}

/* The monitor's side: frames of a guest for one channel whose output nobody reads. */
static void try_frames(const uint8_t *data, size_t size)
{
	struct mux_frame frame;
	size_t used = 0;
	long got;
	int out[2], waiter[2];

	if (pipe(out) < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, waiter) < 0)
		return;
	int in = dup(out[0]), fds[4] = { in, out[1], dup(out[1]), waiter[1] };
	close(out[0]);
	/* Without a reader every write fails at once: the channel must take it all and acknowledge it. */
	close(in);
	fds[0] = dup(waiter[0]);
	check(channel_open(1, fds, 4) == 0, "a channel opens");
	while ((got = mux_parse(data + used, size - used, &frame)) > 0) {
		check((size_t)got <= size - used, "a frame within its bytes");
		check((frame.channel == 0) == (frame.type == MUX_CONTROL), "channel 0 is control's alone");
		if (frame.type != MUX_CONTROL) {
			frame.channel = 1;
			if (channel_frame(&frame) < 0)
				break;
		}
		port.length = 0;
		used += (size_t)got;
	}
	channels_end(1);
	close(waiter[0]);
	for (int i = 0; i < MAX_CHANNELS; i++)
		check(!channels[i], "no channel is left");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *copy = copy_of(data, size);

	try_request(copy, size);
	try_frames(copy, size);
	free(copy);
	return 0;
}

#ifndef FUZZER
static uint32_t state = 2463534242;

static uint32_t draw(void)
{
	state ^= state << 13;
	state ^= state >> 17;
	state ^= state << 5;
	return state;
}

static size_t right_message(uint8_t *bytes, size_t capacity)
{
	struct wire_out out;
	uint8_t noise[64];

	wire_begin(&out, bytes, capacity, KIND_CREATE, 1);
	for (uint32_t i = draw() % 12; i; i--) {
		for (size_t j = 0; j < sizeof noise; j++)
			noise[j] = draw() % 4 ? (uint8_t)('a' + draw() % 26) : 0;
		wire_add(&out, (uint16_t)(1 + draw() % 42), noise, draw() % sizeof noise);
	}
	return wire_end(&out);
}

static size_t right_frames(uint8_t *bytes, size_t capacity)
{
	size_t used = 0;

	for (uint32_t i = draw() % 6; i; i--) {
		uint32_t length = draw() % 300;
		if (capacity - used < MUX_HEADER + length)
			break;
		mux_header(bytes + used, (uint8_t)(1 + draw() % MUX_LAST), (uint16_t)(draw() % 2), length);
		memset(bytes + used + MUX_HEADER, (int)draw(), length);
		used += MUX_HEADER + length;
	}
	return used;
}

int main(void)
{
	static uint8_t bytes[8192];

	signal(SIGPIPE, SIG_IGN);
	for (int round = 0; round < 30000; round++) {
		size_t size = round % 2 ? right_message(bytes, sizeof bytes) : right_frames(bytes, sizeof bytes);
		for (uint32_t i = draw() % 4; i && size; i--)
			bytes[draw() % size] = (uint8_t)draw();
		if (size && draw() % 4 == 0)
			size = draw() % size;
		LLVMFuzzerTestOneInput(bytes, size);
	}
	puts("30000 inputs");
	return 0;
}
#endif
