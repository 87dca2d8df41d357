"""Keys on a token: SoftHSM2, also with a key that wants the PIN at each use, as PIV's slot 9c does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.daemons import SOURCE
from tests.terminal import Terminal

pkcs11 = pytest.importorskip("pkcs11", reason="missing: python-pkcs11")

from pkcs11 import Attribute, KeyType  # noqa: E402
from pkcs11.util.ec import encode_named_curve_parameters  # noqa: E402

from casemate.trust.keys.apply import _translated, list_tokens, open_token_key  # noqa: E402
from casemate.trust.keys.errors import PinLocked, PinWrong, TokenFailed, TokenKeyMissing, TokenMissing  # noqa: E402
from casemate.trust.signature.cosign import parse_bundle, verify_bundle, verify_simple  # noqa: E402
from casemate.trust.signature.errors import KeyInvalid  # noqa: E402
from casemate.trust.signature.keys import load_public_key  # noqa: E402
from casemate.trust.signature.produce import sign_image  # noqa: E402

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
pytestmark = pytest.mark.skipif(not os.path.exists(MODULE), reason="missing: softhsm2")
PIN = "648219"
DIGEST = "sha256:" + "ab" * 32


@pytest.fixture(scope="module", autouse=True)
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two tokens below a folder of our own. The library reads its settings once, when it is loaded."""
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    settings = folder / "softhsm2.conf"
    settings.write_text(f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(settings)
    for label in ("release", "spare"):
        command = ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "12345678"]
        subprocess.run(command, check=True, capture_output=True)
    _fill()
    yield folder
    pkcs11.unload(MODULE)
    if before is None:
        del os.environ["SOFTHSM2_CONF"]
    else:
        os.environ["SOFTHSM2_CONF"] = before


