"""hostd's own errors."""

from __future__ import annotations

from casemate.spec.errors import CasemateError, Conflict, InvalidArgument, LimitExceeded, NotFound, PermissionDenied


class ProtocolViolated(InvalidArgument):
    code = "hostd.protocol_violated"
    title = "A message to casemate-hostd is not one of its operations"
    remedy = "Run casemated and casemate-hostd of the same version."


class PeerRefused(PermissionDenied):
    code = "hostd.peer_refused"
    title = "casemate-hostd speaks with casemated alone"
    remedy = "Use `casemate`; hostd's socket is not for people."


class Busy(LimitExceeded):
    code = "hostd.busy"
    status = 503
    title = "casemate-hostd has too much to do"
    remedy = "Try again; the daemon's bound protects the host."
    retryable = True


class CallerForged(PermissionDenied):
    code = "hostd.caller_forged"
    title = "The descriptor of the caller is not a connection to the API socket"
    remedy = "Report it: casemated passed a descriptor that proves nothing."


class Watched(Conflict):
    code = "hostd.watched"
    title = "The kernel's log of this node's packets has a reader already"
    remedy = "End what reads it: `ps -fC python3 | grep flows.child`; casemated then asks again by itself."


class PodMissing(NotFound):
    code = "hostd.pod_missing"
    title = "No such pod on this host"


class ContainerMissing(NotFound):
    code = "hostd.container_missing"
    title = "No such container on this host"


class ExecMissing(NotFound):
    code = "hostd.exec_missing"
    title = "No such exec in the container"
    remedy = "It has ended; start another with `casemate exec`."


class WrongState(Conflict):
    code = "hostd.wrong_state"
    title = "The container is in a state that does not allow this"
    remedy = "`casemate ps -a` shows the state; start, stop or unpause it first."


class AddressTaken(Conflict):
    code = "hostd.address_taken"
    title = "Another pod has this address"
    remedy = "Report it: casemated gave one address twice."


class RangesExhausted(LimitExceeded):
    code = "hostd.ranges_exhausted"
    status = 507
    title = "Every range of user ids is taken"
    remedy = "Remove pods that are not needed, or raise userns.ranges."


class RecordCorrupt(CasemateError):
    code = "hostd.record_corrupt"
    title = "A record of hostd cannot be read"
    remedy = "`casemate system doctor` names it; `casemate system prune` removes what belongs to nobody."


class FirewallBodyInvalid(InvalidArgument):
    code = "hostd.firewall_body_invalid"
    title = "A change of the firewall is not what its header says"
    remedy = "Run casemated and casemate-hostd of the same version."


class FirewallConflict(Conflict):
    code = "hostd.firewall_conflict"
    title = "The firewall has another state than the change was planned from"
    remedy = "Nothing to do: casemated gives the whole state anew."
    retryable = True
