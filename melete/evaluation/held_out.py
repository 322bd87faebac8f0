"""The held-out problems of a stage, tried at fixed steps; what was written is kept, so that a run can be continued.

Only tokens are stored. Judging them again is a pure function, so a resumed run reports exactly what an uninterrupted
one does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from melete.errors import RunError
from melete.evaluation.conduct import RightResults
from melete.evaluation.evaluate import EvaluationResult, ProblemResult, Sample, compared, evaluate, summarise
from melete.evaluation.judgement import Judgement, judge
from melete.rewards.rules import accuracy
from melete.runs.atomic import write_atomically
from melete.sampling.keys import rollout_key
from melete.sampling.protocol import Sampler
from melete.tasks.base import Task, reading_for
from melete.text.chat import decode_completion, prompt_tokens
from melete.types import Completion, Problem, Rollout, SamplingSettings

_QUICK = ("pass@1", "pass@1/low", "pass@1/high", "share_thinking", "length_mean")
_START_AGAIN = "restore the file, or delete this run directory and start again"


class HeldOut:
    """Evaluations of one stage; `results` maps the step before which each was made to what it found.

    Without a sampler only what was kept can be read back.
    """

    def __init__(
        self,
        *,
        directory: Path,
        task: Task,
        sampler: Sampler | None,
        tokenizer: PreTrainedTokenizerBase,
        settings: SamplingSettings,
        num_problems: int,
        num_samples: int,
        seed: int,
        thought_opened: bool,
    ) -> None:
        self.directory, self.task, self.sampler, self.tokenizer = directory, task, sampler, tokenizer
        self.settings, self.num_problems, self.num_samples = settings, num_problems, num_samples
        self.seed, self.thought_opened = seed, thought_opened
        self.results: dict[int, EvaluationResult] = {}

    def evaluate(self, step: int, *, may_sample: bool = True) -> EvaluationResult:
        """The evaluation before step `step`: read back when it was made already, else made now and kept.

        Every one after the first has its win rate against the first.
        Raises `RunError` for a file that is damaged, or missing when the weights have moved on (not `may_sample`).
        """
        result = self.kept(f"step-{step:06d}", may_sample=may_sample)
        first = min(self.results, default=step)
        self.results[step] = compared(result, self.results[first], seed=self.seed) if first < step else result
        return self.results[step]

    def file(self, name: str) -> Path:
        """Where the evaluation of this name is kept."""
        return self.directory / f"{name}.jsonl"

    def kept(self, name: str, *, may_sample: bool = True) -> EvaluationResult:
        """The evaluation of this name: read back when it was made already, else made now and kept."""
        path = self.file(name)
        if path.exists():
            return self._read(path)
        if not may_sample:
            raise RunError("an evaluation is missing and cannot be made again", place=str(path), remedy=_START_AGAIN)
        result = self._sample(self.num_problems, self.num_samples)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in _rows(result)))
        return result

    def quick(self, num_problems: int) -> dict[str, Any]:
        """A point of the curve: the first `num_problems` once each, not kept."""
        row = self._sample(num_problems, 1).row()
        return {name: row.get(name) for name in _QUICK}

    def problems(self, count: int) -> list[Problem]:
        """The first `count` different held-out problems."""
        found: dict[str, Problem] = {}
        for index in range(20 * count):
            problem = self.task.problem("held_out", index)
            found.setdefault(problem.messages[-1].content, problem)
            if len(found) == count:
                break
        return list(found.values())

    def _sample(self, num_problems: int, num_samples: int) -> EvaluationResult:
        if self.sampler is None:
            raise ValueError("without a sampler an evaluation can only be read back")
        return evaluate(
            self.sampler,
            self.tokenizer,
            self.problems(num_problems),
            num_samples=num_samples,
            settings=self.settings,
            grade=self._judge,
            key_parts=self._key_parts,
            right_results=self._right_results,
        )

    @property
    def _key_parts(self) -> Sequence[int | str]:
        return (self.seed, "held_out")

    @property
    def _right_results(self) -> RightResults | None:
        """What the task knows of intermediate results; few tasks do."""
        return getattr(self.task, "right_results", None)

    def _judge(self, rollout: Rollout) -> Judgement:
        reading = reading_for(self.task)
        functions = {"accuracy": accuracy(self.task.grade, thought_opened=self.thought_opened, reading=reading)}
        return judge(rollout, functions, {"accuracy": 1.0}, thought_opened=self.thought_opened, reading=reading)

    def _read(self, path: Path) -> EvaluationResult:
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            by_problem = {problem.problem_id: problem for problem in self.problems(self.num_problems)}
            results = [self._judged_again(by_problem[row["problem_id"]], row["samples"]) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"cannot read an evaluation: {error!r}", place=str(path), remedy=_START_AGAIN) from error
        seed = rollout_key(*self._key_parts, "statistics")
        return summarise(results, seed=seed, right_results=self._right_results)

    def _judged_again(self, problem: Problem, samples: list[dict[str, Any]]) -> ProblemResult:
        prompt = prompt_tokens(self.tokenizer, problem.messages)
        rollouts = []
        for sibling, sample in enumerate(samples):
            # an evaluation looks at no log-probs, so they are not kept
            completion = Completion(tuple(sample["tokens"]), (), sample["finish_reason"], sample["policy_version"])
            text = decode_completion(self.tokenizer, completion.tokens)
            rollouts.append(Rollout(problem, sibling, prompt, completion, text))
        return ProblemResult(problem, tuple(Sample(rollout, self._judge(rollout)) for rollout in rollouts))


def _rows(result: EvaluationResult) -> list[dict[str, Any]]:
    return [
        {
            "problem_id": found.problem.problem_id,
            "samples": [_row(sample.rollout.completion) for sample in found.samples],
        }
        for found in result.problems
    ]


def _row(completion: Completion) -> dict[str, Any]:
    return {
        "tokens": completion.tokens,
        "finish_reason": completion.finish_reason,
        "policy_version": completion.policy_version,
    }
