"""``run`` and ``create``."""

from __future__ import annotations

import posix

from casemate.cli.asked.container import container_request
from casemate.cli.asked.resources import RESOURCE_FLAGS
from casemate.cli.fail import bad_value, code_of, file_trouble, usage
from casemate.cli.flags import Arguments, Command, switch, value, values
from casemate.cli.wire.client import text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context

_PROCESS, _STORAGE, _NETWORK, _SECURITY, _LIFE = (
    "Process",
    "Storage",
    "Network",
    "Isolation and privilege",
    "Name and lifetime",
)

CREATE_FLAGS = (
    switch("interactive", "Keep standard input open", "i", _PROCESS),
    switch("tty", "Give the process a terminal", "t", _PROCESS),
    values("env", "NAME[=VALUE]", "Set an environment variable; a bare NAME passes on its value here", "e", _PROCESS),
    values("env-file", "FILE", "Read environment variables from a file", "", _PROCESS, "file"),
    value("workdir", "PATH", "Working directory in the container", "w", _PROCESS),
    value("user", "USER[:GROUP]", "User, by name or number", "u", _PROCESS),
    values("group-add", "GROUP", "Further groups of the user", "", _PROCESS),
    value("entrypoint", "PROGRAM", "Replace the image's entry point; empty for none", "", _PROCESS),
    value("hostname", "NAME", "Host name in the container", "h", _PROCESS),
    switch("init", "Run a small init that reaps processes and forwards signals", "", _PROCESS),
    values("ulimit", "NAME=SOFT[:HARD]", "Limit of the process: nofile=1024", "", _PROCESS),
    values("volume", "[SOURCE:]TARGET[:OPTIONS]", "Mount a host path or a volume", "v", _STORAGE, "file"),
    values("mount", "type=TYPE,...", "Mount: type=bind|volume|tmpfs,source=,target=,readonly", "", _STORAGE),
    values("tmpfs", "TARGET[:OPTIONS]", "Mount memory: size=, mode=, ro, exec", "", _STORAGE),
    switch("read-only", "Make the container's root file system read-only", "", _STORAGE),
    value("storage-size", "SIZE", "Bound on what the container may write", "", _STORAGE),
    values("storage-opt", "size=SIZE", "As --storage-size", "", _STORAGE),
    value("shm-size", "SIZE", "Size of /dev/shm (64m)", "", _STORAGE),
    values("device", "SOURCE[:TARGET[:rwm]]", "Pass a host device in", "", _STORAGE, "file"),
    value("network", "MODE", "pod (an address of its own), none or host", "", _NETWORK, "pod,none,host", also="net"),
    values("publish", "[[ADDRESS:]HOST:]PORT[/PROTOCOL]", "Publish a port: 8080:80", "p", _NETWORK),
    values("keep", "PORT[,replay]", "Open connections to it outlive restart --hold connections", "", _NETWORK),
    switch("publish-all", "Publish every exposed port at a free one", "P", _NETWORK),
    values("expose", "PORT[/PROTOCOL]", "A port that -P publishes too", "", _NETWORK),
    values("dns", "ADDRESS", "Resolver", "", _NETWORK),
    values("dns-search", "DOMAIN", "Search domain", "", _NETWORK),
    values("dns-option", "OPTION", "Resolver option", "", _NETWORK),
    values("add-host", "NAME:ADDRESS", "A line for /etc/hosts", "", _NETWORK),
    value("isolation", "LEVEL", "How strongly: namespace, gvisor, microvm", "", _SECURITY, "namespace,gvisor,microvm"),
    value("template", "KIND", "What a micro-VM begins as: shared, project, none (a cold boot)", "", _SECURITY,
          "shared,project,none"),
    values("cap-add", "CAPABILITY", "Add a capability, or ALL", "", _SECURITY),
    values("cap-drop", "CAPABILITY", "Drop a capability, or ALL", "", _SECURITY),
    switch("privileged", "No masks, every capability of the pod's own user namespace", "", _SECURITY),
    values("security-opt", "OPTION", "no-new-privileges[:false], seccomp=unconfined", "", _SECURITY),
    values("sysctl", "NAME=VALUE", "A kernel setting of the container's namespaces", "", _SECURITY),
    value("pid", "MODE", "Processes: host to see the host's", "", _SECURITY, "host,private"),
    value("ipc", "MODE", "IPC: host to share the host's", "", _SECURITY, "host,private"),
    *RESOURCE_FLAGS,
    value("name", "NAME", "The container's name", "", _LIFE),
    value("pod", "POD", "Join this pod", "", _LIFE, "pod"),
    values("label", "KEY[=VALUE]", "Set a label", "l", _LIFE),
    values("label-file", "FILE", "Read labels from a file", "", _LIFE, "file"),
    value("restart", "POLICY", "no, on-failure[:N], always, unless-stopped", "", _LIFE,
          "no,on-failure,always,unless-stopped"),
    switch("rm", "Remove the container when it ends", "", _LIFE),
    value("stop-signal", "SIGNAL", "What `stop` sends first", "", _LIFE),
    value("stop-timeout", "SECONDS", "How long `stop` waits before KILL", "", _LIFE),
    value("pull", "POLICY", "Fetch the image: missing (default), always, never", "", _LIFE, "missing,always,never"),
    switch("quiet", "Do not show the fetching of the image", "q", _LIFE),
    value("platform", "OS/ARCH", "Platform of the image, as linux/arm64; no other one is used", "", _LIFE),
    value("log-driver", "DRIVER", "local (a rotated file) or none", "", _LIFE, "local,none"),
    values("log-opt", "max-size=SIZE", "Size at which the log is rotated", "", _LIFE),
    value("cidfile", "FILE", "Write the container's id to a file", "", _LIFE, "file"),
)  # fmt: skip

