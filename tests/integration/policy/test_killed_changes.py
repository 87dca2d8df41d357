"""A daemon killed at each step of a change of policy: the old rules hold or the new ones, whole, and never none."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.integration.daemons import USER, Daemons
from tests.integration.policy.world import World

from casemate.sdk import ApiAway, ApiError

PORT = 7200
OLD = """
apiVersion: casemate/v1
kind: Policy
metadata: {name: change}
spec:
  segments: {db: {select: {matchLabels: {app: db}}, default: {ingress: deny}}}
  rules: [{from: [{select: {matchLabels: {app: web}}}], to: [{segment: db}], ports: [tcp/7200], action: allow}]
"""
NEW = OLD.replace("app: web", "app: other")
#: A daemon that kills itself before or after the n-th call of a function of its own.
DYING = """
import asyncio, os, signal, sys
place, name, when, entry = sys.argv[1:5]
module, _, owner = place.partition(":")
target = __import__(module, None, None, ["x"])
if owner:
    target = getattr(target, owner)
real = getattr(target, name)
armed = sys.argv[5]
def die(now):
    if now == when and os.path.exists(armed):
        os.kill(os.getpid(), signal.SIGKILL)
if asyncio.iscoroutinefunction(real):
    async def wrapped(*words, **named):
        die("before")
        found = await real(*words, **named)
        die("after")
        return found
else:
    def wrapped(*words, **named):
        die("before")
        found = real(*words, **named)
        die("after")
        return found
setattr(target, name, wrapped)
daemon = __import__(entry, None, None, ["main"])
del sys.argv[1:]
sys.exit(daemon.main([]) if entry.startswith("casemate.api") else daemon.main())
"""
CASEMATED, HOSTD = "casemated", "casemate-hostd"
STEPS = [
    (CASEMATED, "casemate.node.policy.store", "put_document", "before"),
    (CASEMATED, "casemate.node.policy.store", "put_document", "after"),
    (CASEMATED, "casemate.node.firewall:Firewall", "change", "before"),
    (CASEMATED, "casemate.node.firewall:Firewall", "change", "after"),
    (HOSTD, "casemate.hostd.firewall_record:FirewallRecord", "append", "before"),
    (HOSTD, "casemate.hostd.firewall_record:FirewallRecord", "append", "after"),
    (HOSTD, "casemate.network.firewall.kernel:Kernel", "change", "before"),
    (HOSTD, "casemate.network.firewall.kernel:Kernel", "change", "after"),
]


def dying(daemons: Daemons, step: tuple[str, str, str, str]) -> Path:
    """In place of a daemon one that kills itself at *step*, once the file that is answered is there."""
    name, place, function, when = step
    armed = daemons.scope.folder / "armed"
    daemons.kill(name)
    entry = "casemate.api.daemon" if name == CASEMATED else "casemate.hostd.daemon"
    command = ["setpriv", "--pdeathsig=TERM"]
    if name == CASEMATED:
        command += [f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--inh-caps=-all", "--bounding-set=-all",
                    "--no-new-privs"]  # fmt: skip
    command += [sys.executable, "-c", DYING, place, function, when, entry, str(armed)]
    with (daemons.scope.folder / f"{name}.log").open("ab") as log:
        daemons.processes[name] = subprocess.Popen(
            command, env=daemons.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
        )
    daemons.wait_ready()
    return armed


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step[0]}-{step[3]}-{step[2]}")
def test_killed_at_a_step_of_a_change(world: World, step: tuple[str, str, str, str]) -> None:
    db = world.serve("db", PORT, app="db")
    for name in ("web", "other", "stranger"):
        world.run(name, app=name)
    world.apply(OLD)
    over, came_through, tried = threading.Event(), list[float](), 0

    def stranger() -> None:
        nonlocal tried
        while not over.is_set():
            tried += 1
            if world.dial("stranger", db, PORT, 0.3) == "yes":
                came_through.append(time.monotonic())

    armed = dying(world.daemons, step)
    world.until(lambda: world.documents().state.enforced, "the old policy holds")
    watching = threading.Thread(target=stranger)
    watching.start()
    try:
        armed.touch()
        with contextlib.suppress(ApiError, ApiAway):
            world.apply(NEW)
        died = world.daemons.processes[step[0]]
        died.wait(20)
        del world.daemons.processes[step[0]]
        armed.unlink()
        # While it is away one of the two holds, whole.
        away = [world.dial(name, db, PORT, 1.0) == "yes" for name in ("web", "other")]
        assert sorted(away) == [False, True], away
        world.daemons.start()
        world.until(lambda: world.documents().state.enforced, "a policy holds again")
        stored = "app: other" in world.ask_text("change")
        found = [world.dial(name, db, PORT, 1.0) == "yes" for name in ("web", "other")]
        assert found == [not stored, stored], "the kernel has what the store has"
        world.apply(NEW)
        assert [world.dial(name, db, PORT, 1.0) == "yes" for name in ("web", "other")] == [False, True]
    finally:
        over.set()
        watching.join()
        armed.unlink(missing_ok=True)
    assert tried > 3
    assert not came_through, "never a moment without policy"
