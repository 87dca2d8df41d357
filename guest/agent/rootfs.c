/* A container's root: its layers are ranges of one block device, made partitions by BLKPG (no partition table is read,
 * no loop device is needed), mounted as squashfs and joined by an overlay with a tmpfs on top. */
#include <errno.h>
#include <fcntl.h>
#include <linux/blkpg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

enum { NAME_BYTES = 128, MAX_LAYERS = 127, SECTOR = 512, MAX_PARTITIONS = 255 };

struct layer {
	uint64_t start, sectors;
};

/* A layer that several containers of the pod use is mounted once. */
static struct layer mounted[MAX_PARTITIONS];
static int mounted_count;

/* By their serial numbers: which is which depends on the order in which QEMU puts its devices into slots. */
static char device[16] = "/dev/vda", scratch[16];
static int scratch_is_mounted;

/* The container of this name warms a machine of the pool: it takes what is made for the first, which is then made anew,
 * and of its root nothing stays. */
static const char warming[] = "casemate.warm";

/* The one container whose writable layer lies on the scratch device. */
static char scratch_owner[ID_BYTES];

/* The first root's place is made at boot, like its process. */
static char first[ID_BYTES];
static int early;

static void base_of(const char *container, char *path, size_t size)
{
	snprintf(path, size, "/c/%s", *first && !strcmp(first, container) ? "+first" : container);
}

void rootfs_path(const char *container, char *path, size_t size)
{
	base_of(container, path, size);
	strncat(path, "/root", size - strlen(path) - 1);
}

