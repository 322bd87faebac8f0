"""Rewards named by import path in the tests of the loop."""

from __future__ import annotations

import os
import signal

from melete.types import Rollout

SIGNALS = {
    "MELETE_TEST_INTERRUPT_AT": [signal.SIGINT],
    "MELETE_TEST_INTERRUPT_TWICE_AT": [signal.SIGINT, signal.SIGINT],
    "MELETE_TEST_KILL_AT": [signal.SIGKILL],
}


def even_tokens(rollout: Rollout) -> float:
    """Share of tokens with an even number: half of them at first, and easy to raise."""
    tokens = rollout.completion.tokens
    return sum(token % 2 == 0 for token in tokens) / len(tokens)


def even_tokens_unless_stopped(rollout: Rollout) -> float:
    """The same; at the step that the environment names, this process gets a signal in the middle of grading, once."""
    for name, numbers in SIGNALS.items():
        if os.environ.get(name) == str(rollout.completion.policy_version) and rollout.sibling == 1:
            del os.environ[name]
            for number in numbers:
                os.kill(os.getpid(), number)
    return even_tokens(rollout)


def rarely_right(rollout: Rollout) -> float:
    """1 where the first token is one of a twelfth: most groups of 8 have none or one."""
    return float(rollout.completion.tokens[0] % 12 == 0 and rollout.sibling < 4)
