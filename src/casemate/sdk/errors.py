"""What the client raises."""

from __future__ import annotations

from typing import Any

from casemate.spec.errors import CasemateError, RemoteError, Unavailable


class ApiError(RemoteError):
    """The API answered a problem; *problem_code*, *http_status* and the remedy are the problem's own."""

    code = "sdk.problem"

    def __init__(self, problem: dict[str, Any], status: int) -> None:
        super().__init__(problem)
        self.http_status = status
        self.problem_code = str(problem.get("code", "internal"))
        self.instance_remedy = str(problem.get("remedy", "")) or None


class ApiAway(Unavailable):
    code = "sdk.unavailable"
    title = "casemated does not answer"


class ApiBroken(CasemateError):
    code = "sdk.protocol"
    title = "What answers is not the API of Casemate"
    remedy = "Check the socket's path, and that client and daemon have the same version."
