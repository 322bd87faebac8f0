"""Recipes: what is accepted, how overrides work, and that every mistake is told at once with what was meant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from melete import schema
from melete.config import RLStage, bundled_recipes, load_recipe, parse_recipe, parse_value
from melete.errors import RecipeError
from melete.stages.compare import single_recipe
from melete.suggest import nearest


def rl_tables(**changes: Any) -> dict[str, Any]:
    stage = {"name": "rl", "kind": "rl", "task": {"name": "arithmetic_chain"}} | changes
    return {"name": "mine", "stage": [stage]}


def refusal(tables: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(tables, overrides, place="mine.toml")
    return str(caught.value)


def rl_stage(*overrides: str) -> RLStage:
    stage = parse_recipe(rl_tables(), overrides).stages[0]
    assert isinstance(stage, RLStage)
    return stage


@pytest.mark.parametrize("name", bundled_recipes())
def test_every_bundled_recipe_loads_under_its_own_name(name: str):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description


@pytest.mark.parametrize("name", bundled_recipes())
def test_a_resolved_recipe_reads_back_as_itself(name: str):
    recipe = load_recipe(name)
    assert parse_recipe(recipe.as_dict()) == recipe


def test_a_recipe_is_found_by_path_too(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_bytes(bundled_recipes()["r1-zero-tiny"].read_bytes())
    assert load_recipe(str(path)) == load_recipe("r1-zero-tiny")


def test_an_override_changes_one_setting_and_nothing_else():
    before, after = rl_stage(), rl_stage("rl.lr=1e-4")
    assert after == before.model_copy(update={"lr": 1e-4})


def test_overrides_reach_sub_tables_and_the_top_level():
    recipe = parse_recipe(rl_tables(), ["seed=3", "rl.task.max_terms=7", "rl.rewards={random=1.0}"])
    stage = recipe.stages[0]
    assert isinstance(stage, RLStage)
    assert (recipe.seed, stage.task.own_settings(), stage.rewards) == (3, {"seed": 0, "max_terms": 7}, {"random": 1.0})


def test_the_tables_given_are_never_changed():
    tables = rl_tables()
    parse_recipe(tables, ["rl.lr=1e-4", "rl.task.seed=4"])
    assert tables == rl_tables()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        (".5", 0.5),
        ("60", 60),
        ("true", True),
        ("dr_grpo", "dr_grpo"),
        ('"60"', "60"),
        ("[0.0, 1.0]", [0.0, 1.0]),
        ("{a=1}", {"a": 1}),
        ("1\nseed = 3", "1\nseed = 3"),
        ("", ""),
    ],
)
def test_an_override_is_read_as_toml_or_else_as_text(text: str, value: Any):
    assert parse_value(text) == value


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("rl.lerning_rate=1", "rl.lerning_rate: unknown key; did you mean rl.lr?"),
        ("rl.learning_rate=1", "rl.learning_rate: unknown key; did you mean rl.lr?"),
        ("rl.gruop_size=4", "rl.gruop_size: unknown key; did you mean rl.group_size?"),
        ("rl.kl_coef=1", "rl.kl_coef: unknown key; did you mean rl.algorithm_settings.kl_coef?"),
        ("rl.num_problems=1", "rl.num_problems: unknown key; did you mean rl.evaluation.num_problems?"),
        ("rl.evaluation.num_sample=1", "did you mean rl.evaluation.num_samples?"),
        ("rl.task.min_term=4", "did you mean rl.task.min_terms?"),
        ("rl.task.name=arithmetic", "unknown task 'arithmetic'; did you mean arithmetic_chain?"),
        ("rl.rewards.acuracy=1", "did you mean rl.rewards.accuracy?"),
        ("rl.algorithm=grop", "unknown algorithm 'grop'; did you mean grpo?"),
        ("rl.algorithm_settings.clip_hih=1", "did you mean rl.algorithm_settings.clip_high?"),
        ("rl.lr_schedule=cosin", "did you mean cosine?"),
        ("rl.kind=r1", "rl.kind: unknown kind 'r1'"),
        ("rl.model=tny", "did you mean tiny?"),
        ("r.lr=1", "there is no stage 'r'; did you mean rl?"),
        ("sed=1", "sed: unknown key; did you mean seed?"),
        ("rl=1", "rl: is a stage"),
        ("rl.lr.x=1", "rl.lr"),
        ("rl.lr", "write key=value"),
    ],
)
def test_a_misspelt_word_names_the_nearest_one_that_exists(override: str, told: str):
    tables = rl_tables(lr=1e-4)
    assert told in refusal(tables, override)
    assert f"--set {override}" in refusal(tables, override)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lr": -1.0}, "rl.lr: must be more than 0, not -1.0"),
        ({"lr": float("nan")}, "rl.lr: must be a finite number"),
        ({"lr": "fast"}, "rl.lr: must be a number, not 'fast'"),
        ({"num_steps": 2.5}, "rl.num_steps: must be a whole number, not 2.5"),
        ({"num_steps": True}, "rl.num_steps: must be a whole number, not True"),
        ({"temperature": 0.0}, "rl.temperature: must be more than 0"),
        ({"group_size": 1}, "rl.group_size: with one rollout per problem there is nothing to compare it with"),
        ({"warmup_steps": 500}, "rl.warmup_steps: 500 is more than num_steps 100"),
        ({"max_tokens_per_microbatch": 100}, "rl.max_tokens_per_microbatch: 100 cannot hold one completion"),
        ({"rewards": {}}, "rl.rewards: must not be empty"),
        ({"rewards": {"accuracy": 0.0}}, "rl.rewards: every weight is 0"),
        ({"evaluation": {"at": [1.0, 0.0]}}, "rl.evaluation.at: must rise"),
        ({"evaluation": {"at": [2.0]}}, "rl.evaluation.at[0]: must be at most 1, not 2.0"),
        ({"algorithm": "sft"}, "rl.algorithm: sft copies completions whatever their reward"),
        ({"algorithm": "no.such:loss"}, "rl.algorithm: cannot import no.such:loss"),
        ({"algorithm": "dapo", "reference_refresh_steps": 5}, "there is no reference to refresh"),
        ({"algorithm_settings": {"clip_low": 2.0}}, "clip_low must be in [0, 1], not 2.0"),
        ({"task": {"name": "countdown", "num_numbers": 9}}, "num_numbers must be from 2 to 6, not 9"),
        ({"task": {"name": "countdown", "num_numbers": "3"}}, "rl.task.num_numbers: must be a whole number, not '3'"),
        ({"task": 3}, "rl.task: must be a table, not 3"),
        ({"model": "rl"}, "rl.model: rl is made by this stage"),
        ({"name": "r l"}, "must begin with a letter"),
        ({"name": "seed"}, "is a key of the recipe itself"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_the_reason(changes: dict[str, Any], told: str):
    assert told in refusal(rl_tables(**changes))


def test_all_mistakes_are_told_at_once():
    message = refusal(
        rl_tables(gruop_size=4, warmup_steps=999, algorithm="grop", rewards={"acuracy": 1.0}), "rl.lr=abc", "sed=1"
    )
    keys = [line.split(":")[0].strip() for line in message.splitlines()[1:-2]]
    assert sorted(keys) == ["rl.algorithm", "rl.gruop_size", "rl.lr", "rl.rewards.acuracy", "rl.warmup_steps", "sed"]
    assert "6 problems" in message
    assert "where: mine.toml" in message


def test_two_stages_never_share_a_name():
    tables = rl_tables()
    tables["stage"] *= 2
    assert "stage[1].name: an earlier stage has this name (rl)" in refusal(tables)


SFT = {"kind": "sft", "data": "notes"}
KINDS: dict[str, dict[str, Any]] = {
    "notes": {"kind": "write", "rows": {"chains": 5}},
    "student": SFT,
    "pairs": {"kind": "pairs", "task": {"name": "verse"}},
    "liked": {"kind": "reward_model", "data": "pairs"},
    "base": {"kind": "pretrain", "out": "somewhere/base"},
}


def graph(*names: str, **more: dict[str, Any]) -> dict[str, Any]:
    """A recipe of stages of `KINDS` by name, and of some with settings of their own."""
    stages = {name: KINDS[name] for name in names} | more
    return {"name": "mine", "stage": [{"name": name, **stage} for name, stage in stages.items()]}


def test_a_stage_reads_earlier_stages_only():
    parse_recipe(graph("notes", "student", more={**SFT, "model": "student"}))
    tables = graph(more={**SFT, "model": "student"}, notes=KINDS["notes"], student=SFT)
    assert "more.model: student is made by a later stage; read an earlier one" in refusal(tables)
    assert "more.data: notes is made by a later stage; read an earlier one" in refusal(tables)


def test_a_circle_is_told_with_the_way_round():
    one, other = {**SFT, "model": "c"}, {**SFT, "model": "a"}
    tables = graph("notes", a=one, b=other, c={**SFT, "model": "b"})
    message = refusal(tables)
    assert "a.model: the stages read each other in a circle: a -> c -> b -> a" in message
    assert "1 problem" in message
    assert "a.model: a is made by this stage" in refusal(graph("notes", a={**SFT, "model": "a"}))


@pytest.mark.parametrize(
    ("names", "stage", "told"),
    [
        (
            ["notes"],
            {**SFT, "data": "nots"},
            "x.data: 'nots' is neither a file nor a stage that makes data; did you mean notes?",
        ),
        (
            ["notes", "student"],
            {**SFT, "model": "studnet"},
            "x.model: 'studnet' is neither a directory nor a known model; did",
        ),
        (["notes"], {**SFT, "model": "notes"}, "x.model: notes makes data, not a model"),
        (["notes", "student"], {**SFT, "data": "student"}, "x.data: student makes a model, not data"),
        (["pairs", "liked"], {"kind": "reward_model", "data": "liked"}, "x.data: liked makes a reward model, not data"),
        (
            ["notes", "pairs", "liked"],
            {**SFT, "model": "liked"},
            "x.model: liked is a reward model: it scores and cannot",
        ),
        (
            ["notes"],
            {"kind": "mix", "parts": {"notes": 1.0, "nots": 1.0}},
            "x.parts.nots: 'nots' is neither a file nor",
        ),
        (
            ["pairs", "liked"],
            {"kind": "reward_model", "data": "pairs", "replay": ["pairs", "liked"]},
            "x.replay[1]: liked makes a reward model, not data",
        ),
        (
            ["notes", "student"],
            {
                "kind": "rl",
                "task": {"name": "verse"},
                "rewards": {"liked": 1.0},
                "reward_models": {"liked": {"model": "student"}},
            },
            "x.reward_models.liked.model: student is a model that writes, not a reward model",
        ),
        (["base"], {"kind": "pretrain", "out": "./somewhere/base"}, "x.out: base writes this directory too"),
        (["base", "notes"], {**SFT, "model": "somewhere/base"}, "x.model: somewhere/base is a copy of what base makes"),
        (["base"], {"kind": "pretrain", "tokenizer": "bas"}, "x.tokenizer: 'bas' is neither a directory nor"),
    ],
)
def test_what_cannot_be_read_or_written_is_told_at_its_key(names: list[str], stage: dict[str, Any], told: str):
    message = refusal(graph(*names, x=stage))
    assert told in message and "1 problem" in message


@pytest.mark.parametrize(
    "stage",
    [
        {"kind": "reward_model", "data": "pairs", "model": "liked"},
        {"kind": "rl", "algorithm": "ppo", "task": {"name": "verse"}, "critic": {"model": "liked"}},
    ],
)
def test_a_reward_model_may_go_on_and_be_a_critic(stage: dict[str, Any]):
    parse_recipe(graph("pairs", "liked", x=stage))


BROKEN = """\
name = "mine"  # [[stage]]
sed = 1

