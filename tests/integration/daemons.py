"""Both daemons, for real, in folders and under kernel names of their own: the fixture ``daemons``, or :class:`Daemons`.

casemated runs as an unprivileged user with no capability (as packaging starts it), hostd as root. Kill and start
them at will with :meth:`Daemons.kill` and :meth:`Daemons.start`; what their containers leave is removed at the end.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.leaks import Scope, clean, new_scope

from casemate.sdk import ApiAway, Client, Transport

USER = "casemate"
START_TIMEOUT_S = 20.0


def _readable_source() -> Path:
    """The package's source where :data:`USER` can read it: a checkout below /root (0700) is copied for this run."""
    source = Path(__file__).resolve().parents[2] / "src"
    if all(folder.stat().st_mode & 0o001 for folder in (source, *source.parents)):
        return source
    copy = Path(tempfile.mkdtemp(prefix="casemate-test-source-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    copy.chmod(0o755)
    shutil.copytree(source, copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return copy / "src"


SOURCE = _readable_source()


class Daemons:
    """A pair of daemons within *scope*; :attr:`client` speaks to them as root."""

    def __init__(self, scope: Scope, **settings: str) -> None:
        self.scope = scope
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("CASEMATE_")},
            **scope.environment,
            "CASEMATE_DAEMON_USER": USER,
            "CASEMATE_DAEMON_GROUP": USER,
            # The probe of KVM takes 3 s where it fails; it has a test of its own.
            "CASEMATE_MICROVM_ACCELERATOR": "tcg",
            # Machines that wait would be made beside every test.
            "CASEMATE_MICROVM_POOL": "0",
            # A second template would be made beside every test.
            "CASEMATE_MICROVM_REHEARSAL": "false",
            # Another runsc than the machine's: a newer one, say.
            "CASEMATE_RUNTIME_GVISOR": os.environ.get("CASEMATE_TEST_RUNSC", "auto"),
            "PYTHONPATH": str(SOURCE),
            "PYTHONDONTWRITEBYTECODE": "1",
            **settings,
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        account = pwd.getpwnam(USER)
        for name in ("state", "run"):
            (scope.folder / name).mkdir(mode=0o755, exist_ok=True)
            os.chown(scope.folder / name, account.pw_uid, account.pw_gid)
        for name in ("host-state", "host-run"):
            (scope.folder / name).mkdir(mode=0o755, exist_ok=True)
        self.client = Client(Transport(str(self.socket), timeout_s=60.0))

    @property
    def socket(self) -> Path:
        return self.scope.folder / "run/api.sock"

    def journal(self, name: str) -> str:
        """What a daemon has written to its standard error."""
        return (self.scope.folder / f"{name}.log").read_text(errors="replace")

    def start(self, *names: str) -> None:
        """Start the daemons that do not run (all of them without *names*), and wait until they serve."""
        for name in names or ("casemate-hostd", "casemated"):
            if name not in self.processes:
                self.processes[name] = self._spawn(name)
        self.wait_ready()

    def _spawn(self, name: str) -> subprocess.Popen[bytes]:
        python = [sys.executable, "-m"]
        # pdeathsig: they end when the test run is killed.
        command = ["setpriv", "--pdeathsig=TERM", *python, "casemate.hostd.entry"]
        if name == "casemated":
            command = ["setpriv", "--pdeathsig=TERM", f"--reuid={USER}", f"--regid={USER}", "--init-groups",
                       "--inh-caps=-all",
                       "--bounding-set=-all", "--no-new-privs", *python, "casemate.api.daemon"]  # fmt: skip
            if os.environ.get("CASEMATE_TEST_UNBLOCKED"):
                command[-2:] = [str(Path(__file__).with_name("unblocked.py"))]
        with (self.scope.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                    cwd="/")  # fmt: skip

    def wait_ready(self) -> None:
        """Until the API answers, and hostd answers to it where both run."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise AssertionError(f"{name} ended with {process.returncode}:\n{self.journal(name)[-3000:]}")
            if "casemated" not in self.processes:
                return
            with contextlib.suppress(ApiAway):
                if self.client.version().hostd != "away" or "casemate-hostd" not in self.processes:
                    return
            if time.monotonic() > deadline:
                logs = "\n".join(self.journal(name)[-3000:] for name in self.processes)
                raise AssertionError(f"the daemons are not ready within {START_TIMEOUT_S:g} s\n{logs}")
            time.sleep(0.02)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a daemon and wait for its end."""
        process = self.processes.pop(name)
        process.send_signal(number)
        process.wait(20)

    def close(self) -> None:
        """Remove every container, then end the daemons."""
        with contextlib.suppress(Exception):
            self.start()
            for row in self.client.containers(everything=True):
                with contextlib.suppress(Exception):
                    self.client.remove(row.id, force=True, volumes=True)
        for name in ("casemated", "casemate-hostd"):
            if name in self.processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.kill(name, signal.SIGTERM)

    def import_busybox(self, tag: str = "busybox") -> str:
        """Make an image of the host's static busybox (or of its dynamic one with its libraries); its name."""
        operation = self.client.follow(self.client.import_image(iter([rootfs_tar()]), tag=tag, format_="rootfs"))
        assert operation.status == "done", operation
        return tag


def rootfs_tar() -> bytes:
    """A small root file system of busybox: passwd and group, and applets as links."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("missing: busybox")
    libraries: set[str] = set()
    listed = subprocess.run(["ldd", busybox], capture_output=True, text=True, check=False).stdout
    for word in listed.split():
        if word.startswith("/"):
            libraries.add(word)
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for folder in ("bin", "etc", "tmp", "root", "home", "home/app", "lib", "lib64", "usr", "usr/bin", "var", "dev",
                       "proc", "sys", "run", "data"):  # fmt: skip
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(info)
        for path in (busybox, *sorted(libraries)):
            data = Path(path).read_bytes()
            info = tarfile.TarInfo("bin/busybox" if path == busybox else path.lstrip("/"))
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
        for applet in applets:
            if applet != "busybox":
                info = tarfile.TarInfo(f"bin/{applet}")
                info.type, info.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(info)
        for name, text in (
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"),
            ("etc/group", "root:x:0:\napp:x:1000:\nextra:x:2000:app\n"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


def ensure_user() -> None:
    """The account of casemated; made where it is missing (a development machine)."""
    try:
        pwd.getpwnam(USER)
    except KeyError:
        subprocess.run(["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", USER], check=True)


@contextlib.contextmanager
def running_daemons(**settings: str) -> Iterator[Daemons]:
    """A pair of daemons in a folder of its own."""
    if os.geteuid() != 0:
        pytest.skip("missing: root")
    ensure_user()
    folder = Path(tempfile.mkdtemp(prefix="casemate-test-"))
    folder.chmod(0o755)
    daemons = Daemons(new_scope(folder), **settings)
    try:
        daemons.start()
        yield daemons
    finally:
        daemons.close()
        # Their tables and rules of iptables stay with hosts; a host with hundreds of tests' would be slow for all.
        clean(daemons.scope)
        _clean(folder)


def _clean(folder: Path) -> None:
    """Unmount what is below *folder* (a failed test may leave it) and remove it."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for path in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", path], check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)
