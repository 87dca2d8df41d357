#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

int failure_code = 1;
static int log_fd = -1, log_json, log_debug;

void log_to(const char *path, const char *format, int debug)
{
	log_json = format && !strcmp(format, "json");
	log_debug = debug;
	if (!path)
		return;
	log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (log_fd < 0)
		die("--log %s: %s", path, strerror(errno));
}

/* One line in the form that runc writes. */
static void write_line(int fd, const char *level, const char *words)
{
	char line[2600], when[40], quoted[2100];
	size_t used = 0;
	time_t now = time(NULL);

	strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
	for (const char *c = words; *c && used < sizeof quoted - 3; c++) {
		if (*c == '"' || *c == '\\')
			quoted[used++] = '\\';
		quoted[used++] = (unsigned char)*c < ' ' ? ' ' : *c;
	}
	quoted[used] = 0;
	int length = snprintf(line, sizeof line,
		log_json ? "{\"level\":\"%s\",\"msg\":\"%s\",\"time\":\"%s\"}\n" : "level=%s msg=\"%s\" time=\"%s\"\n", level,
		quoted, when);
	if (write(fd, line, (size_t)length) < 0)
		log_fd = -1;
}

void note(const char *format, ...)
{
	char words[1024];
	va_list list;

	if (!log_debug)
		return;
	va_start(list, format);
	vsnprintf(words, sizeof words, format, list);
	va_end(list);
	write_line(log_fd >= 0 ? log_fd : 2, "debug", words);
}

/* The supervisors read the last line of the log as the reason of a failure. */
_Noreturn void die(const char *format, ...)
{
	char words[1024];
	va_list list;

	va_start(list, format);
	vsnprintf(words, sizeof words, format, list);
	va_end(list);
	if (log_fd >= 0)
		write_line(log_fd, "error", words);
	fprintf(stderr, "casemate-vm: %s\n", words);
	exit(failure_code);
}
