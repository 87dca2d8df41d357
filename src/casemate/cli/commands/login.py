"""``login`` and ``logout``: credentials in Docker's config.json, where Docker, Podman and skopeo find them too."""

from __future__ import annotations

import posix

from casemate.cli.fail import usage
from casemate.cli.flags import Arguments, Command, switch, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context

DEFAULT_REGISTRY = "docker.io"
MAX_PASSWORD_BYTES = 64 << 10


def login(arguments: Arguments, context: Context) -> int:
    from casemate.cli.dockerconfig import keep

    registry = arguments.words[0] if arguments.words else DEFAULT_REGISTRY
    name = arguments.text("username") or _asked("Username: ")
    password = _password(arguments)
    if not name or not password:
        raise usage("user name and password may not be empty", path="login")
    place = keep(registry, name, password)
    if context.json:
        context.answer({"registry": registry, "stored_in": place})
    else:
        context.write(f"Credentials for {registry} are kept in {place} (not checked: the next pull does)\n")
    return 0


def _password(arguments: Arguments) -> str:
    if arguments.on("password-stdin"):
        data = b""
        while (more := posix.read(0, 4096)) and len(data) < MAX_PASSWORD_BYTES:
            data += more
        return data.decode("utf-8").rstrip("\r\n")
    given = arguments.text("password")
    if given is not None:
        return given
    if not posix.isatty(0):
        raise usage("no terminal to ask for the password", "Use --password-stdin.", "login")
    import getpass

    return getpass.getpass("Password: ")


def _asked(text: str) -> str:
    if not posix.isatty(0):
        raise usage("no terminal to ask for the user name", "Give --username.", "login")
    posix.write(2, text.encode())
    return posix.read(0, 4096).decode("utf-8").strip()


def logout(arguments: Arguments, context: Context) -> int:
    from casemate.cli.dockerconfig import forget

    registry = arguments.words[0] if arguments.words else DEFAULT_REGISTRY
    place = forget(registry)
    if context.json:
        context.answer({"registry": registry, "removed": place is not None})
    else:
        context.write(f"Removed the credentials for {registry}\n" if place else f"Not logged in to {registry}\n")
    return 0


LOGIN = Command(
    "[OPTIONS] [REGISTRY]",
    login,
    (
        value("username", "NAME", "User name", "u"),
        value("password", "PASSWORD", "Password; others may see it in `ps`", "p"),
        switch("password-stdin", "Read the password from standard input"),
    ),
    0,
    1,
    (),
    "",
    ("casemate login -u me --password-stdin registry.example < token",),
)
LOGOUT = Command("[REGISTRY]", logout, (), 0, 1)
