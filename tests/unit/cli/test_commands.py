"""Each command against a peer: what it asks, what it prints, what it ends with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peer import Peer, Reply, events, problem

ID = "ab" * 32
MISSING = problem(404, "container.not_found", "no container 'nope'", remedy="List them with `casemate ps -a`.")
SUMMARY = {
    "id": ID,
    "name": "web",
    "project": "default",
    "pod": "cd" * 32,
    "pod_name": "web",
    "image": "docker.io/library/debian:12",
    "image_digest": "sha256:" + "1" * 64,
    "command": "sleep 9",
    "level": "namespace",
    "status": "running",
    "created_at": "2026-01-01T00:00:00Z",
    "started_at": "2026-01-01T00:00:00Z",
    "ports": [{"container_port": 80, "host_port": 8080}],
}


def test_ps(cm, peer: Peer) -> None:
    peer.on("GET", "/v1/containers", Reply(value={"containers": [SUMMARY]}))
    lines = cm("ps").stdout.decode().splitlines()
    assert lines[0].split("  ")[0] == "CONTAINER ID"
    assert lines[1].startswith('abababababab   debian:12   "sleep 9"')
    assert "0.0.0.0:8080->80/tcp   web" in lines[1]
    assert cm("ps", "-q").stdout == b"abababababab\n"
    assert cm("ps", "-q", "--no-trunc").stdout == f"{ID}\n".encode()
    assert cm("ps", "--format", "{{.Names}} {{.State}}").stdout == b"web running\n"
    assert json.loads(cm("ps", "--json").stdout) == [SUMMARY]
    cm("ps", "-a", "-f", "status=exited", "-f", "label=a=b", "--project", "shop")
    assert peer.requests[-1].query == [
        ("project", "shop"),
        ("filter", "status=exited"),
        ("filter", "label=a=b"),
        ("all", "true"),
    ]
    cm("ps", "-n", "3")
    assert peer.requests[-1].params() == {"last": "3", "all": "true"}
    assert b"--filter: 'x' is not valid" in cm("ps", "-f", "x").stderr


def test_ps_reads_every_page(cm, peer: Peer) -> None:
    def page(request) -> Reply:
        after = request.params().get("after", "")
        row = SUMMARY | {"name": f"c{after}"}
        return Reply(value={"containers": [row], "next_after": {"": "1", "1": "2"}.get(after, "")})

    peer.on("GET", "/v1/containers", page)
    assert cm("ps", "--format", "{{.Names}}").stdout == b"c\nc1\nc2\n"
    assert peer.connections == 1


@pytest.mark.parametrize(
    ("argv", "path", "body"),
    [
        (["stop", "-t", "3", "web"], "stop", {"timeout": 3}),
        (["stop", "--signal", "INT", "web"], "stop", {"signal": "INT"}),
        (["restart", "web"], "restart", {}),
        (["kill", "-s", "hup", "web"], "kill", {"signal": "HUP"}),
        (["kill", "web"], "kill", {"signal": "SIGKILL"}),
        (["pause", "web"], "pause", None),
        (["unpause", "web"], "unpause", None),
        (["start", "web"], "start", None),
        (
            ["update", "-m", "1g", "--restart", "always", "web"],
            "update",
            {"resources": {"memory_bytes": 1 << 30}, "restart": {"name": "always"}},
        ),
    ],
)
def test_names_are_printed_back(cm, peer: Peer, argv: list[str], path: str, body: object) -> None:
    peer.on("POST", f"/v1/containers/web/{path}", Reply(204))
    done = cm(*argv)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"web\n", b"")
    assert peer.requests[0].json == body
    row = json.loads(cm(*argv, "--json").stdout)[0]
    assert row["name"] == "web"


def test_several_objects_of_which_one_fails(cm, peer: Peer) -> None:
    peer.on("DELETE", "/v1/containers/a", Reply(204))
    peer.on("DELETE", "/v1/containers/b", Reply(204))
    peer.on("DELETE", "/v1/containers/nope", MISSING)
    done = cm("rm", "a", "nope", "b")
    assert (done.returncode, done.stdout) == (1, b"a\nb\n")
    assert done.stderr == b"casemate: no container 'nope'\n  remedy: List them with `casemate ps -a`.\n"
    assert cm("rm", "nope").returncode == 125
    forced = cm("rm", "-fv", "nope", "a")
    assert (forced.returncode, forced.stdout) == (0, b"a\n")
    assert peer.requests[-1].params() == {"force": "true", "volumes": "true"}
    rows = json.loads(cm("rm", "--json", "a", "nope").stdout)
    assert [row["name"] for row in rows] == ["a", "nope"]
    assert rows[1]["problem"]["code"] == "container.not_found"


def test_wait_rename_port_top_diff(cm, peer: Peer) -> None:
    peer.on("POST", "/v1/containers/web/wait", Reply(value={"exit_code": 137}))
    assert cm("wait", "web").stdout == b"137\n"
    peer.on("POST", "/v1/containers/web/rename", Reply(204))
    assert cm("rename", "web", "shop").stdout == b""
    assert peer.requests[-1].json == {"name": "shop"}
    peer.on("GET", "/v1/containers/web", Reply(value={"summary": SUMMARY, "request": {}}))
    assert cm("port", "web").stdout == b"80/tcp -> 0.0.0.0:8080\n"
    assert cm("port", "web", "80").stdout == b"0.0.0.0:8080\n"
    assert cm("port", "web", "81/udp").returncode == 125
    peer.on("GET", "/v1/containers/web/top", Reply(value={"titles": ["PID", "CMD"], "processes": [["1", "sleep 9"]]}))
    assert cm("top", "web").stdout == b"PID       CMD\n1         sleep 9\n"
    peer.on("GET", "/v1/containers/web/changes", Reply(value={"changes": [{"kind": "A", "path": "/x\x1b"}]}))
    assert cm("diff", "web").stdout == b"A /x\\x1b\n"


def test_logs(cm, peer: Peer) -> None:
    body = [b"\x01\0\0\0\0\0\0\x04out\n\x02\0\0\0", b"\0\0\0\x04err\n"]
    peer.on("GET", "/v1/containers/web/logs", Reply(body=body))
    done = cm("logs", "-f", "--tail", "5", "--since", "2026-01-01T00:00:00Z", "-t", "web")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    assert peer.requests[0].params() == {
        "follow": "true",
        "timestamps": "true",
        "since": "2026-01-01T00:00:00.000000Z",
        "tail": "5",
    }
    assert [json.loads(line) for line in cm("logs", "--json", "web").stdout.splitlines()] == [
        {"stream": "stdout", "text": "out\n"},
        {"stream": "stderr", "text": "err\n"},
    ]


def test_exec(cm, peer: Peer) -> None:
    def serve(request, websocket) -> None:
        opcode, data = websocket.receive()
        assert (opcode, data) == (2, b"\x00typed")
        assert websocket.receive() == (2, b"\x00")
        websocket.output(b"got it")
        websocket.control(exit_code=3)

    peer.on("POST", "/v1/containers/web/exec", Reply(201, {"id": "e1"}))
    peer.websocket("/v1/exec/e1/attach", serve)
    done = cm("exec", "-i", "-u", "app", "-w", "/srv", "-e", "A=b", "web", "cat", "-n", stdin=b"typed")
    assert (done.returncode, done.stdout) == (3, b"got it")
    assert peer.requests[0].json == {
        "command": ["cat", "-n"],
        "stdin": True,
        "user": "app",
        "cwd": "/srv",
        "env": ["A=b"],
    }
    peer.on("POST", "/v1/exec/e1/start", Reply(204))
    assert cm("exec", "-d", "web", "true").returncode == 0
    assert cm("exec", "-it", "web", "sh").returncode == 125, "no terminal"


def test_inspect_tries_every_kind(cm, peer: Peer) -> None:
    peer.on(
        "GET", "/v1/containers/web", Reply(value={"summary": SUMMARY, "request": {}, "resolved": {}, "admission": {}})
    )
    peer.on(
        "GET",
        "/v1/images/inspect",
        lambda request: (
            Reply(
                value={
                    "summary": {"id": "sha256:2", "names": ["docker.io/library/a:1"]},
                    "config": {},
                    "layers": [],
                    "manifest": {},
                }
            )
            if request.params()["ref"] == "a:1"
            else problem(404, "image.not_found", "no image")
        ),
    )
    peer.on("GET", "/v1/volumes/vol", Reply(value={"name": "vol", "project": "default", "created_at": "x"}))
    peer.on(
        "GET", "/v1/pods/pod", Reply(value={"summary": {"id": "p", "name": "pod", "status": "running"}, "request": {}})
    )
    found = json.loads(cm("inspect", "web", "a:1", "vol", "pod").stdout)
    assert [row.get("Name") or row["Id"] for row in found] == ["/web", "sha256:2", "vol", "pod"]
    assert cm("inspect", "-f", "{{.State.Status}}", "web").stdout == b"running\n"
    assert json.loads(cm("inspect", "--json", "vol").stdout)[0]["name"] == "vol"
    absent = cm("inspect", "web", "nope")
    assert absent.returncode == 1
    assert b"no such object: 'nope'" in absent.stderr
    assert json.loads(absent.stdout)[0]["Name"] == "/web"
    assert cm("inspect", "--type", "pod", "web").returncode == 1
    assert cm("inspect", "--type", "x", "web").returncode == 125


def test_stats(cm, peer: Peer) -> None:
    row = {
        "id": ID,
        "name": "web",
        "cpu_percent": 12.345,
        "memory_bytes": 1 << 20,
        "memory_limit_bytes": 1 << 30,
        "pids": 3,
        "pids_limit": 9,
        "read_bytes": 0,
        "write_bytes": 2000,
        "rx_bytes": 5,
        "tx_bytes": 6,
    }
    peer.on(
        "GET",
        "/v1/stats",
        lambda request: (
            Reply(value={"at": "x", "rows": [row]})
            if request.params()["stream"] == "false"
            else events(("stats", {"at": "x", "rows": [row]}), ("stats", {"at": "y", "rows": []}))
        ),
    )
    lines = cm("stats", "--no-stream", "web").stdout.decode().splitlines()
    assert lines[1].split() == [
        "abababababab",
        "web",
        "12.35%",
        "1MiB",
        "/",
        "1GiB",
        "0.10%",
        "5B",
        "/",
        "6B",
        "0B",
        "/",
        "2kB",
        "3",
    ]
    assert peer.requests[0].query == [("container", "web"), ("stream", "false")]
    assert cm("stats").stdout.count(b"CONTAINER ID") == 2
    assert len(cm("stats", "--json").stdout.splitlines()) == 2


def test_events(cm, peer: Peer) -> None:
    row = {
        "number": 1,
        "at": "2026-01-01T00:00:00Z",
        "kind": "container",
        "subject": ID,
        "action": "start",
        "name": "web",
        "facts": {"image": "debian"},
    }
    peer.on("GET", "/v1/events", events(("event", row)))
    done = cm("events", "--since", "1h", "-f", "type=container", "--no-follow")
    assert done.stdout.decode() == f"2026-01-01T00:00:00Z container start {ID} (name=web, image=debian)\n"
    assert peer.requests[0].params()["follow"] == "false"
    assert cm("events", "--format", "{{.Type}} {{.Actor.Attributes.name}}").stdout == b"container web\n"
    assert peer.requests[1].params()["follow"] == "true"
    cm("events", "--until", "5m")
    assert peer.requests[2].params()["follow"] == "false"


def test_images(cm, peer: Peer) -> None:
    image = {
        "id": "sha256:" + "a" * 64,
        "digest": "sha256:" + "b" * 64,
        "names": ["docker.io/library/debian:12", "x.y/z:1"],
        "platform": "linux/amd64",
        "created_at": "2020-01-01T00:00:00Z",
        "size_bytes": 77_800_000,
    }
    peer.on("GET", "/v1/images", Reply(value={"images": [image, image | {"names": [], "id": "sha256:" + "c" * 64}]}))
    lines = cm("images").stdout.decode().splitlines()
    assert lines[0].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert lines[1].split()[:3] == ["debian", "12", "aaaaaaaaaaaa"]
    assert lines[2].split()[:2] == ["x.y/z", "1"]
    assert lines[3].split()[:3] == ["<none>", "<none>", "cccccccccccc"]
    assert lines[1].endswith("77.8MB")
    assert cm("images", "-q").stdout == b"aaaaaaaaaaaa\ncccccccccccc\n"
    assert len(cm("images", "debian").stdout.splitlines()) == 2
    assert len(cm("images", "debian:11").stdout.splitlines()) == 1
    assert len(json.loads(cm("images", "--json").stdout)) == 2
    peer.on("DELETE", "/v1/images", Reply(value={"removed": ["sha256:1"], "untagged": ["debian:12"], "freed_bytes": 5}))
    assert cm("rmi", "debian:12").stdout == b"Untagged: debian:12\nDeleted: sha256:1\n"
    peer.on("POST", "/v1/images/prune", Reply(value={"removed": ["sha256:1"], "freed_bytes": 5000}))
    assert cm("image", "prune", "-a").stdout == b"Deleted Images:\nsha256:1\n\nTotal reclaimed space: 5kB\n"
    peer.on("POST", "/v1/images/tag", Reply(204))
    assert cm("tag", "a", "b").returncode == 0
    assert peer.requests[-1].json == {"source": "a", "target": "b"}
    peer.on(
        "GET",
        "/v1/images/history",
        Reply(value={"history": [{"created_at": "", "created_by": "x " * 40, "size_bytes": 7}]}),
    )
    peer.on("GET", "/v1/images/inspect", Reply(value={"summary": image}))
    assert "…" in cm("history", "debian:12").stdout.decode()


def test_archives(cm, peer: Peer, tmp_path: Path) -> None:
    done_ = {"id": "op1", "kind": "import", "status": "done", "result": {"id": "sha256:77", "names": ["app:1"]}}
    peer.on("POST", "/v1/images/import", Reply(202, {"id": "op1", "kind": "import", "status": "running"}))
    peer.on("GET", "/v1/operations/op1/events", events(("end", done_)))
    data = bytes(range(256)) * 20_000
    (tmp_path / "a.tar").write_bytes(data)
    assert (
        cm("image", "import", "--form", "rootfs", "--cmd", "sh -l", "-e", "A=b", "a.tar", "app:1").stdout
        == b"sha256:77\n"
    )
    peer.on(
        "GET",
        "/v1/operations/op1/events",
        events(("end", {**done_, "result": {"id": "sha256:77", "names": ["app:1"], "form": "rootfs"}})),
    )
    told = cm("image", "import", "a.tar", "app:1")
    assert told.stdout == b"sha256:77\n"
    assert b"a.tar holds no image (index.json, manifest.json): taken as a root file system\n" in told.stderr
    peer.on("GET", "/v1/operations/op1/events", events(("end", done_)))
    assert peer.requests[0].body == data
    assert peer.requests[0].query == [("format", "rootfs"), ("tag", "app:1"), ("cmd", '["sh","-l"]'), ("env", "A=b")]
    assert cm("load", stdin=data).stdout == b"Loaded image: app:1\n"
    assert b"'none.tar' cannot be read" in cm("load", "-i", "none.tar").stderr
    peer.on("GET", "/v1/images/export", Reply(body=[data[:100], data[100:]]))
    assert cm("save", "app:1").stdout == data
    assert cm("save", "-o", "out.tar", "app:1").returncode == 0
    assert (tmp_path / "out.tar").read_bytes() == data
    peer.on("GET", "/v1/images/export", problem(404, "image.not_found", "no image"))
    assert cm("save", "-o", "other.tar", "app:1").returncode == 125
    assert not list(tmp_path.glob("other*"))
    peer.on("POST", "/v1/images/build-debian", Reply(202, {"id": "op1", "kind": "build", "status": "running"}))
    assert cm("image", "build-debian", "-t", "t:1", "bookworm", "curl", "-p", "jq,git").returncode == 0
    assert peer.asked("POST", "/v1/images/build-debian")[0].json == {
        "suite": "bookworm",
        "tag": "t:1",
        "packages": ["curl", "jq", "git"],
    }


def test_pods_volumes_system_audit(cm, peer: Peer) -> None:
    pod = {
        "id": "cd" * 32,
        "name": "shop",
        "status": "running",
        "level": "namespace",
        "created_at": "2026-01-01T00:00:00Z",
        "address": "10.0.0.2",
        "containers": ["a", "b"],
    }
    peer.on("GET", "/v1/pods", Reply(value={"pods": [pod]}))
    assert "10.0.0.2   2" in cm("pod", "ps").stdout.decode()
    peer.on("DELETE", "/v1/pods/shop", Reply(204))
    assert cm("pod", "rm", "-f", "shop").stdout == b"shop\n"
    peer.on("GET", "/v1/volumes", Reply(value={"volumes": [{"name": "v", "project": "default", "created_at": ""}]}))
    assert cm("volume", "ls").stdout == b"DRIVER    VOLUME NAME\nlocal     v\n"
    peer.on("POST", "/v1/volumes", Reply(201, {"name": "v"}))
    assert cm("volume", "create", "v").stdout == b"v\n"
    peer.on(
        "GET",
        "/v1/df",
        Reply(
            value={"rows": [{"kind": "images", "count": 2, "active": 1, "size_bytes": 1000, "reclaimable_bytes": 500}]}
        ),
    )
    assert cm("system", "df").stdout.decode().splitlines()[1].split() == ["Images", "2", "1", "1kB", "500B", "(50%)"]
    peer.on(
        "GET",
        "/v1/doctor",
        Reply(
            value={
                "healthy": False,
                "findings": [
                    {
                        "check": "cgroups",
                        "severity": "warning",
                        "detail": "hybrid",
                        "remedy": "boot with v2",
                        "left_over": True,
                    }
                ],
            }
        ),
    )
    sick = cm("system", "doctor")
    assert sick.returncode == 1
    assert sick.stdout.decode().splitlines()[0] == "warning  cgroups (left behind): hybrid"
    peer.on("POST", "/v1/prune", Reply(value={"removed": ["x"], "freed_bytes": 0}))
    assert cm("system", "prune", "-n", "-a").stdout.startswith(b"Nothing was removed")
    assert peer.requests[-1].json == {"all_images": True, "dry_run": True}
    peer.on(
        "GET",
        "/v1/info",
        Reply(
            value={
                "version": "1",
                "containers": 2,
                "running": 1,
                "images": 3,
                "levels": {"namespace": "crun"},
                "host": {},
                "settings": {},
                "warnings": ["w"],
            }
        ),
    )
    info = cm("info")
    assert b"Isolation levels:\n namespace: crun\n" in info.stdout
    assert info.stderr == b"warning: w\n"
    peer.on(
        "GET",
        "/v1/audit",
        Reply(
            value={
                "rows": [
                    {
                        "number": 1,
                        "at": "t",
                        "who": "root",
                        "action": "a",
                        "subject": "s",
                        "answer": "ok",
                        "facts": {"k": 1},
                        "chain": "x",
                    }
                ],
                "intact": True,
            }
        ),
    )
    assert cm("audit", "verify").stdout == b"1 rows, the chain is intact\n"
    assert "k=1" in cm("audit", "ls").stdout.decode()
    assert peer.requests[-1].params() == {"tail": "100"}
    cm("audit", "ls", "-n", "7")
    assert peer.requests[-1].params() == {"tail": "7"}
    cm("audit", "ls", "--after", "3")
    assert peer.requests[-1].params() == {"after": "3", "limit": "100"}
    assert b"--tail cannot be used with" in cm("audit", "ls", "-n", "7", "--after", "3").stderr


def test_version(cm, peer: Peer) -> None:
    answer = {"version": "0.1.0", "api": "1", "hostd": "0.1.0", "python": "3.11", "kernel": "6"}
    peer.on("GET", "/v1/version", Reply(value=answer))
    assert json.loads(cm("version", "--json").stdout)["Server"]["Version"] == "0.1.0"
    assert cm("version", "-f", "{{.Server.Kernel}}").stdout == b"6\n"
    assert cm("--version").stdout.startswith(b"casemate version 0.")
