"""What a rule says at one step, and how bad it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["note", "warning", "serious"]
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "serious")

NEARLY_ALWAYS_RIGHT = 0.9  # accuracy that has no need to rise any more
LEAST_GAIN = 0.02  # a smaller rise of a share is none
BEST_OF_MANY = 3.0  # standard errors asked for where the best of several windows is compared: it is partly luck


@dataclass(frozen=True, slots=True)
class Sign:
    """What a rule has to say at one step. `value` is beyond `limit`."""

    severity: Severity
    value: float
    limit: float
    says: str
    cause: str
    remedy: str


def high(
    value: float, limits: list[float], levels: tuple[Severity, Severity] = ("warning", "serious")
) -> tuple[Severity, float, float] | None:
    """Severity, value and the limit that was passed; None within the limits.

    >>> high(0.6, [0.5, 0.9]), high(0.95, [0.5, 0.9]), high(0.5, [0.5, 0.9])
    (('warning', 0.6, 0.5), ('serious', 0.95, 0.9), None)
    """
    if value > limits[1]:
        return levels[1], value, limits[1]
    return (levels[0], value, limits[0]) if value > limits[0] else None


def low(value: float, limits: list[float]) -> tuple[Severity, float, float] | None:
    """The same where a low number is bad."""
    if value < limits[1]:
        return "serious", value, limits[1]
    return ("warning", value, limits[0]) if value < limits[0] else None
