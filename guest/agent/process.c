#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

struct container containers[MAX_CONTAINERS];
struct process processes[MAX_PROCESSES];

/* The agent's ends and the child's ends of the standard files. */
struct files {
	int agent[3], child[3];
};

struct container *container_find(const char *id)
{
	for (int i = 0; i < MAX_CONTAINERS; i++)
		if (containers[i].id[0] && !strcmp(containers[i].id, id))
			return &containers[i];
	return NULL;
}

static int free_process(void)
{
	for (int i = 0; i < MAX_PROCESSES; i++)
		if (!processes[i].used)
			return i;
	return -1;
}

static void close_all(int *fds)
{
	for (int i = 0; i < 3; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
	}
}

static int open_files(const struct request *r, struct files *files)
{
	int pair[2];

	for (int i = 0; i < 3; i++)
		files->agent[i] = files->child[i] = -1;
	if (r->flags & FLAG_TERMINAL)
		return 0;
	for (int i = 0; i < 3; i++) {
		if (i == 0 && !(r->flags & FLAG_STDIN)) {
			files->child[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
			continue;
		}
		if (pipe2(pair, O_CLOEXEC) < 0)
			return errno;
		files->agent[i] = i ? pair[0] : pair[1];
		files->child[i] = i ? pair[1] : pair[0];
		fcntl(files->agent[i], F_SETFL, O_NONBLOCK);
	}
	return 0;
}

static pid_t clone_into(uint64_t flags, int cgroup, int *pidfd)
{
	struct clone_args arguments = { .flags = flags | CLONE_PIDFD | CLONE_INTO_CGROUP, .exit_signal = SIGCHLD,
		.cgroup = (uint64_t)cgroup, .pidfd = (uint64_t)(uintptr_t)pidfd };

	return (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
}

static void child_files(const struct files *files)
{
	for (int i = 0; i < 3; i++)
		if (files->child[i] >= 0)
			dup2(files->child[i], i);
}

/* Waits for the child's "set up", takes its terminal, and puts the process on its channel. */
static int attach(int index, const struct request *r, struct files *files, const char **why, char *text, size_t size)
{
	struct process *p = &processes[index];
	int code = 0, master = -1;

	int error = channel_receive(p->channel, SETUP_TIMEOUT_MS, &code, text, size, &master);
	if (error || code) {
		*why = error == ETIMEDOUT ? "set-up took too long" : error ? "the child ended in its set-up" : text;
		if (master >= 0)
			close(master);
		return error ? error : code;
	}
	if (r->flags & FLAG_TERMINAL) {
		if (master < 0)
			return *why = "no terminal", EIO;
		files->agent[0] = files->agent[1] = master;
	}
	*why = "the channel is in use, or too many are";
	return stream_attach((uint16_t)r->channel, index, files->agent[0], files->agent[1], files->agent[2],
		(r->flags & FLAG_TERMINAL) != 0, &p->stream);
}

static void forget(int index)
{
	struct process *p = &processes[index];

	if (p->channel >= 0)
		close(p->channel);
	if (p->pidfd >= 0)
		close(p->pidfd);
	memset(p, 0, sizeof *p);
}

static void undo(int index, struct files *files)
{
	struct process *p = &processes[index];

	close_all(files->child);
	if (files->agent[1] == files->agent[0])
		files->agent[1] = -1;
	close_all(files->agent);
	if (p->pid > 0) {
		kill(p->pid, SIGKILL);
		waitpid(p->pid, NULL, 0);
	}
	forget(index);
}

static int begin(int index, const struct request *r, int channel)
{
	struct process *p = &processes[index];

	*p = (struct process){ .used = 1, .pidfd = -1, .channel = channel, .stream = -1 };
	memcpy(p->container, r->container, ID_BYTES);
	memcpy(p->id, r->process, ID_BYTES);
	return 0;
}

/* From here on children are born in the process namespace of `container`; `*own` leads back. */
static int enter_pids(const char *container, int *own)
{
	struct container *c = container_find(container);

	if (!c || c->process < 0 || processes[c->process].ended || processes[c->process].pidfd < 0)
		return ESRCH;
	*own = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
	if (*own < 0)
		return errno;
	if (setns(processes[c->process].pidfd, CLONE_NEWPID) == 0)
		return 0;
	int error = errno;
	close(*own);
	return error;
}

static void leave_pids(int own)
{
	if (own < 0)
		return;
	if (setns(own, CLONE_NEWPID) < 0)
		say("casemate: process namespace: %s", strerror(errno));
	close(own);
}

static int fork_container(int index, const struct request *r, struct files *files, const char **why)
{
	struct process *p = &processes[index];
	int pair[2], error = open_files(r, files), group = cgroup_open(r->container);

	if (error || group < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return error ? error : errno;
	p->channel = pair[0];
	uint64_t flags = r->namespaces & ~(uint64_t)CLONE_NEWCGROUP;
	int own = -1;
	*why = "the container whose processes it would share does not run";
	if (r->join_pids[0] && (error = enter_pids(r->join_pids, &own))) {
		close(pair[1]);
		close(group);
		return error;
	}
	p->pid = clone_into(flags | CLONE_NEWNS, group, &p->pidfd);
	if (p->pid == 0) {
		child_files(files);
		stage_container(r, pair[1]);
	}
	*why = "clone";
	error = p->pid < 0 ? errno : 0;
	leave_pids(own);
	close(pair[1]);
	close(group);
	return error;
}

int process_create(struct request *r, const char **why, char *text, size_t size)
{
	struct files files = { { -1, -1, -1 }, { -1, -1, -1 } };
	struct container *slot = NULL;
	int index = free_process();

	*why = "too many containers or processes";
	for (int i = 0; i < MAX_CONTAINERS && !slot; i++)
		if (!containers[i].id[0])
			slot = &containers[i];
	if (!slot || index < 0)
		return EAGAIN;
	*why = "the request is not complete";
	if (!r->arg_count || !r->container[0] || !r->channel || r->channel > 0xffff)
		return EINVAL;
	*why = "a container of this name exists";
	if (container_find(r->container))
		return EEXIST;
	begin(index, r, -1);
	rootfs_path(r->container, r->root, sizeof r->root);
	int early = zygote_take(r, &processes[index], files.agent, files.child);
	*why = "control group";
	int error = cgroup_make(r->container, r);
	if (!error && early)
		error = channel_send(processes[index].channel, 0, "", -1);
	else if (!error)
		error = fork_container(index, r, &files, why);
	if (!error)
		error = attach(index, r, &files, why, text, size);
	if (error) {
		undo(index, &files);
		cgroup_remove(r->container);
		return error;
	}
	close_all(files.child);
	*slot = (struct container){ .process = index, .has_root = 1 };
	memcpy(slot->id, r->container, ID_BYTES);
	return 0;
}

/* The word to go on, then either the end of the channel (execve closed it) or the child's error. */
static int await_execution(int index, const char **why, char *text, size_t size)
{
	struct process *p = &processes[index];
	int code = 0;

	int error = channel_receive(p->channel, SETUP_TIMEOUT_MS, &code, text, size, NULL);
	if (error == EPIPE) {
		close(p->channel);
		p->channel = -1;
		p->started = 1;
		return 0;
	}
	*why = error ? "no answer from the child" : text;
	return error ? error : code;
}

int process_lives(const char *container)
{
	struct container *c = container_find(container);

	return c && c->process >= 0 && !processes[c->process].ended;
}

int process_start(const char *container, const char **why, char *text, size_t size)
{
	struct container *c = container_find(container);

	*why = "no such container";
	if (!c || c->process < 0)
		return ENOENT;
	struct process *p = &processes[c->process];
	*why = "the container is not in the state created";
	if (p->started || p->ended || p->channel < 0)
		return EBUSY;
	int error = channel_send(p->channel, 0, "", -1);
	return error ? error : await_execution(c->process, why, text, size);
}

int process_exec(struct request *r, const char **why, char *text, size_t size)
{
	struct container *c = container_find(r->container);
	struct files files;
	int index = free_process(), pair[2], middle_fd = -1, pid = 0;

	*why = "no such container, or it does not run";
	if (!c || c->process < 0 || processes[c->process].ended)
		return ENOENT;
	*why = "too many processes, or the request is not complete";
	if (index < 0 || !r->arg_count || !r->process[0] || !r->channel || r->channel > 0xffff)
		return EINVAL;
	int cgroup = cgroup_open(r->container);
	if (cgroup < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return errno;
	begin(index, r, pair[0]);
	int error = open_files(r, &files);
	pid_t middle = error ? -1 : clone_into(0, cgroup, &middle_fd);
	if (middle == 0) {
		child_files(&files);
		stage_exec(r, pair[1], processes[c->process].pidfd);
	}
	close(pair[1]);
	close(cgroup);
	if (middle > 0) {
		error = channel_receive(pair[0], SETUP_TIMEOUT_MS, &pid, text, size, NULL);
		waitpid(middle, NULL, 0);
		close(middle_fd);
		/* The middle child's own failure comes with a word; the pid of the real one without. */
		if (!error && *text)
			error = pid, *why = text, pid = 0;
	} else if (!error) {
		error = errno;
	}
	if (!error) {
		processes[index].pid = pid;
		processes[index].pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
		error = attach(index, r, &files, why, text, size);
	}
	if (error)
		return undo(index, &files), error;
	close_all(files.child);
	return await_execution(index, why, text, size);
}

/* A child of the agent's own, beside the container's processes: also before and after there are any. */
int process_files(struct request *r, const char **why, char *text, size_t size)
{
	struct container *c = container_find(r->container);
	struct files files;
	int index = free_process(), pair[2], first = -1;

	*why = "too many processes, or the request is not complete";
	if (index < 0 || !r->copying || !r->container[0] || !r->process[0] || !r->channel || r->channel > 0xffff)
		return EINVAL;
	rootfs_path(r->container, r->root, sizeof r->root);
	if (c && c->process >= 0 && processes[c->process].started && !processes[c->process].ended)
		first = processes[c->process].pidfd;
	int cgroup = cgroup_open("");
	if (cgroup < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return errno;
	begin(index, r, pair[0]);
	int error = open_files(r, &files);
	processes[index].pid = error ? -1 : clone_into(0, cgroup, &processes[index].pidfd);
	if (processes[index].pid == 0) {
		child_files(&files);
		stage_files(r, pair[1], first);
	}
	close(pair[1]);
	close(cgroup);
	if (!error && processes[index].pid < 0)
		error = errno;
	if (!error)
		error = attach(index, r, &files, why, text, size);
	if (error)
		return undo(index, &files), error;
	close_all(files.child);
	return await_execution(index, why, text, size);
}

static int find_process(const char *container, const char *id)
{
	for (int i = 0; i < MAX_PROCESSES; i++)
		if (processes[i].used && !strcmp(processes[i].container, container) && !strcmp(processes[i].id, id))
			return i;
	return -1;
}

void process_kill(int index, int signal)
{
	struct process *p = &processes[index];

	if (p->used && !p->ended && p->pidfd >= 0)
		syscall(SYS_pidfd_send_signal, p->pidfd, signal, NULL, 0);
}

int process_signal(const struct request *r)
{
	int index = find_process(r->container, r->process);

	if (index < 0 || processes[index].ended)
		return ESRCH;
	if (r->flags & FLAG_ALL_PROCESSES && r->signal == SIGKILL)
		return cgroup_write(r->container, "cgroup.kill", "1");
	return syscall(SYS_pidfd_send_signal, processes[index].pidfd, (int)r->signal, NULL, 0) < 0 ? errno : 0;
}

static void report(int index)
{
	struct process *p = &processes[index];
	uint8_t buffer[256];
	struct wire_out out;

	wire_begin(&out, buffer, sizeof buffer, KIND_EXITED, 0);
	wire_add_text(&out, TAG_CONTAINER, p->container);
	if (p->id[0])
		wire_add_text(&out, TAG_PROCESS, p->id);
	wire_add_u32(&out, TAG_STATUS, (uint32_t)p->status);
	wire_add_u32(&out, TAG_FLAGS, (uint32_t)p->oom);
	control_send(&out);
}

static int was_oom_killed(const char *container)
{
	char text[256];

	if (cgroup_read(container, "memory.events", text, sizeof text) < 0)
		return 0;
	const char *line = strstr(text, "oom_kill ");
	return line && line[9] != '0';
}

void process_reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (int i = 0; i < MAX_PROCESSES; i++) {
			struct process *p = &processes[i];
			if (!p->used || p->ended || p->pid != pid)
				continue;
			p->ended = 1;
			p->status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
			p->oom = was_oom_killed(p->container);
			/* Before the waiter hears of it: whoever looks when that has ended finds why. */
			report(i);
			if (p->stream >= 0)
				stream_ended(p->stream, p->status);
			p->stream = -1;
			/* An exec's row is free now; a container's stays until it is removed. */
			if (p->id[0])
				forget(i);
		}
	}
}

int process_remove(const char *container)
{
	struct container *c = container_find(container);

	if (!c)
		return ENOENT;
	cgroup_write(container, "cgroup.kill", "1");
	for (int i = 0; i < MAX_PROCESSES; i++) {
		struct process *p = &processes[i];
		if (!p->used || strcmp(p->container, container))
			continue;
		if (!p->ended) {
			kill(p->pid, SIGKILL);
			waitpid(p->pid, NULL, 0);
		}
		p->ended = 1;
		if (p->stream >= 0)
			stream_ended(p->stream, 128 + SIGKILL);
		forget(i);
	}
	rootfs_remove(container);
	cgroup_remove(container);
	memset(c, 0, sizeof *c);
	if (rootfs_warms(container)) {
		network_forget();
		lonely_visit(NULL); /* so that the way there is translated */
		zygote_make_again();
	}
	return 0;
}
