"""Credentials for a registry, from Docker's config.json; loaded only for pull, push, login and logout."""

from __future__ import annotations

from casemate.spec.reference import parse_reference


def credentials_for(image: str) -> dict[str, object] | None:
    """The API's RegistryAuth for the registry of *image*, or None: then the daemon asks without.

    Raises ReferenceInvalid for what is no reference, and what the credential helper or the file raises.
    """
    registry = parse_reference(image).registry
    from casemate.image.credentials import login_for

    found = login_for(registry)
    if found is None:
        return None
    made: dict[str, object] = {"registry": registry}
    for name, held in (
        ("username", found.username), ("password", found.password), ("identity_token", found.identity_token)
    ):  # fmt: skip
        if held:
            made[name] = held
    return made
