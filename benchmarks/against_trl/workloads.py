"""What is compared: prompts, group sizes, lengths, and model directories that both sides load.

A directory is prepared once per workload. Its chat template is the prompt's text alone, so both sides see the same
tokens, and its generation config names several end tokens, as many as give completions of the wanted mean length. Both
sides stop at any of them. Nothing is wrapped: a directory is what `from_pretrained` reads.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from melete.models.load import load_model, load_tokenizer
from melete.models.places import resolve_model
from melete.sampling.keys import rollout_key
from melete.sampling.native import NativeSampler
from melete.types import SampleRequest, SamplingSettings

PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
RANDOM_LLAMA = "llama-2.4m"
MODELS = (RANDOM_LLAMA, "tiny", "smollm2-135m")
NUM_STEPS = 16  # steps that a prepared directory has prompts for
WORDS = """
    the of and to in a is that it was for on are as with they at be this from have by one had not but what all were
    when we there can an your which their said if do will each about how up out them then she many some so these would
    other into has more her two like him see time could no make than first been its who now people my made over did
    down only way find use may water long little very after words called just where most know
""".split()  # noqa: SIM905 - a list would have a line for each


@dataclass(frozen=True, slots=True)
class Workload:
    """`prompt_tokens` and `max_new_tokens` are counted in tokens; `mean_tokens` is what a completion comes to.

    With `equal_lengths` every completion has `max_new_tokens`, and no token ends one.
    """

    name: str
    num_prompts: int
    group_size: int
    prompt_tokens: int
    max_new_tokens: int
    mean_tokens: float
    equal_lengths: bool = False

    @property
    def num_rows(self) -> int:
        return self.num_prompts * self.group_size


WORKLOADS = {
    "A": Workload("A", 8, 16, prompt_tokens=10, max_new_tokens=64, mean_tokens=45),
    "B": Workload("B", 8, 8, prompt_tokens=150, max_new_tokens=256, mean_tokens=100),
    "C": Workload("C", 8, 8, prompt_tokens=150, max_new_tokens=100, mean_tokens=100, equal_lengths=True),
}


def workload_for(name: str, model: str, group_size: int = 0) -> Workload:
    """The workload as it is for a model: a large one has fewer prompts. `group_size` 0 is the workload's own."""
    found = WORKLOADS[name]
    if model == "smollm2-135m":
        found = replace(found, num_prompts=2, group_size=8, prompt_tokens=min(128, found.prompt_tokens))
    return replace(found, group_size=group_size or found.group_size)


