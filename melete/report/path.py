"""The path of a run: its stages as a graph, with what each did in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from melete.report.exam import Checkpoint, exam_of
from melete.report.files import Row, RunFiles
from melete.report.measures import cell, minutes
from melete.report.rails import Node, RailRow, draw_row, lay, width
from melete.report.words import KINDS, join, sentence

LEAST_STAGES = 3
MAKES: Mapping[str, str] = {"reward_model": "reward model"} | {
    kind: "data" for kind in ("reject", "generate", "mix", "write", "pairs", "labels")
} | {kind: "nothing" for kind in ("evaluate", "compare", "replicate")}  # fmt: skip
_MODEL_KEYS = ("model", "teacher", "reference", "reward_model", "step_rewards")
_NO_MODEL = ("", "start", "none", "task")  # what some of these settings may say instead
LEGEND = (("model", "a model"), ("data", "data"), ("reward-model", "a reward model"), ("nothing", "a measurement"))


def content(files: RunFiles) -> dict[str, Any] | None:
    """The rows of the drawing, for a run of several stages."""
    if len(files.planned()) < LEAST_STAGES:
        return None
    nodes = list(nodes_of(files))
    rows = lay(nodes)
    total = width(rows)
    exam = exam_of(files)
    found = {one.model: one for one in exam.checkpoints} if exam else {}
    made = {node.makes.replace(" ", "-") for node in nodes}
    return {
        "rows": [_row(files, row, total, found.get(row.node.name), exam.main if exam else "") for row in rows],
        "legend": [(style, words) for style, words in LEGEND if style in made],
        "width": total,
        "both_ways": {"sft", "rl"} <= {stage.get("kind") for stage in files.planned()},
    }


def nodes_of(files: RunFiles) -> Iterator[Node]:
    """Stages in their order, and before its first reader each model that no stage made."""
    stages = {stage["name"] for stage in files.planned()}
    seen: set[str] = set()
    for stage in files.planned():
        # an exam reads nearly everything, and no later stage reads what it found
        models, data = ([], []) if stage.get("kind") == "evaluate" else (models_read(stage), data_read(stage))
        for model in models:
            if model not in stages | seen:
                seen.add(model)
                yield Node(model, "model", [])
        makes = MAKES.get(str(stage.get("kind")), "model")
        reads = [*models, *(name for name in data if name in stages)]
        yield Node(stage["name"], makes, reads, str(stage.get("model", "")))


def models_read(stage: Row) -> list[str]:
    """Names of the models that a stage reads, each once; a judge behind an address is none of them."""
    judges = [stage.get("judge") or {}, *(stage.get("reward_judges") or {}).values()]
    parts = [*(stage.get("reward_models") or {}).values(), stage.get("critic") or {}]
    parts += [judge for judge in judges if not judge.get("base_url")]
    found = [*(stage.get(key) for key in _MODEL_KEYS), *(part.get("model") for part in parts)]
    return list(dict.fromkeys(name for name in found if isinstance(name, str) and name not in _NO_MODEL))


def data_read(stage: Row) -> list[str]:
    """Names of the data sets that a stage reads."""
    parts = stage.get("parts") or {}
    found = [stage.get("data"), *(stage.get("replay") or ()), *(parts if stage.get("kind") == "mix" else ())]
    return [name for name in found if name]


def _row(files: RunFiles, row: RailRow, total: int, checkpoint: Checkpoint | None, task: str) -> dict[str, Any]:
    name = row.node.name
    settings, entry = files.settings(name), files.entry(name)
    label = files.label(name)
    given = not settings
    waits = not given and not entry
    return {
        "name": name,
        "label": label,
        "other_name": name if label != name else "",
        "kind": "given" if given else KINDS.get(str(settings.get("kind")), str(settings.get("kind"))),
        "says": _given(checkpoint) if given else "" if waits else sentence(files, settings),
        "reads": join([files.label(one) for one in row.node.reads]),
        "time": minutes(entry.get("seconds")),
        "right": _right(checkpoint, task),
        "waits": _progress(files, settings) if waits else "",
        "rails": draw_row(row, total),
    }


def _progress(files: RunFiles, settings: Row) -> str:
    """How far a stage has come that has not finished."""
    steps = files.steps(settings["name"])
    if not steps:
        return "not done yet"
    of = f" of {settings['num_steps']}" if settings.get("num_steps") else ""
    return f"under way: {len(steps)}{of} steps"


def _given(checkpoint: Checkpoint | None) -> str:
    num_parameters = checkpoint.num_parameters if checkpoint else None
    size = f" of {num_parameters / 1e6:.3g} million parameters" if num_parameters else ""
    return f"A model{size} that was there before this run."


def _right(checkpoint: Checkpoint | None, task: str) -> dict[str, Any] | None:
    share = checkpoint.on(task).get("pass@1") if checkpoint else None
    if checkpoint is None or share is None:
        return None
    return {"says": f"{cell(checkpoint.on(task), 'pass@1')} right on {task}", "width": round(100 * share, 1)}
