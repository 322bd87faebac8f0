"""Steps by TRL's GRPOTrainer, tuned for a CPU: full precision, no checkpointing, all completions in one batch.

python -m benchmarks.against_trl.trl_step SPEC
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback

from benchmarks.against_trl.child import Line, loaded, step_row
from benchmarks.against_trl.workloads import Spec, Workload, prompts_of

PAGE = 32  # tokens of a page of the continuous batching's cache


def even_tokens(completion_ids: list[list[int]], **_kwargs: Any) -> list[float]:
    """The reward of both sides: how many tokens of the completion have an even number."""
    return [float(sum(token % 2 == 0 for token in tokens)) for tokens in completion_ids]


class TimedTrainer(trl.GRPOTrainer):
    """Notes how long it took to write and grade, and what was written."""

    seconds = 0.0
    written: dict[str, torch.Tensor]

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        started = time.perf_counter()
        out = super()._generate_and_score_completions(inputs)
        self.seconds = time.perf_counter() - started
        self.written = {name: out[name] for name in ("prompt_ids", "prompt_mask", "completion_mask")}
        return out

    def prompts(self) -> list[list[int]]:
        rows = zip(self.written["prompt_ids"], self.written["prompt_mask"].bool(), strict=True)
        return [ids[mask].tolist() for ids, mask in rows]


class OneAtATime(TrainerCallback):
    """Waits for the parent before each step, and tells it of the step afterwards."""

    def __init__(self, line: Line, ready: dict[str, Any]) -> None:
        self.line, self.ready = line, ready
        self.trainer: TimedTrainer | None = None
        self.started = self.worked = 0.0

    def _wait(self, control: Any) -> None:
        control.should_training_stop = self.line.hear() is None
        self.started, self.worked = time.perf_counter(), time.process_time()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        self.line.say(self.ready)
        self._wait(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        assert self.trainer is not None
        seconds, cpu = time.perf_counter() - self.started, time.process_time() - self.worked
        lengths = self.trainer.written["completion_mask"].sum(dim=1).tolist()
        fixed = {"threads": torch.get_num_threads()}
        self.line.say(
            step_row(
                rollout=self.trainer.seconds,
                step=seconds,
                cpu=cpu,
                prompts=self.trainer.prompts(),
                lengths=lengths,
                fixed=fixed,
            )
        )
        self._wait(control)


def pages_for(workload: Workload) -> dict[str, int]:
    """As much cache as all rows need at once; by itself it takes half of the machine's memory."""
    longest = workload.prompt_tokens + workload.max_new_tokens
    return {
        "page_size": PAGE,
        "num_blocks": workload.num_rows * (longest // PAGE + 2),
        "max_batch_tokens": max(512, workload.num_rows),
    }


def settings_for(spec: Spec, num_steps: int, directory: str) -> trl.GRPOConfig:
    """The same step as Melete's, and nothing beside it: no files, no logs, no evaluation."""
    workload, parts = spec.workload, spec.microbatches
    return trl.GRPOConfig(
        output_dir=directory,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=workload.num_rows // parts,
        gradient_accumulation_steps=parts,
        steps_per_generation=parts,
        num_generations=workload.group_size,
        max_completion_length=workload.max_new_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        loss_type="grpo",
        scale_rewards="group",
        learning_rate=1e-6,
        adam_beta2=0.99,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        max_steps=num_steps,
        shuffle_dataset=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_transformers_continuous_batching=spec.continuous_batching,
        transformers_continuous_batching_config=pages_for(workload) if spec.continuous_batching else None,
        generation_kwargs={"min_new_tokens": workload.max_new_tokens} if workload.equal_lengths else None,
    )


def main(arguments: Sequence[str]) -> None:
    started, line = time.perf_counter(), Line()
    spec = Spec.from_json(arguments[0])
    torch.set_num_threads(spec.threads)
    steps = prompts_of(Path(spec.place))
    rows = [{"prompt": [{"role": "user", "content": text}]} for step in steps for text in step]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
    with tempfile.TemporaryDirectory() as directory:
        trainer = TimedTrainer(
            model=spec.place,
            reward_funcs=even_tokens,
            args=settings_for(spec, len(steps), directory),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(spec.place, padding_side="left"),
        )
        waiting = OneAtATime(line, loaded(started, versions))
        waiting.trainer = trainer
        trainer.add_callback(waiting)
        trainer.train()


if __name__ == "__main__":
    main(sys.argv[1:])
