"""Every line of the ecosystems' own comparisons holds, both ways round; hostile versions take bounded time."""

from __future__ import annotations

import re
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.trust.version.order import SCHEMES, Scheme, compare

DATA = Path(__file__).resolve().parents[5] / "shared/data/version-order.tar.xz"
NAMES: dict[str, Scheme] = {
    "alpine": "apk",
    "cran": "cran",
    "debian": "dpkg",
    "hackage": "hackage",
    "maven": "maven",
    "nuget": "nuget",
    "packagist": "composer",
    "pub": "pub",
    "pypi": "pep440",
    "redhat": "rpm",
    "rubygems": "rubygems",
    "semver": "semver",
}
LINE = re.compile(r"(.*?) ([<=>]) (.*)")
WANTED = {"<": -1, "=": 0, ">": 1}
#: Lines of each scheme in the archive, so that an archive that is cut short is noticed.
LEAST = {"dpkg": 14_000, "apk": 14_000, "maven": 14_000, "pep440": 12_000, "composer": 10_000, "rubygems": 4_000}


@pytest.fixture(scope="module")
def lines() -> dict[Scheme, list[tuple[str, int, str]]]:
    if not DATA.exists():
        pytest.skip("missing: ../shared/data/version-order.tar.xz")
    found: dict[Scheme, list[tuple[str, int, str]]] = {scheme: [] for scheme in SCHEMES}
    with tarfile.open(DATA) as archive:
        for member in archive:
            name = Path(member.name).name
            if name.endswith(".txt"):
                file = archive.extractfile(member)
                assert file is not None
                found[NAMES[name.partition("-")[0]]].extend(parse(file.read().decode()))
    return found


def parse(text: str) -> Iterator[tuple[str, int, str]]:
    for line in text.splitlines():
        if line and not line.startswith(("#", "//")):
            found = LINE.fullmatch(line)
            assert found, line
            yield found[1], WANTED[found[2]], found[3]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_agrees_with_the_ecosystem(lines: dict[Scheme, list[tuple[str, int, str]]], scheme: Scheme) -> None:
    rows = lines[scheme]
    wrong = [(a, w, b) for a, w, b in rows if (compare(scheme, a, b), compare(scheme, b, a)) != (w, -w)]
    print(f"{scheme}: {len(rows) - len(wrong)} of {len(rows)} lines agree")
    assert len(rows) >= LEAST.get(scheme, 11)
    assert not wrong


# Shapes that make a comparison slow, deep or too large for an int, each repeated.
HOSTILE = [
    "1", "1.", "1-", "0", "a", "a1", "~", "^", "-", "_p", "_alpha1", "1!", "1:", "\0", "\u00e4", "\U0001f701", ".pre",
    "1.0a", "+1.", "-r", " ",
]  # fmt: skip
SIZE = 50_000
#: Seconds on a slow machine; quadratic work (2.5e9 steps) would take minutes. 10 MB are in bench/trust_versions.py.
LIMIT_S = 5.0


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", HOSTILE, ids=ascii)
def test_a_long_version_takes_bounded_time(scheme: Scheme, shape: str) -> None:
    text = shape * (SIZE // len(shape))
    start = time.monotonic()
    assert compare(scheme, text, text + "1") == -compare(scheme, text + "1", text)
    assert compare(scheme, "1" + text, "1" + text) == 0
    assert time.monotonic() - start < LIMIT_S


def test_numbers_beyond_what_int_takes() -> None:
    """CPython refuses to make an int of more than 4,300 digits."""
    low, high = "1" + "0" * 10_000, "1" + "0" * 9_999 + "1"
    for scheme in SCHEMES:
        assert compare(scheme, low, high) == -1, scheme
