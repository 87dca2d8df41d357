"""A kill at each step of a policy's application, of a publication, of a rotation; and several importers at once."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.integration.daemons import SOURCE
from tests.integration.trust.conftest import Casemate, another_casemated

from casemate.trust.feed.apply import import_feed, open_feed
from casemate.trust.freshness.resolve import (
    FreshnessExpired,
    FreshnessInvalid,
    FreshnessRollback,
    TagUnknown,
    Trusted,
    refresh,
    resolve,
)

WAIT_S = 30.0
POLICY = """
apiVersion: casemate/v1
kind: TrustPolicy
metadata: {name: NAME}
spec: {rules: [{name: r-NAME, prefix: NAME.example}]}
"""
#: casemated that kills itself in an application of the policy: in the transaction, or when it is stored.
DYING = """
import os, signal, sys
from casemate.api import daemon
from casemate.node.trust import policies, state
def die(*words, **named):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "transaction":
    policies.audit.append = die
else:
    real = state.TrustState.change
    state.TrustState.change = lambda self, reason: die() if reason.endswith("was applied") else real(self, reason)
sys.exit(daemon.main([]))
"""


def documents(casemate: Casemate) -> list[str]:
    return [row["name"] for row in casemate.json("trust", "policy", "ls")["policies"]]  # type: ignore[index,call-overload]


@pytest.mark.root
@pytest.mark.parametrize("step", ["transaction", "stored"])
def test_a_policy_is_applied_as_a_whole_or_not_at_all(casemate: Casemate, tmp_path: Path, step: str) -> None:
    pytest.importorskip("cel", reason="missing: common-expression-language")
    for name in documents(casemate):
        casemate.run("trust", "policy", "rm", name)
    for name in ("old", "one", "two"):
        (tmp_path / name).write_text(POLICY.replace("NAME", name))
    casemate.run("trust", "policy", "apply", str(tmp_path / "old"))
    another_casemated(casemate, DYING, step)
    process = casemate.daemons.processes["casemated"]
    assert casemate.ended("trust", "policy", "apply", str(tmp_path / "one"), str(tmp_path / "two")).returncode == 125
    process.wait(WAIT_S)
    assert process.returncode == -signal.SIGKILL
    del casemate.daemons.processes["casemated"]
    casemate.daemons.start()
    assert documents(casemate) == (["old", "one", "two"] if step == "stored" else ["old"])
    casemate.run("audit", "verify")
    casemate.run("trust", "policy", "apply", str(tmp_path / "one"), str(tmp_path / "two"))
    assert documents(casemate) == ["old", "one", "two"]
    for name in documents(casemate):
        casemate.run("trust", "policy", "rm", name)


#: The command line, which kills itself at the file of that number: before it is written, half written, or after.
HALF = """
import os, signal, sys
from casemate.cli.main import main
from casemate.trust.freshness import apply
number, when = int(sys.argv[1]), sys.argv[2]
real, count = apply._write, 0
def write(target, data):
    global count
    count += 1
    if count == number:
        if when == "half":
            (target.parent / f".{target.name}.left").write_bytes(data[: len(data) // 2])
        if when == "after":
            real(target, data)
        os.kill(os.getpid(), signal.SIGKILL)
    real(target, data)
apply._write = write
sys.exit(main(sys.argv[3:]))
"""
IMAGE = "registry.example/app:1"
OLD, NEW = "sha256:" + "aa" * 32, "sha256:" + "bb" * 32
FAULTS = (FreshnessExpired, FreshnessInvalid, FreshnessRollback, TagUnknown)


def command(*argv: str, number: int = 0, when: str = "before") -> int:
    words = [sys.executable, "-c", HALF, str(number), when, *argv]
    return subprocess.run(words, env={"PYTHONPATH": str(SOURCE)}, check=False, capture_output=True).returncode


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.json")}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A publisher's folder with keys beside it: one tag, which has the digest OLD."""
    pytest.importorskip("tuf", reason="missing: tuf")
    folder = tmp_path_factory.mktemp("published")
    for name in ("root", "targets", "online", "fresh"):
        assert command("trust", "key", "new", "--no-passphrase", str(folder / name)) == 0
    public = [w for name in ("root", "targets", "online") for w in (f"--{name}", str(folder / f"{name}.pub"))]
    assert command("trust", "init", *keys(folder, "root", "targets", "online"), *public, str(folder / "site")) == 0
    assert (
        command("trust", "publish", *keys(folder, "targets", "online"), "--digest", OLD, str(folder / "site"), IMAGE)
        == 0
    )
    return folder


def keys(folder: Path, *names: str) -> list[str]:
    return [word for name in names for word in ("--key", str(folder / f"{name}.key"))]


@pytest.mark.parametrize(("what", "when"), [("publish", "half"), ("publish", "after"), ("rotate", "after")])
def test_a_publication_that_is_killed_shows_the_old_the_new_or_an_error(
    published: Path, tmp_path: Path, what: str, when: str
) -> None:
    now = datetime.now(UTC)
    first = Trusted(files(published / "site")["1.root.json"])
    believed = refresh(first, files(published / "site"), now).trusted
    for number in range(1, 12):
        folder = tmp_path / str(number)
        shutil.copytree(published, folder)
        site = folder / "site"
        if what == "publish":
            change = ["trust", "publish", *keys(folder, "targets", "online"), "--digest", NEW, str(site), IMAGE]
        else:
            change = ["trust", "rotate", *keys(folder, "root", "targets", "online", "fresh"), str(site), "targets",
                      str(folder / "targets.pub"), str(folder / "fresh.pub")]  # fmt: skip
        code = command(*change, number=number, when=when)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        with contextlib.suppress(*FAULTS):  # who has believed before, and who comes for the first time
            assert resolve(believed, files(site), IMAGE, now).digest in (OLD, NEW)
        with contextlib.suppress(*FAULTS):
            assert resolve(first, files(site), IMAGE, now).digest in (OLD, NEW)
        # The same once more heals it; a rotation that had come as far as root is finished by a renewal.
        if command(*change) != 0:
            assert what == "rotate"
            again = ["trust", "publish", *keys(folder, "root", "targets", "fresh", "online")]
            assert command(*again, "--digest", OLD, str(site), IMAGE) == 0
        assert resolve(believed, files(site), IMAGE, now).digest == (NEW if what == "publish" else OLD)
        if what == "rotate":
            old = keys(folder, "targets", "online")
            command("trust", "publish", *old, "--digest", NEW, str(site), IMAGE)
            assert resolve(believed, files(site), IMAGE, now).digest == OLD, "the old key signs no more"
    else:
        pytest.fail("the command never came to its end")
    assert number > 2


IMPORT = """
import sys
from datetime import date
from pathlib import Path
from casemate.trust.feed.apply import import_feed
from casemate.trust.feed.model import FeedBusy
sys.stdin.read(1)
try:
    feed, tracker, name = sys.argv[1:]
    import_feed(Path(feed), "debian-tracker", Path(tracker), name=name, today=date(2026, 11, 22), made="2026-11-20")
except FeedBusy:
    sys.exit(7)
"""


def test_several_processes_import_at_once(tmp_path: Path) -> None:
    """Whoever has the lock imports, the others are told; no feed that was said to be imported is lost."""
    pytest.importorskip("cvss", reason="missing: cvss")
    feed, tracker = tmp_path / "feed.sqlite", tmp_path / "tracker.json"
    releases = {"bookworm": {"status": "open", "urgency": "high"}}
    tracker.write_text(
        json.dumps({f"p{n}": {"CVE-2026-1": {"description": "x", "releases": releases}} for n in range(3000)})
    )
    programs = {
        f"feed-{number}": subprocess.Popen(
            [sys.executable, "-c", IMPORT, str(feed), str(tracker), f"feed-{number}"],
            stdin=subprocess.PIPE, env={"PYTHONPATH": str(SOURCE)},
        )
        for number in range(4)
    }  # fmt: skip
    for program in programs.values():
        assert program.stdin is not None
        program.stdin.write(b"g")
        program.stdin.close()
    codes = {name: program.wait(WAIT_S) for name, program in programs.items()}
    done = {name for name, code in codes.items() if code == 0}
    assert done
    assert set(codes.values()) <= {0, 7}, codes
    database, sources = open_feed(feed, thorough=True)
    database.close()
    assert {source.name for source in sources} == done
    import_feed(feed, "debian-tracker", tracker, name="last", today=datetime.now(UTC).date(), made="2026-11-20")
