"""A service that answers lines over kept connections, and the image it is in."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from tests.integration.daemons import Daemons, rootfs_tar

#: A line is answered by ``START PEER LINE``: when this process began, and whom it sees. ``slow MS`` is answered later,
#: ``get BYTES`` by so many bytes, ``sink`` by the number of bytes to the end of what is sent. TERM ends a connection
#: when its line is answered.
SERVER = r"""
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static volatile sig_atomic_t over;
static void end(int n) { (void)n; over = 1; }
static long start;
static long now(void) {
    struct timespec t; clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}
static void doze(long ms) { long until = now() + ms; while (now() < until) usleep(1000); }
static int say(int c, const char *b, size_t n) {
    while (n) { ssize_t w = write(c, b, n); if (w < 0) { if (errno == EINTR) continue; return -1; } b += w; n -= w; }
    return 0;
}
static char block[65536];
static void serve(int c, const char *peer) {
    char b[4096]; size_t have = 0;
    for (int answered = 0;; answered = 1) {
        char *line;
        while (!(line = memchr(b, '\n', have))) {
            struct pollfd ready = {c, POLLIN, 0};
            if (have == sizeof b || (over && (answered || poll(&ready, 1, 100) <= 0))) return;
            ssize_t n = read(c, b + have, sizeof b - have);
            if (n == 0 || (n < 0 && errno != EINTR)) return;
            if (n > 0) have += n;
        }
        *line = 0;
        if (!strncmp(b, "slow ", 5)) doze(atol(b + 5));
        if (!strncmp(b, "get ", 4)) {
            long left = atol(b + 4);
            memset(block, 'x', sizeof block);
            while (left > 0) {
                size_t n = left < (long)sizeof block ? left : sizeof block;
                if (say(c, block, n)) return;
                left -= n;
            }
        } else if (!strcmp(b, "sink")) {
            long total = have - (line + 1 - b); ssize_t n;
            while ((n = read(c, block, sizeof block)) != 0) {
                if (n < 0 && errno != EINTR) return;
                if (n > 0) total += n;
            }
            char out[64]; say(c, out, snprintf(out, sizeof out, "%ld\n", total)); return;
        } else {
            char out[4300]; if (say(c, out, snprintf(out, sizeof out, "%ld %s %s\n", start, peer, b))) return;
        }
        have -= line + 1 - b; memmove(b, line + 1, have);
    }
}
int main(int argc, char **argv) {
    struct sigaction act = {.sa_handler = end};
    sigaction(SIGTERM, &act, 0);
    signal(SIGPIPE, SIG_IGN); signal(SIGCHLD, SIG_IGN);
    start = now();
    if (argc > 2) doze(atol(argv[2]));
    int s = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 7000)};
    if (bind(s, (void *)&a, sizeof a) || listen(s, 4096)) return 1;
    /* Whoever is in the queue at the end is served first. */
    for (int quiet = 0; quiet < 3;) {
        struct sockaddr_in p; socklen_t size = sizeof p;
        struct pollfd ready = {s, POLLIN, 0};
        if (poll(&ready, 1, over ? 20 : 1000) <= 0) { quiet += over; continue; }
        int c = accept(s, (void *)&p, &size);
        if (c < 0) continue;
        if (!fork()) {
            char peer[64]; snprintf(peer, sizeof peer, "%s:%d", inet_ntoa(p.sin_addr), ntohs(p.sin_port));
            close(s); serve(c, peer); _exit(0);
        }
        close(c);
    }
    close(s);
    kill(-1, SIGTERM);
    while (wait(0) > 0);
    return 0;
}
"""


def import_service(daemons: Daemons, tag: str = "lines") -> None:
    """The image *tag* with the server in it, as /data/lines."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("missing: cc")
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "lines.c", Path(folder) / "lines"
        source.write_text(SERVER)
        subprocess.run([compiler, "-static", "-O1", "-o", str(program), str(source)], check=True, timeout=60)
        data = program.read_bytes()
    out = io.BytesIO(rootfs_tar())
    with tarfile.open(fileobj=out, mode="a") as tar:
        info = tarfile.TarInfo("data/lines")
        info.size, info.mode = len(data), 0o755
        tar.addfile(info, io.BytesIO(data))
    client = daemons.client
    ended = client.follow(client.import_image(iter([out.getvalue()]), tag=tag, format_="rootfs"))
    assert ended.status == "done", ended
