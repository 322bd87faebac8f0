"""The exam as a stage: every model on every task with the same luck, and a cut that leaves no trace."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

from melete.corpus.mix import sample_texts
from melete.errors import RunError
from melete.live import View
from melete.models.load import save_model
from melete.models.tiny import tiny_model, train_tokenizer
from melete.runs.directory import RunDirectory
from melete.schema.evaluation import EvaluateStage
from melete.stages.context import Interrupted, StageContext
from melete.stages.evaluate import folder_of, run_evaluate

SUMS = {"name": "arithmetic_chain", "min_terms": 3, "max_terms": 3}
NAMES = ("one", "two")
Context = Callable[..., StageContext]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random models with tokenizers of their own."""
    directory = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(NAMES):
        tokenizer = train_tokenizer(sample_texts(seed, 60), 500 + 20 * seed)
        torch.manual_seed(seed)
        save_model(tiny_model(tokenizer, hidden_size=32, num_layers=2), tokenizer, directory / name)
    return directory


@pytest.fixture
def context(tmp_path: Path, models: Path) -> Iterator[Context]:
    """A run of its own for each place."""
    opened: list[Any] = []

    def make(place: str = "run", should_stop: Callable[[], bool] = lambda: False) -> StageContext:
        run = RunDirectory.create_or_open(tmp_path / place, {"name": "r", "seed": 0})
        opened.append(run)
        return StageContext(
            run=run,
            seed=0,
            view=View([], plain=True, console=Console(file=io.StringIO())),
            should_stop=should_stop,
            model_path=lambda name: models / name,
            data_path=Path,
            run_recipe=lambda _recipe, _place: None,
        )

    yield make
    for run in opened:
        run.close()


def exam(**changes: Any) -> EvaluateStage:
    given: dict[str, Any] = {
        "name": "exam",
        "kind": "evaluate",
        "models": list(NAMES),
        "labels": {"two": "the second"},
        "tasks": {
            "sums": {"task": SUMS, "num_problems": 3, "num_samples": 2, "max_new_tokens": 8},
            "general": {"task": {"name": "general"}, "num_problems": 4, "num_samples": 2, "max_new_tokens": 8},
        },
        "same_prompts": 1,
    }
    return EvaluateStage.model_validate(given | changes)


def rows(context: StageContext) -> list[dict[str, Any]]:
    return context.run.metrics()


def without_time(entry: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in entry.items() if key != "seconds"})


def test_every_model_is_tried_on_every_task_and_the_same_prompts_are_kept(context: Context) -> None:
    here = context()
    entry = run_evaluate(exam(), here)
    assert [(one["model"], one["label"]) for one in entry["checkpoints"]] == [("one", "one"), ("two", "the second")]
    for one in entry["checkpoints"]:
        assert one["num_parameters"] > 0 and list(one["tasks"]) == ["general", "sums"]
        assert one["tasks"]["sums"]["num_problems"] == 3 and one["tasks"]["general"]["num_problems"] == 4
    assert [(row["model"], row["task"], row["step"]) for row in rows(here)] == [
        ("one", "general", 0), ("one", "sums", 1), ("two", "general", 2), ("two", "sums", 3),
    ]  # fmt: skip
    assert {row["kind"] for row in rows(here)} == {"evaluation"}
    assert [shown["task"] for shown in entry["same_prompts"]] == ["general", "sums"]
    for shown in entry["same_prompts"]:
        assert [answer["model"] for answer in shown["answers"]] == list(NAMES)
    assert "the second" in entry["same_prompts_rule"] and entry["evaluations"] == []
    assert entry["same_prompts"][1]["kind"] == "" != entry["same_prompts"][0]["kind"]
    assert (here.run.path / "evaluations" / "exam" / "two" / "sums.jsonl").exists()
    json.dumps(entry)


def test_a_cut_exam_goes_on_with_the_same_result_and_writes_nothing_twice(context: Context) -> None:
    whole = context("whole")
    entry = run_evaluate(exam(), whole)
    asked = iter([False, False, False, True])
    cut = context("cut", should_stop=lambda: next(asked))
    with pytest.raises(Interrupted):
        run_evaluate(exam(), cut)
    kept = sorted((cut.run.path / "evaluations").rglob("*.jsonl"))
    assert len(kept) == len(rows(cut)) == 3
    times = [path.stat().st_mtime_ns for path in kept]
    cut.run.close()
    again = context("cut")
    assert without_time(run_evaluate(exam(), again)) == without_time(entry)
    assert rows(again) == rows(whole)
    assert [path.stat().st_mtime_ns for path in kept] == times


def test_what_is_kept_is_read_back_without_the_weights(context: Context, models: Path) -> None:
    here = context()
    entry = run_evaluate(exam(models=["one"], labels={}), here)
    weights = models / "one" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(b"")
    try:
        assert without_time(run_evaluate(exam(models=["one"], labels={}), here)) == without_time(entry)
    finally:
        weights.write_bytes(content)


def test_the_order_of_the_tables_changes_nothing(context: Context) -> None:
    one, other = context("one"), context("other")
    stage = exam()
    turned = stage.model_copy(update={"tasks": dict(reversed(stage.tasks.items()))})
    assert without_time(run_evaluate(stage, one)) == without_time(run_evaluate(turned, other))
    assert rows(one) == rows(other)


def test_corrections_are_judged_by_what_the_task_knows(context: Context) -> None:
    entry = run_evaluate(exam(models=["one"], labels={}), context())
    tasks = entry["checkpoints"][0]["tasks"]
    assert tasks["sums"]["repair"]["marked"] == 0, "a random model corrects nothing"
    assert tasks["general"]["repair"] is None is tasks["sums"]["by_kind"]
    assert tasks["general"]["by_kind"]


def test_a_damaged_result_is_refused_with_its_place(context: Context) -> None:
    here = context()
    run_evaluate(exam(), here)
    (here.run.path / "evaluations" / "exam" / "one" / "sums.jsonl").write_text('{"problem_id": 3}\n')
    with pytest.raises(RunError, match=r"one/sums\.jsonl"):
        run_evaluate(exam(), here)


def test_all_models_have_the_same_luck(context: Context, models: Path) -> None:
    twin = models / "twin"
    if not twin.exists():
        twin.symlink_to(models / "one")
    entry = run_evaluate(exam(models=["one", "twin"], labels={}), context())
    one, other = entry["checkpoints"]
    for name, found in other["tasks"].items():
        assert found.pop("win_rate") == 0.5, "against its twin a model wins half the time"
        assert (found.pop("win_rate/low"), found.pop("win_rate/high")) == (0.5, 0.5)
        assert one["tasks"][name] == found


def test_models_given_by_their_paths_have_folders_of_their_own(context: Context, models: Path) -> None:
    here = context()
    run_evaluate(exam(models=[str(models / name) for name in NAMES], labels={}), here)
    assert {path.name for path in (here.run.path / "evaluations" / "exam").iterdir()} == {"0-one", "1-two"}
    assert folder_of("../../etc/..", 1) == "1-.."


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": ["one", "one"]}, "one comes more than once"),
        ({"labels": {"three": "x"}}, "labels.three"),
        ({"labels": {"one": "two"}}, "several models are called two"),
        ({"final": "three"}, "final: three is none"),
        ({"tasks": {}}, "at least 1"),
        ({"models": []}, "at least 1"),
        ({"tasks": {"sums": {"task": SUMS, "temperature": 0.0}}}, "use 1"),
    ],
)
def test_what_cannot_be_examined_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        exam(**changes)
