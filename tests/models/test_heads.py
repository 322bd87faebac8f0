"""Scalar models: their trunk is the language model's, their head is small, and a score is the row's own."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import MODELS, tokenizer
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from melete.errors import ModelError
from melete.learning.scoring import scores_at, scores_at_end, values_before
from melete.models.heads import load_scalar_model, new_scalar_model, scalar_tokenizer
from melete.models.load import load_model, save_model

END = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory of each architecture's language model."""
    paths = {kind: tmp_path_factory.mktemp("base") / kind for kind in MODELS}
    for kind, path in paths.items():
        save_model(MODELS[kind](), tokenizer(), path)
    return paths


@pytest.fixture
def broken(base: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(base["llama"], tmp_path / "model"))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rows(*lengths: int) -> tuple[Tensor, Tensor]:
    """Right-padded random rows that end with the end-of-turn token, and their attention mask."""
    tokens = torch.randint(
        6, len(tokenizer()), (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0)
    )
    length, column = torch.tensor(lengths)[:, None], torch.arange(max(lengths))[None]
    tokens = torch.where(column == length - 1, END, tokens)
    return torch.where(column < length, tokens, 0), column < length


def hidden_of(model: PreTrainedModel, row: Tensor) -> Tensor:
    """Hidden states of one row on its own [T, D]."""
    return model.model(input_ids=row[None]).last_hidden_state[0]


@pytest.mark.parametrize("kind", MODELS)
def test_the_trunk_is_that_of_the_language_model_and_values_start_at_zero(kind: str, base: dict[str, Path]) -> None:
    model, language_model = new_scalar_model(base[kind]), load_model(base[kind])
    trunk, expected = model.model.state_dict(), language_model.model.state_dict()
    assert trunk.keys() == expected.keys()
    assert all(torch.equal(trunk[name], expected[name]) for name in trunk)
    assert not model.score.weight.any() and model.score.weight.shape == (1, 32) and model.score.bias is None
    assert not model.training and model.dtype == torch.float32
    tokens, mask = rows(7, 4)
    assert scores_at_end(model, tokens, mask).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", MODELS)
def test_settings_of_the_architecture_are_those_of_load_model(kind: str, base: dict[str, Path]) -> None:
    expected = load_model(base[kind]).config
    found = new_scalar_model(base[kind]).config
    assert found._experts_implementation == expected._experts_implementation
    assert found._attn_implementation == expected._attn_implementation


def test_a_drawn_head_depends_on_the_seed_alone_and_its_scale_on_the_width(base: dict[str, Path]) -> None:
    torch.manual_seed(1)
    one = new_scalar_model(base["llama"], seed=3, init_scale=1.0).score.weight
    torch.manual_seed(2)
    same = new_scalar_model(base["llama"], seed=3, init_scale=1.0).score.weight
    other = new_scalar_model(base["llama"], seed=4, init_scale=1.0).score.weight
    smaller = new_scalar_model(base["llama"], seed=3, init_scale=0.1).score.weight
    assert one.equal(same) and not one.equal(other)
    torch.testing.assert_close(smaller, 0.1 * one)
    assert 0.5 < float(one.detach().std()) * math.sqrt(33) < 1.5


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_started_from_a_reward_model_keeps_its_trunk_and_head(
    kind: str, base: dict[str, Path], tmp_path: Path
) -> None:
    reward_model = new_scalar_model(base[kind], seed=5, init_scale=1.0)
    with torch.no_grad():
        reward_model.model.norm.weight.add_(0.1)
    save_model(reward_model, tokenizer(), tmp_path / "model")
    for loaded in (new_scalar_model(tmp_path / "model", seed=9), load_scalar_model(tmp_path / "model")):
        found, expected = loaded.state_dict(), reward_model.state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
        assert loaded.config.pad_token_id == reward_model.config.pad_token_id
        assert not loaded.training


