"""The tables in words: nothing in them is without an explanation, and what is explained is so."""

from __future__ import annotations

import inspect
import linecache
import re
from dataclasses import asdict

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from melete.algorithms import metrics, notes
from melete.algorithms.entries import KL_ESTIMATOR, POLICY, PREFERENCE, Entry, MethodSettings, overview
from melete.algorithms.explain import PACKAGE, explanation, listing, place
from melete.algorithms.preference import PREFERENCE_ALGORITHMS, resolve_preference
from melete.algorithms.table import ALGORITHMS, resolve
from melete.batch import TokenRows
from melete.errors import RecipeError
from melete.evaluation.evaluate import evaluate
from melete.evaluation.judgement import judge
from melete.functional import kl
from melete.learning.critic import LocalCritic
from melete.learning.distill import DistillLearner
from melete.learning.local import LocalLearner
from melete.learning.optimizer import OptimizerSettings
from melete.learning.preference import PreferenceLearner
from melete.loops import preference, rl
from melete.loops.rl_rollouts import SampleSettings
from melete.models.tiny import tiny_model, train_tokenizer
from melete.rewards import RewardContext, make_rewards
from melete.rewards.grade import RewardPart
from melete.sampling.native import NativeSampler
from melete.schema.imitation import DistillStage
from melete.schema.preferences import RewardModelStage
from melete.tasks import make_task
from melete.types import Message, PreferencePair, SamplingSettings

ENTRIES = {entry.name: entry for entry in overview()}
TASK = make_task("arithmetic_chain", {})
TOKENIZER = train_tokenizer(["What is 3+5?", "Compute 9-4.", "<think>3+5=8</think><answer>8</answer>"] * 20, 380)


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) ", text)


def test_every_row_of_every_table_has_an_entry_of_its_own_name():
    assert len(ENTRIES) == len(overview())
    assert {*ALGORITHMS, *PREFERENCE_ALGORITHMS, *kl.ESTIMATORS, "exact"} <= set(ENTRIES)
    assert set(notes.NOTES) == set(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
def test_a_note_has_a_few_sentences_and_begins_with_a_line(entry: Entry):
    assert 2 <= len(sentences(entry.note)) <= 5
    assert entry.note.endswith(".")
    assert 0 < len(entry.line) <= 92


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
def test_an_explanation_holds_all_there_is_to_say(entry: Entry):
    told = " ".join(explanation(entry.name).split())
    assert told.startswith(f"{entry.name} ({entry.family})")
    wanted = [entry.paper, *entry.formula.split(";  "), entry.note, *(metrics.METRICS[name] for name in entry.metrics)]
    for setting in entry.settings:
        wanted += [setting.name, f"{setting.meaning} ({setting.source})"]
    wanted += [place(function) for function in entry.functions.values()]
    assert [text for text in wanted if " ".join(text.replace("`", "").split()) not in told] == []


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
def test_file_and_line_are_those_of_the_function(entry: Entry):
    for function in entry.functions.values():
        path, _, line = place(function).rpartition(":")
        assert linecache.getline(str(PACKAGE.parent / path), int(line)).startswith(f"def {function.__name__}(")


def test_settings_are_shown_with_the_value_they_have_in_the_row():
    assert "clip_high 0.28 a good token stops rising" in " ".join(explanation("dapo").split())
    assert "beta 5 how strongly" in " ".join(explanation("length_normalized_dpo").split())


def test_what_a_row_can_do_without_is_said():
    """One update per batch needs no log-probs of its start; a row whose credit is made of them does."""
    assert "unless the update is the only one" in " ".join(explanation("grpo").split())
    assert "unless the update is the only one" not in " ".join(explanation("on_policy_distillation").split())
    assert "nothing else" in explanation("sft")


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match="did you mean grpo"):
        explanation("grop")


def test_the_listing_names_everything_once():
    names = [line.split()[0] for line in listing().splitlines() if line.startswith("  ")]
    assert names == list(ENTRIES)


