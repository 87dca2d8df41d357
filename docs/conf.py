"""Sphinx: the documents, built with -n -W (every unresolved reference and every warning is an error)."""

import ast
from pathlib import Path


def _version() -> str:
    """Read, not imported: the documents need nothing of the package."""
    tree = ast.parse((Path(__file__).parent.parent / "src/casemate/__init__.py").read_text())
    values = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    return str(ast.literal_eval(values[0]))


project = "Casemate"
copyright = "the Casemate contributors"  # noqa: A001 - Sphinx's name for it
release = version = _version()

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"Casemate {release}"
html_show_copyright = False
