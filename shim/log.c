#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

static int log_fd = -1, log_json;

void log_to(const char *path, const char *format)
{
	if (path)
		log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	log_json = format && !strcmp(format, "json");
}

/* The supervisors read the last line of the log as the reason of a failure, in the form that runc writes. */
_Noreturn void die(const char *format, ...)
{
	char words[1024], line[2600], when[40], quoted[2100];
	va_list list;
	size_t used = 0;
	time_t now = time(NULL);

	va_start(list, format);
	vsnprintf(words, sizeof words, format, list);
	va_end(list);
	strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
	for (const char *c = words; *c && used < sizeof quoted - 3; c++) {
		if (*c == '"' || *c == '\\')
			quoted[used++] = '\\';
		quoted[used++] = (unsigned char)*c < ' ' ? ' ' : *c;
	}
	quoted[used] = 0;
	int length = snprintf(line, sizeof line,
		log_json ? "{\"level\":\"error\",\"msg\":\"%s\",\"time\":\"%s\"}\n" : "level=error msg=\"%s\" time=\"%s\"\n",
		quoted, when);
	if (log_fd >= 0 && write(log_fd, line, (size_t)length) < 0)
		log_fd = -1;
	fprintf(stderr, "casemate-vm: %s\n", words);
	exit(1);
}
