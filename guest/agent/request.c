#include <errno.h>
#include <string.h>

#include "agent.h"

static char *arena;
static size_t arena_used;

static const char *keep(const uint8_t *bytes, size_t length)
{
	if (REQUEST_ARENA - arena_used <= length)
		return NULL;
	char *copy = arena + arena_used;
	memcpy(copy, bytes, length);
	copy[length] = 0;
	arena_used += length + 1;
	return copy;
}

/* A text field must hold no NUL: what follows one would be dropped silently. */
static const char *text(const struct wire_field *field)
{
	return memchr(field->bytes, 0, field->length) ? NULL : keep(field->bytes, field->length);
}

/* Splits a field of NUL-separated texts into exactly `count`; 0 when it has another number. */
static int split(const uint8_t *bytes, size_t length, const char **parts, int count)
{
	const char *copy = keep(bytes, length);
	const char *end = copy + length;

	if (!copy)
		return 0;
	for (int i = 0; i < count; i++) {
		if (copy > end)
			return 0;
		parts[i] = copy;
		copy += strlen(copy) + 1;
	}
	return copy == end + 1;
}

static int id(const struct wire_field *field, char *into)
{
	if (field->length == 0 || field->length >= ID_BYTES)
		return 0;
	for (size_t i = 0; i < field->length; i++) {
		uint8_t c = field->bytes[i];
		int letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
		if (!letter && !(c >= '0' && c <= '9') && !(i && (c == '_' || c == '-' || c == '.')))
			return 0;
	}
	memcpy(into, field->bytes, field->length);
	into[field->length] = 0;
	return 1;
}

static int add_text(const struct wire_field *field, const char **list, size_t *count, size_t most)
{
	return *count < most && (list[*count] = text(field)) && ++*count;
}

static int add_mount(const struct wire_field *field, struct request *r)
{
	const char *parts[4];

	if (r->mount_count >= MAX_MOUNTS || field->length < 8 ||
	    !split(field->bytes + 8, field->length - 8, parts, 4))
		return 0;
	r->mounts[r->mount_count++] =
		(struct mount_request){ parts[0], parts[1], parts[2], parts[3], wire_u64(field->bytes) };
	return 1;
}

static int add_device(const struct wire_field *field, struct request *r)
{
	const uint8_t *b = field->bytes;
	const char *path;

	if (r->device_count >= MAX_DEVICES || field->length < 20 || !split(b + 20, field->length - 20, &path, 1))
		return 0;
	r->devices[r->device_count++] = (struct device_request){ path, wire_u32(b), wire_u32(b + 4), wire_u32(b + 8),
		wire_u32(b + 12), wire_u32(b + 16) };
	return 1;
}

static int add_file(const struct wire_field *field, struct request *r)
{
	const uint8_t *b = field->bytes;

	if (r->file_count >= 64 || field->length < 8)
		return 0;
	uint32_t name = wire_u32(b + 4);
	if (name > field->length - 8 || memchr(b + 8, 0, name))
		return 0;
	const char *path = keep(b + 8, name);
	const uint8_t *content = (const uint8_t *)keep(b + 8 + name, field->length - 8 - name);
	if (!path || !content)
		return 0;
	r->files[r->file_count++] = (struct file_request){ path, content, field->length - 8 - name, wire_u32(b) };
	return 1;
}

static int add_rlimit(const struct wire_field *field, struct request *r)
{
	const uint8_t *b = field->bytes;

	if (r->rlimit_count >= 32 || field->length != 20)
		return 0;
	r->rlimits[r->rlimit_count++] = (struct rlimit_request){ wire_u32(b), wire_u64(b + 4), wire_u64(b + 12) };
	return 1;
}

static int add_limit(const struct wire_field *field, struct request *r)
{
	const char *parts[2];

	if (r->limit_count >= 64 || !split(field->bytes, field->length, parts, 2) || strchr(parts[0], '/'))
		return 0;
	r->limits[r->limit_count++] = (struct limit_request){ parts[0], parts[1] };
	return 1;
}