RUN_FLAGS = (
    switch("detach", "Run in the background, print the id", "d", _LIFE),
    values("attach", "STREAM", "Connect only stdin, stdout or stderr", "a", _PROCESS, "stdin,stdout,stderr"),
    switch("sig-proxy", "Pass signals on to the process (--sig-proxy=false: do not)", "", _PROCESS, True),
    value("detach-keys", "KEYS", "Keys that detach (ctrl-p,ctrl-q)", "", _PROCESS),
)

STREAMS = {"stdin": 0, "stdout": 1, "stderr": 2}


def run(arguments: Arguments, context: Context) -> int:
    request = container_request(arguments, context.project)
    detached = arguments.on("detach")
    chosen = _streams(arguments)
    if detached and chosen:
        raise usage("--detach and --attach exclude each other", "Leave out one of them.", "run")
    _refuse_no_terminal(arguments, detached)
    created = create_container(arguments, context, request)
    id_ = text_of(created, "id")
    context.tell_of_wait(id_, str(request.get("level", "")))
    if detached:
        context.client.post(f"/v1/containers/{id_}/start")
        # At another level than the host's own kernel a start has more to say (a machine that is emulated).
        if request.get("rlimits") or request.get("level", "namespace") != "namespace":
            _warn_of_start(context, id_, created)
        if context.json:
            context.answer(created)
        else:
            context.write(f"{id_}\n")
        return 0
    from casemate.cli.commands.attach import Session, attach_container

    session = Session(
        id_,
        terminal=arguments.on("tty"),
        input=arguments.on("interactive") and (not chosen or 0 in chosen),
        streams=tuple(number for number in (1, 2) if not chosen or number in chosen),
        proxy=arguments.on("sig-proxy", True),
        keys=arguments.text("detach-keys"),
    )
    return attach_container(context, session, start=True)


def create(arguments: Arguments, context: Context) -> int:
    request = container_request(arguments, context.project)
    created = create_container(arguments, context, request)
    if context.json:
        context.answer(created)
    else:
        context.write(f"{text_of(created, 'id')}\n")
    return 0


def create_container(arguments: Arguments, context: Context, request: dict[str, object]) -> object:
    """Create, fetching the image where the pull policy says so; the API's ContainerCreated. Warnings are shown."""
    policy = arguments.text("pull") or "missing"
    if policy not in ("missing", "always", "never"):
        raise bad_value("--pull", policy, "missing, always or never")
    cidfile = arguments.text("cidfile")
    held = None if cidfile is None else _cidfile(cidfile)
    try:
        created = _create(arguments, context, request, policy)
        if held is not None:
            posix.write(held, text_of(created, "id").encode())
    except BaseException:
        if cidfile is not None:
            posix.unlink(cidfile)
        raise
    finally:
        if held is not None:
            posix.close(held)
    for warning in _warnings(created):
        _warn(context, warning)
    return created


