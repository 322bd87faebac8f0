"""Model cards: what a saved model is, in Hugging Face's form, from the facts of the stage that made it.

A card holds no date and no place on a machine, so the same run gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from melete.runs.atomic import write_atomically

FILE = "README.md"
_USE_ADAPTER = """```python
from melete.models.load import load_model, load_tokenizer

model = load_model(path)  # with the base that it belongs to; peft's PeftModel.from_pretrained(base, path) does so too
tokenizer = load_tokenizer(path)
```"""
_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)
```"""


@dataclass(frozen=True, slots=True)
class Card:
    """What a card tells; `settings` are those of the stage, `evaluations` its entries of `summary.json`."""

    name: str
    text: str
    base: str = ""
    licence: str = ""
    tags: Sequence[str] = ()
    data: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Sequence[Mapping[str, Any]] = ()
    seed: int | None = None
    command: str = ""
    is_causal: bool = True
    is_adapter: bool = False

    @classmethod
    def of_fetched(cls, name: str, source: str, licence: str) -> Card:
        """A model that was fetched as it is."""
        text = f"{source} with its weights as 32-bit numbers, read from a file in which they are rounded to 4 bits."
        return cls(name=name, text=text, base=source, licence=licence)

    @classmethod
    def of_stage(
        cls,
        settings: Mapping[str, Any],
        *,
        recipe: str,
        seed: int,
        base: str,
        licence: str,
        data: Sequence[str],
        entry: Mapping[str, Any],
        command: str = "",
    ) -> Card:
        """A model that a stage made."""
        kind = str(settings["kind"])
        return cls(
            name=str(settings["name"]),
            text=f"Made by the stage `{settings['name']}` ({kind}) of the recipe `{recipe}` with Melete.",
            base=_shown(base),
            licence=licence,
            tags=[kind, *([str(settings["algorithm"])] if settings.get("algorithm") else [])],
            data=[_shown(name) for name in data],
            settings=_shown(dict(settings)),
            evaluations=entry.get("evaluations", ()),
            seed=seed,
            command=command,
            is_causal=kind != "reward_model",
            is_adapter=not (settings.get("adapter") or {"merge": True})["merge"],
        )


def licence_of(directory: Path) -> str:
    """The licence that a model's card names; empty where there is no card or it names none."""
    from huggingface_hub import ModelCard

    try:
        data: Any = ModelCard.load(directory / FILE).data
        return str(data.license or "")
    except Exception:  # a card is text by anybody; what cannot be read names nothing
        return ""


def write_card(card: Card, directory: Path) -> None:
    """Writes the card as README.md."""
    write_atomically(directory / FILE, card_text(card))


def card_text(card: Card) -> str:
    """The card with its header."""
    from huggingface_hub import ModelCardData

    header = ModelCardData(
        library_name="peft" if card.is_adapter else "transformers",
        license=card.licence or None,
        base_model=card.base or None,
        model_name=card.name,
        pipeline_tag="text-generation" if card.is_causal else "text-classification",
        tags=["melete", *card.tags] if card.settings else list(card.tags) or None,
    )
    parts = [f"---\n{header.to_yaml()}\n---\n", f"# {card.name}\n", card.text]
    parts += [f"It started from {card.base}." if card.base and card.settings else ""]
    use = _USE_ADAPTER if card.is_adapter else _USE
    parts += ["## Use\n", use] if card.is_causal else []
    parts += ["## Data\n", "\n".join(f"- {name}" for name in card.data)] if card.data else []
    parts += _results(card.evaluations)
    if card.settings:
        lines = [f"{key} = {value}" for key, value in _flat(card.settings)]
        seed = "" if card.seed is None else f"seed = {card.seed}\n"
        told = [f"With `{card.command}` and these settings:\n"] if card.command else []
        parts += ["## Settings\n", *told, "```text\n" + seed + "\n".join(lines) + "\n```"]
    told = f"{card.licence}, as its base." if card.settings else f"{card.licence}."
    parts += ["## Licence\n", told if card.licence else "The base names none; ask those who made it."]
    return "\n".join(part + "\n" if not part.endswith("\n") else part for part in parts if part)


def _results(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    if not evaluations:
        return []
    rows = ["| when | step | pass@1 | 95 % | problems | samples each |", "|---|---:|---:|---|---:|---:|"]
    for one in evaluations:
        bounds = f"{one['pass@1/low']:.3f} to {one['pass@1/high']:.3f}"
        counts = f"{one['num_problems']} | {one['num_samples']}"
        rows.append(f"| {one['label']} | {one['step']} | {one['pass@1']:.3f} | {bounds} | {counts} |")
    return ["## Results on held-out problems\n", "\n".join(rows)]


def _shown(value: Any) -> Any:
    """A value without places on this machine: of an absolute path only the last part is told."""
    if isinstance(value, str):
        return Path(value).name if os.path.isabs(value) else value
    if isinstance(value, Mapping):
        return {key: _shown(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(inner) for inner in value]
    return value


def _flat(settings: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in settings.items():
        pairs += _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else [(before + key, value)]
    return pairs
