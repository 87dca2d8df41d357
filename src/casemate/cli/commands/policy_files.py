"""Files of policy documents: read as one text, told apart by kind, and found again in what the daemon says of them."""

from __future__ import annotations

from casemate.cli.commands.archives import read_chunks
from casemate.cli.fail import remote, usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Kinds that say which images may run; all others say who may talk to whom.
TRUST_KINDS = ("TrustPolicy", "TrustPolicyTest")
_BETWEEN = b"\n---\n"


class Files:
    """Every file one after the other; ``-`` is standard input."""

    def __init__(self, names: list[str], flag: str = "-f") -> None:
        if not names:
            raise usage(f"{flag} FILE is missing", f"Name a file with {flag}, or - for standard input.")
        self.names = ["standard input" if name == "-" else name for name in names]
        self.parts = [b"".join(read_chunks(None if name == "-" else name, flag)) for name in names]
        self.data = _BETWEEN.join(self.parts)

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "surrogateescape")

    def kinds(self) -> set[str]:
        """The kinds of all documents, as far as they stand plainly: the daemon reads YAML, and judges."""
        return {kind for part in self.parts for document in _documents(part) for kind in _kind(document)}

    def are_trusts(self, command: str) -> bool:
        """Whether these are documents of the trust policy; one request holds one sort of documents."""
        kinds = self.kinds()
        trusts = kinds & set(TRUST_KINDS)
        if trusts and kinds - trusts:
            both = f"{sorted(trusts)[0]} and {sorted(kinds - trusts)[0][:80]}"
            raise usage(f"the files hold {both}", "Give the two sorts of documents one after the other.", command)
        return bool(trusts)

    def asked(self, ask: Callable[[], object], origin: str) -> object:
        """What *ask* gives. Where the daemon refuses with a place in *origin*, it becomes one in a file."""
        try:
            return ask()
        except Exception as error:
            problem = getattr(error, "problem", None)
            if not isinstance(problem, dict) or not isinstance(detail := problem.get("detail"), str):
                raise
            told = self.placed(detail, origin)
            if told == detail:
                raise
            raise remote({**problem, "detail": told}) from error

    def placed(self, detail: str, origin: str) -> str:
        """*detail*, which begins with *origin* and a place in the whole text, with a file and the place there.

        ``line N: ORIGIN[K]...`` names both; the line is enough, and stands in the form that editors jump to.
        """
        before, _, after = detail.partition(": ")
        number = _number(before.removeprefix("line ")) if before.startswith("line ") else None
        if number is not None and after.startswith(f"{origin}["):
            name, first = self._of(number, [part.count(b"\n") + 2 for part in self.parts])
            return f"{name}:{number - first}: {after.partition('].')[2] or after.partition(']: ')[2]}"
        rest = detail.removeprefix(origin)
        if rest == detail:
            return detail
        if rest.startswith(":") and (line := _number(rest[1:])):
            name, first = self._of(line, [part.count(b"\n") + 2 for part in self.parts])
            return f"{name}:{line - first}{rest[1 + len(str(line)) :]}"
        for before, start in (("[", 0), (", document ", 1)):
            number = _number(rest.removeprefix(before)) if rest.startswith(before) else None
            if number is not None:
                counts = [sum(1 for _ in _documents(part)) for part in self.parts]
                name, first = self._of(number + 1 - start, counts)
                return f"{name}{before}{number - first}{rest[len(before) + len(str(number)) :]}"
        return f"{self.names[0]}{rest}" if len(self.names) == 1 and rest[:1] in (":", " ", ",") else detail

    def _of(self, number: int, counts: list[int]) -> tuple[str, int]:
        """The file that holds line or document *number* (from 1 on), and how many stand before it."""
        first = 0
        for name, count in zip(self.names, counts, strict=True):
            if number <= first + count:
                return name, first
            first += count
        return self.names[-1], first - counts[-1]


def _number(text: str) -> int | None:
    """The number that *text* begins with."""
    digits = text[: len(text) - len(text.lstrip("0123456789"))]
    return int(digits) if 0 < len(digits) < 10 else None


def _documents(part: bytes) -> Iterator[list[bytes]]:
    """The lines of each document that is not empty (YAML 1.2.2, 9.1: ``---`` at a line's start begins one)."""
    lines: list[bytes] = []
    for line in part.split(b"\n"):
        if line.rstrip() in (b"---", b"...") or line.startswith(b"--- "):
            if _says(lines):
                yield lines
            lines = [line[4:]]
        else:
            lines.append(line)
    if _says(lines):
        yield lines


def _says(lines: list[bytes]) -> bool:
    return any(line.strip() and not line.lstrip().startswith((b"#", b"%")) for line in lines)


def _kind(lines: list[bytes]) -> list[str]:
    """The word after ``kind:`` at the beginning of a line, or of the mapping that the whole document is in JSON."""
    for line in lines:
        key, colon, value = line.partition(b":")
        if colon and key.strip(b"\"' ") == b"kind" and not key.startswith(b" "):
            word = value.partition(b" #")[0].strip(b"\"' \t\r")
            return [word.decode("utf-8", "replace")]
    whole = b"\n".join(lines).strip()
    if whole.startswith(b"{"):
        from casemate.cli.wire import json

        try:
            found = json.loads(whole)
        except Exception:  # whatever it is: the daemon says what is wrong with it
            return []
        kind = found.get("kind") if isinstance(found, dict) else None
        return [kind] if isinstance(kind, str) else []
    return []
