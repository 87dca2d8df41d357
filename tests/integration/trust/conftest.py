"""Daemons for the tests of trust, and images with things to find in them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.integration.daemons import SOURCE, USER, Daemons, rootfs_tar, running_daemons

DPKG_STATUS = (
    b"Package: openssl\nStatus: install ok installed\nArchitecture: amd64\nVersion: 3.0.11-1~deb12u1\n\n"
    b"Package: libssl3\nStatus: install ok installed\nArchitecture: amd64\nSource: openssl\n"
    b"Version: 3.0.11-1~deb12u1\n\n"
    b"Package: zlib1g\nStatus: install ok installed\nArchitecture: amd64\nSource: zlib\nVersion: 1:1.2.13.dfsg-1\n\n"
)
OS_RELEASE = b'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'
TRACKER = {
    "openssl": {
        "CVE-2026-1000": {
            "description": "a thing <script>alert(1)</script>",
            "releases": {"bookworm": {"status": "resolved", "fixed_version": "3.0.13-1~deb12u1", "urgency": "high"}},
        },
        "CVE-2026-1001": {
            "description": "another",
            "releases": {"bookworm": {"status": "open", "urgency": "medium"}},
        },
    },
    "zlib": {
        "CVE-2020-1": {
            "description": "repaired long ago",
            "releases": {"bookworm": {"status": "resolved", "fixed_version": "1:1.2.12-1", "urgency": "high"}},
        }
    },
}  # fmt: skip
KEY = "-----BEGIN RSA PRIVATE KEY-----\n" + "A" * 64 + "\n-----END RSA PRIVATE KEY-----\n"


@dataclass
class Casemate:
    """The command line against one pair of daemons."""

    daemons: Daemons

    def run(self, *argv: str, code: int | None = 0, stdin: bytes = b"") -> str:
        """Standard output of the command; with *code* None its exit code is not looked at."""
        done = self.ended(*argv, stdin=stdin)
        if code is not None:
            assert done.returncode == code, (argv, done.returncode, done.stdout.decode(), done.stderr.decode())
        return done.stdout.decode()

    def ended(self, *argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.daemons.scope.folder), "PYTHONPATH": str(SOURCE),
            "CASEMATE_HOST": f"unix://{self.daemons.socket}",
        }  # fmt: skip
        command = [sys.executable, "-m", "casemate.cli.main", *argv]
        return subprocess.run(command, input=stdin, capture_output=True, env=environment, timeout=120, check=False)

    def json(self, *argv: str, code: int | None = 0) -> object:
        return json.loads(self.run(*argv, "--json", code=code))

    @property
    def state(self) -> Path:
        return self.daemons.scope.folder / "state"


def another_casemated(casemate: Casemate, program: str, *argv: str) -> None:
    """In place of casemated *program* (Python), which starts the real one with something of it changed."""
    daemons = casemate.daemons
    daemons.kill("casemated")
    command = ["setpriv", "--pdeathsig=TERM", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--inh-caps=-all",
               "--bounding-set=-all", "--no-new-privs", sys.executable, "-c", program, *argv]  # fmt: skip
    with (daemons.scope.folder / "casemated.log").open("ab") as log:
        daemons.processes["casemated"] = subprocess.Popen(
            command, env=daemons.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
        )
    daemons.wait_ready()


@pytest.fixture(scope="module")
def casemate() -> Iterator[Casemate]:
    with running_daemons() as daemons:
        yield Casemate(daemons)


def debian_tar(**more: bytes) -> bytes:
    """busybox that says it is Debian, with a package list, a secret and a setuid file; *more*: path to content."""
    out = io.BytesIO(rootfs_tar())
    files = {"etc/os-release": OS_RELEASE, "var/lib/dpkg/status": DPKG_STATUS, "root/.env": KEY.encode(), **more}
    with tarfile.open(fileobj=out, mode="a", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("bin/su")
        info.mode, info.size = 0o4755, 2
        archive.addfile(info, io.BytesIO(b"#!"))
    return out.getvalue()


def imported(casemate: Casemate, tag: str, data: bytes) -> str:
    """An image of the root file system *data*; its name."""
    client = casemate.daemons.client
    operation = client.follow(client.import_image(iter([data]), tag=tag, format_="rootfs"))
    assert operation.status == "done", operation
    return tag


def tracker(folder: Path, found: object = TRACKER) -> Path:
    path = folder / "tracker.json"
    path.write_text(json.dumps(found))
    return path
