/* Load for bench/established.py: one connection, its two ends two processes on one processor, fixed work on command.
 *
 *   established CLIENT_NETNS SERVER_NETNS ADDRESS PORT CPU      (namespaces by number of a descriptor)
 *
 * Both ends have a real-time priority, so that neither this machine's other programs nor a thread of the kernel's takes
 * the processor between a packet's leaving and its being read: the time of a block is what its packets take. Buffers
 * of the sockets are fixed. Reads commands from standard input and answers each with a line: nanoseconds on the clock
 * and of both ends' processor time.
 *
 *   ask N     64 bytes there and back, N times
 *   send N    N bytes, and one byte back when all are there
 *   open N    N other connections, one after the other, each reset when it is accepted
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE = 64, BLOCK = 1 << 17, BUFFER = 1 << 20 };

struct order {
    long messages, bytes, connections;
};

static char block[BLOCK];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static long long ns(clockid_t clock)
{
    struct timespec at;
    if (clock_gettime(clock, &at))
        die("clock_gettime");
    return (long long)at.tv_sec * 1000000000 + at.tv_nsec;
}

static void take(int fd, char *into, long left)
{
    for (ssize_t got; left > 0; left -= got)
        if ((got = read(fd, into, left < BLOCK ? (size_t)left : BLOCK)) <= 0)
            die("read");
}

static void give(int fd, const char *from, long left)
{
    for (ssize_t done; left > 0; left -= done)
        if ((done = write(fd, from, left < BLOCK ? (size_t)left : BLOCK)) <= 0)
            die("write");
}

static int end_in(int netns)
{
    int size = BUFFER, on = 1, fd;
    if (setns(netns, CLONE_NEWNET))
        die("setns");
    if ((fd = socket(AF_INET, SOCK_STREAM, 0)) < 0)
        die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static void open_one(const struct sockaddr_in *to)
{
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0)
        die("socket");
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    if (connect(fd, (const struct sockaddr *)to, sizeof *to))
        die("connect");
    /* The other end's turn. */
    sched_yield();
    close(fd);
}

static void serve(int waiting, int orders)
{
    struct order order;
    int on = 1, fd = accept(waiting, NULL, NULL);
    if (fd < 0)
        die("accept");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    while (read(orders, &order, sizeof order) == sizeof order) {
        for (; order.messages > 0; order.messages--) {
            take(fd, block, MESSAGE);
            give(fd, block, MESSAGE);
        }
        if (order.bytes) {
            take(fd, block, order.bytes);
            give(fd, block, 1);
        }
        for (int before = -1; order.connections > 0; order.connections--) {
            int one = accept(waiting, NULL, NULL);
            /* Its client has reset it by now: nothing more is sent. */
            if (before >= 0)
                close(before);
            before = one;
            if (order.connections == 1) {
                give(fd, block, 1);
                close(before);
            }
        }
    }
    exit(0);
}

int main(int argc, char **argv)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    struct sched_param first = {.sched_priority = 1};
    char what[16];
    int orders[2], waiting, fd;
    long amount;
    cpu_set_t one;
    clockid_t theirs;
    pid_t server;

    if (argc != 6 || inet_pton(AF_INET, argv[3], &to.sin_addr) != 1)
        return 2;
    to.sin_port = htons((uint16_t)atoi(argv[4]));
    CPU_ZERO(&one);
    CPU_SET(atoi(argv[5]), &one);
    if (sched_setaffinity(0, sizeof one, &one))
        die("sched_setaffinity");
    if (sched_setscheduler(0, SCHED_FIFO, &first))
        die("sched_setscheduler");
    waiting = end_in(atoi(argv[2]));
    if (bind(waiting, (struct sockaddr *)&to, sizeof to) || listen(waiting, 128) || pipe(orders))
        die("listen");
    if ((server = fork()) < 0)
        die("fork");
    if (!server) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(orders[1]);
        serve(waiting, orders[0]);
    }
    close(orders[0]);
    if (clock_getcpuclockid(server, &theirs))
        die("clock_getcpuclockid");
    fd = end_in(atoi(argv[1]));
    if (connect(fd, (struct sockaddr *)&to, sizeof to))
        die("connect");
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (scanf("%15s %ld", what, &amount) == 2) {
        struct order order = {0};
        *(*what == 'a' ? &order.messages : *what == 's' ? &order.bytes : &order.connections) = amount;
        long long wall = ns(CLOCK_MONOTONIC), used = ns(CLOCK_PROCESS_CPUTIME_ID) + ns(theirs);
        if (write(orders[1], &order, sizeof order) != sizeof order)
            die("order");
        for (long left = order.messages; left > 0; left--) {
            give(fd, block, MESSAGE);
            take(fd, block, MESSAGE);
        }
        if (order.bytes) {
            give(fd, block, order.bytes);
            take(fd, block, 1);
        }
        for (long left = order.connections; left > 0; left--)
            open_one(&to);
        if (order.connections)
            take(fd, block, 1);
        wall = ns(CLOCK_MONOTONIC) - wall;
        used = ns(CLOCK_PROCESS_CPUTIME_ID) + ns(theirs) - used;
        printf("%lld %lld\n", wall, used);
    }
    close(orders[1]);
    close(fd);
    waitpid(server, NULL, 0);
    return 0;
}
