"""Settings of the stage that examines several models on several tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from melete.schema.base import Count, CountOrNone, Name, NotNegative, Problem, Settings, Share, Stage, TaskSettings


class ExamTask(Settings):
    """A task of an exam: which held-out problems, and how they are tried."""

    task: TaskSettings
    """Where the problems come from."""
    num_problems: Count = 100
    """Held-out problems."""
    num_samples: Count = 16
    """Completions per problem; majority votes and pass@k go up to this k."""
    max_new_tokens: Count = 128
    """Longest completion, in tokens."""
    temperature: NotNegative = 1.0
    """Sampling temperature; 0 always takes the likeliest token, so that all samples of a problem are the same."""
    top_p: Annotated[Share, Field(gt=0)] = 1.0
    """Sample from the likeliest tokens that together have this probability."""

    def problems(self) -> Iterator[Problem]:
        if self.temperature == 0 and self.num_samples > 1:
            yield "num_samples", f"at temperature 0 all {self.num_samples} samples of a problem are the same; use 1"


class EvaluateStage(Stage):
    """Examines several models on the same held-out problems of several tasks, each model with the same luck."""

    kind: Literal["evaluate"]
    """The kind of stage."""
    models: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    """The models, in the order of the table: earlier stages, bundled names, or directories in Hugging Face format."""
    labels: dict[str, str] = {}
    """What a report calls a model; others are called by their name."""
    tasks: Annotated[dict[Name, ExamTask], Field(min_length=1)]
    """Tables [stage.tasks.NAME], one for each task; the one whose name comes first in the alphabet is the main one."""
    same_prompts: CountOrNone = 2
    """Problems of each task whose first sample of every model is kept to be read side by side."""
    final: str = ""
    """The model that these problems are chosen by: preferably the first of models fails and this one does not; empty
    for the last of models."""
    max_rows: Count = 1024
    """Completions that are written at once; limits memory, changes no result."""

    @property
    def final_model(self) -> str:
        """The model at the end of the story."""
        return self.final or self.models[-1]

    def label(self, model: str) -> str:
        """What people call a model."""
        return self.labels.get(model, model)

    def reads(self) -> list[str]:
        return list(self.models)

    def task_tables(self) -> dict[str, TaskSettings]:
        return {f"tasks.{name}.task": exam.task for name, exam in self.tasks.items()}

    def problems(self) -> Iterator[Problem]:
        if repeated := [model for model, count in Counter(self.models).items() if count > 1]:
            yield "models", f"{', '.join(repeated)} comes more than once"
        for model in self.labels.keys() - set(self.models):
            yield f"labels.{model}", f"is none of the models, which are {', '.join(self.models)}"
        called = Counter(self.label(model) for model in dict.fromkeys(self.models))
        if alike := [label for label, count in called.items() if count > 1]:
            yield "labels", f"several models are called {', '.join(alike)}"
        if self.final and self.final not in self.models:
            yield "final", f"{self.final} is none of the models, which are {', '.join(self.models)}"

    def plan(self) -> str:
        tasks = ", ".join(f"{name} ({exam.num_problems} x {exam.num_samples})" for name, exam in self.tasks.items())
        return f"evaluate {len(self.models)} model{'s' * (len(self.models) > 1)} on {tasks}"
