#include "channels.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct channel *channels[MAX_CHANNELS];
struct port_queue port = { .fd = -1 };

size_t port_free(void)
{
	return sizeof port.bytes - port.length;
}

void port_put(uint8_t type, uint16_t channel, const void *bytes, size_t length)
{
	if (port_free() < MUX_HEADER + length)
		return;
	mux_header(port.bytes + port.length, type, channel, (uint32_t)length);
	if (length)
		memcpy(port.bytes + port.length + MUX_HEADER, bytes, length);
	port.length += MUX_HEADER + length;
}

int port_write(void)
{
	size_t done = 0;

	while (done < port.length) {
		ssize_t sent = send(port.fd, port.bytes + done, port.length - done, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0 && errno != EAGAIN)
			return -1;
		if (sent <= 0)
			break;
		done += (size_t)sent;
	}
	memmove(port.bytes, port.bytes + done, port.length - done);
	port.length -= done;
	return 0;
}

static struct channel *find(uint16_t number)
{
	for (int i = 0; i < MAX_CHANNELS; i++)
		if (channels[i] && channels[i]->number == number)
			return channels[i];
	return NULL;
}

int channel_open(uint16_t number, const int *fds, int count)
{
	int slot = -1;

	for (int i = 0; i < MAX_CHANNELS && slot < 0; i++)
		if (!channels[i])
			slot = i;
	if (slot < 0 || !number || find(number) || (count != 4 && count != 2))
		return -1;
	struct channel *c = calloc(1, sizeof *c);
	if (!c)
		return -1;
	c->number = number;
	c->terminal = count == 2;
	c->in = fds[0];
	c->out.fd = c->terminal ? fds[0] : fds[1];
	c->err.fd = c->terminal ? -1 : fds[2];
	c->exit_socket = fds[count - 1];
	/* The guest's first acknowledgement opens the channel for input. */
	channels[slot] = c;
	return 0;
}

static void release(struct channel *c)
{
	if (c->in >= 0)
		close(c->in);
	if (c->out.fd >= 0 && !(c->terminal && c->in >= 0))
		close(c->out.fd);
	if (c->err.fd >= 0)
		close(c->err.fd);
	close(c->exit_socket);
	for (int i = 0; i < MAX_CHANNELS; i++)
		if (channels[i] == c)
			channels[i] = NULL;
	free(c);
}

static void acknowledge(struct channel *c, size_t taken)
{
	uint8_t number[4];

	if (!taken || c->exited)
		return;
	c->unacked -= (uint32_t)taken;
	wire_put_u32(number, (uint32_t)taken);
	port_put(MUX_TAKEN, c->number, number, 4);
}

/* Writes what waits; a reader that is gone (or a descriptor that fails) takes everything from then on. */
static void drain(struct channel *c, struct pipe_out *out)
{
	size_t done = 0;

	while (out->fd >= 0 && done < out->length) {
		ssize_t sent = write(out->fd, out->bytes + done, out->length - done);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0 && errno == EAGAIN)
			break;
		if (sent <= 0) {
			if (!c->terminal)
				close(out->fd);
			out->fd = -1;
			break;
		}
		done += (size_t)sent;
	}
	if (out->fd < 0)
		done = out->length;
	memmove(out->bytes, out->bytes + done, out->length - done);
	out->length -= done;
	if (out->ended && !out->length && out->fd >= 0) {
		close(out->fd);
		out->fd = -1;
	}
	acknowledge(c, done);
}

/* Tells the waiter, once everything is written; returns 1 when the channel is gone. */
static int finish(struct channel *c)
{
	uint8_t code[4];

	if (!c->exited || c->out.length || c->err.length)
		return 0;
	wire_put_u32(code, c->status);
	send(c->exit_socket, code, sizeof code, MSG_NOSIGNAL | MSG_DONTWAIT);
	release(c);
	return 1;
}

