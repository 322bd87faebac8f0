"""What each kind of stage does: it reads artefacts, trains, and writes artefacts.

This is the only layer that sees both the recipe's settings and the machinery below; everything it calls takes plain
values.

context.py       what a stage needs from its run
training.py      checkpoints, evaluations and records of a stage that trains
pretrain.py      a base model from nothing
imitation.py     supervised fine-tuning, distillation
rl.py            reinforcement learning
support.py       the check before reinforcement learning
rewards.py       rewards that need a model
reward_model.py  reward models from preferences
preference.py    pairs, DPO and its family
writing.py       written demonstrations, labels of safety
reject.py        rejection sampling
mix.py           data sets joined in proportions
generate.py      samples of a model, all of them kept
evaluate.py      several models on several tasks
replicate.py     another recipe with several seeds and arms, and its claims
sub_runs.py      recipes within a recipe, in processes of their own
compare.py       several algorithms side by side
"""

from collections.abc import Callable, Mapping
from typing import Any

from melete.stages.compare import run_compare
from melete.stages.context import Interrupted, StageContext
from melete.stages.evaluate import run_evaluate
from melete.stages.generate import run_generate
from melete.stages.imitation import run_distill, run_sft
from melete.stages.mix import run_mix
from melete.stages.preference import run_pairs, run_preference
from melete.stages.pretrain import run_pretrain
from melete.stages.reject import run_reject
from melete.stages.replicate import run_replicate
from melete.stages.reward_model import run_reward_model
from melete.stages.rl import run_rl
from melete.stages.writing import run_labels, run_write

RUNNERS: Mapping[str, Callable[[Any, StageContext], dict[str, Any]]] = {
    "pretrain": run_pretrain,
    "sft": run_sft,
    "rl": run_rl,
    "compare": run_compare,
    "pairs": run_pairs,
    "reward_model": run_reward_model,
    "preference": run_preference,
    "distill": run_distill,
    "write": run_write,
    "labels": run_labels,
    "reject": run_reject,
    "mix": run_mix,
    "evaluate": run_evaluate,
    "generate": run_generate,
    "replicate": run_replicate,
}

__all__ = ["RUNNERS", "Interrupted", "StageContext"]
