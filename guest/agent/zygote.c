/* The first container's process, made before anybody asks for it: in the template it already has its namespaces, its
 * control group, its pipes and the file systems that every container gets. Under emulation most of a start is kernel code
 * that runs for the first time; what runs before the template is saved costs a clone nothing. */
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "agent.h"

/* Names and message queues are the machine's: the containers of a pod share them. */
enum { NAMESPACES = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWCGROUP };

/* What our own bundles and those of the engines ask for; what is asked for otherwise is mounted then. */
static const struct mount_request usual[] = {
	{ "/proc", "proc", "proc", "", MS_NOSUID | MS_NOEXEC | MS_NODEV },
	{ "/dev", "tmpfs", "tmpfs", "mode=755,size=64k", MS_NOSUID | MS_STRICTATIME },
	{ "/dev/pts", "devpts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5", MS_NOSUID | MS_NOEXEC },
	{ "/dev/shm", "tmpfs", "shm", "mode=1777,size=67108864", MS_NOSUID | MS_NOEXEC | MS_NODEV },
	{ "/dev/mqueue", "mqueue", "mqueue", "", MS_NOSUID | MS_NOEXEC | MS_NODEV },
	{ "/sys", "sysfs", "sysfs", "", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY },
	{ "/sys/fs/cgroup", "cgroup2", "cgroup", "", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RELATIME | MS_RDONLY },
};
/* sysfs shows the network namespace that it is mounted in: it is there twice. */
enum { USUAL = sizeof usual / sizeof *usual, SYS = USUAL - 2 };
static const char lonely_sys[] = "/z/lonely";

static struct zygote {
	pid_t pid;
	int pidfd, channel, files[3], child_files[3], used;
	char container[ID_BYTES];
	struct request *request; /* shared with the child, for this one container */
	char *arena;
} zygote = { .channel = -1 };

static void place_of(int index, char *path, size_t size)
{
	snprintf(path, size, "/z/%d", index);
}

static void make_nodes(const char *dev)
{
	static const struct { const char *name; unsigned major, minor; } nodes[] = { { "null", 1, 3 }, { "zero", 1, 5 },
		{ "full", 1, 7 }, { "random", 1, 8 }, { "urandom", 1, 9 }, { "tty", 5, 0 } };
	char path[64];
	mode_t old = umask(0);

	for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
		snprintf(path, sizeof path, "%s/%s", dev, nodes[i].name);
		if (mknod(path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)) < 0)
			say("casemate: %s: %s", path, strerror(errno));
	}
	umask(old);
	static const char *const folders[] = { "pts", "shm", "mqueue" };
	for (size_t i = 0; i < 3; i++) {
		snprintf(path, sizeof path, "%s/%s", dev, folders[i]);
		mkdir(path, 0755);
	}
}

static void mount_lonely_sys(void)
{
	mkdir(lonely_sys, 0755);
	if (mount("sysfs", lonely_sys, "sysfs", usual[SYS].flags, NULL) < 0)
		say("casemate: early %s: %s", lonely_sys, strerror(errno));
}

