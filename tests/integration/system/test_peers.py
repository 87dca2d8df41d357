"""Docker and Podman as judges: what one builds and pushes the other runs, and archives go both ways."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.integration.daemons import rootfs_tar
from tests.integration.registry import running_registry
from tests.integration.system.site import IMAGE, Site

pytestmark = pytest.mark.root

#: Layers that remove a file of the first, hold a setuid file with two names, and make a folder opaque.
DOCKERFILE = """FROM scratch
ADD root.tar /
COPY --chown=1000:1000 one /data/one
RUN ["/bin/sh", "-c", "rm /data/one && echo two > /data/two && chmod 4711 /data/two && ln /data/two /data/hard"]
RUN ["/bin/sh", "-c", "rm -rf /home && mkdir /home && echo fresh > /home/x"]
ENV GREETING="hello there" EMPTY=
USER app
WORKDIR /data
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["echo $GREETING; id -u; pwd; ls /data /home; stat -c '%a %h' /data/two; cat /home/x"]
"""
EXPECTED = b"hello there\n1000\n/data\n/data:\nhard\ntwo\n\n/home:\nx\n4711 2\nfresh\n"


@dataclass(frozen=True)
class Peer:
    """Another engine's command line with storage of its own; *push* and *pull* are flags for plain HTTP."""

    name: str
    argv: tuple[str, ...]
    plain: tuple[str, ...] = ()

    def __call__(self, *argv: str, stdin: bytes = b"", cwd: Path | None = None) -> bytes:
        done = subprocess.run([*self.argv, *argv], input=stdin, capture_output=True, check=False, timeout=120, cwd=cwd)
        assert done.returncode == 0, f"{self.name} {' '.join(argv)}: {done.stderr.decode()[-1500:]}"
        return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peers")


@pytest.fixture(scope="module")
def registry(folder: Path) -> Iterator[str]:
    with running_registry(folder) as address:
        yield address


@pytest.fixture(scope="module")
def docker(folder: Path) -> Iterator[Peer]:
    if shutil.which("dockerd") is None or shutil.which("docker") is None:
        pytest.skip("missing: docker.io")
    place = folder / "docker"
    place.mkdir()
    listen = f"unix://{place}/docker.sock"
    before = subprocess.run(["iptables-save"], capture_output=True, check=False).stdout
    with (place / "log").open("wb") as log:
        daemon = subprocess.Popen(
            ["dockerd", "--data-root", str(place / "data"), "--exec-root", str(place / "exec"), "--host", listen,
             "--pidfile", str(place / "pid"), "--bridge=none", "--iptables=false", "--ip6tables=false"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        client = ["docker", "--host", listen]
        for _ in range(150):
            if subprocess.run([*client, "version"], capture_output=True, timeout=20, check=False).returncode == 0:
                break
            if daemon.poll() is not None:
                break
            time.sleep(0.2)
        else:
            pytest.skip("missing: a dockerd that comes up here")
        if daemon.poll() is not None:
            pytest.skip(f"missing: a dockerd that comes up here ({(place / 'log').read_text()[-300:]})")
        yield Peer("docker", tuple(client))
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(30)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    after = subprocess.run(["iptables-save"], capture_output=True, check=False).stdout
    assert len(after) <= len(before) + 2000


@pytest.fixture(scope="module")
def podman(folder: Path) -> Iterator[Peer]:
    """On a v1/v2 hybrid its crun refuses to run, so the v2 mount is hidden; its default limits are brought down."""
    if shutil.which("podman") is None:
        pytest.skip("missing: podman")
    place = folder / "podman"
    place.mkdir()
    (place / "containers.conf").write_text(
        '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
        '[engine]\ncgroup_manager="cgroupfs"\nevents_logger="file"\n'
    )
    (place / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    hide = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
    argv = ("unshare", "--mount", "--propagation", "slave", "sh", "-c", hide, "sh", "env",
            f"CONTAINERS_CONF={place}/containers.conf", "podman", "--root", f"{place}/root", "--runroot",
            f"{place}/run")  # fmt: skip
    peer = Peer("podman", argv, ("--tls-verify=false", f"--signature-policy={place}/policy.json"))
    yield peer
    for last in (["rm", "-fa"], ["rmi", "-fa"]):
        subprocess.run([*argv, *last], capture_output=True, timeout=120, check=False)
    for row in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        if row.split()[1].startswith(str(place)):
            subprocess.run(["umount", "-l", row.split()[1]], capture_output=True, check=False)


def run_here(site: Site, name: str) -> bytes:
    done = site("run", "--rm", "--pull", "always", name)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "root.tar").write_bytes(rootfs_tar())
    (tmp_path / "one").write_text("one\n")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    return tmp_path


@pytest.fixture(params=["docker", "podman"])
def peer(request: pytest.FixtureRequest) -> Peer:
    made: Peer = request.getfixturevalue(request.param)
    return made


def build(peer: Peer, context: Path, name: str) -> None:
    flags = ["--network=none"] if peer.name == "docker" else ["--network=none", *peer.plain[1:]]
    if peer.name == "docker":
        os.environ["DOCKER_BUILDKIT"] = "0"
    peer("build", *flags, "-t", name, str(context))


def test_built_there_and_run_here(site: Site, peer: Peer, registry: str, context: Path) -> None:
    name = f"{registry}/{peer.name}/built:1"
    build(peer, context, name)
    assert peer("run", "--rm", "--network", "none", name) == EXPECTED, "the peer itself"
    peer("push", *peer.plain, name)
    assert site("pull", "--plain-http", name).returncode == 0
    done = site("run", "--rm", name)
    assert (done.returncode, done.stdout) == (0, EXPECTED), done
    assert site("rmi", name).returncode == 0


def test_pushed_here_and_run_there(site: Site, peer: Peer, registry: str) -> None:
    name = f"{registry}/{peer.name}/pushed:1"
    assert site("tag", IMAGE, name).returncode == 0
    assert site("push", "--plain-http", name).returncode == 0
    assert site("rmi", name).returncode == 0
    peer("pull", *peer.plain, name)
    assert peer("run", "--rm", "--network", "none", name, "/bin/busybox", "echo", "from casemate") == b"from casemate\n"


def test_saved_there_and_loaded_here(site: Site, peer: Peer, context: Path, tmp_path: Path) -> None:
    name = f"localhost/{peer.name}-saved:1"
    build(peer, context, name)
    archive = tmp_path / "saved.tar"
    flags = ["--format=docker-archive"] if peer.name == "podman" else []
    peer("save", *flags, "-o", str(archive), name)
    done = site("load", "-i", str(archive))
    assert done.returncode == 0, done.stderr
    done = site("run", "--rm", name)
    assert (done.returncode, done.stdout) == (0, EXPECTED), done
    assert site("rmi", name).returncode == 0


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_exported_here_and_loaded_there(site: Site, peer: Peer, tmp_path: Path, form: str) -> None:
    if form == "oci-archive" and peer.name == "docker":
        pytest.skip("missing: OCI archives in this docker's load")
    name = f"localhost/exported-{form}:1"
    assert site("tag", IMAGE, name).returncode == 0
    archive = tmp_path / "exported.tar"
    assert site("image", "export", "--format", form, "-o", str(archive), name).returncode == 0
    assert site("rmi", name).returncode == 0
    said = peer("load", *peer.plain[1:], "-i", str(archive)).decode()
    loaded = said.strip().splitlines()[-1].rpartition(": ")[2] or name
    ran = peer("run", "--rm", "--network", "none", loaded, "/bin/busybox", "echo", "carried")
    assert ran == b"carried\n"
