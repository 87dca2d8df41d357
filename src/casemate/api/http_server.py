"""uvicorn without its command line, which its package imports: click and multiprocessing, 2 MiB that no daemon uses.

``uvicorn/__init__.py`` takes ``Server``, ``main`` and ``run`` from ``uvicorn.main``. While it is imported here, a
placeholder stands in that module's place and answers with the ``Server`` of ``uvicorn.server``; then it goes, so that
whoever asks for the command line later gets the real one (decision 0162).
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_COMMAND_LINE = "uvicorn.main"


class _Placeholder(ModuleType):
    """In the place of ``uvicorn.main``: a ``Server``, and no functions."""

    main = run = None

    def __getattr__(self, name: str) -> object:
        # Only here: uvicorn.server needs uvicorn.config, which the package imports first.
        return getattr(importlib.import_module("uvicorn.server"), name)


def _import_package() -> None:
    if "uvicorn" in sys.modules:
        return
    sys.modules[_COMMAND_LINE] = _Placeholder(_COMMAND_LINE)
    try:
        importlib.import_module("uvicorn")
    finally:
        del sys.modules[_COMMAND_LINE]


_import_package()

from uvicorn.config import Config  # noqa: E402
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: E402
from uvicorn.server import Server  # noqa: E402

__all__ = ["Config", "HttpToolsProtocol", "Server"]
