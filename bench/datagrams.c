/* Load for bench/flows.py: datagrams to ever new addresses and ports, each the beginning of a connection.
 *
 *   datagrams RATE SECONDS BEGIN      sends from 198.18.0.1, RATE a second; prints how many
 *
 * Connection tracking is emptied every 50 ms, so that its table never fills: each connection ends as well.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/netlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, FORGET_MS = 50, TURN_US = 500 };

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void forget(int netlink)
{
    /* IPCTNL_MSG_CT_DELETE of subsystem conntrack, family IPv4, without a key: all. */
    unsigned char message[20] = {20, 0, 0, 0, 2, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, AF_INET, 0, 0, 0};

    if (send(netlink, message, sizeof message, 0) < 0)
        die("forgetting");
}

/* 2,000 destinations, so that rulings are remembered as those of services are; the port tells connections apart. */
static void aim(struct sockaddr_in *to, unsigned long number)
{
    unsigned a = number / 8192 % 256, b = number / 2048 % 4, c = number % 2048 % 250;

    to->sin_family = AF_INET;
    to->sin_addr.s_addr = htonl(10u << 24 | a << 16 | b << 8 | c);
    to->sin_port = htons((unsigned short)(53000 + number % 2048));
}

int main(int count, char **words)
{
    struct sockaddr_in own = {.sin_family = AF_INET}, to[BATCH];
    struct mmsghdr messages[BATCH];
    struct iovec piece = {.iov_base = "x", .iov_len = 1};
    int sender = socket(AF_INET, SOCK_DGRAM, 0), netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);
    int size = 8 << 20;

    if (count != 4)
        return 2;
    double rate = atof(words[1]), seconds = atof(words[2]), began, last, passed;
    unsigned long first = strtoul(words[3], NULL, 10), sent = 0;

    inet_pton(AF_INET, "198.18.0.1", &own.sin_addr);
    setsockopt(sender, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    if (bind(sender, (struct sockaddr *)&own, sizeof own) || netlink < 0)
        die("sockets");
    memset(messages, 0, sizeof messages);
    for (int n = 0; n < BATCH; n++) {
        messages[n].msg_hdr.msg_iov = &piece;
        messages[n].msg_hdr.msg_iovlen = 1;
        messages[n].msg_hdr.msg_name = &to[n];
        messages[n].msg_hdr.msg_namelen = sizeof to[n];
    }
    began = last = now();
    while ((passed = now() - began) < seconds) {
        unsigned long due = (unsigned long)(passed * rate);
        while (sent < due) {
            unsigned many = due - sent < BATCH ? (unsigned)(due - sent) : BATCH;
            for (unsigned n = 0; n < many; n++)
                aim(&to[n], first + sent + n);
            int gone = sendmmsg(sender, messages, many, 0);
            if (gone <= 0)
                die("sendmmsg");
            sent += (unsigned long)gone;
            if (now() - last > FORGET_MS / 1e3) {
                forget(netlink);
                last = now();
            }
        }
        if (now() - last > FORGET_MS / 1e3) {
            forget(netlink);
            last = now();
        }
        usleep(TURN_US);
    }
    usleep(200000);
    forget(netlink);
    printf("%lu\n", sent);
    return 0;
}
