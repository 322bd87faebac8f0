"""A stage that trains: its checkpoints, evaluations and rows of the run's files, whatever it trains."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from melete.evaluation.evaluate import EvaluationResult
from melete.evaluation.held_out import HeldOut
from melete.evaluation.transcripts import choose_transcripts
from melete.health import Watch
from melete.learning.updater import OneModel
from melete.loops.passes import OnStep
from melete.runs.checkpoints import latest_checkpoint, save_checkpoint
from melete.sampling.protocol import Sampler
from melete.schema import EvaluationSettings, TrainingStage
from melete.stages.context import Interrupted, StageContext


class Stateful(Protocol):
    """Something whose state a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Training:
    """Keeps the record of a stage and saves it in time; `parts` are what a checkpoint holds, by name.

    A stage that was cut off continues from its last checkpoint with the same result as if it had not been. `extra` is a
    JSON state of the loop's own that goes with the last step.
    """

    def __init__(
        self,
        stage: TrainingStage,
        context: StageContext,
        *,
        num_steps: int,
        parts: Mapping[str, Stateful],
        held_out: HeldOut | None = None,
        evaluation: EvaluationSettings | None = None,
    ) -> None:
        self.stage, self.context, self.num_steps, self.parts = stage, context, num_steps, parts
        self.held_out, self.evaluation = held_out, evaluation if held_out else None
        self.directory = context.run.checkpoints / stage.name
        self.extra: dict[str, Any] = {}
        # findings are about reinforcement learning: only its stages have limits for them
        self.watch = Watch(stage.model_dump(mode="json")) if hasattr(stage, "health") else None
        self.seconds_before = 0.0
        self.started = time.perf_counter()

    def resume(self) -> int:
        """Goes back to the last checkpoint, if there is one; returns the first step to do."""
        name, view = self.stage.name, self.context.view
        checkpoint = latest_checkpoint(self.directory, view.message)
        if checkpoint is None:
            self.context.run.truncate_metrics(name, 0)
            start = 0
        else:
            for part, learner in self.parts.items():
                learner.load_state_dict(checkpoint.tensors[part])
            self.context.run.rewind(name, checkpoint.state["marks"])
            self.seconds_before = checkpoint.state["seconds"]
            self.extra = checkpoint.state["extra"]
            start = checkpoint.step
            for row in self.context.run.metrics() if self.watch else ():
                if self.watch and row.get("stage") == name:
                    self.watch.feed(row)  # what it finds has been said
            view.message(f"{name}: continues at step {start} of {self.num_steps}")
        view.stage_started(name, self.num_steps)
        return start

    def segments(self, start: int) -> Iterator[tuple[int, int]]:
        """The spans of steps still to do, from one full evaluation to the next; makes the evaluations between them."""
        at = self.evaluation.at if self.evaluation else []
        points = sorted({round(share * self.num_steps) for share in at})
        for point, following in zip([-1, *points], [*points, self.num_steps], strict=True):
            if point >= 0:
                self._evaluate(point, is_new=start <= point)
            if max(start, point) < following:
                yield max(start, point), following

    def _evaluate(self, step: int, *, is_new: bool) -> None:
        assert self.held_out is not None
        result = self.held_out.evaluate(step, may_sample=is_new)
        if is_new:  # else an earlier process logged it
            row = {"stage": self.stage.name, "step": step, "kind": "evaluation", "label": self._label(step)}
            self._log(row | result.row())
        self.context.view.step(self.stage.name, step, result.row(), None)

    def _label(self, step: int) -> str:
        return {0: "base", self.num_steps: "final"}.get(step, "midway")

    def step_done(
        self,
        number: int,
        metrics: Mapping[str, float],
        timings: Mapping[str, float],
        *,
        rollouts: Iterable[Mapping[str, Any]] = (),
        shown: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Records step `number`, evaluates and saves where it is time; raises `Interrupted` when asked to stop."""
        run, name, done = self.context.run, self.stage.name, number + 1
        self._log({"stage": name, "step": number, **metrics})
        run.log_timings({"stage": name, "step": number, **timings})
        run.log_rollouts(rollouts)
        self.extra = dict(extra or {})
        self.context.view.step(name, number, {**metrics, **timings}, shown)
        every = self.evaluation.quick_every_steps if self.evaluation else 0
        if self.held_out and self.evaluation and every and done % every == 0 and done < self.num_steps:
            quick = self.held_out.quick(self.evaluation.quick_num_problems)
            self._log({"stage": name, "step": done, "kind": "quick_evaluation", **quick})
            self.context.view.step(name, done, quick, None)
        stop = self.context.should_stop()
        due = self.stage.checkpoint_every_steps and done % self.stage.checkpoint_every_steps == 0
        if stop or due or done == self.num_steps:
            self._save(done)
        if stop:
            raise Interrupted

    def _log(self, row: Mapping[str, Any]) -> None:
        """A row of `metrics.jsonl`; says what it tells about the run's health, unless that is a note only."""
        self.context.run.log_metrics(row)
        for finding in self.watch.feed(row) if self.watch else ():
            if finding.severity != "note":
                self.context.view.message(finding.line())

    def pushing(self, sampler: Sampler, learner: OneModel) -> OnStep:
        """`step_done` that hands the sampler the new weights first, for evaluations between the steps."""

        def on_step(step: int, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
            sampler.load_weights(learner.weights(), version=step + 1)
            self.step_done(step, metrics, timings)

        return on_step

    def _save(self, done: int) -> None:
        seconds = self.seconds_before + time.perf_counter() - self.started
        state = {"marks": self.context.run.marks(self.stage.name), "seconds": seconds, "extra": self.extra}
        tensors = {name: part.state_dict() for name, part in self.parts.items()}
        save_checkpoint(self.directory, done, tensors, state)

    def entry(self, **more: Any) -> dict[str, Any]:
        """The stage's entry of `summary.json`, with transcripts of the same problems before and after."""
        results: dict[int, EvaluationResult] = self.held_out.results if self.held_out else {}
        evaluations = [
            {"label": self._label(step), "step": step, **result.summary()} for step, result in results.items()
        ]
        ordered = list(results.values())
        transcripts = choose_transcripts(ordered[0], ordered[-1]) if len(ordered) > 1 else []
        return {
            "name": self.stage.name,
            "kind": getattr(self.stage, "kind", ""),
            "seconds": self.seconds_before + time.perf_counter() - self.started,
            "model": f"models/{self.stage.name}",
            "evaluations": evaluations,
            "transcripts": transcripts,
            **({"health": [finding.as_dict() for finding in self.watch.findings()]} if self.watch else {}),
            **more,
        }
