"""Every example in a docstring says what its code does."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "melete").rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


def test_there_are_examples_in_many_modules():
    assert len(MODULES) > 30


@pytest.mark.parametrize("name", MODULES)
def test_every_example_says_what_its_code_does(name: str):
    module = importlib.import_module(name)
    found = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0 and found.failed == 0
