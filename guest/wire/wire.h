/* The words that the host and the guest agent exchange: frames of tagged fields over a virtio-serial port.
 *
 * Both ends use this parser (the host's Python has its own, casemate.isolation.microvm.frames, with the same
 * bounds). It keeps no state outside its arguments, calls nothing but memcpy, and reads no byte beyond the length
 * that it is given: it is what the fuzzers and the sanitizer build exercise.
 *
 * Control frame, little-endian, 12 bytes of header:
 *     u8 magic 0xC5 | u8 kind | u16 zero | u32 number | u32 payload length
 * Payload: fields, each  u32 length | u16 tag | u16 zero | bytes.
 * Between frames zero bytes are skipped: after a reconnect the host sends as many zeros as a frame can be long,
 * which ends whatever was cut off.
 *
 * Stream frame (one port per process), 8 bytes of header:
 *     u8 type | u8 zero[3] | u32 payload length
 */
#ifndef CASEMATE_WIRE_H
#define CASEMATE_WIRE_H

#include <stddef.h>
#include <stdint.h>

enum {
	WIRE_MAGIC = 0xC5,
	WIRE_HEADER = 12,
	WIRE_FIELD_HEADER = 8,
	/* ARG_MAX of a sensible command and its environment, with the seccomp program and mounts beside it. */
	WIRE_MAX_PAYLOAD = 256 * 1024,
	WIRE_MAX_FIELDS = 20000,
	STREAM_HEADER = 8,
	STREAM_MAX_PAYLOAD = 32 * 1024,
	/* Bytes of standard input that may be under way without an acknowledgement. */
	STREAM_WINDOW = 64 * 1024,
};

enum wire_kind {
	/* host to guest */
	KIND_SYNC = 1,
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
	/* guest to host */
	KIND_READY = 64,
	KIND_REPLY = 65,
	KIND_EXITED = 66,
	KIND_OOM = 67,
	KIND_PORT_FREE = 68,
};

enum wire_tag {
	TAG_ERRNO = 1,
	TAG_TEXT = 2,
	TAG_NONCE = 3,
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
	TAG_PORT = 14,
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
	TAG_DEVICE_NAME = 41,
};

/* TAG_FLAGS */
enum {
	FLAG_NO_NEW_PRIVS = 1,
	FLAG_TERMINAL = 2,
	FLAG_STDIN = 4,
	FLAG_READ_ONLY_ROOT = 8,
	FLAG_ALL_PROCESSES = 16,
};

enum stream_type {
	STREAM_IN = 1,     /* host to guest: standard input */
	STREAM_IN_END = 2, /* host to guest: end of standard input */
	STREAM_RESIZE = 3, /* host to guest: u16 rows, u16 columns */
	STREAM_KILL = 4,   /* host to guest: u8 signal number */
	STREAM_OUT = 5,    /* guest to host: standard output, or the terminal's */
	STREAM_ERR = 6,    /* guest to host: standard error */
	STREAM_TAKEN = 7,  /* guest to host: u32 bytes of standard input that the process has taken */
	STREAM_EXIT = 8,   /* guest to host: i32 exit code, or 128 + signal; the last frame */
};

struct wire_frame {
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

struct stream_frame {
	uint8_t type;
	const uint8_t *payload;
	size_t length;
};

enum { WIRE_BROKEN = -1, WIRE_MORE = 0 };

uint16_t wire_u16(const uint8_t *bytes);
uint32_t wire_u32(const uint8_t *bytes);
uint64_t wire_u64(const uint8_t *bytes);
void wire_put_u16(uint8_t *bytes, uint16_t value);
void wire_put_u32(uint8_t *bytes, uint32_t value);
void wire_put_u64(uint8_t *bytes, uint64_t value);

/* The first frame of `bytes`: how many bytes it takes up (skipped zeros included), WIRE_MORE, or WIRE_BROKEN. */
long wire_parse(const uint8_t *bytes, size_t length, struct wire_frame *frame);

/* Step through the fields of a payload: 1 and a field, 0 at the end, WIRE_BROKEN. `*offset` starts at 0. */
int wire_next(const uint8_t *payload, size_t length, size_t *offset, struct wire_field *field);

/* As wire_parse, for a stream port. */
long stream_parse(const uint8_t *bytes, size_t length, struct stream_frame *frame);

/* Writing: a frame under construction in the caller's buffer; `full` is set when something did not fit. */
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
/* Writes the length; returns the frame's size, or 0 when it did not fit. */
size_t wire_end(struct wire_out *out);

void stream_header(uint8_t *bytes, uint8_t type, uint32_t length);

#endif
