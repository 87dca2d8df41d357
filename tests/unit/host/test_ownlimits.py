"""What a child lays on itself, as the kernel tells it of a process that did."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, signal
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from casemate.host.ownlimits import bound_self, lower, settle
{body}
libc, death = ctypes.CDLL(None), ctypes.c_int()
libc.prctl(2, ctypes.byref(death), 0, 0, 0)
print(death.value, libc.prctl(3, 0, 0, 0, 0), libc.prctl(39, 0, 0, 0, 0))
for which in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
    print(*resource.getrlimit(which))
"""


def told(body: str) -> list[list[int]]:
    """Signal at the parent's end, dumpable, no new privileges; then soft and hard of core, files and file size."""
    command = [sys.executable, "-c", SCRIPT.format(body=body)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=env)
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


def test_all_of_it_is_laid_on() -> None:
    body = "bound_self({resource.RLIMIT_NOFILE: 50, resource.RLIMIT_FSIZE: 10}, parent_ended=signal.SIGTERM)"
    assert told(body) == [[15, 0, 1], [0, 0], [50, 50], [10, 10]]


def test_who_outlives_its_parent_and_needs_a_programs_privilege() -> None:
    assert told("bound_self({}, no_new_privs=False)") == [[0, 0, 0], [0, 0], [100, 200], [1000, 1000]]


@pytest.mark.parametrize(("value", "limit"), [(50, 50), (150, 100), (10**6, 100)])
def test_a_limit_that_is_lower_already_stays(value: int, limit: int) -> None:
    assert told(f"lower(resource.RLIMIT_NOFILE, {value})")[2] == [limit, limit]


@pytest.mark.parametrize(("value", "limit"), [(50, 50), (150, 150), (10**6, 200)])
def test_a_limit_is_settled_as_far_as_the_hard_one_allows(value: int, limit: int) -> None:
    body = f"assert settle(resource.RLIMIT_NOFILE, {value}) == {limit}"
    assert told(body)[2] == [limit, limit]
