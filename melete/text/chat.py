"""Conversations as tokens, once; the model's own chat template decides how turns look.

A row that is learnt from is what sampling would have made of it: the tokens of the prompt, the assistant's words, and
the token that ends its turn. So the tokens are made piece by piece, cut where the assistant begins and ends; a token
never reaches from a header into the words, and the prompt of a later turn begins with the tokens of the earlier ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

from melete.errors import DataError, ModelError
from melete.types import Message

if TYPE_CHECKING:  # loading transformers takes a second, and graders do without
    from transformers import PreTrainedTokenizerBase

# tokens with which models end what they write, beside the tokenizer's own: configurations often name several
END_TOKENS = {
    *("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "</s>", "<eos>"),
    *("<end_of_turn>", "<|end|>", "<|return|>", "<｜end▁of▁sentence｜>"),
}
PRIVATE_USE = range(0xE000, 0xF8FF)
_OPENED_THOUGHT = re.compile(r"<think>(\s*)\Z")
_Piece = tuple[str, bool]  # text, and whether the assistant wrote it


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[int, ...]:
    """The tokens that the model completes: the conversation and the opening of the assistant's turn.

    What looks like a special token in the words of the user or the system, or like a token that begins a turn, is
    tokenised as the plain text that it is: words cannot open or close a turn. Raises `ModelError` when the tokenizer
    has no chat template, or the template refuses the conversation.
    """
    return tuple(_Turns(tokenizer, messages).prompt_tokens(len(messages)))


def conversation_rows(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, last_turn_only: bool = False
) -> list[tuple[list[int], list[bool]]]:
    """Tokens and loss mask of a conversation; the mask covers each assistant turn's words and the token that ends it.

    Nearly always that is one row. Where the template rewrites what the assistant said once the conversation goes on
    (Qwen 3 and R1 drop thoughts from the history, others cut blanks), each turn so rewritten ends a row, and the turn
    after it is learnt in a row of its own that begins with the history as the template then shows it: so every turn is
    learnt behind the very prompt that it will be sampled from, and none is lost.

    Public frameworks mask by `{% generation %}` marks in the template or by searching for a header's tokens; templates
    seldom have the marks, and a header may stand in a user's words.
    """
    numbers = [number for number, message in enumerate(messages) if message.role == "assistant"]
    if not numbers:
        what = "the assistant says nothing in this conversation"
        raise DataError(what, place="messages", remedy="give it a turn with role assistant")
    turns = _Turns(tokenizer, messages)
    rows: list[tuple[list[int], list[bool]]] = []
    for number, following in zip(numbers, [*numbers[1:], None], strict=True):
        if (last_turn_only and following is not None) or (following is not None and turns.is_kept(number, following)):
            continue
        rows.append(turns.row(number, last_turn_only=last_turn_only))
    return rows


class _Turns:
    """One conversation as its template renders it, cut where the assistant begins and ends."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> None:
        if not tokenizer.chat_template:
            what = "the tokenizer has no chat template"
            raise ModelError(
                what, place="chat_template", remedy="choose one, or set tokenizer.chat_template and save it"
            )
        self.tokenizer, self.messages = tokenizer, messages
        self.turns, self.plain = _without_control(tokenizer, messages)
        self.prompts: dict[int, str] = {}

    def prompt(self, number: int) -> str:
        """The text before the assistant's turn `number`, its opening included."""
        if number not in self.prompts:
            self.prompts[number] = _rendered(self.tokenizer, self.turns[:number])
        return self.prompts[number]

    def words(self, number: int) -> str:
        """What the assistant says in that turn, as it follows the turn's prompt."""
        return unrepeated(self.turns[number]["content"], self.prompt(number))

    def shown(self, number: int) -> str:
        """The text up to the end of that turn, if it is shown as it was written."""
        return f"{self.prompt(number)}{self.words(number)}{self.tokenizer.eos_token}"

    def is_kept(self, number: int, following: int) -> bool:
        """Whether the prompt of a later turn shows this turn as it was written."""
        return self.prompt(following).startswith(self.shown(number))

    def chain(self, number: int) -> list[int]:
        """The earlier turns of the assistant that the prompt of this one shows, as they were written, in order."""
        found: list[int] = []
        for earlier in range(number - 1, -1, -1):
            if self.messages[earlier].role == "assistant":
                if not self.is_kept(earlier, found[0] if found else number):
                    break
                found.insert(0, earlier)
        return found

    def pieces(self, number: int) -> list[_Piece]:
        """The prompt of a turn, cut around the earlier turns of the assistant."""
        found: list[_Piece] = []
        begin = 0
        for earlier in self.chain(number):
            found += [(self.prompt(earlier)[begin:], False), (self.words(earlier), True)]
            begin = len(self.shown(earlier))
        return [*found, (self.prompt(number)[begin:], False)]

    def prompt_tokens(self, number: int) -> list[int]:
        """The tokens that the model completes to this turn."""
        return [token for tokens, _ in self._tokens(number) for token in tokens]

    def row(self, number: int, *, last_turn_only: bool) -> tuple[list[int], list[bool]]:
        """Tokens and mask up to the end of this turn."""
        tokens: list[int] = []
        mask: list[bool] = []
        for found, is_written in self._tokens(number):
            tokens += found
            mask += [is_written and not last_turn_only] * len(found)
        last = written_tokens(self.tokenizer, self.words(number))
        return tokens + last, mask + [True] * len(last)

    def _tokens(self, number: int) -> Iterator[tuple[list[int], bool]]:
        for place, (text, is_written) in enumerate(self.pieces(number)):
            if is_written:
                yield written_tokens(self.tokenizer, text), True
            elif place == 0 and not self.plain:
                yield self.tokenizer.encode(text, add_special_tokens=False), False
            else:
                yield self._heard(text), False

    def _heard(self, text: str) -> list[int]:
        parts = re.split("(" + "|".join(map(re.escape, self.plain)) + ")", text) if self.plain else [text]
        tokens: list[int] = []
        for part in parts:
            plain = self.plain.get(part, "")  # in two parts it is no token
            tokens += [token for text in (plain[:1], plain[1:]) for token in encode_piece(self.tokenizer, text)]
            tokens += [] if plain else encode_piece(self.tokenizer, part)
        return tokens


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]]) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, tokenize=False))
    except Exception as error:  # a template is a program by anybody
        roles = ", ".join(turn["role"] for turn in turns) or "none"
        what = f"the model's chat template refuses a conversation with the turns {roles}: {error}"
        raise ModelError(
            what, place="chat_template", remedy="change the order of the turns, or choose another"
        ) from error


