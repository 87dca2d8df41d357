"""The planner against a slow, obvious model of what should come out."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.hostd.protocol import ObservedContainer
from casemate.node import reconcile
from casemate.node.reconcile import (
    FinishRemoval,
    RecordExit,
    RecordRunning,
    RecordUnstarted,
    StartAgain,
    Wanted,
    plan,
)

ID = "a" * 64
STATUSES = ("created", "starting", "running", "paused", "stopping", "restarting", "exited", "removing", "broken")

wanted = st.builds(
    Wanted,
    id=st.just(ID),
    name=st.just("n"),
    pod=st.just("b" * 64),
    status=st.sampled_from(STATUSES),
    desired=st.sampled_from(("created", "running", "stopped", "removed")),
    policy=st.sampled_from(("no", "on-failure", "always", "unless-stopped")),
    auto_remove=st.booleans(),
    exit_code=st.integers(0, 255),
    intent_at=st.sampled_from((0.0, 100.0)),
    interrupted=st.sets(st.sampled_from(("container.start", "container.remove"))).map(frozenset),
)
observed = st.none() | st.builds(
    ObservedContainer,
    id=st.just(ID),
    state=st.sampled_from(("created", "running", "paused", "exited", "broken")),
    pid=st.integers(0, 9),
    exit_code=st.none() | st.integers(0, 255),
    finished_at=st.sampled_from((0.0, 50.0, 150.0)),
)


def model(row: Wanted, seen: ObservedContainer | None, rebooted: bool) -> str:
    """What a person would say, one question after the other."""
    if row.status == "removing" or "container.remove" in row.interrupted:
        return "remove"
    if seen is not None and seen.state == "running":
        agrees = row.status == "running" and not row.interrupted
        return "nothing" if agrees else "running"
    if seen is not None and seen.state == "paused":
        agrees = row.status == "paused" and not row.interrupted
        return "nothing" if agrees else "paused"
    if row.status in ("running", "paused", "stopping"):
        return "exit" if seen is not None and seen.exit_code is not None else "lost"
    if row.status == "starting":
        again = "+again" if rebooted and _wants_boot(row, 255) else ""
        if seen is None or seen.state == "created" or seen.finished_at < row.intent_at:
            return "unstarted" + again
        return ("exit" if seen.exit_code is not None else "lost") + again
    if row.status == "restarting":
        return "again"
    if row.status == "exited" and row.auto_remove:
        return "remove"
    if row.status == "exited" and rebooted and row.policy == "always" and row.desired != "created":
        return "again"
    return "nothing"


def _wants_boot(row: Wanted, code: int) -> bool:
    if row.policy == "always":
        return row.desired != "created"
    if row.policy == "unless-stopped":
        return row.desired == "running"
    return row.policy == "on-failure" and row.desired == "running" and code != 0


def name_of(operations: list[reconcile.Operation]) -> str:
    words = []
    for operation in operations:
        assert operation.describe()
        assert operation.reason
        match operation:
            case RecordRunning(paused=True):
                words.append("paused")
            case RecordRunning():
                words.append("running")
            case RecordExit(exit_code=255, finished_at=0.0, oom_killed=False) if "nobody" in operation.reason or (
                "rebooted" in operation.reason
            ):
                words.append("lost")
            case RecordExit():
                words.append("exit")
            case RecordUnstarted():
                words.append("unstarted")
            case FinishRemoval():
                words.append("remove")
            case StartAgain():
                words.append("again")
            case _:
                raise AssertionError(operation)
    return "+".join(words) or "nothing"


@settings(max_examples=1000, deadline=None)
@given(wanted, observed, st.booleans())
def test_the_plan_is_what_the_model_says(row: Wanted, seen: ObservedContainer | None, rebooted: bool) -> None:
    operations = plan([row], {} if seen is None else {ID: seen}, rebooted=rebooted)
    assert name_of(operations) == model(row, seen, rebooted)


@given(st.sets(st.text("0123456789abcdef", min_size=64, max_size=64), max_size=5))
def test_what_the_store_does_not_know_is_left_alone(ids: set[str]) -> None:
    seen = {id_: ObservedContainer(id_, "running", 1) for id_ in ids}
    assert plan([], seen, rebooted=True) == []


def test_an_interrupted_removal_of_a_pod_is_finished() -> None:
    (operation,) = plan([], {}, rebooted=False, pods_to_remove=["c" * 64])
    assert operation == reconcile.FinishPodRemoval("c" * 64, "its removal was interrupted")
