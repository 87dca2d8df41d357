"""Which OCI runtime serves the ``namespace`` level: chosen by running a container with it, not by its version.

crun comes first: create, start and delete took 40 ms with it and 58 ms with runc on the same host (decision 0030). The
answer is kept in hostd's run folder, for this boot, this kernel and these very files.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from casemate.host import cgroups, durable, hierarchy, programs
from casemate.isolation import observe, seccomp_compile
from casemate.isolation.bundle import BindSource, BundleInput, HostFacts, Sandbox
from casemate.isolation.launcher import Launcher
from casemate.isolation.level import Levels, LevelUnavailable, Runtime
from casemate.isolation.namespace import sandbox
from casemate.isolation.namespace.driver import NamespaceLevel
from casemate.spec.errors import CasemateError
from casemate.spec.workload import ContainerSpec, PodSpec, Process, Security

#: Wait for the whole life of the probe's container; 50 ms on an idle host.
_PROBE_TIMEOUT_S = 20.0
_KEPT_BYTES = 16 << 10
_PROBE_ID = "0" * 63 + "1"


@dataclass(frozen=True, slots=True)
class Found:
    """A runtime that ran a container, and the reason why it was taken; or none, and why each failed."""

    runtime: Runtime | None
    why: str
    #: It takes seccomp's program ready-made.
    ready_made: bool = False


async def choose(wanted: str, run_folder: Path, facts: HostFacts, cgroup: str, first_id: int) -> Found:
    """The runtime for ``runtime.namespace`` = *wanted* (auto, crun, runc or a path).

    Runs each candidate once with ids from *first_id* in a cgroup below *cgroup*, until one works.
    """
    key = _key(wanted)
    kept = run_folder / "runtime.json"
    if (known := _load(kept, key, run_folder)) is not None:
        return known
    failures: list[str] = []
    for name in ("crun", "runc") if wanted == "auto" else (wanted,):
        for hide in (False, True) if observe.is_hybrid() else (False,):
            try:
                runtime = await _candidate(name, run_folder, hide)
                ready_made = await _probe_both(runtime, run_folder, facts, cgroup, first_id)
            except CasemateError as error:
                failures.append(f"{name}{' (unified hidden)' if hide else ''}: {error.detail}")
                continue
            found = Found(runtime, _why(wanted, runtime, failures, ready_made), ready_made)
            document = {"key": key, "program": runtime.program, "version": runtime.version, "hide": hide}
            document |= {"why": found.why, "ready_made": ready_made}
            durable.write_atomic(kept, json.dumps(document).encode(), sync=False)
            return found
    return Found(None, "; ".join(failures))


async def _probe_both(runtime: Runtime, run_folder: Path, facts: HostFacts, cgroup: str, first_id: int) -> bool:
    """Probe *runtime*: with seccomp's program ready-made where it says that it takes one, else as the OCI has it."""
    compiler = seccomp_compile.compiler() if runtime.name == "crun" else None
    if compiler is not None:
        with contextlib.suppress(CasemateError):
            await probe(NamespaceLevel(runtime, "", compiler), run_folder, facts, cgroup, first_id)
            return True
    await probe(NamespaceLevel(runtime, ""), run_folder, facts, cgroup, first_id)
    return False


def _why(wanted: str, runtime: Runtime, failures: list[str], ready_made: bool) -> str:
    words = ["ran a container", "seccomp compiled once" if ready_made else "seccomp compiled by the runtime"]
    if runtime.hide_unified:
        words.append("in a mount namespace without /sys/fs/cgroup/unified, which it refuses")
    if wanted != "auto":
        words.append("named by runtime.namespace")
    failed = [text for text in failures if not text.startswith(runtime.name)]
    return ", ".join(words) + (f"; not taken: {'; '.join(failed)}" if failed else "")


async def _candidate(name: str, run_folder: Path, hide: bool) -> Runtime:
    program = programs.find_program(name)
    done = await programs.run([program, "--version"], timeout_s=10.0, max_output_bytes=4096)
    words = done.stdout.decode("utf-8", "replace").split()
    version = words[words.index("version") + 1] if "version" in words[:-1] else "unknown"
    return _runtime(program, run_folder, version, hide)


def _runtime(program: str, run_folder: Path, version: str, hide: bool) -> Runtime:
    arguments = ("--cgroup-manager", "cgroupfs") if program.endswith("/crun") else ()
    return Runtime(program, str(run_folder / "runtime"), arguments, version, hide)


