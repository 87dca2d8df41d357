from __future__ import annotations

from tests.integration.leaks import scope

__all__ = ["scope"]
