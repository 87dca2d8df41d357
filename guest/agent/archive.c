/* A tar of a tree, to standard output. The tree is hostile: nothing is followed, nothing opened that could wait. */
#include <dirent.h>
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

static struct link { dev_t device; ino_t inode; char *name; } *links;
static size_t link_count, link_room, entries;

static void pad(uint64_t size)
{
	static const char zeros[TAR_BLOCK];

	if (size % TAR_BLOCK)
		write_all(zeros, TAR_BLOCK - size % TAR_BLOCK);
}

static void octal(char *field, size_t size, uint64_t value)
{
	snprintf(field, size, "%0*llo", (int)size - 1, (unsigned long long)value);
}

static void header(const char *name, const char *target, char type, const struct stat *s, uint64_t size)
{
	char block[TAR_BLOCK] = "";
	unsigned sum = 0;

	memcpy(block, name, strnlen(name, 100));
	octal(block + 100, 8, s->st_mode & 07777);
	octal(block + 108, 8, s->st_uid & 07777777);
	octal(block + 116, 8, s->st_gid & 07777777);
	octal(block + 124, 12, size & 077777777777);
	octal(block + 136, 12, s->st_mtime < 0 ? 0 : (uint64_t)s->st_mtime & 077777777777);
	memset(block + 148, ' ', 8);
	block[156] = type;
	memcpy(block + 157, target, strnlen(target, 100));
	memcpy(block + 257, "ustar\00000", 8);
	octal(block + 329, 8, type == '3' || type == '4' ? major(s->st_rdev) : 0);
	octal(block + 337, 8, type == '3' || type == '4' ? minor(s->st_rdev) : 0);
	for (int i = 0; i < TAR_BLOCK; i++)
		sum += (unsigned char)block[i];
	snprintf(block + 148, 8, "%06o", sum);
	write_all(block, TAR_BLOCK);
}

/* "length key=value\n", where the length counts itself. */
static size_t record(char *into, size_t room, const char *key, const void *value, size_t length)
{
	size_t body = strlen(key) + length + 3, total = body + 1;
	char digits[24];

	while (total != body + (size_t)snprintf(digits, sizeof digits, "%zu", total))
		total = body + strlen(digits);
	if (total >= room)
		return 0;
	size_t used = (size_t)sprintf(into, "%zu %s=", total, key);
	memcpy(into + used, value, length);
	into[used + length] = '\n';
	return total;
}

static size_t attributes(int fd, char *into, size_t room, int raw)
{
	static char names[8192], value[8192];
	char key[300];
	size_t used = 0;
	ssize_t length = flistxattr(fd, names, sizeof names);

	for (char *name = names; length > 0 && name < names + length; name += strlen(name) + 1) {
		int wanted = !strncmp(name, "user.", 5) || !strcmp(name, "security.capability") ||
			     (raw && (!strcmp(name, "trusted.overlay.opaque") || !strcmp(name, "trusted.overlay.redirect")));
		ssize_t got = wanted && strlen(name) < 256 ? fgetxattr(fd, name, value, sizeof value) : -1;
		if (got < 0)
			continue;
		snprintf(key, sizeof key, "SCHILY.xattr.%.255s", name);
		used += record(into + used, room - used, key, value, (size_t)got);
	}
	return used;
}

static void extended(const char *name, const char *target, const struct stat *s, uint64_t size, int fd, int raw)
{
	static char text[40000];
	char number[24];
	size_t used = 0;
	struct stat own = { .st_mode = 0644, .st_mtime = s->st_mtime };

	if (strlen(name) > 99)
		used += record(text + used, sizeof text - used, "path", name, strlen(name));
	if (strlen(target) > 99)
		used += record(text + used, sizeof text - used, "linkpath", target, strlen(target));
	if (size > 077777777777) {
		snprintf(number, sizeof number, "%llu", (unsigned long long)size);
		used += record(text + used, sizeof text - used, "size", number, strlen(number));
	}
	if (fd >= 0)
		used += attributes(fd, text + used, sizeof text - used, raw);
	if (!used)
		return;
	header("././@PaxHeader", "", 'x', &own, used);
	write_all(text, used);
	pad(used);
}

static const char *known(const struct stat *s, const char *name)
{
	for (size_t i = 0; i < link_count; i++)
		if (links[i].inode == s->st_ino && links[i].device == s->st_dev)
			return links[i].name;
	if (link_count == link_room) {
		link_room = link_room ? 2 * link_room : 64;
		links = reallocarray(links, link_room, sizeof *links);
		if (!links)
			files_fail("out of memory for hard links");
	}
	links[link_count++] = (struct link){ s->st_dev, s->st_ino, strdup(name) };
	return NULL;
}

