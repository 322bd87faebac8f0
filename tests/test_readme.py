"""The README names every file with the purpose that the file states; `python tests/test_readme.py` rewrites it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
_TABLE = re.compile(r"<!-- files -->.*?<!-- end of files -->", re.DOTALL)


def purpose(path: Path) -> str:
    """The first sentence of a module, without its line breaks."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n\n")[0].replace("\n", " ").rstrip(".")


def file_table() -> str:
    paths = sorted(
        (ROOT / "melete").rglob("*.py"), key=lambda path: (path.parent, path.name != "__init__.py", path.name)
    )
    rows = [
        f"| `{path.relative_to(ROOT).as_posix().removesuffix('__init__.py')}` | {purpose(path)} |"
        for path in paths
        if path.parent != ROOT / "melete" or path.name != "__init__.py"
    ]
    return "\n".join(["<!-- files -->", "| file | what it is |", "|---|---|", *rows, "<!-- end of files -->"])


def test_every_file_states_its_purpose():
    assert [path for path in (ROOT / "melete").rglob("*.py") if not purpose(path)] == []


def test_the_readme_names_every_file_with_its_purpose():
    assert file_table() in (ROOT / "README.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(_TABLE.sub(lambda _: file_table(), readme.read_text(encoding="utf-8")), encoding="utf-8")
