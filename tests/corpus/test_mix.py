"""The pre-training corpus: what each phase is made of, and that it never gives a held-out problem away."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import islice

import pytest

from melete.corpus.mix import PHASES, Document, Phase, documents, sample_texts
from melete.tasks import make_task
from melete.tasks.base import split_of
from melete.tasks.countdown import evaluate_expression, puzzle_text
from melete.tasks.exchanges import KINDS
from melete.text.answers import parse_completion

CHAIN = re.compile(r"\d+(?:[+-]\d+)+")
PUZZLE = re.compile(r"(?:Reach|Make|Llega a) (\d+) (?:with|from|con) ([\d,]+)\.")
PHASE_IDS = [f"until {phase.until:g}" for phase in PHASES]
NUM_DOCUMENTS = 3000


@cache
def drawn(phase: Phase, seed: int = 0) -> Sequence[Document]:
    return list(islice(documents(seed, phase), NUM_DOCUMENTS))


def of_kind(phase: Phase, *kinds: str) -> list[Document]:
    return [document for document in drawn(phase) if document.kind in kinds]


def chain_in(document: Document) -> str:
    found = CHAIN.findall(document.prompt)
    assert len(found) == 1, document
    return str(found[0])


def puzzle_in(document: Document) -> tuple[list[int], int]:
    found = PUZZLE.fullmatch(document.prompt)
    assert found, document
    return [int(number) for number in found[2].split(",")], int(found[1])


@pytest.mark.parametrize("phase", PHASES, ids=PHASE_IDS)
def test_no_phase_asks_a_held_out_problem(phase: Phase) -> None:
    chains = [chain_in(document) for document in of_kind(phase, "chain_thought", "chain_direct")]
    puzzles = [puzzle_in(document) for document in of_kind(phase, "countdown_thought", "countdown_direct")]
    assert len(chains) > NUM_DOCUMENTS / 2 and len(puzzles) > NUM_DOCUMENTS / 40
    assert {split_of(chain) for chain in chains} == {"train"}
    assert {split_of(puzzle_text(numbers, target)) for numbers, target in puzzles} == {"train"}


def test_no_text_holds_a_problem_that_a_task_keeps_back() -> None:
    held_out = {
        str(make_task("arithmetic_chain", {"seed": seed}).problem("held_out", index).meta["expression"])
        for seed in range(3)
        for index in range(1000)
    }
    for phase in PHASES:
        for document in drawn(phase):
            assert not held_out & set(CHAIN.findall(document.prompt + "\n" + document.completion)), document


@pytest.mark.parametrize("phase", PHASES, ids=PHASE_IDS)
def test_an_answer_given_at_once_is_right(phase: Phase) -> None:
    for document in of_kind(phase, "chain_direct"):
        value = sum(int(term) for term in re.findall(r"[+-]?\d+", chain_in(document)))
        assert re.search(rf"(?:<answer>| is | es ){value}(?:</answer>|\.)$", document.completion), document
    for document in of_kind(phase, "countdown_direct", "countdown_thought"):
        numbers, target = puzzle_in(document)
        answer = parse_completion(document.completion).answer
        if answer is None:
            assert document.kind == "countdown_direct"
            answer = re.sub(r"^\D+ (?:is|es) |\.$", "", document.completion)
        assert evaluate_expression(answer) == (target, sorted(numbers)), document


@pytest.mark.parametrize("phase", PHASES, ids=PHASE_IDS)
def test_every_thought_is_well_formed_and_ends_in_its_answer(phase: Phase) -> None:
    for document in of_kind(phase, "chain_thought"):
        parsed = parse_completion(document.completion)
        assert parsed.well_formed and parsed.thought and parsed.answer
        steps = [line for line in parsed.thought.splitlines() if "=" in line]
        checked = re.search(r"^(?:Check|Comprueba):\n", parsed.thought, re.MULTILINE)
        if not checked:
            assert steps[-1].endswith(f"={parsed.answer}"), document


@pytest.mark.parametrize("phase", PHASES, ids=PHASE_IDS)
def test_shares_are_those_of_the_phase(phase: Phase) -> None:
    thought, direct = of_kind(phase, "chain_thought"), of_kind(phase, "chain_direct")
    puzzles = of_kind(phase, "countdown_thought", "countdown_direct")
    chains = [*thought, *direct]
    assert len(chains) / NUM_DOCUMENTS == pytest.approx(phase.share_chain, abs=0.04)
    assert len(puzzles) / NUM_DOCUMENTS == pytest.approx(phase.share_countdown, abs=0.03)
    assert len(thought) / len(chains) == pytest.approx(phase.share_thinking, abs=0.045)
    plain = [document for document in direct if "<answer>" not in document.completion]
    assert len(plain) / len(direct) == pytest.approx(phase.share_plain_answers, abs=0.05)
    spanish = [document for document in chains if document.prompt.startswith(("¿", "Calcula"))]
    assert len(spanish) / len(chains) == pytest.approx(phase.share_spanish, abs=0.03)


@pytest.mark.parametrize("phase", PHASES, ids=PHASE_IDS)
def test_chains_have_the_lengths_of_the_phase_in_the_stated_range(phase: Phase) -> None:
    lengths = set()
    for document in of_kind(phase, "chain_thought", "chain_direct"):
        numbers = [int(number) for number in re.findall(r"\d+", chain_in(document))]
        assert len(set(numbers)) == len(numbers) and all(1 <= number <= 15 for number in numbers)
        lengths.add(len(numbers))
    assert lengths == set(phase.num_terms)


def test_phases_follow_each_other_to_the_end_and_chains_grow() -> None:
    assert [phase.until for phase in PHASES] == sorted(phase.until for phase in PHASES)
    assert PHASES[-1].until == 1.0
    means = [sum(phase.num_terms) / len(phase.num_terms) for phase in PHASES]
    assert means == sorted(means)


def test_the_last_phase_thinks_in_about_a_quarter_of_its_problems() -> None:
    problems = of_kind(PHASES[-1], "chain_thought", "chain_direct", "countdown_thought", "countdown_direct")
    thinking = sum(document.kind.endswith("_thought") for document in problems)
    assert 0.15 <= thinking / len(problems) <= 0.35


def test_every_kind_of_general_text_is_in_every_phase() -> None:
    for phase in PHASES:
        assert set(KINDS) <= {document.kind for document in drawn(phase)}


def test_documents_are_a_function_of_seed_and_phase() -> None:
    for phase in PHASES:
        assert list(islice(documents(0, phase), 200)) == drawn(phase)[:200]
        assert list(islice(documents(1, phase), 200)) != drawn(phase)[:200]
    assert drawn(PHASES[0])[:200] != drawn(PHASES[1])[:200]


def test_the_tokenizer_sees_prompts_and_completions_of_every_phase() -> None:
    texts = sample_texts(0, num_documents_per_phase=50)
    for phase in PHASES:
        for document in drawn(phase)[:50]:
            assert document.prompt in texts and document.completion in texts
