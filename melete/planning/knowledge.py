"""The facts that a recipe's estimates need: read from what is kept, and measured where something is missing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from melete.models.places import resolve_model
from melete.planning import kept
from melete.planning.estimate import OPTIMIZER_COPIES, Facts, Lengths, Speed
from melete.planning.graph import Graph, Text
from melete.planning.machine import Machine, fingerprint
from melete.planning.sizes import FLOAT, Size, content_key, size_of
from melete.planning.work import Work

Needs = dict[str, dict[Text, int]]


@dataclass(slots=True)
class Knowledge:
    """What is known so far of the models on disk, by their names in the recipe; asked again, nothing is read twice."""

    machine: Machine
    folder: Path = field(default_factory=kept.directory)
    may_measure: bool = True
    seconds: float = 0.0
    """What the measuring took."""
    sizes: dict[str, Size] = field(default_factory=dict)
    speeds: dict[str, Speed] = field(default_factory=dict)
    lengths: dict[tuple[str, str], Lengths] = field(default_factory=dict)
    why_not: dict[str, str] = field(default_factory=dict)

    def facts(self, graph: Graph, works: Mapping[str, Work]) -> Facts:
        """What the estimates of these stages need, as far as it can be known."""
        needs, learners = needs_of(graph, works)
        for origin, texts in needs.items():
            stage = graph.stages[origin] if graph.is_new(origin) else None
            self._learn_about(origin, stage, texts, learns=origin in learners)
        return Facts(graph.origin, self.sizes, self.speeds, self.lengths, self.why_not, self.machine.num_cores)

    def _learn_about(self, origin: str, stage: Any, texts: Mapping[Text, int], *, learns: bool) -> None:
        try:
            source, key, size = _new_model(stage) if stage is not None else _on_disk(origin)
            if size is not None:
                self.sizes[origin] = size
            known = kept.read(self.folder, f"{key}-{fingerprint()}")
            missing = {text: limit for text, limit in texts.items() if not known.is_enough(text.key, limit)}
            if (missing or known.speed is None) and self.may_measure:
                self._refuse_if_too_large(origin, size, learns=learns)
                known = self._measured(source, missing, known)
                kept.write(self.folder, f"{key}-{fingerprint()}", known)
            self._take(origin, known, size)
        except Exception as error:  # an estimate never stops a run: the stage says why it has none
            self.why_not[origin] = f"{origin}: {error}"

    def _refuse_if_too_large(self, origin: str, size: Size | None, *, learns: bool) -> None:
        if size is None or self.machine.free_memory is None:
            return
        weights = FLOAT * size.num_parameters * (1 + OPTIMIZER_COPIES if learns else 1)
        if weights > self.machine.free_memory:
            raise MemoryError("too large for this machine, so its speed was not measured")

    def _measured(self, source: Any, missing: Mapping[Text, int], known: kept.Kept) -> kept.Kept:
        from melete.planning.measure import NewModel, measure  # torch, only when there is something to measure

        started = time.perf_counter()
        found = measure(NewModel(*source) if isinstance(source, tuple) else source, missing, speed=known.speed)
        self.seconds += time.perf_counter() - started
        self.why_not |= found.failed
        limits = {text.key: limit for text, limit in missing.items()}
        return kept.Kept(
            found.num_parameters, found.speed, {**known.lengths, **found.lengths}, {**known.asked, **limits}
        )

    def _take(self, origin: str, known: kept.Kept, size: Size | None) -> None:
        if known.speed is not None:
            self.speeds[origin] = known.speed
        self.lengths |= {(origin, key): lengths for key, lengths in known.lengths.items()}
        if size is not None and known.num_parameters:
            self.sizes[origin] = replace(size, num_parameters=known.num_parameters)


def needs_of(graph: Graph, works: Mapping[str, Work]) -> tuple[Needs, set[str]]:
    """For each model on disk the texts whose length is asked for, with the longest limit; and those that learn."""
    needs: Needs = {}
    learners = set[str]()
    for work in works.values():
        for held in work.held:
            needs.setdefault(graph.origin(held.model), {})
            learners |= {graph.origin(held.model)} if held.learns else set()
        for model, text, limit in work.needs():
            texts = needs.setdefault(graph.origin(model), {})
            texts[text] = max(limit, texts.get(text, 0))
    return needs, learners


def _on_disk(name: str) -> tuple[Path, str, Size]:
    path = resolve_model(name)
    return path, content_key(path), size_of(path)


def _new_model(stage: Any) -> tuple[tuple[str, int, int], str, Size]:
    """A model that is not there yet: its shape decides how fast it is."""
    shape = (stage.architecture, stage.hidden_size, stage.num_layers)
    key = hashlib.sha256(repr(shape).encode()).hexdigest()[:24]
    per_layer = (12 if stage.architecture != "deepseek_v3" else 16) * stage.hidden_size**2
    size = Size(
        num_parameters=stage.num_layers * per_layer + stage.vocab_size * stage.hidden_size,
        cache_bytes=FLOAT * stage.num_layers * 2 * stage.hidden_size,
        vocab_size=stage.vocab_size,
        activation_bytes=FLOAT * (20 * stage.num_layers * stage.hidden_size + 4 * stage.vocab_size),
    )
    return shape, f"new-{key}", size
