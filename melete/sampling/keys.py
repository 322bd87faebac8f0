"""Random numbers that belong to what they are for: a rollout's key and a token's position, nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 63) - 1


def rollout_key(*parts: int | str) -> int:
    """A 63-bit key of (run seed, stage, step, problem, sibling) or the like, the same on every machine.

    >>> rollout_key(0, "rl", 3) == rollout_key(0, "rl", 3), rollout_key(0, "rl", 3) == rollout_key(0, "rl", 4)
    (True, False)
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") & _MASK


def uniforms(keys: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One number in [0, 1) for each key and position: the finaliser of SplitMix64 (Steele et al. 2014), twice."""
    with np.errstate(over="ignore"):
        mixed = _mix(keys + np.uint64(0x9E3779B97F4A7C15) * (positions + np.uint64(1)))
        mixed = _mix(mixed ^ keys)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
