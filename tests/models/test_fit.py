"""Whether a model fits is told from headers, before anything is loaded."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from tiny_models import MODELS, tokenizer

from melete.errors import ModelError
from melete.models import load
from melete.models.fit import num_weights, refuse_if_too_large
from melete.models.load import (
    load_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
    refuse_mismatch,
    refuse_too_large_to_train,
    save_model,
)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_weights_are_counted_without_loading_them(make, tmp_path: Path) -> None:
    model = make()
    save_model(model, tokenizer(), tmp_path / "m")
    buffers = sum(buffer.numel() for name, buffer in model.named_buffers() if name in model.state_dict())
    assert num_weights(tmp_path / "m") == model.num_parameters() + buffers


def test_a_model_larger_than_the_memory_is_refused_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(MODELS["llama"](), tokenizer(), tmp_path / "m")
    count = num_weights(tmp_path / "m")
    refuse_if_too_large(tmp_path / "m", bytes_each=4, available=4 * count)
    monkeypatch.setattr(load, "available_memory", lambda device: 4 * count - 1)
    with pytest.raises(ModelError, match=f"{count:,} weights of 4 bytes to load are .* GiB, and .* GiB of memory"):
        load_model(tmp_path / "m")
    load_model(tmp_path / "m", dtype="bfloat16")


def header(content: object, rest: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + rest


WHOLE = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "longer than the file|no table"),
        (b"\xff" * 64, "longer than the file"),
        (struct.pack("<Q", 4) + b"nope", "no table"),
        (header([1, 2]), "no table"),
        (header({"a": 1}), "no table"),
        (header({"a": {"shape": [2], "data_offsets": "x"}}), "no table"),
        (header(WHOLE, b"0" * 23), "bytes, and its header tells"),
        (header(WHOLE, b"0" * 25), "bytes, and its header tells"),
    ],
)
def test_a_broken_file_is_refused(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=says):
        num_weights(tmp_path)


def test_a_device_that_is_not_there_is_refused() -> None:
    missing = next((name for name in ("cuda", "mps") if name != pick_device("auto")), "")
    with pytest.raises(ModelError, match=f"has no {missing}"):
        pick_device(missing)  # type: ignore[arg-type]


def test_on_a_cpu_numbers_have_32_bits_unless_told_otherwise() -> None:
    assert str(pick_dtype("auto", "cpu")) == "torch.float32"
    assert str(pick_dtype("bfloat16", "cpu")) == "torch.bfloat16"


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    model = MODELS["llama"]()
    save_model(model, tokenizer(), tmp_path / "m")
    larger = load_tokenizer(tmp_path / "m")
    refuse_mismatch(model, larger, "m")
    larger.add_tokens(["<more>"])
    with pytest.raises(ModelError, match="does not match"):
        refuse_mismatch(model, larger, "m")


def test_a_tokenizer_with_another_vocabulary_is_refused() -> None:
    model = MODELS["llama"]()
    model.config.eos_token_id = [70, 71]
    with pytest.raises(ModelError, match=r"ends a text with token 70 \('.*' here\), 71 .* no special token"):
        refuse_mismatch(model, tokenizer(), "m")
    model.config.eos_token_id = [70, tokenizer().eos_token_id]
    refuse_mismatch(model, tokenizer(), "m")


def test_to_train_takes_four_times_the_weights_and_more_than_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(MODELS["llama"](), tokenizer(), tmp_path / "m")
    count = num_weights(tmp_path / "m")
    monkeypatch.setattr(load, "available_memory", lambda device: 16 * count - 1)
    load_model(tmp_path / "m")
    refuse_too_large_to_train(tmp_path / "m", device="cpu", dtype="float32", with_adapter=True)
    with pytest.raises(ModelError, match="weights of 16 bytes to train are") as refusal:
        refuse_too_large_to_train(tmp_path / "m", device="cpu", dtype="float32", with_adapter=False)
    assert "an adapter" in refusal.value.remedy
