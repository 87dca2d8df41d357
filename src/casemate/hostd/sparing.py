"""Programs at pods' interfaces that spare plain packets the firewall's guard, brought there one after another.

To bring one the kernel holds its one lock for links for 10 to 20 ms, in which no other pod gets a link. So a pod gets
its program when it has been there for a while, and there is a pause between two; until then, and where one cannot be
brought, the guard looks at every packet. A program stays when hostd ends, and goes with its interface. Before a pod's
elements are taken out of the guard, one that says nothing is put in the program's place, which takes 0.1 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field

from casemate.host import bpf
from casemate.network.firewall import sparing

log = logging.getLogger("casemate.hostd")

#: How long a pod has been there before its interface gets a program, and the pause after each.
AGE_S, PAUSE_S = 10.0, 0.5


@dataclass(frozen=True, slots=True)
class Interface:
    """A pod's: by the kernel's number, with the one address (4 bytes) that it may send from."""

    index: int
    address: bytes


@dataclass(slots=True)
class Sparing:
    """*age_s*: see :data:`AGE_S`."""

    age_s: float = AGE_S
    #: Pods whose interfaces have their programs.
    spared: dict[str, Interface] = field(default_factory=dict)
    #: Those that are to get one, and when; the earliest first.
    _waiting: dict[str, tuple[float, Interface]] = field(default_factory=dict)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def adopt(self, pods: Iterable[tuple[str, Interface]]) -> None:
        """After a start: find out which of *pods* have their programs; the others get one, later."""
        found = list(pods)
        async with self._lock:
            have = await asyncio.to_thread(lambda: [_has(interface) for _, interface in found])
            for (pod, interface), there in zip(found, have, strict=True):
                if there:
                    self.spared[pod] = interface
                else:
                    self.expect(pod, interface)

    def expect(self, pod: str, interface: Interface) -> None:
        """The pod's elements are in the guard: its interface gets its program later."""
        if self.spared.get(pod) == interface:
            return
        self._waiting.pop(pod, None)
        self._waiting[pod] = time.monotonic() + self.age_s, interface
        self._wake.set()

    async def withdraw(self, pod: str) -> None:
        """The pod's elements are to go out of the guard: afterwards its packets are looked at again. To be called
        before."""
        async with self._lock:
            self._waiting.pop(pod, None)
            interface = self.spared.pop(pod, None)
            if interface is not None:
                await asyncio.to_thread(silence, interface)

    async def run(self) -> None:
        """For ever."""
        while True:
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            pod, (due, interface) = next(iter(self._waiting.items()))
            left_s = due - time.monotonic()
            if left_s > 0:
                await asyncio.sleep(left_s)
                continue
            await self._bring(pod, interface)
            await asyncio.sleep(PAUSE_S)

    async def _bring(self, pod: str, interface: Interface) -> None:
        async with self._lock:
            if self._waiting.get(pod, (0.0, None))[1] != interface:
                return
            del self._waiting[pod]
            try:
                await asyncio.to_thread(bring, interface)
            except OSError as error:
                log.info("the guard goes on looking at every packet of pod %s: %s", pod, error)
            else:
                self.spared[pod] = interface


def bring(interface: Interface) -> None:
    """Have the interface's program there, in the place of another of ours if there is one. Raises :class:`OSError`."""
    descriptor = bpf.load_ingress(sparing.name(interface.address), sparing.program(interface.address))
    try:
        with _ours(interface.index) as (_, before):
            bpf.attach_ingress(interface.index, descriptor, replace=before)
    finally:
        os.close(descriptor)


def _has(interface: Interface) -> bool:
    """Whether the interface has its own program. One of ours that is not (an earlier version's) says nothing from then
    on."""
    try:
        with _ours(interface.index) as (name, _):
            if name == sparing.name(interface.address):
                return True
        silence(interface)
    except OSError as error:
        log.info("interface %d: its programs were not looked at: %s", interface.index, error)
    return False


def silence(interface: Interface) -> None:
    """Put a program that says nothing in the place of ours, where the interface is still there."""
    try:
        descriptor = bpf.load_ingress(sparing.NOTHING, sparing.nothing())
        try:
            with _ours(interface.index) as (_, before):
                if before:
                    bpf.attach_ingress(interface.index, descriptor, replace=before)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.EINVAL):
            log.warning("interface %d keeps its program until it goes: %s", interface.index, error)


@contextlib.contextmanager
def _ours(index: int) -> Generator[tuple[str, int]]:
    """Name and descriptor of our program at an interface; nothing and 0: there is none."""
    for number, name in bpf.attached_ingress(index):
        if name.startswith(sparing.OURS):
            descriptor = bpf.by_number(number)
            try:
                yield name, descriptor
            finally:
                os.close(descriptor)
            return
    yield "", 0
