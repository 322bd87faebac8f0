"""Rejection sampling and mixing as stages: with the bundled model, a judge over real HTTP, and data on disk."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from melete.config import parse_recipe
from melete.datasets.files import Row, read_rows, write_rows
from melete.errors import DataError
from melete.live import View
from melete.loops.reject import REASONS, Rules
from melete.models.load import load_tokenizer, resolve_model
from melete.pipeline import run_recipe
from melete.runs.directory import RunDirectory
from melete.schema.curation import MixStage, RejectStage
from melete.stages.context import Interrupted, StageContext
from melete.stages.mix import kind_of, largest_mix, run_mix, shares_of, wanted_rows, without_repeats
from melete.stages.reject import different_problems, rules_of, run_reject
from melete.stages.rl import train_problems
from melete.tasks import make_task
from melete.tasks.curation import question_of
from melete.text.answers import parse_completion
from melete.text.readable import ReadableLimits, asked_language, fault_of
from melete.types import Demonstration, LabelledCompletion, Message, PreferencePair

_SERVER = Path(__file__).parents[1] / "rewards" / "fault_server.py"
_SPEC = importlib.util.spec_from_file_location("fault_server", _SERVER)
assert _SPEC and _SPEC.loader
fault_server = importlib.util.module_from_spec(_SPEC)
sys.modules["fault_server"] = fault_server
_SPEC.loader.exec_module(fault_server)

CHAIN = {"name": "arithmetic_chain", "min_terms": 3, "max_terms": 3}
Context = Callable[..., StageContext]


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    """A run of its own for each seed."""
    opened: list[Any] = []

    def make(seed: int = 0, should_stop: Callable[[], bool] = lambda: False) -> StageContext:
        place = tmp_path / f"run{len(opened)}"
        run = RunDirectory.create_or_open(place, {"name": "r", "seed": seed})
        view = View([], plain=True, console=Console(file=io.StringIO()))
        opened.append(run)
        return StageContext(
            run=run,
            seed=seed,
            view=view,
            should_stop=should_stop,
            model_path=resolve_model,
            data_path=lambda name: Path(name) if name.endswith(".jsonl") else place / "data" / f"{name}.jsonl",
            run_recipe=lambda _recipe, _place: None,
        )

    yield make
    for run in opened:
        run.close()


def reject_stage(**changes: Any) -> RejectStage:
    given: dict[str, Any] = {"name": "kept", "kind": "reject", "task": CHAIN, "num_prompts": 24, "max_new_tokens": 48}
    return RejectStage.model_validate(given | changes)


def demonstrations(context: StageContext, name: str = "kept") -> list[Demonstration]:
    return read_rows(context.run.path / "data" / f"{name}.jsonl", Demonstration)


def test_what_is_kept_is_right_readable_capped_and_accounted_for(context: Context) -> None:
    here = context()
    entry = run_reject(reject_stage(keep_per_prompt=2, form="tidy"), here)
    rows = demonstrations(here)
    task = make_task("arithmetic_chain", {"min_terms": 3, "max_terms": 3, "seed": 0})
    by_question = {question_of(problem): problem for problem in different_problems(task, 0, "kept", 24)}
    for row in rows:
        problem, parsed = by_question[row.messages[-1].content], parse_completion(row.completion)
        assert parsed.well_formed and task.grade(problem, parsed.answer or "") == 1.0
        assert fault_of(row.completion, asked_language(problem), ReadableLimits()) is None
    per_prompt = Counter(row.messages for row in rows)
    assert rows and max(per_prompt.values()) <= 2
    assert entry["num_sampled"] == 24 * 4 == sum(entry["dropped"].values()) + len(rows)
    assert tuple(entry["dropped"]) == tuple(entry["filters"]) == REASONS
    assert (entry["num_rows"], entry["num_prompts"], entry["num_prompts_kept"]) == (len(rows), 24, len(per_prompt))
    assert entry["share_kept"] == len(rows) / 96 and entry["data"] == "data/kept.jsonl"
    assert entry["judge_agreement"] is None and entry["evaluations"] == []
    shown = {example["reason"] for example in entry["examples"]}
    assert shown == {""} | {reason for reason, count in entry["dropped"].items() if count}
    assert len({row.row_id for row in rows}) == len(rows)
    json.dumps(entry)


def test_the_same_seed_gives_the_same_rows_and_another_gives_others(context: Context) -> None:
    stage, places = reject_stage(num_prompts=8), [context(), context(), context(seed=1)]
    for place in places:
        run_reject(stage, place)
    one, same, other = ((place.run.path / "data" / "kept.jsonl").read_bytes() for place in places)
    assert one == same != other


def test_what_is_sampled_does_not_depend_on_the_batches(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = context(), context()
    run_reject(reject_stage(num_prompts=8), here)
    monkeypatch.setattr("melete.stages.reject.ROLLOUTS_AT_ONCE", 12)
    run_reject(reject_stage(num_prompts=8), there)
    assert demonstrations(here) == demonstrations(there)


def test_sampling_stops_when_there_are_enough_rows(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("melete.stages.reject.ROLLOUTS_AT_ONCE", 16)
    here = context()
    entry = run_reject(reject_stage(num_prompts=200, max_rows=5), here)
    assert len(demonstrations(here)) == entry["num_rows"] == 5
    assert entry["num_sampled"] < 200
    assert entry["num_sampled"] == 5 + sum(entry["dropped"].values())


def test_when_a_batch_fills_the_rows_exactly_no_other_is_sampled(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("melete.stages.reject.ROLLOUTS_AT_ONCE", 16)
    enough = run_reject(reject_stage(num_prompts=4), context())["num_rows"]
    entry = run_reject(reject_stage(num_prompts=40, max_rows=enough), context())
    assert (entry["num_rows"], entry["num_sampled"], entry["dropped"]["enough rows"]) == (enough, 16, 0)


def test_with_the_likeliest_tokens_alone_all_samples_of_a_problem_are_one(context: Context) -> None:
    entry = run_reject(reject_stage(num_prompts=8, top_p=0.01), context())
    assert entry["dropped"]["exact duplicate"] == 3 * entry["num_rows"]


def test_every_setting_reaches_the_rules() -> None:
    changes: dict[str, Any] = {
        "min_score": 0.5,
        "require_format": False,
        "require_thought": True,
        "form": "tidy",
        "max_similarity": 0.7,
        "keep_per_prompt": 3,
        "prefer": "shortest",
        "readable": {
            "max_repeated_share": 0.1,
            "repeated_ngram": 2,
            "min_language_share": 0.8,
            "max_paragraph_chars": 5,
            "no_code_blocks": False,
        },
    }
    task, words = make_task("arithmetic_chain", {"seed": 0}), load_tokenizer(resolve_model("tiny"))
    words.add_special_tokens({"additional_special_tokens": ["<think>"]})
    assert rules_of(reject_stage(**changes), task, words, "7") == Rules(
        plain=ANY,
        seed="7",
        limits=ReadableLimits(0.1, 2, 0.8, 5, False),
        min_score=0.5,
        require_format=False,
        require_thought=True,
        tidy=True,
        max_similarity=0.7,
        keep_per_prompt=3,
        prefer="shortest",
        control_tokens=frozenset({0, 1, 2}),  # without the tag, which is a special token here
    )
    anything = reject_stage(readable={"one_language": False})
    assert rules_of(anything, task, words, "7").limits.min_language_share == 0.0


def test_a_stage_that_is_asked_to_stop_writes_nothing(context: Context) -> None:
    here = context(should_stop=lambda: True)
    with pytest.raises(Interrupted):
        run_reject(reject_stage(num_prompts=4), here)
    assert not (here.run.path / "data").exists()


def test_when_nothing_is_kept_the_counts_and_a_way_out_are_told(context: Context) -> None:
    with pytest.raises(DataError, match=r"none of 16 samples of tiny is kept: 16 cut at the limit") as error:
        run_reject(reject_stage(num_prompts=4, max_new_tokens=1), context())
    assert "raise max_new_tokens" in str(error.value) and "stage kept" in str(error.value)


def test_a_task_with_few_problems_gives_each_once(context: Context) -> None:
    small = {"name": "arithmetic_chain", "min_terms": 2, "max_terms": 2, "max_number": 3, "max_total": 6}
    task = make_task("arithmetic_chain", {**{k: v for k, v in small.items() if k != "name"}, "seed": 0})
    problems = different_problems(task, 0, "kept", 500)
    everything = {question_of(task.problem("train", index)) for index in range(2000)}
    assert len(problems) == len(everything) and {question_of(problem) for problem in problems} == everything


def test_stages_and_seeds_have_problems_of_their_own_and_none_is_held_out() -> None:
    task = make_task("arithmetic_chain", {"seed": 0})
    drawn = [
        different_problems(task, seed, name, 40) for seed, name in ((0, "a"), (0, "b"), (1, "a"), (0, "s450"))
    ]  # the last lies lowest
    questions = [{problem.meta["expression"] for problem in problems} for problems in drawn]
    assert all(len(one) == 40 for one in questions)
    assert not questions[0] & questions[1] and not questions[0] & questions[2]
    trained_on = {problem.meta["expression"] for step in range(20) for problem in train_problems(task, 0, step, 0, 16)}
    assert all(not trained_on & one for one in questions)
    held_out = {task.problem("held_out", index).meta["expression"] for index in range(500)}
    assert all(not held_out & one for one in questions)


def oracle(asked: Any) -> Any:
    """A judge that reads the request as it stands: it compares the answer with the reference."""
    reference, answer = re.findall(r"(?:reference|answer to judge):\n===\w+===\n(.*?)\n===", asked.text, re.DOTALL)
    verdict = "correct" if f"<answer>{reference}</answer>" in answer else "incorrect"
    return fault_server.ok(json.dumps({"verdict": verdict, "reason": "?"}))


def test_an_honest_judge_agrees_with_the_rule_and_keeps_the_same(context: Context) -> None:
    by_rule, by_judge = context(), context()
    rule = run_reject(reject_stage(num_prompts=12), by_rule)
    with fault_server.FaultServer(oracle) as server:
        judge = {"model": "judge", "base_url": server.url, "num_calls": 1, "scope": "completion"}
        judged = run_reject(reject_stage(num_prompts=12, judge=judge), by_judge)
    found = judged["judge_agreement"]
    assert found["agreement"] == 1.0 and found["num"] == found["both_right"] + found["both_wrong"] > 20
    assert found["both_right"] > 0 and found["both_wrong"] > 0
    assert demonstrations(by_rule) == demonstrations(by_judge) and judged["dropped"] == rule["dropped"]


def test_a_judge_that_says_yes_to_everything_is_seen_through(context: Context) -> None:
    with fault_server.FaultServer(lambda _asked: fault_server.ok('{"verdict": "correct"}')) as server:
        judge = {"model": "judge", "base_url": server.url, "num_calls": 1}
        entry = run_reject(reject_stage(num_prompts=12, judge=judge), context())
    found = entry["judge_agreement"]
    assert entry["dropped"]["wrong"] == 0 == found["only_rule_right"] == found["both_wrong"]
    assert found["agreement"] == found["both_right"] / found["num"] < 1


def test_an_answer_without_a_verdict_is_counted_and_left_out(context: Context) -> None:
    """Every second reply is no verdict."""

    def behave(asked: Any) -> Any:
        return fault_server.ok('{"verdict": "correct"}' if asked.number % 2 else "I think so.")

    with fault_server.FaultServer(behave) as server:
        judge = {"model": "judge", "base_url": server.url, "num_calls": 1, "concurrency": 1}
        entry = run_reject(reject_stage(num_prompts=8, judge=judge), context())
    assert entry["dropped"]["no verdict"] > 0 and entry["num_rows"] > 0
    assert sum(entry["dropped"].values()) + entry["num_rows"] == 32


def test_a_judge_on_this_machine_that_writes_sums_keeps_nothing_and_says_so(context: Context) -> None:
    judge = {"model": "tiny", "num_calls": 1, "max_new_tokens": 8}
    with pytest.raises(DataError, match="no verdict") as error:
        run_reject(reject_stage(num_prompts=4, judge=judge), context())
    assert "judge" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_prompts": 10, "keep_per_prompt": 2, "max_rows": 21}, "max_rows: is more than the 20"),
        ({"judge": {"model": "tiny", "verdict": "win_rate", "num_calls": 1}}, "judge.num_calls: must be at least 2"),
        ({"prefer": "longest"}, "prefer"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        reject_stage(**changes)


def test_a_stage_tells_what_it_reads_and_does() -> None:
    stage = reject_stage(model="zero", judge={"model": "wise"})
    assert (stage.reads(), stage.makes) == (["zero", "wise"], "data")
    assert "24 x 4 samples of zero on arithmetic_chain, judged by wise, at most 4 per problem" in stage.plan()
    assert reject_stage(judge={"model": "far", "base_url": "https://host/v1"}).reads() == ["tiny"]
    mix = MixStage(name="m", kind="mix", parts={"a": 3.0, "b": 1.0})
    assert (mix.reads(), mix.reads_data(), mix.makes, mix.plan()) == ([], ["a", "b"], "data", "mix of 3 a, 1 b")


def rows_of(name: str, count: int, first: int = 0) -> list[Demonstration]:
    return [
        Demonstration(str(n), (Message("user", f"{name} {n}?"),), f"<answer>{n}</answer>")
        for n in range(first, first + count)
    ]


def mix(here: StageContext, parts: dict[str, list[Any]], weights: dict[str, float], **changes: Any) -> dict[str, Any]:
    for name, rows in parts.items():
        write_rows(here.data_path(name), rows)
    return run_mix(MixStage.model_validate({"name": "m", "kind": "mix", "parts": weights} | changes), here)


def test_a_mix_is_as_large_as_its_proportions_allow_with_no_row_twice(context: Context) -> None:
    here = context()
    entry = mix(here, {"a": rows_of("a", 30), "b": rows_of("b", 50)}, {"a": 3.0, "b": 1.0})
    rows = demonstrations(here, "m")
    assert Counter(row.row_id.partition("/")[0] for row in rows) == {"a": 30, "b": 10}
    assert len({row.messages for row in rows}) == len(rows) == entry["num_rows"] == 40
    assert [(part["name"], part["num_rows"], part["share"]) for part in entry["parts"]] == [
        ("a", 30, 0.75),
        ("b", 10, 0.25),
    ]
    order = [row.row_id[0] for row in rows]
    assert order != sorted(order)  # shuffled
    drawn = [int(row.row_id[2:]) for row in rows if row.row_id[0] == "b"]
    assert sorted(drawn) != list(range(10))  # by chance, not the first ones


def test_the_number_of_rows_can_be_asked_for(context: Context) -> None:
    here = context()
    mix(here, {"a": rows_of("a", 30), "b": rows_of("b", 50)}, {"a": 3.0, "b": 1.0}, num_rows=10)
    assert Counter(row.row_id[0] for row in demonstrations(here, "m")) == {"a": 8, "b": 2}


def test_rows_repeat_only_when_told_to_and_evenly(context: Context) -> None:
    here, parts = context(), {"a": rows_of("a", 4), "b": rows_of("b", 50)}
    with pytest.raises(DataError, match="10 of 20 rows should come from a, which has 4") as error:
        mix(here, parts, {"a": 1.0, "b": 1.0}, num_rows=20)
    assert "set num_rows to at most 8, or repeat = true" in str(error.value)
    entry = mix(here, parts, {"a": 1.0, "b": 1.0}, num_rows=20, repeat=True)
    rows = demonstrations(here, "m")
    times = Counter(row.messages for row in rows if row.row_id.startswith("a/"))
    assert sorted(times.values()) == [2, 2, 3, 3] and entry["num_rows"] == 20
    assert len({row.row_id for row in rows}) == 20


def test_a_row_of_two_parts_comes_once(context: Context) -> None:
    """The first part by name keeps it, and rows that differ in case and spacing only are the same."""
    here, shared = context(), rows_of("x", 5)
    louder = [Demonstration("9", (Message("user", "X  3?"),), "<answer>3</answer>")]
    parts = {"b": [*shared, *rows_of("b", 5)], "a": [*rows_of("a", 8), *shared[:3], *louder]}
    entry = mix(here, parts, {"b": 1, "a": 1})
    found = {part["name"]: part["num_duplicates"] for part in entry["parts"]}
    assert found == {"b": 4, "a": 0}
    # 12 different rows of a and 6 of b: at 1:1, one odd row may come on top
    assert len({row.messages[0].content.casefold() for row in demonstrations(here, "m")}) == entry["num_rows"] == 13


def test_the_order_of_the_parts_in_the_recipe_changes_no_row(context: Context) -> None:
    parts, places = {"a": rows_of("a", 9), "b": rows_of("b", 9)}, [context(), context(), context(seed=1)]
    mix(places[0], parts, {"a": 2, "b": 1})
    mix(places[1], parts, {"b": 1, "a": 2})
    mix(places[2], parts, {"a": 2, "b": 1})
    one, same, other = (demonstrations(place, "m") for place in places)
    assert one == same != other


def test_files_and_other_kinds_of_rows_can_be_mixed_but_not_kinds_with_each_other(
    context: Context, tmp_path: Path
) -> None:
    here, file = context(), tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "How?", "chosen": "So.", "rejected": "No."}\n')
    pairs: list[Row] = [PreferencePair("0", (Message("user", "Who?"),), "I.", "You.", 0.5)]
    mix(here, {"a": pairs}, {"a": 1, str(file): 1})
    found = read_rows(here.data_path("m"), PreferencePair)
    assert {row.chosen for row in found} == {"So.", "I."} and {row.margin for row in found} == {0.0, 0.5}
    with pytest.raises(DataError, match="a holds rows of the kind PreferencePair, but b Demonstration"):
        mix(here, {"a": pairs, "b": rows_of("b", 2)}, {"a": 1, "b": 1})


def test_the_same_completion_with_another_label_is_another_row() -> None:
    rows = [LabelledCompletion(str(n), (Message("user", "?"),), "So.", label) for n, label in enumerate([True, False])]
    assert without_repeats({"a": rows}) == {"a": rows}


def test_the_kind_of_a_file_is_told_by_its_first_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for columns, kind in (
        ({"completion": "a", "label": True}, LabelledCompletion),
        ({"completion": "a"}, Demonstration),
    ):
        file.write_text("\n" + json.dumps({"prompt": "?", "completion": "a", **columns}) + "\n")
        assert kind_of(file) is kind


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "parts"),
        ({"a": 0.0}, "parts.a"),
        ({"a": -1.0}, "parts.a"),
        ({"a": float("inf")}, "parts.a"),
    ],
)
def test_weights_that_are_none_are_refused(parts: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MixStage(name="m", kind="mix", parts=parts)


def test_repeating_without_a_number_of_rows_is_refused() -> None:
    with pytest.raises(ValidationError, match="repeat: needs num_rows"):
        MixStage(name="m", kind="mix", parts={"a": 1}, repeat=True)


def test_a_part_that_gives_no_row_is_refused() -> None:
    stage = MixStage(name="m", kind="mix", parts={"a": 1000.0, "b": 1.0})
    with pytest.raises(DataError, match="b gives no row"):
        wanted_rows({"a": 10, "b": 10}, stage)


def test_a_file_that_is_not_there_is_named(context: Context) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        mix(context(), {"a": rows_of("a", 2)}, {"a": 1, "nowhere.jsonl": 1})


def test_a_whole_recipe_samples_mixes_and_learns(tmp_path: Path) -> None:
    recipe = parse_recipe(
        {
            "name": "curate",
            "stage": [
                {"name": "chains", "kind": "reject", "task": CHAIN, "num_prompts": 6, "max_new_tokens": 48},
                {"name": "talk", "kind": "reject", "task": {"name": "general"}, "num_prompts": 8, "max_new_tokens": 48},
                {"name": "both", "kind": "mix", "parts": {"chains": 3, "talk": 1}},
                {"name": "dev", "kind": "sft", "data": "both", "num_epochs": 1, "evaluation": {"at": []}},
            ],
        }
    )
    with View([], plain=True, console=Console(file=io.StringIO())) as view:
        run_dir = run_recipe(recipe, tmp_path / "r", view=view, command="melete run curate", with_report=False)
    entries = {stage["name"]: stage for stage in json.loads((run_dir / "summary.json").read_text())["stages"]}
    assert [part["share"] for part in entries["both"]["parts"]] == pytest.approx([0.75, 0.25], abs=0.1)
    assert entries["both"]["num_rows"] == len(read_rows(run_dir / "data" / "both.jsonl", Demonstration))
    assert (run_dir / "models" / "dev").is_dir()


def test_the_recipes_of_the_documentation_can_be_used() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    blocks = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        parse_recipe({"name": "page", **tomllib.loads(block)})
    for reason in REASONS:
        assert reason in page


WEIGHTS = st.dictionaries(st.sampled_from("abcd"), st.sampled_from([0.1, 0.7, 1.0, 2.0, 3.0]), min_size=1)


@settings(max_examples=50)
@given(WEIGHTS, st.integers(1, 200))
def test_shares_add_up_and_are_within_one_row_of_the_proportions(weights: dict[str, float], num_rows: int) -> None:
    found = shares_of(num_rows, weights)
    assert sum(found.values()) == num_rows and found.keys() == weights.keys()
    for name, count in found.items():
        assert abs(count - num_rows * weights[name] / sum(weights.values())) < 1


def test_weights_are_the_decimal_fractions_that_they_look_like() -> None:
    """3.5 and 1.5 rows: the odd one goes to the heavier part, though 0.7 is less than 7/10 in binary."""
    assert shares_of(5, {"a": 0.7, "b": 0.3}) == {"a": 4, "b": 1}


@settings(max_examples=50)
@given(WEIGHTS, st.integers(0, 40), st.integers(0, 40))
def test_the_largest_mix_is_that_of_a_search_from_above(weights: dict[str, float], some: int, others: int) -> None:
    available = {name: some if name in "ab" else others for name in weights}

    def fits(num_rows: int) -> bool:
        return all(count <= available[name] for name, count in shares_of(num_rows, weights).items())

    wanted = next(number for number in range(sum(available.values()) + 1, -1, -1) if fits(number))
    assert largest_mix(available, weights) == wanted
