"""What every stage needs from its run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from melete.live import View
from melete.machine.threads import num_threads, threads_for, usable_cores
from melete.models.adapters import LoRA, add_adapter, has_adapter, merge_adapter, save_adapter
from melete.models.load import load_model, load_tokenizer, refuse_mismatch, refuse_too_large_to_train, save_model
from melete.runs.directory import RunDirectory
from melete.schema import Recipe, TrainingStage


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

    def policy(self, stage: TrainingStage) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        """Tokenizer and model that a stage trains, as its settings want them; sets the number of threads."""
        source = self.model_path(stage.model)
        refuse_too_large_to_train(source, device=stage.device, dtype=stage.dtype, with_adapter=bool(stage.adapter))
        model = load_model(source, device=stage.device, dtype=stage.dtype)
        tokenizer = load_tokenizer(source, chat_template=stage.chat_template)
        refuse_mismatch(model, tokenizer, stage.model)
        self.prepare(stage, model)
        return tokenizer, model

    def prepare(self, stage: TrainingStage, model: PreTrainedModel) -> None:
        """Adds the adapter and the checkpoints of activations that a stage asks for; sets the number of threads."""
        fit_threads(model)
        if stage.adapter:
            chosen = stage.adapter.model_dump(exclude={"kind", "merge"})
            add_adapter(model, LoRA(**chosen), seed=self.seed)
        if stage.gradient_checkpointing:
            # the newer name is not in every version that we take
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})

    def keep(self, stage: TrainingStage, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Saves what a stage has trained under its name: a whole model, or an adapter apart from its base."""
        directory = self.run.models / stage.name
        if stage.adapter and not stage.adapter.merge:
            is_of_run = self.model_path(stage.model).parent == self.run.models
            save_adapter(model, tokenizer, directory, base=f"../{stage.model}" if is_of_run else stage.model)
            return
        if has_adapter(model):
            merge_adapter(model)
        save_model(model, tokenizer, directory)

    def load(self, name: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        """Tokenizer and model by name; sets the number of threads that suits the model."""
        source = self.model_path(name)
        model, tokenizer = load_model(source), load_tokenizer(source)
        refuse_mismatch(model, tokenizer, name)
        fit_threads(model)
        return tokenizer, model


def fit_threads(model: PreTrainedModel) -> None:
    """Sets the number of threads that suits the model's size, whatever a stage before needed."""
    torch.set_num_threads(threads_for(model.num_parameters(), num_threads(os.environ, usable_cores())))
