"""Where models lie: the bundled ones by name, any other by its directory. Loads no torch."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from melete.errors import ModelError

BUNDLED = {"tiny": "tiny-base", "student-qwen": "student-qwen", "student-llama": "student-llama"}
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def resolve_model(name: str) -> Path:
    """The directory of a bundled model or the path itself.

    Raises `ModelError` when there is nothing there, no configuration or no weights.
    """
    path = Path(str(resources.files("melete"))) / "data" / BUNDLED[name] if name in BUNDLED else Path(name)
    if not path.is_dir():
        raise ModelError(
            "there is no such model directory", place=str(path), remedy=f"a path, or one of {', '.join(BUNDLED)}"
        )
    if not (path / "config.json").is_file():
        raise ModelError(
            "this directory has no config.json", place=str(path), remedy="save the model with save_pretrained"
        )
    if not any(any(path.glob(pattern)) for pattern in WEIGHTS):
        remedy = "save the model as safetensors (model.save_pretrained); other formats can run code and are not read"
        raise ModelError("this directory has no weights (*.safetensors)", place=str(path), remedy=remedy)
    return path
