"""Which rows are worth training on: difficulty by measured pass rates, duplicates, and what held-out sets contain.

Each function keeps the order and says of everything that it drops why. Only the standard library and numpy: datasketch
would bring scipy for what is forty lines here.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from melete.types import Problem

if TYPE_CHECKING:
    import numpy as np

_Item = TypeVar("_Item")
_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_NUMBER = re.compile(r"(?:[-+*/^=<>×÷]\s*)?\d+(?:[.,]\d+)*")
_NUM_HASHES = 128
_PRIME = 2**31 - 1  # products of two residues fit into 64 bits
_SURELY = 0.999  # a pair at the threshold is compared with at least this probability


@dataclass(frozen=True, slots=True)
class Dropped(Generic[_Item]):
    """What was dropped: `kind` in a word or two, to count by, and the whole `reason`."""

    item: _Item
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Curated(Generic[_Item]):
    """What is kept, in order, and what is not."""

    kept: tuple[_Item, ...]
    dropped: tuple[Dropped[_Item], ...]

    def counts(self) -> dict[str, int]:
        """How many were dropped, by kind.

        >>> Curated(("a",), (Dropped("b", "too easy", "8 of 8 right"),)).counts()
        {'too easy': 1}
        """
        return dict(Counter(dropped.kind for dropped in self.dropped))


def question_of(problem: Problem) -> str:
    """What is asked: the user's turns, without the system's, which many problems share."""
    return "\n".join(message.content for message in problem.messages if message.role != "system")


def normal_text(text: str) -> str:
    """Text without what has no meaning: case, forms of the same letter, spacing. Signs stay: 3+5 is not 3-5.

    >>> normal_text("  What IS\\n３+5? ")
    'what is 3+5?'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def by_difficulty(
    measured: Iterable[tuple[_Item, int, int]], *, low: float = 0.0, high: float = 1.0, min_tries: int = 1
) -> Curated[_Item]:
    """The items whose pass rate is strictly between `low` and `high`; each comes with (num_right, num_tries).

    By default what is always or never right is dropped: all its siblings would get the same reward, and no advantage.
    Fewer than `min_tries` tries say nothing, and drop too (0 of 0 is no rate). Raises `ValueError` for counts or bounds
    that cannot be.

    >>> by_difficulty([("a", 8, 8), ("b", 3, 8), ("c", 0, 8), ("d", 0, 0)]).kept
    ('b',)
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"bounds must satisfy 0 <= low < high <= 1, not {low} and {high}")
    if min_tries < 1:
        raise ValueError(f"min_tries must be at least 1, not {min_tries}")
    kept, dropped = list[_Item](), list[Dropped[_Item]]()
    for item, right, tries in measured:
        if not 0 <= right <= tries:
            raise ValueError(f"{right} right of {tries} tries cannot be")
        told = f"{right} of {tries} right"
        if tries < min_tries:
            dropped.append(Dropped(item, "not measured", f"{tries} tries, {min_tries} are needed"))
        elif right <= low * tries:
            dropped.append(Dropped(item, "too hard", f"{told}, at most {low:g}"))
        elif right >= high * tries:
            dropped.append(Dropped(item, "too easy", f"{told}, at least {high:g}"))
        else:
            kept.append(item)
    return Curated(tuple(kept), tuple(dropped))


def without_duplicates(
    items: Sequence[_Item],
    text_of: Callable[[_Item], str],
    *,
    threshold: float = 0.8,
    ngram: int = 3,
    numbers_matter: bool = True,
    known: Iterable[str] = (),
    only_known: bool = False,
) -> Curated[_Item]:
    """The items without repetitions: the first of each stays.

    `known` texts count as seen before, such as held-out ones; with `only_known`, nothing else does.

    Two texts are exact duplicates when their `normal_text` is the same, and near ones when the Jaccard index of their
    sets of `ngram` tokens is at least `threshold` (above 1: exact ones only). Pairs are found by MinHash and bands
    (Broder 1997; Leskovec et al., Mining of Massive Datasets, ch. 3) and then compared exactly; a pair at the threshold
    is missed once in a thousand times. With `numbers_matter`, texts whose numbers differ are no near duplicates: a word
    problem with other numbers is another problem.

    >>> without_duplicates(["What is 3+5?", "what is  3+5?", "What is 3-5?"], str).kept
    ('What is 3+5?', 'What is 3-5?')
    """
    if threshold <= 0 or ngram < 1:
        raise ValueError(f"threshold must be above 0 and ngram at least 1, not {threshold} and {ngram}")
    seen = list(dict.fromkeys(normal_text(text) for text in known))
    texts = seen + [normal_text(text_of(item)) for item in items]
    firsts = dict[str, int]()
    for row, text in enumerate(texts):
        firsts.setdefault(text, row)
    different = list(firsts.values())
    near: dict[int, int] = {}
    if threshold <= 1 and len(different) > len(seen):
        told = [texts[row] for row in different]
        found = _near_duplicates(told, threshold, ngram, numbers_matter, (len(seen), only_known))
        near = {different[row]: different[first] for row, first in found.items()}
    kept, dropped = list[_Item](), list[Dropped[_Item]]()
    for row, item in enumerate(items, len(seen)):
        first = firsts[texts[row]]
        if first != row and (first < len(seen) or not only_known):
            dropped.append(Dropped(item, "exact duplicate", f"the same as {_named(first, len(seen))}"))
        elif first in near:
            where = _named(near[first], len(seen))
            dropped.append(Dropped(item, "near duplicate", f"nearly the same as {where}: {_cut(texts[near[first]])}"))
        else:
            kept.append(item)
    return Curated(tuple(kept), tuple(dropped))


def decontaminated(
    items: Sequence[_Item],
    text_of: Callable[[_Item], str],
    held_out: Iterable[str],
    *,
    ngram: int = 10,
) -> Curated[_Item]:
    """The items that share no sequence of `ngram` words with a held-out text (DeepSeek-R1, 2025: any 10-gram).

    Words are runs of letters and digits, without case. A text of fewer words is compared as a whole (`normal_text`), so
    that 3+5 and 3-5 stay two problems; a short held-out text inside a longer one is not found.

    >>> held_out = ["one two three four five"]
    >>> decontaminated(["Two, three: FOUR!", "two three five"], str, held_out, ngram=3).kept
    ('two three five',)
    """
    if ngram < 1:
        raise ValueError(f"ngram must be at least 1, not {ngram}")
    whole, grams = set[str](), set[str]()
    for text in held_out:
        normal = normal_text(text)
        whole.add(normal)
        grams.update(_grams(normal, ngram))
    kept, dropped = list[_Item](), list[Dropped[_Item]]()
    for item in items:
        normal = normal_text(text_of(item))
        shared = next((gram for gram in _grams(normal, ngram) if gram in grams), None)
        if normal in whole:
            dropped.append(Dropped(item, "held out", f"the same as a held-out text: {_cut(normal)}"))
        elif shared is not None:
            dropped.append(Dropped(item, "contaminated", f"{ngram} words of a held-out text: {_cut(shared)}"))
        else:
            kept.append(item)
    return Curated(tuple(kept), tuple(dropped))


def jaccard(first: set[Any], second: set[Any]) -> float:
    """Size of the intersection over that of the union; two empty sets are equal.

    >>> jaccard({1, 2, 3}, {2, 3, 4}), jaccard(set(), set())
    (0.5, 1.0)
    """
    return len(first & second) / len(first | second) if first or second else 1.0


def shingles(normal: str, ngram: int) -> set[tuple[str, ...]]:
    """The sequences of `ngram` tokens (words and signs) of a text; all of a shorter one.

    >>> sorted(shingles("3+5=?", 4))
    [('+', '5', '=', '?'), ('3', '+', '5', '=')]
    """
    tokens = _TOKEN.findall(normal)
    return {tuple(tokens[i : i + ngram]) for i in range(max(1, len(tokens) - ngram + 1))}


def _grams(normal: str, ngram: int) -> Iterable[str]:
    words = _WORD.findall(normal)
    return (" ".join(words[i : i + ngram]) for i in range(len(words) - ngram + 1))


def _near_duplicates(
    texts: Sequence[str], threshold: float, ngram: int, numbers_matter: bool, known: tuple[int, bool]
) -> dict[int, int]:
    """row -> an earlier row that stays and that it nearly repeats.

    `known`: how many first ones stay in any case, and whether only they count.
    """
    import numpy as np

    num_known, only_known = known
    signatures = _signatures(texts, ngram)
    rows_per_band = _rows_per_band(threshold)
    buckets: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    near: dict[int, int] = {}
    for row, text in enumerate(texts):
        numbers = "|".join(_NUMBER.findall(text)) if numbers_matter else ""
        signature = signatures[row]
        keys = [
            (band, signature[band : band + rows_per_band].tobytes(), numbers)
            for band in range(0, _NUM_HASHES, rows_per_band)
        ]
        candidates = np.array(sorted({other for key in keys if key in buckets for other in buckets[key]}), dtype=int)
        if len(candidates) and row >= num_known:
            # the signatures' agreement estimates the index: what is far off is not compared
            close = (signatures[candidates] == signature).mean(axis=1) >= threshold - 0.2
            own = shingles(text, ngram)
            for other in candidates[close]:
                if jaccard(own, shingles(texts[int(other)], ngram)) >= threshold:
                    near[row] = int(other)
                    break
        if row < num_known or (row not in near and not only_known):
            for key in keys:
                buckets[key].append(row)
    return near


def _rows_per_band(threshold: float) -> int:
    """As many as leave a pair at the threshold in one bucket at least with probability `_SURELY`.

    >>> _rows_per_band(0.8), _rows_per_band(0.5), _rows_per_band(1.0)
    (4, 2, 128)
    """
    sizes = [size for size in (128, 64, 32, 16, 8, 4, 2) if 1 - (1 - threshold**size) ** (128 // size) >= _SURELY]
    return sizes[0] if sizes else 1


def _signatures(texts: Sequence[str], ngram: int) -> np.ndarray:
    """[texts, hashes]: the least value of each of 128 fixed hash functions a * x + b mod p over a text's shingles."""
    import numpy as np

    source = np.random.default_rng(0)
    slopes = source.integers(1, _PRIME, _NUM_HASHES, dtype=np.uint64)
    offsets = source.integers(0, _PRIME, _NUM_HASHES, dtype=np.uint64)
    found = np.empty((len(texts), _NUM_HASHES), dtype=np.uint32)
    for row, text in enumerate(texts):
        codes = [zlib.crc32("\x1f".join(shingle).encode("utf-8", "replace")) for shingle in shingles(text, ngram)]
        values = np.array(codes, dtype=np.uint64) % np.uint64(_PRIME)
        least = np.full(_NUM_HASHES, _PRIME, dtype=np.uint64)
        for begin in range(0, len(values), 4096):  # a text of a megabyte in pieces
            hashed = (values[begin : begin + 4096, None] * slopes + offsets) % np.uint64(_PRIME)
            least = np.minimum(least, hashed.min(axis=0))
        found[row] = least
    return found


def _named(row: int, num_known: int) -> str:
    return f"row {row - num_known}" if row >= num_known else "a known text"


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."
