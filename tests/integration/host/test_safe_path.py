"""Paths prepared by somebody hostile: links, renames in the middle of a lookup, other people's files."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.leaks import Scope

from casemate.host import safe_path
from casemate.host.safe_path import PathUnsafe
from casemate.spec.errors import InvalidArgument, NotFound, PermissionDenied

pytestmark = pytest.mark.root
USER, GROUP, EXTRA = 54321, 54322, 54323


@pytest.fixture
def root(scope: Scope) -> Iterator[int]:
    (scope.folder / "root/sub").mkdir(parents=True)
    (scope.folder / "outside").write_text("outside")
    number = safe_path.open_root(scope.folder / "root")
    yield number
    os.close(number)


def test_beneath_refuses_every_way_out(scope: Scope, root: int) -> None:
    tree = scope.folder / "root"
    (tree / "absolute").symlink_to(scope.folder / "outside")
    (tree / "relative").symlink_to("../outside")
    (tree / "inner").symlink_to("sub")
    for path in ("absolute", "relative", "inner", "../outside", "sub/../../outside", "/etc/passwd", "a\0b", "x" * 5000):
        with pytest.raises(PathUnsafe):
            os.close(safe_path.open_beneath(root, path, os.O_PATH))
    os.close(safe_path.open_beneath(root, "sub", os.O_PATH))


def test_in_root_follows_links_as_the_container_would(scope: Scope, root: int) -> None:
    tree = scope.folder / "root"
    (tree / "sub/file").write_text("inside")
    (tree / "abs").symlink_to("/sub/file")
    (tree / "up").symlink_to("../../../../sub/file")
    (tree / "loop").symlink_to("loop")
    (tree / "self").symlink_to("/proc/self/root")
    for path in ("abs", "/up", "/../sub/file"):
        assert safe_path.read_in_root(root, path, 100) == b"inside"
    with pytest.raises(PathUnsafe):
        safe_path.read_in_root(root, "loop", 10)
    with pytest.raises(FileNotFoundError):
        safe_path.read_in_root(root, "self/etc/passwd", 10)


def test_reading_never_waits_on_what_is_no_file(scope: Scope, root: int) -> None:
    os.mkfifo(scope.folder / "root/fifo")
    for path in ("fifo", "sub"):
        with pytest.raises(PathUnsafe, match="not a regular file"):
            safe_path.read_in_root(root, path, 10)
    (scope.folder / "root/big").write_bytes(bytes(100))
    assert len(safe_path.read_in_root(root, "big", 10)) == 10


def test_folders_are_made_beneath_and_no_link_is_followed(scope: Scope, root: int) -> None:
    number = safe_path.make_folders(root, "a/b//c", 0o750, (USER, GROUP))
    os.close(number)
    status = (scope.folder / "root/a/b/c").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (USER, GROUP, 0o750)
    (scope.folder / "root/evil").symlink_to("/tmp")
    (scope.folder / "root/file").touch()
    for path in ("evil/x", "../x", "file/x"):
        with pytest.raises(PathUnsafe):
            safe_path.make_folders(root, path)


def test_a_lookup_that_is_raced_by_renames_never_leaves(scope: Scope, root: int) -> None:
    tree = scope.folder / "root"
    (tree / "real").mkdir()
    (tree / "real/outside").write_text("inside")
    (tree / "evil").symlink_to("..")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (tree / "real").rename(tree / "kept")
            (tree / "evil").rename(tree / "real")
            (tree / "real").rename(tree / "evil")
            (tree / "kept").rename(tree / "real")

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        for _ in range(3000):
            try:
                number = safe_path.open_beneath(root, "real/outside", os.O_RDONLY)
            except (PathUnsafe, FileNotFoundError) as error:
                seen.add(type(error).__name__)
                continue
            seen.add(os.read(number, 100).decode())
            os.close(number)
    finally:
        stop.set()
        thread.join()
    assert "outside" not in seen
    assert "inside" in seen


def open_as(path: Path | str, groups: tuple[int, ...] = (), *, write: bool = False) -> os.stat_result:
    number = asyncio.run(safe_path.open_as(USER, GROUP, groups, str(path), write=write))
    try:
        assert not os.get_inheritable(number)
        return os.fstat(number)
    finally:
        os.close(number)


@pytest.mark.parametrize(
    ("owner", "mode", "reads", "writes"),
    [
        ((USER, 0), 0o600, True, True),
        ((USER, 0), 0o400, True, False),
        ((0, GROUP), 0o040, True, False),
        ((0, EXTRA), 0o060, True, True),
        ((0, 0), 0o600, False, False),
        ((0, 0), 0o644, True, False),
        ((0, 0), 0o000, False, False),
    ],
)
def test_a_file_opens_with_the_rights_of_the_user(
    scope: Scope, owner: tuple[int, int], mode: int, reads: bool, writes: bool
) -> None:
    path = scope.folder / "file"
    path.touch()
    os.chown(path, *owner)
    path.chmod(mode)
    for write, allowed in ((False, reads), (True, writes)):
        if allowed:
            assert open_as(path, (EXTRA,), write=write).st_ino == path.stat().st_ino
        else:
            with pytest.raises(PermissionDenied):
                open_as(path, (EXTRA,), write=write)


def test_a_supplementary_group_counts_only_when_it_is_held(scope: Scope) -> None:
    folder = scope.folder / "folder"
    folder.mkdir(mode=0o750)
    os.chown(folder, 0, EXTRA)
    assert open_as(folder, (EXTRA,)).st_ino == folder.stat().st_ino
    with pytest.raises(PermissionDenied):
        open_as(folder)


def test_a_way_through_a_closed_folder_is_closed(scope: Scope) -> None:
    closed = scope.folder / "closed"
    closed.mkdir(mode=0o700)
    (closed / "open").touch(mode=0o666)
    (scope.folder / "link").symlink_to(closed / "open")
    for path in (closed / "open", scope.folder / "link", f"/proc/{os.getpid()}/root{closed}/open", "/etc/shadow"):
        with pytest.raises(PermissionDenied):
            open_as(path)


def test_root_opens_as_root_and_paths_are_checked(scope: Scope) -> None:
    number = asyncio.run(safe_path.open_as(0, 0, (), "/etc/shadow"))
    os.close(number)
    for path in ("relative", "/a\0b", "/" + "x" * 5000):
        with pytest.raises(InvalidArgument):
            open_as(path)
    with pytest.raises(NotFound):
        open_as(scope.folder / "nope")
    with pytest.raises(InvalidArgument):
        open_as("/etc/passwd/x")


def test_a_fifo_does_not_hold_us(scope: Scope) -> None:
    path = scope.folder / "fifo"
    os.mkfifo(path, 0o666)
    path.chmod(0o666)
    assert open_as(path, write=True).st_ino == path.stat().st_ino


def test_what_was_opened_is_what_was_checked(scope: Scope) -> None:
    """The name is exchanged all the time between a file of the user and one of root's; only the first comes back."""
    mine, roots = scope.folder / "mine", scope.folder / "roots"
    mine.write_text("mine")
    os.chown(mine, USER, GROUP)
    roots.touch(mode=0o600)
    roots.chmod(0o600)
    allowed = mine.stat().st_ino
    stop = threading.Event()
    name = scope.folder / "name"

    def swap() -> None:
        while not stop.is_set():
            for target in (mine, roots):
                temporary = scope.folder / "temporary"
                os.link(target, temporary)
                temporary.rename(name)
                temporary.unlink(missing_ok=True)  # two names of one file: rename(2) then does nothing

    thread = threading.Thread(target=swap)
    os.link(mine, name)
    thread.start()
    seen = set()
    try:
        for _ in range(40):
            try:
                seen.add(open_as(name).st_ino)
            except PermissionDenied:
                seen.add(0)
    finally:
        stop.set()
        thread.join()
    assert seen <= {0, allowed}
