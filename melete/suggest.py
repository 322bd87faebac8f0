"""Naming what a person probably meant: the nearest of the names that exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

# what other frameworks call a setting -> what it is called here
SYNONYMS: Mapping[str, str] = {
    "batch_size": "prompts_per_step",
    "beta": "kl_coef",
    "clip_eps": "clip_low",
    "epsilon": "clip_low",
    "eval": "evaluation",
    "grad_clip": "max_grad_norm",
    "learning_rate": "lr",
    "lr_scheduler_type": "lr_schedule",
    "max_completion_length": "max_new_tokens",
    "max_grad": "max_grad_norm",
    "max_length": "max_new_tokens",
    "max_steps": "num_steps",
    "max_tokens": "max_new_tokens",
    "model_name_or_path": "model",
    "num_generations": "group_size",
    "ref_refresh": "reference_refresh_steps",
    "reward_weights": "rewards",
    "save_steps": "checkpoint_every_steps",
    "warmup": "warmup_steps",
}


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `name` most resembles, by spelling or by what another framework calls it.

    >>> nearest("gruop_size", ["group_size", "lr"]), nearest("lerning_rate", ["group_size", "lr"]), nearest("x", ["lr"])
    ('group_size', 'lr', None)
    """
    known = list(candidates)
    words = {word: word for word in known} | {word: real for word, real in SYNONYMS.items() if real in known}
    close = difflib.get_close_matches(name, words, n=1, cutoff=0.6)
    return words[close[0]] if close else None


def did_you_mean(name: str, candidates: Iterable[str], prefix: str = "") -> str:
    """`did you mean grpo?`, or the whole choice when nothing is near.

    >>> did_you_mean("grop", ["grpo", "rloo"]), did_you_mean("x", ["grpo", "rloo"])
    ('did you mean grpo?', 'known are grpo, rloo')
    """
    known = list(candidates)
    close = nearest(name, known)
    return f"did you mean {prefix}{close}?" if close else f"known are {', '.join(known) or 'none'}"
