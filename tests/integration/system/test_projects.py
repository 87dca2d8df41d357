"""Operators of single projects: unix users of their own, and the command line against both daemons."""

from __future__ import annotations

import json
import pwd
from collections.abc import Iterator

import pytest
from tests.integration.daemons import USER, ensure_user
from tests.integration.system.site import IMAGE, Account, Canary, Site, settle

pytestmark = pytest.mark.root

ANN, BOB, CAROL, DAVE = 64_101, 64_102, 64_103, 64_104
SETTINGS = {
    "CASEMATE_PROJECTS_OPERATORS": f"ours={ANN},theirs=@{BOB}",
    "CASEMATE_PROJECTS_ADMINISTRATORS": str(CAROL),
}
RULES = """
apiVersion: casemate/v1
kind: Policy
metadata: {name: rules, project: PROJECT}
spec: {segments: {all: {select: {}, default: allow}}}
"""
PORT = "8080"


def _member(uid: int) -> Account:
    """A member of the daemon's group that has no name: the settings know it by number."""
    ensure_user()
    return Account(f"u{uid}", uid, uid, (pwd.getpwnam(USER).pw_gid,))


@pytest.fixture(scope="module")
def ann() -> Account:
    """Operator of ``ours``."""
    return _member(ANN)


@pytest.fixture(scope="module")
def bob() -> Account:
    """Operator of ``theirs``, by group."""
    return _member(BOB)


@pytest.fixture(scope="module")
def workloads(site: Site, ann: Account, bob: Account) -> Iterator[dict[str, str]]:
    """A container of each, run by its operator; ids by project."""
    for project in ("ours", "theirs"):
        assert site("project", "create", project).returncode == 0
    listen = f"nc -lk -p {PORT} -e cat & sleep 1000"
    made = {}
    for project, user in (("ours", ann), ("theirs", bob)):
        done = site("--project", project, "run", "-d", "--name", f"of-{project}", IMAGE, "sh", "-c", listen, user=user)
        assert done.returncode == 0, done.stderr
        made[project] = done.stdout.decode().strip()
    yield made
    for project, id_ in made.items():
        site("--project", project, "rm", "-f", id_)


def _refused(site: Site, user: Account, code: str, *argv: str, stdin: bytes = b"") -> None:
    done = site("--json", *argv, user=user, stdin=stdin)
    assert done.returncode != 0, (argv, done.stdout)
    assert f'"{code}"' in done.stderr.decode() + done.stdout.decode(), (argv, done)


def _names(site: Site, user: Account, *argv: str) -> set[str]:
    done = site(*argv, "ps", "-a", "--format", "{{.Names}}", user=user)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.decode().split())


def test_each_sees_and_runs_ones_own(site: Site, ann: Account, bob: Account, workloads: dict[str, str]) -> None:
    assert _names(site, ann, "--project", "ours") == {"of-ours"}
    assert _names(site, bob, "--project", "theirs") == {"of-theirs"}
    done = site("--project", "ours", "exec", workloads["ours"][:12], "echo", "in", user=ann)
    assert (done.returncode, done.stdout) == (0, b"in\n"), done.stderr
    # run without -d goes over a WebSocket.
    done = site("--project", "ours", "run", "--rm", IMAGE, "echo", "ran", user=ann)
    assert (done.returncode, done.stdout) == (0, b"ran\n"), done.stderr


def test_the_administrators_see_all(site: Site, workloads: dict[str, str]) -> None:
    assert workloads
    for user in (None, _member(CAROL)):
        for project in ("ours", "theirs"):
            assert f"of-{project}".encode() in site("--project", project, "ps", user=user).stdout
        assert Canary.NAME.encode() in site("ps", user=user).stdout


def test_another_project_is_refused(site: Site, ann: Account, workloads: dict[str, str]) -> None:
    id_ = workloads["theirs"]
    for argv in (["ps"], ["run", "--rm", IMAGE, "true"], ["exec", "of-theirs", "true"], ["logs", id_], ["stop", id_],
                 ["rm", "-f", id_], ["volume", "ls"], ["pod", "ps"], ["stats", "--no-stream"],
                 ["attach", "of-theirs"], ["cp", "of-theirs:/etc/passwd", "-"]):  # fmt: skip
        _refused(site, ann, "rights.project", "--project", "theirs", *argv)
    done = site("--project", "theirs", "inspect", "of-theirs", user=ann)
    assert done.returncode != 0
    assert (done.stdout, b"is not open to" in done.stderr) == (b"[]\n", True), done
    # Without --project it is the project default, which is not Ann's either.
    _refused(site, ann, "rights.project", "ps")
    assert site("--project", "theirs", "exec", id_, "true").returncode == 0


