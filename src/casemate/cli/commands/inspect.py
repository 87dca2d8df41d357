"""``inspect`` of any kind of object, in Docker's shape; with ``--json`` the API's own values."""

from __future__ import annotations

from casemate.cli.fail import bad_value, code_of
from casemate.cli.flags import Arguments, Command, switch, value
from casemate.cli.show import docker
from casemate.cli.wire.client import object_of
from casemate.cli.wire.http import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.cli.context import Context

#: In the order in which a name is tried, as Docker does it.
KINDS = ("container", "image", "volume", "pod")
_VIEWS = {"container": docker.container, "image": docker.image, "volume": docker.volume, "pod": docker.pod}


def _fetch(context: Context, kind: str, name: str) -> dict[str, object]:
    if kind == "image":
        return object_of(context.client.get("/v1/images/inspect", [("ref", name)]))
    return object_of(context.client.get(f"/v1/{kind}s/{segment(name)}"))


def _find(context: Context, kinds: tuple[str, ...], name: str) -> tuple[str, dict[str, object]]:
    """The first kind that has an object of this name; an error of the last kind's where none has."""
    for kind in kinds:
        try:
            return kind, _fetch(context, kind, name)
        except Exception as error:
            absent = code_of(error).endswith("not_found") or (len(kinds) > 1 and _cannot_be(error, kind))
            if not absent:
                raise
            if len(kinds) == 1:
                raise
    from casemate.cli.fail import remote

    raise remote(
        {
            "code": "object.not_found", "status": 404, "exit_code": 1, "detail": f"no such object: {name!r}",
            "remedy": "`casemate ps -a`, `image ls`, `volume ls` and `pod ps` list what there is.",
        }
    )  # fmt: skip


def _cannot_be(error: Exception, kind: str) -> bool:
    """Whether the name cannot be one of this *kind* (a path is no container): then the next kind is tried."""
    problem = getattr(error, "problem", None)
    return isinstance(problem, dict) and problem.get("status") in (400, 404, 422) and kind != "pod"


def _inspect(arguments: Arguments, context: Context, kinds: tuple[str, ...]) -> int:
    from casemate.cli.commands.several import problem_of, tell

    found: list[dict[str, object]] = []
    code = 0
    for name in arguments.words:
        try:
            kind, detail = _find(context, kinds, name)
        except Exception as error:
            tell(problem_of(error), False)
            code = 1
            continue
        found.append(detail if context.json else _VIEWS[kind](detail))
    template = arguments.text("format")
    if template is None or context.json:
        context.answer(found)
    else:
        from casemate.cli.show.template import Template

        compiled = Template("{{json .}}" if template == "json" else template)
        for value_ in found:
            context.write(compiled.render(value_) + "\n")
    return code


def inspect(arguments: Arguments, context: Context) -> int:
    kind = arguments.text("type")
    if kind is not None and kind not in KINDS:
        raise bad_value("--type", kind, f"one of {', '.join(KINDS)}")
    return _inspect(arguments, context, KINDS if kind is None else (kind,))


def _of(kind: str) -> Callable[[Arguments, Context], int]:
    return lambda arguments, context: _inspect(arguments, context, (kind,))


_FORMAT = value("format", "TEMPLATE", "Go template: `{{.State.Status}}`, `{{json .Config.Env}}`", "f")
_USAGE = "[OPTIONS] NAME [NAME...]"

INSPECT = Command(
    _USAGE, inspect,
    (_FORMAT, value("type", "KIND", "Only this kind", "", "Options", ",".join(KINDS)),
     switch("size", "Accepted, as Docker has it", "s")),
    1, None, ("container",), "The shape is Docker's; --json gives the API's own values.",
    ("casemate inspect web", "casemate inspect -f '{{.State.ExitCode}}' job",
     "casemate inspect -f '{{.NetworkSettings.IPAddress}}' web"),
)  # fmt: skip
POD = Command(_USAGE, _of("pod"), (_FORMAT,), 1, None, ("pod",))
IMAGE = Command(_USAGE, _of("image"), (_FORMAT,), 1, None, ("image",))
VOLUME = Command(_USAGE, _of("volume"), (_FORMAT,), 1, None, ("volume",))
