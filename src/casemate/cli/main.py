"""The entry of the command line: finds the command, parses, runs it, and turns errors into exit codes.

Exit codes: 0; what the container's command ended with (128+n for signal n); 125 for Casemate's own refusals; 126 and
127 for a command that cannot be executed or is not there; 130 after Ctrl-C; 141 when the reader of our output went
away.
"""

from __future__ import annotations

import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context
    from casemate.cli.flags import Arguments


def main(argv: list[str]) -> int:
    """Run the command that *argv* (without the program's name) names; the process's exit code."""
    # Until the flags are read, an error is told as JSON where --json stands anywhere; then where it was a flag of ours.
    as_json = ["--json" in argv]
    try:
        return _dispatch(argv, as_json)
    except BaseException as error:  # the one place where everything ends
        from casemate.cli.report import report

        return report(error, as_json[0])


def _dispatch(argv: list[str], as_json: list[bool]) -> int:
    leading: Arguments | None = None
    if argv and argv[0].startswith("-"):
        from casemate.cli.parse import parse_leading

        leading, argv = parse_leading(argv)
        if leading.on("version"):
            argv = ["version", "--client", "--short"]
        elif leading.on("help") and argv:
            argv = [*argv, "--help"]
    if not argv:
        from casemate.cli.help import overview

        return _print(overview())
    if argv[0] == "__complete":
        from casemate.cli.complete import answer

        return answer(argv[1:])
    return _run(argv, leading, as_json)


def _run(argv: list[str], leading: Arguments | None, as_json: list[bool]) -> int:
    from casemate.cli.index import find, load

    path, rest = find(argv)
    command = None if path is None else load(path)
    if path is None or command is None:
        from casemate.cli.help import group_or_unknown

        return _print(group_or_unknown(argv))
    from casemate.cli.parse import parse

    arguments = parse(path, command, rest)
    if arguments.on("help"):
        from casemate.cli.help import page

        return _print(page(path, command))
    from casemate.cli.context import Context

    context: Context = Context.of(arguments, leading)
    as_json[0] = context.json
    try:
        return command.do(arguments, context)
    finally:
        context.close()


def _print(text: str) -> int:
    data = text.encode("utf-8", "surrogateescape")
    while data:
        data = data[posix.write(1, data) :]
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
