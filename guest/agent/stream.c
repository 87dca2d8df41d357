/* A process's standard files on a channel of the port. Output is read only while the host takes it, so a slow host slows
 * the process and nothing piles up here; input is bounded by a window that the agent acknowledges. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "agent.h"

struct stream streams[MAX_STREAMS];

/* Room for any control answer stays free: data is queued only when this much is left. */
enum { RESERVE = 56 * 1024 };

static struct stream *find(uint16_t channel)
{
	for (int i = 0; i < MAX_STREAMS; i++)
		if (streams[i].channel == channel)
			return &streams[i];
	return NULL;
}

static int may_send(const struct stream *s)
{
	return s->credit && port_room() > RESERVE + MUX_HEADER + MUX_MAX_DATA;
}

static void arm(int index)
{
	struct stream *s = &streams[index];
	uint32_t events = may_send(s) ? EPOLLIN : 0;

	if (s->out >= 0)
		loop_watch(s->out, LOOP_OUT, index, s->terminal && s->window_length ? events | EPOLLOUT : events);
	if (s->err >= 0)
		loop_watch(s->err, LOOP_ERR, index, events);
}

int stream_attach(uint16_t channel, int process, int in, int out, int err, int terminal, int *index)
{
	struct stream *s = find(0);

	if (!s || find(channel))
		return EBUSY;
	memset(s, 0, offsetof(struct stream, window));
	s->window_length = 0;
	s->input_ended = 0;
	s->channel = channel;
	s->process = process;
	s->in = in;
	s->out = out;
	s->err = err;
	s->terminal = terminal;
	s->credit = MUX_WINDOW;
	*index = (int)(s - streams);
	arm(*index);
	/* The first credit says that the channel is there: input that came before would have found nobody. */
	uint8_t number[4];
	wire_put_u32(number, MUX_WINDOW);
	if (port_room() < MUX_HEADER + 4)
		return EAGAIN;
	port_send(MUX_TAKEN, channel, number, 4);
	return 0;
}

static void close_out(struct stream *s, int is_error)
{
	int *fd = is_error ? &s->err : &s->out;

	if (*fd < 0)
		return;
	loop_forget(*fd);
	if (s->in == *fd)
		s->in = -1;
	close(*fd);
	*fd = -1;
	/* Of a process that has ended its exit says so, too. */
	if (!s->ended && !s->terminal && port_room() >= RESERVE)
		port_send(is_error ? MUX_ERR_END : MUX_OUT_END, s->channel, "", 0);
}

static void close_in(struct stream *s)
{
	if (s->in >= 0 && !s->terminal) {
		loop_forget(s->in);
		close(s->in);
	}
	s->in = -1;
	s->window_length = 0;
}

/* After the last output the exit; the channel is free then, as frames keep their order. */
static void finish(struct stream *s)
{
	uint8_t number[4];

	if (!s->ended || s->out >= 0 || s->err >= 0 || port_room() < RESERVE)
		return;
	wire_put_u32(number, (uint32_t)s->status);
	port_send(MUX_EXIT, s->channel, number, 4);
	close_in(s);
	s->channel = 0;
}

/* Reads what the process wrote, as far as the host takes it. */
static void drain(int index, int is_error, int once)
{
	static uint8_t buffer[MUX_MAX_DATA];
	struct stream *s = &streams[index];
	int fd;

	while ((fd = is_error ? s->err : s->out) >= 0 && may_send(s)) {
		size_t most = s->credit < sizeof buffer ? s->credit : sizeof buffer;
		ssize_t length = read(fd, buffer, most);
		if (length > 0) {
			port_send(is_error ? MUX_ERR : MUX_OUT, s->channel, buffer, (size_t)length);
			s->credit -= (uint32_t)length;
			if (once)
				return;
		} else if (length < 0 && errno == EINTR) {
			continue;
		} else if (length < 0 && errno == EAGAIN && !s->ended) {
			return;
		} else {
			/* The end (a terminal says EIO), or nothing more of a process that is gone: what it left behind must not
			 * hold its output open. */
			close_out(s, is_error);
		}
	}
}

void stream_output(int index, int is_error)
{
	struct stream *s = &streams[index];

	if (!s->channel)
		return;
	drain(index, is_error, 1);
	finish(s);
	if (s->channel)
		arm(index);
}

void stream_ended(int index, int status)
{
	struct stream *s = &streams[index];

	s->ended = 1;
	s->status = status;
	s->process = -1;
	close_in(s);
	drain(index, 0, 0);
	drain(index, 1, 0);
	finish(s);
	if (s->channel)
		arm(index);
}

void streams_resume(void)
{
	for (int i = 0; i < MAX_STREAMS; i++) {
		if (!streams[i].channel)
			continue;
		if (streams[i].ended)
			stream_ended(i, streams[i].status);
		else
			arm(i);
	}
}

static void acknowledge(struct stream *s, size_t taken)
{
	uint8_t number[4];

	if (!taken)
		return;
	wire_put_u32(number, (uint32_t)taken);
	if (port_room() >= MUX_HEADER + 4)
		port_send(MUX_TAKEN, s->channel, number, 4);
}

void stream_input(int index)
{
	struct stream *s = &streams[index];
	size_t done = 0;

	if (!s->channel)
		return;
	while (done < s->window_length && s->in >= 0) {
		ssize_t taken = write(s->in, s->window + done, s->window_length - done);
		if (taken < 0 && errno == EAGAIN)
			break;
		if (taken <= 0) {
			acknowledge(s, s->window_length);
			close_in(s);
			return;
		}
		done += (size_t)taken;
	}
	memmove(s->window, s->window + done, s->window_length - done);
	s->window_length -= done;
	acknowledge(s, done);
	if (s->in < 0)
		return;
	if (s->terminal)
		arm(index);
	else if (s->window_length)
		loop_watch(s->in, LOOP_IN, index, EPOLLOUT);
	else if (s->input_ended)
		close_in(s);
	else
		loop_forget(s->in);
}

static void input(struct stream *s, const struct mux_frame *frame)
{
	if (s->in < 0) {
		acknowledge(s, frame->length); /* nobody reads: taken, and dropped */
		return;
	}
	if (frame->length > sizeof s->window - s->window_length) {
		say("casemate: channel %u: more input than its window", s->channel);
		return;
	}
	memcpy(s->window + s->window_length, frame->payload, frame->length);
	s->window_length += frame->length;
	stream_input((int)(s - streams));
}

static void resize(const struct stream *s, const uint8_t *payload)
{
	struct winsize size = { .ws_row = wire_u16(payload), .ws_col = wire_u16(payload + 2) };

	if (s->terminal && s->out >= 0)
		ioctl(s->out, TIOCSWINSZ, &size);
}

void stream_frame(const struct mux_frame *frame)
{
	struct stream *s = find(frame->channel);

	if (!s) /* ended in the meantime */
		return;
	switch (frame->type) {
	case MUX_IN: input(s, frame); break;
	case MUX_IN_END:
		s->input_ended = 1;
		stream_input((int)(s - streams));
		break;
	case MUX_RESIZE:
		if (frame->length == 4)
			resize(s, frame->payload);
		break;
	case MUX_KILL:
		if (frame->length == 1 && s->process >= 0)
			process_kill(s->process, frame->payload[0]);
		break;
	case MUX_TAKEN:
		if (frame->length == 4 && wire_u32(frame->payload) <= MUX_WINDOW - s->credit)
			s->credit += wire_u32(frame->payload);
		break;
	default: break;
	}
}
