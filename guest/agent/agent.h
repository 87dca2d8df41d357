/* The guest's init: one process, one loop, no allocation after boot.
 *
 * The host is trusted (it owns the machine), yet each frame is bounded and checked: a bug on the host must not become
 * a crash here. The processes of the containers are not trusted: they share no descriptor with the agent but pipes.
 */
#ifndef CASEMATE_AGENT_H
#define CASEMATE_AGENT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "../wire/wire.h"
#include "devices.h"

enum {
	AGENT_VERSION = 1,
	MAX_STREAMS = 64,    /* processes with standard files */
	MAX_CONTAINERS = 32, /* in one pod */
	MAX_PROCESSES = 64,  /* first processes and execs */
	MAX_STRINGS = 8192,
	MAX_MOUNTS = 512,
	MAX_DEVICES = 1024,  /* an engine passes all of its host's to a container with every privilege */
	ID_BYTES = 65,
	SETUP_TIMEOUT_MS = 20000,
	MAX_START_HOOKS = 16,
	MAX_HOOK_WORDS = 512,
	MAX_HOOKS_SECONDS = 15, /* of all of them: the agent waits for them, and for no longer than SETUP_TIMEOUT_MS */
	/* One request's strings, each with its end: a message at its largest, and an end for each field. */
	REQUEST_ARENA = MUX_MAX_CONTROL + MAX_FIELDS + 64,
};

/* What CREATE and EXEC ask for; every pointer leads into one arena that the next request reuses. */
struct mount_request {
	const char *target, *type, *source, *data;
	uint64_t flags;
};

struct device_request {
	const char *path;
	uint32_t mode, major, minor, uid, gid;
};

struct file_request {
	const char *path;
	const uint8_t *bytes;
	size_t length;
	uint32_t mode;
};

struct rlimit_request {
	uint32_t resource;
	uint64_t soft, hard;
};

struct limit_request {
	const char *file, *value;
};

/* A program of the image's that runs before the container's own (OCI "startContainer"). */
struct hook_request {
	uint32_t seconds;
	const char *path;
	const char **args, **env; /* each ends with NULL */
};

struct scheduler_request {
	uint32_t policy, priority;
	int32_t nice;
	uint64_t flags, runtime, deadline, period; /* nanoseconds */
};

struct request {
	char container[ID_BYTES], process[ID_BYTES], root[128]; /* the container's root, as the agent names it */
	char join_pids[ID_BYTES];
	uint32_t channel, flags, namespaces, uid, gid, umask, signal, seccomp_flags, propagation;
	uint16_t rows, columns;
	int has_capabilities, has_oom_adj, oom_adj, has_scheduler;
	uint32_t io_priority, personality; /* 0: as they are */
	struct scheduler_request scheduler;
	uint64_t capabilities[5]; /* bounding, effective, inheritable, permitted, ambient */
	const char *cwd, *hostname, *copying; /* copying: FILES' work and path (tar.h) */
	const char *state;                    /* for the hooks */
	const uint8_t *seccomp;
	size_t seccomp_length, arg_count, env_count, group_count, rlimit_count, mount_count, masked_count;
	size_t read_only_count, sysctl_count, device_count, file_count, limit_count, hook_count, hook_word_count;
	size_t device_rule_count;
	int is_lonely; /* the agent's own word: the machine has no network */
	/* What stands above is cleared for each request; the arrays are not, so as not to touch their pages. */
	const char *args[MAX_STRINGS + 1], *env[MAX_STRINGS + 1];
	gid_t groups[256];
	struct rlimit_request rlimits[32];
	struct mount_request mounts[MAX_MOUNTS];
	const char *masked[256], *read_only[256], *sysctls[256];
	struct device_request devices[MAX_DEVICES];
	struct file_request files[64];
	struct limit_request limits[64];
	struct device_rule device_rules[MAX_DEVICE_RULES];
	struct hook_request hooks[MAX_START_HOOKS];
	const char *hook_words[MAX_HOOK_WORDS];
};

/* Parses the fields of CREATE, EXEC, SIGNAL, ...; 0, or an errno with `*why` set. */
int request_parse(const struct wire_message *frame, struct request *request, char *arena, const char **why);

struct container {
	char id[ID_BYTES]; /* empty: free */
	int process;       /* index of its first process, or -1 */
	int has_root;
};

struct process {
	int used;
	char container[ID_BYTES], id[ID_BYTES]; /* id is empty for a container's first process */
	pid_t pid;
	int pidfd;
	int channel; /* to the child until it has executed; -1 after */
	int stream;  /* index, or -1 */
	int started, ended, status, oom;
};

/* The standard files of one process, on a channel of the port. */
struct stream {
	uint16_t channel; /* 0: free */
	int process;      /* index, or -1 once its exit is known */
	int status, ended;
	int in, out, err; /* the agent's ends; with a terminal in == out */
	int terminal;
	uint32_t credit; /* bytes of output that the host will still take */
	uint8_t window[MUX_WINDOW]; /* standard input that the process has not taken yet */
	size_t window_length;
	int input_ended;
};

extern struct container containers[MAX_CONTAINERS];
extern struct process processes[MAX_PROCESSES];
extern struct stream streams[MAX_STREAMS];
extern int loop_fd;

