"""``attach`` and ``start``; and the session that ``run`` uses too."""

from __future__ import annotations

import posix

from casemate.cli.fail import usage
from casemate.cli.flags import Arguments, Command, switch, value
from casemate.cli.session.attach import Plan, attach
from casemate.cli.wire.http import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context
    from casemate.cli.session.attach import Ended

DEFAULT_KEYS = b"\x10\x11"  # ctrl-p ctrl-q


class Session:
    """What is attached how: *reference* is an id or a name."""

    __slots__ = ("input", "keys", "proxy", "reference", "streams", "terminal")

    def __init__(
        self, reference: str, terminal: bool, input: bool, streams: tuple[int, ...] = (1, 2),  # noqa: A002
        proxy: bool = True, keys: str | None = None,
    ) -> None:  # fmt: skip
        self.reference = reference
        self.terminal = terminal
        self.input = input
        self.streams = streams
        self.proxy = proxy
        self.keys = DEFAULT_KEYS if keys is None else _keys(keys)


def _keys(text: str) -> bytes:
    from casemate.cli.session.keys import parse_keys

    return parse_keys(text)


def attach_container(context: Context, session: Session, start: bool = False, logs: bool = False) -> int:
    """Connect to a container (and start it); the exit code, or 0 where the user detached."""
    pairs = [(name, "true") for name, on in (("stdin", session.input), ("start", start), ("logs", logs)) if on]
    stream, first = context.client.upgrade(f"/v1/containers/{segment(session.reference)}/attach", pairs)

    def kill(signal: str) -> None:
        other = context.new_client()
        try:
            other.post(f"/v1/containers/{segment(session.reference)}/kill", {"signal": signal})
        except Exception:  # it ended meanwhile, or the daemon says so on the session itself
            return
        finally:
            other.close()

    def warn(text: str) -> None:
        from casemate.cli.show.plain import clean

        context.note(f"warning: {clean(text)}\r\n" if session.terminal else f"warning: {clean(text)}\n")

    proxy = kill if session.proxy else None
    plan = Plan(session.terminal, session.input, session.streams, session.keys, proxy, warn=warn)
    return finish(context, attach(stream, first, plan), session.reference)


def finish(context: Context, ended: Ended, reference: str) -> int:
    """The exit code of an ended session; what is said about it besides."""
    if ended.detached:
        context.note("read escape sequence\r\n" if posix.isatty(2) else "read escape sequence\n")
    if context.json:
        from casemate.cli.wire import json

        outcome: dict[str, object] = {
            "reference": reference, "exit_code": ended.exit_code, "detached": ended.detached,
            "oom_killed": ended.oom_killed,
        }  # fmt: skip
        context.note(json.dumps(outcome) + "\n")
    elif ended.oom_killed and ended.exit_code == 137:
        context.note("casemate: the kernel killed the process: it needed more memory than it may have (-m)\n")
    elif ended.reason and ended.exit_code:
        from casemate.cli.show.plain import clean

        context.note(f"casemate: {clean(ended.reason, newlines=True)}\n")
    return ended.exit_code


def do_attach(arguments: Arguments, context: Context) -> int:
    reference = arguments.words[0]
    detail = context.client.get(f"/v1/containers/{segment(reference)}")
    terminal, stdin, status = _facts(detail)
    if status != "running":
        remedy = f"Start it: `casemate start -a {reference}`." if status != "paused" else ""
        raise usage(f"container {reference!r} is {status}; only a running one can be attached to", remedy, "attach")
    session = Session(
        reference,
        terminal=terminal,
        input=stdin and not arguments.on("no-stdin"),
        proxy=arguments.on("sig-proxy", True),
        keys=arguments.text("detach-keys"),
    )
    return attach_container(context, session)


def _facts(detail: object) -> tuple[bool, bool, str]:
    """Whether the container has a terminal, keeps its input open, and its status."""
    from casemate.cli.wire.client import object_of

    whole = object_of(detail)
    request, summary = object_of(whole.get("request")), object_of(whole.get("summary"))
    return bool(request.get("terminal")), bool(request.get("stdin")), str(summary.get("status"))


def do_start(arguments: Arguments, context: Context) -> int:
    attached = arguments.on("attach") or arguments.on("interactive")
    if not attached:
        from casemate.cli.commands.several import each

        def begin(name: str) -> object:
            context.tell_of_wait(name)
            return context.client.post(f"/v1/containers/{segment(name)}/start")

        return each(context, arguments.words, begin, "started")
    if len(arguments.words) > 1:
        raise usage(f"--attach takes one container, {len(arguments.words)} given", path="start")
    reference = arguments.words[0]
    terminal, stdin, _ = _facts(context.client.get(f"/v1/containers/{segment(reference)}"))
    session = Session(
        reference,
        terminal=terminal,
        input=stdin and arguments.on("interactive"),
        proxy=arguments.on("sig-proxy", True),
        keys=arguments.text("detach-keys"),
    )
    context.tell_of_wait(reference)
    return attach_container(context, session, start=True)


_KEYS = value("detach-keys", "KEYS", "Keys that detach (ctrl-p,ctrl-q)")
_PROXY = switch("sig-proxy", "Pass signals on to the process (--sig-proxy=false: do not)", default=True)

ATTACH = Command(
    "[OPTIONS] CONTAINER", do_attach, (switch("no-stdin", "Do not connect standard input"), _KEYS, _PROXY),
    1, 1, ("running",), "Detach with ctrl-p ctrl-q; the container goes on.", ("casemate attach web",),
)  # fmt: skip

START = Command(
    "[OPTIONS] CONTAINER [CONTAINER...]", do_start,
    (switch("attach", "Show the output, pass signals on, end with its exit code", "a"),
     switch("interactive", "Connect standard input too", "i"), _KEYS, _PROXY),
    1, None, ("container",), "", ("casemate start web", "casemate start -ai shell"),
)  # fmt: skip
