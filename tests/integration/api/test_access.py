"""A member of the group is not root by another name; a stranger is nobody. Each request is made by a real process."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.daemons import SOURCE, Daemons, running_daemons

pytestmark = pytest.mark.root

MEMBER, STRANGER = 64_001, 64_002
REQUEST = """
import json, sys
from casemate.sdk import ApiAway, ApiError, Client, Transport
from casemate.spec.api import NetworkRequest
from casemate.spec.workload import BindMount, Device
try:
    ran = Client(Transport(sys.argv[1], timeout_s=30)).run("busybox", eval(sys.argv[2]), **eval(sys.argv[3]))
    print(json.dumps({"exit_code": ran.exit_code, "stdout": ran.stdout.decode()}))
except ApiError as error:
    print(json.dumps({"code": error.problem_code, "status": error.http_status}))
except ApiAway as error:
    print(json.dumps({"code": "away", "detail": error.detail}))
"""


@pytest.fixture(scope="module")
def pair() -> Iterator[Daemons]:
    with running_daemons(CASEMATE_GRANTS_DEVICES=str(MEMBER)) as daemons:
        daemons.import_busybox()
        yield daemons


def as_user(
    pair: Daemons, uid: int, command: list[str], fields: str = "{}", *, member: bool = True
) -> dict[str, object]:
    group = pwd.getpwnam("casemate").pw_gid if member else uid
    done = subprocess.run(
        ["setpriv", f"--reuid={uid}", f"--regid={uid}", f"--groups={group}", sys.executable, "-c", REQUEST,
         str(pair.socket), repr(command), fields],
        env={"PYTHONPATH": str(SOURCE), "PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_a_member_runs_containers(pair: Daemons) -> None:
    assert as_user(pair, MEMBER, ["echo", "hi"]) == {"exit_code": 0, "stdout": "hi\n"}
    rows = json.loads(pair.client.transport.ask("GET", "/v1/audit", [("limit", "1000")]))["rows"]
    assert any(row["who"].startswith(f"{MEMBER}:") for row in rows)


def test_a_stranger_does_not_get_in(pair: Daemons) -> None:
    assert as_user(pair, STRANGER, ["true"], member=False)["code"] == "away"


@pytest.mark.parametrize(
    "fields",
    [
        "dict(mounts=(BindMount('/etc', '/x'),))",
        "dict(cap_add=('NET_ADMIN',))",
        "dict(privileged=True)",
        "dict(seccomp='unconfined')",
        "dict(network=NetworkRequest(mode='host'))",
        "dict(host_pid=True)",
        "dict(host_ipc=True)",
    ],
)
def test_what_needs_a_grant_is_refused_to_a_member_and_leaves_nothing(pair: Daemons, fields: str) -> None:
    answer = as_user(pair, MEMBER, ["true"], fields)
    assert answer["status"] == 403, answer
    assert str(answer["code"]).startswith("access.")
    assert not pair.client.containers(everything=True)
    rows = json.loads(pair.client.transport.ask("GET", "/v1/audit", [("limit", "1000")]))["rows"]
    refused = [row for row in rows if row["action"] == "container.start" and row["answer"] == "refused"]
    assert refused[-1]["who"].startswith(f"{MEMBER}:")
    assert refused[-1]["facts"]["grants"]


def test_root_holds_every_grant(pair: Daemons, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host\n")
    tmp_path.chmod(0o755)
    ran = pair.client.run("busybox", ["cat", "/x/file"], mounts=_bind(tmp_path))
    assert ran.stdout == b"from the host\n"
    rows = json.loads(pair.client.transport.ask("GET", "/v1/audit", [("limit", "1000")]))["rows"]
    used = [row for row in rows if row["action"] == "container.start" and row["facts"]["grants"] == ["host_paths"]]
    assert used[-1]["who"] == "0:root"
    assert used[-1]["answer"] == "done"


def _bind(path: Path) -> tuple[object, ...]:
    from casemate.spec.workload import BindMount  # noqa: PLC0415

    return (BindMount(str(path), "/x"),)
