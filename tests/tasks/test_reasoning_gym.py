"""Every data set of reasoning-gym: its gold answers score 1, junk and programs score 0, and items never move."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from melete.errors import RecipeError
from melete.tasks.base import SPLITS, split_of
from melete.tasks.curation import normal_text
from melete.types import Message, Problem

pytest.importorskip("pycosat", reason="reasoning-gym is not installed")
if importlib.util.find_spec("reasoning_gym") is None:
    pytest.skip("reasoning-gym is not installed", allow_module_level=True)

from melete.tasks.reasoning_gym import ReasoningGym, _pool, dataset_names, make_reasoning_gym, refused_datasets
from melete.tasks.reasoning_gym_worker import EVALUATES_ANSWERS, check_formula

JUNK = ("", " ", "xyzzy plugh", "nan", "inf", "1e999", "[[]]", "None", "{}", "0 1 yes no True False")
HASHED = ("codeio", "isomorphic_strings", "polynomial_multiplication", "ransom_note", "word_ladder")  # and knight_swap
SLOW = ("knight_swap", "futoshiki", "zebra_puzzles", "puzzle24", "intermediate_integration", "arc_agi", "countdown")
NAMES = dataset_names()


def programs(path: Path) -> list[str]:
    touch = f"__import__('os').system('touch {path}')"
    return [touch, f"[{touch}]", f"[['Q', {touch}]]", f"x + {touch}", f"1 and {touch}", f"f'{{{touch}}}'"]


@pytest.mark.parametrize("name", NAMES)
def test_gold_answers_score_one_and_junk_and_programs_nothing(name: str, tmp_path: Path) -> None:
    task = make_reasoning_gym(f"reasoning_gym/{name}", {"seed": 3})
    partial = ReasoningGym(name, partial_credit=True, seed=3)
    drawn: list[Problem] = []
    for index in range(1 if name in SLOW else 2):
        problem = task.problem("train", index)
        assert problem.task == task.name == f"reasoning_gym/{name}" and problem.problem_id.endswith(f"train/3/{index}")
        assert split_of(normal_text(problem.messages[0].content)) == "train"
        assert task.grade(problem, problem.gold) == partial.grade(problem, problem.gold) == 1.0
        for text in [*JUNK, *programs(tmp_path / "touched")]:
            assert task.grade(problem, text) == 0.0
            assert 0.0 <= partial.grade(problem, text) < 1.0
        assert json.loads(json.dumps(dict(problem.meta))) == problem.meta
        drawn.append(problem)
    for problem, other in itertools.permutations(drawn, 2):
        differs = normal_text(problem.gold) != normal_text(other.gold)
        assert not (differs and task.grade(problem, other.gold)), "another item's answer is paid"
    assert not (tmp_path / "touched").exists()


def test_what_cannot_be_a_task_is_refused_with_the_reason() -> None:
    refused = refused_datasets()
    assert sorted(refused) == ["boxnet", "composite", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"]
    assert len(NAMES) >= 100 and not set(NAMES) & set(refused)
    for name, reason in refused.items():
        with pytest.raises(RecipeError, match=re.escape(reason)):
            make_reasoning_gym(f"reasoning_gym/{name}", {})


PROGRAM = """
import json, sys
from melete.tasks.reasoning_gym import ReasoningGym

tasks = [ReasoningGym(name, seed=3) for name in json.loads(sys.argv[1])]
for task in tasks[::3]:
    task.problem("train", 1)  # drawing others first changes nothing
