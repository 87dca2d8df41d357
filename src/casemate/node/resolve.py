"""A request and an image become specifications: what is asked for, over what the image says, over the defaults. Pure.

The rules are those that people know from Docker: an entrypoint of the request drops the image's command, a command
alone drops only the image's; an environment variable of the request wins, one without ``=`` removes.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

import msgspec

from casemate.image.records import ImageConfig
from casemate.node.errors import CommandMissing
from casemate.node.signals import TERM, signal_number
from casemate.node.users import Account, resolve_user
from casemate.spec import capabilities
from casemate.spec.api import ContainerRequest, ExecRequest, NetworkRequest, PortRequest
from casemate.spec.errors import InvalidArgument
from casemate.spec.ids import check_hostname
from casemate.spec.targets import check_target
from casemate.spec.workload import (
    BindMount,
    ContainerSpec,
    KeptPort,
    Log,
    Mount,
    NetworkSpec,
    Process,
    PublishedPort,
    Resources,
    Security,
    VolumeMount,
)

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Exposed ports of an image that ``-P`` publishes at most.
MAX_EXPOSED = 1024


@dataclass(frozen=True, slots=True)
class Image:
    """What a container needs of its image: *layers* bottom to top, by the digest of their squashfs."""

    reference: str
    digest: str
    config: ImageConfig
    layers: tuple[str, ...]
    passwd: bytes | None
    group: bytes | None


@dataclass(frozen=True, slots=True)
class Defaults:
    """The settings that a request falls back to."""

    pids: int
    stop_timeout_s: int
    log_max_bytes: int
    writable_bytes: int


@dataclass(frozen=True, slots=True)
class Resolved:
    """The container as hostd takes it, and what casemated keeps beside it."""

    spec: ContainerSpec
    command: str
    stop_signal: int
    stop_timeout_s: int
    #: Names of the image's own volumes, made for this container.
    anonymous: tuple[str, ...]


def resolve_container(
    request: ContainerRequest,
    image: Image,
    defaults: Defaults,
    *,
    id_: str,
    pod: str,
    name: str,
    hostname: str,
    volume_names: tuple[str, ...],
) -> Resolved:
    """The specification of a new container; *volume_names* are fresh names, one for each volume of the image."""
    args = _arguments(request, image.config)
    account = resolve_user(
        request.user if request.user is not None else image.config.user, image.passwd, image.group, request.groups
    )
    mounts, anonymous = _mounts(request.mounts, image.config.volumes, volume_names)
    stop = request.stop_signal or image.config.stop_signal
    process = Process(
        args=args,
        env=_environment(image.config.env, request.env, account, hostname, terminal=request.terminal),
        cwd=_folder(request.cwd or image.config.working_dir or "/"),
        user=account.user,
        terminal=request.terminal,
        stdin=request.stdin,
        rlimits=request.rlimits,
    )
    spec = ContainerSpec(
        id=id_,
        pod=pod,
        name=name,
        layers=image.layers,
        process=process,
        project=request.project,
        mounts=mounts,
        devices=request.devices,
        resources=_resources(request.resources, defaults),
        security=_security(request),
        sysctls=request.sysctls,
        read_only=request.read_only,
        writable_bytes=request.writable_bytes or defaults.writable_bytes,
        volatile=request.auto_remove,
        init=request.init,
        shm_bytes=request.shm_bytes if request.shm_bytes is not None else 64 << 20,
        log=Log(request.log_max_bytes or defaults.log_max_bytes, request.log_keep),
    )
    timeout_s = request.stop_timeout if request.stop_timeout is not None else defaults.stop_timeout_s
    return Resolved(spec, " ".join(args), _stop_signal(stop), timeout_s, anonymous)


def resolve_exec(request: ExecRequest, first: Process, passwd: bytes | None, group: bytes | None) -> Process:
    """The process of an exec: in the environment, the folder and as the user of the container's *first* process."""
    _refuse_nul(request.command, "argument")
    account = resolve_user(request.user, passwd, group) if request.user is not None else None
    merged = _merge(first.env if account is None else _without(first.env, "HOME"), request.env)
    if account is not None:
        merged.setdefault("HOME", account.home)
    if request.terminal:
        merged.setdefault("TERM", "xterm")
    return Process(
        args=request.command,
        env=tuple(f"{key}={value}" for key, value in merged.items()),
        cwd=_folder(request.cwd or first.cwd),
        user=account.user if account is not None else first.user,
        terminal=request.terminal,
        stdin=request.stdin,
        rlimits=first.rlimits,
    )


