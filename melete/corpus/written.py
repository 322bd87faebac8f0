"""Demonstrations written by a program in the place of people: examples for a cold start, general answers, lessons."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from melete.corpus.mix import with_thought
from melete.corpus.traces import TraceSettings, think_chain, think_countdown
from melete.rewards.judge_prompts import short_point_messages
from melete.tasks.arithmetic import PREGUNTAS, QUESTIONS, draw_chain
from melete.tasks.base import draw_from_split
from melete.tasks.countdown import PREGUNTAS as COUNTDOWN_ES
from melete.tasks.countdown import QUESTIONS as COUNTDOWN_EN
from melete.tasks.countdown import draw_puzzle, list_numbers, puzzle_text
from melete.tasks.exchanges import KINDS
from melete.tasks.general import ASKED, General, deciding_words, good_answer
from melete.types import Demonstration, Message, Problem

# readable: no slips, and more often than not a check, which has words, and words have a language
CLEAN = TraceSettings(slip=0.0, slip_in_check=0.0, check=0.6)
_MAX_TRIES = 50  # draws in a row that were all written before


def chain_example(
    source: random.Random, language: str = "en", terms: tuple[int, int] = (4, 6), max_number: int = 15
) -> tuple[str, str]:
    """A sum of some numbers with a thought in the language of the question, without a slip."""
    chain = draw_from_split(
        "train",
        lambda: draw_chain(source, source.randint(*terms), max_number=max_number, max_total=60),
        lambda drawn: drawn.text,
    )
    thought, answer = think_chain(chain, source, CLEAN, language)
    question = source.choice(PREGUNTAS if language == "es" else QUESTIONS).format(chain.text)
    return question, with_thought(thought, str(answer))


def countdown_example(source: random.Random) -> tuple[str, str]:
    """A puzzle of three numbers with at most one miss before the solution."""
    numbers, target, gold = draw_from_split(
        "train",
        lambda: draw_puzzle(source, count=3, max_number=10, max_target=30),
        lambda drawn: puzzle_text(drawn[0], drawn[1]),
    )
    language = "es" if source.random() < 0.2 else "en"
    template = source.choice(COUNTDOWN_ES if language == "es" else COUNTDOWN_EN)
    thought = think_countdown(numbers, gold, target, source, max_misses=1, language=language)
    return template.format(target=target, numbers=list_numbers(numbers)), with_thought(thought, gold)


def general_example(source: random.Random) -> tuple[str, str]:
    """A request of any kind with an answer that is wholly good: harm is refused, verses are to the reader's taste."""
    kind = source.choice(ASKED)
    exchange = draw_from_split("train", lambda: KINDS[kind](source), lambda drawn: drawn.prompt)
    return exchange.prompt, good_answer(exchange, source)


def lesson(source: random.Random) -> tuple[str, str]:
    """The right answer to a question of fact and an answer to be judged, with the verdict; about half are right."""
    task = General(kinds="fact", seed=source.getrandbits(40))
    problem, other = task.problem("train", 0), task.problem("train", 1)
    answer = problem.gold if source.random() < 0.2 else _doubtful_answer(problem, other, source)
    (message,) = short_point_messages(problem.messages, problem.gold, answer)
    return message.content, "Yes" if task.grade(problem, answer) == 1.0 else "No"


def _doubtful_answer(problem: Problem, other: Problem, source: random.Random) -> str:
    """As a model errs: another fact's word in the right sentence, an answer to something else, words lost or added."""
    words, strange, kind = problem.gold.split(), general_example(source)[1], source.random()
    if kind < 0.3 or len(words) < 3:
        return strange
    if kind < 0.6:
        decides, wrong = (deciding_words(p.gold, p.messages[-1].content) for p in (problem, other))
        put = next(word.strip(".,") for word in other.gold.split() if word.strip(".,").lower() in wrong)
        return " ".join(
            put + word[len(word.rstrip(".,")) :] if word.strip(".,").lower() in decides else word for word in words
        )
    for _ in range(source.randint(1, 2)):
        place = source.randrange(len(words))
        replaced = (
            [],
            [words[place]] * 2,
            [words[place], source.choice(strange.split())],
            [source.choice(strange.split())],
        )
        words[place : place + 1] = source.choice(replaced)
    return " ".join(words)


WRITERS: Mapping[str, Callable[[random.Random], tuple[str, str]]] = {
    "chains": chain_example,
    "chains_es": lambda source: chain_example(source, "es"),
    "short_chains": lambda source: chain_example(source, terms=(2, 3), max_number=9),
    "countdowns": countdown_example,
    "general": general_example,
    "judgements": lesson,
}
"""What can be written, by the name that a recipe uses."""


def written(name: str, count: int, seed: str) -> list[Demonstration]:
    """At most `count` different demonstrations: fewer where there are no more to be drawn.

    No prompt belongs to the held-out split. Raises `KeyError` for an unknown name.
    """
    source, rows, tries = random.Random(f"{seed}/{name}"), dict[tuple[str, str], Demonstration](), 0
    while len(rows) < count and tries < _MAX_TRIES:
        prompt, completion = WRITERS[name](source)
        tries = 0 if (prompt, completion) not in rows else tries + 1
        row = Demonstration(f"{name}/{len(rows)}", (Message("user", prompt),), completion)
        rows.setdefault((prompt, completion), row)
    return list(rows.values())
