/* A child that copies files in or out of a container, or compares: forked for one such work, ended with it. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"
#include "tar.h"

void files_fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vdprintf(STDERR_FILENO, format, arguments);
	va_end(arguments);
	_exit(1);
}

static char output[65536];
static size_t output_used;

static void flush(void)
{
	for (size_t done = 0; done < output_used;) {
		ssize_t put = write(STDOUT_FILENO, output + done, output_used - done);
		if (put <= 0)
			_exit(0); /* the reader has enough */
		done += (size_t)put;
	}
	output_used = 0;
}

void write_all(const void *bytes, size_t length)
{
	const char *at = bytes;

	while (length) {
		size_t part = length < sizeof output - output_used ? length : sizeof output - output_used;
		memcpy(output + output_used, at, part);
		output_used += part;
		at += part;
		length -= part;
		if (output_used == sizeof output)
			flush();
	}
}

static void line(char kind, const char *path, const char *name)
{
	char text[TAR_NAME + 8];
	int length = snprintf(text, sizeof text, "%c %s/%s", kind, path, name);

	if (length < (int)sizeof text)
		write_all(text, (size_t)length + 1);
}

static int is_there(int folder, const char *name, mode_t *mode)
{
	struct stat s;

	if (folder < 0 || fstatat(folder, name, &s, AT_SYMLINK_NOFOLLOW) < 0)
		return 0;
	*mode = s.st_mode;
	return 1;
}

static int below(int folder, const char *name)
{
	return folder < 0 ? -1 : openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* Folders that the upper layer holds can differ, and no others: in each, the names of the three trees are compared. */
static void compare(int upper, int merged, int lower, const char *path, int depth)
{
	char deeper[TAR_NAME];
	mode_t mode, other;
	struct dirent *one;
	DIR *list;

	if (depth > TAR_DEPTH)
		files_fail("refused: folders are nested deeper than %d", TAR_DEPTH);
	list = lower < 0 ? NULL : fdopendir(dup(lower));
	while (list && (one = readdir(list)))
		if (strcmp(one->d_name, ".") && strcmp(one->d_name, "..") && !is_there(merged, one->d_name, &mode))
			line('D', path, one->d_name);
	if (list)
		closedir(list);
	list = fdopendir(dup(upper));
	while (list && (one = readdir(list))) {
		if (!strcmp(one->d_name, ".") || !strcmp(one->d_name, "..") || !is_there(merged, one->d_name, &mode) ||
		    !is_there(upper, one->d_name, &other))
			continue;
		line(is_there(lower, one->d_name, &other) ? 'C' : 'A', path, one->d_name);
		if (!S_ISDIR(mode) || snprintf(deeper, sizeof deeper, "%s/%s", path, one->d_name) >= (int)sizeof deeper)
			continue;
		int three[3] = { below(upper, one->d_name), below(merged, one->d_name), below(lower, one->d_name) };
		if (three[0] >= 0 && three[1] >= 0)
			compare(three[0], three[1], three[2], deeper, depth + 1);
		for (int i = 0; i < 3; i++)
			if (three[i] >= 0)
				close(three[i]);
	}
	if (list)
		closedir(list);
}

/* The folders below the container's root, joined, as the kernel shows them in the options of its mount. */
static int open_lower(const char *root)
{
	static char text[262144], options[16384];
	size_t used = 0;
	ssize_t got;
	int fd = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);

	while (used < sizeof text - 1 && (got = read(fd, text + used, sizeof text - 1 - used)) > 0)
		used += (size_t)got;
	close(fd);
	text[used] = 0;
	for (char *row = text, *next; row && *row; row = next) {
		next = strchr(row, '\n');
		if (next)
			*next++ = 0;
		char target[160];
		char *found = strstr(row, "lowerdir=");
		if (sscanf(row, "%*s %*s %*s %*s %159s", target) != 1 || strcmp(target, root) || !found)
			continue;
		size_t length = strcspn(found + 9, ",");
		if (!memchr(found + 9, ':', length)) {
			found[9 + length] = 0;
			return open(found + 9, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		}
		snprintf(options, sizeof options, "lowerdir=%.*s", (int)length, found + 9);
		if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
		    mount("overlay", "/layers", "overlay", MS_RDONLY, options) < 0)
			files_fail("the layers cannot be joined: %s", strerror(errno));
		return open("/layers", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	files_fail("the container has no root of layers");
}

static void work_on_layers(int work, const char *root)
{
	char upper[160];

	snprintf(upper, sizeof upper, "%.*s/upper", (int)(strlen(root) - strlen("/root")), root);
	int fd = open(upper, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		files_fail("%s: %s", upper, strerror(errno));
	if (work == FILES_RESTORE) {
		tar_unpack(fd, 1, 1);
	} else if (work == FILES_SAVE) {
		tar_archive(upper, ".", "", 1);
	} else {
		int merged = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC), lower = open_lower(root);
		compare(fd, merged, lower, "", 0);
	}
}

static void work_inside(int work, const char *path)
{
	char copy[TAR_NAME];
	size_t length = strlen(path);

	memcpy(copy, path, length + 1);
	while (length > 1 && (copy[length - 1] == '/' || (copy[length - 1] == '.' && copy[length - 2] == '/')))
		copy[--length] = 0;
	if (work == FILES_EXTRACT) {
		int base = open(copy, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (base < 0)
			files_fail("refused: %.300s: %s in the container", copy, strerror(errno));
		tar_unpack(base, 1, 0);
		return;
	}
	char *last = strrchr(copy, '/');
	if (!last || !last[1]) {
		tar_archive("/", ".", "", 0);
		return;
	}
	*last = 0;
	tar_archive(last == copy ? "/" : copy, last + 1, last + 1, 0);
}

/* In the child; the channel has told that it is set up. `init_pidfd` is of the container's first process, or -1. */
_Noreturn void stage_files(const struct request *r, int channel, int init_pidfd)
{
	int work = r->copying[0];
	const char *path = r->copying + 1;

	channel_send(channel, 0, "", -1);
	if (init_pidfd >= 0)
		init_pidfd = dup2(init_pidfd, 3);
	/* The agent's own descriptors: the ends of others' pipes would hold up their end. And the channel: all is set up. */
	close_range(init_pidfd >= 0 ? 4 : 3, ~0U, 0);
	signal(SIGPIPE, SIG_DFL);
	if (work == FILES_NAMES)
		resolver_run();
	if (strlen(path) >= TAR_NAME)
		files_fail("refused: a path has more than %d bytes", TAR_NAME - 1);
	if (strchr("SRD", work)) {
		work_on_layers(work, r->root);
	} else {
		/* What the container sees, with its volumes; without a process of it, or for an export, its root alone. */
		int seen = init_pidfd >= 0 && work != FILES_EXPORT && setns(init_pidfd, CLONE_NEWNS) == 0;
		if (!seen && (chroot(r->root) < 0 || chdir("/") < 0))
			files_fail("the container's root: %s", strerror(errno));
		work_inside(work, path);
	}
	flush();
	_exit(0);
}
