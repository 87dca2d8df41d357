"""A hostd of one level alone, in a thread with a loop of its own: casemate-vm is run against it as engines run it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from casemate.image import guestkernel
from casemate.isolation.microvm import argv, kernel
from casemate.isolation.microvm.machines import Machines, Settings
from casemate.isolation.microvm.origin import Kind
from casemate.isolation.microvm.service import run
from casemate.isolation.seccomp_compile import compiler

ROOT = Path(__file__).parents[3]
APPLETS = (
    *("sh", "true", "false", "echo", "cat", "ls", "id", "mount", "head", "od", "sleep", "uname", "hostname", "wc"),
    *("dd", "stty", "ps", "env", "kill", "seq", "grep", "tr", "date", "touch", "mkdir", "rm", "stat", "cut"),
    *("sha256sum", "test", "printf", "tty", "readlink", "yes", "sort", "ip", "ping", "nc", "wget"),
)


def missing() -> str:
    """What is missing for a micro-VM here; empty when nothing is."""
    for program in ("qemu-system-x86_64", "busybox", "tar2sqfs", "conmon", "dpkg-deb", "gcc"):
        if shutil.which(program) is None:
            return program
    return ""


def build(folder: Path) -> tuple[Path, Path]:
    """The agent and casemate-vm, built by their own makefiles into *folder*."""
    for part in ("guest", "shim"):
        done = subprocess.run(
            ["make", "-s", "-C", str(ROOT / part), f"BUILD={folder / part}"],
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
    return folder / "guest/agent", folder / "shim/casemate-vm"


def layer(folder: Path, name: str, files: dict[str, str] | None = None, *, busybox: bool = True) -> Path:
    """A squashfs layer with busybox and *files*."""
    root = folder / name
    for part in ("bin", "etc", "tmp", "root", "proc", "dev", "sys") if busybox else ("etc",):
        (root / part).mkdir(parents=True)
    if busybox:
        shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
        for applet in APPLETS:
            (root / "bin" / applet).symlink_to("busybox")
        (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    for path, text in (files or {}).items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    out = folder / f"{name}.sqfs"
    tar = subprocess.run(
        ["tar", "-C", str(root), "--owner=0", "--group=0", "-cf", "-", "."], capture_output=True, check=True
    )
    subprocess.run(["tar2sqfs", "-q", "-f", "-c", "lz4", str(out)], input=tar.stdout, check=True, capture_output=True)
    return out


def configuration(layers: list[Path], *args: str, **process: object) -> dict[str, object]:
    """A bundle's configuration as our driver writes it."""
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=64k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": SHM},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
    ]
    body: dict[str, object] = {
        "args": list(args),
        "env": ["PATH=/bin", "TERM=xterm"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
        "noNewPrivileges": True,
        **process,
    }
    return {
        "ociVersion": "1.0.2",
        "process": body,
        "root": {"path": "rootfs"},
        "hostname": "guest",
        "mounts": mounts,
        "annotations": {"org.casemate.layers": ":".join(str(path) for path in layers)},
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup", "network")]},
    }


SHM = ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]


