#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "agent.h"

struct message {
	int code;
	char text[200];
};

int channel_send(int channel, int code, const char *text, int fd)
{
	struct message message = { .code = code };
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec part = { &message, sizeof message };
	struct msghdr header = { .msg_iov = &part, .msg_iovlen = 1 };

	strncpy(message.text, text ? text : "", sizeof message.text - 1);
	if (fd >= 0) {
		header.msg_control = control.room;
		header.msg_controllen = sizeof control.room;
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
	}
	return sendmsg(channel, &header, MSG_NOSIGNAL) < 0 ? errno : 0;
}

/* 0 and a message; EPIPE when the other end is gone; ETIMEDOUT. */
int channel_receive(int channel, int timeout_ms, int *code, char *text, size_t size, int *fd)
{
	struct message message = { 0 };
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec part = { &message, sizeof message };
	struct msghdr header = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.room,
		.msg_controllen = sizeof control.room };
	struct pollfd one = { channel, POLLIN, 0 };

	if (fd)
		*fd = -1;
	int ready = poll(&one, 1, timeout_ms);
	if (ready <= 0)
		return ready ? errno : ETIMEDOUT;
	ssize_t length = recvmsg(channel, &header, MSG_CMSG_CLOEXEC);
	if (length != (ssize_t)sizeof message)
		return length < 0 ? errno : EPIPE;
	struct cmsghdr *head = CMSG_FIRSTHDR(&header);
	if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
		int received;
		memcpy(&received, CMSG_DATA(head), sizeof received);
		if (fd)
			*fd = received;
		else
			close(received);
	}
	message.text[sizeof message.text - 1] = 0;
	*code = message.code;
	if (text && size) {
		strncpy(text, message.text, size - 1);
		text[size - 1] = 0;
	}
	return 0;
}
