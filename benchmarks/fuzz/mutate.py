"""What is done to good input: values replaced, keys misspelt, dropped or moved, bytes changed."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

ODD_TEXTS = (
    *("", " ", "\n", "\x00", "\x1b[31m", "../../etc/passwd", "/dev/null", "/", "-1", "1e999", "nan", "None", "true"),
    *("<script>alert(1)</script>", "{{ 7*7 }}", "{% raw %}", "%s%n", "'; --", "\ud800", "\ufeff", "\u2028", "ß" * 300),
    *("<think>", "</think>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "a\tb", "é", "🙂", "\u202e", "x" * 5000),
)
ODD_NUMBERS = (
    *(0, -1, 1, 2, 0.5, 1e-300, 1e300, -1e300, 2**31, 2**63, 2**64, -(2**63), 10**30, float("nan"), float("inf")),
    *(float("-inf"), -0.0, 0.1, 3.0, 128, 1e-8),
)


def odd_value(draw: random.Random, depth: int = 0) -> Any:
    """Any value that JSON or TOML can hold, most of them unwelcome."""
    kinds: list[Callable[[], Any]] = [
        lambda: draw.choice(ODD_TEXTS),
        lambda: draw.choice(ODD_NUMBERS),
        lambda: draw.choice([True, False, None]),
        lambda: "".join(chr(draw.randrange(32, 0x2FF)) for _ in range(draw.randrange(12))),
        lambda: draw.randint(-10, 10) / draw.choice([1, 1, 3]),
        lambda: [odd_value(draw, depth + 1) for _ in range(draw.randrange(4))],
        lambda: {misspelt(draw, draw.choice(["name", "lr", ""])): odd_value(draw, depth + 1) for _ in range(3)},
    ]
    return draw.choice(kinds if depth < 3 else kinds[:5])()


def misspelt(draw: random.Random, word: str) -> str:
    """The word with a letter changed, lost, doubled or added, or another word."""
    if not word or draw.random() < 0.1:
        return draw.choice(ODD_TEXTS)
    place = draw.randrange(len(word))
    letter = chr(draw.choice([draw.randrange(97, 123), draw.randrange(32, 127), draw.randrange(0x80, 0x300)]))
    parts = (word[:place], word[place], word[place + 1 :])
    return draw.choice([parts[0] + parts[2], word[: place + 1] + word[place:], parts[0] + letter + word[place:]])


def changed_tree(draw: random.Random, tree: Any, times: int) -> Any:
    """A copy with so many changes at places drawn evenly."""
    tree = copy.deepcopy(tree)
    for _ in range(times):
        places = list(_places(tree))
        if not places:
            return odd_value(draw)
        holder, key = draw.choice(places)
        _change(draw, holder, key)
    return tree


def _places(tree: Any) -> Any:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield tree, key
            yield from _places(value)
    elif isinstance(tree, list):
        for key, value in enumerate(tree):
            yield tree, key
            yield from _places(value)


def _change(draw: random.Random, holder: Any, key: Any) -> None:
    kind = draw.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[misspelt(draw, str(key))] = holder.pop(key)
    elif kind == 2 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif kind == 3 and isinstance(holder, dict):
        other = draw.choice(list(holder))
        holder[key], holder[other] = holder[other], holder[key]
    elif kind == 4 and isinstance(holder[key], str):
        holder[key] = misspelt(draw, holder[key])
    else:
        holder[key] = odd_value(draw)


def changed_bytes(draw: random.Random, content: bytes, times: int) -> bytes:
    """The content with so many bytes or pieces changed, lost, doubled or moved."""
    found = bytearray(content)
    for _ in range(times):
        place, length = draw.randrange(len(found) + 1), draw.choice([1, 1, 2, 8, 60])
        kind = draw.randrange(6)
        if kind == 0:
            del found[place : place + length]
        elif kind == 1:
            found[place:place] = found[place : place + length]
        elif kind == 2:
            found[place : place + 1] = bytes([draw.randrange(256)])
        elif kind == 3:
            odd = draw.choice([*ODD_TEXTS, "[", "]", "{", "}", '"', "=", ",", "\n", "[[", '"""', "#", "\r"])
            found[place:place] = odd.encode("utf-8", "surrogatepass")
        elif kind == 4:
            del found[place:]
        else:
            end = draw.randrange(len(found) + 1)
            found[end:end] = found[place : place + length]
    return bytes(found)
