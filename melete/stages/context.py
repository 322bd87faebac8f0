"""What every stage needs from its run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from melete.live import View
from melete.models.load import load_model, load_tokenizer
from melete.runs.directory import RunDirectory
from melete.schema import Recipe
from melete.threads import num_threads, threads_for, usable_cores


class Interrupted(KeyboardInterrupt):
    """The user asked to stop, and everything that is needed to continue has been saved."""


@dataclass(frozen=True, slots=True)
class StageContext:
    """`model_path` and `data_path` give the place of an artefact by the name that a recipe uses.

    `run_recipe(recipe, directory)` runs another recipe to its end, quietly; it can be sent to a process.
    """

    run: RunDirectory
    seed: int
    view: View
    should_stop: Callable[[], bool]
    model_path: Callable[[str], Path]
    data_path: Callable[[str], Path]
    run_recipe: Callable[[Recipe, Path], None]

    def load(self, name: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        """Tokenizer and model by name; sets the number of threads that suits the model."""
        source = self.model_path(name)
        model = load_model(source)
        fit_threads(model)
        return load_tokenizer(source), model


def fit_threads(model: PreTrainedModel) -> None:
    """Sets the number of threads that suits the model's size, whatever a stage before needed."""
    torch.set_num_threads(threads_for(model.num_parameters(), num_threads(os.environ, usable_cores())))
