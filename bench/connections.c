/* Load for bench/firewall.py: connections opened and closed.
 *
 *   connections serve PORT            accepts; what is sent is read
 *   connections open ADDRESS PORT S   opens and closes for S seconds; prints how many, and seconds of cpu
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 1 << 12, EVENTS = 256 };

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

static void serve(int port)
{
    static char block[BLOCK];
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct epoll_event one = {.events = EPOLLIN}, found[EVENTS];
    int on = 1, waiting = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), poll = epoll_create1(0);

    setsockopt(waiting, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(waiting, (struct sockaddr *)&own, sizeof own) || listen(waiting, 4096))
        die("listen");
    one.data.fd = waiting;
    epoll_ctl(poll, EPOLL_CTL_ADD, waiting, &one);
    for (;;) {
        int count = epoll_wait(poll, found, EVENTS, -1);
        for (int n = 0; n < count; n++) {
            int fd = found[n].data.fd;
            if (fd == waiting) {
                while ((fd = accept4(waiting, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                    one.data.fd = fd;
                    epoll_ctl(poll, EPOLL_CTL_ADD, fd, &one);
                }
                continue;
            }
            ssize_t got = read(fd, block, sizeof block);
            if (got <= 0 && errno != EAGAIN)
                close(fd);
        }
    }
}

static int reach(const struct sockaddr_in *to)
{
    struct linger gone = {.l_onoff = 1, .l_linger = 0};
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);

    if (fd < 0)
        die("socket");
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &gone, sizeof gone);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (const struct sockaddr *)to, sizeof *to))
        die("connect");
    return fd;
}

int main(int argc, char **argv)
{
    struct rusage used;
    struct sockaddr_in to = {.sin_family = AF_INET};
    long count = 0;

    signal(SIGPIPE, SIG_IGN);
    if (argc == 3 && !strcmp(argv[1], "serve"))
        serve(atoi(argv[2]));
    if (argc != 5 || strcmp(argv[1], "open") || inet_pton(AF_INET, argv[2], &to.sin_addr) != 1)
        return 2;
    to.sin_port = htons((uint16_t)atoi(argv[3]));
    double end = now() + atof(argv[4]);
    for (; now() < end; count++)
        close(reach(&to));
    getrusage(RUSAGE_SELF, &used);
    printf("%ld %.6f\n", count,
           (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec)
               + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
    return 0;
}
