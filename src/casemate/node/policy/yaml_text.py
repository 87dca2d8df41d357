"""Documents as YAML. A module of its own because PyYAML takes 1 MiB: it is imported when somebody wants to see one."""

from __future__ import annotations

from typing import Any

import yaml

#: libyaml's, where PyYAML was built with it: the same text in a fifteenth of the time (thousands of documents at once).
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Plain(_Dumper):  # type: ignore[misc]
    """Without anchors: what stands twice is written twice, as documents are read."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's hook
        return True


def dumped(value: object) -> str:
    """*value* as YAML, keys in the order in which they were written."""
    return yaml.dump(value, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=100)
