/* The mounts of a container, made in its own mount namespace below its root, targets resolved inside that root. */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "agent.h"

enum { MAX_LINKS = 40 }; /* as many as the kernel follows */
enum { PROPAGATION = MS_SHARED | MS_PRIVATE | MS_SLAVE | MS_UNBINDABLE };

static int open_inside(int root, const char *path, int flags)
{
	struct open_how how = { .flags = (uint64_t)(flags | O_CLOEXEC), .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };

	return (int)syscall(SYS_openat2, root, path, &how, sizeof how);
}

/* Where `part`, the beginning of `path`, is a link to what is not there: `path` with the link's own words in its place.
 * 1, or 0 for anything else. */
static int through_link(int root, const char *part, const char *rest, char *path, size_t size)
{
	char to[2048], whole[4096];
	int fd = open_inside(root, part, O_PATH | O_NOFOLLOW);
	ssize_t length = fd < 0 ? -1 : readlinkat(fd, "", to, sizeof to - 1);
	const char *name = strrchr(part, '/');

	if (fd >= 0)
		close(fd);
	if (length <= 0 || !name)
		return 0;
	to[length] = 0;
	int folder = *to == '/' ? 0 : (int)(name - part);
	int written = snprintf(whole, sizeof whole, "%.*s/%s%s", folder, part, to, rest);
	if (written < 0 || (size_t)written >= sizeof whole || (size_t)written >= size)
		return 0;
	memcpy(path, whole, (size_t)written + 1);
	return 1;
}

/* Makes the folders of `asked` (and a file at its end, when asked) that are missing, resolving in `root`: also those that
 * links lead to, as the field's runtimes do. */
static int make_inside(int root, const char *asked, int is_file)
{
	char part[4096], path[4096];
	size_t length = strlen(asked);
	int links = 0;

	if (length >= sizeof part)
		return ENAMETOOLONG;
	memcpy(path, asked, length + 1);
	for (size_t i = 1; i <= length; i++) {
		if (path[i] != '/' && path[i] != 0)
			continue;
		memcpy(part, path, i);
		part[i] = 0;
		int fd = open_inside(root, part, O_PATH);
		if (fd >= 0) {
			close(fd);
			continue;
		}
		if (links < MAX_LINKS && through_link(root, part, path + i, path, sizeof path)) {
			links++;
			length = strlen(path);
			i = 0;
			continue;
		}
		char *name = strrchr(part, '/');
		if (!name || !name[1])
			continue;
		*name = 0;
		int parent = open_inside(root, *part ? part : "/", O_PATH | O_DIRECTORY);
		if (parent < 0)
			return errno;
		int made = is_file && path[i] == 0
			? (fd = openat(parent, name + 1, O_CREAT | O_EXCL | O_CLOEXEC | O_WRONLY | O_NOFOLLOW, 0644))
			: mkdirat(parent, name + 1, 0755);
		int error = errno;
		if (is_file && path[i] == 0 && made >= 0)
			close(made);
		close(parent);
		if (made < 0 && error != EEXIST)
			return error;
	}
	return 0;
}

static int target_inside(int root, const char *path, int is_file, char *name, size_t size, int *fd)
{
	*fd = open_inside(root, path, O_PATH);
	if (*fd < 0 && errno == ENOENT) {
		int error = make_inside(root, path, is_file);
		if (error)
			return error;
		*fd = open_inside(root, path, O_PATH);
	}
	if (*fd < 0)
		return errno;
	snprintf(name, size, "/proc/self/fd/%d", *fd);
	return 0;
}

static int bind(int root, const struct mount_request *m, const char *target)
{
	char source[4200];
	struct stat status;
	(void)root;

	/* A bind's source is a name below the shared folder, which the host chose: nothing in it leads upwards. */
	for (const char *part = m->source; part; part = strchr(part, '/')) {
		part += *part == '/';
		if (!strncmp(part, "..", 2) && (!part[2] || part[2] == '/'))
			return EINVAL;
	}
	snprintf(source, sizeof source, "/shares/%s", m->source);
	if (stat(source, &status) < 0 || mount(source, target, NULL, MS_BIND | (m->flags & MS_REC), NULL) < 0)
		return errno;
	return 0;
}

/* A tmpfs has the mode of the folder that it covers, unless the bundle names one, or there was no folder. */
static int mount_fresh(const struct mount_request *m, const char *target, int covers, unsigned long flags)
{
	char data[4096];
	struct stat status;

	if (covers < 0 || strcmp(m->type, "tmpfs") || strstr(m->data, "mode=") || fstat(covers, &status) < 0)
		snprintf(data, sizeof data, "%s", m->data);
	else
		snprintf(data, sizeof data, "%s%smode=%o", m->data, *m->data ? "," : "", (unsigned)status.st_mode & 07777);
	return mount(m->source, target, m->type, flags, *data ? data : NULL) < 0 ? errno : 0;
}

