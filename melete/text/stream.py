"""From tokens to text, token by token: whole characters only."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

_UNREADABLE = "�"
_HELD = 3  # a character of UTF-8 has at most four bytes, so at most so many of an unfinished one are there
_WINDOW, _KEPT = 24, 8  # tokens that are decoded together; a token's text depends on few before it


class TextStream:
    """Decodes token by token; what it has given never changes, and joined together it is the text.

    A character whose last byte is still to come is held back.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.window: list[int] = []
        self.given = 0  # characters of the window's text

    def add(self, token: int) -> str:
        """What this token adds, perhaps nothing yet."""
        self.window.append(token)
        text = self._decoded()
        open_end = min(_HELD, len(text) - len(text.rstrip(_UNREADABLE)))
        settled = max(self.given, len(text) - open_end)
        new, self.given = text[self.given : settled], settled
        if len(self.window) >= _WINDOW:
            held = len(text) - settled
            self.window = self.window[-_KEPT:]
            self.given = max(0, len(self._decoded()) - held)
        return new

    def rest(self) -> str:
        """What is still held back, as the text has ended."""
        text = self._decoded()
        new, self.given = text[self.given :], len(text)
        return new

    def _decoded(self) -> str:
        # cleaning up would take back blanks that were given already
        return str(self.tokenizer.decode(self.window, skip_special_tokens=False, clean_up_tokenization_spaces=False))