def lose_a_weight(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def garble(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"\xff" * 64)


def use_pickle(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def lose_the_tokenizer(path: Path) -> None:
    for file in path.glob("tokenizer*"):
        file.unlink()


DAMAGES = {
    "a weight missing": (lose_a_weight, "1 weights are missing, the first is model.layers.1"),
    "weights garbled": (garble, "cannot be loaded"),
    "weights that can run code": (use_pickle, "no weights"),
    "unknown architecture": (lambda path: edit_json(path / "config.json", model_type="none_such"), "cannot be loaded"),
    "tokenizer missing": (lose_the_tokenizer, "tokenizer"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_directory_that_cannot_be_used_is_refused_with_place_and_remedy(damage: str, broken: Path) -> None:
    spoil, says = DAMAGES[damage]
    spoil(broken)
    with pytest.raises(ModelError, match=says) as refusal:
        new_scalar_model(broken)
    assert refusal.value.place == str(broken)
    assert refusal.value.remedy


def test_code_in_a_directory_is_never_run(broken: Path, tmp_path: Path) -> None:
    (broken / "custom.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    auto_map = {"AutoConfig": "custom.C", "AutoModelForSequenceClassification": "custom.M"}
    edit_json(broken / "config.json", model_type="custom", auto_map=auto_map)
    for load in (new_scalar_model, load_scalar_model):
        with pytest.raises(ModelError):
            load(broken)
    assert not (tmp_path / "ran").exists()


def test_a_language_model_is_no_reward_model(base: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="no head for scores") as refusal:
        load_scalar_model(base["llama"])
    assert "reward_model" in refusal.value.remedy


def test_a_head_of_several_labels_is_refused(tmp_path: Path) -> None:
    small = dict(vocab_size=400, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    save_model(LlamaForSequenceClassification(LlamaConfig(**small, num_labels=3)), tokenizer(), tmp_path / "model")
    with pytest.raises(ModelError, match="one score"):
        load_scalar_model(tmp_path / "model")
    with pytest.raises(ModelError, match="cannot be loaded"):
        new_scalar_model(tmp_path / "model")


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    """Its tokens look to their right, so padding would need a mask and values would see the future."""
    small = dict(vocab_size=400, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    save_model(BertForSequenceClassification(BertConfig(**small, num_labels=1)), tokenizer(), tmp_path / "model")
    for load in (new_scalar_model, load_scalar_model):
        with pytest.raises(ModelError, match="one score"):
            load(tmp_path / "model")


def test_loading_says_nothing_and_leaves_warnings_as_they_were(
    base: dict[str, Path], broken: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = logging.get_verbosity()
    new_scalar_model(base["llama"])
    garble(broken)
    with pytest.raises(ModelError):
        new_scalar_model(broken)
    assert logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


def with_pad(path: Path, pad: str) -> PreTrainedTokenizerBase:
    """Makes the directory's tokenizer and configuration pad with this token."""
    changed = copy.deepcopy(tokenizer())
    changed.pad_token = pad
    changed.save_pretrained(path)
    edit_json(path / "config.json", pad_token_id=changed.pad_token_id)
    return changed


@pytest.mark.parametrize("pad", ["<|end|>", "<|pad|>"])
@pytest.mark.parametrize("kind", MODELS)
def test_plain_transformers_give_the_same_scores_padded_and_alone(
    kind: str, pad: str, base: dict[str, Path], tmp_path: Path
) -> None:
    """I31, I36: also where the base pads with its end-of-turn token, which pooling would take for padding."""
    shutil.copytree(base[kind], tmp_path / "base")
    own = with_pad(tmp_path / "base", pad)
    model = new_scalar_model(tmp_path / "base", seed=1, init_scale=1.0)
    save_model(model, scalar_tokenizer(model, own), tmp_path / "model")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    read = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert read.pad_token_id == plain.config.pad_token_id != read.eos_token_id == END
    assert own.pad_token == pad  # the caller's tokenizer is left alone

    texts = ["what is 12<|end|>", "one and two and three<|end|>", "3<|end|>"]
    padded = read(texts, return_tensors="pt", padding=True)
    attention_mask = padded["attention_mask"].bool()
    assert attention_mask.sum(dim=1).unique().numel() == 3 and padded["input_ids"][attention_mask].eq(END).sum() == 3
    with torch.no_grad():
        scores = scores_at_end(model, padded["input_ids"], attention_mask)
        whole = plain(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits[:, 0]
        unmasked = plain(input_ids=padded["input_ids"]).logits[:, 0]
        alone = torch.cat([plain(**read(text, return_tensors="pt")).logits[0] for text in texts])
    for found in (whole, unmasked, alone):
        torch.testing.assert_close(scores, found, rtol=0, atol=1e-6)
    assert float(scores.std()) > 1e-2


@pytest.mark.parametrize(
    ("in_tokenizer", "in_config", "expected"),
    [("<|pad|>", 0, 0), ("<|end|>", 2, 1), ("<|end|>", 4, 4), ("<|user|>", None, 4)],
)
def test_the_pad_token_is_the_own_one_unless_it_ends_turns(
    in_tokenizer: str, in_config: int | None, expected: int, broken: Path
) -> None:
    """The tokenizer's, else the model's, else unk, which there is none of here, else bos."""
    with_pad(broken, in_tokenizer)
    edit_json(broken / "config.json", pad_token_id=in_config)
    assert new_scalar_model(broken).config.pad_token_id == expected


def test_an_unknown_token_serves_before_the_first_one(broken: Path) -> None:
    with_pad(broken, "<|end|>")
    edit_json(broken / "tokenizer_config.json", unk_token="<|system|>")
    assert new_scalar_model(broken).config.pad_token_id == 3


def test_where_every_special_token_ends_turns_padding_is_refused(broken: Path) -> None:
    with_pad(broken, "<|end|>")
    edit_json(broken / "config.json", eos_token_id=list(range(len(tokenizer()))))
    with pytest.raises(ModelError, match="padding") as refusal:
        new_scalar_model(broken)
    assert "pad token" in refusal.value.remedy


@pytest.fixture(scope="module")
def scorers(base: dict[str, Path]) -> dict[str, PreTrainedModel]:
    return {kind: new_scalar_model(path, seed=1, init_scale=3.0) for kind, path in base.items()}


@pytest.mark.parametrize("kind", MODELS)
def test_scores_are_those_of_each_row_on_its_own(kind: str, scorers: dict[str, PreTrainedModel]) -> None:
    """I4, I36: neither neighbours nor padding, whatever it is, have a part in a score."""
    model = scorers[kind]
    lengths = (9, 3, 14, 1)
    tokens, attention_mask = rows(*lengths)
    wanted = attention_mask & (torch.arange(14)[None] % 2 == 0)
    with torch.no_grad():
        per_row = [model.score(hidden_of(model, tokens[row, :length]))[:, 0] for row, length in enumerate(lengths)]
        for padding in (0, END, 77):
            padded = torch.where(attention_mask, tokens, padding)
            ends, steps = scores_at_end(model, padded, attention_mask), scores_at(model, padded, wanted)
            values = values_before(model, padded, wanted)
            torch.testing.assert_close(ends, torch.stack([row[-1] for row in per_row]), rtol=1e-5, atol=1e-5)
            for row, length in enumerate(lengths):
                expected = torch.where(wanted[row, :length], per_row[row], 0.0)
                torch.testing.assert_close(steps[row, :length], expected, rtol=1e-5, atol=1e-5)
                before = torch.nn.functional.pad(per_row[row][:-1], (1, 0))
                expected = torch.where(wanted[row, :length], before, 0.0)
                torch.testing.assert_close(values[row, :length], expected, rtol=1e-5, atol=1e-5)
            assert not steps[~wanted].any() and not values[~wanted].any()
    assert float(ends.std()) > 0.1


@pytest.mark.parametrize("kind", MODELS)
def test_a_score_alone_is_the_score_in_company_to_1e_6(kind: str, base: dict[str, Path]) -> None:
    """I36."""
    lengths = (6, 11, 4)
    tokens, attention_mask = rows(*lengths)
    model = new_scalar_model(base[kind], seed=1, init_scale=0.3)
    with torch.no_grad():
        together = scores_at_end(model, tokens, attention_mask)
        alone = [scores_at_end(model, tokens[[n], :end], attention_mask[[n], :end]) for n, end in enumerate(lengths)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)
    assert float(together.std()) > 0.05


def test_a_value_never_sees_the_token_it_stands_before(scorers: dict[str, PreTrainedModel]) -> None:
    """The value of a state must not know what was done in it; a step's score must know the step's last token."""
    tokens, _ = rows(8)
    where = torch.arange(8)[None] == 5
    changed = torch.where(where, 9, tokens)
    for model in scorers.values():
        with torch.no_grad():
            torch.testing.assert_close(values_before(model, tokens, where), values_before(model, changed, where))
            assert not torch.allclose(scores_at(model, tokens, where), scores_at(model, changed, where), atol=1e-4)


def test_only_the_wanted_positions_reach_the_head(scorers: dict[str, PreTrainedModel]) -> None:
    model = copy.deepcopy(scorers["llama"])
    seen: list[tuple[int, ...]] = []
    model.score.register_forward_hook(lambda _module, inputs, _output: seen.append(tuple(inputs[0].shape)))
    tokens, attention_mask = rows(8, 5)
    mask = attention_mask & (torch.arange(8)[None] >= 3)
    scores_at_end(model, tokens, attention_mask)
    scores_at(model, tokens, mask)
    values_before(model, tokens, mask)
    assert seen == [(2, 32), (7, 32), (7, 32)]


def test_an_empty_mask_gives_zeros_and_a_first_token_has_no_value(scorers: dict[str, PreTrainedModel]) -> None:
    """I5."""
    model = copy.deepcopy(scorers["llama"])
    tokens, _ = rows(6, 4)
    nothing = torch.zeros(2, 6, dtype=torch.bool)
    first = nothing.clone()
    first[:, 0] = True
    for found in (scores_at(model, tokens, nothing), values_before(model, tokens, first)):
        assert not found.any()
        found.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
