"""A language model as the judge: of two answers, and of an answer by a reference.

Only the judge's own reply is read, and strictly: a reply without a readable verdict is a `GradingError`, never a guess.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from melete.rewards.endpoint import ChatModel, Conversation
from melete.rewards.errors import GradingError
from melete.rewards.judge_prompts import Scope, pair_messages, point_messages, short_point_messages, shown
from melete.rewards.rules import BatchReward
from melete.types import Message, PreferencePair, Problem, Rollout

VERDICTS = {"A>>B": 2, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -2}
"""How much better A is than B: the scale of Arena-Hard (Li et al. 2024)."""
_LABEL = re.compile(r"\[\[\s*([^\[\]]{0,40}?)\s*\]\]")
_VERDICT_KEY = re.compile(r"[\"']verdict\\?[\"']\s*:", re.IGNORECASE)
_OBJECT = re.compile(r"\{(?=\s{0,100}[\"}])")
_MAX_REPLY, _MAX_FAILURES = 100_000, 50


@dataclass(frozen=True, slots=True)
class Contest:
    """Two completions of one prompt."""

    row_id: str
    messages: tuple[Message, ...]
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much better the first completion is, from -2 to 2: when it was shown first, and when it was shown second."""

    shown_first: float
    shown_second: float

    @property
    def delta(self) -> float:
        """The mean over both orders."""
        return (self.shown_first + self.shown_second) / 2

    @property
    def flips(self) -> bool:
        """Whether the order of showing decides who wins."""
        return self.shown_first * self.shown_second < 0

    @property
    def wins(self) -> float:
        """Win rate of the first: each order is a win (1), a tie (1/2) or a loss (0)."""
        return fmean((value > 0) + 0.5 * (value == 0) for value in (self.shown_first, self.shown_second))


@dataclass(frozen=True, slots=True)
class PositionBias:
    """How the order of showing sways a judge. `lean`: how much better the completion shown first is called, -2 to 2."""

    num_pairs: int
    num_flips: int
    lean: float

    @property
    def share(self) -> float:
        """Share of pairs whose winner changes with the order."""
        return self.num_flips / self.num_pairs if self.num_pairs else 0.0


@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """`rows[i]` is the pair that came of contest i, or `None` because of `reasons[i]`.

    `chosen_longer`: share of pairs whose chosen completion has more characters; far from 1/2, length is what is liked.
    """

    rows: tuple[PreferencePair | None, ...]
    reasons: tuple[str, ...]
    bias: PositionBias

    @property
    def pairs(self) -> list[PreferencePair]:
        """The pairs that were kept."""
        return [row for row in self.rows if row is not None]

    @property
    def chosen_longer(self) -> float:
        """Share of pairs whose chosen completion is the longer one."""
        return fmean(len(p.chosen) > len(p.rejected) for p in self.pairs) if self.pairs else 0.0


