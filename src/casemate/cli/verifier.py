"""``casemate-image-verifier``: containerd's image verifier, answered by casemated's trust policy and publishers.

containerd runs every program in the ``bin_dir`` of its plugin ``io.containerd.image-verifier.v1.bindir`` before it
pulls: ``-name NAME -digest DIGEST -stdin-media-type TYPE``, the descriptor on standard input. Exit code 0 lets the
image in, any other keeps it out; standard output is the reason, of which 32 KiB are read. With ``verify_on_run`` (newer
than 2.0) it asks before a container is made, too: ``-operation pull|run``, and the descriptor stands in a wrapper of
its own media type. (containerd docs/image-verification.md and pkg/imageverifier, 1.7 and 2.x.)

It fails closed: no daemon, no policy, no rule, an answer that is not understood, too little time: the image stays out.
"""

from __future__ import annotations

import signal

from casemate.cli.variables import default_host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

#: containerd gives a verifier 10 s by default, and calls one that takes longer a refusal without a reason.
TIMEOUT_S = 9
#: A descriptor has some 300 bytes; annotations may make it some KiB.
MAX_STDIN_BYTES = 1 << 20
MAX_REASON = 2000
DESCRIPTOR = "application/vnd.oci.descriptor.v1+json"
#: The descriptor under ``descriptor``, beside what a caller said of its pod, which proves nothing.
WRAPPED = "application/vnd.containerd.image-verifier.input.v1+json"
OPERATIONS = ("pull", "run")
ADMITTED = ("verified", "not_asked")


class Refused(Exception):
    """The image stays out; the text says why."""


def main(argv: list[str]) -> int:
    """The exit code: 0 lets the image in, 1 keeps it out."""
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(TIMEOUT_S)
    try:
        reason = judge(argv, _stdin())
        code = 0
    except Refused as refusal:
        reason, code = str(refusal), 1
    except BaseException as error:  # whatever it is: what was not verified stays out
        reason, code = f"casemate could not judge the image: {type(error).__name__}: {error}", 1
    _say(reason)
    return code


def _late(_number: int, _frame: FrameType | None) -> None:
    raise Refused(f"casemated did not answer within {TIMEOUT_S} s")


def _stdin() -> bytes:
    import posix

    data = b""
    while len(data) <= MAX_STDIN_BYTES and (more := posix.read(0, 1 << 16)):
        data += more
    return data


def _say(reason: str) -> None:
    import posix

    from casemate.cli.show.plain import clean

    posix.write(1, (clean(reason)[:MAX_REASON] + "\n").encode("utf-8", "replace"))


def arguments(argv: list[str]) -> dict[str, str]:
    """Go's flags: ``-name VALUE``, ``-name=VALUE``, with one dash or two. What is not known is refused."""
    found: dict[str, str] = {}
    words = list(argv)
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not name.startswith("-"):
            raise Refused(f"{name[:60]!r} is no flag")
        if not equals:
            if not words:
                raise Refused(f"{name[:60]} has no value")
            value = words.pop(0)
        key = name.lstrip("-")
        if key not in ("name", "digest", "stdin-media-type", "operation") or key in found:
            raise Refused(f"{name[:60]} is not known, or stands twice")
        if key == "operation" and value not in OPERATIONS:
            raise Refused(f"-operation {value[:60]!r} is none of {', '.join(OPERATIONS)}")
        found[key] = value
    return found


def judge(argv: list[str], stdin: bytes) -> str:
    """Why the image may come in; raises :class:`Refused` with why it may not."""
    given = arguments(argv)
    name, digest = given.get("name", ""), given.get("digest", "")
    if not name or not digest:
        raise Refused("-name and -digest are wanted")
    _check_descriptor(given.get("stdin-media-type", ""), digest, stdin)

    from casemate.cli.wire.client import Client, object_of, text_of
    from casemate.spec.reference import parse_reference

    reference = parse_reference(name)
    if reference.digest is not None and reference.digest != digest:
        raise Refused(f"{name[:200]} names {reference.digest}, and {digest[:80]} is to be pulled")
    client = Client(default_host(), "default")
    try:
        if reference.tag is not None and reference.digest is None:
            meaning = object_of(client.get("/v1/trust/tag", [("ref", str(reference))]))
            if meaning.get("publisher") and meaning.get("digest") != digest:
                signed = f"its publisher {meaning['publisher']} signed {meaning.get('digest')}"
                raise Refused(f"{reference.familiar} is {digest}; {signed}")
        request = {"reference": f"{reference.registry}/{reference.repository}@{digest}", "policy": True}
        answer = object_of(client.post("/v1/trust/verify", request))
    finally:
        client.close()
    if answer.get("digest") != digest:
        raise Refused(f"casemated answers for {answer.get('digest')!s:.80}, not for {digest[:80]}")
    outcome, detail = text_of(answer, "outcome"), text_of(answer, "detail")
    if outcome not in ADMITTED:
        raise Refused(f"{outcome}: {detail}")
    return detail


def _check_descriptor(kind: str, digest: str, stdin: bytes) -> None:
    """The descriptor on standard input must be of the digest that the flag names."""
    if kind not in ("", DESCRIPTOR, WRAPPED):
        raise Refused(f"standard input is called {kind[:80]!r}; {DESCRIPTOR} and {WRAPPED} are read")
    if len(stdin) > MAX_STDIN_BYTES:
        raise Refused(f"the descriptor has more than {MAX_STDIN_BYTES} bytes")
    if not kind and not stdin:
        return
    from casemate.cli.wire import json

    descriptor = json.loads(stdin)
    if kind == WRAPPED:
        descriptor = descriptor.get("descriptor") if isinstance(descriptor, dict) else None
    if not isinstance(descriptor, dict) or descriptor.get("digest") != digest:
        raise Refused(f"the descriptor on standard input is not of {digest[:80]}")
