"""What can be wrong with a signature; one class for each answer that needs another remedy."""

from __future__ import annotations

from casemate.spec.errors import CasemateError


class SignatureMissing(CasemateError):
    code = "trust.signature_missing"
    status = 403
    title = "The image bears no signature"
    remedy = "Have its publisher sign it: `cosign sign --key KEY IMAGE@DIGEST`."


class SignatureNoMatch(CasemateError):
    code = "trust.signature_no_match"
    status = 403
    title = "None of the image's signatures is by a signer that the policy names"
    remedy = "Compare the policy's keys with the publisher's; the detail says why each signature did not count."


class ThresholdNotMet(CasemateError):
    code = "trust.threshold_not_met"
    status = 403
    title = "Too few of the signers that the policy names have signed"
    remedy = "The missing signers have to sign the same digest; the detail names them."


class SignatureInvalid(CasemateError):
    code = "trust.signature_invalid"
    status = 422
    title = "A signature document cannot be read"
    remedy = "Have the image signed anew, with a tool that writes the published form."


class SignatureLimit(CasemateError):
    code = "trust.signature_limit"
    status = 413
    title = "An image bears more signatures, or larger ones, than are looked at"
    remedy = "Remove the signatures that nobody needs from the registry."


class KeyInvalid(CasemateError):
    code = "trust.key_invalid"
    status = 422
    title = "A key or certificate cannot be used"
    remedy = "Give a PEM public key: ECDSA P-256/384/521, Ed25519, or RSA of 2,048 to 8,192 bits."
