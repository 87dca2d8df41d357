"""Java archives, with those inside of them: ``pom.properties`` first, else the manifest, else the file's name.

Nothing is written anywhere, so a name such as ``../../etc/x`` inside an archive is only a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from casemate.trust.packages.archive import Budget, Member, members, unpack
from casemate.trust.packages.content import Content
from casemate.trust.packages.model import Package, PackageListInvalid, make_package

ARCHIVE_SUFFIXES = (".jar", ".war", ".ear", ".par", ".sar", ".nar", ".kar", ".hpi", ".jpi", ".lpkg")
#: ear > war > jar > a jar shaded whole into it.
MAX_DEPTH = 4
_MAX_PROPERTIES_BYTES = 64 << 10
_MAX_MANIFEST_BYTES = 1 << 20
MAX_UNPACKED_BYTES = 1 << 30
_MAX_INNER_BYTES = 256 << 20
_POM = re.compile(r"META-INF/maven/([^/]+)/([^/]+)/pom\.properties\Z")
_PROPERTY = re.compile(r"^[ \t]*+(groupId|artifactId|version)[ \t]*+[=:](.*)$", re.MULTILINE)
_FILE_NAME = re.compile(r"(?P<name>.+?)-(?P<version>[0-9][^/]*)\Z")
_MANIFEST_FIELD = re.compile(
    r"^(Implementation-(?:Title|Version|Vendor-Id)|Bundle-(?:SymbolicName|Version)):[ ]*(.*)$", re.MULTILINE
)


def parse_archive(path: str, content: Content) -> Iterator[Package]:
    """The archive's own coordinates and those of every archive in it."""
    yield from _parse(path, content, Budget(MAX_UNPACKED_BYTES), 1)


def _parse(path: str, content: Content, budget: Budget, depth: int) -> Iterator[Package]:
    if depth > MAX_DEPTH:
        raise PackageListInvalid(f"{path}: archives in archives, more than {MAX_DEPTH} deep")
    poms: list[Member] = []
    inner: list[Member] = []
    manifest: Member | None = None
    for member in members(path, content, budget):
        if _POM.search(member.name):
            poms.append(member)
        elif member.name.lower().endswith(ARCHIVE_SUFFIXES):
            inner.append(member)
        elif member.name == "META-INF/MANIFEST.MF":
            manifest = member
    found = [package for pom in poms if (package := _from_pom(path, content, pom, budget))]
    if (own := _from_manifest(path, content, manifest, budget)) and not any(_is_same(own, one) for one in found):
        found.append(own)
    yield from found
    for member in inner:
        data = unpack(path, content, member, budget, _MAX_INNER_BYTES)
        yield from _parse(f"{path}!/{member.name}", Content(data), budget, depth + 1)


def _is_same(own: Package, pom: Package) -> bool:
    """Whether *pom* is the archive's own: of its name or version. Else it came along, shaded, and the manifest alone
    says what the archive is (guice.jar has cglib's ``pom.properties``, and none of its own).
    """
    return own.version == pom.version or own.name.rpartition(":")[2] == pom.name.rpartition(":")[2]


def _from_pom(path: str, content: Content, member: Member, budget: Budget) -> Package | None:
    text = unpack(path, content, member, budget, _MAX_PROPERTIES_BYTES).decode(errors="replace")
    fields = {name: value.strip() for name, value in _PROPERTY.findall(text.replace("\r\n", "\n"))}
    if not all(fields.get(name) for name in ("groupId", "artifactId", "version")) or "${" in fields["version"]:
        return None
    return make_package("maven", f"{fields['groupId']}:{fields['artifactId']}", fields["version"])


def _from_manifest(path: str, content: Content, member: Member | None, budget: Budget) -> Package | None:
    fields: dict[str, str] = {}
    if member is not None:
        text = unpack(path, content, member, budget, _MAX_MANIFEST_BYTES).decode(errors="replace")
        fields = dict(_MANIFEST_FIELD.findall(text.replace("\r\n", "\n").replace("\n ", "")))
    base = path.rpartition("/")[2].rpartition(".")[0]
    by_name = _FILE_NAME.match(base)
    symbolic = fields.get("Bundle-SymbolicName", "").partition(";")[0].strip()
    name = by_name["name"] if by_name else base if symbolic else ""
    version = by_name["version"] if by_name else ""
    version = version or fields.get("Implementation-Version", "").strip() or fields.get("Bundle-Version", "").strip()
    if not name or not version or " " in version or " " in name or " " in symbolic:
        return None
    group = fields.get("Implementation-Vendor-Id", "").strip() or _group(symbolic, name)
    return make_package("maven", f"{group}:{name}" if group and " " not in group else name, version)


def _group(symbolic: str, artifact: str) -> str:
    """The group in a bundle's symbolic name, as maven-bundle-plugin makes it out of group and artifact; empty where it
    could be either of two.
    """
    head, _, last = symbolic.rpartition(".")
    if not head or last == artifact:  # G.A is what both G.A:A and G:A give
        return ""
    return head if artifact == f"{head.rpartition('.')[2]}-{last}" else symbolic
