"""Images in the store: names to digests, records, and what a container needs of them."""

from __future__ import annotations

import asyncio
import re
import sqlite3

import msgspec

from casemate.image.errors import ImageNotFound
from casemate.image.records import ImageRecord, user_files, visible_layers
from casemate.node.core import MAX_IMAGES, Core
from casemate.node.errors import ReferenceAmbiguous
from casemate.node.resolve import Image
from casemate.spec.ids import digest_hex
from casemate.spec.reference import ReferenceInvalid, parse_reference

_HEX = re.compile(r"(?:sha256:)?([0-9a-f]{3,64})\Z")
_RECORD = msgspec.json.Decoder(ImageRecord)
_SELECT = "SELECT manifest_digest, config_digest, created_at, record FROM images"


class ImageRow(msgspec.Struct, frozen=True):
    manifest_digest: str
    config_digest: str
    created_at: float
    record: bytes

    def the_record(self) -> ImageRecord:
        return _RECORD.decode(self.record)


def find(db: sqlite3.Connection, text: str) -> ImageRow:
    """The image that *text* names: a reference, ``NAME@sha256:...``, or the beginning of an id or digest.

    Raises :class:`ImageNotFound`, :class:`ReferenceAmbiguous`, or :class:`ReferenceInvalid`.
    """
    match = _HEX.match(text)
    try:
        reference = parse_reference(text)
    except ReferenceInvalid:
        if match is None:
            raise
        reference = None
    if reference is not None:
        if reference.digest is not None:
            found = _by_digest(db, reference.digest)
            if found:
                return found[0]
        else:
            query = f"{_SELECT} JOIN image_names USING (manifest_digest) WHERE name=?"
            rows = db.execute(query, (str(reference),)).fetchall()
            if rows:
                return ImageRow(*rows[0])
    if match is not None:
        found = _by_digest(db, f"sha256:{match[1]}")
        if len({row.config_digest for row in found}) > 1:
            raise ReferenceAmbiguous(f"{text} begins the ids of more than one image", reference=text)
        if found:
            return found[0]
    name = reference.familiar if reference is not None else text
    raise ImageNotFound(
        f"image {name} is not here", remedy=f"Fetch it with `casemate image pull {name}`.", reference=name
    )


def _by_digest(db: sqlite3.Connection, digest: str) -> list[ImageRow]:
    found: list[ImageRow] = []
    for column in ("config_digest", "manifest_digest"):
        query = f"{_SELECT} WHERE {column}>=? AND {column}<? ORDER BY created_at DESC LIMIT 3"
        found += [ImageRow(*row) for row in db.execute(query, (digest, digest + "g"))]
    if not found and len(digest) == 71:
        # A digest of a multi-platform index: few images, so they are looked through.
        rows = (ImageRow(*row) for row in db.execute(_SELECT))
        found = [row for row in rows if row.the_record().index_digest == digest]
    return found


def put(db: sqlite3.Connection, record: ImageRecord, names: tuple[str, ...], at: float) -> None:
    """Store *record*, and let *names* name it (and no other image any more)."""
    bare = msgspec.structs.replace(record, names=())
    db.execute(
        "INSERT INTO images VALUES (?, ?, ?, ?) ON CONFLICT (manifest_digest) DO UPDATE SET record=excluded.record",
        (record.manifest_digest, record.config_digest, at, msgspec.json.encode(bare)),
    )
    for name in names:
        set_name(db, name, record.manifest_digest)


def set_name(db: sqlite3.Connection, name: str, manifest_digest: str) -> None:
    """Let *name* (a whole reference) name the image."""
    db.execute(
        "INSERT INTO image_names VALUES (?, ?) "
        "ON CONFLICT (name) DO UPDATE SET manifest_digest=excluded.manifest_digest",
        (name, manifest_digest),
    )


def note_origin(db: sqlite3.Connection, digest: str, repository: str, at: float) -> None:
    """The image was pulled from *repository*: what the trust policy goes by, since a tag can be set by anybody."""
    db.execute("INSERT OR REPLACE INTO image_origins VALUES (?, ?, ?)", (digest, repository, at))


def pulled_from(db: sqlite3.Connection, digest: str, repository: str) -> bool:
    """Whether the image was ever pulled from *repository*."""
    query = "SELECT 1 FROM image_origins WHERE manifest_digest=? AND repository=?"
    return db.execute(query, (digest, repository)).fetchone() is not None


def names_of(db: sqlite3.Connection, manifest_digest: str) -> tuple[str, ...]:
    rows = db.execute("SELECT name FROM image_names WHERE manifest_digest=? ORDER BY name", (manifest_digest,))
    return tuple(name for (name,) in rows)


def all_images(db: sqlite3.Connection) -> list[tuple[ImageRow, tuple[str, ...]]]:
    """Every image with its names, the newest first."""
    names: dict[str, list[str]] = {}
    for name, digest in db.execute("SELECT name, manifest_digest FROM image_names ORDER BY name"):
        names.setdefault(digest, []).append(name)
    rows = [ImageRow(*row) for row in db.execute(f"{_SELECT} ORDER BY created_at DESC")]
    return [(row, tuple(names.get(row.manifest_digest, ()))) for row in rows]


async def resolved(core: Core, row: ImageRow, reference: str) -> Image:
    """What a container needs of the image; kept in memory for the images that were used last."""
    image = core.resolved.get(row.manifest_digest)
    if image is None:
        image = await asyncio.to_thread(_read, core, row, reference)
        core.resolved[row.manifest_digest] = image
        while len(core.resolved) > MAX_IMAGES:
            core.resolved.popitem(last=False)
    else:
        core.resolved.move_to_end(row.manifest_digest)
    return image


def _read(core: Core, row: ImageRow, reference: str) -> Image:
    record = row.the_record()
    layers = core.images.layer_records(record)
    passwd, group = user_files(layers)
    hexes = tuple(digest_hex(layer.squashfs_digest) for layer in visible_layers(layers))
    return Image(reference, row.manifest_digest, record.config, hexes, passwd, group)
