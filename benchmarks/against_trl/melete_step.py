"""Steps by Melete: the loop, sampler and learner that a stage of kind `rl` builds.

python -m benchmarks.against_trl.melete_step SPEC
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.against_trl.child import Line, cpu_seconds, loaded, serve, step_row
from benchmarks.against_trl.workloads import Spec, prompts_of
from melete.algorithms import resolve
from melete.learning.local import LocalLearner
from melete.learning.optimizer import OptimizerSettings
from melete.loops import rl
from melete.loops.rl_rollouts import SampleSettings
from melete.machine.threads import prepare_threads
from melete.models.load import load_model, load_tokenizer
from melete.models.moe import RouterBalancer
from melete.rewards.grade import RewardPart
from melete.sampling.native import NativeSampler
from melete.stages.context import fit_threads
from melete.types import Message, Problem, Rollout, SamplingSettings


def even_tokens(rollout: Rollout) -> float:
    """The reward of both sides: how many tokens of the completion have an even number."""
    return float(sum(token % 2 == 0 for token in rollout.completion.tokens))


class Steps:
    """Runs one step at a time, with a recipe's defaults."""

    def __init__(self, spec: Spec) -> None:
        self.spec, place = spec, Path(spec.place)
        self.tokenizer = load_tokenizer(place)
        model = load_model(place, device="cpu", dtype="float32")
        fit_threads(model)  # as a stage does; the environment says how many there are
        self.sampler = NativeSampler(model, self.tokenizer)
        if spec.workload.equal_lengths:
            self.sampler.end_tokens = torch.tensor([-1])
        self.learner = LocalLearner(
            model,
            optimizer=OptimizerSettings(lr=1e-6),
            max_tokens_per_microbatch=1024,  # the default of a stage
            after_step=RouterBalancer(model).step,
            memory=self.sampler.memory,
        )
        self.prompts = prompts_of(place)
        self.settings = rl.RLSettings(
            SampleSettings(spec.workload.group_size, SamplingSettings(spec.workload.max_new_tokens), key_parts=(0, "b"))
        )

    def problems(self, step: int, _draw: int) -> list[Problem]:
        texts = self.prompts[step % len(self.prompts)]
        return [Problem(f"{step}/{n}", "bench", (Message("user", text),), "") for n, text in enumerate(texts)]

    def run(self, number: int) -> dict[str, Any]:
        """Step `number`, counted from 0, as a row."""
        done: list[rl.Step] = []
        worked, started = cpu_seconds(), time.perf_counter()
        rl.train(
            start=number,
            stop=number + 1,
            settings=self.settings,
            problems=self.problems,
            sampler=self.sampler,
            learner=self.learner,
            tokenizer=self.tokenizer,
            rewards={"even": RewardPart(even_tokens)},
            algorithm=resolve("grpo", kl_coef=0.0),
            on_step=done.append,
        )
        seconds, cpu = time.perf_counter() - started, cpu_seconds() - worked
        rollouts = [rollout for group in done[0].groups for rollout in group.rollouts]
        return step_row(
            rollout=done[0].timings["sample_seconds"],
            step=seconds,
            cpu=cpu,
            prompts=(rollout.prompt_tokens for rollout in rollouts),
            lengths=[len(rollout.completion.tokens) for rollout in rollouts],
            fixed={"threads": torch.get_num_threads(), "dropped_rows": done[0].metrics.get("num_dropped_rows", 0.0)},
        )


def main(arguments: Sequence[str]) -> None:
    started, line = time.perf_counter(), Line()
    prepare_threads()  # as every command does
    steps = Steps(Spec.from_json(arguments[0]))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}

    def answer(request: Mapping[str, Any]) -> dict[str, Any]:
        return steps.run(request["step"])

    serve(line, loaded(started, versions), answer)


if __name__ == "__main__":
    main(sys.argv[1:])
