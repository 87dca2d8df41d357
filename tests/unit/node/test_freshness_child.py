"""What the child remembers of publishers: by key, within bounds, and never instead of looking at the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("tuf", reason="missing: tuf")

from casemate.node import freshness_child
from casemate.node.freshness_child import Standings, tag
from casemate.node.freshness_jobs import Forgotten, Tag, TagJob
from casemate.trust.freshness.publisher import Publisher
from casemate.trust.freshness.resolve import FreshnessExpired, FreshnessInvalid, Trusted
from casemate.trust.freshness.roles import RoleKeys
from casemate.trust.keys.private import new_key

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
TARGET, DIGEST = "registry.example/app:1", "sha256:" + "ab" * 32
KEY = new_key()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    roles = dict.fromkeys(("root", "targets", "snapshot", "timestamp"), RoleKeys((KEY.public_pem,)))
    made = {name: data for name, data in Publisher({}, [KEY], NOW).create(roles).files.items() if data is not None}
    change = Publisher({n: d for n, d in made.items() if not n[0].isdigit()}, [KEY], NOW).publish(TARGET, DIGEST, 1)
    return made | {name: data for name, data in change.files.items() if data is not None}


def asked(
    files: dict[str, bytes], standings: Standings, key: str, *, later_s: float = 0.0, bare: bool = False
) -> object:
    job = TagJob(
        target=TARGET, key=key, now_s=NOW.timestamp() + later_s, files={} if bare else files,
        trusted=None if bare else Trusted(files["1.root.json"]),
    )  # fmt: skip
    return tag(job, standings)


def test_the_second_question_needs_no_files(files: dict[str, bytes]) -> None:
    standings: Standings = {}
    assert asked(files, standings, "k", bare=True) == Forgotten()
    first = asked(files, standings, "k")
    assert isinstance(first, Tag)
    assert first.digest == DIGEST
    assert asked(files, standings, "k", bare=True) == first
    assert asked(files, standings, "other", bare=True) == Forgotten()
    with pytest.raises(FreshnessExpired):
        asked(files, standings, "k", bare=True, later_s=timedelta(days=2).total_seconds())


def test_what_does_not_verify_is_not_remembered(files: dict[str, bytes]) -> None:
    standings: Standings = {}
    with pytest.raises(FreshnessInvalid):
        tag(TagJob(target=TARGET, key="k", now_s=NOW.timestamp(), files=files), standings)
    bent = files | {"snapshot.json": files["targets.json"]}
    with pytest.raises(FreshnessInvalid):
        asked(bent, standings, "k")
    assert not standings
    asked(files, standings, "")
    assert not standings


def test_what_is_remembered_is_bounded(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    standings: Standings = {}
    for number in range(freshness_child.MAX_STANDINGS + 3):
        asked(files, standings, str(number))
        asked(files, standings, "0", bare=number > 0)  # asked all the time, and so kept
    assert len(standings) == freshness_child.MAX_STANDINGS
    assert "0" in standings
    assert "1" not in standings
    monkeypatch.setattr(freshness_child, "MAX_STANDING_BYTES", 10)
    asked(files, standings, "large")
    assert "large" not in standings
