"""The stage that examines several models on the same held-out problems of several tasks."""

from __future__ import annotations

import gc
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from melete.evaluation.evaluate import EvaluationResult, compared
from melete.evaluation.held_out import HeldOut
from melete.evaluation.same_prompts import Answer, choose_prompts, first_answers, rule
from melete.models.load import load_tokenizer
from melete.runs.atomic import json_text, write_atomically
from melete.sampling.native import NativeSampler
from melete.schema.evaluation import EvaluateStage, ExamTask
from melete.stages.context import Interrupted, StageContext
from melete.tasks import make_task
from melete.tasks.base import Task
from melete.text.chat import opens_thought
from melete.types import SamplingSettings

_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def run_evaluate(stage: EvaluateStage, context: StageContext) -> dict[str, Any]:
    """Tries every model on every task; returns the stage's entry of `summary.json`.

    What a model wrote on a task is kept in `evaluations/<stage>/<model>/<task>.jsonl` as soon as it is whole, and is
    not written again when the stage goes on after a cut.
    """
    started = time.perf_counter()
    context.run.truncate_metrics(stage.name, 0)  # every row is logged anew, from what was kept
    context.view.stage_started(stage.name, len(stage.models) * len(stage.tasks))
    # in the order of their names, whatever order a recipe was read back in
    exams = sorted(stage.tasks.items())
    tasks = {name: make_task(exam.task.name, exam.task.own_settings()) for name, exam in exams}
    answers: dict[str, dict[str, list[Answer]]] = {name: {} for name in tasks}
    first: dict[str, EvaluationResult] = {}
    checkpoints = []
    for number, model in enumerate(stage.models):
        desk = _Desk(stage, context, number)
        summaries = {}
        for name, task in tasks.items():
            if context.should_stop():
                raise Interrupted
            result = desk.evaluate(name, task, first.get(name))
            first.setdefault(name, result)
            summaries[name] = result.summary()
            answers[name][model] = first_answers(result)
        checkpoints.append(
            {"model": model, "label": stage.label(model), "num_parameters": desk.num_parameters, "tasks": summaries}
        )
        del desk
        gc.collect()  # one model is held at a time
    return {
        "name": stage.name,
        "kind": stage.kind,
        "seconds": time.perf_counter() - started,
        "evaluations": [],
        "checkpoints": checkpoints,
        "same_prompts": _same_prompts(stage, answers),
        "same_prompts_rule": rule(stage.label(stage.models[0]), stage.label(stage.final_model), stage.same_prompts),
    }


class _Desk:
    """One model in the exam. It is loaded when something has to be written, not when all can be read back."""

    def __init__(self, stage: EvaluateStage, context: StageContext, number: int) -> None:
        self.stage, self.context, self.number = stage, context, number
        self.model = stage.models[number]
        self.directory = context.run.path / "evaluations" / stage.name / folder_of(self.model, number)
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._sampler: NativeSampler | None = None

    @property
    def num_parameters(self) -> int:
        """How large the model is; kept, so that it need not be loaded for it."""
        return int(json.loads((self.directory / "model.json").read_text(encoding="utf-8"))["num_parameters"])

    def evaluate(self, name: str, task: Task, first: EvaluationResult | None) -> EvaluationResult:
        """The model's evaluation on a task, compared with that of the first model, logged and shown."""
        exam, began = self.stage.tasks[name], time.perf_counter()
        held_out = self._held_out(exam, task, may_sample=not (self.directory / f"{name}.jsonl").exists())
        result = held_out.kept(name)
        if first:
            result = compared(result, first, seed=self.context.seed)
        step = self.number * len(self.stage.tasks) + sorted(self.stage.tasks).index(name)
        label = self.stage.label(self.model)
        row = {"stage": self.stage.name, "step": step}
        told = {"kind": "evaluation", "model": self.model, "task": name, "label": label}
        self.context.run.log_metrics(row | told | result.row())
        self.context.run.log_timings(row | {"model": self.model, "task": name, "seconds": time.perf_counter() - began})
        view, shown = self.context.view, result.problems[0].samples[0].rollout
        view.step(self.stage.name, step, {"length_mean": result.length_mean}, _shown(label, shown))
        view.step(self.stage.name, step, result.row() | {"label": f"{label}, {name}"}, None)
        return result

    def _held_out(self, exam: ExamTask, task: Task, *, may_sample: bool) -> HeldOut:
        if may_sample and self._sampler is None:
            self._load()
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.context.model_path(self.model))
        return HeldOut(
            directory=self.directory,
            task=task,
            sampler=self._sampler,
            tokenizer=self._tokenizer,
            settings=SamplingSettings(exam.max_new_tokens, exam.temperature, exam.top_p),
            num_problems=exam.num_problems,
            num_samples=exam.num_samples,
            seed=self.context.seed,
            thought_opened=opens_thought(self._tokenizer),
        )

    def _load(self) -> None:
        self._tokenizer, model = self.context.load(self.model)
        self._sampler = NativeSampler(model, self._tokenizer, max_rows=self.stage.max_rows)
        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomically(self.directory / "model.json", json_text({"num_parameters": model.num_parameters()}) + "\n")


def folder_of(model: str, number: int) -> str:
    """The folder of a model's results: its name, or for a path its last part with its place in the list.

    >>> folder_of("zero", 0), folder_of("/models/R1 8B", 3)
    ('zero', '3-R1-8B')
    """
    if _PLAIN_NAME.fullmatch(model):
        return model
    return f"{number}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', Path(model).name)}"


def _shown(label: str, rollout: Any) -> str:
    return f"{label}: {rollout.problem.messages[-1].content}\n{rollout.text}"


def _same_prompts(stage: EvaluateStage, answers: Mapping[str, Mapping[str, Sequence[Answer]]]) -> list[dict[str, Any]]:
    """The chosen problems of each task with the first answer of every model."""
    found = []
    for task, by_model in answers.items():
        first, last = by_model[stage.models[0]], by_model[stage.final_model]
        for index in choose_prompts(first, last, stage.same_prompts):
            problem = first[index].problem
            found.append(
                {
                    "task": task,
                    "problem_id": problem.problem_id,
                    "prompt": problem.messages[-1].content,
                    "gold": problem.gold,
                    "kind": str(problem.meta.get("kind", "")),
                    "answers": [_told(model, given[index]) for model, given in by_model.items()],
                }
            )
    return found


def _told(model: str, answer: Answer) -> dict[str, Any]:
    return {
        "model": model,
        "text": answer.text,
        "correct": answer.correct,
        "score": answer.score,
        "num_tokens": answer.num_tokens,
    }
