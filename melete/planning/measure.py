"""A short measurement of a model on this machine: how fast it writes and learns, and how long its completions are."""

from __future__ import annotations

import contextlib
import gc
import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from melete.algorithms import resolve
from melete.batch import TrainBatch, demonstrations
from melete.corpus.written import written
from melete.datasets.encode import single_row
from melete.datasets.files import first_rows
from melete.datasets.formats import words_of
from melete.errors import RecipeError
from melete.learning.local import LocalLearner
from melete.learning.optimizer import OptimizerSettings
from melete.machine.threads import threads_for
from melete.models.load import load_model, load_tokenizer
from melete.models.moe import RouterBalancer
from melete.models.tiny import tiny_model
from melete.planning.estimate import Lengths, Speed
from melete.planning.graph import Text
from melete.rewards.rules import accuracy
from melete.sampling.native import NativeSampler
from melete.tasks import make_task
from melete.tasks.base import Task, reading_for, waits
from melete.text.chat import decode_completion, opens_thought, pad_token, prompt_tokens
from melete.types import Completion, Demonstration, Problem, Rollout, SampleRequest, SamplingSettings

SECONDS_OF_WRITING = 2.0  # what completions may take to be written, and learning to be timed
SAMPLES = 4
ROWS_AT_MOST, ROWS_OF_TASK = 160, (16, 48)  # over all tasks together, and of one task
TOKENS_OF_LEARNING = 2048
PROBE = (4, 16)  # rows and tokens of the narrow wave that shows what a step costs whatever its width
NUM_WRITTEN = 32  # demonstrations whose length is looked at
_FIRST_PROBLEM = 10**6
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class NewModel:
    """A model that a pre-training stage will make."""

    architecture: str
    hidden_size: int
    num_layers: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found; `failed` says, by the text's key, why a length is not known."""

    num_parameters: int
    speed: Speed
    lengths: Mapping[str, Lengths]
    failed: Mapping[str, str]


def measure(source: Path | NewModel, texts: Mapping[Text, int], *, speed: Speed | None = None) -> Measured:
    """Loads a model, lets it write completions of each source of at most so many tokens, and learn from them.

    A `speed` that is known is not measured again. Nothing that a run draws or computes depends on this: the model is
    thrown away, and the random generator and the number of threads are put back.
    """
    with _left_as_found():
        load_seconds, (model, tokenizer) = _timed(lambda: _loaded(source))
        torch.set_num_threads(threads_for(model.num_parameters(), torch.get_num_threads()))
        sampler = NativeSampler(model, tokenizer)
        lengths, failed = _lengths_of_data(tokenizer, texts)
        requests, problems = _requests(tokenizer, texts, failed)
        probe = _narrow(sampler, tokenizer)
        cap = max(8, min(max(texts.values(), default=PROBE[1]), _affordable(probe)))
        asked = [request for per_task in requests.values() for request in per_task] or [_any_request(tokenizer)]
        wave, completions = _timed(lambda: sampler.sample(asked, SamplingSettings(cap)))
        rest = iter(completions)
        for text, per_task in requests.items():
            task, own = problems[text]
            groups = [next(rest) for _ in per_task]
            lengths[text.key] = _lengths(tokenizer, task, own, per_task, groups, cap)
        if speed is None:
            speed = _speed(model, tokenizer, asked, completions, wave, probe, load_seconds)
        return Measured(model.num_parameters(), speed, lengths, failed)


@contextlib.contextmanager
def _left_as_found() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        gc.collect()


def _loaded(source: Path | NewModel) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if isinstance(source, Path):
        return load_model(source), load_tokenizer(source)
    tokenizer = load_tokenizer("tiny")  # one of its own has not been made; it is of about this size
    model = tiny_model(
        cast(PreTrainedTokenizerFast, tokenizer),
        architecture=cast(Any, source.architecture),
        hidden_size=source.hidden_size,
        num_layers=source.num_layers,
    )
    return model.eval(), tokenizer


def _timed(work: Callable[[], _T]) -> tuple[float, _T]:
    """Seconds, without those in which other processes had this one thread's core; and the result."""
    started, busy = time.perf_counter(), time.process_time()
    result = work()
    # with several threads processor time is the larger one, and means nothing here
    return min(time.perf_counter() - started, time.process_time() - busy), result


def _lengths_of_data(
    tokenizer: PreTrainedTokenizerBase, texts: Mapping[Text, int]
) -> tuple[dict[str, Lengths], dict[str, str]]:
    """Lengths of demonstrations, written by program or in a file: nothing is sampled for them."""
    found, failed = dict[str, Lengths](), dict[str, str]()
    for text in texts:
        if text.kind == "task":
            continue
        try:
            rows = _written_lengths(tokenizer, text) if text.kind == "written" else _file_lengths(tokenizer, text)
            found[text.key] = Lengths(sum(p for p, _ in rows) / len(rows), tuple(length for _, length in rows))
        except Exception as error:  # whatever is wrong with the data, the stage that reads it will say
            failed[text.key] = f"{text.name}: {error}"
    return found, failed


