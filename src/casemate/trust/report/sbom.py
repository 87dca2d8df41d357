"""Bills of materials of an image, bound to its digest."""

from __future__ import annotations

import hashlib
from typing import Any

from casemate.spec.ids import digest_hex
from casemate.trust.packages.merge import Found, ImageContents
from casemate.trust.report.purl import purl

#: Says that a list could not be read: a bill that is not whole must not look as if it were.
_INCOMPLETE = "casemate:unreadable"


def cyclonedx(contents: ImageContents, digest: str, name: str, created: str) -> dict[str, Any]:
    """CycloneDX 1.6. *created*: RFC 3339; *name*: the repository."""
    hexadecimal = digest_hex(digest)
    serial = hashlib.sha256(f"cyclonedx {digest}".encode()).hexdigest()
    components = [
        {
            "type": "library",
            "bom-ref": _reference(number),
            "name": found.package.name,
            "version": found.package.version,
            "purl": purl(found.package, contents.distribution),
            "properties": [
                {"name": "casemate:path", "value": found.path},
                {"name": "casemate:layer", "value": str(found.layer)},
            ],
        }
        for number, found in enumerate(contents.packages)
    ]
    if contents.distribution:
        system = contents.distribution
        components.append({"type": "operating-system", "bom-ref": "os", "name": system.id, "version": system.version})
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial[:8]}-{serial[8:12]}-8{serial[13:16]}-8{serial[17:20]}-{serial[20:32]}",
        "version": 1,
        "metadata": {
            "timestamp": created,
            "component": {
                "type": "container",
                "bom-ref": digest,
                "name": name,
                "version": digest,
                "hashes": [{"alg": "SHA-256", "content": hexadecimal}],
            },
            "properties": [{"name": _INCOMPLETE, "value": f"{row.path}: {row.reason}"} for row in contents.unreadable],
        },
        "components": components,
    }


def spdx(contents: ImageContents, digest: str, name: str, created: str) -> dict[str, Any]:
    """SPDX 2.3 (JSON). *created*: RFC 3339 in UTC with ``Z``."""
    image = {
        "SPDXID": "SPDXRef-image",
        "name": name,
        "versionInfo": digest,
        "downloadLocation": "NOASSERTION",
        "primaryPackagePurpose": "CONTAINER",
        "checksums": [{"algorithm": "SHA256", "checksumValue": digest_hex(digest)}],
    }
    packages = [_spdx_package(number, found, contents) for number, found in enumerate(contents.packages)]
    remarks = "; ".join(f"{row.path}: {row.reason}" for row in contents.unreadable)
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"urn:casemate:sbom:{digest}",
        "creationInfo": {"created": created, "creators": ["Tool: casemate"]},
        **({"comment": f"not whole: {remarks}"} if remarks else {}),
        "documentDescribes": ["SPDXRef-image"],
        "packages": [image, *packages],
        "relationships": [
            {"spdxElementId": "SPDXRef-image", "relationshipType": "CONTAINS", "relatedSpdxElement": row["SPDXID"]}
            for row in packages
        ],
    }


def _spdx_package(number: int, found: Found, contents: ImageContents) -> dict[str, Any]:
    locator = purl(found.package, contents.distribution)
    return {
        "SPDXID": f"SPDXRef-{_reference(number)}",
        "name": found.package.name,
        "versionInfo": found.package.version,
        "downloadLocation": "NOASSERTION",
        "sourceInfo": f"layer {found.layer}: {found.path}",
        "externalRefs": [
            {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": locator}
        ],
    }


def _reference(number: int) -> str:
    return f"package-{number}"
