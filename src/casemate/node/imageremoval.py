"""Removing images and what only they held: names, records, then blobs here and layers at hostd."""

from __future__ import annotations

import asyncio
import sqlite3

from casemate.hostd.client import ask
from casemate.hostd.protocol import Done, LayerRemove
from casemate.image import garbage
from casemate.node import audit, events, imagestore
from casemate.node.core import Caller, Core, report
from casemate.node.errors import ImageInUse
from casemate.node.images import hostd_layers
from casemate.spec.api import Removed
from casemate.spec.errors import CasemateError
from casemate.spec.ids import digest_hex
from casemate.spec.reference import ReferenceInvalid, parse_reference


async def remove(core: Core, text: str, caller: Caller, *, force: bool) -> Removed:
    """Take a name away, and with the last name the image; by id, all names (with *force*, or when it has one)."""

    def work(db: sqlite3.Connection) -> tuple[tuple[str, ...], tuple[str, ...]]:
        row = imagestore.find(db, text)
        names = imagestore.names_of(db, row.manifest_digest)
        name = _as_name(text)
        users = db.execute("SELECT name FROM containers WHERE image_digest=?", (row.manifest_digest,)).fetchall()
        by_name = name in names
        goes = (not by_name and (force or len(names) <= 1)) or (by_name and len(names) == 1)
        if not by_name and not goes:
            raise ImageInUse(
                f"image {row.config_digest[7:19]} has {len(names)} names: {', '.join(names[:5])}",
                remedy="Remove the names one by one, or all with --force.",
            )
        if goes and users and not force:
            raise ImageInUse(f"image {text} is used by container {users[0][0]}", container=users[0][0])
        untagged = (name,) if by_name and name else names
        for gone in untagged:
            db.execute("DELETE FROM image_names WHERE name=?", (gone,))
        at = core.clock()
        # An image with containers stays, without a name, until they are gone: their layers are mounted.
        removed: tuple[str, ...] = ()
        if goes and not users:
            db.execute("DELETE FROM images WHERE manifest_digest=?", (row.manifest_digest,))
            removed = (row.config_digest,)
        events.add(db, at, "image", row.config_digest, "remove" if removed else "untag", name=text)
        audit.append(
            db, at, caller.who, "image.remove", row.config_digest, untagged=list(untagged), removed=bool(removed)
        )
        return untagged, removed

    untagged, removed = await core.db.write(work)
    core.events.wake()
    freed = await collect(core) if removed else 0
    return Removed(removed, untagged, freed)


async def prune(core: Core, caller: Caller, *, everything: bool, dry_run: bool = False) -> Removed:
    """Remove images without a name (with *everything* named ones too) that no container uses."""

    def work(db: sqlite3.Connection) -> tuple[tuple[str, ...], tuple[str, ...], int]:
        used = {digest for (digest,) in db.execute("SELECT DISTINCT image_digest FROM containers")}
        removed: list[str] = []
        untagged: list[str] = []
        size = 0
        for row, names in imagestore.all_images(db):
            if row.manifest_digest in used or (names and not everything):
                continue
            removed.append(row.config_digest)
            untagged += names
            size += row.the_record().size_bytes
            if not dry_run:
                db.execute("DELETE FROM images WHERE manifest_digest=?", (row.manifest_digest,))
        if removed and not dry_run:
            audit.append(db, core.clock(), caller.who, "image.prune", "", removed=removed)
        return tuple(removed), tuple(untagged), size

    removed, untagged, size = await (core.db.read(work) if dry_run else core.db.write(work))
    freed = size if dry_run else await collect(core)
    return Removed(removed, untagged, freed)


async def collect(core: Core) -> int:
    """Remove blobs, records and layers that no image needs; the bytes that were freed.

    Layers first at hostd: one that a container still uses is a Conflict there, and stays.
    """
    core.resolved.clear()
    reachable: set[str] = set()
    for row, _ in await core.db.read(imagestore.all_images):
        reachable |= row.the_record().digests()
    freed = await _layers(core, reachable)
    removals = await asyncio.to_thread(garbage.collect_garbage, core.images, reachable)
    await asyncio.to_thread(_drop_lists, core, removals)
    return freed + sum(removal.freed_bytes for removal in removals)


def _drop_lists(core: Core, removals: list[garbage.Removal]) -> None:
    """The package lists of layers whose records went."""
    from casemate.trust.packages.apply import CONTENTS_FOLDER, ContentsStore  # noqa: PLC0415 - and the scanner with it

    lists = ContentsStore(core.images.root / CONTENTS_FOLDER)
    for removal in removals:
        if removal.path.parent.name == "layers" and removal.path.suffix == ".json":
            lists.drop(f"sha256:{removal.path.stem}")


async def _layers(core: Core, reachable: set[str]) -> int:
    known = await asyncio.to_thread(_wanted_layers, core, reachable)
    wanted = set(known.values())
    query = "SELECT hex, diff_id, squashfs_bytes FROM layers"
    freed = 0
    for hex_, diff_id, size in await core.db.read(lambda db: db.execute(query).fetchall()):
        # Of a wanted layer only what it was converted to last; a container may still use what it was before.
        if hex_ in wanted or (diff_id in reachable and diff_id not in known):
            continue
        try:
            await ask(core.hostd, LayerRemove(hex_), Done)
        except CasemateError as error:
            if error.to_problem().get("status") not in (404, 409):
                report(f"layer {hex_[:12]} could not be removed")
            if error.to_problem().get("status") != 404:
                continue
        freed += size
        await core.db.write(lambda db, h=hex_: db.execute("DELETE FROM layers WHERE hex=?", (h,)))  # type: ignore[misc]
    return freed


def _wanted_layers(core: Core, reachable: set[str]) -> dict[str, str]:
    """diff_id to the squashfs name of each wanted layer (two layers may convert to the same bytes)."""
    found: dict[str, str] = {}
    for diff_id in reachable:
        try:
            record = core.images.layer_record(diff_id)
        except CasemateError:
            continue
        if record is not None:
            found[diff_id] = digest_hex(record.squashfs_digest)
    return found


async def remove_unknown_layers(core: Core, *, dry_run: bool) -> list[str]:
    """Remove layers that hostd has and no record names: left by a crash between adoption and record.

    While a job runs nothing is removed: what it has just handed over is not recorded yet.
    """
    if await asyncio.to_thread(lambda: any((core.images.root / "leases").iterdir())):
        return []
    known = await core.db.read(lambda db: {hex_ for (hex_,) in db.execute("SELECT hex FROM layers")})
    removed: list[str] = []
    for hex_ in sorted(await hostd_layers(core) - known):
        try:
            if not dry_run:
                await ask(core.hostd, LayerRemove(hex_), Done)
        except CasemateError:
            continue  # a container uses it
        removed.append(hex_)
    return removed


def _as_name(text: str) -> str:
    try:
        reference = parse_reference(text)
    except ReferenceInvalid:
        return ""
    return str(reference) if reference.digest is None else ""
