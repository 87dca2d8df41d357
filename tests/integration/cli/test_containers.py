"""Commands against real daemons: what people type, what they see, what the exit code is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.terminal import Cli, Terminal, until


def test_exit_codes(cm: Cli) -> None:
    assert cm("run", "--rm", "busybox", "true").returncode == 0
    assert cm("run", "--rm", "busybox", "sh", "-c", "exit 42").returncode == 42
    absent = cm("run", "--rm", "busybox", "nope")
    assert absent.returncode == 127
    assert b"nope" in absent.stderr
    assert cm("run", "--rm", "busybox", "/etc/passwd").returncode == 126
    assert cm("run", "--rm", "--init", "busybox", "sh", "-c", "kill -9 $$; sleep 1").returncode == 137
    assert cm("run", "--rm", "--pull", "never", "no-such-image", "true").returncode == 125
    assert cm("run", "--rm", "BAD:REF:", "true").returncode == 125
    assert cm("run", "--rm", "-u", "nobody-there", "busybox", "true").returncode in (125, 126)
    assert cm("ps", "-aq").stdout == b"", "--rm leaves nothing"


def test_the_hosts_dev_null_stays_the_hosts(cm: Cli) -> None:
    """crun gives a process its standard files; without input one of them is the host's own /dev/null."""
    # The same mode, so that a host where this fails is not harmed by it.
    script = "for one in /dev/null /proc/self/fd/0; do chmod 666 $one && echo changed; done; echo x > /dev/null && cat"
    assert cm("run", "-d", "--name", "null", "busybox", "sleep", "1000").returncode == 0
    for done in (cm("run", "--rm", "busybox", "sh", "-c", script), cm("exec", "null", "sh", "-c", script)):
        assert (done.stdout, done.stderr.count(b"Read-only file system")) == (b"", 2), done


