"""``policy apply diff ls show rm explain test simulate suggest schema`` and ``identity ls``."""

from __future__ import annotations

from casemate.cli.commands.listing import FORMAT
from casemate.cli.commands.policy_files import Files
from casemate.cli.fail import usage
from casemate.cli.flags import Arguments, Command, switch, value, values
from casemate.cli.show.plain import clean, coloured
from casemate.cli.show.table import show as show_table
from casemate.cli.wire.client import object_of, rows_of, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context
    from casemate.cli.wire.client import Pairs

YAML = "application/yaml"
_DOCUMENTS = "/v1/policy/documents"
#: Documents that one request removes: what fits a request line.
MAX_KEYS = 32
_COLUMNS = (
    ("Key", "DOCUMENT"), ("Project", "PROJECT"), ("Rules", "RULES"), ("Walls", "WALLS"), ("AppliedAt", "APPLIED"),
    ("AppliedBy", "BY"),
)  # fmt: skip
_IDENTITY_COLUMNS = (
    ("Number", "IDENTITY"), ("Kind", "KIND"), ("Project", "PROJECT"), ("Labels", "LABELS"), ("Workloads", "WORKLOADS"),
)  # fmt: skip
#: What the colours of a verdict say on a terminal.
_COLOURS = {"allow": "32", "audit": "33", "refer": "36", "hold": "36", "deny": "31"}


def apply(arguments: Arguments, context: Context) -> int:
    return _apply("policy apply", arguments, context, arguments.on("dry-run"), arguments.on("diff"))


def diff(arguments: Arguments, context: Context) -> int:
    """What applying the files would change; exit code 1 where it would change anything (as diff(1))."""
    return _apply("policy diff", arguments, context, True, True)


def _files(arguments: Arguments) -> Files:
    return Files([*arguments.texts("file"), *arguments.words])


def _apply(command: str, arguments: Arguments, context: Context, dry_run: bool, with_diff: bool) -> int:
    files = _files(arguments)
    if files.are_trusts(command):
        from casemate.cli.commands import trust

        if arguments.on("whole") or arguments.on("exit-code"):
            raise usage("--whole and --exit-code are not for documents of the trust policy", "", command)
        return trust.dry_run_files(files, context) if dry_run else trust.apply_files(files, context)
    pairs: Pairs = [("dry_run", "true")] if dry_run else []
    if arguments.on("whole"):
        pairs.append(("whole", "true"))
    pairs += _path_reason(arguments)
    answer = _uploaded(context, files, _DOCUMENTS, pairs)
    if context.json:
        context.answer(answer)
    else:
        told(context, answer, with_diff)
    changes = [row for row in rows_of(answer, "changes") if row.get("action") != "unchanged"]
    return 1 if with_diff and dry_run and changes and arguments.on("exit-code") else 0


def _uploaded(context: Context, files: Files, path: str, pairs: Pairs) -> dict[str, object]:
    def ask() -> object:
        return context.client.upload("POST", path, pairs, iter([files.data]), YAML).json()

    return object_of(files.asked(ask, "policy"))


def _path_reason(arguments: Arguments) -> Pairs:
    reason = arguments.text("allow-path-across-wall")
    return [("path_reason", reason)] if reason else []


def told(context: Context, answer: dict[str, object], with_diff: bool) -> None:
    """What an application did, in lines; warnings to standard error."""
    changes = rows_of(answer, "changes")
    if not changes:
        context.note("no document was given\n")
    for row in changes:
        context.write(f"{clean(str(row.get('key')))} {row.get('action')}\n")
        if with_diff and row.get("diff"):
            context.write("".join(f"  {_diff_line(line)}\n" for line in str(row.get("diff")).split("\n")))
    for name, before in (
        ("warnings", "warning"), ("crossings", "CROSSES A WALL"), ("outside", "through the outside"),
    ):  # fmt: skip
        listed = answer.get(name)
        for text in listed if isinstance(listed, list) else ():
            context.note(f"{before}: {clean(str(text))}\n")
    count = answer.get("elements", 0)
    if answer.get("dry_run"):
        context.write(f"would change {count} elements of the firewall; nothing was changed\n")
    elif not answer.get("enforced"):
        context.note(f"not in the firewall yet: {clean(str(answer.get('why_not')))}\n")
    tightened = answer.get("tightened")
    for text in tightened if isinstance(tightened, list) else ():
        context.write(f"open connections {'would be' if answer.get('dry_run') else 'are'} cut: {clean(str(text))}\n")


