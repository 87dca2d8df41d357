"""How many referrals a second both daemons decide: first packets of pods, each to another port, as fast as they come.

sudo PYTHONPATH=src:. python bench/referral_flood.py [pods] [packets a second of each, by commas] [seconds]
(in a checkout, with cc; daemons of its own; several rates: one flood after the other)

What is counted is what the kernel let through: segments that came in at the pod that is asked for. Each first packet
asks for a port that nobody asked for before, so that no answer in the kernel's map hides a referral.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# What follows is imported from this checkout, which need not be installed: hence below this line (E402).
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "src")]

from measure import cpu_s, machine  # noqa: E402
from tests.integration.daemons import running_daemons  # noqa: E402
from tests.integration.policy.world import World, import_image, world_of  # noqa: E402

#: A pod may send 2,000 a second to be asked about (network.firewall.rules), so it takes a dozen to flood.
PODS, RATE, SECONDS = 14, 1900, 4.0
DOCUMENT = """
apiVersion: casemate/v1
kind: Policy
metadata: {name: bench}
spec:
  segments: {asker: {select: {matchLabels: {app: asker}}, default: {egress: refer}}}
  rules:
  - name: asked
    from: [{segment: asker}]
    to: any
    ports: [tcp/1024-65535]
    action: allow
    when: 'destination.labels.app == "db"'
"""
#: flood SOURCE DESTINATION RATE SECONDS PORT: first packets, each to the next port; says how many it sent.
FLOOD = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#define MOST 64
static unsigned sum(const void *p, int n) {
    const unsigned short *w = p; unsigned s = 0;
    for (; n > 1; n -= 2) s += *w++;
    return s;
}
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
int main(int argc, char **argv) {
    if (argc < 6) return 2;
    double rate = atof(argv[3]), length = atof(argv[4]);
    int s = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    if (s < 0) return 1;
    struct sockaddr_in to = {.sin_family = AF_INET};
    inet_pton(AF_INET, argv[2], &to.sin_addr);
    struct { struct iphdr ip; struct tcphdr tcp; } p[MOST];
    struct iovec v[MOST]; struct mmsghdr m[MOST];
    memset(p, 0, sizeof p); memset(m, 0, sizeof m);
    for (int i = 0; i < MOST; i++) {
        p[i].ip.version = 4; p[i].ip.ihl = 5; p[i].ip.ttl = 64; p[i].ip.protocol = 6; p[i].ip.tot_len = htons(40);
        inet_pton(AF_INET, argv[1], &p[i].ip.saddr); p[i].ip.daddr = to.sin_addr.s_addr;
        p[i].tcp.doff = 5; p[i].tcp.syn = 1; p[i].tcp.window = htons(1024);
        v[i] = (struct iovec){&p[i], sizeof p[i]};
        m[i].msg_hdr = (struct msghdr){.msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &v[i], .msg_iovlen = 1};
    }
    double begin = now(); long sent = 0; unsigned port = atoi(argv[5]), from = 40000;
    while (now() - begin < length) {
        long due = (now() - begin) * rate - sent;
        if (due > MOST) due = MOST;
        for (int i = 0; i < due; i++) {
            if (++port > 65535) { port = 1024; from++; }
            p[i].tcp.source = htons(from); p[i].tcp.dest = htons(port); p[i].tcp.check = 0;
            unsigned c = sum(&p[i].ip.saddr, 8) + htons(6) + htons(20) + sum(&p[i].tcp, 20);
            while (c >> 16) c = (c & 65535) + (c >> 16);
            p[i].tcp.check = ~c;
        }
        if (due > 0) { int n = sendmmsg(s, m, due, 0); if (n > 0) sent += n; }
        nanosleep(&(struct timespec){0, 4000000}, 0);
    }
    printf("%ld\n", sent);
    return 0;
}
"""


def main() -> None:
    pods = int(sys.argv[1]) if len(sys.argv) > 1 else PODS
    rates = [int(rate) for rate in sys.argv[2].split(",")] if len(sys.argv) > 2 else [RATE]
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else SECONDS
    print(machine(), f"load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder, running_daemons() as daemons:
        program = Path(folder) / "flood"
        subprocess.run(["cc", "-O2", "-x", "c", "-", "-o", str(program)], input=FLOOD.encode(), check=True, timeout=60)
        import_image(daemons)
        with world_of(daemons) as world:
            address = world.run("db", app="db")
            for number in range(pods):
                world.run(f"asker{number}", app="asker")
            world.apply(DOCUMENT)
            first_port = 1024
            for rate in rates:
                measure(world, program, address, pods, rate, seconds, first_port)
                first_port += int(rate * seconds) + 64
                time.sleep(1.0)


def measure(
    world: World, program: Path, address: str, pods: int, rate: int, seconds: float, first_port: int
) -> None:  # fmt: skip
    processes = {name: one.pid for name, one in world.daemons.processes.items()}
    processes |= {"the flow recorder": recorder(processes["casemated"])}
    came = segments(world.pids["db"])
    before = {name: cpu_s(pid) for name, pid in processes.items()}
    began = time.monotonic()
    flood = [
        subprocess.Popen(
            ["nsenter", f"--net=/proc/{world.pids[name]}/ns/net", str(program), world.addresses[name], address,
             str(rate), str(seconds), str(first_port)],
            stdout=subprocess.PIPE,
        )
        for name in (f"asker{number}" for number in range(pods))
    ]  # fmt: skip
    sent = sum(int(one.communicate(timeout=60)[0]) for one in flood)
    length = time.monotonic() - began
    decided = segments(world.pids["db"]) - came
    used = {name: cpu_s(pid) - before[name] for name, pid in processes.items()}
    print(f"{pods} pods, {sent / length:.0f} first packets a second for {length:.1f} s")
    print(f"{decided / length:.0f} decided a second   (budget 20,000)")
    for name, one in used.items():
        print(f"processor time of {name}: {one / max(1, decided) * 1e6:.0f} us a decision, {one / length * 100:.0f} %")
    counters = world.referrals().counters
    print("counted so far:", {name: count for name, count in sorted(counters.items()) if count})


def segments(pid: int) -> int:
    """TCP segments that came in, of the network namespace of *pid*."""
    names, values = (
        line.split() for line in Path(f"/proc/{pid}/net/snmp").read_text().splitlines() if line.startswith("Tcp:")
    )
    return int(values[names.index("InSegs")])


def recorder(pid: int) -> int:
    """The child of casemated that records flows."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"flows" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise SystemExit("casemated has no flow recorder")


if __name__ == "__main__":
    main()
