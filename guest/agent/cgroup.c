#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

/* The pod's own, with its limits; its containers' are below it. */
static const char *pod = "/sys/fs/cgroup/pod";

static void path_of(const char *container, const char *file, char *path, size_t size)
{
	const char *name = zygote_is(container) ? "zygote" : container;

	snprintf(path, size, "%s%s%s%s%s", pod, *name ? "/" : "", name, *file ? "/" : "", file);
}

int cgroup_make(const char *container, const struct request *request)
{
	char path[160];

	path_of(container, "", path, sizeof path);
	if (mkdir(path, 0755) < 0 && errno != EEXIST)
		return errno;
	return cgroup_limit(container, request);
}

static int set_devices(const char *container, const struct request *request)
{
	/* Nobody's group is the agent's own. */
	int group = *container ? cgroup_open(container) : -1;

	if (group < 0)
		return *container ? errno : EINVAL;
	int error = devices_set(group, request->device_rules, request->device_rule_count);
	close(group);
	return error;
}

int cgroup_limit(const char *container, const struct request *request)
{
	for (size_t i = 0; i < request->limit_count; i++) {
		int error = cgroup_write(container, request->limits[i].file, request->limits[i].value);
		if (error)
			return error;
	}
	return request->device_rule_count ? set_devices(container, request) : 0;
}

void cgroup_boot(void)
{
	int group = open(pod, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int error = group < 0 ? errno : devices_set(group, NULL, 0);

	if (error)
		say("casemate: rules for devices: %s", strerror(error));
	if (group >= 0)
		close(group);
}

void cgroup_rehearse(void)
{
	pod = "/sys/fs/cgroup/rehearsal";
	mkdir(pod, 0755);
	static const char *const controllers[] = { "+memory", "+cpu", "+pids", "+io", "+cpuset" };
	for (size_t i = 0; i < sizeof controllers / sizeof *controllers; i++)
		cgroup_write("", "cgroup.subtree_control", controllers[i]);
	cgroup_boot();
}

int cgroup_open(const char *container)
{
	char path[160] = "/sys/fs/cgroup";

	/* The agent's own children are in nobody's. */
	if (*container)
		path_of(container, "", path, sizeof path);
	return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

int cgroup_write(const char *container, const char *file, const char *value)
{
	char path[256];

	path_of(container, file, path, sizeof path);
	return write_file(path, value, strlen(value));
}

long cgroup_read(const char *container, const char *file, char *text, size_t size)
{
	char path[256];

	path_of(container, file, path, sizeof path);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t length = read(fd, text, size - 1);
	close(fd);
	if (length < 0)
		return -errno;
	text[length] = 0;
	return length;
}

void cgroup_remove(const char *container)
{
	char path[160];

	path_of(container, "", path, sizeof path);
	if (rmdir(path) < 0 && errno != ENOENT)
		say("casemate: cgroup %s: %s", container, strerror(errno));
}
