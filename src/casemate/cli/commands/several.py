"""Doing one thing to each of several objects: names printed back, each failure told, the rest done."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.cli.context import Context


#: What *do* answers where it has told all there is to say, and the name is not to be printed back.
TOLD = object()


def each(
    context: Context,
    names: list[str],
    do: Callable[[str], object],
    done: str,
    show: Callable[[object], str] | None = None,
) -> int:
    """Call *do* for each of *names* and print the name back (or what *show* makes of the answer).

    With ``--json`` one array of ``{"name", "result": done}``, with ``problem`` instead where it failed. An error that
    concerns the connection ends all. The exit code is 0, that of the failure where there was one object, else 1.
    """
    results: list[object] = []
    codes: list[int] = []
    for name in names:
        try:
            answer = do(name)
        except Exception as error:
            problem = problem_of(error)
            codes.append(tell(problem, context.json))
            results.append({"name": name, "problem": problem})
            continue
        if answer is TOLD:
            continue
        results.append({"name": name, "result": done} | ({} if answer is None else {"answer": answer}))
        if not context.json:
            context.write(f"{name if show is None else show(answer)}\n")
    if context.json:
        context.answer(results)
    return 0 if not codes else codes[0] if len(names) == 1 else 1


def problem_of(error: Exception) -> dict[str, object]:
    """The problem document of the daemon's refusal; anything else is raised on: it would fail for each."""
    from casemate.spec.errors import RemoteError

    if not isinstance(error, RemoteError):
        raise error
    return error.to_problem()


def tell(problem: dict[str, object], quiet: bool) -> int:
    """Say what failed (not when *quiet*); the exit code of it."""
    from casemate.cli.report import as_text, write_error

    if not quiet:
        write_error(as_text(problem))
    code = problem.get("exit_code")
    return code if isinstance(code, int) and 0 < code < 256 else 125