def _fill() -> None:
    """``release``: an ECDSA key, one that wants the PIN at each use (id 02, as slot 9c has it), an RSA key, a twin."""
    token = pkcs11.lib(MODULE).get_token(token_label="release")
    with token.open(rw=True, user_pin=PIN) as session:
        curve = {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
        for label, ident, always in (
            ("signing", 1, False),
            ("careful", 2, True),
            ("twin", 8, False),
            ("twin", 9, False),
        ):
            parameters = session.create_domain_parameters(KeyType.EC, curve, local=True)
            template = {Attribute.ALWAYS_AUTHENTICATE: True} if always else {}
            parameters.generate_keypair(id=bytes([ident]), label=label, store=True, private_template=template)
        session.generate_keypair(KeyType.RSA, 2048, id=b"\x03", label="rsa", store=True)


class Asked:
    """Gives a PIN and counts how often."""

    def __init__(self, pin: str = PIN) -> None:
        self.pin = pin
        self.times = 0

    def __call__(self, token: str) -> bytes:
        assert token in ("release", "spare")
        self.times += 1
        return self.pin.encode()


@pytest.mark.parametrize(
    "name", ["token=release;object=signing", "token=release;id=%03", "token=release;x-piv-slot=9C"]
)
def test_what_a_token_signs_holds(name: str) -> None:
    key = open_token_key(f"pkcs11:{name}", Asked(), MODULE)
    simple, bundle = sign_image(key, "registry.example/app", DIGEST, ("simple", "bundle"))
    public = load_public_key(key.public_pem.encode())
    claim = verify_simple(simple.data, simple.annotations["dev.cosignproject.cosign/signature"], public)
    assert claim is not None
    assert claim.digest == DIGEST
    assert verify_bundle(parse_bundle(bundle.data), public)
    key.close()


def test_a_key_that_wants_the_pin_at_each_use_is_given_it() -> None:
    asked = Asked()
    key = open_token_key("pkcs11:token=release;object=careful", asked, MODULE)
    assert asked.times == 1
    for count in (2, 3):
        key.sign(b"data")
        assert asked.times == count
    asked.pin = "000000"
    with pytest.raises(PinWrong):
        key.sign(b"data")
    asked.pin = PIN
    # A login is the process's: the second key of one token is found all the same.
    second = open_token_key("pkcs11:token=release;object=signing", Asked(), MODULE)
    assert second.sign(b"data")
    second.close()
    key.close()


def test_each_fault_has_an_error_of_its_own(tmp_path: Path) -> None:
    for name, error in (
        ("token=nowhere;object=signing", TokenMissing),
        ("object=signing", TokenMissing),  # two tokens fit
        ("token=release;object=nothing", TokenKeyMissing),
        ("token=release;object=twin", TokenKeyMissing),
        ("token=spare;object=signing", TokenKeyMissing),
    ):
        with pytest.raises(error):
            open_token_key(f"pkcs11:{name}", Asked(), MODULE)
    with pytest.raises(PinWrong):
        open_token_key("pkcs11:token=release;object=signing", Asked("111111"), MODULE)
    (tmp_path / "no.so").write_bytes(b"junk")
    with pytest.raises(TokenFailed):
        open_token_key("pkcs11:token=release", Asked(), str(tmp_path / "no.so"))


def test_errors_that_softhsm_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """SoftHSM never locks a PIN; what a token that does answers is mapped here."""
    with pytest.raises(PinLocked), _translated("card"):
        raise pkcs11.PinLocked
    with pytest.raises(TokenMissing), _translated("card"):
        raise pkcs11.DeviceRemoved


def test_keys_are_listed_with_an_address_that_finds_them() -> None:
    rows = [row for row in list_tokens(MODULE, Asked()) if row.label in ("signing", "careful", "rsa")]
    assert {(row.label, row.kind, row.slot) for row in rows} == {
        ("signing", "secp256r1", "9a"), ("careful", "secp256r1", "9c"), ("rsa", "rsa2048", "9d"),
    }  # fmt: skip
    for row in rows:
        key = open_token_key(row.address, Asked(), MODULE)
        assert key.kind == row.kind
        key.close()


def test_a_key_of_a_kind_that_is_not_used() -> None:
    token = pkcs11.lib(MODULE).get_token(token_label="spare")
    with token.open(rw=True, user_pin=PIN) as session:
        curve: Any = {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256k1")}
        session.create_domain_parameters(KeyType.EC, curve, local=True).generate_keypair(
            id=b"\x01", label="odd", store=True
        )
    with pytest.raises(KeyInvalid):
        open_token_key("pkcs11:token=spare;object=odd", Asked(), MODULE)


def run(*argv: str, code: int = 0) -> str:
    """The command line, which finds the token by the library's own settings."""
    command = [sys.executable, "-m", "casemate.cli.main", *argv]
    kept = {name: os.environ[name] for name in ("PATH", "SOFTHSM2_CONF")}
    done = subprocess.run(
        command, capture_output=True, check=False, timeout=60, env={**kept, "PYTHONPATH": str(SOURCE)}
    )  # fmt: skip
    assert done.returncode == code, (argv, done.stdout.decode(), done.stderr.decode())
    return (done.stdout if code == 0 else done.stderr).decode()


def test_root_and_targets_keys_on_a_token_from_the_command_line(tmp_path: Path) -> None:
    """Root's key wants the PIN at each use; nothing is published without either."""
    (tmp_path / "pin").write_text(f"{PIN}\n")
    (tmp_path / "wrong").write_text("111111")
    site = str(tmp_path / "site")
    run("trust", "key", "new", "--no-passphrase", str(tmp_path / "online"))
    for label in ("careful", "signing"):
        key = open_token_key(f"pkcs11:token=release;object={label}", Asked(), MODULE)
        (tmp_path / f"{label}.pub").write_text(key.public_pem)
        key.close()
    token = ("--module", MODULE, "--pin-file", str(tmp_path / "pin"))
    root, targets = "pkcs11:token=release;x-piv-slot=9c", "pkcs11:token=release;object=signing"
    online = ("--key", str(tmp_path / "online.key"))
    roles = ("--root", str(tmp_path / "careful.pub"), "--targets", str(tmp_path / "signing.pub"),
             "--online", str(tmp_path / "online.pub"))  # fmt: skip
    told = run("trust", "init", *token, "--key", root, "--key", targets, *online, *roles, site)
    assert "published 1.root.json" in told
    digest = "sha256:" + "ab" * 32
    image = ("registry.example/app:1", "--digest", digest)
    assert "nothing was published" in run("trust", "publish", *online, site, *image)
    told = run("trust", "countersign", *token, "--key", targets, *online, site)
    assert "published targets.json" in told
    assert digest in run("trust", "show", site)
    pin = ("--module", MODULE, "--pin-file", str(tmp_path / "wrong"))
    wrong = run("--json", "trust", "publish", *pin, "--key", targets, *online, site, *image, code=125)
    assert "trust.pin_wrong" in wrong
    listed = run("trust", "key", "tokens", "--module", MODULE, "--pin-file", str(tmp_path / "pin"))
    assert "x-piv-slot" in listed or "9c" in listed


def test_the_pin_is_asked_for_at_the_terminal() -> None:
    command = [sys.executable, "-m", "casemate.cli.main", "trust", "key", "tokens", "--module", MODULE]
    kept = {name: os.environ[name] for name in ("PATH", "SOFTHSM2_CONF")}
    terminal = Terminal(command, {**kept, "PYTHONPATH": str(SOURCE), "TERM": "xterm"})
    terminal.until(b"PIN of ")
    terminal.until(b": ")
    first = b"release" if b"PIN of release" in terminal.seen else b"spare"
    terminal.type(f"{PIN}\n".encode())
    terminal.until(b"PIN of " + (b"spare" if first == b"release" else b"release") + b": ")
    terminal.type(f"{PIN}\n".encode())
    assert terminal.finish() == 0
    assert PIN.encode() not in terminal.seen
    assert b"careful" in terminal.seen
