"""``trust why``: each step that lets something run or keeps it from running, with its evidence."""

from __future__ import annotations

import sqlite3

import msgspec

from casemate.image.errors import ImageNotFound
from casemate.node import freshness, imagestore, lookup, pods
from casemate.node.core import Core
from casemate.node.errors import ContainerNotFound
from casemate.node.rows import ContainerRow
from casemate.node.trust.admission import consider, origin
from casemate.node.trust.vouching import said, with_word
from casemate.spec.api import Admission, AdmissionStep
from casemate.spec.api.trust import TrustWhy
from casemate.spec.errors import CasemateError
from casemate.spec.workload import Level
from casemate.trust.admission import Candidate
from casemate.trust.rules.decide import repository_of


async def why(core: Core, name: str, project: str) -> TrustWhy:
    """Of the container *name*, else of the image of that name. Nothing is changed by asking."""
    try:
        row, level = await core.db.read(lambda db: _container(db, name, project))
    except ContainerNotFound:
        return await _image(core, name, project)
    then = msgspec.json.decode(row.admission, type=Admission)
    try:
        found = await core.db.read(lambda db: imagestore.find(db, row.image_digest))
    except ImageNotFound:
        gone = Admission("refuse", "its image was removed, so that it cannot be judged", digest=row.image_digest)
        return TrustWhy("container", row.name, row.image, row.image_digest, then.repository, gone, then, level)
    now = await consider(core, found, Candidate(row.image_digest, row.image, project, level))
    now = with_word(core, now, await said(core, row.image, found), row.image)
    repository = now.repository or await _repository(core, found, row.image)
    return TrustWhy("container", row.name, row.image, row.image_digest, repository, now, then, level)


def _container(db: sqlite3.Connection, name: str, project: str) -> tuple[ContainerRow, Level]:
    row = lookup.container(db, name, project)
    return row, pods.of(db, row).the_spec().level


async def _image(core: Core, name: str, project: str) -> TrustWhy:
    try:
        found = await core.db.read(lambda db: imagestore.find(db, name))
    except ImageNotFound as error:
        raise ImageNotFound(
            f"neither a container nor an image here is called {name[:200]!r}", remedy=error.instance_remedy
        ) from error
    now = await consider(core, found, Candidate(found.manifest_digest, name, project, "namespace"))
    try:
        now = msgspec.structs.replace(now, steps=(*await freshness.check(core, name, found), *now.steps))
    except CasemateError as error:
        step = AdmissionStep("publisher", "refuse", str(error.detail)[:600])
        now = msgspec.structs.replace(now, answer="refuse", reason=step.evidence, steps=(step, *now.steps))
    repository = now.repository or await _repository(core, found, name)
    return TrustWhy("image", name, name, found.manifest_digest, repository, now)


async def _repository(core: Core, row: imagestore.ImageRow, text: str) -> str:
    try:
        return repository_of(await core.db.read(lambda db: origin(db, row, text)))
    except CasemateError:
        return ""