def _diff_line(line: str) -> str:
    shown = clean(line)
    if line.startswith("+") and not line.startswith("+++"):
        return coloured(shown, "32", 1)
    return coloured(shown, "31", 1) if line.startswith("-") and not line.startswith("---") else shown


def ls(arguments: Arguments, context: Context) -> int:
    answer = object_of(context.client.get(_DOCUMENTS, context.of_project()))
    if context.json:
        context.answer(answer)
        return 0
    rows = [
        {"Key": row.get("key"), "Project": row.get("project") or "(operator)", "Rules": row.get("rules"),
         "Walls": row.get("walls", 0), "AppliedAt": row.get("applied_at"), "AppliedBy": row.get("applied_by"),
         "Kind": row.get("kind"), "Name": row.get("name")}
        for row in rows_of(answer, "documents")
    ]  # fmt: skip
    show_table(context, _COLUMNS, rows, arguments.text("format"), "Key" if arguments.on("quiet") else "")
    state = object_of(answer.get("state"))
    if state.get("active") and not state.get("enforced"):
        context.note(f"not in the firewall yet: {clean(str(state.get('why_not')))}\n")
    return 0


def show(arguments: Arguments, context: Context) -> int:
    for number, key in enumerate(arguments.words):
        answer = object_of(context.client.get("/v1/policy/document", [("key", key)]))
        if context.json:
            context.answer(answer)
        else:
            context.write(("---\n" if number else "") + clean(text_of(answer, "text"), newlines=True))
    return 0


def remove(arguments: Arguments, context: Context) -> int:
    answers: list[dict[str, object]] = []
    for start in range(0, len(arguments.words), MAX_KEYS):
        pairs: Pairs = [("key", key) for key in arguments.words[start : start + MAX_KEYS]]
        if arguments.on("dry-run"):
            pairs.append(("dry_run", "true"))
        pairs += _path_reason(arguments)
        answers.append(object_of(context.client.delete(_DOCUMENTS, pairs)))
        if not context.json:
            told(context, answers[-1], False)
    if context.json:
        context.answer(answers[0] if len(answers) == 1 else answers)
    return 0


def explain(arguments: Arguments, context: Context) -> int:
    words = arguments.words
    request: dict[str, object] = {"source": words[0], "destination": words[1], "port": words[2]}
    if context.project != "default":
        request["project"] = context.project
    answer = object_of(context.client.post("/v1/policy/explain", request))
    if context.json:
        context.answer(answer)
        return 0
    lines = answer.get("lines")
    first, *rest = [str(line) for line in lines] if isinstance(lines, list) and lines else [""]
    context.write(coloured(clean(first), _COLOURS.get(text_of(answer, "verdict"), "0"), 1) + "\n")
    context.write("".join(f"  {clean(line)}\n" for line in rest))
    return 0


def test(arguments: Arguments, context: Context) -> int:
    """Exit code 1 where an expectation does not hold."""
    files = _files(arguments)
    if files.are_trusts("policy test"):
        from casemate.cli.commands import trust

        return trust.test_files(files, arguments.texts("with"), context)
    body, kind, given = files.data, YAML, arguments.texts("with")
    if given:
        from casemate.cli.wire import json

        documents = Files(given, "--with").data.decode("utf-8", "replace")
        both = {"tests": files.data.decode("utf-8", "replace"), "documents": documents}
        body, kind = json.dumps(both).encode(), "application/json"

    def ask() -> object:
        return context.client.upload("POST", "/v1/policy/test", [], iter([body]), kind).json()

    answer = object_of(files.asked(ask, "tests"))
    if context.json:
        context.answer(answer)
    else:
        for row in rows_of(answer, "results"):
            held = bool(row.get("held"))
            mark = coloured("ok", "32", 1) if held else coloured("FAILED", "31", 1)
            wrong = "" if held else f", expected {row.get('expected')}"
            named = f"{row.get('name')}: " if row.get("name") else ""
            text = f"{named}{row.get('asked')}: {row.get('verdict')} by {row.get('rule')}{wrong}"
            context.write(f"{mark} {clean(text)}\n")
    return 0 if answer.get("held") else 1


