/* Rules for devices, as the program that the kernel asks. No state, no system call but in devices_set. */
#ifndef CASEMATE_DEVICES_H
#define CASEMATE_DEVICES_H

#include <stddef.h>
#include <stdint.h>

enum {
	/* linux/bpf.h, BPF_DEVCG_ACC_* */
	DEVICE_MAKE = 1,
	DEVICE_READ = 2,
	DEVICE_WRITE = 4,
	DEVICE_ALL = 7,
	ANY = -1,
	MAX_DEVICE_RULES = 128,
	MAX_DEVICE_PROGRAM = 1500, /* 12 rules of ours and 128 of a bundle's, 10 instructions each at most, and both ends */
};

/* allow or deny; 'c', 'b', or 'a' for both; a set of DEVICE_*; numbers, or ANY. */
struct device_rule {
	uint8_t allow;
	char type;
	uint8_t access;
	int32_t major, minor;
};

struct bpf_insn;

/* The program of what every container may and then of `rules`, of which later ones override earlier ones. The number of its
 * instructions; 0 for too many rules. `code` has room for MAX_DEVICE_PROGRAM. */
size_t devices_program(const struct device_rule *rules, size_t count, struct bpf_insn *code);

/* Sets that program for the control group behind the descriptor; 0 or an errno. */
int devices_set(int cgroup, const struct device_rule *rules, size_t count);

#endif
