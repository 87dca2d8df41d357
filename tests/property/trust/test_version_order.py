"""At random: the ecosystem's own tool is the judge where it is installed, and every order is an order."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.version import InvalidVersion, Version

from casemate.trust.version.order import SCHEMES, Scheme, compare

# Few characters, so that two random versions have much in common.
DPKG = st.from_regex(r"([0-2]:)?[0-2][0-2a-bA-B.+~]{0,6}(-[0-2ab.+~]{1,4})?", fullmatch=True)
RPM = st.from_regex(r"[0-2a-bA_.~^+]{1,8}", fullmatch=True)
ANY = st.text(alphabet="0129abcrpvR.-_+~^!:# \u00e4", max_size=12)
PYTHON = st.from_regex(
    r"v?([0-2]!)?[0-2](\.[0-2]){0,2}([-._]?(a|b|rc|c|pre|alpha)[-._]?[0-2]?)?([-._](post|rev|r)[0-2]?)?([-._]?dev[0-2]?)?(\+[a-b0-2](\.[a-b0-2]){0,2})?",
    fullmatch=True,
)


@pytest.mark.skipif(not shutil.which("dpkg"), reason="missing: dpkg")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(DPKG, DPKG)
def test_dpkg_agrees(left: str, right: str) -> None:
    def holds(relation: str) -> bool:
        command = ["dpkg", "--compare-versions", left, relation, right]
        return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0

    assert compare("dpkg", left, right) == (-1 if holds("lt") else 1 if holds("gt") else 0)


@pytest.mark.skipif(not shutil.which("rpm"), reason="missing: rpm")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(RPM, RPM), min_size=1, max_size=50))
def test_rpm_agrees(pairs: list[tuple[str, str]]) -> None:
    calls = " ".join(f"print(rpm.vercmp([[{a}]], [[{b}]])) print(' ')" for a, b in pairs)
    answer = subprocess.run(["rpm", "--eval", f"%{{lua:{calls}}}"], check=True, capture_output=True, text=True).stdout
    assert [int(word) for word in re.findall(r"-?\d+", answer)] == [compare("rpm", a, b) for a, b in pairs]


@settings(max_examples=400, deadline=None)
@given(PYTHON, PYTHON)
def test_packaging_agrees(left: str, right: str) -> None:
    try:
        a, b = Version(left), Version(right)
    except InvalidVersion:
        return
    assert compare("pep440", left, right) == (a > b) - (a < b)


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=150, deadline=None)
@given(ANY, ANY)
def test_turned_round_it_is_the_other_way(scheme: Scheme, left: str, right: str) -> None:
    assert compare(scheme, left, right) == -compare(scheme, right, left)
    assert compare(scheme, left, left) == 0


MAVEN_JARS = [Path("/usr/share/java") / name for name in ("maven-artifact-3.x.jar", "commons-lang3.jar")]
# No word after a dot: its place changed in Maven 3.8.7 (MNG-7644), and we keep the older one. No lone null after a
# hyphen: there the specification, which we follow, and the program differ (1-0-x).
MAVEN = st.from_regex(r"[0-2](\.[0-2]){0,2}(-(alpha|beta|rc|sp|x|[12])){0,2}", fullmatch=True)


@pytest.mark.skipif(not shutil.which("java") or not MAVEN_JARS[0].exists(), reason="missing: java with maven-artifact")
def test_maven_agrees() -> None:
    versions: list[str] = []

    @settings(max_examples=150, database=None)
    @given(MAVEN)
    def collect(version: str) -> None:
        versions.append(version)

    collect()
    main = "org.apache.maven.artifact.versioning.ComparableVersion"
    command = ["java", "-cp", ":".join(map(str, MAVEN_JARS)), main, *versions]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    rows = re.findall(r"^   (\S+) ([<=>]+) (\S+)$", answer, re.MULTILINE)
    assert len(rows) == len(versions) - 1
    wrong = [row for row in rows if compare("maven", row[0], row[2]) != {"<": -1, "==": 0, ">": 1}[row[1]]]
    assert not wrong
