"""No module of the package reaches itself by its imports: neither those at its head nor those inside functions.

An import inside a function that only hides a cycle makes two modules one, whatever their names say. Imports for types
alone (``if TYPE_CHECKING:``) do not count.
"""

from __future__ import annotations

import ast
from pathlib import Path

Graph = dict[str, set[str]]


def modules(source: Path) -> dict[str, Path]:
    """Each module below *source*, by its dotted name."""
    found = {}
    for path in source.rglob("*.py"):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(tree: ast.Module) -> list[tuple[str, list[str]]]:
    """(module, names from it) of each import that runs; no names for ``import module``."""
    found: list[tuple[str, list[str]]] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            found.append((node.module or "", [alias.name for alias in node.names]))
        waiting += ast.iter_child_nodes(node)
    return found


def graph(source: Path) -> Graph:
    known = modules(source)
    found: Graph = {}
    for name, path in known.items():
        targets = set()
        for module, parts in imports(ast.parse(path.read_text())):
            below = {f"{module}.{part}" for part in parts} & known.keys()
            # ``from package import module`` needs the package itself too only when a name of its own is taken.
            targets |= below if len(below) == len(parts) and parts else below | ({module} & known.keys())
        found[name] = targets - {name}
    return found


def cycles(edges: Graph) -> list[list[str]]:
    """One cycle, as the modules along it, for each module that begins one; empty when there is none."""
    done: set[str] = set()
    found: list[list[str]] = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for target in sorted(edges.get(name, ())):
                visit(target, [*path, name])
            done.add(name)

    for name in sorted(edges):
        visit(name, [])
    return found


def test_no_cycles(root: Path) -> None:
    edges = graph(root / "src")
    assert len(edges) > 200
    assert not [" -> ".join(cycle) for cycle in cycles(edges)]


def test_a_cycle_is_found_also_inside_functions(tmp_path: Path) -> None:
    for name, text in {
        "p/__init__.py": "",
        "p/a.py": "from p import b\n",
        "p/b.py": "def f():\n    from p.c import x\n",
        "p/c.py": "import p.a\nx = 1\n",
        "p/d.py": "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    from p.e import y\n",
        "p/e.py": "from p import d\ny = 1\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cycles(graph(tmp_path)) == [["p.a", "p.b", "p.c", "p.a"]]
