"""Ages, sizes, tables, templates: the figures are those that docker prints for the same values."""

from __future__ import annotations

import calendar
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.cli.errors import UsageError
from casemate.cli.show import docker, human, plain, rows, table
from casemate.cli.show.template import Template
from casemate.cli.suggest import nearest


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        (0.4, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (119, "About a minute"),
        (180, "3 minutes"),
        (3599, "59 minutes"),
        (3600, "About an hour"),
        (5399, "About an hour"),
        (5400, "2 hours"),
        (86_400, "24 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (13 * 86_400, "13 days"),
        (14 * 86_400, "2 weeks"),
        (59 * 86_400, "8 weeks"),
        (60 * 86_400, "2 months"),
        (729 * 86_400, "24 months"),
        (730 * 86_400, "2 years"),
        (-5, "Less than a second"),
    ],
)
def test_durations(seconds: float, wanted: str) -> None:
    assert human.duration(seconds) == wanted


@pytest.mark.parametrize(
    ("count", "wanted"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1kB"),
        (77_812_345, "77.8MB"),
        (999_900, "1000kB"),
        (1_500_000_000, "1.5GB"),
        (-1, "N/A"),
    ],
)
def test_sizes(count: int, wanted: str) -> None:
    assert human.size(count) == wanted


@pytest.mark.parametrize(
    ("count", "wanted"), [(0, "0B"), (2_028_000, "1.934MiB"), (1 << 30, "1GiB"), (8_267_812_864, "7.7GiB")]
)
def test_memory(count: int, wanted: str) -> None:
    assert human.memory(count) == wanted


@given(st.integers(0, 253_402_300_799))
def test_times_are_those_of_the_library(at: int) -> None:
    text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    assert human.parse_time(text) == at
    assert human.parse_time(text) == calendar.timegm(time.gmtime(at))


@given(st.text(max_size=30))
def test_no_text_breaks_the_reading_of_times(text: str) -> None:
    found = human.parse_time(text)
    assert found is None or isinstance(found, float)


def test_offsets_and_fractions() -> None:
    assert human.parse_time("2026-11-22T10:30:00.5+01:00") == human.parse_time("2026-11-22T09:30:00.5Z")
    assert human.parse_time("2026-11-22 10:30:00.123456789Z") == pytest.approx(1_795_343_400.123456789)


NOW = 1_795_343_400.0


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"status": "running", "started_at": "2026-11-22T10:27:00Z"}, "Up 3 minutes"),
        ({"status": "paused", "started_at": "2026-11-22T10:27:00Z"}, "Up 3 minutes (Paused)"),
        ({"status": "exited", "finished_at": "2026-11-22T08:30:00Z", "exit_code": 0}, "Exited (0) 2 hours ago"),
        ({"status": "exited", "finished_at": "2026-11-22T10:29:59Z", "exit_code": 137}, "Exited (137) 1 second ago"),
        (
            {"status": "restarting", "finished_at": "2026-11-22T10:29:55Z", "exit_code": 1},
            "Restarting (1) 5 seconds ago",
        ),
        ({"status": "created"}, "Created"),
        ({"status": "removing"}, "Removal In Progress"),
        ({"status": "broken"}, "Broken"),
    ],
)
def test_status(row: dict[str, object], wanted: str) -> None:
    assert rows.status(row, NOW) == wanted


def test_ports_and_names() -> None:
    ports = [
        {"container_port": 80, "host_port": 8080},
        {"container_port": 53, "host_port": 5353, "protocol": "udp", "host_address": "127.0.0.1"},
        {"container_port": 9},
    ]
    assert rows.ports(ports) == "0.0.0.0:8080->80/tcp, 127.0.0.1:5353->53/udp, 9/tcp"
    assert rows.split_name("docker.io/library/debian:12") == ("debian", "12")
    assert rows.split_name("localhost:5000/a/b:1") == ("localhost:5000/a/b", "1")
    assert rows.split_name("localhost:5000/a/b") == ("localhost:5000/a/b", "<none>")
    assert rows.split_name("docker.io/me/app@sha256:ab") == ("me/app", "<none>")


