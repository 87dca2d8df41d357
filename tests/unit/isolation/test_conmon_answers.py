"""What conmon answers, read."""

from __future__ import annotations

import pytest

from casemate.isolation.conmon import parse_pid
from casemate.spec.errors import CasemateError


def test_the_first_line_is_the_pid() -> None:
    assert parse_pid(b'{"pid": 12}\n') == 12
    assert parse_pid(b'{"data": 12}\n') == 12
    assert parse_pid(b'{"data": 20850}\n{"data": 0}\n') == 20850, "an attached exec that has ended already"


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"x", b'{"pid": "1"}', b'{"pid": -1, "message": "no such file"}'])
def test_anything_else_is_an_error(line: bytes) -> None:
    with pytest.raises(CasemateError):
        parse_pid(line)
