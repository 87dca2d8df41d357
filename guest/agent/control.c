#include <errno.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/epoll.h>
#include <stdio.h>
#include <unistd.h>

#include "agent.h"

static int control = -1;
static uint8_t input[WIRE_HEADER + WIRE_MAX_PAYLOAD];
static size_t input_length;
/* Answers that the port has not taken. An event that does not fit is dropped: after a reconnect the host asks. */
static uint8_t queue[64 * 1024];
static size_t queue_length;
static struct request request;

void control_open(int fd)
{
	control = fd;
	loop_watch(fd, LOOP_CONTROL, 0, EPOLLIN | EPOLLOUT | EPOLLET);
}

void control_flush(void)
{
	size_t sent = 0;

	while (sent < queue_length) {
		ssize_t written = write(control, queue + sent, queue_length - sent);
		if (written <= 0)
			break;
		sent += (size_t)written;
	}
	memmove(queue, queue + sent, queue_length - sent);
	queue_length -= sent;
}

void control_event(struct wire_out *out)
{
	size_t size = wire_end(out);

	if (!size || size > sizeof queue - queue_length) {
		say("casemate: an answer was dropped");
		return;
	}
	memcpy(queue + queue_length, out->bytes, size);
	queue_length += size;
	control_flush();
}

void control_ready(void)
{
	uint8_t buffer[64];
	struct wire_out out;

	wire_begin(&out, buffer, sizeof buffer, KIND_READY, 0);
	wire_add_u32(&out, TAG_VERSION, AGENT_VERSION);
	control_event(&out);
}

static void stats(struct wire_out *out, const char *container)
{
	static const char *const files[] = { "memory.current", "memory.peak", "memory.events", "cpu.stat", "pids.current",
		"io.stat", "cgroup.procs" };
	static char text[8192];

	for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
		size_t name = strlen(files[i]) + 1;
		memcpy(text, files[i], name);
		long length = cgroup_read(container, files[i], text + name, sizeof text - name);
		if (length >= 0)
			wire_add(out, TAG_STAT, text, name + (size_t)length);
	}
}

static void rows(struct wire_out *out)
{
	for (int i = 0; i < MAX_PROCESSES; i++) {
		struct process *p = &processes[i];
		if (!p->used)
			continue;
		char line[2 * ID_BYTES + 64];
		int length = snprintf(line, sizeof line, "%s%c%s%c%d%c%s%c%d", p->container, 0, p->id, 0, (int)p->pid, 0,
			p->ended ? "ended" : p->started ? "running" : "created", 0, p->status);
		wire_add(out, TAG_PROCESS, line, (size_t)length);
	}
}

static int limits(void)
{
	for (size_t i = 0; i < request.limit_count; i++) {
		int error = cgroup_write(request.container, request.limits[i].file, request.limits[i].value);
		if (error)
			return error;
	}
	return 0;
}

static int known(const char **why)
{
	*why = "no such container";
	return container_find(request.container) ? 0 : ENOENT;
}

/* One request whose fields are those of struct request. */
static int with_request(const struct wire_frame *frame, struct wire_out *out, const char **why, char *text, size_t size)
{
	int error = request_parse(frame, &request, why);

	if (error)
		return error;
	switch (frame->kind) {
	case KIND_CREATE: return process_create(&request, why, text, size);
	case KIND_EXEC: return process_exec(&request, why, text, size);
	case KIND_START: return process_start(request.container, why, text, size);
	case KIND_SIGNAL: return *why = "no such process", process_signal(&request);
	default: break;
	}
	if ((error = known(why)))
		return error;
	*why = "control group";
	switch (frame->kind) {
	case KIND_STATS: return stats(out, request.container), 0;
	case KIND_FREEZE: return cgroup_write(request.container, "cgroup.freeze", "1");
	case KIND_THAW: return cgroup_write(request.container, "cgroup.freeze", "0");
	case KIND_LIMITS: return limits();
	case KIND_REMOVE: return process_remove(request.container);
	default: return *why = "unknown kind of request", ENOSYS;
	}
}

static void power_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	reboot(RB_AUTOBOOT);
}

/* The nonce comes back, and whatever was queued for another connection goes. */
static void synchronise(const struct wire_frame *frame)
{
	uint8_t buffer[128];
	struct wire_out out;
	struct wire_field field;
	size_t offset = 0;

	queue_length = 0;
	wire_begin(&out, buffer, sizeof buffer, KIND_SYNC, frame->number);
	while (wire_next(frame->payload, frame->length, &offset, &field) == 1)
		if (field.tag == TAG_NONCE && field.length <= 64)
			wire_add(&out, TAG_NONCE, field.bytes, field.length);
	control_event(&out);
}

static void answer(const struct wire_frame *frame)
{
	static uint8_t buffer[48 * 1024];
	static char text[200];
	struct wire_out out;
	const char *why = "";
	int error;

	text[0] = 0;
	if (frame->kind == KIND_SYNC) {
		synchronise(frame);
		return;
	}
	wire_begin(&out, buffer, sizeof buffer, KIND_REPLY, frame->number);
	switch (frame->kind) {
	case KIND_CONFIGURE: error = configure(frame, &why); break;
	case KIND_ROOTFS: error = rootfs_make(frame, &why); break;
	case KIND_SHARE: error = rootfs_share(frame, &why); break;
	case KIND_POWEROFF: power_off(); return;
	case KIND_PROCESSES: rows(&out); error = 0; break;
	default: error = with_request(frame, &out, &why, text, sizeof text); break;
	}
	if (error)
		wire_add_text(&out, TAG_TEXT, why);
	wire_add_u32(&out, TAG_ERRNO, (uint32_t)error);
	control_event(&out);
}

void control_readable(void)
{
	struct wire_frame frame;

	control_flush();
	for (;;) {
		ssize_t length = read(control, input + input_length, sizeof input - input_length);
		if (length <= 0) {
			if (length == 0)
				input_length = 0; /* the host's end is closed: what was cut off is gone */
			return;
		}
		input_length += (size_t)length;
		size_t used = 0;
		long size;
		for (;;) {
			while (used < input_length && input[used] == 0)
				used++;
			size = wire_parse(input + used, input_length - used, &frame);
			if (size <= 0)
				break;
			answer(&frame);
			used += (size_t)size;
		}
		if (size == WIRE_BROKEN) {
			say("casemate: a frame of the host is not valid");
			used = input_length;
		}
		memmove(input, input + used, input_length - used);
		input_length -= used;
	}
}
