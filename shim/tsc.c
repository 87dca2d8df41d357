#include <stdio.h>
#include <time.h>

#include "shim.h"

/* The rate of this cpu's time stamp counter in kHz, measured against the raw monotonic clock for 40 ms. An emulated
 * guest reads this very counter; told its rate, the guest's kernel need not find it out (and fail to, under load). */
int tsc_main(void)
{
	struct timespec before, now, pause = { .tv_nsec = 40000000 };

	clock_gettime(CLOCK_MONOTONIC_RAW, &before);
	uint64_t first = __builtin_ia32_rdtsc();
	nanosleep(&pause, NULL);
	clock_gettime(CLOCK_MONOTONIC_RAW, &now);
	uint64_t ticks = __builtin_ia32_rdtsc() - first;
	int64_t spent = (now.tv_sec - before.tv_sec) * 1000000000 + now.tv_nsec - before.tv_nsec;
	printf("%llu\n", (unsigned long long)(ticks * 1000000 / (uint64_t)spent));
	return 0;
}
