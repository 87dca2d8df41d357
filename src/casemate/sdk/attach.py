"""An attached container or exec: frames in both directions, and how it ended."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import msgspec

from casemate.sdk.errors import ApiAway, ApiError
from casemate.sdk.websocket import WebSocket
from casemate.spec.api import Control

STDIN, STDOUT, STDERR, CONTROL = 0, 1, 2, 3
CHUNK_BYTES = 64 << 10


class Attached:
    """Use as a context; leaving it detaches, and the container goes on."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self.exit_code: int | None = None

    def read(self) -> tuple[int, bytes] | None:
        """(stream, data) of the next piece of output; None at the end, when :attr:`exit_code` is known."""
        while True:
            message = self._socket.receive()
            if message is None:
                return None
            if message[0] != CONTROL:
                return message[0], message[1:]
            control = msgspec.json.decode(message[1:], type=Control)
            if control.problem is not None:
                problem: dict[str, Any] = control.problem
                status = problem.get("status", 500)
                raise ApiError(problem, status if isinstance(status, int) else 500)
            if control.exit_code is not None:
                self.exit_code = control.exit_code
                return None

    def write(self, data: bytes) -> None:
        """Give *data* to standard input."""
        for start in range(0, len(data), CHUNK_BYTES):
            self._socket.send(bytes((STDIN,)) + data[start : start + CHUNK_BYTES])

    def end_input(self) -> None:
        self._socket.send(bytes((STDIN,)))

    def resize(self, rows: int, columns: int) -> None:
        self._socket.send(bytes((CONTROL,)) + msgspec.json.encode(Control(rows=rows, columns=columns)))

    def communicate(self, stdin: bytes | None = None) -> tuple[int, bytes, bytes]:
        """Feed *stdin*, read everything: exit code, standard output, standard error.

        Input is written first: for what fits the daemon's and the container's buffers. Larger exchanges use
        :meth:`write` and :meth:`read` from two threads.
        """
        if stdin is not None:
            self.write(stdin)
            self.end_input()
        out: dict[int, bytearray] = {STDOUT: bytearray(), STDERR: bytearray()}
        while (piece := self.read()) is not None:
            out.setdefault(piece[0], bytearray()).extend(piece[1])
        if self.exit_code is None:
            raise ApiAway("the connection ended before the process")
        return self.exit_code, bytes(out[STDOUT]), bytes(out[STDERR])

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
