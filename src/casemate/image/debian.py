"""The build-debian job: an image of one layer out of real Debian packages, by ``mmdebstrap``, without privilege.

How it can run without root, measured on Debian 12: in a user namespace (``unshare``; needs lines in /etc/subuid and
newuidmap, which "no new privileges" forbids) 27 s for minbase; with ``fakechroot`` 36 s. The variant ``tiny`` is ours:
packages are only extracted, no maintainer script runs, busybox gets its links; 3.5 s.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess  # noqa: TID251 - the worker is no daemon: it streams the program's output from a thread of its own
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec

from casemate.image.archive import file_chunks
from casemate.image.convert import MAX_WORDS_BYTES
from casemate.image.errors import BuildFailed
from casemate.image.importing import assemble
from casemate.image.ingest import take_layer
from casemate.image.jobs import DebianJob, Progress, Result
from casemate.image.leases import start_time
from casemate.image.records import Platform
from casemate.image.workspace import Workspace
from casemate.spec.errors import HostLacks, InvalidArgument, TimedOut

VARIANTS = ("tiny", "extract", "custom", "essential", "apt", "required", "minbase", "buildd", "important", "standard")
MODES = ("auto", "unshare", "fakechroot", "root")
MAX_PACKAGES = 2000
#: Readable by the namespace's mapped ids, which the store is not.
SCRATCH = "/var/tmp"
SCRATCH_PREFIX = "casemate-build-"
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/"}
_SUITE = re.compile(r"[a-z][a-z0-9.-]{1,40}\Z")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,100}(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]{1,100}|/[a-z0-9.-]{1,40})?\Z")
_SOURCE = re.compile(r"deb (\[[A-Za-z0-9=,:/_. -]*\] )?(https?|copy|file):[!-~]+ [!-~]+( [A-Za-z0-9_.-]+)*\Z")
_ARCHITECTURES = {"amd64": "amd64", "arm64": "arm64", "armhf": "arm", "i386": "386", "riscv64": "riscv64"}

#: The host's own name and resolvers are not the image's.
_FORGET = 'rm -f "$1/etc/hostname"; : > "$1/etc/resolv.conf"; chmod 644 "$1/etc/resolv.conf"'
_TINY = (
    'set -e; for name in $("$1/bin/busybox" --list); do [ -e "$1/bin/$name" ] || ln -s busybox "$1/bin/$name"; done; '
    'mkdir -p "$1/tmp" "$1/root" "$1/proc" "$1/sys" "$1/dev" "$1/var/tmp"; '
    'chmod 1777 "$1/tmp" "$1/var/tmp"; chmod 700 "$1/root"; '
    'printf "root:x:0:0:root:/root:/bin/sh\\n'
    'nobody:x:65534:65534:nobody:/nonexistent:/bin/false\\n" > "$1/etc/passwd"; '
    'printf "root:x:0:\\nnogroup:x:65534:\\n" > "$1/etc/group"; chmod 644 "$1/etc/passwd" "$1/etc/group"'
)


def build_debian(work: Workspace, job: DebianJob) -> Result:
    """Do *job*; raises :class:`BuildFailed` with the builder's words, :class:`HostLacks`, :class:`TimedOut`."""
    check(job)
    mode = choose_mode(job.mode)
    architecture = job.architecture or host_architecture()
    platform = Platform("linux", _ARCHITECTURES.get(architecture, architecture))
    work.report(Progress(job.name, "building", text=f"mmdebstrap --mode={mode} --variant={job.variant} {job.suite}"))
    sweep_scratch()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{os.getpid()}-", dir=SCRATCH))
        folder.chmod(0o755)  # the user namespace's root must come through
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        if mode == "fakechroot" and job.variant in ("tiny", "extract"):
            # There is no tar in such a root to be run under fakechroot: build a folder, and archive it from outside.
            for _ in _output(command(job, mode, str(folder / "root")), job, folder):
                pass
            archive = [
                "tar",
                "--create",
                "--sort=name",
                "--owner=0",
                "--group=0",
                "--numeric-owner",
                f"--mtime=@{job.epoch}",
            ]
            source = _output([*archive, "--exclude=./dev/*", "--directory", str(folder / "root"), "."], job, folder)
        else:
            source = _output(command(job, mode, "-"), job, folder)
        layer, record = take_layer(work, source, item=job.name, pack=True)
    comment = f"mmdebstrap {job.variant} {job.suite} {' '.join(job.packages)}".strip()[:1000]
    change = msgspec.structs.replace(job.change, comment=job.change.comment or comment)
    image = assemble(work, [(layer, record)], job.name, platform, change, job.epoch)
    return Result(
        images=(image,),
        layers=(record,),
        staged=tuple(work.staged),
        lease=work.lease.name,
        digest=image.manifest_digest,
    )


