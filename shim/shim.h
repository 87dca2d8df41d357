/* casemate-vm: an OCI runtime's command line whose work is done by casemate-hostd, the process that stands for a
 * container towards its supervisor (the waiter), and the monitor of one micro-VM. */
#ifndef CASEMATE_SHIM_H
#define CASEMATE_SHIM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "../guest/wire/wire.h"

#define SHIM_VERSION "0.1.0"
#define OCI_VERSION "1.1.0"
#define DEFAULT_SOCKET "/run/casemate-hostd/vm.sock"

enum {
	MAX_PASSED = 4,
	REQUEST_TIMEOUT_S = 120,
};

/* Requests to hostd's socket: messages of wire.h; the tags' meaning is that of the name. */
enum shim_kind {
	ASK_CREATE = 100,
	ASK_START = 101,
	ASK_STATE = 102,
	ASK_KILL = 103,
	ASK_DELETE = 104,
	ASK_EXEC = 105,
	ASK_LIST = 106,
	ASK_PS = 107,
	ASK_PAUSE = 108,
	ASK_RESUME = 109,
	ASK_PREPARE = 120,
	ASK_EVENTS = 121,
	ASK_UPDATE = 122,
};

enum {
	ASK_FLAG_FORCE = 1,
	ASK_FLAG_ALL = 2,
	ASK_FLAG_TERMINAL = 4,
	ASK_FLAG_NO_NEW_PRIVS = 8,
	ASK_FLAG_IGNORE_PAUSED = 16,
};

enum { MAX_LIST = 256 };

struct options {
	const char *root, *log, *log_format, *socket, *bundle, *config, *console_socket, *pid_file, *process, *command, *id;
	const char *cwd, *format, *user, *resources, *interval;
	const char *env[MAX_LIST], *limits[MAX_LIST]; /* NAME=VALUE; names of our own for the limits of update */
	const char *groups[MAX_LIST], *caps[MAX_LIST];
	int env_count, limit_count, group_count, cap_count;
	int force, all, terminal, detach, stats, debug, keep, quiet, no_new_privs, ignore_paused;
	char **rest;
	int rest_count;
};

/* What hostd answered. The fields lead into one buffer, which the next question reuses. */
struct answer {
	int error;
	char text[MUX_MAX_CONTROL];
	char netns[4096];
	uint32_t flags, namespaces;
	const uint8_t *payload;
	size_t length;
};

/* log.c */
void log_to(const char *path, const char *format, int debug);
/* What die ends with: of an exec 255, which tells it from the program's own codes. */
extern int failure_code;
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* With --debug, a line of the log; to standard error without a log. */
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* flags.c */
void parse_flags(struct options *options, int argc, char **argv);

/* ask.c */
int ask_connect(const char *path);
/* Sends the message (and descriptors), and waits for the answer. */
const struct answer *ask(int fd, const struct wire_out *out, const int *fds, int count);
/* As ask, on a connection of its own; dies of an answer that is an error. */
const struct answer *must_ask(const struct options *options, const struct wire_out *out);
int send_fds(int socket, const void *bytes, size_t length, const int *fds, int count);
ssize_t receive_fds(int socket, void *bytes, size_t length, int *fds, int *count);

/* hooks.c: run the answer's hooks of `tag` in order, each with the state document of `pid` and `status` on standard input,
 * in the network namespace `netns` (-1: in ours). Returns 0, or the number of the hook that failed (from 1), with `why`
 * filled in. */
int hooks_run(const struct answer *answer, uint16_t tag, int netns, pid_t pid, const char *status, char *why, size_t size);

/* netns.c: enter what PREPARE named, and come back. -1: nowhere to come back to. */
int netns_enter(const char *name);
void netns_leave(int before);

/* process.c */
void begin_request(struct wire_out *out, const struct options *o, uint8_t kind);
void command_create(const struct options *o);
void command_start(const struct options *o);
void command_exec(const struct options *o);
void command_delete(const struct options *o);
void command_run(const struct options *o);

/* report.c */
void command_features(const struct options *o);
void command_spec(const struct options *o);
void command_events(const struct options *o);
void command_update(const struct options *o);
char *read_file(const char *path, size_t most);

/* waiter.c */
struct stdio {
	int fds[MAX_PASSED]; /* what goes to hostd: stdin, stdout, stderr (or a terminal once), and the exit socket */
	int count;
	int exit_socket; /* the waiter's end */
	int terminal;    /* the waiter's controlling terminal, or -1 */
	pid_t relay;     /* who copies to and from it; 0: nobody */
};

/* relay.c */
int relay_is_needed(void);
pid_t relay_fork(int master, int slave);

void stdio_open(struct stdio *stdio, const struct options *options, int terminal);
/* Forks the process that ends with the container's exit code; returns its pid. `alone`: it sees no process but itself, and is
 * in new `namespaces` (flags of clone(2)), which stand on the host for those that the container has in its guest. */
pid_t waiter_fork(const struct stdio *stdio, int alone, uint32_t namespaces);
/* No capability, and none to be had again. */
void drop_privileges(void);
_Noreturn void waiter_run(const struct stdio *stdio);

/* cgroup.c */
/* Join the cgroup at `folder` now (version 1), or when QEMU is cloned (version 2). Dies of what fails. */
void cgroup_join(const char *folder);
/* As fork(2), with new namespaces by `flags`, in the cgroups that were joined. */
pid_t cgroup_clone(unsigned long flags);
/* In the parent, afterwards. */
void cgroup_follow(pid_t qemu);

/* monitor.c */
int monitor_main(int argc, char **argv);

/* runsc.c */
_Noreturn void runsc_main(char **argv);

/* stdio.c */
_Noreturn void stdio_main(char **argv);

/* resolver.c: the words from the pid on */
int resolver_main(char **argv);

/* tsc.c */
int tsc_main(void);

/* jail.c */
enum { MAX_MAP_ROWS = 16 };

struct id_row {
	unsigned inside, outside, count;
};

/* The ids of a user namespace; empty: QEMU gets none of its own, and can be given no folder. */
struct id_map {
	struct id_row rows[MAX_MAP_ROWS];
	int count;
};

struct jail {
	uid_t uid;
	gid_t gid;
	struct id_map uid_map, gid_map;
	unsigned inner_uid, inner_gid; /* the same two inside */
	int maps;                      /* the child's end of the socket by which it waits for its maps */
	const char *root; /* an empty folder that becomes the new root; NULL: no change of root */
	int writes_files; /* a template is written */
	int kvm;          /* the root holds /dev/kvm, the machine's own */
};

/* In the child that becomes QEMU: 0, or the step that failed (errno says why). */
const char *jail_enter(const struct jail *jail);
/* Adds "INSIDE:OUTSIDE:COUNT"; -1 when it is none. */
int jail_add_map(struct id_map *map, const char *text);
/* Fills in the ids inside; -1 when the maps do not hold the machine's own. */
int jail_inner(struct jail *jail);
/* In the parent, before it drops anything: writes the child's maps. NULL, or the step that failed. */
const char *jail_map(const struct jail *jail, pid_t child, int maps);
/* grace.c */
void spare_registration(char **argv);
void spare_larger_table(void);
void spare_first_change(void);
/* seccomp.c */
int seccomp_enter(void);
/* seccomp_monitor.c */
int seccomp_enter_monitor(pid_t qemu);
/* In the monitor itself, once QEMU runs: no privilege, and few system calls. */
const char *jail_drop(const struct jail *jail, pid_t qemu);

#endif
