"""Each claim: a case in which it holds, one in which it does not, one that is not sure, one that is not measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from melete.claims import CLAIMS, VERDICTS, Claim, RunFacts, claims_of_run, claims_of_runs
from melete.runs.atomic import json_text

Tasks = Mapping[str, Mapping[str, Any]]
NUM_PROBLEMS, NUM_SAMPLES = 60, 16


def exam(right: float, half: float = 0.02, *, most: float | None = None, **more: Any) -> dict[str, Any]:
    """A summary of one model on one task; `half` is half the width of the intervals."""

    def interval(mean: float) -> list[float]:
        return [mean, mean - half, mean + half]

    majority = {"1": interval(right), "16": interval(most if most is not None else right)}
    return {
        "pass": {"1": interval(right)},
        "majority": majority,
        "score": right,
        "score/low": right - half,
        "score/high": right + half,
        "num_problems": NUM_PROBLEMS,
        "num_samples": NUM_SAMPLES,
        "num_tokens": 40_000,
        "share_thinking": 0.5,
        "format_share": 0.8,
        "language_share": 0.8,
        "length_mean": 20.0,
        "length_p95": 30.0,
        "reflection_per_1k": 5.0,
        "verifications": 0.1,
        "backtracks": 0.1,
        "repair": {"marked": 90, "right_before": 30, "repair_rate": 0.6},
        **more,
    }


def summary(models: Mapping[str, Tasks | dict[str, Any]], *, seed: int = 0, **tokens: int) -> dict[str, Any]:
    """A run whose stages are all models but the first."""
    names = list(models)
    stages: list[dict[str, Any]] = [{"name": name, "kind": "rl"} for name in names if name != "tiny"]
    stages = [stage | {"num_completion_tokens": tokens.get(stage["name"], 1000)} for stage in stages]
    stages += [{"name": "helpful", "kind": "reward_model"}, {"name": "harmless", "kind": "reward_model"}]
    checkpoints = [
        {"model": name, "label": {"tiny": "base", "zero": "R1-Zero"}.get(name, name), "tasks": _tasks(found)}
        for name, found in models.items()
    ]
    return {"seed": seed, "stages": [*stages, {"name": "exam", "kind": "evaluate", "checkpoints": checkpoints}]}


def _tasks(found: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"arithmetic": found} if "pass" in found else found


def run(models: Mapping[str, Any], *, seed: int = 0, arm: str = "main", rows: Any = (), **tokens: int) -> RunFacts:
    return RunFacts.of(summary(models, seed=seed, **tokens), rows, arm=arm)


def judged(name: str, *runs: RunFacts) -> dict[str, Any]:
    return next(claim for claim in claims_of_runs(runs) if claim["claim"] == name)


def seeds(before: Sequence[float], after: Sequence[float], half: float = 0.02) -> list[RunFacts]:
    return [
        run({"tiny": exam(first, half), "zero": exam(last, half)}, seed=seed)
        for seed, (first, last) in enumerate(zip(before, after, strict=True))
    ]


@pytest.mark.parametrize(
    ("runs", "verdict", "why"),
    [
        (seeds([0.44], [0.91]), "holds", ""),
        (seeds([0.44, 0.45, 0.43], [0.91, 0.92, 0.94]), "holds", ""),
        # 0.02 / 1.96 = 0.0102 each, 0.0144 for a difference: 0.05 is more than 3 of them, 0.04 less
        (seeds([0.40], [0.45]), "holds", ""),
        (seeds([0.40], [0.44]), "not sure", "pass@1: it is less than 3 standard errors"),
        (seeds([0.40], [0.42]), "not sure", "pass@1: the interval includes 0"),
        (seeds([0.40], [0.35]), "does not hold", "pass@1: it does not rise"),
        (seeds([0.4, 0.4, 0.4], [0.6, 0.5, 0.3]), "not sure", "pass@1: the seeds disagree"),
        # every seed by itself is far above, but they differ so much that their mean is 2.5 standard errors only
        (seeds([0.4, 0.4, 0.4], [0.46, 0.46, 0.66]), "not sure", "pass@1: the interval includes 0"),
        ([run({"tiny": exam(0.4)})], "not measured", "it needs zero in the exam, on arithmetic"),
    ],
)
def test_rl_alone_develops_reasoning(runs: list[RunFacts], verdict: str, why: str) -> None:
    found = judged("zero_learns", *runs)
    assert found["verdict"] == verdict
    assert why in found["says"]


def test_a_verdict_carries_its_numbers_its_seeds_and_its_interval() -> None:
    found = judged("zero_learns", *seeds([0.40, 0.42, 0.44], [0.80, 0.92, 0.84]))
    # differences 0.40, 0.50, 0.40: mean 0.433, standard deviation 0.0577, error 0.0333, times 4.303: 0.143
    told = "Seeds 0, 1, 2: base -> R1-Zero: pass@1 0.42 -> 0.85, +0.43 [+0.29, +0.58; by seed +0.40, +0.50, +0.40]."
    assert found["says"] == told
    numbers = found["numbers"]["pass@1"]
    assert numbers["before"] == pytest.approx(0.42) and numbers["after"] == pytest.approx(0.8533, abs=1e-4)
    assert numbers["difference"] == pytest.approx([0.4333, 0.2899, 0.5768], abs=1e-4)
    assert numbers["by_seed"] == pytest.approx([0.4, 0.5, 0.4])
    assert numbers["seeds"] == found["seeds"] == [0, 1, 2]


def thinks(share: float, length: float) -> dict[str, Any]:
    return exam(0.5, share_thinking=share, length_mean=length, length_p95=1.2 * length)


@pytest.mark.parametrize(
    ("zero", "control", "verdict"),
    [
        ((0.99, 39.0), (0.25, 16.0), "holds"),
        ((0.99, 39.0), (0.10, 11.0), "holds"),
        ((0.99, 39.0), (0.50, 25.0), "does not hold"),  # the control drifts up, too
        ((0.20, 15.0), (0.25, 16.0), "does not hold"),
        ((0.27, 39.0), (0.25, 16.0), "not sure"),
        ((0.99, 39.0), None, "not measured"),
        ((0.10, 12.0), None, "does not hold"),  # no control can help it
    ],
)
def test_thinking_lengthens(zero: tuple[float, float], control: tuple[float, float] | None, verdict: str) -> None:
    runs = [run({"tiny": thinks(0.25, 16.0), "zero": thinks(*zero)})]
    runs += [run({"zero": thinks(*control)}, arm="control")] if control else []
    found = judged("thinking_lengthens", *runs)
    assert found["verdict"] == verdict
    assert "length in tokens 16.0 -> " in found["says"], "what is measured is told, whatever is lacking"
    assert ("it needs the arm control; run: melete run r1-tiny-claims" in found["says"]) == (verdict == "not measured")


def reflects(words: float, checks: float = 0.2, right: float = 0.5) -> dict[str, Any]:
    return exam(right, reflection_per_1k=words, verifications=checks, backtracks=0.2, num_tokens=400_000)


@pytest.mark.parametrize(
    ("zero", "control", "verdict", "remark"),
    [
        (reflects(1.5, right=0.9), reflects(8.0), "holds", "reflection falls while accuracy rises"),
        (reflects(12.0), reflects(8.0), "holds", "Words of reflection per 1,000 tokens: up against the base"),
        (reflects(1.5), reflects(1.5), "not sure", "no rate differs by more than chance from both"),
        (reflects(7.6, 0.25), reflects(7.4), "not sure", "from both"),
        (reflects(1.5), None, "not measured", "it needs the arm control"),
    ],
)
def test_reflection_changes(zero: Any, control: Any, verdict: str, remark: str) -> None:
    runs = [run({"tiny": reflects(7.4), "zero": zero})]
    runs += [run({"zero": control}, arm="control")] if control else []
    found = judged("reflection_changes", *runs)
    assert found["verdict"] == verdict
    assert remark in found["says"]


def test_what_is_only_told_has_an_interval_of_its_own() -> None:
    runs = run({"tiny": reflects(7.4), "zero": reflects(1.5)}), run({"zero": reflects(7.4)}, arm="control")
    numbers = judged("reflection_changes", *runs)["numbers"]
    _, low, high = numbers["pass@1"]["difference"]
    assert high - low == pytest.approx(2 * 0.02 * 2**0.5), "not widened for three rates"
    assert numbers["pass@1"]["verdict"] == "noted"


def test_reflection_that_surely_stays_as_it_is_does_not_change() -> None:
    steady = {"reflection_per_1k": 50.0, "verifications": 9.0, "backtracks": 9.0, "num_tokens": 400_000}
    models = {"tiny": exam(0.5, **steady), "zero": exam(0.5, **steady)}
    found = judged("reflection_changes", run(models), run({"zero": exam(0.5, **steady)}, arm="control"))
    assert found["verdict"] == "does not hold"
    assert "no rate moves by more than 20% of what it was" in found["says"]


@pytest.mark.parametrize(
    ("right", "most", "verdict"),
    [(0.7, 0.9, "holds"), (0.7, 0.72, "not sure"), (0.2, 0.1, "does not hold"), (None, None, "not measured")],
)
def test_voting_lifts_zero(right: float | None, most: float | None, verdict: str) -> None:
    zero = {} if right is None else {"zero": exam(right, most=most)}
    found = judged("voting_lifts_zero", run({"tiny": exam(0.4), **zero}))
    assert found["verdict"] == verdict
    assert ("pass@1 -> maj@16" in found["says"]) or verdict == "not measured"


def test_one_answer_has_no_majority() -> None:
    alone = exam(0.5) | {"majority": {"1": [0.5, 0.48, 0.52]}}
    assert judged("voting_lifts_zero", run({"tiny": exam(0.4), "zero": alone}))["verdict"] == "not measured"


def shaped(form: float, language: float | None, right: float = 0.8) -> dict[str, Any]:
    return exam(right, format_share=form, language_share=language)


@pytest.mark.parametrize(
    ("zero", "dev1", "verdict"),
    [
        (shaped(0.7, 0.6), shaped(0.9, 0.9), "holds"),
        (shaped(0.9, 0.6), shaped(0.7, 0.9), "does not hold"),
        (shaped(0.9, 0.6), shaped(0.9, 0.9), "not sure"),
        (shaped(0.7, None), shaped(0.9, None), "not measured"),
        (shaped(0.7, 0.6), None, "not measured"),
    ],
)
def test_cold_start_mends(zero: Any, dev1: Any, verdict: str) -> None:
    models = {"tiny": exam(0.4), "zero": zero, **({"dev1": dev1} if dev1 else {})}
    found = judged("cold_start_mends", run(models))
    assert found["verdict"] == verdict
    if verdict == "not measured":
        assert ("nothing to count for share of words" in found["says"]) == (dev1 is not None)
        assert ("run: melete run r1-tiny." in found["says"]) == (dev1 is None), "no command counts what is not there"


def test_a_dip_of_accuracy_after_the_cold_start_is_told_and_not_judged() -> None:
    found = judged("cold_start_mends", run({"zero": shaped(0.7, 0.6, 0.9), "dev1": shaped(0.9, 0.9, 0.7)}))
    assert found["verdict"] == "holds" and "Accuracy dips" in found["says"]
    assert found["numbers"]["pass@1"]["verdict"] == "noted"


def test_numbers_of_several_tasks_are_averaged_over_those_that_both_models_were_tried_on() -> None:
    zero = {"arithmetic": shaped(0.9, 0.9), "spanish": shaped(0.7, 0.3), "countdown": shaped(0.1, 0.1)}
    dev1 = {"arithmetic": shaped(0.9, 0.9), "spanish": shaped(0.9, 0.9)}
    found = judged("cold_start_mends", run({"zero": zero, "dev1": dev1}))["numbers"]
    assert (found["format"]["before"], found["format"]["after"]) == (pytest.approx(0.8), pytest.approx(0.9))
    assert found["language"]["before"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("without", "with_it", "verdict"),
    [
        ((0.6, 0.80), (0.9, 0.80), "holds"),
        ((0.6, 0.80), (0.9, 0.77), "holds"),  # slightly down
        ((0.6, 0.80), (0.9, 0.60), "does not hold"),
        ((0.6, 0.80), (0.9, 0.74), "not sure"),  # -0.06, and the interval reaches -0.032
        ((0.9, 0.80), (0.6, 0.80), "does not hold"),
        ((0.9, 0.80), (0.9, 0.80), "not sure"),
        (None, (0.9, 0.80), "not measured"),
    ],
)
def test_the_language_reward_costs_little(without: Any, with_it: tuple[float, float], verdict: str) -> None:
    runs = [run({"dev2": exam(with_it[1], language_share=with_it[0])})]
    runs += [run({"dev2": exam(without[1], language_share=without[0])}, arm="no_language")] if without else []
    assert judged("language_costs_little", *runs)["verdict"] == verdict


@pytest.mark.parametrize(
    ("dev2", "dev3", "verdict"),
    [
        ((0.3, 0.9), (0.6, 0.9), "holds"),
        ((0.3, 0.9), (0.6, 0.88), "holds"),
        ((0.3, 0.9), (0.6, 0.8), "does not hold"),
        ((0.6, 0.9), (0.3, 0.9), "does not hold"),
        ((0.3, 0.9), (0.31, 0.9), "not sure"),
        ((0.3, 0.9), None, "not measured"),
    ],
)
def test_sft_on_the_mixture_restores_general_skill(dev2: Any, dev3: Any, verdict: str) -> None:
    models = {
        name: {"general": exam(found[0]), "arithmetic": exam(found[1])}
        for name, found in (("dev2", dev2), ("dev3", dev3))
        if found
    }
    assert judged("sft_restores", run(models))["verdict"] == verdict


def course(learned: tuple[float, float], rule: tuple[float, float] | None, num_steps: int = 32) -> list[dict[str, Any]]:
    """Rows of stage r1: values up to a quarter of the steps, and later; odd steps are 0.02 above even ones."""
    rows = []
    for step in range(num_steps):
        late, wave = step >= num_steps // 4, 0.02 * (step % 2)
        row = {"stage": "r1", "step": step, "reward/helpful": learned[late] + wave, "reward/harmless": 0.5 + wave}
        rows.append(row | ({"reward/rule": rule[late] + wave} if rule else {}))
    return rows


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        (course((0.5, 0.9), (0.6, 0.3)), "holds"),
        (course((0.5, 0.9), (0.6, 0.8)), "does not hold"),  # more reward, and better: not deceived
        (course((0.9, 0.5), (0.6, 0.3)), "does not hold"),
        (course((0.5, 0.9), (0.6, 0.6)), "not sure"),
        (course((0.5, 0.9), None), "not measured"),
        ([], "not measured"),
    ],
)
def test_preference_rewards_get_hacked(rows: list[dict[str, Any]], verdict: str) -> None:
    models = {"r1": {"general": exam(0.6)}}
    found = judged("preferences_hacked", run(models), run(models, arm="long_preferences", rows=rows))
    assert found["verdict"] == verdict
    if verdict == "holds":  # 0.5 + 0.5 + 0.02 at the quarter
        assert "reward models' score 1.02 -> 1.42, +0.40 [" in found["says"]
        assert "score by rule of general answers 0.61 -> 0.31, -0.30 [" in found["says"]


def test_without_its_arm_the_hacking_of_preferences_is_not_measured() -> None:
    found = judged("preferences_hacked", run({"r1": {"general": exam(0.6)}}, rows=course((0.5, 0.9), (0.6, 0.3))))
    assert found["verdict"] == "not measured" and "it needs the arm long_preferences" in found["says"]


STUDENTS = ("rl_qwen", "distilled_qwen", "rl_llama", "distilled_llama")


@pytest.mark.parametrize(
    ("passes", "tokens", "verdict"),
    [
        ((0.5, 0.8, 0.4, 0.7), {}, "holds"),
        ((0.5, 0.8, 0.4, 0.7), {"distilled_qwen": 500}, "holds"),  # with fewer tokens all the more
        ((0.5, 0.8, 0.4, 0.7), {"distilled_llama": 1200}, "not sure"),
        ((0.5, 0.8, 0.7, 0.4), {}, "does not hold"),
        ((0.5, 0.8, 0.4, 0.41), {}, "not sure"),
        ((0.5, 0.8), {}, "not measured"),
        ((0.5, 0.8, 0.4, 0.7), {"rl_qwen": 0}, "not measured"),
    ],
)
def test_distillation_beats_rl_on_both_students(passes: Sequence[float], tokens: dict[str, int], verdict: str) -> None:
    models = {name: exam(right) for name, right in zip(STUDENTS, passes, strict=False)}
    assert judged("distillation_beats_rl", run(models, **tokens))["verdict"] == verdict


@pytest.mark.parametrize(
    ("after", "half", "verdict"),
    [(0.15, 0.02, "holds"), (0.41, 0.02, "holds"), (0.5, 0.02, "does not hold"), (0.4, 0.1, "not sure")],
)
def test_random_reward_teaches_nothing(after: float, half: float, verdict: str) -> None:
    runs = run({"tiny": exam(0.4, half), "zero": exam(0.9)}), run({"zero": exam(after, half)}, arm="control")
    assert judged("random_teaches_nothing", *runs)["verdict"] == verdict
    assert judged("random_teaches_nothing", runs[0])["verdict"] == "not measured"


def test_every_claim_has_a_verdict_even_where_nothing_is_known() -> None:
    found = claims_of_runs([])
    assert [claim["claim"] for claim in found] == [claim.name for claim in CLAIMS]
    assert len(found) == 10
    assert {claim["verdict"] for claim in found} == {"not measured"}


def test_a_run_without_checkpoints_of_r1_makes_no_claims() -> None:
    assert claims_of_run({"seed": 0, "stages": [{"name": "rl", "kind": "rl", "evaluations": []}]}) == []
    assert claims_of_run({}) == []


def test_one_run_judges_what_it_can_and_says_which_command_measures_the_rest() -> None:
    found = claims_of_run(summary({"tiny": exam(0.4), "zero": exam(0.9, most=1.0)}, seed=7))
    assert {claim["verdict"] for claim in found} <= set(VERDICTS)
    by_name = {claim["claim"]: claim for claim in found}
    assert by_name["zero_learns"]["verdict"] == by_name["voting_lifts_zero"]["verdict"] == "holds"
    assert by_name["zero_learns"]["seeds"] == [7]
    assert by_name["sft_restores"]["says"].endswith("run: melete run r1-tiny.")
    assert by_name["random_teaches_nothing"]["says"].endswith("run: melete run r1-tiny-claims.")


def test_a_run_that_repeated_another_has_judged_already() -> None:
    claims = [{"claim": "zero_learns", "verdict": "holds"}]
    assert claims_of_run({"stages": [{"name": "claims", "kind": "replicate", "claims": claims}]}) == claims


def test_results_are_json_and_the_same_for_the_same_runs() -> None:
    runs = seeds([0.44, 0.45], [0.91, 0.92])
    once = json_text(claims_of_runs(runs))
    assert once == json_text(claims_of_runs(list(reversed(runs))))
    assert json.loads(once)[0]["seeds"] == [0, 1]


def test_a_seed_without_an_arm_is_left_out_of_what_needs_it() -> None:
    runs = [*seeds([0.4, 0.4], [0.9, 0.9]), run({"zero": exam(0.2)}, seed=1, arm="control")]
    found = judged("random_teaches_nothing", *runs)
    assert (found["verdict"], found["seeds"]) == ("holds", [1])


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_the_page_on_claims_says_what_the_table_says(claim: Claim) -> None:
    page = (Path(__file__).parents[2] / "docs" / "claims.md").read_text(encoding="utf-8")
    criterion = claim.criterion[:1].upper() + claim.criterion[1:]
    assert f"| `{claim.name}` | **{claim.title}.** {criterion} |" in page
