"""JSON through the C scanner and encoder that ``json`` itself uses; importing ``json`` costs 8 ms, this 0.3."""

from __future__ import annotations

import _json

from casemate.cli.fail import broken_answer

_SPACE = " \t\r\n"


class _Rules:
    """What the C scanner reads from its context; the names are those of json.JSONDecoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}  # noqa: RUF012 - the scanner empties it after each document

    @staticmethod
    def parse_constant(name: str) -> float:
        raise ValueError(name)


_scan = _json.make_scanner(_Rules())  # type: ignore[arg-type]  # any object with these names does


def loads(data: bytes | str) -> object:
    """The value of the JSON document *data*; a broken answer when it is none."""
    try:
        text = (data if isinstance(data, str) else data.decode("utf-8")).strip(_SPACE)
        value, end = _scan(text, 0)
    except (ValueError, StopIteration, RecursionError, OverflowError):
        raise broken_answer(f"the answer is not JSON: {data[:80]!r}") from None
    if end != len(text):
        raise broken_answer(f"the answer goes on after its JSON: {text[end : end + 40]!r}")
    return value


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} has no JSON form")


_encode = _json.make_encoder(None, _refuse, _json.encode_basestring, None, ":", ",", False, False, False)


def dumps(value: object) -> str:
    """*value* as JSON on one line."""
    return "".join(_encode(value, 0))


def indented(value: object, depth: int = 0) -> str:
    """*value* as JSON for people: four spaces a level, as ``docker inspect`` prints it."""
    inner, outer = "    " * (depth + 1), "    " * depth
    if isinstance(value, dict) and value:
        rows = [f"{inner}{dumps(str(key))}: {indented(held, depth + 1)}" for key, held in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{outer}}}"
    if isinstance(value, list | tuple) and value:
        rows = [inner + indented(held, depth + 1) for held in value]
        return "[\n" + ",\n".join(rows) + f"\n{outer}]"
    return dumps(value)
