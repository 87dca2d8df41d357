"""``trust policy ...`` and ``trust why``: what may run, and each step that led to that."""

from __future__ import annotations

from casemate.cli.commands.policy_files import Files
from casemate.cli.fail import usage
from casemate.cli.flags import Arguments, Command, value
from casemate.cli.show.plain import clean, coloured, shortened
from casemate.cli.show.table import aligned
from casemate.cli.wire.client import object_of, rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context

MAX_TEXT_BYTES = 1_000_000
#: What the daemon calls the text that it was sent; for people it is the name of a file.
ORIGIN = "the text"
FAILED = 1
_MARKS = {"ok": "ok", "refuse": "REFUSES", "raise": "raises", "warn": "warns", "excepted": "excepted"}


def _text(files: Files) -> str:
    if len(files.data) > MAX_TEXT_BYTES:
        raise usage(f"{files.names[0][:200]!r} has {len(files.data)} bytes; {MAX_TEXT_BYTES} are allowed")
    return files.text


def _asked(context: Context, path: str, files: Files, request: dict[str, object]) -> dict[str, object]:
    return object_of(files.asked(lambda: context.client.post(path, request | {"origin": ORIGIN}), ORIGIN))


def apply(arguments: Arguments, context: Context) -> int:
    return apply_files(Files(arguments.words, "FILE"), context)


def apply_files(files: Files, context: Context) -> int:
    # One request: several files are applied together or not at all.
    answer = _asked(context, "/v1/trust/policy", files, {"text": _text(files)})
    if context.json:
        context.answer(answer)
        return 0
    names = answer.get("applied")
    context.write("".join(f"{clean(str(name))} applied\n" for name in names) if isinstance(names, list) else "")
    return 0


def ls(arguments: Arguments, context: Context) -> int:
    del arguments
    answer = object_of(context.client.get("/v1/trust/policies"))
    if context.json:
        context.answer(answer)
        return 0
    rows = rows_of(answer, "policies")
    if not rows:
        context.write("no trust policy: every image is admitted\n")
        return 0
    lines = [["NAME", "RULES", "SIGNERS", "EXCEPTIONS", "IGNORES", "APPLIED", "BY", ""]]
    for row in rows:
        marks = "dry run" if row.get("dry_run") else ""
        lines.append([str(row.get(key, "")) for key in (
            "name", "rules", "signers", "exceptions", "ignores", "applied_at", "who")] + [marks])  # fmt: skip
    text = aligned(lines)
    for row in rows:
        expired = row.get("expired")
        for line in expired if isinstance(expired, list) else ():
            text += f"Warning: {clean(str(row.get('name')))}: {clean(str(line))}\n"
    context.write(text)
    return 0


def show(arguments: Arguments, context: Context) -> int:
    context.answer(context.client.get("/v1/trust/policy", [("name", arguments.words[0])]))
    return 0


def remove(arguments: Arguments, context: Context) -> int:
    from casemate.cli.commands.several import each

    def gone(name: str) -> object:
        return context.client.delete("/v1/trust/policy", [("name", name)])

    return each(context, arguments.words, gone, "removed", lambda _: "")


def test(arguments: Arguments, context: Context) -> int:
    """Exit code 1 when a case comes out otherwise than it expects."""
    policy = arguments.text("policy")
    return test_files(Files(arguments.words, "FILE"), [policy] if policy is not None else [], context)


def test_files(files: Files, policies: list[str], context: Context) -> int:
    """The cases in *files* against the documents in the files *policies*, or (none) against what is in force."""
    request: dict[str, object] = {"text": _text(files)}
    if policies:
        request["policy"] = _text(Files(policies, "--with"))
    answer = _asked(context, "/v1/trust/policy/test", files, request)
    if context.json:
        context.answer(answer)
    else:
        for row in rows_of(answer, "cases"):
            passed = row.get("passed") is True
            word = "ok" if passed else coloured("FAILED", "31;1", 1)
            context.write(f"{word}  {clean(str(row.get('name')))}\n")
            lacks = row.get("lacks")
            for line in lacks if isinstance(lacks, list) else ():
                context.write(f"    {clean(str(line))}\n")
            if not passed:
                context.write(f"    {clean(str(row.get('reason')))}\n")
    return 0 if answer.get("passed") is True else FAILED


def dry_run(arguments: Arguments, context: Context) -> int:
    return dry_run_files(Files(arguments.words, "FILE"), context)


def dry_run_files(files: Files, context: Context) -> int:
    """What the documents would change among the containers."""
    answer = _asked(context, "/v1/trust/policy/dry-run", files, {"text": _text(files)})
    if context.json:
        context.answer(answer)
        return 0
    rows = rows_of(answer, "changes")
    lines = [["CONTAINER", "IMAGE", "STATUS", "NOW", "THEN", "WOULD", "BECAUSE"]]
    for row in rows:
        lines.append([
            str(row.get("name", "")), shortened(str(row.get("image", "")), 40), str(row.get("status", "")),
            _stands(row, ""), _stands(row, "_then"), str(row.get("does", "")),
            shortened(str(row.get("reason_then", "")), 90),
        ])  # fmt: skip
    text = aligned(lines) + "\n" if rows else ""
    context.write(f"{text}{len(rows)} of {answer.get('looked_at')} containers would be judged otherwise\n")
    return 0


