"""What can go wrong in the API itself."""

from __future__ import annotations

from casemate.spec.errors import CasemateError, InvalidArgument, LimitExceeded, NotFound, PermissionDenied, Unavailable


class RouteMissing(NotFound):
    code = "api.route_not_found"
    title = "The API has no such path"
    remedy = "docs/reference/openapi.json lists the paths; GET /v1/openapi.json answers it."


class MethodRefused(CasemateError):
    code = "api.method_not_allowed"
    status = 405
    title = "The path does not take this method"
    remedy = "docs/reference/openapi.json lists the methods of each path."


class BodyInvalid(InvalidArgument):
    code = "api.request_invalid"
    title = "The request does not fit its schema"
    remedy = "docs/reference/openapi.json has the schema; unknown fields are refused."


class BodyTooLarge(LimitExceeded):
    code = "api.body_too_large"
    title = "The request's body is too large"
    remedy = "Make the request smaller; file contents go through the archive and import routes."


class PeerRefused(PermissionDenied):
    code = "api.peer_refused"
    title = "This user may not use the API"
    remedy = "Become a member: `sudo usermod -aG casemate USER`, then log in again."


class StartRefused(CasemateError):
    code = "daemon.start_refused"
    status = 500
    title = "casemated cannot start like this"
    remedy = "See the detail; `sudo make start` in a checkout starts both daemons as they should be."


class Ending(Unavailable):
    code = "daemon.ending"
    title = "casemated is about to end"
    remedy = "Ask again in a moment: the daemon comes back, and containers go on meanwhile."
