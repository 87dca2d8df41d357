"""The child that decodes a large policy text: standard input to JSON on standard output, within limits."""

from __future__ import annotations

import gc
import resource
import sys

import msgspec

from casemate.policy.source import load_documents
from casemate.spec.errors import CasemateError

#: Four million values of Python take about 1 GB.
MEMORY_BYTES = 2 << 30
CPU_S = 50


def main(origin: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    # Nothing of it is in a cycle, and the collector would take as long as the reading.
    gc.disable()
    data = sys.stdin.buffer.read()
    try:
        answer: dict[str, object] = {"documents": load_documents(data, origin)}
    except CasemateError as error:
        answer = {"problem": error.to_problem()}
    sys.stdout.buffer.write(msgspec.json.encode(answer))