def simulate(arguments: Arguments, context: Context) -> int:
    files = _files(arguments)
    pairs: Pairs = [("since", arguments.text("since") or "1h")]
    if arguments.on("whole"):
        pairs.append(("whole", "true"))
    answer = _uploaded(context, files, "/v1/policy/simulate", pairs)
    if context.json:
        context.answer(answer)
        return 0
    for row in rows_of(answer, "differences"):
        text = (
            f"{row.get('asked')} ({row.get('count')} times): {row.get('before')} by {row.get('before_rule')}, "
            f"would be {row.get('after')} by {row.get('after_rule')}"
        )
        context.write(coloured(clean(text), _COLOURS.get(str(row.get("after")), "0"), 1) + "\n")
    context.write(f"{answer.get('connections')} recorded connections looked at\n")
    return 0


def suggest(arguments: Arguments, context: Context) -> int:
    pairs: Pairs = [("since", arguments.text("since") or "1h")]
    if arguments.text("name"):
        pairs.append(("name", arguments.text("name") or ""))
    answer = object_of(context.client.get("/v1/policy/suggest", pairs))
    if context.json:
        context.answer(answer)
    else:
        context.write(clean(text_of(answer, "text"), newlines=True))
    return 0


def schema(_: Arguments, context: Context) -> int:
    context.answer(context.client.get("/v1/policy/schema"))
    return 0


def status(_: Arguments, context: Context) -> int:
    answer = object_of(context.client.get("/v1/policy/status"))
    if context.json:
        context.answer(answer)
        return 0
    state = object_of(answer.get("state"))
    held = "in force" if state.get("enforced") else f"NOT in force: {state.get('why_not')}"
    context.write(f"Policy: {clean(held) if state.get('active') else 'none; every pod reaches every other'}\n")
    for name in ("rules", "endpoints", "identities", "generation", "default"):
        context.write(f"  {name}: {state.get(name, 0)}\n")
    for row in rows_of(answer | {"holds": answer.get("holds", [])}, "holds"):
        text = f"{row.get('waiting')} connections wait, {row.get('refused')} reset, {row.get('left_s'):.1f} s left"
        context.write(clean(f"Held: {row.get('workload')}: {text}") + "\n")
    context.write(f"Waiting for an answer: {answer.get('waiting')}\n")
    for title, name in (("Map elements", "elements"), ("Firewall", "firewall"), ("Referrals", "referrals")):
        counted = answer.get(name)
        if isinstance(counted, dict) and counted:
            context.write(f"{title}: " + ", ".join(f"{key} {count}" for key, count in sorted(counted.items())) + "\n")
    return 0


def identities(arguments: Arguments, context: Context) -> int:
    answer = object_of(context.client.get("/v1/identities", context.of_project()))
    found = rows_of(answer, "identities")
    if context.json:
        context.answer(found)
        return 0
    rows: list[dict[str, object]] = []
    for row in found:
        held, names = row.get("labels"), row.get("workloads")
        pairs = ",".join(f"{key}={text}" for key, text in sorted(held.items())) if isinstance(held, dict) else ""
        listed = [str(name) for name in names] if isinstance(names, list) else []
        more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
        rows.append({"Number": row.get("number"), "Kind": row.get("kind"), "Project": row.get("project"),
                     "Labels": pairs, "Workloads": ", ".join(listed[:4]) + more})  # fmt: skip
    show_table(context, _IDENTITY_COLUMNS, rows, arguments.text("format"), "Number" if arguments.on("quiet") else "")
    return 0


