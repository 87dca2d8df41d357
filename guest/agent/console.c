#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "agent.h"

/* A line on the guest's console, whose tail the host shows with an error. */
void say(const char *format, ...)
{
	char line[512];
	va_list list;

	va_start(list, format);
	int length = vsnprintf(line, sizeof line - 1, format, list);
	va_end(list);
	if (length < 0)
		return;
	if ((size_t)length > sizeof line - 2)
		length = (int)sizeof line - 2;
	line[length++] = '\n';
	if (write(2, line, (size_t)length) < 0)
		return;
}
