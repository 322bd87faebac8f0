"""Where models lie: bundled ones and fetched ones by name, any other by its directory. Loads no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from melete.errors import ModelError
from melete.suggest import did_you_mean

BUNDLED = {"tiny": "tiny-base", "student-qwen": "student-qwen", "student-llama": "student-llama"}
FETCHED = ("smollm2-135m",)
"""Models that `melete models get` fetches and converts once."""
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
ADAPTER = "adapter_config.json"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """MELETE_CACHE, else `melete` in XDG_CACHE_HOME, which is ~/.cache unless it is set.

    >>> cache_directory({"XDG_CACHE_HOME": "/c"}).as_posix(), cache_directory({"MELETE_CACHE": "/m"}).as_posix()
    ('/c/melete', '/m')
    """
    if own := environment.get("MELETE_CACHE"):
        return Path(own)
    base = environment.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "melete"


def fetched_directory(name: str) -> Path:
    """Where a fetched model lies, or would lie; a name of the hub's keeps its owner."""
    return cache_directory() / "models" / name.replace("/", "--")


def is_hub_name(name: str) -> bool:
    """Whether a name has the form owner/name.

    >>> is_hub_name("HuggingFaceTB/SmolLM2-135M"), is_hub_name("runs/a/models/b")
    (True, False)
    """
    return _HUB_NAME.fullmatch(name) is not None


def kept_from_hub(name: str) -> Path | None:
    """Where a model of the hub lies: in our cache, or with its weights in the one that other programs fill."""
    if (fetched := fetched_directory(name)).is_dir():
        return fetched
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", ADAPTER):
        found = try_to_load_from_cache(name, file)
        if isinstance(found, str) and any(any(Path(found).parent.glob(pattern)) for pattern in WEIGHTS):
            return Path(found).parent
    return None


def is_offline() -> bool:
    """Whether the hub is not to be asked, by HF_HUB_OFFLINE."""
    from huggingface_hub import is_offline_mode

    return is_offline_mode()


def resolve_model(name: str) -> Path:
    """The directory of a bundled or fetched model, or the path itself; a model of the hub's is fetched if need be.

    Raises `ModelError` when there is nothing there, no configuration or no weights, or the hub does not give it.
    """
    if name in BUNDLED:
        return Path(str(resources.files("melete"))) / "data" / BUNDLED[name]
    if why := missing_model(name):
        raise ModelError(why, place=name, remedy=f"a directory, or one of {', '.join((*BUNDLED, *FETCHED))}")
    path = Path(name) if Path(name).is_dir() else kept_from_hub(name)
    if path is None:
        from melete.models.fetch import get_model

        path = get_model(name)
    if (path / ADAPTER).is_file():
        return path
    if any(path.glob("*.gguf")) and not any(any(path.glob(pattern)) for pattern in WEIGHTS):
        remedy = "convert it with transformers (from_pretrained with gguf_file, then save_pretrained)"
        raise ModelError("this directory has weights as GGUF, which are not read", place=str(path), remedy=remedy)
    if not (path / "config.json").is_file():
        raise ModelError(
            "this directory has no config.json", place=str(path), remedy="save the model with save_pretrained"
        )
    if not any(any(path.glob(pattern)) for pattern in WEIGHTS):
        remedy = "save the model as safetensors (model.save_pretrained); other formats can run code and are not read"
        raise ModelError("this directory has no weights (*.safetensors)", place=str(path), remedy=remedy)
    return path


def missing_model(name: str, known: tuple[str, ...] = ()) -> str:
    """Why a name is that of no model; empty if it is one, or may be one of the hub's. `known` are more names that do.

    The hub is not asked. What begins with a directory that is here is no name of the hub's.
    """
    if name in BUNDLED or Path(name).is_dir():
        return ""
    if name in FETCHED:
        missing = f"{name} is not on this machine yet; get it with: melete models get {name}"
        return "" if fetched_directory(name).is_dir() else missing
    if is_hub_name(name) and not Path(name).parent.is_dir():
        if kept_from_hub(name) or not is_offline():
            return ""
        return f"{name!r} is no directory, it is in no cache, and the Hugging Face hub is not asked (HF_HUB_OFFLINE)"
    return f"{name!r} is neither a directory nor a known model; {did_you_mean(name, [*BUNDLED, *FETCHED, *known])}"