def _warn(context: Context, text: str) -> None:
    from casemate.cli.show.plain import clean

    context.note(f"warning: {clean(text)}\n")


def _warnings(answer: object) -> list[str]:
    found = answer.get("warnings") if isinstance(answer, dict) else None
    return [str(one) for one in found] if isinstance(found, list) else []


def _warn_of_start(context: Context, id_: str, created: object) -> None:
    """Limits that the host does not allow are lowered at the start, which answers nothing: look once more."""
    try:
        detail = context.client.get(f"/v1/containers/{id_}")
    except Exception as error:
        if code_of(error) != "container.not_found":  # it has ended, and --rm took it away
            raise
        return
    for warning in _warnings(detail)[len(_warnings(created)) :]:
        _warn(context, warning)


def _create(arguments: Arguments, context: Context, request: dict[str, object], policy: str) -> object:
    image = str(request["image"])
    if policy == "always":
        _fetch(arguments, context, image)
    try:
        return context.client.post("/v1/containers", request)
    except Exception as error:
        if policy != "missing" or code_of(error) not in ("image.not_found", "image.platform_other"):
            raise
    if not arguments.on("quiet"):
        from casemate.cli.show.plain import clean

        wanted = arguments.text("platform")
        context.note(f"Unable to find image '{clean(image)}'{f' for {clean(wanted)}' if wanted else ''} locally\n")
    _fetch(arguments, context, image)
    return context.client.post("/v1/containers", request)


def _fetch(arguments: Arguments, context: Context, image: str) -> None:
    from casemate.cli.commands.images import fetch

    fetch(context, image, platform=arguments.text("platform"), quiet=arguments.on("quiet"), fd=2)


def _cidfile(path: str) -> int:
    """A new file for the id; made before the container, so that none is made in vain."""
    try:
        return posix.open(path, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise file_trouble(
            f"--cidfile: {path[:200]!r} is there already",
            "Remove it when the container that it names is gone, or name another file.",
        ) from None
    except (OSError, ValueError) as error:
        raise file_trouble(f"--cidfile: {path[:200]!r} cannot be made: {error}") from None


def _streams(arguments: Arguments) -> set[int]:
    chosen: set[int] = set()
    for text in arguments.texts("attach"):
        if text.lower() not in STREAMS:
            raise bad_value("--attach", text, "stdin, stdout or stderr")
        chosen.add(STREAMS[text.lower()])
    return chosen


def _refuse_no_terminal(arguments: Arguments, detached: bool) -> None:
    if arguments.on("tty") and arguments.on("interactive") and not detached and not posix.isatty(0):
        from casemate.cli.errors import NotATerminal

        raise NotATerminal("-t asks for a terminal, and standard input is none")


_EXAMPLES = (
    "casemate run --rm debian:12 cat /etc/os-release",
    "casemate run -it --rm debian:12 bash",
    "casemate run -d --name web -p 8080:80 -v site:/srv:ro -m 256m --restart unless-stopped nginx",
    "casemate run --rm --isolation namespace --network none --read-only --cap-drop ALL -u 1000 IMAGE COMMAND",
)

RUN = Command(
    "[OPTIONS] IMAGE [COMMAND] [ARG...]", run, (*RUN_FLAGS, *CREATE_FLAGS), 1, None, ("image", "command"),
    "The exit code is that of the command (128+n when signal n ended it); 125: Casemate refused, 126: the command\n"
    "cannot be executed, 127: it is not in the image. With --json, what is printed by -d; a foreground container\n"
    "keeps standard output to itself, and the outcome goes to standard error as one line of JSON.",
    _EXAMPLES, False,
)  # fmt: skip

CREATE = Command(
    "[OPTIONS] IMAGE [COMMAND] [ARG...]", create, CREATE_FLAGS, 1, None, ("image", "command"),
    "Prints the id; `casemate start -a` runs it.",
    ("casemate create --name job debian:12 make", "casemate start -a job"), False,
)  # fmt: skip