/* main.c: tags for the loop's events */
enum loop_kind { LOOP_PORT = 1, LOOP_IN, LOOP_OUT, LOOP_ERR, LOOP_SIGNALS };
int loop_watch(int fd, enum loop_kind kind, int index, uint32_t events);
void loop_forget(int fd);
void loop_begin(void);
/* What has happened until now, or the next thing. */
void loop_turn(void);

/* console.c */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* modules.c, boot.c */
void load_modules(const char *list);
void boot_mounts(void);
void boot_network(void);
int write_file(const char *path, const void *bytes, size_t length);

/* port.c: the one virtio-serial port */
void port_open(int fd);
/* What is sent from now on goes nowhere. */
void port_leave(void);
void port_event(void);
void port_flush(void);
size_t port_room(void);
/* Queues one frame; the caller has looked at port_room. */
void port_send(uint8_t type, uint16_t channel, const void *bytes, size_t length);

/* control.c */
void control_message(const uint8_t *bytes, size_t length);
void control_send(const struct wire_out *out);
void control_ready(void);

/* configure.c */
int configure(const struct wire_message *frame, const char **why);

/* network.c */
int network_set(const struct wire_message *frame, const char **why);
void network_forget(void);
void network_order(void);

/* lonely.c: a network namespace with nothing but loopback, for a machine that has no network */
void lonely_make(void);
int lonely_enter(const char **why);
int lonely_is(void);
void lonely_visit(void (*work)(void));

/* rootfs.c */
int rootfs_make(const struct wire_message *frame, const char **why);
int rootfs_share(const struct wire_message *frame, const char **why);
void rootfs_early(void);
/* A root in memory, with the agent as its program. */
int rootfs_rehearse(const char *container, const char **why);
/* Whether *container* is the one that warms a machine. */
int rootfs_warms(const char *container);
/* What was written to the scratch device is on it. */
int rootfs_sync(const struct wire_message *frame, const char **why);
void rootfs_remove(const char *container);
void rootfs_path(const char *container, char *path, size_t size);

/* rehearsal.c: `frame` is as CREATE's */
int rehearsal_make(const struct wire_message *frame, const char **why);
/* Once: the rehearsal, or nothing but the end of the second processor. */
void rehearsal_begin(int wanted);

/* cgroup.c */
/* From now on containers are beside the pod. */
void cgroup_rehearse(void);
/* At boot: the rules for devices that hold where no container has its own. */
void cgroup_boot(void);
int cgroup_make(const char *container, const struct request *request);
int cgroup_open(const char *container);
int cgroup_write(const char *container, const char *file, const char *value);
/* The limits and rules for devices of `request`. */
int cgroup_limit(const char *container, const struct request *request);
long cgroup_read(const char *container, const char *file, char *text, size_t size);
void cgroup_remove(const char *container);

/* process.c */
struct container *container_find(const char *id);
int process_create(struct request *request, const char **why, char *text, size_t text_size);
int process_exec(struct request *request, const char **why, char *text, size_t text_size);
int process_files(struct request *request, const char **why, char *text, size_t text_size);
int process_start(const char *container, const char **why, char *text, size_t text_size);
int process_signal(const struct request *request);
int process_remove(const char *container);
int process_lives(const char *container);
void process_reap(void);
void process_kill(int index, int signal);

/* stage.c: in the child; never returns */
_Noreturn void stage_container(const struct request *request, int channel);
_Noreturn void stage_exec(const struct request *request, int channel, int init_pidfd);

/* resolver.c: in a child of the agent's */
_Noreturn void resolver_run(void);

/* starthooks.c: in the child, in the container's namespaces */
int start_hooks_run(const struct request *request, const char **why);

/* files.c */
_Noreturn void stage_files(const struct request *request, int channel, int init_pidfd);
_Noreturn void stage_zygote(const struct request *request, int channel);

/* zygote.c */
void zygote_make(void);
void zygote_make_again(void);
/* One beside the first, in a child of the agent's. */
void zygote_make_other(void);
struct request *zygote_request(char **arena);
int zygote_is(const char *container);
int zygote_take(const struct request *request, struct process *process, int *files, int *child_files);
void zygote_files(const struct request *request);
int zygote_move(const struct mount_request *mount, const char *target);

/* identity.c: in the child, the last steps before execve; 0 or an errno with the step's name */
int identity_apply(const struct request *request, const char **why);

/* copyup.c: what the folder `from` holds, into the mounted folder `to` */
int copy_up(int from, const char *to);

/* mounts.c: in the child */
int mounts_make(int root, const struct request *request, int early, const char **why);
int mounts_hide(const struct request *request, const char **why);

/* channel.c: between agent and child: one message each way, with a descriptor */
int channel_send(int channel, int code, const char *text, int fd);
int channel_receive(int channel, int timeout_ms, int *code, char *text, size_t size, int *fd);

/* stream.c */
int stream_attach(uint16_t channel, int process, int in, int out, int err, int terminal, int *index);
void stream_frame(const struct mux_frame *frame);
void stream_input(int index);
void stream_output(int index, int is_error);
void stream_ended(int index, int status);
/* The port has taken what was queued: read on. */
void streams_resume(void);

#endif
