"""Random numbers that belong to a rollout and a position."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from melete.sampling.keys import rollout_key, uniforms

KEY = 2282290377224150739
NUMBERS = [0.8914955450990603, 0.0478176204617099, 0.3606375009593753]


def numbers(keys: list[int], positions: list[int]) -> np.ndarray:
    return uniforms(np.array(keys, dtype=np.uint64), np.array(positions, dtype=np.uint64))


def test_a_key_is_the_same_on_every_machine_and_in_every_version() -> None:
    """A changed value would break the continuation of every run that was begun before."""
    assert rollout_key(0, "rl", 3, "arithmetic_chain/7", 2) == KEY
    assert numbers([KEY, KEY, 1], [0, 1, 0]).tolist() == NUMBERS


def test_every_part_of_a_key_counts_and_so_does_its_type() -> None:
    base = (0, "rl", 3, "p/7", 2)
    others = [
        (1, *base[1:]),
        (0, "eval", *base[2:]),
        (*base[:2], 4, *base[3:]),
        (*base[:4], 3),
        (0, "rl", "3", "p/7", 2),
    ]
    assert len({rollout_key(*parts) for parts in [base, *others]}) == 6
    assert rollout_key("a", "b") != rollout_key("ab")


@given(
    key=st.integers(0, 2**63 - 1),
    position=st.integers(0, 10**6),
    others=st.lists(st.integers(0, 2**63 - 1), max_size=4),
)
def test_a_number_depends_on_its_own_key_and_position_only(key: int, position: int, others: list[int]) -> None:
    together = numbers([*others, key], [*range(len(others)), position])
    assert together[-1] == numbers([key], [position])[0]
    assert ((together >= 0) & (together < 1)).all()


def test_numbers_are_spread_evenly_and_neighbours_are_not_alike() -> None:
    """Neighbouring keys and neighbouring positions: mean, variance and correlation within four standard errors."""
    num = 20_000
    for keys, positions in ((range(num), [5] * num), ([5] * num, range(num))):
        drawn = numbers(list(keys), list(positions))
        assert abs(drawn.mean() - 0.5) < 4 * np.sqrt(1 / 12 / num)
        assert abs(drawn.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / num)
        assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 4 / np.sqrt(num)
        assert len(set(drawn)) == num
