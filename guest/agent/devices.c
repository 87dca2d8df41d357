/* What a container may open and make of devices: a program of the kernel's for its control group (BPF_CGROUP_DEVICE).
 *
 * The pod's group has one of the rules that every runtime gives, from the template on: a start pays nothing for it. Only a
 * container whose bundle says otherwise gets one of its own in the place of the pod's.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "devices.h"

/* What runc and crun add to the rules of every bundle; the word of a bundle against them does not count there either. */
static const struct device_rule usual[] = {
	{ 1, 'c', DEVICE_MAKE, ANY, ANY }, { 1, 'b', DEVICE_MAKE, ANY, ANY },
	{ 1, 'c', DEVICE_ALL, 1, 3 },   /* null */
	{ 1, 'c', DEVICE_ALL, 1, 5 },   /* zero */
	{ 1, 'c', DEVICE_ALL, 1, 7 },   /* full */
	{ 1, 'c', DEVICE_ALL, 1, 8 },   /* random */
	{ 1, 'c', DEVICE_ALL, 1, 9 },   /* urandom */
	{ 1, 'c', DEVICE_ALL, 5, 0 },   /* tty */
	{ 1, 'c', DEVICE_ALL, 5, 1 },   /* console */
	{ 1, 'c', DEVICE_ALL, 5, 2 },   /* ptmx */
	{ 1, 'c', DEVICE_ALL, 136, ANY }, /* pts */
	{ 1, 'c', DEVICE_ALL, 10, 200 }, /* net/tun */
};

/* type, major and minor as the kernel gives them; the kinds of access that no rule has decided yet; one of them. */
enum { TYPE = BPF_REG_2, MAJOR = BPF_REG_4, MINOR = BPF_REG_5, LEFT = BPF_REG_3, SOME = BPF_REG_1 };

struct program {
	struct bpf_insn *code;
	size_t length;
};

static void put(struct program *p, uint8_t code, uint8_t to, uint8_t from, int16_t offset, int32_t value)
{
	struct bpf_insn *one = &p->code[p->length++];

	*one = (struct bpf_insn){ .code = code, .off = offset, .imm = value };
	one->dst_reg = (uint8_t)(to & 15);
	one->src_reg = (uint8_t)(from & 15);
}

static void put_return(struct program *p, int32_t value)
{
	put(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, value);
	put(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}

/* Takes the rule's kinds of access from those that are left, where the device is the rule's. At most RULE_LENGTH. */
static void put_rule(struct program *p, const struct device_rule *rule)
{
	size_t jumps[3], count = 0;

	const struct { int wanted; uint8_t of; int32_t value; } tests[] = {
		{ rule->type != 'a', TYPE, rule->type == 'b' ? BPF_DEVCG_DEV_BLOCK : BPF_DEVCG_DEV_CHAR },
		{ rule->major != ANY, MAJOR, rule->major }, { rule->minor != ANY, MINOR, rule->minor } };
	for (size_t i = 0; i < 3; i++) {
		if (!tests[i].wanted)
			continue;
		jumps[count++] = p->length;
		put(p, BPF_JMP32 | BPF_JNE | BPF_K, tests[i].of, 0, 0, tests[i].value);
	}
	if (rule->allow) {
		put(p, BPF_ALU | BPF_AND | BPF_K, LEFT, 0, 0, DEVICE_ALL & ~rule->access);
		put(p, BPF_JMP32 | BPF_JNE | BPF_K, LEFT, 0, 2, 0);
		put_return(p, 1);
	} else {
		put(p, BPF_ALU | BPF_MOV | BPF_X, SOME, LEFT, 0, 0);
		put(p, BPF_ALU | BPF_AND | BPF_K, SOME, 0, 0, rule->access);
		put(p, BPF_JMP32 | BPF_JEQ | BPF_K, SOME, 0, 2, 0);
		put_return(p, 0);
	}
	for (size_t i = 0; i < count; i++)
		p->code[jumps[i]].off = (int16_t)(p->length - jumps[i] - 1);
}

/* The last rule that is of a device and a kind of access decides; what none decides is denied. */
size_t devices_program(const struct device_rule *rules, size_t count, struct bpf_insn *code)
{
	struct program p = { code, 0 };

	if (count > MAX_DEVICE_RULES)
		return 0;
	/* struct bpf_cgroup_dev_ctx: access << 16 | type, major, minor */
	put(&p, BPF_LDX | BPF_MEM | BPF_W, TYPE, BPF_REG_1, 0, 0);
	put(&p, BPF_ALU | BPF_MOV | BPF_X, LEFT, TYPE, 0, 0);
	put(&p, BPF_ALU | BPF_AND | BPF_K, TYPE, 0, 0, 0xffff);
	put(&p, BPF_ALU | BPF_RSH | BPF_K, LEFT, 0, 0, 16);
	put(&p, BPF_LDX | BPF_MEM | BPF_W, MAJOR, BPF_REG_1, 4, 0);
	put(&p, BPF_LDX | BPF_MEM | BPF_W, MINOR, BPF_REG_1, 8, 0);
	for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
		put_rule(&p, &usual[i]);
	for (size_t i = count; i > 0; i--)
		put_rule(&p, &rules[i - 1]);
	/* A look that asks for no kind of access is nobody's to deny. */
	put(&p, BPF_JMP32 | BPF_JNE | BPF_K, LEFT, 0, 2, 0);
	put_return(&p, 1);
	put_return(&p, 0);
	return p.length;
}

int devices_set(int cgroup, const struct device_rule *rules, size_t count)
{
	static struct bpf_insn code[MAX_DEVICE_PROGRAM];
	size_t length = devices_program(rules, count, code);
	union bpf_attr load = { .prog_type = BPF_PROG_TYPE_CGROUP_DEVICE, .insns = (uint64_t)(uintptr_t)code,
		.insn_cnt = (uint32_t)length, .license = (uint64_t)(uintptr_t) "Apache-2.0" };

	if (!length)
		return E2BIG;
	int program = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load);
	if (program < 0)
		return errno;
	/* A group below may have another in its place, and the next for this one replaces it. */
	union bpf_attr attach = { .target_fd = (uint32_t)cgroup, .attach_bpf_fd = (uint32_t)program,
		.attach_type = BPF_CGROUP_DEVICE, .attach_flags = BPF_F_ALLOW_OVERRIDE };
	int error = syscall(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof attach) < 0 ? errno : 0;
	close(program);
	return error;
}
