"""What there is to say about a data set before anything is trained on it, and its rows as the model sees them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass

from transformers import PreTrainedTokenizerBase

from melete.datasets.encode import demonstration_rows, ranked_rows, single_row, step_row
from melete.datasets.formats import Row, words_of
from melete.text.chat import END_TOKENS, prompt_tokens
from melete.types import Demonstration, LabelledCompletion, PreferencePair, RankedCompletions


@dataclass(frozen=True, slots=True)
class SeenRow:
    """A row as the model sees it: what it is, its tokens and which of them are learnt."""

    about: str
    tokens: tuple[int, ...]
    mask: tuple[bool, ...]


def seen_rows(tokenizer: PreTrainedTokenizerBase, row: Row, *, last_turn_only: bool = False) -> list[SeenRow]:
    """The rows that are made of a row of data. Of labelled steps, the last token of each is what is learnt."""
    if isinstance(row, Demonstration):
        made = demonstration_rows(tokenizer, row, last_turn_only=last_turn_only)
        names = ["demonstration"] if len(made) == 1 else [f"part {number + 1}" for number in range(len(made))]
    elif isinstance(row, PreferencePair):
        made, names = ranked_rows(tokenizer, row), ["chosen", "rejected"]
    elif isinstance(row, RankedCompletions):
        made = ranked_rows(tokenizer, row)
        names = [f"rank {number + 1}" for number in range(len(made))]
    elif isinstance(row, LabelledCompletion):
        made, names = [single_row(tokenizer, row)], ["good" if row.label else "not good"]
    else:
        (tokens, _), ends = step_row(tokenizer, row)
        where = {position for position, _ in ends}
        made = [(tokens, [position in where for position in range(len(tokens))])]
        names = [f"steps {''.join('+' if label else '-' for _, label in ends)}"]
    return [SeenRow(name, tuple(tokens), tuple(mask)) for name, (tokens, mask) in zip(names, made, strict=True)]


def cells(tokenizer: PreTrainedTokenizerBase, row: SeenRow) -> Iterator[tuple[str, bool, tuple[int, ...]]]:
    """Text, whether it is learnt, and tokens of each token; those that are one character together stand together.

    Signs that would direct a terminal are written out.
    """
    waiting: list[int] = []
    for number, token in enumerate(row.tokens):
        waiting.append(token)
        text = str(tokenizer.decode(waiting, skip_special_tokens=False))
        is_last = number + 1 == len(row.tokens) or row.mask[number + 1] != row.mask[number]
        if "�" not in text or is_last or len(waiting) == 4:
            yield visible(text), row.mask[number], tuple(waiting)
            waiting = []


def visible(text: str) -> str:
    r"""Text with what cannot be printed written out; line ends stay.

    >>> visible("a\x1b[2J\u202eb")
    'a\\x1b[2J\\u202eb'
    """
    return "".join(sign if sign == "\n" or sign.isprintable() else _escaped(sign) for sign in text)


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")


@dataclass(frozen=True, slots=True)
class Findings:
    """Numbers of a data set; lengths are those of rows in tokens, prompt and answer."""

    num_rows: int
    num_token_rows: int
    num_tokens: int
    num_learnt: int
    mean_length: float
    p95_length: int
    max_length: int
    limit: int | None
    num_too_long: int
    num_duplicates: int
    num_equal_pairs: int
    num_empty: int
    num_unended_thoughts: int
    num_with_end_inside: int
    num_nothing_learnt: int


def findings(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int | None, *, last_turn_only: bool = False
) -> Findings:
    """Reads every row as the model will."""
    lengths: list[int] = []
    counts: Counter[str] = Counter()
    seen: set[tuple[object, ...]] = set()
    ends = {*END_TOKENS, str(tokenizer.eos_token)} & tokenizer.get_vocab().keys()
    for row in rows:
        said = astuple(row)[1:]
        counts["duplicates"] += said in seen
        seen.add(said)
        opened = _opens(tokenizer, row)
        answers = words_of(row)
        counts["equal"] += not isinstance(row, Demonstration | LabelledCompletion) and len(set(answers)) < len(answers)
        counts["empty"] += any(not answer.strip() for answer in answers)
        counts["end inside"] += any(end in answer for end in ends for answer in answers)
        counts["unended"] += any((opened or "<think>" in answer) and "</think>" not in answer for answer in answers)
        for made in seen_rows(tokenizer, row, last_turn_only=last_turn_only):
            lengths.append(len(made.tokens))
            counts["learnt"] += sum(made.mask)
            counts["long"] += limit is not None and len(made.tokens) > limit
            counts["nothing"] += not any(made.mask[1:limit])
    ordered = sorted(lengths)
    return Findings(
        num_rows=len(rows),
        num_token_rows=len(lengths),
        num_tokens=sum(lengths),
        num_learnt=counts["learnt"],
        mean_length=sum(lengths) / len(lengths),
        p95_length=ordered[math.ceil(0.95 * len(ordered)) - 1],
        max_length=ordered[-1],
        limit=limit,
        num_too_long=counts["long"],
        num_duplicates=counts["duplicates"],
        num_equal_pairs=counts["equal"],
        num_empty=counts["empty"],
        num_unended_thoughts=counts["unended"],
        num_with_end_inside=counts["end inside"],
        num_nothing_learnt=counts["nothing"],
    )


def _opens(tokenizer: PreTrainedTokenizerBase, row: Row) -> bool:
    tail = tokenizer.decode(list(prompt_tokens(tokenizer, row.messages))[-4:], skip_special_tokens=False)
    return str(tail).rstrip().endswith("<think>")


def described(found: Findings) -> dict[str, str]:
    """The numbers in words, and of what is amiss only what is there."""
    told = {
        "rows": f"{found.num_rows:,}"
        + (f", {found.num_token_rows:,} rows of tokens" if found.num_token_rows != found.num_rows else ""),
        "tokens": f"{found.num_tokens:,}, of which {found.num_learnt:,} are learnt "
        f"({found.num_learnt / found.num_tokens:.0%})",
        "row length": f"mean {found.mean_length:.0f}, 95% up to {found.p95_length:,}, longest {found.max_length:,}"
        + (f"; the limit is {found.limit:,}" if found.limit else ""),
    }
    amiss: Mapping[str, tuple[int, str]] = {
        "too long": (found.num_too_long, 'refused as it is; too_long = "drop" leaves them out'),
        "repeated": (found.num_duplicates, "say the same as an earlier row"),
        "equal answers": (found.num_equal_pairs, "prefer an answer to the same answer"),
        "empty": (found.num_empty, "have an answer of nothing but blanks"),
        "unended thought": (found.num_unended_thoughts, "open a thought (<think>) and never end it"),
        "end inside": (found.num_with_end_inside, "have the token that ends a turn inside an answer"),
        "nothing learnt": (found.num_nothing_learnt, "have no answer within the limit"),
    }
    return told | {name: f"{count:,} {why}" for name, (count, why) in amiss.items() if count}
