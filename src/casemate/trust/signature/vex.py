"""OpenVEX documents (spec v0.2.0) out of signed attestations: what their author says of an advisory and an image. Pure.

A document counts only with the name of the signer whose attestation it came in; what is unsigned never gets here.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from casemate.trust.signature.errors import SignatureInvalid
from casemate.trust.signature.statement import Statement

PREDICATE_TYPES = ("https://openvex.dev/ns", "https://openvex.dev/ns/v0.2.0", "https://openvex.dev/ns/v0.0.1")
MAX_STATEMENTS = 20_000
MAX_PRODUCTS = 1000
Status = Literal["not_affected", "affected", "fixed", "under_investigation"]
#: What takes a finding away. "Under investigation" and "affected" leave it where it is.
SETTLED: frozenset[str] = frozenset(("not_affected", "fixed"))
_PURL = re.compile(r"pkg:([a-z0-9.+-]{1,40})/([^?#@]{1,300})(?:@([^?#]{1,200}))?")


class _Vulnerability(msgspec.Struct, frozen=True):
    name: str
    aliases: tuple[str, ...] = ()


class _Component(msgspec.Struct, frozen=True, rename={"id": "@id"}):
    id: str = ""
    identifiers: dict[str, str] = {}
    hashes: dict[str, str] = {}
    subcomponents: tuple[Any, ...] = ()


class _Row(msgspec.Struct, frozen=True):
    vulnerability: _Vulnerability | str
    status: Status
    products: tuple[_Component | str, ...] = ()
    justification: str = ""
    impact_statement: str = ""


class _Document(msgspec.Struct, frozen=True):
    statements: tuple[_Row, ...]


class VexStatement(msgspec.Struct, frozen=True):
    """*names*: the advisory's; *packages*: (type, name, version) that it is about, empty: all of the image."""

    signer: str
    names: tuple[str, ...]
    status: Status
    reason: str
    packages: tuple[tuple[str, str, str], ...] = ()


def statements_of(signer: str, statement: Statement, digest: str) -> list[VexStatement]:
    """What *signer*'s verified *statement* says of the image *digest*. Raises :class:`SignatureInvalid`."""
    try:
        document = msgspec.convert(statement.predicate, _Document)
    except (msgspec.ValidationError, RecursionError) as error:
        raise SignatureInvalid(f"an OpenVEX document by {signer}: {error}"[:300]) from error
    if len(document.statements) > MAX_STATEMENTS:
        raise SignatureInvalid(f"an OpenVEX document with {len(document.statements)} statements")
    found = []
    for row in document.statements:
        if len(row.products) > MAX_PRODUCTS:
            raise SignatureInvalid(f"an OpenVEX statement about {len(row.products)} products")
        packages = _packages(row.products, digest)
        if packages is None:
            continue
        name = row.vulnerability
        names = (name,) if isinstance(name, str) else (name.name, *name.aliases)
        reason = row.justification or row.impact_statement or row.status
        # "Not affected" without a reason is what the specification forbids (2.7), and nobody can weigh it.
        if row.status == "not_affected" and not (row.justification or row.impact_statement):
            continue
        found.append(VexStatement(signer, names, row.status, reason[:300], packages))
    return found


def _packages(products: tuple[_Component | str, ...], digest: str) -> tuple[tuple[str, str, str], ...] | None:
    """The packages that *products* name; none: the whole image; None: it is about something else."""
    if not products:
        return ()
    found: list[tuple[str, str, str]] = []
    for product in products:
        component = _Component(product) if isinstance(product, str) else product
        names = (component.id, *component.identifiers.values())
        if _is_image(component, names, digest):
            if not component.subcomponents:
                return ()
            for sub in component.subcomponents:
                inner = _Component(sub) if isinstance(sub, str) else msgspec.convert(sub, _Component)
                found += _purls((inner.id, *inner.identifiers.values()))
        else:
            found += [row for row in _purls(names) if row[0] != "oci"]
    return tuple(found) or None


def _is_image(component: _Component, names: tuple[str, ...], digest: str) -> bool:
    """An image is named by its digest only: a name alone is anybody's."""
    hashed = component.hashes.get("sha-256", "")
    return f"sha256:{hashed}" == digest or any(digest in name.replace("%3A", ":") for name in names)


def _purls(names: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Type, name (without namespace for distributions) and version of package URLs."""
    found = []
    for name in names:
        match = _PURL.match(name.replace("%3A", ":").replace("%2B", "+").replace("%7E", "~"))
        if match:
            kind = match[1]
            path = match[2].strip("/")
            found.append((kind, path.rpartition("/")[2] if kind in ("deb", "rpm", "apk") else path, match[3] or ""))
    return found
