"""What --cap-add and --cap-drop make of the default set."""

from __future__ import annotations

import pytest

from casemate.spec import capabilities
from casemate.spec.errors import InvalidArgument


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ([], [], set(capabilities.DEFAULT)),
        (["net_admin"], [], set(capabilities.DEFAULT) | {"CAP_NET_ADMIN"}),
        ([], ["ALL"], set()),
        (["CAP_CHOWN"], ["all"], {"CAP_CHOWN"}),
        (["ALL"], ["Sys_Admin"], set(capabilities.ALL) - {"CAP_SYS_ADMIN"}),
        ([], ["cap_chown"], set(capabilities.DEFAULT) - {"CAP_CHOWN"}),
    ],
)
def test_resolve(add: list[str], drop: list[str], expected: set[str]) -> None:
    assert set(capabilities.resolve(add, drop)) == expected


@pytest.mark.parametrize(("add", "drop"), [(["ALL"], ["ALL"]), (["kill"], ["KILL"]), (["CAP_ROOT"], []), ([""], [])])
def test_refused(add: list[str], drop: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        capabilities.resolve(add, drop)


def test_an_unknown_capability_has_its_code() -> None:
    with pytest.raises(capabilities.CapabilityUnknown) as caught:
        capabilities.normalise("x" * 500)
    assert caught.value.code == "isolation.capability_unknown"
    assert len(caught.value.detail) < 200


def test_the_default_set_has_a_reason_for_each_and_lacks_what_hurts() -> None:
    assert all(capabilities.DEFAULT.values())
    assert not set(capabilities.DEFAULT) & set(capabilities.LEFT_OUT)
    assert not set(capabilities.DEFAULT) & {"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_NET_RAW"}
    assert capabilities.beyond_default(("CAP_CHOWN", "CAP_NET_RAW")) == ("CAP_NET_RAW",)


def test_those_that_the_host_lacks_are_told_apart() -> None:
    have, missing = capabilities.available(("CAP_KILL", "CAP_CHOWN", "CAP_SYS_RESOURCE"), ~(1 << 24))
    assert have == ("CAP_CHOWN", "CAP_KILL")
    assert missing == ("CAP_SYS_RESOURCE",)