def test_output_goes_where_it_belongs(cm: Cli) -> None:
    done = cm("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    data = os.urandom(2 << 20)
    done = cm("run", "--rm", "-i", "busybox", "cat", stdin=data)
    assert done.stdout == data


def test_environment_user_folder_and_limits(cm: Cli, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("FROM=file\n")
    script = "echo $A $FROM; id -u; id -g; pwd; hostname; cat /tmp/x/../../proc/self/status | grep NoNewPrivs"
    done = cm(
        "run",
        "--rm",
        "-e",
        "A=b",
        "--env-file",
        str(file),
        "-u",
        "app",
        "-w",
        "/tmp",
        "-h",
        "box",
        "--tmpfs",
        "/tmp/x",
        "-m",
        "64m",
        "--pids-limit",
        "50",
        "--cpus",
        "0.5",
        "busybox",
        "sh",
        "-c",
        script,
    )
    assert done.stdout.decode().split("\n")[:5] == ["b file", "1000", "1000", "/tmp", "box"], done
    assert b"NoNewPrivs:\t1" in done.stdout


def test_life_of_a_container(cm: Cli) -> None:
    id_ = cm("run", "-d", "--name", "life", "-l", "a=b", "busybox", "sleep", "1000").stdout.decode().strip()
    assert len(id_) == 64
    assert cm("ps", "-q").stdout.decode().strip() == id_[:12]
    assert cm("ps", "--format", "{{.Names}} {{.State}} {{.Labels}}").stdout == b"life running a=b\n"
    assert cm("inspect", "-f", "{{.State.Running}} {{.Config.Image}}", "life").stdout == b"true busybox\n"
    assert cm("pause", "life").stdout == b"life\n"
    assert b"(Paused)" in cm("ps").stdout
    assert cm("unpause", "life").stdout == b"life\n"
    assert b"sleep 1000" in cm("top", "life").stdout
    stats = json.loads(cm("stats", "--no-stream", "--json", "life").stdout)
    assert stats["rows"][0]["name"] == "life"
    assert cm("update", "-m", "128m", "life").stdout == b"life\n"
    assert cm("rename", "life", "vita").returncode == 0
    assert cm("stop", "-t", "0", "vita").stdout == b"vita\n"
    assert cm("wait", "vita").stdout == b"137\n"
    assert b"Exited (137)" in cm("ps", "-a").stdout
    assert cm("start", "vita").stdout == b"vita\n"
    assert cm("restart", "-t", "0", "vita").stdout == b"vita\n"
    assert cm("kill", "vita").stdout == b"vita\n"
    assert cm("run", "-d", "--name", "vita", "busybox", "true").returncode == 125
    assert cm("rm", "-f", "vita", "absent").returncode == 0
    gone = cm("wait", "vita")
    assert gone.returncode == 125
    assert b"'vita' is not there" in gone.stderr
    actions = [
        json.loads(line)["action"]
        for line in cm(
            "events", "--no-follow", "--json", "-f", "type=container", "-f", f"container={id_}"
        ).stdout.splitlines()
    ]
    assert actions[:2] == ["create", "start"]
    assert actions[-1] == "destroy"


def test_logs(cm: Cli, launcher: Path, environment: dict[str, str]) -> None:
    cm("run", "--name", "talk", "busybox", "sh", "-c", "for i in 1 2 3; do echo line $i; done; echo bad >&2")
    done = cm("logs", "talk")
    assert (done.stdout, done.stderr) == (b"line 1\nline 2\nline 3\n", b"bad\n")
    assert cm("logs", "--tail", "2", "talk").stdout == b"line 3\n"
    stamped = cm("logs", "-t", "talk").stdout.decode().splitlines()
    assert stamped[0].endswith(" line 1")
    assert stamped[0].startswith("20")
    assert cm("logs", "--since", "1s", "--until", "2020-01-01", "talk").stdout == b""
    cm("rm", "talk")
    cm("run", "-d", "--name", "talk", "busybox", "sh", "-c", "while :; do echo tick; sleep 0.1; done")
    with subprocess.Popen([str(launcher), "logs", "-f", "talk"], stdout=subprocess.PIPE, env=environment) as follow:
        assert follow.stdout is not None
        assert [follow.stdout.readline() for _ in range(5)] == [b"tick\n"] * 5
        follow.send_signal(signal.SIGINT)
        assert follow.wait(5) == 130
    shell = f"{launcher} logs -f talk | head -n 2; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, env=environment, timeout=20, check=False)
    assert done.stdout == b"tick\ntick\n141\n"
    cm("rm", "-f", "talk")


def test_exec(cm: Cli) -> None:
    cm("run", "-d", "--name", "ex", "busybox", "sleep", "1000")
    done = cm(
        "exec",
        "-i",
        "-e",
        "A=b",
        "-w",
        "/tmp",
        "-u",
        "app",
        "ex",
        "sh",
        "-c",
        "cat; echo $A $(pwd) $(id -u); exit 9",
        stdin=b"in ",
    )
    assert (done.returncode, done.stdout) == (9, b"in b /tmp 1000\n"), done
    assert cm("exec", "ex", "nope").returncode == 127
    assert cm("exec", "ex", "/etc/passwd").returncode == 126
    assert cm("exec", "-d", "ex", "touch", "/tmp/made").returncode == 0
    until(lambda: cm("exec", "ex", "test", "-e", "/tmp/made").returncode == 0)
    assert b"A /tmp/made" in cm("diff", "ex").stdout
    cm("rm", "-f", "ex")
    assert cm("exec", "ex", "true").returncode == 125


def test_signals_reach_the_container(cm: Cli, launcher: Path, environment: dict[str, str]) -> None:
    script = "trap 'echo got it; exit 33' INT; echo ready; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        [str(launcher), "run", "--rm", "busybox", "sh", "-c", script], stdout=subprocess.PIPE, env=environment
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b"got it\n"
        assert process.wait(10) == 33


def test_a_terminal(cm: Cli, launcher: Path, environment: dict[str, str]) -> None:
    terminal = Terminal([str(launcher), "run", "-it", "--rm", "busybox", "sh"], environment)
    terminal.until(b"# ")
    terminal.type(b"stty size; tty; echo $((40+2))\r")
    terminal.until(b"33 99")
    terminal.until(b"\r\n42")
    terminal.resize(50, 120)
    os.kill(terminal.process.pid, signal.SIGWINCH)
    time.sleep(0.3)
    terminal.type(b"stty size\r")
    terminal.until(b"50 120")
    terminal.type(b"sleep 100\r")
    time.sleep(0.2)
    terminal.type(b"\x03")
    terminal.type(b"echo after $?\r")
    terminal.until(b"after 130")
    terminal.type(b"exit 3\r")
    assert terminal.finish() == 3


def test_detach_and_attach_again(cm: Cli, launcher: Path, environment: dict[str, str]) -> None:
    terminal = Terminal([str(launcher), "run", "-it", "--name", "stay", "busybox", "sh"], environment)
    terminal.until(b"# ")
    terminal.type(b"x=kept\r")
    time.sleep(0.2)
    terminal.type(b"\x10\x11")
    assert terminal.finish() == 0
    assert b"read escape sequence" in terminal.seen
    assert cm("ps", "--format", "{{.Names}}").stdout == b"stay\n"
    again = Terminal([str(launcher), "attach", "stay"], environment)
    again.type(b"echo still $x\r")
    again.until(b"still kept")
    again.type(b"exit 4\r")
    assert again.finish() == 4
    assert b"Exited (4)" in cm("ps", "-a").stdout
    cm("rm", "stay")


def test_exec_in_a_terminal(cm: Cli, launcher: Path, environment: dict[str, str]) -> None:
    cm("run", "-d", "--name", "ext", "busybox", "sleep", "1000")
    terminal = Terminal([str(launcher), "exec", "-it", "ext", "sh"], environment)
    terminal.until(b"# ")
    terminal.type(b"stty size\r")
    terminal.until(b"33 99")
    terminal.type(b"exit 6\r")
    assert terminal.finish() == 6
    cm("rm", "-f", "ext")


def test_copying(cm: Cli, tmp_path: Path) -> None:
    cm("run", "-d", "--name", "cp", "busybox", "sleep", "1000")
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "file").write_bytes(b"text")
    (tree / "deep/exec").write_bytes(os.urandom(300_000))
    (tree / "deep/exec").chmod(0o755)
    (tree / "link").symlink_to("file")
    assert cm("cp", str(tree), "cp:/data").returncode == 0, "into a folder that is there"
    assert cm("exec", "cp", "cat", "/data/tree/link").stdout == b"text"
    assert cm("cp", str(tree), "cp:/data/other").returncode == 0, "under a new name"
    assert cm("exec", "cp", "cat", "/data/other/file").stdout == b"text"
    assert cm("cp", f"{tree}/.", "cp:/tmp").returncode == 0, "contents only"
    assert cm("exec", "cp", "stat", "-c", "%a %u", "/tmp/deep/exec").stdout == b"755 0\n"
    assert cm("cp", str(tree / "file"), "cp:/data/renamed").returncode == 0
    assert cm("exec", "cp", "cat", "/data/renamed").stdout == b"text"
    assert cm("cp", str(tree / "file"), "cp:/absent/x").returncode == 125
    assert cm("cp", str(tree), "cp:/data/renamed").returncode == 125, "a folder onto a file"
    out = tmp_path / "out"
    assert cm("cp", "cp:/data/tree", str(out)).returncode == 0
    assert (out / "deep/exec").read_bytes() == (tree / "deep/exec").read_bytes()
    assert (out / "deep/exec").stat().st_mode & 0o777 == 0o755
    assert (out / "link").is_symlink()
    assert cm("cp", "cp:/data/tree/file", str(out)).returncode == 0, "into a folder"
    assert cm("cp", "cp:/data/tree/.", str(tmp_path)).returncode == 0
    assert (tmp_path / "deep/exec").exists()
    assert cm("cp", "cp:/absent", str(out)).returncode == 125
    tar = cm("cp", "cp:/data/tree", "-").stdout
    assert cm("cp", "-", "cp:/root", stdin=tar).returncode == 0
    assert cm("exec", "cp", "cat", "/root/tree/file").stdout == b"text"
    assert len(cm("export", "cp").stdout) > 1 << 20
    cm("rm", "-f", "cp")


def test_pods_and_volumes(cm: Cli) -> None:
    assert cm("pod", "create", "shop").returncode == 0
    cm("run", "-d", "--pod", "shop", "--name", "one", "busybox", "sleep", "1000")
    assert cm("pod", "inspect", "-f", "{{.State}} {{.NumContainers}}", "shop").stdout == b"Running 1\n"
    same = cm("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "one").stdout
    assert cm("run", "--rm", "--pod", "shop", "busybox", "ip", "-4", "addr").stdout.find(same.strip()) > 0
    assert cm("pod", "stop", "-t", "0", "shop").stdout == b"shop\n"
    assert cm("pod", "rm", "-f", "shop").stdout == b"shop\n"
    assert cm("volume", "create", "vol").stdout == b"vol\n"
    assert cm("run", "--rm", "-v", "vol:/vol", "busybox", "sh", "-c", "echo kept > /vol/x").returncode == 0
    assert cm("run", "--rm", "--mount", "type=volume,src=vol,dst=/y,ro", "busybox", "cat", "/y/x").stdout == b"kept\n"
    assert cm("volume", "ls", "-q").stdout == b"vol\n"
    assert cm("volume", "rm", "vol").stdout == b"vol\n"
    assert cm("run", "--rm", "-v", "/data", "busybox", "touch", "/data/x").returncode == 0
    assert cm("volume", "ls", "-q").stdout == b"", "an anonymous volume goes with its container"


def test_images(cm: Cli, tmp_path: Path) -> None:
    assert cm("tag", "busybox", "local/other:2").returncode == 0
    assert b"local/other   2" in cm("images").stdout
    assert cm("save", "-o", str(tmp_path / "x.tar"), "local/other:2").returncode == 0
    assert b"Untagged: local/other:2" in cm("rmi", "local/other:2").stdout
    assert b"local/other:2" in cm("load", "-i", str(tmp_path / "x.tar")).stdout
    assert cm("run", "--rm", "local/other:2", "echo", "same").stdout == b"same\n"
    assert cm("rmi", "local/other:2").returncode == 0
    assert json.loads(cm("image", "inspect", "busybox").stdout)[0]["Os"] == "linux"
    assert cm("history", "-q", "busybox").stdout
    broken = tmp_path / "broken.tar"
    broken.write_bytes(b"no tar at all" * 1000)
    done = cm("image", "import", str(broken), "b:1")
    assert done.returncode == 125
    assert b"remedy" in done.stderr
    assert cm("pull", "--plain-http", "localhost:1/none:1").returncode == 125


def test_system(cm: Cli) -> None:
    assert b"namespace" in cm("info").stdout
    assert json.loads(cm("system", "doctor", "--json").stdout)["findings"]
    assert cm("system", "df").stdout.startswith(b"TYPE")
    assert cm("system", "prune", "--left-overs", "--dry-run").returncode == 0
    assert cm("audit", "verify").stdout.endswith(b"the chain is intact\n")
    assert b"Server:" in cm("version").stdout
    assert b"busybox" in cm("__complete", "run", "").stdout


@pytest.mark.parametrize(
    "argv", [["ps", "-a"], ["images"], ["pod", "ps"], ["volume", "ls"], ["system", "df"], ["info"]]
)
def test_json_is_json(cm: Cli, argv: list[str]) -> None:
    json.loads(cm(*argv, "--json").stdout)


def test_the_end_for_want_of_memory_is_told(cm: Cli) -> None:
    """The exit code is Docker's; the reason is a line of its own, and nothing is said of another KILL."""
    done = cm("run", "--rm", "-m", "12m", "busybox", "tail", "/dev/zero")
    assert done.returncode == 137
    assert done.stderr == b"casemate: the kernel killed the process: it needed more memory than it may have (-m)\n"
    told = cm("--json", "run", "--rm", "-m", "12m", "busybox", "tail", "/dev/zero")
    assert json.loads(told.stderr.splitlines()[-1])["oom_killed"] is True
    other = cm("run", "--rm", "--init", "busybox", "sh", "-c", "kill -9 $$; sleep 1")
    assert (other.returncode, other.stderr) == (137, b"")
