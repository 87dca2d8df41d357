/* What a process may do: set in the order in which each step still has the right to. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"

enum { BOUNDING, EFFECTIVE, INHERITABLE, PERMITTED, AMBIENT };

static int set_rlimits(const struct request *r)
{
	for (size_t i = 0; i < r->rlimit_count; i++) {
		struct rlimit limit = { r->rlimits[i].soft, r->rlimits[i].hard };
		if (setrlimit((__rlimit_resource_t)r->rlimits[i].resource, &limit) < 0)
			return errno;
	}
	return 0;
}

static int drop_bounding(uint64_t keep)
{
	for (int capability = 0; capability < 64; capability++) {
		if (keep >> capability & 1)
			continue;
		if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0) {
			if (errno == EINVAL)
				return 0; /* beyond the last capability that this kernel knows */
			return errno;
		}
	}
	return 0;
}

static int set_capabilities(const uint64_t *sets)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	for (int i = 0; i < 2; i++)
		data[i] = (struct __user_cap_data_struct){ .effective = (uint32_t)(sets[EFFECTIVE] >> (32 * i)),
			.permitted = (uint32_t)(sets[PERMITTED] >> (32 * i)),
			.inheritable = (uint32_t)(sets[INHERITABLE] >> (32 * i)) };
	if (syscall(SYS_capset, &head, data) < 0)
		return errno;
	for (int capability = 0; capability < 64; capability++)
		if (sets[AMBIENT] >> capability & 1 &&
		    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) < 0)
			return errno;
	return 0;
}

static int set_seccomp(const struct request *r)
{
	struct sock_fprog program = { .len = (unsigned short)(r->seccomp_length / sizeof(struct sock_filter)),
		.filter = (struct sock_filter *)(uintptr_t)r->seccomp };

	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, r->seccomp_flags, &program) < 0 ? errno : 0;
}

static int set_oom_adj(int value)
{
	char text[16];
	int length = snprintf(text, sizeof text, "%d", value);

	return write_file("/proc/self/oom_score_adj", text, (size_t)length);
}

/* The structure of sched_setattr(2) in its first form, which every kernel takes. */
static int set_scheduler(const struct scheduler_request *s)
{
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t priority;
		uint64_t runtime, deadline, period;
	} wanted = { sizeof wanted, s->policy, s->flags, s->nice, s->priority, s->runtime, s->deadline, s->period };

	return syscall(SYS_sched_setattr, 0, &wanted, 0) < 0 ? errno : 0;
}

/* How it is scheduled, its input and output, and what machine it believes to be on. */
static int set_execution(const struct request *r, const char **why)
{
	*why = "scheduler";
	int error = r->has_scheduler ? set_scheduler(&r->scheduler) : 0;
	if (error)
		return error;
	*why = "ioPriority";
	if (r->io_priority && syscall(SYS_ioprio_set, 1 /* IOPRIO_WHO_PROCESS */, 0, r->io_priority) < 0)
		return errno;
	*why = "personality";
	return r->personality && personality(r->personality) < 0 ? errno : 0;
}

int identity_apply(const struct request *r, const char **why)
{
	int error = set_execution(r, why);

	if (error)
		return error;
	*why = "rlimits";
	if ((error = set_rlimits(r)))
		return error;
	*why = "oom_score_adj";
	if (r->has_oom_adj && (error = set_oom_adj(r->oom_adj)))
		return error;
	/* Without no_new_privs a filter needs CAP_SYS_ADMIN, which the steps below take away. */
	*why = "seccomp";
	if (r->seccomp && !(r->flags & FLAG_NO_NEW_PRIVS) && (error = set_seccomp(r)))
		return error;
	*why = "capability bounding set";
	if (r->has_capabilities && (error = drop_bounding(r->capabilities[BOUNDING])))
		return error;
	*why = "groups";
	if (setgroups(r->group_count, r->groups) < 0 || setresgid(r->gid, r->gid, r->gid) < 0)
		return errno;
	/* Kept over the change of user; capset then sets exactly what is asked. */
	*why = "user";
	if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0 || setresuid(r->uid, r->uid, r->uid) < 0)
		return errno;
	*why = "working directory";
	if (chdir(r->cwd) < 0)
		return errno;
	*why = "capabilities";
	if (r->has_capabilities && (error = set_capabilities(r->capabilities)))
		return error;
	prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0);
	umask(r->umask);
	*why = "no_new_privs";
	if (r->flags & FLAG_NO_NEW_PRIVS && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return errno;
	*why = "seccomp";
	if (r->seccomp && r->flags & FLAG_NO_NEW_PRIVS && (error = set_seccomp(r)))
		return error;
	return 0;
}
