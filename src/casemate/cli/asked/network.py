"""``--publish``, ``--expose``, ``--network``, ``--dns``, ``--add-host``: to the API's NetworkRequest."""

from __future__ import annotations

from casemate.cli.asked.quantities import is_whole
from casemate.cli.fail import bad_value, usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.flags import Arguments

_PORT_FORM = "[[ADDRESS:]HOST_PORT:]PORT[/tcp|udp], for example 8080:80, 127.0.0.1:8080:80 or 5353:53/udp"
#: As many as the API takes; a range of ports counts each.
MAX_PORTS = 1024

_POD_NETWORKS = ("", "pod", "bridge", "default", "private", "slirp4netns", "pasta")


def network(arguments: Arguments) -> dict[str, object]:
    """The NetworkRequest of ``run``, ``create`` and ``pod create``; only what was asked for is in it."""
    made: dict[str, object] = {}
    mode = arguments.text("network") or ""
    if mode in ("none", "host"):
        made["mode"] = mode
    elif mode.startswith("container:"):
        raise usage(
            f"--network {mode[:80]!r}: containers share a network by being in one pod",
            "Make a pod with `casemate pod create --name P` and run both containers with --pod P.",
        )
    elif mode not in _POD_NETWORKS:
        raise bad_value(
            "--network", mode, "pod (also called bridge), none or host; every pod has an address of its own"
        )
    found = [port for text in arguments.texts("publish") for port in ports(text)]
    if arguments.on("publish-all"):
        made["publish_all"] = True
        found += [port for text in arguments.texts("expose") for port in exposed(text)]
    else:
        for text in arguments.texts("expose"):
            exposed(text)
    if len(found) > MAX_PORTS:
        raise usage(f"--publish: {len(found)} ports; at most {MAX_PORTS} are published")
    if found:
        made["ports"] = found
    texts = arguments.texts("keep")
    if texts:
        made["kept"] = [kept(text) for text in texts]
    for flag, name, most in (("dns", "dns", 8), ("dns-search", "dns_search", 16), ("dns-option", "dns_options", 16)):
        texts = arguments.texts(flag)
        if len(texts) > most:
            raise usage(f"--{flag}: {len(texts)} values; at most {most} are taken")
        if texts:
            made[name] = [_address(f"--{flag}", text) if flag == "dns" else text for text in texts]
    hosts = [host_entry(text) for text in arguments.texts("add-host")]
    if hosts:
        made["hosts"] = hosts
    return made


def ports(text: str) -> list[dict[str, object]]:
    """One port, or as many as a range holds; host port 0 lets Casemate choose."""
    body, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in ("tcp", "udp"):
        raise bad_value("--publish", text, _PORT_FORM)
    if body.startswith("[") or body.count(":") > 2:
        raise bad_value("--publish", text, f"{_PORT_FORM}; addresses are IPv4")
    parts = body.split(":")
    inside = _range("--publish", text, parts[-1], 1)
    outside = _range("--publish", text, parts[-2], 0) if len(parts) > 1 and parts[-2] else []
    address = parts[0] if len(parts) == 3 else ""
    if address:
        _address("--publish", address)
    if outside and len(outside) != len(inside):
        raise bad_value("--publish", text, f"{_PORT_FORM}; both ranges of ports have the same length")
    made: list[dict[str, object]] = []
    for index, port in enumerate(inside):
        row: dict[str, object] = {"container_port": port}
        if outside:
            row["host_port"] = outside[index]
        if address:
            row["host_address"] = address
        if protocol != "tcp":
            row["protocol"] = protocol
        made.append(row)
    return made


def kept(text: str) -> dict[str, object]:
    """``--keep``: a TCP port, and whether what was not answered may be asked again."""
    number, comma, word = text.partition(",")
    if not is_whole(number) or not 1 <= int(number) <= 65_535 or (comma and word != "replay"):
        raise bad_value("--keep", text, "PORT or PORT,replay, for example 8080 or 8080,replay")
    return {"port": int(number), "replay": True} if comma else {"port": int(number)}


def exposed(text: str) -> list[dict[str, object]]:
    """``--expose``: published at free ports when ``-P`` is given; otherwise it says nothing to anybody."""
    if ":" in text:
        raise bad_value("--expose", text, "PORT[/tcp|udp] or FIRST-LAST, for example 8080")
    return ports(text)


def _range(flag: str, text: str, part: str, least: int) -> list[int]:
    first, dash, last = part.partition("-")
    last = last if dash else first
    if not is_whole(first) or not is_whole(last) or not least <= int(first) <= int(last) <= 65_535:
        raise bad_value(flag, text, f"{_PORT_FORM}; a port is a number from 1 to 65535")
    if int(last) - int(first) >= MAX_PORTS:
        raise bad_value(flag, text, f"{_PORT_FORM}; a range holds at most {MAX_PORTS} ports")
    return list(range(int(first), int(last) + 1))


def _address(flag: str, text: str) -> str:
    parts = text.split(".")
    if len(parts) != 4 or not all(is_whole(part) and len(part) <= 3 and int(part) <= 255 for part in parts):
        raise bad_value(flag, text, "an IPv4 address, for example 127.0.0.1")
    return text


def host_entry(text: str) -> dict[str, object]:
    """``--add-host``: NAME:ADDRESS or NAME=ADDRESS; ``host-gateway`` is the daemon's to resolve."""
    mark = "=" if "=" in text else ":"
    name, found, address = text.partition(mark)
    address = address.removeprefix("[").removesuffix("]")
    plausible = address == "host-gateway" or (address and not address.strip("0123456789abcdefABCDEF.:"))
    if not found or not name or len(name) > 253 or " " in name or not plausible or len(address) > 45:
        raise bad_value("--add-host", text, "NAME:ADDRESS, for example db:10.0.0.7 or host.internal:host-gateway")
    return {"address": address, "name": name}
