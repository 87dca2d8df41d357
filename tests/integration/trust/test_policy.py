"""The trust policy from the command line to a container that runs, or does not."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.integration.trust.conftest import TRACKER, Casemate, debian_tar, imported, tracker

pytestmark = pytest.mark.root
pytest.importorskip("cel", reason="missing: common-expression-language")
pytest.importorskip("cvss", reason="missing: cvss")
TODAY = datetime.now(UTC).date().isoformat()

POLICY = """
apiVersion: casemate/v1
kind: TrustPolicy
metadata: {name: NAME}
spec:
  rules:
    - name: here
      prefix: local
      max_feed_age_days: 7
      grades:
        - name: high-and-fixable
          when: "findings.exists(f, f.severity == 'high' && f.fixable)"
          then: refuse
        - name: leaks
          when: "size(leaks) > 0"
          then: warn
"""


def written(folder: Path, text: str = POLICY, name: str = "test") -> str:
    path = folder / "policy.yaml"
    path.write_text(text.replace("NAME", name))
    return str(path)


@pytest.fixture(scope="module")
def image(casemate: Casemate) -> str:
    return imported(casemate, "debian-like", debian_tar())


@pytest.fixture(autouse=True)
def no_policy(casemate: Casemate) -> None:
    for row in casemate.json("trust", "policy", "ls")["policies"]:  # type: ignore[index,call-overload]
        casemate.run("trust", "policy", "rm", row["name"])


def feed(casemate: Casemate, folder: Path, found: object = TRACKER) -> None:
    path = str(tracker(folder, found))
    casemate.run("feed", "import", "debian-tracker", path, "--date", TODAY, "--name", "debian")


REPAIRED = {**TRACKER, "openssl": {"CVE-2026-1001": TRACKER["openssl"]["CVE-2026-1001"]}}


def test_without_a_policy_everything_runs_and_with_one_nothing_that_no_rule_covers(
    casemate: Casemate, image: str, tmp_path: Path
) -> None:
    assert casemate.run("run", "--rm", image, "echo", "yes") == "yes\n"
    assert "no trust policy" in casemate.run("trust", "policy", "ls")
    casemate.run("trust", "policy", "apply", written(tmp_path, POLICY.replace("prefix: local", "prefix: docker.io")))
    done = casemate.ended("run", "--rm", image, "true")
    assert done.returncode == 125
    assert b"no rule covers local/docker.io/library/debian-like" in done.stderr
    # Another name makes it nobody else's image.
    casemate.run("tag", image, "docker.io/library/trusted:1")
    assert casemate.ended("run", "--rm", "docker.io/library/trusted:1", "true").returncode == 125
    casemate.run("image", "rm", "docker.io/library/trusted:1")


def test_a_feed_decides_at_create_and_at_start(casemate: Casemate, image: str, tmp_path: Path) -> None:
    casemate.run("trust", "policy", "apply", written(tmp_path))
    done = casemate.ended("create", image, "true")
    assert done.returncode == 125
    assert b"no feed" in done.stderr
    feed(casemate, tmp_path, REPAIRED)
    casemate.run("create", "--name", "judged", image, "true")
    casemate.run("start", "judged")
    kept = casemate.json("inspect", "judged")[0]["admission"]  # type: ignore[index,call-overload]
    assert (kept["answer"], kept["policy"], kept["repository"]) == (
        "admit",
        "here",
        "local/docker.io/library/debian-like",
    )
    assert {step["rule"] for step in kept["steps"] if step["outcome"] == "warn"} == {"leaks"}
    casemate.run("wait", "judged")
    # The feed changes while it is stopped: its next start is another decision.
    feed(casemate, tmp_path)
    done = casemate.ended("start", "judged")
    assert done.returncode != 0
    assert b"high-and-fixable" in done.stderr
    told = casemate.run("trust", "why", "judged", code=1)
    assert "REFUSED by rule here" in told
    assert "high-and-fixable" in told
    assert casemate.ended("trust", "why", image).returncode == 1
    casemate.run("rm", "judged")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("prefix: local", "is there twice"),
        ("colour: red", "unknown field"),
        ("&a local", "anchors and aliases"),
        ("when: 'findings.exists('", ""),
        ("when: 'nonsense > 1'", "which is no fact"),
        ("max_feed_age_days: -9", ""),
    ],
)
def test_what_is_wrong_is_named_and_changes_nothing(
    casemate: Casemate, image: str, tmp_path: Path, change: str, told: str
) -> None:
    text = POLICY
    match change.partition(":")[0]:
        case "prefix":
            text += "    - {name: again, prefix: local/}\n"
        case "colour":
            text += "    - {name: again, prefix: x, colour: red}\n"
        case "when":
            text += f"    - {{name: again, prefix: x, grades: [{{name: g, then: warn, {change}}}]}}\n"
        case "max_feed_age_days":
            text += f"    - {{name: again, prefix: x, {change}}}\n"
        case _:
            text = text.replace("prefix: local", f"prefix: {change}")
    done = casemate.ended("trust", "policy", "apply", written(tmp_path, text))
    assert done.returncode == 125
    assert told in done.stderr.decode()
    assert casemate.json("trust", "policy", "ls") == {"policies": []}
    assert casemate.run("run", "--rm", image, "echo", "yes") == "yes\n"


def test_several_documents_are_one_policy(casemate: Casemate, tmp_path: Path) -> None:
    casemate.run("trust", "policy", "apply", written(tmp_path, name="a"))
    other = POLICY.replace("name: here", "name: there").replace("local", "docker.io").replace("high-and", "other")
    done = casemate.ended("trust", "policy", "apply", written(tmp_path, other.replace("docker.io", "local"), "b"))
    assert b"the prefix 'local' is there twice" in done.stderr
    other = other.replace("name: leaks", "name: leaks-there")
    casemate.run("trust", "policy", "apply", written(tmp_path, other, "b"))
    shown = json.loads(casemate.run("trust", "policy", "show", "b"))
    path = tmp_path / "again.json"
    path.write_text(json.dumps(shown))
    casemate.run("trust", "policy", "apply", str(path))
    assert casemate.ended("trust", "policy", "rm", "c").returncode == 125


def test_a_floor_raises_or_refuses(casemate: Casemate, image: str, tmp_path: Path) -> None:
    text = POLICY.partition("      max_feed")[0] + "      floor: gvisor\n"
    casemate.run("trust", "policy", "apply", written(tmp_path, text))
    done = casemate.ended("create", "--isolation", "namespace", image, "true")
    assert done.returncode == 125
    assert b"rule here wants at least gvisor, not namespace" in done.stderr
    done = casemate.ended("create", "--name", "raised", image, "true")
    if done.returncode == 0:
        assert casemate.json("inspect", "raised")[0]["summary"]["level"] == "gvisor"  # type: ignore[index,call-overload]
        casemate.run("rm", "raised")
    else:  # this host does not offer the level: then it is refused, never run at a weaker one
        assert b"isolation level gvisor" in done.stderr


TESTS = """
apiVersion: casemate/v1
kind: TrustPolicyTest
cases:
  - name: nothing found
    given: {image: local/x, distribution: debian 12}
    expect: {answer: admit, rule: here, level: namespace}
  - name: fixable
    given: {image: local/x, findings: [{severity: high, fixed: "2"}]}
    expect: {answer: refuse, steps: [high-and-fixable]}
  - name: somewhere else
    given: {image: elsewhere.example/x}
    expect: {answer: EXPECTED, rule: default}
