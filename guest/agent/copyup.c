/* The content of a folder of the image, copied into the tmpfs that is to cover it (mount option tmpcopyup). */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

enum { MAX_DEPTH = 32 };

static int copy_entry(int from, int to, const char *name, int depth);

static int own(int folder, const char *name, const struct stat *status)
{
	if (fchownat(folder, name, status->st_uid, status->st_gid, AT_SYMLINK_NOFOLLOW) < 0)
		return errno;
	/* After the change of owner, which takes set-uid away. */
	if (!S_ISLNK(status->st_mode) && fchmodat(folder, name, status->st_mode & 07777, 0) < 0)
		return errno;
	return 0;
}

static int copy_file(int from, int to, const char *name, off_t size)
{
	int source = openat(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	int target = openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int error = source < 0 || target < 0 ? errno : 0;

	while (!error && size > 0) {
		ssize_t sent = sendfile(target, source, NULL, (size_t)size);
		if (sent < 0)
			error = errno;
		if (sent <= 0)
			break;
		size -= sent;
	}
	if (source >= 0)
		close(source);
	if (target >= 0)
		close(target);
	return error;
}

static int copy_link(int from, int to, const char *name)
{
	char text[4096];
	ssize_t length = readlinkat(from, name, text, sizeof text - 1);

	if (length < 0)
		return errno;
	text[length] = 0;
	return symlinkat(text, to, name) < 0 ? errno : 0;
}

static int copy_folder(int from, int to, int depth)
{
	DIR *list = fdopendir(dup(from));
	struct dirent *one;
	int error = list ? 0 : errno;

	while (!error && (one = readdir(list)))
		if (one->d_name[0] != '.' || (one->d_name[1] && (one->d_name[1] != '.' || one->d_name[2])))
			error = copy_entry(from, to, one->d_name, depth);
	if (list)
		closedir(list);
	return error;
}

static int copy_entry(int from, int to, const char *name, int depth)
{
	struct stat status;
	int error;

	if (fstatat(from, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
		return errno;
	if (S_ISDIR(status.st_mode)) {
		if (depth == MAX_DEPTH)
			return ELOOP;
		if (mkdirat(to, name, 0700) < 0)
			return errno;
		int source = openat(from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		int target = openat(to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		error = source < 0 || target < 0 ? errno : copy_folder(source, target, depth + 1);
		if (source >= 0)
			close(source);
		if (target >= 0)
			close(target);
	} else if (S_ISREG(status.st_mode)) {
		error = copy_file(from, to, name, status.st_size);
	} else if (S_ISLNK(status.st_mode)) {
		error = copy_link(from, to, name);
	} else {
		error = mknodat(to, name, status.st_mode, status.st_rdev) < 0 ? errno : 0;
	}
	return error ? error : own(to, name, &status);
}

int copy_up(int from, const char *to)
{
	struct stat status;
	int source = openat(from, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int target = open(to, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int error = source < 0 || target < 0 ? errno : copy_folder(source, target, 0);

	if (!error && fstat(source, &status) == 0 && (fchown(target, status.st_uid, status.st_gid) < 0 ||
	    fchmod(target, status.st_mode & 07777) < 0))
		error = errno;
	if (source >= 0)
		close(source);
	if (target >= 0)
		close(target);
	return error;
}
