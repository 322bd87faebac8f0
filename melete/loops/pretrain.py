"""Next-token prediction on a generated corpus: how the bundled base was made.

Documents are drawn in pools, sorted by length and cut into batches of a fixed number of tokens, so that nothing is
padded for long, every document starts at position 0 and none sees another.
"""

from __future__ import annotations

import copy
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import cast

import torch
from torch import Tensor, distributed
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from melete.corpus.mix import PHASES, Document, documents
from melete.errors import RunError
from melete.models.moe import RouterBalancer
from melete.text.chat import pad_token

POOL_SIZE = 2048


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """Token counts include prompts; rates are per optimizer step; workers share `tokens_per_batch`."""

    seed: int = 0
    num_tokens: int = 30_000_000
    tokens_per_batch: int = 4096
    lr: float = 3e-3
    warmup_share: float = 0.01
    decay_share: float = 0.3
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    router_bias_rate: float = 0.001
    num_workers: int = 1


def encode_documents(tokenizer: PreTrainedTokenizerFast, batch: list[Document]) -> list[list[int]]:
    """One token list per document, in the chat format; plain prose has no turns."""
    fast, ids = tokenizer.backend_tokenizer, tokenizer.convert_tokens_to_ids
    bos, end, user, assistant = cast(list[int], ids(["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"]))
    prompts = fast.encode_batch_fast([d.prompt for d in batch])
    completions = fast.encode_batch_fast([d.completion for d in batch])
    return [
        [bos, user, *p.ids, assistant, *c.ids, end] if d.prompt else [bos, *c.ids, end]
        for d, p, c in zip(batch, prompts, completions, strict=True)
    ]


def token_batches(
    tokenizer: PreTrainedTokenizerFast, settings: PretrainSettings, rank: int, progress: Callable[[], float]
) -> Iterator[Tensor]:
    """Right-padded token batches [B, T] for one worker; `progress()`, the share of all tokens seen, picks the phase."""
    seed = settings.seed * settings.num_workers + rank
    generator = torch.Generator().manual_seed(seed)
    streams = [documents(seed, phase) for phase in PHASES]
    while True:
        stream = next(s for s, phase in zip(streams, PHASES, strict=True) if progress() <= phase.until)
        rows = encode_documents(tokenizer, [next(stream) for _ in range(POOL_SIZE)])
        rows.sort(key=len)
        batches = list(_cut(rows, settings.tokens_per_batch // settings.num_workers))
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield _pad(batches[index], pad_token(tokenizer))


def _cut(rows: list[list[int]], max_tokens: int) -> Iterator[list[list[int]]]:
    batch: list[list[int]] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row) > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _pad(rows: list[list[int]], pad_token_id: int) -> Tensor:
    padded = torch.full((len(rows), len(rows[-1])), pad_token_id)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row)
    return padded


def lr_factor(progress: float, settings: PretrainSettings) -> float:
    """Warm-up, constant, then linear to a hundredth over the last `decay_share`."""
    warm = min(1.0, progress / settings.warmup_share + 0.01)
    left = (1 - progress) / settings.decay_share
    return warm * max(0.01, min(1.0, left))


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    settings: PretrainSettings,
    on_step: Callable[[int, dict[str, float]], None],
    *,
    rank: int = 0,
) -> None:
    """Trains in place; `on_step(step, metrics)` hears of every step.

    With `num_workers > 1` every worker calls this inside one `torch.distributed` group, from equal weights.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=True
    )
    balancer = RouterBalancer(model, settings.router_bias_rate)
    model.train()
    seen, step = 0, 0
    pad = pad_token(tokenizer)
    for tokens in token_batches(tokenizer, settings, rank, lambda: seen / settings.num_tokens):  # noqa: B023 - the latest is meant
        started = time.perf_counter()
        progress = seen / settings.num_tokens
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * lr_factor(progress, settings)
        # right padding and causal attention: no real token ever sees a pad, so no mask is needed
        logits = model(input_ids=tokens).logits[:, :-1]
        targets = tokens[:, 1:].flatten()
        targets = targets.masked_fill(targets.eq(pad), -100)
        loss_sum = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum")
        loss_sum.backward()
        loss, num_tokens = _mean_over_workers(model, balancer, loss_sum.detach(), (targets != -100).sum())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        metrics = {"loss": loss, "grad_norm": norm.item(), "progress": progress, "lr": optimizer.param_groups[0]["lr"]}
        metrics |= balancer.step()
        seen, step = seen + num_tokens, step + 1
        on_step(step, metrics | {"tokens_per_second": num_tokens / (time.perf_counter() - started)})
        if seen >= settings.num_tokens:
            return


def _mean_over_workers(
    model: PreTrainedModel, balancer: RouterBalancer, loss_sum: Tensor, num_targets: Tensor
) -> tuple[float, int]:
    """Divides summed gradients by the targets of all workers; returns the mean loss and how many targets there were."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([loss_sum.view(1), num_targets.view(1).float(), *balancer.loads, *(g.flatten() for g in grads)])
    if distributed.is_initialized():
        distributed.all_reduce(flat)
    total, count, rest = flat[0], flat[1], flat[2:]
    for load in balancer.loads:
        load.copy_(rest[: load.numel()])
        rest = rest[load.numel() :]
    for grad in grads:
        grad.copy_(rest[: grad.numel()].view_as(grad) / count)
        rest = rest[grad.numel() :]
    return float(total / count), int(count)


def pretrain_with_workers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    settings: PretrainSettings,
    on_step: Callable[[int, dict[str, float]], None],
) -> None:
    """`pretrain` in `num_workers` processes of one thread each; this process is the first of them."""
    if settings.num_workers == 1:
        pretrain(model, tokenizer, settings, on_step)
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting_point = f"file://{folder}/meeting-point"
        context = torch.multiprocessing.get_context("spawn")
        workers = [
            context.Process(target=_worker, args=(rank, meeting_point, model, tokenizer, settings), daemon=True)
            for rank in range(1, settings.num_workers)
        ]
        for worker in workers:
            worker.start()
        try:
            _join(0, meeting_point, settings)
            pretrain(model, tokenizer, settings, on_step)
        except RuntimeError as error:  # of the connection to a worker that is no longer there
            if not (ended := num_ended(workers)):
                raise
            remedy = "see whether memory ran out; fewer num_workers need less. The same command makes the stage again"
            what = f"{ended} of {settings.num_workers} processes of the pre-training ended"
            raise RunError(what, place=f"num_workers = {settings.num_workers}", remedy=remedy) from error
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()
            for worker in workers:
                worker.terminate()


def num_ended(workers: Sequence[BaseProcess]) -> int:
    """How many of the processes have ended, a moment after one was missed."""
    closed = connection.wait([worker.sentinel for worker in workers], timeout=1.0)
    for worker in workers:
        if worker.sentinel in closed:
            worker.join()  # the system closes what a process had open a moment before it has ended
    return sum(not worker.is_alive() for worker in workers)


def _worker(
    rank: int,
    meeting_point: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    settings: PretrainSettings,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one decides when to stop
    _join(rank, meeting_point, settings)
    # spawn shares the parent's memory: without a copy both would step the same weights
    pretrain(copy.deepcopy(model), tokenizer, settings, lambda _step, _metrics: None, rank=rank)


def _join(rank: int, meeting_point: str, settings: PretrainSettings) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=settings.num_workers)
