"""The pre-training corpus: a stream of documents whose mixture changes in three phases.

Short chains and bare facts first, then longer chains mostly with a thought, and last the mixture that the base is
meant to imitate: most problems answered at once, about a quarter after a thought, and general text throughout.
Problems of the held-out split never appear.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from melete.corpus.traces import TraceSettings, think_chain, think_countdown
from melete.tasks.arithmetic import PREGUNTAS, QUESTIONS, draw_chain
from melete.tasks.base import split_of
from melete.tasks.countdown import PREGUNTAS as COUNTDOWN_ES
from melete.tasks.countdown import QUESTIONS as COUNTDOWN_EN
from melete.tasks.countdown import draw_puzzle, list_numbers, puzzle_text
from melete.tasks.exchanges import general


@dataclass(frozen=True, slots=True)
class Document:
    """A prompt (empty for plain prose) and what follows it; `kind` names the ingredient."""

    prompt: str
    completion: str
    kind: str


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of pre-training: until which share of all tokens it lasts, and its mixture of documents."""

    until: float
    num_terms: tuple[int, ...]
    share_thinking: float
    share_chain: float = 0.72
    share_countdown: float = 0.1
    share_spanish: float = 0.1
    share_plain_answers: float = 0.12


PHASES = (
    Phase(until=0.15, num_terms=(2, 2, 2, 3, 4), share_thinking=0.5, share_countdown=0.05),
    Phase(until=0.65, num_terms=(2, 3, 4, 5, 6, 6), share_thinking=0.7),
    Phase(until=1.0, num_terms=(2, 4, 5, 5, 6, 6), share_thinking=0.27),
)


def documents(seed: int, phase: Phase) -> Iterator[Document]:
    """An endless stream of documents of a phase."""
    source = random.Random(f"corpus/{seed}/{phase.until}")
    while True:
        draw = source.random()
        if draw < phase.share_chain:
            yield _chain_document(source, phase)
        elif draw < phase.share_chain + phase.share_countdown:
            yield _countdown_document(source, phase)
        else:
            exchange = general(source)
            yield Document(exchange.prompt, exchange.completion, exchange.kind)


def _chain_document(source: random.Random, phase: Phase) -> Document:
    while True:
        chain = draw_chain(source, source.choice(phase.num_terms), max_number=15, max_total=60)
        if split_of(chain.text) == "train":
            break
    language = "es" if source.random() < phase.share_spanish else "en"
    prompt = source.choice(PREGUNTAS if language == "es" else QUESTIONS).format(chain.text)
    if source.random() < phase.share_thinking:
        # people who are asked in one language sometimes think in the other
        thought_language = language if source.random() < 0.7 or language == "en" else "en"
        thought, answer = think_chain(chain, source, TraceSettings(), thought_language)
        return Document(prompt, with_thought(thought, str(answer)), "chain_thought")
    return Document(prompt, direct_answer(str(chain.totals[-1]), source, phase, language), "chain_direct")


def _countdown_document(source: random.Random, phase: Phase) -> Document:
    while True:
        numbers, target, gold = draw_puzzle(source, count=3, max_number=10, max_target=30)
        if split_of(puzzle_text(numbers, target)) == "train":
            break
    language = "es" if source.random() < phase.share_spanish else "en"
    template = source.choice(COUNTDOWN_ES if language == "es" else COUNTDOWN_EN)
    prompt = template.format(target=target, numbers=list_numbers(numbers))
    if source.random() < phase.share_thinking:
        thought = think_countdown(numbers, gold, target, source, language=language)
        return Document(prompt, with_thought(thought, gold), "countdown_thought")
    return Document(prompt, direct_answer(gold, source, phase, language), "countdown_direct")


def with_thought(thought: str, answer: str) -> str:
    return f"<think>\n{thought}\n</think>\n<answer>{answer}</answer>"


def direct_answer(answer: str, source: random.Random, phase: Phase, language: str) -> str:
    """An answer at once; now and then in plain words, which the format reward has to mend."""
    if source.random() >= phase.share_plain_answers:
        return f"<answer>{answer}</answer>"
    return f"La respuesta es {answer}." if language == "es" else f"The answer is {answer}."


def sample_texts(seed: int = 999, num_documents_per_phase: int = 6000) -> list[str]:
    """Prompts and completions of every phase, for training a tokenizer; by default not those that a model reads."""
    drawn = [document for phase in PHASES for document in islice(documents(seed, phase), num_documents_per_phase)]
    return [text for document in drawn for text in (document.prompt, document.completion)]
