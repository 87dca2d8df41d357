"""What every command works with: where the daemon is, how to answer, and the one client."""

from __future__ import annotations

import posix

from casemate.cli.variables import default_host, environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.flags import Arguments
    from casemate.cli.wire.client import Client


_ID_DIGITS = 64


class Context:
    __slots__ = ("_client", "host", "json", "project")

    def __init__(self, host: str, project: str, json: bool) -> None:
        self.host = host
        self.project = project
        #: Answer with the API's own values instead of text.
        self.json = json
        self._client: Client | None = None

    @staticmethod
    def of(arguments: Arguments, leading: Arguments | None) -> Context:
        """From the flags behind the command, else those before it, else the environment."""

        def text(name: str) -> str | None:
            return arguments.text(name) or (leading.text(name) if leading else None)

        as_json = arguments.on("json") or (leading is not None and leading.on("json"))
        return Context(
            text("host") or default_host(), text("project") or environment("CASEMATE_PROJECT") or "default", as_json
        )

    @property
    def client(self) -> Client:
        """The client of the API; connects with its first request."""
        if self._client is None:
            self._client = self.new_client()
        return self._client

    def of_project(self) -> list[tuple[str, str]]:
        """The project as a filter of what else shows every project's; without --project nothing is left out."""
        return [("project", self.project)] if self.project != "default" else []

    def new_client(self) -> Client:
        """A second client: for what must be said while the first connection carries a stream."""
        from casemate.cli.wire.client import Client

        return Client(self.host, self.project)

    def tell_of_wait(self, reference: str, level: str = "") -> None:
        """From here on say so when the answer to the start of a container takes its time."""
        from casemate.cli.show.plain import clean

        name = clean(reference[:12] if len(reference) == _ID_DIGITS else reference)
        more = "; the first micro-VM of a size makes its template first" if level == "microvm" else ""
        self.client.on_wait = lambda: self.note(f"casemate: {name} is still being started{more}\n")

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def write(self, text: str) -> None:
        """*text* to standard output, whole; raises BrokenPipeError when nobody reads."""
        write_all(1, text.encode("utf-8", "surrogateescape"))

    def note(self, text: str) -> None:
        """*text* to standard error: what is said besides the answer."""
        write_all(2, text.encode("utf-8", "backslashreplace"))

    def answer(self, value: object) -> None:
        """*value* as JSON on standard output: indented for people, one line into a pipe is left to tools."""
        from casemate.cli.wire import json

        self.write(json.indented(value) + "\n")


def write_all(fd: int, data: bytes | memoryview) -> None:
    """All of *data* to *fd*, also where *fd* is non-blocking (a terminal shared with a program that left it so)."""
    view = memoryview(data)
    while view:
        try:
            view = view[posix.write(fd, view) :]
        except BlockingIOError:
            import select

            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
