"""Tables with Docker's spacing: columns at least 10 wide and three spaces apart; ``--format`` over the same rows.

A row is a dictionary from Docker's template names (``ID``, ``Names``) to text; a column is ``(template name, title)``.
"""

from __future__ import annotations

from casemate.cli.show.plain import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context

Row = dict[str, object]
Columns = tuple[tuple[str, str], ...]

MIN_WIDTH = 10
GAP = 3


def aligned(lines: list[list[str]]) -> str:
    """*lines* of cells in columns; the last column is not padded (as Go's tabwriter leaves it)."""
    cleaned = [[clean(cell) for cell in line] for line in lines]
    widths: list[int] = []
    for line in cleaned:
        for index, cell in enumerate(line[:-1]):
            if index == len(widths):
                widths.append(MIN_WIDTH)
            widths[index] = max(widths[index], len(cell) + GAP)
    text = ""
    for line in cleaned:
        padded = [cell.ljust(widths[index]) for index, cell in enumerate(line[:-1])]
        text += "".join(padded) + line[-1] + "\n" if line else "\n"
    return text


def table(columns: Columns, rows: list[Row]) -> str:
    lines = [[title for _, title in columns]]
    lines += [[str(row.get(name, "")) for name, _ in columns] for row in rows]
    return aligned(lines)


def show(context: Context, columns: Columns, rows: list[Row], template: str | None, quiet: str = "") -> None:
    """Print *rows*: their field *quiet* alone, by the *template*, or as a table of *columns*."""
    context.write(shown(columns, rows, template, quiet))


def shown(columns: Columns, rows: list[Row], template: str | None, quiet: str = "") -> str:
    if quiet and template is None:
        return "".join(f"{clean(str(row[quiet]))}\n" for row in rows)
    if template is None or template == "table":
        return table(columns, rows)
    from casemate.cli.show.template import Template

    if template == "json":
        template = "{{json .}}"
    if not template.startswith("table "):
        compiled = Template(template)
        return "".join(compiled.render(row) + "\n" for row in rows)
    compiled = Template(template[6:].strip())
    titles = dict(columns)
    heading = compiled.titles(lambda name: titles.get(name, name.upper()))
    return aligned([heading.split("\t"), *(compiled.render(row).split("\t") for row in rows)])
