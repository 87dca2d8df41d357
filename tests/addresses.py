"""Addresses and ports of the machine that the tests run on."""

from __future__ import annotations

import contextlib
import random
import socket

import pytest


def free_port() -> int:
    """One that no outgoing connection takes in the meantime: below those that the kernel gives out."""
    for port in random.sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
    raise AssertionError("of 100 ports none is free")


def host_address() -> str:
    """The host's own address, as others on its network know it."""
    with socket.socket(type=socket.SOCK_DGRAM) as one:
        try:
            one.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("missing: a route to other networks")
        return str(one.getsockname()[0])
