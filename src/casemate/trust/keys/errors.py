"""What can be wrong with a private key, or the token that holds it: one class for each remedy."""

from __future__ import annotations

from casemate.spec.errors import CasemateError


class PrivateKeyInvalid(CasemateError):
    code = "trust.private_key_invalid"
    status = 422
    title = "A private key cannot be used"
    remedy = "Give a PEM file (PKCS#8) of ECDSA P-256/384/521, Ed25519 or RSA; `casemate trust key new` makes one."


class PassphraseWrong(CasemateError):
    code = "trust.passphrase_wrong"
    status = 403
    title = "The passphrase does not open the private key"
    remedy = "Type it again, or give the file that holds it with --passphrase-file."


class TokenMissing(CasemateError):
    code = "trust.token_missing"
    status = 404
    title = "No token fits what the pkcs11: address says"
    remedy = "Plug the token in; `casemate trust key tokens` lists those that are there with their keys."


class TokenKeyMissing(CasemateError):
    code = "trust.token_key_missing"
    status = 404
    title = "The token holds no such key, or more than one"
    remedy = "`casemate trust key tokens` lists the keys; name one with object=LABEL, id=%XX or slot-id."


class PinWrong(CasemateError):
    code = "trust.pin_wrong"
    status = 403
    title = "The token refuses the PIN"
    remedy = "Check it before the next attempt: a few wrong ones lock the token."


class PinLocked(CasemateError):
    code = "trust.pin_locked"
    status = 403
    title = "The token's PIN is locked"
    remedy = "Unlock it with the token's own tool and its PUK (for a YubiKey: `ykman piv access unblock-pin`)."


class TokenFailed(CasemateError):
    code = "trust.token_failed"
    status = 502
    title = "The token or its library failed"
    remedy = "Check the module's path (module-path=... or --module) and the token; the detail has the library's words."
