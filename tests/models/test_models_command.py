"""`melete models`: what has a name, what a model is, and plain answers to what cannot be got."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import MODELS, llama, tokenizer
from typer.testing import CliRunner

from melete.cli import app
from melete.models.adapters import LoRA, add_adapter, save_adapter
from melete.models.load import save_model
from melete.models.places import fetched_directory

RUN = CliRunner()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MELETE_CACHE", str(tmp_path / "cache"))


def told(*arguments: str, code: int = 0) -> str:
    done = RUN.invoke(app, ["models", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def test_the_list_says_what_is_here_and_how_to_get_the_rest() -> None:
    save_model(llama(), tokenizer(), fetched_directory("owner/model"))
    lines = told("ls").splitlines()
    assert [line.split() for line in lines[:1]] == [["tiny", "bundled"]]
    assert "not fetched yet: melete models get smollm2-135m" in lines[3]
    assert lines[4].split() == ["owner/model", "in", "the", "cache"]


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_is_described_from_its_files(kind: str, tmp_path: Path) -> None:
    save_model(MODELS[kind](), tokenizer(), tmp_path / "m")
    facts = dict(line.split("  ", 1) for line in told("show", str(tmp_path / "m")).splitlines())
    assert f"{len(tokenizer()):,} tokens" in facts["vocabulary"]
    assert "layers" not in facts["layers"] and "2 of width 32" in facts["layers"]
    assert "<|end|>" in facts["special tokens"]
    assert {"context", "chat template", "on disk", "to sample", "to train", "with an adapter"} <= facts.keys()


def test_an_adapter_is_described_with_its_base(tmp_path: Path) -> None:
    model = llama()
    save_model(model, tokenizer(), tmp_path / "base")
    add_adapter(model, LoRA(rank=3), seed=0)
    save_adapter(model, tokenizer(), tmp_path / "apart", base="../base")
    assert "of rank 3 for" in told("show", str(tmp_path / "apart"))


def test_a_bundled_model_needs_no_fetching() -> None:
    assert "nothing is to be fetched" in told("get", "tiny")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("get", "smollm-135m"), "did you mean smollm2-135m"),
        (("show", "smollm2-135m"), "melete models get smollm2-135m"),
        (("show", "no/such/directory"), "neither a directory nor a known model"),
    ],
)
def test_what_is_not_there_is_refused_with_a_remedy(arguments: tuple[str, ...], says: str) -> None:
    said = told(*arguments, code=2)
    assert says in said and "Traceback" not in said
