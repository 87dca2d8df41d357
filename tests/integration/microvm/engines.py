"""Engines as they come from Debian, each with folders of its own in a network namespace of its own, and no other peer.

The network namespace keeps their bridges and packet filter rules off the host. It is entered by ``nsenter`` and not by
``ip netns exec``, which would hide their mounts from hostd too.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import harness

IMAGE = "localhost/busybox:1"
#: An engine's command line, with standard input as text where there is any.
Run = Callable[..., subprocess.CompletedProcess[str]]
_NUMBER = os.getpid() % 200 + 20


class Place:
    """A folder, a network namespace, and the casemate-vm that engines are pointed to."""

    def __init__(self, folder: Path, host: harness.Host) -> None:
        self.folder, self.host = folder, host
        self.netns = f"cmt-{os.getpid()}"
        self.subnet = f"198.18.{_NUMBER}"
        # Engines pass no arguments of ours, and none of them passes its environment on.
        self.runtime = folder / "casemate-vm"
        self.runtime.write_text(f'#!/bin/sh\nexec {host.shim} --socket {host.socket} "$@"\n')
        self.runtime.chmod(0o755)

    def inside(self, *words: str | Path) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.netns}", *(str(word) for word in words)]

    def run(self, *words: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run in the namespace; standard input is empty unless given."""
        feed = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run(
            self.inside(*words),
            text=True,
            capture_output=True,
            timeout=90,
            check=False,
            **feed,  # type: ignore[call-overload]
        )

    def serve(self, name: str, *words: str | Path) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(self.inside(*words), stdout=log, stderr=log, start_new_session=True)

    def fetch(self, port: int) -> str:
        """What a connection to the published *port* gives."""
        end = time.monotonic() + 30
        while True:
            done = self.run("busybox", "nc", "-w", "5", "127.0.0.1", str(port), stdin="")
            if done.stdout or time.monotonic() > end:
                return done.stdout
            time.sleep(0.1)

    def at_a_terminal(self, *words: str | Path, rows: int = 31, columns: int = 77) -> tuple[int, str]:
        """Run at a terminal of that size: exit code, and what was shown."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        process = subprocess.Popen(self.inside(*words), stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        shown, end = b"", time.monotonic() + 60
        while time.monotonic() < end:
            ready, _, _ = select.select([master], [], [], 1)
            try:
                data = os.read(master, 4096) if ready else None
            except OSError:
                break
            if data == b"":
                break
            shown += data or b""
        code = process.wait(30)
        os.close(master)
        return code, shown.decode("utf-8", "replace")


def image(folder: Path) -> Path:
    """The image's file system as an archive: busybox and little else."""
    root = folder / "image"
    for part in ("bin", "etc", "tmp", "root"):
        (root / part).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    for applet in harness.APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nwww:x:33:33::/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nwww:x:33:\n")
    (root / "etc/kept").write_text("of the image\n")
    (root / "bin/pause").write_text("#!/bin/sh\nexec sleep 100000\n")
    (root / "bin/pause").chmod(0o755)
    out = folder / "image.tar"
    subprocess.run(["tar", "-C", str(root), "--owner=0", "--group=0", "-cf", str(out), "."], check=True)
    return out


@contextmanager
def place(folder: Path, host: harness.Host) -> Iterator[Place]:
    made = Place(folder, host)
    subprocess.run(["ip", "netns", "add", made.netns], check=True)
    try:
        subprocess.run(made.inside("ip", "link", "set", "lo", "up"), check=True)
        yield made
    finally:
        unmount_below(folder)
        subprocess.run(["ip", "netns", "delete", made.netns], check=True)
        unmount_below(folder)


def unmount_below(folder: Path) -> None:
    """What an engine that ended leaves mounted (netns pins, shm)."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        target = line.split()[4]
        if target.startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", target], check=False, capture_output=True)


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(20)


def words_of(pid: str) -> list[bytes]:
    """The command line of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def until(condition: Callable[[], bool], what: str, seconds: float = 40) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.1)


def wait_for_no_machine(at: Place) -> None:
    machines = at.host.machines
    assert machines is not None
    until(lambda: not machines.all(), "an engine leaves a machine")


def children_below(folder: Path) -> list[int]:
    """Processes whose arguments name *folder*: the shims that an engine leaves behind."""
    found = []
    for one in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = one.read_bytes()
        except OSError:
            continue
        if b"containerd-shim" in words.split(b"\0")[0] and bytes(folder) in words:
            found.append(int(one.parent.name))
    return found


@contextmanager
def podman(at: Place) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Podman with folders of its own, over *at*'s casemate-vm; every container is gone at the end."""
    own = at.folder / "podman"
    (own / "net").mkdir(parents=True)
    (own / "containers.conf").write_text(
        f'[engine]\nevents_logger="file"\n[network]\nnetwork_config_dir="{own}/net"\n'
        f'default_subnet="{at.subnet}.0/24"\n'
    )
    store = f'[storage]\ndriver="overlay"\nrunroot="{own}/run"\ngraphroot="{own}/root"\n'
    (own / "storage.conf").write_text(store)
    environment = [
        "env",
        f"CONTAINERS_CONF={own}/containers.conf",
        f"CONTAINERS_STORAGE_CONF={own}/storage.conf",
        "XDG_RUNTIME_DIR=/nonexistent",
    ]
    words = ["podman", "--cgroup-manager", "cgroupfs", "--runtime", str(at.runtime)]

    def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return at.run(*environment, *words, *arguments, stdin=stdin)

    run.words = [*environment, *words]  # type: ignore[attr-defined]
    done = run("import", "--change", 'CMD ["/bin/sh"]', str(image(own)), IMAGE)
    assert done.returncode == 0, done.stderr
    try:
        yield run
    finally:
        run("rm", "--all", "--force", "--time", "0")
        wait_for_no_machine(at)


