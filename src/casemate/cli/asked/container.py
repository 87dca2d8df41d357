"""From the flags of ``run`` and ``create`` to the API's ContainerRequest; only what was asked for is in it.

What costs an import (mounts, ports, files) is imported when its flag was typed: ``run --rm IMAGE true`` needs none.
"""

from __future__ import annotations

from casemate.cli.fail import bad_value, usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.flags import Arguments

LEVELS = ("namespace", "gvisor", "microvm")
TEMPLATES = ("shared", "project", "none")

_TEXTS = (("name", "name"), ("pod", "pod"), ("workdir", "cwd"), ("user", "user"), ("platform", "platform"))
_SWITCHES = (
    ("tty", "terminal"), ("interactive", "stdin"), ("rm", "auto_remove"), ("read-only", "read_only"),
    ("init", "init"), ("privileged", "privileged"),
)  # fmt: skip
#: Log drivers of others that keep a file: ours does too.
_LOG_DRIVERS = ("json-file", "local", "k8s-file", "journald", "passthrough", "none")


def container_request(arguments: Arguments, project: str) -> dict[str, object]:
    """The request; raises a usage error that names the flag, the value and the form wanted."""
    image, *command = arguments.words
    if not image:
        raise usage("the image's name is empty", path="run")
    made: dict[str, object] = {"image": image}
    if project != "default":
        made["project"] = project
    if command:
        made["command"] = command
    for flag, name in _TEXTS:
        text = arguments.text(flag)
        if text is not None:
            made[name] = text
    for flag, name in _SWITCHES:
        if arguments.on(flag):
            made[name] = True
    _process(arguments, made)
    _storage(arguments, made)
    _security(arguments, made)
    _limits(arguments, made)
    _life(arguments, made)
    _logs(arguments, made)
    return made


def _process(arguments: Arguments, made: dict[str, object]) -> None:
    entrypoint = arguments.text("entrypoint")
    if entrypoint is not None:
        made["entrypoint"] = [entrypoint] if entrypoint else []
    hostname = arguments.text("hostname")
    if hostname is not None:
        if not 0 < len(hostname) <= 64 or hostname.strip("-.") != hostname:
            raise bad_value("--hostname", hostname, "a name of at most 64 letters, digits, - and .")
        made["hostname"] = hostname
    cwd = arguments.text("workdir")
    if cwd is not None and not cwd.startswith("/"):
        raise bad_value("--workdir", cwd, "an absolute path in the container, for example /srv")
    if arguments.given("env") or arguments.given("env-file"):
        from casemate.cli.asked.environment import variables

        made["env"] = variables(arguments.texts("env"), arguments.texts("env-file"))
    if arguments.given("label") or arguments.given("label-file"):
        from casemate.cli.asked.environment import labels

        made["labels"] = labels(arguments.texts("label"), arguments.texts("label-file"))
    if arguments.texts("group-add"):
        made["groups"] = arguments.texts("group-add")


def _storage(arguments: Arguments, made: dict[str, object]) -> None:
    volumes, mounts, tmpfs = (arguments.texts(name) for name in ("volume", "mount", "tmpfs"))
    devices = arguments.texts("device")
    if volumes or mounts or tmpfs or devices:
        from casemate.cli.asked import mounts as forms

        found = [forms.volume(text) for text in volumes]
        found += [forms.mount(text) for text in mounts]
        found += [forms.tmpfs(text) for text in tmpfs]
        if found:
            made["mounts"] = found
        _refuse_twice(found)
        if devices:
            made["devices"] = [forms.device(text) for text in devices]
    for flag, name in (("shm-size", "shm_bytes"), ("storage-size", "writable_bytes")):
        text = arguments.text(flag)
        if text is not None:
            from casemate.cli.asked.quantities import size

            made[name] = size(f"--{flag}", text)
    for text in arguments.texts("storage-opt"):
        key, _, held = text.partition("=")
        if key != "size":
            raise bad_value("--storage-opt", text, "size=SIZE; there is no other option")
        from casemate.cli.asked.quantities import size

        made["writable_bytes"] = size("--storage-opt size", held)


def _refuse_twice(mounts: list[dict[str, object]]) -> None:
    seen: set[str] = set()
    for mount in mounts:
        target = str(mount["target"]).rstrip("/")
        if target in seen:
            raise usage(f"two mounts have the target {target!r}", "Give each mount a target of its own.", "run")
        seen.add(target)