def test_what_is_anothers_is_not_there(site: Site, ann: Account, workloads: dict[str, str]) -> None:
    """By id, by its beginning, by name: within the own project."""
    for reference in (workloads["theirs"], workloads["theirs"][:6], "of-theirs", "theirs/of-theirs"):
        for argv in (["exec", reference, "true"], ["logs", reference], ["rm", reference], ["stop", reference],
                     ["attach", reference], ["top", reference], ["export", reference]):  # fmt: skip
            done = site("--project", "ours", "--json", *argv, user=ann)
            assert done.returncode != 0, argv
            said = done.stderr + done.stdout
            assert b"not_found" in said or b"invalid" in said, (argv, done)
            assert workloads["theirs"][12:].encode() not in said.replace(reference.encode(), b""), (argv, done)
    assert site("--project", "theirs", "exec", workloads["theirs"], "true").returncode == 0


def test_events_and_flows_are_ones_own(site: Site, ann: Account, bob: Account, workloads: dict[str, str]) -> None:
    def address(project: str) -> str:
        client = site.daemons.client
        rows = json.loads(client.transport.ask("GET", f"/v1/containers/{workloads[project]}", [("project", project)]))
        return str(rows["summary"]["address"])

    ours = address("ours")
    for target in (ours, "192.0.2.77"):
        script = f"echo x | timeout 3 nc -w 2 {target} {PORT}"
        site("--project", "theirs", "exec", workloads["theirs"], "sh", "-c", script, user=bob)

    def seen(user: Account | None) -> set[tuple[str, str]]:
        done = site("--json", "flows", "--since", "1h", user=user)
        assert done.returncode == 0, done.stderr
        rows = json.loads(done.stdout)
        rows = rows["flows"] if isinstance(rows, dict) else rows
        return {(row["source"].get("name", ""), row["destination"]["address"]) for row in rows}

    both = {("of-theirs", ours), ("of-theirs", "192.0.2.77")}
    assert settle(lambda: both <= seen(None), 30), seen(None)
    assert seen(bob) >= both
    assert seen(ann) & both == {("of-theirs", ours)}
    told = site("--json", "events", "--since", "1h", "--until", "0s", user=ann)
    assert told.returncode == 0, told.stderr
    assert b"of-ours" in told.stdout
    assert b"of-theirs" not in told.stdout
    assert Canary.NAME.encode() not in told.stdout


def test_policy_images_and_the_node(site: Site, ann: Account, workloads: dict[str, str]) -> None:
    assert workloads
    theirs, ours = (RULES.replace("PROJECT", project).encode() for project in ("theirs", "ours"))
    operators = RULES.replace(", project: PROJECT", "").replace("{segments", "{tier: operator, segments").encode()
    _refused(site, ann, "rights.project", "policy", "apply", "-", stdin=theirs)
    _refused(site, ann, "rights.administrator", "policy", "apply", "-", stdin=operators)
    done = site("policy", "apply", "-", user=ann, stdin=ours)
    assert done.returncode == 0, done.stderr
    done = site("policy", "rm", "Policy/ours/rules", user=ann)
    assert done.returncode == 0, done.stderr
    for argv in (["image", "rm", IMAGE], ["image", "tag", IMAGE, "other"], ["system", "prune"], ["wall", "ls"],
                 ["audit", "ls"], ["system", "doctor"], ["project", "create", "more"]):  # fmt: skip
        _refused(site, ann, "rights.administrator", *argv)
    assert site("image", "inspect", IMAGE, user=ann).returncode == 0


def test_a_person_is_told_what_is_theirs(site: Site, ann: Account) -> None:
    def told(user: Account | None) -> str:
        return site("system", "info", user=user).stdout.decode()

    assert f"You: {ANN}:?\n Projects: ours\n" in told(ann)
    assert "Projects: no project\n" in told(_member(DAVE))
    assert "Projects: every project\n" in told(None)
    assert "projects.operators" not in told(ann)


def test_a_member_that_nobody_named_is_let_into_no_project(site: Site, workloads: dict[str, str]) -> None:
    dave = _member(DAVE)
    for project in ("default", "ours", "theirs"):
        _refused(site, dave, "rights.project", "--project", project, "ps")
    assert json.loads(site("--json", "project", "ls", user=dave).stdout) in ([], {"projects": []})
    assert (
        workloads["ours"].encode() not in site("--json", "events", "--since", "1h", "--until", "0s", user=dave).stdout
    )
