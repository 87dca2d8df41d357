"""``exec``: a further command in a running container."""

from __future__ import annotations

import posix

from casemate.cli.commands.attach import DEFAULT_KEYS, finish
from casemate.cli.fail import bad_value
from casemate.cli.flags import Arguments, Command, switch, value, values
from casemate.cli.wire.client import text_of
from casemate.cli.wire.http import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context


def exec_(arguments: Arguments, context: Context) -> int:
    reference, *command = arguments.words
    terminal, stdin, detached = (arguments.on(name) for name in ("tty", "interactive", "detach"))
    if terminal and stdin and not detached and not posix.isatty(0):
        from casemate.cli.errors import NotATerminal

        raise NotATerminal("-t asks for a terminal, and standard input is none")
    request = _request(arguments, command)
    id_ = text_of(context.client.post(f"/v1/containers/{segment(reference)}/exec", request), "id")
    if detached:
        context.client.post(f"/v1/exec/{segment(id_)}/start")
        if context.json:
            context.answer({"id": id_})
        return 0
    from casemate.cli.session.attach import Plan, attach
    from casemate.cli.session.keys import parse_keys

    text = arguments.text("detach-keys")
    plan = Plan(terminal, stdin, keys=DEFAULT_KEYS if text is None else parse_keys(text))
    stream, first = context.client.upgrade(f"/v1/exec/{segment(id_)}/attach")
    return finish(context, attach(stream, first, plan), id_)


def _request(arguments: Arguments, command: list[str]) -> dict[str, object]:
    request: dict[str, object] = {"command": command}
    for flag, name in (("tty", "terminal"), ("interactive", "stdin"), ("privileged", "privileged")):
        if arguments.on(flag):
            request[name] = True
    user, cwd = arguments.text("user"), arguments.text("workdir")
    if user is not None:
        request["user"] = user
    if cwd is not None:
        if not cwd.startswith("/"):
            raise bad_value("--workdir", cwd, "an absolute path in the container, for example /srv")
        request["cwd"] = cwd
    if arguments.given("env") or arguments.given("env-file"):
        from casemate.cli.asked.environment import variables

        request["env"] = variables(arguments.texts("env"), arguments.texts("env-file"))
    return request


EXEC = Command(
    "[OPTIONS] CONTAINER COMMAND [ARG...]",
    exec_,
    (
        switch("interactive", "Keep standard input open", "i"),
        switch("tty", "Give the command a terminal", "t"),
        switch("detach", "Run in the background", "d"),
        values("env", "NAME[=VALUE]", "Set an environment variable", "e"),
        values("env-file", "FILE", "Read environment variables from a file", "", "Options", "file"),
        value("workdir", "PATH", "Working directory", "w"),
        value("user", "USER[:GROUP]", "User, by name or number", "u"),
        switch("privileged", "Every capability of the pod's own user namespace"),
        value("detach-keys", "KEYS", "Keys that detach (ctrl-p,ctrl-q)"),
    ),
    2,
    None,
    ("running", "command"),
    "The exit code is that of the command; 126: it cannot be executed, 127: it is not there.",
    ("casemate exec web nginx -s reload", "casemate exec -it -u 0 web sh"),
    False,
)
