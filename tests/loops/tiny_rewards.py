"""Rewards named by import path in the tests of the loop; the last two end the process that grades with them."""

from __future__ import annotations

import os
import signal

from melete.types import Rollout


def even_tokens(rollout: Rollout) -> float:
    """Share of tokens with an even number: half of them at first, and easy to raise."""
    tokens = rollout.completion.tokens
    return sum(token % 2 == 0 for token in tokens) / len(tokens)


def mixed(rollout: Rollout) -> float:
    """Even tokens; where the environment says so, the process is interrupted or killed in the middle of a step."""
    version, sibling = rollout.completion.policy_version, rollout.sibling
    for name, number in (("MELETE_TEST_INTERRUPT_IN", signal.SIGINT), ("MELETE_TEST_KILL_IN", signal.SIGKILL)):
        if os.environ.get(name) == str(version) and sibling == 1:
            os.environ.pop(name)
            os.kill(os.getpid(), number)
    return even_tokens(rollout)
