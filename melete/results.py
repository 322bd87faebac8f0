"""What came of a stage or a recipe, for those who called it from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melete.errors import RunError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Result:
    """What a stage made: `entry` is its part of `summary.json`."""

    run_dir: Path
    stage: str
    entry: Mapping[str, Any]

    @property
    def model(self) -> Path | None:
        """The directory of the model that was trained, in Hugging Face format; none for a stage that makes none."""
        return self._made("model")

    @property
    def data(self) -> Path | None:
        """The file of the data that were made; none for a stage that makes none."""
        return self._made("data")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The stage's rows of `metrics.jsonl`: one for each step and evaluation."""
        from melete.runs.directory import METRICS, read_rows

        return [row for row in read_rows(self.run_dir / METRICS) if row.get("stage") == self.stage]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """Held-out results: of a training stage at each of its points, of an exam for each model and task."""
        exam = [
            {"model": one["model"], "task": task, **found}
            for one in self.entry.get("checkpoints", ())
            for task, found in one["tasks"].items()
        ]
        return exam or list(self.entry.get("evaluations", ()))

    @property
    def report(self) -> Path:
        """The report of the run, as a page."""
        return self.run_dir / "report.html"

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the data that were made. Raises `RunError` for a stage that makes none."""
        from melete.runs.directory import read_rows

        if self.data is None:
            raise RunError(f"{self.stage} makes no data", place=str(self.run_dir))
        return list(read_rows(self.data))

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Model and tokenizer. Raises `RunError` for a stage that makes none."""
        if self.model is None:
            raise RunError(f"{self.stage} makes no model", place=str(self.run_dir), remedy="load the model it read")
        from melete.models.load import load_model, load_tokenizer

        if self.entry.get("kind") == "reward_model":
            from melete.models.heads import load_scalar_model

            return load_scalar_model(self.model), load_tokenizer(self.model)
        return load_model(self.model), load_tokenizer(self.model)

    def _made(self, key: str) -> Path | None:
        place = self.entry.get(key)
        return self.run_dir / str(place) if place else None


@dataclass(frozen=True, slots=True)
class Run:
    """What a recipe made: the results of its stages by name."""

    run_dir: Path
    stages: Mapping[str, Result]
    learnt: str

    @property
    def report(self) -> Path:
        """The report of the run, as a page."""
        return self.run_dir / "report.html"
