"""Which distribution a root file system is (os-release(5)), and until when its maker repairs it."""

from __future__ import annotations

import re
from types import MappingProxyType

from casemate.trust.packages.content import Content
from casemate.trust.packages.model import Distribution, PackageListInvalid

_LINE = re.compile(r"""^([A-Z][A-Z0-9_]*)=(?:"([^"\n]*+)"|'([^'\n]*+)'|([^"'\n]*+))[ \t]*+$""", re.MULTILINE)
_ID = re.compile(r"[a-z0-9._-]{1,64}\Z")
_VERSION = re.compile(r"[A-Za-z0-9._~+-]{0,64}\Z")


def parse_os_release(path: str, content: Content) -> Distribution:
    """The distribution; raises :class:`PackageListInvalid` when a field is not of the form that the manual allows."""
    fields = {name: double or single or bare.rstrip() for name, double, single, bare in _LINE.findall(content.text())}
    ident, version = fields.get("ID", "linux"), fields.get("VERSION_ID", "")
    if not _ID.match(ident) or not _VERSION.match(version):
        raise PackageListInvalid(f"{path}: ID {ident[:80]!r} or VERSION_ID {version[:80]!r} is not of the allowed form")
    like = tuple(word for word in fields.get("ID_LIKE", "").split()[:8] if _ID.match(word))
    codename = fields.get("VERSION_CODENAME", "")
    return Distribution(
        ident, version, codename if _ID.match(codename) else "", fields.get("PRETTY_NAME", "")[:128], like
    )


#: The last day with security updates free of charge to everyone (long-term support where it is), as the makers say.
END_OF_LIFE = MappingProxyType({
    "debian 8": "2020-06-30", "debian 9": "2022-06-30", "debian 10": "2024-06-30", "debian 11": "2026-08-31",
    "debian 12": "2028-06-30", "debian 13": "2030-06-30",
    "ubuntu 14.04": "2019-04-30", "ubuntu 16.04": "2021-04-30", "ubuntu 18.04": "2023-05-31",
    "ubuntu 20.04": "2025-05-31", "ubuntu 22.04": "2027-04-30", "ubuntu 24.04": "2029-04-30",
    "alpine 3.12": "2022-05-01", "alpine 3.13": "2022-11-01", "alpine 3.14": "2023-05-01", "alpine 3.15": "2023-11-01",
    "alpine 3.16": "2024-05-23", "alpine 3.17": "2024-11-22", "alpine 3.18": "2025-05-09", "alpine 3.19": "2025-11-01",
    "alpine 3.20": "2026-04-01", "alpine 3.21": "2026-11-01", "alpine 3.22": "2027-05-01",
    "centos 6": "2020-11-30", "centos 7": "2024-06-30", "centos 8": "2021-12-31",
    "rhel 6": "2020-11-30", "rhel 7": "2024-06-30", "rhel 8": "2029-05-31", "rhel 9": "2032-05-31",
    "rhel 10": "2035-05-31",
    "almalinux 8": "2029-05-31", "almalinux 9": "2032-05-31", "almalinux 10": "2035-05-31",
    "rocky 8": "2029-05-31", "rocky 9": "2032-05-31", "rocky 10": "2035-05-31",
    "amzn 1": "2023-12-31", "amzn 2": "2026-06-30",
})  # fmt: skip


def release_of(distribution: Distribution) -> str:
    """The part of the version that support and advisories speak of: ``12``, ``3.18``, ``8``."""
    parts = distribution.version.split(".")
    two = distribution.id in ("alpine", "ubuntu", "opensuse-leap", "sles")
    return ".".join(parts[: 2 if two else 1])


def end_of_life(distribution: Distribution) -> str | None:
    """The last day with updates (``YYYY-MM-DD``), or None when this table does not know the release."""
    return END_OF_LIFE.get(f"{distribution.id} {release_of(distribution)}")
