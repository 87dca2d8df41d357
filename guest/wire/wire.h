/* The words that the host and the guest agent exchange over the one virtio-serial port of a micro-VM.
 *
 * Everything is a mux frame, little-endian, 8 bytes of header:
 *     u8 type | u8 zero | u16 channel | u32 payload length
 * Channel 0 carries control messages (type CONTROL) between hostd and the agent; the monitor on the host passes them on
 * without a look. Every other channel is one process's standard files.
 * A control message:  u8 kind | u8 zero | u16 zero | u32 number | fields, each  u32 length | u16 tag | u16 zero | bytes.
 *
 * Agent and monitor use this parser (hostd's Python has its own, casemate.isolation.microvm.frames, with the same
 * bounds). It keeps no state outside its arguments and reads no byte beyond the length that it is given: it is what the
 * fuzzers and the sanitizer build exercise.
 */
#ifndef CASEMATE_WIRE_H
#define CASEMATE_WIRE_H

#include <stddef.h>
#include <stdint.h>

enum {
	MUX_HEADER = 8,
	/* A control message must fit one SOCK_SEQPACKET message (net.core.wmem_default is 212,992). */
	MUX_MAX_CONTROL = 128 * 1024,
	MUX_MAX_DATA = 32 * 1024,
	/* Bytes that may be under way on a channel, each way, without an acknowledgement. */
	MUX_WINDOW = 64 * 1024,
	MESSAGE_HEADER = 8,
	FIELD_HEADER = 8,
	MAX_FIELDS = 20000,
};

enum mux_type {
	MUX_CONTROL = 1, /* both ways, channel 0 */
	MUX_IN = 2,      /* host to guest: standard input */
	MUX_IN_END = 3,  /* host to guest: end of standard input */
	MUX_RESIZE = 4,  /* host to guest: u16 rows, u16 columns */
	MUX_KILL = 5,    /* host to guest: u8 signal number */
	MUX_OUT = 6,     /* guest to host: standard output, or the terminal's */
	MUX_ERR = 7,     /* guest to host: standard error */
	MUX_TAKEN = 8,   /* both ways: u32 bytes that the reader at this end takes; the guest's first opens the channel */
	MUX_EXIT = 9,    /* guest to host: u32 exit code, or 128 + signal; the channel's last frame */
	MUX_OUT_END = 10, /* guest to host: the process, which goes on, has closed its standard output */
	MUX_ERR_END = 11, /* the same of standard error */
	MUX_LAST = 11,
};

enum wire_kind {
	/* host to guest */
	KIND_CONFIGURE = 2,
	KIND_ROOTFS = 3,
	KIND_CREATE = 4,
	KIND_START = 5,
	KIND_EXEC = 6,
	KIND_SIGNAL = 7,
	KIND_STATS = 8,
	KIND_FREEZE = 9,
	KIND_THAW = 10,
	KIND_PROCESSES = 11,
	KIND_POWEROFF = 12,
	KIND_REMOVE = 13,
	KIND_LIMITS = 14,
	KIND_SHARE = 15,
	KIND_TOP = 17,
	KIND_NETWORK = 18,
	KIND_FILES = 19,
	KIND_SYNC = 20,
	KIND_REHEARSE = 21, /* fields as CREATE's */
	/* guest to host */
	KIND_READY = 64,
	KIND_REPLY = 65,
	KIND_EXITED = 66,
	KIND_OOM = 67,
};