static int add_partition(int number, const struct layer *layer)
{
	struct blkpg_partition partition = { .start = (long long)(layer->start * SECTOR),
		.length = (long long)(layer->sectors * SECTOR), .pno = number };
	struct blkpg_ioctl_arg argument = { .op = BLKPG_ADD_PARTITION, .datalen = sizeof partition, .data = &partition };
	int fd = open(device, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return errno;
	int error = ioctl(fd, BLKPG, &argument) < 0 ? errno : 0;
	close(fd);
	return error;
}

/* The number of the mounted layer (from 1), or a negated errno. */
static int mount_layer(const struct layer *layer)
{
	char source[32], target[32];

	for (int i = 0; i < mounted_count; i++)
		if (mounted[i].start == layer->start && mounted[i].sectors == layer->sectors)
			return i + 1;
	if (mounted_count == MAX_PARTITIONS)
		return -ENOSPC;
	int number = mounted_count + 1;
	int error = add_partition(number, layer);
	if (error) {
		say("casemate: layer %d at sector %llu, %llu sectors: %s", number, (unsigned long long)layer->start,
			(unsigned long long)layer->sectors, strerror(error));
		return -error;
	}
	mounted[mounted_count++] = *layer;
	snprintf(source, sizeof source, "%s%d", device, number);
	snprintf(target, sizeof target, "/layers/%d", number);
	mkdir(target, 0700);
	if (mount(source, target, "squashfs", MS_RDONLY | MS_NODEV, NULL) < 0) {
		error = errno;
		say("casemate: %s (layer at sector %llu): %s", source, (unsigned long long)layer->start, strerror(error));
		return -error;
	}
	return number;
}

static int mount_whole(void)
{
	mkdir("/layers/w", 0700);
	return mount(device, "/layers/w", "squashfs", MS_RDONLY | MS_NODEV, NULL) < 0 ? -errno : 0;
}

static int make_folders(const char *base, const char **why)
{
	static const char *const folders[] = { "upper", "work", "root" };
	char path[128];

	for (size_t i = 0; i < 3; i++) {
		snprintf(path, sizeof path, "%s/%s", base, folders[i]);
		if (mkdir(path, 0755) < 0 && errno != EEXIST)
			return *why = "folders of the writable layer", errno;
	}
	return 0;
}

static int make_upper(const char *base, uint64_t upper_bytes, const char **why)
{
	char size[64];

	if (mkdir(base, 0700) < 0)
		return *why = "a container of this name exists", errno;
	snprintf(size, sizeof size, "mode=0700,size=%llu", (unsigned long long)upper_bytes);
	if (mount("casemate", base, "tmpfs", MS_NOSUID | MS_NODEV, upper_bytes ? size : "mode=0700") < 0)
		return *why = "mount of the writable layer", errno;
	return make_folders(base, why);
}

static void find_devices(void)
{
	char path[40], serial[24];

	for (char letter = 'a'; letter <= 'd'; letter++) {
		snprintf(path, sizeof path, "/sys/block/vd%c/serial", letter);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t length = fd < 0 ? 0 : read(fd, serial, sizeof serial - 1);
		if (fd >= 0)
			close(fd);
		serial[length < 0 ? 0 : length] = 0;
		if (!strncmp(serial, "layers", 6))
			snprintf(device, sizeof device, "/dev/vd%c", letter);
		if (!strncmp(serial, "scratch", 7))
			snprintf(scratch, sizeof scratch, "/dev/vd%c", letter);
	}
}

void rootfs_early(void)
{
	const char *why = "";

	find_devices();
	early = make_upper("/c/+first", 0, &why) == 0;
}

static int copy_agent(const char *target)
{
	static char bytes[16384];
	int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	int to = open(target, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
	ssize_t length = from < 0 || to < 0 ? -1 : 1;

	while (length > 0)
		if ((length = read(from, bytes, sizeof bytes)) > 0 && write(to, bytes, (size_t)length) != length)
			length = -1;
	int error = length < 0 ? errno : 0;
	close(from);
	close(to);
	return error;
}

int rootfs_rehearse(const char *container, const char **why)
{
	static const char *const folders[] = { "", "/bin", "/dev", "/etc", "/proc", "/sys" };
	char path[128], options[256];

	for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
		snprintf(path, sizeof path, "/c/+layer%s", folders[i]);
		mkdir(path, 0755);
	}
	*why = "the program of a rehearsal";
	int error = copy_agent("/c/+layer/bin/agent");
	if (error || (symlink("agent", "/c/+layer/bin/warm") < 0 && (error = errno)))
		return error;
	memcpy(first, container, strlen(container) + 1);
	rootfs_path(container, path, sizeof path);
	*why = "mount of a rehearsal's root";
	snprintf(options, sizeof options, "upperdir=/c/+first/upper,workdir=/c/+first/work,lowerdir=/c/+layer");
	return mount("overlay", path, "overlay", 0, options) < 0 ? errno : 0;
}

/* A file system that was made before, and may hold what the container wrote until it was stopped: its journal brings it
 * in order. What was free is given back to the host. */
static int mount_scratch(const char *base, const char **why)
{
	*why = "there is no scratch device, or another container has it";
	if (!*scratch || scratch_is_mounted)
		return ENXIO;
	if (mkdir(base, 0700) < 0)
		return *why = "a container of this name exists", errno;
	*why = "mount of the scratch device";
	if (mount(scratch, base, "ext4", MS_NOSUID | MS_NODEV | MS_NOATIME, "discard,noinit_itable,errors=remount-ro") < 0)
		return errno;
	scratch_is_mounted = 1;
	return make_folders(base, why);
}

static int make_base(const char *container, uint64_t upper_bytes, int on_scratch, char *base, size_t size,
	const char **why)
{
	if (on_scratch) {
		snprintf(scratch_owner, sizeof scratch_owner, "%s", container);
		base_of(container, base, size);
		return mount_scratch(base, why);
	}
	if (early && !upper_bytes && !*first)
		memcpy(first, container, strlen(container) + 1);
	base_of(container, base, size);
	return strcmp(first, container) ? make_upper(base, upper_bytes, why) : 0;
}

/* A folder of the host as root: itself, or below a writable layer that ends with the container. */
static int shared_root(const char *container, const char *share, int below, uint64_t upper_bytes, const char **why)
{
	char base[96], path[128], source[8 + NAME_BYTES], options[NAME_BYTES + 4 * 128];
	int error = make_base(container, upper_bytes, 0, base, sizeof base, why);

	if (error)
		return error;
	snprintf(path, sizeof path, "%s/root", base);
	snprintf(source, sizeof source, "/shares/%s", share);
	snprintf(options, sizeof options, "upperdir=%s/upper,workdir=%s/work,lowerdir=%s", base, base, source);
	*why = "mount of the host's folder as root";
	if (below ? mount("overlay", path, "overlay", 0, options) : mount(source, path, NULL, MS_BIND | MS_REC, NULL))
		return errno;
	return 0;
}

static int overlay(const char *container, const struct layer *layers, int count, uint64_t upper_bytes, uint32_t flags,
	const char **why)
{
	int partitions = (flags & FLAG_PARTITIONS) != 0;
	static char options[16 * MAX_LAYERS + 4 * 128];
	char base[96], path[128];
	size_t used = 0;
	int error = 0;

	if ((error = make_base(container, upper_bytes, (flags & FLAG_SCRATCH) != 0, base, sizeof base, why)))
		return error;
	used = (size_t)snprintf(options, sizeof options, "upperdir=%s/upper,workdir=%s/work,lowerdir=", base, base);
	for (int i = 0; i < count; i++) {
		/* A single layer needs no partition; but beside a device that is mounted whole there can be none. */
		int number = count == 1 && !mounted_count && !partitions ? mount_whole() : mount_layer(&layers[i]);
		if (number < 0)
			return *why = "mount of a layer", -number;
		used += number
			? (size_t)snprintf(options + used, sizeof options - used, "%s/layers/%d", i ? ":" : "", number)
			: (size_t)snprintf(options + used, sizeof options - used, "/layers/w");
	}
	snprintf(path, sizeof path, "%s/root", base);
	if (mount("overlay", path, "overlay", 0, options) < 0)
		return *why = "mount of the overlay", errno;
	return 0;
}

int rootfs_make(const struct wire_message *frame, const char **why)
{
	static struct layer layers[MAX_LAYERS];
	char container[ID_BYTES] = "", share[NAME_BYTES] = "";
	struct wire_field field;
	size_t offset = 0;
	int count = 0, more;
	uint32_t flags = 0;
	uint64_t upper_bytes = 0;

	*why = "a field of the root is not valid";
	while ((more = wire_next(frame->payload, frame->length, &offset, &field)) == 1) {
		if (field.tag == TAG_LAYER && field.length == 16 && count < MAX_LAYERS) {
			layers[count++] = (struct layer){ wire_u64(field.bytes), wire_u64(field.bytes + 8) };
		} else if (field.tag == TAG_UPPER_BYTES && field.length == 8) {
			upper_bytes = wire_u64(field.bytes);
		} else if (field.tag == TAG_CONTAINER && field.length && field.length < ID_BYTES &&
			   !memchr(field.bytes, '/', field.length) && field.bytes[0] != '.') {
			memcpy(container, field.bytes, field.length);
			container[field.length] = 0;
		} else if (field.tag == TAG_SHARE && field.length && field.length < NAME_BYTES &&
			   !memchr(field.bytes, '/', field.length) && field.bytes[0] != '.') {
			memcpy(share, field.bytes, field.length);
			share[field.length] = 0;
		} else if (field.tag == TAG_FLAGS && field.length == 4) {
			flags = wire_u32(field.bytes);
		} else {
			return EINVAL;
		}
	}
	if (more || !*container || !count == !*share)
		return EINVAL;
	int error = count ? overlay(container, layers, count, upper_bytes, flags, why)
			  : shared_root(container, share, (flags & FLAG_OVERLAY_ROOT) != 0, upper_bytes, why);
	if (error && error != EEXIST)
		rootfs_remove(container);
	return error;
}

/* Mounts the host's exported folder (9p) once; its entries become roots and sources of bind mounts. Neither set-uid nor
 * devices are held back here: the bundle says so for each mount. */
int rootfs_share(const struct wire_message *frame, const char **why)
{
	static int done;

	*why = "mount of the shared folder";
	if (frame->length)
		return EINVAL;
	if (!done && mount("casemate", "/shares", "9p", 0,
			     "trans=virtio,version=9p2000.L,msize=262144,access=client,cache=mmap") < 0)
		return errno;
	done = 1;
	return 0;
}

/* Before the machine ends: QEMU is killed, and what the guest's kernel holds back goes with it. */
int rootfs_sync(const struct wire_message *frame, const char **why)
{
	char base[96];

	*why = "writing of the scratch device";
	if (frame->length)
		return EINVAL;
	if (!scratch_is_mounted)
		return 0;
	base_of(scratch_owner, base, sizeof base);
	int fd = open(base, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return errno;
	int error = syncfs(fd) < 0 ? errno : 0;
	close(fd);
	return error;
}

int rootfs_warms(const char *container)
{
	return !strcmp(container, warming);
}

void rootfs_remove(const char *container)
{
	char path[128];

	/* What was made for the first is made once: a container of the same name that comes again is one of many. */
	int was_first = *first && !strcmp(first, container);

	rootfs_path(container, path, sizeof path);
	umount2(path, MNT_DETACH);
	base_of(container, path, sizeof path);
	umount2(path, MNT_DETACH);
	if (*scratch_owner && !strcmp(scratch_owner, container))
		scratch_is_mounted = scratch_owner[0] = 0;
	if (rmdir(path) < 0 && errno != ENOENT)
		say("casemate: %s: %s", path, strerror(errno));
	if (was_first)
		early = first[0] = 0;
	/* The device gets other content after this; what was read of it goes with the mount. */
	if (rootfs_warms(container) && umount2("/layers/w", 0) < 0)
		say("casemate: /layers/w: %s", strerror(errno));
}
