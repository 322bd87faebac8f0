"""Pure tensor mathematics, one formula and one citation each; imports torch only.

logprobs.py    log-probs, entropy and log-ratios of tokens; the one shift
kl.py          estimators of the KL divergence to a reference
advantages.py  rewards of a group to advantages
value.py       credit per token: returns, GAE, whitening, the value model's loss
policy.py      policy-gradient losses, one value per token
off_policy.py  corrections for rollouts that another policy wrote
supervised.py  the loss of demonstrations
preference.py  losses of pairs, and of liked and disliked completions: DPO and its family
reward_model.py  losses of reward models, and what is reported about them
distill.py     distances of a student's distribution from a teacher's
aggregate.py   per-token losses to one number, with the denominators of the whole step
"""

from . import (
    advantages,
    aggregate,
    distill,
    kl,
    logprobs,
    off_policy,
    policy,
    preference,
    reward_model,
    supervised,
    value,
)

__all__ = [
    "advantages",
    "aggregate",
    "distill",
    "kl",
    "logprobs",
    "off_policy",
    "policy",
    "preference",
    "reward_model",
    "supervised",
    "value",
]
