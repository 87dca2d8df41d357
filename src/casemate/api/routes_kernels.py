"""Routes of guest kernels."""

from __future__ import annotations

import msgspec

from casemate.api.routes_images import accepted
from casemate.api.routing import Call, NoQuery, Row
from casemate.api.scopes import ADMINISTRATOR, SHARED
from casemate.api.uploads import uploaded_archive
from casemate.node import kernels
from casemate.spec import api as schema
from casemate.spec.api.kernels import KernelChoice, KernelRows


class InstallQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*source*: ``apt``, or ``body`` for a package file that is sent."""

    source: str = "apt"


async def listing(call: Call) -> object:
    return await kernels.listing(call.core)


async def install(call: Call) -> object:
    kernels.check_caller(call.caller)
    query: InstallQuery = call.query
    if query.source != "body":
        return accepted(await kernels.install(call.core, call.node.operations, None, call.caller))
    async with uploaded_archive(call) as path:
        return accepted(await kernels.install(call.core, call.node.operations, path, call.caller))


async def use(call: Call) -> object:
    body: KernelChoice = call.body
    return await kernels.use(call.core, body.version, call.caller)


async def remove(call: Call) -> object:
    return await kernels.remove(call.core, call.path["id"], call.caller)


ROWS = (
    Row("GET", "/v1/kernels", listing, "List guest kernels", NoQuery, answer=KernelRows, scope=SHARED),
    Row("POST", "/v1/kernels", install, "Install a guest kernel (apt's, or the body's package)", InstallQuery,
        answer=schema.Operation, status=202, errors=(403, 413, 429, 507),
        stream_body="application/vnd.debian.binary-package", scope=ADMINISTRATOR),
    Row("POST", "/v1/kernels/use", use, "Choose the guest kernel of new machines", NoQuery, body=KernelChoice,
        answer=KernelRows, errors=(403, 404), scope=ADMINISTRATOR),
    Row("DELETE", "/v1/kernels/{id}", remove, "Remove a guest kernel", NoQuery, answer=KernelRows, errors=(403, 404),
        scope=ADMINISTRATOR),
)  # fmt: skip
