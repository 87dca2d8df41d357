"""Walls: the proof that rules leave no path across, or the paths."""

from __future__ import annotations

from casemate.spec.workload import Value


class WallCount(Value, frozen=True):
    """A member of a wall, and how many identities are in it."""

    name: str
    identities: int


class WallProof(Value, frozen=True):
    """What was looked at for one wall, and found.

    *paths* lead through workloads of this node alone, *outside* through addresses that are no pod's: each the
    shortest between two members. *guarded* may reach several members, and their history holds each of their
    workloads to one. *hours*: different sets of rules that a week's hours make, each looked at; *whole* is false where
    they were too many, and then nothing is proved.
    """

    wall: str
    members: tuple[WallCount, ...] = ()
    guarded: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    identities: int = 0
    rules: int = 0
    hours: int = 1
    whole: bool = True


class WallCheck(Value, frozen=True):
    """*closed*: no path through workloads is left across any of them."""

    walls: tuple[WallProof, ...]
    closed: bool
