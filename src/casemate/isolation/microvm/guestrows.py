"""What a guest says of its processes and figures, as values. Pure; the guest is hostile, so every line may be wrong."""

from __future__ import annotations

from typing import NamedTuple

from casemate.isolation.level import InnerProcess, InnerUsage
from casemate.isolation.microvm.frames import Message, Tag

#: USER_HZ of every x86-64 kernel.
_TICKS_S = 100
MAX_PROCESSES, _MAX_COMMAND = 1000, 512
_LARGEST = (1 << 63) - 1
_UNKNOWN_CODE = 255


def stat_text(reply: Message, name: str) -> str:
    """The statistics file *name* of the reply; empty when it is not there."""
    prefix = name.encode() + b"\0"
    for field in reply.fields:
        if field.tag == Tag.STAT and field.value.startswith(prefix):
            return field.value[len(prefix) :].decode("ascii", "replace")
    return ""


def number(text: str) -> int:
    """A count of the kernel's; 0 for what is none (``max`` too), bounded for what is absurd."""
    word = text.strip()[:20]
    return min(int(word), _LARGEST) if word.isascii() and word.isdigit() else 0


def keyed(text: str, key: str) -> int:
    """The number behind *key* in a flat keyed file (cgroup-v2, "Format")."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return number(value)
    return 0


def usage(reply: Message) -> InnerUsage:
    """The figures of STATS; *memory_bytes* as the guest counts it."""
    read = write = 0
    for line in stat_text(reply, "io.stat").splitlines()[:64]:
        for word in line.split()[1:]:
            key, _, value = word.partition("=")
            read += number(value) if key == "rbytes" else 0
            write += number(value) if key == "wbytes" else 0
    return InnerUsage(
        cpu_ns=keyed(stat_text(reply, "cpu.stat"), "usage_usec") * 1000,
        memory_bytes=number(stat_text(reply, "memory.current")),
        memory_limit_bytes=number(stat_text(reply, "memory.max")),
        pids=number(stat_text(reply, "pids.current")),
        pids_limit=number(stat_text(reply, "pids.max")),
        read_bytes=read,
        write_bytes=write,
    )


def processes(reply: Message) -> list[InnerProcess]:
    """The rows of TOP: ``pid NUL uid NUL seconds since the epoch of the boot NUL stat NUL command``, one a field."""
    found = []
    for field in reply.fields[:MAX_PROCESSES]:
        if field.tag == Tag.PROCESS and (row := _process(field.value)) is not None:
            found.append(row)
    return found


class Ended(NamedTuple):
    """A *container* that has ended, its exit *code*, and whether the guest's kernel killed it for want of memory."""

    container: str
    code: int
    oom_killed: bool


def ended(reply: Message) -> list[Ended]:
    """The containers that have ended, of the rows of PROCESSES: ``container NUL exec NUL pid NUL status NUL code NUL
    whether its kernel killed it for want of memory`` (0, 1; an older agent says nothing of that), one a field."""
    found = []
    for field in reply.fields[:MAX_PROCESSES]:
        parts = field.value.split(b"\0", 6)
        if field.tag != Tag.PROCESS or len(parts) not in (5, 6) or parts[1] or parts[3] != b"ended":
            continue
        code = _bytes_number(parts[4]) & 255 if parts[4].isdigit() else _UNKNOWN_CODE
        found.append(Ended(parts[0].decode("ascii", "replace"), code, parts[5:] == [b"1"]))
    return found


def _process(value: bytes) -> InnerProcess | None:
    parts = value.split(b"\0", 4)
    if len(parts) != 5:
        return None
    pid, uid, boot, stat, command = parts
    opening, closing = stat.find(b"("), stat.rfind(b")")
    fields = stat[closing + 2 :].split()
    if opening < 0 or closing < opening or len(fields) < 20:
        return None
    words = [_bytes_number(word) for word in (pid, uid, boot, fields[1], fields[11], fields[12], fields[19])]
    name = stat[opening + 1 : closing]
    text = (command.rstrip(b"\0").replace(b"\0", b" ") or b"[" + name + b"]")[:_MAX_COMMAND].decode("utf-8", "replace")
    return InnerProcess(
        pid=words[0],
        ppid=words[3],
        uid=words[1],
        cpu_ns=(words[4] + words[5]) * 1_000_000_000 // _TICKS_S,
        started_at=words[2] + words[6] / _TICKS_S,
        tty=_tty(_bytes_number(fields[4])),
        command="".join(c if c.isprintable() else "?" for c in text),
    )


def _bytes_number(word: bytes) -> int:
    return number(word.decode("ascii", "replace"))


def _tty(device: int) -> str:
    """The terminal of /proc/<pid>/stat's seventh field: pts are major 136 to 143 (proc(5))."""
    major, minor = device >> 8 & 0xFFF, (device & 0xFF) | (device >> 12 & 0xFFF00)
    return f"pts/{(major - 136) * 256 + minor}" if 136 <= major <= 143 else "?"
