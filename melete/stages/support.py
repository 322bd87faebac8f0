"""The check before reinforcement learning: can this model learn anything from these problems?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from melete.algorithms import Algorithm
from melete.errors import RunError
from melete.health.history import VERIFIERS, parts_of
from melete.health.support import Support
from melete.loops.rl_rollouts import SampleSettings, has_signal, sample_rollouts
from melete.rewards.grade import Grading, RewardPart
from melete.runs.atomic import json_text, write_atomically
from melete.sampling.protocol import Sampler
from melete.schema import RLStage
from melete.stages.context import StageContext
from melete.types import Problem, RolloutGroup


def checked_support(
    stage: RLStage,
    context: StageContext,
    problems: Sequence[Problem],
    *,
    may_sample: bool,
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    rewards: Mapping[str, RewardPart],
    sampling: SampleSettings,
    algorithm: Algorithm,
) -> dict[str, Any] | None:
    """What the check found, kept in `evaluations/<stage>/support.json`; None where there is none.

    Nothing that training samples depends on it. Raises `RunError` when a limit is missed and the stage may be refused.
    """
    asked = _asked(stage, rewards)
    if not problems or not asked or stage.teacher:  # a teacher needs no reward
        return None
    file = context.run.path / "evaluations" / stage.name / "support.json"
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
    elif may_sample:
        own_keys = replace(sampling, key_parts=(*sampling.key_parts, "support"))
        groups = list(_groups(stage, problems, sampler, tokenizer, asked, own_keys))
        found = measured(stage, groups, algorithm, has_all_parts=len(asked) == len(rewards)).as_dict(stage.support)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json_text(found, indent=2) + "\n")
        context.view.message(f"{stage.name}: {_told(found)}")
    else:  # the run began without a check
        return None
    if found["refusals"] and stage.support.refuse:
        raise RunError(
            f"{stage.name} would learn next to nothing: {'; '.join(found['refusals'])} "
            f"({found['num_problems']} problems tried, {found['group_size']} answers each)",
            place=f"{stage.name}.support, {file}",
            remedy=f"{found['help']}; to go on all the same: {stage.name}.support.refuse = false in a new run",
        )
    return found


def _asked(stage: RLStage, rewards: Mapping[str, RewardPart]) -> dict[str, RewardPart]:
    """The parts that the check grades with: a judge behind an endpoint is spared, every question to it may cost."""
    elsewhere = {name for name, judge in stage.reward_judges.items() if judge.base_url}
    return {
        name: replace(part, gate="") if part.gate in elsewhere else part
        for name, part in rewards.items()
        if name not in elsewhere
    }


def _groups(
    stage: RLStage,
    problems: Sequence[Problem],
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    rewards: Mapping[str, RewardPart],
    sampling: SampleSettings,
) -> Iterator[RolloutGroup]:
    """Graded groups, as many at a time as in a step of training: so much fits into memory."""
    for begin in range(0, len(problems), stage.prompts_per_step):
        some = problems[begin : begin + stage.prompts_per_step]
        with Grading(rewards) as grading:
            rollouts = sample_rollouts(sampler, tokenizer, some, sampling, 0, on_rollout=grading.start)
            yield from grading.finish(rollouts)


def measured(
    stage: RLStage, groups: Sequence[RolloutGroup], algorithm: Algorithm, *, has_all_parts: bool = True
) -> Support:
    """Pass rates of graded groups and, where nothing of the reward is left out, their share of dead ones."""
    verifier = next(iter(parts_of(stage.model_dump(mode="json"), VERIFIERS)), "")
    failed = [reward for group in groups for reward in group.rewards if reward.total is None]
    dead = [float(not has_signal(group)) for group in groups]
    rates = []
    for group in groups:
        known = [value for reward in group.rewards if (value := reward.parts.get(verifier)) is not None]
        rates += [fmean(known)] if known else []
    return Support(
        num_problems=len(groups),
        group_size=stage.group_size,
        pass_rates=tuple(rates),
        accuracy_share=abs(stage.rewards.get(verifier, 0.0)) / sum(abs(weight) for weight in stage.rewards.values()),
        dead_share=fmean(dead) if has_all_parts and stage.group_size > 1 else None,
        max_draws=stage.max_draws if algorithm.settings.dynamic_sampling else 1,
        grader_failures=len(failed),
        reason=failed[0].reason if failed else "",
    )


def _told(found: Mapping[str, Any]) -> str:
    rate, dead = found["mean_pass_rate"], found["dead_share"]
    parts = [f"{rate:.0%} of the answers are right" if rate is not None else ""]
    parts += [f"{dead:.0%} of the groups have equal rewards" if dead is not None else ""]
    known = ", ".join(part for part in parts if part) or "graded, with no right or wrong"
    told = f"before training, on {found['num_problems']} problems: {known}"
    return f"{told}. {'; '.join(found['refusals'])}: {found['help']}" if found["refusals"] else told
