"""A recipe: a named list of stages."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import Field

from melete.schema.base import Name, Seed, Settings, Stage
from melete.schema.curation import MixStage, RejectStage
from melete.schema.evaluation import EvaluateStage
from melete.schema.generation import GenerateStage
from melete.schema.imitation import DistillStage, SFTStage
from melete.schema.preferences import PairsStage, PreferenceStage, RewardModelStage
from melete.schema.pretrain import PretrainStage
from melete.schema.replicate import ReplicateStage
from melete.schema.rl import CompareStage, RLStage
from melete.schema.writing import LabelsStage, WriteStage

AnyStage: TypeAlias = Annotated[
    PretrainStage
    | SFTStage
    | RLStage
    | CompareStage
    | PairsStage
    | RewardModelStage
    | PreferenceStage
    | DistillStage
    | WriteStage
    | LabelsStage
    | RejectStage
    | MixStage
    | EvaluateStage
    | GenerateStage
    | ReplicateStage,
    Field(discriminator="kind"),
]
STAGE_KINDS: dict[str, type[Stage]] = {
    "pretrain": PretrainStage,
    "sft": SFTStage,
    "rl": RLStage,
    "compare": CompareStage,
    "pairs": PairsStage,
    "reward_model": RewardModelStage,
    "preference": PreferenceStage,
    "distill": DistillStage,
    "write": WriteStage,
    "labels": LabelsStage,
    "reject": RejectStage,
    "mix": MixStage,
    "evaluate": EvaluateStage,
    "generate": GenerateStage,
    "replicate": ReplicateStage,
}


class Recipe(Settings):
    """A named list of stages, run in order."""

    name: Name
    """What the recipe and, unless told otherwise, its run directory are called."""
    description: str = ""
    """One line for the list of recipes."""
    seed: Seed = 0
    """Every random choice of the run follows from it."""
    stages: Annotated[list[AnyStage], Field(alias="stage", min_length=1)]
    """The stages; each is a [[stage]] table."""

    def as_dict(self) -> dict[str, Any]:
        """Every setting, defaults included, as TOML or JSON would hold it; reading it back gives the same recipe."""
        return self.model_dump(mode="json", by_alias=True)
