"""Settings of stages that learn from a data set: which columns, which part, how long a row may be."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator

from melete.schema.base import CountOrNone, Settings
from melete.suggest import did_you_mean

ROLES = (
    *("prompt", "completion", "messages", "conversations", "instruction", "input", "output", "system", "chosen"),
    *("rejected", "margin", "label", "completions", "steps", "labels", "id"),
)


def _known(columns: dict[str, str]) -> dict[str, str]:
    wrong = [f"{role}: is no role; {did_you_mean(role, ROLES)}" for role in columns if role not in ROLES]
    if wrong:
        raise ValueError("\n".join(wrong))
    return columns


class DataSettings(Settings):
    """How a data set is read."""

    columns: Annotated[dict[str, str], AfterValidator(_known)] = {}
    """Columns of other names: prompt, completion, messages, system, chosen, rejected, label, completions, steps,
    labels, margin or id, each with the name that it has in the data."""
    part: str = ""
    """The part of a directory of the library `datasets` that is read, such as train."""
    max_tokens: CountOrNone = 0
    """Longest row, prompt and completion, in tokens; 0 for what the model reads."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """What happens to longer rows."""
