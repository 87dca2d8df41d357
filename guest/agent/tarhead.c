/* Headers of a tar from standard input: ustar, pax, and GNU's long names. What comes is hostile. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tar.h"

void tar_read(void *bytes, size_t length)
{
	size_t used = 0;

	while (used < length) {
		ssize_t got = read(STDIN_FILENO, (char *)bytes + used, length - used);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			files_fail("refused: the input ends in the middle of an entry");
		used += (size_t)got;
	}
}

void tar_skip(uint64_t size)
{
	static char data[65536];
	uint64_t left = (size + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK;

	while (left) {
		size_t part = left < sizeof data ? (size_t)left : sizeof data;
		tar_read(data, part);
		left -= part;
	}
}

static uint64_t number(const unsigned char *field, size_t size)
{
	uint64_t value = 0;

	if (field[0] & 0x80) {
		/* GNU's form for large values: big endian, of which 63 bits are taken. */
		for (size_t i = size > 8 ? size - 8 : 1; i < size; i++)
			value = value << 8 | field[i];
		return value & INT64_MAX;
	}
	for (size_t i = 0; i < size && field[i] && field[i] != ' '; i++) {
		if (field[i] < '0' || field[i] > '7')
			files_fail("refused: a number in a header is no number");
		value = value << 3 | (uint64_t)(field[i] - '0');
	}
	return value;
}

static void text(char *into, size_t room, const char *bytes, size_t length)
{
	size_t used = strnlen(bytes, length);

	if (used >= room)
		files_fail("refused: a name has more than %zu bytes", room - 1);
	memcpy(into, bytes, used);
	into[used] = 0;
}

static void keep_attribute(struct tar_entry *e, const char *key, size_t key_length, const char *value, size_t length)
{
	uint32_t size = (uint32_t)length;

	/* A key with an end in its middle would be read as a shorter one, and what follows as the value's length. */
	if (memchr(key, 0, key_length))
		files_fail("refused: a pax header is not valid");
	if (key_length > 255 || e->xattrs_length + key_length + 1 + sizeof size + length > sizeof e->xattrs)
		return;
	memcpy(e->xattrs + e->xattrs_length, key, key_length);
	e->xattrs_length += key_length;
	e->xattrs[e->xattrs_length++] = 0;
	memcpy(e->xattrs + e->xattrs_length, &size, sizeof size);
	memcpy(e->xattrs + e->xattrs_length + sizeof size, value, length);
	e->xattrs_length += sizeof size + length;
}

/* "length key=value\n" records: path, linkpath, size and extended attributes count; the rest is passed over. */
static void records(struct tar_entry *e, const char *data, size_t size, uint64_t *own_size)
{
	static const char prefix[] = "SCHILY.xattr.";

	while (size) {
		char *end;
		unsigned long length = strtoul(data, &end, 10);
		if (*end != ' ' || length > size || length < (size_t)(end - data) + 4 || data[length - 1] != '\n')
			files_fail("refused: a pax header is not valid");
		const char *key = end + 1, *equals = memchr(key, '=', length - (size_t)(key - data));
		if (!equals)
			files_fail("refused: a pax header is not valid");
		const char *value = equals + 1;
		size_t key_length = (size_t)(equals - key), value_length = length - 1 - (size_t)(value - data);
		if (key_length == 4 && !memcmp(key, "path", 4))
			text(e->name, sizeof e->name, value, value_length);
		else if (key_length == 8 && !memcmp(key, "linkpath", 8))
			text(e->link, sizeof e->link, value, value_length);
		else if (key_length == 4 && !memcmp(key, "size", 4))
			*own_size = strtoull(value, NULL, 10) & INT64_MAX;
		else if (key_length > sizeof prefix && !memcmp(key, prefix, sizeof prefix - 1))
			keep_attribute(e, key + sizeof prefix - 1, key_length - (sizeof prefix - 1), value, value_length);
		data += length;
		size -= length;
	}
}

static int is_end(const unsigned char *block)
{
	for (int i = 0; i < TAR_BLOCK; i++)
		if (block[i])
			return 0;
	return 1;
}

static void check_sum(const unsigned char *block)
{
	unsigned sum = 0;

	for (int i = 0; i < TAR_BLOCK; i++)
		sum += i >= 148 && i < 156 ? ' ' : block[i];
	if (sum != number(block + 148, 8))
		files_fail("refused: the input holds no tar, or a damaged one");
}

int tar_next(struct tar_entry *e)
{
	static char extra[65536 + 1];
	unsigned char block[TAR_BLOCK];
	uint64_t own_size = UINT64_MAX;
	char name[TAR_NAME], prefix[160];

	e->name[0] = e->link[0] = 0;
	e->xattrs_length = 0;
	for (;;) {
		tar_read(block, sizeof block);
		if (is_end(block))
			return 0;
		check_sum(block);
		e->type = block[156] ? (char)block[156] : '0';
		e->size = number(block + 124, 12);
		if (!strchr("xgLK", e->type))
			break;
		if (e->size > sizeof extra - 1)
			files_fail("refused: an extended header has more than 65536 bytes");
		size_t size = (size_t)e->size;
		tar_read(extra, (size + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK);
		extra[size] = 0;
		if (e->type == 'x')
			records(e, extra, size, &own_size);
		else if (e->type == 'L')
			text(e->name, sizeof e->name, extra, size);
		else if (e->type == 'K')
			text(e->link, sizeof e->link, extra, size);
	}
	if (own_size != UINT64_MAX)
		e->size = own_size;
	e->mode = (unsigned)number(block + 100, 8) & 07777;
	e->uid = (unsigned)number(block + 108, 8);
	e->gid = (unsigned)number(block + 116, 8);
	e->mtime = (int64_t)number(block + 136, 12);
	e->major = (unsigned)number(block + 329, 8);
	e->minor = (unsigned)number(block + 337, 8);
	if (!e->link[0])
		text(e->link, sizeof e->link, (const char *)block + 157, 100);
	if (!e->name[0]) {
		text(name, sizeof name, (const char *)block, 100);
		text(prefix, sizeof prefix, (const char *)block + 345, memcmp(block + 257, "ustar\0", 6) ? 0 : 155);
		if (*prefix) {
			memcpy(e->name, prefix, strlen(prefix));
			e->name[strlen(prefix)] = '/';
			memcpy(e->name + strlen(prefix) + 1, name, strlen(name) + 1);
		} else {
			memcpy(e->name, name, strlen(name) + 1);
		}
	}
	return 1;
}
