"""``trust verify``, ``trust sign``, ``trust attest`` and ``trust key``: who vouches for an image."""

from __future__ import annotations

from casemate.cli.commands.images import credentials
from casemate.cli.fail import usage
from casemate.cli.flags import Arguments, Command, switch, value, values
from casemate.cli.show.plain import clean
from casemate.cli.show.table import table
from casemate.cli.wire.client import object_of, rows_of, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context
    from casemate.trust.signature.produce import Made

#: What ``trust verify`` ends with, for CI; 125 is "it could not be checked".
EXIT_CODES = {"verified": 0, "not_asked": 0, "unsigned": 2, "no_match": 3, "too_few": 4, "attestation_missing": 5}
MAX_PEM_BYTES = 262_144
MAX_PREDICATE_BYTES = 700_000


def verify(arguments: Arguments, context: Context) -> int:
    from casemate.cli.asked.quantities import whole

    request: dict[str, object] = {"reference": arguments.words[0]}
    names = _names([*arguments.texts("key"), *arguments.texts("authority")])
    keys = [{"name": names[path], "key": _pem(path)} for path in arguments.texts("key")]
    authorities = [
        {"name": names[path], "roots": _pem(path), "level": arguments.text("level") or "strict",
         "subject": arguments.text("subject") or ""}
        for path in arguments.texts("authority")
    ]  # fmt: skip
    identities = _identities(arguments)
    if not (keys or authorities or identities or arguments.on("policy")):
        raise usage("no signer to verify with", "Give --key FILE, --authority FILE or --policy.", "trust verify")
    for name, held in (("keys", keys), ("authorities", authorities), ("identities", identities)):
        if held:
            request[name] = held
    if arguments.text("threshold") is not None:
        request["threshold"] = whole("--threshold", arguments.text("threshold") or "", 1, 64)
    if arguments.texts("attestation"):
        request["attestations"] = [PREDICATES.get(name, name) for name in arguments.texts("attestation")]
    for flag in ("policy", "offline"):
        if arguments.on(flag):
            request[flag] = True
    answer = object_of(context.client.post("/v1/trust/verify", _registry(arguments, request)))
    if arguments.on("sarif"):
        context.answer(_sarif(answer))
    elif context.json:
        context.answer(answer)
    else:
        context.write(_told(answer))
    return EXIT_CODES.get(text_of(answer, "outcome"), 125)


def _identities(arguments: Arguments) -> list[dict[str, str]]:
    """Who signs without a kept key: one identity with its issuer."""
    identity, issuer, root = arguments.text("identity"), arguments.text("issuer"), arguments.text("trusted-root")
    if (identity is None) != (issuer is None):
        raise usage("--identity and --issuer belong together", path="trust verify")
    if identity is None or issuer is None:
        return []
    text = _pem(root) if root is not None else ""
    return [{"name": identity[:128], "identity": identity, "issuer": issuer, "trusted_root": text}]


def _registry(arguments: Arguments, request: dict[str, object]) -> dict[str, object]:
    """*request* with how its registry is reached."""
    if arguments.on("plain-http"):
        request["plain_http"] = True
    auth = None if request.get("offline") else credentials(str(request["reference"]))
    if auth is not None:
        request["auth"] = auth
    return request


def _names(paths: list[str]) -> dict[str, str]:
    """How the holder of each key is called: the file's name without its ending, or the path where two have one name."""
    found: dict[str, str] = {}
    for path in paths:
        name = path.rpartition("/")[2]
        stem = name.rpartition(".")[0] or name
        found[path] = stem if stem not in found.values() else path[-128:]
    return found


def _pem(path: str) -> str:
    from casemate.cli.signing import read_file

    return read_file(path, MAX_PEM_BYTES).decode("utf-8", "replace")


def _told(answer: dict[str, object]) -> str:
    outcome = text_of(answer, "outcome")
    text = f"{clean(text_of(answer, 'repository'))}@{clean(text_of(answer, 'digest'))}\n"
    if outcome in ("verified", "not_asked"):
        text += f"{outcome.replace('_', ' ')}: {clean(text_of(answer, 'detail'))}\n"
    else:
        text += f"NOT verified ({outcome}): {clean(text_of(answer, 'detail'))}\n"
        text += f"remedy: {clean(text_of(answer, 'remedy'))}\n"
    rows: list[dict[str, object]] = [
        {"S": row.get("signer", ""), "K": row.get("kind", ""), "D": row.get("detail", "")}
        for row in rows_of(answer | {"signatures": answer.get("signatures", [])}, "signatures")
    ]
    rows += [
        {"S": row.get("signer", ""), "K": "attestation", "D": row.get("type", "")}
        for row in rows_of(answer | {"attestations": answer.get("attestations", [])}, "attestations")
    ]
    if rows:
        text += table((("S", "SIGNER"), ("K", "KIND"), ("D", "DETAIL")), rows)
    refused = answer.get("refused")
    text += "".join(f"not counted: {clean(str(line))}\n" for line in (refused if isinstance(refused, list) else []))
    if answer.get("source") == "stored":
        when = clean(str(answer.get("fetched_at") or ""))
        text += f"offline: as kept {'on ' + when if when else 'never: this image was not pulled from a registry'}\n"
    return text


