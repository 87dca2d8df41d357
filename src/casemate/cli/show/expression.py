"""The expressions inside ``{{ }}``: fields, literals, a dozen functions, pipelines, parentheses. Pure and bounded."""

from __future__ import annotations

from casemate.cli.fail import usage

MAX_PARTS = 256
_QUOTES = "\"`'"


class Expression:
    """*head* is ``field`` (*path* below dot or a variable), ``of`` (*path* below what is in parentheses), ``literal``
    (*value*) or the name of a function.
    """

    __slots__ = ("arguments", "base", "head", "path", "value")

    def __init__(self, head: str, value: object = None, base: str = "", path: tuple[str, ...] = ()) -> None:
        self.head = head
        self.value = value
        self.base = base
        self.path = path
        self.arguments: list[Expression] = []

    def last_field(self) -> str:
        """The name of the field that this shows, for a table's heading."""
        if self.head == "field":
            return self.path[-1] if self.path else ""
        for argument in self.arguments:
            found = argument.last_field()
            if found:
                return found
        return ""


def _ends_word(letter: str) -> bool:
    return letter.isspace() or letter in "|()" or letter in _QUOTES


def _closes(word: str) -> bool:
    return word == "|" or word.startswith(")")


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    at = 0
    while at < len(text):
        letter = text[at]
        if letter.isspace():
            at += 1
        elif letter == ")":
            # ``(index .Ports 0).HostPort``: what follows at once belongs to the parenthesis.
            start = at
            at += 1
            while text[start + 1 : start + 2] == "." and at < len(text) and not _ends_word(text[at]):
                at += 1
            tokens.append(text[start:at])
        elif letter in "|(":
            tokens.append(letter)
            at += 1
        elif letter in _QUOTES:
            end = text.find(letter, at + 1)
            if end < 0:
                raise usage(f"--format: a quote is not closed in {text[:60]!r}")
            tokens.append('"' + text[at + 1 : end])
            at = end + 1
        else:
            start = at
            while at < len(text) and not _ends_word(text[at]):
                at += 1
            tokens.append(text[start:at])
        if len(tokens) > MAX_PARTS:
            raise usage(f"--format: an action has more than {MAX_PARTS} words")
    return tokens


def parse_expression(text: str) -> Expression:
    tokens = _tokens(text)
    found, at = _pipeline(tokens, 0, 0)
    if at != len(tokens):
        raise usage(f"--format: {text[:60]!r} goes on after {tokens[at - 1]!r}")
    return found


def _pipeline(tokens: list[str], at: int, depth: int) -> tuple[Expression, int]:
    if depth > 16:
        raise usage("--format: too many parentheses")
    found, at = _call(tokens, at, depth)
    while at < len(tokens) and tokens[at] == "|":
        following, at = _call(tokens, at + 1, depth)
        if following.head in ("field", "literal", "of"):
            raise usage("--format: what stands after | is not a function")
        following.arguments.append(found)
        found = following
    return found, at


def _call(tokens: list[str], at: int, depth: int) -> tuple[Expression, int]:
    if at >= len(tokens) or _closes(tokens[at]):
        raise usage("--format: an action is empty", "Write a field, for example {{.Names}}.")
    first, at = _term(tokens, at, depth)
    if first.head not in _FUNCTIONS:
        return first, at
    while at < len(tokens) and not _closes(tokens[at]):
        argument, at = _term(tokens, at, depth)
        first.arguments.append(argument)
    return first, at


def _term(tokens: list[str], at: int, depth: int) -> tuple[Expression, int]:
    word = tokens[at]
    if word == "(":
        inner, at = _pipeline(tokens, at + 1, depth + 1)
        if at >= len(tokens) or not tokens[at].startswith(")"):
            raise usage("--format: a parenthesis is not closed")
        path = tuple(part for part in tokens[at][1:].split(".") if part)
        if path:
            outer = Expression("of", path=path)
            outer.arguments.append(inner)
            inner = outer
        return inner, at + 1
    if word.startswith('"'):
        return Expression("literal", word[1:]), at + 1
    if word[0] in ".$":
        base, _, rest = word.partition(".")
        return Expression("field", None, base, tuple(part for part in rest.split(".") if part)), at + 1
    if word in _FUNCTIONS:
        return Expression(word), at + 1
    if word in ("true", "false", "nil"):
        return Expression("literal", {"true": True, "false": False, "nil": None}[word]), at + 1
    if word.lstrip("-").isdigit() and word.isascii() and len(word) < 19:
        return Expression("literal", int(word)), at + 1
    known = ", ".join(sorted(_FUNCTIONS))
    raise usage(f"--format: {word[:60]!r} is no field and no function", f"Fields begin with a dot; functions: {known}.")


