"""Plain data as bytes: what comes back is what went in, and nothing else can come back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.sandbox.wire import MAX_DEPTH, NotPlain, decode, encode

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters(), max_size=5)
    | st.binary(max_size=5)
)
KEYS = LEAVES | st.tuples(LEAVES) | st.frozensets(LEAVES, max_size=2)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.sets(KEYS, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=100)
@given(VALUES)
def test_a_value_comes_back_with_its_types(value: object):
    assert repr(decode(encode(value))) == repr(value) or decode(encode(value)) == value


@settings(max_examples=100)
@given(st.binary(max_size=40))
def test_any_bytes_are_plain_data_or_refused(data: bytes):
    try:
        value = decode(data)
    except NotPlain:
        return
    encode(value)


def test_numbers_that_are_not_finite_come_back():
    assert math.isnan(decode(encode(math.nan)))  # type: ignore[arg-type]
    assert decode(encode([math.inf, -math.inf])) == [math.inf, -math.inf]


def test_a_subclass_becomes_the_plain_type():
    class Number(int):
        pass

    class Mapping(dict):
        def items(self):
            return [("other", 1)]

    assert type(decode(encode(Number(3)))) is int
    assert decode(encode(Mapping(a=1))) == {"a": 1}


@pytest.mark.parametrize("value", [object(), print, len, (x for x in ()), range(3), [object()], {1: print}])
def test_other_values_are_refused(value: object):
    with pytest.raises(NotPlain):
        encode(value)


def test_nesting_is_bounded_both_ways():
    value: list[object] = []
    for _ in range(MAX_DEPTH + 1):
        value = [value]
    with pytest.raises(NotPlain):
        encode(value)
    with pytest.raises(NotPlain):
        decode(b"l1;" * 10**5 + b"N")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"l2;N",
        b"l999999999999;",
        b"s-1;",
        b"s5;abc",
        b"i;",
        b"izz;",
        b"f1.0",
        b"NN",
        b"d1;l0;N",
        b"e1;l0;",
        b"c1;",
    ],
)
def test_what_encode_does_not_write_is_refused(data: bytes):
    with pytest.raises(NotPlain):
        decode(data)


def test_types_can_be_narrowed():
    assert decode(encode({"a": [1]}), b"dli", b"s") == {"a": [1]}
    for value in ({1: 1}, {"a": {2}}):
        with pytest.raises(NotPlain):
            decode(encode(value), b"dlis", b"s")