def _sarif(answer: dict[str, object]) -> dict[str, object]:
    """SARIF 2.1.0: no result where it is verified, else one, so that CI shows it beside other findings."""
    outcome = text_of(answer, "outcome")
    results: list[dict[str, object]] = []
    if outcome != "verified":
        where = f"{answer.get('repository')}@{answer.get('digest')}"
        results = [{
            "ruleId": f"casemate.trust.{outcome}", "level": "error",
            "message": {"text": f"{answer.get('detail')} {answer.get('remedy')}".strip()},
            "locations": [{"physicalLocation": {"artifactLocation": {"uri": f"oci://{where}"}}}],
        }]  # fmt: skip
    rules = [{"id": row["ruleId"], "shortDescription": {"text": "The image is not vouched for"}} for row in results]
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0",
        "runs": [{"tool": {"driver": {"name": "casemate", "rules": rules}}, "results": results}],
    }  # fmt: skip


def sign(arguments: Arguments, context: Context) -> int:
    from casemate.cli.signing import open_key
    from casemate.trust.signature.produce import sign_image

    layouts: dict[str, tuple[str, ...]] = {
        "simple": ("simple",), "bundle": ("bundle",), "both": ("simple", "bundle")
    }  # fmt: skip
    wanted = layouts.get(arguments.text("layout") or "both")
    if wanted is None:
        raise usage(f"--layout {arguments.text('layout')!r} is none of {', '.join(layouts)}", path="trust sign")
    key = open_key(_one_key(arguments, "trust sign"), arguments)
    image = _resolved(arguments, context)
    made = sign_image(key, text_of(image, "repository"), text_of(image, "digest"), wanted)  # type: ignore[arg-type]
    return _attach(arguments, context, image, made)


def attest(arguments: Arguments, context: Context) -> int:
    from casemate.cli.signing import open_key, read_file
    from casemate.cli.wire import json
    from casemate.trust.signature.produce import attest_image

    path, kind = arguments.text("predicate"), arguments.text("type")
    if path is None or kind is None:
        raise usage("--predicate FILE and --type TYPE are wanted", path="trust attest")
    predicate = json.loads(read_file(path, MAX_PREDICATE_BYTES))
    key = open_key(_one_key(arguments, "trust attest"), arguments)
    image = _resolved(arguments, context)
    return _attach(
        arguments, context, image,
        [attest_image(key, text_of(image, "digest"), PREDICATES.get(kind, kind), predicate)],
    )  # fmt: skip


def _one_key(arguments: Arguments, path: str) -> str:
    key = arguments.text("key")
    if key is None:
        raise usage("no key to sign with", "Give --key FILE or --key pkcs11:...", path)
    return key


def _resolved(arguments: Arguments, context: Context) -> dict[str, object]:
    """What the registry has under the name now; that digest is signed."""
    request = _registry(arguments, {"reference": arguments.words[0]})
    return object_of(context.client.post("/v1/trust/resolve", request))


def _attach(arguments: Arguments, context: Context, image: dict[str, object], made: list[Made]) -> int:
    import msgspec

    digest = text_of(image, "digest")
    request = _registry(
        arguments, {"reference": arguments.words[0], "digest": digest, "blobs": msgspec.to_builtins(made)}
    )
    answer = object_of(context.client.post("/v1/trust/attach", request))
    if context.json:
        context.answer(answer)
    else:
        context.write(f"signed {clean(text_of(image, 'repository'))}@{clean(digest)}\n")
        found = answer.get("manifests")
        context.write("".join(f"{clean(str(name))}\n" for name in (found if isinstance(found, list) else [])))
    return 0


def new_key(arguments: Arguments, context: Context) -> int:
    from casemate.cli.signing import secret, write_new
    from casemate.trust.keys.private import new_key as made

    name = arguments.words[0]
    if arguments.on("no-passphrase"):
        passphrase = b""
    else:
        passphrase = secret(arguments.text("passphrase-file"), f"Passphrase for {name}.key: ", "--passphrase-file")
        if not passphrase:
            raise usage("the passphrase is empty", "With --no-passphrase the key is not encrypted.", "trust key new")
        if arguments.text("passphrase-file") is None and secret(None, "Once more: ", "") != passphrase:
            raise usage("the two passphrases differ", path="trust key new")
    key = made()
    write_new(f"{name}.key", key.sealed(passphrase), 0o600)
    write_new(f"{name}.pub", key.public_pem.encode(), 0o644)
    if context.json:
        context.answer({"private": f"{name}.key", "public": f"{name}.pub", "kind": key.kind})
    else:
        context.write(f"{name}.key holds the private key ({key.kind}), {name}.pub the public one\n")
    return 0