problems = [task.problem("train", 0) for task in tasks]
print(json.dumps([[problem.problem_id, problem.messages[0].content, problem.gold] for problem in problems]))
"""


def test_items_are_the_same_in_another_process_with_another_hash_seed_and_history() -> None:
    names = [name for name in NAMES if name not in SLOW] + ["knight_swap"]
    assert set(HASHED) < set(names)
    problems = [ReasoningGym(name, seed=3).problem("train", 0) for name in names]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(names[::-1])],
        env={**os.environ, "PYTHONHASHSEED": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = [[problem.problem_id, problem.messages[0].content, problem.gold] for problem in problems]
    assert json.loads(done.stdout)[::-1] == here


@pytest.mark.parametrize("name", ["gcd", "chain_sum", "acre", "gsm_symbolic", "list_functions", "spell_backward"])
def test_splits_never_meet_and_seeds_and_indices_draw_other_problems(name: str) -> None:
    asked: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        for seed in (0, 1):
            task = ReasoningGym(name, seed=seed)
            drawn = [task.problem(split, index) for index in range(12)]
            assert all(task.grade(problem, problem.gold) == 1.0 for problem in drawn)
            asked[split] |= {problem.messages[0].content for problem in drawn}
        assert len(asked[split]) > 12
    assert not asked["train"] & asked["held_out"]


def test_settings_of_the_data_set_are_settings_of_the_task() -> None:
    task = make_reasoning_gym(
        "reasoning_gym/chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    )
    assert re.search(r"\b\d [-+] \d =", task.problem("train", 0).messages[0].content)
    harder = dataclasses.replace(task, config={"min_terms": 5, "max_terms": 5})
    assert len(re.findall(r" [-+] ", harder.problem("train", 0).messages[0].content)) == 4
    task = make_reasoning_gym("reasoning_gym/basic_arithmetic", {"operators": ["+"], "allow_parentheses": False})
    assert not re.search(r"\d [-*/] ", task.problem("train", 0).messages[0].content)


@pytest.mark.parametrize(
    ("name", "settings", "hint"),
    [
        ("reasoning_gym/chain_sums", {}, "did you mean chain_sum?"),
        ("reasoning_gym/", {}, "there is no data set"),
        ("reasoning_gym/chain_sum", {"min_term": 2}, "did you mean min_terms?"),
        ("reasoning_gym/chain_sum", {"size": 2}, "no setting 'size'"),
        ("reasoning_gym/chain_sum", {"seed": "2"}, "seed must be int"),
        ("reasoning_gym/chain_sum", {"partial_credit": 1}, "partial_credit must be bool"),
        ("reasoning_gym/chain_sum", {"min_terms": 9, "max_terms": 2}, "the config cannot be"),
        ("reasoning_gym/chain_sum", {"min_terms": "two"}, "the config cannot be"),
        ("reasoning_gym/chain_sum", {"min_terms": {1}}, "not plain data"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, settings: dict[str, Any], hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_reasoning_gym(name, settings)
    assert hint in str(caught.value)


def test_a_config_that_leaves_a_split_empty_is_refused_and_does_not_hang() -> None:
    few = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1, "allow_negation": False}
    task = make_reasoning_gym("reasoning_gym/chain_sum", few)
    assert task.problem("held_out", 0)  # a hundred sums are enough
    one = make_reasoning_gym("reasoning_gym/count_bits", {"min_n": 5, "max_n": 5})
    with pytest.raises(RecipeError, match="leave no problem for the"):
        [one.problem(split, 0) for split in SPLITS]


def test_scorers_that_pay_wrong_answers_are_not_asked() -> None:
    coin, life = ReasoningGym("coin_flip"), ReasoningGym("game_of_life_halting")
    problem = Problem("p", coin.name, (Message("user", ""),), "", coin.problem("train", 0).meta)
    gold = coin.problem("train", 0).gold
    assert problem.meta["exact"] and coin.grade(problem, gold) == 1.0
    assert [coin.grade(problem, text) for text in ("0", "0.", gold[:3], "1e-9", "nan") if text != gold] == [0.0] * 5
    for index in range(6):
        problem = life.problem("train", index)
        wrong = "False" if problem.gold == "True" else "True"
        assert (life.grade(problem, problem.gold.lower()), life.grade(problem, wrong)) == (1.0, 0.0)
    game = ReasoningGym("puzzle24", config={"min_value": 1, "max_value": 10})
    problem = game.problem("train", 0)
    assert game.grade(problem, problem.gold) == 1.0
    assert [game.grade(problem, text) for text in ("10*2 - 1 + 5", "6*4*1/1", "24", "10 + 10 + 9/2 + 0")] == [0.0] * 4
    numbers = ReasoningGym("complex_arithmetic")
    problem = numbers.problem("train", 0)
    assert not problem.meta["exact"] and numbers.grade(problem, f" {problem.gold} ") == 1.0
    assert numbers.grade(problem, "nan") == numbers.grade(problem, "nan + nani") == 0.0


def test_partial_credit_is_paid_only_when_it_is_asked_for() -> None:
    whole, part = ReasoningGym("gcd"), ReasoningGym("gcd", partial_credit=True)
    problem = whole.problem("train", 0)
    padded = f"{problem.gold} or so"
    assert whole.grade(problem, padded) == 0.0 and 0.0 < part.grade(problem, padded) < 1.0


@pytest.mark.parametrize(
    "text", ["9**9**9**9", "x**(2**99999)", "(" * 1900, "1" * 1999 + "_", " " * 1999 + "!", "2**" * 600]
)
@pytest.mark.parametrize("name", ["simple_integration", "countdown", "polynomial_multiplication"])
def test_a_formula_that_would_not_end_is_wrong_at_once(name: str, text: str) -> None:
    task = ReasoningGym(name)
    problem = task.problem("train", 0)
    begin = time.monotonic()
    assert task.grade(problem, text) == 0.0
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("text", ["x.real", "x[0]", "'a'", "open(x)", "_", "x__y", "lambda: 1", 'f"x"', "x;y", "{x}"])
def test_what_is_no_formula_never_reaches_the_parser(text: str) -> None:
    with pytest.raises(ValueError, match="not a formula"):
        check_formula(text)
    for formula in ("-x**2/2 + 3*exp(-2*x)*sin(x) + C", "(1 + 2.5)*.5", "417*y**57 - z"):
        check_formula(formula)


def test_no_other_module_of_the_library_evaluates_answers() -> None:
    """Reads the source: a new version may bring another `eval(answer)`."""
    spec = importlib.util.find_spec("reasoning_gym")
    assert spec is not None and spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    found = {
        "reasoning_gym." + ".".join(path.relative_to(root).with_suffix("").parts)
        for path in root.rglob("*.py")
        if re.search(r"\b(?:eval|exec|sympify|S)\(\s*(?:user_)?answer", path.read_text(encoding="utf-8"))
    }
    assert found == set(EVALUATES_ANSWERS)


def test_without_the_library_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"reasoning_gym is not installed") as caught:
        _pool.__wrapped__()
    assert caught.value.remedy == "pip install 'melete[envs]'"
