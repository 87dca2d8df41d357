"""YAML (and JSON, which is YAML) to plain values: the way in, without the parser.

PyYAML takes 1 MiB, and only documents that are given need it (what is in force is kept as JSON): it is imported with
the first, by :mod:`casemate.policy.yaml_values`, which also says what is refused.
"""

from __future__ import annotations

from typing import Any

from casemate.policy.errors import PolicyTooLarge

#: 100,000 rules as short as they can be are 12 MB.
MAX_BYTES = 32 * 1024 * 1024
MAX_SCALAR = 4096


def load_documents(data: bytes, origin: str, max_scalar: int = MAX_SCALAR) -> list[Any]:
    """Every document of *data* (UTF-8), empty ones left out: dict, list, str, int, float, bool, None.

    *max_scalar*: characters that one value may have.

    Raises :class:`PolicyInvalid` with *origin*, line and column, :class:`PolicyTooLarge` with the bound.
    """
    if len(data) > MAX_BYTES:
        raise PolicyTooLarge(f"{origin} has {len(data)} bytes, allowed are {MAX_BYTES}")
    from casemate.policy import yaml_values  # noqa: PLC0415 - above

    return yaml_values.read(data, origin, max_scalar)
