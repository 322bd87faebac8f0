"""Functions that a table names before torch is loaded: the same parameters, the same function, the same result."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest
import torch

from melete.algorithms import ALGORITHMS
from melete.algorithms.late import LateFunction, LateModule, actual
from melete.algorithms.preference import PREFERENCE_ALGORITHMS
from melete.algorithms.settings import AGGREGATIONS, KL_ESTIMATORS
from melete.functional import kl, policy
from melete.functional.aggregate import MODES

MODULES = ("advantages", "distill", "kl", "policy", "preference", "supervised", "value")


@pytest.mark.parametrize("module", MODULES)
def test_parameters_read_from_the_source_are_those_of_the_function(module: str):
    found = importlib.import_module(f"melete.functional.{module}")
    functions = [name for name, value in vars(found).items() if inspect.isfunction(value) and not name.startswith("_")]
    own = [name for name in functions if inspect.unwrap(vars(found)[name]).__module__ == found.__name__]
    assert own
    for name in own:
        late, real = LateFunction(module, name), inspect.signature(vars(found)[name])
        read = inspect.signature(late)
        assert list(read.parameters) == list(real.parameters), name
        for parameter in real.parameters:
            has_default = real.parameters[parameter].default is not inspect.Parameter.empty
            assert (read.parameters[parameter].default is not inspect.Parameter.empty) == has_default
            assert read.parameters[parameter].kind == real.parameters[parameter].kind


def test_every_row_names_a_function_that_is_there():
    rows = [*ALGORITHMS.values(), *PREFERENCE_ALGORITHMS.values()]
    for row in rows:
        assert callable(actual(row.loss)) and actual(row.loss).__name__ == row.loss.__name__
    assert actual(ALGORITHMS["grpo"].loss) is policy.clipped


def test_a_late_function_does_what_the_function_does():
    logprobs, reference = torch.tensor([[-1.0]]), torch.tensor([[-1.5]])
    assert torch.equal(LateModule("kl").k3(logprobs, reference), kl.k3(logprobs, reference))


def test_a_function_that_is_not_there_is_told_at_once():
    with pytest.raises(AttributeError, match=r"melete\.functional\.kl has no function k9"):
        _ = LateModule("kl").k9


def test_the_names_of_the_settings_are_those_of_the_functions():
    assert tuple(MODES) == AGGREGATIONS and tuple(kl.ESTIMATORS) == KL_ESTIMATORS


def test_checking_a_recipe_loads_no_torch():
    code = (
        "import sys; from melete.config import bundled_recipes, load_recipe\n"
        "for name in bundled_recipes(): load_recipe(name)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_what_a_row_needs_is_told_without_torch():
    code = (
        "import sys; from melete.algorithms import resolve\n"
        "from melete.algorithms.preference import resolve_preference\n"
        "row = resolve('ppo', kl_coef=0.1); assert 'values' in row.needs and row.defaults['clip_low'] == 0.2;"
        "assert resolve_preference('dpo', beta=0.5).needs_reference; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