def prepare(model: str, workload: Workload, directory: Path) -> Path:
    """The directory of a model with prompts for a workload; made once, for the same lengths.

    Raises `ModelError` where the model is not on this machine.
    """
    lengths = f"{workload.prompt_tokens}-{workload.mean_tokens:g}-of-{workload.max_new_tokens}"
    place = directory / f"{Path(model).name}-{lengths}{'-equal' if workload.equal_lengths else ''}"
    if (place / "prompts.jsonl").exists() and _num_prompts(place) == workload.num_prompts:
        return place
    shutil.rmtree(place, ignore_errors=True)
    tokenizer = _copied(model, place)
    rows = [_prompt(tokenizer, workload.prompt_tokens, number) for number in range(NUM_STEPS * workload.num_prompts)]
    if not workload.equal_lengths:
        _choose_ends(place, rows, workload)
    steps = [rows[start : start + workload.num_prompts] for start in range(0, len(rows), workload.num_prompts)]
    (place / "prompts.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return place


def prompts_of(place: Path) -> list[list[str]]:
    """The texts of each step's prompts."""
    return [json.loads(line) for line in (place / "prompts.jsonl").read_text().splitlines()]


def _num_prompts(place: Path) -> int:
    return len(prompts_of(place)[0])


def _copied(model: str, place: Path) -> PreTrainedTokenizerBase:
    """Saves model and tokenizer, with the plain template, under `place`."""
    if model == RANDOM_LLAMA:
        place.mkdir(parents=True)
        tokenizer = random_tokenizer()
        random_llama(tokenizer).save_pretrained(place)
    else:
        shutil.copytree(resolve_model(model), place, ignore=shutil.ignore_patterns("*.jinja", "README.md"))
        tokenizer = load_tokenizer(place)
    tokenizer.chat_template = PLAIN
    tokenizer.save_pretrained(place)
    return tokenizer


def random_tokenizer() -> PreTrainedTokenizerFast:
    """512 words between blanks; three of them are special."""
    words = ["<pad>", "<end>", "<unknown>", *(f"w{number}" for number in range(509))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", unk_token="<unknown>"
    )


def random_llama(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """2.4 million random parameters; what it says is nearly uniform over its tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _prompt(tokenizer: PreTrainedTokenizerBase, num_tokens: int, number: int) -> str:
    """A text of exactly so many tokens, another one for each number."""
    source = random.Random(f"prompt/{number}")
    words = [f"w{n}" for n in range(509)] if tokenizer.unk_token == "<unknown>" else WORDS
    for _ in range(1000):
        text = " ".join(source.choices(words, k=num_tokens))
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"][:num_tokens]
        text = tokenizer.decode(tokens)
        if tokenizer(text, add_special_tokens=False)["input_ids"] == tokens and len(tokens) == num_tokens:
            return text
    raise ValueError(f"no text of {num_tokens} tokens was found")


def _choose_ends(place: Path, prompts: Sequence[str], workload: Workload) -> None:
    """Names end tokens in the generation config, so that completions come to the workload's mean length.

    They are found on completions that nothing ended: tokens that several of them say are added in a fixed random order
    while the mean comes nearer. The tokenizer's own end token always counts; where it alone ends too soon, the special
    token that is said least takes its place.
    """
    tokenizer, model = load_tokenizer(place), load_model(place, device="cpu", dtype="float32")
    written = _endless(model, tokenizer, prompts, workload)
    own = int(tokenizer.eos_token_id)
    if _lengths(written, own).mean() < workload.mean_tokens:
        counts = np.bincount(written.ravel(), minlength=len(tokenizer))
        own = min(tokenizer.all_special_ids, key=lambda token: counts[token])
    ends = chosen_ends(written, own, workload.mean_tokens)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(own)
    tokenizer.save_pretrained(place)
    config: dict[str, Any] = {"eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id, "use_cache": True}
    (place / "generation_config.json").write_text(json.dumps(config, indent=2))


def chosen_ends(written: np.ndarray, own: int, mean_tokens: float) -> list[int]:
    """End tokens, `own` first, with which the rows `written` [B, T] come nearest to a mean length in tokens.

    One that is said in fewer than a sixteenth of the rows is left alone: other rows would hardly say it.

    >>> chosen_ends(np.array([[7, 8, 9, 9], [8, 8, 7, 9]]), 1, 2.0)  # 9 is tried first, and 7 comes nearer
    [1, 9, 7]
    """
    ends = [own]
    lengths = _lengths(written, own)
    in_rows = Counter(token for row in written.tolist() for token in set(row))
    candidates = sorted(token for token, count in in_rows.items() if token != own and 16 * count >= len(written))
    random.Random("ends").shuffle(candidates)
    for token in candidates:
        shorter = np.minimum(lengths, _lengths(written, token))
        if abs(shorter.mean() - mean_tokens) < abs(lengths.mean() - mean_tokens):
            lengths = shorter
            ends.append(token)
    return ends


def _lengths(written: np.ndarray, token: int) -> np.ndarray:
    """Tokens of each row up to and including the first `token`."""
    is_end = written == token
    return np.where(is_end.any(axis=1), is_end.argmax(axis=1) + 1, written.shape[1])


def _endless(model: Any, tokenizer: Any, prompts: Sequence[str], workload: Workload) -> np.ndarray:
    """Completions [B, max_new_tokens] that no token ends."""
    sampler = NativeSampler(model, tokenizer)
    sampler.end_tokens = torch.tensor([-1])
    num_rows = 128 if model.num_parameters() > 20_000_000 else 256
    asked = list(prompts[: min(len(prompts), num_rows // 4)])
    requests = [
        SampleRequest(
            tuple(tokenizer(text, add_special_tokens=False)["input_ids"]),
            tuple(rollout_key("ends", number, sibling) for sibling in range(num_rows // len(asked))),
        )
        for number, text in enumerate(asked)
    ]
    found = sampler.sample(requests, SamplingSettings(workload.max_new_tokens))
    return np.array([completion.tokens for siblings in found for completion in siblings])


@dataclass(frozen=True, slots=True)
class Spec:
    """What a child process is told: where the model lies, the workload, and how many threads it has."""

    place: str
    workload: Workload
    threads: int
    microbatches: int = 1  # parts of TRL's update
    continuous_batching: bool = False

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        said = json.loads(text)
        return cls(**(said | {"workload": Workload(**said["workload"])}))
