"""``stop restart kill rm pause unpause wait rename``."""

from __future__ import annotations

from casemate.cli.commands.several import TOLD, each
from casemate.cli.fail import code_of
from casemate.cli.flags import Arguments, Command, choice, switch, value, values
from casemate.cli.wire.http import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context


def _path(name: str, action: str = "") -> str:
    return f"/v1/containers/{segment(name)}" + (f"/{action}" if action else "")


def _stop_request(arguments: Arguments) -> dict[str, object]:
    made: dict[str, object] = {}
    text = arguments.text("time")
    if text is not None:
        from casemate.cli.asked.quantities import whole

        made["timeout"] = whole("--time", text, 0, 86_400)
    text = arguments.text("signal")
    if text is not None:
        from casemate.cli.asked.quantities import signal

        made["signal"] = signal("--signal", text)
    return made


def stop(arguments: Arguments, context: Context) -> int:
    request = _stop_request(arguments)
    return each(context, arguments.words, lambda name: context.client.post(_path(name, "stop"), request), "stopped")


def restart(arguments: Arguments, context: Context) -> int:
    request = _stop_request(arguments)
    if arguments.chosen("hold") is not None:
        request |= _hold_request(arguments)
    return each(
        context, arguments.words, lambda name: context.client.post(_path(name, "restart"), request), "restarted"
    )


def _hold_request(arguments: Arguments) -> dict[str, object]:
    from casemate.cli.asked.quantities import seconds, whole

    made: dict[str, object] = {"hold": True}
    if arguments.chosen("hold") == "connections":
        made["hold_open"] = True
    text = arguments.text("drain")
    if text is not None:
        made["hold_drain_s"] = whole("--drain", f"{seconds('--drain', text):g}", 0, 600)
    text = arguments.text("hold-for")
    if text is not None:
        made["hold_for_s"] = whole("--hold-for", f"{seconds('--hold-for', text):g}", 1, 600)
    ports = [whole("--hold-port", port, 1, 65_535) for port in arguments.texts("hold-port")]
    if ports:
        made["hold_ports"] = ports
    return made


def kill(arguments: Arguments, context: Context) -> int:
    from casemate.cli.asked.quantities import signal

    request = {"signal": signal("--signal", arguments.text("signal") or "SIGKILL")}
    return each(context, arguments.words, lambda name: context.client.post(_path(name, "kill"), request), "signalled")


def remove(arguments: Arguments, context: Context) -> int:
    pairs = [(name, "true") for name in ("force", "volumes") if arguments.on(name)]

    def one(name: str) -> object:
        try:
            return context.client.delete(_path(name), pairs)
        except Exception as error:
            # As with Docker, -f on what is not there says so and is no failure of a script that cleans up.
            if not arguments.on("force") or not code_of(error).endswith("not_found"):
                raise
            context.note(f"casemate: no such container: {name}\n")
            return TOLD

    return each(context, arguments.words, one, "removed")


def pause(arguments: Arguments, context: Context) -> int:
    return each(context, arguments.words, lambda name: context.client.post(_path(name, "pause")), "paused")


def unpause(arguments: Arguments, context: Context) -> int:
    return each(context, arguments.words, lambda name: context.client.post(_path(name, "unpause")), "unpaused")


def wait(arguments: Arguments, context: Context) -> int:
    condition = arguments.text("condition") or "exited"
    if condition not in ("exited", "next-exit", "removed"):
        from casemate.cli.fail import bad_value

        raise bad_value("--condition", condition, "exited, next-exit or removed")
    pairs = [("condition", condition)]

    def one(name: str) -> object:
        return context.client.post(_path(name, "wait"), None, pairs)

    def shown(answer: object) -> str:
        return str(answer.get("exit_code", "")) if isinstance(answer, dict) else ""

    return each(context, arguments.words, one, "ended", shown)


def rename(arguments: Arguments, context: Context) -> int:
    name, new = arguments.words
    context.client.post(_path(name, "rename"), {"name": new})
    if context.json:
        context.answer([{"name": new, "result": "renamed", "before": name}])
    return 0


_TIME = value("time", "SECONDS", "How long to wait before KILL", "t", also="timeout")
_SIGNAL = value("signal", "SIGNAL", "What to send first", "s")
_NAMES = "[OPTIONS] CONTAINER [CONTAINER...]"

STOP = Command(
    _NAMES, stop, (_TIME, _SIGNAL), 1, None, ("running",), "", ("casemate stop web", "casemate stop -t 2 web db")
)
RESTART = Command(
    _NAMES, restart,
    (_TIME, _SIGNAL,
     choice("hold", "connections", "New connections wait meanwhile, and then go on to it; open ones to kept ports too"),
     value("drain", "DURATION", "With --hold connections: how long answers may take to end before the stop (5s)"),
     value("hold-for", "DURATION", "With --hold: how long at most; then they are reset (30s)"),
     values("hold-port", "PORT", "With --hold: it is ready when this port is listened at (as before)")),
    1, None, ("container",), "",
    ("casemate restart web", "casemate restart --hold web", "casemate restart --hold connections web"),
)  # fmt: skip
KILL = Command(
    _NAMES, kill, (value("signal", "SIGNAL", "What to send (KILL)", "s"),), 1, None, ("running",), "",
    ("casemate kill web", "casemate kill -s HUP web"),
)  # fmt: skip
RM = Command(
    _NAMES, remove,
    (switch("force", "Kill it first if it runs; no failure where it is not there", "f"),
     switch("volumes", "Remove its anonymous volumes too", "v")),
    1, None, ("container",), "", ("casemate rm web", "casemate rm -f $(casemate ps -aq)"),
)  # fmt: skip
PAUSE = Command("CONTAINER [CONTAINER...]", pause, (), 1, None, ("running",))
UNPAUSE = Command("CONTAINER [CONTAINER...]", unpause, (), 1, None, ("container",))
WAIT = Command(
    _NAMES, wait, (value("condition", "CONDITION", "exited (default), next-exit, removed", "", "Options",
                         "exited,next-exit,removed"),), 1, None, ("container",),
)  # fmt: skip
RENAME = Command("CONTAINER NEW_NAME", rename, (), 2, 2, ("container",))
