/* Tars to and from a container's files (ustar with pax headers), and the work of a child that handles them. */
#ifndef CASEMATE_TAR_H
#define CASEMATE_TAR_H

#include <stddef.h>
#include <stdint.h>

enum { TAR_BLOCK = 512, TAR_NAME = 4096, TAR_DEPTH = 500, TAR_ENTRIES = 2000000 };

/* What a child is to do; the value stands in the request. */
enum files_work {
	FILES_ARCHIVE = 'A', /* a path as the container sees it */
	FILES_EXTRACT = 'E', /* below a path, likewise */
	FILES_EXPORT = 'X',  /* the whole root alone */
	FILES_DIFF = 'D',    /* what the container changed */
	FILES_SAVE = 'S',    /* the writable layer as it is */
	FILES_RESTORE = 'R',
	FILES_NAMES = 'N', /* no files: questions to an engine's resolver (resolver.c) */
};

/* Ends the child with words on its standard error. "missing" and "refused" begin those that are the asker's fault. */
_Noreturn void files_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
void write_all(const void *bytes, size_t length);

/* One member as its header tells it. */
struct tar_entry {
	char name[TAR_NAME], link[TAR_NAME];
	char type;
	unsigned mode, uid, gid, major, minor;
	uint64_t size;
	int64_t mtime;
	char xattrs[8192]; /* "name\0length(u32 in native order)value" repeated */
	size_t xattrs_length;
};

/* archive.c: `path`'s tar to standard output; the names begin with `shown`, or are those below it when that is "". */
void tar_archive(const char *parent, const char *name, const char *shown, int raw);
/* unpack.c: the tar at standard input below the folder `base`. `raw`: whiteouts and marks of overlayfs are kept. */
void tar_unpack(int base, int keep_folders, int raw);
/* tarhead.c: parses the next header; 1, or 0 at the end. `data` reads bytes of the stream. */
int tar_next(struct tar_entry *entry);
void tar_read(void *bytes, size_t length);
void tar_skip(uint64_t size);

#endif
