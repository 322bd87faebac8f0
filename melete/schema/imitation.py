"""Settings of stages that imitate: supervised fine-tuning and distillation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from melete.schema.base import (
    Count,
    EvaluationSettings,
    Positive,
    Problem,
    Share,
    TaskSettings,
    TrainingStage,
)
from melete.schema.data import DataSettings


class SFTStage(TrainingStage, DataSettings):
    """Supervised fine-tuning on demonstrations."""

    kind: Literal["sft"]
    """The kind of stage."""
    data: Annotated[str, Field(min_length=1)]
    """An earlier stage that makes data, or a file or `datasets` directory of demonstrations or conversations."""
    too_long: Literal["refuse", "drop", "truncate"] = "refuse"
    """What happens to longer rows; one that is truncated does not teach how to end."""
    learn_from: Literal["every_turn", "last_turn"] = "every_turn"
    """Of a conversation, which turns of the assistant are learnt; the user's never are."""
    num_epochs: Count = 2
    """Passes over the data."""
    rows_per_step: Count = 32
    """Demonstrations per optimizer step."""
    packing: bool = False
    """Several rows as one sequence, none of which sees another: faster where lengths differ, with the same result."""
    task: TaskSettings | None = None
    """Where held-out problems come from; none for no evaluation."""
    max_new_tokens: Count = 128
    """Longest completion of an evaluation, in tokens."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Evaluation on held-out problems."""

    def reads_data(self) -> list[str]:
        return [self.data]

    def plan(self) -> str:
        return f"sft of {self.model} on {self.data}, {self.num_epochs} passes, lr {self.lr:g}"


METHODS_OF = {"student_share": ("gkd",), "jsd_beta": ("gkd",), "kd_temperature": ("logits", "gkd", "on_policy")}


class DistillStage(TrainingStage):
    """A student learns from a teacher with the same tokenizer."""

    kind: Literal["distill"]
    """The kind of stage."""
    teacher: Annotated[str, Field(min_length=1)]
    """The model to learn from."""
    method: Literal["sequence", "logits", "gkd", "on_policy"] = "gkd"
    """Copy the teacher's right answers, match its distribution on them, on a mixture, or on the student's own text."""
    student_share: Share = 0.5
    """gkd: share of prompts on which the student writes what is learnt from."""
    jsd_beta: Share = 0.5
    """gkd: 0 is forward KL, 1 reverse KL, between them the generalised Jensen-Shannon divergence."""
    kd_temperature: Positive = 1.0
    """Temperature of both distributions."""
    task: TaskSettings
    """The problems."""
    num_steps: Count = 40
    """Optimizer steps."""
    prompts_per_step: Count = 64
    """Problems per step."""
    max_new_tokens: Count = 128
    """Longest completion, in tokens."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Evaluation on held-out problems."""

    def reads(self) -> list[str]:
        return [self.model, self.teacher]

    def plan(self) -> str:
        budget = f"{self.num_steps} steps of {self.prompts_per_step} prompts"
        return f"{self.method} distillation of {self.teacher} into {self.model} on {self.task.name}, {budget}"

    def problems(self) -> Iterator[Problem]:
        if self.model == self.teacher:
            yield "teacher", f"is the student itself ({self.teacher}): there is nothing to learn"
        for name, methods in METHODS_OF.items():
            if self.method not in methods and getattr(self, name) != type(self).model_fields[name].default:
                yield name, f"has no meaning for method {self.method}; it belongs to {' and '.join(methods)}"
