"""casemated's start and end: what it refuses, and what it says when it goes."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
from pathlib import Path

import pytest
from tests.unit.api.fakes import ROOT, FakeHostd, running_api

from casemate.api import daemon, peer, tls
from casemate.api.errors import Ending, StartRefused
from casemate.api.routing import Call
from casemate.api.server import unix_listener
from casemate.node.operations import Interrupted
from casemate.node.rows import OperationRow, insert
from casemate.spec.settings import Settings


def test_it_does_not_run_as_root(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("CASEMATE_PATHS_STATE", "/nonexistent")
    assert daemon.main([]) == 1
    assert "started as root" in capsys.readouterr().err
    assert daemon.main(["--nonsense"]) == 2


def test_operators_that_cannot_be_meant_keep_it_from_starting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passed over, such an entry would close a project to somebody, or seem to."""
    monkeypatch.setenv("CASEMATE_PROJECTS_OPERATORS", "shop=alice,bob")
    assert daemon.main([]) == 1
    assert "projects.operators: 'bob' is not PROJECT=WHO" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["x", "1.2.3.4", "1.2.3.4:0", "1.2.3.4:99999", ":80", "host:port"])
def test_a_wrong_listen_setting_is_refused(text: str) -> None:
    with pytest.raises(StartRefused) as error:
        tls.parse_listen(text)
    assert error.value.code == "daemon.start_refused"
    assert tls.parse_listen("[::1]:443") == ("::1", 443)


def test_the_socket_replaces_one_that_was_left(tmp_path: Path) -> None:
    settings = Settings({"paths.run": str(tmp_path)})
    (tmp_path / "api.sock").write_text("left")
    with unix_listener(settings) as listener:
        assert (tmp_path / "api.sock").is_socket()
        assert (tmp_path / "api.sock").stat().st_mode & 0o777 == 0o660
        assert listener.family == socket.AF_UNIX
        assert [path.name for path in tmp_path.iterdir()] == ["api.sock"]


def test_the_name_in_a_certificate() -> None:
    assert peer._subject({"subjectAltName": (("email", "a@b"),), "subject": ((("commonName", "x"),),)}) == "a@b"
    assert peer._subject({"subject": ((("commonName", "x\n\x1b"),),)}) == "x??"
    assert peer._subject({}) == "unnamed"


def test_a_client_certificate_is_an_operator_by_its_name() -> None:
    class Tls:
        def getpeercert(self) -> dict[str, object]:
            return {"subjectAltName": (("DNS", "ci"),)}

    class Transport(asyncio.BaseTransport):
        def get_extra_info(self, name: str, default: object = None) -> object:
            return Tls() if name == "ssl_object" else default

    def projects(**settings: tuple[str, ...]) -> frozenset[str] | None:
        named = {f"projects.{key}": value for key, value in settings.items()}
        return peer.of_transport(Transport(), Settings(named)).caller().projects

    assert projects() is None
    assert projects(operators=("shop=tls:ci", "lab=ci")) == {"shop"}
    assert projects(operators=("shop=alice",)) == frozenset()
    assert projects(operators=("shop=tls:ci",), administrators=("tls:ci",)) is None


def test_a_peer_of_a_unix_socket_is_known_to_the_kernel() -> None:
    ours, theirs = socket.socketpair()

    class Transport(asyncio.BaseTransport):
        def get_extra_info(self, name: str, default: object = None) -> object:
            return ours if name == "socket" else default

    with ours, theirs:
        seen = peer.of_transport(Transport(), Settings({}))
        assert seen.uid == os.getuid()
        assert seen.name == pwd.getpwuid(os.getuid()).pw_name
        assert seen.caller().descriptors() == (ours.fileno(),)
    assert seen.caller().descriptors() == ()  # the connection is gone: there is nothing to show


def test_a_long_wait_ends_with_the_daemon(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_api(tmp_path) as api:

            class Request:
                async def receive(self) -> dict[str, str]:
                    await asyncio.Event().wait()
                    return {}

            call = Call(api.node, ROOT.caller(), ROOT, {}, None, None, Request())  # type: ignore[arg-type]
            asyncio.get_running_loop().call_later(0.05, api.node.ending.set)
            with pytest.raises(Ending):
                await call.until_gone(asyncio.sleep(60))

    asyncio.run(scenario())


def test_an_operation_that_a_crash_interrupted_has_failed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_api(tmp_path, FakeHostd()) as api:
            row = OperationRow("a" * 64, "image.pull", "running", 1.0, 0.0, "debian", b"{}")
            await api.node.core.db.write(lambda db: insert(db, row))
            await api.node.operations.recover()
            found = (await api.send("GET", f"/v1/operations/{'a' * 64}"))[2]
            assert found["status"] == "failed"
            assert found["problem"]["code"] == Interrupted.code

    asyncio.run(scenario())