int channel_frame(const struct mux_frame *frame)
{
	struct channel *c = find(frame->channel);

	/* The waiter may have gone while this was under way; a guest that invents channels only wastes its time. */
	if (!c)
		return 0;
	switch (frame->type) {
	case MUX_OUT:
	case MUX_ERR: {
		struct pipe_out *out = frame->type == MUX_ERR && !c->terminal ? &c->err : &c->out;
		if (c->exited || out->ended || frame->length > MUX_WINDOW - c->unacked)
			return -1;
		memcpy(out->bytes + out->length, frame->payload, frame->length);
		out->length += frame->length;
		c->unacked += (uint32_t)frame->length;
		drain(c, out);
		return 0;
	}
	case MUX_OUT_END:
	case MUX_ERR_END: {
		struct pipe_out *out = frame->type == MUX_ERR_END ? &c->err : &c->out;
		if (c->exited || c->terminal || frame->length || out->ended)
			return -1;
		out->ended = 1;
		drain(c, out);
		return 0;
	}
	case MUX_TAKEN:
		if (frame->length != 4 || wire_u32(frame->payload) > MUX_WINDOW - c->credit)
			return -1;
		if (!c->open && c->has_size)
			port_put(MUX_RESIZE, c->number, c->size, 4);
		c->open = 1;
		c->credit += wire_u32(frame->payload);
		return 0;
	case MUX_EXIT:
		if (frame->length != 4 || c->exited)
			return -1;
		c->exited = 1;
		c->status = wire_u32(frame->payload) & 255;
		finish(c);
		return 0;
	default:
		return -1;
	}
}

static int may_read(const struct channel *c)
{
	return c->in >= 0 && c->credit && !c->exited && port_free() > 2 * (MUX_HEADER + MUX_MAX_CONTROL);
}

size_t channels_poll(struct pollfd *list)
{
	size_t used = 0;

	for (int i = 0; i < MAX_CHANNELS; i++) {
		struct channel *c = channels[i];
		if (!c)
			continue;
		/* A descriptor that is not to be looked at is negative: poll would report its hang-up otherwise. */
		list[used++] = (struct pollfd){ may_read(c) ? c->in : -1, POLLIN, 0 };
		list[used++] = (struct pollfd){ c->out.length ? c->out.fd : -1, POLLOUT, 0 };
		list[used++] = (struct pollfd){ c->err.length ? c->err.fd : -1, POLLOUT, 0 };
		list[used++] = (struct pollfd){ c->exit_socket, POLLIN, 0 };
	}
	return used;
}

static void read_input(struct channel *c)
{
	static uint8_t buffer[MUX_MAX_DATA];
	ssize_t got = read(c->in, buffer, c->credit < sizeof buffer ? c->credit : sizeof buffer);

	if (got > 0) {
		port_put(MUX_IN, c->number, buffer, (size_t)got);
		c->credit -= (uint32_t)got;
	} else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
		if (!c->terminal)
			close(c->in);
		c->in = -1;
		port_put(MUX_IN_END, c->number, NULL, 0);
	}
}

/* What the waiter says: a signal, the terminal's size; or that it is gone, and the process is to go too. */
static void hear_waiter(struct channel *c)
{
	uint8_t message[8];
	static const uint8_t kill_signal = 9;
	ssize_t got = recv(c->exit_socket, message, sizeof message, MSG_DONTWAIT);

	if (got == 2 && message[0] == 'K') {
		port_put(MUX_KILL, c->number, message + 1, 1);
	} else if (got == 5 && message[0] == 'R') {
		memcpy(c->size, message + 1, 4);
		c->has_size = 1;
		if (c->open)
			port_put(MUX_RESIZE, c->number, c->size, 4);
	} else if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
		port_put(MUX_KILL, c->number, &kill_signal, 1);
		release(c);
	}
}

void channels_serve(const struct pollfd *list)
{
	struct channel *all[MAX_CHANNELS];

	/* The same walk as in channels_poll; a channel may go while it is served. */
	memcpy(all, channels, sizeof all);
	for (int i = 0; i < MAX_CHANNELS; i++) {
		struct channel *c = all[i];
		if (!c)
			continue;
		const struct pollfd *of = list;
		list += 4;
		if (of[1].revents)
			drain(c, &c->out);
		if (of[2].revents)
			drain(c, &c->err);
		if (finish(c))
			continue;
		if (of[0].revents)
			read_input(c);
		if (of[3].revents)
			hear_waiter(c);
	}
}

void channels_end(uint32_t status)
{
	for (int i = 0; i < MAX_CHANNELS; i++) {
		struct channel *c = channels[i];
		if (!c)
			continue;
		c->status = c->exited ? c->status : status;
		c->exited = 1;
		c->out.length = c->err.length = 0;
		finish(c);
	}
}
