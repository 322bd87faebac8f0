"""Preferences out of graded samples: a better completion against a worse one of the same prompt."""

from __future__ import annotations

import itertools
import random

from melete.types import PreferencePair, RolloutGroup


def sampled_pairs(group: RolloutGroup, num_pairs: int, label_noise: float, seed: str) -> list[PreferencePair]:
    """At most `num_pairs` pairs of siblings with different grades and texts, the widest gap first.

    Completions that were cut at the limit stay out: their end was never written. A share `label_noise` of the pairs is
    turned round, decided by `seed` and the problem.
    """
    graded = [
        (reward.total, rollout)
        for rollout, reward in zip(group.rollouts, group.rewards, strict=True)
        if reward.total is not None and rollout.completion.finish_reason == "stop"
    ]
    ordered = sorted(graded, key=lambda found: (-found[0], found[1].sibling))
    gaps = [
        (worse[0] - better[0], better[1], worse[1])
        for better, worse in itertools.combinations(ordered, 2)
        if better[0] > worse[0] and better[1].text != worse[1].text
    ]
    gaps.sort(key=lambda gap: (gap[0], gap[1].sibling, gap[2].sibling))
    source = random.Random(f"{seed}/{group.group_id}")
    pairs = []
    for number, (_, better, worse) in enumerate(gaps[:num_pairs]):
        is_turned = source.random() < label_noise
        chosen, rejected = (worse, better) if is_turned else (better, worse)
        pair_id = f"{group.group_id}/{number}"
        pairs.append(PreferencePair(pair_id, group.problem.messages, chosen.text, rejected.text))
    return pairs
