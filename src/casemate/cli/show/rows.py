"""Rows of ``ps``, ``image ls``, ``pod ps``, ``volume ls``, ``stats``: from the API's values to Docker's names."""

from __future__ import annotations

from casemate.cli.show.human import ago, duration, familiar, memory, parse_time, short_id, size
from casemate.cli.show.plain import quoted, shortened

Row = dict[str, object]

PS_COLUMNS = (
    ("ID", "CONTAINER ID"), ("Image", "IMAGE"), ("Command", "COMMAND"), ("CreatedAt_", "CREATED"),
    ("Status", "STATUS"), ("Ports", "PORTS"), ("Names", "NAMES"),
)  # fmt: skip
#: Titles for fields that ``--format table`` may name besides.
PS_TITLES = (*PS_COLUMNS, ("RunningFor", "CREATED"), ("CreatedAt", "CREATED AT"), ("State", "STATE"),
             ("Labels", "LABELS"), ("Pod", "POD"), ("Level", "LEVEL"), ("Project", "PROJECT"),
             ("Identity", "IDENTITY"))  # fmt: skip
IMAGE_COLUMNS = (
    ("Repository", "REPOSITORY"), ("Tag", "TAG"), ("ID", "IMAGE ID"), ("CreatedSince", "CREATED"), ("Size", "SIZE"),
)  # fmt: skip
POD_COLUMNS = (
    ("ID", "POD ID"), ("Name", "NAME"), ("Status", "STATUS"), ("Level", "LEVEL"), ("Created", "CREATED"),
    ("Address", "ADDRESS"), ("NumberOfContainers", "# OF CONTAINERS"),
)  # fmt: skip
VOLUME_COLUMNS = (("Driver", "DRIVER"), ("Name", "VOLUME NAME"))
STATS_COLUMNS = (
    ("ID", "CONTAINER ID"), ("Name", "NAME"), ("CPUPerc", "CPU %"), ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"), ("NetIO", "NET I/O"), ("BlockIO", "BLOCK I/O"), ("PIDs", "PIDS"),
)  # fmt: skip


def integer(row: Row, name: str) -> int:
    found = row.get(name)
    return int(found) if isinstance(found, int | float) else 0


def text(row: Row, name: str) -> str:
    found = row.get(name)
    return "" if found is None else str(found)


def status(row: Row, now: float) -> str:
    """``Up 3 minutes``, ``Exited (0) 2 hours ago``: Docker's words for the API's status and times."""
    state, started, finished = text(row, "status"), text(row, "started_at"), text(row, "finished_at")
    code = integer(row, "exit_code")
    since = parse_time(started)
    up = "Up" if since is None else f"Up {duration(now - since)}"
    match state:
        case "running" | "stopping":
            return up
        case "paused":
            return f"{up} (Paused)"
        case "exited":
            return f"Exited ({code}) {ago(finished, now)}".rstrip()
        case "restarting":
            return f"Restarting ({code}) {ago(finished, now)}".rstrip()
        case "removing":
            return "Removal In Progress"
        case "broken":
            return "Broken"
        case _:
            return state.capitalize()


def ports(value: object) -> str:
    """``0.0.0.0:8080->80/tcp, 53/udp``."""
    found: list[str] = []
    for row in value if isinstance(value, list) else ():
        inside = f"{row.get('container_port')}/{row.get('protocol', 'tcp')}"
        outside = row.get("host_port", 0)
        found.append(f"{row.get('host_address', '0.0.0.0')}:{outside}->{inside}" if outside else inside)  # noqa: S104 - shown
    return ", ".join(found)


def labels(value: object) -> str:
    return ",".join(f"{key}={held}" for key, held in sorted(value.items())) if isinstance(value, dict) else ""