static int copy_below(int root, const struct mount_request *m, int below, unsigned long flags)
{
	char target[64];
	int fd, error = target_inside(root, m->target, 0, target, sizeof target, &fd);

	if (error)
		return error;
	error = copy_up(below, target);
	if (!error && flags & MS_RDONLY && mount(NULL, target, NULL, MS_REMOUNT | flags, NULL) < 0)
		error = errno;
	close(fd);
	return error;
}

/* How later mounts on and below it are seen elsewhere: what mount(2) takes in a call of its own. */
static int propagate(int root, const struct mount_request *m, int is_file)
{
	unsigned long how = (unsigned long)m->flags & PROPAGATION;
	char target[64];
	int fd;

	if (!how)
		return 0;
	if (m->flags & MOUNT_PROPAGATION_BELOW)
		how |= MS_REC;
	int error = target_inside(root, m->target, is_file, target, sizeof target, &fd);
	if (!error && mount(NULL, target, NULL, how, NULL) < 0)
		error = errno;
	close(fd);
	return error;
}

static int one_mount(int root, const struct mount_request *m, int early)
{
	char target[64];
	int fd, is_file = 0, is_bind = (m->flags & MS_BIND) != 0;
	unsigned long flags = (unsigned long)m->flags &
		~(unsigned long)(PROPAGATION | MOUNT_COPY_UP | MOUNT_PROPAGATION_BELOW);

	if (is_bind) {
		char source[4200];
		struct stat status;
		snprintf(source, sizeof source, "/shares/%s", m->source);
		is_file = stat(source, &status) == 0 && !S_ISDIR(status.st_mode);
	}
	unsigned long copied_read_only = m->flags & MOUNT_COPY_UP ? MS_RDONLY : 0;
	/* What is not in the image has neither content nor a mode of its own to be copied. */
	int there = !is_bind && !strcmp(m->type, "tmpfs") ? open_inside(root, m->target, O_PATH) : -1;
	if (there >= 0)
		close(there);
	int error = target_inside(root, m->target, is_file, target, sizeof target, &fd);
	if (error)
		return error;
	if (early && zygote_move(m, target))
		error = 0;
	else if (is_bind)
		error = bind(root, m, target);
	else
		error = mount_fresh(m, target, there < 0 ? -1 : fd, flags & ~copied_read_only);
	/* `fd` is what lies below the new mount; the path leads to the mount. */
	if (!error && there >= 0 && m->flags & MOUNT_COPY_UP)
		error = copy_below(root, m, fd, flags);
	close(fd);
	/* Flags of a bind are taken only by a remount; the path is resolved anew, now to what was mounted. */
	if (!error && is_bind && flags & ~(unsigned long)(MS_BIND | MS_REC)) {
		error = target_inside(root, m->target, is_file, target, sizeof target, &fd);
		if (!error && mount(NULL, target, NULL, MS_REMOUNT | (flags & ~(unsigned long)MS_REC), NULL) < 0)
			error = errno;
		close(fd);
	}
	return error ? error : propagate(root, m, is_file);
}

/* A node where none can be made: a folder of the host's, in which QEMU may not. One of the guest's own lies over a file. */
static int mount_node(int parent, const char *name, const struct device_request *d)
{
	static const char node[] = "/dev/casemate.node";
	char target[64];

	unlink(node);
	if (mknod(node, (mode_t)d->mode, makedev(d->major, d->minor)) < 0 || chown(node, d->uid, d->gid) < 0)
		return errno;
	int fd = openat(parent, name, O_CREAT | O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0644);
	if (fd < 0)
		return errno;
	snprintf(target, sizeof target, "/proc/self/fd/%d", fd);
	int error = mount(node, target, NULL, MS_BIND, NULL) < 0 ? errno : 0;
	close(fd);
	unlink(node);
	return error;
}

static int make_node(int parent, const char *name, const struct device_request *d)
{
	if (mknodat(parent, name, (mode_t)d->mode, makedev(d->major, d->minor)) < 0 && errno != EEXIST)
		return errno == EPERM ? mount_node(parent, name, d) : errno;
	if ((d->uid || d->gid) && fchownat(parent, name, d->uid, d->gid, AT_SYMLINK_NOFOLLOW) < 0)
		return errno;
	return 0;
}

static int make_devices(int root, const struct request *r)
{
	for (size_t i = 0; i < r->device_count; i++) {
		const struct device_request *d = &r->devices[i];
		char folder[4096];
		const char *name = strrchr(d->path, '/');
		if (!name || (size_t)(name - d->path) >= sizeof folder)
			return EINVAL;
		memcpy(folder, d->path, (size_t)(name - d->path));
		folder[name - d->path] = 0;
		int error = make_inside(root, folder, 0);
		int parent = open_inside(root, *folder ? folder : "/", O_PATH | O_DIRECTORY);
		if (error || parent < 0)
			return error ? error : errno;
		mode_t old = umask(0);
		error = make_node(parent, name + 1, d);
		umask(old);
		close(parent);
		if (error)
			return error;
	}
	return 0;
}