[[stage]]
name = "zero"
kind = "rl"
gruop_size = 4  # line 7
task = { name = "verse", seed = 3 }
[stage.evaluation]
at = [
  0.0,
  2.0,  # line 12
]
[stage.rewards]
accuracy = 1.0
"no.such:reward" = 1.0

[[stage]]
name = "dev1"
kind = "sft"
model = "zro"
"""


def test_every_problem_of_a_file_has_its_line_unless_an_option_made_it(tmp_path: Path):
    file = tmp_path / "broken.toml"
    file.write_text(BROKEN)
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(file), ["zero.lr=-1"])
    lines = str(caught.value).splitlines()
    ends = {line.split(":")[0].strip(): line.rpartition("(")[2].rstrip(")") for line in lines[1:-2]}
    assert ends == {
        "sed": "line 2",
        "zero.gruop_size": "line 7",
        "zero.evaluation.at[1]": "line 12",
        "zero.lr": "--set zero.lr=-1",
        "dev1.data": "line 18",
    }
    assert caught.value.place == str(file)


def test_problems_of_names_and_of_the_graph_have_their_lines_too(tmp_path: Path):
    file = tmp_path / "broken.toml"
    fixed = BROKEN.replace("sed =", "seed =").replace("gruop_size", "group_size").replace("2.0,", "1.0,")
    file.write_text(fixed + 'data = "zero"\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(file))
    told = str(caught.value)
    assert "zero.rewards.no.such:reward: cannot import no.such:reward" in told and "(line 16)" in told
    assert "dev1.model: 'zro' is neither a directory nor a known model; did you mean zero? (line 21)" in told
    assert "dev1.data: zero makes a model, not data (line 22)" in told


def test_one_problem_has_its_line_beside_the_file(tmp_path: Path):
    file = tmp_path / "broken.toml"
    file.write_text(BROKEN.split('[[stage]]\nname = "dev1"')[0].replace("sed =", "seed =").replace("gruop", "group"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(file), ["zero.rewards={accuracy=1.0}"])
    assert caught.value.place == f"{file}, line 12"
    assert "zero.evaluation.at[1]: must be at most 1, not 2.0\n" in str(caught.value)


def test_an_unknown_recipe_names_the_nearest_one():
    with pytest.raises(RecipeError, match="did you mean r1-zero-tiny"):
        load_recipe("r1-zero-tny")


@pytest.mark.parametrize(
    ("content", "told"), [(b"a = [", "line|end"), (b"\xff", "UTF-8"), (b"stage = 3", "must be a list")]
)
def test_a_file_that_is_no_recipe_is_refused_with_its_path(tmp_path: Path, content: bytes, told: str):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=told) as caught:
        load_recipe(str(path))
    assert str(path) in str(caught.value)


words = st.text(st.characters(codec="utf-8"), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from([*RLStage.model_fields, *schema.PretrainStage.model_fields]) | words


@settings(max_examples=150, deadline=None)
@example(stage={}, top={}, override="float")  # a key that is called like a branch of a union
@given(stage=st.dictionaries(keys, values, max_size=4), top=st.dictionaries(words, values, max_size=2), override=words)
def test_whatever_a_recipe_says_the_answer_is_a_recipe_or_a_refusal(stage: Any, top: Any, override: str):
    try:
        parse_recipe(rl_tables(**stage) | top, [override, f"rl.{override}={override}"])
    except RecipeError as error:
        message = str(error)
    else:
        return
    assert "cannot be used" in message


def test_every_setting_says_what_it_means():
    for model in (schema.Recipe, schema.TaskSettings, schema.EvaluationSettings, *schema.STAGE_KINDS.values()):
        silent = [name for name, field in model.model_fields.items() if not field.description]
        assert silent == [], f"{model.__name__}: {silent}"


def test_a_synonym_points_at_a_setting_that_exists():
    known = {*RLStage.model_fields, *schema.PretrainStage.model_fields, "kl_coef", "clip_low", "clip_high"}
    from melete.suggest import SYNONYMS

    assert set(SYNONYMS.values()) <= known
    assert nearest("beta", ["kl_coef", "lr"]) == "kl_coef"


def compared(**settings: Any) -> dict[str, Any]:
    stage = {"name": "compare", "kind": "compare", "task": {"name": "arithmetic_chain"}, "algorithms": ["grpo", "rloo"]}
    return {"name": "r", "stage": [stage | settings]}


def test_an_algorithm_of_a_comparison_may_have_settings_of_its_own() -> None:
    stage = parse_recipe(compared(settings_of={"rloo": {"kl_coef": 0.0, "lr": 1e-3, "num_minibatches": 2}})).stages[0]
    assert stage.settings_for("rloo") == ({"kl_coef": 0.0}, {"lr": 1e-3, "num_minibatches": 2})
    assert stage.settings_for("grpo") == ({}, {})
    single = single_recipe(stage, "rloo", 7).stages[0]
    assert (single.lr, single.num_minibatches, single.algorithm_settings) == (1e-3, 2, {"kl_coef": 0.0})
    assert single_recipe(stage, "grpo", 7).stages[0].num_minibatches == 1


@pytest.mark.parametrize(
    ("settings_of", "message"),
    [
        ({"rlo": {"lr": 1e-3}}, "compare.settings_of.rlo: is none of the algorithms; did you mean rloo?"),
        ({"rloo": {"num_minibatches": 0}}, "compare.settings_of.rloo.num_minibatches: "),
        ({"rloo": {"lr": "fast"}}, "compare.settings_of.rloo.lr: "),
        ({"rloo": {"clip_lo": 0.1}}, "compare.algorithm_settings.clip_lo: rloo: unknown setting"),
    ],
)
def test_settings_of_a_comparison_that_cannot_be_used_are_refused(settings_of: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        parse_recipe(compared(settings_of=settings_of))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {"kind": "rl", "algorithm": "ppo", "critic": {"trunk": "shared", "model": "tiny"}},
            "s.critic.model: starts a trunk of its own",
        ),
        ({"kind": "rl", "algorithm": "ppo", "critic": {"value_coef": 0.5}}, "s.critic.value_coef: belongs to"),
        (
            {"kind": "distill", "teacher": "t", "method": "sequence", "kd_temperature": 2.0},
            "s.kd_temperature: has no meaning for method sequence; it belongs to logits and gkd and on_policy",
        ),
        ({"kind": "distill", "teacher": "t", "method": "logits", "jsd_beta": 0.1}, "s.jsd_beta: has no meaning"),
        ({"kind": "reward_model", "data": "d.jsonl", "replay": ["nowhere"]}, "s.replay[0]: 'nowhere' is neither"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(stage: dict[str, Any], message: str) -> None:
    task = {} if stage["kind"] == "reward_model" else {"task": {"name": "arithmetic_chain"}}
    assert message in refusal({"name": "mine", "stage": [{"name": "s"} | task | stage]})


def test_parts_of_a_reward_have_settings_gates_and_scales() -> None:
    stage = parse_recipe(
        rl_tables(
            rewards={"accuracy": 1.0, "format": 0.1, "short": 0.2},
            reward_parts={
                "accuracy": {"gate": "format"},
                "short": {"reward": "overlong", "normalise": "group", "settings": {"cache_share": 0.5}},
            },
        )
    ).stages[0]
    assert stage.reward_parts["accuracy"].gate == "format" and stage.reward_parts["short"].reward == "overlong"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"acuracy": {}}, "rl.reward_parts.acuracy: has no weight; add it to rewards"),
        ({"accuracy": {"gate": "format"}}, "rl.reward_parts.accuracy.gate: 'format' is no other part of rewards"),
        ({"accuracy": {"gate": "accuracy"}}, "rl.reward_parts.accuracy.gate: 'accuracy' is no other part of rewards"),
        (
            {"accuracy": {"reward": "overlnog"}},
            "rl.reward_parts.accuracy.reward: unknown reward; did you mean overlong?",
        ),
        ({"accuracy": {"reward": "no.such:thing"}}, "rl.reward_parts.accuracy.reward: cannot import no.such:thing"),
        (
            {"accuracy": {"reward": "overlong", "settings": {"cash_share": 0.5}}},
            "rl.reward_parts.accuracy.settings.cash_share: unknown setting of overlong; did you mean cache_share?",
        ),
        ({"accuracy": {"normalize": "group"}}, "rl.reward_parts.accuracy.normalize"),
    ],
)
def test_parts_that_cannot_be_made_are_refused(parts: dict[str, Any], message: str) -> None:
    assert message in refusal(rl_tables(reward_parts=parts))
