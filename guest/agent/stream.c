/* A process's standard files on a port of their own. Output is read only when the port takes it, so a slow host slows
 * the process and nothing piles up here; input is bounded by a window that the agent acknowledges. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "agent.h"

struct port ports[MAX_PORTS];

static void flush(int index);

void port_open(int index, int fd)
{
	struct port *p = &ports[index];

	p->fd = fd;
	p->process = -1;
	p->in = p->out = p->err = -1;
	/* Edge-triggered: a port whose host end is closed reports a hang-up for as long as one asks. */
	loop_watch(fd, LOOP_PORT, index, EPOLLIN | EPOLLOUT | EPOLLET);
}

static void arm(int index, int on)
{
	struct port *p = &ports[index];
	uint32_t events = on ? EPOLLIN : 0;

	/* A terminal is one descriptor for both ways; input waits in the window while it is armed for output. */
	if (p->out >= 0)
		loop_watch(p->out, LOOP_OUT, index, p->terminal && p->window_length ? events | EPOLLOUT : events);
	if (p->err >= 0)
		loop_watch(p->err, LOOP_ERR, index, events);
}

int port_attach(int index, int process, int in, int out, int err, int terminal)
{
	struct port *p = &ports[index];

	if (index <= 0 || p->fd <= 0 || p->process >= 0 || p->out >= 0 || p->exit_sent)
		return EBUSY;
	p->process = process;
	p->in = in;
	p->out = out;
	p->err = err;
	p->terminal = terminal;
	p->pending_length = p->pending_sent = p->input_length = p->window_length = 0;
	p->taken = 0;
	p->input_ended = 0;
	arm(index, 1);
	/* What the relay sent before. */
	port_event(index);
	return 0;
}

static void close_out(struct port *p, int is_error)
{
	int *fd = is_error ? &p->err : &p->out;

	if (*fd < 0)
		return;
	loop_forget(*fd);
	if (p->in == *fd)
		p->in = -1;
	close(*fd);
	*fd = -1;
}

static void close_in(struct port *p)
{
	if (p->in >= 0 && !p->terminal) {
		loop_forget(p->in);
		close(p->in);
	}
	p->in = -1;
	p->window_length = 0;
}

static void reset(int index)
{
	struct port *p = &ports[index];
	uint8_t buffer[64];
	struct wire_out out;

	close_in(p);
	close_out(p, 0);
	close_out(p, 1);
	p->process = -1;
	p->exit_sent = 0;
	p->pending_length = p->pending_sent = p->input_length = 0;
	wire_begin(&out, buffer, sizeof buffer, KIND_PORT_FREE, 0);
	wire_add_u32(&out, TAG_PORT, (uint32_t)index);
	control_event(&out);
}

static void put(struct port *p, uint8_t type, const void *bytes, size_t length)
{
	stream_header(p->pending, type, (uint32_t)length);
	memcpy(p->pending + STREAM_HEADER, bytes, length);
	p->pending_length = STREAM_HEADER + length;
	p->pending_sent = 0;
}

/* The next frame that is due: an acknowledgement, or, when all output is out, the exit. 0 when there is none. */
static int next(struct port *p)
{
	uint8_t number[4];

	if (p->taken) {
		wire_put_u32(number, p->taken);
		p->taken = 0;
		put(p, STREAM_TAKEN, number, 4);
		return 1;
	}
	if (p->process >= 0 && processes[p->process].ended && p->out < 0 && p->err < 0) {
		wire_put_u32(number, (uint32_t)processes[p->process].status);
		put(p, STREAM_EXIT, number, 4);
		p->process = -1;
		p->exit_sent = 1;
		return 1;
	}
	return 0;
}

static void flush(int index)
{
	struct port *p = &ports[index];

	do {
		while (p->pending_sent < p->pending_length) {
			ssize_t sent = write(p->fd, p->pending + p->pending_sent, p->pending_length - p->pending_sent);
			if (sent <= 0) {
				arm(index, 0);
				return;
			}
			p->pending_sent += (size_t)sent;
		}
		p->pending_length = p->pending_sent = 0;
	} while (next(p));
	arm(index, 1);
}

