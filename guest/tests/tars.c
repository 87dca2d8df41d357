/* The reader of tars (tarhead.c, unpack.c) under the sanitizers: as a libFuzzer target (make fuzz-tars), and with a main of
 * its own that feeds it mutated right tars (make check). Each input is unpacked for real, below a folder that is emptied
 * again; what stands beside that folder must not change. The first byte of an input says how it is unpacked. */
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "../agent/tar.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#ifdef FUZZER
enum { LONGEST = 8192 };
#else
enum { LONGEST = 64 }; /* of the right tars' attributes */
#endif

static jmp_buf refused;
static char top[] = "/tmp/casemate-tars-XXXXXX", base[64], beside[64];
static int input = -1;

void files_fail(const char *format, ...)
{
	if (!format || !*format)
		abort();
	longjmp(refused, 1);
}

static void check(int holds, const char *what)
{
	if (!holds) {
		fprintf(stderr, "broken: %s\n", what);
		abort();
	}
}

static int take_away(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
	(void)status, (void)kind;
	if (walk->level)
		remove(path);
	return 0;
}

/* What is put into an attribute is what the tar said, and so no longer than the tar. */
static size_t input_size;

static int look(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
	char value[8192];

	(void)status, (void)walk;
	if (kind == FTW_F || kind == FTW_D || kind == FTW_DP) {
		ssize_t length = lgetxattr(path, "user.a", value, sizeof value);
		check(length < 0 || (size_t)length <= input_size, "an attribute within its input");
	}
	return 0;
}

static void clean_up(void)
{
	nftw(base, take_away, 16, FTW_DEPTH | FTW_PHYS);
	unlink(beside);
	rmdir(base);
	rmdir(top);
}

static void begin(void)
{
	if (input >= 0)
		return;
	check(mkdtemp(top) != NULL, "a folder");
	snprintf(base, sizeof base, "%s/base", top);
	snprintf(beside, sizeof beside, "%s/beside", top);
	check(mkdir(base, 0755) == 0, "the base");
	int fd = open(beside, O_WRONLY | O_CREAT, 0600);
	check(fd >= 0 && write(fd, "beside", 6) == 6, "what stands beside");
	close(fd);
	input = memfd_create("input", 0);
	atexit(clean_up);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct stat status;

	begin();
	input_size = size < LONGEST ? size : LONGEST;
	if (!size)
		return 0;
	check(ftruncate(input, 0) == 0 && pwrite(input, data + 1, size - 1, 0) == (ssize_t)(size - 1), "the input");
	lseek(input, 0, SEEK_SET);
	dup2(input, STDIN_FILENO);
	int folder = open(base, O_RDONLY | O_DIRECTORY);
	if (!setjmp(refused))
		tar_unpack(folder, data[0] & 1, data[0] >> 1 & 1);
	close_range((unsigned)input + 1, ~0U, 0);
	nftw(base, look, 16, FTW_DEPTH | FTW_PHYS);
	nftw(base, take_away, 16, FTW_DEPTH | FTW_PHYS);
	check(stat(beside, &status) == 0 && status.st_size == 6 && status.st_nlink == 1 && S_ISREG(status.st_mode),
		"what stands beside is as it was");
	check(stat(top, &status) == 0 && status.st_nlink == 3, "nothing else stands beside");
	return 0;
}

/* Headers whose sums are right: nothing is learned of what a wrong sum stops. */
static void put_sums_right(uint8_t *data, size_t size)
{
	for (size_t at = 1; at + TAR_BLOCK <= size; at += TAR_BLOCK) {
		uint8_t *block = data + at;
		unsigned sum = 0;
		if (memcmp(block + 257, "ustar", 5))
			continue;
		for (int i = 0; i < TAR_BLOCK; i++)
			sum += i >= 148 && i < 156 ? ' ' : block[i];
		snprintf((char *)block + 148, 8, "%06o", sum & 0777777);
		block[155] = ' ';
	}
}

