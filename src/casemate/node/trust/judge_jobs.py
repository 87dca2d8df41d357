"""What casemated asks of the child that judges, and what it answers. Pure.

A message is four bytes length (big endian) and JSON; one answer, or one Failure, to each job.
"""

from __future__ import annotations

import msgspec

from casemate.image.jobs import Failure
from casemate.node.trust.documents import Named
from casemate.trust.admission import Candidate
from casemate.trust.rules.decide import Decision
from casemate.trust.rules.model import TrustPolicy
from casemate.trust.signature.verify import Evidence

#: 1,000 images with their signatures; policies of 1,000 rules.
MAX_MESSAGE_BYTES = 64 << 20
#: Images judged by one message.
MAX_SUBJECTS = 500


class Subject(msgspec.Struct, frozen=True):
    """What is to be judged. *layers*: diff_ids from the lowest on; *key*: returns with the answer."""

    key: str
    candidate: Candidate
    layers: tuple[str, ...]
    evidence: Evidence | None = None


class JudgeJob(msgspec.Struct, frozen=True, tag="judge", kw_only=True):
    """Decide about each of *subjects* by *policy*, on the day *today*."""

    state: str
    policy: TrustPolicy
    subjects: tuple[Subject, ...]
    today: str


class ReadJob(msgspec.Struct, frozen=True, tag="read", kw_only=True):
    """Read the documents in *text*, and check them together with *others* (those of a name in *text* are replaced)."""

    text: str
    origin: str
    today: str
    others: tuple[Named, ...] = ()


class TestJob(msgspec.Struct, frozen=True, tag="test", kw_only=True):
    """Run the cases in *text* against *policy*."""

    __test__ = False

    policy: TrustPolicy
    text: str
    origin: str
    today: str


Job = JudgeJob | ReadJob | TestJob


class Knowledge(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a decision was based on, in few words. *missing*: the layer whose package list is not there."""

    packages: int = 0
    counts: dict[str, int] = {}
    distribution: str = ""
    feeds: tuple[str, ...] = ()
    missing: str = ""


class Judged(msgspec.Struct, frozen=True):
    key: str
    decision: Decision
    knowledge: Knowledge = Knowledge()


class Judgements(msgspec.Struct, frozen=True, tag="judgements"):
    rows: tuple[Judged, ...]


class Policies(msgspec.Struct, frozen=True, tag="policies"):
    """*fresh*: the documents that were read; *whole*: with the others, as one policy."""

    fresh: tuple[Named, ...]
    whole: TrustPolicy


class Tested(msgspec.Struct, frozen=True):
    """One case. *lacks*: what came out otherwise than expected, a line each; none: it passed."""

    name: str
    lacks: tuple[str, ...]
    decision: Decision


class Tests(msgspec.Struct, frozen=True, tag="tests"):
    rows: tuple[Tested, ...]


Answer = Judgements | Policies | Tests | Failure

JOBS: msgspec.json.Decoder[Job] = msgspec.json.Decoder(Job)
ANSWERS: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)
