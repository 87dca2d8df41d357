"""What a registry asks for in ``WWW-Authenticate`` and what may be sent where. Pure.

Sources: RFC 9110 section 11.6.1 (challenges), Docker's token authentication specification.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from casemate.image.errors import RegistryError
from casemate.image.jobs import Login

MAX_HEADER_CHARACTERS = 8192
_SCHEME = re.compile(r"\s*(Bearer|Basic)(?:\s+|\s*\Z)", re.IGNORECASE)
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge: *scheme* is ``bearer`` or ``basic``."""

    scheme: str
    realm: str
    service: str = ""
    scope: str = ""


def parse_challenge(header: str) -> Challenge | None:
    """The challenge in *header*, Bearer before Basic; None when there is none that we can answer."""
    if len(header) > MAX_HEADER_CHARACTERS:
        raise RegistryError(f"the registry's WWW-Authenticate has {len(header)} characters")
    found: dict[str, Challenge] = {}
    position = 0
    while match := _SCHEME.match(header, position):
        position = match.end()
        values: dict[str, str] = {}
        while parameter := _PARAMETER.match(header, position):
            quoted, word = parameter[2], parameter[3]
            values[parameter[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else word
            position = parameter.end()
        scheme = match[1].lower()
        found.setdefault(
            scheme, Challenge(scheme, values.get("realm", ""), values.get("service", ""), values.get("scope", ""))
        )
        comma = re.compile(r"\s*,?").match(header, position)
        position = comma.end() if comma else position
    return found.get("bearer") or found.get("basic")


def check_realm(realm: str, registry_host: str, *, registry_is_plain: bool) -> None:
    """Raise unless a token may be asked for at *realm*: over TLS, or at a plain HTTP registry's own host."""
    try:
        parts = urlsplit(realm)
        host = parts.hostname or ""
    except ValueError as error:
        raise RegistryError(f"the registry sends us for a token to {realm[:200]!r}, which is no URL") from error
    own = registry_host.partition(":")[0] if not registry_host.startswith("[") else registry_host[1:].partition("]")[0]
    if parts.scheme == "https" and host:
        return
    if parts.scheme == "http" and registry_is_plain and host == own:
        return
    raise RegistryError(f"the registry sends us for a token to {realm[:200]!r}: neither https nor its own host")


def token_request(
    challenge: Challenge, scope: str, login: Login | None
) -> tuple[str, str, dict[str, str], bytes | None]:
    """Method, URL, headers and body of the request for a token."""
    wanted = challenge.scope or scope
    if login is not None and login.identity_token:
        fields = {
            "grant_type": "refresh_token",
            "refresh_token": login.identity_token,
            "service": challenge.service,
            "scope": wanted,
            "client_id": "casemate",
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return "POST", challenge.realm, headers, urlencode(fields).encode()
    query = {"service": challenge.service, "scope": wanted} if challenge.service else {"scope": wanted}
    joiner = "&" if "?" in challenge.realm else "?"
    headers = {"Authorization": basic(login)} if login is not None and login.username else {}
    return "GET", f"{challenge.realm}{joiner}{urlencode(query)}", headers, None


def basic(login: Login) -> str:
    """RFC 7617."""
    return "Basic " + base64.b64encode(f"{login.username}:{login.password}".encode()).decode()
