"""What the node holds in memory of trust: the policy in force, the children that judge, and who is told of a change."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from casemate.node.warm import Warm

if TYPE_CHECKING:
    from casemate.node.database import Database
    from casemate.trust.rules.model import TrustPolicy

#: As :data:`casemate.node.trust.judge_jobs.MAX_MESSAGE_BYTES`, which is not loaded before there is a policy.
MAX_MESSAGE_BYTES = 64 << 20


class TrustState:
    """*policy* None: no document was ever applied, and everything is admitted."""

    def __init__(self) -> None:
        module = "casemate.node.trust.judge_child"
        self.policy: TrustPolicy | None = None
        #: For the start of a container, which somebody waits for; and for all that run.
        self.judge = Warm(module, MAX_MESSAGE_BYTES)
        self.batch = Warm(module, MAX_MESSAGE_BYTES)
        #: Policy, keys, feeds or the day changed: everything in use is to be judged anew.
        self.changed = asyncio.Event()
        self.reason = ""

    def change(self, reason: str) -> None:
        """Have all images in use judged anew."""
        self.reason = reason
        self.changed.set()

    async def fetched_again(self, db: Database, digest: str, what: str) -> None:
        """What vouches for the image *digest* was fetched: judge anew what runs, if a container was made from it."""
        if self.policy is None:
            return
        query = "SELECT 1 FROM containers WHERE image_digest=? LIMIT 1"
        if await db.read(lambda at: at.execute(query, (digest,)).fetchone()) is not None:
            self.change(f"{what} was fetched again")

    async def close(self) -> None:
        await self.judge.close()
        await self.batch.close()