def tokens(arguments: Arguments, context: Context) -> int:
    import msgspec

    from casemate.cli.signing import asked_pin
    from casemate.trust.keys.apply import list_tokens

    found = list_tokens(arguments.text("module") or "", asked_pin(arguments))
    if context.json:
        context.answer(msgspec.to_builtins(found))
        return 0
    rows: list[dict[str, object]] = [
        {"T": row.token, "L": row.label, "I": row.id, "K": row.kind, "P": row.slot, "A": row.address} for row in found
    ]
    columns = (("T", "TOKEN"), ("L", "LABEL"), ("I", "ID"), ("K", "KIND"), ("P", "PIV SLOT"), ("A", "ADDRESS"))
    context.write(table(columns, rows))
    return 0


#: Short names of predicate types, as cosign's --type has them (a test compares them with ``trust.signature.produce``).
PREDICATES = {
    "slsaprovenance": "https://slsa.dev/provenance/v0.2",
    "slsaprovenance1": "https://slsa.dev/provenance/v1",
    "spdxjson": "https://spdx.dev/Document",
    "cyclonedx": "https://cyclonedx.org/bom",
    "openvex": "https://openvex.dev/ns",
    "vuln": "https://cosign.sigstore.dev/attestation/vuln/v1",
}
PLAIN = switch("plain-http", "Speak plain HTTP to the registry")
_PASSPHRASE = value("passphrase-file", "FILE", "Take the key's passphrase from this file", completes="file")
KEY_FLAGS = (
    value(
        "key", "FILE|pkcs11:...", "The private key: a PEM file, or a key on a token (RFC 7512)", "k", completes="file"
    ),
    _PASSPHRASE,
    value("pin-file", "FILE", "Take the token's PIN from this file; else it is asked for", completes="file"),
    value("module", "FILE", "The token's PKCS#11 library, where the address has no module-path", completes="file"),
)
KEY_TOKENS = Command(
    "[OPTIONS]", tokens, KEY_FLAGS[2:], 0, 0, (),
    "Asks for the PIN of each token. A PIV slot is named where the key's id is that of one.",
    ("casemate trust key tokens --module /usr/lib/x86_64-linux-gnu/libykcs11.so.2",),
)  # fmt: skip
VERIFY = Command(
    "[OPTIONS] IMAGE", verify,
    (values("key", "FILE", "A public key (PEM) that may vouch; again for each", "k", completes="file"),
     values("authority", "FILE", "Certificates (PEM) whose Notation signatures count", completes="file"),
     value("subject", "NAME", "With --authority: the only signer that counts (RFC 4514)"),
     value("level", "LEVEL", "With --authority: strict, permissive or audit", completes="strict,permissive,audit"),
     value("identity", "NAME", "Who signs without a kept key (sigstore): a mail address or URI; * at its end"),
     value("issuer", "URL", "With --identity: who vouched for it"),
     value("trusted-root", "FILE", "With --identity: the instance's root (JSON); else the public one's",
           completes="file"),
     value("threshold", "N", "How many of the signers must have signed (1)"),
     values("attestation", "TYPE", "A predicate type that has to be attested; short names as cosign has them"),
     switch("policy", "The signers and the threshold that the trust policy has for this repository"),
     switch("offline", "Ask no registry: check what was kept when the image was pulled"),
     switch("sarif", "Answer with SARIF 2.1.0"), PLAIN), 1, 1, ("image",),
    "Exit codes: 0 verified; 2 the image bears no signature; 3 none is by these signers; 4 too few have signed;\n"
    "5 an attestation is missing; 125 it could not be checked (registry away, key unreadable, too many documents).",
    ("casemate trust verify --key team.pub registry.example/app:1",
     "casemate trust verify --offline --key a.pub --key b.pub --threshold 2 app:1"),
)  # fmt: skip
SIGN = Command(
    "[OPTIONS] IMAGE", sign,
    (*KEY_FLAGS, value("layout", "simple|bundle|both", "cosign's tag, its v0.3 bundle as a referrer, or both (both)",
                       completes="simple,bundle,both"), PLAIN), 1, 1, ("image",),
    "The digest that the registry has under the name is signed. The key stays on this side.",
    ("casemate trust sign --key team.key registry.example/app:1",
     "casemate trust sign --key 'pkcs11:token=release;object=signing' registry.example/app:1"),
)  # fmt: skip
ATTEST = Command(
    "[OPTIONS] IMAGE", attest,
    (*KEY_FLAGS, value("predicate", "FILE", "The predicate: JSON, at most 700 KB", completes="file"),
     value("type", "TYPE", f"Its type: a URI, or one of {', '.join(PREDICATES)}"), PLAIN), 1, 1, ("image",),
    "Signs an in-toto statement about the image and puts it beside the image as a referrer.",
    ("casemate trust attest --key team.key --type cyclonedx --predicate sbom.json registry.example/app:1",),
)  # fmt: skip
KEY_NEW = Command(
    "[OPTIONS] NAME", new_key,
    (_PASSPHRASE, switch("no-passphrase", "Leave the private key unencrypted (for CI's own store of secrets)")),
    1, 1, (), "Writes NAME.key (PKCS#8) and NAME.pub. ECDSA P-256: cosign, Notation, TUF and every token know it.",
    ("casemate trust key new team",),
)  # fmt: skip
