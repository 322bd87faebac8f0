"""Settings of the stage that repeats another recipe with several seeds and arms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from melete.schema.base import Count, Name, Problem, Seed, Settings, Stage

MAIN = "main"
RECIPES = Path(__file__).parents[1] / "recipes"


class Arm(Settings):
    """The recipe with some settings changed, once for each seed; what they do not change is taken from the main run."""

    overrides: Annotated[list[str], Field(min_length=1)]
    """Settings that differ, as --set takes them: "zero.rewards={ random = 1.0 }"."""
    until: str = ""
    """The last stage that matters: only it, what it reads and its exam are run; empty for all."""


class ReplicateStage(Stage):
    """Runs another recipe with several seeds and arms, and judges the claims about it."""

    kind: Literal["replicate"]
    """The kind of stage."""
    recipe: Annotated[str, Field(min_length=1)]
    """The recipe: a bundled name, or the path of a .toml file."""
    overrides: list[str] = []
    """Settings that differ in all runs, as --set takes them."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1, 2]
    """The recipe and its arms are run once with each seed."""
    arms: dict[Name, Arm] = {}
    """Tables [stage.arms.NAME]: the recipe with some settings changed."""
    num_workers: Count = 2
    """Processes that work at the same time, one thread each."""

    def problems(self) -> Iterator[Problem]:
        if repeated := [str(seed) for seed, count in Counter(self.seeds).items() if count > 1]:
            yield "seeds", f"{', '.join(repeated)} comes more than once"
        if MAIN in self.arms:
            yield f"arms.{MAIN}", "is what the recipe itself is called; choose another name"
        for key, overrides in {
            "": self.overrides,
            **{f"arms.{name}.": arm.overrides for name, arm in self.arms.items()},
        }.items():
            if any(override.partition("=")[0].strip() == "seed" for override in overrides):
                yield f"{key}overrides", "sets the seed; seeds does that"

    def reads_files(self) -> dict[str, Path]:
        """Files outside the run that decide what is made, by the name they have in the recipe."""
        bundled = RECIPES / f"{self.recipe}.toml"
        return {self.recipe: bundled if bundled.is_file() else Path(self.recipe)}

    def plan(self) -> str:
        seeds = f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else f"seed {self.seeds[0]}"
        arms = f", each also with {', '.join(self.arms)}" if self.arms else ""
        return f"{self.recipe} with {seeds}{arms}; then what they say about the claims"
