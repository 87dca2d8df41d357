"""The part of Go's templates that people write after ``--format``.

``{{.Name}}``, ``{{.State.Status}}``, ``{{json .}}``, ``{{.Labels | json}}``, ``{{index .Labels "k"}}``, ``{{len .X}}``,
``{{join .X ","}}``, ``{{split}}``, ``{{upper}}``, ``{{lower}}``, ``{{title}}``, ``{{println}}``, ``{{printf}}`` with
%s %d %v %q, ``{{if}}..{{else}}..{{end}}``, ``{{range .X}}..{{end}}`` and ``{{range $k, $v := .X}}``. Anything else is
a usage error that says what was seen. Bounds: 64 KiB of text, 32 levels, a million steps.
"""

from __future__ import annotations

from casemate.cli.fail import usage
from casemate.cli.show.expression import Expression, as_text, evaluate, parse_expression, truth

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_TEXT = 64 << 10
MAX_DEPTH = 32
MAX_STEPS = 1_000_000

_ESCAPES = {"\\t": "\t", "\\n": "\n"}


class Node:
    """``text``; ``value``: an expression; ``if`` and ``range``: an expression and two bodies."""

    __slots__ = ("body", "expression", "kind", "names", "otherwise", "text")

    def __init__(self, kind: str, text: str = "", expression: Expression | None = None) -> None:
        self.kind = kind
        self.text = text
        self.expression = expression
        self.names: tuple[str, ...] = ()
        self.body: list[Node] = []
        self.otherwise: list[Node] = []


class Template:
    __slots__ = ("_nodes", "_steps")

    def __init__(self, text: str) -> None:
        if len(text) > MAX_TEXT:
            raise usage(f"--format: the template has {len(text)} characters; at most {MAX_TEXT} are read")
        for written, meant in _ESCAPES.items():
            text = text.replace(written, meant)
        pieces = _pieces(text)
        self._nodes, _ = _parse(pieces, 0, 0)
        self._steps = 0

    def render(self, value: object) -> str:
        """The text for *value* (what JSON can hold)."""
        self._steps = 0
        out: list[str] = []
        self._render(self._nodes, value, {"$": value}, out)
        return "".join(out)

    def titles(self, title: Callable[[str], str]) -> str:
        """The heading of a table: the title of each field instead of its value."""
        out = ""
        for node in self._nodes:
            if node.kind == "text":
                out += node.text
            elif node.expression is not None:
                out += title(node.expression.last_field())
        return out

    def _render(self, nodes: list[Node], dot: object, names: dict[str, object], out: list[str]) -> None:
        for node in nodes:
            self._steps += 1
            if self._steps > MAX_STEPS:
                raise usage("--format: the template does not end within a million steps")
            if node.kind == "text" or node.expression is None:
                out.append(node.text)
                continue
            value = evaluate(node.expression, dot, names)
            if node.kind == "value":
                out.append(as_text(value))
            elif node.kind == "if":
                self._render(node.body if truth(value) else node.otherwise, dot, names, out)
            else:
                self._range(node, value, dot, names, out)

    def _range(self, node: Node, value: object, dot: object, names: dict[str, object], out: list[str]) -> None:
        items: list[tuple[object, object]]
        if isinstance(value, dict):
            items = [(key, value[key]) for key in sorted(value)]
        elif isinstance(value, list | tuple):
            items = list(enumerate(value))
        else:
            items = []
        for key, held in items:
            inner = dict(names)
            if node.names:
                inner[node.names[-1]] = held
            if len(node.names) == 2:
                inner[node.names[0]] = key
            self._render(node.body, held, inner, out)
        if not items:
            self._render(node.otherwise, dot, names, out)


def _pieces(text: str) -> list[tuple[str, str]]:
    """``("text", ...)`` and ``("action", ...)`` in turn; ``{{-`` and ``-}}`` trim the space beside them."""
    pieces: list[tuple[str, str]] = []
    trim = False
    while text:
        before, opened, rest = text.partition("{{")
        if trim:
            before = before.lstrip()
        if not opened:
            pieces.append(("text", before))
            break
        action, closed, text = rest.partition("}}")
        if not closed:
            raise usage(f"--format: an action is not closed: {{{{{action[:60]!r}", "Write {{ and }} around each field.")
        if action.startswith("- "):
            before, action = before.rstrip(), action[2:]
        trim = action.endswith(" -")
        pieces.append(("text", before))
        pieces.append(("action", action.removesuffix(" -").strip()))
    return pieces


def _parse(pieces: list[tuple[str, str]], at: int, depth: int) -> tuple[list[Node], int]:
    """The nodes from *at* to the ``end`` or ``else`` of this level; and the place of that word, or past the last."""
    if depth > MAX_DEPTH:
        raise usage(f"--format: the template is nested deeper than {MAX_DEPTH} levels")
    nodes: list[Node] = []
    while at < len(pieces):
        kind, text = pieces[at]
        word = text.split(None, 1)[0] if kind == "action" and text else ""
        if kind == "text":
            nodes.append(Node("text", text))
        elif word in ("end", "else"):
            if depth == 0:
                raise usage(f"--format: {{{{{word}}}}} stands without {{{{if}}}} or {{{{range}}}}")
            return nodes, at
        elif word in ("if", "range"):
            node, at = _block(pieces, at, depth, word, text[len(word) :].strip())
            nodes.append(node)
        elif not text.startswith("/*"):
            nodes.append(Node("value", "", parse_expression(text)))
        at += 1
    if depth:
        raise usage("--format: {{end}} is missing")
    return nodes, at


def _block(pieces: list[tuple[str, str]], at: int, depth: int, kind: str, text: str) -> tuple[Node, int]:
    node = Node(kind)
    if kind == "range" and ":=" in text:
        left, _, text = text.partition(":=")
        node.names = tuple(name.strip() for name in left.split(","))
        if len(node.names) > 2 or not all(name.startswith("$") for name in node.names):
            raise usage(f"--format: {left.strip()[:60]!r} are no variables", "Write {{range $key, $value := .Field}}.")
    node.expression = parse_expression(text.strip())
    node.body, at = _parse(pieces, at + 1, depth + 1)
    if pieces[at][1].split(None, 1)[0] == "else":
        inner = pieces[at][1][4:].strip()
        if inner.startswith("if"):
            nested, at = _block(pieces, at, depth + 1, "if", inner[2:].strip())
            node.otherwise = [nested]
            return node, at
        node.otherwise, at = _parse(pieces, at + 1, depth + 1)
    return node, at