class Host:
    """The service in a thread, and casemate-vm in front of it."""

    def __init__(
        self,
        state: Path,
        run_folder: Path,
        shim: Path,
        *,
        pool: int = 0,
        taps: str = "",
        template: Kind = "shared",
        rehearsal: bool = False,
    ) -> None:
        self.state, self.folder, self.shim, self.pool, self.taps = state, run_folder, shim, pool, taps
        self.template, self.rehearsal = template, rehearsal
        self.qemu_version = "test"
        self.socket = run_folder / "vm.sock"
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self.machines: Machines | None = None
        self.failure: BaseException | None = None

    def start(self) -> None:
        began = threading.Event()
        khz = int(subprocess.run([self.shim, "tsc"], capture_output=True, check=True).stdout)
        self.socket.unlink(missing_ok=True)

        async def serve() -> None:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            settings = Settings(
                self.state,
                self.folder,
                str(self.shim),
                shutil.which("qemu-system-x86_64") or "",
                self.qemu_version,
                argv.Accelerator("tcg"),
                khz,
                pool=self.pool,
                taps=self.taps,
                template=self.template,
                rehearsal=self.rehearsal,
                # Of this run alone: two at a time have containers of the same names.
                cgroup_parent=f"casetest-{os.getpid()}-vm",
            )
            async with asyncio.TaskGroup() as group:
                self.machines = Machines(settings, group)
                began.set()
                await run(self.machines, compiler(), self.socket)

        def main() -> None:
            try:
                asyncio.run(serve())
            except asyncio.CancelledError:
                pass
            except BaseException as error:
                self.failure = error
            finally:
                began.set()

        self._thread = threading.Thread(target=main)
        self._thread.start()
        assert began.wait(10)
        while not self.socket.exists() and self._thread.is_alive():
            pass

    def stop(self) -> None:
        """As a hostd that ends: the machines stay."""
        if self._loop is not None and self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
        if self._thread is not None:
            self._thread.join(20)
            assert not self._thread.is_alive()
        self._thread = None

    @contextmanager
    def waiting(self) -> Iterator[int]:
        """QEMU's pid of a machine that waits, of the kind that was started last; no other is made, nor later."""
        assert self._loop is not None
        assert self.machines is not None
        pool = self.machines.pool
        pool.most = 1
        making = asyncio.run_coroutine_threadsafe(pool.run(), self._loop)
        limit = time.monotonic() + 60
        while not pool.count():
            assert time.monotonic() < limit, "no machine was made ready"
            time.sleep(0.05)
        pool.most = 0
        making.cancel()
        try:
            yield pool._ready[0].machine.record.qemu_pid
        finally:
            asyncio.run_coroutine_threadsafe(pool.close(), self._loop).result(30)

    def vm(self, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.shim), "--socket", str(self.socket), *words],
            text=True,
            timeout=120,
            check=False,
            **{"capture_output": True, **options},  # type: ignore[call-overload]
        )

    def state_of(self, name: str) -> dict[str, object]:
        done = self.vm("state", name)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found

    def bundle(self, name: str, config: dict[str, object]) -> Path:
        folder = self.folder / "bundles" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def end_all(self) -> None:
        for name in [one.name for one in (self.folder / "vm").glob("*")]:
            self.vm("delete", "--force", name)


def conmon(host: Host, name: str, bundle: Path, *more: str) -> tuple[subprocess.Popen[bytes], Path]:
    """conmon with casemate-vm below it, as hostd and podman start it; its folder holds ctl, exit and log."""
    folder = host.folder / "conmon" / name
    (folder / "exits").mkdir(parents=True)
    sync_read, sync_write = os.pipe()
    argv_ = [
        "conmon",
        "--sync",
        "--full-attach",
        "--no-sync-log",
        "--cid",
        name,
        "--cuuid",
        name,
        "--name",
        name,
        "--bundle",
        str(bundle),
    ]
    argv_ += ["--persist-dir", str(folder), "--exit-dir", str(folder / "exits")]
    argv_ += ["--container-pidfile", str(folder / "pid"), "--runtime", str(host.shim)]
    argv_ += ["--runtime-arg", "--socket", "--runtime-arg", str(host.socket)]
    argv_ += ["--log-path", f"k8s-file:{folder}/log", "--log-level", "error", *more]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "_OCI_SYNCPIPE": str(sync_write)}
    process = subprocess.Popen(argv_, env=environment, pass_fds=(sync_write,), start_new_session=True)
    os.close(sync_write)
    with os.fdopen(sync_read, "rb") as sync:
        line = sync.readline()
    answer = json.loads(line)
    (folder / "answer").write_bytes(line)
    if answer.get("data", answer.get("pid", -1)) <= 0:
        process.wait(30)
    return process, folder


def install_kernel(kernels: Path, package: Path, agent: Path) -> None:
    """What casemated and hostd do together."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        version, image, modules = asyncio.run(guestkernel.unpack(package, folder))
        made = guestkernel.prepare(version, image, modules, agent, folder)
        with made.kernel.open("rb") as one, made.initramfs.open("rb") as other:
            kernel.adopt(kernels, made.version, one.fileno(), other.fileno(), lacks=made.lacks, agent=made.agent)


@contextmanager
def guest_kernel(state: Path, agent: Path, cache: Path) -> Iterator[str]:
    """A prepared kernel below *state*; yields why there is none, or nothing."""
    packages = sorted(cache.glob("linux-image-*.deb"))
    if not packages:
        with tempfile.TemporaryDirectory() as folder:
            shown = subprocess.run(
                ["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True, check=True
            )
            names = [word for word in shown.stdout.split() if word.startswith("linux-image-")]
            if names:
                subprocess.run(["apt-get", "download", names[-1]], cwd=folder, check=True, timeout=300)
            for one in Path(folder).glob("*.deb"):
                cache.mkdir(parents=True, exist_ok=True)
                shutil.move(one, cache / one.name)
        packages = sorted(cache.glob("linux-image-*.deb"))
    if not packages:
        yield "Debian's package linux-image-amd64"
        return
    install_kernel(state / "kernels", packages[0], agent)
    yield ""
