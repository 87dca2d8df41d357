"""The contents of /etc/hosts, /etc/hostname and /etc/resolv.conf of a pod, from checked values. Pure.

Every value is checked before it is written: a name with a line break would write another line.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from casemate.spec.errors import InvalidArgument
from casemate.spec.ids import check_hostname
from casemate.spec.resolvers import MAX_RESOLVERS

_OPTION = re.compile(r"[a-z0-9-]{1,40}(:[0-9]{1,6})?\Z")
#: A host name in /etc/hosts may be anything of RFC 1123 with underscores, as people have them.
_NAME = re.compile(r"[a-zA-Z0-9_]([a-zA-Z0-9_.-]{0,251}[a-zA-Z0-9_])?\Z")

_HOSTS_HEAD = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
"""


def hostname_file(hostname: str) -> str:
    """/etc/hostname."""
    return f"{check_hostname(hostname)}\n"


def hosts_file(hostname: str, address: str | None, extra: Sequence[tuple[str, str]] = ()) -> str:
    """/etc/hosts: localhost, the pod itself (where it has an *address*), and *extra* (address, name) lines."""
    check_hostname(hostname)
    lines = [_HOSTS_HEAD]
    short = hostname.partition(".")[0]
    names = hostname if short == hostname else f"{hostname} {short}"
    lines.append(f"{_address(address) if address else '127.0.0.1'}\t{names}\n")
    lines.extend(f"{_address(one)}\t{check_host_entry(name)}\n" for one, name in extra)
    return "".join(lines)


def check_host_entry(name: str) -> str:
    """*name*, when it may stand in /etc/hosts."""
    if not _NAME.match(name):
        raise InvalidArgument(f"host name {name[:80]!r} may not stand in /etc/hosts")
    return name


def resolv_file(resolvers: Sequence[str], search: Sequence[str] = (), options: Sequence[str] = ()) -> str:
    """/etc/resolv.conf; at most :data:`MAX_RESOLVERS` resolvers are written, the first ones."""
    lines = [f"nameserver {_address(one)}\n" for one in resolvers[:MAX_RESOLVERS]]
    if search and tuple(search) != (".",):
        lines.append(f"search {' '.join(check_host_entry(one.rstrip('.')) for one in search)}\n")
    if options:
        for one in options:
            if not _OPTION.match(one):
                raise InvalidArgument(f"resolver option {one[:60]!r} is not of the form name or name:number")
        lines.append(f"options {' '.join(options)}\n")
    return "".join(lines)


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise InvalidArgument(f"{text[:60]!r} is not an address") from error
