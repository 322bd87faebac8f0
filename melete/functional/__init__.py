"""Pure tensor mathematics, one formula and one citation each; imports torch only.

logprobs.py    log-probs, entropy and log-ratios of tokens; the one shift
kl.py          estimators of the KL divergence to a reference
advantages.py  rewards of a group to advantages
policy.py      policy-gradient losses, one value per token
supervised.py  the loss of demonstrations
aggregate.py   per-token losses to one number, with the denominators of the whole step
"""

from . import advantages, aggregate, kl, logprobs, policy, supervised

__all__ = ["advantages", "aggregate", "kl", "logprobs", "policy", "supervised"]