static void link_inside(int root, const char *to, const char *folder, const char *name)
{
	int parent = open_inside(root, folder, O_PATH | O_DIRECTORY);

	if (parent < 0)
		return;
	if (symlinkat(to, parent, name) < 0 && errno != EEXIST)
		say("casemate: %s/%s: %s", folder, name, strerror(errno));
	close(parent);
}

static int write_files(int root, const struct request *r)
{
	for (size_t i = 0; i < r->file_count; i++) {
		const struct file_request *f = &r->files[i];
		int error = make_inside(root, f->path, 1);
		if (error)
			return error;
		int fd = open_inside(root, f->path, O_WRONLY | O_TRUNC | O_NONBLOCK | O_NOCTTY);
		if (fd < 0)
			return errno;
		if (write(fd, f->bytes, f->length) != (ssize_t)f->length || fchmod(fd, (mode_t)f->mode) < 0)
			error = errno ? errno : EIO;
		close(fd);
		if (error)
			return error;
	}
	return 0;
}

static int close_mount(int root, const struct mount_request *m)
{
	unsigned long flags = (unsigned long)m->flags & ~(unsigned long)(PROPAGATION | MOUNT_COPY_UP | MOUNT_PROPAGATION_BELOW);
	char target[64];
	int fd, error = target_inside(root, m->target, 0, target, sizeof target, &fd);

	if (!error && mount(NULL, target, NULL, MS_REMOUNT | MS_BIND | flags, NULL) < 0)
		error = errno;
	close(fd);
	return error;
}

int mounts_make(int root, const struct request *r, int early, const char **why)
{
	int error;

	*why = "files";
	if ((error = write_files(root, r)))
		return error;
	const struct mount_request *closed = NULL;
	for (size_t i = 0; i < r->mount_count; i++) {
		struct mount_request m = r->mounts[i];
		*why = m.target;
		/* Devices are made in it, and mounts, before nothing can be. */
		if (!strcmp(m.target, "/dev") && m.flags & MS_RDONLY && !(m.flags & MS_BIND)) {
			m.flags &= ~(uint64_t)MS_RDONLY;
			closed = &r->mounts[i];
		}
		if ((error = one_mount(root, &m, early)))
			return error;
	}
	*why = "devices";
	if ((error = make_devices(root, r)))
		return error;
	static const char *const links[][2] = { { "/proc/self/fd", "fd" }, { "/proc/self/fd/0", "stdin" },
		{ "/proc/self/fd/1", "stdout" }, { "/proc/self/fd/2", "stderr" }, { "pts/ptmx", "ptmx" } };
	for (size_t i = 0; i < sizeof links / sizeof *links; i++)
		link_inside(root, links[i][0], "/dev", links[i][1]);
	*why = "/dev";
	return closed ? close_mount(root, closed) : 0;
}

/* After the change of root: what is hidden, what is read-only, kernel settings, and the root itself. */
int mounts_hide(const struct request *r, const char **why)
{
	struct stat status;

	for (size_t i = 0; i < r->sysctl_count; i++) {
		char path[320] = "/proc/sys/";
		const char *equals = strchr(r->sysctls[i], '=');
		*why = r->sysctls[i];
		if (!equals || equals - r->sysctls[i] > 256)
			return EINVAL;
		size_t length = strlen(path);
		for (const char *c = r->sysctls[i]; c < equals; c++)
			path[length++] = *c == '.' ? '/' : *c;
		path[length] = 0;
		int error = write_file(path, equals + 1, strlen(equals + 1));
		if (error)
			return error;
	}
	for (size_t i = 0; i < r->read_only_count; i++) {
		*why = r->read_only[i];
		if (mount(*why, *why, NULL, MS_BIND | MS_REC, NULL) < 0) {
			if (errno == ENOENT || errno == ENOTDIR)
				continue;
			return errno;
		}
		if (mount(NULL, *why, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
			return errno;
	}
	for (size_t i = 0; i < r->masked_count; i++) {
		*why = r->masked[i];
		if (stat(*why, &status) < 0)
			continue;
		if (S_ISDIR(status.st_mode) ? mount("tmpfs", *why, "tmpfs", MS_RDONLY, "size=0k")
					    : mount("/dev/null", *why, NULL, MS_BIND, NULL))
			return errno;
	}
	*why = "read-only root";
	if (r->flags & FLAG_READ_ONLY_ROOT && mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) < 0)
		return errno;
	*why = "propagation of the root";
	if (r->propagation && mount(NULL, "/", NULL, r->propagation & (PROPAGATION | MS_REC), NULL) < 0)
		return errno;
	return 0;
}
