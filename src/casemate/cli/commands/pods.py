"""``pod create ps rm start stop``."""

from __future__ import annotations

import time

from casemate.cli.asked.container import LEVELS, TEMPLATES, template_kind
from casemate.cli.asked.environment import labels
from casemate.cli.asked.network import network
from casemate.cli.asked.resources import RESOURCE_FLAGS, resources
from casemate.cli.commands.listing import FILTER, FORMAT, NO_TRUNC, filters
from casemate.cli.commands.several import each
from casemate.cli.fail import bad_value
from casemate.cli.flags import Arguments, Command, switch, value, values
from casemate.cli.show.rows import POD_COLUMNS, pod
from casemate.cli.show.table import show
from casemate.cli.wire.client import object_of, rows_of, text_of
from casemate.cli.wire.http import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context


def create(arguments: Arguments, context: Context) -> int:
    request: dict[str, object] = {}
    name = arguments.text("name") or (arguments.words[0] if arguments.words else None)
    if name is not None:
        request["name"] = name
    if context.project != "default":
        request["project"] = context.project
    level = arguments.text("isolation")
    if level is not None:
        if level not in LEVELS:
            raise bad_value("--isolation", level, f"one of {', '.join(LEVELS)}")
        request["level"] = level
    template = template_kind(arguments)
    if template is not None:
        request["template"] = template
    hostname = arguments.text("hostname")
    if hostname is not None:
        request["hostname"] = hostname
    if arguments.given("label") or arguments.given("label-file"):
        request["labels"] = labels(arguments.texts("label"), arguments.texts("label-file"))
    for made, key in ((network(arguments), "network"), (resources(arguments), "resources")):
        if made:
            request[key] = made
    for flag, key in (("pid", "host_pid"), ("ipc", "host_ipc")):
        if arguments.text(flag) == "host":
            request[key] = True
        elif arguments.text(flag) not in (None, "private"):
            raise bad_value(f"--{flag}", arguments.text(flag) or "", "host or private")
    answer = context.client.post("/v1/pods", request)
    if context.json:
        context.answer(answer)
    else:
        context.write(f"{text_of(answer, 'id')}\n")
    return 0


def ps(arguments: Arguments, context: Context) -> int:
    answer = object_of(context.client.get("/v1/pods", filters(arguments)))
    found = rows_of(answer | {"pods": answer.get("pods", [])}, "pods")
    if context.json:
        context.answer(found)
        return 0
    now = time.time()
    rows = [pod(row, now, arguments.on("no-trunc")) for row in found]
    show(context, POD_COLUMNS, rows, arguments.text("format"), "ID" if arguments.on("quiet") else "")
    return 0


def remove(arguments: Arguments, context: Context) -> int:
    pairs = [("force", "true")] if arguments.on("force") else []
    return each(
        context, arguments.words, lambda name: context.client.delete(f"/v1/pods/{segment(name)}", pairs), "removed"
    )


def start(arguments: Arguments, context: Context) -> int:
    return each(
        context, arguments.words, lambda name: context.client.post(f"/v1/pods/{segment(name)}/start"), "started"
    )


def stop(arguments: Arguments, context: Context) -> int:
    request: dict[str, object] = {}
    text = arguments.text("time")
    if text is not None:
        from casemate.cli.asked.quantities import whole

        request["timeout"] = whole("--time", text, 0, 86_400)
    return each(
        context, arguments.words, lambda name: context.client.post(f"/v1/pods/{segment(name)}/stop", request), "stopped"
    )


_NETWORK = "Network"

CREATE = Command(
    "[OPTIONS] [NAME]", create,
    (value("name", "NAME", "The pod's name", "n"),
     value("isolation", "LEVEL", "How strongly: namespace, gvisor, microvm", "", "Options", ",".join(LEVELS)),
     value("template", "KIND", "What a micro-VM begins as: shared, project, none", "", "Options", ",".join(TEMPLATES)),
     value("hostname", "NAME", "Host name in the pod"),
     values("label", "KEY[=VALUE]", "Set a label", "l"),
     values("label-file", "FILE", "Read labels from a file", "", "Options", "file"),
     value("pid", "MODE", "host to see the host's processes", "", "Options", "host,private"),
     value("ipc", "MODE", "host to share the host's IPC", "", "Options", "host,private"),
     value("network", "MODE", "pod, none or host", "", _NETWORK, "pod,none,host"),
     values("publish", "[[ADDRESS:]HOST:]PORT[/PROTOCOL]", "Publish a port", "p", _NETWORK),
     values("keep", "PORT[,replay]", "Open connections to it outlive restart --hold connections", "", _NETWORK),
     values("dns", "ADDRESS", "Resolver", "", _NETWORK), values("dns-search", "DOMAIN", "Search domain", "", _NETWORK),
     values("dns-option", "OPTION", "Resolver option", "", _NETWORK),
     values("add-host", "NAME:ADDRESS", "A line for /etc/hosts", "", _NETWORK), *RESOURCE_FLAGS),
    0, 1, (), "Containers join it with `casemate run --pod NAME`.", ("casemate pod create -p 8080:80 shop",),
)  # fmt: skip
PS = Command("[OPTIONS]", ps, (FILTER, FORMAT, NO_TRUNC, switch("quiet", "Only ids", "q")))
RM = Command(
    "[OPTIONS] POD [POD...]", remove, (switch("force", "Kill and remove its containers first", "f"),), 1, None, ("pod",)
)
START = Command("POD [POD...]", start, (), 1, None, ("pod",))
STOP = Command(
    "[OPTIONS] POD [POD...]", stop, (value("time", "SECONDS", "How long to wait before KILL", "t"),), 1, None, ("pod",)
)
