"""What a recipe may say: a list of stages, each with its own settings, in TOML.

Every field carries its documentation below it; `--help`, the messages and the settings page are made from these lines.
Unknown keys are refused, and so are values that cannot work together, with the reason. Nothing here loads torch.

base.py         what every part is made of, and the tables that several stages share
pretrain.py     a base model from nothing
imitation.py    supervised fine-tuning, distillation
rewards.py      the parts of a reward
rl.py           reinforcement learning, and the comparison of its algorithms
curation.py     data out of samples and out of other data
writing.py      data without learning: written demonstrations, labels of safety
preferences.py  pairs, reward models, DPO and its family
evaluation.py   several models on several tasks
generation.py   samples of a model, all of them kept
replicate.py    another recipe with several seeds and arms
health.py       limits of the signs of ill health, and the check before training
recipe.py       the list of stages
"""

from melete.schema.base import (
    EvaluationSettings,
    Problem,
    Settings,
    Stage,
    TaskSettings,
    TrainingStage,
)
from melete.schema.curation import MixStage, ReadableSettings, RejectStage
from melete.schema.evaluation import EvaluateStage, ExamTask
from melete.schema.generation import GenerateStage
from melete.schema.health import HealthSettings, SupportSettings
from melete.schema.imitation import DistillStage, SFTStage
from melete.schema.preferences import PairsStage, PreferenceStage, RewardModelStage
from melete.schema.pretrain import PretrainStage
from melete.schema.recipe import STAGE_KINDS, AnyStage, Recipe
from melete.schema.replicate import Arm, ReplicateStage
from melete.schema.rewards import JudgePart, RewardModelPart, RewardPartSettings
from melete.schema.rl import CompareStage, CriticSettings, LateTask, RLStage
from melete.schema.writing import LabelsStage, WriteStage

__all__ = [
    "STAGE_KINDS",
    "AnyStage",
    "Arm",
    "CompareStage",
    "CriticSettings",
    "DistillStage",
    "EvaluateStage",
    "EvaluationSettings",
    "ExamTask",
    "GenerateStage",
    "HealthSettings",
    "JudgePart",
    "LabelsStage",
    "LateTask",
    "MixStage",
    "PairsStage",
    "PreferenceStage",
    "PretrainStage",
    "Problem",
    "RLStage",
    "ReadableSettings",
    "Recipe",
    "RejectStage",
    "ReplicateStage",
    "RewardModelPart",
    "RewardModelStage",
    "RewardPartSettings",
    "SFTStage",
    "Settings",
    "Stage",
    "SupportSettings",
    "TaskSettings",
    "TrainingStage",
    "WriteStage",
]
