"""The way of kernels that cannot map the owners of squashfs (before 6.2), forced, through both daemons."""

from __future__ import annotations

import io
import signal
import tarfile
from collections.abc import Iterator

import pytest
from tests.integration.daemons import Daemons, rootfs_tar, running_daemons

from casemate.sdk import ApiError
from casemate.spec.workload import VolumeMount

pytestmark = pytest.mark.root

IMAGE = "owners"
LOOK = "stat -c '%u:%g %a' /bin/busybox /app/suid /etc/secret; cat /app/suid && ! cat /etc/secret 2>/dev/null"
SEEN = b"0:0 755\n1000:2000 4755\n0:0 600\nsuid"


@pytest.fixture
def shared() -> Iterator[Daemons]:
    with running_daemons(CASEMATE_USERNS_IDMAP="off") as daemons:
        import_image(daemons)
        yield daemons


def import_image(daemons: Daemons) -> None:
    """busybox with a set-uid file of somebody, and a file that only root may read."""
    out = io.BytesIO(rootfs_tar())
    with tarfile.open(fileobj=out, mode="a", format=tarfile.PAX_FORMAT) as tar:
        for name, mode, uid, gid in (("app/suid", 0o4755, 1000, 2000), ("etc/secret", 0o600, 0, 0)):
            info = tarfile.TarInfo(name)
            data = name.rsplit("/", 1)[1].encode()
            info.size, info.mode, info.uid, info.gid = len(data), mode, uid, gid
            tar.addfile(info, io.BytesIO(data))
    answer = daemons.client.import_image(iter([out.getvalue()]), tag=IMAGE, format_="rootfs")
    assert daemons.client.follow(answer).status == "done"


def switch(daemons: Daemons, idmap: str) -> None:
    """Restart hostd with another setting, as a boot of another kernel would; casemated goes on."""
    daemons.kill("casemate-hostd", signal.SIGTERM)
    daemons.environment["CASEMATE_USERNS_IDMAP"] = idmap
    daemons.start()


def sleeper(daemons: Daemons, name: str, **fields: object) -> str:
    created = daemons.client.create(IMAGE, ["sh", "-c", "while :; do sleep 0.1; done"], name=name, **fields)
    daemons.client.start(created.id)
    return created.id


def layers(daemons: Daemons) -> set[str]:
    return {path.stem for path in (daemons.scope.folder / "host-state/layers").glob("*.sqfs")}


def test_owners_modes_and_volumes_are_right_and_the_range_is_shared(shared: Daemons) -> None:
    client = shared.client
    ran = client.run(IMAGE, ["sh", "-c", LOOK], user="app")
    assert (ran.exit_code, ran.stdout) == (0, SEEN), ran
    data = (VolumeMount("data", "/data"),)
    first, second = (sleeper(shared, name, mounts=data) for name in ("first", "second"))
    firsts = {client.inspect(one).first_id for one in (first, second)}
    assert firsts == {1_000_000_000}
    made = client.exec(first, ["sh", "-c", "echo x > /data/mine && chown 1000:2000 /data/mine /etc/secret && touch /n"])
    assert made.exit_code == 0, made
    seen = client.exec(second, ["stat", "-c", "%u:%g", "/data/mine", "/etc/secret"])
    assert seen.stdout == b"1000:2000\n0:0\n"  # the volume is shared, the root file system is not
    # On disk a volume bears the numbers that its users see, whichever range they have.
    assert (shared.scope.folder / "host-state/volumes/default/data/_data/mine").stat().st_uid == 1000
    changes = shared.client.transport.ask("GET", f"/v1/containers/{first}/changes")
    assert b'"/n"' in changes
    assert b"/bin" not in changes  # what was not touched has the same owner as in the layers
    with tarfile.open(fileobj=io.BytesIO(b"".join(client.copy_out(first, "/app")))) as tar:
        assert tar.getmember("app/suid").uid == 1000
    found = [row for row in client.doctor().findings if row.check == "user id ranges"]
    assert [row.severity for row in found] == ["warning"]
    assert "share one range" in found[0].detail


def test_switching_converts_anew_and_what_was_made_before_goes_on(shared: Daemons) -> None:
    client = shared.client
    old = sleeper(shared, "old")
    unstarted = client.create(IMAGE, ["sh", "-c", LOOK], name="unstarted", user="app").id
    before = layers(shared)
    switch(shared, "auto")
    assert client.exec(old, ["cat", "/app/suid"]).stdout == b"suid"
    ran = client.run(IMAGE, ["sh", "-c", LOOK], user="app")
    assert (ran.exit_code, ran.stdout) == (0, SEEN), ran
    after = layers(shared)
    assert before < after  # the old ones stay: a container uses them
    new = sleeper(shared, "new")
    assert client.inspect(new).first_id != client.inspect(old).first_id
    # One that was written down before the switch and is made after it takes the layers of now.
    client.start(unstarted)
    assert client.wait(unstarted).exit_code == 0
    assert b"".join(data for _, data in client.logs(unstarted)) == SEEN
    # One that was made before the switch is made again as it was.
    client.kill(old)
    client.wait(old)
    client.start(old)
    assert client.exec(old, ["stat", "-c", "%u:%g %a", "/app/suid"]).stdout == b"1000:2000 4755\n"
    switch(shared, "off")
    ran = client.run(IMAGE, ["sh", "-c", LOOK], user="app")
    assert (ran.exit_code, ran.stdout) == (0, SEEN), ran
    assert layers(shared) == after  # the same bytes as the first time


def test_a_pod_of_before_takes_no_container_of_after(shared: Daemons) -> None:
    client = shared.client
    client.transport.ask("POST", "/v1/pods", body=b'{"name": "pod"}')
    first = client.create(IMAGE, ["sleep", "60"], pod="pod", name="in-pod").id
    client.start(first)
    switch(shared, "auto")
    second = client.create(IMAGE, ["sleep", "60"], pod="pod", name="late").id
    with pytest.raises(ApiError) as caught:
        client.start(second)
    assert caught.value.problem_code == "hostd.wrong_state"
    assert caught.value.problem["remedy"]


def test_a_value_that_is_no_choice_is_refused(shared: Daemons) -> None:
    shared.kill("casemate-hostd", signal.SIGTERM)
    shared.environment["CASEMATE_USERNS_IDMAP"] = "maybe"
    with pytest.raises(AssertionError, match="neither auto nor off"):
        shared.start()
    del shared.processes["casemate-hostd"]
    shared.environment["CASEMATE_USERNS_IDMAP"] = "off"
    shared.start()