def compare(
    model: ChatModel,
    contests: Sequence[Contest],
    *,
    num_calls: int = 4,
    scope: Scope = "answer",
    seed: int = 0,
    thought_opened: bool = False,
) -> list[Comparison | GradingError]:
    """Each contest judged `num_calls` times, half of them in each order (a hash decides which is asked more often).

    DeepSeek-R1 averages 4 calls in random order. Here each order is averaged by itself, so that a lost reply does not
    bring the position back in; without a verdict in each order there is none. What reads the same is a tie, unasked.
    Raises `ValueError` for fewer than 2 calls.
    """
    if num_calls < 2:
        raise ValueError(f"num_calls must be at least 2, one in each order, not {num_calls}")
    conversations: list[Conversation] = []
    plans: list[list[bool]] = []  # of each contest, per call: whether the first is shown first
    for contest in contests:
        one, two = (shown(text, scope, thought_opened=thought_opened) for text in (contest.first, contest.second))
        start = _coin(f"{seed}/{contest.row_id}")
        plan = [] if one == two else [(number + start) % 2 == 0 for number in range(num_calls)]
        plans.append(plan)
        for number, in_order in enumerate(plan):
            pair = (one, two) if in_order else (two, one)
            conversations.append((pair_messages(contest.messages, *pair), number // 2))
    replies = iter(model.replies(conversations))
    return [_comparison(plan, [next(replies) for _ in plan]) for plan in plans]


def _comparison(plan: Sequence[bool], replies: Sequence[str | GradingError]) -> Comparison | GradingError:
    if not plan:
        return Comparison(0.0, 0.0)
    values: dict[bool, list[int]] = {True: [], False: []}
    failure = ""
    for in_order, reply in zip(plan, replies, strict=True):
        try:
            verdict = _read(reply, parse_pair_verdict)
            values[in_order].append(verdict if in_order else -verdict)
        except GradingError as error:
            failure = failure or str(error)
    if not (values[True] and values[False]):
        return GradingError(f"no verdict in one of the orders: {failure}")
    return Comparison(fmean(values[True]), fmean(values[False]))


def position_bias(comparisons: Sequence[Comparison | GradingError]) -> PositionBias:
    """What the order of showing did to the pairs that have a verdict."""
    judged = [found for found in comparisons if isinstance(found, Comparison)]
    lean = fmean((found.shown_first - found.shown_second) / 2 for found in judged) if judged else 0.0
    return PositionBias(len(judged), sum(found.flips for found in judged), lean)


def preference_pairs(
    model: ChatModel,
    contests: Sequence[Contest],
    *,
    threshold: float = 1.0,
    num_calls: int = 4,
    scope: Scope = "answer",
    seed: int = 0,
    thought_opened: bool = False,
) -> JudgedPairs:
    """Pairs whose judgement is clear: |delta| above `threshold` (DeepSeek-R1: 1 on the scale of -2 to 2).

    The rows hold whole completions, whatever part of them the judge was shown.
    """
    found = compare(model, contests, num_calls=num_calls, scope=scope, seed=seed, thought_opened=thought_opened)
    rows: list[PreferencePair | None] = []
    reasons: list[str] = []
    for contest, judged in zip(contests, found, strict=True):
        if isinstance(judged, GradingError) or abs(judged.delta) <= threshold:
            is_failure = isinstance(judged, GradingError)
            reasons.append(str(judged) if is_failure else f"|delta| {abs(judged.delta):g} is not above {threshold:g}")
            rows.append(None)
            continue
        better, worse = (contest.first, contest.second) if judged.delta > 0 else (contest.second, contest.first)
        rows.append(PreferencePair(contest.row_id, contest.messages, better, worse))
        reasons.append("")
    return JudgedPairs(tuple(rows), tuple(reasons), position_bias(found))


def win_rate(
    model: ChatModel,
    *,
    reference: Callable[[Problem], str] = lambda problem: problem.gold,
    num_calls: int = 2,
    scope: Scope = "answer",
    seed: int = 0,
    thought_opened: bool = False,
) -> BatchReward:
    """The share of orders in which a completion beats the reference completion of its problem; a tie is half a win."""

    def scores(rollouts: Sequence[Rollout]) -> list[float | GradingError]:
        contests = [
            # the reference is no rollout: it holds its own <think>, if any
            Contest(
                rollout.problem.problem_id,
                rollout.problem.messages,
                shown(rollout.text, scope, thought_opened=thought_opened),
                shown(reference(rollout.problem), scope),
            )
            for rollout in rollouts
        ]
        found = compare(model, contests, num_calls=num_calls, scope="completion", seed=seed)
        return [judged.wins if isinstance(judged, Comparison) else judged for judged in found]

    return BatchReward(scores)


def correctness(
    model: ChatModel,
    *,
    num_calls: int = 1,
    scope: Scope = "answer",
    thought_opened: bool = False,
    short: bool = False,
) -> BatchReward:
    """1 where the judge calls an answer correct by the problem's gold answer, else 0; the mean over `num_calls`.

    `short` is the form for a small model that was trained to judge: see `short_point_messages`.

    An empty answer is 0 without a question. A single reply without a verdict is that rollout's failure.
    """
    if num_calls < 1:
        raise ValueError(f"num_calls must be at least 1, not {num_calls}")
    messages, parse = (short_point_messages, parse_short_verdict) if short else (point_messages, parse_point_verdict)

    def scores(rollouts: Sequence[Rollout]) -> list[float | GradingError]:
        texts = [shown(rollout.text, scope, thought_opened=thought_opened) for rollout in rollouts]
        conversations = [
            (messages(rollout.problem.messages, rollout.problem.gold, text), call)
            for rollout, text in zip(rollouts, texts, strict=True)
            for call in range(num_calls)
            if text.strip()
        ]
        replies = iter(model.replies(conversations))
        return [_correct([next(replies) for _ in range(num_calls)], parse) if text.strip() else 0.0 for text in texts]

    return BatchReward(scores)


def _correct(replies: Sequence[str | GradingError], parse: Callable[[str], int]) -> float | GradingError:
    try:
        return fmean(_read(reply, parse) for reply in replies)
    except GradingError as error:
        return error


def _read(reply: str | GradingError, parse: Callable[[str], int]) -> int:
    if isinstance(reply, GradingError):
        raise reply
    return parse(reply)


def parse_pair_verdict(reply: str) -> int:
    """How much better A is than B, from the one verdict in the last line of the judge's reply.

    Raises `GradingError` for no verdict, an unknown one, one that is not at the end, and verdicts that contradict
    each other anywhere outside the judge's own thought.

    >>> parse_pair_verdict("A is wrong.\\n[[B>>A]]")
    -2
    """
    text = _own_words(reply)
    found = [label.replace(" ", "") for label in _LABEL.findall(text)]
    labels = [label for label in found if label in VERDICTS]
    if not labels:
        raise GradingError(f"no verdict in the judge's reply: {_end_of(text)}")
    if len(set(labels)) > 1:
        raise GradingError(f"the judge's verdicts contradict each other: {', '.join(dict.fromkeys(labels))}")
    last = _LABEL.findall(text.strip().rpartition("\n")[2])
    if not last or last[-1].replace(" ", "") not in VERDICTS:
        raise GradingError(f"the judge's reply does not end with a verdict: {_end_of(text)}")
    return VERDICTS[labels[-1]]


def parse_point_verdict(reply: str) -> int:
    """1 for "correct", 0 for "incorrect", from the last JSON object with a verdict in the judge's reply.

    Fences and text around it do not matter. Raises `GradingError` for no such object, other words, a key given twice,
    and a `"verdict":` outside of what can be read as JSON: then it is not clear which object is the judge's.

    >>> parse_point_verdict('Here it is: {"verdict": "incorrect", "reason": "7, not 6"}')
    0
    """
    text = _own_words(reply)
    objects, rest = _json_objects(text)
    verdicts = [found["verdict"] for found in objects if "verdict" in found]
    if _VERDICT_KEY.search(rest):
        raise GradingError(f"the judge's verdict is not readable as JSON: {_end_of(text)}")
    if not verdicts:
        raise GradingError(f"no verdict in the judge's reply: {_end_of(text)}")
    if any(verdict not in ("correct", "incorrect") for verdict in verdicts):
        raise GradingError(f'the verdict is neither "correct" nor "incorrect": {_end_of(text)}')
    return int(verdicts[-1] == "correct")


def parse_short_verdict(reply: str) -> int:
    """1 for "Yes", 0 for "No", alone or with a full stop. Raises `GradingError` for anything else.

    >>> parse_short_verdict("Yes"), parse_short_verdict(" No. ")
    (1, 0)
    """
    word = _own_words(reply).strip().removesuffix(".")
    if word not in ("Yes", "No"):
        raise GradingError(f"the judge's reply is neither Yes nor No: {_end_of(reply)}")
    return int(word == "Yes")


def _json_objects(text: str) -> tuple[list[dict[str, Any]], str]:
    """The outermost JSON objects in a text, and what is left of it without them. Raises `GradingError` for a flood."""
    decoder = json.JSONDecoder(object_pairs_hook=_without_doubles)
    objects: list[dict[str, Any]] = []
    rest: list[str] = []
    at = failures = 0
    while start := _OBJECT.search(text, at):
        try:
            found, end = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            failures += 1
            if failures > _MAX_FAILURES:  # each costs a look at the whole text
                raise GradingError("the judge's reply is full of what is not JSON") from None
            end = start.end()
            rest.append(text[at:end])
        else:
            objects.append(found)
            rest.append(text[at : start.start()])
        at = end
    return objects, "".join([*rest, text[at:]])


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)


def _own_words(reply: str) -> str:
    """The judge's reply without its own thought."""
    if len(reply) > _MAX_REPLY:
        raise GradingError(f"the judge's reply is too long: {len(reply)} characters")
    _, closed, after = reply.rpartition("</think>")
    text = after if closed else reply
    if "<think>" in text:
        raise GradingError("the judge's thought never ends")
    return text


def _end_of(text: str) -> str:
    return repr(text.strip()[-120:])


def _coin(key: str) -> int:
    return hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=1).digest()[0] & 1
