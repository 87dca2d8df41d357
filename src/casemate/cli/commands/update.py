"""``update``: limits and restart policy of containers that run."""

from __future__ import annotations

from casemate.cli.asked.resources import RESOURCE_FLAGS, resources, restart_policy
from casemate.cli.commands.several import each
from casemate.cli.fail import usage
from casemate.cli.flags import Arguments, Command, value
from casemate.cli.show.plain import clean
from casemate.cli.wire.http import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context


def update(arguments: Arguments, context: Context) -> int:
    request: dict[str, object] = {}
    wanted = resources(arguments)
    if wanted:
        request["resources"] = wanted
    policy = arguments.text("restart")
    if policy is not None:
        request["restart"] = restart_policy(policy)
    if not request:
        raise usage("`casemate update` wants at least one limit, or --restart", path="update")

    def one(name: str) -> object:
        answer = context.client.post(f"/v1/containers/{segment(name)}/update", request)
        for warning in answer.get("warnings", ()) if isinstance(answer, dict) else ():
            context.note(f"warning: {clean(str(warning))}\n")
        return answer

    return each(context, arguments.words, one, "updated")


UPDATE = Command(
    "[OPTIONS] CONTAINER [CONTAINER...]",
    update,
    (*RESOURCE_FLAGS, value("restart", "POLICY", "no, on-failure[:N], always, unless-stopped")),
    1,
    None,
    ("container",),
    "",
    ("casemate update -m 512m --cpus 2 web",),
)