def test_the_table_is_dockers() -> None:
    """Compared with what `docker ps` 28 prints for the same container."""
    row = {
        "id": "f0a1" * 16,
        "name": "web",
        "image": "docker.io/library/debian:12",
        "command": "sleep 100000000000000000",
        "created_at": "2026-11-22T10:27:00Z",
        "started_at": "2026-11-22T10:27:00Z",
        "status": "running",
        "ports": [{"container_port": 80, "host_port": 8080}],
    }
    shown = table.table(rows.PS_COLUMNS, [rows.container(row, NOW, False)])
    assert shown.splitlines() == [
        "CONTAINER ID   IMAGE       COMMAND                  CREATED         STATUS         PORTS                  NAMES",  # noqa: E501
        'f0a1f0a1f0a1   debian:12   "sleep 1000000000000…"   3 minutes ago   Up 3 minutes   0.0.0.0:8080->80/tcp   web',
    ]
    assert table.table(rows.PS_COLUMNS, []) == (
        "CONTAINER ID   IMAGE     COMMAND   CREATED   STATUS    PORTS     NAMES\n"
    )


def test_formats() -> None:
    row = rows.container({"id": "ab" * 32, "name": "web", "labels": {"a": "1", "b": "2"}}, NOW, False)
    columns = rows.PS_TITLES
    assert table.shown(columns, [row], "{{.Names}}") == "web\n"
    assert table.shown(columns, [row], "table {{.ID}}\\t{{.Names}}") == "CONTAINER ID   NAMES\nabababababab   web\n"
    assert table.shown(columns, [row], "table {{.Labels}}").splitlines() == ["LABELS", "a=1,b=2"]
    assert '"Names":"web"' in table.shown(columns, [row], "json")
    assert table.shown(columns, [row], None, "ID") == "abababababab\n"


def test_nothing_steers_the_terminal() -> None:
    row = {"id": "x", "name": "a\x1b[31mb", "command": "\x1b]0;title\x07", "image": "a\nb"}
    shown = table.table(rows.PS_COLUMNS, [rows.container(row, NOW, True)])
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert len(shown.splitlines()) == 2
    assert plain.clean("é→\u202e") == "é→\\u202e"


DATA = {
    "Name": "/web",
    "State": {"Running": True, "Pid": 7, "Status": "running"},
    "List": ["a", "b"],
    "Map": {"k": "v", "x": "y"},
    "Rows": [{"A": 1}, {"A": 2}],
    "None": None,
    "Zero": 0,
}


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("{{.Name}}", "/web"),
        ("{{ .State.Running }}|{{.State.Pid}}", "true|7"),
        ("{{json .State}}", '{"Running":true,"Pid":7,"Status":"running"}'),
        ("{{.List | json}}", '["a","b"]'),
        ("{{.List}} {{.Map}} {{.None}}", "[a b] map[k:v x:y] <no value>"),
        ('{{index .Map "k"}} {{index .List 1}}', "v b"),
        ('{{join .List ","}} {{len .List}} {{upper .Name}}', "a,b 2 /WEB"),
        ("{{range .Rows}}<{{.A}}>{{end}}", "<1><2>"),
        ("{{range $k, $v := .Map}}{{$k}}={{$v}};{{end}}", "k=v;x=y;"),
        ("{{range $i, $v := .List}}{{$i}}{{$v}}{{end}}", "0a1b"),
        ("{{if .State.Running}}yes{{else}}no{{end}}", "yes"),
        ("{{if .Zero}}yes{{else if .State.Running}}second{{else}}no{{end}}", "second"),
        ('{{if eq .State.Status "running"}}up{{end}}', "up"),
        ('{{printf "%s-%5d|%-5s|%q%%" .Name 7 "x" "y"}}', '/web-    7|x    |"y"%'),
        ("{{println .Name}}", "/web\n"),
        ("a\\tb", "a\tb"),
        ("  {{- .Name -}}  x", "/webx"),
        ("{{/* comment */}}x", "x"),
        ("{{(index .Rows 0).A}}", "1"),
        ('{{json (index .Map "k") }} {{(index .List 0).A}}', None),
        ('{{printf "%s %s" (index .List 0) .Name}}', "a /web"),
        ("{{with .X}}", None),
        ("{{.Absent}}", None),
        ("{{.Map.absent}}", "<no value>"),
        ("{{.Name.Deep}}", None),
        ("{{.Name", None),
        ("{{}}", None),
        ("{{end}}", None),
        ("{{if .Name}}", None),
        ("{{nope .Name}}", None),
        ("{{index .List 9}}", None),
        ('{{"open}}', None),
        ("{{.Name | .Name}}", None),
        ("{{$x}}", None),
        ("{{range $a, $b, $c := .Map}}{{end}}", None),
        ("{{if .Name}}" * 40 + "{{end}}" * 40, None),
    ],
)
def test_templates(template: str, wanted: str | None) -> None:
    if wanted is None:
        with pytest.raises(UsageError, match="--format"):
            Template(template).render(DATA)
    else:
        assert Template(template).render(DATA) == wanted