enum wire_tag {
	TAG_ERRNO = 1,
	TAG_TEXT = 2,
	TAG_SEED = 4,
	TAG_CLOCK = 5,
	TAG_HOSTNAME = 6,
	TAG_ADDRESS = 7,
	TAG_GATEWAY = 8,
	TAG_MAC = 9,
	TAG_MTU = 10,
	TAG_CONTAINER = 11,
	TAG_LAYER = 12,
	TAG_UPPER_BYTES = 13,
	TAG_CHANNEL = 14,
	TAG_ARG = 15,
	TAG_ENV = 16,
	TAG_CWD = 17,
	TAG_UID = 18,
	TAG_GID = 19,
	TAG_GROUP = 20,
	TAG_UMASK = 21,
	TAG_CAPABILITIES = 22,
	TAG_RLIMIT = 23,
	TAG_FLAGS = 24,
	TAG_SECCOMP = 25,
	TAG_NAMESPACES = 26,
	TAG_MOUNT = 27,
	TAG_MASKED = 28,
	TAG_READ_ONLY = 29,
	TAG_SYSCTL = 30,
	TAG_DEVICE = 31,
	TAG_FILE = 32,
	TAG_OOM_ADJ = 33,
	TAG_WINDOW = 34,
	TAG_LIMIT = 35,
	TAG_SIGNAL = 36,
	TAG_PROCESS = 37,
	TAG_STATUS = 38,
	TAG_STAT = 39,
	TAG_VERSION = 40,
	TAG_FILES = 50, /* a letter for the work (agent/tar.h), and a path */
	TAG_DEVICE_NAME = 41,
	TAG_SHARE = 42, /* an entry of the shared folder */
	TAG_ROUTE = 60,
	TAG_NEIGHBOUR = 61,
	TAG_HOOK = 62, /* hostd to casemate-vm: see shim/hooks.c */
	TAG_NETNS = 63,
	TAG_ROOT = 69,          /* casemate-vm's --root, by which `list` tells its engines apart */
	TAG_SECCOMP_FLAGS = 70, /* of seccomp(2) */
	TAG_START_HOOK = 71,    /* of CREATE, as TAG_HOOK: runs in the container before its program */
	TAG_STATE = 72,         /* of CREATE: the document that those hooks read */
	TAG_JOIN_PIDS = 73,     /* of CREATE: the container whose process namespace this one shares */
	TAG_PROPAGATION = 74,   /* of CREATE: the root's, as a flag of mount(2) */
	TAG_CARD = 76,          /* of NETWORK: which of the machine's cards, from 0 */
	TAG_CARD_NAME = 77,     /* of NETWORK: what that card is called from now on */
	TAG_SCHEDULER = 78,     /* of CREATE and EXEC: u32 policy, i32 nice, u32 priority, u64 flags, runtime, deadline, period */
	TAG_IO_PRIORITY = 79,   /* of CREATE and EXEC, as ioprio_set(2) has it */
	TAG_PERSONALITY = 80,   /* of CREATE and EXEC, as personality(2) has it */
	TAG_DEVICE_RULE = 75,   /* of CREATE and LIMITS: u8 allow, u8 type, u8 access, u8 zero, i32 major, i32 minor */
};

/* TAG_FLAGS */
enum {
	FLAG_NO_NEW_PRIVS = 1,
	FLAG_TERMINAL = 2,
	FLAG_STDIN = 4,
	FLAG_READ_ONLY_ROOT = 8,
	FLAG_ALL_PROCESSES = 16,
	FLAG_OVERLAY_ROOT = 32,
	FLAG_NO_CARD = 128,   /* of CONFIGURE */
	FLAG_PARTITIONS = 64, /* further containers will have layers on the same device */
	FLAG_REHEARSE = 2048, /* of CONFIGURE: the rehearsal may begin */
	FLAG_SCRATCH = 1024,  /* of ROOTFS: the writable layer is a file system on the scratch device */
};

/* A flag of ours beside mount(2)'s: copy what the mount will cover into it. */
#define MOUNT_COPY_UP (1ULL << 40)
/* And that a mount's propagation is meant for what is mounted below it, too. */
#define MOUNT_PROPAGATION_BELOW (1ULL << 41)

struct mux_frame {
	uint8_t type;
	uint16_t channel;
	const uint8_t *payload;
	size_t length;
};

struct wire_message {
	uint8_t kind;
	uint32_t number;
	const uint8_t *payload;
	size_t length;
};

struct wire_field {
	uint16_t tag;
	const uint8_t *bytes;
	size_t length;
};

enum { WIRE_BROKEN = -1, WIRE_MORE = 0 };

uint16_t wire_u16(const uint8_t *bytes);
uint32_t wire_u32(const uint8_t *bytes);
uint64_t wire_u64(const uint8_t *bytes);
void wire_put_u16(uint8_t *bytes, uint16_t value);
void wire_put_u32(uint8_t *bytes, uint32_t value);
void wire_put_u64(uint8_t *bytes, uint64_t value);

/* The first frame of `bytes`: how many bytes it takes up, WIRE_MORE, or WIRE_BROKEN. */
long mux_parse(const uint8_t *bytes, size_t length, struct mux_frame *frame);
void mux_header(uint8_t *bytes, uint8_t type, uint16_t channel, uint32_t length);

/* A control message; 0 or WIRE_BROKEN. */
int wire_parse(const uint8_t *bytes, size_t length, struct wire_message *message);

/* Step through the fields of a payload: 1 and a field, 0 at the end, WIRE_BROKEN. `*offset` starts at 0. */
int wire_next(const uint8_t *payload, size_t length, size_t *offset, struct wire_field *field);

/* Writing: a control message under construction in the caller's buffer; `full` is set when something did not fit. */
struct wire_out {
	uint8_t *bytes;
	size_t capacity;
	size_t length;
	int full;
};

void wire_begin(struct wire_out *out, uint8_t *buffer, size_t capacity, uint8_t kind, uint32_t number);
void wire_add(struct wire_out *out, uint16_t tag, const void *bytes, size_t length);
void wire_add_text(struct wire_out *out, uint16_t tag, const char *text);
void wire_add_u32(struct wire_out *out, uint16_t tag, uint32_t value);
void wire_add_u64(struct wire_out *out, uint16_t tag, uint64_t value);
/* The message's size, or 0 when it did not fit. */
size_t wire_end(const struct wire_out *out);

#endif