def test_settings_of_methods_are_those_of_a_recipe():
    fields = {**RewardModelStage.model_fields, **DistillStage.model_fields}
    assert {name: fields[name].default for name in asdict(MethodSettings())} == asdict(MethodSettings())


@pytest.mark.parametrize(("name", "text"), metrics.METRICS.items(), ids=list(metrics.METRICS))
def test_a_metric_has_one_sentence_on_what_it_is_and_one_on_how_it_moves(name: str, text: str):
    assert len(sentences(text)) == 2
    assert text.endswith(".")
    assert all(metrics.halves(text))


# ---------------------------------------------------------------------------------------------- what is really logged


def policy_model(seed: int = 0):
    torch.manual_seed(seed)
    return tiny_model(TOKENIZER, hidden_size=32, num_layers=1).eval()


def logged_by_rl(algorithm: str, **settings: object) -> set[str]:
    model = policy_model()
    steps: list[rl.Step] = []
    weights = {"format": 1.0, "random": 0.5}
    chosen = resolve(algorithm, max_new_tokens=4, **settings)
    critic = None
    if "values" in chosen.needs:
        config = policy_model().config
        config.num_labels = 1
        values = AutoModelForSequenceClassification.from_config(config)
        critic = LocalCritic(values, optimizer=OptimizerSettings(num_steps=1))
    rl.train(
        start=0,
        stop=1,
        settings=rl.RLSettings(SampleSettings(4, SamplingSettings(4), (0, "rl"))),
        problems=lambda _step, draw: [TASK.problem("train", 2 * draw + offset) for offset in range(2)],
        sampler=NativeSampler(model, TOKENIZER),
        learner=LocalLearner(
            model, optimizer=OptimizerSettings(num_steps=1), after_step=lambda: {"expert_load_max": 1.0}
        ),
        tokenizer=TOKENIZER,
        rewards={
            name: RewardPart(function, weights[name])
            for name, function in make_rewards(weights, RewardContext(TASK.grade, 0)).items()
        },
        algorithm=chosen,
        on_step=steps.append,
        critic=critic,
    )
    return set(steps[0].metrics)


def entries_of(names: set[str]) -> set[str | None]:
    return {metrics.metric_entry(name) for name in names}


@pytest.mark.parametrize("name", ["grpo", "ppo", "rloo", "gspo", "cispo"])
def test_what_a_step_of_reinforcement_learning_logs_is_what_its_explanation_explains(name: str):
    twice = {"critic/loss"}  # the number of critic/value_loss
    assert entries_of(logged_by_rl(name)) - twice == {*ENTRIES[name].metrics} - twice


def test_settings_that_log_more_are_explained():
    logged = logged_by_rl("dapo", correction="token_weights", kl_coef=0.1, kl_target=0.01, overlong_filter=False)
    assert {"correction", "kl"} <= entries_of(logged) <= set(metrics.METRICS)


@pytest.mark.parametrize("name", ["dpo", "simpo", "kto"])
def test_what_a_step_on_preferences_logs_is_what_its_explanation_explains(name: str):
    data = preference.PairData(
        [PreferencePair(f"p/{n}", (Message("user", f"{n}+5?"),), f"{n}", "no") for n in range(2)], TOKENIZER
    )
    logged: set[str] = set()
    learner = PreferenceLearner(
        policy_model(), optimizer=OptimizerSettings(num_steps=1), after_step=lambda: {"expert_load_max": 1.0}
    )
    preference.train_offline(
        start=0,
        stop=1,
        data=data,
        pairs_per_step=2,
        learner=learner,
        algorithm=resolve_preference(name),
        seed="0",
        on_step=lambda _step, found, _timings: logged.update(found),
    )
    online = {"num_pairs", "reward", "length_mean"}
    assert logged == {*ENTRIES[name].metrics} - online


