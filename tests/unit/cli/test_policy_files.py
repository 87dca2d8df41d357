"""Files of policy documents: what kinds they hold, and where in which file the daemon's words point."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.cli.commands.policy_files import Files
from casemate.cli.errors import UsageError
from casemate.spec.errors import RemoteError


def files(folder: Path, *texts: str) -> Files:
    names = []
    for number, text in enumerate(texts):
        path = folder / f"{'abc'[number]}.yaml"
        path.write_text(text)
        names.append(str(path))
    found = Files(names)
    found.names = [Path(name).name for name in names]
    return found


TRUST = "apiVersion: casemate/v1\nkind: TrustPolicy\n"


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (TRUST, {"TrustPolicy"}),
        ("kind: 'TrustPolicy'  # quoted\n", {"TrustPolicy"}),
        ('"kind": "TrustPolicyTest"\r\n', {"TrustPolicyTest"}),
        ('{"kind": "TrustPolicy", "spec": {"kind": "Policy"}}', {"TrustPolicy"}),
        ('{\n "kind": "TrustPolicy"\n}', {"TrustPolicy"}),
        ("# first\n---\n" + TRUST + "---\nkind: TrustPolicyTest\n...\n", {"TrustPolicy", "TrustPolicyTest"}),
        ("spec:\n  kind: TrustPolicy\n", set()),
        ("tests: []\n", set()),
        ("{", set()),
        ("[]", set()),
        ('{"kind": 1}', set()),
        ("", set()),
        ("kind:", {""}),
        ("\x00\xff", set()),
    ],
)
def test_kinds(tmp_path: Path, text: str, kinds: set[str]) -> None:
    assert files(tmp_path, text).kinds() == kinds


def test_two_sorts_of_documents_in_one_request_are_refused(tmp_path: Path) -> None:
    assert files(tmp_path, TRUST, TRUST).are_trusts("policy apply")
    assert not files(tmp_path, "kind: Policy\n").are_trusts("policy apply")
    with pytest.raises(UsageError, match="hold TrustPolicy and Policy"):
        files(tmp_path, TRUST, "kind: Policy\n").are_trusts("policy apply")


@pytest.mark.parametrize(
    ("detail", "told"),
    [
        ("policy:3:1: not YAML", "a.yaml:3:1: not YAML"),
        ("policy:5:2: not YAML", "b.yaml:2:2: not YAML"),  # the first has two lines, and one more divides them
        ("policy:8:1: x", "c.yaml:2:1: x"),
        ("policy:999:1: x", "c.yaml:993:1: x"),
        ("policy[0].spec: x", "a.yaml[0].spec: x"),
        ("policy[1].spec: x", "b.yaml[0].spec: x"),
        ("policy[3].kind: x", "c.yaml[1].kind: x"),
        ("policy, document 2: x", "b.yaml, document 1: x"),
        ("line 5: policy[1].spec.rules[0].action: 'x'", "b.yaml:2: spec.rules[0].action: 'x'"),
        ("line 1: policy[0]: unknown field", "a.yaml:1: unknown field"),
        ("line 1: elsewhere", "line 1: elsewhere"),
        ("policy has 5 bytes", "policy has 5 bytes"),
        ("another thing", "another thing"),
        ("policy[", "policy["),
        ("policy:" + "9" * 30, "policy:" + "9" * 30),
    ],
)
def test_a_place_becomes_one_in_a_file(tmp_path: Path, detail: str, told: str) -> None:
    three = files(tmp_path, "kind: A\nx: 1", "---\nkind: B", "kind: C\n---\nkind: D\n")
    assert [len(part.split(b"\n")) for part in three.parts] == [2, 2, 4]
    assert three.placed(detail, "policy") == told


def test_a_single_file_stands_for_the_whole_text(tmp_path: Path) -> None:
    one = files(tmp_path, "kind: A\n")
    assert one.placed("policy has 5 bytes", "policy") == "a.yaml has 5 bytes"
    assert one.placed("policy: two walls have one name", "policy") == "a.yaml: two walls have one name"
    assert one.placed("policyx", "policy") == "policyx"

    def refuse() -> object:
        raise RemoteError({"code": "policy.invalid", "detail": "policy:1:1: bad", "remedy": "r"})

    with pytest.raises(RemoteError) as error:
        one.asked(refuse, "policy")
    assert error.value.problem == {"code": "policy.invalid", "detail": "a.yaml:1:1: bad", "remedy": "r"}
