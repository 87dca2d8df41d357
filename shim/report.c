/* The commands that say something of the runtime or of a container, and change a container's limits. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shim.h"

char *read_file(const char *path, size_t most)
{
	char *text = malloc(most + 1);
	int fd = strcmp(path, "-") ? open(path, O_RDONLY | O_CLOEXEC) : 0;
	size_t used = 0;
	ssize_t got;

	if (fd < 0 || !text)
		die("%s: %s", path, strerror(errno));
	while (used < most && (got = read(fd, text + used, most - used)) > 0)
		used += (size_t)got;
	if (used == most)
		die("%s has more than %zu bytes", path, most);
	if (fd)
		close(fd);
	text[used] = 0;
	return text;
}

/* Those that a guest's kernel may know: spec/capabilities.py has the same list, which a test compares. */
#define KNOWN_CAPABILITIES \
	"\"CAP_AUDIT_CONTROL\",\"CAP_AUDIT_READ\",\"CAP_AUDIT_WRITE\",\"CAP_BLOCK_SUSPEND\",\"CAP_BPF\"," \
	"\"CAP_CHECKPOINT_RESTORE\",\"CAP_CHOWN\",\"CAP_DAC_OVERRIDE\",\"CAP_DAC_READ_SEARCH\"," \
	"\"CAP_FOWNER\",\"CAP_FSETID\",\"CAP_IPC_LOCK\",\"CAP_IPC_OWNER\",\"CAP_KILL\",\"CAP_LEASE\"," \
	"\"CAP_LINUX_IMMUTABLE\",\"CAP_MAC_ADMIN\",\"CAP_MAC_OVERRIDE\",\"CAP_MKNOD\",\"CAP_NET_ADMIN\"," \
	"\"CAP_NET_BIND_SERVICE\",\"CAP_NET_BROADCAST\",\"CAP_NET_RAW\",\"CAP_PERFMON\",\"CAP_SETFCAP\"," \
	"\"CAP_SETGID\",\"CAP_SETPCAP\",\"CAP_SETUID\",\"CAP_SYSLOG\",\"CAP_SYS_ADMIN\",\"CAP_SYS_BOOT\"," \
	"\"CAP_SYS_CHROOT\",\"CAP_SYS_MODULE\",\"CAP_SYS_NICE\",\"CAP_SYS_PACCT\",\"CAP_SYS_PTRACE\"," \
	"\"CAP_SYS_RAWIO\",\"CAP_SYS_RESOURCE\",\"CAP_SYS_TIME\",\"CAP_SYS_TTY_CONFIG\"," \
	"\"CAP_WAKE_ALARM\""

