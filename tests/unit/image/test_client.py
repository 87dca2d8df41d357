"""casemated's side of the worker: whatever the worker does, an error with a code comes back and nothing runs on."""

import asyncio
import sys

import pytest

from casemate.image.client import run_job, spawn
from casemate.image.errors import WorkerFailed
from casemate.image.jobs import PullJob
from casemate.spec.errors import RemoteError, TimedOut


def program(text, seen):
    async def start(_command, environment, descriptors):
        process = await spawn((sys.executable, "-c", text), environment, descriptors)
        seen.append(process)
        return process

    return start


def run(tmp_path, text, **options):
    seen = []
    try:
        return asyncio.run(run_job(PullJob(state=str(tmp_path), reference="x"), start=program(text, seen), **options))
    finally:
        assert seen[0].returncode is not None


def test_result_and_progress(tmp_path):
    lines = []
    text = """print('{"type":"progress","item":"a","stage":"b"}'); print('{"type":"result","digest":"d"}')"""
    assert run(tmp_path, text, on_progress=lines.append).digest == "d"
    assert lines[0].stage == "b"


def test_failure(tmp_path):
    with pytest.raises(RemoteError) as caught:
        run(tmp_path, """print('{"type":"failure","problem":{"code":"registry.denied","detail":"no"}}')""")
    assert caught.value.to_problem()["code"] == "registry.denied"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "print('hello')",
        "import sys; sys.exit('words for the journal')",
        "import os; os.abort()",
        "print('x' * (65 << 20))",
    ],
)
def test_no_result(tmp_path, text):
    with pytest.raises(WorkerFailed):
        run(tmp_path, text)


def test_it_hangs_and_ignores_term(tmp_path, monkeypatch):
    text = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    with pytest.raises(TimedOut):
        run(tmp_path, text, timeout_s=0.3, grace_s=0.2)


def test_much_on_standard_error_does_not_block(tmp_path):
    text = """import sys; sys.stderr.write('y' * (4 << 20)); print('{"type":"result"}')"""
    assert run(tmp_path, text).digest == ""


def test_a_job_that_is_none(tmp_path):
    with pytest.raises(RemoteError) as caught:
        asyncio.run(run_job(PullJob(state=str(tmp_path), reference="NO NAME")))
    assert caught.value.to_problem()["code"] == "image.reference_invalid"