@contextmanager
def dockerd(at: Place) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Debian's dockerd without its default bridge; a network ``cmt`` of its own; the runtime's name is ``casemate``."""
    own = at.folder / "docker"
    own.mkdir()
    (own / "daemon.json").write_text(
        json.dumps(
            {
                "data-root": f"{own}/data",
                "exec-root": f"{own}/exec",
                "pidfile": f"{own}/pid",
                "hosts": [f"unix://{own}/sock"],
                "storage-driver": "overlay2",
                "bridge": "none",
                "runtimes": {
                    "casemate": {"path": str(at.host.shim), "runtimeArgs": ["--socket", str(at.host.socket)]},
                },
            }
        )
    )
    process = at.serve("dockerd", "dockerd", "--config-file", own / "daemon.json")
    words = ["docker", "-H", f"unix://{own}/sock"]

    def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return at.run(*words, *arguments, stdin=stdin)

    run.words = words  # type: ignore[attr-defined]
    try:
        until(lambda: run("version").returncode == 0, (at.folder / "dockerd.log").read_text()[-2000:])
        done = run("import", "--change", 'CMD ["/bin/sh"]', str(image(own)), IMAGE)
        assert done.returncode == 0, done.stderr
        bridge = ["--subnet", f"{at.subnet}.0/25", "-o", "com.docker.network.bridge.name=cmt0"]
        assert run("network", "create", *bridge, "cmt").returncode == 0
        yield run
    finally:
        left = run("ps", "-aq").stdout.split()
        if left:
            run("rm", "--force", *left)
        # What --rm removes is removed after the command has ended.
        wait_for_no_machine(at)
        end(process)
        for pid in children_below(own):
            os.kill(pid, signal.SIGTERM)


@contextmanager
def containerd(at: Place) -> Iterator[Path]:
    """Debian's containerd with a CRI plug-in whose runtime handler ``casemate`` is ours: its folder, with ``sock``."""
    own = at.folder / "containerd"
    (own / "cni").mkdir(parents=True)
    plugin = 'plugins."io.containerd.grpc.v1.cri"'
    (own / "config.toml").write_text(f"""
version = 2
root = "{own}/root"
state = "{own}/state"
[grpc]
  address = "{own}/sock"
[{plugin}]
  sandbox_image = "localhost/pause:1"
  [{plugin}.cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{own}/cni"
  [{plugin}.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [{plugin}.containerd.runtimes.casemate]
    runtime_type = "io.containerd.runc.v2"
    [{plugin}.containerd.runtimes.casemate.options]
      BinaryName = "{at.runtime}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{own}/opt"
""")
    ranges = {"type": "host-local", "dataDir": f"{own}/ipam", "ranges": [[{"subnet": f"{at.subnet}.128/25"}]]}
    bridge = {
        "type": "bridge",
        "bridge": "cmt1",
        "isGateway": True,
        "ipam": ranges | {"routes": [{"dst": "0.0.0.0/0"}]},
    }
    chain = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}]
    network = {"cniVersion": "0.4.0", "name": "cmt", "plugins": chain}
    (own / "cni/10-cmt.conflist").write_text(json.dumps(network))
    process = at.serve("containerd", "containerd", "-c", own / "config.toml")
    try:
        until(lambda: at.run("ctr", "-a", own / "sock", "version").returncode == 0, "containerd does not answer")
        yield own
    finally:
        end(process)
        for pid in children_below(own):
            os.kill(pid, signal.SIGTERM)


def oci_archive(folder: Path, name: str, command: Sequence[str]) -> Path:
    """An OCI image archive of the file system of :func:`image`, made by hand."""
    layout = folder / f"oci-{name.replace('/', '-').replace(':', '-')}"
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes) -> tuple[str, int]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return f"sha256:{digest}", len(data)

    tar = image(layout / "fs").read_bytes()
    layer, layer_size = put(gzip.compress(tar, 1))
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    body = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": list(command), "Env": [path]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}"]},
    }
    config, config_size = put(json.dumps(body).encode())
    kind = "application/vnd.oci.image"
    manifest, manifest_size = put(
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": f"{kind}.manifest.v1+json",
                "config": {"mediaType": f"{kind}.config.v1+json", "digest": config, "size": config_size},
                "layers": [{"mediaType": f"{kind}.layer.v1.tar+gzip", "digest": layer, "size": layer_size}],
            }
        ).encode()
    )
    entry = {"mediaType": f"{kind}.manifest.v1+json", "digest": manifest, "size": manifest_size}
    entry |= {"annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    out = folder / f"{layout.name}.tar"
    names = ["blobs", "index.json", "oci-layout"]
    subprocess.run(["tar", "-C", str(layout), "-cf", str(out), *names], check=True)
    return out
