"""What a reader is sent of a text that is being written: nothing of a stop string, thoughts apart from the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

Part = Literal["thought", "answer"]


class StopSearch:
    """Lets text through up to the first stop string, and never a piece that may be the beginning of one.

    >>> search = StopSearch(["END"])
    >>> search.add("1 E"), search.add("Z E"), search.add("ND 2"), search.found
    ('1 ', 'EZ ', '', True)
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self.stop_strings = tuple(stop_strings)
        self.found = False
        self.held = ""

    def add(self, text: str) -> str:
        """What may be shown now."""
        if self.found:
            return ""
        self.held += text
        places = [place for stop in self.stop_strings if (place := self.held.find(stop)) >= 0]
        if places:
            self.found = True
            return self._let(min(places))
        return self._let(len(self.held) - max((_overlap(self.held, stop) for stop in self.stop_strings), default=0))

    def rest(self) -> str:
        """What is held back, as no more comes."""
        return "" if self.found else self._let(len(self.held))

    def _let(self, length: int) -> str:
        shown, self.held = self.held[:length], self.held[length:]
        return shown


def _overlap(text: str, mark: str) -> int:
    """The length of the longest end of `text` that is a beginning of `mark`, but not all of it."""
    return next((length for length in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:length])), 0)


class ThoughtSplitter:
    r"""Parts a stream into thoughts and answer at `<think>` and `</think>`, which are in neither.

    White space around a thought belongs to the tags. A text without a thought stays as it is.

    >>> splitter = ThoughtSplitter()
    >>> list(splitter.add("<thi")), list(splitter.add("nk>\n2+2\n</think>\n\n4"))
    ([], [('thought', '2+2'), ('answer', '4')])
    """

    def __init__(self, *, opened: bool = False) -> None:
        self.part: Part = "thought" if opened else "answer"
        self.at_edge = opened  # white space that comes now belongs to a tag
        self.held = ""

    def add(self, text: str) -> Iterator[tuple[Part, str]]:
        """The pieces that are certain now, each with the part that it belongs to."""
        self.held += text
        while True:
            mark = "</think>" if self.part == "thought" else "<think>"
            place = self.held.find(mark)
            if place < 0:
                yield from self._give(len(self.held) - _overlap(self.held, mark), at_end=False)
                return
            yield from self._give(place, at_end=True)
            self.held = self.held[len(mark) :]
            self.part = "answer" if self.part == "thought" else "thought"
            self.at_edge = True

    def rest(self) -> Iterator[tuple[Part, str]]:
        """What is held back, as no more comes."""
        yield from self._give(len(self.held), at_end=True)

    def _give(self, length: int, *, at_end: bool) -> Iterator[tuple[Part, str]]:
        """Gives that much of what is held; white space at the end of a thought waits for what follows."""
        piece = self.held[:length]
        if self.part == "thought":
            kept = piece.rstrip()
            used = length if at_end else len(kept)
        else:
            kept, used = piece, length
        if self.at_edge:
            kept = kept.lstrip()
            if not kept:
                self.held = self.held[used:]
                return
        self.held = self.held[used:]
        if kept:
            self.at_edge = False
            yield self.part, kept


def parts_of(text: str, *, opened: bool = False) -> tuple[str, str]:
    """Thought and answer of a whole text.

    >>> parts_of("<think>6?</think> It is 7."), parts_of("7")
    (('6?', 'It is 7.'), ('', '7'))
    """
    splitter = ThoughtSplitter(opened=opened)
    pieces = [*splitter.add(text), *splitter.rest()]
    thought, answer = ("".join(words for part, words in pieces if part == kind) for kind in ("thought", "answer"))
    return thought, answer
