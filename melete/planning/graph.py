"""A recipe as a graph: the model on disk that a stage's model goes back to, and how large a data set will be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from melete.datasets.files import first_rows
from melete.datasets.files import num_rows as rows_of_file
from melete.datasets.formats import Row, words_of
from melete.errors import DataError
from melete.schema.generation import PROBLEMS_OF_A_TASK
from melete.types import PreferencePair, RankedCompletions

KEPT_ASSUMED = 0.5  # of the samples that could be kept; wrong ones, equal ones and ties are left out


class NotEstimated(Exception):
    """Why there is no estimate; never a reason to stop a run."""


@dataclass(frozen=True, slots=True)
class Text:
    """A source of prompts and completions: problems of a task, demonstrations written by program, or a file."""

    kind: Literal["task", "written", "file"]
    name: str
    settings: str = "{}"

    @classmethod
    def of_task(cls, task: Any) -> Text:
        return cls("task", task.name, json.dumps(task.own_settings(), sort_keys=True))

    @property
    def key(self) -> str:
        return f"{self.kind} {self.name} {self.settings}"


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a data set that are alike: what they are about, who writes them, and how many texts a row holds."""

    num_rows: float
    text: Text
    writer: str | None = None
    max_new_tokens: int | None = None
    texts_per_row: int = 1


class Graph:
    """The stages of a recipe by name."""

    def __init__(self, stages: Sequence[Any]) -> None:
        self.stages = {stage.name: stage for stage in stages}

    def origin(self, model: str) -> str:
        """The model on disk, or the pre-training stage, whose size and speed `model` has."""
        passed = set()
        while model in self.stages and model not in passed:
            passed.add(model)
            stage = self.stages[model]
            if stage.kind == "pretrain":
                break
            model = getattr(stage, "model", model)
        return model

    def is_new(self, origin: str) -> bool:
        """Whether the model is not on disk yet: a stage makes it from nothing."""
        return origin in self.stages

    def parts(self, data: str, reader: Any = None) -> list[Part]:
        """What a data set will hold, roughly: how much a filter keeps is not known before.

        `reader` is the stage that reads it, which may call columns by other names.

        Raises `NotEstimated` for data of which nothing is known.
        """
        if data not in self.stages:
            path, named = Path(data), {"columns": getattr(reader, "columns", {}), "part": getattr(reader, "part", "")}
            count = _num_rows(path, named["part"])
            # another content, another text
            text = Text("file", data, json.dumps({"bytes": path.stat().st_size, **named}, sort_keys=True))
            return [Part(count, text, texts_per_row=_texts_per_row(first_rows(path, 1, **named)))]
        return list(self._made(self.stages[data]))

    def _made(self, stage: Any) -> Iterator[Part]:
        if stage.kind == "mix":
            yield from self._mixed(stage)
        elif stage.kind == "write":
            yield from (Part(count, Text("written", name)) for name, count in stage.rows.items())
        elif stage.kind == "generate":
            yield self._generated(stage)
        elif hasattr(stage, "num_prompts") and hasattr(stage, "task"):
            pairs = stage.kind == "pairs"
            most = getattr(stage, "samples_per_prompt", 1)
            per_prompt = stage.pairs_per_prompt if pairs else min(getattr(stage, "keep_per_prompt", most), most)
            num_rows = round(stage.num_prompts * per_prompt * KEPT_ASSUMED)
            num_rows = min(num_rows, getattr(stage, "max_rows", 0) or num_rows)
            text = Text.of_task(stage.task)
            yield Part(num_rows, text, stage.model, stage.max_new_tokens, 2 if pairs else 1)
        else:
            raise NotEstimated(f"how much data {stage.name} makes is not known")

    def _generated(self, stage: Any) -> Part:
        """Nothing is left out, but how long answers to prompts of one's own are is not known before."""
        if stage.task is None:
            raise NotEstimated("how long the answers to prompts of your own are is not known")
        num_prompts = stage.num_prompts or PROBLEMS_OF_A_TASK
        text = Text.of_task(stage.task)
        return Part(num_prompts * stage.samples_per_prompt, text, stage.model, stage.max_new_tokens)

    def _mixed(self, stage: Any) -> Iterator[Part]:
        parts = {name: self.parts(name) for name in stage.parts}
        sizes = {name: sum(part.num_rows for part in found) for name, found in parts.items()}
        weights = sum(stage.parts.values())
        # the part that is used up first decides
        whole = min(sizes[name] * weights / weight for name, weight in stage.parts.items())
        total = getattr(stage, "num_rows", 0) or whole
        for name, weight in stage.parts.items():
            share = total * weight / weights / max(sizes[name], 1)
            yield from (replace(part, num_rows=part.num_rows * share) for part in parts[name])


def num_rows(parts: Sequence[Part]) -> int:
    return round(sum(part.num_rows for part in parts))


def _num_rows(path: Path, part: str) -> int:
    try:
        return rows_of_file(path, part=part)
    except OSError as error:
        raise NotEstimated(f"{path.name} cannot be read: {error.strerror}") from error
    except DataError as error:
        raise NotEstimated(f"{path.name} cannot be read: {error.what}") from error


def _texts_per_row(first: Sequence[Row]) -> int:
    """Two for pairs, the length of a ranking, else one; by the first row."""
    ranked = [row for row in first if isinstance(row, PreferencePair | RankedCompletions)]
    return len(words_of(ranked[0])) if ranked else 1
