"""What of a template's files is read: content alone, so that a machine of 64 GiB costs what it has touched."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.isolation.microvm import sparse

MIB = 1 << 20


@pytest.fixture
def memory() -> Iterator[int]:
    """A file in memory, empty."""
    number = os.memfd_create("x")
    yield number
    os.close(number)


def test_what_is_copied_out_comes_back_sealed(memory: int, tmp_path: Path) -> None:
    data = b"a" * 5000 + bytes(3 * MIB) + b"z" * 3 + bytes(100_000)
    os.write(memory, data)
    digest = sparse.copy_out(memory, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    assert (tmp_path / "out").stat().st_blocks * 512 < 40_000
    number = sparse.sealed(tmp_path / "out", digest, len(data))
    try:
        assert os.pread(number, len(data) + 1, 0) == data
        assert fcntl.fcntl(number, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
        with pytest.raises(PermissionError):
            os.pwrite(number, b"x", 0)
        # What is zero takes no memory.
        assert os.fstat(number).st_blocks * 512 < 40_000
    finally:
        os.close(number)


def test_holes_are_not_read(memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 GiB with three pages in them: how much is read, not how long it takes."""
    size = 16 << 30
    os.ftruncate(memory, size)
    for offset in (0, 5 << 30, size - 4096):
        os.pwrite(memory, b"page", offset)
    read: list[int] = []
    pread = os.pread

    def counted(number: int, count: int, offset: int) -> bytes:
        read.append(count)
        return pread(number, count, offset)

    monkeypatch.setattr(os, "pread", counted)
    digest = sparse.copy_out(memory, tmp_path / "out")
    os.close(sparse.sealed(tmp_path / "out", digest, size))
    assert sum(read) <= 6 * MIB
    assert (tmp_path / "out").stat().st_size == size


def test_zeros_that_are_written_are_no_content(memory: int, tmp_path: Path) -> None:
    """A file that was copied by a program that keeps no holes is the same template."""
    os.ftruncate(memory, 4 * MIB)
    os.pwrite(memory, b"x" * 10, 2 * MIB + 8192)
    digest = sparse.copy_out(memory, tmp_path / "out")
    (tmp_path / "full").write_bytes((tmp_path / "out").read_bytes())
    os.close(sparse.sealed(tmp_path / "full", digest, 4 * MIB))


@pytest.mark.parametrize(
    "change",
    [
        lambda number: os.pwrite(number, b"x", 9000),
        lambda number: os.pwrite(number, bytes(4096), 4096),
        lambda number: os.pwrite(number, b"y" * 4096, 3 * 4096),
        lambda number: os.ftruncate(number, 3 * MIB),
        lambda number: os.ftruncate(number, MIB),
        lambda number: (os.pwrite(number, bytes(4096), 4096), os.pwrite(number, b"y" * 4096, 8192)),
    ],
    ids=["a byte", "a page gone", "a page more", "longer", "shorter", "a page moved"],
)
def test_another_content_is_refused(memory: int, tmp_path: Path, change: object) -> None:
    os.ftruncate(memory, 2 * MIB)
    os.pwrite(memory, b"y" * 4096, 4096)
    digest = sparse.copy_out(memory, tmp_path / "out")
    (tmp_path / "out").chmod(0o600)
    with (tmp_path / "out").open("r+b") as file:
        change(file.fileno())  # type: ignore[operator]
    with pytest.raises(sparse.TemplateDamaged) as caught:
        sparse.sealed(tmp_path / "out", digest, 4 * MIB)
    assert caught.value.code == "microvm.template_damaged"


def test_more_than_may_be_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"x" * 5000)
    with pytest.raises(sparse.TemplateDamaged, match="allowed are 4096"):
        sparse.sealed(tmp_path / "out", "0" * 64, 4096)


@given(st.lists(st.tuples(st.integers(0, 3 * MIB), st.binary(min_size=1, max_size=9000)), max_size=6))
@settings(max_examples=30, deadline=None)
def test_runs_are_the_content(parts: list[tuple[int, bytes]]) -> None:
    number, size = os.memfd_create("x"), 4 * MIB + 5
    try:
        os.ftruncate(number, size)
        for offset, data in parts:
            os.pwrite(number, data, offset)
        built = bytearray(size)
        for offset, data in sparse.runs(number, size):
            assert data.strip(b"\0")
            assert offset // MIB == (offset + len(data) - 1) // MIB
            built[offset : offset + len(data)] = data
        assert bytes(built) == os.pread(number, size, 0)
    finally:
        os.close(number)
