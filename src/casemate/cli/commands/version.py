"""``version``: of this client and, unless ``--client``, of the daemons."""

from __future__ import annotations

from casemate import __version__
from casemate.cli.flags import Arguments, Command, switch, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context


def version(arguments: Arguments, context: Context) -> int:
    if arguments.on("short"):
        context.write(f"casemate version {__version__}\n")
        return 0
    found: dict[str, object] = {"Client": {"Version": __version__}}
    failure: BaseException | None = None
    if not arguments.on("client"):
        try:
            found["Server"] = _server(context)
        except Exception as error:  # the client's version is told first, then this is raised
            failure = error
    template = arguments.text("format")
    if context.json:
        context.answer(found)
    elif template is not None:
        from casemate.cli.show.template import Template

        context.write(Template("{{json .}}" if template == "json" else template).render(found) + "\n")
    else:
        context.write(_text(found))
    if failure is not None:
        raise failure
    return 0


def _server(context: Context) -> dict[str, object]:
    from casemate.cli.wire.client import object_of

    answer = object_of(context.client.get("/v1/version"))
    names = (("Version", "version"), ("Api", "api"), ("Hostd", "hostd"), ("Python", "python"), ("Kernel", "kernel"))
    return {title: answer.get(name) for title, name in names}


def _text(found: dict[str, object]) -> str:
    text = ""
    for side, held in found.items():
        rows = held if isinstance(held, dict) else {}
        text += f"{side}:\n" + "".join(f" {title + ':':<10} {told}\n" for title, told in rows.items())
    return text


VERSION = Command(
    "[OPTIONS]", version,
    (switch("client", "Only this client's; no daemon is asked"), switch("short", "One line"),
     value("format", "TEMPLATE", "Go template: `{{.Server.Version}}`, json", "f")),
)  # fmt: skip
