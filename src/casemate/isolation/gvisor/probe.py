"""Whether runsc works here, and how: found by running a container with it, never by its version alone.

The answer is kept in hostd's run folder for this boot, this kernel and this very file. A platform that hangs costs
the bound below once, and is ended with everything that it started.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from casemate.host import cgroups, durable, netns, programs, seccomp_filter
from casemate.isolation import observe, seccomp_compile
from casemate.isolation.bundle import BindSource, BundleInput, HostFacts, Sandbox
from casemate.isolation.gvisor import driver, sentryfilter
from casemate.isolation.gvisor.inside import default_root
from casemate.isolation.launcher import Launcher
from casemate.isolation.level import LevelUnavailable, Runtime
from casemate.spec.errors import CasemateError, TimedOut
from casemate.spec.workload import ContainerSpec, NetworkSpec, PodSpec, Process, Security

log = logging.getLogger("casemate.hostd")

#: For create, start and the end of one container: 0.2 s on an idle host, seconds on a loaded one.
_STEP_TIMEOUT_S = 8.0
_LOOK_S = 0.01
_KEPT_BYTES, _FLAGS_BYTES, _STATE_BYTES = 16 << 10, 256 << 10, 1 << 20
_PROBE_ID = "0" * 63 + "2"
_MARK = "casemate-gvisor-probe"


@dataclass(frozen=True, slots=True)
class Found:
    """A runsc that ran a container, and the reason why it was taken; or none, and why each failed."""

    runtime: Runtime | None
    why: str
    #: The system calls that its sandbox's own filter lets through; empty where that could not be read.
    calls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe needs: hostd's *run_folder*, a *cgroup* that is nobody's yet and ids from *first_id*."""

    run_folder: Path
    facts: HostFacts
    hierarchy: cgroups.Cgroups
    cgroup: str
    first_id: int
    step_timeout_s: float = field(default=_STEP_TIMEOUT_S)


async def choose(wanted: str, platform: str, probe: Probe) -> Found:
    """The runsc for ``runtime.gvisor`` = *wanted* (auto, off or a path) and ``runtime.gvisor_platform``."""
    if wanted == "off":
        return Found(None, "runtime.gvisor is off")
    try:
        path = programs.find_program("runsc" if wanted == "auto" else wanted)
    except CasemateError:
        return Found(None, "runsc is not installed (apt-get install runsc)")
    key = _key(path, platform)
    kept = probe.run_folder / "runsc.json"
    if (known := _load(kept, key)) is not None:
        return known
    found = await _choose(path, platform, probe)
    document: dict[str, object] = {"key": key, "why": found.why}
    if (one := found.runtime) is not None:
        document |= {"root": one.root, "arguments": one.arguments, "version": one.version}
        document |= {"program": one.program, "cover": one.cover_at_start, "calls": found.calls}
    durable.write_atomic(kept, json.dumps(document).encode(), sync=False)
    return found


async def _choose(path: str, platform: str, probe: Probe) -> Found:
    try:
        program = await _program(path)
    except CasemateError as error:
        return Found(None, f"{path}: {error.detail}")
    failures: list[str] = []
    cover = await _shows_host_sizes(probe.run_folder)
    for one in driver.candidates(program, platform):
        runtime = driver.runtime(program, one, default_root(probe.run_folder), cover=cover)
        try:
            calls = await run_once(runtime, probe)
        except CasemateError as error:
            failures.append(f"{one}: {error.detail[:300]}")
            continue
        return Found(runtime, _why(one, platform, cover, failures), calls)
    return Found(None, "; ".join(failures) or f"runsc has none of the platforms {platform}")


async def _shows_host_sizes(run_folder: Path) -> bool:
    """Whether a network namespace that is not the host's has net/core/rmem_default (Linux 6.13)."""
    pin = run_folder / "gvisor-probe.net"
    netns.remove(pin)
    try:
        return await netns.create(pin, Path("/proc/sys/net/core/rmem_default").exists)
    finally:
        netns.remove(pin)


def _why(one: str, wanted: str, cover: bool, failures: list[str]) -> str:
    words = [f"platform {one} ran a container with a network"]
    if wanted != "auto":
        words.append("named by runtime.gvisor_platform")
    if cover:
        words.append(
            "started with /proc/sys/net covered, by which old ones take every network namespace for the host's"
        )
    return ", ".join(words) + (f"; not taken: {'; '.join(failures)}" if failures else "")


async def _program(path: str) -> driver.Program:
    done = await programs.run([path, "--version"], timeout_s=10.0, max_output_bytes=4096)
    words = done.stdout.decode("utf-8", "replace").split()
    version = words[words.index("version") + 1] if "version" in words[:-1] else "unknown"
    listed = await programs.run([path, "flags"], timeout_s=10.0, max_output_bytes=_FLAGS_BYTES, check=False)
    text = (listed.stdout + listed.stderr).decode("utf-8", "replace")
    return driver.Program(path, version, *driver.read_flags(text))


def _key(path: str, platform: str) -> list[str]:
    """What makes a kept answer void when it changes."""
    status = Path(path).stat()
    found = f"{path} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
    return [found, platform, observe.boot_id(), os.uname().release]


def _load(kept: Path, key: list[str]) -> Found | None:
    try:
        one = json.loads(durable.read_bounded(kept, _KEPT_BYTES))
        if one["key"] != key:
            return None
        if "program" not in one:
            return Found(None, str(one["why"]))
        runtime = Runtime(
            one["program"],
            one["root"],
            tuple(one["arguments"]),
            one["version"],
            cover_at_start=tuple(one["cover"]),
            state=driver.STATE,
        )
        return Found(runtime, str(one["why"]), tuple(one["calls"]))
    except (OSError, ValueError, KeyError, TypeError, CasemateError):
        return None


