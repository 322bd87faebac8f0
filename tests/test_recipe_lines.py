"""Every key of a recipe file has a line, whatever TOML is written like."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.config import bundled_recipes
from melete.recipe_lines import key_lines, nearest_line

STRANGE = """# stage = [[x]]
name = "a" # [[stage]]
text = \"\"\"several
[[stage]]
x = 1 \\\"\"\" "" \"\"\"
other = '''
[stage]\\
'''
"quoted key" = 'a#b]'
dotted."e.f".g = 1979-05-27 07:32:00

  [[stage]]  # one
name="a"
at = [ # hi ]
  0.0,
  "]", # c
]
ev = { a = 1, b = [ {c = 2},
   {d = 3 } ] }
[[stage]] # two
"name" = "b"
  [stage.task]
  x.y = {}
[[stage.parts]]
k = 1
[[stage.parts]]
k = inf
[stage.parts.sub]
z = "\\"#"
q = ""
r = \"\"\"a\"\"\"\"\"
last = true
"""


def keys(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every full key of what `tomllib` reads, with its last word."""
    if isinstance(value, dict):
        for name, inner in value.items():
            below = f"{key}.{name}" if key else name
            yield below, name
            yield from keys(inner, below)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield f"{key}[{index}]", ""
            yield from keys(inner, f"{key}[{index}]")


def found_where_they_stand(text: str) -> bool:
    """Whether every key has a line, and the key's last word is in that line; a list made by headers has none."""
    lines, rows = key_lines(text), text.split("\n")
    wanted = [(key, word) for key, word in keys(tomllib.loads(text)) if f"[[{key}]]" not in text]
    return all(key in lines and word in rows[lines[key] - 1] for key, word in wanted if not key.endswith("parts"))


@pytest.mark.parametrize("name", bundled_recipes())
def test_every_key_of_a_bundled_recipe_has_its_line(name: str) -> None:
    assert found_where_they_stand(bundled_recipes()[name].read_text())


@pytest.mark.parametrize("text", [STRANGE, STRANGE.replace("\n", "\r\n")], ids=["lf", "crlf"])
def test_comments_strings_and_tables_of_every_kind_do_not_confuse(text: str) -> None:
    assert found_where_they_stand(text)
    lines = key_lines(text)
    assert (lines["stage[0]"], lines["stage[1]"], lines["stage[1].parts[1].k"]) == (12, 20, 27)
    assert (lines["stage[0].at[1]"], lines["stage[0].ev.b[1].d"], lines["stage[1].task.x.y"]) == (16, 19, 23)
    assert lines["stage[1].parts[1].sub.last"] == 32


words = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S", "Z"]), max_size=6)
plain = st.integers(-9, 9) | st.booleans() | words.map(lambda text: "'" + text.replace("'", "") + "'")
values = st.recursive(
    plain.map(lambda value: str(value).lower() if isinstance(value, bool) else str(value)),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: "[ # x ]\n" + ",\n ".join(parts) + "\n]")
        | st.lists(inner.filter(lambda text: "\n" not in text), max_size=3).map(
            lambda parts: "{" + ", ".join(f"k{number} = {part}" for number, part in enumerate(parts)) + "}"
        )
    ),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(values, max_size=3), max_size=3))
def test_whatever_the_values_are_the_lines_are_right(stages: list[list[str]]) -> None:
    text = "".join(
        "[[stage]]\n" + "".join(f"key{number} = {value}  # {value!r}\n" for number, value in enumerate(stage))
        for stage in stages
    )
    assert found_where_they_stand(text)


def test_a_key_that_is_missing_stands_in_its_table() -> None:
    lines = {"stage[0]": 3, "stage[0].task": 5, "stage[0].rewards.my.module:f": 9}
    assert nearest_line(lines, "stage[0].task.name") == 5
    assert nearest_line(lines, "stage[0].evaluation.at[1]") == 3
    assert nearest_line(lines, "stage[0].rewards.my.module:f") == 9
    assert nearest_line(lines, "seed") is None