def _stands(row: dict[str, object], suffix: str) -> str:
    answer, level, segment = (str(row.get(name + suffix) or "") for name in ("answer", "level", "segment"))
    return " ".join(word for word in (answer, level, segment) if word)


def why(arguments: Arguments, context: Context) -> int:
    """Exit code 1 when it would not be admitted now."""
    pairs = [("name", arguments.words[0])]
    if context.project != "default":
        pairs.append(("project", context.project))
    answer = object_of(context.client.get("/v1/trust/why", pairs))
    now = object_of(answer.get("now"))
    if context.json:
        context.answer(answer)
    else:
        context.write(_told(answer, now))
    return 0 if now.get("answer") == "admit" else FAILED


def _told(answer: dict[str, object], now: dict[str, object]) -> str:
    def line(head: str, text: object) -> str:
        return f"{head:<12}{clean(str(text))}\n" if text else ""

    text = line(str(answer.get("kind", "")), answer.get("name"))
    if answer.get("kind") != "image" or answer.get("image") != answer.get("name"):
        text += line("image", answer.get("image"))
    text += line("digest", answer.get("digest"))
    text += line("repository", answer.get("repository"))
    if answer.get("level"):
        text += line("runs at", answer["level"])
    text += _admission("now", now)
    then = answer.get("then")
    if isinstance(then, dict) and (then.get("answer"), then.get("steps")) != (now.get("answer"), now.get("steps")):
        text += "\n" + _admission("when it was started last", then)
    return text


def _admission(head: str, row: dict[str, object]) -> str:
    verdict = "admitted" if row.get("answer") == "admit" else coloured("REFUSED", "31;1", 1)
    level, segment = str(row.get("level") or "namespace"), str(row.get("segment") or "")
    text = f"\n{head}: {verdict}"
    if row.get("policy"):
        text += f" by rule {clean(str(row['policy']))}, at least {clean(level)}"
    text += f", in segment {clean(segment)}" if segment else ""
    text += f" ({clean(str(row['at']))})\n" if row.get("at") else "\n"
    if row.get("dry_run"):
        text += "  a dry run: what is said below is told and not enforced\n"
    steps = row.get("steps")
    lines = [
        ["  " + _MARKS.get(str(step.get("outcome")), ""), str(step.get("rule", "")), str(step.get("evidence", ""))]
        for step in (steps if isinstance(steps, list) else ())
        if isinstance(step, dict)
    ]
    text += aligned(lines) if lines else f"  {clean(str(row.get('reason', '')))}\n"
    for name, told in (("signers", "signed by"), ("feeds", "judged by"), ("warnings", "warning")):
        found = row.get(name)
        for one in found if isinstance(found, list) else ():
            text += f"  {told}: {clean(str(one))}\n"
    counts = row.get("counts")
    if row.get("packages"):
        found = counts if isinstance(counts, dict) else {}
        words = ", ".join(f"{count} {clean(str(word))}" for word, count in found.items()) or "no findings"
        text += f"  {row['packages']} packages of {clean(str(row.get('distribution') or 'no distribution'))}: {words}\n"
    return text


APPLY = Command(
    "FILE|- [FILE...]", apply, (), 1, None, ("file",),
    "Documents of the kind TrustPolicy (docs/reference/trust-policy.md). Without any every image is admitted; as soon\n"
    "as there is one, what no rule covers is refused. Needs the grant `trust`.",
    ("casemate trust policy apply production.yaml",),
)  # fmt: skip
LS = Command("", ls)
SHOW = Command("NAME", show, (), 1, 1, ("name",))
RM = Command("NAME [NAME...]", remove, (), 1, None, ("name",))
TEST = Command(
    "[OPTIONS] FILE", test,
    (value("policy", "FILE", "Test these documents instead of what is in force", "", "Options", "file"),), 1, 1,
    ("file",), "Runs the cases of a document of the kind TrustPolicyTest. Exit code 1 when one fails.",
    ("casemate trust policy test --policy production.yaml cases.yaml",),
)  # fmt: skip
DRY_RUN = Command(
    "FILE", dry_run, (), 1, 1, ("file",),
    "Shows for each container what the documents would change if they were applied; nothing is changed.",
    ("casemate trust policy dry-run production.yaml",),
)  # fmt: skip
WHY = Command(
    "CONTAINER|IMAGE", why, (), 1, 1, ("container",),
    "Exit code 1 when it would not be admitted now.", ("casemate trust why web", "casemate trust why debian:12"),
)  # fmt: skip
