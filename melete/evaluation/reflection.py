"""Counting words of reflection, the way papers on R1 do, so that growth can be told from what the base already did.

Counts are per 1,000 tokens, because a longer completion has more of every word. A word is not a thought: these
numbers say how often a model writes such words, not whether writing them helped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

R1_WORDS = ("wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check")
"""The list of the DeepSeek-R1 paper (2501.12948v2, supplement)."""

LONG_PHRASES = (
    "recheck", "rethink", "reassess", "reevaluate", "re-evaluate", "reevaluation", "re-examine", "reexamine",
    "reconsider", "reanalyze", "double-check", "check again", "think again", "verify again", "go over the steps",
)  # fmt: skip
"""The list of Understanding R1-Zero-like training (Liu et al. 2025), which pairs it with a judge."""


@dataclass(frozen=True, slots=True)
class ReflectionCount:
    """What a set of completions contained: hits per 1,000 tokens, the share of completions with a hit, and by word."""

    per_1k: float
    share: float
    by_word: dict[str, float]


def count_words(text: str, words: Sequence[str] = R1_WORDS) -> Counter[str]:
    """How often each word stands in a text, as a whole word, in any case.

    >>> count_words("Wait, I must check. Waiting is a mistake; wait.")
    Counter({'wait': 2, 'check': 1, 'mistake': 1})
    """
    # longest first, so that "check again" is not counted as "check" where both are listed
    pattern = "|".join(re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word)))
    return Counter(match.lower() for match in re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", text, re.IGNORECASE))


def reflection(texts: Sequence[str], num_tokens: int, words: Sequence[str] = R1_WORDS) -> ReflectionCount:
    """Hits per 1,000 of the `num_tokens` that all `texts` took together.

    >>> reflection(["Wait, 7. No, wait, 8.", "8"], 20)
    ReflectionCount(per_1k=100.0, share=0.5, by_word={'wait': 100.0})
    """
    counts = [count_words(text, words) for text in texts]
    total = sum(counts, Counter[str]())
    per_token = 1000 / num_tokens if num_tokens else 0.0
    return ReflectionCount(
        per_1k=total.total() * per_token,
        share=sum(bool(count) for count in counts) / len(texts) if texts else 0.0,
        by_word={word: total[word] * per_token for word in words if total[word]},
    )