def _written_lengths(tokenizer: PreTrainedTokenizerBase, text: Text) -> list[tuple[int, int]]:
    masks = [single_row(tokenizer, row)[1] for row in written(text.name, NUM_WRITTEN, "plan")]
    return [(len(mask) - sum(mask), sum(mask)) for mask in masks]


def _file_lengths(tokenizer: PreTrainedTokenizerBase, text: Text) -> list[tuple[int, int]]:
    """Each row's prompt, and the mean of its completions."""
    named = json.loads(text.settings)
    found = []
    for row in first_rows(Path(text.name), NUM_WRITTEN, columns=named.get("columns", {}), part=named.get("part", "")):
        prompt = sum(len(tokenizer.encode(turn.content)) + 2 for turn in row.messages)
        answers = words_of(row)[-1:] if isinstance(row, Demonstration) else words_of(row)
        encoded = [len(tokenizer.encode(answer, add_special_tokens=False)) + 1 for answer in answers]
        found.append((prompt, round(sum(encoded) / max(len(encoded), 1))))
    if not found:
        raise ValueError("has no row that can be read")
    return found


def _requests(
    tokenizer: PreTrainedTokenizerBase, texts: Mapping[Text, int], failed: dict[str, str]
) -> tuple[dict[Text, list[SampleRequest]], dict[Text, tuple[Task, list[Problem]]]]:
    """A few problems of each task; why there are none goes into `failed`."""
    tasks = [text for text in texts if text.kind == "task"]
    rows = min(max(ROWS_AT_MOST // max(len(tasks), 1), ROWS_OF_TASK[0]), ROWS_OF_TASK[1])
    requests, problems = dict[Text, list[SampleRequest]](), dict[Text, tuple[Task, list[Problem]]]()
    for number, text in enumerate(tasks):
        try:
            task = _task(text)
            own = [_problem(task, _FIRST_PROBLEM + index) for index in range(rows // SAMPLES)]
            prompts = [prompt_tokens(tokenizer, problem.messages) for problem in own]
        except Exception as error:  # a task that cannot be made is the stage's to report
            failed[text.key] = f"task {text.name}: {error}"
            continue
        keys = iter(range(number * ROWS_AT_MOST, (number + 1) * ROWS_AT_MOST))
        requests[text] = [SampleRequest(prompt, tuple(next(keys) for _ in range(SAMPLES))) for prompt in prompts]
        problems[text] = (task, own)
    return requests, problems


def _problem(task: Task, index: int) -> Problem:
    """One to train on; of a benchmark, which has none of those, one that is held out."""
    try:
        return task.problem("train", index)
    except RecipeError:
        return task.problem("held_out", index)


def _task(text: Text) -> Task:
    return make_task(text.name, json.loads(text.settings))


def _any_request(tokenizer: PreTrainedTokenizerBase) -> SampleRequest:
    return SampleRequest(tuple(tokenizer.encode("1+1=?")), tuple(range(PROBE[0])))


def _narrow(sampler: NativeSampler, tokenizer: PreTrainedTokenizerBase) -> float:
    """Seconds of a token of a narrow wave: the least of three, for a disturbance only adds. The first makes room."""
    request = _any_request(tokenizer)
    sampler.sample([request], SamplingSettings(2))
    found = []
    for _ in range(3):
        seconds, groups = _timed(lambda: sampler.sample([request], SamplingSettings(PROBE[1])))
        found.append(seconds / max(len(completion.tokens) for completion in groups[0]))
        if seconds > SECONDS_OF_WRITING:  # a large model is not asked again
            break
    return min(found)


def _affordable(step_seconds: float) -> int:
    """Tokens that a wave may be long; a wide step takes about twice as long as a narrow one."""
    return int(SECONDS_OF_WRITING / (2 * step_seconds))


def _lengths(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: Sequence[Problem],
    requests: Sequence[SampleRequest],
    groups: Sequence[Sequence[Completion]],
    cap: int,
) -> Lengths:
    graded = (problems[0], requests[0].prompt_tokens, groups[0][0])
    return Lengths(
        prompt=sum(len(request.prompt_tokens) for request in requests) / len(requests),
        completions=tuple(len(completion.tokens) for group in groups for completion in group),
        cap=cap,
        row_seconds=_grading_seconds(tokenizer, task, *graded),
    )


def _grading_seconds(
    tokenizer: PreTrainedTokenizerBase, task: Task, problem: Problem, prompt: tuple[int, ...], completion: Completion
) -> float:
    """To decode and grade one completion, the second time; graders that wait work while others are still written."""
    grade = accuracy(task.grade, thought_opened=opens_thought(tokenizer), reading=reading_for(task))

    def once() -> None:
        text = decode_completion(tokenizer, completion.tokens)
        if not waits(task):
            grade(Rollout(problem, 0, prompt, completion, text))

    try:
        once()
        return _timed(once)[0]
    except Exception:  # a grader that fails is counted by the run; here it only takes time
        return 0.0


def _speed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[SampleRequest],
    groups: Sequence[Sequence[Completion]],
    wave_seconds: float,
    narrow_step: float,
    load_seconds: float,
) -> Speed:
    rows = [
        (
            [*request.prompt_tokens, *completion.tokens],
            [False] * len(request.prompt_tokens) + [True] * len(completion.tokens),
        )
        for request, group in zip(requests, groups, strict=True)
        for completion in group
    ]
    learnt = _some_rows(rows, _affordable_tokens(model.num_parameters()))
    batch = demonstrations(learnt, pad_token(tokenizer))
    num_tokens = batch.tokens.numel()  # padding included
    learner = LocalLearner(
        model,
        optimizer=OptimizerSettings(lr=0.0),
        max_tokens_per_microbatch=num_tokens,
        after_step=RouterBalancer(model).step,
    )
    with _counting_saved(model) as saved:
        _learning_seconds(learner, batch)  # the first time there is memory to be found, which takes its own time
    learning = _learning_seconds(learner, batch)
    reading, _ = _timed(lambda: learner.logprobs(batch))
    read = reading / num_tokens
    completions = [len(completion.tokens) for group in groups for completion in group]
    prompts = sum(len(request.prompt_tokens) for request in requests)
    step, token = _wave_costs(wave_seconds - prompts * read, max(completions), sum(completions), narrow_step)
    return Speed(
        load=load_seconds,
        step=step,
        token=token,
        read=read,
        learn=learning / num_tokens,
        activation_bytes=saved[0] / num_tokens,
        process_bytes=_process_bytes(model),
    )


def _learning_seconds(learner: LocalLearner, batch: TrainBatch) -> float:
    """Of an update without its optimizer, which costs as much for a few tokens as for many, and most the first time."""
    optimizer, clock = learner.updater.optimizer, list[float]()
    hooks = (
        optimizer.register_step_pre_hook(lambda *_: clock.append(time.process_time())),
        optimizer.register_step_post_hook(lambda *_: clock.append(time.process_time())),
    )
    seconds, _ = _timed(lambda: learner.update(batch, resolve("sft")))
    for hook in hooks:
        hook.remove()
    return max(seconds - sum(clock[1::2]) + sum(clock[::2]), 0.0)


def _affordable_tokens(num_parameters: int) -> int:
    """Tokens to learn from: a pass takes six operations per parameter and token, at thirty billion a second."""
    return max(64, min(TOKENS_OF_LEARNING, int(SECONDS_OF_WRITING * 3e10 / (6 * num_parameters))))


def _some_rows(rows: Sequence[tuple[list[int], list[bool]]], num_tokens: int) -> list[tuple[list[int], list[bool]]]:
    """Rows spread over all, of about so many tokens; few ones are taken more than once."""
    rows = list(rows) * max(num_tokens // max(sum(len(tokens) for tokens, _ in rows), 1), 1)
    total = sum(len(tokens) for tokens, _ in rows)
    every = max(-(-total // num_tokens), 1)
    return [(tokens[:num_tokens], mask[:num_tokens]) for tokens, mask in rows[::every]]


@contextlib.contextmanager
def _counting_saved(model: PreTrainedModel) -> Iterator[list[float]]:
    """Bytes that the forward pass keeps for the backward pass, weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen, total = set[int](), [0.0]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen | weights:
            seen.add(storage.data_ptr())
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def _wave_costs(wave_seconds: float, longest: int, num_tokens: int, narrow_step: float) -> tuple[float, float]:
    """Seconds of a step whatever its width, and of each token: what a wide and a narrow wave took, solved for both.

    >>> _wave_costs(4.0, 100, 3000, 0.014)    # 100 a + 3000 b = 4 and a + 4 b = 0.014
    (0.01, 0.001)
    """
    width = PROBE[0]
    token = (wave_seconds - longest * narrow_step) / max(num_tokens - longest * width, 1)
    token = min(max(token, 0.0), wave_seconds / max(num_tokens, 1), narrow_step / width)
    return round(max(narrow_step - width * token, 0.0), 9), round(token, 9)


def _process_bytes(model: PreTrainedModel) -> float:
    """The program with its libraries, but without the model, which is counted apart."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return max(peak - 5 * 4.0 * model.num_parameters(), 200.0 * 2**20)
