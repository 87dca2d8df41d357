"""nftables through libnftables, in process, loaded when first needed.

Measured (decision 0022): 0.19 ms for an element against 3.6 ms with the `nft` program; the library costs 4 MiB.
One call is one transaction: all of it holds afterwards, or nothing. Everything here runs on the loop's thread, which a
change blocks for that long.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import socket
import struct
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from casemate.host.nft_events import TableEvents
from casemate.spec.errors import CasemateError, HostLacks, InvalidArgument

_JSON_OUTPUT = 1 << 4
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_-]{0,30}\Z")
#: NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN
_GETGEN = 10 << 8 | 16
#: Of ours between somebody's change and the look at it; more are as if nobody knew of them.
_MAX_OWN = 4096
_ASK_GENERATION = struct.pack("=IHHII", 20, _GETGEN, 1, 1, 0) + bytes(4)


class NftFailed(CasemateError):
    code = "host.nft_failed"
    title = "The kernel refused a change of the firewall"
    remedy = "`casemate system doctor` checks the table; `nft list ruleset` shows all of it."


class NftMissing(HostLacks):
    code = "host.nft_missing"
    title = "nftables is not to be had"
    remedy = "Install it: `apt-get install nftables` (libnftables.so.1), on a kernel with CONFIG_NF_TABLES."


def check_table_name(name: str) -> str:
    """*name*, when it may stand in a script as it is."""
    if not _NAME.match(name):
        raise InvalidArgument(f"nftables table {name[:80]!r} is not 1 to 31 of [a-zA-Z0-9_-], the first a letter")
    return name


class Nft:
    """libnftables, with a context for each transaction.

    A context keeps what it read of the host's tables, all of them and not ours alone: 10 MiB for 20 tables. It reads
    them anew after each transaction (6 ms there), so that one kept spares 0.2 ms.
    """

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL("libnftables.so.1")
        except OSError as error:
            raise NftMissing(f"libnftables.so.1: {error}") from error
        library.nft_ctx_new.restype = ctypes.c_void_p
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).restype = ctypes.c_char_p
        self._library = library
        with self._context():
            pass

    @contextlib.contextmanager
    def _context(self) -> Generator[ctypes.c_void_p]:
        library = self._library
        context = ctypes.c_void_p(library.nft_ctx_new(0))
        if not context:
            raise NftMissing("nft_ctx_new failed")
        try:
            library.nft_ctx_output_set_flags(context, _JSON_OUTPUT)
            library.nft_ctx_buffer_output(context)
            library.nft_ctx_buffer_error(context)
            yield context
        finally:
            library.nft_ctx_free(context)

    def run(self, script: str) -> str:
        """Run nft(8) *script* as one transaction; its (JSON) output. Raises :class:`NftFailed`."""
        with self._context() as context:
            result = self._library.nft_run_cmd_from_buffer(context, script.encode())
            output = (self._library.nft_ctx_get_output_buffer(context) or b"").decode("utf-8", "replace")
            error = (self._library.nft_ctx_get_error_buffer(context) or b"").decode("utf-8", "replace")
        if result != 0:
            words = error.strip().splitlines()
            raise NftFailed(words[0][:500] if words else "no reason was given", words=error[:2000])
        return output

    def apply(self, commands: Sequence[Mapping[str, Any]]) -> None:
        """Run libnftables-json(5) *commands* as one transaction."""
        self.run(json.dumps({"nftables": list(commands)}, separators=(",", ":")))

    def table(self, family: str, name: str) -> list[dict[str, Any]] | None:
        """The objects of a table, each as a one-key mapping (chain, rule, map, ...); None when it is not there."""
        try:
            return self._list(f"list table {family} {check_table_name(name)}")
        except NftFailed as error:
            if "No such file" in str(error):
                return None
            raise

    def tables(self) -> list[tuple[str, str]]:
        """(family, name) of every table."""
        rows = self._list("list tables")
        return [(row["table"]["family"], row["table"]["name"]) for row in rows if "table" in row]

    def delete_table(self, family: str, name: str) -> bool:
        """Delete a table with all in it; False when it was not there."""
        if (family, name) not in self.tables():
            return False
        self.run(f"delete table {family} {check_table_name(name)}")
        return True

    def _list(self, command: str) -> list[dict[str, Any]]:
        document = json.loads(self.run(command) or '{"nftables":[]}')
        return [row for row in document["nftables"] if "metainfo" not in row]


def add_elements(table: str, name: str, elements: Sequence[object]) -> dict[str, Any]:
    """The command that adds *elements* to the set or map *name* of ``ip`` *table*."""
    return {"add": {"element": {"family": "ip", "table": table, "name": name, "elem": list(elements)}}}


def delete_elements(table: str, name: str, elements: Sequence[object]) -> dict[str, Any]:
    """The command that deletes *elements*; the transaction fails when one is not there."""
    return {"delete": {"element": {"family": "ip", "table": table, "name": name, "elem": list(elements)}}}


class Generations:
    """Asks for the ruleset's generation, in the network namespace that the first question is put in. 14 us.

    The socket is kept: closing one waits until the kernel has freed what the last transaction took out, 3 to 8 ms.
    """

    def __init__(self) -> None:
        self._number = -1

    def close(self) -> None:
        number, self._number = self._number, -1
        if number >= 0:
            os.close(number)

    def __del__(self) -> None:
        self.close()

    def now(self) -> int:
        """It grows with each transaction of anybody's; a listing would take ms."""
        if self._number < 0:
            self._number = _generation_socket()
        os.write(self._number, _ASK_GENERATION)
        return _generation_of(os.read(self._number, 4096))


