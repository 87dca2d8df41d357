"""Package URLs (purl-spec) of the packages in an image."""

from __future__ import annotations

from urllib.parse import quote

from casemate.trust.packages.model import DISTRIBUTION_TYPES, Distribution, Package


def purl(package: Package, distribution: Distribution | None) -> str:
    """The URL; names are escaped part by part, so that none can pass for another."""
    namespace, name = "", package.name
    qualifiers: dict[str, str] = {}
    if package.type in DISTRIBUTION_TYPES:
        if distribution is not None:
            namespace = distribution.id
            qualifiers["distro"] = f"{distribution.id}-{distribution.version}".rstrip("-")
        qualifiers["arch"] = package.architecture
        if package.source or package.source_version:
            qualifiers["upstream"] = package.advisory_name + (
                f"@{package.source_version}" if package.source_version else ""
            )
    elif package.type == "maven":
        namespace, _, name = package.name.rpartition(":")
    elif package.type in ("npm", "golang", "composer"):
        namespace, _, name = package.name.rpartition("/")
    parts = [quote(part, safe="") for part in (*namespace.split("/"), name) if part]
    tail = "&".join(f"{key}={quote(value, safe='')}" for key, value in sorted(qualifiers.items()) if value)
    return f"pkg:{package.type}/{'/'.join(parts)}@{quote(package.version, safe='')}" + (f"?{tail}" if tail else "")
