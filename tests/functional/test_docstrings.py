"""The worked example of every docstring is true."""

from __future__ import annotations

import doctest
import importlib

import pytest
import torch

MODULES = [f"functional.{name}" for name in ("logprobs", "kl", "advantages", "policy", "supervised", "aggregate")]


@pytest.mark.parametrize("name", [*MODULES, "algorithms", "batch"])
def test_the_examples_of_the_docstrings_are_true(name: str) -> None:
    module = importlib.import_module(f"melete.{name}")
    found = doctest.testmod(module, extraglobs={"torch": torch})
    assert found.attempted > 0
    assert found.failed == 0
