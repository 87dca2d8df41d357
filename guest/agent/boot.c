#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

int write_file(const char *path, const void *bytes, size_t length)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return errno;
	ssize_t written = write(fd, bytes, length);
	int error = written < 0 ? errno : (size_t)written == length ? 0 : EIO;
	close(fd);
	return error;
}

static void must_mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)
{
	mkdir(target, 0755);
	if (mount(source, target, type, flags, data) < 0)
		say("casemate: mount %s: %s", target, strerror(errno));
}

static void set_up(const char *name)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq request = { .ifr_flags = IFF_UP | IFF_RUNNING };

	strncpy(request.ifr_name, name, sizeof request.ifr_name - 1);
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) < 0)
		say("casemate: %s: %s", name, strerror(errno));
	if (fd >= 0)
		close(fd);
}

/* As in every pod of the host's kernel: no IPv6 beside the rules for IPv4; and what programs are used to doing with
 * CAP_NET_BIND_SERVICE and CAP_NET_RAW, which containers do not have: ports below 1024, ping. And memory is promised as on a
 * large host: what counts is the limit, when it is touched, not how small the machine is that was made for it. */
static void kernel_defaults(void)
{
	static const char *const settings[][2] = { { "net/ipv6/conf/all/disable_ipv6", "1" },
		{ "net/ipv6/conf/default/disable_ipv6", "1" }, { "net/ipv4/ip_unprivileged_port_start", "0" },
		{ "net/ipv4/ping_group_range", "0 2147483647" }, { "vm/overcommit_memory", "1" },
		/* Of kernel threads that look at memory every second and half second, for nothing: each look of an idle
		 * machine is host time, and the first one in a clone is translated while its container starts. */
		{ "vm/stat_interval", "60" }, { "vm/compaction_proactiveness", "0" } };
	char path[96];

	for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
		snprintf(path, sizeof path, "/proc/sys/%s", settings[i][0]);
		write_file(path, settings[i][1], strlen(settings[i][1]));
	}
}

/* Of the network namespace that the agent is in. */
void boot_network(void)
{
	kernel_defaults();
	set_up("lo");
}

/* The agent's own root is a tmpfs above the initramfs, because pivot_root(2) refuses to leave an initramfs; the
 * containers' processes do leave it, and so see none of this. */
void boot_mounts(void)
{
	must_mount("casemate", "/root", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700,size=50%");
	if (chdir("/root") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		say("casemate: root: %s", strerror(errno));
	must_mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755");
	must_mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	must_mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	must_mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	/* Only those controllers that exist are taken; each is a write of its own, so that one does not spoil all. */
	static const char *const controllers[] = { "+memory", "+cpu", "+pids", "+io", "+cpuset" };
	mkdir("/sys/fs/cgroup/pod", 0755);
	for (size_t i = 0; i < sizeof controllers / sizeof *controllers; i++) {
		write_file("/sys/fs/cgroup/cgroup.subtree_control", controllers[i], strlen(controllers[i]));
		write_file("/sys/fs/cgroup/pod/cgroup.subtree_control", controllers[i], strlen(controllers[i]));
	}
	must_mount("casemate", "/c", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700,size=1m");
	/* Shared, so that the zygote sees the root that is mounted here later. */
	mount(NULL, "/c", NULL, MS_SHARED, NULL);
	mkdir("/z", 0700);
	mkdir("/layers", 0700);
	/* As /c: what is mounted here later is seen by the zygote. */
	must_mount("casemate", "/shares", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700,size=64k");
	mount(NULL, "/shares", NULL, MS_SHARED, NULL);
	/* The card too, before the template is saved: its receive buffers are then not made in every clone. */
	boot_network();
	network_order();
	set_up("eth0");
}
