"""docs/reference/cli.md, made from the table of commands and flags (tools/reference.py writes it, a test compares)."""

from __future__ import annotations

from casemate.cli.flags import GLOBAL_FLAGS, SWITCH, Command, Flag
from casemate.cli.help import groups_of
from casemate.cli.index import ALIASES, ROWS, load

_HEAD = """<!-- Written by tools/reference.py out of the code; do not edit. -->

# Command line

`casemate [OPTIONS] COMMAND`. Flags follow GNU's rules: `-it`, `--name web`, `--name=web`, `--rm=false`, `--` ends them.
For `run`, `create` and `exec` the first word that is no flag ends them too.

## Exit codes

| code | means |
|---|---|
| 0 | done |
| 1 | one of several objects failed; `doctor` found something; the audit chain is broken |
| 125 | Casemate refused, or the daemon does not answer |
| 126 | the command cannot be executed |
| 127 | the command is not there |
| 128+n | signal n ended the command; 130 also after Ctrl-C, 141 where the reader of the output went away |
| other | what the container's command ended with |

## Environment

| variable | means |
|---|---|
| `CASEMATE_HOST` | the daemon: `unix:///run/casemate/api.sock` (default) or `tcp://host:port` |
| `CASEMATE_PROJECT` | the project, as `--project` |
| `CASEMATE_TLS_CERT` | for `tcp://`: the client's certificate, PEM (default `~/.casemate/cert.pem`) |
| `CASEMATE_TLS_KEY` | its key (default `~/.casemate/key.pem`) |
| `CASEMATE_TLS_CA` | the authority of the server's certificate (default `~/.casemate/ca.pem`) |
| `CASEMATE_PATHS_RUN` | the folder of the socket, as the daemon's setting `paths.run` |
| `CASEMATE_DEBUG` | with an internal error, print where it happened |
| `DOCKER_CONFIG` | folder of the `config.json` with credentials for registries |
| `NO_COLOR` | no colours |

## Formats

`--json` prints the API's own values. `--format` takes the part of Go's templates that people use: `{{.Field}}`,
`{{json .}}`, `table {{.A}}\\t{{.B}}`, `{{if}}`, `{{range}}`, `{{index .Labels "key"}}`, `join`, `split`, `len`,
`upper`, `lower`, `printf`, `eq`, `ne`, `and`, `or`, `not`.

"""


def cli_page() -> str:
    """The whole page."""
    text = _HEAD + "## Global options\n\n" + _flags(GLOBAL_FLAGS)
    heading = ""
    for path, _, _, summary, group in ROWS:
        if group != heading:
            heading = group
            text += f"\n## {heading} commands\n"
        text += _command(path, summary, load(path))
    return text


def _command(path: str, summary: str, command: Command) -> str:
    text = f"\n### casemate {path}\n\n{summary}.\n\n```\ncasemate {path} {command.usage}".rstrip() + "\n```\n"
    same = sorted(alias for alias, target in ALIASES.items() if target == path)
    if same:
        text += "\nAlso: " + ", ".join(f"`{alias}`" for alias in same) + "\n"
    if command.more:
        text += f"\n{_escaped(command.more)}\n"
    for group, flags in groups_of(command.flags):
        text += f"\n{group}:\n\n{_flags(flags)}"
    if command.examples:
        text += "\n```\n" + "\n".join(command.examples) + "\n```\n"
    return text


def _flags(flags: tuple[Flag, ...]) -> str:
    text = "| flag | |\n|---|---|\n"
    for flag in flags:
        head = f"--{flag.name}" + (f" {flag.form}" if flag.kind != SWITCH else "")
        short = f"`-{flag.short}`, " if flag.short else ""
        text += f"| {short}`{head.replace('|', chr(92) + '|')}` | {_escaped(flag.help)} |\n"
    return text


def _escaped(text: str) -> str:
    """Text for Markdown: what looks like an HTML tag or a column is not one."""
    return text.replace("<", "&lt;").replace("|", "\\|")