def container(row: Row, now: float, whole: bool) -> Row:
    """A row of ``ps``; *whole* cuts nothing (``--no-trunc``)."""
    id_, command = text(row, "id"), text(row, "command")
    age = ago(text(row, "created_at"), now)
    return {
        "ID": id_ if whole else id_[:12],
        "Names": text(row, "name"),
        "Image": familiar(text(row, "image")),
        "Command": quoted(command if whole else shortened(command, 20)),
        "CreatedAt": text(row, "created_at"),
        "CreatedAt_": age,
        "RunningFor": age,
        "Status": status(row, now),
        "State": text(row, "status"),
        "Ports": ports(row.get("ports")),
        "Labels": labels(row.get("labels")),
        "Mounts": "",
        "Networks": "pod",
        "Size": "",
        "Pod": text(row, "pod") if whole else text(row, "pod")[:12],
        "PodName": text(row, "pod_name"),
        "Level": text(row, "level"),
        "Project": text(row, "project") or "default",
        "Address": text(row, "address"),
        "Identity": text(row, "identity"),
        "Restarts": integer(row, "restarts"),
        "ExitCode": row.get("exit_code"),
        "ImageDigest": text(row, "image_digest"),
    }


def split_name(name: str) -> tuple[str, str]:
    """Repository and tag of an image's name; a digest is no tag."""
    shown = familiar(name).partition("@")[0]
    head, colon, tag = shown.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (shown, "<none>")


def images(row: Row, now: float, whole: bool) -> list[Row]:
    """A row for each name of an image; one with ``<none>`` where it has none."""
    names = row.get("names")
    pairs = [split_name(str(name)) for name in names] if isinstance(names, list) and names else [("<none>", "<none>")]
    id_ = text(row, "id")
    return [
        {
            "ID": id_ if whole else short_id(id_),
            "Repository": repository,
            "Tag": tag,
            "Digest": text(row, "digest") or "<none>",
            "CreatedSince": ago(text(row, "created_at"), now) or "N/A",
            "CreatedAt": text(row, "created_at"),
            "Size": size(integer(row, "size_bytes")),
            "SharedSize": size(integer(row, "shared_bytes")),
            "Containers": integer(row, "containers"),
            "Platform": text(row, "platform"),
            "Labels": labels(row.get("labels")),
        }
        for repository, tag in pairs
    ]


def pod(row: Row, now: float, whole: bool) -> Row:
    held = row.get("containers")
    id_ = text(row, "id")
    return {
        "ID": id_ if whole else id_[:12],
        "Name": text(row, "name"),
        "Status": text(row, "status").capitalize(),
        "Level": text(row, "level"),
        "Created": ago(text(row, "created_at"), now),
        "CreatedAt": text(row, "created_at"),
        "Address": text(row, "address"),
        "NumberOfContainers": len(held) if isinstance(held, list) else 0,
        "Containers": held if isinstance(held, list) else [],
        "Labels": labels(row.get("labels")),
        "Ports": ports(row.get("ports")),
        "Implicit": bool(row.get("implicit")),
        "Project": text(row, "project") or "default",
    }


def volume(row: Row) -> Row:
    used = row.get("used_by")
    return {
        "Driver": "local",
        "Name": text(row, "name"),
        "Scope": "local",
        "Labels": labels(row.get("labels")),
        "Size": size(integer(row, "size_bytes") if "size_bytes" in row else -1),
        "Links": len(used) if isinstance(used, list) else 0,
        "Anonymous": bool(row.get("anonymous")),
        "CreatedAt": text(row, "created_at"),
        "Project": text(row, "project") or "default",
    }


def stats(row: Row, whole: bool) -> Row:
    used, limit = integer(row, "memory_bytes"), integer(row, "memory_limit_bytes")
    percent = row.get("cpu_percent")
    id_ = text(row, "id")
    return {
        "ID": id_ if whole else id_[:12],
        "Container": id_ if whole else id_[:12],
        "Name": text(row, "name"),
        "CPUPerc": f"{percent if isinstance(percent, int | float) else 0.0:.2f}%",
        "MemUsage": f"{memory(used)} / {memory(limit) if limit else '--'}",
        "MemPerc": f"{100.0 * used / limit if limit else 0.0:.2f}%",
        "NetIO": f"{size(integer(row, 'rx_bytes'))} / {size(integer(row, 'tx_bytes'))}",
        "BlockIO": f"{size(integer(row, 'read_bytes'))} / {size(integer(row, 'write_bytes'))}",
        "PIDs": integer(row, "pids"),
    }