def sweep_scratch() -> None:
    """Remove what builds left behind whose worker is gone (killed, or the host went down), as far as it is ours."""
    for path in Path(SCRATCH).glob(f"{SCRATCH_PREFIX}*-*"):
        pid = path.name.removeprefix(SCRATCH_PREFIX).partition("-")[0]
        if pid.isdigit() and start_time(int(pid)) is None and path.lstat().st_uid == os.geteuid():
            shutil.rmtree(path, ignore_errors=True)


def check(job: DebianJob) -> None:
    """Everything that becomes an argument is of a form that cannot be taken for an option or for shell."""
    if not _SUITE.match(job.suite):
        raise InvalidArgument(f"suite {job.suite[:80]!r} is not a name like bookworm")
    if job.variant not in VARIANTS or job.mode not in MODES:
        raise InvalidArgument(
            f"variant {job.variant[:40]!r} or mode {job.mode[:40]!r}: {', '.join(VARIANTS)}; {', '.join(MODES)}"
        )
    if len(job.packages) > MAX_PACKAGES:
        raise InvalidArgument(f"{len(job.packages)} packages; {MAX_PACKAGES} are allowed")
    for package in job.packages:
        if not _PACKAGE.match(package):
            raise InvalidArgument(
                f"package {package[:80]!r} is not a name like busybox-static, name=version or name/suite"
            )
    if job.variant == "tiny" and "busybox-static" not in job.packages:
        raise InvalidArgument("variant tiny needs the package busybox-static: without it the image has no shell")
    for line in job.sources:
        if not _SOURCE.match(line) or len(line) > 500:
            raise InvalidArgument(f"source {line[:80]!r} is not a line as in sources.list(5): deb URI SUITE COMPONENT")
    if job.architecture and not re.fullmatch(r"[a-z0-9-]{2,20}", job.architecture):
        raise InvalidArgument(f"architecture {job.architecture[:40]!r} is not one of Debian's")
    if not 0 <= job.epoch < 1 << 32 or not 1 <= job.timeout_s <= 86_400:
        raise InvalidArgument(f"epoch {job.epoch} or timeout {job.timeout_s} s is out of range")


def command(job: DebianJob, mode: str, target: str) -> list[str]:
    """mmdebstrap's arguments; *target* ``-`` is its standard output."""
    variant = "extract" if job.variant == "tiny" else job.variant
    arguments = [
        "mmdebstrap",
        f"--mode={mode}",
        f"--variant={variant}",
        f"--format={'tar' if target == '-' else 'directory'}",
    ]
    if job.packages:
        arguments.append(f"--include={','.join(job.packages)}")
    if job.architecture:
        arguments.append(f"--architectures={job.architecture}")
    if job.components:
        arguments.append(f"--components={','.join(job.components)}")
    hooks = [_FORGET] + ([_TINY] if job.variant == "tiny" else [])
    # The variant extract ends before the customize hooks.
    when = "extract" if variant == "extract" else "customize"
    arguments += [f"--{when}-hook={hook}" for hook in hooks]
    return [*arguments, job.suite, target, *(job.sources or host_sources(job.suite))]