def resolve_network(
    request: NetworkRequest, *, address: str, dns: tuple[str, ...], search: tuple[str, ...] = ()
) -> NetworkSpec:
    """The network of a pod. Ports of the host that are to be chosen stay 0 here: see :func:`wanted_ports`.

    *dns* and its *search* list are for whoever names no name server of their own.
    """
    if request.mode != "pod":
        if request.ports or request.publish_all:
            raise InvalidArgument(
                f"network mode {request.mode} publishes no ports", remedy="Leave -p away, or use mode pod."
            )
        if request.kept:
            raise InvalidArgument(
                f"network mode {request.mode} keeps no ports", remedy="Leave --keep away, or use mode pod."
            )
        return NetworkSpec(mode=request.mode, dns=request.dns or dns, hosts=request.hosts)
    return NetworkSpec(
        mode="pod",
        address=address,
        dns=request.dns or dns,
        dns_search=request.dns_search or (() if request.dns else search),
        dns_options=request.dns_options,
        hosts=request.hosts,
        kept=_kept(request),
    )


def _kept(request: NetworkRequest) -> tuple[KeptPort, ...]:
    if len({one.port for one in request.kept}) != len(request.kept):
        raise InvalidArgument("the same port is kept twice", remedy="Give each port with --keep once.")
    return request.kept


def wanted_ports(request: NetworkRequest, exposed: tuple[str, ...]) -> tuple[PortRequest, ...]:
    """The ports to publish, those of the image with ``-P`` included; each pod port and protocol once per host port."""
    wanted = list(request.ports)
    if request.publish_all:
        named = {(port.container_port, port.protocol) for port in wanted}
        for text in exposed[:MAX_EXPOSED]:
            port = exposed_port(text)
            if port is not None and (port.container_port, port.protocol) not in named:
                wanted.append(port)
    return tuple(wanted)


def exposed_port(text: str) -> PortRequest | None:
    """``80/tcp`` of an image's configuration; None for what is no such thing (images hold all kinds of things)."""
    number, _, protocol = text.partition("/")
    if not (number.isascii() and number.isdigit() and len(number) <= 5 and 1 <= int(number) <= 65_535):
        return None
    match protocol or "tcp":
        case "tcp":
            return PortRequest(int(number))
        case "udp":
            return PortRequest(int(number), protocol="udp")
        case _:
            return None


def published(ports: tuple[PortRequest, ...]) -> tuple[PublishedPort, ...]:
    """*ports*, all of them chosen, as hostd takes them."""
    return tuple(PublishedPort(p.container_port, p.host_port, p.host_address, p.protocol) for p in ports)


def grants_needed(request: ContainerRequest) -> tuple[str, ...]:
    """The grants that hostd will look for: for the audit log, and to refuse early where nobody can hold them."""
    needed = []
    if any(isinstance(mount, BindMount) for mount in request.mounts):
        needed.append("host_paths")
    if request.devices:
        needed.append("devices")
    if capabilities.beyond_default(capabilities.resolve(request.cap_add, request.cap_drop)):
        needed.append("capabilities")
    if request.host_pid or request.host_ipc or request.network.mode == "host":
        needed.append("host_namespaces")
    if request.privileged or request.seccomp == "unconfined":
        needed.append("privileged")
    return tuple(needed)


def privileges(request: ContainerRequest) -> tuple[str, ...]:
    """What exactly is asked for beyond the default, for the audit log: paths, devices, capabilities, namespaces."""
    uses = [f"bind {mount.source}" for mount in request.mounts if isinstance(mount, BindMount)]
    uses += [f"device {device.source}" for device in request.devices]
    uses += capabilities.beyond_default(capabilities.resolve(request.cap_add, request.cap_drop))
    shared = (("pid", request.host_pid), ("ipc", request.host_ipc), ("network", request.network.mode == "host"))
    uses += [f"host {name}" for name, is_shared in shared if is_shared]
    uses += ["privileged"] if request.privileged else []
    uses += ["no seccomp"] if request.seccomp == "unconfined" else []
    return tuple(uses)


