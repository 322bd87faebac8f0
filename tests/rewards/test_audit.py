"""The audit finds what is wrong with bad graders, and nothing with good ones."""

from __future__ import annotations

import math
import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest

from melete.rewards.audit import AuditReport, audit, render
from melete.rewards.audit_probes import KINDS, Kind, kind_of, probes_for, value_of
from melete.rewards.errors import GradingError
from melete.rewards.grade import RewardPart
from melete.rewards.rules import BatchReward, ConcurrentReward, accuracy, format_tags
from melete.tasks import make_task
from melete.text.answers import without_thought
from melete.text.numbers import parse_integer
from melete.types import Message, Problem

GradeText = Callable[[str, str], float]


@dataclass(frozen=True)
class Sums:
    """Additions of two numbers, graded by whatever is given."""

    judge: GradeText
    name: str = "sums"

    def problem(self, split: str, index: int) -> Problem:
        a, b = 17 * index % 89 + 1, 5 * index % 13 + 2
        return Problem(f"sums/{index}", "sums", (Message("user", f"{a}+{b}=?"),), str(a + b))

    def grade(self, problem: Problem, answer: str) -> float:
        return self.judge(problem.gold, answer)


@dataclass(frozen=True)
class Fixed:
    """Given gold answers, graded by whatever is given."""

    golds: tuple[str, ...]
    judge: GradeText
    name: str = "fixed"

    def problem(self, split: str, index: int) -> Problem:
        return Problem(f"fixed/{index}", "fixed", (Message("user", "What is it?"),), self.golds[index])

    def grade(self, problem: Problem, answer: str) -> float:
        return self.judge(problem.gold, answer)


def strict(gold: str, answer: str) -> float:
    return float(parse_integer(answer) == int(gold))


def substring(gold: str, answer: str) -> float:
    return float(gold in answer)


def tolerant(gold: str, answer: str) -> float:
    try:
        return float(abs(float(answer) - int(gold)) < 0.01)
    except ValueError:
        return 0.0


def any_answer(gold: str, answer: str) -> float:
    return float(answer != "")


def crashing(gold: str, answer: str) -> float:
    return float(int(answer) == int(gold))  # what is no number raises ValueError


def dying(gold: str, answer: str) -> float:
    if "_exit" in answer:
        os._exit(0)  # what a grader that evaluates its answers does
    return strict(gold, answer)


def hanging(gold: str, answer: str) -> float:
    while "9**9" in answer:
        pass
    return strict(gold, answer)


def evaluating(gold: str, answer: str) -> float:
    try:
        return float(set(answer) <= set("0123456789+-") and eval(answer) == int(gold))
    except SyntaxError:
        return 0.0


def unicode_digits(gold: str, answer: str) -> float:
    return float(answer.isdigit() and answer.isdecimal() and int(answer) == int(gold))


def first_line(gold: str, answer: str) -> float:
    return strict(gold, answer.split("\n", 1)[0])


def last_number(gold: str, answer: str) -> float:
    return strict(gold, answer.split()[-1]) if answer.split() else 0.0


def not_a_number(gold: str, answer: str) -> float:
    return strict(gold, answer) or (math.nan if answer == "nan" else 0.0)


def generous(gold: str, answer: str) -> float:
    return strict(gold, answer) or 0.8 * (parse_integer(answer) is not None)


def run(judge: GradeText, **settings) -> AuditReport:
    return audit(Sums(judge), **{"num_problems": 4, "time_limit": 1.0, **settings})


def found(report: AuditReport, what: str) -> set[str]:
    return {finding.probe for finding in report.findings if finding.what == what}


def test_nothing_is_found_with_a_strict_grader() -> None:
    report = run(strict)
    assert report.ok and report.findings == () and report.num_attempts > 300
    assert (report.kind, report.style) == ("integer", "tags")
    assert "no false positive" in render(report)


@pytest.mark.parametrize(
    ("judge", "what", "probes"),
    [
        (substring, "false positive", {"gold and garbage", "all candidates listed", "code"}),
        (tolerant, "false positive", {"nearly equal"}),
        (any_answer, "false positive", {"nonsense", "off by one", "another problem's gold", "zero", "very long"}),
        (crashing, "crash", {"nonsense", "prompt injection", "10,000 digits"}),
        (dying, "crash", {"code"}),
        (hanging, "hang", {"code"}),
        (evaluating, "false positive", {"the question itself"}),
        (unicode_digits, "false positive", {"look-alikes"}),
        (first_line, "false positive", {"gold and garbage"}),
        (last_number, "false positive", {"gold and garbage", "gold repeated"}),
        (not_a_number, "crash", {"praise and constants"}),
        (generous, "false positive", {"off by one", "zero"}),
    ],
)
def test_a_bad_grader_is_found_out(judge: GradeText, what: str, probes: set[str]) -> None:
    report = run(judge, max_hangs=10, time_limit=0.5)
    assert not report.ok
    assert probes <= found(report, what)
    assert report.count(what) >= len(probes)


