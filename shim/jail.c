/* What QEMU is shut into: user and groups of its own, no capability, new namespaces for network, ipc, names, processes
 * and mounts, a root that holds read-only programs and a /proc of its own alone. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim.h"

static int read_only_bind(const char *source, const char *target)
{
	return mount(source, target, NULL, MS_BIND, NULL) < 0 ||
		mount(NULL, target, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL) < 0;
}

/* A node of the machine's own: the host's belongs to a group that QEMU must not have. */
static const char *add_kvm(const struct jail *jail)
{
	struct stat host;

	if (stat("/dev/kvm", &host) < 0 || !S_ISCHR(host.st_mode))
		return "/dev/kvm";
	mkdir("dev", 0755);
	if (mount("casemate", "dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755,size=4k,nr_inodes=4") < 0 ||
	    mknod("dev/kvm", S_IFCHR | 0600, host.st_rdev) < 0 || chown("dev/kvm", jail->uid, jail->gid) < 0 ||
	    mount(NULL, "dev", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL) < 0)
		return "dev/kvm";
	return NULL;
}

static const char *change_root(const struct jail *jail)
{
	const char *root = jail->root, *step;

	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return "private mounts";
	if (mount("casemate", root, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755,size=64k") < 0 || chdir(root) < 0)
		return "root";
	mkdir("usr", 0755);
	if (read_only_bind("/usr", "usr"))
		return "usr";
	static const char *const links[][2] = { { "usr/lib", "lib" }, { "usr/lib64", "lib64" }, { "usr/bin", "bin" } };
	for (size_t i = 0; i < 3; i++)
		if (symlink(links[i][0], links[i][1]) < 0)
			return "links";
	/* Debian's alternatives lead through /etc; QEMU's own data do not. ld.so works without its cache. */
	mkdir("etc", 0755);
	int fd = open("etc/ld.so.cache", O_CREAT | O_CLOEXEC | O_WRONLY, 0444);
	if (fd < 0 || close(fd) < 0 || read_only_bind("/etc/ld.so.cache", "etc/ld.so.cache"))
		return "ld.so.cache";
	if (jail->kvm && (step = add_kvm(jail)))
		return step;
	mkdir("proc", 0555);
	if (mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "subset=pid") < 0)
		return "proc";
	if (syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		return "pivot_root";
	if (mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
		return "read-only root";
	return NULL;
}

static const char *drop(const struct jail *jail)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = { { 0 } };

	for (int i = 0; i < 64; i++)
		if (prctl(PR_CAPBSET_DROP, i, 0, 0, 0) < 0)
			break;
	if (setgroups(0, NULL) < 0 || setresgid(jail->gid, jail->gid, jail->gid) < 0 ||
	    setresuid(jail->uid, jail->uid, jail->uid) < 0)
		return "user";
	if (syscall(SYS_capset, &head, none) < 0)
		return "capabilities";
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return "no_new_privs";
	return NULL;
}

const char *jail_enter(const struct jail *jail)
{
	struct rlimit none = { 0, 0 }, files = { 256, 256 };
	const char *step;

	if (jail->root && (step = change_root(jail)))
		return step;
	setrlimit(RLIMIT_CORE, &none);
	setrlimit(RLIMIT_NOFILE, &files);
	if (!jail->writes_files)
		setrlimit(RLIMIT_FSIZE, &none);
	if ((step = drop(jail)))
		return step;
	/* After the change of user, which clears it. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
		return "death signal";
	return NULL;
}

const char *jail_drop(const struct jail *jail)
{
	struct rlimit none = { 0, 0 };

	setrlimit(RLIMIT_CORE, &none);
	/* The same user as QEMU's, which cannot see or signal this process from its own pid namespace. */
	return drop(jail);
}
