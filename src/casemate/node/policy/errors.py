"""What can go wrong between a person, the policy that is in force, and the firewall."""

from __future__ import annotations

from casemate.spec.errors import Conflict, InvalidArgument, LimitExceeded, NotFound, Unavailable


class PolicyNotFound(NotFound):
    code = "policy.not_found"
    title = "No such policy document"
    remedy = "`casemate policy ls` lists the documents that are in force."


class WorkloadUnknown(NotFound):
    code = "policy.workload_unknown"
    title = "No workload or address of this name"
    remedy = "Name a container or pod (`casemate ps -a`), PROJECT/NAME, or an address."


class ReferralNotFound(NotFound):
    code = "policy.referral_not_found"
    title = "No such referral waits"
    remedy = "`casemate referral ls` lists those that wait; one that nobody answered in time was denied."


class QuarantineNotFound(NotFound):
    code = "policy.quarantine_not_found"
    title = "This workload is not in quarantine"
    remedy = "`casemate quarantine ls` lists the quarantines."


class QuarantineHeld(Conflict):
    code = "policy.quarantined"
    title = "The workload is in quarantine already"
    remedy = "Release it first: `casemate quarantine release NAME --reason ...`."


class WallNotFound(NotFound):
    code = "policy.wall_not_found"
    title = "No such wall"
    remedy = "`casemate wall ls` lists the walls that the operator's documents set up."


class WallPathOpened(Conflict):
    code = "policy.wall_path"
    title = "The documents would open a path across a wall"
    remedy = (
        "Close one of the hops (`casemate wall check -f FILE` shows each path), or as officer give "
        "--allow-path-across-wall REASON."
    )


class FlowsAbsent(Unavailable):
    code = "policy.no_flows"
    title = "There are no recorded flows to work on"
    remedy = "Flows are recorded while casemate-hostd runs: see `casemate flows`."
    retryable = False


class ExpectationsInvalid(InvalidArgument):
    code = "policy.tests_invalid"
    title = "A file of policy tests is not valid"
    remedy = "Each test has from, to, port and expect: see docs/how-to/walls.md."


class PromptsFull(LimitExceeded):
    code = "policy.prompts_full"
    status = 429
    title = "Too many referrals wait for a person"
    remedy = "Answer some (`casemate referral ls`), or write a rule that decides them."


class HoldUnavailable(Conflict):
    code = "pod.hold_unavailable"
    title = "This pod's connections cannot be held"
    remedy = "Holding needs a running pod with network mode pod; restart without --hold."