def as_text(value: object) -> str:
    """A value as Go prints it: ``true``, ``<no value>``, ``[a b]``, ``map[k:v]``."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + " ".join(as_text(item) for item in value) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{as_text(value[key])}" for key in sorted(value)) + "]"
    return str(value)


def truth(value: object) -> bool:
    """What ``if`` goes by: false, 0, nil and empty are not."""
    return bool(value)


def evaluate(expression: Expression, dot: object, names: dict[str, object]) -> object:
    if expression.head == "literal":
        return expression.value
    if expression.head == "field":
        return _field(expression, dot, names)
    arguments = [evaluate(argument, dot, names) for argument in expression.arguments]
    if expression.head == "of":
        return _below(arguments[0], expression.path, True)
    try:
        return _apply(expression.head, arguments)
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise usage(f"--format: {expression.head} cannot be applied here: {error}") from None


def _field(expression: Expression, dot: object, names: dict[str, object]) -> object:
    if expression.base and expression.base not in names:
        raise usage(f"--format: there is no variable {expression.base!r}")
    value = names[expression.base] if expression.base else dot
    return _below(value, expression.path, bool(expression.base))


def _below(value: object, path: tuple[str, ...], lenient: bool) -> object:
    """What is at *path* below *value*; a first part that is not there is an error unless *lenient*."""
    for index, part in enumerate(path):
        if not isinstance(value, dict):
            shown = "." + ".".join(path[: index + 1])
            raise usage(f"--format: {shown} cannot be reached: what is before it holds no fields")
        if part not in value:
            if index == 0 and not lenient:
                known = ", ".join(f".{name}" for name in sorted(map(str, value)))
                raise usage(f"--format: there is no field .{part}", f"The fields are {known}.")
            return None
        value = value[part]
    return value


def _apply(head: str, arguments: list[object]) -> object:
    from casemate.cli.wire import json

    match head, arguments:
        case "json", [value]:
            return json.dumps(value)
        case "len", [str() | list() | tuple() | dict() as value]:
            return len(value)
        case "upper", [value]:
            return as_text(value).upper()
        case "lower", [value]:
            return as_text(value).lower()
        case "title", [value]:
            return as_text(value).title()
        case "println", values:
            return " ".join(map(as_text, values)) + "\n"
        case "print", values:
            return " ".join(map(as_text, values))
        case "join", [list() | tuple() as value, str(mark)]:
            return mark.join(map(as_text, value))
        case "split", [str(value), str(mark)]:
            return value.split(mark)
        case "index", [value, *keys]:
            return _index(value, keys)
        case "printf", [str(form), *values]:
            return _printf(form, values)
        case "truncate", [value, int(length)]:
            return as_text(value)[:length]
        case (("eq" | "ne"), [left, *others]) if others:
            return (left in others) == (head == "eq")
        case "not", [value]:
            return not truth(value)
        case (("and" | "or"), values) if values:
            return next((item for item in values if truth(item) != (head == "and")), values[-1])
        case _:
            raise ValueError(f"{len(arguments)} arguments of these kinds are not what it takes")


def _index(value: object, keys: list[object]) -> object:
    for key in keys:
        if isinstance(value, dict):
            value = value.get(str(key))
        elif isinstance(value, list | tuple) and isinstance(key, int):
            value = value[key]
        else:
            raise ValueError(f"{key!r} is no index of it")
    return value


def _printf(form: str, values: list[object]) -> str:
    from casemate.cli.show.plain import quoted

    out, rest = "", list(values)
    pieces = form.split("%")
    out = pieces.pop(0)
    while pieces:
        piece = pieces.pop(0)
        if not piece and pieces:
            out += "%" + pieces.pop(0)
            continue
        width = len(piece) - len(piece.lstrip("-0123456789."))
        verb = piece[width : width + 1]
        if verb not in ("s", "d", "v", "q") or not rest or width > 6:
            raise ValueError(f"the verb %{piece[: width + 1]}")
        value = rest.pop(0)
        text = quoted(as_text(value)) if verb == "q" else as_text(value)
        sized = piece[:width].partition(".")[0]
        if sized:
            text = text.ljust(int(sized[1:] or 0)) if sized.startswith("-") else text.rjust(int(sized))
        out += text + piece[width + 1 :]
    return out


_NAMES = "json len upper lower title print println join split index printf truncate eq ne not and or"
_FUNCTIONS = frozenset(_NAMES.split())
