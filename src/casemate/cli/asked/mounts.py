"""``--volume``, ``--mount`` and ``--tmpfs``: to the API's mounts, tagged by ``type``."""

from __future__ import annotations

import posix

from casemate.cli.asked.quantities import size
from casemate.cli.fail import bad_value

Mount = dict[str, object]

_VOLUME_FORM = "[SOURCE:]TARGET[:OPTIONS], for example /srv/data:/data:ro or cache:/var/cache"
_MOUNT_FORM = (
    "type=bind|volume|tmpfs,source=SOURCE,target=TARGET[,readonly], for example type=volume,source=db,target=/data"
)
_TMPFS_FORM = "TARGET[:OPTIONS], for example /tmp:size=64m,mode=1777"
_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_PROPAGATIONS = {"private": "private", "rprivate": "private", "slave": "rslave", "rslave": "rslave",
                 "shared": "rshared", "rshared": "rshared"}  # fmt: skip
#: Options that have a meaning elsewhere (SELinux relabelling, consistency on a Mac) and none here; they do no harm.
_WITHOUT_EFFECT = ("z", "Z", "cached", "delegated", "consistent", "rbind", "suid", "dev", "exec", "rw", "copy")


def anonymous_name() -> str:
    """The name of a volume that nobody named: 64 hexadecimal digits, as Docker's."""
    return posix.urandom(32).hex()


def volume(text: str, flag: str = "--volume") -> Mount:
    """``-v``: a host path (it begins with / or a dot) is bound, a name is a volume, a target alone is anonymous."""
    parts = text.split(":")
    if len(parts) == 1:
        return {"type": "volume", "volume": anonymous_name(), "target": _target(flag, text, parts[0], _VOLUME_FORM)}
    if len(parts) > 3:
        raise bad_value(flag, text, _VOLUME_FORM)
    source, target = parts[0], _target(flag, text, parts[1], _VOLUME_FORM)
    options = parts[2].split(",") if len(parts) == 3 and parts[2] else []
    if source.startswith(("/", ".", "~")):
        mount: Mount = {"type": "bind", "source": _absolute(source), "target": target, "create": True}
    else:
        mount = {"type": "volume", "volume": _name(flag, text, source), "target": target}
    for option in options:
        if option == "ro":
            mount["read_only"] = True
        elif option == "nocopy" and mount["type"] == "volume":
            mount["copy_up"] = False
        elif option in _PROPAGATIONS and mount["type"] == "bind":
            mount["propagation"] = _PROPAGATIONS[option]
        elif option not in _WITHOUT_EFFECT:
            raise bad_value(flag, text, f"{_VOLUME_FORM}; options are ro, rw, nocopy, rslave, rshared, not {option!r}")
    return mount