"""


def test_a_user_s_cases(casemate: Casemate, tmp_path: Path) -> None:
    cases = tmp_path / "cases.yaml"
    cases.write_text(TESTS.replace("EXPECTED", "refuse"))
    assert casemate.run("trust", "policy", "test", "--policy", written(tmp_path), str(cases)).count("ok  ") == 3
    cases.write_text(TESTS.replace("EXPECTED", "admit"))
    done = casemate.ended("trust", "policy", "test", "--policy", written(tmp_path), str(cases))
    assert done.returncode == 1
    assert b"answer is 'refuse', expected 'admit'" in done.stdout
    # By the other word: the kind of the document says what it is about.
    for words in (("-f", str(cases)), (str(cases),)):
        done = casemate.ended("policy", "test", *words, "--with", written(tmp_path))
        assert done.returncode == 1
        assert b"answer is 'refuse', expected 'admit'" in done.stdout
    cases.write_text(TESTS.replace("EXPECTED", "refuse"))
    assert casemate.run("policy", "test", str(cases), "--with", written(tmp_path)).count("ok  ") == 3


def test_it_survives_a_restart_and_what_cannot_be_read_refuses(casemate: Casemate, image: str, tmp_path: Path) -> None:
    feed(casemate, tmp_path, REPAIRED)
    casemate.run("trust", "policy", "apply", written(tmp_path))
    casemate.daemons.kill("casemated")
    casemate.daemons.start()
    assert casemate.run("run", "--rm", image, "echo", "yes") == "yes\n"
    casemate.daemons.kill("casemated")
    with sqlite3.connect(casemate.state / "casemate.db") as database:
        database.execute("UPDATE trust_policies SET document=x'7b'")
    database.close()
    casemate.daemons.start()
    done = casemate.ended("run", "--rm", image, "true")
    assert done.returncode == 125
    assert b"no rule covers" in done.stderr
    casemate.run("trust", "policy", "apply", written(tmp_path))
    assert casemate.run("run", "--rm", image, "echo", "yes") == "yes\n"


def test_a_document_goes_where_its_kind_belongs(casemate: Casemate, image: str, tmp_path: Path) -> None:
    def problem(*argv: str) -> dict[str, object]:
        done = casemate.ended("--json", *argv)
        assert done.returncode == 125
        return dict(json.loads(done.stderr.splitlines()[-1]))

    trust = written(tmp_path)
    assert casemate.run("policy", "diff", "-f", trust).endswith("containers would be judged otherwise\n")
    assert casemate.run("policy", "apply", trust) == "test applied\n"
    assert casemate.json("trust", "policy", "ls")["policies"][0]["name"] == "test"  # type: ignore[index,call-overload]
    assert problem("policy", "apply", "-f", trust, "--whole")["code"] == "cli.usage"
    casemate.run("trust", "policy", "rm", "test")

    network = tmp_path / "network.yaml"
    network.write_text(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: shut}\n"
        "spec: {podSelector: {}, policyTypes: [Ingress]}\n"
    )
    found = problem("trust", "policy", "apply", str(network))
    assert found["code"] == "trust.policy_invalid"
    assert "`casemate policy apply -f FILE`" in str(found["remedy"])
    assert problem("policy", "apply", "-f", trust, "-f", str(network))["code"] == "cli.usage"
    casemate.run("policy", "apply", "-f", str(network))
    casemate.run("policy", "rm", "NetworkPolicy/default/shut")

    cases = tmp_path / "cases.yaml"
    cases.write_text("apiVersion: casemate/v1\nkind: TrustPolicyTest\ncases: []\n")
    assert "`casemate trust policy test" in str(problem("trust", "policy", "apply", str(cases))["remedy"])
    assert "`casemate trust policy test" in str(problem("policy", "apply", "-f", str(cases))["remedy"])
    # What only the daemon's reader sees as one: its answer names the command.
    cases.write_text('{apiVersion: casemate/v1, "kind": TrustPolicy, metadata: {name: x}, spec: {}}')
    assert "`casemate trust policy apply" in str(problem("policy", "apply", "-f", str(cases))["remedy"])


def test_a_mistake_is_told_with_its_file_and_its_place_there(casemate: Casemate, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("apiVersion: casemate/v1\nkind: Policy\nmetadata: {name: a}\nspec: {rules: []}\n")
    bad.write_text("apiVersion: casemate/v1\nkind: Policy\nmetadata: [\n")
    done = casemate.ended("policy", "apply", "-f", str(good), "-f", str(bad))
    assert f"{bad}:4:1: not YAML".encode() in done.stderr
    bad.write_text("apiVersion: casemate/v1\nkind: Polic\n")
    assert (
        f"{bad}:1: 'casemate/v1' 'Polic' is not known".encode()
        in casemate.ended("policy", "diff", str(good), str(bad)).stderr
    )
    trust = written(tmp_path)
    bad.write_text("apiVersion: casemate/v1\nkind: TrustPolicy\nmetadata: {name: B}\nspec: {}\n")
    assert f"{bad}, document 1: ".encode() in casemate.ended("trust", "policy", "apply", trust, str(bad)).stderr
    assert f"{bad}, document 1: ".encode() in casemate.ended("policy", "apply", trust, str(bad)).stderr
    bad.write_text("tests: [")
    assert f"{bad}:2:1: not YAML".encode() in casemate.ended("policy", "test", str(bad)).stderr