/* features.md of the runtime specification 1.1: nothing that a later version added. */
void command_features(const struct options *o)
{
	(void)o;
	puts("{\"ociVersionMin\":\"1.0.0\",\"ociVersionMax\":\"" OCI_VERSION "\","
	     "\"hooks\":[\"prestart\",\"createRuntime\",\"createContainer\",\"startContainer\",\"poststart\",\"poststop\"],"
	     "\"mountOptions\":[\"async\",\"atime\",\"bind\",\"defaults\",\"dev\",\"diratime\",\"dirsync\",\"exec\","
	     "\"idmap\",\"lazytime\",\"noatime\",\"nodev\",\"nodiratime\",\"noexec\",\"nolazytime\",\"norelatime\","
	     "\"nostrictatime\",\"nosuid\",\"nosymfollow\",\"notmpcopyup\",\"private\",\"ratime\",\"rbind\",\"rdev\","
	     "\"rdiratime\",\"relatime\",\"remount\",\"rexec\",\"ridmap\",\"rnoatime\",\"rnodev\",\"rnodiratime\","
	     "\"rnoexec\",\"rnorelatime\",\"rnostrictatime\",\"rnosuid\",\"rnosymfollow\",\"ro\",\"rprivate\",\"rrelatime\","
	     "\"rro\",\"rrw\",\"rshared\",\"rslave\",\"rstrictatime\",\"rsuid\",\"rsymfollow\",\"runbindable\",\"rw\","
	     "\"shared\",\"slave\",\"strictatime\",\"suid\",\"symfollow\",\"sync\",\"tmpcopyup\",\"unbindable\"],"
	     "\"linux\":{\"namespaces\":[\"cgroup\",\"ipc\",\"mount\",\"network\",\"pid\",\"user\",\"uts\"],"
	     "\"capabilities\":[" KNOWN_CAPABILITIES "],"
	     "\"cgroup\":{\"v1\":true,\"v2\":true,\"systemd\":false,\"systemdUser\":false,\"rdma\":false},"
	     "\"seccomp\":{\"enabled\":true,\"actions\":[\"SCMP_ACT_ALLOW\",\"SCMP_ACT_ERRNO\",\"SCMP_ACT_KILL\","
	     "\"SCMP_ACT_KILL_PROCESS\",\"SCMP_ACT_KILL_THREAD\",\"SCMP_ACT_LOG\",\"SCMP_ACT_TRACE\",\"SCMP_ACT_TRAP\"],"
	     "\"operators\":[\"SCMP_CMP_NE\",\"SCMP_CMP_LT\",\"SCMP_CMP_LE\",\"SCMP_CMP_EQ\",\"SCMP_CMP_GE\",\"SCMP_CMP_GT\","
	     "\"SCMP_CMP_MASKED_EQ\"],\"knownFlags\":[\"SECCOMP_FILTER_FLAG_TSYNC\",\"SECCOMP_FILTER_FLAG_SPEC_ALLOW\","
	     "\"SECCOMP_FILTER_FLAG_LOG\"],\"supportedFlags\":[\"SECCOMP_FILTER_FLAG_TSYNC\","
	     "\"SECCOMP_FILTER_FLAG_SPEC_ALLOW\",\"SECCOMP_FILTER_FLAG_LOG\"],"
	     "\"archs\":[\"SCMP_ARCH_X86_64\",\"SCMP_ARCH_X86\",\"SCMP_ARCH_X32\"]},"
	     "\"apparmor\":{\"enabled\":false},\"selinux\":{\"enabled\":false},"
	     "\"intelRdt\":{\"enabled\":false}},"
	     "\"annotations\":{\"org.casemate.level\":\"microvm\"},"
	     /* They name files of the host's: for engines that let users write annotations. */
	     "\"potentiallyUnsafeConfigAnnotations\":[\"org.casemate.\"]}");
}

#define CAPABILITIES "[\"CAP_AUDIT_WRITE\",\"CAP_KILL\",\"CAP_NET_BIND_SERVICE\"]"