static void regular(int parent, const char *entry, const char *name, const struct stat *before, int raw)
{
	static char data[65536];
	struct stat s;
	int fd = openat(parent, entry, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	uint64_t left;

	/* It went, or became something else: left out. */
	if (fd < 0 || fstat(fd, &s) < 0 || !S_ISREG(s.st_mode) || s.st_ino != before->st_ino) {
		if (fd >= 0)
			close(fd);
		return;
	}
	extended(name, "", &s, (uint64_t)s.st_size, fd, raw);
	header(name, "", '0', &s, (uint64_t)s.st_size);
	for (left = (uint64_t)s.st_size; left;) {
		ssize_t got = read(fd, data, left < sizeof data ? left : sizeof data);
		if (got <= 0) {
			/* One that shrinks while it is read ends in zeros. */
			got = (ssize_t)(left < sizeof data ? left : sizeof data);
			memset(data, 0, (size_t)got);
		}
		write_all(data, (size_t)got);
		left -= (uint64_t)got;
	}
	pad((uint64_t)s.st_size);
	close(fd);
}

static void member(int parent, const char *entry, const char *name, const struct stat *s, int raw)
{
	char target[TAR_NAME] = "";
	const char *first = S_ISREG(s->st_mode) && s->st_nlink > 1 ? known(s, name) : NULL;

	if (first) {
		extended(name, first, s, 0, -1, raw);
		header(name, first, '1', s, 0);
	} else if (S_ISREG(s->st_mode)) {
		regular(parent, entry, name, s, raw);
	} else if (S_ISLNK(s->st_mode)) {
		ssize_t length = readlinkat(parent, entry, target, sizeof target - 1);
		if (length < 0)
			return;
		target[length] = 0;
		extended(name, target, s, 0, -1, raw);
		header(name, target, '2', s, 0);
	} else if (!S_ISSOCK(s->st_mode) && !S_ISDIR(s->st_mode)) {
		extended(name, "", s, 0, -1, raw);
		header(name, "", S_ISCHR(s->st_mode) ? '3' : S_ISBLK(s->st_mode) ? '4' : '6', s, 0);
	}
}

static void walk(int parent, const char *entry, char *name, int depth, dev_t device, int raw);

static void folder(int fd, char *name, int depth, dev_t device, int raw)
{
	size_t length = strlen(name);
	DIR *list = fdopendir(dup(fd));
	struct dirent *one;

	if (depth > TAR_DEPTH)
		files_fail("refused: folders are nested deeper than %d", TAR_DEPTH);
	while (list && (one = readdir(list))) {
		if (!strcmp(one->d_name, ".") || !strcmp(one->d_name, ".."))
			continue;
		if (length + strlen(one->d_name) + 2 > TAR_NAME)
			files_fail("refused: a path has more than %d bytes", TAR_NAME);
		snprintf(name + length, TAR_NAME - length, "%s%s", length ? "/" : "", one->d_name);
		walk(fd, one->d_name, name, depth + 1, device, raw);
		name[length] = 0;
	}
	if (list)
		closedir(list);
}

/* Of another file system its root alone, and nothing below it. */
static void walk(int parent, const char *entry, char *name, int depth, dev_t device, int raw)
{
	struct stat s;

	if (fstatat(parent, entry, &s, AT_SYMLINK_NOFOLLOW) < 0)
		return;
	if (++entries > TAR_ENTRIES)
		files_fail("refused: more than %d files", TAR_ENTRIES);
	if (!S_ISDIR(s.st_mode)) {
		member(parent, entry, name, &s, raw);
		return;
	}
	int fd = openat(parent, entry, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return;
	if (*name) {
		extended(name, "", &s, 0, fd, raw);
		header(name, "", '5', &s, 0);
	}
	if (!depth || s.st_dev == device)
		folder(fd, name, depth, depth ? device : s.st_dev, raw);
	close(fd);
}

void tar_archive(const char *parent, const char *name, const char *shown, int raw)
{
	static const char end[2 * TAR_BLOCK];
	char path[TAR_NAME];
	struct stat s;
	int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0 || fstatat(fd, name, &s, AT_SYMLINK_NOFOLLOW) < 0)
		files_fail("missing: %s/%s: %s", parent, name, strerror(errno));
	snprintf(path, sizeof path, "%s", shown);
	walk(fd, name, path, 0, s.st_dev, raw);
	write_all(end, sizeof end);
}