static int add_device_rule(const struct wire_field *field, struct request *r)
{
	const uint8_t *b = field->bytes;

	if (r->device_rule_count >= MAX_DEVICE_RULES || field->length != 12 || b[0] > 1 || !strchr("abc", b[1]) || !b[1] ||
	    !b[2] || b[2] > DEVICE_ALL || b[3])
		return 0;
	r->device_rules[r->device_rule_count++] =
		(struct device_rule){ b[0], (char)b[1], b[2], (int32_t)wire_u32(b + 4), (int32_t)wire_u32(b + 8) };
	return 1;
}

/* `count` texts from `*copy` on, as a list that ends with NULL. */
static const char **hook_list(struct request *r, const char **copy, const char *end, uint32_t count)
{
	if (count >= MAX_HOOK_WORDS || r->hook_word_count + count + 1 > MAX_HOOK_WORDS)
		return NULL;
	const char **list = r->hook_words + r->hook_word_count;
	for (uint32_t i = 0; i < count; i++) {
		if (*copy >= end)
			return NULL;
		list[i] = *copy;
		*copy += strlen(*copy) + 1;
	}
	list[count] = NULL;
	r->hook_word_count += count + 1;
	return list;
}

/* u32 seconds, u32 arguments, u32 variables, then the path and both lists, each text with its end. */
static int add_hook(const struct wire_field *field, struct request *r)
{
	const uint8_t *b = field->bytes;

	if (r->hook_count >= MAX_START_HOOKS || field->length < 14 || b[field->length - 1])
		return 0;
	const char *copy = keep(b + 12, field->length - 12);
	if (!copy || *copy != '/')
		return 0;
	const char *end = copy + field->length - 12;
	struct hook_request hook = { .seconds = wire_u32(b), .path = copy };
	copy += strlen(copy) + 1;
	hook.args = hook_list(r, &copy, end, wire_u32(b + 4));
	hook.env = hook.args ? hook_list(r, &copy, end, wire_u32(b + 8)) : NULL;
	if (!hook.env || copy != end)
		return 0;
	r->hooks[r->hook_count++] = hook;
	return 1;
}

static int number(const struct wire_field *field, uint32_t *into)
{
	if (field->length != 4)
		return 0;
	*into = wire_u32(field->bytes);
	return 1;
}

static int capabilities(const struct wire_field *field, struct request *r)
{
	if (field->length != 40)
		return 0;
	for (size_t i = 0; i < 5; i++)
		r->capabilities[i] = wire_u64(field->bytes + 8 * i);
	r->has_capabilities = 1;
	return 1;
}

static int window(const struct wire_field *field, struct request *r)
{
	if (field->length != 4)
		return 0;
	r->rows = wire_u16(field->bytes);
	r->columns = wire_u16(field->bytes + 2);
	return 1;
}

static int seccomp(const struct wire_field *field, struct request *r)
{
	/* struct sock_filter is 8 bytes; the kernel takes at most 4096 of them. */
	if (field->length == 0 || field->length % 8 || field->length > (size_t)4096 * 8)
		return 0;
	/* The program must be aligned as its structs are. */
	while (arena_used % 8)
		arena_used++;
	r->seccomp = (const uint8_t *)keep(field->bytes, field->length);
	r->seccomp_length = field->length;
	return r->seccomp != NULL;
}

static int group(const struct wire_field *field, struct request *r)
{
	uint32_t value;

	if (r->group_count >= 256 || !number(field, &value))
		return 0;
	r->groups[r->group_count++] = value;
	return 1;
}

static int oom_adj(const struct wire_field *field, struct request *r)
{
	uint32_t value;

	if (!number(field, &value))
		return 0;
	r->oom_adj = (int)value;
	r->has_oom_adj = 1;
	return 1;
}

