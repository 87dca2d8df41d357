"""Trust in the node: what is loaded when, documents, manifests of mirrors, the page of a scan, actions."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from pathlib import Path

import msgspec
import pytest

import casemate
from casemate.node.trust.actions import violates
from casemate.node.trust.admission import own_labels, with_segment
from casemate.node.trust.documents import combine, parse_cases, parse_policies
from casemate.node.trust.jobs import FeedsJob, TrustChildFailed, decode_job, decode_message, encode
from casemate.node.trust.rematch import tells
from casemate.spec.api import Admission, AdmissionStep
from casemate.spec.api.scan import ScanAnswer, ScanFinding, ScanLayer, ScanSecret
from casemate.trust.feed.ignores import IgnoreInvalid
from casemate.trust.feed.manifest import parse_manifest
from casemate.trust.feed.model import FeedInvalid
from casemate.trust.report.page import page
from casemate.trust.rules.model import PolicyInvalid
from casemate.trust.signature.errors import KeyInvalid

SOURCE = str(Path(casemate.__file__).parents[1])
TODAY = date(2026, 11, 22)
DOCUMENT = """
apiVersion: casemate/v1
kind: TrustPolicy
metadata: {name: NAME}
spec: {rules: [{name: r-NAME, prefix: NAME}]}
"""


def loaded(program: str) -> set[str]:
    program += "\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONPATH": SOURCE}
    )
    return set(done.stdout.splitlines()[-1].split())


def test_the_command_line_loads_nothing_of_trust() -> None:
    """Every command is loaded, and the help of each is printed: trust is imported by what a trust command then does,
    and by nothing before.
    """
    found = loaded(
        "from casemate.cli.index import ROWS\n"
        "from casemate.cli.main import main\n"
        "for row in ROWS:\n"
        "    assert main([*row[0].split(), '--help']) == 0, row\n"
        "    main([*row[0].split(), '--no-such-flag'])\n"
    )
    assert len({name for name in found if name.startswith("casemate.cli.commands.")}) > 30
    assert not {name for name in found if name.startswith("casemate.trust")}
    assert not found & {"cel", "cryptography", "tuf", "cvss", "yaml", "msgspec", "sqlite3", "pkcs11", "sigstore"}


def test_the_daemon_loads_nothing_that_judges_before_there_is_a_policy() -> None:
    found = loaded("import casemate.api.daemon, casemate.node.node, casemate.api.routes")
    assert not found & {
        "cel", "cryptography", "cvss", "casemate.trust.packages.scanner",
        "casemate.trust.rules.decide", "casemate.node.trust.documents", "casemate.node.trust.judging",
    }  # fmt: skip


def test_several_documents() -> None:
    read = parse_policies("\n---\n".join(DOCUMENT.replace("NAME", name) for name in ("a", "b")), "f")
    whole = combine(read, TODAY)
    assert [rule.prefix for rule in whole.rules] == ["a", "b"]
    dry = DOCUMENT.replace("NAME", "c").replace("spec: {", "spec: {dry_run: true, ")
    assert [rule.dry_run for rule in combine([*read, *parse_policies(dry, "f")], TODAY).rules] == [False, False, True]


@pytest.mark.parametrize(
    "text",
    [
        "", "- 1", "{", DOCUMENT.replace("TrustPolicy", "Policy"), DOCUMENT.replace("spec: {", "spec: {colour: red, "),
        DOCUMENT.replace("casemate/v1", "casemate/v2"), DOCUMENT + "---" + DOCUMENT, DOCUMENT.replace("NAME", "-A"),
        DOCUMENT.replace("NAME", "&a x"), DOCUMENT.replace("prefix: NAME", "prefix: 7"), "a: \x00", "a: b\n" * 3,
        DOCUMENT.replace("prefix: NAME", "prefix: x, threshold: two"), "[" * 200, "x: " + "y" * 300_000,
    ],
)  # fmt: skip
def test_documents_that_are_none(text: str) -> None:
    with pytest.raises(PolicyInvalid):
        parse_policies(text, "f")


def test_documents_that_do_not_fit() -> None:
    for spec, error in (
        ("{signers: [{type: key, name: x, key: junk}]}", KeyInvalid),
        ("{ignores: [{ident: CVE-1, reason: r, owner: o, until: '2029-01-01'}]}", IgnoreInvalid),
        ("{ignores: [{ident: CVE-1, reason: '', owner: o, until: '2026-12-01'}]}", IgnoreInvalid),
        ("{rules: [{name: a, prefix: x, signers: [nobody]}]}", PolicyInvalid),
        ("{rules: [{name: a, prefix: x, quarantine: 'A B'}]}", PolicyInvalid),
        ("{rules: [{name: default, prefix: x}]}", PolicyInvalid),
    ):
        text = DOCUMENT.partition("spec:")[0].replace("NAME", "a") + f"spec: {spec}\n"
        with pytest.raises(error):
            combine(parse_policies(text, "f"), TODAY)


def test_cases_that_are_none() -> None:
    for text in ("", "apiVersion: casemate/v1\nkind: TrustPolicyTest\ncases: []\n", DOCUMENT.replace("NAME", "a")):
        with pytest.raises(PolicyInvalid):
            parse_cases(text, "f")


def test_a_manifest_of_a_mirror() -> None:
    row = {"name": "a", "kind": "osv", "file": "x/a.zip", "sha256": "ab" * 32}
    assert parse_manifest(msgspec.json.encode({"feeds": [row]})).feeds[0].file == "x/a.zip"
    for changes in (
        {"file": "../x"}, {"file": "/x"}, {"file": "http://elsewhere.example/x"}, {"file": "x/../y"}, {"file": ""},
        {"file": "x?y"}, {"name": ""}, {"name": "\x1b"}, {"sha256": "AB" * 32}, {"date": "yesterday"}, {"more": 1},
        {"kind": "magic"},
    ):  # fmt: skip
        with pytest.raises(FeedInvalid):
            parse_manifest(msgspec.json.encode({"feeds": [row | changes]}))
    for data in (b"", b"{}", b'{"feeds": []}', b"[" * 5000, msgspec.json.encode({"feeds": [row, row]})):
        with pytest.raises(FeedInvalid):
            parse_manifest(data)


def test_the_child_s_messages() -> None:
    job = FeedsJob(state="/s", today="2026-11-22")
    assert decode_job(encode(job)) == job
    for data in (b"", b"{}", b'{"type": "scan"}', b"x" * (65 << 20)):
        with pytest.raises(TrustChildFailed):
            decode_job(data)
    with pytest.raises(TrustChildFailed):
        decode_message(b"Traceback")


def test_the_page_escapes_everything() -> None:
    bad = "<img src=x onerror=alert(1)>\x1b[31m\u202e'\""
    answer = ScanAnswer(
        bad, bad, "2026-11-22", False, (bad,), {"high": 1}, bad, findings=(ScanFinding(bad, bad, bad, bad, bad, 0),),
        layers=(ScanLayer(bad, bad, bad),), secrets=(ScanSecret(bad, bad, 0),), warnings=(bad,),
    )  # fmt: skip
    text = page(answer)
    assert "<img" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("&lt;img") > 10
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "")


def test_what_violates() -> None:
    assert violates(Admission("refuse", "x"), "microvm")
    assert violates(Admission("admit", "x", level="gvisor"), "namespace")
    assert not violates(Admission("admit", "x", level="gvisor"), "microvm")
    assert not violates(Admission("admit", "no policy"), "namespace")


def test_what_is_news() -> None:
    step = AdmissionStep("r", "ok", "scanned on 2026-11-21")
    before = Admission("admit", "x", "r", level="namespace", at="1", steps=(step,), feeds=("a",))
    after = msgspec.structs.replace(before, at="2", steps=(AdmissionStep("r", "ok", "another"),), feeds=("b",))
    assert tells(before) == tells(after)
    for change in ({"answer": "refuse"}, {"level": "gvisor"}, {"segment": "s"}, {"policy": "q"},
                   {"steps": (AdmissionStep("r", "warn", "x"),)}):  # fmt: skip
        assert tells(msgspec.structs.replace(before, **change)) != tells(before)


def test_labels_of_our_own() -> None:
    inside = Admission("admit", "x", segment="s")
    assert own_labels({"casemate/quarantine": "no", "casemate/x": "y", "a": "b"}, inside) == {
        "a": "b", "casemate/segment": "s",
    }  # fmt: skip
    kept = {"casemate/quarantine": "q", "casemate/segment": "old"}
    assert with_segment(kept, Admission("admit", "x")) == {"casemate/quarantine": "q"}
