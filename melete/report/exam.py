"""The checkpoints of a run that were examined together: which is the base, which the last, which are students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from melete.report.files import Row, RunFiles


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model and what it did on each task; `root` is the model that its training began with."""

    model: str
    label: str
    num_parameters: int | None
    root: str
    tasks: Mapping[str, Row]

    @property
    def called(self) -> str:
        """Its label inside a sentence."""
        return f"the {self.label}" if self.label == "base" else self.label

    def on(self, task: str) -> Row:
        """Its evaluation on a task, empty where there is none."""
        return self.tasks.get(task, {})


@dataclass(frozen=True, slots=True)
class Exam:
    """All checkpoints of one `evaluate` stage, in its order, and its tasks, the main one first."""

    name: str
    checkpoints: Sequence[Checkpoint]
    tasks: Sequence[str]
    same_prompts: Sequence[Row]
    last: str = ""
    """The model at the end of the story, if the recipe says which."""

    @property
    def main(self) -> str:
        return self.tasks[0]

    @property
    def general(self) -> str:
        """The task of everyday requests, which are of different kinds; empty where there is none."""
        with_kinds = {prompt["task"] for prompt in self.same_prompts if prompt.get("kind")}
        with_kinds |= {task for task in self.tasks for one in self.checkpoints if one.on(task).get("by_kind")}
        return next((task for task in self.tasks if task in with_kinds), "")

    @property
    def language(self) -> str:
        """The task in which languages are mixed most; empty where that was not measured."""
        shares = {t: [c.on(t).get("language_share") for c in self.checkpoints] for t in self.tasks}
        known = {task: [s for s in found if s is not None] for task, found in shares.items()}
        return min((task for task in self.tasks if known[task]), key=lambda task: min(known[task]), default="")

    @property
    def base(self) -> Checkpoint:
        return self.checkpoints[0]

    @property
    def line(self) -> Sequence[Checkpoint]:
        """The base and all that was made from it."""
        return [one for one in self.checkpoints if one.root == self.base.root]

    @property
    def final(self) -> Checkpoint:
        return next((one for one in self.line if one.model == self.last), self.line[-1])

    @property
    def milestones(self) -> Sequence[Checkpoint]:
        """The base, the first model made from it, and the last."""
        chosen = [self.line[0], *self.line[1:2], self.final]
        return list({one.model: one for one in chosen}.values())

    @property
    def students(self) -> Mapping[str, Sequence[Checkpoint]]:
        """Other models, each with what was made from it, by the model that they began with."""
        roots = dict.fromkeys(one.root for one in self.checkpoints if one.root != self.base.root)
        return {root: [one for one in self.checkpoints if one.root == root] for root in roots}


def exam_of(files: RunFiles) -> Exam | None:
    """The last exam of a run, if there is one."""
    entry = next((e for e in reversed(files.entries) if e.get("checkpoints")), None)
    if entry is None:
        return None
    found = [
        Checkpoint(
            one["model"],
            one.get("label") or one["model"],
            one.get("num_parameters"),
            files.root(one["model"]),
            one.get("tasks", {}),
        )
        for one in entry["checkpoints"]
    ]
    prompts = entry.get("same_prompts") or ()
    # these are in the order of the recipe, and JSON objects in that of the alphabet
    known = list(dict.fromkeys(task for one in found for task in one.tasks))
    tasks = list(dict.fromkeys([*(prompt["task"] for prompt in prompts if prompt["task"] in known), *known]))
    last = files.settings(entry["name"]).get("final") or ""
    return Exam(entry["name"], found, tasks, prompts, last) if tasks else None