def mount(text: str) -> Mount:
    """``--mount``: fields ``key=value`` separated by commas, a field in double quotes where it holds one."""
    fields: dict[str, str] = {}
    for field in _csv(text):
        key, _, held = field.partition("=")
        fields[{"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}.get(key, key)] = held
    kind = fields.pop("type", "volume")
    target = _target("--mount", text, fields.pop("target", ""), _MOUNT_FORM)
    read_only = fields.pop("readonly", "false") in ("", "1", "true")
    fields.pop("consistency", None)
    made: Mount
    if kind == "bind":
        made = _bind(text, target, fields)
    elif kind == "volume":
        source = fields.pop("source", "")
        made = {"type": "volume", "target": target}
        made["volume"] = _name("--mount", text, source) if source else anonymous_name()
        if fields.pop("volume-nocopy", "false") in ("", "1", "true"):
            made["copy_up"] = False
        fields.pop("volume-driver", None)
    elif kind == "tmpfs":
        made = {"type": "tmpfs", "target": target}
        if "tmpfs-size" in fields:
            made["size_bytes"] = size("--mount tmpfs-size", fields.pop("tmpfs-size"))
        if "tmpfs-mode" in fields:
            made["mode"] = _mode("--mount tmpfs-mode", fields.pop("tmpfs-mode"))
    else:
        raise bad_value("--mount", text, f"{_MOUNT_FORM}; the type {kind!r} is not known")
    if fields:
        raise bad_value("--mount", text, f"{_MOUNT_FORM}; a {kind} mount takes no {next(iter(fields))!r}")
    if read_only:
        made["read_only"] = True
    return made


def _bind(text: str, target: str, fields: dict[str, str]) -> Mount:
    source = fields.pop("source", "")
    if not source:
        raise bad_value("--mount", text, f"{_MOUNT_FORM}; a bind mount wants a source")
    made: Mount = {"type": "bind", "source": _absolute(source), "target": target}
    wanted = fields.pop("bind-propagation", "")
    if wanted:
        if wanted not in _PROPAGATIONS:
            raise bad_value("--mount bind-propagation", wanted, "rprivate, rslave or rshared")
        made["propagation"] = _PROPAGATIONS[wanted]
    if fields.pop("bind-recursive", "enabled") == "disabled" or fields.pop("bind-nonrecursive", "") in ("1", "true"):
        made["recursive"] = False
    return made


def tmpfs(text: str) -> Mount:
    """``--tmpfs``: a target and mount options."""
    target, _, options = text.partition(":")
    made: Mount = {"type": "tmpfs", "target": _target("--tmpfs", text, target, _TMPFS_FORM)}
    for option in options.split(",") if options else ():
        key, _, held = option.partition("=")
        if key == "size":
            made["size_bytes"] = size("--tmpfs size", held)
        elif key == "mode":
            made["mode"] = _mode("--tmpfs mode", held)
        elif key == "ro":
            made["read_only"] = True
        elif key == "exec":
            made["exec"] = True
        elif key not in ("rw", "noexec", "nosuid", "nodev", "noatime"):
            raise bad_value("--tmpfs", text, f"{_TMPFS_FORM}; options are size, mode, ro, rw, exec, not {key!r}")
    return made


def device(text: str) -> dict[str, object]:
    """``--device``: SOURCE[:TARGET[:rwm]]."""
    parts = text.split(":")
    access = "rwm"
    if len(parts) > 1 and set(parts[-1]) <= set("rwm") and parts[-1]:
        access = parts.pop()
    source = parts[0]
    target = parts[1] if len(parts) == 2 else source
    if len(parts) > 2 or not source.startswith("/") or not target.startswith("/"):
        raise bad_value("--device", text, "SOURCE[:TARGET[:rwm]], for example /dev/fuse or /dev/sdb:/dev/xvdb:r")
    return {"source": source, "target": target, "access": access}


def _target(flag: str, text: str, target: str, form: str) -> str:
    if not target.startswith("/") or "\0" in target or len(target) > 4096:
        raise bad_value(flag, text, f"{form}; the target is an absolute path in the container")
    if target.strip("/") == "":
        raise bad_value(flag, text, f"{form}; the target cannot be /")
    return target


def _name(flag: str, text: str, name: str) -> str:
    if not name or not name[0].isalnum() or len(name) > 128 or not _NAME_LETTERS.issuperset(name):
        raise bad_value(
            flag,
            text,
            f"{_VOLUME_FORM}; a volume's name has letters, digits, _ . -, and a host path begins with / or .",
        )
    return name


def _absolute(path: str) -> str:
    """*path* from this side's current folder; ``~`` is the home folder (a shell leaves one within a word alone)."""
    from casemate.cli.variables import environment

    if path == "~" or path.startswith("~/"):
        path = (environment("HOME") or "/root") + path[1:]
    if not path.startswith("/"):
        path = f"{posix.getcwd()}/{path}"
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def _mode(flag: str, text: str) -> int:
    if not text or len(text) > 5 or text.strip("01234567"):
        raise bad_value(flag, text, "an octal mode, for example 1777")
    return int(text, 8) & 0o7777


def _csv(text: str) -> list[str]:
    fields: list[str] = []
    at = 0
    while at <= len(text):
        if text[at : at + 1] == '"':
            end = text.find('"', at + 1)
            if end < 0 or text[end + 1 : end + 2] not in ("", ","):
                raise bad_value("--mount", text, f"{_MOUNT_FORM}; a quote is not closed")
            fields.append(text[at + 1 : end])
            at = end + 2
        else:
            end = text.find(",", at)
            end = len(text) if end < 0 else end
            fields.append(text[at:end])
            at = end + 1
    return [field for field in fields if field]