_FILE = values("file", "FILE", "A file of documents, or - for standard input", "f", completes="file")
_WHOLE = switch("whole", "The files are all there is: documents that they do not have go")
_SINCE = value("since", "TIME", "Flows recorded since this time, or so long ago (1h)")
_PATH = value("allow-path-across-wall", "REASON", "As officer: open a path across a wall, and why; it is evidence")
_DRY = switch("dry-run", "Say what would be done, and do nothing")

APPLY = Command(
    "[OPTIONS] -f FILE | FILE...", apply,
    (_FILE, _DRY, _WHOLE, _PATH, switch("diff", "Show what changes, line by line"),
     switch("exit-code", "With --dry-run --diff: end with 1 where something would change")),
    0, None, ("file",),
    "Kinds: casemate/v1 Policy; Kubernetes' NetworkPolicy, ClusterNetworkPolicy, AdminNetworkPolicy and\n"
    "BaselineAdminNetworkPolicy, unchanged. All of it or nothing is applied. Documents of the kind TrustPolicy go to\n"
    "the trust policy, as with `casemate trust policy apply`.",
    ("casemate policy apply -f shop.yaml", "kubectl get networkpolicy -A -o yaml | casemate policy apply -f -"),
)  # fmt: skip
DIFF = Command(
    "[OPTIONS] -f FILE | FILE...", diff,
    (_FILE, _WHOLE, switch("exit-code", "End with 1 where something would change")),
    0, None, ("file",), "", ("casemate policy diff -f shop.yaml",),
)  # fmt: skip
LS = Command("[OPTIONS]", ls, (FORMAT, switch("quiet", "Only their keys", "q")))
SHOW = Command("DOCUMENT [DOCUMENT...]", show, (), 1, None, (), "", ("casemate policy show Policy/default/shop",))
RM = Command("[OPTIONS] DOCUMENT [DOCUMENT...]", remove, (_DRY, _PATH), 1, None, (), "",
             ("casemate policy rm NetworkPolicy/default/allow-web",))  # fmt: skip
EXPLAIN = Command(
    "FROM TO PORT", explain, (), 3, 3, ("container", "container"),
    "FROM and TO: a container, a pod, PROJECT/NAME, an address, a DNS name. PORT: tcp/5432, udp/53, icmp/8, tcp/NAME.",
    ("casemate policy explain web db tcp/5432", "casemate policy explain web 192.0.2.7 tcp/443"),
)  # fmt: skip
TEST = Command(
    "[OPTIONS] -f FILE | FILE...", test,
    (_FILE, values("with", "FILE", "Judge these documents, not those in force", completes="file")),
    0, None, ("file",),
    "The file: `tests: [{from: web, to: db, port: tcp/5432, expect: allow}]` for connections, or a document of the\n"
    "kind TrustPolicyTest for images. Exit code 1 where one fails.",
    ("casemate policy test expected.yaml", "casemate policy test -f expected.yaml --with new.yaml",
     "casemate policy test cases.yaml --with production.yaml"),
)  # fmt: skip
SIMULATE = Command(
    "[OPTIONS] -f FILE | FILE...", simulate, (_FILE, _SINCE, _WHOLE), 0, None, ("file",), "",
    ("casemate policy simulate -f new.yaml --since 24h",),
)  # fmt: skip
SUGGEST = Command(
    "[OPTIONS]", suggest, (_SINCE, value("name", "NAME", "What the document is to be called")), 0, 0, (), "",
    ("casemate policy suggest --since 24h > observed.yaml",),
)  # fmt: skip
STATUS = Command("", status, (), 0, 0, (), "Whether the firewall has it, what is held, and what was counted.")
SCHEMA = Command("", schema, (), 0, 0, (), "The JSON schema of casemate/v1 Policy, for editors.")
IDENTITIES = Command("[OPTIONS]", identities, (FORMAT, switch("quiet", "Only numbers", "q")))