async def run_once(runtime: Runtime, probe: Probe) -> tuple[str, ...]:
    """Create, start and delete a container that reads a file and has an interface; raises why it cannot.

    Answers the system calls that its sandbox may make.
    """
    folder, pin = probe.run_folder / "gvisor-probe", probe.run_folder / "gvisor-probe.net"
    launcher, starter = Launcher(hide_unified=False), Launcher(hide_unified=False, covered=runtime.cover_at_start)
    # A state folder of its own: what stays of a probe that failed is no container's.
    runtime = dataclasses.replace(runtime, root=str(folder / "state"))
    _clear(folder, pin)
    try:
        _prepare(folder, probe.first_id)
        await netns.create(pin, lambda: None)
        plan = driver.GvisorLevel(runtime, "").bundle(_input(folder, pin, probe))
        (folder / "config.json").write_text(json.dumps(plan.config))
        await _play(runtime, (launcher, starter), folder, probe.step_timeout_s)
        return await _calls_of(Path(runtime.state_files(_PROBE_ID)[0]))
    except OSError as error:
        raise LevelUnavailable(f"the probe could not be prepared: {error}") from error
    finally:
        for one in (launcher, starter):
            one.close()
        with contextlib.suppress(CasemateError):
            # Whatever it left running is in here, a platform that spins too. Not `runsc delete`: without a parent
            # that reaps, it polls for a second.
            await cgroups.end(probe.hierarchy, f"{probe.cgroup}/gvisor-probe")
        _clear(folder, pin)


async def _calls_of(state: Path) -> tuple[str, ...]:
    """What the filter lets through that the running sandbox of *state* has put upon itself; empty where nobody may ask,
    as under a service manager's own filter."""
    try:
        pid = json.loads(durable.read_bounded(state, _STATE_BYTES))["sandbox"]["pid"]
        programs_ = await netns.in_own_thread(lambda: seccomp_filter.installed(int(pid)))
        architecture = sentryfilter.X86_64 if os.uname().machine == "x86_64" else sentryfilter.AARCH64
        return seccomp_compile.call_names(sentryfilter.allowed(programs_, architecture), architecture)
    except (OSError, ValueError, KeyError, TypeError, CasemateError) as error:
        log.info("the filter of runsc's sandbox could not be read: %s", error)
        return ()


async def _play(runtime: Runtime, launchers: tuple[Launcher, Launcher], folder: Path, timeout_s: float) -> None:
    launcher, starter = launchers
    create = [runtime.program, *runtime.global_arguments, "create", "--bundle", str(folder), _PROBE_ID]
    words = os.open(folder / "out", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        child = await launcher.spawn(create, env={}, fds={1: words, 2: words})
        try:
            async with asyncio.timeout(timeout_s):
                code = await child.wait()
        except BaseException as error:
            await child.end(0.0)
            if isinstance(error, TimeoutError):
                raise TimedOut(f"runsc create did not end within {timeout_s:g} s") from error
            raise
        said = os.pread(words, 4096, 0).decode("utf-8", "replace").strip()
        if code != 0:
            raise LevelUnavailable(f"runsc create ended with {code}: {said[-300:]}")
        await starter.run(runtime.start(_PROBE_ID), timeout_s=timeout_s)
        # Not `runsc wait`, which takes a second to see that a sandbox is gone.
        for _ in range(int(timeout_s / _LOOK_S)):
            said = os.pread(words, 4096, 0).decode("utf-8", "replace").strip()
            if _MARK in said:
                return
            await asyncio.sleep(_LOOK_S)
        raise LevelUnavailable(f"the container was started and said {said[-300:]!r} within {timeout_s:g} s")
    finally:
        os.close(words)


def _input(folder: Path, pin: Path, probe: Probe) -> BundleInput:
    """A container with what ours have: a root of its own ids, a bind mount, a network."""
    return BundleInput(
        pod=PodSpec(id=_PROBE_ID, name="probe", hostname="probe", level="gvisor", network=NetworkSpec(mode="none")),
        container=ContainerSpec(
            id=_PROBE_ID,
            pod=_PROBE_ID,
            name="probe",
            layers=(),
            # It goes on: what the sandbox may ask of the host is read while it runs.
            process=Process(args=("/usr/bin/tail", "-f", "/etc/mark"), cwd="/"),
            security=Security(capabilities=("CAP_CHOWN",)),
        ),
        sandbox=Sandbox(
            {kind: str(pin) for kind in ("user", "network", "ipc", "uts")},
            probe.first_id,
            f"{probe.cgroup}/gvisor-probe",
        ),
        rootfs=str(folder / "root"),
        facts=probe.facts,
        binds=(
            BindSource("/usr", "/usr", ("rbind", "ro")),
            BindSource(str(folder / "mark"), "/etc/mark", ("bind", "ro")),
        ),
    )


def _prepare(folder: Path, first_id: int) -> None:
    """A root that shows the host's programs, whose /usr is bound in."""
    root = folder / "root"
    for place in (root, root / "etc", root / "usr"):
        place.mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        with contextlib.suppress(OSError):
            (root / name).symlink_to(Path(f"/{name}").readlink())
    mark = folder / "mark"
    mark.write_text(f"{_MARK}\n")
    for place in (folder.parent, folder, root, root / "etc", root / "usr"):
        place.chmod(place.stat().st_mode | 0o711)
    for place in (mark, root, *root.iterdir()):
        os.chown(place, first_id, first_id, follow_symlinks=False)


def _clear(folder: Path, pin: Path) -> None:
    netns.remove(pin)
    shutil.rmtree(folder, ignore_errors=True)