void port_output(int index, int is_error)
{
	struct port *p = &ports[index];
	int fd = is_error ? p->err : p->out;

	if (fd < 0)
		return;
	if (p->pending_length) {
		arm(index, 0);
		return;
	}
	ssize_t length = read(fd, p->pending + STREAM_HEADER, STREAM_MAX_PAYLOAD);
	if (length < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (length <= 0) { /* the end; a terminal says EIO when its last user is gone */
		close_out(p, is_error);
	} else {
		stream_header(p->pending, is_error ? STREAM_ERR : STREAM_OUT, (uint32_t)length);
		p->pending_length = STREAM_HEADER + (size_t)length;
		p->pending_sent = 0;
	}
	flush(index);
}

/* The process is gone. What it wrote is still in its pipes; a child that it left behind must not keep them open. */
void port_ended(int index)
{
	struct port *p = &ports[index];
	static uint8_t rest[STREAM_MAX_PAYLOAD];

	close_in(p);
	for (int is_error = 0; is_error < 2; is_error++) {
		int fd = is_error ? p->err : p->out;
		/* Bounded by what a pipe holds (64 KiB): 4 reads. */
		for (int i = 0; fd >= 0 && i < 4; i++) {
			struct pollfd port = { p->fd, POLLOUT, 0 };
			while (p->pending_sent < p->pending_length && poll(&port, 1, 2000) > 0 && port.revents & POLLOUT) {
				ssize_t sent = write(p->fd, p->pending + p->pending_sent, p->pending_length - p->pending_sent);
				if (sent <= 0)
					break;
				p->pending_sent += (size_t)sent;
			}
			ssize_t length = read(fd, rest, sizeof rest);
			if (length <= 0)
				break;
			put(p, is_error ? STREAM_ERR : STREAM_OUT, rest, (size_t)length);
		}
		close_out(p, is_error);
	}
	if (!p->connected && p->pending_length == 0)
		p->connected = 0;
	flush(index);
}

void port_input(int index)
{
	struct port *p = &ports[index];

	while (p->window_length && p->in >= 0) {
		ssize_t taken = write(p->in, p->window, p->window_length);
		if (taken < 0 && errno == EAGAIN) {
			loop_watch(p->in, p->terminal ? LOOP_OUT : LOOP_IN, index,
				p->terminal ? EPOLLOUT | EPOLLIN : EPOLLOUT);
			break;
		}
		if (taken <= 0) {
			close_in(p);
			break;
		}
		memmove(p->window, p->window + taken, p->window_length - (size_t)taken);
		p->window_length -= (size_t)taken;
		p->taken += (uint32_t)taken;
	}
	if (!p->window_length && p->in >= 0 && !p->terminal) {
		if (p->input_ended)
			close_in(p);
		else
			loop_forget(p->in);
	}
	if (p->taken && !p->pending_length)
		flush(index);
}

void port_resize(int index, uint16_t rows, uint16_t columns)
{
	struct winsize size = { .ws_row = rows, .ws_col = columns };

	if (ports[index].terminal && ports[index].out >= 0)
		ioctl(ports[index].out, TIOCSWINSZ, &size);
}

static int take(int index, const struct stream_frame *frame)
{
	struct port *p = &ports[index];

	switch (frame->type) {
	case STREAM_IN:
		if (frame->length > sizeof p->window - p->window_length)
			return -1;
		if (p->in >= 0) {
			memcpy(p->window + p->window_length, frame->payload, frame->length);
			p->window_length += frame->length;
		} else {
			p->taken += (uint32_t)frame->length; /* nobody reads: taken, and dropped */
		}
		break;
	case STREAM_IN_END:
		p->input_ended = 1;
		break;
	case STREAM_RESIZE:
		if (frame->length != 4)
			return -1;
		port_resize(index, wire_u16(frame->payload), wire_u16(frame->payload + 2));
		break;
	case STREAM_KILL:
		if (frame->length != 1 || frame->payload[0] < 1 || frame->payload[0] > 64)
			return -1;
		if (p->process >= 0)
			process_kill(p->process, frame->payload[0]);
		break;
	default:
		return -1;
	}
	return 0;
}

static void disconnected(int index)
{
	struct port *p = &ports[index];

	p->connected = 0;
	/* Whoever relayed for the process is gone, and with it the container's supervisor: the process goes too. */
	if (p->process >= 0 && !processes[p->process].ended)
		process_kill(p->process, SIGKILL);
	if (p->process < 0 || processes[p->process].ended)
		reset(index);
	else
		p->pending_length = p->pending_sent = p->input_length = 0;
}

void port_event(int index)
{
	struct port *p = &ports[index];
	struct stream_frame frame;

	for (;;) {
		ssize_t length = read(p->fd, p->input + p->input_length, sizeof p->input - p->input_length);
		if (length <= 0)
			break;
		p->connected = 1;
		p->input_length += (size_t)length;
		size_t used = 0;
		long size;
		while ((size = stream_parse(p->input + used, p->input_length - used, &frame)) > 0) {
			if (p->process >= 0 && take(index, &frame) < 0) {
				size = WIRE_BROKEN;
				break;
			}
			used += (size_t)size;
		}
		if (size == WIRE_BROKEN) {
			say("casemate: port %d: a frame is not valid", index);
			used = p->input_length;
		}
		memmove(p->input, p->input + used, p->input_length - used);
		p->input_length -= used;
	}
	struct pollfd one = { p->fd, POLLIN, 0 };
	poll(&one, 1, 0);
	if (one.revents & POLLHUP) {
		if (p->connected)
			disconnected(index);
		return;
	}
	p->connected = 1;
	port_input(index);
	if (p->pending_length || (p->process >= 0 && processes[p->process].ended))
		flush(index);
}
