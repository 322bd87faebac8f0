"""Answers in the shapes of OpenAI's interface."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from melete.serving.engine import Finish, Piece, TokenScore
from melete.serving.words import ThoughtSplitter

Json = dict[str, Any]


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    """How many tokens were read and written."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


@dataclass
class Reply:
    """What all parts of one reply share."""

    kind: str  # "chat.completion" or "text_completion"
    model: str
    reply_id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: list[Json], counted: Json) -> Json:
        """A reply that is sent at once."""
        return {**self._head(self.kind), "choices": choices, "usage": counted}

    def chunk(self, choices: list[Json], counted: Json | None = None, *, with_usage: bool = False) -> Json:
        """A part of a streamed one; where usage is wanted, each part has the field, and the last its numbers."""
        kind = f"{self.kind}.chunk" if self.kind == "chat.completion" else self.kind
        told = {"usage": counted} if with_usage else {}
        return {**self._head(kind), "choices": choices, **told}

    def _head(self, kind: str) -> Json:
        prefix = "chatcmpl" if self.kind == "chat.completion" else "cmpl"
        return {"id": f"{prefix}-{self.reply_id}", "object": kind, "created": self.created, "model": self.model}


class ChatChoice:
    """One answer of a chat, as it comes."""

    def __init__(self, index: int, tokenizer: PreTrainedTokenizerBase, *, opened: bool, scored: bool) -> None:
        self.index, self.tokenizer, self.scored = index, tokenizer, scored
        self.splitter = ThoughtSplitter(opened=opened)
        self.parts = {"thought": "", "answer": ""}
        self.scores: list[Json] = []
        self.finish: Finish | None = None
        self.num_tokens = 0
        self.is_begun = False

    def take(self, piece: Piece) -> list[Json]:
        """The choices of the chunks that this piece makes."""
        self.num_tokens, self.finish = piece.num_tokens, piece.finish
        found = list(self.splitter.add(piece.text))
        if piece.finish:
            found += self.splitter.rest()
        for part, words in found:
            self.parts[part] += words
        scores = [chat_score(self.tokenizer, score) for score in piece.scores]
        self.scores += scores
        deltas: list[Json] = []
        if not self.is_begun:
            deltas, self.is_begun = [{"role": "assistant", "content": ""}], True
        names = {"thought": "reasoning_content", "answer": "content"}
        deltas += [{names[part]: words} for part, words in found]
        if (piece.finish or scores) and not found:
            deltas.append({})
        choices = [self._choice(delta) for delta in deltas]
        if choices and self.scored:
            choices[-1]["logprobs"] = {"content": scores, "refusal": None} if scores else None
        if piece.finish:
            choices[-1]["finish_reason"] = piece.finish
        return choices

    def _choice(self, delta: Json) -> Json:
        return {"index": self.index, "delta": delta, "logprobs": None, "finish_reason": None}

    def whole(self) -> Json:
        """The choice of a reply that is sent at once."""
        message: Json = {"role": "assistant", "content": self.parts["answer"], "refusal": None}
        if self.parts["thought"]:
            message["reasoning_content"] = self.parts["thought"]
        scores = {"content": self.scores, "refusal": None} if self.scored else None
        return {"index": self.index, "message": message, "logprobs": scores, "finish_reason": self.finish}


class TextChoice:
    """One completion of a text, as it comes; with `echo` it begins with the prompt."""

    def __init__(self, index: int, tokenizer: PreTrainedTokenizerBase, *, echo: str, scored: bool) -> None:
        self.index, self.tokenizer, self.scored, self.echo = index, tokenizer, scored, echo
        self.text = ""
        self.scores: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        self.offset = 0
        self.finish: Finish | None = None
        self.num_tokens = 0
        self.waiting: list[TokenScore] = []

    def take_prompt(self, scores: Sequence[TokenScore]) -> None:
        """The scores of the prompt's tokens, which go before those of the text."""
        self.waiting += scores

    def take(self, piece: Piece) -> list[Json]:
        """The choices of the chunks that this piece makes."""
        self.num_tokens, self.finish = piece.num_tokens, piece.finish
        text, self.echo = self.echo + piece.text, ""
        self.text += text
        logprobs = self._scored([*self.waiting, *piece.scores]) if self.scored else None
        self.waiting = []
        return [{"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": piece.finish}]

    def _scored(self, scores: Sequence[TokenScore]) -> Json:
        new: Json = {name: [] for name in self.scores}
        for score in scores:
            text = _words(self.tokenizer, score.token)
            new["tokens"].append(text)
            new["token_logprobs"].append(score.logprob)
            tops = {_words(self.tokenizer, token): value for token, value in score.top}
            new["top_logprobs"].append(None if score.logprob is None else tops)
            new["text_offset"].append(self.offset)
            self.offset += len(text)
        for name, values in new.items():
            self.scores[name] += values
        return new

    def whole(self) -> Json:
        """The choice of a reply that is sent at once."""
        scores = self.scores if self.scored else None
        return {"index": self.index, "text": self.text, "logprobs": scores, "finish_reason": self.finish}


def chat_score(tokenizer: PreTrainedTokenizerBase, score: TokenScore) -> Json:
    """A token with its log-prob and the likeliest in its place."""
    tops = [_scored_token(tokenizer, token, value) for token, value in score.top]
    return {**_scored_token(tokenizer, score.token, score.logprob), "top_logprobs": tops}


def _scored_token(tokenizer: PreTrainedTokenizerBase, token: int, logprob: float | None) -> Json:
    text = _words(tokenizer, token)
    # a part of a character has no text of its own
    return {"token": text, "logprob": logprob, "bytes": None if "�" in text else list(text.encode())}


def _words(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