def _security(arguments: Arguments, made: dict[str, object]) -> None:
    for flag, name in (("cap-add", "cap_add"), ("cap-drop", "cap_drop")):
        found = [part.strip().upper() for text in arguments.texts(flag) for part in text.split(",")]
        for word in found:
            if not word.replace("_", "").isalpha() or len(word) > 40:
                raise bad_value(f"--{flag}", word, "a capability such as NET_ADMIN or CAP_NET_ADMIN, or ALL")
        if found:
            made[name] = found
    for text in arguments.texts("security-opt"):
        _security_option(text, made)
    for flag, name in (("pid", "host_pid"), ("ipc", "host_ipc")):
        mode = arguments.text(flag)
        if mode == "host":
            made[name] = True
        elif mode not in (None, "", "private", "shareable"):
            raise bad_value(f"--{flag}", mode or "", "host or private; containers of one pod share with --pod")
    level = arguments.text("isolation")
    if level is not None and level != "default":
        if level not in LEVELS:
            raise bad_value("--isolation", level, f"one of {', '.join(LEVELS)}")
        made["level"] = level
    template = template_kind(arguments)
    if template is not None:
        made["template"] = template
    sysctls: list[dict[str, object]] = []
    for text in arguments.texts("sysctl"):
        name, equals, held = text.partition("=")
        if not equals or "." not in name:
            raise bad_value("--sysctl", text, "NAME=VALUE, for example net.core.somaxconn=1024")
        sysctls.append({"name": name, "value": held})
    if sysctls:
        made["sysctls"] = sysctls


def template_kind(arguments: Arguments) -> str | None:
    """``--template``: what a micro-VM begins as."""
    found = arguments.text("template")
    if found is not None and found not in TEMPLATES:
        raise bad_value("--template", found, f"one of {', '.join(TEMPLATES)}")
    return found


def _security_option(text: str, made: dict[str, object]) -> None:
    name, mark, held = text.partition("=") if "=" in text else text.partition(":")
    if name == "no-new-privileges" and held in ("", "true", "false"):
        made["no_new_privileges"] = held != "false"
    elif name == "seccomp" and held in ("unconfined", "default", "builtin"):
        made["seccomp"] = "unconfined" if held == "unconfined" else "default"
    elif not (mark and name in ("label", "apparmor") and held in ("disable", "unconfined")):
        # label and apparmor: nothing is confined by SELinux or AppArmor here, so switching it off is already done.
        raise bad_value("--security-opt", text, "no-new-privileges[:true|false] or seccomp=unconfined")


def _limits(arguments: Arguments, made: dict[str, object]) -> None:
    from casemate.cli.asked.resources import RESOURCE_FLAGS, resources, restart_policy, rlimit

    if any(arguments.given(flag.name) for flag in RESOURCE_FLAGS):
        made["resources"] = resources(arguments)
    if arguments.texts("ulimit"):
        made["rlimits"] = [rlimit(text) for text in arguments.texts("ulimit")]
    policy = arguments.text("restart")
    if policy is not None:
        made["restart"] = restart_policy(policy)
        if arguments.on("rm") and not policy.startswith("no"):
            raise usage("--restart and --rm exclude each other", "Leave out one of them.", "run")
    for flag in ("publish", "keep", "publish-all", "expose", "network", "dns", "dns-search", "dns-option", "add-host"):
        if arguments.given(flag):
            from casemate.cli.asked.network import network

            wanted = network(arguments)
            if wanted:
                made["network"] = wanted
            break


def _life(arguments: Arguments, made: dict[str, object]) -> None:
    text = arguments.text("stop-signal")
    if text is not None:
        from casemate.cli.asked.quantities import signal

        made["stop_signal"] = signal("--stop-signal", text)
    text = arguments.text("stop-timeout")
    if text is not None:
        from casemate.cli.asked.quantities import whole

        made["stop_timeout"] = whole("--stop-timeout", text, 0, 86_400)


def _logs(arguments: Arguments, made: dict[str, object]) -> None:
    driver = arguments.text("log-driver")
    if driver is not None:
        if driver not in _LOG_DRIVERS:
            raise bad_value("--log-driver", driver, "local (a rotated file) or none")
        made["log_keep"] = driver != "none"
    for text in arguments.texts("log-opt"):
        key, _, held = text.partition("=")
        if key == "max-size":
            from casemate.cli.asked.quantities import size

            made["log_max_bytes"] = size("--log-opt max-size", held)
        elif key not in ("max-file", "compress", "mode"):
            raise bad_value("--log-opt", text, "max-size=SIZE, for example max-size=10m")