pieces = st.lists(
    st.sampled_from(
        [
            "{{",
            "}}",
            ".Name",
            ".",
            " ",
            "range",
            "if",
            "end",
            "else",
            "json",
            "|",
            "(",
            ")",
            '"',
            "$x",
            ":=",
            "index",
            ".Map",
            "-",
            "printf",
            "%s",
            "1",
            ",",
            "x",
        ]
    ),
    max_size=14,
)


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(max_size=30), pieces.map("".join), pieces.map(lambda found: "{{" + " ".join(found) + "}}")))
def test_template_garbage_raises_only_usage_errors(text: str) -> None:
    try:
        compiled = Template(text)
        compiled.render(DATA)
        compiled.titles(str.upper)
    except UsageError:
        return


def test_did_you_mean() -> None:
    known = ["run", "rm", "restart", "ps", "images", "logs", "volume"]
    assert nearest("rnu", known) == "run"
    assert nearest("image", known) == "images"
    assert nearest("volmue", known) == "volume"
    assert nearest("zzzzzz", known) == ""
    assert nearest("x" * 1000, known) == ""


def test_inspect_has_what_scripts_ask_for() -> None:
    detail = {
        "summary": {
            "id": "ab" * 32,
            "name": "web",
            "status": "exited",
            "exit_code": 3,
            "address": "10.209.0.2",
            "project": "default",
            "ports": [{"container_port": 80, "host_port": 8080}],
            "restarts": 2,
            "labels": {"a": "b"},
        },
        "request": {
            "image": "debian:12",
            "terminal": True,
            "env": ["A=1"],
            "resources": {"memory_bytes": 5, "cpu_millis": 1500},
            "mounts": [{"type": "bind", "source": "/a", "target": "/b", "read_only": True}],
        },
        "resolved": {"process": {"args": ["sleep", "9"], "env": ["PATH=/bin", "A=1"], "cwd": "/srv"}},
        "admission": {"answer": "admit", "reason": "no policy"},
        "oom_killed": True,
        "pid": 0,
    }
    found = docker.container(detail)
    asked = {
        "{{.State.Running}} {{.State.ExitCode}} {{.State.OOMKilled}}": "false 3 true",
        "{{.Name}} {{.Path}} {{.RestartCount}}": "/web sleep 2",
        "{{.NetworkSettings.IPAddress}}": "10.209.0.2",
        '{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}': "8080",
        "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}": "5 1500000000",
        "{{range .Mounts}}{{.Type}}:{{.Source}}->{{.Destination}} {{.RW}}{{end}}": "bind:/a->/b false",
        "{{json .Config.Env}} {{.Config.Tty}} {{.Config.Image}}": '["PATH=/bin","A=1"] true debian:12',
        '{{index .Config.Labels "a"}} {{.HostConfig.RestartPolicy.Name}}': "b no",
    }
    for template, wanted in asked.items():
        assert Template(template).render(found) == wanted
