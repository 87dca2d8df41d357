"""Templates on disk: made once when two starts come at once, made anew when stale or half there, never half used."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import harness
import pytest
from test_machines import started

from casemate.isolation.microvm.template import Recipe, TemplateDamaged, Templates

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def fresh(built: tuple[Path, Path], kernel_state: Path) -> Iterator[harness.Host]:
    """A service with a kernel, and no template yet."""
    folder = Path(tempfile.mkdtemp(prefix="cm-vt-"))
    shutil.copytree(kernel_state / "kernels", folder / "state/kernels", symlinks=True)
    host = harness.Host(folder / "state", folder, built[1])
    host.start()
    try:
        yield host
        host.end_all()
    finally:
        host.stop()
        shutil.rmtree(folder, ignore_errors=True)
    assert host.failure is None


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The key of each template that is built from now on; the building is the real one."""
    found: list[str] = []
    build = Templates._build

    async def counted(self: Templates, recipe: Recipe, key: str) -> None:
        found.append(key)
        await build(self, recipe, key)

    monkeypatch.setattr(Templates, "_build", counted)
    return found


def ran(host: harness.Host, name: str, layer: Path) -> None:
    process, folder = started(host, name, layer, "true")
    process.wait(60)
    assert (folder / "exits" / name).read_text() == "0"
    assert host.vm("delete", name).returncode == 0


def test_two_starts_at_once_build_one(fresh: harness.Host, base_layer: Path, builds: list[str]) -> None:
    bundle = fresh.bundle("both", harness.configuration([base_layer], "sleep", "1000"))
    command = [str(fresh.shim), "--socket", str(fresh.socket), "create", "--bundle", str(bundle)]
    null = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    both = [subprocess.Popen([*command, f"both{index}"], **null) for index in range(2)]  # type: ignore[call-overload]
    assert [one.wait(110) for one in both] == [0, 0]
    assert len(builds) == 1
    assert fresh.machines is not None
    assert fresh.machines.templates.names() == builds
    for index in range(2):
        assert fresh.vm("delete", "--force", f"both{index}").returncode == 0


def cut(folder: Path) -> None:
    """As after a loss of power before the data came to the disk."""
    path = folder / "memory"
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.truncate(1 << 20)


def grown(folder: Path) -> None:
    path = folder / "state"
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.truncate(1 << 40)


def halved(folder: Path) -> None:
    """As a build that was killed leaves it: beside, and without a manifest."""
    folder.rename(folder.parent / f".{folder.name}.tmp")
    (folder.parent / f".{folder.name}.tmp/manifest.json").unlink()


def swapped(folder: Path) -> None:
    """A manifest of another making."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["state"], manifest["memory"] = manifest["memory"], manifest["state"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "grown": grown,
    "half written": halved,
    "another manifest": swapped,
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a manifest without end": lambda folder: (folder / "manifest.json").write_bytes(b" " * (1 << 20)),
    "a manifest of nothing but depth": lambda folder: (folder / "manifest.json").write_bytes(b"[" * 60_000),
    "no state": lambda folder: (folder / "state").unlink(),
}


def test_what_is_not_whole_is_not_taken(fresh: harness.Host, tmp_path: Path) -> None:
    """Each kind of damage, without the boot that follows it."""
    assert fresh.machines is not None
    templates = fresh.machines.templates
    (key,) = templates.names()
    recipe = fresh.machines._recipe(None)
    assert recipe.key() == key
    for name, damage in DAMAGES.items():
        place = Templates(tmp_path / name, tmp_path, shim="", qemu="", uid=0)
        shutil.copytree(fresh.state / "templates" / key, tmp_path / name / key)
        place._load(recipe, key).close()
        damage(tmp_path / name / key)
        # What is answered by a new one: see Templates.get.
        with pytest.raises((OSError, TemplateDamaged)):
            place._load(recipe, key)
        shutil.rmtree(tmp_path / name)


def test_what_is_half_there_is_made_anew(fresh: harness.Host, base_layer: Path, builds: list[str]) -> None:
    assert fresh.machines is not None
    (key,) = fresh.machines.templates.names()
    templates = fresh.state / "templates"
    fresh.stop()
    # What a build that was killed leaves, and what no reader may take as a whole.
    shutil.copytree(templates / key, templates / f".{key}.tmp")
    DAMAGES["a manifest without end"](templates / key)
    fresh.start()
    ran(fresh, "anew", base_layer)
    assert builds == [key]
    assert fresh.machines.templates.names() == [key]
    assert not list(templates.glob(".*.tmp"))


def test_a_stale_one_is_not_used(fresh: harness.Host, base_layer: Path, builds: list[str]) -> None:
    """QEMU was upgraded: another key, so the template of the older one is left alone."""
    assert fresh.machines is not None
    (before,) = fresh.machines.templates.names()
    fresh.stop()
    fresh.qemu_version = "a newer one"
    fresh.start()
    try:
        ran(fresh, "stale", base_layer)
        assert len(builds) == 1
        assert builds != [before]
    finally:
        fresh.stop()
        fresh.qemu_version = "test"
        fresh.start()
