/* The commands that say something of the runtime or of a container, and change a container's limits. */
#include <errno.h>
#include <fcntl.h>
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

/* features.md of the runtime specification 1.1. */
void command_features(const struct options *o)
{
	(void)o;
	puts("{\"ociVersionMin\":\"1.0.0\",\"ociVersionMax\":\"1.0.2\","
	     "\"hooks\":[\"prestart\",\"createRuntime\",\"poststart\",\"poststop\"],"
	     "\"mountOptions\":[\"async\",\"atime\",\"bind\",\"defaults\",\"dev\",\"dirsync\",\"exec\",\"lazytime\","
	     "\"noatime\",\"nodev\",\"nodiratime\",\"noexec\",\"norelatime\",\"nosuid\",\"private\",\"rbind\",\"relatime\","
	     "\"remount\",\"ro\",\"rprivate\",\"rshared\",\"rslave\",\"rw\",\"shared\",\"slave\",\"strictatime\",\"suid\","
	     "\"sync\"],"
	     "\"linux\":{\"namespaces\":[\"cgroup\",\"ipc\",\"mount\",\"network\",\"pid\",\"user\",\"uts\"],"
	     "\"cgroup\":{\"v1\":true,\"v2\":true,\"systemd\":false,\"systemdUser\":false},"
	     "\"seccomp\":{\"enabled\":true,\"actions\":[\"SCMP_ACT_ALLOW\",\"SCMP_ACT_ERRNO\"],"
	     "\"archs\":[\"SCMP_ARCH_X86_64\",\"SCMP_ARCH_X86\"]},"
	     "\"apparmor\":{\"enabled\":false},\"selinux\":{\"enabled\":false}},"
	     "\"annotations\":{\"org.casemate.level\":\"microvm\"}}");
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

/* One line of JSON, or one for each interval until the container is gone. */
void command_events(const struct options *o)
{
	unsigned seconds = o->interval ? (unsigned)strtoul(o->interval, NULL, 10) : 5;
	struct wire_out out;

	for (;;) {
		begin_request(&out, o, ASK_EVENTS);
		const struct answer *a = must_ask(o, &out);
		printf("%s\n", a->text);
		fflush(stdout);
		if (o->stats)
			return;
		sleep(seconds ? seconds : 1);
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
