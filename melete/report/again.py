"""How to do it again: command, versions, machine, recipe; and the words of the report."""

from __future__ import annotations

import json
from typing import Any

from melete.report.charts import number
from melete.report.files import RunFiles
from melete.report.measures import minutes
from melete.report.path import LEAST_STAGES

_WORDS = (
    ("checkpoint", "A model as it was at one point of its training.", "exam"),
    ("rollout", "One answer that a model wrote by itself while it was trained.", "rl"),
    ("reward", "A number that says how good a rollout is, given by a rule or by another model.", "rl"),
    ("GRPO", "Several rollouts for one problem; those above the mean become more likely, those below less.", "rl"),
    ("SFT", "Supervised fine-tuning: learning to write as the examples do, token by token.", "sft"),
    ("rejection sampling", "Letting a model answer often and keeping only what is right and readable.", "reject"),
    ("reward model", "A model that scores answers, learned from examples of better and worse.", "reward_model"),
    ("distillation", "A smaller model learns from what a larger one has written.", "students"),
    ("pass@1", "The share of single attempts that are right, averaged over problems.", ""),
    ("pass@k", "The chance that at least one of k attempts is right.", ""),
    ("maj@k", "The chance that the most frequent answer among k attempts is right.", ""),
    ("held-out problems", "Problems set apart: this training uses none of them.", ""),
    ("token", "A piece of text, about a short word or a number of two digits.", ""),
    ("group", "The attempts at one problem in one step; each is compared with the others.", "rl compare"),
    ("advantage", "How much better an attempt did than its group. It decides what becomes more likely.", "rl compare"),
    ("KL", "How far two models are apart in what they would write next; 0 when they agree.", "rl"),
    ("entropy", "How undecided a model is about its next token; 0 when it always writes the same.", "rl"),
    ("standard error", "How far a measured mean may be off by chance; three of them are hardly ever chance.", ""),
)


def content(files: RunFiles) -> dict[str, Any]:
    """What is needed to run it once more."""
    summary = files.summary
    facts = [("seed", summary.get("seed")), ("started", summary.get("started"))]
    if summary.get("seconds") is not None:
        facts.append(("took", f"{number(summary['seconds'] / 60)} minutes"))
    if len(files.planned()) < LEAST_STAGES:  # else they have a section of their own
        facts += [(f"stage {entry['name']}", minutes(entry.get("seconds"))) for entry in files.entries]
    facts += sorted((summary.get("hardware") or {}).items()) + sorted((summary.get("versions") or {}).items())
    return {
        "command": summary.get("command", ""),
        "facts": [(name, value) for name, value in facts if value not in (None, "")],
        "recipe": json.dumps(files.recipe, indent=2, sort_keys=True, ensure_ascii=False),
    }


def glossary(files: RunFiles) -> dict[str, Any]:
    """The words that this report uses, explained."""
    kinds = {str(stage.get("kind")) for stage in files.planned()}
    if "evaluate" in kinds:
        kinds |= {"exam", "students"}
    # a run of runs may have stages of any kind
    known = [(word, said) for word, said, needs in _WORDS if not needs or kinds & {"replicate", *needs.split()}]
    return {"words": known}
