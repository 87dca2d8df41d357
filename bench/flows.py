"""How many connections a second the flow recorder takes without loss, and what that costs.

    sudo python bench/flows.py [SECONDS]

A network namespace of its own with an interface that leads nowhere: datagrams to ever new addresses and ports
(bench/datagrams.c) begin connections, conntrack tells, the real recorder (its own process, its real store) writes.
This process stands for casemated: it answers which rule decided. A connection is two events (it begins; it is forgotten
within 50 ms). Printed: connections offered and recorded, events lost, the recorder's CPU time.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from measure import cpu_s

from casemate.host import flowsockets, programs
from casemate.network import flowlog
from casemate.node.flows.wire import ENCODER, FROM_RECORDER, End, Ends, Progress, Questions, Ruling, Rulings

RATES = (10_000, 25_000, 50_000, 75_000)
SETUP = """
ip link set lo up
ip link add out type veth peer name nowhere
ip addr add 198.18.0.1/15 dev out
ip link set out up
ip link set nowhere up
ip neigh replace 198.19.0.1 lladdr 02:00:00:00:00:01 dev out
ip route add 10.0.0.0/8 via 198.19.0.1 dev out
nft add table ip bench
nft add chain ip bench end '{ type filter hook prerouting priority -400; }'
nft add rule ip bench end iifname nowhere drop
nft add chain ip bench see '{ type filter hook output priority 0; }'
nft add rule ip bench see ct state new counter
"""


class Stand:
    """casemated's part: rulings, and the last counters heard."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self.progress: Progress | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            data = self._channel.recv(1 << 18)
            if not data:
                return
            message = FROM_RECORDER.decode(data)
            if isinstance(message, Questions):
                rulings = (Ruling("allow", "bench", 256, 257),) * len(message.questions)
                self._channel.send(ENCODER.encode(Rulings(message.number, rulings)))
            else:
                self.progress = message


def offer(program: str, rate: int, seconds: float, begin: int) -> int:
    """Begin *rate* connections a second; how many were begun. *begin* makes them new ones."""
    done = subprocess.run([program, str(rate), str(seconds), str(begin)], check=True, capture_output=True, timeout=120)
    return int(done.stdout)


def build(folder: Path) -> str:
    target = folder / "datagrams"
    subprocess.run(["gcc", "-O2", "-Wall", "-o", target, Path(__file__).with_name("datagrams.c")], check=True)
    return str(target)


def one_rate(program: str, rate: int, seconds: float, folder: Path, begin: int) -> None:
    load = os.getloadavg()[0]
    events = flowsockets.connection_events(["198.18.0.0/15"])
    logs = [
        flowsockets.packet_log(flowlog.verdict_group("bench"), 128),
        flowsockets.packet_log(flowlog.hello_group("bench"), 128),
    ]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fds = {3: theirs.fileno(), 4: events.fileno(), 5: logs[0].fileno(), 6: logs[1].fileno(), 2: 2}
    source = str(Path(__file__).resolve().parents[1] / "src")
    argv = [sys.executable, "-m", "casemate.node.flows.child", str(folder / f"{rate}.db"), "1000000"]
    pid = programs.spawn(argv, env={"PYTHONPATH": source}, fds=fds)
    for one in (theirs, events, *logs):
        one.close()
    stand = Stand(ours)
    ours.send(ENCODER.encode(Ends((End("198.18.0.1", "pod", "bench", "client", "p"),))))
    while stand.progress is None:
        time.sleep(0.01)
    before = cpu_s(pid)
    offered = offer(program, rate, seconds, begin)
    time.sleep(2.0)
    spent = cpu_s(pid) - before
    counters = stand.progress.counters
    print(
        f"{rate:>7}/s wanted: {offered / seconds:>9,.0f}/s begun, {counters.recorded:>9,} of {offered:,} recorded, "
        f"{counters.ended:,} ends, {counters.overruns} overruns, {counters.unruled} without rule, "
        f"{spent / seconds * 100:.0f} % of a cpu, {spent / max(offered, 1) * 1e6:.1f} us each; load {load:.1f}",
        flush=True,
    )
    ours.shutdown(socket.SHUT_RDWR)
    os.waitpid(pid, 0)
    ours.close()


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--inside":
        subprocess.run(["sh", "-ec", SETUP], check=True)
        flowsockets.switch_counting_on()
        seconds = float(sys.argv[2])
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            program = build(Path(folder))
            for place, rate in enumerate(RATES):
                one_rate(program, rate, seconds, Path(folder), place * 10_000_000)
        print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cpus, kernel {os.uname().release}")
        return
    seconds_text = sys.argv[1] if len(sys.argv) > 1 else "5"
    sys.exit(
        subprocess.run(["unshare", "-n", sys.executable, __file__, "--inside", seconds_text], check=False).returncode
    )


if __name__ == "__main__":
    main()