static int scheduler(const struct wire_field *field, struct request *r)
{
	const uint8_t *b = field->bytes;

	if (field->length != 44)
		return 0;
	r->scheduler = (struct scheduler_request){ .policy = wire_u32(b), .nice = (int32_t)wire_u32(b + 4),
		.priority = wire_u32(b + 8), .flags = wire_u64(b + 12), .runtime = wire_u64(b + 20),
		.deadline = wire_u64(b + 28), .period = wire_u64(b + 36) };
	r->has_scheduler = 1;
	return 1;
}

static int one(const struct wire_field *f, struct request *r)
{
	switch (f->tag) {
	case TAG_CONTAINER: return id(f, r->container);
	case TAG_PROCESS: return id(f, r->process);
	case TAG_CHANNEL: return number(f, &r->channel);
	case TAG_ARG: return add_text(f, r->args, &r->arg_count, MAX_STRINGS);
	case TAG_ENV: return add_text(f, r->env, &r->env_count, MAX_STRINGS);
	case TAG_CWD: return (r->cwd = text(f)) != NULL;
	case TAG_FILES: return (r->copying = text(f)) && *r->copying && strchr("AEXDSRN", *r->copying) && r->copying[1] == '/';
	case TAG_HOSTNAME: return (r->hostname = text(f)) != NULL;
	case TAG_UID: return number(f, &r->uid);
	case TAG_GID: return number(f, &r->gid);
	case TAG_GROUP: return group(f, r);
	case TAG_UMASK: return number(f, &r->umask);
	case TAG_CAPABILITIES: return capabilities(f, r);
	case TAG_RLIMIT: return add_rlimit(f, r);
	case TAG_FLAGS: return number(f, &r->flags);
	case TAG_SECCOMP: return seccomp(f, r);
	case TAG_NAMESPACES: return number(f, &r->namespaces);
	case TAG_MOUNT: return add_mount(f, r);
	case TAG_MASKED: return add_text(f, r->masked, &r->masked_count, 256);
	case TAG_READ_ONLY: return add_text(f, r->read_only, &r->read_only_count, 256);
	case TAG_SYSCTL: return add_text(f, r->sysctls, &r->sysctl_count, 256);
	case TAG_DEVICE: return add_device(f, r);
	case TAG_DEVICE_RULE: return add_device_rule(f, r);
	case TAG_FILE: return add_file(f, r);
	case TAG_OOM_ADJ: return oom_adj(f, r);
	case TAG_WINDOW: return window(f, r);
	case TAG_SCHEDULER: return scheduler(f, r);
	case TAG_IO_PRIORITY: return number(f, &r->io_priority);
	case TAG_PERSONALITY: return number(f, &r->personality);
	case TAG_LIMIT: return add_limit(f, r);
	case TAG_SECCOMP_FLAGS: return number(f, &r->seccomp_flags);
	case TAG_START_HOOK: return add_hook(f, r);
	case TAG_STATE: return (r->state = text(f)) != NULL;
	case TAG_JOIN_PIDS: return id(f, r->join_pids);
	case TAG_PROPAGATION: return number(f, &r->propagation);
	case TAG_SIGNAL: return number(f, &r->signal);
	default: return 0;
	}
}

int request_parse(const struct wire_message *frame, struct request *request, char *room, const char **why)
{
	struct wire_field field;
	size_t offset = 0, fields = 0;
	int more;

	memset(request, 0, offsetof(struct request, args));
	arena = room;
	arena_used = 0;
	request->umask = 022;
	request->cwd = "/";
	while ((more = wire_next(frame->payload, frame->length, &offset, &field)) == 1) {
		if (++fields > MAX_FIELDS || !one(&field, request)) {
			static char words[64] = "field 00000 is not valid";
			for (int i = 10, tag = field.tag; i >= 6; i--, tag /= 10)
				words[i] = (char)('0' + tag % 10);
			*why = words;
			return EINVAL;
		}
	}
	request->args[request->arg_count] = NULL;
	request->env[request->env_count] = NULL;
	*why = "the frame's fields do not add up";
	return more ? EBADMSG : 0;
}
