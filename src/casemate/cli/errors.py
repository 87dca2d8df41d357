"""The command line's own errors. Import this only to raise or to catch: it brings ``typing`` with it."""

from __future__ import annotations

from casemate.spec.errors import CasemateError, InvalidArgument, PermissionDenied, Unavailable


class UsageError(InvalidArgument):
    code = "cli.usage"
    title = "What was typed is not valid"
    remedy = "`casemate COMMAND --help` shows the flags and their forms."


class FileUnusable(InvalidArgument):
    code = "cli.file_unusable"
    title = "A file on this side cannot be used"
    remedy = "Check the path and its permissions."


class NotATerminal(InvalidArgument):
    code = "cli.not_a_terminal"
    title = "Standard input is not a terminal"
    remedy = "Leave out -t, or run the command from a terminal."


class DaemonUnreachable(Unavailable):
    code = "cli.daemon_unreachable"
    title = "casemated does not answer"


class SocketDenied(PermissionDenied):
    code = "cli.socket_denied"
    title = "You may not use casemated's socket"
    remedy = "Join the group: `sudo usermod -aG casemate $USER`, then log in again; or use sudo."


class AnswerInvalid(CasemateError):
    code = "cli.answer_invalid"
    status = 502
    title = "The daemon's answer is not valid"
    remedy = "Check that CASEMATE_HOST names casemated, and that both have the same version: `casemate version`."


class ConnectionLost(CasemateError):
    code = "cli.connection_lost"
    status = 502
    title = "The connection to the daemon was lost"
    remedy = "Try again; `casemate version` tells whether the daemon answers."
    retryable = True


class TlsFailed(CasemateError):
    code = "cli.tls_failed"
    status = 502
    title = "No TLS connection to the daemon"
    remedy = "Check CASEMATE_TLS_CERT, CASEMATE_TLS_KEY and CASEMATE_TLS_CA against the daemon's [api] settings."


class Cancelled(CasemateError):
    code = "cli.cancelled"
    status = 499
    title = "Cancelled"
    remedy = "Run the command again; what was complete is kept."
    exit_code = 130


class ObjectsFailed(CasemateError):
    """Some of several objects failed; each has been told already."""

    code = "cli.objects_failed"
    title = "Some objects failed"
    remedy = "The lines above name each."