def _without_control(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The turns with a private character in place of what looks like a special token, and what each stands for.

    The assistant's own words stay: what it sampled may hold such tokens.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    heard = [turn for turn in turns if turn["role"] != "assistant"]
    found = _control_tokens(tokenizer, [turn["content"] for turn in heard])
    if not found:
        return turns, {}
    everything = "".join(turn["content"] for turn in turns)
    free = (chr(code) for code in PRIVATE_USE if chr(code) not in everything)
    plain: dict[str, str] = {}
    for token in found:
        sign = next(free)
        plain[sign] = token
        for turn in heard:
            turn["content"] = turn["content"].replace(token, sign)
    return turns, plain


def _control_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    """The tokens that direct the model and stand in these texts, the longest first.

    Those are the special ones, and others with which the template begins turns; the tags of a thought are words.
    """
    added = {str(token.content): bool(token.special) for token in tokenizer.added_tokens_decoder.values()}
    added |= dict.fromkeys(map(str, tokenizer.all_special_tokens), True)
    there = {token for token in added if token.strip() and any(token in text for text in texts)}
    if not all(added[token] for token in there):
        header = _rendered(tokenizer, [{"role": "user", "content": "words"}])
        there = {token for token in there if added[token] or token in header} - {"<think>", "</think>"}
    return sorted(there, key=lambda token: (-len(token), token))


def written_tokens(tokenizer: PreTrainedTokenizerBase, words: str) -> list[int]:
    """The assistant's words as tokens, and the token that ends its turn."""
    return [*encode_piece(tokenizer, words), cast(int, tokenizer.eos_token_id)]


def encode_piece(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text that stands within another; no tokenizer adds anything before it.

    SentencePiece's kind puts a blank before a text; after a line's end it puts none within, so one is written first.
    """
    tokens = tokenizer.encode(text, add_special_tokens=False)
    if (
        not tokens
        or text.startswith((" ", "▁"))
        or not str(tokenizer.convert_ids_to_tokens(tokens[:1])[0]).startswith("▁")
    ):
        return tokens
    before = tokenizer.encode("\n", add_special_tokens=False)
    both = tokenizer.encode("\n" + text, add_special_tokens=False)
    return both[len(before) :] if both[: len(before)] == before else tokens


def unrepeated(words: str, prompt: str) -> str:
    r"""The words without the `<think>` that the prompt has already opened.

    >>> unrepeated("<think>\n2</think>2", "<assistant><think>\n"), unrepeated("<think>2</think>2", "<assistant>")
    ('2</think>2', '<think>2</think>2')
    """
    opened = _OPENED_THOUGHT.search(prompt)
    if opened is None or not words.lstrip().startswith("<think>"):
        return words
    rest = words.lstrip().removeprefix("<think>")
    return rest.removeprefix(opened.group(1)) if opened.group(1) else rest


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills rows up.

    Raises `ModelError` when the tokenizer has none; `load_tokenizer` gives it one.
    """
    if not isinstance(tokenizer.pad_token_id, int):
        raise ModelError("the tokenizer has no pad token", remedy="set tokenizer.pad_token = tokenizer.eos_token")
    return tokenizer.pad_token_id


def opens_thought(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template itself writes `<think>` at the start of the assistant's turn."""
    text = tokenizer.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True, tokenize=False)
    return str(text).rstrip().endswith("<think>")


def decode_completion(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The completion as graders and people read it: without the token that ended it, with the tags."""
    kept = tokens[:-1] if tokens and _ends(tokenizer, tokens[-1]) else tokens
    return str(tokenizer.decode(list(kept), skip_special_tokens=False))


def _ends(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    return token == tokenizer.eos_token_id or tokenizer.convert_ids_to_tokens(token) in END_TOKENS


def tokens_after_thought(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> tuple[int, ...]:
    """The completion's own tokens that follow `</think>`: all where there is no thought, none where it never ends.

    Nothing is encoded again, so a score belongs to the very tokens that were sampled.
    """
    text = decode_completion(tokenizer, tokens)
    if "</think>" not in text:
        return () if "<think>" in text else tuple(tokens)
    low, high = 0, len(tokens)
    while low < high:  # the shortest prefix that holds the closing tag
        middle = (low + high) // 2
        if "</think>" in str(tokenizer.decode(list(tokens[:middle]), skip_special_tokens=False)):
            high = middle
        else:
            low = middle + 1
    return tuple(tokens[low:])