def choose_mode(wanted: str) -> str:
    """``unshare`` where this user has subordinate ids and may gain newuidmap's privilege, else ``fakechroot``."""
    if wanted != "auto":
        return wanted
    if os.geteuid() == 0:
        return "root"
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    if "NoNewPrivs:\t0" in status and shutil.which("newuidmap"):
        names = (pwd.getpwuid(os.geteuid()).pw_name, str(os.geteuid()))
        try:
            lines = Path("/etc/subuid").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        if any(line.partition(":")[0] in names for line in lines):
            return "unshare"
    if shutil.which("fakechroot") and shutil.which("fakeroot"):
        return "fakechroot"
    raise HostLacks(
        "mmdebstrap needs subordinate ids for this user, or the programs fakechroot and fakeroot",
        remedy="apt install fakechroot fakeroot; or give ids: usermod --add-subuids 3000000000-3000065535 "
        "--add-subgids 3000000000-3000065535 casemate",
    )


def host_sources(suite: str) -> tuple[str, ...]:
    """The host's own lines for *suite* and its updates, from sources.list(5) and deb822 files; perhaps none."""
    suites = {suite, f"{suite}-updates", f"{suite}-security"}
    lines: list[str] = []
    root = Path("/etc/apt")
    for path in [root / "sources.list", *sorted((root / "sources.list.d").glob("*"))]:
        try:
            text = path.read_text(encoding="utf-8", errors="replace") if path.stat().st_size < 1 << 20 else ""
        except OSError:
            continue
        found = _deb822(text) if path.suffix == ".sources" else [line.strip() for line in text.splitlines()]
        # Only Debian's own archives: a third party's packages, and its key, are not asked for.
        lines += [line for line in found if _SOURCE.match(line) and set(line.split()) & suites and "/debian" in line]
    return tuple(line for line in lines if suite in line.split() or any(suite in other.split() for other in lines))


def _deb822(text: str) -> list[str]:
    lines = []
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        for line in stanza.splitlines():
            key, colon, value = line.partition(":")
            if colon and not line.startswith((" ", "#", "\t")):
                fields[key.strip().lower()] = value.strip()
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes") != "no":
            signed = f"[signed-by={fields['signed-by']}] " if fields.get("signed-by", "").startswith("/") else ""
            for uri in fields.get("uris", "").split():
                lines += [
                    f"deb {signed}{uri} {suite} {fields.get('components', '')}".strip()
                    for suite in fields.get("suites", "").split()
                ]
    return lines


def host_architecture() -> str:
    """Debian's name for this machine."""
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf", "i686": "i386"}.get(machine, machine)


def _output(arguments: list[str], job: DebianJob, scratch: Path) -> Iterator[bytes]:
    """The program's standard output in chunks; its words are kept for the error when it fails."""
    words = os.memfd_create("words", os.MFD_CLOEXEC)
    try:
        program = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words,
            env={**ENVIRONMENT, "TMPDIR": str(scratch), "SOURCE_DATE_EPOCH": str(job.epoch)}, cwd="/",
        )  # fmt: skip
    except FileNotFoundError as error:
        os.close(words)
        raise HostLacks(f"the program {arguments[0]} is not installed", remedy=f"apt install {arguments[0]}") from error
    late = threading.Event()

    def end() -> None:
        late.set()
        program.terminate()

    timer = threading.Timer(job.timeout_s, end)
    timer.start()
    try:
        assert program.stdout is not None
        yield from file_chunks(program.stdout)
        code = program.wait()
        if late.is_set():
            raise TimedOut(f"{arguments[0]} did not end within {job.timeout_s} s")
        if code != 0:
            size = os.fstat(words).st_size
            said = os.pread(words, MAX_WORDS_BYTES, max(0, size - MAX_WORDS_BYTES)).decode(errors="replace")
            raise BuildFailed(f"{arguments[0]} ended with {code}: {_last_words(said)}")
    finally:
        timer.cancel()
        if program.poll() is None:
            program.terminate()
        program.wait()
        os.close(words)


def _last_words(text: str) -> str:
    """The lines that say what went wrong: errors first, else the last ones."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:")]
    return " | ".join((errors or lines)[-6:])[:1500]