_Noreturn static void wait_for_request(int channel)
{
	char path[32];
	int code;

	/* Slave, not private: the container's root is mounted by the agent, later, and must be seen here. */
	if (unshare(CLONE_NEWCGROUP) < 0 || mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
		_exit(125);
	for (int i = 0; i < USUAL; i++) {
		place_of(i, path, sizeof path);
		mkdir(path, 0755);
		if (mount(usual[i].source, path, usual[i].type, usual[i].flags, *usual[i].data ? usual[i].data : NULL) < 0)
			say("casemate: early %s: %s", usual[i].target, strerror(errno));
	}
	lonely_visit(mount_lonely_sys);
	make_nodes("/z/1");
	if (channel_receive(channel, -1, &code, NULL, 0, NULL) || code)
		_exit(125);
	stage_zygote(zygote.request, channel);
}

/* At boot. Without a zygote everything works as it does for a second container. */
void zygote_make(void)
{
	int pair[2], ends[2];
	struct request none = { 0 };

	size_t size = sizeof(struct request) + REQUEST_ARENA;
	if (!zygote.request)
		zygote.request = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (zygote.request == MAP_FAILED || cgroup_make("zygote", &none) ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return;
	zygote.arena = (char *)(zygote.request + 1);
	for (int i = 0; i < 3; i++) {
		if (pipe2(ends, O_CLOEXEC) < 0)
			return;
		zygote.files[i] = i ? ends[0] : ends[1];
		zygote.child_files[i] = i ? ends[1] : ends[0];
		fcntl(zygote.files[i], F_SETFL, O_NONBLOCK);
	}
	int group = cgroup_open("zygote");
	struct clone_args arguments = { .flags = (NAMESPACES & ~CLONE_NEWCGROUP) | CLONE_PIDFD | CLONE_INTO_CGROUP,
		.exit_signal = SIGCHLD, .cgroup = (uint64_t)group, .pidfd = (uint64_t)(uintptr_t)&zygote.pidfd };
	zygote.pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
	if (zygote.pid == 0)
		wait_for_request(pair[1]);
	close(pair[1]);
	close(group);
	zygote.channel = zygote.pid > 0 ? pair[0] : -1;
	rootfs_early();
}

/* Where one was taken, and nothing of its container is left: another, for the one that comes next. */
void zygote_make_again(void)
{
	struct request *request = zygote.request;

	if (!zygote.used)
		return;
	zygote = (struct zygote){ .channel = -1, .request = request };
	zygote_make();
}

void zygote_make_other(void)
{
	zygote = (struct zygote){ .channel = -1 };
	zygote_make();
}

/* Where the next CREATE is to be parsed into: the zygote's own memory while it is free. */
struct request *zygote_request(char **arena)
{
	if (zygote.channel < 0 || zygote.used)
		return NULL;
	*arena = zygote.arena;
	return zygote.request;
}

int zygote_is(const char *container)
{
	return zygote.used && !strcmp(zygote.container, container);
}

/* Gives the zygote to `r`, when it fits: 1, and process and files of the zygote. */
int zygote_take(const struct request *r, struct process *p, int *files, int *child_files)
{
	if (r != zygote.request || zygote.channel < 0 || zygote.used)
		return 0;
	zygote.used = 1;
	zygote.request->is_lonely = lonely_is();
	if ((r->namespaces & NAMESPACES) != NAMESPACES) {
		kill(zygote.pid, SIGKILL);
		return 0;
	}
	memcpy(zygote.container, r->container, ID_BYTES);
	p->pid = zygote.pid;
	p->pidfd = zygote.pidfd;
	p->channel = zygote.channel;
	int terminal = (r->flags & FLAG_TERMINAL) != 0;
	for (int i = 0; i < 3; i++) {
		int unused = terminal || (i == 0 && !(r->flags & FLAG_STDIN));
		files[i] = unused ? -1 : zygote.files[i];
		if (unused)
			close(zygote.files[i]);
		child_files[i] = zygote.child_files[i];
	}
	return 1;
}

/* In the child: its end of the standard files. */
void zygote_files(const struct request *r)
{
	for (int i = 0; i < 3; i++) {
		int null = i == 0 && !(r->flags & FLAG_STDIN) ? open("/dev/null", O_RDONLY | O_CLOEXEC) : -1;
		dup2(null >= 0 ? null : zygote.child_files[i], i);
	}
}

/* In the child: the early mount that is what `m` asks for, moved to `target`; 1 when there was one. The early ones are
 * older than whatever is mounted now and stand before it in mountinfo, where the bundle's order is to be seen: so they
 * are taken in their own order only, and none after the first that is mounted now. */
int zygote_move(const struct mount_request *m, const char *target)
{
	static int next, closed;
	char path[32];

	for (int i = next; i < USUAL && !closed; i++) {
		if (strcmp(usual[i].target, m->target) || strcmp(usual[i].type, m->type) || usual[i].flags != m->flags ||
		    strcmp(usual[i].data, m->data))
			continue;
		place_of(i, path, sizeof path);
		if (i == SYS && lonely_is())
			snprintf(path, sizeof path, "%s", lonely_sys);
		next = i + 1;
		return mount(path, target, NULL, MS_MOVE, NULL) == 0;
	}
	closed = 1;
	return 0;
}
