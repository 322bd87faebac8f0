"""Written thoughts: right without slips, slips as often as set, and checks that are worth their tokens."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melete.corpus.traces import WORDS, TraceSettings, think_chain, think_countdown
from melete.tasks.arithmetic import Chain, draw_chain
from melete.tasks.countdown import draw_puzzle

STEP = re.compile(r"(-?\d+)([+*-])(\d+)=(-?\d+)")
LANGUAGES = sorted(WORDS)
FAULTLESS = TraceSettings(slip=0.0, slip_noticed=0.0, slip_in_check=0.0, check=0.0)


def chains(count: int, seed: int = 0, num_terms: int = 6) -> Iterator[tuple[Chain, random.Random]]:
    source = random.Random(seed)
    for _ in range(count):
        yield draw_chain(source, num_terms, max_number=15, max_total=60), source


def is_right(step: str) -> bool:
    found = STEP.search(step)
    assert found, step
    left, sign, right, result = int(found[1]), found[2], int(found[3]), int(found[4])
    return result == {"+": left + right, "-": left - right, "*": left * right}[sign]


def share_right(settings: TraceSettings, *, with_check: bool | None = None, count: int = 3000) -> float:
    outcomes = []
    for chain, source in chains(count):
        thought, answer = think_chain(chain, source, settings)
        if with_check is None or ("Check:" in thought) == with_check:
            outcomes.append(answer == chain.totals[-1])
    return sum(outcomes) / len(outcomes)


@given(st.integers(0, 2**32), st.integers(2, 8), st.sampled_from(LANGUAGES))
def test_without_slips_the_thought_is_the_running_totals_and_the_answer_is_right(
    seed: int, num_terms: int, language: str
) -> None:
    ((chain, source),) = chains(1, seed, num_terms)
    thought, answer = think_chain(chain, source, FAULTLESS, language)
    steps = zip(chain.totals, chain.signs, chain.numbers[1:], chain.totals[1:], strict=False)
    assert thought.splitlines() == [f"{a}{'+' if s > 0 else '-'}{n}={b}" for a, s, n, b in steps]
    assert answer == chain.totals[-1]


@given(st.integers(0, 2**32), st.integers(2, 8), st.sampled_from(LANGUAGES))
def test_a_faultless_check_undoes_every_step_and_agrees(seed: int, num_terms: int, language: str) -> None:
    ((chain, source),) = chains(1, seed, num_terms)
    thought, answer = think_chain(chain, source, TraceSettings(0.0, 0.0, 0.0, check=1.0), language)
    lines, words = thought.splitlines(), WORDS[language]
    assert lines[num_terms - 1] == words["check"] and lines.count(words["check"]) == 1
    assert lines[-1] == words["right"].format(chain.numbers[0])
    assert all(is_right(line) for line in lines if "=" in line)
    assert len([line for line in lines if "=" in line]) == 2 * (num_terms - 1)
    assert words["wait"] not in thought and answer == chain.totals[-1]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_noticed_slip_is_corrected_in_the_next_line_and_costs_nothing(language: str) -> None:
    wait = WORDS[language]["wait"]
    for chain, source in chains(200):
        thought, answer = think_chain(chain, source, TraceSettings(1.0, 1.0, 0.0, check=0.0), language)
        lines = thought.splitlines()
        for wrong, corrected in zip(lines[::2], lines[1::2], strict=True):
            assert corrected.startswith(wait) and corrected.removeprefix(wait).split("=")[0] == wrong.split("=")[0]
            assert not is_right(wrong) and is_right(corrected)
        assert answer == chain.totals[-1]


def test_slips_and_their_corrections_are_as_frequent_as_set() -> None:
    settings = TraceSettings(slip=0.1, slip_noticed=0.4, check=0.0)
    num_steps = num_slips = num_noticed = 0
    for chain, source in chains(2000):
        lines = think_chain(chain, source, settings)[0].splitlines()
        first_tries = [line for line in lines if not line.startswith("Wait, ")]
        num_steps += len(first_tries)
        num_slips += sum(not is_right(line) for line in first_tries)
        num_noticed += len(lines) - len(first_tries)
    assert num_steps == 2000 * 5
    assert num_slips / num_steps == pytest.approx(0.1, abs=0.012)
    assert num_noticed / num_slips == pytest.approx(0.4, abs=0.06)


def test_checks_are_as_frequent_as_set() -> None:
    thoughts = [think_chain(chain, source, TraceSettings(check=0.3))[0] for chain, source in chains(2000)]
    assert sum("Check:" in thought for thought in thoughts) / 2000 == pytest.approx(0.3, abs=0.04)


def test_a_thought_with_a_check_ends_right_more_often() -> None:
    with_check, without = (share_right(TraceSettings(), with_check=flag) for flag in (True, False))
    assert without == pytest.approx((1 - 0.06 * 0.6) ** 5, abs=0.03)
    assert with_check > without + 0.08


def test_a_check_pays_the_more_the_more_slips_there_are() -> None:
    gains = []
    for slip in (0.02, 0.06, 0.12):
        gains.append(share_right(TraceSettings(slip, check=1.0)) - share_right(TraceSettings(slip, check=0.0)))
    assert 0 < gains[0] < gains[1] < gains[2]


def test_words_of_reflection_stand_only_where_something_was_wrong_or_checked() -> None:
    words = WORDS["en"]
    num_starts_over = 0
    for chain, source in chains(3000):
        lines = think_chain(chain, source, TraceSettings(slip=0.15, slip_in_check=0.05, check=0.5))[0].splitlines()
        checked = lines.index(words["check"]) if words["check"] in lines else len(lines)
        for number, line in enumerate(lines):
            if line.startswith(words["wait"]) and "=" in line:
                assert not is_right(lines[number - 1]) and is_right(line)
            elif line.startswith(words["wait"]):
                assert number > checked and re.fullmatch(rf"Wait, -?\d+ is not {chain.numbers[0]}\.", line)
                assert STEP.match(lines[number + 1]), "starts over"
                num_starts_over += 1
            elif line.startswith("Yes"):
                assert number == len(lines) - 1 > checked and line == f"Yes, {chain.numbers[0]}."
            else:
                assert line == words["check"] or STEP.fullmatch(line), line
    assert num_starts_over > 100


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_countdown_thought_shows_only_true_steps_rejects_every_miss_and_ends_on_the_target(language: str) -> None:
    source, words = random.Random(3), WORDS[language]
    num_misses = 0
    for _ in range(500):
        numbers, target, gold = draw_puzzle(source, 3, max_number=10, max_target=30)
        lines = think_countdown(numbers, gold, target, source, language=language).splitlines()
        for before, line in zip(["", *lines], lines, strict=False):
            if line == words["miss"].format(target):
                num_misses += 1
                assert not before.endswith(f"={target}")
            elif line == words["right"].format(target):
                assert before.endswith(f"={target}")
            else:
                assert STEP.fullmatch(line) and is_right(line)
        assert lines[-1] == words["right"].format(target) and lines.count(lines[-1]) == 1
    assert num_misses > 500
