from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.cli.errors import UsageError
from casemate.cli.flags import GLOBAL_FLAGS, SWITCH, Command
from casemate.cli.index import ALIASES, ROWS, find, load, paths
from casemate.cli.parse import parse, parse_leading

ALL = [row[0] for row in ROWS]


def parsed(path: str, *argv: str):
    return parse(path, load(path), list(argv))


@pytest.mark.parametrize("path", sorted(paths()))
def test_each_path_leads_to_a_command(path: str) -> None:
    command = load(path)
    assert isinstance(command, Command)
    assert find(path.split(" ")) == (path, [])
    assert command.most is None or command.most >= command.least
    names = [flag.name for flag in (*command.flags, *GLOBAL_FLAGS)] + [flag.also for flag in command.flags if flag.also]
    assert len(names) == len(set(names)), "a long flag stands twice"
    shorts = [flag.short for flag in command.flags if flag.short]
    assert len(shorts) == len(set(shorts)), "a short flag stands twice"
    for flag in command.flags:
        assert flag.help
        assert (flag.kind == SWITCH) == (flag.form == "")


def test_aliases_lead_to_paths() -> None:
    assert set(ALIASES.values()) <= set(ALL)
    assert not set(ALIASES) & set(ALL)


def test_flags_end_at_the_image() -> None:
    found = parsed("run", "-it", "--rm", "-eA=b", "-e", "C", "--name=web", "-p8080:80", "img", "ls", "-l", "--rm=false")
    assert found.words == ["img", "ls", "-l", "--rm=false"]
    assert found.on("interactive")
    assert found.on("tty")
    assert found.on("rm")
    assert found.texts("env") == ["A=b", "C"]
    assert found.text("name") == "web"
    assert found.texts("publish") == ["8080:80"]


def test_flags_go_between_words_elsewhere() -> None:
    found = parsed("stop", "web", "-t", "3", "db", "--", "-x")
    assert found.words == ["web", "db", "-x"]
    assert found.text("time") == "3"


def test_booleans() -> None:
    assert not parsed("run", "--sig-proxy=false", "img").on("sig-proxy", True)
    assert parsed("run", "img").on("sig-proxy", True)
    assert not parsed("run", "--rm", "--rm=false", "img").on("rm")
    assert parsed("run", "-i=true", "img").on("interactive")


def test_h_is_help_unless_the_command_has_its_own() -> None:
    assert parsed("ps", "-h").on("help")
    assert parsed("run", "-h", "name", "img").text("hostname") == "name"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["run", "--nmae", "x", "img"], "unknown flag: --nmae; did you mean --name?"),
        (["run", "-Z", "img"], "unknown shorthand flag: -Z"),
        (["run", "-itZ", "img"], "unknown shorthand flag: -Z in -itZ"),
        (["run", "--name"], "flag needs an argument: --name NAME"),
        (["run", "-e"], "flag needs an argument: -e"),
        (["run", "--rm=maybe", "img"], "--rm: 'maybe' is neither true nor false"),
        (["run", "-i=maybe", "img"], "-i: 'maybe' is neither true nor false"),
        (["run"], "wants at least 1 argument, 0 given"),
        (["rename", "a"], "wants exactly 2 arguments, 1 given"),
        (["ps", "a"], "wants no arguments, 1 given"),
        (["port", "a", "b", "c"], "wants at most 2 arguments, 3 given"),
    ],
)
def test_refusals_name_what_was_seen(argv: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsed(*argv)
    assert words in caught.value.detail
    assert caught.value.exit_code == 125
    assert f"casemate {argv[0]} --help" in caught.value.to_problem()["remedy"]  # type: ignore[operator]


def test_leading_flags() -> None:
    found, rest = parse_leading(["-H", "unix:///x", "--json", "ps", "-a"])
    assert found.text("host") == "unix:///x"
    assert found.on("json")
    assert rest == ["ps", "-a"]


words = st.one_of(
    st.sampled_from(
        ["-it", "-e", "--env", "--name", "--rm", "--rm=x", "--", "-", "--=", "-=", "--env=", "img", "-h", ""]
    ),
    st.text(max_size=12),
    st.text(alphabet="-=abehnprtv", max_size=8),
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(ALL), st.lists(words, max_size=8))
def test_parsing_raises_nothing_but_usage_errors(path: str, argv: list[str]) -> None:
    try:
        found = parse(path, load(path), argv)
    except UsageError:
        return
    else:
        assert all(isinstance(word, str) for word in found.words)


@settings(max_examples=200, deadline=None)
@given(st.lists(words, max_size=8))
def test_leading_flags_raise_nothing_but_usage_errors(argv: list[str]) -> None:
    try:
        _, rest = parse_leading(argv)
    except UsageError:
        return
    assert rest == argv[len(argv) - len(rest) :]


@pytest.mark.parametrize(
    ("argv", "chosen", "words"),
    [
        (["web"], None, ["web"]),
        (["--hold", "web"], "", ["web"]),
        (["--hold", "connections", "web"], "connections", ["web"]),
        (["web", "--hold=connections"], "connections", ["web"]),
        (["--hold=false", "web"], None, ["web"]),
        (["connections", "--hold"], "", ["connections"]),
        (["--hold", "--", "connections"], "", ["connections"]),
    ],
)
def test_a_switch_that_a_word_may_follow(argv: list[str], chosen: str | None, words: list[str]) -> None:
    found = parsed("restart", *argv)
    assert (found.chosen("hold"), found.words) == (chosen, words)


def test_a_word_that_may_not_follow() -> None:
    with pytest.raises(UsageError, match="none of connections"):
        parsed("restart", "--hold=everything", "web")
