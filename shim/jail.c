/* What QEMU is shut into: user and groups of its own, no capability, new namespaces for network, ipc, names, processes
 * and mounts, a root that holds read-only programs, a /proc of its own alone, and how large the host's pages are. */
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

/* Where QEMU's C library looks whether, and how large, the host has huge pages (monitor.c asks it to use them); a kernel
 * without any does not have the folder. */
static int add_page_sizes(void)
{
	static const char *const folders[] = { "sys", "sys/kernel", "sys/kernel/mm", "sys/kernel/mm/transparent_hugepage" };

	for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
		if (mkdir(folders[i], 0755) < 0)
			return -1;
	return read_only_bind("/sys/kernel/mm/transparent_hugepage", folders[3]) && errno != ENOENT;
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
	if (add_page_sizes())
		return "page sizes";
	/* Folders that the machine is given are attached below it, by hostd, when they are known. */
	mkdir("share", 0755);
	if (mount("casemate", "share", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755,size=64k,nr_inodes=1024") < 0)
		return "share";
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

/* What the 9p server needs to give a guest's files their owners and modes, in its own user namespace alone: there it
 * counts for inodes whose owners are mapped, and for nothing that is not an inode. */
static const uint64_t share_capabilities = 1ULL << CAP_CHOWN | 1ULL << CAP_DAC_OVERRIDE | 1ULL << CAP_FOWNER |
	1ULL << CAP_FSETID | 1ULL << CAP_SETFCAP;

static int set_capabilities(uint64_t all)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	for (int i = 0; i < 2; i++) {
		uint32_t half = (uint32_t)(all >> (32 * i));
		data[i] = (struct __user_cap_data_struct){ half, half, half };
	}
	return (int)syscall(SYS_capset, &head, data);
}

/* The namespace is made by root, whose it therefore is: nobody with the machine's uid can enter it. The parent writes
 * the maps (user_namespaces(7): a map of many ids takes a right in the outer namespace). */
static const char *enter_user_namespace(const struct jail *jail)
{
	char word = 0;

	if (unshare(CLONE_NEWUSER) < 0 || write(jail->maps, &word, 1) != 1 || read(jail->maps, &word, 1) != 1)
		return "user namespace";
	close(jail->maps);
	for (int i = 0; i < 64; i++)
		if (!(share_capabilities >> i & 1) && prctl(PR_CAPBSET_DROP, i, 0, 0, 0) < 0)
			break;
	if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0 || setgroups(0, NULL) < 0 ||
	    setresgid(jail->inner_gid, jail->inner_gid, jail->inner_gid) < 0 ||
	    setresuid(jail->inner_uid, jail->inner_uid, jail->inner_uid) < 0)
		return "user";
	if (set_capabilities(share_capabilities) < 0)
		return "capabilities";
	for (int i = 0; i < 64; i++)
		if (share_capabilities >> i & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, i, 0, 0) < 0)
			return "capabilities";
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return "no_new_privs";
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
	/* A 9p server holds a descriptor for each file that the guest has open; it closes some when it runs short. */
	struct rlimit none = { 0, 0 }, files = { 256, 256 }, many = { 4096, 4096 };
	const char *step;

	if (jail->root && (step = change_root(jail)))
		return step;
	setrlimit(RLIMIT_CORE, &none);
	setrlimit(RLIMIT_NOFILE, jail->uid_map.count ? &many : &files);
	if (!jail->writes_files && !jail->uid_map.count)
		setrlimit(RLIMIT_FSIZE, &none);
	if ((step = jail->uid_map.count ? enter_user_namespace(jail) : drop(jail)))
		return step;
	/* After the change of user, which clears it. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
		return "death signal";
	if (seccomp_enter() < 0)
		return "system calls";
	return NULL;
}

static int write_map(pid_t child, const char *name, const struct id_map *map)
{
	char path[64], text[MAX_MAP_ROWS * 40];
	size_t used = 0;

	for (int i = 0; i < map->count; i++)
		used += (size_t)snprintf(text + used, sizeof text - used, "%u %u %u\n", map->rows[i].inside,
			map->rows[i].outside, map->rows[i].count);
	snprintf(path, sizeof path, "/proc/%d/%s", (int)child, name);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t written = write(fd, text, used);
	close(fd);
	return written == (ssize_t)used ? 0 : -1;
}

const char *jail_map(const struct jail *jail, pid_t child, int maps)
{
	char word;

	if (read(maps, &word, 1) != 1)
		return NULL; /* it failed before; its own words say where */
	if (write_map(child, "uid_map", &jail->uid_map) || write_map(child, "gid_map", &jail->gid_map) ||
	    write(maps, &word, 1) != 1)
		return "id maps";
	return NULL;
}

static int inner(const struct id_map *map, unsigned outside, unsigned *inside)
{
	for (int i = 0; i < map->count; i++) {
		if (outside - map->rows[i].outside < map->rows[i].count) {
			*inside = map->rows[i].inside + (outside - map->rows[i].outside);
			return 0;
		}
	}
	return -1;
}

int jail_inner(struct jail *jail)
{
	return inner(&jail->uid_map, jail->uid, &jail->inner_uid) || inner(&jail->gid_map, jail->gid, &jail->inner_gid);
}

int jail_add_map(struct id_map *map, const char *text)
{
	struct id_row *row = &map->rows[map->count];
	char rest;

	if (map->count == MAX_MAP_ROWS ||
	    sscanf(text, "%u:%u:%u%c", &row->inside, &row->outside, &row->count, &rest) != 3 || !row->count)
		return -1;
	map->count++;
	return 0;
}

const char *jail_drop(const struct jail *jail, pid_t qemu)
{
	struct rlimit none = { 0, 0 };
	const char *step;

	setrlimit(RLIMIT_CORE, &none);
	/* The same user as QEMU's, which cannot see or signal this process from its own pid namespace. */
	if ((step = drop(jail)))
		return step;
	return seccomp_enter_monitor(qemu) < 0 ? "system calls" : NULL;
}
