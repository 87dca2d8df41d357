/* A tar from standard input into a tree. Both are hostile: no name leads out, no link is followed. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "tar.h"

enum { MAX_ID = 65535 };

/* The folder that an entry is in, and its last part; -1 for the base itself. The name is cut up in place. */
static int parent_of(int base, char *name, const char **last, int make)
{
	int current = dup(base);
	char *part = name, *next;

	*last = NULL;
	if (*name == '/')
		files_fail("refused: entry %.200s: an absolute path", name);
	for (; part; part = next) {
		next = strchr(part, '/');
		if (next)
			*next++ = 0;
		if (!*part || !strcmp(part, "."))
			continue;
		if (!strcmp(part, ".."))
			files_fail("refused: entry %.200s: '..' is not allowed", name);
		if (*last) {
			int following = openat(current, *last, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
			if (following < 0 && errno == ENOENT && make && !mkdirat(current, *last, 0755))
				following = openat(current, *last, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
			if (following < 0)
				files_fail("refused: %.100s is a link or a file, not a folder", *last);
			close(current);
			current = following;
		}
		*last = part;
	}
	return current;
}

static void set_attributes(int fd, const struct tar_entry *e, int raw)
{
	size_t at = 0;

	while (at < e->xattrs_length) {
		const char *name = e->xattrs + at;
		uint32_t size;
		at += strlen(name) + 1;
		memcpy(&size, e->xattrs + at, sizeof size);
		at += sizeof size;
		if (!strncmp(name, "user.", 5) || !strcmp(name, "security.capability") ||
		    (raw && (!strcmp(name, "trusted.overlay.opaque") || !strcmp(name, "trusted.overlay.redirect"))))
			fsetxattr(fd, name, e->xattrs + at, size, 0);
		at += size;
	}
}

static void finish(int fd, const struct tar_entry *e, int raw)
{
	struct timespec times[2] = { { .tv_sec = e->mtime }, { .tv_sec = e->mtime } };

	if (fchown(fd, e->uid, e->gid) < 0 || fchmod(fd, e->mode) < 0)
		files_fail("owner or mode of an entry: %s", strerror(errno));
	set_attributes(fd, e, raw);
	futimens(fd, times);
}

static void regular(int parent, const char *name, const struct tar_entry *e, int raw)
{
	static char data[65536];
	uint64_t left = e->size;
	int fd = openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);

	if (fd < 0)
		files_fail("%.200s: %s", name, strerror(errno));
	while (left) {
		size_t part = left < sizeof data ? (size_t)left : sizeof data, used = 0;
		tar_read(data, part);
		while (used < part) {
			ssize_t put = write(fd, data + used, part - used);
			if (put <= 0)
				files_fail("full: %.200s: %s", name, strerror(errno));
			used += (size_t)put;
		}
		left -= part;
	}
	if (e->size % TAR_BLOCK)
		tar_read(data, TAR_BLOCK - e->size % TAR_BLOCK);
	finish(fd, e, raw);
	close(fd);
}

static void hard_link(int base, int parent, const char *name, const struct tar_entry *e)
{
	static char target[TAR_NAME];
	const char *last;

	memcpy(target, e->link, sizeof target);
	int folder = parent_of(base, target, &last, 0);
	if (!last || linkat(folder, last, parent, name, 0) < 0)
		files_fail("refused: hard link to %.200s, which is not there", e->link);
	close(folder);
}

/* Makes room; 0 when there is nothing left to be made (a folder that is there). */
static int replaces(int parent, const char *name, const struct tar_entry *e, int keep_folders)
{
	struct stat there;

	if (fstatat(parent, name, &there, AT_SYMLINK_NOFOLLOW) < 0)
		return 1;
	if (e->type == '5' && S_ISDIR(there.st_mode))
		return 0;
	if (e->type == '5' && keep_folders)
		files_fail("refused: %.200s: a folder would replace a file", name);
	if (e->type != '5' && S_ISDIR(there.st_mode))
		files_fail("refused: %.200s: a file would replace a folder", name);
	if (unlinkat(parent, name, 0) < 0)
		files_fail("%.200s: %s", name, strerror(errno));
	return 1;
}

static void other(int base, int parent, const char *name, const struct tar_entry *e, int raw)
{
	mode_t kind = e->type == '3' ? S_IFCHR : e->type == '4' ? S_IFBLK : S_IFIFO;
	int error = 0;

	switch (e->type) {
	case '1': hard_link(base, parent, name, e); return;
	case '2': error = symlinkat(e->link, parent, name); break;
	case '3':
	case '4':
		if (!raw)
			files_fail("refused: %.200s: devices cannot be put into a container", name);
		/* fall through */
	case '6': error = mknodat(parent, name, kind | 0600, makedev(e->major, e->minor)); break;
	default: files_fail("refused: %.200s: an unknown kind of entry", name);
	}
	if (error || fchownat(parent, name, e->uid, e->gid, AT_SYMLINK_NOFOLLOW) < 0 ||
	    (e->type != '2' && fchmodat(parent, name, e->mode, 0) < 0))
		files_fail("%.200s: %s", name, strerror(errno));
}

static void folder(int parent, const char *name, const struct tar_entry *e, int made, int raw)
{
	if (made && mkdirat(parent, name, 0700) < 0)
		files_fail("%.200s: %s", name, strerror(errno));
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		files_fail("%.200s: %s", name, strerror(errno));
	finish(fd, e, raw);
	close(fd);
}

void tar_unpack(int base, int keep_folders, int raw)
{
	static struct tar_entry entry;
	static char name[TAR_NAME];
	const char *last;

	while (tar_next(&entry)) {
		if (entry.uid > MAX_ID || entry.gid > MAX_ID)
			files_fail("refused: %.200s: owner %u:%u; a container has the ids 0 to %d", entry.name, entry.uid,
				entry.gid, MAX_ID);
		memcpy(name, entry.name, sizeof name);
		int parent = parent_of(base, name, &last, 1);
		int made = last && replaces(parent, last, &entry, keep_folders);
		if (!last) {
			if (raw && entry.type == '5')
				finish(base, &entry, raw);
			tar_skip(entry.size);
		} else if (entry.type == '5') {
			folder(parent, last, &entry, made, raw);
		} else if (entry.type == '0' || entry.type == '7') {
			regular(parent, last, &entry, raw);
		} else {
			other(base, parent, last, &entry, raw);
		}
		close(parent);
	}
	/* What stands behind the end is taken, so that nobody waits to write it. */
	while (read(STDIN_FILENO, name, sizeof name) > 0)
		continue;
}
