"""Plans of roots, and the parts of the confined child that need no container."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.spec.errors import InvalidArgument
from casemate.storage import rootfs
from casemate.storage.inside import extract, tree


def plan(layers: list[str], **options: int) -> rootfs.RootfsPlan:
    return rootfs.plan("c", layers, target=Path("/t"), writable=Path("/w"), first_id=7, **options)


def test_layers_come_topmost_first_and_once() -> None:
    a, b, c = "a" * 64, "b" * 64, "c" * 64
    assert plan([a, b, a, c, b]).layers == (b, c, a)


def test_a_bounded_root_writes_inside_its_image() -> None:
    one = plan([], writable_bytes=8 << 20)
    assert (one.image, one.upper) == (Path("/w/writable.ext4"), Path("/w/mounted/upper"))
    assert plan([]).image is None
    assert any("8388608 bytes" in line for line in one.describe())


@pytest.mark.parametrize("layer", ["A" * 64, "a" * 63, "../" + "a" * 61, ""])
def test_what_is_no_digest_is_refused(layer: str) -> None:
    with pytest.raises(InvalidArgument):
        plan([layer])


def test_bounds_of_a_root() -> None:
    with pytest.raises(InvalidArgument, match="4194304"):
        plan([], writable_bytes=1)
    with pytest.raises(InvalidArgument, match="501 layers"):
        plan(["a" * 64] * 501)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("/", ("/", ".")), ("", ("/", ".")), ("..", ("/", ".")), ("//", ("/", ".")), ("/a", ("/", "a")),
        ("a/b/", ("/a", "b")), ("/../../a/../b/c", ("/b", "c")), ("///a//b", ("/a", "b")),
    ],
)  # fmt: skip
def test_paths_are_split_inside_the_root(path: str, parts: tuple[str, str]) -> None:
    assert tree.split(path) == parts


@pytest.mark.parametrize("name", ["/a", "../a", "a/..", "a/../b", "a\0b", "x" * 4096, "a/" * 2001])
def test_names_that_lead_out_are_refused(name: str) -> None:
    with pytest.raises(tree.Refused):
        extract.check_name(name)


def test_names_lose_what_means_nothing() -> None:
    assert extract.check_name("./a//b/./c/") == ["a", "b", "c"]
    assert extract.check_name("./") == []


def test_a_budget_ends() -> None:
    budget = tree.Budget({"max_entries": 1, "max_bytes": 10})
    budget.entry()
    budget.data(10)
    with pytest.raises(tree.Refused):
        budget.entry()
    with pytest.raises(tree.Refused):
        budget.data(1)
