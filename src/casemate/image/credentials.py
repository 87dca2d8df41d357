"""Docker's and Podman's credential files and helpers. Light: the command line imports it lazily.

Sources: docker CLI reference, "config.json" (auths, credsStore, credHelpers); docker-credential-helpers' protocol;
containers-auth.json(5). Secrets are never put into a message.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess  # noqa: TID251 - the command line asks its own user's helper; no daemon does
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from casemate.image.errors import CredentialsInvalid
from casemate.image.jobs import Login

MAX_FILE_BYTES = 1 << 20
MAX_HELPER_BYTES = 64 << 10
HELPER_TIMEOUT_S = 30.0
DEFAULT_REGISTRY = "docker.io"
_DOCKER_NAMES = frozenset(("index.docker.io", "registry-1.docker.io", "registry.hub.docker.com", "docker.io"))
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
#: What helpers say for "I know nothing of this registry".
_UNKNOWN = "credentials not found"


@dataclass(frozen=True, slots=True)
class CredentialFile:
    """A parsed file: logins that stand in it, and which helper to ask for which registry."""

    logins: Mapping[str, Login]
    helpers: Mapping[str, str]
    store: str


def registry_of(key: str) -> str:
    """The registry that a key of the file means: a host, a URL, or (Podman) a host with a path."""
    host = key.removeprefix("https://").removeprefix("http://").partition("/")[0].lower()
    return DEFAULT_REGISTRY if host in _DOCKER_NAMES else host


def parse_config(data: bytes, name: str) -> CredentialFile:
    """The credential file *data* (*name* is for messages). Unknown members are passed over: the file is Docker's."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CredentialsInvalid(f"{name} is not JSON") from error
    if not isinstance(document, dict):
        raise CredentialsInvalid(f"{name} is not a JSON object")
    auths, helpers, store = document.get("auths", {}), document.get("credHelpers", {}), document.get("credsStore", "")
    if not isinstance(auths, dict) or not isinstance(helpers, dict) or not isinstance(store, str):
        raise CredentialsInvalid(f"{name}: auths, credHelpers or credsStore has the wrong type")
    logins: dict[str, Login] = {}
    for key, value in auths.items():
        login = _login(value, f"{name}: auths[{key[:80]!r}]")
        if login is not None:
            logins.setdefault(registry_of(key), login)
    for key, helper in (*helpers.items(), ("", store)):
        if helper and (not isinstance(helper, str) or not _HELPER.match(helper)):
            raise CredentialsInvalid(f"{name}: the helper for {key[:80]!r} has a name that is not allowed")
    return CredentialFile(logins, {registry_of(key): helper for key, helper in helpers.items()}, store)


def _login(value: object, where: str) -> Login | None:
    if not isinstance(value, dict):
        raise CredentialsInvalid(f"{where} is not an object")
    token = value.get("identitytoken") or ""
    username, password = value.get("username") or "", value.get("password") or ""
    encoded = value.get("auth") or ""
    if not all(isinstance(text, str) for text in (token, username, password, encoded)):
        raise CredentialsInvalid(f"{where} holds something that is no text")
    if encoded:
        try:
            username, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise CredentialsInvalid(f"{where}: auth is not base64 of NAME:PASSWORD") from error
        if not colon:
            raise CredentialsInvalid(f"{where}: auth is not base64 of NAME:PASSWORD")
        password = password.rstrip("\0")
    return Login(username, password, token) if username or token else None


def read_config(path: Path) -> CredentialFile | None:
    """The file at *path*, or None when there is none."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CredentialsInvalid(f"{path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise CredentialsInvalid(f"{path} has more than {MAX_FILE_BYTES} bytes")
    return parse_config(data, str(path))


def config_paths(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where credential files are looked for, first found wins for a registry: Docker's, then Podman's."""
    home = environment.get("HOME", "")
    found = [Path(environment["REGISTRY_AUTH_FILE"])] if environment.get("REGISTRY_AUTH_FILE") else []
    docker = environment.get("DOCKER_CONFIG") or (f"{home}/.docker" if home else "")
    found += [Path(docker) / "config.json"] if docker else []
    found += (
        [Path(environment["XDG_RUNTIME_DIR"]) / "containers/auth.json"] if environment.get("XDG_RUNTIME_DIR") else []
    )
    found += [Path(home) / ".config/containers/auth.json"] if home else []
    return tuple(found)


def run_helper(helper: str, server: str) -> Login | None:
    """Ask ``docker-credential-HELPER get`` for *server*; None when it knows nothing."""
    program = f"docker-credential-{helper}"
    if not _HELPER.match(helper):
        raise CredentialsInvalid(f"helper {helper[:80]!r} has a name that is not allowed")
    try:
        done = subprocess.run(
            [program, "get"], input=server.encode(), capture_output=True, timeout=HELPER_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise CredentialsInvalid(f"the program {program} is not installed") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CredentialsInvalid(f"{program} for {server} did not answer: {type(error).__name__}") from error
    output = done.stdout[:MAX_HELPER_BYTES]
    if done.returncode != 0:
        if _UNKNOWN in output.decode(errors="replace").lower():
            return None
        raise CredentialsInvalid(f"{program} for {server} ended with {done.returncode}")
    try:
        document = json.loads(output)
        username, secret = document["Username"], document["Secret"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CredentialsInvalid(f"{program} for {server} answers something that is no credential") from error
    if not isinstance(username, str) or not isinstance(secret, str):
        raise CredentialsInvalid(f"{program} for {server} answers something that is no credential")
    return Login(identity_token=secret) if username == "<token>" else Login(username, secret)


def login_for(
    registry: str,
    environment: Mapping[str, str] | None = None,
    ask: Callable[[str, str], Login | None] = run_helper,
) -> Login | None:
    """The caller's login for *registry* (``host[:port]``): its own helper, the default helper, the file itself."""
    registry = registry_of(registry)
    server = "https://index.docker.io/v1/" if registry == DEFAULT_REGISTRY else registry
    for path in config_paths(os.environ if environment is None else environment):
        found = read_config(path)
        if found is None:
            continue
        helper = found.helpers.get(registry) or found.store
        login = ask(helper, server) if helper else None
        login = login or found.logins.get(registry)
        if login is not None:
            return login
    return None
