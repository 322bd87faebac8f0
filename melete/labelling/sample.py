"""Answers to judge, written by one model or two."""

from __future__ import annotations

import json
from pathlib import Path

from melete.loops.rl_rollouts import SampleSettings, sample_rollouts
from melete.models.load import load_model, load_tokenizer
from melete.runs.atomic import write_atomically
from melete.sampling.native import NativeSampler
from melete.tasks import make_task
from melete.types import SamplingSettings


def sample_answers(
    out: Path,
    model: str,
    other: str,
    task: str,
    *,
    num: int,
    seed: int = 0,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
) -> None:
    """Two answers to each of the first `num` training problems of a task: both by `model`, or one by each."""
    problems = [make_task(task, {}).problem("train", index) for index in range(num)]
    sampling = SamplingSettings(max_new_tokens, temperature)
    written: list[list[str]] = [[] for _ in problems]
    for name, each in [(model, 2)] if model == other else [(model, 1), (other, 1)]:
        tokenizer = load_tokenizer(name)
        settings = SampleSettings(each, sampling, (seed, "label", name))
        groups = sample_rollouts(NativeSampler(load_model(name), tokenizer), tokenizer, problems, settings, 0)
        for texts, group in zip(written, groups, strict=True):
            texts += [rollout.text for rollout in group]
    rows = [
        {"messages": [{"role": turn.role, "content": turn.content} for turn in problem.messages], "completions": texts}
        for problem, texts in zip(problems, written, strict=True)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
