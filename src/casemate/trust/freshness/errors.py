"""What can be wrong where metadata are made."""

from __future__ import annotations

from casemate.spec.errors import CasemateError, Conflict, InvalidArgument


class RepositoryInvalid(CasemateError):
    code = "trust.repository_invalid"
    status = 422
    title = "The folder of signed metadata cannot be read"
    remedy = "Take the folder from its backup; `casemate trust init` makes a new one in an empty folder."


class RepositoryBusy(Conflict):
    code = "trust.repository_busy"
    title = "Another command works on this folder of signed metadata"
    remedy = "Wait until it has ended."
    retryable = True


class RoleInvalid(InvalidArgument):
    code = "trust.role_invalid"
    title = "The role cannot be changed like this"
    remedy = "`casemate trust show FOLDER` lists the roles with their keys and thresholds."
