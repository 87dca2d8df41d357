"""Policy text to documents, off the loop: small texts in a thread, large ones decoded in a limited child first.

A document of a few rules takes a millisecond. What is larger than :data:`SMALL_BYTES` is decoded by a child with
limits of its own on memory and time, so that a text made to be expensive ends there; the values that come back are
checked here, field by field, as any.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from casemate.host.programs import run
from casemate.node.policy.bulk import bulk
from casemate.policy.errors import PolicyInvalid, PolicyTooLarge
from casemate.policy.parse import Document, read_documents
from casemate.policy.source import MAX_BYTES, load_documents
from casemate.spec.errors import CasemateError, ProgramFailed, RemoteError, TimedOut

#: Up to this the loop itself reads it: some milliseconds.
TINY_BYTES = 4 << 10
SMALL_BYTES = 256 << 10
CHILD_TIMEOUT_S = 60.0
#: JSON of 32 MiB YAML in flow style is not longer; block style is shorter than its JSON by its brackets and quotes.
MAX_ANSWER_BYTES = 4 * MAX_BYTES


async def read_text(data: bytes, origin: str = "policy") -> list[Document]:
    """Every document in *data*.

    Raises :class:`PolicyInvalid` and the like with the line where one is known, :class:`PolicyTooLarge`.
    """
    if len(data) > MAX_BYTES:
        raise PolicyTooLarge(f"{origin} has {len(data)} bytes, allowed are {MAX_BYTES}")
    if len(data) <= TINY_BYTES:
        return _read(data, None, origin)
    if len(data) <= SMALL_BYTES:
        return await asyncio.to_thread(_read, data, None, origin)
    answer = await _decoded(data, origin)
    return await asyncio.to_thread(_read_much, data, answer, origin)


def _read_much(data: bytes, answer: bytes, origin: str) -> list[Document]:
    """The documents of *data*, as the child's *answer* has them."""
    with bulk():
        return _read(data, _values(answer), origin)


def _read(data: bytes, values: list[object] | None, origin: str) -> list[Document]:
    try:
        return read_documents(load_documents(data, origin) if values is None else values, origin)
    except PolicyInvalid as error:
        from casemate.policy.locate import line_of  # noqa: PLC0415 - with it comes the parser of YAML

        # A message begins with the path of the field, where it is about one.
        path = error.facts.get("path") or error.detail.partition(": ")[0]
        line = line_of(data.decode(errors="replace"), path) if isinstance(path, str) else None
        if line is None:
            raise
        detail = f"line {line}: {error.detail}"
        raise type(error)(detail, remedy=error.instance_remedy, path=str(path), line=line) from error


async def _decoded(data: bytes, origin: str) -> bytes:
    """The answer of a child that decodes the documents and may use little."""
    argv = [sys.executable, "-I", "-c", _CHILD, *sys.path, origin]
    try:
        done = await run(
            argv, timeout_s=CHILD_TIMEOUT_S, stdin=data, max_output_bytes=MAX_ANSWER_BYTES, check=False,
            env={"PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
    except TimedOut as error:
        raise PolicyTooLarge(f"{origin}: reading it takes longer than {CHILD_TIMEOUT_S:g} s") from error
    if done.returncode or done.truncated:
        raise PolicyTooLarge(f"{origin}: reading it takes more memory or time than is allowed ({done.returncode})")
    return done.stdout


def _values(data: bytes) -> list[object]:
    answer = msgspec.json.decode(data)
    if not isinstance(answer, dict):
        raise ProgramFailed("the reader of policy documents answered nonsense")
    if "problem" in answer:
        raise RemoteError(answer["problem"])
    documents: list[object] = answer["documents"]
    return documents


#: The child: its path for imports is the parent's (-I leaves the environment out of it).
_CHILD = """
import sys
sys.path[:] = sys.argv[1:-1]
from casemate.node.policy.reading_child import main
main(sys.argv[-1])
"""


def read_stored(values: list[dict[str, object]]) -> tuple[dict[str, Document], str]:
    """The documents of the store, and what is wrong with those that cannot be read."""
    found: dict[str, Document] = {}
    wrong: list[str] = []
    for value in values:
        try:
            for one in read_documents([value], "stored"):
                found[one.key] = one
        except CasemateError as error:
            wrong.append(error.detail)
    if not wrong:
        return found, ""
    return found, f"{len(wrong)} stored documents cannot be read, so nothing is allowed: {'; '.join(wrong[:3])}"
