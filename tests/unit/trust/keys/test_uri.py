"""pkcs11: addresses: what they mean, and what is refused."""

from __future__ import annotations

import pytest

from casemate.trust.keys.uri import TokenAddress, TokenAddressInvalid, parse_address


def test_addresses() -> None:
    assert parse_address("pkcs11:token=The%20Token;object=a%3Bb;id=%01%FF?module-path=/x.so") == TokenAddress(
        token="The Token", object="a;b", id=b"\x01\xff", module="/x.so"
    )
    assert parse_address("pkcs11:serial=12;slot-id=3;type=private") == TokenAddress(serial="12", slot=3)
    assert parse_address("pkcs11:") == TokenAddress()
    assert [parse_address(f"pkcs11:x-piv-slot={slot}").id for slot in ("9a", "9C", "9d", "9e", "82", "95")] == [
        b"\x01", b"\x02", b"\x03", b"\x04", b"\x05", b"\x18",
    ]  # fmt: skip


@pytest.mark.parametrize("text", [
    "token=x", "pkcs11:token", "pkcs11:token=a;token=b", "pkcs11:colour=red", "pkcs11:object=%4", "pkcs11:object=%zz",
    "pkcs11:token=%ff", "pkcs11:type=cert", "pkcs11:slot-id=x", "pkcs11:x-piv-slot=9b", "pkcs11:x-piv-slot=9a;id=%01",
    "pkcs11:token=" + "a" * 2000, "pkcs11:token=a\n", "pkcs11:?pin-source=file:/x", "pkcs11:token=a?pin-value=1234",
])  # fmt: skip
def test_what_is_refused(text: str) -> None:
    with pytest.raises(TokenAddressInvalid) as caught:
        parse_address(text)
    assert "1234" not in caught.value.detail
