"""Rewards of the shape of a completion: tags, length, repetition, language and steps. None knows the right answer.

Lengths are counted in tokens of the whole completion, the end-of-turn token included. Each factory returns a
`RewardFunction` or, where siblings are compared, a `BatchReward`; all take time linear in the length of a completion.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence

from melete.rewards.rules import BatchReward, RewardFunction
from melete.text.language import guess_language, language_share, scripts_of
from melete.text.repetition import repeated_share, units
from melete.types import Rollout

CORRECT = 0.5  # a score above this is a right answer
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_ANY_TAG = re.compile(r"</?think>|</?answer>")
_STEP = re.compile(
    r"^[ \t]{0,8}(?:(?:\*\*|#{1,6}[ \t]{1,4})?(?:step|paso)[ \t]{1,4}\d{1,3}\b|\d{1,3}[.)][ \t]|[-*•][ \t])"
    r"|\b(?:first|second|third|fourth|fifth|next|then|finally|primero|segundo|tercero|luego|después|finalmente),",
    re.IGNORECASE | re.MULTILINE,
)


def tag_count(*, thought_opened: bool = False) -> RewardFunction:
    """A quarter for each of `<think>`, `</think>`, `<answer>` and `</answer>` that stands exactly once.

    The form of open-r1's `tag_count_reward`, which gives partial credit while the format is learned. A tag that stands
    twice earns nothing, so writing many of them never pays; and the second of a pair earns only after the first. With
    `thought_opened` the prompt's template has written `<think>`, and that quarter is given for not repeating it.
    """

    def reward(rollout: Rollout) -> float:
        tags = _ANY_TAG.findall(f"<think>{rollout.text}" if thought_opened else rollout.text)
        earned = [tag for tag in _TAGS if tags.count(tag) == 1]
        for opening, closing in (_TAGS[:2], _TAGS[2:]):
            if closing in earned and opening in tags and tags.index(opening) > tags.index(closing):
                earned.remove(closing)
        return 0.25 * len(earned)

    return reward


def length_penalty(score: RewardFunction) -> BatchReward:
    """Kimi k1.5's length reward (Kimi Team 2025, section 2.3.3): among siblings, short is better than long.

        lambda = 0.5 - (length - min) / (max - min)       right answer: lambda, wrong answer: min(0, lambda)

    min and max are those of the problem's rollouts in the batch, in tokens, and siblings of equal length get 0. So a
    right answer gets between -0.5 and 0.5, and a wrong one is never rewarded for being short. `score` is the reward of
    the answer; above 0.5 is right. Where it raises, the rollout has no reward, and its length does not count.
    """

    def scores(rollouts: Sequence[Rollout]) -> list[float | Exception]:
        judged = [_attempt(score, rollout) for rollout in rollouts]
        lengths: defaultdict[str, list[int]] = defaultdict(list)
        for rollout, value in zip(rollouts, judged, strict=True):
            if not isinstance(value, Exception):
                lengths[rollout.problem.problem_id].append(_length(rollout))
        bounds = {problem_id: (min(each), max(each)) for problem_id, each in lengths.items()}
        return [
            _among_siblings(rollout, value, bounds.get(rollout.problem.problem_id, (0, 0)))
            for rollout, value in zip(rollouts, judged, strict=True)
        ]

    return BatchReward(scores)


def _among_siblings(rollout: Rollout, value: float | Exception, bounds: tuple[int, int]) -> float | Exception:
    if isinstance(value, Exception):
        return value
    shortest, longest = bounds
    if shortest == longest:
        return 0.0
    reward = 0.5 - (_length(rollout) - shortest) / (longest - shortest)
    return reward if value > CORRECT else min(0.0, reward)


def _attempt(score: RewardFunction, rollout: Rollout) -> float | Exception:
    try:
        return score(rollout)
    except Exception as error:  # a grader's failure is data, and that of this rollout only
        return error


def cosine_length(
    score: RewardFunction,
    max_new_tokens: int,
    *,
    wrong: tuple[float, float] = (-1.0, -0.5),
    right: tuple[float, float] = (1.0, 0.5),
) -> RewardFunction:
    """The cosine reward (Yeo et al. 2025, section 4.2): a short right answer is best, a short wrong one worst.

        end + (start - end) (1 + cos(pi min(1, length / max_new_tokens))) / 2

    `right` and `wrong` are the rewards (start, end) at length 0 and at the limit; between them the reward falls or
    rises along half a cosine, and beyond the limit it stays. The defaults are those of open-r1's
    `get_cosine_scaled_reward`, whose wrong answers are paid for length so that the model keeps searching. `score` is
    the reward of the answer; above 0.5 is right. It contains correctness: use it instead of the accuracy, not beside.
    Raises `ValueError` for a limit below 1.
    """
    _at_least_one("max_new_tokens", max_new_tokens)

    def reward(rollout: Rollout) -> float:
        start, end = right if score(rollout) > CORRECT else wrong
        progress = min(1.0, _length(rollout) / max_new_tokens)
        return end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2

    return reward


def repetition_penalty(*, size: int = 3, max_penalty: float = -1.0) -> RewardFunction:
    """From 0 for a text that never repeats an n-gram to `max_penalty` for one that does nothing else.

        max_penalty (1 - distinct n-grams / n-grams)

    The form of Yeo et al. (2025) in open-r1's `get_repetition_penalty_reward`: n-grams of `size` words in small
    letters, or of characters in scripts without spaces. A text of fewer than `size` words gets 0. Raises `ValueError`
    for a penalty above 0 or a size below 1.
    """
    _at_least_one("size", size)
    if not max_penalty <= 0:
        raise ValueError(f"max_penalty must be 0 or less, not {max_penalty}")

    def reward(rollout: Rollout) -> float:
        share = repeated_share(units(rollout.text), size)
        return max_penalty * share if share else 0.0

    return reward


def language_consistency(*, wordless: float = 0.0, thought_opened: bool = False) -> RewardFunction:
    """The share of the thought's words in the language of the question (DeepSeek-R1's language consistency reward).

    The language is `problem.meta["language"]` (such as "en"), else guessed from the last message; where that says
    nothing, or speaks a language without a list here, only the script is judged. Code, formulas and numbers are left
    out. 0 for a thought that is missing or empty, and for one that never ends: not to write must not be the way to full
    marks. A thought without any words gets `wordless`: at 0 a model of arithmetic is paid for words as such, and may
    write them in any language. See `melete.text.language` for what is told apart. Raises `ValueError` for a `language`
    that is no code of two letters, and for a `wordless` outside 0 to 1.
    """

    if not 0 <= wordless <= 1:
        raise ValueError(f"wordless must be 0 to 1, not {wordless}")

    def reward(rollout: Rollout) -> float:
        thought = _thought(rollout.text, thought_opened)
        language = _language_of(rollout)
        if not thought:
            return 0.0
        share = language_share(thought, language)
        return wordless if share is None else share

    return reward


def reasoning_steps(*, enough: int = 3, thought_opened: bool = False) -> RewardFunction:
    """Written steps divided by `enough`, at most 1 (open-r1's `reasoning_steps_reward`).

    A step is a line that begins with `Step 1`, `1.`, `-` or `*`, or a word such as "First," or "Finally,", in English
    or Spanish; only the thought counts, or the whole text where no tag of a thought is. A step that repeats another
    word for word is none. Raises `ValueError` for `enough` below 1.
    """
    _at_least_one("enough", enough)

    def reward(rollout: Rollout) -> float:
        thought = _thought(rollout.text, thought_opened)
        text = (
            rollout.text if thought is None and not thought_opened and "think>" not in rollout.text else thought or ""
        )
        said: set[str] = set()
        for match in _STEP.finditer(text):
            what_follows = text[match.end() : match.end() + 200].partition("\n")[0].strip(" *:.").lower()
            if what_follows:
                said.add(what_follows)
            if len(said) >= enough:
                break
        return min(1.0, len(said) / enough)

    return reward


def _length(rollout: Rollout) -> int:
    return len(rollout.completion.tokens)


def _thought(text: str, thought_opened: bool) -> str | None:
    """What stands between the first `<think>` and the next `</think>`; `None` where there is no such pair."""
    whole = f"<think>{text}" if thought_opened else text
    _, opened, rest = whole.partition("<think>")
    thought, closed, _ = rest.partition("</think>")
    return thought.replace("<think>", " ").strip() if opened and closed else None


def _language_of(rollout: Rollout) -> str:
    declared = rollout.problem.meta.get("language")
    if declared is not None:
        scripts_of(str(declared))  # raises for what is no language
        return str(declared)
    messages = rollout.problem.messages
    guessed = guess_language(messages[-1].content) if messages else ""
    return _LATIN if guessed in ("", "other") else guessed


_LATIN = "la"  # Latin has no list of words, so only its script is judged


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
