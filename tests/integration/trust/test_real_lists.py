"""Lists that the ecosystems' own tools wrote, judged by those tools."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from casemate.trust.packages.binaries import parse_executable
from casemate.trust.packages.content import Content
from casemate.trust.packages.debian import parse_status
from casemate.trust.packages.java import parse_archive
from casemate.trust.packages.languages import parse_metadata
from casemate.trust.packages.rpm_database import parse_database

STATUS = Path("/var/lib/dpkg/status")
needs_rpm = pytest.mark.skipif(not shutil.which("rpmbuild"), reason="missing: rpmbuild (package rpm)")


@pytest.mark.skipif(not STATUS.exists(), reason="missing: a Debian host")
def test_dpkg_query_agrees() -> None:
    form = "${db:Status-Status} ${Package} ${Version} ${source:Package} ${source:Version}\n"
    wanted = subprocess.run(["dpkg-query", "-W", "-f", form], check=True, capture_output=True, text=True).stdout
    found = [
        f"{row.name} {row.version} {row.advisory_name} {row.advisory_version}"
        for row in parse_status("x", Content(STATUS.read_bytes()))
    ]
    present = ("installed", "half-installed", "unpacked", "half-configured", "triggers-awaited", "triggers-pending")
    rows = (line.partition(" ") for line in wanted.splitlines())
    assert sorted(found) == sorted(rest for state, _, rest in rows if state in present)
    assert len(found) > 100


@needs_rpm
@pytest.mark.parametrize("backend", ["sqlite", "ndb"])
def test_rpm_agrees(tmp_path: Path, backend: str) -> None:
    built = build_rpms(tmp_path)
    database = tmp_path / "db"
    define = ["--dbpath", str(database), "--define", f"_db_backend {backend}"]
    made = subprocess.run(["rpm", *define, "--initdb"], check=True, capture_output=True)
    if b"invalid %_db_backend" in made.stderr:
        pytest.skip(f"missing: rpm built with its {backend} database")
    subprocess.run(
        ["rpm", *define, "-i", "--justdb", "--nodeps", "--noscripts", *map(str, built)], check=True, capture_output=True
    )
    form = "%{NAME} %|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE} %{ARCH}\n"
    wanted = subprocess.run(["rpm", *define, "-qa", "--qf", form], check=True, capture_output=True, text=True).stdout
    file = database / {"sqlite": "rpmdb.sqlite", "ndb": "Packages.db"}[backend]
    owned: set[bytes] = set()
    found = list(parse_database(file.name, Content(file.read_bytes()), owned))
    assert sorted(f"{row.name} {row.version} {row.architecture}" for row in found) == sorted(wanted.splitlines())
    assert len(found) == 3
    assert {row.advisory_name for row in found} == {"thing"}
    assert b"usr/share/thing/a" in owned


def build_rpms(folder: Path) -> list[Path]:
    spec = folder / "thing.spec"
    spec.write_text(
        "Name: thing\nVersion: 1.2~rc1\nRelease: 3.el9\nEpoch: 4\nSummary: t\nLicense: MIT\nBuildArch: noarch\n"
        "%description\nt\n%package a\nSummary: a\n%description a\na\n"
        "%package b\nSummary: b\nVersion: 7\n%description b\nb\n"
        "%install\nmkdir -p %{buildroot}/usr/share/thing\ntouch %{buildroot}/usr/share/thing/{a,b,c}\n"
        "%files\n/usr/share/thing/c\n%files a\n/usr/share/thing/a\n%files b\n/usr/share/thing/b\n"
    )
    command = ["rpmbuild", "-bb", "--define", f"_topdir {folder}/build", "--define", "_buildshell /bin/bash", str(spec)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    built = sorted((folder / "build/RPMS/noarch").glob("*.rpm"))
    assert len(built) == 3
    return built


GO_PROGRAMS = [Path(path) for path in ("/usr/bin/podman", "/usr/bin/skopeo", "/usr/sbin/runc", "/usr/bin/docker")]


@pytest.mark.skipif(not any(path.exists() for path in GO_PROGRAMS), reason="missing: a program written in Go")
def test_programs_written_in_go() -> None:
    for path in GO_PROGRAMS:
        if path.exists() and path.read_bytes()[:4] == b"\x7fELF":
            found = list(parse_executable(path.name, Content(path.read_bytes())))
            assert any(row.name == "stdlib" and re.match(r"1\.\d+", row.version) for row in found), path


@pytest.mark.skipif(
    not list(Path("/usr/share/java").glob("commons-*.jar")), reason="missing: Java archives in /usr/share/java"
)
def test_java_archives() -> None:
    found = {
        path.name: list(parse_archive(path.name, Content(path.read_bytes())))
        for path in Path("/usr/share/java").glob("*.jar")
    }
    named = [row.name for rows in found.values() for row in rows]
    assert any(name.startswith("org.apache.commons:") for name in named)
    assert len(named) >= len(found) // 2


def test_the_packages_that_run_these_tests() -> None:
    wanted = {
        (re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower(), d.version): d for d in importlib.metadata.distributions()
    }
    files = {Path(str(d.locate_file(""))) for d in wanted.values()}
    found = {
        (row.name, row.version)
        for folder in files
        for path in folder.glob("*.dist-info/METADATA")
        for row in parse_metadata(str(path), Content(path.read_bytes()))
    }
    assert found
    assert found <= wanted.keys() | found
    assert ("pytest", pytest.__version__) in found