def test_what_distillation_and_evaluation_log_has_a_meaning():
    learner = DistillLearner(
        policy_model(), policy_model(1), optimizer=OptimizerSettings(num_steps=1), divergence="reverse_kl"
    )
    distilled = learner.update(TokenRows.pack([([5, 6, 7], [False, True, True])], 0))
    result = evaluate(
        NativeSampler(policy_model(), TOKENIZER),
        TOKENIZER,
        [TASK.problem("held_out", 0)],
        num_samples=2,
        settings=SamplingSettings(4),
        grade=lambda rollout: judge(rollout, {"accuracy": lambda _: 0.0}, {"accuracy": 1.0}),
        key_parts=(0,),
    )
    assert None not in entries_of({*distilled, *result.row()})


# -------------------------------------------------------------------------------- the table of KL estimators, checked

POLICY_LOGITS, REF = (
    torch.tensor([0.3, -0.4, 1.1, 0.0, -0.9], dtype=torch.float64),
    torch.tensor([0.1, 0.3, 0.15, 0.25, 0.2], dtype=torch.float64),
)


def gradient(of) -> torch.Tensor:
    logits = POLICY_LOGITS.clone().requires_grad_()
    return torch.autograd.grad(of(logits.log_softmax(0)), logits)[0]


REVERSE = gradient(lambda logp: (logp.exp() * (logp - REF.log())).sum())
FORWARD = gradient(lambda logp: (REF * (REF.log() - logp)).sum())
IN_LOSS = {"k1": 0 * REVERSE, "k2": REVERSE, "k3": FORWARD, "k3_straight_through": REVERSE}
IN_REWARD = {"k1": REVERSE, "k3": REVERSE - FORWARD, "k3_straight_through": REVERSE - FORWARD}


@pytest.mark.parametrize("name", IN_LOSS)
def test_an_estimator_in_the_loss_has_the_gradient_that_the_page_names(name: str):
    """Enumerated: sum over tokens of their probability, held, times the gradient of the estimator."""
    found = gradient(lambda logp: (logp.detach().exp() * kl.ESTIMATORS[name](logp[None], REF.log()[None])[0]).sum())
    torch.testing.assert_close(found, IN_LOSS[name])


@pytest.mark.parametrize("name", IN_REWARD)
def test_an_estimator_in_the_reward_has_the_gradient_that_the_page_names(name: str):
    """Enumerated: sum over tokens of their probability times the estimator's value, held, times grad log-prob."""

    def penalty(logp: torch.Tensor) -> torch.Tensor:
        value = kl.ESTIMATORS[name](logp[None], REF.log()[None])[0].detach()
        return (logp.detach().exp() * value * logp).sum()

    torch.testing.assert_close(gradient(penalty), IN_REWARD[name])


@pytest.mark.parametrize("name", ["k2", "k3"])
def test_k2_and_k3_in_the_reward_hardly_hold_a_policy_near_the_reference(name: str):
    """Half the distance to the reference leaves a quarter of the gradient, where k1 keeps half."""

    def size(distance: float, estimator: str) -> float:
        logits = (REF.log() + distance * (POLICY_LOGITS - REF.log())).requires_grad_()
        logp = logits.log_softmax(0)
        value = kl.ESTIMATORS[estimator](logp[None], REF.log()[None])[0].detach()
        return float(torch.autograd.grad((logp.detach().exp() * value * logp).sum(), logits)[0].norm())

    assert size(0.005, name) / size(0.01, name) == pytest.approx(0.25, rel=0.02)
    assert size(0.005, "k1") / size(0.01, "k1") == pytest.approx(0.5, rel=0.02)


def test_every_family_is_explained():
    assert {POLICY, PREFERENCE, KL_ESTIMATOR, "distillation", "reward model"} == {e.family for e in ENTRIES.values()}
    assert all(inspect.isfunction(function) for entry in ENTRIES.values() for function in entry.functions.values())