/* The configuration that one begins with, as `runc spec` writes it. */
void command_spec(const struct options *o)
{
	char path[4200];
	static const char text[] =
		"{\n"
		"  \"ociVersion\": \"1.0.2\",\n"
		"  \"process\": {\n"
		"    \"terminal\": true, \"user\": {\"uid\": 0, \"gid\": 0}, \"args\": [\"sh\"], \"cwd\": \"/\",\n"
		"    \"env\": [\"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\", \"TERM=xterm\"],\n"
		"    \"capabilities\": {\"bounding\": " CAPABILITIES ", \"effective\": " CAPABILITIES
		",\n      \"permitted\": " CAPABILITIES "},\n"
		"    \"rlimits\": [{\"type\": \"RLIMIT_NOFILE\", \"hard\": 1024, \"soft\": 1024}],\n"
		"    \"noNewPrivileges\": true\n"
		"  },\n"
		"  \"root\": {\"path\": \"rootfs\", \"readonly\": true},\n"
		"  \"hostname\": \"casemate\",\n"
		"  \"mounts\": [\n"
		"    {\"destination\": \"/proc\", \"type\": \"proc\", \"source\": \"proc\"},\n"
		"    {\"destination\": \"/dev\", \"type\": \"tmpfs\", \"source\": \"tmpfs\",\n"
		"      \"options\": [\"nosuid\", \"strictatime\", \"mode=755\", \"size=65536k\"]},\n"
		"    {\"destination\": \"/dev/pts\", \"type\": \"devpts\", \"source\": \"devpts\",\n"
		"      \"options\": [\"nosuid\", \"noexec\", \"newinstance\", \"ptmxmode=0666\", \"mode=0620\", \"gid=5\"]},\n"
		"    {\"destination\": \"/dev/shm\", \"type\": \"tmpfs\", \"source\": \"shm\",\n"
		"      \"options\": [\"nosuid\", \"noexec\", \"nodev\", \"mode=1777\", \"size=65536k\"]},\n"
		"    {\"destination\": \"/dev/mqueue\", \"type\": \"mqueue\", \"source\": \"mqueue\",\n"
		"      \"options\": [\"nosuid\", \"noexec\", \"nodev\"]},\n"
		"    {\"destination\": \"/sys\", \"type\": \"sysfs\", \"source\": \"sysfs\",\n"
		"      \"options\": [\"nosuid\", \"noexec\", \"nodev\", \"ro\"]},\n"
		"    {\"destination\": \"/sys/fs/cgroup\", \"type\": \"cgroup\", \"source\": \"cgroup\",\n"
		"      \"options\": [\"nosuid\", \"noexec\", \"nodev\", \"relatime\", \"ro\"]}\n"
		"  ],\n"
		"  \"linux\": {\n"
		"    \"namespaces\": [{\"type\": \"pid\"}, {\"type\": \"network\"}, {\"type\": \"ipc\"}, {\"type\": \"uts\"},\n"
		"      {\"type\": \"mount\"}, {\"type\": \"cgroup\"}],\n"
		"    \"maskedPaths\": [\"/proc/acpi\", \"/proc/kcore\", \"/proc/keys\", \"/proc/timer_list\", "
		"\"/sys/firmware\"],\n"
		"    \"readonlyPaths\": [\"/proc/bus\", \"/proc/fs\", \"/proc/irq\", \"/proc/sys\", \"/proc/sysrq-trigger\"]\n"
		"  }\n"
		"}\n";

	snprintf(path, sizeof path, "%s/config.json", o->bundle ? o->bundle : ".");
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	if (fd < 0 || write(fd, text, sizeof text - 1) != (ssize_t)sizeof text - 1 || close(fd) < 0)
		die("%s: %s", path, strerror(errno));
}

/* "5", "5s", "500ms", "1m": what engines write; at least a tenth of a second, at most a day. */
static unsigned duration_ms(const char *text)
{
	char *unit;
	unsigned long number = strtoul(text, &unit, 10), scale = 0;

	if (!*unit || !strcmp(unit, "s"))
		scale = 1000;
	else if (!strcmp(unit, "ms"))
		scale = 1;
	else if (!strcmp(unit, "m"))
		scale = 60000;
	if (unit == text || !scale || !number || number > 86400000 / scale)
		die("--interval %s: a number with the unit ms, s or m, above nothing, at most a day", text);
	return number * scale < 100 ? 100 : (unsigned)(number * scale);
}

/* One line of JSON, or one for each interval until the container is gone. */
void command_events(const struct options *o)
{
	unsigned wait_ms = o->interval ? duration_ms(o->interval) : 5000;
	struct wire_out out;
	int first = 1;

	for (;;) {
		begin_request(&out, o, ASK_EVENTS);
		int fd = ask_connect(o->socket);
		const struct answer *a = ask(fd, &out, NULL, 0);
		close(fd);
		/* One that ends while it is watched is no failure. */
		if (a->error && !first)
			return;
		if (a->error)
			die("%s", *a->text ? a->text : strerror(a->error));
		printf("%s\n", a->text);
		fflush(stdout);
		if (o->stats)
			return;
		first = 0;
		poll(NULL, 0, (int)wait_ms);
	}
}

/* `--resources FILE` is the OCI's LinuxResources; single flags go by name. */
void command_update(const struct options *o)
{
	struct wire_out out;

	begin_request(&out, o, ASK_UPDATE);
	if (o->resources)
		wire_add_text(&out, TAG_PROCESS, read_file(o->resources, 64 << 10));
	for (int i = 0; i < o->limit_count; i++)
		wire_add_text(&out, TAG_LIMIT, o->limits[i]);
	if (!o->resources && !o->limit_count)
		die("update: no limit is given (--resources, --memory, --cpu-quota, --cpu-period, --pids-limit)");
	must_ask(o, &out);
}