def pod_hostname(text: str | None, id_: str) -> str:
    """The host name of a pod: what was asked for, or the first digits of its container's id."""
    return check_hostname(text) if text else id_[:12]


def _arguments(request: ContainerRequest, config: ImageConfig) -> tuple[str, ...]:
    entrypoint, command = request.entrypoint, request.command
    if not entrypoint and command is None:
        command = config.cmd
    if entrypoint is None:
        entrypoint = config.entrypoint
    args = (*entrypoint, *(command or ()))
    if not args or not args[0]:
        raise CommandMissing(f"{request.image} has neither entrypoint nor command, and none was given")
    _refuse_nul(args, "argument")
    return args


def _environment(
    image: tuple[str, ...], asked: tuple[str, ...], account: Account, hostname: str, *, terminal: bool
) -> tuple[str, ...]:
    merged = _merge(image, asked)
    merged.setdefault("PATH", DEFAULT_PATH)
    merged.setdefault("HOSTNAME", hostname)
    merged.setdefault("HOME", account.home)
    if terminal:
        merged.setdefault("TERM", "xterm")
    return tuple(f"{key}={value}" for key, value in merged.items())


def _merge(base: tuple[str, ...], asked: tuple[str, ...]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for entry in base:
        key, equals, value = entry.partition("=")
        if key and equals and "\0" not in entry:
            merged[key] = value
    for entry in asked:
        key, equals, value = entry.partition("=")
        if not key or "\0" in entry:
            raise InvalidArgument(f"environment {entry[:80]!r} is not NAME=value", remedy="Write -e NAME=value.")
        if equals:
            merged[key] = value
        else:
            merged.pop(key, None)
    return merged


def _without(env: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(entry for entry in env if not entry.startswith(f"{name}="))


def _mounts(
    asked: tuple[Mount, ...], image_volumes: tuple[str, ...], names: tuple[str, ...]
) -> tuple[tuple[Mount, ...], tuple[str, ...]]:
    targets: set[str] = set()
    for mount in asked:
        target = _folder(mount.target)
        if target == "/":
            raise InvalidArgument("a mount's target is the root folder; name a folder below it")
        check_target(mount.target)  # hostd would refuse it at the start, when its volume is made already
        if target in targets:
            raise InvalidArgument(f"two mounts have the target {target[:200]!r}", remedy="Give each its own target.")
        targets.add(target)
    mounts = list(asked)
    # ``-v /data``: the command line names the volume by 64 random digits, as Docker does; nobody types such a name.
    anonymous = [mount.volume for mount in asked if isinstance(mount, VolumeMount) and _is_random(mount.volume)]
    for path, name in zip(image_volumes, names, strict=False):
        target = _folder("/" + path.lstrip("/")) if "\0" not in path and len(path) < 4096 else "/"
        if target != "/" and target not in targets:
            targets.add(check_target(target))
            mounts.append(VolumeMount(volume=name, target=target))
            anonymous.append(name)
    return tuple(mounts), tuple(anonymous)


def _is_random(name: str) -> bool:
    return len(name) == 64 and not name.strip("0123456789abcdef")


def _folder(path: str) -> str:
    if "\0" in path:
        raise InvalidArgument("a path holds a zero byte")
    if not path.startswith("/"):
        path = "/" + path
    normal = posixpath.normpath(path)
    return "/" + normal.lstrip("/")


def _resources(asked: Resources, defaults: Defaults) -> Resources:
    if asked.pids is None:
        return msgspec.structs.replace(asked, pids=defaults.pids)
    return asked


def _security(request: ContainerRequest) -> Security:
    return Security(
        capabilities=capabilities.resolve(request.cap_add, request.cap_drop),
        no_new_privileges=request.no_new_privileges,
        seccomp=request.seccomp,
        privileged=request.privileged,
    )


def _stop_signal(text: str) -> int:
    return signal_number(text) if text else TERM


def _refuse_nul(args: tuple[str, ...], what: str) -> None:
    for arg in args:
        if "\0" in arg:
            raise InvalidArgument(f"{what} {arg[:80]!r} holds a zero byte")
