/* What the kernel itself answers a process about its own state, where /proc/self/status is a text that a kernel may not
 * write: `probe no_new_privs`, `probe signals`.
 * `probe packet SOURCE DESTINATION PORT SIZE`: a datagram of SIZE bytes in all, with headers made by hand, that may not be
 * divided; SOURCE 0.0.0.0 is filled in by the kernel. `probe datagram DESTINATION PORT SIZE`: the same by the kernel. */
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>

static unsigned char data[65536];

static int datagram(char **argv)
{
	int size = atoi(argv[2]), whole = IP_PMTUDISC_DO, one = socket(AF_INET, SOCK_DGRAM, 0);
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};

	if (one < 0 || size < 28 || size > (int)sizeof data)
		return 2;
	inet_pton(AF_INET, argv[0], &to.sin_addr);
	setsockopt(one, IPPROTO_IP, IP_MTU_DISCOVER, &whole, sizeof whole);
	puts(sendto(one, data, size - 28, 0, (struct sockaddr *)&to, sizeof to) == size - 28 ? "sent" : strerror(errno));
	return 0;
}

static int packet(char **argv)
{
	int size = atoi(argv[3]), port = atoi(argv[2]), one = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
	struct sockaddr_in to = {.sin_family = AF_INET};

	if (one < 0 || size < 28 || size > (int)sizeof data)
		return 2;
	inet_pton(AF_INET, argv[1], &to.sin_addr);
	data[0] = 0x45;
	data[2] = size >> 8, data[3] = size;
	data[6] = 0x40;
	data[8] = 64, data[9] = 17;
	inet_pton(AF_INET, argv[0], data + 12);
	memcpy(data + 16, &to.sin_addr, 4);
	data[20] = port >> 8, data[21] = port, data[22] = port >> 8, data[23] = port;
	data[24] = (size - 20) >> 8, data[25] = size - 20;
	if (sendto(one, data, size, 0, (struct sockaddr *)&to, sizeof to) == size)
		puts("sent");
	else
		puts(errno == EMSGSIZE ? "too long" : strerror(errno));
	return 0;
}

int main(int argc, char **argv)
{
	sigset_t blocked;
	struct sigaction now;

	if (argc == 6 && !strcmp(argv[1], "packet"))
		return packet(argv + 2);
	if (argc == 5 && !strcmp(argv[1], "datagram"))
		return datagram(argv + 2);
	if (argc > 1 && !strcmp(argv[1], "no_new_privs")) {
		printf("%d\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
		return 0;
	}
	sigprocmask(SIG_BLOCK, NULL, &blocked);
	for (int one = 1; one <= 31; one++) {
		if (sigismember(&blocked, one))
			printf("%d is blocked\n", one);
		if (sigaction(one, NULL, &now) == 0 && now.sa_handler == SIG_IGN)
			printf("%d is ignored\n", one);
	}
	puts("looked");
	return 0;
}