#ifdef FUZZER
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
{
	size = LLVMFuzzerMutate(data, size, most);
	if (seed % 8)
		put_sums_right(data, size);
	return size;
}
#else
static uint32_t state = 2463534242;

static uint32_t draw(void)
{
	state ^= state << 13;
	state ^= state >> 17;
	state ^= state << 5;
	return state;
}

static size_t member(uint8_t *at, char type, const char *name, const char *link, const void *bytes, size_t length)
{
	memset(at, 0, TAR_BLOCK);
	snprintf((char *)at, 100, "%s", name);
	snprintf((char *)at + 100, 8, "%07o", 0644);
	snprintf((char *)at + 108, 8, "%07o", 0);
	snprintf((char *)at + 116, 8, "%07o", 0);
	snprintf((char *)at + 124, 12, "%011o", (unsigned)length);
	snprintf((char *)at + 136, 12, "%011o", 0);
	at[156] = (uint8_t)type;
	snprintf((char *)at + 157, 100, "%s", link);
	memcpy(at + 257, "ustar\0" "00", 8);
	size_t padded = (length + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK;
	memset(at + TAR_BLOCK, 0, padded);
	memcpy(at + TAR_BLOCK, bytes, length);
	return TAR_BLOCK + padded;
}

/* Few names, so that entries meet each other. */
static size_t right_tar(uint8_t *bytes)
{
	static const char *const names[] = { "a", "a/b", "a/b/c", "b", "../beside", "/b", "a/../../beside", "./a/./b", "a/",
		"." };
	static const char types[] = "001233456xxLKg";
	static const char *const headers[] = { "18 path=../beside\n", "12 path=a/b\n", "16 linkpath=a/b\n",
		"13 size=9999\n", "30 SCHILY.xattr.user.a=0123456\n", "30 SCHILY.xattr.user.a\0" "\x00\x08\0\0=v\n", /* 2048 bytes of what lies behind */

		"99 path=short\n", "0 x=\n", "12 path=a\0b\n" };
	static const size_t lengths[] = { 18, 12, 16, 13, 31, 30, 14, 5, 12 };
	size_t used = 1;

	bytes[0] = (uint8_t)draw();
	for (uint32_t i = 1 + draw() % 6; i; i--) {
		char type = types[draw() % (sizeof types - 1)];
		uint32_t which = draw() % (sizeof headers / sizeof *headers);
		const char *name = names[draw() % (sizeof names / sizeof *names)];
		const char *link = names[draw() % (sizeof names / sizeof *names)];
		int extended = strchr("xg", type) != NULL;
		const void *content = extended ? headers[which] : name;
		size_t length = extended ? lengths[which] : strchr("0LK", type) ? strlen(name) : 0;
		used += member(bytes + used, type, name, link, content, length);
	}
	memset(bytes + used, 0, 2 * TAR_BLOCK);
	return used + 2 * TAR_BLOCK;
}

/* The files that are named: what a fuzzer has found, or begins with. */
int main(int argc, char **argv)
{
	static uint8_t bytes[65536];

	for (int i = 1; i < argc; i++) {
		int fd = open(argv[i], O_RDONLY);
		ssize_t size = fd < 0 ? -1 : read(fd, bytes, sizeof bytes);
		check(size > 0, argv[i]);
		close(fd);
		LLVMFuzzerTestOneInput(bytes, (size_t)size);
	}
	for (int round = 0; round < 6000; round++) {
		size_t size = right_tar(bytes);
		put_sums_right(bytes, size);
		for (uint32_t i = draw() % 4; i; i--)
			bytes[draw() % size] = (uint8_t)draw();
		if (draw() % 4)
			put_sums_right(bytes, size);
		if (draw() % 8 == 0)
			size = draw() % size;
		LLVMFuzzerTestOneInput(bytes, size);
	}
	puts("6000 tars");
	return 0;
}
#endif
