"""What makes a machine itself: the fields of CONFIGURE."""

from __future__ import annotations

import secrets
import time

from casemate.isolation.microvm import frames
from casemate.isolation.microvm.frames import Field, Tag
from casemate.isolation.microvm.tap import GuestNetwork

SEED_BYTES = 64
_NO_CARD, _REHEARSE = 128, 2048  # wire.h, FLAG_NO_CARD, FLAG_REHEARSE


def fields(hostname: str, network: GuestNetwork | None, *, card: bool = True, rehearse: bool = False) -> list[Field]:
    """The rehearsal begins first, beside all that follows. Then randomness: nothing of the user's has run, and nothing
    before this drew any that it keeps."""
    return [
        frames.u32(Tag.FLAGS, (0 if card else _NO_CARD) | (_REHEARSE if rehearse else 0)),
        Field(Tag.SEED, secrets.token_bytes(SEED_BYTES)),
        frames.u64(Tag.CLOCK, time.time_ns()),
        frames.text(Tag.HOSTNAME, (hostname or "casemate")[:64]),
        *(network.fields() if network is not None else ()),
    ]
