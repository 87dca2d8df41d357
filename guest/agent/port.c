/* The port: frames in, frames out, nothing lost and nothing waited for. */
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "agent.h"

static int port = -1;
static uint8_t input[MUX_HEADER + MUX_MAX_CONTROL];
static size_t input_length;
static uint8_t queue[4 * (MUX_HEADER + MUX_MAX_DATA)];
static size_t queue_length, queue_sent;

void port_open(int fd)
{
	port = fd;
	/* Edge-triggered: a port whose host end is closed reports a hang-up for as long as one asks. */
	loop_watch(fd, LOOP_PORT, 0, EPOLLIN | EPOLLOUT | EPOLLET);
}

void port_leave(void)
{
	port = open("/dev/null", O_WRONLY | O_CLOEXEC);
}

size_t port_room(void)
{
	if (queue_sent) {
		memmove(queue, queue + queue_sent, queue_length - queue_sent);
		queue_length -= queue_sent;
		queue_sent = 0;
	}
	return sizeof queue - queue_length;
}

void port_send(uint8_t type, uint16_t channel, const void *bytes, size_t length)
{
	uint8_t *head = queue + queue_length;

	mux_header(head, type, channel, (uint32_t)length);
	memcpy(head + MUX_HEADER, bytes, length);
	queue_length += MUX_HEADER + length;
}

void port_flush(void)
{
	while (queue_sent < queue_length) {
		ssize_t sent = write(port, queue + queue_sent, queue_length - queue_sent);
		if (sent <= 0)
			return;
		queue_sent += (size_t)sent;
	}
	queue_length = queue_sent = 0;
}

static void take(const struct mux_frame *frame)
{
	if (frame->type == MUX_CONTROL)
		control_message(frame->payload, frame->length);
	else
		stream_frame(frame);
}

void port_event(void)
{
	struct mux_frame frame;

	for (;;) {
		ssize_t length = read(port, input + input_length, sizeof input - input_length);
		if (length <= 0)
			break;
		input_length += (size_t)length;
		size_t used = 0;
		long size;
		while ((size = mux_parse(input + used, input_length - used, &frame)) > 0) {
			take(&frame);
			used += (size_t)size;
		}
		if (size == WIRE_BROKEN) {
			say("casemate: a frame of the host is not valid");
			used = input_length;
		}
		memmove(input, input + used, input_length - used);
		input_length -= used;
	}
	port_flush();
	streams_resume();
	port_flush();
}
