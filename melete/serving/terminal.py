"""Chatting in the terminal: thoughts dimmed and folded to a line, commands that begin with a slash."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from rich.cells import cell_len

from melete.errors import MeleteError
from melete.sampling.keys import rollout_key
from melete.serving.engine import Engine, Job, Piece
from melete.serving.voting import votes
from melete.serving.words import Part, ThoughtSplitter, parts_of
from melete.text.chat import opens_thought, prompt_tokens
from melete.types import Message

HELP = """\
/thought        show the last thought, and those to come; once more hides them
/votes N        ask for N answers and show what most of them say; 1 ends it
/temperature T  0 is greedy
/system TEXT    set the system prompt; without a text it is shown, - removes it
/reset          forget the conversation
/save FILE      add the conversation to a file of rows that `melete sft` reads
/help, /quit    Ctrl-C stops an answer, Ctrl-D leaves; a line that ends with \\ goes on"""
DIM, BOLD, PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class ChatSettings:
    """How answers are drawn; without a seed each is another."""

    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 1024
    votes: int = 1
    seed: int | None = None
    system: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"the temperature must be from 0 (greedy) to 2, not {self.temperature:g}")
        if self.votes < 1:
            raise ValueError(f"votes must be 1 or more, not {self.votes}")


@dataclass
class _Answers:
    """What one model says to one question."""

    job: Job
    heard: queue.SimpleQueue[Piece]
    opened: bool
    texts: list[str] = field(default_factory=list[str])
    finishes: list[str] = field(default_factory=list[str])

    def pieces(self) -> Iterator[Piece]:
        """The pieces until all answers have ended; Ctrl-C comes through."""
        num_open = len(self.job.keys)
        while num_open:
            try:
                piece = self.heard.get(timeout=0.2)  # without it some systems do not hear Ctrl-C
            except queue.Empty:
                continue
            if piece.finish == "error":
                raise MeleteError(piece.error)
            self.texts[piece.index] += piece.text
            if piece.finish:
                self.finishes[piece.index] = piece.finish
                num_open -= 1
            yield piece


class TerminalChat:
    """A conversation with one model or two.

    `styled` is for a terminal, and not for a file or a pipe. `answer_only` is for one question: its answer is all that
    is written to `out`, and what goes wrong is raised.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        settings: ChatSettings,
        out: TextIO,
        err: TextIO,
        *,
        styled: bool,
        answer_only: bool = False,
    ) -> None:
        self.engines, self.settings, self.out, self.err = engines, settings, out, err
        self.styled, self.answer_only = styled, answer_only
        self.histories: list[list[Message]] = [[] for _ in engines]
        self.shows_thought = False
        self.last_thought = ""

    def run(self, read: Callable[[str], str]) -> None:
        """Asks for lines until there are no more."""
        self._tell(f"{' and '.join(engine.name for engine in self.engines)}; /help tells the commands, Ctrl-D leaves")
        goes_on = True
        while goes_on:
            with contextlib.suppress(KeyboardInterrupt):  # one that comes where nothing is read or said
                goes_on = self._round(read)

    def _round(self, read: Callable[[str], str]) -> bool:
        """One line and what it asks for; whether there is another after it."""
        try:
            text = self._question(read)
        except EOFError:
            self._write("\n")
            return False
        except KeyboardInterrupt:
            self._tell("\nCtrl-D leaves")
            return True
        if text in ("/quit", "/exit"):
            return False
        if text.startswith("/"):
            self.command(text)
        elif text:
            self.ask(text)
        return True

    def _question(self, read: Callable[[str], str]) -> str:
        lines = [read("> ")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(read("… "))
        return "\n".join(lines).strip()

    def command(self, text: str) -> None:
        """Does what a line with a slash says; a mistake is told and changes nothing."""
        name, _, rest = text[1:].partition(" ")
        known: dict[str, Callable[[str], None]] = {
            "help": lambda _: self._tell(HELP),
            "reset": self._reset,
            "system": self._system,
            "votes": lambda rest: self._set("votes", int, rest),
            "temperature": lambda rest: self._set("temperature", float, rest),
            "thought": self._thought,
            "save": self._save,
        }
        if name not in known:
            self._tell(f"there is no command /{name}; /help lists those there are")
            return
        try:
            known[name](rest.strip())
        except (ValueError, OSError) as error:
            self._tell(f"error: {error}")

    def ask(self, text: str) -> None:
        """Puts a question and shows what is said; Ctrl-C stops the answer."""
        asked: list[_Answers] = []
        try:
            for engine, history in zip(self.engines, self.histories, strict=True):
                asked.append(self._submit(engine, [*history, Message("user", text)]))
            for engine, history, answers in zip(self.engines, self.histories, asked, strict=True):
                self._show_name(engine)
                said = self._show_votes(answers) if len(answers.job.keys) > 1 else self._show_one(answers)
                self._note_length(answers)
                if said:
                    history += [Message("user", text), Message("assistant", said)]
        except KeyboardInterrupt:
            if self.answer_only:
                raise
            self._write(PLAIN if self.styled else "")
            self._tell("\nstopped")
        except MeleteError as error:
            if self.answer_only:
                raise
            self._tell(f"error: {error}")
        finally:
            for answers in asked:
                answers.job.cancel()

    def _submit(self, engine: Engine, messages: list[Message]) -> _Answers:
        settings = self.settings
        if settings.system:
            messages = [Message("system", settings.system), *messages]
        prompt = prompt_tokens(engine.tokenizer, messages)
        seed = secrets.randbits(62) if settings.seed is None else settings.seed
        keys = tuple(rollout_key(seed, "serve", 0, sibling) for sibling in range(settings.votes))
        heard: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        job = Job(
            prompt,
            keys,
            heard.put,
            settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
        engine.submit(job)
        return _Answers(job, heard, opens_thought(engine.tokenizer), [""] * len(keys), [""] * len(keys))

    def _show_one(self, answers: _Answers) -> str:
        """Shows an answer as it comes; returns it without its thought."""
        splitter = ThoughtSplitter(opened=answers.opened)
        parts: dict[Part, str] = {"thought": "", "answer": ""}
        part: Part = "answer"
        for piece in answers.pieces():
            found = [*splitter.add(piece.text), *(splitter.rest() if piece.finish else ())]
            for kind, words in found:
                if kind != part:
                    self._turn(part, kind, parts)
                    part = kind
                parts[kind] += words
                if kind == "answer" or self._streams_thought:
                    self._write(self._clean(words))
        if part == "thought":
            self._turn("thought", "answer", parts)
        self.last_thought = parts["thought"] or self.last_thought
        self._write("\n")
        return parts["answer"].strip()

    @property
    def _streams_thought(self) -> bool:
        return not self.answer_only and (self.styled or self.shows_thought)

    def _turn(self, before: Part, after: Part, parts: dict[Part, str]) -> None:
        """Goes from thought to answer or back."""
        if self.answer_only:
            return
        if after == "thought":
            self._write(("\n" if parts["answer"] else "") + (DIM if self.styled else ""))
            return
        folded = f"▸ thought, {_length(parts['thought'])}; /thought shows it"
        if self.shows_thought:
            self._write((PLAIN if self.styled else "") + "\n\n")
        elif self.styled:
            rows = _rows(self._clean(parts["thought"]))
            fits = rows < shutil.get_terminal_size().lines  # what has left the screen cannot be taken back
            back = (f"\x1b[{rows - 1}A" if rows > 1 else "") + "\r\x1b[J" if fits else "\n"
            self._write(f"{back}{folded}{PLAIN}\n")
        else:
            self._write(f"{folded}\n")

    def _show_votes(self, answers: _Answers) -> str:
        """Shows what most answers say, and the share of each; returns the first of those that most agree with."""
        for piece in answers.pieces():
            if piece.finish and self.styled and not self.answer_only:
                done = sum(map(bool, answers.finishes))
                self._write(f"\r{DIM}{done} of {len(answers.texts)} answers{PLAIN}\x1b[K")
        if self.styled and not self.answer_only:
            self._write("\r\x1b[K")
        pairs = [parts_of(text, opened=answers.opened) for text in answers.texts]
        counted = votes([answer for _, answer in pairs])
        thought, answer = pairs[counted[0].members[0]]
        self.last_thought = thought or self.last_thought
        self._write(self._clean(answer.strip()) + "\n")
        if not self.answer_only:
            for vote in counted:
                share = f"{round(100 * vote.share):3d} %  {len(vote.members)} of {len(pairs)}"
                self._tell(f"{share}  {self._clean(vote.answer) or 'no final answer'}")
        return answer.strip()

    def _show_name(self, engine: Engine) -> None:
        if len(self.engines) > 1:
            self._write(f"{BOLD}{engine.name}:{PLAIN}\n" if self.styled else f"{engine.name}:\n")

    def _note_length(self, answers: _Answers) -> None:
        cut = answers.finishes.count("length")
        if not cut:
            return
        told = f"{cut} of {len(answers.texts)} answers were" if len(answers.texts) > 1 else "the answer was"
        told += f" cut off at {answers.job.max_tokens} tokens"
        if self.answer_only:
            self.err.write(f"{told}\n")
        else:
            self._tell(told)

    def _reset(self, _: str) -> None:
        self.histories = [[] for _ in self.engines]
        self._tell("the conversation is forgotten")

    def _system(self, text: str) -> None:
        if text:
            self.settings = replace(self.settings, system="" if text == "-" else text)
        self._tell(f"system prompt: {self.settings.system or 'none'}")

    def _set(self, name: str, kind: Callable[[str], float], text: str) -> None:
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(f"/{name} takes a number, not {text!r}") from None
        most = min(engine.max_rows for engine in self.engines)
        if name == "votes" and value > most:
            raise ValueError(f"votes must be {most} or less, not {value:g}")
        self.settings = replace(self.settings, **{name: value})
        self._tell(f"{name}: {value:g}")

    def _thought(self, _: str) -> None:
        self.shows_thought = not self.shows_thought
        if self.shows_thought and self.last_thought:
            self._tell(self._clean(self.last_thought))
        self._tell("thoughts are shown" if self.shows_thought else "thoughts are folded")

    def _save(self, file: str) -> None:
        rows = [self._row(history) for history in self.histories if history]
        if not file or not rows:
            raise ValueError("nothing has been said yet" if file else "/save takes the name of a file")
        with Path(file).expanduser().open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._tell(f"{len(rows)} row{'s' * (len(rows) > 1)} added to {file}")

    def _row(self, history: Sequence[Message]) -> dict[str, list[dict[str, str]]]:
        system = [Message("system", self.settings.system)] if self.settings.system else []
        return {"messages": [{"role": turn.role, "content": turn.content} for turn in [*system, *history]]}

    def _clean(self, text: str) -> str:
        """What a model wrote cannot move the cursor or colour the screen."""
        return _CONTROL.sub("�", text) if self.styled else text

    def _tell(self, text: str) -> None:
        self._write(f"{DIM}{text}{PLAIN}\n" if self.styled else f"{text}\n")

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()


def _length(text: str) -> str:
    count = len(text.split())
    return f"{count} word{'s' * (count != 1)}"


def _rows(text: str) -> int:
    """Rows of the screen that a text takes."""
    width = max(1, shutil.get_terminal_size().columns)
    return sum(max(1, -(-cell_len(line.expandtabs(8)) // width)) for line in text.split("\n"))