def _generation_socket() -> int:
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 2, 0))
    return connection.detach()


def generation() -> int:
    """The ruleset's generation, by a socket of its own; see :class:`Generations`."""
    asked = Generations()
    try:
        return asked.now()
    finally:
        asked.close()


def _generation_of(data: bytes) -> int:
    kind = struct.unpack_from("=H", data, 4)[0]
    if kind == 2:  # NLMSG_ERROR
        number = -struct.unpack_from("=i", data, 16)[0]
        raise NftMissing(f"the kernel's nftables: {os.strerror(number)}")
    offset = 20
    while offset + 4 <= len(data):
        size, attribute = struct.unpack_from("=HH", data, offset)
        if attribute == 1 and size == 8:
            value: int = struct.unpack_from("!I", data, offset + 4)[0]
            return value
        offset += max((size + 3) & ~3, 4)
    raise NftMissing("the kernel did not tell the ruleset's generation")


class Followed:
    """The ruleset's generation at which all was well; our own transactions, and nobody else's, move it on."""

    def __init__(self) -> None:
        self.at = -1
        self._generations = Generations()
        self._events: TableEvents | None = None
        #: Our own generations after one of somebody else's.
        self._own: set[int] = set()

    def close(self) -> None:
        self._generations.close()
        if self._events is not None:
            self._events.close()
            self._events = None

    def listen(self, table: str, family: int) -> None:
        """Have :meth:`touched` know who changes *table*; where the kernel does not let us it knows nothing."""
        if self._events is None:
            with contextlib.suppress(OSError):
                self._events = TableEvents(table, family)

    def touched(self) -> bool | None:
        """Whether somebody else has changed anything of the table since :attr:`at`; None: nobody knows.

        To be asked before :attr:`at` is moved on. A generation of which no notification came (it fell into a change of
        ours, or there were too many) may have been anything.
        """
        own, self._own = self._own, set()
        if self._events is None:
            return None
        seen = self._events.take()
        if seen.touched:
            return True
        now = self.now()
        known = {one for one in seen.generations | own if self.at < one <= now}
        return None if seen.lost or len(known) != now - self.at else False

    def now(self) -> int:
        """The generation at this moment."""
        return self._generations.now()

    def is_now(self) -> bool:
        """Whether nobody else has changed any rule since; 20 us."""
        return self.now() == self.at

    @contextlib.contextmanager
    def own_change(self) -> Generator[None]:
        """Around one transaction of ours."""
        before = self.now()
        if self._events is not None:
            self._events.mute()
        try:
            yield
        finally:
            if self._events is not None:
                self._events.unmute()
        after = self.now()
        # Two steps: somebody else's came in between, and has to be looked at.
        if before == self.at and after - before in (0, 1):
            self.at = after
        elif after - before == 1 and len(self._own) < _MAX_OWN:
            self._own.add(after)
