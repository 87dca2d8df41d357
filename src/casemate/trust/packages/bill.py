"""Packages out of a bill of materials that somebody attested: CycloneDX and SPDX, both as JSON. Pure.

What it names is judged beside what was found in the layers; a bill adds packages (a static binary's, say) and takes
none away, whoever signed it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from casemate.trust.packages.merge import Found
from casemate.trust.packages.model import (
    MAX_NAME_CHARS,
    MAX_PACKAGES,
    MAX_VERSION_CHARS,
    PACKAGE_TYPES,
    Package,
    PackageListInvalid,
    PackageType,
)

#: Predicate types of bills, by their beginnings (SPDX's carries its version).
CYCLONEDX, SPDX = "https://cyclonedx.org/bom", "https://spdx.dev/Document"
#: The number of a layer that none has: a bill speaks of the image.
NO_LAYER = -1
MAX_DEPTH = 16
_PURL = re.compile(r"pkg:([a-z]{1,20})/([^?#@]{1,600})@([^?#]{1,600})(?:\?([^#]{0,2000}))?")
_KINDS: dict[str, PackageType] = {name: name for name in PACKAGE_TYPES}
_CONTROL = re.compile(r"[\x00-\x20\x7f-\x9f]")


def is_bill(predicate_type: str) -> bool:
    return predicate_type.startswith((CYCLONEDX, SPDX))


def packages_of(signer: str, predicate_type: str, predicate: Any) -> tuple[Found, ...]:
    """The packages that the bill names by package URLs; others are passed over. Raises :class:`PackageListInvalid`."""
    if not isinstance(predicate, dict):
        raise PackageListInvalid(f"the bill of materials by {signer} is no JSON object")
    purls = _cyclonedx(predicate, 0) if predicate_type.startswith(CYCLONEDX) else _spdx(predicate)
    found: dict[Found, None] = {}
    where = f"bill of materials by {signer}"
    for text in purls:
        package = _package(text)
        if package is not None:
            found[Found(package, where, NO_LAYER)] = None
        if len(found) > MAX_PACKAGES:
            raise PackageListInvalid(f"the {where} names more than {MAX_PACKAGES} packages")
    return tuple(found)


def _cyclonedx(document: dict[str, Any], depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise PackageListInvalid(f"a bill of materials nests deeper than {MAX_DEPTH}")
    components = document.get("components", [])
    for component in components if isinstance(components, list) else []:
        if isinstance(component, dict):
            if isinstance(component.get("purl"), str):
                yield component["purl"]
            yield from _cyclonedx(component, depth + 1)


def _spdx(document: dict[str, Any]) -> Iterator[str]:
    packages = document.get("packages", [])
    for package in packages if isinstance(packages, list) else []:
        references = package.get("externalRefs", []) if isinstance(package, dict) else []
        for reference in references if isinstance(references, list) else []:
            if isinstance(reference, dict) and reference.get("referenceType") == "purl":
                yield str(reference.get("referenceLocator", ""))


def _package(text: str) -> Package | None:
    match = _PURL.match(text)
    kind = _KINDS.get(match[1]) if match is not None else None
    if match is None or kind is None:
        return None
    path, version = unquote(match[2]).strip("/"), unquote(match[3])
    name = path
    if kind in ("deb", "rpm", "apk"):
        name = path.rpartition("/")[2]
    elif kind == "maven":
        name = ":".join(path.rsplit("/", 1))
    upstream = next((part[9:] for part in (match[4] or "").split("&") if part.startswith("upstream=")), "")
    source, _, source_version = unquote(upstream).partition("@")
    values = (name, version, source, source_version)
    if any(_CONTROL.search(value) or len(value) > min(MAX_NAME_CHARS, MAX_VERSION_CHARS) for value in values):
        return None
    return Package(kind, name, version, source=source, source_version=source_version)
