import json
from collections.abc import Callable, Mapping, Sequence

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from melete.evaluation.evaluate import EvaluationResult, compared, evaluate
from melete.evaluation.judgement import Judgement, canonical, judge
from melete.evaluation.transcripts import choose_transcripts
from melete.types import Completion, Message, Problem, Reward, Rollout, SampleRequest, SamplingSettings

WORDS = ["<end>", "<user>", "<answer>", "</answer>", "<think>", "</think>", "q", "wait", *"0123456789"]
PROBLEMS = [Problem(f"p/{i}", "toy", (Message("user", "q"),), str(i)) for i in range(4)]
SETTINGS = SamplingSettings(max_new_tokens=16)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="q"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")
    fast.chat_template = "<user> {% for m in messages %}{{ m['content'] }}{% endfor %}"
    return fast


class ScriptedSampler:
    """A sampler that writes what a script says for the n-th sibling of the n-th request."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, script: Callable[[int, int], str]) -> None:
        self.tokenizer, self.script, self.requests, self.policy_version = tokenizer, script, [], 3

    def sample(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> list[list[Completion]]:
        self.requests = list(requests)
        return [[self._complete(p, s) for s in range(len(r.keys))] for p, r in enumerate(requests)]

    def load_weights(self, weights: Mapping[str, Tensor] | None, version: int) -> None:
        self.policy_version = version

    def _complete(self, problem: int, sibling: int) -> Completion:
        tokens = tuple(self.tokenizer(self.script(problem, sibling))["input_ids"])
        reason = "stop" if tokens[-1] == self.tokenizer.eos_token_id else "length"
        return Completion(tokens, (0.0,) * len(tokens), reason, self.policy_version)


def _accuracy(rollout: Rollout) -> float:
    answer = rollout.text.split("<answer>")[-1].split("</answer>")[0].strip()
    return float(answer == rollout.problem.gold)


def _judge(rollout: Rollout) -> Judgement:
    return judge(rollout, {"accuracy": _accuracy}, {"accuracy": 1.0})


def _evaluate(
    tokenizer: PreTrainedTokenizerFast, script: Callable[[int, int], str], **changes: object
) -> EvaluationResult:
    settings = {"num_samples": 4, "settings": SETTINGS, "grade": _judge, "key_parts": (0, "rl")} | changes
    return evaluate(ScriptedSampler(tokenizer, script), tokenizer, PROBLEMS, **settings)  # type: ignore[arg-type]


def _half_right(problem: int, sibling: int) -> str:
    """Siblings 0 and 1 think and are right, 2 guesses wrong, 3 never ends."""
    if sibling < 2:
        return f"<think> wait 1 2 </think> <answer> {problem} </answer> <end>"
    return "<answer> 9 </answer> <end>" if sibling == 2 else "<think> 1 2 3 4 5 6"


def test_every_number_of_a_hand_made_evaluation(tokenizer: PreTrainedTokenizerFast) -> None:
    found = _evaluate(tokenizer, _half_right)
    assert found.pass_at[1].mean == 0.5
    assert found.pass_at[2].mean == pytest.approx(1 - 1 / 6)
    assert found.majority_at[4].mean == 1.0, "two right, one wrong, one silent"
    assert sorted(found.pass_at) == sorted(found.majority_at) == [1, 2, 4]
    assert found.share_thinking == 0.75
    assert found.accuracy_with_thought == pytest.approx(2 / 3)
    assert found.accuracy_without_thought == 0.0
    assert found.truncated_share == 0.25
    assert found.format_share == 0.75
    assert found.length_mean == pytest.approx((9 + 9 + 4 + 7) / 4)
    assert found.reflection.per_1k == pytest.approx(1000 * 2 / 29)


def test_the_tokens_that_k_samples_cost_stand_beside_what_they_win(tokenizer: PreTrainedTokenizerFast) -> None:
    found = _evaluate(tokenizer, _half_right)
    assert found.tokens_at == {k: pytest.approx(k * (9 + 9 + 4 + 7) / 4) for k in (1, 2, 4)}


def test_votes_are_counted_up_to_64_samples(tokenizer: PreTrainedTokenizerFast) -> None:
    found = _evaluate(tokenizer, lambda problem, sibling: f"<answer> {sibling % 3} </answer> <end>", num_samples=64)
    assert sorted(found.pass_at) == sorted(found.majority_at) == sorted(found.tokens_at) == [1, 2, 4, 8, 16, 32, 64]
    assert found.pass_at[1].mean == pytest.approx((22 + 21 + 21 + 0) / 4 / 64)
    assert found.majority_at[64].mean == 0.25, "of 64 votes 22 are for 0"


def test_a_plain_answer_votes_as_a_whole_and_needs_no_tags(tokenizer: PreTrainedTokenizerFast) -> None:
    def judged(text: str, reason: str = "stop") -> Judgement:
        rollout = Rollout(PROBLEMS[1], 0, (1,), Completion((2,), (), reason, 0), text)  # type: ignore[arg-type]
        return judge(
            rollout,
            {"accuracy": _accuracy},
            {"accuracy": 1.0},
            reading=lambda problem: "text" if problem.gold == "1" else "tags",
        )

    assert judged("<think>a</think> A cat. ").answer == "Acat."
    assert judged("<think>a</think> A cat.").has_format and judged("A cat.").has_format
    assert not judged("A cat.", "length").has_format
    assert not judged("<answer>A cat.</answer>").has_format
    assert not judged("<think>a").has_format and judged("<think>a").answer is None
    assert judged("I am sorry, but no.").refuses and not judged("<think>I am sorry</think>Yes.").refuses


def test_a_grader_failure_leaves_the_statistics_and_is_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    """I41: a failure is neither right nor wrong."""

    def failing(rollout: Rollout) -> Judgement:
        if rollout.sibling == 2:
            return Judgement(Reward(None, {"accuracy": None}, "timed out"), "9", False, True)
        return _judge(rollout)

    found = _evaluate(tokenizer, _half_right, grade=failing)
    assert found.grader_failures == 4
    assert found.pass_at[1].mean == pytest.approx(2 / 3)
    assert 4 not in found.pass_at


def test_where_every_sample_fails_to_be_graded_nothing_is_claimed(tokenizer: PreTrainedTokenizerFast) -> None:
    failed = Judgement(Reward(None, {"accuracy": None}, "crashed"), None, False, False)
    found = _evaluate(tokenizer, _half_right, grade=lambda rollout: failed)
    assert found.pass_at == {} == found.majority_at
    assert found.accuracy_with_thought is None and found.accuracy_without_thought is None


def test_the_keys_are_distinct_and_the_same_for_every_policy(tokenizer: PreTrainedTokenizerFast) -> None:
    samplers = [ScriptedSampler(tokenizer, lambda p, s: "1 <end>") for _ in range(2)]
    for version, sampler in enumerate(samplers):
        sampler.load_weights(None, version)
        evaluate(sampler, tokenizer, PROBLEMS, num_samples=4, settings=SETTINGS, grade=_judge, key_parts=(0, "rl"))
    assert samplers[0].requests == samplers[1].requests
    assert len({key for request in samplers[0].requests for key in request.keys}) == 16


def test_the_rows_are_json_and_the_same_twice(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        json.dumps([e.row(), e.summary(), e.table()]) for e in (_evaluate(tokenizer, _half_right) for _ in range(2))
    ]
    assert rows[0] == rows[1]
    row, summary, _ = json.loads(rows[0])
    assert row["pass@1/low"] <= row["pass@1"] <= row["pass@1/high"]
    assert summary["majority"]["4"] == [1.0, 1.0, 1.0]


def test_an_evaluation_without_problems_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        evaluate(
            ScriptedSampler(tokenizer, _half_right), tokenizer, [],
            num_samples=1, settings=SETTINGS, grade=_judge, key_parts=(0,),
        )  # fmt: skip


def test_transcripts_show_what_was_learnt_and_what_was_not(tokenizer: PreTrainedTokenizerFast) -> None:
    def answers(*given: int) -> Callable[[int, int], str]:
        return lambda problem, sibling: f"<answer> {given[problem]} </answer> <end>"

    before, after = _evaluate(tokenizer, answers(9, 1, 9, 3)), _evaluate(tokenizer, answers(0, 9, 9, 3))
    chosen = choose_transcripts(before, after)
    assert [(c["kind"], c["problem_id"]) for c in chosen] == [
        ("learnt", "p/0"), ("still wrong", "p/2"), ("lost", "p/1"), ("right both times", "p/3"),
    ]  # fmt: skip
    assert chosen[0]["before"]["reward"] == 0.0 and chosen[0]["after"]["reward"] == 1.0
    assert chosen == choose_transcripts(before, after)


def test_two_spellings_of_a_number_are_one_vote() -> None:
    assert canonical("06") == canonical(" 6. ") == "6"
    assert canonical("( 3 + 5 )") == "(3+5)"
    assert canonical("") is None is canonical(None)


def test_a_result_that_is_compared_says_how_often_its_attempts_beat_the_first_ones(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    first = _evaluate(tokenizer, _half_right)
    better = compared(_evaluate(tokenizer, lambda problem, _: f"<answer> {problem} </answer> <end>"), first)
    # all right against half right: the right ones tie, the wrong ones lose
    assert better.wins is not None and better.wins.mean == 0.75
    assert better.row()["win_rate"] == better.summary()["win_rate"] == 0.75
    assert "win_rate" not in first.row()
