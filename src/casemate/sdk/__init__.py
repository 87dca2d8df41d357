"""The Python client for programs."""

from casemate.sdk.client import Client, Ran
from casemate.sdk.errors import ApiAway, ApiBroken, ApiError
from casemate.sdk.transport import Transport
from casemate.sdk.trust import Trust

__all__ = ["ApiAway", "ApiBroken", "ApiError", "Client", "Ran", "Transport", "Trust"]
