"""Red Hat's CSAF-VEX files (CSAF 2.0, profile VEX): one CVE, and the products in which it is fixed or open."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qs, unquote

import msgspec

from casemate.trust.feed.model import (
    BY_NAME,
    BY_SOURCE,
    MAX_AFFECTED,
    MAX_IDENT_CHARS,
    MAX_SUMMARY_CHARS,
    Advisory,
    Affected,
    FeedInvalid,
    bounded,
)
from casemate.trust.feed.severity import base_score, from_score, from_word
from casemate.trust.packages.model import MAX_NAME_CHARS, MAX_VERSION_CHARS


class _Helper(msgspec.Struct, frozen=True):
    purl: str = ""
    cpe: str = ""


class _Product(msgspec.Struct, frozen=True):
    product_id: str
    product_identification_helper: _Helper | None = None


class _Branch(msgspec.Struct, frozen=True):
    branches: list[_Branch] = []
    product: _Product | None = None


class _Relationship(msgspec.Struct, frozen=True):
    full_product_name: _Product
    product_reference: str
    relates_to_product_reference: str


class _Tree(msgspec.Struct, frozen=True):
    branches: list[_Branch] = []
    relationships: list[_Relationship] = []


class _Status(msgspec.Struct, frozen=True):
    fixed: list[str] = []
    known_affected: list[str] = []
    under_investigation: list[str] = []


class _Cvss(msgspec.Struct, frozen=True, rename={"vector": "vectorString"}):
    vector: str = ""


class _Score(msgspec.Struct, frozen=True):
    cvss_v3: _Cvss | None = None
    cvss_v2: _Cvss | None = None


class _Vulnerability(msgspec.Struct, frozen=True):
    cve: str = ""
    title: str = ""
    product_status: _Status = _Status()
    scores: list[_Score] = []


class _Aggregate(msgspec.Struct, frozen=True):
    text: str = ""


class _Tracking(msgspec.Struct, frozen=True):
    current_release_date: str = ""


class _Document(msgspec.Struct, frozen=True):
    category: str
    aggregate_severity: _Aggregate | None = None
    tracking: _Tracking = _Tracking()


class _File(msgspec.Struct, frozen=True):
    document: _Document
    product_tree: _Tree = _Tree()
    vulnerabilities: list[_Vulnerability] = []


_DECODER = msgspec.json.Decoder(_File)
#: The releases that everybody gets; extended-support streams have fixes that others cannot install.
_PLATFORM = re.compile(r"cpe:/[ao]:redhat:enterprise_linux:([0-9]{1,2})(?:\.[0-9]+)?(?:::[a-z]*)?\Z")
_PURL = re.compile(r"pkg:rpm/redhat/([^@?]+)(?:@([^?]+))?(?:\?(.*))?\Z")
_MAX_BRANCHES = 500_000


def parse(path: str, data: bytes) -> Iterator[Advisory]:
    """The advisory of one VEX file; raises :class:`FeedInvalid` for another kind of document."""
    try:
        file = _DECODER.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FeedInvalid(f"{path}: {error}") from error
    if file.document.category != "csaf_vex":
        raise FeedInvalid(f"{path}: is a document of the category {file.document.category[:60]!r}, not csaf_vex")
    products = _products(path, file.product_tree)
    for vulnerability in file.vulnerabilities:
        ident = bounded(vulnerability.cve, MAX_IDENT_CHARS, f"{path}: CVE")
        rows = _rows(path, file.product_tree, products, vulnerability.product_status)
        vectors = [
            part.vector
            for score in vulnerability.scores
            for part in (score.cvss_v3, score.cvss_v2)
            if part and part.vector
        ]
        score = base_score(vectors[0]) if vectors else -1
        word = from_word(file.document.aggregate_severity.text) if file.document.aggregate_severity else "unknown"
        summary = "".join(character for character in vulnerability.title[:MAX_SUMMARY_CHARS] if character.isprintable())
        if ident and rows:
            # Red Hat's own word goes before the score: it knows how the package is built and used there.
            severity = word if word != "unknown" else from_score(score)
            yield Advisory(ident, rows, (), summary, severity, score, file.document.tracking.current_release_date[:10])


def _products(path: str, tree: _Tree) -> dict[str, _Helper]:
    """Every product of the tree by its id; without recursion, since the file says how deep it is."""
    found: dict[str, _Helper] = {}
    waiting = list(tree.branches)
    count = 0
    while waiting:
        branch = waiting.pop()
        count += 1
        if count > _MAX_BRANCHES:
            raise FeedInvalid(f"{path}: the product tree has more than {_MAX_BRANCHES} branches")
        waiting.extend(branch.branches)
        if branch.product:
            found[branch.product.product_id] = branch.product.product_identification_helper or _Helper()
    return found


def _rows(path: str, tree: _Tree, products: dict[str, _Helper], status: _Status) -> tuple[Affected, ...]:
    fixed, open_ = set(status.fixed), {*status.known_affected, *status.under_investigation}
    rows: dict[Affected, None] = {}
    for relation in tree.relationships:
        ident = relation.full_product_name.product_id
        if ident not in fixed and ident not in open_:
            continue
        platform = _PLATFORM.match(products.get(relation.relates_to_product_reference, _Helper()).cpe)
        if not platform:
            continue
        purl = _PURL.match(products.get(relation.product_reference, _Helper()).purl)
        name = unquote(purl[1]) if purl else relation.product_reference.rpartition("/")[2]
        bounded(name, MAX_NAME_CHARS, f"{path}: package")
        ecosystem = f"Red Hat:{platform[1]}"
        if ident in open_:
            rows[Affected(ecosystem, name, BY_SOURCE)] = None
        elif purl and purl[2]:
            qualifiers = parse_qs(purl[3] or "")
            if qualifiers.get("arch") == ["src"]:
                continue
            version = bounded(unquote(purl[2]), MAX_VERSION_CHARS, f"{path}: version")
            epoch = qualifiers.get("epoch", ["0"])[0]
            rows[Affected(ecosystem, name, BY_NAME, "", f"{epoch}:{version}" if epoch != "0" else version)] = None
    if len(rows) > MAX_AFFECTED:
        raise FeedInvalid(f"{path}: affects more than {MAX_AFFECTED} packages")
    return tuple(rows)
