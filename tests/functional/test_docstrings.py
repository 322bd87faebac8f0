"""The worked example of every docstring is true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch

FUNCTIONAL = Path(__file__).parents[2] / "melete" / "functional"
MODULES = [f"functional.{path.stem}" for path in sorted(FUNCTIONAL.glob("[a-z]*.py"))]


@pytest.mark.parametrize(
    "name", [*MODULES, "algorithms.table", "algorithms.preference", "batch", "text.answers", "text.steps", "threads"]
)
def test_the_examples_of_the_docstrings_are_true(name: str) -> None:
    module = importlib.import_module(f"melete.{name}")
    found = doctest.testmod(module, extraglobs={"torch": torch})
    assert found.attempted > 0
    assert found.failed == 0
