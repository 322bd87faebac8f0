"""Loading and saving models: what is wrong with a directory is said, with the place and the way to mend it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import MODELS, llama, tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from melete.errors import ModelError
from melete.models.load import load_model, load_tokenizer, resolve_model, save_model


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "good"
    save_model(llama(), tokenizer(), path)
    return path


@pytest.fixture
def broken(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def truncate(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def garble(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"\xff" * 64)


def lose_a_weight(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def change_a_shape(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def rename_the_weights(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | changes))

    return edit


def cut_config(path: Path) -> None:
    (path / "config.json").write_text('{"model_type": "lla')


def name_a_shard_that_is_not_there(path: Path) -> None:
    (path / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut off": (truncate, "not a whole safetensors file: it has"),
    "weights garbled": (garble, "not a whole safetensors file: its header"),
    "a weight missing": (lose_a_weight, "1 weights are missing"),
    "a shape changed": (change_a_shape, "cannot be loaded"),
    "weights that can run code": (rename_the_weights, "no weights"),
    "a shard missing": (name_a_shard_that_is_not_there, "cannot be loaded"),
    "config cut off": (cut_config, "cannot be loaded"),
    "unknown architecture": (edit_config(model_type="no_such_model"), "cannot be loaded"),
    "architecture without a head": (edit_config(model_type="vit"), "cannot be loaded"),
    "a size that is none": (edit_config(hidden_size="many"), "cannot be loaded"),
    "no heads": (edit_config(num_attention_heads=0), "cannot be loaded"),
    "config that is no table": (lambda path: (path / "config.json").write_text("null"), "cannot be loaded"),
    "config missing": (lambda path: (path / "config.json").unlink(), "no config.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_model_that_cannot_be_used_is_refused_with_place_and_remedy(damage: str, broken: Path) -> None:
    spoil, says = DAMAGES[damage]
    spoil(broken)
    with pytest.raises(ModelError, match=says) as refusal:
        load_model(broken)
    assert str(refusal.value.place).startswith(str(broken))
    assert refusal.value.remedy
    assert isinstance(refusal.value, ValueError)


@pytest.mark.parametrize("content", [None, "{", "null", '{"version": "1.0"}', '{"model": 3}'])
def test_a_tokenizer_that_cannot_be_used_is_refused_with_place_and_remedy(content: str | None, broken: Path) -> None:
    if content is None:
        for file in broken.glob("tokenizer*"):
            file.unlink()
    else:
        (broken / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="tokenizer") as refusal:
        load_tokenizer(broken)
    assert str(refusal.value.place).startswith(str(broken))
    assert "tokenizer" in refusal.value.remedy


@pytest.mark.parametrize("config", ["null", "[]", '{"eos_token": 5}'])
def test_a_tokenizer_whose_settings_are_damaged_is_refused(config: str, broken: Path) -> None:
    (broken / "tokenizer_config.json").write_text(config)
    with pytest.raises(ModelError, match="tokenizer") as refusal:
        load_tokenizer(broken)
    assert str(refusal.value.place).startswith(str(broken))


@pytest.mark.parametrize("load", [load_model, load_tokenizer, resolve_model])
def test_a_directory_that_is_not_there_is_named(load: Callable[[str], object], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a directory nor a known model") as refusal:
        load(str(tmp_path / "nothing"))
    assert refusal.value.place == str(tmp_path / "nothing")
    assert "tiny" in refusal.value.remedy


def test_a_file_is_no_model_directory(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="neither a directory nor a known model"):
        load_model(tmp_path / "model.safetensors")


def test_code_in_a_model_directory_is_never_run(broken: Path, tmp_path: Path) -> None:
    """Neither by default nor after a question at the terminal."""
    (broken / "custom.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    edit_config(model_type="custom", auto_map={"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.M"})(broken)
    with pytest.raises(ModelError):
        load_model(broken)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", MODELS)
def test_a_saved_model_is_read_by_plain_transformers_and_says_the_same(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]()
    save_model(model, tokenizer(), tmp_path / "model")
    tokens = torch.tensor([tokenizer().encode("<|user|>what is 12")])
    for loaded in (AutoModelForCausalLM.from_pretrained(tmp_path / "model"), load_model(tmp_path / "model")):
        assert type(loaded) is type(model)
        assert not loaded.training
        with torch.no_grad():
            torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits)
    for read in (AutoTokenizer.from_pretrained(tmp_path / "model"), load_tokenizer(tmp_path / "model")):
        assert read.encode("<|user|>what is 12") == tokens[0].tolist()
        assert read.chat_template == tokenizer().chat_template
        assert (read.bos_token_id, read.eos_token_id, read.pad_token_id) == (1, 2, 0)


def test_a_save_that_fails_leaves_the_older_model_whole(good: Path, broken: Path) -> None:
    class Unwritable:
        eos_token_id = 0

        def save_pretrained(self, _directory: Path) -> None:
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        save_model(llama(seed=3), Unwritable(), broken)
    assert sorted(file.name for file in broken.iterdir()) == sorted(file.name for file in good.iterdir())
    assert (broken / "model.safetensors").read_bytes() == (good / "model.safetensors").read_bytes()
    assert [path.name for path in broken.parent.iterdir()] == [broken.name]


def test_a_save_replaces_the_model_that_was_there(broken: Path) -> None:
    (broken / "left_over.txt").write_text("old")
    model = llama(seed=3)
    save_model(model, tokenizer(), broken)
    assert not (broken / "left_over.txt").exists()
    assert torch.equal(load_model(broken).model.norm.weight, model.model.norm.weight)
    assert torch.equal(load_model(broken).lm_head.weight, model.lm_head.weight)


def test_a_tokenizer_without_pad_token_pads_with_its_end_of_turn_token(broken: Path) -> None:
    """I31."""
    config = json.loads((broken / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    (broken / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(broken)
    assert loaded.pad_token_id == loaded.eos_token_id


def test_a_saved_model_names_no_place_on_this_machine(good: Path) -> None:
    text = "".join(file.read_text() for file in good.glob("*.json"))
    assert str(good.parent) not in text
