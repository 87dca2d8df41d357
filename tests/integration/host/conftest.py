"""Each test gets names of its own, and may leave nothing in the kernel."""

from tests.integration.leaks import scope

__all__ = ["scope"]
