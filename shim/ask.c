#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "shim.h"

int ask_connect(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof address.sun_path)
		die("%s: the name of a socket has at most %zu bytes", path, sizeof address.sun_path - 1);
	strcpy(address.sun_path, path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
		die("%s: %s; is casemate-hostd running? `systemctl start casemate-hostd` starts it, and needs root "
		    "(microvm.hostd_unreachable)", path, strerror(errno));
	return fd;
}

int send_fds(int socket, const void *bytes, size_t length, const int *fds, int count)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(MAX_PASSED * sizeof(int))];
	} control = { 0 };
	struct iovec part = { (void *)(uintptr_t)bytes, length };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };

	if (count > 0) {
		message.msg_control = control.room;
		message.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
		memcpy(CMSG_DATA(&control.head), fds, (size_t)count * sizeof(int));
	}
	return sendmsg(socket, &message, MSG_NOSIGNAL) < 0 ? errno : 0;
}

/* One message; descriptors beyond the bound are closed by the kernel (MSG_CTRUNC). */
ssize_t receive_fds(int socket, void *bytes, size_t length, int *fds, int *count)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(MAX_PASSED * sizeof(int))];
	} control = { 0 };
	struct iovec part = { bytes, length };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.room,
		.msg_controllen = sizeof control.room };

	*count = 0;
	ssize_t got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
	if (got < 0)
		return got;
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
		*count = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds, CMSG_DATA(head), (size_t)*count * sizeof(int));
	}
	return got;
}

static struct answer answer;

static void take(struct answer *a, const struct wire_field *field)
{
	size_t length = field->length;

	switch (field->tag) {
	case TAG_ERRNO: a->error = length == 4 ? (int)wire_u32(field->bytes) : EPROTO; break;
	case TAG_FLAGS: a->flags = length == 4 ? wire_u32(field->bytes) : 0; break;
	case TAG_NAMESPACES: a->namespaces = length == 4 ? wire_u32(field->bytes) : 0; break;
	case TAG_TEXT:
		length = length < sizeof a->text - 1 ? length : sizeof a->text - 1;
		memcpy(a->text, field->bytes, length);
		a->text[length] = 0;
		break;
	case TAG_NETNS:
		if (length >= sizeof a->netns)
			die("the network namespace's name has %zu bytes", length);
		memcpy(a->netns, field->bytes, length);
		a->netns[length] = 0;
		break;
	default: break;
	}
}

const struct answer *ask(int fd, const struct wire_out *out, const int *fds, int count)
{
	static uint8_t bytes[MUX_MAX_CONTROL];
	struct pollfd one = { fd, POLLIN, 0 };
	struct wire_message message;
	struct wire_field field;
	size_t offset = 0, length = wire_end(out);
	int error;

	if (!length)
		die("the request is larger than %d bytes", MUX_MAX_CONTROL);
	if ((error = send_fds(fd, out->bytes, length, fds, count)))
		die("casemate-hostd: %s", strerror(error));
	if (poll(&one, 1, REQUEST_TIMEOUT_S * 1000) <= 0)
		die("casemate-hostd did not answer within %d s", REQUEST_TIMEOUT_S);
	ssize_t got = recv(fd, bytes, sizeof bytes, 0);
	if (got <= 0 || wire_parse(bytes, (size_t)got, &message) < 0 || message.kind != KIND_REPLY)
		die("casemate-hostd closed the connection");
	answer.error = EPROTO;
	answer.flags = answer.namespaces = 0;
	answer.text[0] = answer.netns[0] = 0;
	answer.payload = message.payload;
	answer.length = message.length;
	while (wire_next(message.payload, message.length, &offset, &field) == 1)
		take(&answer, &field);
	return &answer;
}

const struct answer *must_ask(const struct options *options, const struct wire_out *out)
{
	int fd = ask_connect(options->socket);
	const struct answer *a = ask(fd, out, NULL, 0);

	close(fd);
	if (a->error)
		die("%s", *a->text ? a->text : strerror(a->error));
	return a;
}
