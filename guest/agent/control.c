#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

static struct request own_request;
static char own_arena[REQUEST_ARENA];

/* An answer or event that finds no room is dropped: hostd's request then ends by its deadline, and it asks anew. */
void control_send(const struct wire_out *out)
{
	size_t size = wire_end(out);

	if (!size || size + MUX_HEADER > port_room())
		say("casemate: an answer was dropped");
	else
		port_send(MUX_CONTROL, 0, out->bytes, size);
}

void control_ready(void)
{
	uint8_t buffer[64];
	struct wire_out out;

	wire_begin(&out, buffer, sizeof buffer, KIND_READY, 0);
	wire_add_u32(&out, TAG_VERSION, AGENT_VERSION);
	control_send(&out);
}

static size_t read_some(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, text, size);

	if (fd >= 0)
		close(fd);
	return got < 0 ? 0 : (size_t)got;
}

static void stats(struct wire_out *out, const char *container)
{
	static const char *const files[] = { "memory.current", "memory.peak", "memory.events", "cpu.stat", "pids.current",
		"io.stat", "cgroup.procs", "pids.max", "memory.max" };
	static char text[8192];

	for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
		size_t name = strlen(files[i]) + 1;
		memcpy(text, files[i], name);
		long length = cgroup_read(container, files[i], text + name, sizeof text - name);
		if (length >= 0)
			wire_add(out, TAG_STAT, text, name + (size_t)length);
	}
}

/* A row for each process of the container's: pid, uid, seconds since the epoch of the boot, stat, cmdline. */
static void top(struct wire_out *out, const char *container)
{
	static char list[8192], row[2048];
	char path[48];
	struct timespec boot, now;
	struct stat owner;
	char *next = list;

	long length = cgroup_read(container, "cgroup.procs", list, sizeof list);
	clock_gettime(CLOCK_BOOTTIME, &boot);
	clock_gettime(CLOCK_REALTIME, &now);
	for (int count = 0; length > 0 && *next && count < 250; count++) {
		long pid = strtol(next, &next, 10);
		next += *next == '\n';
		snprintf(path, sizeof path, "/proc/%ld", pid);
		if (pid <= 0 || stat(path, &owner) < 0)
			continue;
		size_t used = (size_t)snprintf(row, sizeof row, "%ld%c%u%c%lld%c", pid, 0, owner.st_uid, 0,
			(long long)(now.tv_sec - boot.tv_sec), 0);
		snprintf(path, sizeof path, "/proc/%ld/stat", pid);
		used += read_some(path, row + used, 1024);
		row[used++] = 0;
		snprintf(path, sizeof path, "/proc/%ld/cmdline", pid);
		used += read_some(path, row + used, 512);
		wire_add(out, TAG_PROCESS, row, used);
	}
}

/* A row for each process of ours: container, exec, pid, status, exit code, whether it was killed for want of memory. */
static void rows(struct wire_out *out)
{
	for (int i = 0; i < MAX_PROCESSES; i++) {
		struct process *p = &processes[i];
		if (!p->used)
			continue;
		char line[2 * ID_BYTES + 64];
		int length = snprintf(line, sizeof line, "%s%c%s%c%d%c%s%c%d%c%d", p->container, 0, p->id, 0,
			(int)p->pid, 0, p->ended ? "ended" : p->started ? "running" : "created", 0, p->status, 0, !!p->oom);
		wire_add(out, TAG_PROCESS, line, (size_t)length);
	}
}

static int known(const struct request *r, const char **why)
{
	*why = "no such container";
	return container_find(r->container) ? 0 : ENOENT;
}

/* One request whose fields are those of struct r-> */
static int with_request(const struct wire_message *frame, struct wire_out *out, const char **why, char *text, size_t size)
{
	struct request *r = &own_request;
	char *arena = own_arena;

	if (frame->kind == KIND_CREATE && (r = zygote_request(&arena)) == NULL)
		r = &own_request;
	int error = request_parse(frame, r, arena, why);
	if (error)
		return error;
	switch (frame->kind) {
	case KIND_CREATE: return process_create(r, why, text, size);
	case KIND_EXEC: return process_exec(r, why, text, size);
	case KIND_FILES: return process_files(r, why, text, size);
	case KIND_START: return process_start(r->container, why, text, size);
	case KIND_SIGNAL: return *why = "no such process", process_signal(r);
	default: break;
	}
	/* Limits of no container are the pod's. */
	if ((frame->kind != KIND_LIMITS || *r->container) && (error = known(r, why)))
		return error;
	*why = "control group";
	switch (frame->kind) {
	case KIND_TOP: return top(out, r->container), 0;
	case KIND_STATS: return stats(out, r->container), 0;
	case KIND_FREEZE: return cgroup_write(r->container, "cgroup.freeze", "1");
	case KIND_THAW: return cgroup_write(r->container, "cgroup.freeze", "0");
	case KIND_LIMITS: return cgroup_limit(r->container, r);
	case KIND_REMOVE: return process_remove(r->container);
	default: return *why = "unknown kind of request", ENOSYS;
	}
}

static void power_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	reboot(RB_AUTOBOOT);
}

void control_message(const uint8_t *bytes, size_t length)
{
	static uint8_t buffer[48 * 1024];
	static char text[200];
	struct wire_message message;
	struct wire_out out;
	const char *why = "";
	int error;

	if (wire_parse(bytes, length, &message) < 0) {
		say("casemate: a message of the host is not valid");
		return;
	}
	text[0] = 0;
	wire_begin(&out, buffer, sizeof buffer, KIND_REPLY, message.number);
	switch (message.kind) {
	case KIND_CONFIGURE: error = configure(&message, &why); break;
	case KIND_ROOTFS: error = rootfs_make(&message, &why); break;
	case KIND_REHEARSE: error = rehearsal_make(&message, &why); break;
	case KIND_SHARE: error = rootfs_share(&message, &why); break;
	case KIND_SYNC: error = rootfs_sync(&message, &why); break;
	case KIND_NETWORK: error = network_set(&message, &why); break;
	case KIND_POWEROFF: power_off(); return;
	case KIND_PROCESSES: rows(&out); error = 0; break;
	default: error = with_request(&message, &out, &why, text, sizeof text); break;
	}
	if (error)
		wire_add_text(&out, TAG_TEXT, why);
	wire_add_u32(&out, TAG_ERRNO, (uint32_t)error);
	control_send(&out);
}