def _key(wanted: str) -> list[str]:
    """What makes a kept answer void when it changes."""
    found = [wanted, observe.boot_id(), os.uname().release]
    for name in ("crun", "runc", "conmon"):
        with contextlib.suppress(CasemateError, OSError):
            path = programs.find_program(name)
            status = Path(path).stat()
            found.append(f"{path} {status.st_ino} {status.st_size} {status.st_mtime_ns}")
    return found


def _load(kept: Path, key: list[str], run_folder: Path) -> Found | None:
    try:
        document = json.loads(durable.read_bounded(kept, _KEPT_BYTES))
        if document["key"] != key:
            return None
        runtime = _runtime(document["program"], run_folder, document["version"], document["hide"])
        return Found(runtime, str(document["why"]), bool(document["ready_made"]))
    except (OSError, ValueError, KeyError, TypeError, CasemateError):
        return None


async def probe(level: NamespaceLevel, run_folder: Path, facts: HostFacts, cgroup: str, first_id: int) -> None:
    """Run a program of the host in a container with all that ours have; raises why it cannot.

    The program looks whether a seccomp filter is upon it: a runtime that passes over one must not be chosen.
    """
    runtime = level.runtime
    folder = run_folder / "probe"
    pins = {kind: folder / kind for kind in sandbox.KINDS}
    _clear(folder, pins)
    root = folder / "root"
    _prepare(run_folder, root, first_id)
    launcher = Launcher(hide_unified=runtime.hide_unified)
    try:
        await sandbox.create(pins, first_id, 65_536, "probe")
        given = BundleInput(
            pod=PodSpec(id=_PROBE_ID, name="probe", hostname="probe"),
            container=ContainerSpec(
                id=_PROBE_ID,
                pod=_PROBE_ID,
                name="probe",
                layers=(),
                process=Process(args=("/usr/bin/grep", "-q", "^Seccomp:.2", "/proc/self/status")),
                security=Security(capabilities=("CAP_CHOWN",)),
            ),
            sandbox=Sandbox({kind: str(pin) for kind, pin in pins.items()}, first_id, f"{cgroup}/probe"),
            rootfs=str(root),
            facts=facts,
            binds=(BindSource("/usr", "/usr", ("rbind", "ro")),),
        )
        (folder / "config.json").write_text(json.dumps(level.bundle(given).config))
        argv = [runtime.program, *runtime.global_arguments, "run", "--bundle", str(folder), _PROBE_ID]
        try:
            await launcher.run(argv, timeout_s=_PROBE_TIMEOUT_S)
        finally:
            with contextlib.suppress(CasemateError):
                await launcher.run(runtime.delete(_PROBE_ID), timeout_s=_PROBE_TIMEOUT_S)
    except OSError as error:
        raise LevelUnavailable(f"the probe of {runtime.name} could not be prepared: {error}") from error
    finally:
        launcher.close()
        _clear(folder, pins)
        with contextlib.suppress(CasemateError):
            await cgroups.end(hierarchy.detect(), f"{cgroup}/probe")


def _prepare(run_folder: Path, root: Path, first_id: int) -> None:
    """A root that shows the host's programs, whose /usr is bound in."""
    root.mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        with contextlib.suppress(OSError):
            (root / name).symlink_to(Path(f"/{name}").readlink())
    for place in (run_folder, root.parent, root):
        place.chmod(place.stat().st_mode | 0o711)
    for place in [root, *root.iterdir()]:
        os.chown(place, first_id, first_id, follow_symlinks=False)


def _clear(folder: Path, pins: dict[str, Path]) -> None:
    for pin in pins.values():
        sandbox.remove_pin(pin)
    shutil.rmtree(folder, ignore_errors=True)


def levels(found: Found) -> Levels:
    """The register: the ``namespace`` level by *found*; the others have no driver here."""
    drivers = {}
    if found.runtime is not None:
        compiler = seccomp_compile.compiler() if found.ready_made else None
        drivers["namespace"] = NamespaceLevel(found.runtime, found.why, compiler)
    later = "this version of Casemate has no driver for it"
    missing = {"gvisor": later, "microvm": later}
    if found.runtime is None:
        missing["namespace"] = found.why
    return Levels(drivers, missing)  # type: ignore[arg-type]