def test_a_grader_that_is_too_strict_is_found_out() -> None:
    def literal(rollout) -> float:
        return float(rollout.text.endswith(f"</think>\n<answer>{rollout.problem.gold}</answer>"))

    report = audit(Sums(strict), {"literal": literal}, num_problems=2)
    assert found(report, "false negative") == {"white space around"}


def test_a_grader_that_never_pays_is_found_out() -> None:
    task = Sums(lambda gold, answer: 0.0)
    report = audit(task, {"accuracy": accuracy(task.grade)}, num_problems=2)
    assert "the gold answer" in found(report, "false negative")


def test_a_grader_that_hangs_on_everything_stops_the_audit() -> None:
    def hang(gold: str, answer: str) -> float:
        while True:
            time.sleep(1)

    began = time.monotonic()
    report = run(hang, warm_up=0.3)
    assert time.monotonic() - began < 60
    assert "the first gold answer was not graded" in report.stopped and not report.ok
    assert "NOT FINISHED" in render(report)


def test_what_a_hanging_grader_started_is_ended_with_it(tmp_path: Path) -> None:
    def start(gold: str, answer: str) -> float:
        if answer == "?":
            child = subprocess.Popen(["sleep", "60"])
            (tmp_path / str(child.pid)).touch()
            child.wait()
        return strict(gold, answer)

    report = run(start, num_problems=1, time_limit=0.5)
    assert report.count("hang") == 1
    (child,) = tmp_path.iterdir()
    deadline = time.monotonic() + 5
    while _is_running(int(child.name)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(int(child.name))


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_after_many_hangs_the_audit_stops() -> None:
    def hang(gold: str, answer: str) -> float:
        while answer != gold:
            time.sleep(1)
        return 1.0

    began = time.monotonic()
    report = run(hang, time_limit=0.1, max_hangs=4)
    assert time.monotonic() - began < 60
    assert report.count("hang") == 4 and "stopped after 4" in report.stopped


def test_a_grader_that_says_it_cannot_judge_is_no_crash_but_must_judge_the_gold_answer() -> None:
    def shy(gold: str, answer: str) -> float:
        if len(answer) > 20:
            raise GradingError("too long")
        return strict(gold, answer)

    report = run(shy)
    assert report.ok
    assert "not judged: very long" in render(report)

    def mute(gold: str, answer: str) -> float:
        raise GradingError("no")

    assert "the gold answer" in found(run(mute), "false negative")


def test_the_extraction_is_audited_too() -> None:
    task = Sums(strict)

    def anywhere(rollout) -> float:
        return float(rollout.problem.gold in re.findall(r"\d+", rollout.text))

    def last_tag(rollout) -> float:
        return strict(rollout.problem.gold, rollout.text.rpartition("<answer>")[2].partition("</answer>")[0])

    assert "broken tags" in found(audit(task, {"anywhere": anywhere}, num_problems=2), "false positive")
    report = audit(task, {"last tag": RewardPart(last_tag), "format": RewardPart(format_tags(), 0.1)})
    assert {"two answers", "gold in the thought only"} <= found(report, "false positive")


def test_a_batch_reward_is_audited_like_any_other() -> None:
    batch = BatchReward(lambda rollouts: [accuracy(Sums(substring).grade)(rollout) for rollout in rollouts])
    report = audit(Sums(substring), {"batch": batch}, num_problems=2)
    assert "gold and garbage" in found(report, "false positive")
    failing: BatchReward = BatchReward(lambda rollouts: [GradingError("judge away") for _ in rollouts])
    report = audit(Sums(strict), {"batch": failing}, num_problems=2)
    assert "judge away" in render(report) and report.count("crash") == 0


def test_the_same_seed_finds_the_same() -> None:
    one, two, three = run(substring, seed=1), run(substring, seed=1), run(substring, seed=2)
    assert found(one, "false positive") == found(three, "false positive")
    examples = [[(f.what, f.probe, f.count, f.num_tried, f.example) for f in report.findings] for report in (one, two)]
    assert examples[0] == examples[1] and one.counts == two.counts


def test_weights_and_gates_count() -> None:
    task = Sums(substring)
    parts = {
        "accuracy": RewardPart(accuracy(task.grade)),
        "exact": RewardPart(accuracy(Sums(strict).grade), weight=2.0),
    }
    assert audit(task, parts, num_problems=2).ok  # a third is paid for what is wrong, which is less than half
    assert not audit(task, parts, num_problems=2, pass_share=0.3).ok
    gated = {"accuracy": RewardPart(accuracy(task.grade), gate="exact"), "exact": parts["exact"]}
    assert audit(task, gated, num_problems=2, pass_share=0.0).ok
    concurrent = {"accuracy": RewardPart(ConcurrentReward(accuracy(task.grade)), normalise="group")}
    assert "gold and garbage" in found(audit(task, concurrent, num_problems=2), "false positive")


@pytest.mark.parametrize("name", ["arithmetic_chain", "countdown"])
@pytest.mark.parametrize("thought_opened", [False, True])
def test_the_tasks_pay_for_right_answers_only(name: str, thought_opened: bool) -> None:
    task = make_task(name, {})
    for rewards in (None, {"accuracy": accuracy(task.grade, thought_opened=thought_opened)}):
        report = audit(task, rewards, thought_opened=thought_opened, num_problems=10)
        assert report.ok, render(report)
        assert report.num_attempts > 1000


def test_verse_can_be_paid_for_a_list_of_words_as_its_description_says() -> None:
    report = audit(make_task("verse", {}), num_problems=20)
    assert (report.kind, report.style) == ("open", "plain")
    assert found(report, "false positive") == {"all words of all gold answers"}
    assert report.count("crash") == report.count("hang") == report.count("false negative") == 0


def exact_fraction(gold: str, answer: str) -> float:
    bare = answer.strip().strip("$").replace(",", "") if ", " not in answer else answer
    return float(value_of(bare) is not None and value_of(bare) == value_of(gold))


def test_forms_of_the_same_number_must_pass() -> None:
    golds = ("1/2", "\\frac{3}{4}", "-2.5", "7/3")
    report = audit(Fixed(golds, exact_fraction), num_problems=4)
    assert report.kind == "math" and report.ok, render(report)

    def literal(gold: str, answer: str) -> float:
        return float(gold == answer.strip())

    report = audit(Fixed(golds, literal), num_problems=4)
    assert found(report, "false negative") == {"the same number"}


def test_boxed_answers() -> None:
    def boxed(first: bool):
        def reward(rollout) -> float:
            pieces = without_thought(rollout.text).split("\\boxed{")[1:]
            boxes = [piece.partition("}")[0] for piece in pieces if "}" in piece]
            return strict(rollout.problem.gold, boxes[0]) if boxes and (first or len(set(boxes)) == 1) else 0.0

        return reward

    report = audit(Sums(strict), {"boxed": boxed(first=False)}, style="boxed", num_problems=4)
    assert report.ok, render(report)
    report = audit(Sums(strict), {"boxed": boxed(first=True)}, style="boxed", num_problems=4)
    assert found(report, "false positive") == {"two answers"}


def test_choices() -> None:
    def letter(gold: str, answer: str) -> float:
        return float(answer.strip().strip("()") == gold)

    def generous_letter(gold: str, answer: str) -> float:
        return float(gold in answer)

    golds = ("A", "B", "C", "D")
    assert audit(Fixed(golds, letter), num_problems=4).ok
    report = audit(Fixed(golds, generous_letter), num_problems=4)
    assert {"gold and garbage", "all candidates listed"} <= found(report, "false positive")


def test_the_report_shows_no_raw_character_of_a_completion() -> None:
    task = Fixed(("\x1b[31mred\u202e",) * 2, any_answer)
    text = render(audit(task, kind="text", num_problems=2))
    assert text.isascii() and all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize(
    ("gold", "kind"),
    [
        ("6", "integer"),
        ("-12", "integer"),
        ("1/2", "math"),
        ("0.5", "math"),
        ("\\sqrt{2}", "math"),
        ("x^2", "math"),
        ("(3+5)*2", "expression"),
        ("B", "choice"),
        ("Paris", "text"),
        ("the sea, sun.", "text"),
    ],
)
def test_the_kind_is_guessed_from_the_gold_answer(gold: str, kind: Kind) -> None:
    assert kind_of(gold) == kind
    assert kind_of("the sea, sun.", plain=True) == "open"


def test_numbers_are_read_exactly() -> None:
    assert value_of("-\\frac{1}{3}") == Fraction(-1, 3)
    assert value_of("1/0") is None and value_of("\\frac{1}{0}") is None and value_of("٣") is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_probes_that_must_fail_and_must_pass(kind: Kind) -> None:
    probes = probes_for(kind)
    assert sum(probe.must == "fail" for probe in probes) >= 10 and any(probe.must == "pass" for probe in probes)
